//! Names of tables, namespaces and partitions as parts of a path.

/// A name as a directory. Readers disagree on percent signs, so none is written: bytes other than
/// ASCII letters, digits, `_`, `-` and inner dots become `=` and two hexadecimal digits.
pub(super) fn encode(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for (i, byte) in name.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' => text.push(char::from(byte)),
            b'.' if i > 0 => text.push('.'),
            other => text.push_str(&format!("={other:02X}")),
        }
    }
    text
}

/// The name that [`encode`] wrote; `None` for a directory that it would not have written.
pub(super) fn decode(directory: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(directory.len());
    let mut rest = directory.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = if *first == b'=' {
            let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            &tail[2..]
        } else {
            bytes.push(*first);
            tail
        };
    }
    let name = String::from_utf8(bytes).ok()?;
    (!name.is_empty() && encode(&name) == directory).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_names_become_plain_directories_and_come_back() {
        for (name, directory) in [
            ("orders", "orders"),
            ("Order Items", "Order=20Items"),
            ("a/b", "a=2Fb"),
            ("..", "=2E."),
            ("50%", "50=25"),
            ("a=b", "a=3Db"),
            ("größe", "gr=C3=B6=C3=9Fe"),
        ] {
            assert_eq!(encode(name), directory);
            assert_eq!(decode(directory).as_deref(), Some(name));
        }
        assert_eq!(decode("region=EU"), None, "a directory that is not ours");
    }
}
