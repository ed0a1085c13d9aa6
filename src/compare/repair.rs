//! Makes the second place like the first, for the keys that differ and no others.
//!
//! The rows are read once more and taken as they are then: of a source, a key that came back meanwhile
//! is not deleted. The lake's position stays where it is, and so does the target's snapshot: the rows
//! that are set right belong to them.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Int8Array, RecordBatch, RecordBatchOptions, UInt32Array, new_null_array,
};
use arrow::compute::{concat_batches, filter_record_batch, take_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::row::Rows;
use datafusion::physical_plan::memory::MemoryStream;

use super::look::{Found, Kind, Look};
use super::rows::{Columns, Encoder};
use super::side::{Drain, Side};
use crate::connectors;
use crate::delta::Op;
use crate::error::{Error, ErrorKind, Result};
use crate::lake::{Change, Effect, LakeTable, TableMode};
use crate::sync::{self, Context, Mode, Progress, Stream};
use crate::table::OP_COLUMN;
use crate::target::{Merge, Strategy};

/// Writes to the lake what the source has under the keys found. Returns how many keys that were.
pub(super) async fn lake(
    context: &Context,
    stream: &Stream,
    table: &mut LakeTable,
    look: &Look,
    found: &Arc<Found>,
    progress: &Arc<Progress>,
) -> Result<u64> {
    if table.mode() != TableMode::Merge || stream.settings.audit.is_some() {
        return Err(Error::new(ErrorKind::Unsupported, "only a `merge` table without an audit is repaired")
            .with("table", table.id())
            .hint("a pass with `--change full` finds and commits every difference"));
    }
    let source = Side::source(context, stream, look.only.as_ref()).await?.open().await?;
    let picked = source.drain(|| Picker::new(look, found), progress).await?;
    let mut writer = table.writer(context.budget)?.unsorted();
    let mut seen = HashSet::new();
    for picker in picked {
        seen.extend(picker.seen);
        for batch in &picker.rows {
            writer.write(batch).await?;
        }
    }
    let files = writer.finish().await?;
    let gone = found.in_second().into_iter().filter(|key| !seen.contains(*key));
    let keys = look.encoder()?.key_columns(gone)?;
    let mut keys_writer = table.key_writer(context.budget)?;
    keys_writer.write(&key_batch(&look.columns, keys)?).await?;
    let gone = keys_writer.finish().await?;
    let position = table.position()?.map(|position| position.watermark).ok_or_else(|| {
        Error::new(ErrorKind::Config, "the lake table has no position").hint("run `frazil sync` first")
    })?;
    let change = Change {
        files,
        effect: Effect::Log(gone),
        from: Some(position.clone()),
        to: position,
        summary: BTreeMap::from([
            ("frazil.run".to_owned(), context.run.to_string()),
            ("frazil.stream".to_owned(), stream.name.clone()),
            ("frazil.change".to_owned(), "repair".to_owned()),
        ]),
    };
    table.commit(change, context.budget).await?;
    Ok(found.len())
}

/// Writes to the target what the lake has under the keys found. Returns how many keys that were.
pub(super) async fn target(
    context: &Context,
    stream: &Stream,
    table: &LakeTable,
    look: &Look,
    found: &Arc<Found>,
    progress: &Arc<Progress>,
) -> Result<u64> {
    let to = stream.target.as_ref().expect("a target was compared");
    if stream.settings.mode == Some(Mode::Scd2) {
        return Err(Error::new(ErrorKind::Unsupported, "versions of rows are not repaired one by one")
            .with("table", &to.table)
            .hint("load the stream into a new table"));
    }
    if table.key().is_empty() {
        return Err(Error::new(ErrorKind::Unsupported, "without a key single rows cannot be set right")
            .with("table", &to.table)
            .hint("delete the stream's row of `frazil_applied` in the target and run `frazil load`"));
    }
    let target = connectors::target(&to.connection)?;
    let applied = target.applied(&stream.name, &to.table).await?.ok_or_else(|| {
        Error::new(ErrorKind::Conflict, "the target is no longer loaded by this stream")
            .with("table", &to.table)
    })?;
    let only = look.only.as_ref();
    let shared = Side::shared(context, stream, table, only).await?;
    let (side, wanted, turn) = match shared {
        Some((side, shown)) => (side, shown.wanted, Some(shown.turn)),
        None => {
            let wanted = sync::target_table(stream, to, &table.columns(), &table.key());
            (Side::lake(context, table, applied.snapshot, only), wanted, None)
        }
    };
    let rows = side.open().await?;
    let columns = wanted.schema.clone();
    if rows.schema.fields().len() != columns.fields().len() {
        return Err(Error::new(
            ErrorKind::Schema,
            "the lake's columns have changed since the target was loaded",
        )
        .with("table", &to.table)
        .hint("run `frazil load` first"));
    }
    let picked = rows.drain(|| Picker::new(look, found), progress).await?;
    let changes = changes(&columns, look, found, picked)?;
    let rows = Some(changes.num_rows() as u64);
    let changes = MemoryStream::try_new(vec![changes.clone()], changes.schema(), None)?;
    let merge = Merge {
        turn,
        stream: stream.name.clone(),
        table: wanted,
        from: Some(applied),
        to: applied,
        strategy: Strategy::Merge,
        changes: Box::pin(changes),
        rows,
    };
    target.apply(merge).await?;
    Ok(found.len())
}

/// Keeps the rows whose keys were found.
pub(super) struct Picker {
    encoder: Encoder,
    found: Arc<Found>,
    seen: HashSet<Box<[u8]>>,
    pub(super) rows: Vec<RecordBatch>,
}

impl Picker {
    pub(super) fn new(look: &Look, found: &Arc<Found>) -> Result<Self> {
        let encoder = look.encoder()?;
        Ok(Self { encoder, found: found.clone(), seen: HashSet::new(), rows: Vec::new() })
    }
}

impl Picker {
    /// The keys of rows that were kept.
    pub(super) fn keys(&self, batch: &RecordBatch) -> Result<Rows> {
        self.encoder.keys(batch)
    }
}

impl Drain for Picker {
    fn take(&mut self, batch: &RecordBatch) -> Result<()> {
        let keys = self.encoder.keys(batch)?;
        let wanted: BooleanArray =
            keys.iter().map(|key| Some(self.found.kind(key.data()).is_some())).collect();
        if wanted.true_count() == 0 {
            return Ok(());
        }
        let found = keys.iter().filter(|key| self.found.kind(key.data()).is_some());
        self.seen.extend(found.map(|key| key.data().into()));
        self.rows.push(filter_record_batch(batch, &wanted)?);
        Ok(())
    }
}

fn key_batch(columns: &Columns, keys: Vec<ArrayRef>) -> Result<RecordBatch> {
    let fields = columns.key_names().into_iter().zip(&keys);
    let fields: Vec<_> =
        fields.map(|(name, array)| Field::new(name, array.data_type().clone(), true)).collect();
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), keys)?)
}

