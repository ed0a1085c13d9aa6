//! The lake on a store that fails: whatever request it is, and however it fails, the table is as it
//! was or as it should become, rows and position alike, and the next commit succeeds.
//!
//! Each test runs the same commit again and again and breaks the first request, then the second, and
//! so on, until a commit ends before the broken request comes.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use async_trait::async_trait;
use bytes::Bytes;
use datafusion::prelude::SessionContext;
use frazil::delta::Watermark;
use frazil::lake::{CatalogSettings, Change, Effect, Lake, LakeSettings, LakeTable, TableMode, TableSpec};
use frazil::memory::Budget;
use frazil::table::TableId;
use frazil::{Error, ErrorKind, Result};
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use tokio::sync::Notify;

/// How the broken request fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// As a throttled store answers: nothing was done.
    Refuses,
    /// The request is carried out, its answer is lost.
    LosesAnswer,
    /// No room is left: nothing was done.
    DiskFull,
    /// No answer ever comes; the process is stopped while it waits.
    Stalls,
    /// The request is carried out and no answer ever comes; the process is stopped while it waits.
    StallsAfterwards,
}

/// Which request fails, and how.
#[derive(Debug)]
struct Broken {
    fault: Fault,
    /// Requests until the broken one; zero when it was.
    left: AtomicU64,
    stalled: Notify,
}

impl Broken {
    fn new(fault: Fault, request: u64) -> Arc<Self> {
        Arc::new(Self { fault, left: AtomicU64::new(request), stalled: Notify::new() })
    }

    fn came(&self) -> bool {
        self.left.load(Ordering::SeqCst) == 0
    }

    async fn stall<T>(&self) -> T {
        self.stalled.notify_one();
        std::future::pending().await
    }
}

/// A store with one broken request.
#[derive(Debug)]
struct Faulty {
    inner: Arc<dyn ObjectStore>,
    broken: Arc<Broken>,
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a store that fails")
    }
}

impl Faulty {
    async fn request<T>(
        &self,
        request: impl Future<Output = object_store::Result<T>>,
    ) -> object_store::Result<T> {
        // Zero: the broken one was before, and the store works again.
        let broken = &self.broken;
        let is_broken = broken
            .left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
            .is_ok_and(|before| before == 1);
        if !is_broken {
            return request.await;
        }
        match broken.fault {
            Fault::Refuses => Err(failure(std::io::Error::other("503 Slow Down"))),
            Fault::DiskFull => Err(failure(std::io::ErrorKind::StorageFull.into())),
            Fault::LosesAnswer => {
                request.await?;
                Err(failure(std::io::ErrorKind::ConnectionReset.into()))
            }
            Fault::Stalls => broken.stall().await,
            Fault::StallsAfterwards => {
                request.await?;
                broken.stall().await
            }
        }
    }
}

