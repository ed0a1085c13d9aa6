//! Source, lake and target are compared, and what somebody changed behind our back is found and set
//! right. Databases of two kinds, and tables of many shapes.

use serde_json::Value;

use crate::fixture::{self, Pipeline};
use crate::sync::{assert_same, change_orders, seed_orders, two_databases};

/// One line of JSON a pair.
fn compared(pipeline: &Pipeline, arguments: &[&str], code: i32) -> Vec<Value> {
    let arguments = [&["compare", "--output", "json"], arguments].concat();
    let ran = pipeline.run(&arguments);
    assert_eq!(ran.code, Some(code), "{ran:?}");
    ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Missing, surplus, different, and whether that is all.
fn counts(outcome: &Value) -> (u64, u64, u64) {
    assert_eq!(outcome["complete"], true, "{outcome}");
    let count = |name: &str| outcome[name].as_u64().unwrap();
    (count("missing"), count("surplus"), count("different"))
}

#[tokio::test]
async fn three_places_that_agree_are_equal() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "equal").await;
    seed_orders(&source, 3000).await;
    let pipeline = Pipeline::new(&source.url(), &target.url(), &["public.orders: { cursor: updated_at }"]);
    pipeline.ok(&["run"]);
    let outcomes = compared(&pipeline, &[], 0);
    assert_eq!(outcomes.len(), 2, "{outcomes:?}");
    for outcome in &outcomes {
        assert_eq!(counts(outcome), (0, 0, 0), "{outcome}");
        assert_eq!(outcome["rows"], serde_json::json!([3000, 3000]), "{outcome}");
        assert_eq!(outcome["left_out"], serde_json::json!([]), "{outcome}");
    }
    let ran = pipeline.ok(&["compare"]);
    assert_eq!(
        ran.stdout,
        "public.orders: source and lake are equal (3,000 rows)\npublic.orders: lake and target are equal (3,000 rows)\n"
    );
}

#[tokio::test]
async fn what_the_cursor_did_not_see_is_found_and_repaired() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "unseen").await;
    seed_orders(&source, 3000).await;
    let pipeline = Pipeline::new(&source.url(), &target.url(), &["public.orders: { cursor: updated_at }"]);
    pipeline.ok(&["run"]);
    // A delete, an update that forgot its timestamp, and a row from the past: no cursor sees them.
    source
        .run(
            "delete from orders where id in (7, 8);
             update orders set note = 'quietly' where id in (21, 22, 23);
             insert into orders (customer, amount, note, updated_at) values (1, 1, 'late', '2020-01-01')",
        )
        .await;
    pipeline.ok(&["run"]);
    let [outcome] = &compared(&pipeline, &["--between", "source,lake", "--keys", "9"], 1)[..] else {
        panic!()
    };
    assert_eq!(counts(outcome), (1, 2, 3), "{outcome}");
    let keys: Vec<_> = outcome["keys"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["difference"].as_str().unwrap(), row["id"].as_i64().unwrap()))
        .collect();
    let expected = [
        ("surplus", 7),
        ("surplus", 8),
        ("different", 21),
        ("different", 22),
        ("different", 23),
        ("missing", 3001),
    ];
    assert_eq!(keys, expected);

    let [outcome] = &compared(&pipeline, &["--between", "source,lake", "--repair"], 0)[..] else { panic!() };
    assert_eq!(outcome["repaired"], 6, "{outcome}");
    compared(&pipeline, &["--between", "source,lake"], 0);
    // The repair is a snapshot like any other: a load brings it on, and the position goes on from where it was.
    change_orders(&source, 1).await;
    pipeline.ok(&["run"]);
    assert_same(&source, &target, "select * from orders").await;
    fixture::judge(&pipeline.location("public", "orders"), &source.url(), "select * from orders");
}

#[tokio::test]
async fn what_was_changed_since_the_last_pass_is_no_fault() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "settle").await;
    seed_orders(&source, 1000).await;
    let pipeline = Pipeline::new(&source.url(), &target.url(), &["public.orders: { cursor: updated_at }"]);
    pipeline.ok(&["run"]);
    change_orders(&source, 2).await;
    source.run("delete from orders where id = 500").await;
    let between = ["--between", "source,lake"];
    let [outcome] = &compared(&pipeline, &between, 1)[..] else { panic!() };
    assert!(counts(outcome).2 > 100, "{outcome}");
    let [outcome] = &compared(&pipeline, &[&between[..], &["--settle"]].concat(), 1)[..] else { panic!() };
    assert_eq!(counts(outcome), (0, 1, 0), "only the delete stays: {outcome}");
}

