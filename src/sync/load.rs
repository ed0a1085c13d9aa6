//! The second half of a pass: what changed between two snapshots becomes rows of a target.
//!
//! ```text
//! applied (in the target) ─┐
//!                          ├─▶ delta ─▶ collapse ─▶ apply(rows, snapshot id) ─▶ applied'
//! current (in the lake) ───┘
//! ```

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Instant;

use arrow::array::{Int8Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use chrono::Utc;
use datafusion::execution::{RecordBatchStream, SendableRecordBatchStream};

use super::conflicts::{Watch, with_keys};
use super::letters::LoadLetters;
use super::{Context, LoadReport, Mode, OnReject, Progress, Stream, TargetRef, batches, trouble};
use crate::connectors;
use crate::delta::{Op, SnapshotId};
use crate::error::{Error, ErrorKind, Result};
use crate::lake::{DeltaExtent, LakeTable, TableMode};
use crate::merge;
use crate::table::OP_COLUMN;
use crate::target::{Applied, Deletes, Merge, MergeStats, Strategy, TargetTable};

/// Brings a stream's target table to the lake's current snapshot.
pub async fn load(context: &Context, stream: &Stream, progress: &Arc<Progress>) -> Result<LoadReport> {
    let started = Instant::now();
    let Some(to) = &stream.target else {
        return Err(Error::new(ErrorKind::Config, "the stream has no target")
            .with("stream", &stream.name)
            .hint("set `target: connection.schema` for the stream or under `defaults`"));
    };
    let Some(mut table) = context.lake.table(&stream.lake_table).await? else {
        return Err(Error::new(ErrorKind::Config, "the lake has no such table yet")
            .with("table", &stream.lake_table)
            .hint("run `frazil sync` first, or `frazil run`, which does both"));
    };
    let mut report = LoadReport {
        from: None,
        to: None,
        staged: 0,
        upserted: 0,
        deleted: 0,
        rejected: 0,
        conflicts: 0,
        seconds: 0.0,
    };
    let Some(snapshot) = table.current() else {
        return Ok(report);
    };
    let target = connectors::target(&to.connection)?;
    let goal = Applied::new(table.uuid(), snapshot);
    let applied = target.applied(&stream.name, &to.table).await?;
    if applied.is_none() && !context.full_refresh {
        trouble::refuse_doubling(stream, to, &table).await?;
    }
    report.from = applied.map(|applied| applied.snapshot);
    report.to = Some(snapshot);
    let shown = applied == Some(goal) && !context.full_refresh;
    if shown && !table.evolved_since(snapshot) {
        note(&mut table, to, snapshot).await;
        return Ok(report);
    }

    let wanted = target_table(stream, to, &table.columns(), &table.key());
    target.prepare(&wanted).await?;
    if shown {
        return Ok(report);
    }
    let applied = match Box::pin(finish(context, stream, &table, &wanted, applied, progress)).await? {
        Some((stats, applied)) => {
            report.add(&stats);
            Some(applied)
        }
        None => applied,
    };
    // Loading a snapshot once more takes a mark, or nobody could tell whether it was committed.
    let next = if applied == Some(goal) { goal.toward(snapshot) } else { goal };
    let watch = Watch::of_load(context, stream, &table, applied, next)?;
    let merge = change(context, stream, &table, wanted.clone(), applied, next, progress).await?;
    let mut letters = LoadLetters::of_load(context, stream, &table, &merge);
    if let Some(letters) = &mut letters {
        letters.look(context, stream).await?;
    }
    let merge = letters.iter().fold(merge, |merge, letters| letters.watch(merge));
    let mut outcome = match &watch {
        Some(watch) => target.apply_beside(merge, watch.clone()).await,
        None => batches::apply(&*target, merge, stream.settings.batch_rows).await,
    };
    if let (Some(letters), Err(error)) = (&letters, &outcome)
        && error.kind() == ErrorKind::Data
    {
        tracing::debug!(stream = %stream.name, %error, "the target refuses a row: loading again, without it");
        // A change in several transactions may have come half the way.
        let applied = target.applied(&stream.name, &to.table).await?;
        let merge = change(context, stream, &table, wanted.clone(), applied, next, progress).await?;
        outcome = match letters.apply(&*target, letters.watch(merge)).await {
            Err(unable) if unable.kind() == ErrorKind::Unsupported => {
                outcome.map_err(|error| error.with("on_reject", unable))
            }
            applied => applied,
        };
    }
    let stats = outcome.map_err(|error| error.with("stream", &stream.name))?;
    if next != goal {
        batches::arrive(&*target, &stream.name, wanted, next, goal).await?;
    }
    if let Some(watch) = &watch {
        report.conflicts = watch.committed().await;
    }
    if let Some(letters) = &letters {
        report.rejected = letters.committed().await?;
    }
    report.add(&stats);
    report.seconds = started.elapsed().as_secs_f64();
    note(&mut table, to, snapshot).await;
    Ok(report)
}

/// Ends a change that came in by several transactions and did not get to its end. Of a later snapshot the
/// change would not have all of it: a row that came with the first and is gone in the second is in neither.
async fn finish(
    context: &Context,
    stream: &Stream,
    table: &LakeTable,
    wanted: &TargetTable,
    applied: Option<Applied>,
    progress: &Arc<Progress>,
) -> Result<Option<(MergeStats, Applied)>> {
    let (Some(shows), Some(to)) = (applied, &stream.target) else { return Ok(None) };
    let (Some(halfway), Some(current)) = (shows.halfway, table.current()) else { return Ok(None) };
    // What is refused on the way takes another way, and so does what others may have changed: all anew.
    let plain = stream.settings.on_reject == OnReject::Stop && stream.settings.conflicts.are_blind();
    let there = shows.lake_table == table.uuid() && table.is_ancestor(halfway.toward, current);
    if halfway.toward == current || !plain || !there || context.full_refresh {
        return Ok(None);
    }
    let goal = Applied::new(table.uuid(), halfway.toward);
    let merge = change(context, stream, table, wanted.clone(), applied, goal, progress).await?;
    let target = connectors::target(&to.connection)?;
    let stats = batches::apply(&*target, merge, stream.settings.batch_rows).await;
    Ok(Some((stats.map_err(|error| error.with("stream", &stream.name))?, goal)))
}

/// Tells the lake what the target shows, so that nothing expires that it has yet to read. The target's
/// own record is what counts; a note that is not written protects more than it has to.
async fn note(table: &mut LakeTable, target: &TargetRef, shows: SnapshotId) {
    let name = format!("{}/{}", target.connection.name(), target.table);
    if let Err(error) = table.note_target(&name, shows, Utc::now()).await {
        tracing::debug!(%error, "the lake table was not told what the target shows");
    }
}

/// The target table as a stream wants it, for lake rows of this schema and key.
pub fn target_table(stream: &Stream, target: &TargetRef, schema: &SchemaRef, key: &[String]) -> TargetTable {
    let versions = stream.settings.mode == Some(Mode::Scd2);
    let deletes = match stream.settings.deletes {
        // A version that ended is a mark already.
        Deletes::Soft if versions => Deletes::Hard,
        deletes => deletes,
    };
    TargetTable { id: target.table.clone(), schema: schema.clone(), key: key.to_vec(), deletes, versions }
}

/// What has to happen to the target, as a stream of changes that is read while it is applied.
async fn change(
    context: &Context,
    stream: &Stream,
    table: &LakeTable,
    wanted: TargetTable,
    applied: Option<Applied>,
    goal: Applied,
    progress: &Arc<Progress>,
) -> Result<Merge> {
    let replaced = table.mode() == TableMode::Replace || context.full_refresh;
    // A lake table that was dropped and made anew shares no history with what the target shows.
    let another = applied.is_some_and(|applied| applied.lake_table != goal.lake_table);
    // Rows of a snapshot that was left again, or passed by: no delta to this one has them all. A mark toward
    // what the target shows is of a change that took place whole.
    let astray = applied.is_some_and(|shows| {
        let on_the_way = shows.halfway.filter(|halfway| halfway.toward != shows.snapshot);
        on_the_way.is_some_and(|halfway| halfway.toward != goal.snapshot)
    });
    let replaced = replaced || another || astray;
    let beside = !stream.settings.conflicts.are_blind();
    if beside && (another || astray) && !context.full_refresh {
        return Err(Error::new(ErrorKind::Config, "what others changed in the target cannot be told any more")
            .with("stream", &stream.name)
            .hint("it shows another state than the lake ever had: `frazil load --full-refresh` makes it as the lake is, and what others changed is gone"));
    }
    let from = applied.filter(|_| !replaced).map(|applied| applied.snapshot);
    let strategy = match table.mode() {
        TableMode::Merge if wanted.versions => {
            let snapshots = table.snapshots();
            let goal = snapshots.iter().find(|snapshot| snapshot.id == goal.snapshot);
            let at = goal.map(|snapshot| snapshot.committed_at);
            let at = at.ok_or_else(|| Error::new(ErrorKind::Conflict, "the snapshot is gone already"))?;
            Strategy::Versions { at, whole: replaced }
        }
        _ if replaced => Strategy::Replace,
        TableMode::Append => Strategy::Append,
        _ => Strategy::Merge,
    };
    let beside = beside && strategy == Strategy::Merge;
    let delta = match beside {
        true => table.delta_with_base(from, goal.snapshot).await?,
        false => table.delta_as_now(from, goal.snapshot).await?,
    };
    let expected = delta.added + if delta.extent == DeltaExtent::Whole { 0 } else { delta.removed };
    progress.start(Some(expected));
    let runtime = merge::runtime(context.budget, context.lake.stores())?;
    let changes = match beside {
        true => with_keys(merge::collapse_with_base(&delta, &wanted.key, runtime).await?, &wanted.key),
        false => merge::collapse(&delta, &wanted.key, runtime).await?,
    };
    Ok(Merge {
        stream: stream.name.clone(),
        table: wanted,
        from: applied,
        to: goal,
        strategy,
        changes: Box::pin(Changes::new(changes, !delta.with_ops, progress.clone())),
        rows: Some(expected),
    })
}

/// Counts what passes through, and says of an append table's rows that each is to be inserted: their own
/// `_op` column is history, not an order.
struct Changes {
    inner: SendableRecordBatchStream,
    schema: SchemaRef,
    insert_all: bool,
    progress: Arc<Progress>,
}

impl Changes {
    fn new(inner: SendableRecordBatchStream, insert_all: bool, progress: Arc<Progress>) -> Self {
        let mut fields: Vec<_> = inner.schema().fields().iter().cloned().collect();
        if insert_all {
            fields.push(Arc::new(Field::new(OP_COLUMN, DataType::Int8, false)));
        }
        Self { inner, schema: Arc::new(Schema::new(fields)), insert_all, progress }
    }

    fn pass(&self, batch: RecordBatch) -> datafusion::error::Result<RecordBatch> {
        self.progress.add(batch.num_rows() as u64, batch.get_array_memory_size() as u64);
        if !self.insert_all {
            return Ok(batch);
        }
        let mut columns = batch.columns().to_vec();
        columns.push(Arc::new(Int8Array::from_value(Op::Upsert as i8, batch.num_rows())));
        Ok(RecordBatch::try_new(self.schema.clone(), columns)?)
    }
}

impl futures::Stream for Changes {
    type Item = datafusion::error::Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<Option<Self::Item>> {
        let polled = std::task::ready!(self.inner.as_mut().poll_next(context));
        Poll::Ready(polled.map(|batch| batch.and_then(|batch| self.pass(batch))))
    }
}

impl RecordBatchStream for Changes {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }
}
