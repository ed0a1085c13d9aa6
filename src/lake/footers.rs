//! Parquet footers that this process has read. Files never change, so one reading is enough.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use parquet::arrow::async_reader::{AsyncFileReader, ParquetObjectReader};
use parquet::errors::ParquetError;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};

use super::storage::{RESTORE, Stores, store_error};
use crate::error::{Error, ErrorKind, Result};

/// Footers kept, in bytes: those of some hundred files; part of the budget's fixed share.
const KEPT: usize = 16 << 20;

/// Read from the end of a file at once: most footers fit, so that one request is enough.
const FOOTER: usize = 64 << 10;

static FOOTERS: LazyLock<Mutex<Footers>> = LazyLock::new(Mutex::default);

/// Reads a file's footer, or remembers it.
pub(super) async fn footer(stores: &Stores, path: &str, size: u64) -> Result<Arc<ParquetMetaData>> {
    if let Some(metadata) = kept(path, size) {
        return Ok(metadata);
    }
    let mut reader = reader(stores, path, size)?;
    let metadata = reader.get_metadata(None).await.map_err(|source| parquet_error(path, source))?;
    keep(path, size, &metadata);
    Ok(metadata)
}

/// The same, with the page index if the file has one.
pub(super) async fn footer_with_pages(
    stores: &Stores,
    path: &str,
    size: u64,
) -> Result<Arc<ParquetMetaData>> {
    let metadata = footer(stores, path, size).await?;
    if metadata.offset_index().is_some() {
        return Ok(metadata);
    }
    let mut reader = reader(stores, path, size)?;
    let mut index = ParquetMetaDataReader::new_with_metadata((*metadata).clone())
        .with_page_index_policy(PageIndexPolicy::Optional);
    index.load_page_index(&mut reader).await.map_err(|source| parquet_error(path, source))?;
    let metadata = Arc::new(index.finish().map_err(|source| parquet_error(path, source))?);
    keep(path, size, &metadata);
    Ok(metadata)
}

/// A reader of one file's byte ranges.
pub(super) fn reader(stores: &Stores, path: &str, size: u64) -> Result<ParquetObjectReader> {
    let (store, place) = stores.resolve(path)?;
    Ok(ParquetObjectReader::new(store, place).with_file_size(size).with_footer_size_hint(FOOTER))
}

/// Tells a store that failed from a file that is damaged.
pub(super) fn parquet_error(path: &str, source: ParquetError) -> Error {
    store_failure(source).map_or_else(
        |source| {
            Error::new(ErrorKind::Corrupt, "cannot read a data file: it is damaged")
                .with("file", path)
                .hint(RESTORE)
                .because(source)
        },
        |source| store_error("read a data file", path, source),
    )
}

/// The same while a file is written, where only the store can fail for reasons that are not ours.
pub(super) fn parquet_write_error(path: &str, source: ParquetError) -> Error {
    store_failure(source).map_or_else(
        |source| {
            Error::new(ErrorKind::Internal, "rows cannot be encoded as Parquet")
                .with("file", path)
                .because(source)
        },
        |source| store_error("write a data file", path, source),
    )
}

/// The store's error, which readers wrap once and buffered writers twice.
fn store_failure(source: ParquetError) -> Result<object_store::Error, ParquetError> {
    let ParquetError::External(source) = source else { return Err(source) };
    let source = match source.downcast::<object_store::Error>() {
        Ok(source) => return Ok(*source),
        Err(source) => source,
    };
    match source.downcast::<std::io::Error>() {
        Ok(source) => Ok(match source.downcast::<object_store::Error>() {
            Ok(source) => source,
            Err(source) => object_store::Error::Generic { store: "file", source: Box::new(source) },
        }),
        Err(source) => Err(ParquetError::External(source)),
    }
}

/// Least recently used footers go first.
#[derive(Default)]
struct Footers {
    by_path: HashMap<String, Kept>,
    bytes: usize,
    clock: u64,
}

struct Kept {
    metadata: Arc<ParquetMetaData>,
    file_size: u64,
    bytes: usize,
    used: u64,
}

fn kept(path: &str, size: u64) -> Option<Arc<ParquetMetaData>> {
    let mut footers = FOOTERS.lock().unwrap_or_else(PoisonError::into_inner);
    footers.clock += 1;
    let now = footers.clock;
    let kept = footers.by_path.get_mut(path).filter(|kept| kept.file_size == size)?;
    kept.used = now;
    Some(kept.metadata.clone())
}

fn keep(path: &str, size: u64, metadata: &Arc<ParquetMetaData>) {
    let mut footers = FOOTERS.lock().unwrap_or_else(PoisonError::into_inner);
    footers.clock += 1;
    let bytes = metadata.memory_size();
    let entry = Kept { metadata: metadata.clone(), file_size: size, bytes, used: footers.clock };
    if let Some(before) = footers.by_path.insert(path.to_owned(), entry) {
        footers.bytes -= before.bytes;
    }
    footers.bytes += bytes;
    while footers.bytes > KEPT && footers.by_path.len() > 1 {
        let oldest = footers.by_path.iter().min_by_key(|(_, kept)| kept.used).map(|(path, _)| path.clone());
        if let Some(gone) = oldest.and_then(|path| footers.by_path.remove(&path)) {
            footers.bytes -= gone.bytes;
        }
    }
}
