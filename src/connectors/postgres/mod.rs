//! Postgres as a source and as a target.

use super::Connector;

mod catalog;
mod connect;
mod control;
mod encode;
mod error;
mod load;
mod params;
mod preflight;
mod prepare;
mod shape;
mod source;
mod statements;
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
