//! What a database has: relations, columns, keys, sizes, and columns that could be cursors.
//!
//! Three catalog queries, for one relation or for all at once: relations with their sizes summed over
//! partitions, columns with keys and indexes, and the types that these columns have with all that
//! those are made of. Partitions show only when they are asked for by name.

use std::collections::{HashMap, HashSet};

use arrow::datatypes::{DataType, Field};
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};

use super::types::{Conversion, Member, TypeCatalog, TypeRef, TypeRow};
use crate::clients::postgres::Session;
use crate::connectors::sql::{POSTGRES, missing_column, missing_table, named_for_change};
use crate::error::{Error, Result};
use crate::source::ValuePolicy;
use crate::table::{
    ADDED_DEFAULT, ColumnDescription, CursorCandidate, Fidelity, KeyDescription, SOURCE_COLUMN_ID,
    SOURCE_TYPE, TableDescription, TableId, TableKind,
};

/// Bytes of a heap row beside its columns, for estimates without statistics.
const ROW_OVERHEAD: u64 = 28;
/// Bytes assumed for a column of variable width, for the same.
const VARIABLE_WIDTH: u64 = 32;

/// A relation, as far as reading it needs.
#[derive(Debug, Clone)]
pub(super) struct Relation {
    pub(super) oid: u32,
    pub(super) id: TableId,
    pub(super) kind: TableKind,
    pub(super) columns: Vec<Column>,
    pub(super) keys: Vec<KeyDescription>,
    pub(super) types: TypeCatalog,
    pub(super) rows: Option<u64>,
    pub(super) bytes: Option<u64>,
    /// Where its rows lie; `None` where they have no place that lasts.
    pub(super) heap: Option<Heap>,
    /// Changes when rows may have moved to other places (VACUUM FULL, TRUNCATE, another partition), and
    /// when a view is defined anew.
    pub(super) layout: String,
    /// Whether policies hide rows from us.
    pub(super) row_security: bool,
    /// Whether we may read all of it.
    pub(super) readable: bool,
}

