//! Makes data files visible in the lake: one call, one Iceberg snapshot.
//!
//! ```text
//! data files ──┐
//!              ├──▶ one swap in the catalog ──▶ snapshot 42
//! watermark ───┘
//! ```
//!
//! Rows and the watermark that covers them appear together or not at all. A crash before the
//! swap leaves orphan files for maintenance; after it, nothing is left to do.
//!
//! Maintenance runs beside: a snapshot that only rewrites files is no other writer, and a commit that
//! meets one is laid on top of it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use iceberg::spec::{MAIN_BRANCH, Operation, Snapshot};
use iceberg::{TableRequirement, TableUpdate};

use super::audit::AUDIT;
use super::snapshot::Draft;
use super::write::discard;
use super::{Gone, LakeTable, Lateness, OUTBOX, Position, WrittenFile, deletes, outbox};
use crate::delta::{SnapshotId, Watermark};
use crate::error::{Error, ErrorKind, Result};
use crate::faults;
use crate::memory::Budget;

/// Snapshot summary, and as a mirror the table property: the position that covers the rows.
pub(super) const WATERMARK: &str = "frazil.watermark";
/// Snapshot summary: rows that were there before and are hidden by this snapshot.
const REPLACED_ROWS: &str = "frazil.replaced-rows";
/// Snapshot summary: rows that were there before, are hidden by this snapshot, and whose key is gone.
const DELETED_ROWS: &str = "frazil.deleted-rows";
/// Snapshot summary: new rows that a later one with the same key hides.
const REPEATED_ROWS: &str = "frazil.repeated-rows";
/// Snapshot summary: which of the new rows came late, as [`Lateness`].
const LATENESS: &str = "frazil.late-rows";
/// The branch on which a first read collects its parts.
pub(super) const FIRST_READ: &str = "frazil_first_read";
/// Snapshot summary: this snapshot is a part of a first read that readers do not see yet.
pub(super) const UNFINISHED: &str = "frazil.unfinished";

/// Times that a commit is laid anew on a table that is being maintained beside it, before it gives up:
/// maintenance commits seldom, so more in a row than this are no coincidence.
const REBASES: usize = 20;

/// What to commit.
#[derive(Debug, Clone)]
pub struct Change {
    /// New data files. May be empty: then only the watermark moves.
    pub files: Vec<WrittenFile>,
    /// What they do to what is there.
    pub effect: Effect,
    /// The position that was read from. [`Conflict`](ErrorKind::Conflict) when the table is elsewhere.
    pub from: Option<Watermark>,
    /// The position that covers the table afterwards.
    pub to: Watermark,
    /// Entries for the snapshot's summary, under `frazil.`: pass id, version, row counts.
    pub summary: BTreeMap<String, String>,
}

/// What new files do to a table.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Rows are added; none of them has a key that is there already.
    Append,
    /// Rows are added and older rows with their keys are hidden by position deletes.
    Upsert,
    /// The table becomes exactly these rows.
    Replace,
    /// As `Upsert`, and rows that a whole read did not find are hidden as well.
    Difference(Arc<Gone>),
    /// As `Upsert`, and rows with the keys in these files are hidden as well. The files come from
    /// [`key_writer`](LakeTable::key_writer), have no key of the new ones, never belong to the table, and
    /// are deleted with the commit.
    Log(Vec<WrittenFile>),
    /// A portion of a first read: committed aside (branch `frazil_first_read`), not yet shown.
    FirstReadPart {
        /// The reading was interrupted before, so rows may repeat keys of earlier parts: hide those.
        overlaps: bool,
    },
    /// The last portion of a first read: it and all parts before it become the table.
    FirstReadEnd {
        /// As for parts.
        overlaps: bool,
    },
}

/// What a commit did to a table's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RowCounts {
    /// Rows whose key was not there before.
    pub inserted: u64,
    /// Rows that take the place of one with their key.
    pub updated: u64,
    /// Rows whose key is gone.
    pub deleted: u64,
}

