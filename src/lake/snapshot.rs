//! The metadata of one new snapshot: manifests, the manifest list, the summary.
//!
//! ```text
//! parent's manifests ──(kept as they are, small ones merged now and then)──┐
//! new files ─▶ one manifest a kind and spec ───────────────────────────────┼─▶ manifest list ─▶ snapshot
//! removed files ─▶ their manifests once more, entries marked deleted ──────┘
//! ```
//!
//! Nothing here is visible before the catalog is swapped; what was written for a snapshot that never
//! came goes with [`Draft::discard`].

use std::collections::{BTreeMap, HashMap, HashSet};

use futures::{StreamExt, TryStreamExt, stream};
use iceberg::spec::{
    DataContentType, DataFile, DataFileBuilder, ManifestContentType, ManifestEntryRef, ManifestFile,
    ManifestListWriter, ManifestWriter, ManifestWriterBuilder, Operation, Snapshot, Summary,
};
use iceberg::table::Table;
use uuid::Uuid;

use super::WrittenFile;
use super::counts::Counts;
use super::format_version::is_v3;
use super::manifest;
use super::storage::iceberg_error;
use crate::delta::SnapshotId;
use crate::error::{Error, ErrorKind, Result};

/// Manifests of one kind that a snapshot may have before its small ones are merged: a reader opens
/// them all, and a merge costs as much as this many commits, once in so many.
const MANIFESTS: usize = 100;
/// A manifest of this size is not merged again.
const MANIFEST_BYTES: i64 = 8 << 20;
/// Entries of one manifest: a writer holds them in memory.
const MANIFEST_ENTRIES: usize = 20_000;

/// Manifests that are written at once: one of data files and one of delete files, mostly.
const MANIFESTS_AT_ONCE: usize = 2;

/// A snapshot under construction.
pub(super) struct Draft<'a> {
    table: &'a Table,
    id: i64,
    parent: Option<SnapshotId>,
    sequence: i64,
    manifests: Vec<ManifestFile>,
    counts: Counts,
    /// Small manifests are merged when there are more.
    pub(super) most_manifests: usize,
    commit: Uuid,
    /// The metadata files that were written for it.
    written: Vec<String>,
}

impl<'a> Draft<'a> {
    /// A snapshot whose content is that of `parent`, or nothing.
    pub(super) async fn on(table: &'a Table, parent: Option<SnapshotId>) -> Result<Self> {
        let metadata = table.metadata();
        let id = loop {
            let (high, low) = Uuid::new_v4().as_u64_pair();
            let id = ((high ^ low) & i64::MAX as u64) as i64;
            if id != 0 && metadata.snapshot_by_id(id).is_none() {
                break id;
            }
        };
        let mut manifests = Vec::new();
        if let Some(snapshot) = parent.and_then(|parent| metadata.snapshot_by_id(parent.0)) {
            manifests = manifest::manifests(table, snapshot).await?;
            manifests.retain(|manifest| manifest.has_added_files() || manifest.has_existing_files());
        }
        Ok(Self {
            table,
            id,
            parent,
            sequence: metadata.next_sequence_number(),
            manifests,
            counts: Counts::default(),
            most_manifests: MANIFESTS,
            commit: Uuid::new_v4(),
            written: Vec::new(),
        })
    }

    /// Adds new files, as of this snapshot.
    pub(super) async fn add(&mut self, files: &[WrittenFile]) -> Result<()> {
        // A negative number: inherited from the snapshot.
        self.add_as_of(files, -1).await
    }

    /// Adds new files with the data sequence number of the rows that they take over.
    pub(super) async fn add_as_of(&mut self, files: &[WrittenFile], sequence: i64) -> Result<()> {
        let mut groups: BTreeMap<(bool, i32), Vec<&DataFile>> = BTreeMap::new();
        for written in files {
            let deletes = written.file.content_type() != DataContentType::Data;
            groups.entry((deletes, written.spec_id)).or_default().push(&written.file);
            self.counts.add(&written.file);
        }
        let mut writers = Vec::new();
        for ((deletes, spec), files) in groups {
            let content = if deletes { ManifestContentType::Deletes } else { ManifestContentType::Data };
            for files in files.chunks(MANIFEST_ENTRIES) {
                let mut writer = self.writer(spec, content)?;
                for file in files {
                    writer.add_file((*file).clone(), sequence).map_err(iceberg_error)?;
                }
                writers.push(writer.write_manifest_file());
            }
        }
        let mut manifests = stream::iter(writers).buffered(MANIFESTS_AT_ONCE);
        while let Some(manifest) = manifests.try_next().await.map_err(iceberg_error)? {
            self.manifests.push(manifest);
        }
        Ok(())
    }

