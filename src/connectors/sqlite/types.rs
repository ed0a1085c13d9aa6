//! What a declared SQLite type means, and how its values travel.
//!
//! SQLite types values, not columns: a declaration is an affinity, and any column may hold any class
//! of value. We take the declaration at its word, check every value against it, and stop at one that
//! does not fit, instead of bending it. `values.types` names another type for a column.

use arrow::datatypes::{DECIMAL128_MAX_PRECISION, DataType, Field, TimeUnit};

use crate::error::{Error, ErrorKind, Result};
use crate::source::{UnboundedNumeric, ValuePolicy};
use crate::table::{Fidelity, SOURCE_TYPE};

/// The prefix of [`SOURCE_TYPE`] for columns of this connector.
pub(super) const PREFIX: &str = "sqlite:";
/// The Arrow extension that says sixteen bytes are a UUID.
const EXTENSION: &str = "ARROW:extension:name";
const UUID: &str = "arrow.uuid";

/// A text that looks like a number becomes a double in a column of numeric affinity, and a double
/// keeps 15 decimal digits, whichever they are.
pub(super) const DIGITS_OF_A_DOUBLE: u8 = 15;
/// Whole numbers of so many digits always fit SQLite's 64-bit integer.
pub(super) const DIGITS_OF_AN_INTEGER: u8 = 18;

/// How the values of a column are understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Integer,
    Real,
    Text,
    Blob,
    /// 0 and 1.
    Boolean,
    /// `2024-01-31`.
    Date,
    /// `12:34:56.789`.
    Time,
    /// ISO text; without an offset it is UTC, as SQLite's own functions have it.
    Timestamp {
        utc: bool,
    },
    /// Whole units since 1970; so many of them are a second.
    Unix {
        per_second: i64,
    },
    Decimal {
        precision: u8,
        scale: i8,
    },
    /// The 36 characters, or the 16 bytes.
    Uuid,
    /// Numbers and text alike, as text.
    Any,
}

impl Kind {
    /// The Arrow type in which values travel.
    pub(super) fn arrow(self) -> DataType {
        match self {
            Self::Integer => DataType::Int64,
            Self::Real => DataType::Float64,
            Self::Text | Self::Any => DataType::Utf8,
            Self::Blob => DataType::Binary,
            Self::Boolean => DataType::Boolean,
            Self::Date => DataType::Date32,
            Self::Time => DataType::Time64(TimeUnit::Microsecond),
            Self::Timestamp { utc: false } | Self::Unix { .. } => {
                DataType::Timestamp(TimeUnit::Microsecond, None)
            }
            Self::Timestamp { utc: true } => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            Self::Decimal { precision, scale } => DataType::Decimal128(precision, scale),
            Self::Uuid => DataType::FixedSizeBinary(16),
        }
    }

    /// Whether it can order changes in time.
    pub(super) fn is_time(self) -> bool {
        matches!(self, Self::Timestamp { .. } | Self::Unix { .. } | Self::Date)
    }

    fn fidelity(self, declared: &str) -> Fidelity {
        let only = |what: &str| {
            Fidelity::Limited(format!(
                "{what}; a run stops at any other value, unless `values.types` says text"
            ))
        };
        match self {
            Self::Integer => only("whole numbers only"),
            Self::Real => only("numbers only"),
            Self::Text | Self::Blob => Fidelity::Exact,
            Self::Boolean => only("0 and 1 only"),
            Self::Date => only("dates like 2024-01-31 only"),
            Self::Time => only("times like 12:34:56 only, up to microseconds"),
            Self::Timestamp { .. } => {
                only("timestamps like 2024-01-31 12:34:56 only, up to microseconds, made UTC")
            }
            Self::Unix { .. } => only("whole units since 1970 only"),
            Self::Decimal { .. } => only("numbers that fit precision and scale only"),
            Self::Uuid => Fidelity::Represented("as 16 bytes; written back as lower-case text".into()),
            Self::Any if declared.is_empty() => {
                Fidelity::Represented("no declared type: numbers and text travel as text".into())
            }
            Self::Any => Fidelity::Represented("numbers and text travel as text".into()),
        }
    }
}

/// SQLite's affinities, which change a value on its way into a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Affinity {
    Integer,
    Text,
    None,
    Real,
    Numeric,
}

