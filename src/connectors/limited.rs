//! A source that is read no faster, and by no more sessions, than its connection allows.
//!
//! Everything that reads goes through here: passes, comparisons, audits, replays. A source takes a place
//! among the connections when it is first asked, and keeps it as long as it lives.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::StreamExt;
use tokio::sync::{Mutex, OnceCell};

use crate::connection::{Limiter, Place};
use crate::delta::{LogPlace, Watermark};
use crate::error::{Error, ErrorKind, Result};
use crate::source::{
    Arrangement, Finding, Goal, Portion, ReadPlan, ReadRequest, Reading, RowStream, Source, Strain,
};
use crate::table::{TableDescription, TableId};

/// How often the database is asked whether it is under strain: a cheap query, and nobody waits longer for us
/// to notice.
const LOOK: Duration = Duration::from_secs(2);
/// A reading holds a snapshot. Rather than hold it for longer, the pass ends, and comes back.
const PATIENCE: Duration = Duration::from_secs(600);
/// Fewer rows are no batch; more would make long breaks at low rates.
const SMALLEST_BATCH: u64 = 1_000;

/// The same source, within limits.
pub(super) fn limited(inner: Arc<dyn Source>, limiter: Arc<Limiter>) -> Arc<dyn Source> {
    let gauge = Gauge { source: inner, limiter, looked: Mutex::new(None), paused: AtomicU64::new(0) };
    Arc::new(Limited { gauge: Arc::new(gauge), place: OnceCell::new() })
}

struct Limited {
    gauge: Arc<Gauge>,
    place: OnceCell<Arc<Place>>,
}

impl Limited {
    /// The source, as soon as there is a place.
    async fn enter(&self) -> Result<&dyn Source> {
        let enter = || async { self.gauge.limiter.enter().await.map(Arc::new) };
        self.place.get_or_try_init(enter).await?;
        Ok(self.gauge.source.as_ref())
    }
}

#[async_trait]
impl Source for Limited {
    async fn tables(&self) -> Result<Vec<TableDescription>> {
        self.enter().await?.tables().await
    }

    async fn table(&self, table: &TableId) -> Result<TableDescription> {
        self.enter().await?.table(table).await
    }

    async fn plan(&self, request: &ReadRequest) -> Result<ReadPlan> {
        self.enter().await?.plan(request).await
    }

    async fn open(&self, mut request: ReadRequest) -> Result<Box<dyn Reading>> {
        let source = self.enter().await?;
        self.gauge.calm().await?;
        let mut places: Vec<Arc<Place>> = self.place.get().cloned().into_iter().collect();
        let more = self.gauge.limiter.enter_more(request.parallel.saturating_sub(1));
        places.extend(more.into_iter().map(Arc::new));
        request.parallel = places.len().max(1);
        if let Some(rate) = self.gauge.limiter.limits().rows_per_second {
            let most = usize::try_from(rate.get().max(SMALLEST_BATCH)).unwrap_or(usize::MAX);
            request.batch_rows = request.batch_rows.min(most);
        }
        let inner = source.open(request).await?;
        let plan = inner.plan().clone();
        Ok(Box::new(LimitedReading { inner, plan, gauge: self.gauge.clone(), _places: places }))
    }

    async fn acknowledge(&self, table: &TableId, position: &Watermark) -> Result<()> {
        self.enter().await?.acknowledge(table, position).await
    }

    async fn count(&self, table: &TableId, filter: Option<&str>) -> Result<u64> {
        self.enter().await?.count(table, filter).await
    }

    async fn preflight(&self, request: &ReadRequest) -> Result<Vec<Finding>> {
        self.enter().await?.preflight(request).await
    }

    async fn arrange(&self, request: &ReadRequest, goal: Goal) -> Result<Arrangement> {
        self.enter().await?.arrange(request, goal).await
    }

    async fn execute(&self, arrangement: &Arrangement) -> Result<()> {
        self.enter().await?.execute(arrangement).await
    }

    async fn end_of_log(&self) -> Result<Option<LogPlace>> {
        self.enter().await?.end_of_log().await
    }

    async fn strain(&self) -> Result<Strain> {
        self.enter().await?.strain().await
    }
}

struct LimitedReading {
    inner: Box<dyn Reading>,
    plan: ReadPlan,
    gauge: Arc<Gauge>,
    _places: Vec<Arc<Place>>,
}

