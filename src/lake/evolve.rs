//! A table that follows its source: columns that are added, widened or renamed there.
//!
//! | in the source | in the lake |
//! |---|---|
//! | a new column | added, NULL in the rows that are there |
//! | `int` → `bigint`, `real` → `double`, a decimal with more digits | widened; files stay as they are |
//! | a narrower type | nothing: the wide one holds it |
//! | NOT NULL dropped | optional, unless it is the key |
//! | renamed (the source's own column id tells) | renamed; the field id, and so the data, stays |
//! | dropped | stays, NULL from then on |
//! | any other type | refused: column, both types, what to do |
//!
//! A column's field id never changes, and is never used again.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};
use iceberg::spec::{ListType, NestedField, NestedFieldRef, PrimitiveType, Schema as IcebergSchema, Type};
use iceberg::{TableRequirement, TableUpdate};

use super::format_version::{is_v3, refuse_newer_types};
use super::schema::{COLUMN_PROPERTY, Ids, column_property, iceberg_field, kept_metadata};
use super::storage::iceberg_error;
use super::{LakeTable, defaults};
use crate::error::{Error, ErrorKind, Result};
use crate::table::SOURCE_COLUMN_ID;

/// Column metadata: the source has no such column any more.
const DROPPED: &str = "frazil:dropped";

impl LakeTable {
    /// Makes the table fit rows of `schema`: adds, widens and renames columns. Says what it did, in
    /// sentences. [`Schema`](ErrorKind::Schema) when a change would lose something.
    pub async fn evolve(&mut self, schema: &SchemaRef) -> Result<Vec<String>> {
        let metadata = self.table.metadata();
        let mut evolved = evolve(
            metadata.current_schema(),
            metadata.properties(),
            metadata.last_column_id(),
            &self.key(),
            schema,
        )
        .map_err(|error| error.with("table", &self.id))?;
        let mut updates = Vec::new();
        if let Some(mut made) = evolved.schema {
            if is_v3(metadata) {
                let last_id = metadata.last_column_id();
                made = defaults::of_new_columns(made, last_id, schema, &mut evolved.notes)?;
            }
            refuse_newer_types(&made, self.format_version())?;
            updates.push(TableUpdate::AddSchema { schema: made });
            // The one that was just added.
            updates.push(TableUpdate::SetCurrentSchema { schema_id: -1 });
        }
        if !evolved.properties.is_empty() {
            updates.push(TableUpdate::SetProperties { updates: evolved.properties });
        }
        if !updates.is_empty() {
            let mut requirements = self.unmoved();
            let last_assigned_field_id = metadata.last_column_id();
            requirements.push(TableRequirement::LastAssignedFieldIdMatch { last_assigned_field_id });
            self.table = self
                .catalog
                .commit(&self.table, requirements, updates)
                .await
                .map_err(|error| error.with("table", &self.id))?;
        }
        Ok(evolved.notes)
    }
}

/// What is to change.
#[derive(Debug, Default)]
struct Evolved {
    /// The new schema, if it is another.
    schema: Option<IcebergSchema>,
    /// Column metadata that is another.
    properties: HashMap<String, String>,
    notes: Vec<String>,
}

