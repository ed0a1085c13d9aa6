//! What a pass says of itself: a verdict per stream that can be trusted.

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::Serialize;
use uuid::Uuid;

use super::Stream;
use super::contract::LeftOut;
use super::groups::Checkpointed;
use crate::connection::Connection;
use crate::delta::{LogPlace, SnapshotId, Watermark};
use crate::error::{Error, ErrorKind, Result};
use crate::lake::Lateness;
use crate::maintain;
use crate::source::{ChangeDetection, Extent};
use crate::table::TableId;
use crate::target::MergeStats;

/// The outcome of one pass of one stream. Fields may come to it; none goes or changes its meaning without
/// a line in the changelog that says so.
#[derive(Debug, Serialize, JsonSchema)]
pub struct StreamReport {
    /// The stream's name.
    pub stream: String,
    /// The run it belongs to: one call of the program, or of `serve` until it ends.
    #[schemars(with = "String")]
    pub run: Uuid,
    /// Where rows came from: `connection:table`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The table in the lake.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lake_table: Option<String>,
    /// Where rows went to: `connection:table`. Absent where they stay in the lake.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// When the pass began, in UTC.
    #[schemars(with = "String")]
    pub started_at: DateTime<Utc>,
    /// When it ended, in UTC.
    #[schemars(with = "String")]
    pub ended_at: DateTime<Utc>,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// How it ended.
    pub verdict: Verdict,
    /// How much of it was done.
    pub status: Status,
    /// How often a half was tried again within the pass.
    pub retries: u32,
    /// What the first half did, if it got to its end.
    pub extract: Option<ExtractReport>,
    /// What the second half did, if it got to its end.
    pub load: Option<LoadReport>,
    /// Of a stream with a `group`: whether its tables can be seen at one moment now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<Checkpointed>,
    /// What was done for the lake table afterwards, if anything was due: as `frazil maintain` reports it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<serde_json::Map<String, serde_json::Value>>")]
    pub maintenance: Option<maintain::Report>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorReport>,
}

/// How much of a pass was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// All of it.
    Completed,
    /// The lake has the change, the target not.
    Partial,
    /// Nothing that anybody sees: rows of a first read may be kept for the next pass.
    Failed,
}

/// How a pass ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Rows moved; source, lake and target are where the report says.
    Done,
    /// Nothing had changed.
    NothingToDo,
    /// Another runner was faster. Nothing of ours was applied.
    Conflict,
    /// It failed; the next pass goes on from the last commit.
    Failed,
}

impl Verdict {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Done, Self::NothingToDo, Self::Conflict, Self::Failed];

    /// As reports write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::NothingToDo => "nothing_to_do",
            Self::Conflict => "conflict",
            Self::Failed => "failed",
        }
    }
}

/// An error as reports carry it.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ErrorReport {
    /// The kind's name.
    pub kind: &'static str,
    /// What failed, with its context.
    pub message: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// For exit codes.
    #[serde(skip)]
    pub code: ErrorKind,
}

impl From<&Error> for ErrorReport {
    fn from(error: &Error) -> Self {
        Self {
            kind: error.kind().name(),
            message: error.to_string(),
            hint: error.hint_text().map(str::to_owned),
            code: error.kind(),
        }
    }
}

/// Source to lake.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct ExtractReport {
    /// How changes were found.
    pub change: ChangeDetection,
    /// Whether the whole table was read.
    pub extent: Extent,
    /// The position before, as its connector wrote it.
    pub from: Option<Watermark>,
    /// The position now.
    pub to: Option<Watermark>,
    /// Rows that came from the source.
    pub read: u64,
    /// Rows committed: of a table that is read whole, those that differ.
    pub rows: u64,
    /// Of these, rows that take the place of an older one with their key.
    pub updated: u64,
    /// Rows that a whole read did not find any more.
    pub deleted: u64,
    /// Rows that could not be carried: they are in the table of dead letters.
    pub rejected: u64,
    /// Rows from before the position: an earlier pass should have found them.
    pub late: Lateness,
    /// Seconds from the commit of the oldest change in the source to its snapshot, by the source's clock.
    /// Absent where the source does not say when changes were committed, or nothing had changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_seconds: Option<f64>,
    /// When that was, by our clock.
    #[serde(skip)]
    pub(super) oldest: Option<DateTime<Utc>>,
    /// Bytes of the data files that hold them.
    pub file_bytes: u64,
    /// The last snapshot committed, or the one that was there.
    pub snapshot: Option<SnapshotId>,
    /// Whether there was anything to commit.
    pub changed: bool,
    /// The place at which it was to end, if the snapshot shows the table as it was there.
    #[serde(skip)]
    pub(super) reached: Option<LogPlace>,
    /// Whether another reading has to follow at once.
    #[serde(skip)]
    pub(super) again: bool,
    /// Commits of the lake table since it was maintained.
    #[serde(skip)]
    pub(super) commits: usize,
    /// What the stream's schema contract left out.
    #[serde(skip_serializing_if = "LeftOut::is_empty")]
    pub left_out: LeftOut,
    /// What the user should know: picks, fallbacks, rows held back.
    pub notes: Vec<String>,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Where that time went.
    pub stages: Stages,
}

/// Where the time of the first half went, in seconds.
#[derive(Debug, Clone, Copy, Default, Serialize, JsonSchema)]
pub struct Stages {
    /// Finding out what there is and what is to be read.
    pub plan: f64,
    /// Reading rows and writing files, both at once.
    pub read: f64,
    /// Committing, with audits.
    pub commit: f64,
}

