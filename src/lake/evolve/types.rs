//! The type that holds both what a column has and what comes, at any depth.

use std::sync::Arc;

use iceberg::spec::{ListType, MapType, NestedField, NestedFieldRef, PrimitiveType, StructType, Type};

use crate::lake::schema::Ids;

/// The type that keeps every value of both; `None` when there is none. Fields that a struct gains get
/// their ids from `ids`, and all other fields keep theirs. Of a struct, a field that does not come any
/// more stays and may be NULL.
pub(super) fn merged(current: &Type, incoming: &Type, ids: &mut Ids) -> Option<Type> {
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
            let element = merged_field(&current.element_field, &incoming.element_field, ids)?;
            Type::List(ListType::new(element))
        }
        (Type::Struct(current), Type::Struct(incoming)) => {
            Type::Struct(StructType::new(merged_fields(current, incoming, ids)?))
        }
        (Type::Map(current), Type::Map(incoming)) => {
            // Readers find entries by the key: it stays as it is.
            let key = merged(&current.key_field.field_type, &incoming.key_field.field_type, ids)?;
            if key != *current.key_field.field_type {
                return None;
            }
            let value = merged_field(&current.value_field, &incoming.value_field, ids)?;
            Type::Map(MapType::new(current.key_field.clone(), value))
        }
        _ => return None,
    };
    Some(kind)
}

fn merged_field(current: &NestedField, incoming: &NestedField, ids: &mut Ids) -> Option<NestedFieldRef> {
    let kind = merged(&current.field_type, &incoming.field_type, ids)?;
    let mut field = current.clone();
    field.field_type = Box::new(kind);
    field.required = current.required && incoming.required;
    Some(Arc::new(field))
}

fn merged_fields(current: &StructType, incoming: &StructType, ids: &mut Ids) -> Option<Vec<NestedFieldRef>> {
    let find = |fields: &StructType, name: &str| {
        fields.fields().iter().find(|field| field.name == name).map(Arc::clone)
    };
    let mut fields = Vec::new();
    for field in current.fields() {
        fields.push(match find(incoming, &field.name) {
            Some(from) => merged_field(field, &from, ids)?,
            None => optional(field),
        });
    }
    for from in incoming.fields() {
        if find(current, &from.name).is_none() {
            fields.push(optional(&with_new_ids(from, ids)));
        }
    }
    Some(fields)
}

fn optional(field: &NestedField) -> NestedFieldRef {
    let mut field = field.clone();
    field.required = false;
    Arc::new(field)
}

/// The same field with ids that were never used.
fn with_new_ids(field: &NestedField, ids: &mut Ids) -> NestedField {
    let mut field = field.clone();
    field.id = ids.next();
    let again = |field: &NestedFieldRef, ids: &mut Ids| Arc::new(with_new_ids(field, ids));
    field.field_type = Box::new(match *field.field_type {
        Type::Primitive(kind) => Type::Primitive(kind),
        Type::List(list) => Type::List(ListType::new(again(&list.element_field, ids))),
        Type::Struct(fields) => {
            Type::Struct(StructType::new(fields.fields().iter().map(|field| again(field, ids)).collect()))
        }
        Type::Map(map) => {
            let key = again(&map.key_field, ids);
            Type::Map(MapType::new(key, again(&map.value_field, ids)))
        }
    });
    field
}

/// A type for people: `list<int>`.
pub(super) fn describe(kind: &Type) -> String {
    match kind {
        Type::Primitive(PrimitiveType::Decimal { precision, scale }) => {
            format!("decimal({precision}, {scale})")
        }
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
