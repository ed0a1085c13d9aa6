//! A place that rows are read from: a database, or a snapshot of the lake.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::prelude::SessionContext;
use futures::{StreamExt, TryStreamExt};
use tokio::task::JoinSet;

use super::sample::Range;
use crate::connection::Connection;
use crate::connectors;
use crate::connectors::sql::DELETED_AT;
use crate::delta::SnapshotId;
use crate::error::{Error, ErrorKind, Result};
use crate::lake::LakeTable;
use crate::merge::{self, BySource};
use crate::source::{ChangeDetection, Portion, ReadRequest, Reading, RowStream, Source};
use crate::sync::{self, Context, Mode, Progress, SharedShown, Stream};
use crate::target::{Applied, Deletes, TargetTable, VALID_TO};

/// A place.
pub(super) enum Side {
    Lake {
        context: Box<Context>,
        table: Box<LakeTable>,
        at: SnapshotId,
        only: Option<Range>,
    },
    /// The lake tables of all streams that share a target, each as the target shows it, put together.
    Shared {
        context: Box<Context>,
        rows: Box<BySource>,
    },
    Database {
        source: Arc<dyn Source>,
        request: Box<ReadRequest>,
        keeps_deleted: bool,
    },
}

/// What rows go through, one for each stream of a place.
pub(super) trait Drain: Send + 'static {
    /// Takes some rows, which have the columns that both places share, and maybe others.
    fn take(&mut self, batch: &RecordBatch) -> Result<()>;
}

impl Side {
    /// A snapshot.
    pub(super) fn lake(context: &Context, table: &LakeTable, at: SnapshotId, only: Option<&Range>) -> Self {
        let table = Box::new(table.clone());
        Self::Lake { context: Box::new(context.clone()), table, at, only: only.cloned() }
    }

    /// What the lake has for the stream's target, if others feed it too.
    pub(super) async fn shared(
        context: &Context,
        stream: &Stream,
        table: &LakeTable,
        only: Option<&Range>,
    ) -> Result<Option<(Self, SharedShown)>> {
        let (Some(shared), Some(to)) = (&stream.shared, &stream.target) else { return Ok(None) };
        let target = connectors::target(&to.connection)?;
        let shown = sync::shared_as_shown(context, stream, shared, (&*target, to), table).await?;
        let rows = Box::new(BySource { only: only.map(Range::expr), ..shown.rows.clone() });
        Ok(Some((Self::Shared { context: Box::new(context.clone()), rows }, shown)))
    }

    /// All rows of the stream's source.
    pub(super) async fn source(context: &Context, stream: &Stream, only: Option<&Range>) -> Result<Self> {
        let source = connectors::source(&stream.source)?;
        let description = source.table(&stream.source_table).await?;
        let request = sync::read_request(stream, &description, context.budget)?;
        Self::of(source, &stream.source, request, false, only)
    }

