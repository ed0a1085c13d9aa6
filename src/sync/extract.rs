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

use super::contract::{Gate, LeftOut, Passed};
use super::gap::check_gap;
use super::gone_keys::GoneKeys;
use super::late;
use super::letters::Letters;
use super::request::{lake_table_plan, read_request, reader};
use super::stamp::Stamp;
use super::tally::{Tally, Written};
use super::{Context, ExtractReport, Progress, Stages, Stream, audit, evolve, unfit, unlogged};
use crate::connectors;
use crate::delta::Watermark;
use crate::error::{Error, ErrorKind, Result};
use crate::faults;
use crate::lake::{Change, Comparison, Effect, LakeTable, OUTBOX, TableMode, WrittenFile};
use crate::source::{
    BeyondHorizon, ChangeDetection, Extent, OnGap, Portion, ReadPlan, Reading, RowStream, Source,
};
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
    report.stages.plan = report.seconds - report.stages.read - report.stages.commit;
    Ok(report)
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
    /// Where rejected rows go, where any may be.
    letters: Option<Letters>,
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
        if position.as_ref().is_some_and(|position| position.unfinished) {
            // What ends an interrupted first read must hold rows that no horizon has passed, as any first
            // read does: they may be those that moved while it stood still.
            request.beyond_horizon = BeyondHorizon::Read;
        }

        request.reader = reader(&context.lake, stream);

        let key = request.key.clone();
        let stops_at_gap = request.from.is_some() && stream.settings.on_gap == OnGap::Fail;
        if stops_at_gap {
            // Asked before anything is opened: that may make things on the source.
            check_gap(stream, position.as_ref(), &source.plan(&request).await?)?;
        }
        let reading = source.open(request).await?;
        stops_at_gap.then(|| check_gap(stream, position.as_ref(), reading.plan())).transpose()?;
        let plan = reading.plan().clone();
        let spec = lake_table_plan(stream, description, &plan)?;
        let mode = spec.mode;
        let mut notes = Vec::new();
        let (mut gate, mut evolved) = (None, false);
        let mut table = match existing {
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
        let whole = plan.extent == Extent::Whole;
        let key_enforced = description.keys.iter().any(|unique| same_columns(&unique.columns, &key));
        table.order_by(late::order(&plan, mode, key_enforced, stream.settings.lag));
        let letters = Letters::open(context, stream, &table, gate.as_ref(), &key, whole).await?;
        Ok(Self {
            context,
            stream,
            source,
            table,
            reading,
            plan,
            mode,
            key_enforced,
            unfinished: position.as_ref().is_some_and(|position| position.unfinished),
            position: position.map(|position| position.watermark),
            notes,
            evolved,
            gate,
            left_out: LeftOut::default(),
            letters,
        })
    }

    /// Whether this reading goes on with a first read that was interrupted.
    fn resumed(&self) -> bool {
        self.unfinished && self.plan.continues
    }

    /// Whether the reading after this one, of what changed since an interrupted first read began, ends it.
    fn change_follows(&self) -> bool {
        use ChangeDetection::{Log, Timestamp, Trigger};
        self.resumed() && matches!(self.plan.change, Timestamp | Log | Trigger)
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
        let from = self.position.clone();
        let (mut read, mut unfit) = (0, 0);
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
            let Portion { streams, resume, complete, oldest } = portion;
            let commits = tally.commits;
            held.add(self.write(streams, comparison.as_ref(), progress).await?);
            read += std::mem::take(&mut held.read);
            unfit += std::mem::take(&mut held.unfit);
            if !held.files.is_empty() {
                ahead.join_all().await;
                ahead = JoinSet::new();
            }
            if let Some(comparison) = comparison.take_if(|_| complete) {
                let (files, effect) = comparison.finish(std::mem::take(&mut held).files).await?;
                self.commit(files, effect, resume, &mut tally).await?;
            } else if let Some(effect) = self.effect(complete) {
                let Written { files, gone, .. } = std::mem::take(&mut held);
                let effect = if let Effect::Log(_) = effect { Effect::Log(gone) } else { effect };
                self.commit(files, effect, resume, &mut tally).await?;
            }
            oldest.filter(|_| tally.commits > commits).into_iter().for_each(|oldest| tally.arrived(oldest));
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
        notes.extend(unfit::note(unfit));
        notes.extend(late::notes(&tally.late, &self.plan, self.stream.settings.lag));
        Ok(ExtractReport {
            from,
            to: self.position.take(),
            read,
            rows: tally.rows,
            updated: tally.changed.updated,
            deleted: tally.changed.deleted,
            file_bytes: tally.bytes,
            snapshot: self.table.current(),
            changed: tally.commits > 0 || self.evolved,
            reached: self.reading.reached(),
            again: self.reading.again(),
            commits: self.table.commits_since_maintenance(),
            rejected: self.left_out.rows + unfit,
            late: tally.late,
            oldest: tally.oldest,
            latency_seconds: tally.latency,
            left_out: std::mem::take(&mut self.left_out),
            notes,
            stages: Stages {
                commit: tally.seconds,
                read: started.elapsed().as_secs_f64() - tally.seconds,
                ..Stages::default()
            },
            ..ExtractReport::new(self.plan.change, self.plan.extent)
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
                    // Rows that moved are in neither half: the change since then shows it.
                    (true, true) if self.change_follows() => Effect::FirstReadPart { overlaps },
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
            Extent::Changed if self.unfinished && complete => Some(Effect::FirstReadEnd { overlaps: true }),
            Extent::Changed if self.unfinished => Some(Effect::FirstReadPart { overlaps: true }),
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
            if is_log {
                let (table, schema) = (self.table.clone(), self.plan.schema.clone());
                let stores = self.context.lake.stores();
                rows = unlogged::filled(rows, table, schema, stores, self.context.budget);
            }
            let mut gone = is_log.then(|| GoneKeys::new(&self.table, self.context.budget)).transpose()?;
            let mut sieve = comparison.map(Comparison::sieve);
            let (progress, stamp, gate) = (progress.clone(), stamp.clone(), self.gate.clone());
            let schema = self.plan.schema.clone();
            let letters = self.letters.as_ref().map(Letters::collector);
            tasks.spawn(async move {
                let mut left_out = LeftOut::default();
                let (mut read, mut unfit) = (0, 0);
                while let Some(batch) = rows.next().await {
                    let batch = batch?;
                    read += batch.num_rows() as u64;
                    progress.add(batch.num_rows() as u64, batch.get_array_memory_size() as u64);
                    let (mut batch, aside) = unfit::apart(batch, &schema)?;
                    if let Some(aside) = aside {
                        unfit += letters.as_ref().ok_or_else(unfit::nowhere)?.take(&aside).await?;
                    }
                    if let Some(gone) = &mut gone {
                        batch = gone.take(&batch).await?;
                    }
                    let passed = match &gate {
                        Some(gate) => gate.pass(&batch, &mut left_out)?,
                        None => Passed { rows: batch, rejected: None },
                    };
                    if let Some(letters) = &letters {
                        letters.take(&passed).await?;
                    }
                    let batch = match (&stamp, &mut sieve) {
                        (Some(stamp), _) => stamp.put_on(passed.rows)?,
                        (None, Some(sieve)) => sieve.sift(passed.rows)?,
                        (None, None) => passed.rows,
                    };
                    writer.write(&batch).await?;
                }
                let gone = match gone {
                    Some(gone) => gone.finish().await?,
                    None => Vec::new(),
                };
                let files = writer.finish().await?;
                sieve.map_or(Ok(()), |sieve| sieve.finish(&files))?;
                Ok::<_, Error>((place, Written { files, gone, read, unfit }, left_out))
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
        let started = Instant::now();
        self.commit_files(files, effect, resume, tally).await?;
        tally.seconds += started.elapsed().as_secs_f64();
        Ok(())
    }

    async fn commit_files(
        &mut self,
        files: Vec<WrittenFile>,
        effect: Effect,
        resume: Watermark,
        tally: &mut Tally,
    ) -> Result<()> {
        let note = match &self.letters {
            Some(letters) => letters.note(self.context, self.position.as_ref(), &resume).await?,
            None => None,
        };
        // Nothing changed: the old position covers the same rows, so that idle passes leave no trace.
        if files.is_empty()
            && note.is_none()
            && self.plan.extent == Extent::Changed
            && matches!(effect, Effect::Upsert | Effect::Append)
        {
            return Ok(());
        }
        let unfinished = matches!(effect, Effect::FirstReadPart { .. });
        let before = self.table.current();
        let mut part = Tally::of(&files);
        let summary = [
            ("frazil.run", self.context.run.to_string()),
            ("frazil.stream", self.stream.name.clone()),
            ("frazil.change", self.plan.change.name().to_owned()),
        ];
        let summary = summary.into_iter().chain(note.as_ref().map(|note| (OUTBOX, note.text())));
        let change = Change {
            files,
            effect,
            from: self.position.take(),
            to: resume.clone(),
            summary: summary.map(|(name, text)| (name.to_owned(), text)).collect(),
        };
        let outcome = if self.stream.settings.audit.is_some() && !unfinished {
            self.commit_audited(change).await
        } else {
            self.table.commit(change, self.context.budget).await.map(drop)
        };
        if let Some(note) = note {
            match &outcome {
                // Elsewhere the commit may still have come through.
                Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::Data) => {
                    note.discard(&self.table).await;
                }
                Ok(()) => {
                    if let Some(letters) = &mut self.letters {
                        letters.committed(self.context, &self.table).await?;
                    }
                }
                Err(_) => {}
            }
        }
        outcome?;
        if self.table.current() == before && !unfinished {
            // A whole read that found all as it was: nobody needs to hear of it.
            self.position = Some(resume);
            return Ok(());
        }
        if !unfinished {
            part.changed = self.table.row_counts();
            part.late = self.table.lateness();
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
