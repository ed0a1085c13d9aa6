//! The one place where errors of the MySQL client become ours.
//!
//! The server's number decides what a caller can do. Its texts are kept only where they are known to hold
//! names and nothing else: others quote keys and values ("Duplicate entry '…' for key").

use std::io;

use mysql_async::{DriverError, Error as ClientError, IoError, LocalInfileError, ServerError, TlsError};

use crate::clients::first_lower;
use crate::error::{Error, ErrorKind};

/// The key under which an [`Error`] keeps the server's number.
const NUMBER: &str = "number";

impl From<ClientError> for Error {
    fn from(error: ClientError) -> Self {
        translate(&error)
    }
}

/// The server's number of an error that came from it.
pub(crate) fn number(error: &Error) -> Option<u16> {
    error.context().iter().find(|(key, _)| *key == NUMBER)?.1.parse().ok()
}

/// The connection was lost: a pass that is repeated goes on from the last commit.
pub(super) fn lost(message: &str) -> Error {
    Error::new(ErrorKind::Transient, message).hint("the next pass goes on from the last commit")
}

/// Says what a caller can do about a client error, without secrets and row values.
pub(super) fn translate(error: &ClientError) -> Error {
    match error {
        ClientError::Server(error) => from_server(error),
        ClientError::Io(IoError::Io(error)) => from_io(error),
        ClientError::Io(IoError::Tls(error)) => from_tls(error),
        ClientError::Driver(error) => from_driver(error),
        ClientError::Url(error) => Error::new(ErrorKind::Config, error.to_string()),
        ClientError::Other(_) => Error::new(ErrorKind::Internal, "the client failed in its own way"),
    }
}

fn from_driver(error: &DriverError) -> Error {
    match error {
        DriverError::ConnectionClosed => lost("the server closed the connection"),
        DriverError::NoClientSslFlagFromServer => {
            Error::new(ErrorKind::Config, "the server does not speak TLS")
                .hint("switch it on in its configuration, or use `ssl-mode=preferred`")
        }
        DriverError::UnknownAuthPlugin { name } => {
            Error::new(ErrorKind::Unsupported, format!("the log-in method `{name}` is not known here"))
                .hint("give the user `mysql_native_password` or `caching_sha2_password`")
        }
        DriverError::MysqlOldPasswordDisabled | DriverError::CleartextPluginDisabled => {
            Error::new(ErrorKind::Permission, "the server asks for the password in a form that is not safe")
                .hint("give the user `mysql_native_password` or `caching_sha2_password`")
        }
        DriverError::PacketTooLarge => Error::new(ErrorKind::Data, "a row is larger than a packet may be")
            .hint("raise the server's `max_allowed_packet`"),
        DriverError::LocalInfile(LocalInfileError::ReadError(error)) => from_io(error),
        // Its text holds what could not be converted.
        DriverError::FromValue { .. } | DriverError::FromRow { .. } => {
            Error::new(ErrorKind::Internal, "the client could not convert a value")
        }
        DriverError::PacketOutOfOrder | DriverError::UnexpectedPacket { .. } => {
            Error::new(ErrorKind::Transient, "the conversation with the server broke")
                .hint("is it a MySQL or MariaDB server that answers there?")
        }
        other => Error::new(ErrorKind::Internal, first_lower(&other.to_string())),
    }
}

/// An error below the protocol.
pub(super) fn from_io(error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound => Error::new(ErrorKind::Transient, "no server listens on the socket")
            .hint("is the server running, and is `socket` the path of its socket?"),
        io::ErrorKind::ConnectionRefused => {
            Error::new(ErrorKind::Transient, "the server refused the connection")
                .hint("is the server running, and is the port right?")
        }
        io::ErrorKind::TimedOut => Error::new(ErrorKind::Transient, "the server did not answer in time")
            .hint("raise `connect-timeout`, or look for a firewall between here and there"),
        io::ErrorKind::PermissionDenied => {
            Error::new(ErrorKind::Permission, "the operating system does not allow to connect")
        }
        _ if error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) => {
            let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
            tls.map_or_else(|| lost("the TLS session failed"), certificate)
        }
        kind => lost(&format!("the connection was lost: {kind}")),
    }
}

fn from_tls(error: &TlsError) -> Error {
    match error {
        TlsError::Tls(error) => certificate(error),
        other => Error::new(ErrorKind::Config, format!("TLS cannot be set up: {other}"))
            .hint("look at `ssl-ca`, `ssl-cert` and `ssl-key`"),
    }
}

fn certificate(error: &rustls::Error) -> Error {
    match error {
        rustls::Error::InvalidCertificate(why) => Error::new(
            ErrorKind::Config,
            format!("the server's certificate is not accepted: {why}"),
        )
        .hint(
            "give the authority's certificate as `ssl-ca=/path/to/ca.pem`; `verify_ca` does without the name",
        ),
        other => Error::new(ErrorKind::Transient, format!("the TLS session failed: {other}")),
    }
}

fn from_server(error: &ServerError) -> Error {
    let (kind, hint) = class(error.code, &error.state);
    let message = if speaks_of_names_only(error.code) {
        first_lower(&error.message)
    } else {
        said(error.code).to_owned()
    };
    let ours = Error::new(kind, message).with(NUMBER, error.code);
    match hint {
        Some(hint) => ours.hint(hint),
        None => ours,
    }
}

