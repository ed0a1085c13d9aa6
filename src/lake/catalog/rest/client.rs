//! One request to the catalog, and another try where that is safe.
//!
//! A refused token is renewed and the request sent again: a request that was refused has done nothing.
//! Everything else that may pass (a busy server, a lost connection) is tried again for requests that
//! only read; those that write decide for themselves, because their answer may have got lost.

use std::time::{Duration, Instant};

use reqwest::header::{HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use url::Url;

use super::auth::Auth;
use super::errors::{self, Said};
use super::options::Options;
use crate::error::{Error, ErrorKind, Result};

/// How long, and how often, to try.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// First pause between tries; it doubles.
    pub(super) pause: Duration,
    /// The longest pause that we choose ourselves.
    pub(super) longest: Duration,
    /// A catalog that is away gets this long to come back before a pass fails.
    pub(super) give_up: Duration,
    /// A request without an answer is given up after this long.
    pub(super) request: Duration,
}

/// The pace of the stores behind the catalog.
pub(super) const PACE: Pace = Pace {
    pause: Duration::from_millis(100),
    longest: Duration::from_secs(5),
    give_up: Duration::from_secs(60),
    request: Duration::from_secs(60),
};

/// A connection is there in this time or not at all.
const CONNECT: Duration = Duration::from_secs(10);

pub(super) struct Client {
    http: reqwest::Client,
    /// Without a slash at the end.
    address: String,
    /// Behind `/v1/`, with a slash at the end, or empty.
    pub(super) prefix: String,
    pub(super) headers: HeaderMap,
    auth: Auth,
    secrets: Vec<String>,
    pub(super) pace: Pace,
}

/// One request.
pub(super) struct Call {
    method: Method,
    /// Behind the prefix, encoded.
    path: String,
    query: Vec<(&'static str, String)>,
    body: Option<Vec<u8>>,
    /// A verb phrase for errors: "load a table".
    action: &'static str,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Call {
    pub(super) fn get(action: &'static str, path: impl Into<String>) -> Self {
        let path = path.into();
        Self { method: Method::GET, path, query: Vec::new(), body: None, action, headers: Vec::new() }
    }

    pub(super) fn post(action: &'static str, path: impl Into<String>, body: &impl Serialize) -> Result<Self> {
        let body = serde_json::to_vec(body).map_err(|source| {
            Error::new(ErrorKind::Internal, "a request cannot be written as JSON").because(source)
        })?;
        Ok(Self { method: Method::POST, body: Some(body), ..Self::get(action, path) })
    }

    pub(super) fn delete(action: &'static str, path: impl Into<String>) -> Self {
        Self { method: Method::DELETE, ..Self::get(action, path) }
    }

    /// A value that is encoded already.
    pub(super) fn query(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.query.push((name, value.into()));
        self
    }

    pub(super) fn header(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.push((HeaderName::from_static(name), HeaderValue::from_static(value)));
        self
    }
}

/// What came of one request.
pub(super) enum Outcome {
    Done(Vec<u8>),
    Refused {
        status: StatusCode,
        said: Said,
        retry_after: Option<Duration>,
    },
    /// No answer: whether the request arrived is not known.
    Lost(Error),
    /// No connection, or no login: nothing was asked of the catalog.
    Unsent(Error),
}

impl Client {
    pub(super) fn new(options: &Options) -> Result<Self> {
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT)
            .user_agent(concat!("frazil/", env!("CARGO_PKG_VERSION")))
            // A redirect would carry the token elsewhere.
            .redirect(reqwest::redirect::Policy::none());
        if let Some(file) = options.get("ssl.cabundle") {
            for certificate in certificates(file)? {
                builder = builder.add_root_certificate(certificate);
            }
        }
        let http = builder.build().map_err(|source| {
            Error::new(ErrorKind::Internal, "the HTTP client cannot be set up").because(source)
        })?;
        Ok(Self {
            http,
            address: options.address.as_str().trim_end_matches('/').to_owned(),
            prefix: String::new(),
            headers: headers(&options.headers)?,
            auth: Auth::new(options)?,
            secrets: options.secrets(),
            pace: PACE,
        })
    }

    /// An answer to a request that only reads; `None` when there is no such thing.
    pub(super) async fn read<T: DeserializeOwned>(&self, call: &Call) -> Result<Option<T>> {
        let mut tries = self.tries();
        loop {
            let (error, retry_after) = match self.once(call).await? {
                Outcome::Done(body) => {
                    return match serde_json::from_slice(&body) {
                        Ok(answer) => Ok(Some(answer)),
                        Err(source) => Err(errors::garbled(call.action, &source)),
                    };
                }
                Outcome::Refused { status: StatusCode::NOT_FOUND, said, .. } if absent(&said) => {
                    return Ok(None);
                }
                Outcome::Refused { status, said, retry_after } => {
                    let error = errors::refused(call.action, status, &said);
                    if !may_pass(status) {
                        return Err(error);
                    }
                    (error, retry_after)
                }
                Outcome::Lost(error) | Outcome::Unsent(error) => (error, None),
            };
            tries.pause(error, retry_after).await?;
        }
    }

