//! Snapshots of the database, and which transactions they show.
//!
//! MariaDB takes a consistent snapshot between two commits, and says between which. Sessions cannot share
//! one; but two that were taken at the same place of the log show the same.
//!
//! MySQL does not say what a snapshot shows, but for a lower and an upper end:
//!
//! ```text
//! gtid_executed ─▶ START TRANSACTION … ─▶ the end of the log
//!  all of these        is shown               nothing behind it
//! ```
//!
//! A transaction is in `gtid_executed` once the storage engine has committed it, and in the log before that.
//! The order of the three is what this rests on.

use futures::future::try_join_all;

use super::gtid::GtidSet;
use super::place::At;
use crate::clients::mysql::{Session, connect, integer, text};
use crate::connection::Connection;
use crate::error::{Error, ErrorKind, Result};

/// How often sessions are begun together before fewer do: a commit comes between them on a busy server.
const ATTEMPTS: usize = 8;

const BEGIN: &str = "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY";

/// What a snapshot shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Moment {
    /// MariaDB: everything before it and nothing else. MySQL: nothing behind it.
    pub(super) at: At,
    /// MySQL: these are shown in any case.
    pub(super) shown: Option<GtidSet>,
}

/// Begins a transaction that sees the database at one moment, and says which.
pub(super) async fn begin(session: &mut Session) -> Result<Moment> {
    if session.server().mariadb {
        session.run(BEGIN).await?;
        let at = place(session).await?;
        return Ok(Moment { at, shown: None });
    }
    let shown = set(session, "gtid_executed").await?;
    session.run(BEGIN).await?;
    let silent = || Error::new(ErrorKind::Config, "the server does not say where its log ends");
    let End { at, .. } = end(session).await?.ok_or_else(silent)?;
    Ok(Moment { at, shown: Some(shown) })
}

/// Where in the log MariaDB's snapshot is.
async fn place(session: &mut Session) -> Result<At> {
    let rows = session.rows("SHOW SESSION STATUS LIKE 'binlog_snapshot_%'").await?;
    let value = |name: &str| rows.iter().find(|row| text(row, 0).eq_ignore_ascii_case(name));
    let file = value("binlog_snapshot_file").map(|row| text(row, 1)).filter(|file| !file.is_empty());
    let offset = value("binlog_snapshot_position").and_then(|row| integer(row, 1));
    match (file, offset) {
        (Some(file), Some(offset)) => Ok(At::new(&file, offset.unsigned_abs())),
        _ => Err(Error::new(ErrorKind::Config, "the server does not say where in its log a snapshot is")
            .hint("is its log switched on (`log_bin`)?")),
    }
}

/// A set of transactions that MySQL keeps as a setting.
pub(super) async fn set(session: &mut Session, name: &str) -> Result<GtidSet> {
    let rows = session.rows(&format!("SELECT @@GLOBAL.{name}")).await?;
    let found = rows.first().and_then(|row| GtidSet::parse(&text(row, 0)));
    found.ok_or_else(|| {
        Error::new(
            ErrorKind::Unsupported,
            format!("the server's `{name}` is of a kind that is not known here"),
        )
        .hint("use another `change`, and report it with the server's version")
    })
}

/// Where the log ends now, and what is in it.
pub(super) struct End {
    pub(super) at: At,
    /// The databases that are logged only, and those that are not.
    pub(super) filters: [Vec<String>; 2],
}

/// Asks for the end of the log; `None`: there is none.
pub(super) async fn end(session: &mut Session) -> Result<Option<End>> {
    let renamed = !session.server().mariadb && session.server().version >= (8, 2);
    let rows = session.rows(if renamed { "SHOW BINARY LOG STATUS" } else { "SHOW MASTER STATUS" }).await?;
    Ok(rows.first().map(|row| {
        let offset = integer(row, 1).unwrap_or_default().unsigned_abs();
        let names =
            |at| text(row, at).split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        End { at: At::new(&text(row, 0), offset), filters: [names(2), names(3)] }
    }))
}

/// A new session with a server. Behind a name that moves, or a proxy, another one may answer than before: its
/// places are of another log.
pub(super) async fn connect_to(connection: &Connection, server: u32) -> Result<Session> {
    let mut session = connect(connection).await?;
    let rows = session.rows("SELECT @@GLOBAL.server_id").await?;
    if rows.first().and_then(|row| integer(row, 0)) == Some(i64::from(server)) {
        return Ok(session);
    }
    Err(Error::new(ErrorKind::Transient, "the connection leads to another server than a moment before")
        .hint("let it lead to one server: the next pass asks that one alone"))
}

/// As many sessions as can be had that see the database at the same moment, the first one among them.
pub(super) async fn several(
    connection: &Connection,
    server: u32,
    first: Session,
    count: usize,
) -> Result<(Vec<Session>, Moment)> {
    // Whether two snapshots of MySQL show the same cannot be known.
    let count = if first.server().mariadb { count } else { 1 };
    let mut sessions = vec![first];
    sessions.extend(try_join_all((1..count).map(|_| connect_to(connection, server))).await?);
    let mut moments = try_join_all(sessions.iter_mut().map(begin)).await?;
    for _ in 1..ATTEMPTS {
        if moments.iter().all(|moment| *moment == moments[0]) {
            break;
        }
        moments = try_join_all(sessions.iter_mut().map(begin)).await?;
    }
    let moment = moments[0].clone();
    let together = sessions.into_iter().zip(moments).filter(|(_, other)| *other == moment);
    Ok((together.map(|(session, _)| session).collect(), moment))
}
