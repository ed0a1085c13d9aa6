//! The replication slot of a stream: the server keeps the log from it on, until we say that we have it.
//!
//! Each stream has a slot of its own. What one stream has confirmed is gone for all who share the slot,
//! so a shared one could only be confirmed as far as the slowest stream in whatever lake has come.
//!
//! A slot is behind the lake or where the lake is, never before it: it is confirmed after the commit. One
//! that is beyond the position, or lost, has changes dropped that nobody read. That is a gap, and said.

use std::hash::Hasher;

use siphasher::sip::SipHasher13;
use tokio_postgres::types::Type;

use super::lsn::Lsn;
use super::replica;
use crate::clients::postgres::Session;
use crate::error::{Error, ErrorKind, Result};
use crate::source::ReadRequest;

/// What of a table's name shows in that of its slot: names have 63 characters at most.
const SHOWN: usize = 40;

/// A slot as the server describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) name: String,
    plugin: String,
    database: String,
    /// Who reads from it now.
    pub(super) active: Option<i32>,
    /// What was confirmed: everything before it is gone.
    pub(super) confirmed: Option<Lsn>,
    /// From where on the server keeps the log.
    pub(super) kept_from: Option<Lsn>,
    /// Why it is of no use any more.
    lost: Option<String>,
    /// Whether replicas of the server may keep it too.
    pub(super) outlives_failover: bool,
}

/// The name of the slot and the publication that a stream makes for itself.
pub(super) fn own_name(request: &ReadRequest, database: &str) -> String {
    let mut hasher = SipHasher13::new();
    for part in [database, &request.table.to_string(), &request.reader] {
        hasher.write(part.as_bytes());
        hasher.write_u8(0);
    }
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    let table: String = request.table.name.chars().map(plain).take(SHOWN).collect();
    format!("frazil_{table}_{:08x}", hasher.finish() as u32)
}

