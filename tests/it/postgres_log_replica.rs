//! `change: log` of a replica: what it shows is what its primary has committed, whatever is open there; a promotion
//! is no gap, and another server is one.
//!
//! Postgres decodes its log on a replica from version 16 on: `versions.rs` runs these tests on 17 and 18.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::fixture::{self, Database, Pipeline, Postgres, Replica};
use crate::postgres_log_model::{DROP_SLOTS, Dice, write};
use crate::sync::{assert_same, two_databases};

const T: &str = "select * from t";
const STREAM: &str = "public.t: { change: log }";
const SCHEMA: &str = "create table t (id int primary key, a text);
                      insert into t select i, 'row ' || i from generate_series(1, 1000) i";

/// Whether the server of this run decodes its log on a replica.
async fn decodes(source: &Database) -> bool {
    let decodes = source.text("select current_setting('server_version_num')::int >= 160000").await == "t";
    if !decodes {
        eprintln!("skipped: the server is older than Postgres 16; versions.rs runs this on newer ones");
    }
    decodes
}

/// Lets the primary say again and again which transactions are open, for slots that begin on a replica.
struct Telling {
    stop: Arc<AtomicBool>,
    telling: tokio::task::JoinHandle<()>,
}

impl Telling {
    async fn of(primary: &Database) -> Self {
        let (client, stop) = (primary.client().await, Arc::new(AtomicBool::new(false)));
        let over = stop.clone();
        let telling = tokio::spawn(async move {
            while !over.load(Ordering::Relaxed) {
                client.batch_execute("select pg_log_standby_snapshot()").await.unwrap();
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        Self { stop, telling }
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.telling.await.unwrap();
    }
}

/// Runs, while others go on: the reports.
async fn run(pipeline: &Pipeline, arguments: &[&str]) -> Vec<Value> {
    let all = [arguments, &["--output", "json"]].concat();
    let command = pipeline.command(&all).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let output = tokio::task::spawn_blocking(|| command.wait_with_output().unwrap()).await.unwrap();
    let ran = fixture::ran(output);
    assert_eq!(ran.code, Some(0), "{arguments:?}\n{}{}", ran.stdout, ran.stderr);
    ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The same, for the first time on this replica.
async fn first_run(pipeline: &Pipeline, primary: &Database) -> Vec<Value> {
    let telling = Telling::of(primary).await;
    let reports = run(pipeline, &["run"]).await;
    telling.end().await;
    reports
}

fn extent(reports: &[Value]) -> &str {
    reports[0]["extract"]["extent"].as_str().unwrap()
}

fn noted(reports: &[Value], text: &str) -> bool {
    reports[0]["extract"]["notes"]
        .as_array()
        .unwrap()
        .iter()
        .any(|note| note.as_str().unwrap().contains(text))
}

/// The statement with which `frazil check` says the publication is to be made.
fn wanted_publication(pipeline: &Pipeline) -> String {
    let said = pipeline.run(&["check"]).stdout;
    let from = said.find("CREATE PUBLICATION").unwrap_or_else(|| panic!("{said}"));
    said[from..].split('`').next().unwrap().to_owned()
}

/// Makes what a replica cannot.
async fn publish(pipeline: &Pipeline, primary: &Database, replica: &Replica) {
    primary.run(&wanted_publication(pipeline)).await;
    replica.url(primary).await;
}

/// Lets the replica be a server of its own.
async fn promote(there: &Database) {
    assert_eq!(there.text("select pg_promote()").await, "t");
}

/// Lets the replica say what it needs, so that nothing that it reads is taken away.
async fn give_feedback(there: &Database) {
    set(there, "hot_standby_feedback", "on").await;
}

/// Changes a setting of a server.
async fn set(there: &Database, name: &str, value: &str) {
    there.run(&format!("alter system set {name} = '{}'", value.replace('\'', "''"))).await;
    there.run("select pg_reload_conf()").await;
}

/// Lets the replica stay where it is.
async fn follow_nobody(there: &Database) {
    set(there, "primary_conninfo", "").await;
    while there.text("select count(*) from pg_stat_wal_receiver").await != "0" {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A database, and a replica of its server.
async fn replicated(pg: &Postgres, name: &str) -> Option<(Database, Database, Replica)> {
    let (source, target) = two_databases(pg, name).await;
    if !decodes(&source).await {
        return None;
    }
    source.run(SCHEMA).await;
    let replica = Replica::of(pg)?;
    replica.url(&source).await;
    Some((source, target, replica))
}

/// The stream follows the primary; the replica keeps its slot, and takes over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_a_replica_keeps_outlives_a_failover() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "log_failover").await;
    if source.text("select current_setting('server_version_num')::int >= 170000").await != "t" {
        return eprintln!(
            "skipped: the server is older than Postgres 17; versions.rs runs this on newer ones"
        );
    }
    source.run(SCHEMA).await;
    let Some(replica) = Replica::of(&pg) else { return };
    let there = replica.database(&source);
    replica.url(&source).await;
    let own = format!("own_{}", source.name());
    source.run(&format!("select pg_create_physical_replication_slot('{own}')")).await;
    set(&there, "primary_slot_name", &own).await;
    give_feedback(&there).await;
    let follows = there.text("show primary_conninfo").await;
    set(&there, "primary_conninfo", &format!("{follows} dbname=postgres")).await;
    set(&there, "sync_replication_slots", "on").await;

    let pipeline = Pipeline::new(&source.url(), &target.url(), &[STREAM]);
    run(&pipeline, &["run"]).await;
    let kept = "from pg_replication_slots where database = current_database() and failover and not temporary";
    let (count, confirmed) =
        (format!("select count(*) {kept}"), format!("select confirmed_flush_lsn {kept}"));
    // It takes a slot over once the primary needs nothing older for it than the replica has, and then follows it.
    let mut id = 5000;
    while there.text(&count).await == "0" {
        id += 1;
        source.run(&format!("insert into t values ({id}, 'new'); select pg_log_standby_snapshot()")).await;
        assert_eq!(extent(&run(&pipeline, &["run"]).await), "log");
        assert!(id < 5100, "the replica does not take the slot over");
    }
    while there.text(&confirmed).await != source.text(&confirmed).await {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    promote(&there).await;
    there.run("insert into t values (3000, 'after'); delete from t where id < 10").await;
    pipeline.rewrite(&there.url(), &target.url(), &Default::default(), &[STREAM]);
    let reports = run(&pipeline, &["run"]).await;
    assert!(extent(&reports) == "log" && reports[0]["extract"]["read"] == 10, "{reports:#?}");
    assert_same(&there, &target, T).await;
    there.run("update t set a = 'again' where id = 3000").await;
    assert_eq!(extent(&run(&pipeline, &["run"]).await), "log");
    assert_same(&there, &target, T).await;
    // The primary that was comes back without that.
    source.run("update t set a = 'alone' where id = 20").await;
    pipeline.rewrite(&source.url(), &target.url(), &Default::default(), &[STREAM]);
    let reports = run(&pipeline, &["run"]).await;
    assert!(extent(&reports) == "whole" && noted(&reports, "failed over"), "{reports:#?}");
    assert_same(&source, &target, T).await;
    drop(replica);
    source.run(&format!("select pg_drop_replication_slot('{own}')")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_is_followed_through_its_promotion() {
    let Some(pg) = fixture::postgres().await else { return };
    let Some((source, target, replica)) = replicated(&pg, "log_replica").await else { return };
    let there = replica.database(&source);
    let pipeline = Pipeline::new(&there.url(), &target.url(), &[STREAM]);
    let checked = pipeline.run(&["check"]).stdout;
    for part in ["a replica cannot make the publication", "hot_standby_feedback", "primary_slot_name"] {
        assert!(checked.contains(part), "{part}: {checked}");
    }
    let refused = pipeline.run(&["run"]);
    assert!(refused.code == Some(2) && refused.stderr.contains("on the primary"), "{refused:?}");
    let suggested = pipeline.ok(&["setup"]).stdout;
    assert!(suggested.contains("suggested: on the primary, run `CREATE PUBLICATION"), "{suggested}");
    publish(&pipeline, &source, &replica).await;
    give_feedback(&there).await;

    // An open transaction of the primary holds up a slot, and that is said.
    let open = source.client().await;
    open.batch_execute("begin; insert into t values (5000, 'open')").await.unwrap();
    replica.url(&source).await;
    let limited = format!("{}?statement_timeout=2", there.url());
    pipeline.rewrite(&limited, &target.url(), &Default::default(), &[STREAM]);
    let waiting = pipeline.run(&["run"]);
    pipeline.rewrite(&there.url(), &target.url(), &Default::default(), &[STREAM]);
    assert!(waiting.code == Some(1) && waiting.stderr.contains("pg_log_standby_snapshot"), "{waiting:?}");
    open.batch_execute("rollback").await.unwrap();
    assert_eq!(there.text("select count(*) from pg_replication_slots").await, "0");

    let first = first_run(&pipeline, &source).await;
    assert_eq!(extent(&first), "whole", "{first:#?}");
    assert_same(&source, &target, T).await;
    assert!(!pipeline.run(&["check"]).stdout.contains("hot_standby_feedback"));
    let changes = "update t set a = 'changed' where id % 10 = 0; delete from t where id % 10 = 1;
                   insert into t values (11, 'back'); update t set id = -id where id = 25";
    for (sql, comes) in
        [(changes, "log"), ("truncate t; insert into t values (1, 'one')", "whole"), ("select", "log")]
    {
        source.run(sql).await;
        replica.url(&source).await;
        let reports = run(&pipeline, &["run"]).await;
        assert_eq!(extent(&reports), comes, "{sql}: {reports:#?}");
        assert_same(&source, &target, T).await;
    }
    // One that pretends to be older is refused.
    let older = format!("{}?options=-c%20frazil.pretended_version%3D150014", there.url());
    let refused = Pipeline::new(&older, &target.url(), &[STREAM]).run(&["run"]);
    assert!(refused.stderr.contains("needs Postgres 16"), "{refused:?}");

    source.run("insert into t values (2, 'before')").await;
    replica.url(&source).await;
    promote(&there).await;
    there.run("insert into t values (3, 'after'); update t set a = 'after' where id = 1").await;
    let promoted = run(&pipeline, &["run"]).await;
    assert!(extent(&promoted) == "log" && promoted[0]["extract"]["rows"] == 3, "{promoted:#?}");
    assert_same(&there, &target, T).await;
    there.run("delete from t where id = 2").await;
    let later = run(&pipeline, &["run"]).await;
    assert_eq!(extent(&later), "log", "{later:#?}");
    assert_same(&there, &target, T).await;
    fixture::judge(&pipeline.location("public", "t"), &there.url(), T);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_replica_that_was_promoted_is_another_server() {
    let Some(pg) = fixture::postgres().await else { return };
    let Some((source, target, replica)) = replicated(&pg, "log_other").await else { return };
    let Some(other) = Replica::of(&pg) else { return };
    let (there, elsewhere) = (replica.database(&source), other.database(&source));
    let pipeline = Pipeline::new(&there.url(), &target.url(), &[STREAM]);
    publish(&pipeline, &source, &replica).await;
    first_run(&pipeline, &source).await;
    // The other one has a slot of that name, and comes less far before it is promoted.
    let slot = there.text("select slot_name from pg_replication_slots").await;
    let telling = Telling::of(&source).await;
    other.url(&source).await;
    elsewhere.run(&format!("select pg_create_logical_replication_slot('{slot}', 'pgoutput')")).await;
    telling.end().await;
    follow_nobody(&elsewhere).await;
    source.run("insert into t values (2000, 'the other one never had it')").await;
    replica.url(&source).await;
    assert_eq!(extent(&run(&pipeline, &["run"]).await), "log");
    assert_same(&source, &target, T).await;
    promote(&elsewhere).await;
    elsewhere.run("delete from t where id = 1").await;
    elsewhere.run("insert into t select i, 'elsewhere' from generate_series(3000, 9000) i").await;
    pipeline.rewrite(&elsewhere.url(), &target.url(), &Default::default(), &[STREAM]);
    let reports = run(&pipeline, &["run"]).await;
    assert!(extent(&reports) == "whole" && noted(&reports, "another server"), "{reports:#?}");
    assert_same(&elsewhere, &target, T).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_the_primary_took_the_rows_from_is_a_gap() {
    let Some(pg) = fixture::postgres().await else { return };
    let Some((origin, target, primary)) = replicated(&pg, "log_conflict").await else { return };
    // Nobody else has slots there, which would keep the rows.
    let source = primary.database(&origin);
    promote(&source).await;
    let Some(replica) = primary.of_this(&pg) else { return };
    replica.url(&source).await;
    let there = replica.database(&source);
    let fails = "public.t: { change: log, on_gap: fail }";
    let pipeline = Pipeline::new(&there.url(), &target.url(), &[fails]);
    publish(&pipeline, &source, &replica).await;
    first_run(&pipeline, &source).await;
    for sql in
        ["create table gone (id int)", "drop table gone", "vacuum pg_class", "insert into t values (0, '')"]
    {
        source.run(sql).await;
    }
    replica.url(&source).await;
    let refused = pipeline.run(&["run"]);
    assert!(refused.code == Some(1) && refused.stderr.contains("hot_standby_feedback"), "{refused:?}");
    pipeline.rewrite(&there.url(), &target.url(), &Default::default(), &[STREAM]);
    let answered = first_run(&pipeline, &source).await;
    assert!(extent(&answered) == "whole" && noted(&answered, "removed rows that it needs"), "{answered:#?}");
    assert_same(&source, &target, T).await;
    source.run("delete from t where id < 10").await;
    replica.url(&source).await;
    assert_eq!(extent(&run(&pipeline, &["run"]).await), "log");
    assert_same(&source, &target, T).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_has_replayed_nothing_yet_does_not_know_what_is_there() {
    let Some(pg) = fixture::postgres().await else { return };
    let Some((origin, target, primary)) = replicated(&pg, "nothing_yet").await else { return };
    // Nobody else writes there.
    let source = primary.database(&origin);
    promote(&source).await;
    source.run("create table late (id int primary key, updated_at timestamptz not null default now())").await;
    set(&source, "autovacuum", "off").await;
    source.run("checkpoint").await;
    let Some(replica) = primary.of_this(&pg) else { return };
    replica.url(&source).await;
    let there = replica.database(&source);
    let followed = there.text("show primary_conninfo").await;
    follow_nobody(&there).await;
    assert_eq!(there.text("select pg_last_xact_replay_timestamp()").await, "∅");
    source.run("insert into late values (1)").await;
    let stream = "public.late: { change: timestamp, cursor: updated_at }";
    let pipeline = Pipeline::new(&there.url(), &target.url(), &[stream]);
    pipeline.ok(&["run"]);
    set(&there, "primary_conninfo", &followed).await;
    replica.url(&source).await;
    pipeline.ok(&["run"]);
    assert_same(&source, &target, "select id from late").await;
}

/// Tables whose first reads each meet transactions that are open.
const TABLES: i64 = 6;
const ROWS: i64 = 200;

/// Amounts move between two rows of a table, and the transaction stays open between them.
fn transaction(dice: &mut Dice) -> String {
    let (table, row, amount, pause) = (dice.roll(TABLES), dice.roll(ROWS), dice.roll(50), dice.roll(300));
    format!(
        "begin; update t{table} set amount = amount - {amount} where id = {row};
         select pg_sleep({pause} / 1000.0);
         update t{table} set amount = amount + {amount} where id = {row} + {ROWS}; commit"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_that_are_open_at_the_first_read_arrive() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "log_open").await;
    if !decodes(&source).await {
        return;
    }
    let source = Arc::new(source);
    for table in 0..TABLES {
        source
            .run(&format!(
                "create table t{table} (id int primary key, amount int not null);
                 insert into t{table} select i, 100 from generate_series(0, {ROWS} * 2 - 1) i"
            ))
            .await;
    }
    let Some(replica) = Replica::of(&pg) else { return };
    replica.url(&source).await;
    let there = replica.database(&source);
    give_feedback(&there).await;
    source.run("create publication everything for all tables with (publish_via_partition_root = true)").await;
    replica.url(&source).await;
    let streams: Vec<String> = (0..TABLES)
        .map(|table| format!("public.t{table}: {{ change: log, publication: everything, group: open }}"))
        .collect();
    let streams: Vec<&str> = streams.iter().map(String::as_str).collect();
    let pipeline = Pipeline::new(&there.url(), &target.url(), &streams);
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (1..=6)
        .map(|seed| {
            let (source, stop) = (source.clone(), stop.clone());
            tokio::spawn(async move { write(&source, transaction, seed * 31, Duration::ZERO, stop).await })
        })
        .collect();
    let first = first_run(&pipeline, &source).await;
    assert_eq!(first.len() as i64, TABLES);
    for _ in 0..2 {
        for report in run(&pipeline, &["run"]).await {
            assert_eq!(report["extract"]["extent"], "log", "{report}");
        }
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        assert!(writer.await.unwrap() > 5, "hardly anything was written");
    }
    replica.url(&source).await;
    for report in run(&pipeline, &["run"]).await {
        assert_eq!(report["extract"]["extent"], "log", "{report}");
        assert!(report["checkpoint"]["checkpoint"].is_u64(), "{report}");
    }
    for table in 0..TABLES {
        assert_same(&source, &target, &format!("select * from t{table}")).await;
        let sum = format!("select sum(amount) from t{table}");
        for snapshot in pipeline.json(&["snapshots", &format!("public.t{table}")]) {
            let id = snapshot["snapshot"].to_string().trim_matches('"').to_owned();
            let seen = pipeline.ok(&["query", "--as-of", &id, "--output", "csv", &sum]).stdout;
            let expected = (ROWS * 200).to_string();
            assert_eq!(seen.lines().nth(1), Some(expected.as_str()), "t{table} at {id}");
        }
    }
    there.run(DROP_SLOTS).await;
}
