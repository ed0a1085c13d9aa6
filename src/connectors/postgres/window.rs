//! From a request to the statements that answer it: the window of the cursor, cut by the horizon.
//!
//! ```text
//!            keyed (one row a key)                   appended (each row once)
//! first      everything; watermark H                 cursor < H; watermark H
//! later      [W - lag, H); watermark H               [W, H - lag); watermark H - lag
//! ```
//!
//! Windows are half-open, so equal cursors are never divided between two passes. For numbers the
//! window is (W, M]. A watermark never moves back, and where the horizon is held back it stays.

use std::sync::Arc;

use super::choose::{Choice, Cursor, Order, choose};
use super::discover::{self, Relation};
use super::estimate::estimate;
use super::horizon::{self, Horizon, READER_NAME};
use super::keyset::{self, Bound, Keyset};
use super::position::{Micros, Position, Stored};
use super::read::Work;
use super::rows::Shape;
use super::wanted::select;
use crate::clients::postgres::Session;
use crate::connectors::sql::{Number, POSTGRES, Select};
use crate::error::{Error, ErrorKind, Result};
use crate::source::{BeyondHorizon, ChangeDetection, Extent, NullCursor, ReadPlan, ReadRequest};
use crate::table::TableKind;

/// Ranges of `ctid` are scanned, not filtered, since Postgres 14.
const RANGE_SCAN_VERSION: u32 = 140_000;
/// Rows of a batch of a change: one batch is encoded while the server looks for the rows of the next, and
/// of the last one all waits. Fewer would say too little about a column's values.
const WINDOW_BATCH_ROWS: usize = 8_192;
/// Rows beyond the horizon are counted up to this number.
const COUNT_LIMIT: i64 = 1000;
/// Who alters the table may take so long before the pass ends, and comes back. Nobody waits behind us.
const PATIENCE: &str = "60s";
/// Why an unfinished first read does not go on.
pub(super) const REWRITTEN: &str = "the table was rewritten since the unfinished first read";
pub(super) const OTHER_SETTINGS: &str = "an unfinished first read cannot go on with these settings";

/// A read that is decided.
pub(super) struct Prepared {
    pub(super) plan: ReadPlan,
    pub(super) shape: Arc<Shape>,
    pub(super) work: Work,
    pub(super) end: Stored,
}

/// What a read is decided for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// To say what would be done: nothing is waited for, no transaction is left open.
    Plan,
    /// To do it: the session comes back in the transaction that is to be read.
    Read,
}

/// Decides how a request is answered, for a table that may have been looked at already.
pub(super) async fn prepare(
    session: &Session,
    request: &ReadRequest,
    described: Option<Relation>,
    stage: Stage,
) -> Result<Prepared> {
    let mut relation = discover::unless(described, session, &request.table).await?;
    let choice = choose(&relation, request)?;
    let source = discover::cluster(session).await;
    let mut window = Window { notes: choice.notes.clone(), request, source, choice };
    let start = window.start(&relation);
    let horizon = window.horizon(session, &relation, stage == Stage::Read).await?;
    if stage == Stage::Read {
        relation = begin(session, &relation).await?;
    }
    let (shape, select) = select(&relation, request)?;
    let mut prepared = window.decide(session, &relation, start, horizon, shape, select).await?;
    if matches!(prepared.work, Work::Whole { .. }) {
        keyset::refine(session, &relation, request, &mut prepared).await?;
    } else if prepared.plan.cursor.is_some() || request.filter.is_some() {
        let whole = estimate(session, &prepared.plan.statement).await?;
        (prepared.plan.rows, prepared.plan.bytes) = (Some(whole.rows as u64), Some(whole.bytes() as u64));
    }
    if stage == Stage::Read
        && let Some(settings) = prepared.work.settings()
    {
        session.batch_execute(settings).await?;
    }
    Ok(prepared)
}

