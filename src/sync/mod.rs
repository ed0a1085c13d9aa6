//! A pass: what changed in a source becomes a snapshot, and what changed between snapshots becomes
//! rows of a target. Start reading here.
//!
//! ```text
//! pass ─┬─ extract   Source ──portions──▶ lake writers ──▶ commit(rows, watermark) ──▶ acknowledge
//!       └─ load      lake delta ──▶ merge::collapse ──▶ Target::apply(rows, snapshot id)
//! ```
//!
//! The two halves meet only at a snapshot id. A pass is bounded, keeps nothing in memory for the
//! next one, and can be started again after a crash at any point: the position to go on from is
//! read from the lake, and from the target.

mod audit;
mod batches;
mod conflicts;
mod contract;
mod evolve;
mod extract;
mod gap;
mod gone_keys;
mod groups;
mod late;
mod letters;
mod load;
mod pass;
mod repair;
mod report;
mod request;
mod retry;
mod shared;
mod stamp;
mod state;
mod tally;
mod trouble;
mod unfit;
mod unlogged;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::connection::Connection;
use crate::lake::{DroppedColumns, Lake, SchemaContract};
use crate::maintain;
use crate::memory::Budget;
use crate::source::{BeyondHorizon, ChangeDetection, LogSettings, NullCursor, OnGap, ValuePolicy};
use crate::table::{FormatVersion, TableId};
use crate::target::{ConflictRules, Deletes};

pub use crate::lake::Lateness;
pub use audit::{Audit, AuditScope};
pub use conflicts::{
    Choice, ConflictCount, Record as ConflictRecord, conflicts, conflicts_of, count_conflicts,
    resolve as resolve_conflict,
};
pub use contract::LeftOut;
pub use evolve::evolution;
pub use extract::extract;
pub use groups::{
    Checkpoint, CheckpointTable, Checkpointed, Group, Member, checkpoints, checkpoints_of, groups, together,
};
pub use letters::{
    Leg, LetterCount, OnReject, RejectLimit, Replayed, count_letters, drop_letters, letters, letters_of,
    replay,
};
pub use load::{load, target_table, wanted_table};
pub use pass::pass;
pub use repair::{Repaired, repair};
pub use report::{ErrorReport, ExtractReport, LoadReport, Stages, Status, StreamReport, Verdict};
pub use request::{lake_table_plan, mode_of, read_request, reader};
pub use shared::{Shared, SharedShown, SharedSource, shared_as_shown};
pub use state::{Moved, plan_from, set_position, verify};

/// One stream, resolved: every setting has its final value.
#[derive(Debug, Clone)]
pub struct Stream {
    /// Its name in the configuration and in reports: `public.orders`.
    pub name: String,
    /// Where rows come from.
    pub source: Connection,
    /// The table there.
    pub source_table: TableId,
    /// The table in the lake.
    pub lake_table: TableId,
    /// Where rows go to, if anywhere.
    pub target: Option<TargetRef>,
    /// Who else feeds the table there, if anybody.
    pub shared: Option<Arc<Shared>>,
    /// Whose tables are to be seen at one moment together with this one, if any.
    pub group: Option<Arc<Group>>,
    /// What to keep, and how to read and load.
    pub settings: StreamSettings,
}

/// A table in a target database.
#[derive(Debug, Clone)]
pub struct TargetRef {
    /// The database.
    pub connection: Connection,
    /// The table.
    pub table: TableId,
}

