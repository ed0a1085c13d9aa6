//! Which rows of which files differ between two snapshots, from manifests and delete files alone.
//!
//! ```text
//! manifest list a ─┐                      ┌─ data files only in b      ─▶ added   (minus deletes at b)
//!                  ├─ manifests in one ───┼─ data files only in a      ─▶ removed (minus deletes at a)
//! manifest list b ─┘  list only           └─ delete files in one only  ─▶ added / removed positions
//! ```
//!
//! Manifests are immutable, so one that both lists name holds no difference and is read only when an
//! older file's deletes must be known. Deletes by value, which only other engines write, become
//! positions first. The answer is exact in either direction of history: a
//! rollback is the same difference, turned around. The live rows of a snapshot are its difference
//! from nothing.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use iceberg::spec::{DataContentType, ManifestContentType, ManifestFile};
use iceberg::table::Table;
use roaring::RoaringTreemap;

use super::manifest::{self, LiveFile, LiveFiles};
use super::position_deletes::{self, Deleted};
use super::{Stores, equality_deletes};
use crate::error::{Error, ErrorKind, Result};

/// Manifests read at once: enough to hide a store's latency, few enough to hold in memory.
const MANIFESTS_AT_ONCE: usize = 8;

/// Rows that one snapshot has and another has not.
#[derive(Debug, Default)]
pub(super) struct FileDiff {
    /// Rows that only the second snapshot has.
    pub(super) added: Vec<FileRows>,
    /// Rows that only the first snapshot has.
    pub(super) removed: Vec<FileRows>,
    /// Whether whole data files went.
    pub(super) files_removed: bool,
}

/// Some rows of a data file.
#[derive(Debug, Clone)]
pub(super) struct FileRows {
    /// The file, as its manifest describes it.
    pub(super) file: LiveFile,
    /// Which of its rows.
    pub(super) rows: Rows,
}

/// A choice among the rows of a file, by position.
#[derive(Debug, Clone)]
pub(super) enum Rows {
    /// All of them.
    All,
    /// All but these.
    Except(Arc<RoaringTreemap>),
    /// Only these.
    Only(Arc<RoaringTreemap>),
}

impl FileRows {
    fn except(file: LiveFile, deleted: RoaringTreemap) -> Self {
        let rows = match deleted.is_empty() {
            true => Rows::All,
            false => Rows::Except(Arc::new(deleted)),
        };
        Self { file, rows }
    }

    /// How many rows.
    pub(super) fn count(&self) -> u64 {
        match &self.rows {
            Rows::All => self.file.file.record_count(),
            Rows::Except(positions) => self.file.file.record_count().saturating_sub(positions.len()),
            Rows::Only(positions) => positions.len(),
        }
    }
}

