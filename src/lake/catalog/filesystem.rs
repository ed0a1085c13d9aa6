//! The embedded catalog: no server, the store itself decides who comes first.
//!
//! ```text
//! <warehouse>/<namespace>/<table>/metadata/v1.metadata.json
//!                                          v2.metadata.json     created if it is not there: the swap
//!                                          version-hint.text    where to look first; may be behind or gone
//! ```
//!
//! A version is never written twice. Whoever creates `v<N+1>` has committed; everyone else gets
//! `AlreadyExists`, looks at what came, and goes on from there or reports a conflict. An answer that
//! got lost is settled by comparing the stored bytes with ours.
//!
//! Java's Hadoop tables may be compressed: `v2.gz.metadata.json`. Which of the two names version N+1 has
//! follows from what version N says, so that all writers try to create the same file.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use iceberg::spec::TableMetadata;
use iceberg::table::Table;
use iceberg::{TableCreation, TableRequirement, TableUpdate};
use object_store::{ObjectStoreExt, PutMode, PutOptions, PutPayload};

use super::Catalog;
use super::files::{Files, created, gzipped, parse, to_json, updated};
use super::{MOVES, exists, location};
use crate::error::{Error, ErrorKind, Result};
use crate::lake::names::decode;
use crate::lake::storage::{Stores, absolute, store_error};
use crate::table::TableId;

/// What a version holds that says that the table was dropped. Shorter than any metadata, so that a
/// listing tells them apart.
const DROPPED: &[u8] = br#"{"dropped":true}"#;

/// Table property: how metadata files are compressed.
const COMPRESSION: &str = "write.metadata.compression-codec";

/// A catalog that is a directory.
pub struct Filesystem {
    warehouse: String,
    files: Files,
    /// Whether the store was seen to honour a condition.
    probed: AtomicBool,
}

impl Filesystem {
    /// The catalog under a directory or prefix, which need not be there yet.
    pub fn new(warehouse: &str, stores: Arc<Stores>) -> Result<Self> {
        let warehouse = absolute(warehouse)?;
        stores.resolve(&warehouse)?;
        let probed = AtomicBool::new(warehouse.starts_with("file:"));
        Ok(Self { warehouse, files: Files::new(stores)?, probed })
    }

    fn table(&self, location: &str, file: String, metadata: TableMetadata) -> Result<Table> {
        self.files.table(&id_of(location)?, file, metadata)
    }

    /// The newest version. The hint is a place to start: what lies beyond it is probed, and when it leads
    /// nowhere the directory is listed.
    async fn newest(&self, location: &str) -> Result<Option<Version>> {
        let hint = self.files.get(&hint_file(location)).await?;
        let hinted = hint.as_deref().and_then(|text| std::str::from_utf8(text).ok()?.trim().parse().ok());
        let mut start = match hinted {
            Some(number) => self.pair(location, number).await?,
            None => (None, None),
        };
        if start.0.is_none() {
            let Some((listed, _)) = self.last_listed(location).await? else { return Ok(None) };
            start = self.pair(location, listed).await?;
        }
        let (Some(mut version), mut next) = start else { return Ok(None) };
        while let Some(newer) = next {
            next = self.version(location, newer.number + 1).await?;
            version = newer;
        }
        Ok(Some(version))
    }

    /// As [`newest`](Self::newest), but none for a table that was dropped.
    async fn live(&self, location: &str) -> Result<Option<Version>> {
        Ok(self.newest(location).await?.filter(|version| version.bytes != DROPPED))
    }

    /// A version and the one after it, in one round trip.
    async fn pair(&self, location: &str, number: u64) -> Result<(Option<Version>, Option<Version>)> {
        futures::try_join!(self.version(location, number), self.version(location, number + 1))
    }

