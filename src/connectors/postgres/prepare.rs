//! Makes the target table hold what the stream brings: the statements, and running them.

use tokio_postgres::Client;

use super::catalog::{self, Relation, quoted};
use super::control;
use super::{encode, shape};
use crate::connectors::sql::{self, History, POSTGRES, Renames, Wanted};
use crate::error::{Error, ErrorKind, Result};
use crate::table::TableId;
use crate::target::TargetTable;

/// What stands between the target as it is and as it should be.
#[derive(Debug, Default)]
pub(super) struct Preparation {
    /// To be run now, in order.
    pub(super) now: Vec<String>,
    /// The key of a table without rows. It is added by the first load, after the rows: building an
    /// index at once is faster than keeping it up to date.
    pub(super) with_first_load: Option<String>,
}

impl Preparation {
    /// All statements, for a user to read.
    pub(super) fn statements(mut self) -> Vec<String> {
        self.now.extend(self.with_first_load);
        self.now
    }
}

/// Finds out what is missing. `table` has its schema filled in.
pub(super) async fn plan(client: &Client, id: &TableId, table: &TargetTable) -> Result<Preparation> {
    POSTGRES.check_names(id, table.schema.fields().iter().map(|field| field.name().as_str()))?;
    let wanted = wanted(client, table).await.map_err(|error| error.with("table", id))?;
    let mut preparation = Preparation::default();

    if !schema_exists(client, id).await? {
        preparation.now.push(create_schema(client, id).await?);
        preparation.now.push(control::create(id));
        preparation.now.extend(control::made(id));
        preparation.now.push(sql::create_table(&POSTGRES, id, &wanted, &[]));
        preparation.with_first_load = (!table.key.is_empty()).then(|| primary_key(id, &table.stored_key()));
        return Ok(preparation);
    }
    let has_control = catalog::relation(client, &control::beside(id)).await?.is_some();
    if !has_control {
        preparation.now.push(control::create(id));
    }
    let Some(mut relation) = catalog::relation(client, id).await? else {
        preparation.now.extend(control::made(id));
        preparation.now.push(sql::create_table(&POSTGRES, id, &wanted, &[]));
        preparation.with_first_load = (!table.key.is_empty()).then(|| primary_key(id, &table.stored_key()));
        return Ok(preparation);
    };
    writable(id, &relation)?;
    let history = if has_control { control::history(client, id).await? } else { History::default() };
    preparation.now.extend(renames(id, table, &history, &mut relation)?);
    let present: Vec<_> = relation.columns.iter().map(catalog::Column::present).collect();
    sql::check_versions(id, table, &present)?;
    preparation.now.extend(sql::reshape(&POSTGRES, id, &wanted, &present, history.ours, shape::fits)?);
    check_identities(id, table, &relation)?;

    if !table.key.is_empty() && !relation.is_unique_by(&table.stored_key()) {
        let empty = is_empty(client, id).await?;
        let statement = key_statement(id, &table.stored_key(), &relation);
        if empty {
            preparation.with_first_load = Some(statement);
        } else if history.ours {
            preparation.now.push(statement);
        } else {
            return Err(Error::new(
                ErrorKind::Schema,
                format!("no unique index has exactly the key columns {}", POSTGRES.list(table.stored_key())),
            )
            .with("table", id)
            .hint(format!("run `{statement}`")));
        }
    }
    Ok(preparation)
}

/// Runs what is missing, in one transaction; those that prepare tables of one schema at once take turns,
/// for they share a control table.
pub(super) async fn run(client: &Client, id: &TableId, table: &TargetTable) -> Result<()> {
    if plan(client, id, table).await?.now.is_empty() {
        return Ok(());
    }
    client.batch_execute("BEGIN; SET LOCAL lock_timeout = '60s'").await?;
    client
        .execute(
            "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))",
            &[&format!("frazil prepare {}", control::beside(id))],
        )
        .await?;
    // Another runner may have done all of it by now.
    for statement in plan(client, id, table).await?.now {
        tracing::info!(table = %id, statement, "prepares a target table");
        client.batch_execute(&statement).await.map_err(|error| {
            let error = Error::from(error).with("table", id);
            error.hint(format!("the statement was `{statement}`"))
        })?;
    }
    client.batch_execute("COMMIT").await?;
    Ok(())
}

