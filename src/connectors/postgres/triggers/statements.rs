//! The statements that install triggers, and those that remove them.
//!
//! A trigger that fails makes the application fail. So each does one INSERT into a table without indexes
//! or constraints, whose columns are no narrower than any key; it runs with the rights of who installed it
//! and names everything in full, whatever the application's session is set to.

use super::super::codec::Codec;
use super::super::discover::{Column, Relation};
use crate::connectors::sql::{POSTGRES, TriggerNames};
use crate::error::Result;
use crate::source::ReadRequest;
use crate::table::TableKind;

/// Where all of it is, but for the triggers themselves.
pub(super) const SCHEMA: &str = "_frazil";
/// Which readers there are, and how far they are: see [`readers`](super::readers).
pub(super) const READERS: &str = "_frazil.readers";
/// Which tables of changes there are.
pub(super) const TABLES: &str = "_frazil.tables";

/// A trigger waits for open transactions that wrote to the table, and everybody else waits behind it.
const PATIENCE: &str = "SET LOCAL lock_timeout = '5s'";

/// What is installed for one table and key.
pub(super) struct Parts<'a> {
    relation: &'a Relation,
    names: TriggerNames,
    pub(super) key: Vec<KeyColumn<'a>>,
}

/// A column of the key.
pub(super) struct KeyColumn<'a> {
    pub(super) column: &'a Column,
    /// Whether values that the database takes for equal may differ: `citext`, and some collations. What
    /// travels as text is compared as text.
    pub(super) by_text: bool,
}

/// A trigger: what it is called, when it fires, and which function it calls.
struct Trigger {
    what: &'static str,
    when: String,
    function: &'static str,
}

impl<'a> Parts<'a> {
    pub(super) fn of(relation: &'a Relation, request: &ReadRequest) -> Result<Self> {
        let key = request.key.iter().map(|name| {
            let column = relation.named(name)?;
            let (conversion, _) = relation.travels(column, &request.values)?;
            Ok(KeyColumn { column, by_text: conversion.codec == Codec::Text })
        });
        let key = key.collect::<Result<_>>()?;
        Ok(Self { relation, names: TriggerNames::of(&relation.id, &request.key), key })
    }

    /// The bare name of the table of changes: what the other tables know it by.
    pub(super) fn name(&self) -> String {
        self.names.changes("")
    }

    /// The table of changes.
    pub(super) fn changes(&self) -> String {
        format!("{SCHEMA}.{}", POSTGRES.ident(&self.name()))
    }

    /// The names of the functions, whoever calls them.
    pub(super) fn functions(&self) -> Vec<String> {
        self.bodies().into_iter().map(|(what, _)| self.names.part(what)).collect()
    }

    /// The names of the table's own triggers.
    pub(super) fn triggers(&self) -> Vec<String> {
        self.all_triggers().iter().map(|trigger| self.names.part(trigger.what)).collect()
    }

    /// Rows of a partitioned table may be written to a partition directly: statements on the root do not see
    /// that. Triggers for each row do, and partitions get them by themselves.
    fn by_row(&self) -> bool {
        self.relation.kind == TableKind::PartitionedTable
    }

    fn all_triggers(&self) -> Vec<Trigger> {
        let truncated = || Trigger {
            what: "truncate",
            when: "AFTER TRUNCATE ON {table} FOR EACH STATEMENT".to_owned(),
            function: "truncated",
        };
        if self.by_row() {
            let when = "AFTER INSERT OR UPDATE OR DELETE ON {table} FOR EACH ROW".to_owned();
            return vec![Trigger { what: "row", when, function: "row" }, truncated()];
        }
        let changed: Vec<_> = self
            .key
            .iter()
            .map(|key| {
                let [old, new] = ["OLD", "NEW"].map(|row| key.compared(&format!("{row}.{}", key.ident())));
                format!("{old} IS DISTINCT FROM {new}")
            })
            .collect();
        let statement = |what, event: &str, rows: &str| Trigger {
            what,
            when: format!(
                "AFTER {event} ON {{table}} REFERENCING {rows} TABLE AS frazil_rows FOR EACH STATEMENT"
            ),
            function: "rows",
        };
        vec![
            statement("insert", "INSERT", "NEW"),
            statement("update", "UPDATE", "NEW"),
            statement("delete", "DELETE", "OLD"),
            Trigger {
                what: "key",
                when: format!("AFTER UPDATE ON {{table}} FOR EACH ROW WHEN ({})", changed.join(" OR ")),
                function: "key",
            },
            truncated(),
        ]
    }

    fn bodies(&self) -> Vec<(&'static str, String)> {
        let changes = self.changes();
        let of = |row: &str| {
            let columns = self.key.iter().map(|key| format!("{row}.{}", key.ident()));
            columns.collect::<Vec<_>>().join(", ")
        };
        let one =
            |row: &str| format!("INSERT INTO {changes} VALUES (pg_catalog.txid_current(), {});", of(row));
        let truncated = format!("INSERT INTO {changes} (xact) VALUES (pg_catalog.txid_current());");
        if self.by_row() {
            let body = format!(
                "IF TG_OP OPERATOR(pg_catalog.<>) 'INSERT' THEN {} END IF; \
                 IF TG_OP OPERATOR(pg_catalog.<>) 'DELETE' THEN {} END IF;",
                one("OLD"),
                one("NEW")
            );
            return vec![("row", body), ("truncated", truncated)];
        }
        let rows = format!(
            "INSERT INTO {changes} SELECT pg_catalog.txid_current(), {} FROM frazil_rows r;",
            of("r")
        );
        vec![("rows", rows), ("key", one("OLD")), ("truncated", truncated)]
    }

