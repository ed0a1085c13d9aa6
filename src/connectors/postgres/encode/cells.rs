//! A column of a batch as a typed slice, and how each of its cells is written.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BinaryViewArray, BooleanArray, FixedSizeBinaryArray,
    LargeBinaryArray, LargeStringArray, StringArray, StringViewArray,
};
use arrow::buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Field, Float32Type, Float64Type, Int32Type, Int64Type,
    Time64MicrosecondType, Time64NanosecondType, TimeUnit, TimestampMicrosecondType,
    TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType,
};
use bytes::{BufMut, BytesMut};

use super::{Problem, Wire, json, numeric};
use crate::error::{Error, ErrorKind, Result};

/// Days from 1970-01-01 to Postgres' own epoch, 2000-01-01.
const EPOCH_DAYS: i32 = 10_957;
/// The same in microseconds.
const EPOCH_MICROS: i64 = EPOCH_DAYS as i64 * 86_400_000_000;

/// The Arrow type that a column is brought to before it is written: one form for each kind of value.
/// Strings and bytes stay in whatever layout they have, since converting them would copy them.
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
        D::List(element) | D::LargeList(element) | D::FixedSizeList(element, _) => {
            let inner = normal(element.data_type());
            D::List(Arc::new(Field::new(element.name(), inner, element.is_nullable())))
        }
        other => other.clone(),
    }
}

/// One column of one batch.
pub(super) struct Cells {
    nulls: Option<NullBuffer>,
    values: Values,
}

enum Values {
    Bool(BooleanArray),
    Int4To2(ScalarBuffer<i32>),
    Int4(ScalarBuffer<i32>),
    Int4To8(ScalarBuffer<i32>),
    Int4ToOid(ScalarBuffer<i32>),
    Int4ToNumeric(ScalarBuffer<i32>),
    Int8To2(ScalarBuffer<i64>),
    Int8To4(ScalarBuffer<i64>),
    Int8(ScalarBuffer<i64>),
    Int8ToOid(ScalarBuffer<i64>),
    Int8ToNumeric(ScalarBuffer<i64>),
    Float4(ScalarBuffer<f32>),
    Float4To8(ScalarBuffer<f32>),
    Float8(ScalarBuffer<f64>),
    Decimal(ScalarBuffer<i128>, i8),
    DecimalToXid8(ScalarBuffer<i128>),
    Text(Strings),
    Jsonb(Strings),
    TextToNumeric(Strings),
    Bytes(Blobs),
    Fixed(FixedSizeBinaryArray),
    Date(ScalarBuffer<i32>),
    Time(ScalarBuffer<i64>, Unit),
    Timestamp(ScalarBuffer<i64>, Unit),
    Json { array: ArrayRef, version: bool },
    List { layers: Vec<Layer>, elements: Box<Cells>, oid: u32 },
    Nothing,
}

enum Strings {
    Small(StringArray),
    Large(LargeStringArray),
    View(StringViewArray),
}

impl Strings {
    fn get(&self, row: usize) -> &str {
        match self {
            Self::Small(array) => array.value(row),
            Self::Large(array) => array.value(row),
            Self::View(array) => array.value(row),
        }
    }
}

enum Blobs {
    Small(BinaryArray),
    Large(LargeBinaryArray),
    View(BinaryViewArray),
}

impl Blobs {
    fn get(&self, row: usize) -> &[u8] {
        match self {
            Self::Small(array) => array.value(row),
            Self::Large(array) => array.value(row),
            Self::View(array) => array.value(row),
        }
    }
}

/// One dimension of an array.
struct Layer {
    offsets: OffsetBuffer<i32>,
    nulls: Option<NullBuffer>,
}

/// How a count of time units becomes microseconds.
#[derive(Clone, Copy)]
enum Unit {
    Times(i64),
    Per(i64),
}

impl Unit {
    fn of(unit: TimeUnit) -> Self {
        match unit {
            TimeUnit::Second => Self::Times(1_000_000),
            TimeUnit::Millisecond => Self::Times(1_000),
            TimeUnit::Microsecond => Self::Times(1),
            TimeUnit::Nanosecond => Self::Per(1_000),
        }
    }

