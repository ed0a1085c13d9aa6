//! iceberg's `Storage` on [`Stores`]: manifests and manifest lists go through here.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use iceberg::io::{
    FileIO, FileIOBuilder, FileMetadata, FileRead, FileWrite, InputFile, OutputFile, Storage, StorageConfig,
    StorageFactory,
};
use iceberg::{Error, ErrorKind, Result};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use serde::{Deserialize, Serialize};

use super::{Place, Stores, store_error};

/// iceberg's view of the stores.
pub(in crate::lake) fn file_io(stores: &Arc<Stores>) -> FileIO {
    FileIOBuilder::new(Arc::new(Factory { stores: Some(stores.clone()) })).build()
}

/// The handle is rebuilt, not sent, when iceberg serialises a storage: it never is by us.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Factory {
    #[serde(skip, default)]
    stores: Option<Arc<Stores>>,
}

#[typetag::serde(name = "FrazilStorageFactory")]
impl StorageFactory for Factory {
    fn build(&self, _config: &StorageConfig) -> Result<Arc<dyn Storage>> {
        Ok(Arc::new(Files { stores: self.stores.clone() }))
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Files {
    #[serde(skip, default)]
    stores: Option<Arc<Stores>>,
}

impl Files {
    fn at(&self, location: &str) -> Result<(Arc<dyn ObjectStore>, Path)> {
        let stores = self.stores.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::FeatureUnsupported, "a deserialised storage has no stores")
        })?;
        stores.resolve(location).map_err(ours)
    }
}

/// Our error travels inside iceberg's; `iceberg_error` takes it out again.
fn ours(error: crate::Error) -> Error {
    Error::new(ErrorKind::Unexpected, "object store").with_source(error)
}

fn failed(action: &str, file: &str, source: object_store::Error) -> Error {
    ours(store_error(action, file, source))
}

struct Reader {
    store: Arc<dyn ObjectStore>,
    path: Path,
}

#[async_trait]
impl FileRead for Reader {
    async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        self.store
            .get_range(&self.path, range)
            .await
            .map_err(|error| failed("read a file", self.path.as_ref(), error))
    }
}

/// Manifests are small (they are split at some megabytes), so one put at the end is enough.
struct Writer {
    store: Arc<dyn ObjectStore>,
    path: Path,
    parts: Vec<Bytes>,
}

#[async_trait]
impl FileWrite for Writer {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.parts.push(bytes);
        Ok(())
    }

    async fn close(&mut self) -> Result<()> {
        let payload: PutPayload = std::mem::take(&mut self.parts).into_iter().collect();
        self.store
            .put(&self.path, payload)
            .await
            .map_err(|error| failed("write a file", self.path.as_ref(), error))?;
        Ok(())
    }
}

#[async_trait]
#[typetag::serde(name = "FrazilStorage")]
impl Storage for Files {
    async fn exists(&self, location: &str) -> Result<bool> {
        let (store, path) = self.at(location)?;
        match store.head(&path).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(failed("look for a file", location, error)),
        }
    }

    async fn metadata(&self, location: &str) -> Result<FileMetadata> {
        let (store, path) = self.at(location)?;
        let meta = store.head(&path).await.map_err(|error| failed("look for a file", location, error))?;
        Ok(FileMetadata { size: meta.size })
    }

    async fn read(&self, location: &str) -> Result<Bytes> {
        let (store, path) = self.at(location)?;
        let result = store.get(&path).await.map_err(|error| failed("read a file", location, error))?;
        result.bytes().await.map_err(|error| failed("read a file", location, error))
    }

    async fn reader(&self, location: &str) -> Result<Box<dyn FileRead>> {
        let (store, path) = self.at(location)?;
        Ok(Box::new(Reader { store, path }))
    }

    async fn write(&self, location: &str, bytes: Bytes) -> Result<()> {
        let (store, path) = self.at(location)?;
        store.put(&path, bytes.into()).await.map_err(|error| failed("write a file", location, error))?;
        Ok(())
    }

    async fn writer(&self, location: &str) -> Result<Box<dyn FileWrite>> {
        let (store, path) = self.at(location)?;
        Ok(Box::new(Writer { store, path, parts: Vec::new() }))
    }

    async fn delete(&self, location: &str) -> Result<()> {
        let (store, path) = self.at(location)?;
        match store.delete(&path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed("delete a file", location, error)),
        }
    }

    async fn delete_prefix(&self, location: &str) -> Result<()> {
        let (store, path) = self.at(location)?;
        let listed = store.list(Some(&path)).map_ok(|meta| meta.location).boxed();
        store
            .delete_stream(listed)
            .try_for_each(|_| async { Ok(()) })
            .await
            .map_err(|error| failed("delete files", location, error))
    }

    async fn delete_stream(&self, mut locations: BoxStream<'static, String>) -> Result<()> {
        // Grouped by store, so that a store's bulk delete is used.
        let mut groups: HashMap<String, (Arc<dyn ObjectStore>, Vec<Path>)> = HashMap::new();
        while let Some(location) = locations.next().await {
            let (store, path) = self.at(&location)?;
            let base = Place::parse(&location).map_err(ours)?.base();
            groups.entry(base).or_insert_with(|| (store, Vec::new())).1.push(path);
        }
        for (base, (store, paths)) in groups {
            let mut deleted = store.delete_stream(futures::stream::iter(paths.into_iter().map(Ok)).boxed());
            while let Some(outcome) = deleted.next().await {
                match outcome {
                    Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                    Err(error) => return Err(failed("delete files", &base, error)),
                }
            }
        }
        Ok(())
    }

    fn new_input(&self, location: &str) -> Result<InputFile> {
        Ok(InputFile::new(Arc::new(self.clone()), location.to_owned()))
    }

    fn new_output(&self, location: &str) -> Result<OutputFile> {
        Ok(OutputFile::new(Arc::new(self.clone()), location.to_owned()))
    }
}
