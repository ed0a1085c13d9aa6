//! What of ours is on a table, and whether it is as it was.

use tokio_postgres::types::Type;

use super::super::discover::Relation;
use super::statements::{Parts, SCHEMA, TABLES};
use crate::clients::postgres::Session;
use crate::connectors::sql::{InstalledParts, POSTGRES};
use crate::error::{Error, ErrorKind, Result};

/// What there is for one table and key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Installed {
    /// Whether it is there, and whole.
    pub(super) parts: InstalledParts,
    /// Changes with everything that could have let changes pass by: with each trigger's version in the
    /// catalog, the functions, and the table that they write to.
    pub(super) stamp: String,
}

/// Looks at it. Within a transaction it is what the snapshot sees.
pub(super) async fn look(session: &Session, relation: &Relation, parts: &Parts<'_>) -> Result<Installed> {
    let sql = format!(
        "WITH RECURSIVE tree AS (
             SELECT oid, relkind FROM pg_class WHERE oid = {oid}
             UNION SELECT c.oid, c.relkind FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid
             JOIN pg_class c ON c.oid = i.inhrelid),
         functions AS (
             SELECT p.oid, p.proname, p.prosecdef, md5(pg_get_functiondef(p.oid)) AS body
             FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
             WHERE n.nspname = '{SCHEMA}' AND p.proname = ANY ($1)),
         triggers AS (
             SELECT t.oid, t.xmin::text AS version, t.tgrelid, t.tgname::text, t.tgenabled
             FROM pg_trigger t WHERE t.tgrelid IN (SELECT oid FROM tree) AND t.tgfoid IN (SELECT oid FROM functions)),
         changes AS (
             SELECT c.oid, pg_relation_filenode(c.oid) AS place
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE n.nspname = '{SCHEMA}' AND c.relname = $3)
         SELECT (SELECT oid::int8 FROM changes), (SELECT count(*) FROM functions),
                ARRAY(SELECT wanted FROM unnest($2) wanted WHERE NOT EXISTS (
                    SELECT FROM triggers WHERE tgname = wanted AND tgrelid = {oid})),
                ARRAY(SELECT tgname FROM triggers
                      WHERE tgenabled NOT IN ('A', CASE WHEN tgrelid = {oid} THEN 'A' ELSE 'O' END)),
                ARRAY(SELECT oid::regclass::text FROM tree WHERE relkind = 'r' AND oid <> {oid} AND NOT EXISTS (
                    SELECT FROM triggers WHERE tgrelid = tree.oid)),
                md5(concat_ws('/', {oid},
                    (SELECT string_agg(concat_ws(':', oid, version, tgenabled), ',' ORDER BY oid)
                     FROM triggers WHERE tgrelid = {oid}),
                    (SELECT string_agg(body, ',' ORDER BY proname) FROM functions),
                    (SELECT oid || ':' || place FROM changes)))",
        oid = relation.oid
    );
    let (functions, triggers) = (parts.functions(), parts.triggers());
    let params: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 3] =
        [(&functions, Type::TEXT_ARRAY), (&triggers, Type::TEXT_ARRAY), (&parts.name(), Type::TEXT)];
    let rows = session.query_typed(&sql, &params).await?;
    let gone =
        || Error::new(ErrorKind::Transient, "the table was dropped just now").with("table", &relation.id);
    let row = rows.first().ok_or_else(gone)?;
    let (changes, there): (Option<i64>, i64) = (row.get(0), row.get(1));
    let (missing, disabled, without): (Vec<String>, Vec<String>, Vec<String>) =
        (row.get(2), row.get(3), row.get(4));
    let mut wrong = Vec::new();
    if changes.is_none() {
        wrong.push("the table of changes is missing".to_owned());
    }
    if (there as usize) < functions.len() {
        wrong.push("functions of triggers are missing".to_owned());
    }
    wrong.extend(missing.iter().map(|name| format!("the trigger `{name}` is missing")));
    wrong.extend(disabled.iter().map(|name| format!("the trigger `{name}` does not fire always")));
    wrong.extend(without.iter().map(|name| format!("the partition `{name}` has no trigger")));
    let any = changes.is_some() || there > 0 || missing.len() < triggers.len();
    Ok(Installed { parts: InstalledParts { any, wrong }, stamp: row.get(5) })
}

/// Up to which transaction changes have been removed.
pub(super) async fn pruned(session: &Session, parts: &Parts<'_>) -> Result<u64> {
    let sql = format!("SELECT pruned FROM {TABLES} WHERE changes = $1");
    let rows = session.query_typed(&sql, &[(&parts.name(), Type::TEXT)]).await?;
    // A table of changes that nobody knows of may have been emptied by anybody.
    Ok(rows.first().map_or(u64::MAX, |row| row.get::<_, i64>(0).unsigned_abs()))
}

/// The types of the key's columns, domains resolved, without modifiers: in quotes, `"bit"` has any length.
pub(super) async fn wide_types(
    session: &Session,
    relation: &Relation,
    parts: &Parts<'_>,
) -> Result<Vec<String>> {
    let mut types = Vec::new();
    for key in &parts.key {
        let base = relation.types.base(key.column.of).oid;
        let sql = "SELECT n.nspname::text, t.typname::text FROM pg_type t \
                   JOIN pg_namespace n ON n.oid = t.typnamespace WHERE t.oid = $1";
        let rows = session.query_typed(sql, &[(&base, Type::OID)]).await?;
        let gone = || Error::new(ErrorKind::Transient, "the type of a key column was dropped just now");
        let row = rows.first().ok_or_else(gone)?;
        let (schema, name): (&str, &str) = (row.get(0), row.get(1));
        types.push(match name {
            "int2" | "int4" => "bigint".to_owned(),
            name => format!("{}.{}", POSTGRES.ident(schema), POSTGRES.ident(name)),
        });
    }
    Ok(types)
}
