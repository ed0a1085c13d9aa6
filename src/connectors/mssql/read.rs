//! A reading under way, cut into portions, each read by several streams.
//!
//! ```text
//! one statement ─▶ one stream, in the coordinator's transaction
//! a key         ─▶ ranges ─▶ queue ─▶ streams pull the next range when done, each in its own session
//! ```

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;

use super::horizon::MARK_READER;
use super::keyset::ByKey;
use super::position::{Position, Stored};
use super::rows::{Pool, Shape, rows};
use crate::clients::mssql::{Isolation, Options, Session, connect};
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
pub(super) struct MssqlReading {
    pub(super) plan: ReadPlan,
    pub(super) connection: Connection,
    pub(super) options: Options,
    pub(super) shape: Arc<Shape>,
    pub(super) work: Option<Work>,
    /// Where the table stands after the last portion.
    pub(super) end: Stored,
    /// What the table is known by; ranges of another one mean nothing.
    pub(super) layout: String,
    pub(super) parallel: usize,
    /// Whether sessions read in a SNAPSHOT transaction.
    pub(super) snapshot: bool,
    /// Sessions that read, the coordinator first.
    pub(super) sessions: Pool,
    /// Where the coordinator goes in the end.
    pub(super) idle: Pool,
}

#[async_trait]
impl Reading for MssqlReading {
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

impl MssqlReading {
    /// Cuts the next portion off: its statements, what is left, and where the table stands after it.
    async fn portion(&self, mut keys: ByKey) -> Result<(VecDeque<String>, Option<Work>, Stored)> {
        let gone = || Error::new(ErrorKind::Transient, "the rows of a portion were given up");
        let mut coordinator = lock(&self.sessions).pop().ok_or_else(gone)?;
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
        let workers = futures::future::try_join_all((have..wanted).map(|_| self.worker())).await?;
        lock(&self.sessions).extend(workers);
        Ok(())
    }

    async fn worker(&self) -> Result<Session> {
        let mut session = connect(&self.connection, self.options).await?;
        begin(&mut session, self.snapshot).await?;
        Ok(session)
    }

    /// Ends the transactions and says what the policy replaced.
    async fn close(&mut self) -> Result<()> {
        let sessions = std::mem::take(&mut *lock(&self.sessions));
        // One session is enough for what comes next; the workers close.
        if let Some(mut session) = sessions.into_iter().next() {
            session
                .batch(
                    "IF @@TRANCOUNT > 0 COMMIT TRANSACTION; SET TRANSACTION ISOLATION LEVEL READ COMMITTED",
                )
                .await?;
            lock(&self.idle).push(session);
        }
        self.plan.notes.extend(replaced_values(
            &self.shape.schema,
            &self.shape.replaced,
            "`out_of_range` or cut by `sub_microsecond`",
        ));
        Ok(())
    }
}

/// Makes a session one that reads: in one SNAPSHOT where the database allows it.
pub(super) async fn begin(session: &mut Session, snapshot: bool) -> Result<()> {
    session.batch(MARK_READER).await?;
    if snapshot {
        session.begin(Isolation::Snapshot).await?;
    }
    Ok(())
}
