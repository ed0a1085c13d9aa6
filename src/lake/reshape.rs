//! Makes a file's column what the table's column is by now: the same field ids, other names, other
//! places, wider types; at any depth.
//!
//! Iceberg's promotions never change a value. Whatever else a file has in place of a column's type is
//! refused: no value becomes another, or NULL, on the way.

use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, ListArray, MapArray, RecordBatch, StructArray, new_null_array};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, TimeUnit};
use datafusion::common::ScalarValue;
use datafusion::error::Result as DFResult;
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::PhysicalExpr;

use super::field_ids::id;
use crate::error::{Error, ErrorKind, Result};

/// What files that lack a field hold in it, by field id.
pub(super) type Defaults = HashMap<String, ScalarValue>;

/// A column of a file as the table's column. `from` is its type with the field ids that it has in the
/// file or by the name mapping.
pub(super) fn reshape(
    array: &ArrayRef,
    from: &DataType,
    to: &Field,
    defaults: &Defaults,
) -> Result<ArrayRef> {
    if array.data_type() == to.data_type() {
        return Ok(array.clone());
    }
    match (from, to.data_type()) {
        (DataType::Struct(given), DataType::Struct(fields)) => {
            let array = array.as_struct();
            let columns = children(array, given, fields, defaults)?;
            let nulls = array.nulls().cloned();
            Ok(Arc::new(StructArray::try_new_with_length(fields.clone(), columns, nulls, array.len())?))
        }
        (DataType::List(given), DataType::List(element)) => {
            let array: &ListArray = array.as_list();
            let values = reshape(array.values(), given.data_type(), element, defaults)?;
            let (offsets, nulls) = (array.offsets().clone(), array.nulls().cloned());
            Ok(Arc::new(ListArray::try_new(element.clone(), offsets, values, nulls)?))
        }
        (DataType::LargeList(given) | DataType::FixedSizeList(given, _), DataType::List(_)) => {
            // The same elements in the usual layout first.
            let plain = DataType::List(given.clone());
            reshape(&cast(array, &plain, to)?, &plain, to, defaults)
        }
        (DataType::Map(given, _), DataType::Map(entries, sorted)) => {
            let array = array.as_map();
            let (DataType::Struct(given), DataType::Struct(fields)) =
                (given.data_type(), entries.data_type())
            else {
                return Err(mismatch(from, to));
            };
            let ([given_key, given_value], [key, value]) = (given.as_ref(), fields.as_ref()) else {
                return Err(mismatch(from, to));
            };
            let columns = vec![
                reshape(array.keys(), given_key.data_type(), key, defaults)?,
                reshape(array.values(), given_value.data_type(), value, defaults)?,
            ];
            let rows = StructArray::try_new(fields.clone(), columns, None)?;
            let (offsets, nulls) = (array.offsets().clone(), array.nulls().cloned());
            Ok(Arc::new(MapArray::try_new(entries.clone(), offsets, rows, nulls, *sorted)?))
        }
        (from, wanted) if keeps_values(from, wanted) => cast(array, wanted, to),
        _ => Err(mismatch(from, to)),
    }
}

/// The fields of a struct: those that the file has by id, the others as their default or NULL.
fn children(
    array: &StructArray,
    given: &Fields,
    fields: &Fields,
    defaults: &Defaults,
) -> Result<Vec<ArrayRef>> {
    let child = |field: &FieldRef| {
        let place = given.iter().position(|other| id(other).is_some() && id(other) == id(field));
        match (place, id(field).and_then(|id| defaults.get(id))) {
            (Some(place), _) => reshape(array.column(place), given[place].data_type(), field, defaults),
            (None, Some(default)) => Ok(default.to_array_of_size(array.len())?),
            (None, None) if field.is_nullable() || array.is_empty() => {
                Ok(new_null_array(field.data_type(), array.len()))
            }
            (None, None) => Err(missing(field)),
        }
    };
    fields.iter().map(child).collect()
}

/// That a file lacks what it must have.
pub(super) fn missing(field: &Field) -> Error {
    Error::new(ErrorKind::Corrupt, "a data file lacks a required column that has no default")
        .with("column", field.name())
        .hint("the file does not fit the table: rewrite it with the engine that wrote it")
}

