//! Local files that survive a power cut: written aside, synced, then named.
//!
//! `object_store`'s own local store names a file before its bytes are on disk. After a power cut a
//! commit could then be an empty file. Here a put returns when bytes and name are durable, and a
//! conditional put is one `link` call, which the file system makes atomic.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path as OsPath, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result, UploadPart,
};

/// The local file system, durable.
#[derive(Debug)]
pub(super) struct Durable {
    files: Arc<LocalFileSystem>,
}

impl Durable {
    pub(super) fn new() -> Self {
        Self { files: Arc::new(LocalFileSystem::new()) }
    }
}

impl std::fmt::Display for Durable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("local files")
    }
}

#[async_trait]
impl ObjectStore for Durable {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let create = match options.mode {
            PutMode::Overwrite => false,
            PutMode::Create => true,
            PutMode::Update(_) => return self.files.put_opts(location, payload, options).await,
        };
        let path = self.files.path_to_filesystem(location)?;
        blocking(move || put(&path, &payload, create)).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let path = self.files.path_to_filesystem(location)?;
        let parent = path.clone();
        blocking(move || make_parent(&parent).map_err(failed)).await?;
        Ok(Box::new(Upload { inner: self.files.put_multipart_opts(location, options).await?, path }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.files.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.files.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.files.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.files.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.files.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.files.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.files.rename_opts(from, to, options).await
    }
}

/// A large file in parts. It gets its name before its bytes are synced, which is safe: nothing
/// refers to it before `complete` has returned.
#[derive(Debug)]
struct Upload {
    inner: Box<dyn MultipartUpload>,
    path: PathBuf,
}

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.inner.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let result = self.inner.complete().await?;
        let path = self.path.clone();
        blocking(move || {
            File::open(&path).and_then(|file| file.sync_data()).map_err(failed)?;
            sync_parent(&path).map_err(failed)
        })
        .await?;
        Ok(result)
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}

fn put(path: &OsPath, payload: &PutPayload, create: bool) -> Result<PutResult> {
    make_parent(path).map_err(failed)?;
    let (mut file, aside) = open_aside(path).map_err(failed)?;
    let written = (|| {
        for bytes in payload {
            file.write_all(bytes)?;
        }
        file.sync_data()?;
        drop(file);
        if create { fs::hard_link(&aside, path) } else { fs::rename(&aside, path) }
    })();
    if create || written.is_err() {
        // A leftover is ignored by `list`, so this needs no answer.
        let _ = fs::remove_file(&aside);
    }
    written.map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => {
            Error::AlreadyExists { path: path.display().to_string(), source: Box::new(source) }
        }
        _ => failed(source),
    })?;
    sync_parent(path).map_err(failed)?;
    Ok(PutResult { e_tag: None, version: None })
}

/// A new file beside `path`. `list` hides names of the form `name#number`.
fn open_aside(path: &OsPath) -> io::Result<(File, PathBuf)> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let mut name = path.as_os_str().to_owned();
        let unique =
            (u64::from(std::process::id()) << 32) | (NEXT.fetch_add(1, Ordering::Relaxed) & 0xffff_ffff);
        name.push(format!("#{unique}"));
        match OpenOptions::new().write(true).create_new(true).open(&name) {
            Ok(file) => return Ok((file, name.into())),
            // Left by a crashed process that had our id.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

/// Makes the directory of `path`, each new level durable in the one above.
fn make_parent(path: &OsPath) -> io::Result<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    if parent.is_dir() {
        return Ok(());
    }
    make_parent(parent)?;
    match fs::create_dir(parent) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && parent.is_dir() => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_parent(parent),
    }
}

fn sync_parent(path: &OsPath) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

fn failed(source: io::Error) -> Error {
    Error::Generic { store: "local files", source: Box::new(source) }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await?
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::TryStreamExt;
    use object_store::ObjectStoreExt;

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn of_many_creators_one_wins() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Durable::new());
        for round in 0..20 {
            let path =
                Path::parse(format!("{}/a/b/{round}", dir.path().display()).trim_start_matches('/')).unwrap();
            let tries = (0..8u8).map(|i| {
                let (store, path) = (store.clone(), path.clone());
                tokio::spawn(async move {
                    let options = PutOptions { mode: PutMode::Create, ..Default::default() };
                    store.put_opts(&path, PutPayload::from(vec![i]), options).await.map(|_| i)
                })
            });
            let mut winners = Vec::new();
            for outcome in futures::future::join_all(tries).await {
                match outcome.unwrap() {
                    Ok(i) => winners.push(i),
                    Err(error) => assert!(matches!(error, Error::AlreadyExists { .. }), "{error}"),
                }
            }
            assert_eq!(winners.len(), 1);
            assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap().to_vec(), winners);
        }
        let prefix = Path::parse(dir.path().to_str().unwrap().trim_start_matches('/')).unwrap();
        let listed: Vec<_> = store.list(Some(&prefix)).try_collect().await.unwrap();
        assert_eq!(listed.len(), 20, "files written aside are gone");
    }
}
