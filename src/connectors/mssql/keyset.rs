//! Reads a table in ranges of its key, so that several sessions share the work and a crash costs one
//! portion.
//!
//! ```text
//! probe: the keys in order, from the last bound on ──▶ every n-th is a bound
//! (·, b1] (b1, b2] (b2, b3] … (bn, ·)
//! ```
//!
//! Ranges are half-open by the server's own order, so each key is in exactly one. Sessions cannot share
//! a snapshot here: each range is read as it is when its session gets to it. That is right where
//! whatever changes meanwhile is read again, and only there it is done.

use super::discover::{Column, Relation};
use crate::clients::mssql::Session;
use crate::connectors::sql::{
    MSSQL, RANGE_BYTES, RANGES_A_STREAM, SMALLEST_RANGE_BYTES, Select, beyond, up_to,
};
use crate::error::Result;

/// Bytes of a row where nothing is known.
const ASSUMED_ROW_BYTES: u64 = 100;

/// Columns by which a relation is cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Keyset {
    from: String,
    columns: Vec<KeyColumn>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct KeyColumn {
    name: String,
    /// As a cast names its type.
    of: String,
    text: Text,
}

/// How a value becomes a text and a literal again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Text {
    /// As a number is written.
    Bare,
    /// In quotes, by this style.
    Quoted(u8),
    /// As a Unicode literal.
    Unicode,
    /// `0x…`
    Hex,
}

/// A key, each part as the server's text.
pub(super) type Bound = Vec<String>;

/// What is left to be read by ranges.
#[derive(Debug, Clone)]
pub(super) struct ByKey {
    pub(super) select: Select,
    pub(super) keys: Keyset,
    /// Everything up to here is done.
    pub(super) after: Option<Bound>,
    /// How many rows a range has.
    pub(super) range_rows: u64,
    /// How many a portion has: whole ranges.
    pub(super) portion_rows: u64,
}

/// The statements of a portion, and its end; `None` where the relation ends.
pub(super) struct Cut {
    pub(super) statements: Vec<String>,
    pub(super) end: Option<Bound>,
}

impl Keyset {
    /// The columns of these names, if an index of the table is in their order and they can be cut.
    pub(super) fn of(relation: &Relation, names: &[String]) -> Option<Self> {
        let key = relation.keys.iter().find(|key| {
            key.columns.len() == names.len() && key.columns.iter().all(|column| names.contains(column))
        })?;
        let column = |name: &String| key_column(relation.column(name)?);
        let columns = key.columns.iter().map(column).collect::<Option<Vec<_>>>()?;
        Some(Self { from: relation.quoted(), columns })
    }

    /// Names and types: a bound means something to the same ones only.
    pub(super) fn described(&self) -> Vec<String> {
        self.columns.iter().map(|column| format!("{} {}", column.name, column.of)).collect()
    }

    fn list(&self) -> String {
        self.columns.iter().map(|column| column.name.as_str()).collect::<Vec<_>>().join(", ")
    }

    fn against<'a>(&'a self, bound: &'a Bound) -> Vec<(&'a str, String)> {
        let pairs = self.columns.iter().zip(bound);
        pairs.map(|(column, value)| (column.name.as_str(), column.literal(value))).collect()
    }

    /// `lower < key <= upper`
    fn range(&self, lower: Option<&Bound>, upper: Option<&Bound>) -> Option<String> {
        let mut conditions = Vec::new();
        conditions.extend(lower.map(|bound| beyond(&self.against(bound))));
        conditions.extend(upper.map(|bound| up_to(&self.against(bound))));
        (!conditions.is_empty()).then(|| conditions.join(" AND "))
    }
}

impl KeyColumn {
    /// A value of the column's own type: compared in another one, the index would not serve it.
    fn literal(&self, value: &str) -> String {
        let value = match self.text {
            Text::Bare | Text::Hex => value.to_owned(),
            Text::Quoted(_) => format!("'{}'", value.replace('\'', "''")),
            Text::Unicode => format!("N'{}'", value.replace('\'', "''")),
        };
        match self.text {
            Text::Quoted(style) if style > 0 => format!("CONVERT({}, {value}, {style})", self.of),
            _ => format!("CAST({value} AS {})", self.of),
        }
    }

    fn as_text(&self, column: &str) -> String {
        match self.text {
            Text::Bare | Text::Unicode => format!("CAST({column} AS nvarchar(4000))"),
            Text::Quoted(style) => format!("CONVERT(nvarchar(4000), {column}, {style})"),
            Text::Hex => format!("CONVERT(nvarchar(max), {column}, 1)"),
        }
    }
}

fn key_column(column: &Column) -> Option<KeyColumn> {
    let text = match column.of.base.as_str() {
        "tinyint" | "smallint" | "int" | "bigint" | "decimal" | "numeric" => Text::Bare,
        "nchar" | "nvarchar" | "char" | "varchar" | "sysname" => Text::Unicode,
        "uniqueidentifier" => Text::Quoted(0),
        "date" | "datetime2" | "datetime" | "smalldatetime" | "time" | "datetimeoffset" => Text::Quoted(126),
        "binary" | "varbinary" => Text::Hex,
        _ => return None,
    };
    Some(KeyColumn { name: MSSQL.ident(&column.name), of: column.of.written(), text })
}

