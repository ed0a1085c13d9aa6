//! Names of distributed transactions, which are prepared first and completed later.
//!
//! The log has a name in three forms: MariaDB's in the event that begins a transaction, MySQL's in the
//! event that prepares it, and in words in the statement that completes it. Here it is MariaDB's.

/// The name in MySQL's event of one that is prepared; `None`: the event is none. `Some(None)`: it is
/// committed in the same step.
pub(super) fn prepared(body: &[u8]) -> Option<Option<Vec<u8>>> {
    let number = |at: usize| body.get(at..at + 4)?.first_chunk().map(|bytes| i32::from_le_bytes(*bytes));
    let (format, global, branch) = (number(1)?, number(5)?, number(9)?);
    let (global, branch) = (usize::try_from(global).ok()?, usize::try_from(branch).ok()?);
    let data = body.get(13..13 + global.checked_add(branch)?)?;
    let name = name(format, data.get(..global)?, data.get(global..)?)?;
    Some((body.first() == Some(&0)).then_some(name))
}

/// What a statement completes: `None` where it completes nothing, `Some(None)` where its name cannot be
/// read.
pub(super) fn completed(sql: &str) -> Option<Option<Vec<u8>>> {
    let mut words = sql.trim().splitn(3, char::is_whitespace);
    let is = |word: Option<&str>, names: &[&str]| {
        word.is_some_and(|word| names.iter().any(|name| word.eq_ignore_ascii_case(name)))
    };
    if !is(words.next(), &["XA"]) || !is(words.next(), &["COMMIT", "ROLLBACK"]) {
        return None;
    }
    Some(words.next().and_then(written))
}

/// `X'6162',X'',1`
fn written(text: &str) -> Option<Vec<u8>> {
    let mut parts = text.split(',').map(str::trim);
    let (global, branch) = (hex(parts.next()?)?, hex(parts.next()?)?);
    let format = parts.next()?.parse().ok()?;
    if parts.next().is_some() {
        return None;
    }
    name(format, &global, &branch)
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_prefix(['X', 'x'])?.strip_prefix('\'')?.strip_suffix('\'')?.as_bytes();
    let pairs = digits.chunks(2).map(|pair| match pair {
        [high, low] => {
            let digit = |c: &u8| char::from(*c).to_digit(16);
            u8::try_from(digit(high)? << 4 | digit(low)?).ok()
        }
        _ => None,
    });
    pairs.collect()
}

/// The format, the lengths of both parts, and the parts.
fn name(format: i32, global: &[u8], branch: &[u8]) -> Option<Vec<u8>> {
    let mut name = format.to_le_bytes().to_vec();
    name.extend([u8::try_from(global.len()).ok()?, u8::try_from(branch.len()).ok()?]);
    name.extend(global);
    name.extend(branch);
    Some(name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(one_step: u8, global: &[u8], branch: &[u8]) -> Vec<u8> {
        let mut body = vec![one_step, 1, 0, 0, 0];
        body.extend(u32::try_from(global.len()).unwrap().to_le_bytes());
        body.extend(u32::try_from(branch.len()).unwrap().to_le_bytes());
        body.extend(global);
        body.extend(branch);
        body
    }

    #[test]
    fn all_forms_are_one_name() {
        let name = vec![1, 0, 0, 0, 2, 1, b'a', b'b', b'c'];
        assert_eq!(prepared(&event(0, b"ab", b"c")), Some(Some(name.clone())));
        assert_eq!(prepared(&event(1, b"ab", b"c")), Some(None));
        assert_eq!(completed("XA COMMIT X'6162',X'63',1"), Some(Some(name.clone())));
        assert_eq!(completed("xa rollback x'6162', x'63', 1"), Some(Some(name)));
        assert_eq!(completed("XA COMMIT X'6A',X'',1"), Some(Some(vec![1, 0, 0, 0, 1, 0, b'j'])));
        for other in ["XA START X'6162',X'63',1", "XA END X'6162',X'63',1", "COMMIT", "XA", ""] {
            assert_eq!(completed(other), None, "{other}");
        }
        for unknown in ["XA COMMIT 'ab','c',1", "XA COMMIT X'6',X'',1", "XA COMMIT", "XA COMMIT X'61',X''"] {
            assert!(matches!(completed(unknown), Some(None)), "{unknown}");
        }
    }

    proptest! {
        #[test]
        fn no_event_makes_a_panic(body in proptest::collection::vec(any::<u8>(), 0..40), text in "XA (COMMIT|ROLLBACK) .{0,20}") {
            let _ = prepared(&body);
            let _ = completed(&text);
        }
    }
}
