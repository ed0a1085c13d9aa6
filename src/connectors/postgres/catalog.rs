//! What the target's catalog says: the table that is there, its columns, their types, its keys.

use std::collections::HashMap;

use tokio_postgres::{Client, Row};

use crate::connectors::sql::{POSTGRES, Present};
use crate::error::{Error, ErrorKind, Result};
use crate::table::TableId;

/// A type of the target, as deep as writing its values needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PgType {
    pub(super) oid: u32,
    pub(super) schema: String,
    pub(super) name: String,
    pub(super) kind: Kind,
}

/// What a type is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// A type of its own.
    Base,
    /// One of some words.
    Enum,
    /// Fields.
    Composite,
    /// From, to.
    Range,
    /// Another type with a condition.
    Domain(Box<PgType>),
    /// Elements, in any number of dimensions.
    Array(Box<PgType>),
}

impl PgType {
    /// The type below all domains.
    pub(super) fn base(&self) -> &PgType {
        match &self.kind {
            Kind::Domain(base) => base.base(),
            _ => self,
        }
    }

    /// Its name, if it came with the server.
    pub(super) fn builtin_name(&self) -> Option<&str> {
        (self.kind == Kind::Base && self.schema == "pg_catalog").then_some(self.name.as_str())
    }

    /// PostGIS types read and write EWKB in binary.
    pub(super) fn is_spatial(&self) -> bool {
        self.kind == Kind::Base && matches!(self.name.as_str(), "geometry" | "geography")
    }

    /// Whether `=` means that nothing differs. It does not for numbers that may differ in trailing
    /// zeros, zeros of two signs, text without case, intervals of equal length, boxes of equal area.
    pub(super) fn equality_is_identity(&self) -> bool {
        matches!(self.kind, Kind::Enum)
            || matches!(
                self.builtin_name(),
                Some(
                    "bool"
                        | "int2"
                        | "int4"
                        | "int8"
                        | "oid"
                        | "xid8"
                        | "text"
                        | "varchar"
                        | "bytea"
                        | "uuid"
                        | "date"
                        | "time"
                        | "timestamp"
                        | "timestamptz"
                )
            )
    }
}

/// A column that is there.
#[derive(Debug, Clone)]
pub(super) struct Column {
    pub(super) name: String,
    /// As `format_type` writes it: fit for a statement.
    pub(super) type_name: String,
    pub(super) pg_type: PgType,
    pub(super) not_null: bool,
    pub(super) has_default: bool,
    /// `GENERATED ALWAYS AS IDENTITY`: given values are refused unless one insists.
    pub(super) identity_always: bool,
    pub(super) identity: bool,
    /// `GENERATED ALWAYS AS (…)`: never written.
    pub(super) generated: bool,
    /// Whether texts that are equal in its collation are the same text.
    pub(super) deterministic: bool,
}

impl Column {
    pub(super) fn present(&self) -> Present {
        Present {
            name: self.name.clone(),
            data_type: self.type_name.clone(),
            not_null: self.not_null,
            defaulted: self.has_default || self.identity,
            generated: self.generated,
        }
    }

    /// Whether `=` tells every change of a value.
    pub(super) fn equality_is_identity(&self) -> bool {
        let bounded = self.pg_type.builtin_name() == Some("numeric") && self.type_name.contains('(');
        self.deterministic && (bounded || self.pg_type.equality_is_identity())
    }
}

/// A table that is there.
#[derive(Debug, Clone)]
pub(super) struct Relation {
    pub(super) oid: u32,
    /// `pg_class.relkind`.
    pub(super) kind: String,
    pub(super) columns: Vec<Column>,
    /// The columns of each unique index that can decide a conflict, sorted by name.
    pub(super) unique: Vec<Vec<String>>,
    /// Whether there is a primary key.
    pub(super) has_primary_key: bool,
    /// About how many rows, if the table was ever analysed.
    pub(super) rows: Option<u64>,
}

impl Relation {
    pub(super) fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// Whether a unique index has exactly these columns.
    pub(super) fn is_unique_by(&self, key: &[String]) -> bool {
        let mut key = key.to_vec();
        key.sort();
        self.unique.contains(&key)
    }
}

/// The table with its schema filled in: where none was said, the first of the session's search path.
pub(super) async fn locate(client: &Client, table: &TableId) -> Result<TableId> {
    if table.schema.is_some() {
        return Ok(table.clone());
    }
    let row = client.query_one("SELECT current_schema()::text", &[]).await?;
    let schema: Option<String> = row.get(0);
    match schema {
        Some(schema) => Ok(TableId { schema: Some(schema), name: table.name.clone() }),
        None => Err(Error::new(ErrorKind::Config, "the target's search path names no schema")
            .with("table", table)
            .hint("write the table as `schema.table`")),
    }
}

