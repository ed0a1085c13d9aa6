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
use crate::connectors::sql::Unfit;
use crate::error::{Error, ErrorKind, Result};
use crate::source::OutOfRange;

pub use super::codec::Codec;

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
    /// Rows that go aside, where they may.
    unfit: Option<Unfit>,
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
            unfit: None,
        }
    }

    /// Where rows with values that do not fit may go aside.
    pub(super) fn with_unfit(self, unfit: Option<Unfit>) -> Self {
        Self { unfit, ..self }
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

    /// Takes one row as it stands in a COPY, without the message around it; says when a batch is full.
    pub(super) fn take_row(&mut self, row: &[u8]) -> Result<Option<RecordBatch>> {
        match self.row(row)? {
            Found::Row(len) if len == row.len() => {
                self.rows += 1;
                self.bytes += len;
            }
            _ => return Err(corrupt("a row is not as long as it says")),
        }
        let full = self.rows >= self.batch_rows || self.bytes >= self.batch_bytes;
        if full { self.batch().map(Some) } else { Ok(None) }
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
                    if let Some(unfit) = &mut self.unfit {
                        unfit.forget(rows);
                    }
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
                let error = bad_value(bad, &self.schema, i);
                let Some(unfit) = &mut self.unfit else { return Err(error) };
                unfit.note(self.rows, i, error)?;
                column.truncate(self.rows);
                column.push_null();
            }
        }
        Ok(Found::Row(bytes.len() - rest.len()))
    }

    fn batch(&mut self) -> Result<RecordBatch> {
        let mut arrays = Vec::with_capacity(self.columns.len());
        for (column, field) in self.columns.iter_mut().zip(self.schema.fields()) {
            arrays.push(column.finish().map_err(|error| error.with("column", field.name()))?);
        }
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
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(rows));
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::{Field, Schema};
    use proptest::prelude::*;

    use super::*;

    fn decoder(codecs: &[Codec], batch_rows: usize) -> Decoder {
        let fields =
            codecs.iter().enumerate().map(|(i, codec)| Field::new(i.to_string(), codec.data_type(), true));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        Decoder::new(schema, codecs, OutOfRange::Null, batch_rows, 1 << 20)
    }

    /// A binary COPY of two columns, `int4` and `text`, without the framing of messages.
    fn copy(rows: &[(Option<i32>, Option<&str>)]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([0; 8]);
        for (number, text) in rows {
            bytes.extend(2i16.to_be_bytes());
            let number = number.map(i32::to_be_bytes);
            for field in [number.as_ref().map(|n| n.as_slice()), text.map(str::as_bytes)] {
                bytes.extend(field.map_or(-1, |field| field.len() as i32).to_be_bytes());
                bytes.extend(field.unwrap_or_default());
            }
        }
        bytes.extend((-1i16).to_be_bytes());
        bytes
    }

    fn message(payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![b'd'];
        bytes.extend((payload.len() as u32 + 4).to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    fn all(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<RecordBatch>> {
        let (mut at, mut batches) = (0, Vec::new());
        while at < block.len() {
            let (used, batch) = decoder.feed(&block[at..])?;
            at += used;
            batches.extend(batch);
        }
        decoder.end_of_copy()?;
        batches.extend(decoder.flush()?);
        Ok(batches)
    }

    const ROWS: [(Option<i32>, Option<&str>); 4] =
        [(Some(1), Some("one")), (None, Some("")), (Some(-1), None), (None, None)];
    const CODECS: [Codec; 2] = [Codec::Int32, Codec::Text];

    proptest! {
        #[test]
        fn messages_may_be_cut_anywhere(cuts in proptest::collection::vec(1usize..20, 1..80)) {
            let bytes = copy(&ROWS);
            let (mut rest, mut block) = (bytes.as_slice(), Vec::new());
            for cut in cuts {
                let (head, tail) = rest.split_at(cut.min(rest.len()));
                block.extend(message(head));
                rest = tail;
            }
            block.extend(message(rest));
            let whole = all(&mut decoder(&CODECS, 100), &message(&bytes)).unwrap();
            prop_assert_eq!(all(&mut decoder(&CODECS, 100), &block).unwrap(), whole);
        }

        #[test]
        fn damage_is_an_error_and_never_a_panic(at in 0usize..80, byte in any::<u8>()) {
            let mut bytes = copy(&ROWS);
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = all(&mut decoder(&CODECS, 2), &message(&bytes));
        }

        #[test]
        fn nested_damage_is_an_error_and_never_a_panic(value in proptest::collection::vec(any::<u8>(), 0..60)) {
            let pair = Codec::Struct(vec![("a".into(), Codec::Int32), ("b".into(), Codec::Text)]);
            for codec in [Codec::List(1, Box::new(Codec::Int32)), Codec::List(2, Box::new(pair.clone())), pair] {
                let mut column = Column::new(&codec, 1, OutOfRange::Null);
                let _ = column.push(&value);
                column.truncate(0);
                column.push_null();
                prop_assert_eq!(column.finish().unwrap().null_count(), 1);
            }
        }

        #[test]
        fn every_timestamp_is_exact_or_replaced(micros in any::<i64>()) {
            let mut column = Column::new(&Codec::Timestamp, 1, OutOfRange::Null);
            column.push(&micros.to_be_bytes()).unwrap();
            let array = column.finish().unwrap();
            let array = arrow::array::AsArray::as_primitive::<arrow::datatypes::TimestampMicrosecondType>(&array);
            let exact = micros.checked_add(super::super::column::EPOCH_MICROS);
            let infinite = micros == i64::MAX || micros == i64::MIN;
            let expected = exact.filter(|_| !infinite);
            prop_assert_eq!(array.iter().next(), Some(expected));
        }
    }

    #[test]
    fn batches_are_cut_and_copies_joined() {
        let mut decoder = decoder(&CODECS, 3);
        let block = message(&copy(&ROWS));
        let (used, batch) = decoder.feed(&block).unwrap();
        assert_eq!((used, batch.unwrap().num_rows()), (block.len(), 4), "one message is not divided");
        decoder.end_of_copy().unwrap();
        decoder.feed(&message(&copy(&ROWS[..1]))).unwrap();
        decoder.end_of_copy().unwrap();
        decoder.feed(&message(&copy(&ROWS[1..2]))).unwrap();
        decoder.end_of_copy().unwrap();
        assert_eq!(decoder.flush().unwrap().unwrap().num_rows(), 2);
        assert!(decoder.flush().unwrap().is_none());
    }

    #[test]
    fn an_end_that_did_not_come_is_an_error() {
        let bytes = copy(&ROWS);
        let error = all(&mut decoder(&CODECS, 10), &message(&bytes[..bytes.len() - 2])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
}
