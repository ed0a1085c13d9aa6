//! The statements of a load, as text.
//!
//! ```text
//! #frazil_staging (c0, c1, …, op)  ──one MERGE──▶ op 1: DELETE, op 0: UPDATE what differs, INSERT
//!                                  ──or────────▶ DELETE, UPDATE, INSERT, where MERGE is not to be trusted
//! ```
//!
//! Staging columns are named by position, so no name of a user's column can clash with ours.
//! `HOLDLOCK` keeps the place of a key that is not there yet: without it two loads insert it both.
//!
//! A row is left alone when nothing in it differs. Equality is asked of the bits: under a collation
//! `a` equals `A` and `a` followed by a blank, and neither change would ever arrive.

use super::kind::Kind;
use super::shape::KEY_COLLATION;
use crate::connectors::sql::{DELETED_AT, MSSQL};
use crate::table::TableId;
use crate::target::Deletes;

mod versions;

/// The staging table. Private to the session, gone with it.
pub(super) const STAGING: &str = "[#frazil_staging]";

/// What a change is brought in with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// One statement that deletes, updates and inserts.
    Merge,
    /// Three statements, in one transaction as well.
    UpdateInsert,
}

/// One column of a load.
#[derive(Debug, Clone)]
pub(super) struct Column {
    pub(super) name: String,
    /// Its type in the target.
    pub(super) type_name: String,
    pub(super) collation: Option<String>,
    pub(super) staged: String,
    pub(super) cast: Option<String>,
    pub(super) key: bool,
    pub(super) identity: bool,
}

/// The table to load and all that its statements depend on.
#[derive(Debug, Clone)]
pub(super) struct Statements {
    pub(super) table: TableId,
    pub(super) columns: Vec<Column>,
    pub(super) deletes: Deletes,
}

impl Statements {
    /// The staging table, with the operation as its last column. Texts have the collation of the column
    /// that they are for: those of the temporary database may be others, which do not compare.
    pub(super) fn create_staging(&self) -> String {
        let columns = self.columns.iter().enumerate().map(|(index, column)| {
            let collation = match &column.collation {
                Some(name) if is_text(&column.staged) => format!(" COLLATE {name}"),
                None if is_text(&column.staged) => " COLLATE DATABASE_DEFAULT".to_owned(),
                _ => String::new(),
            };
            format!("[c{index}] {}{collation} NULL, ", column.staged)
        });
        format!(
            "DROP TABLE IF EXISTS {STAGING}; CREATE TABLE {STAGING} ({}[op] tinyint NULL)",
            columns.collect::<String>()
        )
    }

    /// The names of its columns, for the bulk load.
    pub(super) fn staging_columns(&self) -> Vec<String> {
        (0..self.columns.len()).map(|index| format!("[c{index}]")).chain(["[op]".to_owned()]).collect()
    }

    /// One staged row by parameters: for values that a bulk load does not take.
    pub(super) fn insert_staged(&self) -> String {
        let values: Vec<_> = self
            .columns
            .iter()
            .enumerate()
            // A parameter's own precision may be more than any column has.
            .map(|(index, column)| format!("CAST(@P{} AS {})", index + 1, column.staged))
            .collect();
        format!(
            "INSERT INTO {STAGING} ({}) VALUES ({}, CAST(@P{} AS tinyint))",
            self.staging_columns().join(", "),
            values.join(", "),
            self.columns.len() + 1
        )
    }

    /// Sorts the staged rows by key, and finds keys that come twice.
    pub(super) fn index_staging(&self) -> Option<String> {
        let key: Vec<_> = self.key().map(|(index, _)| format!("[c{index}]")).collect();
        (!key.is_empty()).then(|| {
            format!("CREATE UNIQUE CLUSTERED INDEX [frazil_staged] ON {STAGING} ({})", key.join(", "))
        })
    }

