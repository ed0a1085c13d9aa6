//! Postgres as a target.

use std::sync::Arc;

use crate::connection::Connection;
use crate::error::{Error, ErrorKind, Result};
use crate::target::Target;

/// A target that connects when first used.
pub(super) fn open(connection: &Connection) -> Result<Arc<dyn Target>> {
    Err(Error::new(ErrorKind::Unsupported, "not built yet").with("connection", connection.name()))
}
