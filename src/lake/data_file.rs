//! One Parquet file on its way to the store.
//!
//! A row group is encoded in memory, then handed to the upload as it is, without a copy. The file
//! carries Iceberg's field ids, zstd, page indexes, and bloom filters where the table wants them.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use ahash::RandomState;
use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, Float32Type, Float64Type, SchemaRef};
use bytes::Bytes;
use iceberg::spec::{
    DataContentType, DataFile, DataFileBuilder, DataFileFormat, Schema as IcebergSchema, Struct,
};
use object_store::buffered::BufWriter;
use parquet::arrow::arrow_writer::{ArrowWriter, ArrowWriterOptions};
use parquet::arrow::{ArrowSchemaConverter, PARQUET_FIELD_ID_META_KEY};
use parquet::basic::{Compression, LogicalType, Type as PhysicalType, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::{ColumnPath, SchemaDescriptor, Type as ParquetType, TypePtr};
use tokio::io::AsyncWriteExt;

use super::storage::{Stores, file_error, store_error};
use super::{bounds, wide};
use crate::error::{Error, ErrorKind, Result};

/// Rows of a row group, at most: readers plan by row groups, and page indexes grow with them.
const ROW_GROUP_ROWS: usize = 1 << 20;
/// Bytes of a page of key numbers: about 2,000 rows instead of 20,000, so that a changed key makes a tenth
/// be read. Smaller ones take as long to open as to read; reading all of these costs a tenth more.
const KEY_PAGE_BYTES: usize = 16 << 10;
/// Bytes of one part of an upload. S3 allows 10,000 parts, so a file may have 80 GB.
const PART_BYTES: usize = 8 << 20;
/// Parts on their way at once: one while the next is filled.
const PARTS: usize = 2;
/// Of values in the first batch, the share that may be distinct for a dictionary to be tried.
const DICTIONARY_SHARE: f64 = 0.5;
/// Fewer values than this say nothing about a column.
const DICTIONARY_SAMPLE: usize = 512;

/// What all files of one writer have in common.
pub(super) struct Layout {
    schema: Arc<IcebergSchema>,
    arrow: SchemaRef,
    parquet: SchemaDescriptor,
    properties: WriterProperties,
    /// Columns without statistics.
    wide: BTreeSet<usize>,
}

impl Layout {
    /// Whether some column has values so large that a row group of few rows is large, however well they are
    /// compressed.
    pub(super) fn is_wide(&self) -> bool {
        !self.wide.is_empty()
    }

    /// Whether files of this layout can take a batch: one with larger values needs another.
    pub(super) fn takes(&self, batch: &RecordBatch) -> bool {
        wide::columns(batch).is_subset(&self.wide)
    }

    /// Decides encodings by the first batch. `bloom` names the key columns: they get a bloom filter, and
    /// small pages if they are numbers.
    pub(super) fn new(
        schema: Arc<IcebergSchema>,
        arrow: SchemaRef,
        bloom: &[String],
        first: &RecordBatch,
    ) -> Result<Self> {
        let converted = ArrowSchemaConverter::new().convert(&arrow).map_err(encoding_error)?;
        let parquet = SchemaDescriptor::new(annotated(&converted.root_schema_ptr(), &schema)?);
        let mut properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_statistics_enabled(EnabledStatistics::Page)
            .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
            .set_created_by(concat!("frazil ", env!("CARGO_PKG_VERSION")).to_owned());
        let wide = wide::columns(first);
        for (at, (field, column)) in arrow.fields().iter().zip(first.columns()).enumerate() {
            let path = ColumnPath::new(vec![field.name().clone()]);
            if wide.contains(&at) {
                properties = properties.set_column_statistics_enabled(path.clone(), EnabledStatistics::None);
            }
            if wide.contains(&at) || is_near_unique(column) {
                properties = properties.set_column_dictionary_enabled(path.clone(), false);
            }
            // The filter is made for a full row group and folded to what the rows need when it ends.
            if bloom.contains(field.name()) {
                properties = properties.set_column_bloom_filter_enabled(path, true);
            }
        }
        for leaf in parquet.columns() {
            let is_number = matches!(leaf.physical_type(), PhysicalType::INT32 | PhysicalType::INT64);
            if is_number && leaf.path().parts().len() == 1 && bloom.iter().any(|name| name == leaf.name()) {
                let path = leaf.path().clone();
                properties = properties.set_column_data_page_size_limit(path, KEY_PAGE_BYTES);
            }
        }
        Ok(Self { schema, arrow, parquet, properties: properties.build(), wide })
    }
}

/// A file that is being written.
pub(super) struct OpenFile {
    layout: Arc<Layout>,
    location: String,
    partition: Struct,
    spec_id: i32,
    encoder: ArrowWriter<Vec<u8>>,
    /// Taken when the file is complete.
    upload: Option<BufWriter>,
    uploaded: u64,
    rows: u64,
    nans: HashMap<i32, u64>,
}

impl OpenFile {
    /// Starts a file. Nothing is at `location` before it is complete.
    pub(super) fn create(
        layout: &Arc<Layout>,
        stores: &Stores,
        location: String,
        partition: Struct,
        spec_id: i32,
    ) -> Result<Self> {
        let (store, path) = stores.resolve(&location)?;
        let options = ArrowWriterOptions::new()
            .with_properties(layout.properties.clone())
            .with_parquet_schema(layout.parquet.clone())
            // Other engines go by the Parquet types and field ids; so do we.
            .with_skip_arrow_metadata(true);
        let encoder = ArrowWriter::try_new_with_options(Vec::new(), layout.arrow.clone(), options)
            .map_err(encoding_error)?;
        let upload = BufWriter::with_capacity(store, path, PART_BYTES).with_max_concurrency(PARTS);
        Ok(Self {
            layout: layout.clone(),
            location,
            partition,
            spec_id,
            encoder,
            upload: Some(upload),
            uploaded: 0,
            rows: 0,
            nans: HashMap::new(),
        })
    }

    /// Encodes a batch of the layout's schema.
    pub(super) async fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.encoder.write(batch).map_err(encoding_error)?;
        self.rows += batch.num_rows() as u64;
        count_nans(batch, &mut self.nans);
        self.send().await
    }

    /// Ends the row group under construction.
    pub(super) async fn flush(&mut self) -> Result<()> {
        self.encoder.flush().map_err(encoding_error)?;
        self.send().await
    }

    /// Memory of the row group under construction.
    pub(super) fn buffered(&self) -> usize {
        self.encoder.memory_size()
    }

    /// Encoded bytes of the row group under construction.
    pub(super) fn row_group_bytes(&self) -> usize {
        self.encoder.in_progress_size()
    }

    /// Bytes of the file so far, with the row group under construction.
    pub(super) fn bytes(&self) -> u64 {
        self.uploaded + self.row_group_bytes() as u64
    }

    /// Completes the file: when this returns it is durable. `order` is the sort order that its rows have.
    pub(super) async fn finish(mut self, order: Option<i32>) -> Result<DataFile> {
        let footer = self.encoder.finish().map_err(encoding_error)?;
        self.send().await?;
        // An upload that cannot be completed aborts itself.
        let mut upload = self.upload.take().expect("a file is finished once");
        upload.shutdown().await.map_err(|source| self.failed(source))?;
        let metrics = bounds::metrics(&footer, &self.layout.schema)?;
        let mut file = DataFileBuilder::default();
        if let Some(order) = order {
            file.sort_order_id(order);
        }
        file.content(DataContentType::Data)
            .file_path(self.location.clone())
            .file_format(DataFileFormat::Parquet)
            .partition(self.partition.clone())
            .partition_spec_id(self.spec_id)
            .record_count(self.rows)
            .file_size_in_bytes(self.uploaded)
            .column_sizes(metrics.column_sizes)
            .value_counts(metrics.value_counts)
            .null_value_counts(metrics.null_counts)
            .nan_value_counts(std::mem::take(&mut self.nans))
            .lower_bounds(metrics.lower)
            .upper_bounds(metrics.upper)
            .split_offsets(Some(metrics.split_offsets))
            .build()
            .map_err(|source| Error::new(ErrorKind::Internal, "a data file lacks a field").because(source))
    }

    /// Hands over what is encoded.
    async fn send(&mut self) -> Result<()> {
        let bytes = std::mem::take(self.encoder.inner_mut());
        if bytes.is_empty() {
            return Ok(());
        }
        self.uploaded += bytes.len() as u64;
        let upload = self.upload.as_mut().expect("a finished file is not written to");
        upload
            .put(Bytes::from(bytes))
            .await
            .map_err(|source| store_error("write a data file", &self.location, source))
    }

    fn failed(&self, source: std::io::Error) -> Error {
        // The store's error travels inside; take it out to see its kind.
        match source.downcast::<object_store::Error>() {
            Ok(source) => store_error("write a data file", &self.location, source),
            Err(source) => file_error("write a data file", &self.location, source),
        }
    }
}

