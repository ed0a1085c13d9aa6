//! Values as they lie in a row of the binlog: how long each type is, and the types that a key may have.
//!
//! What a value of a key is here has to be, to the last bit, what a SELECT says of it: by it the row is
//! found again, and by it the lake deletes.

use mysql_async::Value;

use super::rows::Typed;

/// Bytes of so many digits of a `decimal` that are left beside whole groups of nine.
const DIGITS: [usize; 10] = [0, 1, 1, 2, 2, 3, 3, 4, 4, 4];

/// How many bytes a value takes at the front of `bytes`; `None` where they do not say.
pub(super) fn length(of: Typed, bytes: &[u8]) -> Option<usize> {
    let Typed { code, metadata } = of;
    let behind = |width: usize| {
        let length = bytes.get(..width)?.iter().rev().fold(0, |all, byte| all << 8 | usize::from(*byte));
        Some(width + length)
    };
    let fraction = usize::from(metadata).div_ceil(2);
    Some(match code {
        code::NULL => 0,
        code::TINY | code::YEAR => 1,
        code::SHORT => 2,
        code::INT24 | code::DATE | code::OLD_TIME | code::NEWDATE => 3,
        code::LONG | code::FLOAT | code::OLD_TIMESTAMP => 4,
        code::LONGLONG | code::DOUBLE | code::OLD_DATETIME => 8,
        code::TIME => 3 + fraction,
        code::TIMESTAMP => 4 + fraction,
        code::DATETIME => 5 + fraction,
        code::DECIMAL => decimal_length(usize::from(metadata & 255), usize::from(metadata >> 8))?,
        code::BIT => usize::from(metadata >> 8) + usize::from(metadata & 255 != 0),
        // `enum` and `set` go as strings with their own type inside.
        code::STRING => match string(metadata) {
            (code::ENUM | code::SET, length) => length,
            (_, longest) => behind(if longest > 255 { 2 } else { 1 })?,
        },
        code::ENUM | code::SET => usize::from(metadata >> 8),
        code::VARCHAR | code::VAR_STRING | code::VARCHAR_COMPRESSED => {
            behind(if metadata > 255 { 2 } else { 1 })?
        }
        code::BLOB_COMPRESSED | code::VECTOR | code::JSON | 249..=code::BLOB | code::GEOMETRY => {
            behind(match metadata {
                1..=4 => metadata.into(),
                _ => return None,
            })?
        }
        _ => return None,
    })
}

/// The type inside a string, and its length: two bits of it are among those of the type.
fn string(metadata: u16) -> (u8, usize) {
    let (inner, length) = (metadata as u8, usize::from(metadata >> 8));
    match inner & 0x30 {
        0x30 => (inner, length),
        bits => (inner | 0x30, length | usize::from(bits ^ 0x30) << 4),
    }
}

fn decimal_length(precision: usize, scale: usize) -> Option<usize> {
    let part = |digits: usize| digits / 9 * 4 + DIGITS[digits % 9];
    Some(part(precision.checked_sub(scale)?) + part(scale))
}

/// The protocol's numbers of types.
mod code {
    pub(super) const TINY: u8 = 1;
    pub(super) const SHORT: u8 = 2;
    pub(super) const LONG: u8 = 3;
    pub(super) const FLOAT: u8 = 4;
    pub(super) const DOUBLE: u8 = 5;
    pub(super) const NULL: u8 = 6;
    pub(super) const OLD_TIMESTAMP: u8 = 7;
    pub(super) const LONGLONG: u8 = 8;
    pub(super) const INT24: u8 = 9;
    pub(super) const DATE: u8 = 10;
    pub(super) const OLD_TIME: u8 = 11;
    pub(super) const OLD_DATETIME: u8 = 12;
    pub(super) const YEAR: u8 = 13;
    pub(super) const NEWDATE: u8 = 14;
    pub(super) const VARCHAR: u8 = 15;
    pub(super) const BIT: u8 = 16;
    pub(super) const TIMESTAMP: u8 = 17;
    pub(super) const DATETIME: u8 = 18;
    pub(super) const TIME: u8 = 19;
    pub(super) const BLOB_COMPRESSED: u8 = 140;
    pub(super) const VARCHAR_COMPRESSED: u8 = 141;
    pub(super) const VECTOR: u8 = 242;
    pub(super) const JSON: u8 = 245;
    pub(super) const DECIMAL: u8 = 246;
    pub(super) const ENUM: u8 = 247;
    pub(super) const SET: u8 = 248;
    pub(super) const BLOB: u8 = 252;
    pub(super) const VAR_STRING: u8 = 253;
    pub(super) const STRING: u8 = 254;
    pub(super) const GEOMETRY: u8 = 255;
}

