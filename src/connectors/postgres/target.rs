//! Postgres as a target: sessions around [`prepare`](super::prepare) and [`load`](super::load), and
//! what to do when nobody knows whether a commit arrived.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;

use super::{catalog, control, load, prepare};
use crate::clients::postgres::translate;
use crate::clients::postgres::{Session, connect};
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
    Ok(Arc::new(Postgres { connection: connection.clone(), idle: Mutex::new(Vec::new()) }))
}

struct Postgres {
    connection: Connection,
    /// Sessions that ended their last transaction in order.
    idle: Mutex<Vec<Session>>,
}

impl Postgres {
    async fn session(&self) -> Result<Session> {
        let idle = self.idle.lock().expect("no panic while it is held").pop();
        match idle.filter(|session| !session.is_closed()) {
            Some(session) => Ok(session),
            None => connect(&self.connection).await,
        }
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
        self.idle.lock().expect("no panic while it is held").push(session);
    }

    async fn change(&self, merge: Merge, hears: Hears) -> Result<MergeStats> {
        let session = self.session().await?;
        let id = catalog::locate(&session, &merge.table.id).await?;
        notice_the_end(&session).await;
        let (stream, to) = (merge.stream.clone(), merge.to);
        let stats = match load::run(&session, &id, merge, hears).await {
            Ok(stats) => stats,
            Err(error) => {
                // Locks go at once; a session that cannot even do that is dropped and goes by itself.
                session.batch_execute("ROLLBACK").await.ok();
                return Err(self.name(control::name_holder(&session, &id, error).await));
            }
        };
        match session.batch_execute("COMMIT").await {
            Ok(()) => self.give_back(session),
            // The server said no.
            Err(error) if error.as_db_error().is_some() => return Err(self.name(translate(&error))),
            // Nobody said anything: what counts is what is there.
            Err(lost) => {
                drop(session);
                let session = self.reconnect().await?;
                if control::applied(&session, &stream, &id).await? != Some(to) {
                    return Err(self.name(translate(&lost)));
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
impl Target for Postgres {
    async fn plan(&self, table: &TargetTable) -> Result<Vec<String>> {
        let session = self.session().await?;
        let id = catalog::locate(&session, &table.id).await?;
        let plan = prepare::plan(&session, &id, table).await.map_err(|error| self.name(error))?;
        self.give_back(session);
        Ok(plan.statements())
    }

    async fn prepare(&self, table: &TargetTable) -> Result<()> {
        let session = self.session().await?;
        let id = catalog::locate(&session, &table.id).await?;
        prepare::run(&session, &id, table).await.map_err(|error| self.name(error))?;
        self.give_back(session);
        Ok(())
    }

    async fn applied(&self, stream: &str, table: &TableId) -> Result<Option<Applied>> {
        let session = self.session().await?;
        let id = catalog::locate(&session, table).await?;
        let applied = control::applied(&session, stream, &id).await.map_err(|error| self.name(error))?;
        self.give_back(session);
        Ok(applied)
    }

    async fn apply(&self, merge: Merge) -> Result<MergeStats> {
        self.change(merge, Hears::default()).await
    }

    async fn apply_but(&self, merge: Merge, refusals: Arc<dyn Refusals>) -> Result<MergeStats> {
        self.change(merge, Hears::of_refusals(refusals)).await
    }

    async fn apply_beside(&self, merge: Merge, conflicts: Arc<dyn Conflicts>) -> Result<MergeStats> {
        self.change(merge, Hears::of_conflicts(conflicts)).await
    }

    async fn preflight(&self, table: &TargetTable) -> Result<Vec<Finding>> {
        let session = self.session().await?;
        let id = catalog::locate(&session, &table.id).await?;
        let findings = super::preflight::run(&session, &id, table).await.map_err(|error| self.name(error))?;
        self.give_back(session);
        Ok(findings)
    }
}

/// Asks the server to look every now and then, in the middle of a statement, whether we are still
/// there: then the locks of a runner that was killed are gone by the next run. Servers before version
/// 14, and on some systems all, cannot, and notice at the statement's end.
async fn notice_the_end(session: &Session) {
    if session.server().version >= 140_000 {
        session.batch_execute("SET client_connection_check_interval = '2s'").await.ok();
    }
}
