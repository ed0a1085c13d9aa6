//! Reads the log as far as a snapshot: which keys of a table changed, or why that cannot be known.

use std::collections::{HashMap, HashSet};

use super::super::discover::Relation;
use super::cascades::Cascades;
use super::compressed::unpacked;
use super::ddl::{Meaning, meaning, rewires};
use super::domains::Domains;
use super::dump::{Dump, Origin};
use super::event::{Event, Number, Xa, corrupt};
use super::gtid::{Gtid, GtidSet};
use super::key::Key;
use super::place::At;
use super::rows::{Cell, Images, Kind, TableMap, Typed};
use super::xid;
use crate::connectors::sql::Changes;
use crate::delta::Op;
use crate::error::{Error, ErrorKind, Result};

/// The table whose changes are looked for.
pub(super) struct Watched<'a> {
    pub(super) relation: &'a Relation,
    pub(super) key: &'a Key,
    /// From where its rows are changed, which the log does not have.
    pub(super) cascades: &'a Cascades,
    /// Whether names are the same that differ by case.
    pub(super) any_case: bool,
}

/// The transactions of a log, by the numbers of its server.
pub(super) enum Numbers {
    /// MariaDB: the last ones before the place where the scan is, if they are known.
    Last(Option<Domains>),
    /// MySQL: those that the lake has, and those that the snapshot shows in any case.
    Sets { known: GtidSet, shown: GtidSet },
}

/// What the log had.
pub(super) enum Scanned {
    /// Keys that changed, and from where the next pass has to read; when the first change was, in seconds
    /// since 1970 by the server's clock.
    Keys { changes: Changes, next: Next, oldest: Option<u32> },
    /// Something that it does not tell.
    Unknown(String),
    /// The server does not have it all.
    Gap(String),
}

/// From where the next pass has to read.
pub(super) struct Next {
    pub(super) at: At,
    /// Of the file.
    pub(super) origin: Origin,
    /// The transactions that the lake has then, in the server's words.
    pub(super) gtids: Option<String>,
}

const CASCADE: &str = "a foreign key may have changed rows of it, which is not in the log";
const BEGUN_BEFORE: &str = "a distributed transaction ended that had begun before the first read";

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
    /// The numbers of tables in it from which foreign keys change rows of ours.
    sources: HashSet<u64>,
    numbers: Numbers,
    /// MySQL's number of the transaction under way.
    current: Option<Gtid>,
    /// Transactions that are prepared: their rows are to be read when they complete.
    prepared: HashMap<Vec<u8>, Prepared>,
    /// MySQL: transactions that are completed, and whose rows the snapshot may not show yet.
    held: Vec<Gtid>,
    key: Vec<u8>,
}

/// Where a transaction begins that is prepared.
struct Prepared {
    at: At,
    /// MariaDB: the transactions before it.
    last: Option<Domains>,
    /// MySQL: its number.
    gtid: Option<Gtid>,
}

/// Reads as far as `until`. The dump has just said where its file comes from.
pub(super) async fn scan(
    dump: &mut Dump,
    origin: Origin,
    until: &At,
    numbers: Numbers,
    watched: &Watched<'_>,
    most_bytes: usize,
) -> Result<Scanned> {
    let mut scan = Scan::new(watched, numbers, most_bytes);
    let mut origins = HashMap::from([(dump.at.file.clone(), origin)]);
    let mut oldest = None;
    while !dump.at.reaches(until) {
        let begin = dump.at.clone();
        let arrived = match dump.next().await? {
            Ok(arrived) => arrived,
            Err(gap) => return Ok(Scanned::Gap(gap)),
        };
        if arrived.is_format() {
            origins.insert(dump.at.file.clone(), arrived.origin());
        }
        if let Some(why) = scan.take(&begin, arrived.origin().server, arrived.read()?)? {
            return Ok(Scanned::Unknown(why));
        }
        if oldest.is_none() && !scan.changes.is_empty() {
            oldest = Some(arrived.origin().begun);
        }
    }
    let (at, gtids) = scan.next(until);
    let origin = *origins.get(&at.file).ok_or_else(corrupt)?;
    Ok(Scanned::Keys { changes: scan.changes, next: Next { at, origin, gtids }, oldest })
}

impl<'a> Scan<'a> {
    fn new(watched: &'a Watched<'a>, numbers: Numbers, most_bytes: usize) -> Self {
        Self {
            watched,
            changes: Changes::new(most_bytes),
            ours: None,
            sources: HashSet::new(),
            numbers,
            current: None,
            prepared: HashMap::new(),
            held: Vec::new(),
            key: Vec::new(),
        }
    }

