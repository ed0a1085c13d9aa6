//! What of ours is on a table, and whether it is as it was.

use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use super::super::discover::{self, Relation};
use super::statements::{Parts, READERS, TABLES};
use crate::clients::mysql::{Session, integer, literal, number, text};
use crate::connectors::sql::InstalledParts;
use crate::error::{Error, ErrorKind, Result};
use crate::table::TableId;

/// The server shows nobody what belongs to all without the right to it.
const DENIED: u16 = 1227;
/// A table is known by the second in which it was altered: after so many it is over.
const SETTLED: i64 = 2;
/// A mode in which triggers would write keys down with blanks that no row has.
const PADDING: &str = "PAD_CHAR_TO_FULL_LENGTH";

/// What there is for one table and key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Installed {
    /// Whether there is anything at all.
    pub(super) any: bool,
    /// Whether the tables that all share are there.
    pub(super) shared: bool,
    /// What is missing, or other than it should be.
    pub(super) parts: InstalledParts,
    /// Changes with everything that could have let changes pass by: with each trigger's creation, and with
    /// the table that they write to.
    pub(super) stamp: String,
    /// Changes when the table is made anew, truncated or altered.
    pub(super) place: String,
    /// Whether another alteration would change the place again: it is known by the second.
    pub(super) settled: bool,
    /// Up to which batch changes have been removed.
    pub(super) pruned: i64,
    /// The batch that the reader has taken, if it is known.
    pub(super) taken: Option<i64>,
}

/// Looks at it. Who holds the table's definition sees what cannot change meanwhile.
pub(super) async fn look(
    session: &mut Session,
    relation: &Relation,
    parts: &Parts<'_>,
    reader: &str,
) -> Result<Installed> {
    let mut wrong = Vec::new();
    let mut hasher = SipHasher13::new();
    let changes = parts.changes();
    let there = discover::find(session, &changes).await?;
    if let Some(there) = &there {
        wrong.extend(other_types(there, parts));
        hasher.write(ids(session, &changes).await?.as_bytes());
    }
    let found = triggers(session, relation).await?;
    let mut count = 0;
    for wanted in parts.triggers() {
        let Some(trigger) = found.iter().find(|trigger| trigger.name == wanted.name) else {
            wrong.push(format!("the trigger `{}` is missing", wanted.name));
            continue;
        };
        count += 1;
        if trigger.body.trim() != wanted.body || trigger.mode.contains(PADDING) {
            wrong.push(format!("the trigger `{}` is not the one that the table needs", wanted.name));
        }
        for part in [&trigger.name, &trigger.created, &trigger.body, &trigger.mode] {
            hasher.write(part.as_bytes());
            hasher.write_u8(0);
        }
    }
    let shared = shared(session, relation).await?;
    let line = if shared { line(session, parts).await? } else { None };
    let taken = if shared { taken(session, parts, reader).await? } else { None };
    // The catalog shows a table only to whoever has a right to it.
    let [changes, readers, tables] = parts.used();
    for ((table, rights, _), there) in [(changes, there.is_some()), (readers, shared), (tables, shared)] {
        if !there {
            let grant = format!("it takes GRANT {rights} ON {table} TO <user>");
            wrong.push(format!("{table} is missing, or the user may not see it ({grant})"));
        }
    }
    if shared && line.is_none() {
        wrong.push(format!("`{TABLES}` does not know of it"));
    }
    let (stamp, pruned) = line.unwrap_or_default();
    hasher.write(stamp.as_bytes());
    let any = there.is_some() || count > 0;
    if count == 0 {
        let grant = format!("it takes GRANT TRIGGER ON {} TO <user>", relation.quoted());
        wrong = vec![format!(
            "there are no triggers of ours on the table, or the user may not see them ({grant})"
        )];
    }
    Ok(Installed {
        any,
        shared,
        parts: InstalledParts { any: true, wrong },
        stamp: format!("{:016x}", hasher.finish()),
        place: format!("{} {}", relation.layout, ids(session, &relation.id).await?),
        settled: is_settled(session, relation).await?,
        pruned,
        taken,
    })
}