fn failure(source: std::io::Error) -> object_store::Error {
    object_store::Error::Generic { store: "faulty", source: Box::new(source) }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(
        &self,
        at: &Path,
        payload: PutPayload,
        o: PutOptions,
    ) -> object_store::Result<PutResult> {
        self.request(self.inner.put_opts(at, payload, o)).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.request(self.inner.put_multipart_opts(at, options)).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.request(self.inner.get_opts(at, options)).await
    }

    async fn get_ranges(&self, at: &Path, ranges: &[Range<u64>]) -> object_store::Result<Vec<Bytes>> {
        self.request(self.inner.get_ranges(at, ranges)).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.request(self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.request(self.inner.copy_opts(from, to, options)).await
    }
}

/// A lake with one commit, what it should hold, and how often it was written.
struct Lab {
    dir: tempfile::TempDir,
    /// The catalog is in a SQLite file, not in the store.
    sqlite: bool,
    model: BTreeMap<i64, i64>,
    commits: i64,
}

const ROWS: i64 = 20;

impl Lab {
    async fn new(sqlite: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut lab = Self { dir, sqlite, model: BTreeMap::new(), commits: 0 };
        let spec = TableSpec {
            id: table_id(),
            schema: schema(),
            mode: TableMode::Merge,
            key: vec!["id".into()],
            partition_by: Vec::new(),
            format_version: None,
            sort_by: Vec::new(),
        };
        lab.lake(None).await.create(spec).await.unwrap();
        lab.run(None).await.unwrap();
        assert!(lab.settle("the first commit").await);
        lab
    }

    /// A process of its own opens the lake; one of its requests may be broken.
    async fn lake(&self, broken: Option<&Arc<Broken>>) -> Lake {
        let settings = LakeSettings {
            warehouse: self.dir.path().display().to_string(),
            catalog: match self.sqlite {
                true => format!("sqlite://{}/catalog.db", self.dir.path().display()).as_str().into(),
                false => CatalogSettings::default(),
            },
            options: BTreeMap::new(),
        };
        let lake = Lake::open(&settings).await.unwrap();
        if let Some(broken) = broken {
            use datafusion::execution::object_store::ObjectStoreRegistry;
            let (inner, _) = lake.stores().resolve("file:///").unwrap();
            let store = Arc::new(Faulty { inner, broken: broken.clone() });
            lake.stores().register_store(&"file:///".parse().unwrap(), store);
        }
        lake
    }

    /// The rows and the position that the next commit leads to.
    fn next(&self) -> (RecordBatch, BTreeMap<i64, i64>, Watermark) {
        let number = self.commits + 1;
        // Half of the keys were there before, and one comes twice.
        let first = number * ROWS / 2;
        let mut ids: Vec<_> = (first..first + ROWS).collect();
        ids.push(first);
        let values: Vec<_> = (0..).map(|row| number * 1000 + row).take(ids.len()).collect();
        let mut model = self.model.clone();
        model.extend(ids.iter().copied().zip(values.iter().copied()));
        let columns = vec![Arc::new(Int64Array::from(ids)) as _, Arc::new(Int64Array::from(values)) as _];
        (RecordBatch::try_new(schema(), columns).unwrap(), model, position(number))
    }

    /// What a runner does: loads the table, writes, commits.
    async fn run(&self, broken: Option<&Arc<Broken>>) -> Result<()> {
        let lake = self.lake(broken).await;
        let mut table = lake.table(&table_id()).await?.ok_or_else(missing)?;
        let from = table.position()?.map(|position| position.watermark);
        let (rows, _, to) = self.next();
        let budget = Budget::new(256 << 20, 1)?;
        let mut writer = table.writer(budget)?;
        writer.write(&rows).await?;
        let files = writer.finish().await?;
        let change = Change { files, effect: Effect::Upsert, from, to, summary: BTreeMap::new() };
        table.commit(change, budget).await?;
        Ok(())
    }

    /// What another process finds.
    async fn look(&self) -> (BTreeMap<i64, i64>, Option<Watermark>) {
        let table = self.lake(None).await.table(&table_id()).await.unwrap().unwrap();
        (rows(&table).await, table.position().unwrap().map(|position| position.watermark))
    }

    /// Moves on if the commit is there; says whether it is. Anything between is a failure.
    async fn settle(&mut self, what: &str) -> bool {
        let (rows, at) = self.look().await;
        let (_, model, to) = self.next();
        if at.as_ref() == Some(&to) {
            assert_eq!(rows, model, "{what}: the position is new, the rows are not");
            (self.model, self.commits) = (model, self.commits + 1);
            return true;
        }
        assert_eq!(rows, self.model, "{what}: the position is old, the rows are not");
        assert_eq!(at, (self.commits > 0).then(|| position(self.commits)), "{what}: a third position");
        false
    }
}

fn table_id() -> TableId {
    TableId::new("main", "t")
}

fn missing() -> Error {
    Error::new(ErrorKind::Corrupt, "the table is gone")
}

fn position(number: i64) -> Watermark {
    Watermark::new(format!("{{\"at\":{number}}}"))
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("value", DataType::Int64, true),
    ]))
}

