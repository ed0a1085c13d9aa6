//! Rows of the client into Arrow batches: what each column becomes is decided once, a row is a loop.

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use tiberius::Row;

pub use super::codec::Codec;
use super::column::Column;
pub use super::column::Policy;
use crate::connectors::sql::Unfit;
use crate::error::{Error, ErrorKind, Result};

/// No batch may come near the 2 GiB that 32-bit offsets reach: a last row may add 1 GiB and more.
const BATCH_BYTES_LIMIT: usize = 256 << 20;

/// Makes batches of rows.
pub struct Decoder {
    schema: SchemaRef,
    columns: Vec<Column>,
    batch_rows: usize,
    batch_bytes: usize,
    rows: usize,
    bytes: usize,
    /// Rows that go aside, where they may.
    unfit: Option<Unfit>,
}

impl Decoder {
    /// A decoder for rows whose values these codecs take. A batch is closed at `batch_rows` rows or
    /// about `batch_bytes` bytes, whichever comes first.
    pub fn new(
        schema: SchemaRef,
        codecs: &[Codec],
        policy: Policy,
        batch_rows: usize,
        batch_bytes: usize,
    ) -> Self {
        let batch_rows = batch_rows.max(1);
        // Wide rows never fill the row limit: memory is taken for what can come.
        let room = batch_rows.min(batch_bytes / (4 * codecs.len().max(1)) + 1);
        Self {
            schema,
            columns: codecs.iter().map(|codec| Column::new(*codec, room, policy)).collect(),
            batch_rows,
            batch_bytes: batch_bytes.min(BATCH_BYTES_LIMIT),
            rows: 0,
            bytes: 0,
            unfit: None,
        }
    }

    /// Where rows with values that do not fit may go aside.
    pub(super) fn with_unfit(self, unfit: Option<Unfit>) -> Self {
        Self { unfit, ..self }
    }

    /// Takes a row; a batch when it is full.
    #[inline]
    pub fn push(&mut self, row: Row) -> Result<Option<RecordBatch>> {
        if row.len() != self.columns.len() {
            return Err(Error::new(
                ErrorKind::Transient,
                "a row has another number of columns than asked for",
            ));
        }
        for (index, value) in row.into_iter().enumerate() {
            match self.columns[index].push(&value) {
                Ok(bytes) => self.bytes += bytes,
                Err(bad) => {
                    let error = bad.of(self.schema.field(index).name());
                    let Some(unfit) = &mut self.unfit else { return Err(error) };
                    unfit.note(self.rows, index, error)?;
                    self.columns[index].push_null();
                }
            }
        }
        self.rows += 1;
        if self.rows >= self.batch_rows || self.bytes >= self.batch_bytes {
            return self.batch().map(Some);
        }
        Ok(None)
    }

    /// The rows that no batch has had yet.
    pub fn flush(&mut self) -> Result<Option<RecordBatch>> {
        if self.rows == 0 { Ok(None) } else { self.batch().map(Some) }
    }

    /// How many values the policy replaced since the last time, by column.
    pub fn take_replaced(&mut self) -> Vec<u64> {
        self.columns.iter_mut().map(Column::take_replaced).collect()
    }

    fn batch(&mut self) -> Result<RecordBatch> {
        let arrays = self.columns.iter_mut().map(Column::finish).collect::<Result<Vec<_>>>()?;
        let rows = std::mem::take(&mut self.rows);
        self.bytes = 0;
        if let Some(unfit) = &mut self.unfit
            && let Some(batch) = unfit.batch(&arrays, rows)?
        {
            return Ok(batch);
        }
        Ok(RecordBatch::try_new(self.schema.clone(), arrays)?)
    }
}
