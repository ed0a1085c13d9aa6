//! SQL Server and Azure SQL, as a source and as a target.

use super::Connector;
use super::sql::MSSQL;

mod arrange;
mod beside;
mod capture;
mod choose;
mod codec;
mod column;
mod control;
pub mod decode;
mod discover;
pub mod encode;
mod horizon;
mod keyset;
mod kind;
mod load;
mod position;
mod preflight;
mod prepare;
mod read;
mod refused;
mod relation;
mod rows;
mod shape;
mod source;
mod stage;
mod statements;
mod target;
mod temporal;
#[cfg(test)]
mod testing;
mod tracking;
mod types;
mod wanted;
mod window;

/// The line in `CONNECTORS`.
pub(super) const CONNECTOR: Connector = Connector {
    name: "mssql",
    schemes: &["mssql", "sqlserver"],
    dialect: &MSSQL,
    source: source::open,
    target: target::open,
};
