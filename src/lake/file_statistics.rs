//! What a manifest says of a data file's values, in DataFusion's words: to leave out files that a
//! filter excludes, and to answer `count(*)` without reading.
//!
//! Bounds are only bounds: strings are cut, and another engine may have written wider ones than it
//! had to. So they exclude files and never answer `min` or `max`. Counts are exact.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, UInt64Array};
use arrow::datatypes::{DataType, Schema, SchemaRef};
use datafusion::common::pruning::PruningStatistics;
use datafusion::common::stats::Precision;
use datafusion::common::{Column, ColumnStatistics, ScalarValue, Statistics};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_optimizer::pruning::PruningPredicate;
use iceberg::spec::{DataFile, Datum, PrimitiveLiteral, PrimitiveType};
use parquet::arrow::PARQUET_FIELD_ID_META_KEY;

use super::file_diff::{FileRows, Rows};
use crate::error::Result;

/// For each file, whether it may have rows that pass the filter.
pub(super) fn may_match(
    files: &[FileRows],
    filter: Arc<dyn PhysicalExpr>,
    schema: &SchemaRef,
) -> Result<Vec<bool>> {
    let predicate = PruningPredicate::try_new(filter, schema.clone())?;
    Ok(predicate.prune(&Bounds { files, schema })?)
}

struct Bounds<'a> {
    files: &'a [FileRows],
    schema: &'a Schema,
}

impl Bounds<'_> {
    /// One value a file; NULL where a file has no bound that can be used.
    fn of(&self, column: &Column, bound: fn(&DataFile) -> &HashMap<i32, Datum>) -> Option<ArrayRef> {
        let (id, data_type) = self.column(column)?;
        let unknown = ScalarValue::try_from(data_type).ok()?;
        let values = self.files.iter().map(|rows| {
            let file = &rows.file.file;
            let known = || {
                // Bounds leave NaN out, but DataFusion orders it above all numbers.
                if data_type.is_floating() && file.nan_value_counts().get(&id) != Some(&0) {
                    return None;
                }
                scalar(bound(file).get(&id)?)?.cast_to(data_type).ok()
            };
            known().unwrap_or_else(|| unknown.clone())
        });
        ScalarValue::iter_to_array(values).ok()
    }

    fn column(&self, column: &Column) -> Option<(i32, &DataType)> {
        let field = self.schema.field_with_name(&column.name).ok()?;
        Some((field_id(field)?, field.data_type()))
    }
}

fn field_id(field: &arrow::datatypes::Field) -> Option<i32> {
    field.metadata().get(PARQUET_FIELD_ID_META_KEY)?.parse().ok()
}

impl PruningStatistics for Bounds<'_> {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        self.of(column, DataFile::lower_bounds)
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.of(column, DataFile::upper_bounds)
    }

    fn num_containers(&self) -> usize {
        self.files.len()
    }

    fn null_counts(&self, column: &Column) -> Option<ArrayRef> {
        let (id, _) = self.column(column)?;
        let counts = self.files.iter().map(|rows| rows.file.file.null_value_counts().get(&id).copied());
        Some(Arc::new(counts.collect::<UInt64Array>()))
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        Some(Arc::new(
            self.files.iter().map(|rows| Some(rows.file.file.record_count())).collect::<UInt64Array>(),
        ))
    }

    fn contained(&self, _: &Column, _: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}

/// Statistics of the rows that are read of a file: the number of rows, and of NULLs where none is hidden.
pub(super) fn statistics(rows: &FileRows, schema: &Schema) -> Statistics {
    let columns = schema.fields().iter().map(|field| {
        let nulls = match rows.rows {
            Rows::All => field_id(field).and_then(|id| rows.file.file.null_value_counts().get(&id)),
            Rows::Except(_) | Rows::Only(_) => None,
        };
        let null_count = nulls.map_or(Precision::Absent, |&count| Precision::Exact(count as usize));
        ColumnStatistics { null_count, ..ColumnStatistics::new_unknown() }
    });
    Statistics {
        num_rows: Precision::Exact(rows.count() as usize),
        total_byte_size: Precision::Inexact(rows.file.file.file_size_in_bytes() as usize),
        column_statistics: columns.collect(),
    }
}

/// A bound of a manifest, or a default of a schema, as DataFusion's value.
pub(super) fn scalar(datum: &Datum) -> Option<ScalarValue> {
    literal(datum.literal(), datum.data_type())
}

/// A literal of a type; `None` for what has no use as a bound.
pub(super) fn literal(value: &PrimitiveLiteral, of: &PrimitiveType) -> Option<ScalarValue> {
    use PrimitiveLiteral as V;
    use PrimitiveType as T;
    Some(match (of, value) {
        (T::Boolean, V::Boolean(v)) => ScalarValue::Boolean(Some(*v)),
        (T::Int, V::Int(v)) => ScalarValue::Int32(Some(*v)),
        (T::Long, V::Long(v)) => ScalarValue::Int64(Some(*v)),
        (T::Float, V::Float(v)) => ScalarValue::Float32(Some(v.0)),
        (T::Double, V::Double(v)) => ScalarValue::Float64(Some(v.0)),
        (T::Decimal { precision, scale }, V::Int128(v)) => {
            ScalarValue::Decimal128(Some(*v), u8::try_from(*precision).ok()?, i8::try_from(*scale).ok()?)
        }
        (T::Date, V::Int(v)) => ScalarValue::Date32(Some(*v)),
        (T::Time, V::Long(v)) => ScalarValue::Time64Microsecond(Some(*v)),
        (T::Timestamp, V::Long(v)) => ScalarValue::TimestampMicrosecond(Some(*v), None),
        (T::Timestamptz, V::Long(v)) => ScalarValue::TimestampMicrosecond(Some(*v), Some("UTC".into())),
        (T::TimestampNs, V::Long(v)) => ScalarValue::TimestampNanosecond(Some(*v), None),
        (T::TimestamptzNs, V::Long(v)) => ScalarValue::TimestampNanosecond(Some(*v), Some("UTC".into())),
        (T::String, V::String(v)) => ScalarValue::Utf8(Some(v.clone())),
        (T::Uuid, V::UInt128(v)) => ScalarValue::FixedSizeBinary(16, Some(v.to_be_bytes().to_vec())),
        (T::Fixed(size), V::Binary(v)) => {
            ScalarValue::FixedSizeBinary(i32::try_from(*size).ok()?, Some(v.clone()))
        }
        (T::Binary, V::Binary(v)) => ScalarValue::Binary(Some(v.clone())),
        _ => return None,
    })
}
