//! `change: trigger` of SQLite, through the program: what triggers write down, also of rows that go without
//! one, and what is left of them.

use std::path::Path;

use rusqlite::Connection as Database;
use serde_json::Value;
use tempfile::TempDir;

use crate::fixture::Pipeline;

/// A stream by triggers, and the files at its ends.
struct Triggers {
    folder: TempDir,
    source: Database,
    pipeline: Pipeline,
}

const STREAM: &[&str] = &["main.t: { change: trigger }"];

impl Triggers {
    /// With the triggers installed, and nothing read yet.
    fn new(schema: &str, streams: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let source = Database::open(folder.path().join("source.db")).unwrap();
        source.execute_batch(schema).unwrap();
        let url = |name: &str| format!("sqlite://{}", folder.path().join(name).display());
        let pipeline = Pipeline::new(&url("source.db"), &url("target.db"), streams);
        let installed = pipeline.json(&["setup"]);
        assert!(installed.iter().all(|stream| stream["done"] == true), "{installed:?}");
        Self { folder, source, pipeline }
    }

    /// Changes something, runs, and compares what came out at the other end.
    fn after(&self, sql: &str) -> Value {
        self.source.execute_batch(sql).unwrap();
        let report = self.pipeline.json(&["run"]).remove(0);
        assert_eq!(rows(&self.folder.path().join("target.db")), rows(&self.folder.path().join("source.db")));
        report
    }

    fn count(&self, sql: &str) -> i64 {
        self.source.query_row(sql, [], |row| row.get(0)).unwrap()
    }

    /// What cannot be done, and why.
    fn refused(&self, arguments: &[&str], why: &str) {
        let ran = self.pipeline.run(arguments);
        assert_ne!(ran.code, Some(0), "{ran:?}");
        assert!(format!("{}{}", ran.stdout, ran.stderr).contains(why), "{why}: {ran:?}");
    }
}

fn rows(file: &Path) -> Vec<String> {
    let database = Database::open(file).unwrap();
    let mut statement = database.prepare("SELECT id || ' ' || coalesce(a, '∅') FROM t ORDER BY id").unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
}

fn extent(report: &Value) -> &str {
    report["extract"]["extent"].as_str().unwrap()
}

fn read(report: &Value) -> (&str, u64) {
    (extent(report), report["extract"]["read"].as_u64().unwrap())
}

fn noted(report: &Value, text: &str) -> bool {
    report["extract"]["notes"].as_array().unwrap().iter().any(|note| note.as_str().unwrap().contains(text))
}

#[test]
fn what_triggers_write_down_arrives() {
    let triggers = Triggers::new(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT);
         WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100)
         INSERT INTO t SELECT i, 'row ' || i FROM n",
        STREAM,
    );
    assert_eq!(extent(&triggers.after("")), "whole");
    let changed = triggers.after(
        "INSERT INTO t VALUES (200, 'new'); UPDATE t SET a = 'x' WHERE id = 1; UPDATE t SET a = 'y' WHERE id = 1;
         DELETE FROM t WHERE id = 2; INSERT INTO t VALUES (2, 'back'); DELETE FROM t WHERE id = 3;
         UPDATE t SET id = 300 WHERE id = 4; UPDATE t SET id = -id WHERE id = 5; UPDATE t SET id = -id WHERE id = -5;
         INSERT INTO t VALUES (6, 'up') ON CONFLICT (id) DO UPDATE SET a = excluded.a; INSERT OR IGNORE INTO t VALUES (7, 'no');
         BEGIN; DELETE FROM t; ROLLBACK;
         BEGIN; INSERT INTO t VALUES (400, 'kept'); SAVEPOINT s; DELETE FROM t WHERE id > 50; ROLLBACK TO s; COMMIT",
    );
    assert_eq!(read(&changed), ("log", 10), "{changed}");
    let idle = triggers.after("");
    assert_eq!(idle["verdict"], "nothing_to_do", "{idle}");
    let table = "(SELECT changes FROM _frazil_tables)";
    assert_eq!(triggers.count(&format!("SELECT {table} LIKE '_frazil_changes_t_%'")), 1);
    let name: String =
        triggers.source.query_row("SELECT changes FROM _frazil_tables", [], |row| row.get(0)).unwrap();
    assert_eq!(triggers.count(&format!("SELECT count(*) FROM {name}")), 0, "what the lake has is removed");
    assert_eq!(read(&triggers.after("DELETE FROM t")), ("log", 101));
    assert_eq!(read(&triggers.after("INSERT INTO t VALUES (1, 'again')")), ("log", 1));
    assert!(!triggers.pipeline.ok(&["discover", "shop"]).stdout.contains("_frazil_"));
}