/// The difference between two snapshots of one table; `None` is the empty table.
pub(super) async fn between(
    table: &Table,
    stores: &Stores,
    from: Option<i64>,
    to: Option<i64>,
) -> Result<FileDiff> {
    let (list_a, list_b) = (manifests(table, from).await?, manifests(table, to).await?);
    let (shared, only_b) = split(list_b, &list_a);
    let (_, only_a) = split(list_a, &shared);

    let mut a = Entries::read(table, &only_a.iter().collect::<Vec<_>>()).await?;
    let mut b = Entries::read(table, &only_b.iter().collect::<Vec<_>>()).await?;
    let rewritten = a.take_common(&mut b);

    // What came or went with delete files: their positions, whatever file they are of.
    let (by_value_a, by_value_b) = (take_equality(&mut a.deletes), take_equality(&mut b.deletes));
    let mut hidden = position_deletes::read(stores, &b.deletes, None).await?;
    let mut shown = position_deletes::read(stores, &a.deletes, None).await?;
    if !by_value_a.is_empty() || !by_value_b.is_empty() {
        let both = data_of_both(table, &shared, &rewritten).await?;
        for (deletes, data, positions) in
            [(&by_value_a, &a.data, &mut shown), (&by_value_b, &b.data, &mut hidden)]
        {
            let data: Vec<_> = data.iter().chain(&both).collect();
            unite(positions, equality_deletes::positions(table, stores, deletes, &data).await?)?;
        }
    }

    // Files of both snapshots that such deletes hit.
    let moved: HashSet<&str> = a.data.iter().chain(&b.data).map(|file| file.path()).collect();
    let touched: BTreeSet<&str> =
        hidden.keys().chain(shown.keys()).map(String::as_str).filter(|path| !moved.contains(path)).collect();

    // Deletes that both snapshots have, of the files at hand.
    let survivors = survivors(table, &shared, &rewritten, &touched).await?;
    let at_hand: Vec<&LiveFile> = a.data.iter().chain(&b.data).chain(&survivors).collect();
    let kept = kept_deletes(table, stores, &shared, &rewritten, &at_hand).await?;

    let both = |path: &str, changed: &HashMap<String, Deleted>| match (kept.get(path), changed.get(path)) {
        (Some(kept), Some(changed)) => kept.clone().and(changed.clone()).map(Deleted::positions),
        (kept, changed) => Ok(kept.or(changed).cloned().map(Deleted::positions).unwrap_or_default()),
    };
    let mut diff = FileDiff { files_removed: !a.data.is_empty(), ..FileDiff::default() };
    for file in b.data {
        let deleted = both(file.path(), &hidden)?;
        diff.added.push(FileRows::except(file, deleted));
    }
    for file in a.data {
        let deleted = both(file.path(), &shown)?;
        diff.removed.push(FileRows::except(file, deleted));
    }
    for file in survivors {
        let before = both(file.path(), &shown)?;
        let after = both(file.path(), &hidden)?;
        for (rows, side) in [(&after - &before, &mut diff.removed), (before - after, &mut diff.added)] {
            if !rows.is_empty() {
                side.push(FileRows { file: file.clone(), rows: Rows::Only(Arc::new(rows)) });
            }
        }
    }
    diff.added.retain(|rows| rows.count() > 0);
    diff.removed.retain(|rows| rows.count() > 0);
    Ok(diff)
}

/// The manifests of a snapshot.
async fn manifests(table: &Table, snapshot: Option<i64>) -> Result<Vec<ManifestFile>> {
    let Some(id) = snapshot else { return Ok(Vec::new()) };
    let snapshot = table.metadata().snapshot_by_id(id).ok_or_else(|| {
        Error::new(ErrorKind::Config, format!("snapshot {id} does not exist (any more)"))
            .hint("it may have expired; `frazil snapshots` lists those that are left")
    })?;
    manifest::manifests(table, snapshot).await
}

/// Those that `other` has, and those that it has not.
fn split(manifests: Vec<ManifestFile>, other: &[ManifestFile]) -> (Vec<ManifestFile>, Vec<ManifestFile>) {
    let other: HashSet<&str> = other.iter().map(|manifest| manifest.manifest_path.as_str()).collect();
    manifests.into_iter().partition(|manifest| other.contains(manifest.manifest_path.as_str()))
}

/// Live entries of some manifests.
#[derive(Default)]
struct Entries {
    data: Vec<LiveFile>,
    deletes: Vec<LiveFile>,
}

impl Entries {
    async fn read(table: &Table, manifests: &[&ManifestFile]) -> Result<Self> {
        let loads: Vec<_> = manifests.iter().map(|manifest| manifest::entries(table, manifest)).collect();
        let mut loaded = futures::stream::iter(loads).buffered(MANIFESTS_AT_ONCE);
        let mut entries = Self::default();
        while let Some(files) = loaded.try_next().await? {
            for file in files {
                match file.file.content_type() {
                    DataContentType::Data => entries.data.push(file),
                    DataContentType::PositionDeletes | DataContentType::EqualityDeletes => {
                        entries.deletes.push(file)
                    }
                }
            }
        }
        Ok(entries)
    }

    /// Takes out what both have: a manifest was rewritten, its files were not.
    fn take_common(&mut self, other: &mut Self) -> Self {
        Self {
            data: take_common(&mut self.data, &mut other.data),
            deletes: take_common(&mut self.deletes, &mut other.deletes),
        }
    }
}

