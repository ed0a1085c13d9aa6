//! What tables there are, by SQLite's own catalog.

use rusqlite::{Connection as Database, OptionalExtension};

use super::types;
use crate::clients::sqlite::File;
use crate::connectors::sql::SQLITE;
use crate::error::{Error, ErrorKind, Result};
use crate::source::ValuePolicy;
use crate::table::{
    ColumnDescription, CursorCandidate, KeyDescription, TableDescription, TableId, TableKind,
};

/// The only schema: attached databases belong to a connection, not to a file.
pub(super) const MAIN: &str = "main";
/// Up to this size the pages of a table are counted one by one; it takes some milliseconds.
const COUNTED_BYTES: u64 = 64 << 20;
/// Names this close to a wrong one are offered.
const SIMILAR: f64 = 0.7;

/// A table or view, with what only SQLite knows of it.
#[derive(Debug, Clone)]
pub(super) struct Described {
    pub(super) table: TableDescription,
    /// A name by which the row id can be read, if rows have one.
    pub(super) row_id: Option<&'static str>,
    /// The column that is the row id, and whether ids are never given twice.
    pub(super) row_id_column: Option<(String, bool)>,
    /// The declared types, column by column.
    pub(super) declared: Vec<String>,
}

/// The names of all tables and views.
pub(super) fn names(file: &File, database: &Database) -> Result<Vec<String>> {
    let run = || -> rusqlite::Result<Vec<String>> {
        let mut statement = database.prepare(
            "SELECT name FROM pragma_table_list WHERE schema = 'main' AND type IN ('table', 'view', 'virtual')
             AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
             AND name NOT LIKE '\\_frazil\\_%' ESCAPE '\\' ORDER BY name",
        )?;
        statement.query_map([], |row| row.get(0))?.collect()
    };
    run().map_err(|error| file.error(error))
}

/// Whether there is a table of this name.
pub(super) fn is_there(database: &Database, name: &str) -> rusqlite::Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?1)";
    database.query_row(sql, [name], |row| row.get(0))
}

/// A table by its name, or an error that names those with similar names.
pub(super) fn find(file: &File, database: &Database, id: &TableId) -> Result<Described> {
    let known = names(file, database)?;
    let exists = known.contains(&id.name) && id.schema.as_deref().is_none_or(|schema| schema == MAIN);
    if exists {
        return describe(file, database, &id.name);
    }
    let mut near: Vec<_> = known
        .iter()
        .map(|name| (strsim::jaro_winkler(&name.to_lowercase(), &id.name.to_lowercase()), name))
        .filter(|(similarity, _)| *similarity > SIMILAR)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    let hint = match near.as_slice() {
        [] if known.is_empty() => "the database has no tables".into(),
        [] => "`frazil discover` lists the tables".into(),
        near => {
            let names: Vec<_> = near.iter().take(3).map(|(_, name)| format!("`{MAIN}.{name}`")).collect();
            format!("did you mean {}?", names.join(" or "))
        }
    };
    Err(file.locate(Error::new(ErrorKind::Config, "table does not exist").with("table", id)).hint(hint))
}

/// Reads a table's shape from the catalog.
pub(super) fn describe(file: &File, database: &Database, name: &str) -> Result<Described> {
    read_shape(database, name).map_err(|error| file.error(error))
}

struct RawColumn {
    name: String,
    declared: String,
    not_null: bool,
    key_position: i64,
    generated: bool,
}

