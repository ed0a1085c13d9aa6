//! What a reading has written and committed so far.

use chrono::{DateTime, Utc};

use crate::lake::{Lateness, RowCounts, WrittenFile};

/// Files that were written and are not committed yet.
#[derive(Default)]
pub(super) struct Written {
    pub(super) files: Vec<WrittenFile>,
    /// Keys of rows that go.
    pub(super) gone: Vec<WrittenFile>,
    /// Rows that came from the source.
    pub(super) read: u64,
    /// Rows among them that went aside, because a value did not fit.
    pub(super) unfit: u64,
}

impl Written {
    pub(super) fn add(&mut self, other: Self) {
        self.files.extend(other.files);
        self.gone.extend(other.gone);
        self.read += other.read;
        self.unfit += other.unfit;
    }
}

/// What was committed so far.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) rows: u64,
    pub(super) bytes: u64,
    pub(super) commits: usize,
    pub(super) changed: RowCounts,
    pub(super) late: Lateness,
    /// When the oldest change was committed in the source, by our clock.
    pub(super) oldest: Option<DateTime<Utc>>,
    /// The longest that a change was under way from there to its snapshot, in seconds.
    pub(super) latency: Option<f64>,
    /// Taken by commits, in seconds.
    pub(super) seconds: f64,
}

impl Tally {
    pub(super) fn of(files: &[WrittenFile]) -> Self {
        let rows = files.iter().map(|written| written.file.record_count()).sum();
        let bytes = files.iter().map(|written| written.file.file_size_in_bytes()).sum();
        Self { rows, bytes, commits: 1, ..Self::default() }
    }

    pub(super) fn add(&mut self, part: Self) {
        self.rows += part.rows;
        self.bytes += part.bytes;
        self.commits += part.commits;
        self.changed.updated += part.changed.updated;
        self.changed.deleted += part.changed.deleted;
        self.late.join(&part.late);
    }

    /// Notes that changes were committed here that the source committed at `oldest` and since.
    pub(super) fn arrived(&mut self, oldest: DateTime<Utc>) {
        self.oldest = Some(self.oldest.map_or(oldest, |before| before.min(oldest)));
        let took = seconds_since(oldest);
        self.latency = Some(self.latency.map_or(took, |before| before.max(took)));
    }
}

/// Seconds since then; two clocks may differ by more than that took.
pub(super) fn seconds_since(then: DateTime<Utc>) -> f64 {
    (Utc::now() - then).as_seconds_f64().max(0.0)
}
