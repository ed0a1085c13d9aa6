//! What only format version 3 has: row lineage, damaged deletion vectors, nanoseconds, defaults.

use arrow::array::TimestampNanosecondArray;
use arrow::datatypes::TimeUnit;

use super::upkeep::EAGER;
use super::*;
use crate::lake::Layout;

/// Of each key: its value, its row's id, and the commit that wrote it last.
type Lineage = BTreeMap<i64, (Option<i64>, Option<i64>, Option<i64>)>;

impl History {
    async fn in_version_3(schema: SchemaRef) -> Self {
        let mut history = Self::with(TableMode::Merge, schema).await;
        history.table.raise_format(FormatVersion::V3).await.unwrap();
        history
    }

    async fn lineage(&self) -> Lineage {
        let session = self.session();
        let rows = session.read_table(self.table.provider_with_lineage(None).await.unwrap()).unwrap();
        let mut lineage = Lineage::new();
        for batch in rows.collect().await.unwrap() {
            let number = |name: &str, row: usize| {
                let column = batch.column_by_name(name).unwrap().as_primitive::<Int64Type>();
                column.is_valid(row).then(|| column.value(row))
            };
            for row in 0..batch.num_rows() {
                let of =
                    (number("v", row), number("_row_id", row), number("_last_updated_sequence_number", row));
                assert_eq!(lineage.insert(number("id", row).unwrap(), of), None);
            }
        }
        let ids: Vec<_> = lineage.values().filter_map(|(_, id, _)| *id).collect();
        let different: HashSet<_> = ids.iter().collect();
        assert_eq!(ids.len(), different.len(), "two rows with one id: {lineage:?}");
        lineage
    }
}

/// What happens to rows.
#[derive(Debug, Clone)]
enum Event {
    Upsert(Vec<(i64, Option<i64>)>),
    Delete(Vec<i64>),
    Move {
        sort: bool,
    },
    /// Rows are upserted between the plan of a move and the move.
    MoveBeside(Vec<(i64, Option<i64>)>),
    Idle,
}

fn event() -> impl Strategy<Value = Event> {
    let key = 0..12_i64;
    let rows = prop::collection::vec((key.clone(), prop::option::of(0..100_i64)), 1..8);
    prop_oneof![
        4 => rows.clone().prop_map(Event::Upsert),
        2 => prop::collection::vec(key, 1..4).prop_map(Event::Delete),
        3 => any::<bool>().prop_map(|sort| Event::Move { sort }),
        3 => rows.prop_map(Event::MoveBeside),
        1 => Just(Event::Idle),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// Also of a table that was raised to version 3 at some moment, and gave its rows ids then.
    #[test]
    fn a_row_keeps_its_id_until_it_is_replaced(
        events in prop::collection::vec(event(), 1..8),
        raise_at in 0..4_usize,
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let mut history = History::new(TableMode::Merge).await;
            let mut known = Lineage::new();
            for (number, event) in events.iter().enumerate() {
                if number == raise_at {
                    history.table.raise_format(FormatVersion::V3).await.unwrap();
                }
                if history.table.current().is_none() && !matches!(event, Event::Upsert(_)) {
                    continue;
                }
                let mut new = HashSet::new();
                let mut upserted_by = None;
                match event {
                    Event::Upsert(rows) => {
                        new = rows.iter().map(|(key, _)| *key).collect();
                        history.upsert(rows).await;
                        upserted_by = Some(history.table.table.metadata().last_sequence_number());
                    }
                    Event::MoveBeside(rows) => {
                        let mut maintainer = history.table.clone();
                        let plans = maintainer.plan_rewrites(EAGER).await.unwrap();
                        new = rows.iter().map(|(key, _)| *key).collect();
                        history.upsert(rows).await;
                        upserted_by = Some(history.table.table.metadata().last_sequence_number());
                        for plan in &plans {
                            maintainer.rewrite(plan, budget()).await.unwrap();
                        }
                        history.table.reload().await.unwrap();
                    }
                    Event::Delete(keys) => {
                        known.retain(|key, _| !keys.contains(key));
                        history.delete(keys).await;
                    }
                    Event::Move { sort } => {
                        history.maintain(Layout { sort: *sort, ..EAGER }).await;
                        // A table that was just raised gives ids with the next commit.
                        history.upsert(&[]).await;
                    }
                    Event::Idle => {
                        history.upsert(&[]).await;
                    }
                }
                let now = history.lineage().await;
                let is_v3 = history.table.format_version() == FormatVersion::V3;
                let highest = known.values().filter_map(|(_, id, _)| *id).max();
                for (key, (value, id, updated)) in &now {
                    prop_assert_eq!(id.is_some(), is_v3, "key {}", key);
                    match known.get(key) {
                        Some((before, Some(known_id), known_updated)) if !new.contains(key) => {
                            prop_assert_eq!((before, Some(*known_id), known_updated), (value, *id, updated));
                        }
                        _ if new.contains(key) && is_v3 => {
                            prop_assert!(id > &highest, "key {}: {:?} after {:?}", key, id, highest);
                            prop_assert_eq!(*updated, upserted_by);
                        }
                        _ => {}
                    }
                }
                prop_assert_eq!(known.keys().filter(|key| !now.contains_key(key)).count(), 0);
                known = now;
            }
            Ok(())
        })?;
    }
}

