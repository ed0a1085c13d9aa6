//! `change: log` of Postgres, through the program: what the log says, what it does not say, and what is
//! missing for it. Crashes are in `postgres_log_model.rs`.

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::fixture::{self, Database, Pipeline, Postgres};
use crate::serve::PATIENCE;
use crate::sync::{assert_same, two_databases};

/// A stream over the log, and the databases at its ends.
struct Log {
    source: Database,
    target: Database,
    pipeline: Pipeline,
}

impl Log {
    async fn new(pg: &Postgres, name: &str, schema: &str, streams: &[&str]) -> Self {
        let (source, target) = two_databases(pg, name).await;
        source.run(schema).await;
        let pipeline = Pipeline::new(&source.url(), &target.url(), streams);
        Self { source, target, pipeline }
    }

    /// Runs, and compares what came out at the other end.
    async fn run(&self, query: &str) -> Value {
        let report = self.pipeline.json(&["run"]).remove(0);
        assert_same(&self.source, &self.target, query).await;
        report
    }

    /// The same after some changes.
    async fn after(&self, sql: &str, query: &str) -> Value {
        self.source.run(sql).await;
        self.run(query).await
    }

    /// What slots of this database there are.
    async fn slots(&self) -> String {
        self.source
            .text("select count(*) from pg_replication_slots where database = current_database()")
            .await
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // A database with a slot cannot be dropped.
        let url = self.source.url();
        let done = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let (client, connection) =
                    tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
                tokio::spawn(connection);
                let sql = "select pg_drop_replication_slot(slot_name) from pg_replication_slots \
                           where database = current_database()";
                client.batch_execute(sql).await
            })
        });
        if !matches!(done.join(), Ok(Ok(()))) {
            eprintln!("the slots were not dropped");
        }
    }
}

fn extent(report: &Value) -> &str {
    report["extract"]["extent"].as_str().unwrap()
}

fn noted(report: &Value, text: &str) -> bool {
    report["extract"]["notes"].as_array().unwrap().iter().any(|note| note.as_str().unwrap().contains(text))
}

const T: &str = "select * from t";
const STREAM: &[&str] = &["public.t: { change: log }"];

#[tokio::test]
async fn what_the_log_says_arrives() {
    let Some(pg) = fixture::postgres().await else { return };
    let schema = "create table t (id int primary key, a text, n numeric(12,2));
                  create table other (id int primary key);
                  insert into t select i, 'row ' || i, i / 7.0 from generate_series(1, 1000) i";
    let log = Log::new(&pg, "says", schema, STREAM).await;
    let first = log.run(T).await;
    assert_eq!((extent(&first), first["extract"]["change"].as_str()), ("whole", Some("log")), "{first}");
    assert_eq!(log.slots().await, "1");

    let changed = log
        .after(
            "insert into t values (2000, 'new', null);
             update t set a = 'changed' where id % 10 = 0;
             update t set a = 'again' where id = 20;
             delete from t where id % 10 = 1;
             insert into t values (11, 'back', 11);
             update t set id = id + 5000 where id in (5, 15);
             update t set id = -id where id = 25; update t set id = -id where id = -25;
             insert into other select generate_series(1, 10);
             begin; insert into t values (3000, 'never', 0); savepoint a; delete from t; rollback",
            T,
        )
        .await;
    assert_eq!(extent(&changed), "log", "{changed}");
    assert!(changed["extract"]["rows"].as_u64().unwrap() < 200, "{changed}");
    // Nothing happened: nothing is written. Others' changes are no news either.
    let idle = log.after("insert into other select generate_series(11, 20)", T).await;
    assert_eq!(idle["verdict"], "nothing_to_do", "{idle}");
    // Part of a transaction that was rolled back; many changes of one key.
    let changed = log
        .after(
            "begin; insert into t values (4000, 'kept', 1); savepoint a; delete from t where id < 500;
             rollback to a; update t set n = n + 1 where id between 500 and 510; commit;
             do $$ begin for i in 1..50 loop update t set a = i::text where id = 600; end loop; end $$",
            T,
        )
        .await;
    assert_eq!((extent(&changed), changed["extract"]["rows"].as_u64()), ("log", Some(13)), "{changed}");
    // How old the oldest change was when it arrived, is said where there was one.
    assert!(first["extract"]["latency_seconds"].is_null() && idle["extract"]["latency_seconds"].is_null());
    let changed =
        log.after("begin; update t set n = 0 where id = 4000; commit; select pg_sleep(0.2)", T).await;
    let latency = |leg: &str| changed[leg]["latency_seconds"].as_f64().unwrap();
    assert!(0.2 < latency("extract") && latency("extract") <= latency("load"), "{changed}");
    assert!(latency("load") < 0.2 + 2.0 * changed["seconds"].as_f64().unwrap() + 60.0, "{changed}");
    fixture::judge(&log.pipeline.location("public", "t"), &log.source.url(), T);
}

