//! A snapshot as a DataFusion table.
//!
//! ```text
//! snapshot ─▶ manifests ─▶ files that filters leave ─▶ PartitionedFile ─▶ DataFusion's Parquet source
//!                             └ deletes ─▶ rows to read of each ─┘             └ columns by field id
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

use arrow::datatypes::{DataType, FieldRef, Fields, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::config::TableParquetOptions;
use datafusion::datasource::TableType;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::{ParquetAccessPlan, RowGroupAccess};
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::datasource::table_schema::TableSchema;
use datafusion::error::Result as DFResult;
use datafusion::execution::cache::cache_manager::FileMetadataCache;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_expr::LexOrdering;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use futures::{StreamExt, TryStreamExt};
use iceberg::spec::{DataFileFormat, Literal, ManifestFile, NameMapping, Type};
use object_store::ObjectStore;
use parquet::arrow::arrow_reader::{RowSelection, RowSelector};
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData};
use roaring::RoaringTreemap;
use tokio::sync::OnceCell;

use super::field_ids::{ByFieldId, id, with_id};
use super::file_diff::{self, FileRows, Rows};
use super::manifest::{self, LiveFile};
use super::named_reads::{self, NamedReads};
use super::pruning::Pruning;
use super::reshape::Defaults;
use super::{LakeTable, file_statistics, name_mapping, partition_values, scan_order, schema};
use crate::delta::SnapshotId;
use crate::error::{Error, ErrorKind, Result};

/// Footers read at once, for files of which only some rows are read.
const FOOTERS_AT_ONCE: usize = 8;

impl LakeTable {
    /// The table as it was at a snapshot (`None`: now), for DataFusion. Deletes are applied.
    pub async fn provider(&self, at: Option<SnapshotId>) -> Result<Arc<dyn TableProvider>> {
        self.provider_of(at, self.columns_at(at)?)
    }

    /// The rows that are newest: those of an unfinished first read, while there is one.
    pub async fn newest_provider(&self) -> Result<Arc<dyn TableProvider>> {
        self.provider(self.first_read()).await
    }

    /// The same with texts and bytes as views, which queries compare, group and filter without copying
    /// them. Connectors want plain ones: [`LakeTable::provider`].
    pub async fn provider_with_views(&self, at: Option<SnapshotId>) -> Result<Arc<dyn TableProvider>> {
        self.provider_of(at, self.columns_at(at)?.with_views())
    }

    fn provider_of(&self, at: Option<SnapshotId>, columns: Columns) -> Result<Arc<dyn TableProvider>> {
        let snapshot = at.or(self.current());
        Ok(Arc::new(SnapshotTable { table: self.clone(), snapshot, columns, manifests: OnceCell::new() }))
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
        Ok(Columns {
            arrow,
            initial_defaults: Arc::new(initial_defaults(&iceberg_schema)?),
            name_mapping: name_mapping::of(metadata)?,
        })
    }
}

/// What files that lack a field hold in it, at any depth.
pub(super) fn initial_defaults(schema: &iceberg::spec::Schema) -> Result<Defaults> {
    let mut defaults = Defaults::new();
    let in_files = schema::to_file_schema(schema);
    for field in in_files.fields() {
        collect_defaults(field, schema, &mut defaults)?;
    }
    Ok(defaults)
}

fn collect_defaults(field: &FieldRef, schema: &iceberg::spec::Schema, defaults: &mut Defaults) -> Result<()> {
    let known = id(field).and_then(|id| schema.field_by_id(id.parse().ok()?));
    let default =
        known.and_then(|known| match (known.initial_default.as_ref()?, known.field_type.as_ref()) {
            (Literal::Primitive(value), Type::Primitive(kind)) => {
                Some((known.id.to_string(), file_statistics::literal(value, kind)?))
            }
            _ => None,
        });
    if let Some((id, value)) = default {
        defaults.insert(id, value.cast_to(field.data_type())?);
    }
    match field.data_type() {
        DataType::Struct(fields) => {
            fields.iter().try_for_each(|field| collect_defaults(field, schema, defaults))
        }
        DataType::List(inner) | DataType::Map(inner, _) => collect_defaults(inner, schema, defaults),
        _ => Ok(()),
    }
}

