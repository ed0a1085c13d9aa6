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
/// No request has anything to say that is longer.
const LONGEST_BODY: u64 = 16 << 10;

/// Who asks, for the journal: `http`, or `http:NAME` by the name of the token.
#[derive(Debug, Clone)]
pub(super) struct Asker(pub(super) String);

/// Who may ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// The tokens; none: whoever is on this machine may ask.
    tokens: Vec<Token>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Token {
    /// Whose it is, if the file says so.
    name: Option<String>,
    /// Its digest: comparing digests tells nobody how much of a guess was right.
    digest: Vec<u8>,
}

impl Token {
    /// A line: a token, or `name: token`.
    fn of(line: &str) -> Result<Self> {
        let is_name = |name: &str| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
        };
        let (name, token) = match line.split_once(": ").filter(|(name, _)| is_name(name)) {
            Some((name, token)) => (Some(name.to_owned()), token.trim()),
            None => (None, line),
        };
        if token.len() < SHORTEST_TOKEN {
            return Err(Error::new(
                ErrorKind::Config,
                format!("a token of fewer than {SHORTEST_TOKEN} characters can be guessed"),
            )
            .hint("`openssl rand -hex 32` makes a good one"));
        }
        Ok(Self { name, digest: hashed(token) })
    }

    /// Looks at all of both, whatever differs.
    fn is(&self, given: &[u8]) -> bool {
        self.digest.iter().zip(given).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
    }
}

impl Access {
    /// The rule for an address. A token is needed for all that is not on this machine. There may be several, a
    /// line each, with the name of whoever has it: `grafana: 3f…`.
    pub fn new(address: IpAddr, tokens: Option<&str>) -> Result<Self> {
        if tokens.is_none() && !address.is_loopback() {
            return Err(Error::new(
                ErrorKind::Config,
                "other machines could reach it, and there is no token",
            )
            .with("address", address)
            .hint("give `--token-file` or FRAZIL_TOKEN, or listen on 127.0.0.1"));
        }
        let Some(text) = tokens else { return Ok(Self { tokens: Vec::new() }) };
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let tokens = lines.map(Token::of).collect::<Result<Vec<_>>>()?;
        // A file with nothing in it is no wish to let everybody in.
        if tokens.is_empty() {
            Token::of("").map(|token| Self { tokens: vec![token] })
        } else {
            Ok(Self { tokens })
        }
    }

    /// The token in a file.
    pub fn token_in(file: &Path) -> Result<String> {
        std::fs::read_to_string(file).map_err(|source| {
            Error::new(ErrorKind::Config, format!("the token cannot be read: {source}"))
                .with("file", file.display())
        })
    }

    fn admits(&self, headers: &HeaderMap) -> Result<Asker> {
        let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let refused = |message: &str| Error::new(ErrorKind::Permission, message);
        if self.tokens.is_empty() {
            if headers.contains_key(header::ORIGIN) {
                return Err(refused("requests of web pages are refused where no token is asked for"));
            }
            let local = text(header::HOST).is_some_and(is_this_machine);
            let asker = Asker("http".to_owned());
            return if local { Ok(asker) } else { Err(refused("the request is for another host")) };
        }
        let given = text(header::AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
        let given = hashed(given.unwrap_or_default().trim());
        // All of them, so that the time does not tell which.
        let fits =
            self.tokens.iter().fold(None, |fits, token| if token.is(&given) { Some(token) } else { fits });
        match fits {
            Some(Token { name: Some(name), .. }) => Ok(Asker(format!("http:{name}"))),
            Some(_) => Ok(Asker("http".to_owned())),
            None => Err(refused("the token is missing or wrong").hint("send `Authorization: Bearer …`")),
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
pub(super) async fn guard(State(access): State<Arc<Access>>, mut request: Request, next: Next) -> Response {
    let length =
        request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: u64| length > LONGEST_BODY) {
        let error = Error::new(ErrorKind::Config, "the request is too long").hint("send no body");
        return super::refuse(StatusCode::PAYLOAD_TOO_LARGE, &error);
    }
    match access.admits(request.headers()) {
        Ok(asker) => {
            request.extensions_mut().insert(asker);
            next.run(request).await
        }
        Err(error) if !access.tokens.is_empty() => super::refuse(StatusCode::UNAUTHORIZED, &error),
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
    fn each_token_has_a_name() {
        let access = access("0.0.0.0", Some("ann: 0123456789abcdef\n\nfedcba9876543210\n")).unwrap();
        let who = |token: &str| {
            let mut map = HeaderMap::new();
            map.insert(header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
            access.admits(&map).map(|Asker(who)| who).ok()
        };
        assert_eq!(who("0123456789abcdef").as_deref(), Some("http:ann"));
        assert_eq!(who("fedcba9876543210").as_deref(), Some("http"));
        assert_eq!(who("ann: 0123456789abcdef"), None);
        assert!(Access::new("127.0.0.1".parse().unwrap(), Some("ann: short")).is_err());
        assert!(Access::new("127.0.0.1".parse().unwrap(), Some(" \n")).is_err());
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
