//! Reads the log as far as a snapshot: which keys of a table changed, or why that cannot be known.

use std::collections::HashMap;

use super::super::discover::Relation;
use super::compressed::unpacked;
use super::ddl::{Meaning, meaning};
use super::dump::{Dump, Origin};
use super::event::{Event, Xa, corrupt};
use super::key::Key;
use super::place::At;
use super::rows::{Cell, Images, Kind, TableMap, Typed};
use crate::connectors::sql::Changes;
use crate::delta::Op;
use crate::error::{Error, ErrorKind, Result};

/// The table whose changes are looked for.
pub(super) struct Watched<'a> {
    pub(super) relation: &'a Relation,
    pub(super) key: &'a Key,
    /// Whether changes of other tables change rows of it, which the log does not have.
    pub(super) cascades: bool,
    /// Whether names are the same that differ by case.
    pub(super) any_case: bool,
}

/// What the log had.
pub(super) enum Scanned {
    /// Keys that changed; from where the next pass has to read, and the file's origin; when the first
    /// change was, in seconds since 1970 by the server's clock.
    Keys { changes: Changes, next: At, origin: Origin, oldest: Option<u32> },
    /// Something that it does not tell.
    Unknown(String),
}

/// Why reading rows stops.
enum Stop {
    Unknown(&'static str),
    Failed(Error),
}

struct Scan<'a> {
    watched: &'a Watched<'a>,
    changes: Changes,
    /// The table's number in the statement under way, and its columns.
    ours: Option<(u64, Vec<Typed>)>,
    /// Transactions that are prepared, and where they begin: their rows are to be read when they complete.
    prepared: HashMap<Vec<u8>, At>,
    key: Vec<u8>,
}

/// Reads as far as `until`. The dump has just said where its file comes from.
pub(super) async fn scan(
    dump: &mut Dump,
    origin: Origin,
    until: &At,
    watched: &Watched<'_>,
    most_bytes: usize,
) -> Result<Scanned> {
    let mut scan = Scan {
        watched,
        changes: Changes::new(most_bytes),
        ours: None,
        prepared: HashMap::new(),
        key: Vec::new(),
    };
    let mut origins = HashMap::from([(dump.at.file.clone(), origin)]);
    let mut oldest = None;
    while !dump.at.reaches(until) {
        let begin = dump.at.clone();
        let arrived = dump.next().await?;
        if arrived.is_format() {
            origins.insert(dump.at.file.clone(), arrived.origin());
        }
        if let Some(why) = scan.take(&begin, arrived.read()?)? {
            return Ok(Scanned::Unknown(why));
        }
        if oldest.is_none() && !scan.changes.is_empty() {
            oldest = Some(arrived.origin().begun);
        }
    }
    // What is prepared and not completed is to be seen by nobody yet.
    let mut next = until;
    for begin in scan.prepared.values() {
        if !begin.reaches(next) {
            next = begin;
        }
    }
    let origin = *origins.get(&next.file).ok_or_else(corrupt)?;
    Ok(Scanned::Keys { changes: scan.changes, next: next.clone(), origin, oldest })
}

impl Scan<'_> {
    /// Takes an event that begins at a place. What cannot be followed ends the scan.
    fn take(&mut self, begin: &At, event: Event<'_>) -> Result<Option<String>> {
        let unknown = |why: &str| Ok(Some(why.to_owned()));
        match event {
            Event::Begin { xa } => {
                self.ours = None;
                match xa {
                    Some(Xa { name, prepared: true }) => {
                        self.prepared.insert(name.to_vec(), begin.clone());
                    }
                    Some(Xa { name, prepared: false }) if self.prepared.remove(name).is_none() => {
                        return unknown(
                            "a distributed transaction ended that had begun before the first read",
                        );
                    }
                    _ => {}
                }
            }
            Event::Statement { database, sql } => {
                let id = &self.watched.relation.id;
                let sql = String::from_utf8_lossy(&sql);
                if let Meaning::Unknown(why) = meaning(&sql, database, id.schema_or(""), &id.name) {
                    return Ok(Some(why));
                }
            }
            Event::Table(map) if self.is_ours(&map) => {
                let Some(columns) = map.columns() else {
                    return Err(Error::new(
                        ErrorKind::Unsupported,
                        "the binlog has a type that is not known here",
                    )
                    .hint("use another `change`"));
                };
                if !self.watched.key.fits(&columns) {
                    return unknown("the log has it with another key");
                }
                self.ours = Some((map.id, columns));
            }
            Event::Rows(images) => return self.rows(&images),
            Event::Load => {
                return unknown("a statement that loads a file is in the log, and its rows are not");
            }
            Event::Incident => return unknown("the server says that its log lost something"),
            _ => {}
        }
        Ok(None)
    }

    fn is_ours(&self, map: &TableMap<'_>) -> bool {
        let id = &self.watched.relation.id;
        let same = |logged: &[u8], ours: &str| match self.watched.any_case {
            false => logged == ours.as_bytes(),
            true => String::from_utf8_lossy(logged).to_lowercase() == ours.to_lowercase(),
        };
        same(map.name, &id.name) && same(map.database, id.schema_or(""))
    }

    fn rows(&mut self, images: &Images<'_>) -> Result<Option<String>> {
        let mut stop = None;
        match &self.ours {
            Some((id, columns)) if *id == images.table => {
                let plain = if images.compressed { Some(unpacked(images.images)?) } else { None };
                let bytes = plain.as_deref().unwrap_or(images.images);
                let (watched, changes, key) = (self.watched, &mut self.changes, &mut self.key);
                let done = images.each(columns, bytes, |first, second| {
                    changed(watched.key, columns, images.kind, (first, second), key, changes)
                });
                match done.ok_or_else(corrupt)? {
                    Ok(()) => {}
                    Err(Stop::Failed(error)) => return Err(error),
                    Err(Stop::Unknown(why)) => stop = Some(why.to_owned()),
                }
            }
            // The server says that the table is part of a statement about another one, and not what
            // became of it there.
            Some(_) if self.watched.cascades => {
                stop = Some("a foreign key may have changed rows of it, which is not in the log".to_owned());
            }
            _ => {}
        }
        if images.ends_statement {
            self.ours = None;
        }
        Ok(stop)
    }
}

/// Notes the keys of a row that changed: the one before and the one after.
fn changed(
    key: &Key,
    columns: &[Typed],
    kind: Kind,
    (first, second): (&[Cell<'_>], Option<&[Cell<'_>]>),
    buffer: &mut Vec<u8>,
    changes: &mut Changes,
) -> Result<(), Stop> {
    let lacking = Stop::Unknown("a row in the log lacks part of its key (`binlog_row_image`)");
    let mut add = |cells, before| match key.read(columns, cells, before, buffer) {
        Ok(Some(())) => changes.add(Op::Upsert, buffer, &[]).map(Some).map_err(Stop::Failed),
        Ok(None) => Ok(None),
        Err(error) => Err(Stop::Failed(error)),
    };
    let mut whole = add(first, None)?.is_some();
    if let (Kind::Update, Some(after)) = (kind, second) {
        whole &= add(after, Some(first))?.is_some();
    }
    if whole { Ok(()) } else { Err(lacking) }
}
