//! The server's log, event by event, as a replica gets it.

use std::hash::Hasher;
use std::time::{Duration, Instant};

use futures::StreamExt;
use mysql_async::BinlogStream;
use mysql_async::binlog::TransactionPayloadCompressionType as Compression;
use mysql_async::binlog::events::{Event as Raw, GtidEvent, TransactionPayloadEvent};
use siphasher::sip::SipHasher13;

use super::event::{self, Event, corrupt};
use super::gtid::{Gtid, GtidSet, Source};
use super::place::At;
use super::snapshot;
use crate::clients::mysql::{LogFrom, number};
use crate::connection::Connection;
use crate::error::{Error, ErrorKind, Result};
use crate::source::ReadRequest;

/// A file of the log that cannot be had.
const FATAL_READING_LOG: u16 = 1236;

/// The same number is for one that is ended because another has its name.
const HAS_CONNECTED: &str = "the same server_uuid/server_id";

/// A snapshot may be ahead of what the server hands out of its log: that has to be on its disk first.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// The log from a place on.
pub(super) struct Dump {
    events: BinlogStream,
    /// Where the next event begins; that of a compressed transaction until all of it has come.
    pub(super) at: At,
    inside: Inside,
    connection: Connection,
    /// Whose log it is.
    server: u32,
    replica: u32,
}

/// From where on a log is read.
pub(super) enum From<'a> {
    Place(&'a At),
    /// MySQL: all transactions but these.
    Without(&'a GtidSet),
    /// MariaDB: those after the last one of each domain.
    After(&'a str),
}

/// What is still to come of a compressed transaction.
#[derive(Debug, Default)]
struct Inside {
    /// In bytes, unpacked.
    bytes: u64,
    /// Where the transaction ends in its file.
    end: u64,
}

impl Inside {
    /// Takes an event off. The client unpacks, and says nothing when it cannot: then other events follow.
    fn take(&mut self, kind: u8, bytes: u64) -> Result<()> {
        if !event::may_be_inside(kind) {
            return Err(corrupt());
        }
        self.bytes = self.bytes.checked_sub(bytes).ok_or_else(corrupt)?;
        Ok(())
    }
}

/// When an event was written, and by whom; that of a file is its first one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Origin {
    /// In seconds since 1970.
    pub(super) begun: u32,
    pub(super) server: u32,
}

/// An event as it came.
pub(super) struct Arrived(Raw);

impl Arrived {
    pub(super) fn read(&self) -> Result<Event<'_>> {
        match self.kind() {
            event::TAGGED_GTID => {
                let read: GtidEvent = self.0.read_event().map_err(|_| corrupt())?;
                let server = uuid::Uuid::from_bytes(read.sid());
                let tag = read.tag().map(|tag| tag.as_str().to_owned()).unwrap_or_default();
                Ok(Event::Numbered(Some(Gtid { source: Source { server, tag }, number: read.gno() })))
            }
            kind => event::read(kind, self.0.data()),
        }
    }

    fn kind(&self) -> u8 {
        self.0.header().event_type_raw()
    }

    /// Where the log begins, if this says so. Before the first file nobody knows whether events end with a
    /// checksum: this one does on MariaDB, and does not on MySQL.
    fn first_file(&self) -> Result<Option<At>> {
        let header = self.0.header();
        let mut head = header.timestamp().to_le_bytes().to_vec();
        head.push(self.kind());
        head.extend(header.server_id().to_le_bytes());
        head.extend(header.event_size().to_le_bytes());
        head.extend(header.log_pos().to_le_bytes());
        head.extend(header.flags_raw().to_le_bytes());
        match event::read(self.kind(), without_checksum(&head, self.0.data()))? {
            Event::Rotate { file, offset } => Ok(Some(At::new(file, offset))),
            _ => Ok(None),
        }
    }

    /// How long the events inside are, if it is a compressed transaction.
    fn inside(&self) -> Result<Option<u64>> {
        if self.kind() != event::PAYLOAD {
            return Ok(None);
        }
        let payload: TransactionPayloadEvent<'_> = self.0.read_event().map_err(|_| corrupt())?;
        Ok(Some(match payload.algorithm() {
            Compression::NONE => payload.payload_size(),
            Compression::ZSTD => payload.uncompressed_size(),
        }))
    }

    /// Whether a file begins with it.
    pub(super) fn is_format(&self) -> bool {
        self.kind() == event::FORMAT
    }

    pub(super) fn origin(&self) -> Origin {
        Origin { begun: self.0.header().timestamp(), server: self.0.header().server_id() }
    }
}

