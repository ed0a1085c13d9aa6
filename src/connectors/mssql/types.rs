//! How SQL Server types travel: one table, from which the reference page is made.
//!
//! What the wire would change on the way is converted by the server: `money` comes as a float, a text
//! in UTF-8 would be read in the code page of its locale, a `hierarchyid` has no form but its own.

use super::codec::Codec;
use crate::error::{Error, ErrorKind, Result};
use crate::source::{OutOfRange, SubMicrosecond, ValuePolicy};
use crate::table::Fidelity;

/// The code page in which single bytes are read here exactly as the server means them. All others are
/// turned into Unicode by the server: the client's tables are those of the web, which differ in places,
/// and take UTF-8 for the locale's code page.
const READ_DIRECTLY: i32 = 1252;

/// The largest precision of the lake's decimals.
const MAX_PRECISION: u8 = 38;

/// How a column is selected and decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Conversion {
    pub(super) codec: Codec,
    /// An expression with `{}` for the column; `None`: the column itself.
    pub(super) expression: Option<String>,
    pub(super) fidelity: Fidelity,
}

impl Conversion {
    /// The column in a SELECT list.
    pub(super) fn selected(&self, column: &str) -> String {
        self.expression.as_ref().map_or(column.to_owned(), |text| text.replace("{}", column))
    }
}

/// A type as the catalog has it: always by name, never by number.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct TypeOf {
    /// The system type below any alias.
    pub(super) base: String,
    /// Bytes; -1 is `max`.
    pub(super) length: i16,
    pub(super) precision: u8,
    pub(super) scale: u8,
    /// Of texts that are not Unicode.
    pub(super) code_page: Option<i32>,
}

impl TypeOf {
    /// The type as T-SQL writes it, aliases resolved: another server has not these aliases.
    pub(super) fn written(&self) -> String {
        let base = self.base.as_str();
        let size = |bytes: i16, each: i16| match bytes {
            -1 => "max".to_owned(),
            bytes => (bytes / each).to_string(),
        };
        match base {
            "char" | "varchar" | "binary" | "varbinary" => format!("{base}({})", size(self.length, 1)),
            "nchar" | "nvarchar" => format!("{base}({})", size(self.length, 2)),
            "decimal" | "numeric" => format!("{base}({},{})", self.precision, self.scale),
            "datetime2" | "datetimeoffset" | "time" => format!("{base}({})", self.scale),
            "float" if self.precision <= 24 => "real".to_owned(),
            "timestamp" => "rowversion".to_owned(),
            "sysname" => "nvarchar(128)".to_owned(),
            _ => base.to_owned(),
        }
    }
}

/// What is special about a mapping.
#[derive(Debug, Clone, Copy)]
enum Note {
    Exact,
    /// Without loss, in another form.
    As(&'static str),
    /// Some values are settled by `out_of_range`.
    Without(&'static str),
    /// Times of seven digits are settled by `sub_microsecond`.
    Fine,
}

struct Mapping {
    names: &'static [&'static str],
    codec: Codec,
    expression: Option<&'static str>,
    note: Note,
}

const fn plain(names: &'static [&'static str], codec: Codec) -> Mapping {
    Mapping { names, codec, expression: None, note: Note::Exact }
}

const fn by(names: &'static [&'static str], codec: Codec, expression: &'static str, note: Note) -> Mapping {
    Mapping { names, codec, expression: Some(expression), note }
}

