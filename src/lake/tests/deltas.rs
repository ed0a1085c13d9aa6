//! What changed between two snapshots, whatever lies between them.

use super::*;

#[tokio::test]
async fn a_delta_has_what_changed_and_no_more() {
    let mut history = History::new(TableMode::Merge).await;
    let first = history.upsert(&[(1, Some(10)), (2, Some(20)), (3, None)]).await;
    let second = history.upsert(&[(2, Some(21)), (4, Some(40))]).await;
    let third = history.delete(&[1]).await;

    assert_eq!(history.delta(None, first).await, [(1, Some(Some(10))), (2, Some(Some(20))), (3, Some(None))]);
    assert_eq!(history.delta(Some(first), second).await, [(2, Some(Some(21))), (4, Some(Some(40)))]);
    assert_eq!(history.delta(Some(second), third).await, [(1, None)]);
    assert_eq!(history.delta(Some(first), first).await, []);
    let delta = history.table.delta(Some(first), third).await.unwrap();
    assert_eq!((delta.added, delta.removed, delta.extent), (2, 2, DeltaExtent::Changes));
    assert!(!delta.one_row_a_key);
}

#[tokio::test]
async fn a_compaction_is_no_change_and_is_not_read() {
    let mut history = History::new(TableMode::Merge).await;
    let first = history.upsert(&[(1, Some(10)), (2, Some(20))]).await;
    let second = history.upsert(&[(2, Some(21))]).await;
    let compacted = history.compact().await;
    assert_eq!(history.delta(Some(second), compacted).await, []);
    let last = history.upsert(&[(1, Some(11)), (3, Some(30))]).await;

    let delta = history.table.delta(Some(first), last).await.unwrap();
    assert_eq!((delta.added, delta.removed), (3, 2), "of the compaction nothing is read");
    let expected = [(1, Some(Some(11))), (2, Some(Some(21))), (3, Some(Some(30)))];
    assert_eq!(history.delta(Some(first), last).await, expected);
    assert_eq!(history.read(None).await, apply(&Model::new(), &expected));
}

#[tokio::test]
async fn a_commit_is_laid_on_top_of_maintenance() {
    let mut history = History::new(TableMode::Merge).await;
    history.upsert(&[(1, Some(10)), (2, Some(20))]).await;
    let before = history.upsert(&[(3, Some(30))]).await;
    let loaded = history.table.clone();
    history.compact().await;
    let compacted = history.compact().await;
    // The writer still holds the table as it was before.
    history.table = loaded.clone();
    let after = history.upsert(&[(2, Some(21)), (4, Some(40))]).await;

    let expected = [(1, Some(10)), (2, Some(21)), (3, Some(30)), (4, Some(40))];
    assert_eq!(history.read(None).await, Model::from(expected));
    let parent = history.table.snapshots().into_iter().find(|snapshot| snapshot.id == after).unwrap().parent;
    assert_eq!(parent, Some(compacted));
    assert_eq!(history.delta(Some(before), after).await, [(2, Some(Some(21))), (4, Some(Some(40)))]);

    // A snapshot that changes rows is another writer's, whatever comes after it.
    let mut other = loaded;
    let files = history.write(&[(9, None)]).await;
    let change = Change {
        files,
        effect: Effect::Upsert,
        from: other.position().unwrap().map(|position| position.watermark),
        to: Watermark::new("x"),
        summary: BTreeMap::new(),
    };
    history.compact().await;
    let error = other.commit(change, budget()).await.unwrap_err();
    assert_eq!(error.kind(), crate::ErrorKind::Conflict);
    assert_eq!(history.read(None).await, Model::from(expected));
}

#[tokio::test]
async fn a_rollback_gives_the_reverse() {
    let mut history = History::new(TableMode::Merge).await;
    let first = history.upsert(&[(1, Some(10)), (2, Some(20))]).await;
    let second = history.upsert(&[(2, Some(21)), (3, Some(30))]).await;
    history.table.roll_back(first).await.unwrap();
    assert_eq!(history.delta(Some(second), first).await, [(2, Some(Some(20))), (3, None)]);

    let other = history.upsert(&[(4, Some(40))]).await;
    assert_eq!(
        history.delta(Some(second), other).await,
        [(2, Some(Some(20))), (3, None), (4, Some(Some(40)))]
    );
}

