//! What a Postgres URL, the `PG*` variables and the password file say about a server, as libpq reads them.
//!
//! The URL is asked first, then the environment, then the defaults. Options that libpq knows and
//! that mean nothing here are accepted; others are refused with the name that was probably meant.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::connection::{Connection, UNNAMED_HOST};
use crate::error::{Error, ErrorKind, Result};

/// A server that does not answer within this time is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where to connect, as whom, and how.
pub(super) struct Params {
    pub(super) hosts: Vec<(String, u16)>,
    pub(super) user: String,
    pub(super) password: Option<String>,
    pub(super) database: String,
    pub(super) application_name: String,
    pub(super) options: Option<String>,
    pub(super) connect_timeout: Duration,
    /// How long one statement may take; `None`: as long as it needs.
    pub(super) statement_timeout: Option<Duration>,
    pub(super) session: SessionKind,
    pub(super) tls: TlsParams,
}

/// Which of several hosts will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SessionKind {
    Any,
    Primary,
    Standby,
    /// A replica, where one of the hosts is; else any.
    PreferStandby,
}

/// `sslmode` and the files it needs.
#[derive(Debug, Clone)]
pub(super) struct TlsParams {
    pub(super) mode: SslMode,
    pub(super) root: Option<RootCert>,
    pub(super) cert: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
}

/// `sslrootcert`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RootCert {
    System,
    File(PathBuf),
}

/// `sslmode`, in rising order of trust required.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SslMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

const KNOWN: [&str; 19] = [
    "host",
    "hostaddr",
    "port",
    "user",
    "password",
    "dbname",
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "application_name",
    "options",
    "connect_timeout",
    "statement_timeout",
    "target_session_attrs",
    "passfile",
    "channel_binding",
    "gssencmode",
    "client_encoding",
];

type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Params {
    /// Reads a connection's URL and this process's environment.
    pub(super) fn of(connection: &Connection) -> Result<Self> {
        let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self::read(connection, &env).map_err(|error| error.with("connection", connection.name()))
    }

    fn read(connection: &Connection, env: Env<'_>) -> Result<Self> {
        let url = connection.expose();
        let mut said = Vec::new();
        for pair in url.query().unwrap_or("").split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (key, value) = (decode(key)?, decode(value)?);
            if !KNOWN.contains(&key.as_str()) {
                return Err(unknown_option(&key));
            }
            said.push((key, value));
        }
        let get = |key: &str, variable: &str| -> Option<String> {
            said.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone()).or_else(|| env(variable))
        };
        let part = |text: &str| -> Result<Option<String>> {
            Ok(if text.is_empty() { None } else { Some(decode(text)?) })
        };

        let named = url.host_str().filter(|host| *host != UNNAMED_HOST);
        let host = match part(named.unwrap_or(""))? {
            Some(host) => host,
            None => get("hostaddr", "PGHOSTADDR")
                .or_else(|| get("host", "PGHOST"))
                .unwrap_or_else(|| "localhost".into()),
        };
        let port = match url.port() {
            Some(port) => port.to_string(),
            None => get("port", "PGPORT").unwrap_or_else(|| "5432".into()),
        };
        let hosts = pair_hosts(&host, &port)?;

        let user = match part(url.username())? {
            Some(user) => user,
            None => {
                get("user", "PGUSER").or_else(|| env("USER")).or_else(|| env("LOGNAME")).ok_or_else(|| {
                    config("no user is given").hint("write `postgres://user@host/database`, or set PGUSER")
                })?
            }
        };
        let database = match part(url.path().trim_start_matches('/'))? {
            Some(database) => database,
            None => get("dbname", "PGDATABASE").unwrap_or_else(|| user.clone()),
        };
        let password = match url.password() {
            Some(password) => Some(decode(password)?),
            None => match get("password", "PGPASSWORD") {
                Some(password) => Some(password),
                None => password_file(get("passfile", "PGPASSFILE"), env, &hosts, &database, &user),
            },
        };
        let connect_timeout = match get("connect_timeout", "PGCONNECT_TIMEOUT") {
            None => CONNECT_TIMEOUT,
            Some(text) => match text.parse::<u64>() {
                // libpq: zero means to wait for ever; a day is as good and has an end.
                Ok(0) => Duration::from_secs(86_400),
                Ok(seconds) => Duration::from_secs(seconds),
                Err(_) => return Err(config(format!("`connect_timeout={text}` is not a number of seconds"))),
            },
        };
        let statement_timeout = match said.iter().find(|(key, _)| key == "statement_timeout") {
            None => None,
            Some((_, text)) => match text.parse::<u32>() {
                Ok(seconds) => Some(Duration::from_secs(seconds.into())).filter(|limit| !limit.is_zero()),
                Err(_) => {
                    return Err(config(format!("`statement_timeout={text}` is not a number of seconds")));
                }
            },
        };
        let session = match get("target_session_attrs", "PGTARGETSESSIONATTRS").as_deref() {
            None | Some("any") => SessionKind::Any,
            Some("prefer-standby") => SessionKind::PreferStandby,
            Some("read-write" | "primary") => SessionKind::Primary,
            Some("read-only" | "standby") => SessionKind::Standby,
            Some(other) => return Err(config(format!("`target_session_attrs={other}` is not known"))),
        };
        Ok(Self {
            hosts,
            user,
            password,
            database,
            application_name: get("application_name", "PGAPPNAME").unwrap_or_else(|| "frazil".into()),
            options: get("options", "PGOPTIONS"),
            connect_timeout,
            statement_timeout,
            session,
            tls: tls(&get, env)?,
        })
    }
}

