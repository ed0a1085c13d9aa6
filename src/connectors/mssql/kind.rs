//! SQL Server's types by name: what a column holds, and which types hold which others unchanged.

/// A type with what it holds. Lengths are in UTF-16 units or bytes; `None` is `max`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Bit,
    /// Bytes of the number.
    Int(u8),
    Real,
    Float,
    Decimal(u8, u8),
    Money,
    SmallMoney,
    NVarchar(Option<u32>),
    NChar(Option<u32>),
    Varchar(Option<u32>),
    Char(Option<u32>),
    Varbinary(Option<u32>),
    Binary(Option<u32>),
    Guid,
    Date,
    Time(u8),
    DateTime,
    SmallDateTime,
    DateTime2(u8),
    Offset(u8),
    Xml,
}

impl Kind {
    /// From T-SQL: `nvarchar(max)`, `decimal(12,2)`. `None` for types that nothing is loaded into.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let (base, arguments) = match name.split_once('(') {
            None => (name.trim(), None),
            Some((base, rest)) => (base.trim(), Some(rest.trim_end().strip_suffix(')')?)),
        };
        let number = |index: usize| -> Option<u32> { arguments?.split(',').nth(index)?.trim().parse().ok() };
        // Without a length it is one character.
        let length = || match arguments {
            None => Some(1),
            Some(_) => number(0),
        };
        let scale = || number(0).map_or(7, |scale| scale as u8);
        Some(match base.to_ascii_lowercase().as_str() {
            "bit" => Self::Bit,
            "tinyint" => Self::Int(1),
            "smallint" => Self::Int(2),
            "int" | "integer" => Self::Int(4),
            "bigint" => Self::Int(8),
            "real" => Self::Real,
            "float" => {
                if number(0).is_some_and(|digits| digits <= 24) {
                    Self::Real
                } else {
                    Self::Float
                }
            }
            "decimal" | "numeric" | "dec" => {
                Self::Decimal(number(0).unwrap_or(18) as u8, number(1).unwrap_or(0) as u8)
            }
            "money" => Self::Money,
            "smallmoney" => Self::SmallMoney,
            "nvarchar" => Self::NVarchar(length()),
            "sysname" => Self::NVarchar(Some(128)),
            "nchar" => Self::NChar(length()),
            "varchar" => Self::Varchar(length()),
            "char" => Self::Char(length()),
            "varbinary" => Self::Varbinary(length()),
            "binary" => Self::Binary(length()),
            "uniqueidentifier" => Self::Guid,
            "date" => Self::Date,
            "time" => Self::Time(scale()),
            "datetime" => Self::DateTime,
            "smalldatetime" => Self::SmallDateTime,
            "datetime2" => Self::DateTime2(scale()),
            "datetimeoffset" => Self::Offset(scale()),
            "xml" => Self::Xml,
            _ => return None,
        })
    }

    /// Whether its values are compared by a collation.
    pub(super) fn is_text(self) -> bool {
        matches!(self, Self::NVarchar(_) | Self::NChar(_) | Self::Varchar(_) | Self::Char(_))
    }

    /// Whether its values are as long as they like.
    pub(super) fn is_binary(self) -> bool {
        matches!(self, Self::Varbinary(_) | Self::Binary(_))
    }

    /// Whether its texts have only the characters of a code page.
    pub(super) fn is_code_page(self) -> bool {
        matches!(self, Self::Varchar(_) | Self::Char(_))
    }

    /// The most bytes that a value has in a key; `None` for types that no key can have.
    pub(super) fn most_bytes(self) -> Option<u32> {
        match self {
            Self::NVarchar(Some(units)) | Self::NChar(Some(units)) => Some(2 * units),
            Self::Varchar(Some(bytes)) | Self::Char(Some(bytes)) | Self::Varbinary(Some(bytes)) => {
                Some(bytes)
            }
            other => other.key_bytes(),
        }
    }

    /// Bytes in a key, of types that have a fixed size.
    pub(super) fn key_bytes(self) -> Option<u32> {
        Some(match self {
            Self::Bit | Self::Int(1) => 1,
            Self::Int(width) => width.into(),
            Self::Real | Self::SmallMoney | Self::SmallDateTime => 4,
            Self::Float | Self::Money | Self::DateTime | Self::DateTime2(_) => 8,
            Self::Decimal(precision, _) => match precision {
                0..=9 => 5,
                10..=19 => 9,
                20..=28 => 13,
                _ => 17,
            },
            Self::Guid => 16,
            Self::Date => 3,
            Self::Time(_) => 5,
            Self::Offset(_) => 10,
            Self::Binary(Some(length)) => length,
            _ => return None,
        })
    }
}

