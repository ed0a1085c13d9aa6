//! Arrow schemas and Iceberg schemas: which type is which.
//!
//! | Arrow | Iceberg |
//! |---|---|
//! | `Boolean` | `boolean` |
//! | `Int8` `Int16` `Int32` `UInt8` `UInt16` | `int` |
//! | `Int64` `UInt32` | `long` |
//! | `Float32`, `Float64` | `float`, `double` |
//! | `Decimal128(p, s)`, `0 ≤ s ≤ p ≤ 38` | `decimal(p, s)` |
//! | `Utf8` and its large and view forms | `string` |
//! | `Binary` and its large and view forms | `binary` |
//! | `FixedSizeBinary(n)` | `fixed[n]`; `uuid` with the extension name `arrow.uuid` |
//! | `Date32` | `date` |
//! | `Time32`, `Time64` up to microseconds | `time` |
//! | `Timestamp` up to microseconds, without and with a zone | `timestamp`, `timestamptz` |
//! | `Timestamp` in nanoseconds, in format version 3 | `timestamp_ns`, `timestamptz_ns` |
//! | `List`, `Struct`, `Map` | the same |
//!
//! Everything else is refused by name, never rounded. What Arrow knows and Iceberg does not (the
//! metadata under `frazil:` and `ARROW:extension:`) is kept in table properties, by field id.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef, TimeUnit};
use iceberg::spec::{
    ListType, MapType, NestedField, NestedFieldRef, PrimitiveType, Schema as IcebergSchema, StructType, Type,
};
use parquet::arrow::PARQUET_FIELD_ID_META_KEY;

use super::defaults;
use crate::error::{Error, ErrorKind, Result};
use crate::table::ADDED_DEFAULT;

/// Arrow's mark of a canonical extension type.
pub(super) const EXTENSION_NAME: &str = "ARROW:extension:name";
/// The extension name of a UUID.
pub(super) const UUID_EXTENSION: &str = "arrow.uuid";
/// Where a column's Arrow metadata is kept in the table's properties.
pub(super) const COLUMN_PROPERTY: &str = "frazil.column.";

/// Hands out field ids.
pub(super) struct Ids(pub(super) i32);

impl Ids {
    pub(super) fn next(&mut self) -> i32 {
        self.0 += 1;
        self.0
    }
}

/// An Iceberg schema with provisional ids from 1 on, and `key` as its identifier where Iceberg
/// allows that. Key columns become required: a NULL is no key.
pub(super) fn to_iceberg(schema: &Schema, key: &[String]) -> Result<IcebergSchema> {
    let mut ids = Ids(0);
    let mut fields = Vec::with_capacity(schema.fields().len());
    for field in schema.fields() {
        if fields.iter().any(|other: &NestedFieldRef| other.name == *field.name()) {
            return Err(
                Error::new(ErrorKind::Schema, "two columns have one name").with("column", field.name())
            );
        }
        let mut made = iceberg_field(field, &mut ids)?;
        made.required |= key.contains(field.name());
        fields.push(Arc::new(made));
    }
    let mut identifiers = Vec::new();
    for name in key {
        let field = fields.iter().find(|field| field.name == *name).ok_or_else(|| {
            Error::new(ErrorKind::Config, "the key names a column that does not exist").with("column", name)
        })?;
        identifiers.push((field.id, can_identify(&field.field_type)));
    }
    // Iceberg allows no floating-point identifiers; the key is in our properties as well.
    let legal = identifiers.iter().all(|(_, legal)| *legal);
    IcebergSchema::builder()
        .with_fields(fields)
        .with_identifier_field_ids(identifiers.into_iter().filter(|_| legal).map(|(id, _)| id))
        .build()
        .map_err(super::storage::iceberg_error)
}

/// The schema with the ids that a new table gives it.
pub(super) fn fresh_ids(schema: &IcebergSchema) -> Result<IcebergSchema> {
    let built = iceberg::spec::TableMetadataBuilder::new(
        schema.clone(),
        iceberg::spec::UnboundPartitionSpec::builder().build(),
        iceberg::spec::SortOrder::unsorted_order(),
        "file:///nowhere".to_owned(),
        // Ids do not depend on it; it knows all types.
        iceberg::spec::FormatVersion::V3,
        HashMap::new(),
    )
    .and_then(iceberg::spec::TableMetadataBuilder::build)
    .map_err(super::storage::iceberg_error)?;
    Ok(built.metadata.current_schema().as_ref().clone())
}

fn can_identify(kind: &Type) -> bool {
    matches!(kind, Type::Primitive(kind) if !matches!(kind, PrimitiveType::Float | PrimitiveType::Double))
}

/// One column, its ids taken from `ids`.
pub(super) fn iceberg_field(field: &Field, ids: &mut Ids) -> Result<NestedField> {
    let id = ids.next();
    let kind = iceberg_type(field, ids).map_err(|error| error.with("column", field.name()))?;
    Ok(NestedField::new(id, field.name(), kind, !field.is_nullable()))
}

