//! MySQL and MariaDB as a source: describes tables, plans a read, opens it.
//!
//! ```text
//! request ──▶ discover ──▶ choose (how are changes found?) ──▶ horizon ──▶ statements ──▶ Reading
//! ```
//!
//! The horizon is taken before the rows, always: what commits between the two is read, and will be read
//! again; nothing is left out.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use mysql_async::prelude::Queryable;

use super::choose::choose;
use super::discover::{self, Relation};
use super::read::MysqlReading;
use super::rows::Pool;
use super::window::{self, Stage};
use super::{log, triggers};
use crate::clients::mysql::{Session, connect, integer, text};
use crate::connection::Connection;
use crate::connectors::sql::{MYSQL, counting, lock};
use crate::delta::Watermark;
use crate::error::{Error, Result};
use crate::source::{
    Arrangement, ChangeDetection, Finding, Goal, ReadPlan, ReadRequest, Reading, Severity, Source,
};
use crate::table::{Fidelity, TableDescription, TableId};

/// A source that connects when first used.
pub(super) fn open(connection: &Connection) -> Result<Arc<dyn Source>> {
    Ok(Arc::new(MysqlSource { connection: connection.clone(), idle: Arc::new(Mutex::new(Vec::new())) }))
}

struct MysqlSource {
    connection: Connection,
    /// Sessions at rest: a pass needs one, and the next pass the same.
    idle: Pool,
}

#[async_trait]
impl Source for MysqlSource {
    async fn tables(&self) -> Result<Vec<TableDescription>> {
        let mut session = self.session().await?;
        let tables = discover::all(&mut session).await?.iter().map(Relation::describe).collect();
        self.rest(session);
        tables
    }

    async fn table(&self, table: &TableId) -> Result<TableDescription> {
        let mut session = self.session().await?;
        let table = discover::one(&mut session, table).await?.describe();
        self.rest(session);
        table
    }

    async fn plan(&self, request: &ReadRequest) -> Result<ReadPlan> {
        let mut session = self.session().await?;
        let plan = match request.change {
            ChangeDetection::Log => log::plan(&self.connection, &mut session, request).await,
            ChangeDetection::Trigger => triggers::plan(&mut session, request).await,
            _ => window::prepare(&mut session, request, Stage::Plan).await.map(|prepared| prepared.plan),
        };
        let plan = plan.map_err(|error| self.of(request, error))?;
        self.rest(session);
        Ok(plan)
    }

    async fn open(&self, request: ReadRequest) -> Result<Box<dyn Reading>> {
        let mut session = self.session().await?;
        if request.change == ChangeDetection::Log {
            let opened = log::open(&self.connection, session, &request, &self.idle).await;
            return opened.map_err(|error| self.of(&request, error));
        }
        if request.change == ChangeDetection::Trigger {
            let opened = triggers::open(&self.connection, session, &request, &self.idle).await;
            return opened.map_err(|error| self.of(&request, error));
        }
        let prepared = window::prepare(&mut session, &request, Stage::Read).await;
        let prepared = prepared.map_err(|error| self.of(&request, error))?;
        Ok(Box::new(MysqlReading::new(&self.connection, session, request.parallel, prepared, &self.idle)))
    }

    async fn acknowledge(&self, table: &TableId, position: &Watermark) -> Result<()> {
        if !triggers::is_position(position) {
            return Ok(());
        }
        let mut session = self.session().await?;
        match triggers::acknowledge(&mut session, table, position).await {
            Ok(()) => self.rest(session),
            // The rows are in the lake. The next pass says so once more.
            Err(error) => tracing::warn!(%error, "the source does not know that the lake has the changes"),
        }
        Ok(())
    }

    async fn count(&self, table: &TableId, filter: Option<&str>) -> Result<u64> {
        let mut session = self.session().await?;
        let table = discover::one(&mut session, table).await?.quoted();
        let counted = session.rows(&counting(&table, filter)).await?;
        self.rest(session);
        Ok(counted.first().and_then(|row| integer(row, 0)).unwrap_or_default().unsigned_abs())
    }

    async fn preflight(&self, request: &ReadRequest) -> Result<Vec<Finding>> {
        let mut session = self.session().await?;
        let relation = discover::one(&mut session, &request.table).await?;
        let findings = findings(&self.connection, &mut session, &relation, request).await?;
        self.rest(session);
        Ok(findings)
    }

