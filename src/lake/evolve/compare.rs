//! What is to change, column by column. Nothing here touches a catalog.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use iceberg::spec::{NestedField, NestedFieldRef, Schema as IcebergSchema, Type};

use super::pair;
use super::types::{describe, merged};
use super::{DROPPED, DroppedColumns, Fate, SchemaContract};
use crate::error::{Error, ErrorKind, Result};
use crate::lake::schema::{COLUMN_PROPERTY, Ids, arrow_type, column_property, iceberg_field, kept_metadata};
use crate::lake::storage::iceberg_error;
use crate::table::{SOURCE_COLUMN_ID, SOURCE_TYPE};

/// A table's columns and what is known of them.
pub(super) struct Columns<'a> {
    pub(super) schema: &'a IcebergSchema,
    pub(super) properties: &'a HashMap<String, String>,
    pub(super) last_id: i32,
    pub(super) key: Vec<String>,
    /// Fields that partitions or the sort order stand on.
    pub(super) bound: HashSet<i32>,
}

/// What is to change.
#[derive(Debug, Default)]
pub(super) struct Evolved {
    /// The new schema, if it is another.
    pub(super) schema: Option<IcebergSchema>,
    /// Column metadata that is another.
    pub(super) properties: HashMap<String, String>,
    pub(super) steps: Vec<String>,
    pub(super) fates: Vec<Fate>,
}