fn take_common(a: &mut Vec<LiveFile>, b: &mut Vec<LiveFile>) -> Vec<LiveFile> {
    // Several deletion vectors share one file, so the path alone is no identity.
    let identity = |entry: &LiveFile| (entry.path().to_owned(), entry.file.content_offset());
    let in_a: HashSet<_> = a.iter().map(identity).collect();
    let common: Vec<_> = b.extract_if(.., |entry| in_a.contains(&identity(entry))).collect();
    let in_both: HashSet<_> = common.iter().map(identity).collect();
    a.retain(|entry| !in_both.contains(&identity(entry)));
    common
}

/// The entries of data files that both snapshots have, by path.
async fn survivors(
    table: &Table,
    shared: &[ManifestFile],
    rewritten: &Entries,
    paths: &BTreeSet<&str>,
) -> Result<Vec<LiveFile>> {
    let mut found: Vec<_> =
        rewritten.data.iter().filter(|file| paths.contains(file.path())).cloned().collect();
    if found.len() < paths.len() {
        found = data_of_both(table, shared, rewritten).await?;
        found.retain(|file| paths.contains(file.path()));
    }
    // Deletes may outlive their data file; such positions hide nothing.
    Ok(found)
}

/// The data files that both snapshots have.
async fn data_of_both(table: &Table, shared: &[ManifestFile], rewritten: &Entries) -> Result<Vec<LiveFile>> {
    let data: Vec<_> =
        shared.iter().filter(|manifest| manifest.content == ManifestContentType::Data).collect();
    let mut files = Entries::read(table, &data).await?.data;
    files.extend(rewritten.data.iter().cloned());
    Ok(files)
}

/// Positions that were deleted in both snapshots, of the files at hand.
async fn kept_deletes(
    table: &Table,
    stores: &Stores,
    shared: &[ManifestFile],
    rewritten: &Entries,
    files: &[&LiveFile],
) -> Result<HashMap<String, Deleted>> {
    // A delete is never older than the file it is of: newly written files need no old manifest.
    let Some(oldest) = files.iter().map(|file| file.sequence).min() else { return Ok(HashMap::new()) };
    let may_concern = |manifest: &&ManifestFile| {
        manifest.content == ManifestContentType::Deletes && manifest.sequence_number >= oldest
    };
    let relevant: Vec<_> = shared.iter().filter(may_concern).collect();
    let mut deletes = Entries::read(table, &relevant).await?.deletes;
    deletes.extend(rewritten.deletes.iter().cloned());
    hidden(table, stores, deletes, files).await
}

/// The positions that deletes of one snapshot hide in some of its files.
pub(super) async fn hidden(
    table: &Table,
    stores: &Stores,
    mut deletes: Vec<LiveFile>,
    files: &[&LiveFile],
) -> Result<HashMap<String, Deleted>> {
    let by_value = take_equality(&mut deletes);
    let paths = files.iter().map(|file| file.path()).collect();
    let mut positions = position_deletes::read(stores, &deletes, Some(&paths)).await?;
    unite(&mut positions, equality_deletes::positions(table, stores, &by_value, files).await?)?;
    Ok(positions)
}

/// The rows of a snapshot's files that its deletes leave.
pub(super) async fn visible(table: &Table, stores: &Stores, live: LiveFiles) -> Result<Vec<FileRows>> {
    let files: Vec<&LiveFile> = live.data.iter().collect();
    let mut positions = hidden(table, stores, live.deletes, &files).await?;
    let rows = live.data.into_iter().map(|file| {
        let deleted = positions.remove(file.path()).map(Deleted::positions).unwrap_or_default();
        FileRows::except(file, deleted)
    });
    Ok(rows.filter(|rows| rows.count() > 0).collect())
}

fn take_equality(deletes: &mut Vec<LiveFile>) -> Vec<LiveFile> {
    deletes.extract_if(.., |file| equality_deletes::is_equality(file)).collect()
}

fn unite(all: &mut HashMap<String, Deleted>, by_value: HashMap<String, RoaringTreemap>) -> Result<()> {
    for (path, positions) in by_value {
        let so_far = all.remove(&path).unwrap_or_default();
        all.insert(path, so_far.and(Deleted::by_value(positions))?);
    }
    Ok(())
}
