//! Events of the binlog, as far as they matter here.
//!
//! Both the events that MySQL and MariaDB share, and those of one of them: MariaDB's transactions by GTID
//! (162) and the compressed forms of its statements and rows (165 to 171), which come unpacked; MySQL's
//! transactions (33, 34), rows of which parts are logged (39) and transactions that are prepared (38).

use uuid::Uuid;

use super::compressed::unpacked;
use super::gtid::{Gtid, Source};
use super::rows::{Images, Kind, TableMap, table_id};
use super::xid;
use crate::error::{Error, ErrorKind, Result};

/// What an event says.
#[derive(Debug, PartialEq)]
pub(super) enum Event<'a> {
    /// Another file follows, from here on.
    Rotate { file: &'a str, offset: u64 },
    /// A transaction of MariaDB begins.
    Begin { number: Number, xa: Option<Xa<'a>> },
    /// One of MySQL begins; it may have no number.
    Numbered(Option<Gtid>),
    /// The transaction is prepared, under a name, and not committed yet.
    Prepared(Vec<u8>),
    /// A statement in words.
    Statement { database: &'a str, sql: Vec<u8> },
    /// The rows that follow are those of a table.
    Table(TableMap<'a>),
    /// Rows that changed.
    Rows(Images<'a>),
    /// Rows of a table changed, of which the log has parts of values only.
    Parts { table: u64 },
    /// A file was loaded by a statement.
    Load,
    /// The server lost something.
    Incident,
    /// Nothing that concerns us.
    Other,
}

/// MariaDB's number of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Number {
    pub(super) domain: u32,
    pub(super) sequence: u64,
}

/// Part of a transaction that is prepared first and completed later.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Xa<'a> {
    pub(super) name: &'a [u8],
    /// It was prepared only: nobody sees it yet.
    pub(super) prepared: bool,
}

const QUERY: u8 = 2;
const ROTATE: u8 = 4;
/// The first event of each file.
pub(super) const FORMAT: u8 = 15;
const BEGIN_LOAD: u8 = 17;
const EXECUTE_LOAD: u8 = 18;
const TABLE_MAP: u8 = 19;
const INCIDENT: u8 = 26;
const HEARTBEAT: u8 = 27;
const GTID: u8 = 33;
const ANONYMOUS_GTID: u8 = 34;
const PREVIOUS_GTIDS: u8 = 35;
const XA_PREPARE: u8 = 38;
const PARTIAL_UPDATE_ROWS: u8 = 39;
/// A whole transaction of MySQL, compressed.
pub(super) const PAYLOAD: u8 = 40;
const HEARTBEAT_V2: u8 = 41;
/// A transaction whose number has a tag.
pub(super) const TAGGED_GTID: u8 = 42;
const MARIADB_GTID: u8 = 162;
const QUERY_COMPRESSED: u8 = 165;

const HAS_COMMIT_ID: u8 = 2;
const PREPARED_XA: u8 = 64;
const COMPLETED_XA: u8 = 128;

/// Kind of rows, whether their header is the newer one, whether they are compressed.
fn rows_of(kind: u8) -> Option<(Kind, bool, bool)> {
    Some(match kind {
        23 => (Kind::Insert, false, false),
        24 => (Kind::Update, false, false),
        25 => (Kind::Delete, false, false),
        30 => (Kind::Insert, true, false),
        31 => (Kind::Update, true, false),
        32 => (Kind::Delete, true, false),
        166 => (Kind::Insert, false, true),
        167 => (Kind::Update, false, true),
        168 => (Kind::Delete, false, true),
        169 => (Kind::Insert, true, true),
        170 => (Kind::Update, true, true),
        171 => (Kind::Delete, true, true),
        _ => return None,
    })
}

/// Reads the body of an event, without its header and checksum.
pub(super) fn read(kind: u8, body: &[u8]) -> Result<Event<'_>> {
    if let Some((of, newer, compressed)) = rows_of(kind) {
        return Images::read(of, newer, compressed, body).map(Event::Rows).ok_or_else(corrupt);
    }
    Ok(match kind {
        ROTATE => {
            let (offset, file) = body.split_first_chunk().ok_or_else(corrupt)?;
            Event::Rotate { file: text(file)?, offset: u64::from_le_bytes(*offset) }
        }
        MARIADB_GTID => {
            Event::Begin { number: number(body).ok_or_else(corrupt)?, xa: xa(body).ok_or_else(corrupt)? }
        }
        GTID => Event::Numbered(Some(gtid(body).ok_or_else(corrupt)?)),
        ANONYMOUS_GTID => Event::Numbered(None),
        XA_PREPARE => match xid::prepared(body).ok_or_else(corrupt)? {
            Some(name) => Event::Prepared(name),
            None => Event::Other,
        },
        PARTIAL_UPDATE_ROWS => Event::Parts { table: table_id(body).ok_or_else(corrupt)? },
        QUERY | QUERY_COMPRESSED => {
            let (database, sql) = statement(body).ok_or_else(corrupt)?;
            let sql = if kind == QUERY { sql.to_vec() } else { unpacked(sql)? };
            Event::Statement { database: text(database)?, sql }
        }
        TABLE_MAP => Event::Table(TableMap::read(body).ok_or_else(corrupt)?),
        BEGIN_LOAD | EXECUTE_LOAD => Event::Load,
        INCIDENT => Event::Incident,
        _ => Event::Other,
    })
}

/// Whether an event may be inside of a compressed transaction: neither what begins one nor what the server
/// says of its files.
pub(super) fn may_be_inside(kind: u8) -> bool {
    !matches!(
        kind,
        ROTATE
            | FORMAT
            | INCIDENT
            | HEARTBEAT
            | PREVIOUS_GTIDS
            | HEARTBEAT_V2
            | PAYLOAD
            | GTID
            | ANONYMOUS_GTID
            | TAGGED_GTID
    )
}

/// Flags, the UUID of who counts, the number.
fn gtid(body: &[u8]) -> Option<Gtid> {
    let server = Uuid::from_bytes(*body.get(1..)?.first_chunk()?);
    let number = u64::from_le_bytes(*body.get(17..)?.first_chunk()?);
    Some(Gtid { source: Source { server, tag: String::new() }, number })
}

fn number(body: &[u8]) -> Option<Number> {
    let sequence = u64::from_le_bytes(*body.first_chunk()?);
    Some(Number { domain: u32::from_le_bytes(*body.get(8..)?.first_chunk()?), sequence })
}

/// Number, domain, flags, the number of its group, and the name of a distributed transaction.
fn xa(body: &[u8]) -> Option<Option<Xa<'_>>> {
    let flags = *body.get(12)?;
    if flags & (PREPARED_XA | COMPLETED_XA) == 0 {
        return Some(None);
    }
    let rest = body.get(if flags & HAS_COMMIT_ID != 0 { 21 } else { 13 }..)?;
    // The format, and the lengths of both parts of the name.
    let (global, branch) = (usize::from(*rest.get(4)?), usize::from(*rest.get(5)?));
    let name = rest.get(..6 + global + branch)?;
    Some(Some(Xa { name, prepared: flags & PREPARED_XA != 0 }))
}

