//! `change: log` of MariaDB, through the program: what the log says, what it does not say, and what is
//! missing for it. What a full read sees of the same table is what has to be in the lake.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use mysql_async::prelude::Queryable;
use serde_json::Value;

use crate::fixture::{self, MariaDatabase, MariaDb, Pipeline};

/// Nobody loads: a target has to be named all the same.
const NOBODY: &str = "sqlite://nobody.db";

/// A stream over the log.
pub(crate) struct Log {
    pub(crate) source: MariaDatabase,
    pub(crate) pipeline: Pipeline,
    /// Where the stream reads, if not at the source itself.
    through: Option<String>,
}

/// A pipeline that ends in the lake.
fn to_lake(source: &MariaDatabase, streams: &[&str]) -> Pipeline {
    by_url(source, &source.url(), streams)
}

fn by_url(source: &MariaDatabase, url: &str, streams: &[&str]) -> Pipeline {
    let streams: Vec<_> = streams.iter().map(|stream| format!("{}.{stream}", source.name())).collect();
    let streams: Vec<_> = streams.iter().map(String::as_str).collect();
    Pipeline::new(url, NOBODY, &streams)
}

impl Log {
    pub(crate) async fn new(server: &MariaDb, name: &str, schema: &str, streams: &[&str]) -> Self {
        let source = server.database(name).await;
        source.run(schema).await;
        let pipeline = to_lake(&source, streams);
        Self { source, pipeline, through: None }
    }

    /// The same for a source that is read in another way than it is written.
    pub(crate) async fn through(source: MariaDatabase, url: String, schema: &str, streams: &[&str]) -> Self {
        source.run(schema).await;
        let pipeline = by_url(&source, &url, streams);
        Self { source, pipeline, through: Some(url) }
    }

    /// Goes on with another source that has the same tables; returns the one before.
    pub(crate) fn move_to(&mut self, source: MariaDatabase, streams: &[&str]) -> MariaDatabase {
        let before = std::mem::replace(&mut self.source, source);
        self.set(streams);
        before
    }

    /// The same lake with other settings of its streams.
    pub(crate) fn set(&self, streams: &[&str]) {
        let streams: Vec<_> =
            streams.iter().map(|stream| format!("{}.{stream}", self.source.name())).collect();
        let streams: Vec<_> = streams.iter().map(String::as_str).collect();
        let url = self.through.clone().unwrap_or_else(|| self.source.url());
        self.pipeline.rewrite(&url, NOBODY, &BTreeMap::new(), &streams);
    }

    /// Reads, and compares what is in the lake then.
    pub(crate) async fn run(&self, table: &str) -> Value {
        let report = self.pipeline.json(&["sync"]).remove(0);
        self.assert_same(table);
        report
    }

    /// The same after some changes.
    pub(crate) async fn after(&self, sql: &str, table: &str) -> Value {
        self.source.run(sql).await;
        self.run(table).await
    }

    /// Holds a table of the lake against one that was read whole.
    pub(crate) fn assert_same(&self, table: &str) {
        let whole = to_lake(&self.source, &[&format!("{table}: {{ change: full }}")]);
        whole.ok(&["sync"]);
        let (expected, found) = (lines(&whole, table), lines(&self.pipeline, table));
        assert_eq!(expected.len(), found.len(), "{table}");
        for (expected, found) in expected.iter().zip(&found) {
            assert_eq!(expected, found, "{table}");
        }
    }
}

