//! The SQL Server target against the responder of `tds/`: what goes over the wire, in which order, and
//! what is left after each trouble. What a real server makes of it is the conformance suite's business.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::*;
use arrow::datatypes::*;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use expect_test::{Expect, expect};
use frazil::connection::Connection;
use frazil::delta::SnapshotId;
use frazil::table::{LAKE_COLUMN_ID, OP_COLUMN, SOURCE_TYPE, TableId};
use frazil::target::{Applied, Deletes, Merge, MergeStats, Strategy, Target, TargetTable};
use frazil::{ErrorKind, Result, connectors};

use crate::tds::{Engine, Server, Trouble, When};

const LAKE_TABLE: uuid::Uuid = uuid::Uuid::from_u128(7);

fn open(server: &Server) -> Arc<dyn Target> {
    open_url(&server.url())
}

fn open_url(url: &str) -> Arc<dyn Target> {
    connectors::target(&Connection::parse("dwh", url).unwrap()).unwrap()
}

fn shows(snapshot: i64) -> Applied {
    Applied::new(LAKE_TABLE, SnapshotId(snapshot))
}

/// `id bigint, name text`, keyed by id.
fn people(deletes: Deletes) -> TargetTable {
    let fields = vec![Field::new("id", DataType::Int64, false), Field::new("name", DataType::Utf8, true)];
    table("people", fields, &["id"], deletes)
}

fn table(name: &str, fields: Vec<Field>, key: &[&str], deletes: Deletes) -> TargetTable {
    TargetTable {
        id: TableId::new("dbo", name),
        schema: Schema::new(fields).into(),
        key: key.iter().map(|name| (*name).to_owned()).collect(),
        deletes,
        versions: false,
    }
}

/// A batch for [`people`]: `u 1 ann` upserts, `d 2` deletes, one a line.
fn rows(text: &str) -> RecordBatch {
    let lines: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split_whitespace().collect())
        .filter(|words: &Vec<_>| !words.is_empty())
        .collect();
    let ids: Int64Array = lines.iter().map(|words| words[1].parse::<i64>().ok()).collect();
    let names: StringArray = lines.iter().map(|words| words.get(2).copied()).collect();
    let ops: Int8Array = lines.iter().map(|words| Some(i8::from(words[0] == "d"))).collect();
    with_ops(&people(Deletes::Hard), vec![Arc::new(ids), Arc::new(names)], ops)
}

fn schema_with_ops(table: &TargetTable) -> SchemaRef {
    let mut fields = table.schema.fields().to_vec();
    fields.push(Arc::new(Field::new(OP_COLUMN, DataType::Int8, false)));
    Arc::new(Schema::new(fields))
}

fn with_ops(table: &TargetTable, mut columns: Vec<ArrayRef>, ops: Int8Array) -> RecordBatch {
    columns.push(Arc::new(ops));
    RecordBatch::try_new(schema_with_ops(table), columns).unwrap()
}

fn merge(
    table: &TargetTable,
    from: Option<i64>,
    to: i64,
    strategy: Strategy,
    batches: Vec<RecordBatch>,
) -> Merge {
    Merge {
        turn: None,
        stream: "shop.people".into(),
        table: table.clone(),
        from: from.map(shows),
        to: shows(to),
        strategy,
        changes: Box::pin(RecordBatchStreamAdapter::new(
            schema_with_ops(table),
            futures::stream::iter(batches.into_iter().map(Ok)),
        )),
        rows: None,
    }
}

/// Prepares and loads; snapshots count from 1.
async fn load(
    target: &dyn Target,
    table: &TargetTable,
    to: i64,
    strategy: Strategy,
    text: &str,
) -> Result<MergeStats> {
    target.prepare(table).await?;
    let from = (to > 1).then_some(to - 1);
    target.apply(merge(table, from, to, strategy, vec![rows(text)])).await
}

const PEOPLE: &str = "SELECT [id], [name] FROM [dbo].[people] ORDER BY [id]";

fn check(engine: &Engine, sql: &str, expected: Expect) {
    expected.assert_eq(&engine.run(sql).join("\n"));
}

fn shown(stats: MergeStats) -> (u64, u64, u64) {
    (stats.staged, stats.upserted, stats.deleted)
}

