//! The first half of a pass: what changed in the source becomes a snapshot.
//!
//! ```text
//! position ─▶ open ─▶ portion ─┬─ stream ─▶ writer ─┐
//!    ▲                         └─ stream ─▶ writer ─┴─▶ commit(files, resume) ─▶ acknowledge
//!    └────────────────────── kept in the lake ◀──────────────┘
//! ```
//!
//! Each stream has a task and a writer of its own, from the socket to the encoded file: no batch
//! changes hands. A portion is committed together with the position that covers it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use futures::StreamExt;
use tokio::task::JoinSet;

use super::contract::{Gate, LeftOut};
use super::gone_keys::GoneKeys;
use super::stamp::{Stamp, lake_schema};
use super::tally::{Tally, Written};
use super::{Context, ExtractReport, Mode, Progress, Stream, audit, evolve};
use crate::connectors;
use crate::delta::Watermark;
use crate::error::{Error, ErrorKind, Result};
use crate::faults;
use crate::lake::{Change, Comparison, Effect, LakeTable, TableMode, TableSpec, WrittenFile};
use crate::memory::Budget;
use crate::source::{ChangeDetection, Extent, Portion, ReadPlan, ReadRequest, Reading, RowStream, Source};
use crate::table::TableDescription;

/// How many readings one pass may take: the change, or an interrupted first read and the change since.
const READINGS: usize = 2;

/// For a change of fewer rows nothing is read ahead: they are there before it would be.
const ROWS_AHEAD: u64 = 1_000;

/// Reads one bounded change of a stream's source table and commits it.
pub async fn extract(context: &Context, stream: &Stream, progress: &Arc<Progress>) -> Result<ExtractReport> {
    let started = Instant::now();
    let source = connectors::source(&stream.source)?;
    let (description, existing) =
        futures::try_join!(source.table(&stream.source_table), context.lake.table(&stream.lake_table))?;
    let mut existing = Some(existing);
    let mut report: Option<ExtractReport> = None;
    for _ in 0..READINGS {
        let existing = match existing.take() {
            Some(existing) => existing,
            None => context.lake.table(&stream.lake_table).await?,
        };
        let mut pass = Pass::open(context, stream, source.as_ref(), &description, existing).await?;
        let resumed = pass.resumed();
        let part = pass.run(progress).await.map_err(|error| error.with("stream", &stream.name))?;
        report = Some(match report {
            None => part,
            Some(before) => before.followed_by(part),
        });
        // Rows that moved while an interrupted first read stood still are in neither half of it. They
        // have changed since its watermark, so one more reading finds them.
        if !resumed {
            break;
        }
    }
    let mut report = report.expect("at least one reading");
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

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
        from: None,
        parallel: budget.parallel(),
        batch_rows: BATCH_ROWS,
        batch_bytes: budget.batch_bytes(),
        portion_bytes: settings.portion_bytes,
    })
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

/// One reading and where it goes.
struct Pass<'a> {
    context: &'a Context,
    stream: &'a Stream,
    source: &'a dyn Source,
    table: LakeTable,
    reading: Box<dyn Reading>,
    plan: ReadPlan,
    mode: TableMode,
    key_enforced: bool,
    position: Option<Watermark>,
    unfinished: bool,
    notes: Vec<String>,
    /// The table's columns, partitions or order have changed.
    evolved: bool,
    /// What the contract lets in, where that is not everything.
    gate: Option<Gate>,
    left_out: LeftOut,
}

