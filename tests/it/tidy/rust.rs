//! As much of Rust as it takes to see which modules a file uses.

use std::collections::BTreeSet;

/// A source file without comments, strings and test modules.
pub(crate) struct Source {
    /// From the root of the repository: `src/lake/commit.rs`.
    pub(crate) path: String,
    /// `["lake", "commit"]`; `["main"]` and `["lib"]` for the two roots.
    pub(crate) module: Vec<String>,
    tokens: Vec<String>,
    lines: usize,
}

impl Source {
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let inner = path.trim_start_matches("src/").trim_end_matches(".rs");
        let mut module: Vec<String> = inner.split('/').map(str::to_owned).collect();
        if module.len() > 1 && module.last().is_some_and(|name| name == "mod") {
            module.pop();
        }
        let code = without_tests(&without_comments_and_strings(text));
        let lines = code.lines().count();
        Self { path: path.to_owned(), module, tokens: tokens(&code), lines }
    }

    /// The module directly under the crate's root.
    pub(crate) fn top(&self) -> &str {
        &self.module[0]
    }

    /// Lines outside of test modules.
    pub(crate) fn lines(&self) -> usize {
        self.lines
    }

    /// How often a name stands in the code.
    pub(crate) fn count(&self, name: &str) -> usize {
        self.tokens.iter().filter(|token| *token == name).count()
    }

    /// Whether a path like `tokio::fs` stands in the code.
    pub(crate) fn mentions(&self, path: &str) -> bool {
        let wanted = tokens(path);
        let starts = |at: usize| at == 0 || self.tokens[at - 1] != "::";
        let whole_crate = wanted.len() == 1;
        self.tokens.windows(wanted.len()).enumerate().any(|(at, window)| {
            let next = self.tokens.get(at + wanted.len()).map(String::as_str);
            // A lone name may also be a field or a module of ours: only `name::` means the crate.
            window == wanted && starts(at) && (!whole_crate || next == Some("::"))
        })
    }

    /// The top-level modules that it names, by `crate::`, by `super::`, or from the binary by `frazil::`.
    pub(crate) fn used(&self) -> BTreeSet<String> {
        let is_module = |name: &String| super::is_module(&[name]);
        self.paths().into_iter().filter_map(|path| path.into_iter().next()).filter(is_module).collect()
    }

    /// Paths inside the crate, from its root: `crate::lake::{Lake, Effect}` gives two.
    pub(crate) fn paths(&self) -> Vec<Vec<String>> {
        let mut found = Vec::new();
        for (at, token) in self.tokens.iter().enumerate() {
            let qualified = at > 0 && self.tokens[at - 1] == "::";
            let start = match token.as_str() {
                "crate" => Vec::new(),
                "frazil" if self.top() == "main" => Vec::new(),
                "super" if !qualified => self.module[..self.module.len() - 1].to_vec(),
                _ => continue,
            };
            if self.tokens.get(at + 1).map(String::as_str) == Some("::") {
                self.branches(at + 2, start, &mut found);
            }
        }
        found
    }

    /// Follows a path from a token on into all branches of a use tree; returns the token after it.
    fn branches(&self, mut at: usize, mut path: Vec<String>, found: &mut Vec<Vec<String>>) -> usize {
        loop {
            match self.tokens.get(at).map(String::as_str) {
                Some("{") => {
                    at += 1;
                    while self.tokens.get(at).is_some_and(|token| token != "}") {
                        at = self.branches(at, path.clone(), found);
                        // Over `as name` and the comma.
                        while self.tokens.get(at).is_some_and(|token| token != "," && token != "}") {
                            at += 1;
                        }
                        at += usize::from(self.tokens.get(at).is_some_and(|token| token == ","));
                    }
                    return at + 1;
                }
                Some("super") => {
                    path.pop();
                }
                Some("self") => {}
                Some(name) => path.push(name.to_owned()),
                None => return at,
            }
            at += 1;
            if self.tokens.get(at).map(String::as_str) != Some("::") {
                found.push(path);
                return at;
            }
            at += 1;
        }
    }
}

/// Names, `::`, and single other characters.
fn tokens(code: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut rest = code.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = if first.is_alphanumeric() || first == '_' {
            rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        tokens.push(rest[..length].to_owned());
        rest = rest[length..].trim_start();
    }
    tokens
}

/// The same lines with spaces where comments, strings and characters were.
fn without_comments_and_strings(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(length) = raw_string(rest, out.chars().last()) {
            length
        } else if first == '"' {
            string(rest)
        } else if let Some(length) = character(rest) {
            length
        } else {
            out.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        };
        out.extend(rest[..length].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = &rest[length..];
    }
    out
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        if rest.starts_with(b"/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest.starts_with(b"*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    text.len()
}

fn raw_string(text: &str, before: Option<char>) -> Option<usize> {
    if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
        return None;
    }
    let inner = text.strip_prefix("br").or_else(|| text.strip_prefix('r'))?;
    let hashes = inner.len() - inner.trim_start_matches('#').len();
    let start = text.len() - inner.len() + hashes;
    text[start..].strip_prefix('"')?;
    let close = format!("\"{}", "#".repeat(hashes));
    Some(text[start + 1..].find(&close).map_or(text.len(), |end| start + 1 + end + close.len()))
}

fn string(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// `'x'` and `'\n'`, but not the lifetime `'a`.
fn character(text: &str) -> Option<usize> {
    let inner = text.strip_prefix('\'')?;
    if inner.starts_with('\\') {
        return Some(2 + inner[2..].find('\'')? + 2);
    }
    let c = inner.chars().next()?;
    inner[c.len_utf8()..].starts_with('\'').then_some(c.len_utf8() + 2)
}

/// Cuts what stands under `#[cfg(test)]`: a module with its body, or one item.
fn without_tests(code: &str) -> String {
    let mut out = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(at) = rest.find("#[cfg(test)]") {
        out.push_str(&rest[..at]);
        let after = &rest[at..];
        let end = after.find(['{', ';']).unwrap_or(after.len() - 1);
        rest = if after[end..].starts_with('{') {
            &after[end + body(&after[end..])..]
        } else {
            &after[end + 1..]
        };
    }
    out + rest
}

fn body(code: &str) -> usize {
    let mut depth = 0;
    for (at, c) in code.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    code.len()
}

#[test]
fn paths_are_found_where_they_are_and_nowhere_else() {
    let text = r##"
        //! Like [`crate::lake`], but "crate::sync".
        use crate::{error::{Error, Result}, lake as pond, table::*};
        use super::commit;
        use super::super::merge::{self, collapse};
        fn f<'a>(c: char) -> bool { /* crate::config */ let s = r#"crate::cli " "#; c == '"' || crate::memory::x('\'') }
        #[cfg(test)]
        mod tests { use crate::connectors; fn g() { if true {} } }
        fn h() { crate::delta::y() }
        #[cfg(test)]
        use crate::history;
    "##;
    let source = Source::new("src/lake/write.rs", text);
    let paths: Vec<String> = source.paths().iter().map(|path| path.join("::")).collect();
    expect_test::expect![[r#"
        error::Error
        error::Result
        lake
        table::*
        lake::commit
        merge
        merge::collapse
        memory::x
        delta::y"#]]
    .assert_eq(&paths.join("\n"));
    assert!(source.mentions("crate::memory") && !source.mentions("memory") && !source.mentions("crate::cli"));
}
