//! SQL Server's types and values, and their bytes on the wire in both directions.

use std::fmt;

/// A column's type, with what its bytes depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Type {
    Bit,
    TinyInt,
    SmallInt,
    Int,
    BigInt,
    Real,
    Float,
    Decimal(u8, u8),
    Money,
    SmallMoney,
    /// Characters; `None` is `max`.
    NVarchar(Option<u16>),
    NChar(u16),
    Varchar(Option<u16>),
    Char(u16),
    Varbinary(Option<u16>),
    Binary(u16),
    Guid,
    Date,
    Time(u8),
    DateTime,
    SmallDateTime,
    DateTime2(u8),
    DateTimeOffset(u8),
    Xml,
}

/// One value. Times count units of 100 ns, days count from 0001-01-01 (`datetime`: from 1900-01-01).
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Bit(bool),
    Int(i64),
    Real(f32),
    Float(f64),
    Decimal(i128, u8),
    /// In 1/10,000.
    Money(i64),
    Text(String),
    /// UTF-16 that need not be well-formed.
    Units(Vec<u16>),
    Bytes(Vec<u8>),
    Guid(uuid::Uuid),
    Date(u32),
    Time(u64),
    /// Days and 1/300 seconds.
    DateTime(i32, u32),
    /// Days and minutes.
    SmallDateTime(u16, u16),
    DateTime2(u32, u64),
    /// In UTC, with the offset in minutes.
    DateTimeOffset(u32, u64, i16),
}

/// Latin1_General_CI_AS with code page 1252.
pub(crate) const COLLATION: [u8; 5] = [0x09, 0x04, 0xD0, 0x00, 0x34];

pub(crate) fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

