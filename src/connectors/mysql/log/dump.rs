//! The server's log, event by event, as a replica gets it.

use std::hash::Hasher;
use std::time::{Duration, Instant};

use futures::StreamExt;
use mysql_async::BinlogStream;
use mysql_async::binlog::events::Event as Raw;
use siphasher::sip::SipHasher13;

use super::event::{self, Event};
use super::place::At;
use crate::clients::mysql::{connect, number};
use crate::connection::Connection;
use crate::error::{Error, ErrorKind, Result};
use crate::source::ReadRequest;

/// A file of the log that cannot be had.
const FATAL_READING_LOG: u16 = 1236;

/// A snapshot may be ahead of what the server hands out of its log: that has to be on its disk first.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// The log from a place on.
pub(super) struct Dump {
    events: BinlogStream,
    /// Where the next event begins.
    pub(super) at: At,
    connection: Connection,
    replica: u32,
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
        event::read(self.0.header().event_type_raw(), self.0.data())
    }

    /// Whether a file begins with it.
    pub(super) fn is_format(&self) -> bool {
        self.0.header().event_type_raw() == event::FORMAT
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
        from: &At,
    ) -> Result<Result<Self, String>> {
        let replica = replica(request);
        Ok(match events(connection, replica, from).await {
            Ok(events) => Ok(Self { events, at: from.clone(), connection: connection.clone(), replica }),
            Err(error) => Err(unavailable(error)?),
        })
    }

    /// The next event. Where the log ends now, it is waited for: only what is known to come is asked for.
    pub(super) async fn next(&mut self) -> Result<Arrived> {
        let started = Instant::now();
        let arrived = loop {
            if let Some(arrived) = self.arrived().await? {
                break arrived;
            }
            if started.elapsed() > PATIENCE {
                return Err(Error::new(
                    ErrorKind::Transient,
                    "the server's log ends before its own snapshot",
                ));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
            self.events = events(&self.connection, self.replica, &self.at).await?;
            let again = |why: String| Error::new(ErrorKind::Transient, why);
            self.origin().await?.map_err(again)?;
        };
        let end = u64::from(arrived.0.header().log_pos());
        if let Event::Rotate { file, offset } = arrived.read()? {
            self.at = At::new(file, offset);
        } else if end > self.at.offset() {
            // What the server says of the file it begins in is at no place.
            self.at = At::new(&self.at.file, end);
        }
        Ok(arrived)
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
            if event.is_format() {
                return Ok(Ok(event.origin()));
            }
        }
    }
}

/// Asks for the log in a new session.
async fn events(connection: &Connection, replica: u32, from: &At) -> Result<BinlogStream> {
    let session = connect(connection).await?;
    session.binlog(replica, &from.file, from.offset()).await.map_err(explain)
}

/// Divides errors that mean a gap from all others.
fn unavailable(error: Error) -> Result<String> {
    match number(&error) {
        Some(FATAL_READING_LOG) => Ok("the server cannot read its log from there".to_owned()),
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
