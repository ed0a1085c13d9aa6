//! `change: log` of MariaDB where another server takes the place of the one that was read: with all of its
//! transactions, and without the last ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mysql_async::Conn;
use mysql_async::prelude::Queryable;
use serde_json::Value;

use crate::fixture;
use crate::mysql_log::{Log, extent, noted};

const STREAM: &[&str] = &["t: { change: log, on_gap: fail }"];

/// Changes rows until it is told to stop.
async fn write(mut client: Conn, stop: Arc<AtomicBool>) {
    for n in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let id = n * 37 % 1000 + 1;
        client.query_drop(format!("UPDATE t SET n = n + 1 WHERE id = {id}")).await.unwrap();
        client.query_drop(format!("DELETE FROM t WHERE id = {}", id + 5000)).await.unwrap();
        client.query_drop(format!("INSERT INTO t VALUES ({}, {n})", id + 5000)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_server_goes_on_with_the_same_transactions() {
    let Some((first, second)) = fixture::mariadb_pair().await else { return };
    second.follow(&first).await;
    let schema =
        "CREATE TABLE t (id int PRIMARY KEY, n int);\nINSERT INTO t SELECT seq, 0 FROM seq_1_to_1000";
    let mut log = Log::new(&first, "failover", schema, STREAM).await;
    let read = log.run("t").await;

    // A position from before there were numbers in it gets them by the next pass.
    let mut old: Value = serde_json::from_str(read["extract"]["to"].as_str().unwrap()).unwrap();
    assert!(old.as_object_mut().unwrap().remove("gtids").is_some(), "{old}");
    let stream = format!("{}.t", log.source.name());
    log.pipeline.ok(&["state", "set", &stream, &old.to_string()]);
    let changed = log.after("UPDATE t SET n = 1 WHERE id = 1", "t").await;
    assert_eq!(extent(&changed), "log", "{changed}");

    // Changes go on, and passes; then the first one is left, in the middle of it.
    let (writer, stop) = (log.source.client().await, Arc::new(AtomicBool::new(false)));
    let writing = tokio::spawn(write(writer, stop.clone()));
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        log.pipeline.ok(&["sync"]);
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    stop.store(true, Ordering::Relaxed);
    writing.await.unwrap();
    second.take_over(&first).await;

    let at_second = log.source.on(&second);
    let at_first = log.move_to(at_second, STREAM);
    let changed =
        log.after("UPDATE t SET n = -1 WHERE id < 10;\nDELETE FROM t WHERE id BETWEEN 20 AND 30", "t").await;
    assert_eq!(extent(&changed), "log", "{changed}");
    let changed = log.after("FLUSH BINARY LOGS;\nUPDATE t SET n = -2 WHERE id < 10", "t").await;
    assert_eq!((extent(&changed), changed["extract"]["rows"].as_u64()), ("log", Some(9)), "{changed}");

    // The first one comes back without what the second has done since: that is no way back.
    let at_second = log.move_to(at_first, STREAM);
    let failed = log.pipeline.run(&["sync"]);
    assert!(failed.code != Some(0) && failed.stderr.contains("lacks what was read (domain 0)"), "{failed:?}");
    log.set(&["t: { change: log }"]);
    let read = log.after("DELETE FROM t WHERE id = 100", "t").await;
    assert!(extent(&read) == "whole" && noted(&read, "lacks what was read (domain 0)"), "{read}");
    // What it has done alone the second one lacks.
    let at_first = log.move_to(at_second, STREAM);
    let failed = log.pipeline.run(&["sync"]);
    assert!(failed.code != Some(0) && failed.stderr.contains("lacks what was read (domain 0)"), "{failed:?}");

    // It has later ones of the same server, and a hole before them.
    let at_second = log.move_to(at_first, STREAM);
    log.run("t").await;
    log.source.run("DELETE FROM t WHERE id = 101").await;
    second.follow(&first).await;
    log.source.run("INSERT INTO t VALUES (9999, 1)").await;
    second.take_over(&first).await;
    let _at_first = log.move_to(at_second, STREAM);
    let failed = log.pipeline.run(&["sync"]);
    assert!(failed.code != Some(0) && failed.stderr.contains("cannot read its log from there"), "{failed:?}");

    // It has later ones, and a log that knows nothing of them: MariaDB itself would let a replica go on there.
    log.source.run("RESET MASTER;\nSET GLOBAL gtid_slave_pos = '0-1-1000000'").await;
    let failed = log.pipeline.run(&["sync"]);
    assert!(failed.code != Some(0) && failed.stderr.contains("lacks what was read (domain 0)"), "{failed:?}");
}
