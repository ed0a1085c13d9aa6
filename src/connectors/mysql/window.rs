//! From a request to the statements that answer it: the window of the cursor, cut by the horizon.
//!
//! ```text
//!               keyed (one row a key)                   appended (each row once)
//! first         everything; watermark H                 cursor < H; watermark H
//! time          [W - lag, H); watermark H               [W, H - lag); watermark H - lag
//! number        (W, M]; watermark M                     the same
//! ```
//!
//! Windows of times are half-open, so equal cursors are never divided between two passes. A watermark never
//! moves back, and where the horizon is held back it stays.

use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};

use super::choose::{Choice, Cursor, Order, choose};
use super::discover::{self, Relation};
use super::horizon::{self, Horizon};
use super::keyset::{Bound, ByKey, Keyset};
use super::position::{Micros, Position, Stored};
use super::read::Work;
use super::rows::Shape;
use super::types::Conversion;
use crate::clients::mysql::Session;
use crate::connectors::sql::{MYSQL, Number, Select, Unfit};
use crate::error::{Error, ErrorKind, Result};
use crate::source::{BeyondHorizon, ChangeDetection, Extent, NullCursor, ReadPlan, ReadRequest};

/// A read that is decided.
pub(super) struct Prepared {
    pub(super) plan: ReadPlan,
    pub(super) shape: Arc<Shape>,
    pub(super) work: Work,
    pub(super) end: Stored,
    pub(super) layout: String,
}

/// What a read is decided for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// To say what would be done: nothing is waited for.
    Plan,
    /// To do it.
    Read,
}

/// Decides how a request is answered.
pub(super) async fn prepare(session: &mut Session, request: &ReadRequest, stage: Stage) -> Result<Prepared> {
    let relation = discover::one(session, &request.table).await?;
    let choice = choose(&relation, request)?;
    let mut notes = choice.notes.clone();
    let start = start(&relation, request, &choice, &mut notes);
    let limit = limit(session, &relation, &choice, stage).await?;
    let columns = wanted(&relation, request)?;
    let window = Window { request, relation: &relation, choice, notes, columns };
    window.decide(session, start, limit).await
}

/// Why an unfinished first read does not go on.
pub(super) const OTHER_SETTINGS: &str = "an unfinished first read cannot go on with these settings";
pub(super) const MADE_ANEW: &str = "the table was made anew since the unfinished first read";

/// Decides a read of the whole table by one who follows its changes then; `after`: one that was interrupted.
pub(super) async fn whole(
    session: &mut Session,
    relation: &Relation,
    request: &ReadRequest,
    notes: Vec<String>,
    after: Option<(Position, Bound)>,
) -> Result<Prepared> {
    let choice = Choice { change: request.change, cursor: None, notes: Vec::new() };
    let columns = wanted(relation, request)?;
    let start = after.map_or(Start::Nothing, |(then, after)| Start::Key(then, after));
    Window { request, relation, choice, notes, columns }.decide(session, start, Limit::None).await
}

/// The columns of a request as a SELECT, and how its rows are decoded.
pub(super) fn select(relation: &Relation, request: &ReadRequest) -> Result<(Select, Shape)> {
    let choice = Choice { change: request.change, cursor: None, notes: Vec::new() };
    let window = Window { request, relation, choice, notes: Vec::new(), columns: wanted(relation, request)? };
    Ok((window.select(), window.shape()))
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
    Time(Horizon<Micros>),
    Number(Horizon<Number>),
}

async fn limit(session: &mut Session, relation: &Relation, choice: &Choice, stage: Stage) -> Result<Limit> {
    Ok(match &choice.cursor {
        None => Limit::None,
        Some(cursor) => match cursor.order {
            Order::Time => Limit::Time(horizon::time(session, cursor).await?),
            Order::Number => {
                let wait = stage == Stage::Read;
                Limit::Number(horizon::identity(session, relation, cursor, wait).await?)
            }
        },
    })
}

