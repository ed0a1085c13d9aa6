//! Rules of this repository that a reader relies on, checked on its text.
//!
//! The arrows of `docs/architecture.md` are [`ARROWS`]: a module may use those that its line names
//! and no others. Tests inside a module may use what they like.

mod rust;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use frazil::faults;

/// What every module may use: the words that all of them speak.
const WORDS: &[&str] = &["backoff", "connection", "delta", "error", "faults", "memory", "table"];

/// Module → what else it may use. In the order in which rows and calls pass through them.
const ARROWS: &[(&str, &[&str])] = &[
    ("main", &["cli"]),
    (
        "cli",
        &[
            "compare",
            "config",
            "connectors",
            "control",
            "history",
            "http",
            "journal",
            "lake",
            "maintain",
            "merge",
            "query",
            "schedule",
            "selftest",
            "source",
            "sync",
            "target",
            "workers",
        ],
    ),
    ("selftest", &["clients", "lake", "merge", "target"]),
    ("config", &["connectors", "lake", "maintain", "schedule", "source", "sync", "target"]),
    ("history", &["schedule", "sync"]),
    ("control", &["config", "schedule"]),
    ("http", &["config", "control", "history", "journal", "schedule", "sync"]),
    ("journal", &[]),
    ("schedule", &[]),
    ("compare", &["connectors", "lake", "merge", "source", "sync", "target"]),
    ("workers", &["lake", "schedule"]),
    ("sync", &["connectors", "lake", "maintain", "merge", "source", "target"]),
    ("connectors", &["clients", "source", "target"]),
    ("query", &["lake", "merge"]),
    ("merge", &["lake"]),
    ("maintain", &["lake"]),
    ("lake", &["clients"]),
    ("clients", &[]),
    ("target", &["source"]),
    ("source", &[]),
];

/// Crates and modules that a module must not touch, because somebody else does that for it.
const STRANGERS: &[(&str, &[&str])] = &[
    (
        "merge",
        &["object_store", "std::fs", "std::net", "tokio::fs", "tokio::net", "tokio_postgres", "rusqlite"],
    ),
    ("connectors", &["iceberg", "object_store", "parquet"]),
    ("lake", &["tokio_postgres", "rusqlite"]),
    ("compare", &["tokio_postgres", "rusqlite", "iceberg", "parquet", "object_store"]),
    ("sync", &["tokio_postgres", "rusqlite", "iceberg", "parquet"]),
    ("cli", &["tokio_postgres", "iceberg", "parquet"]),
    ("config", &["tokio_postgres", "rusqlite", "iceberg", "parquet", "datafusion"]),
];

/// A file does one job in at most this many lines, tests beside it not counted.
const LONGEST_FILE: usize = 500;

/// Files that may be longer, each with its reason.
const LONGER_FILES: &[(&str, &str)] = &[];

#[test]
fn dependencies_point_one_way() {
    let mut wrong = Vec::new();
    for file in sources() {
        let Some((_, allowed)) = ARROWS.iter().find(|(module, _)| *module == file.top()) else {
            // The words themselves use only each other.
            let words: Vec<_> =
                file.used().into_iter().filter(|used| !WORDS.contains(&used.as_str())).collect();
            if WORDS.contains(&file.top()) && !words.is_empty() {
                wrong.push(format!("{}: a word that uses {}", file.path, words.join(", ")));
            }
            continue;
        };
        for used in file.used() {
            if used != file.top() && !WORDS.contains(&used.as_str()) && !allowed.contains(&used.as_str()) {
                wrong.push(format!("{}: `{}` must not use `{used}`", file.path, file.top()));
            }
        }
    }
    none(&wrong, "docs/architecture.md says which way dependencies point");
}

#[test]
fn every_module_has_a_place_in_the_picture() {
    let known: BTreeSet<&str> =
        ARROWS.iter().map(|(module, _)| *module).chain(WORDS.iter().copied()).collect();
    let unknown: BTreeSet<String> = sources()
        .iter()
        .map(|file| file.top().to_owned())
        .filter(|top| top != "lib" && !known.contains(top.as_str()))
        .collect();
    none(&Vec::from_iter(unknown), "modules without a line in ARROWS");
}

#[test]
fn connectors_do_not_see_each_other() {
    let mut wrong = Vec::new();
    for file in sources() {
        let [first, own, ..] = file.module.as_slice() else { continue };
        if first != "connectors" {
            continue;
        }
        for path in file.paths() {
            if let [first, other, ..] = path.as_slice()
                && first == "connectors"
                && own != other
                && is_module(&["connectors", other])
                && other != "sql"
            {
                wrong.push(format!("{}: uses connectors::{other}", file.path));
            }
        }
    }
    none(&wrong, "what SQL connectors share is in connectors/sql.rs");
}

