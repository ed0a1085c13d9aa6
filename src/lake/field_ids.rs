//! Reads a data file's columns by field id, as Iceberg means them: a renamed, moved, widened or
//! missing column is found by its id and never by its name.
//!
//! For each file, the file's columns get the table's names (by id), DataFusion's own adapter does
//! casts and missing columns on those, and the resulting expressions get the file's names back.

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::error::Result as DFResult;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr_adapter::{
    DefaultPhysicalExprAdapterFactory, PhysicalExprAdapter, PhysicalExprAdapterFactory,
    replace_columns_with_literals,
};
use parquet::arrow::PARQUET_FIELD_ID_META_KEY;

use crate::error::{Error, ErrorKind};

/// The adapter for all files of a scan.
#[derive(Debug)]
pub(super) struct ByFieldId {
    /// What a file that lacks a column holds in it, by field id. NULL where there is no entry.
    pub(super) initial_defaults: HashMap<String, ScalarValue>,
}

impl PhysicalExprAdapterFactory for ByFieldId {
    fn create(&self, table: SchemaRef, file: SchemaRef) -> DFResult<Arc<dyn PhysicalExprAdapter>> {
        let columns: HashMap<&str, &FieldRef> =
            table.fields().iter().filter_map(|field| Some((id(field)?, field))).collect();
        if !file.fields().is_empty() && file.fields().iter().all(|field| id(field).is_none()) {
            return Err(Error::new(ErrorKind::Unsupported, "a data file has no field ids")
                .hint(
                    "it was imported from elsewhere; rewrite the table's data files with the engine that did",
                )
                .into());
        }
        let mut renamed = Vec::with_capacity(file.fields().len());
        for (index, field) in file.fields().iter().enumerate() {
            renamed.push(match id(field).and_then(|id| columns.get(id)) {
                Some(column) => {
                    same_inner_names(column.name(), column.data_type(), field.data_type())?;
                    field.as_ref().clone().with_name(column.name())
                }
                // Dropped from the table. Its name may be another column's by now: hide it.
                None => field.as_ref().clone().with_name(format!("\0{index}")),
            });
        }
        let renamed = Arc::new(Schema::new(renamed));
        let absent = table
            .fields()
            .iter()
            .filter(|field| renamed.index_of(field.name()).is_err())
            .filter_map(|field| Some((field.name().clone(), self.initial_defaults.get(id(field)?)?.clone())))
            .collect();
        let by_name = DefaultPhysicalExprAdapterFactory.create(table, renamed)?;
        Ok(Arc::new(Adapter { by_name, file, absent }))
    }
}

fn id(field: &FieldRef) -> Option<&str> {
    field.metadata().get(PARQUET_FIELD_ID_META_KEY).map(String::as_str)
}

/// DataFusion casts structs by name. A field that was renamed within one would silently read as
/// NULL, so it is refused.
fn same_inner_names(column: &str, table: &DataType, file: &DataType) -> DFResult<()> {
    let pairs: Vec<(&FieldRef, &FieldRef)> = match (table, file) {
        (DataType::Struct(table), DataType::Struct(file)) => {
            for field in table {
                let by_id = file.iter().find(|other| id(other).is_some() && id(other) == id(field));
                let by_name = file.iter().find(|other| other.name() == field.name());
                if by_id.map(|field| field.name()) != by_name.map(|field| field.name()) {
                    return Err(Error::new(ErrorKind::Unsupported, "a field within a struct was renamed")
                        .with("column", format!("{column}.{}", field.name()))
                        .hint("rewrite the table's data files, so that all have the new name")
                        .into());
                }
            }
            table
                .iter()
                .filter_map(|field| Some((field, file.iter().find(|other| other.name() == field.name())?)))
                .collect()
        }
        (
            DataType::List(table) | DataType::LargeList(table) | DataType::Map(table, _),
            DataType::List(file) | DataType::LargeList(file) | DataType::Map(file, _),
        ) => vec![(table, file)],
        _ => Vec::new(),
    };
    for (table, file) in pairs {
        same_inner_names(column, table.data_type(), file.data_type())?;
    }
    Ok(())
}

#[derive(Debug)]
struct Adapter {
    by_name: Arc<dyn PhysicalExprAdapter>,
    file: SchemaRef,
    absent: HashMap<String, ScalarValue>,
}

impl PhysicalExprAdapter for Adapter {
    fn rewrite(&self, expr: Arc<dyn PhysicalExpr>) -> DFResult<Arc<dyn PhysicalExpr>> {
        let absent: HashMap<&str, &ScalarValue> =
            self.absent.iter().map(|(name, value)| (name.as_str(), value)).collect();
        let expr = self.by_name.rewrite(replace_columns_with_literals(expr, &absent)?)?;
        let with_file_names = expr.transform_down(|expr| {
            Ok(match (expr.as_ref() as &dyn Any).downcast_ref::<Column>() {
                Some(column) => {
                    let name = self.file.field(column.index()).name();
                    Transformed::yes(Arc::new(Column::new(name, column.index())) as _)
                }
                None => Transformed::no(expr),
            })
        })?;
        Ok(with_file_names.data)
    }
}

/// `field` with its Iceberg id, by which files are read.
pub(super) fn with_id(field: &Field, id: i32) -> Field {
    let mut metadata = field.metadata().clone();
    metadata.insert(PARQUET_FIELD_ID_META_KEY.to_owned(), id.to_string());
    field.clone().with_metadata(metadata)
}
