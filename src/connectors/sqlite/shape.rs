//! The shape of a target table: what is there, what is missing, and whether it keeps values as they are.

use std::collections::BTreeMap;

use arrow::datatypes::{DataType, Field};
use rusqlite::{Connection as Database, OptionalExtension};

use super::types;
use crate::clients::sqlite::File;
use crate::connectors::sql::{self, Present, Renames, SQLITE, Wanted};
use crate::error::{Error, ErrorKind, Result};
use crate::table::{ADDED_DEFAULT, TableId};
use crate::target::TargetTable;

/// Where the snapshot that a table shows is recorded.
pub(super) const CONTROL: &str = "frazil_applied";

const CREATE_CONTROL: &str = "CREATE TABLE IF NOT EXISTS frazil_applied (
  stream TEXT NOT NULL,
  target_table TEXT NOT NULL,
  lake_table TEXT NOT NULL,
  snapshot_id INTEGER NOT NULL,
  applied_at TIMESTAMP NOT NULL,
  rows INTEGER NOT NULL,
  columns TEXT NOT NULL DEFAULT '{}',
  halfway TEXT,
  PRIMARY KEY (stream, target_table)
)";

/// A file has no schemas: `public.orders` is the table `public_orders` in it, `main.orders` is `orders`.
pub(super) fn local(table: &TableId) -> String {
    match table.schema.as_deref() {
        None | Some(super::describe::MAIN) => table.name.clone(),
        Some(schema) => format!("{schema}_{}", table.name),
    }
}

/// Whether a table of that name is there.
pub(super) fn exists(database: &Database, name: &str) -> rusqlite::Result<bool> {
    let kind: Option<String> = database
        .query_row(
            "SELECT type FROM sqlite_schema WHERE name = ?1 AND type IN ('table', 'view')",
            [name],
            |row| row.get(0),
        )
        .optional()?;
    Ok(kind.is_some())
}

/// The statements that make the table fit, in order.
pub(super) fn statements(file: &File, database: &Database, table: &TargetTable) -> Result<Vec<String>> {
    let failed = |error| file.error(error).with("table", &table.id);
    let name = local(&table.id);
    if name == CONTROL {
        return Err(
            Error::new(ErrorKind::Config, "this name is taken by our own records").with("table", &table.id)
        );
    }
    if table.versions {
        return Err(no_versions().with("table", &table.id));
    }
    let wanted = wanted(table).map_err(|error| error.with("table", &table.id))?;
    let id = TableId::bare(&name);
    SQLITE.check_names(&id, wanted.iter().map(|column| column.name.as_str()))?;
    let mut statements = Vec::new();
    let recorded = exists(database, CONTROL).map_err(failed)?;
    if !recorded {
        statements.push(CREATE_CONTROL.to_owned());
    } else if !has_column(database, CONTROL, "columns").map_err(failed)? {
        statements.push(format!("ALTER TABLE {CONTROL} ADD COLUMN columns TEXT NOT NULL DEFAULT '{{}}'"));
    }
    if !exists(database, &name).map_err(failed)? {
        if recorded {
            // Somebody dropped the table: what the record says it shows is gone with it.
            statements
                .push(format!("DELETE FROM {CONTROL} WHERE target_table = '{}'", name.replace('\'', "''")));
        }
        statements.push(sql::create_table(&SQLITE, &id, &wanted, &table.key));
        return Ok(statements);
    }
    let mut present = present(database, &name).map_err(failed)?;
    let noted = if recorded { noted(database, &name).map_err(failed)? } else { Vec::new() };
    let renames = renames(table, &noted, &present).map_err(|error| error.with("table", &table.id))?;
    statements.extend(renames.statements(&SQLITE, &id));
    statements.extend(notes(&name, &noted, &renames));
    for column in &mut present {
        column.name = renames.after(&column.name).to_owned();
    }
    if !noted.is_empty() {
        statements.extend(rewritten(&id, table, &mut present));
    }
    statements.extend(sql::reshape(&SQLITE, &id, &wanted, &present, false, types::holds)?);
    let key_there: Vec<String> = table.key.iter().map(|name| renames.before(name).to_owned()).collect();
    if !table.key.is_empty() && !has_key(database, &name, &key_there).map_err(failed)? {
        return Err(Error::new(ErrorKind::Schema, "no unique index has exactly the stream's key")
            .with("table", &table.id)
            .with("key", table.key.join(", "))
            .hint(format!(
                "CREATE UNIQUE INDEX {} ON {} ({})",
                SQLITE.ident(&format!("{name}_key")),
                SQLITE.ident(&name),
                SQLITE.list(&table.key)
            )));
    }
    Ok(statements)
}

