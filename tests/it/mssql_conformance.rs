//! What a SQL Server target must do, on whatever is there: always the responder of `tds/`, and a real
//! server where `FRAZIL_TEST_SQLSERVER_URL` names one (`mssql://user:password@host:1433/database`, with
//! the right to make schemas). There each run has a schema of its own, and removes it.

use std::sync::Arc;

use arrow::array::*;
use arrow::datatypes::*;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use expect_test::{Expect, expect};
use frazil::connection::Connection;
use frazil::delta::SnapshotId;
use frazil::table::{OP_COLUMN, TableId};
use frazil::target::{Applied, Deletes, Merge, Strategy, Target, TargetTable};
use frazil::{ErrorKind, connectors};
use tokio::net::TcpStream;
use tokio_util::compat::TokioAsyncWriteCompatExt;

use crate::fixture;
use crate::tds::{Engine, Server};

const URL: &str = "FRAZIL_TEST_SQLSERVER_URL";

/// Somewhere to load into, and somebody to ask what is there.
struct Place {
    target: Arc<dyn Target>,
    schema: String,
    judge: Judge,
}

enum Judge {
    Responder(Engine, #[allow(dead_code)] Server),
    Real(url::Url),
}

impl Place {
    /// All that are to be had.
    fn all(test: &str) -> Vec<Self> {
        let engine = Engine::new();
        let server = Server::with_engine(&engine);
        let open = |url: &str| connectors::target(&Connection::parse("dwh", url).unwrap()).unwrap();
        let target = open(&server.url());
        let mut places =
            vec![Self { target, schema: "loaded".into(), judge: Judge::Responder(engine, server) }];
        match std::env::var(URL) {
            Ok(url) => places.push(Self {
                target: open(&url),
                schema: fixture::unique(&format!("frazil_{test}")),
                judge: Judge::Real(url.parse().unwrap()),
            }),
            Err(_) => eprintln!("skipped on a real SQL Server: {test} ({URL} is not set)"),
        }
        places
    }

    /// Runs statements one by one; the rows of the last, cells as text. `$` is the schema.
    async fn ask(&self, sql: &str) -> String {
        let sql = sql.replace('$', &format!("[{}]", self.schema));
        match &self.judge {
            Judge::Responder(engine, _) => engine.run(&sql).join("\n"),
            Judge::Real(url) => {
                let mut config = tiberius::Config::new();
                config.host(url.host_str().unwrap());
                config.port(url.port().unwrap_or(1433));
                config.database(url.path().trim_start_matches('/'));
                let password = url.password().unwrap_or_default().to_owned();
                config.authentication(tiberius::AuthMethod::sql_server(url.username(), password));
                config.trust_cert();
                let stream = TcpStream::connect(config.get_addr()).await.unwrap();
                let mut client = tiberius::Client::connect(config, stream.compat_write()).await.unwrap();
                let rows = client.simple_query(sql).await.unwrap().into_first_result().await.unwrap();
                let cell =
                    |row: &tiberius::Row, index| row.get::<&str, usize>(index).unwrap_or("NULL").to_owned();
                let line = |row: &tiberius::Row| {
                    (0..row.len()).map(|index| cell(row, index)).collect::<Vec<_>>().join("|")
                };
                rows.iter().map(line).collect::<Vec<_>>().join("\n")
            }
        }
    }

    async fn check(&self, sql: &str, expected: &Expect) {
        expected.assert_eq(&self.ask(sql).await);
    }

    async fn load(
        &self,
        table: &TargetTable,
        to: i64,
        strategy: Strategy,
        batch: RecordBatch,
    ) -> frazil::Result<(u64, u64, u64)> {
        let shows = |snapshot| Applied::new(uuid::Uuid::from_u128(7), SnapshotId(snapshot));
        self.target.prepare(table).await?;
        let stats = self
            .target
            .apply(Merge {
                turn: None,
                stream: "shop.people".into(),
                table: table.clone(),
                from: (to > 1).then(|| shows(to - 1)),
                to: shows(to),
                strategy,
                changes: Box::pin(RecordBatchStreamAdapter::new(
                    batch.schema(),
                    futures::stream::iter([Ok(batch)]),
                )),
                rows: None,
            })
            .await?;
        assert_eq!(self.target.plan(table).await?, Vec::<String>::new());
        Ok((stats.staged, stats.upserted, stats.deleted))
    }