    /// The first column in which a staged text has a character that its column's code page has not.
    pub(super) fn find_unwritable(&self) -> Option<String> {
        let whens: Vec<_> = self
            .columns
            .iter()
            .enumerate()
            .filter(|(_, column)| Kind::parse(&column.type_name).is_some_and(Kind::is_code_page))
            .map(|(index, column)| {
                let collation = column.collation.as_deref().unwrap_or("DATABASE_DEFAULT");
                let there = format!("CAST(CAST(s.[c{index}] COLLATE {collation} AS varchar(max)) AS nvarchar(max))");
                format!("WHEN {there} COLLATE {KEY_COLLATION} <> s.[c{index}] COLLATE {KEY_COLLATION} THEN {index}")
            })
            .collect();
        (!whens.is_empty()).then(|| {
            format!(
                "SELECT CAST(MAX(CASE {} ELSE -1 END) AS int) AS place FROM {STAGING} AS s WHERE s.[op] = 0",
                whens.join(" ")
            )
        })
    }

    /// Everything staged, into a table where no key can conflict. Of an empty one the whole is locked:
    /// that costs nobody anything, and much less is logged.
    pub(super) fn insert(&self, empty: bool) -> String {
        let lock = if empty { " WITH (TABLOCK)" } else { "" };
        format!(
            "INSERT INTO {}{lock} ({}) SELECT {} FROM {STAGING} AS s WHERE s.[op] = 0{}",
            MSSQL.table(&self.table),
            self.names(),
            self.values(),
            self.in_order()
        )
    }

    /// How many of the rows staged as deletes are there.
    pub(super) fn count_deletes(&self) -> String {
        format!("SELECT CAST(COUNT_BIG(*) AS bigint) AS gone FROM {} WHERE s.[op] = 1", self.joined())
    }

    /// Rows staged as deletes, as a statement of its own; `None` when they stay, or the merge does it.
    pub(super) fn delete(&self, way: Way) -> Option<String> {
        match self.deletes {
            Deletes::Ignore => None,
            Deletes::Hard if way == Way::Merge => None,
            Deletes::Hard => Some(format!("DELETE t FROM {} WHERE s.[op] = 1", self.joined())),
            Deletes::Soft => {
                let name = MSSQL.ident(DELETED_AT);
                Some(format!(
                    "UPDATE t SET {name} = SYSUTCDATETIME() FROM {} WHERE s.[op] = 1 AND t.{name} IS NULL",
                    self.joined()
                ))
            }
        }
    }

    /// Rows staged as upserts, inserted or updated by key; in order.
    pub(super) fn upsert(&self, way: Way) -> Vec<String> {
        match way {
            Way::Merge => vec![self.merge()],
            Way::UpdateInsert => self.update().into_iter().chain([self.insert_new()]).collect(),
        }
    }

    fn merge(&self) -> String {
        let mut statement = format!(
            "MERGE INTO {} WITH (HOLDLOCK) AS t USING {STAGING} AS s ON {}",
            MSSQL.table(&self.table),
            self.by_key()
        );
        if self.deletes == Deletes::Hard {
            statement.push_str(" WHEN MATCHED AND s.[op] = 1 THEN DELETE");
        }
        if let Some((sets, differs)) = self.changes() {
            statement.push_str(&format!(" WHEN MATCHED AND s.[op] = 0 AND {differs} THEN UPDATE SET {sets}"));
        }
        statement.push_str(&format!(
            " WHEN NOT MATCHED BY TARGET AND s.[op] = 0 THEN INSERT ({}) VALUES ({});",
            self.names(),
            self.values()
        ));
        statement
    }

    fn update(&self) -> Option<String> {
        let (sets, differs) = self.changes()?;
        Some(format!("UPDATE t SET {sets} FROM {} WHERE s.[op] = 0 AND {differs}", self.joined()))
    }

