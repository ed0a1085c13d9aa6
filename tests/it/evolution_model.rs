//! Chance changes a source: columns come, go, change names, grow and are made anew, between rows. After
//! each pass the lake and the target hold what the source holds, and older snapshots what it held.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, Decimal128Array, Float32Array, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::util::display::array_value_to_string;
use datafusion::prelude::SessionContext;
use frazil::connection::Connection;
use frazil::delta::{SnapshotId, Watermark};
use frazil::lake::{
    Change, DroppedColumns, Effect, Lake, LakeSettings, LakeTable, TableMode, TableSpec, Wanted,
};
use frazil::memory::Budget;
use frazil::sync::{Context, Progress, Stream, StreamSettings, TargetRef, load};
use frazil::table::{SOURCE_COLUMN_ID, SOURCE_TYPE, TableId};
use proptest::prelude::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Int,
    Long,
    Float,
    Double,
    Short,
    Wide,
    Text,
}

impl Kind {
    fn arrow(self) -> DataType {
        match self {
            Self::Int => DataType::Int32,
            Self::Long => DataType::Int64,
            Self::Float => DataType::Float32,
            Self::Double => DataType::Float64,
            Self::Short => DataType::Decimal128(9, 2),
            Self::Wide => DataType::Decimal128(20, 2),
            Self::Text => DataType::Utf8,
        }
    }

    fn wider(self) -> Self {
        match self {
            Self::Int => Self::Long,
            Self::Float => Self::Double,
            Self::Short => Self::Wide,
            other => other,
        }
    }

