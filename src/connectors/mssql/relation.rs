//! What a target table looks like, from the server's own catalog.

use tiberius::Row;

use super::kind::Kind;
use crate::clients::mssql::{Session, literal};
use crate::connectors::sql::{MSSQL, Present};
use crate::error::{Error, ErrorKind, Result};
use crate::table::TableId;

/// A table, or what stands in its place.
#[derive(Debug, Clone, Default)]
pub(super) struct Relation {
    /// `U` is a table.
    pub(super) kind: String,
    pub(super) columns: Vec<Column>,
    /// Sorted column names of each unique index without a filter.
    pub(super) unique: Vec<Vec<String>>,
    /// Why a `MERGE` into it is not to be trusted.
    pub(super) hazard: Option<&'static str>,
}

/// One of its columns.
#[derive(Debug, Clone)]
pub(super) struct Column {
    pub(super) name: String,
    /// With length, precision and scale.
    pub(super) type_name: String,
    pub(super) collation: Option<String>,
    pub(super) not_null: bool,
    pub(super) identity: bool,
    /// Computed, a row version, or a period of a temporal table: never written.
    pub(super) generated: bool,
    pub(super) defaulted: bool,
}

impl Column {
    pub(super) fn present(&self) -> Present {
        Present {
            name: self.name.clone(),
            data_type: self.type_name.clone(),
            not_null: self.not_null,
            defaulted: self.defaulted || self.identity,
            generated: self.generated,
        }
    }
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

    /// Whether values of a column have to be insisted on.
    pub(super) fn identity(&self) -> Option<&Column> {
        self.columns.iter().find(|column| column.identity)
    }
}

/// The table with its schema filled in.
pub(super) async fn locate(session: &mut Session, table: &TableId) -> Result<TableId> {
    if table.schema.is_some() {
        return Ok(table.clone());
    }
    let rows = session.rows("SELECT CAST(SCHEMA_NAME() AS nvarchar(128)) AS name").await?;
    let schema = rows.first().map(|row| text(row, 0)).transpose()?.flatten();
    Ok(TableId { schema: Some(schema.unwrap_or_else(|| "dbo".to_owned())), name: table.name.clone() })
}

/// Whether the schema is there.
pub(super) async fn schema_exists(session: &mut Session, id: &TableId) -> Result<bool> {
    let name = literal(id.schema_or("dbo"));
    let rows =
        session.rows(&format!("SELECT CAST(1 AS int) FROM sys.schemas AS s WHERE s.name = {name}")).await?;
    Ok(!rows.is_empty())
}

/// The table, or `None` when there is nothing of that name.
pub(super) async fn relation(session: &mut Session, id: &TableId) -> Result<Option<Relation>> {
    let object = format!("OBJECT_ID({})", literal(&MSSQL.table(id)));
    let rows = session.rows(&columns_query(&object)).await?;
    let Some(first) = rows.first() else { return Ok(None) };
    let mut relation =
        Relation { kind: text(first, 0)?.unwrap_or_default().trim().to_owned(), ..Relation::default() };
    for row in &rows {
        relation.columns.push(column(row)?);
    }
    let mut last = None;
    for row in session.rows(&unique_query(&object)).await? {
        let index = row.try_get::<i32, _>(0)?;
        if last != index {
            relation.unique.push(Vec::new());
            last = index;
        }
        if let (Some(columns), Some(name)) = (relation.unique.last_mut(), text(&row, 1)?) {
            columns.push(name);
        }
    }
    relation.unique.iter_mut().for_each(|columns| columns.sort());
    relation.hazard = hazard(session, &object).await?;
    Ok(Some(relation))
}

/// Types by the name of their base: aliases of users mean the same values.
fn columns_query(object: &str) -> String {
    format!(
        "SELECT CAST(o.type AS nvarchar(2)) AS kind, c.name AS name, \
         CAST(COALESCE(b.name, y.name) AS nvarchar(128)) AS type_name, CAST(c.max_length AS int) AS length, \
         CAST(c.precision AS int) AS digits, CAST(c.scale AS int) AS scale, CAST(c.collation_name AS nvarchar(128)) AS collation_name, \
         CAST(c.is_nullable AS int) AS nullable, CAST(c.is_identity AS int) AS is_identity, \
         CAST(c.is_computed AS int) AS computed, CAST(c.generated_always_type AS int) AS period, \
         CAST(c.default_object_id AS int) AS default_id \
         FROM sys.objects AS o INNER JOIN sys.columns AS c ON c.object_id = o.object_id \
         INNER JOIN sys.types AS y ON y.user_type_id = c.user_type_id \
         LEFT JOIN sys.types AS b ON b.user_type_id = c.system_type_id \
         WHERE o.object_id = {object} ORDER BY c.column_id"
    )
}