async fn rows(table: &LakeTable) -> BTreeMap<i64, i64> {
    let mut rows = BTreeMap::new();
    let provider = table.provider(None).await.unwrap();
    let batches = SessionContext::new().read_table(provider).unwrap().collect().await.unwrap();
    for batch in batches {
        let ids = batch.column(0).as_primitive::<Int64Type>().values();
        let values = batch.column(1).as_primitive::<Int64Type>().values();
        for (id, value) in ids.iter().zip(values) {
            assert!(rows.insert(*id, *value).is_none(), "row {id} is doubled");
        }
    }
    rows
}

async fn survives(fault: Fault) {
    for sqlite in [false, true] {
        survives_with(fault, sqlite).await;
    }
}

async fn survives_with(fault: Fault, sqlite: bool) {
    let mut failed = 0;
    for request in 1.. {
        // Afresh, because commits make more requests as a table's history grows.
        let mut lab = Lab::new(sqlite).await;
        let what = format!("{fault:?} at request {request} (sqlite: {sqlite})");
        let broken = Broken::new(fault, request);
        let outcome = tokio::select! {
            outcome = lab.run(Some(&broken)) => Some(outcome),
            // Dropping the run is what a crash does: nothing after this point happens.
            () = broken.stalled.notified() => None,
        };
        let there = lab.settle(&what).await;
        match outcome {
            Some(Ok(())) => assert!(there, "{what}: committed, but not there"),
            Some(Err(error)) => {
                failed += 1;
                check(fault, &error, &what);
            }
            None => failed += 1,
        }
        if !there {
            lab.run(None).await.unwrap_or_else(|error| panic!("{what}: the next commit: {error:?}"));
            assert!(lab.settle(&what).await, "{what}: the next commit is not there");
        }
        if !broken.came() {
            break;
        }
    }
    assert!(failed > 5, "only {failed} requests could fail");
}

/// An error says that trying again helps.
fn check(fault: Fault, error: &Error, what: &str) {
    assert_eq!(error.kind(), ErrorKind::Transient, "{what}: {error:?}");
    if fault == Fault::DiskFull {
        assert!(error.to_string().contains("the disk is full"), "{what}: {error:?}");
    }
}

#[tokio::test]
async fn a_store_that_refuses_a_request_loses_nothing() {
    survives(Fault::Refuses).await;
}

#[tokio::test]
async fn an_answer_that_is_lost_loses_nothing() {
    survives(Fault::LosesAnswer).await;
}

#[tokio::test]
async fn a_full_disk_loses_nothing_and_says_so() {
    survives(Fault::DiskFull).await;
}

#[tokio::test]
async fn a_process_stopped_before_a_request_loses_nothing() {
    survives(Fault::Stalls).await;
}

#[tokio::test]
async fn a_process_stopped_after_a_request_loses_nothing() {
    survives(Fault::StallsAfterwards).await;
}

/// Whichever request of a query fails: footers are read while planning where rows are hidden, and while
/// reading where none are.
#[tokio::test]
async fn a_query_on_a_store_that_fails_does_not_blame_the_file() {
    let mut lab = Lab::new(false).await;
    lab.run(None).await.unwrap();
    assert!(lab.settle("the second commit").await);
    let budget = Budget::new(256 << 20, 1).unwrap();
    for fault in [Fault::Refuses, Fault::LosesAnswer] {
        let mut failed = 0;
        for request in 1.. {
            let broken = Broken::new(fault, request);
            let lake = lab.lake(Some(&broken)).await;
            let outcome: Result<usize> = async {
                let session = frazil::query::session(&lake, budget, None).await?;
                let rows = frazil::query::sql(&session, "select * from t").await?.collect().await?;
                Ok(rows.iter().map(RecordBatch::num_rows).sum())
            }
            .await;
            if !broken.came() {
                assert_eq!(outcome.unwrap(), lab.model.len());
                break;
            }
            match outcome {
                Ok(rows) => assert_eq!(rows, lab.model.len(), "{fault:?} at request {request}"),
                Err(error) => {
                    failed += 1;
                    check(fault, &error, &format!("{fault:?} at request {request} of a query"));
                }
            }
        }
        assert!(failed > 5, "only {failed} requests could fail");
    }
}
