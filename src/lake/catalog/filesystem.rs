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

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use iceberg::spec::{TableMetadata, TableMetadataBuilder};
use iceberg::table::Table;
use iceberg::{NamespaceIdent, Runtime, TableCreation, TableIdent, TableRequirement, TableUpdate};
use object_store::{ObjectStoreExt, PutMode, PutOptions, PutPayload};
use serde::Deserialize;

use super::Catalog;
use crate::error::{Error, ErrorKind, Result};
use crate::lake::names::{decode, encode};
use crate::lake::storage::{Stores, absolute, file_io, iceberg_error, store_error};
use crate::lake::{DEFAULT_NAMESPACE, FORMAT, FORMAT_PROPERTY};
use crate::table::TableId;

/// Metadata-only changes of others (a property, a tag) that a commit may find in its way, one after
/// the other, before it gives up.
const MOVES: u32 = 10;
/// The newest Iceberg format that this build reads and writes.
const ICEBERG_FORMAT: u64 = 3;

/// A catalog that is a directory.
pub struct Filesystem {
    warehouse: String,
    stores: Arc<Stores>,
    file_io: iceberg::io::FileIO,
    runtime: Runtime,
    /// Whether the store was seen to honour a condition.
    probed: AtomicBool,
}

impl Filesystem {
    /// The catalog under a directory or prefix, which need not be there yet.
    pub fn new(warehouse: &str, stores: Arc<Stores>) -> Result<Self> {
        let warehouse = absolute(warehouse)?;
        stores.resolve(&warehouse)?;
        let probed = AtomicBool::new(warehouse.starts_with("file:"));
        let runtime = Runtime::try_current().map_err(iceberg_error)?;
        Ok(Self { warehouse, file_io: file_io(&stores), stores, runtime, probed })
    }

    fn location(&self, id: &TableId) -> String {
        let namespace = encode(id.schema_or(DEFAULT_NAMESPACE));
        format!("{}/{namespace}/{}", self.warehouse, encode(&id.name))
    }

    fn table(&self, location: &str, version: u64, metadata: TableMetadata) -> Result<Table> {
        let id = self.id_of(location)?;
        let namespace = NamespaceIdent::new(id.schema_or(DEFAULT_NAMESPACE).to_owned());
        Table::builder()
            .file_io(self.file_io.clone())
            .identifier(TableIdent::new(namespace, id.name))
            .metadata(metadata)
            .metadata_location(version_file(location, version))
            .runtime(self.runtime.clone())
            // Our own reading does not go through it.
            .disable_cache()
            .build()
            .map_err(iceberg_error)
    }

    fn id_of(&self, location: &str) -> Result<TableId> {
        let mut parts = location.rsplit('/');
        match (parts.next().and_then(decode), parts.next().and_then(decode)) {
            (Some(name), Some(namespace)) => Ok(TableId::new(namespace, name)),
            _ => Err(Error::new(ErrorKind::Internal, "not the location of a table").with("file", location)),
        }
    }

