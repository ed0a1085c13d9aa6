//! What loads into SQL databases share: the mark of deleted rows, and what earlier loads noted.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, StringArray};
use arrow::datatypes::{Field, Schema};
use arrow::json::writer::{EncoderOptions, make_encoder};

use super::{Dialect, Renames, Wanted};
use crate::error::{Error, ErrorKind, Result};
use crate::table::{HAS_BASE, KEY_TEXT, LAKE_COLUMN_ID, OP_COLUMN, TableId, base_column};
use crate::target::{Conflicts, Deletes, LETTER_COLUMN, MADE, Merge, Refusals, Strategy, TargetTable};

/// The column that marks deleted rows with `deletes: soft`.
pub const DELETED_AT: &str = "_deleted_at";

/// Adds the column that marks deleted rows, where the stream wants one. `data_type` is the target's word
/// for a moment.
pub fn mark_deleted(wanted: &mut Vec<Wanted>, table: &TargetTable, data_type: &str) -> Result<()> {
    if table.deletes != Deletes::Soft || table.key.is_empty() {
        return Ok(());
    }
    if wanted.iter().any(|column| column.name == DELETED_AT) {
        return Err(Error::new(
            ErrorKind::Config,
            format!("the stream has a column `{DELETED_AT}`, which `deletes: soft` needs for itself"),
        )
        .hint("leave the column out with `columns`, or use another setting of `deletes`"));
    }
    wanted.push(Wanted {
        name: DELETED_AT.to_owned(),
        data_type: data_type.to_owned(),
        not_null: false,
        added_default: None,
    });
    Ok(())
}

/// Who hears of rows that are not just written.
#[derive(Default)]
pub struct Hears {
    /// Where refused rows go; without it the first one ends the load.
    pub refusals: Option<Arc<dyn Refusals>>,
    /// Who decides about rows that others changed; without it nobody looks.
    pub conflicts: Option<Arc<dyn Conflicts>>,
}

impl Hears {
    /// Refused rows go aside.
    pub fn of_refusals(refusals: Arc<dyn Refusals>) -> Self {
        Self { refusals: Some(refusals), conflicts: None }
    }

    /// Rows that others changed are decided about.
    pub fn of_conflicts(conflicts: Arc<dyn Conflicts>) -> Self {
        Self { refusals: None, conflicts: Some(conflicts) }
    }
}

/// Refuses to merge into a table without a key.
pub fn check_key(id: &TableId, merge: &Merge) -> Result<()> {
    if merge.strategy != Strategy::Merge || !merge.table.key.is_empty() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Config, "a merge needs a key")
        .with("table", id)
        .hint("set `primary_key`, or use `mode: append`"))
}

/// Refuses changes that have other columns than the table that they are for.
pub fn check_changes(id: &TableId, merge: &Merge) -> Result<()> {
    check_columns(id, merge, &[OP_COLUMN])
}

/// The same for changes that say all of each row in a column of their own.
pub fn check_changes_with_letters(id: &TableId, merge: &Merge) -> Result<()> {
    check_columns(id, merge, &[LETTER_COLUMN, OP_COLUMN])
}

/// The same for changes that say what each row was before.
pub fn check_changes_with_base(id: &TableId, merge: &Merge) -> Result<()> {
    let older: Vec<String> =
        merge.table.schema.fields().iter().map(|field| base_column(field.name())).collect();
    let ours: Vec<&str> = older.iter().map(String::as_str).chain([KEY_TEXT, HAS_BASE, OP_COLUMN]).collect();
    check_columns(id, merge, &ours)
}

fn check_columns(id: &TableId, merge: &Merge, ours: &[&str]) -> Result<()> {
    let stream = merge.changes.schema();
    let own = merge.table.schema.fields().iter().map(|field| field.name().as_str());
    let expected = own.chain(ours.iter().copied());
    if stream.fields().iter().map(|field| field.name().as_str()).eq(expected) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Internal, "the changes have other columns than the table").with("table", id))
}

/// Nested values as JSON text.
pub(in crate::connectors) fn json(array: &ArrayRef) -> Result<StringArray> {
    let field = Arc::new(Field::new("value", array.data_type().clone(), true));
    let options = EncoderOptions::default().with_explicit_nulls(true);
    let mut encoder = make_encoder(&field, array, &options)?;
    let mut text = Vec::new();
    (0..array.len())
        .map(|row| {
            if array.is_null(row) {
                return Ok(None);
            }
            text.clear();
            encoder.encode(row, &mut text);
            String::from_utf8(text.clone())
                .map(Some)
                .map_err(|source| Error::new(ErrorKind::Internal, "JSON is not UTF-8").because(source))
        })
        .collect()
}

/// The names of columns, by the lake's ids.
pub fn lake_ids(schema: &Schema) -> BTreeMap<String, String> {
    let column =
        |field: &Arc<Field>| Some((field.metadata().get(LAKE_COLUMN_ID)?.clone(), field.name().clone()));
    schema.fields().iter().filter_map(column).collect()
}

/// The statements that note in the control table that we make a table. `literal` writes a text.
pub fn made(
    dialect: &Dialect,
    control: &TableId,
    table: &TableId,
    literal: fn(&str) -> String,
) -> [String; 2] {
    let (control, made, name) = (dialect.table(control), literal(MADE), literal(&table.name));
    let columns = ["stream", "target_table", "lake_table", "snapshot_id", "applied_at", "rows", "columns"];
    let nil = literal(&uuid::Uuid::nil().to_string());
    let nothing = literal("{}");
    [
        // Of one that had the name before.
        format!(
            "DELETE FROM {control} WHERE {} = {made} AND {} = {name}",
            dialect.ident("stream"),
            dialect.ident("target_table")
        ),
        format!(
            "INSERT INTO {control} ({}) VALUES ({made}, {name}, {nil}, 0, CURRENT_TIMESTAMP, 0, {nothing})",
            columns.map(|column| dialect.ident(column)).join(", ")
        ),
    ]
}

/// What earlier loads say of a table.
#[derive(Debug, Default)]
pub struct History {
    /// Whether we made it. A table that was there before us is loaded, and keeps the shape that it was given.
    pub ours: bool,
    /// The names under which columns were loaded, by the lake's ids.
    pub columns: BTreeMap<String, String>,
    /// The same, stream by stream.
    pub streams: Vec<(String, BTreeMap<String, String>)>,
}

impl History {
    /// What control rows say: each a stream, and its columns as JSON.
    pub fn of(table: &TableId, rows: impl IntoIterator<Item = (String, String)>) -> Result<Self> {
        let mut history = Self::default();
        for (stream, columns) in rows {
            if stream == MADE {
                history.ours = true;
                continue;
            }
            let columns: BTreeMap<String, String> = serde_json::from_str(&columns).map_err(|error| {
                Error::new(ErrorKind::Corrupt, "the control row's `columns` cannot be read")
                    .with("table", table)
                    .because(error)
            })?;
            history.columns.extend(columns.clone());
            history.streams.push((stream, columns));
        }
        Ok(history)
    }

    /// What each stream is to have noted, as JSON, once columns have their new names. It belongs in the
    /// transaction that renames.
    pub fn renamed(&self, renames: &Renames) -> impl Iterator<Item = (&str, String)> {
        let streams = if renames.is_empty() { &[][..] } else { &self.streams };
        streams.iter().map(|(stream, columns)| {
            (stream.as_str(), serde_json::to_string(&renames.noted(columns)).expect("names are text"))
        })
    }
}
