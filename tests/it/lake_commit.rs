//! Rows and their position: committed together, fenced, rolled back together.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use datafusion::prelude::SessionContext;
use frazil::delta::{SnapshotId, Watermark};
use frazil::lake::{Change, Effect, Lake, LakeSettings, LakeTable, TableMode, TableSpec, WrittenFile};
use frazil::memory::Budget;
use frazil::table::{FormatVersion, TableId};
use frazil::{ErrorKind, Result};

/// Each test in each version of the format.
macro_rules! in_both_versions {
    ($($test:ident),* $(,)?) => {
        mod v2 {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $test() {
                super::$test(frazil::table::FormatVersion::V2).await;
            })*
        }
        mod v3 {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $test() {
                super::$test(frazil::table::FormatVersion::V3).await;
            })*
        }
    };
}

in_both_versions! {
    each_snapshot_has_its_rows_and_its_position,
    keys_of_a_log_that_go_are_hidden,
    rolling_back_rewinds_the_position,
    a_change_from_elsewhere_is_a_conflict_and_leaves_no_file,
    of_eight_runners_one_wins_each_state,
    a_first_read_is_shown_when_it_is_whole,
    an_abandoned_first_read_leaves_nothing,
    many_small_commits_keep_few_manifests,
}

struct Place {
    _dir: tempfile::TempDir,
    lake: Lake,
    version: FormatVersion,
}

impl Place {
    async fn new(version: FormatVersion) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let settings = LakeSettings {
            warehouse: dir.path().join("lake").display().to_string(),
            catalog: "filesystem".into(),
            options: BTreeMap::new(),
        };
        Self { lake: Lake::open(&settings).await.unwrap(), _dir: dir, version }
    }

    async fn table(&self) -> LakeTable {
        let schema = Schema::new(vec![
            Field::new("id", DataType::Int64, false),
            Field::new("name", DataType::Utf8, true),
        ]);
        self.lake
            .create(TableSpec {
                id: TableId::new("public", "people"),
                schema: Arc::new(schema),
                mode: TableMode::Merge,
                key: vec!["id".into()],
                partition_by: vec![],
                format_version: Some(self.version),
                sort_by: Vec::new(),
            })
            .await
            .unwrap()
    }

    async fn load(&self) -> LakeTable {
        self.lake.table(&TableId::new("public", "people")).await.unwrap().unwrap()
    }
}

fn budget() -> Budget {
    Budget::new(256 << 20, 2).unwrap()
}

async fn files(table: &LakeTable, rows: &[(i64, &str)]) -> Vec<WrittenFile> {
    let mut writer = table.writer(budget()).unwrap();
    let batch = RecordBatch::try_from_iter([
        ("id", Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.0))) as ArrayRef),
        ("name", Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.1)))),
    ])
    .unwrap();
    writer.write(&batch).await.unwrap();
    writer.finish().await.unwrap()
}

async fn commit(
    table: &mut LakeTable,
    effect: Effect,
    rows: &[(i64, &str)],
    from: Option<&str>,
    to: &str,
) -> Result<SnapshotId> {
    let files = if rows.is_empty() { Vec::new() } else { files(table, rows).await };
    let from = from.map(Watermark::new);
    let change = Change { files, effect, from, to: Watermark::new(to), summary: BTreeMap::new() };
    table.commit(change, budget()).await
}

async fn rows(table: &LakeTable, at: Option<SnapshotId>) -> String {
    let context = SessionContext::new();
    context.register_table("t", table.provider(at).await.unwrap()).unwrap();
    let batches =
        context.sql("select id, name from t order by id, name").await.unwrap().collect().await.unwrap();
    let mut text = Vec::new();
    for batch in batches {
        for i in 0..batch.num_rows() {
            let cell = |c: usize| arrow::util::display::array_value_to_string(batch.column(c), i).unwrap();
            text.push(format!("{}={}", cell(0), cell(1)));
        }
    }
    text.join(" ")
}

fn position(table: &LakeTable) -> Option<(String, bool)> {
    table.position().unwrap().map(|position| (position.watermark.to_string(), position.unfinished))
}

async fn each_snapshot_has_its_rows_and_its_position(version: FormatVersion) {
    let place = Place::new(version).await;
    let mut table = place.table().await;
    assert_eq!(position(&table), None);
    let first = commit(&mut table, Effect::Append, &[(1, "ann"), (2, "bob")], None, "a").await.unwrap();
    let second = commit(&mut table, Effect::Upsert, &[(2, "rob"), (3, "cid")], Some("a"), "b").await.unwrap();
    assert_eq!(rows(&table, None).await, "1=ann 2=rob 3=cid");
    assert_eq!(rows(&table, Some(first)).await, "1=ann 2=bob");
    assert_eq!(position(&table), Some(("b".into(), false)));

    // Nothing new: the same snapshot. A new position without rows: a new one.
    assert_eq!(commit(&mut table, Effect::Upsert, &[], Some("b"), "b").await.unwrap(), second);
    let idle = commit(&mut table, Effect::Upsert, &[], Some("b"), "c").await.unwrap();
    assert_ne!(idle, second);
    let replaced = commit(&mut table, Effect::Replace, &[(9, "zoe")], Some("c"), "d").await.unwrap();
    assert_eq!(rows(&table, Some(idle)).await, "1=ann 2=rob 3=cid");

    let table = place.load().await;
    assert_eq!(rows(&table, Some(replaced)).await, "9=zoe");
    let history: Vec<_> = table
        .snapshots()
        .into_iter()
        .map(|info| {
            (info.operation, info.summary["total-records"].clone(), info.summary["frazil.watermark"].clone())
        })
        .collect();
    let expected =
        [("overwrite", "1", "d"), ("append", "4", "c"), ("overwrite", "4", "b"), ("append", "2", "a")];
    assert_eq!(history, expected.map(|(a, b, c)| (a.into(), b.into(), c.into())));
}