impl<'a> Pass<'a> {
    async fn open(
        context: &'a Context,
        stream: &'a Stream,
        source: &'a dyn Source,
        description: &TableDescription,
        existing: Option<LakeTable>,
    ) -> Result<Self> {
        let mut request = read_request(stream, description, context.budget)?;
        let position = existing.as_ref().map(LakeTable::position).transpose()?.flatten();
        // A first read that is under way reads everything anyhow.
        let anew = context.full_refresh && position.as_ref().is_none_or(|position| !position.unfinished);
        request.from = position.as_ref().filter(|_| !anew).map(|position| position.watermark.clone());

        let key = request.key.clone();
        let reading = source.open(request).await?;
        let plan = reading.plan().clone();
        let spec = lake_table_plan(stream, description, &plan)?;
        let mode = spec.mode;
        let mut notes = Vec::new();
        let (mut gate, mut evolved) = (None, false);
        let table = match existing {
            None => context.lake.create(spec).await?,
            Some(mut table) => {
                evolve::expect_same_mode(&table, &spec)?;
                if let Some(version) = spec.format_version {
                    notes.extend(table.raise_format(version).await?);
                }
                let evolution = evolve::follow(stream, &mut table, &spec).await?;
                gate = Gate::new(&spec.schema, &evolution, stream.settings.schema);
                evolved = !evolution.is_nothing();
                notes.extend(evolution.steps);
                table
            }
        };
        faults::point(faults::AFTER_EVOLUTION)?;
        Ok(Self {
            context,
            stream,
            source,
            table,
            reading,
            plan,
            mode,
            key_enforced: description.keys.iter().any(|unique| same_columns(&unique.columns, &key)),
            unfinished: position.as_ref().is_some_and(|position| position.unfinished),
            position: position.map(|position| position.watermark),
            notes,
            evolved,
            gate,
            left_out: LeftOut::default(),
        })
    }

    /// Whether this reading goes on with a first read that was interrupted.
    fn resumed(&self) -> bool {
        self.unfinished && self.plan.continues
    }

    async fn run(&mut self, progress: &Arc<Progress>) -> Result<ExtractReport> {
        let started = Instant::now();
        progress.start(self.plan.rows);
        self.check_extent()?;
        if self.unfinished && !self.plan.continues {
            self.table.abandon_first_read().await?;
            self.position = None;
            self.unfinished = false;
        }
        let mut tally = Tally::default();
        let mut held = Written::default();
        let mut ahead = JoinSet::new();
        let many = self.plan.rows.is_some_and(|rows| rows >= ROWS_AHEAD);
        if self.mode == TableMode::Merge && self.plan.extent != Extent::Whole && many {
            let table = self.table.clone();
            ahead.spawn(async move { table.look_ahead().await });
        }
        // A table that is read again whole: what it has already is not written again.
        let again = self.plan.extent == Extent::Whole && self.table.current().is_some() && !self.resumed();
        let mut comparison = if again { Some(self.table.compare(self.context.budget).await?) } else { None };
        while let Some(portion) = self.reading.next().await? {
            let Portion { streams, resume, complete } = portion;
            held.add(self.write(streams, comparison.as_ref(), progress).await?);
            if !held.files.is_empty() {
                ahead.join_all().await;
                ahead = JoinSet::new();
            }
            if let Some(comparison) = comparison.take_if(|_| complete) {
                let (files, effect) = comparison.finish(std::mem::take(&mut held).files).await?;
                self.commit(files, effect, resume, &mut tally).await?;
            } else if let Some(effect) = self.effect(complete) {
                let Written { files, gone } = std::mem::take(&mut held);
                let effect = if let Effect::Log(_) = effect { Effect::Log(gone) } else { effect };
                self.commit(files, effect, resume, &mut tally).await?;
            }
            if !complete && progress.stop.load(Ordering::Relaxed) {
                return Err(Error::new(ErrorKind::Transient, "stopped between two portions, as asked")
                    .hint("run it again: what is committed stays, the rest is read then"));
            }
        }
        if !held.files.is_empty() {
            return Err(Error::new(ErrorKind::Internal, "a reading ended without being complete")
                .with("table", &self.stream.source_table));
        }
        // Only now does the reading know how many values it had to replace.
        let mut notes = self.reading.plan().notes.clone();
        notes.append(&mut self.notes);
        notes.extend(self.left_out.note(self.stream.settings.schema));
        Ok(ExtractReport {
            change: self.plan.change,
            extent: self.plan.extent,
            rows: tally.rows,
            updated: tally.changed.updated,
            deleted: tally.changed.deleted,
            file_bytes: tally.bytes,
            snapshot: self.table.current(),
            changed: tally.commits > 0 || self.evolved,
            commits: self.table.commits_since_maintenance(),
            left_out: std::mem::take(&mut self.left_out),
            notes,
            seconds: started.elapsed().as_secs_f64(),
        })
    }

