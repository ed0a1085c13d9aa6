//! Postgres as a source: describes tables, plans a read, opens it.
//!
//! ```text
//! request ──▶ discover ──▶ choose (how are changes found?) ──▶ horizon ──▶ snapshot ──▶ Reading
//! ```
//!
//! The horizon is taken before the snapshot, always: what commits between the two is read, and will
//! be read again; nothing is left out.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;

use super::choose::choose;
use super::discover::{self, Relation};
use super::read::PostgresReading;
use super::rows::Pool;
use super::window::{self, Stage};
use super::{log, triggers};
use crate::clients::postgres::{Session, connect};
use crate::connection::Connection;
use crate::connectors::sql::{POSTGRES, counting, lock};
use crate::delta::{LogPlace, Watermark};
use crate::error::{Error, ErrorKind, Result};
use crate::source::{
    Arrangement, ChangeDetection, Finding, Goal, ReadPlan, ReadRequest, Reading, Severity, Source, Strain,
};
use crate::table::{Fidelity, TableDescription, TableId};

/// Older servers lack generated columns in their catalog, and are not maintained any more.
const OLDEST_VERSION: u32 = 120_000;

/// How many seconds a replica is behind: this one, if it is one that has not replayed all it has; else the
/// last of those that follow. And how many sessions wait for a lock.
const STRAIN: &str = "SELECT CASE \
       WHEN NOT pg_is_in_recovery() THEN (SELECT extract(epoch FROM max(replay_lag)) FROM pg_stat_replication) \
       WHEN pg_last_wal_receive_lsn() IS NOT DISTINCT FROM pg_last_wal_replay_lsn() THEN 0 \
       ELSE extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) END::float8, \
     (SELECT count(*) FROM pg_stat_activity \
      WHERE datname = current_database() AND wait_event_type = 'Lock')";

/// A source that connects when first used.
pub(super) fn open(connection: &Connection) -> Result<Arc<dyn Source>> {
    Ok(Arc::new(PostgresSource {
        connection: connection.clone(),
        idle: Arc::new(Mutex::new(Vec::new())),
        described: Mutex::new(None),
    }))
}

struct PostgresSource {
    connection: Connection,
    /// Sessions at rest: a pass needs one, and the next pass the same.
    idle: Pool,
    /// What [`table`](Source::table) found last: it need not be found again when that table is opened, which
    /// looks at it once more under its lock.
    described: Mutex<Option<Relation>>,
}

#[async_trait]
impl Source for PostgresSource {
    async fn tables(&self) -> Result<Vec<TableDescription>> {
        let session = self.session().await?;
        let tables = discover::all(&session).await?.iter().map(Relation::describe).collect();
        self.rest(session);
        tables
    }

    async fn table(&self, table: &TableId) -> Result<TableDescription> {
        let session = self.session().await?;
        let relation = discover::one(&session, table).await?;
        self.rest(session);
        let description = relation.describe()?;
        *lock(&self.described) = Some(relation);
        Ok(description)
    }

    async fn plan(&self, request: &ReadRequest) -> Result<ReadPlan> {
        let session = self.session().await?;
        let plan = match request.change {
            ChangeDetection::Log => log::plan(&session, request).await,
            ChangeDetection::Trigger => triggers::plan(&session, request).await,
            _ => window::prepare(&session, request, None, Stage::Plan).await.map(|prepared| prepared.plan),
        };
        let plan = plan.map_err(|error| self.placed(error, request))?;
        self.rest(session);
        Ok(plan)
    }

    async fn open(&self, request: ReadRequest) -> Result<Box<dyn Reading>> {
        let session = self.session().await?;
        let described = lock(&self.described).take().filter(|relation| relation.id == request.table);
        if request.change == ChangeDetection::Log {
            let opened = log::open(&self.connection, session, &request, described, &self.idle).await;
            return opened.map_err(|error| self.placed(error, &request));
        }
        if request.change == ChangeDetection::Trigger {
            let opened = triggers::open(&self.connection, session, &request, described, &self.idle).await;
            return opened.map_err(|error| self.placed(error, &request));
        }
        let prepared = window::prepare(&session, &request, described, Stage::Read).await;
        let prepared = prepared.map_err(|error| self.placed(error, &request))?;
        let idle = &self.idle;
        Ok(Box::new(PostgresReading::new(&self.connection, session, request.parallel, prepared, idle)))
    }

    async fn acknowledge(&self, _table: &TableId, position: &Watermark) -> Result<()> {
        let (in_log, by_triggers) = (log::is_position(position), triggers::is_position(position));
        if !in_log && !by_triggers {
            return Ok(());
        }
        let session = self.session().await?;
        let acknowledged = match in_log {
            true => log::acknowledge(&session, position).await,
            false => triggers::acknowledge(&session, position).await,
        };
        match acknowledged {
            Ok(()) => self.rest(session),
            // The rows are in the lake. The next pass confirms them, or says what is wrong.
            Err(error) => tracing::warn!(%error, "the source does not know that the lake has the changes"),
        }
        Ok(())
    }

    async fn count(&self, table: &TableId, filter: Option<&str>) -> Result<u64> {
        let session = self.session().await?;
        let table = discover::one(&session, table).await?.quoted();
        let counted = session.query_typed(&counting(&table, filter), &[]).await?;
        self.rest(session);
        Ok(counted.first().map_or(0, |row| row.get::<_, i64>(0)).unsigned_abs())
    }