fn evolve(
    current: &IcebergSchema,
    properties: &HashMap<String, String>,
    last_id: i32,
    key: &[String],
    wanted: &Schema,
) -> Result<Evolved> {
    let mut evolved = Evolved::default();
    let pairs = pair(current, properties, wanted);
    let mut fields: Vec<NestedFieldRef> = Vec::new();
    for field in current.as_struct().fields() {
        let is_key = key.contains(&field.name);
        let kept = kept_metadata(properties, field.id);
        let Some(&from) = pairs.get(&field.id) else {
            if is_key {
                return Err(Error::new(ErrorKind::Schema, "a key column is gone from the source")
                    .with("column", &field.name)
                    .hint("write to a new `lake_table` with another `primary_key`"));
            }
            if !kept.contains_key(DROPPED) {
                let mut kept = kept;
                kept.insert(DROPPED.to_owned(), "true".to_owned());
                remember(
                    &mut evolved,
                    field.id,
                    &Field::new("", arrow::datatypes::DataType::Null, true).with_metadata(kept),
                );
                evolved.notes.push(format!(
                    "column `{}` is gone from the source: it stays in the lake, NULL from now on",
                    field.name
                ));
            }
            fields.push(with(field, &field.name, &field.field_type, false));
            continue;
        };
        let kind = fitted(&field.field_type, from).map_err(|error| error.with("column", from.name()))?;
        if kind != *field.field_type {
            evolved.notes.push(format!(
                "column `{}` is widened: {} to {}",
                from.name(),
                describe(&field.field_type),
                describe(&kind)
            ));
        }
        if field.name != *from.name() {
            evolved.notes.push(format!("column `{}` is renamed to `{}`", field.name, from.name()));
        }
        let required = field.required && (is_key || !from.is_nullable());
        if field.required && !required {
            evolved.notes.push(format!("column `{}` may be NULL now", from.name()));
        }
        if column_property(from).as_deref() != properties.get(&property(field.id)).map(String::as_str) {
            remember(&mut evolved, field.id, from);
        }
        fields.push(with(field, from.name(), &kind, required));
    }
    let paired: HashSet<&str> = pairs.values().map(|field| field.name().as_str()).collect();
    let mut ids = Ids(last_id);
    for field in wanted.fields().iter().filter(|field| !paired.contains(field.name().as_str())) {
        let mut made = iceberg_field(field, &mut ids)?;
        made.required = false;
        let kind = describe(&made.field_type);
        evolved.notes.push(format!("column `{}` is new: {kind}, NULL in older rows", made.name));
        if column_property(field).is_some() {
            remember(&mut evolved, made.id, field);
        }
        fields.push(Arc::new(made));
    }
    let mut names = HashSet::new();
    if let Some(twice) = fields.iter().find(|field| !names.insert(field.name.as_str())) {
        return Err(Error::new(
            ErrorKind::Schema,
            "a column got the name of one that the lake keeps from before",
        )
        .with("column", &twice.name)
        .hint("give it another name in the source, or write to a new `lake_table`"));
    }
    if fields != current.as_struct().fields() {
        let schema = IcebergSchema::builder()
            .with_fields(fields)
            .with_identifier_field_ids(current.identifier_field_ids())
            .build()
            .map_err(iceberg_error)?;
        evolved.schema = Some(schema);
    }
    Ok(evolved)
}

/// Which column of the source is which field: by the source's own column id first, then by name.
fn pair<'a>(
    current: &IcebergSchema,
    properties: &HashMap<String, String>,
    wanted: &'a Schema,
) -> HashMap<i32, &'a Field> {
    let fields = current.as_struct().fields();
    let mut pairs = HashMap::new();
    let mut left: Vec<&Field> = Vec::new();
    for from in wanted.fields() {
        let id = from.metadata().get(SOURCE_COLUMN_ID);
        let known = fields
            .iter()
            .find(|field| id.is_some() && kept_metadata(properties, field.id).get(SOURCE_COLUMN_ID) == id);
        match known {
            Some(field) => {
                pairs.insert(field.id, from.as_ref());
            }
            None => left.push(from),
        }
    }
    // A column that was dropped and made anew in the source goes on under its name.
    for from in left {
        if let Some(field) = fields.iter().find(|field| field.name == *from.name())
            && !pairs.contains_key(&field.id)
        {
            pairs.insert(field.id, from);
        }
    }
    pairs
}

/// The type that holds both what is there and what comes.
fn fitted(current: &Type, from: &Field) -> Result<Type> {
    // The ids are thrown away: only the types are compared.
    let incoming = iceberg_field(from, &mut Ids(0))?;
    widened(current, &incoming.field_type).ok_or_else(|| {
        Error::new(
            ErrorKind::Schema,
            format!(
                "the type changed from {} to {}, which is not a widening",
                describe(current),
                describe(&incoming.field_type)
            ),
        )
        .hint("write to a new `lake_table`, or change the type back in the source")
    })
}

