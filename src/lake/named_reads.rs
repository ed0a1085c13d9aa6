//! DataFusion's reader of Parquet files, whose errors say which file failed, and whether it is the
//! store that failed or the file that is damaged. Footers stay in the runtime's cache.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::metadata::DFParquetMetadata;
use datafusion::datasource::physical_plan::parquet::{
    CachedParquetFileReaderFactory, ParquetFileReaderFactory,
};
use datafusion::error::{DataFusionError, Result as DFResult};
use datafusion::execution::cache::cache_manager::FileMetadataCache;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use futures::future::BoxFuture;
use futures::{FutureExt, TryFutureExt};
use object_store::{ObjectMeta, ObjectStore};
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData};

use super::footers::parquet_error;
use super::storage::store_error;
use crate::error::{Error, Result};

/// Makes readers of the files of one store.
#[derive(Debug)]
pub(super) struct NamedReads {
    inner: CachedParquetFileReaderFactory,
    store: Arc<dyn ObjectStore>,
    footers: Arc<dyn FileMetadataCache>,
}

impl NamedReads {
    pub(super) fn new(store: Arc<dyn ObjectStore>, footers: Arc<dyn FileMetadataCache>) -> Self {
        let inner = CachedParquetFileReaderFactory::new(store.clone(), footers.clone());
        Self { inner, store, footers }
    }
}

impl ParquetFileReaderFactory for NamedReads {
    fn create_reader(
        &self,
        partition: usize,
        file: PartitionedFile,
        footer_size: Option<usize>,
        metrics: &ExecutionPlanMetricsSet,
    ) -> DFResult<Box<dyn AsyncFileReader + Send>> {
        let (store, footers, meta) = (self.store.clone(), self.footers.clone(), file.object_meta.clone());
        let path = meta.location.to_string();
        let reader = self.inner.create_reader(partition, file, footer_size, metrics)?;
        Ok(Box::new(Named { path, reader, store, footers, meta, footer_size }))
    }
}

/// The footer of a file that a query reads, from the runtime's cache if it is there. `path` is how errors
/// name the file, `guess` how long the footer may be.
pub(super) async fn footer(
    store: &dyn ObjectStore,
    footers: &Arc<dyn FileMetadataCache>,
    meta: &ObjectMeta,
    path: &str,
    guess: Option<usize>,
    pages: Option<PageIndexPolicy>,
) -> Result<Arc<ParquetMetaData>> {
    let fetched = DFParquetMetadata::new(store, meta)
        .with_file_metadata_cache(Some(footers.clone()))
        .with_metadata_size_hint(guess)
        .with_page_index_policy(pages)
        .fetch_metadata()
        .await;
    fetched.map_err(|source| match source {
        DataFusionError::ObjectStore(source) => store_error("read a data file", path, *source),
        DataFusionError::ParquetError(source) => parquet_error(path, *source),
        other => Error::from(other).with("file", path),
    })
}

struct Named {
    path: String,
    reader: Box<dyn AsyncFileReader + Send>,
    store: Arc<dyn ObjectStore>,
    footers: Arc<dyn FileMetadataCache>,
    meta: ObjectMeta,
    footer_size: Option<usize>,
}

fn named<T>(path: &str, outcome: ParquetResult<T>) -> ParquetResult<T> {
    outcome.map_err(|source| ParquetError::External(Box::new(parquet_error(path, source))))
}

impl AsyncFileReader for Named {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, ParquetResult<Bytes>> {
        let Self { path, reader, .. } = self;
        reader.get_bytes(range).map(|outcome| named(path, outcome)).boxed()
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, ParquetResult<Vec<Bytes>>> {
        let Self { path, reader, .. } = self;
        reader.get_byte_ranges(ranges).map(|outcome| named(path, outcome)).boxed()
    }

    /// Not by DataFusion's reader, which makes every failure a text: a store that failed would pass for a
    /// damaged file.
    fn get_metadata<'a>(
        &'a mut self,
        options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, ParquetResult<Arc<ParquetMetaData>>> {
        let pages = options.map(ArrowReaderOptions::column_index_policy);
        let Self { path, store, footers, meta, footer_size, .. } = self;
        let footer = footer(store, footers, meta, path, *footer_size, pages);
        footer.map_err(|error| ParquetError::External(Box::new(error))).boxed()
    }
}
