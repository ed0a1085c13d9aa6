//! Tables that several streams feed: what is in them is what the sources have, by who goes first, whatever
//! the order of passes, their number at once, and where they are killed.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use rusqlite::Connection;
use tempfile::TempDir;

use crate::fixture::{self, MariaDatabase, Pipeline, ran};
use crate::tds::{Engine, Server};

const ROWS: &str = "select id, coalesce(mail, '-'), coalesce(status, '-'), coalesce(since, '-'), coalesce(orders, '-') \
     from customers order by id";
const STREAMS: [&str; 2] = ["crm.customers", "shop.customers"];
const SHARED: &str =
    "shared:\n  - sources: [crm.customers, shop.customers]\n    columns: { status: shop.customers }\n";

/// Two sources in SQLite, and a target.
struct Case {
    folder: TempDir,
    pipeline: Pipeline,
    place: Place,
}

enum Place {
    Sqlite(PathBuf),
    Postgres(fixture::Database),
    MariaDb(MariaDatabase),
    SqlServer(Engine, #[allow(dead_code, reason = "it ends with the value")] Server),
}

impl Case {
    async fn all() -> Vec<Self> {
        let mut places = vec![sqlite()];
        if let Some(pg) = fixture::postgres().await {
            let database = pg.database("shared").await;
            places.push((database.url(), Place::Postgres(database)));
        }
        if let Some(server) = fixture::mariadb().await {
            let database = server.database("shared").await;
            places.push((database.url(), Place::MariaDb(database)));
        }
        let engine = Engine::new();
        let server = Server::with_engine(&engine);
        places.push((server.url(), Place::SqlServer(engine, server)));
        places.into_iter().map(|(url, place)| Self::new(&url, place)).collect()
    }

    fn new(target: &str, place: Place) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let case = Self { pipeline: Pipeline::new("sqlite://unused", target, &[]), folder, place };
        let target = match &case.place {
            Place::Sqlite(_) => format!("sqlite://{}", case.folder.path().join("dwh.db").display()),
            _ => target.to_owned(),
        };
        let place = match case.place {
            Place::Sqlite(_) => Place::Sqlite(case.folder.path().join("dwh.db")),
            other => other,
        };
        let case = Self { place, ..case };
        case.configure(&target, SHARED);
        case.source(0, "create table customers (id integer primary key, mail text, status text, since text)");
        case.source(
            1,
            "create table customers (id integer primary key, mail text, status text, orders text)",
        );
        case
    }

    fn configure(&self, target: &str, shared: &str) {
        let file = |name: &str| self.folder.path().join(name).display().to_string();
        let stream = |name: &str| {
            format!(
                "  {name}.customers: {{ source: {name}, table: main.customers, target: dwh..customers, change: full }}\n"
            )
        };
        let text = format!(
            "connections:\n  crm: sqlite://{}\n  shop: sqlite://{}\n  dwh: {target}\n\
             lake: {{ warehouse: {}, catalog: filesystem }}\nstreams:\n{}{}{shared}",
            file("crm.db"),
            file("shop.db"),
            file("lake"),
            stream("crm"),
            stream("shop"),
        );
        fs::write(self.pipeline.folder().join("frazil.yaml"), text).unwrap();
    }

    /// The file as it is, with another part at its end.
    fn share(&self, shared: &str) {
        let file = self.pipeline.folder().join("frazil.yaml");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, format!("{}{shared}", text.split("shared:").next().unwrap())).unwrap();
    }

    fn source(&self, which: usize, sql: &str) {
        let file = self.folder.path().join(["crm.db", "shop.db"][which]);
        Connection::open(file).unwrap().execute_batch(sql).unwrap();
    }

    /// Somebody else changes the target.
    async fn change(&self, sql: &str) {
        match &self.place {
            Place::Sqlite(file) => Connection::open(file).unwrap().execute_batch(sql).unwrap(),
            Place::Postgres(database) => database.run(sql).await,
            Place::MariaDb(database) => database.run(sql).await,
            Place::SqlServer(..) => unreachable!("the responder is left alone"),
        }
    }

    async fn loaded(&self) -> Vec<String> {
        match &self.place {
            Place::Sqlite(file) => {
                let db = Connection::open(file).unwrap();
                let mut query = db.prepare(ROWS).unwrap();
                let row = |row: &rusqlite::Row<'_>| -> rusqlite::Result<String> {
                    let texts: Vec<String> =
                        (1..5).map(|at| row.get::<_, String>(at)).collect::<Result<_, _>>()?;
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
                let rows = "SELECT t.[id], t.[mail], t.[status], t.[since], t.[orders] FROM [dbo].[customers] AS t ORDER BY t.[id]";
                engine.run(rows).into_iter().map(|row| row.replace('|', " ").replace("NULL", "-")).collect()
            }
        }
    }
}

