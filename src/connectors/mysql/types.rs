//! How MySQL types travel: one table, from which the reference page is made.
//!
//! Rows come by the binary protocol, in which numbers and times are what they are: as text a `float` would
//! have six digits. Texts are turned into UTF-8 by the server, whatever the column's character set is.

use super::codec::Codec;
use crate::error::{Error, ErrorKind, Result};
use crate::source::{OutOfRange, UnboundedNumeric, ValuePolicy};
use crate::table::Fidelity;

/// The largest precision of the lake's decimals.
const MAX_PRECISION: u8 = 38;

/// How a column is selected and decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Conversion {
    pub(super) codec: Codec,
    /// An expression with `{}` for the column; `None`: the column itself.
    pub(super) expression: Option<&'static str>,
    pub(super) fidelity: Fidelity,
}

impl Conversion {
    /// The column in a SELECT list.
    pub(super) fn selected(&self, column: &str) -> String {
        self.expression.map_or(column.to_owned(), |text| text.replace("{}", column))
    }
}

/// A type as the catalog has it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct TypeOf {
    /// Its name alone: `int`.
    pub(super) base: String,
    /// As it was declared: `int(10) unsigned zerofill`.
    pub(super) declared: String,
    pub(super) unsigned: bool,
    /// Digits of a `decimal`, bits of a `bit`.
    pub(super) precision: u8,
    /// Digits behind the point of a `decimal`, or of a time's seconds.
    pub(super) scale: u8,
    /// Of texts.
    pub(super) collation: Option<String>,
}

