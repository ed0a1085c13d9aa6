//! The statements of a load, as text.
//!
//! ```text
//! #frazil_staging (c0, c1, …, op)  ──one MERGE──▶ op 1: DELETE, op 0: UPDATE what differs, INSERT
//!                                  ──or────────▶ DELETE, UPDATE, INSERT, where MERGE is not to be trusted
//! ```
//!
//! Staging columns are named by position, so no name of a user's column can clash with ours.
//! `HOLDLOCK` keeps the place of a key that is not there yet: without it two loads insert it both.
//!
//! A row is left alone when nothing in it differs. Equality is asked of the bits: under a collation
//! `a` equals `A` and `a` followed by a blank, and neither change would ever arrive.

use std::ops::Range;

use super::kind::Kind;
use super::shape::KEY_COLLATION;
use crate::connectors::sql::{DELETED_AT, MSSQL};
use crate::error::{Error, ErrorKind};
use crate::table::TableId;
use crate::target::Deletes;

mod beside;
#[cfg(test)]
mod tests;
mod versions;

/// The staging table. Private to the session, gone with it.
pub(super) const STAGING: &str = "[#frazil_staging]";

/// What a staged row is: as [`Op`](crate::delta::Op), or put aside, so that only its key means anything.
const UPSERT: u8 = 0;
const DELETE: u8 = 1;
pub(super) const ASIDE: u8 = 2;

/// All that is to be known of a staged row.
const LETTER: &str = "[letter]";

/// What a change is brought in with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// One statement that deletes, updates and inserts.
    Merge,
    /// Three statements, in one transaction as well.
    UpdateInsert,
}

/// One column of a load.
#[derive(Debug, Clone)]
pub(super) struct Column {
    pub(super) name: String,
    /// Its type in the target.
    pub(super) type_name: String,
    pub(super) collation: Option<String>,
    pub(super) staged: String,
    pub(super) cast: Option<String>,
    pub(super) key: bool,
    pub(super) identity: bool,
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

impl Statements {
    /// The staging table, with the operation as its last column. Texts have the collation of the column
    /// that they are for: those of the temporary database may be others, which do not compare.
    pub(super) fn create_staging(&self) -> String {
        let columns = self.staged().into_iter().map(|(name, staged, collation)| {
            let collation = match collation {
                Some(name) if is_text(&staged) => format!(" COLLATE {name}"),
                None if is_text(&staged) && name != LETTER => " COLLATE DATABASE_DEFAULT".to_owned(),
                _ => String::new(),
            };
            format!("{name} {staged}{collation} NULL")
        });
        let columns = columns.collect::<Vec<_>>().join(", ");
        format!("DROP TABLE IF EXISTS {STAGING}; CREATE TABLE {STAGING} ({columns})")
    }

    /// The names of its columns, for the bulk load.
    pub(super) fn staging_columns(&self) -> Vec<String> {
        self.staged().into_iter().map(|(name, ..)| name).collect()
    }

    /// Its columns, with types and collations.
    fn staged(&self) -> Vec<(String, String, Option<&str>)> {
        let side = |letter: char| {
            self.columns.iter().enumerate().map(move |(index, column)| {
                (format!("[{letter}{index}]"), column.staged.clone(), column.collation.as_deref())
            })
        };
        let own = |name: &str, staged: &str| (name.to_owned(), staged.to_owned(), None);
        let mut columns: Vec<_> = side('c').collect();
        if self.base {
            columns.extend(side('b').chain([own("[b]", "int")]));
        }
        if self.letters {
            columns.extend([own(LETTER, "nvarchar(max)"), own("[number]", "bigint")]);
        }
        columns.push(own("[op]", "tinyint"));
        columns
    }

    /// One staged row by parameters: for values that a bulk load does not take.
    pub(super) fn insert_staged(&self) -> String {
        let staged = self.staged();
        // A parameter's own precision may be more than any column has.
        let values = staged.iter().zip(1..).map(|((_, staged, _), at)| format!("CAST(@P{at} AS {staged})"));
        format!(
            "INSERT INTO {STAGING} ({}) VALUES ({})",
            self.staging_columns().join(", "),
            values.collect::<Vec<_>>().join(", ")
        )
    }

