//! Opens sessions: the instance's port, the token, the log-in, redirects, databases that wake up.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures::future::select_ok;
use tiberius::{AuthMethod, Config};
use tokio::net::TcpStream;
use tokio_util::compat::TokioAsyncWriteCompatExt;

use super::error::{from_io, is_waking, lost, translate};
use super::params::{Auth, Params};
use super::session::{Client, Server, Session};
use super::{browser, token};
use crate::clients::{keep_alive, use_our_cryptography};
use crate::connection::Connection;
use crate::error::{Error, ErrorKind, Result};

/// Azure redirects once, from its gateway to the machine; more is a loop.
const REDIRECTS: usize = 2;

/// A database that is waking up is asked again after this time, then after twice that, and so on.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// What we rely on, whatever the login and the database have set: the same texts everywhere, rules for
/// NULL and quotes that indexed views ask for, values in full length, and no limit that ends a long wait.
const SETTINGS: &str = "SET LANGUAGE us_english; SET DATEFORMAT ymd; \
     SET ANSI_NULLS, ANSI_PADDING, ANSI_WARNINGS, ARITHABORT, CONCAT_NULL_YIELDS_NULL, QUOTED_IDENTIFIER ON; \
     SET NUMERIC_ROUNDABORT, IMPLICIT_TRANSACTIONS, NOCOUNT OFF; \
     SET TEXTSIZE 2147483647; SET LOCK_TIMEOUT -1; SET ROWCOUNT 0; \
     SELECT CAST(SERVERPROPERTY('ProductVersion') AS nvarchar(128)) AS version, \
     CAST(SERVERPROPERTY('EngineEdition') AS int) AS edition, DB_NAME() AS name, CAST(@@SPID AS int) AS pid";

/// What a session is opened for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// Reads `�` where a text is not valid UTF-16; otherwise such a row ends the read with an error.
    pub(crate) lossy_text: bool,
}

/// Opens a session.
pub(crate) async fn connect(connection: &Connection, options: Options) -> Result<Session> {
    let params = Params::of(connection)?;
    let mut pause = FIRST_PAUSE;
    let mut left = params.connect_retries;
    loop {
        // Boxed, as are its parts: the client's own futures are large, and so would all be that wait for it.
        let error = match Box::pin(open(&params, options)).await {
            Ok(session) => return Ok(session),
            Err(error) => error,
        };
        if !is_waking(&error) || left == 0 {
            return Err(error.with("connection", connection.name()));
        }
        tracing::info!(connection = connection.name(), %error, "the database is not ready, trying again");
        tokio::time::sleep(pause).await;
        left -= 1;
        pause *= 2;
    }
}

/// Tries once, along redirects.
async fn open(params: &Params, options: Options) -> Result<Session> {
    let mut config = config(params, options).await?;
    let mut host = params.host.clone();
    let mut port = match (params.port, &params.instance) {
        (Some(port), _) => port,
        (None, Some(instance)) => browser::port(&host, params.browser_port, instance)
            .await
            .map_err(|error| error.with("host", &host))?,
        (None, None) => 1433,
    };
    for _ in 0..=REDIRECTS {
        let opened = tokio::time::timeout(
            params.connect_timeout,
            Box::pin(log_in(params, config.clone(), &host, port)),
        );
        let failed = match opened.await {
            Ok(Ok(client)) => return settle(params, client).await.map_err(at(&host, port)),
            Ok(Err(Failed::Redirected(to, at))) => {
                // The certificate is the new host's own, unless a name was said.
                config.host(&to);
                (host, port) = (to, at);
                continue;
            }
            Ok(Err(Failed::Error(error))) => error,
            Err(_) => from_io(io::ErrorKind::TimedOut, ""),
        };
        return Err(at(&host, port)(failed));
    }
    let again = Error::new(ErrorKind::Transient, "the server redirects us again and again");
    Err(at(&host, port)(again))
}

