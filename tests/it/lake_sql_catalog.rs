//! The SQL catalog beside another writer of its layout, and on a database that lets it down.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use datafusion::prelude::SessionContext;
use frazil::delta::Watermark;
use frazil::lake::{CatalogSettings, Change, Effect, Lake, LakeSettings, LakeTable, TableMode, TableSpec};
use frazil::memory::Budget;
use frazil::table::TableId;
use frazil::{ErrorKind, Result};

use crate::fixture::{self, Database};

/// pyiceberg on the catalog: `create`, `append` or `read` a table; `list` or `rename`.
const PYICEBERG: &str = r#"
import sys
import pyarrow
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.schema import Schema
from pyiceberg.types import LongType, NestedField, StringType

uri, warehouse, verb, *rest = sys.argv[1:]
catalog = SqlCatalog("default", uri=uri, warehouse=warehouse)
fields = [pyarrow.field("id", pyarrow.int64(), nullable=False), pyarrow.field("name", pyarrow.string())]
if verb == "create":
    schema = Schema(
        NestedField(1, "id", LongType(), required=True),
        NestedField(2, "name", StringType()),
        identifier_field_ids=[1],
    )
    catalog.create_namespace_if_not_exists(rest[0].split(".")[0])
    catalog.create_table(rest[0], schema)
elif verb == "append":
    rows = [row.split("=") for row in rest[1].split()]
    columns = [[int(id) for id, _ in rows], [name for _, name in rows]]
    catalog.load_table(rest[0]).append(pyarrow.table(columns, schema=pyarrow.schema(fields)))
elif verb == "delete":
    catalog.load_table(rest[0]).delete(rest[1])
elif verb == "read":
    rows = catalog.load_table(rest[0]).scan().to_arrow().to_pylist()
    print(" ".join(sorted(f"{row['id']}={row['name']}" for row in rows)))
elif verb == "list":
    print(" ".join(sorted(".".join(name) for name in catalog.list_tables(rest[0]))))
elif verb == "rename":
    catalog.rename_table(*rest)
"#;

struct Neighbour<'a> {
    uri: String,
    warehouse: &'a Path,
}

impl Neighbour<'_> {
    fn says(&self, arguments: &[&str]) -> String {
        let python = fixture::tools("python").unwrap();
        let mut command = Command::new(python);
        command.args(["-c", PYICEBERG, &self.uri]).arg(format!("file://{}", self.warehouse.display()));
        let output = command.args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}\n{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

async fn commit(table: &mut LakeTable, effect: Effect, rows: &[(i64, &str)], to: &str) -> Result<()> {
    let budget = Budget::new(128 << 20, 1).unwrap();
    let mut writer = table.writer(budget)?;
    let batch = RecordBatch::try_from_iter([
        ("id", Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.0))) as ArrayRef),
        ("name", Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.1)))),
    ]);
    writer.write(&batch.unwrap()).await?;
    let change = Change {
        files: writer.finish().await?,
        effect,
        from: table.position()?.map(|position| position.watermark),
        to: Watermark::new(to),
        summary: BTreeMap::new(),
    };
    table.commit(change, budget).await.map(drop)
}

async fn rows(table: &LakeTable) -> String {
    let context = SessionContext::new();
    context.register_table("t", table.provider(None).await.unwrap()).unwrap();
    let query = "select concat(id, '=', name) from t order by 1";
    let batches = context.sql(query).await.unwrap().collect().await.unwrap();
    let cells = batches.iter().flat_map(|batch| {
        let column = batch.column(0).clone();
        (0..batch.num_rows()).map(move |i| arrow::util::display::array_value_to_string(&column, i).unwrap())
    });
    cells.collect::<Vec<_>>().join(" ")
}

