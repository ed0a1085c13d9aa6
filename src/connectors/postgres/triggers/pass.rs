//! A pass over the changes that triggers wrote down, or the first read that comes before.

use std::sync::Arc;

use arrow::datatypes::{Field, Schema};
use async_trait::async_trait;
use futures::StreamExt;
use serde::{Deserialize, Serialize};

use super::super::codec::Codec;
use super::super::discover::{self, Relation};
use super::super::keyset::{self, Keyset};
use super::super::log::{Described, Snapshot};
use super::super::position::{Position, Stored};
use super::super::read::{PostgresReading, Work};
use super::super::rows::{Pool, Shape};
use super::super::wanted;
use super::super::window::{self, Limit, Prepared, Start, Window};
use super::installed::{self, Installed};
use super::statements::{KeyColumn, Parts};
use super::{needs, readers};
use crate::clients::postgres::Session;
use crate::connection::Connection;
use crate::connectors::sql::{POSTGRES, Select, Unfit, cast_ops};
use crate::error::{Error, ErrorKind, Result};
use crate::source::{Portion, ReadPlan, ReadRequest, Reading};
use crate::table::OP_COLUMN;

/// How far the changes of a table were read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct Triggered {
    /// The table of changes, without its schema.
    pub(super) changes: String,
    /// What was installed: another one may have let changes pass by.
    pub(super) stamp: String,
    /// Who reads.
    pub(super) reader: String,
    /// What it saw is in the lake.
    pub(super) snapshot: Snapshot,
    /// What the table looked like.
    pub(super) table: Described,
    /// Whether the lake has a first read of several snapshots, which is not shown before a pass has ended it.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub(super) parts: bool,
}

/// A request for the changes of a table whose triggers are there.
struct Opening<'a> {
    request: &'a ReadRequest,
    source: Option<String>,
    notes: Vec<String>,
}

/// Where to begin.
enum Begin {
    /// With the whole table. What was before it is of no use, or there was nothing.
    Nothing,
    /// With the whole table, although nothing was missed: triggers do not see why.
    Again,
    /// In the middle of a first read.
    FirstRead(Box<Position>),
    /// After a position; so many keys were written down since.
    After(Box<Triggered>, u64),
}

/// What a snapshot shows of the table and of what is installed on it.
struct Seen {
    relation: Relation,
    installed: Installed,
    snapshot: Snapshot,
}

/// Opens a pass. It leaves a session in `idle` when it is done.
pub(in super::super) async fn open(
    connection: &Connection,
    session: Session,
    request: &ReadRequest,
    described: Option<Relation>,
    idle: &Pool,
) -> Result<Box<dyn Reading>> {
    let relation = discover::unless(described, &session, &request.table).await?;
    let mut opening = Opening::new(&session, request, &relation).await?;
    readers::appear(&session, &Parts::of(&relation, request)?, &request.reader).await?;
    let mut seen = opening.begin_transaction(&session, &relation).await?;
    let mut begin = opening.begin(&session, &seen).await?;
    if matches!(begin, Begin::Nothing) {
        // From here on changes are kept for us, and only now we look.
        session.batch_execute("ROLLBACK").await?;
        readers::register(&session, &Parts::of(&relation, request)?, &request.reader).await?;
        seen = opening.begin_transaction(&session, &relation).await?;
        begin = Begin::Nothing;
    }
    let changed = matches!(begin, Begin::After(..));
    let prepared = opening.prepare(&session, seen, begin).await?;
    if let Some(settings) = prepared.work.settings() {
        session.batch_execute(settings).await?;
    }
    let inner = PostgresReading::new(connection, session, request.parallel, prepared, idle);
    Ok(if changed { Box::new(Changes(inner)) } else { Box::new(inner) })
}

/// What a pass would do. No reader is made known, and no transaction is left open.
pub(in super::super) async fn plan(session: &Session, request: &ReadRequest) -> Result<ReadPlan> {
    let relation = discover::one(session, &request.table).await?;
    let mut opening = Opening::new(session, request, &relation).await?;
    let seen = opening.begin_transaction(session, &relation).await?;
    let begin = opening.begin(session, &seen).await?;
    let prepared = opening.prepare(session, seen, begin).await?;
    session.batch_execute("ROLLBACK").await?;
    Ok(prepared.plan)
}

