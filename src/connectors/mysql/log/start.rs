//! Where a pass through the log begins, at the position or with the table itself, and the pass.

use std::sync::{Arc, Mutex};

use chrono::{DateTime, Utc};

use super::super::discover::{self, Relation};
use super::super::keyset::{Bound, Keyset};
use super::super::position::{Position, Stored};
use super::super::read::MysqlReading;
use super::super::rows::{Pool, Shape};
use super::super::window::{self, MADE_ANEW, OTHER_SETTINGS};
use super::about::{self, About};
use super::domains::Domains;
use super::dump::{Dump, From, Origin};
use super::gtid::GtidSet;
use super::key::Key;
use super::place::{At, Place};
use super::reread::{ByKeys, Changed, by_keys};
use super::scan::{Next, Numbers, Scanned, Watched, scan};
use super::snapshot::{self, Moment};
use crate::clients::mysql::{Session, integer, literal, text};
use crate::connection::Connection;
use crate::connectors::sql::{Changes, Number, SMALLEST_RANGE_BYTES, Select};
use crate::delta::Watermark;
use crate::error::{Error, ErrorKind, Result};
use crate::source::{ReadPlan, ReadRequest, Reading};

/// A position moves on although nothing changed when it is this old, in seconds: logs are kept for days…
const HEARTBEAT: i64 = 3600;
/// … or when this much log would be read again for nothing, or its file is over.
const HEARTBEAT_BYTES: u64 = 64 << 20;
/// How many batches of keys are held in memory before they go to disk.
pub(in super::super) const HELD_BATCHES: usize = 4;

/// A request for the log of a table that has one.
struct Opening<'a> {
    connection: &'a Connection,
    request: &'a ReadRequest,
    relation: Relation,
    about: About,
    key: Key,
    shape: Shape,
    select: Select,
    notes: Vec<String>,
}

/// Where to begin.
enum Begin {
    /// With the whole table.
    Nothing,
    /// In the middle of a first read.
    FirstRead(Box<(Place, Bound)>),
    /// After a place, in a log that is still there.
    After(Box<(Place, Dump, Origin)>),
}

/// A log that a place is in, or why there is none.
type Found = Result<(Dump, Origin), String>;

/// Opens a pass. It leaves a session in `idle` when it is done.
pub(in super::super) async fn open(
    connection: &Connection,
    mut session: Session,
    request: &ReadRequest,
    idle: &Pool,
) -> Result<Box<dyn Reading>> {
    let mut opening = Opening::new(connection, &mut session, request).await?;
    let (mut begin, mut continues) = (opening.begin(&mut session).await?, false);
    if let Begin::After(after) = begin {
        let (place, mut dump, origin) = *after;
        match opening.follow(&mut session, &place, &mut dump, origin).await? {
            Followed::To(changes, next, oldest) => {
                let resume = opening.resume(&place, &next, changes.is_empty());
                return Ok(Box::new(ByKeys {
                    plan: by_keys(request, &opening.select, &opening.shape, opening.notes),
                    shape: Arc::new(opening.shape),
                    changed: Some(Changed { changes, resume, oldest }),
                    key: opening.key,
                    select: opening.select,
                    sessions: Arc::new(Mutex::new(vec![session])),
                    idle: Arc::clone(idle),
                }));
            }
            Followed::Gap(why) => {
                opening.notes.push(not_used(&why));
                begin = Begin::Nothing;
            }
            Followed::Unknown(why) => {
                opening.notes.push(format!("the whole table is read and compared: {why}"));
                // Nothing was lost. But an unfinished first read cannot be finished.
                continues = !place.parts;
                begin = Begin::Nothing;
            }
        }
    }
    opening.whole(session, begin, continues, idle).await
}

/// What a pass would do. The log is only looked at to see whether it is still there.
pub(in super::super) async fn plan(
    connection: &Connection,
    session: &mut Session,
    request: &ReadRequest,
) -> Result<ReadPlan> {
    let mut opening = Opening::new(connection, session, request).await?;
    let after = match opening.begin(session).await? {
        Begin::After(_) => return Ok(by_keys(request, &opening.select, &opening.shape, opening.notes)),
        Begin::FirstRead(first) => {
            let (then, after) = *first;
            Some((Position::Log(then), after))
        }
        Begin::Nothing => None,
    };
    let Opening { relation, notes, .. } = opening;
    Ok(window::whole(session, &relation, request, notes, after).await?.plan)
}

