//! `group:`: at each checkpoint the tables of a group are what they were together in the source, while others write
//! to all of them, passes are killed, and tables are emptied and altered.
//!
//! Every transaction moves an amount from an account of one table to one of another, and writes that down in a
//! third. So in a state that was, each account has what the ledger says, and all have the same sum. How many
//! transactions were committed before a place in the log is asked of the server itself, by a slot that nobody else
//! reads.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::fixture::{self, Database, Pipeline};
use crate::postgres_log_model::{DROP_SLOTS, Dice, write};
use crate::serve::{PATIENCE, Server};

const ACCOUNTS: i64 = 200;
const STREAMS: [&str; 3] = [
    "public.left_accounts: { change: log, group: bank, commit_interval: 1s, portion: 64KiB, commit_bytes: 1MiB }",
    "public.right_accounts: { change: log, group: bank, commit_interval: 1s, commit_bytes: 256KiB }",
    "public.ledger: { change: log, group: bank, commit_interval: 1s }",
];
const TABLES: [&str; 3] = ["left_accounts", "right_accounts", "ledger"];
const SYNC: [&str; 3] = ["sync", "--retry-for", "1m"];
/// Checkpoints that are looked at, of all.
const LOOKED_AT: usize = 6;

/// What is wrong at a state: accounts that do not have what the ledger says; then the sum, and how many moves.
const STATE: &str = "select
      (select count(*) from left_accounts a
         left join (select from_left as id, sum(amount) as moved from ledger group by from_left) m on m.id = a.id
         where a.amount <> 100 - coalesce(m.moved, 0))
    + (select count(*) from right_accounts a
         left join (select to_right as id, sum(amount) as moved from ledger group by to_right) m on m.id = a.id
         where a.amount <> 100 + coalesce(m.moved, 0)) as wrong,
      (select sum(amount) from left_accounts) + (select sum(amount) from right_accounts) as total,
      (select count(*) from ledger) as moves";

async fn seed(source: &Database) {
    let sql = "select pg_create_logical_replication_slot('witness_' || current_database(), 'pgoutput')";
    source
        .run(&format!(
            "create table left_accounts (id bigint primary key, amount bigint not null, note text);
             create table right_accounts (id bigint primary key, amount bigint not null);
             create table ledger (id bigint generated always as identity primary key,
                 from_left bigint not null, to_right bigint not null, amount bigint not null);
             create publication witness for table ledger;
             insert into left_accounts select i, 100, 'account ' || i from generate_series(1, {ACCOUNTS}) i;
             insert into right_accounts select i, 100 from generate_series(1, {ACCOUNTS}) i;
             create function move(l bigint, r bigint, n bigint, turn int) returns void language plpgsql as $$ begin
                 for i in turn..turn + 2 loop
                     case i % 3
                         when 0 then update left_accounts set amount = amount - n where id = l;
                         when 1 then update right_accounts set amount = amount + n where id = r;
                         else insert into ledger (from_left, to_right, amount) values (l, r, n);
                     end case;
                     if not found then raise 'nobody'; end if;
                 end loop;
             end $$;
             analyze"
        ))
        .await;
    source.run(sql).await;
}

/// One transaction; what it does beside the move leaves every amount as it is.
fn transaction(dice: &mut Dice) -> String {
    let (left, right, amount) = (dice.roll(ACCOUNTS) + 1, dice.roll(ACCOUNTS) + 1, dice.roll(50));
    let turn = dice.roll(3);
    let beside = match dice.roll(6) {
        0 => format!(
            "with gone as (delete from right_accounts where id = {right} returning amount)
             insert into right_accounts select {right} + {ACCOUNTS} * 10, amount from gone;
             update right_accounts set id = {right} where id = {right} + {ACCOUNTS} * 10;"
        ),
        1 => format!(
            "savepoint s; delete from ledger where id = 1;
             update left_accounts set amount = 0 where id = {left}; rollback to s;"
        ),
        2 => format!("update left_accounts set note = repeat('n', {left}) where id = {left};"),
        _ => String::new(),
    };
    let end = if dice.roll(10) == 0 { "rollback" } else { "commit" };
    format!(
        "begin isolation level repeatable read; select move({left}, {right}, {amount}, {turn}); {beside} {end}"
    )
}

/// Makes a table one that has to be read whole: emptied and filled again in one transaction.
const EMPTIED: &str =
    "begin; lock right_accounts; create temp table kept on commit drop as select * from right_accounts;
    truncate right_accounts; insert into right_accounts select * from kept; commit";

