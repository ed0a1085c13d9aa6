//! The control table: which snapshot a table shows, written in the transaction that changes its rows.
//!
//! A load takes its row first of all, by moving it from the snapshot expected to the one to come. So
//! two runners never both load: the second waits a moment for the row, and then finds it moved.

use arrow::datatypes::Schema;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::clients::postgres::translate;
use crate::connectors::sql::{self, History, POSTGRES, Renames, lake_ids};
use crate::delta::SnapshotId;
use crate::error::{Error, ErrorKind, Result};
use crate::table::TableId;
use crate::target::Applied;

/// Its name, in the schema of the tables that it is about.
pub(super) const NAME: &str = "frazil_applied";

/// How long to wait for a runner that is about to finish, or whose end the server has yet to notice.
const PATIENCE: &str = "10s";

/// The control table beside a table.
pub(super) fn beside(table: &TableId) -> TableId {
    TableId { schema: table.schema.clone(), name: NAME.to_owned() }
}

/// The statement that creates it.
pub(super) fn create(table: &TableId) -> String {
    format!(
        "CREATE TABLE {} (\n  stream text NOT NULL,\n  target_table text NOT NULL,\n  \
         lake_table uuid NOT NULL,\n  snapshot_id bigint NOT NULL,\n  \
         applied_at timestamp with time zone NOT NULL,\n  rows bigint NOT NULL,\n  \
         columns text NOT NULL,\n  halfway text,\n  \
         PRIMARY KEY (stream, target_table)\n)",
        POSTGRES.table(&beside(table))
    )
}

/// The statements that note that we make a table.
pub(super) fn made(table: &TableId) -> [String; 2] {
    sql::made(&POSTGRES, &beside(table), table, |text| format!("'{}'", text.replace('\'', "''")))
}

/// The statements that note columns by their new names. They belong in the transaction that renames.
pub(super) fn renamed(table: &TableId, history: &History, renames: &Renames) -> Vec<String> {
    let literal = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let note = |(stream, columns): (&str, String)| {
        format!(
            "UPDATE {} SET columns = {} WHERE stream = {} AND target_table = {}",
            POSTGRES.table(&beside(table)),
            literal(&columns),
            literal(stream),
            literal(&table.name)
        )
    };
    history.renamed(renames).map(note).collect()
}

/// What earlier loads say of a table whose control table exists.
pub(super) async fn history(client: &Client, table: &TableId) -> Result<History> {
    let rows = client
        .query(
            &format!(
                "SELECT stream, columns FROM {} WHERE target_table = $1",
                POSTGRES.table(&beside(table))
            ),
            &[&table.name],
        )
        .await?;
    History::of(table, rows.iter().map(|row| (row.get(0), row.get(1))))
}

/// What the table shows. `None` too when there is no control table yet.
pub(super) async fn applied(client: &Client, stream: &str, table: &TableId) -> Result<Option<Applied>> {
    let found = client
        .query_opt(
            &format!(
                "SELECT lake_table::text, snapshot_id, halfway FROM {} WHERE stream = $1 AND target_table = $2",
                POSTGRES.table(&beside(table))
            ),
            &[&stream, &table.name],
        )
        .await;
    match found {
        Ok(None) => Ok(None),
        Ok(Some(row)) => {
            let lake_table = uuid::Uuid::parse_str(row.get(0)).map_err(|error| {
                Error::new(ErrorKind::Corrupt, "the control row names no lake table").because(error)
            })?;
            let halfway = row.get::<_, Option<&str>>(2).map(str::parse).transpose()?;
            Ok(Some(Applied { lake_table, snapshot: SnapshotId(row.get(1)), halfway }))
        }
        Err(error)
            if matches!(error.code(), Some(&(SqlState::UNDEFINED_TABLE | SqlState::INVALID_SCHEMA_NAME))) =>
        {
            Ok(None)
        }
        Err(error) => Err(translate(&error)),
    }
}

