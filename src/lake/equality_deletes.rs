//! Applies the equality deletes of other engines: which rows of which data files they hide.
//!
//! ```text
//! delete files ─▶ keys, each with the newest delete of it ─┐
//!                                                          ├─▶ positions, as a position delete has them
//! data files that can hold one ─▶ their key columns ───────┘
//! ```
//!
//! A delete hides equal rows of older data files: of its own partition, or of all where its partition
//! spec has no fields. NULL equals NULL. Turned into positions, such deletes go the way of all others:
//! reading, deltas and merging know no second kind. Only the key columns of files that can hold a
//! deleted key are read, beforehand; filters have left out files by then. Keys that do not fit
//! [`KEYS`] are looked up in several rounds: a row is hidden if any of them hides it.

use std::collections::HashMap;
use std::sync::Arc;

use ahash::RandomState;
use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, make_array};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, FieldRef, Schema};
use arrow::row::{RowConverter, SortField};
use futures::{StreamExt, TryStreamExt};
use iceberg::spec::{DataContentType, DataFileFormat, Literal, PrimitiveLiteral, Struct, TableMetadata};
use iceberg::table::Table;
use roaring::RoaringTreemap;

use super::column_reader::{self, Wanted};
use super::field_ids::id;
use super::manifest::LiveFile;
use super::partition_values::constants;
use super::reshape::Defaults;
use super::{Stores, file_statistics, name_mapping, scan, schema};
use crate::error::{Error, ErrorKind, Result};

/// Keys held at once, in bytes: some 600,000 short ones; part of the budget's fixed share.
const KEYS: usize = 32 << 20;

/// What a key costs besides its bytes: its place in the table and its own allocation.
const KEY_OVERHEAD: usize = 48;

/// Files looked into at once for each core: one is fetched while another is decoded.
const FILES_PER_CORE: usize = 2;

/// Whether a delete file names rows by their values.
pub(super) fn is_equality(file: &LiveFile) -> bool {
    file.file.content_type() == DataContentType::EqualityDeletes
}

/// The positions that equality deletes hide, by data file. Both are of one snapshot.
pub(super) async fn positions(
    table: &Table,
    stores: &Stores,
    deletes: &[LiveFile],
    data: &[&LiveFile],
) -> Result<HashMap<String, RoaringTreemap>> {
    let mut hidden = HashMap::new();
    for group in groups(table.metadata(), deletes)? {
        group.apply(table.metadata(), stores, data, &mut hidden).await?;
    }
    Ok(hidden)
}

/// Delete files that compare the same columns in the same partition.
struct Group<'a> {
    /// The columns' field ids.
    ids: Vec<i32>,
    /// The partition; `None` for all.
    scope: Option<Partition>,
    files: Vec<&'a LiveFile>,
}

/// A partition's spec and values.
type Partition = (i32, Vec<Option<Literal>>);

fn partition(file: &LiveFile) -> Partition {
    let value = |value: &Option<Literal>| {
        value.clone().map(|value| match value {
            // The column may have been widened between two files.
            Literal::Primitive(PrimitiveLiteral::Int(value)) => Literal::long(value),
            Literal::Primitive(PrimitiveLiteral::Float(value)) => Literal::double(f64::from(value.0)),
            other => other,
        })
    };
    let values: &Struct = file.file.partition();
    (file.spec_id, values.fields().iter().map(value).collect())
}

fn groups<'a>(metadata: &TableMetadata, deletes: &'a [LiveFile]) -> Result<Vec<Group<'a>>> {
    let mut groups: HashMap<(Vec<i32>, Option<Partition>), Vec<&LiveFile>> = HashMap::new();
    for file in deletes {
        if file.file.file_format() != DataFileFormat::Parquet {
            let message = format!("{} files cannot be read", file.file.file_format());
            return Err(Error::new(ErrorKind::Unsupported, message)
                .with("file", file.path())
                .hint("rewrite the table's files as Parquet with the engine that wrote them"));
        }
        let mut ids = file.file.equality_ids().unwrap_or_default();
        if ids.is_empty() {
            return Err(Error::new(ErrorKind::Corrupt, "an equality delete names no columns")
                .with("file", file.path()));
        }
        ids.sort_unstable();
        ids.dedup();
        let spec = metadata.partition_spec_by_id(file.spec_id);
        let everywhere = spec.is_some_and(|spec| spec.is_unpartitioned());
        let scope = (!everywhere).then(|| partition(file));
        groups.entry((ids, scope)).or_default().push(file);
    }
    Ok(groups.into_iter().map(|((ids, scope), files)| Group { ids, scope, files }).collect())
}