impl Columns<'_> {
    fn fields(&self) -> &[NestedFieldRef] {
        self.schema.as_struct().fields()
    }

    pub(super) fn key_ids(&self) -> Vec<i32> {
        self.key.iter().filter_map(|name| self.schema.field_id_by_name(name)).collect()
    }

    /// The lake follows the source.
    pub(super) fn evolve(&self, wanted: &Schema, dropped: DroppedColumns) -> Result<Evolved> {
        let mut evolved = Evolved::default();
        let pairs = pair::pair(self.fields(), self.properties, wanted);
        let by_place: HashMap<usize, &NestedFieldRef> = self
            .fields()
            .iter()
            .filter_map(|field| pairs.get(&field.id).map(|place| (*place, field)))
            .collect();
        let mut ids = Ids(self.last_id);
        // In the source's order, and behind them what only the lake has.
        let mut fields: Vec<NestedFieldRef> = Vec::new();
        let mut fresh = Vec::new();
        for (place, from) in wanted.fields().iter().enumerate() {
            let field = match by_place.get(&place) {
                Some(field) => self.followed(field, from, &mut ids, &mut evolved)?,
                None => {
                    let made = new_field(from, &mut ids)?;
                    if column_property(from).is_some() {
                        remember(&mut evolved, made.id, from);
                    }
                    fresh.push(format!(
                        "column `{}` is new: {}, NULL in older rows",
                        made.name,
                        describe(&made.field_type)
                    ));
                    made
                }
            };
            fields.push(Arc::new(field));
        }
        for field in self.fields().iter().filter(|field| !pairs.contains_key(&field.id)) {
            fields.extend(self.unmatched(field, wanted, dropped, &mut evolved)?.map(Arc::new));
        }
        evolved.steps.append(&mut fresh);
        evolved.fates = wanted.fields().iter().map(|from| Fate::Into(from.name().clone())).collect();
        if fields.as_slice() != self.fields() {
            let identifiers = self.schema.identifier_field_ids();
            let schema = IcebergSchema::builder()
                .with_fields(fields)
                .with_identifier_field_ids(identifiers)
                .build()
                .map_err(iceberg_error)?;
            evolved.schema = Some(schema);
        }
        Ok(evolved)
    }

    /// A field as its column is now.
    fn followed(
        &self,
        field: &NestedField,
        from: &Field,
        ids: &mut Ids,
        evolved: &mut Evolved,
    ) -> Result<NestedField> {
        let kept = kept_metadata(self.properties, field.id);
        let steps = &mut evolved.steps;
        // The ids are thrown away: only the types are compared.
        let incoming = iceberg_field(from, &mut Ids(0))?.field_type;
        let Some(kind) = merged(&field.field_type, &incoming, ids) else {
            return Err(changed_type(field, from, &incoming, self.key.contains(&field.name)));
        };
        if field.name != *from.name() {
            steps.push(format!("column `{}` is renamed to `{}`", field.name, from.name()));
        }
        if describe(&kind) != describe(&field.field_type) {
            let (old, new) = (describe(&field.field_type), describe(&kind));
            steps.push(format!("column `{}` is widened: {old} to {new}", from.name()));
        } else if kind != *field.field_type {
            steps.push(format!("fields within column `{}` may be NULL now", from.name()));
        } else if let (Some(old), Some(new)) = (kept.get(SOURCE_TYPE), from.metadata().get(SOURCE_TYPE))
            && old != new
        {
            let plain = |text: &str| text.split_once(':').map_or(text, |(_, name)| name).to_owned();
            steps.push(format!(
                "column `{}` is {} in the source now, it was {}",
                from.name(),
                plain(new),
                plain(old)
            ));
        }
        if kept.contains_key(DROPPED) {
            steps.push(format!(
                "column `{}` is there again: rows written in between have NULL in it",
                from.name()
            ));
        }
        let required = field.required && (self.key.contains(&field.name) || !from.is_nullable());
        if field.required && !required {
            steps.push(format!("column `{}` may be NULL now", from.name()));
        }
        if column_property(from).as_deref() != self.properties.get(&property(field.id)).map(String::as_str) {
            remember(evolved, field.id, from);
        }
        Ok(with(field, from.name(), kind, required))
    }

    /// What becomes of a field that the source has no column for; `None` when it goes.
    fn unmatched(
        &self,
        field: &NestedField,
        wanted: &Schema,
        dropped: DroppedColumns,
        evolved: &mut Evolved,
    ) -> Result<Option<NestedField>> {
        if self.key.contains(&field.name) {
            return Err(key_gone(&field.name));
        }
        let mut kept = kept_metadata(self.properties, field.id);
        let is_ours = kept.contains_key(SOURCE_COLUMN_ID) || kept.contains_key(SOURCE_TYPE);
        let was_dropped = kept.contains_key(DROPPED);
        if dropped == DroppedColumns::Drop && is_ours && !self.bound.contains(&field.id) {
            evolved.steps.push(format!("column `{}` is gone from the source: it is dropped", field.name));
            return Ok(None);
        }
        let mut name = field.name.clone();
        if wanted.column_with_name(&name).is_some() {
            // The name is another column's now.
            name = format!("{}_dropped_{}", field.name, field.id);
            while wanted.column_with_name(&name).is_some() || self.schema.field_id_by_name(&name).is_some() {
                name.push('_');
            }
            evolved.steps.push(format!(
                "column `{}` was dropped in the source and its name is another column's now: it stays as `{name}`",
                field.name
            ));
        } else if is_ours && !was_dropped {
            evolved.steps.push(format!(
                "column `{}` is gone from the source: it stays in the lake, NULL from now on",
                field.name
            ));
        }
        if is_ours && !was_dropped {
            kept.insert(DROPPED.to_owned(), "true".to_owned());
            remember(evolved, field.id, &Field::new("", DataType::Null, true).with_metadata(kept));
        }
        Ok(Some(with(field, &name, (*field.field_type).clone(), false)))
    }

    /// Nothing may change: says all that has.
    pub(super) fn freeze(&self, wanted: &Schema) -> Result<Evolved> {
        let evolved = self.evolve(wanted, DroppedColumns::Keep)?;
        if !evolved.steps.is_empty() {
            return Err(Error::new(
                ErrorKind::Schema,
                format!(
                    "the source's columns changed, and the stream's schema is frozen: {}",
                    evolved.steps.join("; ")
                ),
            )
            .hint(
                "set `schema: evolve` to follow it, or `discard_value` or `discard_row` to go on without",
            ));
        }
        // Another order, or the ids of a table that was restored: that is no change.
        Ok(Evolved { fates: evolved.fates, ..Evolved::default() })
    }

    /// The lake stays as it is; what has no place there is left out.
    pub(super) fn discard(&self, wanted: &Schema, contract: SchemaContract) -> Result<Evolved> {
        let mut evolved = Evolved::default();
        let pairs = pair::pair(self.fields(), self.properties, wanted);
        let what =
            if contract == SchemaContract::DiscardRow { "rows with a value in it" } else { "its values" };
        let policy = contract.name();
        for (place, from) in wanted.fields().iter().enumerate() {
            let field = self.fields().iter().find(|field| pairs.get(&field.id) == Some(&place));
            let Some(field) = field else {
                let name = from.name();
                evolved
                    .steps
                    .push(format!("column `{name}` is new: {what} are left out (`schema: {policy}`)"));
                evolved.fates.push(Fate::LeftOut);
                continue;
            };
            let incoming = iceberg_field(from, &mut Ids(0))?.field_type;
            let fate = fate(field, &incoming);
            if fate != Fate::Into(field.name.clone()) {
                if fate == Fate::LeftOut && self.key.contains(&field.name) {
                    return Err(changed_type(field, from, &incoming, true));
                }
                let (old, new) = (describe(&field.field_type), describe(&incoming));
                evolved.steps.push(format!(
                    "column `{}` is {new} in the source and stays {old}: {} (`schema: {policy}`)",
                    field.name,
                    match contract {
                        SchemaContract::DiscardRow => "rows whose value does not fit are left out",
                        _ => "values that do not fit are left out",
                    }
                ));
            }
            if field.name != *from.name() {
                evolved.steps.push(format!(
                    "column `{}` is called `{}` in the source and keeps its name (`schema: {policy}`)",
                    field.name,
                    from.name()
                ));
            }
            evolved.fates.push(fate);
        }
        for field in self.fields().iter().filter(|field| !pairs.contains_key(&field.id)) {
            if self.key.contains(&field.name) {
                return Err(key_gone(&field.name));
            }
            if field.required {
                return Err(Error::new(ErrorKind::Schema, "a required column is gone from the source")
                    .with("column", &field.name)
                    .hint("set `schema: evolve` for a run: the column becomes optional"));
            }
            evolved.steps.push(format!("column `{}` is gone from the source: NULL from now on", field.name));
        }
        Ok(evolved)
    }
}

