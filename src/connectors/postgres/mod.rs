//! Postgres as a source and as a target.

use super::Connector;

mod source;
mod target;

/// The line in `CONNECTORS`.
pub(super) const CONNECTOR: Connector = Connector {
    name: "postgres",
    schemes: &["postgres", "postgresql"],
    source: source::open,
    target: target::open,
};
