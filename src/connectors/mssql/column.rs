//! One growing Arrow column for each column of a result: what kind is decided once, then values are
//! pushed into typed vectors, without a detour over a calendar or a decimal library.
//!
//! A value either goes in whole, or is replaced by the stream's policy and counted, or is an error
//! that names the column.

use std::sync::Arc;

use arrow::array::builder::NullBufferBuilder;
use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, BooleanBufferBuilder, Decimal128Array, FixedSizeBinaryArray,
    PrimitiveArray, StringArray,
};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{
    ArrowPrimitiveType, Date32Type, Float32Type, Float64Type, Int8Type, Int32Type, Int64Type,
    Time64MicrosecondType, TimestampMicrosecondType, TimestampNanosecondType,
};
use tiberius::ColumnData;
use tiberius::time::{DateTime, DateTime2, SmallDateTime, Time};

use super::codec::Codec;
use crate::error::{Error, ErrorKind, Result};
use crate::source::{OutOfRange, SubMicrosecond, ValuePolicy};

/// Days from 0001-01-01, where `date` counts from, to 1970-01-01.
const EPOCH_FROM_YEAR_1: i64 = 719_162;
/// Days from 1900-01-01, where `datetime` counts from, to 1970-01-01.
const EPOCH_FROM_1900: i64 = 25_567;
/// The unit of `time(7)`: 100 nanoseconds.
const TICKS_A_DAY: i64 = 864_000_000_000;
const TICKS_A_MICRO: i64 = 10;
const MINUTE: i64 = 600_000_000;

/// Why a value cannot be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bad {
    /// The server sent another type than its catalog says.
    OtherType,
    /// It lies outside of the lake's type, and the policy is to stop.
    OutOfRange(&'static str),
    /// It is finer than a microsecond, and the policy is to stop.
    TooFine,
}

impl Bad {
    /// The error for the user; the value stays out of it.
    pub(super) fn of(self, column: &str) -> Error {
        match self {
            Self::OtherType => {
                Error::new(ErrorKind::Transient, "a column came in another type than the catalog says")
                    .hint("was the table altered just now? the next pass reads its new shape")
            }
            Self::OutOfRange(what) => {
                Error::new(ErrorKind::Data, format!("{what} has no place in the lake's type")).hint(
                    "set `out_of_range: null` or `clamp`, or carry the column as text: `types: {column: text}`",
                )
            }
            Self::TooFine => Error::new(ErrorKind::Data, "a time is finer than a microsecond").hint(
                "set `values: { sub_microsecond: truncate }`, or with `format_version: 3` `values: { types: { column: timestamp_ns } }`, or carry the column as text",
            ),
        }
        .with("column", column)
    }
}

/// What happens to odd values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policy {
    pub(super) out_of_range: OutOfRange,
    pub(super) sub_microsecond: SubMicrosecond,
}

impl From<&ValuePolicy> for Policy {
    fn from(values: &ValuePolicy) -> Self {
        Self { out_of_range: values.out_of_range, sub_microsecond: values.sub_microsecond }
    }
}

/// A column under construction.
pub(super) struct Column {
    values: Values,
    nulls: NullBufferBuilder,
    policy: Policy,
    replaced: u64,
}

enum Values {
    Bool(BooleanBufferBuilder),
    Int8(Vec<i8>),
    Int32(Vec<i32>),
    Int64(Vec<i64>),
    Float32(Vec<f32>),
    Float64(Vec<f64>),
    Decimal { values: Vec<i128>, precision: u8, scale: u8 },
    Text(Strings),
    Bytes(Strings),
    Uuid(Vec<u8>),
    Date(Vec<i32>),
    Time(Vec<i64>),
    Timestamp(Vec<i64>, bool),
    TimestampNs(Vec<i64>, bool),
}

struct Strings {
    offsets: Vec<i32>,
    bytes: Vec<u8>,
}

impl Strings {
    fn new(rows: usize) -> Self {
        let mut offsets = Vec::with_capacity(rows + 1);
        offsets.push(0);
        Self { offsets, bytes: Vec::new() }
    }

    #[inline]
    fn push(&mut self, value: &[u8]) {
        self.bytes.extend_from_slice(value);
        self.offsets.push(self.bytes.len() as i32);
    }

    /// Takes what is there and leaves room for as much again.
    fn finish(&mut self) -> (OffsetBuffer<i32>, Buffer) {
        let next = Self::new(self.offsets.len() - 1);
        let room = self.bytes.len() + self.bytes.len() / 8;
        let offsets = std::mem::replace(&mut self.offsets, next.offsets);
        let bytes = std::mem::replace(&mut self.bytes, Vec::with_capacity(room));
        (OffsetBuffer::new(ScalarBuffer::from(offsets)), Buffer::from_vec(bytes))
    }
}

