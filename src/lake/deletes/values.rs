//! Which values the keys have in one column, and whether a range of values can hold any of them.
//!
//! This is what prunes: the bounds of files in manifests, and the minima and maxima of row groups and
//! pages in Parquet footers, are all asked the same question. The answer "no" is certain.

use std::borrow::Borrow;

use arrow::array::{Array, ArrayRef, BinaryArray};
use arrow::datatypes::DataType;
use arrow::row::{RowConverter, SortField};

use super::packed::{integers, is_integral};
use crate::error::Result;

/// Beyond this many distinct values only the least and the greatest are kept: a list pays by ruling out
/// gaps, and so many values leave few. 8 MiB of integers.
const LISTED: usize = 1 << 20;

/// The same for values that are kept as bytes.
const LISTED_BYTES: usize = 1 << 14;

/// The values of one column.
pub(super) enum ColumnValues {
    /// Sorted, once sealed.
    Integers { values: Vec<i64>, listed: bool },
    /// In Arrow's row format, whose bytes order as the values do. Sorted, once sealed.
    Encoded { converter: RowConverter, values: Vec<Box<[u8]>>, listed: bool },
    /// Nothing is known. Floats: their bounds leave out NaN.
    Any,
}

impl ColumnValues {
    pub(super) fn new(data_type: &DataType) -> Result<Self> {
        Ok(if is_integral(data_type) {
            Self::Integers { values: Vec::new(), listed: true }
        } else if matches!(data_type, DataType::Float32 | DataType::Float64) {
            Self::Any
        } else {
            let converter = RowConverter::new(vec![SortField::new(data_type.clone())])?;
            Self::Encoded { converter, values: Vec::new(), listed: true }
        })
    }

    /// Adds the values at `rows`, which are not NULL.
    pub(super) fn add(&mut self, array: &ArrayRef, rows: &[usize]) -> Result<()> {
        match self {
            Self::Integers { values, listed } => {
                let integers = integers(array)?;
                values.extend(rows.iter().map(|row| integers.value(*row)));
                shorten(values, listed, LISTED);
            }
            Self::Encoded { converter, values, listed } => {
                let encoded = converter.convert_columns(std::slice::from_ref(array))?;
                values.extend(rows.iter().map(|row| Box::from(encoded.row(*row).data())));
                shorten(values, listed, LISTED_BYTES);
            }
            Self::Any => {}
        }
        Ok(())
    }

    /// Makes the values ready for questions.
    pub(super) fn seal(&mut self) {
        match self {
            Self::Integers { values, .. } => {
                values.sort_unstable();
                values.dedup();
            }
            Self::Encoded { values, .. } => {
                values.sort_unstable();
                values.dedup();
            }
            Self::Any => {}
        }
    }

    pub(super) fn size(&self) -> usize {
        match self {
            Self::Integers { values, .. } => values.capacity() * size_of::<i64>(),
            Self::Encoded { values, .. } => {
                values.iter().map(|value| value.len() + size_of::<Box<[u8]>>()).sum::<usize>()
            }
            Self::Any => 0,
        }
    }

    /// How many different values there are, once sealed; `None` where they are not listed.
    pub(super) fn distinct(&self) -> Option<usize> {
        match self {
            Self::Integers { values, listed: true } => Some(values.len()),
            _ => None,
        }
    }

    /// For each range, whether one of the values can lie in it. Ranges are of the column's type; an
    /// unknown end is NULL.
    pub(super) fn within(&self, mins: &ArrayRef, maxes: &ArrayRef) -> Result<Vec<bool>> {
        Ok(match self {
            Self::Integers { values, listed } => {
                let (mins, maxes) = (integers(mins)?, integers(maxes)?);
                let range = |i| {
                    let min = mins.is_valid(i).then(|| mins.value(i));
                    let max = maxes.is_valid(i).then(|| maxes.value(i));
                    any_within(values, *listed, min.as_ref(), max.as_ref())
                };
                (0..mins.len()).map(range).collect()
            }
            Self::Encoded { converter, values, listed } => {
                let encode = |array: &ArrayRef| -> Result<BinaryArray> {
                    Ok(converter.convert_columns(std::slice::from_ref(array))?.try_into_binary()?)
                };
                let (low, high) = (encode(mins)?, encode(maxes)?);
                let range = |i| {
                    let min = mins.is_valid(i).then(|| low.value(i));
                    let max = maxes.is_valid(i).then(|| high.value(i));
                    any_within(values, *listed, min, max)
                };
                (0..mins.len()).map(range).collect()
            }
            Self::Any => vec![true; mins.len()],
        })
    }
}

