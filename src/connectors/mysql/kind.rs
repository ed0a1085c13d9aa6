//! MySQL's types by name: what a column holds, and which types hold which others unchanged.

/// A type with what it holds. Lengths are in characters or bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Bytes of the number, and whether it has no sign.
    Int(u8, bool),
    Year,
    /// So many bits.
    Bit(u8),
    Float,
    Double,
    Decimal(u8, u8),
    Char(u32),
    Varchar(u32),
    /// At most so many bytes.
    Text(u64),
    Binary(u32),
    Varbinary(u32),
    /// At most so many bytes.
    Blob(u64),
    Uuid,
    Date,
    Time(u8),
    DateTime(u8),
    /// Between 1970 and 2038, in UTC.
    Timestamp(u8),
    /// A text that the server checks: `json`, `enum`, `set`, `inet6`.
    Checked,
}

/// The most bytes of `tinytext`, `text`, `mediumtext` and `longtext`, and of their binary brothers.
const TINY: u64 = 255;
const SMALL: u64 = 65_535;
const MEDIUM: u64 = 16_777_215;
const LONG: u64 = 4_294_967_295;

impl Kind {
    /// From SQL: `bigint unsigned`, `decimal(12,2)`. `None` for types that nothing is loaded into.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let lower = name.to_ascii_lowercase();
        let word = lower.split([' ', '(']).next().unwrap_or_default();
        let arguments =
            lower.split_once('(').and_then(|(_, rest)| rest.split_once(')')).map(|(inner, _)| inner);
        let number = |index: usize| -> Option<u32> { arguments?.split(',').nth(index)?.trim().parse().ok() };
        let small = |index: usize, otherwise: u8| number(index).map_or(otherwise, |n| n.min(255) as u8);
        let unsigned = lower.contains(" unsigned");
        Some(match word {
            "tinyint" => Self::Int(1, unsigned),
            "smallint" => Self::Int(2, unsigned),
            "mediumint" => Self::Int(3, unsigned),
            "int" => Self::Int(4, unsigned),
            "bigint" => Self::Int(8, unsigned),
            "year" => Self::Year,
            "bit" => Self::Bit(small(0, 1)),
            "float" => Self::Float,
            "double" => Self::Double,
            "decimal" => Self::Decimal(small(0, 10), small(1, 0)),
            "char" => Self::Char(number(0).unwrap_or(1)),
            "varchar" => Self::Varchar(number(0)?),
            "tinytext" => Self::Text(TINY),
            "text" => Self::Text(SMALL),
            "mediumtext" => Self::Text(MEDIUM),
            "longtext" => Self::Text(LONG),
            "binary" => Self::Binary(number(0).unwrap_or(1)),
            "varbinary" => Self::Varbinary(number(0)?),
            "tinyblob" => Self::Blob(TINY),
            "blob" => Self::Blob(SMALL),
            "mediumblob" => Self::Blob(MEDIUM),
            "longblob" => Self::Blob(LONG),
            "uuid" => Self::Uuid,
            "date" => Self::Date,
            "time" => Self::Time(small(0, 0)),
            "datetime" => Self::DateTime(small(0, 0)),
            "timestamp" => Self::Timestamp(small(0, 0)),
            "json" | "enum" | "set" | "inet4" | "inet6" => Self::Checked,
            _ => return None,
        })
    }

    /// Whether its values are texts.
    pub(super) fn is_text(self) -> bool {
        matches!(self, Self::Varchar(_) | Self::Char(_) | Self::Text(_))
    }

    fn is_bytes(self) -> bool {
        matches!(self, Self::Varbinary(_) | Self::Binary(_) | Self::Blob(_))
    }

    /// The most bytes that a value has in a key; `None` for types that no key of ours has.
    pub(super) fn key_bytes(self) -> Option<u32> {
        Some(match self {
            Self::Int(width, _) => width.into(),
            Self::Bit(_) | Self::Double => 8,
            Self::Year => 1,
            Self::Float => 4,
            Self::Decimal(precision, _) => u32::from(precision) / 2 + 2,
            Self::Char(length) | Self::Varchar(length) => 4 * length,
            Self::Binary(length) | Self::Varbinary(length) => length,
            Self::Uuid => 16,
            Self::Date => 3,
            Self::Time(_) => 6,
            Self::DateTime(_) => 8,
            Self::Timestamp(_) => 7,
            Self::Text(_) | Self::Blob(_) | Self::Checked => return None,
        })
    }

    /// The smallest and the largest whole number that it holds.
    pub(super) fn range(self) -> Option<(i128, i128)> {
        match self {
            Self::Int(width, true) => Some((0, (1 << (8 * i128::from(width))) - 1)),
            Self::Int(width, false) => {
                let half = 1_i128 << (8 * i128::from(width) - 1);
                Some((-half, half - 1))
            }
            // Without the year 0, which stands for none.
            Self::Year => Some((1901, 2155)),
            Self::Bit(bits) => Some((0, (1_i128 << bits) - 1)),
            _ => None,
        }
    }

    /// The most characters and bytes of a text, or bytes of bytes.
    fn room(self) -> (u64, u64) {
        match self {
            Self::Char(n) | Self::Varchar(n) => (n.into(), 4 * u64::from(n)),
            Self::Binary(n) | Self::Varbinary(n) => (n.into(), n.into()),
            // Each character takes at least a byte.
            Self::Text(bytes) | Self::Blob(bytes) => (bytes / 4, bytes),
            _ => (0, 0),
        }
    }
}

