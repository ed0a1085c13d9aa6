//! What a source promises: describe its tables, and read what changed since a watermark.
//!
//! ```text
//! tables ──▶ plan ──▶ open ──▶ Reading ──next──▶ Portion { streams, resume } ──▶ … ──▶ None
//!                                                   │
//!                              committed to the lake together with `resume`
//! ```
//!
//! A reading is bounded: it ends, and it can be started again from any watermark that it handed
//! out. Rows may be read again after a crash (at least once); the lake's commit makes that
//! harmless. Streams are pulled: whoever does not poll, stops the source.

mod arrangement;

use std::collections::BTreeMap;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures::stream::BoxStream;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::delta::{LogPlace, Watermark};
use crate::error::{Error, Result};
use crate::table::{TableDescription, TableId};

pub use arrangement::{Arrangement, Goal};

/// Rows of one table, in batches that all have the reading's schema.
pub type RowStream = BoxStream<'static, Result<RecordBatch>>;

/// A database that rows come from.
#[async_trait]
pub trait Source: Send + Sync {
    /// All tables and views that the user may read, in name order. System schemas are left out.
    async fn tables(&self) -> Result<Vec<TableDescription>>;

    /// One table, or a [`Config`](crate::ErrorKind::Config) error that names the ones with similar names.
    async fn table(&self, table: &TableId) -> Result<TableDescription>;

    /// What [`open`](Self::open) would do, without reading a row: picks the change detection and says why.
    async fn plan(&self, request: &ReadRequest) -> Result<ReadPlan>;

    /// Starts reading everything after `request.from`; the whole table when it is `None` or of no use.
    async fn open(&self, request: ReadRequest) -> Result<Box<dyn Reading>>;

    /// Tells the source that everything up to `position` is durable in the lake. A suggestion: it may
    /// be lost, come twice, or do nothing.
    async fn acknowledge(&self, table: &TableId, position: &Watermark) -> Result<()> {
        let _ = (table, position);
        Ok(())
    }

    /// How many rows a table has that meet a condition in the source's SQL: counted, not estimated.
    async fn count(&self, table: &TableId, filter: Option<&str>) -> Result<u64>;

    /// What is wrong or missing for reading these tables: rights, settings, indexes. Empty when all is well.
    async fn preflight(&self, request: &ReadRequest) -> Result<Vec<Finding>>;

    /// What `frazil setup` or `frazil teardown` would do for a stream. Nothing is done.
    async fn arrange(&self, request: &ReadRequest, goal: Goal) -> Result<Arrangement> {
        let (_, change) = (goal, request.change.name());
        Ok(Arrangement::nothing(format!("`change: {change}` needs nothing of ours in the database")))
    }

    /// Does it. Statements that can be taken back together are executed together.
    async fn execute(&self, arrangement: &Arrangement) -> Result<()> {
        let _ = arrangement;
        Ok(())
    }

    /// A place in the log behind everything that was committed before the call, for readings of several tables
    /// that are to end there ([`LogSettings::up_to`]); `None` where readings cannot end at a place.
    async fn end_of_log(&self) -> Result<Option<LogPlace>> {
        Ok(None)
    }

    /// What says that reading should pause. Asked often, so it must be cheap; nothing where nothing is known.
    async fn strain(&self) -> Result<Strain> {
        Ok(Strain::default())
    }
}

/// How hard a database has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Strain {
    /// How far a replica is behind: the one that is read, or the last of those that follow the server.
    pub replica_lag: Option<Duration>,
    /// How many sessions of the database wait for a lock.
    pub waiting: Option<u64>,
}

/// A bounded read of one table, in portions.
#[async_trait]
pub trait Reading: Send {
    /// What was planned.
    fn plan(&self) -> &ReadPlan;

    /// The next portion, or `None` at the end. The streams of the previous portion must have been
    /// drained or dropped.
    async fn next(&mut self) -> Result<Option<Portion>>;

    /// At the end: the place of [`LogSettings::up_to`], if what was read and what is before it are the table as
    /// all transactions before that place left it, and none after it; also when the position stays.
    fn reached(&self) -> Option<LogPlace> {
        None
    }

    /// At the end: whether it came upon something that another reading, at once, has to answer.
    fn again(&self) -> bool {
        false
    }
}

/// Rows that are committed together with the position that covers them.
pub struct Portion {
    /// Independent streams, at most `ReadRequest::parallel`, to be drained concurrently. Together they
    /// hold each row once.
    pub streams: Vec<RowStream>,
    /// Covers all rows of this portion and of those before it. Opening again from here reads the rest.
    pub resume: Watermark,
    /// After this portion the lake shows one state of the table; before that it must not be shown.
    pub complete: bool,
    /// When the oldest of its changes was committed in the source, by our clock; `None` where the source
    /// does not say, or nothing changed.
    pub oldest: Option<DateTime<Utc>>,
}

