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
