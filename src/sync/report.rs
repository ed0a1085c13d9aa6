//! What a pass says of itself: a verdict per stream that can be trusted.

use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

use super::contract::LeftOut;
use crate::delta::SnapshotId;
use crate::error::{Error, ErrorKind, Result};
use crate::maintain;
use crate::source::{ChangeDetection, Extent};

/// The outcome of one pass of one stream.
#[derive(Debug, Serialize)]
pub struct StreamReport {
    /// The stream's name.
    pub stream: String,
    /// The run it belongs to.
    pub run: Uuid,
    /// When the pass began.
    pub started_at: DateTime<Utc>,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// How it ended.
    pub verdict: Verdict,
    /// How often a half was tried again within the pass.
    pub retries: u32,
    /// What the first half did, if it got to its end.
    pub extract: Option<ExtractReport>,
    /// What the second half did, if it got to its end.
    pub load: Option<LoadReport>,
    /// What was done for the lake table afterwards, if anything was due.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub maintenance: Option<maintain::Report>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorReport>,
}

/// How a pass ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
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
#[derive(Debug, Clone, Serialize)]
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
#[derive(Debug, Clone, Serialize)]
pub struct ExtractReport {
    /// How changes were found.
    pub change: ChangeDetection,
    /// Whether the whole table was read.
    pub extent: Extent,
    /// Rows committed.
    pub rows: u64,
    /// Of these, rows that take the place of an older one with their key.
    pub updated: u64,
    /// Rows that a whole read did not find any more.
    pub deleted: u64,
    /// Rows that could not be carried: they are in the table of dead letters.
    pub rejected: u64,
    /// Bytes of the data files that hold them.
    pub file_bytes: u64,
    /// The last snapshot committed, or the one that was there.
    pub snapshot: Option<SnapshotId>,
    /// Whether there was anything to commit.
    pub changed: bool,
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
}

/// Lake to target.
#[derive(Debug, Clone, Serialize)]
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
    /// How long it took, in seconds.
    pub seconds: f64,
}

impl ExtractReport {
    /// One report for two readings of the same pass.
    pub(super) fn followed_by(mut self, next: Self) -> Self {
        self.notes
            .extend(next.notes.into_iter().filter(|note| !self.notes.contains(note)).collect::<Vec<_>>());
        self.left_out.add(&next.left_out);
        Self {
            left_out: self.left_out,
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
            started_at: Utc::now(),
            seconds: 0.0,
            verdict: Verdict::Failed,
            retries: 0,
            extract: None,
            load: None,
            maintenance: None,
            error: None,
        }
    }

    pub(super) fn close(&mut self, outcome: Result<()>) {
        self.seconds = (Utc::now() - self.started_at).as_seconds_f64().max(0.0);
        let extracted = self.extract.as_ref().is_some_and(|extract| extract.changed);
        let loaded = self.load.as_ref().is_some_and(|load| load.from != load.to || load.staged > 0);
        self.verdict = match &outcome {
            Ok(()) if extracted || loaded => Verdict::Done,
            Ok(()) => Verdict::NothingToDo,
            Err(error) if error.kind() == ErrorKind::Conflict => Verdict::Conflict,
            Err(_) => Verdict::Failed,
        };
        self.error = outcome.as_ref().err().map(ErrorReport::from);
    }
}
