//! The statements of a load that looks at what others changed: what differs in which rows, and what is
//! written of them.
//!
//! Every look at the table locks: rows that are there, and the gaps where staged keys are not, so that none
//! comes there until the commit. It sees what is committed by then, not what the transaction saw first.

use super::{BITS, DELETE, Statements, listed};
use crate::connectors::mysql::kind::Kind;
use crate::connectors::sql::{Comparison, DELETED_AT, MYSQL, Sides};
use crate::target::Deletes;

impl Statements {
    /// Finds the rows that somebody else touched.
    pub(in super::super) fn compare(&self, last_write: Option<usize>) -> String {
        let plain = self.plain();
        let differ = |place: usize, a: &str, b: &str| {
            let column = &self.columns[plain[place]];
            // The server writes JSON, and members of a set, in its own way: so will it have what is staged.
            let [a, b] = [a, b].map(|side| match side.starts_with("s.") {
                true => as_stored(&column.type_name, side),
                false => side.to_owned(),
            });
            format!("NOT ({})", column.same(&a, &b))
        };
        let sides = plain.iter().map(|index| Sides {
            base: format!("s.b{index}"),
            source: format!("s.c{index}"),
            target: format!("t.{}", MYSQL.ident(&self.columns[*index].name)),
        });
        let comparison = Comparison {
            dialect: &MYSQL,
            from: self.beside(),
            there: self.there(),
            number: "s.number",
            sides: sides.collect(),
            last_write,
            deletes: self.deletes,
            differ: &differ,
        };
        format!("{} FOR UPDATE", comparison.statement())
    }

    /// Number and key of staged rows, which of their sides exist (source, base, target), and the values of all
    /// of them as texts.
    pub(in super::super) fn clashes(&self, numbers: &[i64]) -> String {
        let side = |of: &dyn Fn(usize) -> String| {
            let texts = self.columns.iter().enumerate();
            texts
                .map(|(index, column)| format!(", {}", text(&column.type_name, &of(index))))
                .collect::<String>()
        };
        format!(
            "SELECT s.number, s.letter, s.op = 0, s.b = 1, {}{}{}{} {} WHERE s.number IN ({}) FOR UPDATE",
            self.there(),
            side(&|index| format!("s.c{index}")),
            side(&|index| format!("s.b{index}")),
            side(&|index| format!("t.{}", MYSQL.ident(&self.columns[index].name))),
            self.beside(),
            listed(numbers)
        )
    }

    /// Forgets staged rows: they are done, or are not to be.
    pub(in super::super) fn forget(&self, numbers: &[i64]) -> String {
        format!("DELETE FROM {} WHERE number IN ({})", self.staging(), listed(numbers))
    }

    /// Writes staged rows, but for the columns that are marked.
    pub(in super::super) fn mix(&self, numbers: &[i64], kept: &str) -> String {
        let written = self.plain().into_iter().zip(kept.bytes()).filter(|(_, kept)| *kept == b'0');
        let sets =
            written.map(|(index, _)| format!("t.{} = s.c{index}", MYSQL.ident(&self.columns[index].name)));
        format!(
            "UPDATE {} SET {} WHERE s.number IN ({})",
            self.joined(),
            sets.collect::<Vec<_>>().join(", "),
            listed(numbers)
        )
    }

    /// How many staged rows are to be deleted.
    pub(in super::super) fn count_staged_deletes(&self) -> String {
        format!("SELECT COUNT(*) FROM {} AS s WHERE s.op = {DELETE}", self.staging())
    }

    /// The places of columns that are no key.
    pub(in super::super) fn plain(&self) -> Vec<usize> {
        self.columns.iter().enumerate().filter(|(_, column)| !column.key).map(|(index, _)| index).collect()
    }

    fn beside(&self) -> String {
        format!(
            "FROM {} AS s LEFT JOIN {} AS t ON {}",
            self.staging(),
            MYSQL.table(&self.table),
            self.by_key()
        )
    }

    /// A row that is marked as deleted is none.
    fn there(&self) -> String {
        let key = self.first_key("t");
        match self.deletes {
            Deletes::Soft => format!("({key} IS NOT NULL AND t.{} IS NULL)", MYSQL.ident(DELETED_AT)),
            Deletes::Hard | Deletes::Ignore => format!("({key} IS NOT NULL)"),
        }
    }
}

/// A staged text as a column of a type that checks it has it.
fn as_stored(type_name: &str, staged: &str) -> String {
    match type_name.to_ascii_lowercase().as_str() {
        "json" => format!("CAST({staged} AS JSON)"),
        _ => staged.to_owned(),
    }
}

/// A value as a text that loses nothing.
fn text(type_name: &str, value: &str) -> String {
    match Kind::parse(type_name) {
        Some(Kind::Binary(_) | Kind::Varbinary(_) | Kind::Blob(_)) => format!("CONCAT('0x', HEX({value}))"),
        // Of a `float` the server shows six digits; as a `double` it has all.
        Some(Kind::Float) => format!("CAST({value} + 0e0 AS char)"),
        Some(Kind::Bit(_)) => format!("CAST({value} + 0 AS char)"),
        Some(kind) if kind.is_text() => format!("CONVERT({value} USING utf8mb4) COLLATE {BITS}"),
        _ => format!("CAST({value} AS char)"),
    }
}
