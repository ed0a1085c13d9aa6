//! The key columns of one data file: what its footer says of them, and their values.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Int64Type};
use bytes::{Buf, Bytes};
use parquet::arrow::arrow_reader::statistics::StatisticsConverter;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
    RowSelection, RowSelectionPolicy,
};
use parquet::arrow::async_reader::{AsyncFileReader, ParquetObjectReader};
use parquet::arrow::{ParquetRecordBatchStreamBuilder, ProjectionMask};
use parquet::basic::Type as PhysicalType;
use parquet::bloom_filter::Sbbf;
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::{ChunkReader, Length};
use parquet::schema::types::SchemaDescriptor;

use super::keys::KeyColumn;
use crate::error::{Error, ErrorKind, Result};
use crate::lake::footers::{self, parquet_error};
use crate::lake::storage::Stores;

/// Rows decoded at once: keys of a batch stay in the processor's cache.
const BATCH: usize = 16 << 10;

/// A data file, open for its key columns.
#[derive(Clone)]
pub(super) struct KeyFile {
    pub(super) path: String,
    size: u64,
    columns: Arc<[KeyColumn]>,
    metadata: ArrowReaderMetadata,
    reader: ParquetObjectReader,
    /// For each key column, the index of its leaf in the file.
    leaves: Vec<usize>,
    /// Which of the columns ranks rows, where one was asked for and the file has it.
    order: Option<usize>,
}

impl KeyFile {
    pub(super) async fn open(
        stores: &Stores,
        path: &str,
        size: u64,
        columns: Arc<[KeyColumn]>,
    ) -> Result<Self> {
        let footer = footers::footer(stores, path, size).await?;
        let metadata = arrow_metadata(path, footer)?;
        let schema = metadata.parquet_schema();
        let leaf = |column: &KeyColumn| {
            leaf_of(schema, column).ok_or_else(|| {
                Error::new(ErrorKind::Unsupported, "a data file does not have the key column")
                    .with("column", &column.name)
                    .with("file", path)
                    .hint("the file was written without field ids, or before the column was part of the key: read the table anew with `--full-refresh`")
            })
        };
        let leaves = columns.iter().map(leaf).collect::<Result<Vec<_>>>()?;
        let reader = footers::reader(stores, path, size)?;
        Ok(Self { path: path.to_owned(), size, columns, metadata, reader, leaves, order: None })
    }

    /// Reads the column that ranks rows, too. A file from before the column has no ranks.
    pub(super) fn with_order(mut self, column: &KeyColumn) -> Self {
        let Some(leaf) = leaf_of(self.metadata.parquet_schema(), column) else { return self };
        let known = self.leaves.iter().position(|known| *known == leaf);
        self.order = Some(known.unwrap_or(self.leaves.len()));
        if known.is_none() {
            self.leaves.push(leaf);
            self.columns = self.columns.iter().chain([column]).cloned().collect();
        }
        self
    }

    /// Makes [`pages`](Self::pages) known, if the file has an index of them.
    pub(super) async fn load_pages(&mut self, stores: &Stores) -> Result<()> {
        let footer = footers::footer_with_pages(stores, &self.path, self.size).await?;
        self.metadata = arrow_metadata(&self.path, footer)?;
        Ok(())
    }

    /// How many columns the key has.
    pub(super) fn width(&self) -> usize {
        self.leaves.len()
    }

    pub(super) fn row_groups(&self) -> usize {
        self.footer().num_row_groups()
    }

    pub(super) fn rows(&self, row_group: usize) -> usize {
        self.footer().row_group(row_group).num_rows() as usize
    }

    /// The position of a row group's first row in the file.
    pub(super) fn first_row(&self, row_group: usize) -> u64 {
        self.footer().row_groups()[..row_group].iter().map(|group| group.num_rows() as u64).sum()
    }

    /// The least and the greatest value of a key column in each row group; NULL where unknown.
    pub(super) fn row_group_ranges(&self, column: usize) -> Result<(ArrayRef, ArrayRef)> {
        let statistics = self.statistics(column)?;
        let groups = self.footer().row_groups();
        let mins = statistics.row_group_mins(groups).map_err(|source| self.error(source))?;
        let maxes = statistics.row_group_maxes(groups).map_err(|source| self.error(source))?;
        Ok((self.as_key(column, &mins)?, self.as_key(column, &maxes)?))
    }

