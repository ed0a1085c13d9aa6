//! Write, audit, publish: a change is committed on a branch, looked at, and shown or held back.
//!
//! ```text
//! change ─▶ branch frazil_audit ─┬─▶ publish: main moves there, and the position with it
//!                                └─▶ hold: a tag `held-…` keeps it, main and position stay
//! ```
//!
//! A branch that a crash left is of no consequence: the next change takes its place. What is held
//! back is read again by the next pass, because the position has not moved.

use std::collections::HashMap;

use iceberg::TableUpdate;
use iceberg::spec::{MAIN_BRANCH, SnapshotReference, SnapshotRetention};

use super::commit::{FIRST_READ, mirror, watermark_of};
use super::{Change, LakeTable, outbox};
use crate::delta::SnapshotId;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::Budget;

/// The branch of a change that is being looked at.
pub(super) const AUDIT: &str = "frazil_audit";
/// Tags of changes that were held back: this, and the snapshot's id.
const HELD: &str = "held-";
/// Table property: what was found in the change that is held back, as JSON.
const HELD_PROPERTY: &str = "frazil.held";

impl LakeTable {
    /// Commits a change where readers do not see it. [`publish`](Self::publish) or [`hold`](Self::hold)
    /// it then. Parts of a first read are not shown either way and are committed as always.
    pub async fn commit_aside(&mut self, change: Change, budget: Budget) -> Result<SnapshotId> {
        let id = self.id.clone();
        self.try_commit(change, budget, true).await.map_err(|error| error.with("table", id))
    }

    /// Shows a change that was committed aside; a first read that it ended with it.
    pub async fn publish(&mut self, audited: SnapshotId) -> Result<()> {
        let snapshot = self.table.metadata().snapshot_by_id(audited.0);
        let note = snapshot.and_then(|snapshot| outbox::note(snapshot));
        let watermark = snapshot.and_then(|snapshot| watermark_of(snapshot));
        let watermark = watermark.ok_or_else(|| self.no_snapshot(audited))?;
        let mut updates = vec![
            TableUpdate::SetSnapshotRef {
                ref_name: MAIN_BRANCH.to_owned(),
                reference: self.reference(MAIN_BRANCH, audited),
            },
            TableUpdate::RemoveSnapshotRef { ref_name: AUDIT.to_owned() },
            mirror(&watermark),
            TableUpdate::RemoveProperties { removals: vec![HELD_PROPERTY.to_owned()] },
        ];
        updates.extend(note);
        if self.table.metadata().snapshot_for_ref(FIRST_READ).is_some() {
            updates.push(TableUpdate::RemoveSnapshotRef { ref_name: FIRST_READ.to_owned() });
        }
        self.leave_aside(audited, updates).await
    }

    /// Keeps a change that was committed aside under a tag, with what was found in it; one that was held
    /// before may expire now. Returns the tag.
    pub async fn hold(&mut self, audited: SnapshotId, findings: &[String]) -> Result<String> {
        let tag = format!("{HELD}{audited}");
        let reference = SnapshotReference::new(audited.0, SnapshotRetention::Tag { max_ref_age_ms: None });
        let report = serde_json::json!({ "tag": tag, "snapshot": audited, "findings": findings });
        let mut updates: Vec<TableUpdate> = self
            .refs()
            .into_iter()
            .filter(|it| it.name.starts_with(HELD) && it.name != tag)
            .map(|it| TableUpdate::RemoveSnapshotRef { ref_name: it.name })
            .collect();
        updates.extend([
            TableUpdate::SetSnapshotRef { ref_name: tag.clone(), reference },
            TableUpdate::RemoveSnapshotRef { ref_name: AUDIT.to_owned() },
            TableUpdate::SetProperties {
                updates: HashMap::from([(HELD_PROPERTY.to_owned(), report.to_string())]),
            },
        ]);
        self.leave_aside(audited, updates).await?;
        Ok(tag)
    }

    /// What was found in the change that is held back, if one is.
    pub fn held(&self) -> Option<serde_json::Value> {
        serde_json::from_str(self.property(HELD_PROPERTY)?).ok()
    }

    async fn leave_aside(&mut self, audited: SnapshotId, updates: Vec<TableUpdate>) -> Result<()> {
        let mut requirements = self.unmoved();
        requirements.push(self.ref_is(AUDIT, Some(audited.0)));
        let moved = self.catalog.commit(&self.table, requirements, updates).await;
        self.table = moved.map_err(|error| match error.kind() {
            ErrorKind::Conflict => {
                Error::new(ErrorKind::Conflict, "the table moved while a change was audited; it is not shown")
                    .hint("run again: it is read and audited anew")
                    .because(error)
            }
            _ => error,
        })?;
        Ok(())
    }
}
