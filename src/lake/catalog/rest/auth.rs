//! Who we are, said with every request: not at all, by a token, by OAuth2, or by a signature.
//!
//! A token of OAuth2 is asked for when first needed, again shortly before it ends, and again when the
//! catalog does not take it any more. Tokens are in no log and no error.

use std::time::{Duration, Instant};

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, AwsCredentialProvider};
use reqwest::header::{AUTHORIZATION, HeaderName, HeaderValue};
use tokio::sync::Mutex;
use url::form_urlencoded;

use super::client::PACE;
use super::options::Options;
use super::sigv4::{self, Scope, Unsigned};
use super::{errors, wire};
use crate::error::{Error, ErrorKind, Result};
use crate::lake::storage::store_error;

/// A token is renewed when this part of its life is left: one request never takes as long.
const RENEW_AT: f64 = 0.1;
/// And never earlier than this before its end, however long it lives.
const RENEW_WITHIN: Duration = Duration::from_secs(300);
/// The scope that the protocol's clients ask for.
const SCOPE: &str = "catalog";

/// How requests say who sends them.
pub(super) enum Auth {
    None,
    Token(HeaderValue),
    OAuth2(OAuth2),
    Signature(Signature),
}

/// Client credentials, and the token that they got.
pub(super) struct OAuth2 {
    address: String,
    /// Ready to be posted, with the secret inside.
    form: String,
    token: Mutex<Option<Token>>,
}

struct Token {
    header: HeaderValue,
    renew_at: Option<Instant>,
}

pub(super) struct Signature {
    service: String,
    region: String,
    credentials: AwsCredentialProvider,
}

