//! Opens sessions on a Postgres server: hosts in turn, TLS as asked, settings that we rely on.
//!
//! ```text
//! URL, PG*, password file ──▶ host ──▶ TLS? ──▶ log-in ──▶ settings ──▶ Session
//! ```
//!
//! A session dereferences to the client. It ends when it is dropped: nothing waits for a statement
//! that nobody wants any more.

use std::io;
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;
use tokio_postgres::config::{SslMode as ClientSslMode, SslNegotiation};
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::error::{from_io, lost, translate};
use super::params::{Params, SessionKind, SslMode};
use super::tap::{Switch, Tap};
use super::tls;
use crate::clients::keep_alive;
use crate::connection::Connection;
use crate::error::{Error, ErrorKind, Result};

/// The first message of a client that would like TLS.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// What we rely on, whatever role and database have set: texts that are exact and the same everywhere,
/// and no time limit that ends a long read, unless the URL has one. `lc_monetary` stays: it says where `money` has its point.
/// Tests pretend to an old server by `options=-c frazil.pretended_version=…`.
const SETTINGS: &str = "SELECT coalesce(nullif(current_setting('frazil.pretended_version', true), ''), \
     current_setting('server_version_num')), pg_is_in_recovery(), \
     current_setting('TimeZone'), pg_backend_pid();\
     SET datestyle = 'ISO, MDY'; SET intervalstyle = 'iso_8601'; SET timezone = 'UTC'; \
     SET extra_float_digits = 3; SET bytea_output = 'hex'; SET xmloption = 'content'; \
     SET standard_conforming_strings = on; SET client_min_messages = warning; \
     SET idle_in_transaction_session_timeout = 0; SET lock_timeout = 0; \
     SELECT set_config('jit', 'off', false) FROM pg_settings WHERE name = 'jit'";

/// An open session.
pub(crate) struct Session {
    client: Client,
    switch: Switch,
    server: Server,
    driver: JoinHandle<()>,
}

/// What a session knows of its server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Server {
    /// `server_version_num`: 150004 is 15.4.
    pub(crate) version: u32,
    /// Whether it is a replica that cannot see who writes on its primary.
    pub(crate) standby: bool,
    /// The time zone that role and database have set; the session itself runs in UTC.
    pub(crate) time_zone: String,
    /// The server process of this session.
    pub(crate) pid: i32,
}

impl Session {
    /// What this session knows of its server.
    pub(crate) fn server(&self) -> &Server {
        &self.server
    }

    /// Where the rows of the next COPY come out.
    pub(crate) fn switch(&self) -> &Switch {
        &self.switch
    }
}

