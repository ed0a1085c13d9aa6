//! Postgres as a source and as a target.

use super::Connector;

mod connect;
mod error;
mod params;
mod source;
mod tap;
mod target;
mod tls;

/// The line in `CONNECTORS`.
pub(super) const CONNECTOR: Connector = Connector {
    name: "postgres",
    schemes: &["postgres", "postgresql"],
    source: source::open,
    target: target::open,
};