impl Column {
    /// An empty column with room for `rows` values.
    pub(super) fn new(codec: Codec, rows: usize, policy: Policy) -> Self {
        let values = match codec {
            Codec::Bool => Values::Bool(BooleanBufferBuilder::new(rows)),
            Codec::Op => Values::Int8(Vec::with_capacity(rows)),
            Codec::Int32 => Values::Int32(Vec::with_capacity(rows)),
            Codec::Int64 => Values::Int64(Vec::with_capacity(rows)),
            Codec::Float32 => Values::Float32(Vec::with_capacity(rows)),
            Codec::Float64 => Values::Float64(Vec::with_capacity(rows)),
            Codec::Decimal { precision, scale } => {
                Values::Decimal { values: Vec::with_capacity(rows), precision, scale }
            }
            Codec::Text => Values::Text(Strings::new(rows)),
            Codec::Bytes => Values::Bytes(Strings::new(rows)),
            Codec::Uuid => Values::Uuid(Vec::with_capacity(rows * 16)),
            Codec::Date => Values::Date(Vec::with_capacity(rows)),
            Codec::Time => Values::Time(Vec::with_capacity(rows)),
            Codec::Timestamp => Values::Timestamp(Vec::with_capacity(rows), false),
            Codec::TimestampTz => Values::Timestamp(Vec::with_capacity(rows), true),
            Codec::TimestampNs => Values::TimestampNs(Vec::with_capacity(rows), false),
            Codec::TimestampTzNs => Values::TimestampNs(Vec::with_capacity(rows), true),
        };
        Self { values, nulls: NullBufferBuilder::new(rows), policy, replaced: 0 }
    }

    /// Appends one value or NULL, and says about how many bytes it takes.
    #[inline]
    pub(super) fn push(&mut self, value: &ColumnData<'_>) -> Result<usize, Bad> {
        use ColumnData as D;
        let Self { values, nulls, policy, replaced } = self;
        let odd = &mut Odd { policy: *policy, replaced };
        // What fits goes in; what does not, and NULL, comes out of the match as "NULL".
        let bytes = match (values, value) {
            (Values::Int32(values), D::I32(Some(n))) => push(values, *n),
            (Values::Int64(values), D::I64(Some(n))) => push(values, *n),
            (Values::Text(strings), D::String(Some(text))) => {
                strings.push(text.as_bytes());
                text.len() + 4
            }
            (Values::Decimal { values, precision, scale }, D::Numeric(Some(n))) => {
                let exact = rescaled(n.value(), n.scale(), *scale);
                let largest = 10_i128.pow(u32::from(*precision)) - 1;
                let fits = match exact {
                    Some(n) if n.abs() <= largest => Some(n),
                    _ => odd.settle(
                        "a number with more digits",
                        nearest(n.value(), n.scale(), *scale, largest),
                    )?,
                };
                return Ok(push_or_null(values, nulls, fits));
            }
            (Values::Float64(values), D::F64(Some(n))) => push(values, *n),
            (Values::Float32(values), D::F32(Some(n))) => push(values, *n),
            (Values::Bool(bits), D::Bit(Some(bit))) => {
                bits.append(*bit);
                1
            }
            (Values::Int32(values), D::U8(Some(n))) => push(values, i32::from(*n)),
            (Values::Int32(values), D::I16(Some(n))) => push(values, i32::from(*n)),
            (Values::Int8(values), D::I32(Some(n @ 0..=1))) => push(values, *n as i8),
            (Values::Bytes(strings), D::Binary(Some(bytes))) => {
                strings.push(bytes);
                bytes.len() + 4
            }
            (Values::Text(strings), D::Xml(Some(xml))) => {
                let text = xml.to_string();
                strings.push(text.as_bytes());
                text.len() + 4
            }
            (Values::Uuid(bytes), D::Guid(Some(id))) => {
                bytes.extend_from_slice(id.as_bytes());
                16
            }
            (Values::Date(values), D::Date(Some(date))) => {
                push(values, (i64::from(date.days()) - EPOCH_FROM_YEAR_1) as i32)
            }
            (Values::Time(values), D::Time(Some(time))) => {
                let fits = match ticks(*time)? {
                    at @ 0..TICKS_A_DAY => odd.micros(at)?,
                    _ => odd.settle("24:00:00", Some((TICKS_A_DAY - 1) / TICKS_A_MICRO))?,
                };
                return Ok(push_or_null(values, nulls, fits));
            }
            (Values::Timestamp(values, _), moment) if !is_null(moment) => {
                let fits = odd.micros(instant(moment)?)?;
                return Ok(push_or_null(values, nulls, fits));
            }
            (Values::TimestampNs(values, _), moment) if !is_null(moment) => {
                let nanos = i128::from(instant(moment)?) * 100;
                let fits = match i64::try_from(nanos) {
                    Ok(nanos) => Some(nanos),
                    Err(_) if nanos < 0 => odd.settle("a time before 1677", Some(i64::MIN))?,
                    Err(_) => odd.settle("a time after 2262", Some(i64::MAX))?,
                };
                return Ok(push_or_null(values, nulls, fits));
            }
            (_, value) if is_null(value) => {
                self.push_null();
                return Ok(1);
            }
            _ => return Err(Bad::OtherType),
        };
        nulls.append_non_null();
        Ok(bytes)
    }

