//! Where a pass through the log begins: at the position, or with the table itself.

use std::sync::Arc;

use super::super::discover::{self, Relation};
use super::super::position::{Ahead, Followed, Position, Stored};
use super::super::read::PostgresReading;
use super::super::rows::{Pool, Shape};
use super::super::wanted;
use super::super::window::{self, Limit, Prepared, Start, Window};
use super::end::end_of_log;
use super::fold::Following;
use super::needs::Asked;
use super::peek::{Part, Seen};
use super::publication::{self, Published};
use super::reading::{LogReading, Pass, at_once, in_parts};
use super::table::{self, Broken, Described, Wanted};
use super::{end, needs, peek, place, slot};
use crate::clients::postgres::Session;
use crate::connection::Connection;
use crate::connectors::sql::{Number, Select};
use crate::delta::Watermark;
use crate::error::{Error, ErrorKind, Result};
use crate::source::{OnSlotLag, ReadPlan, ReadRequest, Reading};

/// A request for the log of a table that has one.
struct Opening<'a> {
    request: &'a ReadRequest,
    relation: Relation,
    wanted: Vec<Wanted>,
    key: Vec<usize>,
    shape: Shape,
    select: Select,
    database: String,
    source: Option<String>,
    /// Whether the log has every value of an old row.
    full_identity: bool,
    asked: Asked,
    notes: Vec<String>,
}

/// Where to begin.
enum Begin {
    /// With the whole table.
    Nothing,
    /// In the middle of a first read, at this block.
    FirstRead(u64, Followed),
    /// After a position.
    After(Followed),
}

/// Opens a pass. It leaves a session in `idle` when it is done.
pub(in super::super) async fn open(
    connection: &Connection,
    session: Session,
    request: &ReadRequest,
    described: Option<Relation>,
    idle: &Pool,
) -> Result<Box<dyn Reading>> {
    let mut opening = Opening::new(&session, request, described).await?;
    let mut continues = false;
    let begin = opening.begin(&session).await?;
    let (session, begin) = match begin {
        Begin::After(at) => match opening.follow(session, at).await? {
            Followable::Yes(session, pass, at, first) => {
                return Ok(Box::new(LogReading {
                    plan: opening.plan(pass.look(&at).statement(table::as_text(&pass.table.wanted))),
                    ready: Some(pass.changed(&at, first)),
                    pass: *pass,
                    at,
                    over: false,
                    reached: None,
                    broken: false,
                    session: Some(session),
                    idle: Arc::clone(idle),
                }));
            }
            Followable::No(session, at, Broken(why)) => {
                opening.notes.push(format!("the whole table is read and compared: {why}"));
                // Nothing was lost. But an unfinished first read cannot be finished.
                continues = !in_parts(&at);
                (session, Begin::Nothing)
            }
        },
        begin => (session, begin),
    };
    let prepared = opening.whole(&session, begin, continues).await?;
    Ok(Box::new(PostgresReading::new(connection, session, request.parallel, prepared, idle)))
}

/// What a pass would do. Nothing is made for it, and the log is not looked at.
pub(in super::super) async fn plan(session: &Session, request: &ReadRequest) -> Result<ReadPlan> {
    let mut opening = Opening::new(session, request, None).await?;
    if let Begin::After(at) = opening.begin(session).await? {
        let pass = opening.pass(session, &at).await?;
        return Ok(opening.plan(pass.look(&at).statement(table::as_text(&pass.table.wanted))));
    }
    opening.notes.push(match (&request.log.publication, &request.log.slot) {
        (Some(publication), Some(slot)) => {
            format!("the log is read by the slot `{slot}` and the publication `{publication}`")
        }
        (Some(_), None) => "the first read makes a replication slot".to_owned(),
        (None, Some(_)) => "the first read makes a publication".to_owned(),
        (None, None) => "the first read makes a publication and a replication slot".to_owned(),
    });
    let Opening { request, relation, shape, select, source, notes, .. } = opening;
    let window = Window::of_log(request, source, notes);
    let prepared = window.decide(session, &relation, Start::Nothing, Limit::None, shape, select).await?;
    Ok(prepared.plan)
}

/// Whether a position is one of the log: others have nothing to confirm.
pub(in super::super) fn is_position(position: &Watermark) -> bool {
    matches!(Stored::read(position), Ok(Stored { position: Position::Log(_), .. }))
}

