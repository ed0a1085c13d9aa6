//! Ends the time for which old snapshots can be read, and deletes the files that only they had.
//!
//! ```text
//!   s1 ── s2 ── s3 ── s4 ── s5 (main)       kept: by age and number, by name (tags, branches),
//!    ╳     ╳    │tag        │                     what a target has yet to read, the newest position
//!                └ kept     └ kept
//! ```
//!
//! First the metadata forgets the snapshots, in one commit; then files that no kept snapshot can reach
//! are deleted. A crash in between leaves files that no snapshot mentions.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use iceberg::spec::{MAIN_BRANCH, SnapshotRef};
use iceberg::{TableRequirement, TableUpdate};

use super::super::LakeTable;
use super::super::commit::{FIRST_READ, watermark_of};
use super::super::refs::RefKind;
use super::reach;
use super::targets::RegisteredTarget;
use crate::delta::SnapshotId;
use crate::error::{ErrorKind, Result};

/// Table properties of the specification, and what they mean where they are not set.
const MAX_AGE_PROPERTY: &str = "history.expire.max-snapshot-age-ms";
const MAX_AGE: Duration = Duration::from_secs(5 * 24 * 3600);
const AT_LEAST_PROPERTY: &str = "history.expire.min-snapshots-to-keep";
const AT_LEAST: usize = 1;
const MAX_REF_AGE_PROPERTY: &str = "history.expire.max-ref-age-ms";
/// A table that is written to every second would have 432,000 snapshots in five days, and every commit
/// writes all of them again: about a kilobyte each.
const AT_MOST: usize = 2_000;
/// Who began to read a snapshot gets this long to end.
const READERS: Duration = Duration::from_secs(600);

/// Times that an expiry is tried on a table that moves.
const TRIES: usize = 20;

/// Which snapshots to keep. What is not said is as the table's properties say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Retention {
    /// Snapshots younger than this.
    pub keep_for: Option<Duration>,
    /// At least so many of a branch, however old.
    pub at_least: Option<usize>,
    /// At most so many of a branch, however young; but none that somebody may be reading.
    pub at_most: Option<usize>,
}

/// What expired.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Expired {
    /// How many snapshots.
    pub snapshots: usize,
    /// Tags and branches whose own time was over.
    pub refs: Vec<String>,
    /// How many files were deleted.
    pub files: usize,
    /// The targets that keep snapshots from expiring.
    pub held_by: Vec<RegisteredTarget>,
}

/// What may go.
#[derive(Debug, Default)]
struct Selection {
    snapshots: Vec<i64>,
    refs: Vec<String>,
    held_by: Vec<RegisteredTarget>,
}

impl LakeTable {
    /// How many snapshots [`expire`](Self::expire) would end now.
    pub fn expirable(&self, retention: Retention, now: DateTime<Utc>) -> usize {
        self.select(retention, now).snapshots.len()
    }

    /// Ends the time of old snapshots. Never of the current one, of what names and targets need, and of
    /// an unfinished first read. Moves `self` to the result.
    pub async fn expire(&mut self, retention: Retention, now: DateTime<Utc>) -> Result<Expired> {
        self.try_expire(retention, now).await.map_err(|error| error.with("table", &self.id))
    }

    async fn try_expire(&mut self, retention: Retention, now: DateTime<Utc>) -> Result<Expired> {
        for _ in 1..TRIES {
            match self.expire_once(retention, now).await {
                // A writer was faster; what may go is found again.
                Err(error) if error.kind() == ErrorKind::Conflict => self.reload().await?,
                outcome => return outcome,
            }
        }
        self.expire_once(retention, now).await
    }

    async fn expire_once(&mut self, retention: Retention, now: DateTime<Utc>) -> Result<Expired> {
        let selection = self.select(retention, now);
        let mut expired = Expired {
            refs: selection.refs.clone(),
            held_by: selection.held_by.clone(),
            ..Expired::default()
        };
        if selection.snapshots.is_empty() && selection.refs.is_empty() {
            return Ok(expired);
        }
        let before = self.table.clone();
        let going: HashSet<i64> = selection.snapshots.iter().copied().collect();
        let statistics: Vec<String> = before
            .metadata()
            .statistics_iter()
            .filter(|file| going.contains(&file.snapshot_id))
            .map(|file| file.statistics_path.clone())
            .collect();
        self.forget(selection).await?;
        expired.snapshots = going.len();

        let gone: Vec<SnapshotRef> =
            before.metadata().snapshots().filter(|it| going.contains(&it.snapshot_id())).cloned().collect();
        let mut unreachable = self.unreachable(&before, &gone).await?;
        unreachable.extend(statistics);
        expired.files = reach::delete(&self.stores, unreachable.into_iter().collect()).await?;
        Ok(expired)
    }

    /// Takes snapshots and names out of the metadata.
    async fn forget(&mut self, selection: Selection) -> Result<()> {
        let metadata = self.table.metadata();
        let statistics = metadata
            .statistics_iter()
            .map(|file| file.snapshot_id)
            .filter(|id| selection.snapshots.contains(id))
            .map(|snapshot_id| TableUpdate::RemoveStatistics { snapshot_id });
        let names = selection.refs.into_iter().map(|ref_name| TableUpdate::RemoveSnapshotRef { ref_name });
        let mut updates: Vec<TableUpdate> = names.chain(statistics).collect();
        updates.push(TableUpdate::RemoveSnapshots { snapshot_ids: selection.snapshots });
        let mut requirements = vec![TableRequirement::UuidMatch { uuid: self.uuid() }];
        // A name that moved meanwhile may stand for a snapshot that was to go.
        requirements.extend(self.refs().iter().map(|it| self.ref_is(&it.name, Some(it.snapshot.0))));
        self.table = self.catalog.commit(&self.table, requirements, updates).await?;
        Ok(())
    }

