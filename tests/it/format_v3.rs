//! Format version 3 by the program itself: from Postgres through the lake into Postgres, judged by
//! readers that are not ours.

use crate::fixture::{self, Pipeline};
use crate::sync::{assert_same, change_orders, seed_orders, two_databases};

const ORDERS: &str = "select id, customer, amount, note, updated_at from orders";

/// From the first row on in version 3: changes, a new column with a default, the judges after each.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_in_version_3_arrives_whole() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "v3_whole").await;
    seed_orders(&source, 3_000).await;
    let pipeline = Pipeline::new(&source.url(), &target.url(), &["public.orders: { format_version: 3 }"]);
    pipeline.ok(&["run"]);
    for round in 1..=3 {
        change_orders(&source, round).await;
        pipeline.ok(&["run"]);
        assert_same(&source, &target, ORDERS).await;
        fixture::judge(&pipeline.location("public", "orders"), &source.url(), ORDERS);
    }
    // Rows that are there get a value without being touched: no cursor tells of it.
    source
        .run(
            "alter table orders add column state text default 'it''s new', add column weight numeric(8,3) default 1.25,
                 add column seen date default '2020-02-03', add column ok boolean default true",
        )
        .await;
    change_orders(&source, 4).await;
    let said = pipeline.ok(&["run"]);
    assert!(
        said.stderr.contains("older rows have the source's default in column `state`"),
        "{}",
        said.stderr
    );
    let all = "select id, customer, amount, note, updated_at, state, weight, seen, ok from orders";
    assert_same(&source, &target, all).await;
    fixture::judge(&pipeline.location("public", "orders"), &source.url(), all);
    let rows = pipeline.ok(&["query", "select count(*) n, count(distinct _row_id) ids from \"orders$rows\""]);
    let expected = source.text("select count(*)::text from orders").await;
    assert_eq!(rows.stdout.matches(&expected).count(), 2, "{}", rows.stdout);
}

/// Raised in the middle of its life, and not taken back.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_raised_to_version_3() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "v3_raised").await;
    seed_orders(&source, 1_000).await;
    let (from, to) = (source.url(), target.url());
    let pipeline = Pipeline::new(&from, &to, &["public.orders: {}"]);
    pipeline.ok(&["run"]);
    change_orders(&source, 1).await;
    pipeline.ok(&["sync"]);
    pipeline.rewrite(&from, &to, &Default::default(), &["public.orders: { format_version: 3 }"]);
    change_orders(&source, 2).await;
    let said = pipeline.ok(&["run"]);
    assert!(said.stderr.contains("raised to format version 3"), "{}", said.stderr);
    change_orders(&source, 3).await;
    pipeline.ok(&["run"]);
    assert_same(&source, &target, ORDERS).await;
    fixture::judge(&pipeline.location("public", "orders"), &from, ORDERS);

    pipeline.rewrite(&from, &to, &Default::default(), &["public.orders: { format_version: 2 }"]);
    let refused = pipeline.run(&["run"]);
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("there is no way back to 2"), "{}", refused.stderr);
    pipeline.rewrite(&from, &to, &Default::default(), &["public.orders: {}"]);
    pipeline.ok(&["run"]);
}

/// Small files and deletion vectors are cleaned up, and every row stays the row that it was.
#[tokio::test(flavor = "multi_thread")]
async fn files_of_version_3_are_rewritten_and_rows_keep_their_ids() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "v3_maintained").await;
    seed_orders(&source, 5_000).await;
    let pipeline = Pipeline::new(&source.url(), &target.url(), &["public.orders: { format_version: 3 }"]);
    let lineage = || {
        pipeline.ok(&[
            "query",
            "select id, _row_id, _last_updated_sequence_number from \"orders$rows\" order by id",
            "--output",
            "csv",
        ])
    };
    let files = || {
        let counted = "select count(*) from \"orders$files\" where content ";
        [" = 'data'", " <> 'data'"].map(|kind| pipeline.ok(&["query", &format!("{counted}{kind}")]).stdout)
    };
    pipeline.ok(&["run"]);
    for round in 1..=6 {
        change_orders(&source, round).await;
        pipeline.ok(&["run"]);
    }
    let (before, many) = (lineage().stdout, files());
    pipeline.ok(&["maintain"]);
    assert_eq!(lineage().stdout, before);
    assert_ne!(files(), many, "nothing was rewritten");
    fixture::judge(&pipeline.location("public", "orders"), &source.url(), ORDERS);
    // On top of rewritten files, with vectors of rows in them.
    change_orders(&source, 7).await;
    pipeline.ok(&["run"]);
    assert_same(&source, &target, ORDERS).await;
    fixture::judge(&pipeline.location("public", "orders"), &source.url(), ORDERS);
}
