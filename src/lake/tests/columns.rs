//! Columns are found by id, nested ones too, and files by what their columns hold.

use super::*;

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

/// A table that is dropped and made anew within a minute counts its columns from one again: their ids must
/// not be taken for those of the one before.
#[tokio::test]
async fn columns_of_two_tables_have_different_ids() {
    let (one, other) = (History::new(TableMode::Merge).await, History::new(TableMode::Merge).await);
    let ids = |history: &History| -> Vec<String> {
        let columns = history.table.columns();
        columns.fields().iter().map(|field| field.metadata()[crate::table::LAKE_COLUMN_ID].clone()).collect()
    };
    assert!(ids(&one).iter().all(|id| !ids(&other).contains(id)), "{:?} {:?}", ids(&one), ids(&other));
}
