//! SQL Server as a source: describes tables, plans a read, opens it.
//!
//! ```text
//! request ──▶ discover ──▶ choose (how are changes found?) ──▶ horizon ──▶ SNAPSHOT ──▶ Reading
//! ```
//!
//! The horizon is taken before the snapshot, always: what commits between the two is read, and will
//! be read again; nothing is left out.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;

use super::arrange::arrange;
use super::capture;
use super::choose::{Order, choose};
use super::discover::{self, Relation};
use super::read::MssqlReading;
use super::rows::Pool;
use super::window::{self, Prepared, Stage};
use crate::clients::mssql::{Options, Session, connect};
use crate::connection::Connection;
use crate::connectors::sql::{MSSQL, counting, lock};
use crate::error::{Error, ErrorKind, Result};
use crate::source::{
    Arrangement, ChangeDetection, Finding, Goal, OutOfRange, ReadPlan, ReadRequest, Reading, Severity,
    Source, ValuePolicy,
};
use crate::table::{Fidelity, TableDescription, TableId};

/// A source that connects when first used.
pub(super) fn open(connection: &Connection) -> Result<Arc<dyn Source>> {
    Ok(Arc::new(MssqlSource { connection: connection.clone(), idle: Arc::new(Mutex::new(Vec::new())) }))
}

struct MssqlSource {
    connection: Connection,
    /// Sessions at rest, all opened alike: a pass needs one, and the next pass the same.
    idle: Pool,
}

#[async_trait]
impl Source for MssqlSource {
    async fn tables(&self) -> Result<Vec<TableDescription>> {
        let mut session = self.session(Options::default()).await?;
        let tables = discover::all(&mut session).await?.iter().map(Relation::describe).collect();
        self.rest(session);
        tables
    }

    async fn table(&self, table: &TableId) -> Result<TableDescription> {
        let mut session = self.session(Options::default()).await?;
        let table = discover::one(&mut session, table).await?.describe();
        self.rest(session);
        table
    }

    async fn plan(&self, request: &ReadRequest) -> Result<ReadPlan> {
        let mut session = self.session(Options::default()).await?;
        let prepared = self.prepare(&mut session, request, Stage::Plan).await?;
        self.rest(session);
        Ok(prepared.plan)
    }

    async fn open(&self, request: ReadRequest) -> Result<Box<dyn Reading>> {
        let options = options(&request.values);
        let mut session = self.session(options).await?;
        let prepared = self.prepare(&mut session, &request, Stage::Read).await?;
        // A session that reads texts in another way is not for the next pass.
        let idle = if options == Options::default() { Arc::clone(&self.idle) } else { Pool::default() };
        Ok(Box::new(MssqlReading {
            plan: prepared.plan,
            connection: self.connection.clone(),
            options,
            shape: prepared.shape,
            work: Some(prepared.work),
            end: prepared.end,
            layout: prepared.layout,
            parallel: request.parallel.max(1),
            snapshot: prepared.snapshot,
            sessions: Arc::new(Mutex::new(vec![session])),
            idle,
        }))
    }

    async fn count(&self, table: &TableId, filter: Option<&str>) -> Result<u64> {
        let mut session = self.session(Options::default()).await?;
        let table = discover::one(&mut session, table).await?.quoted();
        let sql = counting(&table, filter).replacen("count(*)", "COUNT_BIG(*)", 1);
        let counted = session.rows(&sql).await?;
        self.rest(session);
        let count = counted.first().and_then(|row| row.try_get::<i64, _>(0).ok().flatten());
        Ok(count.unwrap_or_default().unsigned_abs())
    }

    async fn preflight(&self, request: &ReadRequest) -> Result<Vec<Finding>> {
        let mut session = self.session(Options::default()).await?;
        let relation = discover::one(&mut session, &request.table).await?;
        let snapshot = window::allows_snapshot(&mut session).await?;
        let findings = findings(&mut session, &relation, request, snapshot).await?;
        self.rest(session);
        Ok(findings)
    }

    async fn arrange(&self, request: &ReadRequest, goal: Goal) -> Result<Arrangement> {
        let mut session = self.session(Options::default()).await?;
        let relation = discover::one(&mut session, &request.table).await?;
        let snapshot = window::allows_snapshot(&mut session).await?;
        self.rest(session);
        if request.change == ChangeDetection::Trigger {
            choose(&relation, request, snapshot)?;
        }
        Ok(arrange(&relation, request.change, snapshot, goal))
    }

