//! Rows that a contract leaves out are dead letters: none lost, none doubled, at any crash.

use std::collections::BTreeSet;
use std::path::Path;

use rusqlite::Connection as Sqlite;
use serde_json::Value;

use crate::fixture::{Pipeline, Ran};

/// A shop in SQLite, a lake on disk, and one stream; `n` was made for small numbers.
struct Shop {
    dir: tempfile::TempDir,
    pipeline: Pipeline,
}

fn url(path: &Path) -> String {
    format!("sqlite://{}", path.display())
}

impl Shop {
    /// Before anything was rejected: three rows in the lake.
    fn new(table: &str, settings: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (shop, target) = (dir.path().join("shop.db"), dir.path().join("dwh.db"));
        let db = Sqlite::open(&shop).unwrap();
        db.execute_batch(&format!(
            "create table t ({table}, n int, v int not null); insert into t (n, v) values (1, 1), (2, 2), (3, 3)"
        ))
        .unwrap();
        let stream = format!("main.t: {{ {settings} }}");
        let pipeline = Pipeline::new(&url(&shop), &url(&target), &[&stream]);
        pipeline.ok(&["run"]);
        let shop = Self { dir, pipeline };
        shop.settings(&format!("{settings}, schema: discard_row"));
        shop.sql("alter table t add column c text");
        shop
    }

    fn settings(&self, settings: &str) {
        let (shop, target) = (self.dir.path().join("shop.db"), self.dir.path().join("dwh.db"));
        let stream = format!("main.t: {{ {settings} }}");
        self.pipeline.rewrite(&url(&shop), &url(&target), &Default::default(), &[&stream]);
    }

    fn sql(&self, sql: &str) {
        Sqlite::open(self.dir.path().join("shop.db")).unwrap().execute_batch(sql).unwrap();
    }

    fn numbers(&self, database: &str, sql: &str) -> Vec<i64> {
        let db = Sqlite::open(self.dir.path().join(database)).unwrap();
        let mut statement = db.prepare(sql).unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }

    /// The letters, whole, newest first.
    fn letters(&self) -> Vec<Value> {
        lines(&self.pipeline.ok(&["dlq", "show", "main.t", "--output", "json"]))
    }

    /// What `v` is in the letters, in order.
    fn in_letters(&self) -> Vec<i64> {
        let payload =
            |letter: &Value| -> Value { serde_json::from_str(letter["payload"].as_str().unwrap()).unwrap() };
        let mut values: Vec<i64> =
            self.letters().iter().map(|letter| payload(letter)["v"].as_i64().unwrap()).collect();
        values.sort_unstable();
        values
    }

    /// Each row of the source is in the target or is a letter, once.
    fn is_complete(&self) {
        let target = self.numbers("dwh.db", "select v from t order by v");
        let mut found = [target, self.in_letters()].concat();
        found.sort_unstable();
        assert_eq!(found, self.numbers("shop.db", "select v from t order by v"));
    }
}

