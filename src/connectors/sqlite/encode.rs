//! Arrow values into SQLite's, each in a form that our source reads back as the same value.

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Date32Array, Decimal128Array, FixedSizeBinaryArray,
    Float64Array, Int64Array, RecordBatch, StringArray, Time64MicrosecondArray, TimestampMicrosecondArray,
};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, FieldRef, TimeUnit};
use arrow::json::writer::{EncoderOptions, make_encoder};
use rusqlite::Statement;
use rusqlite::types::{ToSqlOutput, ValueRef};

use super::types;
use super::value;
use crate::error::{Error, ErrorKind, Result};

/// One column of a batch, ready to be bound cell by cell.
pub(super) enum Cells {
    Integer(Int64Array),
    Real(Float64Array),
    Boolean(BooleanArray),
    Text(StringArray),
    Blob(BinaryArray),
    Fixed(FixedSizeBinaryArray),
    Uuid(FixedSizeBinaryArray),
    Date(Date32Array),
    Time(Time64MicrosecondArray),
    Timestamp { stamps: TimestampMicrosecondArray, utc: bool },
    Decimal(Decimal128Array, i8),
}

impl Cells {
    /// The column of a batch that a field of the table names.
    pub(super) fn of(batch: &RecordBatch, field: &Field) -> Result<Self> {
        let array = batch.column_by_name(field.name()).ok_or_else(|| {
            Error::new(ErrorKind::Internal, "a change lacks a column of its table")
                .with("column", field.name())
        })?;
        Self::from_array(array, field).map_err(|error| error.with("column", field.name()))
    }

    fn from_array(array: &ArrayRef, field: &Field) -> Result<Self> {
        let as_type = |data_type: DataType| -> Result<ArrayRef> {
            let options = CastOptions { safe: false, ..CastOptions::default() };
            cast_with_options(array, &data_type, &options).map_err(|source| {
                Error::new(ErrorKind::Data, format!("a value does not fit {data_type}")).because(source)
            })
        };
        Ok(match array.data_type() {
            DataType::Boolean => Self::Boolean(array.as_boolean().clone()),
            DataType::Int8
            | DataType::Int16
            | DataType::Int32
            | DataType::Int64
            | DataType::UInt8
            | DataType::UInt16
            | DataType::UInt32
            | DataType::UInt64 => Self::Integer(as_type(DataType::Int64)?.as_primitive().clone()),
            DataType::Float16 | DataType::Float32 | DataType::Float64 => {
                Self::Real(as_type(DataType::Float64)?.as_primitive().clone())
            }
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Dictionary(..) => {
                Self::Text(as_type(DataType::Utf8)?.as_string::<i32>().clone())
            }
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView => {
                Self::Blob(as_type(DataType::Binary)?.as_binary::<i32>().clone())
            }
            DataType::FixedSizeBinary(_) if types::is_uuid(field) => {
                Self::Uuid(array.as_fixed_size_binary().clone())
            }
            DataType::FixedSizeBinary(_) => Self::Fixed(array.as_fixed_size_binary().clone()),
            DataType::Date32 => Self::Date(array.as_primitive().clone()),
            DataType::Time64(TimeUnit::Microsecond) => Self::Time(array.as_primitive().clone()),
            DataType::Timestamp(TimeUnit::Microsecond, zone) => {
                let stamps: &TimestampMicrosecondArray = array.as_primitive();
                Self::Timestamp { stamps: stamps.clone(), utc: zone.is_some() }
            }
            DataType::Decimal128(_, scale) => Self::Decimal(array.as_primitive().clone(), *scale),
            DataType::List(_) | DataType::LargeList(_) | DataType::Struct(_) | DataType::Map(..) => {
                Self::Text(json(array, field)?)
            }
            other => {
                return Err(Error::new(ErrorKind::Unsupported, format!("sqlite has no place for {other}")));
            }
        })
    }

    /// Binds the cell of a row. `scratch` is memory for its text.
    pub(super) fn bind(
        &self,
        statement: &mut Statement<'_>,
        parameter: usize,
        row: usize,
        scratch: &mut String,
    ) -> rusqlite::Result<()> {
        let mut to =
            |value: ValueRef<'_>| statement.raw_bind_parameter(parameter, ToSqlOutput::Borrowed(value));
        if self.array().is_null(row) {
            return to(ValueRef::Null);
        }
        scratch.clear();
        match self {
            Self::Integer(array) => return to(ValueRef::Integer(array.value(row))),
            Self::Boolean(array) => return to(ValueRef::Integer(i64::from(array.value(row)))),
            // SQLite would keep a NaN as NULL.
            Self::Real(array) if array.value(row).is_nan() => return to(ValueRef::Text(b"NaN")),
            Self::Real(array) => return to(ValueRef::Real(array.value(row))),
            Self::Text(array) => return to(ValueRef::Text(array.value(row).as_bytes())),
            Self::Blob(array) => return to(ValueRef::Blob(array.value(row))),
            Self::Fixed(array) => return to(ValueRef::Blob(array.value(row))),
            Self::Uuid(array) => {
                let mut buffer = uuid::Uuid::encode_buffer();
                let id = uuid::Uuid::from_slice(array.value(row)).unwrap_or_default();
                return to(ValueRef::Text(id.hyphenated().encode_lower(&mut buffer).as_bytes()));
            }
            Self::Date(array) => {
                value::write_date(scratch, array.value(row)).ok_or_else(beyond_calendar)?;
            }
            Self::Time(array) => value::write_clock(scratch, array.value(row)),
            Self::Timestamp { stamps, utc } => {
                value::write_timestamp(scratch, stamps.value(row)).ok_or_else(beyond_calendar)?;
                if *utc {
                    scratch.push_str("+00:00");
                }
            }
            Self::Decimal(array, scale) => value::write_decimal(scratch, array.value(row), *scale),
        }
        to(ValueRef::Text(scratch.as_bytes()))
    }

    fn array(&self) -> &dyn Array {
        match self {
            Self::Integer(array) => array,
            Self::Real(array) => array,
            Self::Boolean(array) => array,
            Self::Text(array) => array,
            Self::Blob(array) => array,
            Self::Fixed(array) | Self::Uuid(array) => array,
            Self::Date(array) => array,
            Self::Time(array) => array,
            Self::Timestamp { stamps, .. } => stamps,
            Self::Decimal(array, _) => array,
        }
    }
}

/// SQLite has no word for it, so the nearest: the statement refuses the value.
fn beyond_calendar() -> rusqlite::Error {
    rusqlite::Error::ToSqlConversionFailure("a time lies beyond the calendar's years".into())
}

/// Nested values as JSON text.
fn json(array: &ArrayRef, field: &Field) -> Result<StringArray> {
    let field: FieldRef = field.clone().into();
    let options = EncoderOptions::default().with_explicit_nulls(true);
    let mut encoder = make_encoder(&field, array, &options)?;
    let mut text = Vec::new();
    (0..array.len())
        .map(|row| {
            if array.is_null(row) {
                return Ok(None);
            }
            text.clear();
            encoder.encode(row, &mut text);
            String::from_utf8(text.clone())
                .map(Some)
                .map_err(|source| Error::new(ErrorKind::Internal, "JSON is not UTF-8").because(source))
        })
        .collect()
}
