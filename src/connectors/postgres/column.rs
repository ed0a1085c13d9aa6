//! One growing Arrow column for each column of a table: what kind is decided once, then values are
//! pushed into typed vectors.
//!
//! A value either goes in whole, or is replaced by the stream's policy and counted, or is an error
//! that names the column. Every length is checked: what the wire says is never trusted.

use std::sync::Arc;

use arrow::array::builder::NullBufferBuilder;
use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, BooleanBufferBuilder, Decimal128Array, FixedSizeBinaryArray,
    ListArray, PrimitiveArray, StringArray, StructArray,
};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{
    ArrowPrimitiveType, Date32Type, Fields, Float32Type, Float64Type, Int32Type, Int64Type,
    Time64MicrosecondType, TimestampMicrosecondType,
};

use super::codec::{Codec, list_field, struct_fields};
use super::nested::{push_list, push_struct};
use super::numeric::{self, Number, power};
use crate::error::{Error, ErrorKind, Result};
use crate::source::OutOfRange;

/// Days from 1970-01-01 to 2000-01-01, where Postgres counts from.
pub(super) const EPOCH_DAYS: i32 = 10_957;
/// The same in microseconds.
pub(super) const EPOCH_MICROS: i64 = EPOCH_DAYS as i64 * DAY_MICROS;
/// A day.
const DAY_MICROS: i64 = 86_400_000_000;

/// Why a value cannot be taken.
#[derive(Debug)]
pub(super) enum Bad {
    /// Its bytes are not what its type says.
    Malformed,
    /// It lies outside of the lake's type, and the policy is to stop.
    OutOfRange(&'static str),
    /// An array of another shape than declared.
    Shape,
}

impl Bad {
    /// The error for the user; the value stays out of it.
    pub(super) fn of(self, column: &str) -> Error {
        match self {
            Self::Malformed => {
                Error::new(ErrorKind::Corrupt, "a value is not in the binary form of its type")
            }
            Self::OutOfRange(what) => Error::new(
                ErrorKind::Data,
                format!("{what} has no place in the lake's type"),
            )
            .hint(
                "set `out_of_range: null` or `clamp`, or carry the column as text: `types: {column: text}`",
            ),
            Self::Shape => Error::new(
                ErrorKind::Data,
                "an array has other dimensions than its column declares, or does not count from 1",
            )
            .hint("carry the column as text: `types: {column: text}`"),
        }
        .with("column", column)
    }
}

/// A column under construction.
pub(super) struct Column {
    values: Values,
    nulls: NullBufferBuilder,
    policy: OutOfRange,
    replaced: u64,
}

enum Values {
    Bool(BooleanBufferBuilder),
    Int16(Vec<i32>),
    Int32(Vec<i32>),
    Int64(Vec<i64>),
    Oid(Vec<i64>),
    Xid8(Vec<i128>),
    Float32(Vec<f32>),
    Float64(Vec<f64>),
    Decimal {
        values: Vec<i128>,
        precision: u8,
        scale: u8,
    },
    Text(Strings),
    Jsonb(Strings),
    Bytes(Strings),
    Uuid(Vec<u8>),
    Date(Vec<i32>),
    Time(Vec<i64>),
    Timestamp(Vec<i64>, bool),
    /// Offsets of each dimension, from the outermost inwards.
    List(Vec<Vec<i32>>, Box<Column>),
    Struct(Vec<Column>, Fields),
}

struct Strings {
    offsets: Vec<i32>,
    bytes: Vec<u8>,
}

impl Strings {
    fn new(rows: usize) -> Self {
        Self { offsets: offsets(rows), bytes: Vec::new() }
    }

    #[inline]
    fn push(&mut self, value: &[u8]) {
        self.bytes.extend_from_slice(value);
        self.offsets.push(self.bytes.len() as i32);
    }

    fn truncate(&mut self, rows: usize) {
        self.offsets.truncate(rows + 1);
        self.bytes.truncate(self.offsets[rows] as usize);
    }

