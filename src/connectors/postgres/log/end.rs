//! Where the log ends, and how much of it a transaction sees: on a primary, and on a replica.
//!
//! A primary says which transactions a snapshot does not see. A replica says it of none: open ones are missing in
//! its `pg_current_snapshot`. But it shows transactions in the order of the log, so it is enough to ask how far that
//! was replayed, before and after:
//!
//! ```text
//! ── replayed before ──┊── a snapshot is taken ──┊── replayed after ──▶ log
//!      all is seen            some is seen              none is seen
//! ```
//!
//! What lies between is read once more, and in one portion with what follows: each key comes out as it is behind
//! the second place, and nothing goes back to what it was before.

use std::time::{Duration, Instant};

use super::lsn::Lsn;
use super::snapshot::Snapshot;
use crate::clients::postgres::Session;
use crate::error::{Error, ErrorKind, Result};

/// What was written is on disk at once, or when the server's writer comes by, some times a second; a replica that
/// follows has it soon after.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// After so long the server is given something that has to be on disk.
const NUDGE: Duration = Duration::from_millis(100);
/// The log's pages begin with a header, in which no record is.
const PAGE: u64 = 8_192;
const LONGEST_HEADER: u64 = 40;

/// Up to where the log can be read now, and at least as far as `needed`.
pub(super) async fn end_of_log(session: &Session, needed: Option<Lsn>) -> Result<Lsn> {
    let started = Instant::now();
    let standby = session.server().standby;
    let mut nudged = standby;
    loop {
        let at = match standby {
            true => replayed(session).await?,
            false => place(session, "SELECT pg_current_wal_flush_lsn()::text").await?,
        };
        if needed.is_none_or(|needed| at >= needed) {
            return Ok(at);
        }
        if started.elapsed() > PATIENCE {
            return Err(too_short(standby));
        }
        if !nudged && started.elapsed() > NUDGE {
            // On a quiet server nothing else would bring the last bytes to disk.
            session.batch_execute("SELECT pg_logical_emit_message(true, 'frazil', '')").await?;
            nudged = true;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

fn too_short(standby: bool) -> Error {
    if standby {
        return Error::new(
            ErrorKind::Transient,
            "the replica has not replayed the log as far as was read already",
        )
        .hint("the next pass goes on from here; is the replica far behind its primary?");
    }
    Error::new(ErrorKind::Transient, "the server's log is not on disk as far as the first read saw")
        .hint("the next pass goes on from here")
}

/// Up to where a snapshot sees everything that is taken after this; `None`: it says itself what it sees.
pub(super) async fn seen_for_sure(session: &Session) -> Result<Option<Lsn>> {
    if session.server().standby {
        return replayed(session).await.map(Some);
    }
    settle(session).await?;
    Ok(None)
}

/// What the transaction sees that is open, if the server says it, and a place behind all of that.
pub(super) async fn seen_now(session: &Session) -> Result<(Option<Snapshot>, Lsn)> {
    if session.server().standby {
        return Ok((None, behind_what_is_replayed(session).await?));
    }
    let rows = session.query_typed("SELECT pg_current_snapshot()::text", &[]).await?;
    let text: Option<String> = rows.first().and_then(|row| row.get(0));
    let unknown = || Error::new(ErrorKind::Internal, "the server does not say what it shows");
    let snapshot = text.and_then(|text| Snapshot::try_from(text).ok()).ok_or_else(unknown)?;
    Ok((Some(snapshot), end_of_written(session).await?))
}

/// A place behind all that can be seen: what was written to the log, on disk or not; on a replica what was replayed.
pub(super) async fn end_of_written(session: &Session) -> Result<Lsn> {
    if session.server().standby {
        return replayed(session).await;
    }
    let Lsn(at) = place(session, "SELECT pg_current_wal_insert_lsn()::text").await?;
    // Where a page begins, the server names the place behind its header, which nothing was written to yet.
    Ok(Lsn(if at % PAGE <= LONGEST_HEADER { at - at % PAGE } else { at }))
}

/// How far a replica has replayed the log.
async fn replayed(session: &Session) -> Result<Lsn> {
    let sql = "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()::text END";
    let rows = session.query_typed(sql, &[]).await?;
    lsn(rows.first().and_then(|row| row.get(0))).ok_or_else(promoted)
}

/// A place behind everything that this replica shows. A commit can be seen a moment before it counts as replayed:
/// unless all that has come was replayed, the next record may be one of these.
async fn behind_what_is_replayed(session: &Session) -> Result<Lsn> {
    let sql = "SELECT replayed::text, coalesce(received <= replayed, false) AND EXISTS (SELECT FROM pg_stat_wal_receiver) \
         FROM (SELECT pg_last_wal_receive_lsn() AS received, pg_last_wal_replay_lsn() AS replayed) AS at \
         WHERE pg_is_in_recovery()";
    let rows = session.query_typed(sql, &[]).await?;
    let row = rows.first().ok_or_else(promoted)?;
    let at = lsn(row.get(0)).ok_or_else(promoted)?;
    Ok(if row.get(1) { at } else { behind_the_beginning(at) })
}

/// A place within the record that comes next.
fn behind_the_beginning(Lsn(at): Lsn) -> Lsn {
    Lsn(at + 1 + if at % PAGE == 0 { LONGEST_HEADER } else { 0 })
}

fn promoted() -> Error {
    Error::new(ErrorKind::Transient, "the replica was promoted just now")
        .hint("the next pass takes it for the primary that it is")
}

/// Waits for transactions that are in the log and not yet to be seen: their replicas have not confirmed
/// them. A slot may be beyond them, a snapshot is not.
async fn settle(session: &Session) -> Result<()> {
    let sql = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep' LIMIT 1";
    let started = Instant::now();
    while !session.query_typed(sql, &[]).await?.is_empty() {
        if started.elapsed() > PATIENCE {
            return Err(Error::new(ErrorKind::Transient, "transactions wait for a synchronous replica"));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(())
}

async fn place(session: &Session, sql: &str) -> Result<Lsn> {
    let rows = session.query_typed(sql, &[]).await?;
    let unknown = || Error::new(ErrorKind::Transient, "the server does not say where its log is");
    lsn(rows.first().and_then(|row| row.get(0))).ok_or_else(unknown)
}

fn lsn(text: Option<String>) -> Option<Lsn> {
    Lsn::try_from(text?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_record_begins_before_the_place_and_ends_behind_it() {
        const SHORTEST_RECORD: u64 = 24;
        // In a page it begins right there; where a page begins, behind the header, of which there are two.
        for (at, begins) in [(PAGE + 64, PAGE + 64), (PAGE, PAGE + 24), (PAGE, PAGE + 40)] {
            let Lsn(behind) = behind_the_beginning(Lsn(at));
            assert!(begins < behind && behind <= begins + SHORTEST_RECORD, "{at} {begins} {behind}");
        }
    }
}
