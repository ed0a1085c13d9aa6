//! A reading under way: one snapshot, cut into portions, each read by several streams.
//!
//! ```text
//! coordinator: BEGIN, export snapshot ──▶ workers: SET TRANSACTION SNAPSHOT
//! portion = blocks [a, b) ──▶ queue of ctid ranges ──▶ streams pull the next range when done
//! ```
//!
//! All streams of all portions see the table at one moment. A range of `ctid`s is a range of places
//! in the heap, so each row version is in exactly one; the last range has no upper end. A partitioned
//! table is read through its root: the same range of each partition at once. What has no such places
//! is read in ranges of its key, see [`keyset`](super::keyset).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt};

use super::discover::Heap;
use super::horizon::READER_NAME;
use super::keyset::{Bound, ByKey};
use super::position::{Position, Stored};
use super::rows::{Pool, Shape, rows};
use super::way::Way;
use super::window::Prepared;
use crate::clients::postgres::{Session, connect};
use crate::connection::Connection;
use crate::connectors::sql::{
    RANGE_BYTES, RANGES_A_STREAM, SMALLEST_RANGE_BYTES, Select, lock, replaced_values,
};
use crate::error::{Error, ErrorKind, Result};
use crate::source::{Portion, ReadPlan, Reading};

/// Settings of a session that reads ranges: the place in the heap is the way in, whatever the
/// planner thinks of the condition on the cursor; and there is no time for compiling.
const BY_PLACE: &str = "SET LOCAL enable_seqscan = off; SET LOCAL enable_indexscan = off; \
     SET LOCAL enable_indexonlyscan = off; SET LOCAL enable_bitmapscan = off; \
     SET LOCAL max_parallel_workers_per_gather = 0; SET LOCAL jit = off";

/// Settings of a session that reads ranges of a key: we are parallel ourselves.
const BY_KEY: &str = "SET LOCAL max_parallel_workers_per_gather = 0; SET LOCAL jit = off";

/// What is read, in which pieces.
pub(super) enum Work {
    /// One statement; or, when it goes on after a key, what is about to become ranges.
    Whole { select: Select, after: Option<Bound> },
    /// Ranges of a key.
    Keys(ByKey),
    /// Ranges of the heap from a block on.
    Ranges {
        select: Select,
        heap: Heap,
        from_block: u64,
        /// About how many source bytes a portion covers.
        portion_bytes: u64,
    },
}

/// A reading whose coordinator has its snapshot.
pub(super) struct PostgresReading {
    plan: ReadPlan,
    connection: Connection,
    shape: Arc<Shape>,
    work: Option<Work>,
    /// Where the table stands after the last portion.
    end: Stored,
    parallel: usize,
    /// Settings of each session.
    settings: &'static str,
    /// Sessions that see the snapshot, the coordinator first.
    sessions: Pool,
    /// Where the coordinator goes in the end.
    idle: Pool,
    /// Who looks whether anybody waits for us.
    way: Way,
}

#[async_trait]
impl Reading for PostgresReading {
    fn plan(&self) -> &ReadPlan {
        &self.plan
    }

    async fn next(&mut self) -> Result<Option<Portion>> {
        let gave = self.way.gave();
        self.portion().await.map_err(|error| Way::explain(&gave, error))
    }
}

impl PostgresReading {
    /// A reading by up to `parallel` sessions. `session` has the snapshot, and others join it.
    pub(super) fn new(
        connection: &Connection,
        session: Session,
        parallel: usize,
        prepared: Prepared,
        idle: &Pool,
    ) -> Self {
        Self {
            plan: prepared.plan,
            connection: connection.clone(),
            shape: prepared.shape,
            settings: prepared.work.settings().unwrap_or_default(),
            work: Some(prepared.work),
            end: prepared.end,
            parallel: parallel.max(1),
            way: Way::of(connection, session.server().pid),
            sessions: Arc::new(Mutex::new(vec![session])),
            idle: Arc::clone(idle),
        }
    }

    async fn portion(&mut self) -> Result<Option<Portion>> {
        let Some(work) = self.work.take() else {
            self.close().await?;
            return Ok(None);
        };
        let (statements, rest, resume) = match work {
            Work::Keys(keys) => self.portion_by_key(keys).await?,
            Work::Whole { select, .. } => (VecDeque::from([select.with(None)]), None, self.end.clone()),
            Work::Ranges { select, heap, from_block, portion_bytes } => {
                self.portion_by_place(select, heap, from_block, portion_bytes)
            }
        };
        let complete = rest.is_none();
        self.work = rest;
        let wanted = statements.len().min(self.parallel).max(1);
        self.gather(wanted).await?;
        let queue = Arc::new(Mutex::new(statements));
        let streams = lock(&self.sessions)
            .drain(..wanted)
            .map(|session| {
                let gave = self.way.gave();
                rows(session, Arc::clone(&queue), Arc::clone(&self.shape), Arc::clone(&self.sessions))
                    .map_err(move |error| Way::explain(&gave, error))
                    .boxed()
            })
            .collect();
        Ok(Some(Portion { streams, resume: resume.write(), complete, oldest: None }))
    }

