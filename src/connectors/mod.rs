//! The databases. Each is one folder here and one line in [`CONNECTORS`].

mod limited;
pub mod mssql;
pub mod mysql;
pub mod postgres;
pub mod sql;
pub mod sqlite;

use std::sync::Arc;

use self::sql::Dialect;
use crate::connection::Connection;
use crate::error::{Error, ErrorKind, Result};
use crate::source::Source;
use crate::target::Target;

/// What a database can be to us.
#[derive(Debug)]
pub struct Connector {
    /// Its name in messages and documents.
    pub name: &'static str,
    /// The URL schemes that mean it.
    pub schemes: &'static [&'static str],
    /// How its SQL is written.
    pub dialect: &'static Dialect,
    /// Makes a source; connects when first used.
    pub source: fn(&Connection) -> Result<Arc<dyn Source>>,
    /// Makes a target; connects when first used.
    pub target: fn(&Connection) -> Result<Arc<dyn Target>>,
}

/// All of them.
pub const CONNECTORS: &[Connector] =
    &[postgres::CONNECTOR, sqlite::CONNECTOR, mssql::CONNECTOR, mysql::CONNECTOR];

/// The source behind a connection, to be read within its limits.
pub fn source(connection: &Connection) -> Result<Arc<dyn Source>> {
    let source = (connector(connection)?.source)(connection)?;
    Ok(match connection.limiter() {
        Some(limiter) => limited::limited(source, limiter.clone()),
        None => source,
    })
}

/// The target behind a connection.
pub fn target(connection: &Connection) -> Result<Arc<dyn Target>> {
    (connector(connection)?.target)(connection)
}

/// The connector for a connection's scheme, or an error that names all schemes.
pub fn connector(connection: &Connection) -> Result<&'static Connector> {
    let scheme = connection.scheme();
    CONNECTORS.iter().find(|connector| connector.schemes.contains(&scheme)).ok_or_else(|| {
        let known: Vec<_> = CONNECTORS.iter().flat_map(|connector| connector.schemes).copied().collect();
        Error::new(ErrorKind::Config, format!("no connector for `{scheme}://`"))
            .with("connection", connection.name())
            .hint(format!("this build knows {}", known.join(", ")))
    })
}
