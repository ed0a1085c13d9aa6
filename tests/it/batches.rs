//! Changes that come into a target by several transactions (`batch_rows`): what a crash, another loader
//! or a lake that goes back in the middle of them leaves behind.

use rusqlite::Connection;
use tempfile::TempDir;

use crate::fixture::{self, Pipeline};
use crate::tds::{Engine, Server};

const ROWS: &str = "select id, name from orders order by id";

/// A source in SQLite, and a target that one of the three connectors loads.
struct Case {
    folder: TempDir,
    pipeline: Pipeline,
    target: Place,
}

enum Place {
    Sqlite(std::path::PathBuf),
    Postgres(fixture::Database),
    SqlServer(Engine, #[allow(dead_code, reason = "it ends with the value")] Server),
}

impl Case {
    async fn all() -> Vec<Self> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("dwh.db");
        let mut cases = vec![Self::new(folder, &format!("sqlite://{}", file.display()), Place::Sqlite(file))];
        if let Some(pg) = fixture::postgres().await {
            let database = pg.database("batches").await;
            cases.push(Self::new(tempfile::tempdir().unwrap(), &database.url(), Place::Postgres(database)));
        }
        let engine = Engine::new();
        let server = Server::with_engine(&engine);
        let url = server.url();
        cases.push(Self::new(tempfile::tempdir().unwrap(), &url, Place::SqlServer(engine, server)));
        cases
    }

    /// Loaded once, with a hundred rows; then all of them changed, some deleted, and some added.
    fn new(folder: TempDir, target: &str, place: Place) -> Self {
        let source = format!("sqlite://{}", folder.path().join("shop.db").display());
        let stream = "main.orders: { change: full, batch_rows: 30 }";
        let case = Self { pipeline: Pipeline::new(&source, target, &[stream]), folder, target: place };
        case.change(
            "create table orders (id integer primary key, name text);
             with recursive n(id) as (select 1 union all select id + 1 from n where id < 100)
             insert into orders select id, 'old ' || id from n",
        );
        case.pipeline.ok(&["run"]);
        case.change("update orders set name = 'new ' || id; delete from orders where id % 10 = 0; insert into orders values (101, 'new 101'), (-1, 'new -1')");
        case
    }

    fn change(&self, sql: &str) {
        Connection::open(self.folder.path().join("shop.db")).unwrap().execute_batch(sql).unwrap();
    }

    async fn loaded(&self) -> Vec<String> {
        match &self.target {
            Place::Sqlite(file) => rows(file),
            Place::Postgres(database) => {
                database.text(ROWS).await.lines().map(|line| line.replace(" | ", "|")).collect()
            }
            Place::SqlServer(engine, _) => {
                engine.run("SELECT t.[id], t.[name] FROM [dbo].[orders] AS t ORDER BY t.[id]")
            }
        }
    }

    async fn assert_same(&self) {
        assert_eq!(self.loaded().await, rows(&self.folder.path().join("shop.db")));
    }

    /// Loads and dies after so many transactions: the target is between two states then.
    async fn die_after(&self, transactions: u32) {
        let before = self.loaded().await;
        let off = transactions - 1;
        let ran = self.pipeline.run_with_faults(&["run"], &format!("after_load={off}*off->return(kill)"));
        assert_eq!(ran.code, None, "{ran:?}");
        let halfway = self.loaded().await;
        assert_ne!(halfway, before);
        assert_ne!(halfway, rows(&self.folder.path().join("shop.db")));
    }
}

fn rows(file: &std::path::Path) -> Vec<String> {
    let db = Connection::open(file).unwrap();
    let mut query = db.prepare("select id || '|' || name from orders order by id").unwrap();
    query.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_arrives_whole() {
    for case in Case::all().await {
        let report = &case.pipeline.json(&["run"])[0];
        case.assert_same().await;
        // Ninety changed, ten gone, two new.
        assert_eq!(
            (&report["load"]["staged"], &report["load"]["deleted"]),
            (&102.into(), &10.into()),
            "{report}"
        );
        case.pipeline.ok(&["compare", "--between", "lake,target"]);
    }
}

/// Were the control row the same before and after, a commit without an answer would look like one that was.
#[tokio::test(flavor = "multi_thread")]
async fn loading_a_snapshot_once_more_leaves_a_mark() {
    for case in Case::all().await {
        case.pipeline.ok(&["run"]);
        let ran = case.pipeline.run_with_faults(&["load", "--full-refresh"], "after_load=return(kill)");
        assert_eq!(ran.code, None, "{ran:?}");
        let said = case.pipeline.ok(&["state", "verify"]).stdout;
        assert!(said.contains("shows some of a change"), "{said}");
        case.pipeline.ok(&["load"]);
        let said = case.pipeline.ok(&["state", "verify"]).stdout;
        assert!(said.contains("it can go on"), "{said}");
        case.assert_same().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_that_died_between_two_transactions_is_gone_on_with() {
    for case in Case::all().await {
        case.die_after(2).await;
        let said = case.pipeline.ok(&["state", "verify"]).stdout;
        assert!(said.contains("shows some of a change"), "{said}");
        // More came meanwhile; and what came with the change that died is gone again.
        case.change("delete from orders where id = 1; update orders set name = 'newest' where id = 2; delete from orders where id = -1");
        case.pipeline.ok(&["run"]);
        case.assert_same().await;
        let said = case.pipeline.ok(&["state", "verify"]).stdout;
        assert!(said.contains("it can go on"), "{said}");
    }
}

/// The rows that are there already are in no delta any more: the table must be compared with the lake.
#[tokio::test(flavor = "multi_thread")]
async fn a_lake_that_goes_back_takes_half_a_change_along() {
    for case in Case::all().await {
        let before = case.loaded().await;
        case.die_after(2).await;
        let first = case.pipeline.json(&["state", "history"]).last().unwrap()["snapshot"].to_string();
        case.pipeline.ok(&["rollback", "main.orders", "--to", &first]);
        case.pipeline.ok(&["load"]);
        assert_eq!(case.loaded().await, before);
    }
}
