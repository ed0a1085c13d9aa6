//! A table's history, written by our writer and by hand where we do not write such snapshots
//! ourselves, and what readers and deltas make of it.

mod v3;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Float64Type, Int8Type, Int64Type, Schema, SchemaRef};
use datafusion::physical_plan::collect;
use datafusion::prelude::SessionContext;
use expect_test::expect;
use futures::TryStreamExt;
use iceberg::TableUpdate;
use iceberg::spec::{MAIN_BRANCH, Operation, Snapshot, SnapshotReference, SnapshotRetention, Summary};
use proptest::prelude::*;

use super::snapshot::{Draft, FileKey};
use super::*;
use crate::delta::{Op, Watermark};
use crate::memory::Budget;
use crate::merge;
use crate::query;

mod upkeep;

/// The value of each key.
type Model = BTreeMap<i64, Option<i64>>;

struct History {
    _directory: tempfile::TempDir,
    lake: Lake,
    table: LakeTable,
    marks: u32,
}

/// What a commit by hand takes away.
enum Gone<'a> {
    None,
    Some(&'a HashSet<FileKey>),
    All,
}

fn budget() -> Budget {
    Budget::new(128 << 20, 1).unwrap()
}

fn columns() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("note", DataType::Utf8, false),
        Field::new("id", DataType::Int64, false),
        Field::new("v", DataType::Int64, true),
    ]))
}

impl History {
    async fn new(mode: TableMode) -> Self {
        Self::with(mode, columns()).await
    }