    /// A version under either of its names.
    async fn version(&self, location: &str, number: u64) -> Result<Option<Version>> {
        let [plain, gzip] = [Form::Plain, Form::Gzip].map(|form| version_file(location, number, form));
        let (plain_bytes, gzip_bytes) = futures::try_join!(self.files.get(&plain), self.files.get(&gzip))?;
        let found = plain_bytes.map(|bytes| (plain, bytes)).or(gzip_bytes.map(|bytes| (gzip, bytes)));
        Ok(found.map(|(file, bytes)| Version { number, file, bytes }))
    }

    /// The highest version that a listing shows, and its size.
    async fn last_listed(&self, location: &str) -> Result<Option<(u64, u64)>> {
        let directory = format!("{location}/metadata");
        let (store, path) = self.files.stores().resolve(&directory)?;
        let listed = store.list(Some(&path)).try_fold(None, |newest: Option<(u64, u64)>, file| async move {
            let version = file.location.filename().and_then(version_of);
            Ok(newest.max(version.map(|version| (version, file.size))))
        });
        listed.await.map_err(|source| store_error("list a directory", &directory, source))
    }

    /// Creates a version. `Ok(false)`: somebody else has.
    async fn create_version(&self, location: &str, version: &Version) -> Result<bool> {
        let Version { number, file, bytes } = version;
        let (store, path) = self.files.stores().resolve(file)?;
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let put = store.put_opts(&path, PutPayload::from_bytes(bytes.clone()), options);
        if let Err(source) = put.await {
            let refused = matches!(
                source,
                object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }
            );
            // The put may have landed although its answer got lost, or a retry met the first try.
            match self.files.get(file).await {
                Ok(Some(stored)) if stored == bytes => {}
                Ok(Some(_)) => return Ok(false),
                Ok(None) if refused => {
                    return Err(Error::new(ErrorKind::Transient, "the store is busy with another commit")
                        .with("file", file)
                        .hint("run again"));
                }
                _ => return Err(store_error("commit a table", file, source)),
            }
        }
        self.leave_hint(location, *number).await;
        Ok(true)
    }

    /// Readers that find no hint, or an old one, look further themselves: a failure is only logged.
    async fn leave_hint(&self, location: &str, version: u64) {
        let file = hint_file(location);
        let outcome = match self.files.stores().resolve(&file) {
            Ok((store, path)) => store
                .put(&path, version.to_string().into())
                .await
                .map_err(|source| store_error("write a file", &file, source)),
            Err(error) => Err(error),
        };
        if let Err(error) = outcome {
            tracing::debug!(%error, "version hint not written");
        }
    }

    /// Removes the versions of a dropped table up to one.
    async fn clear(&self, location: &str, up_to: u64) {
        let Ok((store, path)) = self.files.stores().resolve(&format!("{location}/metadata")) else { return };
        let mut listed = store.list(Some(&path));
        while let Some(Ok(file)) = listed.next().await {
            let Some(name) = file.location.filename() else { continue };
            if version_of(name).is_some_and(|version| version <= up_to) {
                self.files.discard(&format!("{location}/metadata/{name}")).await;
            }
        }
    }

    /// Two creations of one name: a store that lets both pass cannot hold this catalog.
    async fn probe(&self) -> Result<()> {
        if self.probed.load(Ordering::Relaxed) {
            return Ok(());
        }
        let file = format!("{}/.frazil-probe-{}", self.warehouse, uuid::Uuid::new_v4());
        let (store, path) = self.files.stores().resolve(&file)?;
        let create = || PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let failed = |source| store_error("write a file", &file, source);
        store.put_opts(&path, PutPayload::from_static(b"1"), create()).await.map_err(failed)?;
        let second = store.put_opts(&path, PutPayload::from_static(b"2"), create()).await;
        if let Err(error) = store.delete(&path).await {
            tracing::debug!(%error, "probe file not deleted");
        }
        match second {
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                self.probed.store(true, Ordering::Relaxed);
                Ok(())
            }
            Err(object_store::Error::NotImplemented { .. }) | Ok(_) => Err(Error::new(
                ErrorKind::Unsupported,
                "the store ignores conditional writes, so that two writers could lose each other's rows",
            )
            .with("warehouse", &self.warehouse)
            .hint("use a store that honours `If-None-Match`, or a catalog in a database")),
            Err(source) => Err(failed(source)),
        }
    }
}

