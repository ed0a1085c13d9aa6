//! What a load would miss: rights and settings, each with the statement that helps.

use super::{control, prepare, relation};
use crate::clients::mssql::{Session, literal};
use crate::connectors::sql::MSSQL;
use crate::error::Result;
use crate::source::{Finding, Severity};
use crate::table::TableId;
use crate::target::TargetTable;

/// Looks at everything that a load needs. `id` is the table with its schema filled in.
pub(super) async fn run(session: &mut Session, id: &TableId, table: &TargetTable) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut find = |severity, message: String, remedy: Option<String>| {
        findings.push(Finding { severity, message, remedy });
    };
    let there = relation::relation(session, id).await?;
    let control = relation::relation(session, &control::beside(id)).await?;
    if (there.is_none() || control.is_none()) && !may(session, "NULL", "DATABASE", "CREATE TABLE").await? {
        find(
            Severity::Error,
            "this user may not create tables in the target's database".into(),
            Some(format!(
                "GRANT CREATE TABLE TO <user>; GRANT ALTER ON SCHEMA::{} TO <user>",
                MSSQL.ident(id.schema_or("dbo"))
            )),
        );
    }
    for (name, there) in [(id.clone(), &there), (control::beside(id), &control)] {
        if there.is_none() {
            continue;
        }
        let mut missing = Vec::new();
        for right in ["SELECT", "INSERT", "UPDATE", "DELETE"] {
            if !may(session, &literal(&MSSQL.table(&name)), "OBJECT", right).await? {
                missing.push(right);
            }
        }
        if !missing.is_empty() {
            let missing = missing.join(", ");
            find(
                Severity::Error,
                format!("this user has no right to {missing} on {name}"),
                Some(format!("GRANT {missing} ON {} TO <user>", MSSQL.table(&name))),
            );
        }
    }
    if let Some(reason) = there.as_ref().and_then(|there| there.hazard) {
        find(
            Severity::Note,
            format!(
                "the table has {reason}: it is loaded by UPDATE and INSERT, which `MERGE` would do in one"
            ),
            None,
        );
    }
    if findings.iter().all(|finding| finding.severity != Severity::Error)
        && let Err(error) = prepare::plan(session, id, table).await
    {
        findings.push(Finding::from(&error));
    }
    Ok(findings)
}

async fn may(session: &mut Session, object: &str, class: &str, right: &str) -> Result<bool> {
    let query = format!("SELECT CAST(HAS_PERMS_BY_NAME({object}, N'{class}', N'{right}') AS int) AS allowed");
    let rows = session.rows(&query).await?;
    Ok(rows.first().map(|row| row.try_get::<i32, _>(0)).transpose()?.flatten() == Some(1))
}
