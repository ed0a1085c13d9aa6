//! What every catalog promises, proven on every catalog and store that runs here.
//!
//! A catalog that passes is one that the engine can be put on; a new one is a line in `suite!` and a
//! function that says where it is. `FRAZIL_TEST_COMMITS=100` runs the race of the writers in full.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use chrono::{TimeDelta, Utc};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::prelude::{SessionConfig, SessionContext};
use frazil::delta::{SnapshotId, Watermark};
use frazil::lake::catalog::{self, Catalog};
use frazil::lake::{
    CatalogSettings, Change, Effect, Lake, LakeSettings, LakeTable, RefKind, Retention, Stores, TableMode,
    TableSpec,
};
use frazil::memory::Budget;
use frazil::table::TableId;
use frazil::{ErrorKind, Result};
use futures::TryStreamExt;
use iceberg::{TableRequirement, TableUpdate};

use crate::fixture;

/// Writers that race for one table.
const WRITERS: i64 = 8;
/// Commits of each in an ordinary run.
const COMMITS: i64 = 4;

/// A catalog of one test, empty.
struct Place {
    settings: LakeSettings,
    /// A table's name may change.
    renames: bool,
    /// Of many who create a table at once, one is told that it did.
    creates_once: bool,
    /// Metadata files are ours to write and to clean away.
    keeps_files: bool,
    /// Names that it can keep beside plain ones.
    names: &'static [(&'static str, &'static str)],
    /// Servers, databases and folders that live as long as the test.
    _keep: Vec<Box<dyn Any + Send + Sync>>,
}

/// Names that are no trouble to a directory that is encoded, or to a row.
const ODD_NAMES: &[(&str, &str)] = &[
    ("main", "plain"),
    ("sales dept", "Order Items"),
    ("größe", "表 №1"),
    ("main", "dots.in.name"),
    ("main", "it's \"quoted\""),
    ("main", "50% / a=b"),
    ("MAIN", "Plain"),
];

macro_rules! suite {
    ($($catalog:ident)*) => {$(
        mod $catalog {
            suite!(@ $catalog tables_come_and_go odd_names_stay_as_they_are tables_are_renamed_where_that_is_possible
                requirements_are_checked_on_the_newest_metadata old_metadata_is_cleaned_away_when_asked
                of_many_creators_one_wins a_stale_commit_changes_nothing names_stay_where_they_are_put
                rolling_back_rewinds_for_all a_commit_on_another_branch_is_no_conflict
                many_writers_lose_and_double_nothing);
        }
    )*};
    (@ $catalog:ident $($test:ident)*) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $test() {
            if let Some(place) = super::$catalog().await {
                super::$test(&place).await;
            }
        }
    )*};
}

suite! { filesystem_on_disk filesystem_on_s3 filesystem_on_azure filesystem_on_gcs sqlite_on_disk sqlite_on_s3 postgres_on_disk rest }

async fn filesystem_on_disk() -> Option<Place> {
    let folder = tempfile::tempdir().unwrap();
    let warehouse = folder.path().join("a lake").display().to_string();
    let settings = LakeSettings { warehouse, catalog: "filesystem".into(), options: BTreeMap::new() };
    Some(Place { renames: false, ..place(settings, folder) })
}

async fn filesystem_on_s3() -> Option<Place> {
    let s3 = fixture::s3().await?;
    let settings = LakeSettings {
        warehouse: s3.warehouse("catalog"),
        catalog: "filesystem".into(),
        options: s3.options(),
    };
    Some(Place { renames: false, ..place(settings, s3) })
}

async fn filesystem_on_azure() -> Option<Place> {
    let azurite = fixture::azurite().await?;
    let settings = LakeSettings {
        warehouse: azurite.warehouse("catalog"),
        catalog: "filesystem".into(),
        options: azurite.options(),
    };
    Some(Place { renames: false, ..place(settings, azurite) })
}

async fn filesystem_on_gcs() -> Option<Place> {
    let gcs = fixture::gcs().await?;
    let settings = LakeSettings {
        warehouse: gcs.warehouse("catalog"),
        catalog: "filesystem".into(),
        options: gcs.options(),
    };
    Some(Place { renames: false, ..place(settings, gcs) })
}