/// The affinity of a declaration, by SQLite's own rules, in their order.
pub(super) fn affinity(declared: &str) -> Affinity {
    let upper = declared.to_ascii_uppercase();
    let has = |part: &str| upper.contains(part);
    if has("INT") {
        Affinity::Integer
    } else if has("CHAR") || has("CLOB") || has("TEXT") {
        Affinity::Text
    } else if has("BLOB") || upper.trim().is_empty() || upper.trim() == "ANY" {
        Affinity::None
    } else if has("REAL") || has("FLOA") || has("DOUB") {
        Affinity::Real
    } else {
        Affinity::Numeric
    }
}

/// The meaning of a declaration: names that say more than an affinity first.
pub(super) fn of(declared: &str) -> Kind {
    let (name, arguments) = split(declared);
    match name.as_str() {
        "BOOLEAN" | "BOOL" => Kind::Boolean,
        "DATE" => Kind::Date,
        "TIME" => Kind::Time,
        "DATETIME" | "TIMESTAMP" | "TIMESTAMP WITHOUT TIME ZONE" => Kind::Timestamp { utc: false },
        "TIMESTAMPTZ" | "DATETIMETZ" | "TIMESTAMP WITH TIME ZONE" => Kind::Timestamp { utc: true },
        "DECIMAL" | "NUMERIC" | "DEC" | "NUMBER" | "DECIMAL_TEXT" => match decimal(&arguments) {
            Some(kind) => kind,
            None => Kind::Any,
        },
        "UUID" | "GUID" => Kind::Uuid,
        "BINARY" | "VARBINARY" | "BYTEA" | "LONGVARBINARY" => Kind::Blob,
        _ if declared.to_ascii_uppercase().contains("BLOB") => Kind::Blob,
        _ => match affinity(declared) {
            Affinity::Integer => Kind::Integer,
            Affinity::Text => Kind::Text,
            Affinity::Real => Kind::Real,
            Affinity::None | Affinity::Numeric => Kind::Any,
        },
    }
}

/// `NUMERIC (12, 2)` → `NUMERIC`, `[12, 2]`.
fn split(declared: &str) -> (String, Vec<i64>) {
    let upper = declared.trim().to_ascii_uppercase();
    let Some((name, rest)) = upper.split_once('(') else { return (upper, Vec::new()) };
    let (inside, after) = rest.split_once(')').unwrap_or((rest, ""));
    let name = format!("{} {}", name.trim(), after.trim()).trim().to_owned();
    (name, inside.split(',').map_while(|part| part.trim().parse().ok()).collect())
}

fn decimal(arguments: &[i64]) -> Option<Kind> {
    let (precision, scale) = match arguments {
        [precision] => (*precision, 0),
        [precision, scale] => (*precision, *scale),
        _ => return None,
    };
    let fits =
        (1..=i64::from(DECIMAL128_MAX_PRECISION)).contains(&precision) && (0..=precision).contains(&scale);
    fits.then_some(Kind::Decimal { precision: precision as u8, scale: scale as i8 })
}

/// A column's type under the stream's policy.
#[derive(Debug, Clone)]
pub(super) struct ColumnType {
    pub(super) kind: Kind,
    pub(super) fidelity: Fidelity,
    /// Whether the kind is the declaration's own, so that a SQLite target may declare it again.
    pub(super) declared: bool,
}

/// What a column becomes: by `values.types` where the user said it, else by its declaration.
pub(super) fn resolve(column: &str, declared: &str, policy: &ValuePolicy) -> Result<ColumnType> {
    if let Some(wanted) = policy.types.get(column) {
        let kind = named(wanted).ok_or_else(|| {
            Error::new(ErrorKind::Config, format!("unknown type `{wanted}`"))
                .with("column", column)
                .hint("sqlite columns can be read as text, integer, real, blob, boolean, date, time, timestamp, timestamptz, unix_seconds, unix_milliseconds, unix_microseconds, uuid, or decimal(p,s)")
        })?;
        return Ok(ColumnType { kind, fidelity: kind.fidelity(declared), declared: kind == of(declared) });
    }
    let kind = of(declared);
    let unbounded = kind == Kind::Any
        && matches!(split(declared).0.as_str(), "DECIMAL" | "NUMERIC" | "DEC" | "NUMBER" | "DECIMAL_TEXT");
    if unbounded && policy.unbounded_numeric == UnboundedNumeric::Fail {
        return Err(Error::new(ErrorKind::Config, "a number without a precision up to 38 has no exact type")
            .with("column", column)
            .hint(format!("name one: `values: {{types: {{{column}: \"decimal(20,4)\"}}}}`, or `text`")));
    }
    Ok(ColumnType { kind, fidelity: kind.fidelity(declared), declared: true })
}

