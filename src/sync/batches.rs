//! A change in several transactions, for tables that others write to.
//!
//! ```text
//! table shows  17            17, halfway to 18    …    17, halfway to 18    18
//!              │── rows 1 to n ──│── rows n+1 to 2n ──│── nothing more ─────│
//! ```
//!
//! Each transaction moves the control row, so what one finds must be what the last left: another loader
//! in between is noticed, and so is that this one was overtaken. A change by key can be brought in again:
//! after a crash the next load brings the whole change, or, where the lake went back to before it, the
//! whole table.

use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::execution::{RecordBatchStream, SendableRecordBatchStream};
use datafusion::physical_plan::EmptyRecordBatchStream;
use futures::StreamExt;
use futures::future::poll_fn;
use futures::stream::Fuse;

use crate::error::Result;
use crate::table::OP_COLUMN;
use crate::target::{Applied, Merge, MergeStats, Strategy, Target, TargetTable};

/// Applies a change, in several transactions if it has more rows than one may have.
///
/// Only a change by key comes in several: that of an append table would come twice after a crash, and
/// whatever replaces a table or keeps versions is meant to be seen whole.
pub(super) async fn apply(target: &dyn Target, merge: Merge, most: Option<NonZeroU32>) -> Result<MergeStats> {
    let few = |most: &NonZeroU32| merge.rows.is_some_and(|rows| rows <= u64::from(most.get()));
    match (most.filter(|most| !few(most)), merge.from) {
        (Some(most), Some(from)) if merge.strategy == Strategy::Merge => {
            in_parts(target, merge, from, most.get() as usize).await
        }
        _ => target.apply(merge).await,
    }
}

async fn in_parts(target: &dyn Target, merge: Merge, from: Applied, most: usize) -> Result<MergeStats> {
    let Merge { stream, table, to, strategy, changes, .. } = merge;
    let changes = Changes::new(changes);
    let (mut shows, mut all) = (from, MergeStats::default());
    loop {
        let more = changes.has_more().await?;
        let shows_then = if more { from.toward(to.snapshot) } else { to };
        let part = Merge {
            turn: None,
            stream: stream.clone(),
            table: table.clone(),
            from: Some(shows),
            to: shows_then,
            strategy,
            changes: changes.next(most),
            rows: Some(most as u64),
        };
        let stats = target.apply(part).await?;
        all.staged += stats.staged;
        all.upserted += stats.upserted;
        all.deleted += stats.deleted;
        if !more {
            return Ok(all);
        }
        shows = shows_then;
    }
}

/// Moves a table that is on its way to a snapshot to it: all rows are there.
pub(super) async fn arrive(
    target: &dyn Target,
    stream: &str,
    table: TargetTable,
    from: Applied,
    to: Applied,
) -> Result<()> {
    let mut fields = table.schema.fields().to_vec();
    fields.push(Arc::new(Field::new(OP_COLUMN, DataType::Int8, false)));
    let nothing = EmptyRecordBatchStream::new(Arc::new(Schema::new(fields)));
    let merge = Merge {
        turn: None,
        stream: stream.to_owned(),
        table,
        from: Some(from),
        to,
        strategy: Strategy::Append,
        changes: Box::pin(nothing),
        rows: Some(0),
    };
    target.apply(merge).await.map(drop)
}

/// A change of which each transaction takes some.
#[derive(Clone)]
struct Changes {
    rest: Arc<Mutex<Rest>>,
    schema: SchemaRef,
}

struct Rest {
    changes: Fuse<SendableRecordBatchStream>,
    /// What was read and not taken.
    left: Option<RecordBatch>,
}

impl Changes {
    fn new(changes: SendableRecordBatchStream) -> Self {
        let schema = changes.schema();
        Self { rest: Arc::new(Mutex::new(Rest { changes: changes.fuse(), left: None })), schema }
    }

    async fn has_more(&self) -> Result<bool> {
        let next = poll_fn(|context| self.poll(context, usize::MAX)).await.transpose()?;
        let mut rest = self.rest.lock().expect("no panic while it is held");
        rest.left = next;
        Ok(rest.left.is_some())
    }

    /// The next so many rows.
    fn next(&self, rows: usize) -> SendableRecordBatchStream {
        Box::pin(Part { changes: self.clone(), rows })
    }

    /// The next batch, of so many rows at most.
    fn poll(
        &self,
        context: &mut Context<'_>,
        most: usize,
    ) -> Poll<Option<datafusion::error::Result<RecordBatch>>> {
        let mut rest = self.rest.lock().expect("no panic while it is held");
        let batch = match rest.left.take() {
            Some(batch) => batch,
            None => match ready!(rest.changes.poll_next_unpin(context)) {
                Some(Ok(batch)) => batch,
                end => return Poll::Ready(end),
            },
        };
        if batch.num_rows() <= most {
            return Poll::Ready(Some(Ok(batch)));
        }
        rest.left = Some(batch.slice(most, batch.num_rows() - most));
        Poll::Ready(Some(Ok(batch.slice(0, most))))
    }
}