fn iceberg_type(field: &Field, ids: &mut Ids) -> Result<Type> {
    use DataType as D;
    let kind = match field.data_type() {
        D::Boolean => PrimitiveType::Boolean,
        D::Int8 | D::Int16 | D::Int32 | D::UInt8 | D::UInt16 => PrimitiveType::Int,
        D::Int64 | D::UInt32 => PrimitiveType::Long,
        D::Float16 | D::Float32 => PrimitiveType::Float,
        D::Float64 => PrimitiveType::Double,
        D::Decimal32(p, s) | D::Decimal64(p, s) | D::Decimal128(p, s)
            if *s >= 0 && i16::from(*s) <= i16::from(*p) =>
        {
            PrimitiveType::Decimal { precision: u32::from(*p), scale: u32::from(s.unsigned_abs()) }
        }
        D::Utf8 | D::LargeUtf8 | D::Utf8View => PrimitiveType::String,
        D::Binary | D::LargeBinary | D::BinaryView => PrimitiveType::Binary,
        D::FixedSizeBinary(16) if is_uuid(field) => PrimitiveType::Uuid,
        D::FixedSizeBinary(n) if *n > 0 => PrimitiveType::Fixed(u64::from(n.unsigned_abs())),
        D::Date32 => PrimitiveType::Date,
        D::Time32(_) | D::Time64(TimeUnit::Microsecond) => PrimitiveType::Time,
        D::Timestamp(TimeUnit::Nanosecond, None) => PrimitiveType::TimestampNs,
        D::Timestamp(TimeUnit::Nanosecond, Some(_)) => PrimitiveType::TimestamptzNs,
        D::Timestamp(_, None) => PrimitiveType::Timestamp,
        D::Timestamp(_, Some(_)) => PrimitiveType::Timestamptz,
        D::Dictionary(_, value) => {
            let plain = field.clone().with_data_type(value.as_ref().clone());
            return iceberg_type(&plain, ids);
        }
        D::List(element)
        | D::LargeList(element)
        | D::ListView(element)
        | D::LargeListView(element)
        | D::FixedSizeList(element, _) => {
            let id = ids.next();
            let kind = iceberg_type(element, ids)?;
            let element = NestedField::list_element(id, kind, !element.is_nullable());
            return Ok(Type::List(ListType::new(Arc::new(element))));
        }
        D::Struct(fields) if !fields.is_empty() => {
            let mut nested = Vec::with_capacity(fields.len());
            for field in fields {
                nested.push(Arc::new(iceberg_field(field, ids)?));
            }
            return Ok(Type::Struct(StructType::new(nested)));
        }
        D::Map(entries, _) => {
            let (key, value) = map_entries(entries)?;
            let (key_id, value_id) = (ids.next(), ids.next());
            let key = NestedField::map_key_element(key_id, iceberg_type(key, ids)?);
            let value_type = iceberg_type(value, ids)?;
            let value = NestedField::map_value_element(value_id, value_type, !value.is_nullable());
            return Ok(Type::Map(MapType::new(Arc::new(key), Arc::new(value))));
        }
        other => return Err(refused(other, "Iceberg has no such type")),
    };
    Ok(Type::Primitive(kind))
}

fn refused(kind: &DataType, reason: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("{kind} cannot be kept in the lake: {reason}"))
        .hint("leave the column out with `columns`, or read it as text")
}

fn is_uuid(field: &Field) -> bool {
    field.metadata().get(EXTENSION_NAME).is_some_and(|name| name == UUID_EXTENSION)
}

/// The key and the value of a map's entries.
pub(super) fn map_entries(entries: &Field) -> Result<(&FieldRef, &FieldRef)> {
    match entries.data_type() {
        DataType::Struct(fields) if fields.len() == 2 => Ok((&fields[0], &fields[1])),
        other => Err(Error::new(ErrorKind::Internal, format!("{other} is not the entries of a map"))),
    }
}

/// The properties that keep what Arrow knows of the columns of `schema`, by the ids in `ids`.
pub(super) fn column_properties(schema: &Schema, ids: &IcebergSchema) -> HashMap<String, String> {
    let mut properties = HashMap::new();
    for field in schema.fields() {
        let Some(id) = ids.field_id_by_name(field.name()) else { continue };
        if let Some(text) = column_property(field) {
            properties.insert(format!("{COLUMN_PROPERTY}{id}"), text);
        }
    }
    properties
}

/// A column's kept metadata as JSON, in name order so that equal metadata is equal text.
pub(super) fn column_property(field: &Field) -> Option<String> {
    let kept: BTreeMap<_, _> = field.metadata().iter().filter(|(name, _)| is_kept(name)).collect();
    if kept.is_empty() {
        return None;
    }
    Some(serde_json::to_string(&kept).expect("a map of strings is JSON"))
}

fn is_kept(name: &str) -> bool {
    // The schema itself keeps defaults.
    name.starts_with("frazil:") && name != ADDED_DEFAULT || name.starts_with("ARROW:extension:")
}