fn checkpoints(pipeline: &Pipeline) -> Vec<Value> {
    let mut listed = pipeline.json(&["checkpoints", "bank"]);
    listed.reverse();
    listed
}

/// How many transactions with a move were committed before a place, by the server's own account.
async fn moves_before(source: &Database, position: &str) -> String {
    let sql = format!(
        "select count(*) filter (where get_byte(data, 0) = ascii('I')) from pg_logical_slot_peek_binary_changes(
             'witness_' || current_database(), '{position}', null, 'proto_version', '1', 'publication_names', 'witness')"
    );
    source.text(&sql).await
}

/// The state at a checkpoint is one that was.
async fn look(pipeline: &Pipeline, source: &Database, checkpoint: &Value) -> i64 {
    let name = format!("bank@{}", checkpoint["checkpoint"]);
    let seen = pipeline.ok(&["query", "--checkpoint", &name, "--output", "csv", STATE]).stdout;
    let moves = moves_before(source, checkpoint["position"].as_str().unwrap()).await;
    let expected = format!("0,{},{moves}", ACCOUNTS * 200);
    assert_eq!(seen.lines().nth(1), Some(expected.as_str()), "{checkpoint}");
    moves.parse().unwrap()
}

/// The checkpoint that the reports of a run speak of, all the same.
fn reported(reports: &[Value]) -> &Value {
    let first = &reports[0]["checkpoint"];
    assert!(reports.iter().all(|report| report["checkpoint"] == *first), "{reports:#?}");
    first
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_checkpoint_is_a_state_that_was() {
    let Some(pg) = fixture::postgres().await else { return };
    let source = Arc::new(pg.database("bank").await);
    seed(&source).await;
    let folder = tempfile::tempdir().unwrap();
    let target = format!("sqlite://{}", folder.path().join("dwh.db").display());
    let pipeline = Pipeline::new(&source.url(), &target, &STREAMS);
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = [5, 17]
        .map(|seed| {
            let (source, stop) = (source.clone(), stop.clone());
            tokio::spawn(
                async move { write(&source, transaction, seed, Duration::from_millis(50), stop).await },
            )
        })
        .into();
    // In first reads, in passes, and on both sides of the commit of a checkpoint.
    for faults in ["after_commit=return(kill)", "before_checkpoint=return(kill)"] {
        pipeline.dies(&SYNC, faults);
    }
    assert!(pipeline.run(&["checkpoints", "bank"]).stdout.lines().count() <= 1, "nobody came so far");
    let first = pipeline.json(&SYNC);
    assert_eq!(reported(&first)["written"], true, "{first:#?}");
    for faults in [
        "after_commit=1*off->return(kill)",
        "before_checkpoint=return(kill)",
        "after_checkpoint=return(kill)",
    ] {
        pipeline.dies(&["sync", "--parallel", "2"], faults);
        if faults.starts_with("before") {
            source.run(EMPTIED).await;
        }
        let reports = pipeline.json(&SYNC);
        assert!(reported(&reports)["checkpoint"].is_u64(), "{reports:#?}");
    }
    source.run("alter table ledger add column extra int not null default 7").await;
    let reports = pipeline.json(&[&SYNC[..], &["--parallel", "2"]].concat());
    assert!(reported(&reports)["checkpoint"].is_u64(), "{reports:#?}");

    let served = checkpoints(&pipeline).len();
    let command = ["serve", "--parallel", "2"];
    let server = Server(pipeline.start(&command));
    let began = std::time::Instant::now();
    while checkpoints(&pipeline).len() < served + 1 {
        assert!(began.elapsed() < PATIENCE, "the server writes no checkpoints");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert_eq!(server.stop(), Some(0));
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        assert!(writer.await.unwrap() > 20, "hardly anything was written");
    }

    let last = pipeline.json(&SYNC);
    assert!(reported(&last)["checkpoint"].is_u64(), "{last:#?}");
    let again = pipeline.json(&SYNC);
    assert_eq!(reported(&again)["checkpoint"], reported(&last)["checkpoint"], "nothing has changed");
    assert_eq!(reported(&again)["written"], false);
    let listed = checkpoints(&pipeline);
    assert_eq!(listed.last().unwrap()["checkpoint"], reported(&last)["checkpoint"]);
    // Maintenance may do what it likes.
    let file = pipeline.folder().join("frazil.yaml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{text}maintenance: {{ keep_snapshots_for: 1ms, most_snapshots: 1 }}\n"))
        .unwrap();
    pipeline.ok(&["maintain"]);
    let mut before = 0;
    for checkpoint in
        listed.iter().rev().step_by(listed.len().div_ceil(LOOKED_AT)).collect::<Vec<_>>().iter().rev()
    {
        let moves = look(&pipeline, &source, checkpoint).await;
        assert!(before <= moves, "{checkpoint} is older than the one before");
        before = moves;
    }
    assert_eq!(source.text("select count(*) from ledger").await, before.to_string(), "the last one has all");
    source.run(DROP_SLOTS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_read_a_checkpoint_too_and_what_is_missing_is_said() {
    let Some(pg) = fixture::postgres().await else { return };
    let source = pg.database("bank_said").await;
    seed(&source).await;
    let folder = tempfile::tempdir().unwrap();
    let target = format!("sqlite://{}", folder.path().join("dwh.db").display());
    let pipeline = Pipeline::new(&source.url(), &target, &STREAMS);
    pipeline.ok(&SYNC);
    let [first] = &checkpoints(&pipeline)[..] else { panic!("one checkpoint") };
    source
        .run("create table then_left as table left_accounts; create table then_ledger as table ledger")
        .await;
    let mut dice = Dice(3);
    for _ in 0..40 {
        source.run(&transaction(&mut dice)).await;
    }

    // One stream alone goes on, and is no checkpoint.
    let alone = pipeline.json(&["sync", "--select", "public.ledger"]);
    assert_eq!(alone[0]["checkpoint"]["missing"], "not all of its streams were selected");
    assert_eq!(alone[0]["verdict"], "done");
    // One that fails leaves the others alone.
    source.run("alter table right_accounts rename to elsewhere").await;
    let failed = pipeline.run(&["sync", "--output", "json"]);
    assert_eq!(failed.code, Some(3), "{failed:?}");
    let reports: Vec<Value> = failed.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(reported(&reports)["missing"], "`public.right_accounts` failed");
    let verdict = |name: &str| reports.iter().find(|it| it["stream"] == name).unwrap()["verdict"].clone();
    assert_eq!(verdict("public.left_accounts"), "done");
    let said = pipeline.run(&["sync"]).stderr;
    assert!(said.contains("group bank: no checkpoint: `public.right_accounts` failed"), "{said}");
    source.run("alter table elsewhere rename to right_accounts").await;
    assert_eq!(&checkpoints(&pipeline), std::slice::from_ref(first));
    let said = pipeline.ok(&["sync"]).stderr;
    assert!(said.contains("group bank: checkpoint 2 at "), "{said}");

    // Who reads the first checkpoint sees what was there then, whatever reads it.
    for (table, then) in [("left_accounts", "then_left"), ("ledger", "then_ledger")] {
        let at = first["tables"]
            .as_array()
            .unwrap()
            .iter()
            .find(|it| it["lake_table"] == format!("public.{table}"));
        let location = format!("{}#{}", pipeline.location("public", table), at.unwrap()["snapshot"]);
        fixture::judge(&location, &source.url(), &format!("select * from {then}"));
    }
    // And the list of checkpoints, which is a table like any other.
    let list = pipeline.ok(&["query", "--output", "csv", "select count(*) from bank__checkpoints"]).stdout;
    assert_eq!(list.lines().nth(1), Some("6"));

    let wrong = |arguments: &[&str]| {
        let ran = pipeline.run(arguments);
        assert_eq!(ran.code, Some(2), "{ran:?}");
        ran.stderr
    };
    let ask = |checkpoint: &str, sql: &str| wrong(&["query", "--checkpoint", checkpoint, sql]);
    assert!(ask("bank@9", "select 1").contains("it has 1 to 2"));
    assert!(ask("bank@x", "select 1").contains("`bank@x` is not a checkpoint"));
    assert!(ask("bnak", "select 1").contains("did you mean `bank`?"));
    let other = ask("bank", "select * from bank__checkpoints");
    assert!(other.contains("the table is not part of checkpoint 2 of the group `bank`"), "{other}");
    pipeline.ok(&["query", "--checkpoint", "bank", "select * from ledger"]);
    for table in TABLES {
        let tags = pipeline.json(&["tag", &format!("public.{table}")]);
        let ours =
            tags.iter().filter(|tag| tag["name"].as_str().unwrap().starts_with("frazil_checkpoint_bank_"));
        assert_eq!(ours.count(), 2, "{tags:?}");
    }
    source.run(DROP_SLOTS).await;
}
