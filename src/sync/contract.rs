//! What a stream's schema contract does to rows: columns that the lake does not have, and values that
//! its columns cannot hold, are left out and counted.
//!
//! ```text
//! batch ─▶ fates ─┬─ evolve, freeze: all columns go in, nothing to do
//!                 ├─ discard_value:  columns and values without a place become NULL
//!                 └─ discard_row:    rows that have such values go, as dead letters
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions};
use arrow::compute::kernels::cmp::not_distinct;
use arrow::compute::{
    CastOptions, and, cast_with_options, filter_record_batch, is_not_null, is_null, not, nullif,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use schemars::JsonSchema;
use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};
use crate::lake::{Evolution, Fate, SchemaContract};

/// What was left out of a pass by the stream's contract.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct LeftOut {
    /// Whole rows.
    pub rows: u64,
    /// Values by the source's column: what they were in, or what their rows were left out for.
    pub values: BTreeMap<String, u64>,
}

impl LeftOut {
    /// Whether nothing was.
    pub fn is_empty(&self) -> bool {
        self.rows == 0 && self.values.is_empty()
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.rows += other.rows;
        for (column, count) in &other.values {
            *self.values.entry(column.clone()).or_default() += count;
        }
    }

    fn count(&mut self, column: &str, values: usize) {
        if values > 0 {
            *self.values.entry(column.to_owned()).or_default() += values as u64;
        }
    }

    /// A sentence for the user.
    pub(super) fn note(&self, contract: SchemaContract) -> Option<String> {
        if self.is_empty() {
            return None;
        }
        let values: Vec<_> =
            self.values.iter().map(|(column, count)| format!("`{column}` {count}")).collect();
        let policy = contract.name();
        let of = values.join(", ");
        Some(match self.rows {
            0 => format!("values left out by `schema: {policy}`: {of}"),
            rows => format!("{rows} rows left out by `schema: {policy}`, for values of {of}"),
        })
    }
}

/// A batch that came to a gate.
pub(super) struct Passed {
    /// What goes in, in the lake's names.
    pub(super) rows: RecordBatch,
    /// Rows that do not.
    pub(super) rejected: Option<Rejected>,
}

/// Rows that are left out whole.
pub(super) struct Rejected {
    /// As they came.
    pub(super) rows: RecordBatch,
    /// Of each, why. Names and types, no values.
    pub(super) reasons: Vec<String>,
}

/// Lets rows into the lake as far as the contract allows.
#[derive(Debug, Clone)]
pub(super) struct Gate {
    contract: SchemaContract,
    /// By the source's name.
    fates: BTreeMap<String, Fate>,
    /// The lake's columns that cannot be NULL.
    required: Vec<String>,
    key: Vec<String>,
}

impl Gate {
    /// `None` when all values go into columns of their own names.
    pub(super) fn new(source: &SchemaRef, evolution: &Evolution, contract: SchemaContract) -> Option<Self> {
        let fates: BTreeMap<_, _> = source
            .fields()
            .iter()
            .map(|field| field.name().clone())
            .zip(evolution.fates.iter().cloned())
            .collect();
        let discards = matches!(contract, SchemaContract::DiscardRow | SchemaContract::DiscardValue);
        let required: Vec<String> = evolution
            .after
            .fields()
            .iter()
            .filter(|field| !field.is_nullable())
            .map(|field| field.name().clone())
            .collect();
        discards.then(|| Self { contract, fates, required, key: evolution.key.clone() })
    }

    /// The batch as far as it goes in; adds up what does not.
    pub(super) fn pass(&self, batch: &RecordBatch, left_out: &mut LeftOut) -> Result<Passed> {
        let mut fields: Vec<Arc<Field>> = Vec::new();
        let mut columns: Vec<ArrayRef> = Vec::new();
        // Of columns with values that have no place: why, and which rows are not meant.
        let mut misfits: Vec<(String, BooleanArray)> = Vec::new();
        let whole_rows = self.contract == SchemaContract::DiscardRow;
        let mut misfit = |fits: BooleanArray, column: &str, why: &str, left_out: &mut LeftOut| {
            left_out.count(column, fits.len() - fits.true_count());
            if whole_rows {
                misfits.push((format!("`{column}` {why}"), fits));
            }
        };
        for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
            let name = field.name();
            let fate = self.fates.get(name).ok_or_else(|| {
                Error::new(ErrorKind::Internal, "a batch has a column that was not announced")
                    .with("column", name)
            })?;
            let (into, column) = match fate {
                Fate::LeftOut => {
                    if column.null_count() < column.len() {
                        misfit(is_null(column)?, name, "has no place in the lake", left_out);
                    }
                    continue;
                }
                Fate::Into(into) => (into, column.clone()),
                Fate::IfItFits(into, kind) => {
                    let (narrow, fits) = narrowed(column, kind)?;
                    if fits.true_count() < fits.len() {
                        if !whole_rows && self.required.contains(into) {
                            return Err(Error::new(
                                ErrorKind::Data,
                                "a value does not fit a column that is required, so that it cannot be left out",
                            )
                            .with("column", name)
                            .hint("set `schema: evolve` to widen the column, or `discard_row`"));
                        }
                        misfit(fits, name, &format!("does not fit {kind}"), left_out);
                    }
                    (into, narrow)
                }
            };
            // A NULL in the key is refused by the writer, whatever the contract.
            if whole_rows
                && column.null_count() > 0
                && self.required.contains(into)
                && !self.key.contains(into)
            {
                misfit(is_not_null(&column)?, name, "is NULL and required", left_out);
            }
            fields.push(Arc::new(
                field.as_ref().clone().with_name(into).with_data_type(column.data_type().clone()),
            ));
            columns.push(column);
        }
        let fields: Vec<Field> =
            fields.iter().map(|field| field.as_ref().clone().with_nullable(true)).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let passed = RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)?;
        let mut stays: Option<BooleanArray> = None;
        for (_, fits) in &misfits {
            stays = Some(stays.map_or_else(|| Ok(fits.clone()), |before| and(&before, fits))?);
        }
        let Some(stays) = stays.filter(|stays| stays.true_count() < stays.len()) else {
            return Ok(Passed { rows: passed, rejected: None });
        };
        left_out.rows += (stays.len() - stays.true_count()) as u64;
        let rejected = Rejected {
            rows: filter_record_batch(batch, &not(&stays)?)?,
            reasons: (0..stays.len())
                .filter(|row| !stays.value(*row))
                .map(|row| {
                    let whys =
                        misfits.iter().filter(|(_, fits)| !fits.value(row)).map(|(why, _)| why.as_str());
                    whys.collect::<Vec<_>>().join("; ")
                })
                .collect(),
        };
        Ok(Passed { rows: filter_record_batch(&passed, &stays)?, rejected: Some(rejected) })
    }

    /// Whether rows may be left out whole.
    pub(super) fn rejects_rows(&self) -> bool {
        self.contract == SchemaContract::DiscardRow
    }

    /// The lake's name for a column that comes.
    pub(super) fn goes_into(&self, column: &str) -> Option<&str> {
        match self.fates.get(column)? {
            Fate::Into(name) | Fate::IfItFits(name, _) => Some(name),
            Fate::LeftOut => None,
        }
    }
}