#[tokio::test]
async fn a_served_stream_follows_the_log_in_small_commits() {
    let Some(pg) = fixture::postgres().await else { return };
    let schema = "create table t (id int primary key, a text); insert into t values (0, 'first')";
    let stream = &["public.t: { change: log, commit_interval: 1s, commit_bytes: 16KiB }"];
    let log = Log::new(&pg, "served", schema, stream).await;
    log.run(T).await;
    // 16 KiB are taken for 128 messages: three hundred transactions, made before anybody looks, come in several
    // commits of the same pass.
    let many = "do $$ begin for i in 1..300 loop
                    insert into t values (i, 'row ' || i) on conflict (id) do update set a = 'again';
                    update t set a = 'changed ' || i where id = i - 1; commit; end loop; end $$";
    log.source.run(many).await;
    let mut served = log.pipeline.command(&["serve"]).stdout(Stdio::null()).spawn().unwrap();
    let began = Instant::now();
    for round in 0..3 {
        log.source.run(&format!("update t set a = 'round {round}' where id % 3 = {round}")).await;
        while log.target.rows(T).await != log.source.rows(T).await {
            assert!(served.try_wait().unwrap().is_none() && began.elapsed() < PATIENCE, "nothing follows");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    served.kill().unwrap();
    served.wait().unwrap();
    assert_same(&log.source, &log.target, T).await;
    let snapshots = log.pipeline.json(&["snapshots", "public.t"]);
    assert!(snapshots.len() > 5, "{snapshots:?}");
    let passes = log.pipeline.json(&["history"]);
    let late = passes.iter().filter(|pass| pass["verb"] == "serve" && pass["latency_seconds"].is_f64());
    assert!(late.count() >= 1, "{passes:?}");
    let trend = log.pipeline.json(&["history", "--trends"]).remove(0);
    let seconds = |name: &str| trend[name].as_f64().unwrap();
    assert!(seconds("latency_seconds") <= seconds("longest_latency_seconds"), "{trend}");
}

#[tokio::test]
async fn large_values_that_did_not_change_stay() {
    let Some(pg) = fixture::postgres().await else { return };
    let large = "(select string_agg(md5(i::text), '') from generate_series(1, 300) i)";
    let schema = format!(
        "create table t (id int primary key, a text, big text, more jsonb);
         alter table t alter big set storage external;
         insert into t select i, 'row', {large} || i, jsonb_build_object('k', {large}) from generate_series(1, 20) i"
    );
    let log = Log::new(&pg, "toast", &schema, STREAM).await;
    log.run(T).await;
    let changed = log
        .after(
            &format!(
                "update t set a = 'only a' where id <= 5;
                 update t set a = 'a and more', more = '{{}}' where id = 6;
                 update t set big = {large} || 'x' where id = 7; update t set a = 'later' where id = 7;
                 update t set a = 'before it goes' where id = 8; delete from t where id = 8;
                 insert into t values (30, 'new', {large}, null); update t set a = 'and changed' where id = 30;
                 update t set big = null where id = 9"
            ),
            T,
        )
        .await;
    assert_eq!((extent(&changed), changed["extract"]["rows"].as_u64()), ("log", Some(9)), "{changed}");
    fixture::judge(&log.pipeline.location("public", "t"), &log.source.url(), T);
    // A row under another key has its large values nowhere: the table is read.
    let moved = log.after("update t set id = 100 where id = 10", T).await;
    assert!(extent(&moved) == "whole" && noted(&moved, "large values"), "{moved}");
    assert_eq!(moved["extract"]["rows"], 1, "{moved}");
    // With the whole row in the log nothing is missing.
    log.source.run("alter table t replica identity full").await;
    let moved = log.after("update t set id = 101 where id = 11; update t set a = 'x' where id = 12", T).await;
    assert_eq!((extent(&moved), moved["extract"]["rows"].as_u64()), ("log", Some(2)), "{moved}");
}

#[tokio::test]
async fn what_the_log_does_not_say_is_read_from_the_table() {
    let Some(pg) = fixture::postgres().await else { return };
    let schema = "create table t (id int primary key, a text, b int);
                  insert into t select i, 'row ' || i, i from generate_series(1, 100) i";
    let log = Log::new(&pg, "ddl", schema, STREAM).await;
    log.run(T).await;

    let truncated = log
        .after("insert into t values (500, 'x', 1); truncate t; insert into t values (1, 'one', 1)", T)
        .await;
    assert!(extent(&truncated) == "whole" && noted(&truncated, "truncated"), "{truncated}");
    assert_eq!(
        (&truncated["extract"]["rows"], &truncated["extract"]["deleted"]),
        (&1.into(), &99.into()),
        "{truncated}"
    );
    // What was read whole comes once more in the log, and changes nothing.
    let caught_up = log.after("insert into t values (2, 'two', 2)", T).await;
    assert_eq!(extent(&caught_up), "log", "{caught_up}");

    // A new column without values, and one that got another name: the log is followed.
    let added = log
        .after("insert into t values (3, 'three', 3); alter table t add c text; insert into t values (4, 'four', 4, 'c')", T)
        .await;
    assert_eq!(extent(&added), "log", "{added}");
    let renamed = log
        .after("update t set a = 'before' where id = 1; alter table t rename a to z; update t set z = 'after' where id = 2", T)
        .await;
    assert_eq!(extent(&renamed), "log", "{renamed}");
    // Values that came without a change of a row.
    let with_default =
        log.after("alter table t add d int default 7; update t set d = 8 where id = 1", T).await;
    assert!(
        extent(&with_default) == "whole" && noted(&with_default, "`d` was added with values"),
        "{with_default}"
    );
    let computed = log.after("alter table t add e float default random()", T).await;
    assert!(extent(&computed) == "whole" && noted(&computed, "`e` was added"), "{computed}");
    let retyped = log.after("alter table t alter b type bigint", T).await;
    assert!(extent(&retyped) == "whole" && noted(&retyped, "type of `b`"), "{retyped}");
    // The table was written anew, with the same rows.
    log.source.run("vacuum full t").await;
    let rewritten = log.after("update t set b = 0 where id = 1", T).await;
    assert_eq!(extent(&rewritten), "log", "{rewritten}");
    let dropped = log
        .after(
            "update t set c = 'gone' where id = 1; alter table t drop c; update t set b = 9 where id = 2",
            "select id, z, b, d, e from t",
        )
        .await;
    assert_eq!(extent(&dropped), "log", "{dropped}");
    let anew = log
        .after(
            "drop table t; create table t (id int primary key, z text); insert into t values (1, 'other')",
            "select id, z from t",
        )
        .await;
    assert!(extent(&anew) == "whole" && noted(&anew, "made anew"), "{anew}");
    let after = log.after("update t set z = 'changed'", "select id, z from t").await;
    assert_eq!(extent(&after), "log", "{after}");
}

#[tokio::test]
async fn values_are_those_of_a_read_of_the_table() {
    let Some(pg) = fixture::postgres().await else { return };
    // Types that the log has in binary, and types that are carried as text.
    let schema = "create type mood as enum ('sad', 'ok');
                  create table t (
                      id numeric(10,2) primary key, i inet, c char(8), iv interval, n numeric, m mood, j jsonb,
                      ts timestamptz, d date, u uuid, b bytea, f float8, l int[], bo bool, v bit(3), r int4range,
                      tz timetz, ne macaddr)";
    let row = "values ({id}, '10.0.0.1', 'ab', '1 day 2h', 1.50, 'ok', '{\"a\": 1}', '2024-05-06 07:08:09.123456+02',
                '2024-02-29', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '\\x00ff', 1e-7, '{1,null,3}', true, '101',
                '[1,5)', '12:30:00+05', '08:00:2b:01:02:03'),
               ({id} + 0.5, '10.0.0.0/8', '', '-3 months', 'NaN', null, null, null, null, null, '', '-0', '{}', false,
                '000', 'empty', null, null), ({id} + 0.75, '::1', null, null, 0.10, null, 'null', null, null, null,
                null, 'infinity', null, null, null, null, null, null)";
    let log = Log::new(&pg, "values", schema, &["public.t: { change: log }"]).await;
    let insert = |id: &str| format!("insert into t {}", row.replace("{id}", id));
    log.source.run(&insert("1")).await;
    log.run(T).await;
    let changed = log.after(&insert("2"), T).await;
    assert_eq!((extent(&changed), changed["extract"]["rows"].as_u64()), ("log", Some(3)), "{changed}");
    // A comparison with the whole table finds nothing that the log has written otherwise.
    let compared = log.pipeline.json(&["run", "--full-refresh"]).remove(0);
    assert_eq!((extent(&compared), compared["extract"]["rows"].as_u64()), ("whole", Some(0)), "{compared}");
}

#[tokio::test]
async fn partitions_come_as_one_table() {
    let Some(pg) = fixture::postgres().await else { return };
    let schema = "create table t (id int, day date, v text, primary key (id, day)) partition by range (day);
                  create table t1 partition of t for values from ('2024-01-01') to ('2024-02-01');
                  create table t2 partition of t for values from ('2024-02-01') to ('2024-03-01');
                  insert into t select i, '2024-01-01'::date + i, 'v' from generate_series(1, 40) i";
    let log = Log::new(&pg, "partitions", schema, STREAM).await;
    log.run(T).await;
    let changed = log
        .after("update t set v = 'x' where id < 5; update t set day = '2024-02-20' where id = 6; delete from t2 where id = 35", T)
        .await;
    assert_eq!(extent(&changed), "log", "{changed}");
    // What happens to a partition as a whole is in no log.
    let emptied = log.after("truncate t1", T).await;
    assert!(extent(&emptied) == "whole" && noted(&emptied, "partitions"), "{emptied}");
    let detached = log.after("alter table t detach partition t2", T).await;
    assert_eq!(extent(&detached), "whole", "{detached}");
}

#[tokio::test]
async fn a_gap_is_found_at_once_and_answered_by_policy() {
    let Some(pg) = fixture::postgres().await else { return };
    let schema = "create table t (id int primary key, v text); insert into t values (1, 'one')";
    let log = Log::new(&pg, "gap", schema, &["public.t: { change: log, on_gap: fail }"]).await;
    log.run(T).await;
    let slot = log
        .source
        .text("select slot_name from pg_replication_slots where database = current_database()")
        .await;
    // Somebody reads from the slot and confirms what the lake has not.
    log.source
        .run(&format!(
            "insert into t values (2, 'two');
         select pg_replication_slot_advance('{slot}', pg_current_wal_lsn())"
        ))
        .await;
    let refused = log.pipeline.run(&["run"]);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(
        refused.stderr.contains("was moved on to") && refused.stderr.contains("on_gap: resnapshot"),
        "{refused:?}"
    );
    let answered = log.pipeline.json(&["run", "--full-refresh"]).remove(0);
    assert_eq!(extent(&answered), "whole", "{answered}");
    assert_same(&log.source, &log.target, T).await;
    assert_eq!(extent(&log.after("insert into t values (3, 'three')", T).await), "log");

    // A slot that is gone; and now the policy is to read the table.
    log.source.run(&format!("select pg_drop_replication_slot('{slot}'); delete from t where id = 1")).await;
    let refused = log.pipeline.run(&["run"]);
    assert!(refused.code == Some(1) && refused.stderr.contains("is gone"), "{refused:?}");
    log.pipeline.rewrite(&log.source.url(), &log.target.url(), &Default::default(), STREAM);
    let answered = log.run(T).await;
    assert!(extent(&answered) == "whole" && noted(&answered, "is gone"), "{answered}");
    assert_eq!(extent(&log.after("insert into t values (4, 'four')", T).await), "log");
}

#[tokio::test]
async fn what_the_log_does_not_say_is_answered_by_the_same_pass() {
    let Some(pg) = fixture::postgres().await else { return };
    let schema =
        "create table t (id int primary key, v text); insert into t select i from generate_series(1, 50) i";
    let log = Log::new(&pg, "at_once", schema, &["public.t: { change: log, commit_bytes: 1KiB }"]).await;
    log.run(T).await;
    // Each is a portion of its own; the log cannot be followed beyond the first two.
    let sql = "insert into t select i from generate_series(51, 80) i; delete from t where id < 20; \
               truncate t; insert into t select i from generate_series(7, 9) i";
    for statement in sql.split("; ") {
        log.source.run(statement).await;
    }
    let report = log.run(T).await;
    assert!(extent(&report) == "whole" && noted(&report, "followed as far as that goes"), "{report}");
    assert!(noted(&report, "truncated"), "{report}");
    assert_eq!(extent(&log.after("insert into t values (100, 'next')", T).await), "log");
}

#[tokio::test]
async fn a_slot_that_keeps_too_much_log_is_told_of_or_given_up() {
    let Some(pg) = fixture::postgres().await else { return };
    let schema = "create table t (id int primary key, v text); insert into t values (1, 'one')";
    let log = Log::new(&pg, "budget", schema, &["public.t: { change: log, max_slot_lag: 1MiB }"]).await;
    log.run(T).await;
    let much = "select pg_logical_emit_message(false, 'test', repeat('x', 3000000))";
    let told = log.after(&format!("insert into t values (2, 'two'); {much}"), T).await;
    assert!(extent(&told) == "log" && noted(&told, "more than the 1 MiB of `max_slot_lag`"), "{told}");

    let stream = ["public.t: { change: log, max_slot_lag: 1MiB, on_slot_lag: resnapshot }"];
    log.pipeline.rewrite(&log.source.url(), &log.target.url(), &Default::default(), &stream);
    log.source.run(&format!("delete from t where id = 1; insert into t values (3, 'three'); {much}")).await;
    let written = log.source.text("select pg_current_wal_lsn()").await;
    let given_up = log.run(T).await;
    assert!(extent(&given_up) == "whole" && noted(&given_up, "made anew"), "{given_up}");
    assert_eq!(log.slots().await, "1");
    let of_slot = "from pg_replication_slots where database = current_database()";
    assert_eq!(log.source.text(&format!("select restart_lsn >= '{written}' {of_slot}")).await, "t");
    log.pipeline.rewrite(&log.source.url(), &log.target.url(), &Default::default(), STREAM);
    assert_eq!(extent(&log.after("insert into t values (4, 'four')", T).await), "log");
}

#[tokio::test]
async fn what_is_missing_is_said_with_what_helps() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "missing").await;
    source
        .run(
            "create table t (id int primary key, v text);
             create table keyless (v text);
             create table silent (id int primary key); alter table silent replica identity nothing;
             create unlogged table fleeting (id int primary key);
             create table computed (id int primary key, twice int generated always as (id * 2) stored);
             create view seen as select * from t;
             create publication without_t for table silent;
             create publication inserts for table t with (publish = 'insert')",
        )
        .await;
    let says = |stream: &str, part: &str| {
        let pipeline = Pipeline::new(&source.url(), &target.url(), &[stream]);
        let ran = pipeline.run(&["run"]);
        assert!(matches!(ran.code, Some(1..=3)) && ran.stderr.contains(part), "{stream}: {ran:?}");
    };
    says("public.keyless: { change: log }", "the log is read by key");
    says("public.silent: { change: log }", "replica identity is `nothing`");
    says("public.silent: { change: log }", "REPLICA IDENTITY DEFAULT");
    says("public.fleeting: { change: log }", "unlogged");
    says("public.computed: { change: log }", "the server computes it");
    says("public.seen: { change: log, primary_key: id }", "only tables");
    says("public.t: { change: log, where: \"id > 1\" }", "`where` does not go");
    says("public.t: { change: log, primary_key: v }", "is not in the table's replica identity");
    says("public.t: { change: log, publication: without_t }", "ALTER PUBLICATION \"without_t\" ADD TABLE");
    // Publications have had all rows and columns of a table before Postgres 15.
    if source.allows("create publication part_of_t for table t where (id > 5)").await {
        says("public.t: { change: log, publication: part_of_t }", "leaves out the rows");
        source.run("create publication ids_of_t for table t (id)").await;
        says("public.t: { change: log, publication: ids_of_t }", "leaves out the columns v");
    }
    says("public.t: { change: log, publication: inserts }", "leaves out some kinds of changes");
    says("public.t: { change: log, publication: nowhere }", "CREATE PUBLICATION \"nowhere\"");
    says("public.t: { change: log, slot: nowhere }", "pg_create_logical_replication_slot('nowhere'");
    // None of these left a slot behind.
    let slots = "select count(*) from pg_replication_slots where database = current_database()";
    assert_eq!(source.text(slots).await, "0");

    // A user without the right, and `check` before anything is tried.
    let name = source.name().to_owned();
    source.run(&format!("create role \"{name}\" login password 'pw'; grant select on t to \"{name}\"")).await;
    let url = source.url().replace("frazil:s3cret-of-the-test@", &format!("{name}:pw@"));
    let pipeline = Pipeline::new(&url, &target.url(), &["public.t: { change: log }"]);
    let checked = pipeline.run(&["check"]);
    let said = format!("{}{}", checked.stdout, checked.stderr);
    assert!(said.contains("ALTER ROLE <user> REPLICATION") && said.contains("CREATE PUBLICATION"), "{said}");
    let ran = pipeline.run(&["run"]);
    assert!(ran.code == Some(1) && ran.stderr.contains("may not make a publication"), "{ran:?}");
    source.run(&format!("revoke all on t from \"{name}\"; drop role \"{name}\"")).await;
}

