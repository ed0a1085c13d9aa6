//! Arrow batches into the rows of a bulk load.
//!
//! ```text
//! column ──carry(Arrow type, type in the target)──▶ Carried { wire, staged }      once a load
//! batch  ──Batch::new──▶ typed arrays ──row──▶ values of exactly the staged type   once a batch
//! ```
//!
//! The client sends what it is given: a value of another kind than its staging column ends the
//! connection, and some columns are declared in one way and sent in another. So staging columns have
//! only types that travel as they are (`carry` says which), and the merge statement casts where the target's
//! type is another. Every value is written exactly or not at all: what does not fit into the target's
//! column is found here, before the server sees it, and named by column.

mod cells;

use arrow::array::{Array, ArrayRef, Int8Array, RecordBatch};
use arrow::datatypes::{DataType, TimeUnit};
use tiberius::{ColumnData, TokenRow};

use self::cells::{cell, null, prepared};
use super::kind::Kind;
use super::statements::ASIDE;
use crate::delta::Op;
use crate::error::{Error, ErrorKind, Result};
use crate::table::HAS_BASE;
use crate::target::LETTER_COLUMN;

/// The longest `nvarchar(n)` whose bulk column is declared as it is sent: beyond, the client declares
/// `nvarchar(max)` and sends short lengths, which servers answer with error 4816.
pub(super) const LONGEST_BOUNDED_TEXT: u32 = 2_000;

/// The longest value in bytes that the client puts into a bulk load; longer ones go as parameters.
pub(super) const LONGEST_BULK_VALUE: usize = 65_535;

/// How the cells of a column are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire {
    Bit,
    /// One to eight bytes.
    Int(u8),
    Real,
    Float,
    Decimal(u8, u8),
    /// At most this many UTF-16 units.
    Text(Option<u32>),
    /// At most this many bytes.
    Bytes(Option<u32>),
    Guid,
    Date,
    Time(u8),
    /// `datetime2` of this scale.
    Timestamp(u8),
    /// In steps of 1/300 s; staged as `datetime2(7)`.
    DateTime,
    /// In minutes; staged as `datetime2(0)`.
    SmallDateTime,
    /// With the offset zero.
    Offset(u8),
    /// Any nested value, as JSON.
    Json(Option<u32>),
}

/// How a column travels into the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Carried {
    pub(super) wire: Wire,
    /// The staging column's type.
    pub(super) staged: String,
    /// The type that the merge statement casts to; `None` where the staged value is already of it.
    pub(super) cast: Option<String>,
}