    /// An append table cannot take a whole table twice.
    fn check_extent(&self) -> Result<()> {
        if self.mode != TableMode::Merge && self.plan.extent == Extent::Log {
            return Err(Error::new(ErrorKind::Config, "changes with deletes need `mode: merge`")
                .with("table", self.table.id()));
        }
        if self.mode == TableMode::Append
            && self.plan.extent == Extent::Whole
            && self.table.current().is_some()
            && !self.resumed()
        {
            return Err(Error::new(
                ErrorKind::Config,
                "the stored position cannot be used, and reading everything again would double the rows of an append table",
            )
            .with("table", self.table.id())
            .hint("restore the cursor column the table was filled by, or write to a new `lake_table`"));
        }
        Ok(())
    }

    /// What a portion's files do to the lake; `None`: keep them until the reading is complete.
    fn effect(&self, complete: bool) -> Option<Effect> {
        let first_read = self.table.current().is_none();
        match self.plan.extent {
            Extent::Whole if first_read && self.plan.resumable => {
                let overlaps = self.resumed() || (self.mode == TableMode::Merge && !self.key_enforced);
                Some(match (complete, self.unfinished) {
                    (false, _) => Effect::FirstReadPart { overlaps },
                    (true, true) => Effect::FirstReadEnd { overlaps },
                    (true, false) if overlaps => Effect::Upsert,
                    (true, false) => Effect::Append,
                })
            }
            _ if !complete && self.plan.extent == Extent::Whole => None,
            Extent::Whole if first_read && self.mode == TableMode::Merge && !self.key_enforced => {
                Some(Effect::Upsert)
            }
            Extent::Whole if first_read => Some(Effect::Append),
            // Read again whole: the comparison says what it does.
            Extent::Whole => None,
            Extent::Changed if self.mode == TableMode::Merge => Some(Effect::Upsert),
            Extent::Changed => Some(Effect::Append),
            Extent::Log => Some(Effect::Log(Vec::new())),
        }
    }

    /// Drains a portion's streams into files, each stream in a task with a writer of its own.
    async fn write(
        &mut self,
        streams: Vec<RowStream>,
        comparison: Option<&Comparison>,
        progress: &Arc<Progress>,
    ) -> Result<Written> {
        let mut tasks = JoinSet::new();
        let stamp = (self.mode == TableMode::Append).then(|| Stamp::new(&self.table));
        for (place, mut rows) in streams.into_iter().enumerate() {
            let mut writer = self.table.writer(self.context.budget)?;
            if self.mode == TableMode::Merge && !self.key_enforced {
                // Of two rows with one key the last counts, so that they must stay as they come.
                writer = writer.unsorted();
            }
            let is_log = self.plan.extent == Extent::Log;
            let mut gone = is_log.then(|| GoneKeys::new(&self.table, self.context.budget)).transpose()?;
            let mut sieve = comparison.map(Comparison::sieve);
            let (progress, stamp, gate) = (progress.clone(), stamp.clone(), self.gate.clone());
            tasks.spawn(async move {
                let mut left_out = LeftOut::default();
                while let Some(batch) = rows.next().await {
                    let mut batch = batch?;
                    progress.add(batch.num_rows() as u64, batch.get_array_memory_size() as u64);
                    if let Some(gone) = &mut gone {
                        batch = gone.take(&batch).await?;
                    }
                    if let Some(gate) = &gate {
                        batch = gate.pass(&batch, &mut left_out)?;
                    }
                    let batch = match (&stamp, &mut sieve) {
                        (Some(stamp), _) => stamp.put_on(batch)?,
                        (None, Some(sieve)) => sieve.sift(batch)?,
                        (None, None) => batch,
                    };
                    writer.write(&batch).await?;
                }
                let gone = match gone {
                    Some(gone) => gone.finish().await?,
                    None => Vec::new(),
                };
                let files = writer.finish().await?;
                sieve.map_or(Ok(()), |sieve| sieve.finish(&files))?;
                Ok::<_, Error>((place, Written { files, gone }, left_out))
            });
        }
        let mut written = BTreeMap::new();
        while let Some(done) = tasks.join_next().await {
            // Returning drops the set, which stops the other streams.
            let (place, files, left_out) =
                done.map_err(|source| Error::new(ErrorKind::Internal, "a reader stopped").because(source))??;
            written.insert(place, files);
            self.left_out.add(&left_out);
        }
        let mut all = Written::default();
        written.into_values().for_each(|written| all.add(written));
        Ok(all)
    }