impl Group<'_> {
    async fn apply(
        &self,
        metadata: &TableMetadata,
        stores: &Stores,
        data: &[&LiveFile],
        hidden: &mut HashMap<String, RoaringTreemap>,
    ) -> Result<()> {
        let columns = Arc::new(KeyColumns::of(metadata, &self.ids)?);
        let may_hit = |delete: &LiveFile, file: &LiveFile| {
            delete.sequence > file.sequence && columns.may_equal(delete, file)
        };
        let in_scope = |file: &&&LiveFile| self.scope.as_ref().is_none_or(|scope| *scope == partition(file));
        let data: Vec<&LiveFile> = data
            .iter()
            .filter(in_scope)
            .filter(|file| self.files.iter().any(|delete| may_hit(delete, file)))
            .copied()
            .collect();
        let deletes = self.files.iter().filter(|delete| data.iter().any(|file| may_hit(delete, file)));
        let mut keys = Keys::default();
        for delete in deletes {
            let mut batches =
                Box::pin(column_reader::read(stores, delete, &columns.wanted, &Defaults::new()).await?);
            while let Some(batch) = batches.try_next().await? {
                keys.insert(&columns, &batch, delete.sequence)?;
                if keys.bytes > KEYS {
                    let full = std::mem::take(&mut keys);
                    self.look_up(metadata, stores, &columns, full, &data, hidden).await?;
                }
            }
        }
        self.look_up(metadata, stores, &columns, keys, &data, hidden).await
    }

    /// Adds the positions of rows that have one of the keys.
    async fn look_up(
        &self,
        metadata: &TableMetadata,
        stores: &Stores,
        columns: &Arc<KeyColumns>,
        keys: Keys,
        data: &[&LiveFile],
        hidden: &mut HashMap<String, RoaringTreemap>,
    ) -> Result<()> {
        if keys.by_value.is_empty() {
            return Ok(());
        }
        let keys = Arc::new(keys);
        let look = |file: &&LiveFile| {
            let (file, keys, columns) = ((*file).clone(), keys.clone(), columns.clone());
            async move {
                let constants = constants(metadata, &file);
                let batches = column_reader::read(stores, &file, &columns.wanted, &constants).await?;
                let sequence = file.sequence;
                // A task of its own, so that files are decoded on all cores.
                let found = tokio::spawn(async move {
                    let mut batches = Box::pin(batches);
                    let (mut positions, mut first) = (RoaringTreemap::new(), 0);
                    while let Some(batch) = batches.try_next().await? {
                        keys.find(&columns, &batch, sequence, first, &mut positions)?;
                        first += batch.num_rows() as u64;
                    }
                    Ok::<_, Error>(positions)
                });
                let found = found.await.map_err(|source| {
                    Error::new(ErrorKind::Internal, "a lookup ended early").because(source)
                })??;
                Ok::<_, Error>((file.path().to_owned(), found))
            }
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let looks: Vec<_> = data.iter().map(look).collect();
        let mut looks = futures::stream::iter(looks).buffer_unordered(FILES_PER_CORE * cores);
        while let Some((path, positions)) = looks.try_next().await? {
            if !positions.is_empty() {
                *hidden.entry(path).or_default() |= positions;
            }
        }
        Ok(())
    }
}

/// The columns that a group compares.
struct KeyColumns {
    /// Top-level columns that hold them, cut down to the way to the compared fields.
    wanted: Wanted,
    /// The compared fields, in the order of `wanted`.
    fields: Vec<FieldRef>,
}

impl KeyColumns {
    fn of(metadata: &TableMetadata, ids: &[i32]) -> Result<Self> {
        let mut columns = Vec::with_capacity(ids.len());
        let mut fields = Vec::with_capacity(ids.len());
        for wanted in ids {
            // A column that was dropped since still says which rows are gone.
            let mut schemas: Vec<_> = metadata.schemas_iter().collect();
            schemas.sort_by_key(|schema| {
                let current = schema.schema_id() == metadata.current_schema_id();
                (!current, std::cmp::Reverse(schema.schema_id()))
            });
            let found = schemas.into_iter().find_map(|known| {
                schema::to_file_schema(known).fields().iter().find_map(|field| way_to(field, *wanted))
            });
            let (column, field) = found.ok_or_else(|| {
                Error::new(ErrorKind::Unsupported, "equality deletes compare a field that cannot be compared")
                    .with("field id", wanted)
                    .hint("rewrite the table's data files with the engine that wrote the deletes")
            })?;
            columns.push(column);
            fields.push(field);
        }
        let defaults = scan::initial_defaults(metadata.current_schema())?;
        let name_mapping = name_mapping::of(metadata)?;
        let columns = Arc::new(Schema::new(columns));
        Ok(Self { wanted: Wanted { columns, defaults: Arc::new(defaults), name_mapping }, fields })
    }

