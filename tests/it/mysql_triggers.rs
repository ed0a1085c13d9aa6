//! `change: trigger` of MariaDB, through the program: what triggers write down, what they do not see, and what
//! is left of them. Writers that go on meanwhile, and crashes, are in `mysql_triggers_model.rs`.

use mysql_async::Conn;
use mysql_async::prelude::Queryable;
use serde_json::Value;

use crate::fixture::{self, MariaDb, Pipeline};
use crate::mysql_log::{Log, extent, noted};

const STREAM: &[&str] = &["t: { change: trigger }"];

/// A stream with its triggers installed, and nothing read yet.
pub(crate) async fn installed(server: &MariaDb, name: &str, schema: &str, streams: &[&str]) -> Log {
    let stream = Log::new(server, name, schema, streams).await;
    let installed = stream.pipeline.json(&["setup"]);
    assert!(installed.iter().all(|stream| stream["done"] == true), "{installed:?}");
    stream
}

/// What cannot be done, and why.
fn refused(pipeline: &Pipeline, arguments: &[&str], why: &str) {
    let ran = pipeline.run(arguments);
    assert_ne!(ran.code, Some(0), "{ran:?}");
    let said = format!("{}{}", ran.stdout, ran.stderr);
    assert!(said.contains(why), "`{why}` is not in\n{said}");
}

/// How many changes are kept.
pub(crate) async fn kept(stream: &Log) -> String {
    let table = stream.source.text("SELECT changes FROM _frazil_tables").await;
    stream.source.text(&format!("SELECT COUNT(*) FROM `{table}`")).await
}

fn read(report: &Value) -> (&str, u64) {
    (extent(report), report["extract"]["read"].as_u64().unwrap())
}

async fn execute(client: &mut Conn, statements: &[&str]) {
    for statement in statements {
        client.query_drop(*statement).await.unwrap_or_else(|error| panic!("{error:?}\n{statement}"));
    }
}

#[tokio::test]
async fn what_triggers_write_down_arrives() {
    let Some(server) = fixture::mariadb().await else { return };
    let schema = "CREATE TABLE t (id int AUTO_INCREMENT PRIMARY KEY, a text, n decimal(12,2), u int UNIQUE, v int AS (id * 2));
         CREATE TABLE other (id int AUTO_INCREMENT PRIMARY KEY);
         INSERT INTO t (id, a, n) SELECT seq, concat('row ', seq), seq / 7 FROM seq_1_to_1000";
    let stream = installed(&server, "tr_says", schema, STREAM).await;
    let first = stream.run("t").await;
    assert_eq!((extent(&first), first["extract"]["change"].as_str()), ("whole", Some("trigger")), "{first}");

    let changed = stream
        .after(
            "INSERT INTO t (id, a, n) VALUES (2000, 'new', null);
             UPDATE t SET a = 'changed' WHERE id % 10 = 0;
             UPDATE t SET a = 'again' WHERE id = 20;
             DELETE FROM t WHERE id % 10 = 1;
             INSERT INTO t (id, a, n) VALUES (11, 'back', 11);
             UPDATE t SET id = id + 5000 WHERE id IN (5, 15);
             UPDATE t SET id = -id WHERE id = 25;
             UPDATE t SET id = -id WHERE id = -25;
             INSERT INTO t (id, a) VALUES (2, 'up'), (3000, 'up') ON DUPLICATE KEY UPDATE a = 'up';
             UPDATE t SET u = 7 WHERE id = 3;
             REPLACE INTO t (id, a, u) VALUES (4, 'in the place of two', 7);
             INSERT IGNORE INTO t (id, a) VALUES (6, 'not at all'), (3001, 'new');
             UPDATE t, (SELECT 7 AS id) x SET t.a = 'by a join' WHERE t.id = x.id;
             DELETE t FROM t JOIN (SELECT 8 AS id) x ON t.id = x.id;
             BEGIN;
             INSERT INTO t (id) VALUES (4000);
             SAVEPOINT a;
             DELETE FROM t;
             ROLLBACK",
            "t",
        )
        .await;
    // 100 that changed, 100 that were deleted, and 14 by themselves.
    assert_eq!(read(&changed), ("log", 214), "{changed}");
    assert_eq!(kept(&stream).await, "0", "what the lake has is removed");
    let idle = stream.after("INSERT INTO other VALUES ()", "t").await;
    assert_eq!(idle["verdict"], "nothing_to_do", "{idle}");

    // What the application is told of its own statement, however its session is set.
    let mut client = stream.source.client().await;
    execute(
        &mut client,
        &[
            "SET sql_mode = 'ANSI_QUOTES,PAD_CHAR_TO_FULL_LENGTH,NO_BACKSLASH_ESCAPES', NAMES latin1",
            "INSERT INTO other VALUES ()",
        ],
    )
    .await;
    let given: u64 = client.query_first("SELECT LAST_INSERT_ID()").await.unwrap().unwrap();
    execute(&mut client, &["UPDATE t SET a = 'told' WHERE id BETWEEN 100 AND 109 AND id <> 101"]).await;
    assert_eq!(client.affected_rows(), 9);
    assert_eq!(client.query_first::<u64, _>("SELECT LAST_INSERT_ID()").await.unwrap(), Some(given));
    execute(&mut client, &["INSERT INTO t (a) VALUES ('counts by itself')"]).await;
    let given = client.last_insert_id();
    let own: Option<u64> = client.query_first("SELECT id FROM t WHERE a = 'counts by itself'").await.unwrap();
    assert_eq!(given, own, "the number of the change is not the application's");
    assert_eq!(read(&stream.run("t").await), ("log", 10));

    let truncated = stream.after("TRUNCATE t;\nINSERT INTO t (id, a) VALUES (1, 'after')", "t").await;
    assert!(extent(&truncated) == "whole" && noted(&truncated, "truncated"), "{truncated}");
    assert_eq!(read(&stream.after("UPDATE t SET a = 'goes on'", "t").await), ("log", 1));
}

