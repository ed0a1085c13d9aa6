//! One cell of a batch as a value of exactly its staging column's type, or why it cannot be one.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int64Type, Time64MicrosecondType,
    Time64NanosecondType, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType,
};
use tiberius::ColumnData;
use tiberius::numeric::Numeric;
use tiberius::time::{Date, DateTime2, DateTimeOffset, Time};

use super::{Wire, normal};
use crate::connectors::sql::json;
use crate::error::{Error, ErrorKind, Result};

/// Days from 0001-01-01 to 1970-01-01.
const EPOCH_DAYS: i64 = 719_162;
/// Days from 0001-01-01 to 1753-01-01, where `datetime` begins, to 1900-01-01 and to 2079-06-06, between
/// which `smalldatetime` lies, and to 9999-12-31, where all end.
const DATETIME_FIRST: i64 = 639_905;
const SMALL_FIRST: i64 = 693_595;
const SMALL_LAST: i64 = 759_130;
const LAST_DAY: i64 = 3_652_058;

/// Units of 100 ns in a second and in a day: the finest that the server has.
const SECOND: i64 = 10_000_000;
const DAY: i64 = 86_400 * SECOND;

/// The array in the one form that its cells are read from.
pub(super) fn prepared(column: &ArrayRef, wire: Wire) -> Result<ArrayRef> {
    if let Wire::Json(_) = wire {
        return Ok(Arc::new(json(column)?));
    }
    let wanted = match (wire, normal(column.data_type())) {
        (Wire::Int(_), _) => DataType::Int64,
        (Wire::Float, _) => DataType::Float64,
        (Wire::Decimal(..), DataType::Int32) => DataType::Decimal128(10, 0),
        (Wire::Decimal(..), DataType::Int64) => DataType::Decimal128(19, 0),
        (Wire::Text(_), DataType::Null) => DataType::Utf8,
        (Wire::Bytes(_), DataType::FixedSizeBinary(_)) => DataType::Binary,
        (_, other) => other,
    };
    if *column.data_type() == wanted { Ok(column.clone()) } else { Ok(cast(column, &wanted)?) }
}

/// NULL of the staged type: the client knows no other.
pub(super) fn null(wire: Wire) -> ColumnData<'static> {
    match wire {
        Wire::Bit => ColumnData::Bit(None),
        Wire::Int(1) => ColumnData::U8(None),
        Wire::Int(2) => ColumnData::I16(None),
        Wire::Int(4) => ColumnData::I32(None),
        Wire::Int(_) => ColumnData::I64(None),
        Wire::Real => ColumnData::F32(None),
        Wire::Float => ColumnData::F64(None),
        Wire::Decimal(..) => ColumnData::Numeric(None),
        Wire::Text(_) | Wire::Json(_) => ColumnData::String(None),
        Wire::Bytes(_) => ColumnData::Binary(None),
        Wire::Guid => ColumnData::Guid(None),
        Wire::Date => ColumnData::Date(None),
        Wire::Time(_) => ColumnData::Time(None),
        Wire::Timestamp(_) | Wire::DateTime | Wire::SmallDateTime => ColumnData::DateTime2(None),
        Wire::Offset(_) => ColumnData::DateTimeOffset(None),
    }
}