    /// Takes what is there and leaves room for as much again.
    fn finish(&mut self) -> (OffsetBuffer<i32>, Buffer) {
        let rows = self.offsets.len() - 1;
        let offsets = std::mem::replace(&mut self.offsets, offsets(rows));
        let room = self.bytes.len() + self.bytes.len() / 8;
        let bytes = std::mem::replace(&mut self.bytes, Vec::with_capacity(room));
        (OffsetBuffer::new(ScalarBuffer::from(offsets)), Buffer::from_vec(bytes))
    }
}

fn offsets(rows: usize) -> Vec<i32> {
    let mut offsets = Vec::with_capacity(rows + 1);
    offsets.push(0);
    offsets
}

impl Column {
    /// An empty column with room for `rows` values.
    pub(super) fn new(codec: &Codec, rows: usize, policy: OutOfRange) -> Self {
        let values = match codec {
            Codec::Bool => Values::Bool(BooleanBufferBuilder::new(rows)),
            Codec::Int16 => Values::Int16(Vec::with_capacity(rows)),
            Codec::Int32 => Values::Int32(Vec::with_capacity(rows)),
            Codec::Int64 => Values::Int64(Vec::with_capacity(rows)),
            Codec::Oid => Values::Oid(Vec::with_capacity(rows)),
            Codec::Xid8 => Values::Xid8(Vec::with_capacity(rows)),
            Codec::Float32 => Values::Float32(Vec::with_capacity(rows)),
            Codec::Float64 => Values::Float64(Vec::with_capacity(rows)),
            Codec::Decimal { precision, scale } => {
                Values::Decimal { values: Vec::with_capacity(rows), precision: *precision, scale: *scale }
            }
            Codec::Text => Values::Text(Strings::new(rows)),
            Codec::Jsonb => Values::Jsonb(Strings::new(rows)),
            Codec::Bytes => Values::Bytes(Strings::new(rows)),
            Codec::Uuid => Values::Uuid(Vec::with_capacity(rows * 16)),
            Codec::Date => Values::Date(Vec::with_capacity(rows)),
            Codec::Time => Values::Time(Vec::with_capacity(rows)),
            Codec::Timestamp => Values::Timestamp(Vec::with_capacity(rows), false),
            Codec::TimestampTz => Values::Timestamp(Vec::with_capacity(rows), true),
            Codec::List(dimensions, element) => Values::List(
                vec![offsets(rows); usize::from(*dimensions)],
                Box::new(Self::new(element, 0, policy)),
            ),
            Codec::Struct(members) => Values::Struct(
                members.iter().map(|(_, codec)| Self::new(codec, rows, policy)).collect(),
                struct_fields(members),
            ),
        };
        Self { values, nulls: NullBufferBuilder::new(rows), policy, replaced: 0 }
    }

    /// Values so far.
    pub(super) fn len(&self) -> usize {
        self.nulls.len()
    }

    /// Appends one value. After an error the column may hold a part of it: [`truncate`](Self::truncate) it.
    #[inline]
    pub(super) fn push(&mut self, value: &[u8]) -> Result<(), Bad> {
        let Self { values, nulls, policy, replaced } = self;
        let odd = &mut Odd { policy: *policy, replaced };
        match values {
            Values::Bool(bits) => match value {
                [0] => bits.append(false),
                [1] => bits.append(true),
                _ => return Err(Bad::Malformed),
            },
            Values::Int16(values) => values.push(i32::from(i16::from_be_bytes(fixed(value)?))),
            Values::Int32(values) => values.push(i32::from_be_bytes(fixed(value)?)),
            Values::Int64(values) => values.push(i64::from_be_bytes(fixed(value)?)),
            Values::Oid(values) => values.push(i64::from(u32::from_be_bytes(fixed(value)?))),
            Values::Xid8(values) => values.push(i128::from(u64::from_be_bytes(fixed(value)?))),
            Values::Float32(values) => values.push(f32::from_be_bytes(fixed(value)?)),
            Values::Float64(values) => values.push(f64::from_be_bytes(fixed(value)?)),
            Values::Decimal { values, precision, scale } => {
                let number = numeric::decode(value, *precision, *scale).ok_or(Bad::Malformed)?;
                let largest = || power(u32::from(*precision)) - 1;
                let fits = match number {
                    Number::Fits(n) => Some(n),
                    Number::TooLarge { negative: false } => {
                        odd.settle("a number too large", Some(largest()))?
                    }
                    Number::TooLarge { negative: true } => {
                        odd.settle("a number too large", Some(-largest()))?
                    }
                    Number::TooFine(n) => {
                        odd.settle("a number with too many digits behind the point", Some(n))?
                    }
                    Number::NaN => odd.settle("NaN", None)?,
                };
                return push_or_null(values, nulls, fits);
            }
            Values::Text(strings) | Values::Bytes(strings) => strings.push(value),
            Values::Jsonb(strings) => match value {
                [1, text @ ..] => strings.push(text),
                _ => return Err(Bad::Malformed),
            },
            Values::Uuid(values) => values.extend_from_slice(&fixed::<16>(value)?),
            Values::Date(values) => {
                let fits = match i32::from_be_bytes(fixed(value)?) {
                    i32::MAX => odd.settle("infinity", Some(i32::MAX))?,
                    i32::MIN => odd.settle("-infinity", Some(i32::MIN + 1))?,
                    day => match day.checked_add(EPOCH_DAYS) {
                        Some(day) => Some(day),
                        None => odd.settle("a date too late", Some(i32::MAX))?,
                    },
                };
                return push_or_null(values, nulls, fits);
            }
            Values::Time(values) => {
                let fits = match i64::from_be_bytes(fixed(value)?) {
                    DAY_MICROS => odd.settle("24:00:00", Some(DAY_MICROS - 1))?,
                    time @ 0..DAY_MICROS => Some(time),
                    _ => return Err(Bad::Malformed),
                };
                return push_or_null(values, nulls, fits);
            }
            Values::Timestamp(values, _) => {
                let fits = match i64::from_be_bytes(fixed(value)?) {
                    i64::MAX => odd.settle("infinity", Some(i64::MAX))?,
                    i64::MIN => odd.settle("-infinity", Some(i64::MIN + 1))?,
                    micros => match micros.checked_add(EPOCH_MICROS) {
                        Some(micros) => Some(micros),
                        None => odd.settle("a timestamp too late", Some(i64::MAX))?,
                    },
                };
                return push_or_null(values, nulls, fits);
            }
            Values::List(offsets, child) => push_list(offsets, child, value)?,
            Values::Struct(children, _) => push_struct(children, value)?,
        }
        nulls.append_non_null();
        Ok(())
    }

