//! Up to where a cursor can be believed: below the horizon, nothing can still appear.
//!
//! Cursor order is not commit order. A transaction that began at noon and commits at one writes
//! `now()` = noon; a pass at half past twelve that went on from half past twelve would never see it.
//! So the horizon is taken first, and the snapshot that is read comes after it:
//!
//! ```text
//! clock ──▶ who is writing? ──▶ horizon ──▶ snapshot ──▶ read [watermark, horizon)
//!   │            │
//!   └── whoever begins later writes later times        horizon = the earliest start of those before
//! ```
//!
//! *Time.* Every transaction of this database that began before the clock was read is still in
//! `pg_stat_activity` when we look, or has ended and is visible to the snapshot. Starts that we may
//! not see belong to virtual transactions that we may: we wait for exactly these, for a moment.
//! Prepared transactions show no start, but the tables that they have written.
//!
//! *Numbers.* An INSERT locks its table before it draws from the sequence. So whoever drew a number
//! below the maximum that we see holds that lock when we look after it, or has ended. Numbers that are
//! drawn without an INSERT (reserved in blocks by an application) are beyond any horizon.
//!
//! What cannot be waited for holds the horizon back, and a note says who: late, but never lost.

use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, Type};

use super::choose::{Cursor, Order};
use super::discover::Relation;
use super::position::Micros;
use crate::clients::postgres::Session;
use crate::connectors::sql::{Number, POSTGRES};
use crate::error::{Error, ErrorKind, Result};
use crate::table::TableKind;

/// The name under which our own reading transactions run: they write nothing and hold nothing back.
pub(super) const READER_NAME: &str = "frazil: reading";

/// How long we wait for transactions whose start we may not see.
const PATIENCE_HIDDEN: Duration = Duration::from_secs(1);
/// How long we wait for transactions that are writing to the table.
const PATIENCE_WRITERS: Duration = Duration::from_millis(200);
/// How often we look whether they have ended.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

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

/// The horizon of a cursor that counts time.
pub(super) async fn time(
    session: &Session,
    relation: &Relation,
    cursor: &Cursor,
    wait: bool,
) -> Result<Horizon<Micros>> {
    let mut notes = elsewhere(session, relation);
    // The clock in a statement of its own: by the time of the next one, who began before it can be seen.
    let Some(mut at) = clock(session).await? else {
        notes.push("this replica has replayed nothing yet: nothing is sure".to_owned());
        return Ok(Horizon { at: None, held_by: None, notes });
    };
    let params = [(&READER_NAME as &(dyn tokio_postgres::types::ToSql + Sync), Type::TEXT)];
    let others = session.query_typed(OTHERS, &params).await?;
    let mut held_by = None;
    let mut hidden = Vec::new();
    for row in &others {
        let pid: i32 = row.get(0);
        match (row.get::<_, Option<Instant>>(1), row.get::<_, Option<String>>(2)) {
            (Some(Instant(start)), _) if start < at.0 => {
                at = Micros(start);
                held_by = Some(format!("the transaction of process {pid}, open since {}", at.shown()));
            }
            (None, Some(virtual_id)) => hidden.push(virtual_id),
            _ => {}
        }
    }
    if !hidden.is_empty() {
        notes.push(
            "starts of other users' transactions are hidden; run `GRANT pg_read_all_stats TO <user>`"
                .to_owned(),
        );
        let patience = if wait { PATIENCE_HIDDEN } else { Duration::ZERO };
        if let Some(pid) = outlast(session, HIDDEN_STILL, &hidden, patience).await? {
            let held_by = Some(format!("process {pid}, the start of whose transaction is hidden"));
            return Ok(Horizon { at: None, held_by, notes });
        }
    }
    if let Some(row) = session.query_typed(&writers(relation, "l.pid IS NULL"), &[]).await?.first() {
        let held_by = Some(format!(
            "the prepared transaction {}, which has written to the table",
            row.get::<_, String>(0)
        ));
        return Ok(Horizon { at: None, held_by, notes });
    }
    let Order::Time { digits } = cursor.order else {
        return Err(Error::new(ErrorKind::Internal, "a horizon of time for a cursor of numbers"));
    };
    if cursor.base != "timestamptz" {
        let zone = &session.server().time_zone;
        at = local(session, at, zone, &cursor.base).await?;
        notes.push(format!(
            "`{}` has no time zone: its values are taken for times of {zone}, the server's",
            cursor.name
        ));
    }
    Ok(Horizon { at: Some(at.floor(digits)), held_by, notes })
}

