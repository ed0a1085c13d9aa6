//! TLS for whoever asks over a network: a certificate, and the connections that it encrypts.
//!
//! A certificate is renewed every few weeks, and a server runs for months. So each connection asks whether the
//! files were written anew; what cannot be used leaves the certificate of before in its place, and says so.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{Accept, TlsAcceptor};

use crate::error::{Error, ErrorKind, Result};

/// A certificate and its key, in PEM files that may be renewed.
#[derive(Debug)]
pub struct Certificate {
    chain: PathBuf,
    key: PathBuf,
    used: Mutex<Used>,
}

#[derive(Debug)]
struct Used {
    config: Arc<ServerConfig>,
    /// When the files were written that were read last.
    read: [Option<SystemTime>; 2],
}

impl Certificate {
    /// Reads the certificate with its chain, and its key.
    pub fn read(chain: &Path, key: &Path) -> Result<Self> {
        let read = [chain, key].map(written);
        let used = Mutex::new(Used { config: config(chain, key)?, read });
        Ok(Self { chain: chain.to_owned(), key: key.to_owned(), used })
    }

    /// Begins to encrypt a connection.
    pub(super) fn greet(&self, stream: TcpStream) -> Accept<TcpStream> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let now = [&self.chain, &self.key].map(|file| written(file));
        if now != used.read {
            used.read = now;
            match config(&self.chain, &self.key) {
                Ok(config) => {
                    used.config = config;
                    tracing::info!(file = %self.chain.display(), "a new certificate is in use");
                }
                // The certificate is written, the key may be about to be.
                Err(error) => tracing::warn!(%error, "the certificate of before stays in use"),
            }
        }
        TlsAcceptor::from(Arc::clone(&used.config)).accept(stream)
    }
}

fn written(file: &Path) -> Option<SystemTime> {
    std::fs::metadata(file).and_then(|about| about.modified()).ok()
}

fn config(chain: &Path, key: &Path) -> Result<Arc<ServerConfig>> {
    let refuse =
        |message: String, file: &Path| Error::new(ErrorKind::Config, message).with("file", file.display());
    let certificates = CertificateDer::pem_file_iter(chain)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| refuse(format!("the certificate cannot be read: {error}"), chain))?;
    if certificates.is_empty() {
        return Err(refuse("there is no certificate in the file".to_owned(), chain)
            .hint("it needs the server's certificate and those between it and the authority, as PEM"));
    }
    let key = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| refuse(format!("the certificate's key cannot be read: {error}"), key))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::new(ErrorKind::Internal, "no TLS version is left").because(error))?
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .map_err(|error| refuse(format!("certificate and key cannot be used: {error}"), chain))?;
    Ok(Arc::new(config))
}

/// A connection, encrypted or not.
pub(super) enum Wire {
    Plain(TcpStream),
    /// The two sides are about to agree; whoever reads or writes waits for it.
    Greeting(Box<Accept<TcpStream>>),
    Encrypted(Box<TlsStream<TcpStream>>),
    /// They did not agree.
    Closed,
}

/// What a connection does either way.
pub(super) trait Flow: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Flow for T {}

impl Wire {
    /// The side of the connection that is read from and written to.
    pub(super) fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Pin<&mut dyn Flow>>> {
        if let Self::Greeting(greeting) = self {
            let greeted = ready!(Pin::new(greeting.as_mut()).poll(cx));
            *self = match greeted {
                Ok(stream) => Self::Encrypted(Box::new(stream)),
                Err(error) => {
                    *self = Self::Closed;
                    return Poll::Ready(Err(error));
                }
            };
        }
        Poll::Ready(match self {
            Self::Plain(stream) => Ok(Pin::new(stream)),
            Self::Encrypted(stream) => Ok(Pin::new(stream.as_mut())),
            Self::Greeting(_) | Self::Closed => Err(io::ErrorKind::NotConnected.into()),
        })
    }
}
