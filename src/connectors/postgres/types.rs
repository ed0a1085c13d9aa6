//! The one table of how Postgres types travel: what is selected, how it is decoded, how exact it is.
//!
//! ```text
//! pg_type ──▶ TypeCatalog ──▶ Conversion { codec, cast, fidelity } ──▶ SELECT list, decoder, `check`
//! ```
//!
//! A type that the table does not name travels as its exact text. Domains are what they are based
//! on; arrays and composites are built from their parts.

use std::collections::HashMap;

use super::decode::Codec;
use super::discover::Column;
use super::numeric::MAX_PRECISION;
use crate::error::{Error, ErrorKind, Result};
use crate::source::{OutOfRange, UnboundedNumeric, ValuePolicy};
use crate::table::Fidelity;

/// How a column travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Conversion {
    /// How its binary form is read.
    pub(super) codec: Codec,
    /// What is selected instead of the plain column: `text`, `numeric`, `text[]`.
    pub(super) cast: Option<String>,
    /// How exact that is.
    pub(super) fidelity: Fidelity,
}

/// One line of the table.
pub(super) struct Mapping {
    /// Names in `pg_type`.
    names: &'static [&'static str],
    codec: Codec,
    cast: Option<&'static str>,
    note: Note,
}

/// How exact a mapping is, before the policy is known.
#[derive(Clone, Copy)]
enum Note {
    Exact,
    As(&'static str),
    Without(&'static str),
}

const fn plain(names: &'static [&'static str], codec: Codec) -> Mapping {
    Mapping { names, codec, cast: None, note: Note::Exact }
}

const fn text(names: &'static [&'static str], note: &'static str) -> Mapping {
    Mapping { names, codec: Codec::Text, cast: Some("text"), note: Note::As(note) }
}

const fn without(names: &'static [&'static str], codec: Codec, note: &'static str) -> Mapping {
    Mapping { names, codec, cast: None, note: Note::Without(note) }
}

/// The table. `numeric`, enums, arrays, composites and domains have rules of their own, below.
pub(super) const MAPPINGS: &[Mapping] = &[
    plain(&["bool"], Codec::Bool),
    plain(&["int2"], Codec::Int16),
    plain(&["int4"], Codec::Int32),
    plain(&["int8"], Codec::Int64),
    plain(&["oid"], Codec::Oid),
    plain(&["xid8"], Codec::Xid8),
    plain(&["float4"], Codec::Float32),
    plain(&["float8"], Codec::Float64),
    plain(&["text", "varchar", "bpchar", "name", "citext"], Codec::Text),
    Mapping {
        names: &["json"],
        codec: Codec::Text,
        cast: None,
        note: Note::As("its text, as it was written"),
    },
    Mapping { names: &["jsonb"], codec: Codec::Jsonb, cast: None, note: Note::As("its text") },
    Mapping {
        names: &["xml"],
        codec: Codec::Text,
        cast: Some("text"),
        note: Note::As("its text, as it was written"),
    },
    plain(&["bytea"], Codec::Bytes),
    plain(&["uuid"], Codec::Uuid),
    without(&["date"], Codec::Date, "infinity"),
    without(&["time"], Codec::Time, "24:00:00"),
    without(&["timestamp"], Codec::Timestamp, "infinity"),
    without(&["timestamptz"], Codec::TimestampTz, "infinity"),
    Mapping {
        names: &["money"],
        codec: Codec::Decimal { precision: 20, scale: 2 },
        cast: Some("numeric"),
        note: Note::Without("amounts with more than two digits behind the point"),
    },
    text(&["interval"], "ISO 8601 text"),
    text(&["timetz"], "text with its offset"),
    text(&["char"], "text"),
    Mapping {
        names: &["geometry", "geography"],
        codec: Codec::Bytes,
        cast: None,
        note: Note::As("EWKB bytes"),
    },
    text(&["inet", "cidr", "macaddr", "macaddr8"], "text"),
    text(&["bit", "varbit"], "text of zeros and ones"),
    text(&["tsvector", "tsquery", "hstore", "ltree", "pg_lsn"], "text"),
    text(&["point", "line", "lseg", "box", "path", "polygon", "circle"], "text"),
];

