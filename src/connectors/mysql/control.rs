//! The control table: which snapshot a table shows, written in the transaction that changes its rows.
//!
//! A load takes its row first of all, by moving it from the snapshot expected to the one to come. So
//! two runners never both load: the second waits a moment for the row, and then finds it moved.

use arrow::datatypes::Schema;
use mysql_async::Value;

use super::shape::key_collation;
use crate::clients::mysql::{Server, Session, integer, literal, number, text};
use crate::connectors::sql::{self, History, MYSQL, Renames, lake_ids};
use crate::delta::SnapshotId;
use crate::error::{Error, ErrorKind, Result};
use crate::table::TableId;
use crate::target::Applied;

/// Its name, in the database of the tables that it is about.
const NAME: &str = "frazil_applied";

/// How long to wait, in seconds, for a runner that is about to finish; and for a lock on the table.
const PATIENCE: u32 = 10;
const PATIENCE_TABLE: u32 = 60;

/// Numbers of the server: a lock that was not had, a key that is there already, no such table.
const LOCK_TIMEOUT: u16 = 1205;
const DUPLICATE: u16 = 1062;
const NO_TABLE: [u16; 2] = [1146, 1049];

/// The control table beside a table.
pub(super) fn beside(table: &TableId) -> TableId {
    TableId { schema: table.schema.clone(), name: NAME.to_owned() }
}

/// The statement that creates it.
pub(super) fn create(table: &TableId, server: &Server) -> String {
    let collation = key_collation(server);
    format!(
        "CREATE TABLE {} (\n  `stream` varchar(300) COLLATE {collation} NOT NULL,\n  \
         `target_table` varchar(64) COLLATE {collation} NOT NULL,\n  \
         `lake_table` char(36) NOT NULL,\n  `snapshot_id` bigint NOT NULL,\n  \
         `applied_at` datetime(6) NOT NULL,\n  `rows` bigint NOT NULL,\n  `columns` longtext NOT NULL,\n  \
         `halfway` varchar(60),\n  PRIMARY KEY (`stream`, `target_table`)\n) ENGINE=InnoDB CHARACTER SET utf8mb4",
        MYSQL.table(&beside(table))
    )
}

/// The statements that note that we make a table.
pub(super) fn made(table: &TableId) -> [String; 2] {
    sql::made(&MYSQL, &beside(table), table, literal)
}

/// The statements that note columns by their new names.
pub(super) fn renamed(table: &TableId, history: &History, renames: &Renames) -> Vec<String> {
    let note = |(stream, columns): (&str, String)| {
        format!(
            "UPDATE {} SET `columns` = {} WHERE `stream` = {} AND `target_table` = {}",
            MYSQL.table(&beside(table)),
            literal(&columns),
            literal(stream),
            literal(&table.name)
        )
    };
    history.renamed(renames).map(note).collect()
}

/// What earlier loads say of a table whose control table exists.
pub(super) async fn history(session: &mut Session, table: &TableId) -> Result<History> {
    let query = format!(
        "SELECT a.`stream`, a.`columns` FROM {} AS a WHERE a.`target_table` = ?",
        MYSQL.table(&beside(table))
    );
    let rows = session.rows_with(&query, vec![table.name.as_str().into()]).await?;
    History::of(table, rows.iter().map(|row| (text(row, 0), text(row, 1))))
}

/// What the table shows. `None` too when there is no control table yet.
pub(super) async fn applied(session: &mut Session, stream: &str, table: &TableId) -> Result<Option<Applied>> {
    let query = format!(
        "SELECT a.`lake_table`, a.`snapshot_id`, a.`halfway` FROM {} AS a WHERE a.`stream` = ? AND a.`target_table` = ?",
        MYSQL.table(&beside(table))
    );
    let rows = match session.rows_with(&query, vec![stream.into(), table.name.as_str().into()]).await {
        Err(error) if number(&error).is_some_and(|number| NO_TABLE.contains(&number)) => return Ok(None),
        rows => rows?,
    };
    let Some(row) = rows.first() else { return Ok(None) };
    let unread =
        || Error::new(ErrorKind::Corrupt, "the control row names no lake table").with("table", table);
    let lake_table = uuid::Uuid::parse_str(&text(row, 0)).map_err(|_| unread())?;
    let snapshot = SnapshotId(integer(row, 1).ok_or_else(unread)?);
    let halfway = Some(text(row, 2)).filter(|text| !text.is_empty());
    Ok(Some(Applied { lake_table, snapshot, halfway: halfway.map(|text| text.parse()).transpose()? }))
}

