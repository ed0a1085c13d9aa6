//! Makes the target table hold what the stream brings: the statements, and running them.
//!
//! Each statement that makes or alters a table is its own transaction here. So renames are one statement, and
//! one that was done is not done again.

use super::control;
use super::discover::{self, Relation};
use super::encode::{self, Output};
use super::kind::{Kind, fits, serves};
use super::shape;
use super::statements::Column;
use crate::clients::mysql::{Server, Session, integer, literal};
use crate::connectors::sql::{self, History, MYSQL, Present, Renames, Wanted};
use crate::error::{Error, ErrorKind, Result};
use crate::table::{TableId, TableKind};
use crate::target::TargetTable;

/// How long to wait, in seconds, for another runner that prepares tables of the same database.
const PATIENCE: u32 = 60;

/// Character sets whose texts are UTF-8, byte for byte: keys of others could not be found by theirs.
const UTF8: [&str; 4] = ["utf8mb4", "utf8mb3", "utf8", "ascii"];

/// Finds out what is missing, in order. `id` is the table with its database filled in.
pub(super) async fn plan(session: &mut Session, id: &TableId, table: &TargetTable) -> Result<Vec<String>> {
    MYSQL.check_names(id, table.schema.fields().iter().map(|field| field.name().as_str()))?;
    let server = session.server().clone();
    let wanted = wanted(table, &server).map_err(|error| error.with("table", id))?;
    let mut statements = Vec::new();
    let database = id.schema_or("");
    let named =
        format!("SELECT 1 FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = {}", literal(database));
    if session.rows(&named).await?.is_empty() {
        statements.push(format!("CREATE DATABASE {} CHARACTER SET utf8mb4", MYSQL.ident(database)));
    }
    let has_control = discover::find(session, &control::beside(id)).await?.is_some();
    if !has_control {
        statements.push(control::create(id, &server));
    }
    let Some(mut relation) = discover::find(session, id).await? else {
        // First: no statement here can be taken back, and whoever comes next makes the table.
        statements.extend(control::made(id));
        statements.push(create(id, &wanted, &table.stored_key(), &server));
        return Ok(statements);
    };
    writable(id, &relation)?;
    let history = if has_control { control::history(session, id).await? } else { History::default() };
    statements.extend(renames(id, table, &history, &mut relation)?);
    let present: Vec<_> = relation.columns.iter().map(present).collect();
    sql::check_versions(id, table, &present)?;
    let wanted = content(wanted, &present, history.ours);
    statements.extend(sql::reshape(&MYSQL, id, &wanted, &present, history.ours, fits)?);
    check_key(id, table, &relation)?;
    let mut key = table.stored_key();
    key.sort();
    if !table.key.is_empty() && !relation.unique.contains(&key) {
        let statement =
            format!("ALTER TABLE {} ADD PRIMARY KEY ({})", MYSQL.table(id), MYSQL.list(table.stored_key()));
        if history.ours || is_empty(session, id).await? {
            statements.push(statement);
        } else {
            return Err(Error::new(
                ErrorKind::Schema,
                format!("no unique index has exactly the key columns {}", MYSQL.list(table.stored_key())),
            )
            .with("table", id)
            .hint(format!("run `{statement}`")));
        }
    }
    Ok(statements)
}

/// Runs what is missing; those that prepare tables of one database at once take turns, for they share a
/// control table.
pub(super) async fn run(session: &mut Session, id: &TableId, table: &TargetTable) -> Result<()> {
    if plan(session, id, table).await?.is_empty() {
        return Ok(());
    }
    let turn = format!("CONCAT('frazil ', MD5({}))", literal(id.schema_or("")));
    let had = session.rows(&format!("SELECT GET_LOCK({turn}, {PATIENCE})")).await?;
    if had.first().and_then(|row| integer(row, 0)) != Some(1) {
        return Err(Error::new(ErrorKind::Transient, "another runner prepares tables of this database")
            .with("table", id));
    }
    // Another runner may have done all of it by now.
    for statement in plan(session, id, table).await? {
        tracing::info!(table = %id, statement, "prepares a target table");
        session
            .run(&statement)
            .await
            .map_err(|error| error.with("table", id).hint(format!("the statement was `{statement}`")))?;
    }
    session.run(&format!("DO RELEASE_LOCK({turn})")).await?;
    Ok(())
}

/// Whether there is no row.
pub(super) async fn is_empty(session: &mut Session, id: &TableId) -> Result<bool> {
    Ok(session.rows(&format!("SELECT 1 FROM {} LIMIT 1", MYSQL.table(id))).await?.is_empty())
}

/// The columns that the stream brings, and the ones that we need for ourselves.
fn wanted(table: &TargetTable, server: &Server) -> Result<Vec<Wanted>> {
    let mut wanted = shape::wanted(table, server)?;
    sql::mark_deleted(&mut wanted, table, "datetime(6)")?;
    sql::keep_versions(&mut wanted, table, "datetime(6)", "tinyint(1)")?;
    Ok(wanted)
}

fn present(column: &discover::Column) -> Present {
    Present {
        name: column.name.clone(),
        data_type: column.of.written(),
        not_null: column.not_null,
        defaulted: column.defaulted,
        generated: column.generated,
    }
}

