//! Values of the test: their types, how each database writes them, and the one text by which values from
//! any place are compared.

use super::chance::Chance;
use crate::clients::mysql;

/// The type of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Int,
    Long,
    Decimal,
    /// What a decimal becomes that gets more digits.
    Wide,
    Double,
    Bool,
    Text,
    Bytes,
    Date,
    Moment,
}

/// Whose SQL is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Sqlite,
    Postgres,
    Mysql,
}

/// A value as it is compared: NULL, or its text.
pub(super) type Value = Option<String>;

/// Microseconds of a second.
const SECOND: i64 = 1_000_000;
/// Texts with something in them that somebody once got wrong.
const PIECES: [&str; 14] = [
    "",
    " ",
    "O'Brien",
    "naïve ☕ 日本",
    "two\nlines",
    "tab\there",
    "\\N",
    "NULL",
    "∅",
    "50%_x",
    "\"quoted\"",
    "a,b;c|d",
    "\u{1f980}\u{200d}\u{feff}",
    "trailing ",
];

impl Kind {
    /// All that a new column may have.
    pub(super) const ALL: [Self; 9] = [
        Self::Int,
        Self::Long,
        Self::Decimal,
        Self::Double,
        Self::Bool,
        Self::Text,
        Self::Bytes,
        Self::Date,
        Self::Moment,
    ];

    /// As a column is declared.
    pub(super) fn declared(self, dialect: Dialect) -> &'static str {
        match (self, dialect) {
            (Self::Int, _) => "integer",
            (Self::Long, Dialect::Sqlite) => "bigint",
            (Self::Long, Dialect::Postgres | Dialect::Mysql) => "bigint",
            (Self::Decimal, _) => "decimal(12,2)",
            (Self::Wide, _) => "decimal(15,2)",
            (Self::Double, _) => "double precision",
            (Self::Bool, _) => "boolean",
            (Self::Text, _) => "text",
            (Self::Bytes, Dialect::Sqlite) => "blob",
            (Self::Bytes, Dialect::Postgres) => "bytea",
            (Self::Bytes, Dialect::Mysql) => "longblob",
            (Self::Date, _) => "date",
            (Self::Moment, Dialect::Mysql) => "datetime(6)",
            (Self::Moment, _) => "timestamptz",
        }
    }

    /// The type that holds all of its values and more.
    pub(super) fn wider(self) -> Option<Self> {
        match self {
            Self::Int => Some(Self::Long),
            Self::Decimal => Some(Self::Wide),
            _ => None,
        }
    }

    /// Any value of the type, the odd ones among them.
    pub(super) fn any(self, chance: &mut Chance) -> String {
        let text = match self {
            Self::Int => match chance.below(12) {
                0 => i32::MAX.to_string(),
                1 => i32::MIN.to_string(),
                _ => (chance.below(2000) as i64 - 1000).to_string(),
            },
            Self::Long => match chance.below(8) {
                0 => i64::MAX.to_string(),
                1 => i64::MIN.to_string(),
                _ => chance.number().to_string(),
            },
            // Cents: twelve digits hold them.
            Self::Decimal | Self::Wide => {
                let cents = chance.number() % 1_000_000_000_000;
                let sign = if cents < 0 { "-" } else { "" };
                format!("{sign}{}.{:02}", (cents / 100).abs(), (cents % 100).abs())
            }
            // Few binary digits: every database reads and writes them without rounding.
            Self::Double => format!("{:?}", (chance.number() % 100_000_000) as f64 / 64.0),
            Self::Bool => chance.below(2).to_string(),
            Self::Text => text(chance),
            Self::Bytes => {
                let length = *chance.pick(&[0, 1, 7, 64]);
                (0..length).map(|_| format!("{:02x}", chance.below(256))).collect()
            }
            Self::Date => moment((chance.below(40_000) as i64 - 5_000) * 86_400 * SECOND)[..10].to_owned(),
            Self::Moment => moment(chance.number() % (4_000_000_000 * SECOND)),
        };
        self.canonical(&text)
    }

    /// The one text of a value, of whatever a database or the lake writes for it.
    pub(super) fn canonical(self, text: &str) -> String {
        match self {
            Self::Int | Self::Long | Self::Text | Self::Date => text.to_owned(),
            Self::Decimal | Self::Wide => {
                let short = match text.split_once('.') {
                    Some(_) => text.trim_end_matches('0').trim_end_matches('.'),
                    None => text,
                };
                if short == "-0" { "0".to_owned() } else { short.to_owned() }
            }
            Self::Double => {
                text.parse::<f64>().map_or_else(|_| text.to_owned(), |value| format!("{value:?}"))
            }
            Self::Bool => match text {
                "t" | "true" | "1" => "1".to_owned(),
                "f" | "false" | "0" => "0".to_owned(),
                other => other.to_owned(),
            },
            Self::Bytes => text.trim_start_matches("\\x").to_ascii_lowercase(),
            Self::Moment => {
                let text = text.replacen('T', " ", 1);
                let zoneless = ["+00:00", "+00", "Z"].iter().find_map(|zone| text.strip_suffix(zone));
                let text = zoneless.unwrap_or(&text);
                match text.split_once('.') {
                    Some(_) => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
                    None => text.to_owned(),
                }
            }
        }
    }

    /// As a statement says it.
    pub(super) fn literal(self, dialect: Dialect, value: &Value) -> String {
        let Some(text) = value else { return "NULL".to_owned() };
        match (self, dialect) {
            (Self::Int | Self::Long | Self::Decimal | Self::Wide | Self::Double, _) => text.clone(),
            (Self::Bool, Dialect::Sqlite | Dialect::Mysql) => text.clone(),
            (Self::Bool, Dialect::Postgres) => if text == "1" { "true" } else { "false" }.to_owned(),
            (Self::Bytes, Dialect::Sqlite | Dialect::Mysql) => format!("x'{text}'"),
            (Self::Bytes, Dialect::Postgres) => format!("'\\x{text}'"),
            (Self::Moment, Dialect::Postgres) => format!("'{text}+00'"),
            (Self::Text, Dialect::Mysql) => mysql::literal(text),
            (Self::Text | Self::Date | Self::Moment, _) => format!("'{}'", text.replace('\'', "''")),
        }
    }
}

