//! Row lineage, in format version 3: each row has an id for life, and the number of the commit that
//! wrote it last.
//!
//! ```text
//! manifest list ─▶ first id of a manifest ─▶ first id of a file ─▶ + position = `_row_id`
//!                                                                  unless the file says it itself
//! ```
//!
//! Neither is in the file of a new row. A row's id is its place in the file after the file's first id;
//! that in turn follows from the manifest, and that from the manifest list, so that a commit that is
//! tried again numbers its rows anew without touching a file. Whoever moves rows to other files
//! ([`plan`], then [`LakeTable::rewriter`]) writes both down, and they stay what they were.
//!
//! A row that an upsert replaces is a new row with a new id: which old row a key belonged to is known
//! only when the new one has long been written.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::datasource::TableType;
use datafusion::error::{DataFusionError, Result as DFResult};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::Expr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties};
use futures::{StreamExt, TryStreamExt};
use iceberg::metadata_columns::{
    RESERVED_COL_NAME_LAST_UPDATED_SEQUENCE_NUMBER as UPDATED, RESERVED_COL_NAME_ROW_ID as ROW_ID,
    RESERVED_FIELD_ID_LAST_UPDATED_SEQUENCE_NUMBER, RESERVED_FIELD_ID_ROW_ID,
};
use iceberg::spec::{ManifestEntryRef, ManifestFile};
use roaring::RoaringTreemap;

use super::LakeTable;
use super::field_ids::with_id;
use super::file_diff::{self, FileRows, Rows};
use super::scan::{Columns, Scan};
use crate::delta::SnapshotId;
use crate::error::{Error, ErrorKind, Result};

/// The first row id of each live entry of a manifest, in order. Where an entry has none of its own, it
/// follows those before it; before version 3 there are none.
pub(super) fn first_row_ids(entries: &[ManifestEntryRef], manifest: &ManifestFile) -> Vec<Option<i64>> {
    let mut next = manifest.first_row_id.and_then(|first| i64::try_from(first).ok());
    entries
        .iter()
        .map(|entry| {
            let inherited = next?;
            if let Some(own) = entry.data_file().first_row_id() {
                return Some(own);
            }
            next = inherited.checked_add_unsigned(entry.data_file().record_count());
            Some(inherited)
        })
        .collect()
}

/// A schema, and after it `_row_id` and `_last_updated_sequence_number` under their reserved ids.
pub(super) fn with_lineage(columns: &SchemaRef) -> Result<SchemaRef> {
    let mut fields: Vec<_> = columns.fields().iter().cloned().collect();
    for (name, id) in
        [(ROW_ID, RESERVED_FIELD_ID_ROW_ID), (UPDATED, RESERVED_FIELD_ID_LAST_UPDATED_SEQUENCE_NUMBER)]
    {
        if columns.index_of(name).is_ok() {
            return Err(Error::new(ErrorKind::Schema, "a column has the name of one of Iceberg's own")
                .with("column", name)
                .hint("rename it in the source, or leave it out with `columns`"));
        }
        fields.push(Arc::new(with_id(&Field::new(name, DataType::Int64, true), id)));
    }
    Ok(Arc::new(Schema::new(fields)))
}

impl LakeTable {
    /// The table as it was at a snapshot (`None`: now) with `_row_id` and `_last_updated_sequence_number`
    /// after its columns. NULL where a row has none: it was last committed before format version 3.
    pub async fn provider_with_lineage(&self, at: Option<SnapshotId>) -> Result<Arc<dyn TableProvider>> {
        let columns = self.columns_at(at)?;
        let schema = with_lineage(&columns.arrow)?;
        let snapshot = at.or(self.current()).map(|id| id.0);
        let diff = file_diff::between(&self.table, &self.stores, None, snapshot).await;
        let files = diff.map_err(|error| error.with("table", &self.id))?.added;
        Ok(Arc::new(WithLineage { table: self.clone(), schema, columns, files }))
    }
}

/// Rows of files with their lineage, as `scan` wants them but for its projection and its limit: all
/// columns of the table, then the two of the lineage. The files one after the other, in one partition.
pub(super) async fn plan(scan: Scan<'_>, session: &dyn Session) -> DFResult<Arc<dyn ExecutionPlan>> {
    let columns = Columns { arrow: with_lineage(&scan.columns.arrow)?, ..scan.columns.clone() };
    let schema = columns.arrow.clone();
    let mut parts = Vec::with_capacity(scan.files.len());
    for (rows, _) in scan.files {
        // One file in one partition comes in the order of its rows; without a filter, with all of them.
        let one = Scan {
            columns: &columns,
            files: vec![(rows.clone(), Vec::new())],
            constants: Vec::new(),
            projection: None,
            limit: None,
            distinct: HashMap::new(),
            ..scan
        };
        parts.push(Part { plan: one.plan(session).await?, rows });
    }
    let properties = PlanProperties::new(
        EquivalenceProperties::new(schema.clone()),
        Partitioning::UnknownPartitioning(1),
        EmissionType::Incremental,
        Boundedness::Bounded,
    );
    Ok(Arc::new(LineageExec { schema, parts, properties: Arc::new(properties) }))
}

