//! Relations for tests, written as text.

use super::discover::{Column, Relation};
use super::types::TypeOf;
use crate::table::{KeyDescription, TableId, TableKind};

/// A table `dbo.t`: a column a line, `name type size [code page] [!] [+]` (`!` NOT NULL, `+` indexed,
/// `#` identity), `key a b` for the primary key, `tracked` where Change Tracking is on.
pub(super) fn relation(text: &str) -> Relation {
    let mut relation = Relation {
        object: 42,
        id: TableId::new("dbo", "t"),
        kind: TableKind::Table,
        columns: Vec::new(),
        keys: Vec::new(),
        rows: Some(1000),
        bytes: Some(100_000),
        readable: true,
        tracked: false,
        captured: false,
        instances: Vec::new(),
        temporal: false,
        history: None,
    };
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["tracked"] => relation.tracked = true,
            ["key", ..] => relation.keys.push(KeyDescription {
                name: "PK_t".into(),
                columns: words[1..].iter().map(|name| (*name).to_owned()).collect(),
                primary: true,
            }),
            _ => {
                let sizes: Vec<i32> = words[2..].iter().filter_map(|word| word.parse().ok()).collect();
                let size = sizes.first().copied().unwrap_or(0);
                relation.columns.push(Column {
                    number: relation.columns.len() as i32 + 1,
                    name: words[0].to_owned(),
                    of: TypeOf {
                        base: words[1].to_owned(),
                        length: size as i16,
                        precision: size as u8,
                        scale: size as u8,
                        code_page: sizes.get(1).copied(),
                    },
                    alias: None,
                    not_null: words.contains(&"!"),
                    generated: false,
                    identity: words.contains(&"#"),
                    indexed: words.contains(&"+"),
                });
            }
        }
    }
    relation
}
