//! Changes are counted: those that a snapshot sees, and nobody has counted, become a batch.
//!
//! ```text
//! hold the line of the table ─▶ begin the snapshot ─▶ read changes ─▶ number them ─▶ note how far ─▶ let go
//! ```
//!
//! The snapshot and what is numbered are the same set, since nobody else numbers meanwhile. The number is
//! a time, so that it never comes again, also when a server lost what it had committed last.

use mysql_async::Row;
use mysql_async::prelude::Queryable;

use super::statements::Parts;
use crate::clients::mysql::{Session, integer, literal, text};
use crate::connectors::sql::{Changes, MYSQL};
use crate::delta::Op;
use crate::error::{Error, ErrorKind, Result};

use super::super::log::Key;

/// Changes that one statement numbers or removes. From a thousand on MariaDB makes a table of them first.
pub(super) const AT_ONCE: usize = 500;

/// Statements that change rows go by an index, or fail: one that went through the whole table would wait for
/// changes that are not committed.
pub(super) const BY_INDEX: &str = "SET SESSION sql_safe_updates = 1";
/// Ends that.
pub(super) const AS_EVER: &str = "SET SESSION sql_safe_updates = 0";

/// A session that holds the line of a table of changes.
pub(super) struct Counter {
    session: Session,
    /// The last batch.
    last: i64,
    /// The one that is made.
    next: i64,
    /// Whether it has any change.
    used: bool,
}

/// What was counted.
pub(super) struct Counted {
    /// Everything up to this batch is what the snapshot shows.
    pub(super) batch: i64,
    /// How many changes were read.
    pub(super) read: u64,
}

impl Counter {
    /// Waits until nobody else counts, and holds the line. A snapshot that begins after this is the one to
    /// count in.
    pub(super) async fn begin(mut session: Session, parts: &Parts<'_>) -> Result<Self> {
        session.run(BY_INDEX).await?;
        let format = session.rows("SHOW SESSION VARIABLES LIKE 'binlog_format'").await?;
        // Gaps between changes are for those to come. A log of statements cannot do without.
        if format.first().is_none_or(|row| text(row, 1) != "STATEMENT") {
            session.run("SET TRANSACTION ISOLATION LEVEL READ COMMITTED").await?;
        }
        session.run("START TRANSACTION").await?;
        let rows = session
            .rows(&format!(
                "SELECT batch, CAST(UNIX_TIMESTAMP(NOW(6)) * 1000000 AS SIGNED) FROM {} \
                 WHERE changes = '{}' FOR UPDATE",
                parts.tables(),
                parts.name()
            ))
            .await?;
        let line = rows.first().and_then(|row| Some((integer(row, 0)?, integer(row, 1)?)));
        let (last, now) = line.ok_or_else(|| {
            Error::new(ErrorKind::Transient, "the triggers were removed just now").hint("run `frazil setup`")
        })?;
        Ok(Self { session, last, next: now.max(last + 1), used: false })
    }

    /// Counts what the snapshot of `seen` shows, and collects the keys of all batches after one, if asked.
    pub(super) async fn count(
        &mut self,
        seen: &mut Session,
        parts: &Parts<'_>,
        mut wanted: Option<(i64, &Key, &mut Changes)>,
    ) -> Result<Counted> {
        let changes = MYSQL.table(&parts.changes());
        let list = |name: &str| {
            (1..=parts.key.len()).map(|place| format!(", {name}{place}")).collect::<Vec<_>>().concat()
        };
        let statement = match &wanted {
            None => format!("SELECT n, batch FROM {changes} WHERE batch = 0"),
            Some((after, ..)) => format!(
                "SELECT n, batch{}{} FROM {changes} WHERE batch = 0 OR batch > {after}",
                list("k"),
                list("o")
            ),
        };
        let (mut fresh, mut read, mut buffer) = (Vec::with_capacity(AT_ONCE), 0, Vec::new());
        seen.is_reading(true);
        let mut rows = seen.exec_iter(statement, ()).await.map_err(Error::from)?;
        while let Some(row) = rows.next().await? {
            read += 1;
            if let Some((_, key, changes)) = &mut wanted {
                collect(&row, key, parts.key.len(), &mut buffer, changes)?;
            }
            if integer(&row, 1) == Some(0) {
                fresh.push(text(&row, 0));
                if fresh.len() == AT_ONCE {
                    self.number(&changes, &mut fresh).await?;
                }
            }
        }
        drop(rows);
        seen.is_reading(false);
        self.number(&changes, &mut fresh).await?;
        Ok(Counted { batch: if self.used { self.next } else { self.last }, read })
    }

    async fn number(&mut self, changes: &str, fresh: &mut Vec<String>) -> Result<()> {
        if fresh.is_empty() {
            return Ok(());
        }
        let statement =
            format!("UPDATE {changes} SET batch = {} WHERE n IN ({})", self.next, fresh.join(", "));
        if self.session.run(&statement).await? != fresh.len() as u64 {
            return Err(Error::new(ErrorKind::Transient, "changes were removed while they were counted"));
        }
        self.used = true;
        fresh.clear();
        Ok(())
    }

    /// Notes how far a reader has come, and lets go. What it has not got in its lake is kept for it, unless it
    /// begins `anew`. Gives the session back.
    pub(super) async fn finish(
        mut self,
        parts: &Parts<'_>,
        reader: &str,
        counted: &Counted,
        anew: bool,
    ) -> Result<Session> {
        let name = parts.name();
        if self.used {
            let statement =
                format!("UPDATE {} SET batch = {} WHERE changes = '{name}'", parts.tables(), self.next);
            self.session.run(&statement).await?;
        }
        let batch = counted.batch;
        let from_here = if anew { "batch = VALUES(batch), " } else { "" };
        let statement = format!(
            "INSERT INTO {} (changes, reader, batch, taken, seen) \
             VALUES ('{name}', {}, {batch}, {batch}, UTC_TIMESTAMP()) ON DUPLICATE KEY UPDATE \
             {from_here}taken = VALUES(taken), seen = VALUES(seen)",
            parts.readers(),
            literal(reader)
        );
        self.session.run(&statement).await?;
        self.session.run("COMMIT").await?;
        self.session.run(AS_EVER).await?;
        Ok(self.session)
    }
}

/// Collects the keys of a change: the one after it, and the one before it where there is one.
fn collect(row: &Row, key: &Key, width: usize, buffer: &mut Vec<u8>, changes: &mut Changes) -> Result<()> {
    for from in [2, 2 + width] {
        if key.side_by_side(row, from, buffer)? {
            changes.add(Op::Upsert, buffer, &[])?;
        }
    }
    Ok(())
}
