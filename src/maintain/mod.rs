//! Keeps lake tables in shape: what is done when, in which order, and what came of it.
//!
//! ```text
//! frazil maintain ───▶ rewrites ─▶ delete files ─▶ snapshots ─▶ orphans        all that pays
//! after a pass ──────▶ rewrites ─▶ delete files ─▶ snapshots                   when it is due, a little
//! ```
//!
//! Nothing here changes a row or waits for a writer: the lake's own `upkeep` sees to that. Each step
//! commits for itself, so that maintenance can be stopped anywhere and goes on where it is needed.

use std::time::{Duration, Instant};

use chrono::Utc;
use serde::Serialize;

use crate::error::{ErrorKind, Result};
use crate::lake::{Expired, Health, LakeTable, Layout, ORPHAN_AGE, Orphan, Retention};
use crate::memory::Budget;

/// After so many commits a table is looked at: reading its manifests costs about one commit.
const COMMITS: usize = 20;
/// So many snapshots expire at once: each time, the manifests of those that stay are read.
const SNAPSHOTS: usize = 100;
/// Bytes that are rewritten after one pass, at most: about as much as ten seconds of work.
const BYTES_AT_ONCE: u64 = 512 << 20;

/// What a table should look like, and what is done for it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Policy {
    /// Whether passes look after their tables themselves.
    pub auto: bool,
    /// Files.
    pub layout: Layout,
    /// Snapshots.
    pub retention: Retention,
    /// Files that no snapshot mentions are left alone until they are this old.
    pub orphan_age: Duration,
    /// Whether the different values of each column are counted: that reads every row.
    pub statistics: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            auto: true,
            layout: Layout::default(),
            retention: Retention::default(),
            orphan_age: ORPHAN_AGE,
            statistics: false,
        }
    }
}

/// What to do with files that no snapshot mentions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrphanFiles {
    /// Not even look.
    Leave,
    /// Say which there are.
    List,
    /// Delete them.
    Delete,
}

/// What maintenance did to a table, or would do.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// The table.
    pub table: String,
    /// Nothing was done.
    pub dry_run: bool,
    /// How well kept it was before: 0 to 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score_before: Option<u8>,
    /// And after.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score_after: Option<u8>,
    /// Groups of data files that were rewritten.
    pub rewrites: usize,
    /// Rewrites that another writer overtook; nothing of them stays.
    pub overtaken: usize,
    /// Data files that went.
    pub files_before: usize,
    /// Data files that came for them.
    pub files_after: usize,
    /// Bytes that were rewritten.
    pub bytes: u64,
    /// Delete files that went.
    pub delete_files: usize,
    /// Columns whose different values were counted.
    pub columns_counted: usize,
    /// Snapshots, and what went with them.
    pub expired: Expired,
    /// Files that no snapshot mentions.
    pub orphans: Vec<Orphan>,
    /// How many of those were deleted.
    pub orphans_deleted: usize,
    /// How many files are too young to be told from those of a commit under way.
    pub young_files: usize,
    /// What the user should know.
    pub notes: Vec<String>,
    /// How long it took, in seconds.
    pub seconds: f64,
}

impl Report {
    /// Whether there was, or would be, anything to do.
    pub fn is_empty(&self) -> bool {
        let work = self.rewrites + self.overtaken + self.delete_files + self.columns_counted;
        work + self.expired.snapshots + self.orphans.len() == 0 && self.expired.refs.is_empty()
    }
}

