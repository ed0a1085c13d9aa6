//! Swaps rewritten files in: a `replace` snapshot on whatever is there by now.

use std::collections::{HashMap, HashSet};

use iceberg::TableRequirement;
use iceberg::spec::{MAIN_BRANCH, Operation, SnapshotRef};

use super::super::commit::{WATERMARK, watermark_of};
use super::super::snapshot::{Draft, FileKey};
use super::super::{LakeTable, WrittenFile};
use crate::delta::SnapshotId;
use crate::error::{ErrorKind, Result};
use crate::faults;

/// Snapshot summary: the snapshot is our own maintenance.
const MAINTENANCE: &str = "frazil.maintenance";

/// Small manifests are merged when there are more: maintenance commits seldom, and can afford it.
const MANIFESTS: usize = 8;

/// What becomes what. Rows before and after are the same.
#[derive(Default)]
pub(super) struct Swap {
    /// Files that go.
    pub(super) gone: HashSet<FileKey>,
    /// Files that come, with the sequence number of the rows that they take over.
    pub(super) come: Vec<WrittenFile>,
    pub(super) come_as_of: i64,
    /// Delete files that come, as of the new snapshot.
    pub(super) deletes: Vec<WrittenFile>,
    /// In a word, for the summary.
    pub(super) what: &'static str,
}

impl LakeTable {
    /// How many snapshots lie between now and our last maintenance, or the oldest that is known.
    pub fn commits_since_maintenance(&self) -> usize {
        let is_ours = |it: &&SnapshotRef| it.summary().additional_properties.contains_key(MAINTENANCE);
        self.current().map_or(0, |current| self.ancestors(current).take_while(|it| !is_ours(it)).count())
    }

    /// Commits a swap on the state that `self` was loaded at. `None`: the table has moved since.
    pub(super) async fn swap(&mut self, swap: &Swap) -> Result<Option<SnapshotId>> {
        let table = self.table.clone();
        let mut draft = Draft::on(&table, self.current()).await?;
        let prepared = async {
            draft.most_manifests = MANIFESTS;
            draft.remove(&swap.gone).await?;
            draft.add_as_of(&swap.come, swap.come_as_of).await?;
            draft.add(&swap.deletes).await?;
            let mut summary = HashMap::from([(MAINTENANCE.to_owned(), swap.what.to_owned())]);
            // The snapshot that brought the position may expire; what it says of the rows stays true.
            let position = self.current().and_then(|id| self.ancestors(id).find_map(|it| watermark_of(it)));
            if let Some(watermark) = position {
                summary.insert(WATERMARK.to_owned(), watermark.as_str().to_owned());
            }
            let snapshot = draft.build_as(Operation::Replace, summary).await?;
            faults::point(faults::BEFORE_SWAP)?;
            Ok(snapshot)
        };
        let snapshot = match prepared.await {
            Ok(snapshot) => snapshot,
            Err(error) => {
                draft.discard().await;
                return Err(error);
            }
        };
        let id = SnapshotId(snapshot.snapshot_id());
        let updates = self.on_branch(MAIN_BRANCH, snapshot)?;
        let requirements = vec![
            TableRequirement::UuidMatch { uuid: self.uuid() },
            self.ref_is(MAIN_BRANCH, self.current().map(|current| current.0)),
        ];
        match self.catalog.commit(&self.table, requirements, updates).await {
            Ok(moved) => {
                self.table = moved;
                faults::point(faults::AFTER_SWAP)?;
                Ok(Some(id))
            }
            Err(error) if error.kind() == ErrorKind::Conflict => {
                draft.discard().await;
                Ok(None)
            }
            // The swap may still come through: what it names must stay.
            Err(error) => Err(error),
        }
    }
}
