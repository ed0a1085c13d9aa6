//! The statements of a load, as text.
//!
//! ```text
//! staging (c0, c1, …, op)  ──op 1──▶ DELETE, or set `_deleted_at`
//!                          ──op 0──▶ INSERT … ON CONFLICT (key) DO UPDATE … WHERE something differs
//! ```
//!
//! Staging columns are named by position, so no name of a user's column can clash with ours. Deletes
//! go first: a row may take over a unique value from one that goes.
//!
//! A row is left alone when nothing in it differs. `=` is asked only where equality is identity;
//! elsewhere (`1.0` and `1.00`, `citext`, `interval`) the stored images are compared.

use super::catalog::quoted;
use super::encode::{Carried, Staged};
use crate::connectors::sql::{DELETED_AT, POSTGRES};
use crate::table::TableId;
use crate::target::Deletes;

mod versions;

/// The staging table. Temporary: private to the session, not logged, gone with the transaction.
pub(super) const STAGING: &str = "pg_temp.frazil_staging";

/// One column of a load.
#[derive(Debug, Clone)]
pub(super) struct Column {
    pub(super) name: String,
    /// Its type in the target, fit for a statement.
    pub(super) type_name: String,
    pub(super) carried: Carried,
    pub(super) key: bool,
    pub(super) equality_is_identity: bool,
}

/// The table to load and all that its statements depend on.
#[derive(Debug, Clone)]
pub(super) struct Statements {
    pub(super) table: TableId,
    pub(super) columns: Vec<Column>,
    pub(super) key: Vec<String>,
    pub(super) deletes: Deletes,
    /// Whether an identity column refuses values unless one insists.
    pub(super) overriding: bool,
}

impl Statements {
    /// `COPY` straight into the table.
    pub(super) fn copy_into_table(&self) -> String {
        let columns = POSTGRES.list(self.columns.iter().map(|column| &column.name));
        format!("COPY {} ({columns}) FROM STDIN (FORMAT binary)", quoted(&self.table))
    }

    /// `COPY` into the staging table.
    pub(super) fn copy_into_staging(&self) -> String {
        format!("COPY {STAGING} FROM STDIN (FORMAT binary)")
    }

    /// The staging table, with the operation as its last column.
    pub(super) fn create_staging(&self) -> String {
        let columns: Vec<_> = self
            .columns
            .iter()
            .enumerate()
            .map(|(index, column)| {
                let staged = match &column.carried.staged {
                    Staged::Same => column.type_name.as_str(),
                    Staged::As(name) => name,
                    Staged::Json => "jsonb",
                };
                format!("c{index} {staged}")
            })
            .collect();
        format!("CREATE TEMPORARY TABLE frazil_staging ({}, op smallint) ON COMMIT DROP", columns.join(", "))
    }

    /// Tells the planner how many rows are staged and what their keys look like.
    pub(super) fn analyze_staging(&self) -> String {
        let keys = self.columns.iter().enumerate().filter(|(_, column)| column.key);
        let columns: String = keys.map(|(index, _)| format!(", c{index}")).collect();
        format!("ANALYZE {STAGING} (op{columns})")
    }

    /// Everything staged, into a table where no key can conflict.
    pub(super) fn insert(&self) -> String {
        format!("{} FROM {STAGING} AS s WHERE s.op = 0", self.insert_select())
    }

    /// Rows staged as upserts, inserted or updated by key.
    pub(super) fn upsert(&self) -> String {
        let table = quoted(&self.table);
        let key = POSTGRES.list(&self.key);
        let mut sets = Vec::new();
        for column in self.columns.iter().filter(|column| !column.key) {
            let name = POSTGRES.ident(&column.name);
            sets.push(format!("{name} = excluded.{name}"));
        }
        let mut same = self.differences(|_, name| format!("excluded.{name}"));
        if self.deletes == Deletes::Soft {
            let name = POSTGRES.ident(DELETED_AT);
            sets.push(format!("{name} = NULL"));
            same.push(format!("t.{name} IS NOT NULL"));
        }
        let action = if sets.is_empty() {
            "DO NOTHING".to_owned()
        } else {
            format!("DO UPDATE SET {} WHERE {}", sets.join(", "), same.join(" OR "))
        };
        let insert = self.insert_select().replacen(&table, &format!("{table} AS t"), 1);
        format!("{insert} FROM {STAGING} AS s WHERE s.op = 0 ON CONFLICT ({key}) {action}")
    }

    /// Conditions of which one holds where something differs. `new` names the new value of a column, by its
    /// place and its quoted name.
    fn differences(&self, new: impl Fn(usize, &str) -> String) -> Vec<String> {
        let mut differ = Vec::new();
        let (mut old_images, mut new_images) = (Vec::new(), Vec::new());
        for (index, column) in self.columns.iter().enumerate().filter(|(_, column)| !column.key) {
            let name = POSTGRES.ident(&column.name);
            let new = new(index, &name);
            if column.equality_is_identity {
                differ.push(format!("t.{name} IS DISTINCT FROM {new}"));
            } else {
                old_images.push(format!("t.{name}"));
                new_images.push(new);
            }
        }
        if !old_images.is_empty() {
            differ.push(format!(
                "ROW({})::record OPERATOR(pg_catalog.*<>) ROW({})::record",
                old_images.join(", "),
                new_images.join(", ")
            ));
        }
        differ
    }