    async fn preflight(&self, request: &ReadRequest) -> Result<Vec<Finding>> {
        let session = self.session().await?;
        let relation = discover::one(&session, &request.table).await?;
        let findings = findings(&session, &relation, request).await?;
        self.rest(session);
        Ok(findings)
    }

    async fn arrange(&self, request: &ReadRequest, goal: Goal) -> Result<Arrangement> {
        let session = self.session().await?;
        let relation = discover::one(&session, &request.table).await?;
        let arranged = match request.change {
            ChangeDetection::Log => log::arrange(&session, &relation, request, goal).await,
            ChangeDetection::Trigger => triggers::arrange(&session, &relation, request, goal).await,
            change => {
                Ok(Arrangement::nothing(format!("`change: {}` needs nothing of ours here", change.name())))
            }
        };
        let arranged = arranged.map_err(|error| self.placed(error, request))?;
        self.rest(session);
        Ok(arranged)
    }

    async fn execute(&self, arrangement: &Arrangement) -> Result<()> {
        let session = self.session().await?;
        session.batch_execute(&arrangement.statements.join(";\n")).await.map_err(|error| {
            let error = Error::from(error).with("connection", self.connection.name());
            match error.kind() {
                ErrorKind::Permission => {
                    error.hint("let somebody who may do it execute what `--dry-run` prints")
                }
                _ => error,
            }
        })?;
        self.rest(session);
        Ok(())
    }

    async fn end_of_log(&self) -> Result<Option<LogPlace>> {
        let session = self.session().await?;
        let place = log::end_of_log(&session).await;
        let place = place.map_err(|error| error.with("connection", self.connection.name()))?;
        self.rest(session);
        Ok(Some(place))
    }

    async fn strain(&self) -> Result<Strain> {
        let session = self.session().await?;
        let rows = session.query_typed(STRAIN, &[]).await?;
        self.rest(session);
        let Some(row) = rows.first() else { return Ok(Strain::default()) };
        let seconds = row.get::<_, Option<f64>>(0);
        let replica_lag = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).ok());
        Ok(Strain { replica_lag, waiting: Some(row.get::<_, i64>(1).unsigned_abs()) })
    }
}

async fn findings(session: &Session, relation: &Relation, request: &ReadRequest) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut find = |severity, message: String, remedy: Option<String>| {
        findings.push(Finding { severity, message, remedy });
    };
    let table = relation.quoted();
    if !relation.readable {
        let message = format!("the user may not read all of {}", relation.id);
        find(Severity::Error, message, Some(format!("GRANT SELECT ON {table} TO <user>")));
    }
    if relation.row_security {
        let message = format!("row security policies hide rows of {} from the user", relation.id);
        find(Severity::Warning, message, Some("ALTER ROLE <user> BYPASSRLS".to_owned()));
    }
    if request.change == ChangeDetection::Log {
        findings.extend(log::findings(session, relation, request).await?);
        return Ok(findings);
    }
    if request.change == ChangeDetection::Trigger {
        findings.extend(triggers::findings(session, relation, request).await?);
        return Ok(findings);
    }
    let choice = choose(relation, request)?;
    if let Some(cursor) = &choice.cursor {
        if !cursor.indexed {
            let message = format!(
                "no index begins with the cursor `{}`: every pass reads the whole table",
                cursor.name
            );
            let remedy = format!("CREATE INDEX CONCURRENTLY ON {table} ({})", POSTGRES.ident(&cursor.name));
            find(Severity::Warning, message, Some(remedy));
        }
        if session.server().standby {
            let message = "this is a replica: open transactions of its primary are invisible".to_owned();
            find(
                Severity::Warning,
                message,
                Some("set `lag` to the longest transaction that writes".to_owned()),
            );
        }
        let rights = session.query_typed("SELECT pg_has_role('pg_read_all_stats', 'USAGE')", &[]).await?;
        if !rights.first().is_some_and(|row| row.get(0)) {
            let message =
                "starts of other users' transactions are hidden: passes may wait for them".to_owned();
            find(Severity::Warning, message, Some("GRANT pg_read_all_stats TO <user>".to_owned()));
        }
    }
    for (column, fidelity) in relation.inexact(&request.values)? {
        if let Fidelity::Represented(note) | Fidelity::Limited(note) = fidelity {
            find(Severity::Note, format!("`{column}`: {note}"), None);
        }
    }
    Ok(findings)
}

impl PostgresSource {
    /// Says where an error is.
    fn placed(&self, error: Error, request: &ReadRequest) -> Error {
        error.with("table", &request.table).with("connection", self.connection.name())
    }

    async fn session(&self) -> Result<Session> {
        loop {
            let Some(session) = lock(&self.idle).pop() else { break };
            if !session.is_closed() {
                return Ok(session);
            }
        }
        let session = connect(&self.connection).await?;
        if session.server().version < OLDEST_VERSION {
            return Err(Error::new(ErrorKind::Unsupported, "the server is older than Postgres 12")
                .with("connection", self.connection.name()));
        }
        Ok(session)
    }

    fn rest(&self, session: Session) {
        lock(&self.idle).push(session);
    }
}
