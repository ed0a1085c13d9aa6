//! A table of format version 3 that DuckDB makes, through a REST catalog: nanoseconds, deletion vectors, a
//! default for rows that are older than their column, rows that keep their ids. We read the same, and go on.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::util::pretty::pretty_format_batches;
use expect_test::{Expect, expect};
use frazil::delta::Watermark;
use frazil::lake::{Change, Effect, Lake, LakeSettings, Stores, catalog};
use frazil::memory::Budget;
use frazil::query;
use frazil::table::TableId;
use iceberg::TableUpdate;

use crate::fixture::{self, S3};

/// Its data files are beside the catalog's bucket: that one refuses files of deletion vectors.
const MAKE: &str = r#"
create table lake.duck.t (id bigint not null, moment timestamp_ns, name varchar, price decimal(9,2))
    with ('format-version' = '3', 'write.data.path' = '{data}');
insert into lake.duck.t values (1, '2024-01-01 00:00:00.123456789', 'a', 1.5),
    (2, '2024-01-02 00:00:00.000000001', 'b', 2.5), (3, null, null, null);
insert into lake.duck.t select i, '2024-01-03 00:00:00.000000001'::timestamp_ns, 'n' || i, i from range(10, 15) r(i);
delete from lake.duck.t where id in (2, 13);
update lake.duck.t set name = 'cc' where id = 3;
alter table lake.duck.t add column extra integer default 42;
insert into lake.duck.t values (99, null, 'late', 1, 7);
delete from lake.duck.t where id = 14;
"#;

/// Runs statements in DuckDB, with our catalog attached as `lake`. The rows of the last come back.
fn duckdb(s3: &S3, settings: &LakeSettings, statements: &str) -> String {
    let (key, secret) = s3.login();
    let script = format!(
        r#"
import sys
sys.path.insert(0, "{tests}")
import judge
db = judge.connect("{warehouse}")
db.execute("create secret ice (type iceberg, client_id '{key}', client_secret '{secret}', "
    "oauth2_server_uri '{catalog}/v1/oauth/tokens')")
db.execute("attach '{bucket}' as lake (type iceberg, endpoint '{catalog}', secret ice)")
for statement in sys.argv[1].split(";"):
    if statement.strip():
        rows = db.execute(statement).fetchall()
print("\n".join("|".join(str(value) for value in row) for row in rows))
"#,
        tests = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it"),
        warehouse = settings.warehouse,
        bucket = settings.warehouse.trim_start_matches("s3://"),
        catalog = settings.catalog.url,
    );
    let python = fixture::tools("python").expect("installed with the server");
    let output = Command::new(python)
        .args(["-c", &script, statements])
        .env("S3_ENDPOINT", format!("http://127.0.0.1:{}", s3.port()))
        .env("S3_ACCESS_KEY", key)
        .env("S3_SECRET_KEY", secret)
        .output()
        .unwrap();
    assert!(output.status.success(), "{statements}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn budget() -> Budget {
    Budget::new(256 << 20, 1).unwrap()
}

async fn rows(lake: &Lake, sql: &str) -> Vec<RecordBatch> {
    let session = query::session(lake, budget(), None).await.unwrap();
    query::sql(&session, sql).await.unwrap().collect().await.unwrap()
}

async fn check(lake: &Lake, sql: &str, expected: Expect) {
    expected.assert_eq(&format!("{}\n", pretty_format_batches(&rows(lake, sql).await).unwrap()));
}

const ALL: &str = "select id, moment::varchar, name, price::varchar, extra from lake.duck.t order by id";

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_version_3_made_by_duckdb_is_read_and_gone_on_with() {
    let Some((s3, settings)) = fixture::rest_catalog().await else { return };
    duckdb(
        &s3,
        &settings,
        &format!("create schema lake.duck;{}", MAKE.replace("{data}", &s3.warehouse("duck"))),
    );
    let lake = Lake::open(&settings).await.unwrap();
    check(
        &lake,
        "select * from duck.t order by id",
        expect![[r#"
        +----+-------------------------------+------+-------+-------+
        | id | moment                        | name | price | extra |
        +----+-------------------------------+------+-------+-------+
        | 1  | 2024-01-01T00:00:00.123456789 | a    | 1.50  | 42    |
        | 3  |                               | cc   |       | 42    |
        | 10 | 2024-01-03T00:00:00.000000001 | n10  | 10.00 | 42    |
        | 11 | 2024-01-03T00:00:00.000000001 | n11  | 11.00 | 42    |
        | 12 | 2024-01-03T00:00:00.000000001 | n12  | 12.00 | 42    |
        | 99 |                               | late | 1.00  | 7     |
        +----+-------------------------------+------+-------+-------+
    "#]],
    )
    .await;
    // The row that was updated keeps its id.
    let ids = "select id, _row_id, _last_updated_sequence_number from duck.\"t$rows\" order by id";
    check(
        &lake,
        ids,
        expect![[r#"
        +----+---------+-------------------------------+
        | id | _row_id | _last_updated_sequence_number |
        +----+---------+-------------------------------+
        | 1  | 0       | 1                             |
        | 3  | 2       | 4                             |
        | 10 | 3       | 2                             |
        | 11 | 4       | 2                             |
        | 12 | 5       | 2                             |
        | 99 | 9       | 5                             |
        +----+---------+-------------------------------+
    "#]],
    )
    .await;
    let known = duckdb(
        &s3,
        &settings,
        "select id, _row_id, _last_updated_sequence_number from lake.duck.t order by id",
    );
    expect![[r#"
        1|0|1
        3|2|4
        10|3|2
        11|4|2
        12|5|2
        99|9|5"#]]
    .assert_eq(&known);

    // A key of each of their files goes, one of them from under a deletion vector of theirs.
    let id = TableId::new("duck", "t");
    let stores = Arc::new(Stores::new(settings.options.clone()));
    let catalog = catalog::open(&settings.catalog, &settings.warehouse, stores).unwrap();
    let merged =
        [("frazil.mode", "merge"), ("frazil.key", "[1]")].map(|(name, value)| (name.into(), value.into()));
    let updates = vec![TableUpdate::SetProperties { updates: merged.into() }];
    catalog.commit(&catalog.load(&id).await.unwrap().unwrap(), Vec::new(), updates).await.unwrap();
    let mut table = lake.table(&id).await.unwrap().unwrap();
    let new = rows(
        &lake,
        "select id, moment, 'ours' as name, price, cast(1 as int) as extra from duck.t where id in (1, 12)",
    )
    .await;
    let mut writer = table.writer(budget()).unwrap();
    for batch in &new {
        let columns = Arc::clone(&table.schema().unwrap());
        writer.write(&RecordBatch::try_new(columns, batch.columns().to_vec()).unwrap()).await.unwrap();
    }
    let change = Change {
        files: writer.finish().await.unwrap(),
        effect: Effect::Upsert,
        from: None,
        to: Watermark::new("1"),
        summary: BTreeMap::new(),
    };
    table.commit(change, budget()).await.unwrap();
    expect![[r#"
        1|2024-01-01 00:00:00.123456789|ours|1.50|1
        3|None|cc|None|42
        10|2024-01-03 00:00:00.000000001|n10|10.00|42
        11|2024-01-03 00:00:00.000000001|n11|11.00|42
        12|2024-01-03 00:00:00.000000001|ours|12.00|1
        99|None|late|1.00|7"#]]
    .assert_eq(&duckdb(&s3, &settings, ALL));
}
