//! What a target promises: apply the change between two snapshots, once, whole or not at all.
//!
//! The id of the snapshot that a table shows is written in the transaction that changes its rows.
//! So a load can be repeated after any crash: it finds either the old id and old rows, or both new.

mod conflicts;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use datafusion::execution::SendableRecordBatchStream;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::conflicts::{
    Clash, ConflictKind, ConflictPolicy, ConflictRules, Conflicts, Differs, FoundConflict, Met, Outcome,
    Resolution, decide,
};
use crate::delta::SnapshotId;
use crate::error::{Error, ErrorKind, Result};
use crate::source::Finding;
use crate::table::TableId;

/// A database that rows are loaded into.
#[async_trait]
pub trait Target: Send + Sync {
    /// The statements that [`prepare`](Self::prepare) would run, in order; empty when the table fits.
    /// Fails with [`Schema`](crate::ErrorKind::Schema) when the table that is there cannot be made to fit.
    async fn plan(&self, table: &TargetTable) -> Result<Vec<String>>;

    /// Creates or widens the table and the control table. Never narrows and never drops.
    async fn prepare(&self, table: &TargetTable) -> Result<()>;

    /// What the table shows, or `None` when this stream never loaded it.
    async fn applied(&self, stream: &str, table: &TableId) -> Result<Option<Applied>>;

    /// What the table is called when the database is read as a source.
    fn as_source(&self, table: &TableId) -> TableId {
        table.clone()
    }

    /// Applies a change in one transaction and moves the table from `merge.from` to `merge.to`.
    /// [`Conflict`](crate::ErrorKind::Conflict) when the table does not show `merge.from` (any more).
    async fn apply(&self, merge: Merge) -> Result<MergeStats>;

    /// As [`apply`](Self::apply), without the rows that the database refuses: those go to `refusals` before
    /// the commit. [`Unsupported`](crate::ErrorKind::Unsupported) where a target cannot tell them apart.
    ///
    /// The changes have one column more, before `_op`: [`LETTER_COLUMN`].
    async fn apply_but(&self, merge: Merge, refusals: Arc<dyn Refusals>) -> Result<MergeStats> {
        drop((merge, refusals));
        Err(Error::new(ErrorKind::Unsupported, "this target does not tell refused rows apart yet")
            .hint("set `on_reject: stop`"))
    }

    /// As [`apply`](Self::apply), with an eye on what others changed in the table: see [`Conflicts`]. Rows that
    /// are compared stay locked until the commit.
    ///
    /// With [`Strategy::Merge`] the changes say what each row was when the table was loaded last: before `_op`
    /// they have each column once more, by the name that [`base_column`](crate::table::base_column) gives it,
    /// [`KEY_TEXT`](crate::table::KEY_TEXT) and [`HAS_BASE`](crate::table::HAS_BASE).
    async fn apply_beside(&self, merge: Merge, conflicts: Arc<dyn Conflicts>) -> Result<MergeStats> {
        drop((merge, conflicts));
        Err(Error::new(ErrorKind::Unsupported, "this target does not tell yet what others changed in it")
            .hint("set `conflicts: source_wins`"))
    }

    /// What is wrong or missing for loading this table: rights, settings.
    async fn preflight(&self, table: &TargetTable) -> Result<Vec<Finding>>;
}

/// Of changes to [`Target::apply_but`]: all that is to be known of a row that is refused, as a text.
pub const LETTER_COLUMN: &str = "_letter";

/// A row that a database refuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Its [`LETTER_COLUMN`].
    pub letter: String,
    /// Why. Names of columns and constraints, no values.
    pub reason: String,
}

/// Where refused rows go.
#[async_trait]
pub trait Refusals: Send + Sync {
    /// Notes that one more row is refused, for this reason. An error ends the load.
    fn note(&self, reason: &str) -> Result<()>;

    /// Takes all rows that are left out, within the transaction that changes the table and before its commit.
    /// They are durable when it returns; an error ends the load. It may be told of the same rows again when
    /// the commit fails.
    async fn keep(&self, refused: Vec<Refused>) -> Result<()>;
}

/// The table to load, as it should look.
#[derive(Debug, Clone)]
pub struct TargetTable {
    /// Its name in the target.
    pub id: TableId,
    /// Its columns, with [`SOURCE_TYPE`](crate::table::SOURCE_TYPE) where known; the `_op` column is not among them.
    pub schema: SchemaRef,
    /// Key columns; empty for tables that are only appended to.
    pub key: Vec<String>,
    /// What happens to rows that were deleted in the lake.
    pub deletes: Deletes,
    /// Whether each state of a row stays, with when it was valid: see [`Strategy::Versions`].
    pub versions: bool,
}