    /// Removes all files that are there. To be called before any is added.
    pub(super) async fn remove_all(&mut self) -> Result<()> {
        self.remove_where(|_| true).await.map(drop)
    }

    /// Removes some of the files that are there, and says how many were found. To be called before any
    /// is added.
    pub(super) async fn remove(&mut self, gone: &HashSet<FileKey>) -> Result<usize> {
        self.remove_where(|file| gone.contains(&FileKey::of(file))).await
    }

    /// Removes data files of which no row is left. To be called before any is added.
    pub(super) async fn remove_data(&mut self, gone: &HashSet<FileKey>) -> Result<()> {
        self.remove_of(ManifestContentType::Data, gone).await
    }

    /// Removes delete files that others take the place of. To be called before any is added.
    pub(super) async fn remove_deletes(&mut self, gone: &HashSet<FileKey>) -> Result<()> {
        self.remove_of(ManifestContentType::Deletes, gone).await
    }

    /// Manifests of the other kind are not looked at.
    async fn remove_of(&mut self, content: ManifestContentType, gone: &HashSet<FileKey>) -> Result<()> {
        if gone.is_empty() {
            return Ok(());
        }
        let (of_kind, others) = std::mem::take(&mut self.manifests)
            .into_iter()
            .partition(|manifest: &ManifestFile| manifest.content == content);
        self.manifests = of_kind;
        let removed = self.remove(gone).await?;
        self.manifests.extend(others as Vec<ManifestFile>);
        if removed != gone.len() {
            return Err(Error::new(ErrorKind::Internal, "a file to be removed is not there"));
        }
        Ok(())
    }

    /// Manifests that hold none of the files stay as they are; the others become one of each kind.
    async fn remove_where(&mut self, gone: impl Fn(&DataFile) -> bool) -> Result<usize> {
        let mut removed = 0;
        let mut open: HashMap<(i32, bool), (ManifestWriter, usize)> = HashMap::new();
        for old in std::mem::take(&mut self.manifests) {
            let entries = manifest::live_entries(self.table, &old).await?;
            if !entries.iter().any(|(entry, _)| gone(entry.data_file())) {
                self.manifests.push(old);
                continue;
            }
            let kind = (old.partition_spec_id, old.content == ManifestContentType::Deletes);
            let (mut writer, before) = match open.remove(&kind) {
                Some((full, before)) if before + entries.len() > MANIFEST_ENTRIES => {
                    self.finish(full).await?;
                    (self.writer(kind.0, old.content)?, 0)
                }
                Some(writer) => writer,
                None => (self.writer(kind.0, old.content)?, 0),
            };
            let count = before + entries.len();
            for (entry, first_row_id) in entries {
                let (file, sequence) = (rebuilt(&entry, &old, first_row_id)?, sequence_of(&entry, &old));
                if gone(&file) {
                    removed += 1;
                    self.counts.remove(&file);
                    writer.add_delete_file(file, sequence, entry.file_sequence_number)
                } else {
                    let added_by = entry.snapshot_id().unwrap_or(old.added_snapshot_id);
                    writer.add_existing_file(file, added_by, sequence, entry.file_sequence_number)
                }
                .map_err(iceberg_error)?;
            }
            open.insert(kind, (writer, count));
        }
        for (writer, _) in open.into_values() {
            self.finish(writer).await?;
        }
        Ok(removed)
    }

