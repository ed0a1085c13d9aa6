//! Rows that source and target both changed: what each policy makes of them, what is logged, and that a
//! crash at any point leaves one decision and one line of it.

use std::collections::BTreeMap;

use expect_test::{Expect, expect};
use rusqlite::Connection;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fixture::{self, MariaDatabase, Pipeline};
use crate::tds::{Engine, Server};

const ROWS: &str = "select id, email, status, at from orders order by id";

/// A source in SQLite, and a target that others write to as well.
struct Case {
    folder: TempDir,
    pipeline: Pipeline,
    target: Place,
    name: &'static str,
}

enum Place {
    Sqlite(std::path::PathBuf),
    Postgres(fixture::Database),
    MariaDb(MariaDatabase),
    SqlServer(Engine, #[allow(dead_code, reason = "it ends with the value")] Server),
}

impl Case {
    async fn all(settings: &str) -> Vec<Self> {
        let mut cases = vec![Self::sqlite(settings)];
        if let Some(pg) = fixture::postgres().await {
            let database = pg.database("conflicts").await;
            let url = database.url();
            cases.push(Self::new(tempfile::tempdir().unwrap(), &url, Place::Postgres(database), settings));
        }
        cases.extend(Self::mariadb(settings).await);
        cases.push(Self::sql_server(settings));
        cases
    }

    fn sqlite(settings: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("dwh.db");
        let url = format!("sqlite://{}", file.display());
        Self::new(folder, &url, Place::Sqlite(file), settings)
    }

    async fn mariadb(settings: &str) -> Option<Self> {
        let database = fixture::mariadb().await?.database("conflicts").await;
        let url = database.url();
        Some(Self::new(tempfile::tempdir().unwrap(), &url, Place::MariaDb(database), settings))
    }

    fn sql_server(settings: &str) -> Self {
        let engine = Engine::new();
        let server = Server::with_engine(&engine);
        let url = server.url();
        Self::new(tempfile::tempdir().unwrap(), &url, Place::SqlServer(engine, server), settings)
    }

    /// Twelve rows `(1, 'a', 'a', '50')`, loaded.
    fn new(folder: TempDir, target: &str, place: Place, settings: &str) -> Self {
        let name = match place {
            Place::Sqlite(_) => "sqlite",
            Place::Postgres(_) => "postgres",
            Place::MariaDb(_) => "mariadb",
            Place::SqlServer(..) => "sql server",
        };
        let source = format!("sqlite://{}", folder.path().join("shop.db").display());
        let stream = format!("main.orders: {{ change: full, {settings} }}");
        let case = Self { pipeline: Pipeline::new(&source, target, &[&stream]), folder, target: place, name };
        case.source(
            "create table orders (id integer primary key, email text, status text, at text);
             with recursive n(id) as (select 1 union all select id + 1 from n where id < 12)
             insert into orders select id, 'a', 'a', '50' from n",
        );
        case.pipeline.ok(&["run"]);
        case
    }

    fn source(&self, sql: &str) {
        Connection::open(self.folder.path().join("shop.db")).unwrap().execute_batch(sql).unwrap();
    }

    async fn target(&self, sql: &str) {
        match &self.target {
            Place::Sqlite(file) => Connection::open(file).unwrap().execute_batch(sql).unwrap(),
            Place::Postgres(database) => database.run(sql).await,
            Place::MariaDb(database) => database.run(&sql.replace("; ", ";\n")).await,
            Place::SqlServer(engine, _) => engine.behind(&sql.replace(" orders", " \"dbo.orders\"")),
        }
    }

    async fn loaded(&self) -> Vec<String> {
        match &self.target {
            Place::Sqlite(file) => {
                let db = Connection::open(file).unwrap();
                let mut query = db.prepare(ROWS).unwrap();
                let row = |row: &rusqlite::Row<'_>| -> rusqlite::Result<String> {
                    let texts: Vec<String> =
                        (1..4).map(|at| row.get::<_, String>(at)).collect::<Result<_, _>>()?;
                    Ok(format!("{} {}", row.get::<_, i64>(0)?, texts.join(" ")))
                };
                query.query_map([], row).unwrap().map(Result::unwrap).collect()
            }
            Place::Postgres(database) => {
                database.text(ROWS).await.lines().map(|line| line.replace(" | ", " ")).collect()
            }
            Place::MariaDb(database) => {
                database.text(ROWS).await.lines().map(|line| line.replace(" | ", " ")).collect()
            }
            Place::SqlServer(engine, _) => {
                let rows =
                    "SELECT t.[id], t.[email], t.[status], t.[at] FROM [dbo].[orders] AS t ORDER BY t.[id]";
                engine.run(rows).into_iter().map(|row| row.replace('|', " ")).collect()
            }
        }
    }

