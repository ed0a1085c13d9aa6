//! The words in which changes travel: operations, positions, snapshots.

use std::fmt;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What happened to a row. The discriminants are the values of the `_op` column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i8)]
pub enum Op {
    /// The row holds the newest state of its key.
    Upsert = 0,
    /// The key is gone; only the key columns of the row mean anything.
    Delete = 1,
}

/// A position in a source, opaque to the engine: the connector that wrote it reads it back at full
/// precision. Kept in the lake, in the commit that holds the rows it covers.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Watermark(String);

impl Watermark {
    /// Wraps what a connector wrote: JSON, by convention.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// What the connector wrote.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Watermark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The id of an Iceberg snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct SnapshotId(pub i64);

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A place in the log of a source: every transaction was committed before it or after it. Opaque to the engine,
/// which only asks whether two are the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogPlace {
    /// Whose log, where the source can tell.
    pub server: Option<String>,
    /// Where in it, as the source writes it.
    pub at: String,
    /// When the source was asked, by its own clock.
    pub time: DateTime<Utc>,
}

impl fmt::Display for LogPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.at)
    }
}