/// How values of an Arrow type get into a column of the target, or `None` when they cannot.
pub(super) fn carry(arrow: &DataType, target: &str) -> Option<Carried> {
    let kind = Kind::parse(target)?;
    let same = |wire| Some(Carried { wire, staged: target.to_owned(), cast: None });
    let staged = |wire, staged: String| {
        let cast = (staged != target).then(|| target.to_owned());
        Some(Carried { wire, staged, cast })
    };
    let text = |length: Option<u32>| match length {
        Some(length) if length <= LONGEST_BOUNDED_TEXT => format!("nvarchar({length})"),
        _ => "nvarchar(max)".to_owned(),
    };
    match normal(arrow) {
        DataType::Boolean => (kind == Kind::Bit).then(|| same(Wire::Bit))?,
        DataType::Int32 | DataType::Int64 => match kind {
            Kind::Int(width) => same(Wire::Int(width)),
            Kind::Decimal(precision, scale) => same(Wire::Decimal(precision, scale)),
            _ => None,
        },
        DataType::Float32 => match kind {
            Kind::Real => same(Wire::Real),
            Kind::Float => same(Wire::Float),
            _ => None,
        },
        DataType::Float64 => (kind == Kind::Float).then(|| same(Wire::Float))?,
        DataType::Decimal128(..) => match kind {
            Kind::Decimal(precision, scale) => same(Wire::Decimal(precision, scale)),
            // The client would go by way of a float.
            Kind::Money => staged(Wire::Decimal(19, 4), "decimal(19,4)".into()),
            Kind::SmallMoney => staged(Wire::Decimal(10, 4), "decimal(10,4)".into()),
            _ => None,
        },
        DataType::Utf8 | DataType::Null => match kind {
            Kind::NVarchar(length) | Kind::NChar(length) | Kind::Varchar(length) | Kind::Char(length) => {
                staged(Wire::Text(length), text(length))
            }
            Kind::Xml => staged(Wire::Text(None), text(None)),
            _ => None,
        },
        DataType::Binary | DataType::FixedSizeBinary(_) => match kind {
            Kind::Guid if matches!(arrow, DataType::FixedSizeBinary(16)) => same(Wire::Guid),
            Kind::Varbinary(length) | Kind::Binary(length) => {
                let own = length.map_or("max".to_owned(), |length| length.to_string());
                staged(Wire::Bytes(length), format!("varbinary({own})"))
            }
            _ => None,
        },
        DataType::Date32 => (kind == Kind::Date).then(|| same(Wire::Date))?,
        DataType::Time64(_) => match kind {
            // The client sends the value's own scale and declares the default one, which is 7.
            Kind::Time(scale) => staged(Wire::Time(scale), "time(7)".into()),
            _ => None,
        },
        DataType::Timestamp(_, None) => match kind {
            Kind::DateTime2(scale) => same(Wire::Timestamp(scale)),
            Kind::DateTime => staged(Wire::DateTime, "datetime2(7)".into()),
            // The client declares `datetime` and sends a `smalldatetime`.
            Kind::SmallDateTime => staged(Wire::SmallDateTime, "datetime2(0)".into()),
            _ => None,
        },
        DataType::Timestamp(_, Some(_)) => match kind {
            Kind::Offset(scale) => staged(Wire::Offset(scale), "datetimeoffset(7)".into()),
            // In UTC, as the source's own `datetime2` or `timestamp` would be read.
            _ => None,
        },
        DataType::List(_) | DataType::Struct(_) | DataType::Map(..) => match kind {
            Kind::NVarchar(length) => staged(Wire::Json(length), text(length)),
            _ => None,
        },
        _ => None,
    }
}

/// The Arrow type that a column is brought to before it is written.
pub(super) fn normal(arrow: &DataType) -> DataType {
    use DataType as D;
    match arrow {
        D::Int8 | D::Int16 | D::UInt8 | D::UInt16 => D::Int32,
        D::UInt32 => D::Int64,
        D::UInt64 => D::Decimal128(20, 0),
        D::Float16 => D::Float32,
        D::Decimal32(precision, scale) | D::Decimal64(precision, scale) => D::Decimal128(*precision, *scale),
        D::LargeUtf8 | D::Utf8View => D::Utf8,
        D::LargeBinary | D::BinaryView => D::Binary,
        D::Time32(_) => D::Time64(TimeUnit::Microsecond),
        D::Dictionary(_, values) => normal(values),
        D::RunEndEncoded(_, values) => normal(values.data_type()),
        D::LargeList(element) | D::FixedSizeList(element, _) => D::List(element.clone()),
        other => other.clone(),
    }
}

/// A column of the batches, and how it is written.
#[derive(Debug, Clone)]
pub struct Output {
    /// Its place in the batch.
    pub(super) index: usize,
    /// Its name, for errors.
    pub(super) name: String,
    pub(super) wire: Wire,
    /// Whether it belongs to the key. A NULL there would equal no row, and be doubled.
    pub(super) key: bool,
}

impl Output {
    /// The column at this place in the batch, for one of the target's that has this type; `None` when its
    /// values cannot get into that.
    pub fn of(index: usize, name: &str, arrow: &DataType, target: &str) -> Option<Self> {
        let wire = carry(arrow, target)?.wire;
        Some(Self { index, name: name.to_owned(), wire, key: false })
    }

    /// Whether rows were there before, at this place in the batch.
    pub(super) fn base_mark(index: usize) -> Self {
        Self { index, name: HAS_BASE.to_owned(), wire: Wire::Int(4), key: false }
    }

