//! One column under construction: values of the binary protocol into an Arrow array.
//!
//! Numbers and times come as such, exact to the last bit; decimals, texts and bytes as bytes. Dates that are
//! no days of a calendar (`0000-00-00`, `2020-02-00`) and times that are no times of a day are settled by
//! `out_of_range`.

use arrow::array::{
    ArrayBuilder, ArrayRef, BinaryBuilder, BooleanBuilder, Date32Builder, Decimal128Builder,
    FixedSizeBinaryBuilder, Float32Builder, Float64Builder, Int32Builder, Int64Builder, StringBuilder,
    Time64MicrosecondBuilder, TimestampMicrosecondBuilder,
};
use chrono::{Datelike, NaiveDate};
use mysql_async::Value;

use super::codec::Codec;
use crate::error::{Error, ErrorKind, Result};
use crate::source::OutOfRange;

/// Days from 0001-01-01 to 1970-01-01, in the calendar's own count.
const EPOCH_FROM_CE: i32 = 719_163;
const SECOND: i64 = 1_000_000;
const DAY: i64 = 86_400 * SECOND;

/// A value that cannot be carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bad {
    /// It has no place in its lake type, and `out_of_range` says to stop.
    OutOfRange(&'static str),
    /// A text that is not UTF-8.
    NotText,
    /// The server sent another kind of value.
    OtherType,
}

impl Bad {
    pub(super) fn of(self, column: &str) -> Error {
        match self {
            Self::OutOfRange(what) => {
                Error::new(ErrorKind::Data, format!("{what} has no place in the lake's type"))
                    .hint("set `values: { out_of_range: null }` or `clamp`, or carry the column as `text`")
            }
            Self::NotText => Error::new(ErrorKind::Data, "a text is not UTF-8")
                .hint("correct the rows, or read the column as bytes through a view"),
            Self::OtherType => {
                Error::new(ErrorKind::Transient, "a column has another type than a moment ago")
            }
        }
        .with("column", column)
    }
}

/// A column under construction.
pub(super) struct Column {
    values: Values,
    policy: OutOfRange,
    replaced: u64,
}

enum Values {
    Bool(BooleanBuilder),
    Int32(Int32Builder),
    Int64(Int64Builder),
    Bits(Int64Builder),
    Unsigned(Decimal128Builder),
    Bits64(Decimal128Builder),
    Float32(Float32Builder),
    Float64(Float64Builder),
    Decimal { values: Decimal128Builder, precision: u8, scale: u8 },
    Text(StringBuilder),
    Bytes(BinaryBuilder),
    Uuid(FixedSizeBinaryBuilder),
    Date(Date32Builder),
    Time(Time64MicrosecondBuilder),
    Timestamp(TimestampMicrosecondBuilder),
}

impl Column {
    /// An empty column with room for `rows` values.
    pub(super) fn new(codec: Codec, rows: usize, policy: OutOfRange) -> Self {
        let whole = || Decimal128Builder::with_capacity(rows).with_data_type(codec.data_type());
        let moments = || TimestampMicrosecondBuilder::with_capacity(rows).with_data_type(codec.data_type());
        let values = match codec {
            Codec::Bool => Values::Bool(BooleanBuilder::with_capacity(rows)),
            Codec::Int32 => Values::Int32(Int32Builder::with_capacity(rows)),
            Codec::Int64 => Values::Int64(Int64Builder::with_capacity(rows)),
            Codec::Bits => Values::Bits(Int64Builder::with_capacity(rows)),
            Codec::Bits64 => Values::Bits64(whole()),
            Codec::Unsigned64 => Values::Unsigned(whole()),
            Codec::Float32 => Values::Float32(Float32Builder::with_capacity(rows)),
            Codec::Float64 => Values::Float64(Float64Builder::with_capacity(rows)),
            Codec::Decimal { precision, scale } => Values::Decimal { values: whole(), precision, scale },
            Codec::Text => Values::Text(StringBuilder::with_capacity(rows, 0)),
            Codec::Bytes => Values::Bytes(BinaryBuilder::with_capacity(rows, 0)),
            Codec::Uuid => Values::Uuid(FixedSizeBinaryBuilder::with_capacity(rows, 16)),
            Codec::Date => Values::Date(Date32Builder::with_capacity(rows)),
            Codec::Time => Values::Time(Time64MicrosecondBuilder::with_capacity(rows)),
            Codec::Timestamp | Codec::TimestampTz => Values::Timestamp(moments()),
        };
        Self { values, policy, replaced: 0 }
    }

