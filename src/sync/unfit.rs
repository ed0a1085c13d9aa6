//! Takes the rows aside whose values their columns cannot hold, before anything else looks at a batch.

use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch, RecordBatchOptions};
use arrow::compute::{filter_record_batch, is_not_null, is_null};
use arrow::datatypes::{Field, Schema, SchemaRef};

use super::contract::{Passed, Rejected};
use crate::error::{Error, ErrorKind, Result};
use crate::table::{OP_COLUMN, UNFIT_COLUMN};

/// The rows of a batch that fit, and the others; `schema` is that of the reading.
pub(super) fn apart(batch: RecordBatch, schema: &SchemaRef) -> Result<(RecordBatch, Option<Passed>)> {
    let given = batch.schema();
    let Some((last, fields)) = given.fields().split_last().filter(|(last, _)| last.name() == UNFIT_COLUMN)
    else {
        return Ok((batch, None));
    };
    let places: Vec<usize> = (0..fields.len()).collect();
    let reasons = batch.column(fields.len()).clone();
    let reasons = reasons.as_string_opt::<i32>().ok_or_else(|| {
        Error::new(ErrorKind::Internal, "a batch says oddly what does not fit").with("column", last.name())
    })?;
    let all = batch.project(&places)?;
    let good = filter_record_batch(&all, &is_null(reasons)?)?;
    // What is left is as the source's schema says again.
    let fields: Vec<Field> = fields
        .iter()
        .map(|field| match schema.field_with_name(field.name()) {
            Ok(own) => own.clone(),
            Err(_) => field.as_ref().clone(),
        })
        .collect();
    let log = fields.iter().any(|field| field.name() == OP_COLUMN);
    let good = match log {
        // Of a deleted row nothing but the key is there.
        true => good,
        false => {
            let options = RecordBatchOptions::new().with_row_count(Some(good.num_rows()));
            let schema = Arc::new(Schema::new(fields));
            RecordBatch::try_new_with_options(schema, good.columns().to_vec(), &options)?
        }
    };
    let columns: Vec<usize> =
        places.into_iter().filter(|place| given.field(*place).name() != OP_COLUMN).collect();
    let rows = filter_record_batch(&batch.project(&columns)?, &is_not_null(reasons)?)?;
    let rejected = Rejected { rows, reasons: reasons.iter().flatten().map(str::to_owned).collect() };
    let none = RecordBatch::new_empty(rejected.rows.schema());
    Ok((good, Some(Passed { rows: none, rejected: Some(rejected) })))
}

/// Rows that nobody takes must not be lost.
pub(super) fn nowhere() -> Error {
    Error::new(ErrorKind::Internal, "rows are to go aside, and no letters are open")
}

/// A sentence for the user.
pub(super) fn note(rows: u64) -> Option<String> {
    (rows > 0).then(|| {
        format!("{rows} rows have values that their columns cannot hold, and went aside: `frazil dlq list`")
    })
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array, StringArray};
    use arrow::datatypes::DataType;

    use super::*;

    #[test]
    fn rows_that_do_not_fit_go_aside_with_their_reasons() {
        let schema: SchemaRef = Arc::new(Schema::new(vec![
            Field::new("id", DataType::Int64, false),
            Field::new("n", DataType::Int64, false),
        ]));
        let batch = RecordBatch::try_from_iter_with_nullable([
            ("id", Arc::new(Int64Array::from(vec![1, 2, 3])) as ArrayRef, true),
            ("n", Arc::new(Int64Array::from(vec![Some(1), None, Some(3)])), true),
            (UNFIT_COLUMN, Arc::new(StringArray::from(vec![None, Some("why"), None])), true),
        ])
        .unwrap();
        let (good, aside) = apart(batch, &schema).unwrap();
        assert_eq!((good.schema(), good.num_rows()), (schema.clone(), 2));
        let rejected = aside.unwrap().rejected.unwrap();
        assert_eq!((rejected.rows.num_rows(), rejected.reasons), (1, vec!["why".to_owned()]));
        let (all, aside) = apart(good.clone(), &schema).unwrap();
        assert!(aside.is_none() && all == good);
    }
}