/// The columns that the stream brings, and the one that marks deleted rows.
async fn wanted(client: &Client, table: &TargetTable) -> Result<Vec<Wanted>> {
    let fields = table.schema.fields();
    let names: Vec<_> =
        fields.iter().filter_map(|field| shape::source_type(field)).map(str::to_owned).collect();
    let known = catalog::named_types(client, &names).await?;
    let mut wanted = fields.iter().map(|field| shape::wanted(field, &known)).collect::<Result<Vec<_>>>()?;
    for column in &mut wanted {
        // A primary key refuses NULL; said from the start, adding it needs no second look at the rows.
        column.not_null |= table.key.contains(&column.name);
    }
    if let Some(missing) = table.key.iter().find(|key| !wanted.iter().any(|column| column.name == **key)) {
        return Err(Error::new(ErrorKind::Config, "the key names a column that the stream does not have")
            .with("column", missing));
    }
    sql::mark_deleted(&mut wanted, table, "timestamp with time zone")?;
    sql::keep_versions(&mut wanted, table, "timestamp with time zone", "boolean")?;
    Ok(wanted)
}

/// The statement that gives a table its key: a primary key, unless it has one of other columns.
pub(super) fn key_statement(id: &TableId, key: &[String], relation: &Relation) -> String {
    if relation.has_primary_key {
        format!("CREATE UNIQUE INDEX ON {} ({})", quoted(id), POSTGRES.list(key))
    } else {
        primary_key(id, key)
    }
}

fn primary_key(id: &TableId, key: &[String]) -> String {
    format!("ALTER TABLE {} ADD PRIMARY KEY ({})", quoted(id), POSTGRES.list(key))
}

async fn schema_exists(client: &Client, id: &TableId) -> Result<bool> {
    let row = client
        .query_one("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)", &[&id.schema])
        .await?;
    Ok(row.get(0))
}

async fn create_schema(client: &Client, id: &TableId) -> Result<String> {
    let statement = format!("CREATE SCHEMA {}", POSTGRES.ident(id.schema_or("public")));
    let row = client.query_one("SELECT has_database_privilege(current_database(), 'CREATE')", &[]).await?;
    if row.get(0) {
        return Ok(statement);
    }
    Err(Error::new(ErrorKind::Permission, "the schema does not exist, and this user may not create it")
        .with("table", id)
        .hint(format!("run `{statement}` and grant CREATE on it")))
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
    let mut statements = renames.statements(&POSTGRES, id);
    statements.extend(control::renamed(id, history, &renames));
    Ok(statements)
}

/// Whether there is no row.
pub(super) async fn is_empty(client: &Client, id: &TableId) -> Result<bool> {
    let row = client.query_one(&format!("SELECT NOT EXISTS (SELECT FROM {})", quoted(id)), &[]).await?;
    Ok(row.get(0))
}

fn writable(id: &TableId, relation: &Relation) -> Result<()> {
    let what = match relation.kind.as_str() {
        "r" | "p" => return Ok(()),
        "v" => "a view",
        "m" => "a materialised view",
        "f" => "a foreign table",
        _ => "no table",
    };
    Err(Error::new(ErrorKind::Config, format!("the target is {what}, which cannot be loaded"))
        .with("table", id)
        .hint("load into another table, or rename this one away"))
}

/// An identity that is always generated cannot be updated, so it has to be part of the key.
fn check_identities(id: &TableId, table: &TargetTable, relation: &Relation) -> Result<()> {
    let stubborn = relation.columns.iter().find(|column| {
        column.identity_always
            && table.schema.column_with_name(&column.name).is_some()
            && !table.key.is_empty()
            && !table.key.contains(&column.name)
    });
    match stubborn {
        None => Ok(()),
        Some(column) => Err(Error::new(
            ErrorKind::Schema,
            "a column that is GENERATED ALWAYS AS IDENTITY cannot follow updates of the stream",
        )
        .with("table", id)
        .with("column", &column.name)
        .hint(format!(
            "run `ALTER TABLE {} ALTER COLUMN {} SET GENERATED BY DEFAULT`",
            quoted(id),
            POSTGRES.ident(&column.name)
        ))),
    }
}

/// The columns of a load and how each travels; fails when the table no longer fits.
pub(super) fn columns(
    table: &TargetTable,
    relation: &Relation,
) -> Result<Vec<(usize, super::statements::Column)>> {
    let mut columns = Vec::new();
    for (index, field) in table.schema.fields().iter().enumerate() {
        let there = relation.column(field.name()).ok_or_else(|| {
            Error::new(ErrorKind::Schema, "the target table lost a column since it was prepared")
                .with("column", field.name())
        })?;
        if there.generated {
            continue;
        }
        let carried = encode::carry(field.data_type(), &there.pg_type).ok_or_else(|| {
            Error::new(
                ErrorKind::Schema,
                format!("a column of type {} cannot hold the lake's {}", there.type_name, field.data_type()),
            )
            .with("column", field.name())
        })?;
        columns.push((
            index,
            super::statements::Column {
                name: field.name().clone(),
                type_name: there.type_name.clone(),
                carried,
                key: table.key.contains(field.name()),
                equality_is_identity: there.equality_is_identity(),
            },
        ));
    }
    Ok(columns)
}
