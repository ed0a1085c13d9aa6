//! Rows out of sessions: statements from a queue, one after the other, into batches.
//!
//! Several streams may share a queue: whoever is done with a statement takes the next, so that none
//! waits for the slowest. A session that ran to its end goes back to the pool; one that was given up
//! in the middle hangs up, which is how a statement is cancelled here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use futures::channel::mpsc;
use futures::{SinkExt, StreamExt, stream};
use mysql_async::prelude::Queryable;

use super::codec::Codec;
use super::decode::Decoder;
use crate::clients::mysql::Session;
use crate::connectors::sql::{self, Queue, Unfit, lock};
use crate::error::{Error, Result};
use crate::source::{OutOfRange, RowStream};

/// How the rows of a reading are decoded and cut into batches.
pub(super) struct Shape {
    pub(super) schema: SchemaRef,
    pub(super) codecs: Vec<Codec>,
    pub(super) policy: OutOfRange,
    pub(super) batch_rows: usize,
    pub(super) batch_bytes: usize,
    /// Values that the policy replaced, by column.
    pub(super) replaced: Vec<AtomicU64>,
    /// Where rows with values that do not fit may go aside.
    pub(super) unfit: Option<Unfit>,
}

/// Sessions at rest.
pub(super) type Pool = sql::Pool<Session>;

/// Reads statements from the queue until it is empty, then gives the session to the pool.
///
/// Rows borrow the session, so the reader and its batches are two ends of a channel that are polled
/// together, by whoever pulls the batches: nothing runs when nobody pulls.
pub(super) fn rows(session: Session, queue: Queue, shape: Arc<Shape>, pool: Pool) -> RowStream {
    streamed(|sender| read(session, queue, shape, pool, sender))
}

/// The batches that a reader sends, and at the end why it stopped, if it did.
pub(super) fn streamed<F>(reader: impl FnOnce(mpsc::Sender<RecordBatch>) -> F) -> RowStream
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let (sender, batches) = mpsc::channel(0);
    let reader = reader(sender);
    let failed = stream::once(reader).filter_map(|outcome| std::future::ready(outcome.err().map(Err)));
    stream::select(batches.map(Ok), failed).boxed()
}

async fn read(
    mut session: Session,
    queue: Queue,
    shape: Arc<Shape>,
    pool: Pool,
    mut batches: mpsc::Sender<RecordBatch>,
) -> Result<()> {
    let mut decoder = Decoder::new(
        SchemaRef::clone(&shape.schema),
        &shape.codecs,
        shape.policy,
        shape.batch_rows,
        shape.batch_bytes,
    )
    .with_unfit(shape.unfit.clone());
    session.is_reading(true);
    loop {
        let next = lock(&queue).pop_front();
        let Some(statement) = next else { break };
        let mut found = session.exec_iter(statement, ()).await.map_err(Error::from)?;
        while let Some(row) = found.next().await? {
            if let Some(batch) = decoder.push(&row)?
                && batches.send(batch).await.is_err()
            {
                return Ok(());
            }
        }
    }
    if let Some(batch) = decoder.flush()?
        && batches.send(batch).await.is_err()
    {
        return Ok(());
    }
    for (count, column) in decoder.take_replaced().iter().zip(&shape.replaced) {
        column.fetch_add(*count, Ordering::Relaxed);
    }
    session.is_reading(false);
    lock(&pool).push(session);
    Ok(())
}
