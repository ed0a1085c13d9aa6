//! What a database has: tables and views, columns, keys, sizes, and what tells what changed.
//!
//! Three queries of the information schema, for one relation or for all at once. It shows a table to whoever
//! has any right to it. A schema is a database here; the URL's is meant where none is said.

use std::collections::{HashMap, HashSet};

use arrow::datatypes::Field;
use mysql_async::Row;

use super::types::{Conversion, TypeOf, conversion};
use crate::clients::mysql::{Session, integer, literal, text};
use crate::connectors::sql::{MYSQL, missing_column, missing_table, named_for_change};
use crate::error::{Error, ErrorKind, Result};
use crate::source::{OutOfRange, ValuePolicy};
use crate::table::{
    ColumnDescription, CursorCandidate, Fidelity, KeyDescription, SOURCE_TYPE, TableDescription, TableId,
    TableKind,
};

/// The server's own databases.
const OWN: &str = "('information_schema', 'performance_schema', 'mysql', 'sys')";

/// The condition on a foreign key that it changes rows when others change.
pub(super) const CASCADES: &str =
    "(DELETE_RULE NOT IN ('RESTRICT', 'NO ACTION') OR UPDATE_RULE NOT IN ('RESTRICT', 'NO ACTION'))";

/// A relation, as far as reading it needs.
#[derive(Debug, Clone)]
pub(super) struct Relation {
    pub(super) id: TableId,
    pub(super) kind: TableKind,
    pub(super) columns: Vec<Column>,
    /// Unique indexes of columns that are never NULL, the primary key first.
    pub(super) keys: Vec<KeyDescription>,
    /// The columns of every unique index, sorted.
    pub(super) unique: Vec<Vec<String>>,
    /// `InnoDB`; none of a view.
    pub(super) engine: String,
    pub(super) rows: Option<u64>,
    pub(super) bytes: Option<u64>,
    /// Changes when the table is made anew: its moment of creation.
    pub(super) layout: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) number: i64,
    pub(super) name: String,
    pub(super) of: TypeOf,
    pub(super) not_null: bool,
    pub(super) generated: bool,
    /// Counts by itself.
    pub(super) identity: bool,
    /// The server sets it with every change of the row.
    pub(super) follows_changes: bool,
    pub(super) indexed: bool,
    /// The server fills it when nothing is given.
    pub(super) defaulted: bool,
}

impl Relation {
    /// The column of that exact name.
    pub(super) fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// The column of that name, or an error with the one that was probably meant.
    pub(super) fn named(&self, name: &str) -> Result<&Column> {
        let names = self.columns.iter().map(|column| column.name.as_str());
        self.column(name).ok_or_else(|| missing_column(&self.id, names, name))
    }

    /// How a column travels, and its Arrow field.
    pub(super) fn travels(&self, column: &Column, policy: &ValuePolicy) -> Result<(Conversion, Field)> {
        let conversion =
            conversion(&column.name, &column.of, policy).map_err(|error| error.with("table", &self.id))?;
        // A policy that makes NULLs makes them in NOT NULL columns too.
        let becomes_null = policy.out_of_range != OutOfRange::Fail && conversion.codec.can_overflow();
        // A view only hands on what it was told.
        let nullable = !(column.not_null && self.kind == TableKind::Table) || becomes_null;
        let mut metadata =
            HashMap::from([(SOURCE_TYPE.to_owned(), format!("mysql:{}", column.of.written()))]);
        if conversion.codec == super::codec::Codec::Uuid {
            metadata.insert("ARROW:extension:name".to_owned(), "arrow.uuid".to_owned());
        }
        let field = Field::new(&column.name, conversion.codec.data_type(), nullable).with_metadata(metadata);
        Ok((conversion, field))
    }

    /// How well a column would do as a cursor.
    pub(super) fn candidate(&self, column: &Column) -> Option<CursorCandidate> {
        let base = column.of.base.as_str();
        let named = named_for_change(&column.name).is_some();
        if matches!(base, "timestamp" | "datetime") && (column.follows_changes || named) {
            return Some(CursorCandidate::Timestamp);
        }
        let alone_in_key = self.keys.iter().any(|key| key.primary && key.columns == [column.name.as_str()]);
        (alone_in_key && column.identity).then_some(CursorCandidate::Id)
    }

