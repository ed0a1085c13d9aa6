//! Small files beside the tables, by which processes that share a lake know of each other.
//!
//! ```text
//! <warehouse>/_frazil/<name>.json     each written by one process only: no two ever swap the same file
//! ```
//!
//! They are no part of any table: losing them loses no row and no position.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use super::storage::{absolute, store_error};
use super::{LakeSettings, Stores};
use crate::error::{Error, ErrorKind, Result};

/// Files that are read at once.
const AT_ONCE: usize = 8;

/// The notices of a lake.
#[derive(Clone)]
pub struct Notices {
    store: Arc<dyn ObjectStore>,
    folder: Path,
}

impl Notices {
    /// Those of this lake, of which there may be none yet.
    pub fn open(settings: &LakeSettings) -> Result<Self> {
        if settings.catalog.is_rest() && !settings.warehouse.contains("://") {
            let message = "the catalog's server alone knows where this lake is";
            return Err(Error::new(ErrorKind::Unsupported, message)
                .with("warehouse", &settings.warehouse)
                .hint("give the warehouse by its location, `s3://bucket/prefix`, and credentials to write there"));
        }
        let warehouse = absolute(&settings.warehouse)?;
        let (store, path) = Stores::new(settings.options.clone()).resolve(&warehouse)?;
        Ok(Self { store, folder: path.join("_frazil") })
    }

    /// Puts a notice up, in the place of an older one of that name.
    pub async fn put(&self, name: &str, text: Vec<u8>) -> Result<()> {
        let file = self.file(name);
        self.store
            .put(&file, text.into())
            .await
            .map(drop)
            .map_err(|source| store_error("write a notice", file.as_ref(), source))
    }

    /// All notices by name. One that goes while it is read is not there.
    pub async fn all(&self) -> Result<Vec<(String, Bytes)>> {
        let failed = |source| store_error("read notices", self.folder.as_ref(), source);
        let files: Vec<_> = self.store.list(Some(&self.folder)).try_collect().await.map_err(failed)?;
        let read = files.into_iter().map(|file| async move {
            let Some(name) = file.location.filename().and_then(|name| name.strip_suffix(".json")) else {
                return Ok(None);
            };
            let name = name.to_owned();
            match self.store.get(&file.location).await {
                Ok(found) => Ok(Some((name, found.bytes().await.map_err(failed)?))),
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(source) => Err(failed(source)),
            }
        });
        let found: Vec<_> = futures::stream::iter(read).buffer_unordered(AT_ONCE).try_collect().await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// Takes a notice down; none is there afterwards.
    pub async fn remove(&self, name: &str) -> Result<()> {
        let file = self.file(name);
        match self.store.delete(&file).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(store_error("remove a notice", file.as_ref(), source)),
        }
    }

    fn file(&self, name: &str) -> Path {
        self.folder.clone().join(format!("{name}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn notices_are_put_up_read_and_taken_down() {
        let folder = tempfile::tempdir().unwrap();
        let settings = LakeSettings {
            warehouse: folder.path().join("lake").display().to_string(),
            catalog: Default::default(),
            options: Default::default(),
        };
        let notices = Notices::open(&settings).unwrap();
        assert!(notices.all().await.unwrap().is_empty());
        notices.put("a", b"1".to_vec()).await.unwrap();
        notices.put("b", b"2".to_vec()).await.unwrap();
        notices.put("a", b"3".to_vec()).await.unwrap();
        notices.remove("b").await.unwrap();
        notices.remove("b").await.unwrap();
        assert_eq!(notices.all().await.unwrap(), [("a".to_owned(), Bytes::from_static(b"3"))]);
        // They are no table of the lake.
        let lake = crate::lake::Lake::open(&settings).await.unwrap();
        assert!(lake.tables().await.unwrap().is_empty());
        let of_a_server =
            LakeSettings { catalog: "https://catalog.example".into(), warehouse: "main".into(), ..settings };
        assert_eq!(Notices::open(&of_a_server).err().unwrap().kind(), ErrorKind::Unsupported);
    }
}
