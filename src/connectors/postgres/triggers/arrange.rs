//! What `frazil setup` and `frazil teardown` would do about triggers.

use tokio_postgres::types::Type;

use super::super::discover::Relation;
use super::statements::{Parts, READERS, SCHEMA, TABLES, literal, shared, shared_removal};
use super::{installed, needs};
use crate::clients::postgres::Session;
use crate::connectors::sql::{
    forget_reader, installed_already, installed_anew, nothing_installed, other_reader,
};
use crate::error::Result;
use crate::source::{Arrangement, Goal, ReadRequest};

/// What is to be done, and what need not be.
pub(in super::super) async fn arrange(
    session: &Session,
    relation: &Relation,
    request: &ReadRequest,
    goal: Goal,
) -> Result<Arrangement> {
    match goal {
        Goal::Setup => setup(session, relation, request).await,
        Goal::Teardown { force } => teardown(session, relation, request, force).await,
    }
}

async fn setup(session: &Session, relation: &Relation, request: &ReadRequest) -> Result<Arrangement> {
    needs::check(session, relation, request).await?;
    let parts = Parts::of(relation, request)?;
    let installed = installed::look(session, relation, &parts).await?;
    let Some(problem) = installed.parts.problem() else {
        return Ok(installed_already(parts.changes()));
    };
    let user = session.query_typed("SELECT current_user::text", &[]).await?;
    let user: String = user.first().map(|row| row.get(0)).unwrap_or_default();
    let types = installed::wide_types(session, relation, &parts).await?;
    let mut arrangement = Arrangement::default();
    if !shared_is_there(session).await? {
        arrangement.statements.extend(shared());
    }
    if installed.parts.any {
        arrangement.notes.push(installed_anew(&problem));
        arrangement.statements.extend(parts.removal());
    }
    arrangement.statements.extend(parts.installation(&user, &types));
    Ok(arrangement)
}

async fn teardown(
    session: &Session,
    relation: &Relation,
    request: &ReadRequest,
    force: bool,
) -> Result<Arrangement> {
    let parts = Parts::of(relation, request)?;
    let installed = installed::look(session, relation, &parts).await?;
    if !installed.parts.any {
        return Ok(nothing_installed());
    }
    let mut arrangement = Arrangement::default();
    let name = parts.name();
    let there = shared_is_there(session).await?;
    let others = if there { other_readers(session, &name, &request.reader).await? } else { Vec::new() };
    if !force && !others.is_empty() {
        return Ok(forget_reader(&others, forget(&name, &request.reader)));
    }
    arrangement.statements.extend(parts.removal());
    if there {
        let sql = format!("SELECT NOT EXISTS (SELECT FROM {TABLES} WHERE changes <> $1)");
        let last = session.query_typed(&sql, &[(&name, Type::TEXT)]).await?;
        if last.first().is_some_and(|row| row.get(0)) {
            arrangement.statements.extend(shared_removal());
        }
    }
    Ok(arrangement)
}

/// The statement that forgets a reader.
pub(super) fn forget(changes: &str, reader: &str) -> String {
    format!("DELETE FROM {READERS} WHERE changes = {} AND reader = {}", literal(changes), literal(reader))
}

/// Whether what all tables of changes share is there.
async fn shared_is_there(session: &Session) -> Result<bool> {
    let sql = "SELECT count(*) = 2 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
               WHERE n.nspname = $1 AND c.relname IN ('readers', 'tables') AND c.relkind = 'r'";
    let rows = session.query_typed(sql, &[(&SCHEMA, Type::TEXT)]).await?;
    Ok(rows.first().is_some_and(|row| row.get(0)))
}

/// The others who read the changes, and when they were last seen.
async fn other_readers(session: &Session, changes: &str, reader: &str) -> Result<Vec<String>> {
    let sql = format!(
        "SELECT reader, seen::timestamp(0)::text FROM {READERS} \
         WHERE changes = $1 AND reader <> $2 ORDER BY reader"
    );
    let rows = session.query_typed(&sql, &[(&changes, Type::TEXT), (&reader, Type::TEXT)]).await?;
    Ok(rows.iter().map(|row| other_reader(row.get(0), row.get(1))).collect())
}
