//! A snapshot as a DataFusion table.
//!
//! ```text
//! snapshot ─▶ live files ─▶ pruned by bounds ─▶ PartitionedFile ─▶ DataFusion's Parquet source
//!                └ position deletes ─▶ rows to read of each ─┘        └ columns by field id
//! ```
//!
//! DataFusion's own source does the reading: in parallel by row group, with page pruning, bloom
//! filters and dynamic filters. Ours is what Iceberg adds: which files, which of their rows, and
//! which of their columns is which. Files are read as they were committed; nothing is cached beyond
//! the runtime's footers.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{FieldRef, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::{DFSchema, ScalarValue, Statistics};
use datafusion::config::TableParquetOptions;
use datafusion::datasource::TableType;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::metadata::DFParquetMetadata;
use datafusion::datasource::physical_plan::parquet::{
    CachedParquetFileReaderFactory, ParquetAccessPlan, RowGroupAccess,
};
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::datasource::table_schema::TableSchema;
use datafusion::error::Result as DFResult;
use datafusion::execution::cache::cache_manager::FileMetadataCache;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use futures::{StreamExt, TryStreamExt};
use iceberg::spec::{Literal, Type};
use object_store::ObjectStore;
use parquet::arrow::arrow_reader::{RowSelection, RowSelector};
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData};
use roaring::RoaringTreemap;
use tokio::sync::OnceCell;

use super::field_ids::{ByFieldId, with_id};
use super::file_diff::{self, FileRows, Rows};
use super::{LakeTable, Stores, file_statistics, schema};
use crate::delta::SnapshotId;
use crate::error::{Error, ErrorKind, Result};

/// Footers read at once, for files of which only some rows are read.
const FOOTERS_AT_ONCE: usize = 8;

impl LakeTable {
    /// The table as it was at a snapshot (`None`: now), for DataFusion. Deletes are applied.
    pub async fn provider(&self, at: Option<SnapshotId>) -> Result<Arc<dyn TableProvider>> {
        let snapshot = at.or(self.current());
        let columns = self.columns_at(at)?;
        Ok(Arc::new(SnapshotTable { table: self.clone(), snapshot, columns, files: OnceCell::new() }))
    }

    /// How to read files as they are to be seen at a snapshot. Now (`None`) the newest columns are seen,
    /// also when no row was committed since they changed.
    pub(super) fn columns_at(&self, snapshot: Option<SnapshotId>) -> Result<Columns> {
        let metadata = self.table.metadata();
        let iceberg_schema = match snapshot {
            Some(id) => {
                let snapshot = metadata.snapshot_by_id(id.0).ok_or_else(|| self.no_snapshot(id))?;
                snapshot.schema(metadata).map_err(super::storage::iceberg_error)?
            }
            None => metadata.current_schema().clone(),
        };
        let plain = schema::to_arrow(&iceberg_schema, metadata.properties());
        let in_files = schema::to_file_schema(&iceberg_schema);
        let fields = iceberg_schema.as_struct().fields();
        let arrow =
            plain.fields().iter().zip(in_files.fields()).zip(fields).map(|((plain, in_file), field)| {
                // Types with the ids of nested fields, metadata of the source, id of the column.
                with_id(&plain.as_ref().clone().with_data_type(in_file.data_type().clone()), field.id)
            });
        let arrow = Arc::new(Schema::new(arrow.collect::<Vec<_>>()));
        let initial_defaults = fields
            .iter()
            .filter_map(|field| match (field.initial_default.as_ref()?, field.field_type.as_ref()) {
                (Literal::Primitive(value), Type::Primitive(of)) => {
                    Some((field.id.to_string(), file_statistics::literal(value, of)?))
                }
                _ => None,
            })
            .map(|(id, value)| {
                let column = arrow.fields().iter().find(|field| field.metadata().get(FIELD_ID) == Some(&id));
                let value = column.map_or(Ok(value.clone()), |column| value.cast_to(column.data_type()))?;
                Ok((id, value))
            })
            .collect::<Result<_>>()?;
        Ok(Columns { arrow, initial_defaults })
    }
}

const FIELD_ID: &str = parquet::arrow::PARQUET_FIELD_ID_META_KEY;

/// The columns of a table at a snapshot.
#[derive(Debug, Clone)]
pub(super) struct Columns {
    /// With their field ids.
    pub(super) arrow: SchemaRef,
    /// What files that lack a column hold in it, by field id.
    pub(super) initial_defaults: HashMap<String, ScalarValue>,
}

type Footers = Arc<dyn FileMetadataCache>;

struct SnapshotTable {
    table: LakeTable,
    snapshot: Option<SnapshotId>,
    columns: Columns,
    /// Planned on first use: a statement may name a table twice, or never scan it.
    files: OnceCell<Vec<FileRows>>,
}

impl fmt::Debug for SnapshotTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SnapshotTable({} at {:?})", self.table.id, self.snapshot)
    }
}

