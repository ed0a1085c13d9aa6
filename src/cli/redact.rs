//! The last line of defence: passwords in addresses never reach a terminal or a log, even when a
//! library repeats what it was given.

use std::borrow::Cow;

/// The text with what stands between `://user:` and `@`, or behind `password=`, made `…`.
pub(super) fn redact(text: &str) -> Cow<'_, str> {
    if !text.contains("://") && !text.contains("password=") {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = [rest.find("://").map(|at| at + 3), rest.find("password=").map(|at| at + 9)]
        .into_iter()
        .flatten()
        .min()
    {
        shown.push_str(&rest[..at]);
        let is_url = rest[..at].ends_with("://");
        rest = &rest[at..];
        let word =
            rest.find(|c: char| c.is_whitespace() || matches!(c, '\'' | '"' | '`')).unwrap_or(rest.len());
        let (secret, kept) = if is_url {
            // The last `@` before white space: passwords that should have been encoded hold one, too.
            let Some(end) = rest[..word].rfind('@') else { continue };
            let user = rest[..end].find(':').map_or(end, |colon| colon + 1);
            shown.push_str(&rest[..user]);
            (user < end, end)
        } else {
            let end = rest[..word].find('&').unwrap_or(word);
            (end > 0, end)
        };
        if secret {
            shown.push('…');
        }
        rest = &rest[kept..];
    }
    shown.push_str(rest);
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::redact;

    #[test]
    fn passwords_go_and_the_rest_stays() {
        for (text, shown) in [
            ("nothing here: at all", "nothing here: at all"),
            ("at postgres://ann:pw@h/d?x=1", "at postgres://ann:…@h/d?x=1"),
            ("'postgres://ann:p@/w#@h/d'", "'postgres://ann:…@h/d'"),
            ("postgres://ann@h/d s3://b/c", "postgres://ann@h/d s3://b/c"),
            ("two http://a:b@c and http://d:e@f", "two http://a:…@c and http://d:…@f"),
            ("h?password=pw&x=1 password=pw end", "h?password=…&x=1 password=… end"),
        ] {
            assert_eq!(redact(text), shown);
        }
    }
}
