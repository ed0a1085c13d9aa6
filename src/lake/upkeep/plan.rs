//! Which files to rewrite: small ones together, and those of which many rows are deleted.
//!
//! ```text
//! files of a partition ─┬─ many rows deleted ─────────────────────┐
//!                       ├─ small: 40k 50k 60k │ 5M 6M 6M │ 90M ───┴─▶ groups of about one new file
//!                       └─ large and whole: left alone
//! ```
//!
//! Small files are merged with files of about their size, so that a row is rewritten some times in its
//! life and not with every merge: the work stays proportional to what was written.

use std::collections::{BTreeMap, HashSet};

use iceberg::spec::{DataContentType, Struct};

use super::super::file_diff::{self, FileRows};
use super::super::manifest::LiveFile;
use super::super::snapshot::FileKey;
use super::super::write::FILE_BYTES;
use super::super::{LakeTable, SnapshotId};
use crate::error::Result;

/// The table property that says how large files should be.
pub(in super::super) const FILE_BYTES_PROPERTY: &str = "write.target-file-size-bytes";
/// A file below this share of the wanted size is small.
const SMALL: f64 = 0.75;
/// A merge takes in a file that is at most so many times as large as all smaller ones together.
const STEP: u64 = 2;
/// Below this size all files count as alike: opening one costs more than its bytes.
const TINY: u64 = 1 << 20;

/// What a well-kept table looks like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Layout {
    /// The size of a data file; `None`: as the table says, else 256 MiB.
    pub file_bytes: Option<u64>,
    /// So many small files of a size are merged.
    pub small_files: usize,
    /// A file of which this share of rows is deleted is written anew without them.
    pub deleted_share: f64,
    /// So many delete files of a partition are merged into one.
    pub delete_files: usize,
    /// Rows of rewritten files are sorted by the table's sort order, else by its key.
    pub sort: bool,
}

impl Default for Layout {
    fn default() -> Self {
        Self { file_bytes: None, small_files: 5, deleted_share: 0.3, delete_files: 10, sort: false }
    }
}

/// Files that become new ones together.
#[derive(Debug, Clone)]
pub struct Rewrite {
    /// The snapshot that was looked at, and its sequence number.
    pub(super) at: SnapshotId,
    pub(super) sequence: i64,
    /// What to read, in this order.
    pub(super) inputs: Vec<FileRows>,
    /// Files without a row left: they only go.
    pub(super) empty: Vec<LiveFile>,
    /// The delete files that were taken into account.
    pub(super) deletes: HashSet<FileKey>,
    /// Equality deletes may hide more rows than are known from positions.
    pub(super) filtered: bool,
    pub(super) sort: bool,
    pub(super) file_bytes: u64,
    /// Why it pays.
    pub why: Why,
}

/// Why a rewrite pays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// Files are too small.
    SmallFiles,
    /// Most of what is in the files is deleted.
    DeletedRows,
}

impl Rewrite {
    /// How many data files go.
    pub fn files(&self) -> usize {
        self.inputs.len() + self.empty.len()
    }

    /// Their size.
    pub fn bytes(&self) -> u64 {
        let inputs = self.inputs.iter().map(|rows| &rows.file);
        inputs.chain(&self.empty).map(|file| file.file.file_size_in_bytes()).sum()
    }

    /// Rows that are written again.
    pub fn rows(&self) -> u64 {
        self.inputs.iter().map(FileRows::count).sum()
    }

    /// Everything that goes.
    pub(super) fn gone(&self) -> impl Iterator<Item = &LiveFile> {
        self.inputs.iter().map(|rows| &rows.file).chain(&self.empty)
    }
}

impl LakeTable {
    /// The rewrites that pay, on the state that `self` was loaded at. Independent of each other.
    pub async fn plan_rewrites(&self, layout: Layout) -> Result<Vec<Rewrite>> {
        self.try_plan(layout).await.map_err(|error| error.with("table", &self.id))
    }

    async fn try_plan(&self, layout: Layout) -> Result<Vec<Rewrite>> {
        let metadata = self.table.metadata();
        let Some(snapshot) = metadata.current_snapshot() else { return Ok(Vec::new()) };
        let live = self.live_files(None).await?;
        let rows =
            file_diff::between(&self.table, &self.stores, None, Some(snapshot.snapshot_id())).await?.added;
        let with_rows: HashSet<&str> = rows.iter().map(|rows| rows.file.path()).collect();
        let empty: Vec<LiveFile> =
            live.data.iter().filter(|file| !with_rows.contains(file.path())).cloned().collect();
        let file_bytes = self.file_bytes(layout.file_bytes);
        let is_equality = |file: &LiveFile| file.file.content_type() == DataContentType::EqualityDeletes;
        let filtered = live.deletes.iter().any(is_equality);
        let rewrite = |inputs: Vec<FileRows>, empty: Vec<LiveFile>, why: Why| Rewrite {
            at: SnapshotId(snapshot.snapshot_id()),
            sequence: snapshot.sequence_number(),
            inputs,
            empty,
            deletes: live.deletes.iter().map(|file| FileKey::of(&file.file)).collect(),
            filtered,
            sort: layout.sort,
            file_bytes,
            why,
        };
        let mut rewrites = Vec::new();
        if !empty.is_empty() {
            rewrites.push(rewrite(Vec::new(), empty, Why::DeletedRows));
        }
        for (inputs, why) in all_groups(rows, layout, file_bytes) {
            rewrites.push(rewrite(inputs, Vec::new(), why));
        }
        Ok(rewrites)
    }

