//! A pass over the changes that triggers wrote down, or the first read that comes before.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::discover::{self, Relation};
use super::super::keyset::{Bound, Keyset};
use super::super::log::{ByKeys, Changed, HELD_BATCHES, Key, by_keys, columns};
use super::super::position::{Position, Stored};
use super::super::read::MysqlReading;
use super::super::rows::Pool;
use super::super::source;
use super::super::window::{self, MADE_ANEW, OTHER_SETTINGS};
use super::count::{Counted, Counter};
use super::installed::{self, Installed};
use super::statements::Parts;
use super::{needs, readers};
use crate::clients::mysql::{Session, integer};
use crate::connection::Connection;
use crate::connectors::sql::{Changes, MYSQL, Number, lock};
use crate::error::Result;
use crate::source::{ReadPlan, ReadRequest, Reading};

/// How long we wait before we look again at a table that was altered just now.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// How far the changes of a table were read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct Triggered {
    /// The table of changes, without its database.
    pub(super) changes: String,
    /// What was installed: another one may have let changes pass by.
    pub(super) stamp: String,
    /// Who reads.
    pub(super) reader: String,
    /// What was counted up to here is in the lake.
    pub(super) batch: Number,
    /// Which table it was.
    pub(super) place: String,
    /// Names and types of its columns.
    pub(super) columns: Vec<String>,
    /// Whether the lake has a first read of several snapshots, which is not shown before a pass has ended it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) parts: bool,
}

/// A request for the changes of a table whose triggers are there.
struct Opening<'a> {
    request: &'a ReadRequest,
    notes: Vec<String>,
}

/// Where to begin.
enum Begin {
    /// With the whole table. What was before it is of no use, or there was nothing.
    Nothing,
    /// With the whole table, although nothing was missed: triggers do not see why.
    Again,
    /// In the middle of a first read.
    FirstRead(Box<(Triggered, Bound)>),
    /// After a position.
    After(Box<Triggered>),
}

/// What a snapshot shows of the table and of what is installed on it.
struct Seen {
    relation: Relation,
    installed: Installed,
}

/// Opens a pass. It leaves its sessions in `idle` when it is done.
pub(in super::super) async fn open(
    connection: &Connection,
    mut session: Session,
    request: &ReadRequest,
    idle: &Pool,
) -> Result<Box<dyn Reading>> {
    let (mut opening, relation) = Opening::new(&mut session, request).await?;
    let parts = Parts::of(&relation, &request.key)?;
    readers::appear(&mut session, &parts, &request.reader).await?;
    let seen = opening.begin_transaction(&mut session, &relation).await?;
    let begin = opening.begin(&seen);
    match begin {
        Begin::FirstRead(first) => {
            let (then, after) = *first;
            let then = Position::Triggers(Triggered { parts: true, ..then });
            return opening.whole(connection, session, seen, Some((then, after)), None, idle).await;
        }
        Begin::After(at) if !waiting(&mut session, &parts, &at).await? => {
            let to = Triggered { parts: false, ..(*at).clone() };
            return opening.changed(session, &seen, Changes::new(0), 0, to, idle);
        }
        _ => {}
    }
    session.run("ROLLBACK").await?;
    let mut counter = Counter::begin(source::session(connection, idle).await?, &parts).await?;
    let seen = opening.begin_transaction(&mut session, &relation).await?;
    let begin = opening.begin(&seen);
    let mut changes = Changes::new(request.batch_bytes * HELD_BATCHES);
    let key = Key::of(&seen.relation, request)?;
    let wanted = match &begin {
        Begin::After(at) => Some((at.batch.0, &key, &mut changes)),
        _ => None,
    };
    let counted = counter.count(&mut session, &parts, wanted).await?;
    let anew = matches!(begin, Begin::Nothing);
    let counting = counter.finish(&parts, &request.reader, &counted, anew).await?;
    lock(idle).push(counting);
    let to = opening.position(&seen, &parts, &counted);
    match begin {
        Begin::After(_) => opening.changed(session, &seen, changes, counted.read, to, idle),
        begin => {
            let again = matches!(begin, Begin::Again);
            opening.whole(connection, session, seen, None, Some((to, again)), idle).await
        }
    }
}

