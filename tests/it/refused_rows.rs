//! Rows that a target refuses go aside, the others are loaded; at any crash each row is in the target or a
//! letter, and a replay brings it in once.

use std::path::{Path, PathBuf};

use rusqlite::Connection as Sqlite;
use serde_json::Value;

use crate::fixture::{self, Pipeline, Ran};
use crate::sync::two_databases;
use crate::tds::{Engine, Server};

const STREAM: &str = "change: full, on_reject: dead_letter";
/// What the target refuses, though the lake has it. The message must not be in reports: it could quote a row.
const REFUSES: &str = "
    create trigger small_i before insert on t when new.n >= 100 begin select raise(abort, 'n is too big'); end;
    create trigger small_u before update on t when new.n >= 100 begin select raise(abort, 'n is too big'); end;
    create trigger stays before delete on t when old.n = 7 begin select raise(abort, 'seven stays'); end";
const REFUSES_NO_MORE: &str = "drop trigger small_i; drop trigger small_u; drop trigger stays";

/// A shop and a warehouse in SQLite, a lake on disk, one stream. The warehouse refuses rows.
struct Shop {
    dir: tempfile::TempDir,
    pipeline: Pipeline,
}

impl Shop {
    fn new(stream: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let url = |name: &str| format!("sqlite://{}", dir.path().join(name).display());
        sql(&dir.path().join("shop.db"), "create table t (id integer primary key, n int, note text)");
        sql(&dir.path().join("shop.db"), "insert into t (n, note) values (1, 'a'), (2, 'b'), (7, 'c')");
        let stream = format!("main.t: {{ {stream} }}");
        let pipeline = Pipeline::new(&url("shop.db"), &url("dwh.db"), &[&stream]);
        pipeline.ok(&["run"]);
        sql(&dir.path().join("dwh.db"), REFUSES);
        Self { dir, pipeline }
    }