    /// Appends NULL.
    #[inline]
    pub(super) fn push_null(&mut self) {
        match &mut self.values {
            Values::Bool(bits) => bits.append(false),
            Values::Int16(values) | Values::Int32(values) | Values::Date(values) => values.push(0),
            Values::Int64(values)
            | Values::Oid(values)
            | Values::Time(values)
            | Values::Timestamp(values, _) => {
                values.push(0);
            }
            Values::Xid8(values) | Values::Decimal { values, .. } => values.push(0),
            Values::Float32(values) => values.push(0.0),
            Values::Float64(values) => values.push(0.0),
            Values::Text(strings) | Values::Bytes(strings) | Values::Jsonb(strings) => strings.push(&[]),
            Values::Uuid(values) => values.extend_from_slice(&[0; 16]),
            Values::List(offsets, _) => {
                let end = *offsets[0].last().expect("offsets begin with 0");
                offsets[0].push(end);
            }
            Values::Struct(children, _) => children.iter_mut().for_each(Self::push_null),
        }
        self.nulls.append_null();
    }

    /// Drops everything after the first `rows` values, whole or not.
    pub(super) fn truncate(&mut self, rows: usize) {
        match &mut self.values {
            Values::Bool(bits) => bits.truncate(rows),
            Values::Int16(values) | Values::Int32(values) | Values::Date(values) => values.truncate(rows),
            Values::Int64(values)
            | Values::Oid(values)
            | Values::Time(values)
            | Values::Timestamp(values, _) => {
                values.truncate(rows);
            }
            Values::Xid8(values) | Values::Decimal { values, .. } => values.truncate(rows),
            Values::Float32(values) => values.truncate(rows),
            Values::Float64(values) => values.truncate(rows),
            Values::Text(strings) | Values::Bytes(strings) | Values::Jsonb(strings) => strings.truncate(rows),
            Values::Uuid(values) => values.truncate(rows * 16),
            Values::List(offsets, child) => {
                let mut len = rows;
                for offsets in offsets {
                    offsets.truncate(len + 1);
                    len = offsets[len] as usize;
                }
                child.truncate(len);
            }
            Values::Struct(children, _) => children.iter_mut().for_each(|child| child.truncate(rows)),
        }
        self.nulls.truncate(rows);
    }

    /// How many values the policy replaced since the last time.
    pub(super) fn take_replaced(&mut self) -> u64 {
        let below = match &mut self.values {
            Values::List(_, child) => child.take_replaced(),
            Values::Struct(children, _) => children.iter_mut().map(Self::take_replaced).sum(),
            _ => 0,
        };
        below + std::mem::take(&mut self.replaced)
    }