fn read_shape(database: &Database, name: &str) -> rusqlite::Result<Described> {
    let (kind, without_row_id): (String, bool) = database.query_row(
        "SELECT type, wr FROM pragma_table_list WHERE schema = 'main' AND name = ?1",
        [name],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    let is_view = kind == "view";
    let raw = raw_columns(database, name)?;
    let mut key: Vec<&RawColumn> = raw.iter().filter(|column| column.key_position > 0).collect();
    key.sort_by_key(|column| column.key_position);
    let key: Vec<String> = key.into_iter().map(|column| column.name.clone()).collect();

    let row_id = (!is_view && !without_row_id && kind == "table")
        .then(|| {
            ["rowid", "_rowid_", "oid"]
                .into_iter()
                .find(|word| !raw.iter().any(|column| column.name.eq_ignore_ascii_case(word)))
        })
        .flatten();
    let (mut keys, indexes) = read_indexes(database, name)?;
    // The row id's alias has no index of its own: the table is its index.
    let alias = match key.as_slice() {
        [only] if !without_row_id && !keys.iter().any(|index| index.primary) => Some(only.clone()),
        _ => None,
    };
    if !key.is_empty() {
        keys.retain(|index| !index.primary);
        keys.insert(
            0,
            KeyDescription { name: format!("{name} primary key"), columns: key.clone(), primary: true },
        );
    }
    let never_again = match &alias {
        Some(_) => counts_up(database, name)?,
        None => false,
    };

    let mut columns = Vec::with_capacity(raw.len());
    for column in &raw {
        let type_ = types::resolve(&column.name, &column.declared, &ValuePolicy::default())
            .expect("the default policy refuses no declaration");
        // SQLite lets NULL into most primary keys; such a row has no identity, and reading it fails.
        let nullable = is_view || !(column.not_null || column.key_position > 0);
        let is_alias = alias.as_ref() == Some(&column.name);
        let cursor = if type_.kind.is_time() && is_kept_up_to_date(&column.name) {
            Some(CursorCandidate::Timestamp)
        } else if is_alias {
            Some(CursorCandidate::Id)
        } else {
            None
        };
        columns.push(ColumnDescription {
            name: column.name.clone(),
            source_type: column.declared.clone(),
            field: types::field(&column.name, &column.declared, &type_, nullable),
            fidelity: type_.fidelity,
            generated: column.generated,
            identity: is_alias,
            indexed: is_alias || indexes.contains(&column.name),
            cursor,
        });
    }
    let rows = estimate_rows(database, name, row_id)?;
    let table = TableDescription {
        id: TableId::new(MAIN, name),
        kind: if is_view { TableKind::View } else { TableKind::Table },
        columns,
        keys,
        rows,
        bytes: if is_view { None } else { count_bytes(database, name)? },
    };
    let declared = raw.into_iter().map(|column| column.declared).collect();
    Ok(Described { table, row_id, row_id_column: alias.map(|column| (column, never_again)), declared })
}

fn raw_columns(database: &Database, name: &str) -> rusqlite::Result<Vec<RawColumn>> {
    // Hidden 1 are the inputs of virtual tables; 2 and 3 are generated columns.
    let mut statement = database.prepare(
        "SELECT name, coalesce(type, ''), \"notnull\", pk, hidden IN (2, 3)
         FROM pragma_table_xinfo(?1) WHERE hidden <> 1 ORDER BY cid",
    )?;
    let columns = statement.query_map([name], |row| {
        Ok(RawColumn {
            name: row.get(0)?,
            declared: row.get(1)?,
            not_null: row.get(2)?,
            key_position: row.get(3)?,
            generated: row.get(4)?,
        })
    })?;
    columns.collect()
}

/// Unique keys over plain columns, and the columns with which any index begins.
fn read_indexes(database: &Database, table: &str) -> rusqlite::Result<(Vec<KeyDescription>, Vec<String>)> {
    let mut keys = Vec::new();
    let mut first = Vec::new();
    let mut list =
        database.prepare("SELECT name, \"unique\", origin = 'pk', partial FROM pragma_index_list(?1)")?;
    let mut indexes = list.query([table])?;
    while let Some(index) = indexes.next()? {
        let (name, unique, primary, partial): (String, bool, bool, bool) =
            (index.get(0)?, index.get(1)?, index.get(2)?, index.get(3)?);
        let mut info = database.prepare("SELECT name FROM pragma_index_info(?1) ORDER BY seqno")?;
        let columns: Vec<Option<String>> =
            info.query_map([&name], |row| row.get(0))?.collect::<Result<_, _>>()?;
        if partial {
            continue;
        }
        first.extend(columns.first().cloned().flatten());
        // An expression has no column name.
        if let Some(columns) = columns.into_iter().collect::<Option<Vec<_>>>()
            && unique
        {
            keys.push(KeyDescription { name, columns, primary });
        }
    }
    keys.sort_by(|a, b| b.primary.cmp(&a.primary).then_with(|| a.name.cmp(&b.name)));
    Ok((keys, first))
}

/// With AUTOINCREMENT no row id is ever given twice.
fn counts_up(database: &Database, table: &str) -> rusqlite::Result<bool> {
    let sql: Option<String> = database.query_row(
        "SELECT sql FROM sqlite_schema WHERE type = 'table' AND name = ?1",
        [table],
        |row| row.get(0),
    )?;
    Ok(sql.is_some_and(|sql| sql.to_ascii_uppercase().contains("AUTOINCREMENT")))
}

/// The names by which people call a timestamp that every change sets.
fn is_kept_up_to_date(column: &str) -> bool {
    let name = column.to_ascii_lowercase();
    ["update", "modif", "changed"].iter().any(|part| name.contains(part))
}

fn estimate_rows(
    database: &Database,
    table: &str,
    row_id: Option<&'static str>,
) -> rusqlite::Result<Option<u64>> {
    let analyzed: bool =
        database.query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'sqlite_stat1'", [], |row| {
            row.get(0)
        })?;
    if analyzed {
        let stat: Option<String> = database
            .query_row("SELECT stat FROM sqlite_stat1 WHERE tbl = ?1 LIMIT 1", [table], |row| row.get(0))
            .optional()?;
        if let Some(rows) = stat.and_then(|stat| stat.split(' ').next()?.parse().ok()) {
            return Ok(Some(rows));
        }
    }
    let Some(row_id) = row_id else { return Ok(None) };
    // Exact where rows were never deleted, and ids given one by one; else too high.
    let sql = format!("SELECT max({row_id}) - min({row_id}) + 1 FROM {}", SQLITE.ident(table));
    let rows: Option<i64> = database.query_row(&sql, [], |row| row.get(0))?;
    Ok(Some(rows.and_then(|rows| u64::try_from(rows).ok()).unwrap_or(0)))
}

fn count_bytes(database: &Database, table: &str) -> rusqlite::Result<Option<u64>> {
    if file_bytes(database)? > COUNTED_BYTES {
        return Ok(None);
    }
    let bytes: Option<i64> = database.query_row(
        "SELECT sum(pgsize) FROM dbstat WHERE name = ?1 AND aggregate = TRUE",
        [table],
        |row| row.get(0),
    )?;
    Ok(bytes.and_then(|bytes| u64::try_from(bytes).ok()))
}

/// The size of the whole file.
pub(super) fn file_bytes(database: &Database) -> rusqlite::Result<u64> {
    let pages: i64 = database.pragma_query_value(None, "page_count", |row| row.get(0))?;
    let size: i64 = database.pragma_query_value(None, "page_size", |row| row.get(0))?;
    Ok((pages * size).unsigned_abs())
}