#[tokio::test]
async fn a_target_that_somebody_changed_is_set_right() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "touched").await;
    seed_orders(&source, 2000).await;
    let pipeline = Pipeline::new(&source.url(), &target.url(), &["public.orders: { cursor: updated_at }"]);
    pipeline.ok(&["run"]);
    target
        .run(
            "delete from orders where id between 10 and 14;
             update orders set amount = -1 where id in (100, 1999);
             insert into orders select 9000 + id, customer, amount, note, updated_at from orders where id < 4",
        )
        .await;
    let between = ["--between", "lake,target"];
    let [outcome] = &compared(&pipeline, &between, 1)[..] else { panic!() };
    assert_eq!(counts(outcome), (5, 3, 2), "{outcome}");
    let applied = target.text("select snapshot_id from frazil_applied").await;
    let [outcome] = &compared(&pipeline, &[&between[..], &["--repair"]].concat(), 0)[..] else { panic!() };
    assert_eq!(outcome["repaired"], 10, "{outcome}");
    assert_same(&source, &target, "select * from orders").await;
    assert_eq!(target.text("select snapshot_id from frazil_applied").await, applied);
    compared(&pipeline, &[], 0);
}

/// What is wrong everywhere is found anywhere; only the range that was drawn is read, and only that is set right.
#[tokio::test]
async fn a_sample_is_a_range_of_keys() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "sampled").await;
    seed_orders(&source, 5000).await;
    source.run("create table words (word text primary key); insert into words values ('one')").await;
    let streams = [
        "public.orders: { change: id, cursor: id, mode: merge, where: 'customer > 0 or id = 1 -- all' }",
        "public.words: { change: full }",
    ];
    let pipeline = Pipeline::new(&source.url(), &target.url(), &streams);
    pipeline.ok(&["run"]);
    let orders = ["--select", "public.orders", "--sample", "500"];
    for outcome in compared(&pipeline, &orders, 0) {
        let rows: Vec<u64> = serde_json::from_value(outcome["rows"].clone()).unwrap();
        assert!(outcome["sample"] == true && counts(&outcome) == (0, 0, 0), "{outcome}");
        assert!(rows[0] == rows[1] && (300..=700).contains(&rows[0]), "{outcome}");
    }
    source
        .run("delete from orders where id % 50 = 7; update orders set note = 'quietly' where id % 50 = 8")
        .await;
    target.run("update orders set amount = -1 where id % 50 = 9").await;
    let between = ["--select", "public.orders", "--between", "source,lake"];
    let found = |more: &[&str]| counts(&compared(&pipeline, &[&between[..], more].concat(), 1)[0]);
    let (_, surplus, different) = found(&[]);
    let all = surplus + different;
    assert!(all > 190, "{all}");
    let (missing, surplus, different) = found(&["--sample", "500"]);
    assert!(missing == 0 && (5..=15).contains(&surplus) && (5..=15).contains(&different));
    let repaired = compared(&pipeline, &[&orders[..], &["--repair"]].concat(), 0);
    let repaired: Vec<u64> = repaired.iter().map(|outcome| outcome["repaired"].as_u64().unwrap()).collect();
    assert!(repaired.iter().all(|keys| (5..=30).contains(keys)), "{repaired:?}");
    let (missing, surplus, different) = found(&[]);
    assert_eq!((missing, surplus + different + repaired[0]), (0, all));
    let ran = pipeline.run(&["compare", "--select", "public.words", "--sample", "10"]);
    assert!(ran.code != Some(0) && ran.stderr.contains("a whole number or a date"), "{ran:?}");
    assert_eq!(pipeline.run(&["compare", "--sample", "0"]).code, Some(2));
}

#[tokio::test]
async fn deleted_rows_that_a_target_keeps_are_no_difference() {
    let Some(pg) = fixture::postgres().await else { return };
    for deletes in ["soft", "ignore"] {
        let (source, target) = two_databases(&pg, deletes).await;
        seed_orders(&source, 200).await;
        let stream = format!("public.orders: {{ change: full, deletes: {deletes} }}");
        let pipeline = Pipeline::new(&source.url(), &target.url(), &[&stream]);
        pipeline.ok(&["run"]);
        source.run("delete from orders where id < 50").await;
        pipeline.ok(&["run"]);
        compared(&pipeline, &[], 0);
        target.run("delete from orders where id = 60").await;
        let [outcome] = &compared(&pipeline, &["--between", "lake,target"], 1)[..] else { panic!() };
        assert_eq!(counts(outcome), (1, 0, 0), "{deletes}: {outcome}");
    }
}