    fn people(&self, deletes: Deletes) -> TargetTable {
        TargetTable {
            id: TableId::new(&self.schema, "people"),
            schema: Schema::new(vec![
                Field::new("id", DataType::Utf8, false),
                Field::new("name", DataType::Utf8, true),
            ])
            .into(),
            key: vec!["id".into()],
            deletes,
            versions: false,
        }
    }

    /// Removes what was made.
    async fn end(self, tables: &[&str]) {
        if let Judge::Real(_) = self.judge {
            for table in tables.iter().chain(&["frazil_applied"]) {
                self.ask(&format!("DROP TABLE IF EXISTS $.[{table}]")).await;
            }
            self.ask("DROP SCHEMA $").await;
        }
    }
}

/// `u a ann` upserts, `d b` deletes, one a line; `_` in a name is a blank.
fn rows(table: &TargetTable, text: &str) -> RecordBatch {
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    let ids = StringArray::from_iter_values(lines.iter().map(|words| words[1]));
    let names: StringArray =
        lines.iter().map(|words| words.get(2).map(|name| name.replace('_', " "))).collect();
    let ops = Int8Array::from_iter_values(lines.iter().map(|words| i8::from(words[0] == "d")));
    batch(table, vec![Arc::new(ids), Arc::new(names)], ops)
}

fn batch(table: &TargetTable, mut columns: Vec<ArrayRef>, ops: Int8Array) -> RecordBatch {
    let mut fields = table.schema.fields().to_vec();
    fields.push(Arc::new(Field::new(OP_COLUMN, DataType::Int8, false)));
    columns.push(Arc::new(ops));
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

const PEOPLE: &str = "SELECT t.[id], t.[name] FROM $.[people] AS t ORDER BY t.[id]";

#[tokio::test(flavor = "multi_thread")]
async fn sqlserver_target_merges_by_key() {
    for place in Place::all("merges_by_key") {
        let table = place.people(Deletes::Hard);
        let load = |to, text| place.load(&table, to, Strategy::Merge, rows(&table, text));
        assert_eq!(load(1, "u a ann\nu b bob\nu c").await.unwrap(), (3, 3, 0));
        assert_eq!(load(2, "u a anna\nd b\nu c\nu e eve\nd x").await.unwrap(), (5, 2, 1));
        place.check(PEOPLE, &expect!["a|anna\nc|NULL\ne|eve"]).await;
        let error = load(2, "u a ann").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}");
        place.end(&["people"]).await;
    }
}

/// What a collation calls equal: letters in two cases as keys, a name that changes its case only, blanks.
#[tokio::test(flavor = "multi_thread")]
async fn sqlserver_target_sees_changes_that_collations_hide() {
    for place in Place::all("sees_changes") {
        let table = place.people(Deletes::Hard);
        let load = |to, text| place.load(&table, to, Strategy::Merge, rows(&table, text));
        load(1, "u a ann\nu A ann\nu b bob").await.unwrap();
        assert_eq!(load(2, "u a Ann\nu A ann\nu b bob_").await.unwrap(), (3, 2, 0));
        place.check(PEOPLE, &expect!["A|ann\na|Ann\nb|bob "]).await;
        place.end(&["people"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlserver_target_marks_replaces_and_appends() {
    for place in Place::all("marks") {
        let soft = place.people(Deletes::Soft);
        place.load(&soft, 1, Strategy::Merge, rows(&soft, "u a ann\nu b bob")).await.unwrap();
        assert_eq!(place.load(&soft, 2, Strategy::Merge, rows(&soft, "d a\nd b")).await.unwrap(), (2, 0, 2));
        place.load(&soft, 3, Strategy::Merge, rows(&soft, "u b bob")).await.unwrap();
        let marked = "SELECT t.[id], CASE WHEN t.[_deleted_at] IS NULL THEN N'here' ELSE N'gone' END FROM $.[people] AS t ORDER BY t.[id]";
        place.check(marked, &expect!["a|gone\nb|here"]).await;

        let mut whole = place.people(Deletes::Hard);
        whole.id.name = "whole".into();
        place.load(&whole, 1, Strategy::Replace, rows(&whole, "u a ann\nu b bob")).await.unwrap();
        assert_eq!(
            place.load(&whole, 2, Strategy::Replace, rows(&whole, "u b bob\nu c cyd")).await.unwrap(),
            (2, 1, 1)
        );
        place.check("SELECT t.[id] FROM $.[whole] AS t ORDER BY t.[id]", &expect!["b\nc"]).await;

        let mut log = place.people(Deletes::Hard);
        (log.id.name, log.key) = ("log".into(), vec![]);
        place.load(&log, 1, Strategy::Append, rows(&log, "u a ann")).await.unwrap();
        place.load(&log, 2, Strategy::Append, rows(&log, "u a ann\nu a ann")).await.unwrap();
        place.check("SELECT t.[name] FROM $.[log] AS t", &expect!["ann\nann\nann"]).await;
        place.end(&["people", "whole", "log"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlserver_target_keeps_every_version_of_a_row() {
    for place in Place::all("keeps_versions") {
        let table = TargetTable { versions: true, ..place.people(Deletes::Hard) };
        let load = |to, second: i64, text| {
            let at = chrono::DateTime::from_timestamp(1_763_722_800 + second, 0).unwrap();
            place.load(&table, to, Strategy::Versions { at, whole: false }, rows(&table, text))
        };
        assert_eq!(load(1, 10, "u a ann\nu b bob").await.unwrap(), (2, 2, 0));
        assert_eq!(load(2, 20, "u a anna\nd b\nu c\nd x").await.unwrap(), (4, 2, 1));
        assert_eq!(load(3, 30, "u a anna\nu b bea").await.unwrap(), (2, 1, 0));
        let versions = "SELECT t.[id], t.[name], CASE WHEN t.[_valid_to] IS NULL THEN N'open' ELSE N'ended' END, \
             CASE WHEN t.[_is_current] = 1 THEN N'current' ELSE N'past' END FROM $.[people] AS t ORDER BY t.[id], t.[_valid_from]";
        place
            .check(
                versions,
                &expect![[r#"
                    a|ann|ended|past
                    a|anna|open|current
                    b|bob|ended|past
                    b|bea|open|current
                    c|NULL|open|current"#]],
            )
            .await;
        let error = load(3, 30, "u a again").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}");
        // The lake went back: what is younger was never valid.
        load(4, 20, "d b\nu a ann").await.unwrap();
        place
            .check(
                versions,
                &expect![[r#"
                    a|ann|ended|past
                    a|ann|open|current
                    b|bob|ended|past
                    c|NULL|open|current"#]],
            )
            .await;
        place.end(&["people"]).await;
    }
}

/// Values at their limits, as texts of the server's own making.
#[tokio::test(flavor = "multi_thread")]
async fn sqlserver_target_keeps_every_digit() {
    for place in Place::all("keeps_digits") {
        let micros = TimeUnit::Microsecond;
        let table = TargetTable {
            id: TableId::new(&place.schema, "digits"),
            schema: Schema::new(vec![
                Field::new("id", DataType::Int64, false),
                Field::new("dec", DataType::Decimal128(38, 10), true),
                Field::new("at", DataType::Timestamp(micros, None), true),
                Field::new("day", DataType::Date32, true),
                Field::new("long", DataType::Utf8, true),
            ])
            .into(),
            key: vec!["id".into()],
            deletes: Deletes::Hard,
            versions: false,
        };
        let most = 10_i128.pow(38) - 1;
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from(vec![i64::MIN, i64::MAX])),
            Arc::new(Decimal128Array::from(vec![most, -most]).with_precision_and_scale(38, 10).unwrap()),
            Arc::new(TimestampMicrosecondArray::from(vec![-62_135_596_800_000_000, 253_402_300_799_999_999])),
            Arc::new(Date32Array::from(vec![-719_162, 2_932_896])),
            Arc::new(StringArray::from_iter_values(["ü".repeat(100_000), String::new()])),
        ];
        let rows = batch(&table, columns, Int8Array::from(vec![0, 0]));
        place.load(&table, 1, Strategy::Merge, rows.clone()).await.unwrap();
        assert_eq!(place.load(&table, 2, Strategy::Merge, rows).await.unwrap(), (2, 0, 0));
        place
            .check(
                "SELECT CAST(t.[id] AS nvarchar(30)), CAST(t.[dec] AS nvarchar(50)), CONVERT(nvarchar(30), t.[day], 23), CAST(LEN(t.[long]) AS nvarchar(10)) \
                 FROM $.[digits] AS t ORDER BY t.[id]",
                &expect![[r#"
                    -9223372036854775808|9999999999999999999999999999.9999999999|0001-01-01|100000
                    9223372036854775807|-9999999999999999999999999999.9999999999|9999-12-31|0"#]],
            )
            .await;
        place.end(&["digits"]).await;
    }
}