/// Lake to target.
#[derive(Debug, Clone, Default, Serialize, JsonSchema)]
pub struct LoadReport {
    /// The snapshot that the target showed before.
    pub from: Option<SnapshotId>,
    /// The snapshot that it shows now.
    pub to: Option<SnapshotId>,
    /// Changes staged.
    pub staged: u64,
    /// Rows inserted or updated.
    pub upserted: u64,
    /// Rows deleted or marked so.
    pub deleted: u64,
    /// Rows that the target refused: they are in the table of dead letters.
    pub rejected: u64,
    /// Rows that source and target both changed: they are in the table of conflicts.
    pub conflicts: u64,
    /// Seconds from the commit of the oldest change of this pass in the source to its commit in the target.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_seconds: Option<f64>,
    /// How long it took, in seconds.
    pub seconds: f64,
}

impl LoadReport {
    /// Counts what was applied.
    pub(super) fn add(&mut self, stats: &MergeStats) {
        self.staged += stats.staged;
        self.upserted += stats.upserted;
        self.deleted += stats.deleted;
    }
}

impl ExtractReport {
    /// Of a reading that has read nothing yet.
    pub fn new(change: ChangeDetection, extent: Extent) -> Self {
        Self {
            change,
            extent,
            from: None,
            to: None,
            read: 0,
            rows: 0,
            updated: 0,
            deleted: 0,
            rejected: 0,
            late: Lateness::default(),
            latency_seconds: None,
            oldest: None,
            file_bytes: 0,
            snapshot: None,
            changed: false,
            reached: None,
            again: false,
            commits: 0,
            left_out: LeftOut::default(),
            notes: Vec::new(),
            seconds: 0.0,
            stages: Stages::default(),
        }
    }

    /// Whether the whole table was read.
    pub fn is_whole(&self) -> bool {
        self.extent == Extent::Whole
    }

    /// One report for two readings of the same pass.
    pub(super) fn followed_by(mut self, next: Self) -> Self {
        self.notes
            .extend(next.notes.into_iter().filter(|note| !self.notes.contains(note)).collect::<Vec<_>>());
        self.left_out.add(&next.left_out);
        self.late.join(&next.late);
        Self {
            late: self.late,
            latency_seconds: self.latency_seconds.into_iter().chain(next.latency_seconds).reduce(f64::max),
            oldest: self.oldest.into_iter().chain(next.oldest).min(),
            left_out: self.left_out,
            from: self.from,
            read: self.read + next.read,
            stages: Stages {
                plan: self.stages.plan + next.stages.plan,
                read: self.stages.read + next.stages.read,
                commit: self.stages.commit + next.stages.commit,
            },
            rows: self.rows + next.rows,
            updated: self.updated + next.updated,
            deleted: self.deleted + next.deleted,
            rejected: self.rejected + next.rejected,
            file_bytes: self.file_bytes + next.file_bytes,
            changed: self.changed || next.changed,
            notes: self.notes,
            ..next
        }
    }
}

impl StreamReport {
    /// Of a pass that begins now; failed until it has ended.
    pub fn new(stream: &str, run: Uuid) -> Self {
        Self {
            stream: stream.to_owned(),
            run,
            source: None,
            lake_table: None,
            target: None,
            started_at: Utc::now(),
            ended_at: Utc::now(),
            seconds: 0.0,
            verdict: Verdict::Failed,
            status: Status::Failed,
            retries: 0,
            extract: None,
            load: None,
            checkpoint: None,
            maintenance: None,
            error: None,
        }
    }

    /// Of a pass that met a bug of ours; the panic hook has said which.
    pub fn panicked(stream: &str, run: Uuid) -> Self {
        let error = Error::new(ErrorKind::Internal, "the pass ended in a bug of frazil");
        Self { error: Some((&error.with("stream", stream)).into()), ..Self::new(stream, run) }
    }

    /// Of a pass of this stream.
    pub(super) fn of(stream: &Stream, run: Uuid) -> Self {
        let place = |connection: &Connection, table: &TableId| Some(format!("{}:{table}", connection.name()));
        Self {
            source: place(&stream.source, &stream.source_table),
            lake_table: Some(stream.lake_table.to_string()),
            target: stream.target.as_ref().and_then(|target| place(&target.connection, &target.table)),
            ..Self::new(&stream.name, run)
        }
    }

    /// Rows that became dead letters, on either half.
    pub fn rejected(&self) -> u64 {
        self.extract.as_ref().map_or(0, |extract| extract.rejected)
            + self.load.as_ref().map_or(0, |load| load.rejected)
    }

    /// Seconds from the commit of the oldest change in the source to where it had to go.
    pub fn latency(&self) -> Option<f64> {
        let loaded = self.load.as_ref().and_then(|load| load.latency_seconds);
        loaded.or_else(|| self.extract.as_ref().and_then(|extract| extract.latency_seconds))
    }

    /// Rows that source and target both changed.
    pub fn conflicts(&self) -> u64 {
        self.load.as_ref().map_or(0, |load| load.conflicts)
    }

    pub(super) fn close(&mut self, outcome: Result<()>) {
        self.ended_at = Utc::now();
        self.seconds = (self.ended_at - self.started_at).as_seconds_f64().max(0.0);
        let extracted = self.extract.as_ref().is_some_and(|extract| extract.changed);
        let loaded = self.load.as_ref().is_some_and(|load| load.from != load.to || load.staged > 0);
        self.verdict = match &outcome {
            Ok(()) if extracted || loaded => Verdict::Done,
            Ok(()) => Verdict::NothingToDo,
            Err(error) if error.kind() == ErrorKind::Conflict => Verdict::Conflict,
            Err(_) => Verdict::Failed,
        };
        self.status = match &outcome {
            Ok(()) => Status::Completed,
            Err(_) if extracted => Status::Partial,
            Err(_) => Status::Failed,
        };
        self.error = outcome.as_ref().err().map(ErrorReport::from);
    }
}