/// What can be done about an error of this number, and how.
fn class(code: u16, state: &str) -> (ErrorKind, Option<&'static str>) {
    use ErrorKind::{Config, Data, Permission, Transient};
    match code {
        1045 | 1698 => (Permission, Some("check user and password in the connection's URL")),
        1251 | 2059 => (Permission, Some("give the user a log-in method that this client knows")),
        1044 | 1142 | 1143 | 1227 | 1370 | 1410 | 1419 => {
            (Permission, Some("grant the right: `GRANT … ON … TO …`"))
        }
        1820 | 1862 => (Permission, Some("the password has expired: set a new one")),
        1129 | 1130 => {
            (Permission, Some("the server does not let this host in: see its users and `host_cache`"))
        }
        1049 => (Config, Some("check the database's name in the connection's URL")),
        1046 => (Config, Some("name a database in the URL, or write `database.table`")),
        1146 | 1109 | 1054 | 1051 => (Config, None),
        1064 => (Config, Some("is the condition in `where` written as the server's SQL?")),
        1290 | 1792 | 1836 | 3100 => {
            (Config, Some("the server may only be read: connect to the primary, or switch `read_only` off"))
        }
        1040 | 1203 | 1226 => {
            (Transient, Some("the server has no connection left: try again, or raise `max_connections`"))
        }
        1205 => (Transient, Some("somebody holds a lock for long: see `SHOW ENGINE INNODB STATUS`")),
        1213 | 1020 | 1412 | 1614 => (Transient, None),
        1053 | 1077 | 1152 | 1158..=1161 | 1184 | 1317 | 1927 | 1969 | 2006 | 2013 | 3024 | 4031 => {
            (Transient, Some("the next pass goes on from the last commit"))
        }
        1021 | 1041 | 1114 | 1180 => (Transient, Some("the server has no room left, on disk or in memory")),
        1062 | 1586 => (Data, Some("another unique index of the target has this value already")),
        1048 | 1364 | 1216 | 1217 | 1451 | 1452 | 1690 | 3819 | 4025 => (Data, None),
        1264 | 1265 | 1292 | 1366 | 1406 | 1416 | 3140 => (Data, None),
        1118 | 1071 => {
            (Config, Some("a row or a key is too long for the server: load into a table of your own making"))
        }
        1644 => (Data, Some("a trigger of the table says so (`SIGNAL`)")),
        1153 | 1301 => (Data, Some("raise the server's `max_allowed_packet`")),
        1148 | 3948 | 4166 => (Config, Some("switch `local_infile` on at the server")),
        _ if state.starts_with("08") => (Transient, None),
        // 45 is for what a database defines itself.
        _ if ["22", "23", "45"].iter().any(|class| state.starts_with(class)) => (Data, None),
        _ if state.starts_with("42") => (Config, None),
        _ => (ErrorKind::Internal, None),
    }
}

/// Texts that never quote a value.
fn speaks_of_names_only(code: u16) -> bool {
    matches!(
        code,
        1040 | 1041 | 1044
            ..=1046
                | 1049
                | 1051
                | 1054
                | 1071
                | 1109
                | 1114
                | 1118
                | 1129
                | 1130
                | 1142
                | 1143
                | 1146
                | 1148
                | 1153
                | 1203
                | 1205
                | 1213
                | 1226
                | 1227
                | 1236
                | 1251
                | 1290
                | 1317
                | 1364
                | 1410
                | 1419
                | 1614
                | 1665
                | 1698
                | 1792
                | 1820
                | 1836
                | 1862
                | 1927
                | 1969
                | 2006
                | 2013
                | 3024
                | 3948
                | 4166
    )
}

/// What the others mean.
fn said(code: u16) -> &'static str {
    match code {
        1062 | 1586 => "a row has a key that another row has",
        1048 => "a column takes no NULL",
        1064 => "the server does not understand a statement",
        1216 | 1452 => "a row refers to one that is not there",
        1217 | 1451 => "other rows refer to a row that is to go",
        1264 | 1690 => "a number lies outside of its column's range",
        1265 | 1292 | 1366 => "a value is not one of its column's type or character set",
        1406 => "a value is too long for its column",
        1416 => "a value is no geometry of its column",
        3140 | 3819 | 4025 => "a row does not meet a condition of the table",
        1020 | 1412 => "a row or table changed while it was read",
        1644 => "a trigger refuses a row",
        1301 => "a value is larger than a packet may be",
        _ => "the server refused a statement",
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn of(code: u16, message: &str, state: &str) -> String {
        let error = ServerError { code, message: message.to_owned(), state: state.to_owned() };
        format!("{:?}", translate(&ClientError::Server(error)))
    }

    #[test]
    fn names_stay_and_values_go() {
        expect![[r#"
            config: table 'shop.orders' doesn't exist (number: 1146)"#]]
        .assert_eq(&of(1146, "Table 'shop.orders' doesn't exist", "42S02"));
        expect![[r#"
            data: a row has a key that another row has (number: 1062)
              hint: another unique index of the target has this value already"#]]
        .assert_eq(&of(1062, "Duplicate entry 'secret@example.com' for key 'mail'", "23000"));
        expect![[r#"
            data: a value is not one of its column's type or character set (number: 1366)"#]]
        .assert_eq(&of(
            1366,
            "Incorrect string value: '\\xF0\\x9F' for column `a`.`b`.`c` at row 1",
            "22007",
        ));
        expect![[r#"
            transient: deadlock found when trying to get lock; try restarting transaction (number: 1213)"#]]
        .assert_eq(&of(1213, "Deadlock found when trying to get lock; try restarting transaction", "40001"));
        expect![[r#"
            internal: the server refused a statement (number: 9999)"#]]
        .assert_eq(&of(9999, "who knows what 'secret' is in here", "HY000"));
    }
}