    fn settings(&self, settings: &str) {
        let url = |name: &str| format!("sqlite://{}", self.path(name).display());
        let stream = format!("main.t: {{ {settings} }}");
        self.pipeline.rewrite(&url("shop.db"), &url("dwh.db"), &Default::default(), &[&stream]);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn source(&self, text: &str) {
        sql(&self.path("shop.db"), text);
    }

    fn target(&self, text: &str) {
        sql(&self.path("dwh.db"), text);
    }

    fn rows(&self, name: &str) -> Vec<(i64, i64, String)> {
        let db = Sqlite::open(self.path(name)).unwrap();
        let mut statement = db.prepare("select id, n, note from t order by id").unwrap();
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
        rows.map(Result::unwrap).collect()
    }

    fn ids(&self) -> Vec<i64> {
        ids(&self.pipeline, "main.t")
    }
}

fn sql(path: &Path, text: &str) {
    Sqlite::open(path).unwrap().execute_batch(text).unwrap();
}

fn lines(ran: &Ran) -> Vec<Value> {
    ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The ids of the load's letters, in order.
fn ids(pipeline: &Pipeline, stream: &str) -> Vec<i64> {
    let shown =
        lines(&pipeline.ok(&["dlq", "show", stream, "--leg", "load", "--output", "json", "-n", "10000"]));
    let key = |letter: &Value| -> Value { serde_json::from_str(letter["key"].as_str().unwrap()).unwrap() };
    let mut ids: Vec<i64> = shown.iter().map(|letter| key(letter)["id"].as_i64().unwrap()).collect();
    ids.sort_unstable();
    ids
}

#[test]
fn a_refused_row_stops_the_load_unless_it_may_go_aside() {
    let shop = Shop::new("change: full");
    shop.source("insert into t values (10, 100, 'secret'), (11, 11, 'd'), (12, 120, 'secret')");
    let ran = shop.pipeline.run(&["run"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert_eq!(shop.rows("dwh.db").len(), 3);

    shop.settings(&format!("{STREAM}, max_rejected: 1"));
    let ran = shop.pipeline.run(&["run"]);
    let all = format!("{}{}", ran.stdout, ran.stderr);
    assert_eq!(ran.code, Some(1), "{all}");
    assert!(all.contains("2 of 3 rows are rejected, at most 1 may be"), "{all}");
    assert!(!all.contains("secret"), "{all}");
    assert_eq!((shop.rows("dwh.db").len(), shop.ids()), (3, vec![]));

    shop.settings(STREAM);
    let report = lines(&shop.pipeline.ok(&["run", "--output", "json"])).remove(0);
    assert_eq!(report["load"]["rejected"], 2, "{report}");
    assert_eq!(shop.ids(), [10, 12]);
    let notes: Vec<_> = shop.rows("dwh.db").into_iter().map(|row| row.2).collect();
    assert_eq!(notes, ["a", "b", "c", "d"]);
    let listed = lines(&shop.pipeline.ok(&["dlq", "list", "--output", "json"]));
    assert_eq!((&listed[0]["leg"], &listed[0]["letters"]), (&"load".into(), &2.into()), "{listed:?}");
    let report = lines(&shop.pipeline.ok(&["run", "--output", "json"])).remove(0);
    assert_eq!(report["verdict"], "nothing_to_do", "{report}");
    let history = lines(&shop.pipeline.ok(&["history", "--output", "json"]));
    assert_eq!((&history[0]["rows_rejected"], &history[1]["rows_rejected"]), (&0.into(), &2.into()));
}

#[test]
fn a_row_that_gets_in_takes_its_letter_away() {
    let shop = Shop::new(STREAM);
    shop.source(
        "insert into t values (10, 100, 'x'), (12, 120, 'y'), (13, 130, 'z'); delete from t where n = 7",
    );
    shop.pipeline.ok(&["run"]);
    assert_eq!(shop.ids(), [3, 10, 12, 13]);
    let shown = lines(&shop.pipeline.ok(&["dlq", "show", "main.t", "--output", "json"]));
    let deleted = shown.iter().find(|letter| letter["key"] == r#"{"id":3}"#).unwrap();
    assert!(deleted["reason"].as_str().unwrap().starts_with("cannot be deleted: "), "{deleted}");
    // One is corrected, one is refused again, one is deleted.
    shop.source("update t set n = 10 where id = 10; update t set note = 'q' where id = 12; delete from t where id = 13");
    shop.pipeline.ok(&["run"]);
    assert_eq!(shop.ids(), [3, 12]);
    let shown = lines(&shop.pipeline.ok(&["dlq", "show", "main.t", "--output", "json"]));
    assert!(shown.iter().any(|letter| letter["payload"] == r#"{"id":12,"n":120,"note":"q"}"#), "{shown:?}");
}

#[test]
fn a_replay_brings_rows_in_or_says_why_not() {
    let shop = Shop::new(STREAM);
    let ran = shop.pipeline.ok(&["dlq", "replay", "main.t"]);
    assert!(ran.stderr.contains("nothing to replay"), "{ran:?}");
    shop.source("insert into t values (10, 100, 'x'), (12, 120, 'y'); delete from t where n = 7");
    shop.pipeline.ok(&["run"]);
    let ran = shop.pipeline.run(&["dlq", "replay", "main.t"]);
    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert!(ran.stdout.contains("3 letters of the load leg, 3 left"), "{ran:?}");
    // The lake has moved on, and the target shows what it showed.
    shop.source("update t set note = 'later' where id = 10");
    shop.pipeline.ok(&["sync"]);
    shop.target(REFUSES_NO_MORE);
    for (point, code) in [("in_load_transaction", None), ("after_load", None)] {
        let ran =
            shop.pipeline.run_with_faults(&["dlq", "replay", "main.t"], &format!("{point}=return(kill)"));
        assert_eq!(ran.code, code, "{ran:?}");
    }
    let ran = shop.pipeline.ok(&["dlq", "replay", "main.t", "--output", "json"]);
    assert_eq!((&lines(&ran)[0]["letters"], &lines(&ran)[0]["left"]), (&3.into(), &0.into()));
    let found: Vec<_> = shop.rows("dwh.db").into_iter().map(|row| (row.0, row.2)).collect();
    assert_eq!(found, [(1, "a"), (2, "b"), (10, "x"), (12, "y")].map(|(id, note)| (id, note.to_owned())));
    shop.pipeline.ok(&["run"]);
    assert_eq!(shop.rows("dwh.db"), shop.rows("shop.db"));
    let deeds = shop.pipeline.ok(&["journal"]).stdout;
    assert_eq!(deeds.matches("dlq_replay").count(), 2, "{deeds}");
}

#[test]
fn letters_are_given_up_by_name_or_all() {
    let shop = Shop::new(STREAM);
    shop.source("insert into t values (10, 100, 'x'), (12, 120, 'y'), (13, 130, 'z')");
    shop.pipeline.ok(&["run"]);
    let shown = lines(&shop.pipeline.ok(&["dlq", "show", "main.t", "--output", "json"]));
    let name = shown[0]["letter"].as_str().unwrap();
    assert_eq!(shop.pipeline.run(&["dlq", "drop", "main.t"]).code, Some(2));
    assert_eq!(shop.pipeline.run(&["dlq", "drop", "main.t", "--letter", "none"]).code, Some(2));
    shop.pipeline.ok(&["dlq", "drop", "main.t", "--letter", name]);
    assert_eq!(shop.ids().len(), 2);
    shop.pipeline.ok(&["dlq", "drop", "main.t", "--all"]);
    assert_eq!(shop.ids(), [0; 0]);
    assert!(shop.pipeline.ok(&["journal"]).stdout.contains("dlq_drop"));
    assert_eq!(shop.rows("dwh.db").len(), 3);
}

#[test]
fn a_replay_reads_what_the_contract_lets_in_by_now() {
    let shop = Shop::new("change: full, schema: discard_row");
    shop.source(
        "alter table t add column c text; insert into t values (10, 10, 'x', 'new'), (11, 11, 'y', null)",
    );
    shop.pipeline.ok(&["run"]);
    assert_eq!(shop.rows("dwh.db").len(), 4);
    assert_eq!(shop.pipeline.run(&["dlq", "replay", "main.t"]).code, Some(3), "it is refused again");
    shop.settings("change: full");
    let ran = shop.pipeline.ok(&["dlq", "replay", "main.t"]);
    assert!(ran.stdout.contains("1 letters of the extract leg, 0 left"), "{ran:?}");
    shop.pipeline.ok(&["run"]);
    assert_eq!(shop.rows("dwh.db"), shop.rows("shop.db"));
}

/// `load` alone, so that the first commit passed is that of the letters.
#[test]
fn a_crash_in_a_load_loses_and_doubles_nothing() {
    let shop = Shop::new(STREAM);
    let (mut id, mut refused) = (100, Vec::new());
    for point in ["before_commit", "after_commit", "in_load_transaction", "after_load"] {
        for action in ["kill", "error"] {
            shop.source(&format!("insert into t values ({id}, {id}, 'x'), ({id} + 1, 1, 'y')"));
            refused.push(id);
            id += 2;
            shop.pipeline.ok(&["sync"]);
            let ran = shop.pipeline.run_with_faults(&["load"], &format!("{point}=return({action})"));
            assert_ne!(ran.code, Some(0), "{point}: {ran:?}");
            shop.pipeline.ok(&["load"]);
            assert_eq!(shop.ids(), refused, "{point} {action}");
            let expected: Vec<_> = shop.rows("shop.db").into_iter().filter(|row| row.1 < 100).collect();
            assert_eq!(shop.rows("dwh.db"), expected, "{point} {action}");
        }
    }
}

#[tokio::test]
async fn postgres_loads_all_but_the_rows_that_it_refuses() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "refused").await;
    source
        .run(
            "create table t (id int primary key, n int, u int, owner int);
             insert into t select i, i, i, 1 from generate_series(1, 50) i",
        )
        .await;
    let stream = format!("public.t: {{ {STREAM} }}");
    let pipeline = Pipeline::new(&source.url(), &target.url(), &[&stream]);
    pipeline.ok(&["run"]);
    target
        .run(
            "create table owners (id int primary key); insert into owners values (1);
             create function no_seven() returns trigger language plpgsql as
                 $$ begin if new.n = 777 then raise exception 'seven: %', new.n; end if; return new; end $$;
             create trigger no_seven before insert or update on t for each row execute function no_seven();
             alter table t add check (n < 1000 and n is not null), add unique (u),
                 add foreign key (owner) references owners deferrable initially deferred",
        )
        .await;
    // Two rows change places under a unique column; five are refused, each for another reason.
    source
        .run(
            "update t set u = case u when 1 then 2 else 1 end where u in (1, 2);
             insert into t select i, i % 900, i, 1 from generate_series(100, 3000) i where i % 900 <> 777;
             insert into t values (60, 5000, 60, 1), (61, null, 61, 1), (62, 1, 62, 9), (63, 777, 63, 1), (64, 64, 50, 1);
             update t set n = 1001 where id = 2999; delete from t where id between 40 and 45",
        )
        .await;
    let report = lines(&pipeline.ok(&["run", "--output", "json"])).remove(0);
    assert_eq!(ids(&pipeline, "public.t"), [1, 2, 60, 61, 62, 63, 64, 2999], "{report}");
    let all_but = "select id, n, u from t where id not in (1, 2, 60, 61, 62, 63, 64, 2999)";
    crate::sync::assert_same(&source, &target, all_but).await;
    let listed = pipeline.ok(&["dlq", "list"]).stdout;
    for reason in ["23514", "23503", "P0001", "23505"] {
        assert!(listed.contains(reason), "{reason}: {listed}");
    }
    assert!(!listed.contains("seven:") && !listed.contains("5000"), "{listed}");
    // The table is corrected; what cannot be in it stays a letter.
    target
        .run(
            "alter table t drop constraint t_n_check, drop constraint t_u_key;
             drop trigger no_seven on t",
        )
        .await;
    let ran = pipeline.run(&["dlq", "replay", "public.t"]);
    assert_eq!((ran.code, ids(&pipeline, "public.t")), (Some(3), vec![62]), "{ran:?}");
    crate::sync::assert_same(&source, &target, "select * from t where id <> 62").await;
}

#[tokio::test]
async fn postgres_fills_an_empty_table_with_the_rows_that_it_takes() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "refused_first").await;
    source.run("create table t (id int primary key, n int); insert into t select i, nullif(i, 7) from generate_series(1, 300) i").await;
    target.run("create table t (id int primary key, n int not null check (n % 100 <> 50))").await;
    let stream = format!("public.t: {{ {STREAM} }}");
    let pipeline = Pipeline::new(&source.url(), &target.url(), &[&stream]);
    pipeline.ok(&["run"]);
    assert_eq!(ids(&pipeline, "public.t"), [7, 50, 150, 250]);
    assert!(pipeline.ok(&["dlq", "list"]).stdout.contains("23502"));
    crate::sync::assert_same(&source, &target, "select * from t where n % 100 <> 50").await;
}

/// The source of what is loaded into MariaDB: a shop in SQLite, and a table there that is narrower.
struct Mixed {
    shop: tempfile::TempDir,
    target: fixture::MariaDatabase,
    pipeline: Pipeline,
}

impl Mixed {
    async fn new(name: &str) -> Option<Self> {
        let target = fixture::mariadb().await?.database(name).await;
        let shop = tempfile::tempdir().unwrap();
        sql(
            &shop.path().join("shop.db"),
            "create table t (id integer primary key, n int, u int, owner int, note text)",
        );
        let url = format!("sqlite://{}", shop.path().join("shop.db").display());
        let stream = format!("main.t: {{ {STREAM} }}");
        let pipeline = Pipeline::new(&url, &target.url(), &[&stream]);
        target
            .run(
                "create table owners (id bigint primary key);\ninsert into owners values (1);\n
                 create table t (id bigint primary key, n bigint not null, constraint small check (n < 1000), u bigint unique, owner bigint, \
                     note varchar(10) character set latin1, foreign key (owner) references owners (id));\n
                 create table uses (id bigint, foreign key (id) references t (id))",
            )
            .await;
        Some(Self { shop, target, pipeline })
    }

    fn source(&self, text: &str) {
        sql(&self.shop.path().join("shop.db"), text);
    }

    /// What the target has, against what the source has but for these.
    async fn assert_all_but(&self, ids: &[i64]) {
        let columns = "id, n, u, owner, note";
        let loaded = self.target.text(&format!("select {columns} from t order by id")).await;
        let db = Sqlite::open(self.shop.path().join("shop.db")).unwrap();
        let mut statement = db.prepare(&format!("select {columns} from t order by id")).unwrap();
        let cell = |row: &rusqlite::Row<'_>, at| match row.get(at).unwrap() {
            rusqlite::types::Value::Null => "∅".to_owned(),
            rusqlite::types::Value::Integer(number) => number.to_string(),
            rusqlite::types::Value::Text(text) => text,
            other => panic!("{other:?}"),
        };
        let rows = statement.query_map([], |row| {
            let id: i64 = row.get(0)?;
            Ok((id, (0..5).map(|at| cell(row, at)).collect::<Vec<_>>().join(" | ")))
        });
        let expected: Vec<String> = rows
            .unwrap()
            .map(Result::unwrap)
            .filter(|(id, _)| !ids.contains(id))
            .map(|(_, row)| row)
            .collect();
        let others = |line: &&str| !ids.iter().any(|id| line.starts_with(&format!("{id} | ")));
        assert_eq!(loaded.lines().filter(others).collect::<Vec<_>>(), expected);
    }
}

#[tokio::test]
async fn mariadb_loads_all_but_the_rows_that_it_refuses() {
    let Some(mixed) = Mixed::new("refused").await else { return };
    // Into an empty table: what fits no cell, and what the table says.
    mixed.source(
        "insert into t select value, value, value, 1, 'x' from (with recursive n(value) as \
         (select 1 union all select value + 1 from n where value < 600) select value from n);
         insert into t values (700, 1, 700, 1, 'far too long a note'), (701, null, 701, 1, 'y'), (702, 1, 7, 1, 'taken'),
             (703, 1, 703, 9, 'nobody'), (704, 1, 704, 1, 'ρ'), (705, 5000, 705, 1, 'z')",
    );
    mixed.pipeline.ok(&["run"]);
    assert_eq!(ids(&mixed.pipeline, "main.t"), [700, 701, 702, 703, 704, 705]);
    mixed.assert_all_but(&[700, 701, 702, 703, 704, 705]).await;

    // Two change places under a unique column, one gives up a value that another waits for, one cannot go.
    mixed
        .target
        .run(
            "insert into uses values (9);\n
             create trigger odd before update on t for each row \
                 if new.n = 777 then signal sqlstate '45000' set message_text = 'no 777 here'; end if",
        )
        .await;
    mixed.source(
        "update t set u = case u when 1 then 2 else 1 end where u in (1, 2);
         update t set u = 1000 where id = 7; update t set note = 'short' where id = 700;
         update t set n = 777 where id = 11; update t set note = 'also far too long' where id = 12;
         update t set note = 'new' where id > 300 and id <= 600;
         delete from t where id in (8, 9, 705); insert into t values (800, 1, 800, 1, 'z'), (801, 1, 1000, 1, 'taken')",
    );
    let report = lines(&mixed.pipeline.ok(&["run", "--output", "json"])).remove(0);
    assert_eq!(report["load"]["rejected"], 6, "{report}");
    let left = [1, 2, 9, 11, 12, 701, 702, 703, 704, 801];
    assert_eq!(ids(&mixed.pipeline, "main.t"), left);
    mixed.assert_all_but(&left).await;
    let there =
        mixed.target.text("select id, u, n, note from t where id in (1, 2, 9, 11, 12) order by id").await;
    assert_eq!(there, "1 | 1 | 1 | x\n2 | 2 | 2 | x\n9 | 9 | 9 | x\n11 | 11 | 11 | x\n12 | 12 | 12 | x");
    let listed = mixed.pipeline.ok(&["dlq", "list"]).stdout;
    for reason in
        ["1062", "1452", "1451", "1644", "1366", "1048", "cannot be deleted", "longer than the target's"]
    {
        assert!(listed.contains(reason), "{reason}: {listed}");
    }
    assert!(!listed.contains("777") && !listed.contains("far too") && !listed.contains('ρ'), "{listed}");

    // The table is corrected; what cannot be in it stays a letter.
    mixed.target.run("drop trigger odd;\ndelete from uses;\nalter table t modify note text character set utf8mb4, modify n bigint null, drop index u").await;
    let ran = mixed.pipeline.run(&["dlq", "replay", "main.t"]);
    assert_eq!((ran.code, ids(&mixed.pipeline, "main.t")), (Some(3), vec![703]), "{ran:?}");
    mixed.assert_all_but(&[703]).await;
}

#[tokio::test]
async fn a_crash_in_a_load_into_mariadb_loses_and_doubles_nothing() {
    let Some(mixed) = Mixed::new("refused_crash").await else { return };
    let (mut id, mut refused) = (100, Vec::new());
    for point in ["before_commit", "after_commit", "in_load_transaction", "after_load"] {
        mixed.source(&format!(
            "insert into t values ({id}, 1, {id}, 1, 'far too long'), ({id} + 1, 1000, null, 1, 'y'), ({id} + 2, 1, null, 1, 'z')"
        ));
        refused.extend([id, id + 1]);
        id += 3;
        mixed.pipeline.ok(&["sync"]);
        let ran = mixed.pipeline.run_with_faults(&["load"], &format!("{point}=return(kill)"));
        assert_ne!(ran.code, Some(0), "{point}: {ran:?}");
        mixed.pipeline.ok(&["load"]);
        assert_eq!(ids(&mixed.pipeline, "main.t"), refused, "{point}");
        mixed.assert_all_but(&refused).await;
    }
}

const LOADED: &str = "SELECT t.[id], t.[n], t.[u], t.[note] FROM [dbo].[t] AS t ORDER BY t.[id]";

/// A shop in SQLite and SQL Server's protocol, with a table that is narrower than its source.
struct Narrow {
    shop: tempfile::TempDir,
    engine: Engine,
    _server: Server,
    pipeline: Pipeline,
}

impl Narrow {
    fn new(stream: &str) -> Self {
        let shop = tempfile::tempdir().unwrap();
        let engine = Engine::new();
        let server = Server::with_engine(&engine);
        sql(&shop.path().join("shop.db"), "create table t (id integer primary key, n int, u int, note text)");
        engine.run(
            "CREATE TABLE [dbo].[t] ([id] bigint NOT NULL, [n] bigint NOT NULL, [u] bigint NULL, [note] nvarchar(10) NULL, \
             CONSTRAINT [t_key] PRIMARY KEY ([id]), CONSTRAINT [t_u] UNIQUE ([u]))",
        );
        let url = format!("sqlite://{}", shop.path().join("shop.db").display());
        let stream = format!("main.t: {{ {stream} }}");
        let pipeline = Pipeline::new(&url, &server.url(), &[&stream]);
        Self { shop, engine, _server: server, pipeline }
    }

    fn source(&self, text: &str) {
        sql(&self.shop.path().join("shop.db"), text);
    }

    /// The second load lets the table take NULL, for which the responder makes it anew, without triggers.
    fn settled(&self) {
        self.source("update t set note = 'w' where id = 1");
        self.pipeline.ok(&["run"]);
    }
}

/// The server is the responder of `tds/`: what it refuses is by its own list of errors.
#[test]
fn sql_server_loads_all_but_the_rows_that_it_refuses() {
    let narrow = Narrow::new(STREAM);
    narrow.source(
        "insert into t select value, value, value, 'x' from (with recursive n(value) as \
         (select 1 union all select value + 1 from n where value < 40) select value from n);
         insert into t values (50, 1, 50, 'far too long a note'), (51, null, 51, 'y'), (52, 1, 7, 'taken')",
    );
    narrow.pipeline.ok(&["run"]);
    assert_eq!(ids(&narrow.pipeline, "main.t"), [50, 51, 52]);
    assert_eq!(narrow.engine.run(LOADED).len(), 40);

    // Two change places under a unique column, one gives up a value that another waits for, one cannot go.
    narrow.settled();
    narrow.engine.behind(
        "create trigger stays before delete on \"dbo.t\" when old.id = 9 begin select raise(abort, 'refused'); end;
         create trigger odd before update on \"dbo.t\" when new.n = 111 begin select raise(abort, 'refused: 111'); end",
    );
    narrow.engine.describe("dbo.t", |table| table.hazards.push("trigger".to_owned()));
    narrow.source(
        "update t set u = 1000 where id = 7; update t set note = 'short' where id = 50;
         update t set n = 111 where id = 11; update t set note = 'also far too long' where id = 12;
         delete from t where id in (8, 9); insert into t values (60, 1, 60, 'z'), (61, 1, 1000, 'taken')",
    );
    let report = lines(&narrow.pipeline.ok(&["run", "--output", "json"])).remove(0);
    assert_eq!(report["load"]["rejected"], 4, "{report}");
    assert_eq!(ids(&narrow.pipeline, "main.t"), [9, 11, 12, 51, 52, 61]);
    let listed = narrow.pipeline.ok(&["dlq", "list"]).stdout;
    for reason in ["2627", "50000", "longer than the target's column", "cannot be deleted", "515"] {
        assert!(listed.contains(reason), "{reason}: {listed}");
    }
    assert!(!listed.contains("111") && !listed.contains("far too"), "{listed}");
    let rows = narrow.engine.run(LOADED);
    for row in ["7|7|1000|x", "9|9|9|x", "11|11|11|x", "12|12|12|x", "50|1|50|short", "60|1|60|z"] {
        assert!(rows.iter().any(|have| have == row), "{row}: {rows:?}");
    }
    assert_eq!(rows.len(), 41);

    // The value that it waited for is free by now. The table is not ours: it still takes no NULL.
    let ran = narrow.pipeline.run(&["dlq", "replay", "main.t"]);
    assert_eq!((ran.code, ids(&narrow.pipeline, "main.t")), (Some(3), vec![9, 11, 12, 51, 61]), "{ran:?}");
    let rows = narrow.engine.run(LOADED);
    assert!(rows.contains(&"52|1|7|taken".to_owned()), "{rows:?}");
    assert!(!rows.iter().any(|row| row.starts_with("51|")), "{rows:?}");
}

#[test]
fn sql_server_ends_the_transaction_and_the_load_says_so() {
    let narrow = Narrow::new(STREAM);
    narrow.source("insert into t values (1, 1, 1, 'a'), (2, 2, 2, 'b')");
    narrow.pipeline.ok(&["run"]);
    narrow.settled();
    narrow.engine.behind(
        "create trigger ends before update on \"dbo.t\" when new.n = 111 begin select raise(rollback, 'rolled back'); end",
    );
    narrow.source("update t set n = 111 where id = 1; update t set n = 3 where id = 2");
    let ran = narrow.pipeline.run(&["run"]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("ended the whole transaction"), "{ran:?}");
    assert_eq!(narrow.engine.run(LOADED), ["1|1|1|w", "2|2|2|b"]);
    assert_eq!(ids(&narrow.pipeline, "main.t"), [0; 0]);
}

#[test]
fn a_crash_in_a_load_into_sql_server_loses_and_doubles_nothing() {
    let narrow = Narrow::new(STREAM);
    let (mut id, mut refused, mut loaded) = (100, Vec::new(), Vec::new());
    for point in ["before_commit", "after_commit", "in_load_transaction", "after_load"] {
        narrow.source(&format!(
            "insert into t values ({id}, 1, {id}, 'far too long'), ({id} + 1, 1, {id} + 1, 'y')"
        ));
        refused.push(id);
        loaded.push(format!("{0}|1|{0}|y", id + 1));
        id += 2;
        narrow.pipeline.ok(&["sync"]);
        let ran = narrow.pipeline.run_with_faults(&["load"], &format!("{point}=return(kill)"));
        assert_ne!(ran.code, Some(0), "{point}: {ran:?}");
        narrow.pipeline.ok(&["load"]);
        assert_eq!(ids(&narrow.pipeline, "main.t"), refused, "{point}");
        assert_eq!(narrow.engine.run(LOADED), loaded, "{point}");
    }
}