/// The values that are values of `kind` too, NULL for the others; and which of all those are.
fn narrowed(column: &ArrayRef, kind: &DataType) -> Result<(ArrayRef, BooleanArray)> {
    let options = CastOptions { safe: true, ..CastOptions::default() };
    let narrow = cast_with_options(column, kind, &options)?;
    let back = cast_with_options(&narrow, column.data_type(), &options)?;
    let fits = not_distinct(&back, column)?;
    let narrow = nullif(&narrow, &not(&fits)?)?;
    Ok((narrow, fits))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{AsArray, Int64Array, StringArray};
    use arrow::datatypes::{Float32Type, Int32Type};

    fn gate(contract: SchemaContract) -> Gate {
        let fates = [
            ("id", Fate::Into("id".into())),
            ("n", Fate::IfItFits("n".into(), DataType::Int32)),
            ("renamed", Fate::Into("name".into())),
            ("new", Fate::LeftOut),
        ];
        let fates = fates.into_iter().map(|(name, fate)| (name.to_owned(), fate)).collect();
        Gate { contract, fates, required: vec!["id".into()], key: vec!["id".into()] }
    }

    fn batch() -> RecordBatch {
        let text = |values: [Option<&str>; 4]| Arc::new(StringArray::from(values.to_vec())) as ArrayRef;
        RecordBatch::try_from_iter([
            ("id", Arc::new(Int64Array::from(vec![1, 2, 3, 4])) as ArrayRef),
            ("n", Arc::new(Int64Array::from(vec![Some(1), Some(1 << 40), None, Some(-7)]))),
            ("renamed", text([Some("a"), None, Some("c"), Some("d")])),
            ("new", text([None, None, None, Some("x")])),
        ])
        .unwrap()
    }

    #[test]
    fn values_without_a_place_are_left_out() {
        let mut left_out = LeftOut::default();
        let passed = gate(SchemaContract::DiscardValue).pass(&batch(), &mut left_out).unwrap().rows;
        let names: Vec<_> = passed.schema_ref().fields().iter().map(|field| field.name().clone()).collect();
        assert_eq!(names, ["id", "n", "name"]);
        let n: Vec<_> = passed.column(1).as_primitive::<Int32Type>().iter().collect();
        assert_eq!(n, [Some(1), None, None, Some(-7)]);
        let values = BTreeMap::from([("n".to_owned(), 1), ("new".to_owned(), 1)]);
        assert_eq!(left_out, LeftOut { rows: 0, values });
    }

    #[test]
    fn rows_with_such_values_are_left_out() {
        let mut left_out = LeftOut::default();
        let Passed { rows: passed, rejected } =
            gate(SchemaContract::DiscardRow).pass(&batch(), &mut left_out).unwrap();
        let rejected = rejected.unwrap();
        assert_eq!(
            rejected.rows,
            arrow::compute::take_record_batch(&batch(), &arrow::array::UInt32Array::from(vec![1, 3]))
                .unwrap()
        );
        assert_eq!(rejected.reasons, ["`n` does not fit Int32", "`new` has no place in the lake"]);
        assert_eq!(passed.column(0).as_primitive::<arrow::datatypes::Int64Type>().values(), &[1, 3]);
        let values = BTreeMap::from([("n".to_owned(), 1), ("new".to_owned(), 1)]);
        assert_eq!(left_out, LeftOut { rows: 2, values });
    }

    #[test]
    fn a_double_fits_a_float_only_when_nothing_is_lost() {
        let column: ArrayRef = Arc::new(arrow::array::Float64Array::from(vec![
            Some(0.5),
            Some(0.1),
            Some(f64::NAN),
            None,
            Some(1e300),
        ]));
        let (narrow, fits) = narrowed(&column, &DataType::Float32).unwrap();
        assert_eq!(fits.iter().map(Option::unwrap).collect::<Vec<_>>(), [true, false, true, true, false]);
        assert_eq!(narrow.as_primitive::<Float32Type>().value(0), 0.5);
        assert_eq!(narrow.null_count(), 3);
    }
}
