//! What SQL databases share: quoting, the difference between two table shapes, and the parts of reading
//! and loading that are the same for all.
//!
//! ```text
//! columns wanted ──┐
//!                  ├──▶ reshape ──▶ statements, or one error that names every column that cannot fit
//! columns there  ──┘
//! ```
//!
//! A table is only ever widened: nothing here drops a column or narrows a type. What we did not make,
//! we do not alter beyond adding columns; then the error holds the statement to run. Columns that the
//! lake renamed are found by [`Renames`].

mod beside;
mod changes;
mod loading;
mod names;
mod position;
mod reading;
mod refused;
mod renames;
mod triggers;
mod unfit;
mod versions;

pub use beside::{Beside, Comparison, Plan, Sided, Sides};
pub use changes::{Changes, NULL, Share, UNCHANGED, fields, with_ops};
pub(super) use loading::json;
pub use loading::{
    DELETED_AT, Hears, History, check_changes, check_changes_with_base, check_changes_with_letters,
    check_key, lake_ids, made, mark_deleted,
};
pub use names::{missing_column, missing_table, named_for_change};
pub(crate) use position::as_text;
pub use position::{Number, Stored};
pub use reading::{
    Pool, Queue, RANGE_BYTES, RANGES_A_STREAM, SMALLEST_RANGE_BYTES, Select, beyond, lock, replaced_values,
    up_to,
};
pub use refused::{Attempts, by_halves, with_letters};
pub use renames::Renames;
pub use triggers::{
    InstalledParts, SILENT_DAYS, TriggerNames, cast_ops, forget_reader, installed_already, installed_anew,
    nothing_installed, other_reader, silent_reader,
};
pub use unfit::Unfit;
pub use versions::{Ended, check_versions, endings, keep_versions};

use crate::error::{Error, ErrorKind, Result};
use crate::source::ReadRequest;
use crate::table::TableId;

/// How one kind of database writes names and what it can alter.
#[derive(Debug)]
pub struct Dialect {
    /// The database, for messages.
    pub name: &'static str,
    /// The longest name in bytes, in UTF-16 units where it is SQL Server's, in characters where it is MySQL's;
    /// longer ones would be cut off without an error, or refused.
    pub longest_name: usize,
    /// How a column is altered.
    pub alters: Alters,
}

/// How one kind of database alters a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alters {
    /// `ALTER COLUMN c TYPE t`, `ALTER COLUMN c DROP NOT NULL`.
    Standard,
    /// `ALTER COLUMN c t NULL`: type and nullability together. Names stand in brackets.
    TransactSql,
    /// `MODIFY COLUMN c t NULL`: type and nullability together. Names stand in backticks.
    MySql,
    /// Not at all: a column stays as it was made.
    Never,
}

/// Postgres: `NAMEDATALEN - 1` bytes a name.
pub static POSTGRES: Dialect = Dialect { name: "postgres", longest_name: 63, alters: Alters::Standard };

/// SQLite: names are as long as one likes, and a column stays as it was made.
pub static SQLITE: Dialect = Dialect { name: "sqlite", longest_name: usize::MAX, alters: Alters::Never };

/// SQL Server: a name is a `sysname`.
pub static MSSQL: Dialect = Dialect { name: "SQL Server", longest_name: 128, alters: Alters::TransactSql };

/// MySQL and MariaDB.
pub static MYSQL: Dialect = Dialect { name: "MySQL", longest_name: 64, alters: Alters::MySql };

impl Dialect {
    /// A name, quoted: case, reserved words, spaces and quotes are kept as they are.
    pub fn ident(&self, name: &str) -> String {
        match self.alters {
            Alters::TransactSql => format!("[{}]", name.replace(']', "]]")),
            Alters::MySql => format!("`{}`", name.replace('`', "``")),
            _ => format!("\"{}\"", name.replace('"', "\"\"")),
        }
    }

    /// A table's name, quoted, with its schema where there is one.
    pub fn table(&self, table: &TableId) -> String {
        match &table.schema {
            Some(schema) => format!("{}.{}", self.ident(schema), self.ident(&table.name)),
            None => self.ident(&table.name),
        }
    }

    /// Names, quoted, with commas between them.
    pub fn list<S: AsRef<str>>(&self, names: impl IntoIterator<Item = S>) -> String {
        names.into_iter().map(|name| self.ident(name.as_ref())).collect::<Vec<_>>().join(", ")
    }