    async fn get(&self, file: &str) -> Result<Option<Bytes>> {
        let (store, path) = self.stores.resolve(file)?;
        let failed = |source| store_error("read a file", file, source);
        match store.get(&path).await {
            Ok(found) => Ok(Some(found.bytes().await.map_err(failed)?)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(failed(source)),
        }
    }

    /// The newest version and its bytes. The hint is a place to start: what lies beyond it is probed,
    /// and when it leads nowhere the directory is listed.
    async fn newest(&self, location: &str) -> Result<Option<(u64, Bytes)>> {
        let hint = self.get(&hint_file(location)).await?;
        let hinted = hint.as_deref().and_then(|text| std::str::from_utf8(text).ok()?.trim().parse().ok());
        let mut start = match hinted {
            Some(version) => self.pair(location, version).await?,
            None => (None, None),
        };
        let mut version = hinted.unwrap_or(0);
        if start.0.is_none() {
            let Some(listed) = self.last_listed(location).await? else { return Ok(None) };
            version = listed;
            start = self.pair(location, version).await?;
        }
        let (Some(mut bytes), mut next) = start else { return Ok(None) };
        while let Some(newer) = next {
            bytes = newer;
            version += 1;
            next = self.get(&version_file(location, version + 1)).await?;
        }
        Ok(Some((version, bytes)))
    }

    /// A version and the one after it, in one round trip.
    async fn pair(&self, location: &str, version: u64) -> Result<(Option<Bytes>, Option<Bytes>)> {
        let (here, next) = (version_file(location, version), version_file(location, version + 1));
        futures::try_join!(self.get(&here), self.get(&next))
    }

    async fn last_listed(&self, location: &str) -> Result<Option<u64>> {
        let directory = format!("{location}/metadata");
        let (store, path) = self.stores.resolve(&directory)?;
        let listed = store.list(Some(&path)).try_fold(None, |newest, file| async move {
            Ok(newest.max(file.location.filename().and_then(version_of)))
        });
        listed.await.map_err(|source| store_error("list a directory", &directory, source))
    }

    /// Creates a version. `Ok(false)`: somebody else has.
    async fn create_version(&self, location: &str, version: u64, metadata: &TableMetadata) -> Result<bool> {
        let file = version_file(location, version);
        let json = serde_json::to_vec(metadata).map_err(|source| {
            Error::new(ErrorKind::Internal, "metadata cannot be written as JSON").because(source)
        })?;
        let json = Bytes::from(json);
        let (store, path) = self.stores.resolve(&file)?;
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        if let Err(source) = store.put_opts(&path, PutPayload::from_bytes(json.clone()), options).await {
            let refused = matches!(
                source,
                object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }
            );
            // The put may have landed although its answer got lost, or a retry met the first try.
            match self.get(&file).await {
                Ok(Some(stored)) if stored == json => {}
                Ok(Some(_)) => return Ok(false),
                Ok(None) if refused => {
                    return Err(Error::new(ErrorKind::Transient, "the store is busy with another commit")
                        .with("file", file)
                        .hint("run again"));
                }
                _ => return Err(store_error("commit a table", &file, source)),
            }
        }
        self.leave_hint(location, version).await;
        Ok(true)
    }