    pub(super) fn push_null(&mut self) {
        match &mut self.values {
            Values::Bool(bits) => bits.append(false),
            Values::Int8(values) => values.push(0),
            Values::Int32(values) | Values::Date(values) => values.push(0),
            Values::Int64(values)
            | Values::Time(values)
            | Values::Timestamp(values, _)
            | Values::TimestampNs(values, _) => values.push(0),
            Values::Decimal { values, .. } => values.push(0),
            Values::Float32(values) => values.push(0.0),
            Values::Float64(values) => values.push(0.0),
            Values::Text(strings) | Values::Bytes(strings) => strings.push(&[]),
            Values::Uuid(values) => values.extend_from_slice(&[0; 16]),
        }
        self.nulls.append_null();
    }

    /// How many values the policy replaced since the last time.
    pub(super) fn take_replaced(&mut self) -> u64 {
        std::mem::take(&mut self.replaced)
    }

    /// The column as an array; it is empty afterwards and has room for as much again.
    pub(super) fn finish(&mut self) -> Result<ArrayRef> {
        let nulls = self.nulls.finish();
        Ok(match &mut self.values {
            Values::Bool(bits) => Arc::new(BooleanArray::new(bits.finish(), nulls)),
            Values::Int8(values) => Arc::new(primitive::<Int8Type>(values, nulls)),
            Values::Int32(values) => Arc::new(primitive::<Int32Type>(values, nulls)),
            Values::Int64(values) => Arc::new(primitive::<Int64Type>(values, nulls)),
            Values::Float32(values) => Arc::new(primitive::<Float32Type>(values, nulls)),
            Values::Float64(values) => Arc::new(primitive::<Float64Type>(values, nulls)),
            Values::Decimal { values, precision, scale } => Arc::new(
                Decimal128Array::new(taken(values).into(), nulls)
                    .with_precision_and_scale(*precision, *scale as i8)?,
            ),
            Values::Text(strings) => {
                let (offsets, bytes) = strings.finish();
                Arc::new(StringArray::try_new(offsets, bytes, nulls)?)
            }
            Values::Bytes(strings) => {
                let (offsets, bytes) = strings.finish();
                Arc::new(BinaryArray::try_new(offsets, bytes, nulls)?)
            }
            Values::Uuid(values) => {
                Arc::new(FixedSizeBinaryArray::try_new(16, Buffer::from_vec(taken(values)), nulls)?)
            }
            Values::Date(values) => Arc::new(primitive::<Date32Type>(values, nulls)),
            Values::Time(values) => Arc::new(primitive::<Time64MicrosecondType>(values, nulls)),
            Values::Timestamp(values, zoned) => {
                let array = primitive::<TimestampMicrosecondType>(values, nulls);
                Arc::new(if *zoned { array.with_timezone("UTC") } else { array })
            }
            Values::TimestampNs(values, zoned) => {
                let array = primitive::<TimestampNanosecondType>(values, nulls);
                Arc::new(if *zoned { array.with_timezone("UTC") } else { array })
            }
        })
    }
}

/// Applies the policy to values that do not fit.
struct Odd<'a> {
    policy: Policy,
    replaced: &'a mut u64,
}

impl Odd<'_> {
    fn settle<T>(&mut self, what: &'static str, nearest: Option<T>) -> Result<Option<T>, Bad> {
        let instead = match self.policy.out_of_range {
            OutOfRange::Fail => return Err(Bad::OutOfRange(what)),
            OutOfRange::Null => None,
            OutOfRange::Clamp => nearest,
        };
        *self.replaced += 1;
        Ok(instead)
    }

    /// Microseconds of 100-nanosecond ticks, whole or by policy.
    #[inline]
    fn micros(&mut self, ticks: i64) -> Result<Option<i64>, Bad> {
        if ticks % TICKS_A_MICRO != 0 {
            match self.policy.sub_microsecond {
                SubMicrosecond::Fail => return Err(Bad::TooFine),
                SubMicrosecond::Truncate => *self.replaced += 1,
            }
        }
        Ok(Some(ticks.div_euclid(TICKS_A_MICRO)))
    }
}