/// A value of any type as text that means the same value, by what is inside.
const VARIANT: &str = "CASE CAST(SQL_VARIANT_PROPERTY({}, 'BaseType') AS nvarchar(128)) \
     WHEN N'float' THEN CONVERT(nvarchar(max), CAST({} AS float), 3) \
     WHEN N'real' THEN CONVERT(nvarchar(max), CAST({} AS real), 3) \
     WHEN N'money' THEN CONVERT(nvarchar(max), CAST({} AS decimal(19,4))) \
     WHEN N'smallmoney' THEN CONVERT(nvarchar(max), CAST({} AS decimal(10,4))) \
     WHEN N'datetime' THEN CONVERT(nvarchar(max), CAST({} AS datetime), 126) \
     WHEN N'smalldatetime' THEN CONVERT(nvarchar(max), CAST({} AS smalldatetime), 126) \
     WHEN N'datetime2' THEN CONVERT(nvarchar(max), CAST({} AS datetime2(7)), 126) \
     WHEN N'datetimeoffset' THEN CONVERT(nvarchar(max), CAST({} AS datetimeoffset(7)), 126) \
     WHEN N'binary' THEN CONVERT(nvarchar(max), CAST({} AS varbinary(8000)), 1) \
     WHEN N'varbinary' THEN CONVERT(nvarchar(max), CAST({} AS varbinary(8000)), 1) \
     ELSE CAST({} AS nvarchar(4000)) END";

/// The table. Decimals, times and texts that are not Unicode have rules of their own, below.
const MAPPINGS: &[Mapping] = &[
    plain(&["bit"], Codec::Bool),
    plain(&["tinyint", "smallint", "int"], Codec::Int32),
    plain(&["bigint"], Codec::Int64),
    plain(&["real"], Codec::Float32),
    by(&["money"], Codec::Decimal { precision: 19, scale: 4 }, "CAST({} AS decimal(19,4))", Note::Exact),
    by(&["smallmoney"], Codec::Decimal { precision: 10, scale: 4 }, "CAST({} AS decimal(10,4))", Note::Exact),
    plain(&["nchar", "nvarchar", "sysname"], Codec::Text),
    by(&["ntext"], Codec::Text, "CAST({} AS nvarchar(max))", Note::Exact),
    by(&["text"], Codec::Text, "CAST({} AS nvarchar(max))", Note::Exact),
    plain(&["binary", "varbinary"], Codec::Bytes),
    by(&["image"], Codec::Bytes, "CAST({} AS varbinary(max))", Note::Exact),
    by(&["timestamp"], Codec::Bytes, "CAST({} AS binary(8))", Note::As("eight bytes, the greatest first")),
    plain(&["uniqueidentifier"], Codec::Uuid),
    plain(&["date"], Codec::Date),
    Mapping { names: &["time"], codec: Codec::Time, expression: None, note: Note::Fine },
    plain(&["smalldatetime"], Codec::Timestamp),
    Mapping {
        names: &["datetime"],
        codec: Codec::Timestamp,
        expression: None,
        note: Note::As("whole milliseconds, as it shows; it becomes the same 1/300 s again"),
    },
    Mapping { names: &["datetime2"], codec: Codec::Timestamp, expression: None, note: Note::Fine },
    Mapping {
        names: &["datetimeoffset"],
        codec: Codec::TimestampTz,
        expression: None,
        note: Note::As("its instant in UTC; `types: {column: text}` keeps the offset"),
    },
    by(&["xml"], Codec::Text, "CAST({} AS nvarchar(max))", Note::As("its text, as the server writes it")),
    by(&["json"], Codec::Text, "CAST({} AS nvarchar(max))", Note::As("its text")),
    by(&["hierarchyid"], Codec::Text, "{}.ToString()", Note::As("its path: `/1/2/`")),
    by(
        &["geography", "geometry"],
        Codec::Bytes,
        "{}.AsBinaryZM()",
        Note::As("WKB with Z and M; the SRID is left out"),
    ),
    by(&["sql_variant"], Codec::Text, VARIANT, Note::As("text of the value; the type inside is left out")),
];

/// How a column of this type travels under the stream's policy.
pub(super) fn conversion(column: &str, of: &TypeOf, policy: &ValuePolicy) -> Result<Conversion> {
    if let Some(wanted) = policy.types.get(column) {
        return asked(column, wanted, of, policy);
    }
    Ok(by_rule(of, policy))
}