fn tls(get: &dyn Fn(&str, &str) -> Option<String>, env: Env<'_>) -> Result<TlsParams> {
    let root = match get("sslrootcert", "PGSSLROOTCERT") {
        Some(text) if text == "system" => Some(RootCert::System),
        Some(path) => Some(RootCert::File(path.into())),
        // As libpq: an authority in the home directory is trusted, and asked for.
        None => env("HOME")
            .map(|home| Path::new(&home).join(".postgresql/root.crt"))
            .filter(|path| path.is_file())
            .map(RootCert::File),
    };
    let mode = match get("sslmode", "PGSSLMODE").as_deref() {
        // As libpq: whoever names the system's authorities wants them asked.
        None if root == Some(RootCert::System) => SslMode::VerifyFull,
        None | Some("prefer") => SslMode::Prefer,
        Some("disable") => SslMode::Disable,
        Some("allow") => SslMode::Allow,
        Some("require") => SslMode::Require,
        Some("verify-ca") => SslMode::VerifyCa,
        Some("verify-full") => SslMode::VerifyFull,
        Some(other) => {
            return Err(config(format!("`sslmode={other}` is not known"))
                .hint("use disable, allow, prefer, require, verify-ca or verify-full"));
        }
    };
    Ok(TlsParams {
        mode,
        root,
        cert: get("sslcert", "PGSSLCERT").map(PathBuf::from),
        key: get("sslkey", "PGSSLKEY").map(PathBuf::from),
    })
}

/// `a,b` and `5432` or `5432,5433`, paired as libpq does.
fn pair_hosts(hosts: &str, ports: &str) -> Result<Vec<(String, u16)>> {
    let hosts: Vec<&str> = hosts.split(',').collect();
    let ports = ports
        .split(',')
        .map(|port| port.parse().map_err(|_| config(format!("`{port}` is not a port"))))
        .collect::<Result<Vec<u16>>>()?;
    if ports.len() != 1 && ports.len() != hosts.len() {
        return Err(config(format!("{} hosts but {} ports are given", hosts.len(), ports.len())));
    }
    let port = |i: usize| if ports.len() == 1 { ports[0] } else { ports[i] };
    // An IPv6 address stands in brackets in a URL.
    let bare = |host: &str| host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok(hosts.iter().enumerate().map(|(i, host)| (bare(host), port(i))).collect())
}

/// The password of the first line that matches, from a file that only its owner can read.
fn password_file(
    named: Option<String>,
    env: Env<'_>,
    hosts: &[(String, u16)],
    database: &str,
    user: &str,
) -> Option<String> {
    let path = match named {
        Some(path) => PathBuf::from(path),
        None => Path::new(&env("HOME")?).join(".pgpass"),
    };
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(&path).ok()?.permissions().mode();
        if mode & 0o077 != 0 {
            tracing::warn!(file = %path.display(), "password file is left unread: others can read it; run `chmod 0600` on it");
            return None;
        }
    }
    let text = std::fs::read_to_string(path).ok()?;
    hosts.iter().find_map(|(host, port)| {
        let host = if host.starts_with('/') { "localhost" } else { host };
        password_line(&text, [host, &port.to_string(), database, user])
    })
}

fn password_line(text: &str, wanted: [&str; 4]) -> Option<String> {
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let fields = colon_fields(line);
        let (password, names) = fields.split_last()?;
        let fits =
            names.len() == 4 && names.iter().zip(wanted).all(|(have, want)| have == "*" || have == want);
        fits.then(|| password.clone())
    })
}

