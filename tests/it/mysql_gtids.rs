//! `change: log` of MySQL, through the program, by a server that imitates one: see `imitation`. How it holds
//! while others write and while it is killed is in `mysql_log_model`.

use std::time::Duration;

use crate::fixture::{self, MariaDatabase, MariaDb};
use crate::imitation::Imitation;
use crate::mysql_log::{Log, extent, noted};

const STREAM: &[&str] = &["t: { change: log }"];

/// A server that says at once what is true.
async fn imitation(server: &MariaDb, name: &str) -> (Imitation, MariaDatabase) {
    let source = server.database(name).await;
    (Imitation::of(&source, 0, Duration::ZERO), source)
}

#[tokio::test]
async fn what_the_log_of_mysql_says_arrives() {
    let Some(server) = fixture::mariadb().await else { return };
    let (mysql, source) = imitation(&server, "gtids_says").await;
    let schema = "CREATE TABLE t (id int PRIMARY KEY, a text, n decimal(12,2));
         CREATE TABLE other (id int PRIMARY KEY);
         INSERT INTO t SELECT seq, concat('row ', seq), seq / 7 FROM seq_1_to_1000";
    let url = mysql.url(&source);
    let log = Log::through(source, url, schema, STREAM).await;
    let first = log.run("t").await;
    assert_eq!((extent(&first), first["extract"]["change"].as_str()), ("whole", Some("log")), "{first}");
    let changed = log
        .after(
            "INSERT INTO t VALUES (2000, 'new', null);
             UPDATE t SET a = 'changed' WHERE id % 10 = 0;
             DELETE FROM t WHERE id % 10 = 1;
             INSERT INTO t VALUES (11, 'back', 11);
             UPDATE t SET id = id + 5000 WHERE id in (5, 15);
             BEGIN;
             UPDATE t SET n = 0 WHERE id = 500;
             SAVEPOINT a;
             DELETE FROM t;
             ROLLBACK TO a;
             UPDATE t SET n = 1 WHERE id = 501;
             COMMIT;
             INSERT INTO other SELECT seq FROM seq_1_to_10",
            "t",
        )
        .await;
    assert_eq!(extent(&changed), "log", "{changed}");
    assert!(changed["extract"]["rows"].as_u64().unwrap() < 210, "{changed}");
    let idle = log.after("INSERT INTO other SELECT seq FROM seq_11_to_20", "t").await;
    assert_eq!(idle["verdict"], "nothing_to_do", "{idle}");
    // Into the next file, and what leaves rows alone.
    let changed = log
        .after("ALTER TABLE t ADD INDEX (n);\nFLUSH BINARY LOGS;\nUPDATE t SET n = 3 WHERE id = 600", "t")
        .await;
    assert_eq!((extent(&changed), changed["extract"]["rows"].as_u64()), ("log", Some(1)), "{changed}");
}

#[tokio::test]
async fn what_the_log_of_mysql_does_not_say_is_read_from_the_table() {
    let Some(server) = fixture::mariadb().await else { return };
    let (mysql, source) = imitation(&server, "gtids_silent").await;
    let schema = "CREATE TABLE top (id int PRIMARY KEY);
         CREATE TABLE parent (id int PRIMARY KEY, top int, FOREIGN KEY (top) REFERENCES top (id) ON DELETE CASCADE);
         CREATE TABLE t (id int PRIMARY KEY, p int, FOREIGN KEY (p) REFERENCES parent (id) ON DELETE CASCADE);
         INSERT INTO top SELECT seq FROM seq_1_to_5;
         INSERT INTO parent SELECT seq, seq % 5 + 1 FROM seq_1_to_20;
         INSERT INTO t SELECT seq, seq % 20 + 1 FROM seq_1_to_100";
    let url = mysql.url(&source);
    let log = Log::through(source, url, schema, STREAM).await;
    log.run("t").await;
    for (sql, why) in [
        ("DELETE FROM parent WHERE id = 3", "a foreign key may have changed rows"),
        ("DELETE FROM top WHERE id = 1", "a foreign key may have changed rows"),
        ("TRUNCATE TABLE t;\nINSERT INTO t VALUES (1, 2)", "it was truncated"),
        ("ALTER TABLE t ADD COLUMN filled int DEFAULT 5", "its columns are others"),
    ] {
        let changed = log.after(sql, "t").await;
        assert!(extent(&changed) == "whole" && noted(&changed, why), "{sql}: {changed}");
    }
    let changed = log.after("INSERT INTO parent VALUES (50, 2);\nINSERT INTO t VALUES (5, 50, 5)", "t").await;
    assert_eq!(extent(&changed), "log", "{changed}");
}

#[tokio::test]
async fn what_is_prepared_comes_when_it_is_committed() {
    let Some(server) = fixture::mariadb_for_xa().await else { return };
    let (mysql, source) = imitation(&server, "gtids_xa").await;
    let name = source.name().to_owned();
    let url = mysql.url(&source);
    let schema = "CREATE TABLE t (id int PRIMARY KEY, n int);\nINSERT INTO t VALUES (1, 0), (2, 0), (3, 0)";
    let log = Log::through(source, url, schema, STREAM).await;
    log.run("t").await;
    let prepare = format!(
        "XA START '{name}';\nUPDATE t SET n = 77 WHERE id = 1;\nXA END '{name}';\nXA PREPARE '{name}'"
    );
    log.source.run(&prepare).await;
    log.after("UPDATE t SET n = 5 WHERE id = 2", "t").await;
    log.after("UPDATE t SET n = 5 WHERE id = 3", "t").await;
    let changed = log.after(&format!("XA COMMIT '{name}'"), "t").await;
    assert_eq!((extent(&changed), &changed["verdict"]), ("log", &"done".into()), "{changed}");
}

#[tokio::test]
async fn what_a_mysql_has_lost_or_lacks_is_said() {
    let Some(server) = fixture::mariadb().await else { return };
    let (mysql, source) = imitation(&server, "gtids_gap").await;
    let schema = "CREATE TABLE t (id int PRIMARY KEY, n int);\nINSERT INTO t SELECT seq, 0 FROM seq_1_to_10";
    let url = mysql.url(&source);
    let log = Log::through(source, url, schema, &["t: { change: log, on_gap: fail }"]).await;
    log.run("t").await;
    log.source.run("DELETE FROM t WHERE id = 1").await;
    mysql.purge();
    let failed = log.pipeline.run(&["sync"]);
    let why = "has dropped the log of transactions that were not read";
    assert!(failed.code != Some(0) && failed.stderr.contains(why), "{failed:?}");
    log.set(STREAM);
    let read = log.run("t").await;
    assert!(extent(&read) == "whole" && noted(&read, why), "{read}");
    let changed = log.after("DELETE FROM t WHERE id = 2", "t").await;
    assert_eq!(extent(&changed), "log", "{changed}");

    // Transactions that the lake has, and the server no more.
    mysql.lose(1);
    let read = log.run("t").await;
    assert!(
        extent(&read) == "whole" && noted(&read, "the server lacks transactions that were read"),
        "{read}"
    );

    mysql.set_mode("OFF_PERMISSIVE");
    let (failed, checked) = (log.pipeline.run(&["sync"]), log.pipeline.run(&["check"]));
    assert!(failed.stderr.contains("the server's `gtid_mode` is OFF_PERMISSIVE"), "{failed:?}");
    assert!((checked.stdout + &checked.stderr).contains("SET PERSIST gtid_mode = ON"));
}