/// All rows of a table of the lake, in some order that is always the same.
fn lines(pipeline: &Pipeline, table: &str) -> Vec<String> {
    let text = pipeline.ok(&["query", "--output", "csv", &format!("select * from {table}")]).stdout;
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

pub(crate) fn extent(report: &Value) -> &str {
    report["extract"]["extent"].as_str().unwrap()
}

pub(crate) fn noted(report: &Value, text: &str) -> bool {
    report["extract"]["notes"].as_array().unwrap().iter().any(|note| note.as_str().unwrap().contains(text))
}

const STREAM: &[&str] = &["t: { change: log }"];

#[tokio::test]
async fn what_the_log_says_arrives() {
    let Some(server) = fixture::mariadb().await else { return };
    let schema = "CREATE TABLE t (id int PRIMARY KEY, a text, n decimal(12,2), v int AS (id * 2));
         CREATE TABLE other (id int PRIMARY KEY);
         INSERT INTO t (id, a, n) SELECT seq, concat('row ', seq), seq / 7 FROM seq_1_to_1000";
    let log = Log::new(&server, "log_says", schema, STREAM).await;
    let first = log.run("t").await;
    assert_eq!((extent(&first), first["extract"]["change"].as_str()), ("whole", Some("log")), "{first}");

    let changed = log
        .after(
            "INSERT INTO t (id, a, n) VALUES (2000, 'new', null);
             UPDATE t SET a = 'changed' WHERE id % 10 = 0;
             UPDATE t SET a = 'again' WHERE id = 20;
             DELETE FROM t WHERE id % 10 = 1;
             INSERT INTO t (id, a, n) VALUES (11, 'back', 11);
             UPDATE t SET id = id + 5000 WHERE id in (5, 15);
             UPDATE t SET id = -id WHERE id = 25;
             UPDATE t SET id = -id WHERE id = -25;
             INSERT INTO other SELECT seq FROM seq_1_to_10;
             BEGIN;
             INSERT INTO t (id) VALUES (3000);
             SAVEPOINT a;
             DELETE FROM t;
             ROLLBACK",
            "t",
        )
        .await;
    assert_eq!(extent(&changed), "log", "{changed}");
    assert!(changed["extract"]["rows"].as_u64().unwrap() < 210, "{changed}");
    // Nothing happened: nothing is written. Others' changes are no news either.
    let idle = log.after("INSERT INTO other SELECT seq FROM seq_11_to_20", "t").await;
    assert_eq!(idle["verdict"], "nothing_to_do", "{idle}");
    // Part of a transaction that was rolled back; many changes of one key; columns and indexes that come.
    let changed = log
        .after(
            "BEGIN;
             INSERT INTO t (id, a) VALUES (4000, 'kept');
             SAVEPOINT a;
             DELETE FROM t WHERE id < 500;
             ROLLBACK TO a;
             UPDATE t SET n = n + 1 WHERE id BETWEEN 500 AND 510;
             COMMIT;
             UPDATE t SET a = 'x' WHERE id = 600;
             ALTER TABLE t ADD COLUMN added varchar(20) NULL COMMENT 'not null default', ADD INDEX (n);
             UPDATE t SET a = 'y', added = 'then' WHERE id = 600;
             CREATE INDEX more ON t (added)",
            "t",
        )
        .await;
    let rows = changed["extract"]["rows"].as_u64();
    assert_eq!((extent(&changed), rows), ("log", Some(12)), "{changed}");
}

#[tokio::test]
async fn a_key_may_have_any_of_these_types() {
    let Some(server) = fixture::mariadb().await else { return };
    let key = [
        ("u8", "bigint unsigned"),
        ("i1", "tinyint"),
        ("i3", "mediumint"),
        ("d", "decimal(20,4)"),
        ("c", "char(5)"),
        ("b", "binary(4)"),
        ("bi", "bit(9)"),
        ("y", "year"),
        ("da", "date"),
        ("ti", "time(3)"),
        ("dt", "datetime(6)"),
        ("ts", "timestamp(1)"),
        ("vb", "varbinary(8)"),
        ("l", "varchar(9) CHARACTER SET latin1 COLLATE latin1_bin"),
    ];
    let mut schema = "CREATE TABLE t (x int, before_key varchar(300), j json, p point, e enum('a','b'), s set('x','y'), f float, bl blob".to_owned();
    for (name, of) in key {
        write!(schema, ", {name} {of} NOT NULL").unwrap();
    }
    let values = |n: i64| {
        format!(
            "(1, repeat('ä', 300), '{{}}', ST_GeomFromText('POINT(1 2)'), 'b', 'x,y', 0.1, x'00', {}, {}, {}, {}, '{}', x'{:04x}', {}, {}, \
             date '0999-01-01' + interval {n} month, '{:02}:59:59.{:03}', timestamp '1969-12-31 23:59:59.999999' + interval {n} day, \
             timestamp '2001-01-01 00:00:00.1' + interval {n} hour, x'{}', '{}')",
            (u64::MAX - n as u64),
            n - 5,
            -8_388_608 + n,
            if n % 2 == 0 { format!("-{n}.0001") } else { format!("999999999999999.{n}") },
            ["", "a ", "ä€", "A", "a''\\\\b"][n as usize % 5],
            n * 256,
            n * 40,
            1901 + n,
            n,
            n * 7,
            ["", "00", "0020", "ff00"][n as usize % 4],
            ["", "é", "€", "ÿ\u{81}"][n as usize % 4],
        )
    };
    write!(schema, ", PRIMARY KEY ({})) DEFAULT CHARSET utf8mb4", key.map(|(name, _)| name).join(", "))
        .unwrap();
    let rows = |from: i64, to: i64| (from..to).map(values).collect::<Vec<_>>().join(", ");
    schema += &format!(";\nINSERT INTO t VALUES {}", rows(0, 8));
    let log = Log::new(&server, "log_keys", &schema, STREAM).await;
    log.run("t").await;
    let changed = log
        .after(
            &format!(
                "INSERT INTO t VALUES {};
                 UPDATE t SET x = 2 WHERE i1 > -3;
                 DELETE FROM t WHERE i1 IN (-5, -4, 0);
                 UPDATE t SET dt = dt + interval 1 microsecond, l = 'moved' WHERE i1 = 1",
                rows(8, 12)
            ),
            "t",
        )
        .await;
    assert_eq!(extent(&changed), "log", "{changed}");
    // Each by itself too: together they could hide that one of them is never found.
    for column in [
        "a int",
        "a varchar(20) COLLATE utf8mb4_general_ci",
        "a varchar(20) CHARACTER SET latin1",
        "a time(6)",
        "a bit(20)",
    ] {
        let log = Log::new(
            &server,
            "log_key",
            &format!("CREATE TABLE t ({column} PRIMARY KEY, x int)"),
            &["t: { change: log, values: { out_of_range: clamp } }"],
        )
        .await;
        log.run("t").await;
        let first = if column.contains("char") {
            "'Straße', 1), ('b', 1), ('c ', 1"
        } else {
            "1, 1), (20, 1), (300, 1"
        };
        let again = if column.contains("char") {
            "UPDATE t SET a = 'B' WHERE a = 'b'"
        } else {
            "UPDATE t SET x = 3 WHERE a = 20"
        };
        let more = if column.starts_with("a time") {
            ";\nINSERT INTO t VALUES ('-00:00:01.5', 1);\nDELETE FROM t WHERE a < 0"
        } else {
            ""
        };
        let changed = log.after(&format!("INSERT INTO t VALUES ({first});\n{again}{more}"), "t").await;
        assert_eq!(extent(&changed), "log", "{column}: {changed}");
        let changed = log.after("UPDATE t SET x = 9;\nDELETE FROM t ORDER BY a LIMIT 1", "t").await;
        assert_eq!(extent(&changed), "log", "{column}: {changed}");
    }
}

#[tokio::test]
async fn what_the_log_does_not_say_is_read_from_the_table() {
    let Some(server) = fixture::mariadb().await else { return };
    let schema = "CREATE TABLE parent (id int PRIMARY KEY, name text);
         CREATE TABLE t (id int PRIMARY KEY, p int, a text, FOREIGN KEY (p) REFERENCES parent (id) ON DELETE CASCADE ON UPDATE CASCADE);
         INSERT INTO parent SELECT seq, '' FROM seq_1_to_20;
         INSERT INTO t SELECT seq, seq % 10 + 1, 'a' FROM seq_1_to_100";
    let log = Log::new(&server, "log_silent", schema, STREAM).await;
    log.run("t").await;
    for (sql, why) in [
        ("DELETE FROM parent WHERE id = 3", "a foreign key may have changed rows"),
        ("UPDATE parent SET id = 30 WHERE id = 4", "a foreign key may have changed rows"),
        ("DELETE FROM parent WHERE id = 5;\nALTER TABLE t DROP FOREIGN KEY t_ibfk_1", "were altered"),
        ("ALTER TABLE t ADD COLUMN filled int DEFAULT 5", "its columns are others"),
        ("ALTER TABLE t MODIFY filled bigint", "its columns are others"),
        (
            "DELETE FROM t WHERE id = 7;\nTRUNCATE TABLE t;\nINSERT INTO t VALUES (1, 1, 'after', 1)",
            "it was truncated",
        ),
        (
            "CREATE TABLE n LIKE t;\nINSERT INTO n VALUES (9, null, 'n', 1);\nRENAME TABLE t TO old, n TO t",
            "renamed",
        ),
        ("DROP TABLE t;\nCREATE TABLE t (id int PRIMARY KEY, p int, a text, filled bigint)", "dropped"),
    ] {
        let changed = log.after(sql, "t").await;
        assert!(extent(&changed) == "whole" && noted(&changed, why), "{sql}: {changed}");
    }
    // From here on the log is enough again.
    let changed = log.after("INSERT INTO t VALUES (5, 5, 'five', '5')", "t").await;
    assert_eq!(extent(&changed), "log", "{changed}");
}

/// A table that refers to itself, and two that refer to each other: the log names no other table then.
#[tokio::test]
async fn a_foreign_key_may_lead_back_to_its_table() {
    let Some(server) = fixture::mariadb().await else { return };
    let schema =
        "CREATE TABLE t (id int PRIMARY KEY, up int, FOREIGN KEY (up) REFERENCES t (id) ON DELETE CASCADE);
         INSERT INTO t VALUES (1, null), (2, 1), (3, 2), (4, null);
         CREATE TABLE a (id int PRIMARY KEY, b int);
         CREATE TABLE b (id int PRIMARY KEY, a int, FOREIGN KEY (a) REFERENCES a (id) ON DELETE CASCADE);
         ALTER TABLE a ADD FOREIGN KEY (b) REFERENCES b (id) ON DELETE CASCADE;
         INSERT INTO a VALUES (1, null);
         INSERT INTO b VALUES (1, 1);
         INSERT INTO a VALUES (2, 1)";
    let streams = ["t: { change: log }", "a: { change: log }"];
    let log = Log::new(&server, "log_circle", schema, &streams).await;
    log.pipeline.ok(&["sync"]);
    log.source.run("DELETE FROM t WHERE id = 1;\nDELETE FROM a WHERE id = 1").await;
    for report in &log.pipeline.json(&["sync"]) {
        let why = "a foreign key may have changed rows";
        assert!(extent(report) == "whole" && noted(report, why), "{report}");
    }
    log.assert_same("t");
    log.assert_same("a");
    // Nothing leads on from rows that come, or from what is no key.
    log.source.run("INSERT INTO t VALUES (5, 4);\nUPDATE t SET up = null WHERE id = 5").await;
    for report in &log.pipeline.json(&["sync"]) {
        assert_eq!(extent(report), "log", "{report}");
    }
    log.assert_same("t");
}

#[tokio::test]
async fn a_first_read_that_was_killed_goes_on_and_shows_what_was() {
    let Some(server) = fixture::mariadb().await else { return };
    let schema = "CREATE TABLE t (id int PRIMARY KEY, v int, filler text);
         INSERT INTO t SELECT seq, 0, repeat('x', 200) FROM seq_1_to_20000;
         ANALYZE TABLE t";
    let log = Log::new(&server, "log_first", schema, &["t: { change: log, portion: 512KiB }"]).await;
    let killed = log.pipeline.run_with_faults(&["sync"], "after_commit=1*off->return(kill)");
    assert_ne!(killed.code, Some(0), "{killed:?}");
    log.source
        .run(
            "UPDATE t SET id = id + 100000 WHERE id BETWEEN 1 AND 100;
             UPDATE t SET id = -id WHERE id > 19900;
             UPDATE t SET v = 1 WHERE id % 1000 = 0;
             DELETE FROM t WHERE id BETWEEN 200 AND 300",
        )
        .await;
    let report = log.run("t").await;
    assert!(noted(&report, "goes on where it stopped"), "{report}");
    let shown = log.pipeline.json(&["snapshots", "t"]);
    let changed = log.after("UPDATE t SET v = 2 WHERE id = 500", "t").await;
    assert_eq!(extent(&changed), "log", "{changed} {shown:?}");
}

#[tokio::test]
async fn what_is_missing_is_said_with_what_helps() {
    let Some(server) = fixture::mariadb().await else { return };
    let schema = "CREATE TABLE bare (id int);
         CREATE TABLE e (id enum('a','b') PRIMARY KEY);
         CREATE TABLE m (id int PRIMARY KEY) ENGINE=MyISAM;
         CREATE TABLE versioned (id int PRIMARY KEY) WITH SYSTEM VERSIONING;
         CREATE TABLE t (id int PRIMARY KEY);
         CREATE VIEW v AS SELECT * FROM t";
    let log = Log::new(&server, "log_needs", schema, STREAM).await;
    for (stream, message) in [
        ("bare: { change: log }", "the stream has none"),
        ("e: { change: log }", "does not read keys of type enum('a','b')"),
        ("m: { change: log }", "the engine MyISAM has no snapshots"),
        ("versioned: { change: log }", "only tables without a history"),
        ("v: { change: log, primary_key: id }", "only tables without a history"),
        ("t: { change: log, values: { types: { id: text } } }", "reads a key as the type that it has"),
    ] {
        let ran = to_lake(&log.source, &[stream]).run(&["sync"]);
        assert!(ran.code != Some(0) && ran.stderr.contains(message), "{stream}: {ran:?}");
    }

    let user = format!("u{}", &log.source.name()[log.source.name().len() - 8..]);
    let mut admin = log.source.client().await;
    admin.query_drop(format!("CREATE USER '{user}'@'%' IDENTIFIED BY 'x'")).await.unwrap();
    admin.query_drop(format!("GRANT SELECT ON `{}`.* TO '{user}'@'%'", log.source.name())).await.unwrap();
    let url = log.source.url_as(&user, "x", log.source.port());
    let stream = format!("{}.t: {{ change: log }}", log.source.name());
    let poor = Pipeline::new(&url, NOBODY, &[&stream]);
    let check = || {
        let ran = poor.run(&["check"]);
        ran.stdout + &ran.stderr
    };
    let suggested = || {
        let ran = poor.ok(&["setup", "--dry-run"]);
        ran.stdout + &ran.stderr
    };
    let (checked, ran) = (check(), poor.run(&["sync"]));
    assert!(suggested().contains("GRANT BINLOG MONITOR"), "{}", suggested());
    assert!(checked.contains("GRANT BINLOG MONITOR"), "{checked}");
    assert!(ran.stderr.contains("GRANT BINLOG MONITOR"), "{ran:?}");
    admin.query_drop(format!("GRANT BINLOG MONITOR ON *.* TO '{user}'@'%'")).await.unwrap();
    let (checked, ran) = (check(), poor.run(&["sync"]));
    assert!(suggested().contains("GRANT REPLICATION SLAVE"), "{}", suggested());
    assert!(checked.contains("GRANT REPLICATION SLAVE"), "{checked}");
    assert!(ran.code != Some(0) && ran.stderr.contains("GRANT REPLICATION SLAVE"), "{ran:?}");
    admin.query_drop(format!("GRANT REPLICATION SLAVE ON *.* TO '{user}'@'%'")).await.unwrap();
    assert!(!suggested().contains("GRANT"), "{}", suggested());
    poor.ok(&["sync"]);
    admin.query_drop(format!("DROP USER '{user}'@'%'")).await.unwrap();
}
