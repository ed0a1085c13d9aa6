//! A pass through the log, in portions that end with a transaction.
//!
//! The first portion is read before the reading is opened: whether the log can be followed at all shows
//! only there. What cannot be followed in a later one ends the pass, and the next reads the table.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::super::position::{Followed, Position, Stored};
use super::super::rows::{Pool, Shape};
use super::batches::batches;
use super::fold::Following;
use super::lsn::Lsn;
use super::needs::Asked;
use super::peek::{Look, Part, Seen};
use super::slot;
use super::table::Described;
use crate::clients::postgres::Session;
use crate::connectors::sql::{Changes, Number, lock, replaced_values};
use crate::delta::{LogPlace, Watermark};
use crate::error::Result;
use crate::source::{Portion, ReadPlan, Reading};

/// A position moves on although nothing changed when it is this old, in seconds…
const HEARTBEAT: i64 = 3600;
/// … or when this much log waits for it on the server: four of its files.
const HEARTBEAT_BYTES: u64 = 64 << 20;
/// How many batches of changes are held in memory before they go to disk: the shares of one portion are
/// then no larger than that either, whatever the transaction.
const HELD_BATCHES: usize = 4;

/// What does not change in a pass.
pub(super) struct Pass {
    pub(super) table: Following,
    pub(super) now: Described,
    pub(super) shape: Arc<Shape>,
    pub(super) source: Option<String>,
    /// The watermark that the pass began with.
    pub(super) from: Watermark,
    pub(super) up_to: Lsn,
    /// The same, if that is where others end too.
    pub(super) common: Option<LogPlace>,
    /// About how many messages a portion has.
    pub(super) messages: u64,
    /// When the server was asked.
    pub(super) asked: Asked,
    /// Whether it is a replica.
    pub(super) on_replica: bool,
}

pub(super) struct LogReading {
    pub(super) plan: ReadPlan,
    pub(super) pass: Pass,
    pub(super) at: Followed,
    pub(super) ready: Option<Changed>,
    pub(super) over: bool,
    pub(super) reached: Option<LogPlace>,
    /// Whether the log went on in a way that cannot be followed.
    pub(super) broken: bool,
    pub(super) session: Option<Session>,
    pub(super) idle: Pool,
}

/// A portion that was read.
pub(super) struct Changed {
    changes: Changes,
    to: Followed,
    complete: bool,
    /// When the oldest of the changes was committed, by our clock.
    oldest: Option<DateTime<Utc>>,
}

impl Pass {
    /// The next look from a position.
    pub(super) fn look<'a>(&self, at: &'a Followed) -> Look<'a> {
        Look {
            slot: &at.slot,
            publication: &at.publication,
            after: at.lsn,
            seen: at.ahead.as_ref().and_then(|ahead| ahead.snapshot.as_ref()),
            up_to: self.up_to,
            // What some of the lake has seen already, and some not, must not come in portions.
            most: (!at_once(at)).then_some(self.messages),
            most_bytes: self.shape.batch_bytes * HELD_BATCHES,
            batch_bytes: self.shape.batch_bytes,
        }
    }

    /// The portion that a look makes.
    pub(super) fn changed(&self, at: &Followed, part: Part) -> Changed {
        let lsn = part.end.unwrap_or(self.up_to.max(at.lsn));
        let to = Followed {
            lsn,
            seen: Number(self.asked.seconds()),
            on_replica: self.on_replica,
            ahead: at.ahead.clone().filter(|ahead| lsn < ahead.until),
            table: self.now.clone(),
            ..at.clone()
        };
        let oldest = part.oldest.and_then(|at| self.asked.by_our_clock(at));
        Changed { changes: part.changes, to, complete: part.end.is_none(), oldest }
    }

    /// The watermark of a portion. A last one without changes that is not worth a commit keeps what is there;
    /// one that others follow has to be confirmed, or the next look sees the same again.
    fn watermark(&self, at: &Followed, changed: &Changed) -> Watermark {
        let to = &changed.to;
        let idle = changed.changes.is_empty() && !at_once(at) && at.table == to.table && changed.complete;
        let fresh = to.seen.0 - at.seen.0 < HEARTBEAT && to.lsn.since(at.lsn) < HEARTBEAT_BYTES;
        let is_first =
            || Stored::read(&self.from).is_ok_and(|from| from.position == Position::Log(at.clone()));
        if idle && (fresh || at.lsn == to.lsn) && is_first() {
            return self.from.clone();
        }
        Stored::new(self.source.clone(), Position::Log(to.clone())).write()
    }
}

/// Whether the lake has, of what comes next, nobody knows which transactions: then all of it comes in one portion.
pub(super) fn at_once(at: &Followed) -> bool {
    at.ahead.as_ref().is_some_and(|ahead| ahead.parts || ahead.snapshot.is_none())
}

/// Whether the lake has a first read of several snapshots.
pub(super) fn in_parts(at: &Followed) -> bool {
    at.ahead.as_ref().is_some_and(|ahead| ahead.parts)
}

#[async_trait]
impl Reading for LogReading {
    fn plan(&self) -> &ReadPlan {
        &self.plan
    }

    async fn next(&mut self) -> Result<Option<Portion>> {
        if self.ready.is_none() && !self.over {
            self.read_on().await?;
        }
        let Some(changed) = self.ready.take() else {
            self.close();
            return Ok(None);
        };
        let resume = self.pass.watermark(&self.at, &changed);
        self.over |= changed.complete;
        if changed.complete && changed.to.ahead.is_none() {
            self.reached = self.had_all().await?;
        }
        self.at = changed.to;
        let streams = match changed.changes.is_empty() {
            true => Vec::new(),
            false => vec![batches(changed.changes, Arc::clone(&self.pass.shape))?],
        };
        Ok(Some(Portion { streams, resume, complete: changed.complete, oldest: changed.oldest }))
    }

    fn reached(&self) -> Option<LogPlace> {
        self.reached.clone()
    }

    fn again(&self) -> bool {
        self.broken
    }
}

impl LogReading {
    /// Reads the next portion. The one before it is in the lake, and was confirmed.
    async fn read_on(&mut self) -> Result<()> {
        let Some(session) = self.session.take() else { return Ok(()) };
        let (session, seen) = self.pass.look(&self.at).look(session, &self.pass.table).await?;
        self.session = Some(session);
        match seen {
            Seen::Part(part) => self.ready = Some(self.pass.changed(&self.at, part)),
            Seen::Broken(why) => {
                self.plan.notes.push(format!("the log was followed as far as that goes: {}", why.0));
                (self.over, self.broken) = (true, true);
            }
        }
        Ok(())
    }

    /// The place that others end at too, if the server still had all changes up to it when they were read. Another
    /// runner may have confirmed some in between; where nothing is committed, nobody else would notice.
    async fn had_all(&self) -> Result<Option<LogPlace>> {
        let (Some(common), Some(session)) = (&self.pass.common, &self.session) else { return Ok(None) };
        let slot = slot::look(session, &self.at.slot).await?;
        let whole = slot.is_some_and(|slot| slot.gap(self.at.lsn).is_none());
        Ok(whole.then(|| common.clone()))
    }

    fn close(&mut self) {
        if let Some(session) = self.session.take() {
            lock(&self.idle).push(session);
            let shape = &self.pass.shape;
            self.plan.notes.extend(replaced_values(&shape.schema, &shape.replaced, "`out_of_range`"));
        }
    }
}
