//! Rows of the client into Arrow batches: what each column becomes is decided once, a row is a loop.

use arrow::array::{Array, RecordBatch};
use arrow::datatypes::SchemaRef;
use mysql_async::{Row, Value};

use super::codec::Codec;
use super::column::Column;
use crate::connectors::sql::Unfit;
use crate::error::{Error, ErrorKind, Result};
use crate::source::OutOfRange;

/// No batch may come near the 2 GiB that 32-bit offsets reach: a last row may add 1 GiB and more.
const BATCH_BYTES_LIMIT: usize = 256 << 20;

/// Makes batches of rows.
pub(super) struct Decoder {
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
    pub(super) fn new(
        schema: SchemaRef,
        codecs: &[Codec],
        policy: OutOfRange,
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
    pub(super) fn push(&mut self, row: &Row) -> Result<Option<RecordBatch>> {
        self.take(row.len(), |index| row.as_ref(index).expect("counted above, and taken by nobody"))
    }

    /// The same for values that are in no row of the client's.
    pub(super) fn push_values(&mut self, row: &[Value]) -> Result<Option<RecordBatch>> {
        self.take(row.len(), |index| &row[index])
    }

    #[inline]
    fn take<'a>(&mut self, len: usize, value: impl Fn(usize) -> &'a Value) -> Result<Option<RecordBatch>> {
        if len != self.columns.len() {
            return Err(Error::new(
                ErrorKind::Transient,
                "a row has another number of columns than asked for",
            ));
        }
        for (index, column) in self.columns.iter_mut().enumerate() {
            match column.push(value(index)) {
                Ok(bytes) => self.bytes += bytes,
                Err(bad) => {
                    let error = bad.of(self.schema.field(index).name());
                    let Some(unfit) = &mut self.unfit else { return Err(error) };
                    unfit.note(self.rows, index, error)?;
                    column.push_null();
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
    pub(super) fn flush(&mut self) -> Result<Option<RecordBatch>> {
        if self.rows == 0 { Ok(None) } else { self.batch().map(Some) }
    }

    /// How many values the policy replaced since the last time, by column.
    pub(super) fn take_replaced(&mut self) -> Vec<u64> {
        self.columns.iter_mut().map(Column::take_replaced).collect()
    }

    fn batch(&mut self) -> Result<RecordBatch> {
        let arrays: Vec<_> = self.columns.iter_mut().map(Column::finish).collect();
        let rows = std::mem::take(&mut self.rows);
        self.bytes = 0;
        if let Some(unfit) = &mut self.unfit
            && let Some(batch) = unfit.batch(&arrays, rows)?
        {
            return Ok(batch);
        }
        for (array, field) in arrays.iter().zip(self.schema.fields()) {
            if !field.is_nullable() && array.null_count() > 0 {
                // The schema was read before; the server would never send this for it.
                return Err(Error::new(ErrorKind::Transient, "a column became nullable while it was read")
                    .with("column", field.name()));
            }
        }
        Ok(RecordBatch::try_new(self.schema.clone(), arrays)?)
    }
}
