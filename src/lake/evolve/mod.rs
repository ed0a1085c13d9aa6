//! A table that follows its source: what changed there, what that means here, and the contract that
//! says whether it may.
//!
//! ```text
//! columns of the source ─┐
//! contract ──────────────┼─▶ evolution ─┬─▶ steps         (sentences: `plan` prints them, `run` notes them)
//! columns of the table ──┘              ├─▶ fates         (where each column's values go)
//!                                       └─▶ one commit    (schema, partitions and order; no rows)
//! ```
//!
//! | in the source | in the lake, under `evolve` |
//! |---|---|
//! | a new column | added, NULL in the rows that are there |
//! | `int` → `bigint`, `real` → `double`, a decimal with more digits | widened; files stay as they are |
//! | a new or wider field within a struct, list or map | the same |
//! | a narrower type | nothing: the wide one holds it |
//! | NOT NULL dropped | optional, unless it is the key |
//! | renamed (the source's own column id tells) | renamed; the field id, and so the data, stays |
//! | dropped | stays, NULL from then on; or goes, by `dropped_columns` |
//! | dropped and made anew under its name | a new column; the old one makes room for it |
//! | another order | the same order |
//! | any other type, a key column gone | refused: column, both types, what would let it pass |
//!
//! What always holds: a field id never changes its meaning and is never used again. The schema changes
//! before the rows that need it, in a commit of its own that is harmless alone: a crash between the two
//! leaves a table that holds the rows that it held before.

mod compare;
mod layout;
mod pair;
#[cfg(test)]
mod tests;
mod types;

use std::sync::Arc;

use arrow::datatypes::{DataType, Schema, SchemaRef};
use iceberg::spec::Schema as IcebergSchema;
use iceberg::{TableRequirement, TableUpdate};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use self::compare::Columns;
use super::format_version::{is_v3, refuse_newer_types};
use super::schema::to_arrow;
use super::{LakeTable, defaults};
use crate::delta::SnapshotId;
use crate::error::Result;
use crate::table::LAKE_COLUMN_ID;

/// Column metadata: the source has no such column any more.
const DROPPED: &str = "frazil:dropped";

/// What happens when the source's columns change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SchemaContract {
    /// The lake follows. What would lose something stops the stream.
    #[default]
    Evolve,
    /// Any change stops the stream before anything is written.
    Freeze,
    /// The lake stays as it is: rows with values that have no place there are left out, and counted.
    DiscardRow,
    /// The lake stays as it is: values that have no place there are left out, and counted.
    DiscardValue,
}

impl SchemaContract {
    /// Its word in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Evolve => "evolve",
            Self::Freeze => "freeze",
            Self::DiscardRow => "discard_row",
            Self::DiscardValue => "discard_value",
        }
    }
}

/// What happens in the lake to a column that the source dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DroppedColumns {
    /// It stays: older rows keep their values, newer ones have NULL.
    #[default]
    Keep,
    /// It goes from the table; older snapshots still show it.
    Drop,
}

/// How a table should be.
#[derive(Debug, Clone)]
pub struct Wanted<'a> {
    /// The columns of the rows that come.
    pub schema: &'a SchemaRef,
    /// What may be done about columns that differ.
    pub contract: SchemaContract,
    /// What happens to columns that do not come any more.
    pub dropped: DroppedColumns,
    /// Partition transforms for new files; `None`: as they are.
    pub partition_by: Option<&'a [String]>,
    /// The order of rows in new files; `None`: as it is.
    pub sort_by: Option<&'a [String]>,
}

impl<'a> Wanted<'a> {
    /// Rows of this schema, and all else as it is by default.
    pub fn columns(schema: &'a SchemaRef) -> Self {
        Self {
            schema,
            contract: SchemaContract::default(),
            dropped: DroppedColumns::default(),
            partition_by: None,
            sort_by: None,
        }
    }
}

/// The way from a table as it is to the table as it should be. Nothing is done yet.
#[derive(Debug, Clone)]
pub struct Evolution {
    /// What would happen, in sentences; what is left out included.
    pub steps: Vec<String>,
    /// Where the values of each column that comes go, in its order.
    pub fates: Vec<Fate>,
    /// The table's columns afterwards, as [`LakeTable::columns`] has them.
    pub after: SchemaRef,
    /// The key's columns afterwards, in key order.
    pub key: Vec<String>,
    updates: Vec<TableUpdate>,
}

/// Where the values of a column go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// Into the column of this name.
    Into(String),
    /// Into the column of this name, as far as they are values of its type.
    IfItFits(String, DataType),
    /// Nowhere: the column is new, or of a type that the table's cannot hold.
    LeftOut,
}

