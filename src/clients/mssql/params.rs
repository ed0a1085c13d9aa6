//! What a connection says about a SQL Server, in the words of URLs, ADO.NET, JDBC and ODBC.
//!
//! All spellings of an option are one: `TrustServerCertificate`, `trust_server_certificate` and
//! `trust server certificate` mean the same. What those strings know and what means nothing here is
//! accepted; others are refused with the name that was probably meant.

use std::path::PathBuf;
use std::time::Duration;

use tiberius::EncryptionLevel;

use super::token::Identity;
use crate::clients::percent_decoded;
use crate::connection::{Connection, UNNAMED_HOST};
use crate::error::{Error, ErrorKind, Result};

/// A server that does not let us in within this time is not there. A paused Azure database takes longer
/// to wake, and says so; then the log-in is tried again.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// Where to connect, as whom, and how.
pub(super) struct Params {
    pub(super) host: String,
    pub(super) port: Option<u16>,
    pub(super) instance: Option<String>,
    pub(super) browser_port: Option<u16>,
    pub(super) database: Option<String>,
    pub(super) auth: Auth,
    pub(super) encryption: EncryptionLevel,
    pub(super) trust: bool,
    pub(super) ca: Option<PathBuf>,
    pub(super) certificate: Option<(PathBuf, PathBuf)>,
    pub(super) name_in_certificate: Option<String>,
    pub(super) application_name: String,
    pub(super) read_only: bool,
    pub(super) all_addresses: bool,
    pub(super) connect_timeout: Duration,
    pub(super) connect_retries: u32,
    pub(super) statement_timeout: Option<Duration>,
    pub(super) packet_size: u32,
}

/// Who we are.
pub(super) enum Auth {
    /// A login of the server's own.
    Login { user: String, password: String },
    /// An Entra access token that the user got.
    Token(String),
    /// An Entra access token that we get.
    Entra(Identity),
}

/// The largest packet that fits into one TLS record: fewer, larger packets read faster.
const PACKET_SIZE: u32 = 16_383;

/// The option's own name, and under which others it goes. Letters and digits only, in lower case.
const OPTIONS: &[(&str, &[&str])] = &[
    ("host", &["server", "datasource", "address", "addr", "networkaddress", "servername"]),
    ("port", &["portnumber"]),
    ("instance", &["instancename"]),
    ("browser_port", &[]),
    ("database", &["initialcatalog", "databasename"]),
    ("user", &["userid", "uid", "username"]),
    ("password", &["pwd"]),
    ("auth", &["authentication", "fedauth"]),
    ("access_token", &["accesstoken"]),
    ("tenant", &["tenantid"]),
    ("client_id", &["msiclientid", "clientid"]),
    ("client_secret", &["secret"]),
    ("token_url", &[]),
    ("imds_url", &[]),
    ("encrypt", &["encryption"]),
    ("trust_server_certificate", &["trustcert"]),
    ("ca", &["servercertificate", "certificate", "trustservercertificateca", "sslrootcert"]),
    ("client_certificate", &["sslcert"]),
    ("client_key", &["sslkey"]),
    ("host_name_in_certificate", &[]),
    ("application_name", &["app", "appname"]),
    ("application_intent", &[]),
    ("multi_subnet_failover", &[]),
    ("connect_timeout", &["connectiontimeout", "timeout", "dialtimeout", "logintimeout"]),
    ("connect_retries", &["connectretrycount"]),
    ("statement_timeout", &["commandtimeout", "querytimeout", "sockettimeout"]),
    ("packet_size", &[]),
    ("trusted_connection", &["integratedsecurity"]),
];

/// Known to other clients, without a meaning here.
const IGNORED: &[&str] = &[
    "persistsecurityinfo",
    "pooling",
    "minpoolsize",
    "maxpoolsize",
    "multipleactiveresultsets",
    "marsconnection",
    "driver",
    "workstationid",
    "wsid",
    "language",
    "currentlanguage",
    "connectretryinterval",
    "keepalive",
    "loglevel",
    "sendstringparametersasunicode",
];

