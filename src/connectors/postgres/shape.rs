//! Which columns the target table should have, and which types hold which others unchanged.

use std::collections::HashMap;

use arrow::datatypes::{DataType, Field};

use super::catalog::NamedType;
use super::encode::carry;
use crate::connectors::sql::Wanted;
use crate::error::{Error, ErrorKind, Result};
use crate::table::{ADDED_DEFAULT, SOURCE_TYPE};

/// The prefix of source types that another Postgres understands.
const PREFIX: &str = "postgres:";

/// Arrow's canonical extension types are named here.
const EXTENSION: &str = "ARROW:extension:name";

/// The type's name in the source, if that was a Postgres.
pub(super) fn source_type(field: &Field) -> Option<&str> {
    field.metadata().get(SOURCE_TYPE)?.strip_prefix(PREFIX)
}

/// The column for a field: of the source's very type where the target has it, else of one that holds
/// all values of the Arrow type.
pub(super) fn wanted(field: &Field, known: &HashMap<String, NamedType>) -> Result<Wanted> {
    let arrow = default_type(field)?;
    let exact = source_type(field).and_then(|name| {
        let known = known.get(name)?;
        carry(field.data_type(), &known.pg_type)?;
        let full = if name.contains('(') { name.to_owned() } else { known.canonical.clone() };
        // The lake's number may have grown since, or was given more digits by the user.
        let too_small = matches!(field.data_type(), DataType::Decimal128(..))
            && full.starts_with("numeric")
            && !fits(&arrow, &full);
        (!too_small).then_some(full)
    });
    Ok(Wanted {
        name: field.name().clone(),
        data_type: exact.unwrap_or(arrow),
        not_null: !field.is_nullable(),
        added_default: field.metadata().get(ADDED_DEFAULT).cloned(),
    })
}

fn default_type(field: &Field) -> Result<String> {
    type_of(field.data_type(), is_uuid(field)).ok_or_else(|| {
        Error::new(
            ErrorKind::Unsupported,
            format!("postgres has no type for the lake's {}", field.data_type()),
        )
        .with("column", field.name())
    })
}

fn is_uuid(field: &Field) -> bool {
    field.metadata().get(EXTENSION).is_some_and(|name| name == "arrow.uuid")
        || field.metadata().get(SOURCE_TYPE).is_some_and(|name| name.ends_with(":uuid"))
}

fn type_of(arrow: &DataType, uuid: bool) -> Option<String> {
    use DataType as D;
    let name = match arrow {
        D::Boolean => "boolean",
        D::Int8 | D::Int16 | D::Int32 | D::UInt8 | D::UInt16 => "integer",
        D::Int64 | D::UInt32 => "bigint",
        D::UInt64 => "numeric(20,0)",
        D::Float16 | D::Float32 => "real",
        D::Float64 => "double precision",
        D::Decimal32(precision, scale) | D::Decimal64(precision, scale) | D::Decimal128(precision, scale) => {
            return Some(match u8::try_from(*scale) {
                Ok(scale) => format!("numeric({precision},{scale})"),
                Err(_) => "numeric".to_owned(),
            });
        }
        D::Utf8 | D::LargeUtf8 | D::Utf8View | D::Null => "text",
        D::FixedSizeBinary(16) if uuid => "uuid",
        D::Binary | D::LargeBinary | D::BinaryView | D::FixedSizeBinary(_) => "bytea",
        D::Date32 => "date",
        D::Time32(_) | D::Time64(_) => "time without time zone",
        D::Timestamp(_, None) => "timestamp without time zone",
        D::Timestamp(_, Some(_)) => "timestamp with time zone",
        D::Dictionary(_, values) => return type_of(values, uuid),
        D::RunEndEncoded(_, values) => return type_of(values.data_type(), uuid),
        D::List(element) | D::LargeList(element) | D::FixedSizeList(element, _) => {
            // Lists in lists may differ in length, and arrays in arrays may not.
            return match type_of(element.data_type(), is_uuid(element))? {
                inner if inner.ends_with("[]") || inner == "jsonb" => Some("jsonb".to_owned()),
                inner => Some(format!("{inner}[]")),
            };
        }
        D::Struct(_) | D::Map(..) => "jsonb",
        _ => return None,
    };
    Some(name.to_owned())
}