async fn create(lake: &Lake, id: &TableId) -> LakeTable {
    let schema =
        Schema::new(vec![Field::new("id", DataType::Int64, false), Field::new("name", DataType::Utf8, true)]);
    let spec = TableSpec {
        id: id.clone(),
        schema: Arc::new(schema),
        mode: TableMode::Merge,
        key: vec!["id".into()],
        partition_by: vec![],
        format_version: None,
        sort_by: Vec::new(),
    };
    lake.create(spec).await.unwrap()
}

/// Tables go back and forth between us and pyiceberg.
async fn shared(catalog: &str, neighbour: Neighbour<'_>) {
    let warehouse = neighbour.warehouse.display().to_string();
    let settings = LakeSettings { warehouse, catalog: catalog.into(), options: BTreeMap::new() };
    let lake = Lake::open(&settings).await.unwrap();

    // Theirs, which we append to and merge into.
    neighbour.says(&["create", "theirs.orders"]);
    neighbour.says(&["append", "theirs.orders", "1=ann 2=bob"]);
    let theirs = TableId::new("theirs", "orders");
    let mut table = lake.table(&theirs).await.unwrap().unwrap();
    assert_eq!(rows(&table).await, "1=ann 2=bob");
    commit(&mut table, Effect::Append, &[(3, "cid")], "a").await.unwrap();
    commit(&mut table, Effect::Upsert, &[(2, "rob"), (4, "dan")], "b").await.unwrap();
    assert_eq!(neighbour.says(&["read", "theirs.orders"]), "1=ann 2=rob 3=cid 4=dan");
    neighbour.says(&["append", "theirs.orders", "5=eve"]);
    assert_eq!(
        commit(&mut table, Effect::Append, &[(6, "no")], "c").await.unwrap_err().kind(),
        ErrorKind::Conflict
    );
    table.reload().await.unwrap();
    assert_eq!(rows(&table).await, "1=ann 2=rob 3=cid 4=dan 5=eve");
    commit(&mut table, Effect::Upsert, &[(5, "eva")], "c").await.unwrap();
    assert_eq!(neighbour.says(&["read", "theirs.orders"]), "1=ann 2=rob 3=cid 4=dan 5=eva");

    // Ours, which they append to, delete from and rename.
    let ours = TableId::new("ours", "people");
    let mut table = create(&lake, &ours).await;
    commit(&mut table, Effect::Append, &[(1, "ann"), (2, "bob")], "a").await.unwrap();
    commit(&mut table, Effect::Upsert, &[(2, "rob")], "b").await.unwrap();
    assert_eq!(neighbour.says(&["list", "ours"]), "ours.people");
    assert_eq!(neighbour.says(&["read", "ours.people"]), "1=ann 2=rob");
    neighbour.says(&["append", "ours.people", "3=cid"]);
    neighbour.says(&["delete", "ours.people", "id = 1"]);
    table.reload().await.unwrap();
    assert_eq!(rows(&table).await, "2=rob 3=cid");
    commit(&mut table, Effect::Upsert, &[(3, "sid")], "c").await.unwrap();
    neighbour.says(&["rename", "ours.people", "theirs.staff"]);
    assert_eq!(neighbour.says(&["read", "theirs.staff"]), "2=rob 3=sid");
    let staff = TableId::new("theirs", "staff");
    assert_eq!(lake.tables().await.unwrap(), [theirs, staff.clone()]);
    let mut table = lake.table(&staff).await.unwrap().unwrap();
    commit(&mut table, Effect::Upsert, &[(2, "bob")], "d").await.unwrap();
    assert_eq!(neighbour.says(&["read", "theirs.staff"]), "2=bob 3=sid");
    assert!(lake.drop_table(&staff).await.unwrap());
    assert_eq!(neighbour.says(&["list", "theirs"]), "theirs.orders");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sqlite_catalog_is_shared_with_pyiceberg() {
    if fixture::tools("python").is_none() {
        return fixture::skip("pyiceberg: run scripts/setup-tests.sh");
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("catalog.db").display().to_string();
    let neighbour = Neighbour { uri: format!("sqlite:///{file}"), warehouse: folder.path() };
    shared(&format!("sqlite://{file}"), neighbour).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_catalog_is_shared_with_pyiceberg() {
    let Some(pg) = fixture::postgres().await else { return };
    if fixture::tools("python").is_none() {
        return fixture::skip("pyiceberg: run scripts/setup-tests.sh");
    }
    let database = pg.database("pyiceberg").await;
    let folder = tempfile::tempdir().unwrap();
    let uri = database.url().replace("postgres://", "postgresql+psycopg2://");
    shared(&database.url(), Neighbour { uri, warehouse: folder.path() }).await;
}

/// The layout of before there were views.
const LAYOUT_0: &str = "
    create table iceberg_tables (catalog_name varchar(255) not null, table_namespace varchar(255) not null,
        table_name varchar(255) not null, metadata_location varchar(1000),
        previous_metadata_location varchar(1000), primary key (catalog_name, table_namespace, table_name));
    create table iceberg_namespace_properties (catalog_name varchar(255) not null,
        namespace varchar(255) not null, property_key varchar(255), property_value varchar(1000),
        primary key (catalog_name, namespace, property_key))";

#[tokio::test(flavor = "multi_thread")]
async fn a_catalog_in_the_old_layout_stays_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("catalog.db");
    let database = rusqlite::Connection::open(&file).unwrap();
    database.execute_batch(LAYOUT_0).unwrap();
    let settings = LakeSettings {
        warehouse: folder.path().display().to_string(),
        catalog: format!("sqlite://{}", file.display()).as_str().into(),
        options: BTreeMap::new(),
    };
    let lake = Lake::open(&settings).await.unwrap();
    let id = TableId::new("main", "t");
    let mut table = create(&lake, &id).await;
    commit(&mut table, Effect::Append, &[(1, "ann")], "a").await.unwrap();
    assert_eq!(rows(&lake.table(&id).await.unwrap().unwrap()).await, "1=ann");
    let columns = "select count(*) from pragma_table_info('iceberg_tables')";
    assert_eq!(database.query_row(columns, [], |row| row.get::<_, i64>(0)).unwrap(), 5);
    if fixture::tools("python").is_some() {
        let neighbour = Neighbour { uri: format!("sqlite:///{}", file.display()), warehouse: folder.path() };
        assert_eq!(neighbour.says(&["read", "main.t"]), "1=ann");
    }
}

#[tokio::test]
async fn two_catalogs_in_one_database_do_not_meet() {
    let folder = tempfile::tempdir().unwrap();
    let open = async |name: &str| {
        let url = format!("sqlite://{}/catalog.db", folder.path().display());
        let catalog = CatalogSettings { name: Some(name.to_owned()), ..url.as_str().into() };
        let warehouse = folder.path().join("lake").display().to_string();
        Lake::open(&LakeSettings { warehouse, catalog, options: BTreeMap::new() }).await.unwrap()
    };
    let (one, two) = (open("one").await, open("two").await);
    let id = TableId::new("main", "t");
    let first = create(&one, &id).await;
    assert!(two.table(&id).await.unwrap().is_none());
    let second = create(&two, &id).await;
    assert_ne!(first.location(), second.location(), "their files lie apart");
    assert!(two.drop_table(&id).await.unwrap());
    assert!(one.table(&id).await.unwrap().is_some());
}

/// A table in a Postgres catalog that is reached through a proxy.
struct Shaky {
    proxy: Arc<fixture::Proxy>,
    table: LakeTable,
    database: Database,
    _keep: (fixture::Postgres, tempfile::TempDir),
}

impl Shaky {
    async fn new() -> Option<Self> {
        let pg = fixture::postgres().await?;
        let database = pg.database("shaky").await;
        let proxy = Arc::new(fixture::Proxy::tcp(pg.port()));
        let folder = tempfile::tempdir().unwrap();
        let settings = LakeSettings {
            warehouse: folder.path().display().to_string(),
            catalog: database.url_through(proxy.port()).as_str().into(),
            options: BTreeMap::new(),
        };
        let lake = Lake::open(&settings).await.unwrap();
        let mut table = create(&lake, &TableId::new("main", "t")).await;
        commit(&mut table, Effect::Append, &[(1, "ann")], "a").await.unwrap();
        Some(Self { proxy, table, database, _keep: (pg, folder) })
    }

    /// That there are exactly these rows, in as many snapshots.
    async fn holds(&mut self, expected: &str) {
        self.table.reload().await.unwrap();
        assert_eq!(rows(&self.table).await, expected);
        assert_eq!(self.table.snapshots().len(), expected.split(' ').count());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_lost_is_looked_for() {
    let Some(mut shaky) = Shaky::new().await else { return };
    // The server does what it is told, and nobody hears of it.
    shaky.proxy.cut_after(0);
    let proxy = shaky.proxy.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(400)).await;
        proxy.heal();
    });
    commit(&mut shaky.table, Effect::Append, &[(2, "bob")], "b").await.unwrap();
    shaky.holds("1=ann 2=bob").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_found_out_is_left_open() {
    let Some(mut shaky) = Shaky::new().await else { return };
    shaky.proxy.cut_after(0);
    let error = commit(&mut shaky.table, Effect::Append, &[(2, "bob")], "b").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient, "{error:?}");
    assert!(error.message().contains("not known"), "{error:?}");
    assert!(!format!("{error:?}").contains(fixture::PASSWORD));
    shaky.proxy.heal();
    // It had come through, and nothing that it needs was cleaned away.
    assert_eq!(
        commit(&mut shaky.table, Effect::Append, &[(3, "cid")], "c").await.unwrap_err().kind(),
        ErrorKind::Conflict
    );
    shaky.holds("1=ann 2=bob").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_was_ended_is_repeated() {
    let Some(mut shaky) = Shaky::new().await else { return };
    let mut other = shaky.database.client().await;
    let lock = other.transaction().await.unwrap();
    lock.batch_execute("select 1 from iceberg_tables for update").await.unwrap();
    let waiting = "select pg_terminate_backend(pid) from pg_stat_activity \
                   where datname = current_database() and wait_event_type = 'Lock'";
    let (database, name) = (&shaky.database, "a commit");
    let end = async {
        while database.text(waiting).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        lock.rollback().await.unwrap_or_else(|error| panic!("{name}: {error}"));
    };
    let (outcome, ()) = tokio::join!(commit(&mut shaky.table, Effect::Append, &[(2, "bob")], "b"), end);
    outcome.unwrap();
    shaky.holds("1=ann 2=bob").await;
}

#[tokio::test]
async fn a_store_that_ignores_conditions_is_refused() {
    let Some(nanio) = fixture::nanio().await else { return };
    let filesystem = LakeSettings {
        warehouse: nanio.warehouse("refused"),
        catalog: "filesystem".into(),
        options: nanio.options(),
    };
    let lake = Lake::open(&filesystem).await.unwrap();
    let schema = Schema::new(vec![Field::new("id", DataType::Int64, false)]);
    let spec = TableSpec {
        id: TableId::new("main", "t"),
        schema: Arc::new(schema),
        mode: TableMode::Append,
        key: vec![],
        partition_by: vec![],
        format_version: None,
        sort_by: Vec::new(),
    };
    let error = lake.create(spec.clone()).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.message().contains("the store ignores conditional writes"), "{error:?}");
    assert!(error.hint_text().unwrap().contains("a catalog in a database"), "{error:?}");
    assert!(lake.tables().await.unwrap().is_empty());

    // The swap of a catalog in a database needs nothing of the store.
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}/catalog.db", folder.path().display());
    let lake = Lake::open(&LakeSettings { catalog: url.as_str().into(), ..filesystem }).await.unwrap();
    lake.create(spec).await.unwrap();
    assert_eq!(lake.tables().await.unwrap().len(), 1);
}