    /// Cuts the next portion off: its statements, what is left, and where the table stands after it.
    fn portion_by_place(
        &self,
        select: Select,
        heap: Heap,
        from: u64,
        portion_bytes: u64,
    ) -> (VecDeque<String>, Option<Work>, Stored) {
        // One step through the largest partition is a step through each.
        let step_bytes = (heap.total_blocks * heap.block_bytes / heap.blocks.max(1)).max(1);
        let to = from.saturating_add((portion_bytes / step_bytes).max(1));
        let last = to >= heap.blocks;
        let bytes = (heap.blocks.min(to).saturating_sub(from)).saturating_mul(step_bytes);
        let range_bytes = (bytes / (self.parallel as u64 * RANGES_A_STREAM))
            .clamp(SMALLEST_RANGE_BYTES, RANGE_BYTES.max(SMALLEST_RANGE_BYTES));
        let step = (range_bytes / step_bytes).max(1);

        let mut statements = VecDeque::new();
        let mut block = from;
        loop {
            let next = block.saturating_add(step);
            let open_end = last && next >= heap.blocks;
            let upper =
                if open_end { String::new() } else { format!(" AND ctid < '({},0)'::tid", next.min(to)) };
            statements.push_back(select.with(Some(format!("ctid >= '({block},0)'::tid{upper}"))));
            block = next;
            if open_end || block >= to {
                break;
            }
        }
        let rest =
            (!last).then(|| Work::Ranges { select, heap: heap.clone(), from_block: to, portion_bytes });
        let resume = if last {
            self.end.clone()
        } else {
            let then = Box::new(self.end.position.clone());
            let position = Position::FirstRead { then, layout: heap.layout, done_to_block: to };
            Stored::new(self.end.source.clone(), position)
        };
        (statements, rest, resume)
    }

    /// The same by key.
    async fn portion_by_key(&self, mut keys: ByKey) -> Result<(VecDeque<String>, Option<Work>, Stored)> {
        let coordinator = self.coordinator()?;
        let cut = keys.cut(&coordinator).await?;
        lock(&self.sessions).push(coordinator);
        let statements = cut.statements.into();
        let Some(end) = cut.end else { return Ok((statements, None, self.end.clone())) };
        let position = Position::FirstReadByKey {
            then: Box::new(self.end.position.clone()),
            layout: keys.layout.clone(),
            key: keys.keys.described(),
            after: end.clone(),
        };
        keys.after = Some(end);
        Ok((statements, Some(Work::Keys(keys)), Stored::new(self.end.source.clone(), position)))
    }

    /// A session that sees the snapshot, out of the pool.
    fn coordinator(&self) -> Result<Session> {
        let gone = || Error::new(ErrorKind::Transient, "the rows of a portion were given up");
        lock(&self.sessions).pop().ok_or_else(gone)
    }

    /// Makes sure that this many sessions see the snapshot.
    async fn gather(&mut self, wanted: usize) -> Result<()> {
        let have = lock(&self.sessions).len();
        if have >= wanted {
            return Ok(());
        }
        let coordinator = self.coordinator()?;
        let row = coordinator.query_typed("SELECT pg_export_snapshot()", &[]).await?;
        let snapshot: String = row.first().map(|row| row.get(0)).unwrap_or_default();
        let workers = futures::future::try_join_all((have..wanted).map(|_| self.worker(&snapshot))).await?;
        let mut sessions = lock(&self.sessions);
        sessions.push(coordinator);
        sessions.extend(workers);
        Ok(())
    }

    /// A session in the coordinator's snapshot.
    async fn worker(&self, snapshot: &str) -> Result<Session> {
        let session = connect(&self.connection).await?;
        let begin = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT '{snapshot}'; \
             SET LOCAL application_name = '{READER_NAME}'; {}",
            self.settings
        );
        session.batch_execute(&begin).await?;
        self.way.add(session.server().pid);
        Ok(session)
    }

    /// Ends the transactions and says what the policy replaced.
    async fn close(&mut self) -> Result<()> {
        let sessions = std::mem::take(&mut *lock(&self.sessions));
        // One session is enough for what comes next; the workers close.
        if let Some(session) = sessions.into_iter().next() {
            session.batch_execute("COMMIT").await?;
            lock(&self.idle).push(session);
        }
        self.plan.notes.extend(replaced_values(&self.shape.schema, &self.shape.replaced, "`out_of_range`"));
        Ok(())
    }
}

impl Work {
    /// What the sessions that do it are set to.
    pub(super) fn settings(&self) -> Option<&'static str> {
        match self {
            Self::Whole { .. } => None,
            Self::Keys(_) => Some(BY_KEY),
            Self::Ranges { .. } => Some(BY_PLACE),
        }
    }
}