/// The settings of a stream that name no place.
#[derive(Debug, Clone)]
pub struct StreamSettings {
    /// How rows are kept and loaded; `None`: `merge` when the source knows a primary key, else `append`.
    pub mode: Option<Mode>,
    /// The user's key; empty: the source's primary key.
    pub primary_key: Vec<String>,
    /// How changes are found.
    pub change: ChangeDetection,
    /// The cursor column; `None`: by the catalog.
    pub cursor: Option<String>,
    /// Read again what lies this far behind the watermark.
    pub lag: Duration,
    /// What happens to NULL cursors.
    pub null_cursor: NullCursor,
    /// What happens to cursors beyond the horizon.
    pub beyond_horizon: BeyondHorizon,
    /// What happens to values that do not fit.
    pub values: ValuePolicy,
    /// What happens when the source does not have all changes since the position any more.
    pub on_gap: OnGap,
    /// What is said about the log that changes are read from.
    pub log: LogSettings,
    /// Columns to read; `None` for all.
    pub columns: Option<Vec<String>>,
    /// A condition in the source's SQL.
    pub filter: Option<String>,
    /// The version of the format that the lake table is to have; `None`: the one it has, or the usual one.
    pub format_version: Option<FormatVersion>,
    /// What a change must pass before it is shown; `None`: it is shown at once.
    pub audit: Option<Audit>,
    /// What happens when the source's columns change.
    pub schema: SchemaContract,
    /// What happens in the lake to columns that the source dropped.
    pub dropped_columns: DroppedColumns,
    /// Partition transforms of the lake table; `None`: as they are.
    pub partition_by: Option<Vec<String>>,
    /// The order of rows in the lake's files; `None`: as it is.
    pub sort_by: Option<Vec<String>>,
    /// What happens in the target to deleted rows.
    pub deletes: Deletes,
    /// About how many rows a transaction in the target has at most; `None`: all of a change.
    pub batch_rows: Option<NonZeroU32>,
    /// About how many source bytes of a first read are committed at a time.
    pub portion_bytes: u64,
    /// What happens to rows that the target refuses.
    pub on_reject: OnReject,
    /// How many rows of a pass may be rejected; `None`: any number.
    pub max_rejected: Option<RejectLimit>,
    /// Who wins where source and target both changed a row.
    pub conflicts: ConflictRules,
}

impl Default for StreamSettings {
    fn default() -> Self {
        Self {
            mode: None,
            primary_key: Vec::new(),
            change: ChangeDetection::Auto,
            cursor: None,
            lag: Duration::ZERO,
            null_cursor: NullCursor::default(),
            beyond_horizon: BeyondHorizon::default(),
            values: ValuePolicy::default(),
            on_gap: OnGap::default(),
            log: LogSettings::default(),
            columns: None,
            filter: None,
            format_version: None,
            audit: None,
            schema: SchemaContract::default(),
            dropped_columns: DroppedColumns::default(),
            partition_by: None,
            sort_by: None,
            deletes: Deletes::default(),
            batch_rows: None,
            portion_bytes: DEFAULT_PORTION_BYTES,
            on_reject: OnReject::default(),
            max_rejected: None,
            conflicts: ConflictRules::default(),
        }
    }
}

/// A crash in a first read costs at most this much reading: some seconds.
pub const DEFAULT_PORTION_BYTES: u64 = 2 << 30;

/// How rows are kept in the lake and brought into the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// One row a key, the current state.
    #[serde(alias = "upsert", alias = "incremental")]
    Merge,
    /// Every row that ever came.
    Append,
    /// Everything anew each time, swapped in whole.
    #[serde(alias = "full_refresh", alias = "full-refresh")]
    Replace,
    /// In the lake as `merge`; in the target every version of a row, with when it was valid.
    Scd2,
}

/// Which halves of a pass to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Legs {
    /// Source to lake (`frazil sync`).
    Extract,
    /// Lake to target (`frazil load`).
    Load,
    /// Both (`frazil run`).
    Both,
}

/// What all passes of a process share.
#[derive(Clone)]
pub struct Context {
    /// The lake.
    pub lake: Lake,
    /// The memory that one stream may use.
    pub budget: Budget,
    /// How lake tables are kept in shape.
    pub maintenance: maintain::Policy,
    /// Whether everything is read and loaded anew, whatever is there.
    pub full_refresh: bool,
    /// How long each pass tries again what fails for a passing reason.
    pub retry_for: Duration,
    /// Which run this is, for summaries and history.
    pub run: uuid::Uuid,
}

impl Context {
    /// A run of its own, which takes what is there as it is and tries once.
    pub fn new(lake: Lake, budget: Budget, maintenance: maintain::Policy) -> Self {
        let run = uuid::Uuid::new_v4();
        Self { lake, budget, maintenance, full_refresh: false, retry_for: Duration::ZERO, run }
    }
}

/// Counts for whoever draws a progress bar. Rows may be counted that a failed commit drops again.
#[derive(Debug, Default)]
pub struct Progress {
    /// Rows expected in this leg, 0 when unknown.
    pub expected: AtomicU64,
    /// Rows read from the source, or staged in the target.
    pub rows: AtomicU64,
    /// Arrow bytes of those rows.
    pub bytes: AtomicU64,
    /// Set by whoever started the pass: stop after the portion under way.
    pub stop: AtomicBool,
}

impl Progress {
    pub(crate) fn start(&self, expected: Option<u64>) {
        self.expected.store(expected.unwrap_or(0), Ordering::Relaxed);
        self.rows.store(0, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
    }

    pub(crate) fn add(&self, rows: u64, bytes: u64) {
        self.rows.fetch_add(rows, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}