/// Confirms what is durable in the lake. What fails here is found by the next pass.
pub(in super::super) async fn acknowledge(session: &Session, position: &Watermark) -> Result<()> {
    let Ok(Stored { source, position: Position::Log(at), .. }) = Stored::read(position) else {
        return Ok(());
    };
    let slot = slot::look(session, &at.slot).await?;
    let behind = slot.and_then(|slot| slot.confirmed).is_some_and(|confirmed| confirmed < at.lsn);
    if !behind {
        return Ok(());
    }
    if source.is_some() && differs(&source, &discover::cluster(session).await) {
        return Err(Error::new(ErrorKind::Transient, "another server answers than the one that was read")
            .with("slot", &at.slot)
            .hint("of several hosts each has slots of its own: name one host for the log"));
    }
    slot::advance(session, &at.slot, at.lsn).await
}

/// Whether two servers that say who they are, are two.
fn differs(one: &Option<String>, other: &Option<String>) -> bool {
    one.is_some() && other.is_some() && one != other
}

/// What comes of trying to follow the log.
enum Followable {
    Yes(Session, Box<Pass>, Followed, Part),
    No(Session, Followed, Broken),
}

impl<'a> Opening<'a> {
    async fn new(session: &Session, request: &'a ReadRequest, described: Option<Relation>) -> Result<Self> {
        let relation = discover::unless(described, session, &request.table).await?;
        let about = needs::look(session, &relation).await?;
        about.check(session, &relation, request)?;
        let wanted = table::wanted(&relation, request)?;
        let name = |wanted: &Wanted| relation.columns[wanted.place].name.as_str();
        let key = request.key.iter().filter_map(|key| wanted.iter().position(|wanted| name(wanted) == key));
        let key: Vec<usize> = key.collect();
        let (shape, select) = wanted::select(&relation, request)?;
        Ok(Self {
            request,
            wanted,
            key,
            shape,
            select,
            source: discover::cluster(session).await,
            full_identity: about.identity == b'f',
            database: about.database,
            asked: about.asked,
            notes: Vec::new(),
            relation,
        })
    }

    /// Reads the stored position; where it is of no use, a note says why.
    async fn begin(&mut self, session: &Session) -> Result<Begin> {
        let Some(watermark) = &self.request.from else { return Ok(Begin::Nothing) };
        let found = match Stored::read(watermark) {
            Ok(stored)
                if differs(&stored.source, &self.source) && !self.is_promoted(session, &stored).await? =>
            {
                Err("it belongs to another server, or to one that was restored or failed over".to_owned())
            }
            Ok(stored) => self.usable(session, stored.position).await?,
            Err(why) => Err(why.to_owned()),
        };
        Ok(found.unwrap_or_else(|why| {
            self.notes.push(format!("the stored position is not used: {why}; the whole table is read"));
            Begin::Nothing
        }))
    }

    /// Whether a position was read from this replica before it was promoted, or from the primary whose slot it kept,
    /// or followed a server that was.
    ///
    /// A slot that was made on a replica is nowhere else. One that a replica keeps for its primary goes no further
    /// than the log that it has. If it is confirmed at this very place, the log before it is the one that was read,
    /// and the timeline begins behind it. Another replica may have been promoted before it came so far.
    async fn is_promoted(&self, session: &Session, stored: &Stored) -> Result<bool> {
        let Position::Log(at) = &stored.position else { return Ok(false) };
        let system = |source: &Option<String>| {
            source.as_deref().and_then(|it| it.split('/').next()).map(str::to_owned)
        };
        if system(&stored.source) != system(&self.source) {
            return Ok(false);
        }
        let slot = slot::look(session, &at.slot).await?;
        let kept = |slot: &slot::Slot| at.on_replica || slot.outlives_failover;
        Ok(slot.is_some_and(|slot| kept(&slot) && slot.confirmed == Some(at.lsn)))
    }

    async fn usable(&self, session: &Session, position: Position) -> Result<Result<Begin, String>> {
        let at = match &position {
            Position::Log(at) => at.clone(),
            Position::FirstRead { then, layout, .. } => {
                let Position::Log(at) = then.as_ref() else {
                    return Ok(Err(window::OTHER_SETTINGS.to_owned()));
                };
                let same = self.relation.heap.as_ref().is_some_and(|heap| heap.layout == *layout);
                if !same {
                    return Ok(Err(window::REWRITTEN.to_owned()));
                }
                if !at.table.same_columns(&Described::of(&self.relation, "")) {
                    return Ok(Err("the table was altered since the first read began".to_owned()));
                }
                at.clone()
            }
            _ => return Ok(Err("it does not come from the log".to_owned())),
        };
        let at = self.named(at);
        let Some(slot) = slot::look(session, &at.slot).await? else {
            return Ok(Err(format!("the replication slot `{}` is gone", at.slot)));
        };
        slot.check(&self.database)?;
        if let Some(gap) = slot.gap(at.lsn) {
            return Ok(Err(gap));
        }
        slot.check_free()?;
        if matches!(position, Position::FirstRead { .. }) && self.may_lack_values(session).await? {
            return Ok(Err(
                "rows have large values by now, so that the first read cannot go on in parts".to_owned()
            ));
        }
        Ok(Ok(match position {
            Position::FirstRead { done_to_block, .. } => Begin::FirstRead(done_to_block, at),
            _ => Begin::After(at),
        }))
    }