/// What to read, and how.
#[derive(Debug, Clone)]
pub struct ReadRequest {
    /// The table in the source.
    pub table: TableId,
    /// Columns in the order wanted; `None` for all.
    pub columns: Option<Vec<String>>,
    /// A condition in the source's SQL that each row must meet.
    pub filter: Option<String>,
    /// Key columns: the user's, else the primary key, else empty.
    pub key: Vec<String>,
    /// Whether the lake table keeps one row a key. Otherwise rows are only ever appended, and each may
    /// be read once only.
    pub keyed: bool,
    /// How changes are found.
    pub change: ChangeDetection,
    /// The cursor column, if the user named one.
    pub cursor: Option<String>,
    /// Read again what lies this far behind the watermark (timestamp cursors only).
    pub lag: Duration,
    /// What happens to rows whose cursor is NULL.
    pub null_cursor: NullCursor,
    /// What happens to rows beyond the commit-safe horizon, such as timestamps in the future.
    pub beyond_horizon: BeyondHorizon,
    /// How values that have no exact place are carried.
    pub values: ValuePolicy,
    /// What is said about the log that changes are read from.
    pub log: LogSettings,
    /// Who reads, in words that stay the same: what a source keeps for its reader goes by this.
    pub reader: String,
    /// The position after which to read.
    pub from: Option<Watermark>,
    /// How many streams a portion may have, at least 1.
    pub parallel: usize,
    /// Rows in a batch, at most.
    pub batch_rows: usize,
    /// Bytes in a batch, about at most; wide rows make smaller batches.
    pub batch_bytes: usize,
    /// About how many source bytes a portion of a first read covers: what a crash can cost.
    pub portion_bytes: u64,
}

/// What a read will do, and why.
#[derive(Debug, Clone, Serialize)]
pub struct ReadPlan {
    /// How changes are found; never `Auto`.
    pub change: ChangeDetection,
    /// The cursor column, if any.
    pub cursor: Option<String>,
    /// Whether an index serves the cursor.
    pub cursor_indexed: bool,
    /// What the rows mean for what the lake holds.
    pub extent: Extent,
    /// Whether portions before the last may be committed on their own, because what changes in the
    /// meantime will be read again. Otherwise a crash starts the reading anew.
    pub resumable: bool,
    /// Whether the reading goes on after `ReadRequest::from`. Otherwise it starts from nothing, and what
    /// earlier parts of an unfinished first read left in the lake must be dropped.
    pub continues: bool,
    /// Sentences for the user: what was picked, why, what was fallen back from, what is held back.
    pub notes: Vec<String>,
    /// The main statement sent to the source.
    pub statement: String,
    /// Rows whose cursor lies before this time were due in the pass before: microseconds since 1970 by the
    /// cursor's own clock. `None` in a first read, and where the cursor is no time.
    #[serde(skip)]
    pub known_to: Option<i64>,
    /// About how many rows will be read, if known.
    pub rows: Option<u64>,
    /// About how many bytes of the source will be read, if known.
    pub bytes: Option<u64>,
    /// The Arrow schema of the batches, without `_op`.
    #[serde(skip)]
    pub schema: SchemaRef,
}

impl ReadPlan {
    /// A plan to read what changed, deletes included, from where the last pass ended.
    pub fn of_changes(
        request: &ReadRequest,
        schema: SchemaRef,
        statement: String,
        notes: Vec<String>,
    ) -> Self {
        Self {
            change: request.change,
            cursor: None,
            cursor_indexed: false,
            extent: Extent::Log,
            resumable: false,
            continues: true,
            notes,
            statement,
            known_to: None,
            rows: None,
            bytes: None,
            schema,
        }
    }
}

/// What the rows of a reading mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Extent {
    /// The whole table: what the lake has and the reading has not is gone.
    Whole,
    /// The newest state of every row that changed; the rest stays.
    Changed,
    /// As `Changed`, and deleted rows too: batches end with the `_op` column, which `ReadPlan::schema`
    /// leaves out. A portion has each key once; of a deleted row only the key means anything, and its
    /// other columns may be NULL whatever the schema says. A batch may lack columns that are not of the
    /// key: then its rows, all of them upserts, keep there what the lake has.
    Log,
}

/// How changes are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChangeDetection {
    /// By what the table offers: a timestamp kept up to date, then an increasing key, else everything.
    #[default]
    Auto,
    /// A timestamp column that every change sets.
    Timestamp,
    /// A version number that every change raises.
    Version,
    /// An increasing key; sees inserts only.
    Id,
    /// Everything, every time; sees deletes.
    Full,
    /// A `rowversion` column of SQL Server, which every change raises.
    Rowversion,
    /// Change Tracking of SQL Server; sees deletes.
    Tracking,
    /// The database's own log: logical replication of Postgres, the binlog of MySQL and MariaDB, the change
    /// tables of SQL Server's Change Data Capture; sees deletes.
    Log,
    /// The history of a system-versioned table of SQL Server; sees deletes.
    Temporal,
    /// Triggers that `frazil setup` installs, and the table of keys that they write; sees deletes.
    Trigger,
}