impl Dump {
    /// Opens the log in a session of its own. `Err(Ok(why))`: the server does not have it any more.
    pub(super) async fn open(
        connection: &Connection,
        request: &ReadRequest,
        server: u32,
        from: From<'_>,
    ) -> Result<Result<Self, String>> {
        let replica = replica(request);
        let at = match &from {
            From::Place(at) => (*at).clone(),
            // The server says it first.
            From::Without(_) | From::After(_) => At::new("", 0),
        };
        Ok(match events(connection, server, replica, from).await {
            Ok(events) => {
                let connection = connection.clone();
                Ok(Self { events, at, inside: Inside::default(), connection, server, replica })
            }
            Err(error) => Err(unavailable(error)?),
        })
    }

    /// The next event. Where the log ends now, it is waited for: only what is known to come is asked for.
    /// `Err` inside: the server does not have it, which it may notice late.
    pub(super) async fn next(&mut self) -> Result<Result<Arrived, String>> {
        let started = Instant::now();
        let arrived = loop {
            match self.arrived().await {
                Ok(Some(arrived)) => break arrived,
                Ok(None) => {}
                Err(error) => return unavailable(error).map(Err),
            }
            if self.inside.bytes > 0 {
                return Err(corrupt());
            }
            if started.elapsed() > PATIENCE {
                return Err(Error::new(
                    ErrorKind::Transient,
                    "the server's log ends before its own snapshot",
                ));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
            self.events = events(&self.connection, self.server, self.replica, From::Place(&self.at)).await?;
            let again = |why: String| Error::new(ErrorKind::Transient, why);
            self.origin().await?.map_err(again)?;
        };
        self.pass(&arrived)?;
        Ok(Ok(arrived))
    }

    /// Goes on behind an event.
    fn pass(&mut self, arrived: &Arrived) -> Result<()> {
        let header = arrived.0.header();
        if self.inside.bytes > 0 {
            // What its events say of their places is of no file.
            self.inside.take(arrived.kind(), header.event_size().into())?;
            if self.inside.bytes == 0 {
                self.at = At::new(&self.at.file, self.inside.end);
            }
            return Ok(());
        }
        let end = u64::from(header.log_pos());
        if let Some(bytes) = arrived.inside()?.filter(|bytes| *bytes > 0) {
            self.inside = Inside { bytes, end: end.max(self.at.offset()) };
        } else if let Event::Rotate { file, offset } = arrived.read()? {
            self.at = At::new(file, offset);
        } else if end > self.at.offset() {
            // What the server says of the file it begins in is at no place.
            self.at = At::new(&self.at.file, end);
        }
        Ok(())
    }

    async fn arrived(&mut self) -> Result<Option<Arrived>> {
        let raw = self.events.next().await.transpose();
        Ok(raw.map_err(|error| explain(Error::from(error)))?.map(Arrived))
    }

    /// What the file that is read says of itself. To be asked first: only then it is known how events end.
    pub(super) async fn origin(&mut self) -> Result<Result<Origin, String>> {
        loop {
            let event = match self.arrived().await {
                Ok(Some(event)) => event,
                Ok(None) => {
                    return Err(Error::new(ErrorKind::Transient, "the server sent nothing of its log"));
                }
                Err(error) => return unavailable(error).map(Err),
            };
            // Where a place was asked for, it begins there.
            if self.at.file.is_empty()
                && let Some(at) = event.first_file()?
            {
                self.at = at;
            }
            if event.is_format() {
                return Ok(Ok(event.origin()));
            }
        }
    }
}

/// The body of an event that may end with its checksum.
fn without_checksum<'a>(head: &[u8], body: &'a [u8]) -> &'a [u8] {
    let Some((rest, checksum)) = body.split_last_chunk() else { return body };
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head);
    hasher.update(rest);
    if hasher.finalize() == u32::from_le_bytes(*checksum) { rest } else { body }
}