/// From the configuration to the versions in the target, and what of them is compared.
#[tokio::test]
async fn versions_that_are_valid_now_are_compared() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "scd2").await;
    source.run("create table people (id int primary key, name text); insert into people values (1, 'ann'), (2, 'bob'), (3, 'cy')").await;
    let pipeline =
        Pipeline::new(&source.url(), &target.url(), &["public.people: { mode: scd2, change: full }"]);
    pipeline.ok(&["run"]);
    source.run("update people set name = 'anna' where id = 1; delete from people where id = 2; insert into people values (4, 'di')").await;
    pipeline.ok(&["run"]);
    pipeline.ok(&["run"]);
    let versions =
        "select id, name, _is_current, _valid_to is null, _valid_from < coalesce(_valid_to, 'infinity')
                    from people order by id, _valid_from";
    let expected = "1 | ann | f | f | t\n1 | anna | t | t | t\n2 | bob | f | f | t\n3 | cy | t | t | t\n4 | di | t | t | t";
    assert_eq!(target.text(versions).await, expected);
    compared(&pipeline, &[], 0);
    target.run("update people set name = 'nobody' where id = 4").await;
    let [outcome] = &compared(&pipeline, &["--between", "lake,target"], 1)[..] else { panic!() };
    assert_eq!(counts(outcome), (0, 0, 1), "{outcome}");
    let ran = pipeline.run(&["compare", "--between", "lake,target", "--repair"]);
    assert!(ran.stderr.contains("versions of rows are not repaired"), "{ran:?}");
    // Loading all of it anew ends the versions of rows that the lake does not have.
    target.run("insert into people values (5, 'eve', '2026-01-01', null, true)").await;
    pipeline.ok(&["run", "--full-refresh"]);
    compared(&pipeline, &[], 0);
    let ended = "select id, name, _is_current from people where id > 3 order by id, _valid_from, _is_current";
    assert_eq!(target.text(ended).await, "4 | di | t\n5 | eve | f");
}

#[tokio::test]
async fn rows_without_a_key_are_counted_one_by_one() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "keyless").await;
    source.run("create table log (at date, what text); insert into log select '2026-01-01', 'w' from generate_series(1, 50)").await;
    let pipeline = Pipeline::new(&source.url(), &target.url(), &["public.log: { mode: replace }"]);
    pipeline.ok(&["run"]);
    compared(&pipeline, &[], 0);
    target.run("insert into log values ('2026-01-01', 'w')").await;
    let [outcome] = &compared(&pipeline, &["--between", "lake,target"], 1)[..] else { panic!() };
    assert_eq!(counts(outcome), (0, 0, 1), "one row more of a kind: {outcome}");
    let ran = pipeline.run(&["compare", "--between", "lake,target", "--repair"]);
    assert!(ran.stderr.contains("without a key"), "{ran:?}");
}

#[tokio::test]
async fn databases_of_two_kinds_are_compared_through_the_lake() {
    let Some(pg) = fixture::postgres().await else { return };
    let source = pg.database("kinds").await;
    seed_orders(&source, 500).await;
    let folder = tempfile::tempdir().unwrap();
    let target = format!("sqlite://{}", folder.path().join("dwh.db").display());
    let pipeline = Pipeline::new(&source.url(), &target, &["public.orders: { cursor: updated_at }"]);
    pipeline.ok(&["run"]);
    let outcomes = compared(&pipeline, &[], 0);
    assert_eq!(outcomes[1]["rows"], serde_json::json!([500, 500]));
    assert_eq!(outcomes[1]["left_out"], serde_json::json!([]), "{outcomes:?}");
    let file = rusqlite::Connection::open(folder.path().join("dwh.db")).unwrap();
    file.execute_batch("update orders set amount = amount + 1 where id = 3").unwrap();
    let [outcome] = &compared(&pipeline, &["--between", "lake,target", "--repair"], 0)[..] else { panic!() };
    assert_eq!(counts(outcome), (0, 0, 1), "{outcome}");
    compared(&pipeline, &[], 0);
}

#[tokio::test]
async fn what_cannot_be_compared_says_why() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "refused").await;
    seed_orders(&source, 10).await;
    let pipeline =
        Pipeline::new(&source.url(), &target.url(), &["public.orders: { mode: append, cursor: id }"]);
    let ran = pipeline.run(&["compare"]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.stderr.contains("the lake has no such table yet"), "{ran:?}");
    pipeline.ok(&["run"]);
    let ran = pipeline.run(&["compare", "--between", "source,lake"]);
    assert!(ran.stderr.contains("an append table keeps every state"), "{ran:?}");
}