    /// Appends one value or NULL, and says about how many bytes it takes.
    #[inline]
    pub(super) fn push(&mut self, value: &Value) -> Result<usize, Bad> {
        use Value as V;
        if *value == V::NULL {
            self.push_null();
            return Ok(1);
        }
        let odd = &mut Odd { policy: self.policy, replaced: &mut self.replaced };
        match (&mut self.values, value) {
            (Values::Int32(values), V::Int(n)) => {
                values.append_value(i32::try_from(*n).map_err(|_| Bad::OtherType)?);
            }
            (Values::Int32(values), V::UInt(n)) => {
                values.append_value(i32::try_from(*n).map_err(|_| Bad::OtherType)?);
            }
            (Values::Int64(values), V::Int(n)) => values.append_value(*n),
            (Values::Int64(values), V::UInt(n)) => {
                values.append_value(i64::try_from(*n).map_err(|_| Bad::OtherType)?);
            }
            (Values::Unsigned(values), V::UInt(n)) => values.append_value(i128::from(*n)),
            (Values::Unsigned(values), V::Int(n)) if *n >= 0 => values.append_value(i128::from(*n)),
            (Values::Bits(values), V::Bytes(bytes)) => {
                values.append_value(i64::try_from(bits(bytes)?).map_err(|_| Bad::OtherType)?);
            }
            (Values::Bits64(values), V::Bytes(bytes)) => values.append_value(i128::from(bits(bytes)?)),
            (Values::Bool(values), value) => {
                let number = match value {
                    V::Int(n) => *n,
                    V::UInt(n) => i64::try_from(*n).unwrap_or(i64::MAX),
                    V::Bytes(bytes) => i64::try_from(bits(bytes)?).unwrap_or(i64::MAX),
                    _ => return Err(Bad::OtherType),
                };
                values.append_option(match number {
                    0 | 1 => Some(number == 1),
                    _ => odd.settle("a number that is neither 0 nor 1", Some(true))?,
                });
            }
            (Values::Float32(values), V::Float(n)) => values.append_value(*n),
            (Values::Float64(values), V::Double(n)) => values.append_value(*n),
            (Values::Decimal { values, precision, scale }, V::Bytes(text)) => {
                values.append_option(decimal(text, *precision, *scale, odd)?);
            }
            (Values::Text(values), V::Bytes(bytes)) => {
                values.append_value(std::str::from_utf8(bytes).map_err(|_| Bad::NotText)?);
                return Ok(bytes.len() + 4);
            }
            (Values::Bytes(values), V::Bytes(bytes)) => {
                values.append_value(bytes);
                return Ok(bytes.len() + 4);
            }
            (Values::Uuid(values), V::Bytes(text)) => {
                let id = uuid::Uuid::try_parse_ascii(text).map_err(|_| Bad::OtherType)?;
                values.append_value(id.as_bytes()).map_err(|_| Bad::OtherType)?;
            }
            (Values::Date(values), V::Date(year, month, day, ..)) => {
                values.append_option(odd.day(*year, *month, *day)?);
            }
            (Values::Timestamp(values), V::Date(year, month, day, hour, minute, second, micros)) => {
                let time = clock(*hour, *minute, *second, *micros);
                let day = odd.day(*year, *month, *day)?;
                values.append_option(day.map(|day| i64::from(day) * DAY + time));
            }
            (Values::Time(values), V::Time(negative, days, hour, minute, second, micros)) => {
                let time = i64::from(*days) * DAY + clock(*hour, *minute, *second, *micros);
                values.append_option(match (negative, time) {
                    (_, 0) => Some(0),
                    (false, 0..DAY) => Some(time),
                    (false, _) => odd.settle("a time of more than a day", Some(DAY - 1))?,
                    (true, _) => odd.settle("a time below zero", Some(0))?,
                });
            }
            _ => return Err(Bad::OtherType),
        }
        Ok(8)
    }

    pub(super) fn push_null(&mut self) {
        match &mut self.values {
            Values::Bool(values) => values.append_null(),
            Values::Int32(values) => values.append_null(),
            Values::Int64(values) | Values::Bits(values) => values.append_null(),
            Values::Unsigned(values) | Values::Bits64(values) | Values::Decimal { values, .. } => {
                values.append_null();
            }
            Values::Float32(values) => values.append_null(),
            Values::Float64(values) => values.append_null(),
            Values::Text(values) => values.append_null(),
            Values::Bytes(values) => values.append_null(),
            Values::Uuid(values) => values.append_null(),
            Values::Date(values) => values.append_null(),
            Values::Time(values) => values.append_null(),
            Values::Timestamp(values) => values.append_null(),
        }
    }

