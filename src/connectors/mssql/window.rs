//! From a request to the statements that answer it: the window of the cursor, cut by the horizon.
//!
//! ```text
//!               keyed (one row a key)                   appended (each row once)
//! first         everything; watermark H                 cursor < H; watermark H
//! time          [W - lag, H); watermark H               [W, H - lag); watermark H - lag
//! row version   [W, H); watermark H                     the same
//! number        (W, M]; watermark M                     the same
//! tracking      changes after W, with deletes; watermark the current version
//! log           changes in (W, L], with deletes; watermark L, the newest captured
//! temporal      keys of [W, H) as they are now, with deletes; watermark H
//! ```
//!
//! Windows of times and versions are half-open, so equal cursors are never divided between two passes.
//! A watermark never moves back, and where the horizon is held back it stays.

use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};

use super::choose::{Choice, Cursor, Order, choose};
use super::column::Policy;
use super::discover::{self, Relation, number};
use super::horizon::{self, Horizon};
use super::keyset::{Bound, ByKey, Keyset};
use super::position::{Position, Stored, Ticks, row_version};
use super::read::{Work, begin};
use super::rows::Shape;
use super::temporal::History;
use super::tracking;
use super::wanted::{Wanted, wanted};
use crate::clients::mssql::Session;
use crate::connectors::sql::{MSSQL, Number, Select, Unfit};
use crate::error::{Error, ErrorKind, Result};
use crate::source::{BeyondHorizon, ChangeDetection, Extent, NullCursor, ReadPlan, ReadRequest};

mod recorded;

/// A read that is decided.
pub(super) struct Prepared {
    pub(super) plan: ReadPlan,
    pub(super) shape: Arc<Shape>,
    pub(super) work: Work,
    pub(super) end: Stored,
    pub(super) layout: String,
    pub(super) snapshot: bool,
}

/// What a read is decided for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// To say what would be done: nothing is waited for, no transaction is left open.
    Plan,
    /// To do it: the session comes back in the transaction that is to be read.
    Read,
}

/// Decides how a request is answered.
pub(super) async fn prepare(session: &mut Session, request: &ReadRequest, stage: Stage) -> Result<Prepared> {
    let mut relation = discover::one(session, &request.table).await?;
    let snapshot = allows_snapshot(session).await?;
    let choice = choose(&relation, request, snapshot)?;
    let source = tracking::fork(session).await;
    let mut notes = choice.notes.clone();
    let start = start(&relation, request, &choice, source.as_deref(), &mut notes);
    if !snapshot && stage == Stage::Read {
        notes.push("the database does not allow SNAPSHOT isolation: rows are read as they are one by one; run `ALTER DATABASE CURRENT SET ALLOW_SNAPSHOT_ISOLATION ON`".to_owned());
    }
    let limit = limit(session, &relation, &choice, stage).await?;
    if stage == Stage::Read {
        begin(session, snapshot).await?;
        // The shape inside of the transaction is the one that is read.
        let again = discover::one(session, &relation.id).await?;
        if again.columns != relation.columns {
            return Err(Error::new(ErrorKind::Transient, "the table was altered just now"));
        }
        relation = again;
    }
    let columns = wanted(&relation, request)?;
    let window = Window { request, relation: &relation, choice, notes, columns };
    let mut decided = window.decide(session, start, limit).await?;
    decided.end.source = source;
    decided.snapshot = snapshot;
    Ok(decided)
}

/// Whether a transaction may see one state of the database.
pub(super) async fn allows_snapshot(session: &mut Session) -> Result<bool> {
    let sql = "SELECT CAST(snapshot_isolation_state AS int) FROM sys.databases WHERE database_id = DB_ID()";
    Ok(session.rows(sql).await?.first().is_some_and(|row| number(row, 0) == 1))
}

/// Where a read starts.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Start {
    /// From nothing.
    Nothing,
    /// In the middle of a first read that ends at the position.
    Key(Position, Bound),
    /// After a position of the choice's own kind.
    After(Position),
}

/// The horizon, by what the cursor counts.
enum Limit {
    None,
    Time(Horizon<Ticks>),
    Number(Horizon<Number>),
    Version(Number),
    /// Seconds since 1970 by the server's clock.
    Tracking(i64),
    /// The log says itself how far it is complete.
    Log,
    /// And the clock.
    Temporal(Horizon<Ticks>, Ticks),
}