impl Type {
    /// From T-SQL: `nvarchar(max)`, `decimal(12, 2)`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.trim().to_ascii_lowercase();
        let (name, arguments) = match text.split_once('(') {
            None => (text.as_str(), ""),
            Some((name, rest)) => (name.trim(), rest.trim_end().trim_end_matches(')')),
        };
        let mut numbers = arguments.split(',').map(|number| number.trim().parse::<u16>().ok());
        let first = numbers.next().flatten();
        let second = numbers.next().flatten();
        // Without a number it is one character in a declaration; `max` is none.
        let length = if arguments.trim() == "max" { None } else { Some(first.unwrap_or(1)) };
        let scale = first.map_or(7, |scale| scale as u8);
        Some(match name {
            "bit" => Self::Bit,
            "tinyint" => Self::TinyInt,
            "smallint" => Self::SmallInt,
            "int" | "integer" => Self::Int,
            "bigint" => Self::BigInt,
            "real" => Self::Real,
            "float" => Self::Float,
            "decimal" | "numeric" => Self::Decimal(first.unwrap_or(18) as u8, second.unwrap_or(0) as u8),
            "money" => Self::Money,
            "smallmoney" => Self::SmallMoney,
            "nvarchar" => Self::NVarchar(length),
            "sysname" => Self::NVarchar(Some(128)),
            "nchar" => Self::NChar(first.unwrap_or(1)),
            "varchar" => Self::Varchar(length),
            "char" => Self::Char(first.unwrap_or(1)),
            "varbinary" => Self::Varbinary(length),
            "binary" => Self::Binary(first.unwrap_or(1)),
            "rowversion" | "timestamp" => Self::Binary(8),
            "uniqueidentifier" => Self::Guid,
            "date" => Self::Date,
            "time" => Self::Time(scale),
            "datetime" => Self::DateTime,
            "smalldatetime" => Self::SmallDateTime,
            "datetime2" => Self::DateTime2(scale),
            "datetimeoffset" => Self::DateTimeOffset(scale),
            "xml" => Self::Xml,
            _ => return None,
        })
    }

    /// `TYPE_INFO`: always the nullable form.
    pub(crate) fn info(self) -> Vec<u8> {
        let text = |code: u8, length: Option<u16>, unit: u16| {
            let bytes = length.map_or(0xFFFF, |length| length * unit);
            let mut info = vec![code];
            info.extend(bytes.to_le_bytes());
            info
        };
        let collated = |info: Vec<u8>| [info, COLLATION.to_vec()].concat();
        match self {
            Self::Bit => vec![0x68, 1],
            Self::TinyInt => vec![0x26, 1],
            Self::SmallInt => vec![0x26, 2],
            Self::Int => vec![0x26, 4],
            Self::BigInt => vec![0x26, 8],
            Self::Real => vec![0x6D, 4],
            Self::Float => vec![0x6D, 8],
            Self::Decimal(precision, scale) => vec![0x6A, 17, precision, scale],
            Self::Money => vec![0x6E, 8],
            Self::SmallMoney => vec![0x6E, 4],
            Self::NVarchar(length) => collated(text(0xE7, length, 2)),
            Self::NChar(length) => collated(text(0xEF, Some(length), 2)),
            Self::Varchar(length) => collated(text(0xA7, length, 1)),
            Self::Char(length) => collated(text(0xAF, Some(length), 1)),
            Self::Varbinary(length) => text(0xA5, length, 1),
            Self::Binary(length) => text(0xAD, Some(length), 1),
            Self::Guid => vec![0x24, 16],
            Self::Date => vec![0x28],
            Self::Time(scale) => vec![0x29, scale],
            Self::DateTime => vec![0x6F, 8],
            Self::SmallDateTime => vec![0x6F, 4],
            Self::DateTime2(scale) => vec![0x2A, scale],
            Self::DateTimeOffset(scale) => vec![0x2B, scale],
            Self::Xml => vec![0xF1, 0],
        }
    }

    fn is_max(self) -> bool {
        matches!(self, Self::NVarchar(None) | Self::Varchar(None) | Self::Varbinary(None) | Self::Xml)
    }

    /// A value's bytes behind its length, as a row has them.
    pub(crate) fn write(self, value: &Value, out: &mut Vec<u8>) {
        let Some(bytes) = self.bytes(value) else {
            match self {
                _ if self.is_max() => out.extend([0xFF; 8]),
                Self::NVarchar(_)
                | Self::NChar(_)
                | Self::Varchar(_)
                | Self::Char(_)
                | Self::Varbinary(_)
                | Self::Binary(_) => out.extend([0xFF; 2]),
                _ => out.push(0),
            }
            return;
        };
        match self {
            _ if self.is_max() => {
                out.extend((bytes.len() as u64).to_le_bytes());
                // In chunks of an odd size, as a server may.
                for chunk in bytes.chunks(8_001) {
                    out.extend((chunk.len() as u32).to_le_bytes());
                    out.extend(chunk);
                }
                out.extend(0u32.to_le_bytes());
            }
            Self::NVarchar(_)
            | Self::NChar(_)
            | Self::Varchar(_)
            | Self::Char(_)
            | Self::Varbinary(_)
            | Self::Binary(_) => {
                out.extend((bytes.len() as u16).to_le_bytes());
                out.extend(bytes);
            }
            _ => {
                out.push(bytes.len() as u8);
                out.extend(bytes);
            }
        }
    }

    fn bytes(self, value: &Value) -> Option<Vec<u8>> {
        let little = |number: i128, width: usize| number.to_le_bytes()[..width].to_vec();
        Some(match (self, value) {
            (_, Value::Null) => return None,
            (Self::Bit, Value::Bit(bit)) => vec![u8::from(*bit)],
            (Self::Bit, Value::Int(number)) => vec![u8::from(*number != 0)],
            (Self::TinyInt, Value::Int(number)) => little(i128::from(*number), 1),
            (Self::SmallInt, Value::Int(number)) => little(i128::from(*number), 2),
            (Self::Int, Value::Int(number)) => little(i128::from(*number), 4),
            (Self::BigInt, Value::Int(number)) => little(i128::from(*number), 8),
            (Self::Int | Self::BigInt, Value::Bit(bit)) => {
                little(i128::from(*bit), if self == Self::Int { 4 } else { 8 })
            }
            (Self::Real, Value::Real(number)) => number.to_le_bytes().to_vec(),
            (Self::Real, Value::Float(number)) => (*number as f32).to_le_bytes().to_vec(),
            (Self::Float, Value::Float(number)) => number.to_le_bytes().to_vec(),
            (Self::Float, Value::Int(number)) => (*number as f64).to_le_bytes().to_vec(),
            (Self::Decimal(precision, scale), Value::Decimal(number, at)) => {
                assert_eq!(scale, *at, "a decimal at another scale than its column's");
                let width = match precision {
                    1..=9 => 4,
                    10..=19 => 8,
                    20..=28 => 12,
                    _ => 16,
                };
                let mut bytes = vec![u8::from(*number >= 0)];
                bytes.extend(&number.unsigned_abs().to_le_bytes()[..width]);
                bytes
            }
            // The high half goes first.
            (Self::Money, Value::Money(number)) => {
                let mut bytes = ((number >> 32) as i32).to_le_bytes().to_vec();
                bytes.extend((*number as u32).to_le_bytes());
                bytes
            }
            (Self::SmallMoney, Value::Money(number)) => (*number as i32).to_le_bytes().to_vec(),
            (Self::NVarchar(_) | Self::NChar(_) | Self::Xml, Value::Text(text)) => utf16(text),
            (Self::NVarchar(_) | Self::NChar(_), Value::Units(units)) => {
                units.iter().flat_map(|unit| unit.to_le_bytes()).collect()
            }
            (Self::Varchar(_) | Self::Char(_), Value::Text(text)) => text.chars().map(|c| c as u8).collect(),
            (Self::Varbinary(_) | Self::Binary(_), Value::Bytes(bytes)) => bytes.clone(),
            (Self::Guid, Value::Guid(id)) => id.to_bytes_le().to_vec(),
            (Self::Date, Value::Date(days)) => little(i128::from(*days), 3),
            (Self::Time(scale), Value::Time(ticks)) => ticks_bytes(*ticks, scale),
            (Self::DateTime, Value::DateTime(days, parts)) => {
                [days.to_le_bytes(), parts.to_le_bytes()].concat()
            }
            (Self::SmallDateTime, Value::SmallDateTime(days, minutes)) => {
                [days.to_le_bytes(), minutes.to_le_bytes()].concat()
            }
            (Self::DateTime2(scale), Value::DateTime2(days, ticks)) => {
                [ticks_bytes(*ticks, scale), little(i128::from(*days), 3)].concat()
            }
            (Self::DateTimeOffset(scale), Value::DateTimeOffset(days, ticks, offset)) => {
                let mut bytes = ticks_bytes(*ticks, scale);
                bytes.extend(little(i128::from(*days), 3));
                bytes.extend(offset.to_le_bytes());
                bytes
            }
            (column, value) => panic!("the test puts {value:?} into a column of type {column:?}"),
        })
    }
}