    /// Sorts the staged rows by key, and finds keys that come twice; by number, where they are taken apart.
    pub(super) fn index_staging(&self) -> Option<String> {
        if self.letters {
            return Some(format!("CREATE UNIQUE CLUSTERED INDEX [frazil_staged] ON {STAGING} ([number])"));
        }
        let key: Vec<_> = self.key().map(|(index, _)| format!("[c{index}]")).collect();
        (!key.is_empty()).then(|| {
            format!("CREATE UNIQUE CLUSTERED INDEX [frazil_staged] ON {STAGING} ({})", key.join(", "))
        })
    }

    /// The first column in which a staged text has a character that its column's code page has not.
    pub(super) fn find_unwritable(&self) -> Option<String> {
        let place = self.unwritable()?;
        Some(format!(
            "SELECT CAST(MAX({place}) AS int) AS place FROM {STAGING} AS s WHERE {}",
            self.is(UPSERT)
        ))
    }

    /// The numbers of the rows that have such a text, and its column's place.
    pub(super) fn find_all_unwritable(&self) -> Option<String> {
        let place = self.unwritable()?;
        Some(format!(
            "SELECT s.[number], CAST({place} AS int) AS place FROM {STAGING} AS s WHERE {} AND {place} >= 0",
            self.is(UPSERT)
        ))
    }

    /// What is wrong with the text of the column at a place; `None` for no place.
    pub(super) fn unwritable_error(&self, place: i32) -> Option<Error> {
        let column = self.columns.get(usize::try_from(place).ok()?)?;
        Some(
            Error::new(
                ErrorKind::Data,
                "a text has a character that the code page of the target's column has not",
            )
            .with("column", &column.name)
            .hint("make the column `nvarchar`, or give it a UTF-8 collation"),
        )
    }

    /// The place of the first column whose code page has not all characters of its text; -1 where all do.
    fn unwritable(&self) -> Option<String> {
        let whens: Vec<_> = self
            .columns
            .iter()
            .enumerate()
            .filter(|(_, column)| Kind::parse(&column.type_name).is_some_and(Kind::is_code_page))
            .map(|(index, column)| {
                let collation = column.collation.as_deref().unwrap_or("DATABASE_DEFAULT");
                let there = format!("CAST(CAST(s.[c{index}] COLLATE {collation} AS varchar(max)) AS nvarchar(max))");
                format!("WHEN {there} COLLATE {KEY_COLLATION} <> s.[c{index}] COLLATE {KEY_COLLATION} THEN {index}")
            })
            .collect();
        (!whens.is_empty()).then(|| format!("CASE {} ELSE -1 END", whens.join(" ")))
    }

    /// Everything staged, into a table where no key can conflict. Of an empty one the whole is locked:
    /// that costs nobody anything, and much less is logged.
    pub(super) fn insert(&self, empty: bool) -> String {
        let lock = if empty { " WITH (TABLOCK)" } else { "" };
        format!(
            "INSERT INTO {}{lock} ({}) SELECT {} FROM {STAGING} AS s WHERE {}{}",
            MSSQL.table(&self.table),
            self.names(),
            self.values(),
            self.is(UPSERT),
            self.in_order()
        )
    }

    /// How many of the rows staged as deletes are there.
    pub(super) fn count_deletes(&self) -> String {
        format!("SELECT CAST(COUNT_BIG(*) AS bigint) AS gone FROM {} WHERE s.[op] = 1", self.joined())
    }