impl<'a> Opening<'a> {
    async fn new(session: &Session, request: &'a ReadRequest, relation: &Relation) -> Result<Self> {
        needs::check(session, relation, request).await?;
        installed::look(session, relation, &Parts::of(relation, request)?).await?.parts.check()?;
        Ok(Self { request, source: discover::cluster(session).await, notes: Vec::new() })
    }

    /// Opens the transaction that is read, and looks at everything once more as it shows it.
    async fn begin_transaction(&self, session: &Session, relation: &Relation) -> Result<Seen> {
        let relation = window::begin(session, relation).await?;
        let installed = installed::look(session, &relation, &Parts::of(&relation, self.request)?).await?;
        installed.parts.check()?;
        let rows = session.query_typed("SELECT txid_current_snapshot()::text", &[]).await?;
        let text: String = rows.first().map(|row| row.get(0)).unwrap_or_default();
        let odd = |_| Error::new(ErrorKind::Internal, "the server's snapshot is not readable");
        Ok(Seen { relation, installed, snapshot: Snapshot::try_from(text).map_err(odd)? })
    }

    /// Reads the stored position; where it is of no use, a note says why.
    async fn begin(&mut self, session: &Session, seen: &Seen) -> Result<Begin> {
        let Some(watermark) = &self.request.from else { return Ok(Begin::Nothing) };
        let found = match Stored::read(watermark) {
            Ok(stored)
                if self.source.is_some() && stored.source.is_some() && stored.source != self.source =>
            {
                Err("it belongs to another server, or to one that was restored or failed over".to_owned())
            }
            Ok(stored) => self.usable(session, seen, stored.position).await?,
            Err(why) => Err(why.to_owned()),
        };
        Ok(found.unwrap_or_else(|why| {
            self.notes.push(format!("the stored position is not used: {why}; the whole table is read"));
            Begin::Nothing
        }))
    }

    async fn usable(
        &mut self,
        session: &Session,
        seen: &Seen,
        position: Position,
    ) -> Result<Result<Begin, String>> {
        let relation = &seen.relation;
        let (at, same_place) = match &position {
            Position::Triggers(at) => (at, true),
            Position::FirstRead { then, layout, .. } => {
                let Position::Triggers(at) = then.as_ref() else {
                    return Ok(Err(window::OTHER_SETTINGS.to_owned()));
                };
                (at, relation.heap.as_ref().is_some_and(|heap| heap.layout == *layout))
            }
            Position::FirstReadByKey { then, layout, key, .. } => {
                let keys = Keyset::of(relation, &keyset::key_names(relation, self.request));
                let Position::Triggers(at) = then.as_ref() else {
                    return Ok(Err(window::OTHER_SETTINGS.to_owned()));
                };
                (at, relation.layout == *layout && keys.is_some_and(|keys| keys.described() == *key))
            }
            _ => return Ok(Err("it does not come from triggers".to_owned())),
        };
        if !same_place {
            return Ok(Err(window::REWRITTEN.to_owned()));
        }
        let first = !matches!(position, Position::Triggers(_));
        let now = Described::whole(relation);
        if let Some(broken) = at.table.broken(&now, relation, self.columns(relation)?.into_iter()) {
            if first {
                return Ok(Err(broken.0));
            }
            self.notes.push(format!("the whole table is read and compared: {}", broken.0));
            return Ok(Ok(Begin::Again));
        }
        let parts = Parts::of(relation, self.request)?;
        if at.changes != parts.name() {
            return Ok(Err("the stream goes by another key now".to_owned()));
        }
        if at.stamp != seen.installed.stamp {
            return Ok(Err("triggers were disabled, altered or installed anew since".to_owned()));
        }
        if installed::pruned(session, &parts).await? > at.snapshot.first_open() {
            return Ok(Err("changes since then were removed: its reader was forgotten".to_owned()));
        }
        if first {
            return Ok(Ok(Begin::FirstRead(Box::new(position))));
        }
        let sql = format!(
            "SELECT count(*), count(*) FILTER (WHERE k1 IS NULL) FROM {} WHERE {}",
            parts.changes(),
            unseen(&at.snapshot)
        );
        let rows = session.query_typed(&sql, &[]).await?;
        let (keys, truncated) =
            rows.first().map_or((0, 0), |row| (row.get::<_, i64>(0), row.get::<_, i64>(1)));
        if truncated > 0 {
            self.notes.push("the whole table is read and compared: it was truncated".to_owned());
            return Ok(Ok(Begin::Again));
        }
        Ok(Ok(Begin::After(at.clone(), keys.unsigned_abs())))
    }

