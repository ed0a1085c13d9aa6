//! What triggers need of a server, a table and a stream, each with what helps where it is missing.

use super::super::discover::{CASCADES, Relation};
use super::super::log::Key;
use super::installed;
use super::statements::Parts;
use crate::clients::mysql::{Session, integer, literal, text};
use crate::connectors::sql::{SILENT_DAYS, silent_reader};
use crate::error::{Error, ErrorKind, Result};
use crate::source::{Finding, ReadRequest, Severity};
use crate::table::TableKind;

/// Why triggers cannot serve; nothing when they can.
async fn problems(session: &mut Session, relation: &Relation, request: &ReadRequest) -> Result<Vec<Error>> {
    let schema = literal(relation.id.schema_or(""));
    let table = literal(&relation.id.name);
    let sql = format!(
        "SELECT @@GLOBAL.read_only, @@GLOBAL.innodb_autoinc_lock_mode, \
         EXISTS (SELECT 1 FROM information_schema.REFERENTIAL_CONSTRAINTS \
                 WHERE CONSTRAINT_SCHEMA = {schema} AND TABLE_NAME = {table} AND {CASCADES}), \
         EXISTS (SELECT 1 FROM information_schema.TABLES WHERE TABLE_SCHEMA = {schema} AND TABLE_NAME = {table} \
                 AND TABLE_TYPE = 'SYSTEM VERSIONED')"
    );
    let rows = session.rows(&sql).await?;
    let setting = |at| rows.first().and_then(|row| integer(row, at)).unwrap_or_default();
    let mut problems = Vec::new();
    let mut find = |kind, message: &str, hint: &str| problems.push(Error::new(kind, message).hint(hint));
    if setting(0) != 0 {
        let hint = "connect to the primary, or use `change: timestamp`";
        find(ErrorKind::Unsupported, "a server that may only be read cannot note how far it was read", hint);
    } else if follows(session).await {
        let message = "the server follows another one: what comes from there fires no triggers";
        find(ErrorKind::Unsupported, message, "connect to the primary, or use `change: timestamp`");
    }
    if setting(1) == 0 {
        let message = "with `innodb_autoinc_lock_mode = 0` a statement would hold all others up that write to the table, and fail some";
        find(ErrorKind::Config, message, "start the server with 1 or 2, or use another `change`");
    }
    if relation.kind != TableKind::Table || setting(3) == 1 {
        let hint = "use `change: full`, or read the tables that are behind it";
        find(ErrorKind::Config, "only tables without a history of their own can have the triggers", hint);
    } else if relation.engine != "InnoDB" {
        let message = format!(
            "the engine {} has no transactions: what it takes back stays written down, and the other way round",
            relation.engine
        );
        find(ErrorKind::Config, &message, "run `ALTER TABLE … ENGINE=InnoDB`, or use `change: full`");
    }
    if setting(2) == 1 {
        let message = "a foreign key changes rows of the table (CASCADE, SET NULL), which fires no trigger";
        find(
            ErrorKind::Config,
            message,
            "use `change: log` or `change: full`, or let the application change the rows and the key be RESTRICT",
        );
    }
    if request.filter.is_some() {
        let hint =
            "a row that leaves the condition would stay in the lake: drop `where`, or use `change: full`";
        find(ErrorKind::Config, "`where` does not go with `change: trigger`", hint);
    }
    let indexed = |name: &String| relation.column(name).is_some_and(|column| column.indexed);
    if !request.keyed || request.key.is_empty() {
        let hint = "use `mode: merge`, with a `primary_key` where the table has none";
        find(ErrorKind::Config, "changes are written down by key, and the stream has none", hint);
    } else if !request.key.iter().any(indexed) {
        let hint = "rows are read by key: run `CREATE UNIQUE INDEX <name> ON … (…)`";
        find(ErrorKind::Config, "no index begins with a column of the stream's key", hint);
    } else {
        problems.extend(Key::of(relation, request).err());
    }
    Ok(problems.into_iter().map(|problem| problem.with("table", &relation.id)).collect())
}