pub(super) fn cell<'a>(wire: Wire, array: &'a ArrayRef, row: usize) -> Result<ColumnData<'a>, Problem> {
    Ok(match wire {
        Wire::Bit => ColumnData::Bit(Some(array.as_boolean().value(row))),
        Wire::Int(width) => int(width, array.as_primitive::<Int64Type>().value(row))?,
        Wire::Real => {
            let value = array.as_primitive::<Float32Type>().value(row);
            ColumnData::F32(Some(value.is_finite().then_some(value).ok_or(Problem::NotANumber)?))
        }
        Wire::Float => {
            let value = array.as_primitive::<Float64Type>().value(row);
            ColumnData::F64(Some(value.is_finite().then_some(value).ok_or(Problem::NotANumber)?))
        }
        Wire::Decimal(precision, scale) => {
            let DataType::Decimal128(_, own) = array.data_type() else { return Err(Problem::Range) };
            let value = array.as_primitive::<Decimal128Type>().value(row);
            ColumnData::Numeric(Some(decimal(value, *own, precision, scale)?))
        }
        Wire::Text(limit) | Wire::Json(limit) => {
            let text = array.as_string::<i32>().value(row);
            // Units are never more than bytes, so most need no counting.
            if limit.is_some_and(|limit| text.len() > limit as usize && units(text) > limit as usize) {
                return Err(Problem::TooLong);
            }
            ColumnData::String(Some(Cow::Borrowed(text)))
        }
        Wire::Bytes(limit) => {
            let bytes = array.as_binary::<i32>().value(row);
            if limit.is_some_and(|limit| bytes.len() > limit as usize) {
                return Err(Problem::TooLong);
            }
            ColumnData::Binary(Some(Cow::Borrowed(bytes)))
        }
        Wire::Guid => {
            let bytes = array.as_fixed_size_binary().value(row);
            ColumnData::Guid(Some(uuid::Uuid::from_slice(bytes).map_err(|_| Problem::Range)?))
        }
        Wire::Date => {
            let days = i64::from(array.as_primitive::<Date32Type>().value(row)) + EPOCH_DAYS;
            ColumnData::Date(Some(Date::new(day(days, 0, LAST_DAY)?)))
        }
        Wire::Time(scale) => {
            let ticks = match array.data_type() {
                DataType::Time64(TimeUnit::Nanosecond) => {
                    hundreds(array.as_primitive::<Time64NanosecondType>().value(row))?
                }
                _ => array.as_primitive::<Time64MicrosecondType>().value(row) * 10,
            };
            if !(0..DAY).contains(&ticks) {
                return Err(Problem::Range);
            }
            at_scale(ticks, scale)?;
            ColumnData::Time(Some(Time::new(ticks as u64, 7)))
        }
        Wire::Timestamp(scale) => {
            let (days, ticks) = stamp(array, row, 0, LAST_DAY)?;
            let units = at_scale(ticks, scale)?;
            ColumnData::DateTime2(Some(DateTime2::new(days, Time::new(units, scale))))
        }
        Wire::DateTime => {
            let (days, ticks) = stamp(array, row, DATETIME_FIRST, LAST_DAY)?;
            three_hundredths(ticks)?;
            ColumnData::DateTime2(Some(DateTime2::new(days, Time::new(ticks as u64, 7))))
        }
        Wire::SmallDateTime => {
            let (days, ticks) = stamp(array, row, SMALL_FIRST, SMALL_LAST)?;
            if ticks % (60 * SECOND) != 0 {
                return Err(Problem::Fraction);
            }
            ColumnData::DateTime2(Some(DateTime2::new(days, Time::new((ticks / SECOND) as u64, 0))))
        }
        Wire::Offset(scale) => {
            let (days, ticks) = stamp(array, row, 0, LAST_DAY)?;
            at_scale(ticks, scale)?;
            let stamp = DateTime2::new(days, Time::new(ticks as u64, 7));
            ColumnData::DateTimeOffset(Some(DateTimeOffset::new(stamp, 0)))
        }
    })
}

fn units(text: &str) -> usize {
    text.encode_utf16().count()
}

fn int(width: u8, value: i64) -> Result<ColumnData<'static>, Problem> {
    Ok(match width {
        1 => ColumnData::U8(Some(value.try_into().map_err(|_| Problem::Range)?)),
        2 => ColumnData::I16(Some(value.try_into().map_err(|_| Problem::Range)?)),
        4 => ColumnData::I32(Some(value.try_into().map_err(|_| Problem::Range)?)),
        _ => ColumnData::I64(Some(value)),
    })
}

/// At the target's scale, when no digit is lost by it.
fn decimal(value: i128, own: i8, precision: u8, scale: u8) -> Result<Numeric, Problem> {
    let value = match i32::from(scale) - i32::from(own) {
        0 => Some(value),
        more @ 1.. => 10i128.checked_pow(more as u32).and_then(|by| value.checked_mul(by)),
        less => {
            let by = 10i128.checked_pow(less.unsigned_abs()).ok_or(Problem::Fraction)?;
            if value % by != 0 {
                return Err(Problem::Fraction);
            }
            Some(value / by)
        }
    };
    let value = value.ok_or(Problem::Range)?;
    let limit = 10u128.pow(u32::from(precision));
    if value.unsigned_abs() >= limit {
        Err(Problem::Range)
    } else {
        Ok(Numeric::new_with_scale(value, scale))
    }
}

/// Day and time of day, in 100 ns.
fn stamp(array: &ArrayRef, row: usize, first: i64, last: i64) -> Result<(Date, i64), Problem> {
    let DataType::Timestamp(unit, _) = array.data_type() else { return Err(Problem::Range) };
    let (seconds, ticks) = match unit {
        TimeUnit::Second => (array.as_primitive::<TimestampSecondType>().value(row), 0),
        TimeUnit::Millisecond => {
            let value = array.as_primitive::<TimestampMillisecondType>().value(row);
            (value.div_euclid(1_000), value.rem_euclid(1_000) * 10_000)
        }
        TimeUnit::Microsecond => {
            let value = array.as_primitive::<TimestampMicrosecondType>().value(row);
            (value.div_euclid(1_000_000), value.rem_euclid(1_000_000) * 10)
        }
        TimeUnit::Nanosecond => {
            let value = array.as_primitive::<TimestampNanosecondType>().value(row);
            (value.div_euclid(1_000_000_000), hundreds(value.rem_euclid(1_000_000_000))?)
        }
    };
    let days = seconds.div_euclid(86_400) + EPOCH_DAYS;
    Ok((Date::new(day(days, first, last)?), seconds.rem_euclid(86_400) * SECOND + ticks))
}