    fn micros(self, value: i64) -> Result<i64, Problem> {
        match self {
            Self::Times(1) => Ok(value),
            Self::Times(factor) => value.checked_mul(factor).ok_or(Problem::Range),
            Self::Per(divisor) if value % divisor == 0 => Ok(value / divisor),
            Self::Per(_) => Err(Problem::Fraction),
        }
    }
}

impl Cells {
    pub(super) fn new(column: &ArrayRef, wire: &Wire) -> Result<Self> {
        if matches!(wire, Wire::JsonText | Wire::JsonBinary) {
            let values = Values::Json { array: column.clone(), version: *wire == Wire::JsonBinary };
            return Ok(Self { nulls: column.logical_nulls(), values });
        }
        let column = normalized(column)?;
        let values = match (wire, column.data_type()) {
            (_, DataType::Null) => Values::Nothing,
            (Wire::Bool, DataType::Boolean) => Values::Bool(column.as_boolean().clone()),
            (_, DataType::Int32) => {
                let values = column.as_primitive::<Int32Type>().values().clone();
                match wire {
                    Wire::Int2 => Values::Int4To2(values),
                    Wire::Int4 => Values::Int4(values),
                    Wire::Int8 => Values::Int4To8(values),
                    Wire::Oid => Values::Int4ToOid(values),
                    Wire::Numeric => Values::Int4ToNumeric(values),
                    _ => return Err(unexpected(&column, wire)),
                }
            }
            (_, DataType::Int64) => {
                let values = column.as_primitive::<Int64Type>().values().clone();
                match wire {
                    Wire::Int2 => Values::Int8To2(values),
                    Wire::Int4 => Values::Int8To4(values),
                    Wire::Int8 => Values::Int8(values),
                    Wire::Oid => Values::Int8ToOid(values),
                    Wire::Numeric => Values::Int8ToNumeric(values),
                    _ => return Err(unexpected(&column, wire)),
                }
            }
            (Wire::Float4, DataType::Float32) => {
                Values::Float4(column.as_primitive::<Float32Type>().values().clone())
            }
            (Wire::Float8, DataType::Float32) => {
                Values::Float4To8(column.as_primitive::<Float32Type>().values().clone())
            }
            (Wire::Float8, DataType::Float64) => {
                Values::Float8(column.as_primitive::<Float64Type>().values().clone())
            }
            (Wire::Numeric, DataType::Decimal128(_, scale)) => {
                Values::Decimal(column.as_primitive::<Decimal128Type>().values().clone(), *scale)
            }
            (Wire::Xid8, DataType::Decimal128(_, 0)) => {
                Values::DecimalToXid8(column.as_primitive::<Decimal128Type>().values().clone())
            }
            (
                Wire::Text | Wire::Jsonb | Wire::Numeric,
                DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View,
            ) => {
                let strings = match column.data_type() {
                    DataType::Utf8 => Strings::Small(column.as_string::<i32>().clone()),
                    DataType::LargeUtf8 => Strings::Large(column.as_string::<i64>().clone()),
                    _ => Strings::View(column.as_string_view().clone()),
                };
                match wire {
                    Wire::Text => Values::Text(strings),
                    Wire::Jsonb => Values::Jsonb(strings),
                    _ => Values::TextToNumeric(strings),
                }
            }
            (Wire::Bytes, DataType::Binary) => Values::Bytes(Blobs::Small(column.as_binary::<i32>().clone())),
            (Wire::Bytes, DataType::LargeBinary) => {
                Values::Bytes(Blobs::Large(column.as_binary::<i64>().clone()))
            }
            (Wire::Bytes, DataType::BinaryView) => {
                Values::Bytes(Blobs::View(column.as_binary_view().clone()))
            }
            (Wire::Bytes, DataType::FixedSizeBinary(_)) => {
                Values::Fixed(column.as_fixed_size_binary().clone())
            }
            (Wire::Date, DataType::Date32) => {
                Values::Date(column.as_primitive::<Date32Type>().values().clone())
            }
            (Wire::Time, DataType::Time64(unit)) => {
                let values = match unit {
                    TimeUnit::Nanosecond => column.as_primitive::<Time64NanosecondType>().values(),
                    _ => column.as_primitive::<Time64MicrosecondType>().values(),
                };
                Values::Time(values.clone(), Unit::of(*unit))
            }
            (Wire::Timestamp, DataType::Timestamp(unit, _)) => {
                let values = match unit {
                    TimeUnit::Second => column.as_primitive::<TimestampSecondType>().values(),
                    TimeUnit::Millisecond => column.as_primitive::<TimestampMillisecondType>().values(),
                    TimeUnit::Microsecond => column.as_primitive::<TimestampMicrosecondType>().values(),
                    TimeUnit::Nanosecond => column.as_primitive::<TimestampNanosecondType>().values(),
                };
                Values::Timestamp(values.clone(), Unit::of(*unit))
            }
            (Wire::Array { element, oid }, DataType::List(_)) => {
                let mut layers = Vec::new();
                let mut inner = column.clone();
                while let DataType::List(_) = inner.data_type() {
                    let list = inner.as_list::<i32>();
                    layers.push(Layer { offsets: list.offsets().clone(), nulls: list.nulls().cloned() });
                    let values = list.values().clone();
                    inner = values;
                }
                Values::List { layers, elements: Box::new(Self::new(&inner, element)?), oid: *oid }
            }
            _ => return Err(unexpected(&column, wire)),
        };
        Ok(Self { nulls: column.logical_nulls().filter(|nulls| nulls.null_count() > 0), values })
    }

