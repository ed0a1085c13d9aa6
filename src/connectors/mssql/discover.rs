//! What a database has: tables and views, columns, keys, sizes, and what tells what changed.
//!
//! Three catalog queries, for one relation or for all at once. Types are taken by name. Sizes come from
//! catalog views that everybody may read, not from views of the server's state.

use std::collections::{HashMap, HashSet};

use arrow::datatypes::Field;
use tiberius::Row;

use super::capture::{self, Instance};
use super::codec::Codec;
use super::temporal::{self, History};
use super::types::{Conversion, TypeOf, conversion};
use crate::clients::mssql::{Session, literal};
use crate::connectors::sql::{MSSQL, missing_column, missing_table, named_for_change};
use crate::error::{Error, Result};
use crate::source::{OutOfRange, ValuePolicy};
use crate::table::{
    ColumnDescription, CursorCandidate, Fidelity, KeyDescription, SOURCE_COLUMN_ID, SOURCE_TYPE,
    TableDescription, TableId, TableKind,
};

/// A relation, as far as reading it needs.
#[derive(Debug, Clone)]
pub(super) struct Relation {
    pub(super) object: i32,
    pub(super) id: TableId,
    pub(super) kind: TableKind,
    pub(super) columns: Vec<Column>,
    pub(super) keys: Vec<KeyDescription>,
    pub(super) rows: Option<u64>,
    pub(super) bytes: Option<u64>,
    pub(super) readable: bool,
    /// Whether Change Tracking is on.
    pub(super) tracked: bool,
    /// Whether Change Data Capture is on.
    pub(super) captured: bool,
    /// Its change tables, the newest first; none where the user may not see them.
    pub(super) instances: Vec<Instance>,
    /// Whether it is a system-versioned temporal table.
    pub(super) temporal: bool,
    /// Where its past is kept.
    pub(super) history: Option<History>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) number: i32,
    pub(super) name: String,
    pub(super) of: TypeOf,
    /// The name of the type that was declared, where it is an alias.
    pub(super) alias: Option<String>,
    pub(super) not_null: bool,
    pub(super) generated: bool,
    pub(super) identity: bool,
    pub(super) indexed: bool,
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
        let mut metadata = HashMap::from([
            (SOURCE_TYPE.to_owned(), format!("mssql:{}", column.of.written())),
            // Numbers say nothing beyond their own table: one made anew counts anew.
            (SOURCE_COLUMN_ID.to_owned(), format!("{}.{}", self.object, column.number)),
        ]);
        if conversion.codec == Codec::Uuid {
            metadata.insert("ARROW:extension:name".to_owned(), "arrow.uuid".to_owned());
        }
        let field = Field::new(&column.name, conversion.codec.data_type(), nullable).with_metadata(metadata);
        Ok((conversion, field))
    }

    /// The primary key's columns.
    pub(super) fn primary_key(&self) -> Option<&[String]> {
        self.keys.iter().find(|key| key.primary).map(|key| key.columns.as_slice())
    }

    /// Whether a column holds text, which collations compare in ways of their own.
    pub(super) fn is_text(&self, name: &str) -> bool {
        let base = self.column(name).map(|column| column.of.base.as_str());
        matches!(base, Some("char" | "varchar" | "nchar" | "nvarchar" | "sysname"))
    }

    /// A key column as the lake compares it: texts by their bytes, which tell `a` from `A`.
    pub(super) fn exact(&self, prefix: &str, name: &str) -> String {
        let column = format!("{prefix}{}", MSSQL.ident(name));
        if self.is_text(name) { format!("CAST({column} AS varbinary(8000))") } else { column }
    }

    /// How well a column would do as a cursor.
    pub(super) fn candidate(&self, column: &Column) -> Option<CursorCandidate> {
        let base = column.of.base.as_str();
        if base == "timestamp" {
            return Some(CursorCandidate::Version);
        }
        if matches!(base, "datetime" | "datetime2" | "smalldatetime" | "datetimeoffset")
            && named_for_change(&column.name).is_some()
        {
            return Some(CursorCandidate::Timestamp);
        }
        let alone_in_key = self.keys.iter().any(|key| key.primary && key.columns == [column.name.as_str()]);
        let grows = column.identity && matches!(base, "smallint" | "int" | "bigint");
        (alone_in_key && grows).then_some(CursorCandidate::Id)
    }

    /// The relation in the engine's words.
    pub(super) fn describe(&self) -> Result<TableDescription> {
        let policy = ValuePolicy::default();
        let columns = self
            .columns
            .iter()
            .map(|column| {
                let (conversion, field) = self.travels(column, &policy)?;
                let written = column.of.written();
                Ok(ColumnDescription {
                    name: column.name.clone(),
                    source_type: match &column.alias {
                        Some(alias) => format!("{alias} ({written})"),
                        None => written,
                    },
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

    /// The name, in brackets.
    pub(super) fn quoted(&self) -> String {
        MSSQL.table(&self.id)
    }
}

/// Everything that the user may read, in name order.
pub(super) async fn all(session: &mut Session) -> Result<Vec<Relation>> {
    relations(session, "HAS_PERMS_BY_NAME(QUOTENAME(s.name) + N'.' + QUOTENAME(o.name), N'OBJECT', N'SELECT', NULL, NULL) = 1").await
}

/// One relation, or an error that names the ones with similar names.
pub(super) async fn one(session: &mut Session, table: &TableId) -> Result<Relation> {
    // Names are compared as the catalog's collation does, then exactly: two may differ by case.
    let schema = match &table.schema {
        Some(schema) => literal(schema),
        None => "SCHEMA_NAME()".to_owned(),
    };
    let filter = format!("s.name = {schema} AND o.name = {}", literal(&table.name));
    let mut found = relations(session, &filter).await?;
    if found.len() > 1 {
        found.retain(|relation| relation.id.name == table.name);
    }
    let Some(mut relation) = found.into_iter().next() else {
        return Err(missing(session, table).await?);
    };
    if relation.captured {
        relation.instances = capture::instances(session, relation.object).await?;
    }
    if relation.temporal {
        relation.history = temporal::history(session, relation.object).await?;
    }
    Ok(relation)
}

async fn missing(session: &mut Session, table: &TableId) -> Result<Error> {
    let sql = "SELECT s.name, o.name FROM sys.objects o JOIN sys.schemas s ON s.schema_id = o.schema_id \
               WHERE o.type IN ('U', 'V') AND o.is_ms_shipped = 0";
    let rows = session.rows(sql).await?;
    let there = rows.iter().map(|row| TableId::new(text(row, 0), text(row, 1)));
    let otherwise =
        "`frazil discover` lists what there is: what the user has no right to is not there for it";
    Ok(missing_table(table, there, otherwise))
}

/// The catalog's answer for relations that a filter finds.
async fn relations(session: &mut Session, filter: &str) -> Result<Vec<Relation>> {
    let mut relations: Vec<Relation> =
        session.rows(&RELATIONS.replace("{filter}", filter)).await?.iter().map(relation).collect();
    if relations.is_empty() {
        return Ok(relations);
    }
    let objects: Vec<String> = relations.iter().map(|relation| relation.object.to_string()).collect();
    // Of one relation by its number; of all by the same condition, which is shorter than their numbers.
    let of = match &objects[..] {
        [one] => format!("= {one}"),
        _ => {
            "IN (SELECT object_id FROM sys.objects WHERE type IN ('U', 'V') AND is_ms_shipped = 0)".to_owned()
        }
    };
    let columns = session.rows(&COLUMNS.replace("{of}", &of)).await?;
    let keys = session.rows(&KEYS.replace("{of}", &of)).await?;
    let place: HashMap<i32, usize> =
        relations.iter().enumerate().map(|(i, relation)| (relation.object, i)).collect();
    let mut leading = HashSet::new();
    let mut indexes: Vec<Index> = Vec::new();
    for row in &keys {
        let Some(object) = place.get(&number(row, 0)).map(|_| number(row, 0)) else { continue };
        let (name, column) = (text(row, 1), text(row, 6));
        if number(row, 5) == 1 {
            leading.insert((object, column.clone()));
            indexes.push(Index {
                object,
                name,
                primary: number(row, 2) == 1,
                unique: number(row, 3) == 1 && number(row, 4) == 0,
                columns: vec![column],
            });
        } else if let Some(index) = indexes.last_mut() {
            index.columns.push(column);
        }
    }
    for row in &columns {
        let Some(at) = place.get(&number(row, 0)) else { continue };
        let relation = &mut relations[*at];
        let mut column = column(row);
        column.indexed = leading.contains(&(relation.object, column.name.clone()));
        relation.columns.push(column);
    }
    for index in indexes {
        let relation = &mut relations[place[&index.object]];
        let not_null = |name: &String| relation.column(name).is_some_and(|column| column.not_null);
        if index.unique && index.columns.iter().all(not_null) {
            let Index { name, columns, primary, .. } = index;
            relation.keys.push(KeyDescription { name, columns, primary });
        }
    }
    for relation in &mut relations {
        relation.keys.sort_by_key(|key| !key.primary);
    }
    Ok(relations)
}

struct Index {
    object: i32,
    name: String,
    primary: bool,
    unique: bool,
    columns: Vec<String>,
}

/// Relations with their sizes and with what is switched on for them.
const RELATIONS: &str = "SELECT o.object_id, s.name, o.name, CAST(o.type AS nvarchar(2)), \
     (SELECT SUM(p.rows) FROM sys.partitions p WHERE p.object_id = o.object_id AND p.index_id IN (0, 1)), \
     (SELECT SUM(a.total_pages) * 8192 FROM sys.partitions p JOIN sys.allocation_units a ON a.container_id = p.partition_id \
      WHERE p.object_id = o.object_id AND p.index_id IN (0, 1)), \
     HAS_PERMS_BY_NAME(QUOTENAME(s.name) + N'.' + QUOTENAME(o.name), N'OBJECT', N'SELECT', NULL, NULL), \
     CASE WHEN EXISTS (SELECT 1 FROM sys.change_tracking_tables ct WHERE ct.object_id = o.object_id) THEN 1 ELSE 0 END, \
     CAST(COALESCE(t.is_tracked_by_cdc, 0) AS int), CAST(COALESCE(t.temporal_type, 0) AS int) \
     FROM sys.objects o JOIN sys.schemas s ON s.schema_id = o.schema_id LEFT JOIN sys.tables t ON t.object_id = o.object_id \
     WHERE o.type IN ('U', 'V') AND o.is_ms_shipped = 0 AND s.name NOT IN (N'sys', N'INFORMATION_SCHEMA', N'cdc') AND {filter} \
     ORDER BY s.name, o.name";

/// Columns by the catalog's numbers; a type by its system name, an alias beside it.
const COLUMNS: &str = "SELECT c.object_id, c.column_id, c.name, COALESCE(b.name, u.name), u.name, \
     CAST(c.max_length AS int), CAST(c.precision AS int), CAST(c.scale AS int), CAST(c.is_nullable AS int), \
     CASE WHEN c.is_computed = 1 OR c.generated_always_type <> 0 THEN 1 ELSE 0 END, CAST(c.is_identity AS int), \
     CAST(COLLATIONPROPERTY(c.collation_name, 'CodePage') AS int) \
     FROM sys.columns c JOIN sys.types u ON u.user_type_id = c.user_type_id \
     LEFT JOIN sys.types b ON b.user_type_id = c.system_type_id \
     WHERE c.object_id {of} ORDER BY c.object_id, c.column_id";

/// Indexes that are in use, column by column.
const KEYS: &str = "SELECT i.object_id, i.name, CAST(i.is_primary_key AS int), CAST(i.is_unique AS int), \
     CAST(i.has_filter AS int), CAST(ic.key_ordinal AS int), c.name \
     FROM sys.indexes i JOIN sys.index_columns ic ON ic.object_id = i.object_id AND ic.index_id = i.index_id \
     JOIN sys.columns c ON c.object_id = ic.object_id AND c.column_id = ic.column_id \
     WHERE i.object_id {of} AND ic.key_ordinal > 0 AND i.is_disabled = 0 AND i.is_hypothetical = 0 \
     ORDER BY i.object_id, i.index_id, ic.key_ordinal";

fn relation(row: &Row) -> Relation {
    let size = |at: usize| row.try_get::<i64, _>(at).ok().flatten().map(i64::unsigned_abs);
    Relation {
        object: number(row, 0),
        id: TableId::new(text(row, 1), text(row, 2)),
        kind: if text(row, 3).trim() == "V" { TableKind::View } else { TableKind::Table },
        columns: Vec::new(),
        keys: Vec::new(),
        rows: size(4),
        bytes: size(5),
        readable: number(row, 6) == 1,
        tracked: number(row, 7) == 1,
        captured: number(row, 8) == 1,
        instances: Vec::new(),
        temporal: number(row, 9) == 2,
        history: None,
    }
}

fn column(row: &Row) -> Column {
    let (base, declared) = (text(row, 3), text(row, 4));
    Column {
        number: number(row, 1),
        name: text(row, 2),
        alias: (base != declared && declared != "sysname").then_some(declared),
        of: TypeOf {
            base,
            length: number(row, 5) as i16,
            precision: number(row, 6) as u8,
            scale: number(row, 7) as u8,
            code_page: row.try_get::<i32, _>(11).ok().flatten(),
        },
        not_null: number(row, 8) == 0,
        generated: number(row, 9) == 1,
        identity: number(row, 10) == 1,
        indexed: false,
    }
}

pub(super) fn text(row: &Row, at: usize) -> String {
    row.try_get::<&str, _>(at).ok().flatten().unwrap_or_default().to_owned()
}

pub(super) fn number(row: &Row, at: usize) -> i32 {
    row.try_get::<i32, _>(at).ok().flatten().unwrap_or_default()
}