    /// Refuses names that this database would cut off or cannot hold.
    pub fn check_name(&self, name: &str) -> Result<()> {
        let problem = if name.is_empty() {
            "a name is empty".to_owned()
        } else if name.contains('\0') {
            "a name contains a NUL character".to_owned()
        } else if matches!(self.alters, Alters::TransactSql | Alters::MySql) {
            let units = match self.alters {
                Alters::MySql => name.chars().count(),
                _ => name.encode_utf16().count(),
            };
            if units <= self.longest_name {
                return Ok(());
            }
            format!(
                "a name of {units} characters is too long for {}, which has {}",
                self.name, self.longest_name
            )
        } else if name.len() > self.longest_name {
            format!(
                "a name of {} bytes is too long for {}, which cuts names after {}",
                name.len(),
                self.name,
                self.longest_name
            )
        } else {
            return Ok(());
        };
        Err(Error::new(ErrorKind::Config, problem)
            .with("name", name)
            .hint("choose a shorter name in the target"))
    }

    /// Checks the table's own name and those of its columns; two columns of one name are refused too.
    pub fn check_names<'a>(&self, table: &TableId, columns: impl IntoIterator<Item = &'a str>) -> Result<()> {
        let mut seen = std::collections::HashSet::new();
        for name in table.schema.as_deref().into_iter().chain([table.name.as_str()]) {
            self.check_name(name).map_err(|error| error.with("table", table))?;
        }
        for name in columns {
            self.check_name(name).map_err(|error| error.with("table", table))?;
            if !seen.insert(name) {
                return Err(Error::new(ErrorKind::Config, "two columns have the same name")
                    .with("table", table)
                    .with("column", name));
            }
        }
        Ok(())
    }
}

impl Dialect {
    /// Adds a column. Rows that are there have no value for it but the default, so it takes NULL.
    fn add(&self, table: &str, column: &Wanted) -> String {
        let name = self.ident(&column.name);
        let default = column.added_default.as_ref().map(|text| text.replace('\'', "''"));
        match (self.alters, default) {
            (Alters::TransactSql, Some(text)) => {
                format!(
                    "ALTER TABLE {table} ADD {name} {} NULL DEFAULT N'{text}' WITH VALUES",
                    column.data_type
                )
            }
            (Alters::TransactSql, None) => {
                format!("ALTER TABLE {table} ADD {name} {} NULL", column.data_type)
            }
            (_, Some(text)) => {
                format!("ALTER TABLE {table} ADD COLUMN {name} {} DEFAULT '{text}'", column.data_type)
            }
            (_, None) => format!("ALTER TABLE {table} ADD COLUMN {name} {}", column.data_type),
        }
    }

    /// Gives a column a wider type.
    fn widen(&self, table: &str, name: &str, data_type: &str, not_null: bool) -> String {
        match self.alters {
            Alters::TransactSql => {
                let null = if not_null { "NOT NULL" } else { "NULL" };
                format!("ALTER TABLE {table} ALTER COLUMN {} {data_type} {null}", self.ident(name))
            }
            Alters::MySql => {
                let null = if not_null { "NOT NULL" } else { "NULL" };
                format!("ALTER TABLE {table} MODIFY COLUMN {} {data_type} {null}", self.ident(name))
            }
            _ => format!("ALTER TABLE {table} ALTER COLUMN {} TYPE {data_type}", self.ident(name)),
        }
    }

    /// Lets a column of this type take NULL.
    fn take_null(&self, table: &str, name: &str, data_type: &str) -> String {
        match self.alters {
            Alters::TransactSql | Alters::MySql => self.widen(table, name, data_type, false),
            _ => format!("ALTER TABLE {table} ALTER COLUMN {} DROP NOT NULL", self.ident(name)),
        }
    }

    /// Gives a column another name.
    fn rename(&self, table: &TableId, old: &str, new: &str) -> String {
        match self.alters {
            Alters::TransactSql => {
                let path = format!("{}.{}", self.table(table), self.ident(old)).replace('\'', "''");
                format!("EXEC sp_rename N'{path}', N'{}', N'COLUMN'", new.replace('\'', "''"))
            }
            _ => format!(
                "ALTER TABLE {} RENAME COLUMN {} TO {}",
                self.table(table),
                self.ident(old),
                self.ident(new)
            ),
        }
    }
}

/// A column as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// Its type in the target's own words.
    pub data_type: String,
    /// Whether the source promises a value in every row.
    pub not_null: bool,
    /// What rows that are there get when the column is added; NULL where nothing is said.
    pub added_default: Option<String>,
}

