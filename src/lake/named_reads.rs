//! DataFusion's reader of Parquet files, whose errors say which file failed, and whether it is the
//! store that failed or the file that is damaged.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::{
    CachedParquetFileReaderFactory, ParquetFileReaderFactory,
};
use datafusion::error::Result as DFResult;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use futures::FutureExt;
use futures::future::BoxFuture;
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::ParquetMetaData;

use super::footers::parquet_error;

/// Makes readers that keep footers.
#[derive(Debug)]
pub(super) struct NamedReads(pub(super) CachedParquetFileReaderFactory);

impl ParquetFileReaderFactory for NamedReads {
    fn create_reader(
        &self,
        partition: usize,
        file: PartitionedFile,
        footer_size: Option<usize>,
        metrics: &ExecutionPlanMetricsSet,
    ) -> DFResult<Box<dyn AsyncFileReader + Send>> {
        let path = file.object_meta.location.to_string();
        let reader = self.0.create_reader(partition, file, footer_size, metrics)?;
        Ok(Box::new(Named { path, reader }))
    }
}

struct Named {
    path: String,
    reader: Box<dyn AsyncFileReader + Send>,
}

fn named<T>(path: &str, outcome: ParquetResult<T>) -> ParquetResult<T> {
    outcome.map_err(|source| ParquetError::External(Box::new(parquet_error(path, source))))
}

impl AsyncFileReader for Named {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, ParquetResult<Bytes>> {
        let Self { path, reader } = self;
        reader.get_bytes(range).map(|outcome| named(path, outcome)).boxed()
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, ParquetResult<Vec<Bytes>>> {
        let Self { path, reader } = self;
        reader.get_byte_ranges(ranges).map(|outcome| named(path, outcome)).boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, ParquetResult<Arc<ParquetMetaData>>> {
        let Self { path, reader } = self;
        reader.get_metadata(options).map(|outcome| named(path, outcome)).boxed()
    }
}