    fn array(self, values: &[Option<i32>]) -> ArrayRef {
        match self {
            Self::Int => Arc::new(Int32Array::from(values.to_vec())),
            Self::Long => Arc::new(values.iter().map(|v| v.map(i64::from)).collect::<Int64Array>()),
            Self::Float => Arc::new(values.iter().map(|v| v.map(|v| v as f32)).collect::<Float32Array>()),
            Self::Double => Arc::new(values.iter().map(|v| v.map(f64::from)).collect::<Float64Array>()),
            Self::Short | Self::Wide => {
                let precision = if self == Self::Short { 9 } else { 20 };
                let cents = values.iter().map(|v| v.map(|v| i128::from(v) * 100));
                Arc::new(cents.collect::<Decimal128Array>().with_precision_and_scale(precision, 2).unwrap())
            }
            Self::Text => Arc::new(values.iter().map(|v| v.map(|v| v.to_string())).collect::<StringArray>()),
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Add(usize, Kind),
    Rename(usize, usize),
    Swap(usize, usize),
    Drop(usize),
    Anew(usize, Kind),
    Widen(usize),
    Move(usize),
    Rows(Vec<(i64, Option<i32>)>),
    Extract,
    Load,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let kind = prop_oneof![
        Just(Kind::Int),
        Just(Kind::Long),
        Just(Kind::Float),
        Just(Kind::Double),
        Just(Kind::Short),
        Just(Kind::Wide),
        Just(Kind::Text),
    ];
    let step = prop_oneof![
        2 => (0..6usize, kind.clone()).prop_map(|(name, kind)| Step::Add(name, kind)),
        2 => (0..6usize, 0..6usize).prop_map(|(at, name)| Step::Rename(at, name)),
        1 => (0..6usize, 0..6usize).prop_map(|(a, b)| Step::Swap(a, b)),
        1 => (0..6usize).prop_map(Step::Drop),
        1 => (0..6usize, kind).prop_map(|(at, kind)| Step::Anew(at, kind)),
        2 => (0..6usize).prop_map(Step::Widen),
        1 => (0..6usize).prop_map(Step::Move),
        4 => prop::collection::vec((0..12i64, prop::option::of(-1000..1000i32)), 1..6).prop_map(Step::Rows),
        4 => Just(Step::Extract),
        2 => Just(Step::Load),
    ];
    prop::collection::vec(step, 4..24)
}

/// The values of each row, by its key; NULLs and values as text.
type Rows = BTreeMap<i64, Vec<Option<String>>>;

struct Column {
    id: u32,
    name: String,
    kind: Kind,
}

struct World {
    _dir: tempfile::TempDir,
    context: Context,
    stream: Stream,
    dropped: DroppedColumns,
    columns: Vec<Column>,
    next_id: u32,
    rows: BTreeMap<i64, HashMap<u32, i32>>,
    changed: BTreeSet<i64>,
    position: u64,
    past: Vec<(SnapshotId, Vec<String>, Rows)>,
}

const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

fn budget() -> Budget {
    Budget::new(128 << 20, 1).unwrap()
}

impl World {
    async fn new(dropped: DroppedColumns) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let settings = LakeSettings {
            warehouse: dir.path().join("lake").display().to_string(),
            catalog: "filesystem".into(),
            options: BTreeMap::new(),
        };
        let lake = Lake::open(&settings).await.unwrap();
        let connection = |name: &str| {
            Connection::parse(name, &format!("sqlite://{}", dir.path().join(name).display())).unwrap()
        };
        let stream = Stream {
            name: "t".into(),
            source: connection("shop.db"),
            source_table: TableId::bare("t"),
            lake_table: TableId::new("s", "t"),
            target: Some(TargetRef { connection: connection("dwh.db"), table: TableId::bare("t") }),
            shared: None,
            group: None,
            settings: StreamSettings::default(),
        };
        let maintenance = frazil::maintain::Policy::default();
        let context = Context::new(lake, budget(), maintenance);
        let columns = vec![Column { id: 2, name: "a".into(), kind: Kind::Int }];
        Self {
            _dir: dir,
            context,
            stream,
            dropped,
            columns,
            next_id: 3,
            rows: BTreeMap::new(),
            changed: BTreeSet::new(),
            position: 0,
            past: Vec::new(),
        }
    }

    fn schema(&self) -> SchemaRef {
        let field = |name: &str, kind: DataType, id: u32| {
            let metadata = HashMap::from([
                (SOURCE_COLUMN_ID.to_owned(), format!("7.{id}")),
                (SOURCE_TYPE.to_owned(), format!("model:{kind}")),
            ]);
            Field::new(name, kind, id != 1).with_metadata(metadata)
        };
        let mut fields = vec![field("id", DataType::Int64, 1)];
        fields.extend(self.columns.iter().map(|column| field(&column.name, column.kind.arrow(), column.id)));
        Arc::new(Schema::new(fields))
    }

    fn batch(&self) -> RecordBatch {
        let keys: Vec<i64> = self.changed.iter().copied().collect();
        let mut arrays: Vec<ArrayRef> = vec![Arc::new(Int64Array::from(keys.clone()))];
        for column in &self.columns {
            let values: Vec<_> = keys.iter().map(|key| self.rows[key].get(&column.id).copied()).collect();
            arrays.push(column.kind.array(&values));
        }
        RecordBatch::try_new(self.schema(), arrays).unwrap()
    }

    fn names(&self) -> Vec<String> {
        self.columns.iter().map(|column| column.name.clone()).collect()
    }

    fn expected(&self) -> Rows {
        let row = |values: &HashMap<u32, i32>| {
            self.columns.iter().map(|column| values.get(&column.id).map(i32::to_string)).collect()
        };
        self.rows.iter().map(|(key, values)| (*key, row(values))).collect()
    }

    fn is_free(&self, name: &str) -> bool {
        self.columns.iter().all(|column| column.name != name)
    }

    async fn step(&mut self, step: &Step) {
        let at = |at: &usize| (!self.columns.is_empty()).then(|| at % self.columns.len().max(1));
        match step {
            Step::Add(name, kind) if self.is_free(NAMES[*name]) => {
                self.columns.push(Column { id: self.next_id, name: NAMES[*name].into(), kind: *kind });
                self.next_id += 1;
            }
            Step::Rename(index, name) => {
                if let Some(index) = at(index)
                    && self.is_free(NAMES[*name])
                {
                    self.columns[index].name = NAMES[*name].into();
                }
            }
            Step::Swap(a, b) => {
                if let (Some(a), Some(b)) = (at(a), at(b))
                    && a != b
                {
                    let name = self.columns[a].name.clone();
                    self.columns[a].name = std::mem::replace(&mut self.columns[b].name, name);
                }
            }
            Step::Drop(index) => {
                if let Some(index) = at(index) {
                    self.columns.remove(index);
                }
            }
            Step::Anew(index, kind) => {
                if let Some(index) = at(index) {
                    let name = self.columns[index].name.clone();
                    self.columns[index] = Column { id: self.next_id, name, kind: *kind };
                    self.next_id += 1;
                }
            }
            Step::Widen(index) => {
                if let Some(index) = at(index) {
                    self.columns[index].kind = self.columns[index].kind.wider();
                }
            }
            Step::Move(index) => {
                if let Some(index) = at(index) {
                    let column = self.columns.remove(index);
                    self.columns.insert(0, column);
                }
            }
            Step::Rows(rows) => {
                for (key, value) in rows {
                    let columns = self.columns.iter().zip(0..);
                    let values = columns.filter_map(|(column, n)| value.map(|value| (column.id, value + n)));
                    let values = values.collect();
                    self.rows.insert(*key, values);
                    self.changed.insert(*key);
                }
            }
            Step::Extract => self.extract().await,
            Step::Load => self.load().await,
            Step::Add(..) => {}
        }
    }

    async fn table(&self) -> LakeTable {
        self.context.lake.table(&self.stream.lake_table).await.unwrap().unwrap()
    }

    async fn extract(&mut self) {
        let schema = self.schema();
        let mut table = match self.context.lake.table(&self.stream.lake_table).await.unwrap() {
            Some(table) => table,
            None => {
                let spec = TableSpec {
                    id: self.stream.lake_table.clone(),
                    schema: schema.clone(),
                    mode: TableMode::Merge,
                    key: vec!["id".into()],
                    partition_by: vec!["bucket(2, id)".into()],
                    format_version: None,
                    sort_by: vec!["id desc".into()],
                };
                self.context.lake.create(spec).await.unwrap()
            }
        };
        let wanted = Wanted { dropped: self.dropped, ..Wanted::columns(&schema) };
        let evolution = table.evolution(&wanted).unwrap();
        table.evolve(&evolution).await.unwrap();
        let again = table.evolution(&wanted).unwrap();
        assert!(again.is_nothing() && again.steps.is_empty(), "{:?}", again.steps);
        if !self.changed.is_empty() {
            let mut writer = table.writer(budget()).unwrap();
            writer.write(&self.batch()).await.unwrap();
            let change = Change {
                files: writer.finish().await.unwrap(),
                effect: Effect::Upsert,
                from: (self.position > 0).then(|| Watermark::new(self.position.to_string())),
                to: Watermark::new((self.position + 1).to_string()),
                summary: BTreeMap::new(),
            };
            let snapshot = table.commit(change, budget()).await.unwrap();
            self.position += 1;
            self.changed.clear();
            self.past.push((snapshot, self.names(), self.expected()));
        }
        assert_eq!(read(&table, None, &self.names()).await, self.expected());
    }

    /// The target becomes what the lake is.
    async fn load(&self) {
        if self.past.is_empty() {
            return;
        }
        let table = self.table().await;
        load(&self.context, &self.stream, &Arc::new(Progress::default())).await.unwrap();
        // By the lake's columns: the source may have moved on since.
        let names: Vec<String> =
            table.schema().unwrap().fields().iter().map(|field| field.name().clone()).collect();
        let names: Vec<String> =
            names.into_iter().filter(|name| name != "id" && !name.contains("_dropped")).collect();
        let lake = read(&table, None, &names).await;
        let file = self.stream.target.as_ref().unwrap().connection.expose().path().to_owned();
        let db = rusqlite::Connection::open(file).unwrap();
        let list: String = names.iter().map(|name| format!(", \"{name}\"")).collect();
        let mut statement = db.prepare(&format!("select id{list} from t")).unwrap();
        let value = |value: rusqlite::types::Value| match value {
            rusqlite::types::Value::Null => None,
            rusqlite::types::Value::Integer(value) => Some(value.to_string()),
            rusqlite::types::Value::Real(value) => Some(plain(&value.to_string())),
            rusqlite::types::Value::Text(value) => Some(plain(&value)),
            rusqlite::types::Value::Blob(_) => panic!("no column is binary"),
        };
        let found: Rows = statement
            .query_map([], |row| {
                let values =
                    (1..=names.len()).map(|i| Ok(value(row.get(i)?))).collect::<rusqlite::Result<_>>()?;
                Ok((row.get(0)?, values))
            })
            .unwrap()
            .collect::<rusqlite::Result<_>>()
            .unwrap();
        assert_eq!(found, lake, "the target, columns {names:?}");
    }

    async fn end(&mut self) {
        self.extract().await;
        self.load().await;
        let table = self.table().await;
        for (snapshot, names, rows) in &self.past {
            assert_eq!(read(&table, Some(*snapshot), names).await, *rows, "as of {snapshot}");
        }
    }
}

/// `12.00`, `12.0` and `12` are one number.
fn plain(text: &str) -> String {
    match text.split_once('.') {
        Some((whole, part)) if part.chars().all(|c| c == '0') => whole.to_owned(),
        _ => text.to_owned(),
    }
}

async fn read(table: &LakeTable, at: Option<SnapshotId>, names: &[String]) -> Rows {
    let session = SessionContext::new();
    session.register_table("t", table.provider(at).await.unwrap()).unwrap();
    let list: String = names.iter().map(|name| format!(", \"{name}\"")).collect();
    let batches = session.sql(&format!("select id{list} from t")).await.unwrap().collect().await.unwrap();
    let mut rows = Rows::new();
    for batch in batches {
        for row in 0..batch.num_rows() {
            let cell = |column: &ArrayRef| {
                (!column.is_null(row)).then(|| plain(&array_value_to_string(column, row).unwrap()))
            };
            let mut cells = batch.columns().iter().map(cell);
            let key = cells.next().flatten().unwrap().parse().unwrap();
            assert!(rows.insert(key, cells.collect()).is_none(), "key {key} twice");
        }
    }
    rows
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn lake_and_target_follow_any_source(steps in steps(), drop in any::<bool>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let dropped = if drop { DroppedColumns::Drop } else { DroppedColumns::Keep };
            let mut world = World::new(dropped).await;
            for step in &steps {
                world.step(step).await;
            }
            world.end().await;
        });
    }
}
