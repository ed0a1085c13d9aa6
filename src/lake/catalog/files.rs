//! Metadata files: what every catalog that keeps them itself reads, writes, builds on and cleans away.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use iceberg::io::FileIO;
use iceberg::spec::{FormatVersion, TableMetadata, TableMetadataBuildResult, TableMetadataBuilder};
use iceberg::table::Table;
use iceberg::{NamespaceIdent, Runtime, TableCreation, TableIdent, TableRequirement, TableUpdate};
use object_store::ObjectStoreExt;
use serde::Deserialize;

use super::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::lake::refs::references;
use crate::lake::storage::{Stores, file_io, iceberg_error, store_error};
use crate::lake::{DEFAULT_NAMESPACE, FORMAT, FORMAT_PROPERTY};
use crate::table::TableId;

/// The newest Iceberg format that this build reads and writes.
const ICEBERG_FORMAT: u64 = 3;
/// Table property: whether metadata files that the newest one has forgotten are deleted.
const DELETE_AFTER_COMMIT: &str = "write.metadata.delete-after-commit.enabled";
/// The first bytes of a compressed file.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// The stores as a catalog uses them.
pub(super) struct Files {
    stores: Arc<Stores>,
    file_io: FileIO,
    runtime: Runtime,
}

impl Files {
    pub(super) fn new(stores: Arc<Stores>) -> Result<Self> {
        let runtime = Runtime::try_current().map_err(iceberg_error)?;
        Ok(Self { file_io: file_io(&stores), stores, runtime })
    }

    pub(super) fn stores(&self) -> &Stores {
        &self.stores
    }

    /// A table whose metadata is known.
    pub(super) fn table(&self, id: &TableId, file: String, metadata: TableMetadata) -> Result<Table> {
        let namespace = NamespaceIdent::new(id.schema_or(DEFAULT_NAMESPACE).to_owned());
        Table::builder()
            .file_io(self.file_io.clone())
            .identifier(TableIdent::new(namespace, id.name.clone()))
            .metadata(metadata)
            .metadata_location(file)
            .runtime(self.runtime.clone())
            // Our own reading does not go through it.
            .disable_cache()
            .build()
            .map_err(iceberg_error)
    }

