//! Arrow batches into rows of text, for `LOAD DATA` or for an `INSERT`.
//!
//! ```text
//! column ──carry(Arrow type, type in the target)──▶ Carried { wire, staged }      once a load
//! batch  ──Batch::new──▶ arrays of one form each ──write──▶ lines of text         once a batch
//! ```
//!
//! The server is lenient: it rounds what is too fine, cuts blanks off, and makes warnings of errors where the
//! rows come from the client. So every value is written exactly or not at all: what does not fit into the
//! target's column is found here, and named by column.

mod cells;

use arrow::array::{Array, ArrayRef, Int8Array, RecordBatch};
use arrow::datatypes::{DataType, TimeUnit};

use self::cells::{Form, cell, prepared};
use super::kind::Kind;
use super::statements::ASIDE;
use crate::delta::Op;
use crate::error::{Error, ErrorKind, Result};
use crate::table::HAS_BASE;
use crate::target::LETTER_COLUMN;

/// How the cells of a column are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire {
    Bool,
    /// A whole number between these two.
    Whole(i128, i128),
    Float,
    Double,
    Decimal(u8, u8),
    /// At most so many characters and bytes; `padded` columns lose blanks at the end.
    Text {
        characters: Option<u32>,
        bytes: u64,
        padded: bool,
    },
    /// At most so many bytes, or exactly.
    Bytes {
        most: u64,
        exactly: bool,
    },
    Uuid,
    Date,
    /// With so many digits behind the second.
    Time(u8),
    Moment(u8),
    /// Any nested value.
    Json(u64),
}

/// How a column travels into the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Carried {
    pub(super) wire: Wire,
    /// The staging column's type.
    pub(super) staged: String,
}

/// How values of an Arrow type get into a column of the target, or `None` when they cannot.
pub(super) fn carry(arrow: &DataType, target: &str) -> Option<Carried> {
    let kind = Kind::parse(target)?;
    let staged = |wire, staged: &str| Some(Carried { wire, staged: staged.to_owned() });
    let whole = || {
        let (low, high) = kind.range()?;
        let own = if matches!(kind, Kind::Bit(_)) { "bigint unsigned" } else { target };
        staged(Wire::Whole(low, high), own)
    };
    let text = |characters: Option<u32>, bytes: u64, padded: bool| {
        staged(Wire::Text { characters, bytes, padded }, "longtext")
    };
    match (normal(arrow), kind) {
        (DataType::Boolean, Kind::Int(..)) => staged(Wire::Bool, target),
        (DataType::Boolean, Kind::Bit(_)) => staged(Wire::Bool, "bigint unsigned"),
        (DataType::Int64 | DataType::Decimal128(_, 0), Kind::Int(..) | Kind::Year | Kind::Bit(_)) => whole(),
        (DataType::Int64 | DataType::Decimal128(..), Kind::Decimal(precision, scale)) => {
            staged(Wire::Decimal(precision, scale), &format!("decimal({precision},{scale})"))
        }
        (DataType::Float32, Kind::Float) => staged(Wire::Float, "float"),
        (DataType::Float32 | DataType::Float64, Kind::Double) => staged(Wire::Double, "double"),
        (DataType::Utf8, Kind::Varchar(length)) => text(Some(length), u64::MAX, false),
        (DataType::Utf8, Kind::Char(length)) => text(Some(length), u64::MAX, true),
        (DataType::Utf8, Kind::Text(bytes)) => text(None, bytes, false),
        (DataType::Utf8, Kind::Checked) => text(None, u64::MAX, false),
        (DataType::Binary, Kind::Binary(length)) => {
            staged(Wire::Bytes { most: length.into(), exactly: true }, &format!("varbinary({length})"))
        }
        (DataType::Binary, Kind::Varbinary(length)) => {
            staged(Wire::Bytes { most: length.into(), exactly: false }, target)
        }
        (DataType::Binary, Kind::Blob(bytes)) => {
            staged(Wire::Bytes { most: bytes, exactly: false }, "longblob")
        }
        (DataType::Binary, Kind::Uuid) if matches!(arrow, DataType::FixedSizeBinary(16)) => {
            staged(Wire::Uuid, "char(36)")
        }
        (DataType::Date32, Kind::Date) => staged(Wire::Date, "date"),
        (DataType::Time64(_), Kind::Time(digits)) => staged(Wire::Time(digits), target),
        (DataType::Timestamp(..), Kind::DateTime(digits)) => staged(Wire::Moment(digits), target),
        // Only an instant: what has no zone would be taken for UTC.
        (DataType::Timestamp(_, Some(_)), Kind::Timestamp(digits)) => {
            staged(Wire::Moment(digits), &format!("datetime({digits})"))
        }
        (DataType::List(_) | DataType::Struct(_) | DataType::Map(..), Kind::Text(bytes)) => {
            staged(Wire::Json(bytes), "longtext")
        }
        (DataType::List(_) | DataType::Struct(_) | DataType::Map(..), Kind::Checked) => {
            staged(Wire::Json(u64::MAX), "longtext")
        }
        _ => None,
    }
}

