//! The statements of a load, as text.
//!
//! ```text
//! frazil_staging (c0, c1, …, op) ──▶ op 1: DELETE   op 0: UPDATE what is there, INSERT what is not
//! ```
//!
//! Where rows are taken apart, each has a number and a letter too; where others' changes are looked for, it
//! has what it was before (`b0, b1, …`), and `b` says whether it was there.
//!
//! Staging columns are named by position, so no name of a user's column can clash with ours. A temporary
//! table can be named once in a statement, so each statement joins it once.
//!
//! There is no `ON DUPLICATE KEY UPDATE`: where another unique index of the table has the value already, it
//! would change that row instead, and say nothing. An `INSERT` is refused.
//!
//! An `UPDATE` names all columns: a row that has these values already, to the last bit, the server leaves
//! as it is.

use std::ops::Range;

use super::kind::Kind;
use crate::connectors::sql::{DELETED_AT, MYSQL};
use crate::table::TableId;
use crate::target::Deletes;

mod beside;
#[cfg(test)]
mod tests;
mod versions;

/// The staging table's name, in the table's own database. It is the session's own.
const STAGING: &str = "frazil_staging";

/// What a staged row is: as [`Op`](crate::delta::Op), or put aside, so that only its key means anything.
const UPSERT: u8 = 0;
const DELETE: u8 = 1;
pub(super) const ASIDE: u8 = 2;

/// What is compared bit by bit on every server, blanks at the end included: with its length beside it.
const BITS: &str = "utf8mb4_bin";

/// One column of a load.
#[derive(Debug, Clone)]
pub(super) struct Column {
    pub(super) name: String,
    /// Its type in the target.
    pub(super) type_name: String,
    pub(super) collation: Option<String>,
    pub(super) staged: String,
    pub(super) key: bool,
}

/// The table to load and all that its statements depend on.
#[derive(Debug, Clone)]
pub(super) struct Statements {
    pub(super) table: TableId,
    pub(super) columns: Vec<Column>,
    pub(super) deletes: Deletes,
    /// Whether each staged row has a letter and a number, so that it can be left out alone.
    pub(super) letters: bool,
    /// Whether each has what it was before. Its letter is then its key.
    pub(super) base: bool,
    /// Only what is staged with these numbers counts.
    pub(super) among: Option<Range<i64>>,
}

impl Column {
    /// Holds where two values of the column are the same to the last bit; one of the table's own may be on
    /// either side.
    fn same(&self, a: &str, b: &str) -> String {
        match Kind::parse(&self.type_name) {
            // Blanks at the end count by the length.
            Some(kind) if kind.is_text() => {
                let [x, y] = [a, b].map(|side| format!("CONVERT({side} USING utf8mb4) COLLATE {BITS}"));
                format!("({x} <=> {y} AND CHAR_LENGTH({a}) <=> CHAR_LENGTH({b}))")
            }
            _ => format!("{a} <=> {b}"),
        }
    }
}

impl Statements {
    fn staging(&self) -> String {
        MYSQL.table(&TableId { schema: self.table.schema.clone(), name: STAGING.to_owned() })
    }

    /// Removes what an earlier load of the session left, and makes the staging table. A key is compared as
    /// the table compares it, so a staged row finds the one that it is for; two that are one to the table
    /// are refused.
    pub(super) fn create_staging(&self) -> [String; 2] {
        let mut columns: String = self.staged('c').collect();
        if self.base {
            columns.extend(self.staged('b'));
            columns.push_str("b int NOT NULL, ");
        }
        let mut key: Vec<_> = self.key().map(|(index, _)| format!("c{index}")).collect();
        let mut keys = String::new();
        if self.letters {
            columns.push_str(&format!("letter longtext COLLATE {BITS} NOT NULL, number bigint NOT NULL, "));
            if !key.is_empty() {
                keys = format!(", UNIQUE KEY frazil_key ({})", key.join(", "));
            }
            key = vec!["number".to_owned()];
        }
        if !key.is_empty() {
            keys = format!(", PRIMARY KEY ({}){keys}", key.join(", "));
        }
        let staging = self.staging();
        [
            format!("DROP TEMPORARY TABLE IF EXISTS {staging}"),
            format!(
                "CREATE TEMPORARY TABLE {staging} ({columns}op tinyint NOT NULL{keys}) ENGINE=InnoDB CHARACTER SET utf8mb4"
            ),
        ]
    }

