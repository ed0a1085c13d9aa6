//! What a commit will ask of the snapshot that it builds on, read while the source still sends its rows.
//!
//! ```text
//! source ──rows──────────────▶ files ─┐
//! current snapshot ─▶ manifests ──────┼─▶ which old rows go? ─▶ commit
//!                     └─▶ footers ────┘
//! ```
//!
//! Only where that is little: of a large table a small change needs a small part, and which one is known
//! when the rows are there.

use std::sync::Arc;

use futures::{StreamExt, stream};
use tokio::sync::OnceCell;

use super::manifest::{self, LiveFiles};
use super::{LakeTable, footers};
use crate::delta::SnapshotId;
use crate::error::Result;

/// Manifests are read ahead if they have no more bytes than this together. What they say is kept until the
/// commit, about ten times as much.
const MANIFEST_BYTES: i64 = 256 << 10;
/// Footers are read ahead of so many data files at most, all at once.
const FOOTERS: usize = 16;

/// What is known of a snapshot. All clones of a table share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Ahead(Arc<OnceCell<(SnapshotId, LiveFiles)>>);

impl Ahead {
    /// The files of a snapshot, if they were read ahead.
    pub(super) fn files(&self, at: SnapshotId) -> Option<&LiveFiles> {
        self.0.get().filter(|(known, _)| *known == at).map(|(_, files)| files)
    }
}

impl LakeTable {
    /// Reads ahead what an upsert on the current snapshot will need. What fails here is asked again by the
    /// commit, which says so.
    pub async fn look_ahead(&self) {
        if let Err(error) = self.read_ahead().await {
            tracing::debug!(table = %self.id, %error, "nothing was read ahead");
        }
    }

    async fn read_ahead(&self) -> Result<()> {
        let Some(snapshot) = self.table.metadata().current_snapshot() else { return Ok(()) };
        let manifests = manifest::manifests(&self.table, snapshot).await?;
        if manifests.iter().map(|manifest| manifest.manifest_length).sum::<i64>() > MANIFEST_BYTES {
            return Ok(());
        }
        let files = manifest::live_in(&self.table, &manifests.iter().collect::<Vec<_>>()).await?;
        let found: Vec<_> =
            files.data.iter().map(|file| (file.path().to_owned(), file.file.file_size_in_bytes())).collect();
        // Nobody else sets it: a table is read ahead once.
        let _ = self.ahead.0.set((SnapshotId(snapshot.snapshot_id()), files));
        if found.len() <= FOOTERS {
            let read = found.iter().map(|(path, size)| footers::footer(&self.stores, path, *size));
            let read: Vec<_> = read.collect();
            stream::iter(read).buffer_unordered(FOOTERS).collect::<Vec<_>>().await;
        }
        Ok(())
    }
}