    /// The bytes of a file, `None` if there is none.
    pub(super) async fn get(&self, file: &str) -> Result<Option<Bytes>> {
        let (store, path) = self.stores.resolve(file)?;
        let failed = |source| store_error("read a file", file, source);
        match store.get(&path).await {
            Ok(found) => Ok(Some(found.bytes().await.map_err(failed)?)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(failed(source)),
        }
    }

    /// Writes a metadata file under a name that nobody else uses.
    pub(super) async fn write(&self, file: &str, metadata: &TableMetadata) -> Result<()> {
        let (store, path) = self.stores.resolve(file)?;
        let json = to_json(metadata)?;
        store.put(&path, json.into()).await.map_err(|source| store_error("write a file", file, source))?;
        Ok(())
    }

    /// Removes a file that nothing refers to. What stays is an orphan and does no harm.
    pub(super) async fn discard(&self, file: &str) {
        if let Err(error) = self.file_io.delete(file).await {
            tracing::debug!(%error, "a metadata file without use was not deleted");
        }
    }

    /// Removes metadata files that the newest version does not remember any more, if the table's
    /// properties ask for that.
    pub(super) async fn forget(&self, built: &TableMetadataBuildResult) {
        if built.metadata.properties().get(DELETE_AFTER_COMMIT).is_some_and(|value| value == "true") {
            for entry in &built.expired_metadata_logs {
                self.discard(&entry.metadata_file).await;
            }
        }
    }
}

/// The metadata of a new table at a location.
pub(super) fn created(id: &TableId, mut creation: TableCreation, location: &str) -> Result<TableMetadata> {
    creation.location = Some(location.to_owned());
    let built = TableMetadataBuilder::from_table_creation(creation).and_then(TableMetadataBuilder::build);
    Ok(built.map_err(|error| iceberg_error(error).with("table", id))?.metadata)
}

/// What the updates make of a table, if the requirements hold on it. `file` is where it is.
pub(super) fn updated(
    metadata: TableMetadata,
    file: &str,
    requirements: &[TableRequirement],
    updates: &[TableUpdate],
) -> Result<TableMetadataBuildResult> {
    for requirement in requirements {
        requirement.check(Some(&metadata)).map_err(iceberg_error)?;
    }
    check_current(&metadata, updates)?;
    clock::build(metadata, file, updates)
}

/// That updates were not overtaken in a way that no requirement tells: another branch moved, which takes
/// the next sequence number; or a snapshot that is to go got a name.
pub(super) fn check_current(metadata: &TableMetadata, updates: &[TableUpdate]) -> Result<()> {
    let overtaken = |what: &str| Err(Error::new(ErrorKind::Conflict, what));
    for update in updates {
        match update {
            TableUpdate::AddSnapshot { snapshot }
                if metadata.format_version() != FormatVersion::V1
                    && snapshot.sequence_number() <= metadata.last_sequence_number() =>
            {
                return overtaken("another branch of the table moved meanwhile");
            }
            TableUpdate::RemoveSnapshots { snapshot_ids } => {
                let goes = |name: &String| {
                    updates.iter().any(
                        |it| matches!(it, TableUpdate::RemoveSnapshotRef { ref_name } if ref_name == name),
                    )
                };
                let named = references(metadata);
                if named.iter().any(|(name, it)| snapshot_ids.contains(&it.snapshot_id) && !goes(name)) {
                    return overtaken("a snapshot that was to go got a name meanwhile");
                }
            }
            _ => {}
        }
    }
    Ok(())
}

pub(super) fn to_json(metadata: &TableMetadata) -> Result<Bytes> {
    let json = serde_json::to_vec(metadata).map_err(|source| {
        Error::new(ErrorKind::Internal, "metadata cannot be written as JSON").because(source)
    })?;
    Ok(json.into())
}

/// A metadata file's bytes, compressed. The same bytes make the same file.
pub(super) fn gzipped(bytes: &[u8]) -> Result<Bytes> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    let written = gzip.write_all(bytes).and_then(|()| gzip.finish());
    let written = written
        .map_err(|source| Error::new(ErrorKind::Internal, "metadata cannot be compressed").because(source))?;
    Ok(written.into())
}

/// What must be looked at before the rest can be understood.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Head {
    format_version: u64,
    #[serde(default)]
    properties: HashMap<String, String>,
}

/// Reads a metadata file's bytes, compressed or not.
pub(super) fn parse(file: &str, bytes: &[u8]) -> Result<TableMetadata> {
    let damaged =
        || Error::new(ErrorKind::Corrupt, "the table's metadata file is damaged").with("file", file);
    let mut inflated = Vec::new();
    let bytes = if bytes.starts_with(&GZIP) {
        GzDecoder::new(bytes).read_to_end(&mut inflated).map_err(|source| damaged().because(source))?;
        &inflated
    } else {
        bytes
    };
    let head: Head = serde_json::from_slice(bytes).map_err(|source| damaged().because(source))?;
    let ours = head.properties.get(FORMAT_PROPERTY).map_or(Some(0), |format| format.parse::<u32>().ok());
    if head.format_version > ICEBERG_FORMAT || ours.is_none_or(|format| format > FORMAT) {
        let error = Error::new(ErrorKind::Unsupported, "the table was written by a newer version")
            .with("file", file)
            .hint("upgrade frazil; nothing was changed");
        return Err(match head.properties.get(FORMAT_PROPERTY) {
            Some(format) if head.format_version <= ICEBERG_FORMAT => error.with(FORMAT_PROPERTY, format),
            _ => error.with("format-version", head.format_version),
        });
    }
    serde_json::from_slice(bytes).map_err(|source| damaged().because(source))
}