/// The horizon of a cursor that counts from a sequence.
pub(super) async fn number(
    session: &Session,
    relation: &Relation,
    cursor: &Cursor,
    wait: bool,
) -> Result<Horizon<Number>> {
    let notes = elsewhere(session, relation);
    let largest = format!("SELECT max({})::int8 FROM {}", POSTGRES.ident(&cursor.name), relation.quoted());
    let at = session
        .query_typed(&largest, &[])
        .await?
        .first()
        .and_then(|row| row.get::<_, Option<i64>>(0))
        .map(Number);
    let look = writers(relation, "true");
    let ids: Vec<String> = session.query_typed(&look, &[]).await?.iter().map(|row| row.get(0)).collect();
    if !ids.is_empty() {
        let patience = if wait { PATIENCE_WRITERS } else { Duration::ZERO };
        let still = writers(relation, "l.virtualtransaction = ANY($1)");
        if let Some(pid) = outlast(session, &still, &ids, patience).await? {
            let held_by = Some(format!("process {pid}, which is writing to the table"));
            return Ok(Horizon { at: None, held_by, notes });
        }
    }
    Ok(Horizon { at, held_by: None, notes })
}

/// On a replica, time is what has been replayed: a commit that comes later is not there yet. `least` would leave out
/// a NULL, and one that has replayed nothing since it was started has no such time.
const CLOCK: &str = "SELECT CASE WHEN NOT pg_is_in_recovery() THEN clock_timestamp() \
     WHEN pg_last_xact_replay_timestamp() IS NOT NULL THEN least(clock_timestamp(), pg_last_xact_replay_timestamp()) END";

/// It has all that its primary had committed when the checkpoint was made that it was started from.
const CHECKPOINT: &str = "SELECT least(clock_timestamp(), checkpoint_time) FROM pg_control_checkpoint()";

/// What was committed before this time is there; `None`: nobody knows.
pub(super) async fn clock(session: &Session) -> Result<Option<Micros>> {
    let time = |rows: &[Row]| rows.first().and_then(|row| row.get::<_, Option<Instant>>(0));
    let now = time(&session.query_typed(CLOCK, &[]).await?);
    let at = match now {
        Some(now) => Some(now),
        // Not everybody may know.
        None => session.query_typed(CHECKPOINT, &[]).await.ok().and_then(|rows| time(&rows)),
    };
    Ok(at.map(|Instant(at)| Micros(at)))
}

/// Transactions of others in this database, with their start, and where that is hidden their virtual id.
/// One that is about to begin shows when its statement came in. Those without a user are the server's own.
const OTHERS: &str = "
SELECT a.pid, coalesce(a.xact_start, CASE WHEN a.state = 'active' THEN a.query_start END), l.virtualxid
FROM pg_stat_activity a
LEFT JOIN pg_locks l ON l.pid = a.pid AND l.locktype = 'virtualxid' AND l.mode = 'ExclusiveLock'
WHERE a.datid = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND a.pid <> pg_backend_pid() AND a.usesysid IS NOT NULL
  AND a.backend_type IS DISTINCT FROM 'walsender' AND a.backend_type IS DISTINCT FROM 'autovacuum worker'
  AND NOT (a.application_name = $1 AND a.usename = current_user)
  AND (a.xact_start IS NOT NULL OR a.state = 'active' OR l.virtualxid IS NOT NULL)";