    async fn arrange(&self, request: &ReadRequest, goal: Goal) -> Result<Arrangement> {
        if !matches!(request.change, ChangeDetection::Trigger | ChangeDetection::Log) {
            let change = request.change.name();
            return Ok(Arrangement::nothing(format!("`change: {change}` needs nothing of ours here")));
        }
        let mut session = self.session().await?;
        let relation = discover::one(&mut session, &request.table).await?;
        let arranged = match request.change {
            ChangeDetection::Log => {
                log::arrange(&self.connection, &mut session, &relation, request, goal).await
            }
            _ => triggers::arrange(&mut session, &relation, request, goal).await,
        };
        let arranged = arranged.map_err(|error| self.of(request, error))?;
        self.rest(session);
        Ok(arranged)
    }

    async fn execute(&self, arrangement: &Arrangement) -> Result<()> {
        let session = self.session().await?;
        let executed = triggers::execute(session, &arrangement.statements).await;
        executed.map_err(|error| error.with("connection", self.connection.name()))
    }
}

async fn findings(
    connection: &Connection,
    session: &mut Session,
    relation: &Relation,
    request: &ReadRequest,
) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut find = |severity, message: String, remedy: Option<String>| {
        findings.push(Finding { severity, message, remedy });
    };
    let table = relation.quoted();
    if let Err(error) = session.rows(&format!("SELECT 1 FROM {table} LIMIT 0")).await {
        let remedy = format!("GRANT SELECT ON {table} TO <user>");
        find(Severity::Error, error.to_string(), Some(remedy));
    }
    findings.extend(match request.change {
        ChangeDetection::Log => log::findings(connection, session, relation, request).await?,
        ChangeDetection::Trigger => triggers::findings(session, relation, request).await?,
        _ => of_cursor(session, relation, request).await?,
    });
    let note = |message| Finding { severity: Severity::Note, message, remedy: None };
    for (column, fidelity) in relation.inexact(&request.values)? {
        if let Fidelity::Represented(text) | Fidelity::Limited(text) = fidelity {
            findings.push(note(format!("`{column}`: {text}")));
        }
    }
    Ok(findings)
}

/// What a cursor needs.
async fn of_cursor(
    session: &mut Session,
    relation: &Relation,
    request: &ReadRequest,
) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut find = |severity, message: String, remedy: Option<String>| {
        findings.push(Finding { severity, message, remedy });
    };
    let table = relation.quoted();
    let choice = choose(relation, request)?;
    if let Some(cursor) = &choice.cursor {
        if !cursor.indexed {
            let message = format!(
                "no index begins with the cursor `{}`: every pass reads the whole table",
                cursor.name
            );
            let remedy = format!("CREATE INDEX <name> ON {table} ({})", MYSQL.ident(&cursor.name));
            find(Severity::Warning, message, Some(remedy));
        }
        if let Err(error) = session.rows("SHOW ENGINE INNODB STATUS").await {
            let severity = match cursor.order {
                super::choose::Order::Number => Severity::Error,
                super::choose::Order::Time => Severity::Warning,
            };
            let message = format!(
                "the user may not see which transactions are open, so what they wrote could be missed: {}",
                error.message()
            );
            find(severity, message, Some("GRANT PROCESS ON *.* TO <user>".to_owned()));
        }
        let read_only = session.rows("SELECT @@GLOBAL.read_only").await?;
        if read_only.first().is_some_and(|row| text(row, 0) == "1") {
            let message =
                "this server may only be read: open transactions of its primary are invisible".to_owned();
            let remedy =
                "set `lag` to the longest transaction that writes, and the replica's delay".to_owned();
            find(Severity::Warning, message, Some(remedy));
        }
    }
    Ok(findings)
}

impl MysqlSource {
    /// An error, with where it was.
    fn of(&self, request: &ReadRequest, error: Error) -> Error {
        error.with("table", &request.table).with("connection", self.connection.name())
    }

    async fn session(&self) -> Result<Session> {
        session(&self.connection, &self.idle).await
    }

    fn rest(&self, session: Session) {
        lock(&self.idle).push(session);
    }
}

/// A session at rest that still lives, or a new one.
pub(super) async fn session(connection: &Connection, idle: &Pool) -> Result<Session> {
    loop {
        let rested = lock(idle).pop();
        let Some(mut session) = rested else { break };
        // A connection that a firewall or the server closed meanwhile is noticed by asking.
        if session.ping().await.is_ok() {
            return Ok(session);
        }
    }
    connect(connection).await
}
