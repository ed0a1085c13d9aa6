//! Values as SQLite's users write them, to numbers and back, exactly.

use chrono::{DateTime, Datelike, NaiveDate, Timelike};

/// Microseconds in a second.
pub(super) const SECOND: i64 = 1_000_000;
/// Microseconds in a day.
pub(super) const DAY: i64 = 86_400 * SECOND;

/// A timestamp as it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    /// Since 1970, UTC.
    pub(super) micros: i64,
    /// Written without seconds: it stands for a minute or a day.
    pub(super) coarse: bool,
}

/// `2024-01-31`, `2024-01-31 12:34[:56[.123456]]`, `T` for the blank, `Z` or `+01:00` at the end.
/// `None` for anything else, and for a fraction finer than a microsecond.
pub(super) fn parse_timestamp(text: &str) -> Option<Stamp> {
    let (days, rest) = parse_day(text)?;
    let midnight = i64::from(days).checked_mul(DAY)?;
    if rest.is_empty() {
        return Some(Stamp { micros: midnight, coarse: true });
    }
    let rest = rest.strip_prefix([' ', 'T', 't'])?;
    let (clock, offset) = match rest.find(['Z', 'z', '+', '-']) {
        Some(at) => (rest[..at].trim_end_matches(' '), parse_offset(&rest[at..])?),
        None => (rest, 0),
    };
    let micros = parse_clock(clock)?;
    if micros >= DAY {
        return None;
    }
    Some(Stamp { micros: midnight.checked_add(micros)?.checked_sub(offset)?, coarse: clock.len() == 5 })
}

/// `2024-01-31` as days since 1970.
pub(super) fn parse_date(text: &str) -> Option<i32> {
    match parse_day(text)? {
        (days, "") => Some(days),
        _ => None,
    }
}

/// `12:34[:56[.123456]]` as microseconds; `24:00:00` is a whole day.
pub(super) fn parse_clock(text: &str) -> Option<i64> {
    let bytes = text.as_bytes();
    let two = |at: usize| -> Option<i64> {
        let (tens, ones) = (digit(*bytes.get(at)?)?, digit(*bytes.get(at + 1)?)?);
        Some(tens * 10 + ones)
    };
    let (hours, minutes) = (two(0)?, two(3)?);
    if bytes[2] != b':' || hours > 24 || minutes > 59 {
        return None;
    }
    let mut seconds = 0;
    let mut fraction = 0;
    if bytes.len() > 5 {
        seconds = two(6)?;
        if bytes[5] != b':' || seconds > 59 {
            return None;
        }
        if bytes.len() > 8 {
            fraction = parse_fraction(&bytes[8..])?;
        }
    }
    let micros = (hours * 3600 + minutes * 60 + seconds) * SECOND + fraction;
    (micros <= DAY).then_some(micros)
}

/// `.123` as microseconds.
fn parse_fraction(bytes: &[u8]) -> Option<i64> {
    let digits = bytes.strip_prefix(b".")?;
    if digits.is_empty() {
        return None;
    }
    let mut micros = 0;
    for (at, byte) in digits.iter().enumerate() {
        let digit = digit(*byte)?;
        match at {
            0..6 => micros = micros * 10 + digit,
            _ if digit == 0 => {}
            _ => return None,
        }
    }
    Some(micros * 10_i64.pow(6_u32.saturating_sub(digits.len() as u32)))
}

fn parse_offset(text: &str) -> Option<i64> {
    let sign = match text.as_bytes() {
        b"Z" | b"z" => return Some(0),
        [b'+', ..] => 1,
        [b'-', ..] => -1,
        _ => return None,
    };
    let clock = &text[1..];
    (clock.len() == 5).then(|| parse_clock(clock)).flatten().map(|micros| sign * micros)
}