fn by_rule(of: &TypeOf, policy: &ValuePolicy) -> Conversion {
    let exact =
        |codec, expression: Option<String>| Conversion { codec, expression, fidelity: Fidelity::Exact };
    match of.base.as_str() {
        "decimal" | "numeric" => {
            return exact(Codec::Decimal { precision: of.precision, scale: of.scale }, None);
        }
        "float" if of.precision <= 24 => return exact(Codec::Float32, None),
        "float" => return exact(Codec::Float64, None),
        "char" | "varchar" if of.code_page == Some(READ_DIRECTLY) => return exact(Codec::Text, None),
        "char" | "varchar" => {
            // A character of UTF-8 takes up to two of UTF-16, for at least as many bytes.
            let length = match of.length {
                1..=4000 => of.length.to_string(),
                _ => "max".to_owned(),
            };
            return exact(Codec::Text, Some(format!("CAST({{}} AS nvarchar({length}))")));
        }
        _ => {}
    }
    match MAPPINGS.iter().find(|mapping| mapping.names.contains(&of.base.as_str())) {
        Some(mapping) => Conversion {
            codec: mapping.codec,
            expression: mapping.expression.map(str::to_owned),
            fidelity: mapping.note.fidelity(of, policy),
        },
        // A type of an assembly has no other form that is sure to be there.
        None => Conversion {
            codec: Codec::Bytes,
            expression: Some("CAST({} AS varbinary(max))".to_owned()),
            fidelity: Fidelity::Represented("the bytes in which the server stores it".to_owned()),
        },
    }
}

/// What the user asked for instead of the rule.
fn asked(column: &str, wanted: &str, of: &TypeOf, policy: &ValuePolicy) -> Result<Conversion> {
    let bad = || {
        Error::new(ErrorKind::Config, format!("`{wanted}` is no type for a column of type {}", of.written()))
            .with("column", column)
            .hint("use `text`, `decimal(precision,scale)` with a precision up to 38, or for `datetime2` and `datetimeoffset` `timestamp_ns`")
    };
    let wanted = wanted.trim().to_ascii_lowercase();
    if wanted == "text" {
        return Ok(as_text(of, policy));
    }
    if wanted == "timestamp_ns" {
        let codec = match of.base.as_str() {
            "datetime2" => Codec::TimestampNs,
            "datetimeoffset" => Codec::TimestampTzNs,
            _ => return Err(bad()),
        };
        let fidelity = Note::Without("a time before 1677 or after 2262").fidelity(of, policy);
        return Ok(Conversion { codec, expression: None, fidelity });
    }
    let inner = wanted.strip_prefix("decimal(").or_else(|| wanted.strip_prefix("numeric("));
    let inner = inner.and_then(|inner| inner.strip_suffix(')')).ok_or_else(bad)?;
    let (precision, scale) = inner.split_once(',').unwrap_or((inner, "0"));
    let precision: u8 = precision.trim().parse().map_err(|_| bad())?;
    let scale: u8 = scale.trim().parse().map_err(|_| bad())?;
    let number = matches!(of.base.as_str(), "decimal" | "numeric" | "money" | "smallmoney");
    if precision == 0 || precision > MAX_PRECISION || scale > precision || !number {
        return Err(bad());
    }
    // The server would round; here a number that does not fit is noticed.
    let own = by_rule(of, policy);
    Ok(Conversion {
        codec: Codec::Decimal { precision, scale },
        expression: own.expression,
        fidelity: Note::Without("a number that does not fit").fidelity(of, policy),
    })
}

/// Text that means the same value again.
fn as_text(of: &TypeOf, policy: &ValuePolicy) -> Conversion {
    let expression = match of.base.as_str() {
        "real" | "float" => "CONVERT(nvarchar(max), {}, 3)",
        "money" | "smallmoney" => "CONVERT(nvarchar(max), {}, 2)",
        "date" | "time" | "datetime" | "smalldatetime" | "datetime2" | "datetimeoffset" => {
            "CONVERT(nvarchar(max), {}, 126)"
        }
        "binary" | "varbinary" => "CONVERT(nvarchar(max), {}, 1)",
        "image" => "CONVERT(nvarchar(max), CAST({} AS varbinary(max)), 1)",
        "timestamp" => "CONVERT(nvarchar(max), CAST({} AS binary(8)), 1)",
        "geography" | "geometry" => "{}.AsTextZM()",
        _ => {
            let own = by_rule(of, policy);
            if own.codec == Codec::Text {
                return own;
            }
            "CAST({} AS nvarchar(max))"
        }
    };
    Conversion {
        codec: Codec::Text,
        expression: Some(expression.to_owned()),
        fidelity: Fidelity::Represented("text, as asked".to_owned()),
    }
}

