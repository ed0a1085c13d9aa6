//! Sqlite as a source and as a target.

use super::Connector;

mod source;
mod target;

/// The line in `CONNECTORS`.
pub(super) const CONNECTOR: Connector =
    Connector { name: "sqlite", schemes: &["sqlite"], source: source::open, target: target::open };
