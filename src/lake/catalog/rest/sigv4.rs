//! AWS Signature Version 4, as Glue, S3 Tables and gateways in front of catalogs want it.
//!
//! The time is an argument, so that AWS's published examples prove every step.

use std::fmt::Write as _;

use chrono::{DateTime, Utc};
use object_store::aws::AwsCredential;
use ring::{digest, hmac};
use url::Url;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// What is signed: the request, and the headers that must not change on the way.
pub(super) struct Unsigned<'a> {
    pub(super) method: &'a str,
    pub(super) url: &'a Url,
    /// Names in lower case.
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: &'a [u8],
}

/// For which service and region.
pub(super) struct Scope<'a> {
    pub(super) service: &'a str,
    pub(super) region: &'a str,
}

/// The headers to add to the request.
pub(super) fn sign(
    mut request: Unsigned<'_>,
    scope: &Scope<'_>,
    credential: &AwsCredential,
    now: DateTime<Utc>,
) -> Vec<(String, String)> {
    let mut added = vec![
        ("host".to_owned(), host(request.url)),
        ("x-amz-date".to_owned(), now.format("%Y%m%dT%H%M%SZ").to_string()),
    ];
    if let Some(token) = &credential.token {
        added.push(("x-amz-security-token".to_owned(), token.clone()));
    }
    request.headers.retain(|(name, _)| added.iter().all(|(other, _)| other != name));
    request.headers.extend(added.iter().cloned());
    request.headers.sort();

    let names: Vec<&str> = request.headers.iter().map(|(name, _)| name.as_str()).collect();
    let names = names.join(";");
    let day = format!("{}/{}/{}/aws4_request", now.format("%Y%m%d"), scope.region, scope.service);
    let text = format!(
        "{ALGORITHM}\n{}\n{day}\n{}",
        now.format("%Y%m%dT%H%M%SZ"),
        sha256(canonical(&request, &names).as_bytes())
    );
    let mut key =
        hmac(format!("AWS4{}", credential.secret_key).as_bytes(), &now.format("%Y%m%d").to_string());
    for part in [scope.region, scope.service, "aws4_request", text.as_str()] {
        key = hmac(key.as_ref(), part);
    }
    let signature = hex(key.as_ref());
    let key_id = &credential.key_id;
    added.push((
        "authorization".to_owned(),
        format!("{ALGORITHM} Credential={key_id}/{day}, SignedHeaders={names}, Signature={signature}"),
    ));
    added
}

/// The header that says what the body is; the services of AWS read it, and it is signed with the rest.
pub(super) fn content_hash(body: &[u8]) -> (String, String) {
    ("x-amz-content-sha256".to_owned(), sha256(body))
}

fn canonical(request: &Unsigned<'_>, names: &str) -> String {
    let mut text = format!("{}\n{}\n{}\n", request.method, path(request.url), query(request.url));
    for (name, value) in &request.headers {
        let value: Vec<&str> = value.split_whitespace().collect();
        let _ = writeln!(text, "{name}:{}", value.join(" "));
    }
    let _ = write!(text, "\n{names}\n{}", sha256(request.body));
    text
}

/// What is encoded in the address is encoded once more: the rule of all services but S3.
fn path(url: &Url) -> String {
    url.path().split('/').map(encode).collect::<Vec<_>>().join("/")
}

fn query(url: &Url) -> String {
    let mut pairs: Vec<(String, String)> =
        url.query_pairs().map(|(name, value)| (encode(&name), encode(&value))).collect();
    pairs.sort();
    pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
}

fn host(url: &Url) -> String {
    match url.port() {
        Some(port) => format!("{}:{port}", url.host_str().unwrap_or_default()),
        None => url.host_str().unwrap_or_default().to_owned(),
    }
}

/// All but letters, digits and `-_.~` in hexadecimal: for signatures, and for parts of an address.
pub(super) fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                encoded.push(char::from(byte));
            }
            other => {
                let _ = write!(encoded, "%{other:02X}");
            }
        }
    }
    encoded
}

fn hmac(key: &[u8], text: &str) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes())
}

fn sha256(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The requests of AWS's published test suite for Signature Version 4, and what must come out.
    #[test]
    fn signatures_are_those_of_the_published_examples() {
        let long = "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHGBuFqwAeMicRXmxfpSPfIeoIYRqTflfKD8YUuwthAx7mSEI/qkPpKPi/kMcGdQrmGdeehM4IC1NtBmUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXDvp75YU9HFvlRd8Tx6q6fE8YQcHNVXAkiY9q6d+xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8FDrypNC9Yjc8fPOLn9FX9KSYvKTr4rvx3iSIlTJabIQwj2ICCR/oLxBA==";
        for (name, method, address, headers, body, token, expected) in [
            (
                "get-vanilla",
                "GET",
                "https://example.amazonaws.com/",
                &[][..],
                "",
                None,
                "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
            ),
            (
                "get-vanilla-query-order-key",
                "GET",
                "https://example.amazonaws.com/?Param2=value2&Param1=value1",
                &[][..],
                "",
                None,
                "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
            ),
            (
                "post-vanilla",
                "POST",
                "https://example.amazonaws.com/",
                &[][..],
                "",
                None,
                "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
            ),
            (
                "post-header-key-sort",
                "POST",
                "https://example.amazonaws.com/",
                &[("my-header1", "value1")][..],
                "",
                None,
                "c5410059b04c1ee005303aed430f6e6645f61f4dc9e1461ec8f8916fdf18852c",
            ),
            (
                "post-x-www-form-urlencoded",
                "POST",
                "https://example.amazonaws.com/",
                &[("content-type", "application/x-www-form-urlencoded")][..],
                "Param1=value1",
                None,
                "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
            ),
            (
                "post-sts-header-before",
                "POST",
                "https://example.amazonaws.com/",
                &[][..],
                "",
                Some(long),
                "85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead",
            ),
        ] {
            let url = Url::parse(address).unwrap();
            let request = Unsigned {
                method,
                url: &url,
                headers: headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
                body: body.as_bytes(),
            };
            let credential = AwsCredential {
                key_id: "AKIDEXAMPLE".into(),
                secret_key: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".into(),
                token: token.map(str::to_owned),
            };
            let at = "2015-08-30T12:36:00Z".parse().unwrap();
            let added = sign(request, &Scope { service: "service", region: "us-east-1" }, &credential, at);
            let (_, authorization) = added.last().unwrap();
            let scope = "Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, ";
            assert!(authorization.starts_with(&format!("{ALGORITHM} {scope}")), "{name}: {authorization}");
            let signature = authorization.rsplit_once("Signature=").unwrap().1;
            assert_eq!(signature, expected, "{name}");
        }
    }

    #[test]
    fn what_is_encoded_in_the_path_is_encoded_once_more() {
        let url = Url::parse("https://h/iceberg/v1/arn%3Aaws/namespaces/a%1Fb?pageToken=x%3D").unwrap();
        assert_eq!(path(&url), "/iceberg/v1/arn%253Aaws/namespaces/a%251Fb");
        assert_eq!(query(&url), "pageToken=x%3D");
    }
}