fn ticks_bytes(ticks: u64, scale: u8) -> Vec<u8> {
    let units = ticks / 10u64.pow(7 - u32::from(scale));
    let width = match scale {
        0..=2 => 3,
        3..=4 => 4,
        _ => 5,
    };
    units.to_le_bytes()[..width].to_vec()
}

/// Bytes that a client sent, taken from the front.
pub(crate) struct Bytes<'a>(pub(crate) &'a [u8]);

impl<'a> Bytes<'a> {
    /// The next bytes; `None` when the client sent fewer, which a test hears as a protocol error.
    pub(crate) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    pub(crate) fn number(&mut self, width: usize) -> Option<u64> {
        let mut bytes = [0; 8];
        bytes[..width].copy_from_slice(self.take(width)?);
        Some(u64::from_le_bytes(bytes))
    }

    pub(crate) fn text(&mut self, units: usize) -> Option<String> {
        let bytes = self.take(units * 2)?;
        let units: Vec<u16> = bytes.chunks_exact(2).map(|two| u16::from_le_bytes([two[0], two[1]])).collect();
        Some(String::from_utf16_lossy(&units))
    }

    /// `TYPE_INFO`, and whether values come without their length (types that cannot be NULL).
    pub(crate) fn type_info(&mut self) -> Option<(Type, bool)> {
        let code = self.number(1)?;
        let characters = |size: u64, unit: u64| (size != 0xFFFF).then_some((size / unit) as u16);
        let found = match code {
            0x1F => (Type::Int, true),
            0x30 => (Type::TinyInt, true),
            0x32 => (Type::Bit, true),
            0x34 => (Type::SmallInt, true),
            0x38 => (Type::Int, true),
            0x3B => (Type::Real, true),
            0x3D => (Type::DateTime, true),
            0x3E => (Type::Float, true),
            0x7F => (Type::BigInt, true),
            0x24 => self.number(1).map(|_| (Type::Guid, false))?,
            0x26 => match self.number(1)? {
                1 => (Type::TinyInt, false),
                2 => (Type::SmallInt, false),
                4 => (Type::Int, false),
                _ => (Type::BigInt, false),
            },
            0x68 => self.number(1).map(|_| (Type::Bit, false))?,
            0x6A | 0x6C => {
                self.number(1)?;
                (Type::Decimal(self.number(1)? as u8, self.number(1)? as u8), false)
            }
            0x6D => (if self.number(1)? == 4 { Type::Real } else { Type::Float }, false),
            0x6E => (if self.number(1)? == 4 { Type::SmallMoney } else { Type::Money }, false),
            0x6F => (if self.number(1)? == 4 { Type::SmallDateTime } else { Type::DateTime }, false),
            0x28 => (Type::Date, false),
            0x29 => (Type::Time(self.number(1)? as u8), false),
            0x2A => (Type::DateTime2(self.number(1)? as u8), false),
            0x2B => (Type::DateTimeOffset(self.number(1)? as u8), false),
            0xA5 => (Type::Varbinary(characters(self.number(2)?, 1)), false),
            0xAD => (Type::Binary(self.number(2)? as u16), false),
            0xA7 | 0xAF | 0xE7 | 0xEF => {
                let size = self.number(2)?;
                self.take(5)?;
                let found = match code {
                    0xA7 => Type::Varchar(characters(size, 1)),
                    0xAF => Type::Char(size as u16),
                    0xE7 => Type::NVarchar(characters(size, 2)),
                    _ => Type::NChar((size / 2) as u16),
                };
                (found, false)
            }
            _ => return None,
        };
        Some(found)
    }

