//! What changed between two snapshots, row by row.
//!
//! ```text
//! from ── s1 ── s2 ── compaction ── s3 ── to
//!   └──── step 0 ───┘   skipped   └ step 1 ┘     step = net difference of files and positions
//!                                                 └─▶ added rows:    all columns,  _op 0
//!                                                     removed rows:  key columns,  _op 1
//! ```
//!
//! Each step is the net difference between two states, so a row that came and went within it costs
//! nothing, and the cost follows what changed and not the table. A compaction moves rows and changes
//! none: the range is cut there, so that moved rows are not read at all. Where no line of ancestors
//! leads from one snapshot to the other (the table was rolled back, or snapshots between them
//! expired), one net difference over everything is still exact.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::ScalarValue;
use datafusion::datasource::TableType;
use datafusion::error::Result as DFResult;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{Column, Literal};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::union::UnionExec;
use iceberg::spec::Operation;

use super::file_diff::{self, FileDiff, FileRows};
use super::scan::{Columns, Scan};
use super::{LakeTable, TableMode};
use crate::delta::{Op, SnapshotId};
use crate::error::{Error, ErrorKind, Result};
use crate::table::OP_COLUMN;

/// Column of a [`TableDelta`]: the order of changes.
pub const SEQ_COLUMN: &str = "_seq";

/// The rows that came and went between two snapshots.
pub struct TableDelta {
    /// The table's columns, then `_op` (`Int8`, [`Op`]) and `_seq` (`Int64`). Of two rows with one key,
    /// the one with the higher `_seq` is the newer; within one `_seq`, an upsert beats a delete. Deletes
    /// have NULL in all columns but the key's.
    ///
    /// Of a table in [`TableMode::Append`], the added rows only, and the table's columns only: it has an
    /// `_op` and a `_seq` of its own.
    pub rows: Arc<dyn TableProvider>,
    /// Whether `rows` has those two columns: not of a table that is only appended to.
    pub with_ops: bool,
    /// What they are a change of.
    pub extent: DeltaExtent,
    /// Whether no key comes twice, so that nothing needs to be collapsed.
    pub one_row_a_key: bool,
    /// How many rows were added, at most.
    pub added: u64,
    /// How many rows were removed, at most.
    pub removed: u64,
}

/// What a [`TableDelta`] is a change of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeltaExtent {
    /// All rows of a snapshot: there was nothing before.
    Whole,
    /// A change of what was there before.
    Changes,
}

impl LakeTable {
    /// From one snapshot (`None`: from nothing) to another, in either direction of history.
    /// Compactions (`replace` snapshots) are no change. Columns are those of `to`.
    ///
    /// A table that is only appended to cannot take rows back: a range in which its rows were rewritten
    /// or rolled back is refused.
    pub async fn delta(&self, from: Option<SnapshotId>, to: SnapshotId) -> Result<TableDelta> {
        self.plan_delta(from, to, Some(to), false).await.map_err(|error| error.with("table", &self.id))
    }

    /// The same in the columns that the table has now, for whoever has these already.
    pub async fn delta_as_now(&self, from: Option<SnapshotId>, to: SnapshotId) -> Result<TableDelta> {
        self.plan_delta(from, to, None, false).await.map_err(|error| error.with("table", &self.id))
    }

    /// The same with all columns of the rows that were removed: what they were before.
    pub async fn delta_with_base(&self, from: Option<SnapshotId>, to: SnapshotId) -> Result<TableDelta> {
        self.plan_delta(from, to, Some(to), true).await.map_err(|error| error.with("table", &self.id))
    }

