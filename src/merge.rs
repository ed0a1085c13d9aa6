//! A snapshot range → at most one change per key: DataFusion, no IO of its own.
//!
//! ```text
//! added rows ──┐                                         newest of each key
//!              ├─▶ sort by key, newest first ─▶ compare neighbours ─▶ target
//! removed rows ┘   (spills beyond its memory)   (streaming)
//! ```
//!
//! Whoever applies the result wants it in key order: that costs a target half as much as random
//! order. So one sort serves both. A whole table is not sorted: it is loaded into an empty target,
//! where order saves less than the sort costs, and nothing comes twice.

mod by_source;
mod with_base;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use arrow::array::{ArrayRef, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::SchemaRef;
use arrow::row::{OwnedRow, RowConverter, SortField};
use datafusion::error::Result as DFResult;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::{RecordBatchStream, SendableRecordBatchStream};
use datafusion::prelude::{SessionConfig, SessionContext, ident};
use futures::{Stream, StreamExt, ready};

pub use self::by_source::{BySource, SharedColumn};
pub use self::with_base::collapse_with_base;
use crate::error::Result;
use crate::lake::{DeltaExtent, SEQ_COLUMN, Stores, TableDelta};
use crate::memory::Budget;
use crate::table::OP_COLUMN;

/// Streams that a query reads at once: the aim is two cores, and each stream holds a row group.
const PARTITIONS: usize = 2;
/// Streams that a load reads and sorts at once: a target takes rows slower than one core makes them
/// (measured: 3 of 11 seconds), and each stream costs some 50 MB.
const LOAD_PARTITIONS: usize = 1;
/// Rows in a batch of a query.
const BATCH_ROWS: usize = 8192;
/// Rows in a batch of a load that comes as it is.
const LOAD_BATCH_ROWS: usize = 2048;
/// Rows in a batch of a load that is sorted: merging what was spilled holds some batches of each run, and
/// buffers of 128 KiB or more are given back to the system late, when four threads hand them around
/// (measured with rows of 300 bytes at `--memory 128MiB`: 71 to 97 MiB with batches of 256 or 512 rows, 102
/// to 149 MiB with 2048).
const SORTED_BATCH_ROWS: usize = 256;
/// Footers that stay in memory between the plan and the reading of files.
const FOOTERS_BYTES: usize = 16 << 20;

/// A runtime within the budget that reads from the lake's stores.
pub fn runtime(budget: Budget, stores: Arc<Stores>) -> Result<Arc<RuntimeEnv>> {
    let builder =
        budget.runtime().with_object_store_registry(stores).with_metadata_cache_limit(FOOTERS_BYTES);
    Ok(builder.build_arc()?)
}

/// The configuration of every session over the lake: columns keep the plain Arrow types that the
/// table has, because connectors encode those.
pub(crate) fn config() -> SessionConfig {
    let mut config = SessionConfig::new().with_target_partitions(PARTITIONS).with_batch_size(BATCH_ROWS);
    let options = config.options_mut();
    options.execution.parquet.schema_force_view_types = false;
    options.sql_parser.map_string_types_to_utf8view = false;
    config
}

/// The newest change of each key, sorted by key; the table's columns and `_op`. Of a
/// [`Whole`](DeltaExtent::Whole) table, the rows in any order. Without a key, all added rows as they are.
pub async fn collapse(
    delta: &TableDelta,
    key: &[String],
    runtime: Arc<RuntimeEnv>,
) -> Result<SendableRecordBatchStream> {
    let sorted = delta.with_ops && !key.is_empty() && delta.extent != DeltaExtent::Whole;
    // One sort with all of the memory, not one for each file that came or went.
    let config = config()
        .with_target_partitions(LOAD_PARTITIONS)
        .with_batch_size(if sorted { SORTED_BATCH_ROWS } else { LOAD_BATCH_ROWS })
        .with_repartition_sorts(false);
    let session = SessionContext::new_with_config_rt(config, runtime);
    let rows = session.read_table(delta.rows.clone())?;
    if !delta.with_ops {
        return Ok(rows.execute_stream().await?);
    }
    if !sorted {
        return Ok(rows.drop_columns(&[SEQ_COLUMN])?.execute_stream().await?);
    }
    let mut order: Vec<_> = key.iter().map(|column| ident(column).sort(true, true)).collect();
    if delta.one_row_a_key {
        return Ok(rows.drop_columns(&[SEQ_COLUMN])?.sort(order)?.execute_stream().await?);
    }
    order.push(ident(SEQ_COLUMN).sort(false, true));
    order.push(ident(OP_COLUMN).sort(true, true));
    let newest_first = rows.sort(order)?.execute_stream().await?;
    Ok(Box::pin(FirstOfKey::new(newest_first, key)?))
}

/// Of rows sorted by key, the first of each key, without the column that gave their order.
struct FirstOfKey {
    rows: SendableRecordBatchStream,
    schema: SchemaRef,
    kept: Vec<usize>,
    key: Vec<usize>,
    converter: RowConverter,
    last: Option<OwnedRow>,
}

impl FirstOfKey {
    fn new(rows: SendableRecordBatchStream, key: &[String]) -> Result<Self> {
        let all = rows.schema();
        let key = key.iter().map(|column| all.index_of(column)).collect::<Result<Vec<_>, _>>()?;
        let fields = key.iter().map(|&index| SortField::new(all.field(index).data_type().clone()));
        let converter = RowConverter::new(fields.collect())?;
        let kept: Vec<usize> =
            (0..all.fields().len()).filter(|&index| all.field(index).name() != SEQ_COLUMN).collect();
        Ok(Self { schema: Arc::new(all.project(&kept)?), rows, kept, key, converter, last: None })
    }

    fn first_of_key(&mut self, batch: &RecordBatch) -> Result<RecordBatch> {
        let keys: Vec<ArrayRef> = self.key.iter().map(|&index| batch.column(index).clone()).collect();
        let keys = self.converter.convert_columns(&keys)?;
        let is_first: BooleanArray = (0..keys.num_rows())
            .map(|row| match row {
                0 => self.last.as_ref().is_none_or(|last| last.row() != keys.row(0)),
                row => keys.row(row - 1) != keys.row(row),
            })
            .map(Some)
            .collect();
        if let Some(row) = keys.num_rows().checked_sub(1) {
            self.last = Some(keys.row(row).owned());
        }
        Ok(filter_record_batch(&batch.project(&self.kept)?, &is_first)?)
    }
}

impl Stream for FirstOfKey {
    type Item = DFResult<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match ready!(self.rows.poll_next_unpin(context)) {
                Some(Ok(batch)) => match self.first_of_key(&batch) {
                    Ok(firsts) if firsts.num_rows() == 0 => {}
                    firsts => return Poll::Ready(Some(firsts.map_err(Into::into))),
                },
                end => return Poll::Ready(end),
            }
        }
    }
}

impl RecordBatchStream for FirstOfKey {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }
}
