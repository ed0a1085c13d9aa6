//! How database servers and files are reached, for whoever needs one: connectors and the SQL catalog.
//!
//! Each client turns foreign errors into ours in one function, and shows no password.

pub(crate) mod mssql;
pub(crate) mod postgres;
pub(crate) mod sqlite;
pub(crate) mod text;