/// Whether each value of the first type is a value of the second, unchanged.
pub(super) fn fits(narrow: &str, wide: &str) -> bool {
    let (Some(narrow), Some(wide)) = (Kind::parse(narrow), Kind::parse(wide)) else { return narrow == wide };
    if narrow == wide {
        return true;
    }
    use Kind as K;
    match (narrow, wide) {
        (K::Int(..) | K::Year, K::Int(..)) => match (narrow.range(), wide.range()) {
            (Some((low, high)), Some((lower, higher))) => lower <= low && high <= higher,
            _ => false,
        },
        (K::Int(width, unsigned), K::Decimal(precision, scale)) => {
            let digits = match (width, unsigned) {
                (1, _) => 3,
                (2, _) => 5,
                (3, _) => 8,
                (4, _) => 10,
                (_, false) => 19,
                (_, true) => 20,
            };
            precision >= digits + scale
        }
        (K::Float, K::Double) => true,
        (K::Decimal(precision, scale), K::Decimal(wider, finer)) => {
            finer >= scale && wider.saturating_sub(finer) >= precision.saturating_sub(scale)
        }
        // A `char` loses the blanks at its end, and gives none away.
        (K::Char(_) | K::Varchar(_) | K::Text(_), K::Varchar(_) | K::Text(_)) => match wide {
            K::Varchar(_) => narrow.room().0 <= wide.room().0 && !matches!(narrow, K::Text(_)),
            _ => narrow.room().1 <= wide.room().1,
        },
        (K::Varbinary(_) | K::Binary(_) | K::Blob(_), K::Varbinary(_) | K::Blob(_)) => {
            narrow.room().1 <= wide.room().1
        }
        (K::Time(narrow), K::Time(wide))
        | (K::DateTime(narrow) | K::Timestamp(narrow), K::DateTime(wide))
        | (K::Timestamp(narrow), K::Timestamp(wide)) => narrow <= wide,
        _ => false,
    }
}

/// Whether the column that is there is good enough for the one that is wanted. One that is narrower is,
/// since each value is held against it before it is sent; unless we made it for a lake whose type has
/// grown since, and may make it grow as well.
pub(super) fn serves(wanted: &str, there: &str, ours: bool) -> bool {
    if fits(wanted, there) {
        return true;
    }
    let (Some(wanted), Some(there)) = (Kind::parse(wanted), Kind::parse(there)) else { return false };
    is_checked(wanted, there) && !(ours && grows(there, wanted))
}

