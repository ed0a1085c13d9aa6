//! Makes the target table hold what the stream brings: the statements, and running them.

use super::control;
use super::encode::{self, Output};
use super::kind::{fits, serves};
use super::relation::{self, Relation, is_comparable};
use super::shape;
use super::statements::Column;
use crate::clients::mssql::{Isolation, Session, literal};
use crate::connectors::sql::{self, History, MSSQL, Present, Renames, Wanted};
use crate::error::{Error, ErrorKind, Result};
use crate::table::TableId;
use crate::target::TargetTable;

/// The oldest server with the statements that we use (`DROP … IF EXISTS`, minimal logging of sorted loads).
const OLDEST: &str = "2016";

/// Finds out what is missing, in order. `id` is the table with its schema filled in.
pub(super) async fn plan(session: &mut Session, id: &TableId, table: &TargetTable) -> Result<Vec<String>> {
    if !session.server().is_2016() {
        let message = format!("the target's server is older than {OLDEST}");
        return Err(
            Error::new(ErrorKind::Unsupported, message).hint(format!("{OLDEST} is the oldest that works"))
        );
    }
    MSSQL.check_names(id, table.schema.fields().iter().map(|field| field.name().as_str()))?;
    let wanted = wanted(table).map_err(|error| error.with("table", id))?;
    let mut statements = Vec::new();
    if !relation::schema_exists(session, id).await? {
        statements.push(format!("CREATE SCHEMA {}", MSSQL.ident(id.schema_or("dbo"))));
        statements.push(control::create(id));
        statements.extend(control::made(id));
        statements.push(create(id, &wanted, &table.stored_key()));
        return Ok(statements);
    }
    let has_control = relation::relation(session, &control::beside(id)).await?.is_some();
    if !has_control {
        statements.push(control::create(id));
    }
    let Some(mut relation) = relation::relation(session, id).await? else {
        statements.extend(control::made(id));
        statements.push(create(id, &wanted, &table.stored_key()));
        return Ok(statements);
    };
    writable(id, &relation)?;
    let history = if has_control { control::history(session, id).await? } else { History::default() };
    statements.extend(renames(id, table, &history, &mut relation)?);
    let present: Vec<_> = relation.columns.iter().map(relation::Column::present).collect();
    sql::check_versions(id, table, &present)?;
    let wanted = content(wanted, &present, history.ours);
    statements.extend(sql::reshape(&MSSQL, id, &wanted, &present, history.ours, fits)?);
    check_columns(id, table, &relation)?;
    if !table.key.is_empty() && !relation.is_unique_by(&table.stored_key()) {
        let statement = primary_key(id, &table.stored_key());
        if history.ours || is_empty(session, id).await? {
            statements.push(statement);
        } else {
            return Err(Error::new(
                ErrorKind::Schema,
                format!("no unique index has exactly the key columns {}", MSSQL.list(table.stored_key())),
            )
            .with("table", id)
            .hint(format!("run `{statement}`")));
        }
    }
    Ok(statements)
}

/// Runs what is missing, in one transaction; those that prepare tables of one schema at once take turns,
/// for they share a control table.
pub(super) async fn run(session: &mut Session, id: &TableId, table: &TargetTable) -> Result<()> {
    if plan(session, id, table).await?.is_empty() {
        return Ok(());
    }
    session.batch("SET XACT_ABORT ON; SET LOCK_TIMEOUT 60000").await?;
    session.begin(Isolation::ReadCommitted).await?;
    let turn = literal(&format!("frazil prepare {}", MSSQL.table(&control::beside(id))));
    // Who does not get its turn in time finds the other's tables in its way, and says so.
    session
        .batch(&format!(
            "EXEC sp_getapplock @Resource = {turn}, @LockMode = N'Exclusive', @LockOwner = N'Transaction', @LockTimeout = 60000"
        ))
        .await?;
    // Another runner may have done all of it by now.
    for statement in plan(session, id, table).await? {
        tracing::info!(table = %id, statement, "prepares a target table");
        session
            .batch(&statement)
            .await
            .map_err(|error| error.with("table", id).hint(format!("the statement was `{statement}`")))?;
    }
    session.commit().await
}