fn server() -> (Engine, Server) {
    let engine = Engine::new();
    let server = Server::with_engine(&engine);
    (engine, server)
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_inserted_updated_and_deleted_by_key() {
    let (engine, server) = server();
    let target = open(&server);
    let table = people(Deletes::Hard);
    assert_eq!(target.applied("shop.people", &table.id).await.unwrap(), None);

    let stats = load(&*target, &table, 1, Strategy::Merge, "u 1 ann\nu 2 bob\nu 3").await.unwrap();
    assert_eq!(shown(stats), (3, 3, 0));
    check(&engine, PEOPLE, expect!["1|ann\n2|bob\n3|NULL"]);
    let described = engine.table("dbo.people").unwrap();
    assert_eq!(described.keys[0].columns, ["id"]);

    let stats =
        load(&*target, &table, 2, Strategy::Merge, "u 1 anna\nd 2\nu 3\nu 4 dan\nd 99").await.unwrap();
    assert_eq!(shown(stats), (5, 2, 1));
    check(&engine, PEOPLE, expect!["1|anna\n3|NULL\n4|dan"]);
    assert_eq!(target.applied("shop.people", &table.id).await.unwrap(), Some(shows(2)));
    check(
        &engine,
        "SELECT [stream], [target_table], [lake_table], [snapshot_id], [rows], [columns] FROM [dbo].[frazil_applied]",
        expect![
            "(made by frazil)|people|00000000-0000-0000-0000-000000000000|0|0|{}\nshop.people|people|00000000-0000-0000-0000-000000000007|2|5|{}"
        ],
    );
    assert_eq!(target.plan(&table).await.unwrap(), Vec::<String>::new());
}

/// One request after the other, as the server sees them.
#[tokio::test(flavor = "multi_thread")]
async fn a_load_is_one_transaction_and_one_merge() {
    let (_, server) = server();
    let target = open(&server);
    let table = people(Deletes::Hard);
    load(&*target, &table, 1, Strategy::Merge, "u 1 ann").await.unwrap();
    server.count_from_here();
    target.apply(merge(&table, Some(1), 2, Strategy::Merge, vec![rows("u 1 anna\nd 2")])).await.unwrap();
    let short = |sql: String| {
        let line: String = sql.split_whitespace().collect::<Vec<_>>().join(" ");
        line.chars().take(90).collect::<String>()
    };
    let log: Vec<_> = server.log().into_iter().map(short).collect();
    expect![[r#"
        IF @@TRANCOUNT > 0 ROLLBACK TRANSACTION
        SET XACT_ABORT ON
        SET TRANSACTION ISOLATION LEVEL READ COMMITTED; BEGIN TRANSACTION
        SET LOCK_TIMEOUT 10000
        UPDATE [dbo].[frazil_applied] SET [lake_table] = CAST(@P3 AS uniqueidentifier), [snapshot_
        SET LOCK_TIMEOUT 60000
        SELECT CAST(o.type AS nvarchar(2)) AS kind, c.name AS name, CAST(COALESCE(b.name, y.name) 
        SELECT CAST(i.index_id AS int) AS number, c.name AS name FROM sys.indexes AS i INNER JOIN 
        SELECT CAST(CASE WHEN EXISTS (SELECT 1 FROM sys.indexes AS i WHERE i.object_id = OBJECT_ID
        SELECT TOP (1) CAST(1 AS int) AS one FROM [dbo].[people] AS t
        DROP TABLE IF EXISTS [#frazil_staging]; CREATE TABLE [#frazil_staging] ([c0] bigint NULL, 
        SELECT TOP 0 [c0], [c1], [op] FROM [#frazil_staging]
        INSERT BULK [#frazil_staging] ([c0] bigint, [c1] nvarchar(max), [op] tinyint) WITH (TABLOC
        rows of [#frazil_staging]
        SELECT CAST(COUNT_BIG(*) AS bigint) AS gone FROM [dbo].[people] AS t WITH (UPDLOCK, HOLDLO
        MERGE INTO [dbo].[people] WITH (HOLDLOCK) AS t USING [#frazil_staging] AS s ON t.[id] = s.
        SELECT a.[columns] FROM [dbo].[frazil_applied] AS a WHERE a.[stream] = @P1 AND a.[target_t
        UPDATE [dbo].[frazil_applied] SET [rows] = @P3, [columns] = @P4, [applied_at] = SYSUTCDATE
        COMMIT TRANSACTION"#]]
    .assert_eq(&log.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn soft_deletes_mark_and_ignored_ones_stay() {
    let (engine, server) = server();
    let target = open(&server);
    let soft = people(Deletes::Soft);
    load(&*target, &soft, 1, Strategy::Merge, "u 1 ann\nu 2 bob").await.unwrap();
    let stats = load(&*target, &soft, 2, Strategy::Merge, "d 1\nd 2").await.unwrap();
    assert_eq!(shown(stats), (2, 0, 2));
    load(&*target, &soft, 3, Strategy::Merge, "u 2 bob\nd 1").await.unwrap();
    check(
        &engine,
        "SELECT [id], [name], [_deleted_at] IS NOT NULL FROM [dbo].[people] ORDER BY [id]",
        expect!["1|ann|1\n2|bob|0"],
    );
    let ignored = TargetTable { id: TableId::new("dbo", "kept"), ..people(Deletes::Ignore) };
    load(&*target, &ignored, 1, Strategy::Merge, "u 1 ann").await.unwrap();
    let stats = load(&*target, &ignored, 2, Strategy::Merge, "d 1").await.unwrap();
    assert_eq!(shown(stats), (1, 0, 0));
    check(&engine, "SELECT * FROM [dbo].[kept]", expect!["1|ann"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_equal_already_are_not_written() {
    let (_, server) = server();
    let target = open(&server);
    let table = people(Deletes::Hard);
    load(&*target, &table, 1, Strategy::Merge, "u 1 ann\nu 2").await.unwrap();
    let stats = load(&*target, &table, 2, Strategy::Merge, "u 1 ann\nu 2").await.unwrap();
    assert_eq!(shown(stats), (2, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replacement_leaves_what_it_has_and_an_append_adds() {
    let (engine, server) = server();
    let target = open(&server);
    let table = people(Deletes::Hard);
    load(&*target, &table, 1, Strategy::Replace, "u 1 ann\nu 2 bob").await.unwrap();
    let stats = load(&*target, &table, 2, Strategy::Replace, "u 2 bob\nu 3 cyd").await.unwrap();
    assert_eq!(shown(stats), (2, 1, 1));
    check(&engine, PEOPLE, expect!["2|bob\n3|cyd"]);
    load(&*target, &table, 3, Strategy::Replace, "").await.unwrap();
    check(&engine, PEOPLE, expect![""]);

    let log = TargetTable { id: TableId::new("dbo", "log"), key: vec![], ..people(Deletes::Hard) };
    load(&*target, &log, 1, Strategy::Append, "u 1 ann").await.unwrap();
    load(&*target, &log, 2, Strategy::Append, "u 1 ann\nu 1 ann").await.unwrap();
    check(&engine, "SELECT COUNT(*) FROM [dbo].[log]", expect!["3"]);
}

/// The connection ends before, within and after every single request of a load. Whatever was there, the
/// next try leaves each row once, and the control row says so.
#[tokio::test(flavor = "multi_thread")]
async fn a_cut_at_any_request_loses_nothing_and_doubles_nothing() {
    let (engine, server) = server();
    let target = open(&server);
    let table = people(Deletes::Hard);
    load(&*target, &table, 1, Strategy::Merge, "u 0 zoe").await.unwrap();
    let change = |number: i64| {
        let text = format!("u {} ann\nd {}\nu 0 zoe{number}", number + 10, number + 9);
        vec![rows(&text)]
    };
    // What is there after it.
    let shown = |number: i64| format!("0|zoe{number} {}|ann", number + 10);
    // How many requests a load has.
    server.count_from_here();
    target.apply(merge(&table, Some(1), 2, Strategy::Merge, change(1))).await.unwrap();
    let requests = server.requests();
    assert!(requests > 10, "a load of {requests} requests");

    let mut at = 2;
    for trouble in [Trouble::CutBefore, Trouble::CutAfter, Trouble::CutAnswer(9), Trouble::CutRows(40)] {
        for number in 0..requests {
            server.no_trouble();
            server.count_from_here();
            server.trouble(When::Number(number), trouble.clone());
            let outcome = target.apply(merge(&table, Some(at), at + 1, Strategy::Merge, change(at))).await;
            let met = server.waiting() == 0;
            server.no_trouble();
            match target.applied("shop.people", &table.id).await.unwrap() {
                // Nobody knew, and it had arrived: `apply` found out by itself, or was cut elsewhere.
                Some(applied) if applied == shows(at + 1) => {
                    assert!(outcome.is_ok(), "{trouble:?} at {number}: {outcome:?}");
                }
                applied => {
                    assert_eq!(applied, Some(shows(at)), "{trouble:?} at {number}");
                    assert!(met, "{trouble:?} at {number} was not met");
                    let error = outcome.unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::Transient, "{trouble:?} at {number}: {error:?}");
                    let left = engine.run(PEOPLE).join(" ");
                    assert_eq!(left, shown(at - 1), "{trouble:?} at {number}");
                    target.apply(merge(&table, Some(at), at + 1, Strategy::Merge, change(at))).await.unwrap();
                }
            }
            let left = engine.run(PEOPLE).join(" ");
            assert_eq!(left, shown(at), "{trouble:?} at {number}");
            at += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_runners_never_both_load() {
    let (engine, server) = server();
    let (one, other) = (open(&server), open(&server));
    let table = people(Deletes::Hard);
    load(&*one, &table, 1, Strategy::Merge, "u 1 ann").await.unwrap();
    let change = || merge(&table, Some(1), 2, Strategy::Merge, vec![rows("u 1 anna\nu 2 bob")]);
    let (first, second) = tokio::join!(one.apply(change()), other.apply(change()));
    let outcomes = [first, second];
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{outcomes:?}");
    let loser = outcomes.into_iter().find_map(Result::err).unwrap();
    assert_eq!(loser.kind(), ErrorKind::Conflict, "{loser:?}");
    check(&engine, PEOPLE, expect!["1|anna\n2|bob"]);

    let fresh = TargetTable { id: TableId::new("dbo", "fresh"), ..table };
    one.prepare(&fresh).await.unwrap();
    let change = || merge(&fresh, None, 1, Strategy::Merge, vec![rows("u 1 ann")]);
    one.apply(change()).await.unwrap();
    assert_eq!(other.apply(change()).await.unwrap_err().kind(), ErrorKind::Conflict);
}

/// Numbers of the server's errors, and what a caller can do about each.
#[tokio::test(flavor = "multi_thread")]
async fn errors_are_told_by_their_numbers() {
    let (engine, server) = server();
    let table = people(Deletes::Hard);
    load(&*open(&server), &table, 1, Strategy::Merge, "u 1 ann").await.unwrap();
    for (at, number, kind) in [
        ("MERGE", 1205, ErrorKind::Transient),
        ("MERGE", 1222, ErrorKind::Transient),
        ("MERGE", 2627, ErrorKind::Data),
        ("MERGE", 8672, ErrorKind::Data),
        ("MERGE", 547, ErrorKind::Data),
        ("UPDATE [dbo].[frazil_applied]", 1222, ErrorKind::Conflict),
        ("rows of", 40197, ErrorKind::Transient),
        ("SELECT TOP (1)", 229, ErrorKind::Permission),
        ("COMMIT", 3960, ErrorKind::Transient),
    ] {
        server.trouble(When::Has(at), Trouble::Error(number));
        let target = open(&server);
        let change = merge(&table, Some(1), 2, Strategy::Merge, vec![rows("u 1 anna")]);
        let error = target.apply(change).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{number} at {at}: {error:?}");
        assert_eq!(server.waiting(), 0, "{number} at {at} was not met");
        check(&engine, PEOPLE, expect!["1|ann"]);
    }
    server.refuse_logins(Some(18456));
    let error = open(&server).prepare(&table).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permission, "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_are_added_widened_and_renamed() {
    let (engine, server) = server();
    let target = open(&server);
    let number = |name: &str, id: u32, of: DataType| {
        let metadata = [(LAKE_COLUMN_ID.to_owned(), format!("t.{id}"))];
        Field::new(name, of, true).with_metadata(metadata.into())
    };
    let first = table(
        "t",
        vec![
            number("id", 1, DataType::Int64),
            number("n", 2, DataType::Int32),
            number("a", 3, DataType::Utf8),
        ],
        &["id"],
        Deletes::Hard,
    );
    target.prepare(&first).await.unwrap();
    let ids: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    let texts: ArrayRef = Arc::new(StringArray::from(vec!["x"]));
    let batch = with_ops(
        &first,
        vec![ids.clone(), Arc::new(Int32Array::from(vec![5])), texts.clone()],
        Int8Array::from(vec![0]),
    );
    target.apply(merge(&first, None, 1, Strategy::Merge, vec![batch])).await.unwrap();

    let second = table(
        "t",
        vec![
            number("id", 1, DataType::Int64),
            number("n", 2, DataType::Int64),
            number("b", 3, DataType::Utf8),
            number("new", 4, DataType::Date32),
        ],
        &["id"],
        Deletes::Hard,
    );
    expect![[r#"
        EXEC sp_rename N'[dbo].[t].[a]', N'b', N'COLUMN'
        UPDATE [dbo].[frazil_applied] SET [columns] = N'{"t.1":"id","t.2":"n","t.3":"b"}' WHERE [stream] = N'shop.people' AND [target_table] = N't'
        ALTER TABLE [dbo].[t] ALTER COLUMN [n] bigint NULL
        ALTER TABLE [dbo].[t] ADD [new] date NULL"#]].assert_eq(&target.plan(&second).await.unwrap().join("\n"));
    target.prepare(&second).await.unwrap();
    assert_eq!(target.plan(&second).await.unwrap(), Vec::<String>::new());
    let batch = with_ops(
        &second,
        vec![ids, Arc::new(Int64Array::from(vec![1 << 40])), texts, Arc::new(Date32Array::from(vec![0]))],
        Int8Array::from(vec![0]),
    );
    target.apply(merge(&second, Some(1), 2, Strategy::Merge, vec![batch])).await.unwrap();
    check(&engine, "SELECT [id], [n], [b], [new] FROM [dbo].[t]", expect!["1|1099511627776|x|1970-01-01"]);

    // A table of somebody else is not altered.
    engine.run("CREATE TABLE [dbo].[theirs] ([id] int NOT NULL PRIMARY KEY, [n] nvarchar(5) NULL)");
    engine.run("INSERT INTO [dbo].[theirs] ([id]) VALUES (1)");
    let theirs = TargetTable { id: TableId::new("dbo", "theirs"), ..second };
    let error = target.plan(&theirs).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Schema);
    expect![[r#"
        schema: the target table has another shape: column `n` is nvarchar(5) there and bigint in the stream (table: dbo.theirs, connection: dwh)
          hint: to make it fit, if its data allow: ALTER TABLE [dbo].[theirs] ALTER COLUMN [n] bigint NULL"#]].assert_eq(&format!("{error:?}"));
}

/// Traps 1, 3, 4, 5, 6 and the rest of the types: the staged bytes are the values.
#[tokio::test(flavor = "multi_thread")]
async fn every_type_is_staged_as_it_is_and_arrives() {
    let (engine, server) = server();
    let target = open(&server);
    engine.run(
        "CREATE TABLE [dbo].[types] ([id] bigint NOT NULL PRIMARY KEY, [m] money, [sm] smallmoney, [n] nvarchar(3000), [c] nchar(4), \
         [v] varchar(50), [t] time(3), [o] datetimeoffset(2), [dt] datetime, [sd] smalldatetime, [d2] datetime2(4), \
         [g] uniqueidentifier, [bin] binary(4), [b] bit, [ti] tinyint, [r] real, [f] float, [dec] decimal(38,10), [d] date)",
    );
    let micros = TimeUnit::Microsecond;
    let named = |name: &str, of: DataType| Field::new(name, of, true);
    let types = table(
        "types",
        vec![
            Field::new("id", DataType::Int64, false),
            named("m", DataType::Decimal128(19, 4)),
            named("sm", DataType::Decimal128(10, 4)),
            named("n", DataType::Utf8),
            named("c", DataType::Utf8),
            named("v", DataType::Utf8),
            named("t", DataType::Time64(micros)),
            named("o", DataType::Timestamp(micros, Some("UTC".into()))),
            named("dt", DataType::Timestamp(micros, None)),
            named("sd", DataType::Timestamp(micros, None)),
            named("d2", DataType::Timestamp(micros, None)),
            named("g", DataType::FixedSizeBinary(16))
                .with_metadata([(SOURCE_TYPE.to_owned(), "postgres:uuid".to_owned())].into()),
            named("bin", DataType::FixedSizeBinary(4)),
            named("b", DataType::Boolean),
            named("ti", DataType::Int32),
            named("r", DataType::Float32),
            named("f", DataType::Float64),
            named("dec", DataType::Decimal128(38, 10)),
            named("d", DataType::Date32),
        ],
        &["id"],
        Deletes::Hard,
    );
    target.prepare(&types).await.unwrap();
    let decimal = |value: i128, precision, scale| -> ArrayRef {
        Arc::new(
            Decimal128Array::from(vec![Some(value), None])
                .with_precision_and_scale(precision, scale)
                .unwrap(),
        )
    };
    let text = |value: &str| -> ArrayRef { Arc::new(StringArray::from(vec![Some(value), None])) };
    let stamp =
        |value: i64| -> ArrayRef { Arc::new(TimestampMicrosecondArray::from(vec![Some(value), None])) };
    let fixed = |value: Vec<u8>, length| -> ArrayRef {
        let values = vec![Some(value), None].into_iter();
        Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size(values, length).unwrap())
    };
    let day = 86_400_000_000_i64;
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(vec![1, 2])),
        // More digits than a float has.
        decimal(9_223_372_036_854_775_807, 19, 4),
        decimal(-2_147_483_648, 10, 4),
        text(&"ü".repeat(2_500)),
        text("ab"),
        text("naïve"),
        Arc::new(Time64MicrosecondArray::from(vec![Some(day - 1_000), None])),
        Arc::new(TimestampMicrosecondArray::from(vec![Some(-10_000), None]).with_timezone("UTC")),
        // A third of a hundredth, as a lake of microseconds has it.
        stamp(3_333),
        stamp(60_000_000),
        stamp(123_400),
        fixed((0..16).collect(), 16),
        fixed(vec![1, 2, 0, 0], 4),
        Arc::new(BooleanArray::from(vec![Some(true), None])),
        Arc::new(Int32Array::from(vec![Some(255), None])),
        Arc::new(Float32Array::from(vec![Some(0.1), None])),
        Arc::new(Float64Array::from(vec![Some(f64::MIN_POSITIVE), None])),
        decimal(-99_999_999_999_999_999_999_999_999_999_999_999_999, 38, 10),
        Arc::new(Date32Array::from(vec![Some(-719_162), None])),
    ];
    let batch = with_ops(&types, columns, Int8Array::from(vec![0, 0]));
    server.count_from_here();
    target.apply(merge(&types, None, 1, Strategy::Merge, vec![batch])).await.unwrap();
    let log = server.log().join("\n");
    let staging = log.lines().find(|line| line.contains("CREATE TABLE [#frazil_staging]")).unwrap();
    expect!["DROP TABLE IF EXISTS [#frazil_staging]; CREATE TABLE [#frazil_staging] ([c0] bigint NULL, [c1] decimal(19,4) NULL, [c2] decimal(10,4) NULL, [c3] nvarchar(max) COLLATE Latin1_General_CI_AS NULL, [c4] nvarchar(4) COLLATE Latin1_General_CI_AS NULL, [c5] nvarchar(50) COLLATE Latin1_General_CI_AS NULL, [c6] time(7) NULL, [c7] datetimeoffset(7) NULL, [c8] datetime2(7) NULL, [c9] datetime2(0) NULL, [c10] datetime2(4) NULL, [c11] uniqueidentifier NULL, [c12] varbinary(4) NULL, [c13] bit NULL, [c14] tinyint NULL, [c15] real NULL, [c16] float NULL, [c17] decimal(38,10) NULL, [c18] date NULL, [op] tinyint NULL)"].assert_eq(staging);
    check(
        &engine,
        "SELECT [m], [sm], LEN([n]), [c], [v], [t], [o], [dt], [sd], [d2], [g], [bin], [b], [ti], [r], [f], [dec], [d] FROM [dbo].[types] ORDER BY [id]",
        expect![[r#"
            922337203685477.5807|-214748.3648|2500|ab|naïve|23:59:59.9990000|1969-12-31 23:59:59.9900000 +0000|1970-01-01 00:00:00.0000000+1/300|1970-01-01 00:01:00.0000000|1970-01-01 00:00:00.1234000|00010203-0405-0607-0809-0a0b0c0d0e0f|0x01020000|1|255|0.1|2.2250738585072014e-308|-9999999999999999999999999999.9999999999|0001-01-01
            NULL|NULL|NULL|NULL|NULL|NULL|NULL|NULL|NULL|NULL|NULL|NULL|NULL|NULL|NULL|NULL|NULL|NULL"#]],
    );
}

/// Trap 2: the client takes no longer values into a bulk load.
#[tokio::test(flavor = "multi_thread")]
async fn values_beyond_a_bulk_load_arrive_whole() {
    let (engine, server) = server();
    let target = open(&server);
    let named = |name: &str, of: DataType| Field::new(name, of, true);
    let long = table(
        "long",
        vec![
            Field::new("id", DataType::Int64, false),
            named("n", DataType::Utf8),
            named("b", DataType::Binary),
            named("dec", DataType::Decimal128(38, 38)),
            named("at", DataType::Timestamp(TimeUnit::Microsecond, None)),
        ],
        &["id"],
        Deletes::Hard,
    );
    target.prepare(&long).await.unwrap();
    // 32,767 units are the last that a bulk load takes; characters of two units count twice.
    let texts = ["a".repeat(32_767), "a".repeat(32_768), "😀".repeat(20_000), "z".repeat(5)];
    let bytes = [vec![7; 10], vec![8; 65_535], vec![9; 65_536], vec![1; 1_000_000]];
    let batch = with_ops(
        &long,
        vec![
            Arc::new(Int64Array::from(vec![1, 2, 3, 4])),
            Arc::new(StringArray::from_iter_values(&texts)),
            Arc::new(BinaryArray::from_iter_values(&bytes)),
            Arc::new(
                Decimal128Array::from(vec![10_i128.pow(37); 4]).with_precision_and_scale(38, 38).unwrap(),
            ),
            Arc::new(TimestampMicrosecondArray::from(vec![1, 2, 3, 4])),
        ],
        Int8Array::from(vec![0; 4]),
    );
    let stats = target.apply(merge(&long, None, 1, Strategy::Merge, vec![batch])).await.unwrap();
    assert_eq!(shown(stats), (4, 4, 0));
    check(
        &engine,
        "SELECT [id], LEN([n]), LEN([b]), [dec], [at] FROM [dbo].[long] ORDER BY [id]",
        expect![[r#"
            1|32767|10|0.10000000000000000000000000000000000000|1970-01-01 00:00:00.0000010
            2|32768|65535|0.10000000000000000000000000000000000000|1970-01-01 00:00:00.0000020
            3|20000|65536|0.10000000000000000000000000000000000000|1970-01-01 00:00:00.0000030
            4|5|1000000|0.10000000000000000000000000000000000000|1970-01-01 00:00:00.0000040"#]],
    );
}

/// Found before the server sees it, and named by column.
#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_does_not_fit_is_named_by_its_column() {
    let (engine, server) = server();
    engine.run(
        "CREATE TABLE [dbo].[narrow] ([id] bigint NOT NULL PRIMARY KEY, [ti] tinyint, [s] nvarchar(3), [d] datetime, [p] decimal(5,2), [f] float, [t] time(0))",
    );
    let target = open(&server);
    let one = |name: &str, of: DataType, value: ArrayRef| {
        let fields = vec![Field::new("id", DataType::Int64, false), Field::new(name, of, true)];
        let narrow = table("narrow", fields, &["id"], Deletes::Hard);
        let batch =
            with_ops(&narrow, vec![Arc::new(Int64Array::from(vec![1])), value], Int8Array::from(vec![0]));
        (narrow, batch)
    };
    let micros = TimeUnit::Microsecond;
    let stamps = |value: i64| -> ArrayRef { Arc::new(TimestampMicrosecondArray::from(vec![value])) };
    let decimals = |value: i128, precision, scale| -> ArrayRef {
        Arc::new(Decimal128Array::from(vec![value]).with_precision_and_scale(precision, scale).unwrap())
    };
    let mut said = Vec::new();
    for (name, of, value) in [
        ("ti", DataType::Int32, Arc::new(Int32Array::from(vec![256])) as ArrayRef),
        ("s", DataType::Utf8, Arc::new(StringArray::from(vec!["äöüß"]))),
        ("d", DataType::Timestamp(micros, None), stamps(-6_900_000_000_000_000)),
        ("d", DataType::Timestamp(micros, None), stamps(1_000)),
        ("p", DataType::Decimal128(10, 2), decimals(100_000, 10, 2)),
        ("p", DataType::Decimal128(10, 3), decimals(1_001, 10, 3)),
        ("f", DataType::Float64, Arc::new(Float64Array::from(vec![f64::NAN]))),
        ("t", DataType::Time64(micros), Arc::new(Time64MicrosecondArray::from(vec![1]))),
    ] {
        let (narrow, batch) = one(name, of, value);
        let error = target.apply(prepared(&*target, &narrow, batch).await).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Data, "{error:?}");
        said.push(error.to_string());
    }
    expect![[r#"
        a value is out of the range of the target's column (column: ti, table: dbo.narrow, connection: dwh)
        a value is longer than the target's column (column: s, table: dbo.narrow, connection: dwh)
        a value is out of the range of the target's column (column: d, table: dbo.narrow, connection: dwh)
        a value has more digits behind the point than the target's column (column: d, table: dbo.narrow, connection: dwh)
        a value is out of the range of the target's column (column: p, table: dbo.narrow, connection: dwh)
        a value has more digits behind the point than the target's column (column: p, table: dbo.narrow, connection: dwh)
        a number is not finite, which SQL Server cannot hold (column: f, table: dbo.narrow, connection: dwh)
        a value has more digits behind the point than the target's column (column: t, table: dbo.narrow, connection: dwh)"#]].assert_eq(&said.join("\n"));
    check(&engine, "SELECT COUNT(*) FROM [dbo].[narrow]", expect!["0"]);
}

/// A load into a table that stands; the control table is there.
async fn prepared(target: &dyn Target, table: &TargetTable, batch: RecordBatch) -> Merge {
    let control = people(Deletes::Hard);
    target.prepare(&control).await.unwrap();
    merge(table, None, 1, Strategy::Merge, vec![batch])
}

/// Identities are insisted on, computed columns left out; what makes MERGE hazardous is gone around.
#[tokio::test(flavor = "multi_thread")]
async fn tables_with_a_life_of_their_own() {
    let (engine, server) = server();
    let target = open(&server);
    let table = people(Deletes::Hard);
    engine.run("CREATE TABLE [dbo].[people] ([id] bigint NOT NULL IDENTITY(1,1) PRIMARY KEY, [name] nvarchar(50), [sum] int, [rv] rowversion)");
    engine.describe("dbo.people", |people| {
        people.columns[2].computed = true;
        people.hazards = vec!["trigger".into()];
    });
    load(&*target, &table, 1, Strategy::Merge, "u 7 ann\nu 8 bob").await.unwrap();
    server.count_from_here();
    let stats = load(&*target, &table, 2, Strategy::Merge, "u 7 anna\nd 8\nu 9 cyd").await.unwrap();
    assert_eq!(shown(stats), (3, 2, 1));
    check(&engine, PEOPLE, expect!["7|anna\n9|cyd"]);
    let log = server.log().join("\n");
    assert!(!log.contains("MERGE"), "{log}");
    assert!(log.contains("SET IDENTITY_INSERT [dbo].[people] ON"), "{log}");
    let findings = target.preflight(&table).await.unwrap();
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert!(findings[0].message.contains("a trigger"));
    for hazard in ["filtered", "indexed view"] {
        engine.describe("dbo.people", |people| people.hazards = vec![hazard.into()]);
        server.count_from_here();
        let at = if hazard == "filtered" { 3 } else { 4 };
        load(&*target, &table, at, Strategy::Merge, "u 7 ann\nu 9 cyd").await.unwrap();
        assert!(!server.log().join("\n").contains("MERGE"), "{hazard}");
    }
}

/// Trap 10: a column that the target computes takes no values, though the stream has some for it.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_target_computes_is_left_to_it() {
    let (engine, server) = server();
    let target = open(&server);
    let fields = vec![Field::new("id", DataType::Int64, false), Field::new("twice", DataType::Int64, true)];
    let doubled = table("doubled", fields, &["id"], Deletes::Hard);
    engine.run("CREATE TABLE [dbo].[doubled] ([id] bigint NOT NULL PRIMARY KEY, [twice] bigint)");
    engine.describe("dbo.doubled", |doubled| doubled.columns[1].computed = true);
    let numbers = || -> ArrayRef { Arc::new(Int64Array::from(vec![1, 2])) };
    let batch = with_ops(&doubled, vec![numbers(), numbers()], Int8Array::from(vec![0, 0]));
    target.apply(prepared(&*target, &doubled, batch).await).await.unwrap();
    check(&engine, "SELECT [id] FROM [dbo].[doubled] ORDER BY [id]", expect!["1\n2"]);
    let log = server.log().join("\n");
    assert!(!log.contains("[c1]"), "it is not even staged: {log}");
}

/// A source that was a SQL Server gets its own types back.
#[tokio::test(flavor = "multi_thread")]
async fn the_sources_types_are_restored() {
    let (engine, server) = server();
    let from = |name: &str, of: DataType, source: &str| {
        let metadata = [(SOURCE_TYPE.to_owned(), format!("mssql:{source}"))];
        Field::new(name, of, true).with_metadata(metadata.into())
    };
    let table = table(
        "t",
        vec![
            from("code", DataType::Utf8, "varchar(10)"),
            from("price", DataType::Decimal128(19, 4), "money"),
            from("at", DataType::Timestamp(TimeUnit::Microsecond, None), "datetime"),
            from("rv", DataType::Binary, "timestamp"),
        ],
        &["code"],
        Deletes::Hard,
    );
    open(&server).prepare(&table).await.unwrap();
    let made = engine.table("dbo.t").unwrap();
    let types: Vec<_> = made.columns.iter().map(|column| format!("{} {}", column.name, column.of)).collect();
    expect!["code varchar(10), price money, at datetime, rv binary(8)"].assert_eq(&types.join(", "));
}

/// A server that does not answer in time is left, and the load is not there.
#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_takes_too_long_ends_the_load() {
    let (engine, server) = server();
    let table = people(Deletes::Hard);
    load(&*open(&server), &table, 1, Strategy::Merge, "u 1 ann").await.unwrap();
    server.trouble(When::Has("MERGE"), Trouble::Delay(Duration::from_secs(5)));
    let target = open_url(&format!("{}&statement_timeout=1", server.url()));
    let change = merge(&table, Some(1), 2, Strategy::Merge, vec![rows("u 1 anna")]);
    let error = target.apply(change).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient, "{error:?}");
    drop(target);
    check(&engine, PEOPLE, expect!["1|ann"]);
}
