//! One look into the log: as far as a place, or about so many messages, and what came of it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use futures::StreamExt;

use super::super::decode::Codec;
use super::super::rows::{Pool, Shape, rows};
use super::fold::{Fold, Following};
use super::lsn::Lsn;
use super::slot::explain;
use super::snapshot::Snapshot;
use super::table::{Broken, as_text};
use crate::clients::postgres::Session;
use crate::connectors::sql::{Changes, POSTGRES, lock};
use crate::error::{Error, ErrorKind, Result};
use crate::source::OutOfRange;

/// Messages after which a look ends with the transaction under way, at most. Each look begins where the server kept
/// the log, some seconds before the position: fewer would read that again and again.
const LOOK: u64 = 500_000;
/// Bytes that a message is taken to have.
const MESSAGE_BYTES: u64 = 128;
/// Messages in a batch on the way from the server.
const MESSAGES: usize = 8_192;
/// What was written is on disk at once, or when the server's writer comes by, some times a second.
const PATIENCE_FLUSH: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// After so long the server is given something that has to be on disk.
const NUDGE: Duration = Duration::from_millis(100);

/// How many messages a portion of about so many bytes takes.
pub(super) fn messages(portion_bytes: u64) -> u64 {
    (portion_bytes / MESSAGE_BYTES).clamp(1, LOOK)
}

/// What to look at.
pub(super) struct Look<'a> {
    pub(super) slot: &'a str,
    pub(super) publication: &'a str,
    pub(super) after: Lsn,
    pub(super) seen: Option<&'a Snapshot>,
    pub(super) up_to: Lsn,
    /// About how many messages at most; `None`: all there are.
    pub(super) most: Option<u64>,
    /// How much of the changes may be held in memory.
    pub(super) most_bytes: usize,
    pub(super) batch_bytes: usize,
}

/// A part of the log.
pub(super) struct Part {
    pub(super) changes: Changes,
    /// Where it ends, if that is before `up_to`.
    pub(super) end: Option<Lsn>,
    /// When the first transaction of it was committed: microseconds since 1970, by the server's clock.
    pub(super) oldest: Option<i64>,
}

/// What was seen.
pub(super) enum Seen {
    Part(Part),
    Broken(Broken),
}

impl Look<'_> {
    /// The statement that looks. As text too, row by row, where some columns are wanted so.
    pub(super) fn statement(&self, with_text: bool) -> String {
        let literal = |text: &str| format!("'{}'", text.replace('\'', "''"));
        let most = self.most.map_or("NULL".to_owned(), |most| most.to_string());
        let publication = literal(&POSTGRES.ident(self.publication));
        let function = |binary| {
            format!(
                "pg_logical_slot_peek_binary_changes({}, '{}', {most}, 'proto_version', '1', 'publication_names', \
                 {publication}, 'binary', '{binary}')",
                literal(self.slot),
                self.up_to
            )
        };
        if !with_text {
            return format!("SELECT data FROM {}", function(true));
        }
        format!(
            "SELECT d1, d2 FROM ROWS FROM ({}, {}) AS log(l1, x1, d1, l2, x2, d2)",
            function(true),
            function(false)
        )
    }

    /// Looks, and folds what it sees. The session comes back unless it failed.
    pub(super) async fn look(&self, session: Session, table: &Following) -> Result<(Session, Seen)> {
        let with_text = as_text(&table.wanted);
        let pool: Pool = Arc::new(Mutex::new(Vec::new()));
        let queue = Arc::new(Mutex::new(VecDeque::from([self.statement(with_text)])));
        let mut messages = rows(session, queue, self.shape(with_text), Arc::clone(&pool));
        let mut fold = Fold::new(table, self.after, self.up_to, self.seen, self.most_bytes);
        let mut broken = None;
        while let Some(batch) = messages.next().await {
            let batch = batch.map_err(explain)?;
            // Once broken, the rest is only drained: the session is wanted for what comes next.
            if broken.is_none() {
                broken = take(&mut fold, &batch)?;
            }
        }
        let gone = || Error::new(ErrorKind::Internal, "a session did not come back");
        let session = lock(&pool).pop().ok_or_else(gone)?;
        if let Some(broken) = broken {
            return Ok((session, Seen::Broken(broken)));
        }
        let end = fold.end.filter(|_| self.most.is_some_and(|most| fold.messages >= most));
        if end.is_some_and(|end| end <= self.after) {
            return Err(Error::new(ErrorKind::Transient, "the replication slot did not move on")
                .with("slot", self.slot)
                .hint("what the lake has could not be confirmed: is somebody else reading from the slot?"));
        }
        Ok((session, Seen::Part(Part { changes: fold.changes, end, oldest: fold.oldest })))
    }

    fn shape(&self, with_text: bool) -> Arc<Shape> {
        let columns = if with_text { 2 } else { 1 };
        let field = |i| Field::new(format!("d{i}"), DataType::Binary, true);
        Arc::new(Shape {
            schema: Arc::new(Schema::new((1..=columns).map(field).collect::<Vec<_>>())),
            codecs: vec![Codec::Bytes; columns],
            policy: OutOfRange::Fail,
            batch_rows: MESSAGES,
            batch_bytes: self.batch_bytes,
            replaced: (0..columns).map(|_| 0.into()).collect(),
            unfit: None,
        })
    }
}

