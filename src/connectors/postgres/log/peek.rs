//! One look into the log: as far as a place, or about so many messages, and what came of it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

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