    /// The files of snapshots that are gone which no snapshot of `self` can reach.
    async fn unreachable(
        &self,
        before: &iceberg::table::Table,
        gone: &[SnapshotRef],
    ) -> Result<BTreeSet<String>> {
        let kept: Vec<SnapshotRef> = self.table.metadata().snapshots().cloned().collect();
        let kept = reach::manifests(&self.table, &kept).await?;
        let mut theirs = reach::manifests(before, gone).await?;
        theirs.retain(|path, _| !kept.contains_key(path));
        let mut files = BTreeSet::new();
        let mut collect = |path: &str, _: bool| {
            files.insert(path.to_owned());
        };
        reach::files(before, theirs.values(), &mut collect).await?;
        if !files.is_empty() {
            let mut spare = |path: &str, alive: bool| {
                if alive {
                    files.remove(path);
                }
            };
            reach::files(&self.table, kept.values(), &mut spare).await?;
        }
        files.extend(theirs.into_keys());
        let lists: HashSet<&str> = self.table.metadata().snapshots().map(|it| it.manifest_list()).collect();
        let gone_lists = gone.iter().map(|snapshot| snapshot.manifest_list());
        files.extend(gone_lists.filter(|list| !lists.contains(list)).map(str::to_owned));
        Ok(files)
    }

    fn select(&self, retention: Retention, now: DateTime<Utc>) -> Selection {
        let metadata = self.table.metadata();
        let number = |name: &str| self.property(name)?.parse::<u64>().ok();
        let keep_for = retention
            .keep_for
            .or_else(|| number(MAX_AGE_PROPERTY).map(Duration::from_millis))
            .unwrap_or(MAX_AGE);
        let at_least =
            retention.at_least.or_else(|| number(AT_LEAST_PROPERTY).map(|n| n as usize)).unwrap_or(AT_LEAST);
        let at_most = retention.at_most.unwrap_or(AT_MOST).max(at_least);
        // Who wants snapshots to go at once says so by the time for which they are kept.
        let readers = READERS.min(keep_for);
        let max_ref_age = number(MAX_REF_AGE_PROPERTY).map(Duration::from_millis);
        let age = |snapshot: &SnapshotRef| {
            Duration::from_millis((now.timestamp_millis() - snapshot.timestamp_ms()).max(0) as u64)
        };

        let mut selection = Selection::default();
        let mut kept: HashSet<i64> = HashSet::new();
        let mut named: HashSet<i64> = HashSet::new();
        for it in self.refs() {
            let ours = it.name == MAIN_BRANCH || it.name == FIRST_READ;
            let Some(head) = metadata.snapshot_by_id(it.snapshot.0) else { continue };
            if !ours && it.keep.or(max_ref_age).is_some_and(|keep| age(head) > keep) {
                selection.refs.push(it.name);
                continue;
            }
            kept.insert(it.snapshot.0);
            if it.kind == RefKind::Tag {
                continue;
            }
            let at_least = it.keep_snapshots.and_then(|n| usize::try_from(n).ok()).unwrap_or(at_least);
            let keep_for = it.keep_snapshots_for.unwrap_or(keep_for);
            let mut line_is_kept = true;
            for (place, snapshot) in self.ancestors(it.snapshot).enumerate() {
                named.insert(snapshot.snapshot_id());
                let age = age(snapshot);
                line_is_kept &= it.name == FIRST_READ
                    || place < at_least.max(1)
                    || age <= readers
                    || (age <= keep_for && place < at_most);
                if line_is_kept {
                    kept.insert(snapshot.snapshot_id());
                }
            }
        }
        // Snapshots that no name leads to: rolled back, or not published yet.
        kept.extend(
            metadata
                .snapshots()
                .filter(|it| !named.contains(&it.snapshot_id()) && age(it) <= keep_for)
                .map(|it| it.snapshot_id()),
        );
        if let Some(current) = self.current() {
            kept.extend(
                self.ancestors(current).find(|it| watermark_of(it).is_some()).map(|it| it.snapshot_id()),
            );
            self.keep_for_targets(current, &mut kept, &mut selection);
        }
        selection.snapshots =
            metadata.snapshots().map(|it| it.snapshot_id()).filter(|id| !kept.contains(id)).collect();
        selection
    }

    /// Keeps what targets have yet to read: what they show, and all that came after it.
    fn keep_for_targets(&self, current: SnapshotId, kept: &mut HashSet<i64>, selection: &mut Selection) {
        let line: Vec<i64> = self.ancestors(current).map(|it| it.snapshot_id()).collect();
        let places: HashMap<i64, usize> = line.iter().enumerate().map(|(place, id)| (*id, place)).collect();
        let before = kept.clone();
        for target in self.targets() {
            let shows = target.snapshot.0;
            let needed = places.get(&shows).map_or(&[][..], |place| &line[..=*place]);
            let known = self.table.metadata().snapshot_by_id(shows).is_some();
            if needed.iter().any(|id| !before.contains(id)) || known && !before.contains(&shows) {
                selection.held_by.push(target);
            }
            kept.extend(needed.iter().chain(known.then_some(&shows)));
        }
    }
}