    fn insert_new(&self) -> String {
        let table = MSSQL.table(&self.table);
        format!(
            "INSERT INTO {table} ({}) SELECT {} FROM {STAGING} AS s WHERE s.[op] = 0 AND NOT EXISTS \
             (SELECT 1 FROM {table} AS t WITH (UPDLOCK, HOLDLOCK) WHERE {}){}",
            self.names(),
            self.values(),
            self.by_key(),
            self.in_order()
        )
    }

    /// Rows that the staging table does not have: what a whole new content leaves out. All rows, when
    /// there is no key to tell them apart.
    pub(super) fn delete_others(&self) -> String {
        let table = MSSQL.table(&self.table);
        if self.key().next().is_none() {
            return format!("DELETE FROM {table}");
        }
        format!(
            "DELETE t FROM {table} AS t WITH (UPDLOCK, HOLDLOCK) WHERE NOT EXISTS (SELECT 1 FROM {STAGING} AS s WHERE {})",
            self.by_key()
        )
    }

    /// What insists on values for the identity column, and what ends it; `None` without one.
    pub(super) fn identity_insert(&self) -> Option<[String; 2]> {
        self.columns.iter().any(|column| column.identity).then(|| {
            ["ON", "OFF"].map(|state| format!("SET IDENTITY_INSERT {} {state}", MSSQL.table(&self.table)))
        })
    }

    fn key(&self) -> impl Iterator<Item = (usize, &Column)> {
        self.columns.iter().enumerate().filter(|(_, column)| column.key)
    }

    fn joined(&self) -> String {
        format!(
            "{} AS t WITH (UPDLOCK, HOLDLOCK) INNER JOIN {STAGING} AS s ON {}",
            MSSQL.table(&self.table),
            self.by_key()
        )
    }

    fn by_key(&self) -> String {
        let conditions: Vec<_> = self
            .key()
            .map(|(index, column)| format!("t.{} = {}", MSSQL.ident(&column.name), self.value(index)))
            .collect();
        conditions.join(" AND ")
    }

    /// New pages fill up one after the other.
    fn in_order(&self) -> String {
        let key: Vec<_> = self.key().map(|(index, _)| format!("s.[c{index}]")).collect();
        if key.is_empty() { String::new() } else { format!(" ORDER BY {}", key.join(", ")) }
    }

    fn names(&self) -> String {
        self.columns.iter().map(|column| MSSQL.ident(&column.name)).collect::<Vec<_>>().join(", ")
    }

    fn values(&self) -> String {
        (0..self.columns.len()).map(|index| self.value(index)).collect::<Vec<_>>().join(", ")
    }

    /// What an update sets, and when there is something to update; `None` when all columns are key.
    fn changes(&self) -> Option<(String, String)> {
        let (mut sets, mut new, mut old) = (Vec::new(), Vec::new(), Vec::new());
        for (index, column) in
            self.columns.iter().enumerate().filter(|(_, column)| !column.key && !column.identity)
        {
            let (name, value) = (MSSQL.ident(&column.name), self.value(index));
            sets.push(format!("{name} = {value}"));
            new.extend(images(&column.type_name, &value));
            old.extend(images(&column.type_name, &format!("t.{name}")));
        }
        let mut differs = match new.is_empty() {
            true => String::new(),
            false => format!("EXISTS (SELECT {} EXCEPT SELECT {})", new.join(", "), old.join(", ")),
        };
        if self.deletes == Deletes::Soft {
            let name = MSSQL.ident(DELETED_AT);
            sets.push(format!("{name} = NULL"));
            let gone = format!("t.{name} IS NOT NULL");
            differs = if differs.is_empty() { gone } else { format!("({gone} OR {differs})") };
        }
        (!sets.is_empty()).then(|| (sets.join(", "), differs))
    }

    /// A staged value as one of the target's type.
    fn value(&self, index: usize) -> String {
        match &self.columns[index].cast {
            None => format!("s.[c{index}]"),
            Some(name) => format!("CAST(s.[c{index}] AS {name})"),
        }
    }
}

