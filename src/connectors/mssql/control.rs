//! The control table: which snapshot a table shows, written in the transaction that changes its rows.
//!
//! A load takes its row first of all, by moving it from the snapshot expected to the one to come. So
//! two runners never both load: the second waits a moment for the row, and then finds it moved.

use arrow::datatypes::Schema;

use super::discover::text as text_of;
use super::shape::KEY_COLLATION;
use crate::clients::mssql::{Session, literal, number};
use crate::connectors::sql::{self, History, MSSQL, Renames, lake_ids};
use crate::delta::SnapshotId;
use crate::error::{Error, ErrorKind, Result};
use crate::table::TableId;
use crate::target::Applied;

/// Its name, in the schema of the tables that it is about.
pub(super) const NAME: &str = "frazil_applied";

/// How long to wait, in milliseconds, for a runner that is about to finish.
const PATIENCE: u32 = 10_000;

/// Numbers of the server: a lock that was not had, a key that is there already.
const LOCK_TIMEOUT: u32 = 1222;
const DUPLICATE: [u32; 2] = [2627, 2601];

/// The control table beside a table.
pub(super) fn beside(table: &TableId) -> TableId {
    TableId { schema: table.schema.clone(), name: NAME.to_owned() }
}

/// The statement that creates it. Its key has 856 bytes of the 900 that an index may have.
pub(super) fn create(table: &TableId) -> String {
    format!(
        "CREATE TABLE {} (\n  [stream] nvarchar(300) COLLATE {KEY_COLLATION} NOT NULL,\n  \
         [target_table] nvarchar(128) COLLATE {KEY_COLLATION} NOT NULL,\n  \
         [lake_table] uniqueidentifier NOT NULL,\n  [snapshot_id] bigint NOT NULL,\n  \
         [applied_at] datetime2(7) NOT NULL,\n  [rows] bigint NOT NULL,\n  [columns] nvarchar(max) NOT NULL,\n  \
         [halfway] nvarchar(60) COLLATE {KEY_COLLATION} NULL,\n  \
         CONSTRAINT [pk_frazil_applied] PRIMARY KEY ([stream], [target_table])\n)",
        MSSQL.table(&beside(table))
    )
}

/// The statements that note that we make a table.
pub(super) fn made(table: &TableId) -> [String; 2] {
    sql::made(&MSSQL, &beside(table), table, literal)
}