async fn sqlite_on_disk() -> Option<Place> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display();
    let catalog = CatalogSettings::from(format!("sqlite://{path}/made/catalog.db").as_str());
    let warehouse = format!("{path}/lake");
    Some(place(LakeSettings { warehouse, catalog, options: BTreeMap::new() }, folder))
}

async fn sqlite_on_s3() -> Option<Place> {
    let s3 = fixture::s3().await?;
    let local = sqlite_on_disk().await?;
    let settings =
        LakeSettings { warehouse: s3.warehouse("catalog"), options: s3.options(), ..local.settings.clone() };
    Some(place(settings, (s3, local)))
}

async fn postgres_on_disk() -> Option<Place> {
    let pg = fixture::postgres().await?;
    let database = pg.database("catalog").await;
    let folder = tempfile::tempdir().unwrap();
    let catalog = CatalogSettings { name: Some("über".into()), ..database.url().as_str().into() };
    let warehouse = folder.path().display().to_string();
    Some(place(LakeSettings { warehouse, catalog, options: BTreeMap::new() }, (pg, database, folder)))
}

/// A real server, which knows small letters only, and levels of namespaces. It looks for a table before
/// it writes one, and not in one step: two creators may both be told that they made it.
async fn rest() -> Option<Place> {
    let (s3, settings) = fixture::rest_catalog().await?;
    let names = &[("main", "plain"), ("a.b", "below"), ("main", "with-dash_1")];
    Some(Place { creates_once: false, keeps_files: false, names, ..place(settings, s3) })
}

fn place(settings: LakeSettings, keep: impl Any + Send + Sync) -> Place {
    let keep: Vec<Box<dyn Any + Send + Sync>> = vec![Box::new(keep)];
    Place { settings, renames: true, creates_once: true, keeps_files: true, names: ODD_NAMES, _keep: keep }
}

impl Place {
    /// As another process opens it.
    async fn lake(&self) -> Lake {
        Lake::open(&self.settings).await.unwrap()
    }

    /// The catalog itself, below the engine.
    fn catalog(&self) -> (Arc<dyn Catalog>, Arc<Stores>) {
        let stores = Arc::new(Stores::new(self.settings.options.clone()));
        let catalog = catalog::open(&self.settings.catalog, &self.settings.warehouse, stores.clone());
        (catalog.unwrap(), stores)
    }
}

fn id() -> TableId {
    TableId::new("main", "t")
}

pub(crate) async fn create(lake: &Lake, id: &TableId) -> Result<LakeTable> {
    let schema = Schema::new(vec![Field::new("n", DataType::Int64, false)]);
    let spec = TableSpec {
        id: id.clone(),
        schema: Arc::new(schema),
        mode: TableMode::Append,
        key: vec![],
        partition_by: vec![],
        format_version: None,
        sort_by: Vec::new(),
    };
    lake.create(spec).await
}

fn budget() -> Budget {
    Budget::new(128 << 20, 1).unwrap()
}

/// Adds a row, as one snapshot, to the table as it was loaded.
pub(crate) async fn append(table: &mut LakeTable, number: i64) -> Result<()> {
    let change = change(table, number).await?;
    table.commit(change, budget()).await.map(drop)
}

async fn change(table: &LakeTable, number: i64) -> Result<Change> {
    let mut writer = table.writer(budget())?;
    let column = Arc::new(Int64Array::from_iter_values([number])) as ArrayRef;
    writer.write(&RecordBatch::try_from_iter([("n", column)]).unwrap()).await?;
    Ok(Change {
        files: writer.finish().await?,
        effect: Effect::Append,
        from: table.position()?.map(|position| position.watermark),
        to: Watermark::new(number.to_string()),
        summary: BTreeMap::new(),
    })
}

pub(crate) async fn rows(lake: &Lake, table: &LakeTable) -> Vec<i64> {
    rows_at(lake, table, None).await
}

