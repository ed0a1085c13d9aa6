//! How database servers and files are reached, for whoever needs one: connectors and the SQL catalog.
//!
//! Each client turns foreign errors into ours in one function, and shows no password.

pub(crate) mod mssql;
pub(crate) mod mysql;
pub(crate) mod postgres;
pub(crate) mod sqlite;
pub(crate) mod text;

use std::io;
use std::sync::Once;
use std::time::Duration;

use tokio::net::TcpStream;

use crate::error::{Error, ErrorKind, Result};

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

/// Some clients ask the process which cryptography to use; everything else here says it by itself.
fn use_our_cryptography() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Whoever was first has decided, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

/// A part of a URL without its percent-encoding. A plus stays a plus.
fn percent_decoded(text: &str) -> Result<String> {
    let pair = format!("x={}", text.replace('+', "%2B").replace('&', "%26"));
    let value = url::form_urlencoded::parse(pair.as_bytes()).next().map(|(_, value)| value.into_owned());
    value.filter(|value| !value.contains('\u{fffd}')).ok_or_else(|| {
        Error::new(ErrorKind::Config, "the URL is not percent-encoded properly").hint("write `%` as `%25`")
    })
}
