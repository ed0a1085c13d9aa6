//! Which files make up a snapshot, with all that a manifest says of them.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use iceberg::spec::{
    DataContentType, DataFile, ManifestContentType, ManifestEntryRef, ManifestFile, Snapshot,
};
use iceberg::table::Table;

use super::storage::{RESTORE, iceberg_error};
use super::{LakeTable, SnapshotId, WrittenFile, row_lineage};
use crate::error::{Error, ErrorKind, Result};

/// Manifests that are fetched at once: enough to hide an object store's latency, few enough that
/// their decoded entries stay small in memory.
const FETCHES: usize = 8;

/// The files of one snapshot.
#[derive(Debug, Clone, Default)]
pub(super) struct LiveFiles {
    /// Files with rows.
    pub(super) data: Vec<LiveFile>,
    /// Files that hide rows: position deletes, and equality deletes if another engine wrote some.
    pub(super) deletes: Vec<LiveFile>,
}

/// One file of a snapshot. Path, size, record count, bounds, partition, content type and
/// `referenced_data_file` are on `file`.
#[derive(Debug, Clone)]
pub(super) struct LiveFile {
    /// As it stands in the manifest.
    pub(super) file: Arc<DataFile>,
    /// The partition spec it was written by.
    pub(super) spec_id: i32,
    /// The data sequence number: a delete file hides rows of data files that are not newer.
    pub(super) sequence: i64,
    /// The snapshot that added it.
    pub(super) added_by: SnapshotId,
    /// Of a data file in format version 3, the id of its first row.
    pub(super) first_row_id: Option<i64>,
}

impl LiveFile {
    /// As it would be committed again.
    pub(super) fn written(&self) -> WrittenFile {
        WrittenFile { file: self.file.as_ref().clone(), spec_id: self.spec_id }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &str {
        self.file.file_path()
    }
}

impl LakeTable {
    /// The files of a snapshot (`None`: the current one; of an empty table, none).
    pub(super) async fn live_files(&self, at: Option<SnapshotId>) -> Result<LiveFiles> {
        let metadata = self.table.metadata();
        let snapshot = match at {
            None => metadata.current_snapshot(),
            Some(id) => Some(metadata.snapshot_by_id(id.0).ok_or_else(|| self.no_snapshot(id))?),
        };
        match snapshot {
            Some(snapshot) => {
                live_files(&self.table, snapshot).await.map_err(|error| error.with("table", &self.id))
            }
            None => Ok(LiveFiles::default()),
        }
    }

    /// That a snapshot is not known, or not any more.
    pub(super) fn no_snapshot(&self, id: SnapshotId) -> Error {
        Error::new(ErrorKind::Config, "the snapshot does not exist")
            .with("table", &self.id)
            .with("snapshot", id)
            .hint("it may have expired; `frazil snapshots` lists those that are left")
    }
}

/// The manifests of a snapshot.
pub(super) async fn manifests(table: &Table, snapshot: &Snapshot) -> Result<Vec<ManifestFile>> {
    let snapshot = Arc::new(snapshot.clone());
    let list = table.manifest_list_reader(&snapshot).load().await;
    let list = list.map_err(|source| damaged(snapshot.manifest_list(), source))?;
    Ok(list.consume_entries().into_iter().collect())
}

/// The files of a snapshot.
pub(super) async fn live_files(table: &Table, snapshot: &Snapshot) -> Result<LiveFiles> {
    let manifests = manifests(table, snapshot).await?;
    live_in(table, &manifests.iter().collect::<Vec<_>>()).await
}

/// The live files of some manifests of one snapshot.
pub(super) async fn live_in(table: &Table, manifests: &[&ManifestFile]) -> Result<LiveFiles> {
    // Collected, so that the future is `Send` for every lifetime: DataFusion's traits ask for that.
    let loads: Vec<_> = manifests
        .iter()
        .filter(|manifest| may_hold_live(manifest))
        .map(|manifest| entries(table, manifest))
        .collect();
    let mut live = LiveFiles::default();
    let mut loaded = futures::stream::iter(loads).buffered(FETCHES);
    while let Some(files) = loaded.try_next().await? {
        for file in files {
            match file.file.content_type() {
                DataContentType::Data => live.data.push(file),
                _ => live.deletes.push(file),
            }
        }
    }
    Ok(live)
}

/// The live files of one manifest.
pub(super) async fn entries(table: &Table, manifest: &ManifestFile) -> Result<Vec<LiveFile>> {
    let entries = live_entries(table, manifest).await?;
    let mut files = Vec::with_capacity(entries.len());
    for (entry, first_row_id) in entries {
        let sequence = entry.sequence_number().unwrap_or(manifest.sequence_number);
        let added_by = SnapshotId(entry.snapshot_id().unwrap_or(manifest.added_snapshot_id));
        files.push(LiveFile {
            file: Arc::new(entry.data_file().clone()),
            spec_id: manifest.partition_spec_id,
            sequence,
            added_by,
            first_row_id,
        });
    }
    Ok(files)
}

/// The live entries of one manifest, each with the id of its first row.
pub(super) async fn live_entries(
    table: &Table,
    manifest: &ManifestFile,
) -> Result<Vec<(ManifestEntryRef, Option<i64>)>> {
    let loaded = manifest.load_manifest(table.file_io()).await;
    let loaded = loaded.map_err(|source| damaged(&manifest.manifest_path, source))?;
    let (mut entries, _) = loaded.into_parts();
    entries.retain(|entry| entry.is_alive());
    let first_row_ids = row_lineage::first_row_ids(&entries, manifest);
    Ok(entries.into_iter().zip(first_row_ids).collect())
}

/// That a manifest, or a list of them, cannot be read. What is not the store's failure is damage.
fn damaged(file: &str, source: iceberg::Error) -> Error {
    let error = match iceberg_error(source) {
        error if error.kind() == ErrorKind::Internal => {
            Error::new(ErrorKind::Corrupt, "a metadata file of the table is damaged").because(error)
        }
        error => error,
    };
    let error = error.with("file", file);
    if error.kind() == ErrorKind::Corrupt { error.hint(RESTORE) } else { error }
}

/// A manifest that only records removals need not be read.
fn may_hold_live(manifest: &ManifestFile) -> bool {
    debug_assert!(matches!(manifest.content, ManifestContentType::Data | ManifestContentType::Deletes));
    manifest.has_added_files() || manifest.has_existing_files()
}
