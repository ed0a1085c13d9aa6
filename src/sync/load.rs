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
use std::time::{Duration, Instant};

use arrow::array::{Int8Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use chrono::Utc;
use datafusion::execution::{RecordBatchStream, SendableRecordBatchStream};

use super::conflicts::{Watch, with_keys};
use super::letters::LoadLetters;
use super::shared::{self, SharedLoad};
use super::{Context, LoadReport, Mode, OnReject, Progress, Stream, TargetRef, batches, trouble};
use crate::connectors;
use crate::delta::{Op, SnapshotId};
use crate::error::{Error, ErrorKind, Result};
use crate::lake::{DeltaExtent, Lake, LakeTable, TableMode};
use crate::merge;
use crate::table::OP_COLUMN;
use crate::target::{Applied, Deletes, Merge, MergeStats, Strategy, Target, TargetTable};

/// Those who share a table may get ahead of us, each of them once, and more loads may follow.
const TURNS: u32 = 20;
/// How much longer each time to wait for them: ten seconds in all.
const TURN_PAUSE: Duration = Duration::from_millis(50);

/// Brings a stream's target table to the lake's current snapshot.
pub async fn load(context: &Context, stream: &Stream, progress: &Arc<Progress>) -> Result<LoadReport> {
    let mut overtaken = 0;
    loop {
        match Box::pin(load_once(context, stream, progress)).await {
            Err(error) if error.kind() == ErrorKind::Conflict && stream.shared.is_some() => {
                overtaken += 1;
                if overtaken == TURNS {
                    return Err(error);
                }
                tracing::debug!(stream = %stream.name, %error, "another source was faster: loading again");
                tokio::time::sleep(TURN_PAUSE * overtaken).await;
            }
            outcome => return outcome,
        }
    }
}

async fn load_once(context: &Context, stream: &Stream, progress: &Arc<Progress>) -> Result<LoadReport> {
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
    let mut report = LoadReport::default();
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
    let shared = match &stream.shared {
        Some(shared) => Some(SharedLoad::of(context, stream, shared, &table, &*target, to).await?),
        None => None,
    };
    let shown =
        applied == Some(goal) && !context.full_refresh && !shared.as_ref().is_some_and(|all| all.whole);
    if shown && !table.evolved_since(snapshot) {
        note(&mut table, to, snapshot).await;
        return Ok(report);
    }

    let wanted = match &shared {
        Some(shared) => shared.wanted.clone(),
        None => target_table(stream, to, &table.columns(), &table.key()),
    };
    target.prepare(&wanted).await?;
    if shown {
        return Ok(report);
    }
    let load = Load { context, stream, table: &table, wanted, target: &*target, progress };
    let applied = match Box::pin(load.finish(applied)).await? {
        Some((stats, applied)) => {
            report.add(&stats);
            Some(applied)
        }
        None => applied,
    };
    load.bring(shared, applied, goal, &mut report).await?;
    report.seconds = started.elapsed().as_secs_f64();
    note(&mut table, to, snapshot).await;
    Ok(report)
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

/// The same for whoever may share the table with others.
pub async fn wanted_table(
    lake: &Lake,
    stream: &Stream,
    target: &TargetRef,
    schema: &SchemaRef,
    key: &[String],
) -> Result<TargetTable> {
    match &stream.shared {
        Some(shared) => Ok(shared::target_table(lake, stream, shared, target, (schema, key)).await?.0),
        None => Ok(target_table(stream, target, schema, key)),
    }
}

/// What a load is about.
struct Load<'a> {
    context: &'a Context,
    stream: &'a Stream,
    table: &'a LakeTable,
    wanted: TargetTable,
    target: &'a dyn Target,
    progress: &'a Arc<Progress>,
}

impl Load<'_> {
    /// Ends a change that came in by several transactions and did not get to its end. Of a later snapshot the
    /// change would not have all of it: a row that came with the first and is gone in the second is in neither.
    async fn finish(&self, applied: Option<Applied>) -> Result<Option<(MergeStats, Applied)>> {
        let Some(shows) = applied else { return Ok(None) };
        let (Some(halfway), Some(current)) = (shows.halfway, self.table.current()) else { return Ok(None) };
        if self.stream.shared.is_some() {
            return Ok(None);
        }
        // What is refused on the way takes another way, and so does what others may have changed: all anew.
        let plain =
            self.stream.settings.on_reject == OnReject::Stop && self.stream.settings.conflicts.are_blind();
        let there = shows.lake_table == self.table.uuid() && self.table.is_ancestor(halfway.toward, current);
        if halfway.toward == current || !plain || !there || self.context.full_refresh {
            return Ok(None);
        }
        let goal = Applied::new(self.table.uuid(), halfway.toward);
        let merge = self.change(applied, goal).await?;
        let stats = batches::apply(self.target, merge, self.stream.settings.batch_rows).await;
        Ok(Some((stats.map_err(|error| error.with("stream", &self.stream.name))?, goal)))
    }

    /// Brings the target from what it shows to the goal.
    async fn bring(
        &self,
        shared: Option<SharedLoad<'_>>,
        applied: Option<Applied>,
        goal: Applied,
        report: &mut LoadReport,
    ) -> Result<()> {
        // Loading a snapshot once more takes a mark, or nobody could tell whether it was committed.
        let next = if applied == Some(goal) { goal.toward(goal.snapshot) } else { goal };
        let watch = Watch::of_load(self.context, self.stream, self.table, applied, next)?;
        let merge = match shared {
            Some(shared) => shared.change(applied, next, self.progress).await?,
            None => self.change(applied, next).await?,
        };
        let mut letters = LoadLetters::of_load(self.context, self.stream, self.table, &merge);
        if let Some(letters) = &mut letters {
            letters.look(self.context, self.stream).await?;
        }
        let merge = letters.iter().fold(merge, |merge, letters| letters.watch(merge));
        let mut outcome = match &watch {
            Some(watch) => self.target.apply_beside(merge, watch.clone()).await,
            None => batches::apply(self.target, merge, self.stream.settings.batch_rows).await,
        };
        if let (Some(letters), Err(error)) = (&letters, &outcome)
            && error.kind() == ErrorKind::Data
        {
            tracing::debug!(stream = %self.stream.name, %error, "the target refuses a row: loading again, without it");
            // A change in several transactions may have come half the way.
            let applied = self.target.applied(&self.stream.name, &self.wanted.id).await?;
            let merge = self.change(applied, next).await?;
            outcome = match letters.apply(self.target, letters.watch(merge)).await {
                Err(unable) if unable.kind() == ErrorKind::Unsupported => {
                    outcome.map_err(|error| error.with("on_reject", unable))
                }
                applied => applied,
            };
        }
        report.add(&outcome.map_err(|error| error.with("stream", &self.stream.name))?);
        if next != goal {
            batches::arrive(self.target, &self.stream.name, self.wanted.clone(), next, goal).await?;
        }
        if let Some(watch) = &watch {
            report.conflicts = watch.committed().await;
        }
        if let Some(letters) = &letters {
            report.rejected = letters.committed().await?;
        }
        Ok(())
    }

    /// What has to happen to the target, as a stream of changes that is read while it is applied.
    async fn change(&self, applied: Option<Applied>, goal: Applied) -> Result<Merge> {
        let replaced = self.table.mode() == TableMode::Replace || self.context.full_refresh;
        // A lake table that was dropped and made anew shares no history with what the target shows.
        let another = applied.is_some_and(|applied| applied.lake_table != goal.lake_table);
        // Rows of a snapshot that was left again, or passed by: no delta to this one has them all. A mark toward
        // what the target shows is of a change that took place whole.
        let astray = applied.is_some_and(|shows| {
            let on_the_way = shows.halfway.filter(|halfway| halfway.toward != shows.snapshot);
            on_the_way.is_some_and(|halfway| halfway.toward != goal.snapshot)
        });
        let replaced = replaced || another || astray;
        let beside = !self.stream.settings.conflicts.are_blind();
        if beside && (another || astray) && !self.context.full_refresh {
            return Err(Error::new(ErrorKind::Config, "what others changed in the target cannot be told any more")
                .with("stream", &self.stream.name)
                .hint("it shows another state than the lake ever had: `frazil load --full-refresh` makes it as the lake is, and what others changed is gone"));
        }
        let from = applied.filter(|_| !replaced).map(|applied| applied.snapshot);
        let strategy = match self.table.mode() {
            TableMode::Merge if self.wanted.versions => {
                let snapshots = self.table.snapshots();
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
            true => self.table.delta_with_base(from, goal.snapshot).await?,
            false => self.table.delta_as_now(from, goal.snapshot).await?,
        };
        let expected = delta.added + if delta.extent == DeltaExtent::Whole { 0 } else { delta.removed };
        self.progress.start(Some(expected));
        let runtime = merge::runtime(self.context.budget, self.context.lake.stores())?;
        let changes = match beside {
            true => with_keys(
                merge::collapse_with_base(&delta, &self.wanted.key, runtime).await?,
                &self.wanted.key,
            ),
            false => merge::collapse(&delta, &self.wanted.key, runtime).await?,
        };
        Ok(Merge {
            turn: None,
            stream: self.stream.name.clone(),
            table: self.wanted.clone(),
            from: applied,
            to: goal,
            strategy,
            changes: Box::pin(Changes::new(changes, !delta.with_ops, self.progress.clone())),
            rows: Some(expected),
        })
    }
}

/// Counts what passes through, and says of an append table's rows that each is to be inserted: their own
/// `_op` column is history, not an order.
pub(super) struct Changes {
    inner: SendableRecordBatchStream,
    schema: SchemaRef,
    insert_all: bool,
    progress: Arc<Progress>,
}

impl Changes {
    pub(super) fn new(inner: SendableRecordBatchStream, insert_all: bool, progress: Arc<Progress>) -> Self {
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