    /// Writes one cell with its length; -1 is NULL.
    #[inline]
    pub(super) fn write(&self, row: usize, buffer: &mut BytesMut) -> Result<(), Problem> {
        if let Some(nulls) = &self.nulls
            && nulls.is_null(row)
        {
            buffer.put_i32(-1);
            return Ok(());
        }
        match &self.values {
            Values::Int4(values) => put4(buffer, values[row].to_be_bytes()),
            Values::Int8(values) => put8(buffer, values[row].to_be_bytes()),
            Values::Text(strings) => put(buffer, strings.get(row).as_bytes())?,
            Values::Decimal(values, scale) => numeric::write_decimal(values[row], *scale, buffer)?,
            Values::Date(values) => {
                let days = values[row].checked_sub(EPOCH_DAYS).filter(|days| *days != i32::MIN);
                put4(buffer, days.ok_or(Problem::Range)?.to_be_bytes());
            }
            Values::Timestamp(values, unit) => {
                let micros = unit.micros(values[row])?.checked_sub(EPOCH_MICROS);
                // The smallest number means -infinity.
                let micros = micros.filter(|micros| *micros != i64::MIN).ok_or(Problem::Range)?;
                put8(buffer, micros.to_be_bytes());
            }
            Values::Float8(values) => put8(buffer, values[row].to_be_bytes()),
            Values::Bool(values) => {
                buffer.put_i32(1);
                buffer.put_u8(u8::from(values.value(row)));
            }
            Values::Fixed(values) => put(buffer, values.value(row))?,
            Values::Bytes(blobs) => put(buffer, blobs.get(row))?,
            Values::Jsonb(strings) => {
                let text = strings.get(row).as_bytes();
                buffer.put_i32(length(text.len() + 1)?);
                buffer.put_u8(1);
                buffer.put_slice(text);
            }
            Values::TextToNumeric(strings) => numeric::write_text(strings.get(row), buffer)?,
            Values::Int4To2(values) => put2(buffer, i16::try_from(values[row]).map_err(|_| Problem::Range)?),
            Values::Int4To8(values) => put8(buffer, i64::from(values[row]).to_be_bytes()),
            Values::Int4ToOid(values) => {
                put4(buffer, u32::try_from(values[row]).map_err(|_| Problem::Range)?.to_be_bytes());
            }
            Values::Int4ToNumeric(values) => numeric::write_decimal(values[row].into(), 0, buffer)?,
            Values::Int8To2(values) => put2(buffer, i16::try_from(values[row]).map_err(|_| Problem::Range)?),
            Values::Int8To4(values) => {
                put4(buffer, i32::try_from(values[row]).map_err(|_| Problem::Range)?.to_be_bytes());
            }
            Values::Int8ToOid(values) => {
                put4(buffer, u32::try_from(values[row]).map_err(|_| Problem::Range)?.to_be_bytes());
            }
            Values::Int8ToNumeric(values) => numeric::write_decimal(values[row].into(), 0, buffer)?,
            Values::Float4(values) => put4(buffer, values[row].to_be_bytes()),
            Values::Float4To8(values) => put8(buffer, f64::from(values[row]).to_be_bytes()),
            Values::DecimalToXid8(values) => {
                put8(buffer, u64::try_from(values[row]).map_err(|_| Problem::Range)?.to_be_bytes());
            }
            Values::Time(values, unit) => put8(buffer, unit.micros(values[row])?.to_be_bytes()),
            Values::Json { array, version } => {
                let start = buffer.len();
                buffer.put_i32(0);
                if *version {
                    buffer.put_u8(1);
                }
                json::write(array, row, buffer)?;
                let written = length(buffer.len() - start - 4)?;
                buffer[start..start + 4].copy_from_slice(&written.to_be_bytes());
            }
            Values::List { layers, elements, oid } => write_array(layers, elements, *oid, row, buffer)?,
            Values::Nothing => buffer.put_i32(-1),
        }
        Ok(())
    }
}

