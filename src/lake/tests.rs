//! A table's history, written by our writer and by hand where we do not write such snapshots
//! ourselves, and what readers and deltas make of it.

mod beside;
mod columns;
mod deltas;
mod events;
mod order;
mod queries;
mod refs;
mod upkeep;
mod v3;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Float64Type, Int8Type, Int32Type, Int64Type, Schema, SchemaRef};
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
        let hidden = deletes::hide(
            &self.table,
            self.table.current(),
            &files,
            &[],
            &super::Gone::default(),
            None,
            budget(),
        )
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

    /// The same with what each key was before: `None`, if it was not there.
    async fn delta_with_base(&self, from: Option<SnapshotId>, to: SnapshotId) -> Vec<ChangeFrom> {
        let delta = self.table.delta_with_base(from, to).await.unwrap();
        let runtime = merge::runtime(budget(), self.lake.stores()).unwrap();
        let stream = merge::collapse_with_base(&delta, &self.table.key(), runtime).await.unwrap();
        let mut changes = Vec::new();
        for batch in stream.try_collect::<Vec<_>>().await.unwrap() {
            let ops = batch.column_by_name(crate::table::OP_COLUMN).unwrap().as_primitive::<Int8Type>();
            let older = batch.column_by_name("_base_v").unwrap().as_primitive::<Int64Type>();
            let has = batch.column_by_name(crate::table::HAS_BASE).unwrap().as_primitive::<Int32Type>();
            for (row, (id, value)) in values(&batch).into_iter().enumerate() {
                let base = (has.value(row) == 1).then(|| older.is_valid(row).then(|| older.value(row)));
                changes.push((id, (ops.value(row) == Op::Upsert as i8).then_some(value), base));
            }
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

/// A key, its new value (`None`: it is gone), and its old one (`None`: it was not there).
type ChangeFrom = (i64, Option<Option<i64>>, Option<Option<i64>>);

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