/// Each vector in a file of its own, as readers want them.
#[tokio::test]
async fn deletes_that_came_meanwhile_become_vectors_of_the_new_files() {
    let mut history = History::in_version_3(columns()).await;
    for first in [0, 10, 20] {
        history.upsert(&(first..first + 10).map(|id| (id, Some(id))).collect::<Vec<_>>()).await;
    }
    history.upsert(&[(5, Some(-5)), (15, Some(-15))]).await;
    let mut maintainer = history.table.clone();
    let layout = Layout { file_bytes: Some(1), ..EAGER };
    let plans = maintainer.plan_rewrites(layout).await.unwrap();
    assert!(plans.len() > 1, "a new file for each old one: {}", plans.len());
    history.upsert(&[(0, None), (19, Some(1)), (15, Some(2))]).await;
    let before = history.lineage().await;
    let mut carried = 0;
    for plan in &plans {
        carried += maintainer.rewrite(plan, budget()).await.unwrap().carried_deletes;
    }
    assert_eq!(carried, 2, "0 and 19; the file of the third was not rewritten");
    history.table.reload().await.unwrap();
    assert_eq!(history.lineage().await, before);
    let files = history.table.files(None).await.unwrap();
    let vectors: Vec<_> = files.iter().filter(|file| file.content != "data").map(|it| &it.path).collect();
    assert!(vectors.iter().all(|path| path.ends_with(".puffin")), "{vectors:?}");
    assert_eq!(vectors.iter().collect::<HashSet<_>>().len(), vectors.len(), "{vectors:?}");
    history.maintain(EAGER).await;
    assert_eq!(history.files().await, (1, 0));
    assert_eq!(history.lineage().await, before);
}

/// Rows of version 2 get ids with the first commit in version 3: a rewrite that was prepared before would
/// give them others.
#[tokio::test]
async fn a_rewrite_that_rows_got_their_ids_meanwhile_is_given_up() {
    let mut history = History::new(TableMode::Merge).await;
    history.upsert(&[(1, Some(1))]).await;
    history.upsert(&[(2, Some(2))]).await;
    let mut maintainer = history.table.clone();
    let plans = maintainer.plan_rewrites(EAGER).await.unwrap();
    history.table.raise_format(FormatVersion::V3).await.unwrap();
    history.upsert(&[(3, Some(3))]).await;
    let before = history.lineage().await;
    assert_eq!(maintainer.rewrite(&plans[0], budget()).await.unwrap().snapshot, None);
    history.table.reload().await.unwrap();
    assert_eq!(history.lineage().await, before);
}

/// Manifests are merged on the way: what their entries inherited is written down then.
#[tokio::test]
async fn many_commits_later_rows_have_their_ids() {
    let mut history = History::in_version_3(columns()).await;
    for key in 0..60 {
        history.commit(&[(key, None)], Effect::Append).await;
    }
    let early = history.lineage().await;
    for key in 60..110 {
        history.commit(&[(key, None)], Effect::Append).await;
    }
    let manifests = history.table.manifests(None).await.unwrap().len();
    assert!(manifests < 100, "merged to {manifests}");
    let late = history.lineage().await;
    assert_eq!(late.len(), 110);
    assert_eq!(early, late.into_iter().take(60).collect());
}

