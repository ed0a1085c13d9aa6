//! Names for snapshots, and which snapshot is the current one.
//!
//! A tag stays where it was put; a branch moves with commits. `main` is what readers see: to roll a
//! table back is to put `main` on an older snapshot, and with it the position, so that the next pass
//! reads again what came after it. Names that begin with `frazil_` are our own.

use std::collections::BTreeMap;
use std::time::Duration;

use iceberg::spec::{
    MAIN_BRANCH, Snapshot, SnapshotReference, SnapshotRetention, TableMetadata, TableMetadataBuilder,
};
use iceberg::{TableRequirement, TableUpdate};

use super::LakeTable;
use super::commit::{FIRST_READ, WATERMARK, mirror, watermark_of};
use super::storage::iceberg_error;
use crate::delta::SnapshotId;
use crate::error::{Error, ErrorKind, Result};

/// Names that users cannot give.
const OUR_NAMES: &str = "frazil_";
/// How long a name may be: it stands in metadata files and on command lines.
const NAME_LENGTH: usize = 255;

/// A name for a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefInfo {
    /// The name.
    pub name: String,
    /// Whether it stays or moves.
    pub kind: RefKind,
    /// The snapshot it stands for now.
    pub snapshot: SnapshotId,
    /// How long it is kept; `None`: as the table's properties say.
    pub keep: Option<Duration>,
    /// Branches: how many snapshots are kept at least.
    pub keep_snapshots: Option<i32>,
    /// Branches: how long snapshots are kept.
    pub keep_snapshots_for: Option<Duration>,
}

/// Whether a name stays or moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefKind {
    /// Moves with commits.
    Branch,
    /// Stays where it is.
    Tag,
}

impl RefKind {
    /// `branch` or `tag`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Branch => "branch",
            Self::Tag => "tag",
        }
    }
}

impl LakeTable {
    /// All names, in their order.
    pub fn refs(&self) -> Vec<RefInfo> {
        self.references().into_iter().map(|(name, reference)| info(name, &reference)).collect()
    }

    /// The snapshot that a name stands for; not the parts of an unfinished first read.
    pub fn named(&self, name: &str) -> Option<SnapshotId> {
        let snapshot = self.table.metadata().snapshot_for_ref(name).filter(|_| name != FIRST_READ)?;
        Some(SnapshotId(snapshot.snapshot_id()))
    }

    /// Gives a snapshot a name that keeps it from expiring, for so long or as long as the table's
    /// properties say. A name that is taken is refused.
    pub async fn tag(&mut self, name: &str, at: SnapshotId, keep: Option<Duration>) -> Result<()> {
        self.check_name(name)?;
        if self.table.metadata().snapshot_by_id(at.0).is_none() {
            return Err(self.no_snapshot(at));
        }
        if let Some(taken) = self.references().get(name) {
            return Err(Error::new(ErrorKind::Config, format!("the name `{name}` is taken"))
                .with("table", &self.id)
                .with("snapshot", taken.snapshot_id)
                .hint("delete the tag first, or choose another name"));
        }
        let keep = keep.map(|keep| i64::try_from(keep.as_millis()).unwrap_or(i64::MAX));
        let retention = SnapshotRetention::Tag { max_ref_age_ms: keep };
        let update = TableUpdate::SetSnapshotRef {
            ref_name: name.to_owned(),
            reference: SnapshotReference::new(at.0, retention),
        };
        self.change_refs(vec![self.ref_is(name, None)], vec![update]).await
    }

    /// Takes a tag away. Its snapshot may expire then.
    pub async fn untag(&mut self, name: &str) -> Result<()> {
        let Some(reference) = self.references().remove(name).filter(|it| !it.is_branch()) else {
            return Err(self.no_ref(name));
        };
        let update = TableUpdate::RemoveSnapshotRef { ref_name: name.to_owned() };
        self.change_refs(vec![self.ref_is(name, Some(reference.snapshot_id))], vec![update]).await
    }

    /// Gives a snapshot a name of our own that keeps it from expiring, and takes other names away, in one swap.
    /// What is so already stays so. Names come from [`our_name`].
    pub async fn pin(&mut self, pin: Option<(&str, SnapshotId)>, gone: &[String]) -> Result<()> {
        let known = self.references();
        let (mut requirements, mut updates) = (Vec::new(), Vec::new());
        if let Some((name, at)) =
            pin.filter(|(name, at)| known.get(*name).is_none_or(|it| it.snapshot_id != at.0))
        {
            if self.table.metadata().snapshot_by_id(at.0).is_none() {
                return Err(self.no_snapshot(at));
            }
            requirements.push(self.ref_is(name, known.get(name).map(|it| it.snapshot_id)));
            // Without a time of its own: whoever pinned it lets it go.
            let reference =
                SnapshotReference::new(at.0, SnapshotRetention::Tag { max_ref_age_ms: Some(i64::MAX) });
            updates.push(TableUpdate::SetSnapshotRef { ref_name: name.to_owned(), reference });
        }
        for name in gone {
            let Some(reference) = known.get(name).filter(|it| !it.is_branch()) else { continue };
            requirements.push(self.ref_is(name, Some(reference.snapshot_id)));
            updates.push(TableUpdate::RemoveSnapshotRef { ref_name: name.clone() });
        }
        if updates.is_empty() { Ok(()) } else { self.change_refs(requirements, updates).await }
    }

