//! Up to which moment every change is visible: the commit-safe horizon.
//!
//! ```text
//!   W ────────── rows to read ──────────▶ H            now
//!   last pass                              └─ tick ends ─┘
//! ```
//!
//! SQLite has one writer at a time, so whatever is visible was written before anything that is not.
//! Two things can still put an old time into a new row:
//!
//! - A writer that is open now may hold rows with times from before now. So the horizon is taken
//!   while we hold the write lock for a moment: then there is no such writer.
//! - `CURRENT_TIMESTAMP` says the second. More rows of the current second may be committed after we
//!   looked. So the horizon is the beginning of the current second, and when rows of this second are
//!   there already, we first wait for its end: who updates and then runs, sees the update.
//!
//! An application that takes the time, then waits for the lock, and then writes, can still be later
//! than its own time says; `lag` is for that, as for clocks that disagree.

use std::time::Duration;

use rusqlite::Connection as Database;
use rusqlite::types::ValueRef;

use super::plan::{At, Cursor, Resolved, Start, lag};
use super::types::Kind;
use super::value::{DAY, SECOND};
use crate::clients::sqlite::File;
use crate::connectors::sql::SQLITE;
use crate::error::{Error, ErrorKind, Result};
use crate::source::ReadRequest;

/// How long a writer may keep us from the lock before we go on without.
const WRITER_PATIENCE: Duration = Duration::from_secs(1);
/// Where we cannot look for writers, no write transaction is taken to be open for longer.
const LONGEST_WRITER: i64 = 3600 * SECOND;
/// Up to this size a table without an index is searched for rows of the current second; beyond, we wait.
const SEARCHED_ROWS: u64 = 200_000;

/// How far a reading goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Horizon {
    /// The first moment not to read.
    pub(super) at: i64,
    /// Our clock, when it was taken.
    pub(super) now: i64,
    /// What the user should know.
    pub(super) notes: Vec<String>,
}

/// Takes the horizon for a time cursor. May wait for a second to end.
pub(super) fn take(
    file: &File,
    database: &Database,
    request: &ReadRequest,
    resolved: &Resolved,
    clock: impl Fn() -> i64,
) -> Result<Horizon> {
    let Cursor::Time { column, kind, .. } = &resolved.cursor else {
        return Ok(Horizon { at: i64::MAX, now: clock(), notes: Vec::new() });
    };
    let tick = if *kind == Kind::Date { DAY } else { SECOND };
    if tick == SECOND && in_current_second(file, database, request, resolved, clock())? {
        let left = SECOND - clock().rem_euclid(SECOND);
        std::thread::sleep(Duration::from_micros(left.unsigned_abs()));
    }
    let mut notes = Vec::new();
    let before = match resolved.start {
        Start::After(at) => Some(at),
        _ => None,
    };
    let (at, now) = match probe(file, database, &clock)? {
        Writers::None { now } => (now.div_euclid(tick) * tick, now),
        Writers::Unknown => {
            let now = clock();
            notes.push(
                "the file may only be read, so writers cannot be seen: the position stays an hour behind now"
                    .into(),
            );
            ((now - LONGEST_WRITER).div_euclid(tick) * tick, now)
        }
        Writers::One => {
            if before.is_none() && !request.keyed {
                return Err(file
                    .locate(Error::new(ErrorKind::Transient, "a writer holds the database"))
                    .with("table", &request.table)
                    .hint("a first read of rows that are read once only waits until it is done: run again"));
            }
            notes.push(format!("a writer holds the database: the position stays where it is, and changes by `{column}` wait for the next pass"));
            (before.unwrap_or(i64::MIN), clock())
        }
    };
    // Rows that are read once only cannot be read again, so lag means to wait instead.
    let at = if request.keyed { at } else { at.saturating_sub(lag(request)) };
    // A clock that was set back must not move the position back.
    Ok(Horizon { at: before.map_or(at, |before| at.max(before)), now, notes })
}

/// The position once everything up to the horizon was read.
pub(super) fn end(
    database: &Database,
    request: &ReadRequest,
    resolved: &Resolved,
    at: i64,
) -> rusqlite::Result<At> {
    Ok(match &resolved.cursor {
        Cursor::Full => At::Full,
        Cursor::Time { column, .. } => {
            let at = if let Start::Within { horizon, .. } = resolved.start { horizon } else { at };
            At::Timestamp { column: column.clone(), at: at.to_string() }
        }
        Cursor::Number { column, .. } => {
            let name = SQLITE.ident(column);
            // Text and bytes are greater than numbers; the reader stops at them anyway.
            let sql = format!(
                "SELECT max({name}) FROM main.{} WHERE {name} < ''",
                SQLITE.ident(&request.table.name)
            );
            let highest = database.query_row(&sql, [], |row| {
                Ok(match row.get_ref(0)? {
                    ValueRef::Integer(highest) => Some(highest),
                    // The reader stops at it.
                    ValueRef::Real(highest) => Some(highest as i64),
                    _ => None,
                })
            })?;
            let before = if let Start::After(at) = resolved.start { Some(at) } else { None };
            let at = highest.max(before).filter(|at| *at != i64::MIN);
            At::Id { column: column.clone(), at: at.map(|at| at.to_string()) }
        }
    })
}

enum Writers {
    /// For a moment there was none, at this time.
    None { now: i64 },
    /// There is one, and it does not finish.
    One,
    /// We may not take the lock.
    Unknown,
}

fn probe(file: &File, database: &Database, clock: impl Fn() -> i64) -> Result<Writers> {
    if database.is_readonly("main").map_err(|error| file.error(error))? {
        return Ok(Writers::Unknown);
    }
    let locked = || -> rusqlite::Result<i64> {
        let patience: i64 = database.pragma_query_value(None, "busy_timeout", |row| row.get(0))?;
        database.busy_timeout(WRITER_PATIENCE)?;
        let begun = database.execute_batch("BEGIN IMMEDIATE");
        database.busy_timeout(Duration::from_millis(patience.unsigned_abs()))?;
        begun?;
        let now = clock();
        database.execute_batch("ROLLBACK")?;
        Ok(now)
    };
    match locked() {
        Ok(now) => Ok(Writers::None { now }),
        Err(error) => match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => Ok(Writers::One),
            Some(rusqlite::ErrorCode::ReadOnly | rusqlite::ErrorCode::CannotOpen) => Ok(Writers::Unknown),
            _ => Err(file.error(error)),
        },
    }
}

/// Whether rows of the second that `now` is in are visible, or might be.
fn in_current_second(
    file: &File,
    database: &Database,
    request: &ReadRequest,
    resolved: &Resolved,
    now: i64,
) -> Result<bool> {
    if !resolved.plan.cursor_indexed && resolved.table_rows.is_none_or(|rows| rows > SEARCHED_ROWS) {
        return Ok(true);
    }
    let second = now.div_euclid(SECOND) * SECOND;
    resolved
        .count_times(database, request, second, second + SECOND, 1)
        .map(|count| count > 0)
        .map_err(|error| file.error(error))
}
