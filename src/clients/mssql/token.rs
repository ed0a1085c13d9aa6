//! Access tokens of Entra, for Azure SQL and for servers that are joined to it.
//!
//! A token is kept until shortly before it ends, because each of several parallel sessions logs in.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::error::{Error, ErrorKind, Result};

/// What the token is for.
const SCOPE: &str = "https://database.windows.net/.default";
const RESOURCE: &str = "https://database.windows.net/";

/// The identity service answers in a moment, or is not there.
const PATIENCE: Duration = Duration::from_secs(15);

/// A token that ends within this time is replaced: clocks differ, and a log-in takes its time.
const MARGIN: Duration = Duration::from_secs(300);

/// Who asks for a token.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum Identity {
    /// An application with a secret.
    ServicePrincipal { token_url: String, client_id: String, client_secret: String },
    /// What Azure gave to the machine that we run on.
    Managed { imds_url: String, client_id: Option<String> },
}

#[derive(Deserialize)]
struct Answer {
    access_token: String,
    /// A number, or a text with a number.
    expires_in: serde_json::Value,
}

type Kept = Mutex<HashMap<Identity, (String, Instant)>>;

/// A token for this identity, from memory or from the service.
pub(super) async fn access_token(identity: &Identity) -> Result<String> {
    static KEPT: OnceLock<Kept> = OnceLock::new();
    let kept = KEPT.get_or_init(Kept::default);
    let now = Instant::now();
    if let Some((token, ends)) = kept.lock().expect("no panic while held").get(identity)
        && *ends > now + MARGIN
    {
        return Ok(token.clone());
    }
    let answer = ask(identity).await?;
    let seconds = match &answer.expires_in {
        serde_json::Value::Number(seconds) => seconds.as_u64(),
        serde_json::Value::String(text) => text.parse().ok(),
        _ => None,
    };
    let ends = now + Duration::from_secs(seconds.unwrap_or(0));
    let entry = (answer.access_token.clone(), ends);
    kept.lock().expect("no panic while held").insert(identity.clone(), entry);
    Ok(answer.access_token)
}

async fn ask(identity: &Identity) -> Result<Answer> {
    let client = reqwest::Client::builder()
        .timeout(PATIENCE)
        .build()
        .map_err(|_| Error::new(ErrorKind::Internal, "no HTTP client can be made"))?;
    let request = match identity {
        Identity::ServicePrincipal { token_url, client_id, client_secret } => client.post(token_url).form(&[
            ("grant_type", "client_credentials"),
            ("client_id", client_id),
            ("client_secret", client_secret),
            ("scope", SCOPE),
        ]),
        Identity::Managed { imds_url, client_id } => {
            let mut query = vec![("api-version", "2018-02-01"), ("resource", RESOURCE)];
            query.extend(client_id.as_deref().map(|id| ("client_id", id)));
            client.get(imds_url).header("Metadata", "true").query(&query)
        }
    };
    // Errors of the HTTP client repeat the URL, which may hold what it should not.
    let answer = request.send().await.map_err(|error| {
        Error::new(ErrorKind::Transient, "the identity service cannot be reached")
            .hint(match identity {
                Identity::Managed { .. } => "`managed_identity` works on Azure machines only",
                Identity::ServicePrincipal { .. } => "check `tenant` and the way to the internet",
            })
            .because(error.without_url())
    })?;
    let status = answer.status();
    if status.is_server_error() || status.as_u16() == 429 {
        return Err(Error::new(
            ErrorKind::Transient,
            format!("the identity service answers {}", status.as_u16()),
        ));
    }
    if !status.is_success() {
        return Err(Error::new(
            ErrorKind::Permission,
            format!("the identity service gives no token (status {})", status.as_u16()),
        )
        .hint("check `tenant`, `client_id` and `client_secret`, and that the secret has not expired"));
    }
    answer.json().await.map_err(|error| {
        Error::new(ErrorKind::Transient, "the identity service's answer is no token")
            .because(error.without_url())
    })
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers requests in turn and says what they were.
    async fn service(
        answers: &'static [(u16, &'static str)],
    ) -> (String, tokio::task::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/token", listener.local_addr().unwrap());
        let seen = tokio::spawn(async move {
            let mut seen = Vec::new();
            for (status, body) in answers {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut text = String::new();
                let mut bytes = [0_u8; 4096];
                // The request is whole when its body, or its empty line, is there.
                while !(text.ends_with("default") || text.starts_with("GET") && text.ends_with("\r\n\r\n")) {
                    let read = socket.read(&mut bytes).await.unwrap();
                    text.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
                }
                let head = format!(
                    "HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
                    body.len()
                );
                socket.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
                seen.push(text);
            }
            seen
        });
        (url, seen)
    }

    #[tokio::test]
    async fn a_token_is_asked_for_once() {
        let (token_url, seen) = service(&[(200, r#"{"access_token":"abc","expires_in":3599}"#)]).await;
        let identity =
            Identity::ServicePrincipal { token_url, client_id: "app".into(), client_secret: "s&cret".into() };
        assert_eq!(access_token(&identity).await.unwrap(), "abc");
        assert_eq!(access_token(&identity).await.unwrap(), "abc");
        let seen = seen.await.unwrap();
        assert!(seen[0].contains("client_secret=s%26cret"), "{seen:?}");
    }

    #[tokio::test]
    async fn a_token_that_ends_soon_is_replaced_and_a_refusal_is_a_missing_right() {
        let (imds_url, seen) = service(&[
            (200, r#"{"access_token":"one","expires_in":"60"}"#),
            (200, r#"{"access_token":"two","expires_in":"86400"}"#),
        ])
        .await;
        let identity = Identity::Managed { imds_url, client_id: Some("id".into()) };
        assert_eq!(access_token(&identity).await.unwrap(), "one");
        assert_eq!(access_token(&identity).await.unwrap(), "two");
        let seen = seen.await.unwrap();
        assert!(
            seen[0].to_lowercase().contains("metadata: true") && seen[0].contains("client_id=id"),
            "{seen:?}"
        );

        let (imds_url, _seen) = service(&[(400, r#"{"error":"invalid_client"}"#)]).await;
        let error = access_token(&Identity::Managed { imds_url, client_id: None }).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Permission);
    }
}
