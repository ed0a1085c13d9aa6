//! The statements of a load, as text.
//!
//! ```text
//! frazil_staging (c0, c1, …, op) ──▶ op 1: DELETE   op 0: UPDATE what is there, INSERT what is not
//! ```
//!
//! Staging columns are named by position, so no name of a user's column can clash with ours. A temporary
//! table can be named once in a statement, so each statement joins it once.
//!
//! There is no `ON DUPLICATE KEY UPDATE`: where another unique index of the table has the value already, it
//! would change that row instead, and say nothing. An `INSERT` is refused.
//!
//! An `UPDATE` names all columns: a row that has these values already, to the last bit, the server leaves
//! as it is.

use super::kind::Kind;
use crate::connectors::sql::{DELETED_AT, MYSQL};
use crate::table::TableId;
use crate::target::Deletes;

mod versions;

/// The staging table's name, in the table's own database. It is the session's own.
const STAGING: &str = "frazil_staging";

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
}

impl Statements {
    fn staging(&self) -> String {
        MYSQL.table(&TableId { schema: self.table.schema.clone(), name: STAGING.to_owned() })
    }

    /// Removes what an earlier load of the session left, and makes the staging table. A key is compared as
    /// the table compares it, so a staged row finds the one that it is for; two that are one to the table
    /// are refused.
    pub(super) fn create_staging(&self) -> [String; 2] {
        let columns = self.columns.iter().enumerate().map(|(index, column)| {
            let kind = Kind::parse(&column.type_name);
            let null = if column.key { "NOT NULL" } else { "NULL" };
            match (&column.collation, column.staged.as_str()) {
                (Some(collation), _) if column.key && kind.is_some_and(Kind::is_text) => {
                    format!("c{index} {} COLLATE {collation} {null}, ", column.type_name)
                }
                (_, staged @ ("longtext" | "char(36)")) => {
                    format!("c{index} {staged} COLLATE {BITS} {null}, ")
                }
                (_, staged) => format!("c{index} {staged} {null}, "),
            }
        });
        let columns: String = columns.collect();
        let key: Vec<_> = self.key().map(|(index, _)| format!("c{index}")).collect();
        let key = if key.is_empty() { String::new() } else { format!(", PRIMARY KEY ({})", key.join(", ")) };
        let staging = self.staging();
        [
            format!("DROP TEMPORARY TABLE IF EXISTS {staging}"),
            format!(
                "CREATE TEMPORARY TABLE {staging} ({columns}op tinyint NOT NULL{key}) ENGINE=InnoDB CHARACTER SET utf8mb4"
            ),
        ]
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
            "INSERT INTO {} ({}) SELECT {} FROM {} AS s WHERE s.op = 0{}",
            MYSQL.table(&self.table),
            self.names(),
            self.values(),
            self.staging(),
            self.in_order()
        )
    }

    /// Rows staged as deletes; `None` when they stay.
    pub(super) fn delete(&self) -> Option<String> {
        let joined = self.joined();
        match self.deletes {
            Deletes::Ignore => None,
            Deletes::Hard => Some(format!("DELETE t FROM {joined} WHERE s.op = 1")),
            Deletes::Soft => {
                let name = MYSQL.ident(DELETED_AT);
                Some(format!(
                    "UPDATE {joined} SET t.{name} = UTC_TIMESTAMP(6) WHERE s.op = 1 AND t.{name} IS NULL"
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
        (!sets.is_empty()).then(|| format!("UPDATE {joined} SET {} WHERE s.op = 0", sets.join(", ")))
    }

    /// Rows staged as upserts, where their keys are not there.
    pub(super) fn insert_new(&self) -> String {
        let table = MYSQL.table(&self.table);
        format!(
            "INSERT INTO {table} ({}) SELECT {} FROM {} AS s LEFT JOIN {table} AS t ON {} WHERE s.op = 0 AND {} IS NULL{}",
            self.names(),
            self.values(),
            self.staging(),
            self.by_key(),
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
                let (there, new) = (format!("t.{}", MYSQL.ident(&column.name)), format!("s.c{index}"));
                match Kind::parse(&column.type_name).is_some_and(Kind::is_text) {
                    // Blanks at the end count by the length.
                    true => format!(
                        "CONVERT({there} USING utf8mb4) COLLATE {BITS} <=> {new} \
                         AND CHAR_LENGTH({there}) <=> CHAR_LENGTH({new})"
                    ),
                    false => format!("{there} <=> {new}"),
                }
            })
            .collect();
        (!same.is_empty()).then(|| format!("NOT ({})", same.join(" AND ")))
    }
}

#[cfg(test)]
mod tests {
    use datafusion::sql::sqlparser::dialect::MySqlDialect;
    use datafusion::sql::sqlparser::parser::Parser;
    use expect_test::{Expect, expect};

    use super::super::encode::carry;
    use super::*;
    use crate::connectors::sql::Ended;

    fn statements(deletes: Deletes) -> Statements {
        use arrow::datatypes::DataType as D;
        let column = |name: &str, type_name: &str, arrow: D, key: bool| Column {
            name: name.into(),
            type_name: type_name.into(),
            collation: type_name.starts_with("varchar").then(|| "utf8mb4_nopad_bin".to_owned()),
            staged: carry(&arrow, type_name).unwrap().staged,
            key,
        };
        Statements {
            table: TableId::new("Sales", "order"),
            columns: vec![
                column("Id", "bigint", D::Int64, true),
                column("code", "varchar(20)", D::Utf8, true),
                column("na`me", "varchar(100)", D::Utf8, false),
                column("data", "longblob", D::Binary, false),
            ],
            deletes,
        }
    }

    fn check(text: &str, expected: Expect) {
        for line in text.lines().filter(|line| !line.contains("TEMPORARY") && !line.starts_with("LOAD")) {
            if let Err(error) = Parser::parse_sql(&MySqlDialect {}, line) {
                panic!("{error}: {line}");
            }
        }
        expected.assert_eq(text);
    }

    #[test]
    fn a_merge() {
        let all = statements(Deletes::Hard);
        check(
            &all.create_staging().join("\n"),
            expect![[r#"
            DROP TEMPORARY TABLE IF EXISTS `Sales`.`frazil_staging`
            CREATE TEMPORARY TABLE `Sales`.`frazil_staging` (c0 bigint NOT NULL, c1 varchar(20) COLLATE utf8mb4_nopad_bin NOT NULL, c2 longtext COLLATE utf8mb4_bin NULL, c3 longblob NULL, op tinyint NOT NULL, PRIMARY KEY (c0, c1)) ENGINE=InnoDB CHARACTER SET utf8mb4"#]],
        );
        check(
            &all.load_staging(),
            expect![[
                r#"LOAD DATA LOCAL INFILE 'frazil' INTO TABLE `Sales`.`frazil_staging` CHARACTER SET binary FIELDS TERMINATED BY '\t' ESCAPED BY '\\' LINES TERMINATED BY '\n'"#
            ]],
        );
        check(
            &[all.delete().unwrap(), all.update().unwrap(), all.insert_new()].join("\n"),
            expect![[r#"
            DELETE t FROM `Sales`.`order` AS t INNER JOIN `Sales`.`frazil_staging` AS s ON t.`Id` = s.c0 AND t.`code` = s.c1 WHERE s.op = 1
            UPDATE `Sales`.`order` AS t INNER JOIN `Sales`.`frazil_staging` AS s ON t.`Id` = s.c0 AND t.`code` = s.c1 SET t.`na``me` = s.c2, t.`data` = s.c3 WHERE s.op = 0
            INSERT INTO `Sales`.`order` (`Id`, `code`, `na``me`, `data`) SELECT s.c0, s.c1, s.c2, s.c3 FROM `Sales`.`frazil_staging` AS s LEFT JOIN `Sales`.`order` AS t ON t.`Id` = s.c0 AND t.`code` = s.c1 WHERE s.op = 0 AND t.`Id` IS NULL ORDER BY s.c0, s.c1"#]],
        );
    }

    #[test]
    fn soft_deletes() {
        let mut soft = statements(Deletes::Soft);
        soft.columns.truncate(2);
        check(
            &[soft.delete().unwrap(), soft.update().unwrap()].join("\n"),
            expect![[r#"
                UPDATE `Sales`.`order` AS t INNER JOIN `Sales`.`frazil_staging` AS s ON t.`Id` = s.c0 AND t.`code` = s.c1 SET t.`_deleted_at` = UTC_TIMESTAMP(6) WHERE s.op = 1 AND t.`_deleted_at` IS NULL
                UPDATE `Sales`.`order` AS t INNER JOIN `Sales`.`frazil_staging` AS s ON t.`Id` = s.c0 AND t.`code` = s.c1 SET t.`_deleted_at` = NULL WHERE s.op = 0"#]],
        );
        soft.deletes = Deletes::Ignore;
        assert_eq!((soft.delete(), soft.update()), (None, None));
    }

    #[test]
    fn a_first_load_and_a_replacement() {
        let mut all = statements(Deletes::Ignore);
        check(
            &[all.insert(), all.delete_others()].join("\n"),
            expect![[r#"
            INSERT INTO `Sales`.`order` (`Id`, `code`, `na``me`, `data`) SELECT s.c0, s.c1, s.c2, s.c3 FROM `Sales`.`frazil_staging` AS s WHERE s.op = 0 ORDER BY s.c0, s.c1
            DELETE t FROM `Sales`.`order` AS t LEFT JOIN `Sales`.`frazil_staging` AS s ON t.`Id` = s.c0 AND t.`code` = s.c1 WHERE s.op IS NULL"#]],
        );
        all.columns.iter_mut().for_each(|column| column.key = false);
        check(&all.delete_others(), expect!["DELETE FROM `Sales`.`order`"]);
        assert!(!all.create_staging()[1].contains("PRIMARY"));
    }

    #[test]
    fn versions() {
        let at = chrono::DateTime::from_timestamp_millis(1_763_722_800_123).unwrap();
        let all = statements(Deletes::Hard);
        let mut text = String::new();
        for which in [Ended::Others, Ended::Deleted, Ended::Changed] {
            text += &all.end_versions(at, which).unwrap().map(|statement| statement + "\n").concat();
        }
        text += &all.begin_versions(at);
        check(
            &text,
            expect![[r#"
                DELETE t FROM `Sales`.`order` AS t LEFT JOIN `Sales`.`frazil_staging` AS s ON t.`Id` = s.c0 AND t.`code` = s.c1 WHERE t.`_is_current` = 1 AND t.`_valid_from` >= TIMESTAMP'2025-11-21 11:00:00.123000' AND s.op IS NULL
                UPDATE `Sales`.`order` AS t LEFT JOIN `Sales`.`frazil_staging` AS s ON t.`Id` = s.c0 AND t.`code` = s.c1 SET t.`_valid_to` = TIMESTAMP'2025-11-21 11:00:00.123000', t.`_is_current` = 0 WHERE t.`_is_current` = 1 AND s.op IS NULL
                DELETE t FROM `Sales`.`order` AS t INNER JOIN `Sales`.`frazil_staging` AS s ON t.`Id` = s.c0 AND t.`code` = s.c1 WHERE t.`_is_current` = 1 AND t.`_valid_from` >= TIMESTAMP'2025-11-21 11:00:00.123000' AND s.op = 1
                UPDATE `Sales`.`order` AS t INNER JOIN `Sales`.`frazil_staging` AS s ON t.`Id` = s.c0 AND t.`code` = s.c1 SET t.`_valid_to` = TIMESTAMP'2025-11-21 11:00:00.123000', t.`_is_current` = 0 WHERE t.`_is_current` = 1 AND s.op = 1
                DELETE t FROM `Sales`.`order` AS t INNER JOIN `Sales`.`frazil_staging` AS s ON t.`Id` = s.c0 AND t.`code` = s.c1 WHERE t.`_is_current` = 1 AND t.`_valid_from` >= TIMESTAMP'2025-11-21 11:00:00.123000' AND s.op = 0 AND NOT (CONVERT(t.`na``me` USING utf8mb4) COLLATE utf8mb4_bin <=> s.c2 AND CHAR_LENGTH(t.`na``me`) <=> CHAR_LENGTH(s.c2) AND t.`data` <=> s.c3)
                UPDATE `Sales`.`order` AS t INNER JOIN `Sales`.`frazil_staging` AS s ON t.`Id` = s.c0 AND t.`code` = s.c1 SET t.`_valid_to` = TIMESTAMP'2025-11-21 11:00:00.123000', t.`_is_current` = 0 WHERE t.`_is_current` = 1 AND s.op = 0 AND NOT (CONVERT(t.`na``me` USING utf8mb4) COLLATE utf8mb4_bin <=> s.c2 AND CHAR_LENGTH(t.`na``me`) <=> CHAR_LENGTH(s.c2) AND t.`data` <=> s.c3)
                INSERT INTO `Sales`.`order` (`Id`, `code`, `na``me`, `data`, `_valid_from`, `_valid_to`, `_is_current`) SELECT s.c0, s.c1, s.c2, s.c3, COALESCE((SELECT MAX(t.`_valid_to`) FROM `Sales`.`order` AS t WHERE t.`Id` = s.c0 AND t.`code` = s.c1 AND t.`_valid_to` > TIMESTAMP'2025-11-21 11:00:00.123000'), TIMESTAMP'2025-11-21 11:00:00.123000'), NULL, 1 FROM `Sales`.`frazil_staging` AS s WHERE s.op = 0 AND NOT EXISTS (SELECT 1 FROM `Sales`.`order` AS t WHERE t.`Id` = s.c0 AND t.`code` = s.c1 AND t.`_is_current` = 1) ORDER BY s.c0, s.c1"#]],
        );
    }
}
