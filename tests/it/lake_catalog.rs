//! Tables of the embedded catalog: made, found, damaged, raced for.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use flate2::Compression;
use flate2::write::GzEncoder;
use frazil::ErrorKind;
use frazil::lake::{Lake, LakeSettings, LakeTable, TableMode, TableSpec, Wanted};
use frazil::table::TableId;

struct Place {
    _dir: tempfile::TempDir,
    lake: Lake,
}

impl Place {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let settings = LakeSettings {
            warehouse: dir.path().join("a lake").display().to_string(),
            catalog: "filesystem".into(),
            options: BTreeMap::new(),
        };
        Self { lake: Lake::open(&settings).await.unwrap(), _dir: dir }
    }

    async fn create(&self, id: &TableId) -> frazil::Result<LakeTable> {
        let schema = Schema::new(vec![
            Field::new("id", DataType::Int64, true),
            Field::new("name", DataType::Utf8, true),
        ]);
        self.lake
            .create(TableSpec {
                id: id.clone(),
                schema: Arc::new(schema),
                mode: TableMode::Merge,
                key: vec!["id".into()],
                partition_by: vec!["bucket(4, id)".into()],
                format_version: None,
                sort_by: Vec::new(),
            })
            .await
    }
}

fn metadata(table: &LakeTable, file: &str) -> PathBuf {
    PathBuf::from(table.location().strip_prefix("file://").unwrap()).join("metadata").join(file)
}

#[tokio::test]
async fn a_table_that_was_made_is_found() {
    let place = Place::new().await;
    assert!(place.lake.tables().await.unwrap().is_empty());
    for id in [TableId::new("sales dept", "Order/Items"), TableId::bare("größe"), TableId::new("a", "b.c")]
    {
        assert!(place.lake.table(&id).await.unwrap().is_none());
        let made = place.create(&id).await.unwrap();
        let found = place.lake.table(&id).await.unwrap().unwrap();
        assert_eq!(found.uuid(), made.uuid());
        assert_eq!((found.mode(), found.key()), (TableMode::Merge, vec!["id".to_owned()]));
        assert!(!found.schema().unwrap().field(0).is_nullable(), "a key is required");
        assert_eq!(found.current(), None);
        assert_eq!(place.create(&id).await.err().unwrap().kind(), ErrorKind::Conflict);
    }
    let names: Vec<_> = place.lake.tables().await.unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(names, ["a.b.c", "main.größe", "sales dept.Order/Items"]);
}

#[tokio::test]
async fn a_lost_or_wrong_hint_costs_nothing_but_a_listing() {
    let place = Place::new().await;
    let id = TableId::new("s", "t");
    let table = place.create(&id).await.unwrap();
    let hint = metadata(&table, "version-hint.text");
    for text in ["", "7", "not a number"] {
        std::fs::write(&hint, text).unwrap();
        assert!(place.lake.table(&id).await.unwrap().is_some(), "{text}");
    }
    std::fs::remove_file(&hint).unwrap();
    assert!(place.lake.table(&id).await.unwrap().is_some());
    assert_eq!(place.create(&id).await.err().unwrap().kind(), ErrorKind::Conflict);
}

#[tokio::test]
async fn damaged_and_newer_metadata_say_what_to_do() {
    let place = Place::new().await;
    let id = TableId::new("s", "t");
    let table = place.create(&id).await.unwrap();
    let file = metadata(&table, "v1.metadata.json");
    let text = std::fs::read_to_string(&file).unwrap();

    for newer in [
        text.replace("\"format-version\":2", "\"format-version\":4"),
        text.replace("\"frazil.format\":\"1\"", "\"frazil.format\":\"2\""),
    ] {
        assert_ne!(newer, text);
        std::fs::write(&file, newer).unwrap();
        let error = place.lake.table(&id).await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(error.to_string().contains("v1.metadata.json"), "{error}");
    }

    // The version after a good one is cut short: the message says how to go back, and it works.
    std::fs::write(&file, &text).unwrap();
    let next = metadata(&table, "v2.metadata.json");
    std::fs::write(&next, &text[..text.len() / 2]).unwrap();
    let error = place.lake.table(&id).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.hint_text().unwrap().contains("delete it to go back to v1"), "{error:?}");
    std::fs::remove_file(&next).unwrap();
    assert!(place.lake.table(&id).await.unwrap().is_some());
}

/// As Java leaves them with `write.metadata.compression-codec: gzip`; two writers on one version meet.
#[tokio::test(flavor = "multi_thread")]
async fn compressed_metadata_is_read_and_gone_on_with() {
    let place = Place::new().await;
    let id = TableId::new("s", "t");
    let table = place.create(&id).await.unwrap();
    let text = std::fs::read_to_string(metadata(&table, "v1.metadata.json")).unwrap();
    let property = "\"properties\":{\"write.metadata.compression-codec\":\"gzip\",";
    let text = text.replace("\"properties\":{", property);
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(text.as_bytes()).unwrap();
    std::fs::write(metadata(&table, "v2.gz.metadata.json"), gzip.finish().unwrap()).unwrap();

    let mut one = place.lake.table(&id).await.unwrap().unwrap();
    let mut other = place.lake.table(&id).await.unwrap().unwrap();
    add_column(&mut one, "more").await.unwrap();
    let written = std::fs::read(metadata(&table, "v3.gz.metadata.json")).unwrap();
    assert_eq!(written[..2], [0x1f, 0x8b]);
    assert!(!metadata(&table, "v3.metadata.json").exists());
    let late = add_column(&mut other, "else").await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Conflict, "{late:?}");
    // Without a hint, by a listing.
    std::fs::remove_file(metadata(&table, "version-hint.text")).unwrap();
    let found = place.lake.table(&id).await.unwrap().unwrap();
    assert!(found.schema().unwrap().field_with_name("more").is_ok());
    assert!(place.lake.drop_table(&id).await.unwrap());
    assert!(place.lake.table(&id).await.unwrap().is_none());
    assert!(!metadata(&table, "v3.gz.metadata.json").exists());
    place.create(&id).await.unwrap();
}

async fn add_column(table: &mut LakeTable, name: &str) -> frazil::Result<()> {
    let mut fields = table.schema()?.fields().to_vec();
    fields.push(Arc::new(Field::new(name, DataType::Int32, true)));
    let schema = Arc::new(Schema::new(fields));
    let evolution = table.evolution(&Wanted::columns(&schema))?;
    table.evolve(&evolution).await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_creators_one_wins() {
    let place = Place::new().await;
    let id = TableId::new("s", "raced");
    let outcomes = futures::future::join_all((0..8).map(|_| place.create(&id))).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    for error in outcomes.into_iter().filter_map(Result::err) {
        assert_eq!(error.kind(), ErrorKind::Conflict);
    }
}
