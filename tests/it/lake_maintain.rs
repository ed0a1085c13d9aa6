//! Maintenance beside a writer, a loader and readers: nothing is lost, nobody fails, files stay few.
//!
//! `FRAZIL_TEST_BESIDE_SECONDS=180` makes it last so many seconds.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int8Type, Int64Type, Schema};
use chrono::Utc;
use datafusion::prelude::SessionContext;
use frazil::delta::{Op, SnapshotId, Watermark};
use frazil::lake::{Change, Effect, Lake, LakeSettings, LakeTable, Layout, Retention, TableMode, TableSpec};
use frazil::maintain::{self, OrphanFiles, Policy};
use frazil::memory::Budget;
use frazil::merge;
use frazil::table::TableId;
use futures::TryStreamExt;

use crate::fixture::{self, Pipeline};
use crate::sync::{change_orders, seed_orders, two_databases};

/// Keys of the table; each commit changes some of them.
const KEYS: i64 = 20_000;
const KEYS_A_COMMIT: i64 = 200;
/// From the start of one commit to the start of the next; a slow machine starts the next at once.
const PERIOD: Duration = Duration::from_secs(1);
/// Between two rounds of maintenance.
const BETWEEN_ROUNDS: Duration = Duration::from_millis(500);
/// Files that a well-kept table of this size has: what small files there may be of each size.
const FILES: usize = 40;
/// A machine on which nothing was rewritten and nothing expired by then is not slow but stuck.
const PATIENCE: Duration = Duration::from_secs(300);

type Model = BTreeMap<i64, i64>;

fn budget() -> Budget {
    Budget::new(128 << 20, 1).unwrap()
}

fn id() -> TableId {
    TableId::new("public", "hot")
}

async fn commit(table: &mut LakeTable, rows: &[(i64, i64)], mark: i64) -> SnapshotId {
    let mut writer = table.writer(budget()).unwrap();
    let batch = RecordBatch::try_from_iter([
        ("id", Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.0))) as ArrayRef),
        ("v", Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.1)))),
    ])
    .unwrap();
    writer.write(&batch).await.unwrap();
    let files = writer.finish().await.unwrap();
    let from = table.position().unwrap().map(|position| position.watermark);
    let to = Watermark::new(mark.to_string());
    let change = Change { files, effect: Effect::Upsert, from, to, summary: BTreeMap::new() };
    table.commit(change, budget()).await.unwrap()
}

/// Commits every second until it is told to stop. It never looks at the table but through its own commits.
async fn write(
    mut table: LakeTable,
    mut model: Model,
    stop: Arc<AtomicBool>,
    commits: Arc<AtomicUsize>,
) -> (Model, Vec<Duration>) {
    let mut times = Vec::new();
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut mark = 1;
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        let began = Instant::now();
        mark += 1;
        let rows: Vec<_> = (0..KEYS_A_COMMIT).map(|n| ((mark * 7919 + n * 104_729) % KEYS, mark)).collect();
        model.extend(rows.iter().copied());
        let rows: Vec<_> = rows.into_iter().collect::<Model>().into_iter().collect();
        commit(&mut table, &rows, mark).await;
        commits.fetch_add(1, Ordering::Relaxed);
        times.push(began.elapsed());
    }
    times.sort();
    (model, times)
}

/// Reads everything, again and again: every key is there once.
async fn read(lake: Lake, stop: Arc<AtomicBool>) -> usize {
    let mut reads = 0;
    while !stop.load(Ordering::Relaxed) {
        let table = lake.table(&id()).await.unwrap().unwrap();
        let context = SessionContext::new();
        context.register_table("t", table.provider(None).await.unwrap()).unwrap();
        let counted = context.sql("select count(v), count(distinct id) from t").await.unwrap();
        let counted = counted.collect().await.unwrap();
        let count = |column: usize| counted[0].column(column).as_primitive::<Int64Type>().value(0);
        assert_eq!((count(0), count(1)), (KEYS, KEYS));
        reads += 1;
    }
    reads
}

