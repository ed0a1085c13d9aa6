//! MySQL and MariaDB as a target: sessions around [`prepare`](super::prepare) and [`load`](super::load), and
//! what to do when nobody knows whether a commit arrived.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use mysql_async::prelude::Queryable;

use super::{control, discover, load, preflight, prepare};
use crate::clients::mysql::{Session, connect, number};
use crate::connection::Connection;
use crate::connectors::sql::{Hears, lock};
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
    Ok(Arc::new(Mysql { connection: connection.clone(), idle: Mutex::new(Vec::new()) }))
}

struct Mysql {
    connection: Connection,
    /// Sessions that ended their last transaction in order.
    idle: Mutex<Vec<Session>>,
}

impl Mysql {
    /// One that is idle, if it still answers: a client learns only by asking that a server hung up.
    async fn session(&self) -> Result<Session> {
        loop {
            let idle = lock(&self.idle).pop();
            let Some(mut session) = idle else { break };
            if session.ping().await.is_ok() {
                return Ok(session);
            }
        }
        connect(&self.connection).await
    }

    /// A server that went away in the middle of a commit may need a moment to come back.
    async fn reconnect(&self) -> Result<Session> {
        for pause in RECONNECT_AFTER {
            tokio::time::sleep(pause).await;
            match connect(&self.connection).await {
                Err(error) if error.kind() == ErrorKind::Transient => {}
                outcome => return outcome,
            }
        }
        connect(&self.connection).await
    }

    /// Only after success: a session that failed ends, and with it whatever it left open.
    fn give_back(&self, session: Session) {
        lock(&self.idle).push(session);
    }

    fn name(&self, error: Error) -> Error {
        error.with("connection", self.connection.name())
    }

    /// A session, and the table with its database filled in.
    async fn at(&self, table: &TableId) -> Result<(Session, TableId)> {
        let session = self.session().await?;
        let schema = discover::schema_of(&session, table).map_err(|error| self.name(error))?;
        Ok((session, TableId::new(schema, table.name.clone())))
    }

    async fn load(&self, merge: Merge, hears: Hears) -> Result<MergeStats> {
        let (mut session, id) = self.at(&merge.table.id).await?;
        let (stream, to) = (merge.stream.clone(), merge.to);
        let stats = match load::run(&mut session, &id, merge, hears).await {
            Ok(stats) => stats,
            Err(error) => {
                // Locks go at once; a session that cannot even do that is dropped and goes by itself.
                session.run("ROLLBACK").await.ok();
                return Err(self.name(error));
            }
        };
        match session.run("COMMIT").await {
            Ok(_) => self.give_back(session),
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
}

#[async_trait]
impl Target for Mysql {
    async fn plan(&self, table: &TargetTable) -> Result<Vec<String>> {
        let (mut session, id) = self.at(&table.id).await?;
        let plan = prepare::plan(&mut session, &id, table).await.map_err(|error| self.name(error))?;
        self.give_back(session);
        Ok(plan)
    }

    async fn prepare(&self, table: &TargetTable) -> Result<()> {
        let (mut session, id) = self.at(&table.id).await?;
        prepare::run(&mut session, &id, table).await.map_err(|error| self.name(error))?;
        self.give_back(session);
        Ok(())
    }

    async fn applied(&self, stream: &str, table: &TableId) -> Result<Option<Applied>> {
        let (mut session, id) = self.at(table).await?;
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
        let (mut session, id) = self.at(&table.id).await?;
        let findings = preflight::run(&mut session, &id, table).await.map_err(|error| self.name(error))?;
        self.give_back(session);
        Ok(findings)
    }
}
