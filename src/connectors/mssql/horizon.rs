//! Up to where a cursor can be believed: below the horizon, nothing can still appear.
//!
//! Cursor order is not commit order. A transaction that wrote `changed = 12:00` and commits at one is
//! not seen by a pass at half past twelve; the next would go on after it. So the horizon is taken first,
//! and what is read comes after it:
//!
//! ```text
//! clock ──▶ which transactions are open? ──▶ horizon = the earliest begin ──▶ read [watermark, horizon)
//! ```
//!
//! *Times* have no zone: their writers use `GETDATE()` or `SYSUTCDATETIME()`. The horizon is taken in
//! both, and the earlier counts. *Numbers*: who writes to the table holds an intent lock before it draws
//! one, so what is largest is believed when those that held one have ended. *Row versions*: the server
//! knows the smallest that is still in use.
//!
//! Who may not see the transactions of others gets no horizon of numbers, and one of times that stays
//! [`UNSEEN`] behind: late, but as good as never lost.

use std::time::Duration;

use tiberius::{ColumnData, Row};

use super::choose::Cursor;
use super::column::instant;
use super::discover::{Relation, number};
use super::position::Ticks;
use super::types::TypeOf;
use crate::clients::mssql::{Session, number as error_number};
use crate::connectors::sql::{MSSQL, Number};
use crate::error::{Error, ErrorKind, Result};
use crate::table::TableKind;

/// Assumed to be longer than any transaction, where those of others cannot be seen.
const UNSEEN: Duration = Duration::from_secs(3600);
/// How long we wait for transactions that are writing to the table.
const PATIENCE_WRITERS: Duration = Duration::from_millis(200);
/// How often we look whether they have ended.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// `datetime`, in which begins are kept, is rounded to 1/300 s.
const BEGIN_ROUNDING: i64 = 34_000;
const TICKS_A_MINUTE: i64 = 600_000_000;

/// Up to where to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Horizon<T> {
    /// Times below, numbers up to it are complete. `None`: nothing is sure.
    pub(super) at: Option<T>,
    /// Who holds it back.
    pub(super) held_by: Option<String>,
    /// What else the user should know.
    pub(super) notes: Vec<String>,
}

/// The clock in UTC, its distance from local time in minutes, and whether this is a replica.
pub(super) const CLOCK: &str = "SELECT SYSUTCDATETIME(), DATEPART(tz, SYSDATETIMEOFFSET()), \
     CASE WHEN DATABASEPROPERTYEX(DB_NAME(), 'Updateability') = 'READ_ONLY' THEN 1 ELSE 0 END";

/// Transactions of others that are in this database, the earliest first. Begins are in local time.
const OTHERS: &str = "SELECT TOP (1) a.transaction_begin_time, CAST(COALESCE(s.session_id, 0) AS int) \
     FROM sys.dm_tran_active_transactions a \
     JOIN sys.dm_tran_database_transactions d ON d.transaction_id = a.transaction_id \
     LEFT JOIN sys.dm_tran_session_transactions s ON s.transaction_id = a.transaction_id \
     WHERE d.database_id = DB_ID() AND a.transaction_type <> 2 AND COALESCE(s.session_id, 0) <> @@SPID \
     AND (d.database_transaction_begin_time IS NOT NULL OR s.is_user_transaction = 1) \
     AND NOT EXISTS (SELECT 1 FROM sys.dm_exec_sessions e WHERE e.session_id = s.session_id \
     AND e.context_info = 0x6672617A696C3A2072656164696E67) \
     ORDER BY a.transaction_begin_time";

/// Marks a session as one that only reads, so that passes do not wait for each other.
pub(super) const MARK_READER: &str = "SET CONTEXT_INFO 0x6672617A696C3A2072656164696E67";

/// The horizon of a cursor that counts time.
pub(super) async fn time(session: &mut Session, cursor: &Cursor) -> Result<Horizon<Ticks>> {
    let mut notes = Vec::new();
    // The clock in a statement of its own: by the time of the next one, who began before it can be seen.
    let (clock, offset) = clock(session, &mut notes).await?;
    let mut horizon = begins(session, clock, offset, notes).await?;
    if let Some(at) = &mut horizon.at {
        if cursor.of.base != "datetimeoffset" && offset != 0 {
            // Local time is ahead of UTC or behind it; whatever the column holds, the earlier is safe.
            at.0 += offset.min(0) * TICKS_A_MINUTE;
            horizon.notes.push(format!(
                "`{}` has no time zone and the server is {offset} minutes from UTC: what was written in the last {} minutes may wait",
                cursor.name,
                offset.abs()
            ));
            if offset < 0 {
                // Nothing here tells when clocks are set back; east of UTC the wait is longer than that hour.
                horizon.notes.push(format!(
                    "where clocks are set back by an hour, rows of the hour that comes twice may be passed over: \
                     set `lag: 1h` for that night, or make `{}` a `datetimeoffset`",
                    cursor.name
                ));
            }
        }
        *at = at.floor(&cursor.of);
    }
    Ok(horizon)
}

/// The horizon of begins of transactions in UTC, and the clock that it was taken by.
pub(super) async fn begin_times(session: &mut Session, of: &TypeOf) -> Result<(Horizon<Ticks>, Ticks)> {
    let mut notes = Vec::new();
    let (clock, offset) = clock(session, &mut notes).await?;
    let mut horizon = begins(session, clock, offset, notes).await?;
    horizon.at = horizon.at.map(|at| at.floor(of));
    Ok((horizon, clock))
}

