//! What a load would miss: rights and settings, each with the statement that helps.

use super::catalog::{self, quoted};
use super::{control, prepare};
use crate::clients::postgres::Session;
use crate::connectors::sql::POSTGRES;
use crate::error::Result;
use crate::source::{Finding, Severity};
use crate::table::TableId;
use crate::target::TargetTable;

/// From this size on it is worth telling about free space in pages.
const LARGE_ROWS: u64 = 1_000_000;

/// The oldest server with the catalog columns and clauses that we use.
const OLDEST: u32 = 120_000;

/// Looks at everything that a load needs. `id` is the table with its schema filled in.
pub(super) async fn run(session: &Session, id: &TableId, table: &TargetTable) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut find = |severity, message: String, remedy: Option<String>| {
        findings.push(Finding { severity, message, remedy });
    };
    let server = session.server();
    if server.version < OLDEST {
        let version = server.version / 10_000;
        find(Severity::Error, format!("the target's server is version {version}; 12 is the oldest"), None);
    }
    if server.standby {
        find(
            Severity::Error,
            "the target's server is a replica, which cannot be written".into(),
            Some("connect to the primary".into()),
        );
        return Ok(findings);
    }

    let row = session
        .query_one(
            "SELECT current_user::text, current_database()::text,
                    has_database_privilege(current_database(), 'TEMPORARY'),
                    coalesce((SELECT has_schema_privilege(oid, 'USAGE') FROM pg_namespace WHERE nspname = $1), true),
                    coalesce((SELECT has_schema_privilege(oid, 'CREATE') FROM pg_namespace WHERE nspname = $1), true)",
            &[&id.schema],
        )
        .await?;
    let (user, database): (String, String) = (row.get(0), row.get(1));
    let (user, schema) = (POSTGRES.ident(&user), POSTGRES.ident(id.schema_or("public")));
    let (temporary, usage, create): (bool, bool, bool) = (row.get(2), row.get(3), row.get(4));
    if !temporary {
        find(
            Severity::Error,
            format!("{user} may not make temporary tables, in which changes are staged"),
            Some(format!("GRANT TEMPORARY ON DATABASE {} TO {user}", POSTGRES.ident(&database))),
        );
    }
    if !usage {
        find(
            Severity::Error,
            format!("{user} may not use the schema {schema}"),
            Some(format!("GRANT USAGE, CREATE ON SCHEMA {schema} TO {user}")),
        );
        return Ok(findings);
    }

    let relation = catalog::relation(session, id).await?;
    let control = catalog::relation(session, &control::beside(id)).await?;
    if !create && (relation.is_none() || control.is_none()) {
        find(
            Severity::Error,
            format!("{user} may not create tables in the schema {schema}"),
            Some(format!("GRANT CREATE ON SCHEMA {schema} TO {user}")),
        );
    }
    for (name, there) in [(id.clone(), &relation), (control::beside(id), &control)] {
        let Some(there) = there else { continue };
        let row = session
            .query_one(
                "SELECT array(SELECT right_ FROM unnest('{SELECT,INSERT,UPDATE,DELETE}'::text[]) AS right_
                              WHERE NOT has_table_privilege($1::oid, right_))",
                &[&there.oid],
            )
            .await?;
        let missing: Vec<String> = row.get(0);
        if !missing.is_empty() {
            let missing = missing.join(", ");
            find(
                Severity::Error,
                format!("{user} has no right to {missing} on {name}"),
                Some(format!("GRANT {missing} ON {} TO {user}", quoted(&name))),
            );
        }
    }
    let large = relation.as_ref().is_some_and(|relation| relation.rows.unwrap_or(0) >= LARGE_ROWS);
    if large && !table.key.is_empty() {
        let row = session
            .query_one(
                "SELECT NOT coalesce(reloptions::text LIKE '%fillfactor%', false) FROM pg_class WHERE oid = $1",
                &[&relation.as_ref().map(|relation| relation.oid)],
            )
            .await?;
        if row.get(0) {
            find(
                Severity::Note,
                "updates are about a fifth faster when pages keep free space for new versions of their rows"
                    .into(),
                Some(format!("ALTER TABLE {} SET (fillfactor = 80)", quoted(id))),
            );
        }
    }
    if findings.iter().all(|finding| finding.severity != Severity::Error)
        && let Err(error) = prepare::plan(session, id, table).await
    {
        findings.push(Finding::from(&error));
    }
    Ok(findings)
}
