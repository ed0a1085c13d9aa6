//! What a stream asks of its source, and the lake table that it makes of the answer.

use super::stamp::lake_schema;
use super::{Mode, Stream};
use crate::error::{Error, ErrorKind, Result};
use crate::lake::{Lake, TableMode, TableSpec};
use crate::memory::Budget;
use crate::source::{ChangeDetection, ReadPlan, ReadRequest};
use crate::table::TableDescription;

/// What a stream asks of its source, apart from the position.
pub fn read_request(stream: &Stream, table: &TableDescription, budget: Budget) -> Result<ReadRequest> {
    let settings = &stream.settings;
    let key = key_of(stream, table)?;
    let change = match settings.mode {
        Some(Mode::Replace) => ChangeDetection::Full,
        _ => settings.change,
    };
    Ok(ReadRequest {
        table: table.id.clone(),
        columns: settings.columns.clone(),
        filter: settings.filter.clone(),
        keyed: !key.is_empty() && settings.mode.is_none_or(|mode| matches!(mode, Mode::Merge | Mode::Scd2)),
        key,
        change,
        cursor: settings.cursor.clone(),
        lag: settings.lag,
        null_cursor: settings.null_cursor,
        beyond_horizon: settings.beyond_horizon,
        values: settings.values.clone(),
        log: settings.log.clone(),
        reader: stream.lake_table.to_string(),
        from: None,
        parallel: budget.parallel(),
        batch_rows: BATCH_ROWS,
        batch_bytes: budget.batch_bytes(),
        portion_bytes: settings.portion_bytes,
    })
}

/// Who a stream is to its source: the same words in every pass, and others in another lake.
pub fn reader(lake: &Lake, stream: &Stream) -> String {
    format!("{} {}", lake.warehouse(), stream.lake_table)
}

/// Enough rows to make the cost of a batch vanish, few enough to stay in the processor's cache by column.
const BATCH_ROWS: usize = 65_536;

fn key_of(stream: &Stream, table: &TableDescription) -> Result<Vec<String>> {
    let named = &stream.settings.primary_key;
    let key = if named.is_empty() { table.primary_key().unwrap_or_default() } else { named };
    for name in key {
        let known = table.column(name).is_some();
        let read = stream.settings.columns.as_ref().is_none_or(|columns| columns.contains(name));
        if !known || !read {
            return Err(Error::new(
                ErrorKind::Config,
                if known { "key column is not among the columns read" } else { "key column does not exist" },
            )
            .with("table", &table.id)
            .with("column", name)
            .hint("set `primary_key` to columns of the table, and list them in `columns` too"));
        }
    }
    if key.is_empty()
        && let Some(mode @ (Mode::Merge | Mode::Scd2)) = stream.settings.mode
    {
        let mode = if mode == Mode::Merge { "merge" } else { "scd2" };
        let message = format!("mode `{mode}` needs a key, and the table has none");
        return Err(Error::new(ErrorKind::Config, message)
            .with("table", &table.id)
            .hint("set `primary_key`, or `mode: append` with a `cursor`, or `mode: replace`"));
    }
    Ok(key.to_vec())
}

/// How a stream keeps rows, once it is known how changes are found. What would double rows is refused.
pub fn mode_of(stream: &Stream, key: &[String], change: ChangeDetection) -> Result<TableMode> {
    match stream.settings.mode {
        Some(Mode::Merge | Mode::Scd2) => Ok(TableMode::Merge),
        Some(Mode::Replace) => Ok(TableMode::Replace),
        Some(Mode::Append) if change == ChangeDetection::Full => Err(Error::new(
            ErrorKind::Config,
            "mode `append` without a cursor would add the whole table in every pass",
        )
        .with("stream", &stream.name)
        .hint("name a `cursor`, or use `mode: replace`")),
        Some(Mode::Append) => Ok(TableMode::Append),
        None if !key.is_empty() => Ok(TableMode::Merge),
        None if change == ChangeDetection::Full => Ok(TableMode::Replace),
        None => Ok(TableMode::Append),
    }
}

/// The lake table that a stream makes when there is none yet.
pub fn lake_table_plan(stream: &Stream, table: &TableDescription, plan: &ReadPlan) -> Result<TableSpec> {
    let key = key_of(stream, table)?;
    let mode = mode_of(stream, &key, plan.change)?;
    Ok(TableSpec {
        id: stream.lake_table.clone(),
        schema: lake_schema(&plan.schema, mode),
        mode,
        key: if mode == TableMode::Append { Vec::new() } else { key },
        format_version: stream.settings.format_version,
        partition_by: stream.settings.partition_by.clone().unwrap_or_default(),
        sort_by: stream.settings.sort_by.clone().unwrap_or_default(),
    })
}