fn sqlite() -> (String, Place) {
    ("sqlite://dwh.db".to_owned(), Place::Sqlite(PathBuf::new()))
}

/// `[mail, status, since or orders]`, `None` is NULL.
type Row = [Option<String>; 3];
type Table = BTreeMap<i64, Row>;

/// The table as it must be: `mail` from the CRM first, `status` from the shop first.
fn merged([crm, shop]: &[Table; 2]) -> Vec<String> {
    let keys: std::collections::BTreeSet<i64> = crm.keys().chain(shop.keys()).copied().collect();
    let word = |value: Option<&Option<String>>| value.cloned().flatten().unwrap_or_else(|| "-".to_owned());
    let line = |id: i64| {
        let (crm, shop) = (crm.get(&id), shop.get(&id));
        format!(
            "{id} {} {} {} {}",
            word(crm.or(shop).map(|row| &row[0])),
            word(shop.or(crm).map(|row| &row[1])),
            word(crm.map(|row| &row[2])),
            word(shop.map(|row| &row[2]))
        )
    };
    keys.into_iter().map(line).collect()
}

/// Random numbers that a seed replays.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    /// Some changes of one source, in the model and as statements.
    fn change(&mut self, which: usize, table: &mut Table) -> String {
        let mut statements = String::new();
        for _ in 0..1 + self.below(8) {
            let id = 1 + self.below(9) as i64;
            let text = |chance: &mut Self| {
                (chance.below(5) > 0).then(|| format!("{}{}", ["c", "s"][which], chance.below(1000)))
            };
            statements += &match (table.contains_key(&id), self.below(3)) {
                (true, 0) => {
                    table.remove(&id);
                    format!("delete from customers where id = {id};")
                }
                _ => {
                    let row = [text(self), text(self), text(self)];
                    let values = row.iter().map(|value| match value {
                        Some(text) => format!("'{text}'"),
                        None => "null".to_owned(),
                    });
                    let values = values.collect::<Vec<_>>().join(", ");
                    table.insert(id, row);
                    format!("insert or replace into customers values ({id}, {values});")
                }
            };
        }
        statements
    }
}

/// Chance changes both sources, kills loads, and lets the streams run in any order. After each pass that ended
/// well the table is what the snapshots are that it shows.
#[tokio::test(flavor = "multi_thread")]
async fn a_shared_table_is_what_its_sources_have() {
    const POINTS: [&str; 4] = ["before_commit", "after_commit", "in_load_transaction", "after_load"];
    for (seed, case) in (1..).zip(Case::all().await) {
        let mut chance = Chance(seed);
        let mut sources = [Table::new(), Table::new()];
        for (which, table) in sources.iter_mut().enumerate() {
            case.source(which, &chance.change(which, table));
        }
        case.pipeline.ok(&["run"]);
        let mut shown = sources.clone();
        for round in 0..5 {
            for (which, table) in sources.iter_mut().enumerate() {
                case.source(which, &chance.change(which, table));
            }
            let which = chance.below(2) as usize;
            let point = POINTS[chance.below(4) as usize];
            let faults = format!("{point}=return(kill)");
            case.pipeline.run_with_faults(&["run", "--select", STREAMS[which]], &faults);
            case.source(which, &chance.change(which, &mut sources[which]));
            case.pipeline.ok(&["run", "--select", STREAMS[which]]);
            shown[which].clone_from(&sources[which]);
            assert_eq!(case.loaded().await, merged(&shown), "seed {seed} round {round}: {point}");
            let other = 1 - which;
            case.source(other, &chance.change(other, &mut sources[other]));
            if chance.below(2) == 0 {
                case.pipeline.ok(&["run"]);
            } else {
                case.pipeline.ok(&["run", "--select", STREAMS[other]]);
            }
            shown.clone_from(&sources);
            assert_eq!(case.loaded().await, merged(&shown), "seed {seed} round {round}");
        }
        // Nothing is left to do.
        let reports = case.pipeline.json(&["run"]);
        assert!(reports.iter().all(|report| report["verdict"] == "nothing_to_do"), "{reports:?}");
    }
}

