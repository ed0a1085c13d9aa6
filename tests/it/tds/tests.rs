//! The client's own library against the responder, so that later tests may rely on it.

use expect_test::{Expect, expect};
use tiberius::{AuthMethod, Client, ColumnData, Config, EncryptionLevel};
use tokio::net::TcpStream;
use tokio_util::compat::{Compat, TokioAsyncWriteCompatExt};

use super::*;

async fn connect(server: &Server, password: &str) -> tiberius::Result<Client<Compat<TcpStream>>> {
    let mut config = Config::new();
    config.host("127.0.0.1");
    config.port(server.port());
    config.database("shop");
    config.encryption(EncryptionLevel::NotSupported);
    config.authentication(AuthMethod::sql_server(USER, password));
    let stream = TcpStream::connect(config.get_addr()).await.unwrap();
    Client::connect(config, stream.compat_write()).await
}

async fn rows(client: &mut Client<Compat<TcpStream>>, sql: &str) -> String {
    let results = match client.simple_query(sql).await {
        Ok(results) => results.into_results().await,
        Err(error) => Err(error),
    };
    match results {
        Err(error) => format!("error {:?}", error.code()),
        Ok(results) => {
            let line = |row: tiberius::Row| format!("{:?}", row.into_iter().collect::<Vec<ColumnData<'_>>>());
            results.into_iter().flatten().map(line).collect::<Vec<_>>().join("\n")
        }
    }
}

fn check(actual: &str, expected: Expect) {
    expected.assert_eq(actual);
}

#[tokio::test]
async fn tables_hold_rows_and_transactions() {
    let engine = Engine::new();
    let server = Server::with_engine(&engine);
    let mut client = connect(&server, PASSWORD).await.unwrap();
    client
        .simple_query(
            "CREATE TABLE [dbo].[t] ([id] bigint NOT NULL, [name] nvarchar(100), [price] decimal(12,2), [at] datetime2(7));
             ALTER TABLE [dbo].[t] ADD CONSTRAINT [pk] PRIMARY KEY CLUSTERED ([id]);
             BEGIN TRANSACTION;
             INSERT INTO [dbo].[t] ([id], [name], [price], [at]) VALUES (1, N'it''s', 1.5, '2024-02-29 10:00:00.1234567'), (2, NULL, NULL, NULL)",
        )
        .await
        .unwrap()
        .into_results()
        .await
        .unwrap();
    let select = "SELECT t.[id], t.[name], CAST(t.[price] AS decimal(12,2)) AS [price], t.[at] FROM [dbo].[t] AS t ORDER BY t.[id]";
    check(
        &rows(&mut client, select).await,
        expect![[r#"
        [I64(Some(1)), String(Some("it's")), Numeric(Some(1.50)), DateTime2(Some(DateTime2 { date: Date(738944), time: Time { increments: 360001234567, scale: 7 } }))]
        [I64(Some(2)), String(None), Numeric(None), DateTime2(None)]"#]],
    );
    // Another connection sees nothing, and nothing is left of what was not committed.
    assert_eq!(engine.run("SELECT COUNT(*) FROM [dbo].[t]"), ["0"]);
    drop(client);
    let mut client = connect(&server, PASSWORD).await.unwrap();
    assert_eq!(rows(&mut client, select).await, "");
    let count = client
        .execute(
            "INSERT INTO [dbo].[t] ([id], [name]) VALUES (@P1, @P2)",
            &[&7_i64 as &dyn tiberius::ToSql, &"x".repeat(5_000)],
        )
        .await
        .unwrap();
    assert_eq!(count.total(), 1);
    assert_eq!(engine.run("SELECT [id], length([name]) FROM [dbo].[t]"), ["7|5000"]);
    check(&rows(&mut client, "SELECT * FROM [dbo].[nothing]").await, expect!["error Some(208)"]);
    check(&rows(&mut client, "INSERT INTO [dbo].[t] ([id]) VALUES (7)").await, expect!["error Some(2627)"]);
}

#[tokio::test]
async fn logins_and_trouble() {
    let engine = Engine::new();
    let server = Server::with_engine(&engine);
    assert_eq!(connect(&server, "wrong").await.unwrap_err().code(), Some(18456));
    let mut client = connect(&server, PASSWORD).await.unwrap();
    assert_eq!(server.logins().last().unwrap().database, "shop");

    server.trouble(When::Has("SELECT 1"), Trouble::Error(1205));
    assert_eq!(rows(&mut client, "SELECT 1").await, "error Some(1205)");
    assert_eq!(rows(&mut client, "SELECT 1").await, "[I32(Some(1))]");
    server.trouble(When::Has("SELECT 2"), Trouble::CutAnswer(20));
    assert!(client.simple_query("SELECT 2").await.is_err());
    let other = Server::with_engine(&engine);
    server.route_to("127.0.0.1", other.port());
    assert!(
        matches!(connect(&server, PASSWORD).await, Err(tiberius::error::Error::Routing { port, .. }) if port == other.port())
    );
}

#[tokio::test]
async fn a_bulk_load_is_decoded() {
    let engine = Engine::new();
    let server = Server::with_engine(&engine);
    let mut client = connect(&server, PASSWORD).await.unwrap();
    client
        .simple_query(
            "CREATE TABLE [#s] ([a] bigint, [b] nvarchar(max), [c] decimal(38,2), [d] varbinary(10))",
        )
        .await
        .unwrap()
        .into_results()
        .await
        .unwrap();
    let mut load = client.bulk_insert("[#s]").await.unwrap();
    for number in 0..3_i64 {
        let mut row = tiberius::TokenRow::new();
        row.push(ColumnData::I64(Some(number)));
        row.push(ColumnData::String(Some("ä".repeat(number as usize * 5_000).into())));
        row.push(ColumnData::Numeric(Some(tiberius::numeric::Numeric::new_with_scale(
            -i128::from(number),
            2,
        ))));
        row.push(ColumnData::Binary((number > 0).then(|| vec![number as u8].into())));
        load.send(row).await.unwrap();
    }
    assert_eq!(load.finalize().await.unwrap().total(), 3);
    check(
        &rows(&mut client, "SELECT [a], LEN([b]), [c], [d] FROM [#s]").await,
        expect![[r#"
            [I64(Some(0)), I32(Some(0)), Numeric(Some(0.00)), Binary(None)]
            [I64(Some(1)), I32(Some(5000)), Numeric(Some(-0.01)), Binary(Some([1]))]
            [I64(Some(2)), I32(Some(10000)), Numeric(Some(-0.02)), Binary(Some([2]))]"#]],
    );
}
