//! Keys that changed become rows: what the snapshot has of them is as it is there, and the rest is gone.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow::array::RecordBatch;
use arrow::datatypes::{Field, Schema};
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures::SinkExt;
use futures::channel::mpsc;
use mysql_async::prelude::Queryable;

use super::super::decode::Decoder;
use super::super::rows::{Pool, Shape, streamed};
use super::key::Key;
use crate::clients::mysql::Session;
use crate::connectors::sql::{Changes, Select, lock, replaced_values, with_ops};
use crate::delta::{Op, Watermark};
use crate::error::{Error, ErrorKind, Result};
use crate::source::{Portion, ReadPlan, ReadRequest, Reading, RowStream};

/// Keys that one statement asks for. From a thousand on MariaDB makes a table of them first; and a server
/// plans a statement with so many still in no time.
const KEYS_A_STATEMENT: usize = 500;

/// A pass over keys that changed: one portion, as its session's snapshot has the rows.
pub(in super::super) struct ByKeys {
    pub(in super::super) plan: ReadPlan,
    pub(in super::super) shape: Arc<Shape>,
    /// `None` once it was handed out.
    pub(in super::super) changed: Option<Changed>,
    pub(in super::super) key: Key,
    pub(in super::super) select: Select,
    /// The session in its snapshot.
    pub(in super::super) sessions: Pool,
    /// Where it goes in the end.
    pub(in super::super) idle: Pool,
}

/// The portion of a pass.
pub(in super::super) struct Changed {
    pub(in super::super) changes: Changes,
    pub(in super::super) resume: Watermark,
    pub(in super::super) oldest: Option<DateTime<Utc>>,
}

/// The plan of such a pass.
pub(in super::super) fn by_keys(
    request: &ReadRequest,
    select: &Select,
    shape: &Shape,
    notes: Vec<String>,
) -> ReadPlan {
    ReadPlan::of_changes(request, Arc::clone(&shape.schema), select.with(None), notes)
}

#[async_trait]
impl Reading for ByKeys {
    fn plan(&self) -> &ReadPlan {
        &self.plan
    }

    async fn next(&mut self) -> Result<Option<Portion>> {
        let Some(Changed { changes, resume, oldest }) = self.changed.take() else {
            let session = lock(&self.sessions).pop();
            if let Some(mut session) = session {
                session.run("COMMIT").await?;
                lock(&self.idle).push(session);
                self.plan.notes.extend(replaced_values(
                    &self.shape.schema,
                    &self.shape.replaced,
                    "`out_of_range`",
                ));
            }
            return Ok(None);
        };
        let session = if changes.is_empty() { None } else { lock(&self.sessions).pop() };
        let streams = session.map(|session| {
            batches(Reread {
                session,
                changes,
                key: self.key.clone(),
                select: self.select.clone(),
                shape: Arc::clone(&self.shape),
                pool: Arc::clone(&self.sessions),
            })
        });
        Ok(Some(Portion { streams: streams.into_iter().collect(), resume, complete: true, oldest }))
    }
}

/// What has to be read.
struct Reread {
    /// In its snapshot.
    session: Session,
    changes: Changes,
    key: Key,
    select: Select,
    shape: Arc<Shape>,
    /// Where the session goes in the end.
    pool: Pool,
}

/// The batches of a portion: each key once.
fn batches(reread: Reread) -> RowStream {
    streamed(|sender| reread.read(sender))
}

/// Batches under construction.
struct Batches {
    decoder: Decoder,
    ops: Vec<i8>,
    sender: mpsc::Sender<RecordBatch>,
}

impl Batches {
    /// Hands a batch on; `false` when nobody wants it any more.
    async fn hand_on(&mut self, batch: Option<RecordBatch>) -> Result<bool> {
        let Some(rows) = batch else { return Ok(true) };
        let batch = with_ops(&rows, std::mem::take(&mut self.ops))?;
        Ok(self.sender.send(batch).await.is_ok())
    }
}

impl Reread {
    async fn read(mut self, sender: mpsc::Sender<RecordBatch>) -> Result<()> {
        let shape = Arc::clone(&self.shape);
        // Of a deleted row only the key is there, whatever the table says of its columns.
        let fields = shape.schema.fields().iter().map(|field| field.as_ref().clone().with_nullable(true));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<Field>>()));
        let decoder = Decoder::new(schema, &shape.codecs, shape.policy, shape.batch_rows, shape.batch_bytes);
        let mut batches = Batches { decoder, ops: Vec::new(), sender };
        let changes = std::mem::replace(&mut self.changes, Changes::new(0));
        self.session.is_reading(true);
        for share in changes.into_shares()? {
            let share = share?;
            let mut keys: Vec<&[u8]> =
                (0..share.keys()).filter_map(|place| share.get(place)).map(|change| change.key).collect();
            keys.sort_unstable();
            for keys in keys.chunks(KEYS_A_STATEMENT) {
                if !self.some(keys, &mut batches).await? {
                    return Ok(());
                }
            }
        }
        let last = batches.decoder.flush()?;
        if !batches.hand_on(last).await? {
            return Ok(());
        }
        for (count, column) in batches.decoder.take_replaced().iter().zip(&shape.replaced) {
            column.fetch_add(*count, Ordering::Relaxed);
        }
        self.session.is_reading(false);
        lock(&self.pool).push(self.session);
        Ok(())
    }

    /// Reads the rows of some keys.
    async fn some(&mut self, keys: &[&[u8]], batches: &mut Batches) -> Result<bool> {
        let mut there: HashMap<&[u8], bool> = keys.iter().map(|key| (*key, false)).collect();
        let statement = self.select.with(Some(self.key.condition(keys)?));
        let mut rows = self.session.exec_iter(statement, ()).await.map_err(Error::from)?;
        let mut key = Vec::new();
        while let Some(row) = rows.next().await? {
            self.key.of_row(&row, &mut key)?;
            match there.get_mut(key.as_slice()) {
                Some(seen) => *seen = true,
                // The same to the server, as `a` and `A` may be: a row of its own, that did not change.
                None if self.key.is_loose() => continue,
                None => {
                    return Err(Error::new(
                        ErrorKind::Internal,
                        "a row has another key than the one that was asked for",
                    ));
                }
            }
            batches.ops.push(Op::Upsert as i8);
            let batch = batches.decoder.push(&row)?;
            if !batches.hand_on(batch).await? {
                return Ok(false);
            }
        }
        drop(rows);
        for key in keys.iter().filter(|key| !there[**key]) {
            let row = self.key.alone(key, self.shape.codecs.len())?;
            batches.ops.push(Op::Delete as i8);
            let batch = batches.decoder.push_values(&row)?;
            if !batches.hand_on(batch).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
