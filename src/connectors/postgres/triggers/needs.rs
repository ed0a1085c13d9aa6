//! What triggers need of a table and a stream, each with what helps where it is missing.

use super::super::discover::Relation;
use super::arrange::forget;
use super::installed;
use super::statements::{Parts, READERS, TABLES};
use crate::clients::postgres::Session;
use crate::connectors::sql::{SILENT_DAYS, silent_reader};
use crate::error::{Error, ErrorKind, Result};
use crate::source::{Finding, ReadRequest, Severity};
use crate::table::TableKind;

/// Why triggers cannot serve; nothing when they can.
pub(super) async fn problems(
    session: &Session,
    relation: &Relation,
    request: &ReadRequest,
) -> Result<Vec<Error>> {
    let mut problems = Vec::new();
    let mut find = |kind, message: &str, hint: String| problems.push(Error::new(kind, message).hint(hint));
    if session.server().standby {
        let hint = "connect to the primary, or use `change: timestamp`".to_owned();
        find(ErrorKind::Unsupported, "a replica cannot note how far it was read", hint);
    }
    let table = relation.quoted();
    let sql = format!(
        "WITH RECURSIVE tree AS (SELECT {oid}::oid AS oid UNION SELECT i.inhrelid FROM tree \
         JOIN pg_inherits i ON i.inhparent = tree.oid) \
         SELECT count(*) > 1, bool_or(c.relpersistence <> 'p' OR c.relkind NOT IN ('r', 'p')), \
                EXISTS (SELECT FROM pg_subscription_rel s WHERE s.srrelid IN (SELECT oid FROM tree)) \
         FROM tree JOIN pg_class c USING (oid)",
        oid = relation.oid
    );
    let rows = session.query_typed(&sql, &[]).await?;
    let (parts, odd, subscribed) = rows
        .first()
        .map_or((false, None, false), |row| (row.get(0), row.get::<_, Option<bool>>(1), row.get(2)));
    let partitioned = relation.kind == TableKind::PartitionedTable;
    if !matches!(relation.kind, TableKind::Table | TableKind::PartitionedTable) || (parts && !partitioned) {
        let hint = "use `change: full`, or read the tables that are behind it".to_owned();
        find(ErrorKind::Config, "only tables and partitioned tables can have the triggers", hint);
    } else if odd == Some(true) {
        let hint = format!("run `ALTER TABLE {table} SET LOGGED`, or use `change: full`");
        let message =
            "the table, or a part of it, is unlogged or foreign: a crash empties it without a trigger";
        find(ErrorKind::Config, message, hint);
    }
    if subscribed && !partitioned {
        let hint = "use `change: log` on the publisher, or `change: timestamp`".to_owned();
        find(
            ErrorKind::Config,
            "a subscription writes to the table, which fires no triggers of statements",
            hint,
        );
    }
    if !request.keyed || request.key.is_empty() {
        let hint = "use `mode: merge`, with a `primary_key` where the table has none".to_owned();
        find(ErrorKind::Config, "changes are written down by key, and the stream has none", hint);
    }
    for name in &request.key {
        let column = relation.named(name)?;
        if !column.not_null {
            let hint = format!("let `primary_key` be columns that are NOT NULL; `{name}` is not");
            find(
                ErrorKind::Config,
                "a column of the key may be NULL, and no change could be found by it",
                hint,
            );
        }
    }
    if request.filter.is_some() {
        let hint =
            "a row that leaves the condition would stay in the lake: drop `where`, or use `change: full`";
        find(ErrorKind::Config, "`where` does not go with `change: trigger`", hint.to_owned());
    }
    Ok(problems.into_iter().map(|problem| problem.with("table", &relation.id)).collect())
}

/// Refuses what triggers cannot serve; the first reason of several.
pub(super) async fn check(session: &Session, relation: &Relation, request: &ReadRequest) -> Result<()> {
    match problems(session, relation, request).await?.into_iter().next() {
        None => Ok(()),
        Some(problem) => Err(problem),
    }
}

/// What `frazil check` has to say.
pub(in super::super) async fn findings(
    session: &Session,
    relation: &Relation,
    request: &ReadRequest,
) -> Result<Vec<Finding>> {
    let problems = problems(session, relation, request).await?;
    if !problems.is_empty() {
        return Ok(problems.iter().map(Finding::from).collect());
    }
    let parts = Parts::of(relation, request)?;
    let installed = installed::look(session, relation, &parts).await?;
    if let Some(finding) = installed.parts.finding() {
        return Ok(vec![finding]);
    }
    let name = parts.name();
    let rights = session
        .query_typed(
            &format!(
                "SELECT current_user::text, coalesce(has_table_privilege('{TABLES}', 'SELECT, UPDATE') \
                 AND has_table_privilege('{READERS}', 'INSERT') AND has_table_privilege($1, 'DELETE'), false) \
                 FROM pg_namespace WHERE nspname = '_frazil' AND has_schema_privilege(oid, 'USAGE')"
            ),
            &[(&parts.changes(), tokio_postgres::types::Type::TEXT)],
        )
        .await?;
    if !rights.first().is_some_and(|row| row.get(1)) {
        let remedy = format!(
            "GRANT USAGE ON SCHEMA _frazil TO <user>; GRANT SELECT, INSERT, UPDATE, DELETE ON {READERS}, {TABLES}, {} TO <user>",
            parts.changes()
        );
        let message = "the user may not use what the triggers write to".to_owned();
        return Ok(vec![Finding { severity: Severity::Error, message, remedy: Some(remedy) }]);
    }
    let silent = session
        .query_typed(
            &format!(
                "SELECT reader, seen::date::text FROM {READERS} WHERE changes = $1 AND reader <> $2 \
                 AND seen < now() - interval '{SILENT_DAYS} days' ORDER BY reader"
            ),
            &[
                (&name, tokio_postgres::types::Type::TEXT),
                (&request.reader, tokio_postgres::types::Type::TEXT),
            ],
        )
        .await?;
    let silent = silent.iter().map(|row| (row.get::<_, &str>(0), row.get::<_, &str>(1)));
    Ok(silent.map(|(reader, seen)| silent_reader(reader, seen, forget(&name, reader))).collect())
}
