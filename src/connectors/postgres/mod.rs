//! Postgres as a source and as a target.

use super::Connector;
use super::sql::POSTGRES;

mod beside;
mod catalog;
mod choose;
mod codec;
mod column;
mod control;
pub mod decode;
mod discover;
mod encode;
mod estimate;
mod horizon;
mod keyset;
mod load;
mod log;
mod nested;
mod numeric;
mod position;
mod preflight;
mod prepare;
mod read;
mod refused;
mod rows;
mod shape;
mod source;
mod statements;
mod target;
mod triggers;
mod types;
mod wanted;
mod way;
mod window;

/// The line in `CONNECTORS`.
pub(super) const CONNECTOR: Connector = Connector {
    name: "postgres",
    schemes: &["postgres", "postgresql"],
    dialect: &POSTGRES,
    source: source::open,
    target: target::open,
};