/// What a pass would do. No reader is made known, nothing is counted, and no transaction is left open.
pub(in super::super) async fn plan(session: &mut Session, request: &ReadRequest) -> Result<ReadPlan> {
    let (mut opening, relation) = Opening::new(session, request).await?;
    let seen = opening.begin_transaction(session, &relation).await?;
    let begin = opening.begin(&seen);
    let (mut after, mut again) = (None, false);
    let parts = Parts::of(&seen.relation, &request.key)?;
    let plan = match begin {
        Begin::After(at) => {
            let (select, shape) = window::select(&seen.relation, request)?;
            let sql = format!("SELECT COUNT(*) {}", after_batch(&parts, &at));
            let rows = session.rows(&sql).await?.first().and_then(|row| integer(row, 0));
            ReadPlan { rows: rows.map(i64::unsigned_abs), ..by_keys(request, &select, &shape, opening.notes) }
        }
        begin => {
            match begin {
                Begin::FirstRead(first) => {
                    let (then, bound) = *first;
                    after = Some((Position::Triggers(then), bound));
                }
                begin => again = matches!(begin, Begin::Again),
            }
            let prepared = window::whole(session, &seen.relation, request, opening.notes, after).await?;
            ReadPlan { continues: prepared.plan.continues || again, ..prepared.plan }
        }
    };
    session.run("ROLLBACK").await?;
    Ok(plan)
}

/// The changes that a position has not got.
fn after_batch(parts: &Parts<'_>, at: &Triggered) -> String {
    format!("FROM {} WHERE batch = 0 OR batch > {}", MYSQL.table(&parts.changes()), at.batch.0)
}

/// Whether there are any.
async fn waiting(session: &mut Session, parts: &Parts<'_>, at: &Triggered) -> Result<bool> {
    let rows = session.rows(&format!("SELECT 1 {} LIMIT 1", after_batch(parts, at))).await?;
    Ok(!rows.is_empty())
}

impl<'a> Opening<'a> {
    async fn new(session: &mut Session, request: &'a ReadRequest) -> Result<(Self, Relation)> {
        let relation = discover::one(session, &request.table).await?;
        needs::check(session, &relation, request).await?;
        let parts = Parts::of(&relation, &request.key)?;
        installed::look(session, &relation, &parts, &request.reader).await?.parts.check()?;
        Ok((Self { request, notes: Vec::new() }, relation))
    }

