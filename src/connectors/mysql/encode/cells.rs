//! One cell of a batch as text that the server reads as exactly that value, or why there is none.

use std::io::Write as _;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int64Type, Time64MicrosecondType,
    Time64NanosecondType, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType,
};
use chrono::{Datelike, NaiveDate};

use super::{Wire, normal};
use crate::connectors::sql::json;
use crate::error::{Error, ErrorKind, Result};

/// Days from 0001-01-01 to 1970-01-01, in the calendar's own count, and the days that servers have.
const EPOCH_FROM_CE: i64 = 719_163;
const FIRST_DAY: i64 = -719_162;
const LAST_DAY: i64 = 2_932_896;

const SECOND: i64 = 1_000_000;
const DAY: i64 = 86_400 * SECOND;

/// What the text of a cell is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Digits and signs.
    Bare,
    Text,
    Bytes,
}

/// Why a value cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Problem {
    Range,
    NotANumber,
    TooFine,
    TooLong,
    OtherLength,
    Blanks,
}

impl Problem {
    pub(super) fn error(self, column: &str) -> Error {
        let message = match self {
            Self::Range => "a value lies outside of the range of the target's column",
            Self::NotANumber => "the target's column has no NaN and no infinity",
            Self::TooFine => "a value is finer than the target's column",
            Self::TooLong => "a value is longer than the target's column",
            Self::OtherLength => {
                "a value has another length than the target's `binary` column, which would fill it up"
            }
            Self::Blanks => "a text ends with a blank, which the target's `char` column would lose",
        };
        Error::new(ErrorKind::Data, message)
            .with("column", column)
            .hint("give the column of the target a type that holds what the source has")
    }
}

/// The array in the one form that its cells are read from.
pub(super) fn prepared(column: &ArrayRef, wire: Wire) -> Result<ArrayRef> {
    if let Wire::Json(_) = wire {
        return Ok(Arc::new(json(column)?));
    }
    let wanted = match (wire, normal(column.data_type())) {
        (Wire::Double, _) => DataType::Float64,
        (Wire::Decimal(..), DataType::Int64) => DataType::Decimal128(19, 0),
        (Wire::Whole(..), DataType::Int64) => DataType::Int64,
        (_, other) => other,
    };
    if *column.data_type() == wanted { Ok(column.clone()) } else { Ok(cast(column, &wanted)?) }
}

/// Appends the text of a value that is not NULL.
pub(super) fn cell(wire: Wire, array: &ArrayRef, row: usize, out: &mut Vec<u8>) -> Result<Form, Problem> {
    match wire {
        Wire::Bool => out.push(if array.as_boolean().value(row) { b'1' } else { b'0' }),
        Wire::Whole(low, high) => {
            let number = match array.data_type() {
                DataType::Decimal128(..) => array.as_primitive::<Decimal128Type>().value(row),
                _ => array.as_primitive::<Int64Type>().value(row).into(),
            };
            if number < low || number > high {
                return Err(Problem::Range);
            }
            put(out, format_args!("{number}"));
        }
        // As a `double` it is written with all its digits, and read back it is rounded to what it was.
        Wire::Float => float(array.as_primitive::<Float32Type>().value(row).into(), out)?,
        Wire::Double => float(array.as_primitive::<Float64Type>().value(row), out)?,
        Wire::Decimal(precision, scale) => {
            let DataType::Decimal128(_, own) = array.data_type() else { return Err(Problem::Range) };
            decimal(array.as_primitive::<Decimal128Type>().value(row), *own, precision, scale, out)?;
        }
        Wire::Text { characters, bytes, padded } => {
            let text = array.as_string::<i32>().value(row);
            // Characters are never more than bytes, so most need no counting.
            let too_many = characters
                .is_some_and(|most| text.len() > most as usize && text.chars().count() > most as usize);
            if too_many || text.len() as u64 > bytes {
                return Err(Problem::TooLong);
            }
            if padded && text.ends_with(' ') {
                return Err(Problem::Blanks);
            }
            out.extend_from_slice(text.as_bytes());
            return Ok(Form::Text);
        }
        Wire::Json(bytes) => {
            let text = array.as_string::<i32>().value(row);
            if text.len() as u64 > bytes {
                return Err(Problem::TooLong);
            }
            out.extend_from_slice(text.as_bytes());
            return Ok(Form::Text);
        }
        Wire::Bytes { most, exactly } => {
            let bytes = array.as_binary::<i32>().value(row);
            match bytes.len() as u64 {
                length if length > most => return Err(Problem::TooLong),
                length if exactly && length != most => return Err(Problem::OtherLength),
                _ => out.extend_from_slice(bytes),
            }
            return Ok(Form::Bytes);
        }
        Wire::Uuid => {
            let id =
                uuid::Uuid::from_slice(array.as_binary::<i32>().value(row)).map_err(|_| Problem::Range)?;
            put(out, format_args!("{id}"));
        }
        Wire::Date => date(array.as_primitive::<Date32Type>().value(row).into(), out)?,
        Wire::Time(digits) => {
            let micros = match array.data_type() {
                DataType::Time64(TimeUnit::Nanosecond) => {
                    micros_of_nanos(array.as_primitive::<Time64NanosecondType>().value(row))?
                }
                _ => array.as_primitive::<Time64MicrosecondType>().value(row),
            };
            if !(0..DAY).contains(&micros) {
                return Err(Problem::Range);
            }
            time(micros, digits, out)?;
        }
        Wire::Moment(digits) => {
            let micros = moment(array, row)?;
            date(micros.div_euclid(DAY), out)?;
            out.push(b' ');
            time(micros.rem_euclid(DAY), digits, out)?;
        }
    }
    Ok(Form::Bare)
}

