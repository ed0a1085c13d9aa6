//! What loads into SQL databases share: the mark of deleted rows, and what earlier loads noted.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, StringArray};
use arrow::datatypes::{Field, Schema};
use arrow::json::writer::{EncoderOptions, make_encoder};

use super::{Renames, Wanted};
use crate::error::{Error, ErrorKind, Result};
use crate::table::{HAS_BASE, KEY_TEXT, LAKE_COLUMN_ID, OP_COLUMN, TableId, base_column};
use crate::target::{Deletes, LETTER_COLUMN, Merge, TargetTable};

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

/// What earlier loads say of a table.
#[derive(Debug, Default)]
pub struct History {
    /// Whether any stream ever loaded it: then we made it, or were given it.
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
            let columns: BTreeMap<String, String> = serde_json::from_str(&columns).map_err(|error| {
                Error::new(ErrorKind::Corrupt, "the control row's `columns` cannot be read")
                    .with("table", table)
                    .because(error)
            })?;
            history.ours = true;
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
