//! Reads rows in one transaction on a thread of its own, portion by portion.
//!
//! ```text
//! async side                       thread `sqlite-read`
//! next() ── job: SELECT ─────────▶ step, decode
//! stream ◀── batches, then end ──── (waits when two batches are not taken)
//! ```
//!
//! All portions see one state of the database: the transaction stays open until the last is read, or the
//! reading is dropped. A stream that breaks off without its end is an error, so a lost thread loses no row.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::RecordBatch;
use async_trait::async_trait;
use rusqlite::Connection as Database;
use rusqlite::types::ValueRef;
use tokio::sync::mpsc;

use super::decode::{self, Replaced, Rows};
use super::describe;
use super::horizon;
use super::plan::{At, Cursor, Resolved, Start, resolve};
use super::value::DAY;
use super::window::Window;
use crate::clients::sqlite::File;
use crate::connectors::sql::{self, Unfit};
use crate::delta::Watermark;
use crate::error::{Error, ErrorKind, Result};
use crate::source::{BeyondHorizon, NullCursor, Portion, ReadPlan, ReadRequest, Reading, RowStream};

/// One batch is decoded while another is written to the lake.
const BATCHES_AHEAD: usize = 1;
/// Room made for rows before the first comes.
const FIRST_ROWS: usize = 8192;
/// A first read is cut into at most so many portions: each costs a commit.
const MOST_PORTIONS: i128 = 1000;
/// Rows beyond the horizon or without a cursor are counted up to here for a note.
const COUNTED_ROWS: usize = 1000;
/// A time without seconds that is so young may be of a row that was written after a later watermark.
const YOUNG: i64 = 2 * DAY;

/// A read under way.
pub(super) struct SqliteReading {
    plan: ReadPlan,
    jobs: std::sync::mpsc::Sender<Job>,
    portions: VecDeque<PlannedPortion>,
    replaced: Replaced,
}

struct PlannedPortion {
    sql: String,
    resume: Watermark,
    complete: bool,
}

/// `Ok(None)` ends a stream.
type Batches = mpsc::Sender<Result<Option<RecordBatch>>>;

struct Job {
    sql: String,
    batches: Batches,
    /// Nothing is read after it.
    last: bool,
}

/// Opens the file, takes the horizon, begins the transaction, and starts the thread. Blocks.
pub(super) fn open(file: &File, request: ReadRequest, clock: impl Fn() -> i64) -> Result<SqliteReading> {
    let database = file.open()?;
    let described = describe::find(file, &database, &request.table)?;
    let mut resolved = resolve(&request, &described)?;
    let shape = version(file, &database)?;
    let horizon = horizon::take(file, &database, &request, &resolved, clock)?;
    let failed = |error| file.error(error);
    database.execute_batch("PRAGMA query_only = ON; BEGIN").map_err(failed)?;
    // This read is the first in the transaction, and so makes its snapshot.
    if version(file, &database)? != shape {
        return Err(file
            .locate(Error::new(ErrorKind::Transient, "the schema changed while the read began"))
            .with("table", &request.table)
            .hint("run again"));
    }
    let window = resolved.window(&request, Some(horizon.at));
    resolved.plan.notes.extend(horizon.notes.iter().cloned());
    note_rows_left_out(&database, &request, &mut resolved, &window).map_err(failed)?;
    let end = horizon::end(&database, &request, &resolved, horizon.at).map_err(failed)?;
    let portions = portions(&database, &request, &resolved, &window, end, horizon.at).map_err(failed)?;
    resolved.plan.statement = portions.front().map(|portion| portion.sql.clone()).unwrap_or_default();
    let plan = resolved.plan.clone();
    let reader =
        Reader { file: file.clone(), request, resolved, window, now: horizon.now, replaced: Arc::default() };
    reader.start(database, plan, portions)
}

/// A read of one statement, decided elsewhere.
pub(super) struct Planned {
    pub(super) plan: ReadPlan,
    /// How its rows are decoded; they may have more columns than the plan tells of.
    pub(super) resolved: Resolved,
    pub(super) statement: String,
    pub(super) resume: Watermark,
}

/// Starts it, in the transaction that is open.
pub(super) fn start(
    file: &File,
    database: Database,
    request: ReadRequest,
    planned: Planned,
) -> Result<SqliteReading> {
    let Planned { plan, resolved, statement, resume } = planned;
    let window = resolved.window(&request, None);
    let portions = [PlannedPortion { sql: statement, resume, complete: true }].into();
    let reader = Reader { file: file.clone(), request, resolved, window, now: 0, replaced: Arc::default() };
    reader.start(database, plan, portions)
}