/// Whether there is no row.
pub(super) async fn is_empty(session: &mut Session, id: &TableId) -> Result<bool> {
    let query = format!("SELECT TOP (1) CAST(1 AS int) AS one FROM {} AS t", MSSQL.table(id));
    Ok(session.rows(&query).await?.is_empty())
}

/// The columns that the stream brings, and the one that marks deleted rows.
fn wanted(table: &TargetTable) -> Result<Vec<Wanted>> {
    let mut wanted = shape::wanted(table)?;
    sql::mark_deleted(&mut wanted, table, "datetime2(7)")?;
    sql::keep_versions(&mut wanted, table, "datetime2(7)", "bit")?;
    Ok(wanted)
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

fn create(id: &TableId, wanted: &[Wanted], key: &[String]) -> String {
    let declared: Vec<_> = wanted
        .iter()
        .map(|column| Wanted { data_type: shape::declaration(column, key), ..column.clone() })
        .collect();
    sql::create_table(&MSSQL, id, &declared, key)
}

fn primary_key(id: &TableId, key: &[String]) -> String {
    format!("ALTER TABLE {} ADD PRIMARY KEY ({})", MSSQL.table(id), MSSQL.list(key))
}

/// Renames what the lake renamed, in `relation` too; and notes it in the same transaction, so that a load
/// that breaks off later does not lead to renaming once more.
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
    for column in &mut relation.columns {
        column.name = renames.after(&column.name).to_owned();
    }
    for key in &mut relation.unique {
        key.iter_mut().for_each(|name| *name = renames.after(name).to_owned());
        key.sort();
    }
    let mut statements = renames.statements(&MSSQL, id);
    statements.extend(control::renamed(id, history, &renames));
    Ok(statements)
}

fn writable(id: &TableId, relation: &Relation) -> Result<()> {
    let what = match relation.kind.as_str() {
        "U" => return Ok(()),
        "V" => "a view",
        "SN" => "a synonym",
        _ => "no table",
    };
    Err(Error::new(ErrorKind::Config, format!("the target is {what}, which cannot be loaded"))
        .with("table", id)
        .hint("load into another table, or rename this one away"))
}

/// What a load could not write: identities that follow updates, types that do not compare.
fn check_columns(id: &TableId, table: &TargetTable, relation: &Relation) -> Result<()> {
    let in_stream = |name: &str| table.schema.column_with_name(name).is_some();
    if let Some(identity) = relation.identity()
        && in_stream(&identity.name)
        && !table.key.is_empty()
        && !table.key.contains(&identity.name)
    {
        return Err(Error::new(ErrorKind::Schema, "an identity column cannot follow updates of the stream")
            .with("table", id)
            .with("column", &identity.name)
            .hint("make it the key, or load into a table whose column is no identity"));
    }
    let odd =
        |column: &&relation::Column| table.key.contains(&column.name) && !is_comparable(&column.type_name);
    match relation.columns.iter().find(odd) {
        None => Ok(()),
        Some(column) => Err(Error::new(
            ErrorKind::Schema,
            format!("a column of type {} cannot be a key", column.type_name),
        )
        .with("table", id)
        .with("column", &column.name)),
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
        let carried = encode::carry(field.data_type(), &there.type_name).ok_or_else(|| {
            Error::new(
                ErrorKind::Schema,
                format!("a column of type {} cannot hold the lake's {}", there.type_name, field.data_type()),
            )
            .with("column", field.name())
        })?;
        let key = table.key.contains(field.name());
        let output = Output { index, name: field.name().clone(), wire: carried.wire, key };
        let column = Column {
            name: field.name().clone(),
            type_name: there.type_name.clone(),
            collation: there.collation.clone(),
            staged: carried.staged,
            cast: carried.cast,
            key,
            identity: there.identity,
        };
        columns.push((output, column));
    }
    Ok(columns)
}
