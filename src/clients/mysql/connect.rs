//! Opens sessions on a MySQL or MariaDB server: TLS as asked, log-in, settings that we rely on.

use std::io;
use std::time::Duration;

use mysql_async::{
    ClientIdentity, Compression, Conn, DriverError, Error as ClientError, OptsBuilder, SslOpts,
};

use super::error::{from_io, lost, translate};
use super::params::{Params, SslMode};
use super::session::{Server, Session, text};
use crate::clients::use_our_cryptography;
use crate::connection::Connection;
use crate::error::{Error, ErrorKind, Result};

/// A silent peer is asked after this time.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// The largest packet that the protocol knows: how large a row is, the server has decided.
const MAX_PACKET: usize = 1 << 30;

/// What we rely on, whatever the server's defaults are. A number that does not fit is an error and not
/// another number; 0 is a value for a key that counts by itself; times are in UTC and texts in UTF-8;
/// and no limit ends a long read, or one that waits until the lake has taken what came before.
const SETTINGS: &str = "SET NAMES utf8mb4, \
     SESSION sql_mode = 'STRICT_ALL_TABLES,NO_AUTO_VALUE_ON_ZERO,NO_ENGINE_SUBSTITUTION', \
     SESSION time_zone = '+00:00', SESSION autocommit = 1, \
     SESSION transaction_isolation = 'REPEATABLE-READ', \
     SESSION net_write_timeout = 28800, SESSION net_read_timeout = 28800, SESSION wait_timeout = 28800, \
     SESSION innodb_lock_wait_timeout = 60, SESSION lock_wait_timeout = 60, \
     SESSION sql_select_limit = DEFAULT, SESSION sql_auto_is_null = 0, SESSION sql_safe_updates = 0, \
     SESSION sql_big_selects = 1";

/// Limits of statements and transactions, by the names of each server.
const MARIADB: &str = "SET SESSION max_statement_time = 0, SESSION idle_transaction_timeout = 0, \
     SESSION idle_readonly_transaction_timeout = 0, SESSION idle_write_transaction_timeout = 0";
const MYSQL: &str = "SET SESSION max_execution_time = 0";

/// Opens a session.
pub(crate) async fn connect(connection: &Connection) -> Result<Session> {
    let params = Params::of(connection)?;
    use_our_cryptography();
    let opened = tokio::time::timeout(params.connect_timeout, Box::pin(open(&params))).await;
    let opened = opened.unwrap_or_else(|_| Err(from_io(&io::ErrorKind::TimedOut.into())));
    let place = match &params.socket {
        Some(socket) => socket.clone(),
        None => format!("{}:{}", params.host, params.port),
    };
    opened.map_err(|error| error.with("connection", connection.name()).with("host", place))
}

async fn open(params: &Params) -> Result<Session> {
    let encrypted = params.tls.mode != SslMode::Disabled;
    let conn = match Conn::new(options(params, encrypted)?).await {
        Err(ClientError::Driver(DriverError::NoClientSslFlagFromServer))
            if params.tls.mode == SslMode::Preferred =>
        {
            Conn::new(options(params, false)?).await
        }
        outcome => outcome,
    };
    settle(params, conn.map_err(|error| translate(&error))?).await
}

fn options(params: &Params, encrypted: bool) -> Result<OptsBuilder> {
    let options = OptsBuilder::default()
        .ip_or_hostname(params.host.clone())
        .tcp_port(params.port)
        .socket(params.socket.clone())
        .prefer_socket(false)
        .user(Some(params.user.clone()))
        .pass(params.password.clone())
        .db_name(params.database.clone())
        .tcp_keepalive(Some(KEEP_ALIVE))
        .max_allowed_packet(Some(MAX_PACKET))
        // An update that changes nothing has found its row all the same.
        .client_found_rows(true)
        .compression(params.compress.then(Compression::fast))
        .connect_attribute("program_name", params.program_name.clone());
    Ok(if encrypted { options.ssl_opts(tls(params)?) } else { options })
}

fn tls(params: &Params) -> Result<SslOpts> {
    let mode = params.tls.mode;
    let mut options = SslOpts::default()
        .with_danger_accept_invalid_certs(mode < SslMode::VerifyCa)
        .with_danger_skip_domain_validation(mode < SslMode::VerifyIdentity);
    let mut roots = Vec::new();
    if let Some(ca) = &params.tls.ca {
        roots.push(read(ca, "ssl-ca")?.into());
    } else if mode >= SslMode::VerifyCa {
        let found = rustls_native_certs::load_native_certs().certs;
        roots.extend(found.into_iter().map(|certificate| certificate.to_vec().into()));
        if roots.is_empty() {
            return Err(Error::new(ErrorKind::Config, "this machine knows no certificate authority")
                .hint("give one as `ssl-ca=/path/to/ca.pem`"));
        }
    }
    // Without a root of its own the client's verifier cannot be made, even where it is not asked.
    options = options.with_disable_built_in_roots(!roots.is_empty()).with_root_certs(roots);
    if let Some((cert, key)) = &params.tls.identity {
        let identity = ClientIdentity::new(read(cert, "ssl-cert")?.into(), read(key, "ssl-key")?.into());
        options = options.with_client_identity(Some(identity));
    }
    Ok(options)
}

/// Read here, so that an error names the file.
fn read(path: &std::path::Path, option: &str) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| {
        Error::new(ErrorKind::Config, format!("`{option}` cannot be read: {error}"))
            .with("file", path.display())
    })
}

/// Brings the settings in order and learns about the server.
async fn settle(params: &Params, conn: Conn) -> Result<Session> {
    let unknown = Server { mariadb: false, version: (0, 0), database: params.database.clone() };
    let mut session = Session::new(conn, unknown.clone());
    let rows = session.rows("SELECT VERSION()").await?;
    let version =
        rows.first().map(|row| text(row, 0)).ok_or_else(|| lost("the server did not say what it is"))?;
    let mariadb = version.contains("MariaDB");
    let server = Server { mariadb, version: numbers(&version), ..unknown };
    if !server.since((10, 3), (8, 0)) {
        return Err(Error::new(ErrorKind::Unsupported, "the server is older than MariaDB 10.3 or MySQL 8.0"));
    }
    // Its older name is the only one that MariaDB before 11.1 knows.
    let isolation =
        if mariadb && server.version < (11, 1) { "tx_isolation" } else { "transaction_isolation" };
    session.run(&SETTINGS.replace("transaction_isolation", isolation)).await?;
    session.run(if mariadb { MARIADB } else { MYSQL }).await?;
    session.set_server(server);
    Ok(session)
}

/// `10.11.19-MariaDB-log`, `8.0.36`; old clients see `5.5.5-10.11.19-MariaDB`.
fn numbers(version: &str) -> (u16, u16) {
    let version = version.strip_prefix("5.5.5-").filter(|rest| rest.contains("MariaDB")).unwrap_or(version);
    let mut parts = version.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(numbers("10.11.19-MariaDB-0+deb12u1-log"), (10, 11));
        assert_eq!(numbers("5.5.5-10.3.39-MariaDB"), (10, 3));
        assert_eq!(numbers("8.0.36"), (8, 0));
        assert_eq!(numbers("8.4.0-commercial"), (8, 4));
        assert_eq!(numbers("5.5.5"), (5, 5));
    }
}