/// The columns of a table at a snapshot.
#[derive(Debug, Clone)]
pub(super) struct Columns {
    /// With their field ids.
    pub(super) arrow: SchemaRef,
    /// What files that lack a field hold in it.
    pub(super) initial_defaults: Arc<Defaults>,
    /// The ids of files that have none.
    pub(super) name_mapping: Option<Arc<NameMapping>>,
}

impl Columns {
    /// Texts and bytes as views; those within other types stay as they are.
    fn with_views(self) -> Self {
        let view = |field: &FieldRef| match field.data_type() {
            DataType::Utf8 => Arc::new(field.as_ref().clone().with_data_type(DataType::Utf8View)),
            DataType::Binary => Arc::new(field.as_ref().clone().with_data_type(DataType::BinaryView)),
            _ => field.clone(),
        };
        let fields: Fields = self.arrow.fields().iter().map(view).collect();
        Self { arrow: Arc::new(Schema::new(fields)), ..self }
    }
}

type Footers = Arc<dyn FileMetadataCache>;

struct SnapshotTable {
    table: LakeTable,
    snapshot: Option<SnapshotId>,
    columns: Columns,
    /// Read on first use: a statement may name a table twice, or never scan it.
    manifests: OnceCell<Vec<ManifestFile>>,
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
        let at = |error: Error| error.with("table", &table.id);
        let files = self.rows(session, filters, limit).await.map_err(at)?;
        let files = files.into_iter().map(|rows| (rows, Vec::new())).collect();
        let distinct = self.snapshot.map(|snapshot| table.distinct_counts(snapshot)).unwrap_or_default();
        let (columns, constants, ordered) = (&self.columns, Vec::new(), true);
        Scan { table, columns, constants, files, projection, limit, ordered, distinct }.plan(session).await
    }
}