/// Opens the transaction that is read. The lock keeps the table's shape; it is the first statement, so
/// the snapshot comes after it.
pub(super) async fn begin(session: &Session, relation: &Relation) -> Result<Relation> {
    let mut begin = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL application_name = '{READER_NAME}'; \
         SET LOCAL jit = off; SET LOCAL lock_timeout = '{PATIENCE}'"
    );
    // What else there is cannot be locked, nor by somebody who may read some columns only.
    let lockable = matches!(relation.kind, TableKind::Table | TableKind::PartitionedTable | TableKind::View);
    if lockable && relation.readable {
        begin += &format!("; LOCK TABLE {} IN ACCESS SHARE MODE", relation.quoted());
    }
    session.batch_execute(&begin).await.map_err(|error| Error::from(error).with("table", &relation.id))?;
    let again = discover::one(session, &relation.id).await?;
    if again.oid != relation.oid || again.columns != relation.columns {
        return Err(
            Error::new(ErrorKind::Transient, "the table was altered just now").with("table", &relation.id)
        );
    }
    Ok(again)
}

/// Where a read starts.
pub(super) enum Start {
    /// From nothing.
    Nothing,
    /// In the middle of a first read that ends at the position.
    Block(Position, u64),
    /// The same, where rows are found by their key.
    Key(Position, Bound),
    /// After a time or a number; `None` where the pass before was sure of nothing.
    Time(Option<Micros>),
    Number(Option<Number>),
}

/// The horizon, by what the cursor counts.
pub(super) enum Limit {
    None,
    Time(Horizon<Micros>),
    Number(Horizon<Number>),
}

pub(super) struct Window<'a> {
    request: &'a ReadRequest,
    choice: Choice,
    source: Option<String>,
    notes: Vec<String>,
}

impl<'a> Window<'a> {
    /// Of a table whose changes are in a log, or written down by triggers: there is no cursor.
    pub(super) fn of_log(request: &'a ReadRequest, source: Option<String>, notes: Vec<String>) -> Self {
        let choice = Choice { change: request.change, cursor: None, notes: Vec::new() };
        Self { request, choice, source, notes }
    }

    /// Reads the stored watermark; where it is of no use, a note says why.
    fn start(&mut self, relation: &Relation) -> Start {
        let Some(watermark) = self.request.from.as_ref().filter(|_| self.choice.cursor.is_some()) else {
            return Start::Nothing;
        };
        let found = Stored::read(watermark).map_err(str::to_owned).and_then(|stored| {
            if self.source.is_some() && stored.source.is_some() && stored.source != self.source {
                return Err(
                    "it belongs to another server, or to one that was restored or failed over".to_owned()
                );
            }
            self.usable(stored.position, relation)
        });
        found.unwrap_or_else(|why| {
            self.notes.push(format!("the stored position is not used: {why}; the whole table is read"));
            Start::Nothing
        })
    }

    fn usable(&self, position: Position, relation: &Relation) -> Result<Start, String> {
        let cursor = self.choice.cursor.as_ref().expect("only asked for with a cursor");
        match position {
            Position::Timestamp { column, of, at } if column == cursor.name && of == cursor.base => {
                Ok(Start::Time(at))
            }
            Position::Id { column, at } if column == cursor.name && cursor.order == Order::Number => {
                Ok(Start::Number(at))
            }
            Position::FirstRead { then, layout, done_to_block } => {
                if !self.resumable() {
                    return Err(OTHER_SETTINGS.to_owned());
                }
                self.usable((*then).clone(), relation)?;
                match &relation.heap {
                    Some(heap) if heap.layout == layout => Ok(Start::Block(*then, done_to_block)),
                    _ => Err(REWRITTEN.to_owned()),
                }
            }
            Position::FirstReadByKey { then, layout, key, after } => {
                let keys = Keyset::of(relation, &keyset::key_names(relation, self.request));
                if !self.resumable() || keys.is_none_or(|keys| keys.described() != key) {
                    return Err(OTHER_SETTINGS.to_owned());
                }
                self.usable((*then).clone(), relation)?;
                if relation.layout != layout {
                    return Err(REWRITTEN.to_owned());
                }
                Ok(Start::Key(*then, after))
            }
            Position::Timestamp { column, .. } | Position::Id { column, .. } => {
                Err(format!("it belongs to the column `{column}`, or to another type of it"))
            }
            Position::Full {} => Err("it comes from full reads".to_owned()),
            Position::Log(_) => Err("it comes from the log".to_owned()),
            Position::Triggers(_) => Err("it comes from triggers".to_owned()),
        }
    }

