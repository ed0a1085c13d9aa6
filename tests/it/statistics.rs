//! How many different values columns have: counted by maintenance, judged by the library whose sketches they
//! are, used by our optimizer, and gone with their snapshot.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;

use arrow::array::{ArrayRef, Decimal128Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use chrono::{TimeDelta, Utc};
use datafusion::common::stats::Precision;
use datafusion::prelude::SessionContext;
use frazil::delta::Watermark;
use frazil::lake::{Change, Effect, Lake, LakeSettings, LakeTable, Retention, TableMode, TableSpec};
use frazil::maintain::{self, OrphanFiles, Policy};
use frazil::memory::Budget;
use frazil::table::TableId;

use crate::fixture;

/// More keys than a sketch keeps.
const KEYS: i64 = 20_000;

fn budget() -> Budget {
    Budget::new(128 << 20, 1).unwrap()
}

async fn append(table: &mut LakeTable, keys: std::ops::Range<i64>) {
    let ids = Int64Array::from_iter_values(keys.clone());
    let names =
        StringArray::from_iter(keys.clone().map(|key| (key % 5 > 0).then(|| format!("name {}", key % 700))));
    let prices = Decimal128Array::from_iter_values(keys.clone().map(|key| i128::from(key % 1000 - 500)));
    let prices = prices.with_precision_and_scale(9, 2).unwrap();
    let columns: Vec<ArrayRef> = vec![Arc::new(ids), Arc::new(names), Arc::new(prices)];
    let mut writer = table.writer(budget()).unwrap();
    writer.write(&RecordBatch::try_new(table.schema().unwrap(), columns).unwrap()).await.unwrap();
    let change = Change {
        files: writer.finish().await.unwrap(),
        effect: Effect::Append,
        from: table.position().unwrap().map(|position| position.watermark),
        to: Watermark::new(keys.end.to_string()),
        summary: BTreeMap::new(),
    };
    table.commit(change, budget()).await.unwrap();
}

/// What the optimizer is told of each column.
async fn distinct(table: &LakeTable) -> Vec<Option<usize>> {
    let context = SessionContext::new();
    context.register_table("t", table.provider(None).await.unwrap()).unwrap();
    let plan = context.table("t").await.unwrap().create_physical_plan().await.unwrap();
    let columns = plan.partition_statistics(None).unwrap().column_statistics.clone();
    columns
        .iter()
        .map(|column| match column.distinct_count {
            Precision::Inexact(count) => Some(count),
            Precision::Absent => None,
            Precision::Exact(_) => panic!("a sketch is not exact"),
        })
        .collect()
}

/// Reads each sketch, makes one of the same values, and compares.
const JUDGE: &str = r#"
import json, sys, datasketches
metadata = json.load(open(sys.argv[1]))
[file] = metadata["statistics"]
assert file["snapshot-id"] == metadata["current-snapshot-id"]
data = open(file["statistics-path"].removeprefix("file://"), "rb").read()
assert data[:4] == data[-4:] == b"PFA1" and len(data) == file["file-size-in-bytes"]
length = int.from_bytes(data[-12:-8], "little")
assert file["file-footer-size-in-bytes"] == length + 16
blobs = json.loads(data[-12 - length:-12])["blobs"]
for blob, known in zip(blobs, file["blob-metadata"], strict=True):
    assert blob["type"] == known["type"] == "apache-datasketches-theta-v1" and blob["fields"] == known["fields"]
    sketch = datasketches.compact_theta_sketch.deserialize(data[blob["offset"]:blob["offset"] + blob["length"]])
    ndv = int(known["properties"]["ndv"])
    assert abs(sketch.get_estimate() - ndv) <= 1, (sketch.get_estimate(), ndv)
    theirs = datasketches.update_theta_sketch(12)
    values = {
        1: range(20000),
        2: [f"name {key % 700}" for key in range(20000) if key % 5 > 0],
        3: [],
    }[blob["fields"][0]]
    for value in values: theirs.update(value)
    same, exact = "", not sketch.is_estimation_mode()
    if values:
        low, likely, high = datasketches.theta_jaccard_similarity.jaccard(sketch, theirs)
        same = f" like theirs: {likely > 0.99}"
    print(blob["fields"], "exactly" if exact else "about", ndv if exact else round(ndv, -3), same)
"#;

#[tokio::test(flavor = "multi_thread")]
async fn different_values_are_counted_for_all_who_read_them() {
    let directory = tempfile::tempdir().unwrap();
    let settings = LakeSettings {
        warehouse: directory.path().display().to_string(),
        catalog: "filesystem".into(),
        options: BTreeMap::new(),
    };
    let lake = Lake::open(&settings).await.unwrap();
    let schema = Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("name", DataType::Utf8, true),
        Field::new("price", DataType::Decimal128(9, 2), false),
    ]);
    let spec = TableSpec {
        id: TableId::new("main", "t"),
        schema: Arc::new(schema),
        mode: TableMode::Append,
        key: Vec::new(),
        partition_by: Vec::new(),
        sort_by: Vec::new(),
        format_version: None,
    };
    let mut table = lake.create(spec).await.unwrap();
    append(&mut table, 0..KEYS / 2).await;
    append(&mut table, KEYS / 2..KEYS).await;
    assert_eq!(distinct(&table).await, [None, None, None]);

    let policy = Policy { statistics: true, ..Policy::default() };
    let maintain = async |table: &mut LakeTable| {
        maintain::maintain(table, &policy, OrphanFiles::Delete, budget()).await.unwrap().columns_counted
    };
    assert_eq!(maintain(&mut table).await, 3);
    assert_eq!(maintain(&mut table).await, 0, "they have been counted");
    let counted = distinct(&table).await;
    assert!(counted[0].unwrap().abs_diff(KEYS as usize) < KEYS as usize / 20, "{counted:?}");
    assert_eq!(counted[1..], [Some(560), Some(1000)]);
    if let Some(python) = fixture::tools("python") {
        let newest = format!("{}/main/t/metadata/v4.metadata.json", directory.path().display());
        let judged = Command::new(python).args(["-c", JUDGE, &newest]).output().unwrap();
        assert!(judged.status.success(), "{}", String::from_utf8_lossy(&judged.stderr));
        expect_test::expect![[r#"
            [1] about 20000  like theirs: True
            [2] exactly 560  like theirs: True
            [3] exactly 1000 
        "#]]
        .assert_eq(&String::from_utf8_lossy(&judged.stdout));
    } else {
        fixture::skip("datasketches: run scripts/setup-tests.sh");
    }

    // The next snapshot goes by the last count, until it is counted itself and the old one expires.
    append(&mut table, KEYS..KEYS + 10).await;
    assert_eq!(distinct(&table).await, counted);
    let files = || {
        let listed = std::fs::read_dir(directory.path().join("main/t/metadata")).unwrap();
        listed.filter(|it| it.as_ref().unwrap().path().extension().is_some_and(|it| it == "stats")).count()
    };
    assert_eq!((maintain(&mut table).await, files()), (3, 2));
    let all = Retention { keep_for: Some(std::time::Duration::ZERO), at_least: Some(1), at_most: Some(1) };
    table.expire(all, Utc::now() + TimeDelta::hours(1)).await.unwrap();
    assert_eq!(files(), 1);
    assert_eq!(distinct(&table).await[2], Some(1000));
}
