//! The client of MySQL and MariaDB: what a URL says, log-in, TLS, settings, errors.

mod connect;
mod error;
mod params;
mod session;

pub(crate) use connect::connect;
pub(crate) use error::number;
pub(crate) use session::{LogFrom, Server, Session, integer, literal, text};
