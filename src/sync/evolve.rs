//! Brings a lake table to what its source is now, before a row is read.

use super::Stream;
use super::extract::same_columns;
use crate::error::{Error, ErrorKind, Result};
use crate::lake::{Evolution, LakeTable, TableSpec, Wanted};

/// What a run does to the lake's table before it writes a row, and what the stream's contract leaves
/// out. Decides for `plan`, `check` and `run` alike.
pub fn evolution(stream: &Stream, table: &LakeTable, spec: &TableSpec) -> Result<Evolution> {
    expect_same_mode(table, spec)?;
    let settings = &stream.settings;
    let evolution = table.evolution(&Wanted {
        schema: &spec.schema,
        contract: settings.schema,
        dropped: settings.dropped_columns,
        partition_by: settings.partition_by.as_deref(),
        sort_by: settings.sort_by.as_deref(),
    })?;
    expect_same_key(table, spec, &evolution)?;
    Ok(evolution)
}

/// Two runners that find the same change race for it: the second finds it done.
const EVOLUTIONS: usize = 3;

/// Makes the table what the source is now, as far as the contract allows.
pub(super) async fn follow(stream: &Stream, table: &mut LakeTable, spec: &TableSpec) -> Result<Evolution> {
    for _ in 1..EVOLUTIONS {
        let found = evolution(stream, table, spec)?;
        match table.evolve(&found).await {
            Err(error) if error.kind() == ErrorKind::Conflict => table.reload().await?,
            outcome => return outcome.map(|()| found),
        }
    }
    let found = evolution(stream, table, spec)?;
    table.evolve(&found).await?;
    Ok(found)
}

/// A table keeps its mode for life: rows that came by one rule cannot be continued by another.
pub(super) fn expect_same_mode(table: &LakeTable, spec: &TableSpec) -> Result<()> {
    if table.mode() == spec.mode {
        return Ok(());
    }
    let message =
        format!("the lake table is in mode {:?}, the stream is in mode {:?}", table.mode(), spec.mode);
    Err(Error::new(ErrorKind::Config, message.to_lowercase())
        .with("table", table.id())
        .hint("set `mode` as it was, or write to a new `lake_table`"))
}

/// A table keeps its key for life too. The stream's key is in the source's names, the table's may have
/// others by its contract.
fn expect_same_key(table: &LakeTable, spec: &TableSpec, evolution: &Evolution) -> Result<()> {
    let name = |column: &String| {
        let place = spec.schema.index_of(column).ok();
        place.and_then(|place| evolution.goes_into(place)).unwrap_or(column).to_owned()
    };
    let wanted: Vec<String> = spec.key.iter().map(name).collect();
    if same_columns(&evolution.key, &wanted) {
        return Ok(());
    }
    let (old, new) = (evolution.key.join(", "), wanted.join(", "));
    Err(Error::new(ErrorKind::Config, format!("the lake table's key is ({old}), the stream's is ({new})"))
        .with("table", table.id())
        .hint("set `primary_key` as it was, or write to a new `lake_table`"))
}