async fn limit(session: &mut Session, relation: &Relation, choice: &Choice, stage: Stage) -> Result<Limit> {
    let wait = stage == Stage::Read;
    Ok(match (&choice.cursor, choice.change) {
        (_, ChangeDetection::Tracking) => {
            let (now, _) = horizon::clock(session, &mut Vec::new()).await?;
            Limit::Tracking(now.0 / 10_000_000)
        }
        (_, ChangeDetection::Log) => Limit::Log,
        (_, ChangeDetection::Temporal) => {
            let of = relation.history.as_ref().map(History::of).unwrap_or_default();
            let (horizon, clock) = horizon::begin_times(session, &of).await?;
            Limit::Temporal(horizon, clock)
        }
        (None, _) => Limit::None,
        (Some(cursor), _) => match cursor.order {
            Order::Time => Limit::Time(horizon::time(session, cursor).await?),
            Order::Number => Limit::Number(horizon::identity(session, relation, cursor, wait).await?),
            Order::Version => Limit::Version(horizon::row_version(session).await?),
        },
    })
}

/// Reads the stored watermark; where it is of no use, a note says why.
fn start(
    relation: &Relation,
    request: &ReadRequest,
    choice: &Choice,
    source: Option<&str>,
    notes: &mut Vec<String>,
) -> Start {
    let Some(watermark) = request.from.as_ref().filter(|_| choice.change != ChangeDetection::Full) else {
        return Start::Nothing;
    };
    let found = Stored::read(watermark).map_err(str::to_owned).and_then(|stored| {
        if source.is_some() && stored.source.is_some() && stored.source.as_deref() != source {
            return Err("it belongs to another database, or to one that was restored".to_owned());
        }
        usable(stored.position, relation, request, choice)
    });
    found.unwrap_or_else(|why| {
        notes.push(not_used(&why));
        Start::Nothing
    })
}

fn not_used(why: &str) -> String {
    format!("the stored position is not used: {why}; the whole table is read")
}

fn usable(
    position: Position,
    relation: &Relation,
    request: &ReadRequest,
    choice: &Choice,
) -> Result<Start, String> {
    let is_cursor = |name: &str, order: Order| {
        choice.cursor.as_ref().is_some_and(|cursor| cursor.name == name && cursor.order == order)
    };
    let fits = match &position {
        Position::Timestamp { column, of, .. } => {
            is_cursor(column, Order::Time)
                && choice.cursor.as_ref().is_some_and(|cursor| cursor.of.written() == *of)
        }
        Position::Id { column, .. } => is_cursor(column, Order::Number),
        Position::Rowversion { column, .. } => is_cursor(column, Order::Version),
        Position::Tracking { .. } => choice.change == ChangeDetection::Tracking,
        Position::Log { .. } => choice.change == ChangeDetection::Log,
        Position::Temporal { .. } => choice.change == ChangeDetection::Temporal,
        Position::Full {} => return Err("it comes from full reads".to_owned()),
        Position::FirstReadByKey { then, layout, key, after } => {
            let keys = Keyset::of(relation, &request.key);
            if !repeats(request, choice) || keys.is_none_or(|keys| keys.described() != *key) {
                return Err("an unfinished first read cannot go on with these settings".to_owned());
            }
            if relation.object.to_string() != *layout {
                return Err("the table was made anew since the unfinished first read".to_owned());
            }
            usable((**then).clone(), relation, request, choice)?;
            return Ok(Start::Key((**then).clone(), after.clone()));
        }
    };
    if fits {
        return Ok(Start::After(position));
    }
    Err("it belongs to another way of finding changes, or to another column".to_owned())
}

/// Whether what changes while a first read runs is read again after it, so that its portions may be kept
/// and its ranges need not show one moment.
fn repeats(request: &ReadRequest, choice: &Choice) -> bool {
    use ChangeDetection::{Log, Rowversion, Temporal, Timestamp, Tracking};
    request.keyed && matches!(choice.change, Timestamp | Rowversion | Tracking | Log | Temporal)
}

struct Window<'a> {
    request: &'a ReadRequest,
    relation: &'a Relation,
    choice: Choice,
    notes: Vec<String>,
    columns: Vec<Wanted>,
}

