//! What people ask of a running `frazil serve`, and what it says of itself, in a small SQLite file
//! beside the configuration.
//!
//! ```text
//! frazil jobs pause ──▶ asks ──▶ serve, once a second        serve ──▶ states ──▶ frazil jobs list
//! ```
//!
//! A pause outlives the server; a trigger is taken once. The file can be deleted while no server runs:
//! then nothing is paused.

use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, Utc};
use rusqlite::{Connection, OptionalExtension, params};

use crate::config::did_you_mean;
use crate::error::{Error, ErrorKind, Result};
use crate::schedule::StreamState;

/// The other side holds the file for milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);

const TABLES: &str = "
create table if not exists asks (
    stream text primary key,
    paused_at text,
    triggered_at text
);
create table if not exists shared (
    stream text primary key,
    paused integer not null
);
create table if not exists server (
    only_one integer primary key check (only_one = 1),
    process integer not null,
    seen_at text not null,
    states text not null
);
";

/// Asks and answers of one configuration.
pub struct Control {
    db: Connection,
}

/// What somebody wants of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// That it begins no passes.
    Pause,
    /// That it goes on.
    Resume,
    /// That it begins a pass now.
    Trigger,
}

impl Wish {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Trigger => "trigger",
        }
    }

    /// The wish of that word.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Pause, Self::Resume, Self::Trigger].into_iter().find(|wish| wish.name() == name)
    }
}

/// What is asked of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// The stream.
    pub stream: String,
    /// Whether no pass may begin.
    pub paused: bool,
    /// Whether a pass shall begin now. It is asked once.
    pub triggered: bool,
}

/// What a server said last.
#[derive(Debug)]
pub struct Server {
    /// Its process.
    pub process: u32,
    /// When it said so.
    pub seen_at: DateTime<Utc>,
    /// Its streams.
    pub states: Vec<StreamState>,
}

impl Control {
    /// The file beside the run history.
    pub fn place(history: &Path) -> PathBuf {
        history.with_file_name("control.db")
    }

    /// Opens the file, or begins one. The folder is there: the history is in it.
    pub fn open(path: &Path) -> Result<Self> {
        let begin = || -> rusqlite::Result<Connection> {
            let db = Connection::open(path)?;
            db.busy_timeout(PATIENCE)?;
            db.execute_batch(TABLES)?;
            Ok(db)
        };
        let db = begin().map_err(|source| foreign(source).with("file", path.display()))?;
        Ok(Self { db })
    }

