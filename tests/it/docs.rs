//! Documents that must agree with the repository.

use std::fs;
use std::path::{Path, PathBuf};

use frazil::ErrorKind;

use crate::tidy::files_under;

#[test]
fn every_kind_of_error_has_its_section_in_order() {
    let page = read("docs/reference/errors.md");
    let sections: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    assert_eq!(sections, ErrorKind::ALL.map(ErrorKind::name));
}

#[test]
fn links_lead_somewhere() {
    let mut broken = Vec::new();
    for page in pages() {
        let text = without_code(&read(&page));
        for target in links(&text) {
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = if file.is_empty() { PathBuf::from(&page) } else { folder(&page).join(file) };
            if !root().join(&path).exists() {
                broken.push(format!("{page}: {target}"));
            } else if !anchor.is_empty()
                && !anchors(&fs::read_to_string(root().join(&path)).unwrap()).contains(&anchor.to_owned())
            {
                broken.push(format!("{page}: {target} has no such heading"));
            }
        }
    }
    assert!(broken.is_empty(), "links that lead nowhere:\n  {}", broken.join("\n  "));
}

#[test]
fn files_that_pages_name_exist() {
    let mut missing = Vec::new();
    for page in pages() {
        let text = read(&page);
        for name in text.split('`').skip(1).step_by(2) {
            let ours = ["src/", "tests/", "docs/", "scripts/", "benches/", "demo/", ".ci/", ".config/"];
            let is_path =
                ours.iter().any(|folder| name.starts_with(folder)) && !name.contains([' ', '…', '*', '<']);
            if is_path && !root().join(name).exists() {
                missing.push(format!("{page}: {name}"));
            }
        }
    }
    assert!(missing.is_empty(), "files that do not exist (any more):\n  {}", missing.join("\n  "));
}

#[test]
fn every_decision_and_guide_is_listed() {
    let listed = |list: &str, folder: &str| {
        let text = read(list);
        let name = |page: &String| page.trim_start_matches(folder).trim_start_matches('/').to_owned();
        let missing: Vec<String> = files_under(folder, &["md"])
            .into_iter()
            .filter(|page| page != list && !text.contains(&name(page)))
            .collect();
        assert!(missing.is_empty(), "{list} does not lead to {missing:?}");
    };
    listed("docs/decisions/README.md", "docs/decisions");
    listed("README.md", "docs/guide");
}

#[test]
fn the_changelog_has_a_place_for_what_comes() {
    let text = read("CHANGELOG.md");
    assert!(text.contains("\n## [Unreleased]\n"));
    let version = format!("## [{}]", env!("CARGO_PKG_VERSION"));
    let released = text.contains("\n## [0") || text.contains("\n## [1");
    assert!(!released || text.contains(&version), "the changelog knows releases, but not {version}");
}

fn pages() -> Vec<String> {
    let mut pages = vec!["README.md".to_owned(), "CHANGELOG.md".to_owned(), "CONTRIBUTING.md".to_owned()];
    for folder in ["docs", "demo", "benches"] {
        pages.extend(files_under(folder, &["md"]));
    }
    pages
}

/// Targets of `[text](target)` inside this repository.
fn links(text: &str) -> Vec<&str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://") && !target.starts_with("mailto:")).collect()
}

/// The anchors that a Markdown viewer makes of headings.
fn anchors(text: &str) -> Vec<String> {
    let slug = |heading: &str| {
        let kept = heading.trim().to_lowercase();
        kept.chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
            .collect::<String>()
            .replace(' ', "-")
    };
    text.lines().filter(|line| line.starts_with('#')).map(|line| slug(line.trim_start_matches('#'))).collect()
}

/// Code looks like a link now and then: `rows[0](…)`.
fn without_code(text: &str) -> String {
    let mut fenced = false;
    let prose = text.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    });
    let prose = prose.collect::<Vec<_>>().join("\n");
    prose.split('`').step_by(2).collect::<Vec<_>>().join("")
}

fn folder(page: &str) -> &Path {
    Path::new(page).parent().unwrap()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
