//! First reads in ranges of a key: views, servers before Postgres 14, and large windows.

use futures::StreamExt;

use frazil::connection::Connection;
use frazil::connectors;
use frazil::delta::Watermark;
use frazil::source::{ChangeDetection, ReadRequest};

use crate::fixture::{self, Database};
use crate::postgres_source::{Pass, after, pass, pass_at, request, says};

/// The database as a server would show it that cannot scan ranges of `ctid`.
fn as_13(db: &Database) -> String {
    format!("{}?options=-c%20frazil.pretended_version%3D130014", db.url())
}

async fn database(name: &str) -> Option<Database> {
    Some(fixture::postgres().await?.database(name).await)
}

/// Reads the first portion only: its rows, and where it ends.
async fn first_portion(url: &str, request: &ReadRequest) -> (Vec<String>, Watermark) {
    let source = connectors::source(&Connection::parse("shop", url).unwrap()).unwrap();
    let mut reading = source.open(request.clone()).await.unwrap();
    let portion = reading.next().await.unwrap().unwrap();
    assert!(!portion.complete);
    let mut rows = Vec::new();
    for mut stream in portion.streams {
        while let Some(batch) = stream.next().await {
            rows.extend(crate::postgres_source::text(&batch.unwrap()));
        }
    }
    (rows, portion.resume)
}

fn by_key(pass: &Pass) -> bool {
    says(pass, "in ranges of (")
}

const ROWS: &str =
    "create table e (id bigint primary key, pad text, updated_at timestamptz not null default '2024-01-01');
    create index on e (updated_at);
    insert into e select g * 7, repeat('x', 300) from generate_series(1, 20000) g; analyze e";

#[tokio::test]
async fn a_server_before_14_is_read_by_key_and_goes_on_where_it_stopped() {
    let Some(db) = database("thirteen").await else { return };
    db.run(ROWS).await;
    let request = ReadRequest { portion_bytes: 1 << 20, ..request("public.e") };
    let by_place = pass(&db, request.clone()).await.unwrap();
    assert!(!by_key(&by_place));
    let whole = pass_at(&as_13(&db), request.clone()).await.unwrap();
    assert!(by_key(&whole) && whole.plan.resumable && whole.portions > 4, "{:?}", whole.plan);
    assert_eq!(whole.rows, by_place.rows);

    let (mut rows, resume) = first_portion(&as_13(&db), &request).await;
    assert!(rows.len() < 10_000);
    // One row before the bound and one behind it, changed between the attempts.
    db.run("update e set pad = 'early', updated_at = now() where id = 7; update e set pad = 'late', updated_at = now() where id = 140000").await;
    let rest_request = ReadRequest { from: Some(resume.clone()), ..request.clone() };
    let rest = pass_at(&as_13(&db), rest_request.clone()).await.unwrap();
    assert!(rest.plan.continues && rest.plan.resumable, "{:?}", rest.plan);
    assert_eq!(rows.len() + rest.rows.len(), 20000);
    rows.extend(rest.rows.clone());
    rows.sort();
    assert!(rows.windows(2).all(|two| two[0] != two[1]), "no row comes twice");
    let next = pass_at(&as_13(&db), after(&request, &rest)).await.unwrap();
    assert_eq!(next.rows.len(), 2, "{:?}", next.rows);

    // What makes the bound mean something else starts the read anew, and says so.
    db.run("alter table e alter id type numeric").await;
    let anew = pass_at(&as_13(&db), rest_request).await.unwrap();
    assert!(!anew.plan.continues && says(&anew, "cannot go on with these settings"), "{:?}", anew.plan);
    assert_eq!(anew.rows.len(), 20000);
}

#[tokio::test]
async fn views_are_read_by_the_key_that_is_named() {
    let Some(db) = database("views").await else { return };
    db.run(
        "create table t (tenant int not null, code text collate \"C\" not null, pad text, updated_at timestamptz default '2024-01-01', primary key (tenant, code));
         insert into t select g % 3, 'it''s \\ ' || g, repeat('y', 200)
         from generate_series(1, 30000) g order by 1, 2;
         create view v as select tenant, code, pad || '!' as pad, updated_at from t where tenant < 9;
         create view counted as select tenant, count(*) from t group by tenant;
         analyze t",
    )
    .await;
    let request = ReadRequest {
        key: vec!["tenant".into(), "code".into()],
        portion_bytes: 200 << 10,
        parallel: 3,
        ..request("public.v")
    };
    let whole = pass(&db, request.clone()).await.unwrap();
    assert!(by_key(&whole) && whole.plan.resumable && whole.portions > 4, "{:?}", whole.plan);
    assert_eq!(whole.rows.len(), 30000);
    assert!(whole.rows.windows(2).all(|two| two[0] != two[1]), "no row comes twice");

    let (first, resume) = first_portion(&db.url(), &request).await;
    let from_there = ReadRequest { from: Some(resume), ..request.clone() };
    let rest = pass(&db, from_there.clone()).await.unwrap();
    assert!(rest.plan.continues);
    assert_eq!(first.len() + rest.rows.len(), 30000);
    db.run("create or replace view v as select tenant, code, pad || '?' as pad, updated_at from t").await;
    let anew = pass(&db, from_there).await.unwrap();
    assert!(!anew.plan.continues && says(&anew, "was rewritten"), "{:?}", anew.plan.notes);

    // Without a key, or where every range would count everything: one stream, and a reason.
    let keyless = ReadRequest { key: Vec::new(), ..request.clone() };
    let one = pass(&db, keyless).await.unwrap();
    assert!(!one.plan.resumable && says(&one, "`primary_key`"), "{:?}", one.plan.notes);
    assert_eq!((one.rows.len(), one.portions), (30000, 1));
    let counted =
        ReadRequest { key: vec!["tenant".into()], table: "public.counted".parse().unwrap(), ..request };
    let one = pass(&db, ReadRequest { change: ChangeDetection::Full, ..counted }).await.unwrap();
    assert!(says(&one, "no index gives the order"), "{:?}", one.plan.notes);
    assert_eq!(one.rows.len(), 3);
}

