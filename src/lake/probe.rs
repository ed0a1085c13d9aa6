//! Whether a lake can be written, found out before the first row moves.

use object_store::{ObjectStoreExt, PutPayload};
use uuid::Uuid;

use super::storage::{absolute, store_error};
use super::{Lake, LakeSettings};
use crate::error::Result;

impl Lake {
    /// Asks the catalog, writes a small file into the warehouse and deletes it again. An error says what
    /// is missing: a right, a server, a store that honours the conditions of a write.
    pub async fn probe(&self, settings: &LakeSettings) -> Result<()> {
        self.catalog.check().await?;
        // A REST catalog says only for each table where its files are.
        if settings.catalog.is_rest() {
            return Ok(());
        }
        let file = format!("{}/.frazil-probe-{}", absolute(&settings.warehouse)?, Uuid::new_v4());
        let (store, path) = self.stores.resolve(&file)?;
        let content = PutPayload::from_static(b"written by `frazil check`; safe to delete\n");
        store.put(&path, content).await.map_err(|source| store_error("write a file", &file, source))?;
        store.delete(&path).await.map_err(|source| store_error("delete a file", &file, source))
    }
}
