//! How well kept a table is: a number for a dashboard, and the reasons for people.

use iceberg::spec::DataContentType;
use serde::Serialize;

use super::super::file_diff;
use super::super::manifest;
use super::super::{LakeTable, SnapshotId};
use super::plan::{self, Layout};
use crate::error::Result;

/// Points that each kind of neglect can cost. They say how much slower a reader gets, in our
/// measurements: opening files costs most, then deletes, then metadata.
const POINTS: [(&str, f64); 5] = [
    ("small files", 40.0),
    ("delete files", 20.0),
    ("deleted rows", 20.0),
    ("snapshots", 10.0),
    ("manifests", 10.0),
];
/// So many small files in one partition are as bad as it gets.
const MANY_SMALL: f64 = 100.0;
/// So many delete files are as bad as it gets.
const MANY_DELETES: f64 = 100.0;
/// A table where this share of rows is deleted is as bad as it gets.
const MOST_DELETED: f64 = 0.5;
/// So many snapshots are as bad as it gets: two megabytes of metadata with every commit.
const MANY_SNAPSHOTS: f64 = 2_000.0;
/// So many manifests are as bad as it gets: a reader opens them all.
const MANY_MANIFESTS: f64 = 200.0;
/// Losing less than a point is not worth a word.
const WORTH_A_WORD: f64 = 1.0;

/// How well kept a table is.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Health {
    /// 0 to 100.
    pub score: u8,
    /// What costs points, the worst first.
    pub reasons: Vec<Reason>,
    /// Data files, and how many of them maintenance would merge as too small.
    pub data_files: usize,
    /// Data files below the wanted size that have enough others to be merged with.
    pub small_files: usize,
    /// Their rows, deleted ones included.
    pub rows: u64,
    /// Rows of data files that are deleted.
    pub deleted_rows: u64,
    /// Size of the data files.
    pub bytes: u64,
    /// Files with deletes.
    pub delete_files: usize,
    /// Snapshots in the metadata.
    pub snapshots: usize,
    /// Manifests of the current snapshot.
    pub manifests: usize,
    /// Size of the metadata that every commit writes.
    pub metadata_bytes: u64,
    /// Data files after maintenance.
    pub files_after: usize,
    /// Bytes that maintenance would read and write.
    pub rewrite_bytes: u64,
}

/// What costs points.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Reason {
    /// In words.
    pub text: String,
    /// How many of the hundred.
    pub points: u8,
}

impl LakeTable {
    /// Looks at the files of the current snapshot and at the metadata. Reads no rows.
    pub async fn health(&self, layout: Layout) -> Result<Health> {
        self.look(layout).await.map_err(|error| error.with("table", &self.id))
    }

    async fn look(&self, layout: Layout) -> Result<Health> {
        let metadata = self.table.metadata();
        let mut health = Health {
            snapshots: metadata.snapshots().len(),
            metadata_bytes: serde_json::to_vec(metadata).map_or(0, |json| json.len() as u64),
            ..Health::default()
        };
        if let Some(snapshot) = metadata.current_snapshot() {
            health.manifests = manifest::manifests(&self.table, snapshot).await?.len();
            self.look_at_files(SnapshotId(snapshot.snapshot_id()), layout, &mut health).await?;
        }
        health.judge();
        Ok(health)
    }

    async fn look_at_files(&self, at: SnapshotId, layout: Layout, health: &mut Health) -> Result<()> {
        let live = self.live_files(Some(at)).await?;
        let rows = file_diff::between(&self.table, &self.stores, None, Some(at.0)).await?.added;
        let left: u64 = rows.iter().map(|rows| rows.count()).sum();
        health.data_files = live.data.len();
        health.bytes = live.data.iter().map(|file| file.file.file_size_in_bytes()).sum();
        health.rows = live.data.iter().map(|file| file.file.record_count()).sum();
        health.deleted_rows = health.rows - left.min(health.rows);
        health.delete_files =
            live.deletes.iter().filter(|file| file.file.content_type() != DataContentType::Data).count();
        // Files without a row left only go.
        health.files_after = rows.len();
        let file_bytes = self.file_bytes(layout.file_bytes);
        for (files, why) in plan::all_groups(rows, layout, file_bytes) {
            let bytes: u64 = files.iter().map(plan::live_bytes).sum();
            if why == plan::Why::SmallFiles {
                health.small_files += files.len();
            }
            health.files_after -= files.len();
            health.files_after += bytes.div_ceil(file_bytes.max(1)) as usize;
            health.rewrite_bytes += bytes;
        }
        Ok(())
    }
}

impl Health {
    fn judge(&mut self) {
        let share = |part: f64, whole: f64| (part / whole).clamp(0.0, 1.0);
        let deleted = if self.rows == 0 { 0.0 } else { self.deleted_rows as f64 / self.rows as f64 };
        // One or two of each are what every commit leaves behind.
        let bad = [
            share(self.small_files as f64, MANY_SMALL),
            share(self.delete_files.saturating_sub(2) as f64, MANY_DELETES),
            share(deleted, MOST_DELETED),
            share(self.snapshots.saturating_sub(100) as f64, MANY_SNAPSHOTS),
            share(self.manifests.saturating_sub(20) as f64, MANY_MANIFESTS),
        ];
        let text = [
            format!("{} of {} data files are small", self.small_files, self.data_files),
            format!("{} files with deletes", self.delete_files),
            format!("{:.0} % of the rows in files are deleted", deleted * 100.0),
            format!(
                "{} snapshots, {} kB of metadata with every commit",
                self.snapshots,
                self.metadata_bytes / 1000
            ),
            format!("{} manifests to plan a query", self.manifests),
        ];
        let lost: Vec<f64> = POINTS.iter().zip(bad).map(|((_, points), bad)| points * bad).collect();
        self.score = (100.0 - lost.iter().sum::<f64>()).round().clamp(0.0, 100.0) as u8;
        let mut reasons: Vec<(f64, String)> = lost.into_iter().zip(text).collect();
        reasons.retain(|(lost, _)| *lost >= WORTH_A_WORD);
        reasons.sort_by(|a, b| b.0.total_cmp(&a.0));
        self.reasons =
            reasons.into_iter().map(|(lost, text)| Reason { text, points: lost.round() as u8 }).collect();
    }
}
