//! Gives the columns of files that were not written for Iceberg their field ids: by name, as the
//! table's property `schema.name-mapping.default` says.
//!
//! A file that has an id anywhere was written for Iceberg, and is left alone: in it, a column without
//! an id is no column of the table.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use iceberg::spec::{DEFAULT_SCHEMA_NAME_MAPPING, MappedField, NameMapping, TableMetadata};
use parquet::arrow::PARQUET_FIELD_ID_META_KEY;

use super::field_ids::{id, with_id};
use crate::error::{Error, ErrorKind, Result};

/// What a table says of names.
pub(super) fn of(metadata: &TableMetadata) -> Result<Option<Arc<NameMapping>>> {
    let Some(text) = metadata.properties().get(DEFAULT_SCHEMA_NAME_MAPPING) else { return Ok(None) };
    let mapping = serde_json::from_str(text).map_err(|source| {
        Error::new(ErrorKind::Corrupt, "the table's name mapping is not valid JSON")
            .with("property", DEFAULT_SCHEMA_NAME_MAPPING)
            .hint("set the property anew with the engine that imported the files")
            .because(source)
    })?;
    Ok(Some(Arc::new(mapping)))
}

/// The file's columns with their field ids.
pub(super) fn with_ids(file: &SchemaRef, mapping: Option<&NameMapping>) -> Result<SchemaRef> {
    if file.fields().is_empty() || file.fields().iter().any(has_id) {
        return Ok(file.clone());
    }
    let Some(mapping) = mapping else {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "a data file has no field ids, and the table has no name mapping",
        )
        .hint(format!(
            "set the table property `{DEFAULT_SCHEMA_NAME_MAPPING}` with the engine that imported the file, or rewrite its data files"
        )));
    };
    let mapped = mapping.fields().iter().collect::<Vec<_>>();
    Ok(Arc::new(Schema::new_with_metadata(named(file.fields(), &mapped), file.metadata().clone())))
}

fn has_id(field: &FieldRef) -> bool {
    let within = match field.data_type() {
        DataType::Struct(fields) => fields.iter().any(has_id),
        DataType::List(inner) | DataType::LargeList(inner) | DataType::Map(inner, _) => has_id(inner),
        _ => false,
    };
    within || id(field).is_some()
}

fn named(fields: &Fields, mapped: &[&MappedField]) -> Fields {
    let find = |name: &str| mapped.iter().find(|entry| entry.names().iter().any(|other| other == name));
    fields.iter().map(|field| Arc::new(one(field, find(field.name()).copied()))).collect()
}

/// A field under its entry; the parts of lists and maps go by the names that the specification gives
/// them, whatever the file calls them.
fn one(field: &Field, entry: Option<&MappedField>) -> Field {
    let Some(entry) = entry else { return field.clone() };
    let within = entry.fields().iter().map(Arc::as_ref).collect::<Vec<_>>();
    let part =
        |name: &str| within.iter().find(|entry| entry.names().iter().any(|other| other == name)).copied();
    let inner = |inner: &FieldRef| Arc::new(one(inner, part("element")));
    let data_type = match field.data_type() {
        DataType::Struct(fields) => DataType::Struct(named(fields, &within)),
        DataType::List(element) => DataType::List(inner(element)),
        DataType::LargeList(element) => DataType::LargeList(inner(element)),
        DataType::Map(entries, sorted) => match entries.data_type() {
            DataType::Struct(fields) if fields.len() == 2 => {
                let fields = [one(&fields[0], part("key")), one(&fields[1], part("value"))];
                let entries = entries.as_ref().clone();
                let entries = entries.with_data_type(DataType::Struct(fields.into_iter().collect()));
                DataType::Map(Arc::new(entries), *sorted)
            }
            _ => field.data_type().clone(),
        },
        other => other.clone(),
    };
    let field = field.clone().with_data_type(data_type);
    match entry.field_id() {
        Some(id) => with_id(&field, id),
        None => {
            let mut metadata = field.metadata().clone();
            metadata.remove(PARQUET_FIELD_ID_META_KEY);
            field.with_metadata(metadata)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_give_ids_at_any_depth() {
        let mapping: NameMapping = serde_json::from_str(
            r#"[{"field-id": 1, "names": ["id", "key"]},
                {"field-id": 2, "names": ["list"], "fields": [{"field-id": 3, "names": ["element"]}]},
                {"field-id": 4, "names": ["s"], "fields": [{"field-id": 5, "names": ["old", "new"]}]}]"#,
        )
        .unwrap();
        let item = Field::new("item", DataType::Int32, true);
        let old = Field::new("old", DataType::Utf8, true);
        let file = Arc::new(Schema::new(vec![
            Field::new("key", DataType::Int64, true),
            Field::new("list", DataType::List(item.into()), true),
            Field::new("s", DataType::Struct(vec![old].into()), true),
            Field::new("other", DataType::Int64, true),
        ]));
        let found = with_ids(&file, Some(&mapping)).unwrap();
        let ids = |field: &FieldRef| id(field).map(str::to_owned);
        assert_eq!(
            found.fields().iter().map(ids).collect::<Vec<_>>(),
            [Some("1".into()), Some("2".into()), Some("4".into()), None]
        );
        let DataType::List(element) = found.field(1).data_type() else { panic!("a list") };
        assert_eq!(ids(element), Some("3".into()));
        let DataType::Struct(fields) = found.field(2).data_type() else { panic!("a struct") };
        assert_eq!(ids(&fields[0]), Some("5".into()));
        assert_eq!(with_ids(&file, None).unwrap_err().kind(), ErrorKind::Unsupported);
        // One id is enough to know that the others were left out on purpose.
        let some = Arc::new(Schema::new(vec![with_id(found.field(0), 7), file.field(3).clone()]));
        assert_eq!(with_ids(&some, None).unwrap(), some);
    }
}