/// `{ i32 dimensions, i32 has nulls, oid, dimensions × { i32 length, i32 first index }, elements }`
fn write_array(
    layers: &[Layer],
    elements: &Cells,
    oid: u32,
    row: usize,
    buffer: &mut BytesMut,
) -> Result<(), Problem> {
    let start = buffer.len();
    let range =
        |layer: &Layer, index: usize| (layer.offsets[index] as usize, layer.offsets[index + 1] as usize);
    let (mut from, mut to) = range(&layers[0], row);

    buffer.put_i32(0); // the length, once it is known
    let dimensions = if from == to { 0 } else { layers.len() as i32 };
    buffer.put_i32(dimensions);
    buffer.put_i32(i32::from(elements.nulls.is_some()));
    buffer.put_u32(oid);
    if dimensions > 0 {
        buffer.put_i32(length(to - from)?);
        buffer.put_i32(1);
        for layer in &layers[1..] {
            let (first, end) = range(layer, from);
            let size = end - first;
            for index in from..to {
                let (first, end) = range(layer, index);
                let null = layer.nulls.as_ref().is_some_and(|nulls| nulls.is_null(index));
                if null || size == 0 || end - first != size {
                    return Err(Problem::Shape);
                }
            }
            buffer.put_i32(length(size)?);
            buffer.put_i32(1);
            (from, to) = (first, layer.offsets[to] as usize);
        }
        for index in from..to {
            elements.write(index, buffer)?;
        }
    }
    let written = length(buffer.len() - start - 4)?;
    buffer[start..start + 4].copy_from_slice(&written.to_be_bytes());
    Ok(())
}

#[inline]
fn put(buffer: &mut BytesMut, bytes: &[u8]) -> Result<(), Problem> {
    buffer.put_i32(length(bytes.len())?);
    buffer.put_slice(bytes);
    Ok(())
}

#[inline]
fn put2(buffer: &mut BytesMut, value: i16) {
    buffer.put_i32(2);
    buffer.put_i16(value);
}

#[inline]
fn put4(buffer: &mut BytesMut, bytes: [u8; 4]) {
    let mut cell = [0, 0, 0, 4, 0, 0, 0, 0];
    cell[4..].copy_from_slice(&bytes);
    buffer.put_slice(&cell);
}

#[inline]
fn put8(buffer: &mut BytesMut, bytes: [u8; 8]) {
    let mut cell = [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    cell[4..].copy_from_slice(&bytes);
    buffer.put_slice(&cell);
}

fn length(bytes: usize) -> Result<i32, Problem> {
    i32::try_from(bytes).map_err(|_| Problem::TooLong)
}

fn normalized(column: &ArrayRef) -> Result<ArrayRef> {
    let wanted = match column.data_type() {
        // These have typed slices of their own.
        DataType::LargeUtf8 | DataType::Utf8View | DataType::LargeBinary | DataType::BinaryView => {
            return Ok(column.clone());
        }
        other => normal(other),
    };
    if *column.data_type() == wanted { Ok(column.clone()) } else { Ok(cast(column, &wanted)?) }
}

fn unexpected(column: &ArrayRef, wire: &Wire) -> Error {
    Error::new(ErrorKind::Internal, format!("no way to write {} as {wire:?}", column.data_type()))
}
