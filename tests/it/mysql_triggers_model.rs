//! `change: trigger` of MariaDB while others write, and while it is killed: what is in the lake in the end is
//! what is in the source, for each of two readers, and what it showed in between was there too.
//!
//! Writers move amounts between accounts, so that every state of the table has the same sum; a state that
//! never was has another one. Some transactions stay open over several passes, so that changes with low
//! numbers are committed after those with high ones were read.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mysql_async::prelude::Queryable;

use crate::fixture::{self, MariaDatabase, Pipeline};
use crate::mysql_log::extent;
use crate::mysql_triggers::{installed, kept};
use crate::postgres_log_model::Dice;

const ACCOUNTS: i64 = 200;
const SUM: i64 = ACCOUNTS * 100;
/// Snapshots that are looked at in the end, of all.
const LOOKED_AT: usize = 8;

/// One transaction without its end: amounts move, rows come and go, keys change; some of it is taken back.
fn transaction(dice: &mut Dice) -> Vec<String> {
    let (a, b, amount) = (dice.roll(ACCOUNTS), dice.roll(ACCOUNTS), dice.roll(50));
    let mut sql = vec![
        "BEGIN".to_owned(),
        // Keys change, so that a row is found by where it came from.
        format!("UPDATE accounts SET amount = amount - {amount} WHERE home = {a}"),
        format!("UPDATE accounts SET amount = amount + {amount} WHERE home = {b}"),
    ];
    sql.extend(match dice.roll(8) {
        0 => vec![format!("INSERT INTO accounts VALUES ('N{}', null, 0, 'new')", dice.roll(1 << 40))],
        1 => vec!["DELETE FROM accounts WHERE home IS NULL AND id LIKE '%3'".to_owned()],
        // The same key to the server.
        2 => vec![format!("UPDATE accounts SET id = IF(BINARY id = UPPER(id), LOWER(id), UPPER(id)) WHERE home = {a}")],
        3 => vec!["SAVEPOINT s".to_owned(), "DELETE FROM accounts".to_owned(), "ROLLBACK TO s".to_owned()],
        4 => vec![format!("UPDATE accounts SET id = CONCAT('k', {}) WHERE home = {a}", dice.roll(1 << 40))],
        5 => vec![format!(
            "INSERT INTO accounts SELECT id, home, amount, 'x' FROM accounts WHERE home = {b} ON DUPLICATE KEY UPDATE note = 'again'"
        )],
        6 => vec![format!(
            "REPLACE INTO accounts SELECT id, home, amount, 'replaced' FROM accounts WHERE home = {b}"
        )],
        _ => Vec::new(),
    });
    sql
}

/// Writes until it is told to stop; every seventh transaction of one of the writers takes its time. Those that
/// meet each other may fail: then nothing of them counts.
async fn write(source: &MariaDatabase, seed: u64, slow: bool, stop: Arc<AtomicBool>) -> u64 {
    let (mut client, mut dice, mut done) = (source.client().await, Dice(seed), 0);
    client.query_drop("SET innodb_lock_wait_timeout = 2").await.unwrap();
    while !stop.load(Ordering::Relaxed) {
        let mut failed = false;
        for statement in transaction(&mut dice) {
            failed |= client.query_drop(statement).await.is_err();
            if failed {
                break;
            }
        }
        let pause = if slow && done % 7 == 0 { 700 } else { 15 };
        tokio::time::sleep(Duration::from_millis(pause)).await;
        let end = if failed || dice.roll(10) == 0 { "ROLLBACK" } else { "COMMIT" };
        client.query_drop(end).await.unwrap();
        done += 1;
    }
    done
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_change_is_passed_by_while_others_write_and_it_is_killed() {
    let Some(server) = fixture::mariadb().await else { return };
    let schema = format!(
        "CREATE TABLE accounts (id varchar(30) COLLATE utf8mb4_general_ci PRIMARY KEY, home int, amount bigint NOT NULL, note text, INDEX (home));
         INSERT INTO accounts SELECT CONCAT('a', seq), seq, 100, repeat('n', 4000) FROM seq_0_to_{};
         ANALYZE TABLE accounts",
        ACCOUNTS - 1
    );
    let settings = "accounts: { change: trigger, portion: 64KiB }";
    let one = Arc::new(installed(&server, "tr_model", &schema, &[settings]).await);
    let other = format!("{}.{settings}", one.source.name());
    let other = Pipeline::new(&one.source.url(), "sqlite://nobody.db", &[&other]);
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = [(11, true), (23, false), (37, true)]
        .map(|(seed, slow)| {
            let (one, stop) = (one.clone(), stop.clone());
            tokio::spawn(async move { write(&one.source, seed, slow, stop).await })
        })
        .into();
    for faults in ["before_commit=return(kill)", "after_commit=1*off->return(kill)"] {
        one.pipeline.dies(&["sync"], faults);
    }
    one.pipeline.ok(&["sync"]);
    other.ok(&["sync"]);
    for faults in
        ["before_acknowledge=return(kill)", "before_commit=return(kill)", "after_commit=return(kill)"]
    {
        one.pipeline.dies(&["sync"], faults);
        for _ in 0..3 {
            one.pipeline.ok(&["sync"]);
        }
        other.ok(&["sync"]);
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        assert!(writer.await.unwrap() > 5, "hardly anything was written");
    }
    for pipeline in [&one.pipeline, &other] {
        let report = pipeline.json(&["sync"]).remove(0);
        assert_eq!(extent(&report), "log", "{report}");
    }
    one.assert_same("accounts");
    assert_eq!(kept(&one).await, "0");
    let rows = "select * from accounts order by id";
    let [first, second] =
        [&one.pipeline, &other].map(|pipeline| pipeline.ok(&["query", "--output", "csv", rows]).stdout);
    assert_eq!(first, second);
    let listed = one.pipeline.json(&["snapshots", "accounts"]);
    let every = listed.len().div_ceil(LOOKED_AT);
    for snapshot in listed.iter().step_by(every) {
        let id = snapshot["snapshot"].to_string().trim_matches('"').to_owned();
        let sum = "select sum(amount) as s from accounts";
        let seen = one.pipeline.ok(&["query", "--as-of", &id, "--output", "csv", sum]).stdout;
        assert_eq!(seen.lines().nth(1), Some(SUM.to_string().as_str()), "snapshot {id}: {seen}");
    }
}
