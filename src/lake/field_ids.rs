//! Reads a data file's columns by field id, as Iceberg means them: a renamed, moved, widened or
//! missing column is found by its id and never by its name.
//!
//! DataFusion asks for each file how an expression over the table's columns is said over the file's:
//!
//! | the file has | the expression reads |
//! |---|---|
//! | the column | it, under the file's name and place |
//! | the column, narrower | a cast, through which DataFusion still prunes |
//! | a struct, list or map of another shape | [`Reshape`]: by field id at any depth |
//! | no such column | the column's first default, or NULL |

use std::any::Any;
use std::collections::HashSet;
use std::sync::Arc;

use arrow::datatypes::{Field, FieldRef, SchemaRef};
use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::error::Result as DFResult;
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{BinaryExpr, CastExpr, Column, Literal};
use datafusion::physical_expr_adapter::{PhysicalExprAdapter, PhysicalExprAdapterFactory};
use iceberg::spec::NameMapping;
use parquet::arrow::PARQUET_FIELD_ID_META_KEY;

use super::name_mapping;
use super::reshape::{Defaults, Reshape, keeps_values, mismatch, missing};

/// The adapter for all files of a scan.
#[derive(Debug)]
pub(super) struct ByFieldId {
    /// What a file that lacks a field holds in it. NULL where there is no entry.
    pub(super) initial_defaults: Arc<Defaults>,
    /// The ids of files that have none.
    pub(super) name_mapping: Option<Arc<NameMapping>>,
    /// Columns that may hold NaN, which SQL orders above all numbers and statistics leave out.
    pub(super) with_nan: Arc<HashSet<String>>,
}

impl PhysicalExprAdapterFactory for ByFieldId {
    fn create(&self, table: SchemaRef, file: SchemaRef) -> DFResult<Arc<dyn PhysicalExprAdapter>> {
        let by_id = name_mapping::with_ids(&file, self.name_mapping.as_deref())?;
        let defaults = self.initial_defaults.clone();
        let with_nan = self.with_nan.clone();
        Ok(Arc::new(Adapter { table, as_read: file, file: by_id, defaults, with_nan }))
    }
}

/// A field's id, as text.
pub(super) fn id(field: &FieldRef) -> Option<&str> {
    field.metadata().get(PARQUET_FIELD_ID_META_KEY).map(String::as_str)
}

#[derive(Debug)]
struct Adapter {
    table: SchemaRef,
    /// The file's columns with their field ids.
    file: SchemaRef,
    /// The same as they are read: without the ids that a name mapping gives.
    as_read: SchemaRef,
    defaults: Arc<Defaults>,
    with_nan: Arc<HashSet<String>>,
}

impl PhysicalExprAdapter for Adapter {
    fn rewrite(&self, expr: Arc<dyn PhysicalExpr>) -> DFResult<Arc<dyn PhysicalExpr>> {
        if let Some(column) = as_column(&expr) {
            return self.column(column);
        }
        let rewritten = expr.transform_down(|expr| {
            let read = |expr: &Arc<dyn PhysicalExpr>| match as_column(expr) {
                Some(column) => self.column(column),
                None => Ok(expr.clone()),
            };
            if let Some(column) = as_column(&expr) {
                let read = self.hide_statistics(column, self.column(column)?);
                return Ok(Transformed::new(read, true, TreeNodeRecursion::Jump));
            }
            if let Some(binary) = (expr.as_ref() as &dyn Any).downcast_ref::<BinaryExpr>()
                && excludes_nan(binary)
            {
                let children = vec![read(binary.left())?, read(binary.right())?];
                let expr = expr.with_new_children(children)?;
                return Ok(Transformed::new(expr, true, TreeNodeRecursion::Jump));
            }
            Ok(Transformed::no(expr))
        })?;
        Ok(rewritten.data)
    }
}

impl Adapter {
    /// A column of the table, read from the file.
    fn column(&self, column: &Column) -> DFResult<Arc<dyn PhysicalExpr>> {
        let (_, wanted) = self.table.fields().find(column.name()).ok_or_else(|| {
            datafusion::error::DataFusionError::Internal(format!("no column `{}` to read", column.name()))
        })?;
        let wanted_id = id(wanted);
        let place = self.file.fields().iter().position(|field| wanted_id.is_some() && id(field) == wanted_id);
        let Some(place) = place else {
            let value = match wanted_id.and_then(|id| self.defaults.get(id)) {
                Some(default) => default.cast_to(wanted.data_type())?,
                None if wanted.is_nullable() => ScalarValue::try_from(wanted.data_type())?,
                None => return Err(missing(wanted).into()),
            };
            return Ok(Arc::new(Literal::new_with_metadata(value, Some(wanted.as_ref().into()))));
        };
        let found = self.file.field(place);
        let read = Arc::new(Column::new(found.name(), place));
        let (from, to) = (found.data_type(), wanted.data_type());
        if self.as_read.field(place).data_type() == to {
            return Ok(read);
        }
        if to.is_nested() {
            let (from, to, defaults) = (from.clone(), wanted.clone(), self.defaults.clone());
            return Ok(Arc::new(Reshape { input: read, from, to, defaults }));
        }
        if !keeps_values(from, to) {
            return Err(mismatch(from, wanted).into());
        }
        Ok(Arc::new(CastExpr::new_with_target_field(read, wanted.clone(), None)))
    }

    /// Keeps DataFusion from leaving out row groups by statistics that do not tell of NaN.
    fn hide_statistics(&self, column: &Column, read: Arc<dyn PhysicalExpr>) -> Arc<dyn PhysicalExpr> {
        let Some((_, field)) = self.table.fields().find(column.name()) else { return read };
        if !id(field).is_some_and(|id| self.with_nan.contains(id)) {
            return read;
        }
        let (from, to, defaults) = (field.data_type().clone(), field.clone(), self.defaults.clone());
        Arc::new(Reshape { input: read, from, to, defaults })
    }
}

fn as_column(expr: &Arc<dyn PhysicalExpr>) -> Option<&Column> {
    (expr.as_ref() as &dyn Any).downcast_ref()
}

/// Whether a comparison with a number is one that no NaN passes: it is no greater than any number.
fn excludes_nan(binary: &BinaryExpr) -> bool {
    let number = |expr: &Arc<dyn PhysicalExpr>| {
        let literal = (expr.as_ref() as &dyn Any).downcast_ref::<Literal>();
        literal.is_some_and(|literal| match literal.value() {
            ScalarValue::Float32(Some(number)) => !number.is_nan(),
            ScalarValue::Float64(Some(number)) => !number.is_nan(),
            _ => false,
        })
    };
    let (left, right) = (binary.left(), binary.right());
    match binary.op() {
        Operator::Lt | Operator::LtEq => as_column(left).is_some() && number(right),
        Operator::Gt | Operator::GtEq => number(left) && as_column(right).is_some(),
        Operator::Eq => {
            as_column(left).is_some() && number(right) || number(left) && as_column(right).is_some()
        }
        _ => false,
    }
}

/// `field` with its Iceberg id, by which files are read.
pub(super) fn with_id(field: &Field, id: i32) -> Field {
    let mut metadata = field.metadata().clone();
    metadata.insert(PARQUET_FIELD_ID_META_KEY.to_owned(), id.to_string());
    field.clone().with_metadata(metadata)
}