fn lines(ran: &Ran) -> Vec<Value> {
    ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

const KEYED: &str = "id integer primary key";
const NO_KEY: &str = "place text default 'x'";
const ADDED: &str = "insert into t (n, v, c) values (40, 4, 'new'), (50, 5, null), (60, 6, 'new')";

#[test]
fn what_is_rejected_is_listed_and_shown() {
    let shop = Shop::new(KEYED, "change: full");
    shop.sql(ADDED);
    let report = lines(&shop.pipeline.ok(&["run", "--output", "json"])).remove(0);
    assert_eq!(report["extract"]["rejected"], 2, "{report}");
    shop.is_complete();
    let listed = lines(&shop.pipeline.ok(&["dlq", "list", "--output", "json"]));
    let fields =
        |of: &Value| ["stream", "leg", "letters", "reason"].map(|name| of[name].to_string()).join(" ");
    assert_eq!(
        listed.iter().map(fields).collect::<Vec<_>>(),
        [r#""main.t" "extract" 2 "`c` has no place in the lake""#]
    );
    let table = shop.pipeline.ok(&["dlq", "list"]).stdout;
    assert!(table.contains("extract") && table.contains("no place in the lake"), "{table}");
    let letters = shop.letters();
    let keys: BTreeSet<_> = letters.iter().map(|letter| letter["key"].as_str().unwrap()).collect();
    assert_eq!(keys, BTreeSet::from([r#"{"id":4}"#, r#"{"id":6}"#]));
    assert_eq!(letters[0]["run"], report["run"]);
    let payloads: BTreeSet<_> = letters.iter().map(|letter| letter["payload"].as_str().unwrap()).collect();
    assert!(payloads.contains(r#"{"id":4,"n":40,"v":4,"c":"new"}"#), "{payloads:?}");
    // A table like any other.
    let sql = "select count(*) as n from main.\"t__dead_letters\"";
    assert_eq!(lines(&shop.pipeline.ok(&["query", sql, "--output", "json"]))[0]["n"], 2);
    // Nothing changed: no trace.
    let before = shop.pipeline.parquet_files();
    let report = lines(&shop.pipeline.ok(&["run", "--output", "json"])).remove(0);
    assert_eq!(report["verdict"], "nothing_to_do", "{report}");
    assert_eq!(shop.pipeline.parquet_files(), before);

    let ran = shop.pipeline.run(&["dlq", "show", "main.u"]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.stderr.contains("there is no such stream") && ran.stderr.contains("main.t"), "{ran:?}");
}

#[test]
fn a_row_that_comes_through_takes_its_letter_away() {
    for settings in ["change: full", "change: version, cursor: v"] {
        let shop = Shop::new(KEYED, settings);
        shop.sql(ADDED);
        shop.pipeline.ok(&["run"]);
        assert_eq!(shop.in_letters(), [4, 6], "{settings}");
        shop.is_complete();
        // One is corrected, the other one rejected again, with other values.
        shop.sql("update t set c = null, v = 7 where id = 4; update t set v = 8 where id = 6");
        shop.pipeline.ok(&["run"]);
        assert_eq!(shop.in_letters(), [8], "{settings}");
        shop.is_complete();
        // The lake follows from now on.
        shop.settings(settings);
        shop.sql("update t set v = 9 where id = 6");
        shop.pipeline.ok(&["run"]);
        assert_eq!(shop.in_letters(), [0; 0], "{settings}");
        shop.is_complete();
        assert!(shop.pipeline.ok(&["dlq", "list"]).stderr.contains("no dead letters"));
    }
}

#[test]
fn rows_without_a_key_are_letters_one_by_one() {
    let shop = Shop::new(NO_KEY, "mode: replace");
    shop.sql("insert into t (n, v, c) values (40, 4, 'new'), (40, 4, 'new'), (50, 5, null)");
    for _ in 0..2 {
        shop.pipeline.ok(&["run"]);
        assert_eq!(shop.in_letters(), [4, 4]);
    }
    shop.is_complete();
    shop.sql("delete from t where rowid = 4");
    shop.pipeline.ok(&["run"]);
    assert_eq!(shop.in_letters(), [4]);

    let shop = Shop::new(NO_KEY, "mode: append, cursor: v, change: id");
    for round in [10, 20] {
        shop.sql(&format!(
            "insert into t (n, v, c) values (1, {round}, 'a'), (1, {round}, 'a'), (1, {round}, null)"
        ));
        shop.pipeline.ok(&["run"]);
        shop.is_complete();
    }
    assert_eq!(shop.in_letters(), [10, 10, 20, 20]);
    // A window that is read once more, after a rollback, brings the same letters.
    let snapshots = lines(&shop.pipeline.ok(&["snapshots", "main.t", "--output", "json"]));
    shop.pipeline.ok(&["rollback", "main.t", "--to", &snapshots[1]["snapshot"].to_string()]);
    shop.pipeline.ok(&["sync"]);
    assert_eq!(shop.in_letters(), [10, 10, 20, 20]);
}

#[test]
fn beyond_the_limit_nothing_is_committed() {
    for (limit, said) in [("1", "2 of 6 rows are rejected, at most 1 may be"), ("20%", "at most 20% may be")]
    {
        let shop = Shop::new(KEYED, "change: full");
        shop.settings(&format!("change: full, schema: discard_row, max_rejected: {limit}"));
        shop.sql("insert into t (n, v, c) values (40, 4, 'secret'), (50, 5, null), (60, 6, 'secret')");
        let ran = shop.pipeline.run(&["run"]);
        let all = format!("{}{}", ran.stdout, ran.stderr);
        assert_eq!(ran.code, Some(1), "{all}");
        assert!(all.contains(said) && all.contains("`c` has no place in the lake"), "{all}");
        assert!(!all.contains("secret"), "{all}");
        assert_eq!(shop.in_letters(), [0; 0]);
        assert_eq!(shop.numbers("dwh.db", "select count(*) from t"), [3]);
        shop.settings("change: full, schema: discard_row, max_rejected: 50%");
        shop.pipeline.ok(&["run"]);
        shop.is_complete();
    }
}

#[test]
fn letters_of_a_change_that_is_held_back_are_not_there() {
    let settings = "change: full, schema: discard_row";
    let shop = Shop::new(KEYED, settings);
    shop.sql(ADDED);
    shop.settings(&format!("{settings}, audit: {{ expect: n < 45 }}"));
    for _ in 0..2 {
        let ran = shop.pipeline.run(&["run"]);
        assert!(ran.code == Some(1) && ran.stderr.contains("the audit found"), "{ran:?}");
        assert_eq!(shop.in_letters(), [0; 0]);
    }
    shop.settings(&format!("{settings}, audit: {{ expect: n < 55 }}"));
    for point in ["before_publish", "before_commit"] {
        let ran = shop.pipeline.run_with_faults(&["run"], &format!("{point}=return(kill)"));
        assert_eq!(ran.code, None, "{ran:?}");
        assert_eq!(shop.in_letters(), [0; 0]);
    }
    shop.pipeline.ok(&["run"]);
    assert_eq!(shop.in_letters(), [4, 6]);
    shop.is_complete();
}

/// The second time that a commit is passed is that of the letters' own table.
#[test]
fn a_crash_at_any_point_loses_and_doubles_no_letter() {
    let streams = [(KEYED, "change: version, cursor: v"), (NO_KEY, "mode: append, cursor: v, change: id")];
    for (table, settings) in streams {
        let shop = Shop::new(table, settings);
        let mut v = 10;
        for point in ["before_commit", "after_commit", "before_acknowledge"] {
            for when in ["", "1*off->"] {
                for action in ["kill", "error"] {
                    shop.sql(&format!(
                        "insert into t (n, v, c) values (1, {v}, 'new'), (2, {v} + 1, null), (3, {v} + 2, 'new')"
                    ));
                    v += 10;
                    let faults = format!("{point}={when}return({action})");
                    let ran = shop.pipeline.run_with_faults(&["run"], &faults);
                    let passed = point != "before_acknowledge" || when.is_empty();
                    assert_eq!(ran.code == Some(0), !passed, "{settings}: {faults}: {ran:?}");
                    // What the crash left is delivered by whoever looks, or by the next pass.
                    if action == "kill" {
                        let letters = shop.in_letters();
                        assert_eq!(
                            BTreeSet::from_iter(&letters).len(),
                            letters.len(),
                            "{settings}: {faults}"
                        );
                    }
                    // The next pass has a note of its own, and one note has room.
                    shop.sql(&format!("insert into t (n, v, c) values (4, {v} - 1, 'new')"));
                    shop.pipeline.ok(&["run"]);
                    shop.is_complete();
                }
            }
        }
        assert_eq!(shop.in_letters().len(), 36, "{settings}");
    }
}

/// Files of letters in the lake.
fn files_aside(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let count = |path: std::path::PathBuf| match path.is_dir() {
        true => files_aside(&path),
        false => usize::from(path.extension().is_some_and(|kind| kind == "jsonl")),
    };
    entries.map(|entry| count(entry.path())).sum()
}

#[test]
fn files_of_letters_that_nobody_names_are_removed() {
    const REMOVE: [&str; 5] = ["maintain", "--remove-orphans", "--orphan-age", "0s", "--force"];
    let shop = Shop::new(KEYED, "change: full");
    let lake = shop.pipeline.location("main", "t");
    let aside = || files_aside(Path::new(&lake));
    shop.sql(ADDED);
    shop.pipeline.run_with_faults(&["run"], "before_commit=return(kill)");
    assert_eq!(aside(), 1);
    shop.pipeline.ok(&REMOVE);
    assert_eq!(aside(), 0);
    // One that a commit names stays, however old it is.
    shop.pipeline.run_with_faults(&["run"], "after_commit=return(kill)");
    assert_eq!(aside(), 1);
    shop.pipeline.ok(&REMOVE);
    assert_eq!(aside(), 1);
    shop.pipeline.ok(&["run"]);
    assert_eq!((aside(), shop.in_letters()), (0, vec![4, 6]));
    shop.is_complete();
}

#[test]
fn of_many_who_deliver_at_once_each_does_no_harm() {
    let shop = Shop::new(KEYED, "change: full");
    for round in 0..3 {
        shop.sql(&format!(
            "insert into t (n, v, c) values (1, {0}, 'new'), (1, {0} + 1, null)",
            10 * (round + 1)
        ));
        shop.pipeline.run_with_faults(&["run"], "after_commit=return(kill)");
        let start = |verb: &[&str]| {
            let mut command = shop.pipeline.command(verb);
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
            command.spawn().unwrap()
        };
        let verbs: [&[&str]; 5] =
            [&["dlq", "list"], &["dlq", "show", "main.t"], &["dlq", "list"], &["load"], &["dlq", "list"]];
        for (verb, child) in verbs.iter().zip(verbs.map(start)) {
            let done = crate::fixture::ran(child.wait_with_output().unwrap());
            assert_eq!(done.code, Some(0), "{verb:?}: {done:?}");
        }
        assert_eq!(shop.in_letters().len(), round + 1);
    }
    shop.pipeline.ok(&["run"]);
    shop.is_complete();
}
