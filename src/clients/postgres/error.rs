//! The one place where errors of the Postgres client become ours.
//!
//! The class of the SQLSTATE decides what a caller can do. The server's DETAIL is never kept: it
//! holds row values. Messages of class 22 and 23 quote values too, so they are replaced.

use std::error::Error as _;
use std::io;

use tokio_postgres::error::DbError;

use crate::clients::first_lower;
use crate::error::{Error, ErrorKind};

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        translate(&error)
    }
}

/// Says what a caller can do about a client error, without secrets and row values.
pub(crate) fn translate(error: &tokio_postgres::Error) -> Error {
    if let Some(db) = error.as_db_error() {
        return from_server(db);
    }
    if error.is_closed() {
        return lost("the server closed the connection");
    }
    if let Some(source) = error.source() {
        if let Some(io) = source.downcast_ref::<io::Error>() {
            return from_io(io);
        }
        // The client has no kind of its own for these, only texts.
        let text = source.to_string();
        if text.contains("password missing") {
            return Error::new(ErrorKind::Permission, "the server asks for a password and none was given")
                .hint("put it into the URL (`${PASSWORD}`), or set PGPASSWORD, or use a password file");
        }
        return Error::new(ErrorKind::Internal, format!("{error}: {text}"));
    }
    Error::new(ErrorKind::Internal, error.to_string())
}

/// The connection was lost: a pass that is repeated goes on from the last commit.
pub(crate) fn lost(message: &str) -> Error {
    Error::new(ErrorKind::Transient, message).hint("the next pass goes on from the last commit")
}

/// An error below the protocol: the network, or the TLS handshake.
pub(crate) fn from_io(error: &io::Error) -> Error {
    if let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        return from_tls(tls);
    }
    match error.kind() {
        io::ErrorKind::NotFound => Error::new(ErrorKind::Transient, "no server listens on the socket")
            .hint("is the server running, and is `host` the directory of its socket?"),
        io::ErrorKind::PermissionDenied => {
            Error::new(ErrorKind::Permission, "the operating system does not allow to connect")
        }
        io::ErrorKind::ConnectionRefused => {
            Error::new(ErrorKind::Transient, "the server refused the connection")
                .hint("is the server running, and is the port right?")
        }
        io::ErrorKind::TimedOut => Error::new(ErrorKind::Transient, "the server did not answer in time")
            .hint("raise `connect_timeout`, or look for a firewall between here and there"),
        _ => lost(&format!("the connection was lost: {error}")),
    }
}

fn from_tls(error: &rustls::Error) -> Error {
    use rustls::{AlertDescription, Error as Tls};
    match error {
        Tls::InvalidCertificate(why) => {
            Error::new(ErrorKind::Config, format!("the server's certificate is not accepted: {why}"))
                .hint("give the authority's certificate as `sslrootcert=/path/to/ca.pem`; `verify-ca` leaves the host name out, `require` all of it")
        }
        Tls::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::HandshakeFailure,
        ) => Error::new(ErrorKind::Permission, format!("the server refused our certificate: {error}"))
            .hint("give it as `sslcert=/path/client.crt&sslkey=/path/client.key`"),
        _ => Error::new(ErrorKind::Transient, format!("the TLS session failed: {error}")),
    }
}

fn from_server(error: &DbError) -> Error {
    let code = error.code().code();
    let kind = kind(code);
    let message = match &code[..2] {
        "22" => "the server could not convert a value".to_owned(),
        "23" => "a row breaks a constraint".to_owned(),
        _ => first_lower(error.message()),
    };
    let mut ours = Error::new(kind, message).with("sqlstate", code);
    if let Some(table) = error.table() {
        ours = ours.with("table", table);
    }
    if let Some(column) = error.column() {
        ours = ours.with("column", column);
    }
    if let Some(constraint) = error.constraint() {
        ours = ours.with("constraint", constraint);
    }
    match hint(code, error) {
        Some(hint) => ours.hint(hint),
        None => ours,
    }
}

/// What a caller can do, by SQLSTATE.
fn kind(code: &str) -> ErrorKind {
    match code {
        "42501" => ErrorKind::Permission,
        "57014" | "55P03" | "55006" | "72000" | "25P03" => ErrorKind::Transient,
        "25006" | "55000" => ErrorKind::Config,
        "XX001" | "XX002" => ErrorKind::Corrupt,
        _ => match &code[..2] {
            "28" => ErrorKind::Permission,
            "08" | "40" | "53" | "57" | "58" => ErrorKind::Transient,
            "3D" | "3F" | "42" => ErrorKind::Config,
            // P0: a trigger's own word.
            "22" | "23" | "44" | "P0" => ErrorKind::Data,
            "0A" => ErrorKind::Unsupported,
            _ => ErrorKind::Internal,
        },
    }
}

fn hint(code: &str, error: &DbError) -> Option<String> {
    Some(match code {
        "42501" => grant(error.message())?,
        "28P01" => "check user and password of the connection".to_owned(),
        "28000" => {
            "the server's pg_hba.conf does not let this user in from here; check user, database and `sslmode`"
                .to_owned()
        }
        "3D000" => "check the database name at the end of the URL".to_owned(),
        "53300" => {
            "the server has no connection left: lower `parallel`, or raise its `max_connections`".to_owned()
        }
        "25006" => "this server is read-only; connect to the primary".to_owned(),
        "57014" => "a time limit, an administrator or a replica's recovery stopped the statement".to_owned(),
        _ => return None,
    })
}

/// The right to ask for, from `permission denied for <kind> <name>`. The server says it in its own
/// language; where that is not English there is no hint.
fn grant(message: &str) -> Option<String> {
    let object = message.strip_prefix("permission denied for ")?;
    let (kind, name) = object.split_once(' ')?;
    Some(match kind {
        "table" | "view" | "relation" => {
            format!("run `GRANT SELECT ON {name} TO <user>` (a target needs INSERT, UPDATE, DELETE too)")
        }
        "schema" => format!("run `GRANT USAGE ON SCHEMA {name} TO <user>` (a target needs CREATE too)"),
        "database" => format!("run `GRANT CONNECT, TEMPORARY ON DATABASE {name} TO <user>`"),
        "sequence" => format!("run `GRANT USAGE ON SEQUENCE {name} TO <user>`"),
        "function" => format!("run `GRANT EXECUTE ON FUNCTION {name} TO <user>`"),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlstates_say_what_to_do() {
        for (code, expected) in [
            ("28P01", ErrorKind::Permission),
            ("42501", ErrorKind::Permission),
            ("3D000", ErrorKind::Config),
            ("42P01", ErrorKind::Config),
            ("42703", ErrorKind::Config),
            ("57P01", ErrorKind::Transient),
            ("08006", ErrorKind::Transient),
            ("40001", ErrorKind::Transient),
            ("53300", ErrorKind::Transient),
            ("22P02", ErrorKind::Data),
            ("XX000", ErrorKind::Internal),
        ] {
            assert_eq!(kind(code), expected, "{code}");
        }
    }

    #[test]
    fn a_missing_right_is_named() {
        assert!(grant("permission denied for table orders").unwrap().contains("GRANT SELECT ON orders"));
        assert!(grant("permission denied for schema shop").unwrap().contains("GRANT USAGE ON SCHEMA shop"));
        assert_eq!(grant("keine Berechtigung"), None);
    }
}
