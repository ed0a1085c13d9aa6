//! Change Data Capture: every change as the transaction log had it, from a change table of the server.
//!
//! ```text
//! transaction log ─▶ capture job ─▶ cdc.<instance>_CT ─▶ (position, newest captured] ─▶ one change a key
//! ```
//!
//! The job works behind the transactions: up to the newest position that it has captured the changes are
//! complete, whatever is still open. What it has cleaned away, or what no instance covers, cannot be gone
//! on from: then the table is read whole, and compared.
//!
//! A table has at most two instances, each with the columns of its own time. The newest that has all
//! wanted columns *and* reaches back to the position is read; so the older one is read to where the newer
//! begins, and a column that only the newer has is never read from before it was captured.
//!
//! The change tables are read themselves. The server's functions do not show `__$command_id`, which is the
//! documented order within a transaction, and answer a position that was cleaned away with "an
//! insufficient number of arguments".

use std::fmt;

use serde::{Deserialize, Serialize};

use super::column::instant;
use super::discover::{Relation, text};
use super::position::Ticks;
use super::tracking::Selected;
use crate::clients::mssql::{Session, number as error_number};
use crate::connectors::sql::MSSQL;
use crate::error::{Error, ErrorKind, Result};

/// A database in which nothing happens is said to be captured every five minutes; what is this many
/// seconds behind the clock has a job that does not run, or one that cannot follow.
const BEHIND: i64 = 900;
const TICKS_A_SECOND: i64 = 10_000_000;

/// A position in the transaction log: ten bytes, as a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct Lsn(pub(super) u128);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{:020X}", self.0)
    }
}

impl From<Lsn> for String {
    fn from(lsn: Lsn) -> Self {
        lsn.to_string()
    }
}

impl TryFrom<String> for Lsn {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        u128::from_str_radix(text.trim_start_matches("0x"), 16).map(Self)
    }
}

impl Lsn {
    /// The last position before this one.
    pub(super) fn before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

/// A change table, and what it captures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Instance {
    pub(super) name: String,
    /// Its table in the schema `cdc`.
    pub(super) table: String,
    /// The first position that it still has; `None` until the job has come to it.
    pub(super) start: Option<Lsn>,
    pub(super) columns: Vec<String>,
}

impl Instance {
    pub(super) fn covers(&self, columns: &[&str]) -> bool {
        columns.iter().all(|wanted| self.columns.iter().any(|column| column == wanted))
    }

    /// Whether it has everything that happened after a position.
    fn reaches(&self, after: Lsn) -> bool {
        self.start.is_some_and(|start| start.before() <= after)
    }

    fn quoted(&self) -> String {
        format!("[cdc].{}", MSSQL.ident(&self.table))
    }
}

/// The instance to read from: the newest that has the columns and everything after the position.
/// `instances` begin with the newest.
pub(super) fn pick<'a>(
    instances: &'a [Instance],
    columns: &[&str],
    after: Option<Lsn>,
) -> Option<&'a Instance> {
    instances
        .iter()
        .filter(|instance| instance.covers(columns))
        .find(|instance| after.map_or(instance.start.is_some(), |after| instance.reaches(after)))
}

/// The instances of a table, the newest first; none where the user may not see them.
pub(super) async fn instances(session: &mut Session, object: i32) -> Result<Vec<Instance>> {
    let sql = format!(
        "SELECT ct.capture_instance, OBJECT_NAME(ct.object_id) AS change_table, \
         CONVERT(varchar(22), ct.start_lsn, 1) AS start_lsn, cc.column_name \
         FROM cdc.change_tables AS ct INNER JOIN cdc.captured_columns AS cc ON cc.object_id = ct.object_id \
         WHERE ct.source_object_id = {object} ORDER BY ct.create_date DESC, ct.object_id DESC, cc.column_ordinal"
    );
    let rows = match session.rows(&sql).await {
        Ok(rows) => rows,
        Err(error) if error.kind() == ErrorKind::Permission || error_number(&error) == Some(208) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(error),
    };
    let mut instances: Vec<Instance> = Vec::new();
    for row in &rows {
        let name = text(row, 0);
        if instances.last().is_none_or(|last| last.name != name) {
            let start = Some(text(row, 2)).filter(|start| !start.is_empty());
            let start = start.and_then(|start| Lsn::try_from(start).ok());
            instances.push(Instance { name, table: text(row, 1), start, columns: Vec::new() });
        }
        if let Some(instance) = instances.last_mut() {
            instance.columns.push(text(row, 3));
        }
    }
    Ok(instances)
}