    /// One value of a column.
    pub(crate) fn value(&mut self, (of, bare): (Type, bool)) -> Option<Value> {
        let bytes = match of {
            _ if bare => {
                let width = match of {
                    Type::Bit | Type::TinyInt => 1,
                    Type::SmallInt => 2,
                    Type::Int | Type::Real => 4,
                    _ => 8,
                };
                self.take(width)?.to_vec()
            }
            _ if of.is_max() => {
                if self.number(8)? == u64::MAX {
                    return Some(Value::Null);
                }
                let mut all = Vec::new();
                loop {
                    match self.number(4)? as usize {
                        0 => break all,
                        count => all.extend(self.take(count)?),
                    }
                }
            }
            Type::NVarchar(_)
            | Type::NChar(_)
            | Type::Varchar(_)
            | Type::Char(_)
            | Type::Varbinary(_)
            | Type::Binary(_) => match self.number(2)? {
                0xFFFF => return Some(Value::Null),
                count => self.take(count as usize)?.to_vec(),
            },
            _ => match self.number(1)? {
                0 => return Some(Value::Null),
                count => self.take(count as usize)?.to_vec(),
            },
        };
        let mut rest = Bytes(&bytes);
        let width = bytes.len();
        Some(match of {
            Type::Bit => Value::Bit(bytes[0] != 0),
            Type::TinyInt => Value::Int(i64::from(bytes[0])),
            Type::SmallInt => Value::Int(i64::from(rest.number(2)? as i16)),
            Type::Int => Value::Int(i64::from(rest.number(4)? as i32)),
            Type::BigInt => Value::Int(rest.number(8)? as i64),
            Type::Real => Value::Real(f32::from_bits(rest.number(4)? as u32)),
            Type::Float => Value::Float(f64::from_bits(rest.number(8)?)),
            Type::Decimal(_, scale) => {
                let positive = rest.number(1)? == 1;
                let mut number = [0; 16];
                number[..width - 1].copy_from_slice(rest.take(width - 1)?);
                let number = i128::from_le_bytes(number);
                Value::Decimal(if positive { number } else { -number }, scale)
            }
            Type::Money => {
                let high = rest.number(4)? as i64;
                Value::Money((high << 32) | rest.number(4)? as i64)
            }
            Type::SmallMoney => Value::Money(i64::from(rest.number(4)? as i32)),
            Type::NVarchar(_) | Type::NChar(_) | Type::Xml => Value::Text(rest.text(width / 2)?),
            Type::Varchar(_) | Type::Char(_) => {
                Value::Text(bytes.iter().map(|&byte| char::from(byte)).collect())
            }
            Type::Varbinary(_) | Type::Binary(_) => Value::Bytes(bytes),
            Type::Guid => Value::Guid(uuid::Uuid::from_bytes_le(bytes.try_into().ok()?)),
            Type::Date => Value::Date(rest.number(3)? as u32),
            Type::Time(scale) => Value::Time(ticks(&mut rest, width, scale)?),
            Type::DateTime => Value::DateTime(rest.number(4)? as i32, rest.number(4)? as u32),
            Type::SmallDateTime => Value::SmallDateTime(rest.number(2)? as u16, rest.number(2)? as u16),
            Type::DateTime2(scale) => {
                let ticks = ticks(&mut rest, width - 3, scale)?;
                Value::DateTime2(rest.number(3)? as u32, ticks)
            }
            Type::DateTimeOffset(scale) => {
                let ticks = ticks(&mut rest, width - 5, scale)?;
                Value::DateTimeOffset(rest.number(3)? as u32, ticks, rest.number(2)? as i16)
            }
        })
    }
}