/// The Arrow type that a column is brought to before it is written.
fn normal(arrow: &DataType) -> DataType {
    use DataType as D;
    match arrow {
        D::Int8 | D::Int16 | D::Int32 | D::UInt8 | D::UInt16 | D::UInt32 => D::Int64,
        D::UInt64 => D::Decimal128(20, 0),
        D::Float16 => D::Float32,
        D::Decimal32(precision, scale) | D::Decimal64(precision, scale) => D::Decimal128(*precision, *scale),
        D::LargeUtf8 | D::Utf8View | D::Null => D::Utf8,
        D::LargeBinary | D::BinaryView | D::FixedSizeBinary(_) => D::Binary,
        D::Time32(_) => D::Time64(TimeUnit::Microsecond),
        D::Dictionary(_, values) => normal(values),
        D::RunEndEncoded(_, values) => normal(values.data_type()),
        D::LargeList(element) | D::FixedSizeList(element, _) => D::List(element.clone()),
        other => other.clone(),
    }
}

/// A column of the batches, and how it is written.
#[derive(Debug, Clone)]
pub(super) struct Output {
    /// Its place in the batch.
    pub(super) index: usize,
    /// Its name, for errors.
    pub(super) name: String,
    pub(super) wire: Wire,
    /// Whether it belongs to the key. A NULL there would equal no row, and be doubled.
    pub(super) key: bool,
}

impl Output {
    /// Whether rows were there before, at this place in the batch.
    pub(super) fn base_mark(index: usize) -> Self {
        Self { index, name: HAS_BASE.to_owned(), wire: Wire::Whole(0, 1), key: false }
    }

    /// The letters of rows that are told apart, at this place in the batch.
    pub(super) fn letter(index: usize) -> Self {
        let wire = Wire::Text { characters: None, bytes: u64::MAX, padded: false };
        Self { index, name: LETTER_COLUMN.to_owned(), wire, key: false }
    }
}

/// How a row looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// A line of `LOAD DATA`: tabs between, a backslash before what has a meaning of its own.
    Line,
    /// `(1,'a',NULL)` of an INSERT.
    Values,
}

/// A batch, taken apart.
pub(super) struct Batch<'a> {
    outputs: &'a [Output],
    columns: Vec<ArrayRef>,
    ops: Int8Array,
}