/// A target that follows by deltas, and says how far it is.
async fn load(lake: &Lake, target: &mut Model, loaded: &mut Option<SnapshotId>) {
    let mut table = lake.table(&id()).await.unwrap().unwrap();
    let to = table.current().unwrap();
    let delta = table.delta(*loaded, to).await.unwrap();
    let runtime = merge::runtime(budget(), lake.stores()).unwrap();
    let changes = merge::collapse(&delta, &["id".to_owned()], runtime).await.unwrap();
    for batch in changes.try_collect::<Vec<_>>().await.unwrap() {
        let column = |name: &str| batch.column_by_name(name).unwrap().as_primitive::<Int64Type>().clone();
        let ops = batch.column_by_name("_op").unwrap().as_primitive::<Int8Type>();
        for row in 0..batch.num_rows() {
            if ops.value(row) == Op::Upsert as i8 {
                target.insert(column("id").value(row), column("v").value(row));
            } else {
                target.remove(&column("id").value(row));
            }
        }
    }
    *loaded = Some(to);
    table.note_target("test/hot", to, Utc::now()).await.unwrap();
}

/// DuckDB reads the newest state again and again, until its stdin ends; it fails when a count is wrong.
fn duckdb(location: &str) -> Option<Child> {
    let Some(python) = fixture::tools("python") else {
        fixture::skip("DuckDB: run scripts/setup-tests.sh");
        return None;
    };
    let script = format!(
        r#"
import os, re, select, sys
sys.path.insert(0, "{tests}")
import judge
folder = "{folder}/metadata"
reads = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    newest = max(int(m[1]) for m in (re.fullmatch(r"v(\d+)\.metadata\.json", n) for n in os.listdir(folder)) if m)
    db = judge.connect(folder)
    found = db.execute(f"select count(v), count(distinct id) from iceberg_scan('{{folder}}/v{{newest}}.metadata.json')").fetchone()
    assert found == ({KEYS}, {KEYS}), found
    reads += 1
print(reads)
"#,
        tests = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it"),
        folder = location.trim_start_matches("file://"),
    );
    let child =
        Command::new(python).args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    Some(child.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn maintenance_beside_a_writer_disturbs_nobody() {
    let seconds = std::env::var("FRAZIL_TEST_BESIDE_SECONDS").map_or(12, |text| text.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let settings = LakeSettings {
        warehouse: dir.path().join("lake").display().to_string(),
        catalog: "filesystem".into(),
        options: BTreeMap::new(),
    };
    let lake = Lake::open(&settings).await.unwrap();
    let schema =
        Schema::new(vec![Field::new("id", DataType::Int64, false), Field::new("v", DataType::Int64, true)]);
    let spec = TableSpec {
        id: id(),
        schema: Arc::new(schema),
        mode: TableMode::Merge,
        key: vec!["id".into()],
        partition_by: vec![],
        sort_by: Vec::new(),
        format_version: None,
    };
    let mut table = lake.create(spec).await.unwrap();
    let model: Model = (0..KEYS).map(|id| (id, 0)).collect();
    commit(&mut table, &model.iter().map(|(id, v)| (*id, *v)).collect::<Vec<_>>(), 1).await;
    let location = table.location().to_owned();

    let stop = Arc::new(AtomicBool::new(false));
    let commits = Arc::new(AtomicUsize::new(0));
    let writer = tokio::spawn(write(table, model, stop.clone(), commits.clone()));
    let reader = tokio::spawn(read(lake.clone(), stop.clone()));
    let duckdb = duckdb(&location);
    let policy = Policy {
        layout: Layout { file_bytes: Some(1 << 20), ..Layout::default() },
        // Long enough for who began to read, short enough that snapshots expire here.
        retention: Retention { keep_for: Some(Duration::from_secs(10)), ..Retention::default() },
        ..Policy::default()
    };
    let (mut target, mut loaded) = (Model::new(), None);
    let (mut most_files, mut rewrites, mut overtaken, mut expired) = (0, 0, 0, 0);
    let began = Instant::now();
    let enough = Duration::from_secs(seconds);
    while began.elapsed() < enough || (rewrites == 0 || expired == 0) && began.elapsed() < PATIENCE {
        tokio::time::sleep(BETWEEN_ROUNDS).await;
        let before = commits.load(Ordering::Relaxed);
        let mut table = lake.table(&id()).await.unwrap().unwrap();
        let report = maintain::maintain(&mut table, &policy, OrphanFiles::List, budget()).await.unwrap();
        rewrites += report.rewrites;
        overtaken += report.overtaken;
        expired += report.expired.snapshots;
        let files = table.files(None).await.unwrap().len();
        // The writer goes on meanwhile: a file of rows and one of deletes with each commit.
        let meanwhile = commits.load(Ordering::Relaxed) - before + 1;
        assert!(files <= FILES + 2 * meanwhile, "{files} files after {meanwhile} commits");
        most_files = most_files.max(files);
        load(&lake, &mut target, &mut loaded).await;
    }
    stop.store(true, Ordering::Relaxed);
    let (model, times) = writer.await.unwrap();
    let reads = reader.await.unwrap();
    eprintln!(
        "{:.0} s: {} commits (median {:?}, slowest {:?}), {rewrites} rewrites ({overtaken} overtaken), {expired} \
         snapshots expired, {reads} reads, {most_files} files at most",
        began.elapsed().as_secs_f64(),
        times.len(),
        times[times.len() / 2],
        times[times.len() - 1],
    );
    assert!(rewrites > 0 && expired > 0);

    load(&lake, &mut target, &mut loaded).await;
    assert!(target == model, "the target");
    if let Some(mut child) = duckdb {
        drop(child.stdin.take());
        let output = child.wait_with_output().unwrap();
        let read: usize = String::from_utf8_lossy(&output.stdout).trim().parse().unwrap();
        assert!(output.status.success() && read > 0, "DuckDB read {read} times");
        eprintln!("DuckDB: {read} reads");
        let database = dir.path().join("model.db");
        let mut connection = rusqlite::Connection::open(&database).unwrap();
        let transaction = connection.transaction().unwrap();
        transaction.execute("create table model (id integer primary key, v integer)", ()).unwrap();
        for (id, v) in &model {
            transaction.execute("insert into model values (?1, ?2)", (id, v)).unwrap();
        }
        transaction.commit().unwrap();
        let url = format!("sqlite://{}", database.display());
        assert_eq!(fixture::judge(&location, &url, "select id, v from model"), Some(KEYS as u64));
        // Each snapshot that is left can be read by us, too.
        let table = lake.table(&id()).await.unwrap().unwrap();
        for snapshot in table.snapshots() {
            let context = SessionContext::new();
            context.register_table("t", table.provider(Some(snapshot.id)).await.unwrap()).unwrap();
            assert_eq!(context.table("t").await.unwrap().count().await.unwrap() as i64, KEYS);
        }
    }
}

/// Killed at the worst moments, through the program itself: nothing is changed, and the next run does what
/// was left undone.
#[tokio::test(flavor = "multi_thread")]
async fn maintenance_that_is_killed_is_done_by_the_next() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "maintain_killed").await;
    seed_orders(&source, 2_000).await;
    for version in [2, 3] {
        let stream = format!("public.orders: {{ format_version: {version}, lake_table: v{version}.orders }}");
        let pipeline = Pipeline::new(&source.url(), &target.url(), &[&stream]);
        let location = pipeline.location(&format!("v{version}"), "orders");
        let orders = "select * from orders";
        pipeline.ok(&["sync"]);
        let mut round = 0;
        for point in ["before_swap", "after_swap"] {
            for _ in 0..5 {
                round += 1;
                change_orders(&source, round).await;
                pipeline.ok(&["sync"]);
            }
            let files = || {
                let count = format!("select count(*) from v{version}.\"orders$files\"");
                pipeline.ok(&["query", &count, "--output", "csv"]).stdout
            };
            let before = files();
            let killed = pipeline.run_with_faults(&["maintain"], &format!("{point}=return(kill)"));
            assert_eq!(killed.code, None, "{point}: {}", killed.stderr);
            assert_eq!(files() == before, point == "before_swap", "{point}");
            fixture::judge(&location, &source.url(), orders);
            pipeline.ok(&["maintain", "--remove-orphans", "--orphan-age", "0s", "--force"]);
            assert_ne!(files(), before, "{point}");
            fixture::judge(&location, &source.url(), orders);
            let left =
                pipeline.ok(&["maintain", "--dry-run", "--orphan-age", "0s", "--force", "--output", "json"]);
            let left: serde_json::Value = serde_json::from_str(left.stdout.trim()).unwrap();
            assert_eq!(left["orphans"], serde_json::json!([]), "{point}");
        }
    }
}