/// What comes of reading the log.
enum Followed {
    /// Keys that changed, where the next pass begins, and when the first change was.
    To(Changes, Box<Place>, Option<DateTime<Utc>>),
    Unknown(String),
    Gap(String),
}

fn not_used(why: &str) -> String {
    format!("the stored position is not used: {why}; the whole table is read")
}

impl<'a> Opening<'a> {
    async fn new(
        connection: &'a Connection,
        session: &mut Session,
        request: &'a ReadRequest,
    ) -> Result<Self> {
        let relation = discover::one(session, &request.table).await?;
        let about = about::look(session, &relation).await?;
        about.check(&relation, request)?;
        let key = Key::of(&relation, request)?;
        let (select, shape) = window::select(&relation, request)?;
        Ok(Self { connection, request, relation, about, key, shape, select, notes: Vec::new() })
    }

    /// Reads the stored position; where it is of no use, a note says why.
    async fn begin(&mut self, session: &mut Session) -> Result<Begin> {
        let Some(watermark) = &self.request.from else { return Ok(Begin::Nothing) };
        let found = match Stored::read(watermark) {
            Ok(stored) => self.usable(session, stored.position).await?,
            Err(why) => Err(why.to_owned()),
        };
        Ok(found.unwrap_or_else(|why| {
            self.notes.push(not_used(&why));
            Begin::Nothing
        }))
    }

    async fn usable(&self, session: &mut Session, position: Position) -> Result<Result<Begin, String>> {
        let (place, after) = match position {
            Position::Log(place) => (place, None),
            Position::FirstReadByKey { then, layout, key, after } => {
                let Position::Log(place) = *then else { return Ok(Err(OTHER_SETTINGS.to_owned())) };
                let keys = Keyset::of(&self.relation, &self.request.key);
                if keys.is_none_or(|keys| keys.described() != key) {
                    return Ok(Err(OTHER_SETTINGS.to_owned()));
                }
                if self.relation.layout != layout || place.columns != columns(&self.relation) {
                    return Ok(Err(MADE_ANEW.to_owned()));
                }
                (place, Some(after))
            }
            _ => return Ok(Err("it does not come from the log".to_owned())),
        };
        let (dump, origin) = match self.found(session, &place).await? {
            Ok(found) => found,
            Err(gap) => return Ok(Err(gap)),
        };
        Ok(Ok(match after {
            Some(after) => Begin::FirstRead(Box::new((Place { parts: true, ..place }, after))),
            None => Begin::After(Box::new((place, dump, origin))),
        }))
    }

    /// Finds the log that a place is in: the one that it was in, or that of another server which has the
    /// same transactions.
    async fn found(&self, session: &mut Session, place: &Place) -> Result<Found> {
        let known = if self.about.mariadb { None } else { place.gtids.as_deref().and_then(GtidSet::parse) };
        if !self.about.mariadb {
            let Some(known) = &known else { return Ok(Err("it is none of a MySQL".to_owned())) };
            if !known.is_within(&self.about.executed) {
                return Ok(Err(
                    "the server lacks transactions that were read: it lost them, or it is another \
                               server that is behind"
                        .to_owned(),
                ));
            }
            if !self.about.purged.is_within(known) {
                return Ok(Err(
                    "the server has dropped the log of transactions that were not read".to_owned()
                ));
            }
        }
        let gap = match self.same_log(session, place, known.as_ref()).await? {
            Ok(found) => return Ok(Ok(found)),
            Err(gap) => gap,
        };
        // On the same server the numbers may have begun anew with the log.
        if self.about.server == place.server {
            return Ok(Err(gap));
        }
        match (&known, &place.gtids) {
            (Some(known), _) => self.opened(From::Without(known)).await,
            (None, Some(last)) => match Domains::parse(last) {
                Some(domains) => match lacking(session, &domains).await? {
                    None => self.opened(From::After(last)).await,
                    why => Ok(Err(why.unwrap_or(gap))),
                },
                None => Ok(Err(gap)),
            },
            _ => Ok(Err(gap)),
        }
    }