impl Auth {
    pub(super) fn new(options: &Options) -> Result<Self> {
        if let Some((service, region)) = options.signing()? {
            let credentials = aws_credentials(options, &region)?;
            return Ok(Self::Signature(Signature { service, region, credentials }));
        }
        let first = options.get("token").map(bearer).transpose()?;
        let Some(credential) = options.get("credential") else {
            return Ok(first.map_or(Self::None, Self::Token));
        };
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "client_credentials");
        // Without a colon it is a secret that needs no name.
        let (id, secret) = credential.split_once(':').map_or((None, credential), |(id, s)| (Some(id), s));
        form.extend_pairs(id.map(|id| ("client_id", id)));
        form.append_pair("client_secret", secret);
        form.append_pair("scope", options.get("scope").unwrap_or(SCOPE));
        for name in ["audience", "resource"] {
            form.extend_pairs(options.get(name).map(|value| (name, value)));
        }
        let address = match options.get("oauth2-server-uri") {
            Some(full) if full.contains("://") => full.to_owned(),
            Some(path) => format!("{}/{}", base(options), path.trim_start_matches('/')),
            None => format!("{}/v1/oauth/tokens", base(options)),
        };
        let token = Mutex::new(first.map(|header| Token { header, renew_at: None }));
        Ok(Self::OAuth2(OAuth2 { address, form: form.finish(), token }))
    }

    /// Adds what says who we are. Returns the token it used, for [`renew`](Self::renew).
    pub(super) async fn apply(
        &self,
        http: &reqwest::Client,
        request: &mut reqwest::Request,
    ) -> Result<Option<HeaderValue>> {
        let token = match self {
            Self::None => return Ok(None),
            Self::Signature(signature) => {
                signature.sign(request).await?;
                return Ok(None);
            }
            Self::Token(header) => header.clone(),
            Self::OAuth2(oauth2) => oauth2.token(http, None).await?,
        };
        request.headers_mut().insert(AUTHORIZATION, token.clone());
        Ok(Some(token))
    }

    /// Gets another token in place of one that was refused. `false`: there is no way to.
    pub(super) async fn renew(&self, http: &reqwest::Client, refused: Option<HeaderValue>) -> Result<bool> {
        match (self, refused) {
            (Self::OAuth2(oauth2), Some(refused)) => {
                oauth2.token(http, Some(refused)).await?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}

impl OAuth2 {
    /// The token; another one if it ends soon, or if it is the one that was refused.
    async fn token(&self, http: &reqwest::Client, refused: Option<HeaderValue>) -> Result<HeaderValue> {
        let mut token = self.token.lock().await;
        if let Some(known) = token.as_ref()
            && known.renew_at.is_none_or(|at| Instant::now() < at)
            && refused.as_ref() != Some(&known.header)
        {
            return Ok(known.header.clone());
        }
        let got = self.ask(http).await.map_err(|error| error.with("server", &self.address))?;
        let header = bearer(&got.access_token)?;
        let life = got.expires_in.map(Duration::from_secs);
        let renew_at = life.map(|life| Instant::now() + life - life.mul_f64(RENEW_AT).min(RENEW_WITHIN));
        *token = Some(Token { header: header.clone(), renew_at });
        Ok(header)
    }

    async fn ask(&self, http: &reqwest::Client) -> Result<wire::Token> {
        let request = http
            .post(&self.address)
            .timeout(PACE.request)
            .header("content-type", "application/x-www-form-urlencoded")
            .header("accept", "application/json")
            .body(self.form.clone());
        let answer = request.send().await.map_err(|source| errors::unreachable("log in", source))?;
        let status = answer.status();
        let body = answer.bytes().await.map_err(|source| errors::unreachable("log in", source))?;
        if !status.is_success() {
            return Err(errors::login_refused(status, &body));
        }
        // What stands in it is a secret: the parser's complaint could repeat it.
        serde_json::from_slice(&body).map_err(|_| {
            Error::new(ErrorKind::Config, "the login server's answer holds no token")
                .hint("check the option `oauth2-server-uri`")
        })
    }
}

impl Signature {
    async fn sign(&self, request: &mut reqwest::Request) -> Result<()> {
        let credential = self.credentials.get_credential().await.map_err(|source| {
            Error::new(ErrorKind::Permission, "no AWS credentials to sign requests to the catalog with")
                .hint("set `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, or the options `rest.access-key-id` and `rest.secret-access-key`")
                .because(source)
        })?;
        let body = request.body().and_then(|body| body.as_bytes()).unwrap_or_default().to_vec();
        let mut headers = vec![sigv4::content_hash(&body)];
        if let Some(kind) = request.headers().get("content-type").and_then(|value| value.to_str().ok()) {
            headers.push(("content-type".to_owned(), kind.to_owned()));
        }
        let mut added = headers.clone();
        let unsigned =
            Unsigned { method: request.method().as_str(), url: request.url(), headers, body: &body };
        let scope = Scope { service: &self.service, region: &self.region };
        added.extend(sigv4::sign(unsigned, &scope, &credential, chrono::Utc::now()));
        for (name, value) in added {
            let mut value = HeaderValue::from_str(&value).map_err(|_| {
                Error::new(ErrorKind::Config, "the AWS credentials hold characters that no request can carry")
            })?;
            value.set_sensitive(true);
            let name: HeaderName = name.parse().expect("names of the signature are headers");
            request.headers_mut().insert(name, value);
        }
        Ok(())
    }
}

/// By our own options, by the store's, or by all that AWS's tools look at.
fn aws_credentials(options: &Options, region: &str) -> Result<AwsCredentialProvider> {
    use AmazonS3ConfigKey as Key;
    let mut builder = AmazonS3Builder::from_env().with_bucket_name("unused").with_region(region);
    let said = |rest, store: &str| options.get(rest).or(options.store.get(store).map(String::as_str));
    for (key, rest, store) in [
        (Key::AccessKeyId, "rest.access-key-id", "s3.access-key-id"),
        (Key::SecretAccessKey, "rest.secret-access-key", "s3.secret-access-key"),
        (Key::Token, "rest.session-token", "s3.session-token"),
    ] {
        if let Some(value) = said(rest, store) {
            builder = builder.with_config(key, value);
        }
    }
    let store = builder.build().map_err(|source| store_error("find AWS credentials", "catalog", source))?;
    Ok(store.credentials().clone())
}

fn base(options: &Options) -> &str {
    options.address.as_str().trim_end_matches('/')
}

fn bearer(token: &str) -> Result<HeaderValue> {
    let mut header = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| {
        Error::new(ErrorKind::Config, "the token holds characters that no request can carry")
            .hint("check the option `token` for line breaks")
    })?;
    header.set_sensitive(true);
    Ok(header)
}
