//! Divides the batches of a log: rows that are there now go on, keys of deleted ones are kept apart.
//!
//! ```text
//! batch with `_op` ─┬─ upserts, without `_op` ─▶ the table's writer
//!                   └─ deletes, the key alone ─▶ a writer of keys ─▶ Effect::Log
//! ```

use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::Int8Type;

use crate::delta::Op;
use crate::error::{Error, ErrorKind, Result};
use crate::lake::{LakeTable, TableWriter, WrittenFile};
use crate::memory::Budget;
use crate::table::OP_COLUMN;

/// Takes the deletes out of one stream's batches.
pub(super) struct GoneKeys {
    writer: TableWriter,
    key: Vec<String>,
}

impl GoneKeys {
    pub(super) fn new(table: &LakeTable, budget: Budget) -> Result<Self> {
        Ok(Self { writer: table.key_writer(budget)?, key: table.key() })
    }

    /// The rows of a batch that are there now; the keys of the others are written down.
    pub(super) async fn take(&mut self, batch: &RecordBatch) -> Result<RecordBatch> {
        let (rows, gone) = divide(batch, &self.key)?;
        self.writer.write(&gone).await?;
        Ok(rows)
    }

    /// Files of keys, for the commit.
    pub(super) async fn finish(self) -> Result<Vec<WrittenFile>> {
        self.writer.finish().await
    }
}

/// Upserts without their operation, and the keys of deletes.
fn divide(batch: &RecordBatch, key: &[String]) -> Result<(RecordBatch, RecordBatch)> {
    let schema = batch.schema();
    let wrong = |what: &str| Error::new(ErrorKind::Internal, format!("a batch of a log {what}"));
    let at = schema.index_of(OP_COLUMN).map_err(|_| wrong("does not say what happened"))?;
    let ops =
        batch.column(at).as_primitive_opt::<Int8Type>().ok_or_else(|| wrong("names operations oddly"))?;
    let is = |op: Op| -> BooleanArray { ops.iter().map(|value| Some(value == Some(op as i8))).collect() };
    let (upserts, deletes) = (is(Op::Upsert), is(Op::Delete));
    if upserts.true_count() + deletes.true_count() != batch.num_rows() {
        return Err(wrong("has an operation that is not known"));
    }
    let others: Vec<usize> = (0..batch.num_columns()).filter(|column| *column != at).collect();
    let keys = key
        .iter()
        .map(|name| schema.index_of(name).map_err(|_| wrong("lacks a key column").with("column", name)))
        .collect::<Result<Vec<_>>>()?;
    let rows = filter_record_batch(&batch.project(&others)?, &upserts)?;
    let gone = filter_record_batch(&batch.project(&keys)?, &deletes)?;
    Ok((rows, gone))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int8Array, Int64Array, StringArray};
    use arrow::util::pretty::pretty_format_batches;
    use expect_test::expect;

    use super::*;

    fn batch(ops: Vec<Option<i8>>) -> RecordBatch {
        RecordBatch::try_from_iter([
            ("name", Arc::new(StringArray::from(vec![Some("ann"), None, Some("cid")])) as ArrayRef),
            ("id", Arc::new(Int64Array::from(vec![1, 2, 3]))),
            (OP_COLUMN, Arc::new(Int8Array::from(ops))),
        ])
        .unwrap()
    }

    #[test]
    fn a_log_is_divided() {
        let (rows, gone) = divide(&batch(vec![Some(0), Some(1), Some(0)]), &["id".into()]).unwrap();
        expect![[r#"
            +------+----+
            | name | id |
            +------+----+
            | ann  | 1  |
            | cid  | 3  |
            +------+----+
            +----+
            | id |
            +----+
            | 2  |
            +----+"#]]
        .assert_eq(&format!(
            "{}\n{}",
            pretty_format_batches(&[rows]).unwrap(),
            pretty_format_batches(&[gone]).unwrap()
        ));
    }

    #[test]
    fn an_unknown_operation_is_noticed() {
        for ops in [vec![Some(0), Some(2), Some(0)], vec![Some(0), None, Some(0)]] {
            assert_eq!(divide(&batch(ops), &["id".into()]).unwrap_err().kind(), ErrorKind::Internal);
        }
        let other = batch(vec![Some(0); 3]);
        assert!(divide(&other, &["key".into()]).is_err());
    }
}
