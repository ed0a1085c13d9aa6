//! SQLite as a source and as a target.
//!
//! ```text
//! source   describe ─▶ plan (cursor, window) ─▶ horizon ─▶ one read transaction ─▶ batches
//! target   declare  ─▶ one write transaction: control row, rows, control row
//! ```
//!
//! SQLite is a library that blocks. Every database is used by one thread at a time; rows cross to
//! the async world in batches, through channels with room for a few.

mod beside;
mod decode;
mod describe;
mod encode;
mod horizon;
mod plan;
mod read;
mod shape;
mod source;
mod target;
mod triggers;
mod types;
mod value;
mod window;
mod write;

use super::Connector;
use super::sql::SQLITE;

/// The line in `CONNECTORS`.
pub(super) const CONNECTOR: Connector = Connector {
    name: "sqlite",
    schemes: &["sqlite"],
    dialect: &SQLITE,
    source: source::open,
    target: target::open,
};
