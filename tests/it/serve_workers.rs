//! Several `frazil serve --share` on one lake: each stream has one place, and a dead worker's streams get a
//! new one.

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::fixture::Pipeline;
use crate::serve::{Served, Server};

/// Enough that each of two workers has some: all in one place is one chance in two thousand.
const STREAMS: usize = 12;

/// A worker with a folder of its own, as on a machine of its own.
struct Machine {
    pipeline: Pipeline,
}

impl Machine {
    fn new(served: &Served) -> Self {
        let streams: Vec<String> =
            (0..STREAMS).map(|n| format!("t{n}: {{ change: full, schedule: every 1s }}")).collect();
        let streams: Vec<&str> = streams.iter().map(String::as_str).collect();
        let lake = served.path("lake").display().to_string();
        let (shop, dwh) = (served.url("shop.db"), served.url("dwh.db"));
        Self { pipeline: Pipeline::with_lake(&shop, &dwh, &lake, &Default::default(), &streams) }
    }

    fn start(&self) -> Server {
        let log = std::fs::File::create(self.pipeline.folder().join("log")).unwrap();
        let mut command = self.pipeline.command(&["serve", "--share"]);
        Server(command.stdout(Stdio::null()).stderr(Stdio::from(log)).spawn().unwrap())
    }

    /// How many streams are in a state, as this worker sees them.
    fn count(&self, holds: impl Fn(&str) -> bool) -> usize {
        let ran = self.pipeline.run(&["jobs", "list", "--output", "json"]);
        let states = ran.stdout.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        states.filter(|state| state["state"].as_str().is_some_and(&holds)).count()
    }

    fn has(&self) -> usize {
        self.count(|state| state != "elsewhere")
    }

    fn has_not(&self) -> usize {
        self.count(|state| state == "elsewhere")
    }
}

fn all_show(served: &Served, rows: i64) -> bool {
    (0..STREAMS).all(|n| served.rows(&format!("t{n}")) == rows)
}

fn insert(served: &Served, id: usize) {
    (0..STREAMS).for_each(|n| served.shop(&format!("insert into t{n} values ({id}, 'v')")));
}

/// Stops a server where it is, but not while it holds a file that others need: that no take-over helps.
fn freeze(server: &Server, served: &Served) {
    let is_free = |file: &str| {
        let database = rusqlite::Connection::open(served.path(file)).unwrap();
        database.busy_timeout(Duration::from_secs(2)).unwrap();
        database.execute_batch("begin immediate; rollback").is_ok()
    };
    server.signal("-STOP");
    while !is_free("shop.db") || !is_free("dwh.db") {
        server.signal("-CONT");
        std::thread::sleep(Duration::from_millis(50));
        server.signal("-STOP");
    }
}

#[test]
fn two_workers_share_and_one_takes_over() {
    let served = Served::new(&["a: {}"]);
    (0..STREAMS).for_each(|n| served.shop(&format!("create table t{n} (id integer primary key, v text)")));
    insert(&served, 1);
    let machines = [Machine::new(&served), Machine::new(&served)];
    let first = machines[0].start();
    served.until("all passes of the only worker", || all_show(&served, 1));

    // A second one gets its part, the first one gives it away.
    let second = machines[1].start();
    let divided = || {
        let (one, two) = (machines[0].has(), machines[1].has());
        one + two == STREAMS && one > 0 && two > 0
    };
    served.until("a division", divided);
    insert(&served, 2);
    served.until("all rows by both", || all_show(&served, 2));

    // A pause holds for both, whoever was asked, and so does its end.
    let paused = |machine: &Machine| machine.count(|state| state == "paused");
    machines[1].pipeline.ok(&["jobs", "pause", "t0", "t1"]);
    served.until("a pause everywhere", || paused(&machines[0]) == 2 && paused(&machines[1]) == 2);
    assert_eq!(second.stop(), Some(0));
    served.until("that its streams come back", || machines[0].has() == STREAMS);
    let second = machines[1].start();
    served.until("a pause that outlives who was asked", || {
        paused(&machines[0]) == 2 && paused(&machines[1]) == 2
    });
    machines[0].pipeline.ok(&["jobs", "resume", "t0", "t1"]);
    served.until("its end", || paused(&machines[0]) + paused(&machines[1]) == 0);

    // The first one must have seen it, or there is nothing to take over.
    served.until("a division after the restart", divided);

    // Killed, it says nothing more: its streams are taken over once its card has not moved for ten seconds.
    let killed = Instant::now();
    drop(second);
    insert(&served, 3);
    served.until("a take-over", || all_show(&served, 3));
    println!("taken over {:.1} s after the kill", killed.elapsed().as_secs_f64());
    assert_eq!(machines[0].has(), STREAMS);

    // One that was frozen comes back late: it finds that its streams have moved, and changes nothing twice.
    let second = machines[1].start();
    served.until("a division again", || machines[1].has() > 0 && machines[0].has_not() == machines[1].has());
    freeze(&first, &served);
    insert(&served, 4);
    served.until("another take-over", || all_show(&served, 4));
    first.signal("-CONT");
    served.until("a third division", || {
        let (one, two) = (machines[0].has(), machines[1].has());
        one + two == STREAMS && one > 0
    });
    insert(&served, 5);
    served.until("all rows", || all_show(&served, 5));

    // One that is stopped says so, and nobody has to wait for its death.
    let stopped = Instant::now();
    assert_eq!(second.stop(), Some(0));
    served.until("the streams of the other", || machines[0].has() == STREAMS);
    println!("taken over {:.1} s after the stop", stopped.elapsed().as_secs_f64());
    assert_eq!(first.stop(), Some(0));
    let left = std::fs::read_dir(served.path("lake/_frazil")).unwrap();
    let left: Vec<_> = left.map(|file| file.unwrap().file_name()).collect();
    assert_eq!(left.len(), 1, "only the killed one left its card: {left:?}");
}