    async fn commit(
        &mut self,
        files: Vec<WrittenFile>,
        effect: Effect,
        resume: Watermark,
        tally: &mut Tally,
    ) -> Result<()> {
        // Nothing changed: the old position covers the same rows, so that idle passes leave no trace.
        if files.is_empty()
            && self.plan.extent == Extent::Changed
            && matches!(effect, Effect::Upsert | Effect::Append)
        {
            return Ok(());
        }
        let unfinished = matches!(effect, Effect::FirstReadPart { .. });
        let before = self.table.current();
        let mut part = Tally::of(&files);
        let change = Change {
            files,
            effect,
            from: self.position.take(),
            to: resume.clone(),
            summary: BTreeMap::from([
                ("frazil.run".to_owned(), self.context.run.to_string()),
                ("frazil.stream".to_owned(), self.stream.name.clone()),
                ("frazil.change".to_owned(), self.plan.change.name().to_owned()),
            ]),
        };
        if self.stream.settings.audit.is_some() && !unfinished {
            self.commit_audited(change).await?;
        } else {
            self.table.commit(change, self.context.budget).await?;
        }
        if self.table.current() == before && !unfinished {
            // A whole read that found all as it was: nobody needs to hear of it.
            self.position = Some(resume);
            return Ok(());
        }
        if !unfinished {
            part.changed = self.table.row_counts();
        }
        tally.add(part);
        self.unfinished = unfinished;
        self.position = Some(resume.clone());
        faults::point(faults::BEFORE_ACKNOWLEDGE)?;
        self.source.acknowledge(&self.stream.source_table, &resume).await
    }

    /// Commits where nobody looks, and shows it if it passes.
    async fn commit_audited(&mut self, change: Change) -> Result<()> {
        let before = self.table.current();
        let audited = self.table.commit_aside(change, self.context.budget).await?;
        if Some(audited) == before {
            return Ok(());
        }
        let findings = audit::findings(self.context, self.stream, self.source, &self.table, audited).await?;
        faults::point(faults::BEFORE_PUBLISH)?;
        if findings.is_empty() {
            return self.table.publish(audited).await;
        }
        let tag = self.table.hold(audited, &findings).await?;
        Err(Error::new(ErrorKind::Data, format!("the audit found: {}", findings.join("; ")))
            .with("table", self.table.id())
            .hint(format!(
                "nothing of it is shown; look at it with `frazil query … --as-of {tag}`, correct the source or the check, and run again"
            )))
    }
}

pub(super) fn same_columns(a: &[String], b: &[String]) -> bool {
    a.len() == b.len() && a.iter().all(|column| b.contains(column))
}