    /// How large files should be.
    pub(in super::super) fn file_bytes(&self, wanted: Option<u64>) -> u64 {
        let said = || self.property(FILE_BYTES_PROPERTY)?.parse().ok();
        wanted.or_else(said).filter(|bytes| *bytes > 0).unwrap_or(FILE_BYTES)
    }
}

/// A partition in a map's key. Its values have no order of their own.
pub(super) fn partition_name(partition: &Struct) -> String {
    format!("{partition:?}")
}

/// The bytes that are left of a file when its deleted rows go.
pub(super) fn live_bytes(rows: &FileRows) -> u64 {
    let (file, records) = (&rows.file.file, rows.file.file.record_count().max(1));
    (u128::from(file.file_size_in_bytes()) * u128::from(rows.count()) / u128::from(records)) as u64
}

/// Whether enough rows of a file are deleted.
pub(super) fn is_hollow(rows: &FileRows, layout: Layout) -> bool {
    let records = rows.file.file.record_count();
    records > 0 && (records - rows.count()) as f64 >= layout.deleted_share * records as f64
}

/// Whether a file is small, for a wanted size.
pub(super) fn is_small(bytes: u64, file_bytes: u64) -> bool {
    (bytes as f64) < SMALL * file_bytes as f64
}

/// The files to rewrite, in groups that stay within a partition.
pub(super) fn all_groups(files: Vec<FileRows>, layout: Layout, file_bytes: u64) -> Vec<(Vec<FileRows>, Why)> {
    let mut partitions: BTreeMap<(i32, String), Vec<FileRows>> = BTreeMap::new();
    for rows in files {
        let partition = partition_name(rows.file.file.partition());
        partitions.entry((rows.file.spec_id, partition)).or_default().push(rows);
    }
    partitions.into_values().flat_map(|files| groups(files, layout, file_bytes)).collect()
}

/// The groups of one partition.
fn groups(files: Vec<FileRows>, layout: Layout, file_bytes: u64) -> Vec<(Vec<FileRows>, Why)> {
    let hollow = |rows: &FileRows| is_hollow(rows, layout);
    let mut chosen: Vec<FileRows> = files
        .into_iter()
        .filter(|rows| hollow(rows) || is_small(rows.file.file.file_size_in_bytes(), file_bytes))
        .collect();
    chosen.sort_by_key(|rows| (live_bytes(rows), rows.file.sequence));
    let mut groups: Vec<(Vec<FileRows>, Why)> = Vec::new();
    for mut tier in tiers(chosen) {
        if tier.len() < layout.small_files.max(2) {
            // Too few for a merge; but what is rewritten anyway takes the smallest along.
            let any = tier.iter().any(hollow);
            tier.retain(|rows| hollow(rows) || any && live_bytes(rows) <= TINY);
        }
        for files in packed(tier, file_bytes) {
            let why = if files.iter().any(hollow) { Why::DeletedRows } else { Why::SmallFiles };
            groups.push((files, why));
        }
    }
    groups.retain(|(files, why)| files.len() > 1 || *why == Why::DeletedRows);
    for (files, _) in &mut groups {
        // Rows in the order in which they came.
        files.sort_by(|a, b| (a.file.sequence, a.file.path()).cmp(&(b.file.sequence, b.file.path())));
    }
    groups
}

/// Files in order of size, cut where one is much larger than all before it.
fn tiers(files: Vec<FileRows>) -> Vec<Vec<FileRows>> {
    let mut tiers: Vec<Vec<FileRows>> = Vec::new();
    let mut sum = 0;
    for rows in files {
        let size = live_bytes(&rows);
        match tiers.last_mut() {
            Some(tier) if size <= TINY.max(sum * STEP) => tier.push(rows),
            _ => {
                tiers.push(vec![rows]);
                sum = 0;
            }
        }
        sum += size;
    }
    tiers
}

/// Files in groups of about the wanted size.
fn packed(files: Vec<FileRows>, file_bytes: u64) -> Vec<Vec<FileRows>> {
    let mut packed: Vec<Vec<FileRows>> = Vec::new();
    let mut sum = u64::MAX;
    for rows in files {
        let size = live_bytes(&rows);
        match packed.last_mut() {
            Some(group) if sum + size <= file_bytes => group.push(rows),
            _ => {
                packed.push(vec![rows]);
                sum = 0;
            }
        }
        sum += size;
    }
    packed
}
