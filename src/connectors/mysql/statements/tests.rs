//! The statements, as text that MySQL's grammar takes.

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
        letters: false,
        base: false,
        among: None,
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
            DELETE t FROM `Sales`.`order` AS t INNER JOIN `Sales`.`frazil_staging` AS s ON t.`Id` = s.c0 AND t.`code` = s.c1 WHERE t.`_is_current` = 1 AND t.`_valid_from` >= TIMESTAMP'2025-11-21 11:00:00.123000' AND s.op = 0 AND NOT ((CONVERT(t.`na``me` USING utf8mb4) COLLATE utf8mb4_bin <=> CONVERT(s.c2 USING utf8mb4) COLLATE utf8mb4_bin AND CHAR_LENGTH(t.`na``me`) <=> CHAR_LENGTH(s.c2)) AND t.`data` <=> s.c3)
            UPDATE `Sales`.`order` AS t INNER JOIN `Sales`.`frazil_staging` AS s ON t.`Id` = s.c0 AND t.`code` = s.c1 SET t.`_valid_to` = TIMESTAMP'2025-11-21 11:00:00.123000', t.`_is_current` = 0 WHERE t.`_is_current` = 1 AND s.op = 0 AND NOT ((CONVERT(t.`na``me` USING utf8mb4) COLLATE utf8mb4_bin <=> CONVERT(s.c2 USING utf8mb4) COLLATE utf8mb4_bin AND CHAR_LENGTH(t.`na``me`) <=> CHAR_LENGTH(s.c2)) AND t.`data` <=> s.c3)
            INSERT INTO `Sales`.`order` (`Id`, `code`, `na``me`, `data`, `_valid_from`, `_valid_to`, `_is_current`) SELECT s.c0, s.c1, s.c2, s.c3, COALESCE((SELECT MAX(t.`_valid_to`) FROM `Sales`.`order` AS t WHERE t.`Id` = s.c0 AND t.`code` = s.c1 AND t.`_valid_to` > TIMESTAMP'2025-11-21 11:00:00.123000'), TIMESTAMP'2025-11-21 11:00:00.123000'), NULL, 1 FROM `Sales`.`frazil_staging` AS s WHERE s.op = 0 AND NOT EXISTS (SELECT 1 FROM `Sales`.`order` AS t WHERE t.`Id` = s.c0 AND t.`code` = s.c1 AND t.`_is_current` = 1) ORDER BY s.c0, s.c1"#]],
    );
}
