//! Up to where a cursor can be believed: below the horizon, nothing can still appear.
//!
//! Cursor order is not commit order. A transaction that wrote `changed = 12:00` and commits at one is
//! not seen by a pass at half past twelve; the next would go on after it. So the horizon is taken first,
//! and what is read comes after it:
//!
//! ```text
//! clock ──▶ running statements ──▶ open transactions ──▶ horizon = the earliest begin ──▶ read [watermark, horizon)
//! ```
//!
//! In this order: who ended a statement before we looked for those, is found by its transaction. Transactions
//! are taken from the status of InnoDB. Its table `INNODB_TRX` is a picture that may be old, and stays so for
//! as long as anybody looks at it often.
//!
//! *Times*: `NOW()` and what the server sets by itself is the begin of the statement. A statement that waits
//! for a table's lock has begun and has no transaction yet: so running statements count too. One that waited
//! before its transaction began, and left that open, is seen by its transaction alone: `lag` covers it.
//! *Numbers*: whoever drew one before we looked is still running or in a transaction; we wait for exactly
//! these, for a moment.
//!
//! Who may not see the transactions of others (`PROCESS`) gets no horizon of numbers, and one of times that
//! stays [`UNSEEN`] behind: late, but as good as never lost.

use std::collections::HashSet;
use std::time::Duration;

use chrono::NaiveDateTime;

use super::choose::Cursor;
use super::discover::Relation;
use super::position::Micros;
use crate::clients::mysql::{Session, integer, number, text};
use crate::connectors::sql::{MYSQL, Number};
use crate::error::{Error, ErrorKind, Result};

/// Assumed to be longer than any transaction, where those of others cannot be seen.
const UNSEEN: Duration = Duration::from_secs(3600);
/// How long we wait for transactions that may be writing to the table.
const PATIENCE_WRITERS: Duration = Duration::from_millis(200);
/// How often we look whether they have ended.
const LOOK_AGAIN: Duration = Duration::from_millis(40);
/// A begin is known to the second, and is a little later than that of its first statement.
const BEGIN_ROUNDING: Duration = Duration::from_secs(2);
const MINUTE: i64 = 60_000_000;

/// The server refuses to show what belongs to others.
const DENIED: u16 = 1227;

/// The right that shows the transactions of others.
const GRANT: &str = "run `GRANT PROCESS ON *.* TO <user>`";

/// Up to where to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Horizon<T> {
    /// Times below, numbers up to it are complete. `None`: nothing is sure.
    pub(super) at: Option<T>,
    /// Who holds it back.
    pub(super) held_by: Option<String>,
    /// What else the user should know.
    pub(super) notes: Vec<String>,
}

/// Hours from now at which the distance of local time from UTC is asked for: no zone sets its clocks back by
/// more than three.
const AHEAD: [u8; 4] = [0, 1, 2, 3];

/// The clock in UTC, whether the server may be written, and the distance of its own time from UTC in minutes:
/// now and in some hours.
fn clock_query() -> String {
    let distance = AHEAD.map(|hours| {
        let then = format!("UTC_TIMESTAMP() + INTERVAL {hours} HOUR");
        format!(
            ", COALESCE(TIMESTAMPDIFF(MINUTE, {then}, CONVERT_TZ({then}, '+00:00', @@GLOBAL.time_zone)), 0)"
        )
    });
    format!("SELECT CAST(UTC_TIMESTAMP(6) AS CHAR), @@GLOBAL.read_only{}", distance.concat())
}

/// By how many minutes the earliest time that is written from now on is less than the clock's, whether in UTC
/// or in local time. Where clocks are about to be set back, local time comes a second time.
fn earliest(distances: &[i64]) -> i64 {
    distances.iter().copied().min().unwrap_or_default().min(0)
}

/// Statements that run and may write: how long, in microseconds.
const RUNNING: &str = "FROM information_schema.PROCESSLIST WHERE ID <> CONNECTION_ID() \
     AND COMMAND IN ('Query', 'Execute', 'Prepare', 'Slave_SQL', 'Slave_worker') \
     AND COALESCE(INFO, '') NOT LIKE 'SELECT %' AND COALESCE(INFO, '') NOT LIKE 'SHOW %' \
     AND COALESCE(STATE, '') NOT LIKE '%waiting for more updates%' AND COALESCE(STATE, '') NOT LIKE 'Waiting for work%'";