/// What a column of a key holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeyType {
    Int {
        unsigned: bool,
    },
    Decimal {
        precision: u8,
        scale: u8,
    },
    Text(Charset),
    /// `binary(n)`, which is filled up with zeros, or `varbinary`.
    Bytes {
        filled: bool,
    },
    Bits,
    Year,
    Date,
    Time {
        digits: u8,
    },
    DateTime {
        digits: u8,
    },
    Timestamp {
        digits: u8,
    },
}

/// Which bytes a text has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Charset {
    /// `utf8mb4`, `utf8mb3`, `ascii`.
    Utf8,
    /// `latin1`, which is Windows-1252 here.
    Latin1,
}

impl KeyType {
    /// Whether a column of the log can be of this type.
    pub(super) fn is(self, of: Typed) -> bool {
        let Typed { code, metadata } = of;
        match self {
            Self::Int { .. } => {
                matches!(code, code::TINY | code::SHORT | code::INT24 | code::LONG | code::LONGLONG)
            }
            Self::Decimal { precision, scale } => {
                code == code::DECIMAL && metadata == u16::from_le_bytes([precision, scale])
            }
            Self::Text(_) | Self::Bytes { filled: false } if code == code::VARCHAR => true,
            Self::Text(_) | Self::Bytes { .. } => code == code::STRING && string(metadata).0 == code::STRING,
            Self::Bits => code == code::BIT,
            Self::Year => code == code::YEAR,
            Self::Date => matches!(code, code::DATE | code::NEWDATE),
            Self::Time { digits } => code == code::TIME && metadata == u16::from(digits),
            Self::DateTime { digits } => code == code::DATETIME && metadata == u16::from(digits),
            Self::Timestamp { digits } => code == code::TIMESTAMP && metadata == u16::from(digits),
        }
    }

    /// The value, as a SELECT has it.
    pub(super) fn value(self, of: Typed, bytes: &[u8]) -> Option<Value> {
        Some(match self {
            Self::Int { unsigned } => int(bytes, unsigned)?,
            Self::Decimal { precision, scale } => {
                Value::Bytes(decimal(bytes, precision.into(), scale.into())?)
            }
            Self::Text(charset) => Value::Bytes(charset.text(content(of, bytes)?)?),
            Self::Bytes { filled } => {
                let mut content = content(of, bytes)?.to_vec();
                if filled {
                    content.resize(string(of.metadata).1, 0);
                }
                Value::Bytes(content)
            }
            Self::Bits => Value::Bytes(bytes.to_vec()),
            Self::Year => Value::Int(match *bytes.first()? {
                0 => 0,
                year => 1900 + i64::from(year),
            }),
            Self::Date => {
                let day = small(bytes, 0, 3);
                date(day >> 9, day >> 5 & 15, day & 31, 0, 0)
            }
            Self::Time { digits } => time(bytes, digits)?,
            Self::DateTime { digits } => {
                let (whole, fraction) = bytes.split_at_checked(5)?;
                let packed = great(whole).checked_sub(1 << 39)?;
                let (days, clock) = (packed >> 17, packed & 0x1ffff);
                let months = days >> 5;
                date(months / 13, months % 13, days & 31, clock, micros(fraction, digits)?)
            }
            Self::Timestamp { digits } => {
                let (whole, fraction) = bytes.split_at_checked(4)?;
                timestamp(great(whole), micros(fraction, digits)?)?
            }
        })
    }
}

