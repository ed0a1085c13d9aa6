//! What lies in data files and manifests, judged by iceberg's own reader and by arithmetic.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::*;
use arrow::datatypes::*;
use frazil::delta::Watermark;
use frazil::lake::{Change, Effect, Lake, LakeSettings, LakeTable, TableMode, TableSpec, WrittenFile};
use frazil::memory::Budget;
use frazil::table::TableId;
use futures::TryStreamExt;
use iceberg::io::FileIO;
use iceberg::spec::{Datum, Literal};

use crate::fixture;

async fn lake(folder: &tempfile::TempDir) -> Lake {
    let settings = LakeSettings {
        warehouse: folder.path().display().to_string(),
        catalog: "filesystem".into(),
        options: BTreeMap::new(),
    };
    Lake::open(&settings).await.unwrap()
}

async fn create(lake: &Lake, schema: SchemaRef, partition_by: &[&str]) -> LakeTable {
    let spec = TableSpec {
        id: TableId::new("s", "t"),
        schema,
        mode: TableMode::Merge,
        key: vec!["id".into()],
        partition_by: partition_by.iter().map(ToString::to_string).collect(),
        format_version: None,
        sort_by: Vec::new(),
    };
    lake.create(spec).await.unwrap()
}

async fn write(table: &LakeTable, batches: &[RecordBatch]) -> Vec<WrittenFile> {
    let mut writer = table.writer(Budget::new(128 << 20, 2).unwrap()).unwrap();
    for batch in batches {
        writer.write(batch).await.unwrap();
    }
    writer.finish().await.unwrap()
}

async fn append(table: &mut LakeTable, files: Vec<WrittenFile>) {
    let change = Change {
        files,
        effect: Effect::Append,
        from: table.position().unwrap().map(|position| position.watermark),
        to: Watermark::new(format!("{}", table.next_sequence_number())),
        summary: BTreeMap::new(),
    };
    table.commit(change, Budget::new(128 << 20, 2).unwrap()).await.unwrap();
}

/// All rows, by iceberg's own reader over its own file access. Columns stay in file order, where that
/// reader is right.
async fn read(table: &LakeTable) -> Vec<RecordBatch> {
    let folder = table.location().strip_prefix("file://").unwrap().to_owned() + "/metadata";
    let hint = std::fs::read_to_string(format!("{folder}/version-hint.text")).unwrap();
    let ident = iceberg::TableIdent::from_strs(["s", "t"]).unwrap();
    let file = format!("{folder}/v{hint}.metadata.json");
    let table = iceberg::table::StaticTable::from_metadata_file(&file, ident, FileIO::new_with_fs());
    let scan = table.await.unwrap().scan().build().unwrap();
    scan.to_arrow().await.unwrap().try_collect().await.unwrap()
}

fn marked(name: &str, kind: DataType, extension: &str) -> Field {
    Field::new(name, kind, true)
        .with_metadata(HashMap::from([("ARROW:extension:name".to_owned(), extension.to_owned())]))
}

/// A column, its rows, and the bounds that a manifest should give for it.
type ColumnWithBounds = (Field, ArrayRef, Option<(Datum, Datum)>);