/// The horizon of a cursor that counts time.
pub(super) async fn time(session: &mut Session, cursor: &Cursor) -> Result<Horizon<Micros>> {
    // The clock in a statement of its own: by the time of the next one, who began before it can be seen.
    let rows = session.rows(&clock_query()).await?;
    let silent = || Error::new(ErrorKind::Internal, "the server tells no time");
    let row = rows.first().ok_or_else(silent)?;
    let clock = moment(&text(row, 0)).ok_or_else(silent)?;
    let distances = AHEAD.map(|hours| integer(row, 2 + usize::from(hours)).unwrap_or_default());
    let (offset, read_only) = (distances[0], text(row, 1) == "1");
    let mut horizon = Horizon { at: Some(clock), held_by: None, notes: Vec::new() };
    if read_only {
        horizon.notes.push(
            "this server may only be read: transactions on its primary are invisible; set `lag` to the longest of them and its delay"
                .to_owned(),
        );
    }
    let mut at = match begins(session, clock).await {
        Ok(None) => clock,
        Ok(Some((begin, by))) => {
            horizon.held_by = Some(format!("{by}, since {}", begin.shown()));
            begin
        }
        Err(error) if number(&error) == Some(DENIED) => {
            horizon.notes.push(format!("the user may not see who is writing: {GRANT}; until then changes of the last hour wait, or are read again and again with `beyond_horizon: read`"));
            clock.minus(UNSEEN)
        }
        Err(error) => return Err(error),
    };
    if cursor.of.base != "timestamp" && distances != [0; AHEAD.len()] {
        // Local time is ahead of UTC or behind it; whatever the column holds, the earlier is safe.
        at.0 += earliest(&distances) * MINUTE;
        horizon.notes.push(format!(
            "`{}` has no time zone and the server is {offset} minutes from UTC: what was written in the last {} minutes may wait",
            cursor.name,
            offset.abs()
        ));
    }
    horizon.at = Some(at.floor(cursor.of.scale));
    Ok(horizon)
}

/// Who began to write before the clock was read, and has not ended: the earliest.
async fn begins(session: &mut Session, clock: Micros) -> Result<Option<(Micros, String)>> {
    let mut earliest: Option<(Micros, String)> = None;
    let mut began = |begin: Micros, by: String| {
        if earliest.as_ref().is_none_or(|(earliest, _)| begin < *earliest) {
            earliest = Some((begin, by));
        }
    };
    let since =
        if session.server().mariadb { "CAST(TIME_MS * 1000 AS SIGNED)" } else { "(TIME + 1) * 1000000" };
    for row in &session.rows(&format!("SELECT {since}, ID {RUNNING}")).await? {
        // It has run for so long by now, and the clock was read before.
        let running = integer(row, 0).unwrap_or_default().max(0);
        began(Micros(clock.0.saturating_sub(running)), format!("a statement of session {}", text(row, 1)));
    }
    for Writer { seconds, thread, .. } in writing(session).await? {
        let begin = clock.minus(Duration::from_secs(seconds)).minus(BEGIN_ROUNDING);
        began(begin, format!("the transaction of session {thread}"));
    }
    Ok(earliest.filter(|(begin, _)| *begin < clock))
}

/// A transaction that has written.
#[derive(Debug, PartialEq, Eq)]
struct Writer {
    id: u64,
    /// Since it began.
    seconds: u64,
    /// Its session; empty where it has none.
    thread: String,
}

/// The transactions that have written and are not over.
async fn writing(session: &mut Session) -> Result<Vec<Writer>> {
    let rows = session.rows("SHOW ENGINE INNODB STATUS").await?;
    let status = rows.first().map(|row| text(row, 2)).unwrap_or_default();
    writers_of(&status).ok_or_else(|| {
        Error::new(ErrorKind::Transient, "the server has more transactions open than it can show")
    })
}

/// What the status says of them, `None` where it leaves some out. One that has only read has no number of its
/// own: what is shown in its place is an address, in brackets or beyond all numbers.
fn writers_of(status: &str) -> Option<Vec<Writer>> {
    const FIRST_ADDRESS: u64 = 1 << 48;
    if status.contains("... truncated...") {
        return None;
    }
    let writer = |text: &str| {
        let (id, rest) = text.split_once(',')?;
        let id = id.parse().ok().filter(|id| *id < FIRST_ADDRESS)?;
        let active = rest.lines().next()?.trim_start().strip_prefix("ACTIVE")?;
        let seconds = active.split_once(" sec")?.0.rsplit(' ').next()?.parse().ok()?;
        let thread =
            rest.split_once("thread id ").map_or("", |(_, rest)| rest.split(',').next().unwrap_or(""));
        Some(Writer { id, seconds, thread: thread.to_owned() })
    };
    Some(status.split("---TRANSACTION ").skip(1).filter_map(writer).collect())
}

