//! The statements that install triggers, and those that remove them.
//!
//! A trigger that fails makes the application fail. So each is one INSERT of plain values into a table
//! whose columns are no narrower than any key, and it runs with a `sql_mode` that takes all values.
//! `INSERT … SELECT` would take the lock of the counter until the application's statement ends, and two
//! statements that wait for each other's rows would fail by it.

use super::super::discover::{Column, Relation};
use crate::clients::mysql::literal;
use crate::connectors::sql::{MYSQL, TriggerNames};
use crate::error::Result;
use crate::table::TableId;

/// The names of everything that is ours in a database begin so.
const PREFIX: &str = "_frazil_";
/// Which readers there are, and how far they are: see [`readers`](super::readers).
pub(super) const READERS: &str = "_frazil_readers";
/// Which tables of changes there are.
pub(super) const TABLES: &str = "_frazil_tables";

/// What a session that installs is set to. Triggers keep the mode: one that stores what does not fit
/// shortened, which a pass notices by the types, and takes dates that are none. A trigger waits for open
/// transactions that use the table, at most five seconds, and everybody else waits behind it.
const SETTINGS: &str = "SET NAMES utf8mb4, SESSION sql_mode = 'NO_AUTO_VALUE_ON_ZERO,ALLOW_INVALID_DATES', \
     SESSION lock_wait_timeout = 5";

/// What is installed for one table and key.
pub(super) struct Parts<'a> {
    relation: &'a Relation,
    names: TriggerNames,
    pub(super) key: Vec<&'a Column>,
}

/// A trigger: its name, its event, and what it does.
pub(super) struct Trigger {
    pub(super) name: String,
    pub(super) event: &'static str,
    pub(super) body: String,
}

impl<'a> Parts<'a> {
    pub(super) fn of(relation: &'a Relation, key: &[String]) -> Result<Self> {
        let columns = key.iter().map(|name| relation.named(name)).collect::<Result<_>>()?;
        Ok(Self { relation, names: TriggerNames::of(&relation.id, key), key: columns })
    }

    /// The bare name of the table of changes: what the other tables know it by.
    pub(super) fn name(&self) -> String {
        self.names.changes(PREFIX)
    }

    /// The table of changes.
    pub(super) fn changes(&self) -> TableId {
        self.beside(&self.name())
    }

    /// The table of readers, quoted.
    pub(super) fn readers(&self) -> String {
        MYSQL.table(&self.beside(READERS))
    }

    /// The statement that forgets a reader.
    pub(super) fn forget(&self, reader: &str) -> String {
        format!(
            "DELETE FROM {} WHERE changes = '{}' AND reader = {}",
            self.readers(),
            self.name(),
            literal(reader)
        )
    }

    /// The table of tables of changes, quoted.
    pub(super) fn tables(&self) -> String {
        MYSQL.table(&self.beside(TABLES))
    }

    fn beside(&self, name: &str) -> TableId {
        beside(&self.relation.id, name)
    }

    /// The table of changes and the table itself, quoted.
    fn quoted(&self) -> (String, String) {
        (MYSQL.table(&self.changes()), self.relation.quoted())
    }

    pub(super) fn triggers(&self) -> [Trigger; 3] {
        let (changes, _) = self.quoted();
        let places = |name: &str| {
            (1..=self.key.len()).map(|place| format!("{name}{place}")).collect::<Vec<_>>().join(", ")
        };
        let values = |row: &str| {
            let values = self.key.iter().map(|column| format!("{row}.{}", MYSQL.ident(&column.name)));
            values.collect::<Vec<_>>().join(", ")
        };
        let one = |row: &str| format!("INSERT INTO {changes} ({}) VALUES ({})", places("k"), values(row));
        // Whether they differ is not asked here: `a` and `A` may be equal to the server.
        let both = format!(
            "INSERT INTO {changes} ({}, {}) VALUES ({}, {})",
            places("k"),
            places("o"),
            values("NEW"),
            values("OLD")
        );
        [("INSERT", one("NEW")), ("UPDATE", both), ("DELETE", one("OLD"))].map(|(event, body)| Trigger {
            name: self.names.part(&event.to_ascii_lowercase()),
            event,
            body,
        })
    }

    /// The types of the key's columns in the table of changes.
    pub(super) fn types(&self) -> Vec<String> {
        self.key.iter().map(|column| wide(column)).collect()
    }

