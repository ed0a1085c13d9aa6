//! What `frazil setup` and `frazil teardown` would do about triggers, and doing it.

use super::super::discover::Relation;
use super::statements::Parts;
use super::{installed, needs};
use crate::clients::mysql::{Session, integer, literal, number, text};
use crate::connectors::sql::{
    forget_reader, installed_already, installed_anew, nothing_installed, other_reader,
};
use crate::error::{Error, ErrorKind, Result};
use crate::source::{Arrangement, Goal, ReadRequest};

/// A server that keeps a log trusts few with triggers.
const UNTRUSTED: u16 = 1419;

/// What is to be done, and what need not be.
pub(in super::super) async fn arrange(
    session: &mut Session,
    relation: &Relation,
    request: &ReadRequest,
    goal: Goal,
) -> Result<Arrangement> {
    match goal {
        Goal::Setup => setup(session, relation, request).await,
        Goal::Teardown { force } => teardown(session, relation, request, force).await,
    }
}

async fn setup(session: &mut Session, relation: &Relation, request: &ReadRequest) -> Result<Arrangement> {
    needs::check(session, relation, request).await?;
    let parts = Parts::of(relation, &request.key)?;
    let installed = installed::look(session, relation, &parts, &request.reader).await?;
    let Some(problem) = installed.parts.problem() else {
        return Ok(installed_already(parts.changes()));
    };
    let mut arrangement = Arrangement { statements: vec![Parts::settings()], ..Arrangement::default() };
    if installed.any {
        arrangement.notes.push(installed_anew(&problem));
        arrangement.statements.extend(parts.removal(installed.shared));
    }
    arrangement.statements.extend(parts.shared());
    arrangement.statements.extend(parts.installation());
    arrangement.notes.push(
        "triggers run with the rights of whoever creates them: while that user is gone, writes to the table fail"
            .to_owned(),
    );
    Ok(arrangement)
}

async fn teardown(
    session: &mut Session,
    relation: &Relation,
    request: &ReadRequest,
    force: bool,
) -> Result<Arrangement> {
    let parts = Parts::of(relation, &request.key)?;
    let installed = installed::look(session, relation, &parts, &request.reader).await?;
    if !installed.any {
        return Ok(nothing_installed());
    }
    let name = parts.name();
    let mut arrangement = Arrangement::default();
    let others = if installed.shared { others(session, &parts, &request.reader).await? } else { Vec::new() };
    if !force && !others.is_empty() {
        return Ok(forget_reader(&others, parts.forget(&request.reader)));
    }
    arrangement.statements.push(Parts::settings());
    arrangement.statements.extend(parts.removal(installed.shared));
    if installed.shared {
        let sql = format!("SELECT COUNT(*) FROM {} WHERE changes <> '{name}'", parts.tables());
        if session.rows(&sql).await?.first().and_then(|row| integer(row, 0)) == Some(0) {
            arrangement.statements.extend(parts.shared_removal());
        }
    }
    Ok(arrangement)
}

/// The others who read the changes, and when they were last seen.
async fn others(session: &mut Session, parts: &Parts<'_>, reader: &str) -> Result<Vec<String>> {
    let sql = format!(
        "SELECT reader, CAST(seen AS CHAR) FROM {} WHERE changes = '{}' AND reader <> {} ORDER BY reader",
        parts.readers(),
        parts.name(),
        literal(reader)
    );
    let rows = session.rows(&sql).await?;
    Ok(rows.iter().map(|row| other_reader(&text(row, 0), &text(row, 1))).collect())
}

/// Executes statements, one by one: these servers take no definition back. The session keeps the settings
/// that they need, and is good for nothing else.
pub(in super::super) async fn execute(mut session: Session, statements: &[String]) -> Result<()> {
    for statement in statements {
        session.run(statement).await.map_err(explained)?;
    }
    Ok(())
}

/// What helps when a definition is refused: more than an error of that number says elsewhere.
fn explained(error: Error) -> Error {
    let hint = match error.kind() {
        _ if number(&error) == Some(UNTRUSTED) => {
            "the server keeps a log, and lets only SUPER create triggers: run `SET GLOBAL log_bin_trust_function_creators = 1`, or let somebody who may execute what `--dry-run` prints"
        }
        ErrorKind::Permission => "let somebody who may do it execute what `--dry-run` prints",
        ErrorKind::Transient => {
            "an open transaction may be using the table: run it again, it begins where it has to"
        }
        _ => return error,
    };
    Error::new(error.kind(), error.message()).hint(hint)
}