const HIDDEN_STILL: &str = "SELECT l.virtualxid, l.pid FROM pg_locks l \
     WHERE l.locktype = 'virtualxid' AND l.mode = 'ExclusiveLock' AND l.virtualxid = ANY($1)";

/// Transactions that hold a lock under which rows can be written: of the table and its partitions; of
/// anything where we cannot tell which tables are behind.
fn writers(relation: &Relation, condition: &str) -> String {
    let tables = match relation.kind {
        TableKind::View | TableKind::MaterializedView | TableKind::ForeignTable => {
            "l.relation >= 16384".to_owned()
        }
        TableKind::Table | TableKind::PartitionedTable => format!(
            "l.relation IN (WITH RECURSIVE tree AS (SELECT {}::oid AS oid UNION SELECT i.inhrelid FROM tree \
             JOIN pg_inherits i ON i.inhparent = tree.oid) SELECT oid FROM tree)",
            relation.oid
        ),
    };
    format!(
        "SELECT l.virtualtransaction, coalesce(l.pid, 0) FROM pg_locks l \
         WHERE l.locktype = 'relation' AND l.granted AND l.pid IS DISTINCT FROM pg_backend_pid() \
           AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
           AND l.mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock') \
           AND {tables} AND {condition}"
    )
}

/// Waits for these transactions to end; the process of one that does not.
async fn outlast(session: &Session, still: &str, ids: &[String], patience: Duration) -> Result<Option<i32>> {
    let mut waited = Duration::ZERO;
    let params = [(&ids as &(dyn tokio_postgres::types::ToSql + Sync), Type::TEXT_ARRAY)];
    loop {
        let rows = session.query_typed(still, &params).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        if waited >= patience {
            return Ok(Some(row.get(1)));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
        waited += LOOK_AGAIN;
    }
}

/// What no look into this server's transactions can tell.
fn elsewhere(session: &Session, relation: &Relation) -> Vec<String> {
    if session.server().standby {
        return vec![
            "this is a replica: transactions on its primary are invisible; set `lag` to the longest of them"
                .to_owned(),
        ];
    }
    if relation.kind == TableKind::ForeignTable {
        return vec![
            "a foreign table's transactions are invisible; set `lag` to the longest of them".to_owned(),
        ];
    }
    Vec::new()
}

/// The earliest local time that a transaction beginning at `at` or later can write. Where clocks are about
/// to be set back, that is earlier than the local time of `at`.
async fn local(session: &Session, at: Micros, zone: &str, base: &str) -> Result<Micros> {
    let literal = at.literal("timestamptz");
    let zone = format!("'{}'", zone.replace('\'', "''"));
    let cut = if base == "date" { "::date" } else { "" };
    // No zone sets its clocks back by more than three hours.
    let sql = format!(
        "SELECT (SELECT min((h + ahead) AT TIME ZONE {zone} - ahead) FROM (VALUES ({literal})) v(h), \
         unnest(ARRAY['0h', '1h', '2h', '3h']::interval[]) ahead){cut}::timestamp"
    );
    let rows = session.query_typed(&sql, &[]).await?;
    let local = rows.first().and_then(|row| row.get::<_, Option<Instant>>(0));
    local
        .map(|Instant(micros)| Micros(micros))
        .ok_or_else(|| Error::new(ErrorKind::Internal, "the server tells no local time"))
}

/// Microseconds since 1970 of a `timestamp` or `timestamptz`, exactly.
struct Instant(i64);

impl<'a> FromSql<'a> for Instant {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        let micros = i64::from_be_bytes(raw.try_into()?);
        Ok(Self(micros.saturating_add(super::column::EPOCH_MICROS)))
    }

    fn accepts(of: &Type) -> bool {
        *of == Type::TIMESTAMP || *of == Type::TIMESTAMPTZ
    }
}
