//! What `frazil setup` and `frazil teardown` would do, and doing it.

use rusqlite::Connection as Database;

use super::super::describe::{self, Described};
use super::installed::{check_table, look};
use super::statements::{Parts, READERS, TABLES, replaced};
use crate::clients::sqlite::File;
use crate::connectors::sql::{
    forget_reader, installed_already, installed_anew, nothing_installed, other_reader,
};
use crate::error::Result;
use crate::source::{Arrangement, Goal, ReadRequest};

/// What is to be done, and what need not be.
pub(in super::super) fn arrange(file: &File, request: &ReadRequest, goal: Goal) -> Result<Arrangement> {
    let database = file.open()?;
    let described = describe::find(file, &database, &request.table)?;
    if goal == Goal::Setup {
        return setup(file, &database, &described, request);
    }
    let parts = Parts::of(&described, &request.key);
    let installed = look(file, &database, &described, &request.key)?;
    if !installed.parts.any {
        return Ok(nothing_installed());
    }
    let mut arrangement = Arrangement::default();
    let changes = parts.changes();
    let known = |name: &str| describe::is_there(&database, name).map_err(|error| file.error(error));
    let shared = known(TABLES)? && known(READERS)?;
    let others = if shared {
        others(&database, &changes, &request.reader).map_err(|error| file.error(error))?
    } else {
        Vec::new()
    };
    if goal != (Goal::Teardown { force: true }) && !others.is_empty() {
        return Ok(forget_reader(&others, forget(&changes, &request.reader)));
    }
    let sql = format!("SELECT NOT EXISTS (SELECT 1 FROM {TABLES} WHERE changes <> ?1)");
    let last = shared
        && database.query_row(&sql, [&changes], |row| row.get(0)).map_err(|error| file.error(error))?;
    arrangement.statements = parts.removal(shared, last);
    Ok(arrangement)
}

fn setup(
    file: &File,
    database: &Database,
    described: &Described,
    request: &ReadRequest,
) -> Result<Arrangement> {
    check_table(described, request)?;
    let parts = Parts::of(described, &request.key);
    let installed = look(file, database, described, &request.key)?;
    let Some(problem) = installed.parts.problem() else {
        return Ok(installed_already(parts.changes()));
    };
    let mut arrangement = Arrangement::default();
    if installed.parts.any {
        arrangement.notes.push(installed_anew(&problem));
        let shared = describe::is_there(database, TABLES).map_err(|error| file.error(error))?;
        arrangement.statements.extend(parts.removal(shared, false));
    }
    arrangement.statements.extend(parts.installation(&replaced(database, described, &request.key)?));
    Ok(arrangement)
}

/// The statement that forgets a reader.
pub(super) fn forget(changes: &str, reader: &str) -> String {
    format!("DELETE FROM {READERS} WHERE changes = '{changes}' AND reader = '{}'", reader.replace('\'', "''"))
}

/// The others who read the changes, and when they were last seen.
fn others(database: &Database, changes: &str, reader: &str) -> rusqlite::Result<Vec<String>> {
    let sql =
        format!("SELECT reader, seen FROM {READERS} WHERE changes = ?1 AND reader <> ?2 ORDER BY reader");
    let mut statement = database.prepare(&sql)?;
    let shown =
        |row: &rusqlite::Row<'_>| Ok(other_reader(&row.get::<_, String>(0)?, &row.get::<_, String>(1)?));
    statement.query_map([changes, reader], shown)?.collect()
}

/// Executes statements, which begin and end their transactions themselves.
pub(in super::super) fn execute(file: &File, statements: &[String]) -> Result<()> {
    let database = file.open()?;
    database.execute_batch(&statements.join(";\n")).map_err(|error| file.error(error))
}