    /// Merges small manifests when there are many, so that planning stays cheap however often a table
    /// is written to.
    async fn merge_small(&mut self) -> Result<()> {
        for content in [ManifestContentType::Data, ManifestContentType::Deletes] {
            let is_small = |manifest: &ManifestFile| {
                manifest.content == content
                    && manifest.manifest_length < MANIFEST_BYTES
                    && manifest.added_snapshot_id != self.id
            };
            if self.manifests.iter().filter(|manifest| is_small(manifest)).count() <= self.most_manifests {
                continue;
            }
            let (small, kept) = std::mem::take(&mut self.manifests).into_iter().partition(is_small);
            self.manifests = kept;
            let mut specs: BTreeMap<i32, Vec<ManifestFile>> = BTreeMap::new();
            for manifest in small as Vec<ManifestFile> {
                specs.entry(manifest.partition_spec_id).or_default().push(manifest);
            }
            for (spec, manifests) in specs {
                self.merge(spec, content, manifests).await?;
            }
        }
        Ok(())
    }

    async fn merge(
        &mut self,
        spec: i32,
        content: ManifestContentType,
        manifests: Vec<ManifestFile>,
    ) -> Result<()> {
        let mut writer = self.writer(spec, content)?;
        let (mut entries_in, mut bytes_in) = (0, 0);
        for old in manifests {
            let entries = manifest::live_entries(self.table, &old).await?;
            if entries_in > 0
                && (entries_in + entries.len() > MANIFEST_ENTRIES
                    || bytes_in + old.manifest_length > MANIFEST_BYTES)
            {
                let full = std::mem::replace(&mut writer, self.writer(spec, content)?);
                self.finish(full).await?;
                (entries_in, bytes_in) = (0, 0);
            }
            entries_in += entries.len();
            bytes_in += old.manifest_length;
            for (entry, first_row_id) in entries {
                let added_by = entry.snapshot_id().unwrap_or(old.added_snapshot_id);
                writer
                    .add_existing_file(
                        rebuilt(&entry, &old, first_row_id)?,
                        added_by,
                        sequence_of(&entry, &old),
                        entry.file_sequence_number,
                    )
                    .map_err(iceberg_error)?;
            }
        }
        self.finish(writer).await
    }

    /// Deletes what was written, for a snapshot that never came.
    pub(super) async fn discard(self) {
        for file in &self.written {
            if let Err(error) = self.table.file_io().delete(file).await {
                tracing::debug!(%error, "metadata without use was not deleted");
            }
        }
    }

    fn writer(&mut self, spec: i32, content: ManifestContentType) -> Result<ManifestWriter> {
        let metadata = self.table.metadata();
        let number = self.written.len();
        let location = format!("{}/metadata/{}-m{number}.avro", metadata.location(), self.commit);
        let output = self.table.file_io().new_output(&location).map_err(iceberg_error)?;
        self.written.push(location);
        let spec = metadata.partition_spec_by_id(spec).ok_or_else(|| {
            Error::new(ErrorKind::Internal, "a file was written by an unknown partition spec")
                .with("spec", spec)
        })?;
        let builder = ManifestWriterBuilder::new(
            output,
            Some(self.id),
            metadata.current_schema().clone(),
            spec.as_ref().clone(),
        );
        Ok(match (content, is_v3(metadata)) {
            (ManifestContentType::Data, false) => builder.build_v2_data(),
            (ManifestContentType::Deletes, false) => builder.build_v2_deletes(),
            (ManifestContentType::Data, true) => builder.build_v3_data(),
            (ManifestContentType::Deletes, true) => builder.build_v3_deletes(),
        })
    }

    async fn finish(&mut self, writer: ManifestWriter) -> Result<()> {
        self.manifests.push(writer.write_manifest_file().await.map_err(iceberg_error)?);
        Ok(())
    }

    /// Writes the manifest list and describes the snapshot. `summary` comes before what is counted.
    pub(super) async fn build(&mut self, summary: HashMap<String, String>) -> Result<Snapshot> {
        let operation = self.counts.operation();
        self.build_as(operation, summary).await
    }

