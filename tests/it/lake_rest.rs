//! Lakes behind a real REST catalog: the whole job, both ways to log in, and another engine at the same
//! tables. What every catalog promises is in `catalog_conformance.rs`; what happens when a catalog fails
//! is beside the code, against a fake that can.

use std::process::Command;

use frazil::ErrorKind;
use frazil::lake::{CatalogSettings, Lake, LakeSettings};
use frazil::table::TableId;

use crate::fixture::{self, Pipeline, S3};
use crate::sync::{assert_same, change_orders, seed_orders, two_databases};

const ORDERS: &str = "select id, customer, amount, note, updated_at from orders";

/// The program with a lake in that catalog.
fn pipeline(source: &str, target: &str, settings: &LakeSettings, streams: &[&str]) -> Pipeline {
    let pipeline = Pipeline::with_lake(source, target, &settings.warehouse, &settings.options, streams);
    let file = pipeline.folder().join("frazil.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    let options: String =
        settings.catalog.options.iter().map(|(name, value)| format!("      {name}: \"{value}\"\n")).collect();
    let catalog = format!("catalog:\n    url: {}\n    options:\n{options}", settings.catalog.url);
    let text = text.replace("catalog: filesystem\n", &catalog);
    std::fs::write(&file, text).unwrap();
    pipeline
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_go_through_a_rest_catalog_and_foreign_readers_see_them() {
    let Some(pg) = fixture::postgres().await else { return };
    let Some((s3, settings)) = fixture::rest_catalog().await else { return };
    let (source, target) = two_databases(&pg, "rest").await;
    seed_orders(&source, 2000).await;
    let stream = "public.orders: { cursor: updated_at }";
    let pipeline = pipeline(&source.url(), &target.url(), &settings, &[stream]);
    assert!(pipeline.ok(&["check"]).stdout.contains("lake"), "the catalog is reached");
    for round in 0..3 {
        pipeline.ok(&["run"]);
        assert_same(&source, &target, ORDERS).await;
        change_orders(&source, round).await;
    }
    pipeline.ok(&["run"]);
    assert_same(&source, &target, ORDERS).await;
    let location = Lake::open(&settings).await.unwrap().table(&TableId::new("public", "orders")).await;
    let location = location.unwrap().unwrap().location().to_owned();
    fixture::judge_in(fixture::Store::S3(&s3), &location, &source.url(), ORDERS);
}

/// pyiceberg makes a table and we append to it; we make one and pyiceberg appends to it; both see all.
#[tokio::test(flavor = "multi_thread")]
async fn another_engine_works_on_the_same_tables() {
    let Some((s3, settings)) = fixture::rest_catalog().await else { return };
    let lake = Lake::open(&settings).await.unwrap();
    let theirs = TableId::new("shared", "theirs");
    python(
        &s3,
        &settings,
        "catalog.create_namespace('shared'); catalog.create_table('shared.theirs', rows.schema).append(rows)",
    );
    let mut table = lake.table(&theirs).await.unwrap().unwrap();
    crate::catalog_conformance::append(&mut table, 3).await.unwrap();
    let seen = python(
        &s3,
        &settings,
        "print(sorted(catalog.load_table('shared.theirs').scan().to_arrow()['n'].to_pylist()))",
    );
    assert_eq!(seen, "[1, 2, 3]");

    let ours = TableId::new("shared", "ours");
    let mut table = crate::catalog_conformance::create(&lake, &ours).await.unwrap();
    crate::catalog_conformance::append(&mut table, 7).await.unwrap();
    python(&s3, &settings, "catalog.load_table('shared.ours').append(rows)");
    table.reload().await.unwrap();
    assert_eq!(crate::catalog_conformance::rows(&lake, &table).await, [1, 2, 7]);
    assert_eq!(lake.tables().await.unwrap(), [ours, theirs]);
}

/// Runs lines of Python with pyiceberg's `catalog` at hand, and two `rows`. What they print comes back.
fn python(s3: &S3, settings: &LakeSettings, lines: &str) -> String {
    let options = s3.options();
    let script = format!(
        "import pyarrow as pa
from pyiceberg.catalog.rest import RestCatalog
catalog = RestCatalog('r', uri='{}', warehouse='{}', credential='{}', **{{
    's3.endpoint': '{}', 's3.access-key-id': '{}', 's3.secret-access-key': '{}', 's3.region': 'us-east-1'}})
rows = pa.table({{'n': pa.array([1, 2], pa.int64())}}, schema=pa.schema([pa.field('n', pa.int64(), nullable=False)]))
{lines}",
        settings.catalog.url,
        settings.warehouse,
        settings.catalog.options["credential"],
        options["s3.endpoint"],
        options["s3.access-key-id"],
        options["s3.secret-access-key"],
    );
    let python = fixture::tools("python").expect("installed with the server");
    let output = Command::new(python).args(["-c", &script]).output().unwrap();
    assert!(output.status.success(), "{lines}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_signed_where_the_catalog_wants_that() {
    let Some((s3, settings)) = fixture::rest_catalog().await else { return };
    let (name, secret) = s3.login();
    let signed = |secret: &str| LakeSettings {
        catalog: CatalogSettings {
            options: [
                ("rest.sigv4-enabled", "true"),
                ("rest.signing-name", "s3tables"),
                ("rest.signing-region", "us-east-1"),
                ("rest.access-key-id", &name),
                ("rest.secret-access-key", secret),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
            ..settings.catalog.clone()
        },
        ..settings.clone()
    };
    let lake = Lake::open(&signed(&secret)).await.unwrap();
    // What is encoded in an address is where signatures go wrong: levels, and pages.
    let id = TableId::new("outer.inner", "t");
    let mut table = crate::catalog_conformance::create(&lake, &id).await.unwrap();
    crate::catalog_conformance::append(&mut table, 1).await.unwrap();
    table.reload().await.unwrap();
    assert_eq!(crate::catalog_conformance::rows(&lake, &table).await, [1]);
    assert_eq!(lake.tables().await.unwrap(), [id]);

    let stranger = Lake::open(&signed("hunter2hunter2")).await.unwrap();
    let error = stranger.tables().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permission, "{error:?}");
    assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
}

/// Without credentials of the store: those that the catalog vends are good for one table's files only.
#[tokio::test(flavor = "multi_thread")]
async fn files_are_reached_by_what_the_catalog_vends() {
    let Some((s3, settings)) = fixture::rest_catalog().await else { return };
    let lake = Lake::open(&LakeSettings { options: Default::default(), ..settings.clone() }).await.unwrap();
    let mut tables = Vec::new();
    for name in ["one", "other"] {
        let mut table = crate::catalog_conformance::create(&lake, &TableId::new("main", name)).await.unwrap();
        for number in 0..3 {
            crate::catalog_conformance::append(&mut table, number).await.unwrap();
        }
        table.reload().await.unwrap();
        tables.push(table);
    }
    for table in &tables {
        assert_eq!(crate::catalog_conformance::rows(&lake, table).await, [0, 1, 2]);
    }
    let seen = python(
        &s3,
        &settings,
        "print(sorted(catalog.load_table('main.other').scan().to_arrow()['n'].to_pylist()))",
    );
    assert_eq!(seen, "[0, 1, 2]");
}

#[tokio::test]
async fn a_wrong_login_or_warehouse_says_what_to_do() {
    let Some((_s3, settings)) = fixture::rest_catalog().await else { return };
    let mut wrong = settings.clone();
    wrong.catalog.options.insert("credential".into(), "nobody:hunter2".into());
    let error = Lake::open(&wrong).await.unwrap().tables().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permission);
    assert!(error.hint_text().unwrap().contains("`credential`"), "{error:?}");
    assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");

    let wrong = LakeSettings { warehouse: "s3://no-such-bucket".into(), ..settings };
    let (lake, id) = (Lake::open(&wrong).await.unwrap(), TableId::new("a", "t"));
    let error = crate::catalog_conformance::create(&lake, &id).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Config, "{error:?}");
}
