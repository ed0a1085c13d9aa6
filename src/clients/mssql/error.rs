//! The one place where errors of the SQL Server client become ours.
//!
//! The number decides what a caller can do. Texts of the server are kept only where they are known to
//! hold names and nothing else: others quote keys and values ("The duplicate key value is (…)").

use std::io;

use tiberius::error::{Error as ClientError, TokenError};

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
pub(crate) fn number(error: &Error) -> Option<u32> {
    error.context().iter().find(|(key, _)| *key == NUMBER)?.1.parse().ok()
}

/// The connection was lost: a pass that is repeated goes on from the last commit.
pub(crate) fn lost(message: &str) -> Error {
    Error::new(ErrorKind::Transient, message).hint("the next pass goes on from the last commit")
}

/// Says what a caller can do about a client error, without secrets and row values.
pub(super) fn translate(error: &ClientError) -> Error {
    match error {
        ClientError::Server(token) => from_server(token),
        ClientError::Io { kind, message } => from_io(*kind, message),
        ClientError::Tls(message) => from_tls(message),
        ClientError::Routing { .. } => {
            Error::new(ErrorKind::Transient, "the server redirects us again and again")
                .hint("connect to the address that it names, or look at its routing")
        }
        ClientError::Utf8 => undecodable("code page"),
        ClientError::Utf16 => undecodable("UTF-16"),
        ClientError::Encoding(_) => undecodable("code page"),
        ClientError::Protocol(message) if is_text_problem(message) => undecodable("UTF-16"),
        ClientError::Protocol(message) if message.contains("encryption") => {
            Error::new(ErrorKind::Config, "the server does not offer the encryption that is asked for")
                .hint("switch encryption on at the server, or weaken `encrypt`: strict, true, false, disable")
        }
        ClientError::Protocol(message) => {
            Error::new(ErrorKind::Transient, format!("the conversation with the server broke: {message}"))
                .hint("is it a SQL Server that answers there? `encrypt=strict` needs version 2022")
        }
        // Its text holds what could not be converted.
        ClientError::Conversion(_) | ClientError::ParseInt(_) => {
            Error::new(ErrorKind::Internal, "the client could not convert a value")
        }
        ClientError::BulkInput(_) => {
            Error::new(ErrorKind::Internal, "the client refused a row of a bulk load")
        }
    }
}

fn is_text_problem(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    message.contains("utf-16") || message.contains("utf16") || message.contains("invalid sequence")
}

fn undecodable(what: &str) -> Error {
    Error::new(ErrorKind::Data, format!("a text is not valid {what}, which the server does not check")).hint(
        "correct the rows, or set `values: { out_of_range: clamp }` to read `�` in place of what is wrong",
    )
}

/// An error below the protocol.
pub(super) fn from_io(kind: io::ErrorKind, message: &str) -> Error {
    if message.contains("certificate") || message.contains("TLS") || message.contains("tls") {
        return from_tls(message);
    }
    match kind {
        io::ErrorKind::ConnectionRefused => {
            Error::new(ErrorKind::Transient, "the server refused the connection")
                .hint("is the server running, is TCP switched on, and is the port right?")
        }
        io::ErrorKind::TimedOut => Error::new(ErrorKind::Transient, "the server did not answer in time")
            .hint("raise `connect_timeout` or `statement_timeout`, or look for a firewall or a lock"),
        io::ErrorKind::PermissionDenied => {
            Error::new(ErrorKind::Permission, "the operating system does not allow to connect")
        }
        _ => lost(&format!("the connection was lost: {kind}")),
    }
}

