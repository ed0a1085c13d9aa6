//! Postgres as a source: describes tables, plans a read, opens it.
//!
//! ```text
//! request ──▶ discover ──▶ choose (how are changes found?) ──▶ horizon ──▶ snapshot ──▶ Reading
//! ```
//!
//! The horizon is taken before the snapshot, always: what commits between the two is read, and will
//! be read again; nothing is left out.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;

use super::connect::{Session, connect};
use super::discover::{self, Relation};
use super::position::{Position, Stored};
use super::read::{PostgresReading, Select, Work, by_place};
use super::rows::{Pool, Shape, lock};
use crate::connection::Connection;
use crate::connectors::sql::POSTGRES;
use crate::error::{Error, ErrorKind, Result};
use crate::source::{ChangeDetection, Extent, Finding, ReadPlan, ReadRequest, Reading, Severity, Source};
use crate::table::{Fidelity, TableDescription, TableId};

/// Older servers lack generated columns in their catalog, and are not maintained any more.
const OLDEST_VERSION: u32 = 120_000;
/// Ranges of `ctid` are scanned, not filtered, since Postgres 14.
const RANGE_SCAN_VERSION: u32 = 140_000;

/// A source that connects when first used.
pub(super) fn open(connection: &Connection) -> Result<Arc<dyn Source>> {
    Ok(Arc::new(PostgresSource { connection: connection.clone(), idle: Arc::new(Mutex::new(Vec::new())) }))
}

struct PostgresSource {
    connection: Connection,
    /// Sessions at rest: a pass needs one, and the next pass the same.
    idle: Pool,
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
        let table = discover::one(&session, table).await?.describe();
        self.rest(session);
        table
    }

    async fn plan(&self, request: &ReadRequest) -> Result<ReadPlan> {
        let session = self.session().await?;
        let relation = discover::one(&session, &request.table).await?;
        let prepared = prepare(&session, relation, request)?;
        self.rest(session);
        Ok(prepared.plan)
    }

    async fn open(&self, request: ReadRequest) -> Result<Box<dyn Reading>> {
        let session = self.session().await?;
        let relation = discover::one(&session, &request.table).await?;
        let prepared = prepare(&session, relation, &request)?;
        let lock = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; LOCK TABLE {} IN ACCESS SHARE MODE",
            prepared.relation.quoted()
        );
        session
            .batch_execute(&lock)
            .await
            .map_err(|error| Error::from(error).with("table", &request.table))?;
        if matches!(prepared.work, Work::Ranges { .. }) {
            by_place(&session).await?;
        }
        Ok(Box::new(PostgresReading {
            plan: prepared.plan,
            connection: self.connection.clone(),
            shape: prepared.shape,
            work: Some(prepared.work),
            end: prepared.end,
            parallel: request.parallel.max(1),
            sessions: Arc::new(Mutex::new(vec![session])),
            idle: Arc::clone(&self.idle),
        }))
    }

    async fn preflight(&self, request: &ReadRequest) -> Result<Vec<Finding>> {
        let session = self.session().await?;
        let relation = discover::one(&session, &request.table).await?;
        let mut findings = Vec::new();
        if !relation.readable {
            findings.push(Finding {
                severity: Severity::Error,
                message: format!("the user may not read all of {}", relation.id),
                remedy: Some(format!("GRANT SELECT ON {} TO <user>", relation.quoted())),
            });
        }
        for (column, fidelity) in relation.inexact(&request.values)? {
            let (Fidelity::Represented(note) | Fidelity::Limited(note)) = fidelity else { continue };
            findings.push(Finding {
                severity: Severity::Note,
                message: format!("`{column}`: {note}"),
                remedy: None,
            });
        }
        self.rest(session);
        Ok(findings)
    }
}

impl PostgresSource {
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

/// A read that is decided, before its snapshot.
struct Prepared {
    relation: Relation,
    plan: ReadPlan,
    shape: Arc<Shape>,
    work: Work,
    end: Stored,
}

fn prepare(session: &Session, relation: Relation, request: &ReadRequest) -> Result<Prepared> {
    let (shape, select) = select(&relation, request)?;
    let statement = select.with(None);
    let work = match &relation.heap {
        Some(heap) if session.server().version >= RANGE_SCAN_VERSION => {
            Work::Ranges { select, heap: heap.clone(), from_block: 0, portion_bytes: u64::MAX }
        }
        _ => Work::Statement(statement.clone()),
    };
    let plan = ReadPlan {
        change: ChangeDetection::Full,
        cursor: None,
        cursor_indexed: false,
        extent: Extent::Whole,
        resumable: false,
        continues: false,
        notes: Vec::new(),
        statement,
        rows: relation.rows,
        bytes: relation.bytes,
        schema: Arc::clone(&shape.schema),
    };
    let end = Stored::new(None, Position::Full {});
    Ok(Prepared { relation, plan, shape, work, end })
}

/// The columns wanted: how they are selected and how they are decoded.
fn select(relation: &Relation, request: &ReadRequest) -> Result<(Arc<Shape>, Select)> {
    let columns = match &request.columns {
        None => relation.columns.iter().collect(),
        Some(names) => names
            .iter()
            .map(|name| relation.column(name).ok_or_else(|| missing_column(relation, name)))
            .collect::<Result<Vec<_>>>()?,
    };
    for name in request.values.types.keys() {
        relation.column(name).ok_or_else(|| missing_column(relation, name))?;
    }
    let (mut list, mut codecs, mut fields) = (Vec::new(), Vec::new(), Vec::new());
    for column in &columns {
        let (conversion, field) = relation.travels(column, &request.values)?;
        let name = POSTGRES.ident(&column.name);
        list.push(conversion.cast.map_or(name.clone(), |cast| format!("{name}::{cast}")));
        codecs.push(conversion.codec);
        fields.push(field);
    }
    let shape = Shape {
        schema: Arc::new(arrow::datatypes::Schema::new(fields)),
        replaced: codecs.iter().map(|_| 0.into()).collect(),
        codecs,
        policy: request.values.out_of_range,
        batch_rows: request.batch_rows,
        batch_bytes: request.batch_bytes,
    };
    let what = format!("SELECT {} FROM {}", list.join(", "), relation.quoted());
    let conditions = request.filter.iter().cloned().collect();
    Ok((Arc::new(shape), Select { what, conditions }))
}

fn missing_column(relation: &Relation, name: &str) -> Error {
    let error = Error::new(ErrorKind::Config, "column does not exist")
        .with("column", name)
        .with("table", &relation.id);
    let near = relation
        .columns
        .iter()
        .map(|column| (strsim::jaro_winkler(&column.name.to_lowercase(), &name.to_lowercase()), &column.name))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match near {
        Some((similar, near)) if similar > 0.7 => error.hint(format!("did you mean `{near}`?")),
        _ => {
            let names: Vec<_> = relation.columns.iter().map(|column| column.name.as_str()).collect();
            error.hint(format!("it has {}", names.join(", ")))
        }
    }
}