#[tokio::test]
async fn what_is_committed_late_is_not_passed_by() {
    let Some(server) = fixture::mariadb().await else { return };
    let schema = "CREATE TABLE t (id int PRIMARY KEY, a text);
         INSERT INTO t VALUES (1, 'a'), (2, 'b')";
    let stream = installed(&server, "tr_late", schema, STREAM).await;
    let (mut before, mut late) = (stream.source.client().await, stream.source.client().await);
    execute(&mut before, &["BEGIN", "INSERT INTO t VALUES (50, 'before the first read')"]).await;
    stream.run("t").await;
    execute(&mut before, &["COMMIT"]).await;
    execute(
        &mut late,
        &["BEGIN", "UPDATE t SET a = 'late' WHERE id = 1", "SAVEPOINT s", "DELETE FROM t WHERE id = 2"],
    )
    .await;
    for round in 0..3 {
        // Its number is lower than those that are read here.
        stream.after(&format!("INSERT INTO t VALUES (10 + {round}, 'meanwhile')"), "t").await;
    }
    assert_eq!(kept(&stream).await, "0", "what is open holds nothing up, and is not removed");
    execute(&mut late, &["COMMIT"]).await;
    assert_eq!(read(&stream.run("t").await), ("log", 2));
    execute(&mut late, &["BEGIN", "UPDATE t SET a = 'taken back' WHERE id = 1", "ROLLBACK"]).await;
    assert_eq!(stream.run("t").await["verdict"], "nothing_to_do");
    // A statement that waits for another, which goes on writing: neither fails.
    let mut waits = stream.source.client().await;
    execute(&mut late, &["BEGIN", "UPDATE t SET a = 'x' WHERE id = 11"]).await;
    let waiting =
        tokio::spawn(async move { waits.query_drop("UPDATE t SET a = 'y' WHERE id IN (10, 11)").await });
    stream.after("INSERT INTO t VALUES (60, 'meanwhile')", "t").await;
    execute(&mut late, &["UPDATE t SET a = 'x' WHERE id = 12", "COMMIT"]).await;
    waiting.await.unwrap().unwrap();
    stream.run("t").await;
}

