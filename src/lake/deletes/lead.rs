//! Of a key of several columns, the one that rules out most rows by itself.
//!
//! ```text
//! (order 17, line 3) ─▶ order: 1 of 100 rows may have a key ─▶ line: read of those alone
//! ```

use arrow::array::{Array, ArrayRef};

use super::filter::Filter;
use super::packed::{Digit, integers};
use super::values::ColumnValues;
use crate::error::Result;

/// A column leads if it has at least this many possible values for each that the keys have: it rules out
/// most rows then, and reading the others for the rest alone pays.
const POSSIBLE_FOR_EACH: u64 = 16;

/// The leading column.
pub(super) struct Lead {
    /// Its place in the key.
    pub(super) column: usize,
    digit: Digit,
    filter: Filter,
}

impl Lead {
    /// The leading column of packed keys with these values; `None` where there is none.
    pub(super) fn of(
        digits: &[Digit],
        values: &[ColumnValues],
        keys: impl Iterator<Item = u64>,
        count: usize,
    ) -> Option<Self> {
        if digits.len() < 2 {
            return None;
        }
        let distinct = |column: usize| values[column].distinct().map(|distinct| (distinct, column));
        let (distinct, column) = (0..digits.len()).filter_map(distinct).max()?;
        let digit = digits[column];
        if digit.span() / (distinct as u64).max(1) < POSSIBLE_FOR_EACH {
            return None;
        }
        let filter = Filter::of(keys.map(|key| digit.part(key)), count);
        Some(Self { column, digit, filter })
    }

    /// Calls `found` with each row that may have one of the keys, and this column's part of its packed key.
    pub(super) fn candidates(&self, values: &ArrayRef, mut found: impl FnMut(usize, u64)) -> Result<()> {
        let values = integers(values)?;
        let no_nulls = values.null_count() == 0;
        for (row, value) in values.values().iter().enumerate() {
            if let Some(part) = self.digit.part_of(*value)
                && self.filter.may_have(part)
                && (no_nulls || values.is_valid(row))
            {
                found(row, part);
            }
        }
        Ok(())
    }

    /// The digits of the other columns.
    pub(super) fn others<'a>(&self, digits: &'a [Digit]) -> impl Iterator<Item = &'a Digit> {
        let lead = self.column;
        digits.iter().enumerate().filter(move |(column, _)| *column != lead).map(|(_, digit)| digit)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ahash::RandomState;
    use arrow::array::{Int32Array, Int64Array};
    use arrow::compute::take;
    use arrow::datatypes::DataType;
    use proptest::prelude::*;

    use crate::lake::deletes::keys::{KeyColumn, KeySetBuilder, Pass};

    use super::*;

    fn arrays(rows: &[(i32, Option<i64>)]) -> Vec<ArrayRef> {
        vec![
            Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| row.0))),
            Arc::new(rows.iter().map(|row| row.1).collect::<Int64Array>()),
        ]
    }

    proptest! {
        /// What the leading column leaves, and the other columns find, is what all columns find.
        #[test]
        fn in_two_steps_as_in_one(
            new in prop::collection::vec((0i32..3, 0i64..40), 1..40),
            old in prop::collection::vec((-1i32..4, prop::option::of(-5i64..50)), 0..200),
            passes in 1u64..3,
        ) {
            let column = |(i, data_type)| KeyColumn {
                name: format!("k{i}"), field_id: i, data_type, names: Vec::new(),
            };
            let columns: Arc<[_]> =
                [(1, DataType::Int32), (2, DataType::Int64)].into_iter().map(column).collect();
            let ranges = [(0, 2), (0, 39_000)];
            let new: Vec<_> = new.into_iter().map(|(a, b)| (a, Some(b * 1000))).collect();
            let old: Vec<_> = old.into_iter().map(|(a, b)| (a, b.map(|b| b * 1000))).collect();
            let old = arrays(&old);
            let hasher = RandomState::new();
            for number in 0..passes {
                let pass = Pass { number, of: passes, hasher: hasher.clone() };
                let mut builder = KeySetBuilder::new(columns.clone(), Some(&ranges), pass, 0).unwrap();
                builder.insert(&arrays(&new), 0).unwrap();
                let (set, _) = builder.finish().unwrap();
                let mut expected = Vec::new();
                set.find(&old, |row, _| expected.push(row as u64)).unwrap();

                // All keys may have fallen to the other pass.
                let Some(lead) = set.lead() else {
                    prop_assert!(set.len() == 0 || set.values(0).distinct() > set.values(1).distinct());
                    continue;
                };
                let (mut rows, mut parts) = (Vec::new(), Vec::new());
                lead.candidates(&old[lead.column], |row, part| {
                    rows.push(row as u64);
                    parts.push(part);
                }).unwrap();
                let rest = take(&old[1 - lead.column], &arrow::array::UInt64Array::from(rows.clone()), None);
                let mut found = Vec::new();
                set.find_rest(lead, &parts, &[rest.unwrap()], |row| found.push(rows[row])).unwrap();
                prop_assert_eq!(found, expected);
            }
        }
    }
}
