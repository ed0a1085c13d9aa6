//! The memory budget: what the process really takes, when what it moves does not fit.
//!
//! Measured is anonymous memory (`RssAnon`): the program's own code, large in a debug build, is mapped
//! from its file and no part of a budget for rows.

use std::time::Duration;

use crate::fixture::{self, Pipeline};
use crate::sync::{assert_same, two_databases};
use crate::tds::{Engine, Server};

/// The smallest budget that there is.
const BUDGET: &str = "128MiB";
/// The same in kB, as the system counts.
const CEILING: u64 = 128 << 10;

/// Runs to the end, and says how much memory was taken at most, in kB.
async fn peak(pipeline: &Pipeline, arguments: &[&str]) -> u64 {
    let mut child = pipeline.start(arguments);
    let mut peak = 0;
    loop {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let taken = anonymous.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        peak = peak.max(taken.unwrap_or(0));
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{arguments:?}: {status}");
            return peak;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_change_of_most_of_a_large_table_stays_within_the_budget() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "memory").await;
    // 300 bytes a row, in an order that is not that of the key.
    source
        .run(
            "create table big (id bigint primary key, note text, updated_at timestamptz default now());
             insert into big select i::bigint * 7919 % 500009, repeat(md5(i::text), 9) from generate_series(1, 500008) i;
             create index on big (updated_at);
             analyze big",
        )
        .await;
    let pipeline = Pipeline::new(&source.url(), &target.url(), &["public.big: { cursor: updated_at }"]);
    let first = peak(&pipeline, &["run", "--memory", BUDGET]).await;
    source.run("update big set note = note || 'x', updated_at = clock_timestamp() where id % 10 < 8").await;
    let extract = peak(&pipeline, &["sync", "--memory", BUDGET]).await;
    let load = peak(&pipeline, &["load", "--memory", BUDGET]).await;
    eprintln!("kB of memory: first run {first}, extract {extract}, load {load}");
    assert_same(&source, &target, "select id, length(note), left(note, 9) from big where id % 100 < 9").await;
    for taken in [first, extract, load] {
        assert!(taken < CEILING, "{taken} kB of memory, the budget is {CEILING} kB");
    }
}

/// A value has to be held whole, in several forms at once: as it comes, as a column, as a page. That is
/// some of them at a time, and never all.
#[tokio::test]
async fn large_values_are_held_one_by_one() {
    const VALUES: u64 = 12;
    const VALUE: u64 = 32 << 10;
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "large").await;
    source
        .run(&format!(
            "create table pictures (id int primary key, picture bytea, updated_at timestamptz default now());
             alter table pictures alter picture set storage external;
             insert into pictures select i, decode(repeat(md5(i::text), {}), 'hex') from generate_series(1, {VALUES}) i",
            VALUE * 1024 / 16
        ))
        .await;
    let pipeline = Pipeline::new(&source.url(), &target.url(), &["public.pictures: { cursor: updated_at }"]);
    let extract = peak(&pipeline, &["sync"]).await;
    let load = peak(&pipeline, &["load"]).await;
    eprintln!("kB of memory: extract {extract}, load {load}");
    assert_same(&source, &target, "select id, length(picture), md5(picture) from pictures").await;
    assert!(extract < 8 * VALUE + CEILING, "{extract} kB of memory for values of {VALUE} kB");
}

#[tokio::test]
async fn a_whole_read_whose_fingerprints_do_not_fit_stays_within_the_budget() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "comparison").await;
    // At 23 bytes a row, 1.46 million fingerprints fit the half of what 128 MiB leave for rows.
    source
        .run(
            "create table many (id bigint primary key, n bigint, note text);
             insert into many select i, i % 97, md5(i::text) from generate_series(1, 1500000) i;
             analyze many",
        )
        .await;
    let pipeline = Pipeline::new(&source.url(), &target.url(), &["public.many: { change: full }"]);
    pipeline.ok(&["sync", "--memory", BUDGET]);
    let files = pipeline.parquet_files().len();
    let unchanged = peak(&pipeline, &["sync", "--memory", BUDGET]).await;
    assert_eq!(pipeline.parquet_files().len(), files, "nothing changed, and what was staged is gone");
    source.run("update many set n = -n where id % 100 = 1; delete from many where id % 100 = 2").await;
    let changed = peak(&pipeline, &["sync", "--memory", BUDGET]).await;
    eprintln!("kB of memory: unchanged {unchanged}, changed {changed}");
    let sums = "select count(*) as rows, sum(n) as n, sum(id) as id from many";
    let lake = pipeline.ok(&["query", "--output", "csv", sums]).stdout;
    let here = source.text("select concat_ws(',', count(*), sum(n), sum(id)) from many").await;
    assert_eq!(lake, format!("rows,n,id\n{here}\n"));
    for taken in [unchanged, changed] {
        assert!(taken < CEILING, "{taken} kB of memory, the budget is {CEILING} kB");
    }
}

/// Rows of a bulk load are held until their chunk is sent: a chunk, and not the table.
#[tokio::test(flavor = "multi_thread")]
async fn a_load_into_sql_server_stays_within_the_budget() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("shop.db");
    let shop = rusqlite::Connection::open(&file).unwrap();
    // 80 MB of text.
    shop.execute_batch(
        "create table big (id integer primary key, note text);
         with recursive n(id) as (select 1 union all select id + 1 from n where id < 20000)
         insert into big select id, id || hex(zeroblob(2000)) from n",
    )
    .unwrap();
    let engine = Engine::new();
    let server = Server::with_engine(&engine);
    let pipeline = Pipeline::new(
        &format!("sqlite://{}", file.display()),
        &server.url(),
        &["main.big: { change: full }"],
    );
    pipeline.ok(&["sync"]);
    let load = peak(&pipeline, &["load", "--memory", BUDGET]).await;
    eprintln!("kB of memory: load {load}");
    let loaded = "SELECT COUNT_BIG(*) AS rows_there, MAX(t.[note]) AS longest FROM [dbo].[big] AS t";
    let longest: String = shop.query_row("select max(note) from big", [], |row| row.get(0)).unwrap();
    assert!(engine.run(loaded) == [format!("20000|{longest}")]);
    assert!(load < CEILING, "{load} kB of memory, the budget is {CEILING} kB");
}