#[tokio::test]
async fn odd_names_and_keys() {
    let Some(server) = fixture::mariadb().await else { return };
    let schema = "CREATE TABLE t (u bigint unsigned, d decimal(20,4), b binary(4), vb varbinary(8), bi bit(9), y year,
             da date, ti time(3), dt datetime(6), ts timestamp(1) DEFAULT '2001-01-01', c char(5), `it's ``odd``` varchar(20), v int,
             PRIMARY KEY (u, d, b, vb, bi, y, da, ti, dt, ts, c, `it's ``odd```));
         CREATE TABLE blind (name varchar(20) COLLATE utf8mb4_general_ci PRIMARY KEY, l char(4) CHARACTER SET latin1, v int, UNIQUE (l));
         CREATE TABLE `Odd #P# ä's` (id int PRIMARY KEY, v int) PARTITION BY RANGE (id)
             (PARTITION low VALUES LESS THAN (10), PARTITION high VALUES LESS THAN (100));
         INSERT INTO `Odd #P# ä's` VALUES (1, 1), (20, 1)";
    let streams = ["t: { change: trigger }", "blind: { change: trigger }"];
    let stream = installed(&server, "tr_odd", schema, &streams).await;
    let row = |n: i64| {
        format!(
            "({}, {}, X'{:04x}', X'{}', {}, {}, date '0999-01-01' + interval {n} month, '{:02}:59:59.{:03}', \
             timestamp '1969-12-31 23:59:59.999999' + interval {n} day, timestamp '2001-01-01 00:00:00.1' + interval {n} hour, '{}', '{}', 1)",
            u64::MAX - n as u64,
            if n % 2 == 0 { format!("-{n}.0001") } else { format!("999999999999999.{n}") },
            n * 256,
            ["", "00", "0020", "ff00"][n as usize % 4],
            n * 40,
            1901 + n,
            n,
            n * 7,
            ["", "ä€", "A"][n as usize % 3],
            ["", "a ", "''\\\\"][n as usize % 3],
        )
    };
    let rows = |from: i64, to: i64| (from..to).map(row).collect::<Vec<_>>().join(", ");
    stream.source.run(&format!("INSERT INTO t VALUES {}", rows(0, 8))).await;
    stream.source.run("INSERT INTO blind VALUES ('ann', 'é', 1), ('bob', 'B', 1), ('cid', 'c', 1)").await;
    stream.pipeline.ok(&["sync"]);
    let max = u64::MAX;
    stream
        .source
        .run(&format!(
            "INSERT INTO t VALUES {};
             UPDATE t SET v = 2 WHERE u > {max} - 3;
             DELETE FROM t WHERE u IN ({max} - 3, {max} - 4);
             UPDATE t SET dt = dt + interval 1 microsecond, c = 'moved', ts = ts + interval 5 hour WHERE u = {max} - 5;
             UPDATE blind SET name = 'ANN' WHERE name = 'ann';
             UPDATE blind SET name = 'bob ' WHERE name = 'bob';
             DELETE FROM blind WHERE name = 'CID';
             INSERT INTO blind VALUES ('Straße', 'x', 1);
             UPDATE blind SET v = 2 WHERE name = 'STRASSE'",
            rows(8, 12)
        ))
        .await;
    for report in stream.pipeline.json(&["sync"]) {
        assert_eq!(extent(&report), "log", "{report}");
    }
    stream.assert_same("t");
    stream.assert_same("blind");

    let odd = format!("\"{}.Odd #P# ä's\": {{ change: trigger, lake_table: odd }}", stream.source.name());
    let odd = Pipeline::new(&stream.source.url(), "sqlite://nobody.db", &[&odd]);
    odd.ok(&["setup"]);
    odd.ok(&["sync"]);
    stream.source.run("UPDATE `Odd #P# ä's` SET v = 2 WHERE id = 20").await;
    assert_eq!(read(&odd.json(&["sync"])[0]), ("log", 1));
    stream.source.run("ALTER TABLE `Odd #P# ä's` TRUNCATE PARTITION low").await;
    let read = odd.json(&["sync"]).remove(0);
    assert!(extent(&read) == "whole" && noted(&read, "truncated"), "{read}");
    assert_eq!(odd.ok(&["query", "--output", "csv", "select * from odd"]).stdout.trim(), "id,v\n20,2");
}