fn take(fold: &mut Fold<'_>, batch: &RecordBatch) -> Result<Option<Broken>> {
    let binary = batch.column(0).as_binary::<i32>();
    let text = (batch.num_columns() > 1).then(|| batch.column(1).as_binary::<i32>());
    let apart = || Error::new(ErrorKind::Corrupt, "the log came in two forms that do not match");
    for row in 0..binary.len() {
        if binary.is_null(row) || text.is_some_and(|text| text.is_null(row)) {
            return Err(apart());
        }
        let broken = fold.take(binary.value(row), text.map(|text| text.value(row)))?;
        if broken.is_some() {
            return Ok(broken);
        }
    }
    Ok(None)
}

/// Up to where the log can be read now, and at least as far as `needed`.
pub(super) async fn end_of_log(session: &Session, needed: Option<Lsn>) -> Result<Lsn> {
    let started = Instant::now();
    let mut nudged = false;
    loop {
        let at = place(session, "SELECT pg_current_wal_flush_lsn()::text").await?;
        if needed.is_none_or(|needed| at >= needed) {
            return Ok(at);
        }
        if started.elapsed() > PATIENCE_FLUSH {
            return Err(Error::new(
                ErrorKind::Transient,
                "the server's log is not on disk as far as the first read saw",
            )
            .hint("the next pass goes on from here"));
        }
        if !nudged && started.elapsed() > NUDGE {
            // On a quiet server nothing else would bring the last bytes to disk.
            session.batch_execute("SELECT pg_logical_emit_message(true, 'frazil', '')").await?;
            nudged = true;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// What the transaction sees that is open, and a place behind all of that.
pub(super) async fn seen_now(session: &Session) -> Result<(Snapshot, Lsn)> {
    let rows = session.query_typed("SELECT pg_current_snapshot()::text", &[]).await?;
    let text: Option<String> = rows.first().and_then(|row| row.get(0));
    let unknown = || Error::new(ErrorKind::Internal, "the server does not say what it shows");
    let snapshot = text.and_then(|text| Snapshot::try_from(text).ok()).ok_or_else(unknown)?;
    Ok((snapshot, end_of_written(session).await?))
}

/// A place behind all that was written to the log, on disk or not.
pub(super) async fn end_of_written(session: &Session) -> Result<Lsn> {
    let Lsn(at) = place(session, "SELECT pg_current_wal_insert_lsn()::text").await?;
    // Where a page begins, the server names the place behind its header, which nothing was written to yet.
    const PAGE: u64 = 8_192;
    const LONGEST_HEADER: u64 = 40;
    Ok(Lsn(if at % PAGE <= LONGEST_HEADER { at - at % PAGE } else { at }))
}

/// Waits for transactions that are in the log and not yet to be seen: their replicas have not confirmed
/// them. A slot may be beyond them, a snapshot is not.
pub(super) async fn settle(session: &Session) -> Result<()> {
    let sql = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep' LIMIT 1";
    let started = Instant::now();
    while !session.query_typed(sql, &[]).await?.is_empty() {
        if started.elapsed() > PATIENCE_FLUSH {
            return Err(Error::new(ErrorKind::Transient, "transactions wait for a synchronous replica"));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(())
}

async fn place(session: &Session, sql: &str) -> Result<Lsn> {
    let rows = session.query_typed(sql, &[]).await?;
    let text: Option<String> = rows.first().and_then(|row| row.get(0));
    let unknown = || Error::new(ErrorKind::Transient, "the server does not say where its log is");
    text.and_then(|text| Lsn::try_from(text).ok()).ok_or_else(unknown)
}