#[tokio::test]
async fn a_slot_in_use_is_left_alone() {
    let Some(pg) = fixture::postgres().await else { return };
    let schema = "create table t (id int primary key, v text); insert into t values (1, 'one')";
    let log = Log::new(&pg, "in_use", schema, STREAM).await;
    log.run(T).await;
    let slot = log
        .source
        .text("select slot_name from pg_replication_slots where database = current_database()")
        .await;
    let Some(programs) =
        fixture::postgres_programs().filter(|folder| folder.join("pg_recvlogical").is_file())
    else {
        fixture::skip("pg_recvlogical");
        return;
    };
    let mut other = std::process::Command::new(programs.join("pg_recvlogical"))
        .args(["-d", &log.source.url(), "-S", &slot, "--start", "-f", "/dev/null", "-o", "proto_version=1"])
        .args(["-o", &format!("publication_names={slot}")])
        .spawn()
        .unwrap();
    let active = format!("select active from pg_replication_slots where slot_name = '{slot}'");
    for _ in 0..500 {
        if log.source.text(&active).await == "t" {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let ran = log.pipeline.run(&["run"]);
    other.kill().unwrap();
    other.wait().unwrap();
    assert!(ran.code == Some(1) && ran.stderr.contains("is in use by process"), "{ran:?}");
}