impl Evolution {
    /// Whether the catalog has anything to change.
    pub fn is_nothing(&self) -> bool {
        self.updates.is_empty()
    }

    /// The table's name for a column that comes under this place.
    pub fn goes_into(&self, place: usize) -> Option<&str> {
        match self.fates.get(place)? {
            Fate::Into(name) | Fate::IfItFits(name, _) => Some(name),
            Fate::LeftOut => None,
        }
    }
}

impl LakeTable {
    /// What would have to happen for rows of `wanted` to find their place. [`Schema`](crate::ErrorKind::Schema)
    /// when it would lose something, or when the contract does not allow it.
    pub fn evolution(&self, wanted: &Wanted<'_>) -> Result<Evolution> {
        self.way_to(wanted).map_err(|error| error.with("table", &self.id))
    }

    /// Does it. [`Conflict`](crate::ErrorKind::Conflict) when the table has moved since.
    pub async fn evolve(&mut self, evolution: &Evolution) -> Result<()> {
        if evolution.updates.is_empty() {
            return Ok(());
        }
        let mut requirements = self.unmoved();
        let metadata = self.table.metadata();
        requirements.extend([
            TableRequirement::LastAssignedFieldIdMatch { last_assigned_field_id: metadata.last_column_id() },
            TableRequirement::DefaultSpecIdMatch { default_spec_id: metadata.default_partition_spec_id() },
        ]);
        self.table = self
            .catalog
            .commit(&self.table, requirements, evolution.updates.clone())
            .await
            .map_err(|error| error.with("table", &self.id))?;
        Ok(())
    }

    /// Its columns now, each with the [`LAKE_COLUMN_ID`] that it keeps through renames.
    pub fn columns(&self) -> SchemaRef {
        let metadata = self.table.metadata();
        let schema = metadata.current_schema();
        with_column_ids(&to_arrow(schema, metadata.properties()), schema, self.uuid())
    }

    /// Whether its columns have changed since a snapshot was made.
    pub fn evolved_since(&self, snapshot: SnapshotId) -> bool {
        let metadata = self.table.metadata();
        let then = metadata.snapshot_by_id(snapshot.0).and_then(|snapshot| snapshot.schema_id());
        then.is_some_and(|then| then != metadata.current_schema_id())
    }

    fn way_to(&self, wanted: &Wanted<'_>) -> Result<Evolution> {
        let metadata = self.table.metadata();
        let table = Columns {
            schema: metadata.current_schema(),
            properties: metadata.properties(),
            last_id: metadata.last_column_id(),
            key: self.key(),
            bound: layout::bound(metadata),
        };
        let key = table.key_ids();
        let mut evolved = match wanted.contract {
            SchemaContract::Evolve => table.evolve(wanted.schema, wanted.dropped)?,
            SchemaContract::Freeze => table.freeze(wanted.schema)?,
            contract => table.discard(wanted.schema, contract)?,
        };
        let mut schema = evolved.schema.take().unwrap_or_else(|| table.schema.clone());
        if is_v3(metadata) {
            schema = defaults::of_new_columns(schema, table.last_id, wanted.schema, &mut evolved.steps)?;
        }
        refuse_newer_types(&schema, self.format_version())?;
        let mut properties = table.properties.clone();
        properties.extend(evolved.properties.clone());
        let after = with_column_ids(&to_arrow(&schema, &properties), &schema, self.uuid());
        let mut updates = Vec::new();
        if schema.as_struct() != table.schema.as_struct() {
            updates.push(TableUpdate::AddSchema { schema: schema.clone() });
            // The one that was just added.
            updates.push(TableUpdate::SetCurrentSchema { schema_id: -1 });
        }
        if !evolved.properties.is_empty() {
            updates.push(TableUpdate::SetProperties { updates: evolved.properties });
        }
        layout::change(metadata, &schema, wanted, &mut updates, &mut evolved.steps)?;
        Ok(Evolution {
            steps: evolved.steps,
            fates: evolved.fates,
            after,
            key: key.iter().filter_map(|id| schema.name_by_field_id(*id).map(str::to_owned)).collect(),
            updates,
        })
    }
}

/// Ids that no other table has: a table that was dropped and made anew counts its fields from one again.
fn with_column_ids(columns: &SchemaRef, schema: &IcebergSchema, table: Uuid) -> SchemaRef {
    // The end of the UUID is what chance gave it: the begin of a newer kind is the minute of its making.
    let table = table.simple().to_string();
    let table = &table[20..];
    let fields = columns.fields().iter().zip(schema.as_struct().fields()).map(|(column, field)| {
        let mut metadata = column.metadata().clone();
        metadata.insert(LAKE_COLUMN_ID.to_owned(), format!("{table}.{}", field.id));
        column.as_ref().clone().with_metadata(metadata)
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}