#[tokio::test]
async fn a_snapshot_that_expired_says_what_to_do() {
    let mut history = History::new(TableMode::Merge).await;
    let first = history.upsert(&[(1, None)]).await;
    let error = history.table.delta(Some(SnapshotId(7)), first).await.map(drop).unwrap_err();
    expect![[r#"
        config: the snapshot that the target shows has expired in the lake (snapshot: 7, table: s.t)
          hint: load the whole table again with `frazil load --full-refresh` or `frazil state repair`, and keep snapshots longer than the target's longest pause"#]]
    .assert_eq(&format!("{error:?}"));
}

#[tokio::test]
async fn what_is_only_appended_comes_as_it_is() {
    let mut history = History::new(TableMode::Append).await;
    let first = history.commit(&[(1, Some(10))], Effect::Append).await;
    let second = history.commit(&[(1, Some(11)), (2, None)], Effect::Append).await;
    let compacted = history.by_hand(&[], Gone::None, Some(Operation::Replace)).await;

    let delta = history.table.delta(Some(first), compacted).await.unwrap();
    assert!(!delta.with_ops);
    assert_eq!(delta.rows.schema().fields().len(), 3);
    let runtime = merge::runtime(budget(), history.lake.stores()).unwrap();
    let stream = merge::collapse(&delta, &["id".to_owned()], runtime).await.unwrap();
    let batches: Vec<_> = stream.try_collect().await.unwrap();
    assert_eq!(batches.iter().flat_map(values).collect::<Vec<_>>(), [(1, Some(11)), (2, None)]);

    let error = history.table.delta(Some(second), first).await.map(drop).unwrap_err();
    assert_eq!(error.message(), "rows of an append table were rewritten or rolled back");
}

#[tokio::test]
async fn a_table_that_is_replaced_is_always_whole() {
    let mut history = History::new(TableMode::Replace).await;
    let first = history.commit(&[(1, Some(10)), (1, Some(10))], Effect::Replace).await;
    let second = history.commit(&[(2, Some(20))], Effect::Replace).await;
    let delta = history.table.delta(Some(first), second).await.unwrap();
    assert_eq!((delta.extent, delta.added, delta.removed), (DeltaExtent::Whole, 1, 0));
    assert_eq!(history.delta(None, second).await, [(2, Some(Some(20)))]);
}

#[tokio::test]
async fn another_reader_sees_the_same_rows() {
    let mut history = History::new(TableMode::Merge).await;
    let rows: Vec<_> = (0..1000).map(|id| (id, (id % 7 != 0).then_some(id))).collect();
    history.upsert(&rows).await;
    history.delete(&(0..1000).step_by(3).collect::<Vec<_>>()).await;
    let scan = history.table.table.scan().build().unwrap();
    let theirs: Vec<RecordBatch> = scan.to_arrow().await.unwrap().try_collect().await.unwrap();
    let theirs: Model = theirs.iter().flat_map(values).collect();
    assert_eq!(theirs.len(), 666);
    assert_eq!(history.read(None).await, theirs);
}

#[tokio::test]
async fn rows_deleted_by_value_are_gone_for_deltas_and_merges() {
    let mut history = History::new(TableMode::Merge).await;
    let first = history.upsert(&[(1, None), (2, Some(5)), (3, None), (4, Some(7))]).await;
    let second = history.delete_by_value(&[None, Some(7), Some(8)]).await;
    assert_eq!(history.read(None).await, Model::from([(2, Some(5))]));
    assert_eq!(history.delta(Some(first), second).await, [(1, None), (3, None), (4, None)]);
    assert_eq!(history.delta(Some(second), first).await.len(), 3, "and back");
    let third = history.upsert(&[(1, Some(9)), (2, None)]).await;
    let summary = &history.table.snapshots()[0].summary;
    assert_eq!(summary["frazil.replaced-rows"], "1", "a row that is gone is not replaced");
    assert_eq!(history.read(None).await, Model::from([(1, Some(9)), (2, None)]), "newer rows stay");
    assert_eq!(history.delta(Some(second), third).await, [(1, Some(Some(9))), (2, Some(None))]);
    assert_eq!(history.read(Some(first)).await.len(), 4, "older snapshots have them");
    assert!(history.sql("select count(*) from t").await.contains("| 2 "));
}

/// The delta is about twice what the sort may hold.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_changes_than_memory_are_sorted_on_disk() {
    const ROWS: i64 = 300_000;
    const PART: i64 = 20_000;
    let mut history = History::new(TableMode::Merge).await;
    let first = history.upsert(&[(0, None)]).await;
    let mut writer = history.table.writer(budget()).unwrap();
    for start in (0..ROWS).step_by(PART as usize) {
        // Every key once, in no order: the factor has no divisor in common with the number of rows.
        let ids: Vec<i64> = (start..start + PART).map(|row| row * 7919 % ROWS).collect();
        let notes = StringArray::from_iter_values(ids.iter().map(|id| format!("{id:0200}")));
        let ids: ArrayRef = Arc::new(Int64Array::from(ids));
        let batch = RecordBatch::try_new(columns(), vec![Arc::new(notes), ids.clone(), ids]).unwrap();
        writer.write(&batch).await.unwrap();
    }
    let files = writer.finish().await.unwrap();
    let last = history.commit_files(files, Effect::Upsert).await;
    let delta = history.table.delta(Some(first), last).await.unwrap();
    assert!(!delta.one_row_a_key);
    let runtime = merge::runtime(budget(), history.lake.stores()).unwrap();
    let mut changes = merge::collapse(&delta, &["id".to_owned()], runtime).await.unwrap();
    let mut next = 0;
    while let Some(batch) = changes.try_next().await.unwrap() {
        for (id, value) in values(&batch) {
            assert_eq!((id, value), (next, Some(next)));
            next += 1;
        }
    }
    assert_eq!(next, ROWS);
}

/// What happens to a table.
#[derive(Debug, Clone)]
enum Step {
    Upsert(Vec<(i64, Option<i64>)>),
    Delete(Vec<i64>),
    DeleteByValue(Vec<Option<i64>>),
    Replace(Vec<(i64, Option<i64>)>),
    Compact,
    RollBack(usize),
    /// To format version 3, from where there is no way back.
    Raise,
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0..12_i64;
    let value = || prop::option::of(0..20_i64);
    let rows = prop::collection::vec((key.clone(), value()), 1..8);
    prop_oneof![
        6 => rows.clone().prop_map(Step::Upsert),
        3 => prop::collection::vec(key, 1..4).prop_map(Step::Delete),
        2 => prop::collection::vec(value(), 1..5).prop_map(Step::DeleteByValue),
        1 => rows.prop_map(|rows| Step::Replace(rows.into_iter().collect::<Model>().into_iter().collect())),
        2 => Just(Step::Compact),
        1 => (0..10_usize).prop_map(Step::RollBack),
        1 => Just(Step::Raise),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    /// Between any two snapshots, in either direction, across compactions and rollbacks.
    #[test]
    fn any_delta_makes_one_state_the_other(steps in prop::collection::vec(step(), 1..7)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let mut history = History::new(TableMode::Merge).await;
            let mut states: Vec<(Option<SnapshotId>, Model)> = vec![(None, Model::new())];
            let mut now = Model::new();
            for step in &steps {
                let snapshot = match step {
                    Step::Upsert(rows) => {
                        now.extend(rows.iter().copied());
                        history.upsert(rows).await
                    }
                    Step::Delete(keys) => {
                        now.retain(|key, _| !keys.contains(key));
                        if history.table.current().is_none() {
                            continue;
                        }
                        history.delete(keys).await
                    }
                    Step::DeleteByValue(values) => {
                        now.retain(|_, value| !values.contains(value));
                        history.delete_by_value(values).await
                    }
                    Step::Replace(rows) => {
                        now = rows.iter().copied().collect();
                        history.commit(rows, Effect::Replace).await
                    }
                    Step::Compact if history.table.current().is_none() => continue,
                    Step::Compact => history.compact().await,
                    Step::Raise => {
                        history.table.raise_format(FormatVersion::V3).await.unwrap();
                        continue;
                    }
                    Step::RollBack(nth) => {
                        let (Some(to), model) = states[nth % states.len()].clone() else { continue };
                        history.table.roll_back(to).await.unwrap();
                        now = model;
                        continue;
                    }
                };
                states.push((Some(snapshot), now.clone()));
            }
            for (to, after) in &states {
                let Some(to) = *to else { continue };
                assert_eq!(history.read(Some(to)).await, *after, "read {to}");
                for (from, before) in &states {
                    let changes = history.delta(*from, to).await;
                    assert_eq!(apply(before, &changes), *after, "delta {from:?} to {to}");
                    let with_base = history.delta_with_base(*from, to).await;
                    for (id, _, base) in &with_base {
                        assert_eq!(*base, before.get(id).copied(), "what {id} was at {from:?}, to {to}");
                    }
                    let changes: BTreeMap<_, _> = changes.into_iter().collect();
                    let same = with_base.into_iter().map(|(id, change, _)| (id, change)).collect();
                    assert_eq!(changes, same, "delta {from:?} to {to}");
                }
            }
        });
    }
}
