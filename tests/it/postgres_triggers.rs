//! `change: trigger` of Postgres, through the program: what triggers write down, what they do not see, and
//! what is left of them. Writers that go on meanwhile, and crashes, are in `postgres_triggers_model.rs`.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::fixture::{self, Database, Pipeline, Postgres};
use crate::sync::{assert_same, two_databases};

/// A stream by triggers, and the databases at its ends.
struct Triggers {
    source: Database,
    target: Database,
    pipeline: Pipeline,
}

impl Triggers {
    /// With the triggers installed, and nothing read yet.
    async fn new(pg: &Postgres, name: &str, schema: &str, streams: &[&str]) -> Self {
        let (source, target) = two_databases(pg, name).await;
        source.run(schema).await;
        let pipeline = Pipeline::new(&source.url(), &target.url(), streams);
        let installed = pipeline.json(&["setup"]);
        assert!(installed.iter().all(|stream| stream["done"] == true), "{installed:?}");
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

    /// What cannot be done, and why.
    fn refused(&self, arguments: &[&str], why: &str) {
        let ran = self.pipeline.run(arguments);
        assert_ne!(ran.code, Some(0), "{ran:?}");
        let said = format!("{}{}", ran.stdout, ran.stderr);
        assert!(said.contains(why), "`{why}` is not in\n{said}");
    }
}

fn extent(report: &Value) -> &str {
    report["extract"]["extent"].as_str().unwrap()
}

fn noted(report: &Value, text: &str) -> bool {
    report["extract"]["notes"].as_array().unwrap().iter().any(|note| note.as_str().unwrap().contains(text))
}

/// How many changes are kept.
async fn kept(source: &Database) -> String {
    let table = source.text("select changes from _frazil.tables").await;
    source.text(&format!("select count(*) from _frazil.{table}")).await
}

/// What the lake has is removed; with a later pass, where somebody else's transaction was open on the server.
async fn assert_pruned(source: &Database, pipeline: &Pipeline) {
    for _ in 0..20 {
        if kept(source).await == "0" {
            return;
        }
        source.run("update t set id = id").await;
        pipeline.ok(&["run"]);
    }
    panic!("what the lake has is not removed");
}

const T: &str = "select * from t";
const STREAM: &[&str] = &["public.t: { change: trigger }"];

#[tokio::test]
async fn what_triggers_write_down_arrives() {
    let Some(pg) = fixture::postgres().await else { return };
    let schema = "create table t (id int primary key, a text, n numeric(12,2));
                  insert into t select i, 'row ' || i, i / 7.0 from generate_series(1, 1000) i";
    let triggers = Triggers::new(&pg, "tr_says", schema, STREAM).await;
    let first = triggers.run(T).await;
    assert_eq!((extent(&first), first["extract"]["change"].as_str()), ("whole", Some("trigger")), "{first}");

    let changed = triggers
        .after(
            "insert into t values (2000, 'new', null);
             update t set a = 'changed' where id % 10 = 0;
             update t set a = 'again' where id = 20;
             delete from t where id % 10 = 1;
             insert into t values (11, 'back', 11);
             update t set id = id + 5000 where id in (5, 15);
             update t set id = -id where id = 25; update t set id = -id where id = -25;
             insert into t values (1, 'up', 1), (2, 'up', 2) on conflict (id) do update set a = excluded.a;
             copy t (id, a) from program 'seq 7001 7003 | sed \"s/$/\\tcopied/\"';
             begin; insert into t values (3000, 'never', 0); savepoint a; delete from t; rollback",
            T,
        )
        .await;
    assert_eq!(extent(&changed), "log", "{changed}");
    assert!(changed["extract"]["rows"].as_u64().unwrap() < 220, "{changed}");
    assert_pruned(&triggers.source, &triggers.pipeline).await;
    // Nothing happened: nothing is written.
    let idle = triggers.run(T).await;
    assert_eq!(idle["verdict"], "nothing_to_do", "{idle}");
    // Part of a transaction that was taken back; many changes of one key; a session set to something odd.
    let changed = triggers
        .after(
            "begin; insert into t values (4000, 'kept', 1); savepoint a; delete from t where id < 500;
             rollback to a; update t set n = n + 1 where id between 502 and 510; commit;
             create operator public.<> (leftarg = text, rightarg = text, function = pg_catalog.texteq);
             set search_path = ''; set datestyle = 'german'; set session_replication_role = replica;
             do $$ begin for i in 1..50 loop update public.t set a = i::text where id = 600; end loop; end $$",
            T,
        )
        .await;
    assert_eq!((extent(&changed), changed["extract"]["rows"].as_u64()), ("log", Some(11)), "{changed}");
    if triggers.source.allows("merge into t using (values (2), (99999)) v (id) on v.id = t.id when matched then delete when not matched then insert values (v.id, 'merged', 1)").await {
        assert_eq!(extent(&triggers.run(T).await), "log");
    }
    let truncated = triggers.after("truncate t; insert into t values (1, 'after', 1)", T).await;
    assert!(extent(&truncated) == "whole" && noted(&truncated, "truncated"), "{truncated}");
    let after = triggers.after("update t set a = 'goes on'", T).await;
    assert_eq!((extent(&after), after["extract"]["rows"].as_u64()), ("log", Some(1)), "{after}");
    fixture::judge(&triggers.pipeline.location("public", "t"), &triggers.source.url(), T);
}

#[tokio::test]
async fn what_is_committed_late_is_not_passed_by() {
    let Some(pg) = fixture::postgres().await else { return };
    let schema = "create table t (id int primary key, a text); insert into t values (1, 'a'), (2, 'b')";
    let triggers = Triggers::new(&pg, "tr_late", schema, STREAM).await;
    let before = triggers.source.client().await;
    before.batch_execute("begin; insert into t values (50, 'before the first read')").await.unwrap();
    triggers.run(T).await;
    before.batch_execute("commit").await.unwrap();
    let late = triggers.source.client().await;
    late.batch_execute(
        "begin; update t set a = 'late' where id = 1; savepoint s; delete from t where id = 2",
    )
    .await
    .unwrap();
    for round in 0..3 {
        triggers.after(&format!("insert into t values (10 + {round}, 'meanwhile')"), T).await;
    }
    late.batch_execute("commit").await.unwrap();
    assert_eq!(triggers.run(T).await["extract"]["read"], 2);
    late.batch_execute("begin; update t set a = 'prepared' where id = 1; rollback").await.unwrap();
    assert_eq!(triggers.run(T).await["verdict"], "nothing_to_do");
}

#[tokio::test]
async fn odd_names_and_keys() {
    let Some(pg) = fixture::postgres().await else { return };
    let long = "x".repeat(60);
    let schema = format!(
        r#"create schema "Odd one's";
           create domain short as varchar(20);
           create type mood as enum ('sad', 'glad');
           create collation blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
           create table "Odd one's"."{long}" ("a 'key'$$" short, "xact" mood, k1 numeric, at timestamptz, v text,
               primary key ("a 'key'$$", "xact", k1, at));
           create table blind (name text collate blind primary key, v int);
           insert into blind values ('ann', 1), ('bob', 2)"#
    );
    let (source, target) = two_databases(&pg, "tr_odd").await;
    if !source.allows(&schema).await {
        return fixture::skip("Postgres with ICU");
    }
    let table = format!("\"Odd one's.{long}\": {{ change: trigger, target: dwh.public.odd }}");
    let pipeline =
        Pipeline::new(&source.url(), &target.url(), &[&table, "public.blind: { change: trigger }"]);
    pipeline.ok(&["setup"]);
    pipeline.ok(&["run"]);
    let odd = format!(r#"select * from "Odd one's"."{long}""#);
    source
        .run(&format!(
            r#"insert into "Odd one's"."{long}" select 'k' || i, 'sad', 1.50, '2024-01-01', 'v' from generate_series(1, 5) i;
               update blind set name = 'ANN' where name = 'ann'; delete from blind where name = 'BOB'"#
        ))
        .await;
    pipeline.ok(&["run"]);
    source
        .run(&format!(
            r#"update "Odd one's"."{long}" set k1 = 1.5 where "a 'key'$$" = 'k1';
               update "Odd one's"."{long}" set "a 'key'$$" = 'it''s' where "a 'key'$$" = 'k2';
               delete from "Odd one's"."{long}" where "a 'key'$$" = 'k3'"#
        ))
        .await;
    pipeline.ok(&["run"]);
    assert_same(&source, &target, "select name collate \"C\", v from blind").await;
    let found = target.rows(r#"select "a 'key'$$", "xact", k1, at, v from odd"#).await;
    assert_eq!(found, source.rows(&odd).await);
}

#[tokio::test]
async fn a_trigger_that_did_not_fire_is_noticed() {
    let Some(pg) = fixture::postgres().await else { return };
    let schema = "create table t (id int primary key, a text); insert into t values (1, 'a'), (2, 'b')";
    let triggers = Triggers::new(&pg, "tr_gaps", schema, STREAM).await;
    triggers.run(T).await;
    let whole = |report: &Value, why: &str| {
        assert!(extent(report) == "whole" && noted(report, why), "{why}: {report}");
    };
    // Disabled and enabled again between two passes: nobody sees it but the catalog.
    let again = "alter table t disable trigger all; delete from t where id = 1;
                 alter table t enable trigger all";
    triggers.source.run(again).await;
    triggers.refused(&["run"], "does not fire always");
    triggers.pipeline.ok(&["setup"]);
    whole(&triggers.run(T).await, "installed anew");
    let quietly = "alter table t disable trigger all; insert into t values (1, 'unseen');
                   do $$ declare n text; begin
                       for n in select tgname from pg_trigger where tgrelid = 't'::regclass loop
                           execute format('alter table t enable always trigger %I', n);
                       end loop;
                   end $$";
    whole(&triggers.after(quietly, T).await, "were disabled, altered");
    assert_eq!(triggers.run(T).await["verdict"], "nothing_to_do");
    triggers.source.run("do $$ begin execute (select format('drop trigger %I on t', tgname) from pg_trigger where tgname like 'frazil_insert%'); end $$; insert into t values (3, 'unseen')").await;
    triggers.refused(&["run"], "is missing");
    triggers.refused(&["check"], "is missing");
    triggers.pipeline.ok(&["setup"]);
    whole(&triggers.run(T).await, "installed anew");
    // Columns that come, with values and without.
    let added = triggers.after("alter table t add column b int default 7", T).await;
    whole(&added, "was added with values");
    assert_eq!(
        extent(&triggers.after("alter table t add c int; update t set c = 1 where id = 3", T).await),
        "log"
    );
    triggers.source.run("drop table t; create table t (id int primary key, a text)").await;
    triggers.refused(&["run"], "is missing");
    triggers.pipeline.ok(&["setup"]);
    whole(&triggers.run("select id, a from t").await, "dropped and made anew");
}

#[tokio::test]
async fn a_gap_is_answered_as_the_stream_says() {
    let Some(pg) = fixture::postgres().await else { return };
    let schema = "create table t (id int primary key, a text, u int not null default 0);
                  insert into t values (1, 'a'), (2, 'b')";
    let triggers = Triggers::new(&pg, "tr_policy", schema, STREAM).await;
    triggers.run(T).await;
    let fails = "public.t: { change: trigger, on_gap: fail }";
    let urls = (triggers.source.url(), triggers.target.url());
    triggers.pipeline.rewrite(&urls.0, &urls.1, &BTreeMap::new(), &[fails]);
    assert_eq!(extent(&triggers.after("update t set a = 'x' where id = 1", T).await), "log");
    // Somebody took our line away, and what was kept for us went.
    triggers
        .source
        .run("update t set a = 'lost' where id = 2; update _frazil.tables set pruned = pruned + 1000000")
        .await;
    triggers.refused(&["run"], "changes since then were removed");
    triggers.pipeline.rewrite(&urls.0, &urls.1, &BTreeMap::new(), STREAM);
    let read = triggers.run(T).await;
    assert!(extent(&read) == "whole" && noted(&read, "were removed"), "{read}");
}

#[tokio::test]
async fn partitions_that_are_written_to_directly() {
    let Some(pg) = fixture::postgres().await else { return };
    let schema = "create table t (id int, day int, a text, primary key (id, day)) partition by range (day);
                  create table t1 partition of t for values from (0) to (10);
                  create table t2 (a text, day int not null, id int not null);
                  alter table t2 add primary key (id, day);
                  alter table t attach partition t2 for values from (10) to (20);
                  insert into t select i, i % 20, 'row' from generate_series(1, 100) i";
    let triggers = Triggers::new(&pg, "tr_parts", schema, STREAM).await;
    triggers.run(T).await;
    let direct = triggers
        .after(
            "update t1 set a = 'direct' where id < 5; delete from t2 where id = 11;
             insert into t2 (id, day, a) values (500, 15, 'direct'); update t set day = 15 where id = 1",
            T,
        )
        .await;
    assert_eq!((extent(&direct), direct["extract"]["read"].as_u64()), ("log", Some(7)), "{direct}");
    let attached = triggers
        .after(
            "create table t3 (id int not null, day int not null, a text);
             insert into t3 values (900, 25, 'came with it');
             alter table t attach partition t3 for values from (20) to (30)",
            T,
        )
        .await;
    assert!(extent(&attached) == "whole" && noted(&attached, "partitions were attached"), "{attached}");
    let new = triggers.after("insert into t3 values (901, 26, 'direct')", T).await;
    assert_eq!((extent(&new), new["extract"]["rows"].as_u64()), ("log", Some(1)), "{new}");
    assert_eq!(extent(&triggers.after("truncate t2", T).await), "whole");
    assert_eq!(extent(&triggers.after("alter table t detach partition t1", T).await), "whole");
    triggers.pipeline.ok(&["teardown", "--yes"]);
    assert_eq!(
        triggers.source.text("select count(*) from pg_trigger where tgname like 'frazil%'").await,
        "0"
    );
}

#[tokio::test]
async fn what_the_application_may_and_what_we_may() {
    let Some(pg) = fixture::postgres().await else { return };
    let schema = "create table t (id int primary key, a text); insert into t values (1, 'a')";
    let (source, target) = two_databases(&pg, "tr_rights").await;
    source.run(schema).await;
    let (reader, application) = (format!("r_{}", source.name()), format!("a_{}", source.name()));
    source
        .run(&format!(
            "create role \"{reader}\" login password 'x'; create role \"{application}\";
             grant select on t to \"{reader}\"; grant select, insert, update, delete on t to \"{application}\";
             grant pg_monitor to \"{reader}\""
        ))
        .await;
    let own = source.url();
    let url = format!("postgres://{reader}:x@{}", own.split_once('@').unwrap().1);
    let pipeline = Pipeline::new(&url, &target.url(), STREAM);
    let refused = pipeline.run(&["run"]);
    assert!(
        refused.stderr.contains("frazil setup") || refused.stdout.contains("frazil setup"),
        "{refused:?}"
    );
    let failed = pipeline.run(&["setup"]);
    assert_eq!(failed.code, Some(1), "{failed:?}");
    assert!(failed.stdout.contains("CREATE TRIGGER"), "{failed:?}");
    // Who may do it gets the statements.
    let statements = pipeline.ok(&["setup", "--dry-run"]).stdout;
    assert_eq!(source.text("select count(*) from pg_trigger").await, "0");
    source.run(&statements).await;
    assert!(pipeline.ok(&["setup"]).stdout.contains("nothing to do"));
    pipeline.ok(&["check"]);
    pipeline.ok(&["run"]);
    source
        .run(&format!(
            "set role \"{application}\"; insert into t values (2, 'b'); update t set a = 'c' where id = 1"
        ))
        .await;
    let report = pipeline.json(&["run"]).remove(0);
    assert_eq!((extent(&report), report["extract"]["rows"].as_u64()), ("log", Some(2)), "{report}");
    assert_same(&source, &target, T).await;
    assert_pruned(&source, &pipeline).await;
    source
        .run(&format!("drop owned by \"{reader}\"; drop owned by \"{application}\"; drop role \"{reader}\"; drop role \"{application}\""))
        .await;
}

#[tokio::test]
async fn what_cannot_have_triggers_is_refused() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "tr_refused").await;
    source
        .run(
            "create table plain (id int, a text); create view seen as select 1 as id;
             create table parent (id int primary key); create table child () inherits (parent);
             create unlogged table fleeting (id int primary key)",
        )
        .await;
    for (stream, why) in [
        ("public.plain: { change: trigger }", "the stream has none"),
        ("public.plain: { change: trigger, primary_key: id }", "may be NULL"),
        ("public.seen: { change: trigger, primary_key: id }", "only tables"),
        ("public.parent: { change: trigger }", "only tables"),
        ("public.fleeting: { change: trigger }", "unlogged"),
        ("public.plain: { change: trigger, primary_key: id, where: id > 1 }", "NULL"),
    ] {
        let pipeline = Pipeline::new(&source.url(), &target.url(), &[stream]);
        for verb in ["setup", "check", "run"] {
            let ran = pipeline.run(&[verb]);
            assert_ne!(ran.code, Some(0), "{stream}: {ran:?}");
            assert!(format!("{}{}", ran.stdout, ran.stderr).contains(why), "{stream}: {ran:?}");
        }
    }
    assert_eq!(source.text("select count(*) from pg_trigger").await, "0");
}

#[tokio::test]
async fn two_readers_and_nothing_left_in_the_end() {
    let Some(pg) = fixture::postgres().await else { return };
    let schema = "create table t (id int primary key, a text); insert into t select i, 'a' from generate_series(1, 50) i";
    let triggers = Triggers::new(&pg, "tr_two", schema, STREAM).await;
    let other = Pipeline::new(
        &triggers.source.url(),
        &triggers.target.url(),
        &["public.t: { change: trigger, target: dwh.public.other }"],
    );
    assert!(other.ok(&["setup"]).stdout.contains("nothing to do"));
    triggers.run(T).await;
    other.ok(&["run"]);
    triggers.after("update t set a = 'b' where id <= 10", T).await;
    assert_eq!(kept(&triggers.source).await, "10", "the other one has not read them");
    triggers.after("delete from t where id = 1", T).await;
    let report = other.json(&["run"]).remove(0);
    assert_eq!((extent(&report), report["extract"]["read"].as_u64()), ("log", Some(10)), "{report}");
    assert_eq!(triggers.source.rows(T).await, triggers.target.rows("select * from other").await);
    // The slower one goes on with what the faster one has read before it.
    triggers.after("insert into t values (100, 'x')", T).await;
    let report = other.json(&["run"]).remove(0);
    assert_eq!((extent(&report), report["extract"]["rows"].as_u64()), ("log", Some(1)), "{report}");

    triggers.source.run("update _frazil.readers set seen = now() - interval '8 days'").await;
    let silent = "was last seen on";
    assert!(triggers.pipeline.ok(&["check"]).stdout.contains(silent));
    other.ok(&["run"]);
    let checked = triggers.pipeline.ok(&["check"]).stdout;
    assert!(!checked.contains(silent), "it came, although nothing had changed: {checked}");

    assert_ne!(other.run(&["teardown"]).code, Some(0), "it takes a --yes");
    let stays = other.ok(&["teardown", "--yes"]).stdout;
    assert!(stays.contains("the triggers stay for the reader"), "{stays}");
    assert_eq!(extent(&triggers.after("update t set a = 'still' where id = 2", T).await), "log");
    triggers.pipeline.ok(&["teardown", "--yes"]);
    let left = "select (select count(*) from pg_trigger) + (select count(*) from pg_namespace where nspname = '_frazil')
                + (select count(*) from pg_proc where proname like 'frazil%')";
    assert_eq!(triggers.source.text(left).await, "0");
    assert!(triggers.pipeline.ok(&["teardown", "--yes"]).stdout.contains("nothing to do"));
    triggers.source.run("update t set a = 'unseen' where id = 3").await;
    triggers.refused(&["run"], "frazil setup");
    triggers.pipeline.ok(&["setup"]);
    assert_eq!(extent(&triggers.run(T).await), "whole");
}

#[tokio::test]
async fn the_log_is_set_up_and_torn_down_too() {
    let Some(pg) = fixture::postgres().await else { return };
    let schema = "create table t (id int primary key, a text); insert into t values (1, 'a')";
    let triggers = Triggers::new(&pg, "tr_log", schema, &["public.t: { change: log }"]).await;
    assert!(triggers.pipeline.ok(&["setup"]).stdout.contains("is there"));
    triggers.run(T).await;
    assert_eq!(extent(&triggers.after("insert into t values (2, 'b')", T).await), "log");
    let printed = triggers.pipeline.ok(&["teardown", "--dry-run"]).stdout;
    assert!(
        printed.contains("pg_drop_replication_slot") && printed.contains("DROP PUBLICATION"),
        "{printed}"
    );
    triggers.pipeline.ok(&["teardown", "--yes"]);
    let left = "select (select count(*) from pg_publication) + (select count(*) from pg_replication_slots where database = current_database())";
    assert_eq!(triggers.source.text(left).await, "0");
}