#[tokio::test(flavor = "multi_thread")]
async fn bounds_hold_for_every_type() {
    let long = "x".repeat(100);
    let columns: Vec<ColumnWithBounds> = vec![
        (
            Field::new("id", DataType::Int64, false),
            Arc::new(Int64Array::from(vec![3, -7, 5])),
            Some((Datum::long(-7), Datum::long(5))),
        ),
        (
            Field::new("small", DataType::Int16, true),
            Arc::new(Int16Array::from(vec![Some(-2), None, Some(4)])),
            Some((Datum::int(-2), Datum::int(4))),
        ),
        (
            Field::new("flag", DataType::Boolean, true),
            Arc::new(BooleanArray::from(vec![Some(true), None, Some(true)])),
            Some((Datum::bool(true), Datum::bool(true))),
        ),
        (
            Field::new("double", DataType::Float64, true),
            Arc::new(Float64Array::from(vec![f64::NAN, -1.5, f64::INFINITY])),
            Some((Datum::double(-1.5), Datum::double(f64::INFINITY))),
        ),
        (
            Field::new("zero", DataType::Float32, true),
            Arc::new(Float32Array::from(vec![0.0, -0.0, 0.0])),
            Some((Datum::float(-0.0), Datum::float(0.0))),
        ),
        (
            Field::new("only_nan", DataType::Float64, true),
            Arc::new(Float64Array::from(vec![Some(f64::NAN), None, Some(f64::NAN)])),
            None,
        ),
        (
            Field::new("text", DataType::Utf8, true),
            Arc::new(StringArray::from(vec![Some("aa"), None, Some(long.as_str())])),
            Some((Datum::string("aa"), Datum::string("xxxxxxxxxxxxxxxy"))),
        ),
        (
            Field::new("bytes", DataType::Binary, true),
            Arc::new(BinaryArray::from(vec![[0xff; 40].as_slice(), &[1], &[]])),
            None,
        ),
        (
            Field::new("money", DataType::Decimal128(9, 2), true),
            Arc::new(Decimal128Array::from(vec![-5, 7, 0]).with_precision_and_scale(9, 2).unwrap()),
            Some(decimals(-5, 7, 9, 2)),
        ),
        (
            Field::new("wide", DataType::Decimal128(38, 4), true),
            Arc::new(
                Decimal128Array::from(vec![-(10i128.pow(37)), 1, 10i128.pow(37)])
                    .with_precision_and_scale(38, 4)
                    .unwrap(),
            ),
            Some(decimals(-(10i128.pow(37)), 10i128.pow(37), 38, 4)),
        ),
        (
            Field::new("middle", DataType::Decimal128(18, 0), true),
            Arc::new(Decimal128Array::from(vec![-128, 127, 1]).with_precision_and_scale(18, 0).unwrap()),
            Some(decimals(-128, 127, 18, 0)),
        ),
        (
            marked("token", DataType::FixedSizeBinary(16), "arrow.uuid"),
            Arc::new(
                FixedSizeBinaryArray::try_from_iter([[0u8; 16], [0xff; 16], [1; 16]].into_iter()).unwrap(),
            ),
            Some((Datum::uuid(uuid::Uuid::nil()), Datum::uuid(uuid::Uuid::max()))),
        ),
        (
            Field::new("hash", DataType::FixedSizeBinary(3), true),
            Arc::new(
                FixedSizeBinaryArray::try_from_iter([[1u8, 2, 3], [9, 9, 9], [0, 0, 1]].into_iter()).unwrap(),
            ),
            Some((Datum::fixed([0, 0, 1]), Datum::fixed([9, 9, 9]))),
        ),
        (
            Field::new("day", DataType::Date32, true),
            Arc::new(Date32Array::from(vec![-1, 20_000, 0])),
            Some((Datum::date(-1), Datum::date(20_000))),
        ),
        (
            Field::new("time", DataType::Time64(TimeUnit::Microsecond), true),
            Arc::new(Time64MicrosecondArray::from(vec![0, 86_399_999_999, 5])),
            Some((Datum::time_micros(0).unwrap(), Datum::time_micros(86_399_999_999).unwrap())),
        ),
        (
            Field::new("at", DataType::Timestamp(TimeUnit::Microsecond, None), true),
            Arc::new(TimestampMicrosecondArray::from(vec![-1, 1, 0])),
            Some((Datum::timestamp_micros(-1), Datum::timestamp_micros(1))),
        ),
        (
            Field::new("instant", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
            Arc::new(TimestampMicrosecondArray::from(vec![-1, 1, 0]).with_timezone("UTC")),
            Some((Datum::timestamptz_micros(-1), Datum::timestamptz_micros(1))),
        ),
        (Field::new("nothing", DataType::Utf8, true), new_null_array(&DataType::Utf8, 3), None),
    ];
    let schema = Arc::new(Schema::new(columns.iter().map(|(field, ..)| field.clone()).collect::<Vec<_>>()));
    let batch =
        RecordBatch::try_new(schema.clone(), columns.iter().map(|(_, column, _)| column.clone()).collect())
            .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut table = create(&lake(&folder).await, schema, &[]).await;
    let files = write(&table, std::slice::from_ref(&batch)).await;

    let file = &files[0].file;
    for (i, (field, column, bounds)) in columns.iter().enumerate() {
        let (id, name) = (i as i32 + 1, field.name());
        let (lower, upper) = (file.lower_bounds().get(&id).cloned(), file.upper_bounds().get(&id).cloned());
        match bounds {
            Some((min, max)) => assert_eq!((lower, upper), (Some(min.clone()), Some(max.clone())), "{name}"),
            None if name == "bytes" => {
                assert_eq!(
                    (lower, upper),
                    (Some(Datum::binary([])), None),
                    "no bytes of that length are greater"
                );
            }
            None => assert_eq!((lower, upper), (None, None), "{name}"),
        }
        assert_eq!(file.value_counts()[&id], 3, "{name}");
        assert_eq!(file.null_value_counts()[&id], column.null_count() as u64, "{name}");
        assert!(file.column_sizes()[&id] > 0, "{name}");
    }
    assert_eq!(file.nan_value_counts(), &HashMap::from([(4, 1), (5, 0), (6, 2)]));
    assert_eq!(file.split_offsets(), Some([4].as_slice()));
    let size = std::fs::metadata(file.file_path().strip_prefix("file://").unwrap()).unwrap().len();
    assert_eq!(file.file_size_in_bytes(), size);

    append(&mut table, files).await;
    let found = read(&table).await;
    assert_eq!(found.len(), 1);
    for (expected, found) in batch.columns().iter().zip(found[0].columns()) {
        let expected = arrow::compute::cast(expected, found.data_type()).unwrap();
        assert_eq!(&expected, found);
    }
}

fn decimals(min: i128, max: i128, precision: u32, scale: u32) -> (Datum, Datum) {
    let kind = iceberg::spec::PrimitiveType::Decimal { precision, scale };
    let datum = |value: i128| Datum::try_from_bytes(&value.to_be_bytes(), kind.clone()).unwrap();
    (datum(min), datum(max))
}

#[tokio::test(flavor = "multi_thread")]
async fn nested_values_come_back() {
    let mut list = ListBuilder::new(Int32Builder::new());
    list.append_value([Some(1), None]);
    list.append_null();
    list.append_value([]);
    let list = list.finish();
    let point = StructArray::from(vec![
        (
            Arc::new(Field::new("x", DataType::Float64, true)),
            Arc::new(Float64Array::from(vec![Some(1.0), None, Some(f64::NAN)])) as ArrayRef,
        ),
        (Arc::new(Field::new("tag", DataType::Utf8, true)), Arc::new(StringArray::from(vec!["a", "b", "c"]))),
    ]);
    let mut map = MapBuilder::new(None, StringBuilder::new(), Int64Builder::new());
    map.keys().append_value("k");
    map.values().append_value(1);
    map.append(true).unwrap();
    map.append(false).unwrap();
    map.append(true).unwrap();
    let batch = RecordBatch::try_from_iter_with_nullable([
        ("id", Arc::new(Int64Array::from(vec![1, 2, 3])) as ArrayRef, false),
        ("list", Arc::new(list), true),
        ("point", Arc::new(point), true),
        ("map", Arc::new(map.finish()), true),
    ])
    .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut table = create(&lake(&folder).await, batch.schema(), &[]).await;
    let files = write(&table, std::slice::from_ref(&batch)).await;
    assert_eq!(files[0].file.nan_value_counts().values().sum::<u64>(), 1);
    append(&mut table, files).await;
    let found = read(&table).await;
    let pretty =
        |batches: &[RecordBatch]| arrow::util::pretty::pretty_format_batches(batches).unwrap().to_string();
    assert_eq!(pretty(&found), pretty(&[batch]));
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_divide_rows_by_the_rules_of_iceberg() {
    let day = 86_400_000_000i64;
    let instants = TimestampMicrosecondArray::from(vec![Some(-1), Some(0), Some(day), None]);
    let instants: ArrayRef = Arc::new(instants.with_timezone("UTC"));
    let batch = RecordBatch::try_from_iter_with_nullable([
        ("id", Arc::new(Int64Array::from(vec![34, 34, 34, 34])) as ArrayRef, false),
        ("at", instants.clone(), true),
        ("at_m", instants.clone(), true),
        ("at_y", instants.clone(), true),
        ("at_h", instants, true),
        (
            "name",
            Arc::new(StringArray::from(vec![Some("iceberg/a b%"), Some("iceberg"), None, Some("ice")])),
            true,
        ),
        ("raw", Arc::new(BinaryArray::from(vec![[1u8, 2].as_slice(), &[1, 2], &[1, 2], &[1, 2]])), true),
        (
            "price",
            Arc::new(
                Decimal128Array::from(vec![1065, -1, 1065, 1065]).with_precision_and_scale(9, 2).unwrap(),
            ),
            true,
        ),
    ])
    .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let terms = [
        "day(at)",
        "bucket(16, id)",
        "truncate(5, name)",
        "raw",
        "truncate(50, price)",
        "month(at_m)",
        "year(at_y)",
        "hour(at_h)",
    ];
    let mut table = create(&lake(&folder).await, batch.schema(), &terms).await;
    let files = write(&table, std::slice::from_ref(&batch)).await;
    assert_eq!(files.len(), 4);
    // bucket(34) of the specification's appendix: hash 2017239379, 16 buckets → 3.
    let partition = |day: Option<i32>,
                     name: Option<&str>,
                     price: i128,
                     month: Option<i32>,
                     year: Option<i32>,
                     hour: Option<i32>| {
        vec![
            day.map(Literal::date),
            Some(Literal::int(2_017_239_379 % 16)),
            name.map(Literal::string),
            Some(Literal::binary(vec![1, 2])),
            Some(Literal::decimal(price)),
            month.map(Literal::int),
            year.map(Literal::int),
            hour.map(Literal::int),
        ]
    };
    let expected = [
        partition(Some(-1), Some("icebe"), 1050, Some(-1), Some(-1), Some(-1)),
        partition(Some(0), Some("icebe"), -50, Some(0), Some(0), Some(0)),
        partition(Some(1), None, 1050, Some(0), Some(0), Some(24)),
        partition(None, Some("ice"), 1050, None, None, None),
    ];
    for expected in expected {
        let found = files.iter().any(|file| {
            file.file.partition().iter().map(|value| value.cloned()).collect::<Vec<_>>() == expected
        });
        let all: Vec<_> = files.iter().map(|file| file.file.partition()).collect();
        assert!(found, "{expected:?} is not in {all:?}");
    }
    for file in &files {
        let name = file.file.file_path().strip_prefix("file://").unwrap();
        assert!(!name.contains(['%', ' ']), "{name}: readers disagree on such characters");
    }
    append(&mut table, files).await;
    assert_eq!(read(&table).await.iter().map(RecordBatch::num_rows).sum::<usize>(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_partitions_than_files_may_be_open() {
    let folder = tempfile::tempdir().unwrap();
    let schema = Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, false)]));
    let mut table = create(&lake(&folder).await, schema.clone(), &["truncate(10, id)"]).await;
    let batches: Vec<_> = (0..3)
        .map(|i| {
            let ids = Int64Array::from_iter_values((0..2000).map(|id| id * 3 + i));
            RecordBatch::try_new(schema.clone(), vec![Arc::new(ids)]).unwrap()
        })
        .collect();
    let files = write(&table, &batches).await;
    append(&mut table, files).await;
    let mut ids: Vec<i64> = read(&table)
        .await
        .iter()
        .flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec())
        .collect();
    ids.sort_unstable();
    assert!(ids.iter().copied().eq(0..6000), "each row once");
}