    async fn plan_delta(
        &self,
        from: Option<SnapshotId>,
        to: SnapshotId,
        columns_of: Option<SnapshotId>,
        with_base: bool,
    ) -> Result<TableDelta> {
        let metadata = self.table.metadata();
        if metadata.snapshot_by_id(to.0).is_none() {
            return Err(self.no_snapshot(to));
        }
        // A table that is replaced whole has no key to apply a change by.
        let from = from.filter(|from| self.mode() != TableMode::Replace || *from == to);
        if let Some(from) = from
            && metadata.snapshot_by_id(from.0).is_none()
        {
            return Err(expired(from));
        }
        let mut sides = Sides::default();
        let steps = self.steps(from, to);
        for (seq, step) in (0..).zip(&steps) {
            let diff = file_diff::between(&self.table, &self.stores, step.from, Some(step.to)).await?;
            if self.mode() == TableMode::Append {
                only_added(&diff, step)?;
            }
            sides.push(diff, seq);
        }
        let whole = from.is_none();
        let (added, removed) = (count(&sides.added), count(&sides.removed));
        let one_row_a_key = self.mode() == TableMode::Merge && steps.len() <= 1 && removed == 0;
        Ok(TableDelta {
            rows: Arc::new(DeltaRows { with_base, ..self.delta_rows(sides, columns_of)? }),
            with_ops: self.mode() != TableMode::Append,
            extent: if whole { DeltaExtent::Whole } else { DeltaExtent::Changes },
            one_row_a_key,
            added,
            removed,
        })
    }

    /// The range in steps, oldest first.
    fn steps(&self, from: Option<SnapshotId>, to: SnapshotId) -> Vec<Step> {
        let Some(from) = from else { return vec![Step { from: None, to: to.0, in_line: true }] };
        let mut line = Vec::new();
        let mut at = Some(to.0);
        while let Some(id) = at.filter(|id| *id != from.0) {
            // An ancestor that expired breaks the line, as a rollback does.
            let Some(snapshot) = self.table.metadata().snapshot_by_id(id) else { break };
            line.push((
                snapshot.parent_snapshot_id(),
                id,
                snapshot.summary().operation == Operation::Replace,
            ));
            at = snapshot.parent_snapshot_id();
        }
        if at != Some(from.0) {
            return vec![Step { from: Some(from.0), to: to.0, in_line: false }];
        }
        let mut steps: Vec<Step> = Vec::new();
        let mut cut = true;
        for (parent, id, is_compaction) in line.into_iter().rev() {
            match steps.last_mut() {
                _ if is_compaction => cut = true,
                Some(step) if !cut => step.to = id,
                _ => {
                    steps.push(Step { from: parent, to: id, in_line: true });
                    // What is only appended to is taken snapshot by snapshot: rows that are rewritten in
                    // one must not be taken for new ones.
                    cut = self.mode() == TableMode::Append;
                }
            }
        }
        steps
    }

    fn delta_rows(&self, sides: Sides, columns_of: Option<SnapshotId>) -> Result<DeltaRows> {
        // Up to now, the newest columns: a target was prepared for those.
        let mut columns = self.columns_at(columns_of.filter(|at| Some(*at) != self.current()))?;
        let key = self.key();
        let with_ops = self.mode() != TableMode::Append;
        if with_ops {
            if let Some(taken) =
                [OP_COLUMN, SEQ_COLUMN].iter().find(|name| columns.arrow.index_of(name).is_ok())
            {
                return Err(Error::new(ErrorKind::Schema, "a column has the name of one of ours")
                    .with("column", taken)
                    .hint("rename it in the source, or leave it out with `columns`"));
            }
            // A delete carries its key only.
            let nullable = columns.arrow.fields().iter().map(|field| {
                field.as_ref().clone().with_nullable(field.is_nullable() || !key.contains(field.name()))
            });
            columns.arrow = Arc::new(Schema::new(nullable.collect::<Vec<_>>()));
        }
        let constants: Vec<FieldRef> = if with_ops {
            vec![
                Arc::new(Field::new(OP_COLUMN, DataType::Int8, false)),
                Arc::new(Field::new(SEQ_COLUMN, DataType::Int64, false)),
            ]
        } else {
            Vec::new()
        };
        let schema = columns.arrow.fields().iter().chain(&constants).cloned().collect::<Vec<_>>();
        Ok(DeltaRows {
            table: self.clone(),
            schema: Arc::new(Schema::new(schema)),
            columns,
            constants,
            key,
            sides,
            with_base: false,
        })
    }
}

fn expired(from: SnapshotId) -> Error {
    Error::new(ErrorKind::Config, "the snapshot that the target shows has expired in the lake")
        .with("snapshot", from)
        .hint("load the whole table again with `frazil load --full-refresh` or `frazil state repair`, and keep snapshots longer than the target's longest pause")
}