    /// The same for the pages of a key column in one row group, with the rows of each page; `None`
    /// when the file has no page index.
    pub(super) fn page_ranges(&self, column: usize, row_group: usize) -> Result<Option<Pages>> {
        let footer = self.footer();
        let (Some(columns), Some(offsets)) = (footer.column_index(), footer.offset_index()) else {
            return Ok(None);
        };
        let statistics = self.statistics(column)?;
        let group = [row_group];
        let mins =
            statistics.data_page_mins(columns, offsets, &group).map_err(|source| self.error(source))?;
        let maxes =
            statistics.data_page_maxes(columns, offsets, &group).map_err(|source| self.error(source))?;
        let locations = offsets[row_group][self.leaves[column]].page_locations();
        let starts = locations.iter().map(|page| page.first_row_index as usize);
        let ends = starts.clone().skip(1).chain([self.rows(row_group)]);
        let rows: Vec<_> = starts.zip(ends).map(|(start, end)| start..end).collect();
        if rows.len() != mins.len() {
            return Ok(None);
        }
        Ok(Some(Pages { mins: self.as_key(column, &mins)?, maxes: self.as_key(column, &maxes)?, rows }))
    }

    /// Whether the bloom filters of a row group leave room for any of these keys, given column by
    /// column (integer columns as `Int64`). `true` where there are no filters.
    pub(super) async fn may_hold(&self, row_group: usize, keys: &[ArrayRef]) -> Result<bool> {
        let mut possible = vec![true; keys.first().map_or(0, |column| column.len())];
        for (values, leaf) in keys.iter().zip(&self.leaves) {
            let mut builder = ParquetRecordBatchStreamBuilder::new_with_metadata(
                self.reader.clone(),
                self.metadata.clone(),
            );
            let filter = builder
                .get_row_group_column_bloom_filter(row_group, *leaf)
                .await
                .map_err(|source| self.error(source))?;
            if let Some(filter) = filter {
                let physical = self.metadata.parquet_schema().column(*leaf).physical_type();
                for (row, possible) in possible.iter_mut().enumerate() {
                    *possible &= passes(&filter, physical, values, row);
                }
            }
        }
        Ok(possible.contains(&true))
    }

    /// Fetches the key columns of a row group, or of the selected rows of it. Decoding is left to the
    /// caller, who should do it where it may block.
    pub(super) async fn fetch(
        &self,
        row_group: usize,
        selection: Option<RowSelection>,
    ) -> Result<Option<ParquetRecordBatchReader>> {
        let mask = ProjectionMask::leaves(self.metadata.parquet_schema(), self.leaves.iter().copied());
        let mut builder =
            ParquetRecordBatchStreamBuilder::new_with_metadata(self.reader.clone(), self.metadata.clone())
                .with_row_groups(vec![row_group])
                .with_projection(mask)
                .with_batch_size(BATCH);
        if let Some(selection) = selection {
            builder = builder.with_row_selection(selection);
        }
        let mut stream = builder.build().map_err(|source| self.error(source))?;
        stream.next_row_group().await.map_err(|source| self.error(source))
    }

    /// Fetches the key columns of a row group as they are, to be decoded one by one.
    pub(super) async fn chunks(&self, row_group: usize) -> Result<Chunks> {
        let group = self.footer().row_group(row_group);
        let range = |leaf: &usize| {
            let (start, length) = group.column(*leaf).byte_range();
            start..start + length
        };
        let ranges: Vec<Range<u64>> = self.leaves.iter().map(range).collect();
        let starts: Vec<u64> = ranges.iter().map(|range| range.start).collect();
        let mut reader = self.reader.clone();
        let bytes = reader.get_byte_ranges(ranges).await.map_err(|source| self.error(source))?;
        Ok(Chunks { file_size: self.size, parts: starts.into_iter().zip(bytes).collect() })
    }

    /// Decodes some of the key columns out of what was fetched, of all rows or of some.
    pub(super) fn decode(
        &self,
        chunks: &Chunks,
        row_group: usize,
        columns: &[usize],
        selection: Option<RowSelection>,
    ) -> Result<ParquetRecordBatchReader> {
        let leaves = columns.iter().map(|column| self.leaves[*column]);
        let mut builder =
            ParquetRecordBatchReaderBuilder::new_with_metadata(chunks.clone(), self.metadata.clone())
                .with_row_groups(vec![row_group])
                .with_projection(ProjectionMask::leaves(self.metadata.parquet_schema(), leaves))
                // Rows are chosen to save their decoding.
                .with_row_selection_policy(RowSelectionPolicy::Selectors)
                .with_batch_size(BATCH);
        if let Some(selection) = selection {
            builder = builder.with_row_selection(selection);
        }
        builder.build().map_err(|source| self.error(source))
    }

    /// The key columns of a batch that was read from this file, in the order and the types of the key.
    pub(super) fn keys(&self, batch: &RecordBatch) -> Result<Vec<ArrayRef>> {
        self.columns(batch, &(0..self.leaves.len()).collect::<Vec<_>>())
    }

    /// The first `width` of them, which are the key's, and the one that ranks rows.
    pub(super) fn ranked_keys(
        &self,
        batch: &RecordBatch,
        width: usize,
    ) -> Result<(Vec<ArrayRef>, Option<ArrayRef>)> {
        let mut columns = self.keys(batch)?;
        let order = self.order.map(|at| columns[at].clone());
        columns.truncate(width);
        Ok((columns, order))
    }