/// The words that `values.types` takes.
fn named(text: &str) -> Option<Kind> {
    let (name, arguments) = split(text);
    Some(match name.as_str() {
        "TEXT" | "STRING" => Kind::Any,
        "INTEGER" | "BIGINT" | "INT" | "LONG" => Kind::Integer,
        "REAL" | "DOUBLE" | "FLOAT" => Kind::Real,
        "BLOB" | "BINARY" => Kind::Blob,
        "BOOLEAN" | "BOOL" => Kind::Boolean,
        "DATE" => Kind::Date,
        "TIME" => Kind::Time,
        "TIMESTAMP" | "DATETIME" => Kind::Timestamp { utc: false },
        "TIMESTAMPTZ" => Kind::Timestamp { utc: true },
        "UNIX_SECONDS" => Kind::Unix { per_second: 1 },
        "UNIX_MILLISECONDS" => Kind::Unix { per_second: 1_000 },
        "UNIX_MICROSECONDS" => Kind::Unix { per_second: 1_000_000 },
        "UUID" => Kind::Uuid,
        "DECIMAL" | "NUMERIC" => return decimal(&arguments),
        _ => return None,
    })
}

/// The Arrow field in which a column travels.
pub(super) fn field(name: &str, declared: &str, column: &ColumnType, nullable: bool) -> Field {
    let mut metadata = std::collections::HashMap::new();
    if column.declared {
        metadata.insert(SOURCE_TYPE.to_owned(), format!("{PREFIX}{declared}"));
    }
    if column.kind == Kind::Uuid {
        metadata.insert(EXTENSION.to_owned(), UUID.to_owned());
    }
    Field::new(name, column.kind.arrow(), nullable).with_metadata(metadata)
}

/// Whether sixteen bytes are a UUID.
pub(super) fn is_uuid(field: &Field) -> bool {
    field.data_type() == &DataType::FixedSizeBinary(16)
        && (field.metadata().get(EXTENSION).is_some_and(|name| name == UUID)
            || field.metadata().get(SOURCE_TYPE).is_some_and(|name| name == "postgres:uuid"))
}

/// The declaration of a target column. SQLite's own where that holds the values as they are.
pub(super) fn declare(field: &Field) -> String {
    let original = field.metadata().get(SOURCE_TYPE).and_then(|text| text.strip_prefix(PREFIX));
    if let Some(declared) = original
        && plain(declared)
        && of(declared).arrow() == *field.data_type()
        && !matches!(field.data_type(), DataType::Decimal128(..))
    {
        return declared.to_owned();
    }
    match field.data_type() {
        DataType::Boolean => "BOOLEAN".into(),
        DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::UInt8
        | DataType::UInt16
        | DataType::UInt32 => "INTEGER".into(),
        DataType::Float16 | DataType::Float32 | DataType::Float64 => "REAL".into(),
        DataType::Decimal128(precision, scale) if survives_numeric(*precision, *scale) => {
            format!("DECIMAL({precision},{scale})")
        }
        // The word TEXT gives it text affinity: nothing touches the digits.
        DataType::Decimal128(precision, scale) => format!("DECIMAL_TEXT({precision},{scale})"),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => "BLOB".into(),
        DataType::FixedSizeBinary(_) if is_uuid(field) => "UUID".into(),
        DataType::FixedSizeBinary(_) => "BLOB".into(),
        DataType::Date32 => "DATE".into(),
        DataType::Time64(_) => "TIME".into(),
        DataType::Timestamp(_, None) => "TIMESTAMP".into(),
        DataType::Timestamp(_, Some(_)) => "TIMESTAMPTZ".into(),
        DataType::List(_) | DataType::LargeList(_) | DataType::Struct(_) | DataType::Map(..) => {
            "JSON_TEXT".into()
        }
        _ => "TEXT".into(),
    }
}

/// Whether decimal text becomes the same number in a column of numeric affinity.
pub(super) fn survives_numeric(precision: u8, scale: i8) -> bool {
    precision <= DIGITS_OF_A_DOUBLE || (scale == 0 && precision <= DIGITS_OF_AN_INTEGER)
}

/// A declaration that can be repeated without quoting.
fn plain(declared: &str) -> bool {
    let ends = declared.split_once(')').is_none_or(|(_, after)| after.trim().is_empty());
    ends && declared.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ' ' | '(' | ')' | ','))
}

/// Whether a declaration means exact decimals.
pub(super) fn is_decimal(declared: &str) -> bool {
    matches!(of(declared), Kind::Decimal { .. })
}