    /// Leaves a wish for a stream, which must be one of those that the server knows.
    pub fn ask<'a>(
        &self,
        wish: Wish,
        stream: &str,
        known: impl Iterator<Item = &'a str> + Clone,
        now: DateTime<Utc>,
    ) -> Result<()> {
        if !known.clone().any(|name| name == stream) {
            let hint = did_you_mean(stream, known);
            return Err(Error::new(ErrorKind::Config, "the server has no such stream")
                .with("stream", stream)
                .hint(hint.unwrap_or_else(|| "`frazil jobs list` shows them all".to_owned())));
        }
        match wish {
            Wish::Pause => self.pause(stream, true, now),
            Wish::Resume => self.pause(stream, false, now),
            Wish::Trigger => self.trigger(stream, now),
        }
    }

    /// Pauses a stream, or lets it go on.
    fn pause(&self, stream: &str, paused: bool, now: DateTime<Utc>) -> Result<()> {
        let note = || -> rusqlite::Result<()> {
            self.db.execute(
                "insert into asks (stream, paused_at) values (?1, ?2) \
                 on conflict (stream) do update set paused_at = excluded.paused_at",
                params![stream, paused.then(|| now.to_rfc3339())],
            )?;
            self.db.execute("insert or replace into shared values (?1, ?2)", params![stream, paused])?;
            Ok(())
        };
        note().map_err(foreign)
    }

    /// The pauses and their ends that were asked for since the last time, for a server whose streams belong
    /// to several: what holds is not in this file then.
    pub fn take_shared(&mut self) -> Result<Vec<(String, bool)>> {
        let take = || -> rusqlite::Result<Vec<(String, bool)>> {
            self.db
                .prepare("delete from shared returning stream, paused")?
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect()
        };
        take().map_err(foreign)
    }

    /// Asks for a pass now.
    fn trigger(&self, stream: &str, now: DateTime<Utc>) -> Result<()> {
        self.db
            .execute(
                "insert into asks (stream, triggered_at) values (?1, ?2) \
                 on conflict (stream) do update set triggered_at = excluded.triggered_at",
                params![stream, now.to_rfc3339()],
            )
            .map(drop)
            .map_err(foreign)
    }

    /// What is asked. Triggers are taken away with it.
    pub fn take(&mut self) -> Result<Vec<Ask>> {
        let mut take = || -> rusqlite::Result<Vec<Ask>> {
            let change = self.db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            let asks = change
                .prepare("select stream, paused_at is not null, triggered_at is not null from asks")?
                .query_map([], |row| {
                    Ok(Ask { stream: row.get(0)?, paused: row.get(1)?, triggered: row.get(2)? })
                })?
                .collect::<rusqlite::Result<_>>()?;
            change.execute("update asks set triggered_at = null where triggered_at is not null", [])?;
            change.commit()?;
            Ok(asks)
        };
        take().map_err(foreign)
    }

    /// A number that changes when somebody else wrote to the file.
    pub fn version(&self) -> Result<i64> {
        self.db.query_row("pragma data_version", [], |row| row.get(0)).map_err(foreign)
    }

    /// Says what the streams do.
    pub fn say(&self, states: &[StreamState], now: DateTime<Utc>) -> Result<()> {
        let states = serde_json::to_string(states).expect("states are JSON");
        self.db
            .execute(
                "insert or replace into server values (1, ?1, ?2, ?3)",
                params![std::process::id(), now.to_rfc3339(), states],
            )
            .map(drop)
            .map_err(foreign)
    }

    /// What a server said last, if one ever did.
    pub fn server(&self) -> Result<Option<Server>> {
        let row = self.db.query_row("select process, seen_at, states from server", [], |row| {
            Ok((row.get::<_, u32>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?))
        });
        let Some((process, seen_at, states)) = row.optional().map_err(foreign)? else { return Ok(None) };
        let damaged = || {
            Error::new(ErrorKind::Corrupt, "the control file holds what no server wrote")
                .hint("stop `frazil serve`, remove `.frazil/control.db`, and start it again")
        };
        Ok(Some(Server {
            process,
            seen_at: seen_at.parse().map_err(|_| damaged())?,
            states: serde_json::from_str(&states).map_err(|_| damaged())?,
        }))
    }
}

fn foreign(source: rusqlite::Error) -> Error {
    Error::new(ErrorKind::Transient, format!("the control file cannot be used: {source}"))
        .hint("make the folder writable; a damaged file can be removed, then nothing is paused")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_stays_and_a_trigger_is_taken_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.db");
        let person = Control::open(&path).unwrap();
        let mut server = Control::open(&path).unwrap();
        let before = server.version().unwrap();
        let now = DateTime::UNIX_EPOCH;
        person.pause("a", true, now).unwrap();
        person.trigger("a", now).unwrap();
        person.trigger("b", now).unwrap();
        assert_ne!(server.version().unwrap(), before);
        let ask = |stream: &str, paused, triggered| Ask { stream: stream.to_owned(), paused, triggered };
        assert_eq!(server.take().unwrap(), [ask("a", true, true), ask("b", false, true)]);
        assert_eq!(server.take().unwrap(), [ask("a", true, false), ask("b", false, false)]);
        person.pause("a", false, now).unwrap();
        assert_eq!(server.take().unwrap(), [ask("a", false, false), ask("b", false, false)]);
        assert_eq!(server.take_shared().unwrap(), [("a".to_owned(), false)], "the last word");
        assert_eq!(server.take_shared().unwrap(), []);
        assert!(person.server().unwrap().is_none());
        server.say(&[], now).unwrap();
        assert_eq!(person.server().unwrap().unwrap().process, std::process::id());
    }
}