fn cast(array: &ArrayRef, wanted: &DataType, to: &Field) -> Result<ArrayRef> {
    // Not `safe`: a value that does not fit is an error, not a NULL.
    let exact = CastOptions { safe: false, ..CastOptions::default() };
    cast_with_options(array, wanted, &exact).map_err(|source| {
        Error::new(ErrorKind::Corrupt, format!("a value in a data file does not fit {wanted}"))
            .with("column", to.name())
            .because(source)
    })
}

/// That a file has a column in a type that the column never had.
pub(super) fn mismatch(found: &DataType, to: &Field) -> Error {
    let message = format!("a data file has {found} in place of {}", to.data_type());
    Error::new(ErrorKind::Unsupported, message)
        .with("column", to.name())
        .hint("rewrite the table's data files with the engine that wrote them")
}

/// Whether every value of a file's type is the same value in the table's: Iceberg's promotions, and
/// other layouts of the same type.
pub(super) fn keeps_values(from: &DataType, to: &DataType) -> bool {
    use DataType as T;
    match (from, to) {
        (from, to) if from == to => true,
        (T::Int8 | T::Int16 | T::UInt8 | T::UInt16, T::Int32 | T::Int64) => true,
        (T::Int32 | T::UInt32, T::Int64) | (T::Float32, T::Float64) => true,
        (
            T::Decimal32(p, s) | T::Decimal64(p, s) | T::Decimal128(p, s) | T::Decimal256(p, s),
            T::Decimal128(precision, scale),
        ) => s == scale && p <= precision,
        (T::Utf8 | T::LargeUtf8 | T::Utf8View, T::Utf8 | T::Utf8View) => true,
        // Old writers leave out the mark that says text; what is no text fails in the cast.
        (T::Binary | T::LargeBinary | T::BinaryView, T::Utf8 | T::Utf8View) => true,
        (T::Binary | T::LargeBinary | T::BinaryView, T::Binary | T::BinaryView) => true,
        (T::Date32, T::Timestamp(_, None)) => true,
        (T::Time32(_), T::Time64(TimeUnit::Microsecond)) => true,
        (T::Timestamp(unit, from), T::Timestamp(wanted, to)) => {
            // The oldest timestamps of Parquet have no zone and mean UTC.
            let zone = from.is_some() == to.is_some() || from.is_none();
            zone && fineness(*unit) <= fineness(*wanted)
        }
        (T::Dictionary(_, value), to) => keeps_values(value, to),
        _ => false,
    }
}

fn fineness(unit: TimeUnit) -> u8 {
    match unit {
        TimeUnit::Second => 0,
        TimeUnit::Millisecond => 1,
        TimeUnit::Microsecond => 2,
        TimeUnit::Nanosecond => 3,
    }
}

/// [`reshape`] within a plan.
#[derive(Debug)]
pub(super) struct Reshape {
    pub(super) input: Arc<dyn PhysicalExpr>,
    /// The type of the input, with its field ids.
    pub(super) from: DataType,
    pub(super) to: FieldRef,
    pub(super) defaults: Arc<Defaults>,
}

impl PartialEq for Reshape {
    fn eq(&self, other: &Self) -> bool {
        self.input.eq(&other.input) && self.to == other.to
    }
}

impl Eq for Reshape {}

impl Hash for Reshape {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.input.hash(state);
        self.to.hash(state);
    }
}

impl fmt::Display for Reshape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "by_field_id({})", self.input)
    }
}

impl PhysicalExpr for Reshape {
    fn return_field(&self, _: &Schema) -> DFResult<FieldRef> {
        Ok(self.to.clone())
    }

    fn evaluate(&self, batch: &RecordBatch) -> DFResult<ColumnarValue> {
        let array = self.input.evaluate(batch)?.into_array(batch.num_rows())?;
        Ok(ColumnarValue::Array(reshape(&array, &self.from, &self.to, &self.defaults)?))
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.input]
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn PhysicalExpr>>,
    ) -> DFResult<Arc<dyn PhysicalExpr>> {
        let input = children.pop().expect("a reshape has one child");
        let (from, to, defaults) = (self.from.clone(), self.to.clone(), self.defaults.clone());
        Ok(Arc::new(Self { input, from, to, defaults }))
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