fn unique_query(object: &str) -> String {
    format!(
        "SELECT CAST(i.index_id AS int) AS number, c.name AS name FROM sys.indexes AS i \
         INNER JOIN sys.index_columns AS k ON k.object_id = i.object_id AND k.index_id = i.index_id \
         INNER JOIN sys.columns AS c ON c.object_id = k.object_id AND c.column_id = k.column_id \
         WHERE i.object_id = {object} AND i.is_unique = 1 AND i.has_filter = 0 AND i.is_disabled = 0 \
         AND k.is_included_column = 0 ORDER BY i.index_id, k.key_ordinal"
    )
}

/// Under these `MERGE` has done wrong, or does not do what people expect of their triggers.
async fn hazard(session: &mut Session, object: &str) -> Result<Option<&'static str>> {
    let flag = |condition: &str, name: &str| {
        format!("CAST(CASE WHEN EXISTS ({condition}) THEN 1 ELSE 0 END AS int) AS {name}")
    };
    let query = format!(
        "SELECT {}, {}, {}, {}",
        flag(
            &format!("SELECT 1 FROM sys.indexes AS i WHERE i.object_id = {object} AND i.has_filter = 1"),
            "filtered"
        ),
        flag(
            &format!(
                "SELECT 1 FROM sys.sql_expression_dependencies AS d INNER JOIN sys.indexes AS i \
                 ON i.object_id = d.referencing_id WHERE d.referenced_id = {object}"
            ),
            "viewed"
        ),
        flag(
            &format!("SELECT 1 FROM sys.triggers AS g WHERE g.parent_id = {object} AND g.is_disabled = 0"),
            "watched"
        ),
        flag(
            &format!("SELECT 1 FROM sys.tables AS u WHERE u.object_id = {object} AND u.temporal_type = 2"),
            "versioned"
        ),
    );
    let rows = session.rows(&query).await?;
    let reasons = ["a filtered index", "an indexed view", "a trigger", "a history table"];
    let Some(row) = rows.first() else { return Ok(None) };
    for (index, reason) in reasons.into_iter().enumerate() {
        if row.try_get::<i32, _>(index)? == Some(1) {
            return Ok(Some(reason));
        }
    }
    Ok(None)
}

fn column(row: &Row) -> Result<Column> {
    let number = |index: usize| -> Result<i32> { Ok(row.try_get::<i32, _>(index)?.unwrap_or(0)) };
    let base = text(row, 2)?.unwrap_or_default();
    let (length, digits, scale) = (number(3)?, number(4)?, number(5)?);
    Ok(Column {
        name: text(row, 1)?.ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, "the server's catalog has a column without a name")
        })?,
        type_name: type_name(&base, length, digits, scale),
        collation: text(row, 6)?,
        not_null: number(7)? == 0,
        identity: number(8)? != 0,
        generated: number(9)? != 0 || number(10)? != 0 || matches!(base.as_str(), "timestamp" | "rowversion"),
        defaulted: number(11)? != 0,
    })
}

/// As T-SQL declares it; `length` is in bytes, -1 is `max`.
pub(super) fn type_name(base: &str, length: i32, digits: i32, scale: i32) -> String {
    let sized = |units: i32| match length {
        -1 => format!("{base}(max)"),
        bytes => format!("{base}({})", bytes / units),
    };
    match base {
        "nvarchar" | "nchar" => sized(2),
        "varchar" | "char" | "varbinary" | "binary" => sized(1),
        "decimal" | "numeric" => format!("{base}({digits},{scale})"),
        "datetime2" | "time" | "datetimeoffset" => format!("{base}({scale})"),
        other => other.to_owned(),
    }
}

/// Whether values of this type can be compared with each other.
pub(super) fn is_comparable(type_name: &str) -> bool {
    Kind::parse(type_name).is_some_and(|kind| kind != Kind::Xml)
}

fn text(row: &Row, index: usize) -> Result<Option<String>> {
    Ok(row.try_get::<&str, _>(index)?.map(str::to_owned))
}
