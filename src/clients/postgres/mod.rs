//! The Postgres client: log-in as libpq does it, TLS, errors, and COPY rows in large blocks.

mod connect;
mod error;
mod params;
mod tap;
mod tls;

pub(crate) use connect::{Session, connect};
pub(crate) use error::{lost, translate};
pub(crate) use tap::Block;
