//! Bad input through the program: what it says, word for word, and how it ends. Never a panic, never a
//! secret, and nothing lost: once the cause is gone, the next run completes.

use std::fs;
use std::path::PathBuf;

use expect_test::{Expect, expect};

use crate::fixture::{self, Database, Pipeline, Postgres};
use crate::sync::{assert_same, change_orders, seed_orders, two_databases};

const STREAM: &str = "public.orders: { cursor: updated_at }";

/// What a run says is wrong, each thing once, and its exit code.
fn said(pipeline: &Pipeline, pg: &Postgres, names: &[(&str, &str)]) -> String {
    let ran = pipeline.run(&["run"]);
    let mut lines: Vec<String> = Vec::new();
    for line in ran.stdout.lines().chain(ran.stderr.lines()) {
        let line = line.trim().to_owned();
        if (line.starts_with("error:") || line.starts_with("hint:")) && !lines.contains(&line) {
            lines.push(line);
        }
    }
    for hidden in ["panicked", fixture::PASSWORD, "bug in frazil", "wr0ng"] {
        assert!(!format!("{ran:?}").contains(hidden), "{hidden} shows: {ran:?}");
    }
    let code = ran.code.map_or("by a signal".to_owned(), |code| code.to_string());
    let mut text = format!("{}\nexit {code}\n", lines.join("\n"));
    text = text.replace(&pipeline.folder().display().to_string(), "HERE");
    text = text.replace(&pg.port().to_string(), "PORT");
    for (name, shown) in names {
        text = text.replace(name, shown);
    }
    text
}

/// A table, where it goes, and a run between the two that can be spoiled.
struct Case {
    pg: Postgres,
    source: Database,
    target: Database,
    pipeline: Pipeline,
}

impl Case {
    async fn new(name: &str) -> Option<Self> {
        let pg = fixture::postgres().await?;
        let (source, target) = two_databases(&pg, name).await;
        seed_orders(&source, 50).await;
        let pipeline = Pipeline::new(&source.url(), &target.url(), &[STREAM]);
        Some(Self { pg, source, target, pipeline })
    }

    fn names(&self) -> [(&str, &str); 2] {
        [(self.source.name(), "SOURCE"), (self.target.name(), "TARGET")]
    }

    fn says(&self, expected: Expect) {
        expected.assert_eq(&said(&self.pipeline, &self.pg, &self.names()));
    }

    async fn heals(&self) {
        change_orders(&self.source, 3).await;
        self.pipeline.ok(&["run"]);
        assert_same(&self.source, &self.target, "select * from orders").await;
    }

    /// The newest metadata file of the lake table.
    fn metadata(&self) -> PathBuf {
        let folder = PathBuf::from(self.pipeline.location("public", "orders")).join("metadata");
        let file = |version: u32| folder.join(format!("v{version}.metadata.json"));
        file((1..).take_while(|version| file(*version).exists()).last().unwrap())
    }
}

