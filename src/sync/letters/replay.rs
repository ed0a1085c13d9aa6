//! Letters in people's hands: rows are carried again, or given up.
//!
//! A letter is never applied as it was written: its row may have changed since. What counts is the row as its
//! place has it now. The extract leg's rows are found again by reading the source whole, which commits what
//! differs and closes what came through, in one commit as always. The load's rows are taken from the
//! snapshot that the target shows, by key, and are brought in again: a second time changes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Int8Array, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::json::ReaderBuilder;
use datafusion::physical_plan::memory::MemoryStream;
use datafusion::prelude::SessionContext;
use futures::StreamExt;
use serde::Serialize;

use super::refused::{LoadLetters, keys_of, name_by_key};
use super::{Leg, deliver, letters, letters_by_name};
use crate::connectors;
use crate::delta::Op;
use crate::error::{Error, ErrorKind, Result};
use crate::lake::{LakeTable, TableMode};
use crate::merge;
use crate::sync::{Context, Mode, Progress, Stream, batches, extract, target_table};
use crate::table::OP_COLUMN;
use crate::target::{Applied, Merge, Strategy};

/// What came of letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Replayed {
    /// Letters that were there.
    pub letters: u64,
    /// Those that are there still, or again.
    pub left: u64,
}

/// Carries the rows of a stream's letters of one leg again.
pub async fn replay(
    context: &Context,
    stream: &Stream,
    leg: Leg,
    progress: &Arc<Progress>,
) -> Result<Replayed> {
    let open = open(context, stream, leg).await?;
    if open.is_empty() {
        return Ok(Replayed::default());
    }
    match leg {
        Leg::Extract => from_source(context, stream, progress).await?,
        Leg::Load => into_target(context, stream, &open).await?,
    }
    let left = self::open(context, stream, leg).await?;
    Ok(Replayed { letters: open.len() as u64, left: left.len() as u64 })
}

/// Gives letters up: those of a leg, or of these names only. Their rows stay as they are. Returns how many.
pub async fn drop_letters(
    context: &Context,
    stream: &Stream,
    leg: Leg,
    names: Option<&[String]>,
) -> Result<u64> {
    let mut gone: Vec<String> = open(context, stream, leg).await?.into_keys().collect();
    gone.retain(|letter| names.is_none_or(|names| names.contains(letter)));
    if !gone.is_empty() {
        let table = lake_table(context, stream).await?;
        deliver::give_up(&context.lake, &table, &gone, context.run, context.budget).await?;
    }
    Ok(gone.len() as u64)
}

/// The letters of a leg, each with its key.
async fn open(context: &Context, stream: &Stream, leg: Leg) -> Result<BTreeMap<String, Option<String>>> {
    match letters(&context.lake, stream, context.budget).await? {
        Some(table) => letters_by_name(&context.lake, &table, leg, context.budget).await,
        None => Ok(BTreeMap::new()),
    }
}

async fn lake_table(context: &Context, stream: &Stream) -> Result<LakeTable> {
    context.lake.table(&stream.lake_table).await?.ok_or_else(|| {
        Error::new(ErrorKind::Config, "the lake has no such table").with("table", &stream.lake_table)
    })
}

async fn from_source(context: &Context, stream: &Stream, progress: &Arc<Progress>) -> Result<()> {
    if lake_table(context, stream).await?.mode() == TableMode::Append {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "rows of an `append` stream cannot be read once more: all others would come again too",
        )
        .with("stream", &stream.name)
        .hint("touch the rows in the source, so that the next run reads them, and `frazil dlq drop` the letters"));
    }
    let whole = Context { full_refresh: true, ..context.clone() };
    extract(&whole, stream, progress).await.map(drop)
}

async fn into_target(
    context: &Context,
    stream: &Stream,
    open: &BTreeMap<String, Option<String>>,
) -> Result<()> {
    let wrong = |kind, message: &str| Error::new(kind, message).with("stream", &stream.name);
    let Some(to) = &stream.target else {
        return Err(wrong(ErrorKind::Config, "the stream has no target any more")
            .hint("`frazil dlq drop` gives the letters up"));
    };
    let table = lake_table(context, stream).await?;
    let key = table.key();
    if key.is_empty() || stream.settings.mode == Some(Mode::Scd2) {
        return Err(wrong(ErrorKind::Unsupported, "without a key single rows cannot be loaded again")
            .hint("`frazil load --full-refresh` loads the whole table again"));
    }
    if !stream.settings.conflicts.are_blind() {
        return Err(wrong(
            ErrorKind::Unsupported,
            "a replay would write over what others changed in the target",
        )
        .hint("set `conflicts: source_wins` for it, or `frazil dlq drop` the letters"));
    }
    let target = connectors::target(&to.connection)?;
    let applied = target.applied(&stream.name, &to.table).await?;
    // A replay, or a load of the same snapshot, may have died before it was done.
    let is_there = |applied: &Applied| applied.halfway.is_none_or(|way| way.toward == applied.snapshot);
    let applied = applied.filter(|applied| applied.lake_table == table.uuid() && is_there(applied));
    let applied = applied.ok_or_else(|| {
        wrong(ErrorKind::Config, "the target does not show this lake table").hint("run `frazil load` first")
    })?;
    let wanted = target_table(stream, to, &table.columns(), &key);
    target.prepare(&wanted).await?;
    let changes = changes(context, &table, applied.snapshot, &key, open).await?;
    // The same snapshot, with a mark: so that it can be seen whether this was committed.
    let on_the_way = applied.toward(applied.snapshot);
    let merge = Merge {
        turn: None,
        stream: stream.name.clone(),
        table: wanted.clone(),
        from: Some(applied),
        to: on_the_way,
        strategy: Strategy::Merge,
        rows: Some(changes.num_rows() as u64),
        changes: Box::pin(MemoryStream::try_new(vec![changes.clone()], changes.schema(), None)?),
    };
    let letters = LoadLetters::of_replay(context, stream, &table, &merge, open.keys().cloned().collect());
    letters.apply(&*target, merge).await.map_err(|error| error.with("stream", &stream.name))?;
    let there = Applied::new(applied.lake_table, applied.snapshot);
    batches::arrive(&*target, &stream.name, wanted, on_the_way, there).await?;
    letters.committed().await.map(drop)
}