    /// Sends a request once; a second time if its token was refused.
    pub(super) async fn once(&self, call: &Call) -> Result<Outcome> {
        let mut renewed = false;
        loop {
            let mut request = self.request(call)?;
            let token = match self.auth.apply(&self.http, &mut request).await {
                Err(error) if error.kind() == ErrorKind::Transient => return Ok(Outcome::Unsent(error)),
                outcome => outcome?,
            };
            let answer = match self.http.execute(request).await {
                Ok(answer) => answer,
                Err(source) if source.is_connect() => {
                    return Ok(Outcome::Unsent(errors::unreachable(call.action, source)));
                }
                Err(source) => return Ok(Outcome::Lost(errors::unreachable(call.action, source))),
            };
            let status = answer.status();
            // 419 is what the protocol says of a token that has ended.
            let unknown = status == StatusCode::UNAUTHORIZED || status.as_u16() == 419;
            if unknown && !renewed {
                match self.auth.renew(&self.http, token).await {
                    Err(error) if error.kind() == ErrorKind::Transient => return Ok(Outcome::Unsent(error)),
                    outcome => renewed = outcome?,
                }
                if renewed {
                    continue;
                }
            }
            let retry_after = retry_after(answer.headers());
            let body = match answer.bytes().await {
                Ok(body) => body.to_vec(),
                Err(source) => return Ok(Outcome::Lost(errors::unreachable(call.action, source))),
            };
            if status.is_success() {
                return Ok(Outcome::Done(body));
            }
            let said = Said::new(&body, &self.secrets);
            return Ok(Outcome::Refused { status, said, retry_after });
        }
    }

    fn request(&self, call: &Call) -> Result<reqwest::Request> {
        let mut text = format!("{}/v1/{}{}", self.address, self.prefix, call.path);
        for (number, (name, value)) in call.query.iter().enumerate() {
            text.push(if number == 0 { '?' } else { '&' });
            text.push_str(&format!("{name}={value}"));
        }
        let url = Url::parse(&text).map_err(|source| {
            Error::new(ErrorKind::Config, "the catalog's address is not a URL").because(source)
        })?;
        let mut request = reqwest::Request::new(call.method.clone(), url);
        *request.timeout_mut() = Some(self.pace.request);
        *request.headers_mut() = self.headers.clone();
        request.headers_mut().insert("accept", HeaderValue::from_static("application/json"));
        for (name, value) in &call.headers {
            request.headers_mut().entry(name).or_insert_with(|| value.clone());
        }
        if let Some(body) = &call.body {
            request.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
            *request.body_mut() = Some(body.clone().into());
        }
        Ok(request)
    }

    pub(super) fn tries(&self) -> Tries {
        Tries {
            until: Instant::now() + self.pace.give_up,
            pause: self.pace.pause,
            longest: self.pace.longest,
        }
    }
}

/// Pauses between tries, and when to stop.
pub(super) struct Tries {
    until: Instant,
    pause: Duration,
    longest: Duration,
}

impl Tries {
    /// Waits before the next try, as long as the server asks for; `error` when there is none.
    pub(super) async fn pause(&mut self, error: Error, retry_after: Option<Duration>) -> Result<()> {
        // Some chance in it keeps writers apart that were refused together.
        let chance = (uuid::Uuid::new_v4().as_u128() % 512) as f64 / 1024.0;
        let pause = retry_after.unwrap_or(self.pause.mul_f64(0.75 + chance));
        if Instant::now() + pause > self.until {
            return Err(error);
        }
        tracing::debug!(%error, pause_ms = pause.as_millis() as u64, "the catalog is asked again");
        tokio::time::sleep(pause).await;
        self.pause = (self.pause * 2).min(self.longest);
        Ok(())
    }
}

/// Statuses that may be another one the next time.
pub(super) fn may_pass(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 425 | 429 | 500 | 502 | 503 | 504)
}

/// A 404 that speaks of a table or namespace; one of a wrong address is an error.
fn absent(said: &Said) -> bool {
    said.kind.starts_with("NoSuchTable") || said.kind.starts_with("NoSuchNamespace")
}

/// Seconds; a date is rare enough to be left to our own pace.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

pub(super) fn headers<'a>(said: impl IntoIterator<Item = (&'a String, &'a String)>) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (name, value) in said {
        let wrong = || Error::new(ErrorKind::Config, format!("`header.{name}` is not a header"));
        let key = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
        let mut value = HeaderValue::from_str(value).map_err(|_| wrong())?;
        value.set_sensitive(true);
        headers.insert(key, value);
    }
    Ok(headers)
}

fn certificates(file: &str) -> Result<Vec<reqwest::Certificate>> {
    let wrong = |what: String| {
        Error::new(ErrorKind::Config, format!("cannot read the certificates of `ssl.cabundle`: {what}"))
            .with("file", file)
    };
    let pem = std::fs::read(file).map_err(|source| wrong(source.to_string()))?;
    let found = reqwest::Certificate::from_pem_bundle(&pem).map_err(|source| wrong(source.to_string()))?;
    if found.is_empty() { Err(wrong("there is none in it".to_owned())) } else { Ok(found) }
}