fn at(host: &str, port: u16) -> impl Fn(Error) -> Error {
    let place = format!("{host}:{port}");
    move |error| error.with("host", &place)
}

/// Why there is no session.
enum Failed {
    /// Another address is to be asked.
    Redirected(String, u16),
    Error(Error),
}

async fn config(params: &Params, options: Options) -> Result<Config> {
    let mut config = Config::new();
    config.host(&params.host);
    if let Some(database) = &params.database {
        config.database(database);
    }
    config.application_name(&params.application_name);
    config.readonly(params.read_only);
    config.packet_size(params.packet_size);
    config.encryption(params.encryption);
    config.handshake_timeout(Some(params.connect_timeout));
    config.command_timeout(params.statement_timeout);
    config.lossy_utf16_decoding(options.lossy_text);
    if params.trust {
        config.trust_cert();
    } else if let Some(ca) = &params.ca {
        // Read here, so that an error names the file.
        let bundle = std::fs::read(ca).map_err(|error| {
            Error::new(ErrorKind::Config, format!("`ca` cannot be read: {error}")).with("file", ca.display())
        })?;
        config.trust_cert_ca_bundle(bundle);
    }
    if let Some((certificate, key)) = &params.certificate {
        config.client_certificate(certificate, key);
    }
    if let Some(name) = &params.name_in_certificate {
        config.hostname_in_certificate(name);
    }
    config.authentication(match &params.auth {
        Auth::Login { user, password } => AuthMethod::sql_server(user, password),
        Auth::Token(token) => AuthMethod::aad_token(token),
        Auth::Entra(identity) => AuthMethod::aad_token(token::access_token(identity).await?),
    });
    Ok(config)
}

async fn log_in(params: &Params, config: Config, host: &str, port: u16) -> Result<Client, Failed> {
    use_our_cryptography();
    let socket = dial(host, port, params.all_addresses).await.map_err(Failed::Error)?;
    Box::pin(Client::connect(config, socket.compat_write())).await.map_err(|error| match error {
        tiberius::error::Error::Routing { host, port } => Failed::Redirected(host, port),
        error => Failed::Error(translate(&error)),
    })
}

async fn dial(host: &str, port: u16, all_at_once: bool) -> Result<TcpStream> {
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host, port))
        .await
        .map_err(|error| {
            Error::new(ErrorKind::Config, "the host is not known")
                .hint(format!("check its name in the connection's URL ({error})"))
        })?
        .collect();
    if addresses.is_empty() {
        return Err(Error::new(ErrorKind::Config, "the host has no address"));
    }
    let refused = |error: io::Error| from_io(error.kind(), "");
    let socket = if all_at_once {
        // Of the addresses of an availability group one listens; the others may swallow the question.
        let tries = addresses.into_iter().map(|address| Box::pin(TcpStream::connect(address)));
        select_ok(tries).await.map_err(refused)?.0
    } else {
        TcpStream::connect(addresses.as_slice()).await.map_err(refused)?
    };
    keep_alive(&socket).map_err(refused)?;
    Ok(socket)
}

/// Brings the settings in order and learns about the server, in one round trip.
async fn settle(params: &Params, client: Client) -> Result<Session> {
    let unknown = Server { version: 0, edition: 0, database: String::new(), pid: 0 };
    let mut session = Session { client, server: unknown };
    let rows = tokio::time::timeout(params.connect_timeout, session.rows(SETTINGS))
        .await
        .map_err(|_| from_io(io::ErrorKind::TimedOut, ""))??;
    let row = rows.first().ok_or_else(|| lost("the server did not say what it is"))?;
    let version = row.try_get::<&str, _>(0)?.unwrap_or_default();
    session.server = Server {
        version: version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0),
        edition: row.try_get::<i32, _>(1)?.unwrap_or(0),
        database: row.try_get::<&str, _>(2)?.unwrap_or_default().to_owned(),
        pid: row.try_get::<i32, _>(3)?.unwrap_or(0),
    };
    Ok(session)
}
