//! Who reads the changes of a table, how far each is, and what may be removed.
//!
//! A change goes when each reader that is known has it in its lake. Of each there are two batches: what it
//! has in its lake, and what it has taken. Who knows of a batch that the server says it never took, has
//! another server before it, or one that was put back.
//!
//! The line of the table in `_frazil_tables` is the lock between those who come and one who removes;
//! applications never touch it.

use super::super::discover;
use super::super::position::{Position, Stored};
use super::count::{AS_EVER, AT_ONCE, BY_INDEX};
use super::pass::Triggered;
use super::statements::{Parts, READERS, TABLES, beside};
use crate::clients::mysql::{Session, integer, literal, number, text};
use crate::connectors::sql::MYSQL;
use crate::delta::Watermark;
use crate::error::Result;
use crate::table::TableId;

/// Changes that are looked up together, to be removed.
const LOOKED_UP: usize = 20_000;
/// Numbers of the server: a lock that was not had at once.
const LOCKED: [u16; 2] = [1205, 3572];

/// Says that a reader is alive, although nothing may have changed for it; once a day is enough.
pub(super) async fn appear(session: &mut Session, parts: &Parts<'_>, reader: &str) -> Result<()> {
    let statement = format!(
        "UPDATE {} SET seen = UTC_TIMESTAMP() WHERE changes = '{}' AND reader = {} \
         AND seen < UTC_TIMESTAMP() - INTERVAL 1 DAY",
        parts.readers(),
        parts.name(),
        literal(reader)
    );
    session.run(&statement).await.map(drop)
}

/// Whether a position is one of triggers.
pub(in super::super) fn is_position(position: &Watermark) -> bool {
    matches!(Stored::read(position), Ok(Stored { position: Position::Triggers(_), .. }))
}

/// Notes what is durable in a lake, and removes what all readers have.
pub(in super::super) async fn acknowledge(
    session: &mut Session,
    table: &TableId,
    position: &Watermark,
) -> Result<()> {
    let Ok(Stored { position: Position::Triggers(at), .. }) = Stored::read(position) else { return Ok(()) };
    let Triggered { changes, reader, batch, .. } = at;
    let table = TableId { schema: Some(discover::schema_of(session, table)?), name: table.name.clone() };
    let statement = format!(
        "UPDATE {} SET batch = GREATEST(batch, {}), seen = UTC_TIMESTAMP() WHERE changes = {} AND reader = {}",
        MYSQL.table(&beside(&table, READERS)),
        batch.0,
        literal(&changes),
        literal(&reader)
    );
    session.run(&statement).await?;
    if let Some(up_to) = release(session, &table, &changes).await? {
        prune(session, &MYSQL.table(&beside(&table, &changes)), up_to).await?;
    }
    Ok(())
}

/// Says how far changes are not needed any more: before they go, so that nobody goes on from there. `None`
/// when that is no news, or somebody else is at it.
async fn release(session: &mut Session, table: &TableId, changes: &str) -> Result<Option<i64>> {
    let (tables, readers) = (MYSQL.table(&beside(table, TABLES)), MYSQL.table(&beside(table, READERS)));
    let changes = literal(changes);
    session.run("START TRANSACTION").await?;
    let line = format!("SELECT pruned FROM {tables} WHERE changes = {changes} FOR UPDATE NOWAIT");
    let line = match session.rows(&line).await {
        Err(error) if number(&error).is_some_and(|number| LOCKED.contains(&number)) => Vec::new(),
        line => line?,
    };
    let least = session.rows(&format!("SELECT MIN(batch) FROM {readers} WHERE changes = {changes}")).await?;
    let pruned = line.first().and_then(|row| integer(row, 0));
    let least = least.first().and_then(|row| integer(row, 0));
    let released = match (pruned, least) {
        (Some(pruned), Some(least)) if least > pruned => Some(least),
        _ => None,
    };
    if let Some(up_to) = released {
        session.run(&format!("UPDATE {tables} SET pruned = {up_to} WHERE changes = {changes}")).await?;
    }
    session.run("COMMIT").await?;
    Ok(released)
}

/// Removes changes, a few at a time and each by its number: the others between them may not be committed.
async fn prune(session: &mut Session, changes: &str, up_to: i64) -> Result<()> {
    session.run(BY_INDEX).await?;
    let mut after = String::from("0");
    loop {
        let sql = format!(
            "SELECT n FROM {changes} WHERE n > {after} AND batch > 0 AND batch <= {up_to} \
             ORDER BY n LIMIT {LOOKED_UP}"
        );
        let numbers: Vec<String> = session.rows(&sql).await?.iter().map(|row| text(row, 0)).collect();
        let Some(last) = numbers.last() else { break };
        after.clone_from(last);
        for some in numbers.chunks(AT_ONCE) {
            session.run(&format!("DELETE FROM {changes} WHERE n IN ({})", some.join(", "))).await?;
        }
    }
    session.run(AS_EVER).await.map(drop)
}