impl LakeTable {
    /// The newest position, resolved by walking the current snapshot's ancestors: rolling the table
    /// back rewinds it. Of an unfinished first read, the position of its last part.
    pub fn position(&self) -> Result<Option<Position>> {
        let unfinished = self.first_read();
        let Some(head) = unfinished.or(self.current()) else { return Ok(None) };
        let watermark = self.ancestors(head).find_map(|snapshot| watermark_of(snapshot));
        match (watermark, unfinished) {
            (None, Some(head)) => Err(Error::new(ErrorKind::Corrupt, "a first read has no position")
                .with("table", &self.id)
                .with("snapshot", head)
                .hint(format!("drop the branch `{FIRST_READ}` of the table to start the first read again"))),
            (watermark, unfinished) => {
                Ok(watermark.map(|watermark| Position { watermark, unfinished: unfinished.is_some() }))
            }
        }
    }

    /// The position that covered the table at a snapshot.
    pub fn position_at(&self, at: SnapshotId) -> Option<Watermark> {
        self.ancestors(at).find_map(|snapshot| watermark_of(snapshot))
    }

    /// What the current snapshot changed.
    pub fn row_counts(&self) -> RowCounts {
        let Some(snapshot) = self.table.metadata().current_snapshot() else { return RowCounts::default() };
        let count = |name: &str| {
            let text = snapshot.summary().additional_properties.get(name);
            text.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0)
        };
        let (written, updated) =
            (count("added-records").saturating_sub(count(REPEATED_ROWS)), count(REPLACED_ROWS));
        RowCounts { inserted: written.saturating_sub(updated), updated, deleted: count(DELETED_ROWS) }
    }

    /// Which of the rows that the current snapshot brought came late.
    pub fn lateness(&self) -> Lateness {
        let snapshot = self.table.metadata().current_snapshot();
        let text = snapshot.and_then(|snapshot| snapshot.summary().additional_properties.get(LATENESS));
        text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
    }

    /// The positions of all ancestors of the current snapshot, each once, the newest first.
    pub fn past_positions(&self) -> Vec<Watermark> {
        let ancestors = self.current().into_iter().flat_map(|head| self.ancestors(head));
        let mut past: Vec<_> = ancestors.filter_map(|snapshot| watermark_of(snapshot)).collect();
        past.dedup();
        past
    }

    /// Whether the copy of the position in the table's properties says what the snapshots say.
    pub fn position_is_mirrored(&self) -> bool {
        let position = self.current().and_then(|current| self.position_at(current));
        self.property(WATERMARK) == position.as_ref().map(Watermark::as_str)
    }

    /// Makes it so.
    pub async fn mirror_position(&mut self) -> Result<()> {
        let update = match self.current().and_then(|current| self.position_at(current)) {
            Some(position) => mirror(&position),
            None => TableUpdate::RemoveProperties { removals: vec![WATERMARK.to_owned()] },
        };
        self.table = self.catalog.commit(&self.table, self.unmoved(), vec![update]).await?;
        Ok(())
    }

    /// Drops the parts of an unfinished first read, so that it can start from nothing.
    pub async fn abandon_first_read(&mut self) -> Result<()> {
        let Some(head) = self.first_read() else { return Ok(()) };
        let files = self.live_files(Some(head)).await?;
        let snapshot_ids = self
            .ancestors(head)
            .map(|snapshot| snapshot.snapshot_id())
            .filter(|id| !self.current().is_some_and(|current| self.is_ancestor(SnapshotId(*id), current)))
            .collect();
        let updates = vec![
            TableUpdate::RemoveSnapshotRef { ref_name: FIRST_READ.to_owned() },
            TableUpdate::RemoveSnapshots { snapshot_ids },
        ];
        self.table = self.catalog.commit(&self.table, self.unmoved(), updates).await?;
        // Nobody can read them any more. What stays is an orphan and does no harm.
        let files = files
            .data
            .into_iter()
            .chain(files.deletes)
            .map(|live| WrittenFile { file: live.file.as_ref().clone(), spec_id: live.spec_id });
        discard(&self.stores, &files.collect::<Vec<_>>()).await;
        Ok(())
    }

    /// Commits a change on the state that `self` was loaded at, and moves `self` to the result.
    pub async fn commit(&mut self, change: Change, budget: Budget) -> Result<SnapshotId> {
        let id = self.id.clone();
        self.try_commit(change, budget, false).await.map_err(|error| error.with("table", id))
    }

    /// The files of keys that go have done their work, whatever came of it.
    pub(super) async fn try_commit(
        &mut self,
        change: Change,
        budget: Budget,
        aside: bool,
    ) -> Result<SnapshotId> {
        let outcome = self.commit_on_what_is_there(&change, budget, aside).await;
        if let Effect::Log(keys) = &change.effect {
            discard(&self.stores, keys).await;
        }
        outcome
    }

    /// A table that was only maintained meanwhile holds the same rows: the change is laid anew on what is
    /// there now. Its data files stay; which old rows it hides is found again, since those have moved.
    async fn commit_on_what_is_there(
        &mut self,
        change: &Change,
        budget: Budget,
        aside: bool,
    ) -> Result<SnapshotId> {
        self.leave_version_1().await?;
        let mut outcome = Err(moved(Error::new(ErrorKind::Conflict, "")));
        for _ in 0..REBASES {
            let place = match self.place(change) {
                Ok(place) if aside => place.aside(),
                Ok(place) => place,
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            };
            outcome = self.attempt(change, place, budget).await;
            match &outcome {
                Err(error) if error.kind() == ErrorKind::Conflict => {
                    if !self.follow_maintenance().await.unwrap_or(false) {
                        break;
                    }
                }
                // A catalog may have deleted the files of a table together with it.
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    return match self.clone().reload().await {
                        Err(gone) if gone.kind() == ErrorKind::Conflict => Err(gone),
                        _ => outcome,
                    };
                }
                // What may have been swapped in must stay; all else that failed is cleaned up.
                _ => return outcome,
            }
        }
        discard(&self.stores, &change.files).await;
        outcome
    }

    async fn attempt(&mut self, change: &Change, place: Place, budget: Budget) -> Result<SnapshotId> {
        if let (Some(current), true) = (self.current(), changes_nothing(change)) {
            return Ok(current);
        }
        let table = self.table.clone();
        let mut draft = Draft::on(&table, place.parent).await?;
        let mut hidden = Vec::new();
        let prepared = match self.prepare(&mut draft, &place, change, &mut hidden, budget).await {
            Ok(snapshot) => faults::point(faults::BEFORE_COMMIT).map(|()| snapshot),
            Err(error) => Err(error),
        };
        let error = match prepared {
            Ok(snapshot) => {
                let id = SnapshotId(snapshot.snapshot_id());
                let updates = self.updates(&place, snapshot, &change.to)?;
                match self.catalog.commit(&self.table, self.unmoved(), updates).await {
                    Ok(moved) => {
                        self.table = moved;
                        faults::point(faults::AFTER_COMMIT)?;
                        return Ok(id);
                    }
                    Err(error) if error.kind() == ErrorKind::Conflict => moved(error),
                    // The swap may still come through: what it names must stay.
                    Err(error) => return Err(error),
                }
            }
            Err(error) => {
                discard(&self.stores, &change.files).await;
                error
            }
        };
        discard(&self.stores, &hidden).await;
        draft.discard().await;
        Err(error)
    }

    /// After a lost swap: goes to the newest state, if all that happened since is maintenance (snapshots
    /// that rewrite files and change no row). `false`: the table is another one's now.
    async fn follow_maintenance(&mut self) -> Result<bool> {
        let mut newest = self.clone();
        newest.reload().await?;
        let columns = |table: &Self| table.table.metadata().current_schema_id();
        if columns(&newest) != columns(self) || newest.first_read() != self.first_read() {
            return Ok(false);
        }
        if newest.current() != self.current() {
            let (Some(ours), Some(theirs)) = (self.current(), newest.current()) else { return Ok(false) };
            let mut line = newest.ancestors(theirs).skip_while(|snapshot| {
                snapshot.snapshot_id() != ours.0 && snapshot.summary().operation == Operation::Replace
            });
            if line.next().is_none_or(|snapshot| snapshot.snapshot_id() != ours.0) {
                return Ok(false);
            }
        }
        tracing::debug!(table = %self.id, "the table was maintained meanwhile: committing on top of that");
        *self = newest;
        Ok(true)
    }

    /// Writes all that the new snapshot needs. `hidden` takes the delete files that it makes.
    async fn prepare(
        &self,
        draft: &mut Draft<'_>,
        place: &Place,
        change: &Change,
        hidden: &mut Vec<WrittenFile>,
        budget: Budget,
    ) -> Result<Snapshot> {
        let mut summary: HashMap<String, String> = change.summary.clone().into_iter().collect();
        summary.insert(WATERMARK.to_owned(), change.to.as_str().to_owned());
        if place.branch == FIRST_READ {
            summary.insert(UNFINISHED.to_owned(), "true".to_owned());
        }
        if place.hides {
            let none = Gone::default();
            let (gone, gone_keys) = match &change.effect {
                Effect::Difference(gone) => (gone.as_ref(), &[][..]),
                Effect::Log(keys) => (&none, &keys[..]),
                _ => (&none, &[][..]),
            };
            let (at, new) = (place.parent, &change.files);
            // Who knows of deletes sends keys in the order of what happened to them.
            let order = self.order.as_ref().filter(|_| gone_keys.is_empty());
            let found = deletes::hide(self, at, new, gone_keys, gone, order, budget).await?;
            if !found.lateness.is_empty() {
                let text = serde_json::to_string(&found.lateness).expect("counts are JSON");
                summary.insert(LATENESS.to_owned(), text);
            }
            summary.insert(REPLACED_ROWS.to_owned(), found.old_rows.to_string());
            if found.gone_rows > 0 {
                summary.insert(DELETED_ROWS.to_owned(), found.gone_rows.to_string());
            }
            if found.repeated_rows > 0 {
                summary.insert(REPEATED_ROWS.to_owned(), found.repeated_rows.to_string());
            }
            draft.remove_data(&found.gone_files).await?;
            draft.remove_deletes(&found.superseded).await?;
            hidden.extend(found.files);
        }
        if place.replaces {
            draft.remove_all().await?;
        }
        draft.add(&change.files.iter().chain(&*hidden).cloned().collect::<Vec<_>>()).await?;
        draft.build(summary).await
    }

    /// Where a change goes, if the table is where the change comes from.
    fn place(&self, change: &Change) -> Result<Place> {
        let position = self.position()?.map(|position| position.watermark);
        if position != change.from {
            return Err(moved(Error::new(ErrorKind::Conflict, "")));
        }
        let first_read = self.first_read();
        let on =
            |branch, parent, hides| Place { branch, parent, hides, replaces: false, ends_first_read: false };
        match &change.effect {
            // The change since a first read began, which ends it.
            Effect::Log(_) if first_read.is_some() => {
                Ok(Place { ends_first_read: true, ..on(MAIN_BRANCH, first_read, true) })
            }
            Effect::Append | Effect::Upsert if first_read.is_some() => {
                Err(Error::new(ErrorKind::Internal, "a change was committed in the middle of a first read"))
            }
            Effect::Append => Ok(on(MAIN_BRANCH, self.current(), false)),
            Effect::Upsert | Effect::Log(_) => Ok(on(MAIN_BRANCH, self.current(), true)),
            Effect::Replace => Ok(Place {
                replaces: true,
                // Parts of a first read are covered by what is now read whole.
                ends_first_read: first_read.is_some(),
                ..on(MAIN_BRANCH, self.current(), false)
            }),
            Effect::Difference(_) => {
                Ok(Place { ends_first_read: first_read.is_some(), ..on(MAIN_BRANCH, self.current(), true) })
            }
            Effect::FirstReadPart { overlaps } => Ok(on(FIRST_READ, first_read, *overlaps)),
            Effect::FirstReadEnd { overlaps } => {
                Ok(Place { ends_first_read: first_read.is_some(), ..on(MAIN_BRANCH, first_read, *overlaps) })
            }
        }
    }

    /// The one metadata update that shows a snapshot.
    fn updates(&self, place: &Place, snapshot: Snapshot, to: &Watermark) -> Result<Vec<TableUpdate>> {
        // What is aside is not committed yet: publishing it shows its note.
        let note = outbox::note(&snapshot).filter(|_| place.branch != AUDIT);
        let mut updates = self.on_branch(place.branch, snapshot)?;
        updates.extend(note);
        if place.ends_first_read {
            updates.push(TableUpdate::RemoveSnapshotRef { ref_name: FIRST_READ.to_owned() });
        }
        if place.branch == MAIN_BRANCH {
            updates.push(mirror(to));
        }
        Ok(updates)
    }

    /// The last part of an unfinished first read.
    pub(super) fn first_read(&self) -> Option<SnapshotId> {
        self.table.metadata().snapshot_for_ref(FIRST_READ).map(|snapshot| SnapshotId(snapshot.snapshot_id()))
    }

    /// That the table is still where `self` is: both branches that make up a position, and the
    /// columns that files were written by.
    pub(super) fn unmoved(&self) -> Vec<TableRequirement> {
        let metadata = self.table.metadata();
        let stays = |name: &str| TableRequirement::RefSnapshotIdMatch {
            r#ref: name.to_owned(),
            snapshot_id: metadata.snapshot_for_ref(name).map(|snapshot| snapshot.snapshot_id()),
        };
        vec![
            TableRequirement::UuidMatch { uuid: metadata.uuid() },
            TableRequirement::CurrentSchemaIdMatch { current_schema_id: metadata.current_schema_id() },
            stays(MAIN_BRANCH),
            stays(FIRST_READ),
        ]
    }
}