#[tokio::test]
async fn keys_that_are_null_or_repeat_are_read_once() {
    let Some(db) = database("ties").await else { return };
    db.run(
        "create table t (a int, b uuid, n int); create index on t (a, b);
         insert into t select nullif(g % 50, 7), case when g % 11 > 0 then md5((g % 400)::text)::uuid end, g
         from generate_series(1, 40000) g;
         create view v as select * from t",
    )
    .await;
    db.run("vacuum analyze t").await;
    for key in [vec!["a".to_owned()], vec!["a".to_owned(), "b".to_owned()]] {
        let request = ReadRequest {
            key,
            keyed: false,
            change: ChangeDetection::Full,
            portion_bytes: 100 << 10,
            ..request("public.v")
        };
        let all = pass(&db, request).await.unwrap();
        assert!(by_key(&all) && !all.plan.resumable && all.portions > 3, "{:?} {}", all.plan, all.portions);
        assert_eq!(all.rows.len(), 40000);
        assert!(all.rows.windows(2).all(|two| two[0] != two[1]), "no row comes twice");
    }
}

#[tokio::test]
async fn every_type_of_key_makes_bounds() {
    let Some(db) = database("bounds").await else { return };
    let kinds = [
        ("numeric", "g / 7.0"),
        ("varchar(30)", "'ä' || g"),
        ("char(12)", "g::text"),
        ("uuid", "md5(g::text)::uuid"),
        ("bytea", "decode(md5(g::text), 'hex')"),
        ("date", "date '0044-03-15 BC' + g"),
        ("timestamp", "timestamp '2024-01-01' + g * interval '1 us'"),
        ("timestamptz", "timestamptz '2024-01-01' + g * interval '0.5 s'"),
        ("smallint", "g - 10000"),
    ];
    for (of, value) in kinds {
        // In the order of the key, as tables grow: else ranges do not pay, which is not what is asked here.
        db.run(&format!(
            "drop table if exists t; create table t (id {of} primary key, pad text);
             insert into t select ({value})::{of}, repeat('z', 60) from generate_series(1, 20000) g order by 1"
        ))
        .await;
        db.run("vacuum analyze t").await;
        let request = ReadRequest {
            change: ChangeDetection::Full,
            portion_bytes: 30 << 10,
            columns: Some(vec!["id".into()]),
            ..request("public.t")
        };
        let all = pass_at(&as_13(&db), request).await.unwrap();
        assert!(by_key(&all) && all.portions > 1, "{of}: {:?}", all.plan.notes);
        assert_eq!(all.rows.len(), 20000, "{of}");
        assert!(all.rows.windows(2).all(|two| two[0] != two[1]), "{of}: no row comes twice");
    }
}

#[tokio::test]
async fn a_large_window_is_read_by_several_streams() {
    let Some(db) = database("windows").await else { return };
    db.run(
        "create table e (id int, updated_at timestamptz); insert into e values (1, '2024-01-01');
         create index on e (updated_at)",
    )
    .await;
    let request = ReadRequest { columns: Some(vec!["id".into()]), batch_rows: 50_000, ..request("public.e") };
    let first = pass(&db, request.clone()).await.unwrap();
    // Many rows a moment, and some without one.
    db.run(
        "insert into e select g, case when g % 100000 > 0 then now() + (g / 5000) * interval '1 ms' end
         from generate_series(2, 1100000) g",
    )
    .await;
    db.run("vacuum analyze e").await;
    // The last of these times must have passed.
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let next = after(&request, &first);
    let source = connectors::source(&Connection::parse("shop", &db.url()).unwrap()).unwrap();
    let mut reading = source.open(next.clone()).await.unwrap();
    assert!(
        reading.plan().notes.iter().any(|note| note.contains("in ranges of (updated_at)")),
        "{:?}",
        reading.plan()
    );
    let portion = reading.next().await.unwrap().unwrap();
    assert_eq!((portion.streams.len(), portion.complete), (2, true));
    let mut ids = vec![0_u8; 1_100_001];
    for mut stream in portion.streams {
        while let Some(batch) = stream.next().await {
            let batch = batch.unwrap();
            let column = arrow::array::AsArray::as_primitive::<arrow::datatypes::Int32Type>(batch.column(0));
            column.values().iter().for_each(|id| ids[*id as usize] += 1);
        }
    }
    assert_eq!(ids[2..].iter().filter(|times| **times != 1).count(), 0, "each row once");
}
