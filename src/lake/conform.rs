//! Makes a batch fit a table: columns by name, missing ones NULL, harmless differences of type
//! evened out. Anything that could change a value is refused.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, ListArray, MapArray, RecordBatch, RecordBatchOptions, StructArray,
    new_null_array,
};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, FieldRef, Fields, SchemaRef, TimeUnit};
use arrow::error::ArrowError;
use arrow::util::display::FormatOptions;

use crate::error::{Error, ErrorKind, Result};

/// Fits batches to one schema. The plan is made once for each schema that comes.
pub(super) struct Conform {
    wanted: SchemaRef,
    plan: Option<(SchemaRef, Vec<Step>)>,
}

/// How one column of the table is made.
#[derive(Clone, Copy)]
enum Step {
    Take(usize),
    Cast(usize),
    Null,
}

impl Conform {
    /// For batches of a table whose files have this schema.
    pub(super) fn new(wanted: SchemaRef) -> Self {
        Self { wanted, plan: None }
    }

    /// The batch with exactly the table's columns.
    pub(super) fn apply(&mut self, batch: &RecordBatch) -> Result<RecordBatch> {
        let given = batch.schema_ref();
        let known =
            self.plan.as_ref().is_some_and(|(schema, _)| Arc::ptr_eq(schema, given) || schema == given);
        if !known {
            self.plan = Some((given.clone(), plan(&self.wanted, given)?));
        }
        let (_, steps) = self.plan.as_ref().expect("just planned");
        let mut columns = Vec::with_capacity(steps.len());
        for (step, field) in steps.iter().zip(self.wanted.fields()) {
            let column: ArrayRef = match *step {
                Step::Take(i) => batch.column(i).clone(),
                Step::Cast(i) => fitted(batch.column(i), field.data_type()).map_err(|source| {
                    Error::new(ErrorKind::Data, format!("a value does not fit {}", field.data_type()))
                        .with("column", field.name())
                        .because(source)
                })?,
                Step::Null => new_null_array(field.data_type(), batch.num_rows()),
            };
            if !field.is_nullable() && column.logical_null_count() > 0 {
                return Err(Error::new(ErrorKind::Data, "NULL in a column that is required")
                    .with("column", field.name())
                    .hint("a key must not be NULL: choose another `primary_key`, or `mode: append`"));
            }
            columns.push(column);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        Ok(RecordBatch::try_new_with_options(self.wanted.clone(), columns, &options)?)
    }
}

fn plan(wanted: &SchemaRef, given: &SchemaRef) -> Result<Vec<Step>> {
    for field in given.fields() {
        if wanted.column_with_name(field.name()).is_none() {
            return Err(Error::new(ErrorKind::Internal, "a batch has a column that the table does not have")
                .with("column", field.name()));
        }
    }
    let steps = wanted.fields().iter().map(|field| match given.column_with_name(field.name()) {
        Some((i, from)) if from.data_type() == field.data_type() => Ok(Step::Take(i)),
        Some((i, from)) if is_harmless(from.data_type(), field.data_type()) => Ok(Step::Cast(i)),
        Some((_, from)) => Err(Error::new(
            ErrorKind::Internal,
            format!("a batch has {} where the table has {}", from.data_type(), field.data_type()),
        )
        .with("column", field.name())),
        None if field.is_nullable() => Ok(Step::Null),
        None => Err(Error::new(ErrorKind::Schema, "a required column is missing")
            .with("column", field.name())
            .hint("a key column cannot be left out or dropped")),
    });
    steps.collect()
}

/// A column in another type: fields of a struct by name, missing ones NULL.
fn fitted(column: &ArrayRef, to: &DataType) -> std::result::Result<ArrayRef, ArrowError> {
    use DataType as D;
    let nulls = column.nulls().cloned();
    Ok(match (column.data_type(), to) {
        (from, to) if from == to => column.clone(),
        (D::Struct(_), D::Struct(fields)) => {
            let from = column.as_struct();
            let field = |field: &FieldRef| match from.column_by_name(field.name()) {
                Some(column) => fitted(column, field.data_type()),
                None => Ok(new_null_array(field.data_type(), from.len())),
            };
            let columns = fields.iter().map(field).collect::<std::result::Result<Vec<_>, _>>()?;
            Arc::new(StructArray::try_new_with_length(fields.clone(), columns, nulls, from.len())?)
        }
        (D::List(_), D::List(element)) => {
            let from = column.as_list::<i32>();
            let values = fitted(from.values(), element.data_type())?;
            Arc::new(ListArray::try_new(element.clone(), from.offsets().clone(), values, nulls)?)
        }
        (D::Map(..), D::Map(entries, sorted)) => {
            let from = column.as_map();
            let D::Struct(pair) = entries.data_type() else {
                return Err(ArrowError::CastError("the entries of a map are no struct".to_owned()));
            };
            let columns =
                vec![fitted(from.keys(), pair[0].data_type())?, fitted(from.values(), pair[1].data_type())?];
            let inner = StructArray::try_new(pair.clone(), columns, None)?;
            Arc::new(MapArray::try_new(entries.clone(), from.offsets().clone(), inner, nulls, *sorted)?)
        }
        (D::LargeList(element) | D::ListView(element) | D::LargeListView(element), D::List(_))
        | (D::FixedSizeList(element, _), D::List(_)) => {
            fitted(&cast_with_options(column, &D::List(element.clone()), &EXACT)?, to)?
        }
        (_, to) => cast_with_options(column, to, &EXACT)?,
    })
}

/// Not `safe`: a value that does not fit is an error, not a NULL.
const EXACT: CastOptions<'static> = CastOptions { safe: false, format_options: FormatOptions::new() };

/// Whether every value of `from` is the same value as `to`, or the cast says that one is not.
fn is_harmless(from: &DataType, to: &DataType) -> bool {
    use DataType as D;
    match (from, to) {
        (from, to) if from == to => true,
        (D::Int8 | D::Int16 | D::UInt8 | D::UInt16, D::Int32 | D::Int64) => true,
        (D::Int32 | D::UInt32, D::Int64) => true,
        (D::Float16, D::Float32 | D::Float64) | (D::Float32, D::Float64) => true,
        (D::Decimal32(_, from) | D::Decimal64(_, from) | D::Decimal128(_, from), D::Decimal128(_, to)) => {
            from == to
        }
        (D::Utf8 | D::LargeUtf8 | D::Utf8View, D::Utf8) => true,
        (D::Binary | D::LargeBinary | D::BinaryView, D::Binary) => true,
        (D::Time32(_), D::Time64(TimeUnit::Microsecond)) => true,
        // The zone is only how an instant is shown; without one it is no instant.
        (D::Timestamp(TimeUnit::Nanosecond, from), D::Timestamp(TimeUnit::Nanosecond, to)) => {
            from.is_some() == to.is_some()
        }
        (D::Timestamp(TimeUnit::Nanosecond, _), _) => false,
        (D::Timestamp(_, from), D::Timestamp(TimeUnit::Microsecond | TimeUnit::Nanosecond, to)) => {
            from.is_some() == to.is_some()
        }
        (D::Dictionary(_, value), to) => is_harmless(value, to),
        (
            D::List(from)
            | D::LargeList(from)
            | D::ListView(from)
            | D::LargeListView(from)
            | D::FixedSizeList(from, _),
            D::List(to),
        ) => is_harmless(from.data_type(), to.data_type()),
        (D::Struct(from), D::Struct(to)) => {
            let has = |fields: &Fields, name: &str| fields.iter().any(|field| field.name() == name);
            from.iter().all(|field| has(to, field.name()))
                && to.iter().all(|field| match from.iter().find(|other| other.name() == field.name()) {
                    Some(from) => is_harmless(from.data_type(), field.data_type()),
                    None => field.is_nullable(),
                })
        }
        (D::Map(from, _), D::Map(to, _)) => match (from.data_type(), to.data_type()) {
            (D::Struct(from), D::Struct(to)) => {
                from.iter().zip(to).all(|(from, to)| is_harmless(from.data_type(), to.data_type()))
            }
            _ => false,
        },
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Int16Array, Int64Array, ListArray, StringViewArray};
    use arrow::datatypes::{Field, Int32Type, Schema};

    fn wanted() -> SchemaRef {
        let element = Field::new("element", DataType::Int32, true)
            .with_metadata([("PARQUET:field_id".to_owned(), "9".to_owned())].into());
        Arc::new(Schema::new(vec![
            Field::new("id", DataType::Int64, false),
            Field::new("small", DataType::Int32, true),
            Field::new("name", DataType::Utf8, true),
            Field::new("list", DataType::List(element.into()), true),
            Field::new("new", DataType::Float64, true),
        ]))
    }

    #[test]
    fn columns_are_matched_by_name_and_evened_out() {
        let list = ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1), None]), None]);
        let batch = RecordBatch::try_from_iter([
            ("name", Arc::new(StringViewArray::from(vec!["a", "b"])) as ArrayRef),
            ("list", Arc::new(list)),
            ("small", Arc::new(Int16Array::from(vec![1, -2]))),
            ("id", Arc::new(Int64Array::from(vec![1, 2]))),
        ])
        .unwrap();
        let fitted = Conform::new(wanted()).apply(&batch).unwrap();
        assert_eq!(fitted.schema(), wanted());
        assert_eq!(fitted.column(1).as_primitive::<Int32Type>().values(), &[1, -2]);
        assert_eq!(fitted.column(3).as_list::<i32>().value(0).len(), 2);
        assert_eq!(fitted.column(4).null_count(), 2);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let only = |name: &str, column: ArrayRef| RecordBatch::try_from_iter([(name, column)]).unwrap();
        let refused = |batch| Conform::new(wanted()).apply(&batch).unwrap_err().kind();
        assert_eq!(refused(only("more", Arc::new(Int64Array::from(vec![1])))), ErrorKind::Internal);
        let narrowed = RecordBatch::try_from_iter([
            ("id", Arc::new(Int64Array::from(vec![1])) as ArrayRef),
            ("small", Arc::new(Int64Array::from(vec![1]))),
        ]);
        assert_eq!(refused(narrowed.unwrap()), ErrorKind::Internal);
        assert_eq!(refused(only("name", Arc::new(StringViewArray::from(vec!["a"])))), ErrorKind::Schema);
        assert_eq!(refused(only("id", Arc::new(Int64Array::from(vec![None, Some(1)])))), ErrorKind::Data);
    }
}