/// Where a change goes.
struct Place {
    branch: &'static str,
    parent: Option<SnapshotId>,
    /// Rows with the same keys are hidden.
    hides: bool,
    /// All that is there is removed.
    replaces: bool,
    /// The branch of the first read goes.
    ends_first_read: bool,
}

impl Place {
    /// The same where readers do not look, for what they would see.
    fn aside(self) -> Self {
        match self.branch {
            MAIN_BRANCH => Self { branch: AUDIT, ends_first_read: false, ..self },
            _ => self,
        }
    }
}

/// An idle pass: no rows, nothing for another table, and the position stays.
fn changes_nothing(change: &Change) -> bool {
    let nothing = match &change.effect {
        Effect::Append | Effect::Upsert => true,
        Effect::Difference(gone) => gone.is_empty(),
        Effect::Log(keys) => keys.is_empty(),
        Effect::Replace | Effect::FirstReadPart { .. } | Effect::FirstReadEnd { .. } => false,
    };
    let hands_on = change.summary.contains_key(OUTBOX);
    nothing && !hands_on && change.files.is_empty() && change.from.as_ref() == Some(&change.to)
}

pub(super) fn watermark_of(snapshot: &Snapshot) -> Option<Watermark> {
    snapshot.summary().additional_properties.get(WATERMARK).map(Watermark::new)
}

pub(super) fn mirror(watermark: &Watermark) -> TableUpdate {
    let updates = HashMap::from([(WATERMARK.to_owned(), watermark.as_str().to_owned())]);
    TableUpdate::SetProperties { updates }
}

fn moved(error: Error) -> Error {
    Error::new(ErrorKind::Conflict, "another runner moved the table, nothing of this pass was committed")
        .hint("run again: it goes on from where the other one stopped")
        .because(error)
}