/// The day that a text begins with, and the rest of the text.
fn parse_day(text: &str) -> Option<(i32, &str)> {
    let signed = text.starts_with(['+', '-']);
    let year_end = usize::from(signed) + text[usize::from(signed)..].find('-')?;
    let digits = year_end - usize::from(signed);
    if !(4..=6).contains(&digits) || (!signed && digits != 4) {
        return None;
    }
    let year: i32 = text[..year_end].parse().ok()?;
    let rest = text.get(year_end + 1..)?;
    let bytes = rest.as_bytes();
    if bytes.len() < 5 || bytes[2] != b'-' || !rest.is_char_boundary(5) {
        return None;
    }
    let number = |a: u8, b: u8| Some((digit(a)? * 10 + digit(b)?) as u32);
    let day = NaiveDate::from_ymd_opt(year, number(bytes[0], bytes[1])?, number(bytes[3], bytes[4])?)?;
    Some((day.to_epoch_days(), &rest[5..]))
}

fn digit(byte: u8) -> Option<i64> {
    byte.is_ascii_digit().then(|| i64::from(byte - b'0'))
}

/// Microseconds since 1970 as `2024-01-31 12:34:56[.123[456]]`, so that text order is time order.
/// `None` beyond the years that a calendar knows.
pub(super) fn write_timestamp(out: &mut String, micros: i64) -> Option<()> {
    let at = DateTime::from_timestamp_micros(micros)?.naive_utc();
    write_day(out, at.date());
    out.push(' ');
    write_clock(out, i64::from(at.num_seconds_from_midnight()) * SECOND + micros.rem_euclid(SECOND));
    Some(())
}

/// Days since 1970 as `2024-01-31`.
pub(super) fn write_date(out: &mut String, days: i32) -> Option<()> {
    write_day(out, NaiveDate::from_epoch_days(days)?);
    Some(())
}

fn write_day(out: &mut String, day: NaiveDate) {
    match day.year() {
        0..=9999 => pad(out, i64::from(day.year()), 4),
        year => {
            out.push(if year < 0 { '-' } else { '+' });
            pad(out, i64::from(year.abs()), 4);
        }
    }
    out.push('-');
    pad(out, i64::from(day.month()), 2);
    out.push('-');
    pad(out, i64::from(day.day()), 2);
}

/// Microseconds since midnight as `12:34:56[.123[456]]`.
pub(super) fn write_clock(out: &mut String, micros: i64) {
    let seconds = micros / SECOND;
    pad(out, seconds / 3600, 2);
    out.push(':');
    pad(out, seconds / 60 % 60, 2);
    out.push(':');
    pad(out, seconds % 60, 2);
    let fraction = micros % SECOND;
    if fraction % 1000 != 0 {
        out.push('.');
        pad(out, fraction, 6);
    } else if fraction != 0 {
        out.push('.');
        pad(out, fraction / 1000, 3);
    }
}

fn pad(out: &mut String, number: i64, width: usize) {
    use std::fmt::Write;
    let _ = write!(out, "{number:0width$}"); // a String takes everything
}

/// `-12.50` as a whole number of 10^-scale, if it is one and has no more than `precision` digits.
pub(super) fn parse_decimal(text: &str, precision: u8, scale: i8) -> Option<i128> {
    let (negative, digits) = match text.as_bytes() {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        all => (false, all),
    };
    let mut value: i128 = 0;
    let mut after_point = None;
    let mut any = false;
    for byte in digits {
        if *byte == b'.' && after_point.is_none() {
            after_point = Some(0);
            continue;
        }
        let digit = digit(*byte)?;
        any = true;
        match &mut after_point {
            Some(count) if *count == scale => {
                if digit != 0 {
                    return None;
                }
                continue;
            }
            Some(count) => *count += 1,
            None => {}
        }
        value = value.checked_mul(10)?.checked_add(i128::from(digit))?;
    }
    let missing = u32::try_from(scale - after_point.unwrap_or(0)).ok()?;
    value = value.checked_mul(10_i128.checked_pow(missing)?)?;
    let fits = any && value < 10_i128.pow(u32::from(precision));
    fits.then_some(if negative { -value } else { value })
}