/// Whether a column declared `there` keeps the values of one declared `wanted` as they are.
pub(super) fn holds(wanted: &str, there: &str) -> bool {
    if wanted.eq_ignore_ascii_case(there) {
        return true;
    }
    let affinity = affinity(there);
    let untouched = matches!(affinity, Affinity::Text | Affinity::None);
    match of(wanted) {
        Kind::Text | Kind::Any => untouched,
        Kind::Decimal { precision, scale } => untouched || survives_numeric(precision, scale),
        Kind::Integer => matches!(affinity, Affinity::Integer | Affinity::Numeric | Affinity::None),
        Kind::Real | Kind::Boolean => affinity != Affinity::Text,
        // Never taken for numbers, and bytes are never converted.
        Kind::Date | Kind::Time | Kind::Timestamp { .. } | Kind::Unix { .. } | Kind::Uuid | Kind::Blob => {
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn declarations_say_what_they_mean() {
        let mut text = String::new();
        for declared in [
            "INTEGER",
            "int",
            "UNSIGNED BIG INT",
            "BIGINT(20)",
            "TEXT",
            "varchar(20)",
            "CLOB",
            "BLOB",
            "",
            "ANY",
            "REAL",
            "DOUBLE PRECISION",
            "float",
            "BOOLEAN",
            "DATE",
            "TIME",
            "datetime",
            "datetime(6)",
            "TIMESTAMP",
            "timestamp(3) with time zone",
            "DECIMAL(12,2)",
            "NUMERIC (38 , 10)",
            "decimal",
            "NUMERIC(39,0)",
            "DECIMAL(5)",
            "DECIMAL_TEXT(20,4)",
            "uuid",
            "VARBINARY(16)",
            "STRING",
            "JSON",
        ] {
            let kind = of(declared);
            let type_ = resolve("c", declared, &ValuePolicy::default()).unwrap();
            let field = field("c", declared, &type_, true);
            text += &format!("{declared:28} {:?} {kind:?} -> {}\n", affinity(declared), declare(&field));
            assert!(holds(declared, declared));
        }
        expect![[r#"
            INTEGER                      Integer Integer -> INTEGER
            int                          Integer Integer -> int
            UNSIGNED BIG INT             Integer Integer -> UNSIGNED BIG INT
            BIGINT(20)                   Integer Integer -> BIGINT(20)
            TEXT                         Text Text -> TEXT
            varchar(20)                  Text Text -> varchar(20)
            CLOB                         Text Text -> CLOB
            BLOB                         None Blob -> BLOB
                                         None Any -> 
            ANY                          None Any -> ANY
            REAL                         Real Real -> REAL
            DOUBLE PRECISION             Real Real -> DOUBLE PRECISION
            float                        Real Real -> float
            BOOLEAN                      Numeric Boolean -> BOOLEAN
            DATE                         Numeric Date -> DATE
            TIME                         Numeric Time -> TIME
            datetime                     Numeric Timestamp { utc: false } -> datetime
            datetime(6)                  Numeric Timestamp { utc: false } -> datetime(6)
            TIMESTAMP                    Numeric Timestamp { utc: false } -> TIMESTAMP
            timestamp(3) with time zone  Numeric Timestamp { utc: true } -> TIMESTAMPTZ
            DECIMAL(12,2)                Numeric Decimal { precision: 12, scale: 2 } -> DECIMAL(12,2)
            NUMERIC (38 , 10)            Numeric Decimal { precision: 38, scale: 10 } -> DECIMAL_TEXT(38,10)
            decimal                      Numeric Any -> decimal
            NUMERIC(39,0)                Numeric Any -> NUMERIC(39,0)
            DECIMAL(5)                   Numeric Decimal { precision: 5, scale: 0 } -> DECIMAL(5,0)
            DECIMAL_TEXT(20,4)           Text Decimal { precision: 20, scale: 4 } -> DECIMAL_TEXT(20,4)
            uuid                         Numeric Uuid -> uuid
            VARBINARY(16)                Numeric Blob -> VARBINARY(16)
            STRING                       Numeric Any -> STRING
            JSON                         Numeric Any -> JSON
        "#]]
        .assert_eq(&text);
    }

    #[test]
    fn a_type_named_by_the_user_wins() {
        let mut policy = ValuePolicy::default();
        policy.types.insert("at".into(), "unix_milliseconds".into());
        policy.types.insert("odd".into(), "decimal(99,1)".into());
        assert_eq!(resolve("at", "INTEGER", &policy).unwrap().kind, Kind::Unix { per_second: 1000 });
        assert_eq!(resolve("odd", "TEXT", &policy).unwrap_err().kind(), ErrorKind::Config);
    }
}