/// Where values of another type go, when the field stays as it is.
fn fate(field: &NestedField, incoming: &Type) -> Fate {
    // Ids of fields that a struct would gain do not matter: then it is another type.
    let kind = merged(&field.field_type, incoming, &mut Ids(i32::MAX / 2));
    match kind {
        Some(kind) if kind == *field.field_type => Fate::Into(field.name.clone()),
        Some(Type::Primitive(_)) => Fate::IfItFits(field.name.clone(), arrow_type(&field.field_type, false)),
        _ => Fate::LeftOut,
    }
}

fn new_field(from: &Field, ids: &mut Ids) -> Result<NestedField> {
    let mut made = iceberg_field(from, ids)?;
    made.required = false;
    Ok(made)
}

fn changed_type(field: &NestedField, from: &Field, incoming: &Type, is_key: bool) -> Error {
    let hint = if is_key {
        "write to a new `lake_table`: no policy lets this pass, for a row without its key has no place"
    } else {
        "to go on without the new values, set `schema: discard_value` or `discard_row`; to keep them, give \
         the column another name in the source, or write to a new `lake_table`"
    };
    let (old, new) = (describe(&field.field_type), describe(incoming));
    Error::new(ErrorKind::Schema, format!("the type changed from {old} to {new}, which is not a widening"))
        .with("column", from.name())
        .hint(hint)
}

fn key_gone(name: &str) -> Error {
    Error::new(ErrorKind::Schema, "a key column is gone from the source")
        .with("column", name)
        .hint("write to a new `lake_table` with another `primary_key`: no policy lets this pass")
}

fn with(field: &NestedField, name: &str, kind: Type, required: bool) -> NestedField {
    let mut field = field.clone();
    field.name = name.to_owned();
    field.field_type = Box::new(kind);
    field.required = required;
    field
}

fn property(id: i32) -> String {
    format!("{COLUMN_PROPERTY}{id}")
}

fn remember(evolved: &mut Evolved, id: i32, field: &Field) {
    evolved.properties.insert(property(id), column_property(field).unwrap_or_else(|| "{}".to_owned()));
}
