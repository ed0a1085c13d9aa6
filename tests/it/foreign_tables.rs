//! Tables that other engines made (see `foreign.py`), read row by row as pyiceberg reads them.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use arrow::array::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use frazil::delta::Watermark;
use frazil::lake::{Change, Effect, Lake, LakeSettings};
use frazil::memory::Budget;
use frazil::query;
use frazil::table::TableId;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::fixture;

/// A warehouse with one table of another engine; `None` where the engine is missing.
struct Foreign {
    directory: tempfile::TempDir,
    name: &'static str,
}

impl Foreign {
    fn make(name: &'static str) -> Option<Self> {
        let Some(python) = fixture::tools("python") else {
            fixture::skip("pyiceberg: run scripts/setup-tests.sh");
            return None;
        };
        let directory = tempfile::tempdir().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/foreign.py");
        let output = Command::new(python).arg(script).arg(directory.path()).arg(name).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Some(Self { directory, name })
    }

    async fn lake(&self) -> Lake {
        let settings = LakeSettings {
            warehouse: self.directory.path().display().to_string(),
            catalog: "filesystem".into(),
            options: BTreeMap::new(),
        };
        Lake::open(&settings).await.unwrap()
    }

    /// The rows of a query as sorted text, and how many files were opened for them.
    async fn query(&self, sql: &str) -> Vec<String> {
        let session = query::session(&self.lake().await, budget(), None).await.unwrap();
        let rows = query::sql(&session, sql).await.unwrap().collect().await;
        lines(&rows.map_err(frazil::error::Error::from).unwrap())
    }