    /// How many values the policy replaced since the last time.
    pub(super) fn take_replaced(&mut self) -> u64 {
        std::mem::take(&mut self.replaced)
    }

    /// The column as an array; it is empty afterwards.
    pub(super) fn finish(&mut self) -> ArrayRef {
        let values: &mut dyn ArrayBuilder = match &mut self.values {
            Values::Bool(values) => values,
            Values::Int32(values) => values,
            Values::Int64(values) | Values::Bits(values) => values,
            Values::Unsigned(values) | Values::Bits64(values) | Values::Decimal { values, .. } => values,
            Values::Float32(values) => values,
            Values::Float64(values) => values,
            Values::Text(values) => values,
            Values::Bytes(values) => values,
            Values::Uuid(values) => values,
            Values::Date(values) => values,
            Values::Time(values) => values,
            Values::Timestamp(values) => values,
        };
        values.finish()
    }
}

/// Applies the policy to values that do not fit.
struct Odd<'a> {
    policy: OutOfRange,
    replaced: &'a mut u64,
}

impl Odd<'_> {
    #[cold]
    fn settle<T>(&mut self, what: &'static str, nearest: Option<T>) -> Result<Option<T>, Bad> {
        let instead = match self.policy {
            OutOfRange::Fail => return Err(Bad::OutOfRange(what)),
            OutOfRange::Null => None,
            OutOfRange::Clamp => nearest,
        };
        *self.replaced += 1;
        Ok(instead)
    }

    /// Days since 1970, or what the policy makes of a date that is no day.
    #[inline]
    fn day(&mut self, year: u16, month: u8, day: u8) -> Result<Option<i32>, Bad> {
        if let Some(date) = NaiveDate::from_ymd_opt(year.into(), month.into(), day.into())
            && year > 0
        {
            return Ok(Some(date.num_days_from_ce() - EPOCH_FROM_CE));
        }
        // The earliest day that the date can mean; servers take days like the 31st of February only on demand.
        let near =
            |day: u8| NaiveDate::from_ymd_opt(year.max(1).into(), month.max(1).into(), day.max(1).into());
        let nearest = (0..=day).rev().find_map(near).map(|date| date.num_days_from_ce() - EPOCH_FROM_CE);
        self.settle("a date that is no day, like 0000-00-00,", nearest)
    }
}

#[inline]
fn clock(hour: u8, minute: u8, second: u8, micros: u32) -> i64 {
    ((i64::from(hour) * 60 + i64::from(minute)) * 60 + i64::from(second)) * SECOND + i64::from(micros)
}