    /// The staged form of all columns, of one side of a change.
    fn staged(&self, side: char) -> impl Iterator<Item = String> {
        self.columns.iter().enumerate().map(move |(index, column)| {
            let kind = Kind::parse(&column.type_name);
            // A key that does not fit is staged as NULL, of which a unique index takes many.
            let null = if column.key && !self.letters { "NOT NULL" } else { "NULL" };
            match (&column.collation, column.staged.as_str()) {
                (Some(collation), _) if column.key && kind.is_some_and(Kind::is_text) => {
                    format!("{side}{index} {} COLLATE {collation} {null}, ", column.type_name)
                }
                // As the table has it, so that what is compared is what the table would hold.
                (collation, _) if self.base && kind == Some(Kind::Checked) && column.type_name != "json" => {
                    format!("{side}{index} {}{} {null}, ", column.type_name, in_utf8(collation.as_deref()))
                }
                (_, staged @ ("longtext" | "char(36)")) => {
                    format!("{side}{index} {staged} COLLATE {BITS} {null}, ")
                }
                (_, staged) => format!("{side}{index} {staged} {null}, "),
            }
        })
    }

    /// What takes rows from the client. Its bytes are taken as they are: texts are UTF-8 on both sides.
    pub(super) fn load_staging(&self) -> String {
        format!(
            r"LOAD DATA LOCAL INFILE 'frazil' INTO TABLE {} CHARACTER SET binary FIELDS TERMINATED BY '\t' ESCAPED BY '\\' LINES TERMINATED BY '\n'",
            self.staging()
        )
    }

    /// The head of an INSERT that does the same where the server takes no files from clients.
    pub(super) fn insert_staging(&self) -> String {
        format!("INSERT INTO {} VALUES ", self.staging())
    }

    /// Everything staged, into a table where no key can conflict.
    pub(super) fn insert(&self) -> String {
        format!(
            "INSERT INTO {} ({}) SELECT {} FROM {} AS s WHERE {}{}",
            MYSQL.table(&self.table),
            self.names(),
            self.values(),
            self.staging(),
            self.is(UPSERT),
            self.in_order()
        )
    }

    /// Rows staged as deletes; `None` when they stay.
    pub(super) fn delete(&self) -> Option<String> {
        let (joined, is_delete) = (self.joined(), self.is(DELETE));
        match self.deletes {
            Deletes::Ignore => None,
            Deletes::Hard => Some(format!("DELETE t FROM {joined} WHERE {is_delete}")),
            Deletes::Soft => {
                let name = MYSQL.ident(DELETED_AT);
                Some(format!(
                    "UPDATE {joined} SET t.{name} = UTC_TIMESTAMP(6) WHERE {is_delete} AND t.{name} IS NULL"
                ))
            }
        }
    }

    /// Rows staged as upserts, where their keys are there; `None` when there is nothing beside the key.
    pub(super) fn update(&self) -> Option<String> {
        let mut sets: Vec<_> = self
            .columns
            .iter()
            .enumerate()
            .filter(|(_, column)| !column.key)
            .map(|(index, column)| format!("t.{} = s.c{index}", MYSQL.ident(&column.name)))
            .collect();
        if self.deletes == Deletes::Soft {
            sets.push(format!("t.{} = NULL", MYSQL.ident(DELETED_AT)));
        }
        let joined = self.joined();
        (!sets.is_empty())
            .then(|| format!("UPDATE {joined} SET {} WHERE {}", sets.join(", "), self.is(UPSERT)))
    }