async fn rows_at(lake: &Lake, table: &LakeTable, at: Option<SnapshotId>) -> Vec<i64> {
    let stores = RuntimeEnvBuilder::new().with_object_store_registry(lake.stores()).build_arc().unwrap();
    let context = SessionContext::new_with_config_rt(SessionConfig::new(), stores);
    context.register_table("t", table.provider(at).await.unwrap()).unwrap();
    let batches = context.sql("select n from t order by n").await.unwrap().collect().await.unwrap();
    let column = |batch: &RecordBatch| {
        batch.column(0).as_any().downcast_ref::<Int64Array>().unwrap().values().to_vec()
    };
    batches.iter().flat_map(column).collect()
}

fn kind<T>(outcome: Result<T>) -> ErrorKind {
    outcome.err().expect("must not succeed").kind()
}

async fn tables_come_and_go(place: &Place) {
    let (lake, other) = (place.lake().await, place.lake().await);
    assert!(lake.tables().await.unwrap().is_empty());
    assert!(lake.table(&id()).await.unwrap().is_none());
    assert!(!lake.drop_table(&id()).await.unwrap());

    let mut made = create(&lake, &id()).await.unwrap();
    let mut seen = other.table(&id()).await.unwrap().unwrap();
    assert_eq!(seen.uuid(), made.uuid());
    assert_eq!(kind(create(&other, &id()).await), ErrorKind::Conflict);
    assert_eq!(other.tables().await.unwrap(), [id()]);
    append(&mut made, 1).await.unwrap();

    assert!(other.drop_table(&id()).await.unwrap());
    assert!(!lake.drop_table(&id()).await.unwrap());
    assert!(lake.table(&id()).await.unwrap().is_none());
    assert!(lake.tables().await.unwrap().is_empty());
    assert_eq!(kind(append(&mut made, 2).await), ErrorKind::Conflict);
    assert_eq!(kind(seen.reload().await), ErrorKind::Conflict);
    assert!(lake.table(&id()).await.unwrap().is_none(), "a late commit does not bring it back");

    let mut anew = create(&lake, &id()).await.unwrap();
    assert_ne!(anew.uuid(), made.uuid());
    assert_eq!(kind(append(&mut made, 3).await), ErrorKind::Conflict);
    append(&mut anew, 4).await.unwrap();
    anew.reload().await.unwrap();
    assert_eq!(rows(&lake, &anew).await, [4]);
}

async fn odd_names_stay_as_they_are(place: &Place) {
    let lake = place.lake().await;
    let mut uuids = BTreeMap::new();
    for (namespace, name) in place.names {
        let id = TableId::new(*namespace, *name);
        assert!(lake.table(&id).await.unwrap().is_none(), "{id}");
        let mut table = create(&lake, &id).await.unwrap();
        append(&mut table, 1).await.unwrap();
        uuids.insert(id, table.uuid());
    }
    let fresh = place.lake().await;
    assert_eq!(fresh.tables().await.unwrap(), uuids.keys().cloned().collect::<Vec<_>>());
    for (id, uuid) in uuids {
        let table = fresh.table(&id).await.unwrap().unwrap();
        assert_eq!((table.uuid(), rows(&fresh, &table).await), (uuid, vec![1]), "{id}");
    }
}

async fn tables_are_renamed_where_that_is_possible(place: &Place) {
    let lake = place.lake().await;
    let (old, new) = (id(), TableId::new("elsewhere", "t2"));
    let mut table = create(&lake, &old).await.unwrap();
    append(&mut table, 1).await.unwrap();
    if !place.renames {
        assert_eq!(kind(lake.rename_table(&old, &new).await), ErrorKind::Unsupported);
        return;
    }
    lake.rename_table(&old, &new).await.unwrap();
    assert!(lake.table(&old).await.unwrap().is_none());
    assert_eq!(kind(append(&mut table, 2).await), ErrorKind::Conflict, "the old name leads nowhere");
    let mut moved = lake.table(&new).await.unwrap().unwrap();
    assert_eq!(moved.uuid(), table.uuid());
    append(&mut moved, 3).await.unwrap();

    // The old name is free, and what is made there keeps its files apart.
    let mut second = create(&lake, &old).await.unwrap();
    assert_ne!(second.location(), moved.location());
    append(&mut second, 10).await.unwrap();
    assert_eq!((rows(&lake, &moved).await, rows(&lake, &second).await), (vec![1, 3], vec![10]));
    assert_eq!(lake.tables().await.unwrap(), [new.clone(), old.clone()]);

    assert_eq!(kind(lake.rename_table(&old, &new).await), ErrorKind::Conflict);
    assert_eq!(kind(lake.rename_table(&TableId::new("main", "none"), &new).await), ErrorKind::Config);
    let missing = TableId::new("main", "still free");
    assert_eq!(kind(lake.rename_table(&TableId::new("no", "ne"), &missing).await), ErrorKind::Config);
}