fn widened(current: &Type, incoming: &Type) -> Option<Type> {
    use PrimitiveType as P;
    let kind = match (current, incoming) {
        (Type::Primitive(current), Type::Primitive(incoming)) => Type::Primitive(match (current, incoming) {
            (current, incoming) if current == incoming => current.clone(),
            (P::Int | P::Long, P::Int | P::Long) => P::Long,
            (P::Float | P::Double, P::Float | P::Double) => P::Double,
            // Nothing becomes nanoseconds, but they hold all that comes.
            (P::TimestampNs, P::Timestamp) => P::TimestampNs,
            (P::TimestamptzNs, P::Timestamptz) => P::TimestamptzNs,
            (P::Decimal { precision: p, scale: s }, P::Decimal { precision, scale }) if s == scale => {
                P::Decimal { precision: *p.max(precision), scale: *scale }
            }
            _ => return None,
        }),
        (Type::List(current), Type::List(incoming)) => {
            let from = &current.element_field;
            let element = widened(&from.field_type, &incoming.element_field.field_type)?;
            let required = from.required && incoming.element_field.required;
            Type::List(ListType::new(Arc::new(NestedField::list_element(from.id, element, required))))
        }
        (Type::Struct(fields), Type::Struct(incoming)) => {
            let same = fields.fields().len() == incoming.fields().len()
                && fields.fields().iter().zip(incoming.fields()).all(|(field, from)| {
                    field.name == from.name
                        && widened(&field.field_type, &from.field_type).as_ref() == Some(&*field.field_type)
                        && (!field.required || from.required)
                });
            return same.then(|| current.clone());
        }
        (Type::Map(map), Type::Map(incoming)) => {
            let same = |a: &Type, b: &Type| widened(a, b).as_ref() == Some(a);
            let same = same(&map.key_field.field_type, &incoming.key_field.field_type)
                && same(&map.value_field.field_type, &incoming.value_field.field_type)
                && (!map.value_field.required || incoming.value_field.required);
            return same.then(|| current.clone());
        }
        _ => return None,
    };
    Some(kind)
}

fn describe(kind: &Type) -> String {
    match kind {
        Type::Primitive(kind) => kind.to_string(),
        Type::List(list) => format!("list<{}>", describe(&list.element_field.field_type)),
        Type::Struct(fields) => {
            let fields: Vec<_> = fields
                .fields()
                .iter()
                .map(|field| format!("{}: {}", field.name, describe(&field.field_type)))
                .collect();
            format!("struct<{}>", fields.join(", "))
        }
        Type::Map(map) => {
            format!("map<{}, {}>", describe(&map.key_field.field_type), describe(&map.value_field.field_type))
        }
    }
}

fn with(field: &NestedField, name: &str, kind: &Type, required: bool) -> NestedFieldRef {
    let mut field = field.clone();
    field.name = name.to_owned();
    field.field_type = Box::new(kind.clone());
    field.required = required;
    Arc::new(field)
}

fn property(id: i32) -> String {
    format!("{COLUMN_PROPERTY}{id}")
}

