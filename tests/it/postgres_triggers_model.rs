//! `change: trigger` while others write, and while it is killed: what is in the lake in the end is what is in
//! the source, for each of two readers, and what it showed in between was there too.
//!
//! Writers move amounts between accounts, so that every state of the table has the same sum; a state that
//! never was has another one. Some transactions stay open over several passes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::fixture::{self, Database, Pipeline};
use crate::sync::{assert_same, two_databases};

const ACCOUNTS: i64 = 200;
const SUM: i64 = ACCOUNTS * 100;
/// Snapshots that are looked at in the end, of all.
const LOOKED_AT: usize = 8;

/// Numbers that look random and come again.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: i64) -> i64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % sides as u64) as i64
    }
}

/// One transaction without its end: amounts move, rows come and go, keys change; some of it is taken back.
fn transaction(dice: &mut Dice) -> String {
    let (a, b, amount) = (dice.roll(ACCOUNTS) + 1, dice.roll(ACCOUNTS) + 1, dice.roll(50));
    let row = |n: i64| format!("(select id from accounts where id % 1000 = {n} order by id limit 1)");
    let mut sql =
        format!("begin isolation level repeatable read; select move({}, {}, {amount});", row(a), row(b));
    sql += &match dice.roll(9) {
        0 => format!("insert into accounts values ({}, 0);", 1_000_000 + dice.roll(1 << 40)),
        1 => "delete from accounts where id > 1000000 and id % 3 = 1 and amount = 0;".to_owned(),
        2 => format!("update accounts set id = id + 1000 where id = {};", row(a)),
        3 => "savepoint s; update accounts set amount = 0; delete from accounts; rollback to s;".to_owned(),
        4 => format!(
            "with gone as (delete from accounts where id = {0} returning amount) \
             insert into accounts select {a} + 2000 * (1 + {1}), amount from gone;",
            row(a),
            dice.roll(1000)
        ),
        5 => format!(
            "insert into accounts values ({a}, 0) on conflict (id) do update set amount = accounts.amount;"
        ),
        6 => "update accounts set amount = amount where id % 5 = 0;".to_owned(),
        _ => String::new(),
    };
    sql
}

/// Writes until it is told to stop; every seventh transaction of one of the writers takes its time. Those that
/// meet each other may fail: then nothing of them counts.
async fn write(source: &Database, seed: u64, slow: bool, stop: Arc<AtomicBool>) -> u64 {
    let (client, mut dice, mut done) = (source.client().await, Dice(seed), 0);
    while !stop.load(Ordering::Relaxed) {
        let begun = client.batch_execute(&transaction(&mut dice)).await;
        let pause = if slow && done % 7 == 0 { 700 } else { 15 };
        tokio::time::sleep(Duration::from_millis(pause)).await;
        let end = if begun.is_err() || dice.roll(10) == 0 { "rollback" } else { "commit" };
        let _ = client.batch_execute(end).await;
        done += 1;
    }
    done
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_change_is_passed_by_while_others_write_and_it_is_killed() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "tr_model").await;
    let source = Arc::new(source);
    source
        .run(&format!(
            "create table accounts (id bigint primary key, amount bigint not null, note text default repeat('n', 1000));
             insert into accounts select i, 100 from generate_series(1, {ACCOUNTS}) i;
             create function move(a bigint, b bigint, n bigint) returns void language plpgsql as $$ begin
                 update accounts set amount = amount - n where id = a;
                 if not found then raise 'nobody'; end if;
                 update accounts set amount = amount + n where id = b;
                 if not found then raise 'nobody'; end if;
             end $$;
             analyze"
        ))
        .await;
    let one = Pipeline::new(
        &source.url(),
        &target.url(),
        &["public.accounts: { change: trigger, portion: 64KiB }"],
    );
    let other = Pipeline::new(
        &source.url(),
        &target.url(),
        &["public.accounts: { change: trigger, target: dwh.public.other, portion: 64KiB }"],
    );
    one.ok(&["setup"]);
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = [(11, true), (23, false), (37, true)]
        .map(|(seed, slow)| {
            let (source, stop) = (source.clone(), stop.clone());
            tokio::spawn(async move { write(&source, seed, slow, stop).await })
        })
        .into();
    for faults in ["before_commit=return(kill)", "after_commit=1*off->return(kill)"] {
        one.dies(&["run"], faults);
    }
    one.ok(&["run"]);
    other.ok(&["run"]);
    for faults in [
        "before_acknowledge=return(kill)",
        "before_commit=return(kill)",
        "after_commit=return(kill)",
        "in_load_transaction=return(kill)",
    ] {
        one.dies(&["run"], faults);
        one.ok(&["run"]);
        other.ok(&["run"]);
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        assert!(writer.await.unwrap() > 5, "hardly anything was written");
    }
    for pipeline in [&one, &other] {
        let report = pipeline.json(&["run"]).remove(0);
        assert_eq!(report["extract"]["extent"], "log", "{report}");
    }
    assert_same(&source, &target, "select * from accounts").await;
    assert_eq!(source.rows("select * from accounts").await, target.rows("select * from other").await);
    fixture::judge(&one.location("public", "accounts"), &source.url(), "select * from accounts");
    let table = source.text("select changes from _frazil.tables").await;
    assert_eq!(source.text(&format!("select count(*) from _frazil.{table}")).await, "0");
    let listed = one.json(&["snapshots", "accounts"]);
    let every = listed.len().div_ceil(LOOKED_AT);
    for snapshot in listed.iter().step_by(every) {
        let id = snapshot["snapshot"].to_string().trim_matches('"').to_owned();
        let seen = one
            .ok(&["query", "--as-of", &id, "--output", "csv", "select sum(amount) as s from accounts"])
            .stdout;
        assert_eq!(seen.lines().nth(1), Some(SUM.to_string().as_str()), "snapshot {id}: {seen}");
    }
}