/// A row of `pg_type`, as far as we need it.
#[derive(Debug, Clone)]
pub(super) struct TypeRow {
    pub(super) name: String,
    /// `b`ase, `c`omposite, `d`omain, `e`num, `p`seudo, `r`ange, `m`ultirange.
    pub(super) kind: char,
    /// Its element, if it is a true array.
    pub(super) element: Option<u32>,
    /// What a domain is based on.
    pub(super) base: Option<TypeRef>,
    /// The same, as Postgres writes it: `numeric(12,2)`.
    pub(super) base_written: Option<String>,
    /// Members of a composite.
    pub(super) members: Vec<Member>,
}

/// A member of a composite type.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) of: TypeRef,
}

/// The types that some columns have, with all that these are made of.
#[derive(Debug, Clone, Default)]
pub(super) struct TypeCatalog(pub(super) HashMap<u32, TypeRow>);

/// The type of a column: type, modifier, declared dimensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TypeRef {
    pub(super) oid: u32,
    pub(super) modifier: i32,
    pub(super) dimensions: i32,
}

impl TypeCatalog {
    /// The base type of a domain, through all domains; other types are what they are.
    pub(super) fn base(&self, mut of: TypeRef) -> TypeRef {
        // A domain over a domain is rare, a hundred levels are a damaged catalog.
        for _ in 0..100 {
            let Some(base) = self.0.get(&of.oid).and_then(|row| row.base) else { break };
            of = TypeRef { dimensions: base.dimensions.max(of.dimensions), ..base };
        }
        of
    }

    /// A column's type as Postgres writes it, domains resolved: another database has not these domains.
    pub(super) fn base_written<'a>(&'a self, column: &'a Column) -> &'a str {
        let mut written = column.written.as_str();
        let mut row = self.0.get(&column.of.oid);
        while let Some((base, text)) = row.and_then(|row| row.base.zip(row.base_written.as_deref())) {
            written = text;
            row = self.0.get(&base.oid);
        }
        written
    }

    /// The type's name in `pg_type`, domains resolved.
    pub(super) fn base_name(&self, of: TypeRef) -> &str {
        self.0.get(&self.base(of).oid).map_or("", |row| row.name.as_str())
    }

    /// How a column of this type travels under the stream's policy.
    pub(super) fn conversion(&self, column: &str, of: TypeRef, policy: &ValuePolicy) -> Result<Conversion> {
        if let Some(wanted) = policy.types.get(column) {
            return asked(column, wanted, policy);
        }
        let found = self.by_rule(of, policy);
        if policy.unbounded_numeric == UnboundedNumeric::Fail
            && self.base_name(of) == "numeric"
            && found.codec == Codec::Text
        {
            return Err(Error::new(
                ErrorKind::Config,
                "a numeric column declares no precision up to 38 digits",
            )
            .with("column", column)
            .hint(format!(
                "say what it is: `types: {{{column}: decimal(38,9)}}`, or set `unbounded_numeric: text`"
            )));
        }
        Ok(found)
    }

    fn by_rule(&self, of: TypeRef, policy: &ValuePolicy) -> Conversion {
        let of = self.base(of);
        let Some(row) = self.0.get(&of.oid) else { return as_text("text", "text") };
        if row.kind == 'e' {
            return Conversion { codec: Codec::Text, cast: None, fidelity: represented("its label") };
        }
        if let Some(element) = row.element {
            return self.array(element, of, policy);
        }
        if row.kind == 'c' {
            return self.composite(row, policy);
        }
        if row.name == "numeric" {
            return numeric(of.modifier, policy);
        }
        match MAPPINGS.iter().find(|mapping| mapping.names.contains(&row.name.as_str())) {
            Some(mapping) => Conversion {
                codec: mapping.codec.clone(),
                cast: mapping.cast.map(str::to_owned),
                fidelity: mapping.note.fidelity(policy),
            },
            None => as_text("text", "text"),
        }
    }