    /// Makes an older snapshot the current one, and its position the table's. The snapshots after it
    /// stay readable by id until they expire.
    pub async fn roll_back(&mut self, to: SnapshotId) -> Result<()> {
        if self.table.metadata().snapshot_by_id(to.0).is_none() {
            return Err(self.no_snapshot(to));
        }
        let mut updates = vec![TableUpdate::SetSnapshotRef {
            ref_name: MAIN_BRANCH.to_owned(),
            reference: self.reference(MAIN_BRANCH, to),
        }];
        updates.push(match self.ancestors(to).find_map(|snapshot| watermark_of(snapshot)) {
            Some(watermark) => mirror(&watermark),
            None => TableUpdate::RemoveProperties { removals: vec![WATERMARK.to_owned()] },
        });
        self.table = self.catalog.commit(&self.table, self.unmoved(), updates).await?;
        Ok(())
    }

    /// That there is no such name, with the one that may be meant.
    pub fn no_ref(&self, name: &str) -> Error {
        let known: Vec<String> = self.references().into_keys().filter(|name| name != FIRST_READ).collect();
        let hint = match known.is_empty() {
            true => "the table has no tags or branches".to_owned(),
            false => format!("the table has {}", known.join(", ")),
        };
        Error::new(ErrorKind::Config, format!("the table has no tag or branch `{name}`"))
            .with("table", &self.id)
            .hint(hint)
    }

    /// What adds a snapshot and puts a branch on it; what its owner said of retention stays. On the way of
    /// every commit: the library copies the retention, which it shows nobody, so that the metadata of
    /// thousands of snapshots need not become JSON for it.
    pub(super) fn on_branch(&self, branch: &str, snapshot: Snapshot) -> Result<Vec<TableUpdate>> {
        let metadata = self.table.metadata().clone();
        let moved = metadata.into_builder(None).set_branch_snapshot(snapshot, branch);
        let built = moved.and_then(TableMetadataBuilder::build).map_err(iceberg_error)?;
        Ok(built.changes)
    }

    /// A branch's new head, a snapshot that is there; what its owner said of retention stays.
    pub(super) fn reference(&self, branch: &str, head: SnapshotId) -> SnapshotReference {
        let known = self.references().remove(branch);
        let retention = known.map_or(SnapshotRetention::branch(None, None, None), |known| known.retention);
        SnapshotReference::new(head.0, retention)
    }

    /// That a name stands for this snapshot, or for none.
    pub(super) fn ref_is(&self, name: &str, snapshot_id: Option<i64>) -> TableRequirement {
        TableRequirement::RefSnapshotIdMatch { r#ref: name.to_owned(), snapshot_id }
    }

    fn references(&self) -> BTreeMap<String, SnapshotReference> {
        references(self.table.metadata())
    }

    /// Names may change under a pass: neither rows nor position move.
    async fn change_refs(
        &mut self,
        mut requirements: Vec<TableRequirement>,
        updates: Vec<TableUpdate>,
    ) -> Result<()> {
        requirements.push(TableRequirement::UuidMatch { uuid: self.uuid() });
        let changed = self.catalog.commit(&self.table, requirements, updates).await;
        self.table = changed.map_err(|error| error.with("table", &self.id))?;
        Ok(())
    }

    fn check_name(&self, name: &str) -> Result<()> {
        let wrong = |what: &str| {
            Error::new(ErrorKind::Config, format!("a tag cannot be named so: {what}"))
                .with("table", &self.id)
                .hint("begin with a letter, go on with letters, digits, `_`, `-`, `.` and `/`: `q3-audited`")
        };
        if !is_ref_name(name) {
            return Err(wrong("it would be taken for something else"));
        }
        if name == MAIN_BRANCH || name.starts_with(OUR_NAMES) {
            return Err(wrong("the name has a meaning of its own"));
        }
        Ok(())
    }
}

/// All names. Costs with the number of snapshots: the library shows names only in JSON.
pub(super) fn references(metadata: &TableMetadata) -> BTreeMap<String, SnapshotReference> {
    let metadata = serde_json::to_value(metadata).unwrap_or_default();
    serde_json::from_value(metadata["refs"].clone()).unwrap_or_default()
}

/// A name that users cannot give.
pub fn our_name(rest: &str) -> String {
    format!("{OUR_NAMES}{rest}")
}

/// Whether a text can be the name of a tag or branch, and neither a snapshot id nor a time.
pub fn is_ref_name(text: &str) -> bool {
    text.len() <= NAME_LENGTH
        && text.starts_with(|first: char| first.is_alphabetic() || first == '_')
        && text.chars().all(|c| c.is_alphanumeric() || "_-./".contains(c))
}

fn info(name: String, reference: &SnapshotReference) -> RefInfo {
    let time = |millis: Option<i64>| Some(Duration::from_millis(u64::try_from(millis?).ok()?));
    let snapshot = SnapshotId(reference.snapshot_id);
    match reference.retention {
        SnapshotRetention::Branch { min_snapshots_to_keep, max_snapshot_age_ms, max_ref_age_ms } => RefInfo {
            name,
            kind: RefKind::Branch,
            snapshot,
            keep: time(max_ref_age_ms),
            keep_snapshots: min_snapshots_to_keep,
            keep_snapshots_for: time(max_snapshot_age_ms),
        },
        SnapshotRetention::Tag { max_ref_age_ms } => RefInfo {
            name,
            kind: RefKind::Tag,
            snapshot,
            keep: time(max_ref_age_ms),
            keep_snapshots: None,
            keep_snapshots_for: None,
        },
    }
}
