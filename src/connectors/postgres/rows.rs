//! Rows out of sessions: statements from a queue, one COPY after the other, into batches.
//!
//! Several streams may share a queue: whoever is done with a statement takes the next, so that none
//! waits for the slowest. A session that ran to its end goes back to the pool; one that was given up
//! in the middle is closed.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use futures::StreamExt;
use futures::channel::mpsc;
use tokio_postgres::CopyOutStream;

use super::decode::{Codec, Decoder};
use crate::clients::postgres::translate;
use crate::clients::postgres::{Block, Session};
use crate::connectors::sql::{self, Queue, Unfit, lock};
use crate::error::Result;
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

impl Shape {
    /// The same, with nothing counted.
    pub(super) fn again(&self) -> Self {
        Self {
            schema: SchemaRef::clone(&self.schema),
            codecs: self.codecs.clone(),
            policy: self.policy,
            batch_rows: self.batch_rows,
            batch_bytes: self.batch_bytes,
            replaced: self.codecs.iter().map(|_| 0.into()).collect(),
            unfit: self.unfit.clone(),
        }
    }
}

/// Sessions at rest.
pub(super) type Pool = sql::Pool<Session>;

/// Reads statements from the queue until it is empty, then gives the session to the pool.
pub(super) fn rows(session: Session, queue: Queue, shape: Arc<Shape>, pool: Pool) -> RowStream {
    let decoder = Decoder::new(
        SchemaRef::clone(&shape.schema),
        &shape.codecs,
        shape.policy,
        shape.batch_rows,
        shape.batch_bytes,
    )
    .with_unfit(shape.unfit.clone());
    let reader = Reader { session, queue, shape, pool, decoder, copy: None };
    futures::stream::try_unfold(Some(reader), async |reader| {
        let Some(mut reader) = reader else { return Ok(None) };
        match reader.next().await? {
            Some(batch) => Ok(Some((batch, Some(reader)))),
            None => {
                lock(&reader.pool).push(reader.session);
                Ok(None)
            }
        }
    })
    .boxed()
}

struct Reader {
    session: Session,
    queue: Queue,
    shape: Arc<Shape>,
    pool: Pool,
    decoder: Decoder,
    copy: Option<Copy>,
}

/// A COPY under way.
struct Copy {
    blocks: mpsc::Receiver<Block>,
    end: Pin<Box<CopyOutStream>>,
    /// Let go as soon as all of it is decoded: a row may be as large as all that may wait.
    block: Option<Block>,
    at: usize,
}

impl Reader {
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            let Some(copy) = &mut self.copy else {
                let statement = lock(&self.queue).pop_front();
                let Some(statement) = statement else {
                    let last = self.decoder.flush()?;
                    for (count, column) in self.decoder.take_replaced().iter().zip(&self.shape.replaced) {
                        column.fetch_add(*count, Ordering::Relaxed);
                    }
                    return Ok(last);
                };
                self.copy = Some(start(&self.session, &statement).await?);
                continue;
            };
            while let Some(block) = &copy.block {
                let (used, batch) = self.decoder.feed(&block.bytes[copy.at..])?;
                copy.at += used;
                if copy.at >= block.bytes.len() {
                    copy.block = None;
                }
                if batch.is_some() {
                    return Ok(batch);
                }
            }
            match copy.blocks.next().await {
                Some(block) => (copy.block, copy.at) = (Some(block), 0),
                None => {
                    // The server's word on how the COPY ended comes behind the rows.
                    match copy.end.next().await {
                        None => self.decoder.end_of_copy()?,
                        Some(Err(error)) => return Err(translate(&error)),
                        Some(Ok(_)) => {
                            return Err(crate::clients::postgres::lost("the rows of a COPY went astray"));
                        }
                    }
                    self.copy = None;
                }
            }
        }
    }
}

async fn start(session: &Session, statement: &str) -> Result<Copy> {
    let blocks = session.switch().open();
    let statement = format!("COPY ({statement}) TO STDOUT (FORMAT binary)");
    let end = session.copy_out(&statement).await?;
    Ok(Copy { blocks, end: Box::pin(end), block: None, at: 0 })
}