/// What is there under that name, or `None`.
pub(super) async fn relation(client: &Client, table: &TableId) -> Result<Option<Relation>> {
    let found = client
        .query_opt(
            "SELECT c.oid, c.relkind::text,
                    CASE WHEN c.reltuples >= 0 AND c.relpages > 0 THEN c.reltuples::bigint END
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE n.nspname = $1 AND c.relname = $2",
            &[&table.schema, &table.name],
        )
        .await?;
    let Some(row) = found else { return Ok(None) };
    let (oid, kind): (u32, String) = (row.get(0), row.get(1));
    let rows = row.get::<_, Option<i64>>(2).map(i64::unsigned_abs);

    let attributes = client
        .query(
            "SELECT a.attname::text, format_type(a.atttypid, a.atttypmod), a.atttypid, a.attnotnull,
                    a.atthasdef, a.attidentity::text, a.attgenerated::text, coalesce(c.collisdeterministic, true)
             FROM pg_attribute a LEFT JOIN pg_collation c ON c.oid = a.attcollation
             WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped
             ORDER BY a.attnum",
            &[&oid],
        )
        .await?;
    let types = types(client, &attributes.iter().map(|row| row.get(2)).collect::<Vec<u32>>()).await?;
    let columns = attributes
        .iter()
        .map(|row| {
            let type_oid: u32 = row.get(2);
            let identity: &str = row.get(5);
            Ok(Column {
                name: row.get(0),
                type_name: row.get(1),
                pg_type: types.get(&type_oid).cloned().ok_or_else(|| unknown_type(type_oid))?,
                not_null: row.get(3),
                has_default: row.get(4),
                identity_always: identity == "a",
                identity: !identity.is_empty(),
                generated: row.get::<_, &str>(6) == "s",
                deterministic: row.get(7),
            })
        })
        .collect::<Result<_>>()?;

    let indexes = client
        .query(
            "SELECT i.indisprimary,
                    array(SELECT a.attname::text FROM pg_attribute a
                          WHERE a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey[0:i.indnkeyatts - 1])
                          ORDER BY a.attname::text COLLATE \"C\")
             FROM pg_index i
             WHERE i.indrelid = $1 AND i.indisunique AND i.indimmediate AND i.indisvalid
               AND i.indpred IS NULL AND i.indexprs IS NULL",
            &[&oid],
        )
        .await?;
    Ok(Some(Relation {
        oid,
        kind,
        columns,
        unique: indexes.iter().map(|row| row.get(1)).collect(),
        has_primary_key: indexes.iter().any(|row| row.get(0)),
        rows,
    }))
}

/// A type that was asked for by name.
#[derive(Debug, Clone)]
pub(super) struct NamedType {
    /// As `format_type` writes it here, without what stands in parentheses.
    pub(super) canonical: String,
    pub(super) pg_type: PgType,
}

/// Looks up types by the names that a source gave them; those that do not exist here are left out.
pub(super) async fn named_types(client: &Client, names: &[String]) -> Result<HashMap<String, NamedType>> {
    if names.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = client
        .query(
            "SELECT name, to_regtype(name)::oid, format_type(to_regtype(name)::oid, -1)
             FROM unnest($1::text[]) AS name WHERE to_regtype(name) IS NOT NULL",
            &[&names],
        )
        .await?;
    let types = types(client, &rows.iter().map(|row| row.get(1)).collect::<Vec<u32>>()).await?;
    Ok(rows
        .iter()
        .filter_map(|row| {
            let pg_type = types.get(&row.get::<_, u32>(1))?.clone();
            Some((row.get(0), NamedType { canonical: row.get(2), pg_type }))
        })
        .collect())
}

/// These types and whatever they are made of.
async fn types(client: &Client, oids: &[u32]) -> Result<HashMap<u32, PgType>> {
    let rows = client
        .query(
            "WITH RECURSIVE needed(oid) AS (
                 SELECT unnest($1::oid[])
                 UNION
                 SELECT part FROM needed JOIN pg_type t ON t.oid = needed.oid,
                        LATERAL (VALUES (t.typelem), (t.typbasetype)) AS parts(part)
                 WHERE part <> 0
             )
             SELECT t.oid, n.nspname::text, t.typname::text, t.typtype::text, t.typcategory::text,
                    t.typelem, t.typbasetype
             FROM needed JOIN pg_type t ON t.oid = needed.oid JOIN pg_namespace n ON n.oid = t.typnamespace",
            &[&oids],
        )
        .await?;
    let rows: HashMap<u32, Row> = rows.into_iter().map(|row| (row.get(0), row)).collect();
    oids.iter().map(|oid| Ok((*oid, build(*oid, &rows)?))).collect()
}

/// Ends, because Postgres makes a type only of types that were there before it.
fn build(oid: u32, rows: &HashMap<u32, Row>) -> Result<PgType> {
    let row = rows.get(&oid).ok_or_else(|| unknown_type(oid))?;
    let (kind, category): (&str, &str) = (row.get(3), row.get(4));
    let kind = match (kind, category) {
        ("d", _) => Kind::Domain(Box::new(build(row.get(6), rows)?)),
        ("e", _) => Kind::Enum,
        ("c", _) => Kind::Composite,
        ("r" | "m", _) => Kind::Range,
        (_, "A") => Kind::Array(Box::new(build(row.get(5), rows)?)),
        _ => Kind::Base,
    };
    Ok(PgType { oid, schema: row.get(1), name: row.get(2), kind })
}

fn unknown_type(oid: u32) -> Error {
    Error::new(ErrorKind::Transient, format!("the type {oid} vanished while it was looked up"))
}

/// A relation's name, quoted, for a statement.
pub(super) fn quoted(table: &TableId) -> String {
    POSTGRES.table(table)
}