#[test]
fn modules_leave_strangers_alone() {
    let mut wrong = Vec::new();
    for file in sources() {
        let Some((_, strangers)) = STRANGERS.iter().find(|(module, _)| *module == file.top()) else {
            continue;
        };
        for stranger in *strangers {
            if file.mentions(stranger) {
                wrong.push(format!("{}: mentions `{stranger}`", file.path));
            }
        }
    }
    none(&wrong, "somebody else does that");
}

#[test]
fn files_are_short() {
    let mut long = Vec::new();
    for file in sources() {
        let allowed = LONGER_FILES.iter().any(|(path, _)| *path == file.path);
        if file.lines() > LONGEST_FILE && !allowed {
            long.push(format!("{}: {} lines", file.path, file.lines()));
        }
    }
    for (path, _) in LONGER_FILES {
        let file = sources().into_iter().find(|file| file.path == *path);
        if file.is_none_or(|file| file.lines() <= LONGEST_FILE) {
            long.push(format!("{path} needs no exception any more"));
        }
    }
    none(&long, "split what does two jobs");
}

#[test]
fn nothing_is_left_for_later() {
    // Written in two parts, so that this file does not find itself.
    let marks =
        [["TO", "DO"], ["FIX", "ME"], ["dbg", "!("], ["to", "do!("], ["XX", "X"]].map(|parts| parts.concat());
    let mut found = Vec::new();
    for folder in ["src", "tests", "benches", "docs", "scripts", "demo"] {
        for path in files_under(folder, &["rs", "md", "sh", "py", "toml", "yaml", "sql"]) {
            let text = fs::read_to_string(root().join(&path)).unwrap();
            for (number, line) in text.lines().enumerate() {
                if marks.iter().any(|mark| line.contains(mark)) {
                    found.push(format!("{path}:{}: {}", number + 1, line.trim()));
                }
            }
        }
    }
    none(&found, "do it, or open an issue");
}

#[test]
fn crates_that_move_together_are_there_once() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let crates = [
        "arrow",
        "arrow-array",
        "arrow-schema",
        "parquet",
        "datafusion",
        "object_store",
        "iceberg",
        "rusqlite",
    ];
    let mut wrong = Vec::new();
    for name in crates {
        let versions = lock.matches(&format!("\nname = \"{name}\"\n")).count();
        if versions != 1 {
            wrong.push(format!("{name}: {versions} versions"));
        }
    }
    none(&wrong, "docs/decisions/versions.md says which versions go together");
}

#[test]
fn every_crash_point_is_in_one_place() {
    let mut wrong = Vec::new();
    for name in faults::ALL.into_iter().chain(faults::OF_MAINTENANCE) {
        let constant = name.to_uppercase();
        // A point inside the target's transaction is in each connector, once.
        let place = |file: &rust::Source| match file.module.as_slice() {
            [first, connector, ..] if first == "connectors" => format!("connectors/{connector}"),
            _ => "the engine".to_owned(),
        };
        let uses: Vec<String> = sources()
            .iter()
            .filter(|file| file.top() != "faults")
            .flat_map(|file| vec![place(file); file.count(&constant)])
            .collect();
        if uses.is_empty() || BTreeSet::from_iter(&uses).len() != uses.len() {
            wrong.push(format!("{constant} is used in {uses:?}"));
        }
    }
    none(&wrong, "each point is one place in the code, and the crash test visits it");
}

fn none(problems: &[String], why: &str) {
    assert!(problems.is_empty(), "{why}:\n  {}", problems.join("\n  "));
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The program's own modules, without its tests.
fn sources() -> Vec<rust::Source> {
    let read = |path: String| rust::Source::new(&path, &fs::read_to_string(root().join(&path)).unwrap());
    let tests = |file: &rust::Source| file.module.last().is_some_and(|name| name == "tests");
    files_under("src", &["rs"]).into_iter().map(read).filter(|file| !tests(file)).collect()
}

fn is_module(path: &[&str]) -> bool {
    let base = root().join("src").join(path.join("/"));
    base.is_dir() || base.with_extension("rs").is_file()
}

/// Paths from the root of the repository, in order, with forward slashes.
pub(crate) fn files_under(folder: &str, extensions: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().and_then(|e| e.to_str()).is_some_and(|e| extensions.contains(&e)) {
                found.push(path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}
