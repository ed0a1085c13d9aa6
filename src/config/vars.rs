//! `${VAR}` and `${VAR:-default}` in values, `$${` for the characters themselves.
//!
//! A variable in the user part of a URL (between `://` and `@`) stands for the password as it is:
//! what a URL cannot hold there is percent-encoded on the way in. A variable that is the whole URL
//! is taken as it is.

use std::borrow::Cow;

/// Where variables come from: the environment, then the `.env` file.
pub(super) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Why a text could not be completed. Names variables, never values.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// No such variable, and no default.
    Variable(String),
    /// `${` that never ends, or names nothing.
    Malformed,
}

/// The text with its variables filled in, or `None` when it has none.
pub(super) fn fill(text: &str, lookup: Lookup<'_>) -> Result<Option<String>, Missing> {
    if !text.contains("${") {
        return Ok(None);
    }
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            filled.push_str(&rest[..at]);
            filled.push('{');
            rest = &rest[at + 2..];
            continue;
        }
        filled.push_str(&rest[..at]);
        let end = at + rest[at..].find('}').ok_or(Missing::Malformed)?;
        let inner = &rest[at + 2..end];
        let (name, default) = match inner.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inner, None),
        };
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(Missing::Malformed);
        }
        let value = match (lookup(name), default) {
            (Some(value), Some(default)) if value.is_empty() => default.to_owned(),
            (Some(value), _) => value,
            (None, Some(default)) => default.to_owned(),
            (None, None) => return Err(Missing::Variable(name.to_owned())),
        };
        rest = &rest[end + 1..];
        filled.push_str(&if in_user_part(&filled, rest) { encode(&value) } else { value.into() });
    }
    filled.push_str(rest);
    Ok(Some(filled))
}

fn in_user_part(before: &str, after: &str) -> bool {
    let opened = before.split_once("://").is_some_and(|(_, rest)| !rest.contains(['/', '@', '?', '#']));
    opened && after.contains('@')
}

/// Percent-encodes everything but what RFC 3986 calls unreserved.
fn encode(value: &str) -> Cow<'static, str> {
    let mut encoded = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(byte as char),
            byte => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(text: &str) -> Result<String, Missing> {
        let lookup = |name: &str| match name {
            "USER" => Some("ann".to_owned()),
            "PASSWORD" => Some("p@ss/w%41rd#1".to_owned()),
            "EMPTY" => Some(String::new()),
            "DSN" => Some("postgres://a:b%40@h/d".to_owned()),
            _ => None,
        };
        fill(text, &lookup).map(|filled| filled.unwrap_or_else(|| text.to_owned()))
    }

    #[test]
    fn variables_are_filled_in() {
        assert_eq!(filled("plain $x {y}"), Ok("plain $x {y}".into()));
        assert_eq!(filled("a ${USER} b ${USER}"), Ok("a ann b ann".into()));
        assert_eq!(filled("${NONE:-x}${EMPTY:-y}${EMPTY}"), Ok("xy".into()));
        assert_eq!(filled("$${USER}"), Ok("${USER}".into()));
        assert_eq!(filled("${NONE}"), Err(Missing::Variable("NONE".into())));
        assert_eq!(filled("${USER"), Err(Missing::Malformed));
        assert_eq!(filled("${}"), Err(Missing::Malformed));
    }

    #[test]
    fn a_password_goes_into_a_url_as_it_is() {
        assert_eq!(
            filled("postgres://${USER}:${PASSWORD}@h/${USER}"),
            Ok("postgres://ann:p%40ss%2Fw%2541rd%231@h/ann".into())
        );
        assert_eq!(filled("${DSN}"), Ok("postgres://a:b%40@h/d".into()));
        assert_eq!(filled("${DSN}?sslmode=require"), Ok("postgres://a:b%40@h/d?sslmode=require".into()));
        assert_eq!(filled("s3://${USER}/x"), Ok("s3://ann/x".into()));
    }
}
