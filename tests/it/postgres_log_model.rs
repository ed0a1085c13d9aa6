//! `change: log` while others write, and while it is killed: what is in the lake in the end is what is in
//! the source, and what it showed in between was there too.
//!
//! Writers move amounts between accounts, so that every state of the table has the same sum; a state that
//! never was has another one.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::fixture::{self, Database, Pipeline};
use crate::sync::{assert_same, two_databases};

const ACCOUNTS: i64 = 300;
const SUM: i64 = ACCOUNTS * 100;
/// Snapshots that are looked at in the end, of all.
const LOOKED_AT: usize = 10;

/// A table that is altered while it is looked at is read by the next try.
const RUN: [&str; 3] = ["run", "--retry-for", "1m"];

/// A database with a slot cannot be dropped.
pub(crate) const DROP_SLOTS: &str = "select pg_drop_replication_slot(slot_name) from pg_replication_slots where database = current_database()";

/// Numbers that look random and come again.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self, sides: i64) -> i64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % sides as u64) as i64
    }
}

async fn seed(source: &Database) {
    source
        .run(&format!(
            "create table accounts (id bigint primary key, amount bigint not null, note text);
             alter table accounts alter note set storage external;
             insert into accounts select i, 100, repeat('n' || i, 1000) from generate_series(1, {ACCOUNTS}) i;
             create function move(a bigint, b bigint, n bigint) returns void language plpgsql as $$ begin
                 update accounts set amount = amount - n where id = a;
                 if not found then raise 'nobody'; end if;
                 update accounts set amount = amount + n where id = b;
                 if not found then raise 'nobody'; end if;
             end $$;
             create table parts (id bigint primary key, v int not null, filler text);
             insert into parts select i, 0, repeat('x', 100) from generate_series(1, 20000) i;
             analyze"
        ))
        .await;
}

/// One transaction: amounts move, rows come and go, keys change; some of it is taken back.
fn transaction(dice: &mut Dice) -> String {
    let (a, b, amount) = (dice.roll(ACCOUNTS) + 1, dice.roll(ACCOUNTS) + 1, dice.roll(50));
    let row = |n: i64| format!("(select id from accounts where id % 1000 = {n} order by id limit 1)");
    let mut sql =
        format!("begin isolation level repeatable read; select move({}, {}, {amount});", row(a), row(b));
    sql += &match dice.roll(8) {
        0 => format!("insert into accounts values ({}, 0, 'new');", 1_000_000 + dice.roll(1 << 40)),
        1 => "delete from accounts where id > 1000000 and id % 3 = 1 and amount = 0;".to_owned(),
        2 => format!("update accounts set id = id + 1000, note = 'moved' where id = {};", row(a)),
        3 => {
            format!("update accounts set note = repeat('m', {}) where id = {};", 10 + dice.roll(5000), row(b))
        }
        4 => "savepoint s; update accounts set amount = 0; delete from accounts; rollback to s;".to_owned(),
        5 => format!("update parts set v = v + 1 where id between {a} * 50 and {a} * 50 + 40;"),
        6 => format!(
            "delete from parts where id = {}; insert into parts values ({}, 1, 'again') on conflict do nothing;",
            a * 7,
            b * 9
        ),
        _ => String::new(),
    };
    sql + if dice.roll(10) == 0 { "rollback" } else { "commit" }
}

/// Writes until it is told to stop, and says how many transactions it tried. Those that meet each other may fail:
/// then nothing of them counts.
pub(crate) async fn write(
    source: &Database,
    transaction: fn(&mut Dice) -> String,
    seed: u64,
    pause: Duration,
    stop: Arc<AtomicBool>,
) -> u64 {
    let (client, mut dice, mut done) = (source.client().await, Dice(seed), 0);
    while !stop.load(Ordering::Relaxed) {
        if client.batch_execute(&transaction(&mut dice)).await.is_err() {
            let _ = client.batch_execute("rollback").await;
        }
        done += 1;
        tokio::time::sleep(pause).await;
    }
    done
}