/// Wants what is there, where that serves.
fn content(mut wanted: Vec<Wanted>, present: &[Present], ours: bool) -> Vec<Wanted> {
    for column in &mut wanted {
        if let Some(there) = present.iter().find(|there| there.name == column.name)
            && serves(&column.data_type, &there.data_type, ours)
        {
            column.data_type = there.data_type.clone();
        }
    }
    wanted
}

fn create(id: &TableId, wanted: &[Wanted], key: &[String], server: &Server) -> String {
    let declared: Vec<_> = wanted
        .iter()
        .map(|column| {
            // A `timestamp` that says nothing takes no NULL on servers of the old kind.
            let data_type = shape::declaration(column, key, server);
            let null = if column.not_null { "" } else { " NULL" };
            Wanted { data_type: format!("{data_type}{null}"), ..column.clone() }
        })
        .collect();
    format!("{} ENGINE=InnoDB CHARACTER SET utf8mb4", sql::create_table(&MYSQL, id, &declared, key))
}

/// Renames what the lake renamed, in `relation` too, and notes it, so that a load that breaks off later does
/// not lead to renaming once more.
fn renames(
    id: &TableId,
    table: &TargetTable,
    history: &History,
    relation: &mut Relation,
) -> Result<Vec<String>> {
    let wanted = sql::lake_ids(&table.schema);
    let present: Vec<&str> = relation.columns.iter().map(|column| column.name.as_str()).collect();
    let renames =
        Renames::find(&history.columns, &wanted, &present).map_err(|error| error.with("table", id))?;
    if renames.is_empty() {
        return Ok(Vec::new());
    }
    for column in &mut relation.columns {
        column.name = renames.after(&column.name).to_owned();
    }
    for key in &mut relation.unique {
        key.iter_mut().for_each(|name| *name = renames.after(name).to_owned());
        key.sort();
    }
    // In one statement names may be exchanged.
    let moves = renames.moves.iter();
    let moves = moves.map(|(old, new)| format!("RENAME COLUMN {} TO {}", MYSQL.ident(old), MYSQL.ident(new)));
    let alter = format!("ALTER TABLE {} {}", MYSQL.table(id), moves.collect::<Vec<_>>().join(", "));
    Ok([alter].into_iter().chain(control::renamed(id, history, &renames)).collect())
}

fn writable(id: &TableId, relation: &Relation) -> Result<()> {
    let message = match relation.kind {
        TableKind::Table if relation.engine == "InnoDB" => return Ok(()),
        TableKind::Table => {
            return Err(Error::new(
                ErrorKind::Config,
                format!("the target's engine {} has no transactions", relation.engine),
            )
            .with("table", id)
            .hint(format!("run `ALTER TABLE {} ENGINE=InnoDB`", MYSQL.table(id))));
        }
        _ => "the target is a view, which cannot be loaded",
    };
    Err(Error::new(ErrorKind::Config, message)
        .with("table", id)
        .hint("load into another table, or rename this one away"))
}

/// Keys that could not be compared with staged ones.
fn check_key(id: &TableId, table: &TargetTable, relation: &Relation) -> Result<()> {
    let odd = |column: &&discover::Column| {
        let foreign = column.of.collation.as_deref().is_some_and(|collation| {
            let character_set = collation.split('_').next().unwrap_or_default();
            !UTF8.contains(&character_set)
        });
        let kind = Kind::parse(&column.of.written());
        let open = matches!(kind, None | Some(Kind::Text(_) | Kind::Blob(_) | Kind::Checked));
        table.key.contains(&column.name) && (foreign || open)
    };
    match relation.columns.iter().find(odd) {
        None => Ok(()),
        Some(column) => Err(Error::new(
            ErrorKind::Schema,
            format!(
                "a column of type {} in {} cannot be a key",
                column.of.written(),
                column.of.collation.as_deref().unwrap_or("no collation")
            ),
        )
        .with("table", id)
        .with("column", &column.name)
        .hint("give it a type with a length and the character set utf8mb4")),
    }
}

/// The columns of a load and how each travels; fails when the table no longer fits.
pub(super) fn columns(table: &TargetTable, relation: &Relation) -> Result<Vec<(Output, Column)>> {
    let mut columns = Vec::new();
    for (index, field) in table.schema.fields().iter().enumerate() {
        let there = relation.column(field.name()).ok_or_else(|| {
            Error::new(ErrorKind::Schema, "the target table lost a column since it was prepared")
                .with("column", field.name())
        })?;
        if there.generated {
            continue;
        }
        let type_name = there.of.written();
        let carried = encode::carry(field.data_type(), &type_name).ok_or_else(|| {
            Error::new(
                ErrorKind::Schema,
                format!("a column of type {type_name} cannot hold the lake's {}", field.data_type()),
            )
            .with("column", field.name())
        })?;
        let key = table.key.contains(field.name());
        let output = Output { index, name: field.name().clone(), wire: carried.wire, key };
        let collation = there.of.collation.clone();
        let name = field.name().clone();
        columns.push((output, Column { name, type_name, collation, staged: carried.staged, key }));
    }
    Ok(columns)
}