#[test]
fn rows_that_are_replaced_are_gone() {
    let triggers = Triggers::new(
        "CREATE TABLE t (id TEXT PRIMARY KEY COLLATE NOCASE, a TEXT UNIQUE, b INT, UNIQUE (a, b)) WITHOUT ROWID;
         CREATE UNIQUE INDEX blind ON t (a COLLATE NOCASE) WHERE b > 0;
         INSERT INTO t VALUES ('ann', 'one', 1), ('bob', 'two', 2), ('cid', 'three', 3), ('dan', 'four', 4)",
        STREAM,
    );
    triggers.after("");
    // The second takes the place of one row by its key, which differs in case, and of one by its value.
    triggers.after("INSERT OR REPLACE INTO t VALUES ('eve', 'one', 9)");
    triggers.after("REPLACE INTO t VALUES ('BOB', 'THREE', 9)");
    triggers.after("UPDATE OR REPLACE t SET a = 'one' WHERE id = 'dan'");
    triggers.after("UPDATE t SET id = 'Dan' WHERE id = 'dan'");
    assert_eq!(extent(&triggers.after("UPDATE t SET b = b + 1")), "log");
    assert_eq!(triggers.count("SELECT count(*) FROM t"), 2);
}

#[test]
fn what_happened_to_triggers_is_noticed() {
    let triggers = Triggers::new("CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT)", STREAM);
    triggers.after("INSERT INTO t VALUES (1, 'a'), (2, 'b')");
    let name: String = triggers
        .source
        .query_row("SELECT name FROM sqlite_schema WHERE name LIKE 'frazil_update%'", [], |row| row.get(0))
        .unwrap();
    triggers.source.execute_batch(&format!("DROP TRIGGER {name}; UPDATE t SET a = 'unseen'")).unwrap();
    for verb in ["run", "check", "plan"] {
        triggers.refused(&[verb], "is missing");
    }
    triggers.pipeline.ok(&["setup"]);
    let read = triggers.after("");
    assert!(extent(&read) == "whole" && noted(&read, "installed anew"), "{read}");
    let altered = triggers.after("ALTER TABLE t ADD COLUMN b INT DEFAULT 7");
    assert!(extent(&altered) == "whole" && noted(&altered, "was altered"), "{altered}");
    // A copy of the file from before is put back.
    let copy = triggers.folder.path().join("copy.db");
    triggers.source.execute("VACUUM INTO ?1", [copy.to_str().unwrap()]).unwrap();
    triggers.after("INSERT INTO t VALUES (3, 'c', 1), (4, 'd', 1)");
    std::fs::copy(&copy, triggers.folder.path().join("source.db")).unwrap();
    let read = triggers.after("SELECT 1");
    assert!(extent(&read) == "whole" && noted(&read, "a copy was put back"), "{read}");
}

#[test]
fn two_readers_and_nothing_left_in_the_end() {
    let triggers = Triggers::new(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT); INSERT INTO t VALUES (1, 'a'), (2, 'b')",
        STREAM,
    );
    let url = |name: &str| format!("sqlite://{}", triggers.folder.path().join(name).display());
    let other = Pipeline::new(&url("source.db"), &url("other.db"), STREAM);
    assert!(other.ok(&["setup"]).stdout.contains("nothing to do"));
    triggers.after("");
    other.ok(&["run"]);
    triggers.after("UPDATE t SET a = 'c'");
    triggers.after("DELETE FROM t WHERE id = 1");
    assert_eq!(read(&other.json(&["run"])[0]), ("log", 2));
    assert_eq!(rows(&triggers.folder.path().join("other.db")), ["2 c"]);
    triggers.source.execute_batch("UPDATE _frazil_readers SET seen = datetime('now', '-8 days')").unwrap();
    let silent = "was last seen on";
    assert!(triggers.pipeline.ok(&["check"]).stdout.contains(silent));
    other.ok(&["run"]);
    assert!(!triggers.pipeline.ok(&["check"]).stdout.contains(silent));
    assert!(other.ok(&["teardown", "--yes"]).stdout.contains("stay for the reader"));
    assert_eq!(read(&triggers.after("UPDATE t SET a = 'd'")), ("log", 1));
    let printed = triggers.pipeline.ok(&["teardown", "--dry-run"]).stdout;
    assert!(printed.contains("DROP TRIGGER"), "{printed}");
    triggers.pipeline.ok(&["teardown", "--yes"]);
    assert_eq!(triggers.count("SELECT count(*) FROM sqlite_schema WHERE name LIKE '%frazil%'"), 0);
    triggers.refused(&["run"], "frazil setup");
}

#[test]
fn crashes_lose_nothing() {
    let triggers = Triggers::new(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT); INSERT INTO t VALUES (1, 'a'), (2, 'b')",
        STREAM,
    );
    for faults in
        ["before_commit=return(kill)", "after_commit=return(kill)", "before_acknowledge=return(kill)"]
    {
        triggers.source.execute_batch("UPDATE t SET a = a || 'x'; INSERT INTO t (a) VALUES ('new')").unwrap();
        assert_ne!(triggers.pipeline.run_with_faults(&["run"], faults).code, Some(0), "{faults}");
        triggers.after("DELETE FROM t WHERE id = (SELECT max(id) FROM t)");
    }
    assert_eq!(extent(&triggers.after("INSERT INTO t (a) VALUES ('last')")), "log");
}
