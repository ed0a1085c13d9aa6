//! `query` without a statement: a shell.
//!
//! A statement ends with `;` and may take many lines; a line that begins with `.` is a word to the
//! shell. Tab completes the names of tables and the words of SQL; what was typed is kept for the next
//! time. Ctrl-C leaves a line or ends a running statement, Ctrl-D leaves the shell.

use std::borrow::Cow;
use std::path::PathBuf;

use clap::ValueEnum;
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Config, Editor, Helper};

use super::args::Output;
use super::lake_table::lake_table;
use super::output::{self, Exit};
use super::query::Asking;
use crate::error::{Error, ErrorKind, Result};
use crate::query::{self, AsOf};

const PROMPT: &str = "frazil> ";
const HELP: &str = "\
  select … ;        runs a statement; it may take many lines
  .tables           the tables of the lake
  .schema TABLE     a table's columns
  .snapshots TABLE  a table's snapshots, newest first
  .as-of [WHEN]     reads all tables as they were: a snapshot id, a time, a tag; nothing for now
  .output FORM      text, json or csv
  .quit             leaves; so does Ctrl-D";
/// The words to the shell.
const COMMANDS: &[&str] = &[".as-of", ".help", ".output", ".quit", ".schema", ".snapshots", ".tables"];
/// The words of SQL that are worth completing.
const KEYWORDS: &[&str] = &[
    "AS OF",
    "BETWEEN",
    "CASE",
    "changes(",
    "COUNT(*)",
    "DESCRIBE",
    "DISTINCT",
    "EXPLAIN",
    "FROM",
    "GROUP BY",
    "HAVING",
    "INNER JOIN",
    "LEFT JOIN",
    "LIMIT",
    "ORDER BY",
    "SELECT",
    "SHOW TABLES",
    "TIMESTAMP AS OF",
    "UNION ALL",
    "VERSION AS OF",
    "WHERE",
];
/// Lines that are kept.
const HISTORY_LINES: usize = 1000;
/// A place of its own for the file of what was typed.
const HISTORY_VARIABLE: &str = "FRAZIL_SHELL_HISTORY";

/// Reads and answers until the end of input.
pub(super) async fn talk(mut asking: Asking, verbose: bool) -> Result<Exit> {
    let failed = |source: ReadlineError| {
        Error::new(ErrorKind::Config, format!("the terminal cannot be read: {source}"))
            .hint("give the statement as an argument, or pipe statements in")
    };
    let config =
        Config::builder().max_history_size(HISTORY_LINES).map_err(failed)?.auto_add_history(true).build();
    let mut editor: Editor<Words, FileHistory> = Editor::with_config(config).map_err(failed)?;
    let history = history_file();
    if let Some(file) = &history {
        // A first time has none.
        let _ = editor.load_history(file);
    }
    output::say(format!("frazil {}: `.help` helps, `.quit` leaves", env!("CARGO_PKG_VERSION")));
    loop {
        editor.set_helper(Some(Words::new(&asking).await?));
        match tokio::task::block_in_place(|| editor.readline(PROMPT)) {
            Ok(line) => match answer(&mut asking, line.trim()).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => output::say_error(&error, verbose),
            },
            Err(ReadlineError::Interrupted) => {}
            Err(ReadlineError::Eof) => break,
            Err(source) => return Err(failed(source)),
        }
    }
    if let Some(file) = &history {
        let folder = file.parent().map(std::fs::create_dir_all);
        if let (Some(Ok(())), Err(error)) = (folder, editor.save_history(file)) {
            output::say(format!("what was typed is not kept: {error}"));
        }
    }
    Ok(Exit::Done)
}