    /// Whether a delete file and a data file can have a key in common, by their manifests.
    fn may_equal(&self, delete: &LiveFile, data: &LiveFile) -> bool {
        self.fields.iter().all(|field| {
            let Some(number) = id(field).and_then(|id| id.parse::<i32>().ok()) else { return true };
            // Bounds leave out NaN, and say nothing of NULL.
            if field.data_type().is_floating() {
                return true;
            }
            let nulls = |file: &LiveFile| file.file.null_value_counts().get(&number) != Some(&0);
            if nulls(delete) && nulls(data) {
                return true;
            }
            let bound = |bounds: &HashMap<i32, iceberg::spec::Datum>| {
                file_statistics::scalar(bounds.get(&number)?)?.cast_to(field.data_type()).ok()
            };
            let range =
                |file: &LiveFile| Some((bound(file.file.lower_bounds())?, bound(file.file.upper_bounds())?));
            match (range(delete), range(data)) {
                (Some((low, high)), Some((least, greatest))) => !(high < least || greatest < low),
                _ => true,
            }
        })
    }

    /// The compared values of a batch, in a form that is equal where the values are; NULL equals NULL.
    fn encoded(&self, batch: &RecordBatch) -> Result<arrow::row::Rows> {
        let values = batch.columns().iter().zip(&self.fields).map(|(column, field)| leaf(column, field));
        let values = values.collect::<Result<Vec<_>>>()?;
        let sorts = values.iter().map(|values| SortField::new(values.data_type().clone())).collect();
        Ok(RowConverter::new(sorts)?.convert_columns(&values)?)
    }
}

/// A top-level column cut down to the way to one field in it, and that field. Inside lists and maps a
/// row has many values: nothing to compare.
fn way_to(field: &FieldRef, wanted: i32) -> Option<(FieldRef, FieldRef)> {
    if id(field)?.parse::<i32>().ok()? == wanted {
        let optional = Arc::new(field.as_ref().clone().with_nullable(true));
        return (!field.data_type().is_nested()).then(|| (optional.clone(), optional));
    }
    let DataType::Struct(fields) = field.data_type() else { return None };
    let (inner, leaf) = fields.iter().find_map(|field| way_to(field, wanted))?;
    let cut = Field::new(field.name(), DataType::Struct([inner].into_iter().collect()), true);
    Some((Arc::new(cut.with_metadata(field.metadata().clone())), leaf))
}

/// The values of the one field at the end of the way; NULL where a struct on the way is NULL.
fn leaf(column: &ArrayRef, field: &FieldRef) -> Result<ArrayRef> {
    if column.data_type() == field.data_type() {
        return Ok(column.clone());
    }
    let outer = column.as_struct();
    let inner = outer.column(0);
    let nulls = NullBuffer::union(outer.nulls(), inner.nulls());
    let inner = make_array(inner.to_data().into_builder().nulls(nulls).build()?);
    leaf(&inner, field)
}

/// Deleted keys, each with the highest sequence number of a delete of it.
#[derive(Default)]
struct Keys {
    by_value: HashMap<Box<[u8]>, i64, RandomState>,
    bytes: usize,
}

impl Keys {
    fn insert(&mut self, columns: &KeyColumns, batch: &RecordBatch, sequence: i64) -> Result<()> {
        for row in &columns.encoded(batch)? {
            if let Some(newest) = self.by_value.get_mut(row.data()) {
                *newest = sequence.max(*newest);
                continue;
            }
            self.bytes += row.data().len() + KEY_OVERHEAD;
            self.by_value.insert(Box::from(row.data()), sequence);
        }
        Ok(())
    }

    fn find(
        &self,
        columns: &KeyColumns,
        batch: &RecordBatch,
        sequence: i64,
        first: u64,
        positions: &mut RoaringTreemap,
    ) -> Result<()> {
        for (row, key) in columns.encoded(batch)?.iter().enumerate() {
            if self.by_value.get(key.data()).is_some_and(|newest| *newest > sequence) {
                positions.insert(first + row as u64);
            }
        }
        Ok(())
    }
}
