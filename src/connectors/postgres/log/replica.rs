//! What is different on a replica: its primary decides what it keeps, and nothing can be made there but the slot.

use std::time::Duration;

use crate::clients::postgres::Session;
use crate::error::{Error, ErrorKind, Result};
use crate::source::{Finding, Severity};

/// The first version that decodes the log on a replica.
pub(super) const OLDEST: u32 = 160_000;

/// A slot begins where no transaction is open, or where those have ended that were. The primary writes down every
/// 15 seconds which are, if it writes anything; the replica waits for up to three of these.
const PATIENCE_SLOT: Duration = Duration::from_secs(120);

/// Makes a slot, and does not wait for ever: a primary where nothing happens says nothing.
pub(super) async fn create_slot(session: &Session, create: impl Future<Output = Result<()>>) -> Result<()> {
    // A limit of the user's own stays.
    let limit = format!(
        "BEGIN; SELECT set_config('statement_timeout', '{}s', true) WHERE current_setting('statement_timeout') = '0'",
        PATIENCE_SLOT.as_secs()
    );
    session.batch_execute(&limit).await?;
    create.await.map_err(|error| {
        let state = error.context().iter().find(|(key, _)| *key == "sqlstate");
        if state.is_none_or(|(_, state)| state != "57014") {
            return error;
        }
        Error::new(
            ErrorKind::Transient,
            "the replica has not learned in time which transactions are open on its primary, and a slot begins there",
        )
        .hint("run `SELECT pg_log_standby_snapshot()` on the primary meanwhile, and end transactions that are open there for long")
    })?;
    Ok(session.batch_execute("COMMIT").await?)
}

/// What has to be made, and cannot be made here.
pub(super) fn missing_publication(statement: &str) -> Error {
    Error::new(ErrorKind::Config, "a replica cannot make the publication of the table")
        .hint(format!("let the table's owner run `{statement}` on the primary"))
}

/// What `frazil check` has to say of its settings.
pub(super) async fn findings(session: &Session) -> Result<Vec<Finding>> {
    let sql =
        "SELECT current_setting('hot_standby_feedback') = 'on', current_setting('primary_slot_name') <> ''";
    let rows = session.query_typed(sql, &[]).await?;
    let says = |i: usize| rows.first().is_some_and(|row| row.get(i));
    let warning = |message: &str, remedy: &str| Finding {
        severity: Severity::Warning,
        message: message.to_owned(),
        remedy: Some(remedy.to_owned()),
    };
    let mut findings = Vec::new();
    if !says(0) {
        let message = "the replica does not tell its primary what it still needs (`hot_standby_feedback`): reading can \
                       be cut off, and a VACUUM there can cost the slot, after which the whole table is read";
        findings.push(warning(message, "ALTER SYSTEM SET hot_standby_feedback = on, on the replica"));
    }
    if !says(1) {
        let message = "the replica has no slot on its primary (`primary_slot_name`): what it needs is not kept while \
                       it is away, and then the whole table is read";
        let remedy = "SELECT pg_create_physical_replication_slot('replica') on the primary, and \
                      ALTER SYSTEM SET primary_slot_name = 'replica' on the replica";
        findings.push(warning(message, remedy));
    }
    Ok(findings)
}
