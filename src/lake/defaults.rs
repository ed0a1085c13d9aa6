//! What older rows have in a column that was added with a default, in format version 3.
//!
//! A source that fills such rows without touching them says so as text in the column's metadata
//! ([`ADDED_DEFAULT`]). The table's schema keeps it from then on, and every reader sees it in files
//! that lack the column. What cannot be kept to the last digit is left out: those rows have NULL, as
//! they have in version 2.

use std::sync::Arc;

use arrow::datatypes::{DataType, Schema};
use datafusion::common::ScalarValue;
use iceberg::spec::{Literal, NestedField, PrimitiveLiteral, PrimitiveType, Schema as IcebergSchema, Type};
use uuid::Uuid;

use super::file_statistics;
use super::storage::iceberg_error;
use crate::error::Result;
use crate::table::ADDED_DEFAULT;

/// A schema whose new columns, those with an id above `last_id`, have the defaults that `source` names
/// and that can be kept. What was done is added to `notes`.
pub(super) fn of_new_columns(
    schema: IcebergSchema,
    last_id: i32,
    source: &Schema,
    notes: &mut Vec<String>,
) -> Result<IcebergSchema> {
    let default = |field: &NestedField| {
        let from = source.field_with_name(&field.name).ok()?;
        let text = from.metadata().get(ADDED_DEFAULT)?;
        match &*field.field_type {
            Type::Primitive(kind) if field.id > last_id => literal(text, kind).map(Literal::Primitive),
            _ => None,
        }
    };
    let mut fields = schema.as_struct().fields().to_vec();
    let mut changed = false;
    for field in &mut fields {
        if let Some(value) = default(field) {
            let with_default = field.as_ref().clone().with_initial_default(value.clone());
            *field = Arc::new(with_default.with_write_default(value));
            notes.push(format!("older rows have the source's default in column `{}`", field.name));
            changed = true;
        }
    }
    if !changed {
        return Ok(schema);
    }
    let builder = IcebergSchema::builder().with_fields(fields);
    builder.with_identifier_field_ids(schema.identifier_field_ids()).build().map_err(iceberg_error)
}

/// A column's default as text, for a target that adds the column.
pub(super) fn text(field: &NestedField) -> Option<String> {
    let (Literal::Primitive(value), Type::Primitive(kind)) =
        (field.initial_default.as_ref()?, &*field.field_type)
    else {
        return None;
    };
    if let PrimitiveLiteral::UInt128(value) = value {
        return Some(Uuid::from_u128(*value).to_string());
    }
    match file_statistics::literal(value, kind)?.cast_to(&DataType::Utf8).ok()? {
        ScalarValue::Utf8(text) => text,
        _ => None,
    }
}

fn literal(text: &str, kind: &PrimitiveType) -> Option<PrimitiveLiteral> {
    use PrimitiveType as T;
    Some(match kind {
        T::String => PrimitiveLiteral::String(text.to_owned()),
        T::Uuid => PrimitiveLiteral::UInt128(Uuid::parse_str(text).ok()?.as_u128()),
        T::Decimal { precision, scale } => {
            // The cast would round.
            let fraction = text.split_once('.').map_or("", |(_, fraction)| fraction);
            let digits = fraction.trim_end_matches('0').len();
            if digits > *scale as usize || text.contains(['e', 'E']) {
                return None;
            }
            let kind = DataType::Decimal128(u8::try_from(*precision).ok()?, i8::try_from(*scale).ok()?);
            match scalar(text, &kind)? {
                ScalarValue::Decimal128(Some(value), ..) => PrimitiveLiteral::Int128(value),
                _ => return None,
            }
        }
        // Nanoseconds have no form in the schema's JSON that the library reads back.
        T::TimestampNs | T::TimestamptzNs | T::Fixed(_) | T::Binary => return None,
        other => {
            let kind = super::schema::arrow_type(&Type::Primitive(other.clone()), false);
            match scalar(text, &kind)? {
                ScalarValue::Boolean(Some(value)) => PrimitiveLiteral::Boolean(value),
                ScalarValue::Int32(Some(value)) | ScalarValue::Date32(Some(value)) => {
                    PrimitiveLiteral::Int(value)
                }
                ScalarValue::Int64(Some(value))
                | ScalarValue::Time64Microsecond(Some(value))
                | ScalarValue::TimestampMicrosecond(Some(value), _) => PrimitiveLiteral::Long(value),
                // JSON has no others.
                ScalarValue::Float32(Some(value)) if value.is_finite() => {
                    PrimitiveLiteral::Float(value.into())
                }
                ScalarValue::Float64(Some(value)) if value.is_finite() => {
                    PrimitiveLiteral::Double(value.into())
                }
                _ => return None,
            }
        }
    })
}

fn scalar(text: &str, kind: &DataType) -> Option<ScalarValue> {
    ScalarValue::try_from_string(text.to_owned(), kind).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn a_default_is_kept_exactly_or_not_at_all() {
        use PrimitiveType as T;
        let decimal = T::Decimal { precision: 12, scale: 2 };
        let mut said = String::new();
        for (text, kind) in [
            ("true", T::Boolean),
            ("-7", T::Int),
            ("3000000000", T::Int),
            ("9223372036854775807", T::Long),
            ("0.1", T::Float),
            ("1e+300", T::Double),
            ("NaN", T::Double),
            ("1.5000", decimal.clone()),
            ("1.005", decimal.clone()),
            ("99999999999", decimal),
            ("2020-02-03", T::Date),
            ("10:11:12.5", T::Time),
            ("2020-01-01T10:00:00.123456", T::Timestamp),
            ("2020-01-01T10:00:00+02:00", T::Timestamptz),
            ("infinity", T::Timestamptz),
            ("x\"y", T::String),
            ("c7d33b8e-0000-4000-8000-000000000001", T::Uuid),
            ("\\x00", T::Binary),
        ] {
            let kept = literal(text, &kind);
            // What the schema's JSON would lose must not get there.
            if let Some(value) = kept.clone() {
                let kind = Type::Primitive(kind.clone());
                let json = Literal::Primitive(value.clone()).try_into_json(&kind).unwrap();
                let again = Literal::try_from_json(json, &kind).unwrap();
                assert_eq!(again, Some(Literal::Primitive(value)), "{text}");
            }
            said += &format!("{kind} {text}: {kept:?}\n");
        }
        expect![[r#"
            boolean true: Some(Boolean(true))
            int -7: Some(Int(-7))
            int 3000000000: None
            long 9223372036854775807: Some(Long(9223372036854775807))
            float 0.1: Some(Float(0.1))
            double 1e+300: Some(Double(1e300))
            double NaN: None
            decimal(12, 2) 1.5000: Some(Int128(150))
            decimal(12, 2) 1.005: None
            decimal(12, 2) 99999999999: None
            date 2020-02-03: Some(Int(18295))
            time 10:11:12.5: Some(Long(36672500000))
            timestamp 2020-01-01T10:00:00.123456: Some(Long(1577872800123456))
            timestamptz 2020-01-01T10:00:00+02:00: Some(Long(1577865600000000))
            timestamptz infinity: None
            string x"y: Some(String("x\"y"))
            uuid c7d33b8e-0000-4000-8000-000000000001: Some(UInt128(265613153710915102052246766586469285889))
            binary \x00: None
        "#]]
        .assert_eq(&said);
    }
}
