//! `frazil serve` as its user meets it: streams that run when they are due, pauses, triggers, a changed
//! configuration, a database that is away for a while, a stop and a kill.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::fixture::Pipeline;

/// Longer than anything that is waited for takes, on a machine that does other things too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A shop and a warehouse in one folder each, and what serves them.
pub(crate) struct Served {
    pub(crate) pipeline: Pipeline,
    folder: tempfile::TempDir,
}

impl Served {
    pub(crate) fn new(streams: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = |name: &str| format!("sqlite://{}", folder.path().join(name).display());
        let pipeline = Pipeline::new(&url("shop.db"), &url("dwh.db"), streams);
        let served = Self { pipeline, folder };
        served.shop("pragma journal_mode = wal; create table a (id integer primary key, v text)");
        served.shop("create table b (id integer primary key, v text)");
        served.shop("insert into a values (1, 'one'); insert into b values (1, 'one')");
        served
    }

    /// A file of this shop.
    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn shop(&self, sql: &str) {
        let shop = Connection::open(self.folder.path().join("shop.db")).unwrap();
        shop.busy_timeout(PATIENCE).unwrap();
        shop.execute_batch(sql).unwrap();
    }

    pub(crate) fn url(&self, name: &str) -> String {
        format!("sqlite://{}", self.folder.path().join(name).display())
    }

    /// Rows of a table in the warehouse; none while there is no such table.
    pub(crate) fn rows(&self, table: &str) -> i64 {
        let Ok(dwh) = Connection::open(self.folder.path().join("dwh.db")) else { return 0 };
        dwh.busy_timeout(PATIENCE).unwrap();
        dwh.query_row(&format!("select count(*) from {table}"), [], |row| row.get(0)).unwrap_or(0)
    }

    fn start(&self) -> Server {
        self.start_with(&[])
    }