    async fn with(mode: TableMode, schema: SchemaRef) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let settings = LakeSettings {
            warehouse: directory.path().to_str().unwrap().to_owned(),
            catalog: "filesystem".into(),
            options: BTreeMap::new(),
        };
        let lake = Lake::open(&settings).await.unwrap();
        let key = if mode == TableMode::Merge { vec!["id".to_owned()] } else { Vec::new() };
        let spec = TableSpec {
            id: TableId::new("s", "t"),
            schema,
            mode,
            key,
            partition_by: Vec::new(),
            format_version: None,
            sort_by: Vec::new(),
        };
        let table = lake.create(spec).await.unwrap();
        Self { _directory: directory, lake, table, marks: 0 }
    }

    async fn write(&self, rows: &[(i64, Option<i64>)]) -> Vec<WrittenFile> {
        let ids: ArrayRef = Arc::new(rows.iter().map(|(id, _)| Some(*id)).collect::<Int64Array>());
        let values: ArrayRef = Arc::new(rows.iter().map(|(_, v)| *v).collect::<Int64Array>());
        let notes: ArrayRef =
            Arc::new(StringArray::from_iter_values(rows.iter().map(|(id, _)| format!("n{id}"))));
        let schema = self.table.schema().unwrap();
        let columns = schema.fields().iter().map(|field| match (field.name().as_str(), field.data_type()) {
            ("note" | "remark", _) => notes.clone(),
            ("id", _) => ids.clone(),
            ("v", _) => values.clone(),
            (_, other) => arrow::array::new_null_array(other, rows.len()),
        });
        let batch = RecordBatch::try_new(schema.clone(), columns.collect()).unwrap();
        self.write_batch(&batch).await
    }

    async fn write_batch(&self, batch: &RecordBatch) -> Vec<WrittenFile> {
        let mut writer = self.table.writer(budget()).unwrap();
        writer.write(batch).await.unwrap();
        writer.finish().await.unwrap()
    }

    async fn commit(&mut self, rows: &[(i64, Option<i64>)], effect: Effect) -> SnapshotId {
        let files = if rows.is_empty() { Vec::new() } else { self.write(rows).await };
        self.commit_files(files, effect).await
    }

    async fn commit_files(&mut self, files: Vec<WrittenFile>, effect: Effect) -> SnapshotId {
        self.marks += 1;
        let change = Change {
            files,
            effect,
            from: self.table.position().unwrap().map(|position| position.watermark),
            to: Watermark::new(self.marks.to_string()),
            summary: BTreeMap::new(),
        };
        self.table.commit(change, budget()).await.unwrap()
    }

    async fn upsert(&mut self, rows: &[(i64, Option<i64>)]) -> SnapshotId {
        self.commit(rows, Effect::Upsert).await
    }

    /// Hides keys and adds nothing: what a source that knows deletes will do.
    async fn delete(&mut self, keys: &[i64]) -> SnapshotId {
        let rows: Vec<_> = keys.iter().map(|key| (*key, None)).collect();
        let files = self.write(&rows).await;
        let key = self.table.key();
        let hidden =
            deletes::hide(&self.table, self.table.current(), &files, &key, &super::Gone::default(), budget())
                .await
                .unwrap();
        // The position deletes may name the file of keys too, which is no part of the table.
        self.by_hand(&hidden.files, Gone::Some(&hidden.superseded), None).await
    }

    /// Deletes by the value of `v`, as other engines do.
    async fn delete_by_value(&mut self, values: &[Option<i64>]) -> SnapshotId {
        let rows: Vec<_> = values.iter().map(|value| (0, *value)).collect();
        let keys = self.write(&rows).await.remove(0);
        let file = iceberg::spec::DataFileBuilder::default()
            .content(iceberg::spec::DataContentType::EqualityDeletes)
            .file_path(keys.file.file_path().to_owned())
            .file_format(keys.file.file_format())
            .partition(keys.file.partition().clone())
            .partition_spec_id(keys.spec_id)
            .record_count(rows.len() as u64)
            .file_size_in_bytes(keys.file.file_size_in_bytes())
            .null_value_counts(keys.file.null_value_counts().clone())
            .lower_bounds(keys.file.lower_bounds().clone())
            .upper_bounds(keys.file.upper_bounds().clone())
            .equality_ids(Some(vec![3]))
            .build()
            .unwrap();
        self.by_hand(&[WrittenFile { file, spec_id: keys.spec_id }], Gone::None, None).await
    }

    /// Rewrites all rows into one file and changes none.
    async fn compact(&mut self) -> SnapshotId {
        let rows: Vec<_> = self.read(None).await.into_iter().collect();
        let files = if rows.is_empty() { Vec::new() } else { self.write(&rows).await };
        self.by_hand(&files, Gone::All, Some(Operation::Replace)).await
    }

    async fn by_hand(
        &mut self,
        files: &[WrittenFile],
        gone: Gone<'_>,
        operation: Option<Operation>,
    ) -> SnapshotId {
        let table = self.table.table.clone();
        let mut draft = Draft::on(&table, self.table.current()).await.unwrap();
        match gone {
            Gone::None => {}
            Gone::Some(gone) => draft.remove_deletes(gone).await.unwrap(),
            Gone::All => draft.remove_all().await.unwrap(),
        }
        draft.add(files).await.unwrap();
        let made = draft.build(HashMap::new()).await.unwrap();
        let snapshot = Snapshot::builder()
            .with_snapshot_id(made.snapshot_id())
            .with_parent_snapshot_id(made.parent_snapshot_id())
            .with_sequence_number(made.sequence_number())
            .with_timestamp_ms(made.timestamp_ms())
            .with_manifest_list(made.manifest_list().to_owned())
            .with_summary(Summary {
                operation: operation.unwrap_or(made.summary().operation.clone()),
                additional_properties: made.summary().additional_properties.clone(),
            })
            .with_schema_id(made.schema_id().unwrap());
        let snapshot = match made.row_range() {
            None => snapshot.build(),
            Some((first, rows)) => snapshot.with_row_range(first, rows).build(),
        };
        let id = made.snapshot_id();
        let reference = SnapshotReference::new(id, SnapshotRetention::branch(None, None, None));
        let updates = vec![
            TableUpdate::AddSnapshot { snapshot },
            TableUpdate::SetSnapshotRef { ref_name: MAIN_BRANCH.to_owned(), reference },
        ];
        self.table.table = self.table.catalog.commit(&self.table.table, Vec::new(), updates).await.unwrap();
        SnapshotId(id)
    }

    async fn read(&self, at: Option<SnapshotId>) -> Model {
        let session = self.session();
        let rows = session.read_table(self.table.provider(at).await.unwrap()).unwrap();
        let mut model = Model::new();
        for batch in rows.collect().await.unwrap() {
            for (id, value) in values(&batch) {
                assert_eq!(model.insert(id, value), None, "key {id} twice");
            }
        }
        model
    }

    fn session(&self) -> SessionContext {
        SessionContext::new_with_config_rt(
            merge::config(),
            merge::runtime(budget(), self.lake.stores()).unwrap(),
        )
    }

    /// The collapsed delta: of each key its new value, or `None` when it is gone.
    async fn delta(&self, from: Option<SnapshotId>, to: SnapshotId) -> Vec<(i64, Option<Option<i64>>)> {
        let delta = self.table.delta(from, to).await.unwrap();
        let runtime = merge::runtime(budget(), self.lake.stores()).unwrap();
        let stream = merge::collapse(&delta, &self.table.key(), runtime).await.unwrap();
        let mut changes = Vec::new();
        for batch in stream.try_collect::<Vec<_>>().await.unwrap() {
            let ops = batch.column_by_name(crate::table::OP_COLUMN).unwrap().as_primitive::<Int8Type>();
            for (row, (id, value)) in values(&batch).into_iter().enumerate() {
                changes.push((id, (ops.value(row) == Op::Upsert as i8).then_some(value)));
            }
        }
        if from.is_some() {
            assert!(
                changes.windows(2).all(|pair| pair[0].0 < pair[1].0),
                "sorted, each key once: {changes:?}"
            );
        }
        changes
    }

    async fn sql(&self, text: &str) -> String {
        let session = query::session(&self.lake, budget(), None).await.unwrap();
        let rows = match query::sql(&session, text).await {
            Ok(rows) => rows,
            Err(error) => return format!("{error:?}\n"),
        };
        match rows.collect().await {
            Ok(batches) => format!("{}\n", arrow::util::pretty::pretty_format_batches(&batches).unwrap()),
            Err(error) => format!("{:?}\n", Error::from(error)),
        }
    }
}