    /// Rows staged as deletes, deleted or marked; `None` when they stay.
    pub(super) fn delete(&self) -> Option<String> {
        let table = quoted(&self.table);
        let by_key = self.by_key();
        match self.deletes {
            Deletes::Hard => {
                Some(format!("DELETE FROM {table} AS t USING {STAGING} AS s WHERE s.op = 1 AND {by_key}"))
            }
            Deletes::Soft => {
                let name = POSTGRES.ident(DELETED_AT);
                Some(format!(
                    "UPDATE {table} AS t SET {name} = now() FROM {STAGING} AS s \
                     WHERE s.op = 1 AND t.{name} IS NULL AND {by_key}"
                ))
            }
            Deletes::Ignore => None,
        }
    }

    /// Rows that the staging table does not have: what a whole new content leaves out. All rows, when
    /// there is no key to tell them apart.
    pub(super) fn delete_others(&self) -> String {
        let table = quoted(&self.table);
        if self.key.is_empty() {
            return format!("DELETE FROM {table}");
        }
        format!(
            "DELETE FROM {table} AS t WHERE NOT EXISTS (SELECT FROM {STAGING} AS s WHERE {})",
            self.by_key()
        )
    }

    fn insert_select(&self) -> String {
        let columns = POSTGRES.list(self.columns.iter().map(|column| &column.name));
        let values: Vec<_> = (0..self.columns.len()).map(|index| self.value(index)).collect();
        let overriding = if self.overriding { " OVERRIDING SYSTEM VALUE" } else { "" };
        format!("INSERT INTO {} ({columns}){overriding} SELECT {}", quoted(&self.table), values.join(", "))
    }

    fn by_key(&self) -> String {
        let conditions: Vec<_> = self
            .columns
            .iter()
            .enumerate()
            .filter(|(_, column)| column.key)
            .map(|(index, column)| format!("t.{} = {}", POSTGRES.ident(&column.name), self.value(index)))
            .collect();
        conditions.join(" AND ")
    }

    /// A staged value as one of the target's type.
    fn value(&self, index: usize) -> String {
        let column = &self.columns[index];
        match &column.carried.staged {
            Staged::Same => format!("s.c{index}"),
            Staged::As(_) => format!("s.c{index}::{}", column.type_name),
            // The only function that reads arrays of composites as well.
            Staged::Json => format!(
                "(SELECT r.v FROM jsonb_to_record(jsonb_build_object('v', s.c{index})) AS r(v {}))",
                column.type_name
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::super::encode::Wire;
    use super::*;

    fn statements(deletes: Deletes) -> Statements {
        let column = |name: &str, type_name: &str, staged, key, exact| Column {
            name: name.into(),
            type_name: type_name.into(),
            carried: Carried { wire: Wire::Text, staged },
            key,
            equality_is_identity: exact,
        };
        Statements {
            table: TableId::new("S", "order"),
            columns: vec![
                column("Id", "bigint", Staged::Same, true, true),
                column("net", "inet", Staged::As("text".into()), false, false),
                column("p", "point3[]", Staged::Json, false, false),
                column("a\"b", "text", Staged::Same, false, true),
            ],
            key: vec!["Id".into()],
            deletes,
            overriding: true,
        }
    }

    fn check(text: &str, expected: Expect) {
        expected.assert_eq(text);
    }

    #[test]
    fn a_merge() {
        let all = statements(Deletes::Hard);
        check(
            &all.create_staging(),
            expect![
                "CREATE TEMPORARY TABLE frazil_staging (c0 bigint, c1 text, c2 jsonb, c3 text, op smallint) ON COMMIT DROP"
            ],
        );
        check(
            &all.delete().unwrap(),
            expect![[
                r#"DELETE FROM "S"."order" AS t USING pg_temp.frazil_staging AS s WHERE s.op = 1 AND t."Id" = s.c0"#
            ]],
        );
        check(
            &all.upsert(),
            expect![[
                r#"INSERT INTO "S"."order" AS t ("Id", "net", "p", "a""b") OVERRIDING SYSTEM VALUE SELECT s.c0, s.c1::inet, (SELECT r.v FROM jsonb_to_record(jsonb_build_object('v', s.c2)) AS r(v point3[])), s.c3 FROM pg_temp.frazil_staging AS s WHERE s.op = 0 ON CONFLICT ("Id") DO UPDATE SET "net" = excluded."net", "p" = excluded."p", "a""b" = excluded."a""b" WHERE t."a""b" IS DISTINCT FROM excluded."a""b" OR ROW(t."net", t."p")::record OPERATOR(pg_catalog.*<>) ROW(excluded."net", excluded."p")::record"#
            ]],
        );
    }

    #[test]
    fn soft_deletes() {
        let mut soft = statements(Deletes::Soft);
        soft.columns.truncate(1);
        check(
            &soft.delete().unwrap(),
            expect![[
                r#"UPDATE "S"."order" AS t SET "_deleted_at" = now() FROM pg_temp.frazil_staging AS s WHERE s.op = 1 AND t."_deleted_at" IS NULL AND t."Id" = s.c0"#
            ]],
        );
        check(
            &soft.upsert(),
            expect![[
                r#"INSERT INTO "S"."order" AS t ("Id") OVERRIDING SYSTEM VALUE SELECT s.c0 FROM pg_temp.frazil_staging AS s WHERE s.op = 0 ON CONFLICT ("Id") DO UPDATE SET "_deleted_at" = NULL WHERE t."_deleted_at" IS NOT NULL"#
            ]],
        );
    }

    #[test]
    fn a_replacement_deletes_what_is_left_out() {
        let mut all = statements(Deletes::Ignore);
        assert_eq!(all.delete(), None);
        check(
            &all.delete_others(),
            expect![[
                r#"DELETE FROM "S"."order" AS t WHERE NOT EXISTS (SELECT FROM pg_temp.frazil_staging AS s WHERE t."Id" = s.c0)"#
            ]],
        );
        all.key.clear();
        check(&all.delete_others(), expect![[r#"DELETE FROM "S"."order""#]]);
    }
}