/// Reads the stored watermark; where it is of no use, a note says why.
fn start(relation: &Relation, request: &ReadRequest, choice: &Choice, notes: &mut Vec<String>) -> Start {
    let Some(watermark) = request.from.as_ref().filter(|_| choice.change != ChangeDetection::Full) else {
        return Start::Nothing;
    };
    let found = Stored::read(watermark)
        .map_err(str::to_owned)
        .and_then(|stored| usable(stored.position, relation, request, choice));
    found.unwrap_or_else(|why| {
        notes.push(format!("the stored position is not used: {why}; the whole table is read"));
        Start::Nothing
    })
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
        Position::Full {} => return Err("it comes from full reads".to_owned()),
        Position::Log(_) => return Err("it comes from the log".to_owned()),
        Position::Triggers(_) => return Err("it comes from triggers".to_owned()),
        Position::FirstReadByKey { then, layout, key, after } => {
            let keys = Keyset::of(relation, &request.key);
            if !repeats(request, choice) || keys.is_none_or(|keys| keys.described() != *key) {
                return Err(OTHER_SETTINGS.to_owned());
            }
            if relation.layout != *layout {
                return Err(MADE_ANEW.to_owned());
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
    use ChangeDetection::{Log, Timestamp, Trigger};
    request.keyed && matches!(choice.change, Timestamp | Log | Trigger)
}

/// A column that was asked for: its name, how it travels, its field.
struct Wanted {
    name: String,
    conversion: Conversion,
    field: Field,
}

/// The columns that a request asks for, or all.
fn wanted(relation: &Relation, request: &ReadRequest) -> Result<Vec<Wanted>> {
    for name in request.values.types.keys() {
        relation.named(name)?;
    }
    let names: Vec<&str> = match &request.columns {
        None => relation.columns.iter().map(|column| column.name.as_str()).collect(),
        Some(names) => names.iter().map(String::as_str).collect(),
    };
    names
        .into_iter()
        .map(|name| {
            let column = relation.named(name)?;
            let (conversion, field) = relation.travels(column, &request.values)?;
            Ok(Wanted { name: name.to_owned(), conversion, field })
        })
        .collect()
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
            (Some(cursor), Limit::Time(horizon)) => {
                let (condition, at) = self.times(&start, &horizon, cursor);
                self.add(&mut select, cursor, first, condition);
                self.say(horizon, at.map(Micros::shown));
                Position::Timestamp { column: cursor.name.clone(), of: cursor.of.written(), at }
            }
            (Some(cursor), Limit::Number(horizon)) => {
                let (condition, at) = self.numbers(&start, &horizon, cursor);
                self.add(&mut select, cursor, first, condition);
                self.say(horizon, at.map(|Number(at)| at.to_string()));
                Position::Id { column: cursor.name.clone(), at }
            }
            _ => Position::Full {},
        };
        Ok(self.finish(select, start, end))
    }

    fn select(&self) -> Select {
        let list: Vec<_> = self
            .columns
            .iter()
            .map(|wanted| wanted.conversion.selected(&MYSQL.ident(&wanted.name)))
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
            Start::After(Position::Timestamp { at, .. }) => at.map(|Micros(at)| at),
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
        let shape = self.shape();
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
            schema: Arc::clone(&shape.schema),
        };
        let end = Stored::new(None, end);
        Prepared { plan, shape: Arc::new(shape), work, end, layout: self.relation.layout.clone() }
    }

    /// How the rows are decoded.
    fn shape(&self) -> Shape {
        let request = self.request;
        let fields: Vec<_> = self.columns.iter().map(|wanted| wanted.field.clone()).collect();
        let schema: SchemaRef = Arc::new(Schema::new(fields));
        let codecs: Vec<_> = self.columns.iter().map(|wanted| wanted.conversion.codec).collect();
        Shape {
            unfit: Unfit::of(&schema, request),
            schema,
            replaced: codecs.iter().map(|_| 0.into()).collect(),
            codecs,
            policy: request.values.out_of_range,
            batch_rows: request.batch_rows,
            batch_bytes: request.batch_bytes,
        }
    }

    /// The condition on a time, and the watermark after the read.
    fn times(
        &self,
        start: &Start,
        horizon: &Horizon<Micros>,
        cursor: &Cursor,
    ) -> (Option<String>, Option<Micros>) {
        let column = MYSQL.ident(&cursor.name);
        let keyed = self.request.keyed;
        let floor = |at: Micros| at.floor(cursor.of.scale);
        // What may be read once only has to wait until the lag is over.
        let horizon = if keyed { horizon.at } else { horizon.at.map(|at| floor(at.minus(self.request.lag))) };
        let from = match start {
            Start::After(Position::Timestamp { at, .. }) => *at,
            _ => {
                let condition = match (keyed, horizon) {
                    (true, _) => None,
                    (false, Some(at)) => Some(format!("{column} < {}", at.literal())),
                    (false, None) => Some("1 = 0".to_owned()),
                };
                return (condition, horizon);
            }
        };
        let at = from.max(horizon);
        let lower = from.map(|from| if keyed { floor(from.minus(self.request.lag)) } else { from });
        let mut conditions: Vec<String> =
            lower.map(|from| format!("{column} >= {}", from.literal())).into_iter().collect();
        match at {
            _ if keyed && self.request.beyond_horizon == BeyondHorizon::Read => {}
            Some(at) => conditions.push(format!("{column} < {}", at.literal())),
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
        let column = MYSQL.ident(&cursor.name);
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

    /// Adds a condition, with the rows that have no cursor or without them.
    fn add(&self, select: &mut Select, cursor: &Cursor, first: bool, condition: Option<String>) {
        let column = MYSQL.ident(&cursor.name);
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
            what: format!("SELECT 1 FROM {}", self.relation.quoted()),
            conditions: self.request.filter.iter().cloned().collect(),
        };
        let some = only.with(Some(format!("{} IS NULL", MYSQL.ident(&cursor.name))));
        if session.rows(&format!("{some} LIMIT 1")).await?.is_empty() {
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
