//! Tables with position deletes, judged by readers that are not ours.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use frazil::delta::Watermark;
use frazil::lake::{Change, Effect, Lake, LakeSettings, TableMode, TableSpec};
use frazil::memory::Budget;
use frazil::table::{FormatVersion, TableId};

use super::fixture;

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("region", DataType::Utf8, true),
        Field::new("code", DataType::Utf8, false),
        Field::new("number", DataType::Int64, false),
        Field::new("value", DataType::Int64, true),
    ]))
}

/// Keys of a pseudo-random walk over 500 keys: updates, new rows, and keys that come twice in one commit.
fn rows(commit: u64) -> Vec<(String, String, i64, i64)> {
    let mut state = commit.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..150)
        .map(|row| {
            let key = next() % 500;
            let code = format!("{:0>80}", key / 10);
            let region = ["north", "south", "west"][(next() % 3) as usize];
            (region.to_owned(), code, (key % 10) as i64, (commit * 1000 + row) as i64)
        })
        .collect()
}

fn batch(rows: &[(String, String, i64, i64)]) -> RecordBatch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.0))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.1))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.2))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.3))),
    ];
    RecordBatch::try_new(schema(), columns).unwrap()
}

/// What the format of a table is in the course of its life.
#[derive(Clone, Copy, PartialEq)]
enum Format {
    V2,
    V3,
    /// Version 2 at first, and raised half-way.
    Raised,
}

/// Upserts into a table by these partitions, and the same into SQLite; then the judges compare.
async fn judged(partition_by: &[&str], format: Format) {
    let dir = tempfile::tempdir().unwrap();
    let settings = LakeSettings {
        warehouse: dir.path().join("lake").display().to_string(),
        catalog: "filesystem".into(),
        options: BTreeMap::new(),
    };
    let spec = TableSpec {
        id: TableId::new("main", "t"),
        schema: schema(),
        mode: TableMode::Merge,
        key: vec!["code".into(), "number".into()],
        partition_by: partition_by.iter().map(|term| (*term).to_owned()).collect(),
        format_version: (format == Format::V3).then_some(FormatVersion::V3),
        sort_by: Vec::new(),
    };
    let mut table = Lake::open(&settings).await.unwrap().create(spec).await.unwrap();
    let file = dir.path().join("truth.db");
    let truth = rusqlite::Connection::open(&file).unwrap();
    truth
        .execute_batch("create table t (region text, code text, number integer, value integer, primary key (code, number))")
        .unwrap();
    let budget = Budget::new(256 << 20, 1).unwrap();
    let mut from = None;
    for commit in 1..=6 {
        // Partitions decide where a file lies, not which row is newer: a key that comes twice in one
        // commit comes in one partition here only if the partition follows from the key.
        let mut rows = rows(commit);
        if partition_by == ["region"] {
            let mut keys = std::collections::HashSet::new();
            rows.retain(|row| keys.insert((row.1.clone(), row.2)));
        }
        for row in &rows {
            truth
                .execute("insert into t values (?1, ?2, ?3, ?4) on conflict (code, number) do update set region = excluded.region, value = excluded.value", (&row.0, &row.1, row.2, row.3))
                .unwrap();
        }
        let mut writer = table.writer(budget).unwrap();
        for part in rows.chunks(60) {
            writer.write(&batch(part)).await.unwrap();
        }
        let files = writer.finish().await.unwrap();
        if (commit, format) == (4, Format::Raised) {
            table.raise_format(FormatVersion::V3).await.unwrap();
        }
        let to = Watermark::new(commit.to_string());
        let change = Change { files, effect: Effect::Upsert, from, to: to.clone(), summary: BTreeMap::new() };
        table.commit(change, budget).await.unwrap();
        from = Some(to);
    }
    let expected: i64 = truth.query_row("select count(*) from t", (), |row| row.get(0)).unwrap();
    drop(truth);
    let url = format!("sqlite://{}", file.display());
    let judge = if format == Format::V2 { fixture::judge_by_three } else { fixture::judge };
    if let Some(rows) = judge(table.location(), &url, "select * from t") {
        assert_eq!(rows, expected as u64);
    }
}

/// A test for each format.
macro_rules! judged {
    ($($name:ident: $partition_by:expr;)*) => {
        $(mod $name {
            use super::{Format, judged};

            #[tokio::test]
            async fn in_version_2() {
                judged(&$partition_by, Format::V2).await;
            }

            #[tokio::test]
            async fn in_version_3() {
                judged(&$partition_by, Format::V3).await;
            }

            #[tokio::test]
            async fn raised_from_version_2_to_3() {
                judged(&$partition_by, Format::Raised).await;
            }
        })*
    };
}

judged! {
    others_read_an_upserted_table_as_we_do: [];
    others_read_an_upserted_table_partitioned_by_its_key_as_we_do: ["bucket(3, code)"];
    others_read_an_upserted_table_whose_rows_change_partition_as_we_do: ["region"];
}
