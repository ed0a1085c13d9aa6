//! A reading under way, cut into portions, each read by several streams.
//!
//! ```text
//! one statement ─▶ one stream
//! a key         ─▶ ranges ─▶ queue ─▶ streams pull the next range when done, each in its own session
//! ```
//!
//! A statement sees the table at one moment, that of its begin. So none is run in a transaction, which would
//! keep the server from forgetting old versions for as long as the reading takes; but for a table whose log is
//! followed then: all of it has to be of one moment, and the sessions come in their snapshots.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;

use super::keyset::ByKey;
use super::position::{Position, Stored};
use super::rows::{Pool, Shape, rows};
use super::window::Prepared;
use crate::clients::mysql::{Session, connect};
use crate::connection::Connection;
use crate::connectors::sql::{lock, replaced_values};
use crate::error::{Error, ErrorKind, Result};
use crate::source::{Portion, ReadPlan, Reading};

/// What is read, in which pieces.
pub(super) enum Work {
    /// One statement.
    Whole(String),
    /// Ranges of a key.
    Keys(Box<ByKey>),
}

/// A reading that is ready.
pub(super) struct MysqlReading {
    plan: ReadPlan,
    connection: Connection,
    shape: Arc<Shape>,
    work: Option<Work>,
    /// Where the table stands after the last portion.
    end: Stored,
    /// What the table is known by; ranges of another one mean nothing.
    layout: String,
    parallel: usize,
    /// Sessions that read, the coordinator first.
    sessions: Pool,
    /// Whether the sessions are in a snapshot, so that no others may join them.
    frozen: bool,
    /// Where the coordinator goes in the end.
    idle: Pool,
}

#[async_trait]
impl Reading for MysqlReading {
    fn plan(&self) -> &ReadPlan {
        &self.plan
    }

    async fn next(&mut self) -> Result<Option<Portion>> {
        let Some(work) = self.work.take() else {
            self.close().await?;
            return Ok(None);
        };
        let (statements, rest, resume) = match work {
            Work::Whole(statement) => (VecDeque::from([statement]), None, self.end.clone()),
            Work::Keys(keys) => self.portion(*keys).await?,
        };
        let complete = rest.is_none();
        self.work = rest;
        let wanted = statements.len().min(self.parallel).max(1);
        self.gather(wanted).await?;
        let queue = Arc::new(Mutex::new(statements));
        let streams = lock(&self.sessions)
            .drain(..wanted)
            .map(|session| {
                rows(session, Arc::clone(&queue), Arc::clone(&self.shape), Arc::clone(&self.sessions))
            })
            .collect();
        Ok(Some(Portion { streams, resume: resume.write(), complete, oldest: None }))
    }
}

impl MysqlReading {
    /// A reading by up to `parallel` sessions, of which more are opened when there is work for them.
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
            work: Some(prepared.work),
            end: prepared.end,
            layout: prepared.layout,
            parallel: parallel.max(1),
            sessions: Arc::new(Mutex::new(vec![session])),
            frozen: false,
            idle: Arc::clone(idle),
        }
    }

    /// A reading by sessions that are in one snapshot already.
    pub(super) fn in_snapshot(
        connection: &Connection,
        mut sessions: Vec<Session>,
        prepared: Prepared,
        idle: &Pool,
    ) -> Self {
        let (coordinator, others) = (sessions.remove(0), sessions);
        let reading = Self::new(connection, coordinator, 1 + others.len(), prepared, idle);
        lock(&reading.sessions).extend(others);
        Self { frozen: true, ..reading }
    }

    /// Cuts the next portion off: its statements, what is left, and where the table stands after it.
    async fn portion(&self, mut keys: ByKey) -> Result<(VecDeque<String>, Option<Work>, Stored)> {
        let mut coordinator = lock(&self.sessions).pop().ok_or_else(given_up)?;
        let cut = keys.cut(&mut coordinator).await?;
        lock(&self.sessions).push(coordinator);
        let statements = cut.statements.into();
        let Some(end) = cut.end else { return Ok((statements, None, self.end.clone())) };
        let position = Position::FirstReadByKey {
            then: Box::new(self.end.position.clone()),
            layout: self.layout.clone(),
            key: keys.keys.described(),
            after: end.clone(),
        };
        keys.after = Some(end);
        let rest = Some(Work::Keys(Box::new(keys)));
        Ok((statements, rest, Stored::new(self.end.source.clone(), position)))
    }

    /// Makes sure that this many sessions are there.
    async fn gather(&mut self, wanted: usize) -> Result<()> {
        let have = lock(&self.sessions).len();
        if have >= wanted {
            return Ok(());
        }
        if self.frozen {
            return Err(given_up());
        }
        let workers =
            futures::future::try_join_all((have..wanted).map(|_| connect(&self.connection))).await?;
        lock(&self.sessions).extend(workers);
        Ok(())
    }

    /// Says what the policy replaced.
    async fn close(&mut self) -> Result<()> {
        let sessions = std::mem::take(&mut *lock(&self.sessions));
        // One session is enough for what comes next; the workers close.
        if let Some(mut session) = sessions.into_iter().next() {
            if self.frozen {
                session.run("COMMIT").await?;
            }
            lock(&self.idle).push(session);
        }
        self.plan.notes.extend(replaced_values(&self.shape.schema, &self.shape.replaced, "`out_of_range`"));
        Ok(())
    }
}

fn given_up() -> Error {
    Error::new(ErrorKind::Transient, "the rows of a portion were given up")
}