/// Keeps only the ends when there are too many values to list.
fn shorten<T: Ord>(values: &mut Vec<T>, listed: &mut bool, limit: usize) {
    if values.len() <= limit && (*listed || values.len() <= 2) {
        return;
    }
    values.sort_unstable();
    values.dedup();
    if values.len() > limit || !*listed {
        *listed = false;
        if values.len() > 2 {
            let last = values.len() - 1;
            values.swap(1, last);
            values.truncate(2);
            values.shrink_to_fit();
        }
    }
}

fn any_within<T: Ord + ?Sized, V: Borrow<T>>(
    values: &[V],
    listed: bool,
    min: Option<&T>,
    max: Option<&T>,
) -> bool {
    let (Some(first), Some(last)) = (values.first(), values.last()) else { return false };
    if min.is_some_and(|min| last.borrow() < min) || max.is_some_and(|max| first.borrow() > max) {
        return false;
    }
    if !listed {
        return true;
    }
    let at = min.map_or(0, |min| values.partition_point(|value| value.borrow() < min));
    values.get(at).is_some_and(|value| max.is_none_or(|max| value.borrow() <= max))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, StringArray};

    use super::*;

    fn sealed(array: ArrayRef) -> ColumnValues {
        let mut values = ColumnValues::new(array.data_type()).unwrap();
        values.add(&array, &(0..array.len()).collect::<Vec<_>>()).unwrap();
        values.seal();
        values
    }

    #[test]
    fn gaps_rule_ranges_out() {
        let values = sealed(Arc::new(Int64Array::from(vec![10, 30, 10])));
        let mins: ArrayRef =
            Arc::new(Int64Array::from(vec![Some(0), Some(11), Some(30), Some(31), None, Some(20)]));
        let maxes: ArrayRef =
            Arc::new(Int64Array::from(vec![Some(9), Some(29), Some(30), Some(40), Some(5), None]));
        assert_eq!(values.within(&mins, &maxes).unwrap(), [false, false, true, false, false, true]);
    }

    #[test]
    fn text_is_ordered_by_bytes() {
        let values = sealed(Arc::new(StringArray::from(vec!["mill", "zebra", "é"])));
        let mins: ArrayRef = Arc::new(StringArray::from(vec!["a", "mi", "mill ", "zebr", "z"]));
        let maxes: ArrayRef = Arc::new(StringArray::from(vec!["m", "mj", "y", "zebs", "\u{10ffff}"]));
        assert_eq!(values.within(&mins, &maxes).unwrap(), [false, true, false, true, true]);
    }

    #[test]
    fn too_many_values_leave_their_ends() {
        let mut values = ColumnValues::new(&DataType::Int64).unwrap();
        let rows: Vec<_> = (0..LISTED / 2 + 1).collect();
        for start in [5_000_000i64, 0, 2_000_000] {
            let array: ArrayRef =
                Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| start + *row as i64)));
            values.add(&array, &rows).unwrap();
        }
        values.seal();
        let ColumnValues::Integers { values: ends, listed: false } = &values else { panic!("not shortened") };
        assert_eq!(ends, &[0, 5_000_000 + LISTED as i64 / 2]);
        let ends: ArrayRef = Arc::new(Int64Array::from(vec![-1]));
        assert_eq!(values.within(&ends, &ends).unwrap(), [false]);
    }
}