/// The number that the bits are, the greatest first.
fn bits(bytes: &[u8]) -> Result<u64, Bad> {
    if bytes.len() > 8 {
        return Err(Bad::OtherType);
    }
    Ok(bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

/// `-12.50` as a whole number of its last digits.
#[inline]
fn decimal(text: &[u8], precision: u8, scale: u8, odd: &mut Odd<'_>) -> Result<Option<i128>, Bad> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let (mut number, mut behind, mut point, mut cut) = (0_i128, 0_u8, false, false);
    let mut too_large = false;
    for byte in digits {
        match byte {
            b'.' if !point => point = true,
            b'0'..=b'9' if point && behind == scale => cut |= *byte != b'0',
            b'0'..=b'9' => {
                behind += u8::from(point);
                match number.checked_mul(10).and_then(|n| n.checked_add(i128::from(byte - b'0'))) {
                    Some(next) => number = next,
                    None => too_large = true,
                }
            }
            _ => return Err(Bad::OtherType),
        }
    }
    let largest = 10_i128.pow(u32::from(precision)) - 1;
    let scaled = number.checked_mul(10_i128.pow(u32::from(scale - behind)));
    let sign = if negative { -1 } else { 1 };
    match scaled.filter(|n| *n <= largest && !too_large) {
        Some(n) if !cut => Ok(Some(sign * n)),
        Some(n) => odd.settle("a number with too many digits behind the point", Some(sign * n)),
        None => odd.settle("a number too large", Some(sign * largest)),
    }
}

#[cfg(test)]
mod tests {
    use arrow::util::display::array_value_to_string;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    fn check(codec: Codec, values: &[Value], expected: Expect) {
        let mut text = String::new();
        for policy in [OutOfRange::Fail, OutOfRange::Null, OutOfRange::Clamp] {
            let mut column = Column::new(codec, 1, policy);
            let line = values.iter().map(|value| match column.push(value) {
                Ok(_) => {
                    let array = column.finish();
                    let text = array_value_to_string(&array, 0).unwrap();
                    if text.is_empty() { "∅".to_owned() } else { text }
                }
                Err(bad) => bad.of("c").message().to_owned(),
            });
            text += &(line.collect::<Vec<_>>().join(" | ") + "\n");
        }
        expected.assert_eq(&text);
    }

    #[test]
    fn dates_that_are_no_days() {
        let date = |year, month, day| Value::Date(year, month, day, 0, 0, 0, 0);
        check(
            Codec::Date,
            &[
                date(2020, 2, 29),
                date(0, 0, 0),
                date(2020, 2, 0),
                date(2020, 2, 31),
                date(9999, 12, 31),
                Value::NULL,
            ],
            expect![[r#"
                2020-02-29 | a date that is no day, like 0000-00-00, has no place in the lake's type | a date that is no day, like 0000-00-00, has no place in the lake's type | a date that is no day, like 0000-00-00, has no place in the lake's type | 9999-12-31 | ∅
                2020-02-29 | ∅ | ∅ | ∅ | 9999-12-31 | ∅
                2020-02-29 | 0001-01-01 | 2020-02-01 | 2020-02-29 | 9999-12-31 | ∅
            "#]],
        );
    }

    #[test]
    fn times_beyond_a_day() {
        let time = |negative, days, hour| Value::Time(negative, days, hour, 59, 59, 999_999);
        check(
            Codec::Time,
            &[time(false, 0, 23), time(false, 34, 22), time(true, 0, 1)],
            expect![[r#"
                23:59:59.999999 | a time of more than a day has no place in the lake's type | a time below zero has no place in the lake's type
                23:59:59.999999 | ∅ | ∅
                23:59:59.999999 | 23:59:59.999999 | 00:00:00
            "#]],
        );
    }

    #[test]
    fn numbers_that_do_not_fit() {
        let text = |text: &str| Value::Bytes(text.as_bytes().to_vec());
        check(
            Codec::Decimal { precision: 4, scale: 2 },
            &[
                text("-12.5"),
                text("0.00"),
                text("99.990"),
                text("1.001"),
                text("-100"),
                text("12345678901234567890123456789012345678901234567890.1"),
            ],
            expect![[r#"
                -12.50 | 0.00 | 99.99 | a number with too many digits behind the point has no place in the lake's type | a number too large has no place in the lake's type | a number too large has no place in the lake's type
                -12.50 | 0.00 | 99.99 | ∅ | ∅ | ∅
                -12.50 | 0.00 | 99.99 | 1.00 | -99.99 | 99.99
            "#]],
        );
        check(
            Codec::Bool,
            &[Value::Int(1), Value::Int(0), Value::Int(2), Value::Bytes(vec![1])],
            expect![[r#"
                true | false | a number that is neither 0 nor 1 has no place in the lake's type | true
                true | false | ∅ | true
                true | false | true | true
            "#]],
        );
        assert_eq!(bits(&[255; 8]), Ok(u64::MAX));
        assert_eq!(bits(&[0; 9]), Err(Bad::OtherType));
    }

    proptest! {
        #[test]
        fn decimals_are_exact(number in -(10_i128.pow(38) - 1)..10_i128.pow(38), scale in 0_u8..=38) {
            let digits = format!("{:0>width$}", number.unsigned_abs(), width = usize::from(scale) + 1);
            let (whole, fraction) = digits.split_at(digits.len() - usize::from(scale));
            let sign = if number < 0 { "-" } else { "" };
            let point = if scale > 0 { "." } else { "" };
            let text = format!("{sign}{whole}{point}{fraction}");
            let odd = &mut Odd { policy: OutOfRange::Fail, replaced: &mut 0 };
            prop_assert_eq!(decimal(text.as_bytes(), 38, scale, odd), Ok(Some(number)));
        }

        #[test]
        fn no_value_makes_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..20), year: u16, month: u8, day: u8) {
            for codec in [
                Codec::Bool, Codec::Int32, Codec::Bits, Codec::Bits64, Codec::Uuid, Codec::Text, Codec::Date,
                Codec::Timestamp, Codec::Time, Codec::Decimal { precision: 38, scale: 38 },
            ] {
                let mut column = Column::new(codec, 1, OutOfRange::Clamp);
                let _ = column.push(&Value::Bytes(bytes.clone()));
                let _ = column.push(&Value::Date(year, month, day, month, day, month, 7));
                column.finish();
            }
        }
    }
}
