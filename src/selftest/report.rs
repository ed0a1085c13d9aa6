//! What the test did, and what it found.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

/// What a test did, and what it found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// What replays it.
    pub seed: u64,
    /// Rounds: some transactions, a pass with trouble, a look at the lake.
    pub rounds: u64,
    /// How long it took.
    pub seconds: f64,
    /// Transactions that the source committed.
    pub transactions: u64,
    /// Of these, how many stayed open across passes.
    pub late_commits: u64,
    /// Rows that were inserted.
    pub inserted: u64,
    /// Rows that were updated, or got another key.
    pub updated: u64,
    /// Rows that were deleted.
    pub deleted: u64,
    /// Tables whose columns changed.
    pub reshaped: u64,
    /// Processes of frazil that were started.
    pub passes: u64,
    /// Of these, how many ended by a signal: kills, crash points, files that may not grow.
    pub killed: u64,
    /// Of these, how many ended with an error, as they should.
    pub failed: u64,
    /// What went wrong on purpose, by its name.
    pub faults: BTreeMap<String, u64>,
    /// Snapshots whose rows were held against the states of the source.
    pub snapshots_verified: u64,
    /// Rows in them.
    pub rows_verified: u64,
    /// How often source, lake and target were held against each other, row by row.
    pub settled: u64,
    /// Of these, how often one run was not enough, because an old session still held the horizon back.
    pub settled_late: u64,
    /// What is wrong: empty if all is well.
    pub wrong: Vec<String>,
    /// Where everything is: kept if something is wrong.
    pub folder: PathBuf,
    /// The schema of the tables in databases and lake that have schemas.
    pub schema: String,
}

impl Report {
    /// Whether every row was where it should be, at every moment.
    pub fn is_good(&self) -> bool {
        self.wrong.is_empty()
    }

    pub(super) fn count(&mut self, fault: &str) {
        *self.faults.entry(fault.to_owned()).or_default() += 1;
    }
}
