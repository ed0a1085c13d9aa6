//! Reads a table in ranges of its key, so that several sessions share the work and a crash costs one
//! portion.
//!
//! ```text
//! from the last bound on, the n-th key in order is the next bound
//! (·, b1] (b1, b2] (b2, b3] … (bn, ·)
//! ```
//!
//! Ranges are half-open by the server's own order, that of the column's collation, so each row is in exactly
//! one. The search for bounds goes through the index once in all. Sessions cannot share a snapshot here: each
//! range is read as it is when its session gets to it. That is right where whatever changes meanwhile is
//! read again, and only there it is done.

use super::discover::{Column, Relation};
use crate::clients::mysql::{Session, literal, text};
use crate::connectors::sql::{
    MYSQL, RANGE_BYTES, RANGES_A_STREAM, SMALLEST_RANGE_BYTES, Select, beyond, up_to,
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
    /// Its type and collation: a bound means something to the same ones only.
    of: String,
    text: Text,
}

/// How a value becomes a text and a literal again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Text {
    /// As a number is written.
    Bare,
    Quoted,
    /// `X'…'`
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
    /// How many ranges a portion has.
    pub(super) ranges: u64,
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

    /// Names, types and collations.
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
    fn literal(&self, value: &str) -> String {
        match self.text {
            Text::Bare => value.to_owned(),
            Text::Quoted => literal(value),
            Text::Hex => format!("X'{value}'"),
        }
    }

    fn as_text(&self) -> String {
        match self.text {
            Text::Bare | Text::Quoted => self.name.clone(),
            Text::Hex => format!("HEX({})", self.name),
        }
    }
}

fn key_column(column: &Column) -> Option<KeyColumn> {
    let text = match column.of.base.as_str() {
        "tinyint" | "smallint" | "mediumint" | "int" | "bigint" | "decimal" | "year" => Text::Bare,
        "char" | "varchar" | "date" | "datetime" | "timestamp" | "time" => Text::Quoted,
        "binary" | "varbinary" => Text::Hex,
        // The members of an `enum` have the order of their numbers, and are compared as texts.
        _ => return None,
    };
    let collation = column.of.collation.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
    Some(KeyColumn {
        name: MYSQL.ident(&column.name),
        of: format!("{}{collation}", column.of.written()),
        text,
    })
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
        let ranges = (portion_bytes / row_bytes / range_rows).max(1);
        Self { select, keys, after, range_rows, ranges }
    }

    /// The statement that finds the next bound.
    fn probe(&self, after: Option<&Bound>) -> String {
        let texts: Vec<_> = self.keys.columns.iter().map(KeyColumn::as_text).collect();
        let inner = Select {
            what: format!("SELECT {} FROM {}", texts.join(", "), self.keys.from),
            conditions: self.select.conditions.clone(),
        };
        format!(
            "{} ORDER BY {} LIMIT 1 OFFSET {}",
            inner.with(self.keys.range(after, None)),
            self.keys.list(),
            self.range_rows - 1
        )
    }

    /// Finds the next portion's bounds.
    pub(super) async fn cut(&self, session: &mut Session) -> Result<Cut> {
        let mut statements = Vec::new();
        let mut lower = self.after.clone();
        for _ in 0..self.ranges {
            let rows = session.rows(&self.probe(lower.as_ref())).await?;
            let Some(row) = rows.first() else {
                statements.push(self.select.with(self.keys.range(lower.as_ref(), None)));
                return Ok(Cut { statements, end: None });
            };
            let bound: Bound = (0..self.keys.columns.len()).map(|at| text(row, at)).collect();
            statements.push(self.select.with(self.keys.range(lower.as_ref(), Some(&bound))));
            lower = Some(bound);
        }
        Ok(Cut { statements, end: lower })
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn keys(columns: &[(&str, Text)]) -> Keyset {
        let column = |(name, text): &(&str, Text)| KeyColumn {
            name: MYSQL.ident(name),
            of: String::new(),
            text: *text,
        };
        Keyset { from: "`d`.`t`".into(), columns: columns.iter().map(column).collect() }
    }

    #[test]
    fn a_probe_and_its_ranges() {
        let ranges = ByKey {
            select: Select { what: "SELECT `id` FROM `d`.`t`".into(), conditions: vec!["x = 1".into()] },
            keys: keys(&[("name", Text::Quoted), ("id", Text::Bare), ("b", Text::Hex)]),
            after: None,
            range_rows: 10,
            ranges: 2,
        };
        let bound: Bound = vec![r"it's \".into(), "7".into(), "00FF".into()];
        expect![[r#"
            SELECT `name`, `id`, HEX(`b`) FROM `d`.`t` WHERE (x = 1
            ) AND (`name` >= 'it''s \\' AND ((`name` > 'it''s \\') OR (`name` = 'it''s \\' AND `id` > 7) OR (`name` = 'it''s \\' AND `id` = 7 AND `b` > X'00FF'))
            ) ORDER BY `name`, `id`, `b` LIMIT 1 OFFSET 9"#]]
        .assert_eq(&ranges.probe(Some(&bound)));
        let one = keys(&[("id", Text::Bare)]);
        expect!["(`id` > 3) AND (`id` <= 9)"]
            .assert_eq(&one.range(Some(&vec!["3".into()]), Some(&vec!["9".into()])).unwrap());
        let two = keys(&[("a", Text::Bare), ("b", Text::Bare)]);
        expect!["`a` <= 3 AND ((`a` < 3) OR (`a` = 3 AND `b` <= 9))"]
            .assert_eq(&two.range(None, Some(&vec!["3".into(), "9".into()])).unwrap());
        assert_eq!(one.range(None, None), None);
    }
}
