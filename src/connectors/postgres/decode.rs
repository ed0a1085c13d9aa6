//! The rows of a `COPY … TO STDOUT (FORMAT binary)`, from blocks of the wire into Arrow batches.
//!
//! ```text
//! block ─▶ CopyData messages ─▶ rows ─▶ fields ─▶ typed columns ─▶ batch
//! ```
//!
//! The server sends a row in one message, so a row is read where it lies; one that is spread over
//! messages is put together first. Whatever arrives, the answer is a batch or an error: a length is
//! believed only as far as there are bytes.

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;

use super::column::{Bad, Column};
use crate::error::{Error, ErrorKind, Result};
use crate::source::OutOfRange;

pub use super::column::Codec;

/// What a binary COPY begins with; flags and the length of an extension follow.
const SIGNATURE: &[u8; 11] = b"PGCOPY\n\xff\r\n\0";
/// Signature, flags, length of the extension.
const HEADER: usize = SIGNATURE.len() + 8;
/// Flags that a reader must understand to go on.
const CRITICAL_FLAGS: u32 = 0xFFFF_0000;
/// No batch may come near the 2 GiB that 32-bit offsets reach: a last row may add 1 GiB.
const BATCH_BYTES_LIMIT: usize = 512 << 20;
/// Postgres makes no row longer.
const ROW_LIMIT: usize = 1 << 30;

/// Makes batches of rows.
pub struct Decoder {
    schema: SchemaRef,
    columns: Vec<Column>,
    batch_rows: usize,
    batch_bytes: usize,
    rows: usize,
    bytes: usize,
    state: State,
    /// The beginning of a row whose end is in a later message.
    carry: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Header,
    Rows,
    Done,
}

/// What was found at the start of some bytes.
enum Found {
    /// A row, this long.
    Row(usize),
    /// The end of the rows, this long.
    End(usize),
    /// The beginning of a row.
    Part,
}

impl Decoder {
    /// A decoder for rows whose fields these codecs read. A batch is closed at `batch_rows` rows or
    /// about `batch_bytes` bytes, whichever comes first.
    pub fn new(
        schema: SchemaRef,
        codecs: &[Codec],
        policy: OutOfRange,
        batch_rows: usize,
        batch_bytes: usize,
    ) -> Self {
        let batch_rows = batch_rows.max(1);
        // Wide rows never fill the row limit: memory is taken for what can come.
        let narrowest = 6 * codecs.len().max(1);
        let room = batch_rows.min(batch_bytes / narrowest + 1);
        Self {
            schema,
            columns: codecs.iter().map(|codec| Column::new(codec, room, policy)).collect(),
            batch_rows,
            batch_bytes: batch_bytes.min(BATCH_BYTES_LIMIT),
            rows: 0,
            bytes: 0,
            state: State::Header,
            carry: Vec::new(),
        }
    }

    /// Reads messages from the front of `block` until it is empty or a batch is full; says how much was read.
    pub fn feed(&mut self, block: &[u8]) -> Result<(usize, Option<RecordBatch>)> {
        let mut at = 0;
        while at < block.len() {
            let message = &block[at..];
            let payload = match message.first_chunk::<5>() {
                Some([b'd', len @ ..]) => {
                    let end = 1 + u32::from_be_bytes(*len) as usize;
                    message.get(5..end).ok_or_else(|| corrupt("a message is cut short"))?
                }
                _ => return Err(corrupt("a message is no row")),
            };
            at += 5 + payload.len();
            self.message(payload)?;
            if self.rows >= self.batch_rows || self.bytes >= self.batch_bytes {
                return Ok((at, Some(self.batch()?)));
            }
        }
        Ok((at, None))
    }

    /// A COPY is over and another may follow, whose rows go on in the same batch. Fails when the end of
    /// the rows did not arrive.
    pub fn end_of_copy(&mut self) -> Result<()> {
        if self.state != State::Done || !self.carry.is_empty() {
            return Err(corrupt("the rows end too early"));
        }
        self.state = State::Header;
        Ok(())
    }

    /// The rows that no batch has had yet.
    pub fn flush(&mut self) -> Result<Option<RecordBatch>> {
        if self.rows == 0 { Ok(None) } else { self.batch().map(Some) }
    }

    /// How many values the policy replaced since the last time, by column.
    pub fn take_replaced(&mut self) -> Vec<u64> {
        self.columns.iter_mut().map(Column::take_replaced).collect()
    }

