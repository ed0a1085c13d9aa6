//! `change: log` of MariaDB where the server's log itself changes: dropped, reset, compressed, written
//! otherwise. One test, as all of it is the server's and not a table's.

use std::time::Duration;

use mysql_async::prelude::Queryable;

use crate::fixture;
use crate::mysql_log::{Log, extent, noted};

#[tokio::test]
async fn what_becomes_of_the_log_is_noticed() {
    let Some(server) = fixture::mariadb_apart().await else { return };
    let schema = "CREATE TABLE t (id int PRIMARY KEY, a text, n int);
         INSERT INTO t SELECT seq, 'a', 1 FROM seq_1_to_100";
    let log = Log::new(&server, "log_server", schema, &["t: { change: log, on_gap: fail }"]).await;
    log.run("t").await;

    // The position goes on into the next file, and the first one may go.
    let changed =
        log.after("FLUSH BINARY LOGS;\nUPDATE t SET n = 2 WHERE id = 1;\nFLUSH BINARY LOGS", "t").await;
    assert_eq!(extent(&changed), "log", "{changed}");
    let purge = async |sql: &str| {
        let mut client = log.source.client().await;
        client.query_drop(sql).await.unwrap();
        let files: Vec<(String, u64)> = client.query("SHOW BINARY LOGS").await.unwrap();
        let newest = files.last().unwrap().0.clone();
        // The server keeps a file without a word until its engines have what is in it on disk.
        for _ in 0..300 {
            client.query_drop(format!("PURGE BINARY LOGS TO '{newest}'")).await.unwrap();
            let files: Vec<(String, u64)> = client.query("SHOW BINARY LOGS").await.unwrap();
            if files[0].0 == newest {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the server keeps its log");
    };
    purge("DO 1").await;
    let changed = log.after("UPDATE t SET n = 3 WHERE id = 1", "t").await;
    assert_eq!(extent(&changed), "log", "{changed}");

    // What was not read yet is gone: one stops, the other reads the table.
    log.source.run("DELETE FROM t WHERE id = 2").await;
    purge("FLUSH BINARY LOGS").await;
    let failed = log.pipeline.run(&["sync"]);
    assert!(failed.code != Some(0) && failed.stderr.contains("has dropped the file"), "{failed:?}");
    log.set(&["t: { change: log }"]);
    log.run("t").await;
    log.source.run("DELETE FROM t WHERE id = 3").await;
    let mut admin = log.source.client().await;
    purge("FLUSH BINARY LOGS").await;
    let read = log.run("t").await;
    assert!(extent(&read) == "whole" && noted(&read, "has dropped the file"), "{read}");

    // A log that begins anew has a file of the same name, and in time one as long. Its age is in seconds.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    admin.query_drop("RESET MASTER").await.unwrap();
    log.run("t").await;
    log.source.run("DELETE FROM t WHERE id = 4").await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    admin.query_drop("RESET MASTER").await.unwrap();
    log.source.run("INSERT INTO t SELECT seq, repeat('a', 100), 1 FROM seq_1001_to_2000").await;
    let read = log.run("t").await;
    assert!(extent(&read) == "whole" && noted(&read, "the log was reset"), "{read}");

    // Compressed, and with no more of a row than it needs.
    for setting in ["log_bin_compress = ON", "log_bin_compress_min_len = 10", "binlog_row_image = 'MINIMAL'"]
    {
        admin.query_drop(format!("SET GLOBAL {setting}")).await.unwrap();
    }
    let changed = log
        .after(
            "INSERT INTO t SELECT seq, repeat('a', 100), 1 FROM seq_3001_to_4000;
             UPDATE t SET a = repeat('b', 200) WHERE id < 50;
             UPDATE t SET id = id + 10000 WHERE id > 3900;
             DELETE FROM t WHERE id BETWEEN 60 AND 70;
             ALTER TABLE t ADD INDEX a_long_name_that_is_worth_to_be_compressed (n, id)",
            "t",
        )
        .await;
    assert_eq!(extent(&changed), "log", "{changed}");

    // Prepared is not committed: what it wrote comes when it is.
    log.source.run("XA START 'x';\nUPDATE t SET n = 77 WHERE id = 1;\nXA END 'x';\nXA PREPARE 'x'").await;
    log.after("UPDATE t SET n = 5 WHERE id = 10", "t").await;
    log.after("UPDATE t SET n = 5 WHERE id = 11", "t").await;
    let changed = log.after("XA COMMIT 'x'", "t").await;
    assert_eq!((extent(&changed), &changed["verdict"]), ("log", &"done".into()), "{changed}");

    for (setting, message) in [
        ("binlog_format = 'STATEMENT'", "its log does not have all rows"),
        ("binlog_format = 'MIXED'", "its log does not have all rows"),
    ] {
        admin.query_drop(format!("SET GLOBAL {setting}")).await.unwrap();
        let failed = log.pipeline.run(&["sync"]);
        let says =
            failed.stderr.contains(message) && failed.stderr.contains("SET GLOBAL binlog_format = 'ROW'");
        assert!(failed.code != Some(0) && says, "{failed:?}");
    }
    admin.query_drop("SET GLOBAL binlog_format = 'ROW'").await.unwrap();
    log.run("t").await;

    // A statement in the place of rows may be about any table: every stream of the server has to look.
    let statement = "SET SESSION binlog_format = 'STATEMENT';\nUPDATE t SET a = concat(a, '!')";
    let read = log.after(statement, "t").await;
    assert!(
        extent(&read) == "whole" && noted(&read, "a statement that changes rows is in the log"),
        "{read}"
    );
}