#[tokio::test]
async fn what_happened_to_triggers_is_noticed() {
    let Some(server) = fixture::mariadb().await else { return };
    let schema = "CREATE TABLE t (id int PRIMARY KEY, a text);
         INSERT INTO t VALUES (1, 'a'), (2, 'b')";
    let stream = installed(&server, "tr_gaps", schema, STREAM).await;
    stream.run("t").await;
    let whole = |report: &Value, why: &str| {
        assert!(extent(report) == "whole" && noted(report, why), "{why}: {report}");
    };
    // Gone and back again, word for word, between two passes: nobody sees it but the catalog.
    let name = stream.source.text("SELECT TRIGGER_NAME FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = database() AND EVENT_MANIPULATION = 'DELETE'").await;
    let made = format!(
        "SELECT ACTION_STATEMENT FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = database() AND TRIGGER_NAME = '{name}'"
    );
    let body = stream.source.text(&made).await;
    let again = format!(
        "DROP TRIGGER {name};
         DELETE FROM t WHERE id = 1;
         CREATE TRIGGER {name} AFTER DELETE ON t FOR EACH ROW {body}"
    );
    whole(&stream.after(&again, "t").await, "were altered");
    assert_eq!(stream.run("t").await["verdict"], "nothing_to_do");
    stream.source.run(&format!("DROP TRIGGER {name};\nDELETE FROM t")).await;
    for verb in ["sync", "check", "plan"] {
        refused(&stream.pipeline, &[verb], "is missing");
    }
    stream.source.run(&format!("CREATE TRIGGER {name} AFTER DELETE ON t FOR EACH ROW SET @x = 1")).await;
    refused(&stream.pipeline, &["sync"], "is not the one");
    stream.pipeline.ok(&["setup"]);
    whole(&stream.run("t").await, "installed anew");
    assert!(stream.pipeline.ok(&["setup"]).stdout.contains("nothing to do"));
    // The table of changes was emptied.
    let table = stream.source.text("SELECT changes FROM _frazil_tables").await;
    stream.source.run(&format!("INSERT INTO t VALUES (5, 'unseen');\nTRUNCATE `{table}`")).await;
    whole(&stream.run("t").await, "were altered");
    // The table was altered.
    whole(&stream.after("ALTER TABLE t ADD COLUMN b int DEFAULT 7", "t").await, "altered");
    whole(&stream.after("ALTER TABLE t DROP COLUMN b, ADD COLUMN b int", "t").await, "altered");
    assert_eq!(read(&stream.after("UPDATE t SET b = 1", "t").await), ("log", 1));
    // Keys of another type: the application goes on, and we do not.
    stream
        .source
        .run("ALTER TABLE t MODIFY id varchar(20) NOT NULL;\nINSERT INTO t VALUES ('abc', 'x', 1)")
        .await;
    refused(&stream.pipeline, &["sync"], "other types");
    stream.source.run("DROP TABLE t;\nCREATE TABLE t (id int PRIMARY KEY, a text, b int);\nINSERT INTO t VALUES (1, 'x', 1)").await;
    refused(&stream.pipeline, &["sync"], "there are no triggers of ours");
    stream.pipeline.ok(&["setup"]);
    whole(&stream.run("t").await, "installed anew");

    // Somebody took our line away, or put an old copy of the database back.
    stream.set(&["t: { change: trigger, on_gap: fail }"]);
    assert_eq!(extent(&stream.after("UPDATE t SET a = 'y'", "t").await), "log");
    stream.source.run("UPDATE t SET a = 'z';\nUPDATE _frazil_readers SET taken = taken - 1").await;
    refused(&stream.pipeline, &["sync"], "a copy was put back");
    stream.source.run("DELETE FROM _frazil_readers").await;
    refused(&stream.pipeline, &["sync"], "its reader was forgotten");
    stream.set(STREAM);
    whole(&stream.run("t").await, "its reader was forgotten");
    stream.source.run("UPDATE _frazil_tables SET pruned = pruned + 1;\nUPDATE t SET a = 'w'").await;
    whole(&stream.run("t").await, "were removed");
    assert_eq!(read(&stream.after("UPDATE t SET a = 'v'", "t").await), ("log", 1));
}

