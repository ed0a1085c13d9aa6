//! A named address of a database, with a secret inside that never shows.

mod limits;
mod strings;

use std::fmt;
use std::sync::Arc;

use url::Url;

use crate::error::{Error, ErrorKind, Result};
pub use limits::{Limiter, Limits, Place, divide_limits};

/// Where a database is and how to log in. `Debug` and `Display` show neither password nor query.
#[derive(Clone)]
pub struct Connection {
    name: String,
    url: Url,
    limiter: Option<Arc<Limiter>>,
}

/// Two that lead to one place are equal, whatever their limits.
impl PartialEq for Connection {
    fn eq(&self, other: &Self) -> bool {
        (&self.name, &self.url) == (&other.name, &other.url)
    }
}

impl Eq for Connection {}

impl Connection {
    /// Parses `scheme://user:password@host/database?option=value`, or a connection string as ADO.NET and
    /// JDBC write them. The error never repeats the text.
    pub fn parse(name: impl Into<String>, url: &str) -> Result<Self> {
        let name = name.into();
        let as_url = strings::to_url(url).map_err(|error| error.with("connection", &name))?;
        let url = as_url.as_deref().unwrap_or(url);
        let parsed = match Url::parse(url) {
            Err(url::ParseError::EmptyHost) => Url::parse(&with_unnamed_host(url)),
            parsed => parsed,
        };
        let url = parsed.map_err(|source| {
            Error::new(ErrorKind::Config, format!("connection `{name}` is not a URL: {source}"))
                .hint("write `postgres://user:${PASSWORD}@host/database` or `sqlite:///path/to/file.db`; percent-encode special characters in the password")
        })?;
        Ok(Self { name, url, limiter: None })
    }

    /// To be read within these limits, which it shares with all others of its name.
    #[must_use]
    pub fn within(mut self, limits: Limits) -> Self {
        self.limiter = (limits != Limits::default()).then(|| Limiter::of(&self.name, limits));
        self
    }

    /// What keeps its readers within limits, if it has any.
    pub fn limiter(&self) -> Option<&Arc<Limiter>> {
        self.limiter.as_ref()
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

/// Stands where a URL has a user and no host, as libpq allows: the host is in the query, or in the
/// environment. A blank, which can be no host's name.
pub const UNNAMED_HOST: &str = "%20";

/// `postgres://user@/db` with something for a host.
fn with_unnamed_host(url: &str) -> String {
    let authority = url.find("://").map_or(0, |at| at + 3);
    let end = url[authority..].find(['/', '?', '#']).map_or(url.len(), |at| authority + at);
    let host = url[authority..end].rfind('@').map_or(authority, |at| authority + at + 1);
    format!("{}{UNNAMED_HOST}{}", &url[..host], &url[host..])
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.url.scheme())?;
        if !self.url.username().is_empty() {
            write!(f, "{}@", self.url.username())?;
        }
        if let Some(host) = self.url.host_str().filter(|host| *host != UNNAMED_HOST) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_may_be_named_elsewhere() {
        for (url, shown) in [
            ("postgres://ann:s3cret@/shop?host=/run/pg", "postgres://ann@/shop"),
            ("postgres://ann@:6000/shop", "postgres://ann@:6000/shop"),
            ("postgres://ann@", "postgres://ann@"),
            ("postgres:///shop", "postgres:///shop"),
        ] {
            assert_eq!(Connection::parse("shop", url).unwrap().to_string(), shown);
        }
        assert!(Connection::parse("shop", "http://").is_err());
    }
}