fn set(key: &str, value: &str) -> Vec<TableUpdate> {
    vec![TableUpdate::SetProperties { updates: [(key.to_owned(), value.to_owned())].into() }]
}

async fn requirements_are_checked_on_the_newest_metadata(place: &Place) {
    let table = create(&place.lake().await, &id()).await.unwrap();
    let (catalog, _) = place.catalog();
    let base = catalog.load(&id()).await.unwrap().unwrap();
    let same = || vec![TableRequirement::UuidMatch { uuid: table.uuid() }];
    catalog.commit(&base, same(), set("a", "1")).await.unwrap();
    // Someone else's property is no reason to fail, and is not undone.
    let both = catalog.commit(&base, same(), set("b", "2")).await.unwrap();
    let value = |key: &str| both.metadata().properties().get(key).cloned();
    assert_eq!((value("a"), value("b")), (Some("1".to_owned()), Some("2".to_owned())));

    for wrong in [
        TableRequirement::UuidMatch { uuid: uuid::Uuid::new_v4() },
        TableRequirement::CurrentSchemaIdMatch { current_schema_id: 7 },
        TableRequirement::RefSnapshotIdMatch { r#ref: "main".into(), snapshot_id: Some(7) },
        TableRequirement::LastAssignedFieldIdMatch { last_assigned_field_id: 99 },
        TableRequirement::DefaultSpecIdMatch { default_spec_id: 9 },
    ] {
        let what = format!("{wrong:?}");
        let outcome = catalog.commit(&both, vec![wrong], set("c", "3")).await;
        assert_eq!(kind(outcome), ErrorKind::Conflict, "{what}");
    }
    let now = catalog.load(&id()).await.unwrap().unwrap();
    assert_eq!(now.metadata().properties().get("c"), None);
    assert_eq!(now.metadata_location(), both.metadata_location());
}

async fn old_metadata_is_cleaned_away_when_asked(place: &Place) {
    if !place.keeps_files {
        return;
    }
    let table = create(&place.lake().await, &id()).await.unwrap();
    let (catalog, stores) = place.catalog();
    let mut now = catalog.load(&id()).await.unwrap().unwrap();
    let files = async || -> Vec<_> {
        let (store, path) = stores.resolve(&format!("{}/metadata", table.location())).unwrap();
        let found: Vec<_> = store.list(Some(&path)).try_collect().await.unwrap();
        found.into_iter().filter(|file| file.location.as_ref().ends_with(".metadata.json")).collect()
    };
    now = catalog.commit(&now, vec![], set("write.metadata.previous-versions-max", "2")).await.unwrap();
    for i in 0..5 {
        now = catalog.commit(&now, vec![], set("n", &i.to_string())).await.unwrap();
    }
    assert_eq!(files().await.len(), 3, "the newest and two before it");
    let property = "write.metadata.delete-after-commit.enabled";
    now = catalog.commit(&now, vec![], set(property, "false")).await.unwrap();
    for i in 0..3 {
        now = catalog.commit(&now, vec![], set("n", &i.to_string())).await.unwrap();
    }
    assert_eq!(files().await.len(), 7, "nobody asked for cleaning");
    assert_eq!(now.metadata().metadata_log().len(), 2);
}

async fn of_many_creators_one_wins(place: &Place) {
    // Lakes of their own: also the catalog's own tables are made in a race.
    let outcomes = futures::future::join_all((0..WRITERS).map(|_| async {
        let lake = place.lake().await;
        create(&lake, &id()).await
    }));
    let (made, failed): (Vec<_>, Vec<_>) = outcomes.await.into_iter().partition(Result::is_ok);
    for error in failed.into_iter().filter_map(Result::err) {
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}");
    }
    assert!(made.len() == 1 || !place.creates_once, "{} have made it", made.len());
    // Whoever was told so in vain cannot write: each commit is for a table, not for a name.
    let lake = place.lake().await;
    let table = lake.table(&id()).await.unwrap().unwrap();
    let mut won = 0;
    for mut made in made.into_iter().flatten() {
        let wins = made.uuid() == table.uuid();
        match append(&mut made, 1).await {
            Ok(()) => assert!(wins),
            Err(error) => assert_eq!((error.kind(), wins), (ErrorKind::Conflict, false), "{error:?}"),
        }
        won += usize::from(wins);
    }
    assert_eq!(won, 1);
    let table = lake.table(&id()).await.unwrap().unwrap();
    assert_eq!(rows(&lake, &table).await, [1]);
}