    /// Whether the log may not have all of a row that moved.
    async fn may_lack_values(&self, session: &Session) -> Result<bool> {
        Ok(!self.full_identity && needs::has_large_values(session, &self.relation).await?)
    }

    /// A position with the slot and publication that the stream names now.
    fn named(&self, at: Followed) -> Followed {
        let log = &self.request.log;
        Followed {
            slot: log.slot.clone().unwrap_or(at.slot),
            publication: log.publication.clone().unwrap_or(at.publication),
            ..at
        }
    }

    /// Says so where more log waits on the server than is to wait there.
    async fn over_budget(&self, session: &Session, at: &Followed) -> Result<Option<String>> {
        let Some(most) = self.request.log.max_lag else { return Ok(None) };
        let kept_from = slot::look(session, &at.slot).await?.and_then(|slot| slot.kept_from);
        let end = end_of_log(session, None).await?;
        let waiting = kept_from.map_or(0, |from| end.since(from));
        Ok((waiting > most).then(|| {
            format!(
                "{} MiB of log wait on the server for the slot `{}`, more than the {} MiB of `max_slot_lag`",
                waiting >> 20,
                at.slot,
                most >> 20
            )
        }))
    }

    /// What the log is read with from a position.
    async fn pass(&mut self, session: &Session, at: &Followed) -> Result<Pass> {
        let on_replica = session.server().standby;
        let needed = at.ahead.as_ref().filter(|_| at_once(at)).map(|ahead| ahead.until);
        // A replica that was started anew comes to where it was after a while, and another one later than this.
        let end = end_of_log(session, needed.or(on_replica.then_some(at.lsn))).await?;
        let least = needed.map_or(at.lsn, |needed| needed.max(at.lsn));
        let (up_to, common) = match &self.request.log.up_to {
            Some(place) => place::bound(place, self.source.as_deref(), least, end)?,
            None => (end, None),
        };
        let entry = match publication::look(session, &at.publication, &self.relation).await? {
            Published::Whole { entry } => entry,
            // Taken out and not put back: the whole read puts it back, or says what is missing.
            _ => String::new(),
        };
        Ok(Pass {
            now: Described::of(&self.relation, &entry),
            table: Following {
                relation: self.relation.clone(),
                before: at.table.clone(),
                wanted: self.wanted.clone(),
                key: self.key.clone(),
            },
            shape: Arc::new(self.shape.again()),
            source: self.source.clone(),
            from: self.request.from.clone().unwrap_or_else(|| Watermark::new("")),
            up_to,
            common,
            messages: peek::messages(self.request.log.commit_bytes.unwrap_or(self.request.portion_bytes)),
            asked: self.asked,
            on_replica,
        })
    }

    /// Reads the first portion of the log.
    async fn follow(&mut self, session: Session, at: Followed) -> Result<Followable> {
        match self.over_budget(&session, &at).await? {
            Some(told) if self.request.log.on_slot_lag == OnSlotLag::Resnapshot => {
                // The server needs the room now, not when the table is read.
                slot::remove(&session, &at.slot).await?;
                return Ok(Followable::No(session, at, Broken(format!("{told}; the slot was made anew"))));
            }
            told => self.notes.extend(told),
        }
        let pass = self.pass(&session, &at).await?;
        if pass.up_to < at.lsn {
            let why = "the server's log is shorter than it was: it was restored";
            return Ok(Followable::No(session, at, Broken(why.to_owned())));
        }
        let columns = self.wanted.iter().map(|wanted| &self.relation.columns[wanted.place]);
        if let Some(broken) = at.table.broken(&pass.now, &self.relation, columns) {
            return Ok(Followable::No(session, at, broken));
        }
        // A pass that was stopped before it confirmed left the slot behind the lake.
        let position = Stored::new(None, Position::Log(at.clone())).write();
        acknowledge(&session, &position).await?;
        let (session, seen) = pass.look(&at).look(session, &pass.table).await?;
        Ok(match seen {
            Seen::Part(part) => Followable::Yes(session, Box::new(pass), at, part),
            Seen::Broken(broken) => Followable::No(session, at, broken),
        })
    }