    /// Rows staged as deletes, as a statement of its own; `None` when they stay, or the merge does it.
    pub(super) fn delete(&self, way: Way) -> Option<String> {
        match self.deletes {
            Deletes::Ignore => None,
            Deletes::Hard if way == Way::Merge => None,
            Deletes::Hard => Some(format!("DELETE t FROM {} WHERE {}", self.joined(), self.is(DELETE))),
            Deletes::Soft => {
                let name = MSSQL.ident(DELETED_AT);
                Some(format!(
                    "UPDATE t SET {name} = SYSUTCDATETIME() FROM {} WHERE {} AND t.{name} IS NULL",
                    self.joined(),
                    self.is(DELETE)
                ))
            }
        }
    }

    /// Rows staged as upserts, inserted or updated by key; in order.
    pub(super) fn upsert(&self, way: Way) -> Vec<String> {
        match way {
            Way::Merge => vec![self.merge()],
            Way::UpdateInsert => self.update().into_iter().chain([self.insert_new()]).collect(),
        }
    }

    fn merge(&self) -> String {
        let mut statement = format!(
            "MERGE INTO {} WITH (HOLDLOCK) AS t USING {STAGING} AS s ON {}",
            MSSQL.table(&self.table),
            self.by_key()
        );
        if self.deletes == Deletes::Hard {
            statement.push_str(" WHEN MATCHED AND s.[op] = 1 THEN DELETE");
        }
        if let Some((sets, differs)) = self.changes() {
            statement.push_str(&format!(" WHEN MATCHED AND s.[op] = 0 AND {differs} THEN UPDATE SET {sets}"));
        }
        statement.push_str(&format!(
            " WHEN NOT MATCHED BY TARGET AND s.[op] = 0 THEN INSERT ({}) VALUES ({});",
            self.names(),
            self.values()
        ));
        statement
    }

    /// Rows staged as upserts whose key is there.
    pub(super) fn update(&self) -> Option<String> {
        let (sets, differs) = self.changes()?;
        Some(format!("UPDATE t SET {sets} FROM {} WHERE {} AND {differs}", self.joined(), self.is(UPSERT)))
    }

    /// Rows staged as upserts whose key is not there.
    pub(super) fn insert_new(&self) -> String {
        let table = MSSQL.table(&self.table);
        format!(
            "INSERT INTO {table} ({}) SELECT {} FROM {STAGING} AS s WHERE {} AND NOT EXISTS \
             (SELECT 1 FROM {table} AS t WITH (UPDLOCK, HOLDLOCK) WHERE {}){}",
            self.names(),
            self.values(),
            self.is(UPSERT),
            self.by_key(),
            self.in_order()
        )
    }

    /// Rows that the staging table does not have: what a whole new content leaves out. All rows, when
    /// there is no key to tell them apart.
    pub(super) fn delete_others(&self) -> String {
        let table = MSSQL.table(&self.table);
        if self.key().next().is_none() {
            return format!("DELETE FROM {table}");
        }
        format!(
            "DELETE t FROM {table} AS t WITH (UPDLOCK, HOLDLOCK) WHERE NOT EXISTS (SELECT 1 FROM {STAGING} AS s WHERE {})",
            self.by_key()
        )
    }

    /// What insists on values for the identity column, and what ends it; `None` without one.
    pub(super) fn identity_insert(&self) -> Option<[String; 2]> {
        self.columns.iter().any(|column| column.identity).then(|| {
            ["ON", "OFF"].map(|state| format!("SET IDENTITY_INSERT {} {state}", MSSQL.table(&self.table)))
        })
    }

    /// Whether a staged row is an upsert, or a delete, and among those that count.
    fn is(&self, op: u8) -> String {
        match &self.among {
            None => format!("s.[op] = {op}"),
            Some(among) => {
                format!("s.[op] = {op} AND s.[number] >= {} AND s.[number] < {}", among.start, among.end)
            }
        }
    }

    /// Takes staged rows out, and leaves them as a mark that their keys are there.
    pub(super) fn put_aside(&self, numbers: &[i64]) -> String {
        format!("UPDATE {STAGING} SET [op] = {ASIDE} WHERE [number] IN ({})", listed(numbers))
    }