/// Whether each value of the first type is a value of the second, unchanged.
pub(super) fn fits(narrow: &str, wide: &str) -> bool {
    if narrow == wide {
        return true;
    }
    let (Some(narrow), Some(wide)) = (Parsed::new(narrow), Parsed::new(wide)) else { return false };
    if narrow == wide {
        return true;
    }
    if narrow.array != wide.array {
        return false;
    }
    let size = |parsed: &Parsed| parsed.modifiers.first().copied();
    match (narrow.base.as_str(), wide.base.as_str()) {
        ("smallint", "integer" | "bigint") | ("integer", "bigint") => true,
        ("real", "double precision") => true,
        ("smallint" | "integer" | "bigint", "numeric") => {
            let digits = match narrow.base.as_str() {
                "smallint" => 5,
                "integer" => 10,
                _ => 19,
            };
            wide.numeric().is_none_or(|(whole, _)| whole >= digits)
        }
        ("numeric", "numeric") => match (narrow.numeric(), wide.numeric()) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some((whole, scale)), Some((wide_whole, wide_scale))) => {
                wide_whole >= whole && wide_scale >= scale
            }
        },
        ("character varying" | "text", "text") => true,
        ("character varying" | "text", "character varying") => match (size(&narrow), size(&wide)) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(length), Some(wide_length)) => wide_length >= length,
        },
        ("timestamp without time zone", "timestamp without time zone")
        | ("timestamp with time zone", "timestamp with time zone")
        | ("time without time zone", "time without time zone") => {
            size(&narrow).unwrap_or(6) <= size(&wide).unwrap_or(6)
        }
        // Types that travel as text are at home in text.
        (other, "text") => !narrow.array && !OF_THEIR_OWN.contains(&other),
        (other, "character varying") => {
            !narrow.array && size(&wide).is_none() && !OF_THEIR_OWN.contains(&other)
        }
        _ => false,
    }
}

/// Types that have an Arrow type of their own, so that they do not travel as text.
const OF_THEIR_OWN: &[&str] = &[
    "boolean",
    "smallint",
    "integer",
    "bigint",
    "oid",
    "xid8",
    "real",
    "double precision",
    "numeric",
    "money",
    "bytea",
    "uuid",
    "date",
    "time without time zone",
    "timestamp without time zone",
    "timestamp with time zone",
    "geometry",
    "geography",
];

#[derive(Debug, PartialEq, Eq)]
struct Parsed {
    base: String,
    modifiers: Vec<i64>,
    array: bool,
}

impl Parsed {
    /// `None` for modifiers that are no numbers: such types equal themselves only.
    fn new(name: &str) -> Option<Self> {
        let element = name.trim_end_matches("[]");
        let array = element.len() < name.len();
        let (base, modifiers) = match element.split_once('(') {
            None => (element.to_owned(), Vec::new()),
            Some((before, rest)) => {
                let (modifiers, after) = rest.split_once(')')?;
                let modifiers =
                    modifiers.split(',').map(|number| number.trim().parse().ok()).collect::<Option<_>>()?;
                (format!("{}{after}", before.trim_end()), modifiers)
            }
        };
        let base = match base.as_str() {
            "int2" => "smallint",
            "int" | "int4" => "integer",
            "int8" => "bigint",
            "float4" => "real",
            "float8" => "double precision",
            "bool" => "boolean",
            "decimal" => "numeric",
            "varchar" => "character varying",
            "timestamp" => "timestamp without time zone",
            "timestamptz" => "timestamp with time zone",
            "time" => "time without time zone",
            other => other,
        }
        .to_owned();
        Some(Self { base, modifiers, array })
    }

    /// Digits before and after the point, or `None` when there is no limit.
    fn numeric(&self) -> Option<(i64, i64)> {
        let precision = *self.modifiers.first()?;
        let scale = self.modifiers.get(1).copied().unwrap_or(0);
        Some((precision - scale, scale))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn wider_types_hold_narrower_ones() {
        for (narrow, wide) in [
            ("integer", "bigint"),
            ("int4", "integer"),
            ("integer[]", "bigint[]"),
            ("bigint", "numeric"),
            ("bigint", "numeric(19,0)"),
            ("numeric(12,2)", "numeric(14,3)"),
            ("character varying(10)", "text"),
            ("varchar(10)", "character varying(20)"),
            ("timestamp(3) with time zone", "timestamp with time zone"),
            ("inet", "text"),
            ("public.mood", "text"),
        ] {
            assert!(fits(narrow, wide), "{narrow} into {wide}");
            assert!(narrow == "int4" || !fits(wide, narrow), "{wide} into {narrow}");
        }
        for (one, other) in [
            ("integer", "text"),
            ("numeric", "double precision"),
            ("numeric(12,2)", "numeric(12,3)"),
            ("bigint", "numeric(18,0)"),
            ("timestamp with time zone", "timestamp without time zone"),
            ("geometry(Point,4326)", "geometry(Point,3857)"),
            ("integer", "integer[]"),
            ("text[]", "text"),
        ] {
            assert!(!fits(one, other), "{one} into {other}");
        }
    }

    #[test]
    fn every_arrow_type_has_a_column() {
        let list = |inner| DataType::List(Arc::new(Field::new("element", inner, true)));
        for (arrow, expected) in [
            (DataType::Decimal128(12, 2), "numeric(12,2)"),
            (DataType::FixedSizeBinary(16), "bytea"),
            (list(DataType::Int32), "integer[]"),
            (list(list(DataType::Int32)), "jsonb"),
            (DataType::Struct(Vec::<Field>::new().into()), "jsonb"),
        ] {
            let wanted = wanted(&Field::new("c", arrow, true), &HashMap::new()).unwrap();
            assert_eq!(wanted.data_type, expected);
        }
    }
}
