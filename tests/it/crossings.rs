//! From one kind of database into the other: all types that both know arrive as they were, and changes
//! follow. The way back is the proof: what comes home is compared by the database where it began.

use std::time::Duration;

use crate::fixture::{self, Pipeline};
use crate::sync::{assert_same, two_databases};

/// Values at the edges of every type that SQLite has a declared type for.
const SAMPLES: &str = r#"
    create table samples (
        id bigint primary key, small smallint, middle integer, large bigint, yes boolean,
        real8 double precision, exact numeric(20,4), wide numeric(38,10), words text, short varchar(10),
        day date, clock time, at timestamp, moment timestamptz, code uuid, bytes bytea, doc jsonb,
        updated_at timestamptz not null default now());
    create index on samples (updated_at);
    insert into samples values
        (1, -32768, -2147483648, -9223372036854775808, true, 0.1, -9999999999999999.9999, 0.0000000001, '', 'ä€😀',
         '0001-01-01', '00:00', '0001-01-01 00:00', '1970-01-01 00:00:00.000001+00',
         '00000000-0000-0000-0000-000000000000', '\x', '{"a": [1, null]}'),
        (2, 32767, 2147483647, 9223372036854775807, false, 1e308, 9999999999999999.9999,
         -1234567890123456789012345678.0123456789, E'line\nline "quoted" ''it''', '', '9999-12-31',
         '23:59:59.999999', '9999-12-31 23:59:59.999999', '2024-02-29 23:59:59.999999+00',
         'ffffffff-ffff-ffff-ffff-ffffffffffff', '\x00ff0a', '1'),
        (3, 0, 0, 0, null, -0.0, 0, 0, ' ', '%s', '2024-02-29', '12:00', '2024-02-29 12:00', '2024-03-31 01:30+00',
         'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '\xdeadbeef', '"text"'),
        (4, null, null, null, null, 5e-324, null, null, null, null, null, null, null, null, null, null, null),
        (5, 1, 1, 1, true, 'NaN', 1, 1, 'x', 'x', 'epoch', '01:02:03.004', 'epoch', 'epoch',
         'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '\x00', 'null'),
        (6, 2, 2, 2, true, 'Infinity', 2, 2, 'y', 'y', '2024-01-01', '01:02', '2024-01-01', '2024-01-01',
         'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a12', '\x01', '[]');
    insert into samples (id, words, exact, day, moment)
        select g, 'row ' || g, g / 8.0, date '2000-01-01' + g, timestamptz '2000-01-01' + g * interval '7 hours'
        from generate_series(10, 500) g"#;

/// As text, so that the types in which it comes home may be others.
const AS_TEXT: &str = "select id::text, small::text, middle::text, large::text, yes::text, real8::text,
    exact::text, wide::text, words, short, day::text, clock::text, at::text, moment::text, code::text,
    encode(bytes, 'hex'), doc::jsonb::text, updated_at::text from samples";

#[tokio::test]
async fn all_types_go_to_sqlite_and_come_home() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, home) = two_databases(&pg, "crossing").await;
    source.run(SAMPLES).await;
    let folder = tempfile::tempdir().unwrap();
    let sqlite = format!("sqlite://{}", folder.path().join("middle.db").display());
    let there = ["public.samples: { cursor: updated_at }"];
    let there = Pipeline::new(&source.url(), &sqlite, &there);
    let back = ["main.samples: { cursor: updated_at, target: dwh.public }"];
    let back = Pipeline::new(&sqlite, &home.url(), &back);
    there.ok(&["run"]);
    // What SQLite was told in the current second waits for the next pass.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    back.ok(&["run"]);
    assert_same(&source, &home, AS_TEXT).await;
    fixture::judge(&there.location("public", "samples"), &source.url(), "select * from samples");

    source
        .run(
            "update samples set words = 'changed ' || id, exact = -exact, updated_at = now() where id % 3 = 0;
             insert into samples (id, words) values (1000, 'new')",
        )
        .await;
    there.ok(&["run"]);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    back.ok(&["run"]);
    assert_same(&source, &home, AS_TEXT).await;
}

/// A `datetime` has no zone: what comes home is the same moment in UTC. It has no NaN and no infinity either.
#[tokio::test]
async fn all_types_go_to_mariadb_and_come_home() {
    let (Some(pg), Some(server)) = (fixture::postgres().await, fixture::mariadb().await) else { return };
    let (source, home) = two_databases(&pg, "mariadb").await;
    let middle = server.database("middle").await;
    source.run(SAMPLES).await;
    source.run("update samples set real8 = -1.5 where id in (5, 6)").await;
    let there = format!("public.samples: {{ change: full, target: dwh.{} }}", middle.name());
    let there = Pipeline::new(&source.url(), &middle.url(), &[there.as_str()]);
    let back = format!(
        "{}.samples: {{ change: full, target: dwh.public, values: {{ types: {{ 'yes': boolean }} }} }}",
        middle.name()
    );
    let back = Pipeline::new(&middle.url(), &home.url(), &[back.as_str()]);
    let as_text = |zone: &str| {
        AS_TEXT
            .replace("moment::text", &format!("(moment{zone})::text"))
            .replace("updated_at::text", &format!("(updated_at{zone})::text"))
    };
    let same = async || {
        assert_eq!(home.rows(&as_text("")).await, source.rows(&as_text(" at time zone 'UTC'")).await);
    };
    there.ok(&["run"]);
    back.ok(&["run"]);
    same().await;
    source
        .run(
            "update samples set words = 'changed ' || id, exact = -exact, updated_at = now() where id % 3 = 0;
             delete from samples where id % 5 = 0; insert into samples (id, words) values (1000, 'new')",
        )
        .await;
    for fault in ["in_load_transaction=return(kill)", "after_load=return(kill)"] {
        // Killed within the load, or just after its commit: the next run finds out which.
        there.run_with_faults(&["run"], fault);
    }
    there.ok(&["run"]);
    back.ok(&["run"]);
    same().await;
    let idle = there.ok(&["run", "--output", "json"]);
    assert!(idle.stdout.contains("nothing_to_do"), "{idle:?}");
}
