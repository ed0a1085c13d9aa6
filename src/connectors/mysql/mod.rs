//! MySQL and MariaDB, as a source and as a target.

use super::Connector;
use super::sql::MYSQL;

mod beside;
mod choose;
mod codec;
mod column;
mod control;
mod decode;
mod discover;
mod encode;
mod horizon;
mod keyset;
mod kind;
mod load;
mod log;
mod position;
mod preflight;
mod prepare;
mod read;
mod refused;
mod rows;
mod shape;
mod source;
mod stage;
mod statements;
mod target;
mod triggers;
mod types;
mod window;

/// The line in `CONNECTORS`.
pub(super) const CONNECTOR: Connector = Connector {
    name: "mysql",
    schemes: &["mysql", "mariadb"],
    dialect: &MYSQL,
    source: source::open,
    target: target::open,
};