/// A column that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Present {
    /// Its name.
    pub name: String,
    /// Its type in the target's own words.
    pub data_type: String,
    /// Whether it refuses NULL.
    pub not_null: bool,
    /// Whether the database fills it when nothing is given: a default, an identity.
    pub defaulted: bool,
    /// Whether it is computed from other columns, and so never written.
    pub generated: bool,
}

/// The statement that creates a table; without a key when `key` is empty.
pub fn create_table(dialect: &Dialect, table: &TableId, columns: &[Wanted], key: &[String]) -> String {
    let mut lines: Vec<String> = columns
        .iter()
        .map(|column| {
            let not_null = if column.not_null { " NOT NULL" } else { "" };
            format!("  {} {}{not_null}", dialect.ident(&column.name), column.data_type)
        })
        .collect();
    if !key.is_empty() {
        lines.push(format!("  PRIMARY KEY ({})", dialect.list(key)));
    }
    format!("CREATE TABLE {} (\n{}\n)", dialect.table(table), lines.join(",\n"))
}

/// The statements that make the table that is there hold the columns wanted, in order; none when it
/// fits. `ours` says that we created the table, so that its columns may be widened too.
///
/// `fits(narrow, wide)` says whether each value of the first type is a value of the second, unchanged.
pub fn reshape(
    dialect: &Dialect,
    table: &TableId,
    wanted: &[Wanted],
    present: &[Present],
    ours: bool,
    fits: impl Fn(&str, &str) -> bool,
) -> Result<Vec<String>> {
    let (own, alters) = (dialect.table(table), dialect.alters != Alters::Never);
    let mut statements = Vec::new();
    let mut misfits: Vec<String> = Vec::new();
    let mut remedies: Vec<String> = Vec::new();

    for column in wanted {
        let Some(there) = present.iter().find(|there| there.name == column.name) else {
            statements.push(dialect.add(&own, column));
            continue;
        };
        if there.generated {
            continue;
        }
        let mut data_type = &there.data_type;
        if !fits(&column.data_type, &there.data_type) {
            let widen = dialect.widen(&own, &column.name, &column.data_type, there.not_null);
            let lossless = fits(&there.data_type, &column.data_type);
            if ours && lossless && alters {
                statements.push(widen);
                data_type = &column.data_type;
            } else {
                misfits.push(format!(
                    "column `{}` is {} there and {} in the stream",
                    column.name, there.data_type, column.data_type
                ));
                if alters {
                    let using = match dialect.alters {
                        Alters::Standard if !lossless => {
                            format!(" USING {}::{}", dialect.ident(&column.name), column.data_type)
                        }
                        _ => String::new(),
                    };
                    remedies.push(format!("{widen}{using}"));
                }
            }
        }
        if there.not_null && !column.not_null && ours && alters {
            statements.push(dialect.take_null(&own, &column.name, data_type));
        }
    }
    for there in present {
        let unfilled = there.not_null && !there.defaulted && !there.generated;
        if unfilled && !wanted.iter().any(|column| column.name == there.name) {
            let take_null = dialect.take_null(&own, &there.name, &there.data_type);
            if ours && alters {
                // The source dropped it: old rows keep what they have, new ones have nothing.
                statements.push(take_null);
                continue;
            }
            misfits.push(format!("column `{}` needs a value and the stream has none for it", there.name));
            if alters {
                remedies.push(take_null);
            }
        }
    }

    if misfits.is_empty() {
        return Ok(statements);
    }
    let error =
        Error::new(ErrorKind::Schema, format!("the target table has another shape: {}", misfits.join("; ")))
            .with("table", table);
    Err(if remedies.is_empty() {
        error.hint("load into another table, or rename this one away")
    } else {
        error.hint(format!("to make it fit, if its data allow: {}", remedies.join("; ")))
    })
}

/// A way to find changes that only another database has.
pub(super) fn foreign_change(database: &str, request: &ReadRequest) -> Error {
    let message = format!("`change: {}` is not for {database}", request.change.name());
    Error::new(ErrorKind::Config, message)
        .with("table", &request.table)
        .hint("use `auto`, `timestamp`, `id`, `version`, `trigger` or `full`")
}

