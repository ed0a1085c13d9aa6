//! Columns whose values are so large that the usual care for a column costs more than it is worth.
//!
//! Statistics keep the least and the greatest value of a page and of a row group, a dictionary keeps
//! each value: of documents and pictures that is several times the value in memory, for bounds that no
//! query asks for. Files with such values are written without either for their columns.

use std::collections::BTreeSet;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::DataType;

/// Bytes of a value, on average over a batch, from which on its column is wide.
const WIDE_BYTES: usize = 1 << 20;

/// The places of wide columns in a batch.
pub(super) fn columns(batch: &RecordBatch) -> BTreeSet<usize> {
    let is_wide = |column: &ArrayRef| bytes(column) > WIDE_BYTES * (column.len() - column.null_count());
    (0..batch.num_columns()).filter(|at| is_wide(batch.column(*at))).collect()
}

/// Of texts and bytes; whatever else there is has no large values, or is not looked into.
fn bytes(column: &ArrayRef) -> usize {
    let offsets = match column.data_type() {
        DataType::Utf8 => column.as_string::<i32>().value_offsets(),
        DataType::Binary => column.as_binary::<i32>().value_offsets(),
        _ => return 0,
    };
    offsets.first().zip(offsets.last()).map_or(0, |(first, last)| (last - first) as usize)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{BinaryArray, Int32Array, StringArray};

    use super::*;

    #[test]
    fn columns_of_large_values_are_wide() {
        let large = "x".repeat(3 * WIDE_BYTES);
        let batch = RecordBatch::try_from_iter([
            ("id", Arc::new(Int32Array::from(vec![1, 2])) as ArrayRef),
            ("small", Arc::new(StringArray::from(vec!["a", "b"]))),
            ("text", Arc::new(StringArray::from(vec![Some(large.as_str()), None]))),
            ("bytes", Arc::new(BinaryArray::from(vec![large.as_bytes(), b"b"]))),
        ])
        .unwrap();
        assert_eq!(columns(&batch), [2, 3].into());
        assert!(columns(&batch.slice(1, 1)).is_empty());
    }
}