fn values(batch: &RecordBatch) -> Vec<(i64, Option<i64>)> {
    let ids = batch.column_by_name("id").unwrap().as_primitive::<Int64Type>();
    let values = batch.column_by_name("v").unwrap().as_primitive::<Int64Type>();
    let value = |row| values.is_valid(row).then(|| values.value(row));
    (0..batch.num_rows()).map(|row| (ids.value(row), value(row))).collect()
}

fn apply(model: &Model, changes: &[(i64, Option<Option<i64>>)]) -> Model {
    let mut model = model.clone();
    for (id, change) in changes {
        match change {
            Some(value) => {
                model.insert(*id, *value);
            }
            None => {
                model.remove(id);
            }
        }
    }
    model
}

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
          hint: load the whole table again with `--full`, and keep snapshots longer than the target's longest pause"#]]
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
async fn columns_are_found_by_id() {
    let mut history = History::with(
        TableMode::Merge,
        Arc::new(Schema::new(vec![
            Field::new("note", DataType::Utf8, false),
            column("id", DataType::Int64, false, "1"),
            column("v", DataType::Int64, true, "2"),
            column("small", DataType::Int32, true, "3"),
            column("left", DataType::Utf8, true, "4"),
            column("right", DataType::Utf8, true, "5"),
        ])),
    )
    .await;
    let text = |text: &str| -> ArrayRef { Arc::new(StringArray::from(vec![text])) };
    let batch = RecordBatch::try_new(
        history.table.schema().unwrap(),
        vec![
            text("n"),
            Arc::new(Int64Array::from(vec![1])),
            Arc::new(Int64Array::from(vec![10])),
            Arc::new(arrow::array::Int32Array::from(vec![7])),
            text("l"),
            text("r"),
        ],
    )
    .unwrap();
    let files = history.write_batch(&batch).await;
    let before = history.commit_files(files, Effect::Upsert).await;
    // `left` and `right` change names, `small` is widened, `more` is added.
    let evolved = Arc::new(Schema::new(vec![
        Field::new("note", DataType::Utf8, false),
        column("id", DataType::Int64, false, "1"),
        column("v", DataType::Int64, true, "2"),
        column("small", DataType::Int64, true, "3"),
        column("port", DataType::Utf8, true, "4"),
        column("starboard", DataType::Utf8, true, "5"),
        column("more", DataType::Float64, true, "6"),
    ]));
    let evolution = history.table.evolution(&Wanted::columns(&evolved)).unwrap();
    history.table.evolve(&evolution).await.unwrap();
    let sql = "select id, v, small, starboard, port, more, note from t where small = 7 and more is null";
    expect![[r#"
        +----+----+-------+-----------+------+------+------+
        | id | v  | small | starboard | port | more | note |
        +----+----+-------+-----------+------+------+------+
        | 1  | 10 | 7     | r         | l    |      | n    |
        +----+----+-------+-----------+------+------+------+
    "#]]
    .assert_eq(&history.sql(sql).await);
    expect![[r#"
        +-------+------+-------+
        | right | left | small |
        +-------+------+-------+
        | r     | l    | 7     |
        +-------+------+-------+
    "#]]
    .assert_eq(
        &history.sql(&format!("select \"right\", \"left\", small from t version as of {before}")).await,
    );
}

fn column(name: &str, kind: DataType, nullable: bool, id: &str) -> Field {
    let metadata = HashMap::from([(crate::table::SOURCE_COLUMN_ID.to_owned(), id.to_owned())]);
    Field::new(name, kind, nullable).with_metadata(metadata)
}

/// Rows from before and after a struct grew, at the top, in a list and in a map.
#[tokio::test]
async fn nested_fields_come_and_widen() {
    let nested = |fields: Vec<Field>, number: DataType| {
        let list = Field::new("element", DataType::Struct(fields.clone().into()), true);
        let pair = vec![Field::new("key", DataType::Utf8, false), Field::new("value", number, true)];
        let entries = Field::new("key_value", DataType::Struct(pair.into()), false);
        Arc::new(Schema::new(vec![
            Field::new("id", DataType::Int64, false),
            Field::new("s", DataType::Struct(fields.into()), true),
            Field::new("l", DataType::List(Arc::new(list)), true),
            Field::new("m", DataType::Map(Arc::new(entries), false), true),
        ]))
    };
    let rows = |schema: &SchemaRef, json: &str| {
        let mut decoder = arrow::json::ReaderBuilder::new(schema.clone()).build_decoder().unwrap();
        decoder.decode(json.as_bytes()).unwrap();
        decoder.flush().unwrap().unwrap()
    };
    let x = |kind| Field::new("x", kind, true);
    let old = nested(vec![x(DataType::Int32)], DataType::Int32);
    let new = nested(vec![Field::new("y", DataType::Utf8, true), x(DataType::Int64)], DataType::Int64);
    let mut history = History::with(TableMode::Merge, old.clone()).await;
    let batch = rows(&old, r#"{"id": 1, "s": {"x": 1}, "l": [{"x": 2}, null], "m": {"k": 3}}"#);
    let files = history.write_batch(&batch).await;
    let before = history.commit_files(files, Effect::Upsert).await;
    let evolution = history.table.evolution(&Wanted::columns(&new)).unwrap();
    history.table.evolve(&evolution).await.unwrap();
    let batch = rows(
        &new,
        r#"{"id": 2, "s": {"x": 5000000000, "y": "a"}, "l": [{"y": "b"}], "m": {"k": 6000000000}}"#,
    );
    let files = history.write_batch(&batch).await;
    history.commit_files(files, Effect::Upsert).await;
    // A source that does not have the new fields any more, or not yet.
    let batch = rows(&old, r#"{"id": 3, "s": {"x": 7}, "l": [{"x": 8}], "m": {"k": 9}}"#);
    let files = history.write_batch(&batch).await;
    history.commit_files(files, Effect::Upsert).await;
    expect![[r#"
        +----+-----------------------+-----------------+-----------------+
        | id | s                     | l               | m               |
        +----+-----------------------+-----------------+-----------------+
        | 1  | {x: 1, y: }           | [{x: 2, y: }, ] | {k: 3}          |
        | 2  | {x: 5000000000, y: a} | [{x: , y: b}]   | {k: 6000000000} |
        | 3  | {x: 7, y: }           | [{x: 8, y: }]   | {k: 9}          |
        +----+-----------------------+-----------------+-----------------+
    "#]]
    .assert_eq(&history.sql("select * from t order by id").await);
    expect![[r#"
        +----+--------+------------+--------+
        | id | s      | l          | m      |
        +----+--------+------------+--------+
        | 1  | {x: 1} | [{x: 2}, ] | {k: 3} |
        +----+--------+------------+--------+
    "#]]
    .assert_eq(&history.sql(&format!("select * from t version as of {before}")).await);
}

#[tokio::test]
async fn files_that_cannot_match_are_not_opened() {
    let mut history = History::new(TableMode::Merge).await;
    for base in [0, 100, 200, 300] {
        let rows: Vec<_> = (base..base + 50).map(|id| (id, Some(id))).collect();
        history.commit(&rows, Effect::Append).await;
    }
    history.delete(&[110]).await;
    let session = history.session();
    session.register_table("t", history.table.provider(None).await.unwrap()).unwrap();
    let files_of = async |sql: &str| {
        let plan = session.sql(sql).await.unwrap().create_physical_plan().await.unwrap();
        let text = datafusion::physical_plan::displayable(plan.as_ref()).indent(false).to_string();
        let rows =
            collect(plan, session.task_ctx()).await.unwrap().iter().map(RecordBatch::num_rows).sum::<usize>();
        (text.matches(".parquet").count(), rows)
    };
    assert_eq!(files_of("select * from t where id between 105 and 115").await, (1, 10));
    assert_eq!(files_of("select * from t where id in (1, 201, 5000)").await, (2, 2));
    // As text, `n349` lies between `n0` and `n9` too.
    assert_eq!(files_of("select * from t where note = 'n349'").await, (2, 1));
    assert_eq!(files_of("select * from t where v is null").await, (0, 0));
    assert_eq!(files_of("select * from t where v > 0").await, (4, 198));
    assert_eq!(files_of("select count(*) from t").await, (0, 1), "from metadata alone");
    expect![[r#"
        +----------+------------+----------+----------+
        | count(*) | count(t.v) | min(t.v) | sum(t.v) |
        +----------+------------+----------+----------+
        | 199      | 199        | 0        | 34790    |
        +----------+------------+----------+----------+
    "#]]
    .assert_eq(&history.sql("select count(*), count(v), min(v), sum(v) from t").await);
}

#[tokio::test]
async fn not_a_number_is_found() {
    let schema = Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("v", DataType::Int64, true),
        Field::new("x", DataType::Float64, true),
    ]));
    let mut history = History::with(TableMode::Merge, schema.clone()).await;
    let x = arrow::array::PrimitiveArray::<Float64Type>::from(vec![1.0, f64::NAN]);
    let ids: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
    let batch = RecordBatch::try_new(schema, vec![ids.clone(), ids, Arc::new(x)]).unwrap();
    let files = history.write_batch(&batch).await;
    history.commit_files(files, Effect::Append).await;
    let session = history.session();
    session.register_table("t", history.table.provider(None).await.unwrap()).unwrap();
    let plan =
        session.sql("select id from t where x > 100").await.unwrap().create_physical_plan().await.unwrap();
    let text = datafusion::physical_plan::displayable(plan.as_ref()).indent(false).to_string();
    assert_eq!(text.matches(".parquet").count(), 1, "bounds leave NaN out, so the file must stay: {text}");
    for (filter, expected) in [
        ("x > 100", 1),
        ("x >= 100", 1),
        ("x <> 1", 1),
        ("100 < x", 1),
        ("not (x <= 100)", 1),
        ("x = 'NaN'", 1),
        ("x < 0.5", 0),
        ("x > 0.5 and id < 5", 2),
    ] {
        let sql = format!("select id from t where {filter}");
        let rows = session.sql(&sql).await.unwrap().collect().await.unwrap();
        let rows: usize = rows.iter().map(RecordBatch::num_rows).sum();
        assert_eq!(rows, expected, "row groups leave NaN out of their statistics too: {filter}");
    }
    // The threshold of the first rows becomes a filter while others are read.
    let sql = "select id from t order by x desc limit 1";
    let rows = session.sql(sql).await.unwrap().collect().await.unwrap();
    assert_eq!(rows[0].column(0).as_primitive::<Int64Type>().values(), &[2]);
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

#[tokio::test]
async fn a_statement_names_several_moments() {
    let mut history = History::new(TableMode::Merge).await;
    let first = history.upsert(&[(1, Some(10)), (2, Some(20))]).await;
    let second = history.upsert(&[(2, Some(21)), (3, Some(30))]).await;
    let third = history.delete(&[1]).await;

    let both = format!(
        "select t.id, t.v now, b.v before from t full join s.t for version as of {first} b using (id) order by id"
    );
    expect![[r#"
        +----+-----+--------+
        | id | now | before |
        +----+-----+--------+
        | 2  | 21  | 20     |
        | 3  | 30  |        |
        |    |     | 10     |
        +----+-----+--------+
    "#]]
    .assert_eq(&history.sql(&both).await);
    expect![[r#"
        +---------+------+----+----+
        | _change | note | id | v  |
        +---------+------+----+----+
        | delete  |      | 1  |    |
        | update  | n2   | 2  | 21 |
        | insert  | n3   | 3  | 30 |
        +---------+------+----+----+
    "#]]
    .assert_eq(&history.sql(&format!("select * from changes('s.t', {first}) order by id")).await);
    expect![[r#"
        +----+---------+
        | id | _change |
        +----+---------+
        | 1  | delete  |
        +----+---------+
    "#]]
    .assert_eq(
        &history
            .sql(&format!("select id, _change from changes('t', {second}, {third}) c where c.id > 0"))
            .await,
    );
    let at = history.table.snapshots().iter().find(|snapshot| snapshot.id == second).unwrap().committed_at;
    expect![[r#"
        +----+----+
        | id | v  |
        +----+----+
        | 1  | 10 |
        | 2  | 21 |
        | 3  | 30 |
        +----+----+
    "#]]
    .assert_eq(
        &history.sql(&format!("select id, v from t timestamp as of '{}' order by id", at.to_rfc3339())).await,
    );
    expect![[r#"
        +-----------+----------+
        | operation | count(*) |
        +-----------+----------+
        | append    | 1        |
        | overwrite | 2        |
        +-----------+----------+
    "#]]
    .assert_eq(&history.sql("select operation, count(*) from \"t$snapshots\" group by 1 order by 1").await);
    expect![[r#"
        +------------------+---+
        | content          | r |
        +------------------+---+
        | data             | 4 |
        | position_deletes | 2 |
        +------------------+---+
    "#]]
    .assert_eq(
        &history.sql("select content, sum(record_count) r from s.\"t$files\" group by 1 order by 1").await,
    );
    expect![[r#"
        +---------------------+
        | is_current_ancestor |
        +---------------------+
        | true                |
        | true                |
        | true                |
        +---------------------+
    "#]]
    .assert_eq(&history.sql("select is_current_ancestor from \"t$history\"").await);
}

#[tokio::test]
async fn a_wrong_statement_says_what_is_right() {
    let mut history = History::new(TableMode::Merge).await;
    let only = history.upsert(&[(1, None)]).await;
    let at = history.table.snapshots()[0].committed_at;
    let mut said = String::new();
    for text in [
        "select * from s.tt",
        "select * from \"t$foles\"",
        "select * from t version as of 7",
        "select * from t timestamp as of '1999-01-01'",
        "select idd from t",
        "delete from t",
        "create table x as select * from t",
        "copy t to '/tmp/x.csv'",
        "set datafusion.execution.batch_size = 1",
        "selec 1",
    ] {
        let answer = history.sql(text).await;
        said += &answer;
    }
    expect![[r#"
        config: there is no table `s.tt` in the lake
          hint: did you mean `s.t`?
        config: there is no metadata table `foles` (table: s.t)
          hint: there are `$snapshots`, `$history`, `$refs`, `$files`, `$manifests`, `$partitions` and `$rows`
        config: the table has no such snapshot (table: s.t, snapshot: 7)
          hint: the newest is 42; `frazil snapshots s.t` lists all
        config: the table had no rows to read at that time (table: s.t, time: 1999-01-01T00:00:00+00:00)
          hint: its oldest snapshot is of TIME
        config: query is not valid: Schema error: No field named idd. Valid fields are t.note, t.id, t.v.
        config: the statement does not only read
          hint: the lake is written by `frazil sync`; use SELECT, SHOW TABLES, DESCRIBE or EXPLAIN here
        config: the statement does not only read
          hint: the lake is written by `frazil sync`; use SELECT, SHOW TABLES, DESCRIBE or EXPLAIN here
        config: the statement does not only read
          hint: the lake is written by `frazil sync`; use SELECT, SHOW TABLES, DESCRIBE or EXPLAIN here
        config: the statement does not only read
          hint: the lake is written by `frazil sync`; use SELECT, SHOW TABLES, DESCRIBE or EXPLAIN here
        config: query is not valid: SQL error: ParserError("Expected: an SQL statement, found: selec at Line: 1, Column: 1")
    "#]]
    .assert_eq(&said.replace(&only.to_string(), "42").replace(&at.to_rfc3339(), "TIME"));
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
                }
            }
        });
    }
}