#[async_trait]
impl TableProvider for SnapshotTable {
    fn schema(&self) -> SchemaRef {
        self.columns.arrow.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    /// Filters leave out files, row groups and pages, not rows: DataFusion filters again.
    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> DFResult<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> DFResult<Arc<dyn ExecutionPlan>> {
        let table = &self.table;
        let live = || async {
            let to = self.snapshot.map(|id| id.0);
            let diff = file_diff::between(&table.table, &table.stores, None, to).await;
            Ok::<_, Error>(diff.map_err(|error| error.with("table", &table.id))?.added)
        };
        let files = self.files.get_or_try_init(live).await?;
        let files = pruned(session, files, filters, &self.columns.arrow)?;
        let files = files.into_iter().map(|rows| (rows, Vec::new())).collect();
        Scan {
            stores: &table.stores,
            columns: &self.columns,
            constants: Vec::new(),
            files,
            projection,
            limit,
        }
        .plan(session)
        .await
    }
}

/// The files that may have rows which pass the filters.
fn pruned(
    session: &dyn Session,
    files: &[FileRows],
    filters: &[Expr],
    columns: &SchemaRef,
) -> DFResult<Vec<FileRows>> {
    let Some(filter) = conjunction(filters.iter().cloned()) else { return Ok(files.to_vec()) };
    let filter = session.create_physical_expr(filter, &DFSchema::try_from(columns.clone())?)?;
    let keep = file_statistics::may_match(files, filter, columns)?;
    Ok(files.iter().zip(keep).filter(|(_, keep)| *keep).map(|(rows, _)| rows.clone()).collect())
}

/// A read of some rows of some files.
pub(super) struct Scan<'a> {
    /// Where files are.
    pub(super) stores: &'a Stores,
    /// What they hold.
    pub(super) columns: &'a Columns,
    /// Columns after those, whose values each file brings along.
    pub(super) constants: Vec<FieldRef>,
    /// The files, each with the values of its constants.
    pub(super) files: Vec<(FileRows, Vec<ScalarValue>)>,
    /// Which columns to read, constants included.
    pub(super) projection: Option<&'a Vec<usize>>,
    /// Rows that are enough.
    pub(super) limit: Option<usize>,
}

impl Scan<'_> {
    /// The plan: one [`DataSourceExec`], or nothing at all.
    pub(super) async fn plan(self, session: &dyn Session) -> DFResult<Arc<dyn ExecutionPlan>> {
        let columns = TableSchema::new(self.columns.arrow.clone(), self.constants.clone());
        let Some((first, _)) = self.files.first() else {
            let schema = match self.projection {
                Some(projection) => Arc::new(columns.table_schema().project(projection)?),
                None => columns.table_schema().clone(),
            };
            return Ok(Arc::new(EmptyExec::new(schema)));
        };
        let url = store_of(first.file.path());
        if let Some((other, _)) = self.files.iter().find(|(other, _)| store_of(other.file.path()) != url) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the table's files are spread over several stores",
            )
            .with("file", other.file.path())
            .into());
        }
        let (store, _) = self.stores.resolve(first.file.path())?;
        let footers = session.runtime_env().cache_manager.get_file_metadata_cache();
        let files = self.partitioned_files(&store, &footers).await?;
        let source = ParquetSource::new(columns)
            .with_table_parquet_options(TableParquetOptions {
                global: session.config_options().execution.parquet.clone(),
                ..TableParquetOptions::default()
            })
            .with_parquet_file_reader_factory(Arc::new(CachedParquetFileReaderFactory::new(store, footers)));
        let by_id = ByFieldId { initial_defaults: self.columns.initial_defaults.clone() };
        let statistics = total(&files, self.columns.arrow.fields().len(), self.constants.len());
        let groups = balanced(files, session.config().target_partitions());
        let config = FileScanConfigBuilder::new(ObjectStoreUrl::parse(url)?, Arc::new(source))
            .with_file_groups(groups)
            .with_expr_adapter(Some(Arc::new(by_id)))
            .with_projection_indices(self.projection.cloned())?
            .with_statistics(statistics)
            .with_limit(self.limit)
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }

    async fn partitioned_files(
        &self,
        store: &Arc<dyn ObjectStore>,
        footers: &Footers,
    ) -> Result<Vec<PartitionedFile>> {
        let files: Vec<_> = self
            .files
            .iter()
            .map(|(rows, constants)| self.partitioned_file(rows, constants, store, footers))
            .collect();
        futures::stream::iter(files).buffered(FOOTERS_AT_ONCE).try_collect().await
    }

    async fn partitioned_file(
        &self,
        rows: &FileRows,
        constants: &[ScalarValue],
        store: &Arc<dyn ObjectStore>,
        footers: &Footers,
    ) -> Result<PartitionedFile> {
        let (_, path) = self.stores.resolve(rows.file.path())?;
        let mut file = PartitionedFile::new(String::new(), rows.file.file.file_size_in_bytes());
        file.object_meta.location = path;
        let file = file
            .with_partition_values(constants.to_vec())
            .with_statistics(Arc::new(file_statistics::statistics(rows, &self.columns.arrow)));
        if matches!(rows.rows, Rows::All) {
            return Ok(file);
        }
        let footer = DFParquetMetadata::new(store.as_ref(), &file.object_meta)
            .with_file_metadata_cache(Some(footers.clone()))
            .with_page_index_policy(Some(PageIndexPolicy::Skip))
            .fetch_metadata()
            .await
            .map_err(|error| Error::from(error).with("file", rows.file.path()))?;
        Ok(file.with_extension(access_plan(&rows.rows, &footer)))
    }
}

