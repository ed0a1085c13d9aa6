//! Which rows of which data files are gone: as position-delete files, or in format version 3 as
//! deletion vectors.
//!
//! Of position-delete files there is one for each partition that is touched, since a delete file
//! belongs to the partition of the data files it names; rows sorted by path and position, as the
//! specification asks. They add to what was hidden before. A deletion vector takes its place.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use iceberg::metadata_columns::{
    RESERVED_COL_NAME_DELETE_FILE_PATH, RESERVED_COL_NAME_DELETE_FILE_POS,
    RESERVED_FIELD_ID_DELETE_FILE_PATH, RESERVED_FIELD_ID_DELETE_FILE_POS,
};
use iceberg::spec::{DataContentType, DataFile, DataFileBuilder, DataFileFormat, Datum, Struct};
use parquet::arrow::async_writer::ParquetObjectWriter;
use parquet::arrow::{AsyncArrowWriter, PARQUET_FIELD_ID_META_KEY};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::ParquetMetaData;
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;
use roaring::RoaringTreemap;
use uuid::Uuid;

use crate::error::{Error, ErrorKind, Result};
use crate::lake::deletion_vectors::{self, Vector};
use crate::lake::footers::parquet_write_error;
use crate::lake::format_version::is_v3;
use crate::lake::{LakeTable, WrittenFile};

/// Rows of a delete file that are encoded at once: with a path of 200 bytes each, 13 MB.
const BATCH: usize = 64 << 10;

/// Rows to hide in one data file.
pub(super) struct Doomed {
    pub(super) path: String,
    pub(super) spec_id: i32,
    pub(super) partition: Struct,
    /// Not empty.
    pub(super) positions: RoaringTreemap,
    /// Rows of it that are hidden before.
    pub(super) already: RoaringTreemap,
}

/// Writes delete files for these rows.
pub(super) async fn write(table: &LakeTable, doomed: Vec<Doomed>) -> Result<Vec<WrittenFile>> {
    if is_v3(table.table.metadata()) {
        let vectors = doomed.into_iter().map(|rows| Vector {
            path: rows.path,
            spec_id: rows.spec_id,
            partition: rows.partition,
            positions: rows.positions | rows.already,
        });
        return deletion_vectors::write(table, vectors.collect()).await;
    }
    let mut groups: HashMap<(i32, Struct), Vec<Doomed>> = HashMap::new();
    for rows in doomed {
        groups.entry((rows.spec_id, rows.partition.clone())).or_default().push(rows);
    }
    let mut files = Vec::with_capacity(groups.len());
    for ((spec_id, partition), mut rows) in groups {
        rows.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        let file = write_one(table, spec_id, partition, &rows).await?;
        files.push(WrittenFile { file, spec_id });
    }
    Ok(files)
}

async fn write_one(table: &LakeTable, spec_id: i32, partition: Struct, rows: &[Doomed]) -> Result<DataFile> {
    let location = format!("{}/{}-deletes.parquet", table.data_location(), Uuid::new_v4());
    let (store, place) = table.stores.resolve(&location)?;
    let error = |source| parquet_write_error(&location, source);
    let schema = schema();
    let sink = ParquetObjectWriter::new(store, place);
    let mut writer = AsyncArrowWriter::try_new(sink, schema.clone(), Some(properties())).map_err(error)?;
    for rows in rows {
        let mut positions = rows.positions.iter();
        loop {
            let batch: Int64Array = positions.by_ref().take(BATCH).map(|position| position as i64).collect();
            if batch.is_empty() {
                break;
            }
            let paths = StringArray::new_repeated(&rows.path, batch.len());
            let columns: Vec<ArrayRef> = vec![Arc::new(paths), Arc::new(batch)];
            writer.write(&RecordBatch::try_new(schema.clone(), columns)?).await.map_err(error)?;
        }
    }
    writer.finish().await.map_err(error).and_then(|footer| {
        let size = writer.bytes_written() as u64;
        describe(&location, size, &footer, spec_id, partition, rows)
    })
}

/// The file as it will stand in a manifest. Bounds are exact, so that readers open only what they need.
fn describe(
    location: &str,
    size: u64,
    footer: &ParquetMetaData,
    spec_id: i32,
    partition: Struct,
    rows: &[Doomed],
) -> Result<DataFile> {
    const PATH: i32 = RESERVED_FIELD_ID_DELETE_FILE_PATH;
    const POS: i32 = RESERVED_FIELD_ID_DELETE_FILE_POS;
    let (first, last) = rows.first().zip(rows.last()).expect("a group has at least one file");
    let least = rows.iter().filter_map(|rows| rows.positions.min()).min().expect("every file has rows");
    let greatest = rows.iter().filter_map(|rows| rows.positions.max()).max().expect("every file has rows");
    let count: u64 = rows.iter().map(|rows| rows.positions.len()).sum();
    let column_size = |leaf: usize| -> u64 {
        footer.row_groups().iter().map(|group| group.column(leaf).compressed_size() as u64).sum()
    };
    let split_offsets =
        footer.row_groups().iter().map(|group| group.file_offset().unwrap_or(4)).collect::<Vec<_>>();
    DataFileBuilder::default()
        .content(DataContentType::PositionDeletes)
        .file_path(location.to_owned())
        .file_format(DataFileFormat::Parquet)
        .partition(partition)
        .partition_spec_id(spec_id)
        .record_count(count)
        .file_size_in_bytes(size)
        .column_sizes(HashMap::from([(PATH, column_size(0)), (POS, column_size(1))]))
        .value_counts(HashMap::from([(PATH, count), (POS, count)]))
        .null_value_counts(HashMap::from([(PATH, 0), (POS, 0)]))
        .lower_bounds(HashMap::from([(PATH, Datum::string(&first.path)), (POS, Datum::long(least as i64))]))
        .upper_bounds(HashMap::from([(PATH, Datum::string(&last.path)), (POS, Datum::long(greatest as i64))]))
        .split_offsets(Some(split_offsets))
        .referenced_data_file((rows.len() == 1).then(|| first.path.clone()))
        .build()
        .map_err(|source| Error::new(ErrorKind::Internal, "a delete file was not described").because(source))
}

fn schema() -> SchemaRef {
    let field = |name: &str, data_type: DataType, id: i32| {
        let id = HashMap::from([(PARQUET_FIELD_ID_META_KEY.to_owned(), id.to_string())]);
        Field::new(name, data_type, false).with_metadata(id)
    };
    Arc::new(Schema::new(vec![
        field(RESERVED_COL_NAME_DELETE_FILE_PATH, DataType::Utf8, RESERVED_FIELD_ID_DELETE_FILE_PATH),
        field(RESERVED_COL_NAME_DELETE_FILE_POS, DataType::Int64, RESERVED_FIELD_ID_DELETE_FILE_POS),
    ]))
}

fn properties() -> WriterProperties {
    let pos = ColumnPath::from(RESERVED_COL_NAME_DELETE_FILE_POS);
    WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        // Paths are long and alike: cut, they would all be one.
        .set_statistics_truncate_length(None)
        .set_column_index_truncate_length(None)
        .set_column_dictionary_enabled(pos.clone(), false)
        .set_column_encoding(pos, Encoding::DELTA_BINARY_PACKED)
        .build()
}
