//! Places in the binlog, as the lake keeps them.
//!
//! A file and an offset mean something in one log only, and a log that was reset names its files anew. So
//! a place says when its file was begun, and by which server. Where another server goes on with the same
//! transactions, their numbers (GTIDs) are what both have in common.

use serde::{Deserialize, Serialize};

use crate::connectors::sql::Number;

/// How far the log was followed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct Place {
    /// MariaDB: where; everything before it is in the lake. MySQL: how far the log was read, which is
    /// farther than what the lake is sure to have; by it the log is known again.
    #[serde(flatten)]
    pub(super) at: At,
    /// The transactions that are in the lake: MariaDB's last one of each domain, MySQL's set. Older
    /// positions of MariaDB have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) gtids: Option<String>,
    /// When its file was begun, in seconds since 1970.
    pub(super) begun: u32,
    /// The server that wrote it.
    pub(super) server: u32,
    /// When the server was asked last, in seconds since 1970.
    pub(super) seen: Number,
    /// Whether a first read was interrupted, so that parts of it have seen more than others.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) parts: bool,
    /// Names and types of the table's columns.
    pub(super) columns: Vec<String>,
}

/// A file of the log and an offset in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct At {
    pub(super) file: String,
    pub(super) offset: Number,
}

impl At {
    pub(super) fn new(file: &str, offset: u64) -> Self {
        Self { file: file.to_owned(), offset: Number(i64::try_from(offset).unwrap_or(i64::MAX)) }
    }

    /// The offset in its file.
    pub(super) fn offset(&self) -> u64 {
        self.offset.0.unsigned_abs()
    }

    /// Whether it is at another place of the same log or behind it.
    pub(super) fn reaches(&self, other: &Self) -> bool {
        (number(&self.file), self.offset.0) >= (number(&other.file), other.offset.0)
    }

    /// Whether its file was begun after the other's.
    pub(super) fn is_in_later_file(&self, other: &Self) -> bool {
        number(&self.file) > number(&other.file)
    }
}

/// The files of a log are numbered: `binlog.000042`.
fn number(file: &str) -> u64 {
    file.rsplit('.').next().and_then(|digits| digits.parse().ok()).unwrap_or_default()
}

impl std::fmt::Display for At {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file, self.offset.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_in_order() {
        let at = At::new;
        assert!(at("binlog.000002", 4).reaches(&at("binlog.000001", 900)));
        assert!(at("binlog.1000000", 4).reaches(&at("binlog.999999", 900)));
        assert!(at("binlog.000002", 9).reaches(&at("binlog.000002", 9)));
        let (later, earlier) = (at("binlog.1000000", 4), at("binlog.999999", 900));
        assert!(later.is_in_later_file(&earlier) && !earlier.is_in_later_file(&later));
        assert!(!later.is_in_later_file(&later));
        assert!(!at("binlog.000002", 8).reaches(&at("binlog.000002", 9)));
    }
}
