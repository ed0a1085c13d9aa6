//! A named address of a database, with a secret inside that never shows.

use std::fmt;

use url::Url;

use crate::error::{Error, ErrorKind, Result};

/// Where a database is and how to log in. `Debug` and `Display` show neither password nor query.
#[derive(Clone, PartialEq, Eq)]
pub struct Connection {
    name: String,
    url: Url,
}

impl Connection {
    /// Parses `scheme://user:password@host/database?option=value`. The error never repeats the text.
    pub fn parse(name: impl Into<String>, url: &str) -> Result<Self> {
        let name = name.into();
        let url = Url::parse(url).map_err(|source| {
            Error::new(ErrorKind::Config, format!("connection `{name}` is not a URL: {source}"))
                .hint("write `postgres://user:${PASSWORD}@host/database` or `sqlite:///path/to/file.db`; percent-encode special characters in the password")
        })?;
        Ok(Self { name, url })
    }

    /// The name in the configuration.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The part before `://`.
    pub fn scheme(&self) -> &str {
        self.url.scheme()
    }

    /// The whole address, password included: for the connector that dials it, and nobody else.
    pub fn expose(&self) -> &Url {
        &self.url
    }
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.url.scheme())?;
        if !self.url.username().is_empty() {
            write!(f, "{}@", self.url.username())?;
        }
        if let Some(host) = self.url.host_str() {
            f.write_str(host)?;
        }
        if let Some(port) = self.url.port() {
            write!(f, ":{port}")?;
        }
        f.write_str(self.url.path())
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({self})", self.name)
    }
}