    fn array(&self, element: u32, of: TypeRef, policy: &ValuePolicy) -> Conversion {
        let inner = TypeRef { oid: element, modifier: of.modifier, dimensions: 0 };
        let inner = self.by_rule(inner, policy);
        // An array of domains over arrays has no form that lists can hold; nor has one of text casts of such.
        if matches!(inner.codec, Codec::List(..)) {
            return as_text("text", "text");
        }
        let dimensions = of.dimensions.clamp(1, 6) as u8;
        Conversion {
            cast: inner.cast.map(|cast| format!("{cast}[]")),
            codec: Codec::List(dimensions, Box::new(inner.codec)),
            fidelity: match inner.fidelity {
                Fidelity::Exact => Fidelity::Limited(format!(
                    "a list of {dimensions} dimension(s) counted from 1; other shapes stop the read"
                )),
                other => other,
            },
        }
    }

    /// Composites are sent whole, so each member has to be readable as it is.
    fn composite(&self, row: &TypeRow, policy: &ValuePolicy) -> Conversion {
        let mut members = Vec::with_capacity(row.members.len());
        for member in &row.members {
            let inner = self.by_rule(member.of, policy);
            if inner.cast.is_some() {
                return as_text("text", "text: a member has no other form");
            }
            members.push((member.name.clone(), inner.codec));
        }
        if members.is_empty() {
            return as_text("text", "text");
        }
        Conversion { codec: Codec::Struct(members), cast: None, fidelity: Fidelity::Exact }
    }
}

/// Type and modifier of a declared `numeric(p,s)`; the scale has eleven bits and a sign since Postgres 15.
fn numeric(modifier: i32, policy: &ValuePolicy) -> Conversion {
    if modifier >= 4 {
        let packed = modifier - 4;
        let precision = (packed >> 16) & 0xffff;
        let scale = ((packed & 0x7ff) ^ 1024) - 1024;
        // A negative scale rounds before the point; a scale above the precision has zeros behind it.
        let digits = if scale < 0 { precision - scale } else { precision.max(scale) };
        if digits <= i32::from(MAX_PRECISION) {
            let codec = Codec::Decimal { precision: digits as u8, scale: scale.max(0) as u8 };
            return Conversion { codec, cast: None, fidelity: Note::Without("NaN").fidelity(policy) };
        }
    }
    as_text("text", "exact text: it declares no precision up to 38 digits")
}

/// What the user asked for instead of the rule.
fn asked(column: &str, wanted: &str, policy: &ValuePolicy) -> Result<Conversion> {
    let bad = || {
        Error::new(ErrorKind::Config, format!("`{wanted}` is no type for a column"))
            .with("column", column)
            .hint("use `text` or `decimal(precision,scale)` with a precision up to 38")
    };
    let wanted = wanted.trim().to_ascii_lowercase();
    if wanted == "text" {
        return Ok(as_text("text", "text, as asked"));
    }
    let inner = wanted.strip_prefix("decimal(").or_else(|| wanted.strip_prefix("numeric("));
    let inner = inner.and_then(|inner| inner.strip_suffix(')')).ok_or_else(bad)?;
    let (precision, scale) = inner.split_once(',').unwrap_or((inner, "0"));
    let precision: u8 = precision.trim().parse().map_err(|_| bad())?;
    let scale: u8 = scale.trim().parse().map_err(|_| bad())?;
    if precision == 0 || precision > MAX_PRECISION || scale > precision {
        return Err(bad());
    }
    Ok(Conversion {
        codec: Codec::Decimal { precision, scale },
        cast: Some("numeric".to_owned()),
        fidelity: Note::Without("NaN and numbers that do not fit").fidelity(policy),
    })
}

fn as_text(cast: &str, note: &str) -> Conversion {
    Conversion { codec: Codec::Text, cast: Some(cast.to_owned()), fidelity: represented(note) }
}

fn represented(note: &str) -> Fidelity {
    Fidelity::Represented(note.to_owned())
}

impl Note {
    fn fidelity(self, policy: &ValuePolicy) -> Fidelity {
        match self {
            Self::Exact => Fidelity::Exact,
            Self::As(note) => represented(note),
            Self::Without(what) => Fidelity::Limited(match policy.out_of_range {
                OutOfRange::Fail => format!("{what} stops the read"),
                OutOfRange::Null => format!("{what} becomes NULL"),
                OutOfRange::Clamp => format!("{what} becomes the nearest value that fits"),
            }),
        }
    }
}

