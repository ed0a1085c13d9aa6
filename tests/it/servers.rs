//! The fixtures themselves: what they promise to other tests.

use crate::fixture;

#[tokio::test]
async fn a_postgres_is_there_with_a_database_for_each_test() {
    let Some(pg) = fixture::postgres().await else { return };
    let (a, b) = (pg.database("a").await, pg.database("b").await);
    a.run("create table only_in_a (x int); insert into only_in_a values (1), (null)").await;
    assert_eq!(a.text("select x, current_database() like 'a_%' from only_in_a").await, "1 | t\n∅ | t");
    let tables = "select count(*) from pg_tables where tablename = 'only_in_a'";
    assert_eq!(b.text(tables).await, "0");
    assert_eq!(b.text("show wal_level").await, "logical");
}

#[tokio::test]
async fn a_database_is_gone_with_its_test() {
    let Some(pg) = fixture::postgres().await else { return };
    let keeper = pg.database("keeper").await;
    let gone = pg.database("gone").await;
    let _open = gone.client().await;
    let count = format!("select count(*) from pg_database where datname = '{}'", gone.name());
    assert_eq!(keeper.text(&count).await, "1");
    drop(gone);
    assert_eq!(keeper.text(&count).await, "0");
}

#[tokio::test]
async fn an_s3_server_is_there_that_takes_conditional_writes() {
    use object_store::{Error, ObjectStore, PutMode, path::Path};
    let Some(s3) = fixture::s3().await else { return };
    let store = s3.store();
    let path = Path::from(s3.warehouse("probe").trim_start_matches("s3://tests/")).join("once");
    store.put_opts(&path, "first".into(), PutMode::Create.into()).await.unwrap();
    let second = store.put_opts(&path, "second".into(), PutMode::Create.into()).await;
    assert!(matches!(second, Err(Error::AlreadyExists { .. })), "{second:?}");
}

/// The judges must be able to say no.
#[tokio::test]
async fn judges_accept_equal_rows_and_name_what_differs() {
    let Some(pg) = fixture::postgres().await else { return };
    let Some(python) = fixture::tools("python") else { return fixture::skip("pyiceberg") };
    let db = pg.database("judged").await;
    db.run(
        "create table t (id bigint, n numeric(9,2), at timestamptz, day date, note text);
         insert into t select i, i / 7.0, now() + i * interval '1 s', '2024-02-29', nullif('n' || i, 'n3')
         from generate_series(1, 1000) i",
    )
    .await;
    let folder = tempfile::tempdir().unwrap();
    let write = "
import sys, duckdb
sys.path.insert(0, 'tests/it')
import judge
from pyiceberg.catalog.sql import SqlCatalog
db = judge.connect('')
judge.read_truth(db, sys.argv[2], 'select * from t')
rows = db.execute('from truth').to_arrow_table()
catalog = SqlCatalog('c', uri='sqlite://', warehouse='file://' + sys.argv[1])
catalog.create_namespace('n')
catalog.create_table('n.t', rows.schema).append(rows)
print(catalog.load_table('n.t').location(), end='')
";
    let written = std::process::Command::new(python)
        .args(["-c", write, folder.path().to_str().unwrap(), &db.url()])
        .output()
        .unwrap();
    assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
    let location = String::from_utf8(written.stdout).unwrap();

    assert_eq!(fixture::judge(&location, &db.url(), "select * from t"), Some(1000));
    db.run("update t set n = n + 0.01 where id = 7; insert into t select * from t where id = 8").await;
    let verdict = std::panic::catch_unwind(|| fixture::judge(&location, &db.url(), "select * from t"));
    let message = *verdict.unwrap_err().downcast::<String>().unwrap();
    for expected in ["duckdb: 2 rows in the query only", "pyiceberg: 1 rows in the lake only"] {
        assert!(message.contains(expected), "{message}");
    }
}

#[tokio::test]
async fn a_proxy_refuses_requests_and_cuts_connections_when_told_to() {
    use object_store::{ObjectStoreExt, path::Path};
    let Some(s3) = fixture::s3().await else { return };
    let proxy = fixture::Proxy::http(s3.port());
    let store = s3.store_through(proxy.port());
    let path = Path::from("proxied");
    store.put(&path, vec![7; 100_000].into()).await.unwrap();
    proxy.refuse(1, 1);
    let read = async || store.get(&path).await?.bytes().await;
    assert_eq!(read().await.unwrap().len(), 100_000);
    assert!(read().await.unwrap_err().to_string().contains("503"));
    assert_eq!(read().await.unwrap().len(), 100_000);
    proxy.cut_after(50_000);
    assert!(read().await.is_err());
    assert!(read().await.is_err());
    proxy.heal();
    assert_eq!(read().await.unwrap().len(), 100_000);
}
