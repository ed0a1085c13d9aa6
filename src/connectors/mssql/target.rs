//! SQL Server as a target: sessions around [`prepare`](super::prepare) and [`load`](super::load), and
//! what to do when nobody knows whether a commit arrived.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;

use super::{control, load, preflight, prepare, relation};
use crate::clients::mssql::{Options, Session, connect, number};
use crate::connection::Connection;
use crate::connectors::sql::Hears;
use crate::error::{Error, ErrorKind, Result};
use crate::faults;
use crate::source::Finding;
use crate::table::TableId;
use crate::target::{Applied, Conflicts, Merge, MergeStats, Refusals, Target, TargetTable};

/// Pauses before each try to learn what became of a commit.
const RECONNECT_AFTER: [Duration; 4] =
    [Duration::from_millis(100), Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(5)];

/// A target that connects when first used.
pub(super) fn open(connection: &Connection) -> Result<Arc<dyn Target>> {
    Ok(Arc::new(SqlServer { connection: connection.clone(), idle: Mutex::new(Vec::new()) }))
}

struct SqlServer {
    connection: Connection,
    /// Sessions that ended their last transaction in order.
    idle: Mutex<Vec<Session>>,
}

impl SqlServer {
    async fn connect(&self) -> Result<Session> {
        connect(&self.connection, Options::default()).await
    }

    /// One that is idle, if it still answers: a client learns only by asking that a server hung up.
    async fn session(&self) -> Result<Session> {
        let idle = self.idle.lock().expect("no panic while it is held").pop();
        if let Some(mut session) = idle
            && session.rollback().await.is_ok()
        {
            return Ok(session);
        }
        self.connect().await
    }

    /// A server that went away in the middle of a commit may need a moment to come back.
    async fn reconnect(&self) -> Result<Session> {
        for pause in RECONNECT_AFTER {
            tokio::time::sleep(pause).await;
            match self.connect().await {
                Err(error) if error.kind() == ErrorKind::Transient => {}
                outcome => return outcome,
            }
        }
        self.connect().await
    }

    /// Only after success: a session that failed ends, and with it whatever it left open.
    fn give_back(&self, session: Session) {
        self.idle.lock().expect("no panic while it is held").push(session);
    }

    async fn load(&self, merge: Merge, hears: Hears) -> Result<MergeStats> {
        let mut session = self.session().await?;
        let id = relation::locate(&mut session, &merge.table.id).await?;
        let (stream, to) = (merge.stream.clone(), merge.to);
        // A session that failed is dropped, and the server undoes what it left.
        let stats = load::run(&mut session, &id, merge, hears).await.map_err(|error| self.name(error))?;
        match session.commit().await {
            Ok(()) => self.give_back(session),
            // The server said no.
            Err(error) if number(&error).is_some() => return Err(self.name(error)),
            // Nobody said anything: what counts is what is there.
            Err(lost) => {
                drop(session);
                let mut session = self.reconnect().await?;
                if control::applied(&mut session, &stream, &id).await? != Some(to) {
                    return Err(self.name(lost));
                }
                self.give_back(session);
            }
        }
        faults::point(faults::AFTER_LOAD)?;
        Ok(stats)
    }

    fn name(&self, error: Error) -> Error {
        error.with("connection", self.connection.name())
    }
}

#[async_trait]
impl Target for SqlServer {
    async fn plan(&self, table: &TargetTable) -> Result<Vec<String>> {
        let mut session = self.session().await?;
        let id = relation::locate(&mut session, &table.id).await?;
        let plan = prepare::plan(&mut session, &id, table).await.map_err(|error| self.name(error))?;
        self.give_back(session);
        Ok(plan)
    }

    async fn prepare(&self, table: &TargetTable) -> Result<()> {
        let mut session = self.session().await?;
        let id = relation::locate(&mut session, &table.id).await?;
        prepare::run(&mut session, &id, table).await.map_err(|error| self.name(error))?;
        self.give_back(session);
        Ok(())
    }

    async fn applied(&self, stream: &str, table: &TableId) -> Result<Option<Applied>> {
        let mut session = self.session().await?;
        let id = relation::locate(&mut session, table).await?;
        let applied = control::applied(&mut session, stream, &id).await.map_err(|error| self.name(error))?;
        self.give_back(session);
        Ok(applied)
    }

    async fn apply(&self, merge: Merge) -> Result<MergeStats> {
        self.load(merge, Hears::default()).await
    }

    async fn apply_but(&self, merge: Merge, refusals: Arc<dyn Refusals>) -> Result<MergeStats> {
        self.load(merge, Hears::of_refusals(refusals)).await
    }

    async fn apply_beside(&self, merge: Merge, conflicts: Arc<dyn Conflicts>) -> Result<MergeStats> {
        self.load(merge, Hears::of_conflicts(conflicts)).await
    }

    async fn preflight(&self, table: &TargetTable) -> Result<Vec<Finding>> {
        let mut session = self.session().await?;
        let id = relation::locate(&mut session, &table.id).await?;
        let findings = preflight::run(&mut session, &id, table).await.map_err(|error| self.name(error))?;
        self.give_back(session);
        Ok(findings)
    }
}
