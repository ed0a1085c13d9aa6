//! Postgres as a source.

use std::sync::Arc;

use crate::connection::Connection;
use crate::error::{Error, ErrorKind, Result};
use crate::source::Source;

/// A source that connects when first used.
pub(super) fn open(connection: &Connection) -> Result<Arc<dyn Source>> {
    Err(Error::new(ErrorKind::Unsupported, "not built yet").with("connection", connection.name()))
}