impl<'a> Batch<'a> {
    /// Takes a batch apart and finds what cannot be written. Its last column is `_op`.
    ///
    /// Fails with [`Data`](ErrorKind::Data) where a key is NULL.
    pub(super) fn new(batch: &RecordBatch, outputs: &'a [Output]) -> Result<Self> {
        let ops = batch
            .columns()
            .last()
            .and_then(|column| column.as_any().downcast_ref::<Int8Array>())
            .filter(|ops| ops.null_count() == 0)
            .ok_or_else(|| Error::new(ErrorKind::Internal, "changes must end with their operations"))?
            .clone();
        let columns = outputs
            .iter()
            .map(|output| {
                let column = batch.column(output.index);
                if output.key && column.logical_null_count() > 0 {
                    return Err(Error::new(
                        ErrorKind::Data,
                        "a key is NULL, so its row cannot be told apart",
                    )
                    .with("column", &output.name)
                    .hint("choose key columns that are never NULL, or use `mode: append`"));
                }
                prepared(column, output.wire).map_err(|error| error.with("column", &output.name))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self { outputs, columns, ops })
    }

    /// How many rows it has.
    pub(super) fn rows(&self) -> usize {
        self.ops.len()
    }

    /// Whether a row is a delete.
    pub(super) fn deletes(&self, row: usize) -> bool {
        self.ops.value(row) == Op::Delete as i8
    }

    /// Appends a row, its number if it has one, and its operation. Fails with [`Data`](ErrorKind::Data) where a
    /// value does not fit, and has then appended nothing.
    pub(super) fn write(
        &self,
        row: usize,
        format: Format,
        number: Option<u64>,
        out: &mut Vec<u8>,
        scratch: &mut Vec<u8>,
    ) -> Result<()> {
        let begin = out.len();
        let op = self.ops.value(row) as u8;
        let written = self.append(row, format, (number, op), out, |output, array, out| {
            scratch.clear();
            let form =
                cell(output.wire, array, row, scratch).map_err(|problem| problem.error(&output.name))?;
            escape(format, form, scratch, out);
            Ok(())
        });
        if written.is_err() {
            out.truncate(begin);
        }
        written
    }

    /// Appends a row that does not fit, put aside: of its values only those of the key, as far as they fit, and
    /// its letter, which is the last output.
    pub(super) fn write_aside(
        &self,
        row: usize,
        format: Format,
        number: u64,
        out: &mut Vec<u8>,
        scratch: &mut Vec<u8>,
    ) -> Result<()> {
        let letter = self.outputs.last().map(|output| output.index);
        self.append(row, format, (Some(number), ASIDE), out, |output, array, out| {
            scratch.clear();
            let wanted = output.key || Some(output.index) == letter;
            match wanted.then(|| cell(output.wire, array, row, scratch)) {
                Some(Ok(form)) => escape(format, form, scratch, out),
                _ => out.extend_from_slice(null(format)),
            }
            Ok(())
        })
    }

    fn append(
        &self,
        row: usize,
        format: Format,
        (number, op): (Option<u64>, u8),
        out: &mut Vec<u8>,
        mut value: impl FnMut(&Output, &ArrayRef, &mut Vec<u8>) -> Result<()>,
    ) -> Result<()> {
        let (open, between, close) = match format {
            Format::Line => ("", '\t', "\n"),
            Format::Values => ("(", ',', ")"),
        };
        out.extend_from_slice(open.as_bytes());
        for (output, array) in self.outputs.iter().zip(&self.columns) {
            match array.is_null(row) {
                true => out.extend_from_slice(null(format)),
                false => value(output, array, out)?,
            }
            out.push(between as u8);
        }
        let number = number.map(|number| format!("{number}{between}")).unwrap_or_default();
        out.extend_from_slice(format!("{number}{op}{close}").as_bytes());
        Ok(())
    }
}

fn null(format: Format) -> &'static [u8] {
    if format == Format::Line { b"\\N" } else { b"NULL" }
}

fn escape(format: Format, form: Form, cell: &[u8], out: &mut Vec<u8>) {
    match (format, form) {
        (Format::Line, Form::Bare) => out.extend_from_slice(cell),
        (Format::Line, _) => escape_line(cell, out),
        (Format::Values, Form::Bytes) => hex(cell, out),
        (Format::Values, _) => quote(cell, out),
    }
}

/// What would end a field or a line, and the backslash itself, behind a backslash.
fn escape_line(bytes: &[u8], out: &mut Vec<u8>) {
    for byte in bytes {
        match byte {
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\t' => out.extend_from_slice(b"\\t"),
            b'\n' => out.extend_from_slice(b"\\n"),
            0 => out.extend_from_slice(b"\\0"),
            other => out.push(*other),
        }
    }
}

fn quote(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(b'\'');
    for byte in bytes {
        if matches!(byte, b'\'' | b'\\') {
            out.push(b'\\');
        }
        out.push(*byte);
    }
    out.push(b'\'');
}

fn hex(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    out.extend_from_slice(b"X'");
    for byte in bytes {
        out.extend([DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
    out.push(b'\'');
}

#[cfg(test)]
mod tests;
