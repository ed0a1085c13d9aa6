//! The statement's text, read by an independent parser; and what it finds, by SQLite.

use datafusion::sql::sqlparser::dialect::MsSqlDialect;
use datafusion::sql::sqlparser::parser::Parser;
use expect_test::expect;
use rusqlite::Connection;

use super::super::testing::relation;
use super::super::tracking::{Keys, Selected};
use super::*;

fn history(days: Option<i64>) -> History {
    History {
        object: 7,
        table: TableId::new("dbo", "t_history"),
        start: "begins".to_owned(),
        end: "ends".to_owned(),
        scale: 0,
        days,
    }
}

/// `seconds` after eleven o'clock.
fn at(seconds: i64) -> Ticks {
    Ticks((1_763_722_800 + seconds) * 10_000_000)
}

fn statement() -> String {
    let relation = relation("id nvarchar 40 !\nname nvarchar 40\nkey id");
    let plain = |column: &str| column.to_owned();
    let columns: [Selected<'_>; 2] = [("id".into(), &plain), ("name".into(), &plain)];
    let keys = Keys {
        from: changed_keys(&relation, &history(None), at(10), at(20)),
        gone: None,
        on: same_key(&relation),
    };
    keys.joined(&relation.quoted(), &["id".to_owned()], &columns)
}

#[test]
fn the_statement_joins_the_keys_of_both_halves_to_the_rows() {
    let sql = statement();
    Parser::parse_sql(&MsSqlDialect {}, &sql).unwrap();
    expect!["SELECT ct.[id], t.[name], CASE WHEN t.[id] IS NULL THEN 1 ELSE 0 END FROM (SELECT [id], CAST([id] AS varbinary(8000)) AS [frazil 0] FROM [dbo].[t] WHERE [begins] >= CAST('2025-11-21T11:00:10.0000000' AS datetime2(0)) AND [begins] < CAST('2025-11-21T11:00:20.0000000' AS datetime2(0)) UNION SELECT [id], CAST([id] AS varbinary(8000)) AS [frazil 0] FROM [dbo].[t_history] WHERE [ends] >= CAST('2025-11-21T11:00:10.0000000' AS datetime2(0)) AND [ends] < CAST('2025-11-21T11:00:20.0000000' AS datetime2(0))) AS ct LEFT OUTER JOIN [dbo].[t] AS t ON t.[id] = ct.[id] AND CAST(t.[id] AS varbinary(8000)) = ct.[frazil 0]"]
        .assert_eq(&sql);
}

#[test]
fn what_changed_in_the_window_is_found_and_what_is_gone_is_a_delete() {
    let db = Connection::open_in_memory().unwrap();
    let time = |seconds: i64| format!("'2025-11-21T11:00:{seconds:02}.0000000'");
    db.execute_batch(
        "ATTACH ':memory:' AS dbo; CREATE TABLE dbo.t (id TEXT COLLATE NOCASE, name TEXT, begins TEXT, ends TEXT); \
         CREATE TABLE dbo.t_history (id TEXT COLLATE NOCASE, name TEXT, begins TEXT, ends TEXT)",
    )
    .unwrap();
    let never = "'9999'".to_owned();
    for (table, id, name, begins, ends) in [
        ("t", "old", "untouched", time(5), never.clone()),
        ("t", "new", "inserted", time(10), never.clone()),
        ("t", "upd", "after", time(12), never.clone()),
        ("t_history", "upd", "before", time(1), time(12)),
        ("t_history", "gone", "was", time(1), time(15)),
        ("t_history", "long", "ago", time(1), time(9)),
        // Deleted within the window, there again after it: its row as it is.
        ("t_history", "back", "was", time(1), time(15)),
        ("t", "back", "again", time(25), never.clone()),
        // Beyond the horizon: the next pass.
        ("t", "later", "x", time(20), never.clone()),
        ("t_history", "lost", "x", time(1), time(20)),
        // A key that changed in case alone.
        ("t_history", "k", "key", time(1), time(13)),
        ("t", "K", "key", time(13), never.clone()),
    ] {
        let sql = format!("INSERT INTO dbo.{table} VALUES ('{id}', '{name}', {begins}, {ends})");
        db.execute(&sql, []).unwrap();
    }
    let sql = statement().replace("varbinary(8000)", "BLOB").replace("datetime2(0)", "TEXT");
    let mut query = db.prepare(&sql).unwrap();
    let found = query.query_map([], |row| {
        let (id, name, gone): (String, Option<String>, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        Ok(format!("{id} {} {gone}", name.unwrap_or("NULL".into())))
    });
    let mut found: Vec<String> = found.unwrap().map(Result::unwrap).collect();
    found.sort();
    expect!["K key 0, back again 0, gone NULL 1, k NULL 1, new inserted 0, upd after 0"]
        .assert_eq(&found.join(", "));
}

#[test]
fn a_history_that_forgot_or_is_another_one_cannot_be_gone_on_from() {
    let days = |days: i64| Ticks(days * TICKS_A_DAY);
    assert_eq!(history(None).refuses(7, days(0), days(1000)), None);
    assert_eq!(history(Some(30)).refuses(7, days(970), days(1000)), None);
    assert!(history(Some(30)).refuses(7, days(969), days(1000)).unwrap().contains("retention"));
    assert!(history(None).refuses(8, days(0), days(0)).unwrap().contains("another history"));
    assert_eq!(
        [days_of(-1, -1), days_of(3, 3), days_of(2, 4), days_of(6, 5)],
        [None, Some(3), Some(14), Some(168)]
    );
}

fn days_of(period: i32, unit: i32) -> Option<i64> {
    days(period, unit)
}