/// Takes the control row within the transaction and moves it, or says who was faster.
pub(super) async fn claim(
    session: &mut Session,
    stream: &str,
    table: &TableId,
    from: Option<Applied>,
    to: Applied,
) -> Result<()> {
    session.run(&format!("SET SESSION innodb_lock_wait_timeout = {PATIENCE}")).await?;
    let control = MYSQL.table(&beside(table));
    let halfway = |of: Applied| of.halfway.map(|halfway| halfway.to_string());
    let (name, lake_table) = (table.name.as_str(), to.lake_table.to_string());
    let next: [Value; 3] = [lake_table.into(), to.snapshot.0.into(), halfway(to).into()];
    let moved = match from {
        None => {
            let insert = format!(
                "INSERT INTO {control} (`lake_table`, `snapshot_id`, `halfway`, `stream`, `target_table`, `applied_at`, `rows`, `columns`) \
                 VALUES (?, ?, ?, ?, ?, UTC_TIMESTAMP(6), 0, '{{}}')"
            );
            let params = next.into_iter().chain([stream.into(), name.into()]).collect();
            session.run_with(&insert, params).await
        }
        Some(from) => {
            let update = format!(
                "UPDATE {control} SET `lake_table` = ?, `snapshot_id` = ?, `halfway` = ? \
                 WHERE `stream` = ? AND `target_table` = ? AND `lake_table` = ? AND `snapshot_id` = ? AND `halfway` <=> ?"
            );
            let old: [Value; 5] = [
                stream.into(),
                name.into(),
                from.lake_table.to_string().into(),
                from.snapshot.0.into(),
                halfway(from).into(),
            ];
            session.run_with(&update, next.into_iter().chain(old).collect()).await
        }
    };
    match moved {
        Ok(1) => {
            session.run(&format!("SET SESSION innodb_lock_wait_timeout = {PATIENCE_TABLE}")).await?;
            Ok(())
        }
        Ok(_) => Err(overtaken(table)),
        Err(error) if number(&error) == Some(DUPLICATE) => Err(overtaken(table)),
        Err(error) if number(&error) == Some(LOCK_TIMEOUT) => {
            Err(Error::new(ErrorKind::Conflict, "another runner is loading this table")
                .with("table", table)
                .hint("wait for it; nothing of this run was loaded"))
        }
        Err(error) => Err(error),
    }
}

/// Somebody else was faster.
pub(super) fn overtaken(table: &TableId) -> Error {
    Error::new(ErrorKind::Conflict, "another runner has moved this table in the meantime")
        .with("table", table)
        .hint("nothing of this run was loaded; the next one goes on from there")
}

/// Adds to the control row what the load did, at its end. Columns that the lake does not have any more
/// stay noted: the target keeps them, and their names may become those of others.
pub(super) async fn note(
    session: &mut Session,
    stream: &str,
    table: &TableId,
    rows: u64,
    schema: &Schema,
) -> Result<()> {
    let control = MYSQL.table(&beside(table));
    let (of, name): (Value, Value) = (stream.into(), table.name.as_str().into());
    let query =
        format!("SELECT a.`columns` FROM {control} AS a WHERE a.`stream` = ? AND a.`target_table` = ?");
    let found = session.rows_with(&query, vec![of.clone(), name.clone()]).await?;
    let before = found.first().map_or("{}".to_owned(), |row| text(row, 0));
    let mut noted = History::of(table, [(stream.to_owned(), before)])?.columns;
    noted.extend(lake_ids(schema));
    let noted = serde_json::to_string(&noted).expect("names are text");
    let update = format!(
        "UPDATE {control} SET `rows` = ?, `columns` = ?, `applied_at` = UTC_TIMESTAMP(6) \
         WHERE `stream` = ? AND `target_table` = ?"
    );
    session.run_with(&update, vec![rows.into(), noted.into(), of, name]).await?;
    Ok(())
}
