//! Nested values as JSON text, from which `jsonb` and composite types are built.
//!
//! Exact for what it carries: numbers keep all digits, everything that JSON has no word for is a
//! string in the form that Postgres' input functions read. Nested columns are rare and their cost is
//! in the server, so this looks types up as it goes.

use std::io::Write;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type,
    Int64Type, Time64MicrosecondType, Time64NanosecondType, TimeUnit, TimestampMicrosecondType,
    TimestampNanosecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use bytes::{BufMut, BytesMut};

use super::Problem;

const MICROS_A_DAY: i64 = 86_400_000_000;

/// Appends one value.
pub(super) fn write(array: &ArrayRef, row: usize, out: &mut BytesMut) -> Result<(), Problem> {
    if array.is_null(row) {
        out.put_slice(b"null");
        return Ok(());
    }
    match array.data_type() {
        DataType::Null => out.put_slice(b"null"),
        DataType::Boolean => {
            out.put_slice(if array.as_boolean().value(row) { b"true" } else { b"false" });
        }
        DataType::Int8 => plain(out, array.as_primitive::<Int8Type>().value(row)),
        DataType::Int16 => plain(out, array.as_primitive::<Int16Type>().value(row)),
        DataType::Int32 => plain(out, array.as_primitive::<Int32Type>().value(row)),
        DataType::Int64 => plain(out, array.as_primitive::<Int64Type>().value(row)),
        DataType::UInt8 => plain(out, array.as_primitive::<UInt8Type>().value(row)),
        DataType::UInt16 => plain(out, array.as_primitive::<UInt16Type>().value(row)),
        DataType::UInt32 => plain(out, array.as_primitive::<UInt32Type>().value(row)),
        DataType::UInt64 => plain(out, array.as_primitive::<UInt64Type>().value(row)),
        DataType::Float32 => {
            let value = array.as_primitive::<Float32Type>().value(row);
            float(out, value.into(), format_args!("{value:?}"));
        }
        DataType::Float64 => {
            let value = array.as_primitive::<Float64Type>().value(row);
            float(out, value, format_args!("{value:?}"));
        }
        DataType::Decimal128(..) => {
            out.put_slice(array.as_primitive::<Decimal128Type>().value_as_string(row).as_bytes());
        }
        DataType::Utf8 => string(out, array.as_string::<i32>().value(row)),
        DataType::LargeUtf8 => string(out, array.as_string::<i64>().value(row)),
        DataType::Utf8View => string(out, array.as_string_view().value(row)),
        DataType::Binary => hex(out, array.as_binary::<i32>().value(row)),
        DataType::LargeBinary => hex(out, array.as_binary::<i64>().value(row)),
        DataType::BinaryView => hex(out, array.as_binary_view().value(row)),
        DataType::FixedSizeBinary(length) => {
            let bytes = array.as_fixed_size_binary().value(row);
            match <[u8; 16]>::try_from(bytes) {
                // Sixteen bytes are a UUID wherever this engine reads them from a database.
                Ok(bytes) if *length == 16 => plain_string(out, uuid::Uuid::from_bytes(bytes)),
                _ => hex(out, bytes),
            }
        }
        DataType::Date32 => {
            let (date, era) = date(array.as_primitive::<Date32Type>().value(row).into());
            plain_string(out, format_args!("{date}{era}"));
        }
        DataType::Time64(TimeUnit::Microsecond) => {
            plain_string(out, time(array.as_primitive::<Time64MicrosecondType>().value(row)));
        }
        DataType::Time64(TimeUnit::Nanosecond) => {
            plain_string(out, time(micros(array.as_primitive::<Time64NanosecondType>().value(row))?));
        }
        DataType::Timestamp(unit, zone) => {
            let micros = match unit {
                TimeUnit::Microsecond => array.as_primitive::<TimestampMicrosecondType>().value(row),
                TimeUnit::Nanosecond => micros(array.as_primitive::<TimestampNanosecondType>().value(row))?,
                _ => return Err(Problem::Json),
            };
            let (date, era) = date(micros.div_euclid(MICROS_A_DAY));
            let time = time(micros.rem_euclid(MICROS_A_DAY));
            let zone = if zone.is_some() { "+00:00" } else { "" };
            plain_string(out, format_args!("{date}T{time}{zone}{era}"));
        }
        DataType::List(_) => sequence(out, &array.as_list::<i32>().value(row))?,
        DataType::LargeList(_) => sequence(out, &array.as_list::<i64>().value(row))?,
        DataType::FixedSizeList(..) => sequence(out, &array.as_fixed_size_list().value(row))?,
        DataType::Struct(fields) => {
            out.put_u8(b'{');
            for (index, (field, column)) in fields.iter().zip(array.as_struct().columns()).enumerate() {
                if index > 0 {
                    out.put_u8(b',');
                }
                string(out, field.name());
                out.put_u8(b':');
                write(column, row, out)?;
            }
            out.put_u8(b'}');
        }
        DataType::Map(..) => map(array, row, out)?,
        _ => return Err(Problem::Json),
    }
    Ok(())
}