    /// The letters of rows that may be refused, at this place in the batch.
    pub(super) fn letter(index: usize) -> Self {
        Self { index, name: LETTER_COLUMN.to_owned(), wire: Wire::Text(None), key: false }
    }
}

/// A batch, taken apart.
#[derive(Debug)]
pub struct Batch {
    columns: Vec<(Wire, ArrayRef)>,
    ops: Int8Array,
}

impl Batch {
    /// Takes a batch apart and finds what cannot be written. Its last column is `_op`.
    ///
    /// Fails with [`Data`](ErrorKind::Data) where a key is NULL.
    pub fn new(batch: &RecordBatch, outputs: &[Output]) -> Result<Self> {
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
                let array =
                    prepared(column, output.wire).map_err(|error| error.with("column", &output.name))?;
                Ok((output.wire, array))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self { columns, ops })
    }

    /// How many rows it has.
    pub fn rows(&self) -> usize {
        self.ops.len()
    }

    /// Whether a row is a delete.
    pub(super) fn deletes(&self, row: usize) -> bool {
        self.ops.value(row) == Op::Delete as i8
    }

    /// The cells of a row and its operation, each of exactly its staging column's type; and whether one of
    /// them is too long for a bulk load. Fails with [`Data`](ErrorKind::Data) where a value does not fit.
    pub fn row(&self, row: usize, outputs: &[Output]) -> Result<(TokenRow<'_>, bool)> {
        let (mut cells, too_long) = self.cells(row, outputs)?;
        cells.push(ColumnData::U8(Some(self.ops.value(row) as u8)));
        Ok((cells, too_long))
    }

    /// As [`row`](Self::row), with a number before the operation.
    pub(super) fn numbered(
        &self,
        row: usize,
        outputs: &[Output],
        number: i64,
    ) -> Result<(TokenRow<'_>, bool)> {
        let (mut cells, too_long) = self.cells(row, outputs)?;
        cells.push(ColumnData::I64(Some(number)));
        cells.push(ColumnData::U8(Some(self.ops.value(row) as u8)));
        Ok((cells, too_long))
    }

    /// A row that does not fit, put aside: of its values only those of the key, as far as they fit, and its
    /// letter, which is the last output.
    pub(super) fn aside(&self, row: usize, outputs: &[Output], number: i64) -> (TokenRow<'_>, bool) {
        let mut cells = TokenRow::with_capacity(self.columns.len() + 2);
        let mut too_long = false;
        for (column, (wire, array)) in self.columns.iter().enumerate() {
            let wanted = outputs[column].key || column + 1 == outputs.len();
            let value = if wanted && array.is_valid(row) { cell(*wire, array, row).ok() } else { None };
            let value = value.unwrap_or_else(|| null(*wire));
            too_long |= is_oversize(&value);
            cells.push(value);
        }
        cells.push(ColumnData::I64(Some(number)));
        cells.push(ColumnData::U8(Some(ASIDE)));
        (cells, too_long)
    }

    fn cells(&self, row: usize, outputs: &[Output]) -> Result<(TokenRow<'_>, bool)> {
        let mut cells = TokenRow::with_capacity(self.columns.len() + 2);
        let mut too_long = false;
        for (column, (wire, array)) in self.columns.iter().enumerate() {
            let value = if array.is_null(row) { Ok(null(*wire)) } else { cell(*wire, array, row) };
            let value = value.map_err(|problem| problem.error(&outputs[column].name))?;
            too_long |= is_oversize(&value);
            cells.push(value);
        }
        Ok((cells, too_long))
    }
}

/// Whether a value is too long for a bulk load.
fn is_oversize(value: &ColumnData<'_>) -> bool {
    match value {
        // Units cannot be more than bytes.
        ColumnData::String(Some(text)) if text.len() * 2 > LONGEST_BULK_VALUE => {
            text.encode_utf16().count() * 2 > LONGEST_BULK_VALUE
        }
        ColumnData::Binary(Some(bytes)) => bytes.len() > LONGEST_BULK_VALUE,
        _ => false,
    }
}
