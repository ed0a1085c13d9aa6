//! The statements that install triggers, and those that remove them.
//!
//! `INSERT OR REPLACE` removes the rows that are in its way, and no trigger for deletes fires for them. So
//! another one looks, before rows are written, which rows those would be, by each unique index.

use rusqlite::Connection as Database;

use super::super::describe::{Described, MAIN};
use super::PREFIX;
use crate::connectors::sql::{SQLITE, TriggerNames};
use crate::error::{Error, ErrorKind, Result};

/// Which readers there are, and how far they are.
pub(super) const READERS: &str = "_frazil_readers";
/// Which tables of changes there are.
pub(super) const TABLES: &str = "_frazil_tables";

/// What is installed for one table and key.
pub(super) struct Parts<'a> {
    table: &'a str,
    names: TriggerNames,
    key: &'a [String],
}

impl<'a> Parts<'a> {
    pub(super) fn of(described: &'a Described, key: &'a [String]) -> Self {
        let id = &described.table.id;
        Self { table: &id.name, names: TriggerNames::of(id, key), key }
    }

    /// The table of changes, without quotes: it needs none.
    pub(super) fn changes(&self) -> String {
        self.names.changes(PREFIX)
    }

    /// Each trigger with the statement that makes it.
    pub(super) fn triggers(&self, replaced: &[Vec<Unique>]) -> Vec<(String, String)> {
        let (table, changes) = (SQLITE.ident(self.table), self.changes());
        let places = self.places();
        let values = |row: &str| {
            let values = self.key.iter().map(|name| format!("{row}.{}", SQLITE.ident(name)));
            values.collect::<Vec<_>>().join(", ")
        };
        let insert = |row: &str| format!("INSERT INTO {changes} ({places}) VALUES ({});", values(row));
        let differs: Vec<_> = self
            .key
            .iter()
            .map(|name| format!("OLD.{0} COLLATE BINARY IS NOT NEW.{0} COLLATE BINARY", SQLITE.ident(name)))
            .collect();
        let mut all = vec![
            ("insert", format!("AFTER INSERT ON {table} BEGIN {} END", insert("NEW"))),
            ("update", format!("AFTER UPDATE ON {table} BEGIN {} END", insert("NEW"))),
            (
                "key",
                format!("AFTER UPDATE ON {table} WHEN {} BEGIN {} END", differs.join(" OR "), insert("OLD")),
            ),
            ("delete", format!("AFTER DELETE ON {table} BEGIN {} END", insert("OLD"))),
        ];
        if !replaced.is_empty() {
            let in_the_way: Vec<String> = replaced
                .iter()
                .map(|unique| {
                    let same: Vec<_> = unique.iter().map(Unique::same).collect();
                    format!(
                        "INSERT INTO {changes} ({places}) SELECT {} FROM {table} t WHERE {};",
                        values("t"),
                        same.join(" AND ")
                    )
                })
                .collect();
            let body = in_the_way.join(" ");
            all.push(("replacing", format!("BEFORE INSERT ON {table} BEGIN {body} END")));
            all.push(("displacing", format!("BEFORE UPDATE ON {table} BEGIN {body} END")));
        }
        let made = |(what, rest): (&str, String)| {
            let name = self.names.part(what);
            (name.clone(), format!("CREATE TRIGGER {name} {rest}"))
        };
        all.into_iter().map(made).collect()
    }

    fn places(&self) -> String {
        (1..=self.key.len()).map(|i| format!("k{i}")).collect::<Vec<_>>().join(", ")
    }

    /// Installs everything, in one transaction.
    pub(super) fn installation(&self, replaced: &[Vec<Unique>]) -> Vec<String> {
        let changes = self.changes();
        let mut all = vec![
            "BEGIN IMMEDIATE".to_owned(),
            format!(
                "CREATE TABLE IF NOT EXISTS {TABLES} \
                 (changes TEXT PRIMARY KEY, stamp TEXT NOT NULL, pruned INTEGER NOT NULL DEFAULT 0)"
            ),
            format!(
                "CREATE TABLE IF NOT EXISTS {READERS} (changes TEXT, reader TEXT, seq INTEGER NOT NULL, \
                 seen TEXT NOT NULL, PRIMARY KEY (changes, reader))"
            ),
            // Numbers that are never given twice, although all rows are removed.
            format!("CREATE TABLE {changes} (seq INTEGER PRIMARY KEY AUTOINCREMENT, {})", self.places()),
            format!("INSERT INTO {TABLES} (changes, stamp) VALUES ('{changes}', hex(randomblob(8)))"),
        ];
        all.extend(self.triggers(replaced).into_iter().map(|(_, statement)| statement));
        all.push("COMMIT".to_owned());
        all
    }