    /// Where the next pass begins when this one has come as far as a place. What is prepared and not
    /// completed is to be seen by nobody yet.
    fn next(&self, until: &At) -> (At, Option<String>) {
        match &self.numbers {
            Numbers::Last(last) => {
                let mut next = (until, last);
                for prepared in self.prepared.values() {
                    if !prepared.at.reaches(next.0) {
                        next = (&prepared.at, &prepared.last);
                    }
                }
                (next.0.clone(), next.1.as_ref().map(ToString::to_string))
            }
            Numbers::Sets { shown, .. } => {
                let mut set = shown.clone();
                let open = self.prepared.values().filter_map(|prepared| prepared.gtid.as_ref());
                open.chain(&self.held).for_each(|gtid| set.remove(gtid));
                (until.clone(), Some(set.to_string()))
            }
        }
    }

    /// Takes an event that begins at a place, of a server. What cannot be followed ends the scan.
    fn take(&mut self, begin: &At, server: u32, event: Event<'_>) -> Result<Option<String>> {
        let unknown = |why: &str| Ok(Some(why.to_owned()));
        if self.is_known() && !matches!(event, Event::Numbered(_) | Event::Incident) {
            return Ok(None);
        }
        match event {
            Event::Begin { number, xa } => return Ok(self.begin(begin, server, number, xa)),
            Event::Numbered(Some(gtid)) => {
                self.leave_statement();
                self.current = Some(gtid);
            }
            Event::Numbered(None) => {
                return unknown("a transaction without a number is in the log (`gtid_mode` was off)");
            }
            // MariaDB has said so when the transaction began.
            Event::Prepared(name) => {
                if let Some(gtid) = self.current.clone() {
                    let prepared = Prepared { at: begin.clone(), last: None, gtid: Some(gtid) };
                    self.prepared.insert(name, prepared);
                }
            }
            Event::Statement { database, sql } => {
                let id = &self.watched.relation.id;
                let sql = String::from_utf8_lossy(&sql);
                if let Some(why) = self.completes(&sql) {
                    return Ok(Some(why));
                }
                if let Meaning::Unknown(why) = meaning(&sql, database, id.schema_or(""), &id.name) {
                    return Ok(Some(why));
                }
                let mut sources = self.watched.cascades.sources();
                if sources.any(|(schema, name)| rewires(&sql, database, schema, name)) {
                    return unknown("a table was altered from which a foreign key leads to it");
                }
            }
            Event::Table(map) => return self.table(&map),
            Event::Rows(images) => return self.rows(&images),
            Event::Parts { table } if self.ours.as_ref().is_some_and(|(id, _)| *id == table) => {
                return unknown("only parts of JSON values are in the log (`binlog_row_value_options`)");
            }
            Event::Load => {
                return unknown("a statement that loads a file is in the log, and its rows are not");
            }
            Event::Incident => return unknown("the server says that its log lost something"),
            Event::Parts { table } if self.sources.contains(&table) => return unknown(CASCADE),
            _ => {}
        }
        Ok(None)
    }

    /// Whether the lake has the transaction under way.
    fn is_known(&self) -> bool {
        match (&self.numbers, &self.current) {
            (Numbers::Sets { known, .. }, Some(gtid)) => known.contains(gtid),
            _ => false,
        }
    }

    fn leave_statement(&mut self) {
        self.ours = None;
        self.sources.clear();
    }

    /// Begins a transaction of MariaDB.
    fn begin(&mut self, at: &At, server: u32, number: Number, xa: Option<Xa<'_>>) -> Option<String> {
        self.leave_statement();
        let Numbers::Last(last) = &mut self.numbers else { return None };
        let before = last.clone();
        if let Some(last) = last {
            last.take(number, server);
        }
        match xa {
            Some(Xa { name, prepared: true }) => {
                self.prepared.insert(name.to_vec(), Prepared { at: at.clone(), last: before, gtid: None });
                None
            }
            Some(Xa { name, prepared: false }) if self.prepared.remove(name).is_none() => {
                Some(BEGUN_BEFORE.to_owned())
            }
            _ => None,
        }
    }

    /// Takes a statement of MySQL that completes a transaction that was prepared.
    fn completes(&mut self, sql: &str) -> Option<String> {
        let Numbers::Sets { shown, .. } = &self.numbers else { return None };
        let found = xid::completed(sql)?.and_then(|name| self.prepared.remove(&name));
        let Some(prepared) = found else { return Some(BEGUN_BEFORE.to_owned()) };
        // The next pass meets its end again, and needs its begin for that.
        if self.current.as_ref().is_none_or(|current| !shown.contains(current)) {
            self.held.extend(prepared.gtid);
        }
        None
    }

