//! frazil: rows out of operational databases, into Iceberg snapshots, and on into warehouse tables.
//!
//! Data goes one way: source → delta → lake → merge → target. Start reading at [`sync`]; the map is
//! in `docs/architecture.md`.

pub mod backoff;
pub mod cli;
mod clients;
pub mod compare;
pub mod config;
pub mod connection;
pub mod connectors;
pub mod control;
pub mod delta;
pub mod error;
pub mod faults;
pub mod history;
pub mod http;
pub mod journal;
pub mod lake;
pub mod maintain;
pub mod memory;
pub mod merge;
pub mod query;
pub mod schedule;
pub mod selftest;
pub mod source;
pub mod sync;
pub mod table;
pub mod target;
pub mod workers;

pub use error::{Error, ErrorKind, Result};
