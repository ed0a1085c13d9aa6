//! The newest change of each key, beside what the key's row was before all of them.
//!
//! ```text
//! key  _seq  _op                      key  columns  older columns  _has_base  _op
//! 7    1     upsert  newest ─────┐
//! 7    1     delete              ├─▶  7    newest   oldest         1          upsert
//! 7    0     upsert              │
//! 7    0     delete  oldest ─────┘
//! ```
//!
//! Within one step a key's row comes once and goes once, so of rows sorted newest first the last of a key is
//! what there was before, if it is one that went.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use arrow::array::{Array, ArrayRef, AsArray, Int32Array, RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::{DataType, Field, Int8Type, Schema, SchemaRef};
use arrow::row::{RowConverter, SortField};
use datafusion::error::Result as DFResult;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::{RecordBatchStream, SendableRecordBatchStream};
use datafusion::prelude::{SessionContext, ident};
use futures::{Stream, StreamExt, ready};

use super::{LOAD_PARTITIONS, SORTED_BATCH_ROWS, config};
use crate::delta::Op;
use crate::error::Result;
use crate::lake::{DeltaExtent, SEQ_COLUMN, TableDelta};
use crate::table::{HAS_BASE, OP_COLUMN, base_column};

/// As [`collapse`](super::collapse) of a delta with base, and each row with what it was: the table's columns,
/// each of them once more as [`base_column`], [`HAS_BASE`] and `_op`. Sorted by key, but for a
/// [`Whole`](DeltaExtent::Whole) table, in which no key comes twice.
pub async fn collapse_with_base(
    delta: &TableDelta,
    key: &[String],
    runtime: Arc<RuntimeEnv>,
) -> Result<SendableRecordBatchStream> {
    let config = config()
        .with_target_partitions(LOAD_PARTITIONS)
        .with_batch_size(SORTED_BATCH_ROWS)
        .with_repartition_sorts(false);
    let session = SessionContext::new_with_config_rt(config, runtime);
    let mut rows = session.read_table(delta.rows.clone())?;
    if delta.extent != DeltaExtent::Whole {
        let mut newest_first: Vec<_> = key.iter().map(|column| ident(column).sort(true, true)).collect();
        newest_first.push(ident(SEQ_COLUMN).sort(false, true));
        newest_first.push(ident(OP_COLUMN).sort(true, true));
        rows = rows.sort(newest_first)?;
    }
    Ok(Box::pin(WithBase::new(rows.execute_stream().await?, key)?))
}

struct WithBase {
    rows: SendableRecordBatchStream,
    schema: SchemaRef,
    /// Places of the table's columns, of the key among them, and of `_op`.
    columns: Vec<usize>,
    key: Vec<usize>,
    op: usize,
    converter: RowConverter,
    /// The rows of the last key: more of them may come.
    open: Option<RecordBatch>,
    ended: bool,
}

impl WithBase {
    fn new(rows: SendableRecordBatchStream, key: &[String]) -> Result<Self> {
        let all = rows.schema();
        let key = key.iter().map(|column| all.index_of(column)).collect::<Result<Vec<_>, _>>()?;
        let fields = key.iter().map(|&index| SortField::new(all.field(index).data_type().clone()));
        let converter = RowConverter::new(fields.collect())?;
        let ours = [SEQ_COLUMN, OP_COLUMN];
        let columns: Vec<usize> = (0..all.fields().len())
            .filter(|&index| !ours.contains(&all.field(index).name().as_str()))
            .collect();
        let own = columns.iter().map(|&index| all.field(index).clone());
        let older = columns.iter().map(|&index| {
            let field = all.field(index);
            field.clone().with_name(base_column(field.name())).with_nullable(true)
        });
        let last =
            [Field::new(HAS_BASE, DataType::Int32, false), Field::new(OP_COLUMN, DataType::Int8, false)];
        let schema = Schema::new(own.chain(older).chain(last).collect::<Vec<_>>());
        let op = all.index_of(OP_COLUMN)?;
        Ok(Self { rows, schema: Arc::new(schema), columns, key, op, converter, open: None, ended: false })
    }