fn put(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("memory takes it");
}

fn float(value: f64, out: &mut Vec<u8>) -> Result<(), Problem> {
    if !value.is_finite() {
        return Err(Problem::NotANumber);
    }
    put(out, format_args!("{value:e}"));
    Ok(())
}

/// The digits of a decimal with so many behind the point.
fn decimal(value: i128, own: i8, precision: u8, scale: u8, out: &mut Vec<u8>) -> Result<(), Problem> {
    let shift = i32::from(scale) - i32::from(own);
    let power = 10_i128.checked_pow(shift.unsigned_abs());
    let (whole, padding) = match power {
        _ if value == 0 => (0, 0),
        // More zeros than a number of ours has room for: they are written and not computed.
        _ if shift >= 0 => (value, shift as usize),
        Some(power) if value % power == 0 => (value / power, 0),
        _ => return Err(Problem::TooFine),
    };
    let mut digits = format!("{}{}", whole.unsigned_abs(), "0".repeat(padding));
    if digits.trim_start_matches('0').len() > usize::from(precision) {
        return Err(Problem::Range);
    }
    let width = usize::from(scale) + 1;
    if digits.len() < width {
        digits = format!("{digits:0>width$}");
    }
    let (front, behind) = digits.split_at(digits.len() - usize::from(scale));
    let sign = if value < 0 { "-" } else { "" };
    put(out, format_args!("{sign}{front}.{behind}"));
    Ok(())
}

fn date(days: i64, out: &mut Vec<u8>) -> Result<(), Problem> {
    if !(FIRST_DAY..=LAST_DAY).contains(&days) {
        return Err(Problem::Range);
    }
    let days = i32::try_from(days + EPOCH_FROM_CE).map_err(|_| Problem::Range)?;
    let date = NaiveDate::from_num_days_from_ce_opt(days).ok_or(Problem::Range)?;
    put(out, format_args!("{:04}-{:02}-{:02}", date.year(), date.month(), date.day()));
    Ok(())
}

/// A time of a day. The server would round what is finer than its column.
fn time(micros: i64, digits: u8, out: &mut Vec<u8>) -> Result<(), Problem> {
    let step = 10_i64.pow(6 - u32::from(digits.min(6)));
    if micros % step != 0 {
        return Err(Problem::TooFine);
    }
    let seconds = micros / SECOND;
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    put(out, format_args!("{hour:02}:{minute:02}:{second:02}.{:06}", micros % SECOND));
    Ok(())
}

fn micros_of_nanos(nanos: i64) -> Result<i64, Problem> {
    if nanos % 1_000 == 0 { Ok(nanos / 1_000) } else { Err(Problem::TooFine) }
}

/// Microseconds since 1970.
fn moment(array: &ArrayRef, row: usize) -> Result<i64, Problem> {
    let times = |value: i64, factor: i64| value.checked_mul(factor).ok_or(Problem::Range);
    match array.data_type() {
        DataType::Timestamp(TimeUnit::Second, _) => {
            times(array.as_primitive::<TimestampSecondType>().value(row), SECOND)
        }
        DataType::Timestamp(TimeUnit::Millisecond, _) => {
            times(array.as_primitive::<TimestampMillisecondType>().value(row), 1_000)
        }
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            micros_of_nanos(array.as_primitive::<TimestampNanosecondType>().value(row))
        }
        _ => Ok(array.as_primitive::<TimestampMicrosecondType>().value(row)),
    }
}