/// The table as the reference page shows it.
#[cfg(test)]
mod tests {
    use super::*;

    fn reference() -> String {
        let mut page = String::from("| Postgres | Arrow | selected as | what to know |\n|---|---|---|---|\n");
        let mut line = |names: String, arrow: String, cast: Option<&str>, note: String| {
            let cast = cast.map_or("the column".to_owned(), |cast| format!("`::{cast}`"));
            page += &format!("| {names} | {arrow} | {cast} | {note} |\n");
        };
        for mapping in MAPPINGS {
            let names = mapping.names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
            let note = match mapping.note {
                Note::Exact => "exact".to_owned(),
                Note::As(note) => note.to_owned(),
                Note::Without(what) => format!("exact; {what}: by `out_of_range`"),
            };
            line(names, format!("{}", mapping.codec.data_type()), mapping.cast, note);
        }
        for (names, arrow, cast, note) in [
            ("`numeric(p,s)`, p ≤ 38", "Decimal128(p, s)", None, "exact; NaN: by `out_of_range`"),
            (
                "`numeric`, `numeric(p,s)` with p > 38",
                "Utf8",
                Some("text"),
                "exact text; or refused: by `unbounded_numeric`",
            ),
            ("enums", "Utf8", None, "its label"),
            (
                "arrays",
                "List",
                None,
                "of the element's mapping; as many levels as declared; other shapes stop the read",
            ),
            ("composites", "Struct", None, "if each member can be read as it is, else text"),
            ("domains", "as their base type", None, "exact"),
            ("ranges, multiranges, and all others", "Utf8", Some("text"), "text"),
        ] {
            line(names.to_owned(), arrow.to_owned(), cast, note.to_owned());
        }
        page
    }

    /// The part of docs/reference/types.md between its two markers; `UPDATE_EXPECT=1` rewrites it.
    #[test]
    fn the_reference_page_agrees_with_the_table() {
        const BEGIN: &str = "<!-- postgres: generated from types.rs by UPDATE_EXPECT=1 -->\n";
        const END: &str = "<!-- postgres: end -->\n";
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/types.md");
        let page = std::fs::read_to_string(path)
            .unwrap_or_else(|_| format!("# Types\n\n## Postgres\n\n{BEGIN}{END}"));
        let (before, rest) = page.split_once(BEGIN).expect("the page has the marker");
        let (now, after) = rest.split_once(END).expect("the page has the end marker");
        if now == reference() {
            return;
        }
        assert!(
            std::env::var_os("UPDATE_EXPECT").is_some(),
            "docs/reference/types.md is stale: run with UPDATE_EXPECT=1"
        );
        std::fs::create_dir_all(std::path::Path::new(path).parent().unwrap()).unwrap();
        std::fs::write(path, format!("{before}{BEGIN}{}{END}{after}", reference())).unwrap();
    }

    #[test]
    fn declared_numerics_keep_their_digits() {
        let codec = |precision: i32, scale: i32| {
            numeric(((precision << 16) | (scale & 0x7ff)) + 4, &ValuePolicy::default()).codec
        };
        assert_eq!(codec(12, 2), Codec::Decimal { precision: 12, scale: 2 });
        assert_eq!(codec(38, 38), Codec::Decimal { precision: 38, scale: 38 });
        assert_eq!(codec(39, 0), Codec::Text);
        assert_eq!(codec(5, -2), Codec::Decimal { precision: 7, scale: 0 });
        assert_eq!(codec(3, 5), Codec::Decimal { precision: 5, scale: 5 });
        assert_eq!(numeric(-1, &ValuePolicy::default()).codec, Codec::Text);
    }

    #[test]
    fn a_type_that_was_asked_for_is_checked() {
        let policy = ValuePolicy::default();
        assert_eq!(
            asked("c", "decimal(20, 4)", &policy).unwrap().codec,
            Codec::Decimal { precision: 20, scale: 4 }
        );
        assert!(asked("c", "decimal(39)", &policy).is_err());
        assert!(asked("c", "float", &policy).is_err());
    }
}
