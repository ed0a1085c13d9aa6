//! What people and programs get to see: data on stdout, the rest on stderr.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, Write};

use serde::Serialize;

use super::redact::redact;
use crate::config::units::{show_bytes, show_count, show_rows};
use crate::error::{Error, ErrorKind, Result};
use crate::sync::{Checkpointed, ExtractReport, LoadReport, StreamReport, Verdict};

/// How the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Exit {
    /// All is well.
    Done = 0,
    /// It failed.
    Failed = 1,
    /// Wrong configuration or usage.
    Usage = 2,
    /// Some streams failed, or another runner was faster.
    Partial = 3,
    /// There was nothing to do, and the user wants to know.
    Nothing = 4,
}

impl Exit {
    /// How a command ends that could not do its work.
    pub(super) fn of_error(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::Config => Self::Usage,
            ErrorKind::Conflict => Self::Partial,
            _ => Self::Failed,
        }
    }

    /// How a run ends that did.
    pub(super) fn of_reports(reports: &[StreamReport]) -> Self {
        let count = |verdict| reports.iter().filter(|report| report.verdict == verdict).count();
        let config_error = |report: &StreamReport| {
            report.error.as_ref().is_some_and(|error| error.code == ErrorKind::Config)
        };
        match (count(Verdict::Failed), count(Verdict::Conflict)) {
            (0, 0) if count(Verdict::Done) == 0 => Self::Nothing,
            (0, 0) => Self::Done,
            (failed, _) if failed == reports.len() => {
                if reports.iter().all(config_error) {
                    Self::Usage
                } else {
                    Self::Failed
                }
            }
            _ => Self::Partial,
        }
    }
}

/// Prints one line to stdout. A reader that has left ends the process quietly, as `head` expects.
pub(super) fn line(text: impl fmt::Display) -> Result<()> {
    // Bars and lines may share one terminal.
    let written = super::progress::above(|| {
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{text}").and_then(|()| stdout.flush())
    });
    match written {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(Exit::Done as i32),
        Err(error) => Err(Error::new(ErrorKind::Transient, format!("cannot write to stdout: {error}"))),
    }
}

/// Prints one JSON object on one line to stdout: reports, never rows.
pub(super) fn json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string(value)
        .map_err(|source| Error::new(ErrorKind::Internal, "cannot write a report").because(source))?;
    line(redact(&text))
}

/// Says something on stderr, above the progress bars.
pub(super) fn say(text: impl fmt::Display) {
    let text = text.to_string();
    super::progress::above(|| {
        // Nobody is left to hear that stderr is closed.
        let _ = writeln!(io::stderr().lock(), "{}", redact(&text));
    });
}

/// `error: …`, its hint, and with `verbose` what caused it.
pub(super) fn say_error(error: &Error, verbose: bool) {
    say(format!("error: {error}"));
    if let Some(hint) = error.hint_text() {
        say(format!("  hint: {hint}"));
    }
    let mut source = std::error::Error::source(error);
    while let (Some(cause), true) = (source, verbose) {
        say(format!("  because: {cause}"));
        source = cause.source();
    }
}

/// What was said of streams so far, so that a loop says it once.
pub(super) type Said = BTreeSet<(String, String)>;

/// Of streams that ran together: their checkpoint, or why there is none.
pub(super) fn checkpoint(done: &Checkpointed, said: &mut Said) {
    let group = &done.group;
    match (&done.missing, done.checkpoint, &done.position) {
        (Some(why), ..) => {
            let why = format!("group {group}: no checkpoint: {why}");
            if said.insert((group.clone(), why.clone())) {
                say(why);
            }
        }
        (None, Some(number), Some(position)) if done.written => {
            // What was in its way may come back.
            said.retain(|(of, _)| of != group);
            say(format!("group {group}: checkpoint {number} at {position}"));
        }
        _ => {}
    }
}

/// The end of a stream's pass, for people.
pub(super) fn report(report: &StreamReport, width: usize, said: &mut Said) -> Result<()> {
    let verdict = match report.verdict {
        Verdict::Done => "done",
        Verdict::NothingToDo => "no change",
        Verdict::Conflict => "conflict",
        Verdict::Failed => "failed",
    };
    let mut parts = Vec::new();
    if let Some(extract) = report.extract.as_ref().filter(|extract| extract.changed) {
        parts.push(extracted(extract));
    }
    if let Some(load) = report.load.as_ref().filter(|load| load.from != load.to) {
        parts.push(loaded(load));
    }
    if parts.is_empty() {
        parts.push(match report.verdict {
            Verdict::Failed | Verdict::Conflict => format!("after {:.2} s", report.seconds),
            Verdict::Done | Verdict::NothingToDo => format!("{:.2} s", report.seconds),
        });
    }
    line(format!("{verdict:<9}  {:<width$}  {}", report.stream, parts.join("; ")))?;
    if report.retries > 0 {
        say(format!(
            "           note: tried again {} times; counts are those of the last try",
            report.retries
        ));
    }
    if let (Some(extract), true) = (&report.extract, report.verdict != Verdict::NothingToDo) {
        for note in &extract.notes {
            if said.insert((report.stream.clone(), note.clone())) {
                say(format!("           note: {note}"));
            }
        }
    }
    if let Some(error) = &report.error {
        say(format!("           error: {}", error.message));
        if let Some(hint) = &error.hint {
            say(format!("             hint: {hint}"));
        }
    }
    Ok(())
}

fn extracted(extract: &ExtractReport) -> String {
    let deleted = match extract.deleted {
        0 => String::new(),
        deleted => format!(", {} deleted", show_count(deleted)),
    };
    let rejected = match extract.rejected {
        0 => String::new(),
        rejected => format!(", {} rejected", show_count(rejected)),
    };
    format!(
        "{}{deleted}{rejected} to the lake by {} ({} in {})",
        show_rows(extract.rows),
        extract.change.name(),
        show_bytes(extract.file_bytes),
        speed(extract.rows, extract.seconds),
    )
}

fn loaded(load: &LoadReport) -> String {
    let rejected = match load.rejected {
        0 => String::new(),
        rejected => format!(", {} rejected", show_count(rejected)),
    };
    let conflicts = match load.conflicts {
        0 => String::new(),
        conflicts => format!(", {} conflicts", show_count(conflicts)),
    };
    format!(
        "{} upserted, {} deleted{rejected}{conflicts} in the target ({})",
        show_count(load.upserted),
        show_count(load.deleted),
        speed(load.staged, load.seconds),
    )
}

/// `2.0 s, 500,000 rows/s`; no speed for what is over before it can be measured.
fn speed(rows: u64, seconds: f64) -> String {
    const MEASURABLE: f64 = 0.5;
    if seconds < MEASURABLE {
        format!("{seconds:.2} s")
    } else {
        format!("{seconds:.1} s, {} rows/s", show_count((rows as f64 / seconds) as u64))
    }
}

/// Rows of text in columns as wide as they need to be. Numbers are aligned to the right.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> Result<()> {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let numeric: Vec<bool> = (0..head.len())
        .map(|column| {
            rows.iter()
                .all(|row| row[column].chars().all(|c| c.is_ascii_digit() || matches!(c, ',' | '.' | '-')))
        })
        .collect();
    let print = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for (column, cell) in cells.enumerate() {
            let width = widths[column];
            let padded =
                if numeric[column] { format!("{cell:>width$}  ") } else { format!("{cell:<width$}  ") };
            text.push_str(&padded);
        }
        line(text.trim_end())
    };
    print(&mut head.iter().copied())?;
    for row in rows {
        print(&mut row.iter().map(String::as_str))?;
    }
    Ok(())
}
