//! Write, audit, publish: what does not pass is not shown, not loaded, and not lost.

use std::collections::BTreeMap;

use crate::fixture::Pipeline;

const AUDIT: &str = "{ expect: ['total >= 0', \"customer <> ''\"], nulls: { note: 50% }, unique: [id], rows_like_source: 0% }";

fn stream(audit: &str) -> String {
    format!("main.orders: {{ change: version, cursor: v, audit: {audit} }}")
}

fn shop(audit: &str) -> (Pipeline, rusqlite::Connection) {
    let pipeline = Pipeline::new("sqlite:shop.db", "sqlite:dwh.db", &[&stream(audit)]);
    let db = rusqlite::Connection::open(pipeline.folder().join("shop.db")).unwrap();
    db.execute_batch(
        "create table orders (id integer primary key, customer text not null, total double, note text, v integer not null);
         insert into orders values (1, 'ann', 1.5, 'x', 1), (2, 'bob', null, null, 2);",
    )
    .unwrap();
    (pipeline, db)
}

/// What the lake shows and what the target shows: ids and totals.
fn shown(pipeline: &Pipeline) -> (String, String) {
    let sql = "select id, total from orders order by id";
    let lake = pipeline.ok(&["query", "--output", "csv", sql]).stdout;
    let target = rusqlite::Connection::open(pipeline.folder().join("dwh.db")).unwrap();
    let all =
        "select group_concat(id || ':' || coalesce(total, '-'), ' ') from (select * from orders order by id)";
    let lake = lake.lines().skip(1).map(|line| line.replace(',', ":")).collect::<Vec<_>>().join(" ");
    (lake, target.query_row(all, [], |row| row.get(0)).unwrap())
}

fn both(text: &str, target: &str) -> (String, String) {
    (text.to_owned(), target.to_owned())
}

#[test]
fn what_does_not_pass_is_kept_aside() {
    let (pipeline, db) = shop(AUDIT);
    pipeline.ok(&["run"]);
    assert_eq!(shown(&pipeline), both("1:1.5 2:", "1:1.5 2:-"));

    db.execute_batch(
        "update orders set total = -1, v = 3 where id = 1; insert into orders values (3, '', 1, null, 4)",
    )
    .unwrap();
    for _ in 0..2 {
        let ran = pipeline.run(&["run"]);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        for word in
            ["`total >= 0` is false in 1 of 2 rows", "`customer <> ''` is false in 1 of 2 rows", "held-"]
        {
            assert!(ran.stderr.contains(word), "{word}: {ran:?}");
        }
        assert!(!ran.stderr.contains("`note`"), "half of them is allowed: {ran:?}");
        assert_eq!(shown(&pipeline), both("1:1.5 2:", "1:1.5 2:-"));
    }
    // Both tries are the same change; the later one is kept, and can be read.
    let tags = pipeline.ok(&["tag", "orders", "--output", "json"]).stdout;
    let held: Vec<serde_json::Value> = tags
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|tag: &serde_json::Value| tag["name"].as_str().unwrap().starts_with("held-"))
        .collect();
    assert_eq!(held.len(), 1, "{tags}");
    let name = held[0]["name"].as_str().unwrap();
    let status = pipeline.ok(&["status"]).stdout;
    assert!(status.contains(&format!("{name} is kept aside")), "{status}");
    let rows = pipeline.ok(&[
        "query",
        "--output",
        "csv",
        "--as-of",
        name,
        "select id, total from orders order by id",
    ]);
    assert_eq!(rows.stdout, "id,total\n1,-1.0\n2,\n3,1.0\n");

    db.execute_batch("update orders set total = 2, v = 5 where id = 1; update orders set customer = 'cy', v = 6 where id = 3")
        .unwrap();
    pipeline.ok(&["run"]);
    assert_eq!(shown(&pipeline), both("1:2.0 2: 3:1.0", "1:2.0 2:- 3:1.0"));
    pipeline.ok(&["run"]);
}

#[test]
fn counts_are_compared_with_the_source() {
    let (pipeline, db) = shop("{ rows_like_source: 10% }");
    pipeline.ok(&["run"]);
    // A version number shows no deletes: the lake keeps the row, the source does not have it.
    db.execute_batch("delete from orders where id = 2; update orders set v = 3 where id = 1").unwrap();
    let ran = pipeline.run(&["run"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("2 rows, and the source has 1"), "{ran:?}");
}

#[test]
fn a_first_read_is_audited_too() {
    let (pipeline, db) = shop("{ nulls: { total: 10% }, scope: table }");
    let ran = pipeline.run(&["run"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("`total` is NULL in 1 of 2 rows, at most 10% may be"), "{ran:?}");
    let ran = pipeline.ok(&["query", "--output", "csv", "select count(*) as n from orders"]);
    assert_eq!(ran.stdout, "n\n0\n");
    db.execute_batch("update orders set total = 7 where id = 2").unwrap();
    pipeline.ok(&["run"]);
    assert_eq!(shown(&pipeline), both("1:1.5 2:7.0", "1:1.5 2:7.0"));
}

#[test]
fn a_crash_before_it_is_shown_costs_nothing() {
    let (pipeline, db) = shop(AUDIT);
    pipeline.ok(&["run"]);
    db.execute_batch("update orders set total = 9, v = 3 where id = 1").unwrap();
    for fault in ["kill", "error"] {
        let ran = pipeline.run_with_faults(&["run"], &format!("before_publish=return({fault})"));
        assert_ne!(ran.code, Some(0), "{ran:?}");
        assert_eq!(shown(&pipeline), both("1:1.5 2:", "1:1.5 2:-"));
    }
    pipeline.ok(&["run"]);
    assert_eq!(shown(&pipeline), both("1:9.0 2:", "1:9.0 2:-"));
    let tags = pipeline.ok(&["tag", "orders"]).stdout;
    assert!(!tags.contains("frazil_audit") && !tags.contains("held-"), "{tags}");
}

#[test]
fn a_check_that_makes_no_sense_shows_nothing() {
    let (pipeline, _) = shop("{ expect: 'totally >= 0' }");
    let ran = pipeline.run(&["run"]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.stderr.contains("cannot be asked of the table"), "{ran:?}");
    for (wrong, says) in [
        ("{ nulls: { a: 105% } }", "a share"),
        ("{ expct: 'a' }", "did you mean `expect`"),
        ("{ rows_like_source: 2 }", "between 0 and 1"),
    ] {
        pipeline.rewrite("sqlite:shop.db", "sqlite:dwh.db", &BTreeMap::new(), &[&stream(wrong)]);
        let ran = pipeline.run(&["run"]);
        assert_eq!(ran.code, Some(2), "{ran:?}");
        assert!(ran.stderr.contains(says), "{says}: {ran:?}");
    }
}