/// How far the capture job has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Captured {
    pub(super) newest: Lsn,
    /// When the newest was committed, and now, both by the server's local clock.
    pub(super) at: Ticks,
    pub(super) now: Ticks,
}

const CAPTURED: &str = "SELECT CONVERT(varchar(22), sys.fn_cdc_get_max_lsn(), 1) AS newest, \
     sys.fn_cdc_map_lsn_to_time(sys.fn_cdc_get_max_lsn()) AS captured_at, GETDATE() AS now";

/// What a stopped job needs.
const START: &str = "look whether SQL Server Agent runs and what `EXEC sys.sp_cdc_help_jobs` and `sys.dm_cdc_errors` say, then `EXEC sys.sp_cdc_start_job N'capture'`";

/// Asks how far the capture job has come.
pub(super) async fn captured(session: &mut Session) -> Result<Captured> {
    let rows = session.rows(CAPTURED).await?;
    let moment = |at: usize| {
        let cell = rows.first()?.get_column_data(at).ok()?;
        instant(cell).ok().map(Ticks)
    };
    let newest = rows.first().map(|row| text(row, 0)).and_then(|newest| Lsn::try_from(newest).ok());
    match (newest, moment(1), moment(2)) {
        (Some(newest), Some(at), Some(now)) => Ok(Captured { newest, at, now }),
        _ => {
            Err(Error::new(ErrorKind::Transient, "the capture job has not captured anything yet").hint(START))
        }
    }
}

impl Captured {
    /// Seconds since 1970 by the server's clock.
    pub(super) fn seconds(self) -> i64 {
        self.now.0 / TICKS_A_SECOND
    }

    /// What is wrong with the capture job, and what to do; `None` when it follows.
    pub(super) fn stopped(self) -> Option<(String, &'static str)> {
        let behind = (self.now.0 - self.at.0) / TICKS_A_SECOND;
        (behind > BEHIND).then(|| {
            let minutes = behind / 60;
            let message = format!(
                "the capture job is {minutes} minutes behind: it stopped, or cannot follow; nothing is lost, and nothing newer can be read"
            );
            (message, START)
        })
    }
}

/// The statement that reads the changes in `(after, to]`, one a key: the last that happened to it.
///
/// An update of a key is there as the row that it was (3) and the row that it is (4), or as a delete (1)
/// and an insert (2): what it was is gone, unless something came after.
pub(super) fn changes(
    instance: &Instance,
    relation: &Relation,
    columns: &[Selected<'_>],
    after: Lsn,
    to: Lsn,
) -> String {
    let list: Vec<String> =
        columns.iter().map(|(name, select)| select(&format!("c.{}", MSSQL.ident(name)))).collect();
    let key: Vec<String> =
        relation.primary_key().unwrap_or_default().iter().map(|name| relation.exact("", name)).collect();
    format!(
        "SELECT {}, CASE WHEN c.[__$operation] IN (1, 3) THEN 1 ELSE 0 END FROM (SELECT *, ROW_NUMBER() OVER \
         (PARTITION BY {} ORDER BY [__$start_lsn] DESC, [__$command_id] DESC, [__$seqval] DESC, [__$operation] DESC) \
         AS [frazil newest] FROM {} WHERE [__$start_lsn] > {after} AND [__$start_lsn] <= {to}) AS c \
         WHERE c.[frazil newest] = 1",
        list.join(", "),
        key.join(", "),
        instance.quoted(),
    )
}

/// Whether anything was captured in `(after, to]`.
pub(super) async fn any(session: &mut Session, instance: &Instance, after: Lsn, to: Lsn) -> Result<bool> {
    let sql = format!(
        "SELECT TOP (1) 1 FROM {} WHERE [__$start_lsn] > {after} AND [__$start_lsn] <= {to}",
        instance.quoted()
    );
    Ok(!session.rows(&sql).await?.is_empty())
}

#[cfg(test)]
mod tests;