impl Reader {
    /// Reads from now on, on a thread of its own, what it is told to.
    fn start(
        mut self,
        database: Database,
        plan: ReadPlan,
        portions: VecDeque<PlannedPortion>,
    ) -> Result<SqliteReading> {
        let (jobs, todo) = std::sync::mpsc::channel::<Job>();
        let replaced: Replaced = Arc::new(self.resolved.columns.iter().map(|_| AtomicU64::new(0)).collect());
        self.replaced = Arc::clone(&replaced);
        let reader = self;
        std::thread::Builder::new()
            .name("sqlite-read".into())
            .spawn(move || {
                for job in todo {
                    let outcome = reader.run(&database, &job);
                    if job.last {
                        // Without a write-ahead log, who reads keeps others from writing: us too, who will
                        // note how far we are.
                        let _ = database.execute_batch("ROLLBACK");
                    }
                    // Whoever dropped the stream wants neither the end nor the error.
                    let _ = job.batches.blocking_send(outcome.map(|()| None));
                }
            })
            .map_err(|source| Error::new(ErrorKind::Transient, "no thread to read with").because(source))?;
        Ok(SqliteReading { plan, jobs, portions, replaced })
    }
}

fn version(file: &File, database: &Database) -> Result<i64> {
    database.pragma_query_value(None, "schema_version", |row| row.get(0)).map_err(|error| file.error(error))
}

/// Tells the user of rows that this pass does not read, as far as an index makes that cheap.
fn note_rows_left_out(
    database: &Database,
    request: &ReadRequest,
    resolved: &mut Resolved,
    window: &Window,
) -> rusqlite::Result<()> {
    let Cursor::Time { column, indexed: true, .. } = &resolved.cursor else { return Ok(()) };
    let up_to = |count: usize| {
        if count < COUNTED_ROWS { count.to_string() } else { format!("{count} or more") }
    };
    if let Some((_, to)) = window.times
        && to != i64::MAX
        && request.beyond_horizon == BeyondHorizon::Wait
    {
        let later = resolved.count_times(database, request, to, i64::MAX, COUNTED_ROWS)?;
        if later > 0 {
            let note = format!("{} rows lie in the future by `{column}` and wait", up_to(later));
            resolved.plan.notes.push(note);
        }
    }
    if request.null_cursor == NullCursor::Exclude {
        let name = crate::connectors::sql::SQLITE.ident(column);
        let table = crate::connectors::sql::SQLITE.ident(&request.table.name);
        let count: i64 = database.query_row(
            &format!(
                "SELECT count(*) FROM (SELECT 1 FROM main.{table} WHERE {name} IS NULL LIMIT {COUNTED_ROWS})"
            ),
            [],
            |row| row.get(0),
        )?;
        if count > 0 {
            resolved.plan.notes.push(format!(
                "{} rows have no `{column}` and are not read",
                up_to(count.unsigned_abs() as usize)
            ));
        }
    }
    Ok(())
}