/// The part of a file's location that names its store: `s3://bucket`, `file://`.
fn store_of(location: &str) -> &str {
    let Some(scheme) = location.find("://") else { return "file://" };
    let authority = scheme + "://".len();
    location[authority..].find('/').map_or(location, |end| &location[..authority + end])
}

fn total(files: &[PartitionedFile], columns: usize, constants: usize) -> Statistics {
    let mut known = files.iter().filter_map(|file| file.statistics.as_deref()).cloned();
    let Some(mut sum) = known.next() else { return Statistics::default() };
    for file in known {
        sum.num_rows = sum.num_rows.add(&file.num_rows);
        sum.total_byte_size = sum.total_byte_size.add(&file.total_byte_size);
        for (column, other) in sum.column_statistics.iter_mut().zip(file.column_statistics) {
            column.null_count = match (column.null_count, other.null_count) {
                (Precision::Exact(a), Precision::Exact(b)) => Precision::Exact(a + b),
                _ => Precision::Absent,
            };
        }
    }
    // Of the constants a file knows its own value only.
    sum.column_statistics.truncate(columns);
    sum.column_statistics.resize_with(columns + constants, Default::default);
    sum
}

/// The files in so many groups, of about the same size.
fn balanced(mut files: Vec<PartitionedFile>, groups: usize) -> Vec<FileGroup> {
    files.sort_by_key(|file| Reverse(file.object_meta.size));
    let mut groups: Vec<(u64, Vec<PartitionedFile>)> = vec![(0, Vec::new()); groups.clamp(1, files.len())];
    for file in files {
        let smallest = groups.iter_mut().min_by_key(|(size, _)| *size).expect("at least one group");
        smallest.0 += file.object_meta.size;
        smallest.1.push(file);
    }
    groups.into_iter().map(|(_, files)| FileGroup::new(files)).collect()
}

/// Which row groups, and which of their rows, to read.
fn access_plan(rows: &Rows, footer: &ParquetMetaData) -> ParquetAccessPlan {
    let (positions, listed) = match rows {
        Rows::All => return ParquetAccessPlan::new_all(footer.num_row_groups()),
        Rows::Except(positions) => (positions, RowSelector::skip as fn(usize) -> RowSelector),
        Rows::Only(positions) => (positions, RowSelector::select as fn(usize) -> RowSelector),
    };
    let mut start = 0;
    let groups = footer.row_groups().iter().map(|group| {
        let end = start + group.num_rows() as u64;
        let selection = select(positions, start..end, listed);
        start = end;
        match (selection.row_count(), selection.skipped_row_count()) {
            (0, _) => RowGroupAccess::Skip,
            (_, 0) => RowGroupAccess::Scan,
            _ => RowGroupAccess::Selection(selection),
        }
    });
    ParquetAccessPlan::new(groups.collect())
}

/// The rows of `range`: those listed do as `listed` says, the others the opposite.
fn select(
    positions: &RoaringTreemap,
    range: std::ops::Range<u64>,
    listed: fn(usize) -> RowSelector,
) -> RowSelection {
    let mut selectors = Vec::new();
    let mut push = |rows: u64, is_listed: bool| {
        let mut selector = listed(rows as usize);
        selector.skip ^= !is_listed;
        if rows > 0 {
            selectors.push(selector);
        }
    };
    let mut at = range.start;
    let mut run = range.start..range.start;
    let mut listed_here = positions.iter();
    listed_here.advance_to(range.start);
    for position in listed_here.take_while(|position| *position < range.end) {
        if position == run.end && !run.is_empty() {
            run.end += 1;
            continue;
        }
        push(run.end - run.start, true);
        at = at.max(run.end);
        push(position - at, false);
        run = position..position + 1;
    }
    push(run.end - run.start, true);
    at = at.max(run.end);
    push(range.end - at, false);
    RowSelection::from(selectors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_become_runs() {
        let check = |positions: &[u64], range: std::ops::Range<u64>, listed: fn(usize) -> RowSelector| {
            let positions = positions.iter().copied().collect();
            let selection = select(&positions, range, listed);
            selection
                .iter()
                .map(|run| format!("{}{}", if run.skip { '-' } else { '+' }, run.row_count))
                .collect::<String>()
        };
        assert_eq!(check(&[0, 1, 5], 0..8, RowSelector::skip), "-2+3-1+2");
        assert_eq!(check(&[0, 1, 5], 0..8, RowSelector::select), "+2-3+1-2");
        assert_eq!(check(&[2, 9, 10, 40], 8..12, RowSelector::skip), "+1-2+1");
        assert_eq!(check(&[7], 0..8, RowSelector::select), "-7+1");
        assert_eq!(check(&[9], 0..8, RowSelector::skip), "+8");
        assert_eq!(check(&[], 4..4, RowSelector::skip), "");
    }
}
