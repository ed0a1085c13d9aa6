//! SQLite as a target.
//!
//! ```text
//! async side                    blocking thread
//! changes ──▶ batches ────────▶ BEGIN IMMEDIATE
//!                               the record says `from`, or Conflict
//! end of changes ── Finish ───▶ rows, then the record says `to`, COMMIT
//! ```
//!
//! The write lock comes first, so a second runner waits for the first one's end and then finds the
//! record moved. Only a stream that ended well is committed: a broken one rolls everything back.

use std::sync::Arc;

use arrow::array::RecordBatch;
use async_trait::async_trait;
use futures::StreamExt;
use rusqlite::{Connection as Database, OptionalExtension, params};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::beside::Beside;
use super::shape::{self, CONTROL};
use super::write::Writer;
use crate::clients::sqlite::{File, on_a_thread};
use crate::connection::Connection;
use crate::connectors::sql::{SQLITE, lake_ids};
use crate::delta::SnapshotId;
use crate::error::{Error, ErrorKind, Result};
use crate::faults;
use crate::source::{Finding, Severity};
use crate::table::TableId;
use crate::target::{
    Applied, Conflicts, Merge, MergeStats, Refusals, Strategy, TURN, Target, TargetTable, Turn,
};

/// One batch is written while the next is merged.
const BATCHES_AHEAD: usize = 1;

/// A target that opens its file when first used, and makes it when it prepares a table.
pub(super) fn open(connection: &Connection) -> Result<Arc<dyn Target>> {
    Ok(Arc::new(SqliteTarget { file: File::of(connection)? }))
}

struct SqliteTarget {
    file: File,
}

impl SqliteTarget {
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&File) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let file = self.file.clone();
        on_a_thread(move || work(&file)).await
    }

    async fn change(
        &self,
        merge: Merge,
        refusals: Option<Arc<dyn Refusals>>,
        conflicts: Option<Arc<dyn Conflicts>>,
    ) -> Result<MergeStats> {
        let Merge { stream, table, from, to, turn, strategy, mut changes, rows: _ } = merge;
        let (sender, batches) = mpsc::channel(BATCHES_AHEAD);
        let runtime = Handle::current();
        let move_ = Move { stream, table, from, to, turn, strategy, refusals, conflicts, runtime };
        let file = self.file.clone();
        let load = on_a_thread(move || load(&file, &move_, batches));
        while let Some(batch) = changes.next().await {
            // An error here drops the sender without Finish, and the load rolls back.
            if sender.send(Step::Batch(batch?)).await.is_err() {
                return load.await;
            }
        }
        let _ = sender.send(Step::Finish).await; // a load that failed says why itself
        drop(sender);
        load.await
    }
}

#[async_trait]
impl Target for SqliteTarget {
    fn as_source(&self, table: &TableId) -> TableId {
        TableId::bare(shape::local(table))
    }

    async fn plan(&self, table: &TargetTable) -> Result<Vec<String>> {
        let table = table.clone();
        self.blocking(move |file| shape::statements(file, &file.open_or_imagine()?, &table)).await
    }

    async fn prepare(&self, table: &TargetTable) -> Result<()> {
        let table = table.clone();
        self.blocking(move |file| {
            let database = file.open_or_create()?;
            let statements = shape::statements(file, &database, &table)?;
            if statements.is_empty() {
                return Ok(());
            }
            let failed = |error| file.error(error).with("table", &table.id);
            database.execute_batch("BEGIN IMMEDIATE").map_err(failed)?;
            // Under the lock once more: another runner may have done it in the meantime.
            for statement in shape::statements(file, &database, &table)? {
                database.execute_batch(&statement).map_err(failed)?;
            }
            database.execute_batch("COMMIT").map_err(failed)
        })
        .await
    }