/// Several row groups and files' worth of rows, on an S3 server, with runners that race.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_same_holds_on_s3() {
    let Some(s3) = fixture::s3().await else { return };
    let settings =
        LakeSettings { warehouse: s3.warehouse("lake"), catalog: "filesystem".into(), options: s3.options() };
    let lake = Lake::open(&settings).await.unwrap();
    assert!(lake.tables().await.unwrap().is_empty());
    let schema = Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("noise", DataType::Utf8, true),
    ]));
    let mut table = create(&lake, schema.clone(), &[]).await;
    // Text that does not compress makes the upload one of many parts.
    let batch = |from: i64| {
        let ids = Int64Array::from_iter_values(from..from + 20_000);
        let noise = StringArray::from_iter_values(ids.values().iter().map(|id| {
            let high = uuid::Uuid::new_v4();
            format!("{high}{}{id}", uuid::Uuid::new_v4())
        }));
        RecordBatch::try_new(schema.clone(), vec![Arc::new(ids), Arc::new(noise)]).unwrap()
    };
    let batches: Vec<_> = (0..15).map(|i| batch(i * 20_000)).collect();
    let files = write(&table, &batches).await;
    assert!(files[0].file.split_offsets().unwrap().len() > 1, "several row groups");
    append(&mut table, files).await;
    assert_eq!(lake.tables().await.unwrap(), [TableId::new("s", "t")]);

    for round in 0..5 {
        table.reload().await.unwrap();
        let runners = (0..8).map(|i| {
            let (mut table, batch) = (table.clone(), batch(1_000_000 + round * 1000 + i).slice(0, 1));
            tokio::spawn(async move {
                let files = write(&table, &[batch]).await;
                let change = Change {
                    files,
                    effect: Effect::Append,
                    from: table.position().unwrap().map(|position| position.watermark),
                    to: Watermark::new(format!("{round}/{i}")),
                    summary: BTreeMap::new(),
                };
                table.commit(change, Budget::new(128 << 20, 2).unwrap()).await
            })
        });
        let outcomes = futures::future::join_all(runners).await;
        let won = outcomes.iter().filter(|outcome| outcome.as_ref().unwrap().is_ok()).count();
        assert_eq!(won, 1, "{outcomes:?}");
    }
    table.reload().await.unwrap();
    let total = &table.snapshots()[0].summary["total-records"];
    assert_eq!(total, "300005");

    let wrong = [("s3.secret-access-key".to_owned(), "wrong".to_owned())];
    let options = s3.options().into_iter().chain(wrong).collect();
    let lake = Lake::open(&LakeSettings { options, ..settings.clone() }).await.unwrap();
    let error = lake.table(&TableId::new("s", "t")).await.err().unwrap();
    assert_eq!(error.kind(), frazil::ErrorKind::Permission, "{error:?}");
    let warehouse = "s3://no-such-bucket-here/lake".to_owned();
    let lake = Lake::open(&LakeSettings { warehouse, ..settings }).await.unwrap();
    match lake.table(&TableId::new("s", "t")).await {
        Ok(found) => assert!(found.is_none()),
        Err(error) => assert_eq!(error.kind(), frazil::ErrorKind::Config, "{error:?}"),
    }
}