    /// The same, by another name than what is counted suggests.
    pub(super) async fn build_as(
        &mut self,
        operation: Operation,
        mut summary: HashMap<String, String>,
    ) -> Result<Snapshot> {
        self.merge_small().await?;
        let metadata = self.table.metadata();
        let location = format!("{}/metadata/snap-{}-1-{}.avro", metadata.location(), self.id, self.commit);
        let output = self.table.file_io().new_output(&location).map_err(iceberg_error)?;
        self.written.push(location.clone());
        let parent = self.parent.map(|parent| parent.0);
        let writer = output.writer().await.map_err(iceberg_error)?;
        let first_row_id = is_v3(metadata).then(|| metadata.next_row_id());
        let mut list = match first_row_id {
            None => ManifestListWriter::v2(writer, self.id, parent, self.sequence),
            Some(first) => ManifestListWriter::v3(writer, self.id, parent, self.sequence, Some(first)),
        };
        list.add_manifests(std::mem::take(&mut self.manifests).into_iter()).map_err(iceberg_error)?;
        // Manifests without row ids of their own have got some: new ones, and those from before version 3.
        let row_range = first_row_id.zip(list.next_row_id()).map(|(first, next)| (first, next - first));
        list.close().await.map_err(iceberg_error)?;

        let before = parent.and_then(|parent| metadata.snapshot_by_id(parent)).map(|parent| parent.summary());
        self.counts.describe(before, &mut summary);
        // Clocks differ between machines; the history of a table goes forward. What changed no row may have
        // been noted by a clock that is behind.
        let last = metadata.history().last().map_or(i64::MIN, |entry| entry.timestamp_ms());
        let now = chrono::Utc::now().timestamp_millis().max(metadata.last_updated_ms().max(last) + 1);
        let snapshot = Snapshot::builder()
            .with_snapshot_id(self.id)
            .with_parent_snapshot_id(parent)
            .with_sequence_number(self.sequence)
            .with_timestamp_ms(now)
            .with_manifest_list(location)
            .with_summary(Summary { operation, additional_properties: summary })
            .with_schema_id(metadata.current_schema_id());
        Ok(match row_range {
            None => snapshot.build(),
            Some((first, rows)) => snapshot.with_row_range(first, rows).build(),
        })
    }
}

/// What tells two files of a snapshot apart: deletion vectors share a file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct FileKey {
    path: String,
    content_offset: Option<i64>,
}

impl FileKey {
    /// Of a data or delete file.
    pub(super) fn of(file: &DataFile) -> Self {
        Self { path: file.file_path().to_owned(), content_offset: file.content_offset() }
    }

    /// Where it is.
    pub(super) fn path(&self) -> &str {
        &self.path
    }
}

fn sequence_of(entry: &ManifestEntryRef, manifest: &ManifestFile) -> i64 {
    entry.sequence_number().unwrap_or(manifest.sequence_number)
}

/// The file of an entry, to be written again: its own spec goes with it, and the row ids that it has
/// by its place in the manifest.
fn rebuilt(entry: &ManifestEntryRef, manifest: &ManifestFile, first_row_id: Option<i64>) -> Result<DataFile> {
    let file = entry.data_file();
    let mut builder = DataFileBuilder::default();
    builder
        .content(file.content_type())
        .file_path(file.file_path().to_owned())
        .file_format(file.file_format())
        .partition(file.partition().clone())
        .partition_spec_id(manifest.partition_spec_id)
        .record_count(file.record_count())
        .file_size_in_bytes(file.file_size_in_bytes())
        .column_sizes(file.column_sizes().clone())
        .value_counts(file.value_counts().clone())
        .null_value_counts(file.null_value_counts().clone())
        .nan_value_counts(file.nan_value_counts().clone())
        .lower_bounds(file.lower_bounds().clone())
        .upper_bounds(file.upper_bounds().clone())
        .key_metadata(file.key_metadata().map(<[u8]>::to_vec))
        .split_offsets(file.split_offsets().map(<[i64]>::to_vec))
        .equality_ids(file.equality_ids())
        .first_row_id(first_row_id.filter(|_| file.content_type() == DataContentType::Data))
        .referenced_data_file(file.referenced_data_file())
        .content_offset(file.content_offset())
        .content_size_in_bytes(file.content_size_in_bytes());
    if let Some(order) = file.sort_order_id() {
        builder.sort_order_id(order);
    }
    builder
        .build()
        .map_err(|source| Error::new(ErrorKind::Internal, "a manifest entry lacks a field").because(source))
}