impl Window<'_> {
    async fn decide(mut self, session: &mut Session, start: Start, limit: Limit) -> Result<Prepared> {
        let first = !matches!(start, Start::After(_));
        let mut select = self.select();
        let cursor = self.choice.cursor.clone();
        if let Some(cursor) = &cursor {
            self.refuse_nulls(session, cursor).await?;
        }
        let end = match (&cursor, limit) {
            (_, Limit::Tracking(now)) => return self.tracked(session, start, now).await,
            (_, Limit::Log) => return self.captured(session, start).await,
            (_, Limit::Temporal(horizon, clock)) => return self.versioned(start, horizon, clock),
            (Some(cursor), Limit::Time(horizon)) => {
                let (condition, at) = self.times(&start, &horizon, cursor);
                self.add(&mut select, cursor, first, condition);
                self.say(horizon, at.map(Ticks::shown));
                Position::Timestamp { column: cursor.name.clone(), of: cursor.of.written(), at }
            }
            (Some(cursor), Limit::Number(horizon)) => {
                let (condition, at) = self.numbers(&start, &horizon, cursor);
                self.add(&mut select, cursor, first, condition);
                self.say(horizon, at.map(|Number(at)| at.to_string()));
                Position::Id { column: cursor.name.clone(), at }
            }
            (Some(cursor), Limit::Version(below)) => {
                let (condition, below) = self.versions(&start, below, cursor);
                select.conditions.extend(condition);
                Position::Rowversion { column: cursor.name.clone(), below }
            }
            _ => Position::Full {},
        };
        Ok(self.finish(select, start, end))
    }

    fn select(&self) -> Select {
        let list: Vec<_> = self
            .columns
            .iter()
            .map(|wanted| wanted.conversion.selected(&MSSQL.ident(&wanted.name)))
            .collect();
        Select {
            what: format!("SELECT {} FROM {}", list.join(", "), self.relation.quoted()),
            conditions: self.request.filter.iter().cloned().collect(),
        }
    }

    fn finish(mut self, select: Select, start: Start, end: Position) -> Prepared {
        let request = self.request;
        let first = !matches!(start, Start::After(_));
        let continues = start != Start::Nothing;
        let known_to = match &start {
            Start::After(Position::Timestamp { at, .. }) => at.map(|Ticks(at)| at.div_euclid(10)),
            _ => None,
        };
        let (end, after) = match start {
            // Whatever changed since the first attempt will be read again after it.
            Start::Key(then, after) => {
                self.notes.push("the first read goes on where it stopped".to_owned());
                (then, Some(after))
            }
            _ => (end, None),
        };
        let resumable = first && repeats(request, &self.choice);
        let keys = Keyset::of(self.relation, &request.key).filter(|_| resumable);
        let schema: SchemaRef =
            Arc::new(Schema::new(self.columns.iter().map(|wanted| wanted.field.clone()).collect::<Vec<_>>()));
        let statement = select.with(None);
        let work = match keys {
            Some(keys) => {
                let ranges =
                    ByKey::new(self.relation, keys, select, after, request.parallel, request.portion_bytes);
                self.notes.push(format!("read in ranges of ({})", request.key.join(", ")));
                Work::Keys(Box::new(ranges))
            }
            None => Work::Whole(statement.clone()),
        };
        let cursor = self.choice.cursor;
        let plan = ReadPlan {
            change: self.choice.change,
            cursor_indexed: cursor.as_ref().is_some_and(|cursor| cursor.indexed),
            cursor: cursor.map(|cursor| cursor.name),
            extent: if first { Extent::Whole } else { Extent::Changed },
            resumable: resumable && matches!(work, Work::Keys(_)),
            continues,
            notes: self.notes,
            statement,
            known_to,
            rows: self.relation.rows,
            bytes: self.relation.bytes,
            schema: Arc::clone(&schema),
        };
        let codecs: Vec<_> = self.columns.iter().map(|wanted| wanted.conversion.codec).collect();
        let shape = Shape {
            unfit: Unfit::of(&schema, request),
            schema,
            replaced: codecs.iter().map(|_| 0.into()).collect(),
            codecs,
            policy: Policy::from(&request.values),
            batch_rows: request.batch_rows,
            batch_bytes: request.batch_bytes,
        };
        let end = Stored::new(None, end);
        let layout = self.relation.object.to_string();
        Prepared { plan, shape: Arc::new(shape), work, end, layout, snapshot: false }
    }

    /// The condition on a time, and the watermark after the read.
    fn times(
        &self,
        start: &Start,
        horizon: &Horizon<Ticks>,
        cursor: &Cursor,
    ) -> (Option<String>, Option<Ticks>) {
        let column = MSSQL.ident(&cursor.name);
        let literal = |at: Ticks| at.floor(&cursor.of).literal(&cursor.of);
        let keyed = self.request.keyed;
        // What may be read once only has to wait until the lag is over.
        let horizon = if keyed {
            horizon.at
        } else {
            horizon.at.map(|at| at.minus(self.request.lag).floor(&cursor.of))
        };
        let from = match start {
            Start::After(Position::Timestamp { at, .. }) => *at,
            _ => {
                let condition = match (keyed, horizon) {
                    (true, _) => None,
                    (false, Some(at)) => Some(format!("{column} < {}", literal(at))),
                    (false, None) => Some("1 = 0".to_owned()),
                };
                return (condition, horizon);
            }
        };
        let at = from.max(horizon);
        let lower = from.map(|from| if keyed { from.minus(self.request.lag) } else { from });
        let mut conditions: Vec<String> =
            lower.map(|from| format!("{column} >= {}", literal(from))).into_iter().collect();
        match at {
            _ if keyed && self.request.beyond_horizon == BeyondHorizon::Read => {}
            Some(at) => conditions.push(format!("{column} < {}", literal(at))),
            // Nothing was ever sure: what is keyed may be read again, what is not has to wait.
            None if keyed => {}
            None => conditions.push("1 = 0".to_owned()),
        }
        ((!conditions.is_empty()).then(|| conditions.join(" AND ")), at)
    }

    /// The condition on a number, and the watermark after the read.
    fn numbers(
        &self,
        start: &Start,
        horizon: &Horizon<Number>,
        cursor: &Cursor,
    ) -> (Option<String>, Option<Number>) {
        let column = MSSQL.ident(&cursor.name);
        let keyed = self.request.keyed;
        let from = match start {
            Start::After(Position::Id { at, .. }) => *at,
            _ => None,
        };
        let at = from.max(horizon.at);
        let condition = match (from, at) {
            (Some(Number(from)), Some(Number(at))) => Some(format!("{column} > {from} AND {column} <= {at}")),
            (_, Some(_)) if keyed => None,
            (_, Some(Number(at))) => Some(format!("{column} <= {at}")),
            (_, None) if keyed => None,
            (_, None) => Some("1 = 0".to_owned()),
        };
        (condition, at)
    }

    /// The condition on a row version, and the first that is not read.
    fn versions(&self, start: &Start, below: Number, cursor: &Cursor) -> (Option<String>, Number) {
        let column = MSSQL.ident(&cursor.name);
        match start {
            Start::After(Position::Rowversion { below: from, .. }) => {
                let below = below.max(*from);
                let (from, to) = (row_version(*from), row_version(below));
                (Some(format!("{column} >= {from} AND {column} < {to}")), below)
            }
            _ if self.request.keyed => (None, below),
            _ => (Some(format!("{column} < {}", row_version(below))), below),
        }
    }

    /// Adds a condition, with the rows that have no cursor or without them.
    fn add(&self, select: &mut Select, cursor: &Cursor, first: bool, condition: Option<String>) {
        let column = MSSQL.ident(&cursor.name);
        let with_nulls = self.request.null_cursor == NullCursor::Include && (first || self.request.keyed);
        select.conditions.extend(match condition {
            _ if cursor.not_null => condition,
            Some(condition) if with_nulls => Some(format!("({condition}) OR {column} IS NULL")),
            // Every comparison leaves them out; without one it has to be said.
            None if self.request.null_cursor != NullCursor::Include => Some(format!("{column} IS NOT NULL")),
            condition => condition,
        });
    }

    /// Stops at rows without a cursor, if that is the policy.
    async fn refuse_nulls(&self, session: &mut Session, cursor: &Cursor) -> Result<()> {
        if cursor.not_null || self.request.null_cursor != NullCursor::Fail {
            return Ok(());
        }
        let only = Select {
            what: format!("SELECT TOP (1) 1 FROM {}", self.relation.quoted()),
            conditions: self.request.filter.iter().cloned().collect(),
        };
        let some = only.with(Some(format!("{} IS NULL", MSSQL.ident(&cursor.name))));
        if session.rows(&some).await?.is_empty() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Data, "rows have no cursor")
            .with("column", &cursor.name)
            .hint("give them one, or set `null_cursor: include` or `exclude`"))
    }

    fn say<T>(&mut self, horizon: Horizon<T>, at: Option<String>) {
        self.notes.extend(horizon.notes);
        if let Some(by) = horizon.held_by {
            let at = at.map_or("nothing is sure yet".to_owned(), |at| format!("this pass ends at {at}"));
            self.notes.push(format!("held back by {by}: {at}"));
        }
    }
}

#[cfg(test)]
mod tests;