    async fn applied(&self, stream: &str, table: &TableId) -> Result<Option<Applied>> {
        let (stream, table) = (stream.to_owned(), table.clone());
        self.blocking(move |file| {
            if !file.path.exists() {
                return Ok(None);
            }
            applied(&file.open()?, &stream, &shape::local(&table))
                .map_err(|error| file.error(error).with("table", &table))
        })
        .await
    }

    async fn apply(&self, merge: Merge) -> Result<MergeStats> {
        self.change(merge, None, None).await
    }

    async fn apply_but(&self, merge: Merge, refusals: Arc<dyn Refusals>) -> Result<MergeStats> {
        self.change(merge, Some(refusals), None).await
    }

    async fn apply_beside(&self, merge: Merge, conflicts: Arc<dyn Conflicts>) -> Result<MergeStats> {
        self.change(merge, None, Some(conflicts)).await
    }

    async fn preflight(&self, table: &TargetTable) -> Result<Vec<Finding>> {
        let table = table.clone();
        self.blocking(move |file| {
            let mut findings = Vec::new();
            let mut find = |severity, message: String, remedy: Option<String>| {
                findings.push(Finding { severity, message, remedy });
            };
            let database = match file.open_or_imagine() {
                Ok(database) => database,
                Err(error) => {
                    find(Severity::Error, error.to_string(), error.hint_text().map(str::to_owned));
                    return Ok(findings);
                }
            };
            if database.is_readonly("main").map_err(|error| file.error(error))? {
                find(
                    Severity::Error,
                    format!("{} may only be read", file.path.display()),
                    Some("give this user the right to write to the file".into()),
                );
            }
            if let Err(error) = shape::statements(file, &database, &table) {
                find(Severity::Error, error.to_string(), error.hint_text().map(str::to_owned));
            }
            let mode: String = database
                .pragma_query_value(None, "journal_mode", |row| row.get(0))
                .map_err(|error| file.error(error))?;
            if file.path.exists() && mode != "wal" {
                find(
                    Severity::Note,
                    format!("the journal mode is {mode}: readers wait while a load commits"),
                    Some("PRAGMA journal_mode = wal".into()),
                );
            }
            Ok(findings)
        })
        .await
    }
}

/// Which change to apply to what.
struct Move {
    stream: String,
    table: TargetTable,
    from: Option<Applied>,
    to: Applied,
    turn: Option<Turn>,
    strategy: Strategy,
    /// Where refused rows go; without it the first one ends the load.
    refusals: Option<Arc<dyn Refusals>>,
    /// Who decides about rows that others changed; without it nobody looks.
    conflicts: Option<Arc<dyn Conflicts>>,
    /// Where they are kept, while this thread waits.
    runtime: Handle,
}

enum Step {
    Batch(RecordBatch),
    Finish,
}

fn load(file: &File, move_: &Move, mut batches: mpsc::Receiver<Step>) -> Result<MergeStats> {
    let failed = |error| file.error(error).with("table", &move_.table.id);
    let database = file.open_or_create()?;
    // Dropping the connection on any way out but COMMIT rolls back.
    database.execute_batch("BEGIN IMMEDIATE").map_err(failed)?;
    let name = shape::local(&move_.table.id);
    let moves = [(move_.stream.as_str(), move_.from)].into_iter();
    for (stream, from) in moves.chain(move_.turn.map(|turn| (TURN, turn.from))) {
        if applied(&database, stream, &name).map_err(failed)? != from {
            return Err(Error::new(ErrorKind::Conflict, "another runner moved the target table")
                .with("table", &move_.table.id)
                .with("stream", &move_.stream)
                .hint("nothing of this run was applied; the next run goes on from there"));
        }
    }
    let stats = write(file, &database, move_, &mut batches)?;
    if let Some(conflicts) = &move_.conflicts {
        move_.runtime.block_on(conflicts.keep())?;
    }
    let columns = serde_json::to_string(&lake_ids(&move_.table.schema)).expect("names are text");
    let staged = i64::try_from(stats.staged).unwrap_or(i64::MAX);
    record(&database, (&move_.stream, &name), move_.to, staged, &columns).map_err(failed)?;
    if let Some(turn) = move_.turn {
        record(&database, (TURN, &name), turn.to, 0, "{}").map_err(failed)?;
    }
    faults::point(faults::IN_LOAD_TRANSACTION)?;
    database.execute_batch("COMMIT").map_err(failed)?;
    faults::point(faults::AFTER_LOAD)?;
    Ok(stats)
}