    /// The relation in the engine's words.
    pub(super) fn describe(&self) -> Result<TableDescription> {
        let policy = ValuePolicy::default();
        let columns = self
            .columns
            .iter()
            .map(|column| {
                let (conversion, field) = self.travels(column, &policy)?;
                Ok(ColumnDescription {
                    name: column.name.clone(),
                    source_type: column.of.written(),
                    field,
                    fidelity: conversion.fidelity,
                    generated: column.generated,
                    identity: column.identity,
                    indexed: column.indexed,
                    cursor: self.candidate(column),
                })
            })
            .collect::<Result<_>>()?;
        Ok(TableDescription {
            id: self.id.clone(),
            kind: self.kind,
            columns,
            keys: self.keys.clone(),
            rows: self.rows,
            bytes: self.bytes,
        })
    }

    /// Columns that do not travel exactly, with the note that says why.
    pub(super) fn inexact(&self, policy: &ValuePolicy) -> Result<Vec<(String, Fidelity)>> {
        let mut notes = Vec::new();
        for column in &self.columns {
            let (conversion, _) = self.travels(column, policy)?;
            if conversion.fidelity != Fidelity::Exact {
                notes.push((column.name.clone(), conversion.fidelity));
            }
        }
        Ok(notes)
    }

    /// The name, quoted.
    pub(super) fn quoted(&self) -> String {
        MYSQL.table(&self.id)
    }
}

/// Everything that the user may read, of the URL's database or of all, in name order; what triggers of ours
/// write to is left out.
pub(super) async fn all(session: &mut Session) -> Result<Vec<Relation>> {
    let filter = match &session.server().database {
        Some(database) => format!("TABLE_SCHEMA = {}", literal(database)),
        None => format!("TABLE_SCHEMA NOT IN {OWN}"),
    };
    relations(session, &format!("{filter} AND TABLE_NAME NOT LIKE '\\_frazil\\_%'")).await
}

/// One relation, or an error that names the ones with similar names.
pub(super) async fn one(session: &mut Session, table: &TableId) -> Result<Relation> {
    match find(session, table).await? {
        Some(relation) => Ok(relation),
        None => Err(missing(session, table).await?),
    }
}

/// One relation, if it is there.
pub(super) async fn find(session: &mut Session, table: &TableId) -> Result<Option<Relation>> {
    let schema = schema_of(session, table)?;
    let filter = format!("TABLE_SCHEMA = {} AND TABLE_NAME = {}", literal(&schema), literal(&table.name));
    let mut found = relations(session, &filter).await?;
    // Whether names may differ by case alone is the server's choice.
    if found.len() > 1 {
        let same = |id: &TableId| id.name == table.name && id.schema.as_ref() == Some(&schema);
        found.retain(|relation| same(&relation.id));
    }
    Ok(found.into_iter().next())
}

/// The database that a table is in.
pub(super) fn schema_of(session: &Session, table: &TableId) -> Result<String> {
    let named = table.schema.clone().or_else(|| session.server().database.clone());
    named.ok_or_else(|| {
        Error::new(ErrorKind::Config, "no database is named")
            .with("table", table)
            .hint("write `database.table`, or name the database in the connection's URL")
    })
}

async fn missing(session: &mut Session, table: &TableId) -> Result<Error> {
    let sql = format!(
        "SELECT TABLE_SCHEMA, TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA NOT IN {OWN}"
    );
    let rows = session.rows(&sql).await?;
    let there = rows.iter().map(|row| TableId::new(text(row, 0), text(row, 1)));
    let otherwise =
        "`frazil discover` lists what there is: what the user has no right to is not there for it";
    Ok(missing_table(table, there, otherwise))
}

/// The catalog's answer for relations that a filter finds.
async fn relations(session: &mut Session, filter: &str) -> Result<Vec<Relation>> {
    let found = session.rows(&RELATIONS.replace("{filter}", filter)).await?;
    let mut relations: Vec<Relation> = found.iter().map(relation).collect();
    if relations.is_empty() {
        return Ok(relations);
    }
    let place: HashMap<(String, String), usize> = relations
        .iter()
        .enumerate()
        .map(|(at, relation)| ((relation.id.schema_or("").to_owned(), relation.id.name.clone()), at))
        .collect();
    let at = |row: &Row| place.get(&(text(row, 0), text(row, 1))).copied();
    for row in &session.rows(&COLUMNS.replace("{filter}", filter)).await? {
        if let Some(at) = at(row) {
            relations[at].columns.push(column(row));
        }
    }
    let mut leading = HashSet::new();
    let mut indexes: Vec<Index> = Vec::new();
    for row in &session.rows(&KEYS.replace("{filter}", filter)).await? {
        let Some(at) = at(row) else { continue };
        let (name, column) = (text(row, 2), text(row, 5));
        // A part of a value, or an expression, is no column.
        let whole = integer(row, 6).is_none() && !column.is_empty();
        if integer(row, 4) == Some(1) {
            leading.insert((at, column.clone()));
            indexes.push(Index {
                at,
                name,
                unique: integer(row, 3) == Some(0),
                whole,
                columns: vec![column],
            });
        } else if let Some(index) = indexes.last_mut() {
            index.whole &= whole;
            index.columns.push(column);
        }
    }
    for Index { at, name, unique, whole, columns } in indexes {
        let relation = &mut relations[at];
        if unique && whole {
            let mut columns = columns.clone();
            columns.sort();
            relation.unique.push(columns);
        }
        let not_null = |name: &String| relation.column(name).is_some_and(|column| column.not_null);
        if unique && whole && columns.iter().all(not_null) {
            let primary = name == "PRIMARY";
            relation.keys.push(KeyDescription { name, columns, primary });
        }
    }
    for (at, relation) in relations.iter_mut().enumerate() {
        relation.keys.sort_by_key(|key| !key.primary);
        for column in &mut relation.columns {
            column.indexed = leading.contains(&(at, column.name.clone()));
        }
    }
    Ok(relations)
}