/// Database and text of a statement.
fn statement(body: &[u8]) -> Option<(&[u8], &[u8])> {
    // Thread, seconds, length of the database, error, length of the settings.
    let database = usize::from(*body.get(8)?);
    let settings = usize::from(u16::from_le_bytes([*body.get(11)?, *body.get(12)?]));
    let rest = body.get(13 + settings..)?;
    Some((rest.get(..database)?, rest.get(database + 1..)?))
}

fn text(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|_| corrupt())
}

pub(super) fn corrupt() -> Error {
    Error::new(ErrorKind::Corrupt, "the binlog has an event that cannot be read")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distributed_transactions_have_names() {
        let mut body = vec![0; 12];
        body.push(PREPARED_XA | 4);
        body.extend([1, 0, 0, 0, 2, 1, b'a', b'b', b'c']);
        let begin = |body: &[u8]| match read(MARIADB_GTID, body).unwrap() {
            Event::Begin { xa, .. } => xa.map(|xa| (xa.name.to_vec(), xa.prepared)),
            other => panic!("{other:?}"),
        };
        let name = vec![1, 0, 0, 0, 2, 1, b'a', b'b', b'c'];
        assert_eq!(begin(&body), Some((name.clone(), true)));
        let mut body = vec![0; 12];
        body.push(COMPLETED_XA | HAS_COMMIT_ID);
        body.extend([0; 8]);
        body.extend(&name);
        assert_eq!(begin(&body), Some((name, false)));
        assert_eq!(begin(&[0; 19]), None);
        assert!(read(MARIADB_GTID, &[0; 3]).is_err());
    }

    #[test]
    fn transactions_have_numbers() {
        let mut body = vec![1];
        body.extend(0x3e11_fa47_71ca_11e1_9e33_c80a_a942_9562_u128.to_be_bytes());
        body.extend(1_000_000_007_u64.to_le_bytes());
        // How they depend on each other, and when they were committed.
        body.extend([2; 40]);
        let server = "3e11fa47-71ca-11e1-9e33-c80aa9429562".parse().unwrap();
        let gtid = Gtid { source: Source { server, tag: String::new() }, number: 1_000_000_007 };
        assert_eq!(read(GTID, &body).unwrap(), Event::Numbered(Some(gtid)));
        assert_eq!(read(ANONYMOUS_GTID, &body).unwrap(), Event::Numbered(None));
        assert!(read(GTID, &body[..24]).is_err());

        let mut body = 77_u64.to_le_bytes().to_vec();
        body.extend([5, 0, 0, 0, 0]);
        body.extend([0; 6]);
        let number = Number { domain: 5, sequence: 77 };
        assert_eq!(read(MARIADB_GTID, &body).unwrap(), Event::Begin { number, xa: None });
    }

    #[test]
    fn what_is_prepared_and_what_is_in_parts_is_told() {
        let body = [0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, b'x'];
        assert_eq!(read(XA_PREPARE, &body).unwrap(), Event::Prepared(vec![1, 0, 0, 0, 1, 0, b'x']));
        let committed = [1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, b'x'];
        assert_eq!(read(XA_PREPARE, &committed).unwrap(), Event::Other);
        assert!(read(XA_PREPARE, &body[..13]).is_err());
        let body = [7, 1, 0, 0, 0, 0, 1, 0, 2, 0];
        assert_eq!(read(PARTIAL_UPDATE_ROWS, &body).unwrap(), Event::Parts { table: 263 });
    }

    #[test]
    fn statements_are_found_behind_their_settings() {
        let mut body = vec![0; 8];
        body.extend([4, 0, 0, 3, 0, 9, 9, 9]);
        body.extend(b"shop\0DROP TABLE t");
        let expected = Event::Statement { database: "shop", sql: b"DROP TABLE t".to_vec() };
        assert_eq!(read(QUERY, &body).unwrap(), expected);
        assert!(read(QUERY, &body[..14]).is_err());
    }
}
