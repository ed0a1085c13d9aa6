//! Reads position-delete files and deletion vectors: which rows of which data files are hidden.
//!
//! A delete file is read once, and only if it can concern a wanted file: by the file it names, by
//! the bounds of its paths, or by the statistics of its row groups. Delete files in other formats,
//! which only other engines write, are refused: to overlook one would show rows that are gone.

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int32Type, Int64Type, Schema};
use futures::{StreamExt, TryStreamExt};
use iceberg::spec::{DataContentType, DataFileFormat, PrimitiveLiteral};
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::arrow::async_reader::{ParquetObjectReader, ParquetRecordBatchStreamBuilder};
use parquet::arrow::{PARQUET_FIELD_ID_META_KEY, ProjectionMask};
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::statistics::Statistics;
use roaring::RoaringTreemap;

use super::Stores;
use super::deletion_vectors::{self, is_vector};
use super::footers::parquet_error;
use super::manifest::LiveFile;
use crate::error::{Error, ErrorKind, Result};

/// Delete files read at once: they are small, latency dominates.
const FILES_AT_ONCE: usize = 8;
/// Reserved field ids of the specification.
const FILE_PATH: i32 = 2_147_483_546;
const POS: i32 = 2_147_483_545;

/// What delete files say of one data file.
#[derive(Debug, Clone, Default)]
pub(super) struct Deleted {
    /// By position-delete files.
    listed: RoaringTreemap,
    /// By a deletion vector: it holds what older delete files listed, which do not count beside it.
    vector: Option<RoaringTreemap>,
    /// By equality deletes, which count beside both.
    by_value: RoaringTreemap,
}

impl Deleted {
    /// What equality deletes say.
    pub(super) fn by_value(by_value: RoaringTreemap) -> Self {
        Self { by_value, ..Self::default() }
    }

    /// The rows that are hidden.
    pub(super) fn positions(self) -> RoaringTreemap {
        self.vector.unwrap_or(self.listed) | self.by_value
    }

    /// With what other delete files of the same snapshot say.
    pub(super) fn and(mut self, other: Self) -> Result<Self> {
        self.listed |= other.listed;
        self.by_value |= other.by_value;
        if other.vector.is_some() && self.vector.is_some() {
            return Err(Error::new(ErrorKind::Corrupt, "a data file has two deletion vectors at once")
                .hint("rewrite the table's data files with the engine that wrote the deletes"));
        }
        self.vector = self.vector.or(other.vector);
        Ok(self)
    }
}

/// Deleted positions by data file; of the `wanted` data files only, where given. Of delete files that
/// belong to one snapshot.
pub(super) async fn read(
    stores: &Stores,
    deletes: &[LiveFile],
    wanted: Option<&BTreeSet<&str>>,
) -> Result<HashMap<String, Deleted>> {
    if let Some(foreign) = deletes.iter().find(|file| !is_position_deletes(file)) {
        return Err(foreign_deletes(foreign));
    }
    let reads: Vec<_> = deletes
        .iter()
        .filter(|file| wanted.is_none_or(|wanted| may_concern(file, wanted)))
        .map(|file| read_file(stores, file, wanted))
        .collect();
    let mut files = futures::stream::iter(reads).buffer_unordered(FILES_AT_ONCE);
    let mut all: HashMap<String, Deleted> = HashMap::new();
    while let Some(found) = files.try_next().await? {
        for (path, deleted) in found {
            let so_far = all.remove(&path).unwrap_or_default();
            let both = so_far.and(deleted).map_err(|error| error.with("file", &path))?;
            all.insert(path, both);
        }
    }
    Ok(all)
}

fn is_position_deletes(file: &LiveFile) -> bool {
    file.file.content_type() == DataContentType::PositionDeletes
        && matches!(file.file.file_format(), DataFileFormat::Parquet | DataFileFormat::Puffin)
}

fn foreign_deletes(file: &LiveFile) -> Error {
    let message = "the table has delete files that are not Parquet, which this build cannot apply";
    Error::new(ErrorKind::Unsupported, message)
        .with("file", file.path())
        .hint("rewrite the table's data files with the engine that wrote the deletes")
}

/// Whether a delete file can have positions of the wanted files.
fn may_concern(file: &LiveFile, wanted: &BTreeSet<&str>) -> bool {
    let file = &file.file;
    if let Some(path) = file.referenced_data_file() {
        return wanted.contains(path.as_str());
    }
    let text = |bounds: &HashMap<i32, iceberg::spec::Datum>| match bounds.get(&FILE_PATH)?.literal() {
        PrimitiveLiteral::String(text) => Some(text.clone()),
        _ => None,
    };
    let (low, high) = (text(file.lower_bounds()), text(file.upper_bounds()));
    any_within(wanted, low.as_deref(), high.as_deref())
}

fn any_within(wanted: &BTreeSet<&str>, low: Option<&str>, high: Option<&str>) -> bool {
    if let (Some(low), Some(high)) = (low, high)
        && low > high
    {
        return true; // damaged bounds prune nothing
    }
    let low = low.map_or(Bound::Unbounded, Bound::Included);
    let high = high.map_or(Bound::Unbounded, Bound::Included);
    wanted.range::<str, _>((low, high)).next().is_some()
}

async fn read_file(
    stores: &Stores,
    file: &LiveFile,
    wanted: Option<&BTreeSet<&str>>,
) -> Result<HashMap<String, Deleted>> {
    if is_vector(&file.file) {
        let (path, positions) = deletion_vectors::read(stores, file).await?;
        return Ok(HashMap::from([(path, Deleted { vector: Some(positions), ..Deleted::default() })]));
    }
    let listed = read_list(stores, file, wanted).await?;
    Ok(listed.into_iter().map(|(path, listed)| (path, Deleted { listed, ..Deleted::default() })).collect())
}