/// A snapshot with its lineage.
struct WithLineage {
    table: LakeTable,
    schema: SchemaRef,
    columns: Columns,
    files: Vec<FileRows>,
}

impl fmt::Debug for WithLineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WithLineage({})", self.table.id)
    }
}

#[async_trait]
impl TableProvider for WithLineage {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        _: Option<usize>,
    ) -> DFResult<Arc<dyn ExecutionPlan>> {
        let scan = Scan {
            table: &self.table,
            columns: &self.columns,
            constants: Vec::new(),
            files: self.files.iter().map(|rows| (rows.clone(), Vec::new())).collect(),
            projection: None,
            limit: None,
            ordered: false,
            distinct: HashMap::new(),
        };
        let all = plan(scan, session).await?;
        let Some(projection) = projection else { return Ok(all) };
        let columns = projection.iter().map(|index| {
            let name = self.schema.field(*index).name();
            (Arc::new(Column::new(name, *index)) as Arc<dyn PhysicalExpr>, name.clone())
        });
        Ok(Arc::new(ProjectionExec::try_new(columns.collect::<Vec<_>>(), all)?))
    }
}

/// Reads files one after the other and fills in the lineage of rows whose file does not say it.
///
/// What it reads with are no children of its own: an optimizer that divided or filtered them would
/// change which row is which.
#[derive(Debug)]
struct LineageExec {
    schema: SchemaRef,
    parts: Vec<Part>,
    properties: Arc<PlanProperties>,
}

/// One file.
#[derive(Debug, Clone)]
struct Part {
    plan: Arc<dyn ExecutionPlan>,
    rows: FileRows,
}

impl DisplayAs for LineageExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LineageExec: files={}", self.parts.len())
    }
}

impl ExecutionPlan for LineageExec {
    fn name(&self) -> &'static str {
        "LineageExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn with_new_children(
        self: Arc<Self>,
        _: Vec<Arc<dyn ExecutionPlan>>,
    ) -> DFResult<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> DFResult<SendableRecordBatchStream> {
        if partition != 0 {
            return Err(DataFusionError::Internal(format!("LineageExec has no partition {partition}")));
        }
        let parts: Vec<_> = self.parts.to_vec();
        let files = parts.into_iter().map(move |part| {
            let mut filler = Filler::new(&part.rows);
            let batches = part.plan.execute(0, context.clone())?;
            Ok(batches.map(move |batch| Ok::<_, DataFusionError>(filler.fill(&batch?)?)))
        });
        let batches = futures::stream::iter(files.collect::<Vec<DFResult<_>>>()).try_flatten();
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), batches)))
    }
}

/// Knows the lineage of the rows of one file, in their order.
struct Filler {
    /// The positions of the rows that are read.
    positions: Box<dyn Iterator<Item = u64> + Send>,
    first_row_id: Option<i64>,
    sequence: i64,
}

impl Filler {
    fn new(rows: &FileRows) -> Self {
        let all = 0..rows.file.file.record_count();
        let positions: Box<dyn Iterator<Item = u64> + Send> = match &rows.rows {
            Rows::All => Box::new(all),
            Rows::Except(hidden) => {
                let hidden: Arc<RoaringTreemap> = hidden.clone();
                Box::new(all.filter(move |position| !hidden.contains(*position)))
            }
            Rows::Only(listed) => Box::new(listed.iter().collect::<Vec<_>>().into_iter()),
        };
        Self { positions, first_row_id: rows.file.first_row_id, sequence: rows.file.sequence }
    }

    /// The last two columns of a batch, NULLs filled in.
    fn fill(&mut self, batch: &RecordBatch) -> Result<RecordBatch> {
        let rows = batch.num_rows();
        let positions: Vec<u64> = self.positions.by_ref().take(rows).collect();
        if positions.len() != rows {
            return Err(Error::new(ErrorKind::Corrupt, "a data file has more rows than its manifest says"));
        }
        let Some(first) = self.first_row_id else { return Ok(batch.clone()) };
        let mut columns = batch.columns().to_vec();
        let updated = columns.pop().expect("the last column is that of the lineage");
        let ids = columns.pop().expect("the last columns are those of the lineage");
        let inherited = positions.into_iter().map(|position| first + position as i64);
        columns.push(or_else(&ids, inherited));
        columns.push(or_else(&updated, std::iter::repeat(self.sequence)));
        Ok(RecordBatch::try_new(batch.schema(), columns)?)
    }
}

/// A column of numbers, and where it is NULL those of `other`.
fn or_else(column: &ArrayRef, other: impl Iterator<Item = i64>) -> ArrayRef {
    let column = column.as_primitive::<Int64Type>();
    Arc::new(column.iter().zip(other).map(|(own, other)| own.or(Some(other))).collect::<Int64Array>())
}