#[tokio::test]
async fn metadata_that_is_damaged_or_of_a_newer_version() {
    let Some(case) = Case::new("metadata").await else { return };
    case.pipeline.ok(&["run"]);
    let file = case.metadata();
    let good = fs::read_to_string(&file).unwrap();
    fs::write(&file, &good[..good.len() / 3]).unwrap();
    case.says(expect![[r#"
        error: the table's metadata file is damaged (file: file://HERE/lake/public/orders/metadata/v3.metadata.json, table: public.orders)
        hint: restore it from a backup, or delete it to go back to v2: the rows it added are then read again
        exit 1
    "#]]);
    fs::write(&file, "").unwrap();
    case.says(expect![[r#"
        error: the table's metadata file is damaged (file: file://HERE/lake/public/orders/metadata/v3.metadata.json, table: public.orders)
        hint: restore it from a backup, or delete it to go back to v2: the rows it added are then read again
        exit 1
    "#]]);
    let unknown = good.replace("\"format-version\":2", "\"format-version\":9");
    assert_ne!(unknown, good);
    fs::write(&file, unknown).unwrap();
    case.says(expect![[r#"
        error: the table was written by a newer version (file: file://HERE/lake/public/orders/metadata/v3.metadata.json, format-version: 9, table: public.orders)
        hint: upgrade frazil; nothing was changed
        exit 1
    "#]]);
    let newer = good.replace("\"frazil.format\":\"1\"", "\"frazil.format\":\"99\"");
    assert_ne!(newer, good);
    fs::write(&file, newer).unwrap();
    case.says(expect![[r#"
        error: the table was written by a newer version (file: file://HERE/lake/public/orders/metadata/v3.metadata.json, frazil.format: 99, table: public.orders)
        hint: upgrade frazil; nothing was changed
        exit 1
    "#]]);
    fs::write(&file, good).unwrap();
    case.heals().await;
}

#[tokio::test]
async fn a_manifest_list_that_is_cut_short_or_gone() {
    let Some(case) = Case::new("files").await else { return };
    case.pipeline.ok(&["run"]);
    change_orders(&case.source, 1).await;
    case.pipeline.ok(&["sync"]);
    let metadata: serde_json::Value = serde_json::from_slice(&fs::read(case.metadata()).unwrap()).unwrap();
    let current = metadata["snapshots"]
        .as_array()
        .unwrap()
        .iter()
        .find(|snapshot| snapshot["snapshot-id"] == metadata["current-snapshot-id"]);
    let list = current.unwrap()["manifest-list"].as_str().unwrap().replace("file://", "");
    let name = list.rsplit('/').next().unwrap();
    let names = [case.names().as_slice(), &[(name, "LIST")]].concat();
    let good = fs::read(&list).unwrap();
    fs::write(&list, &good[..good.len() / 2]).unwrap();
    expect![[r#"
        error: the table's metadata is not valid: Failure in conversion with avro (file: file://HERE/lake/public/orders/metadata/LIST, table: public.orders)
        hint: restore it from a backup or an older version of the bucket; else query or roll back to a snapshot that does not need it
        exit 1
    "#]]
    .assert_eq(&said(&case.pipeline, &case.pg, &names));
    fs::remove_file(&list).unwrap();
    expect![[r#"
        error: cannot read a file: a file is missing (file: file://HERE/lake/public/orders/metadata/LIST, table: public.orders)
        hint: restore it from a backup or an older version of the bucket; else query or roll back to a snapshot that does not need it
        exit 1
    "#]].assert_eq(&said(&case.pipeline, &case.pg, &names));
    fs::write(&list, good).unwrap();
    case.heals().await;
}

#[tokio::test]
async fn a_type_that_changes_into_another() {
    let Some(case) = Case::new("retyped").await else { return };
    case.source.run("update orders set note = id::text").await;
    case.pipeline.ok(&["run"]);
    case.source
        .run("alter table orders alter note type int using note::int; update orders set updated_at = now()")
        .await;
    case.says(expect![[r#"
        error: the type changed from string to int, which is not a widening (column: note, table: public.orders)
        hint: to go on without the new values, set `schema: discard_value` or `discard_row`; to keep them, give the column another name in the source, or write to a new `lake_table`
        exit 1
    "#]]);
    case.source.run("alter table orders alter note type text; update orders set updated_at = now()").await;
    case.heals().await;
}

#[tokio::test]
async fn a_target_table_of_another_shape() {
    let Some(case) = Case::new("shape").await else { return };
    case.target
        .run("create table orders (id uuid primary key, customer int, amount text, extra int not null)")
        .await;
    case.says(expect![[r#"
        error: the target table has another shape: column `id` is uuid there and bigint in the stream; column `amount` is text there and numeric(12,2) in the stream; column `extra` needs a value and the stream has none for it (table: public.orders, connection: dwh)
        hint: to make it fit, if its data allow: ALTER TABLE "public"."orders" ALTER COLUMN "id" TYPE bigint USING "id"::bigint; ALTER TABLE "public"."orders" ALTER COLUMN "amount" TYPE numeric(12,2) USING "amount"::numeric(12,2); ALTER TABLE "public"."orders" ALTER COLUMN "extra" DROP NOT NULL
        exit 1
    "#]]);
    case.target.run("drop table orders; create view orders as select 1 as id").await;
    case.says(expect![[r#"
        error: the target is a view, which cannot be loaded (table: public.orders, connection: dwh)
        hint: load into another table, or rename this one away
        exit 2
    "#]]);
    case.target.run("drop view orders").await;
    case.heals().await;
}

#[tokio::test]
async fn rights_that_are_missing() {
    let Some(case) = Case::new("rights").await else { return };
    let role = fixture::unique("lowly");
    case.source.run(&format!("create role {role} login password '{}'", fixture::PASSWORD)).await;
    let lowly = |db: &Database| db.url().replacen("frazil:", &format!("{role}:"), 1);
    let names = [case.names().as_slice(), &[(role.as_str(), "LOWLY")]].concat();
    let check = |pipeline: &Pipeline, expected: Expect| {
        expected.assert_eq(&said(pipeline, &case.pg, &names));
    };

    let unread = Pipeline::new(&lowly(&case.source), &case.target.url(), &[STREAM]);
    check(
        &unread,
        expect![[r#"
        error: permission denied for table orders (sqlstate: 42501, table: public.orders, connection: shop)
        hint: run `GRANT SELECT ON orders TO <user>` (a target needs INSERT, UPDATE, DELETE too)
        exit 1
    "#]],
    );
    case.source.run(&format!("grant select (id, updated_at) on orders to {role}")).await;
    check(
        &unread,
        expect![[r#"
        error: permission denied for table orders (sqlstate: 42501, table: public.orders, connection: shop)
        hint: run `GRANT SELECT ON orders TO <user>` (a target needs INSERT, UPDATE, DELETE too)
        exit 1
    "#]],
    );
    let unwritten = Pipeline::new(&case.source.url(), &lowly(&case.target), &[STREAM]);
    check(
        &unwritten,
        expect![[r#"
        error: permission denied for schema public (sqlstate: 42501, table: public.orders, connection: dwh)
        hint: run `GRANT USAGE ON SCHEMA public TO <user>` (a target needs CREATE too)
        exit 1
    "#]],
    );
    let staging = ["public.orders: { cursor: updated_at, target: dwh.staging }"];
    check(
        &Pipeline::new(&case.source.url(), &lowly(&case.target), &staging),
        expect![[r#"
        error: the schema does not exist, and this user may not create it (table: staging.orders, connection: dwh)
        hint: run `CREATE SCHEMA "staging"` and grant CREATE on it
        exit 1
    "#]],
    );

    case.source.run(&format!("grant select on orders to {role}")).await;
    let database = case.target.name();
    case.target
        .run(&format!(
            "grant create on schema public to {role}; grant temporary on database \"{database}\" to {role}"
        ))
        .await;
    Pipeline::new(&lowly(&case.source), &lowly(&case.target), &[STREAM]).ok(&["run"]);
    assert_same(&case.source, &case.target, "select * from orders").await;
    case.source.run(&format!("drop owned by {role}")).await;
    case.target.run(&format!("drop owned by {role}; drop role {role}")).await;
}

#[tokio::test]
async fn a_wrong_address_or_column() {
    let Some(case) = Case::new("address").await else { return };
    let (from, to) = (case.source.url(), case.target.url());
    let check = |from: &str, to: &str, stream: &str, expected: Expect| {
        expected.assert_eq(&said(&Pipeline::new(from, to, &[stream]), &case.pg, &case.names()));
    };
    check(
        &from.replace(fixture::PASSWORD, "wr0ng-password"),
        &to,
        STREAM,
        expect![[r#"
        error: password authentication failed for user "frazil" (sqlstate: 28P01, connection: shop, host: 127.0.0.1:PORT)
        hint: check user and password of the connection
        exit 1
    "#]],
    );
    check(
        &from,
        &to.replace(fixture::PASSWORD, "wr0ng-password"),
        STREAM,
        expect![[r#"
        error: password authentication failed for user "frazil" (sqlstate: 28P01, connection: dwh, host: 127.0.0.1:PORT)
        hint: check user and password of the connection
        exit 1
    "#]],
    );
    check(
        &from.replace("127.0.0.1", "no-such-host.invalid"),
        &to,
        STREAM,
        expect![[r#"
        error: the host is not known (connection: shop, host: no-such-host.invalid:PORT)
        hint: check its name in the connection's URL (failed to lookup address information: Name or service not known)
        exit 2
    "#]],
    );
    check(
        &from.replace(case.source.name(), "no_such_database"),
        &to,
        STREAM,
        expect![[r#"
        error: database "no_such_database" does not exist (sqlstate: 3D000, connection: shop, host: 127.0.0.1:PORT)
        hint: check the database name at the end of the URL
        exit 2
    "#]],
    );
    check(
        &from,
        &to,
        "public.orders: { cursor: updated }",
        expect![[r#"
        error: column does not exist (column: updated, table: public.orders, connection: shop)
        hint: did you mean `updated_at`?
        exit 2
    "#]],
    );
    check(
        &from,
        &to,
        "public.order: {}",
        expect![[r#"
        error: table does not exist (table: public.order)
        hint: did you mean `public.orders`?
        exit 2
    "#]],
    );
    check(
        &from,
        &to,
        "public.orders: { cursor: note }",
        expect![[r#"
        error: a column of type text cannot be a cursor (column: note, table: public.orders, connection: shop)
        hint: candidates are `id`, `updated_at`
        exit 2
    "#]],
    );
    check(
        &from,
        &to,
        "public.orders: { primary_key: [nr] }",
        expect![[r#"
        error: key column does not exist (table: public.orders, column: nr)
        hint: set `primary_key` to columns of the table, and list them in `columns` too
        exit 2
    "#]],
    );
}
