//! The main job with its lake in every place that runs here: rows from a database, by way of that lake,
//! to a database, with a crash on each side of a commit, read by pyiceberg in the end.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;

use frazil::lake::{CatalogSettings, LakeSettings, Stores, catalog};
use frazil::table::TableId;

use crate::fixture::{self, Pipeline};

/// A warehouse with the options of its store, and what keeps its server up.
struct Warehouse<K> {
    url: String,
    options: BTreeMap<String, String>,
    _server: K,
}

async fn s3() -> Option<Warehouse<fixture::S3>> {
    let server = fixture::s3().await?;
    Some(Warehouse { url: server.warehouse("place"), options: server.options(), _server: server })
}

async fn azure() -> Option<Warehouse<fixture::Azurite>> {
    let server = fixture::azurite().await?;
    Some(Warehouse { url: server.warehouse("place"), options: server.options(), _server: server })
}

async fn gcs() -> Option<Warehouse<fixture::Gcs>> {
    let server = fixture::gcs().await?;
    Some(Warehouse { url: server.warehouse("place"), options: server.options(), _server: server })
}

async fn disk() -> Option<Warehouse<tempfile::TempDir>> {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("file://{}", folder.path().display());
    Some(Warehouse { url, options: BTreeMap::new(), _server: folder })
}

macro_rules! places {
    ($($test:ident: $catalog:ident on $store:ident;)*) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $test() {
            let Some(warehouse) = $store().await else { return };
            $catalog(&warehouse.url, &warehouse.options).await;
        }
    )*};
}

places! {
    a_directory_on_s3: filesystem on s3;
    a_directory_on_azure: filesystem on azure;
    a_directory_on_gcs: filesystem on gcs;
    sqlite_and_a_disk: sqlite on disk;
    sqlite_and_azure: sqlite on azure;
    sqlite_and_s3: sqlite on s3;
    postgres_and_a_disk: postgres on disk;
    postgres_and_s3: postgres on s3;
    postgres_and_gcs: postgres on gcs;
}

async fn filesystem(warehouse: &str, options: &BTreeMap<String, String>) {
    the_main_job("filesystem", warehouse, options).await;
}

async fn sqlite(warehouse: &str, options: &BTreeMap<String, String>) {
    let folder = tempfile::tempdir().unwrap();
    the_main_job(&format!("sqlite://{}/catalog.db", folder.path().display()), warehouse, options).await;
}

async fn postgres(warehouse: &str, options: &BTreeMap<String, String>) {
    let Some(pg) = fixture::postgres().await else { return };
    let database = pg.database("places").await;
    the_main_job(&database.url(), warehouse, options).await;
}

async fn the_main_job(catalog: &str, warehouse: &str, options: &BTreeMap<String, String>) {
    let folder = tempfile::tempdir().unwrap();
    let (shop, dwh) = (folder.path().join("shop.db"), folder.path().join("dwh.db"));
    let url = |path: &std::path::Path| format!("sqlite://{}", path.display());
    let source = rusqlite::Connection::open(&shop).unwrap();
    source
        .execute_batch(
            "create table orders (id integer primary key, name text);
             with recursive n(i) as (select 1 union all select i + 1 from n where i < 500)
             insert into orders select i, 'order ' || i from n",
        )
        .unwrap();
    let streams = ["orders: { change: full, mode: merge }"];
    let pipeline = Pipeline::with_lake(&url(&shop), &url(&dwh), warehouse, options, &streams);
    let pipeline = pipeline.with_catalog(catalog);
    pipeline.ok(&["check"]);
    pipeline.ok(&["run"]);
    for (round, point) in ["before_commit", "after_commit"].into_iter().enumerate() {
        let change = format!(
            "update orders set name = name || ' of round {round}' where id % 7 = {round};
             delete from orders where id % 31 = {round};
             insert into orders values ({}, 'new')",
            1000 + round
        );
        source.execute_batch(&change).unwrap();
        let killed = pipeline.run_with_faults(&["run"], &format!("{point}=return(kill)"));
        assert_eq!(killed.code, None, "{point}: {killed:?}");
        pipeline.ok(&["run"]);
    }
    let expected = rows(&source);
    assert_eq!(rows(&rusqlite::Connection::open(&dwh).unwrap()), expected);
    let settings = LakeSettings {
        warehouse: warehouse.to_owned(),
        catalog: CatalogSettings::from(catalog),
        options: options.clone(),
    };
    match read_by_pyiceberg(&settings).await {
        Some(read) => assert_eq!(read, expected),
        None => fixture::skip("pyiceberg: run scripts/setup-tests.sh"),
    }
}

fn rows(database: &rusqlite::Connection) -> Vec<String> {
    let mut statement = database.prepare("select id || '=' || name from orders").unwrap();
    let rows = statement.query_map([], |row| row.get(0)).unwrap();
    let mut rows: Vec<String> = rows.collect::<Result<_, _>>().unwrap();
    rows.sort();
    rows
}

const PYICEBERG: &str = r#"
import json, sys
from pyiceberg.table import StaticTable
location, properties = sys.argv[1], json.loads(sys.argv[2])
if "gcs.oauth2.token" in properties:
    properties["gcs.oauth2.token-expires-at"] = "4000000000000"
rows = StaticTable.from_metadata(location, properties).scan().to_arrow().to_pylist()
print("\n".join(sorted(f"{row['id']}={row['name']}" for row in rows)))
"#;

/// By the metadata file that the catalog names, and nothing else of ours.
async fn read_by_pyiceberg(settings: &LakeSettings) -> Option<Vec<String>> {
    let python = fixture::tools("python")?;
    let stores = Arc::new(Stores::new(settings.options.clone()));
    let catalog = catalog::open(&settings.catalog, &settings.warehouse, stores).unwrap();
    let [id] = &catalog.tables().await.unwrap()[..] else { panic!("one table") };
    assert_eq!(id, &TableId::new("main", "orders"));
    let table = catalog.load(id).await.unwrap().unwrap();
    let mut command = Command::new(python);
    command.args(["-c", PYICEBERG, table.metadata_location().unwrap()]);
    let output = command.arg(serde_json::to_string(&settings.options).unwrap()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    Some(text.lines().map(str::to_owned).collect())
}