/// The slot of this name, if there is one.
pub(super) async fn look(session: &Session, name: &str) -> Result<Option<Slot>> {
    // By way of JSON: each version of the server has more columns.
    let sql = "SELECT coalesce(s.plugin::text, ''), coalesce(s.database::text, ''), s.active_pid, \
         s.confirmed_flush_lsn::text, s.restart_lsn::text, \
         coalesce(to_jsonb(s)->>'invalidation_reason', \
                  CASE WHEN to_jsonb(s)->>'conflicting' = 'true' THEN 'rows_removed' END, \
                  CASE WHEN s.wal_status = 'lost' OR s.restart_lsn IS NULL THEN 'its log was removed' END), \
         coalesce(to_jsonb(s)->>'failover' = 'true', false) \
         FROM pg_replication_slots s WHERE s.slot_name = $1";
    let rows = session.query_typed(sql, &[(&name, Type::TEXT)]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    Ok(Some(Slot {
        name: name.to_owned(),
        plugin: row.get(0),
        database: row.get(1),
        active: row.get(2),
        confirmed: lsn(row.get(3)),
        kept_from: lsn(row.get(4)),
        lost: row.get::<_, Option<String>>(5).map(|reason| plain(&reason)),
        outlives_failover: row.get(6),
    }))
}

/// Why a slot is lost, in words; the server has one.
fn plain(reason: &str) -> String {
    match reason {
        "wal_removed" => "its log was removed",
        "rows_removed" => "the replica's primary removed rows that it needs (is `hot_standby_feedback` on?)",
        "wal_level_insufficient" => "the primary's `wal_level` was not `logical`",
        "idle_timeout" => "nobody read from it for `idle_replication_slot_timeout`",
        other => other,
    }
    .to_owned()
}

fn lsn(text: Option<String>) -> Option<Lsn> {
    Lsn::try_from(text?).ok()
}

impl Slot {
    /// Why the changes after a position cannot be had from it.
    pub(super) fn gap(&self, after: Lsn) -> Option<String> {
        if let Some(why) = &self.lost {
            return Some(format!("the replication slot `{}` is lost: {why}", self.name));
        }
        let confirmed = self.confirmed?;
        (confirmed > after).then(|| {
            format!(
                "the replication slot `{}` was moved on to {confirmed} by somebody else, or was made anew",
                self.name
            )
        })
    }

    /// Whether the server has dropped what it kept.
    pub(super) fn is_lost(&self) -> bool {
        self.lost.is_some()
    }

    /// Refuses a slot that is for something else.
    pub(super) fn check(&self, database: &str) -> Result<()> {
        let wrong = |message: String, hint: &str| Err(Error::new(ErrorKind::Config, message).hint(hint));
        if self.plugin != "pgoutput" || self.database != database {
            return wrong(
                format!(
                    "the replication slot `{}` is one of `{}` for the database `{}`",
                    self.name, self.plugin, self.database
                ),
                "name another one as `slot`, or none",
            );
        }
        Ok(())
    }

    /// Refuses a slot that somebody else reads from.
    pub(super) fn check_free(&self) -> Result<()> {
        let Some(pid) = self.active else { return Ok(()) };
        let message = format!("the replication slot `{}` is in use by process {pid}", self.name);
        Err(Error::new(ErrorKind::Transient, message)
            .hint("one reader can have a slot: stop the other one, or name another `slot`"))
    }
}

/// The first version whose replicas can keep a slot of their primary's (`sync_replication_slots`).
const KEPT_BY_REPLICAS: u32 = 170_000;

/// Makes a slot. The server waits for the transactions that are open.
pub(super) async fn create(session: &Session, name: &str) -> Result<Slot> {
    let server = session.server();
    let create = async {
        let sql = match server.version >= KEPT_BY_REPLICAS && !server.standby {
            true => "SELECT pg_create_logical_replication_slot($1, 'pgoutput', false, false, true)::text",
            false => "SELECT pg_create_logical_replication_slot($1, 'pgoutput')::text",
        };
        let created = session.query_typed(sql, &[(&name, Type::TEXT)]).await;
        created.map(drop).map_err(|error| explain(error.into()))
    };
    match session.server().standby {
        true => replica::create_slot(session, create).await?,
        false => create.await?,
    }
    let gone = || Error::new(ErrorKind::Transient, "the replication slot was dropped just now");
    look(session, name).await?.ok_or_else(gone)
}

/// Drops a slot.
pub(super) async fn remove(session: &Session, name: &str) -> Result<()> {
    session.query_typed("SELECT pg_drop_replication_slot($1)::text", &[(&name, Type::TEXT)]).await?;
    Ok(())
}

/// Tells the server that everything before a place may go.
pub(super) async fn advance(session: &Session, name: &str, to: Lsn) -> Result<()> {
    let sql = "SELECT pg_replication_slot_advance($1, $2::text::pg_lsn)::text";
    session.query_typed(sql, &[(&name, Type::TEXT), (&to.to_string(), Type::TEXT)]).await?;
    Ok(())
}

/// Says what to do about an error of the server's, where it does not say so itself.
pub(super) fn explain(error: Error) -> Error {
    let state = error.context().iter().find(|(key, _)| *key == "sqlstate").map(|(_, state)| state.clone());
    match state.as_deref() {
        Some("42501") => error.hint("run `ALTER ROLE <user> REPLICATION`"),
        Some("53400") => error.hint("drop slots that nobody reads from, or raise `max_replication_slots`"),
        Some("55006") => error.hint("one reader can have a slot: stop the other one, or name another `slot`"),
        Some("42704") => {
            error.hint("a publication does not count for the log from before it was made: make the slot anew")
        }
        Some("40001") => error.hint(
            "set `hot_standby_feedback = on` on the replica: then its primary keeps the rows that are being read",
        ),
        Some("55000") => {
            error.hint("set `wal_level = logical` and restart the server; of a replica, its primary too")
        }
        _ => error,
    }
}