/// When a version of a row became valid: the commit of the snapshot that brought it.
pub const VALID_FROM: &str = "_valid_from";
/// When it ended; NULL while it is valid.
pub const VALID_TO: &str = "_valid_to";
/// Whether it is the valid one of its key.
pub const IS_CURRENT: &str = "_is_current";

impl TargetTable {
    /// What is unique in the target: the key, or a version of it.
    pub fn stored_key(&self) -> Vec<String> {
        let version = self.versions.then(|| VALID_FROM.to_owned());
        self.key.iter().cloned().chain(version).collect()
    }
}

/// Which state of the lake a target table shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// The lake table's UUID: a table that was dropped and made anew is another one.
    pub lake_table: uuid::Uuid,
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// Set while a change comes in by several transactions: some of its rows are there already.
    pub halfway: Option<Halfway>,
}

impl Applied {
    /// A table that shows a snapshot and nothing else.
    pub const fn new(lake_table: uuid::Uuid, snapshot: SnapshotId) -> Self {
        Self { lake_table, snapshot, halfway: None }
    }

    /// The same, on its way to a snapshot, with a mark that no other transaction has.
    pub fn toward(self, toward: SnapshotId) -> Self {
        Self { halfway: Some(Halfway { toward, mark: uuid::Uuid::new_v4() }), ..self }
    }
}

/// A change that comes in by several transactions. In a control row it is text: `SNAPSHOT MARK`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Halfway {
    /// The snapshot that the table is to show.
    pub toward: SnapshotId,
    /// The mark of the last transaction. No two have the same: whether one whose commit had no answer took
    /// place can be seen, and so can another loader in between.
    pub mark: uuid::Uuid,
}

impl fmt::Display for Halfway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.toward, self.mark)
    }
}

impl FromStr for Halfway {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parsed = text.split_once(' ').and_then(|(toward, mark)| {
            Some(Self { toward: SnapshotId(toward.parse().ok()?), mark: mark.parse().ok()? })
        });
        parsed.ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, "the control row's `halfway` cannot be read")
                .hint("`frazil load --full-refresh` loads the target anew once the value is NULL")
        })
    }
}

/// The stream by which the control table has the turn of a table that several streams load.
pub const TURN: &str = "(all sources)";

/// The stream by which the control table says that a table was made by us, and is ours to alter.
pub const MADE: &str = "(made by frazil)";

/// A table that several streams load has one control row more, which each of them moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// What it must say now.
    pub from: Option<Applied>,
    /// What it says afterwards.
    pub to: Applied,
}

/// A change to apply.
pub struct Merge {
    /// The stream's name: the control row's key, together with the table.
    pub stream: String,
    /// The table.
    pub table: TargetTable,
    /// What the table must show now.
    pub from: Option<Applied>,
    /// What it shows afterwards.
    pub to: Applied,
    /// Of a table that several streams load: moved as well, or the change is not applied.
    pub turn: Option<Turn>,
    /// How rows are brought in.
    pub strategy: Strategy,
    /// The table's columns and, at the end, `_op` (`Int8`, [`Op`](crate::delta::Op)); at most one row a
    /// key, sorted by key where there is one. A delete carries its key only.
    pub changes: SendableRecordBatchStream,
    /// About how many rows `changes` has.
    pub rows: Option<u64>,
}

/// How changes are brought into a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// Insert, update and delete by key.
    Merge,
    /// Insert everything.
    Append,
    /// Everything there is becomes what `changes` has; readers see the old rows until the new are complete.
    Replace,
    /// By key as [`Merge`](Self::Merge), but a row that changes or goes stays as a version that ended.
    Versions {
        /// When the versions begin and end: the commit of the snapshot. Equal for whoever loads it.
        at: DateTime<Utc>,
        /// Whether `changes` is all that there is, so that other rows have gone.
        whole: bool,
    },
}

/// What happens in a target to rows that were deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Deletes {
    /// They are deleted.
    #[default]
    Hard,
    /// `_deleted_at` is set; an upsert of the key clears it.
    Soft,
    /// They stay.
    Ignore,
}

/// What a merge did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct MergeStats {
    /// Rows staged.
    pub staged: u64,
    /// Rows inserted or updated; rows that were already equal may be left out.
    pub upserted: u64,
    /// Rows deleted, or marked as such.
    pub deleted: u64,
}