impl ByKey {
    /// Ranges of a size that goes with what the catalog says of the table.
    pub(super) fn new(
        relation: &Relation,
        keys: Keyset,
        select: Select,
        after: Option<Bound>,
        parallel: usize,
        portion_bytes: u64,
    ) -> Self {
        let total = relation.bytes.unwrap_or(u64::MAX);
        let row_bytes = match (relation.bytes, relation.rows) {
            (Some(bytes), Some(rows)) if rows > 0 => (bytes / rows).max(1),
            _ => ASSUMED_ROW_BYTES,
        };
        let range_bytes = (portion_bytes.min(total) / (parallel.max(1) as u64 * RANGES_A_STREAM))
            .clamp(SMALLEST_RANGE_BYTES.min(portion_bytes), RANGE_BYTES);
        let range_rows = (range_bytes / row_bytes).max(1);
        let ranges = ((portion_bytes / row_bytes) / range_rows).clamp(1, i64::MAX as u64 / range_rows);
        Self { select, keys, after, range_rows, portion_rows: ranges * range_rows }
    }

    /// The statement that finds the next portion's bounds.
    fn probe(&self) -> String {
        let names: Vec<_> = self.keys.columns.iter().map(|column| column.name.clone()).collect();
        let inner = Select {
            what: format!(
                "SELECT TOP ({}) {}, ROW_NUMBER() OVER (ORDER BY {}) AS [frazil place] FROM {}",
                self.portion_rows,
                names.join(", "),
                self.keys.list(),
                self.keys.from
            ),
            conditions: self.select.conditions.clone(),
        };
        let texts: Vec<_> =
            self.keys.columns.iter().map(|column| column.as_text(&format!("n.{}", column.name))).collect();
        format!(
            "SELECT {}, n.[frazil place] FROM ({} ORDER BY {}) AS n WHERE n.[frazil place] % {} = 0 ORDER BY n.[frazil place]",
            texts.join(", "),
            inner.with(self.keys.range(self.after.as_ref(), None)),
            self.keys.list(),
            self.range_rows,
        )
    }

    /// Finds the next portion's bounds.
    pub(super) async fn cut(&self, session: &mut Session) -> Result<Cut> {
        let width = self.keys.columns.len();
        let rows = session.rows(&self.probe()).await?;
        let mut bounds = Vec::with_capacity(rows.len());
        for row in &rows {
            let bound: Bound = (0..width).map(|at| super::discover::text(row, at)).collect();
            bounds.push((bound, row.try_get::<i64, _>(width)?.unwrap_or_default() as u64));
        }
        Ok(self.divide(bounds))
    }

    fn divide(&self, bounds: Vec<(Bound, u64)>) -> Cut {
        let mut statements = Vec::new();
        let mut lower = self.after.clone();
        let mut end = None;
        for (bound, place) in bounds {
            statements.push(self.select.with(self.keys.range(lower.as_ref(), Some(&bound))));
            if place == self.portion_rows {
                end = Some(bound.clone());
            }
            lower = Some(bound);
        }
        if end.is_none() {
            statements.push(self.select.with(self.keys.range(lower.as_ref(), None)));
        }
        Cut { statements, end }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use expect_test::expect;

    use super::super::testing::relation;
    use super::*;

    fn by_key(key: &str, after: Option<Bound>) -> ByKey {
        let relation = relation(&format!("name varchar 20 1252 !\nid int !\nat datetime2 7 !\nkey {key}"));
        let names: Vec<String> = key.split(' ').map(str::to_owned).collect();
        ByKey {
            select: Select { what: "SELECT [id] FROM [dbo].[t]".into(), conditions: vec!["x = 1".into()] },
            keys: Keyset::of(&relation, &names).unwrap(),
            after,
            range_rows: 10,
            portion_rows: 20,
        }
    }

    /// Trap 9: a literal has the column's own type, or the index does not serve it.
    #[test]
    fn a_probe_and_its_ranges() {
        let ranges = by_key("name id", Some(vec!["it's".into(), "7".into()]));
        expect!["SELECT CAST(n.[name] AS nvarchar(4000)), CAST(n.[id] AS nvarchar(4000)), n.[frazil place] FROM (SELECT TOP (20) [name], [id], ROW_NUMBER() OVER (ORDER BY [name], [id]) AS [frazil place] FROM [dbo].[t] WHERE (x = 1\n) AND ([name] >= CAST(N'it''s' AS varchar(20)) AND (([name] > CAST(N'it''s' AS varchar(20))) OR ([name] = CAST(N'it''s' AS varchar(20)) AND [id] > CAST(7 AS int)))\n) ORDER BY [name], [id]) AS n WHERE n.[frazil place] % 10 = 0 ORDER BY n.[frazil place]"]
            .assert_eq(&ranges.probe());
        let ranges = by_key("id", None);
        let cut = ranges.divide(vec![(vec!["3".into()], 10), (vec!["9".into()], 20)]);
        assert_eq!(cut.end, Some(vec!["9".to_owned()]));
        expect![[r#"
            SELECT [id] FROM [dbo].[t] WHERE (x = 1
            ) AND (([id] <= CAST(3 AS int))
            )
            SELECT [id] FROM [dbo].[t] WHERE (x = 1
            ) AND (([id] > CAST(3 AS int)) AND ([id] <= CAST(9 AS int))
            )"#]]
        .assert_eq(&cut.statements.join("\n"));
        let last = ranges.divide(vec![(vec!["3".into()], 10)]);
        assert_eq!((last.statements.len(), last.end), (2, None));
    }
}