/// Since midnight, in 100 nanoseconds, whatever the scale.
#[inline]
fn ticks(time: Time) -> Result<i64, Bad> {
    let finer = 7_u32.checked_sub(u32::from(time.scale())).ok_or(Bad::OtherType)?;
    i64::try_from(time.increments()).ok().and_then(|n| n.checked_mul(10_i64.pow(finer))).ok_or(Bad::OtherType)
}

/// Since 1970, in 100 nanoseconds. A day's end that is written as 24:00 is the next day's begin.
#[inline]
pub(super) fn instant(moment: &ColumnData<'_>) -> Result<i64, Bad> {
    let of = |at: DateTime2| {
        let days = i64::from(at.date().days()) - EPOCH_FROM_YEAR_1;
        Ok(days * TICKS_A_DAY + ticks(at.time())?)
    };
    match moment {
        ColumnData::DateTime2(Some(at)) => of(*at),
        // On the wire it is in UTC, and the offset beside it says only how it was written.
        ColumnData::DateTimeOffset(Some(at)) => of(at.datetime2()),
        ColumnData::DateTime(Some(at)) => Ok(of_datetime(*at)),
        ColumnData::SmallDateTime(Some(at)) => Ok(of_small(*at)),
        _ => Err(Bad::OtherType),
    }
}

/// `datetime` counts in 1/300 of a second and shows whole milliseconds: .000, .003, .007. That is what
/// is carried, and what becomes the same value again.
fn of_datetime(at: DateTime) -> i64 {
    let millis = (i64::from(at.seconds_fragments()) * 10 + 1) / 3;
    (i64::from(at.days()) - EPOCH_FROM_1900) * TICKS_A_DAY + millis * 1_000 * TICKS_A_MICRO
}

fn of_small(at: SmallDateTime) -> i64 {
    (i64::from(at.days()) - EPOCH_FROM_1900) * TICKS_A_DAY + i64::from(at.seconds_fragments()) * MINUTE
}

fn is_null(value: &ColumnData<'_>) -> bool {
    use ColumnData as D;
    match value {
        D::U8(value) => value.is_none(),
        D::I16(value) => value.is_none(),
        D::I32(value) => value.is_none(),
        D::I64(value) => value.is_none(),
        D::F32(value) => value.is_none(),
        D::F64(value) => value.is_none(),
        D::Bit(value) => value.is_none(),
        D::String(value) => value.is_none(),
        D::Guid(value) => value.is_none(),
        D::Binary(value) => value.is_none(),
        D::Numeric(value) => value.is_none(),
        D::Xml(value) => value.is_none(),
        D::DateTime(value) => value.is_none(),
        D::SmallDateTime(value) => value.is_none(),
        D::Time(value) => value.is_none(),
        D::Date(value) => value.is_none(),
        D::DateTime2(value) => value.is_none(),
        D::DateTimeOffset(value) => value.is_none(),
    }
}

/// The same number with another count of digits behind the point, if that loses none.
fn rescaled(value: i128, from: u8, to: u8) -> Option<i128> {
    if from == to {
        return Some(value);
    }
    let power = 10_i128.checked_pow(u32::from(from.abs_diff(to)))?;
    match from < to {
        true => value.checked_mul(power),
        false => (value % power == 0).then(|| value / power),
    }
}

/// The number that comes nearest from the side of zero.
fn nearest(value: i128, from: u8, to: u8, largest: i128) -> Option<i128> {
    let power = 10_i128.checked_pow(u32::from(from.abs_diff(to)))?;
    let scaled = if from < to { value.saturating_mul(power) } else { value / power };
    Some(scaled.clamp(-largest, largest))
}

#[inline]
fn push<T>(values: &mut Vec<T>, value: T) -> usize {
    values.push(value);
    size_of::<T>()
}

fn push_or_null<T: Default>(values: &mut Vec<T>, nulls: &mut NullBufferBuilder, value: Option<T>) -> usize {
    nulls.append(value.is_some());
    values.push(value.unwrap_or_default());
    size_of::<T>()
}

/// Takes what is there and leaves room for as much again.
fn taken<T>(values: &mut Vec<T>) -> Vec<T> {
    let room = values.len();
    std::mem::replace(values, Vec::with_capacity(room))
}

fn primitive<T: ArrowPrimitiveType>(
    values: &mut Vec<T::Native>,
    nulls: Option<NullBuffer>,
) -> PrimitiveArray<T> {
    PrimitiveArray::new(taken(values).into(), nulls)
}

#[cfg(test)]
mod tests;