impl SnapshotTable {
    /// The rows that may pass the filters, as few as can be known without reading data files.
    async fn rows(
        &self,
        session: &dyn Session,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Vec<FileRows>> {
        let iceberg = &self.table.table;
        let Some(id) = self.snapshot else { return Ok(Vec::new()) };
        let manifests = self.manifests.get_or_try_init(|| async {
            let snapshot = iceberg.metadata().snapshot_by_id(id.0);
            let snapshot = snapshot.ok_or_else(|| self.table.no_snapshot(id))?;
            manifest::manifests(iceberg, snapshot).await
        });
        let manifests = manifests.await?;
        let columns = &self.columns.arrow;
        let pruning = match conjunction(filters.iter().cloned()) {
            Some(filter) => {
                let filter = session.create_physical_expr(filter, &DFSchema::try_from(columns.clone())?)?;
                Some(Pruning::new(filter, iceberg.metadata(), columns)?)
            }
            None => None,
        };
        let chosen = match &pruning {
            Some(pruning) => pruning.manifests(manifests)?,
            None => manifests.iter().collect(),
        };
        let mut live = manifest::live_in(iceberg, &chosen).await?;
        live.data = match &pruning {
            Some(pruning) => pruning.files(live.data)?,
            None => live.data,
        };
        // Where rows are hidden, how many are left is known only afterwards.
        if let (None, Some(limit), true) = (&pruning, limit, live.deletes.is_empty()) {
            enough(&mut live.data, limit as u64);
        }
        file_diff::visible(iceberg, &self.table.stores, live).await
    }
}

/// As many files as have so many rows.
fn enough(files: &mut Vec<LiveFile>, rows: u64) {
    let mut so_far = 0;
    let full = files.iter().position(|file| {
        so_far += file.file.record_count();
        so_far >= rows
    });
    files.truncate(full.map_or(files.len(), |last| last + 1));
}

/// A read of some rows of some files.
pub(super) struct Scan<'a> {
    /// Whose files they are.
    pub(super) table: &'a LakeTable,
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
    /// Whether the order that rows have anyway is of use.
    pub(super) ordered: bool,
    /// How many different values columns have, by their ids, as far as that is known.
    pub(super) distinct: HashMap<i32, u64>,
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
        let refused =
            self.files.iter().find(|(rows, _)| rows.file.file.file_format() != DataFileFormat::Parquet);
        if let Some((refused, _)) = refused {
            let format = refused.file.file.file_format();
            return Err(Error::new(ErrorKind::Unsupported, format!("data files in {format} cannot be read"))
                .with("file", refused.file.path())
                .hint("rewrite the table's data files as Parquet with the engine that wrote them")
                .into());
        }
        let (store, _) = self.table.stores.resolve(first.file.path())?;
        let footers = session.runtime_env().cache_manager.get_file_metadata_cache();
        let files = self.partitioned_files(&store, &footers).await?;
        let source = ParquetSource::new(columns)
            .with_table_parquet_options(TableParquetOptions {
                global: session.config_options().execution.parquet.clone(),
                ..TableParquetOptions::default()
            })
            .with_parquet_file_reader_factory(Arc::new(NamedReads::new(store, footers)));
        let data_files = self.files.iter().map(|(rows, _)| rows.file.file.as_ref());
        let by_id = ByFieldId {
            initial_defaults: self.columns.initial_defaults.clone(),
            name_mapping: self.columns.name_mapping.clone(),
            with_nan: Arc::new(file_statistics::with_nan(data_files, &self.columns.arrow)),
        };
        let known = files.iter().filter_map(|file| file.statistics.as_deref());
        let mut statistics =
            file_statistics::total(known, self.columns.arrow.fields().len(), self.constants.len());
        file_statistics::with_distinct(&mut statistics, &self.columns.arrow, &self.distinct);
        let (groups, order) = self.groups(files, session.config().target_partitions());
        let config = FileScanConfigBuilder::new(ObjectStoreUrl::parse(url)?, Arc::new(source))
            .with_file_groups(groups)
            .with_output_ordering(order)
            .with_expr_adapter(Some(Arc::new(by_id)))
            .with_projection_indices(self.projection.cloned())?
            .with_statistics(statistics)
            .with_limit(self.limit)
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }

    /// The files for so many readers, and the order that the rows of each reader have.
    fn groups(&self, files: Vec<PartitionedFile>, readers: usize) -> (Vec<FileGroup>, Vec<LexOrdering>) {
        let data_files = self.files.iter().map(|(rows, _)| rows.file.file.as_ref());
        let metadata = self.table.table.metadata();
        let order = scan_order::of_files(data_files, metadata, &self.columns.arrow).filter(|_| self.ordered);
        let ordered = order.and_then(|order| {
            let groups = scan_order::in_groups(files.clone(), &order, readers)?;
            Some((groups, vec![order]))
        });
        ordered.unwrap_or_else(|| (balanced(files, readers), Vec::new()))
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
        let (_, path) = self.table.stores.resolve(rows.file.path())?;
        let by_partition = partition_values::constants(self.table.table.metadata(), &rows.file);
        let statistics = file_statistics::statistics(rows, &self.columns.arrow, &by_partition);
        let mut file = PartitionedFile::new(String::new(), rows.file.file.file_size_in_bytes());
        file.object_meta.location = path;
        let file = file.with_partition_values(constants.to_vec()).with_statistics(Arc::new(statistics));
        if matches!(rows.rows, Rows::All) {
            return Ok(file);
        }
        let (path, pages) = (rows.file.path(), Some(PageIndexPolicy::Skip));
        let footer = named_reads::footer(store, footers, &file.object_meta, path, None, pages).await?;
        Ok(file.with_extension(access_plan(&rows.rows, &footer)))
    }
}

/// The part of a file's location that names its store: `s3://bucket`, `file://`.
fn store_of(location: &str) -> &str {
    let Some(scheme) = location.find("://") else { return "file://" };
    let authority = scheme + "://".len();
    location[authority..].find('/').map_or(location, |end| &location[..authority + end])
}

/// The files in so many groups, of about the same size.
fn balanced(mut files: Vec<PartitionedFile>, groups: usize) -> Vec<FileGroup> {
    files.sort_by_key(|file| Reverse(file.object_meta.size));
    dealt(files, groups)
}

/// The files in so many groups, each in turn to the smallest.
pub(super) fn dealt(files: Vec<PartitionedFile>, groups: usize) -> Vec<FileGroup> {
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