    /// The column as an array; it is empty afterwards and has room for as much again.
    pub(super) fn finish(&mut self) -> Result<ArrayRef> {
        let nulls = self.nulls.finish();
        Ok(match &mut self.values {
            Values::Bool(bits) => Arc::new(BooleanArray::new(bits.finish(), nulls)),
            Values::Int16(values) | Values::Int32(values) => primitive::<Int32Type>(values, nulls),
            Values::Int64(values) | Values::Oid(values) => primitive::<Int64Type>(values, nulls),
            Values::Xid8(values) => decimal(values, nulls, 20, 0)?,
            Values::Float32(values) => primitive::<Float32Type>(values, nulls),
            Values::Float64(values) => primitive::<Float64Type>(values, nulls),
            Values::Decimal { values, precision, scale } => decimal(values, nulls, *precision, *scale as i8)?,
            Values::Text(strings) | Values::Jsonb(strings) => {
                let (offsets, bytes) = strings.finish();
                let array = StringArray::try_new(offsets, bytes, nulls).map_err(|_| {
                    Error::new(ErrorKind::Data, "a text is not UTF-8")
                        .hint("the database has the encoding SQL_ASCII: repair the text, or read the column as bytes through a view")
                })?;
                Arc::new(array)
            }
            Values::Bytes(strings) => {
                let (offsets, bytes) = strings.finish();
                Arc::new(BinaryArray::try_new(offsets, bytes, nulls)?)
            }
            Values::Uuid(values) => {
                let room = values.len();
                let bytes = std::mem::replace(values, Vec::with_capacity(room));
                Arc::new(FixedSizeBinaryArray::try_new(16, Buffer::from_vec(bytes), nulls)?)
            }
            Values::Date(values) => primitive::<Date32Type>(values, nulls),
            Values::Time(values) => primitive::<Time64MicrosecondType>(values, nulls),
            Values::Timestamp(values, zoned) => {
                let array = PrimitiveArray::<TimestampMicrosecondType>::new(refill(values), nulls);
                Arc::new(array.with_timezone_opt(zoned.then_some("UTC")))
            }
            Values::List(levels, child) => {
                let mut array = child.finish()?;
                let mut nulls = Some(nulls);
                for (depth, level) in levels.iter_mut().enumerate().rev() {
                    let taken = std::mem::replace(level, offsets(0));
                    let offsets = OffsetBuffer::new(ScalarBuffer::from(taken));
                    let field = list_field(array.data_type().clone());
                    // Only a whole array can be NULL, no row of a matrix.
                    let nulls = if depth == 0 { nulls.take().flatten() } else { None };
                    array = Arc::new(ListArray::try_new(field, offsets, array, nulls)?);
                }
                array
            }
            Values::Struct(children, fields) => {
                let arrays = children.iter_mut().map(Self::finish).collect::<Result<Vec<_>>>()?;
                Arc::new(StructArray::try_new(fields.clone(), arrays, nulls)?)
            }
        })
    }
}

/// What the policy makes of values that have no place.
struct Odd<'a> {
    policy: OutOfRange,
    replaced: &'a mut u64,
}

impl Odd<'_> {
    #[cold]
    fn settle<T>(&mut self, what: &'static str, nearest: Option<T>) -> Result<Option<T>, Bad> {
        let settled = match self.policy {
            OutOfRange::Fail => return Err(Bad::OutOfRange(what)),
            OutOfRange::Null => None,
            OutOfRange::Clamp => nearest,
        };
        *self.replaced += 1;
        Ok(settled)
    }
}

#[inline]
fn push_or_null<T: Default>(
    values: &mut Vec<T>,
    nulls: &mut NullBufferBuilder,
    value: Option<T>,
) -> Result<(), Bad> {
    nulls.append(value.is_some());
    values.push(value.unwrap_or_default());
    Ok(())
}

#[inline]
fn fixed<const N: usize>(value: &[u8]) -> Result<[u8; N], Bad> {
    value.try_into().map_err(|_| Bad::Malformed)
}

fn refill<T: arrow::datatypes::ArrowNativeType>(values: &mut Vec<T>) -> ScalarBuffer<T> {
    let room = values.len();
    ScalarBuffer::from(std::mem::replace(values, Vec::with_capacity(room)))
}

fn primitive<T: ArrowPrimitiveType>(values: &mut Vec<T::Native>, nulls: Option<NullBuffer>) -> ArrayRef {
    Arc::new(PrimitiveArray::<T>::new(refill(values), nulls))
}

fn decimal(values: &mut Vec<i128>, nulls: Option<NullBuffer>, precision: u8, scale: i8) -> Result<ArrayRef> {
    let array = Decimal128Array::new(refill(values), nulls).with_precision_and_scale(precision, scale)?;
    Ok(Arc::new(array))
}