    /// Whatever changes while a first read runs is read again, so its portions may be kept.
    fn resumable(&self) -> bool {
        use ChangeDetection::{Log, Timestamp, Trigger};
        self.request.keyed && matches!(self.choice.change, Timestamp | Log | Trigger)
    }

    async fn horizon(&self, session: &Session, relation: &Relation, wait: bool) -> Result<Limit> {
        Ok(match &self.choice.cursor {
            None => Limit::None,
            Some(cursor) => match cursor.order {
                Order::Time { .. } => Limit::Time(horizon::time(session, relation, cursor, wait).await?),
                Order::Number => Limit::Number(horizon::number(session, relation, cursor, wait).await?),
            },
        })
    }

    pub(super) async fn decide(
        mut self,
        session: &Session,
        relation: &Relation,
        start: Start,
        limit: Limit,
        mut shape: Shape,
        mut select: Select,
    ) -> Result<Prepared> {
        let cursor = self.choice.cursor.clone();
        let resumable = self.resumable();
        let first = matches!(start, Start::Nothing | Start::Block(..) | Start::Key(..));
        let continues = !matches!(start, Start::Nothing);
        let known_to = match &start {
            Start::Time(at) => at.map(|Micros(at)| at),
            _ => None,
        };
        let (mut from_block, mut after) = (0, None);
        let end = match (&cursor, limit) {
            (None, _) | (_, Limit::None) => Position::Full {},
            (Some(cursor), Limit::Time(horizon)) => {
                let column = POSTGRES.ident(&cursor.name);
                self.nulls(session, relation, cursor, first, &select).await?;
                let behind = behind(session, &start, &horizon);
                let (condition, at) = match behind {
                    Some(from) => (Some("false".to_owned()), Some(from)),
                    None => self.times(&start, &horizon, cursor),
                };
                let condition = match behind {
                    Some(_) => condition,
                    None => self.with_nulls(session, relation, cursor, first, condition).await?,
                };
                select.conditions.extend(condition);
                if behind.is_some() {
                    self.notes.push(
                        "this replica is behind the position, and shows rows as they were: nothing is read"
                            .to_owned(),
                    );
                }
                self.say(horizon, at.map(Micros::shown).as_deref());
                if let Some(at) = at {
                    self.beyond(
                        session,
                        relation,
                        cursor,
                        &format!("{column} >= {}", at.literal(&cursor.base)),
                    )
                    .await?;
                }
                Position::Timestamp { column: cursor.name.clone(), of: cursor.base.clone(), at }
            }
            (Some(cursor), Limit::Number(horizon)) => {
                self.nulls(session, relation, cursor, first, &select).await?;
                let (condition, at) = self.numbers(&start, &horizon, cursor);
                if let Some(condition) = self.with_nulls(session, relation, cursor, first, condition).await? {
                    select.conditions.push(condition);
                }
                self.say(horizon, at.map(|Number(at)| at.to_string()).as_deref());
                Position::Id { column: cursor.name.clone(), at }
            }
        };
        let end = match start {
            // Whatever changed since the first attempt will be read again after it.
            Start::Block(then, block) => {
                from_block = block;
                self.notes.push(format!("the first read goes on at block {block}"));
                then
            }
            Start::Key(then, key) => {
                after = Some(key);
                self.notes.push("the first read goes on where it stopped".to_owned());
                then
            }
            _ => end,
        };
        if relation.row_security {
            self.notes.push("row security policies hide rows of this table from the user".to_owned());
        }
        if !first {
            shape.batch_rows = shape.batch_rows.min(WINDOW_BATCH_ROWS);
        }
        let statement = select.with(None);
        let by_place = first && after.is_none() && session.server().version >= RANGE_SCAN_VERSION;
        let work = match relation.heap.clone().filter(|_| by_place) {
            Some(heap) => {
                let portion_bytes = if resumable { self.request.portion_bytes } else { u64::MAX };
                Work::Ranges { select, heap, from_block, portion_bytes }
            }
            None => Work::Whole { select, after },
        };
        let plan = ReadPlan {
            change: self.choice.change,
            cursor_indexed: cursor.as_ref().is_some_and(|cursor| cursor.indexed),
            cursor: cursor.map(|cursor| cursor.name),
            extent: if first { Extent::Whole } else { Extent::Changed },
            resumable: first && resumable && matches!(work, Work::Ranges { .. }),
            continues,
            notes: self.notes,
            statement,
            known_to,
            rows: relation.rows,
            bytes: relation.bytes,
            schema: Arc::clone(&shape.schema),
        };
        Ok(Prepared { plan, shape: Arc::new(shape), work, end: Stored::new(self.source, end) })
    }

