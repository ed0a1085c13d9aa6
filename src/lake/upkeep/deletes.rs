//! Delete files that apply to nothing any more, and many small ones made one.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use iceberg::spec::{DataContentType, DataFileFormat};
use roaring::RoaringTreemap;

use super::super::format_version::is_v3;
use super::super::manifest::{LiveFile, LiveFiles};
use super::super::snapshot::FileKey;
use super::super::write::discard;
use super::super::{LakeTable, deletes, position_deletes};
use super::plan::{Layout, partition_name};
use super::swap::Swap;
use crate::delta::SnapshotId;
use crate::error::Result;

/// Delete files read at once.
const FILES_AT_ONCE: usize = 8;
/// A delete file larger than this is left as it is: merging is for the small ones, and what they hold
/// is in memory meanwhile.
const LARGEST: u64 = 4 << 20;
/// Times that a merge is tried on a table that moves.
const TRIES: usize = 20;

/// What delete files hold: they never change, so each is read once.
#[derive(Default)]
pub(super) struct DeleteContents {
    read: HashMap<FileKey, Arc<HashMap<String, RoaringTreemap>>>,
}

impl DeleteContents {
    /// Reads what has not been read yet.
    async fn load(&mut self, table: &LakeTable, files: &[&LiveFile]) -> Result<()> {
        let missing: Vec<_> = files
            .iter()
            .filter(|file| !self.read.contains_key(&FileKey::of(&file.file)))
            .map(|file| async move {
                let found = position_deletes::read(&table.stores, std::slice::from_ref(*file), None).await?;
                let positions = found.into_iter().map(|(path, deleted)| (path, deleted.positions()));
                Ok::<_, crate::Error>((FileKey::of(&file.file), Arc::new(positions.collect())))
            })
            .collect();
        let read: Vec<_> =
            futures::stream::iter(missing).buffer_unordered(FILES_AT_ONCE).try_collect().await?;
        self.read.extend(read);
        Ok(())
    }

    fn of(&self, file: &LiveFile) -> Option<&HashMap<String, RoaringTreemap>> {
        self.read.get(&FileKey::of(&file.file)).map(Arc::as_ref)
    }
}

/// The delete files that concern none of the data files: those of `live`, and new ones as of `outputs`.
pub(super) async fn dangling(
    table: &LakeTable,
    live: &LiveFiles,
    outputs: Option<i64>,
    contents: &mut DeleteContents,
) -> Result<Vec<FileKey>> {
    let paths: HashSet<&str> = live.data.iter().map(|file| file.path()).collect();
    let oldest = live.data.iter().map(|file| file.sequence).chain(outputs).min();
    let mut gone = Vec::new();
    let mut unknown = Vec::new();
    for file in &live.deletes {
        if file.file.content_type() == DataContentType::EqualityDeletes {
            // They hide rows that are older than themselves.
            if oldest.is_none_or(|oldest| oldest >= file.sequence) {
                gone.push(FileKey::of(&file.file));
            }
        } else if let Some(of) = file.file.referenced_data_file() {
            if !paths.contains(of.as_str()) {
                gone.push(FileKey::of(&file.file));
            }
        } else if is_mergeable(file) {
            unknown.push(file);
        }
    }
    contents.load(table, &unknown).await?;
    for file in unknown {
        let concerns = |positions: &HashMap<String, RoaringTreemap>| {
            positions.keys().any(|path| paths.contains(path.as_str()))
        };
        if !contents.of(file).is_none_or(concerns) {
            gone.push(FileKey::of(&file.file));
        }
    }
    Ok(gone)
}

/// A small file of positions in the form of version 2.
fn is_mergeable(file: &LiveFile) -> bool {
    file.file.content_type() == DataContentType::PositionDeletes
        && file.file.file_format() == DataFileFormat::Parquet
        && file.file.file_size_in_bytes() <= LARGEST
}

impl LakeTable {
    /// Merges small delete files, partition by partition, and drops those that apply to nothing.
    /// Returns how many went and how many came, and the snapshot that did it, if there was anything
    /// to do. Moves `self` to the result.
    pub async fn merge_delete_files(&mut self, layout: Layout) -> Result<Option<(SnapshotId, usize, usize)>> {
        let outcome = self.try_merge(layout).await;
        outcome.map_err(|error| error.with("table", &self.id))
    }

    async fn try_merge(&mut self, layout: Layout) -> Result<Option<(SnapshotId, usize, usize)>> {
        if is_v3(self.table.metadata()) {
            // There is at most one deletion vector for each data file already.
            return Ok(None);
        }
        let mut contents = DeleteContents::default();
        for _ in 0..TRIES {
            let live = self.live_files(None).await?;
            let gone: HashSet<FileKey> =
                dangling(self, &live, None, &mut contents).await?.into_iter().collect();
            let Some(swap) = self.merged(&live, gone, layout, &mut contents).await? else { return Ok(None) };
            if let Some(snapshot) = self.swap(&swap).await? {
                return Ok(Some((snapshot, swap.gone.len(), swap.deletes.len())));
            }
            discard(&self.stores, &swap.deletes).await;
            self.reload().await?;
        }
        Ok(None)
    }

    /// The small delete files of partitions that have many, as one each.
    async fn merged(
        &self,
        live: &LiveFiles,
        mut gone: HashSet<FileKey>,
        layout: Layout,
        contents: &mut DeleteContents,
    ) -> Result<Option<Swap>> {
        let mut partitions: BTreeMap<(i32, String), Vec<&LiveFile>> = BTreeMap::new();
        for file in live.deletes.iter().filter(|file| is_mergeable(file)) {
            if !gone.contains(&FileKey::of(&file.file)) {
                let partition = partition_name(file.file.partition());
                partitions.entry((file.spec_id, partition)).or_default().push(file);
            }
        }
        partitions.retain(|_, files| files.len() >= layout.delete_files.max(2));
        if partitions.is_empty() && gone.len() < layout.delete_files {
            return Ok(None);
        }
        let data: HashMap<&str, &LiveFile> = live.data.iter().map(|file| (file.path(), file)).collect();
        let mut positions: HashMap<&str, RoaringTreemap> = HashMap::new();
        let merged: Vec<&LiveFile> = partitions.into_values().flatten().collect();
        contents.load(self, &merged).await?;
        for file in merged {
            for (path, hidden) in contents.of(file).into_iter().flatten() {
                // A delete file hides nothing of a data file that is newer than itself.
                let of = data.get_key_value(path.as_str()).filter(|(_, of)| of.sequence <= file.sequence);
                if let Some((path, _)) = of {
                    *positions.entry(path).or_default() |= hidden;
                }
            }
            gone.insert(FileKey::of(&file.file));
        }
        let hidden = positions.into_iter().map(|(path, positions)| (data[path].written(), positions));
        let deletes = deletes::hide_positions(self, hidden.collect()).await?;
        Ok(Some(Swap { gone, deletes, what: "merge_deletes", ..Swap::default() }))
    }
}