/// Asks a server for its log in a new session.
async fn events(connection: &Connection, server: u32, replica: u32, from: From<'_>) -> Result<BinlogStream> {
    let session = snapshot::connect_to(connection, server).await?;
    let from = match from {
        From::Place(at) => LogFrom::Place { file: &at.file, offset: at.offset() },
        From::Without(set) => LogFrom::Without(set.sids().ok_or_else(corrupt)?),
        From::After(last) => LogFrom::After(last),
    };
    session.binlog(replica, from).await.map_err(explain)
}

/// Divides errors that mean a gap from all others.
fn unavailable(error: Error) -> Result<String> {
    match number(&error) {
        Some(FATAL_READING_LOG) if !error.message().contains(HAS_CONNECTED) => {
            Ok(format!("the server cannot read its log from there: {}", error.message()))
        }
        Some(FATAL_READING_LOG) => {
            let message = "another pass of this stream reads the log";
            Err(Error::new(ErrorKind::Transient, message).hint("let one process run a stream"))
        }
        _ => Err(error),
    }
}

/// Says of a right that is missing which one it is: the server speaks of a wrong password.
fn explain(error: Error) -> Error {
    if error.kind() != ErrorKind::Permission {
        return error;
    }
    Error::new(ErrorKind::Permission, "the user may not read the server's log")
        .hint("run `GRANT REPLICATION SLAVE ON *.* TO <user>`")
}

/// The number under which a stream is a replica: one of its own, so that two streams do not hang up on each
/// other, and the same in each pass, so that one that was killed does. Servers have small numbers.
pub(super) fn replica(request: &ReadRequest) -> u32 {
    let mut hasher = SipHasher13::new();
    for part in [&request.table.to_string(), &request.reader] {
        hasher.write(part.as_bytes());
        hasher.write_u8(0);
    }
    hasher.finish() as u32 | 1 << 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_that_was_ended_by_another_is_no_gap() {
        let error = |text: &str| Error::new(ErrorKind::Internal, text).with("number", FATAL_READING_LOG);
        let purged = "could not find first log file name in binary log index file";
        assert!(unavailable(error(purged)).unwrap().contains(purged));
        let ended = "a slave with the same server_uuid/server_id as this slave has connected to the master";
        assert_eq!(unavailable(error(ended)).unwrap_err().kind(), ErrorKind::Transient);
        assert!(unavailable(Error::new(ErrorKind::Internal, "no number")).is_err());
    }

    #[test]
    fn a_checksum_is_no_part_of_a_name() {
        let (head, body) = (b"the head of the event", b"\x04\0\0\0\0\0\0\0binlog.000042");
        let checksum = crc32fast::hash(&[&head[..], body].concat());
        let with = [&body[..], &checksum.to_le_bytes()].concat();
        assert_eq!((without_checksum(head, &with), without_checksum(head, body)), (&body[..], &body[..]));
        assert_eq!(without_checksum(head, b"abc"), b"abc");
    }

    /// What the client could not unpack is missing: the next event is none of the transaction's.
    #[test]
    fn a_transaction_that_was_not_unpacked_is_noticed() {
        let (query, rows, gtid) = (2, 30, 33);
        let inside = || Inside { bytes: 100, end: 500 };
        let mut whole = inside();
        whole.take(query, 60).unwrap();
        whole.take(rows, 40).unwrap();
        assert_eq!(whole.bytes, 0);
        assert!(inside().take(gtid, 42).is_err());
        assert!(inside().take(rows, 101).is_err());
    }
}
