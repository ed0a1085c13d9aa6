//! `changes('t', from, to)`: what happened to each row between two moments.
//!
//! The same delta that a target is loaded from, folded to one row a key: `_change` says `insert`,
//! `update` or `delete`, then come the table's columns as they are afterwards; of a deleted row the
//! key only. Of a table without updates, the rows that were added, as they are.

use std::sync::Arc;

use datafusion::catalog::TableProvider;
use datafusion::prelude::SessionContext;

use crate::delta::{Op, SnapshotId};
use crate::error::Result;
use crate::lake::{LakeTable, SEQ_COLUMN, TableMode};
use crate::merge;
use crate::table::OP_COLUMN;

/// Column of the result: what happened.
const CHANGE_COLUMN: &str = "_change";

pub(super) async fn between(
    table: &LakeTable,
    from: Option<SnapshotId>,
    to: Option<SnapshotId>,
) -> Result<Arc<dyn TableProvider>> {
    let Some(to) = to else { return table.provider(None).await };
    let delta = table.delta(from, to).await?;
    let key = table.key();
    if table.mode() != TableMode::Merge || key.is_empty() {
        return Ok(delta.rows);
    }
    let planner = SessionContext::new_with_config(merge::config());
    planner.register_table("delta", delta.rows.clone())?;
    let columns = delta.rows.schema();
    let columns = columns.fields().iter().map(|field| field.name().as_str());
    let columns = list(columns.filter(|name| ![OP_COLUMN, SEQ_COLUMN].contains(name)));
    let folded = planner.sql(&folded(&columns, &list(key.iter().map(String::as_str)))).await?;
    Ok(folded.into_view())
}

/// A key was there before if the first thing that happened to it was a removal, and is there after if
/// the last was an addition. Within one step, a key is removed before it is added.
fn folded(columns: &str, key: &str) -> String {
    let (gone, there) = (Op::Delete as i8, Op::Upsert as i8);
    format!(
        "SELECT CASE WHEN \"frazil:last\" = {gone} THEN 'delete' WHEN \"frazil:first\" = {gone} THEN 'update' ELSE 'insert' END \
         AS \"{CHANGE_COLUMN}\", {columns} FROM (SELECT *, \
         first_value(\"{OP_COLUMN}\") OVER (PARTITION BY {key} ORDER BY \"{SEQ_COLUMN}\", \"{OP_COLUMN}\" DESC) AS \"frazil:first\", \
         first_value(\"{OP_COLUMN}\") OVER (PARTITION BY {key} ORDER BY \"{SEQ_COLUMN}\" DESC, \"{OP_COLUMN}\") AS \"frazil:last\", \
         row_number() OVER (PARTITION BY {key} ORDER BY \"{SEQ_COLUMN}\" DESC, \"{OP_COLUMN}\") AS \"frazil:nth\" \
         FROM delta) WHERE \"frazil:nth\" = 1 AND NOT (\"frazil:first\" = {there} AND \"frazil:last\" = {gone})"
    )
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.map(|name| format!("\"{}\"", name.replace('"', "\"\""))).collect::<Vec<_>>().join(", ")
}
