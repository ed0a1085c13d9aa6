//! Who reads the changes of a table, how far each is, and what may be removed.
//!
//! A change goes when each reader that is known has it in its lake. Readers make themselves known before
//! their first read begins. The line of the table in `_frazil.tables` is the lock between one who comes and
//! one who removes; applications never touch it.

use tokio_postgres::types::Type;

use super::super::position::{Position, Stored};
use super::pass::Triggered;
use super::statements::{Parts, READERS, SCHEMA, TABLES, literal};
use crate::clients::postgres::Session;
use crate::connectors::sql::POSTGRES;
use crate::delta::Watermark;
use crate::error::Result;

/// Changes that one statement removes: short enough that nobody who looks at them waits.
const PRUNED_AT_ONCE: i64 = 20_000;

/// Makes a reader known, before it looks at the table. What changes from here on is kept for it.
pub(super) async fn register(session: &Session, parts: &Parts<'_>, reader: &str) -> Result<()> {
    let (changes, reader) = (literal(&parts.name()), literal(reader));
    let sql = format!(
        "BEGIN; SELECT FROM {TABLES} WHERE changes = {changes} FOR UPDATE; \
         INSERT INTO {READERS} AS r (changes, reader, xact) \
         VALUES ({changes}, {reader}, txid_snapshot_xmin(txid_current_snapshot())) \
         ON CONFLICT (changes, reader) DO UPDATE SET xact = excluded.xact, seen = now(); COMMIT"
    );
    Ok(session.batch_execute(&sql).await?)
}

/// Says that a reader is alive, although nothing may have changed for it; once a day is enough.
pub(super) async fn appear(session: &Session, parts: &Parts<'_>, reader: &str) -> Result<()> {
    let sql = format!(
        "UPDATE {READERS} SET seen = now() \
         WHERE changes = $1 AND reader = $2 AND seen < now() - interval '1 day'"
    );
    session.query_typed(&sql, &[(&parts.name(), Type::TEXT), (&reader, Type::TEXT)]).await?;
    Ok(())
}

/// Whether a position is one of triggers.
pub(in super::super) fn is_position(position: &Watermark) -> bool {
    matches!(Stored::read(position), Ok(Stored { position: Position::Triggers(_), .. }))
}

/// Notes what is durable in a lake, and removes what all readers have.
pub(in super::super) async fn acknowledge(session: &Session, position: &Watermark) -> Result<()> {
    let Ok(Stored { position: Position::Triggers(at), .. }) = Stored::read(position) else { return Ok(()) };
    let Triggered { changes, reader, snapshot, .. } = &*at;
    let sql = format!(
        "INSERT INTO {READERS} AS r (changes, reader, xact) SELECT changes, $2, $3 FROM {TABLES} WHERE changes = $1 \
         ON CONFLICT (changes, reader) DO UPDATE SET xact = greatest(r.xact, excluded.xact), seen = now()"
    );
    let first_open = i64::try_from(snapshot.first_open()).unwrap_or(i64::MAX);
    let params: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 3] =
        [(changes, Type::TEXT), (reader, Type::TEXT), (&first_open, Type::INT8)];
    session.query_typed(&sql, &params).await?;
    if let Some(up_to) = release(session, changes).await? {
        prune(session, changes, up_to).await?;
    }
    Ok(())
}

/// Says how far changes are not needed any more: before they go, so that nobody goes on from there. `None`
/// when that is no news, or somebody else is at it.
async fn release(session: &Session, changes: &str) -> Result<Option<i64>> {
    let sql = format!(
        "WITH line AS (SELECT changes, pruned FROM {TABLES} WHERE changes = $1 FOR UPDATE SKIP LOCKED), \
         least AS (SELECT min(xact) AS xact FROM {READERS} WHERE changes = $1) \
         UPDATE {TABLES} t SET pruned = least.xact FROM line, least \
         WHERE t.changes = line.changes AND least.xact > line.pruned RETURNING t.pruned"
    );
    let rows = session.query_typed(&sql, &[(&changes, Type::TEXT)]).await?;
    Ok(rows.first().map(|row| row.get(0)))
}

/// Removes changes, a few at a time.
async fn prune(session: &Session, changes: &str, up_to: i64) -> Result<()> {
    let table = format!("{SCHEMA}.{}", POSTGRES.ident(changes));
    let sql = format!(
        "WITH gone AS (DELETE FROM {table} WHERE ctid = ANY (ARRAY( \
             SELECT ctid FROM {table} WHERE xact < $1 LIMIT {PRUNED_AT_ONCE})) RETURNING 1) \
         SELECT count(*) FROM gone"
    );
    loop {
        let rows = session.query_typed(&sql, &[(&up_to, Type::INT8)]).await?;
        if rows.first().is_none_or(|row| row.get::<_, i64>(0) < PRUNED_AT_ONCE) {
            return Ok(());
        }
    }
}
