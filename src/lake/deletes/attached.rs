//! Rows that are hidden already: they must not be hidden, nor counted, again.

use std::collections::HashMap;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use futures::TryStreamExt;
use iceberg::metadata_columns::{RESERVED_FIELD_ID_DELETE_FILE_PATH, RESERVED_FIELD_ID_DELETE_FILE_POS};
use iceberg::spec::{DataContentType, DataFileFormat, PrimitiveLiteral};
use parquet::arrow::{ParquetRecordBatchStreamBuilder, ProjectionMask};
use roaring::RoaringTreemap;

use crate::error::{Error, ErrorKind, Result};
use crate::lake::footers;
use crate::lake::manifest::LiveFile;
use crate::lake::storage::Stores;

/// Rows found in one data file.
pub(super) struct Rows<'a> {
    pub(super) file: &'a LiveFile,
    pub(super) positions: RoaringTreemap,
}

/// What we can neither apply nor add to: deletes that other engines write.
pub(super) fn refuse_foreign(deletes: &[LiveFile]) -> Result<()> {
    for delete in deletes {
        let what = match (delete.file.content_type(), delete.file.file_format()) {
            (DataContentType::EqualityDeletes, _) => "equality deletes",
            (_, DataFileFormat::Puffin) => "deletion vectors",
            (_, DataFileFormat::Parquet) => continue,
            _ => "deletes in another format than Parquet",
        };
        return Err(Error::new(ErrorKind::Unsupported, format!("the table has {what}"))
            .with("file", delete.path())
            .hint("compact the table with the engine that wrote them, or load into a table of its own"));
    }
    Ok(())
}

/// Takes the positions out of `found` that `deletes` hide.
pub(super) async fn subtract(stores: &Stores, deletes: &[LiveFile], found: &mut [Rows<'_>]) -> Result<()> {
    let by_path: HashMap<String, usize> =
        found.iter().enumerate().map(|(index, rows)| (rows.file.path().to_owned(), index)).collect();
    for delete in deletes {
        if found
            .iter()
            .any(|rows| delete.sequence >= rows.file.sequence && may_name(delete, rows.file.path()))
        {
            subtract_one(stores, delete, &by_path, found).await?;
        }
    }
    Ok(())
}

/// Whether a delete file can name a data file, by what its manifest says.
fn may_name(delete: &LiveFile, path: &str) -> bool {
    if let Some(only) = delete.file.referenced_data_file() {
        return only == path;
    }
    let bound = |bounds: &HashMap<i32, iceberg::spec::Datum>| {
        bounds.get(&RESERVED_FIELD_ID_DELETE_FILE_PATH).map(|bound| bound.literal().clone())
    };
    let above = match bound(delete.file.lower_bounds()) {
        Some(PrimitiveLiteral::String(lower)) => path >= lower.as_str(),
        _ => true,
    };
    let below = match bound(delete.file.upper_bounds()) {
        Some(PrimitiveLiteral::String(upper)) => path <= upper.as_str(),
        _ => true,
    };
    above && below
}

async fn subtract_one(
    stores: &Stores,
    delete: &LiveFile,
    by_path: &HashMap<String, usize>,
    found: &mut [Rows<'_>],
) -> Result<()> {
    let error = |source| footers::parquet_error(delete.path(), source);
    let damaged = || Error::new(ErrorKind::Corrupt, "not a position-delete file").with("file", delete.path());
    let reader = footers::reader(stores, delete.path(), delete.file.file_size_in_bytes())?;
    let builder = ParquetRecordBatchStreamBuilder::new(reader).await.map_err(error)?;
    let schema = builder.parquet_schema();
    let leaf = |id: i32| {
        (0..schema.num_columns()).find(|leaf| {
            let column = schema.column(*leaf);
            let info = column.self_type().get_basic_info();
            info.has_id() && info.id() == id
        })
    };
    let path_leaf = leaf(RESERVED_FIELD_ID_DELETE_FILE_PATH).ok_or_else(damaged)?;
    let pos_leaf = leaf(RESERVED_FIELD_ID_DELETE_FILE_POS).ok_or_else(damaged)?;
    let mask = ProjectionMask::leaves(schema, [path_leaf, pos_leaf]);
    let (path_column, pos_column) = if path_leaf < pos_leaf { (0, 1) } else { (1, 0) };
    let mut batches = builder.with_projection(mask).build().map_err(error)?;
    while let Some(batch) = batches.try_next().await.map_err(error)? {
        let paths = arrow::compute::cast(batch.column(path_column), &arrow::datatypes::DataType::Utf8)?;
        let paths = paths.as_string::<i32>();
        let positions = batch.column(pos_column).as_primitive_opt::<Int64Type>().ok_or_else(damaged)?;
        // Sorted by path: the same file comes many times in a row.
        let mut last: Option<(&str, Option<usize>)> = None;
        for (path, position) in paths.iter().zip(positions.iter()) {
            let (Some(path), Some(position)) = (path, position) else { return Err(damaged()) };
            let index = match last {
                Some((before, index)) if before == path => index,
                _ => by_path.get(path).copied(),
            };
            last = Some((path, index));
            if let Some(rows) = index.map(|index| &mut found[index])
                && delete.sequence >= rows.file.sequence
            {
                rows.positions.remove(position as u64);
            }
        }
    }
    Ok(())
}