impl ChangeDetection {
    /// The word of the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Timestamp => "timestamp",
            Self::Version => "version",
            Self::Id => "id",
            Self::Full => "full",
            Self::Rowversion => "rowversion",
            Self::Tracking => "tracking",
            Self::Log => "log",
            Self::Temporal => "temporal",
            Self::Trigger => "trigger",
        }
    }
}

/// What a stream says about the log of its source.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogSettings {
    /// Postgres: the replication slot to read from; `None`: one of our own.
    pub slot: Option<String>,
    /// Postgres: the publication to read; `None`: one of our own.
    pub publication: Option<String>,
    /// How much log may wait on the server for us, in bytes, before it is told.
    pub max_lag: Option<u64>,
    /// Postgres: what happens then.
    pub on_slot_lag: OnSlotLag,
    /// About how many bytes of the log one portion covers; `None`: `ReadRequest::portion_bytes`.
    pub commit_bytes: Option<u64>,
    /// Where this reading ends, if others are to end there too; `None`: where the log does.
    pub up_to: Option<LogPlace>,
}

/// What happens when the source does not have all changes since the position any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnGap {
    /// The whole table is read and compared with the lake; the report says why.
    #[default]
    Resnapshot,
    /// Stop, and say what is missing.
    Fail,
}

/// What happens when more log than [`LogSettings::max_lag`] waits on the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnSlotLag {
    /// The log is read, and the report tells.
    #[default]
    Tell,
    /// The slot is dropped, so that the server may remove the log; the whole table is read and compared.
    Resnapshot,
}

/// What happens to rows whose cursor is NULL, which no comparison ever finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NullCursor {
    /// Read them in the first read; in `merge` tables in every later pass too.
    #[default]
    Include,
    /// Never read them; the report counts them.
    Exclude,
    /// Stop when there is one.
    Fail,
}

/// What happens to rows whose cursor lies beyond the commit-safe horizon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BeyondHorizon {
    /// They wait until the horizon has passed them: each change is read once. The report counts them.
    #[default]
    Wait,
    /// They are read now and again until the horizon has passed them (`merge` tables only).
    Read,
}

/// How values without an exact place in the lake are carried.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", default, deny_unknown_fields)]
pub struct ValuePolicy {
    /// Infinite dates and timestamps, `24:00:00`, and others that lie outside of the lake's types.
    pub out_of_range: OutOfRange,
    /// Numbers that declare no precision, or more than 38 digits.
    pub unbounded_numeric: UnboundedNumeric,
    /// Times that are finer than the microsecond of the lake's types, such as `datetime2(7)`.
    pub sub_microsecond: SubMicrosecond,
    /// What happens to rows with a value that has no place all the same.
    pub on_unfit: OnUnfit,
    /// Types by column, instead of the mapping's own: `text`, `decimal(20,4)`.
    pub types: BTreeMap<String, String>,
}

/// What happens to a row with a value that its column cannot hold, and that no other policy replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnUnfit {
    /// Stop, and name the column.
    #[default]
    Stop,
    /// It goes aside as a dead letter: batches with such rows have [`UNFIT_COLUMN`](crate::table::UNFIT_COLUMN)
    /// at their end. A value of the key stops in either case.
    DeadLetter,
}

/// What happens to a value outside of the range of its lake type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OutOfRange {
    /// Stop, and name the column.
    #[default]
    Fail,
    /// Carry NULL; the report counts them.
    Null,
    /// Carry the nearest value that fits; the report counts them.
    Clamp,
}

/// What happens to the seventh digit of a time's seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SubMicrosecond {
    /// Stop at a value that has one, and name the column.
    #[default]
    Fail,
    /// Cut it off; the report counts such values.
    Truncate,
}

/// How a `numeric` without a declared precision up to 38 digits is carried. Never as a float.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UnboundedNumeric {
    /// As its exact text.
    #[default]
    Text,
    /// Refuse the column until `types` says what it is.
    Fail,
}

/// Something that `frazil check` has to say.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// Whether a run would fail.
    pub severity: Severity,
    /// What is wrong or noteworthy.
    pub message: String,
    /// What to do: a statement to run, where there is one.
    pub remedy: Option<String>,
}

impl From<&Error> for Finding {
    /// What would stop a run.
    fn from(error: &Error) -> Self {
        let remedy = error.hint_text().map(str::to_owned);
        Self { severity: Severity::Error, message: error.to_string(), remedy }
    }
}

/// How bad a [`Finding`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Good to know.
    Note,
    /// A run works, but slower or with less than could be.
    Warning,
    /// A run would fail.
    Error,
}

impl Severity {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}