    /// The columns that are wanted.
    fn columns<'b>(&self, relation: &'b Relation) -> Result<Vec<&'b discover::Column>> {
        match &self.request.columns {
            None => Ok(relation.columns.iter().collect()),
            Some(names) => names.iter().map(|name| relation.named(name)).collect(),
        }
    }

    async fn prepare(self, session: &Session, seen: Seen, begin: Begin) -> Result<Prepared> {
        let Seen { relation, installed, snapshot } = seen;
        let request = self.request;
        let parts = Parts::of(&relation, request)?;
        let to = Position::Triggers(Box::new(Triggered {
            changes: parts.name(),
            stamp: installed.stamp,
            reader: request.reader.clone(),
            snapshot,
            table: Described::whole(&relation),
            parts: false,
        }));
        let (shape, select) = wanted::select(&relation, request)?;
        let again = matches!(begin, Begin::Again);
        let start = match begin {
            Begin::After(at, keys) => {
                let statement = changes(&relation, request, &parts, &at)?;
                return Ok(self.changed(&shape, statement, keys, &at, to));
            }
            Begin::Nothing | Begin::Again => Start::Nothing,
            Begin::FirstRead(position) => match *position {
                Position::FirstRead { then, done_to_block, .. } => Start::Block(*then, done_to_block),
                Position::FirstReadByKey { then, after, .. } => Start::Key(*then, after),
                _ => return Err(Error::new(ErrorKind::Internal, "a first read of another kind")),
            },
        };
        let end = match &start {
            // What changed since it began is read after it.
            Start::Block(Position::Triggers(then), _) | Start::Key(Position::Triggers(then), _) => {
                Position::Triggers(Box::new(Triggered { parts: true, ..(**then).clone() }))
            }
            _ => to,
        };
        let window = Window::of_log(request, self.source.clone(), self.notes);
        let mut prepared = window.decide(session, &relation, start, Limit::None, shape, select).await?;
        prepared.end = Stored::new(self.source, end);
        if matches!(prepared.work, Work::Whole { .. }) {
            keyset::refine(session, &relation, request, &mut prepared).await?;
        }
        prepared.plan.continues |= again;
        Ok(prepared)
    }

    /// A pass after a position.
    fn changed(self, shape: &Shape, statement: String, keys: u64, at: &Triggered, to: Position) -> Prepared {
        let request = self.request;
        let mut conditions = Vec::new();
        let mut end = Stored::new(self.source, to);
        if keys == 0 {
            conditions.push("false".to_owned());
            let same = matches!(&end.position, Position::Triggers(to) if to.table == at.table && !at.parts);
            // Nothing happened: the watermark stays, so that nothing is written either.
            if let Some(Ok(before)) = request.from.as_ref().map(Stored::read).filter(|_| same) {
                end = before;
            }
        }
        let plan = ReadPlan::of_changes(request, Arc::clone(&shape.schema), statement.clone(), self.notes);
        let plan = ReadPlan { rows: Some(keys), ..plan };
        let work = Work::Whole { select: Select { what: statement, conditions }, after: None };
        Prepared { plan, shape: Arc::new(with_op(shape, request)), work, end }
    }
}