fn only_added(diff: &FileDiff, step: &Step) -> Result<()> {
    let rewritten = diff.files_removed && !diff.added.is_empty();
    if rewritten || (!step.in_line && !diff.removed.is_empty()) {
        return Err(Error::new(ErrorKind::Config, "rows of an append table were rewritten or rolled back")
            .with("snapshot", step.to)
            .hint("appending cannot take rows back: load the whole table again with `--full`"));
    }
    Ok(())
}

fn count(side: &[(FileRows, i64)]) -> u64 {
    side.iter().map(|(rows, _)| rows.count()).sum()
}

/// Two states of which the net difference is taken.
#[derive(Debug)]
struct Step {
    from: Option<i64>,
    to: i64,
    /// Whether `to` is known to descend from `from`.
    in_line: bool,
}

/// Rows that were added and removed, with the number of their step.
#[derive(Debug, Default)]
struct Sides {
    added: Vec<(FileRows, i64)>,
    removed: Vec<(FileRows, i64)>,
}

impl Sides {
    fn push(&mut self, diff: FileDiff, seq: i64) {
        self.added.extend(diff.added.into_iter().map(|rows| (rows, seq)));
        self.removed.extend(diff.removed.into_iter().map(|rows| (rows, seq)));
    }
}

/// The rows of a delta as a DataFusion table.
struct DeltaRows {
    table: LakeTable,
    columns: Columns,
    constants: Vec<FieldRef>,
    schema: SchemaRef,
    key: Vec<String>,
    sides: Sides,
    /// Whether removed rows have all their columns.
    with_base: bool,
}

impl fmt::Debug for DeltaRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeltaRows({})", self.table.id)
    }
}

#[async_trait]
impl TableProvider for DeltaRows {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> DFResult<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Unsupported; filters.len()])
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        _: &[Expr],
        limit: Option<usize>,
    ) -> DFResult<Arc<dyn ExecutionPlan>> {
        let added = self.side(&self.sides.added, Op::Upsert, projection, limit).plan(session).await?;
        if self.sides.removed.is_empty() || self.constants.is_empty() {
            return Ok(added);
        }
        let removed = self.removed(session, projection, limit).await?;
        if self.sides.added.is_empty() {
            return Ok(removed);
        }
        UnionExec::try_new(vec![added, removed])
    }
}

impl DeltaRows {
    fn side<'a>(
        &'a self,
        side: &'a [(FileRows, i64)],
        op: Op,
        projection: Option<&'a Vec<usize>>,
        limit: Option<usize>,
    ) -> Scan<'a> {
        let constants = |seq: i64| match self.constants.is_empty() {
            true => Vec::new(),
            false => vec![ScalarValue::Int8(Some(op as i8)), ScalarValue::Int64(Some(seq))],
        };
        Scan {
            table: &self.table,
            columns: &self.columns,
            constants: self.constants.clone(),
            files: side.iter().map(|(rows, seq)| (rows.clone(), constants(*seq))).collect(),
            projection,
            limit,
            ordered: false,
            distinct: HashMap::new(),
        }
    }

    /// Removed rows: of those that nobody asks for, the keys are read, and the other columns are NULL.
    async fn removed(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        limit: Option<usize>,
    ) -> DFResult<Arc<dyn ExecutionPlan>> {
        let wanted = projection.cloned().unwrap_or_else(|| (0..self.schema.fields().len()).collect());
        let is_read = |index: &usize| {
            self.with_base
                || *index >= self.columns.arrow.fields().len()
                || self.key.contains(self.schema.field(*index).name())
        };
        let read: Vec<usize> = wanted.iter().copied().filter(is_read).collect();
        let input = self.side(&self.sides.removed, Op::Delete, Some(&read), limit).plan(session).await?;
        let mut next = 0..;
        let columns = wanted.iter().map(|index| {
            let field = self.schema.field(*index);
            let value: Arc<dyn PhysicalExpr> = if is_read(index) {
                Arc::new(Column::new(field.name(), next.next().expect("endless")))
            } else {
                let null = ScalarValue::try_from(field.data_type())?;
                Arc::new(Literal::new_with_metadata(null, Some(field.into())))
            };
            Ok((value, field.name().clone()))
        });
        let columns = columns.collect::<DFResult<Vec<_>>>()?;
        Ok(Arc::new(ProjectionExec::try_new(columns, input)?))
    }
}