    fn conflicts(&self) -> Vec<Value> {
        let mut shown = self.pipeline.json(&["conflicts", "show", "main.orders", "-n", "10000"]);
        shown.sort_by_key(|conflict| conflict["record"]["id"].as_i64());
        shown
    }

    /// How they ended and in which columns, the oldest first.
    fn the_conflicts(&self) -> Vec<String> {
        let mut shown = self.pipeline.json(&["conflicts", "show", "main.orders"]);
        shown.sort_by_key(|conflict| conflict["found_at"].as_str().map(str::to_owned));
        let line = |conflict: &Value| {
            let fields: Vec<_> = conflict["fields"].as_object().unwrap().keys().cloned().collect();
            format!("{} {}", conflict["resolution"].as_str().unwrap(), fields.join(","))
        };
        shown.iter().map(line).collect()
    }

    fn the_open(&self) -> String {
        let open = self.pipeline.json(&["conflicts", "show", "main.orders", "--open"]);
        assert_eq!(open.len(), 1, "{open:?}");
        open[0]["conflict"].as_str().unwrap().to_owned()
    }
}

/// One of each: both sides changed a row, one of them, one deleted it and the other changed it, and so on.
const IN_THE_SOURCE: &str = "
    update orders set email = 's', at = '60' where id in (1, 2);
    update orders set email = 's', status = 's' where id = 3;
    update orders set status = 's' where id = 4;
    update orders set email = 's' where id in (6, 11);
    delete from orders where id in (7, 8, 9);
    insert into orders values (13, 's', 's', '60'), (14, 'x', 'x', '60'), (15, 's', 's', '60')";
const IN_THE_TARGET: &str = "
    update orders set email = 't', at = '70' where id = 1;
    update orders set email = 't', at = '55' where id = 2;
    update orders set email = 't', status = 't' where id = 3;
    update orders set email = 't' where id in (4, 5, 7);
    delete from orders where id in (6, 9, 10);
    insert into orders values (13, 't', 's', '50'), (14, 'x', 'x', '60'), (16, 't', 't', '50')";