#[async_trait]
impl Catalog for Filesystem {
    async fn check(&self) -> Result<()> {
        self.probe().await
    }

    async fn tables(&self) -> Result<Vec<TableId>> {
        let (store, root) = self.files.stores().resolve(&self.warehouse)?;
        let failed = |source| store_error("list the warehouse", &self.warehouse, source);
        let mut tables = Vec::new();
        for namespace in directories(store.list_with_delimiter(Some(&root)).await, failed)? {
            for table in directories(store.list_with_delimiter(Some(&namespace)).await, failed)? {
                let location = format!(
                    "{}/{}/{}",
                    self.warehouse,
                    namespace.filename().unwrap_or_default(),
                    table.filename().unwrap_or_default()
                );
                // Other people's directories may lie beside ours.
                if let Ok(id) = id_of(&location)
                    && let Some((_, size)) = self.last_listed(&location).await?
                    && size != DROPPED.len() as u64
                {
                    tables.push(id);
                }
            }
        }
        tables.sort();
        Ok(tables)
    }

    async fn load(&self, id: &TableId) -> Result<Option<Table>> {
        let location = location(&self.warehouse, id);
        let found = self.live(&location).await.map_err(|error| error.with("table", id))?;
        let Some(version) = found else { return Ok(None) };
        let metadata = version.read().map_err(|error| error.with("table", id))?;
        Ok(Some(self.table(&location, version.file, metadata)?))
    }

    async fn create(&self, id: &TableId, creation: TableCreation) -> Result<Table> {
        self.probe().await?;
        let location = location(&self.warehouse, id);
        let metadata = created(id, creation, &location)?;
        // Without this look, a table whose first version was cleaned away could be made again.
        let number = match self.newest(&location).await? {
            None => 1,
            // The versions of a dropped table are not used again: who still holds one cannot commit.
            Some(dropped) if dropped.bytes == DROPPED => dropped.number + 1,
            Some(_) => return Err(exists(id)),
        };
        let first = Version::new(&location, number, Form::Plain, &metadata)?;
        if !self.create_version(&location, &first).await? {
            return Err(exists(id));
        }
        self.table(&location, first.file, metadata)
    }

    async fn commit(
        &self,
        base: &Table,
        requirements: Vec<TableRequirement>,
        updates: Vec<TableUpdate>,
    ) -> Result<Table> {
        let mut file = base.metadata_location().unwrap_or_default().to_owned();
        let (location, mut number) = split(&file).map(|(location, number)| (location.to_owned(), number))?;
        let mut newest = base.metadata().clone();
        for _ in 0..MOVES {
            let form = Form::after(&newest);
            let built = updated(newest, &file, &requirements, &updates)?;
            let next = Version::new(&location, number + 1, form, &built.metadata)?;
            if self.create_version(&location, &next).await? {
                self.files.forget(&built).await;
                return self.table(&location, next.file, built.metadata);
            }
            let Some(found) = self.live(&location).await? else {
                return Err(Error::new(ErrorKind::Conflict, "the table was dropped"));
            };
            newest = found.read()?;
            (number, file) = (found.number, found.file);
        }
        Err(Error::new(ErrorKind::Conflict, "the table moves faster than this commit"))
    }