#[tokio::test]
async fn a_damaged_deletion_vector_is_named_and_hides_nothing() {
    let mut history = History::in_version_3(columns()).await;
    let first = history.upsert(&[(1, Some(10)), (2, Some(20))]).await;
    let second = history.upsert(&[(2, Some(21))]).await;
    let files = history.table.files(None).await.unwrap();
    let vector = files.iter().find(|file| file.path.ends_with(".puffin")).unwrap();
    let local = vector.path.strip_prefix("file://").unwrap();
    let mut bytes = std::fs::read(local).unwrap();
    bytes[30] ^= 1;
    std::fs::write(local, bytes).unwrap();
    let said = history.sql("select * from t").await;
    assert!(said.starts_with("corrupt: a deletion vector is damaged (file: "), "{said}");
    let error = history.table.delta(Some(first), second).await.map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let files = history.write(&[(1, None)]).await;
    let change = Change {
        files,
        effect: Effect::Upsert,
        from: Some(Watermark::new("2")),
        to: Watermark::new("3"),
        summary: BTreeMap::new(),
    };
    let error = history.table.commit(change, budget()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(history.read(Some(first)).await.len(), 2);
}

#[tokio::test]
async fn a_table_is_raised_once_and_never_back() {
    let mut history = History::new(TableMode::Merge).await;
    let first = history.upsert(&[(1, Some(10)), (2, Some(20)), (3, None)]).await;
    let second = history.upsert(&[(2, Some(21))]).await;
    let note = history.table.raise_format(FormatVersion::V3).await.unwrap();
    assert_eq!(note.as_deref(), Some("the lake table is raised to format version 3"));
    assert_eq!(history.table.raise_format(FormatVersion::V3).await.unwrap(), None);
    let third = history.upsert(&[(1, Some(11)), (2, Some(22))]).await;
    // The list of version 2 named one file: the vector has taken its place.
    let kinds: Vec<_> = history.table.files(None).await.unwrap();
    let deletes: Vec<_> = kinds.iter().filter(|file| file.content != "data").collect();
    assert!(deletes.iter().all(|file| file.path.ends_with(".puffin")), "{deletes:?}");
    let changes = history.table.snapshots()[0].summary.clone();
    let said = ["added-dvs", "removed-position-delete-files", "total-position-deletes", "total-delete-files"]
        .map(|name| changes[name].as_str());
    assert_eq!(said, ["2", "1", "3", "2"]);
    assert_eq!(history.delta(Some(first), third).await, [(1, Some(Some(11))), (2, Some(Some(22)))]);
    assert_eq!(history.delta(Some(third), second).await, [(1, Some(Some(10))), (2, Some(Some(21)))]);
    let error = history.table.raise_format(FormatVersion::V2).await.unwrap_err();
    expect![[r#"
        config: the lake table is in format version 3, and there is no way back to 2 (table: s.t)
          hint: set `format_version: 3`, or write to a new `lake_table`"#]]
    .assert_eq(&format!("{error:?}"));
}

/// Follows a schema, and says what was done.
async fn evolve(table: &mut LakeTable, schema: &SchemaRef) -> Vec<String> {
    let evolution = table.evolution(&Wanted::columns(schema)).unwrap();
    table.evolve(&evolution).await.unwrap();
    evolution.steps
}

#[tokio::test]
async fn nanoseconds_are_kept() {
    let kind = DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into()));
    let at = Field::new("at", kind, true);
    let fields = columns().fields().iter().cloned().chain([Arc::new(at)]).collect::<Vec<_>>();
    let schema = Arc::new(Schema::new(fields));
    let refused = creation(TableSpec {
        id: TableId::bare("t"),
        schema: schema.clone(),
        mode: TableMode::Append,
        key: Vec::new(),
        partition_by: Vec::new(),
        sort_by: Vec::new(),
        format_version: None,
    });
    expect![[r#"
        unsupported: nanoseconds cannot be kept in the lake: Iceberg v2 ends at microseconds (column: at)
          hint: set `format_version: 3`, leave the column out with `columns`, or read it as text"#]]
    .assert_eq(&format!("{:?}", refused.map(drop).unwrap_err()));

    let mut history = History::in_version_3(columns()).await;
    history.upsert(&[(0, None)]).await;
    assert_eq!(
        evolve(&mut history.table, &schema).await,
        ["column `at` is new: timestamptz_ns, NULL in older rows"]
    );
    let batch = |rows: std::ops::Range<i64>| {
        let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(rows.clone()));
        let notes = StringArray::from_iter_values(rows.clone().map(|_| ""));
        let at = TimestampNanosecondArray::from_iter_values(rows.map(|id| 1_000_000_000_000_000_000 + id));
        let at = at.with_timezone("UTC");
        RecordBatch::try_new(schema.clone(), vec![Arc::new(notes), ids.clone(), ids, Arc::new(at)]).unwrap()
    };
    let mut marks = Vec::new();
    for rows in [1..5, 5..9] {
        let files = history.write_batch(&batch(rows)).await;
        marks.push(history.commit_files(files, Effect::Upsert).await);
    }
    let exactly = "select id, at from t where at = timestamptz '2001-09-09T01:46:40.000000006Z'";
    expect![[r#"
        +----+--------------------------------+
        | id | at                             |
        +----+--------------------------------+
        | 6  | 2001-09-09T01:46:40.000000006Z |
        +----+--------------------------------+
    "#]]
    .assert_eq(&history.sql(exactly).await);
    let live = history.table.live_files(None).await.unwrap();
    let id = history.table.table.metadata().current_schema().field_id_by_name("at").unwrap();
    let mut bounds: Vec<_> = live.data.iter().filter_map(|file| file.file.upper_bounds().get(&id)).collect();
    bounds.sort_by_key(|bound| bound.to_string());
    let bounds: Vec<_> = bounds.iter().map(ToString::to_string).collect();
    assert_eq!(bounds.len(), 2, "{bounds:?}");
    assert!(bounds[1].contains(".000000008"), "{bounds:?}");
    assert_eq!(history.delta(Some(marks[0]), marks[1]).await.len(), 4);
}

#[tokio::test]
async fn older_rows_have_the_default_of_a_new_column() {
    let with = |name: &str, kind: DataType, text: &str| {
        let metadata = HashMap::from([(crate::table::ADDED_DEFAULT.to_owned(), text.to_owned())]);
        Arc::new(Field::new(name, kind, true).with_metadata(metadata))
    };
    let mut history = History::in_version_3(columns()).await;
    let first = history.upsert(&[(1, Some(10)), (2, Some(20))]).await;
    let mut fields = columns().fields().to_vec();
    fields.extend([
        with("n", DataType::Int32, "5"),
        with("price", DataType::Decimal128(12, 2), "1.50"),
        with("word", DataType::Utf8, "it's"),
        with("day", DataType::Date32, "2020-02-03"),
        with("endless", DataType::Float64, "Infinity"),
    ]);
    let schema = Arc::new(Schema::new(fields));
    let notes = evolve(&mut history.table, &schema).await;
    assert_eq!(notes.last().unwrap(), "older rows have the source's default in column `day`");
    assert_eq!(evolve(&mut history.table, &schema).await, Vec::<String>::new());
    let second = history.upsert(&[(2, Some(21))]).await;
    expect![[r#"
        +----+----+---+-------+------+------------+---------+
        | id | v  | n | price | word | day        | endless |
        +----+----+---+-------+------+------------+---------+
        | 1  | 10 | 5 | 1.50  | it's | 2020-02-03 |         |
        | 2  | 21 |   |       |      |            |         |
        +----+----+---+-------+------+------------+---------+
    "#]]
    .assert_eq(&history.sql("select id, v, n, price, word, day, endless from t order by id").await);
    assert_eq!(history.sql("select id from t where n = 5").await.matches("| 1 ").count(), 1);
    // A file without the column has no statistics of it: it must not be taken for NULLs.
    assert_eq!(history.sql("select id from t where n is null").await.matches("| 2 ").count(), 1);
    assert_eq!(history.delta(Some(first), second).await, [(2, Some(Some(21)))]);
    let known = history.table.schema().unwrap();
    let text = |name: &str| {
        let field = known.field_with_name(name).unwrap();
        field.metadata().get(crate::table::ADDED_DEFAULT).cloned()
    };
    assert_eq!(text("price").as_deref(), Some("1.50"));
    assert_eq!(text("endless"), None);
}