    /// All rows of the stream's target, and what they are to show. `wanted` is the table where
    /// others feed it too.
    pub(super) async fn target(
        context: &Context,
        stream: &Stream,
        table: &LakeTable,
        wanted: Option<&TargetTable>,
        only: Option<&Range>,
    ) -> Result<(Self, Applied)> {
        let to = stream.target.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::Config, "the stream has no target to compare the lake with")
        })?;
        let target = connectors::target(&to.connection)?;
        let applied = target.applied(&stream.name, &to.table).await?;
        let shown = applied.filter(|applied| applied.lake_table == table.uuid()).ok_or_else(|| {
            Error::new(ErrorKind::Config, "the target was not loaded from this lake table yet")
                .with("table", &to.table)
                .hint("run `frazil load` first")
        })?;
        let there = target.as_source(&to.table);
        let source = connectors::source(&to.connection)?;
        let described = source.table(&there).await?;
        let (names, key) = match wanted {
            Some(wanted) => (wanted.schema.clone(), wanted.key.clone()),
            None => (table.columns(), table.key()),
        };
        let names = names.fields().iter().map(|field| field.name());
        let both = names.filter(|name| described.column(name).is_some()).cloned().collect();
        let deletes = if key.is_empty() { Deletes::Hard } else { stream.settings.deletes };
        let mut reversed = Stream { source: to.connection.clone(), source_table: there, ..stream.clone() };
        let settings = &mut reversed.settings;
        settings.columns = Some(both);
        // What the target shows of the lake: not what is marked as deleted, nor versions that have ended.
        settings.filter = match deletes {
            _ if stream.settings.mode == Some(Mode::Scd2) => Some(format!("{VALID_TO} IS NULL")),
            Deletes::Soft => Some(format!("{DELETED_AT} IS NULL")),
            Deletes::Hard | Deletes::Ignore => None,
        };
        settings.primary_key = key;
        let request = sync::read_request(&reversed, &described, context.budget)?;
        let side = Self::of(source, &to.connection, request, deletes == Deletes::Ignore, only)?;
        Ok((side, shown))
    }

    fn of(
        source: Arc<dyn Source>,
        connection: &Connection,
        request: ReadRequest,
        keeps_deleted: bool,
        only: Option<&Range>,
    ) -> Result<Self> {
        let mut request = ReadRequest { change: ChangeDetection::Full, cursor: None, from: None, ..request };
        if let Some(only) = only {
            let dialect = connectors::connector(connection)?.dialect;
            request.filter = Some(only.beside(dialect, request.filter.as_deref()));
        }
        Ok(Self::Database { source, request: Box::new(request), keeps_deleted })
    }

    /// Whether rows stay here that are deleted elsewhere.
    pub(super) fn keeps_deleted(&self) -> bool {
        matches!(self, Self::Database { keeps_deleted: true, .. })
    }

    /// Starts to read all of it.
    pub(super) async fn open(&self) -> Result<Open> {
        match self {
            Self::Lake { context, table, at, only } => {
                let runtime = merge::runtime(context.budget, context.lake.stores())?;
                let session = SessionContext::new_with_config_rt(merge::config(), runtime);
                let mut rows = session.read_table(table.provider(Some(*at)).await?)?;
                if let Some(only) = only {
                    rows = rows.filter(only.expr())?;
                }
                let schema = Arc::new(rows.schema().as_arrow().clone());
                let streams = rows.execute_stream_partitioned().await?;
                let streams = streams.into_iter().map(|rows| rows.map_err(Error::from).boxed()).collect();
                Ok(Open { schema, rows: None, portions: Portions::One(Some(streams)) })
            }
            Self::Shared { context, rows } => {
                let runtime = merge::runtime(context.budget, context.lake.stores())?;
                let rows = rows.all(runtime).await?;
                // The last column says what to do with the row: there is only one thing here.
                let columns: Vec<usize> = (0..rows.schema().fields().len() - 1).collect();
                let schema = Arc::new(rows.schema().project(&columns)?);
                let rows = rows.map(move |batch| Ok(batch?.project(&columns)?)).boxed();
                Ok(Open { schema, rows: None, portions: Portions::One(Some(vec![rows])) })
            }
            Self::Database { source, request, .. } => {
                let reading = source.open((**request).clone()).await?;
                let (schema, rows) = (reading.plan().schema.clone(), reading.plan().rows);
                Ok(Open { schema, rows, portions: Portions::Read(reading) })
            }
        }
    }
}

/// A place that is being read.
pub(super) struct Open {
    pub(super) schema: SchemaRef,
    /// About how many rows there are, if known.
    pub(super) rows: Option<u64>,
    portions: Portions,
}

enum Portions {
    One(Option<Vec<RowStream>>),
    Read(Box<dyn Reading>),
}

impl Open {
    async fn next(&mut self) -> Result<Option<Vec<RowStream>>> {
        match &mut self.portions {
            Portions::One(streams) => Ok(streams.take()),
            Portions::Read(reading) => Ok(reading.next().await?.map(|Portion { streams, .. }| streams)),
        }
    }

    /// Reads to the end, each stream in a task with a worker of its own; returns the workers, at least one.
    pub(super) async fn drain<W: Drain>(
        mut self,
        worker: impl Fn() -> Result<W>,
        progress: &Arc<Progress>,
    ) -> Result<Vec<W>> {
        let mut rested = vec![worker()?];
        while let Some(streams) = self.next().await? {
            let mut tasks = JoinSet::new();
            for mut rows in streams {
                let mut worker = match rested.pop() {
                    Some(worker) => worker,
                    None => worker()?,
                };
                let progress = progress.clone();
                tasks.spawn(async move {
                    while let Some(batch) = rows.next().await {
                        let batch = batch?;
                        progress.add(batch.num_rows() as u64, batch.get_array_memory_size() as u64);
                        worker.take(&batch)?;
                    }
                    Ok::<_, Error>(worker)
                });
            }
            while let Some(done) = tasks.join_next().await {
                rested.push(done.map_err(|source| {
                    Error::new(ErrorKind::Internal, "a reader stopped").because(source)
                })??);
            }
        }
        Ok(rested)
    }
}