    fn function(&self, what: &str) -> String {
        format!("{SCHEMA}.{}", self.names.part(what))
    }

    /// Installs everything, in one transaction, for this user to read. `types` are those of the key's columns
    /// without their limits, so that a column that is made longer later does not make triggers fail.
    pub(super) fn installation(&self, user: &str, types: &[String]) -> Vec<String> {
        let (table, changes, name) = (self.relation.quoted(), self.changes(), self.name());
        let user = POSTGRES.ident(user);
        let mut columns = vec!["xact bigint NOT NULL".to_owned()];
        columns.extend(types.iter().enumerate().map(|(i, of)| format!("k{} {of}", i + 1)));
        let mut all = vec![
            "BEGIN".to_owned(),
            PATIENCE.to_owned(),
            format!("CREATE TABLE {changes} ({})", columns.join(", ")),
            format!(
                "INSERT INTO {TABLES} (changes, source) VALUES ('{name}', {})",
                literal(&self.relation.id.to_string())
            ),
        ];
        // No name ends the text of a function: it would have to hold a hash of itself.
        let quote = format!("$frazil_{}$", self.names.hash);
        for (what, body) in self.bodies() {
            let function = self.function(what);
            all.push(format!(
                "CREATE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER \
                 SET search_path = pg_catalog, pg_temp AS {quote} BEGIN {body} RETURN NULL; END {quote}"
            ));
            all.push(format!("REVOKE ALL ON FUNCTION {function}() FROM PUBLIC"));
        }
        for trigger in self.all_triggers() {
            let name = self.names.part(trigger.what);
            let when = trigger.when.replace("{table}", &table);
            all.push(format!(
                "CREATE TRIGGER {name} {when} EXECUTE FUNCTION {}()",
                self.function(trigger.function)
            ));
            // Whoever loads rows with `session_replication_role = replica` changes them all the same.
            all.push(format!("ALTER TABLE {table} ENABLE ALWAYS TRIGGER {name}"));
        }
        all.push(format!("GRANT USAGE ON SCHEMA {SCHEMA} TO {user}"));
        all.push(format!("GRANT SELECT, DELETE ON {changes} TO {user}"));
        all.push(format!("GRANT SELECT, INSERT, UPDATE, DELETE ON {READERS}, {TABLES} TO {user}"));
        all.push("COMMIT".to_owned());
        all
    }

    /// Removes everything that may be there, in one transaction.
    pub(super) fn removal(&self) -> Vec<String> {
        let (table, name) = (self.relation.quoted(), self.name());
        let mut all = vec!["BEGIN".to_owned(), PATIENCE.to_owned()];
        all.extend(
            self.triggers().iter().map(|trigger| format!("DROP TRIGGER IF EXISTS {trigger} ON {table}")),
        );
        let functions = self.functions();
        all.extend(functions.iter().map(|function| format!("DROP FUNCTION IF EXISTS {SCHEMA}.{function}()")));
        all.push(format!("DROP TABLE IF EXISTS {}", self.changes()));
        all.push(format!("DELETE FROM {READERS} WHERE changes = '{name}'"));
        all.push(format!("DELETE FROM {TABLES} WHERE changes = '{name}'"));
        all.push("COMMIT".to_owned());
        all
    }
}

impl KeyColumn<'_> {
    pub(super) fn ident(&self) -> String {
        POSTGRES.ident(&self.column.name)
    }

    /// An expression of the column's type as it is told from others.
    pub(super) fn compared(&self, expression: &str) -> String {
        if self.by_text { format!("{expression}::text COLLATE \"C\"") } else { expression.to_owned() }
    }
}

/// What all tables of changes share.
pub(super) fn shared() -> Vec<String> {
    vec![
        format!("CREATE SCHEMA IF NOT EXISTS {SCHEMA}"),
        format!(
            "CREATE TABLE IF NOT EXISTS {TABLES} \
             (changes text PRIMARY KEY, source text NOT NULL, pruned bigint NOT NULL DEFAULT 0)"
        ),
        format!(
            "CREATE TABLE IF NOT EXISTS {READERS} (changes text, reader text, xact bigint NOT NULL, \
             seen timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (changes, reader))"
        ),
    ]
}

/// Removes the same.
pub(super) fn shared_removal() -> Vec<String> {
    vec![format!("DROP TABLE {READERS}, {TABLES}"), format!("DROP SCHEMA {SCHEMA}")]
}

/// A text in a statement.
pub(super) fn literal(text: &str) -> String {
    let text = text.replace('\'', "''");
    match text.contains('\\') {
        true => format!("E'{}'", text.replace('\\', "\\\\")),
        false => format!("'{text}'"),
    }
}