/// Takes the control row within the transaction and moves it, or says who was faster.
pub(super) async fn claim(
    client: &Client,
    stream: &str,
    table: &TableId,
    from: Option<Applied>,
    to: Applied,
) -> Result<()> {
    client.batch_execute(&format!("SET LOCAL lock_timeout = '{PATIENCE}'")).await?;
    let control = POSTGRES.table(&beside(table));
    let (lake_table, snapshot) = (to.lake_table.to_string(), to.snapshot.0);
    let halfway = |of: Applied| of.halfway.map(|halfway| halfway.to_string());
    let moved = match from {
        None => {
            client
                .execute(
                    &format!(
                    "INSERT INTO {control} (stream, target_table, lake_table, snapshot_id, halfway, applied_at, rows, columns)
                         VALUES ($1, $2, $3::text::uuid, $4, $5, now(), 0, '{{}}') ON CONFLICT DO NOTHING"
                ),
                    &[&stream, &table.name, &lake_table, &snapshot, &halfway(to)],
                )
                .await
        }
        Some(from) => {
            client
                .execute(
                    &format!(
                        "UPDATE {control} SET lake_table = $3::text::uuid, snapshot_id = $4, halfway = $5
                         WHERE stream = $1 AND target_table = $2 AND lake_table = $6::text::uuid
                           AND snapshot_id = $7 AND halfway IS NOT DISTINCT FROM $8"
                    ),
                    &[
                        &stream,
                        &table.name,
                        &lake_table,
                        &snapshot,
                        &halfway(to),
                        &from.lake_table.to_string(),
                        &from.snapshot.0,
                        &halfway(from),
                    ],
                )
                .await
        }
    };
    match moved {
        Ok(1) => Ok(()),
        Ok(_) => Err(Error::new(ErrorKind::Conflict, "another runner has moved this table in the meantime")
            .with("table", table)
            .hint("nothing of this run was loaded; the next one goes on from there")),
        Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
            Err(Error::new(ErrorKind::Conflict, "another runner is loading this table")
                .with("table", table)
                .with("sqlstate", SqlState::LOCK_NOT_AVAILABLE.code())
                .hint("wait for it; nothing of this run was loaded"))
        }
        Err(error) => Err(translate(&error)),
    }
}

/// Adds to the control row what the load did, at its end. Columns that the lake does not have any more
/// stay noted: the target keeps them, and their names may become those of others.
pub(super) async fn note(
    client: &Client,
    stream: &str,
    table: &TableId,
    rows: u64,
    schema: &Schema,
) -> Result<()> {
    let columns = serde_json::to_string(&lake_ids(schema)).expect("names are text");
    client
        .execute(
            &format!(
                "UPDATE {} SET rows = $3, columns = (columns::jsonb || $4::text::jsonb)::text, applied_at = clock_timestamp()
                 WHERE stream = $1 AND target_table = $2",
                POSTGRES.table(&beside(table))
            ),
            &[&stream, &table.name, &i64::try_from(rows).unwrap_or(i64::MAX), &columns],
        )
        .await?;
    Ok(())
}

/// Adds to an error about a lock who holds it, as far as we may see.
pub(super) async fn name_holder(client: &Client, table: &TableId, error: Error) -> Error {
    let lock = SqlState::LOCK_NOT_AVAILABLE.code();
    if !error.context().iter().any(|(key, value)| *key == "sqlstate" && value == lock) {
        return error;
    }
    let holder = client
        .query_opt(
            "SELECT format('process %s%s, open since %s', l.pid,
                           ' (' || nullif(a.application_name, '') || ')', a.xact_start::timestamptz(0))
             FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
             WHERE l.granted AND l.pid <> pg_backend_pid()
               AND l.relation IN (to_regclass($1), to_regclass($2))
             ORDER BY a.xact_start LIMIT 1",
            &[&POSTGRES.table(table), &POSTGRES.table(&beside(table))],
        )
        .await;
    match holder {
        Ok(Some(row)) => error.with("held by", row.get::<_, String>(0)),
        _ => error,
    }
}
