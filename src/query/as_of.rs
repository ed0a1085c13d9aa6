//! Which moment of the past: a snapshot's id, a time, the name of a tag or branch, or snapshots that belong together.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime, Utc};
use uuid::Uuid;

use crate::delta::SnapshotId;
use crate::error::{Error, ErrorKind, Result};
use crate::lake::{DEFAULT_NAMESPACE, LakeTable, SnapshotInfo, is_ref_name};
use crate::table::TableId;

/// A moment of a table's past.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AsOf {
    /// This snapshot.
    Snapshot(SnapshotId),
    /// What readers saw at this time.
    Timestamp(DateTime<Utc>),
    /// What a tag or branch stands for.
    Ref(String),
    /// The snapshots of some tables that show them together as they were.
    Together(Arc<Together>),
}

/// Snapshots that belong together.
#[derive(Debug, PartialEq, Eq)]
pub struct Together {
    /// What they are, for messages.
    pub name: String,
    /// The snapshot of each table, and the UUID of the table that it is of.
    pub tables: Vec<(TableId, Uuid, SnapshotId)>,
}

impl Together {
    fn resolve(&self, table: &LakeTable) -> Result<SnapshotId> {
        let place = |id: &TableId| (id.schema_or(DEFAULT_NAMESPACE).to_owned(), id.name.clone());
        let own = place(table.id());
        let found = self.tables.iter().find(|(id, ..)| place(id) == own);
        let names: Vec<String> = self.tables.iter().map(|(id, ..)| id.to_string()).collect();
        let (_, uuid, snapshot) = found.ok_or_else(|| {
            Error::new(ErrorKind::Config, format!("the table is not part of {}", self.name))
                .with("table", table.id())
                .hint(format!(
                    "that has {}; say of others when they are meant: `{} version as of …`",
                    names.join(", "),
                    table.id()
                ))
        })?;
        let known = |it: &SnapshotInfo| it.id == *snapshot;
        if *uuid != table.uuid() || !table.snapshots().iter().any(known) {
            let message = format!("the table does not have its snapshot of {} any more", self.name);
            return Err(Error::new(ErrorKind::Config, message)
                .with("table", table.id())
                .with("snapshot", snapshot)
                .hint("it was made anew, or somebody took its tag away: take a newer checkpoint"));
        }
        Ok(*snapshot)
    }
}

impl AsOf {
    /// The snapshot that is meant.
    pub fn resolve(&self, table: &LakeTable) -> Result<SnapshotId> {
        let snapshots = table.snapshots();
        match self {
            Self::Snapshot(id) if snapshots.iter().any(|snapshot| snapshot.id == *id) => Ok(*id),
            Self::Together(together) => together.resolve(table),
            Self::Ref(name) => table.named(name).ok_or_else(|| table.no_ref(name)),
            Self::Snapshot(id) => Err(Error::new(ErrorKind::Config, "the table has no such snapshot")
                .with("table", table.id())
                .with("snapshot", id)
                .hint(match snapshots.first() {
                    Some(newest) => {
                        format!("the newest is {}; `frazil snapshots {}` lists all", newest.id, table.id())
                    }
                    None => "the table has no snapshot yet".to_owned(),
                })),
            Self::Timestamp(moment) => table.snapshot_at(*moment).ok_or_else(|| {
                Error::new(ErrorKind::Config, "the table had no rows to read at that time")
                    .with("table", table.id())
                    .with("time", moment.to_rfc3339())
                    .hint(match snapshots.last() {
                        Some(oldest) => {
                            format!("its oldest snapshot is of {}", oldest.committed_at.to_rfc3339())
                        }
                        None => "the table has no snapshot yet".to_owned(),
                    })
            }),
        }
    }
}

/// A number is a snapshot's id. A time without an offset is UTC; a date is its first moment. What can
/// be neither is a name.
impl FromStr for AsOf {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        if let Ok(id) = text.parse() {
            return Ok(Self::Snapshot(SnapshotId(id)));
        }
        let with_offset = || {
            let parsed =
                DateTime::parse_from_rfc3339(text).or_else(|_| DateTime::parse_from_str(text, "%F %T%.f%#z"));
            parsed.map(|moment| moment.to_utc()).ok()
        };
        let without = || {
            let parsed = ["%FT%T%.f", "%F %T%.f", "%FT%H:%M", "%F %H:%M"]
                .iter()
                .find_map(|format| NaiveDateTime::parse_from_str(text, format).ok());
            parsed.map(|moment| moment.and_utc())
        };
        let date = || Some(NaiveDate::parse_from_str(text, "%F").ok()?.and_time(NaiveTime::MIN).and_utc());
        let name = || is_ref_name(text).then(|| Self::Ref(text.to_owned()));
        let moment = with_offset().or_else(without).or_else(date).map(Self::Timestamp);
        moment.or_else(name).ok_or_else(|| {
            Error::new(ErrorKind::Config, format!("`{text}` is neither a snapshot id nor a time nor a name"))
                .hint("write a number from `frazil snapshots`, a time like `2026-08-21T12:00:00Z`, or a tag")
        })
    }
}

impl fmt::Display for AsOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Snapshot(id) => id.fmt(f),
            Self::Ref(name) => f.write_str(name),
            Self::Together(together) => f.write_str(&together.name),
            Self::Timestamp(moment) => f.write_str(&moment.to_rfc3339()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_said_in_many_ways() {
        let check = |text: &str, expected: &str| {
            let parsed =
                text.parse::<AsOf>().map_or_else(|error| error.to_string(), |as_of| as_of.to_string());
            assert_eq!(parsed, expected, "{text}");
        };
        check("42", "42");
        check("2026-08-21", "2026-08-21T00:00:00+00:00");
        check("2026-08-21 12:30", "2026-08-21T12:30:00+00:00");
        check("2026-08-21 12:30:01.5", "2026-08-21T12:30:01.500+00:00");
        check("2026-08-21T12:30:01Z", "2026-08-21T12:30:01+00:00");
        check("2026-08-21T12:30:01+02:00", "2026-08-21T10:30:01+00:00");
        check("2026-08-21 12:30:01+02", "2026-08-21T10:30:01+00:00");
        check("q3-audited", "q3-audited");
        check("7 days", "`7 days` is neither a snapshot id nor a time nor a name");
        check("2026-13-01", "`2026-13-01` is neither a snapshot id nor a time nor a name");
    }
}
