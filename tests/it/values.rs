//! Every kind of value, the whole way: what comes out of the target is what was in the source, and the
//! lake holds it in a type that says what it is.

use crate::fixture::{self, Pipeline};
use crate::sync::{assert_same, two_databases};

/// Columns of a table `mixed`, and how DuckDB sees the same values in Postgres as the lake holds them.
const COLUMNS: &[(&str, &str, &str)] = &[
    ("b", "boolean", "b"),
    ("i2", "smallint", "i2::int as i2"),
    ("i4", "integer", "i4"),
    ("i8", "bigint", "i8"),
    ("f4", "real", "f4"),
    ("f8", "double precision", "f8"),
    ("n", "numeric(38,10)", "n"),
    ("small_n", "numeric(9,2)", "small_n"),
    ("any_n", "numeric", "any_n::text as any_n"),
    ("t", "text", "t"),
    ("v", "varchar(20)", "v"),
    ("c", "char(5)", "c::text || repeat(' ', 5 - length(c::text)) as c"),
    ("bin", "bytea", "bin"),
    ("u", "uuid", "u"),
    ("d", "date", "d"),
    ("tm", "time", "tm"),
    ("ts", "timestamp", "ts"),
    ("tz", "timestamptz", "tz"),
    ("iv", "interval", ""),
    ("j", "json", "j::text as j"),
    ("jb", "jsonb", "jb::text as jb"),
    ("ints", "integer[]", "ints"),
    ("texts", "text[]", "texts"),
    ("ip", "inet", "ip::text as ip"),
    ("net", "cidr", "net::text as net"),
    ("mac", "macaddr", "mac::text as mac"),
    ("bits", "bit varying(10)", "bits::text as bits"),
    ("span", "int4range", "span::text as span"),
    ("lsn", "pg_lsn", "lsn::text as lsn"),
    ("search", "tsvector", "search::text as search"),
];

/// Rows of extremes, in the order of [`COLUMNS`]; one of them is all NULL.
const ROWS: &[&str] = &[
    "true, 32767, 2147483647, 9223372036854775807, 3.4028235e38, 1.7976931348623157e308,
     9999999999999999999999999999.9999999999, 9999999.99, 123456789012345678901234567890123456789012345.678,
     'plain', 'with, comma', 'ab', '\\x00ff', 'ffffffff-ffff-ffff-ffff-ffffffffffff', '9999-12-31', '23:59:59.999999',
     '9999-12-31 23:59:59.999999', '9999-12-31 23:59:59.999999+00', '1 year 2 mons 3 days 04:05:06.789',
     '{\"a\":  1}', '{\"a\": 1.50}', '{1,NULL,-3}', '{\"a b\",NULL,\"\"}', '192.168.0.1/24', '10.0.0.0/8',
     '08:00:2b:01:02:03', '101', '[1,10)', '16/B374D848', 'a fat cat'",
    "false, -32768, -2147483648, -9223372036854775808, -1.1754944e-38, 5e-324,
     -9999999999999999999999999999.9999999999, -0.01, -0.000000000000000000000000000001,
     '', '', '', '', '00000000-0000-0000-0000-000000000000', '0001-01-01', '00:00:00',
     '0001-01-01 00:00:00', '0001-01-01 00:00:00+00', '-1 year', '[]', 'null', '{}', '{}', '::1', '::/0',
     'ff:ff:ff:ff:ff:ff', '', 'empty', '0/0', ''",
    "null, 0, 0, 0, 'NaN', 'NaN', 0, 0, 'NaN', E'tab\\tnewline\\nquote''\"\\\\ zero-width\u{200d}', 'ünïcödé 🦀', 'ü',
     '\\x', gen_random_uuid(), '1970-01-01', '12:00:00.000001', '1969-12-31 23:59:59.999999', '2024-03-31 01:30:00+01', '0',
     '\"s\"', '{\"k\": [1, 2, {\"x\": null}]}', '{2147483647}', '{\"{}\",\"null\",\"\\\"\"}', '10.0.0.1', '10.0.0.1/32',
     '00:00:00:00:00:00', '1', '(,)', 'FFFFFFFF/FFFFFFFF', 'the:1A,2B'",
    "null, null, null, null, 'Infinity', '-Infinity', null, null, null, null, null, null, null, null, null, null, null, null,
     null, null, null, null, null, null, null, null, null, null, null, null",
];