/// Parts of an upload that never completes would stay, and be paid for.
impl Drop for OpenFile {
    fn drop(&mut self) {
        let Some(mut upload) = self.upload.take() else { return };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = upload.abort().await {
                    tracing::debug!(%error, "unfinished upload not aborted");
                }
            });
        }
    }
}

fn encoding_error(source: ParquetError) -> Error {
    Error::new(ErrorKind::Internal, "rows cannot be encoded as Parquet").because(source)
}

/// The Parquet schema with the annotations of Iceberg that Arrow's types do not imply: `UUID`.
fn annotated(node: &TypePtr, schema: &IcebergSchema) -> Result<TypePtr> {
    use iceberg::spec::{PrimitiveType, Type};
    let info = node.get_basic_info();
    let built = match node.as_ref() {
        ParquetType::GroupType { fields, .. } => {
            let fields = fields.iter().map(|field| annotated(field, schema)).collect::<Result<Vec<_>>>()?;
            let mut builder = ParquetType::group_type_builder(info.name())
                .with_logical_type(info.logical_type_ref().cloned())
                .with_converted_type(info.converted_type())
                .with_fields(fields)
                .with_id(info.has_id().then(|| info.id()));
            if info.has_repetition() {
                builder = builder.with_repetition(info.repetition());
            }
            builder.build()
        }
        ParquetType::PrimitiveType { physical_type, type_length, .. } => {
            let field = info.has_id().then(|| schema.field_by_id(info.id())).flatten();
            if !field.is_some_and(|field| *field.field_type == Type::Primitive(PrimitiveType::Uuid)) {
                return Ok(node.clone());
            }
            ParquetType::primitive_type_builder(info.name(), *physical_type)
                .with_repetition(info.repetition())
                .with_length(*type_length)
                .with_logical_type(Some(LogicalType::Uuid))
                .with_id(Some(info.id()))
                .build()
        }
    };
    built.map(Arc::new).map_err(encoding_error)
}

