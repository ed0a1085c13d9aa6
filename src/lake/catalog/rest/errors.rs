//! What a catalog said no with, made ours.

use reqwest::StatusCode;

use super::wire::Refusal;
use crate::error::{Error, ErrorKind};

/// More of a server's message is noise.
const MESSAGE: usize = 300;

/// What a server said with a status that is no success.
#[derive(Debug)]
pub(super) struct Said {
    /// The name of the exception, by the protocol: `NoSuchTableException`.
    pub(super) kind: String,
    message: String,
}

impl Said {
    /// Secrets that the server repeats are left out.
    pub(super) fn new(body: &[u8], secrets: &[String]) -> Self {
        let refusal: Refusal = serde_json::from_slice(body).unwrap_or_default();
        let text = |name: &str| refusal.error.get(name).and_then(|value| value.as_str()).unwrap_or_default();
        let (kind, mut message) = match refusal.error.as_str() {
            Some(code) => (code.to_owned(), refusal.error_description.clone().unwrap_or_default()),
            None => (text("type").to_owned(), text("message").to_owned()),
        };
        for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
            message = message.replace(secret.as_str(), "…");
        }
        let message = message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MESSAGE).collect();
        Self { kind, message }
    }
}

/// A status that is no success. `action` is a verb phrase: "load a table".
pub(super) fn refused(action: &str, status: StatusCode, said: &Said) -> Error {
    let (kind, message, hint) = match status.as_u16() {
        401 => (
            ErrorKind::Permission,
            "the catalog does not know us",
            "check the options `credential` or `token`, and what the catalog wants to log in with",
        ),
        403 => (
            ErrorKind::Permission,
            "the catalog refused access",
            "grant the login the right to list, create, read and write tables",
        ),
        419 => {
            (ErrorKind::Permission, "the login has ended", "give a new `token`, or log in by `credential`")
        }
        404 if said.kind.starts_with("NoSuchTable") => (ErrorKind::Config, "there is no such table", ""),
        404 if said.kind.starts_with("NoSuchNamespace") => {
            (ErrorKind::Config, "there is no such namespace", "check `lake.warehouse` and the table's schema")
        }
        404 => (
            ErrorKind::Config,
            "the catalog does not know the address",
            "check `lake.catalog` and `lake.warehouse`",
        ),
        405 | 406 | 501 => (ErrorKind::Unsupported, "the catalog cannot do that", ""),
        409 => (ErrorKind::Conflict, "the table was changed by someone else", ""),
        429 => (ErrorKind::Transient, "the catalog is asked too often", "run again later"),
        503 => (ErrorKind::Transient, "the catalog is not ready", "run again later"),
        500.. => (ErrorKind::Transient, "the catalog failed", "run again; what was committed stays"),
        _ => (ErrorKind::Config, "the catalog did not accept the request", ""),
    };
    let colon = if said.message.is_empty() { "" } else { ": " };
    let error = Error::new(kind, format!("cannot {action}: {message}{colon}{}", said.message))
        .with("status", status.as_u16());
    if hint.is_empty() { error } else { error.hint(hint) }
}

pub(super) fn login_refused(status: StatusCode, body: &[u8]) -> Error {
    if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
        return Error::new(ErrorKind::Transient, "cannot log in to the catalog: the login server failed")
            .with("status", status.as_u16())
            .hint("run again later");
    }
    // Only the code is shown: descriptions are free text, and may repeat what was sent.
    let said = Said::new(body, &[]);
    let code = if said.kind.is_empty() { "no reason given".to_owned() } else { said.kind };
    Error::new(ErrorKind::Permission, format!("cannot log in to the catalog: {code}"))
        .with("status", status.as_u16())
        .hint("check the options `credential`, `scope` and `oauth2-server-uri`")
}

/// No answer.
pub(super) fn unreachable(action: &str, source: reqwest::Error) -> Error {
    let message = if source.is_timeout() { "it did not answer in time" } else { "it cannot be reached" };
    Error::new(ErrorKind::Transient, format!("cannot {action}: {message}"))
        .hint("check `lake.catalog` and the network, and run again")
        .because(source.without_url())
}

/// An answer that is not what the protocol says. The parser's own words could repeat a credential.
pub(super) fn garbled(action: &str, source: &serde_json::Error) -> Error {
    Error::new(ErrorKind::Corrupt, format!("cannot {action}: the catalog's answer cannot be understood"))
        .with("at", format!("line {}, column {}", source.line(), source.column()))
        .hint("check that `lake.catalog` is the address of an Iceberg REST catalog, without `/v1`")
}
