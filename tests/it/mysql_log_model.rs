//! `change: log` of MariaDB while others write, and while it is killed: what is in the lake in the end is
//! what is in the source, and what it showed in between was there too.
//!
//! Writers move amounts between accounts, so that every state of the table has the same sum; a state that
//! never was has another one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mysql_async::prelude::Queryable;

use crate::fixture::{self, MariaDatabase};
use crate::imitation::Imitation;
use crate::mysql_log::{Log, extent};
use crate::postgres_log_model::Dice;

const ACCOUNTS: i64 = 300;
const SUM: i64 = ACCOUNTS * 100;
/// Snapshots that are looked at in the end, of all.
const LOOKED_AT: usize = 10;

/// One transaction: amounts move, rows come and go, keys change; some of it is taken back.
fn transaction(dice: &mut Dice) -> Vec<String> {
    let (a, b, amount) = (dice.roll(ACCOUNTS), dice.roll(ACCOUNTS), dice.roll(50));
    let mut sql = vec![
        "BEGIN".to_owned(),
        // Keys change, so that a row is found by where it came from.
        format!("UPDATE accounts SET amount = amount - {amount} WHERE home = {a}"),
        format!("UPDATE accounts SET amount = amount + {amount} WHERE home = {b}"),
    ];
    sql.extend(match dice.roll(7) {
        0 => {
            vec![format!("INSERT INTO accounts VALUES ({}, null, 0, 'new')", 1_000_000 + dice.roll(1 << 40))]
        }
        1 => vec!["DELETE FROM accounts WHERE home IS NULL AND id % 3 = 1".to_owned()],
        2 => vec![format!("UPDATE accounts SET id = id + 1000, note = 'moved' WHERE home = {a}")],
        3 => vec!["SAVEPOINT s".to_owned(), "DELETE FROM accounts".to_owned(), "ROLLBACK TO s".to_owned()],
        4 => vec![format!("UPDATE parts SET v = v + 1 WHERE id BETWEEN {a} * 50 AND {a} * 50 + 40")],
        5 => vec![
            format!("DELETE FROM parts WHERE id = {}", a * 7),
            format!("INSERT IGNORE INTO parts VALUES ({}, 1, 'again')", b * 9),
        ],
        _ => Vec::new(),
    });
    sql.push(if dice.roll(10) == 0 { "ROLLBACK" } else { "COMMIT" }.to_owned());
    sql
}

/// Writes until it is told to stop. Transactions that meet each other may fail: then nothing of them counts.
async fn write(source: &MariaDatabase, seed: u64, stop: Arc<AtomicBool>) -> u64 {
    let (mut client, mut dice, mut done) = (source.client().await, Dice(seed), 0);
    while !stop.load(Ordering::Relaxed) {
        for statement in transaction(&mut dice) {
            if client.query_drop(statement).await.is_err() {
                client.query_drop("ROLLBACK").await.unwrap();
                break;
            }
        }
        done += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    done
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_doubled_while_others_write_and_it_is_killed() {
    let Some(server) = fixture::mariadb().await else { return };
    let log = Log::new(&server, "log_model", &schema(), STREAMS).await;
    nothing_is_lost(log).await;
}

/// The same with a server that says of a snapshot no more than a MySQL does, and as late as one may.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_where_the_server_does_not_say_what_a_snapshot_shows() {
    let Some(server) = fixture::mariadb().await else { return };
    let source = server.database("gtids_model").await;
    let mysql = Imitation::of(&source, 3, Duration::from_millis(60));
    let url = mysql.url(&source);
    nothing_is_lost(Log::through(source, url, &schema(), STREAMS).await).await;
}

const STREAMS: &[&str] = &["accounts: { change: log }", "parts: { change: log, portion: 512KiB }"];

fn schema() -> String {
    format!(
        "CREATE TABLE accounts (id bigint PRIMARY KEY, home int, amount bigint NOT NULL, note text, INDEX (home));
         INSERT INTO accounts SELECT seq + 1, seq, 100, repeat('n', 500) FROM seq_0_to_{};
         CREATE TABLE parts (id bigint PRIMARY KEY, v int NOT NULL, filler text);
         INSERT INTO parts SELECT seq, 0, repeat('x', 200) FROM seq_1_to_20000;
         ANALYZE TABLE accounts, parts",
        ACCOUNTS - 1
    )
}

async fn nothing_is_lost(log: Log) {
    let log = Arc::new(log);
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = [11, 23]
        .map(|seed| {
            let (log, stop) = (log.clone(), stop.clone());
            tokio::spawn(async move { write(&log.source, seed, stop).await })
        })
        .into();
    // Killed in the first read and where it ends, again and again, and then in passes.
    let mut killed = 0;
    for faults in
        ["before_commit=return(kill)", "after_commit=1*off->return(kill)", "after_commit=3*off->return(kill)"]
    {
        log.pipeline.dies(&["sync"], faults);
    }
    log.pipeline.ok(&["sync"]);
    for faults in [
        "before_acknowledge=return(kill)",
        "before_commit=1*off->return(kill)",
        "after_commit=return(kill)",
        "before_acknowledge=1*off->return(kill)",
    ] {
        // Whether a second table has changed just now is chance.
        killed += i32::from(log.pipeline.run_with_faults(&["sync"], faults).code != Some(0));
        log.pipeline.ok(&["sync"]);
    }
    assert!(killed >= 2, "{killed} were killed");
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        assert!(writer.await.unwrap() > 20, "hardly anything was written");
    }
    for report in &log.pipeline.json(&["sync"]) {
        assert_eq!(extent(report), "log", "{report}");
    }
    log.assert_same("accounts");
    log.assert_same("parts");
    let listed = log.pipeline.json(&["snapshots", "accounts"]);
    let every = listed.len().div_ceil(LOOKED_AT);
    for snapshot in listed.iter().step_by(every) {
        let id = snapshot["snapshot"].to_string().trim_matches('"').to_owned();
        let sum = "select sum(amount) as s from accounts";
        let seen = log.pipeline.ok(&["query", "--as-of", &id, "--output", "csv", sum]).stdout;
        assert_eq!(seen.lines().nth(1), Some(SUM.to_string().as_str()), "snapshot {id}: {seen}");
    }
}