fn ticks(bytes: &mut Bytes<'_>, width: usize, scale: u8) -> Option<u64> {
    Some(bytes.number(width)? * 10u64.pow(7 - u32::from(scale)))
}

impl fmt::Display for Value {
    /// For expectations in tests, and for the engine's storage: one text for each value of a type.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let day = |days: u32| {
            let first = chrono::NaiveDate::from_ymd_opt(1, 1, 1).unwrap();
            first + chrono::Days::new(u64::from(days))
        };
        let time = |ticks: u64| {
            let seconds = ticks / 10_000_000;
            let (h, m, s) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
            format!("{h:02}:{m:02}:{s:02}.{:07}", ticks % 10_000_000)
        };
        match self {
            Self::Null => f.write_str("NULL"),
            Self::Bit(bit) => write!(f, "{}", u8::from(*bit)),
            Self::Int(number) => write!(f, "{number}"),
            Self::Real(number) => write!(f, "{number:?}"),
            Self::Float(number) => write!(f, "{number:?}"),
            Self::Decimal(number, scale) => f.write_str(&decimal_text(*number, *scale)),
            Self::Money(number) => f.write_str(&decimal_text(i128::from(*number), 4)),
            Self::Text(text) => f.write_str(text),
            Self::Units(units) => f.write_str(&String::from_utf16_lossy(units)),
            Self::Bytes(bytes) => {
                f.write_str("0x")?;
                bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
            Self::Guid(id) => write!(f, "{id}"),
            Self::Date(days) => write!(f, "{}", day(*days)),
            Self::Time(ticks) => f.write_str(&time(*ticks)),
            Self::DateTime(days, parts) => {
                let date = chrono::NaiveDate::from_ymd_opt(1900, 1, 1).unwrap()
                    + chrono::TimeDelta::days(i64::from(*days));
                write!(f, "{date} {}+{}/300", time(u64::from(parts / 300) * 10_000_000), parts % 300)
            }
            Self::SmallDateTime(days, minutes) => {
                write!(f, "{} {}", day(693_595 + u32::from(*days)), time(u64::from(*minutes) * 600_000_000))
            }
            Self::DateTime2(days, ticks) => write!(f, "{} {}", day(*days), time(*ticks)),
            Self::DateTimeOffset(days, ticks, offset) => {
                write!(f, "{} {} {offset:+05}", day(*days), time(*ticks))
            }
        }
    }
}