/// What a target is to do, sorted by key: the lake's rows, and the keys that only the target has.
fn changes(columns: &SchemaRef, look: &Look, found: &Found, picked: Vec<Picker>) -> Result<RecordBatch> {
    let mut fields: Vec<_> =
        columns.fields().iter().map(|field| field.as_ref().clone().with_nullable(true)).collect();
    fields.push(Field::new(OP_COLUMN, DataType::Int8, false));
    let schema = Arc::new(Schema::new(fields));
    let of = |mut values: Vec<ArrayRef>, op: Op, rows: usize| {
        values.push(Arc::new(Int8Array::from_value(op as i8, rows)));
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(schema.clone(), values, &options)
    };
    let mut parts = Vec::new();
    for batch in picked.iter().flat_map(|picker| &picker.rows) {
        parts.push(of(batch.columns().to_vec(), Op::Upsert, batch.num_rows())?);
    }
    let encoder = look.encoder()?;
    // A load may have brought some of them meanwhile.
    let there = |key: &&[u8]| picked.iter().any(|picker| picker.seen.contains(*key));
    let gone: Vec<_> = found.of(Kind::Surplus).into_iter().filter(|key| !there(key)).collect();
    let keys = encoder.key_columns(gone.iter().copied())?;
    let names = look.columns.key_names();
    let values =
        columns.fields().iter().map(|field| match names.iter().position(|name| name == field.name()) {
            Some(at) => arrow::compute::cast(&keys[at], field.data_type()),
            None => Ok(new_null_array(field.data_type(), gone.len())),
        });
    parts.push(of(values.collect::<Result<_, _>>()?, Op::Delete, gone.len())?);
    let all = concat_batches(&schema, &parts)?;
    let keys = encoder.keys(&all)?;
    let mut order: Vec<u32> = (0..all.num_rows() as u32).collect();
    order.sort_by(|a, b| keys.row(*a as usize).cmp(&keys.row(*b as usize)));
    Ok(take_record_batch(&all, &UInt32Array::from(order))?)
}
