//! Rows that come late, twice, or in another order than they happened: what the lake and the target make
//! of them, and what the report says.

use serde_json::Value;

use crate::fixture::{self, Pipeline};
use crate::sync::two_databases;

/// A source in SQLite, its pipeline, and a target in SQLite.
struct Shop {
    folder: tempfile::TempDir,
    pipeline: Pipeline,
}

impl Shop {
    fn new(tables: &str, streams: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = |file: &str| format!("sqlite://{}", folder.path().join(file).display());
        let pipeline = Pipeline::new(&place("shop.db"), &place("dwh.db"), streams);
        let shop = Self { pipeline, folder };
        shop.change(tables);
        shop
    }

    fn database(&self, file: &str) -> rusqlite::Connection {
        rusqlite::Connection::open(self.folder.path().join(file)).unwrap()
    }

    /// `@90` is the time of 90 seconds ago.
    fn change(&self, sql: &str) {
        let mut parts = sql.split('@');
        let mut text = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
            let (seconds, rest) = part.split_at(digits);
            text += &format!("strftime('%Y-%m-%d %H:%M:%f', 'now', '-{seconds} seconds'){rest}");
        }
        self.database("shop.db").execute_batch(&text).unwrap();
    }

    /// One pass: late rows and outdated ones.
    fn run(&self) -> (u64, u64) {
        let report = self.pipeline.json(&["run"]).remove(0);
        let late = &report["extract"]["late"];
        let count = |name: &str| late[name].as_u64().unwrap_or_else(|| panic!("{report}"));
        (count("rows"), count("outdated"))
    }

    /// `1 paid, 2 new`: what the target has.
    fn target(&self, table: &str) -> String {
        let database = self.database("dwh.db");
        let mut statement = database.prepare(&format!("select id, state from {table} order by id")).unwrap();
        let row =
            |row: &rusqlite::Row<'_>| Ok(format!("{} {}", row.get::<_, i64>(0)?, row.get::<_, String>(1)?));
        statement.query_map([], row).unwrap().collect::<Result<Vec<_>, _>>().unwrap().join(", ")
    }
}

/// A table of events has many rows of one key: the newest counts, in whatever order they come.
#[test]
fn events_count_in_the_order_in_which_they_happened() {
    let shop = Shop::new(
        "create table events (id integer not null, state text, at datetime not null);
         insert into events values
         (1, 'shipped', @60), (1, 'paid', @120), (2, 'paid', @100), (2, 'paid', @100), (3, 'new', @300)",
        &["main.events: { primary_key: [id], cursor: at, lag: 10m }"],
    );
    // The first read: the newest of each, and what came twice is there once.
    assert_eq!(shop.run(), (0, 0));
    assert_eq!(shop.target("events"), "1 shipped, 2 paid, 3 new");
    // The same once more, and nothing else: all is known.
    assert_eq!(shop.run(), (0, 0));
    // Late: a new key, a newer event of a known one, and one that is older than its successor.
    shop.change("insert into events values (4, 'new', @50), (3, 'paid', @110), (1, 'new', @180)");
    assert_eq!(shop.run(), (2, 0));
    assert_eq!(shop.target("events"), "1 shipped, 2 paid, 3 paid, 4 new");
    assert_eq!(shop.run(), (0, 0), "what was late once is known from then on");
    // The queue forgets what was shipped; an update that comes before its insert was passed by already.
    shop.change("delete from events where state = 'shipped'; insert into events values (1, 'packed', @100)");
    assert_eq!(shop.run(), (0, 1));
    assert_eq!(shop.target("events"), "1 shipped, 2 paid, 3 paid, 4 new");
    let trends = shop.pipeline.json(&["history", "--trends"]).remove(0);
    assert_eq!((&trends["late"], &trends["suggested_lag_seconds"]), (&2.into(), &180.into()), "{trends}");
    let status = shop.pipeline.json(&["status"]).remove(0);
    assert_eq!(
        (&status["rows_late"], &status["suggested_lag_seconds"]),
        (&2.into(), &180.into()),
        "{status}"
    );
}