    /// Removes everything that may be there; with `last`, what all tables share, too.
    pub(super) fn removal(&self, shared: bool, last: bool) -> Vec<String> {
        let changes = self.changes();
        let mut all = vec!["BEGIN IMMEDIATE".to_owned()];
        for what in ["insert", "update", "key", "delete", "replacing", "displacing"] {
            all.push(format!("DROP TRIGGER IF EXISTS {}", self.names.part(what)));
        }
        all.push(format!("DROP TABLE IF EXISTS {changes}"));
        match (shared, last) {
            (true, true) => all.extend([format!("DROP TABLE {READERS}"), format!("DROP TABLE {TABLES}")]),
            (true, false) => all.extend([
                format!("DELETE FROM {READERS} WHERE changes = '{changes}'"),
                format!("DELETE FROM {TABLES} WHERE changes = '{changes}'"),
            ]),
            (false, _) => {}
        }
        all.push("COMMIT".to_owned());
        all
    }

    /// Each key once that was written down after a number, with its row as it is now, and 1 where there is
    /// none.
    pub(super) fn changed(&self, columns: &[String], after: i64) -> String {
        let numbered = || self.key.iter().enumerate().map(|(i, name)| (format!("k{}", i + 1), name));
        let list: Vec<_> = columns
            .iter()
            .map(|column| {
                let value = format!("t.{}", SQLITE.ident(column));
                match numbered().find(|(_, name)| *name == column) {
                    Some((place, _)) => format!("coalesce({value}, c.{place})"),
                    None => value,
                }
            })
            .collect();
        // The index serves the first, and the second tells `a` from `A`.
        let on: Vec<_> = numbered()
            .map(|(place, name)| {
                let column = SQLITE.ident(name);
                format!("t.{column} = c.{place} AND t.{column} COLLATE BINARY = c.{place}")
            })
            .collect();
        let first = self.key.first().map(|name| SQLITE.ident(name)).unwrap_or_default();
        format!(
            "SELECT {}, t.{first} IS NULL FROM (SELECT DISTINCT {} FROM {MAIN}.{} WHERE seq > {after}) c \
             LEFT JOIN {MAIN}.{} t ON {}",
            list.join(", "),
            self.places(),
            self.changes(),
            SQLITE.ident(self.table),
            on.join(" AND ")
        )
    }
}

/// A column of a unique index.
pub(super) struct Unique {
    column: String,
    collation: String,
}

impl Unique {
    fn same(&self) -> String {
        let column = SQLITE.ident(&self.column);
        format!("t.{column} COLLATE {} = NEW.{column}", SQLITE.ident(&self.collation))
    }
}

/// An index: its name, and its columns with their collations; an expression has no name.
type Index = (String, Vec<(Option<String>, String)>);

/// The unique indexes by which `REPLACE` removes other rows than those of the same key.
pub(super) fn replaced(
    database: &Database,
    described: &Described,
    key: &[String],
) -> Result<Vec<Vec<Unique>>> {
    let read = || -> rusqlite::Result<Vec<Index>> {
        let mut list =
            database.prepare("SELECT name FROM pragma_index_list(?1) WHERE \"unique\" ORDER BY name")?;
        let names: Vec<String> =
            list.query_map([&described.table.id.name], |row| row.get(0))?.collect::<Result<_, _>>()?;
        let mut columns =
            database.prepare("SELECT name, coll FROM pragma_index_xinfo(?1) WHERE \"key\" ORDER BY seqno")?;
        let mut all = Vec::new();
        for name in names {
            let rows = columns.query_map([&name], |row| Ok((row.get(0)?, row.get(1)?)))?;
            all.push((name.clone(), rows.collect::<Result<_, _>>()?));
        }
        Ok(all)
    };
    let mut all = Vec::new();
    let binary = || "BINARY".to_owned();
    // The row id has no index of its own.
    if let Some((column, _)) = &described.row_id_column
        && key != [column.clone()]
    {
        all.push(vec![Unique { column: column.clone(), collation: binary() }]);
    }
    for (name, columns) in read().map_err(|error| Error::new(ErrorKind::Transient, error.to_string()))? {
        let columns: Option<Vec<Unique>> = columns
            .into_iter()
            .map(|(column, collation)| Some(Unique { column: column?, collation }))
            .collect();
        let Some(columns) = columns else {
            let message = format!("the unique index `{name}` is over an expression");
            return Err(Error::new(ErrorKind::Config, message)
                .with("table", &described.table.id)
                .hint("which rows `INSERT OR REPLACE` removes by it cannot be seen: use `change: full`"));
        };
        let of_the_key = columns.len() == key.len()
            && columns.iter().all(|unique| key.contains(&unique.column) && unique.collation == "BINARY");
        if !of_the_key {
            all.push(columns);
        }
    }
    Ok(all)
}
