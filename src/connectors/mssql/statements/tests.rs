//! The statements as text, and what an independent parser of the dialect makes of them.

use datafusion::sql::sqlparser::dialect::MsSqlDialect;
use datafusion::sql::sqlparser::parser::Parser;
use expect_test::{Expect, expect};

use super::*;
use crate::connectors::mssql::encode::carry;
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
        letters: false,
        base: false,
        among: None,
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

/// Where rows may be refused, each is numbered, and a statement is about some of them.
#[test]
fn rows_that_may_be_refused() {
    let mut all = statements(Deletes::Hard);
    all.columns.truncate(2);
    all.columns[1].type_name = "varchar(100)".into();
    all.letters = true;
    let unwritable = all.find_all_unwritable().unwrap();
    all.among = Some(3..9);
    let text = [
        all.create_staging(),
        all.insert_staged(),
        all.index_staging().unwrap(),
        all.delete(Way::UpdateInsert).unwrap(),
        all.update().unwrap(),
        all.insert_new(),
        all.insert(false),
        all.put_aside(&[4, 7]),
        all.staged_letters(&[4, 7]),
        unwritable,
    ];
    for statement in &text {
        Parser::parse_sql(&MsSqlDialect {}, &statement.replace("CLUSTERED ", "")).unwrap();
    }
    expect![[r#"
        DROP TABLE IF EXISTS [#frazil_staging]; CREATE TABLE [#frazil_staging] ([c0] bigint NULL, [c1] nvarchar(100) COLLATE Latin1_General_CI_AS NULL, [letter] nvarchar(max) NULL, [number] bigint NULL, [op] tinyint NULL)
        INSERT INTO [#frazil_staging] ([c0], [c1], [letter], [number], [op]) VALUES (CAST(@P1 AS bigint), CAST(@P2 AS nvarchar(100)), CAST(@P3 AS nvarchar(max)), CAST(@P4 AS bigint), CAST(@P5 AS tinyint))
        CREATE UNIQUE CLUSTERED INDEX [frazil_staged] ON [#frazil_staging] ([number])
        DELETE t FROM [Sales].[order] AS t WITH (UPDLOCK, HOLDLOCK) INNER JOIN [#frazil_staging] AS s ON t.[Id] = s.[c0] WHERE s.[op] = 1 AND s.[number] >= 3 AND s.[number] < 9
        UPDATE t SET [na]]me] = s.[c1] FROM [Sales].[order] AS t WITH (UPDLOCK, HOLDLOCK) INNER JOIN [#frazil_staging] AS s ON t.[Id] = s.[c0] WHERE s.[op] = 0 AND s.[number] >= 3 AND s.[number] < 9 AND EXISTS (SELECT s.[c1] COLLATE Latin1_General_100_BIN2, DATALENGTH(s.[c1]) EXCEPT SELECT t.[na]]me] COLLATE Latin1_General_100_BIN2, DATALENGTH(t.[na]]me]))
        INSERT INTO [Sales].[order] ([Id], [na]]me]) SELECT s.[c0], s.[c1] FROM [#frazil_staging] AS s WHERE s.[op] = 0 AND s.[number] >= 3 AND s.[number] < 9 AND NOT EXISTS (SELECT 1 FROM [Sales].[order] AS t WITH (UPDLOCK, HOLDLOCK) WHERE t.[Id] = s.[c0]) ORDER BY s.[c0]
        INSERT INTO [Sales].[order] ([Id], [na]]me]) SELECT s.[c0], s.[c1] FROM [#frazil_staging] AS s WHERE s.[op] = 0 AND s.[number] >= 3 AND s.[number] < 9 ORDER BY s.[c0]
        UPDATE [#frazil_staging] SET [op] = 2 WHERE [number] IN (4, 7)
        SELECT s.[number], s.[letter] FROM [#frazil_staging] AS s WHERE s.[number] IN (4, 7)
        SELECT s.[number], CAST(CASE WHEN CAST(CAST(s.[c1] COLLATE Latin1_General_CI_AS AS varchar(max)) AS nvarchar(max)) COLLATE Latin1_General_100_BIN2 <> s.[c1] COLLATE Latin1_General_100_BIN2 THEN 1 ELSE -1 END AS int) AS place FROM [#frazil_staging] AS s WHERE s.[op] = 0 AND CASE WHEN CAST(CAST(s.[c1] COLLATE Latin1_General_CI_AS AS varchar(max)) AS nvarchar(max)) COLLATE Latin1_General_100_BIN2 <> s.[c1] COLLATE Latin1_General_100_BIN2 THEN 1 ELSE -1 END >= 0"#]].assert_eq(&text.join("\n"));
}

/// What others changed is found with the staged keys locked, and written over in part.
#[test]
fn rows_that_others_changed() {
    let mut all = statements(Deletes::Soft);
    all.columns.truncate(3);
    (all.letters, all.base) = (true, true);
    let text = [
        all.create_staging(),
        all.insert_staged(),
        all.compare(Some(1)),
        all.clashes(&[4, 7]),
        all.mix(&[4, 7], "10"),
        all.forget(&[4, 7]),
        all.count_staged_deletes(),
    ];
    for statement in &text {
        Parser::parse_sql(&MsSqlDialect {}, statement).unwrap();
    }
    expect![[r#"
        DROP TABLE IF EXISTS [#frazil_staging]; CREATE TABLE [#frazil_staging] ([c0] bigint NULL, [c1] nvarchar(100) COLLATE Latin1_General_CI_AS NULL, [c2] decimal(19,4) NULL, [b0] bigint NULL, [b1] nvarchar(100) COLLATE Latin1_General_CI_AS NULL, [b2] decimal(19,4) NULL, [b] int NULL, [letter] nvarchar(max) NULL, [number] bigint NULL, [op] tinyint NULL)
        INSERT INTO [#frazil_staging] ([c0], [c1], [c2], [b0], [b1], [b2], [b], [letter], [number], [op]) VALUES (CAST(@P1 AS bigint), CAST(@P2 AS nvarchar(100)), CAST(@P3 AS decimal(19,4)), CAST(@P4 AS bigint), CAST(@P5 AS nvarchar(100)), CAST(@P6 AS decimal(19,4)), CAST(@P7 AS int), CAST(@P8 AS nvarchar(max)), CAST(@P9 AS bigint), CAST(@P10 AS tinyint))
        SELECT s.[number], CONCAT('', CONCAT('', CASE WHEN s.b = 1 THEN '1' ELSE '0' END, CASE WHEN s.op = 0 THEN '1' ELSE '0' END, CASE WHEN t.[Id] IS NOT NULL AND t.[_deleted_at] IS NULL THEN '1' ELSE '0' END, CASE WHEN t.[price] IS NULL OR CAST(s.[c2] AS money) >= t.[price] THEN '1' ELSE '0' END, CASE WHEN EXISTS (SELECT t.[na]]me] COLLATE Latin1_General_100_BIN2, DATALENGTH(t.[na]]me]) EXCEPT SELECT s.[b1] COLLATE Latin1_General_100_BIN2, DATALENGTH(s.[b1])) THEN '1' ELSE '0' END, CASE WHEN EXISTS (SELECT s.[c1] COLLATE Latin1_General_100_BIN2, DATALENGTH(s.[c1]) EXCEPT SELECT s.[b1] COLLATE Latin1_General_100_BIN2, DATALENGTH(s.[b1])) THEN '1' ELSE '0' END, CASE WHEN EXISTS (SELECT t.[na]]me] COLLATE Latin1_General_100_BIN2, DATALENGTH(t.[na]]me]) EXCEPT SELECT s.[c1] COLLATE Latin1_General_100_BIN2, DATALENGTH(s.[c1])) THEN '1' ELSE '0' END, CASE WHEN EXISTS (SELECT t.[price] EXCEPT SELECT CAST(s.[b2] AS money)) THEN '1' ELSE '0' END, CASE WHEN EXISTS (SELECT CAST(s.[c2] AS money) EXCEPT SELECT CAST(s.[b2] AS money)) THEN '1' ELSE '0' END, CASE WHEN EXISTS (SELECT t.[price] EXCEPT SELECT CAST(s.[c2] AS money)) THEN '1' ELSE '0' END)) AS marks FROM [#frazil_staging] AS s LEFT JOIN [Sales].[order] AS t WITH (UPDLOCK, HOLDLOCK) ON t.[Id] = s.[c0] WHERE ((t.[Id] IS NOT NULL AND t.[_deleted_at] IS NULL AND s.b = 1 AND (EXISTS (SELECT t.[na]]me] COLLATE Latin1_General_100_BIN2, DATALENGTH(t.[na]]me]) EXCEPT SELECT s.[b1] COLLATE Latin1_General_100_BIN2, DATALENGTH(s.[b1])) OR EXISTS (SELECT t.[price] EXCEPT SELECT CAST(s.[b2] AS money)))) OR (t.[Id] IS NOT NULL AND t.[_deleted_at] IS NULL AND s.b = 0 AND s.op = 0 AND (EXISTS (SELECT t.[na]]me] COLLATE Latin1_General_100_BIN2, DATALENGTH(t.[na]]me]) EXCEPT SELECT s.[c1] COLLATE Latin1_General_100_BIN2, DATALENGTH(s.[c1])) OR EXISTS (SELECT t.[price] EXCEPT SELECT CAST(s.[c2] AS money)))) OR (NOT (t.[Id] IS NOT NULL AND t.[_deleted_at] IS NULL) AND s.b = 1 AND s.op = 0))
        SELECT s.[number], s.[letter], CASE WHEN s.[op] = 0 THEN '1' ELSE '0' END, CASE WHEN s.[b] = 1 THEN '1' ELSE '0' END, CASE WHEN t.[Id] IS NOT NULL AND t.[_deleted_at] IS NULL THEN '1' ELSE '0' END, CAST(s.[c0] AS nvarchar(max)), CAST(s.[c1] AS nvarchar(max)), CAST(CAST(s.[c2] AS money) AS nvarchar(max)), CAST(s.[b0] AS nvarchar(max)), CAST(s.[b1] AS nvarchar(max)), CAST(CAST(s.[b2] AS money) AS nvarchar(max)), CAST(t.[Id] AS nvarchar(max)), CAST(t.[na]]me] AS nvarchar(max)), CAST(t.[price] AS nvarchar(max)) FROM [#frazil_staging] AS s LEFT JOIN [Sales].[order] AS t WITH (UPDLOCK, HOLDLOCK) ON t.[Id] = s.[c0] WHERE s.[number] IN (4, 7)
        UPDATE t SET [price] = CAST(s.[c2] AS money) FROM [Sales].[order] AS t WITH (UPDLOCK, HOLDLOCK) INNER JOIN [#frazil_staging] AS s ON t.[Id] = s.[c0] WHERE s.[number] IN (4, 7)
        DELETE FROM [#frazil_staging] WHERE [number] IN (4, 7)
        SELECT CAST(COUNT_BIG(*) AS bigint) AS gone FROM [#frazil_staging] AS s WHERE s.[op] = 1"#]].assert_eq(&text.join("\n"));
}