fn is_text(type_name: &str) -> bool {
    Kind::parse(type_name).is_some_and(Kind::is_text)
}

/// Expressions that are equal only where the value is the same to the last bit. NULL equals NULL under
/// `EXCEPT`; blanks and zeros at the end count by the length.
fn images(type_name: &str, value: &str) -> Vec<String> {
    match Kind::parse(type_name) {
        Some(kind) if kind.is_text() => {
            vec![format!("{value} COLLATE {KEY_COLLATION}"), format!("DATALENGTH({value})")]
        }
        Some(kind) if kind.is_binary() => vec![value.to_owned(), format!("DATALENGTH({value})")],
        // XML does not compare.
        Some(Kind::Xml) => vec![format!("CAST({value} AS nvarchar(max)) COLLATE {KEY_COLLATION}")],
        _ => vec![value.to_owned()],
    }
}

#[cfg(test)]
mod tests {
    use datafusion::sql::sqlparser::dialect::MsSqlDialect;
    use datafusion::sql::sqlparser::parser::Parser;
    use expect_test::{Expect, expect};

    use super::super::encode::carry;
    use super::*;
    use crate::connectors::sql::Ended;

    fn statements(deletes: Deletes) -> Statements {
        use arrow::datatypes::{DataType as D, TimeUnit};
        let column = |name: &str, type_name: &str, arrow: D, key: bool| {
            let carried = carry(&arrow, type_name).unwrap();
            Column {
                name: name.into(),
                type_name: type_name.into(),
                collation: is_text(type_name).then(|| "Latin1_General_CI_AS".to_owned()),
                staged: carried.staged,
                cast: carried.cast,
                key,
                identity: name == "Id",
            }
        };
        Statements {
            table: TableId::new("Sales", "order"),
            columns: vec![
                column("Id", "bigint", D::Int64, true),
                column("na]me", "nvarchar(100)", D::Utf8, false),
                column("price", "money", D::Decimal128(19, 4), false),
                column("day", "datetime", D::Timestamp(TimeUnit::Microsecond, None), false),
                column("data", "varbinary(max)", D::Binary, false),
            ],
            deletes,
        }
    }

