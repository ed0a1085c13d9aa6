//! Rows that a log has without some of their values, because these did not change: the lake has them.
//!
//! ```text
//! batches of a log ─┬─ with all columns ────────────────────────────▶ on
//!                   └─ without some ─▶ wait ─▶ join the lake by key ─▶ on
//! ```
//!
//! A value that is in neither is an error and never a NULL. Rows wait for each other, because each look
//! into the lake reads the columns that are missing wherever one of their keys can be.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Int8Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::JoinType;
use datafusion::datasource::MemTable;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::prelude::{SessionContext, ident};
use futures::StreamExt;

use crate::delta::Op;
use crate::error::{Error, ErrorKind, Result};
use crate::lake::{LakeTable, Stores};
use crate::memory::Budget;
use crate::merge;
use crate::source::RowStream;
use crate::table::OP_COLUMN;

/// The share of a query's memory that waiting rows may take: the join holds them once more.
const SHARE_OF_MEMORY: usize = 8;

/// A log's batches, with what they lack from the lake; `schema` is without `_op`.
pub(super) fn filled(
    rows: RowStream,
    table: LakeTable,
    schema: SchemaRef,
    stores: Arc<Stores>,
    budget: Budget,
) -> RowStream {
    let most_bytes = budget.query_bytes() / SHARE_OF_MEMORY;
    let filling = Filling {
        rows: Some(rows),
        table,
        schema,
        stores,
        budget,
        most_bytes,
        waiting: HashMap::new(),
        bytes: 0,
        joined: None,
    };
    futures::stream::try_unfold(filling, async |mut filling| {
        Ok(filling.next().await?.map(|batch| (batch, filling)))
    })
    .boxed()
}

struct Filling {
    rows: Option<RowStream>,
    table: LakeTable,
    schema: SchemaRef,
    stores: Arc<Stores>,
    budget: Budget,
    most_bytes: usize,
    /// Rows that lack something, by the columns that they have.
    waiting: HashMap<Vec<String>, Vec<RecordBatch>>,
    bytes: usize,
    /// Rows that come out of the lake, and how many are still to come.
    joined: Option<(SendableRecordBatchStream, usize)>,
}

impl Filling {
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if let Some((joined, missing)) = &mut self.joined {
                match joined.next().await.transpose()? {
                    Some(batch) if batch.num_rows() == 0 => continue,
                    Some(batch) => {
                        *missing = missing.checked_sub(batch.num_rows()).ok_or_else(twice)?;
                        return self.with_op(&batch).map(Some);
                    }
                    None if *missing > 0 => return Err(nowhere(*missing).with("table", self.table.id())),
                    None => self.joined = None,
                }
            }
            if self.bytes > self.most_bytes || self.rows.is_none() {
                let Some(first) = self.waiting.keys().next().cloned() else {
                    self.bytes = 0;
                    if self.rows.is_none() {
                        return Ok(None);
                    }
                    continue;
                };
                let batches = self.waiting.remove(&first).unwrap_or_default();
                self.joined = Some(self.join(batches).await?);
                continue;
            }
            let Some(rows) = &mut self.rows else { continue };
            match rows.next().await.transpose()? {
                None => self.rows = None,
                Some(batch) if batch.num_columns() > self.schema.fields().len() => return Ok(Some(batch)),
                Some(batch) => {
                    self.bytes += batch.get_array_memory_size();
                    let fields = batch.schema();
                    let has = fields.fields().iter().map(|field| field.name().clone()).collect();
                    self.waiting.entry(has).or_default().push(batch);
                }
            }
        }
    }

    /// Looks for the lake's rows of these keys.
    async fn join(&mut self, batches: Vec<RecordBatch>) -> Result<(SendableRecordBatchStream, usize)> {
        let count = batches.iter().map(RecordBatch::num_rows).sum();
        let has = batches.first().map(RecordBatch::schema).unwrap_or_else(|| Arc::new(Schema::empty()));
        let key = self.table.key();
        let runtime = merge::runtime(self.budget, self.stores.clone())?;
        let session = SessionContext::new_with_config_rt(merge::config(), runtime);
        let name = |side: &str, field: &str| format!("{side} {field}");
        let news = session.read_table(Arc::new(MemTable::try_new(has.clone(), vec![batches])?))?;
        let columns = has.fields().iter().map(|field| ident(field.name()).alias(name("new", field.name())));
        let news = news.select(columns.collect::<Vec<_>>())?;
        let lacks = |field: &&Arc<Field>| has.field_with_name(field.name()).is_err();
        let lacking: Vec<&str> =
            self.schema.fields().iter().filter(lacks).map(|field| field.name().as_str()).collect();
        let olds = session.read_table(self.table.newest_provider().await?)?;
        let columns = key.iter().map(String::as_str).chain(lacking.iter().copied());
        let olds =
            olds.select(columns.map(|field| ident(field).alias(name("old", field))).collect::<Vec<_>>())?;
        let sides: [Vec<String>; 2] =
            ["new", "old"].map(|side| key.iter().map(|field| name(side, field)).collect());
        let [left, right] = sides.each_ref().map(|side| side.iter().map(String::as_str).collect::<Vec<_>>());
        let joined = news.join(olds, JoinType::Inner, &left, &right, None)?;
        let columns = self.schema.fields().iter().map(|field| {
            let side = if lacking.contains(&field.name().as_str()) { "old" } else { "new" };
            ident(name(side, field.name())).alias(field.name())
        });
        Ok((joined.select(columns.collect::<Vec<_>>())?.execute_stream().await?, count))
    }

    fn with_op(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let mut fields: Vec<_> = batch.schema().fields().to_vec();
        fields.push(Arc::new(Field::new(OP_COLUMN, DataType::Int8, false)));
        let mut columns = batch.columns().to_vec();
        columns.push(Arc::new(Int8Array::from(vec![Op::Upsert as i8; batch.num_rows()])));
        Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
    }
}

fn nowhere(missing: usize) -> Error {
    let message = format!("{missing} rows lack values that neither the log nor the lake has");
    Error::new(ErrorKind::Data, message).hint("`frazil run --full-refresh` reads them from the table")
}

fn twice() -> Error {
    Error::new(ErrorKind::Corrupt, "the lake has two rows of one key")
        .hint("`frazil run --full-refresh` compares the lake with the table")
}