    /// Opens the transaction that is read, and looks at everything once more. From then on nobody alters the
    /// table, or its triggers, before the transaction ends.
    async fn begin_transaction(&self, session: &mut Session, relation: &Relation) -> Result<Seen> {
        loop {
            session.run("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY").await?;
            session.rows(&format!("SELECT 1 FROM {} LIMIT 0", relation.quoted())).await?;
            let relation = discover::one(session, &relation.id).await?;
            let parts = Parts::of(&relation, &self.request.key)?;
            let installed = installed::look(session, &relation, &parts, &self.request.reader).await?;
            installed.parts.check()?;
            if installed.settled {
                return Ok(Seen { relation, installed });
            }
            session.run("ROLLBACK").await?;
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Reads the stored position; where it is of no use, a note says why.
    fn begin(&mut self, seen: &Seen) -> Begin {
        self.notes.clear();
        let Some(watermark) = &self.request.from else { return Begin::Nothing };
        let found = match Stored::read(watermark) {
            Ok(stored) => self.usable(seen, stored.position),
            Err(why) => Err(why.to_owned()),
        };
        found.unwrap_or_else(|why| {
            self.notes.push(format!("the stored position is not used: {why}; the whole table is read"));
            Begin::Nothing
        })
    }

    fn usable(&mut self, seen: &Seen, position: Position) -> Result<Begin, String> {
        let Seen { relation, installed } = seen;
        let (at, after) = match position {
            Position::Triggers(at) => (at, None),
            Position::FirstReadByKey { then, key, after, .. } => {
                let Position::Triggers(at) = *then else { return Err(OTHER_SETTINGS.to_owned()) };
                let keys = Keyset::of(relation, &self.request.key);
                if keys.is_none_or(|keys| keys.described() != key) {
                    return Err(OTHER_SETTINGS.to_owned());
                }
                (at, Some(after))
            }
            _ => return Err("it does not come from triggers".to_owned()),
        };
        let parts = Parts::of(relation, &self.request.key).map_err(|error| error.to_string())?;
        if at.changes != parts.name() {
            return Err("the stream goes by another key now".to_owned());
        }
        if at.stamp != installed.stamp {
            return Err("triggers were altered or installed anew since".to_owned());
        }
        if installed.pruned > at.batch.0 {
            return Err("changes since then were removed: its reader was forgotten".to_owned());
        }
        match installed.taken {
            None => return Err("its reader was forgotten".to_owned()),
            Some(taken) if taken < at.batch.0 => {
                return Err("the server is older than it: a copy was put back".to_owned());
            }
            Some(_) => {}
        }
        let same = at.place == installed.place && at.columns == columns(relation);
        Ok(match after {
            Some(_) if !same => return Err(MADE_ANEW.to_owned()),
            Some(after) => Begin::FirstRead(Box::new((at, after))),
            // An unfinished first read cannot be finished then.
            None if !same && at.parts => return Err(MADE_ANEW.to_owned()),
            None if !same => {
                self.notes.push(
                    "the whole table is read and compared: it was truncated, altered or made anew".to_owned(),
                );
                Begin::Again
            }
            None => Begin::After(Box::new(at)),
        })
    }

    fn position(&self, seen: &Seen, parts: &Parts<'_>, counted: &Counted) -> Triggered {
        Triggered {
            changes: parts.name(),
            stamp: seen.installed.stamp.clone(),
            reader: self.request.reader.clone(),
            batch: Number(counted.batch),
            place: seen.installed.place.clone(),
            columns: columns(&seen.relation),
            parts: false,
        }
    }

    /// A pass over keys that were written down `read` times.
    fn changed(
        self,
        session: Session,
        seen: &Seen,
        changes: Changes,
        read: u64,
        to: Triggered,
        idle: &Pool,
    ) -> Result<Box<dyn Reading>> {
        let (select, shape) = window::select(&seen.relation, self.request)?;
        let plan = ReadPlan { rows: Some(read), ..by_keys(self.request, &select, &shape, self.notes) };
        let resume = Stored::new(None, Position::Triggers(to)).write();
        Ok(Box::new(ByKeys {
            plan,
            shape: Arc::new(shape),
            changed: Some(Changed { changes, resume, oldest: None }),
            key: Key::of(&seen.relation, self.request)?,
            select,
            sessions: Arc::new(Mutex::new(vec![session])),
            idle: Arc::clone(idle),
        }))
    }

    /// The whole table, in the session's snapshot: from nothing to a position, or on from where it stopped.
    async fn whole(
        self,
        connection: &Connection,
        mut session: Session,
        seen: Seen,
        after: Option<(Position, Bound)>,
        to: Option<(Triggered, bool)>,
        idle: &Pool,
    ) -> Result<Box<dyn Reading>> {
        let mut prepared =
            window::whole(&mut session, &seen.relation, self.request, self.notes, after).await?;
        if let Some((to, again)) = to {
            prepared.end.position = Position::Triggers(to);
            prepared.plan.continues |= again;
        }
        Ok(Box::new(MysqlReading::in_snapshot(connection, vec![session], prepared, idle)))
    }
}