/// Whether a dictionary would only cost: most values are different.
fn is_near_unique(column: &ArrayRef) -> bool {
    let values = column.len() - column.null_count();
    if values < DICTIONARY_SAMPLE {
        return false;
    }
    distinct(column).is_some_and(|distinct| distinct > values as f64 * DICTIONARY_SHARE)
}

/// About how many different values there are; `None` where a dictionary is not our question (nested,
/// boolean).
fn distinct(column: &ArrayRef) -> Option<f64> {
    // Fixed seeds: the same rows become the same file.
    let hasher = RandomState::with_seeds(1, 2, 3, 4);
    let mut seen = Seen::among(column.len());
    match column.data_type() {
        DataType::Utf8 => {
            let values = column.as_string::<i32>().iter().flatten();
            values.for_each(|value| seen.note(hasher.hash_one(value)));
        }
        DataType::Binary => {
            let values = column.as_binary::<i32>().iter().flatten();
            values.for_each(|value| seen.note(hasher.hash_one(value)));
        }
        DataType::Boolean => return None,
        other => {
            let data = column.to_data();
            let width = match other {
                DataType::FixedSizeBinary(width) => usize::try_from(*width).ok()?,
                other => other.primitive_width()?,
            };
            let start = data.offset() * width;
            let bytes = data.buffers().first()?.get(start..start + column.len() * width)?;
            let values = bytes.chunks_exact(width).enumerate().filter(|(i, _)| column.is_valid(*i));
            values.for_each(|(_, value)| {
                seen.note(match <[u8; 8]>::try_from(value) {
                    Ok(value) => hasher.hash_one(u64::from_le_bytes(value)),
                    Err(_) => hasher.hash_one(value),
                });
            });
        }
    }
    Some(seen.count())
}