/// Columns of the table of changes that cannot hold the key as it is now.
fn other_types(changes: &Relation, parts: &Parts<'_>) -> Vec<String> {
    let types = parts.types();
    let wanted = ["k", "o"]
        .into_iter()
        .flat_map(|prefix| types.iter().enumerate().map(move |(i, of)| (format!("{prefix}{}", i + 1), of)));
    let other = |(name, of): &(String, &String)| {
        changes.column(name).is_none_or(|column| column.of.written() != **of)
    };
    wanted
        .filter(other)
        .map(|(name, _)| format!("the table of changes is for a key of other types: `{name}`"))
        .collect()
}

/// A trigger as the catalog has it.
struct Found {
    name: String,
    body: String,
    created: String,
    mode: String,
}

async fn triggers(session: &mut Session, relation: &Relation) -> Result<Vec<Found>> {
    let sql = format!(
        "SELECT TRIGGER_NAME, ACTION_STATEMENT, CAST(CREATED AS CHAR), SQL_MODE \
         FROM information_schema.TRIGGERS \
         WHERE TRIGGER_SCHEMA = {schema} AND EVENT_OBJECT_SCHEMA = {schema} AND EVENT_OBJECT_TABLE = {}",
        literal(&relation.id.name),
        schema = literal(relation.id.schema_or("")),
    );
    let rows = session.rows(&sql).await?;
    let found = rows.iter().map(|row| Found {
        name: text(row, 0),
        body: text(row, 1),
        created: text(row, 2),
        mode: text(row, 3),
    });
    Ok(found.collect())
}

async fn shared(session: &mut Session, relation: &Relation) -> Result<bool> {
    let sql = format!(
        "SELECT COUNT(*) FROM information_schema.TABLES \
         WHERE TABLE_SCHEMA = {} AND TABLE_NAME IN ('{READERS}', '{TABLES}')",
        literal(relation.id.schema_or(""))
    );
    Ok(session.rows(&sql).await?.first().and_then(|row| integer(row, 0)) == Some(2))
}

/// What the line of the table says: what it was installed as, and up to where changes have been removed.
async fn line(session: &mut Session, parts: &Parts<'_>) -> Result<Option<(String, i64)>> {
    let sql = format!("SELECT stamp, pruned FROM {} WHERE changes = '{}'", parts.tables(), parts.name());
    let rows = session.rows(&sql).await?;
    Ok(rows.first().map(|row| (text(row, 0), integer(row, 1).unwrap_or(i64::MAX))))
}

async fn taken(session: &mut Session, parts: &Parts<'_>, reader: &str) -> Result<Option<i64>> {
    let sql = format!(
        "SELECT taken FROM {} WHERE changes = '{}' AND reader = {}",
        parts.readers(),
        parts.name(),
        literal(reader)
    );
    Ok(session.rows(&sql).await?.first().and_then(|row| integer(row, 0)))
}

/// The numbers that InnoDB has for a table and its partitions: others when it is emptied without a trigger.
async fn ids(session: &mut Session, table: &TableId) -> Result<String> {
    let catalog = if session.server().mariadb { "INNODB_SYS_TABLES" } else { "INNODB_TABLES" };
    // Names of files, in which partitions follow a sign that no name has.
    let file = |name: &str| format!("CAST(CONVERT({} USING filename) AS BINARY)", literal(name));
    let sql = format!(
        "SELECT NAME, TABLE_ID FROM information_schema.{catalog} \
         WHERE SUBSTRING_INDEX(LOWER(NAME), '#p#', 1) = \
         LOWER(CONVERT(CONCAT({}, '/', {}) USING utf8mb4)) ORDER BY NAME",
        file(table.schema_or("")),
        file(&table.name)
    );
    let rows = session.rows(&sql).await.map_err(|error| match number(&error) {
        Some(DENIED) => Error::new(error.kind(), error.message()).hint(
            "run `GRANT PROCESS ON *.* TO <user>`: it shows that a table was truncated, which no trigger sees",
        ),
        _ => error,
    })?;
    if rows.is_empty() {
        let message = "the server does not say which table it has under the name";
        return Err(Error::new(ErrorKind::Unsupported, message)
            .with("table", table)
            .hint("without it nobody sees that the table was truncated: use `change: full`"));
    }
    Ok(rows.iter().map(|row| text(row, 1)).collect::<Vec<_>>().join(","))
}

async fn is_settled(session: &mut Session, relation: &Relation) -> Result<bool> {
    let sql = format!("SELECT TIMESTAMPDIFF(SECOND, {}, NOW()) >= {SETTLED}", literal(&relation.layout));
    Ok(session.rows(&sql).await?.first().and_then(|row| integer(row, 0)) != Some(0))
}