struct Index {
    at: usize,
    name: String,
    unique: bool,
    whole: bool,
    columns: Vec<String>,
}

/// Relations with their sizes: InnoDB's own guess.
const RELATIONS: &str = "SELECT TABLE_SCHEMA, TABLE_NAME, TABLE_TYPE, TABLE_ROWS, DATA_LENGTH, CREATE_TIME, ENGINE \
     FROM information_schema.TABLES WHERE TABLE_TYPE IN ('BASE TABLE', 'VIEW', 'SYSTEM VERSIONED') AND {filter} \
     ORDER BY CAST(TABLE_SCHEMA AS BINARY), CAST(TABLE_NAME AS BINARY)";

const COLUMNS: &str = "SELECT TABLE_SCHEMA, TABLE_NAME, ORDINAL_POSITION, COLUMN_NAME, DATA_TYPE, COLUMN_TYPE, \
     IS_NULLABLE = 'YES', NUMERIC_PRECISION, COALESCE(NUMERIC_SCALE, DATETIME_PRECISION), COLLATION_NAME, EXTRA, \
     COLUMN_DEFAULT IS NOT NULL AND (IS_NULLABLE = 'NO' OR COLUMN_DEFAULT <> 'NULL') \
     FROM information_schema.COLUMNS WHERE {filter} ORDER BY TABLE_SCHEMA, TABLE_NAME, ORDINAL_POSITION";

const KEYS: &str = "SELECT TABLE_SCHEMA, TABLE_NAME, INDEX_NAME, NON_UNIQUE, SEQ_IN_INDEX, COLUMN_NAME, SUB_PART \
     FROM information_schema.STATISTICS WHERE {filter} AND INDEX_TYPE = 'BTREE' \
     ORDER BY TABLE_SCHEMA, TABLE_NAME, INDEX_NAME, SEQ_IN_INDEX";

fn relation(row: &Row) -> Relation {
    let size = |at: usize| integer(row, at).map(i64::unsigned_abs);
    let view = text(row, 2) == "VIEW";
    Relation {
        id: TableId::new(text(row, 0), text(row, 1)),
        kind: if view { TableKind::View } else { TableKind::Table },
        columns: Vec::new(),
        keys: Vec::new(),
        unique: Vec::new(),
        engine: text(row, 6),
        rows: size(3),
        bytes: size(4),
        layout: text(row, 5),
    }
}

fn column(row: &Row) -> Column {
    let (declared, extra) = (text(row, 5), text(row, 10).to_ascii_lowercase());
    Column {
        number: integer(row, 2).unwrap_or_default(),
        name: text(row, 3),
        of: TypeOf {
            base: text(row, 4).to_ascii_lowercase(),
            unsigned: declared.contains(" unsigned"),
            declared,
            precision: integer(row, 7).and_then(|n| u8::try_from(n).ok()).unwrap_or_default(),
            scale: integer(row, 8).and_then(|n| u8::try_from(n).ok()).unwrap_or_default(),
            collation: Some(text(row, 9)).filter(|name| !name.is_empty()),
        },
        not_null: integer(row, 6) == Some(0),
        generated: ["virtual generated", "stored generated", "persistent"]
            .iter()
            .any(|word| extra.contains(word)),
        identity: extra.contains("auto_increment"),
        follows_changes: extra.contains("on update"),
        indexed: false,
        defaulted: integer(row, 11) == Some(1) || extra.contains("auto_increment"),
    }
}
