//! How database servers and files are reached, for whoever needs one: connectors and the SQL catalog.
//!
//! Each client turns foreign errors into ours in one function, and shows no password.

pub(crate) mod mssql;
pub(crate) mod postgres;
pub(crate) mod sqlite;
pub(crate) mod text;

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;

/// A silent peer is asked after this time, then at this interval, this many times.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(30), Duration::from_secs(10), 6);

/// Sends what is written at once, and notices a peer that is gone.
fn keep_alive(socket: &TcpStream) -> io::Result<()> {
    let (idle, interval, retries) = KEEPALIVE;
    socket.set_nodelay(true)?;
    let keepalive =
        socket2::TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(retries);
    socket2::SockRef::from(socket).set_tcp_keepalive(&keepalive)
}

/// A server's message as ours begin and end: no capital, no full stop.
fn first_lower(message: &str) -> String {
    let mut chars = message.trim_end_matches('.').chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => String::new(),
    }
}
