//! Reads a few columns of one data or delete file, by field id, in the order of its rows.
//!
//! What a query reads goes through DataFusion. This is for what must be known before there is a query:
//! the columns by which rows are deleted. Columns are what the table has by now, whatever the file
//! calls them, and a column that the file lacks is filled as it is everywhere else.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::datatypes::{DataType, FieldRef, SchemaRef};
use datafusion::common::ScalarValue;
use futures::{Stream, StreamExt, TryStreamExt};
use iceberg::spec::NameMapping;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::arrow::{ParquetRecordBatchStreamBuilder, ProjectionMask};

use super::Stores;
use super::field_ids::id;
use super::footers::{self, parquet_error};
use super::manifest::LiveFile;
use super::name_mapping;
use super::reshape::{Defaults, missing, reshape};
use crate::error::{Error, Result};

/// Rows decoded at once.
const BATCH: usize = 16 << 10;

/// Which columns to read, and what stands in for those that a file lacks.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    /// The columns, with their field ids.
    pub(super) columns: SchemaRef,
    /// Of fields that a file lacks.
    pub(super) defaults: Arc<Defaults>,
    /// The ids of files that have none.
    pub(super) name_mapping: Option<Arc<NameMapping>>,
}

/// The columns of a file. `constants` are values that the file has in every row, by field id, where it
/// does not have the column itself.
pub(super) async fn read(
    stores: &Stores,
    file: &LiveFile,
    wanted: &Wanted,
    constants: &Defaults,
) -> Result<impl Stream<Item = Result<RecordBatch>> + Send + 'static + use<>> {
    let (path, size) = (file.path().to_owned(), file.file.file_size_in_bytes());
    let footer = footers::footer(stores, &path, size).await?;
    // Types are taken from Parquet alone: what an Arrow writer noted beside them does not matter here.
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let metadata =
        ArrowReaderMetadata::try_new(footer, options).map_err(|source| parquet_error(&path, source))?;
    let by_id = name_mapping::with_ids(metadata.schema(), wanted.name_mapping.as_deref())
        .map_err(|error| error.with("file", &path))?;
    let place = |field: &FieldRef| by_id.fields().iter().position(|other| id(other) == id(field));
    let places: Vec<Option<usize>> = wanted.columns.fields().iter().map(place).collect();
    let mut roots: Vec<usize> = places.iter().flatten().copied().collect();
    roots.sort_unstable();
    let mask = ProjectionMask::roots(metadata.parquet_schema(), roots.iter().copied());
    let reader = footers::reader(stores, &path, size)?;
    let batches = ParquetRecordBatchStreamBuilder::new_with_metadata(reader, metadata)
        .with_projection(mask)
        .with_batch_size(BATCH)
        .build()
        .map_err(|source| parquet_error(&path, source))?;

    // The projection keeps the file's order of columns.
    let given = |place: usize| by_id.field(place).data_type().clone();
    let places: Vec<Option<(usize, DataType)>> =
        places.into_iter().map(|place| Some((roots.binary_search(&place?).ok()?, given(place?)))).collect();
    let absent = |field: &FieldRef| {
        let value = id(field).and_then(|id| constants.get(id).or_else(|| wanted.defaults.get(id)));
        value.cloned()
    };
    let absent: Vec<Option<ScalarValue>> = wanted.columns.fields().iter().map(absent).collect();
    let (columns, defaults) = (wanted.columns.clone(), wanted.defaults.clone());
    let at = path.clone();
    let batches = batches.map_err(move |source| parquet_error(&path, source));
    Ok(batches.map(move |batch| {
        let batch = batch?;
        fitted(&batch, &columns, &places, &absent, &defaults).map_err(|error| error.with("file", &at))
    }))
}

fn fitted(
    batch: &RecordBatch,
    columns: &SchemaRef,
    places: &[Option<(usize, DataType)>],
    absent: &[Option<ScalarValue>],
    defaults: &Defaults,
) -> Result<RecordBatch> {
    let rows = batch.num_rows();
    let mut arrays: Vec<ArrayRef> = Vec::with_capacity(places.len());
    for ((field, place), absent) in columns.fields().iter().zip(places).zip(absent) {
        arrays.push(match (place, absent) {
            (Some((place, given)), _) => reshape(batch.column(*place), given, field, defaults)?,
            (None, Some(value)) => value.cast_to(field.data_type())?.to_array_of_size(rows)?,
            (None, None) if field.is_nullable() => new_null_array(field.data_type(), rows),
            (None, None) => return Err(missing(field)),
        });
    }
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(columns.clone(), arrays, &options).map_err(Error::from)
}