#[tokio::test]
async fn two_readers_and_nothing_left_in_the_end() {
    let Some(server) = fixture::mariadb().await else { return };
    let schema = "CREATE TABLE t (id int PRIMARY KEY, a text);
         INSERT INTO t SELECT seq, 'a' FROM seq_1_to_50";
    let stream = installed(&server, "tr_two", schema, STREAM).await;
    let t = format!("{}.t: {{ change: trigger }}", stream.source.name());
    let other = Pipeline::new(&stream.source.url(), "sqlite://nobody.db", &[&t]);
    assert!(other.ok(&["setup"]).stdout.contains("nothing to do"));
    stream.run("t").await;
    other.ok(&["sync"]);
    stream.after("UPDATE t SET a = 'b' WHERE id <= 10", "t").await;
    assert_eq!(kept(&stream).await, "10", "the other one has not read them");
    stream.after("DELETE FROM t WHERE id = 1", "t").await;
    assert_eq!(read(&other.json(&["sync"])[0]), ("log", 10));
    // The slower one goes on with what the faster one has read before it.
    stream.after("INSERT INTO t VALUES (100, 'x')", "t").await;
    assert_eq!(read(&other.json(&["sync"])[0]), ("log", 1));
    assert_eq!(kept(&stream).await, "0");
    let rows = "select count(*) as n, max(id) as m, min(id) as l from t";
    assert_eq!(other.ok(&["query", "--output", "csv", rows]).stdout.lines().nth(1), Some("50,100,2"));

    stream.source.run("UPDATE _frazil_readers SET seen = seen - INTERVAL 8 DAY").await;
    let silent = "was last seen on";
    assert!(stream.pipeline.ok(&["check"]).stdout.contains(silent));
    other.ok(&["sync"]);
    let checked = stream.pipeline.ok(&["check"]).stdout;
    assert!(!checked.contains(silent), "it came, although nothing had changed: {checked}");

    let stays = other.ok(&["teardown", "--yes"]).stdout;
    assert!(stays.contains("the triggers stay for the reader"), "{stays}");
    assert_eq!(read(&stream.after("UPDATE t SET a = 'still' WHERE id = 2", "t").await), ("log", 1));
    let printed = stream.pipeline.ok(&["teardown", "--dry-run"]).stdout;
    assert!(printed.contains("DROP TRIGGER IF EXISTS"), "{printed}");
    assert!(!stream.pipeline.ok(&["discover", "shop"]).stdout.contains("_frazil_"));
    stream.pipeline.ok(&["teardown", "--yes"]);
    let left = "SELECT (SELECT COUNT(*) FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = database())
                     + (SELECT COUNT(*) FROM information_schema.TABLES WHERE TABLE_SCHEMA = database())";
    assert_eq!(stream.source.text(left).await, "1", "the table itself");
    assert!(stream.pipeline.ok(&["teardown", "--yes"]).stdout.contains("nothing to do"));
    stream.source.run("UPDATE t SET a = 'unseen' WHERE id = 3").await;
    refused(&stream.pipeline, &["sync"], "frazil setup");
    // What is printed can be executed by somebody else.
    let printed = stream.pipeline.ok(&["setup", "--dry-run"]).stdout;
    let statements: Vec<&str> = printed.lines().filter(|line| !line.starts_with("--")).collect();
    stream.source.run(&statements.join("\n")).await;
    assert!(stream.pipeline.ok(&["setup"]).stdout.contains("nothing to do"));
    assert_eq!(extent(&stream.run("t").await), "whole");
}

#[tokio::test]
async fn what_cannot_have_triggers_is_refused() {
    let Some(server) = fixture::mariadb().await else { return };
    let schema = "CREATE TABLE bare (id int, a text);
         CREATE TABLE e (k enum('a','b') PRIMARY KEY);
         CREATE TABLE m (id int PRIMARY KEY) ENGINE=MyISAM;
         CREATE TABLE versioned (id int PRIMARY KEY) WITH SYSTEM VERSIONING;
         CREATE TABLE t (id int PRIMARY KEY, a int);
         CREATE TABLE child (id int PRIMARY KEY, t int, FOREIGN KEY (t) REFERENCES t (id) ON DELETE SET NULL);
         CREATE VIEW v AS SELECT * FROM t";
    let stream = Log::new(&server, "tr_needs", schema, STREAM).await;
    let name = stream.source.name();
    for (refusal, why) in [
        ("bare: { change: trigger }", "the stream has none"),
        ("bare: { change: trigger, primary_key: id }", "no index begins with"),
        ("e: { change: trigger }", "does not read keys of type enum('a','b')"),
        ("m: { change: trigger }", "the engine MyISAM has no transactions"),
        ("versioned: { change: trigger }", "only tables without a history"),
        ("child: { change: trigger }", "a foreign key changes rows of the table"),
        ("v: { change: trigger, primary_key: id }", "only tables without a history"),
        ("t: { change: trigger, where: a > 1 }", "does not go with"),
        ("t: { change: trigger, values: { types: { id: text } } }", "reads a key as the type that it has"),
    ] {
        let pipeline =
            Pipeline::new(&stream.source.url(), "sqlite://nobody.db", &[&format!("{name}.{refusal}")]);
        for verb in ["setup", "check", "sync"] {
            refused(&pipeline, &[verb], why);
        }
    }
    let made = "SELECT COUNT(*) FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = database()";
    assert_eq!(stream.source.text(made).await, "0");
}