/// Both streams load at the same moment, again and again: whoever comes second looks once more.
#[tokio::test(flavor = "multi_thread")]
async fn loads_at_once_take_turns() {
    for (seed, case) in (11..).zip(Case::all().await) {
        if matches!(case.place, Place::SqlServer(..)) {
            continue; // the responder runs one session after the other
        }
        let mut chance = Chance(seed);
        let mut sources = [Table::new(), Table::new()];
        for round in 0..5 {
            for (which, table) in sources.iter_mut().enumerate() {
                case.source(which, &chance.change(which, table));
            }
            let start = |stream: &str| {
                let mut command = case.pipeline.command(&["run", "--select", stream]);
                command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
                command.spawn().unwrap()
            };
            let running = STREAMS.map(start);
            for child in running {
                let done = ran(child.wait_with_output().unwrap());
                assert_eq!(done.code, Some(0), "seed {seed} round {round}: {done:?}");
            }
            assert_eq!(case.loaded().await, merged(&sources), "seed {seed} round {round}");
        }
    }
}

/// Who goes first may change, and so may columns: all rows are put together anew.
#[tokio::test(flavor = "multi_thread")]
async fn another_order_and_other_columns_change_all_rows() {
    for case in Case::all().await {
        case.source(0, "insert into customers values (1, 'c', 'c', 'c'), (2, 'c', 'c', 'c')");
        case.source(1, "insert into customers values (2, 's', 's', 's'), (3, 's', 's', 's')");
        case.pipeline.ok(&["run"]);
        assert_eq!(case.loaded().await, ["1 c c c -", "2 c s c s", "3 s s - s"]);
        // Nothing changed in the sources, and one stream is enough.
        case.share("shared:\n  - { sources: [shop.customers, crm.customers] }\n");
        case.pipeline.ok(&["run", "--select", "crm.customers"]);
        assert_eq!(case.loaded().await, ["1 c c c -", "2 s s c s", "3 s s - s"]);
        // A name that both have becomes one that only one has.
        case.source(0, "alter table customers rename column mail to address; update customers set since = 'x' where id = 1");
        case.source(1, "delete from customers where id = 2");
        case.pipeline.ok(&["run"]);
        assert_eq!(case.loaded().await, ["1 - c x -", "2 - c c -", "3 s s - s"]);
        case.pipeline.ok(&["load", "--full-refresh"]);
        assert_eq!(case.loaded().await, ["1 - c x -", "2 - c c -", "3 s s - s"]);
        // One lake table is made anew.
        case.source(0, "delete from customers where id = 1; update customers set status = 'y'");
        fs::remove_dir_all(case.folder.path().join("lake/crm")).unwrap();
        let refused = case.pipeline.run(&["load", "--select", "shop.customers", "--full-refresh"]);
        assert_eq!(refused.code, Some(0), "{refused:?}");
        assert_eq!(case.loaded().await, ["3 s s - s"]);
        case.pipeline.ok(&["run"]);
        assert_eq!(case.loaded().await, ["2 - y c -", "3 s s - s"]);
    }
}

