//! Statements that name moments of a table, right ones and wrong ones.

use super::*;

#[tokio::test]
async fn a_statement_names_several_moments() {
    let mut history = History::new(TableMode::Merge).await;
    let first = history.upsert(&[(1, Some(10)), (2, Some(20))]).await;
    let second = history.upsert(&[(2, Some(21)), (3, Some(30))]).await;
    let third = history.delete(&[1]).await;

    let both = format!(
        "select t.id, t.v now, b.v before from t full join s.t for version as of {first} b using (id) order by id"
    );
    expect![[r#"
        +----+-----+--------+
        | id | now | before |
        +----+-----+--------+
        | 2  | 21  | 20     |
        | 3  | 30  |        |
        |    |     | 10     |
        +----+-----+--------+
    "#]]
    .assert_eq(&history.sql(&both).await);
    expect![[r#"
        +---------+------+----+----+
        | _change | note | id | v  |
        +---------+------+----+----+
        | delete  |      | 1  |    |
        | update  | n2   | 2  | 21 |
        | insert  | n3   | 3  | 30 |
        +---------+------+----+----+
    "#]]
    .assert_eq(&history.sql(&format!("select * from changes('s.t', {first}) order by id")).await);
    expect![[r#"
        +----+---------+
        | id | _change |
        +----+---------+
        | 1  | delete  |
        +----+---------+
    "#]]
    .assert_eq(
        &history
            .sql(&format!("select id, _change from changes('t', {second}, {third}) c where c.id > 0"))
            .await,
    );
    let at = history.table.snapshots().iter().find(|snapshot| snapshot.id == second).unwrap().committed_at;
    expect![[r#"
        +----+----+
        | id | v  |
        +----+----+
        | 1  | 10 |
        | 2  | 21 |
        | 3  | 30 |
        +----+----+
    "#]]
    .assert_eq(
        &history.sql(&format!("select id, v from t timestamp as of '{}' order by id", at.to_rfc3339())).await,
    );
    expect![[r#"
        +-----------+----------+
        | operation | count(*) |
        +-----------+----------+
        | append    | 1        |
        | overwrite | 2        |
        +-----------+----------+
    "#]]
    .assert_eq(&history.sql("select operation, count(*) from \"t$snapshots\" group by 1 order by 1").await);
    expect![[r#"
        +------------------+---+
        | content          | r |
        +------------------+---+
        | data             | 4 |
        | position_deletes | 2 |
        +------------------+---+
    "#]]
    .assert_eq(
        &history.sql("select content, sum(record_count) r from s.\"t$files\" group by 1 order by 1").await,
    );
    expect![[r#"
        +---------------------+
        | is_current_ancestor |
        +---------------------+
        | true                |
        | true                |
        | true                |
        +---------------------+
    "#]]
    .assert_eq(&history.sql("select is_current_ancestor from \"t$history\"").await);
}

#[tokio::test]
async fn a_wrong_statement_says_what_is_right() {
    let mut history = History::new(TableMode::Merge).await;
    let only = history.upsert(&[(1, None)]).await;
    let at = history.table.snapshots()[0].committed_at;
    let mut said = String::new();
    for text in [
        "select * from s.tt",
        "select * from \"t$foles\"",
        "select * from t version as of 7",
        "select * from t timestamp as of '1999-01-01'",
        "select idd from t",
        "delete from t",
        "create table x as select * from t",
        "copy t to '/tmp/x.csv'",
        "set datafusion.execution.batch_size = 1",
        "selec 1",
    ] {
        let answer = history.sql(text).await;
        said += &answer;
    }
    expect![[r#"
        config: there is no table `s.tt` in the lake
          hint: did you mean `s.t`?
        config: there is no metadata table `foles` (table: s.t)
          hint: there are `$snapshots`, `$history`, `$refs`, `$files`, `$manifests`, `$partitions` and `$rows`
        config: the table has no such snapshot (table: s.t, snapshot: 7)
          hint: the newest is 42; `frazil snapshots s.t` lists all
        config: the table had no rows to read at that time (table: s.t, time: 1999-01-01T00:00:00+00:00)
          hint: its oldest snapshot is of TIME
        config: query is not valid: Schema error: No field named idd. Valid fields are t.note, t.id, t.v.
        config: the statement does not only read
          hint: the lake is written by `frazil sync`; use SELECT, SHOW TABLES, DESCRIBE or EXPLAIN here
        config: the statement does not only read
          hint: the lake is written by `frazil sync`; use SELECT, SHOW TABLES, DESCRIBE or EXPLAIN here
        config: the statement does not only read
          hint: the lake is written by `frazil sync`; use SELECT, SHOW TABLES, DESCRIBE or EXPLAIN here
        config: the statement does not only read
          hint: the lake is written by `frazil sync`; use SELECT, SHOW TABLES, DESCRIBE or EXPLAIN here
        config: query is not valid: SQL error: ParserError("Expected: an SQL statement, found: selec at Line: 1, Column: 1")
    "#]]
    .assert_eq(&said.replace(&only.to_string(), "42").replace(&at.to_rfc3339(), "TIME"));
}
