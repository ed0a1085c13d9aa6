//! What fails for a passing reason is tried again within a run that is given time for it.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use rusqlite::Connection;

use crate::serve::Served;

/// A run that meets a locked target, and goes on once somebody has let go.
#[test]
fn a_run_with_time_outlasts_a_lock() {
    let served = Served::new(&["a: { change: full }"]);
    let blocker = Connection::open(served.path("dwh.db")).unwrap();
    blocker.execute_batch("begin exclusive").unwrap();
    let impatient = served.pipeline.run(&["run"]);
    assert_eq!(impatient.code, Some(1), "{impatient:?}");
    assert!(impatient.stderr.contains("locked"), "{impatient:?}");

    let mut command = served.pipeline.command(&["run", "--retry-for", "10m", "--output", "json"]);
    let mut run = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(run.stderr.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap().contains("tried again soon")), "it gave up");
    blocker.execute_batch("rollback").unwrap();
    // Whatever else it says must not fill the pipe.
    let rest = std::thread::spawn(move || said.map_while(Result::ok).collect::<Vec<_>>());
    let done = run.wait_with_output().unwrap();
    assert_eq!(done.status.code(), Some(0), "{:?}", rest.join());
    let report: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
    assert!(report["retries"].as_u64().unwrap() >= 1, "{report}");
    assert_eq!(served.rows("a"), 1);
}

/// What somebody has to remove is not tried again, however much time there is.
#[test]
fn a_wrong_configuration_is_said_at_once() {
    let served = Served::new(&["a: { change: timestamp, cursor: nothing }"]);
    let ran = served.pipeline.run(&["run", "--retry-for", "10m", "--output", "json"]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    let report: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["retries"], 0, "{report}");
    assert_eq!(report["error"]["kind"], "config", "{report}");
    assert!(report["error"]["message"].as_str().unwrap().contains("column does not exist"), "{report}");
}