/// Does what one input says; `false` to leave.
async fn answer(asking: &mut Asking, input: &str) -> Result<bool> {
    if !input.starts_with('.') {
        for statement in query::statements(input)? {
            tokio::select! {
                done = asking.run(&statement) => done?,
                _ = tokio::signal::ctrl_c() => output::say("interrupted"),
            }
        }
        return Ok(true);
    }
    let (word, argument) = input.split_once(char::is_whitespace).unwrap_or((input, ""));
    let argument = argument.trim();
    match word {
        ".quit" | ".exit" => return Ok(false),
        ".help" => output::say(HELP),
        ".tables" => {
            for table in asking.lake.tables().await? {
                output::line(table)?;
            }
        }
        ".schema" => {
            let table = lake_table(&asking.lake, argument).await?;
            let rows: Vec<_> = table
                .schema()?
                .fields()
                .iter()
                .map(|field| {
                    let nullable = if field.is_nullable() { "" } else { "not null" };
                    vec![field.name().clone(), field.data_type().to_string(), nullable.to_owned()]
                })
                .collect();
            output::table(&["column", "type", ""], &rows)?;
        }
        ".snapshots" => {
            let table = lake_table(&asking.lake, argument).await?;
            for snapshot in table.snapshots() {
                let committed = snapshot.committed_at.format("%Y-%m-%d %H:%M:%S%.3f");
                output::line(format!("{}  {committed}  {}", snapshot.id, snapshot.operation))?;
            }
        }
        ".as-of" => {
            asking.as_of = (!argument.is_empty()).then(|| argument.parse::<AsOf>()).transpose()?;
        }
        ".output" => {
            let form = Output::from_str(argument, true).ok().filter(|form| !form.is_binary());
            asking.output =
                form.ok_or_else(|| Error::new(ErrorKind::Config, "the shell prints text, json or csv"))?;
        }
        _ => {
            return Err(Error::new(ErrorKind::Config, "the shell does not know this word")
                .hint("`.help` lists what it knows"));
        }
    }
    Ok(true)
}

/// Where what was typed is kept: beside the state of other programs.
fn history_file() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = || Some(set("XDG_STATE_HOME").unwrap_or(set("HOME")?.join(".local/state")));
    set(HISTORY_VARIABLE).or_else(|| Some(state()?.join("frazil/query-history")))
}

/// What Tab knows, and when a statement is whole.
struct Words {
    names: Vec<String>,
}

impl Words {
    async fn new(asking: &Asking) -> Result<Self> {
        let tables = asking.lake.tables().await?;
        let bare = tables.iter().map(|table| table.name.clone());
        let mut names: Vec<String> = tables.iter().map(ToString::to_string).chain(bare).collect();
        names.extend(KEYWORDS.iter().chain(COMMANDS).map(|word| (*word).to_owned()));
        names.sort();
        names.dedup();
        Ok(Self { names })
    }

    /// Where the word at the cursor begins, and what it can become.
    fn complete(&self, line: &str) -> (usize, Vec<String>) {
        let start = line
            .rfind(|c: char| !(c.is_alphanumeric() || "_.$".contains(c)))
            .map_or(0, |at| at + line[at..].chars().next().map_or(1, char::len_utf8));
        let word = line[start..].to_lowercase();
        let fits = |name: &&String| !word.is_empty() && name.to_lowercase().starts_with(&word);
        (start, self.names.iter().filter(fits).cloned().collect())
    }
}

impl Completer for Words {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        position: usize,
        _: &rustyline::Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        Ok(self.complete(&line[..position]))
    }
}

impl Validator for Words {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let whole = is_whole(context.input());
        Ok(if whole { ValidationResult::Valid(None) } else { ValidationResult::Incomplete })
    }
}

/// Whether an input needs no more lines.
fn is_whole(input: &str) -> bool {
    let input = input.trim();
    input.is_empty() || input.starts_with('.') || input.ends_with(';')
}

impl Hinter for Words {
    type Hint = String;
}

impl Highlighter for Words {
    fn highlight_hint<'h>(&self, hint: &'h str) -> Cow<'h, str> {
        Cow::Borrowed(hint)
    }
}

impl Helper for Words {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tab_completes_tables_and_words() {
        let names = ["main.orders", "orders", "ORDER BY", ".output"].map(str::to_owned).to_vec();
        let words = Words { names };
        let check = |line: &str, start: usize, expected: &[&str]| {
            assert_eq!(words.complete(line), (start, expected.iter().map(|it| (*it).to_owned()).collect()));
        };
        check("select * from ord", 14, &["orders", "ORDER BY"]);
        check("select * from (main.o", 15, &["main.orders"]);
        check(".o", 0, &[".output"]);
        check("select é,ord", 10, &["orders", "ORDER BY"]);
        check("select ", 7, &[]);
    }

    #[test]
    fn a_statement_ends_with_a_semicolon() {
        assert!(is_whole("select 1;"));
        assert!(is_whole("select 1;  \n"));
        assert!(is_whole(".tables"));
        assert!(is_whole(""));
        assert!(!is_whole("select 1\nfrom t"));
    }
}
