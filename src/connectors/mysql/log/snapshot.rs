//! Snapshots of the database, and where in the log they are.
//!
//! MariaDB takes a consistent snapshot between two commits, and says between which. Sessions cannot share
//! one; but two that were taken at the same place of the log show the same.

use futures::future::try_join_all;

use super::place::At;
use crate::clients::mysql::{Session, connect, integer, text};
use crate::connection::Connection;
use crate::error::{Error, ErrorKind, Result};

/// How often sessions are begun together before fewer do: a commit comes between them on a busy server.
const ATTEMPTS: usize = 8;

/// Begins a transaction that sees the database at one moment, and says which.
pub(super) async fn begin(session: &mut Session) -> Result<At> {
    session.run("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY").await?;
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

/// As many sessions as can be had that see the database at the same moment, the first one among them.
pub(super) async fn several(
    connection: &Connection,
    first: Session,
    count: usize,
) -> Result<(Vec<Session>, At)> {
    let mut sessions = vec![first];
    sessions.extend(try_join_all((1..count).map(|_| connect(connection))).await?);
    let mut places = try_join_all(sessions.iter_mut().map(begin)).await?;
    for _ in 1..ATTEMPTS {
        if places.iter().all(|at| *at == places[0]) {
            break;
        }
        places = try_join_all(sessions.iter_mut().map(begin)).await?;
    }
    let at = places[0].clone();
    let together = sessions.into_iter().zip(places).filter(|(_, place)| *place == at);
    Ok((together.map(|(session, _)| session).collect(), at))
}