    /// Finds the file that a place is in, if it is the same one.
    async fn same_log(&self, session: &mut Session, place: &Place, known: Option<&GtidSet>) -> Result<Found> {
        if let Some(gap) = gone(session, &place.at).await? {
            return Ok(Err(gap));
        }
        let (dump, origin) = match self.opened(From::Place(&place.at)).await? {
            Ok(found) => found,
            gap => return Ok(gap),
        };
        if origin != (Origin { begun: place.begun, server: place.server }) {
            return Ok(Err(format!(
                "the log's file `{}` is another one than it was: the log was reset, or it is another server",
                place.at.file
            )));
        }
        let Some(known) = known else { return Ok(Ok((dump, origin))) };
        let (by_number, its_origin) = match self.opened(From::Without(known)).await? {
            Ok(found) => found,
            gap => return Ok(gap),
        };
        // Where the server begins in a later file, all before that has numbers that are known, or none: it
        // would pass over transactions of a time when `gtid_mode` was off.
        if by_number.at.is_in_later_file(&place.at) {
            return self.opened(From::Place(&place.at)).await;
        }
        Ok(Ok((by_number, its_origin)))
    }

    async fn opened(&self, from: From<'_>) -> Result<Found> {
        let mut dump = match Dump::open(self.connection, self.request, self.about.server, from).await? {
            Ok(dump) => dump,
            Err(gap) => return Ok(Err(gap)),
        };
        Ok(dump.origin().await?.map(|origin| (dump, origin)))
    }

    /// Reads the log from a place as far as a new snapshot.
    async fn follow(
        &self,
        session: &mut Session,
        place: &Place,
        dump: &mut Dump,
        origin: Origin,
    ) -> Result<Followed> {
        if let Some(why) = altered(&place.columns, &self.relation) {
            return Ok(Followed::Unknown(why));
        }
        let Moment { at: until, shown } = snapshot::begin(session).await?;
        let kept = place.gtids.as_deref();
        let numbers = match shown {
            None => Numbers::Last(kept.and_then(Domains::parse)),
            Some(shown) => Numbers::Sets { known: kept.and_then(GtidSet::parse).unwrap_or_default(), shown },
        };
        let watched = Watched {
            relation: &self.relation,
            key: &self.key,
            cascades: &self.about.cascades,
            any_case: self.about.any_case,
        };
        let most_bytes = self.shape.batch_bytes * HELD_BATCHES;
        Ok(match scan(dump, origin, &until, numbers, &watched, most_bytes).await? {
            Scanned::Keys { changes, mut next, oldest } => {
                if next.gtids.is_none() {
                    next.gtids = numbered(session, &next.at).await?;
                }
                let next = self.place(next);
                Followed::To(changes, Box::new(next), oldest.and_then(|at| self.about.by_our_clock(at)))
            }
            Scanned::Unknown(why) => Followed::Unknown(why),
            Scanned::Gap(why) => Followed::Gap(why),
        })
    }

    fn place(&self, Next { at, origin, gtids }: Next) -> Place {
        let Origin { begun, server } = origin;
        let seen = Number(self.about.asked);
        Place { at, gtids, begun, server, seen, parts: false, columns: columns(&self.relation) }
    }

    /// The watermark after a pass. One without changes that is not worth a commit keeps what is there.
    fn resume(&self, place: &Place, next: &Place, idle: bool) -> Watermark {
        let fresh = next.seen.0 - place.seen.0 < HEARTBEAT
            && next.at.file == place.at.file
            && next.gtids.is_some() == place.gtids.is_some()
            && next.at.offset() - place.at.offset().min(next.at.offset()) < HEARTBEAT_BYTES;
        match &self.request.from {
            Some(from) if idle && !place.parts && place.columns == next.columns && fresh => from.clone(),
            _ => Stored::new(None, Position::Log(next.clone())).write(),
        }
    }