/// The rows of one transaction.
struct Part {
    changes: Changes,
    /// How many it may still take.
    rows: usize,
}

impl futures::Stream for Part {
    type Item = datafusion::error::Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.rows == 0 {
            return Poll::Ready(None);
        }
        let next = ready!(self.changes.poll(context, self.rows));
        if let Some(Ok(batch)) = &next {
            self.rows -= batch.num_rows();
        }
        Poll::Ready(next)
    }
}

impl RecordBatchStream for Part {
    fn schema(&self) -> SchemaRef {
        self.changes.schema.clone()
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::Int32Array;
    use async_trait::async_trait;
    use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
    use futures::TryStreamExt;
    use uuid::Uuid;

    use super::*;
    use crate::delta::SnapshotId;
    use crate::error::{Error, ErrorKind};
    use crate::source::Finding;
    use crate::table::TableId;
    use crate::target::{Deletes, Halfway};

    /// What a table shows, and how many rows each transaction brought.
    struct Table(Mutex<(Applied, Vec<usize>)>);

    #[async_trait]
    impl Target for Table {
        async fn plan(&self, _: &TargetTable) -> Result<Vec<String>> {
            Ok(Vec::new())
        }

        async fn prepare(&self, _: &TargetTable) -> Result<()> {
            Ok(())
        }

        async fn applied(&self, _: &str, _: &TableId) -> Result<Option<Applied>> {
            Ok(Some(self.0.lock().unwrap().0))
        }

        async fn apply(&self, merge: Merge) -> Result<MergeStats> {
            let batches: Vec<RecordBatch> = merge.changes.try_collect().await?;
            let rows = batches.iter().map(RecordBatch::num_rows).sum();
            let mut table = self.0.lock().unwrap();
            if merge.from != Some(table.0) {
                return Err(Error::new(ErrorKind::Conflict, "moved"));
            }
            assert_ne!(merge.to, table.0, "whether it was committed can be seen");
            table.0 = merge.to;
            table.1.push(rows);
            Ok(MergeStats { staged: rows as u64, ..MergeStats::default() })
        }

        async fn preflight(&self, _: &TargetTable) -> Result<Vec<Finding>> {
            Ok(Vec::new())
        }
    }

    fn shows(snapshot: i64) -> Applied {
        Applied::new(Uuid::nil(), SnapshotId(snapshot))
    }

    fn merge(batches: &[i32], strategy: Strategy) -> Merge {
        let schema = Arc::new(Schema::new(vec![Field::new("id", DataType::Int32, false)]));
        let rows = batches.iter().sum::<i32>() as u64;
        let batches: Vec<_> = batches
            .iter()
            .map(|rows| {
                let ids = Arc::new(Int32Array::from_iter_values(0..*rows));
                Ok(RecordBatch::try_new(schema.clone(), vec![ids]).unwrap())
            })
            .collect();
        Merge {
            turn: None,
            stream: "s".into(),
            table: TargetTable {
                id: TableId::bare("t"),
                schema: schema.clone(),
                key: vec!["id".into()],
                deletes: Deletes::Hard,
                versions: false,
            },
            from: Some(shows(1)),
            to: shows(2),
            strategy,
            changes: Box::pin(RecordBatchStreamAdapter::new(schema, futures::stream::iter(batches))),
            rows: Some(rows),
        }
    }

    async fn transactions(batches: &[i32], strategy: Strategy) -> Vec<usize> {
        let table = Table(Mutex::new((shows(1), Vec::new())));
        let stats = apply(&table, merge(batches, strategy), NonZeroU32::new(4)).await.unwrap();
        let (applied, rows) = table.0.into_inner().unwrap();
        assert_eq!(applied, shows(2));
        assert_eq!(stats.staged, rows.iter().sum::<usize>() as u64);
        rows
    }

    #[tokio::test]
    async fn a_transaction_has_no_more_rows_than_it_may() {
        assert_eq!(transactions(&[3, 6, 0, 1], Strategy::Merge).await, [4, 4, 2, 0]);
        assert_eq!(transactions(&[8], Strategy::Merge).await, [4, 4, 0]);
        assert_eq!(transactions(&[1, 3], Strategy::Merge).await, [4], "few are one transaction");
        assert_eq!(transactions(&[9], Strategy::Append).await, [9], "they would come twice after a crash");
    }

    #[test]
    fn what_a_control_row_says_is_read_again() {
        let halfway = Halfway { toward: SnapshotId(-7), mark: Uuid::from_u128(5) };
        assert_eq!(halfway.to_string().parse::<Halfway>().unwrap(), halfway);
        assert_eq!("7".parse::<Halfway>().unwrap_err().kind(), ErrorKind::Corrupt);
    }
}