    async fn execute(&self, arrangement: &Arrangement) -> Result<()> {
        let mut session = self.session(Options::default()).await?;
        for statement in &arrangement.statements {
            session.batch(statement).await?;
        }
        self.rest(session);
        Ok(())
    }
}

/// What a session has to be opened with for this policy.
fn options(values: &ValuePolicy) -> Options {
    Options { lossy_text: values.out_of_range == OutOfRange::Clamp }
}

async fn findings(
    session: &mut Session,
    relation: &Relation,
    request: &ReadRequest,
    snapshot: bool,
) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut find = |severity, message: String, remedy: Option<String>| {
        findings.push(Finding { severity, message, remedy });
    };
    let table = relation.quoted();
    if !relation.readable {
        let message = format!("the user may not read all of {}", relation.id);
        find(Severity::Error, message, Some(format!("GRANT SELECT ON {table} TO <user>")));
    }
    if !snapshot {
        let message = "the database does not allow SNAPSHOT isolation: a read sees rows as they are one by one, and waits for writers";
        let remedy = "ALTER DATABASE CURRENT SET ALLOW_SNAPSHOT_ISOLATION ON";
        find(Severity::Warning, message.to_owned(), Some(remedy.to_owned()));
    }
    let choice = choose(relation, request, snapshot)?;
    if let Some(cursor) = &choice.cursor {
        if !cursor.indexed {
            let message = format!(
                "no index begins with the cursor `{}`: every pass reads the whole table",
                cursor.name
            );
            let remedy = format!("CREATE INDEX <name> ON {table} ({})", MSSQL.ident(&cursor.name));
            find(Severity::Warning, message, Some(remedy));
        }
        let sql = "SELECT CASE WHEN HAS_PERMS_BY_NAME(NULL, NULL, 'VIEW SERVER STATE') = 1 \
                   OR HAS_PERMS_BY_NAME(DB_NAME(), 'DATABASE', 'VIEW DATABASE STATE') = 1 THEN 1 ELSE 0 END";
        let sees = session.rows(sql).await?.first().is_some_and(|row| discover::number(row, 0) == 1);
        if !sees && cursor.order != Order::Version {
            let severity = if cursor.order == Order::Number { Severity::Error } else { Severity::Warning };
            let message = "the user may not see which transactions are open: what they wrote could be missed"
                .to_owned();
            find(severity, message, Some("GRANT VIEW SERVER STATE TO <login>".to_owned()));
        }
    }
    if choice.change == ChangeDetection::Log {
        match capture::captured(session).await {
            Ok(captured) => {
                if let Some((message, remedy)) = captured.stopped() {
                    find(Severity::Warning, message, Some(remedy.to_owned()));
                }
            }
            Err(error) => {
                let Finding { severity, message, remedy } = Finding::from(&error);
                find(severity, message, remedy);
            }
        }
    }
    for (column, fidelity) in relation.inexact(&request.values)? {
        if let Fidelity::Represented(note) | Fidelity::Limited(note) = fidelity {
            find(Severity::Note, format!("`{column}`: {note}"), None);
        }
    }
    Ok(findings)
}

impl MssqlSource {
    /// Decides a read; what goes wrong says where.
    async fn prepare(&self, session: &mut Session, request: &ReadRequest, stage: Stage) -> Result<Prepared> {
        let prepared = window::prepare(session, request, stage).await;
        prepared
            .map_err(|error| error.with("table", &request.table).with("connection", self.connection.name()))
    }

    async fn session(&self, options: Options) -> Result<Session> {
        if options == Options::default() {
            let rested = lock(&self.idle).pop();
            // A connection that a firewall or the server closed meanwhile is noticed by asking.
            if let Some(mut session) = rested
                && session.batch("SELECT 1").await.is_ok()
            {
                return Ok(session);
            }
        }
        let session = connect(&self.connection, options).await?;
        if !session.server().is_2016() {
            return Err(Error::new(ErrorKind::Unsupported, "the server is older than SQL Server 2016")
                .with("connection", self.connection.name()));
        }
        Ok(session)
    }

    fn rest(&self, session: Session) {
        lock(&self.idle).push(session);
    }
}