/// What a source with deletes commits: new states and keys that go, in one snapshot.
async fn keys_of_a_log_that_go_are_hidden(version: FormatVersion) {
    let place = Place::new(version).await;
    let mut table = place.table().await;
    let people = [(1, "ann"), (2, "bob"), (3, "cid")];
    let first = commit(&mut table, Effect::Append, &people, None, "a").await.unwrap();
    // 9 was never there, and 3 changes.
    let gone = keys(&table, &[1, 9]).await;
    let paths: Vec<_> = gone.iter().map(|file| file.file.file_path().to_owned()).collect();
    commit(&mut table, Effect::Log(gone), &[(3, "sid"), (4, "dan")], Some("a"), "b").await.unwrap();
    assert_eq!(rows(&table, None).await, "2=bob 3=sid 4=dan");
    assert_eq!(rows(&table, Some(first)).await, "1=ann 2=bob 3=cid");
    let counts = table.row_counts();
    assert_eq!((counts.inserted, counts.updated, counts.deleted), (1, 1, 1));
    for path in paths {
        let path = path.strip_prefix("file://").unwrap_or(&path).to_owned();
        assert!(!std::path::Path::new(&path).exists(), "keys that went are no data: {path}");
    }

    // Deletes alone, the same again, and an idle pass that moves on.
    let gone = keys(&table, &[2]).await;
    commit(&mut table, Effect::Log(gone), &[], Some("b"), "c").await.unwrap();
    let gone = keys(&table, &[2]).await;
    let again = commit(&mut table, Effect::Log(gone), &[], Some("c"), "d").await.unwrap();
    assert_eq!(rows(&table, None).await, "3=sid 4=dan");
    assert_eq!(commit(&mut table, Effect::Log(vec![]), &[], Some("d"), "d").await.unwrap(), again);
    assert_ne!(commit(&mut table, Effect::Log(vec![]), &[], Some("d"), "e").await.unwrap(), again);
    assert_eq!(position(&table), Some(("e".into(), false)));
    // A key that went may come back.
    commit(&mut table, Effect::Upsert, &[(1, "eve")], Some("e"), "f").await.unwrap();
    assert_eq!(rows(&table, None).await, "1=eve 3=sid 4=dan");
}

async fn keys(table: &LakeTable, keys: &[i64]) -> Vec<WrittenFile> {
    let mut writer = table.key_writer(budget()).unwrap();
    let column = Arc::new(Int64Array::from_iter_values(keys.iter().copied())) as ArrayRef;
    writer.write(&RecordBatch::try_from_iter([("id", column)]).unwrap()).await.unwrap();
    writer.finish().await.unwrap()
}

async fn rolling_back_rewinds_the_position(version: FormatVersion) {
    let place = Place::new(version).await;
    let mut table = place.table().await;
    let first = commit(&mut table, Effect::Append, &[(1, "ann")], None, "a").await.unwrap();
    commit(&mut table, Effect::Upsert, &[(1, "eve")], Some("a"), "b").await.unwrap();
    table.roll_back(first).await.unwrap();
    assert_eq!(position(&place.load().await), Some(("a".into(), false)));
    assert_eq!(rows(&table, None).await, "1=ann");
    commit(&mut table, Effect::Upsert, &[(1, "eva")], Some("a"), "b").await.unwrap();
    assert_eq!(rows(&place.load().await, None).await, "1=eva");
}