type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Params {
    /// Reads a connection and this process's environment.
    pub(super) fn of(connection: &Connection) -> Result<Self> {
        let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self::read(connection, &env).map_err(|error| error.with("connection", connection.name()))
    }

    fn read(connection: &Connection, env: Env<'_>) -> Result<Self> {
        let url = connection.expose();
        let said = Said::of(url)?;
        let named = url.host_str().filter(|host| *host != UNNAMED_HOST && !host.is_empty());
        let host = match named {
            Some(host) => percent_decoded(host)?,
            None => said.get("host").or_else(|| env("SQLCMDSERVER")).unwrap_or_else(|| "localhost".into()),
        };
        let (host, mut port, mut instance) = server(&host)?;
        if let Some(said) = url.port().map(|port| port.to_string()).or_else(|| said.get("port")) {
            port = Some(said.parse().map_err(|_| config(format!("`{said}` is not a port")))?);
        }
        if let Some(said) = said.get("instance") {
            instance = Some(said);
        }
        let path = percent_decoded(url.path().trim_start_matches('/'))?;
        let database = match path.is_empty() {
            false => Some(path),
            true => said.get("database").or_else(|| env("SQLCMDDBNAME")),
        };
        let encryption = encryption(&said)?;
        let trust = said.flag("trust_server_certificate")?.unwrap_or(false);
        let ca = said.get("ca").map(PathBuf::from);
        if trust && ca.is_some() {
            return Err(config("`ca` and `trust_server_certificate` contradict each other")
                .hint("`ca` proves the server, `trust_server_certificate` takes any"));
        }
        let certificate = match (said.get("client_certificate"), said.get("client_key")) {
            (Some(certificate), Some(key)) => Some((certificate.into(), key.into())),
            (None, None) => None,
            _ => {
                return Err(config("`client_certificate` and `client_key` belong together, one is missing"));
            }
        };
        Ok(Self {
            host,
            port,
            // A port says more than a name.
            instance: instance.filter(|_| port.is_none()),
            browser_port: said.number("browser_port")?,
            database,
            auth: auth(url, &said, env)?,
            encryption,
            trust,
            ca,
            certificate,
            name_in_certificate: said.get("host_name_in_certificate"),
            application_name: said.get("application_name").unwrap_or_else(|| "frazil".into()),
            read_only: match said.get("application_intent").map(|text| bare(&text)).as_deref() {
                None | Some("readwrite") => false,
                Some("readonly") => true,
                Some(other) => {
                    return Err(unknown_word("application_intent", other, "ReadOnly or ReadWrite"));
                }
            },
            all_addresses: said.flag("multi_subnet_failover")?.unwrap_or(false),
            connect_timeout: said.seconds("connect_timeout")?.unwrap_or(CONNECT_TIMEOUT),
            connect_retries: said.number("connect_retries")?.unwrap_or(4),
            // None: a table lock or a large sort may take its time, and a dead peer is found by keep-alives.
            statement_timeout: said.seconds("statement_timeout")?,
            packet_size: said.number("packet_size")?.unwrap_or(PACKET_SIZE),
        })
    }
}