/// Numbers of one kind are alike, whatever the server calls them.
pub(super) fn alike(value: Value) -> Value {
    match value {
        Value::UInt(number) => i64::try_from(number).map_or(Value::UInt(number), Value::Int),
        other => other,
    }
}

fn int(bytes: &[u8], unsigned: bool) -> Option<Value> {
    let number = bytes.iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    if unsigned {
        return Some(alike(Value::UInt(number)));
    }
    let unused = 64_u32.checked_sub(u32::try_from(bytes.len()).ok()? * 8)?;
    Some(Value::Int(number.checked_shl(unused)?.cast_signed() >> unused))
}

/// The bytes behind their length.
fn content(of: Typed, bytes: &[u8]) -> Option<&[u8]> {
    let longest = if of.code == code::STRING { string(of.metadata).1 } else { of.metadata.into() };
    bytes.get(if longest > 255 { 2 } else { 1 }..)
}

/// Groups of nine digits in four bytes each, the greatest first; a negative one has all bits turned.
fn decimal(bytes: &[u8], precision: usize, scale: usize) -> Option<Vec<u8>> {
    let negative = bytes.first()? & 0x80 == 0;
    let mut bytes: Vec<u8> = bytes.iter().map(|byte| if negative { !byte } else { *byte }).collect();
    *bytes.first_mut()? ^= 0x80;
    let mut rest = bytes.as_slice();
    let mut digits = String::new();
    let mut group = |count: usize| -> Option<()> {
        if count > 0 {
            let (group, others) = rest.split_at_checked(DIGITS[count])?;
            rest = others;
            digits += &format!("{:0count$}", great(group));
        }
        Some(())
    };
    let whole = precision.checked_sub(scale)?;
    group(whole % 9)?;
    (0..whole / 9).try_for_each(|_| group(9))?;
    (0..scale / 9).try_for_each(|_| group(9))?;
    group(scale % 9)?;
    let (whole, fraction) = digits.split_at_checked(whole)?;
    let whole = whole.trim_start_matches('0');
    let mut text = if negative { "-" } else { "" }.to_owned();
    text += if whole.is_empty() { "0" } else { whole };
    if scale > 0 {
        text += ".";
        text += fraction;
    }
    Some(text.into_bytes())
}

fn date(year: u64, month: u64, day: u64, clock: u64, micros: u32) -> Value {
    Value::Date(
        year as u16,
        month as u8,
        day as u8,
        (clock >> 12) as u8,
        (clock >> 6 & 63) as u8,
        (clock & 63) as u8,
        micros,
    )
}

fn timestamp(seconds: u64, micros: u32) -> Option<Value> {
    use chrono::{Datelike, Timelike};
    if seconds == 0 && micros == 0 {
        return Some(Value::Date(0, 0, 0, 0, 0, 0, 0));
    }
    let at = chrono::DateTime::from_timestamp(i64::try_from(seconds).ok()?, 0)?;
    let year = u16::try_from(at.year()).ok()?;
    let [month, day, hour, minute, second] =
        [at.month(), at.day(), at.hour(), at.minute(), at.second()].map(|part| part as u8);
    Some(Value::Date(year, month, day, hour, minute, second, micros))
}

/// Hours, minutes and seconds around a middle, with the fraction behind them: of one below zero it counts up.
fn time(bytes: &[u8], digits: u8) -> Option<Value> {
    let fraction = usize::from(digits).div_ceil(2);
    let bits = 8 * u32::try_from(fraction).ok()?;
    let packed = i64::try_from(great(bytes.get(..3 + fraction)?)).ok()? - (0x80_0000_i64 << bits);
    let (negative, packed) = (packed < 0, packed.unsigned_abs());
    let (clock, part) = (packed >> bits, packed & ((1 << bits) - 1));
    let micros = part * 10_u64.pow(6 - u32::try_from(fraction * 2).ok()?);
    let hours = clock >> 12 & 1023;
    Some(Value::Time(
        negative,
        u32::try_from(hours / 24).ok()?,
        (hours % 24) as u8,
        (clock >> 6 & 63) as u8,
        (clock & 63) as u8,
        u32::try_from(micros).ok()?,
    ))
}

