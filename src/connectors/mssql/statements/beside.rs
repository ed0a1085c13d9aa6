//! The statements of a load that looks at what others changed: what differs in which rows, and what is
//! written of them.
//!
//! Every look at the table locks the ranges of the staged keys, so that no row of theirs changes and none
//! comes until the commit.

use super::{DELETE, STAGING, Statements, UPSERT, images, listed};
use crate::connectors::mssql::kind::Kind;
use crate::connectors::sql::{Comparison, DELETED_AT, MSSQL, Sides};
use crate::target::Deletes;

impl Statements {
    /// Finds the rows that somebody else touched.
    pub(in super::super) fn compare(&self, last_write: Option<usize>) -> String {
        let plain = self.plain();
        let differ = |place: usize, a: &str, b: &str| {
            let type_name = &self.columns[plain[place]].type_name;
            let [a, b] = [a, b].map(|side| images(type_name, side).join(", "));
            format!("EXISTS (SELECT {a} EXCEPT SELECT {b})")
        };
        let sides = plain.iter().map(|index| Sides {
            base: self.staged_value('b', *index),
            source: self.value(*index),
            target: format!("t.{}", MSSQL.ident(&self.columns[*index].name)),
        });
        let comparison = Comparison {
            dialect: &MSSQL,
            from: self.beside(),
            there: self.there(),
            number: "s.[number]",
            sides: sides.collect(),
            last_write,
            deletes: self.deletes,
            differ: &differ,
        };
        comparison.statement()
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
            "SELECT s.[number], s.[letter], CASE WHEN s.[op] = {UPSERT} THEN '1' ELSE '0' END, \
             CASE WHEN s.[b] = 1 THEN '1' ELSE '0' END, CASE WHEN {} THEN '1' ELSE '0' END{}{}{} {} \
             WHERE s.[number] IN ({})",
            self.there(),
            side(&|index| self.value(index)),
            side(&|index| self.staged_value('b', index)),
            side(&|index| format!("t.{}", MSSQL.ident(&self.columns[index].name))),
            self.beside(),
            listed(numbers)
        )
    }

    /// Forgets staged rows: they are done, or are not to be.
    pub(in super::super) fn forget(&self, numbers: &[i64]) -> String {
        format!("DELETE FROM {STAGING} WHERE [number] IN ({})", listed(numbers))
    }

    /// Writes staged rows, but for the columns that are marked.
    pub(in super::super) fn mix(&self, numbers: &[i64], kept: &str) -> String {
        let written = self.plain().into_iter().zip(kept.bytes()).filter(|(_, kept)| *kept == b'0');
        let sets = written
            .map(|(index, _)| format!("{} = {}", MSSQL.ident(&self.columns[index].name), self.value(index)));
        format!(
            "UPDATE t SET {} FROM {} WHERE s.[number] IN ({})",
            sets.collect::<Vec<_>>().join(", "),
            self.joined(),
            listed(numbers)
        )
    }

    /// How many staged rows are to be deleted.
    pub(in super::super) fn count_staged_deletes(&self) -> String {
        format!("SELECT CAST(COUNT_BIG(*) AS bigint) AS gone FROM {STAGING} AS s WHERE s.[op] = {DELETE}")
    }

    /// The places of columns that are no key and can be written.
    pub(in super::super) fn plain(&self) -> Vec<usize> {
        let columns = self.columns.iter().enumerate();
        columns.filter(|(_, column)| !column.key && !column.identity).map(|(index, _)| index).collect()
    }

    fn beside(&self) -> String {
        format!(
            "FROM {STAGING} AS s LEFT JOIN {} AS t WITH (UPDLOCK, HOLDLOCK) ON {}",
            MSSQL.table(&self.table),
            self.by_key()
        )
    }

    /// A row that is marked as deleted is none.
    fn there(&self) -> String {
        let key = self.key().map(|(_, column)| MSSQL.ident(&column.name)).next().unwrap_or_default();
        match self.deletes {
            Deletes::Soft => format!("t.{key} IS NOT NULL AND t.{} IS NULL", MSSQL.ident(DELETED_AT)),
            Deletes::Hard | Deletes::Ignore => format!("t.{key} IS NOT NULL"),
        }
    }
}

/// A value as a text that loses nothing.
fn text(type_name: &str, value: &str) -> String {
    let style = match Kind::parse(type_name) {
        Some(kind) if kind.is_binary() => Some(1),
        Some(Kind::Real | Kind::Float) => Some(3),
        Some(Kind::DateTime | Kind::DateTime2(_) | Kind::SmallDateTime | Kind::Offset(_) | Kind::Date) => {
            Some(121)
        }
        _ => None,
    };
    match style {
        Some(style) => format!("CONVERT(nvarchar(max), {value}, {style})"),
        None => format!("CAST({value} AS nvarchar(max))"),
    }
}