    /// What is complete when these rows are there as well; the rows of the last key wait.
    fn complete(&mut self, batch: Option<RecordBatch>) -> Result<Option<RecordBatch>> {
        let ends = batch.is_none();
        let parts: Vec<RecordBatch> = self.open.take().into_iter().chain(batch).collect();
        let Some(first) = parts.first() else { return Ok(None) };
        let rows = concat_batches(&first.schema(), &parts)?;
        let keys: Vec<ArrayRef> = self.key.iter().map(|&index| rows.column(index).clone()).collect();
        let keys = self.converter.convert_columns(&keys)?;
        let mut starts: Vec<usize> =
            (0..rows.num_rows()).filter(|&row| row == 0 || keys.row(row - 1) != keys.row(row)).collect();
        if ends {
            starts.push(rows.num_rows());
        } else if let Some(&open) = starts.last() {
            self.open = Some(rows.slice(open, rows.num_rows() - open));
        }
        if starts.len() < 2 {
            return Ok(None);
        }
        self.groups(&rows, &starts).map(Some)
    }

    /// One row for each range from one of `starts` to the next.
    fn groups(&self, rows: &RecordBatch, starts: &[usize]) -> Result<RecordBatch> {
        let ops = rows.column(self.op).as_primitive::<Int8Type>();
        let newest = UInt32Array::from_iter_values(starts[..starts.len() - 1].iter().map(|row| *row as u32));
        let oldest: UInt32Array = starts[1..]
            .iter()
            .map(|end| (ops.value(end - 1) == Op::Delete as i8).then_some((end - 1) as u32))
            .collect();
        let has_base =
            Int32Array::from_iter_values((0..oldest.len()).map(|row| i32::from(oldest.is_valid(row))));
        let own = rows.project(&self.columns)?;
        let mut columns = take_record_batch(&own, &newest)?.columns().to_vec();
        for column in own.columns() {
            columns.push(arrow::compute::take(column, &oldest, None)?);
        }
        columns.push(Arc::new(has_base));
        columns.push(arrow::compute::take(rows.column(self.op), &newest, None)?);
        Ok(RecordBatch::try_new(self.schema.clone(), columns)?)
    }
}

impl Stream for WithBase {
    type Item = DFResult<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        while !self.ended {
            let next = ready!(self.rows.poll_next_unpin(context)).transpose()?;
            self.ended = next.is_none();
            if let Some(groups) = self.complete(next).transpose() {
                return Poll::Ready(Some(groups.map_err(Into::into)));
            }
        }
        Poll::Ready(None)
    }
}

impl RecordBatchStream for WithBase {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int8Array, Int64Array, StringArray};
    use arrow::util::pretty::pretty_format_batches;
    use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
    use expect_test::expect;
    use futures::TryStreamExt;

    use super::*;

    #[tokio::test]
    async fn each_key_comes_once_with_what_it_was() {
        let schema = Arc::new(Schema::new(vec![
            Field::new("id", DataType::Int64, false),
            Field::new("note", DataType::Utf8, true),
            Field::new(OP_COLUMN, DataType::Int8, false),
            Field::new(SEQ_COLUMN, DataType::Int64, false),
        ]));
        // One row a batch: a key's rows lie in several.
        let rows = [
            (1, "new", 0, 0),
            (2, "newest", 0, 1),
            (2, "between", 1, 1),
            (2, "between", 0, 0),
            (2, "oldest", 1, 0),
            (3, "gone", 1, 0),
            (4, "came", 1, 1),
            (4, "came", 0, 0),
        ];
        let batches = rows.map(|(id, note, op, seq)| {
            Ok(RecordBatch::try_new(
                schema.clone(),
                vec![
                    Arc::new(Int64Array::from(vec![id])),
                    Arc::new(StringArray::from(vec![note])),
                    Arc::new(Int8Array::from(vec![op])),
                    Arc::new(Int64Array::from(vec![seq])),
                ],
            )?)
        });
        let rows = RecordBatchStreamAdapter::new(schema, futures::stream::iter(batches));
        let with_base = WithBase::new(Box::pin(rows), &["id".to_owned()]).unwrap();
        let batches: Vec<RecordBatch> = with_base.try_collect().await.unwrap();
        expect![[r#"
            +----+--------+----------+------------+-----------+-----+
            | id | note   | _base_id | _base_note | _has_base | _op |
            +----+--------+----------+------------+-----------+-----+
            | 1  | new    |          |            | 0         | 0   |
            | 2  | newest | 2        | oldest     | 1         | 0   |
            | 3  | gone   | 3        | gone       | 1         | 1   |
            | 4  | came   |          |            | 0         | 1   |
            +----+--------+----------+------------+-----------+-----+"#]]
        .assert_eq(&pretty_format_batches(&batches).unwrap().to_string());
    }
}