    /// What is to be known of staged rows.
    pub(super) fn staged_letters(&self, numbers: &[i64]) -> String {
        format!("SELECT s.[number], s.[letter] FROM {STAGING} AS s WHERE s.[number] IN ({})", listed(numbers))
    }

    fn key(&self) -> impl Iterator<Item = (usize, &Column)> {
        self.columns.iter().enumerate().filter(|(_, column)| column.key)
    }

    fn joined(&self) -> String {
        format!(
            "{} AS t WITH (UPDLOCK, HOLDLOCK) INNER JOIN {STAGING} AS s ON {}",
            MSSQL.table(&self.table),
            self.by_key()
        )
    }

    fn by_key(&self) -> String {
        let conditions: Vec<_> = self
            .key()
            .map(|(index, column)| format!("t.{} = {}", MSSQL.ident(&column.name), self.value(index)))
            .collect();
        conditions.join(" AND ")
    }

    /// New pages fill up one after the other.
    fn in_order(&self) -> String {
        let key: Vec<_> = self.key().map(|(index, _)| format!("s.[c{index}]")).collect();
        if key.is_empty() { String::new() } else { format!(" ORDER BY {}", key.join(", ")) }
    }

    fn names(&self) -> String {
        self.columns.iter().map(|column| MSSQL.ident(&column.name)).collect::<Vec<_>>().join(", ")
    }

    fn values(&self) -> String {
        (0..self.columns.len()).map(|index| self.value(index)).collect::<Vec<_>>().join(", ")
    }

    /// What an update sets, and when there is something to update; `None` when all columns are key.
    fn changes(&self) -> Option<(String, String)> {
        let (mut sets, mut new, mut old) = (Vec::new(), Vec::new(), Vec::new());
        for (index, column) in
            self.columns.iter().enumerate().filter(|(_, column)| !column.key && !column.identity)
        {
            let (name, value) = (MSSQL.ident(&column.name), self.value(index));
            sets.push(format!("{name} = {value}"));
            new.extend(images(&column.type_name, &value));
            old.extend(images(&column.type_name, &format!("t.{name}")));
        }
        let mut differs = match new.is_empty() {
            true => String::new(),
            false => format!("EXISTS (SELECT {} EXCEPT SELECT {})", new.join(", "), old.join(", ")),
        };
        if self.deletes == Deletes::Soft {
            let name = MSSQL.ident(DELETED_AT);
            sets.push(format!("{name} = NULL"));
            let gone = format!("t.{name} IS NOT NULL");
            differs = if differs.is_empty() { gone } else { format!("({gone} OR {differs})") };
        }
        (!sets.is_empty()).then(|| (sets.join(", "), differs))
    }

    /// A staged value as one of the target's type.
    fn value(&self, index: usize) -> String {
        self.staged_value('c', index)
    }

    fn staged_value(&self, letter: char, index: usize) -> String {
        match &self.columns[index].cast {
            None => format!("s.[{letter}{index}]"),
            Some(name) => format!("CAST(s.[{letter}{index}] AS {name})"),
        }
    }
}

fn is_text(type_name: &str) -> bool {
    Kind::parse(type_name).is_some_and(Kind::is_text)
}

/// Expressions that are equal only where the value is the same to the last bit. NULL equals NULL under
/// `EXCEPT`; blanks and zeros at the end count by the length.
fn images(type_name: &str, value: &str) -> Vec<String> {
    match Kind::parse(type_name) {
        Some(kind) if kind.is_text() => {
            vec![format!("{value} COLLATE {KEY_COLLATION}"), format!("DATALENGTH({value})")]
        }
        Some(kind) if kind.is_binary() => vec![value.to_owned(), format!("DATALENGTH({value})")],
        // XML does not compare.
        Some(Kind::Xml) => vec![format!("CAST({value} AS nvarchar(max)) COLLATE {KEY_COLLATION}")],
        _ => vec![value.to_owned()],
    }
}

fn listed(numbers: &[i64]) -> String {
    numbers.iter().map(i64::to_string).collect::<Vec<_>>().join(", ")
}
