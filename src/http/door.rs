//! The door: how many connections there may be, and how long each may stay.
//!
//! Answers take milliseconds. Whoever opens connections and says nothing, or says it a byte at a time, would
//! take the place of those who ask; so there are few places, and none is kept for long.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

use super::tls::{Certificate, Wire};

/// Connections at the same time: some dashboards and some people.
pub(super) const MOST_CONNECTIONS: usize = 64;
/// A connection's life. Who keeps asking opens a new one; who was waiting for a place gets this one's.
pub(super) const LONGEST: Duration = Duration::from_secs(30);

/// Lets connections in.
pub(super) struct Door {
    listener: TcpListener,
    certificate: Option<Certificate>,
    places: Arc<Semaphore>,
    longest: Duration,
}

impl Door {
    /// Connections are encrypted where there is a certificate.
    pub(super) fn new(
        listener: TcpListener,
        certificate: Option<Certificate>,
        most: usize,
        longest: Duration,
    ) -> Self {
        Self { listener, certificate, places: Arc::new(Semaphore::new(most)), longest }
    }
}

impl Listener for Door {
    type Io = Guest;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Guest, SocketAddr) {
        let place = self.places.clone().acquire_owned().await.expect("nobody closes the door");
        let (stream, address) = Listener::accept(&mut self.listener).await;
        // Here it only begins: whoever is slow to agree keeps nobody waiting.
        let wire = match &self.certificate {
            Some(certificate) => Wire::Greeting(Box::new(certificate.greet(stream))),
            None => Wire::Plain(stream),
        };
        let leaves = Box::pin(tokio::time::sleep(self.longest));
        (Guest { wire, leaves, _place: place }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that was let in.
pub(super) struct Guest {
    wire: Wire,
    leaves: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl AsyncRead for Guest {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.leaves.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        ready!(self.wire.poll_open(cx))?.poll_read(cx, out)
    }
}

impl AsyncWrite for Guest {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.wire.poll_open(cx))?.poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.wire.poll_open(cx))?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.wire.poll_open(cx))?.poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn who_says_nothing_leaves_and_makes_place() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut door = Door::new(listener, None, 1, Duration::from_millis(50));
        let _silent = TcpStream::connect(address).await.unwrap();
        let _waiting = TcpStream::connect(address).await.unwrap();
        let (mut first, _) = door.accept().await;
        // There is one place only, and it is taken.
        assert!(tokio::time::timeout(Duration::from_millis(10), door.accept()).await.is_err());
        let error = first.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(first);
        door.accept().await;
    }
}