impl TypeOf {
    /// The type without what does not change its values: how wide a whole number is shown.
    pub(super) fn written(&self) -> String {
        let unsigned = if self.unsigned { " unsigned" } else { "" };
        match self.base.as_str() {
            // By convention a yes or no, which people want to see again.
            "tinyint" if self.declared.starts_with("tinyint(1)") => format!("tinyint(1){unsigned}"),
            "tinyint" | "smallint" | "mediumint" | "int" | "bigint" => format!("{}{unsigned}", self.base),
            "float" | "double" => format!("{}{unsigned}", self.base),
            "decimal" => format!("decimal({},{}){unsigned}", self.precision, self.scale),
            "year" => "year".to_owned(),
            _ => self.declared.clone(),
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

const fn noted(names: &'static [&'static str], codec: Codec, note: Note) -> Mapping {
    Mapping { names, codec, expression: None, note }
}

const NO_DAY: Note = Note::Without("a date that is no day, like `0000-00-00`,");

/// The table. Numbers without sign, decimals and bits have rules of their own, below.
const MAPPINGS: &[Mapping] = &[
    plain(&["tinyint", "smallint", "mediumint", "int", "year"], Codec::Int32),
    plain(&["bigint"], Codec::Int64),
    plain(&["float"], Codec::Float32),
    plain(&["double"], Codec::Float64),
    plain(&["char", "varchar", "tinytext", "text", "mediumtext", "longtext"], Codec::Text),
    plain(&["binary", "varbinary", "tinyblob", "blob", "mediumblob", "longblob", "vector"], Codec::Bytes),
    noted(&["enum"], Codec::Text, Note::As("the text of the member")),
    noted(&["set"], Codec::Text, Note::As("the texts of the members, with commas")),
    noted(&["json"], Codec::Text, Note::As("its text, as the server writes it")),
    plain(&["uuid"], Codec::Uuid),
    noted(&["inet4", "inet6"], Codec::Text, Note::As("its text")),
    noted(&["date"], Codec::Date, NO_DAY),
    noted(&["time"], Codec::Time, Note::Without("a time below zero or of more than a day")),
    noted(&["datetime"], Codec::Timestamp, NO_DAY),
    noted(&["timestamp"], Codec::TimestampTz, NO_DAY),
    Mapping {
        names: &[
            "geometry",
            "point",
            "linestring",
            "polygon",
            "multipoint",
            "multilinestring",
            "multipolygon",
            "geometrycollection",
            "geomcollection",
        ],
        codec: Codec::Bytes,
        expression: Some("ST_AsBinary({})"),
        note: Note::As("WKB; the SRID is left out"),
    },
];

/// How a column of this type travels under the stream's policy.
pub(super) fn conversion(column: &str, of: &TypeOf, policy: &ValuePolicy) -> Result<Conversion> {
    if let Some(wanted) = policy.types.get(column) {
        return asked(column, wanted, of, policy);
    }
    by_rule(of, policy).map_err(|error| error.with("column", column))
}

fn by_rule(of: &TypeOf, policy: &ValuePolicy) -> Result<Conversion> {
    let exact = |codec| Ok(Conversion { codec, expression: None, fidelity: Fidelity::Exact });
    match of.base.as_str() {
        "int" if of.unsigned => return exact(Codec::Int64),
        "bigint" if of.unsigned => return exact(Codec::Unsigned64),
        "decimal" if of.precision <= MAX_PRECISION => {
            return exact(Codec::Decimal { precision: of.precision, scale: of.scale });
        }
        "decimal" if policy.unbounded_numeric == UnboundedNumeric::Fail => {
            let message = format!("`{}` has more digits than the lake's 38", of.written());
            return Err(Error::new(ErrorKind::Data, message)
                .hint("say in `values: { types: … }` what it is: `decimal(38,10)` or `text`"));
        }
        "decimal" => {
            let note = "text: it has more than 38 digits".to_owned();
            return Ok(Conversion {
                codec: Codec::Text,
                expression: Some("CAST({} AS CHAR)"),
                fidelity: Fidelity::Represented(note),
            });
        }
        "bit" => {
            return exact(match of.precision {
                1 => Codec::Bool,
                2..=63 => Codec::Bits,
                _ => Codec::Bits64,
            });
        }
        _ => {}
    }
    Ok(match MAPPINGS.iter().find(|mapping| mapping.names.contains(&of.base.as_str())) {
        Some(mapping) => Conversion {
            codec: mapping.codec,
            expression: mapping.expression,
            fidelity: mapping.note.fidelity(policy),
        },
        None => Conversion {
            codec: Codec::Text,
            expression: Some("CAST({} AS CHAR)"),
            fidelity: Fidelity::Represented("text, as the server writes it".to_owned()),
        },
    })
}

/// What the user asked for instead of the rule.
fn asked(column: &str, wanted: &str, of: &TypeOf, policy: &ValuePolicy) -> Result<Conversion> {
    let bad = || {
        Error::new(ErrorKind::Config, format!("`{wanted}` is no type for a column of type {}", of.written()))
            .with("column", column)
            .hint("use `text`, for whole numbers `boolean`, for decimals `decimal(precision,scale)` with a precision up to 38")
    };
    let wanted = wanted.trim().to_ascii_lowercase();
    let whole = matches!(of.base.as_str(), "tinyint" | "smallint" | "mediumint" | "int" | "bigint");
    match wanted.as_str() {
        "text" => return as_text(of, policy),
        "boolean" | "bool" if whole => {
            let fidelity = Note::Without("a number that is neither 0 nor 1").fidelity(policy);
            return Ok(Conversion { codec: Codec::Bool, expression: None, fidelity });
        }
        _ => {}
    }
    let inner = wanted.strip_prefix("decimal(").or_else(|| wanted.strip_prefix("numeric("));
    let inner = inner.and_then(|inner| inner.strip_suffix(')')).ok_or_else(bad)?;
    let (precision, scale) = inner.split_once(',').unwrap_or((inner, "0"));
    let precision: u8 = precision.trim().parse().map_err(|_| bad())?;
    let scale: u8 = scale.trim().parse().map_err(|_| bad())?;
    if precision == 0 || precision > MAX_PRECISION || scale > precision || of.base != "decimal" {
        return Err(bad());
    }
    // The server would round; here a number that does not fit is noticed.
    let fidelity = Note::Without("a number that does not fit").fidelity(policy);
    Ok(Conversion { codec: Codec::Decimal { precision, scale }, expression: None, fidelity })
}

/// Text that means the same value again.
fn as_text(of: &TypeOf, policy: &ValuePolicy) -> Result<Conversion> {
    let expression = match of.base.as_str() {
        "binary" | "varbinary" | "tinyblob" | "blob" | "mediumblob" | "longblob" => "HEX({})",
        "bit" => "CAST({} + 0 AS CHAR)",
        // As it is shown it has six digits; as a `double` it has all.
        "float" => "CAST(CAST({} AS DOUBLE) AS CHAR)",
        _ => match by_rule(of, policy) {
            Ok(own) if own.expression.is_some() && own.codec == Codec::Bytes => "ST_AsText({})",
            Ok(own) if own.codec == Codec::Text => return Ok(own),
            _ => "CAST({} AS CHAR)",
        },
    };
    let fidelity = Fidelity::Represented("text, as asked".to_owned());
    Ok(Conversion { codec: Codec::Text, expression: Some(expression), fidelity })
}

impl Note {
    fn fidelity(self, policy: &ValuePolicy) -> Fidelity {
        match self {
            Self::Exact => Fidelity::Exact,
            Self::As(note) => Fidelity::Represented(note.to_owned()),
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
    use super::*;

    fn of(base: &str, declared: &str, precision: u8, scale: u8) -> TypeOf {
        let (base, declared) = (base.to_owned(), declared.to_owned());
        TypeOf { unsigned: declared.contains("unsigned"), base, declared, precision, scale, collation: None }
    }

    #[test]
    fn types_are_written_as_they_were_declared() {
        for (of, expected) in [
            (of("int", "int(10) unsigned zerofill", 10, 0), "int unsigned"),
            (of("tinyint", "tinyint(1)", 3, 0), "tinyint(1)"),
            (of("tinyint", "tinyint(4)", 3, 0), "tinyint"),
            (of("varchar", "varchar(20)", 0, 0), "varchar(20)"),
            (of("enum", "enum('a','b')", 0, 0), "enum('a','b')"),
            (of("decimal", "decimal(10,2) unsigned", 10, 2), "decimal(10,2) unsigned"),
            (of("year", "year(4)", 0, 0), "year"),
            (of("datetime", "datetime(6)", 0, 6), "datetime(6)"),
        ] {
            assert_eq!(of.written(), expected);
        }
    }

    #[test]
    fn numbers_keep_all_their_digits() {
        let codec = |of: TypeOf| by_rule(&of, &ValuePolicy::default()).unwrap().codec;
        assert_eq!(codec(of("int", "int(10) unsigned", 10, 0)), Codec::Int64);
        assert_eq!(codec(of("mediumint", "mediumint unsigned", 7, 0)), Codec::Int32);
        assert_eq!(codec(of("bigint", "bigint(20) unsigned", 20, 0)), Codec::Unsigned64);
        assert_eq!(
            codec(of("decimal", "decimal(38,38)", 38, 38)),
            Codec::Decimal { precision: 38, scale: 38 }
        );
        assert_eq!(codec(of("decimal", "decimal(65,30)", 65, 30)), Codec::Text);
        assert_eq!(codec(of("bit", "bit(1)", 1, 0)), Codec::Bool);
        assert_eq!(codec(of("bit", "bit(63)", 63, 0)), Codec::Bits);
        assert_eq!(codec(of("bit", "bit(64)", 64, 0)), Codec::Bits64);
        let strict = ValuePolicy { unbounded_numeric: UnboundedNumeric::Fail, ..ValuePolicy::default() };
        assert_eq!(
            by_rule(&of("decimal", "decimal(65,30)", 65, 30), &strict).unwrap_err().kind(),
            ErrorKind::Data
        );
    }

    #[test]
    fn a_type_that_was_asked_for_is_checked() {
        let policy = ValuePolicy::default();
        let selected = |wanted: &str, of: TypeOf| asked("c", wanted, &of, &policy).unwrap().selected("`c`");
        assert_eq!(selected("text", of("time", "time", 0, 0)), "CAST(`c` AS CHAR)");
        assert_eq!(selected("text", of("blob", "blob", 0, 0)), "HEX(`c`)");
        assert_eq!(selected("text", of("point", "point", 0, 0)), "ST_AsText(`c`)");
        assert_eq!(selected("text", of("json", "json", 0, 0)), "`c`");
        assert_eq!(selected("boolean", of("tinyint", "tinyint(1)", 0, 0)), "`c`");
        assert_eq!(selected("decimal(20,4)", of("decimal", "decimal(65,4)", 65, 4)), "`c`");
        for (wanted, of) in [
            ("boolean", of("varchar", "varchar(1)", 0, 0)),
            ("decimal(39,0)", of("decimal", "decimal(65,0)", 65, 0)),
            ("date", of("datetime", "datetime", 0, 0)),
        ] {
            assert_eq!(asked("c", wanted, &of, &policy).unwrap_err().kind(), ErrorKind::Config);
        }
    }

    /// The part of docs/reference/types.md between its two markers; `UPDATE_EXPECT=1` rewrites it.
    #[test]
    fn the_reference_page_agrees_with_the_table() {
        const BEGIN: &str = "<!-- mysql: generated from types.rs by UPDATE_EXPECT=1 -->\n";
        const END: &str = "<!-- mysql: end -->\n";
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
        let mut page = String::from("| MySQL, MariaDB | Arrow | what to know |\n|---|---|---|\n");
        let mut line = |names: &str, arrow: String, note: &str| {
            page += &format!("| {names} | {arrow} | {note} |\n");
        };
        for mapping in MAPPINGS {
            let names = mapping.names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
            let note = match mapping.note {
                Note::Exact => "exact".to_owned(),
                Note::As(note) => note.to_owned(),
                Note::Without(what) => format!("exact; {what} by `out_of_range`"),
            };
            line(&names, mapping.codec.data_type().to_string(), &note);
        }
        for (names, arrow, note) in [
            ("`int unsigned`", "Int64", "exact"),
            ("`bigint unsigned`", "Decimal128(20, 0)", "exact"),
            ("`decimal(p,s)` up to 38 digits", "Decimal128(p, s)", "exact"),
            ("`decimal(p,s)` beyond", "Utf8", "its text; `unbounded_numeric: fail` refuses it"),
            ("`bit(1)`", "Boolean", "exact"),
            ("`bit(2)` to `bit(63)`, `bit(64)`", "Int64, Decimal128(20, 0)", "the number that the bits are"),
            ("`tinyint(1)` with `types: {c: boolean}`", "Boolean", "others than 0 and 1 by `out_of_range`"),
            ("`time` with `types: {c: text}`", "Utf8", "all of it: `-838:59:59`"),
            ("all others", "Utf8", "text, as the server writes it"),
        ] {
            line(names, arrow.to_owned(), note);
        }
        page
    }
}