    /// Dropping is a commit like any other: a last version that says so. It stays, so that nobody who
    /// still holds an older version can commit on it.
    async fn drop_table(&self, id: &TableId) -> Result<bool> {
        let location = location(&self.warehouse, id);
        for _ in 0..MOVES {
            let Some(last) = self.live(&location).await? else { return Ok(false) };
            // A table that cannot be read can be dropped.
            let form = last.read().map_or(Form::Plain, |metadata| Form::after(&metadata));
            let number = last.number + 1;
            let file = version_file(&location, number, form);
            let dropped = Version { number, file, bytes: Bytes::from_static(DROPPED) };
            if self.create_version(&location, &dropped).await? {
                self.clear(&location, last.number).await;
                return Ok(true);
            }
        }
        Err(Error::new(ErrorKind::Conflict, "the table moves faster than it can be dropped")
            .with("table", id))
    }

    async fn rename_table(&self, from: &TableId, _: &TableId) -> Result<()> {
        Err(Error::new(ErrorKind::Unsupported, "in the `filesystem` catalog a table's name is its directory")
            .with("table", from)
            .hint("write a new table, or use a catalog in a database"))
    }
}

/// The name that a table's directory stands for.
fn id_of(location: &str) -> Result<TableId> {
    let mut parts = location.rsplit('/');
    match (parts.next().and_then(decode), parts.next().and_then(decode)) {
        (Some(name), Some(namespace)) => Ok(TableId::new(namespace, name)),
        _ => Err(Error::new(ErrorKind::Internal, "not the location of a table").with("file", location)),
    }
}

/// A version file taken apart.
fn split(file: &str) -> Result<(&str, u64)> {
    let parts = file.rsplit_once("/metadata/").and_then(|(dir, name)| Some((dir, version_of(name)?)));
    parts.ok_or_else(|| Error::new(ErrorKind::Internal, "not a table of this catalog").with("file", file))
}

/// A version: its number, its file, and what is in it.
struct Version {
    number: u64,
    file: String,
    bytes: Bytes,
}

impl Version {
    fn new(location: &str, number: u64, form: Form, metadata: &TableMetadata) -> Result<Self> {
        let json = to_json(metadata)?;
        let bytes = match form {
            Form::Plain => json,
            Form::Gzip => gzipped(&json)?,
        };
        Ok(Self { number, file: version_file(location, number, form), bytes })
    }

    fn read(&self) -> Result<TableMetadata> {
        parse(&self.file, &self.bytes).map_err(|error| match (error.kind(), self.number) {
            (ErrorKind::Corrupt, 0 | 1) => error.hint("restore it from a backup"),
            (ErrorKind::Corrupt, number) => error.hint(format!(
                "restore it from a backup, or delete it to go back to v{}: the rows it added are then read again",
                number - 1
            )),
            _ => error,
        })
    }
}

/// How a version is kept, which its name tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Plain,
    Gzip,
}

impl Form {
    /// That of the version after this one.
    fn after(metadata: &TableMetadata) -> Self {
        match metadata.properties().get(COMPRESSION) {
            Some(codec) if codec.eq_ignore_ascii_case("gzip") => Self::Gzip,
            _ => Self::Plain,
        }
    }
}

fn version_file(location: &str, version: u64, form: Form) -> String {
    let compressed = match form {
        Form::Plain => "",
        Form::Gzip => ".gz",
    };
    format!("{location}/metadata/v{version}{compressed}.metadata.json")
}

fn hint_file(location: &str) -> String {
    format!("{location}/metadata/version-hint.text")
}

/// `v12.metadata.json`, `v12.gz.metadata.json` → 12.
fn version_of(name: &str) -> Option<u64> {
    let version = name.strip_prefix('v')?.strip_suffix(".metadata.json")?;
    version.strip_suffix(".gz").unwrap_or(version).parse().ok()
}

fn directories(
    listed: object_store::Result<object_store::ListResult>,
    failed: impl Fn(object_store::Error) -> Error,
) -> Result<Vec<object_store::path::Path>> {
    match listed {
        Ok(found) => Ok(found.common_prefixes),
        Err(object_store::Error::NotFound { .. }) => Ok(Vec::new()),
        Err(source) => Err(failed(source)),
    }
}