/// What somebody else did to the table is found, and set right; with sources that have changed meanwhile and
/// were not loaded yet it has nothing to do.
#[tokio::test(flavor = "multi_thread")]
async fn it_is_compared_with_what_all_sources_have_and_set_right() {
    for case in Case::all().await {
        if matches!(case.place, Place::SqlServer(..)) {
            continue; // the responder does not know the statements that read a table whole
        }
        case.source(
            0,
            "insert into customers values (1, 'c', 'c', 'c'), (2, 'c', 'c', 'c'), (4, 'c', 'c', 'c')",
        );
        case.source(1, "insert into customers values (2, 's', 's', 's'), (3, 's', 's', 's')");
        let between = ["compare", "--between", "lake,target", "--select"];
        let compare = |more: &[&str]| case.pipeline.run(&[&between, more].concat());
        let early = compare(&["shop.customers"]);
        assert_ne!(early.code, Some(0), "{early:?}");
        case.pipeline.ok(&["run"]);
        let loaded = case.loaded().await;
        assert_eq!(loaded, ["1 c c c -", "2 c s c s", "3 s s - s", "4 c c c -"]);
        case.source(1, "delete from customers where id = 3");
        case.pipeline.ok(&["sync"]);
        for stream in STREAMS {
            let compared = compare(&[stream]);
            assert_eq!(compared.code, Some(0), "{compared:?}");
            assert!(compared.stdout.contains("equal (4 rows)"), "{compared:?}");
        }
        case.change("update customers set mail = 'x' where id = 2").await;
        case.change("delete from customers where id = 1").await;
        case.change("insert into customers (id, mail) values (9, 'x')").await;
        let found = compare(&["shop.customers"]);
        assert_eq!(found.code, Some(1), "{found:?}");
        assert!(found.stdout.contains("1 missing in the target, 1 only there, 1 different"), "{found:?}");
        let repaired = compare(&["crm.customers", "--repair"]);
        assert_eq!(repaired.code, Some(0), "{repaired:?}");
        assert_eq!(case.loaded().await, loaded);
        // Who comes next knows nothing of it.
        case.pipeline.ok(&["run"]);
        assert_eq!(case.loaded().await, ["1 c c c -", "2 c s c s", "4 c c c -"]);
        // Without a choice of places, the first of those who share speaks for all.
        let all = case.pipeline.ok(&["compare"]).stdout;
        assert_eq!(all.matches("lake and target are equal").count(), 1, "{all}");
        assert_eq!(all.matches("source and lake are equal").count(), 2, "{all}");
        // What the columns are to be is not what the target was loaded with.
        case.share("shared:\n  - { sources: [shop.customers, crm.customers] }\n");
        let other = compare(&["crm.customers"]);
        assert!(other.code != Some(0) && other.stderr.contains("frazil load"), "{other:?}");
    }
}

#[test]
fn what_does_not_go_together_is_refused() {
    let (_, place) = sqlite();
    let case = Case::new("sqlite://dwh.db", place);
    for which in 0..2 {
        case.source(which, "insert into customers values (1, 'a', 'a', 'a')");
    }
    let two = "sources: [crm.customers, shop.customers]";
    for (shared, says) in [
        (String::new(), "two streams write the table"),
        ("shared:\n  - { sources: crm.customers }\n".to_owned(), "by two streams or more"),
        ("shared:\n  - { sources: [crm.customers, x.y] }\n".to_owned(), "does not have"),
        ("shared:\n  - { sources: [crm.customers, crm.customers] }\n".to_owned(), "names a stream twice"),
        (format!("shared:\n  - {{ {two}, columns: {{ mail: x.y }} }}\n"), "not one of `sources`"),
        (format!("shared:\n  - {{ {two}, columns: {{ nope: crm.customers }} }}\n"), "no source has"),
        (format!("shared:\n  - {{ {two} }}\n  - {{ {two} }}\n"), "one table only"),
        (format!("shared:\n  - {{ {two} }}\ndefaults: {{ deletes: soft }}\n"), "`deletes` and `shared`"),
        (
            format!("shared:\n  - {{ {two} }}\ndefaults: {{ on_reject: dead_letter }}\n"),
            "`on_reject` and `shared`",
        ),
        (format!("shared:\n  - {{ {two} }}\ndefaults: {{ mode: append }}\n"), "needs `mode: merge`"),
    ] {
        case.share(&shared);
        let ran = case.pipeline.run(&["run"]);
        assert_ne!(ran.code, Some(0), "{shared}: {ran:?}");
        assert!(format!("{}{}", ran.stdout, ran.stderr).contains(says), "{shared}: {ran:?}");
    }
    // Keys and types that do not go together.
    case.share(SHARED);
    fs::remove_dir_all(case.folder.path().join("lake/shop")).unwrap();
    case.source(
        1,
        "drop table customers; create table customers (id integer primary key, mail blob, status text);
         insert into customers values (1, x'00', 'a')",
    );
    let ran = case.pipeline.run(&["run"]);
    assert!(format!("{}{}", ran.stdout, ran.stderr).contains("give a column the types"), "{ran:?}");
}
