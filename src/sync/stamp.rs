//! What an append table has beside the source's columns: of each row what happened, in which pass, when.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use chrono::{DateTime, Utc};

use crate::delta::Op;
use crate::error::Result;
use crate::lake::{LakeTable, TableMode};
use crate::table::OP_COLUMN;

/// Append tables: the order in which rows came, pass by pass.
const SEQ_COLUMN: &str = "_seq";
/// Append tables: when rows came, the same for all rows of a pass.
const AT_COLUMN: &str = "_at";

/// What a source's rows look like in the lake: append tables say of each row what it is and when it came.
pub(super) fn lake_schema(source: &SchemaRef, mode: TableMode) -> SchemaRef {
    if mode != TableMode::Append {
        return source.clone();
    }
    let mut fields: Vec<Arc<Field>> = source.fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new(OP_COLUMN, DataType::Int32, false)));
    fields.push(Arc::new(Field::new(SEQ_COLUMN, DataType::Int64, false)));
    fields.push(Arc::new(Field::new(
        AT_COLUMN,
        DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        false,
    )));
    Arc::new(Schema::new(fields))
}

/// What an append table says of each row: what happened, in which pass, and when.
#[derive(Clone)]
pub(super) struct Stamp {
    seq: i64,
    at: DateTime<Utc>,
}

impl Stamp {
    /// One more than the passes before: the number of snapshots that brought rows.
    pub(super) fn new(table: &LakeTable) -> Self {
        let at = Utc::now();
        Self { seq: table.next_sequence_number(), at }
    }

    pub(super) fn put_on(&self, batch: RecordBatch) -> Result<RecordBatch> {
        let rows = batch.num_rows();
        let schema = lake_schema(&batch.schema(), TableMode::Append);
        let mut columns: Vec<ArrayRef> = batch.columns().to_vec();
        columns.push(Arc::new(Int32Array::from_value(Op::Upsert as i32, rows)));
        columns.push(Arc::new(Int64Array::from_value(self.seq, rows)));
        columns.push(Arc::new(
            TimestampMicrosecondArray::from_value(self.at.timestamp_micros(), rows).with_timezone("UTC"),
        ));
        Ok(RecordBatch::try_new(schema, columns)?)
    }
}