/// Divides `host:port:database:user:password`; a backslash takes the meaning from what follows it.
fn colon_fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        let last = fields.last_mut().expect("never empty");
        match c {
            '\\' => last.extend(chars.next()),
            ':' => fields.push(String::new()),
            c => last.push(c),
        }
    }
    fields
}

/// Undoes percent-encoding. A plus stays a plus, as libpq has it.
fn decode(text: &str) -> Result<String> {
    let bad = || config("the URL is not percent-encoded properly").hint("write `%` as `%25`");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (code, tail) = rest.split_at_checked(2).ok_or_else(bad)?;
        let code = std::str::from_utf8(code).map_err(|_| bad())?;
        bytes.push(u8::from_str_radix(code, 16).map_err(|_| bad())?);
        rest = tail;
    }
    String::from_utf8(bytes).map_err(|_| bad())
}

fn unknown_option(key: &str) -> Error {
    let near = KNOWN.iter().max_by(|a, b| strsim::jaro(key, a).total_cmp(&strsim::jaro(key, b)));
    let error = config(format!("a Postgres URL has no option `{key}`"));
    match near.filter(|near| strsim::jaro(key, near) > 0.7) {
        Some(near) => error.hint(format!("did you mean `{near}`?")),
        None => error.hint(format!("known are {}", KNOWN.join(", "))),
    }
}

fn config(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Config, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str, env: &[(&str, &str)]) -> Result<Params> {
        let env = |name: &str| env.iter().find(|(k, _)| *k == name).map(|(_, v)| (*v).to_owned());
        Params::read(&Connection::parse("test", url)?, &env)
    }

    #[test]
    fn the_url_speaks_first_then_the_environment() {
        let env = [
            ("PGHOST", "/run/pg"),
            ("PGPORT", "6000"),
            ("PGUSER", "eve"),
            ("PGDATABASE", "db"),
            ("PGSSLMODE", "require"),
        ];
        let all = read("postgres://ann:s%40fe@h:1/shop?sslmode=disable&application_name=me", &env).unwrap();
        assert_eq!(all.hosts, [("h".to_owned(), 1)]);
        assert_eq!((all.user.as_str(), all.password.as_deref()), ("ann", Some("s@fe")));
        assert_eq!((all.database.as_str(), all.application_name.as_str()), ("shop", "me"));
        assert_eq!(all.tls.mode, SslMode::Disable);

        let none = read("postgres://", &env).unwrap();
        assert_eq!(none.hosts, [("/run/pg".to_owned(), 6000)]);
        assert_eq!((none.user.as_str(), none.database.as_str()), ("eve", "db"));
        assert_eq!(none.tls.mode, SslMode::Require);
        assert_eq!(none.application_name, "frazil");
        assert_eq!(none.connect_timeout, CONNECT_TIMEOUT);
    }

    #[test]
    fn several_hosts_and_sockets() {
        let many = read("postgres:///d?user=u&host=a,b&port=1,2", &[]).unwrap();
        assert_eq!(many.hosts, [("a".to_owned(), 1), ("b".to_owned(), 2)]);
        let socket = read("postgres:///d?user=u&host=/tmp/x", &[]).unwrap();
        assert_eq!(socket.hosts, [("/tmp/x".to_owned(), 5432)]);
        let with_user = read("postgres://u:p@/d?host=/tmp/x&port=7", &[("PGHOST", "other")]).unwrap();
        assert_eq!(with_user.hosts, [("/tmp/x".to_owned(), 7)]);
        assert_eq!((with_user.user.as_str(), with_user.password.as_deref()), ("u", Some("p")));
        assert_eq!(
            read("postgres://u@/d", &[("PGHOST", "other")]).unwrap().hosts,
            [("other".to_owned(), 5432)]
        );
        assert_eq!(read("postgres://u@[::1]:7/d", &[]).unwrap().hosts, [("::1".to_owned(), 7)]);
    }

    #[test]
    fn a_wrong_option_is_named() {
        let error = read("postgres://u@h/d?sslmod=require", &[]).err().unwrap();
        assert_eq!(error.hint_text(), Some("did you mean `sslmode`?"));
    }

    #[test]
    fn the_password_file_matches_by_four_fields() {
        let text = "# note\nh:1:other:u:no\n*:*:shop:u:se\\:cret\n";
        assert_eq!(password_line(text, ["h", "1", "shop", "u"]).as_deref(), Some("se:cret"));
        assert_eq!(password_line(text, ["h", "1", "shop", "v"]), None);
    }
}