/// Where the source has one row of each key, what it shows is the newest there is.
#[test]
fn a_clock_that_goes_back_and_rows_that_come_back() {
    let shop = Shop::new(
        "create table orders (id integer primary key, state text, at datetime not null);
         insert into orders values (1, 'new', @60), (2, 'new', @60), (3, 'new', @60)",
        &["main.orders: { cursor: at, lag: 10m }"],
    );
    assert_eq!(shop.run(), (0, 0));
    // Somebody's clock is five minutes slow.
    shop.change("update orders set state = 'paid', at = @300 where id = 1");
    assert_eq!(shop.run(), (1, 0));
    assert_eq!(shop.target("orders"), "1 paid, 2 new, 3 new");
    // A row goes, another gets a new key: a cursor does not see what is no more, a comparison does.
    shop.change("delete from orders where id = 2; update orders set id = 4, at = @30 where id = 3");
    shop.run();
    assert_eq!(shop.target("orders"), "1 paid, 2 new, 3 new, 4 new");
    shop.pipeline.ok(&["compare", "--repair"]);
    shop.run();
    assert_eq!(shop.target("orders"), "1 paid, 4 new");
    // It comes back as it was, older than all that has happened since.
    shop.change("insert into orders values (2, 'back', @200)");
    assert_eq!(shop.run(), (1, 0));
    assert_eq!(shop.target("orders"), "1 paid, 2 back, 4 new");
}

/// What is later than `lag` no pass finds: the comparison does, and says what would have.
#[test]
fn what_came_later_than_lag_is_found_by_a_comparison() {
    let shop = Shop::new(
        "create table orders (id integer primary key, state text, at datetime not null);
         insert into orders values (1, 'new', @60)",
        &["main.orders: { cursor: at, lag: 1m }"],
    );
    assert_eq!(shop.run(), (0, 0));
    shop.change("insert into orders values (2, 'late', @7200), (3, 'late', @5)");
    shop.run();
    assert_eq!(shop.target("orders"), "1 new, 3 late");
    let ran = shop.pipeline.run(&["compare", "--between", "source,lake", "--output", "json"]);
    let outcome: Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|_| panic!("{ran:?}"));
    assert_eq!((&outcome["missing"], &outcome["late"]["rows"]), (&1.into(), &1.into()), "{outcome}");
    let ran = shop.pipeline.run(&["compare", "--between", "source,lake", "--repair"]);
    assert!(ran.stdout.contains("they came late (`lag: 3h` would find such rows)"), "{ran:?}");
    assert!(ran.stdout.contains("1 repaired"), "{ran:?}");
}

/// The same on a server, by a column without a time zone, and by a view that knows no key.
#[tokio::test]
async fn a_server_counts_late_rows_in_its_own_time() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "late").await;
    source
        .run(
            "set time zone 'America/New_York';
             create table orders (id int primary key, state text, at timestamp not null);
             create index on orders (at);
             create view seen as select * from orders;
             insert into orders select i, 'new', clock_timestamp() - interval '5 minutes' from generate_series(1, 9) i",
        )
        .await;
    let zone = "alter database current_database_name set time zone 'America/New_York'";
    let name = source.text("select current_database()").await;
    source.run(&zone.replace("current_database_name", &name)).await;
    let streams =
        ["public.orders: { cursor: at, lag: 1h }", "public.seen: { primary_key: [id], cursor: at, lag: 1h }"];
    let pipeline = Pipeline::new(&source.url(), &target.url(), &streams);
    pipeline.ok(&["run"]);
    source
        .run(
            "set time zone 'America/New_York';
             insert into orders values (10, 'late', clock_timestamp() - interval '20 minutes');
             update orders set state = 'late', at = at + interval '2 seconds' where id < 3",
        )
        .await;
    for report in pipeline.json(&["run"]) {
        let late = &report["extract"]["late"];
        assert_eq!((&late["rows"], &late["outdated"]), (&3.into(), &0.into()), "{report}");
        assert_eq!(late["within_seconds"]["2048"], 1, "{report}");
    }
    for table in ["orders", "seen"] {
        let sql = format!("select count(*) filter (where state = 'late') || '/' || count(*) from {table}");
        assert_eq!(target.text(&sql).await, "3/10", "{table}");
    }
}