/// Says what a table shows.
fn record(
    database: &Database,
    (stream, table): (&str, &str),
    to: Applied,
    rows: i64,
    columns: &str,
) -> rusqlite::Result<usize> {
    database.execute(
        &format!(
            "INSERT OR REPLACE INTO {CONTROL} (stream, target_table, lake_table, snapshot_id, applied_at, rows, columns, halfway)
             VALUES (?1, ?2, ?3, ?4, strftime('%Y-%m-%d %H:%M:%f', 'now'), ?5, json_patch({NOTED}, ?6), ?7)"
        ),
        params![
            stream,
            table,
            to.lake_table.to_string(),
            to.snapshot.0,
            rows,
            columns,
            to.halfway.map(|halfway| halfway.to_string())
        ],
    )
}

/// Writes all batches.
fn write(
    file: &File,
    database: &Database,
    move_: &Move,
    batches: &mut mpsc::Receiver<Step>,
) -> Result<MergeStats> {
    let mut each = |write: &mut dyn FnMut(&RecordBatch) -> Result<()>| loop {
        match batches.blocking_recv() {
            Some(Step::Batch(batch)) => write(&batch)?,
            Some(Step::Finish) => return Ok(()),
            None => {
                return Err(Error::new(ErrorKind::Transient, "the changes broke off; nothing was applied")
                    .with("table", &move_.table.id));
            }
        }
    };
    if let (Strategy::Merge, Some(conflicts)) = (move_.strategy, &move_.conflicts) {
        let mut beside = Beside::new(file, database, &move_.table, conflicts.as_ref())?;
        each(&mut |batch| beside.write(batch))?;
        return beside.finish();
    }
    let mut writer = Writer::new(file, database, &move_.table, move_.strategy, move_.refusals.as_deref())?;
    each(&mut |batch| writer.write(batch))?;
    let refused = writer.refused()?;
    if let (Some(refusals), false) = (&move_.refusals, refused.is_empty()) {
        move_.runtime.block_on(refusals.keep(refused))?;
    }
    Ok(writer.stats())
}

/// Columns that the lake does not have any more stay noted: the table keeps them, and their names may
/// become those of others.
const NOTED: &str =
    "coalesce((SELECT columns FROM frazil_applied WHERE stream = ?1 AND target_table = ?2), '{}')";

/// What the record says, if the table is there too.
fn applied(database: &Database, stream: &str, table: &str) -> rusqlite::Result<Option<Applied>> {
    if !shape::exists(database, CONTROL)? || !shape::exists(database, table)? {
        return Ok(None);
    }
    database
        .query_row(
            &format!(
                "SELECT lake_table, snapshot_id, halfway FROM {} WHERE stream = ?1 AND target_table = ?2",
                SQLITE.ident(CONTROL)
            ),
            [stream, table],
            |row| {
                let lake_table: String = row.get(0)?;
                let halfway: Option<String> = row.get(2)?;
                let unread = |column, error| {
                    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, error)
                };
                Ok(Applied {
                    lake_table: Uuid::parse_str(&lake_table).map_err(|error| unread(0, error.into()))?,
                    snapshot: SnapshotId(row.get(1)?),
                    halfway: halfway
                        .map(|text| text.parse())
                        .transpose()
                        .map_err(|error: Error| unread(2, error.into()))?,
                })
            },
        )
        .optional()
}