/// Whether the values of one arrive in the other, or are refused one by one.
fn is_checked(wanted: Kind, there: Kind) -> bool {
    use Kind as K;
    let is_whole = |kind| matches!(kind, K::Int(..) | K::Year | K::Bit(_));
    match (wanted, there) {
        (K::Int(..), K::Decimal(..)) | (K::Decimal(..), K::Decimal(..)) => true,
        (K::Time(_), K::Time(_)) | (K::DateTime(_) | K::Timestamp(_), K::DateTime(_) | K::Timestamp(_)) => {
            true
        }
        (wanted, K::Checked) => wanted.is_text(),
        (K::Binary(16), K::Uuid) => true,
        _ => {
            (is_whole(wanted) && is_whole(there))
                || (wanted.is_text() && there.is_text())
                || (wanted.is_bytes() && there.is_bytes())
        }
    }
}

/// What evolution does to a column: the same kind of value, with more room.
fn grows(from: Kind, to: Kind) -> bool {
    use Kind as K;
    matches!(
        (from, to),
        (K::Int(..), K::Int(..) | K::Decimal(..))
            | (K::Decimal(..), K::Decimal(..))
            | (K::Time(_), K::Time(_))
            | (K::DateTime(_), K::DateTime(_))
            | (K::Varchar(_), K::Varchar(_))
            | (K::Varbinary(_), K::Varbinary(_))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wider_types_hold_narrower_ones() {
        for (narrow, wide) in [
            ("int", "bigint"),
            ("int unsigned", "bigint"),
            ("tinyint(1)", "smallint"),
            ("bigint unsigned", "decimal(20,0)"),
            ("decimal(12,2)", "decimal(14,3)"),
            ("varchar(10)", "varchar(20)"),
            ("varchar(10)", "longtext"),
            ("char(10)", "varchar(10)"),
            ("varbinary(8)", "blob"),
            ("datetime(3)", "datetime(6)"),
            ("timestamp", "datetime"),
            ("float", "double"),
        ] {
            assert!(fits(narrow, wide), "{narrow} into {wide}");
            assert!(!fits(wide, narrow), "{wide} into {narrow}");
        }
        for (one, other) in [
            ("int", "longtext"),
            ("int", "int unsigned"),
            ("decimal(12,2)", "decimal(12,3)"),
            ("longtext", "varchar(1000)"),
            ("varchar(10)", "char(10)"),
            ("datetime", "timestamp"),
            ("date", "datetime"),
        ] {
            assert!(!fits(one, other), "{one} into {other}");
        }
    }

    #[test]
    fn narrower_columns_serve_where_each_value_is_checked() {
        for (wanted, there) in [
            ("longtext", "varchar(50)"),
            ("longtext", "enum('a','b')"),
            ("bigint", "int unsigned"),
            ("bigint", "year"),
            ("datetime(6)", "timestamp"),
            ("decimal(20,0)", "decimal(5,2)"),
            ("longblob", "binary(16)"),
        ] {
            assert!(serves(wanted, there, false), "{wanted} into {there}");
        }
        assert!(!serves("bigint", "int", true));
        assert!(!serves("decimal(20,2)", "decimal(10,2)", true));
        assert!(serves("longtext", "varchar(50)", true));
        for (wanted, there) in
            [("longtext", "int"), ("double", "float"), ("decimal(5,0)", "int"), ("date", "datetime")]
        {
            assert!(!serves(wanted, there, false), "{wanted} into {there}");
        }
    }

    #[test]
    fn names_are_read() {
        assert_eq!(Kind::parse("bigint(20) unsigned zerofill"), Some(Kind::Int(8, true)));
        assert_eq!(Kind::parse("decimal(65, 30)"), Some(Kind::Decimal(65, 30)));
        assert_eq!(Kind::parse("DATETIME"), Some(Kind::DateTime(0)));
        assert_eq!(Kind::parse("enum('a)','b')"), Some(Kind::Checked));
        assert_eq!(Kind::parse("point"), None);
        assert_eq!(Kind::parse("bit(64)").and_then(Kind::range), Some((0, u64::MAX.into())));
        assert_eq!(Kind::parse("bigint").and_then(Kind::range), Some((i64::MIN.into(), i64::MAX.into())));
    }
}