async fn a_stale_commit_changes_nothing(place: &Place) {
    let lake = place.lake().await;
    let mut one = create(&lake, &id()).await.unwrap();
    let mut two = place.lake().await.table(&id()).await.unwrap().unwrap();
    append(&mut one, 1).await.unwrap();
    assert_eq!(kind(append(&mut two, 2).await), ErrorKind::Conflict);
    two.reload().await.unwrap();
    assert_eq!(rows(&lake, &two).await, [1]);
    append(&mut two, 3).await.unwrap();
    assert_eq!(kind(append(&mut one, 4).await), ErrorKind::Conflict);
    one.reload().await.unwrap();
    assert_eq!(rows(&lake, &one).await, [1, 3]);
    assert_eq!(one.position().unwrap().unwrap().watermark, Watermark::new("3"));
}

async fn names_stay_where_they_are_put(place: &Place) {
    let lake = place.lake().await;
    let mut table = create(&lake, &id()).await.unwrap();
    append(&mut table, 1).await.unwrap();
    let mut stale = table.clone();
    let first = table.current().unwrap();
    append(&mut table, 2).await.unwrap();
    let mut expiring = table.clone();
    let second = table.current().unwrap();
    let week = Duration::from_secs(7 * 24 * 3600);
    table.tag("audited", first, Some(week)).await.unwrap();
    assert_eq!(kind(table.tag("audited", second, None).await), ErrorKind::Config);
    assert_eq!(kind(table.tag("nowhere", SnapshotId(7), None).await), ErrorKind::Config);
    // Who has not heard of the name cannot take it either.
    assert_eq!(kind(stale.tag("audited", first, None).await), ErrorKind::Conflict);
    // What has a name does not expire, even for who did not know it.
    let retention = Retention { keep_for: Some(Duration::ZERO), at_least: Some(1), at_most: Some(1) };
    let later = Utc::now() + TimeDelta::hours(1);
    assert_eq!(expiring.expire(retention, later).await.unwrap().snapshots, 0);
    stale.reload().await.unwrap();
    stale.tag("later", second, None).await.unwrap();
    // A name in between is no reason for a commit to fail, and is not undone by one.
    append(&mut table, 3).await.unwrap();
    let seen = place.lake().await.table(&id()).await.unwrap().unwrap();
    let names: Vec<_> = seen.refs().into_iter().map(|it| (it.name, it.kind, it.snapshot, it.keep)).collect();
    let expected = [
        ("audited".to_owned(), RefKind::Tag, first, Some(week)),
        ("later".to_owned(), RefKind::Tag, second, None),
        ("main".to_owned(), RefKind::Branch, table.current().unwrap(), None),
    ];
    assert_eq!(names, expected);

    assert_eq!((table.named("audited"), table.named("later")), (Some(first), Some(second)));
    table.untag("later").await.unwrap();
    assert_eq!(kind(table.untag("later").await), ErrorKind::Config);
    assert_eq!(kind(table.untag("main").await), ErrorKind::Config, "a branch is no tag");
    assert_eq!(table.expire(retention, later).await.unwrap().snapshots, 1);
    let ids: BTreeSet<_> = table.snapshots().into_iter().map(|it| it.id).collect();
    assert_eq!(ids, [first, table.current().unwrap()].into());
    assert_eq!(rows_at(&lake, &table, Some(first)).await, [1]);
    assert_eq!(rows(&lake, &table).await, [1, 2, 3]);
}