/// Adds, renames and drops columns until it is told to stop, and says how often.
async fn alter(source: &Database, stop: Arc<AtomicBool>) -> u64 {
    let (client, mut done) = (source.client().await, 0);
    // Who waits for a lock keeps all others waiting.
    client.batch_execute("set lock_timeout = '200ms'").await.unwrap();
    while !stop.load(Ordering::Relaxed) {
        let sql = match done % 6 {
            0 => "alter table parts add column extra int",
            1 => "update parts set extra = id where id % 50 = 0",
            2 => "alter table parts rename column extra to more",
            3 => "update parts set more = more + 1, filler = 'short' where id % 40 = 0",
            4 => "alter table parts add column filled int not null default 7",
            _ => "alter table parts drop column filled; alter table parts drop column more",
        };
        done += u64::from(client.batch_execute(sql).await.is_ok());
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    done
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_doubled_while_others_write_and_it_is_killed() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "log_model").await;
    let source = Arc::new(source);
    seed(&source).await;
    // Portions that take some transactions each.
    let streams = [
        "public.accounts: { change: log, portion: 64KiB }",
        "public.parts: { change: log, portion: 512KiB, dropped_columns: drop }",
    ];
    let pipeline = Pipeline::new(&source.url(), &target.url(), &streams);
    let stop = Arc::new(AtomicBool::new(false));
    let alters = {
        let (source, stop) = (source.clone(), stop.clone());
        tokio::spawn(async move { alter(&source, stop).await })
    };
    let writers: Vec<_> = [11, 23]
        .map(|seed| {
            let (source, stop) = (source.clone(), stop.clone());
            tokio::spawn(
                async move { write(&source, transaction, seed, Duration::from_millis(20), stop).await },
            )
        })
        .into();
    // Killed in the first read and where it ends, again and again, and then in passes.
    let mut killed = 0;
    for faults in
        ["before_commit=return(kill)", "after_commit=1*off->return(kill)", "after_commit=3*off->return(kill)"]
    {
        pipeline.dies(&["run"], faults);
    }
    pipeline.ok(&RUN);
    for faults in [
        "before_acknowledge=return(kill)",
        "before_commit=1*off->return(kill)",
        "after_commit=return(kill)",
        "in_load_transaction=return(kill)",
        "before_acknowledge=1*off->return(kill)",
    ] {
        // Whether a second table has changed just now is chance.
        killed += i32::from(pipeline.run_with_faults(&["run"], faults).code != Some(0));
        pipeline.ok(&RUN);
    }
    assert!(killed >= 3, "{killed} were killed");
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        assert!(writer.await.unwrap() > 20, "hardly anything was written");
    }
    assert!(alters.await.unwrap() > 3, "the tables hardly changed");
    pipeline.ok(&RUN);
    let last = pipeline.json(&["run"]);
    for report in &last {
        assert_eq!(report["extract"]["extent"], "log", "{report}");
    }
    assert_same(&source, &target, "select * from accounts").await;
    // The target keeps columns that are gone.
    let columns = "select string_agg(quote_ident(column_name), ', ') from information_schema.columns
                   where table_name = 'parts'";
    let columns = source.text(columns).await;
    assert_same(&source, &target, &format!("select {columns} from parts")).await;
    for table in ["accounts", "parts"] {
        let location = pipeline.location("public", table);
        fixture::judge(&location, &source.url(), &format!("select * from {table}"));
    }
    let listed = pipeline.json(&["snapshots", "accounts"]);
    let every = listed.len().div_ceil(LOOKED_AT);
    for snapshot in listed.iter().step_by(every) {
        let id = snapshot["snapshot"].to_string().trim_matches('"').to_owned();
        let sum = "select sum(amount) as s from accounts";
        let seen = pipeline.ok(&["query", "--as-of", &id, "--output", "csv", sum]).stdout;
        assert_eq!(seen.lines().nth(1), Some(SUM.to_string().as_str()), "snapshot {id}: {seen}");
    }
    source.run(DROP_SLOTS).await;
}

/// The first read and the passes after it, each killed somewhere, while `pgbench` writes as fast as it can.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_hand_over_holds_under_full_load() {
    let Some(pg) = fixture::postgres().await else { return };
    let Some(pgbench) = fixture::postgres_programs().map(|folder| folder.join("pgbench")) else { return };
    if !pgbench.is_file() {
        return fixture::skip("pgbench");
    }
    let (source, target) = two_databases(&pg, "pgbench").await;
    let bench = |arguments: &[&str]| {
        let mut command = Command::new(&pgbench);
        command.args(arguments).arg(source.url());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    assert!(bench(&["--initialize", "--quiet"]).status().unwrap().success());
    let streams = [
        "public.pgbench_accounts: { change: log, portion: 2MiB }",
        "public.pgbench_tellers: { change: log }",
        "public.pgbench_branches: { change: log }",
    ];
    let pipeline = Pipeline::new(&source.url(), &target.url(), &streams);
    let minutes = ["--client", "4", "--time", "600", "--max-tries", "1000"];
    let mut load = Killed(bench(&minutes).spawn().unwrap());
    for faults in [
        "after_evolution=return(kill)",
        "before_commit=return(kill)",
        "after_commit=2*off->return(kill)",
        "before_acknowledge=1*off->return(kill)",
        "in_load_transaction=return(kill)",
    ] {
        pipeline.dies(&["run", "--parallel", "1"], faults);
    }
    pipeline.ok(&RUN);
    for faults in ["before_commit=return(kill)", "after_commit=return(kill)"] {
        pipeline.dies(&["run"], faults);
    }
    assert!(load.0.try_wait().unwrap().is_none(), "nothing was written any more");
    drop(load);
    // What a client had sent may still be under way.
    let busy =
        "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()
                and application_name = 'pgbench'";
    while source.text(busy).await != "0" {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for report in &pipeline.json(&["run"]) {
        assert_eq!(report["extract"]["extent"], "log", "{report}");
    }
    for table in ["pgbench_accounts", "pgbench_tellers", "pgbench_branches"] {
        assert_same(&source, &target, &format!("select * from {table}")).await;
    }
    assert_ne!(source.text("select count(*) from pgbench_history").await, "0");
    // DuckDB reads `char` without its blanks.
    let accounts = "select aid, bid, abalance, rpad(filler, 84) as filler from pgbench_accounts";
    fixture::judge(&pipeline.location("public", "pgbench_accounts"), &source.url(), accounts);
    source.run(DROP_SLOTS).await;
}

/// Ends with its test.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