    /// Installs everything. Nothing here can be taken back together; what is left of an attempt that
    /// failed is removed by the next.
    pub(super) fn installation(&self) -> Vec<String> {
        let (changes, table) = self.quoted();
        let (name, types) = (self.name(), self.types());
        let columns: Vec<String> = ["k", "o"]
            .iter()
            .flat_map(|prefix| {
                types.iter().enumerate().map(move |(i, of)| {
                    let text =
                        if of == "mediumtext" { " CHARACTER SET utf8mb4 COLLATE utf8mb4_bin" } else { "" };
                    // A `timestamp` that says nothing of it would be set by each update.
                    format!("{prefix}{} {of}{text} NULL DEFAULT NULL", i + 1)
                })
            })
            .collect();
        let mut all = vec![
            format!(
                "CREATE TABLE {changes} (n bigint unsigned NOT NULL AUTO_INCREMENT PRIMARY KEY, \
                 batch bigint NOT NULL DEFAULT 0, {}) ENGINE=InnoDB ROW_FORMAT=DYNAMIC",
                columns.join(", ")
            ),
            format!(
                "INSERT INTO {} (changes, source, stamp) VALUES ('{name}', {}, UUID())",
                self.tables(),
                literal(&self.relation.id.to_string())
            ),
        ];
        all.extend(self.triggers().into_iter().map(|Trigger { name, event, body }| {
            let name = MYSQL.table(&self.beside(&name));
            format!("CREATE TRIGGER {name} AFTER {event} ON {table} FOR EACH ROW {body}")
        }));
        all
    }

    /// Removes everything that may be there; with `shared`, what the tables of all know of it.
    pub(super) fn removal(&self, shared: bool) -> Vec<String> {
        let (changes, _) = self.quoted();
        let name = self.name();
        // The triggers first: one that finds no table makes the application fail.
        let mut all: Vec<String> = self
            .triggers()
            .iter()
            .map(|trigger| format!("DROP TRIGGER IF EXISTS {}", MYSQL.table(&self.beside(&trigger.name))))
            .collect();
        all.push(format!("DROP TABLE IF EXISTS {changes}"));
        if shared {
            all.push(format!("DELETE FROM {} WHERE changes = '{name}'", self.readers()));
            all.push(format!("DELETE FROM {} WHERE changes = '{name}'", self.tables()));
        }
        all
    }

    /// What all tables of changes of a database share.
    pub(super) fn shared(&self) -> Vec<String> {
        let text = "CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL";
        let name = "changes varchar(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL";
        vec![
            format!(
                "CREATE TABLE IF NOT EXISTS {} ({name} PRIMARY KEY, source varchar(200) {text}, \
                 stamp char(36) NOT NULL, batch bigint NOT NULL DEFAULT 0, \
                 pruned bigint NOT NULL DEFAULT 0) ENGINE=InnoDB ROW_FORMAT=DYNAMIC",
                self.tables()
            ),
            format!(
                "CREATE TABLE IF NOT EXISTS {} ({name}, reader varchar(600) {text}, \
                 batch bigint NOT NULL, taken bigint NOT NULL, seen datetime NOT NULL, \
                 PRIMARY KEY (changes, reader)) ENGINE=InnoDB ROW_FORMAT=DYNAMIC",
                self.readers()
            ),
        ]
    }

    /// Removes the same.
    pub(super) fn shared_removal(&self) -> Vec<String> {
        vec![format!("DROP TABLE {}, {}", self.readers(), self.tables())]
    }

    /// The tables that a run uses, quoted, each with the rights that this takes and a column that it changes.
    pub(super) fn used(&self) -> [(String, &'static str, &'static str); 3] {
        let (changes, _) = self.quoted();
        [
            (changes, "SELECT, UPDATE, DELETE", "batch"),
            (self.readers(), "SELECT, INSERT, UPDATE, DELETE", "taken"),
            (self.tables(), "SELECT, UPDATE", "batch"),
        ]
    }

    /// What comes before all of them.
    pub(super) fn settings() -> String {
        SETTINGS.to_owned()
    }
}

/// A table in the database of another.
pub(super) fn beside(table: &TableId, name: &str) -> TableId {
    TableId { schema: table.schema.clone(), name: name.to_owned() }
}

