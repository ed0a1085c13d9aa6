//! Groups on the catalogs that a lake may have, with tables that are read whole again, and what `check` and `plan`
//! say of them.

use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;

use crate::fixture::{self, Database, Pipeline};
use crate::postgres_log_model::DROP_SLOTS;

const STREAMS: [&str; 2] =
    ["public.a: { change: log, group: pair }", "public.b: { change: log, group: pair }"];
const SUM: &str = "select (select sum(amount) from a) + (select sum(amount) from b) as total";

async fn seed(source: &Database) {
    source
        .run(
            "create table a (id int primary key, amount int not null);
             create table b (id int primary key, amount int not null);
             insert into a select i, 100 from generate_series(1, 50) i;
             insert into b select i, 100 from generate_series(1, 50) i",
        )
        .await;
}

/// An amount goes from one table to the other.
async fn change(source: &Database, row: u32) {
    source
        .run(&format!(
            "begin; update a set amount = amount - 7 where id = {row};
             update b set amount = amount + 7 where id = {row}; commit"
        ))
        .await;
}

/// What `check` says of the group.
fn checked(pipeline: &Pipeline) -> Value {
    pipeline.json(&["check"]).into_iter().find(|it| it["group"] == "pair").unwrap()
}

fn number(reports: &[Value]) -> u64 {
    let of = |report: &Value| report["checkpoint"]["checkpoint"].as_u64();
    let first = of(&reports[0]);
    assert!(first.is_some() && reports.iter().all(|report| of(report) == first), "{reports:#?}");
    first.unwrap()
}

/// All of a group's life: made, changed, read whole again, left behind by one stream, and trimmed.
async fn a_group_lives(source: &Database, pipeline: &Pipeline) {
    let file = pipeline.folder().join("frazil.yaml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{text}groups: {{ pair: {{ keep: 2 }} }}\n")).unwrap();
    assert!(
        pipeline.ok(&["plan"]).stdout.contains("then a checkpoint if one has changed (no checkpoint yet)")
    );
    assert!(checked(pipeline)["checkpoint"].is_null());

    let first = number(&pipeline.json(&["sync"]));
    for row in 1..4 {
        change(source, row).await;
        // A table that is read whole is at no place of the log, and gets to one.
        let arguments: &[&str] = if row == 2 { &["sync", "--full-refresh"] } else { &["sync"] };
        let reports = pipeline.json(arguments);
        let read = |report: &Value| report["extract"]["read"].as_u64().unwrap() >= 50;
        assert!(reports.iter().all(|report| read(report) == (row == 2)), "{reports:#?}");
        assert_eq!(number(&reports), first + u64::from(row), "{reports:#?}");
    }
    let now = checked(pipeline);
    assert_eq!((&now["checkpoint"], &now["keep"]), (&(first + 3).into(), &2.into()), "{now}");
    assert!(now["findings"].as_array().unwrap().is_empty() && now["age_seconds"].is_f64(), "{now}");
    let listed = pipeline.json(&["checkpoints", "pair"]);
    let numbers: Vec<u64> = listed.iter().map(|it| it["checkpoint"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [first + 3, first + 2]);
    for number in numbers {
        let name = format!("pair@{number}");
        let seen = pipeline.ok(&["query", "--checkpoint", &name, "--output", "csv", SUM]).stdout;
        assert_eq!(seen.lines().nth(1), Some("10000"), "{name}");
    }

    // One of them alone goes beyond the newest.
    change(source, 5).await;
    pipeline.ok(&["sync", "--select", "public.a"]);
    let said = pipeline.ok(&["check"]).stdout;
    let expected = format!("tables have changed since checkpoint {}: `public.a`\n", first + 3);
    assert!(said.contains(&expected) && said.contains("the newest 2 kept"), "{said}");
    let part = pipeline.ok(&["plan", "--select", "public.a"]).stdout;
    assert!(part.contains("no checkpoint: not all of its streams are selected"), "{part}");
    assert_eq!(number(&pipeline.json(&["sync"])), first + 4);
    assert!(checked(pipeline)["findings"].as_array().unwrap().is_empty());
    source.run(DROP_SLOTS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_lives_on_a_catalog_in_postgres() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, catalog) = (pg.database("pair_sql").await, pg.database("pair_catalog").await);
    seed(&source).await;
    let folder = tempfile::tempdir().unwrap();
    let target = format!("sqlite://{}", folder.path().join("dwh.db").display());
    let pipeline = Pipeline::new(&source.url(), &target, &STREAMS).with_catalog(&catalog.url());
    a_group_lives(&source, &pipeline).await;
    let tables =
        catalog.text("select count(*) from iceberg_tables where table_name = 'pair__checkpoints'").await;
    assert_eq!(tables, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_lives_on_a_rest_catalog() {
    let Some(pg) = fixture::postgres().await else { return };
    let Some((_s3, settings)) = fixture::rest_catalog().await else { return };
    let source = pg.database("pair_rest").await;
    seed(&source).await;
    let folder = tempfile::tempdir().unwrap();
    let target = format!("sqlite://{}", folder.path().join("dwh.db").display());
    let options: BTreeMap<String, String> = settings.options.clone();
    let pipeline = Pipeline::with_lake(&source.url(), &target, &settings.warehouse, &options, &STREAMS);
    let (url, credential) = (&settings.catalog.url, &settings.catalog.options["credential"]);
    let catalog = format!("{{ url: \"{url}\", options: {{ credential: \"{credential}\" }} }}");
    a_group_lives(&source, &pipeline.with_catalog(&catalog)).await;
}