    /// Readers that find no hint, or an old one, look further themselves: a failure is only logged.
    async fn leave_hint(&self, location: &str, version: u64) {
        let file = hint_file(location);
        let outcome = match self.stores.resolve(&file) {
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

    /// Two creations of one name: a store that lets both pass cannot hold this catalog.
    async fn probe(&self) -> Result<()> {
        if self.probed.load(Ordering::Relaxed) {
            return Ok(());
        }
        let file = format!("{}/.frazil-probe-{}", self.warehouse, uuid::Uuid::new_v4());
        let (store, path) = self.stores.resolve(&file)?;
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

    /// Removes metadata files that the newest version does not remember any more.
    async fn forget(&self, expired: Vec<iceberg::spec::MetadataLog>) {
        for entry in expired {
            if let Err(error) = self.file_io.delete(&entry.metadata_file).await {
                tracing::debug!(%error, "old metadata not deleted");
            }
        }
    }
}

#[async_trait]
impl Catalog for Filesystem {
    async fn tables(&self) -> Result<Vec<TableId>> {
        let (store, root) = self.stores.resolve(&self.warehouse)?;
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
                if let Ok(id) = self.id_of(&location)
                    && self.last_listed(&location).await?.is_some()
                {
                    tables.push(id);
                }
            }
        }
        tables.sort();
        Ok(tables)
    }

    async fn load(&self, id: &TableId) -> Result<Option<Table>> {
        let location = self.location(id);
        let Some((version, bytes)) = self.newest(&location).await.map_err(|error| error.with("table", id))?
        else {
            return Ok(None);
        };
        let metadata = parse(&location, version, &bytes).map_err(|error| error.with("table", id))?;
        Ok(Some(self.table(&location, version, metadata)?))
    }

    async fn create(&self, id: &TableId, mut creation: TableCreation) -> Result<Table> {
        self.probe().await?;
        let location = self.location(id);
        creation.location = Some(location.clone());
        let metadata = TableMetadataBuilder::from_table_creation(creation)
            .and_then(TableMetadataBuilder::build)
            .map_err(|error| iceberg_error(error).with("table", id))?
            .metadata;
        // Without this look, a table whose first version was cleaned away could be made again.
        let exists = self.newest(&location).await?.is_some();
        if exists || !self.create_version(&location, 1, &metadata).await? {
            return Err(Error::new(ErrorKind::Conflict, "another runner made the table first")
                .with("table", id)
                .hint("run again: the next run goes on from what the table holds"));
        }
        self.table(&location, 1, metadata)
    }

    async fn commit(
        &self,
        base: &Table,
        requirements: Vec<TableRequirement>,
        updates: Vec<TableUpdate>,
    ) -> Result<Table> {
        let file = base.metadata_location().unwrap_or_default();
        let parts = file.rsplit_once("/metadata/").and_then(|(dir, name)| Some((dir, version_of(name)?)));
        let (location, mut version) = parts.ok_or_else(|| {
            Error::new(ErrorKind::Internal, "not a table of this catalog").with("file", file)
        })?;
        let mut newest = base.metadata().clone();
        for _ in 0..MOVES {
            for requirement in &requirements {
                requirement.check(Some(&newest)).map_err(iceberg_error)?;
            }
            let mut builder = newest.into_builder(Some(version_file(location, version)));
            for update in updates.iter().cloned() {
                builder = update.apply(builder).map_err(iceberg_error)?;
            }
            let built = builder.build().map_err(iceberg_error)?;
            if self.create_version(location, version + 1, &built.metadata).await? {
                self.forget(built.expired_metadata_logs).await;
                return self.table(location, version + 1, built.metadata);
            }
            let Some((found, bytes)) = self.newest(location).await? else { break };
            newest = parse(location, found, &bytes)?;
            version = found;
        }
        Err(Error::new(ErrorKind::Conflict, "the table moves faster than this commit"))
    }
}

fn version_file(location: &str, version: u64) -> String {
    format!("{location}/metadata/v{version}.metadata.json")
}

fn hint_file(location: &str) -> String {
    format!("{location}/metadata/version-hint.text")
}

/// `v12.metadata.json` → 12.
fn version_of(name: &str) -> Option<u64> {
    name.strip_prefix('v')?.strip_suffix(".metadata.json")?.parse().ok()
}

/// What must be looked at before the rest can be understood.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Head {
    format_version: u64,
    #[serde(default)]
    properties: std::collections::HashMap<String, String>,
}

fn parse(location: &str, version: u64, bytes: &[u8]) -> Result<TableMetadata> {
    let file = version_file(location, version);
    let damaged = |source: serde_json::Error| {
        let back = match version {
            0 | 1 => "restore it from a backup".to_owned(),
            _ => format!(
                "restore it from a backup, or delete it to go back to v{}: the rows it added are then read again",
                version - 1
            ),
        };
        Error::new(ErrorKind::Corrupt, "the table's metadata file is damaged")
            .with("file", &file)
            .hint(back)
            .because(source)
    };
    let head: Head = serde_json::from_slice(bytes).map_err(damaged)?;
    let ours = head.properties.get(FORMAT_PROPERTY).map_or(Some(0), |format| format.parse::<u32>().ok());
    if head.format_version > ICEBERG_FORMAT || ours.is_none_or(|format| format > FORMAT) {
        return Err(Error::new(ErrorKind::Unsupported, "the table was written by a newer version")
            .with("file", &file)
            .with("format", head.format_version)
            .hint("upgrade frazil; nothing was changed"));
    }
    serde_json::from_slice(bytes).map_err(damaged)
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