/// Whether changes of another server are applied here. Members of a group apply each other's too, with what
/// the triggers have written there.
async fn follows(session: &mut Session) -> bool {
    let sql = if session.server().mariadb {
        "SELECT VARIABLE_VALUE FROM information_schema.GLOBAL_STATUS WHERE VARIABLE_NAME = 'SLAVES_RUNNING'"
    } else {
        "SELECT COUNT(*) FROM performance_schema.replication_applier_status \
         WHERE SERVICE_STATE = 'ON' AND CHANNEL_NAME NOT LIKE 'group\\_replication\\_%'"
    };
    // Who may not see it is told nothing: the documentation says it.
    let rows = session.rows(sql).await.unwrap_or_default();
    rows.first().and_then(|row| integer(row, 0)).is_some_and(|running| running > 0)
}

/// Refuses what triggers cannot serve; the first reason of several.
pub(super) async fn check(session: &mut Session, relation: &Relation, request: &ReadRequest) -> Result<()> {
    match problems(session, relation, request).await?.into_iter().next() {
        None => Ok(()),
        Some(problem) => Err(problem),
    }
}

/// What `frazil check` has to say.
pub(in super::super) async fn findings(
    session: &mut Session,
    relation: &Relation,
    request: &ReadRequest,
) -> Result<Vec<Finding>> {
    let problems = problems(session, relation, request).await?;
    if !problems.is_empty() {
        return Ok(problems.iter().map(Finding::from).collect());
    }
    let parts = Parts::of(relation, &request.key)?;
    let installed = match installed::look(session, relation, &parts, &request.reader).await {
        Err(error) if error.kind() == ErrorKind::Permission => {
            let mut findings = vec![Finding::from(&error)];
            findings.extend(rights(session, &parts).await);
            return Ok(findings);
        }
        installed => installed?,
    };
    if let Some(finding) = installed.parts.finding() {
        return Ok(vec![finding]);
    }
    let mut findings = rights(session, &parts).await;
    if findings.is_empty() {
        findings = silent(session, &parts, &request.reader).await?;
    }
    let log =
        session.rows("SHOW GLOBAL VARIABLES WHERE Variable_name IN ('log_bin', 'binlog_format')").await?;
    let says = |value: &str| log.iter().any(|row| text(row, 1) == value);
    if says("ON") && says("STATEMENT") {
        findings.push(Finding {
            severity: Severity::Warning,
            message: "the server logs statements: it warns of each that fires a trigger with a counter, and its replicas may count otherwise".to_owned(),
            remedy: Some("SET GLOBAL binlog_format = 'ROW'".to_owned()),
        });
    }
    Ok(findings)
}

/// What the user of a run may not do with what the triggers write to. It is found out by asking for what
/// needs the right, and changes nothing.
async fn rights(session: &mut Session, parts: &Parts<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (table, rights, updated) in parts.used() {
        let mut statements = vec![
            format!("SELECT 1 FROM {table} LIMIT 0"),
            format!("UPDATE {table} SET {updated} = {updated} WHERE 1 = 0"),
        ];
        if rights.contains("DELETE") {
            statements.push(format!("DELETE FROM {table} WHERE 1 = 0"));
        }
        if rights.contains("INSERT") {
            statements.push(format!("INSERT INTO {table} SELECT * FROM {table} WHERE 1 = 0"));
        }
        for statement in statements {
            if let Err(error) = session.run(&statement).await
                && error.kind() == ErrorKind::Permission
            {
                findings.push(Finding {
                    severity: Severity::Error,
                    message: format!("the user may not use what the triggers write to: {}", error.message()),
                    remedy: Some(format!("GRANT {rights} ON {table} TO <user>")),
                });
                break;
            }
        }
    }
    findings
}

/// Other readers that have not come for long.
async fn silent(session: &mut Session, parts: &Parts<'_>, reader: &str) -> Result<Vec<Finding>> {
    let (readers, name) = (parts.readers(), parts.name());
    let sql = format!(
        "SELECT reader, CAST(DATE(seen) AS CHAR) FROM {readers} WHERE changes = '{name}' AND reader <> {} \
         AND seen < UTC_TIMESTAMP() - INTERVAL {SILENT_DAYS} DAY ORDER BY reader",
        literal(reader)
    );
    let rows = session.rows(&sql).await?;
    let findings = rows.iter().map(|row| {
        let reader = text(row, 0);
        silent_reader(&reader, &text(row, 1), parts.forget(&reader))
    });
    Ok(findings.collect())
}