    /// That sidequery's pyiceberg, the reader of equality deletes among those that can be had, agrees.
    fn judged(&self) {
        let (Some(python), Some(sidequery)) = (fixture::tools("python"), fixture::sidequery()) else {
            fixture::skip("sidequery-pyiceberg: run scripts/setup-tests.sh");
            return;
        };
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/foreign.py");
        let mut command = Command::new(python);
        command
            .env("PYTHONPATH", sidequery)
            .arg(script)
            .arg(self.directory.path())
            .args([self.name, "judge"]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// What another reader, or arithmetic, says that the table holds.
    fn expected(&self) -> Vec<String> {
        let file = self.directory.path().join(format!("{}.expected.parquet", self.name));
        let reader = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(file).unwrap()).unwrap();
        lines(&reader.build().unwrap().map(Result::unwrap).collect::<Vec<_>>())
    }
}

fn budget() -> Budget {
    Budget::new(256 << 20, 1).unwrap()
}

/// One text for each row, sorted: the same text is the same value, whatever layout it has.
fn lines(batches: &[RecordBatch]) -> Vec<String> {
    let options = FormatOptions::default().with_null("∅");
    let mut lines = Vec::new();
    for batch in batches {
        let schema = batch.schema();
        let columns: Vec<_> = batch
            .columns()
            .iter()
            .map(|column| ArrayFormatter::try_new(column.as_ref(), &options).unwrap())
            .collect();
        for row in 0..batch.num_rows() {
            let values = schema.fields().iter().zip(&columns);
            let text = values.map(|(field, column)| format!("{}={}", field.name(), column.value(row)));
            lines.push(text.collect::<Vec<_>>().join(" "));
        }
    }
    lines.sort();
    lines
}

async fn reads_as_expected(name: &'static str) {
    let Some(table) = Foreign::make(name) else { return };
    reads(&table).await;
}

/// The same, and what is expected is not arithmetic of ours alone.
async fn reads_as_judged(name: &'static str) {
    let Some(table) = Foreign::make(name) else { return };
    table.judged();
    reads(&table).await;
}

async fn reads(table: &Foreign) {
    let name = table.name;
    let expected = table.expected();
    assert!(!expected.is_empty());
    assert_eq!(table.query(&format!("select * from {name}")).await, expected);
    let count = format!("select count(*) as n from {name}");
    assert_eq!(table.query(&count).await, [format!("n={}", expected.len())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn evolved_columns_are_read_by_id_at_any_depth() {
    reads_as_expected("evolved").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_without_field_ids_are_read_by_the_name_mapping() {
    reads_as_expected("imported").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_format_1_is_read() {
    reads_as_expected("old").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn equality_deletes_hide_older_rows() {
    reads_as_judged("upserted").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn equality_deletes_of_values_that_a_column_has_grown_to_hold() {
    reads_as_expected("upserted_wide").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn equality_deletes_count_in_their_partition() {
    reads_as_judged("upserted_partitions").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_several_partition_specs_are_read_and_pruned() {
    let Some(table) = Foreign::make("repartitioned") else { return };
    assert_eq!(table.query("select * from repartitioned").await, table.expected());
    let ids = |found: Vec<String>| -> Vec<i64> {
        let mut ids: Vec<i64> =
            found.iter().map(|line| line.strip_prefix("id=").unwrap().parse().unwrap()).collect();
        ids.sort_unstable();
        ids
    };
    // Each filter with what is right by arithmetic: of row n, `id` is n, `at` 2 (n - 60) hours after
    // 1970 and a microsecond, `day` n - 75 days after, and every eleventh `name` NULL.
    let all = 0..200i64;
    let some = |pass: &dyn Fn(i64) -> bool| all.clone().filter(|n| pass(*n)).collect::<Vec<_>>();
    let not_null = |n: i64| n % 11 != 0;
    let letter = |n: i64| ["x", "y", "z", "é"][(n % 4) as usize];
    for (filter, expected) in [
        ("id = 77", some(&|n| n == 77)),
        ("id in (3, 55, 160, 999)", some(&|n| [3, 55, 160].contains(&n))),
        ("id between 40 and 60", some(&|n| (40..=60).contains(&n))),
        ("at < timestamp '1969-12-31 12:00:00'", some(&|n| (n - 60) * 2 < -12)),
        ("at = timestamp '1969-12-31 22:00:00.000001'", some(&|n| n == 59)),
        ("at >= timestamp '1970-01-01 00:00:00'", some(&|n| n >= 60)),
        ("day = date '1970-02-15'", some(&|n| n == 120)),
        ("day > date '1970-02-15' and day <= date '1970-02-17'", some(&|n| n == 121 || n == 122)),
        ("name = 'z102'", some(&|n| n == 102)),
        (
            "name >= 'é1' and name < 'é12'",
            some(&|n| not_null(n) && letter(n) == "é" && (100..120).contains(&n)),
        ),
        ("name is null", some(&|n| !not_null(n))),
        ("name is not null and id < 20", some(&|n| not_null(n) && n < 20)),
        ("name <> 'x004'", some(&|n| not_null(n) && n != 4)),
    ] {
        let sql = format!("select id from repartitioned where {filter}");
        assert_eq!(ids(table.query(&sql).await), expected, "{filter}");
    }
    // That files were left out, and not only rows. Each spec has 50 rows; these files have no bounds.
    let [day, bucket, name, none] = [5, 4, 50, 1];
    for (filter, expected) in [
        // Days: row 0 to 12, and the file of the day after, as writers of old counted. Of the other specs
        // nothing is known of `at`.
        ("at < timestamp '1969-12-28 00:00:00'", 2 + bucket + name + none),
        ("id = 77", day + 1 + name + none),
        ("day = date '1970-02-15'", day + bucket + 1 + none),
        ("name = 'nowhere'", day + bucket + none),
    ] {
        let sql = format!("explain analyze select id from repartitioned where {filter}");
        let plan = table.query(&sql).await.join("\n");
        let (_, files) = plan.split_once("files_ranges_pruned_statistics=").unwrap();
        let files = files.split_once(' ').unwrap().0;
        assert_eq!(files, expected.to_string(), "{filter}: {plan}");
    }
}

/// Writes a row of the table into it once more, by its key and then without one.
async fn goes_on(name: &'static str, key: &str, filter: &str) {
    let Some(foreign) = Foreign::make(name) else { return };
    let metadata = foreign.directory.path().join(format!("main/{name}/metadata/v1.metadata.json"));
    let mut json: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&metadata).unwrap()).unwrap();
    let fields =
        json["schemas"].as_array().unwrap().iter().flat_map(|schema| schema["fields"].as_array().unwrap());
    let number =
        fields.filter(|field| field["name"] == key).map(|field| field["id"].to_string()).next().unwrap();
    json["properties"]["frazil.mode"] = "merge".into();
    json["properties"]["frazil.key"] = format!("[{number}]").into();
    std::fs::write(&metadata, json.to_string()).unwrap();

    let row = format!("select * from {name} where {filter}");
    let session = query::session(&foreign.lake().await, budget(), None).await.unwrap();
    let rows = query::sql(&session, &row).await.unwrap().collect().await.unwrap();
    let id = TableId::new("main", name);
    let mut table = foreign.lake().await.table(&id).await.unwrap().unwrap();
    for (number, effect) in [Effect::Upsert, Effect::Append].into_iter().enumerate() {
        let mut writer = table.writer(budget()).unwrap();
        for rows in &rows {
            writer.write(rows).await.unwrap();
        }
        let change = Change {
            files: writer.finish().await.unwrap(),
            effect,
            from: table.position().unwrap().map(|position| position.watermark),
            to: Watermark::new(number.to_string()),
            summary: BTreeMap::new(),
        };
        table.commit(change, budget()).await.unwrap();
        if number == 0 {
            assert_eq!(table.snapshots()[0].summary["frazil.replaced-rows"], "1");
            assert_eq!(foreign.query(&format!("select * from {name}")).await, foreign.expected());
        }
    }
    let again = foreign.query(&row).await;
    assert_eq!(again.len(), 2);
    assert_eq!(again[0], again[1]);
    assert_eq!(foreign.query(&format!("select * from {name}")).await.len(), foreign.expected().len() + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evolved_table_is_merged_into() {
    goes_on("evolved", "id", "id = 2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_several_specs_is_merged_into() {
    goes_on("repartitioned", "id", "id = 77").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn imported_files_are_merged_into() {
    goes_on("imported", "id", "id = 11").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_with_equality_deletes_is_merged_into() {
    goes_on("upserted", "k", "k = 1").await;
}