fn from_tls(message: &str) -> Error {
    if message.contains("NotValidForName") || message.contains("not valid for name") {
        return Error::new(ErrorKind::Config, "the server's certificate is for another name").hint(
            "connect by the name in the certificate, or say it: `host_name_in_certificate=db.example`",
        );
    }
    if message.contains("certificate") {
        // The client's text names its own functions: only what was wrong is kept.
        let why = message.split("handshake: ").nth(1).unwrap_or("");
        let why = why.split(". ").next().unwrap_or("");
        let why = if why.is_empty() { String::new() } else { format!(": {why}") };
        return Error::new(ErrorKind::Config, format!("the server's certificate is not accepted{why}")).hint(
            "give the authority's certificate as `ca=/path/to/ca.pem`; `trust_server_certificate=true` believes any server",
        );
    }
    Error::new(ErrorKind::Transient, "the TLS session failed")
        .hint("does the server speak TLS 1.2? `encrypt=false` encrypts the log-in only, `disable` nothing")
}

fn from_server(token: &TokenError) -> Error {
    let number = token.code();
    let message = match known(number) {
        Some(text) => text.to_owned(),
        None if holds_names_only(number) => first_lower(token.message()),
        None => "the server reported an error whose text may hold values of rows".to_owned(),
    };
    let error = Error::new(kind(number, token.class()), message).with(NUMBER, number);
    match hint(number) {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

/// Our words for texts that hold values.
fn known(number: u32) -> Option<&'static str> {
    Some(match number {
        2601 | 2627 | 1505 => "a row breaks a unique key",
        2628 | 8152 => "a text or binary value is too long for its column",
        220 | 232 | 244 | 248 | 8115 => "a number does not fit into its type",
        241 | 242 | 245 | 295 | 8114 | 9420 | 6522 => "the server could not convert a value",
        8672 => "two rows of one load have the same key",
        3609 | OWN.. => "a trigger or a function of the database refuses a row",
        40613 => "the database is not available at the moment",
        _ => return None,
    })
}

/// Numbers whose texts name objects, users and syntax, never values of rows.
fn holds_names_only(number: u32) -> bool {
    matches!(
        number,
        156 | 195..=209 | 229 | 230 | 262 | 266 | 297 | 300 | 313 | 371 | 515 | 547 | 911 | 916 | 922..=927
            | 942 | 945 | 1205 | 1222 | 1087 | 1088 | 1204 | 1105 | 9002 | 2714 | 2812 | 3701 | 3902 | 3903
            | 3906 | 3930 | 3951..=3961 | 4060 | 4064 | 4121 | 4104 | 4816 | 4902 | 4922 | 4924 | 5074 | 8101
            | 8102 | 8106 | 10928..=10936 | 18401 | 18450..=18489 | 22105..=22125 | 22832..=22999 | 33089
            | 40197 | 40501 | 40508 | 40544 | 40549..=40553 | 40615 | 49918..=49920
    )
}

/// Where the numbers of errors begin that databases define themselves; what `RAISERROR` says with a text alone.
const OWN: u32 = 50_000;

/// What a caller can do, by number and severity.
fn kind(number: u32, severity: u8) -> ErrorKind {
    match number {
        // Deadlock, lock time-out, snapshot conflict, lost or throttled connections, restarts, resources.
        64
        | 121
        | 233
        | 596
        | 701
        | 802
        | 921
        | 922
        | 923
        | 1105
        | 1204
        | 1205
        | 1222
        | 3960
        | 3961
        | 4221
        | 6005
        | 8645
        | 8651
        | 9001
        | 9002
        | 10053
        | 10054
        | 10060
        | 10928
        | 10929
        | 10936
        | 17142
        | 18401
        | 40020
        | 40143
        | 40166
        | 40197
        | 40501
        | 40540
        | 40544
        | 40549..=40553
        | 40613
        | 42108
        | 42109
        | 49918..=49920 => ErrorKind::Transient,
        229 | 230 | 262 | 297 | 300 | 371 | 916 | 4064 | 15247 | 18450..=18489 | 33089 | 40615 | 47073 => {
            ErrorKind::Permission
        }
        220 | 232 | 241 | 242 | 244 | 245 | 248 | 295 | 515 | 547 | 1505 | 2601 | 2627 | 2628 | 6522
        | 3609 | 8114 | 8115 | 8134 | 8152 | 8672 | 9420 => ErrorKind::Data,
        605 | 823..=825 => ErrorKind::Corrupt,
        102..=213
        | 911
        | 942
        | 945
        | 1087
        | 1088
        | 2812
        | 3701
        | 3906
        | 3951
        | 3952
        | 4060
        | 4104
        | 4121
        | 4902
        | 4922
        | 4924
        | 5074
        | 22105
        | 22117
        | 22938
        | 40508 => ErrorKind::Config,
        40515 | 40514 | 40517 => ErrorKind::Unsupported,
        // From 20 on the server has ended the session.
        _ if severity >= 20 => ErrorKind::Transient,
        OWN.. => ErrorKind::Data,
        _ => ErrorKind::Internal,
    }
}

fn hint(number: u32) -> Option<&'static str> {
    Some(match number {
        229 | 230 => {
            "run `GRANT SELECT ON <table> TO <user>` (a target needs INSERT, UPDATE, DELETE too; Change Tracking `VIEW CHANGE TRACKING`)"
        }
        262 => "run `GRANT CREATE TABLE TO <user>`, or let somebody create the table who may",
        300 => "run `GRANT VIEW SERVER STATE TO <login>`",
        207 | 208 => {
            "check the name, and that the user may see it: what it has no right to does not exist for it"
        }
        911 | 4060 => {
            "check the database name at the end of the URL, that the database is online, and that the login has a user in it"
        }
        942 | 945 => "bring the database online",
        18452 => "the server wants Windows log-ins, or the login is of a domain that it does not trust",
        18456 => "check user and password; SQL log-ins need the server's mixed mode",
        18470 => "the login is disabled: run `ALTER LOGIN <login> ENABLE`",
        18486 => "the login is locked out",
        18487 | 18488 => "the login's password has expired",
        3906 => "this database is read-only; connect to the primary",
        3952 => "run `ALTER DATABASE <database> SET ALLOW_SNAPSHOT_ISOLATION ON`",
        22105 => "run `ALTER TABLE <table> ENABLE CHANGE_TRACKING`",
        40615 => "the firewall of the Azure server does not let this address in",
        _ => return None,
    })
}