/// The statements that note columns by their new names. They belong in the transaction that renames.
pub(super) fn renamed(table: &TableId, history: &History, renames: &Renames) -> Vec<String> {
    let note = |(stream, columns): (&str, String)| {
        format!(
            "UPDATE {} SET [columns] = {} WHERE [stream] = {} AND [target_table] = {}",
            MSSQL.table(&beside(table)),
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
        "SELECT a.[stream], a.[columns] FROM {} AS a WHERE a.[target_table] = @P1",
        MSSQL.table(&beside(table))
    );
    let rows = session.rows_with(&query, &[&table.name.as_str()]).await?;
    let noted = rows.iter().map(|row| (text_of(row, 0), text_of(row, 1)));
    History::of(table, noted)
}

/// What the table shows. `None` too when there is no control table yet.
pub(super) async fn applied(session: &mut Session, stream: &str, table: &TableId) -> Result<Option<Applied>> {
    let query = format!(
        "SELECT CAST(a.[lake_table] AS nvarchar(36)) AS lake_table, a.[snapshot_id], a.[halfway] FROM {} AS a \
         WHERE a.[stream] = @P1 AND a.[target_table] = @P2",
        MSSQL.table(&beside(table))
    );
    let rows = match session.rows_with(&query, &[&stream, &table.name.as_str()]).await {
        // There is no such table.
        Err(error) if number(&error) == Some(208) => return Ok(None),
        rows => rows?,
    };
    let Some(row) = rows.first() else { return Ok(None) };
    let lake_table = row.try_get::<&str, _>(0)?.and_then(|text| uuid::Uuid::parse_str(text).ok());
    match (lake_table, row.try_get::<i64, _>(1)?) {
        (Some(lake_table), Some(snapshot)) => {
            let halfway = row.try_get::<&str, _>(2)?.map(str::parse).transpose()?;
            Ok(Some(Applied { lake_table, snapshot: SnapshotId(snapshot), halfway }))
        }
        _ => Err(Error::new(ErrorKind::Corrupt, "the control row names no lake table").with("table", table)),
    }
}

/// Takes the control row within the transaction and moves it, or says who was faster.
pub(super) async fn claim(
    session: &mut Session,
    stream: &str,
    table: &TableId,
    from: Option<Applied>,
    to: Applied,
) -> Result<()> {
    session.batch(&format!("SET LOCK_TIMEOUT {PATIENCE}")).await?;
    let control = MSSQL.table(&beside(table));
    let (name, lake_table, snapshot) = (table.name.as_str(), to.lake_table.to_string(), to.snapshot.0);
    let halfway = |of: Applied| of.halfway.map(|halfway| halfway.to_string());
    let next = halfway(to);
    let moved = match from {
        None => {
            let insert = format!(
                "INSERT INTO {control} ([stream], [target_table], [lake_table], [snapshot_id], [halfway], [applied_at], [rows], [columns]) \
                 VALUES (@P1, @P2, CAST(@P3 AS uniqueidentifier), @P4, @P5, SYSUTCDATETIME(), 0, N'{{}}')"
            );
            session.run(&insert, &[&stream, &name, &lake_table.as_str(), &snapshot, &next.as_deref()]).await
        }
        Some(from) => {
            let update = format!(
                "UPDATE {control} SET [lake_table] = CAST(@P3 AS uniqueidentifier), [snapshot_id] = @P4, [halfway] = @P5 \
                 WHERE [stream] = @P1 AND [target_table] = @P2 \
                 AND [lake_table] = CAST(@P6 AS uniqueidentifier) AND [snapshot_id] = @P7 \
                 AND COALESCE([halfway], N'') = @P8"
            );
            let (old, at, was) = (from.lake_table.to_string(), from.snapshot.0, halfway(from));
            let (next, was) = (next.as_deref(), was.as_deref().unwrap_or_default());
            let lake_table = lake_table.as_str();
            session
                .run(&update, &[&stream, &name, &lake_table, &snapshot, &next, &old.as_str(), &at, &was])
                .await
        }
    };
    match moved {
        Ok(1) => Ok(()),
        Ok(_) => Err(overtaken(table)),
        Err(error) if number(&error).is_some_and(|number| DUPLICATE.contains(&number)) => {
            Err(overtaken(table))
        }
        Err(error) if number(&error) == Some(LOCK_TIMEOUT) => {
            Err(Error::new(ErrorKind::Conflict, "another runner is loading this table")
                .with("table", table)
                .hint("wait for it; nothing of this run was loaded"))
        }
        Err(error) => Err(error),
    }
}

fn overtaken(table: &TableId) -> Error {
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
    let control = MSSQL.table(&beside(table));
    let query =
        format!("SELECT a.[columns] FROM {control} AS a WHERE a.[stream] = @P1 AND a.[target_table] = @P2");
    let found = session.rows_with(&query, &[&stream, &table.name.as_str()]).await?;
    let text = found.first().map(|row| row.try_get::<&str, _>(0)).transpose()?.flatten().unwrap_or("{}");
    let mut noted = History::of(table, [(stream.to_owned(), text.to_owned())])?.columns;
    noted.extend(lake_ids(schema));
    let noted = serde_json::to_string(&noted).expect("names are text");
    let update = format!(
        "UPDATE {control} SET [rows] = @P3, [columns] = @P4, [applied_at] = SYSUTCDATETIME() \
         WHERE [stream] = @P1 AND [target_table] = @P2"
    );
    let rows = i64::try_from(rows).unwrap_or(i64::MAX);
    session.run(&update, &[&stream, &table.name.as_str(), &rows, &noted.as_str()]).await?;
    Ok(())
}
