//! What a manifest says of a data file's values, in DataFusion's words: to answer `count(*)` without
//! reading, and to order joins.
//!
//! Bounds are only bounds: strings are cut, and another engine may have written wider ones than it
//! had to. So they never answer `min` or `max`. Counts are exact.

use std::collections::{HashMap, HashSet};

use arrow::datatypes::{DataType, FieldRef, Schema};
use datafusion::common::stats::Precision;
use datafusion::common::{ColumnStatistics, ScalarValue, Statistics};
use iceberg::spec::{DataFile, Datum, PrimitiveLiteral, PrimitiveType};

use super::field_ids::id;
use super::file_diff::{FileRows, Rows};
use super::reshape::Defaults;

/// Statistics of the rows that are read of a file: how many there are, and of a column the NULLs where no
/// row is hidden, and about which values. `constants` are values that all rows have in columns that
/// the file leaves out: DataFusion puts them in.
pub(super) fn statistics(rows: &FileRows, schema: &Schema, constants: &Defaults) -> Statistics {
    let file = &rows.file.file;
    let count = rows.count() as usize;
    let column = |field: &FieldRef| {
        let Some(id) = field_id(field) else { return ColumnStatistics::new_unknown() };
        if let Some(constant) = constants.get(&id.to_string()).filter(|_| may_be_absent(file, field, id)) {
            return always(constant, field.data_type(), count);
        }
        let nulls = match rows.rows {
            Rows::All => file.null_value_counts().get(&id),
            // Where there is none, there is none among those that are left.
            Rows::Except(_) | Rows::Only(_) => file.null_value_counts().get(&id).filter(|&&count| count == 0),
        };
        // Bounds leave NaN out, but DataFusion orders it above all numbers.
        let ordered = !field.data_type().is_floating() || file.nan_value_counts().get(&id) == Some(&0);
        let about = |bounds: &HashMap<i32, Datum>| {
            let bounds = ordered.then_some(bounds)?;
            let value = scalar(bounds.get(&id)?)?.cast_to(field.data_type()).ok()?;
            Some(Precision::Inexact(value))
        };
        ColumnStatistics {
            null_count: nulls.map_or(Precision::Absent, |&count| Precision::Exact(count as usize)),
            min_value: about(file.lower_bounds()).unwrap_or(Precision::Absent),
            max_value: about(file.upper_bounds()).unwrap_or(Precision::Absent),
            ..ColumnStatistics::new_unknown()
        }
    };
    Statistics {
        num_rows: Precision::Exact(count),
        total_byte_size: Precision::Inexact(file.file_size_in_bytes() as usize),
        column_statistics: schema.fields().iter().map(column).collect(),
    }
}

/// Whether a manifest says nothing of a column, as of one that the file does not have. Where the file
/// has it nevertheless, its values are the constant's; of floats, equal ones can differ in sign.
fn may_be_absent(file: &DataFile, field: &FieldRef, id: i32) -> bool {
    let told = file.value_counts().contains_key(&id) || file.column_sizes().contains_key(&id);
    !told && !field.data_type().is_floating()
}

fn always(value: &ScalarValue, data_type: &DataType, rows: usize) -> ColumnStatistics {
    let unknown = ColumnStatistics::new_unknown();
    if value.is_null() {
        return ColumnStatistics { null_count: Precision::Exact(rows), ..unknown };
    }
    match value.cast_to(data_type) {
        Ok(value) => ColumnStatistics {
            null_count: Precision::Exact(0),
            min_value: Precision::Exact(value.clone()),
            max_value: Precision::Exact(value),
            ..unknown
        },
        Err(_) => unknown,
    }
}

/// The statistics of all files together, of which the last `constants` columns are the scan's own.
pub(super) fn total<'a>(
    files: impl Iterator<Item = &'a Statistics>,
    columns: usize,
    constants: usize,
) -> Statistics {
    let mut sum: Option<Statistics> = None;
    for file in files {
        let Some(sum) = &mut sum else {
            sum = Some(file.clone());
            continue;
        };
        sum.num_rows = sum.num_rows.add(&file.num_rows);
        sum.total_byte_size = sum.total_byte_size.add(&file.total_byte_size);
        for (column, other) in sum.column_statistics.iter_mut().zip(&file.column_statistics) {
            column.null_count = match (column.null_count, other.null_count) {
                (Precision::Exact(a), Precision::Exact(b)) => Precision::Exact(a + b),
                _ => Precision::Absent,
            };
            column.min_value = either(&column.min_value, &other.min_value, ScalarValue::lt);
            column.max_value = either(&column.max_value, &other.max_value, ScalarValue::gt);
        }
    }
    let Some(mut sum) = sum else { return Statistics::default() };
    for column in &mut sum.column_statistics {
        // A constant of some files only, and bounds of all others: about so.
        column.min_value = std::mem::take(&mut column.min_value).to_inexact();
        column.max_value = std::mem::take(&mut column.max_value).to_inexact();
    }
    // Of the constants a file knows its own value only.
    sum.column_statistics.truncate(columns);
    sum.column_statistics.resize_with(columns + constants, Default::default);
    sum
}

/// Adds how many different values columns have, by the fields' ids: at most as many as there are rows.
pub(super) fn with_distinct(statistics: &mut Statistics, schema: &Schema, counts: &HashMap<i32, u64>) {
    for (field, column) in schema.fields().iter().zip(&mut statistics.column_statistics) {
        if let Some(count) = field_id(field).and_then(|id| counts.get(&id)) {
            let rows = statistics.num_rows.get_value().copied().unwrap_or(usize::MAX);
            column.distinct_count = Precision::Inexact((*count as usize).min(rows));
        }
    }
}

fn either(
    a: &Precision<ScalarValue>,
    b: &Precision<ScalarValue>,
    is_first: fn(&ScalarValue, &ScalarValue) -> bool,
) -> Precision<ScalarValue> {
    match (a.get_value(), b.get_value()) {
        (Some(a), Some(b)) => Precision::Inexact(if is_first(a, b) { a.clone() } else { b.clone() }),
        _ => Precision::Absent,
    }
}

/// Columns of which some file may hold NaN, by field id.
pub(super) fn with_nan<'a>(
    files: impl Iterator<Item = &'a DataFile> + Clone,
    schema: &Schema,
) -> HashSet<String> {
    let floats = schema.fields().iter().filter(|field| field.data_type().is_floating()).filter_map(field_id);
    let may = |id: &i32| files.clone().any(|file| file.nan_value_counts().get(id) != Some(&0));
    floats.filter(may).map(|id| id.to_string()).collect()
}

fn field_id(field: &FieldRef) -> Option<i32> {
    id(field)?.parse().ok()
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
