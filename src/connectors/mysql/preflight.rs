//! What a load would miss: rights and settings, each with the statement that helps.
//!
//! A right is found out by asking for what needs it and changes nothing: who may do what, the server tells
//! only as a list of grants to roles and patterns.

use super::{control, discover, prepare};
use crate::clients::mysql::{Session, integer};
use crate::connectors::sql::MYSQL;
use crate::error::{ErrorKind, Result};
use crate::source::{Finding, Severity};
use crate::table::TableId;
use crate::target::TargetTable;

/// Looks at everything that a load needs. `id` is the table with its database filled in.
pub(super) async fn run(session: &mut Session, id: &TableId, table: &TargetTable) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut find = |severity, message: String, remedy: Option<String>| {
        findings.push(Finding { severity, message, remedy });
    };
    let settings = session.rows("SELECT @@GLOBAL.read_only, @@GLOBAL.local_infile").await?;
    let setting = |at| settings.first().and_then(|row| integer(row, at));
    if setting(0) == Some(1) {
        find(
            Severity::Warning,
            "the target's server may only be read, unless this user has a right to write all the same".into(),
            Some("connect to the primary".into()),
        );
    }
    if setting(1) != Some(1) {
        find(
            Severity::Note,
            "the server takes no files from clients: rows are staged by INSERTs, which takes longer".into(),
            Some("SET GLOBAL local_infile = ON".into()),
        );
    }
    let database = MYSQL.ident(id.schema_or(""));
    let staging = MYSQL.table(&TableId { schema: id.schema.clone(), name: "frazil_probe".to_owned() });
    let temporary = format!("CREATE TEMPORARY TABLE {staging} (x int)");
    match session.run(&temporary).await {
        Ok(_) => {
            session.run(&format!("DROP TEMPORARY TABLE {staging}")).await?;
        }
        Err(error) if error.kind() == ErrorKind::Permission => find(
            Severity::Error,
            "this user may not make temporary tables, in which changes are staged".into(),
            Some(format!("GRANT CREATE TEMPORARY TABLES ON {database}.* TO <user>")),
        ),
        // There is no such database yet.
        Err(_) => {}
    }
    for name in [id.clone(), control::beside(id)] {
        if discover::find(session, &name).await?.is_none() {
            continue;
        }
        let quoted = MYSQL.table(&name);
        for (right, statement) in [
            ("SELECT", format!("SELECT 1 FROM {quoted} LIMIT 0")),
            ("DELETE", format!("DELETE FROM {quoted} WHERE 1 = 0")),
            ("INSERT", format!("INSERT INTO {quoted} SELECT * FROM {quoted} WHERE 1 = 0")),
        ] {
            if let Err(error) = session.run(&statement).await
                && error.kind() == ErrorKind::Permission
            {
                find(
                    Severity::Error,
                    format!("this user has no right to {right} on {name}"),
                    Some(format!("GRANT SELECT, INSERT, UPDATE, DELETE ON {quoted} TO <user>")),
                );
            }
        }
    }
    if findings.iter().all(|finding| finding.severity != Severity::Error)
        && let Err(error) = prepare::plan(session, id, table).await
    {
        findings.push(Finding::from(&error));
    }
    Ok(findings)
}
