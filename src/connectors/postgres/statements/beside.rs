//! The statements of a load that looks at what others changed: which rows of the table are meant, what
//! differs in them, and what is written of them.

use super::{STAGING, Statements, quoted};
use crate::connectors::sql::{Comparison, DELETED_AT, POSTGRES, Sides};
use crate::target::Deletes;

/// The numbers of staged rows of which the table has the row, and it is locked.
const THERE: &str = "pg_temp.frazil_there";

/// Holds for those.
pub(super) const LOCKED: &str = "EXISTS (SELECT FROM pg_temp.frazil_there AS h WHERE h.n = s.n)";

impl Statements {
    /// Locks the rows of the table that the staged ones are about, and notes which they are.
    pub(in super::super) fn lock(&self) -> [String; 2] {
        [
            "CREATE TEMPORARY TABLE frazil_there (n bigint PRIMARY KEY) ON COMMIT DROP".to_owned(),
            format!(
                "INSERT INTO {THERE} SELECT s.n FROM {} AS t JOIN {STAGING} AS s ON {} FOR UPDATE OF t",
                quoted(&self.table),
                self.by_key()
            ),
        ]
    }

    /// Finds the rows that somebody else touched.
    pub(in super::super) fn compare(&self, last_write: Option<usize>) -> String {
        let plain: Vec<usize> = self.plain().map(|(index, _)| index).collect();
        let differ = |place: usize, a: &str, b: &str| match self.columns[plain[place]].equality_is_identity {
            true => format!("{a} IS DISTINCT FROM {b}"),
            false => format!("ROW({a})::record OPERATOR(pg_catalog.*<>) ROW({b})::record"),
        };
        let sides = plain.iter().map(|index| Sides {
            base: self.staged_value('b', *index),
            source: self.value(*index),
            target: format!("t.{}", POSTGRES.ident(&self.columns[*index].name)),
        });
        let comparison = Comparison {
            dialect: &POSTGRES,
            from: self.beside(),
            there: self.there(),
            number: "s.n",
            sides: sides.collect(),
            last_write,
            deletes: self.deletes,
            differ: &differ,
        };
        comparison.statement()
    }

    /// Key, older row, source's row and target's row of staged rows, as JSON.
    pub(in super::super) fn clashes(&self) -> String {
        let json = |which: &dyn Fn(usize) -> String| {
            let columns: Vec<_> = self
                .columns
                .iter()
                .enumerate()
                .map(|(index, column)| format!("{} AS {}", which(index), POSTGRES.ident(&column.name)))
                .collect();
            format!("(SELECT row_to_json(r.*)::text FROM (SELECT {}) AS r)", columns.join(", "))
        };
        let source = |index| self.value(index);
        let base = |index| self.staged_value('b', index);
        let target = |index: usize| format!("t.{}", POSTGRES.ident(&self.columns[index].name));
        format!(
            "SELECT s.n, s.key, CASE WHEN s.b = 1 THEN {} END, CASE WHEN s.op = 0 THEN {} END, \
             CASE WHEN {} THEN {} END {} WHERE s.n = ANY ($1) ORDER BY s.n",
            json(&base),
            json(&source),
            self.there(),
            json(&target),
            self.beside()
        )
    }

    /// Forgets staged rows: they are done, or are not to be.
    pub(in super::super) fn forget(&self) -> String {
        format!("DELETE FROM {STAGING} WHERE n = ANY ($1)")
    }

    /// Writes staged rows, but for columns that are marked.
    pub(in super::super) fn mix(&self) -> String {
        let sets = self.plain().enumerate().map(|(place, (index, column))| {
            let name = POSTGRES.ident(&column.name);
            let value = self.value(index);
            format!(
                "{name} = CASE WHEN substr(m.kept, {}, 1) = '1' THEN t.{name} ELSE {value} END",
                place + 1
            )
        });
        format!(
            "UPDATE {} AS t SET {} FROM unnest($1::bigint[], $2::text[]) AS m(n, kept) \
             JOIN {STAGING} AS s ON s.n = m.n WHERE {}",
            quoted(&self.table),
            sets.collect::<Vec<_>>().join(", "),
            self.by_key()
        )
    }

    /// How many rows are staged that the table did not have; of them, how many it has now.
    pub(in super::super) fn count_new(&self, there_now: bool) -> String {
        let joined = match there_now {
            true => format!(" JOIN {} AS t ON {}", quoted(&self.table), self.by_key()),
            false => String::new(),
        };
        format!("SELECT count(*) FROM {STAGING} AS s{joined} WHERE s.op = 0 AND NOT {LOCKED}")
    }

    /// Inserts these, unless somebody did by now.
    pub(in super::super) fn insert_new(&self) -> String {
        format!(
            "{} FROM {STAGING} AS s WHERE s.op = 0 AND NOT {LOCKED} ON CONFLICT ({}) DO NOTHING",
            self.insert_select(),
            POSTGRES.list(&self.key)
        )
    }

    /// Columns that are no key, with their places.
    pub(in super::super) fn plain(&self) -> impl Iterator<Item = (usize, &super::Column)> {
        self.columns.iter().enumerate().filter(|(_, column)| !column.key)
    }

    fn beside(&self) -> String {
        format!(
            "FROM {STAGING} AS s LEFT JOIN {THERE} AS h ON h.n = s.n \
             LEFT JOIN {} AS t ON h.n IS NOT NULL AND {}",
            quoted(&self.table),
            self.by_key()
        )
    }

    /// A row that is marked as deleted is none.
    fn there(&self) -> String {
        match self.deletes {
            Deletes::Soft => format!("h.n IS NOT NULL AND t.{} IS NULL", POSTGRES.ident(DELETED_AT)),
            Deletes::Hard | Deletes::Ignore => "h.n IS NOT NULL".to_owned(),
        }
    }
}
