//! A MySQL server whose own time is set back and put forward, under a column that counts in it.
//!
//! The server's zone is New York's. Sessions are told what time it is (`SET timestamp`), so that a night of
//! the year passes in a moment; the rules of the zone, and what the columns get, are the server's own.

use std::collections::BTreeMap;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use chrono::{DateTime, TimeDelta, Utc};
use frazil::delta::Watermark;
use frazil::source::{ChangeDetection, ReadRequest};
use frazil::table::TableId;
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, OptsBuilder};

use crate::fixture::{self, MariaDatabase, read_request};
use crate::mysql_source::{open, read};

/// Who is told the time: users with all rights are not.
const APPLICATION: &str = "clock_app";
const PASSWORD: &str = "of-a-test";
/// How far apart passes are.
const STEP: TimeDelta = TimeDelta::minutes(20);

/// From now on it is this time for sessions that begin.
async fn set_clock(db: &MariaDatabase, now: DateTime<Utc>) {
    db.run(&format!("SET GLOBAL init_connect = 'SET timestamp = {}.5'", now.timestamp())).await;
}

async fn application(db: &MariaDatabase) -> Conn {
    let options = OptsBuilder::default()
        .ip_or_hostname("127.0.0.1")
        .tcp_port(db.port())
        .prefer_socket(false)
        .user(Some(APPLICATION))
        .pass(Some(PASSWORD))
        .db_name(Some(db.name()));
    Conn::new(options).await.unwrap()
}

/// What the lake would have of the rows: passes are merged by key.
struct Follower {
    rows: BTreeMap<i64, i64>,
    from: Option<Watermark>,
}

impl Follower {
    async fn pass(&mut self, db: &MariaDatabase) {
        let request = ReadRequest {
            cursor: Some("changed".to_owned()),
            from: self.from.take(),
            ..read_request(TableId::new(db.name(), "t"), ChangeDetection::Timestamp)
        };
        // A session that was opened before does not hear what time it is now.
        let source = open(&db.url_as(APPLICATION, PASSWORD, db.port()));
        let mut pass = read(&*source, request).await.unwrap();
        for batch in &pass.batches {
            let [ids, states] = ["id", "state"].map(|name| batch[name].as_primitive::<Int64Type>());
            self.rows.extend(ids.values().iter().copied().zip(states.values().iter().copied()));
        }
        self.from = pass.resume.pop();
    }
}

/// Lives through some hours: at each step a row comes, an old one changes, and a pass is made.
async fn nothing_is_lost(column: &str, from: &str, hours: i32) {
    let Some(server) = fixture::mariadb_in_new_york().await else { return };
    let db = server.database("clock").await;
    db.run(&format!(
        "CREATE TABLE t (id BIGINT PRIMARY KEY, state BIGINT NOT NULL,
            changed {column} NOT NULL DEFAULT CURRENT_TIMESTAMP(6) ON UPDATE CURRENT_TIMESTAMP(6), KEY (changed));
         CREATE USER IF NOT EXISTS {APPLICATION} IDENTIFIED BY '{PASSWORD}';
         GRANT PROCESS ON *.* TO {APPLICATION};
         GRANT SELECT, INSERT, UPDATE ON `{}`.* TO {APPLICATION};",
        db.name()
    ))
    .await;
    let mut follower = Follower { rows: BTreeMap::new(), from: None };
    let mut now: DateTime<Utc> = from.parse().unwrap();
    let steps = i64::from(hours) * 60 / STEP.num_minutes();
    for step in 0..steps {
        set_clock(&db, now).await;
        let mut writer = application(&db).await;
        writer.query_drop(format!("INSERT INTO t (id, state) VALUES ({step}, 0)")).await.unwrap();
        let old = step * 7 % (step + 1);
        writer.query_drop(format!("UPDATE t SET state = state + 1 WHERE id = {old}")).await.unwrap();
        follower.pass(&db).await;
        now += STEP;
        // Before the clocks move, only the newest rows wait.
        assert!(step != 3 || follower.rows.len() >= 2, "{:?}", follower.rows);
    }
    now += TimeDelta::days(1);
    set_clock(&db, now).await;
    follower.pass(&db).await;
    let text = db.text("SELECT id, state FROM t ORDER BY id").await;
    let expected = text.lines().map(|line| line.split_once(" | ").unwrap());
    let expected: BTreeMap<i64, i64> =
        expected.map(|(id, state)| (id.parse().unwrap(), state.parse().unwrap())).collect();
    assert_eq!(expected.len(), steps as usize);
    assert_eq!(follower.rows, expected, "{column}");
}

/// One after the other: what time it is goes for the whole server.
#[tokio::test(flavor = "multi_thread")]
async fn no_row_is_lost_in_the_nights_in_which_clocks_change() {
    for column in ["DATETIME(6)", "TIMESTAMP(6)"] {
        // At six in UTC, two in the morning becomes one again.
        nothing_is_lost(column, "2026-10-31T20:00:00Z", 14).await;
        // At seven in UTC, two in the morning becomes three.
        nothing_is_lost(column, "2027-03-13T22:00:00Z", 12).await;
    }
}