#[tokio::test]
async fn rights_are_few_and_named() {
    let Some(server) = fixture::mariadb().await else { return };
    let schema = "CREATE TABLE t (id int PRIMARY KEY, a int);
         INSERT INTO t VALUES (1, 1)";
    let stream = Log::new(&server, "tr_rights", schema, STREAM).await;
    let name = stream.source.name().to_owned();
    let user = |kind: &str| format!("{kind}{}", &name[name.len() - 8..]);
    let (reader, application) = (user("r"), user("a"));
    let mut admin = stream.source.client().await;
    for user in [&reader, &application] {
        execute(&mut admin, &[&format!("CREATE USER '{user}'@'%' IDENTIFIED BY 'x'")]).await;
    }
    let grant = async |admin: &mut Conn, what: &str, on: &str, user: &str| {
        execute(admin, &[&format!("GRANT {what} ON {on} TO '{user}'@'%'")]).await;
    };
    let table = format!("`{name}`.t");
    grant(&mut admin, "SELECT, INSERT, UPDATE, DELETE", &table, &application).await;
    grant(&mut admin, "SELECT", &table, &reader).await;
    let url = stream.source.url_as(&reader, "x", stream.source.port());
    let poor = Pipeline::new(&url, "sqlite://nobody.db", &[&format!("{name}.t: {{ change: trigger }}")]);
    let check = || {
        let ran = poor.run(&["check"]);
        ran.stdout + &ran.stderr
    };
    let said = check();
    assert!(said.contains("GRANT PROCESS ON *.*"), "{said}");
    grant(&mut admin, "PROCESS", "*.*", &reader).await;
    refused(&poor, &["setup"], "`--dry-run` prints");
    stream.pipeline.ok(&["setup"]);
    assert!(check().contains("GRANT TRIGGER ON"), "{}", check());
    grant(&mut admin, "TRIGGER", &table, &reader).await;
    for _ in 0..2 {
        let said = check();
        // The statements that it prints are all that it takes.
        for line in said.lines() {
            for rest in line.split("GRANT ").skip(1) {
                let Some((statement, _)) = rest.split_once("<user>") else { continue };
                execute(&mut admin, &[&format!("GRANT {statement}'{reader}'@'%'")]).await;
            }
        }
    }
    poor.ok(&["check"]);
    poor.ok(&["sync"]);
    // Who writes needs no right to what the triggers write to.
    let url = stream.source.url_as(&application, "x", stream.source.port());
    let mut client = Conn::from_url(url.replacen("mariadb", "mysql", 1)).await.unwrap();
    execute(
        &mut client,
        &["INSERT INTO t VALUES (2, 2)", "UPDATE t SET id = 3 WHERE id = 1", "DELETE FROM t WHERE id = 2"],
    )
    .await;
    drop(client);
    assert_eq!(read(&poor.json(&["sync"])[0]), ("log", 3));
    assert_eq!(kept(&stream).await, "0");
    // Where nobody but SUPER is trusted with triggers.
    stream.pipeline.ok(&["teardown", "--yes", "--force"]);
    grant(&mut admin, "CREATE, DROP, INSERT, SELECT, TRIGGER", &format!("`{name}`.*"), &reader).await;
    refused(&poor, &["setup"], "log_bin_trust_function_creators");
    for user in [&reader, &application] {
        execute(&mut admin, &[&format!("DROP USER '{user}'@'%'")]).await;
    }
}
