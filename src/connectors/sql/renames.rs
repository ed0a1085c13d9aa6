//! Which columns of a target have another name by now.
//!
//! ```text
//! noted by the last load: id ─▶ name ─┐
//!                                     ├─▶ moves ─▶ ALTER TABLE … RENAME COLUMN, in an order that works
//! wanted now:             id ─▶ name ─┘
//! ```
//!
//! A renamed column that was added anew would be NULL in all rows that have not changed since.

use std::collections::{BTreeMap, BTreeSet};

use super::Dialect;
use crate::error::{Error, ErrorKind, Result};
use crate::table::TableId;

/// What to rename, and what is noted afterwards.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Renames {
    /// From → to. No name is the end of two.
    pub moves: BTreeMap<String, String>,
}

impl Renames {
    /// Compares the names under which columns were loaded with those that they have now, by the lake's
    /// ids; `present` are the columns that are there. [`Schema`](ErrorKind::Schema) when a name is taken
    /// by a column that we know nothing of.
    pub fn find(
        noted: &BTreeMap<String, String>,
        wanted: &BTreeMap<String, String>,
        present: &[&str],
    ) -> Result<Self> {
        let is_there = |name: &str| present.contains(&name);
        // Ids of a lake table that was dropped and made anew say nothing: its columns go by their names.
        let table_of = |id: &str| id.split('.').next().map(str::to_owned);
        let table = wanted.keys().next().and_then(|id| table_of(id));
        let noted = noted.iter().filter(|(id, _)| table_of(id) == table);
        let mut moves = BTreeMap::new();
        for (id, old) in noted.filter(|(_, old)| is_there(old)) {
            match wanted.get(id) {
                Some(new) if new != old => {
                    moves.insert(old.clone(), new.clone());
                }
                Some(_) => {}
                // No column of the stream any more, and its name is that of another one.
                None if wanted.values().any(|name| name == old) => {
                    let number = id.rsplit('.').next().unwrap_or(id);
                    let mut aside = format!("{old}_dropped_{number}");
                    while is_there(&aside) || wanted.values().any(|name| *name == aside) {
                        aside.push('_');
                    }
                    moves.insert(old.clone(), aside);
                }
                None => {}
            }
        }
        let blocked = moves.iter().find(|(_, new)| is_there(new) && !moves.contains_key(*new));
        if let Some((old, new)) = blocked {
            return Err(Error::new(
                ErrorKind::Schema,
                format!(
                    "column `{old}` is `{new}` in the stream now, and the target has a column of that name"
                ),
            )
            .with("column", new)
            .hint("rename that column in the target, or drop it"));
        }
        Ok(Self { moves })
    }

    /// Whether nothing is to be renamed.
    pub fn is_empty(&self) -> bool {
        self.moves.is_empty()
    }

    /// The name of a column afterwards.
    pub fn after<'a>(&'a self, name: &'a str) -> &'a str {
        self.moves.get(name).map_or(name, String::as_str)
    }

    /// The name that a column has before.
    pub fn before<'a>(&'a self, name: &'a str) -> &'a str {
        self.moves.iter().find(|(_, new)| *new == name).map_or(name, |(old, _)| old)
    }

    /// The statements, in order. Where the new name is still another column's, by way of a third name.
    pub fn statements(&self, dialect: &Dialect, table: &TableId) -> Vec<String> {
        let rename = |old: &str, new: &str| dialect.rename(table, old, new);
        let taken: BTreeSet<&String> = self.moves.keys().collect();
        let detours: Vec<(&String, &String, String)> = self
            .moves
            .iter()
            .filter(|(_, new)| taken.contains(new))
            .enumerate()
            .map(|(number, (old, new))| (old, new, format!("frazil_renamed_{number}")))
            .collect();
        let aside = detours.iter().map(|(old, _, third)| rename(old, third));
        let direct =
            self.moves.iter().filter(|(_, new)| !taken.contains(new)).map(|(old, new)| rename(old, new));
        let home = detours.iter().map(|(_, new, third)| rename(third, new));
        aside.chain(direct).chain(home).collect()
    }

    /// What is noted of one stream's columns, by their names afterwards.
    pub fn noted(&self, before: &BTreeMap<String, String>) -> BTreeMap<String, String> {
        before.iter().map(|(id, name)| (id.clone(), self.after(name).to_owned())).collect()
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::super::SQLITE;
    use super::*;

    fn columns(text: &str) -> BTreeMap<String, String> {
        let column = |word: &str| {
            let (name, id) = word.split_once('#').unwrap();
            (id.to_owned(), name.to_owned())
        };
        text.split_whitespace().map(column).collect()
    }

    fn check(noted: &str, wanted: &str, present: &str, expected: Expect) {
        let present: Vec<&str> = present.split_whitespace().collect();
        let text = match Renames::find(&columns(noted), &columns(wanted), &present) {
            Ok(renames) => renames.statements(&SQLITE, &TableId::bare("t")).join("\n"),
            Err(error) => format!("{error:?}"),
        };
        expected.assert_eq(&text);
    }

    #[test]
    fn columns_are_followed_by_their_ids() {
        check(
            "a#t.1 b#t.2",
            "a#t.1 c#t.2 d#t.3",
            "a b",
            expect![[r#"ALTER TABLE "t" RENAME COLUMN "b" TO "c""#]],
        );
        // Done already, by a load that broke off.
        check("a#t.1 b#t.2", "a#t.1 c#t.2", "a c", expect![[""]]);
        // Not of this lake table: by name.
        check("a#1.1 b#1.2", "b#9.1 a#9.2", "a b", expect![[""]]);
    }

    #[test]
    fn names_may_be_exchanged() {
        check(
            "a#t.1 b#t.2",
            "b#t.1 a#t.2",
            "a b",
            expect![[r#"
            ALTER TABLE "t" RENAME COLUMN "a" TO "frazil_renamed_0"
            ALTER TABLE "t" RENAME COLUMN "b" TO "frazil_renamed_1"
            ALTER TABLE "t" RENAME COLUMN "frazil_renamed_0" TO "b"
            ALTER TABLE "t" RENAME COLUMN "frazil_renamed_1" TO "a""#]],
        );
        check(
            "a#t.1 b#t.2",
            "b#t.1 c#t.2",
            "a b",
            expect![[r#"
            ALTER TABLE "t" RENAME COLUMN "a" TO "frazil_renamed_0"
            ALTER TABLE "t" RENAME COLUMN "b" TO "c"
            ALTER TABLE "t" RENAME COLUMN "frazil_renamed_0" TO "b""#]],
        );
    }

    #[test]
    fn a_column_made_anew_does_not_get_the_old_ones_place() {
        check(
            "a#t.1 b#t.2",
            "a#t.1 b#t.3",
            "a b",
            expect![[r#"ALTER TABLE "t" RENAME COLUMN "b" TO "b_dropped_2""#]],
        );
    }

    #[test]
    fn a_users_own_column_is_not_overwritten() {
        check(
            "a#t.1 b#t.2",
            "a#t.1 c#t.2",
            "a b c",
            expect![[r#"
            schema: column `b` is `c` in the stream now, and the target has a column of that name (column: c)
              hint: rename that column in the target, or drop it"#]],
        );
    }
}