/// The clock, or the begin of the earliest transaction that is open, in UTC.
async fn begins(
    session: &mut Session,
    clock: Ticks,
    offset: i64,
    mut notes: Vec<String>,
) -> Result<Horizon<Ticks>> {
    let mut at = clock;
    let mut held_by = None;
    match session.rows(OTHERS).await {
        Ok(rows) => {
            let begin = rows.first().and_then(|row| {
                let local = moment(row, 0)?;
                Some((Ticks(local.0 - offset * TICKS_A_MINUTE - BEGIN_ROUNDING), number(row, 1)))
            });
            if let Some((begin, pid)) = begin.filter(|(begin, _)| *begin < at) {
                at = begin;
                held_by = Some(format!("the transaction of session {pid}, open since {}", begin.shown()));
            }
        }
        Err(error) if error.kind() == ErrorKind::Permission => {
            at = at.minus(UNSEEN);
            notes.push(format!("the user may not see who is writing: {GRANT}; until then the watermark stays an hour behind, and what is younger is read again"));
        }
        Err(error) => return Err(error),
    }
    Ok(Horizon { at: Some(at), held_by, notes })
}

/// The right that shows the transactions of others.
const GRANT: &str =
    "run `GRANT VIEW SERVER STATE TO <login>` (Azure SQL Database: `GRANT VIEW DATABASE STATE TO <user>`)";

/// The clock in UTC, and local time's minutes ahead of it.
pub(super) async fn clock(session: &mut Session, notes: &mut Vec<String>) -> Result<(Ticks, i64)> {
    let rows = session.rows(CLOCK).await?;
    let row = rows.first().ok_or_else(|| Error::new(ErrorKind::Internal, "the server tells no time"))?;
    let now = moment(row, 0).ok_or_else(|| Error::new(ErrorKind::Internal, "the server tells no time"))?;
    if number(row, 2) == 1 {
        notes.push(
            "this is a replica: transactions on its primary are invisible; set `lag` to the longest of them"
                .to_owned(),
        );
    }
    Ok((now, i64::from(number(row, 1))))
}

fn moment(row: &Row, at: usize) -> Option<Ticks> {
    let cell: &ColumnData<'static> = row.get_column_data(at).ok()?;
    instant(cell).ok().map(Ticks)
}

/// The horizon of a cursor that counts by itself.
pub(super) async fn identity(
    session: &mut Session,
    relation: &Relation,
    cursor: &Cursor,
    wait: bool,
) -> Result<Horizon<Number>> {
    let largest =
        format!("SELECT CAST(MAX({}) AS bigint) FROM {}", MSSQL.ident(&cursor.name), relation.quoted());
    let rows = session.rows(&largest).await?;
    let at = rows.first().and_then(|row| row.try_get::<i64, _>(0).ok().flatten()).map(Number);
    let mut writers = writers(session, relation).await.map_err(|error| match error_number(&error) {
        Some(297 | 300) => error.hint(format!("{GRANT}, so that rows of open transactions are not missed")),
        _ => error,
    })?;
    let first = writers.clone();
    let mut waited = Duration::ZERO;
    let patience = if wait { PATIENCE_WRITERS } else { Duration::ZERO };
    while writers.iter().any(|writer| first.contains(writer)) {
        if waited >= patience {
            let held_by = Some("a transaction that is writing to the table".to_owned());
            return Ok(Horizon { at: None, held_by, notes: Vec::new() });
        }
        tokio::time::sleep(LOOK_AGAIN).await;
        waited += LOOK_AGAIN;
        writers = self::writers(session, relation).await?;
    }
    Ok(Horizon { at, held_by: None, notes: Vec::new() })
}

/// Transactions that hold a lock under which rows can be written: of the table, or of any where we
/// cannot tell which tables are behind.
async fn writers(session: &mut Session, relation: &Relation) -> Result<Vec<i64>> {
    let of = match relation.kind {
        TableKind::Table => format!("AND resource_associated_entity_id = {}", relation.object),
        _ => String::new(),
    };
    let sql = format!(
        "SELECT DISTINCT CAST(request_owner_id AS bigint) FROM sys.dm_tran_locks \
         WHERE resource_database_id = DB_ID() AND resource_type = 'OBJECT' {of} \
         AND request_mode IN ('IX', 'SIX', 'UIX', 'X', 'BU', 'Sch-M') AND request_status = 'GRANT' \
         AND request_session_id <> @@SPID"
    );
    let rows = session.rows(&sql).await?;
    Ok(rows.iter().filter_map(|row| row.try_get::<i64, _>(0).ok().flatten()).collect())
}

/// The smallest row version that is still in use: what is below it is complete. It needs no right, and
/// no waiting; a transaction that stays open holds it back.
pub(super) async fn row_version(session: &mut Session) -> Result<Number> {
    let rows = session.rows("SELECT CAST(MIN_ACTIVE_ROWVERSION() AS bigint)").await?;
    rows.first()
        .and_then(|row| row.try_get::<i64, _>(0).ok().flatten())
        .map(Number)
        .ok_or_else(|| Error::new(ErrorKind::Internal, "the server tells no row version"))
}