/// `2025-11-21 11:00:00.000001`
fn moment(text: &str) -> Option<Micros> {
    let at = NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f").ok()?;
    Some(Micros(at.and_utc().timestamp_micros()))
}

/// The horizon of a cursor that counts by itself.
pub(super) async fn identity(
    session: &mut Session,
    relation: &Relation,
    cursor: &Cursor,
    wait: bool,
) -> Result<Horizon<Number>> {
    let largest =
        format!("SELECT CAST(MAX({}) AS CHAR) FROM {}", MYSQL.ident(&cursor.name), relation.quoted());
    let at = session.rows(&largest).await?.first().and_then(|row| integer(row, 0)).map(Number);
    let first = writers(session).await.map_err(|error| match number(&error) {
        Some(DENIED) => Error::new(ErrorKind::Permission, "the user may not see who is writing")
            .hint(format!("{GRANT}, so that rows of open transactions are not missed"))
            .because(error),
        _ => error,
    })?;
    let mut left = first;
    let mut waited = Duration::ZERO;
    let patience = if wait { PATIENCE_WRITERS } else { Duration::ZERO };
    while !left.is_empty() {
        if waited >= patience {
            let held_by = Some("a transaction that may be writing to the table".to_owned());
            return Ok(Horizon { at: None, held_by, notes: Vec::new() });
        }
        tokio::time::sleep(LOOK_AGAIN).await;
        waited += LOOK_AGAIN;
        let now = writers(session).await?;
        left.retain(|writer| now.contains(writer));
    }
    Ok(Horizon { at, held_by: None, notes: Vec::new() })
}

/// Transactions that have written and statements that may: which tables they write to, nobody tells.
async fn writers(session: &mut Session) -> Result<HashSet<String>> {
    let own = if session.server().mariadb { "CONCAT('q', QUERY_ID)" } else { "CONCAT('s', ID)" };
    let running = session.rows(&format!("SELECT {own} {RUNNING}")).await?;
    let mut writers: HashSet<String> = running.iter().map(|row| text(row, 0)).collect();
    writers.extend(writing(session).await?.iter().map(|writer| format!("t{}", writer.id)));
    Ok(writers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_time_that_comes_twice_is_read_once_it_has_come_twice() {
        // New York: four hours behind until the clocks are set back, five from then on.
        let back = 6 * 60;
        let distance = |utc: i64| if utc < back { -240 } else { -300 };
        let local = |utc: i64| utc + distance(utc);
        for now in 0..12 * 60 {
            let horizon = now + earliest(&AHEAD.map(|hours| distance(now + 60 * i64::from(hours))));
            let written_later = (now..20 * 60).map(local).min().unwrap();
            assert!(horizon <= written_later, "{now}: {horizon} {written_later}");
            assert!(horizon >= local(now) - 60, "no longer than the hour that comes twice");
        }
        assert_eq!((earliest(&[345; 4]), earliest(&[0; 4]), earliest(&[60, 0, 0, 0])), (0, 0, 0));
    }

    #[test]
    fn who_has_written_is_told_from_who_has_only_read() {
        let status = "\
TRANSACTIONS
LIST OF TRANSACTIONS FOR EACH SESSION:
---TRANSACTION (0x7f4df04a7180), ACTIVE 1 sec
0 lock struct(s), heap size 1128, 0 row lock(s)
MariaDB thread id 8, OS thread handle 139972716615360, query id 28 localhost 127.0.0.1 root User sleep
---TRANSACTION 421500000000000, ACTIVE 7 sec
MySQL thread id 9, OS thread handle 139972716615360, query id 28 localhost 127.0.0.1 root
---TRANSACTION 32, ACTIVE 12 sec inserting
1 lock struct(s), heap size 1128, 0 row lock(s), undo log entries 1
MariaDB thread id 7, OS thread handle 139972716922560, query id 23 localhost 127.0.0.1 root User sleep
---TRANSACTION 30, ACTIVE (PREPARED) 3 sec recovered trx
1 lock struct(s), heap size 1128, 0 row lock(s), undo log entries 1
---TRANSACTION 31, not started
--------
FILE I/O
";
        let writer = |id, seconds, thread: &str| Writer { id, seconds, thread: thread.to_owned() };
        assert_eq!(writers_of(status), Some(vec![writer(32, 12, "7"), writer(30, 3, "")]));
        assert_eq!(writers_of("... truncated..."), None);
        assert_eq!(writers_of(""), Some(Vec::new()));
    }
}