/// Rows, by the names and keys of their letters, as a snapshot has them; those that it does not have are to be
/// deleted.
pub(in crate::sync) async fn changes(
    context: &Context,
    table: &LakeTable,
    at: crate::delta::SnapshotId,
    key: &[String],
    open: &BTreeMap<String, Option<String>>,
) -> Result<RecordBatch> {
    let session = SessionContext::new_with_config_rt(
        merge::config(),
        merge::runtime(context.budget, context.lake.stores())?,
    );
    let mut rows = session.read_table(table.provider(Some(at)).await?)?.execute_stream().await?;
    let columns = table.columns();
    let mut fields: Vec<_> =
        columns.fields().iter().map(|field| field.as_ref().clone().with_nullable(true)).collect();
    fields.push(Field::new(OP_COLUMN, DataType::Int8, false));
    let schema = Arc::new(Schema::new(fields));
    let mut missing = open.clone();
    let mut found = Vec::new();
    while let Some(batch) = rows.next().await {
        let batch = batch?;
        let names: Vec<String> = keys_of(&batch, key)?.iter().map(|key| name_by_key(key)).collect();
        let wanted: BooleanArray = names.iter().map(|name| Some(open.contains_key(name))).collect();
        names.iter().for_each(|name| drop(missing.remove(name)));
        if wanted.true_count() > 0 {
            found.push(with_op(&schema, filter_record_batch(&batch, &wanted)?.columns(), Op::Upsert)?);
        }
    }
    let gone = missing.into_values().flatten().collect::<Vec<_>>();
    let keys = keys_from(&columns, key, &gone)?;
    let values: Vec<ArrayRef> = columns
        .fields()
        .iter()
        .map(|field| match keys.column_by_name(field.name()) {
            Some(key) => key.clone(),
            None => new_null_array(field.data_type(), keys.num_rows()),
        })
        .collect();
    found.push(with_op(&schema, &values, Op::Delete)?);
    Ok(concat_batches(&schema, &found)?)
}

fn with_op(schema: &SchemaRef, columns: &[ArrayRef], op: Op) -> Result<RecordBatch> {
    let rows = columns.first().map_or(0, |column| column.len());
    let mut columns = columns.to_vec();
    columns.push(Arc::new(Int8Array::from_value(op as i8, rows)));
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(RecordBatch::try_new_with_options(schema.clone(), columns, &options)?)
}

/// Keys as letters have them, as values again.
fn keys_from(columns: &SchemaRef, key: &[String], texts: &[String]) -> Result<RecordBatch> {
    let fields: Vec<Field> =
        key.iter().map(|name| columns.field_with_name(name).cloned()).collect::<Result<_, _>>()?;
    let schema = Arc::new(Schema::new(fields));
    let text = texts.join("\n");
    let mut reader =
        ReaderBuilder::new(schema.clone()).with_batch_size(texts.len().max(1)).build(text.as_bytes())?;
    match reader.next() {
        Some(batch) => Ok(batch?),
        None => Ok(RecordBatch::new_empty(schema)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::StringArray;

    #[test]
    fn keys_are_read_back_as_they_were() {
        let id = Arc::new(arrow::array::Decimal128Array::from(vec![10_i128.pow(37) + 1, -5]));
        let id = Arc::new(id.as_ref().clone().with_precision_and_scale(38, 2).unwrap()) as ArrayRef;
        let name = Arc::new(StringArray::from(vec!["a\n\"b", "ü"])) as ArrayRef;
        let rows = RecordBatch::try_from_iter([("id", id), ("name", name)]).unwrap();
        let key = ["id".to_owned(), "name".to_owned()];
        let texts = keys_of(&rows, &key).unwrap();
        let read = keys_from(&rows.schema(), &key, &texts).unwrap();
        assert_eq!(read.columns(), rows.columns());
        assert_eq!(keys_from(&rows.schema(), &key, &[]).unwrap().num_rows(), 0);
    }
}