/// Whether trying again in a moment can help a connection that was not let in: a database that wakes up
/// or moves, a server that is throttled.
pub(super) fn is_waking(error: &Error) -> bool {
    matches!(
        number(error),
        Some(921 | 10928 | 10929 | 18401 | 40197 | 40501 | 40613 | 42108 | 42109 | 49918..=49920)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_say_what_to_do() {
        for (number, expected) in [
            (18456, ErrorKind::Permission),
            (229, ErrorKind::Permission),
            (207, ErrorKind::Config),
            (208, ErrorKind::Config),
            (4060, ErrorKind::Config),
            (1205, ErrorKind::Transient),
            (1222, ErrorKind::Transient),
            (3960, ErrorKind::Transient),
            (10054, ErrorKind::Transient),
            (40613, ErrorKind::Transient),
            (49919, ErrorKind::Transient),
            (2627, ErrorKind::Data),
            (2628, ErrorKind::Data),
            (8152, ErrorKind::Data),
            (8115, ErrorKind::Data),
            (515, ErrorKind::Data),
            (547, ErrorKind::Data),
            (50000, ErrorKind::Data),
            (9999, ErrorKind::Internal),
        ] {
            assert_eq!(kind(number, 16), expected, "{number}");
        }
        assert_eq!(kind(50000, 20), ErrorKind::Transient);
    }

    #[test]
    fn texts_that_hold_values_are_replaced() {
        for number in [2627, 2601, 2628, 245, 220, 8114, 50000, 13535] {
            assert!(!holds_names_only(number), "{number}");
        }
    }

    #[test]
    fn a_certificate_is_not_accepted_for_a_reason() {
        let text = "the server's certificate was rejected during the TLS handshake: UnknownIssuer. To connect anyway you can: (1) trust";
        let error = from_tls(text);
        assert_eq!(error.to_string(), "the server's certificate is not accepted: UnknownIssuer");
        assert_eq!(error.kind(), ErrorKind::Config);
    }
}
