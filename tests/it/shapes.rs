//! Tables that change their shape in Postgres: the lake follows by the column's own id, and the target
//! by what the lake says. Rows that were there keep their values.

use expect_test::expect;

use crate::fixture::{self, Pipeline};
use crate::sync::{assert_same, seed_orders, two_databases};

/// The fields of a lake table: id, name and type, in order.
fn fields(pipeline: &Pipeline) -> String {
    let folder = std::path::PathBuf::from(pipeline.location("public", "orders")).join("metadata");
    let file = |version: u32| folder.join(format!("v{version}.metadata.json"));
    let newest = (1..).take_while(|version| file(*version).exists()).last().unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&std::fs::read(file(newest)).unwrap()).unwrap();
    let schemas = metadata["schemas"].as_array().unwrap();
    let current = schemas.iter().find(|schema| schema["schema-id"] == metadata["current-schema-id"]).unwrap();
    let fields = current["fields"].as_array().unwrap().iter();
    let of = |field: &serde_json::Value| {
        let of = &field["type"];
        of.as_str().or_else(|| of["type"].as_str()).unwrap().to_owned()
    };
    let text: Vec<_> = fields
        .map(|field| format!("{} {} {}", field["id"], field["name"].as_str().unwrap(), of(field)))
        .collect();
    text.join("; ")
}

#[tokio::test]
async fn columns_that_are_added_renamed_and_widened_follow() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "shapes").await;
    seed_orders(&source, 300).await;
    source.run("alter table orders add column rate real default 0.1").await;
    let pipeline = Pipeline::new(&source.url(), &target.url(), &["public.orders: { cursor: updated_at }"]);
    pipeline.ok(&["run"]);
    expect![["1 id long; 2 customer int; 3 amount decimal(12, 2); 4 note string; 5 updated_at timestamptz; 6 rate float"]]
        .assert_eq(&fields(&pipeline));

    // Only a few rows change with it: the others have to keep what they had under the old name.
    source
        .run(
            "alter table orders rename column note to remark;
             alter table orders add column tags text[];
             update orders set remark = 'new', tags = '{a,null}', updated_at = now() where id <= 5",
        )
        .await;
    pipeline.ok(&["run"]);
    expect![["1 id long; 2 customer int; 3 amount decimal(12, 2); 4 remark string; 5 updated_at timestamptz; 6 rate float; 7 tags list"]]
        .assert_eq(&fields(&pipeline));
    assert_same(&source, &target, "select * from orders").await;
    let columns = "select string_agg(attname || ' ' || format_type(atttypid, atttypmod), ', ' order by attname) from pg_attribute
                   where attrelid = 'orders'::regclass and attnum > 0 and not attisdropped";
    assert_eq!(target.text(columns).await, source.text(columns).await);

    // Wider types, and a name that goes from one column to another.
    source
        .run(
            "alter table orders alter customer type bigint, alter amount type numeric(18,2), alter rate type double precision;
             alter table orders rename column remark to note;
             alter table orders rename column customer to buyer;
             update orders set buyer = 9000000000, amount = 1234567890123456.78, updated_at = now() where id = 7",
        )
        .await;
    pipeline.ok(&["run"]);
    expect![["1 id long; 2 buyer long; 3 amount decimal(18, 2); 4 note string; 5 updated_at timestamptz; 6 rate double; 7 tags list"]]
        .assert_eq(&fields(&pipeline));
    assert_same(&source, &target, "select * from orders").await;
    assert_eq!(target.text(columns).await, source.text(columns).await);
    // Rows that no pass has touched since are read from files that know the old names and types.
    let sums = "select count(*), sum(buyer), sum(amount), count(note) from public.orders";
    let expected = source.text(sums).await.replace(" | ", ",");
    let found = pipeline.ok(&["query", sums, "--output", "csv"]).stdout;
    assert_eq!(found.lines().last(), Some(expected.as_str()), "{found}");
    let idle = pipeline.ok(&["run", "--output", "json"]);
    assert!(idle.stdout.contains("nothing_to_do"), "{idle:?}");
}