async fn read_list(
    stores: &Stores,
    file: &LiveFile,
    wanted: Option<&BTreeSet<&str>>,
) -> Result<HashMap<String, RoaringTreemap>> {
    let damaged = |error| parquet_error(file.path(), error);
    let (store, path) = stores.resolve(file.path())?;
    let mut reader = ParquetObjectReader::new(store, path).with_file_size(file.file.file_size_in_bytes());
    let metadata = ArrowReaderMetadata::load_async(&mut reader, ArrowReaderOptions::new()).await;
    let metadata = with_short_paths(metadata.map_err(damaged)?);
    let builder = ParquetRecordBatchStreamBuilder::new_with_metadata(reader, metadata);
    let (path_at, pos_at) = columns(builder.schema()).ok_or_else(|| {
        Error::new(ErrorKind::Corrupt, "a delete file lacks its columns").with("file", file.path())
    })?;
    let groups = builder
        .metadata()
        .row_groups()
        .iter()
        .enumerate()
        .filter(|(_, group)| wanted.is_none_or(|wanted| group_may_concern(group, path_at, wanted)))
        .map(|(index, _)| index)
        .collect();
    let mask = ProjectionMask::roots(builder.parquet_schema(), [path_at, pos_at]);
    let mut batches = builder.with_row_groups(groups).with_projection(mask).build().map_err(damaged)?;
    // The projection keeps the file's order of columns.
    let (path_at, pos_at) = if path_at < pos_at { (0, 1) } else { (1, 0) };
    let mut positions = HashMap::new();
    while let Some(batch) = batches.try_next().await.map_err(damaged)? {
        collect(&batch, path_at, pos_at, wanted, &mut positions)?;
    }
    Ok(positions)
}

/// Takes paths as they lie in the file, each once and a number for each row, where that works: written out
/// they are a hundred times as long as the positions.
fn with_short_paths(metadata: ArrowReaderMetadata) -> ArrowReaderMetadata {
    let schema = metadata.schema();
    let Some((path_at, _)) = columns(schema) else { return metadata };
    let short = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    let fields = schema.fields().iter().enumerate().map(|(at, field)| match at == path_at {
        true => Arc::new(field.as_ref().clone().with_data_type(short.clone())),
        false => field.clone(),
    });
    let schema = Schema::new_with_metadata(fields.collect::<Vec<_>>(), schema.metadata().clone());
    let options = ArrowReaderOptions::new().with_schema(Arc::new(schema));
    ArrowReaderMetadata::try_new(metadata.metadata().clone(), options).unwrap_or(metadata)
}

/// The places of the path and the position column: by field id, else by name.
fn columns(schema: &arrow::datatypes::Schema) -> Option<(usize, usize)> {
    let find = |id: i32, name: &str| {
        let id = id.to_string();
        let by_id =
            |field: &arrow::datatypes::FieldRef| field.metadata().get(PARQUET_FIELD_ID_META_KEY) == Some(&id);
        schema.fields().iter().position(by_id).or_else(|| schema.index_of(name).ok())
    };
    Some((find(FILE_PATH, "file_path")?, find(POS, "pos")?))
}

fn group_may_concern(group: &RowGroupMetaData, path_at: usize, wanted: &BTreeSet<&str>) -> bool {
    match group.column(path_at).statistics() {
        Some(Statistics::ByteArray(statistics)) => {
            let low = statistics.min_bytes_opt().and_then(|bytes| std::str::from_utf8(bytes).ok());
            let high = statistics.max_bytes_opt().and_then(|bytes| std::str::from_utf8(bytes).ok());
            any_within(wanted, low, high)
        }
        _ => true,
    }
}

/// Adds a batch's positions. Rows are sorted by path, so the path changes seldom.
fn collect(
    batch: &RecordBatch,
    path_at: usize,
    pos_at: usize,
    wanted: Option<&BTreeSet<&str>>,
    all: &mut HashMap<String, RoaringTreemap>,
) -> Result<()> {
    let short = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    let paths = cast(batch.column(path_at), &short)?;
    let paths = paths.as_dictionary::<Int32Type>();
    let texts = paths.values().as_string::<i32>();
    let numbers = paths.keys().values();
    let positions = batch.column(pos_at).as_primitive::<Int64Type>();
    if paths.null_count() + positions.null_count() > 0 {
        return Err(Error::new(ErrorKind::Corrupt, "a delete file has NULL in place of a path or position"));
    }
    let mut start = 0;
    while start < paths.len() {
        let number = numbers[start];
        let path = texts.value(number as usize);
        let end = (start..paths.len()).find(|&row| numbers[row] != number).unwrap_or(paths.len());
        if wanted.is_none_or(|wanted| wanted.contains(path)) {
            let run = positions.values()[start..end].iter().map(|&position| position as u64);
            let so_far = all.entry(path.to_owned()).or_default();
            // In order, as the specification asks, they only have to be put behind the others.
            if so_far.append(run.clone()).is_err() {
                so_far.extend(run);
            }
        }
        start = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delete_file_concerns_paths_within_its_bounds() {
        let wanted = BTreeSet::from(["b", "d"]);
        for (low, high, expected) in [
            (Some("a"), Some("a"), false),
            (Some("a"), Some("b"), true),
            (Some("c"), Some("c"), false),
            (Some("e"), None, false),
            (None, Some("b"), true),
            (None, None, true),
            (Some("z"), Some("a"), true),
        ] {
            assert_eq!(any_within(&wanted, low, high), expected, "{low:?} {high:?}");
        }
    }
}