    /// Rows staged as upserts, where their keys are not there.
    pub(super) fn insert_new(&self) -> String {
        let table = MYSQL.table(&self.table);
        format!(
            "INSERT INTO {table} ({}) SELECT {} FROM {} AS s LEFT JOIN {table} AS t ON {} WHERE {} AND {} IS NULL{}",
            self.names(),
            self.values(),
            self.staging(),
            self.by_key(),
            self.is(UPSERT),
            self.first_key("t"),
            self.in_order()
        )
    }

    /// Rows that the staging table does not have: what a whole new content leaves out. All rows, when
    /// there is no key to tell them apart.
    pub(super) fn delete_others(&self) -> String {
        let table = MYSQL.table(&self.table);
        if self.key().next().is_none() {
            return format!("DELETE FROM {table}");
        }
        format!(
            "DELETE t FROM {table} AS t LEFT JOIN {} AS s ON {} WHERE s.op IS NULL",
            self.staging(),
            self.by_key()
        )
    }

    /// Whether a staged row is an upsert, or a delete, and among those that count.
    fn is(&self, op: u8) -> String {
        match &self.among {
            None => format!("s.op = {op}"),
            Some(among) => {
                format!("s.op = {op} AND s.number >= {} AND s.number < {}", among.start, among.end)
            }
        }
    }

    /// What is to be known of staged rows.
    pub(super) fn staged_letters(&self, numbers: &[i64]) -> String {
        format!(
            "SELECT s.number, s.letter FROM {} AS s WHERE s.number IN ({})",
            self.staging(),
            listed(numbers)
        )
    }

    fn key(&self) -> impl Iterator<Item = (usize, &Column)> {
        self.columns.iter().enumerate().filter(|(_, column)| column.key)
    }

    fn first_key(&self, of: &str) -> String {
        let (_, column) = self.key().next().expect("only asked for with a key");
        format!("{of}.{}", MYSQL.ident(&column.name))
    }

    fn joined(&self) -> String {
        format!("{} AS t INNER JOIN {} AS s ON {}", MYSQL.table(&self.table), self.staging(), self.by_key())
    }

    fn by_key(&self) -> String {
        let conditions: Vec<_> = self
            .key()
            .map(|(index, column)| format!("t.{} = s.c{index}", MYSQL.ident(&column.name)))
            .collect();
        conditions.join(" AND ")
    }

    /// Pages fill up one after the other.
    fn in_order(&self) -> String {
        let key: Vec<_> = self.key().map(|(index, _)| format!("s.c{index}")).collect();
        if key.is_empty() { String::new() } else { format!(" ORDER BY {}", key.join(", ")) }
    }

    fn names(&self) -> String {
        MYSQL.list(self.columns.iter().map(|column| &column.name))
    }

    fn values(&self) -> String {
        (0..self.columns.len()).map(|index| format!("s.c{index}")).collect::<Vec<_>>().join(", ")
    }

    /// Whether a row of the table and its staged one differ anywhere; `None` when all columns are key.
    fn differs(&self) -> Option<String> {
        let same: Vec<_> = self
            .columns
            .iter()
            .enumerate()
            .filter(|(_, column)| !column.key)
            .map(|(index, column)| {
                column.same(&format!("t.{}", MYSQL.ident(&column.name)), &format!("s.c{index}"))
            })
            .collect();
        (!same.is_empty()).then(|| format!("NOT ({})", same.join(" AND ")))
    }
}

/// The collation that tells members of an `enum` apart, whose texts are sent as UTF-8; other types of their
/// kind have none.
fn in_utf8(collation: Option<&str>) -> String {
    match collation {
        Some(utf8) if utf8.starts_with("utf8") => format!(" COLLATE {utf8}"),
        Some(_) => format!(" COLLATE {BITS}"),
        None => String::new(),
    }
}

fn listed(numbers: &[i64]) -> String {
    numbers.iter().map(i64::to_string).collect::<Vec<_>>().join(", ")
}