/// A type that holds all values of a column, now and when it is made wider, and says them in the same way.
fn wide(column: &Column) -> String {
    let of = &column.of;
    match of.base.as_str() {
        "tinyint" | "smallint" | "mediumint" | "int" | "bigint" if of.unsigned => {
            "bigint unsigned".to_owned()
        }
        "tinyint" | "smallint" | "mediumint" | "int" | "bigint" => "bigint".to_owned(),
        "decimal" => format!("decimal(65,{})", of.scale),
        "char" | "varchar" => "mediumtext".to_owned(),
        "binary" | "varbinary" => "blob".to_owned(),
        // A `timestamp` of other digits would be copied by way of local time, in which an hour comes twice.
        base @ ("time" | "datetime") => format!("{base}(6)"),
        _ => of.written(),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::connectors::mysql::types::TypeOf;
    use crate::table::TableKind;

    fn relation() -> Relation {
        let column = |name: &str, base: &str, declared: &str| Column {
            number: 1,
            name: name.to_owned(),
            of: TypeOf {
                base: base.to_owned(),
                declared: declared.to_owned(),
                unsigned: declared.contains("unsigned"),
                scale: 2,
                ..TypeOf::default()
            },
            not_null: true,
            generated: false,
            identity: false,
            follows_changes: false,
            indexed: true,
            defaulted: false,
        };
        Relation {
            id: TableId::new("shop", "it's"),
            kind: TableKind::Table,
            columns: vec![
                column("id", "int", "int(10) unsigned"),
                column("a`b", "varchar", "varchar(20)"),
                column("n", "decimal", "decimal(10,2)"),
                column("at", "timestamp", "timestamp(3)"),
            ],
            keys: Vec::new(),
            unique: Vec::new(),
            engine: "InnoDB".to_owned(),
            rows: None,
            bytes: None,
            layout: String::new(),
        }
    }

    #[test]
    fn each_trigger_is_one_insert_of_values() {
        let relation = relation();
        let key: Vec<String> = ["id", "a`b", "n", "at"].map(str::to_owned).into();
        let text = Parts::of(&relation, &key).unwrap().installation().join("\n");
        expect![[r#"
            CREATE TABLE `shop`.`_frazil_changes_it_s_59c3d48e1bbc6358` (n bigint unsigned NOT NULL AUTO_INCREMENT PRIMARY KEY, batch bigint NOT NULL DEFAULT 0, k1 bigint unsigned NULL DEFAULT NULL, k2 mediumtext CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NULL DEFAULT NULL, k3 decimal(65,2) NULL DEFAULT NULL, k4 timestamp(3) NULL DEFAULT NULL, o1 bigint unsigned NULL DEFAULT NULL, o2 mediumtext CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NULL DEFAULT NULL, o3 decimal(65,2) NULL DEFAULT NULL, o4 timestamp(3) NULL DEFAULT NULL) ENGINE=InnoDB ROW_FORMAT=DYNAMIC
            INSERT INTO `shop`.`_frazil_tables` (changes, source, stamp) VALUES ('_frazil_changes_it_s_59c3d48e1bbc6358', 'shop.it''s', UUID())
            CREATE TRIGGER `shop`.`frazil_insert_59c3d48e1bbc6358` AFTER INSERT ON `shop`.`it's` FOR EACH ROW INSERT INTO `shop`.`_frazil_changes_it_s_59c3d48e1bbc6358` (k1, k2, k3, k4) VALUES (NEW.`id`, NEW.`a``b`, NEW.`n`, NEW.`at`)
            CREATE TRIGGER `shop`.`frazil_update_59c3d48e1bbc6358` AFTER UPDATE ON `shop`.`it's` FOR EACH ROW INSERT INTO `shop`.`_frazil_changes_it_s_59c3d48e1bbc6358` (k1, k2, k3, k4, o1, o2, o3, o4) VALUES (NEW.`id`, NEW.`a``b`, NEW.`n`, NEW.`at`, OLD.`id`, OLD.`a``b`, OLD.`n`, OLD.`at`)
            CREATE TRIGGER `shop`.`frazil_delete_59c3d48e1bbc6358` AFTER DELETE ON `shop`.`it's` FOR EACH ROW INSERT INTO `shop`.`_frazil_changes_it_s_59c3d48e1bbc6358` (k1, k2, k3, k4) VALUES (OLD.`id`, OLD.`a``b`, OLD.`n`, OLD.`at`)"#]].assert_eq(&text);
    }
}