fn decimal_text(number: i128, scale: u8) -> String {
    let scale = usize::from(scale);
    let digits = format!("{:0>width$}", number.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    let sign = if number < 0 { "-" } else { "" };
    if scale == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") }
}

impl Value {
    /// What [`Display`](fmt::Display) wrote for a value of this type.
    pub(crate) fn parse(of: Type, text: &str) -> Option<Self> {
        let days = |text: &str| {
            let first = chrono::NaiveDate::from_ymd_opt(1, 1, 1)?;
            let date: chrono::NaiveDate = text.parse().ok()?;
            u32::try_from((date - first).num_days()).ok()
        };
        let ticks = |text: &str| {
            let (clock, fraction) = text.split_once('.').unwrap_or((text, "0"));
            let mut parts = clock.split(':').map(|part| part.parse::<u64>().ok());
            let mut next = || parts.next().flatten();
            let seconds = (next()? * 60 + next()?) * 60 + next()?;
            Some(seconds * 10_000_000 + format!("{fraction:0<7}").parse::<u64>().ok()?)
        };
        Some(match of {
            Type::NVarchar(_) | Type::NChar(_) | Type::Varchar(_) | Type::Char(_) | Type::Xml => {
                Self::Text(text.to_owned())
            }
            Type::Decimal(_, scale) => Self::Decimal(unscaled(text, scale)?, scale),
            Type::Money | Type::SmallMoney => Self::Money(unscaled(text, 4)? as i64),
            Type::Guid => Self::Guid(text.parse().ok()?),
            Type::Date => Self::Date(days(text)?),
            Type::Time(_) => Self::Time(ticks(text)?),
            Type::DateTime2(_) => {
                let (date, time) = text.split_once(' ')?;
                Self::DateTime2(days(date)?, ticks(time)?)
            }
            Type::SmallDateTime => {
                let (date, time) = text.split_once(' ')?;
                Self::SmallDateTime((days(date)? - 693_595) as u16, (ticks(time)? / 600_000_000) as u16)
            }
            Type::DateTime => {
                let (date, rest) = text.split_once(' ')?;
                let (time, parts) = match rest.split_once('+') {
                    Some((time, parts)) => (time, parts.trim_end_matches("/300").parse().ok()?),
                    None => (rest, 0),
                };
                let ticks = ticks(time)?;
                let parts = (ticks * 3 + 50_000) / 100_000 + parts;
                Self::DateTime(days(date)? as i32 - 693_595, parts as u32)
            }
            Type::DateTimeOffset(_) => {
                let mut words = text.split(' ');
                let (date, time) = (words.next()?, words.next()?);
                let offset = words.next().unwrap_or("0").parse().ok()?;
                Self::DateTimeOffset(days(date)?, ticks(time)?, offset)
            }
            Type::Bit => Self::Bit(text == "1" || text == "true"),
            Type::TinyInt | Type::SmallInt | Type::Int | Type::BigInt => Self::Int(text.parse().ok()?),
            Type::Real => Self::Real(text.parse().ok()?),
            Type::Float => Self::Float(text.parse().ok()?),
            Type::Varbinary(_) | Type::Binary(_) => return None,
        })
    }
}

fn unscaled(text: &str, scale: u8) -> Option<i128> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let fraction = format!("{fraction:0<width$}", width = usize::from(scale));
    let digits: i128 = format!("{}{fraction}", whole.trim_start_matches('-')).parse().ok()?;
    Some(if text.starts_with('-') { -digits } else { digits })
}
