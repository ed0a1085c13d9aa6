//! SQL Server → lake → SQL Server over the wire: the program itself between two databases of the
//! responder in `tds/`, with Change Tracking as far as the responder has it.

use frazil::faults;

use crate::fixture::Pipeline;
use crate::tds::{Engine, Server};

const SHOP: &str = "CREATE TABLE [dbo].[orders] ([id] bigint NOT NULL PRIMARY KEY, [code] varchar(20) NULL, [price] money NULL, \
     [amount] decimal(12,2) NULL, [at] datetime2(7) NULL, [day] date NULL, [note] nvarchar(max) NULL, [flag] bit NULL, [ref] uniqueidentifier NULL)";

const ROWS: &str = "SELECT t.[id], t.[code], t.[price], t.[amount], t.[at], t.[day], t.[note], t.[flag], t.[ref] FROM [dbo].[orders] AS t ORDER BY t.[id]";

struct Round {
    shop: Engine,
    dwh: Engine,
    source: Server,
    target: Server,
}

impl Round {
    fn new(tracked: bool) -> Self {
        let (shop, dwh) = (Engine::new(), Engine::new());
        shop.run(SHOP);
        if tracked {
            shop.run("ALTER TABLE [dbo].[orders] ENABLE CHANGE_TRACKING");
        }
        let (source, target) = (Server::with_engine(&shop), Server::with_engine(&dwh));
        let round = Self { shop, dwh, source, target };
        round.insert(1..=200);
        round
    }

    fn insert(&self, ids: impl Iterator<Item = i64>) {
        let rows: Vec<_> = ids
            .map(|id| {
                format!(
                    "({id}, 'c{id}', '{id}.2500', '-{id}.05', '2024-02-29 10:00:{:02}.1234560', '2024-02-29', N'it''s ☃ {id}', {}, '00000000-0000-0000-0000-{id:012}')",
                    id % 60,
                    id % 2
                )
            })
            .collect();
        self.shop.run(&format!("INSERT INTO [dbo].[orders] VALUES {}", rows.join(", ")));
    }

    fn pipeline(&self, stream: &str) -> Pipeline {
        Pipeline::new(&self.source.url(), &self.target.url(), &[&format!("dbo.orders: {stream}")])
    }

    fn assert_same(&self) {
        assert_eq!(self.shop.run(ROWS), self.dwh.run(ROWS));
        let types = |engine: &Engine| {
            let table = engine.table("dbo.orders").unwrap();
            table.columns.into_iter().map(|column| (column.name, column.of)).collect::<Vec<_>>()
        };
        assert_eq!(types(&self.shop), types(&self.dwh));
    }
}

#[test]
fn a_tracked_table_is_followed_with_its_deletes() {
    let round = Round::new(true);
    let pipeline = round.pipeline("{ change: tracking }");
    pipeline.ok(&["run"]);
    round.assert_same();
    round.shop.run("UPDATE [dbo].[orders] SET [note] = NULL WHERE [id] % 7 = 0");
    round.shop.run("DELETE FROM [dbo].[orders] WHERE [id] % 11 = 0");
    round.insert(1000..=1020);
    round.source.count_from_here();
    pipeline.ok(&["run"]);
    round.assert_same();
    let log = round.source.log().join("\n");
    assert!(log.contains("CHANGETABLE"), "{log}");
}

#[test]
fn a_table_without_anything_is_read_whole_and_only_differences_are_loaded() {
    let round = Round::new(false);
    let pipeline = round.pipeline("{ change: full }");
    pipeline.ok(&["run"]);
    round.assert_same();
    round.shop.run("UPDATE [dbo].[orders] SET [price] = '0.0001' WHERE [id] = 7");
    round.shop.run("DELETE FROM [dbo].[orders] WHERE [id] = 8");
    pipeline.ok(&["run"]);
    round.assert_same();
}

/// Killed at each named point, between each two of which the source goes on.
#[test]
fn a_process_killed_on_the_way_loses_and_doubles_nothing() {
    let round = Round::new(true);
    let pipeline = round.pipeline("{ change: tracking }");
    for (number, point) in faults::ALL.into_iter().enumerate() {
        let number = number as i64;
        round.insert(2000 + number * 10..2005 + number * 10);
        round.shop.run(&format!("UPDATE [dbo].[orders] SET [code] = 'r{number}' WHERE [id] % 5 = {number}"));
        round.shop.run(&format!("DELETE FROM [dbo].[orders] WHERE [id] % 50 = {number}"));
        let ran = pipeline.run_with_faults(&["run"], &format!("{point}=return(kill)"));
        assert!(ran.code.is_none() || ran.code == Some(0), "{point}: {ran:?}");
        pipeline.ok(&["run"]);
        round.assert_same();
    }
}