/// The condition on changes that a snapshot did not see.
fn unseen(snapshot: &Snapshot) -> String {
    let text = String::from(snapshot.clone());
    format!(
        "xact >= {} AND NOT txid_visible_in_snapshot(xact, '{text}'::txid_snapshot)",
        snapshot.first_open()
    )
}

/// Each key once that was written down since, with its row as it is now, and 1 where there is none.
fn changes(relation: &Relation, request: &ReadRequest, parts: &Parts<'_>, at: &Triggered) -> Result<String> {
    let numbered = || parts.key.iter().enumerate().map(|(i, key)| (format!("k{}", i + 1), key));
    let mut distinct: Vec<String> = numbered().map(|(name, _)| name).collect();
    distinct.extend(
        numbered()
            .filter(|(_, key)| key.by_text)
            .map(|(name, key)| format!("{} AS exact_{name}", key.compared(&name))),
    );
    let on = |(name, key): (String, &KeyColumn<'_>)| {
        let (column, written) = (format!("t.{}", key.ident()), format!("c.{name}"));
        match key.by_text {
            // The index serves the first, and the second tells `a` from `A`.
            true => {
                format!("{column} = {written} AND {} = {}", key.compared(&column), key.compared(&written))
            }
            false => format!("{column} = {written}"),
        }
    };
    let columns = match &request.columns {
        None => relation.columns.iter().collect(),
        Some(names) => names.iter().map(|name| relation.named(name)).collect::<Result<Vec<_>>>()?,
    };
    let mut list = Vec::new();
    for column in columns {
        let (conversion, _) = relation.travels(column, &request.values)?;
        let mut value = format!("t.{}", POSTGRES.ident(&column.name));
        if let Some((name, _)) = numbered().find(|(_, key)| key.column.name == column.name) {
            let narrow = match relation.types.base_name(column.of) {
                of @ ("int2" | "int4") => format!("::{of}"),
                _ => String::new(),
            };
            value = format!("coalesce({value}, c.{name}{narrow})");
        }
        list.push(conversion.cast.map_or(value.clone(), |cast| format!("{value}::{cast}")));
    }
    let ons: Vec<String> = numbered().map(on).collect();
    let first = parts.key.first().map(KeyColumn::ident).unwrap_or_default();
    Ok(format!(
        "SELECT {}, CASE WHEN t.{first} IS NULL THEN 1 ELSE 0 END::int2 FROM \
         (SELECT DISTINCT {} FROM {} WHERE {}) c LEFT JOIN {} t ON {}",
        list.join(", "),
        distinct.join(", "),
        parts.changes(),
        unseen(&at.snapshot),
        relation.quoted(),
        ons.join(" AND "),
    ))
}

/// The same batches with what happened to each row; of a deleted one all but the key is NULL.
fn with_op(shape: &Shape, request: &ReadRequest) -> Shape {
    let nullable = |field: &Arc<Field>| field.as_ref().clone().with_nullable(true);
    let mut fields: Vec<Field> = shape.schema.fields().iter().map(nullable).collect();
    fields.push(Field::new(OP_COLUMN, Codec::Int16.data_type(), false));
    let schema = Arc::new(Schema::new(fields));
    let codecs: Vec<_> = shape.codecs.iter().cloned().chain([Codec::Int16]).collect();
    Shape {
        unfit: Unfit::of(&schema, request),
        schema,
        replaced: codecs.iter().map(|_| 0.into()).collect(),
        codecs,
        ..shape.again()
    }
}

/// Changes as the server sends them, to what the engine calls operations.
struct Changes(PostgresReading);

#[async_trait]
impl Reading for Changes {
    fn plan(&self) -> &ReadPlan {
        self.0.plan()
    }

    async fn next(&mut self) -> Result<Option<Portion>> {
        let Some(portion) = self.0.next().await? else { return Ok(None) };
        let streams = portion.streams.into_iter();
        let streams = streams.map(|rows| rows.map(|batch| cast_ops(batch?)).boxed()).collect();
        Ok(Some(Portion { streams, ..portion }))
    }
}