/// Whether each value of the first type is a value of the second, unchanged.
pub(super) fn fits(narrow: &str, wide: &str) -> bool {
    let (Some(narrow), Some(wide)) = (Kind::parse(narrow), Kind::parse(wide)) else { return narrow == wide };
    if narrow == wide {
        return true;
    }
    let shorter = |narrow: Option<u32>, wide: Option<u32>| match (narrow, wide) {
        (_, None) => true,
        (None, Some(_)) => false,
        (Some(narrow), Some(wide)) => narrow <= wide,
    };
    match (narrow, wide) {
        (Kind::Int(narrow), Kind::Int(wide)) => narrow <= wide,
        (Kind::Int(width), Kind::Decimal(precision, scale)) => {
            let digits = match width {
                1 => 3,
                2 => 5,
                4 => 10,
                _ => 19,
            };
            precision >= digits + scale
        }
        (Kind::Real, Kind::Float) | (Kind::SmallMoney, Kind::Money) => true,
        (Kind::Money, Kind::Decimal(precision, scale)) => scale >= 4 && precision >= 15 + scale,
        (Kind::SmallMoney, Kind::Decimal(precision, scale)) => scale >= 4 && precision >= 6 + scale,
        (Kind::Decimal(precision, scale), Kind::Decimal(wide_precision, wide_scale)) => {
            wide_scale >= scale && wide_precision - wide_scale.min(wide_precision) >= precision - scale.min(precision)
        }
        (Kind::NVarchar(narrow), Kind::NVarchar(wide))
        | (Kind::NChar(narrow), Kind::NVarchar(wide))
        | (Kind::Varchar(narrow), Kind::Varchar(wide))
        | (Kind::Char(narrow), Kind::Varchar(wide))
        // Whatever the code page, each character is one unit, or two of as many bytes.
        | (Kind::Varchar(narrow) | Kind::Char(narrow), Kind::NVarchar(wide))
        | (Kind::Varbinary(narrow) | Kind::Binary(narrow), Kind::Varbinary(wide)) => shorter(narrow, wide),
        (Kind::Time(narrow), Kind::Time(wide))
        | (Kind::DateTime2(narrow), Kind::DateTime2(wide))
        | (Kind::Offset(narrow), Kind::Offset(wide)) => narrow <= wide,
        (Kind::SmallDateTime, Kind::DateTime | Kind::DateTime2(_)) => true,
        (Kind::DateTime, Kind::DateTime2(7)) => true,
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
    let is_number = |kind| matches!(kind, Kind::Int(_) | Kind::Decimal(..) | Kind::Money | Kind::SmallMoney);
    let is_time = |kind| matches!(kind, Kind::DateTime | Kind::SmallDateTime | Kind::DateTime2(_));
    let all = |is: &dyn Fn(Kind) -> bool| is(wanted) && is(there);
    match (wanted, there) {
        // Whole numbers are no money.
        (Kind::Int(_), Kind::Money | Kind::SmallMoney) => false,
        (Kind::Decimal(..) | Kind::Money | Kind::SmallMoney, Kind::Int(_)) => false,
        (Kind::Time(_), Kind::Time(_)) | (Kind::Offset(_), Kind::Offset(_)) => true,
        (wanted, Kind::Xml) => wanted.is_text(),
        _ => all(&is_number) || all(&is_time) || all(&Kind::is_text) || all(&Kind::is_binary),
    }
}

/// What evolution does to a column: the same kind of value, with more room.
fn grows(from: Kind, to: Kind) -> bool {
    match (from, to) {
        (Kind::Int(_), Kind::Int(_) | Kind::Decimal(..))
        | (Kind::Decimal(..), Kind::Decimal(..))
        | (Kind::Time(_), Kind::Time(_))
        | (Kind::DateTime2(_), Kind::DateTime2(_))
        | (Kind::Offset(_), Kind::Offset(_))
        | (Kind::NVarchar(Some(_)), Kind::NVarchar(Some(_)))
        | (Kind::Varchar(Some(_)), Kind::Varchar(Some(_)))
        | (Kind::Varbinary(Some(_)), Kind::Varbinary(Some(_))) => true,
        // Ours would have been `max` from the beginning.
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wider_types_hold_narrower_ones() {
        for (narrow, wide) in [
            ("int", "bigint"),
            ("tinyint", "smallint"),
            ("bigint", "decimal(19,0)"),
            ("decimal(12,2)", "decimal(14,3)"),
            ("money", "decimal(19,4)"),
            ("nvarchar(10)", "nvarchar(max)"),
            ("varchar(10)", "nvarchar(10)"),
            ("varbinary(8)", "varbinary(max)"),
            ("datetime2(3)", "datetime2"),
            ("smalldatetime", "datetime2(0)"),
            ("real", "float"),
        ] {
            assert!(fits(narrow, wide), "{narrow} into {wide}");
            assert!(!fits(wide, narrow), "{wide} into {narrow}");
        }
        for (one, other) in [
            ("int", "nvarchar(max)"),
            ("decimal(12,2)", "decimal(12,3)"),
            ("bigint", "decimal(18,0)"),
            ("datetime2(7)", "datetimeoffset(7)"),
            ("nvarchar(10)", "varchar(max)"),
            ("float", "decimal(38,10)"),
        ] {
            assert!(!fits(one, other), "{one} into {other}");
        }
        assert!(fits("numeric(5,2)", "decimal(5,2)"));
    }

    #[test]
    fn narrower_columns_serve_where_each_value_is_checked() {
        for (wanted, there) in [
            ("nvarchar(max)", "varchar(50)"),
            ("decimal(19,4)", "money"),
            ("datetime2(6)", "datetime"),
            ("datetime2(6)", "datetime2(3)"),
            ("bigint", "int"),
            ("varbinary(max)", "binary(16)"),
        ] {
            assert!(serves(wanted, there, false), "{wanted} into {there}");
        }
        // What we made grows with the lake, and what was given to us stays as it is.
        assert!(!serves("bigint", "int", true));
        assert!(!serves("decimal(20,2)", "decimal(10,2)", true));
        assert!(serves("nvarchar(max)", "nvarchar(50)", true));
        assert!(serves("datetime2(6)", "datetime", true));
        for (wanted, there) in
            [("nvarchar(max)", "int"), ("float", "real"), ("datetime2(6)", "datetimeoffset(6)")]
        {
            assert!(!serves(wanted, there, false), "{wanted} into {there}");
        }
    }

    #[test]
    fn names_are_read() {
        assert_eq!(Kind::parse("nvarchar(max)"), Some(Kind::NVarchar(None)));
        assert_eq!(Kind::parse("nvarchar"), Some(Kind::NVarchar(Some(1))));
        assert_eq!(Kind::parse("decimal(38, 6)"), Some(Kind::Decimal(38, 6)));
        assert_eq!(Kind::parse("float(24)"), Some(Kind::Real));
        assert_eq!(Kind::parse("time"), Some(Kind::Time(7)));
        assert_eq!(Kind::parse("geography"), None);
    }
}
