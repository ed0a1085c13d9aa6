//! What a commit hands on to another table: a note in the same swap, and files beside the data.
//!
//! ```text
//! files beside the data ──┐
//! rows and watermark ─────┼─▶ one swap ─▶ note in the table ─▶ delivered elsewhere, as often as it takes
//! note that names files ──┘
//! ```
//!
//! No catalog here swaps two tables at once. So what belongs to a second table is only written down with the
//! first: the note is there if and only if the rows are, and whoever finds it can do the rest. A table has
//! one note, its newest: the one before must have been delivered when the next is committed.

use std::collections::HashMap;

use bytes::Bytes;
use iceberg::TableUpdate;
use iceberg::spec::Snapshot;
use object_store::ObjectStoreExt;
use uuid::Uuid;

use super::LakeTable;
use super::storage::store_error;
use crate::error::Result;

/// Snapshot summary of the commit, and the table property that keeps it when the snapshot expires.
pub const OUTBOX: &str = "frazil.outbox";

/// How files aside end. A note may wait for long, so they are orphans only if no note names them.
pub(super) const KIND: &str = ".jsonl";

impl LakeTable {
    /// The newest note that was committed.
    pub fn outbox(&self) -> Option<&str> {
        self.property(OUTBOX)
    }

    /// Whether a note names the file at this path: the newest, or one of a branch that is not shown yet.
    pub(super) fn is_handed_on(&self, path: &str) -> bool {
        let Some(name) = path.rsplit('/').next().filter(|name| name.ends_with(KIND)) else { return false };
        let of_snapshots = self.table.metadata().snapshots();
        let of_snapshots =
            of_snapshots.filter_map(|snapshot| snapshot.summary().additional_properties.get(OUTBOX));
        self.outbox().into_iter().chain(of_snapshots.map(String::as_str)).any(|note| note.contains(name))
    }

    /// Writes a file for a note, and says where it is. Nobody reads it before a commit names it.
    pub async fn put_aside(&self, bytes: Vec<u8>) -> Result<String> {
        let file = format!("{}/outbox-{}{KIND}", self.data_location(), Uuid::new_v4());
        let (store, path) = self.stores.resolve(&file)?;
        match store.put(&path, bytes.into()).await {
            Ok(_) => Ok(file),
            Err(source) => Err(store_error("write a file", &file, source)),
        }
    }

    /// What is in such a file; `None` when it is gone, because somebody has delivered the note.
    pub async fn read_aside(&self, file: &str) -> Result<Option<Bytes>> {
        let (store, path) = self.stores.resolve(file)?;
        let read = match store.get(&path).await {
            Ok(found) => found.bytes().await,
            Err(error) => Err(error),
        };
        match read {
            Ok(bytes) => Ok(Some(bytes)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => Err(store_error("read a file", file, source)),
        }
    }

    /// Deletes such files, as far as that works: what stays does no harm.
    pub async fn drop_aside(&self, files: &[String]) {
        for file in files {
            if let Ok((store, path)) = self.stores.resolve(file)
                && let Err(error) = store.delete(&path).await
            {
                tracing::debug!(%error, "a file that was delivered was not deleted");
            }
        }
    }
}

/// The note of a snapshot, for the swap that shows it.
pub(super) fn note(snapshot: &Snapshot) -> Option<TableUpdate> {
    let note = snapshot.summary().additional_properties.get(OUTBOX)?;
    let updates = HashMap::from([(OUTBOX.to_owned(), note.clone())]);
    Some(TableUpdate::SetProperties { updates })
}
