//! Who reads this table's changes, and how far each has come: what expiry must not take away.
//!
//! A target's own record says which snapshot it shows; that is the truth. The table keeps a note of it
//! in a property, `frazil.target.<name>`. The note is written after the target has loaded, and not
//! after every load: so it is never ahead of the truth, and what it protects is what the target needs
//! or a little more.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use iceberg::{TableRequirement, TableUpdate};
use serde::{Deserialize, Serialize};

use super::super::{LakeTable, TableMode};
use crate::delta::SnapshotId;
use crate::error::{Error, ErrorKind, Result};

/// Table property: what a target shows.
const TARGET_PROPERTY: &str = "frazil.target.";
/// A note may be this many snapshots behind before it is written anew: each costs a metadata file.
const SNAPSHOTS_BEHIND: usize = 50;
/// Or this old, if the target has moved since.
const BEHIND: TimeDelta = TimeDelta::hours(1);

/// A target that loads from this table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RegisteredTarget {
    /// `connection/table`.
    pub name: String,
    /// A snapshot that it has loaded. It may have come further since.
    pub snapshot: SnapshotId,
    /// When that was noted.
    pub at: DateTime<Utc>,
}

#[derive(Serialize, Deserialize)]
struct Note {
    snapshot: i64,
    at: DateTime<Utc>,
}

impl LakeTable {
    /// The targets that load from this table, in name order.
    pub fn targets(&self) -> Vec<RegisteredTarget> {
        let properties = self.table.metadata().properties().iter();
        let mut targets: Vec<_> = properties
            .filter_map(|(key, value)| {
                let name = key.strip_prefix(TARGET_PROPERTY)?.to_owned();
                let note: Note = serde_json::from_str(value).ok()?;
                Some(RegisteredTarget { name, snapshot: SnapshotId(note.snapshot), at: note.at })
            })
            .collect();
        targets.sort_by(|a, b| a.name.cmp(&b.name));
        targets
    }

    /// Notes that a target shows a snapshot now, if that is not known nearly enough. To be called after
    /// the target's own commit. Says whether it wrote anything.
    pub async fn note_target(&mut self, name: &str, shows: SnapshotId, now: DateTime<Utc>) -> Result<bool> {
        // A table that is replaced whole is always loaded whole.
        if self.mode() == TableMode::Replace || !self.is_behind(name, shows, now) {
            return Ok(false);
        }
        let note = Note { snapshot: shows.0, at: now };
        let note = serde_json::to_string(&note).expect("a note is JSON");
        let updates = HashMap::from([(format!("{TARGET_PROPERTY}{name}"), note)]);
        self.change_properties(TableUpdate::SetProperties { updates }).await?;
        Ok(true)
    }

    /// Forgets a target, which then has to load everything if it comes back after its snapshot expired.
    pub async fn forget_target(&mut self, name: &str) -> Result<()> {
        let key = format!("{TARGET_PROPERTY}{name}");
        if !self.table.metadata().properties().contains_key(&key) {
            let known: Vec<String> = self.targets().into_iter().map(|target| target.name).collect();
            let error = Error::new(ErrorKind::Config, format!("the table knows no target `{name}`"))
                .with("table", &self.id);
            return Err(match known.is_empty() {
                true => error.hint("no target has loaded from it"),
                false => error.hint(format!("it knows {}", known.join(", "))),
            });
        }
        self.change_properties(TableUpdate::RemoveProperties { removals: vec![key] }).await
    }

    fn is_behind(&self, name: &str, shows: SnapshotId, now: DateTime<Utc>) -> bool {
        let Some(noted) = self.targets().into_iter().find(|target| target.name == name) else { return true };
        if noted.snapshot == shows {
            return false;
        }
        let between = self.ancestors(shows).take_while(|it| it.snapshot_id() != noted.snapshot.0);
        between.take(SNAPSHOTS_BEHIND).count() == SNAPSHOTS_BEHIND
            || !self.is_ancestor(noted.snapshot, shows)
            || now - noted.at >= BEHIND
    }

    /// Whatever else moves meanwhile: neither rows nor positions are touched.
    async fn change_properties(&mut self, update: TableUpdate) -> Result<()> {
        let requirements = vec![TableRequirement::UuidMatch { uuid: self.uuid() }];
        let changed = self.catalog.commit(&self.table, requirements, vec![update]).await;
        self.table = changed.map_err(|error| error.with("table", &self.id))?;
        Ok(())
    }
}
