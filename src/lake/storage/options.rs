//! What the user says about the stores, by the names that Iceberg gives.

use std::collections::BTreeMap;
use std::fmt;

use object_store::{Certificate, ClientOptions};

use super::{REQUEST_TIMEOUT, azure, gcs, s3};
use crate::error::{Error, ErrorKind, Result};

/// A file of certificate authorities that are trusted beside the system's, for all stores.
const CA_BUNDLE: &str = "ssl.cabundle";

/// Options of all stores; they may hold secrets.
#[derive(Clone, Default)]
pub(super) struct Options(pub(super) BTreeMap<String, String>);

impl Options {
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Refuses names that no store knows: a misspelt option must not be a default.
    pub(super) fn check(&self) -> Result<()> {
        let known =
            |name: &str| name == CA_BUNDLE || s3::knows(name) || azure::knows(name) || gcs::knows(name);
        match self.0.keys().find(|name| !known(name)) {
            None => Ok(()),
            Some(name) => {
                Err(Error::new(ErrorKind::Config, format!("`{name}` is not an option of the stores"))
                    .hint("docs/guide/catalogs-and-stores.md lists them: s3.…, adls.…, gcs.…, ssl.cabundle"))
            }
        }
    }

    /// How servers are spoken to.
    pub(super) fn http(&self) -> Result<ClientOptions> {
        // An address without TLS has to be written out with `http://`; that is leave enough.
        let mut http = ClientOptions::new().with_timeout(REQUEST_TIMEOUT).with_allow_http(true);
        let said = self.get(CA_BUNDLE).map(str::to_owned);
        if let Some(file) = said.or_else(|| std::env::var("AWS_CA_BUNDLE").ok().filter(|v| !v.is_empty())) {
            let wrong = |source: Box<dyn std::error::Error + Send + Sync>| {
                Error::new(ErrorKind::Config, "the certificate authorities cannot be read")
                    .with("file", &file)
                    .because(source)
            };
            let pem = std::fs::read(&file).map_err(|source| wrong(source.into()))?;
            for certificate in Certificate::from_pem_bundle(&pem).map_err(|source| wrong(source.into()))? {
                http = http.with_root_certificate(certificate);
            }
        }
        Ok(http)
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Whether a switch is on.
pub(super) fn is_true(value: &str) -> bool {
    value.eq_ignore_ascii_case("true")
}