/// The options of a connection, under their own names.
struct Said(Vec<(&'static str, String)>);

impl Said {
    fn of(url: &url::Url) -> Result<Self> {
        let mut said = Vec::new();
        for (key, value) in url.query_pairs() {
            let word = bare(&key);
            if IGNORED.contains(&word.as_str()) {
                continue;
            }
            let own = OPTIONS.iter().find(|(own, others)| bare(own) == word || others.contains(&&*word));
            let (own, _) = own.ok_or_else(|| unknown_option(&key))?;
            said.push((*own, value.into_owned()));
        }
        Ok(Self(said))
    }

    fn get(&self, option: &str) -> Option<String> {
        self.0.iter().find(|(own, value)| *own == option && !value.is_empty()).map(|(_, value)| value.clone())
    }

    fn flag(&self, option: &str) -> Result<Option<bool>> {
        let Some(text) = self.get(option) else { return Ok(None) };
        match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "1" | "on" => Ok(Some(true)),
            "false" | "no" | "0" | "off" => Ok(Some(false)),
            _ => Err(unknown_word(option, &text, "true or false")),
        }
    }

    fn number<N: std::str::FromStr>(&self, option: &str) -> Result<Option<N>> {
        let number = |text: String| {
            text.parse().map_err(|_| config(format!("`{option}={text}` is not a number that fits")))
        };
        self.get(option).map(number).transpose()
    }

    /// Zero means no limit, as those strings have it: a day is as good and has an end.
    fn seconds(&self, option: &str) -> Result<Option<Duration>> {
        let seconds: Option<u32> = self.number(option)?;
        Ok(seconds.map(|seconds| Duration::from_secs(if seconds == 0 { 86_400 } else { seconds.into() })))
    }
}

/// `tcp:host\instance,port`, as ADO writes it, and the names of this machine.
fn server(text: &str) -> Result<(String, Option<u16>, Option<String>)> {
    let text = text.trim().trim_start_matches("tcp:").trim_start_matches("lpc:");
    if text.starts_with("np:") || text.starts_with(r"\\") {
        return Err(config("named pipes are not supported").hint("write the server as `host,port`"));
    }
    let (text, port) = match text.rsplit_once(',') {
        Some((host, port)) => {
            (host, Some(port.trim().parse().map_err(|_| config(format!("`{port}` is not a port")))?))
        }
        None => (text, None),
    };
    let (host, instance) = match text.split_once('\\') {
        Some((host, instance)) => (host, Some(instance.to_owned()).filter(|name| !name.is_empty())),
        None => (text, None),
    };
    let host = host.trim().trim_start_matches('[').trim_end_matches(']');
    let here = host.is_empty() || host == "." || host.eq_ignore_ascii_case("(local)");
    Ok((if here { "localhost".into() } else { host.to_owned() }, port, instance))
}

fn encryption(said: &Said) -> Result<EncryptionLevel> {
    let Some(text) = said.get("encrypt") else { return Ok(EncryptionLevel::Required) };
    match text.to_ascii_lowercase().as_str() {
        "strict" => Ok(EncryptionLevel::Strict),
        "true" | "yes" | "mandatory" | "1" | "require" => Ok(EncryptionLevel::Required),
        // As elsewhere: the log-in is encrypted, what follows is not.
        "false" | "no" | "optional" | "0" => Ok(EncryptionLevel::Off),
        "disable" => Ok(EncryptionLevel::NotSupported),
        _ => Err(unknown_word("encrypt", &text, "strict, true, false (the log-in only) or disable")),
    }
}

fn auth(url: &url::Url, said: &Said, env: Env<'_>) -> Result<Auth> {
    let user = match url.username() {
        "" => said.get("user"),
        user => Some(percent_decoded(user)?),
    };
    let password = match url.password() {
        Some(password) => Some(percent_decoded(password)?),
        None => said.get("password"),
    };
    if said.flag("trusted_connection").unwrap_or(Some(true)).unwrap_or(false) {
        return Err(no_windows());
    }
    let missing = |what: &str| config(format!("`{what}` is missing for this `auth`"));
    let word = said.get("auth").map(|text| bare(&text));
    match word.as_deref() {
        None if said.get("access_token").is_some() => {}
        None | Some("sql" | "sqlpassword" | "sqlserver" | "notspecified") => {
            let user = user.or_else(|| env("SQLCMDUSER")).ok_or_else(|| {
                config("no user is given")
                    .hint("write `mssql://user:${PASSWORD}@host/database`, or say how to log in with `auth`")
            })?;
            let password = password.or_else(|| env("SQLCMDPASSWORD")).ok_or_else(|| {
                Error::new(ErrorKind::Permission, "the server asks for a password and none was given")
                    .hint("put it into the URL (`${PASSWORD}`), or set SQLCMDPASSWORD")
            })?;
            return Ok(Auth::Login { user, password });
        }
        Some("token" | "accesstoken" | "activedirectoryaccesstoken") => {}
        Some("serviceprincipal" | "activedirectoryserviceprincipal") => {
            let client_id = said.get("client_id").or(user).ok_or_else(|| missing("client_id"))?;
            // `client@tenant`, as other clients write it.
            let (client_id, in_user) = match client_id.split_once('@') {
                Some((client, tenant)) => (client.to_owned(), Some(tenant.to_owned())),
                None => (client_id, None),
            };
            let token_url = match said.get("token_url") {
                Some(url) => url,
                None => {
                    let tenant = said.get("tenant").or(in_user).ok_or_else(|| missing("tenant"))?;
                    format!("https://login.microsoftonline.com/{tenant}/oauth2/v2.0/token")
                }
            };
            let client_secret =
                said.get("client_secret").or(password).ok_or_else(|| missing("client_secret"))?;
            return Ok(Auth::Entra(Identity::ServicePrincipal { token_url, client_id, client_secret }));
        }
        Some("managedidentity" | "activedirectorymanagedidentity" | "activedirectorymsi") => {
            let imds_url = said
                .get("imds_url")
                .unwrap_or_else(|| "http://169.254.169.254/metadata/identity/oauth2/token".into());
            return Ok(Auth::Entra(Identity::Managed {
                imds_url,
                client_id: said.get("client_id").or(user),
            }));
        }
        Some("ntlm" | "windows" | "activedirectoryintegrated" | "kerberos") => return Err(no_windows()),
        Some(other) => {
            return Err(unknown_word("auth", other, "sql, token, service_principal or managed_identity"));
        }
    }
    said.get("access_token").map(Auth::Token).ok_or_else(|| missing("access_token"))
}

fn no_windows() -> Error {
    Error::new(ErrorKind::Unsupported, "Windows log-ins (NTLM, Kerberos) are not in this build")
        .hint("use a SQL login, or Entra: `auth=service_principal` or `auth=managed_identity`")
}

/// Letters and digits in lower case: how spellings are compared.
fn bare(text: &str) -> String {
    text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

fn unknown_word(option: &str, text: &str, known: &str) -> Error {
    config(format!("`{option}={text}` is not known")).hint(format!("use {known}"))
}

fn unknown_option(key: &str) -> Error {
    let word = bare(key);
    let near = OPTIONS
        .iter()
        .max_by(|(a, _), (b, _)| strsim::jaro(&word, &bare(a)).total_cmp(&strsim::jaro(&word, &bare(b))));
    let error = config(format!("a SQL Server connection has no option `{key}`"));
    match near.filter(|(near, _)| strsim::jaro(&word, &bare(near)) > 0.7) {
        Some((near, _)) => error.hint(format!("did you mean `{near}`?")),
        None => {
            let known: Vec<_> = OPTIONS.iter().map(|(own, _)| *own).collect();
            error.hint(format!("known are {}", known.join(", ")))
        }
    }
}

fn config(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Config, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Params> {
        Params::read(&Connection::parse("test", text)?, &|_| None)
    }

    /// Host, port, instance, database, user, password.
    fn place(text: &str) -> String {
        let params = read(text).unwrap();
        let Auth::Login { user, password } = params.auth else { panic!("not a login") };
        format!(
            "{} {:?} {:?} {:?} {user} {password}",
            params.host, params.port, params.instance, params.database
        )
    }

    #[test]
    fn all_ways_to_write_an_address_mean_the_same() {
        let port = r#"db.example Some(1444) None Some("shop") sa p;w=1"#;
        for text in [
            "mssql://sa:p;w=1@db.example:1444/shop",
            "sqlserver://sa:p%3Bw%3D1@db.example:1444?database=shop",
            "Server=tcp:db.example,1444;Database=shop;User Id=sa;Password='p;w=1'",
            "data source=db.example,1444;Initial Catalog={shop};uid=sa;pwd={p;w=1};Pooling=false",
            "jdbc:sqlserver://db.example:1444;databaseName=shop;user=sa;password={p;w=1}",
            "sqlserver://db.example:1444;databaseName=shop;user=sa;password={p;w=1};",
        ] {
            assert_eq!(place(text), port, "{text}");
        }
        let instance = r#"db.example None Some("SALES") Some("shop") sa pw"#;
        for text in [
            r"mssql://sa:pw@db.example\SALES/shop",
            "mssql://sa:pw@db.example/shop?instance=SALES",
            r"Server=db.example\SALES;Database=shop;UID=sa;PWD=pw",
            r"jdbc:sqlserver://db.example\SALES;databaseName=shop;user=sa;password=pw",
        ] {
            assert_eq!(place(text), instance, "{text}");
        }
        assert_eq!(place("Server=.;User=sa;Password=x"), "localhost None None None sa x");
        assert_eq!(place("mssql://sa:x@[::1]:7/d"), r#"::1 Some(7) None Some("d") sa x"#);
        // A port says more than a name.
        assert_eq!(place(r"Server=h\I,5;User=sa;Password=x"), "h Some(5) None None sa x");
    }

    #[test]
    fn no_secret_shows() {
        for text in [
            "Server=h;User=sa;Password=s3cret",
            "mssql://h/d?user=sa&password=s3cret",
            "mssql://sa:s3cret@h/d?client_secret=s3cret",
            "jdbc:sqlserver://h;user=sa;password=s3cret",
        ] {
            let connection = Connection::parse("test", text).unwrap();
            assert!(!format!("{connection} {connection:?}").contains("s3cret"), "{text}");
        }
        for text in ["Server=h;User=sa;Pasword=s3cret", "Server=h;User=sa;Password='s3cret"] {
            let error = match Connection::parse("test", text) {
                Ok(connection) => Params::read(&connection, &|_| None).err().unwrap(),
                Err(error) => error,
            };
            assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
        }
    }

    #[test]
    fn options_have_many_spellings_and_a_wrong_one_is_named() {
        let params = read("mssql://u:p@h/d?TrustServerCertificate=yes&Application Intent=ReadOnly&Connect Timeout=3&encrypt=strict&CommandTimeout=0").unwrap();
        assert!(params.trust && params.read_only);
        assert_eq!(params.connect_timeout, Duration::from_secs(3));
        assert_eq!(params.statement_timeout, Some(Duration::from_secs(86_400)));
        assert_eq!(params.encryption, EncryptionLevel::Strict);
        assert_eq!(params.packet_size, PACKET_SIZE);
        let error = read("mssql://u:p@h/d?trust_server_cert=1").err().unwrap();
        assert_eq!(error.hint_text(), Some("did you mean `trust_server_certificate`?"));
        assert_eq!(read("mssql://u:p@h/d").unwrap().encryption, EncryptionLevel::Required);
        assert!(read("mssql://u:p@h/d?encrypt=maybe").is_err());
        assert!(read("mssql://u:p@h/d?ca=/x&trust_server_certificate=true").is_err());
        assert_eq!(read("Server=h;Integrated Security=SSPI").err().unwrap().kind(), ErrorKind::Unsupported);
        assert_eq!(read("mssql://u@h/d").err().unwrap().kind(), ErrorKind::Permission);
    }

    #[test]
    fn entra_has_three_ways() {
        let auth = |options: &str| read(&format!("mssql://h/d?{options}")).map(|params| params.auth);
        assert!(matches!(auth("access_token=abc").unwrap(), Auth::Token(token) if token == "abc"));
        let Auth::Entra(Identity::ServicePrincipal { token_url, client_id, client_secret }) =
            auth("Authentication=ActiveDirectoryServicePrincipal&user=app@ten&password=s").unwrap()
        else {
            panic!("not a service principal")
        };
        assert_eq!(token_url, "https://login.microsoftonline.com/ten/oauth2/v2.0/token");
        assert_eq!((client_id.as_str(), client_secret.as_str()), ("app", "s"));
        assert!(matches!(auth("auth=managed_identity").unwrap(), Auth::Entra(Identity::Managed { .. })));
        let error = auth("auth=service_principal&tenant=t&client_id=c").err().unwrap();
        assert_eq!(error.message(), "`client_secret` is missing for this `auth`");
        assert_eq!(auth("auth=ntlm").err().unwrap().kind(), ErrorKind::Unsupported);
    }
}
