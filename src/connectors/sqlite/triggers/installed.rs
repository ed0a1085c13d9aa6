//! What of ours is on a table, and whether it is as it was.

use std::hash::Hasher;

use rusqlite::{Connection as Database, OptionalExtension};
use siphasher::sip::SipHasher13;

use super::super::describe::{self, Described};
use super::arrange::forget;
use super::statements::{Parts, READERS, TABLES, replaced};
use crate::clients::sqlite::File;
use crate::connectors::sql::{InstalledParts, SILENT_DAYS, silent_reader};
use crate::error::{Error, ErrorKind, Result};
use crate::source::{Finding, ReadRequest, Severity};
use crate::table::TableKind;

/// What there is for one table and key.
pub(super) struct Installed {
    /// Whether it is there, and whole.
    pub(super) parts: InstalledParts,
    /// Another one when it was installed anew.
    pub(super) stamp: String,
    /// Another one when the table was altered.
    pub(super) shape: String,
    /// Up to which number changes have been removed.
    pub(super) pruned: i64,
    /// The highest number that was ever given.
    pub(super) newest: i64,
}

/// Refuses what triggers cannot serve.
pub(super) fn check_table(described: &Described, request: &ReadRequest) -> Result<()> {
    let refuse = |message: &str, hint: &str| {
        Err(Error::new(ErrorKind::Config, message).with("table", &described.table.id).hint(hint))
    };
    if described.table.kind != TableKind::Table || described.table.columns.is_empty() {
        return refuse("only tables can have the triggers", "use `change: full`");
    }
    if !request.keyed || request.key.is_empty() {
        return refuse(
            "changes are written down by key, and the stream has none",
            "use `mode: merge`, with a `primary_key` where the table has none",
        );
    }
    if request.filter.is_some() {
        return refuse(
            "`where` does not go with `change: trigger`",
            "a row that leaves the condition would stay in the lake: drop `where`, or use `change: full`",
        );
    }
    Ok(())
}

/// Looks at it. Within a transaction it is what the snapshot shows.
pub(super) fn look(
    file: &File,
    database: &Database,
    described: &Described,
    key: &[String],
) -> Result<Installed> {
    let parts = Parts::of(described, key);
    let wanted = parts.triggers(&replaced(database, described, key)?);
    read(database, described, &parts, &wanted).map_err(|error| file.error(error))
}

fn read(
    database: &Database,
    described: &Described,
    parts: &Parts<'_>,
    wanted: &[(String, String)],
) -> rusqlite::Result<Installed> {
    let statement_of = |kind: &str, name: &str| -> rusqlite::Result<Option<String>> {
        let sql = "SELECT sql FROM sqlite_schema WHERE type = ?1 AND name = ?2";
        database.query_row(sql, [kind, name], |row| row.get(0)).optional()
    };
    let changes = parts.changes();
    let mut wrong = Vec::new();
    let mut any = false;
    if statement_of("table", &changes)?.is_some() {
        any = true;
    } else {
        wrong.push("the table of changes is missing".to_owned());
    }
    for (name, statement) in wanted {
        match statement_of("trigger", name)? {
            None => wrong.push(format!("the trigger `{name}` is missing")),
            // SQLite writes it anew when a column is renamed: then it is the table that has changed.
            Some(there) if there != *statement => {
                any = true;
                wrong.push(format!("the trigger `{name}` is not the one that the table needs"));
            }
            Some(_) => any = true,
        }
    }
    let line: Option<(String, i64)> = match statement_of("table", TABLES)? {
        None => None,
        Some(_) => {
            let sql = format!("SELECT stamp, pruned FROM {TABLES} WHERE changes = ?1");
            database.query_row(&sql, [&changes], |row| Ok((row.get(0)?, row.get(1)?))).optional()?
        }
    };
    let newest: Option<i64> = match wrong.is_empty() {
        false => None,
        true => database
            .query_row("SELECT seq FROM sqlite_sequence WHERE name = ?1", [&changes], |row| row.get(0))
            .optional()?,
    };
    if line.is_none() {
        wrong.push(format!("`{TABLES}` does not know of it"));
    }
    let (stamp, pruned) = line.unwrap_or_default();
    let mut hasher = SipHasher13::new();
    hasher.write(statement_of("table", &described.table.id.name)?.unwrap_or_default().as_bytes());
    let shape = format!("{:016x}", hasher.finish());
    Ok(Installed { parts: InstalledParts { any, wrong }, stamp, shape, pruned, newest: newest.unwrap_or(0) })
}

/// What `frazil check` has to say.
pub(in super::super) fn findings(file: &File, request: &ReadRequest) -> Result<Vec<Finding>> {
    let database = file.open()?;
    let described = describe::find(file, &database, &request.table)?;
    let problem = check_table(&described, request)
        .and_then(|()| look(file, &database, &described, &request.key)?.parts.check());
    if let Err(error) = problem {
        return Ok(vec![Finding::from(&error)]);
    }
    let mut findings = Vec::new();
    if database.is_readonly("main").map_err(|error| file.error(error))? {
        findings.push(Finding {
            severity: Severity::Error,
            message: "the file may only be read, so that nobody can note how far it was read".to_owned(),
            remedy: Some("give this user the right to write to the file".to_owned()),
        });
    }
    let changes = Parts::of(&described, &request.key).changes();
    let silent = || -> rusqlite::Result<Vec<(String, String)>> {
        let sql = format!(
            "SELECT reader, date(seen) FROM {READERS} WHERE changes = ?1 AND reader <> ?2 \
             AND seen < datetime('now', '-{SILENT_DAYS} days') ORDER BY reader"
        );
        let mut statement = database.prepare(&sql)?;
        let rows = statement.query_map([&changes, &request.reader], |row| Ok((row.get(0)?, row.get(1)?)))?;
        rows.collect()
    };
    for (reader, seen) in silent().map_err(|error| file.error(error))? {
        findings.push(silent_reader(&reader, &seen, forget(&changes, &reader)));
    }
    Ok(findings)
}