fn remember(evolved: &mut Evolved, id: i32, field: &Field) {
    evolved.properties.insert(property(id), column_property(field).unwrap_or_else(|| "{}".to_owned()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lake::schema::{column_properties, to_iceberg};
    use arrow::datatypes::DataType;
    use expect_test::{Expect, expect};

    /// `name:type[?][#source id]` a column.
    fn columns(text: &str) -> Schema {
        let field = |word: &str| {
            let (word, id) = word.split_once('#').unwrap_or((word, ""));
            let (name, kind) = word.split_once(':').unwrap();
            let kind_name = kind.trim_end_matches('?');
            let list = |kind| DataType::List(Arc::new(Field::new("element", kind, true)));
            let data_type = match kind_name {
                "int" => DataType::Int32,
                "long" => DataType::Int64,
                "float" => DataType::Float32,
                "double" => DataType::Float64,
                "text" => DataType::Utf8,
                "dec10" => DataType::Decimal128(10, 2),
                "dec12" => DataType::Decimal128(12, 2),
                "ints" => list(DataType::Int32),
                "longs" => list(DataType::Int64),
                other => panic!("{other}"),
            };
            let field = Field::new(name, data_type, kind.ends_with('?'));
            match id {
                "" => field,
                id => field.with_metadata(HashMap::from([(SOURCE_COLUMN_ID.to_owned(), id.to_owned())])),
            }
        };
        Schema::new(text.split_whitespace().map(field).collect::<Vec<_>>())
    }

    fn check(before: &str, after: &str, expected: Expect) {
        let (before, after) = (columns(before), columns(after));
        let key = vec!["id".to_owned()];
        let current = to_iceberg(&before, &key).unwrap();
        let mut properties = column_properties(&before, &current);
        let text = match evolve(&current, &properties, current.highest_field_id(), &key, &after) {
            Err(error) => format!("{error:?}\n"),
            Ok(evolved) => {
                let schema = evolved.schema.unwrap_or(current);
                let mut text = String::new();
                for field in schema.as_struct().fields() {
                    let mark = if field.required { "" } else { "?" };
                    text += &format!("{} {}: {}{mark}\n", field.id, field.name, field.field_type);
                }
                for note in evolved.notes {
                    text += &format!("- {note}\n");
                }
                // What was followed once is not followed again.
                properties.extend(evolved.properties);
                let last = schema.highest_field_id();
                let again = evolve(&schema, &properties, last, &key, &after);
                match again {
                    Ok(again)
                        if again.schema.is_none()
                            && again.properties.is_empty()
                            && again.notes.is_empty() => {}
                    other => text += &format!("AGAIN {other:?}\n"),
                }
                text
            }
        };
        expected.assert_eq(&text);
    }

    #[test]
    fn columns_come_widen_and_may_be_null() {
        check(
            "id:int a:int? b:float? c:dec10? d:text e:ints?",
            "id:long a:long? b:double? c:dec12? d:text? e:longs? f:text",
            expect![[r#"
                1 id: long
                2 a: long?
                3 b: double?
                4 c: decimal(12, 2)?
                5 d: string?
                6 e: list?
                8 f: string?
                - column `id` is widened: int to long
                - column `a` is widened: int to long
                - column `b` is widened: float to double
                - column `c` is widened: decimal(10, 2) to decimal(12, 2)
                - column `d` may be NULL now
                - column `e` is widened: list<int> to list<long>
                - column `f` is new: string, NULL in older rows
            "#]],
        );
    }

    #[test]
    fn narrower_types_fit() {
        check(
            "id:long a:long? b:dec12? c:text?",
            "id:int a:int? b:dec10? c:text",
            expect![[r#"
                1 id: long
                2 a: long?
                3 b: decimal(12, 2)?
                4 c: string?
            "#]],
        );
    }

    #[test]
    fn a_rename_keeps_the_field() {
        check(
            "id:int#1 a:text?#2 b:text?#3",
            "id:int#1 b:text?#2 a:text?#3",
            expect![[r#"
                1 id: int
                2 b: string?
                3 a: string?
                - column `a` is renamed to `b`
                - column `b` is renamed to `a`
            "#]],
        );
        check(
            "id:int#1 a:text?#2",
            "key:int#1 a:text?#2",
            expect![[r#"
                1 key: int
                2 a: string?
                - column `id` is renamed to `key`
            "#]],
        );
    }

    #[test]
    fn what_is_dropped_stays() {
        check(
            "id:int#1 a:text#2",
            "id:int#1",
            expect![[r#"
                1 id: int
                2 a: string?
                - column `a` is gone from the source: it stays in the lake, NULL from now on
            "#]],
        );
        check(
            "id:int#1 a:text?#2",
            "id:int#1 a:text?#3",
            expect![[r#"
                1 id: int
                2 a: string?
            "#]],
        );
        check(
            "id:int#1 a:text?#2 b:text?#3",
            "id:int#1 b:text?#2",
            expect![[r#"
                schema: a column got the name of one that the lake keeps from before (column: b)
                  hint: give it another name in the source, or write to a new `lake_table`
            "#]],
        );
    }

    #[test]
    fn what_would_lose_something_is_refused() {
        check(
            "id:int a:text?",
            "id:int a:int?",
            expect![[r#"
                schema: the type changed from string to int, which is not a widening (column: a)
                  hint: write to a new `lake_table`, or change the type back in the source
            "#]],
        );
        check(
            "id:int a:text?",
            "a:text?",
            expect![[r#"
                schema: a key column is gone from the source (column: id)
                  hint: write to a new `lake_table` with another `primary_key`
            "#]],
        );
    }
}