    pub(crate) fn start_with(&self, arguments: &[&str]) -> Server {
        let log = std::fs::File::create(self.folder.path().join("log")).unwrap();
        let mut command = self.pipeline.command(&["serve", "--parallel", "2"]);
        command.args(arguments);
        command.stdout(Stdio::null()).stderr(Stdio::from(log));
        Server(command.spawn().unwrap())
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    pub(crate) fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let began = Instant::now();
        while !holds() {
            assert!(began.elapsed() < PATIENCE, "{what} did not happen:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What `frazil jobs list` says of a stream.
    pub(crate) fn state(&self, stream: &str) -> String {
        let ran = self.pipeline.run(&["jobs", "list", "--output", "json"]);
        let of_stream = ran.stdout.lines().filter_map(|line| serde_json::from_str(line).ok());
        let found = of_stream.into_iter().find(|state: &serde_json::Value| state["stream"] == stream);
        found.map(|state| state["state"].as_str().unwrap().to_owned()).unwrap_or_default()
    }
}

/// Killed with its test.
pub(crate) struct Server(pub(crate) Child);

impl Server {
    pub(crate) fn signal(&self, name: &str) {
        let process = self.0.id().to_string();
        assert!(std::process::Command::new("kill").args([name, &process]).status().unwrap().success());
    }

    /// Asks it to stop, and says how it ended.
    pub(crate) fn stop(mut self) -> Option<i32> {
        self.signal("-TERM");
        self.0.wait().unwrap().code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn streams_run_when_they_are_due_until_the_server_is_stopped() {
    let served = Served::new(&["a: { change: full, schedule: every 1s }", "b: { change: full, after: a }"]);
    let server = served.start();
    served.until("a first pass of both", || served.rows("a") == 1 && served.rows("b") == 1);
    served.shop("insert into a values (2, 'two'); insert into b values (2, 'two'), (3, 'three')");
    served.until("a pass with the new rows", || served.rows("a") == 2 && served.rows("b") == 3);
    assert_eq!(server.stop(), Some(0), "{}", served.log());
    let history = served.pipeline.ok(&["history"]).stdout;
    assert!(history.contains("serve"), "{history}");
}

#[test]
fn people_pause_resume_and_trigger() {
    let served = Served::new(&["a: { change: full, schedule: every 1s }", "b: { change: full }"]);
    let early = served.pipeline.run(&["jobs", "pause", "a"]);
    assert_eq!(early.code, Some(2), "{early:?}");
    assert!(early.stderr.contains("no `frazil serve` has ever run"), "{early:?}");
    let server = served.start();
    served.until("a first pass", || served.rows("a") == 1);
    assert_eq!(served.rows("b"), 0, "nobody has asked for it");
    served.pipeline.ok(&["jobs", "trigger", "b"]);
    served.until("the triggered pass", || served.rows("b") == 1);
    served.pipeline.ok(&["jobs", "pause", "a"]);
    served.until("the pause", || served.state("a") == "paused");
    served.shop("insert into a values (2, 'two')");
    // A pause outlives its server.
    assert_eq!(server.stop(), Some(0), "{}", served.log());
    let server = served.start();
    served.pipeline.ok(&["jobs", "trigger", "b"]);
    served.until("the pause again", || served.state("a") == "paused" && served.state("b") == "waiting");
    assert_eq!(served.rows("a"), 1);
    served.pipeline.ok(&["jobs", "resume", "a"]);
    served.until("a pass after the pause", || served.rows("a") == 2);
    let unknown = served.pipeline.run(&["jobs", "pause", "aa"]);
    assert_eq!(unknown.code, Some(2), "{unknown:?}");
    assert!(unknown.stderr.contains("did you mean `a`?"), "{unknown:?}");
    assert_eq!(server.stop(), Some(0), "{}", served.log());
}

#[test]
fn a_changed_configuration_is_read_and_a_wrong_one_changes_nothing() {
    let served = Served::new(&["a: { change: full, schedule: every 1s }"]);
    let server = served.start();
    served.until("a first pass", || served.rows("a") == 1);
    let streams = |streams: &[&str]| {
        served.pipeline.rewrite(&served.url("shop.db"), &served.url("dwh.db"), &Default::default(), streams);
    };
    streams(&["a: { change: full, schedule: every now and then }"]);
    server.signal("-HUP");
    served.until("the complaint", || served.log().contains("the streams go on as they were"));
    served.shop("insert into a values (2, 'two')");
    served.until("a pass as before", || served.rows("a") == 2);
    streams(&["b: { change: full, schedule: every 1s }"]);
    server.signal("-HUP");
    served.until("the new stream", || served.rows("b") == 1);
    assert_eq!(server.stop(), Some(0), "{}", served.log());
}

#[test]
fn a_database_that_is_away_is_waited_for() {
    let served = Served::new(&["a: { change: full, schedule: every 1s }"]);
    let server = served.start();
    served.until("a first pass", || served.rows("a") == 1);
    // A lock that nobody gets past: `database is locked`, which passes.
    let blocker = Connection::open(served.folder.path().join("dwh.db")).unwrap();
    blocker.busy_timeout(PATIENCE).unwrap();
    blocker.execute_batch("begin exclusive").unwrap();
    served.shop("insert into a values (2, 'two')");
    served.until("a retry", || served.state("a") == "retrying");
    blocker.execute_batch("rollback").unwrap();
    served.until("the rows", || served.rows("a") == 2);
    assert_eq!(server.stop(), Some(0), "{}", served.log());
}

#[test]
fn a_killed_server_goes_on_where_it_was() {
    let served = Served::new(&["a: { change: full, schedule: every 1s }"]);
    let server = served.start();
    served.until("a first pass", || served.rows("a") == 1);
    drop(server);
    served.shop("insert into a values (2, 'two')");
    let server = served.start();
    served.until("a pass of the next server", || served.rows("a") == 2);
    assert_eq!(server.stop(), Some(0), "{}", served.log());
}

#[test]
fn places_are_compared_when_their_time_has_come() {
    // Nobody deletes in the lake what a growing number does not show.
    let served = Served::new(&[
        "a: { cursor: id, change: id, mode: merge, schedule: every 1s, reconcile: every 1s }",
        "b: { cursor: id, change: id, mode: merge, schedule: every 1s, reconcile: { schedule: every 1s, repair: false } }",
        "c: { cursor: id, change: id, mode: merge, schedule: every 1s, reconcile: { sample: 100 } }",
    ]);
    served.shop("create table c (id integer primary key, v text); insert into c values (1, 'one')");
    for table in ["a", "b", "c"] {
        served.shop(&format!("insert into {table} values (2, 'two'), (3, 'three')"));
    }
    let server = served.start();
    served.until("a first pass of all", || ["a", "b", "c"].iter().all(|table| served.rows(table) == 3));
    for table in ["a", "b", "c"] {
        served.shop(&format!("delete from {table} where id = 2"));
    }
    served.until("a comparison that repairs", || served.rows("a") == 2);
    served.until("a sample that repairs", || served.rows("c") == 2);
    let compared = |stream: &str, verdict: &str| {
        let passes = served.pipeline.json(&["history", "--stream", stream, "--limit", "1000"]);
        let compared = passes.iter().filter(|pass| pass["verb"] == "compare" && pass["verdict"] == verdict);
        compared.map(|pass| pass["differences"].as_u64().unwrap()).max()
    };
    served.until("a comparison that tells", || compared("b", "failed") == Some(1));
    assert_eq!(server.stop(), Some(0), "{}", served.log());
    assert_eq!((served.rows("b"), compared("a", "done")), (3, Some(1)), "{}", served.log());
    assert_eq!(compared("c", "done"), None, "a sample is no proof of the whole table");
    let samples = served.pipeline.json(&["history", "--stream", "c", "--limit", "1000"]);
    let found = samples.iter().filter(|pass| pass["verb"] == "sample" && pass["differences"] == 1);
    assert_eq!(found.count(), 1, "{samples:?}");
    // They are no passes: nothing of them is tried again.
    assert_eq!(served.pipeline.run(&["run", "--failed", "--exit-code"]).code, Some(4));
}

#[test]
fn what_can_never_be_kept_is_refused_with_its_place() {
    for (streams, message) in [
        (vec!["a: { commit_interval: 1s, schedule: every 1m }"], "by one of them only"),
        (vec!["a: { schedule: now and then }"], "not a cron expression"),
        (vec!["a: { schedule: every now and then }"], "not a length of time"),
        (vec!["a: { schedule: every 1ms }"], "streams run at most every second"),
        (vec!["a: { schedule: every 1m, fresh: 5m }"], "by one of them only"),
        (vec!["a: { schedule: { cron: '0 2 * * *', timezone: Europe/Atlantis } }"], "unknown time zone"),
        (vec!["a: { schedule: { every: 1m, blackout: noon } }"], "not a blackout"),
        (vec!["a: { after: b }", "b: { after: a }"], "it would wait for itself"),
        (vec!["a: { after: c, schedule: every 1m }"], "which is no stream"),
        (vec!["a: { schedule: every 1m, reconcile: { repair: true } }"], "does not say when"),
        (vec!["a: { schedule: every 1m, reconcile: nightly }"], "not a cron expression"),
        (vec!["a: { schedule: every 1m, reconcile: { sample: 0 } }"], "sample"),
        (vec!["a: {}"], "no stream says when it runs"),
    ] {
        let served = Served::new(&streams);
        let ran = served.pipeline.run(&["serve", "--dry-run"]);
        assert_eq!(ran.code, Some(2), "{streams:?}: {ran:?}");
        assert!(ran.stderr.contains(message), "{streams:?}: {ran:?}");
    }
    let served = Served::new(&[
        "a: { schedule: { cron: '0 2 * * *', timezone: Europe/Berlin } }",
        "b: { after: a }",
        "c: { fresh: 15m }",
        "d: { change: log }",
    ]);
    let ran = served.pipeline.ok(&["serve", "--dry-run"]);
    assert!(ran.stdout.contains("02:00:00 CE"), "{ran:?}");
    assert!(ran.stdout.contains("after others") && ran.stdout.contains("at once"), "{ran:?}");
}