    /// What the independent parser of the T-SQL dialect accepts, as text. It knows no hints on the table
    /// that a statement changes, and no clustered indexes.
    #[test]
    fn versions() {
        let at = chrono::DateTime::from_timestamp_millis(1_763_722_800_123).unwrap();
        let all = statements(Deletes::Hard);
        let mut text = String::new();
        for which in [Ended::Others, Ended::Deleted, Ended::Changed] {
            text += &all.end_versions(at, which).unwrap().map(|statement| statement + "\n").concat();
        }
        text += &all.begin_versions(at);
        for statement in text.lines() {
            Parser::parse_sql(&MsSqlDialect {}, statement).unwrap();
        }
        expect![[r#"
            DELETE t FROM [Sales].[order] AS t WITH (UPDLOCK, HOLDLOCK) WHERE t.[_is_current] = 1 AND t.[_valid_from] >= CAST('2025-11-21T11:00:00.123000' AS datetime2(7)) AND NOT EXISTS (SELECT 1 FROM [#frazil_staging] AS s WHERE t.[Id] = s.[c0])
            UPDATE t SET [_valid_to] = CAST('2025-11-21T11:00:00.123000' AS datetime2(7)), [_is_current] = 0 FROM [Sales].[order] AS t WITH (UPDLOCK, HOLDLOCK) WHERE t.[_is_current] = 1 AND NOT EXISTS (SELECT 1 FROM [#frazil_staging] AS s WHERE t.[Id] = s.[c0])
            DELETE t FROM [Sales].[order] AS t WITH (UPDLOCK, HOLDLOCK) INNER JOIN [#frazil_staging] AS s ON t.[Id] = s.[c0] WHERE t.[_is_current] = 1 AND t.[_valid_from] >= CAST('2025-11-21T11:00:00.123000' AS datetime2(7)) AND s.[op] = 1
            UPDATE t SET [_valid_to] = CAST('2025-11-21T11:00:00.123000' AS datetime2(7)), [_is_current] = 0 FROM [Sales].[order] AS t WITH (UPDLOCK, HOLDLOCK) INNER JOIN [#frazil_staging] AS s ON t.[Id] = s.[c0] WHERE t.[_is_current] = 1 AND s.[op] = 1
            DELETE t FROM [Sales].[order] AS t WITH (UPDLOCK, HOLDLOCK) INNER JOIN [#frazil_staging] AS s ON t.[Id] = s.[c0] WHERE t.[_is_current] = 1 AND t.[_valid_from] >= CAST('2025-11-21T11:00:00.123000' AS datetime2(7)) AND s.[op] = 0 AND EXISTS (SELECT s.[c1] COLLATE Latin1_General_100_BIN2, DATALENGTH(s.[c1]), CAST(s.[c2] AS money), CAST(s.[c3] AS datetime), s.[c4], DATALENGTH(s.[c4]) EXCEPT SELECT t.[na]]me] COLLATE Latin1_General_100_BIN2, DATALENGTH(t.[na]]me]), t.[price], t.[day], t.[data], DATALENGTH(t.[data]))
            UPDATE t SET [_valid_to] = CAST('2025-11-21T11:00:00.123000' AS datetime2(7)), [_is_current] = 0 FROM [Sales].[order] AS t WITH (UPDLOCK, HOLDLOCK) INNER JOIN [#frazil_staging] AS s ON t.[Id] = s.[c0] WHERE t.[_is_current] = 1 AND s.[op] = 0 AND EXISTS (SELECT s.[c1] COLLATE Latin1_General_100_BIN2, DATALENGTH(s.[c1]), CAST(s.[c2] AS money), CAST(s.[c3] AS datetime), s.[c4], DATALENGTH(s.[c4]) EXCEPT SELECT t.[na]]me] COLLATE Latin1_General_100_BIN2, DATALENGTH(t.[na]]me]), t.[price], t.[day], t.[data], DATALENGTH(t.[data]))
            INSERT INTO [Sales].[order] ([Id], [na]]me], [price], [day], [data], [_valid_from], [_valid_to], [_is_current]) SELECT s.[c0], s.[c1], CAST(s.[c2] AS money), CAST(s.[c3] AS datetime), s.[c4], COALESCE((SELECT MAX(t.[_valid_to]) FROM [Sales].[order] AS t WHERE t.[Id] = s.[c0] AND t.[_valid_to] > CAST('2025-11-21T11:00:00.123000' AS datetime2(7))), CAST('2025-11-21T11:00:00.123000' AS datetime2(7))), NULL, 1 FROM [#frazil_staging] AS s WHERE s.[op] = 0 AND NOT EXISTS (SELECT 1 FROM [Sales].[order] AS t WITH (UPDLOCK, HOLDLOCK) WHERE t.[Id] = s.[c0] AND t.[_is_current] = 1) ORDER BY s.[c0]"#]].assert_eq(&text);
    }

    fn check(text: &str, expected: Expect) {
        let known = ["WITH (HOLDLOCK) ", "WITH (TABLOCK) ", "CLUSTERED "]
            .iter()
            .fold(text.to_owned(), |text, unknown| text.replace(unknown, ""));
        if let Err(error) = Parser::parse_sql(&MsSqlDialect {}, &known) {
            panic!("{error}: {text}");
        }
        expected.assert_eq(text);
    }

    #[test]
    fn a_merge() {
        let all = statements(Deletes::Hard);
        check(
            &all.create_staging(),
            expect![
                "DROP TABLE IF EXISTS [#frazil_staging]; CREATE TABLE [#frazil_staging] ([c0] bigint NULL, [c1] nvarchar(100) COLLATE Latin1_General_CI_AS NULL, [c2] decimal(19,4) NULL, [c3] datetime2(7) NULL, [c4] varbinary(max) NULL, [op] tinyint NULL)"
            ],
        );
        check(
            &all.index_staging().unwrap(),
            expect!["CREATE UNIQUE CLUSTERED INDEX [frazil_staged] ON [#frazil_staging] ([c0])"],
        );
        check(
            &all.count_deletes(),
            expect![
                "SELECT CAST(COUNT_BIG(*) AS bigint) AS gone FROM [Sales].[order] AS t WITH (UPDLOCK, HOLDLOCK) INNER JOIN [#frazil_staging] AS s ON t.[Id] = s.[c0] WHERE s.[op] = 1"
            ],
        );
        assert_eq!(all.delete(Way::Merge), None);
        check(
            &all.upsert(Way::Merge).join("\n"),
            expect![
                "MERGE INTO [Sales].[order] WITH (HOLDLOCK) AS t USING [#frazil_staging] AS s ON t.[Id] = s.[c0] WHEN MATCHED AND s.[op] = 1 THEN DELETE WHEN MATCHED AND s.[op] = 0 AND EXISTS (SELECT s.[c1] COLLATE Latin1_General_100_BIN2, DATALENGTH(s.[c1]), CAST(s.[c2] AS money), CAST(s.[c3] AS datetime), s.[c4], DATALENGTH(s.[c4]) EXCEPT SELECT t.[na]]me] COLLATE Latin1_General_100_BIN2, DATALENGTH(t.[na]]me]), t.[price], t.[day], t.[data], DATALENGTH(t.[data])) THEN UPDATE SET [na]]me] = s.[c1], [price] = CAST(s.[c2] AS money), [day] = CAST(s.[c3] AS datetime), [data] = s.[c4] WHEN NOT MATCHED BY TARGET AND s.[op] = 0 THEN INSERT ([Id], [na]]me], [price], [day], [data]) VALUES (s.[c0], s.[c1], CAST(s.[c2] AS money), CAST(s.[c3] AS datetime), s.[c4]);"
            ],
        );
        check(
            &all.insert_staged(),
            expect![
                "INSERT INTO [#frazil_staging] ([c0], [c1], [c2], [c3], [c4], [op]) VALUES (CAST(@P1 AS bigint), CAST(@P2 AS nvarchar(100)), CAST(@P3 AS decimal(19,4)), CAST(@P4 AS datetime2(7)), CAST(@P5 AS varbinary(max)), CAST(@P6 AS tinyint))"
            ],
        );
    }

    #[test]
    fn where_a_merge_is_not_to_be_trusted() {
        let all = statements(Deletes::Hard);
        check(
            &all.delete(Way::UpdateInsert).unwrap(),
            expect![
                "DELETE t FROM [Sales].[order] AS t WITH (UPDLOCK, HOLDLOCK) INNER JOIN [#frazil_staging] AS s ON t.[Id] = s.[c0] WHERE s.[op] = 1"
            ],
        );
        let upsert = all.upsert(Way::UpdateInsert);
        check(
            &upsert[0],
            expect![
                "UPDATE t SET [na]]me] = s.[c1], [price] = CAST(s.[c2] AS money), [day] = CAST(s.[c3] AS datetime), [data] = s.[c4] FROM [Sales].[order] AS t WITH (UPDLOCK, HOLDLOCK) INNER JOIN [#frazil_staging] AS s ON t.[Id] = s.[c0] WHERE s.[op] = 0 AND EXISTS (SELECT s.[c1] COLLATE Latin1_General_100_BIN2, DATALENGTH(s.[c1]), CAST(s.[c2] AS money), CAST(s.[c3] AS datetime), s.[c4], DATALENGTH(s.[c4]) EXCEPT SELECT t.[na]]me] COLLATE Latin1_General_100_BIN2, DATALENGTH(t.[na]]me]), t.[price], t.[day], t.[data], DATALENGTH(t.[data]))"
            ],
        );
        check(
            &upsert[1],
            expect![
                "INSERT INTO [Sales].[order] ([Id], [na]]me], [price], [day], [data]) SELECT s.[c0], s.[c1], CAST(s.[c2] AS money), CAST(s.[c3] AS datetime), s.[c4] FROM [#frazil_staging] AS s WHERE s.[op] = 0 AND NOT EXISTS (SELECT 1 FROM [Sales].[order] AS t WITH (UPDLOCK, HOLDLOCK) WHERE t.[Id] = s.[c0]) ORDER BY s.[c0]"
            ],
        );
    }

    #[test]
    fn soft_deletes() {
        let mut soft = statements(Deletes::Soft);
        soft.columns.truncate(1);
        check(
            &soft.delete(Way::Merge).unwrap(),
            expect![
                "UPDATE t SET [_deleted_at] = SYSUTCDATETIME() FROM [Sales].[order] AS t WITH (UPDLOCK, HOLDLOCK) INNER JOIN [#frazil_staging] AS s ON t.[Id] = s.[c0] WHERE s.[op] = 1 AND t.[_deleted_at] IS NULL"
            ],
        );
        check(
            &soft.upsert(Way::Merge).join("\n"),
            expect![
                "MERGE INTO [Sales].[order] WITH (HOLDLOCK) AS t USING [#frazil_staging] AS s ON t.[Id] = s.[c0] WHEN MATCHED AND s.[op] = 0 AND t.[_deleted_at] IS NOT NULL THEN UPDATE SET [_deleted_at] = NULL WHEN NOT MATCHED BY TARGET AND s.[op] = 0 THEN INSERT ([Id]) VALUES (s.[c0]);"
            ],
        );
    }

    #[test]
    fn a_first_load_and_a_replacement() {
        let mut all = statements(Deletes::Ignore);
        assert_eq!(all.delete(Way::Merge), None);
        check(
            &all.insert(true),
            expect![
                "INSERT INTO [Sales].[order] WITH (TABLOCK) ([Id], [na]]me], [price], [day], [data]) SELECT s.[c0], s.[c1], CAST(s.[c2] AS money), CAST(s.[c3] AS datetime), s.[c4] FROM [#frazil_staging] AS s WHERE s.[op] = 0 ORDER BY s.[c0]"
            ],
        );
        check(
            &all.delete_others(),
            expect![
                "DELETE t FROM [Sales].[order] AS t WITH (UPDLOCK, HOLDLOCK) WHERE NOT EXISTS (SELECT 1 FROM [#frazil_staging] AS s WHERE t.[Id] = s.[c0])"
            ],
        );
        assert_eq!(all.identity_insert().unwrap()[0], "SET IDENTITY_INSERT [Sales].[order] ON");
        all.columns.iter_mut().for_each(|column| column.key = false);
        check(&all.delete_others(), expect!["DELETE FROM [Sales].[order]"]);
        assert_eq!(all.index_staging(), None);
    }

    /// Trap: a code page has not all characters.
    #[test]
    fn characters_outside_of_a_code_page_are_looked_for() {
        let mut all = statements(Deletes::Hard);
        assert_eq!(all.find_unwritable(), None);
        all.columns[1].type_name = "varchar(100)".into();
        check(
            &all.find_unwritable().unwrap(),
            expect![
                "SELECT CAST(MAX(CASE WHEN CAST(CAST(s.[c1] COLLATE Latin1_General_CI_AS AS varchar(max)) AS nvarchar(max)) COLLATE Latin1_General_100_BIN2 <> s.[c1] COLLATE Latin1_General_100_BIN2 THEN 1 ELSE -1 END) AS int) AS place FROM [#frazil_staging] AS s WHERE s.[op] = 0"
            ],
        );
    }
}
