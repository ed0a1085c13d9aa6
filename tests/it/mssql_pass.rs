//! Whole passes into SQL Server's protocol, by the program itself: SQLite → lake → the responder of
//! `tds/`. The process is killed at each of its named points, and one clean run heals.

use std::path::Path;

use frazil::faults;

use crate::fixture::Pipeline;
use crate::tds::{Engine, Server};

const ROWS: &str = "select id, name, amount, day from orders order by id";
const LOADED: &str = "SELECT t.[id], t.[name], t.[amount], t.[day] FROM [dbo].[orders] AS t ORDER BY t.[id]";

struct Pass {
    folder: tempfile::TempDir,
    engine: Engine,
    server: Server,
}

impl Pass {
    fn new() -> Self {
        let engine = Engine::new();
        let server = Server::with_engine(&engine);
        let pass = Self { folder: tempfile::tempdir().unwrap(), engine, server };
        pass.change(
            "create table orders (id integer primary key, name text, amount decimal(12,2), day date);
             insert into orders select value, 'it''s ☃ ' || value, printf('%d.%02d', value, value % 100), '2024-02-29'
             from (with recursive n(value) as (select 1 union all select value + 1 from n where value < 500) select value from n);
             insert into orders values (1000, null, null, null)",
        );
        pass
    }

    fn file(&self) -> std::path::PathBuf {
        self.folder.path().join("shop.db")
    }

    fn change(&self, sql: &str) {
        connection(&self.file()).execute_batch(sql).unwrap();
    }

    fn pipeline(&self) -> Pipeline {
        let source = format!("sqlite://{}", self.file().display());
        Pipeline::new(&source, &self.server.url(), &["main.orders: { change: full }"])
    }

    /// Source and target, cell by cell.
    fn assert_same(&self) {
        let source = connection(&self.file());
        let mut query = source.prepare(ROWS).unwrap();
        let rows: Vec<String> = query
            .query_map([], |row| {
                let cell = |index| match row.get::<_, rusqlite::types::Value>(index).unwrap() {
                    rusqlite::types::Value::Null => "NULL".to_owned(),
                    rusqlite::types::Value::Integer(number) if index == 2 => format!("{number}.00"),
                    rusqlite::types::Value::Integer(number) => number.to_string(),
                    rusqlite::types::Value::Real(number) => format!("{number:.2}"),
                    rusqlite::types::Value::Text(text) => text,
                    other => panic!("{other:?}"),
                };
                Ok((0..4).map(cell).collect::<Vec<_>>().join("|"))
            })
            .unwrap()
            .map(Result::unwrap)
            .collect();
        assert_eq!(rows, self.engine.run(LOADED));
    }
}

fn connection(file: &Path) -> rusqlite::Connection {
    rusqlite::Connection::open(file).unwrap()
}

#[test]
fn a_first_pass_and_the_next_ones_make_both_ends_equal() {
    let pass = Pass::new();
    let pipeline = pass.pipeline();
    pipeline.ok(&["run"]);
    pass.assert_same();
    pass.change("update orders set name = upper(name) where id % 7 = 0; delete from orders where id % 11 = 0; insert into orders values (2000, 'new', 1, '2024-01-01')");
    let ran = pipeline.ok(&["run"]);
    pass.assert_same();
    let said = format!("{}{}", ran.stdout, ran.stderr);
    assert!(!said.contains("Fr&zil"), "{said}");
    // Nothing changed: nothing is loaded.
    pass.server.count_from_here();
    pipeline.ok(&["run"]);
    assert!(!pass.server.log().join("\n").contains("MERGE"));
}

#[test]
fn a_process_killed_at_each_named_point_loses_and_doubles_nothing() {
    let pass = Pass::new();
    let pipeline = pass.pipeline();
    for (round, point) in faults::ALL.into_iter().enumerate() {
        pass.change(&format!(
            "update orders set name = 'round {round} ' || id where id % 5 = {round} % 5; delete from orders where id % 97 = {round};
             insert into orders values ({}, 'new', {round}, null)",
            10_000 + round
        ));
        let ran = pipeline.run_with_faults(&["run"], &format!("{point}=return(kill)"));
        // A stream that is read whole has nothing to acknowledge at some points; then the run is a good one.
        assert!(ran.code.is_none() || ran.code == Some(0), "{point}: {ran:?}");
        pipeline.ok(&["run"]);
        pass.assert_same();
    }
}