    fn message(&mut self, payload: &[u8]) -> Result<()> {
        if self.carry.is_empty() {
            let used = self.rows_of(payload)?;
            if used < payload.len() {
                self.carry.extend_from_slice(&payload[used..]);
            }
            return Ok(());
        }
        if self.carry.len() + payload.len() > ROW_LIMIT + HEADER {
            return Err(corrupt("a row has no end"));
        }
        let mut carry = std::mem::take(&mut self.carry);
        carry.extend_from_slice(payload);
        let used = self.rows_of(&carry)?;
        carry.drain(..used);
        self.carry = carry;
        Ok(())
    }

    /// Reads whole rows from the front; says how many bytes they took.
    fn rows_of(&mut self, bytes: &[u8]) -> Result<usize> {
        let mut at = 0;
        if self.state == State::Header {
            match header_len(bytes)? {
                Some(len) => at = len,
                None => return Ok(0),
            }
            self.state = State::Rows;
        }
        while at < bytes.len() {
            if self.state == State::Done {
                return Err(corrupt("rows follow after the end"));
            }
            match self.row(&bytes[at..])? {
                Found::Row(len) => {
                    self.rows += 1;
                    self.bytes += len;
                    at += len;
                }
                Found::End(len) => {
                    self.state = State::Done;
                    at += len;
                }
                Found::Part => {
                    let rows = self.rows;
                    self.columns.iter_mut().for_each(|column| column.truncate(rows));
                    break;
                }
            }
        }
        Ok(at)
    }

    /// `fields │ (length │ value) …`, fields = -1 at the end.
    #[inline]
    fn row(&mut self, bytes: &[u8]) -> Result<Found> {
        let Some((count, mut rest)) = bytes.split_first_chunk::<2>() else { return Ok(Found::Part) };
        let count = i16::from_be_bytes(*count);
        if count == -1 {
            return Ok(Found::End(2));
        }
        if count as usize != self.columns.len() {
            return Err(corrupt("a row has another number of fields than the table has columns"));
        }
        for (i, column) in self.columns.iter_mut().enumerate() {
            let Some((len, tail)) = rest.split_first_chunk::<4>() else { return Ok(Found::Part) };
            let len = i32::from_be_bytes(*len);
            rest = tail;
            if len < 0 {
                if len != -1 {
                    return Err(corrupt("a field has a negative length"));
                }
                column.push_null();
                continue;
            }
            let Some((value, tail)) = rest.split_at_checked(len as usize) else { return Ok(Found::Part) };
            rest = tail;
            if let Err(bad) = column.push(value) {
                return Err(bad_value(bad, &self.schema, i));
            }
        }
        Ok(Found::Row(bytes.len() - rest.len()))
    }

    fn batch(&mut self) -> Result<RecordBatch> {
        let mut arrays = Vec::with_capacity(self.columns.len());
        for (column, field) in self.columns.iter_mut().zip(self.schema.fields()) {
            let array = column.finish().map_err(|error| error.with("column", field.name()))?;
            if !field.is_nullable() && array.null_count() > 0 {
                // The schema was read before; the server would never send this for it.
                return Err(Error::new(ErrorKind::Transient, "a column became nullable while it was read")
                    .with("column", field.name()));
            }
            arrays.push(array);
        }
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(self.rows));
        self.rows = 0;
        self.bytes = 0;
        Ok(RecordBatch::try_new_with_options(SchemaRef::clone(&self.schema), arrays, &options)?)
    }
}

#[cold]
fn bad_value(bad: Bad, schema: &SchemaRef, column: usize) -> Error {
    bad.of(schema.field(column).name())
}

/// Length of the COPY header, `None` when it is not all there.
fn header_len(bytes: &[u8]) -> Result<Option<usize>> {
    let start = &bytes[..bytes.len().min(SIGNATURE.len())];
    if !SIGNATURE.starts_with(start) {
        return Err(corrupt("the rows are not a binary COPY"));
    }
    let Some(header) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
    let word = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if word(11) & CRITICAL_FLAGS != 0 {
        return Err(corrupt("the binary COPY has flags that are not known"));
    }
    let len = HEADER.saturating_add(word(15) as usize);
    if len > ROW_LIMIT {
        return Err(corrupt("the binary COPY has an impossible header"));
    }
    Ok((len <= bytes.len()).then_some(len))
}

fn corrupt(message: &str) -> Error {
    Error::new(ErrorKind::Corrupt, message)
}