    /// The same for a batch that has some of them.
    pub(super) fn columns(&self, batch: &RecordBatch, columns: &[usize]) -> Result<Vec<ArrayRef>> {
        // Columns come in the file's order.
        let place = |leaf: usize| columns.iter().filter(|column| self.leaves[**column] < leaf).count();
        columns.iter().map(|column| self.as_key(*column, batch.column(place(self.leaves[*column])))).collect()
    }

    fn footer(&self) -> &Arc<ParquetMetaData> {
        self.metadata.metadata()
    }

    fn statistics(&self, column: usize) -> Result<StatisticsConverter<'_>> {
        let schema = self.metadata.parquet_schema();
        let name = schema.column(self.leaves[column]).name().to_owned();
        StatisticsConverter::try_new(&name, self.metadata.schema(), schema)
            .map_err(|source| self.error(source))
    }

    /// A column may have been widened since the file was written.
    fn as_key(&self, column: usize, array: &ArrayRef) -> Result<ArrayRef> {
        let KeyColumn { name, data_type, .. } = &self.columns[column];
        if array.data_type() == data_type {
            return Ok(array.clone());
        }
        let exact = CastOptions { safe: false, ..CastOptions::default() };
        cast_with_options(array, data_type, &exact).map_err(|source| {
            Error::new(ErrorKind::Corrupt, "a data file has the key column in another type")
                .with("column", name)
                .with("file", &self.path)
                .because(source)
        })
    }

    pub(super) fn error(&self, source: parquet::errors::ParquetError) -> Error {
        parquet_error(&self.path, source)
    }
}

/// The leaf of a column, by its field id; by its name in a file without ids.
fn leaf_of(schema: &SchemaDescriptor, column: &KeyColumn) -> Option<usize> {
    let with_ids =
        (0..schema.num_columns()).any(|leaf| schema.column(leaf).self_type().get_basic_info().has_id());
    (0..schema.num_columns()).find(|leaf| {
        let leaf = schema.column(*leaf);
        let info = leaf.self_type().get_basic_info();
        match with_ids {
            true => info.has_id() && info.id() == column.field_id,
            false => leaf.path().parts().len() == 1 && column.names.iter().any(|name| name == info.name()),
        }
    })
}

/// Columns of a row group, encoded as they lie in the file.
#[derive(Clone)]
pub(super) struct Chunks {
    file_size: u64,
    /// Where each starts in the file, and its bytes.
    parts: Arc<[(u64, Bytes)]>,
}

impl Length for Chunks {
    fn len(&self) -> u64 {
        self.file_size
    }
}

impl ChunkReader for Chunks {
    type T = bytes::buf::Reader<Bytes>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        let from = |(at, bytes): &(u64, Bytes)| {
            let offset = usize::try_from(start.checked_sub(*at)?).ok()?;
            (offset < bytes.len()).then(|| bytes.slice(offset..))
        };
        let found = self.parts.iter().find_map(from);
        found
            .map(Buf::reader)
            .ok_or_else(|| ParquetError::EOF("a page lies outside of its column".to_owned()))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        let rest = self.get_read(start)?.into_inner();
        if rest.len() < length {
            return Err(ParquetError::EOF("a page lies outside of its column".to_owned()));
        }
        Ok(rest.slice(..length))
    }
}

/// The pages of one column in one row group.
pub(super) struct Pages {
    pub(super) mins: ArrayRef,
    pub(super) maxes: ArrayRef,
    pub(super) rows: Vec<Range<usize>>,
}

/// Types are taken from Parquet alone: what an Arrow writer noted beside them (dictionaries, views)
/// does not matter here.
fn arrow_metadata(path: &str, footer: Arc<ParquetMetaData>) -> Result<ArrowReaderMetadata> {
    ArrowReaderMetadata::try_new(footer, ArrowReaderOptions::new().with_skip_arrow_metadata(true))
        .map_err(|source| parquet_error(path, source))
}

fn passes(filter: &Sbbf, physical: PhysicalType, values: &ArrayRef, row: usize) -> bool {
    match (physical, values.data_type()) {
        (PhysicalType::INT32, DataType::Int64) => {
            // A value that the file's type cannot hold is not in the file.
            i32::try_from(values.as_primitive::<Int64Type>().value(row))
                .is_ok_and(|value| filter.check(&value))
        }
        (PhysicalType::INT64, DataType::Int64) => {
            filter.check(&values.as_primitive::<Int64Type>().value(row))
        }
        (PhysicalType::BYTE_ARRAY, DataType::Utf8) => filter.check(values.as_string::<i32>().value(row)),
        (PhysicalType::BYTE_ARRAY, DataType::Binary) => filter.check(values.as_binary::<i32>().value(row)),
        (PhysicalType::FIXED_LEN_BYTE_ARRAY, DataType::FixedSizeBinary(_)) => {
            filter.check(values.as_fixed_size_binary().value(row))
        }
        _ => true,
    }
}