/// The metadata that was kept for a column.
pub(super) fn kept_metadata(properties: &HashMap<String, String>, id: i32) -> HashMap<String, String> {
    let text = properties.get(&format!("{COLUMN_PROPERTY}{id}"));
    // A property that somebody else edited is not worth failing for.
    text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

/// How rows of a table travel: plain types, the kept metadata on the columns, no field ids.
pub(super) fn to_arrow(schema: &IcebergSchema, properties: &HashMap<String, String>) -> SchemaRef {
    let fields = schema.as_struct().fields().iter().map(|field| {
        let mut metadata = kept_metadata(properties, field.id);
        if matches!(*field.field_type, Type::Primitive(PrimitiveType::Uuid)) {
            metadata.insert(EXTENSION_NAME.to_owned(), UUID_EXTENSION.to_owned());
        }
        metadata.extend(defaults::text(field).map(|text| (ADDED_DEFAULT.to_owned(), text)));
        arrow_field(field, false).with_metadata(metadata)
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// How rows lie in our data files: the same types, `PARQUET:field_id` on every field at any depth.
pub(super) fn to_file_schema(schema: &IcebergSchema) -> SchemaRef {
    let fields = schema.as_struct().fields().iter().map(|field| arrow_field(field, true));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

fn arrow_field(field: &NestedField, with_ids: bool) -> Field {
    let made = Field::new(&field.name, arrow_type(&field.field_type, with_ids), !field.required);
    if with_ids { made.with_metadata(id_metadata(field.id)) } else { made }
}

fn id_metadata(id: i32) -> HashMap<String, String> {
    HashMap::from([(PARQUET_FIELD_ID_META_KEY.to_owned(), id.to_string())])
}

/// The Arrow type of an Iceberg type; `with_ids` puts `PARQUET:field_id` on nested fields.
pub(super) fn arrow_type(kind: &Type, with_ids: bool) -> DataType {
    match kind {
        Type::Primitive(kind) => primitive(kind),
        Type::Struct(fields) => {
            DataType::Struct(fields.fields().iter().map(|field| arrow_field(field, with_ids)).collect())
        }
        Type::List(list) => DataType::List(Arc::new(arrow_field(&list.element_field, with_ids))),
        Type::Map(map) => {
            let pair = [arrow_field(&map.key_field, with_ids), arrow_field(&map.value_field, with_ids)];
            let entries = Field::new("key_value", DataType::Struct(Fields::from_iter(pair)), false);
            DataType::Map(Arc::new(entries), false)
        }
    }
}

fn primitive(kind: &PrimitiveType) -> DataType {
    use PrimitiveType as P;
    match kind {
        P::Boolean => DataType::Boolean,
        P::Int => DataType::Int32,
        P::Long => DataType::Int64,
        P::Float => DataType::Float32,
        P::Double => DataType::Float64,
        P::Decimal { precision, scale } => DataType::Decimal128(
            u8::try_from(*precision).expect("Iceberg's decimals have at most 38 digits"),
            i8::try_from(*scale).expect("Iceberg's decimals have at most 38 digits"),
        ),
        P::Date => DataType::Date32,
        P::Time => DataType::Time64(TimeUnit::Microsecond),
        P::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
        P::Timestamptz => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        P::TimestampNs => DataType::Timestamp(TimeUnit::Nanosecond, None),
        P::TimestamptzNs => DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into())),
        P::String => DataType::Utf8,
        P::Uuid => DataType::FixedSizeBinary(16),
        P::Fixed(length) => DataType::FixedSizeBinary(i32::try_from(*length).unwrap_or(i32::MAX)),
        P::Binary => DataType::Binary,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uuid(name: &str) -> Field {
        Field::new(name, DataType::FixedSizeBinary(16), true)
            .with_metadata(HashMap::from([(EXTENSION_NAME.into(), UUID_EXTENSION.into())]))
    }

    #[test]
    fn types_come_back_as_they_went() {
        let schema = Schema::new(vec![
            Field::new("id", DataType::Int64, false),
            Field::new("price", DataType::Decimal128(38, 10), true).with_metadata(HashMap::from([(
                crate::table::SOURCE_TYPE.to_owned(),
                "postgres:numeric(38,10)".to_owned(),
            )])),
            uuid("token"),
            Field::new("hash", DataType::FixedSizeBinary(20), true),
            Field::new("at", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
            Field::new("time", DataType::Time64(TimeUnit::Microsecond), true),
            Field::new("data", DataType::Binary, true),
            Field::new("tags", DataType::List(Arc::new(Field::new("element", DataType::Utf8, true))), true),
        ]);
        let iceberg = to_iceberg(&schema, &["id".into()]).unwrap();
        let properties = column_properties(&schema, &iceberg);
        assert_eq!(*to_arrow(&iceberg, &properties), schema);
        assert_eq!(iceberg.identifier_field_ids().collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn what_cannot_be_kept_is_refused_by_name() {
        for kind in
            [DataType::UInt64, DataType::Decimal128(10, -2), DataType::Decimal256(40, 0), DataType::Null]
        {
            let schema = Schema::new(vec![Field::new("odd", kind, true)]);
            let error = to_iceberg(&schema, &[]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert_eq!(error.context(), [("column", "odd".to_owned())]);
        }
    }
}