    fn plan(&self, statement: String) -> ReadPlan {
        ReadPlan::of_changes(self.request, Arc::clone(&self.shape.schema), statement, self.notes.clone())
    }

    /// Prepares to read the table, and the log from before that on.
    async fn whole(mut self, session: &Session, begin: Begin, continues: bool) -> Result<Prepared> {
        let (start, mut at) = match begin {
            Begin::FirstRead(block, at) => (Start::Block(Position::Log(at.clone()), block), at),
            _ => (Start::Nothing, self.secure(session).await?),
        };
        let seen_for_sure = end::seen_for_sure(session).await?;
        self.relation = window::begin(session, &self.relation).await?;
        let now = Described::of(&self.relation, "");
        if !at.table.same_columns(&now) {
            return Err(Error::new(ErrorKind::Transient, "the table was altered just now")
                .with("table", &self.relation.id)
                .hint("the next pass reads it as it is then"));
        }
        let (snapshot, until) = end::seen_now(session).await?;
        at.ahead = Some(match at.ahead {
            // What the parts before have not seen comes from the log, this part's too.
            Some(before) => Ahead { until, parts: true, ..before },
            None => {
                at.lsn = seen_for_sure.map_or(at.lsn, |seen| seen.max(at.lsn));
                Ahead { snapshot, until, parts: false }
            }
        });
        let mut request = self.request.clone();
        if self.may_lack_values(session).await? {
            // A row that moved between two parts is in neither, and the log may lack some of its values.
            request.portion_bytes = u64::MAX;
        }
        let Self { relation, shape, select, source, notes, .. } = self;
        let window = Window::of_log(&request, source, notes);
        let mut prepared = window.decide(session, &relation, start, Limit::None, shape, select).await?;
        prepared.plan.continues |= continues;
        prepared.end.position = Position::Log(at);
        if let Some(settings) = prepared.work.settings() {
            session.batch_execute(settings).await?;
        }
        Ok(prepared)
    }

    /// Makes sure that from here on the log is kept, and that it has the table.
    async fn secure(&mut self, session: &Session) -> Result<Followed> {
        let own = slot::own_name(self.request, &self.database);
        let log = &self.request.log;
        let mut changed = false;
        let publication = log.publication.clone().unwrap_or_else(|| own.clone());
        if log.publication.is_none() {
            changed = publication::ensure(session, &own, &self.relation).await?;
        }
        let published = publication::look(session, &publication, &self.relation).await?;
        if let Some(refusal) = publication::refusal(&publication, &published, &self.relation) {
            return Err(refusal);
        }
        let Published::Whole { entry } = published else {
            return Err(Error::new(ErrorKind::Internal, "a publication that is not whole was let through"));
        };
        let slot = self.secure_slot(session, &own, changed).await?;
        let lsn = slot.confirmed.ok_or_else(|| {
            Error::new(ErrorKind::Transient, "the replication slot has no position yet")
                .with("slot", &slot.name)
        })?;
        let table = Described::of(&self.relation, &entry);
        Ok(Followed {
            slot: slot.name,
            publication,
            lsn,
            seen: Number(self.asked.seconds()),
            on_replica: session.server().standby,
            ahead: None,
            table,
        })
    }

    async fn secure_slot(&self, session: &Session, own: &str, published: bool) -> Result<slot::Slot> {
        let name = self.request.log.slot.as_deref().unwrap_or(own);
        let mine = self.request.log.slot.is_none();
        let there = slot::look(session, name).await?;
        if let Some(slot) = &there {
            slot.check(&self.database)?;
            slot.check_free()?;
        }
        Ok(match there {
            // A publication does not count for the log from before it was made.
            Some(slot) if mine && (slot.is_lost() || published) => {
                slot::remove(session, name).await?;
                slot::create(session, name).await?
            }
            Some(slot) if slot.is_lost() => {
                return Err(Error::new(ErrorKind::Config, format!("the replication slot `{name}` is lost"))
                    .hint(format!(
                        "run `SELECT pg_drop_replication_slot('{name}')` and `SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')`"
                    )));
            }
            Some(slot) => slot,
            None if mine => slot::create(session, name).await?,
            None => {
                return Err(Error::new(ErrorKind::Config, format!("there is no replication slot `{name}`"))
                    .hint(format!("run `SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')`")));
            }
        })
    }
}