#[tokio::test]
async fn every_kind_of_value_arrives_as_it_was() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "values").await;
    let columns: Vec<String> = COLUMNS.iter().map(|(name, kind, _)| format!("{name} {kind}")).collect();
    source.run(&format!("create table mixed (id int primary key, {})", columns.join(", "))).await;
    for (id, row) in ROWS.iter().enumerate() {
        source.run(&format!("insert into mixed values ({id}, {row})")).await;
    }
    let pipeline = Pipeline::new(&source.url(), &target.url(), &["public.mixed: { change: full }"]);
    pipeline.ok(&["run"]);
    // Not only the same text: the same types.
    let types = "select attname, format_type(atttypid, atttypmod) from pg_attribute
                 where attrelid = 'mixed'::regclass and attnum > 0";
    assert_same(&source, &target, types).await;
    assert_same(&source, &target, "select * from mixed").await;

    let seen: Vec<&str> = COLUMNS.iter().map(|(_, _, seen)| *seen).filter(|seen| !seen.is_empty()).collect();
    // Intervals travel as ISO 8601 text, which needs a setting that a query cannot make.
    source.run(&format!("alter database \"{}\" set intervalstyle = iso_8601", source.name())).await;
    let query = format!("select id, {}, iv::text as iv from mixed", seen.join(", "));
    fixture::judge_by_three(&pipeline.location("public", "mixed"), &source.url(), &query);
}

#[tokio::test]
async fn odd_names_arrive_as_they_are() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "names").await;
    let table = r#""Odd ""Schema"""."select from""#;
    source
        .run(&format!(
            r#"create schema "Odd ""Schema""";
               create table {table} ("ID" int, "order" text, "Ünï cödé" int, "a.b" int, "q""uote" int, primary key ("ID", "order"));
               insert into {table} select i, 'o' || i, i, i, i from generate_series(1, 100) i"#
        ))
        .await;
    target.run(r#"create schema "Odd ""Schema""""#).await;
    let stream = r#"'"Odd ""Schema"""."select from"': { change: full, target: "dwh.{stream_schema}" }"#;
    let pipeline = Pipeline::new(&source.url(), &target.url(), &[stream]);
    pipeline.ok(&["run"]);
    source
        .run(&format!(r#"update {table} set "a.b" = 0 where "ID" < 10; delete from {table} where "ID" > 90"#))
        .await;
    pipeline.ok(&["run"]);
    assert_same(&source, &target, &format!("select * from {table}")).await;
}

/// Zones and daylight saving: the same instants, whatever the sessions think.
#[tokio::test]
async fn a_server_in_another_time_zone_changes_nothing() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "zones").await;
    for (database, zone) in [(&source, "America/St_Johns"), (&target, "Asia/Kathmandu")] {
        database.run(&format!("alter database \"{}\" set timezone = '{zone}'", database.name())).await;
    }
    source
        .run(
            "create table events (id int primary key, local timestamp, instant timestamptz, updated_at timestamp default now());
             insert into events select i, timestamp '2024-03-31' + i * interval '13 min', timestamptz '2024-11-03 00:00+00' + i * interval '7 min'
             from generate_series(1, 1000) i",
        )
        .await;
    let pipeline = Pipeline::new(&source.url(), &target.url(), &["public.events: { cursor: updated_at }"]);
    pipeline.ok(&["run"]);
    source.run("update events set local = local + interval '1 s', updated_at = now() where id % 7 = 0").await;
    pipeline.ok(&["run"]);
    // Text of the same session zone on both sides.
    let events = "select id, local, instant at time zone 'UTC', updated_at from events";
    assert_same(&source, &target, events).await;
    fixture::judge_by_three(&pipeline.location("public", "events"), &source.url(), "select * from events");
}