/// One portion, or ranges of row ids that can be resumed.
fn portions(
    database: &Database,
    request: &ReadRequest,
    resolved: &Resolved,
    window: &Window,
    end: At,
    horizon: i64,
) -> rusqlite::Result<VecDeque<PlannedPortion>> {
    let select = resolved.select(request, window, None);
    let last = |sql| PlannedPortion { sql, resume: end.clone().watermark(), complete: true };
    let (Some(row_id), Cursor::Time { column, .. }, true) =
        (resolved.row_id, &resolved.cursor, resolved.plan.resumable)
    else {
        return Ok([last(select)].into());
    };
    let (done, horizon) = match resolved.start {
        Start::After(_) => return Ok([last(select)].into()),
        Start::Whole => (None, horizon),
        Start::Within { horizon, row_id } => (Some(row_id), horizon),
    };
    let table = crate::connectors::sql::SQLITE.ident(&request.table.name);
    let (low, high): (Option<i64>, Option<i64>) =
        database.query_row(&format!("SELECT min({row_id}), max({row_id}) FROM main.{table}"), [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
    let low = i128::from(done.max(low.map(|low| low.saturating_sub(1))).unwrap_or(0));
    let high = i128::from(high.unwrap_or(0));
    let bytes = match resolved.plan.bytes {
        Some(bytes) => bytes,
        None => describe::file_bytes(database)?,
    };
    let count = i128::from(bytes.div_ceil(request.portion_bytes.max(1))).clamp(1, MOST_PORTIONS);
    let width = ((high - low) / count + 1).max(1);

    let ranged = |range: String| resolved.select(request, window, Some(&range));
    let mut portions = VecDeque::new();
    let mut from = low;
    let mut begun = done.is_some();
    while from + width < high {
        let to = from + width;
        let lower = if begun { format!("{row_id} > {from} AND ") } else { String::new() };
        let resume =
            At::FirstRead { column: column.clone(), at: horizon.to_string(), row_id: to.to_string() }
                .watermark();
        portions.push_back(PlannedPortion {
            sql: ranged(format!("{lower}{row_id} <= {to}")),
            resume,
            complete: false,
        });
        (from, begun) = (to, true);
    }
    let rest = if begun { ranged(format!("{row_id} > {from}")) } else { select.clone() };
    portions.push_back(last(rest));
    Ok(portions)
}

struct Reader {
    file: File,
    request: ReadRequest,
    resolved: Resolved,
    window: Window,
    now: i64,
    replaced: Replaced,
}

impl Reader {
    /// Sends all rows of a job, in batches. Ends early when nobody listens any more.
    fn run(&self, database: &Database, job: &Job) -> Result<()> {
        let failed = |error| self.file.error(error).with("table", &self.request.table);
        let most_rows = self.request.batch_rows.max(1);
        let mut batch = Rows::new(
            self.request.table.clone(),
            self.resolved.columns.clone(),
            self.resolved.plan.schema.clone(),
            self.request.values.out_of_range,
            Arc::clone(&self.replaced),
            Unfit::of(&self.resolved.plan.schema, &self.request),
            FIRST_ROWS.min(most_rows),
        );
        let checks = self.resolved.checks_cursor(&self.request, &self.window);
        let cursor_at = self.resolved.columns.len();
        let mut statement = database.prepare(&job.sql).map_err(failed)?;
        let mut rows = statement.query([]).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            if checks && !self.wanted(row.get_ref(cursor_at).map_err(failed)?)? {
                continue;
            }
            batch.push(row)?;
            let full = batch.len() >= most_rows || batch.bytes() >= self.request.batch_bytes;
            if full && job.batches.blocking_send(Ok(Some(batch.finish()?))).is_err() {
                return Ok(());
            }
        }
        if batch.len() > 0 {
            let _ = job.batches.blocking_send(Ok(Some(batch.finish()?)));
        }
        Ok(())
    }

    /// Whether a row belongs to the window, by the exact value of its cursor.
    fn wanted(&self, value: ValueRef<'_>) -> Result<bool> {
        let (column, kind) = match &self.resolved.cursor {
            Cursor::Full => return Ok(true),
            Cursor::Time { column, kind, .. } => (column, Some(*kind)),
            Cursor::Number { column, .. } => (column, None),
        };
        let refuse = || decode::refuse_cursor(&self.request.table, column, value);
        if matches!(value, ValueRef::Null) {
            if self.request.null_cursor == NullCursor::Fail {
                return Err(Error::new(ErrorKind::Data, "the cursor is NULL in a row")
                    .with("table", &self.request.table)
                    .with("column", column)
                    .hint("set it, or choose `null_cursor: include` or `exclude`"));
            }
            return Ok(true); // the statement left out what the policy leaves out
        }
        let Some(kind) = kind else {
            return if matches!(value, ValueRef::Integer(_)) { Ok(true) } else { Err(refuse()) };
        };
        let stamp = decode::stamp(value, kind).ok_or_else(refuse)?;
        if stamp.coarse && stamp.micros > self.now.saturating_sub(YOUNG) {
            return Err(Error::new(
                ErrorKind::Data,
                "a recent cursor value has no seconds, so later changes may carry the same",
            )
            .with("table", &self.request.table)
            .with("column", column)
            .hint("write it with seconds, or use `change: full`"));
        }
        Ok(self.window.times.is_none_or(|(from, to)| (from..to).contains(&stamp.micros)))
    }
}

impl SqliteReading {
    /// Says, at the end, what the policy replaced.
    fn note_replaced(&mut self) {
        for (field, count) in self.plan.schema.fields().iter().zip(self.replaced.iter()) {
            let count = count.swap(0, Ordering::Relaxed);
            if count > 0 {
                let note = format!("{count} values of `{}` were replaced by `out_of_range`", field.name());
                self.plan.notes.push(note);
            }
        }
    }
}

#[async_trait]
impl Reading for SqliteReading {
    fn plan(&self) -> &ReadPlan {
        &self.plan
    }

    async fn next(&mut self) -> Result<Option<Portion>> {
        let Some(planned) = self.portions.pop_front() else {
            self.note_replaced();
            return Ok(None);
        };
        let (batches, received) = mpsc::channel(BATCHES_AHEAD);
        // When the thread is gone, the sender in the lost job is too, and the stream says so.
        let _ = self.jobs.send(Job { sql: planned.sql, batches, last: planned.complete });
        let stream: RowStream = Box::pin(futures::stream::unfold(Some(received), |received| async {
            let mut received = received?;
            match received.recv().await {
                Some(Ok(Some(batch))) => Some((sql::cast_ops(batch), Some(received))),
                Some(Ok(None)) => None,
                Some(Err(error)) => Some((Err(error), None)),
                None => Some((Err(Error::new(ErrorKind::Internal, "the reading thread is gone")), None)),
            }
        }));
        Ok(Some(Portion {
            streams: vec![stream],
            resume: planned.resume,
            complete: planned.complete,
            oldest: None,
        }))
    }
}