/// The heap of a relation, its partitions taken together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Heap {
    /// Blocks of the largest partition.
    pub(super) blocks: u64,
    /// Blocks of all.
    pub(super) total_blocks: u64,
    pub(super) block_bytes: u64,
    /// As the relation's.
    pub(super) layout: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) number: i16,
    pub(super) name: String,
    pub(super) of: TypeRef,
    pub(super) written: String,
    pub(super) not_null: bool,
    pub(super) generated: bool,
    pub(super) identity: bool,
    pub(super) indexed: bool,
    /// What rows have that were there before the column was added, as JSON writes it.
    pub(super) added_default: Option<String>,
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
        let conversion = self
            .types
            .conversion(&column.name, column.of, policy)
            .map_err(|error| error.with("table", &self.id))?;
        // A policy that makes NULLs makes them in NOT NULL columns too.
        let becomes_null =
            policy.out_of_range != crate::source::OutOfRange::Fail && conversion.codec.can_overflow();
        let nullable = !(self.has_constraints() && column.not_null) || becomes_null;
        let mut metadata = HashMap::from([
            (SOURCE_TYPE.to_owned(), format!("postgres:{}", self.types.base_written(column))),
            // Numbers say nothing beyond their own table: one restored from a dump counts anew.
            (SOURCE_COLUMN_ID.to_owned(), format!("{}.{}", self.oid, column.number)),
        ]);
        if conversion.codec == super::decode::Codec::Uuid {
            metadata.insert("ARROW:extension:name".to_owned(), "arrow.uuid".to_owned());
        }
        let data_type = conversion.codec.data_type();
        if let Some(text) = &column.added_default
            && self.writes_alike(column, &data_type)
        {
            metadata.insert(ADDED_DEFAULT.to_owned(), text.clone());
        }
        let field = Field::new(&column.name, data_type, nullable).with_metadata(metadata);
        Ok((conversion, field))
    }

    /// Whether a value in JSON says what it is as a value of the Arrow type.
    fn writes_alike(&self, column: &Column, travels_as: &DataType) -> bool {
        match self.types.base_name(column.of) {
            "bool" | "int2" | "int4" | "int8" | "float4" | "float8" | "numeric" | "date" | "time"
            | "timestamp" | "timestamptz" | "uuid" => *travels_as != DataType::Utf8,
            "text" | "varchar" => *travels_as == DataType::Utf8,
            _ => false,
        }
    }

    /// How well a column would do as a cursor.
    pub(super) fn candidate(&self, column: &Column) -> Option<CursorCandidate> {
        let base = self.types.base_name(column.of);
        if matches!(base, "timestamp" | "timestamptz") && named_for_change(&column.name).is_some() {
            return Some(CursorCandidate::Timestamp);
        }
        let alone_in_key = self.keys.iter().any(|key| key.primary && key.columns == [column.name.as_str()]);
        let grows = column.identity && matches!(base, "int2" | "int4" | "int8");
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
                Ok(ColumnDescription {
                    name: column.name.clone(),
                    source_type: column.written.clone(),
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

    /// Whether NOT NULL means what it says: a foreign table only claims it.
    pub(super) fn has_constraints(&self) -> bool {
        matches!(self.kind, TableKind::Table | TableKind::PartitionedTable)
    }

    /// The name, quoted.
    pub(super) fn quoted(&self) -> String {
        POSTGRES.table(&self.id)
    }
}

/// Everything that the user may read, in name order.
pub(super) async fn all(session: &Session) -> Result<Vec<Relation>> {
    // What `change: trigger` keeps is ours, and no table of the user's.
    let filter = "n.nspname NOT IN ('information_schema', '_frazil') AND n.nspname !~ '^pg_' AND NOT c.relispartition \
         AND has_schema_privilege(n.oid, 'USAGE') AND has_any_column_privilege(c.oid, 'SELECT')";
    relations(session, filter, &[]).await
}

/// What was found already, or else is found now.
pub(super) async fn unless(found: Option<Relation>, session: &Session, table: &TableId) -> Result<Relation> {
    let Some(relation) = found else { return one(session, table).await };
    Ok(relation)
}

/// One relation, or an error that names the ones with similar names.
pub(super) async fn one(session: &Session, table: &TableId) -> Result<Relation> {
    let found = match &table.schema {
        Some(schema) => {
            let filter = "n.nspname = $1 AND c.relname = $2";
            relations(session, filter, &[(schema, Type::TEXT), (&table.name, Type::TEXT)]).await?
        }
        None => {
            let filter = "c.relname = $1 AND pg_table_is_visible(c.oid)";
            relations(session, filter, &[(&table.name, Type::TEXT)]).await?
        }
    };
    match found.into_iter().next() {
        Some(relation) => Ok(relation),
        None => Err(missing(session, table).await?),
    }
}

async fn missing(session: &Session, table: &TableId) -> Result<Error> {
    let rows = session
        .query_typed(
            "SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname <> 'information_schema' \
               AND n.nspname !~ '^pg_'",
            &[],
        )
        .await?;
    let there = rows.iter().map(|row| TableId::new(row.get::<_, String>(0), row.get::<_, String>(1)));
    Ok(missing_table(table, there, "`frazil discover` lists what there is; names keep their case"))
}

/// The cluster and its timeline, where the user may know them.
pub(super) async fn cluster(session: &Session) -> Option<String> {
    // The file that these functions read may be minutes late about a promotion.
    let sql = "SELECT system_identifier || '/' || CASE WHEN pg_is_in_recovery() \
         THEN greatest(timeline_id, min_recovery_end_timeline) \
         ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int END \
         FROM pg_control_system(), pg_control_checkpoint(), pg_control_recovery()";
    session.query_typed(sql, &[]).await.ok()?.first().map(|row| row.get(0))
}

type Param<'a> = (&'a (dyn ToSql + Sync), Type);

async fn relations(session: &Session, filter: &str, params: &[Param<'_>]) -> Result<Vec<Relation>> {
    let sql = RELATIONS.replace("{filter}", filter);
    let mut relations: Vec<Relation> =
        session.query_typed(&sql, params).await?.iter().map(relation).collect();
    if relations.is_empty() {
        return Ok(relations);
    }
    let oids: Vec<u32> = relations.iter().map(|relation| relation.oid).collect();
    let params: [Param<'_>; 1] = [(&oids, Type::OID_ARRAY)];
    let (columns, keys) =
        futures::try_join!(session.query_typed(COLUMNS, &params), session.query_typed(KEYS, &params))?;
    let place: HashMap<u32, usize> = oids.iter().enumerate().map(|(i, oid)| (*oid, i)).collect();
    let mut leading = HashSet::new();
    for row in &keys {
        let of = &mut relations[place[&row.get::<_, u32>(0)]];
        if row.get::<_, bool>(4) {
            leading.insert((of.oid, row.get::<_, i16>(5)));
        }
        if row.get::<_, bool>(3) {
            let (name, columns) = (row.get(1), row.get(6));
            of.keys.push(KeyDescription { name, columns, primary: row.get(2) });
        }
    }
    let mut oids = HashSet::new();
    for row in &columns {
        let of = &mut relations[place[&row.get::<_, u32>(0)]];
        let column = column(row, &leading, of.oid);
        oids.insert(column.of.oid);
        of.columns.push(column);
    }
    let types = types(session, oids.into_iter().collect()).await?;
    for relation in &mut relations {
        relation.types = types.clone();
        if relation.rows.is_none() && relation.kind != TableKind::View {
            relation.rows = relation.bytes.map(|bytes| bytes / assumed_width(relation));
        }
    }
    Ok(relations)
}

/// Relations and their sizes; a partitioned or inherited one has those of all its parts.
const RELATIONS: &str = "
WITH RECURSIVE rel AS (
    SELECT c.oid, n.nspname::text AS schema, c.relname::text AS name, c.relkind::text AS kind,
           has_table_privilege(c.oid, 'SELECT') AND has_schema_privilege(n.oid, 'USAGE') AS readable,
           c.relrowsecurity AND row_security_active(c.oid) AS secured
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND {filter}
), tree AS (
    SELECT oid AS root, oid FROM rel
    UNION
    SELECT t.root, i.inhrelid FROM tree t JOIN pg_inherits i ON i.inhparent = t.oid
), part AS (
    SELECT t.root, c.oid, c.relkind, c.reltuples, c.relpages, pg_relation_filenode(c.oid) AS filenode,
           CASE WHEN c.relkind = 'v' THEN md5(pg_get_viewdef(c.oid)) END AS definition,
           CASE WHEN c.relkind IN ('r', 'm') THEN pg_relation_size(c.oid) END AS heap,
           CASE WHEN c.relkind IN ('r', 'm') THEN pg_table_size(c.oid) END AS bytes
    FROM tree t JOIN pg_class c ON c.oid = t.oid
), size AS (
    SELECT root,
           bool_or(relkind IN ('r', 'm') AND (reltuples < 0 OR (reltuples = 0 AND relpages = 0 AND heap > 0))) AS unknown,
           sum(greatest(reltuples, 0)) FILTER (WHERE relkind IN ('r', 'm'))::float8 AS tuples,
           sum(bytes)::int8 AS bytes, max(heap)::int8 AS largest, sum(heap)::int8 AS heap,
           bool_or(relkind = 'f') AS foreign_part,
           md5(string_agg(oid || ':' || coalesce(definition, filenode::text, '0'), ',' ORDER BY oid)) AS layout
    FROM part GROUP BY root
)
SELECT rel.oid, rel.schema, rel.name, rel.kind, rel.readable, rel.secured,
       CASE WHEN NOT size.unknown THEN size.tuples END, size.bytes, size.largest, size.heap,
       size.foreign_part, size.layout, current_setting('block_size')::int8
FROM rel JOIN size ON size.root = rel.oid
ORDER BY rel.schema COLLATE \"C\", rel.name COLLATE \"C\"";

const COLUMNS: &str = "
SELECT a.attrelid, a.attnum, a.attname::text, a.atttypid, a.atttypmod, a.attndims::int4,
       format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attgenerated <> '',
       a.attidentity <> '' OR coalesce(pg_get_expr(d.adbin, d.adrelid) LIKE 'nextval(%', false),
       to_json(a)->'attmissingval'->>0
FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = ANY($1) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum";

/// Indexes without condition: a key where unique and without expressions; serving ranges where a b-tree.
const KEYS: &str = "
SELECT i.indrelid, c.relname::text, i.indisprimary, i.indisunique AND i.indexprs IS NULL,
       m.amname = 'btree', i.indkey[0],
       ARRAY(SELECT a.attname::text
             FROM unnest(i.indkey::int2[]) WITH ORDINALITY k(number, place)
             JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number
             WHERE k.place <= i.indnkeyatts ORDER BY k.place)
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am m ON m.oid = c.relam
WHERE i.indrelid = ANY($1) AND i.indisvalid AND i.indislive AND i.indpred IS NULL
ORDER BY i.indrelid, i.indisprimary DESC, c.relname COLLATE \"C\"";

/// Types with all that they are made of. A type is an array if its elements say so: names, points and
/// such can be subscripted too, and the vectors of the catalog count from 0.
const TYPES: &str = "
WITH RECURSIVE need AS (
    SELECT unnest($1::oid[]) AS oid
    UNION
    SELECT part.oid FROM need JOIN pg_type t ON t.oid = need.oid, LATERAL (
        SELECT t.typelem WHERE t.typelem <> 0
        UNION ALL SELECT t.typbasetype WHERE t.typbasetype <> 0
        UNION ALL SELECT a.atttypid FROM pg_attribute a
                  WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
    ) part(oid)
)
SELECT t.oid, t.typname::text, t.typtype::text,
       CASE WHEN e.typarray = t.oid THEN e.oid END,
       t.typbasetype, t.typtypmod, t.typndims,
       CASE WHEN t.typbasetype <> 0 THEN format_type(t.typbasetype, t.typtypmod) END,
       ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0
             AND NOT a.attisdropped AND t.typtype = 'c' ORDER BY a.attnum),
       ARRAY(SELECT a.atttypid FROM pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0
             AND NOT a.attisdropped AND t.typtype = 'c' ORDER BY a.attnum),
       ARRAY(SELECT a.atttypmod FROM pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0
             AND NOT a.attisdropped AND t.typtype = 'c' ORDER BY a.attnum),
       ARRAY(SELECT a.attndims::int4 FROM pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0
             AND NOT a.attisdropped AND t.typtype = 'c' ORDER BY a.attnum)
FROM need JOIN pg_type t ON t.oid = need.oid LEFT JOIN pg_type e ON e.oid = t.typelem";

fn relation(row: &Row) -> Relation {
    let kind = match row.get::<_, &str>(3) {
        "p" => TableKind::PartitionedTable,
        "v" => TableKind::View,
        "m" => TableKind::MaterializedView,
        "f" => TableKind::ForeignTable,
        _ => TableKind::Table,
    };
    let block_bytes: i64 = row.get(12);
    let heap = match (row.get::<_, Option<i64>>(8), row.get::<_, Option<i64>>(9)) {
        (Some(largest), Some(total)) if !row.get::<_, bool>(10) && block_bytes > 0 => Some(Heap {
            blocks: (largest / block_bytes) as u64,
            total_blocks: (total / block_bytes) as u64,
            block_bytes: block_bytes as u64,
            layout: row.get(11),
        }),
        _ => None,
    };
    let physical = !matches!(kind, TableKind::View | TableKind::ForeignTable);
    Relation {
        oid: row.get(0),
        id: TableId::new(row.get::<_, String>(1), row.get::<_, String>(2)),
        kind,
        columns: Vec::new(),
        keys: Vec::new(),
        types: TypeCatalog::default(),
        rows: row.get::<_, Option<f64>>(6).filter(|_| physical).map(|rows| rows as u64),
        bytes: row.get::<_, Option<i64>>(7).map(|bytes| bytes as u64),
        heap,
        layout: row.get(11),
        readable: row.get(4),
        row_security: row.get(5),
    }
}

fn column(row: &Row, leading: &HashSet<(u32, i16)>, relation: u32) -> Column {
    let number = row.get(1);
    Column {
        number,
        name: row.get(2),
        of: TypeRef { oid: row.get(3), modifier: row.get(4), dimensions: row.get(5) },
        written: row.get(6),
        not_null: row.get(7),
        generated: row.get(8),
        identity: row.get(9),
        indexed: leading.contains(&(relation, number)),
        added_default: row.get(10),
    }
}

async fn types(session: &Session, oids: Vec<u32>) -> Result<TypeCatalog> {
    let rows = session.query_typed(TYPES, &[(&oids, Type::OID_ARRAY)]).await?;
    Ok(TypeCatalog(rows.iter().map(|row| (row.get(0), type_row(row))).collect()))
}

fn type_row(row: &Row) -> TypeRow {
    let base: u32 = row.get(4);
    let (names, oids): (Vec<String>, Vec<u32>) = (row.get(8), row.get(9));
    let (modifiers, dimensions): (Vec<i32>, Vec<i32>) = (row.get(10), row.get(11));
    let members = names
        .into_iter()
        .zip(oids)
        .zip(modifiers.into_iter().zip(dimensions))
        .map(|((name, oid), (modifier, dimensions))| Member {
            name,
            of: TypeRef { oid, modifier, dimensions },
        })
        .collect();
    TypeRow {
        name: row.get(1),
        kind: row.get::<_, &str>(2).chars().next().unwrap_or('b'),
        element: row.get(3),
        base: (base != 0).then(|| TypeRef { oid: base, modifier: row.get(5), dimensions: row.get(6) }),
        base_written: row.get(7),
        members,
    }
}

fn assumed_width(relation: &Relation) -> u64 {
    let columns = relation.columns.iter().map(|column| match relation.types.base_name(column.of) {
        "bool" | "char" => 1,
        "int2" => 2,
        "int4" | "date" | "float4" | "oid" => 4,
        "int8" | "float8" | "timestamp" | "timestamptz" | "time" => 8,
        "uuid" | "interval" => 16,
        _ => VARIABLE_WIDTH,
    });
    ROW_OVERHEAD + columns.sum::<u64>()
}
