//! Connection strings of SQL Server, as people have them, brought into the form of a URL.
//!
//! ```text
//! Server=tcp:host,1433;Database=shop;User Id=sa;Password=…        ADO.NET, ODBC
//! jdbc:sqlserver://host:1433;databaseName=shop;user=sa;…         JDBC, also without `jdbc:`
//! mssql://sa:…@host\INSTANCE/shop                                a URL with an instance's name
//! ```
//!
//! Keys become options of the URL as they are: the client knows their spellings, and refuses what it
//! does not know. Only the secrets' places are taken care of here: nothing of the text is repeated.

use url::form_urlencoded::Serializer;

use crate::error::{Error, ErrorKind, Result};

/// The keys one of which an ADO string begins with, more or less: without blanks, in lower case.
const FIRST_KEYS: &[&str] = &[
    "server",
    "datasource",
    "address",
    "addr",
    "networkaddress",
    "servername",
    "driver",
    "database",
    "initialcatalog",
    "user",
    "userid",
    "uid",
    "username",
    "password",
    "pwd",
    "encrypt",
    "authentication",
];

/// The URL that means the same, or `None` when the text is one already.
pub(super) fn to_url(text: &str) -> Result<Option<String>> {
    let text = text.trim();
    let without = text.strip_prefix("jdbc:").unwrap_or(text);
    if let Some((scheme, rest)) = without.split_once("://") {
        if !matches!(scheme, "mssql" | "sqlserver") {
            return Ok(None);
        }
        let end = rest.find(['/', '?', '#', ';']).unwrap_or(rest.len());
        let jdbc = rest[end..].starts_with(';') && !rest[end..].contains('@');
        if jdbc {
            let (place, options) = (&rest[..end], pairs(&rest[end + 1..])?);
            let (place, instance) = place.split_once('\\').unwrap_or((place, ""));
            let instance = match instance.split_once(':') {
                Some((instance, port)) => vec![("instance", instance.to_owned()), ("port", port.to_owned())],
                None if instance.is_empty() => Vec::new(),
                None => vec![("instance", instance.to_owned())],
            };
            let instance = instance.into_iter().map(|(key, value)| (key.to_owned(), value));
            return Ok(Some(url(scheme, place, instance.chain(options))));
        }
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let host = rest[..end].rfind('@').map_or(0, |at| at + 1);
        return Ok(rest[host..end].contains('\\').then(|| {
            // In a host's place a backslash means nothing else.
            let place = rest[host..end].replace('\\', "%5C");
            format!("{scheme}://{}{place}{}", &rest[..host], &rest[end..])
        }));
    }
    let first = text.split_once('=').map(|(key, _)| bare(key));
    match first {
        Some(first) if FIRST_KEYS.contains(&first.as_str()) => {
            Ok(Some(url("mssql", super::UNNAMED_HOST, pairs(text)?)))
        }
        _ => Ok(None),
    }
}

fn url(scheme: &str, place: &str, options: impl IntoIterator<Item = (String, String)>) -> String {
    let query = Serializer::new(String::new()).extend_pairs(options).finish();
    format!("{scheme}://{place}/?{query}")
}

fn bare(key: &str) -> String {
    key.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

/// `key=value;key='it''s';key={a;b}`.
fn pairs(text: &str) -> Result<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    let mut rest = text.trim_start_matches([';', ' ']);
    while !rest.is_empty() {
        let bad = |what: &str| {
            Error::new(ErrorKind::Config, format!("the connection string {what}"))
                .hint("write `key=value;…`; a value with `;` goes into quotes: `Password='a;b'`")
        };
        let (key, tail) = rest.split_once('=').ok_or_else(|| bad("has a key without a value"))?;
        let tail = tail.trim_start();
        let (value, tail) = match tail.chars().next() {
            Some(quote @ ('\'' | '"' | '{')) => {
                let quote = if quote == '{' { '}' } else { quote };
                quoted(&tail[1..], quote).ok_or_else(|| bad("has a quote that does not end"))?
            }
            _ => {
                let end = tail.find(';').unwrap_or(tail.len());
                (tail[..end].trim().to_owned(), &tail[end..])
            }
        };
        pairs.push((key.trim().to_owned(), value));
        rest = tail.trim_start_matches([';', ' ']);
    }
    Ok(pairs)
}

/// What stands before the closing quote, which is doubled where it is meant, and what follows.
fn quoted(text: &str, quote: char) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        if c != quote {
            value.push(c);
        } else if text[at + 1..].starts_with(quote) {
            value.push(c);
            chars.next();
        } else {
            return Some((value, &text[at + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_stay_as_they_are() {
        for text in ["postgres://u:p@h/d?a=b;c", "sqlite:///x;y.db", "mssql://sa:p;w@h/d", "mssql://h", "x"] {
            assert_eq!(to_url(text).unwrap(), None, "{text}");
        }
    }

    #[test]
    fn strings_become_urls() {
        for (text, expected) in [
            (
                "Server=h,1;User Id=a b;Password='it''s;'",
                "mssql://%20/?Server=h%2C1&User+Id=a+b&Password=it%27s%3B",
            ),
            ("server=h; pwd={x=;y}", "mssql://%20/?server=h&pwd=x%3D%3By"),
            ("jdbc:sqlserver://h:1;user=a", "sqlserver://h:1/?user=a"),
            (r"sqlserver://h\I:5;user=a", "sqlserver://h/?instance=I&port=5&user=a"),
            (r"mssql://u:p@h\I/d?x=1", "mssql://u:p@h%5CI/d?x=1"),
        ] {
            assert_eq!(to_url(text).unwrap().as_deref(), Some(expected), "{text}");
        }
        assert!(to_url("server=h;password='x").is_err());
        assert!(to_url("server=h;password").is_err());
    }
}
