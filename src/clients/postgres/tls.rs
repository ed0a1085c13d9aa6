//! TLS as libpq's `sslmode` means it: from encryption without proof to a certificate for this very host.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::params::{RootCert, SslMode, TlsParams};
use crate::error::{Error, ErrorKind, Result};

/// The client side of a TLS handshake for these settings.
pub(super) fn connector(params: &TlsParams) -> Result<MakeRustlsConnect> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Verifier::new(params, Arc::clone(&provider))?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::new(ErrorKind::Internal, "no TLS version is left").because(error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let config = match (&params.cert, &params.key) {
        (Some(cert), Some(key)) => {
            let chain = certificates(cert)?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(|error| {
                config(format!("`sslkey` cannot be read: {error}")).with("file", key.display())
            })?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| config(format!("`sslcert` and `sslkey` do not fit: {error}")))?
        }
        (None, None) => builder.with_no_client_auth(),
        _ => return Err(config("`sslcert` and `sslkey` belong together, one is missing")),
    };
    Ok(MakeRustlsConnect::new(config))
}

/// How much of a server's certificate is believed.
#[derive(Debug)]
struct Verifier {
    /// `None`: anything is, as `require` has it without an authority.
    authority: Option<Arc<WebPkiServerVerifier>>,
    host_name: bool,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn new(params: &TlsParams, provider: Arc<CryptoProvider>) -> Result<Self> {
        let proof = params.mode >= SslMode::VerifyCa
            || (params.mode == SslMode::Require && matches!(params.root, Some(RootCert::File(_))));
        let authority = if proof {
            let roots = roots(params.root.as_ref())?;
            let verifier =
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                    .build()
                    .map_err(|error| config(format!("no certificate authority can be used: {error}")))?;
            Some(verifier)
        } else {
            None
        };
        Ok(Self { authority, host_name: params.mode == SslMode::VerifyFull, provider })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(authority) = &self.authority else { return Ok(ServerCertVerified::assertion()) };
        match authority.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // The chain is verified before the name, so a wrong name is all that was wrong.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) if !self.host_name => Ok(ServerCertVerified::assertion()),
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn roots(root: Option<&RootCert>) -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    match root {
        Some(RootCert::File(path)) => {
            for certificate in certificates(path)? {
                store.add(certificate).map_err(|error| {
                    config(format!("`sslrootcert` has a certificate that cannot be used: {error}"))
                        .with("file", path.display())
                })?;
            }
        }
        Some(RootCert::System) | None => {
            store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if store.is_empty() {
        return Err(config("this machine knows no certificate authority")
            .hint("give one as `sslrootcert=/path/to/ca.pem`"));
    }
    Ok(store)
}

fn certificates(path: &std::path::Path) -> Result<Vec<CertificateDer<'static>>> {
    let unreadable = |error: rustls::pki_types::pem::Error| {
        config(format!("a certificate cannot be read: {error}")).with("file", path.display())
    };
    let chain = CertificateDer::pem_file_iter(path)
        .map_err(unreadable)?
        .collect::<Result<Vec<_>, _>>()
        .map_err(unreadable)?;
    if chain.is_empty() {
        return Err(config("the file holds no certificate").with("file", path.display()));
    }
    Ok(chain)
}

fn config(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Config, message)
}
