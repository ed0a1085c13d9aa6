//! What a URL says about a server: `mysql://user:password@host:3306/database?ssl-mode=required`.
//!
//! The names are those of MySQL's and MariaDB's own clients. Options that mean nothing here are refused
//! with the name that was probably meant.

use std::path::PathBuf;
use std::time::Duration;

use crate::clients::percent_decoded;
use crate::connection::{Connection, UNNAMED_HOST};
use crate::error::{Error, ErrorKind, Result};

/// A server that does not answer within this time is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const PORT: u16 = 3306;

/// Where to connect, as whom, and how.
pub(super) struct Params {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) socket: Option<String>,
    pub(super) user: String,
    pub(super) password: Option<String>,
    pub(super) database: Option<String>,
    pub(super) program_name: String,
    pub(super) connect_timeout: Duration,
    pub(super) compress: bool,
    pub(super) tls: TlsParams,
}

/// Whether to encrypt, and what a server has to prove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TlsParams {
    pub(super) mode: SslMode,
    pub(super) ca: Option<PathBuf>,
    /// Certificate and key.
    pub(super) identity: Option<(PathBuf, PathBuf)>,
}

/// `ssl-mode`, in rising order of trust required.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SslMode {
    Disabled,
    Preferred,
    Required,
    VerifyCa,
    VerifyIdentity,
}

const KNOWN: [&str; 8] =
    ["ssl-mode", "ssl-ca", "ssl-cert", "ssl-key", "socket", "connect-timeout", "program-name", "compress"];

impl Params {
    /// Reads a connection's URL.
    pub(super) fn of(connection: &Connection) -> Result<Self> {
        Self::read(connection).map_err(|error| error.with("connection", connection.name()))
    }

    fn read(connection: &Connection) -> Result<Self> {
        let url = connection.expose();
        let mut said = Vec::new();
        for (key, value) in url.query_pairs() {
            // Both spellings are in use.
            let key = key.replace('_', "-").to_ascii_lowercase();
            if !KNOWN.contains(&key.as_str()) {
                return Err(unknown_option(&key));
            }
            said.push((key, value.into_owned()));
        }
        let get = |key: &str| said.iter().find(|(k, _)| k == key).map(|(_, value)| value.clone());
        let part = |text: &str| match text.is_empty() {
            true => Ok(None),
            false => percent_decoded(text).map(Some),
        };
        let socket = get("socket");
        let named = url.host_str().filter(|host| *host != UNNAMED_HOST);
        let host = match part(named.unwrap_or(""))? {
            Some(host) => host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            None => "localhost".to_owned(),
        };
        let user = part(url.username())?.ok_or_else(|| {
            config("no user is given").hint("write `mysql://user:${PASSWORD}@host/database`")
        })?;
        let connect_timeout = match get("connect-timeout") {
            None => CONNECT_TIMEOUT,
            Some(text) => match text.parse::<u64>() {
                Ok(seconds) if seconds > 0 => Duration::from_secs(seconds),
                _ => return Err(config(format!("`connect-timeout={text}` is not a number of seconds"))),
            },
        };
        Ok(Self {
            host,
            port: url.port().unwrap_or(PORT),
            user,
            password: url.password().map(percent_decoded).transpose()?,
            database: part(url.path().trim_start_matches('/'))?,
            program_name: get("program-name").unwrap_or_else(|| "frazil".to_owned()),
            connect_timeout,
            compress: flag("compress", get("compress"))?,
            tls: tls(&get, socket.is_some())?,
            socket,
        })
    }
}

fn tls(get: &dyn Fn(&str) -> Option<String>, on_socket: bool) -> Result<TlsParams> {
    let ca = get("ssl-ca").map(PathBuf::from);
    let mode = match get("ssl-mode").map(|text| text.to_ascii_lowercase().replace('-', "_")).as_deref() {
        // A socket does not leave the machine.
        None if on_socket => SslMode::Disabled,
        // As the servers' own clients: whoever names an authority wants it asked.
        None if ca.is_some() => SslMode::VerifyCa,
        None | Some("preferred") => SslMode::Preferred,
        Some("disabled") => SslMode::Disabled,
        Some("required") => SslMode::Required,
        Some("verify_ca") => SslMode::VerifyCa,
        Some("verify_identity") => SslMode::VerifyIdentity,
        Some(other) => {
            return Err(config(format!("`ssl-mode={other}` is not known"))
                .hint("use disabled, preferred, required, verify_ca or verify_identity"));
        }
    };
    let identity = match (get("ssl-cert"), get("ssl-key")) {
        (Some(cert), Some(key)) => Some((cert.into(), key.into())),
        (None, None) => None,
        _ => return Err(config("`ssl-cert` and `ssl-key` go together")),
    };
    Ok(TlsParams { mode, ca, identity })
}

fn flag(name: &str, text: Option<String>) -> Result<bool> {
    match text.as_deref() {
        None | Some("false" | "0") => Ok(false),
        Some("true" | "1" | "") => Ok(true),
        Some(other) => Err(config(format!("`{name}={other}` is neither true nor false"))),
    }
}

fn unknown_option(key: &str) -> Error {
    let near = KNOWN
        .iter()
        .max_by(|a, b| strsim::jaro_winkler(a, key).total_cmp(&strsim::jaro_winkler(b, key)))
        .expect("there are options");
    config(format!("`{key}` is not an option of a MySQL URL")).hint(format!("did you mean `{near}`?"))
}

fn config(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Config, message)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn read(url: &str) -> Result<Params> {
        Params::of(&Connection::parse("shop", url).unwrap())
    }

    #[test]
    fn a_url_says_where_and_how() {
        let params =
            read("mysql://ann:s3%2Bcr%26et@db.example/shop?ssl-mode=VERIFY_IDENTITY&ssl_ca=/ca.pem").unwrap();
        assert_eq!((params.host.as_str(), params.port), ("db.example", 3306));
        assert_eq!(params.password.as_deref(), Some("s3+cr&et"));
        assert_eq!(params.database.as_deref(), Some("shop"));
        assert_eq!(params.tls.mode, SslMode::VerifyIdentity);
        let params = read("mariadb://ann@[::1]:3307").unwrap();
        assert_eq!((params.host.as_str(), params.port, params.database), ("::1", 3307, None));
        assert_eq!(params.tls.mode, SslMode::Preferred);
        assert_eq!(read("mysql://ann@h?socket=/run/s").unwrap().tls.mode, SslMode::Disabled);
        assert_eq!(read("mysql://ann@h?ssl-ca=/ca.pem").unwrap().tls.mode, SslMode::VerifyCa);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |url: &str| format!("{:?}", read(url).err().unwrap());
        expect![[r#"
            config: `sslmode` is not an option of a MySQL URL (connection: shop)
              hint: did you mean `ssl-mode`?"#]]
        .assert_eq(&error("mysql://ann@h/shop?sslmode=required"));
        expect![[r#"
            config: `ssl-mode=on` is not known (connection: shop)
              hint: use disabled, preferred, required, verify_ca or verify_identity"#]]
        .assert_eq(&error("mysql://ann@h/shop?ssl-mode=on"));
        expect!["config: `ssl-cert` and `ssl-key` go together (connection: shop)"]
            .assert_eq(&error("mysql://ann@h/shop?ssl-cert=/c.pem"));
        expect![[r#"
            config: no user is given (connection: shop)
              hint: write `mysql://user:${PASSWORD}@host/database`"#]]
        .assert_eq(&error("mysql://h/shop"));
    }
}