impl Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Session {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Opens a session on the first host that lets us in and is of the kind that is asked for.
pub(crate) async fn connect(connection: &Connection) -> Result<Session> {
    let mut params = Params::of(connection)?;
    if params.session == SessionKind::PreferStandby {
        params.session = SessionKind::Standby;
        if let Ok(session) = connect_to(connection, &params).await {
            return Ok(session);
        }
        params.session = SessionKind::Any;
    }
    connect_to(connection, &params).await
}

async fn connect_to(connection: &Connection, params: &Params) -> Result<Session> {
    let mut first = None;
    for (host, port) in &params.hosts {
        let opened = tokio::time::timeout(params.connect_timeout, open(params, host, *port)).await;
        let error = match opened {
            Ok(Ok(session)) => return Ok(session),
            Ok(Err(error)) => error,
            Err(_) => from_io(&io::ErrorKind::TimedOut.into()),
        };
        let error = error.with("connection", connection.name()).with("host", format!("{host}:{port}"));
        first.get_or_insert(error);
    }
    Err(first.expect("there is always a host to try"))
}

/// Tries one host, with and without TLS in the order that `sslmode` gives.
async fn open(params: &Params, host: &str, port: u16) -> Result<Session> {
    // TLS means nothing on a local socket; libpq leaves it out there too.
    let mode = if host.starts_with('/') { SslMode::Disable } else { params.tls.mode };
    let session = match mode {
        SslMode::Disable => log_in(params, host, port, Tls::Never).await?,
        SslMode::Allow => match log_in(params, host, port, Tls::Never).await {
            Err(error) if error.kind() == ErrorKind::Permission => {
                log_in(params, host, port, Tls::Must).await.map_err(|_| error)?
            }
            outcome => outcome?,
        },
        SslMode::Prefer => match log_in(params, host, port, Tls::May).await {
            Err(error) if matches!(error.kind(), ErrorKind::Permission | ErrorKind::Config) => {
                log_in(params, host, port, Tls::Never).await.map_err(|_| error)?
            }
            outcome => outcome?,
        },
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => {
            log_in(params, host, port, Tls::Must).await?
        }
    };
    match (params.session, session.server.standby) {
        (SessionKind::Primary, true) => {
            Err(Error::new(ErrorKind::Transient, "the server is a replica, a primary is asked for"))
        }
        (SessionKind::Standby, false) => {
            Err(Error::new(ErrorKind::Transient, "the server is a primary, a replica is asked for"))
        }
        _ => Ok(session),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tls {
    Never,
    May,
    Must,
}

async fn log_in(params: &Params, host: &str, port: u16, tls: Tls) -> Result<Session> {
    let mut socket = dial(host, port).await?;
    let mut config = Config::new();
    config.user(&params.user).dbname(&params.database).application_name(&params.application_name);
    if let Some(password) = &params.password {
        config.password(password);
    }
    if let Some(options) = &params.options {
        config.options(options);
    }
    let switch = Switch::default();
    let (client, driver) = if tls != Tls::Never && asks_for_tls(&mut socket, tls).await? {
        // The question was asked and answered here, so the client goes straight to the handshake.
        config.ssl_mode(ClientSslMode::Require).ssl_negotiation(SslNegotiation::Direct);
        let mut rustls = tls::connector(&params.tls)?;
        let Ok(handshake) =
            <MakeRustlsConnect as MakeTlsConnect<Socket>>::make_tls_connect(&mut rustls, host);
        let handshake = Tapped { handshake, switch: switch.clone() };
        let (client, driver) =
            config.connect_raw(socket, handshake).await.map_err(|error| translate(&error))?;
        (client, tokio::spawn(drive(driver)))
    } else {
        config.ssl_mode(ClientSslMode::Disable);
        let (client, driver) = config
            .connect_raw(Tap::new(socket, switch.clone()), NoTls)
            .await
            .map_err(|error| translate(&error))?;
        (client, tokio::spawn(drive(driver)))
    };
    // From here on the session ends the driver, whatever happens.
    let unknown = Server { version: 0, standby: false, time_zone: String::new(), pid: 0 };
    let mut session = Session { client, switch, server: unknown, driver };
    session.server = settle(&session.client, params.statement_timeout).await?;
    Ok(session)
}

/// Answers the server until the session ends. An error reaches whoever waits for an answer.
async fn drive(driver: impl Future<Output = Result<(), tokio_postgres::Error>>) {
    if let Err(error) = driver.await {
        tracing::debug!(error = %translate(&error), "a postgres session ended");
    }
}

/// Brings the settings in order and learns about the server, in one round trip.
async fn settle(client: &Client, statement_timeout: Option<Duration>) -> Result<Server> {
    let limit = statement_timeout.map_or(0, |limit| limit.as_millis());
    let answers = client.simple_query(&format!("{SETTINGS}; SET statement_timeout = {limit}")).await?;
    let row = answers.iter().find_map(|answer| match answer {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    let row = row.ok_or_else(|| lost("the server did not say what it is"))?;
    let text = |i: usize| row.get(i).unwrap_or_default();
    Ok(Server {
        version: text(0).parse().unwrap_or(0),
        standby: text(1) == "t",
        time_zone: text(2).to_owned(),
        pid: text(3).parse().unwrap_or(0),
    })
}

/// Asks whether the server speaks TLS. The answer is one byte, and nothing may follow it in the clear.
async fn asks_for_tls(socket: &mut Socket, tls: Tls) -> Result<bool> {
    socket.write_all(&SSL_REQUEST).await.map_err(|error| from_io(&error))?;
    let answer = socket.read_u8().await.map_err(|error| from_io(&error))?;
    match answer {
        b'S' => Ok(true),
        b'N' if tls == Tls::Must => Err(Error::new(ErrorKind::Config, "the server does not speak TLS")
            .hint("switch `ssl` on in its configuration, or use `sslmode=prefer`")),
        b'N' => Ok(false),
        _ => Err(Error::new(ErrorKind::Config, "what answers there is no Postgres server")),
    }
}

/// What a session runs over.
struct Socket(Box<dyn Io>);

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_read(cx, out)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_shutdown(cx)
    }
}

async fn dial(host: &str, port: u16) -> Result<Socket> {
    if host.starts_with('/') {
        let path = Path::new(host).join(format!(".s.PGSQL.{port}"));
        let socket = UnixStream::connect(path).await.map_err(|error| from_io(&error))?;
        return Ok(Socket(Box::new(socket)));
    }
    let addresses = tokio::net::lookup_host((host, port)).await.map_err(|error| unknown_host(&error))?;
    let mut refused = None;
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(socket) => {
                keep_alive(&socket).map_err(|error| from_io(&error))?;
                return Ok(Socket(Box::new(socket)));
            }
            Err(error) => refused = Some(from_io(&error)),
        }
    }
    Err(refused.unwrap_or_else(|| Error::new(ErrorKind::Config, "the host has no address")))
}

fn unknown_host(error: &io::Error) -> Error {
    Error::new(ErrorKind::Config, "the host is not known")
        .hint(format!("check its name in the connection's URL ({error})"))
}

/// A handshake that puts the tap on the clear side of the session.
struct Tapped<H> {
    handshake: H,
    switch: Switch,
}

impl<H> TlsConnect<Socket> for Tapped<H>
where
    H: TlsConnect<Socket, Error = io::Error>,
    H::Future: Send + 'static,
{
    type Stream = Tap<H::Stream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Stream>> + Send>>;

    fn connect(self, socket: Socket) -> Self::Future {
        let handshake = self.handshake.connect(socket);
        Box::pin(async move { Ok(Tap::new(handshake.await?, self.switch)) })
    }
}
