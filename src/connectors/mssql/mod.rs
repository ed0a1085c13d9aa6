//! SQL Server as a source.

use std::sync::Arc;

use super::Connector;
use crate::connection::Connection;
use crate::error::{Error, ErrorKind, Result};
use crate::target::Target;

mod choose;
mod codec;
mod column;
pub mod decode;
mod discover;
mod horizon;
mod keyset;
mod position;
mod read;
mod rows;
mod source;
#[cfg(test)]
mod testing;
mod tracking;
mod types;
mod wanted;
mod window;

/// The line in `CONNECTORS`.
pub(super) const CONNECTOR: Connector =
    Connector { name: "mssql", schemes: &["mssql", "sqlserver"], source: source::open, target: no_target };

fn no_target(connection: &Connection) -> Result<Arc<dyn Target>> {
    Err(Error::new(ErrorKind::Unsupported, "SQL Server is a source in this build, not yet a target")
        .with("connection", connection.name()))
}