/// Millionths of a second, in as many bytes as the digits need: hundredths in one, and so on.
fn micros(fraction: &[u8], digits: u8) -> Option<u32> {
    let bytes = usize::from(digits).div_ceil(2);
    let parts = u32::try_from(great(fraction.get(..bytes)?)).ok()?;
    parts.checked_mul(10_u32.pow(6 - 2 * u32::try_from(bytes.min(3)).ok()?))
}

/// A number whose greatest byte is first.
fn great(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// A number whose smallest byte is first.
fn small(bytes: &[u8], from: usize, to: usize) -> u64 {
    let bytes = bytes.get(from..to).unwrap_or_default();
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

impl Charset {
    /// The characters that the bytes are.
    fn text(self, bytes: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Utf8 => std::str::from_utf8(bytes).ok().map(|text| text.as_bytes().to_vec()),
            Self::Latin1 => Some(bytes.iter().map(|byte| latin1(*byte)).collect::<String>().into_bytes()),
        }
    }
}

/// Between the control characters of Latin-1 the server has those of Windows-1252, but for five places.
fn latin1(byte: u8) -> char {
    const OTHERS: [char; 32] = [
        '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž', '\u{8f}',
        '\u{90}', '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', 'ž', 'Ÿ',
    ];
    match byte {
        0x80..=0x9f => OTHERS[usize::from(byte - 0x80)],
        _ => char::from(byte),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NONE: Typed = Typed { code: 0, metadata: 0 };

    #[test]
    fn numbers_below_zero() {
        let int = |bytes: &[u8], unsigned| KeyType::Int { unsigned }.value(NONE, bytes).unwrap();
        assert_eq!(int(&[0xff], false), Value::Int(-1));
        assert_eq!(int(&[0xff], true), Value::Int(255));
        assert_eq!(int(&[0, 0, 0x80], false), Value::Int(-8_388_608));
        assert_eq!(int(&[0xff; 8], true), Value::UInt(u64::MAX));
        assert_eq!(int(&[0xff; 8], false), Value::Int(-1));
    }

    #[test]
    fn decimals_as_the_manual_has_them() {
        // 1234567890.1234 as decimal(14,4).
        let bytes = [0x81, 0x0d, 0xfb, 0x38, 0xd2, 0x04, 0xd2];
        let text = |bytes: &[u8]| String::from_utf8(decimal(bytes, 14, 4).unwrap()).unwrap();
        assert_eq!(text(&bytes), "1234567890.1234");
        assert_eq!(text(&bytes.map(|byte| !byte)), "-1234567890.1234");
        assert_eq!(length(Typed { code: code::DECIMAL, metadata: 0x040e }, &bytes), Some(7));
    }

    #[test]
    fn strings_carry_types_inside() {
        assert_eq!(string(0x03fe), (code::STRING, 3));
        // char(255) of four bytes a character: 1020 bytes.
        assert_eq!(string(u16::from_le_bytes([0xfe ^ 0x30, 0xfc])), (code::STRING, 1020));
        assert_eq!(string(0x01f7), (code::ENUM, 1));
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_panic(code: u8, metadata: u16, bytes in proptest::collection::vec(any::<u8>(), 0..20), digits in 0_u8..=6) {
            let of = Typed { code, metadata };
            length(of, &bytes);
            for key in [
                KeyType::Int { unsigned: false }, KeyType::Decimal { precision: 20, scale: 5 }, KeyType::Date,
                KeyType::Text(Charset::Latin1), KeyType::Bytes { filled: true }, KeyType::Year, KeyType::Bits,
                KeyType::Time { digits }, KeyType::DateTime { digits }, KeyType::Timestamp { digits },
            ] {
                key.value(of, &bytes);
            }
        }
    }
}