/// Does for a table all that pays.
pub async fn maintain(
    table: &mut LakeTable,
    policy: &Policy,
    orphans: OrphanFiles,
    budget: Budget,
) -> Result<Report> {
    let started = Instant::now();
    let mut report = Report { table: table.id().to_string(), ..Report::default() };
    report.score_before = Some(table.health(policy.layout).await?.score);
    rewrite(table, policy, budget, u64::MAX, &mut report).await?;
    if policy.statistics {
        report.columns_counted = table.count_distinct(budget).await?.unwrap_or(0);
    }
    expire(table, policy, &mut report).await?;
    if orphans != OrphanFiles::Leave {
        let found = table.orphans(policy.orphan_age, Utc::now()).await?;
        report.orphans.clone_from(&found.files);
        report.young_files = found.young;
        if orphans == OrphanFiles::Delete {
            report.orphans_deleted = table.remove_orphans(found).await?;
        }
    }
    report.score_after = Some(table.health(policy.layout).await?.score);
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// Says what [`maintain`] would do.
pub async fn plan(table: &mut LakeTable, policy: &Policy, orphans: OrphanFiles) -> Result<Report> {
    let started = Instant::now();
    let mut report = Report { table: table.id().to_string(), dry_run: true, ..Report::default() };
    let health: Health = table.health(policy.layout).await?;
    report.score_before = Some(health.score);
    match table.plan_rewrites(policy.layout).await {
        Ok(rewrites) => {
            report.rewrites = rewrites.len();
            report.files_before = rewrites.iter().map(|rewrite| rewrite.files()).sum();
            report.bytes = rewrites.iter().map(|rewrite| rewrite.bytes()).sum();
            report.files_after = (report.files_before + health.files_after).saturating_sub(health.data_files);
        }
        Err(error) => note_unsupported(error, &mut report)?,
    }
    report.expired.snapshots = table.expirable(policy.retention, Utc::now());
    if orphans != OrphanFiles::Leave {
        let found = table.orphans(policy.orphan_age, Utc::now()).await?;
        report.orphans = found.files;
        report.young_files = found.young;
    }
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// Whether a table is looked at after a pass, when it has so many commits since it was maintained.
pub fn is_due(policy: &Policy, commits: usize) -> bool {
    policy.auto && commits > 0 && commits.is_multiple_of(COMMITS)
}

/// A little of it, after a pass that committed, if it is due. Costs nothing when it is not.
pub async fn after_pass(table: &mut LakeTable, policy: &Policy, budget: Budget) -> Result<Option<Report>> {
    if !is_due(policy, table.commits_since_maintenance()) {
        return Ok(None);
    }
    let started = Instant::now();
    let mut report = Report { table: table.id().to_string(), ..Report::default() };
    rewrite(table, policy, budget, BYTES_AT_ONCE, &mut report).await?;
    if table.expirable(policy.retention, Utc::now()) >= SNAPSHOTS {
        expire(table, policy, &mut report).await?;
    }
    report.seconds = started.elapsed().as_secs_f64();
    Ok(Some(report).filter(|report| !report.is_empty()))
}

/// Rewrites groups of files, the smallest first, until `bytes` are through.
async fn rewrite(
    table: &mut LakeTable,
    policy: &Policy,
    budget: Budget,
    bytes: u64,
    report: &mut Report,
) -> Result<()> {
    let mut rewrites = match table.plan_rewrites(policy.layout).await {
        Ok(rewrites) => rewrites,
        Err(error) => return note_unsupported(error, report),
    };
    rewrites.sort_by_key(|rewrite| rewrite.bytes());
    for rewrite in &rewrites {
        if report.bytes + rewrite.bytes() > bytes {
            break;
        }
        let done = table.rewrite(rewrite, budget).await?;
        if done.snapshot.is_none() {
            report.overtaken += 1;
            continue;
        }
        report.rewrites += 1;
        report.files_before += done.files_before;
        report.files_after += done.files_after;
        report.bytes += done.bytes_before;
        report.delete_files += done.delete_files;
    }
    if let Some((_, gone, _)) = table.merge_delete_files(policy.layout).await? {
        report.delete_files += gone;
    }
    Ok(())
}

async fn expire(table: &mut LakeTable, policy: &Policy, report: &mut Report) -> Result<()> {
    report.expired = table.expire(policy.retention, Utc::now()).await?;
    for target in &report.expired.held_by {
        report.notes.push(format!(
            "the target {} has yet to read snapshots from {} on, which do not expire until it has; \
             if it is gone for good: `frazil maintain --forget-target {}`",
            target.name,
            target.at.format("%Y-%m-%d %H:%M"),
            target.name
        ));
    }
    Ok(())
}

/// What cannot be done to a table does not keep the rest from being done.
fn note_unsupported(error: crate::Error, report: &mut Report) -> Result<()> {
    if error.kind() != ErrorKind::Unsupported {
        return Err(error);
    }
    report.notes.push(error.to_string());
    Ok(())
}