/// A whole number of 10^-scale as text: all digits of the scale, no exponent.
pub(super) fn write_decimal(out: &mut String, value: i128, scale: i8) {
    use std::fmt::Write;
    let digits = value.unsigned_abs().to_string();
    if value < 0 {
        out.push('-');
    }
    let scale = usize::from(scale.unsigned_abs());
    let _ = if scale == 0 {
        write!(out, "{digits}")
    } else if digits.len() > scale {
        let (whole, fraction) = digits.split_at(digits.len() - scale);
        write!(out, "{whole}.{fraction}")
    } else {
        write!(out, "0.{digits:0>scale$}")
    };
}

/// The 36 characters of a UUID.
pub(super) fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    (text.len() == 36).then(|| uuid::Uuid::try_parse(text).ok()).flatten().map(uuid::Uuid::into_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stamp(text: &str) -> Option<i64> {
        parse_timestamp(text).map(|stamp| stamp.micros)
    }

    #[test]
    fn timestamps_in_their_many_forms() {
        let noon = stamp("2024-02-29 12:00:00").unwrap();
        for same in [
            "2024-02-29T12:00:00",
            "2024-02-29 12:00",
            "2024-02-29 12:00:00.000000000",
            "2024-02-29T12:00:00Z",
            "2024-02-29T14:00:00+02:00",
            "2024-02-29 06:30:00.0-05:30",
        ] {
            assert_eq!(stamp(same), Some(noon), "{same}");
        }
        assert_eq!(stamp("2024-02-29T12:00:00.000001Z"), Some(noon + 1));
        assert_eq!(stamp("1969-12-31 23:59:59.999"), Some(-1000));
        for wrong in [
            "",
            "now",
            "2023-02-29",
            "2024-2-9",
            "2024-02-29 24:00:00",
            "2024-02-29 12",
            "2024-02-29 12:00:60",
            "2024-02-29 12:00:00.0000001",
            "2024-02-29 12:00:00.",
            "2024-02-29 12:00:00 CET",
            "20240229",
            "2460000.5",
            "2024/02/29",
            "2024-02-29 12:00:00+0100",
            "é024-02-29",
            "2024-02-2é",
            "2024-02-29 1é:00",
        ] {
            assert_eq!(stamp(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn decimals_are_exact_or_refused() {
        assert_eq!(parse_decimal("12.5", 12, 2), Some(1250));
        assert_eq!(parse_decimal("-0.05", 12, 2), Some(-5));
        assert_eq!(parse_decimal("12.500", 12, 2), Some(1250));
        assert_eq!(parse_decimal("99999999999999999999999999999999999999", 38, 0), Some(10_i128.pow(38) - 1));
        for wrong in ["12.505", "1000", "", "-", ".", "1e3", "1.2.3", "NaN", " 1"] {
            assert_eq!(parse_decimal(wrong, 5, 2), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn a_timestamp_comes_back(micros in -62_167_219_200_000_000_i64..253_402_300_800_000_000) {
            let mut text = String::new();
            write_timestamp(&mut text, micros).unwrap();
            prop_assert_eq!(parse_timestamp(&text), Some(Stamp { micros, coarse: false }));
        }

        #[test]
        fn text_order_is_time_order(a in 0_i64..10_000_000, b in 0_i64..10_000_000) {
            let (mut first, mut second) = (String::new(), String::new());
            write_timestamp(&mut first, a).unwrap();
            write_timestamp(&mut second, b).unwrap();
            prop_assert_eq!(first.cmp(&second), a.cmp(&b));
        }

        #[test]
        fn a_decimal_comes_back(value in -(10_i128.pow(38) - 1)..10_i128.pow(38), scale in 0_i8..=38) {
            let mut text = String::new();
            write_decimal(&mut text, value, scale);
            prop_assert_eq!(parse_decimal(&text, 38, scale), Some(value));
        }

        #[test]
        fn no_text_panics(text in "\\PC*") {
            parse_timestamp(&text);
            parse_date(&text);
            parse_clock(&text);
            parse_decimal(&text, 38, 10);
        }
    }
}