async fn a_change_from_elsewhere_is_a_conflict_and_leaves_no_file(version: FormatVersion) {
    let place = Place::new(version).await;
    let mut table = place.table().await;
    commit(&mut table, Effect::Append, &[(1, "ann")], None, "a").await.unwrap();
    let mut stale = place.load().await;
    commit(&mut table, Effect::Append, &[(2, "bob")], Some("a"), "b").await.unwrap();

    let late = files(&stale, &[(2, "bob")]).await;
    let path = late[0].file.file_path().strip_prefix("file://").unwrap().to_owned();
    let change = Change {
        files: late,
        effect: Effect::Append,
        from: Some(Watermark::new("a")),
        to: Watermark::new("b"),
        summary: BTreeMap::new(),
    };
    let error = stale.commit(change.clone(), budget()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}");
    assert!(error.hint_text().unwrap().contains("run again"));
    assert!(!std::path::Path::new(&path).exists(), "the file of a lost commit is deleted");

    // After a reload the state is right and the position is not.
    stale.reload().await.unwrap();
    assert_eq!(stale.commit(change, budget()).await.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(rows(&place.load().await, None).await, "1=ann 2=bob");
}

async fn of_eight_runners_one_wins_each_state(version: FormatVersion) {
    let place = Place::new(version).await;
    let mut table = place.table().await;
    commit(&mut table, Effect::Append, &[(0, "zero")], None, "0").await.unwrap();
    for round in 1..=5 {
        let runners = (0..8).map(|runner| {
            let mut table = table.clone();
            tokio::spawn(async move {
                let (from, to) = ((round - 1).to_string(), round.to_string());
                let name = runner.to_string();
                commit(&mut table, Effect::Append, &[(round, &name)], Some(&from), &to).await.map(|_| runner)
            })
        });
        let mut winners = Vec::new();
        for outcome in futures::future::join_all(runners).await {
            match outcome.unwrap() {
                Ok(runner) => winners.push(runner),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}"),
            }
        }
        assert_eq!(winners.len(), 1);
        table.reload().await.unwrap();
        assert_eq!(position(&table), Some((round.to_string(), false)));
    }
    assert_eq!(rows(&table, None).await.split(' ').count(), 6);
}

async fn a_first_read_is_shown_when_it_is_whole(version: FormatVersion) {
    let place = Place::new(version).await;
    let mut table = place.table().await;
    let part = Effect::FirstReadPart { overlaps: false };
    commit(&mut table, part.clone(), &[(1, "ann")], None, "1").await.unwrap();
    commit(&mut table, part.clone(), &[(2, "bob")], Some("1"), "2").await.unwrap();

    // Interrupted here; another process goes on, and reads a row again.
    let mut table = place.load().await;
    assert_eq!((table.current(), position(&table)), (None, Some(("2".into(), true))));
    assert!(table.snapshots().is_empty());
    let part = Effect::FirstReadPart { overlaps: true };
    commit(&mut table, part, &[(2, "rob"), (3, "cid")], Some("2"), "3").await.unwrap();
    assert_eq!(rows(&table, None).await, "");
    let error = commit(&mut table, Effect::Append, &[(7, "x")], Some("3"), "4").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    let end = Effect::FirstReadEnd { overlaps: true };
    commit(&mut table, end, &[(3, "kid"), (4, "dee")], Some("3"), "4").await.unwrap();

    let table = place.load().await;
    assert_eq!(rows(&table, None).await, "1=ann 2=rob 3=kid 4=dee");
    assert_eq!(position(&table), Some(("4".into(), false)));
    assert_eq!(table.snapshots().len(), 1, "readers never saw the parts");
}

async fn an_abandoned_first_read_leaves_nothing(version: FormatVersion) {
    let place = Place::new(version).await;
    let mut table = place.table().await;
    let part = Effect::FirstReadPart { overlaps: false };
    commit(&mut table, part.clone(), &[(1, "ann")], None, "1").await.unwrap();
    commit(&mut table, part.clone(), &[(2, "bob")], Some("1"), "2").await.unwrap();
    table.abandon_first_read().await.unwrap();
    let mut table = place.load().await;
    assert_eq!(position(&table), None);
    let data = table.location().strip_prefix("file://").unwrap().to_owned() + "/data";
    assert_eq!(std::fs::read_dir(data).unwrap().count(), 0);
    commit(&mut table, part.clone(), &[(1, "eve")], None, "1").await.unwrap();
    let end = Effect::FirstReadEnd { overlaps: false };
    commit(&mut table, end, &[], Some("1"), "2").await.unwrap();
    assert_eq!(rows(&place.load().await, None).await, "1=eve");
}

async fn many_small_commits_keep_few_manifests(version: FormatVersion) {
    let place = Place::new(version).await;
    let mut table = place.table().await;
    let mut from = None;
    for i in 0..130i64 {
        let to = i.to_string();
        // Every eighth pass changes an old row too.
        let (effect, rows) = match i % 8 {
            7 => (Effect::Upsert, vec![(i, "new"), (i / 2, "again")]),
            _ => (Effect::Append, vec![(i, "new")]),
        };
        commit(&mut table, effect, &rows, from.as_deref(), &to).await.unwrap();
        from = Some(to);
    }
    let table = place.load().await;
    let text = rows(&table, None).await;
    assert_eq!(text.split(' ').count(), 130);
    assert_eq!(text.split(' ').filter(|row| row.ends_with("again")).count(), 16);
    let directory = table.location().strip_prefix("file://").unwrap().to_owned() + "/metadata";
    let versions = std::fs::read_dir(directory)
        .unwrap()
        .filter(|file| file.as_ref().unwrap().file_name().to_string_lossy().ends_with(".metadata.json"))
        .count();
    assert_eq!(versions, 101, "older metadata files are deleted");
}
