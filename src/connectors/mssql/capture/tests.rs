//! The statement's text, read by an independent parser; and what it finds, by SQLite, which knows windows too.

use datafusion::sql::sqlparser::dialect::MsSqlDialect;
use datafusion::sql::sqlparser::parser::Parser;
use expect_test::{Expect, expect};
use rusqlite::Connection;

use super::super::testing::relation;
use super::*;

fn instance(name: &str, start: Option<u128>, columns: &[&str]) -> Instance {
    Instance {
        name: name.to_owned(),
        table: format!("{name}_CT"),
        start: start.map(Lsn),
        columns: columns.iter().map(|name| (*name).to_owned()).collect(),
    }
}

fn statement(after: u128, to: u128) -> String {
    let relation = relation("id nvarchar 40 !\nname nvarchar 40\nkey id");
    let plain = |column: &str| column.to_owned();
    let columns: [Selected<'_>; 2] = [("id".into(), &plain), ("name".into(), &plain)];
    changes(&instance("dbo_t", Some(1), &["id", "name"]), &relation, &columns, Lsn(after), Lsn(to))
}

#[test]
fn the_statement_takes_the_last_of_each_key_in_the_documented_order() {
    let sql = statement(0x10, 0x2A);
    Parser::parse_sql(&MsSqlDialect {}, &sql).unwrap();
    expect!["SELECT c.[id], c.[name], CASE WHEN c.[__$operation] IN (1, 3) THEN 1 ELSE 0 END FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY CAST([id] AS varbinary(8000)) ORDER BY [__$start_lsn] DESC, [__$command_id] DESC, [__$seqval] DESC, [__$operation] DESC) AS [frazil newest] FROM [cdc].[dbo_t_CT] WHERE [__$start_lsn] > 0x00000000000000000010 AND [__$start_lsn] <= 0x0000000000000000002A) AS c WHERE c.[frazil newest] = 1"]
        .assert_eq(&sql);
}

/// What SQLite makes of the statement over a change table: lines of `lsn command seqval operation id name`.
/// Its texts compare without case, as most of SQL Server's do.
fn check(captured: &str, after: u128, to: u128, expected: Expect) {
    let db = Connection::open_in_memory().unwrap();
    db.execute_batch(
        "ATTACH ':memory:' AS cdc; CREATE TABLE cdc.dbo_t_CT ([__$start_lsn] BLOB, [__$command_id] INT, \
         [__$seqval] BLOB, [__$operation] INT, id TEXT COLLATE NOCASE, name TEXT)",
    )
    .unwrap();
    let lsn = |text: &str| Lsn(u128::from_str_radix(text, 16).unwrap()).to_string()[2..].to_owned();
    for line in captured.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let w: Vec<&str> = line.split_whitespace().collect();
        let sql = format!(
            "INSERT INTO cdc.dbo_t_CT VALUES (X'{}', {}, X'{}', {}, '{}', '{}')",
            lsn(w[0]),
            w[1],
            lsn(w[2]),
            w[3],
            w[4],
            w[5]
        );
        db.execute(&sql, []).unwrap();
    }
    // `0x…` is a number there, and bytes are `X'…'`.
    let mut sql = statement(after, to).replace("varbinary(8000)", "BLOB");
    for bound in [Lsn(after), Lsn(to)].map(|lsn| lsn.to_string()) {
        sql = sql.replace(&bound, &format!("X'{}'", &bound[2..]));
    }
    let mut query = db.prepare(&sql).unwrap();
    let found = query.query_map([], |row| {
        let (id, name, gone): (String, String, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        Ok(if gone == 1 { format!("{id} gone") } else { format!("{id} {name}") })
    });
    let mut found: Vec<String> = found.unwrap().map(Result::unwrap).collect();
    found.sort();
    expected.assert_eq(&found.join(", "));
}

#[test]
fn an_update_is_its_new_row_and_a_key_that_changed_leaves_the_old_one_gone() {
    check(
        "
        1 1 1 2 a ann
        2 1 1 3 a ann
        2 1 1 4 a anna
        3 1 1 3 b bob
        3 1 1 4 c bob
        4 1 1 1 d dan
        4 2 2 2 e dan
        ",
        0,
        9,
        expect!["a anna, b gone, c bob, d gone, e dan"],
    );
}

#[test]
fn within_a_transaction_the_command_counts_and_not_the_sequence() {
    // The second command has the smaller sequence value: it is not for ordering.
    check("1 1 9 2 a first\n1 2 3 1 a first\n1 3 1 2 a again", 0, 9, expect!["a again"]);
    // Deleted and inserted by one command.
    check("1 1 1 1 a old\n1 1 1 2 a new", 0, 9, expect!["a new"]);
}

#[test]
fn keys_swapped_by_one_statement_are_both_there() {
    check("1 1 1 1 a ann\n1 2 2 1 b bob\n1 3 3 2 a bob\n1 4 4 2 b ann", 0, 9, expect!["a bob, b ann"]);
}

#[test]
fn a_key_that_changes_in_case_alone_is_two_keys() {
    check("1 1 1 1 a ann\n1 2 2 2 A ann", 0, 9, expect!["A ann, a gone"]);
}

#[test]
fn a_window_leaves_out_its_begin_and_takes_its_end() {
    let captured = "1 1 1 2 a ann\n2 1 1 2 b bob\n3 1 1 2 c cid\n4 1 1 2 d dan";
    check(captured, 1, 3, expect!["b bob, c cid"]);
    check(captured, 3, 4, expect!["d dan"]);
    check(captured, 4, 4, expect![""]);
}

#[test]
fn the_newest_instance_that_reaches_back_is_read() {
    let (old, new) = (instance("old", Some(10), &["id", "a"]), instance("new", Some(50), &["id", "a", "b"]));
    let both = [new, old];
    let name = |columns: &[&str], after: Option<u128>| {
        pick(&both, columns, after.map(Lsn)).map(|instance| instance.name.clone())
    };
    // Before the new one begins, the old one is read; from there on the new one.
    assert_eq!(name(&["id", "a"], Some(48)).as_deref(), Some("old"));
    assert_eq!(name(&["id", "a"], Some(49)).as_deref(), Some("new"));
    assert_eq!(name(&["id", "a"], None).as_deref(), Some("new"));
    // A column that the old one has not cannot be gone on with from there.
    assert_eq!(name(&["id", "b"], Some(48)), None);
    assert_eq!(name(&["id", "b"], Some(49)).as_deref(), Some("new"));
    // Cleaned away.
    assert_eq!(name(&["id", "a"], Some(8)), None);
    assert_eq!(name(&["id", "a"], Some(9)).as_deref(), Some("old"));
    // Not begun yet.
    assert_eq!(pick(&[instance("x", None, &["id"])], &["id"], None), None);
}

#[test]
fn positions_are_ten_bytes_and_come_back() {
    let lsn = Lsn::try_from("0x0000002A000000F80003".to_owned()).unwrap();
    assert_eq!(lsn.to_string(), "0x0000002A000000F80003");
    assert_eq!(Lsn(0x100).before(), Lsn(0xFF));
    assert!(Lsn::try_from(String::new()).is_err());
}

#[test]
fn a_job_that_is_behind_is_said_to_be() {
    let minutes = |minutes: i64| Ticks(minutes * 60 * TICKS_A_SECOND);
    let behind = |at: i64| Captured { newest: Lsn(1), at: minutes(100 - at), now: minutes(100) }.stopped();
    // An idle database is five minutes behind.
    assert_eq!(behind(6), None);
    let (message, remedy) = behind(90).unwrap();
    assert!(message.contains("90 minutes behind") && remedy.contains("sp_cdc_start_job"), "{message}");
}