async fn rolling_back_rewinds_for_all(place: &Place) {
    let lake = place.lake().await;
    let mut table = create(&lake, &id()).await.unwrap();
    append(&mut table, 1).await.unwrap();
    let first = table.current().unwrap();
    append(&mut table, 2).await.unwrap();
    let mut stale = table.clone();
    append(&mut table, 3).await.unwrap();
    assert_eq!(kind(stale.roll_back(first).await), ErrorKind::Conflict, "the table has moved");
    assert_eq!(kind(table.roll_back(SnapshotId(7)).await), ErrorKind::Config);

    let mut other = table.clone();
    table.roll_back(first).await.unwrap();
    assert_eq!(kind(append(&mut other, 4).await), ErrorKind::Conflict, "its rows are gone");
    let mut seen = place.lake().await.table(&id()).await.unwrap().unwrap();
    assert_eq!((seen.current(), rows(&lake, &seen).await), (Some(first), vec![1]));
    assert_eq!(seen.position().unwrap().unwrap().watermark, Watermark::new("1"));
    append(&mut seen, 5).await.unwrap();
    table.reload().await.unwrap();
    assert_eq!(rows(&lake, &table).await, [1, 5]);
    // What was rolled back is still there for who wants it.
    assert_eq!(rows_at(&lake, &table, other.current()).await, [1, 2, 3]);
}

/// Each snapshot takes a number of its own, on whatever branch: who is overtaken commits again.
async fn a_commit_on_another_branch_is_no_conflict(place: &Place) {
    let lake = place.lake().await;
    let mut table = create(&lake, &id()).await.unwrap();
    append(&mut table, 1).await.unwrap();
    let mut aside = table.clone();
    let seven = change(&aside, 7).await.unwrap();
    let audited = aside.commit_aside(seven, budget()).await.unwrap();
    append(&mut table, 2).await.unwrap();
    assert_eq!(rows(&lake, &table).await, [1, 2]);
    assert_eq!(rows_at(&lake, &table, Some(audited)).await, [1, 7]);
    assert_eq!(kind(aside.publish(audited).await), ErrorKind::Conflict, "main has moved");
}

async fn many_writers_lose_and_double_nothing(place: &Place) {
    let said = std::env::var("FRAZIL_TEST_COMMITS").ok();
    let commits = said.map_or(COMMITS, |text| text.parse().expect("FRAZIL_TEST_COMMITS is a number"));
    create(&place.lake().await, &id()).await.unwrap();
    let began = Instant::now();
    let writers = (0..WRITERS).map(|writer| {
        let settings = place.settings.clone();
        tokio::spawn(async move {
            let lake = Lake::open(&settings).await.unwrap();
            let mut table = lake.table(&id()).await.unwrap().unwrap();
            let mut conflicts = 0;
            for number in writer * commits..(writer + 1) * commits {
                while let Err(error) = append(&mut table, number).await {
                    assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}");
                    conflicts += 1;
                    table.reload().await.unwrap();
                }
            }
            conflicts
        })
    });
    let conflicts: u32 =
        futures::future::try_join_all(writers).await.expect("no writer gives up").into_iter().sum();
    let seconds = began.elapsed().as_secs_f64();
    let total = WRITERS * commits;
    eprintln!(
        "{total} commits by {WRITERS} writers in {seconds:.1} s ({:.0}/s), {conflicts} conflicts",
        total as f64 / seconds
    );
    let lake = place.lake().await;
    let table = lake.table(&id()).await.unwrap().unwrap();
    assert_eq!(rows(&lake, &table).await, (0..total).collect::<Vec<_>>());
    let positions: Vec<String> =
        table.snapshots().iter().filter_map(|entry| entry.summary.get("frazil.watermark").cloned()).collect();
    assert_eq!(positions.len() as i64, total);
    assert_eq!(positions.into_iter().collect::<BTreeSet<_>>().len() as i64, total);
}