impl Note {
    fn fidelity(self, of: &TypeOf, policy: &ValuePolicy) -> Fidelity {
        match self {
            Self::Exact => Fidelity::Exact,
            Self::As(note) => {
                let fine = of.scale > 6 && policy.sub_microsecond == SubMicrosecond::Fail;
                match (fine, of.base.as_str()) {
                    (true, "datetimeoffset") => {
                        Fidelity::Limited(format!("{note}; a value finer than a microsecond stops the read"))
                    }
                    _ => Fidelity::Represented(note.to_owned()),
                }
            }
            Self::Fine if of.scale <= 6 => Fidelity::Exact,
            Self::Fine => Fidelity::Limited(match policy.sub_microsecond {
                SubMicrosecond::Fail => "a value finer than a microsecond stops the read".to_owned(),
                SubMicrosecond::Truncate => "values are cut at the microsecond".to_owned(),
            }),
            Self::Without(what) => Fidelity::Limited(match policy.out_of_range {
                OutOfRange::Fail => format!("{what} stops the read"),
                OutOfRange::Null => format!("{what} becomes NULL"),
                OutOfRange::Clamp => format!("{what} becomes the nearest value that fits"),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn of(base: &str, length: i16, precision: u8, scale: u8, code_page: Option<i32>) -> TypeOf {
        TypeOf { base: base.into(), length, precision, scale, code_page }
    }

    #[test]
    fn types_are_written_as_they_were_declared() {
        for (of, expected) in [
            (of("nvarchar", 100, 0, 0, None), "nvarchar(50)"),
            (of("varchar", -1, 0, 0, Some(1252)), "varchar(max)"),
            (of("decimal", 17, 38, 10, None), "decimal(38,10)"),
            (of("datetime2", 8, 27, 7, None), "datetime2(7)"),
            (of("timestamp", 8, 0, 0, None), "rowversion"),
            (of("float", 8, 53, 0, None), "float"),
            (of("int", 4, 10, 0, None), "int"),
        ] {
            assert_eq!(of.written(), expected);
        }
    }

    /// Traps 1 and 11, and code pages: what the wire would change is converted by the server.
    #[test]
    fn the_server_converts_what_the_wire_would_change() {
        let selected = |of: TypeOf| by_rule(&of, &ValuePolicy::default()).selected("[c]");
        assert_eq!(selected(of("money", 8, 19, 4, None)), "CAST([c] AS decimal(19,4))");
        assert_eq!(selected(of("hierarchyid", 892, 0, 0, None)), "[c].ToString()");
        assert_eq!(selected(of("geography", -1, 0, 0, None)), "[c].AsBinaryZM()");
        assert_eq!(selected(of("xml", -1, 0, 0, None)), "CAST([c] AS nvarchar(max))");
        assert_eq!(selected(of("timestamp", 8, 0, 0, None)), "CAST([c] AS binary(8))");
        assert_eq!(selected(of("varchar", 20, 0, 0, Some(1252))), "[c]");
        assert_eq!(selected(of("varchar", 20, 0, 0, Some(65001))), "CAST([c] AS nvarchar(20))");
        assert_eq!(selected(of("char", 8000, 0, 0, Some(932))), "CAST([c] AS nvarchar(max))");
        assert_eq!(selected(of("varchar", 20, 0, 0, None)), "CAST([c] AS nvarchar(20))");
        assert_eq!(selected(of("Point3", -1, 0, 0, None)), "CAST([c] AS varbinary(max))");
    }

    #[test]
    fn a_type_that_was_asked_for_is_checked() {
        let policy = ValuePolicy::default();
        let fine = of("datetime2", 8, 27, 7, None);
        assert_eq!(asked("c", "timestamp_ns", &fine, &policy).unwrap().codec, Codec::TimestampNs);
        assert_eq!(
            asked("c", "text", &of("datetimeoffset", 10, 34, 7, None), &policy).unwrap().selected("[c]"),
            "CONVERT(nvarchar(max), [c], 126)"
        );
        assert!(asked("c", "timestamp_ns", &of("int", 4, 10, 0, None), &policy).is_err());
        assert!(asked("c", "decimal(39,1)", &of("money", 8, 19, 4, None), &policy).is_err());
        expect!["config: `float` is no type for a column of type int (column: c)\n  hint: use `text`, `decimal(precision,scale)` with a precision up to 38, or for `datetime2` and `datetimeoffset` `timestamp_ns`"]
            .assert_eq(&format!("{:?}", asked("c", "float", &of("int", 4, 10, 0, None), &policy).unwrap_err()));
    }

    /// The part of docs/reference/types.md between its two markers; `UPDATE_EXPECT=1` rewrites it.
    #[test]
    fn the_reference_page_agrees_with_the_table() {
        const BEGIN: &str = "<!-- mssql: generated from types.rs by UPDATE_EXPECT=1 -->\n";
        const END: &str = "<!-- mssql: end -->\n";
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/types.md");
        let page = std::fs::read_to_string(path).unwrap();
        let (before, rest) = page.split_once(BEGIN).expect("the page has the marker");
        let (now, after) = rest.split_once(END).expect("the page has the end marker");
        if now == reference() {
            return;
        }
        assert!(
            std::env::var_os("UPDATE_EXPECT").is_some(),
            "docs/reference/types.md is stale: run with UPDATE_EXPECT=1"
        );
        std::fs::write(path, format!("{before}{BEGIN}{}{END}{after}", reference())).unwrap();
    }

    fn reference() -> String {
        let mut page =
            String::from("| SQL Server | Arrow | selected as | what to know |\n|---|---|---|---|\n");
        let mut line = |names: String, arrow: String, expression: Option<&str>, note: String| {
            let text = match expression {
                None => "the column".to_owned(),
                Some(text) if text.len() > 40 => "text, by the type inside".to_owned(),
                Some(text) => format!("`{}`", text.replace("{}", "c")),
            };
            page += &format!("| {names} | {arrow} | {text} | {note} |\n");
        };
        for mapping in MAPPINGS {
            let names = mapping.names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
            let note = match mapping.note {
                Note::Exact => "exact".to_owned(),
                Note::As(note) => note.to_owned(),
                Note::Without(what) => format!("exact; {what}: by `out_of_range`"),
                Note::Fine => "exact to the microsecond; what is finer: by `sub_microsecond`".to_owned(),
            };
            line(names, mapping.codec.data_type().to_string(), mapping.expression, note);
        }
        for (names, arrow, expression, note) in [
            ("`decimal(p,s)`, `numeric(p,s)`", "Decimal128(p, s)", None, "exact"),
            ("`float(25…53)`, `float(1…24)`", "Float64, Float32", None, "exact"),
            ("`char`, `varchar` in code page 1252", "Utf8", None, "exact"),
            ("`char`, `varchar` in others, UTF-8 too", "Utf8", Some("CAST({} AS nvarchar(n))"), "exact"),
            ("types made from others", "as their base type", None, "exact"),
            (
                "types of assemblies, and all others",
                "Binary",
                Some("CAST({} AS varbinary(max))"),
                "the bytes in which the server stores it",
            ),
            (
                "`datetime2`, `datetimeoffset` with `types: {c: timestamp_ns}`",
                "Timestamp(ns)",
                None,
                "exact; before 1677 and after 2262: by `out_of_range`; needs `format_version: 3`",
            ),
        ] {
            line(names.to_owned(), arrow.to_owned(), expression, note.to_owned());
        }
        page
    }
}
