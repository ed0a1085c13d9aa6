//! From collapsed changes to the batches of a portion.
//!
//! Rows that the log has whole and keys of deleted rows come in batches of all columns. A row that lacks
//! values comes in a batch without these columns, together with those that lack the same.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow::array::RecordBatch;
use arrow::datatypes::{Field, Schema};
use futures::StreamExt;

use super::super::decode::Decoder;
use super::super::rows::Shape;
use crate::connectors::sql::{Changes, Share, UNCHANGED, fields, with_ops};
use crate::delta::Op;
use crate::error::Result;
use crate::source::RowStream;

/// The rows of a portion, one a key.
pub(super) fn batches(changes: Changes, shape: Arc<Shape>) -> Result<RowStream> {
    let shares = Box::new(changes.into_shares()?);
    let batches = Batches { shares, shape, share: None, kinds: Vec::new(), ready: VecDeque::new() };
    Ok(futures::stream::iter(batches).boxed())
}

struct Batches {
    shares: Box<dyn Iterator<Item = Result<Share>> + Send>,
    shape: Arc<Shape>,
    share: Option<(Share, usize)>,
    /// Rows under construction, by what they have.
    kinds: Vec<Kind>,
    ready: VecDeque<RecordBatch>,
}

/// Rows that have the same columns.
struct Kind {
    /// Which of the shape's columns they have.
    has: Vec<bool>,
    decoder: Decoder,
    ops: Vec<i8>,
}

impl Iterator for Batches {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        self.advance().transpose()
    }
}

impl Batches {
    fn advance(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if let Some(batch) = self.ready.pop_front() {
                return Ok(Some(batch));
            }
            let Some((share, place)) = self.share.as_mut().filter(|(share, place)| *place < share.keys())
            else {
                match self.shares.next() {
                    Some(share) => self.share = Some((share?, 0)),
                    None if self.kinds.is_empty() => return Ok(None),
                    None => self.flush()?,
                }
                continue;
            };
            if let Some(change) = share.get(*place) {
                let batch = kind(&mut self.kinds, &self.shape, change.row).take(change.op, change.row)?;
                self.ready.extend(batch);
            }
            *place += 1;
        }
    }

    fn flush(&mut self) -> Result<()> {
        for mut kind in self.kinds.drain(..) {
            if let Some(rows) = kind.decoder.flush()? {
                self.ready.push_back(kind.told(rows)?);
            }
            let mut counts = kind.decoder.take_replaced().into_iter();
            for (column, _) in self.shape.replaced.iter().zip(&kind.has).filter(|(_, has)| **has) {
                column.fetch_add(counts.next().unwrap_or_default(), Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

/// Where a row belongs.
fn kind<'a>(kinds: &'a mut Vec<Kind>, shape: &Shape, row: &[u8]) -> &'a mut Kind {
    let same = |kind: &Kind| fields(row).zip(&kind.has).all(|((len, _), has)| (len != UNCHANGED) == *has);
    let place = kinds.iter().position(same).unwrap_or_else(|| {
        kinds.push(Kind::new(shape, fields(row).map(|(len, _)| len != UNCHANGED).collect()));
        kinds.len() - 1
    });
    &mut kinds[place]
}

impl Kind {
    fn new(shape: &Shape, has: Vec<bool>) -> Self {
        let there = |place: &usize| has[*place];
        // Of a deleted row only the key is there, whatever the table says of its columns.
        let fields: Vec<Field> = (0..has.len())
            .filter(there)
            .map(|place| shape.schema.field(place).clone().with_nullable(true))
            .collect();
        let codecs: Vec<_> = (0..has.len()).filter(there).map(|place| shape.codecs[place].clone()).collect();
        let schema = Arc::new(Schema::new(fields));
        let decoder = Decoder::new(schema, &codecs, shape.policy, shape.batch_rows, shape.batch_bytes);
        Self { has, decoder, ops: Vec::new() }
    }

    fn take(&mut self, op: Op, row: &[u8]) -> Result<Option<RecordBatch>> {
        self.ops.push(op as i8);
        let batch = if self.has.iter().all(|has| *has) {
            self.decoder.take_row(row)?
        } else {
            let mut part = (self.has.iter().filter(|has| **has).count() as i16).to_be_bytes().to_vec();
            for (len, value) in fields(row).filter(|(len, _)| *len != UNCHANGED) {
                part.extend_from_slice(&len.to_be_bytes());
                part.extend_from_slice(value);
            }
            self.decoder.take_row(&part)?
        };
        batch.map(|rows| self.told(rows)).transpose()
    }

    /// Rows, with what became of each.
    fn told(&mut self, rows: RecordBatch) -> Result<RecordBatch> {
        with_ops(&rows, std::mem::take(&mut self.ops))
    }
}