    /// Whether the table is still what it was when the pass began to look at it. An ALTER that comes later
    /// than the snapshot is noticed by the server.
    async fn check_same(&self, session: &mut Session) -> Result<()> {
        let now = discover::one(session, &self.request.table).await?;
        if columns(&now) == columns(&self.relation) && now.layout == self.relation.layout {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Transient, "the table was altered just before it was to be read")
            .hint("the next pass reads it as it is now"))
    }

    /// Prepares to read the table as it is at one place of the log.
    async fn whole(
        mut self,
        session: Session,
        begin: Begin,
        continues: bool,
        idle: &Pool,
    ) -> Result<Box<dyn Reading>> {
        let in_ranges = Keyset::of(&self.relation, &self.request.key).is_some()
            && self.relation.bytes.is_some_and(|bytes| bytes > SMALLEST_RANGE_BYTES);
        let count = if in_ranges { self.request.parallel.max(1) } else { 1 };
        let (mut sessions, moment) =
            snapshot::several(self.connection, self.about.server, session, count).await?;
        self.check_same(&mut sessions[0]).await?;
        let after = match begin {
            Begin::FirstRead(first) => {
                let (then, after) = *first;
                Some((Position::Log(then), after))
            }
            _ => None,
        };
        let Moment { at, shown } = moment;
        self.notes.push(match shown {
            None => format!("the table is read as it was at {at} of the log"),
            Some(_) => format!("the table is read as it was at a place of the log before {at}"),
        });
        let gone = |why: String| Error::new(ErrorKind::Transient, why);
        let (_, origin) = self.opened(From::Place(&at)).await?.map_err(gone)?;
        let gtids = match shown {
            None => numbered(&mut sessions[0], &at).await?,
            Some(shown) => Some(shown.to_string()),
        };
        let place = self.place(Next { at, origin, gtids });
        let Self { request, relation, notes, .. } = self;
        let resumed = after.is_some();
        let mut prepared = window::whole(&mut sessions[0], &relation, request, notes, after).await?;
        prepared.plan.continues |= continues;
        if !resumed {
            prepared.end.position = Position::Log(place);
        }
        Ok(Box::new(MysqlReading::in_snapshot(self.connection, sessions, prepared, idle)))
    }
}

/// Why another MariaDB cannot go on after these transactions.
async fn lacking(session: &mut Session, domains: &Domains) -> Result<Option<String>> {
    let rows = session.rows("SELECT @@GLOBAL.gtid_binlog_state, @@GLOBAL.gtid_slave_pos").await?;
    let (logged, applied) = rows.first().map(|row| (text(row, 0), text(row, 1))).unwrap_or_default();
    Ok(domains.lacking(&logged, &applied).map(|domain| {
        format!("the log of the server that took over lacks what was read (domain {domain}): it is behind, or did not log what came from its primary")
    }))
}

/// The last transaction of each domain before a place of MariaDB's log. `None`: it does not say.
async fn numbered(session: &mut Session, at: &At) -> Result<Option<String>> {
    if !session.server().mariadb {
        return Ok(None);
    }
    let rows =
        session.rows(&format!("SELECT BINLOG_GTID_POS({}, {})", literal(&at.file), at.offset())).await?;
    let last = rows.first().and_then(|row| Domains::parse(&text(row, 0)));
    Ok(last.filter(|last| *last != Domains::default()).map(|last| last.to_string()))
}

/// Why the log from a place on cannot be had any more.
async fn gone(session: &mut Session, at: &At) -> Result<Option<String>> {
    let files = session.rows("SHOW BINARY LOGS").await?;
    let Some(file) = files.iter().find(|row| text(row, 0) == at.file) else {
        return Ok(Some(format!("the server has dropped the file `{}` of its log", at.file)));
    };
    let size = integer(file, 1).unwrap_or_default().unsigned_abs();
    Ok((size < at.offset()).then(|| format!("the log's file `{}` is shorter than it was", at.file)))
}

/// Names and types, by which a table is the same.
pub(in super::super) fn columns(relation: &Relation) -> Vec<String> {
    let described = |column: &discover::Column| {
        let collation = column.of.collation.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
        format!("`{}` {}{collation}", column.name, column.of.written())
    };
    relation.columns.iter().map(described).collect()
}

/// Why the lake's rows cannot be those of the table any more.
fn altered(before: &[String], relation: &Relation) -> Option<String> {
    let now = columns(relation);
    let added = relation.columns.get(before.len()..).unwrap_or_default();
    let empty = |column: &discover::Column| !column.generated && !column.not_null && !column.defaulted;
    let same = now.starts_with(before) && added.iter().all(empty);
    (!same).then(|| "its columns are others than before".to_owned())
}