#[async_trait]
impl Reading for LimitedReading {
    fn plan(&self) -> &ReadPlan {
        &self.plan
    }

    async fn next(&mut self) -> Result<Option<Portion>> {
        self.gauge.calm().await?;
        let portion = self.inner.next().await?;
        self.plan = self.inner.plan().clone();
        let paused = self.gauge.paused.load(Ordering::Relaxed) / 1000;
        if paused > 0 {
            self.plan.notes.push(format!("reading paused for {paused} s, as the database was under strain"));
        }
        Ok(portion.map(|portion| Portion {
            streams: portion.streams.into_iter().map(|rows| paced(rows, &self.gauge)).collect(),
            ..portion
        }))
    }

    fn reached(&self) -> Option<LogPlace> {
        self.inner.reached()
    }

    fn again(&self) -> bool {
        self.inner.again()
    }
}

/// Rows, no faster than they may come. Who is not asked for rows does not ask the database for them.
fn paced(rows: RowStream, gauge: &Arc<Gauge>) -> RowStream {
    let gauge = gauge.clone();
    rows.then(move |batch| {
        let gauge = gauge.clone();
        async move {
            let batch = batch?;
            gauge.limiter.spend(batch.num_rows() as u64, batch.get_array_memory_size() as u64).await;
            gauge.calm().await?;
            Ok(batch)
        }
    })
    .boxed()
}

/// What the readers of one source share.
struct Gauge {
    source: Arc<dyn Source>,
    limiter: Arc<Limiter>,
    /// When the database was last found at ease.
    looked: Mutex<Option<Instant>>,
    /// Milliseconds of pauses.
    paused: AtomicU64,
}

impl Gauge {
    /// Waits while the database is under strain. All readers of a source wait for one who looks.
    async fn calm(&self) -> Result<()> {
        let limits = self.limiter.limits();
        if limits.replica_lag.is_none() && limits.waiting_sessions.is_none() {
            return Ok(());
        }
        let mut looked = self.looked.lock().await;
        if looked.is_some_and(|looked| looked.elapsed() < LOOK) {
            return Ok(());
        }
        let began = Instant::now();
        while let Some(strain) = self.strain().await? {
            if began.elapsed() > PATIENCE {
                return Err(Error::new(ErrorKind::Transient, strain)
                    .hint("the pass goes on later; `limits` of the connection says how much is too much"));
            }
            tracing::debug!(%strain, "reading pauses");
            tokio::time::sleep(LOOK).await;
            self.paused.fetch_add(LOOK.as_millis() as u64, Ordering::Relaxed);
        }
        *looked = Some(Instant::now());
        Ok(())
    }

    /// What is too much, if anything is.
    async fn strain(&self) -> Result<Option<String>> {
        let Strain { replica_lag, waiting } = self.source.strain().await?;
        let limits = self.limiter.limits();
        if let (Some(most), Some(lag)) = (limits.replica_lag, replica_lag)
            && lag > most
        {
            return Ok(Some(format!("a replica is {} s behind", lag.as_secs())));
        }
        if let (Some(most), Some(waiting)) = (limits.waiting_sessions, waiting)
            && waiting >= most.get()
        {
            return Ok(Some(format!("{waiting} sessions wait for locks")));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    /// The names of functions in a part of a file.
    fn functions(text: &str, from: &str) -> Vec<String> {
        let part = text.split_once(from).unwrap().1.split("\n}\n").next().unwrap();
        let name = |line: &str| {
            let line = line.trim_start();
            let rest = line.strip_prefix("async fn ").or_else(|| line.strip_prefix("fn "))?;
            Some(rest.split('(').next()?.to_owned())
        };
        part.lines().filter_map(name).collect()
    }

    /// A method with a body of its own in the trait would be asked of this wrapper and not of the source.
    #[test]
    fn every_method_of_a_source_is_forwarded() {
        let (source, here) = (include_str!("../source.rs"), include_str!("limited.rs"));
        for (of, by) in [
            ("pub trait Source: ", "impl Source for Limited {"),
            ("pub trait Reading: ", "impl Reading for LimitedReading {"),
        ] {
            let methods = functions(source, of);
            assert!(methods.len() > 1, "{of}: {methods:?}");
            assert_eq!(functions(here, by), methods, "{of}");
        }
    }
}