fn sequence(out: &mut BytesMut, values: &ArrayRef) -> Result<(), Problem> {
    out.put_u8(b'[');
    for index in 0..values.len() {
        if index > 0 {
            out.put_u8(b',');
        }
        write(values, index, out)?;
    }
    out.put_u8(b']');
    Ok(())
}

/// An object where keys are strings, a list of pairs where they are not.
fn map(array: &ArrayRef, row: usize, out: &mut BytesMut) -> Result<(), Problem> {
    let entries = array.as_map().value(row);
    let (keys, values) = (entries.column(0), entries.column(1));
    let object = matches!(keys.data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    out.put_u8(if object { b'{' } else { b'[' });
    for index in 0..entries.len() {
        if index > 0 {
            out.put_u8(b',');
        }
        if object {
            write(keys, index, out)?;
            out.put_u8(b':');
            write(values, index, out)?;
        } else {
            out.put_u8(b'[');
            write(keys, index, out)?;
            out.put_u8(b',');
            write(values, index, out)?;
            out.put_u8(b']');
        }
    }
    out.put_u8(if object { b'}' } else { b']' });
    Ok(())
}

fn plain(out: &mut BytesMut, value: impl std::fmt::Display) {
    write!(out.writer(), "{value}").expect("memory takes all bytes");
}

/// Text that needs no escapes.
fn plain_string(out: &mut BytesMut, value: impl std::fmt::Display) {
    write!(out.writer(), "\"{value}\"").expect("memory takes all bytes");
}

/// The shortest digits that mean this value; JSON has no NaN and no infinities, so these are strings.
fn float(out: &mut BytesMut, value: f64, digits: std::fmt::Arguments<'_>) {
    if value.is_finite() {
        plain(out, digits);
    } else if value.is_nan() {
        plain_string(out, "NaN");
    } else {
        plain_string(out, if value > 0.0 { "Infinity" } else { "-Infinity" });
    }
}

fn string(out: &mut BytesMut, text: &str) {
    serde_json::to_writer(out.writer(), text).expect("memory takes all bytes");
}

fn hex(out: &mut BytesMut, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.put_slice(b"\"\\\\x");
    for byte in bytes {
        out.put_u8(DIGITS[usize::from(byte >> 4)]);
        out.put_u8(DIGITS[usize::from(byte & 15)]);
    }
    out.put_u8(b'"');
}

fn micros(nanos: i64) -> Result<i64, Problem> {
    if nanos % 1_000 == 0 { Ok(nanos / 1_000) } else { Err(Problem::Fraction) }
}

/// A day of the proleptic Gregorian calendar, and its era where years count backwards.
fn date(days: i64) -> (String, &'static str) {
    // Civil date from days, by 400-year eras that begin in March.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    // There is no year zero: 1 BC comes before 1.
    let (year, era) = if year > 0 { (year, "") } else { (1 - year, " BC") };
    (format!("{year:04}-{month:02}-{day:02}"), era)
}

fn time(micros: i64) -> String {
    let (seconds, fraction) = (micros / 1_000_000, micros % 1_000_000);
    let (hours, minutes) = (seconds / 3_600, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}.{fraction:06}", seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_written_as_postgres_reads_them() {
        let text = |days| {
            let (date, era) = date(days);
            format!("{date}{era}")
        };
        assert_eq!(text(0), "1970-01-01");
        assert_eq!(text(-1), "1969-12-31");
        assert_eq!(text(11_016), "2000-02-29");
        assert_eq!(text(-719_162), "0001-01-01");
        assert_eq!(text(-719_163), "0001-12-31 BC");
        assert_eq!(text(-2_440_588), "4714-11-24 BC");
        assert_eq!(time(86_400_000_000 - 1), "23:59:59.999999");
    }
}