    /// Takes what is said of a table whose rows follow.
    fn table(&mut self, map: &TableMap<'_>) -> Result<Option<String>> {
        let ours = self.is_ours(map);
        if self.watched.cascades.come_from(map, ours) {
            self.sources.insert(map.id);
        }
        if ours {
            let Some(columns) = map.columns() else {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    "the binlog has a type that is not known here",
                )
                .hint("use another `change`"));
            };
            if !self.watched.key.fits(&columns) {
                return Ok(Some("the log has it with another key".to_owned()));
            }
            self.ours = Some((map.id, columns));
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
            Some(_) if self.watched.cascades.any() => stop = Some(CASCADE.to_owned()),
            _ => {}
        }
        if self.sources.contains(&images.table) && self.watched.cascades.follow(images.kind) {
            stop = stop.or_else(|| Some(CASCADE.to_owned()));
        }
        if images.ends_statement {
            self.leave_statement();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{TableId, TableKind};

    const SERVER: &str = "3e11fa47-71ca-11e1-9e33-c80aa9429562";

    fn relation() -> Relation {
        Relation {
            id: TableId::new("shop", "t"),
            kind: TableKind::Table,
            columns: Vec::new(),
            keys: Vec::new(),
            unique: Vec::new(),
            engine: "InnoDB".to_owned(),
            rows: None,
            bytes: None,
            layout: String::new(),
        }
    }

    fn set(ranges: &str) -> GtidSet {
        GtidSet::parse(&format!("{SERVER}:{ranges}")).unwrap()
    }

    /// `7 X'61'` begins a transaction and prepares it; the other words stand for themselves.
    fn follow(log: &[&str], known: &str, shown: &str) -> Result<String, String> {
        let (relation, key, cascades) = (relation(), Key::first_int(), Cascades::default());
        let watched = Watched { relation: &relation, key: &key, cascades: &cascades, any_case: false };
        let numbers = Numbers::Sets { known: set(known), shown: set(shown) };
        let mut scan = Scan::new(&watched, numbers, 1 << 20);
        let at = At::new("binlog.000001", 4);
        for line in log {
            let (number, what) = line.split_once(' ').unwrap();
            let gtid = GtidSet::parse(&format!("{SERVER}:{number}"))
                .map(|_| Gtid { source: gtid_source(), number: number.parse().unwrap() });
            let name = |of: &str| xid::completed(&format!("XA COMMIT {of},X'',1")).unwrap().unwrap();
            let event = match what {
                "truncate" => Event::Statement { database: "shop", sql: b"TRUNCATE t".to_vec() },
                prepare if prepare.starts_with('X') && !prepare.contains(' ') => {
                    Event::Prepared(name(prepare))
                }
                sql => Event::Statement { database: "shop", sql: sql.as_bytes().to_vec() },
            };
            for event in [Event::Numbered(gtid), event] {
                if let Some(why) = scan.take(&at, 1, event).unwrap() {
                    return Err(why);
                }
            }
        }
        Ok(scan.next(&at).1.unwrap().split_once(':').unwrap().1.to_owned())
    }

    fn gtid_source() -> super::super::gtid::Source {
        super::super::gtid::Source { server: SERVER.parse().unwrap(), tag: String::new() }
    }

    #[test]
    fn what_the_snapshot_shows_in_any_case_is_the_next_position() {
        assert_eq!(follow(&["6 BEGIN", "7 BEGIN"], "1-5", "1-6"), Ok("1-6".to_owned()));
    }

    #[test]
    fn what_is_prepared_is_read_again_until_its_end_is_sure_to_be_shown() {
        let prepare = "6 X'61'";
        assert_eq!(follow(&[prepare, "7 BEGIN"], "1-5", "1-7"), Ok("1-5:7".to_owned()));
        let end = "8 XA COMMIT X'61',X'',1";
        assert_eq!(follow(&[prepare, "7 BEGIN", end], "1-5", "1-8"), Ok("1-8".to_owned()));
        // The snapshot may show it or not: the next pass meets the end again, and has to know the begin.
        assert_eq!(follow(&[prepare, "7 BEGIN", end], "1-5", "1-7"), Ok("1-5:7".to_owned()));
        assert_eq!(follow(&[prepare, end], "1-5:7", "1-8"), Ok("1-8".to_owned()));
        let other = follow(&["8 XA ROLLBACK X'62',X'',1"], "1-7", "1-8");
        assert_eq!(other, Err(BEGUN_BEFORE.to_owned()));
    }

    #[test]
    fn what_the_lake_has_is_passed_over_and_what_has_no_number_is_not() {
        assert_eq!(follow(&["5 truncate", "6 BEGIN"], "1-5", "1-6"), Ok("1-6".to_owned()));
        assert_eq!(follow(&["5 BEGIN", "6 truncate"], "1-5", "1-6"), Err("it was truncated".to_owned()));
        let nameless = follow(&["no BEGIN"], "1-5", "1-6").unwrap_err();
        assert!(nameless.contains("without a number"), "{nameless}");
    }
}
