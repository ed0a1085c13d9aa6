//! Several streams in one run: each ends in its own way, and the exit code says how it went.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use crate::fixture::{self, Pipeline, Ran};
use crate::sync::{assert_same, change_orders, seed_orders, two_databases};

/// What became of each stream, in the order of their names.
fn verdicts(ran: &Ran) -> String {
    let mut lines: Vec<String> = ran
        .stdout
        .lines()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|e| panic!("{e}: {ran:?}"))
        })
        .map(|report| {
            format!("{} {}", report["stream"].as_str().unwrap(), report["verdict"].as_str().unwrap())
        })
        .collect();
    lines.sort();
    lines.join(", ")
}

#[tokio::test]
async fn one_fails_one_meets_another_runner_and_one_succeeds() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "mixed").await;
    seed_orders(&source, 200).await;
    source.run("create table a (id int primary key, v text); insert into a values (1, 'x'); create table b (id int primary key)").await;
    let streams =
        ["public.orders: { cursor: updated_at }", "public.a: {}", "public.b: { cursor: no_such_column }"];
    let pipeline = Pipeline::new(&source.url(), &target.url(), &streams);
    // What failed last time is remembered for the user, not for the lake.
    let history = pipeline.folder().join("state").display().to_string();
    let pipeline = pipeline.env("XDG_STATE_HOME", &history);
    pipeline.ok(&["run", "--select", "public.orders"]);
    change_orders(&source, 1).await;

    let files = |pipeline: &Pipeline| {
        let of_orders = |path: &PathBuf| path.display().to_string().contains("orders");
        pipeline.parquet_files().iter().filter(|path| of_orders(path)).count()
    };
    let before = files(&pipeline);
    // It has read, and waits before it commits; meanwhile another runner is done with the same rows.
    let slow = pipeline
        .command(&["run", "--output", "json", "--parallel", "3", "--memory", "512MiB"])
        .env("FAILPOINTS", "before_commit=sleep(8000)")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    while files(&pipeline) == before {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let quick = pipeline.run(&["run", "--select", "public.orders", "--output", "json"]);
    assert_eq!((quick.code, verdicts(&quick).as_str()), (Some(0), "public.orders done"), "{quick:?}");
    let slow = fixture::ran(slow.wait_with_output().unwrap());
    assert_eq!(slow.code, Some(3), "{slow:?}");
    assert_eq!(verdicts(&slow), "public.a done, public.b failed, public.orders conflict", "{slow:?}");
    assert_same(&source, &target, "select * from orders").await;
    assert_same(&source, &target, "select * from a").await;

    // Only what fails for good fails again.
    let again = pipeline.run(&["run", "--output", "json"]);
    assert_eq!(again.code, Some(3), "{again:?}");
    assert!(verdicts(&again).ends_with("public.b failed, public.orders nothing_to_do"), "{again:?}");
    let only = pipeline.run(&["run", "--output", "json", "--failed"]);
    assert_eq!((only.code, verdicts(&only).as_str()), (Some(2), "public.b failed"), "{only:?}");
}

#[tokio::test]
async fn eight_streams_four_at_a_time() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "eight").await;
    let names: Vec<String> = (1..=8).map(|i| format!("t{i}")).collect();
    for name in &names {
        source
            .run(&format!(
                "create table {name} (id int primary key, v text, updated_at timestamptz default now());
                 create index on {name} (updated_at);
                 insert into {name} select g, '{name} ' || g from generate_series(1, 3000) g"
            ))
            .await;
    }
    let pipeline = Pipeline::new(&source.url(), &target.url(), &["'public.t*': {}"]);
    for round in 0..2 {
        let ran = pipeline.ok(&["run", "--parallel", "4", "--memory", "512MiB", "--output", "json"]);
        assert_eq!(verdicts(&ran).matches(" done").count(), 8, "{ran:?}");
        for name in &names {
            assert_same(&source, &target, &format!("select * from {name}")).await;
            source
                .run(&format!(
                    "update {name} set v = 'round {round}', updated_at = now() where id % 5 = {round}"
                ))
                .await;
        }
    }
    pipeline.ok(&["run", "--parallel", "4", "--memory", "512MiB"]);
    fixture::judge(&pipeline.location("public", "t8"), &source.url(), "select * from t8");
}