/// Where a cursor's value is in its order: a time in microseconds, or a number.
pub(super) fn rank(text: &str) -> i64 {
    if let Ok(number) = text.parse() {
        return number;
    }
    let parsed = chrono::NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f");
    parsed.map_or(i64::MAX, |time| time.and_utc().timestamp_micros())
}

/// A time, from microseconds since 1970.
pub(super) fn moment(micros: i64) -> String {
    let time = chrono::DateTime::from_timestamp_micros(micros).unwrap_or_default();
    Kind::Moment.canonical(&time.format("%Y-%m-%d %H:%M:%S%.6f").to_string())
}

fn text(chance: &mut Chance) -> String {
    if chance.one_in(40) {
        return "long ".repeat(400);
    }
    let pieces = chance.below(3) + 1;
    let text: String = (0..pieces).map(|_| *chance.pick(&PIECES)).collect();
    format!("{text}{}", chance.below(1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_text_for_one_value() {
        for (kind, texts) in [
            (Kind::Decimal, vec!["12.50", "12.5"]),
            (Kind::Decimal, vec!["-3.00", "-3"]),
            (Kind::Decimal, vec!["0.00", "0", "-0.00"]),
            (Kind::Double, vec!["1e3", "1000", "1000.0"]),
            (Kind::Bool, vec!["t", "true", "1"]),
            (Kind::Bytes, vec!["\\xDEAD", "dead"]),
            (Kind::Moment, vec!["2026-01-02 03:04:05.120+00", "2026-01-02T03:04:05.12Z"]),
            (Kind::Text, vec!["12.50"]),
        ] {
            let canonical: std::collections::BTreeSet<_> =
                texts.iter().map(|text| kind.canonical(text)).collect();
            assert_eq!(canonical.len(), 1, "{canonical:?}");
        }
        assert_eq!(rank(&moment(1_700_000_000_123_456)), 1_700_000_000_123_456);
        assert_eq!(Kind::Decimal.canonical("100"), "100");
    }

    #[test]
    fn any_value_is_its_own_text() {
        let mut chance = Chance::of(3, 0);
        for kind in Kind::ALL {
            for _ in 0..200 {
                let value = kind.any(&mut chance);
                assert_eq!(kind.canonical(&value), value);
            }
        }
    }
}