    /// The condition on a time, and the watermark after the read.
    fn times(
        &self,
        start: &Start,
        horizon: &Horizon<Micros>,
        cursor: &Cursor,
    ) -> (Option<String>, Option<Micros>) {
        let column = POSTGRES.ident(&cursor.name);
        let literal = |at: Micros| at.literal(&cursor.base);
        let keyed = self.request.keyed;
        // What may be read once only has to wait until the lag is over.
        let horizon = if keyed { horizon.at } else { horizon.at.map(|at| at.minus(self.request.lag)) };
        let Start::Time(from) = start else {
            let condition = match (keyed, horizon) {
                (true, _) => None,
                (false, Some(at)) => Some(format!("{column} < {}", literal(at))),
                (false, None) => Some("false".to_owned()),
            };
            return (condition, horizon);
        };
        let at = (*from).max(horizon);
        let lower = from.map(|from| if keyed { from.minus(self.request.lag) } else { from });
        let mut conditions: Vec<String> =
            lower.map(|from| format!("{column} >= {}", literal(from))).into_iter().collect();
        // A date is written on the whole day that the horizon is in: keyed tables read it as it grows.
        let beyond = keyed && (self.request.beyond_horizon == BeyondHorizon::Read || cursor.base == "date");
        match at {
            _ if beyond => {}
            Some(at) => conditions.push(format!("{column} < {}", literal(at))),
            // Nothing was ever sure: what is keyed may be read again, what is not has to wait.
            None if keyed => {}
            None => conditions.push("false".to_owned()),
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
        let column = POSTGRES.ident(&cursor.name);
        let keyed = self.request.keyed;
        let from = match start {
            Start::Number(from) => *from,
            _ => None,
        };
        let at = from.max(horizon.at);
        let condition = match (from, at) {
            (Some(Number(from)), Some(Number(at))) => Some(format!("{column} > {from} AND {column} <= {at}")),
            (_, Some(_)) if keyed => None,
            (_, Some(Number(at))) => Some(format!("{column} <= {at}")),
            (_, None) if keyed => None,
            (_, None) => Some("false".to_owned()),
        };
        (condition, at)
    }

    /// Rows without a cursor, by the policy: refused, or counted where they are left out.
    async fn nulls(
        &mut self,
        session: &Session,
        relation: &Relation,
        cursor: &Cursor,
        first: bool,
        select: &Select,
    ) -> Result<()> {
        if cursor.not_null || self.request.null_cursor == NullCursor::Include || !(first || cursor.indexed) {
            return Ok(());
        }
        let column = POSTGRES.ident(&cursor.name);
        let only = Select {
            what: format!("SELECT 1 FROM {}", relation.quoted()),
            conditions: select.conditions.clone(),
        };
        let count = count(session, &only.with(Some(format!("{column} IS NULL"))), COUNT_LIMIT).await?;
        if count == 0 {
            return Ok(());
        }
        if self.request.null_cursor == NullCursor::Fail {
            return Err(Error::new(ErrorKind::Data, "rows have no cursor")
                .with("table", &relation.id)
                .with("column", &cursor.name)
                .hint("give them one, or set `null_cursor: include` or `exclude`"));
        }
        self.notes.push(format!("{} rows have no `{}` and are left out", at_least(count), cursor.name));
        Ok(())
    }

    /// Adds rows without a cursor to a condition, or takes them out.
    async fn with_nulls(
        &mut self,
        session: &Session,
        relation: &Relation,
        cursor: &Cursor,
        first: bool,
        condition: Option<String>,
    ) -> Result<Option<String>> {
        if cursor.not_null {
            return Ok(condition);
        }
        let column = POSTGRES.ident(&cursor.name);
        if self.request.null_cursor != NullCursor::Include {
            // Every comparison leaves them out; without one it has to be said.
            return Ok(condition.or_else(|| Some(format!("{column} IS NOT NULL"))));
        }
        let Some(condition) = condition else { return Ok(None) };
        if !first && !self.request.keyed {
            return Ok(Some(condition));
        }
        let any = format!("SELECT 1 FROM {} WHERE {column} IS NULL", relation.quoted());
        if cursor.indexed && count(session, &any, 1).await? == 0 {
            return Ok(Some(condition));
        }
        Ok(Some(format!("({condition}) OR {column} IS NULL")))
    }

    fn say<T>(&mut self, horizon: Horizon<T>, at: Option<&str>) {
        self.notes.extend(horizon.notes);
        if let Some(by) = horizon.held_by {
            let at = at.map_or("nothing is sure yet".to_owned(), |at| format!("this pass ends at {at}"));
            self.notes.push(format!("held back by {by}: {at}"));
        }
    }

    /// Counts what waits beyond the horizon, where an index makes that cheap.
    async fn beyond(
        &mut self,
        session: &Session,
        relation: &Relation,
        cursor: &Cursor,
        condition: &str,
    ) -> Result<()> {
        let read_anyway = self.request.keyed && cursor.base == "date";
        if !cursor.indexed || read_anyway || self.request.beyond_horizon == BeyondHorizon::Read {
            return Ok(());
        }
        let count =
            count(session, &format!("SELECT 1 FROM {} WHERE {condition}", relation.quoted()), COUNT_LIMIT)
                .await?;
        if count > 0 {
            let what = if self.request.keyed { "will be read (again)" } else { "wait" };
            self.notes.push(format!(
                "{} rows lie beyond the horizon (written just now, or dated in the future) and {what} once it has passed them",
                at_least(count)
            ));
        }
        Ok(())
    }
}

/// Where a replica has not come to yet: it would show older rows than another server has shown.
fn behind(session: &Session, start: &Start, horizon: &Horizon<Micros>) -> Option<Micros> {
    let Start::Time(from) = start else { return None };
    let (from, at) = ((*from)?, horizon.at?);
    (session.server().standby && at < from).then_some(from)
}

fn at_least(count: i64) -> String {
    if count >= COUNT_LIMIT { format!("at least {count}") } else { count.to_string() }
}

/// How many rows a SELECT finds, up to a limit.
async fn count(session: &Session, select: &str, limit: i64) -> Result<i64> {
    let sql = format!("SELECT count(*) FROM ({select} LIMIT {limit}) few");
    Ok(session.query_typed(&sql, &[]).await?.first().map_or(0, |row| row.get(0)))
}