/// What earlier loads noted, stream by stream: names of columns by the lake's ids.
type Noted = Vec<(String, BTreeMap<String, String>)>;

fn noted(database: &Database, table: &str) -> rusqlite::Result<Noted> {
    if !has_column(database, CONTROL, "columns")? {
        return Ok(Vec::new());
    }
    let mut statement =
        database.prepare(&format!("SELECT stream, columns FROM {CONTROL} WHERE target_table = ?1"))?;
    let rows = statement.query_map([table], |row| {
        let columns: String = row.get(1)?;
        // What cannot be read says nothing: then columns go by their names.
        Ok((row.get(0)?, serde_json::from_str(&columns).unwrap_or_default()))
    })?;
    rows.collect()
}

fn has_column(database: &Database, table: &str, column: &str) -> rusqlite::Result<bool> {
    let sql = "SELECT count(*) > 0 FROM pragma_table_info(?1) WHERE name = ?2";
    database.query_row(sql, [table, column], |row| row.get(0))
}

fn renames(table: &TargetTable, noted: &Noted, present: &[Present]) -> Result<Renames> {
    let all = noted.iter().flat_map(|(_, columns)| columns.clone()).collect();
    let present: Vec<&str> = present.iter().map(|column| column.name.as_str()).collect();
    Renames::find(&all, &sql::lake_ids(&table.schema), &present)
}

/// Notes the new names in the transaction that gives them: a load that breaks off later does not lead to
/// renaming once more.
fn notes(table: &str, noted: &Noted, renames: &Renames) -> Vec<String> {
    let literal = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let note = |(stream, columns): &(String, BTreeMap<String, String>)| {
        let columns = serde_json::to_string(&renames.noted(columns)).expect("names are text");
        format!(
            "UPDATE {CONTROL} SET columns = {} WHERE stream = {} AND target_table = {}",
            literal(&columns),
            literal(stream),
            literal(table)
        )
    };
    if renames.is_empty() { Vec::new() } else { noted.iter().map(note).collect() }
}

/// Decimals that no longer fit the column's numeric affinity move into a column that keeps their text.
/// SQLite has no statement that changes a type.
fn rewritten(id: &TableId, table: &TargetTable, present: &mut [Present]) -> Vec<String> {
    let alter = format!("ALTER TABLE {}", SQLITE.table(id));
    let mut statements = Vec::new();
    for field in table.schema.fields().iter().filter(|field| !table.key.contains(field.name())) {
        let DataType::Decimal128(_, scale) = field.data_type() else { continue };
        let wanted = types::declare(field);
        let Some(there) = present.iter_mut().find(|there| there.name == *field.name()) else { continue };
        if there.generated || !types::is_decimal(&there.data_type) || types::holds(&wanted, &there.data_type)
        {
            continue;
        }
        let (old, new) = (SQLITE.ident(field.name()), SQLITE.ident("frazil_widened"));
        statements.extend([
            format!("{alter} ADD COLUMN {new} {wanted}"),
            format!(
                "UPDATE {} SET {new} = printf('%.{scale}f', {old}) WHERE {old} IS NOT NULL",
                SQLITE.table(id)
            ),
            format!("{alter} DROP COLUMN {old}"),
            format!("{alter} RENAME COLUMN {new} TO {old}"),
        ]);
        there.data_type = wanted;
    }
    statements
}