/// Counts different values by the bits that their hashes set: as many bits stay free as chance leaves.
/// That is right within a percent or two, and costs a fraction of a set.
struct Seen {
    bits: Vec<u64>,
    /// How far a hash is shifted to become the number of its bit.
    shift: u32,
}

impl Seen {
    /// For up to so many values: with four bits for each, hardly any two fall on one.
    fn among(values: usize) -> Self {
        let size = (values * 4).next_power_of_two().max(u64::BITS as usize);
        Self { bits: vec![0; size / u64::BITS as usize], shift: u64::BITS - size.ilog2() }
    }

    fn note(&mut self, hash: u64) {
        let bit = hash >> self.shift;
        self.bits[(bit / u64::from(u64::BITS)) as usize] |= 1 << (bit % u64::from(u64::BITS));
    }

    fn count(&self) -> f64 {
        let size = (self.bits.len() * u64::BITS as usize) as f64;
        let free: u32 = self.bits.iter().map(|word| word.count_zeros()).sum();
        size * (size / f64::from(free.max(1))).ln()
    }
}

/// Adds the NaNs of all floating-point columns outside lists and maps.
fn count_nans(batch: &RecordBatch, nans: &mut HashMap<i32, u64>) {
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        count_nans_of(field, column, None, nans);
    }
}

fn count_nans_of(field: &Field, column: &ArrayRef, outer: Option<&NullBuffer>, nans: &mut HashMap<i32, u64>) {
    let valid = NullBuffer::union(outer, column.nulls());
    let is_valid = |i: usize| valid.as_ref().is_none_or(|valid| valid.is_valid(i));
    let count = match column.data_type() {
        DataType::Float32 => {
            let values = column.as_primitive::<Float32Type>().values();
            values.iter().enumerate().filter(|(i, value)| value.is_nan() && is_valid(*i)).count()
        }
        DataType::Float64 => {
            let values = column.as_primitive::<Float64Type>().values();
            values.iter().enumerate().filter(|(i, value)| value.is_nan() && is_valid(*i)).count()
        }
        DataType::Struct(fields) => {
            for (field, column) in fields.iter().zip(column.as_struct().columns()) {
                count_nans_of(field, column, valid.as_ref(), nans);
            }
            return;
        }
        _ => return,
    };
    let id = field.metadata().get(PARQUET_FIELD_ID_META_KEY).and_then(|id| id.parse().ok());
    if let Some(id) = id {
        *nans.entry(id).or_default() += count as u64;
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Decimal128Array, Int32Array, Int64Array, StringArray};

    use super::*;

    #[test]
    fn columns_are_near_unique_when_most_values_differ() {
        let columns = |rows: i64, of: i64| -> [ArrayRef; 4] {
            let values = || (0..rows).map(|row| (row * 7919) % of);
            [
                Arc::new(Int64Array::from_iter_values(values())),
                Arc::new(Int32Array::from_iter_values(values().map(|value| value as i32))),
                Arc::new(Decimal128Array::from_iter_values(values().map(i128::from))),
                Arc::new(StringArray::from_iter_values(values().map(|value| format!("value {value}")))),
            ]
        };
        for (rows, of) in [(8_192, 1), (8_192, 4_000), (65_536, 30_000), (600, 290)] {
            for column in columns(rows, of) {
                let count = distinct(&column).unwrap();
                assert!((count / of as f64 - 1.0).abs() < 0.05, "{count} of {of}, {}", column.data_type());
                assert!(!is_near_unique(&column), "{of} of {rows}, {}", column.data_type());
            }
        }
        for (rows, of) in [(8_192, 8_192), (8_192, 4_300), (65_536, 36_000), (600, 320)] {
            assert!(columns(rows, of).iter().all(is_near_unique), "{of} of {rows}");
        }
        assert!(!is_near_unique(&columns(500, 500)[0]), "too few to say");
    }

    #[test]
    fn nulls_are_no_values() {
        let column: ArrayRef =
            Arc::new(Int64Array::from_iter((0..4_000).map(|row| (row % 4 == 0).then_some(row))));
        assert!(is_near_unique(&column));
        assert!((distinct(&column).unwrap() - 1000.0).abs() < 50.0);
    }
}