/// Counts the rows of a table, named as it stands in a statement, that meet the user's own condition.
pub(super) fn counting(table: &str, filter: Option<&str>) -> String {
    // A line of its own: the condition may end in a comment.
    let condition = filter.map(|filter| format!(" WHERE ({filter}\n)")).unwrap_or_default();
    format!("SELECT count(*) FROM {table}{condition}")
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    /// `name type [!]` a line; `!` is NOT NULL, `=` a default, `g` generated.
    fn columns(text: &str) -> Vec<(String, String, String)> {
        text.lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .map(|line| {
                let mut words = line.split_whitespace().map(str::to_owned);
                (words.next().unwrap(), words.next().unwrap(), words.next().unwrap_or_default())
            })
            .collect()
    }

    fn check(ours: bool, wanted: &str, present: &str, expected: Expect) {
        let wanted: Vec<_> = columns(wanted)
            .into_iter()
            .map(|(name, data_type, flags)| Wanted {
                name,
                data_type,
                not_null: flags.contains('!'),
                added_default: flags.contains('=').then(|| "it's".to_owned()),
            })
            .collect();
        let present: Vec<_> = columns(present)
            .into_iter()
            .map(|(name, data_type, flags)| Present {
                name,
                data_type,
                not_null: flags.contains('!'),
                defaulted: flags.contains('='),
                generated: flags.contains('g'),
            })
            .collect();
        let fits = |narrow: &str, wide: &str| narrow == wide || (narrow, wide) == ("int", "bigint");
        let table = TableId::new("s", "T");
        let text = match reshape(&POSTGRES, &table, &wanted, &present, ours, fits) {
            Ok(statements) => statements.join("\n"),
            Err(error) => format!("{error:?}"),
        };
        expected.assert_eq(&text);
    }

    #[test]
    fn names_are_quoted_and_bounded() {
        assert_eq!(POSTGRES.table(&TableId::new("My Schema", "a\"b")), r#""My Schema"."a""b""#);
        assert_eq!(SQLITE.table(&TableId::bare("select")), r#""select""#);
        assert!(POSTGRES.check_name(&"ä".repeat(31)).is_ok());
        expect!["config: a name of 64 bytes is too long for postgres, which cuts names after 63 (name: ääääääääääääääääääääääääääääääää)\n  hint: choose a shorter name in the target"]
            .assert_eq(&format!("{:?}", POSTGRES.check_name(&"ä".repeat(32)).unwrap_err()));
        assert!(POSTGRES.check_names(&TableId::bare("t"), ["a", "A"]).is_ok());
        assert!(POSTGRES.check_names(&TableId::bare("t"), ["a", "a"]).is_err());
    }

    #[test]
    fn a_table_is_created_with_its_key() {
        let columns = [
            Wanted { name: "Id".into(), data_type: "bigint".into(), not_null: true, added_default: None },
            Wanted { name: "order".into(), data_type: "text".into(), not_null: false, added_default: None },
        ];
        expect![[r#"
            CREATE TABLE "orders" (
              "Id" bigint NOT NULL,
              "order" text,
              PRIMARY KEY ("Id")
            )"#]]
        .assert_eq(&create_table(&SQLITE, &TableId::bare("orders"), &columns, &["Id".into()]));
    }

    #[test]
    fn a_table_that_fits_is_left_alone() {
        check(
            false,
            "id int !\nname text",
            "id bigint !\nname text !\nextra text\nat text !=\nsum int !g",
            expect![""],
        );
    }

    #[test]
    fn missing_columns_are_added_and_our_own_are_widened() {
        check(
            true,
            "id bigint !\nname text\nnew text !\nfilled text =",
            "id int !\nname text !\nold text !",
            expect![[r#"
                ALTER TABLE "s"."T" ALTER COLUMN "id" TYPE bigint
                ALTER TABLE "s"."T" ALTER COLUMN "name" DROP NOT NULL
                ALTER TABLE "s"."T" ADD COLUMN "new" text
                ALTER TABLE "s"."T" ADD COLUMN "filled" text DEFAULT 'it''s'
                ALTER TABLE "s"."T" ALTER COLUMN "old" DROP NOT NULL"#]],
        );
    }

    #[test]
    fn what_cannot_fit_is_named_with_both_types_and_a_way_out() {
        check(
            false,
            "id bigint !\nname text\nat date",
            "id int !\nname bytea\nat date\nneeded text !",
            expect![[r#"
                schema: the target table has another shape: column `id` is int there and bigint in the stream; column `name` is bytea there and text in the stream; column `needed` needs a value and the stream has none for it (table: s.T)
                  hint: to make it fit, if its data allow: ALTER TABLE "s"."T" ALTER COLUMN "id" TYPE bigint; ALTER TABLE "s"."T" ALTER COLUMN "name" TYPE text USING "name"::text; ALTER TABLE "s"."T" ALTER COLUMN "needed" DROP NOT NULL"#]],
        );
    }
}
