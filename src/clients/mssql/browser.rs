//! Asks the SQL Server Browser on which port a named instance listens.

use std::io;
use std::time::Duration;

use tokio::net::UdpSocket;

use crate::error::{Error, ErrorKind, Result};

/// Where the browser listens.
const PORT: u16 = 1434;

/// The question for one instance.
const UNICAST_INSTANCE: u8 = 4;

/// A datagram may get lost: the question is put this often, and an answer awaited this long.
const TRIES: usize = 3;
const PATIENCE: Duration = Duration::from_secs(1);

/// The TCP port of an instance. `browser` overrides the browser's own port, for tests and relays.
pub(super) async fn port(host: &str, browser: Option<u16>, instance: &str) -> Result<u16> {
    let silent = |_: io::Error| {
        Error::new(ErrorKind::Transient, "the SQL Server Browser does not answer")
            .with("instance", instance)
            .hint("start it, let UDP port 1434 through, or write the instance's port instead of its name")
    };
    let unspecified = if host.contains(':') { "[::]:0" } else { "0.0.0.0:0" };
    let socket = UdpSocket::bind(unspecified).await.map_err(silent)?;
    socket.connect((host, browser.unwrap_or(PORT))).await.map_err(silent)?;
    let mut question = vec![UNICAST_INSTANCE];
    question.extend(instance.as_bytes());
    question.push(0);
    let mut answer = vec![0_u8; 4096];
    for _ in 0..TRIES {
        socket.send(&question).await.map_err(silent)?;
        match tokio::time::timeout(PATIENCE, socket.recv(&mut answer)).await {
            Ok(read) => {
                let length = read.map_err(silent)?;
                return tcp_port(&answer[..length], instance).ok_or_else(|| {
                    Error::new(
                        ErrorKind::Config,
                        "the server has no such instance, or it does not listen on TCP",
                    )
                    .with("instance", instance)
                });
            }
            Err(_) => continue,
        }
    }
    Err(silent(io::ErrorKind::TimedOut.into()))
}

/// `5`, a length, then `ServerName;A;InstanceName;B;…;tcp;1433;…;;`: pairs of key and value.
fn tcp_port(answer: &[u8], instance: &str) -> Option<u16> {
    let text = String::from_utf8_lossy(answer.get(3..)?).into_owned();
    let words: Vec<&str> = text.split(';').collect();
    let value = |key: &str| {
        words.chunks(2).find(|pair| pair[0].eq_ignore_ascii_case(key)).and_then(|pair| pair.get(1)).copied()
    };
    // Anybody can send a datagram: one about another instance is no answer.
    value("InstanceName").filter(|name| name.eq_ignore_ascii_case(instance))?;
    value("tcp")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &str) -> Vec<u8> {
        let mut bytes = vec![5, 0, 0];
        bytes.extend(text.as_bytes());
        bytes
    }

    #[test]
    fn the_port_is_read_from_the_pairs() {
        let text = answer("ServerName;DB;InstanceName;SHOP;IsClustered;No;Version;16.0;tcp;51433;np;\\\\x;;");
        assert_eq!(tcp_port(&text, "shop"), Some(51433));
        assert_eq!(tcp_port(&text, "other"), None);
        assert_eq!(tcp_port(&answer("ServerName;DB;InstanceName;SHOP;;"), "shop"), None);
        assert_eq!(tcp_port(&[5], "shop"), None);
    }

    #[tokio::test]
    async fn the_browser_is_asked_again_when_a_datagram_is_lost() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let at = server.local_addr().unwrap().port();
        let asked = tokio::spawn(async move {
            let mut question = [0_u8; 64];
            server.recv_from(&mut question).await.unwrap();
            let (length, from) = server.recv_from(&mut question).await.unwrap();
            server.send_to(&answer("InstanceName;shop;tcp;7;;"), from).await.unwrap();
            question[..length].to_vec()
        });
        assert_eq!(port("127.0.0.1", Some(at), "shop").await.unwrap(), 7);
        assert_eq!(asked.await.unwrap(), b"\x04shop\0");
    }
}