fn day(days: i64, first: i64, last: i64) -> Result<u32, Problem> {
    u32::try_from(days).ok().filter(|_| (first..=last).contains(&days)).ok_or(Problem::Range)
}

fn hundreds(nanos: i64) -> Result<i64, Problem> {
    if nanos % 100 == 0 { Ok(nanos / 100) } else { Err(Problem::Fraction) }
}

/// In units of a scale, when nothing is behind it.
fn at_scale(ticks: i64, scale: u8) -> Result<u64, Problem> {
    let unit = 10i64.pow(7 - u32::from(scale.min(7)));
    if ticks % unit == 0 { Ok((ticks / unit) as u64) } else { Err(Problem::Fraction) }
}

/// `datetime` has 300 steps a second, which a lake of microseconds holds rounded or cut: both are the step.
fn three_hundredths(ticks: i64) -> Result<(), Problem> {
    let step = (ticks * 300 + SECOND / 2) / SECOND;
    let exact = step * SECOND / 300;
    if (ticks - exact).abs() <= 10 { Ok(()) } else { Err(Problem::Fraction) }
}

/// Why a value cannot be written. Never the value itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Problem {
    Range,
    Fraction,
    TooLong,
    NotANumber,
}

impl Problem {
    #[cold]
    pub(super) fn error(self, column: &str) -> Error {
        let message = match self {
            Self::Range => "a value is out of the range of the target's column",
            Self::Fraction => "a value has more digits behind the point than the target's column",
            Self::TooLong => "a value is longer than the target's column",
            Self::NotANumber => "a number is not finite, which SQL Server cannot hold",
        };
        Error::new(ErrorKind::Data, message)
            .with("column", column)
            .hint("widen the column in the target, or leave it out of the stream")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// A decimal is the same number at the target's scale, or it is refused.
        #[test]
        fn decimals_keep_their_value(value in -10_i128.pow(30)..10_i128.pow(30), own in 0_i8..12, scale in 0_u8..12) {
            let exact = value % 10_i128.pow(u32::try_from(i32::from(own) - i32::from(scale)).unwrap_or(0)) == 0;
            match decimal(value, own, 38, scale) {
                Ok(there) => {
                    prop_assert!(exact);
                    let (left, right) = (i128::from(own.max(scale as i8)) - i128::from(own), i128::from(own.max(scale as i8)) - i128::from(scale));
                    let up = |number: i128, by: i128| number.checked_mul(10_i128.pow(by as u32));
                    if let (Some(left), Some(right)) = (up(value, left), up(there.value(), right)) {
                        prop_assert_eq!(left, right);
                    }
                }
                Err(Problem::Fraction) => prop_assert!(!exact),
                Err(problem) => prop_assert_eq!(problem, Problem::Range),
            }
        }

        /// Each of the 300 steps of a second is known, however a lake of microseconds holds it.
        #[test]
        fn steps_of_datetime_are_known(step in 0_i64..300, rounded in any::<bool>()) {
            let micros = if rounded { (step * 1_000_000 + 150) / 300 } else { step * 1_000_000 / 300 };
            prop_assert_eq!(three_hundredths(micros * 10), Ok(()));
        }
    }

    #[test]
    fn what_lies_between_two_steps_is_no_datetime() {
        for micros in [1_000, 2_000, 5_000, 999_000] {
            assert_eq!(three_hundredths(micros * 10), Err(Problem::Fraction), "{micros}");
        }
    }

    #[test]
    fn the_days_at_the_ends_are_those_of_the_calendar() {
        let of = |text: &str| {
            let day: chrono::NaiveDate = text.parse().unwrap();
            i64::from(day.to_epoch_days()) + EPOCH_DAYS
        };
        assert_eq!(of("0001-01-01"), 0);
        assert_eq!(of("1753-01-01"), DATETIME_FIRST);
        assert_eq!(of("1900-01-01"), SMALL_FIRST);
        assert_eq!(of("2079-06-06"), SMALL_LAST);
        assert_eq!(of("9999-12-31"), LAST_DAY);
    }
}
