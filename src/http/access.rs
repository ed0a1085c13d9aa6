//! Who may ask: whoever has the token; without one, whoever is on this machine.
//!
//! A page in somebody's browser is on this machine too. So without a token a request must name this
//! machine as its host (a name that an attacker points here is not it) and must come from no page.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use ring::digest::{SHA256, digest};

use crate::error::{Error, ErrorKind, Result};

/// A shorter token could be guessed.
const SHORTEST_TOKEN: usize = 16;

/// Who may ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// The digest of the token: comparing digests tells nobody how much of a guess was right.
    token: Option<Vec<u8>>,
}

impl Access {
    /// The rule for an address. A token is needed for all that is not on this machine.
    pub fn new(address: IpAddr, token: Option<&str>) -> Result<Self> {
        let token = token.map(str::trim);
        if token.is_none() && !address.is_loopback() {
            return Err(Error::new(
                ErrorKind::Config,
                "other machines could reach it, and there is no token",
            )
            .with("address", address)
            .hint("give `--token-file` or FRAZIL_TOKEN, or listen on 127.0.0.1"));
        }
        if token.is_some_and(|token| token.len() < SHORTEST_TOKEN) {
            return Err(Error::new(
                ErrorKind::Config,
                format!("a token of fewer than {SHORTEST_TOKEN} characters can be guessed"),
            )
            .hint("`openssl rand -hex 32` makes a good one"));
        }
        Ok(Self { token: token.map(hashed) })
    }

    /// The token in a file.
    pub fn token_in(file: &Path) -> Result<String> {
        std::fs::read_to_string(file).map_err(|source| {
            Error::new(ErrorKind::Config, format!("the token cannot be read: {source}"))
                .with("file", file.display())
        })
    }

    fn admits(&self, headers: &HeaderMap) -> Result<()> {
        let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let refused = |message: &str| Error::new(ErrorKind::Permission, message);
        let Some(token) = &self.token else {
            if headers.contains_key(header::ORIGIN) {
                return Err(refused("requests of web pages are refused where no token is asked for"));
            }
            let local = text(header::HOST).is_some_and(is_this_machine);
            return if local { Ok(()) } else { Err(refused("the request is for another host")) };
        };
        let given = text(header::AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
        match given {
            Some(given) if hashed(given.trim()) == *token => Ok(()),
            _ => Err(refused("the token is missing or wrong").hint("send `Authorization: Bearer …`")),
        }
    }
}

fn hashed(token: &str) -> Vec<u8> {
    digest(&SHA256, token.as_bytes()).as_ref().to_vec()
}

/// `localhost:8085`, `127.0.0.1`, `[::1]:8085`.
fn is_this_machine(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.split(':').next().unwrap_or(host),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Lets a request through, or answers it.
pub(super) async fn guard(State(access): State<Arc<Access>>, request: Request, next: Next) -> Response {
    match access.admits(request.headers()) {
        Ok(()) => next.run(request).await,
        Err(error) if access.token.is_some() => super::refuse(StatusCode::UNAUTHORIZED, &error),
        Err(error) => super::refuse(StatusCode::FORBIDDEN, &error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn admits(access: &Access, headers: &[(&str, &str)]) -> bool {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(header::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        access.admits(&map).is_ok()
    }

    fn access(address: &str, token: Option<&str>) -> Result<Access> {
        Access::new(address.parse().unwrap(), token)
    }

    #[test]
    fn other_machines_need_a_token_and_a_good_one() {
        for (address, token, good) in [
            ("127.0.0.1", None, true),
            ("::1", None, true),
            ("0.0.0.0", None, false),
            ("192.168.1.2", None, false),
            ("0.0.0.0", Some(TOKEN), true),
            ("127.0.0.1", Some("short"), false),
            ("127.0.0.1", Some(""), false),
        ] {
            assert_eq!(access(address, token).is_ok(), good, "{address} {token:?}");
        }
    }

    #[test]
    fn only_the_token_opens() {
        let access = access("0.0.0.0", Some(&format!("{TOKEN}\n"))).unwrap();
        let bearer = format!("Bearer {TOKEN}");
        assert!(admits(&access, &[("authorization", &bearer)]));
        // With a token a page that knows it is welcome.
        assert!(admits(&access, &[("authorization", &bearer), ("origin", "https://ops.example")]));
        for wrong in ["Bearer 0123456789abcdeF", "Bearer ", "Basic 0123456789abcdef", TOKEN] {
            assert!(!admits(&access, &[("authorization", wrong)]), "{wrong}");
        }
        assert!(!admits(&access, &[("host", "localhost")]));
    }

    #[test]
    fn without_a_token_a_web_page_is_nobody() {
        let access = access("127.0.0.1", None).unwrap();
        for host in ["localhost:8085", "127.0.0.1:8085", "[::1]:8085", "localhost"] {
            assert!(admits(&access, &[("host", host)]), "{host}");
            assert!(!admits(&access, &[("host", host), ("origin", "https://evil.example")]), "{host}");
        }
        for host in ["evil.example:8085", "localhost.evil.example", "10.0.0.1"] {
            assert!(!admits(&access, &[("host", host)]), "{host}");
        }
        assert!(!admits(&access, &[]));
    }
}