/// The columns as they should be. Only keys refuse NULL: the lake may make any other column optional,
/// and SQLite cannot take a NOT NULL back.
fn wanted(table: &TargetTable) -> Result<Vec<Wanted>> {
    let mut columns: Vec<_> = table
        .schema
        .fields()
        .iter()
        .map(|field| {
            let whole = matches!(field.data_type(), DataType::Int64 | DataType::Int32);
            // Exactly this word makes a key the row id itself: no second index, faster by half.
            let is_row_id = table.key.as_slice() == [field.name().as_str()] && whole;
            Wanted {
                name: field.name().clone(),
                data_type: if is_row_id { "INTEGER".into() } else { types::declare(field) },
                not_null: table.key.contains(field.name()),
                added_default: field.metadata().get(ADDED_DEFAULT).and_then(|text| default(field, text)),
            }
        })
        .collect();
    sql::mark_deleted(&mut columns, table, "TIMESTAMP")?;
    Ok(columns)
}

/// A default as we would write the value; `None` where SQLite has no such literal.
fn default(field: &Field, text: &str) -> Option<String> {
    match field.data_type() {
        DataType::Boolean => Some(if text == "true" { "1" } else { "0" }.to_owned()),
        // The column's affinity makes numbers of them.
        DataType::Int32 | DataType::Int64 | DataType::Float32 | DataType::Float64 => Some(text.to_owned()),
        DataType::Utf8 | DataType::Date32 => Some(text.to_owned()),
        _ => None,
    }
}

/// The columns that are there.
pub(super) fn present(database: &Database, table: &str) -> rusqlite::Result<Vec<Present>> {
    let mut statement = database.prepare(
        "SELECT name, coalesce(type, ''), \"notnull\", dflt_value IS NOT NULL OR pk > 0, hidden IN (2, 3)
         FROM pragma_table_xinfo(?1) WHERE hidden <> 1",
    )?;
    statement
        .query_map([table], |row| {
            Ok(Present {
                name: row.get(0)?,
                data_type: row.get(1)?,
                not_null: row.get(2)?,
                defaulted: row.get(3)?,
                generated: row.get(4)?,
            })
        })?
        .collect()
}

/// Whether a unique index, compared byte by byte, has exactly these columns.
fn has_key(database: &Database, table: &str, key: &[String]) -> rusqlite::Result<bool> {
    let mut wanted: Vec<&str> = key.iter().map(String::as_str).collect();
    wanted.sort_unstable();
    let mut primary =
        database.prepare("SELECT name, type FROM pragma_table_info(?1) WHERE pk > 0 ORDER BY name")?;
    let primary: Vec<(String, String)> =
        primary.query_map([table], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
    if let [(column, declared)] = primary.as_slice()
        && declared.eq_ignore_ascii_case("INTEGER")
        && wanted == [column.as_str()]
    {
        return Ok(true);
    }
    let mut list =
        database.prepare("SELECT name FROM pragma_index_list(?1) WHERE \"unique\" AND NOT partial")?;
    let names: Vec<String> = list.query_map([table], |row| row.get(0))?.collect::<Result<_, _>>()?;
    for index in names {
        let mut info =
            database.prepare("SELECT name, coll FROM pragma_index_xinfo(?1) WHERE key ORDER BY name")?;
        let columns: Vec<(Option<String>, String)> =
            info.query_map([&index], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
        let same = columns.len() == wanted.len()
            && columns.iter().zip(&wanted).all(|((name, collation), wanted)| {
                name.as_deref() == Some(wanted) && collation.eq_ignore_ascii_case("BINARY")
            });
        if same {
            return Ok(true);
        }
    }
    Ok(false)
}

/// SQLite targets show the current state only.
pub(super) fn no_versions() -> Error {
    Error::new(ErrorKind::Unsupported, "`mode: scd2` is not for SQLite targets")
        .hint("load into Postgres or SQL Server, or use `mode: merge`")
}