async fn check(settings: &str, expected: Expect) {
    for case in Case::all(settings).await {
        case.source(IN_THE_SOURCE);
        case.target(IN_THE_TARGET).await;
        let report = case.pipeline.json(&["run"]).remove(0);
        let conflicts = case.conflicts();
        assert_eq!(report["load"]["conflicts"], conflicts.len() as u64, "{report}");
        let mut text = case.loaded().await.join("\n") + "\n";
        for conflict in &conflicts {
            let word = |name: &str| conflict[name].as_str().unwrap_or("nobody").to_owned();
            text += &format!(
                "{} {} {} by {}: {}\n",
                word("type"),
                conflict["record"]["id"],
                word("resolution"),
                word("resolved_by"),
                conflict["fields"]
            );
        }
        expected.assert_eq(&text);
        // Nothing of it comes again.
        case.source("insert into orders values (20, 'new', 'new', '60')");
        let report = case.pipeline.json(&["run"]).remove(0);
        assert_eq!(
            (&report["load"]["conflicts"], &report["load"]["staged"]),
            (&0.into(), &1.into()),
            "{report}"
        );
        assert_eq!(case.conflicts(), conflicts, "{}", case.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_wins_and_nobody_looks() {
    check(
        "conflicts: source_wins",
        expect![[r#"
        1 s a 60
        2 s a 60
        3 s s 50
        4 a s 50
        5 t a 50
        6 s a 50
        11 s a 50
        12 a a 50
        13 s s 60
        14 x x 60
        15 s s 60
        16 t t 50
    "#]],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_target_wins() {
    check(
        "conflicts: target_wins",
        expect![[r#"
        1 t a 70
        2 t a 55
        3 t t 50
        4 t s 50
        5 t a 50
        7 t a 50
        11 s a 50
        12 a a 50
        13 t s 50
        14 x x 60
        15 s s 60
        16 t t 50
        update 1 target by policy: {"at":"target","email":"target"}
        update 2 target by policy: {"at":"target","email":"target"}
        update 3 target by policy: {"email":"target","status":"target"}
        update 6 target by policy: {"email":"target"}
        delete 7 target by policy: {"email":"target"}
        insert 13 target by policy: {"at":"target","email":"target"}
    "#]],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_write_wins() {
    check(
        "conflicts: { default: last_write_wins, last_write: at }",
        expect![[r#"
        1 t a 70
        2 s a 60
        3 s s 50
        4 t s 50
        5 t a 50
        6 s a 50
        7 t a 50
        11 s a 50
        12 a a 50
        13 s s 60
        14 x x 60
        15 s s 60
        16 t t 50
        update 1 target by policy: {"at":"target","email":"target"}
        update 2 source by policy: {"at":"source","email":"source"}
        update 3 source by policy: {"email":"source","status":"source"}
        update 6 source by policy: {"email":"source"}
        delete 7 target by policy: {"email":"target"}
        insert 13 source by policy: {"at":"source","email":"source"}
    "#]],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_decides() {
    check(
        "conflicts: manual",
        expect![[r#"
        1 t a 70
        2 t a 55
        3 t t 50
        4 t s 50
        5 t a 50
        7 t a 50
        11 s a 50
        12 a a 50
        13 t s 50
        14 x x 60
        15 s s 60
        16 t t 50
        update 1 open by nobody: {"at":"open","email":"open"}
        update 2 open by nobody: {"at":"open","email":"open"}
        update 3 open by nobody: {"email":"open","status":"open"}
        update 6 open by nobody: {"email":"open"}
        delete 7 open by nobody: {"email":"open"}
        insert 13 open by nobody: {"at":"open","email":"open"}
    "#]],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_have_policies_of_their_own() {
    check(
        "conflicts: { default: target_wins, columns: { email: source_wins, status: manual } }",
        expect![[r#"
            1 s a 70
            2 s a 55
            3 s t 50
            4 a s 50
            5 t a 50
            6 s a 50
            11 s a 50
            12 a a 50
            13 s s 50
            14 x x 60
            15 s s 60
            16 t t 50
            update 1 merged by policy: {"at":"target","email":"source"}
            update 2 merged by policy: {"at":"target","email":"source"}
            update 3 open by nobody: {"email":"source","status":"open"}
            update 4 source by policy: {"email":"source"}
            update 6 source by policy: {"email":"source"}
            delete 7 source by policy: {"email":"source"}
            insert 13 merged by policy: {"at":"target","email":"source"}
        "#]],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_may_stop_the_load() {
    for case in Case::all("conflicts: error").await {
        case.source(IN_THE_SOURCE);
        case.target(IN_THE_TARGET).await;
        let before = case.loaded().await;
        for _ in 0..2 {
            let ran = case.pipeline.run(&["run"]);
            assert_eq!(ran.code, Some(1), "{ran:?}");
            let said = format!("{}{}", ran.stdout, ran.stderr);
            assert!(said.contains("6 rows were changed in the source and in the target"), "{said}");
            assert_eq!(case.loaded().await, before);
            // They can be looked at, each once, though nothing was loaded.
            let shown: Vec<_> =
                case.conflicts().iter().map(|c| c["record"]["id"].as_i64().unwrap()).collect();
            assert_eq!(shown, [1, 2, 3, 6, 7, 13]);
        }
        // The target's rows are made as the source has them, and all goes on.
        case.target(
            "update orders set email = 's', at = '60' where id in (1, 2); update orders set email = 's', status = 's' where id = 3;
             insert into orders values (6, 's', 'a', '50'); delete from orders where id in (7, 13)",
        )
        .await;
        let report = case.pipeline.json(&["run"]).remove(0);
        assert_eq!(report["load"]["conflicts"], 0, "{report}");
        assert_eq!(case.conflicts(), Vec::<Value>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn marks_of_deleted_rows_are_ours() {
    for case in Case::all("conflicts: manual, deletes: soft").await {
        case.source("delete from orders where id <= 2");
        case.target("update orders set email = 't' where id = 2").await;
        case.pipeline.ok(&["run"]);
        let kinds = |case: &Case| -> Vec<String> {
            case.conflicts()
                .iter()
                .map(|c| format!("{} {}", c["type"].as_str().unwrap(), c["record"]["id"]))
                .collect()
        };
        assert_eq!(kinds(&case), ["delete 2"], "{}", case.name);
        // One comes back: no row of others is in its place.
        case.source("insert into orders values (1, 'again', 'a', '50')");
        case.pipeline.ok(&["run"]);
        assert_eq!(kinds(&case), ["delete 2"], "{}", case.name);
        assert!(case.loaded().await.contains(&"1 again a 50".to_owned()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_the_target_keeps_in_its_own_way_are_no_changes() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = crate::sync::two_databases(&pg, "conflict_values").await;
    source
        .run(
            "create table t (id int primary key, f float8, n numeric, c char(5), j jsonb, i interval, r int4range, x int);
             insert into t values (1, 'NaN', 1.50, 'ab', '{\"a\": 1}', '1 mon', '[1,5)', 0),
                 (2, '-0', 'NaN', 'ab ', 'null', '30 days', 'empty', 0), (3, null, null, null, null, null, null, null)",
        )
        .await;
    let pipeline =
        Pipeline::new(&source.url(), &target.url(), &["public.t: { change: full, conflicts: target_wins }"]);
    let ran = pipeline.run(&["run"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    source.run("update t set x = 1").await;
    let report = pipeline.json(&["run"]).remove(0);
    assert_eq!(
        (&report["load"]["conflicts"], &report["load"]["upserted"]),
        (&0.into(), &3.into()),
        "{report}"
    );
    assert_eq!(target.text("select id, x from t order by id").await, "1 | 1\n2 | 1\n3 | 1");
    // Equal is not the same: this is a change of the target's.
    target.run("update t set i = '30 days' where id = 1").await;
    source.run("update t set x = 2, i = '31 days' where id = 1").await;
    let report = pipeline.json(&["run"]).remove(0);
    assert_eq!(report["load"]["conflicts"], 1, "{report}");
    assert_eq!(target.text("select i, x from t where id = 1").await, "30 days | 2");
}

#[tokio::test(flavor = "multi_thread")]
async fn values_that_mariadb_keeps_in_its_own_way_are_no_changes() {
    let Some(server) = fixture::mariadb().await else { return };
    let (source, target) =
        (server.database("conflict_source").await, server.database("conflict_values").await);
    let table = "create table t (id int primary key, f float, d double, n decimal(10,3), c char(5), j json, b bit(9), \
         e enum('x', 'Y'), s set('a', 'b'), at timestamp(3) null, y binary(4), u uuid, l varchar(9) character set latin1, x int)";
    source.run(&table.replace("enum('x', 'Y')", "varchar(9)").replace("set('a', 'b')", "varchar(9)")).await;
    target.run(table).await;
    source
        .run(
            "insert into t values (1, 0.1, 0.1, 1.5, 'ab', '{\"a\": 1}', 257, 'X', 'b,a', '2024-02-29 01:02:03.004', 'abcd', \
             '123e4567-e89b-12d3-a456-426614174000', 'grüße', 0), \
             (2, -0e0, 1e300, -1, '', 'null', 0, 'y', '', null, '\\0\\0\\0\\0', null, 'a ', 0), \
             (3, null, null, null, null, null, null, null, null, null, null, null, null, 0)",
        )
        .await;
    let settings = "t: { change: full, conflicts: target_wins }";
    let stream = format!("{}.{settings}", source.name());
    let pipeline = Pipeline::new(&source.url(), &target.url(), &[&stream]);
    pipeline.ok(&["run"]);
    source.run("update t set x = 1").await;
    let report = pipeline.json(&["run"]).remove(0);
    assert_eq!(
        (&report["load"]["conflicts"], &report["load"]["upserted"]),
        (&0.into(), &3.into()),
        "{report}"
    );
    // Equal is not the same: these are changes of the target's.
    target
        .run(
            "update t set l = 'GRÜSSE', f = 0.2, y = 'abce' where id = 1;\nupdate t set l = 'a' where id = 2",
        )
        .await;
    source.run("update t set x = 2, l = 'other', f = f + 1, y = 'abcf' where id in (1, 2)").await;
    let report = pipeline.json(&["run"]).remove(0);
    assert_eq!(report["load"]["conflicts"], 2, "{report}");
    assert_eq!(target.text("select l, x from t order by id").await, "GRÜSSE | 2\na | 2\n∅ | 1");
    let shown = pipeline.json(&["conflicts", "show", &format!("{}.t", source.name())]);
    let first = shown.iter().find(|conflict| conflict["record"]["id"] == 1).unwrap();
    assert_eq!(
        (&first["values"]["target"]["f"], &first["values"]["base"]["y"]),
        (&"0.20000000298023224".into(), &"0x61626364".into())
    );
}

/// `load` alone, so that the first commit passed is that of the conflicts.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_decides_nothing_twice() {
    let case = Case::sqlite("conflicts: target_wins");
    let (mut round, mut logged) = (0, 0);
    for point in ["before_commit", "after_commit", "in_load_transaction", "after_load"] {
        for action in ["kill", "error"] {
            round += 1;
            // One conflict that stays one, and one that is none any more when the load is tried again.
            case.source(&format!("update orders set email = 's{round}' where id in (1, 2)"));
            case.target(&format!("update orders set email = 't{round}' where id = 1; update orders set email = 'u{round}' where id = 2")).await;
            case.pipeline.ok(&["sync"]);
            let ran = case.pipeline.run_with_faults(&["load"], &format!("{point}=return({action})"));
            assert_ne!(ran.code, Some(0), "{point}: {ran:?}");
            let committed = point == "after_load";
            logged += if committed { 2 } else { 1 };
            let seen = case.conflicts().len();
            assert_eq!(seen, if committed { logged } else { logged - 1 }, "{point} {action}");
            if !committed {
                case.target(&format!("update orders set email = 's{round}' where id = 2")).await;
            }
            case.pipeline.ok(&["load"]);
            assert_eq!(case.conflicts().len(), logged, "{point} {action}");
            let rows = case.loaded().await;
            assert!(rows.contains(&format!("1 t{round} a 50")), "{point} {action}: {rows:?}");
            // Level again, so that each round begins with the same on both sides.
            case.target(&format!("update orders set email = 's{round}' where id <= 2")).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_conflict_is_resolved_once() {
    for case in Case::all("conflicts: manual").await {
        let clash = |id: i64| {
            case.source(&format!("update orders set email = 's', status = 's' where id = {id}"));
            format!("update orders set email = 't', at = 't' where id = {id}")
        };
        let resolve = |conflict: &str, choice: &[&str]| {
            case.pipeline
                .run(&[&["conflicts", "resolve", "main.orders", "--conflict", conflict], choice].concat())
        };
        let row = async |id: i64| {
            let rows = case.loaded().await;
            rows.into_iter().find(|row| row.starts_with(&format!("{id} "))).unwrap_or_default()
        };
        // The target's values.
        case.target(&clash(1)).await;
        case.pipeline.ok(&["run"]);
        assert_eq!(row(1).await, "1 t s t");
        let conflict = case.the_open();
        assert_eq!(resolve(&conflict, &["--take", "target"]).code, Some(0));
        assert_eq!(row(1).await, "1 t s t");
        let again = resolve(&conflict, &["--take", "source"]);
        assert_eq!(again.code, Some(2), "{again:?}");
        assert!(again.stderr.contains("the conflict is not open"), "{again:?}");
        // The source's, where they are in question and nowhere else.
        case.target(&clash(2)).await;
        case.pipeline.ok(&["run"]);
        let conflict = case.the_open();
        let killed = case.pipeline.run_with_faults(
            &["conflicts", "resolve", "main.orders", "--conflict", &conflict, "--take", "source"],
            "in_load_transaction=return(kill)",
        );
        assert_eq!((killed.code, row(2).await), (None, "2 t s t".to_owned()), "{killed:?}");
        let other = resolve(&conflict, &["--take", "target"]);
        assert!(other.stderr.contains("on its way"), "{other:?}");
        assert_eq!(resolve(&conflict, &["--take", "source"]).code, Some(0));
        assert_eq!(row(2).await, "2 s s t");
        // Other values.
        case.target(&clash(3)).await;
        case.pipeline.ok(&["run"]);
        let conflict = case.the_open();
        for wrong in ["id=7", "email=7", "nothing=1"] {
            let ran = resolve(&conflict, &["--set", wrong]);
            assert_eq!(ran.code, Some(2), "{wrong}: {ran:?}");
        }
        assert_eq!(resolve(&conflict, &["--set", "email=\"v\"", "--set", "at=\"v\""]).code, Some(0));
        assert_eq!(row(3).await, "3 v s v");
        // The source deleted it.
        case.source("delete from orders where id = 4");
        case.target("update orders set email = 't' where id = 4").await;
        case.pipeline.ok(&["run"]);
        assert_eq!(row(4).await, "4 t a 50");
        case.pipeline.ok(&["conflicts", "resolve", "main.orders", "--all", "--take", "source"]);
        assert_eq!(row(4).await, "");
        // The target deleted it.
        case.source("update orders set email = 's' where id = 5");
        case.target("delete from orders where id = 5").await;
        case.pipeline.ok(&["run"]);
        case.pipeline.ok(&["conflicts", "resolve", "main.orders", "--all", "--take", "source"]);
        assert_eq!(row(5).await, "5 s a 50");

        let ended: Vec<_> =
            case.conflicts().iter().map(|c| c["resolution"].as_str().unwrap().to_owned()).collect();
        assert_eq!(ended, ["target", "source", "value", "source", "source"], "{}", case.name);
        assert_eq!(case.conflicts()[2]["value"], json!({ "email": "v", "at": "v" }));
        assert_eq!(case.pipeline.ok(&["journal"]).stdout.matches("conflict_resolve").count(), 5);
        let listed = case.pipeline.json(&["conflicts", "list"]);
        assert_eq!(listed.len(), 4, "{listed:?}");
        let history = case.pipeline.json(&["history"]);
        assert_eq!(history[0]["conflicts"], 1);
        // Nothing is left to do, and the next change of such a row is met as before.
        case.source("update orders set email = 'later' where id = 2");
        let report = case.pipeline.json(&["run"]).remove(0);
        assert_eq!(report["load"]["conflicts"], 0, "{report}");
        assert_eq!(row(2).await, "2 later s t");
        // The program dies when the target has it: loads go on, and so does the choice.
        case.target(&clash(6)).await;
        case.pipeline.ok(&["run"]);
        let conflict = case.the_open();
        let killed = case.pipeline.run_with_faults(
            &["conflicts", "resolve", "main.orders", "--conflict", &conflict, "--take", "source"],
            "after_load=return(kill)",
        );
        assert_eq!((killed.code, row(6).await), (None, "6 s s t".to_owned()), "{killed:?}");
        case.source("update orders set email = 'later' where id = 6");
        case.pipeline.ok(&["run"]);
        assert_eq!(row(6).await, "6 later s t");
        assert_eq!(resolve(&conflict, &["--take", "source"]).code, Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_conflict_takes_the_place_of_an_older_one() {
    let case = Case::sqlite("conflicts: manual");
    let clash = async |column: &str, value: &str| {
        case.source(&format!("update orders set {column} = 's{value}' where id = 1"));
        case.target(&format!("update orders set {column} = 't{value}' where id = 1")).await;
        case.pipeline.ok(&["run"]);
        case.the_conflicts()
    };
    assert_eq!(clash("email", "1").await, ["open email"]);
    // Another column: both are to be decided.
    assert_eq!(clash("status", "1").await, ["open email", "open status"]);
    assert_eq!(clash("email", "2").await, ["superseded email", "open status", "open email"]);
    let older = case.conflicts().into_iter().find(|one| one["resolution"] == "superseded").unwrap();
    let older = older["conflict"].as_str().unwrap().to_owned();
    let refused =
        case.pipeline.run(&["conflicts", "resolve", "main.orders", "--conflict", &older, "--take", "source"]);
    assert!(refused.stderr.contains("the conflict is not open"), "{refused:?}");
    case.pipeline.ok(&["conflicts", "resolve", "main.orders", "--all", "--take", "source"]);
    assert_eq!(case.loaded().await[0], "1 s2 s1 50");
    assert_eq!(case.the_conflicts(), ["superseded email", "source status", "source email"]);
}

/// What rows were before is asked of the lake's past: whatever became of it since, and of its columns.
#[tokio::test(flavor = "multi_thread")]
async fn the_lake_and_its_columns_may_change_meanwhile() {
    for case in Case::all("conflicts: target_wins").await {
        // Two snapshots at once; a column comes in between, and the target's rows have it by then.
        case.source("update orders set email = 's' where id <= 2");
        case.pipeline.ok(&["sync"]);
        case.source("alter table orders add column note text; update orders set email = 's2', note = 'n' where id = 1; update orders set status = 's' where id = 3");
        case.pipeline.ok(&["sync"]);
        case.target(
            "update orders set status = 't' where id = 1; update orders set email = 't' where id = 2",
        )
        .await;
        let report = case.pipeline.json(&["load"]).remove(0);
        assert_eq!(report["load"]["conflicts"], 1, "{}: {report}", case.name);
        assert_eq!(case.loaded().await[..3], ["1 s2 t 50", "2 t a 50", "3 a s 50"], "{}", case.name);
        // Back to the first snapshot: of row 2 the target's value stays, and nobody else's is touched.
        let first = case.pipeline.json(&["state", "history"]).last().unwrap()["snapshot"].to_string();
        case.pipeline.ok(&["rollback", "main.orders", "--to", &first]);
        case.pipeline.ok(&["load"]);
        assert_eq!(case.loaded().await[..3], ["1 a t 50", "2 t a 50", "3 a a 50"], "{}", case.name);
    }
}

/// Another lake table says nothing of what the target was.
#[tokio::test]
async fn a_lake_table_made_anew_is_not_loaded_over_others() {
    let case = Case::sqlite("conflicts: target_wins");
    case.target("update orders set email = 't' where id = 1").await;
    std::fs::remove_dir_all(case.pipeline.location("main", "orders")).unwrap();
    let ran = case.pipeline.run(&["run"]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.stderr.contains("--full-refresh"), "{ran:?}");
    assert_eq!(case.loaded().await[0], "1 t a 50");
    case.pipeline.ok(&["load", "--full-refresh"]);
    assert_eq!(case.loaded().await[0], "1 a a 50");
}

#[tokio::test]
async fn settings_that_do_not_go_together_are_refused() {
    for (settings, says) in [
        ("conflicts: last_write_wins", "needs the column that says when"),
        ("conflicts: manual, batch_rows: 10", "comes in one transaction"),
        ("conflicts: manual, on_reject: dead_letter", "do not go together yet"),
        ("conflicts: manual, mode: replace", "needs `mode: merge`"),
        ("conflicts: sourcewins", "unknown value"),
        ("conflicts: { columns: { nope: manual } }", "a column that the stream does not have"),
        ("conflicts: { columns: { id: manual } }", "a column of the key"),
        ("conflicts: { default: last_write_wins, last_write: id }", "no column that says when"),
        ("conflicts: { default: last_write_wins, last_write: nope }", "no column that says when"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let url = |name: &str| format!("sqlite://{}", folder.path().join(name).display());
        let stream = format!("main.orders: {{ change: full, {settings} }}");
        let pipeline = Pipeline::new(&url("shop.db"), &url("dwh.db"), &[&stream]);
        let shop = Connection::open(folder.path().join("shop.db")).unwrap();
        shop.execute_batch(
            "create table orders (id integer primary key, n int); insert into orders values (1, 1)",
        )
        .unwrap();
        let ran = pipeline.run(&["run"]);
        assert_eq!(ran.code, Some(2), "{settings}: {ran:?}");
        assert!(format!("{}{}", ran.stdout, ran.stderr).contains(says), "{settings}: {ran:?}");
    }
}

/// `(email, status, at)`.
type Row = (String, String, String);
type Table = BTreeMap<i64, Row>;

/// Chance changes both sides; what a load must make of it is worked out here once more, cell by cell.
#[tokio::test(flavor = "multi_thread")]
async fn chance_finds_no_merge_that_is_wrong() {
    const POLICIES: [&str; 4] = ["source_wins", "last_write_wins", "target_wins", "manual"];
    let postgres = fixture::postgres().await;
    for seed in 1..=5_u64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut below = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % n
        };
        // Never all by the source: then nobody looks.
        let policies =
            [POLICIES[1 + below(3) as usize], POLICIES[below(4) as usize], POLICIES[below(4) as usize]];
        let [default, email, status] = policies;
        let settings = format!(
            "conflicts: {{ default: {default}, last_write: at, columns: {{ email: {email}, status: {status} }} }}"
        );
        let case = match &postgres {
            Some(pg) if seed % 2 == 0 => {
                let database = pg.database("conflict_chance").await;
                let url = database.url();
                Case::new(tempfile::tempdir().unwrap(), &url, Place::Postgres(database), &settings)
            }
            _ if seed % 4 == 3 => Case::sql_server(&settings),
            _ if seed == 5 => match Case::mariadb(&settings).await {
                Some(case) => case,
                None => continue,
            },
            _ => Case::sqlite(&settings),
        };
        let row = || ("a".to_owned(), "a".to_owned(), "50".to_owned());
        let mut base: Table = (1..=12).map(|id| (id, row())).collect();
        let (mut source, mut target) = (base.clone(), base.clone());
        for round in 0..4 {
            let at = |table: &mut Table, below: &mut dyn FnMut(u64) -> u64| {
                let mut statements = String::new();
                for _ in 0..12 {
                    let id = 1 + below(14) as i64;
                    let letter = ["a", "b", "c"][below(3) as usize];
                    let time = 40 + below(20);
                    match (table.get_mut(&id), below(5)) {
                        (Some(_), 0) => {
                            table.remove(&id);
                            statements += &format!("delete from orders where id = {id};");
                        }
                        (Some(row), which) => {
                            let column = if which % 2 == 0 { "email" } else { "status" };
                            let cell = if which % 2 == 0 { &mut row.0 } else { &mut row.1 };
                            letter.clone_into(cell);
                            row.2 = time.to_string();
                            statements += &format!(
                                "update orders set {column} = '{letter}', at = '{time}' where id = {id};"
                            );
                        }
                        (None, _) => {
                            table.insert(id, (letter.to_owned(), letter.to_owned(), time.to_string()));
                            statements += &format!(
                                "insert into orders values ({id}, '{letter}', '{letter}', '{time}');"
                            );
                        }
                    }
                }
                statements
            };
            case.source(&at(&mut source, &mut below));
            case.target(&at(&mut target, &mut below)).await;
            let mut conflicts = 0;
            for id in 1..=14 {
                let (base, source) = (base.get(&id), source.get(&id));
                if base == source {
                    continue; // not in the change
                }
                let (then, clash) = merged(&policies, base, source, target.get(&id));
                conflicts += u64::from(clash);
                match then {
                    Some(row) => target.insert(id, row),
                    None => target.remove(&id),
                };
            }
            let report = case.pipeline.run(&["run", "--output", "json"]);
            let report: Value = serde_json::from_str(report.stdout.lines().next().unwrap()).unwrap();
            let expected: Vec<_> = target
                .iter()
                .map(|(id, (email, status, at))| format!("{id} {email} {status} {at}"))
                .collect();
            assert_eq!(case.loaded().await, expected, "seed {seed} round {round} {policies:?} {report}");
            assert_eq!(
                report["load"]["conflicts"], conflicts,
                "seed {seed} round {round} {policies:?} {report}"
            );
            base.clone_from(&source);
        }
    }
}

/// The row of the target after a load that brings a change of the source, and whether there was a conflict.
fn merged(
    policies: &[&str; 3],
    base: Option<&Row>,
    source: Option<&Row>,
    target: Option<&Row>,
) -> (Option<Row>, bool) {
    let cells = |row: &Row| [row.0.clone(), row.1.clone(), row.2.clone()];
    // The default is the policy of the third column, too.
    let policies = [policies[1], policies[2], policies[0]];
    let differing = |a: &Row, b: &Row| -> Vec<&str> {
        (0..3).filter(|at| cells(a)[*at] != cells(b)[*at]).map(|at| policies[at]).collect()
    };
    let careful = |of: &[&str], policy: &str| of.contains(&policy);
    match (base, source, target) {
        (None, source, None) => (source.cloned(), false),
        (Some(base), Some(source), None) => {
            let of = differing(base, source);
            let back = !careful(&of, "manual") && !careful(&of, "target_wins");
            (back.then(|| source.clone()), true)
        }
        (Some(_), None, None) => (None, false),
        (Some(base), None, Some(target)) => {
            let of = differing(base, target);
            let goes = of.iter().all(|policy| *policy == "source_wins");
            ((!goes).then(|| target.clone()), !of.is_empty())
        }
        (base, Some(source), Some(target)) => {
            let newer = source.2 >= target.2;
            let (mut row, mut clash) = (Vec::new(), false);
            for (at, policy) in policies.iter().enumerate() {
                let (ours, theirs) = (cells(source)[at].clone(), cells(target)[at].clone());
                let was = base.map(|base| cells(base)[at].clone());
                if ours == theirs || was.as_ref() == Some(&theirs) {
                    row.push(ours);
                    continue;
                }
                let both = was.as_ref() != Some(&ours);
                let takes = *policy == "source_wins" || (both && *policy == "last_write_wins" && newer);
                clash |= both || *policy == "source_wins";
                row.push(if takes { ours } else { theirs });
            }
            let [email, status, at] = row.try_into().unwrap();
            (Some((email, status, at)), clash)
        }
        (None, None, Some(_)) => panic!("the change has no such row"),
    }
}
