//! What happens when a catalog fails, at every point where it can.

mod fake;
mod overtaken;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use expect_test::{Expect, expect};
use iceberg::spec::{
    MAIN_BRANCH, NestedField, Operation, PrimitiveType, Schema, Snapshot, SnapshotReference,
    SnapshotRetention, StructType, Summary, Type,
};
use iceberg::table::Table;
use iceberg::{TableCreation, TableRequirement, TableUpdate};
use serde_json::json;

use super::client::Pace;
use super::*;
use fake::{Fake, Fault};

/// Fast, and over soon.
const PACE: Pace = Pace {
    pause: Duration::from_millis(5),
    longest: Duration::from_millis(20),
    give_up: Duration::from_millis(400),
    request: Duration::from_secs(20),
};

async fn open(fake: &Fake, said: &[(&str, &str)]) -> Result<Rest> {
    open_with(fake, said, &[]).await
}

/// A catalog that has its configuration, with options of its own and of the stores.
async fn open_with(fake: &Fake, said: &[(&str, &str)], store: &[(&str, &str)]) -> Result<Rest> {
    let map = |of: &[(&str, &str)]| of.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let url = format!("http://127.0.0.1:{}", fake.port);
    let settings = CatalogSettings { options: map(said), ..url.as_str().into() };
    let catalog = Rest::new(&settings, "lake", Arc::new(Stores::new(map(store))))?;
    let catalog = Rest { pace: PACE, ..catalog };
    catalog.open().await?;
    Ok(catalog)
}

fn id() -> TableId {
    TableId::new("shop", "orders")
}

fn creation() -> TableCreation {
    let int = |id, name| Arc::new(NestedField::optional(id, name, Type::Primitive(PrimitiveType::Int)));
    let inner = Type::Struct(StructType::new(vec![int(3, "x")]));
    let fields = vec![int(1, "id"), Arc::new(NestedField::optional(2, "s", inner)), int(4, "z")];
    let schema = Schema::builder().with_fields(fields).build().unwrap();
    TableCreation::builder().name("orders".into()).schema(schema).build()
}

/// A commit as the engine makes them: one snapshot, on the state that was seen.
fn snapshot(table: &Table, id: i64) -> (Vec<TableRequirement>, Vec<TableUpdate>) {
    let metadata = table.metadata();
    let parent = metadata.current_snapshot_id();
    let snapshot = Snapshot::builder()
        .with_snapshot_id(id)
        .with_parent_snapshot_id(parent)
        .with_sequence_number(metadata.next_sequence_number())
        .with_timestamp_ms(metadata.last_updated_ms() + 1)
        .with_manifest_list("file:///list.avro")
        .with_summary(Summary { operation: Operation::Append, additional_properties: HashMap::new() })
        .with_schema_id(metadata.current_schema_id())
        .build();
    let reference = SnapshotReference::new(id, SnapshotRetention::branch(None, None, None));
    let requirements = vec![
        TableRequirement::UuidMatch { uuid: metadata.uuid() },
        TableRequirement::RefSnapshotIdMatch { r#ref: MAIN_BRANCH.into(), snapshot_id: parent },
    ];
    let updates = vec![
        TableUpdate::AddSnapshot { snapshot },
        TableUpdate::SetSnapshotRef { ref_name: MAIN_BRANCH.into(), reference },
    ];
    (requirements, updates)
}

fn property(name: &str, value: &str) -> TableUpdate {
    TableUpdate::SetProperties { updates: HashMap::from([(name.to_owned(), value.to_owned())]) }
}

/// Commits snapshot 7 while the request goes wrong: what was asked, and what came of it. Several faults
/// are several tries; what is the same for all is shown once.
async fn check(faults: impl IntoIterator<Item = Option<Fault>>, expected: Expect) {
    let mut outcomes = Vec::new();
    for fault in faults {
        let outcome = commit_with(fault).await;
        if !outcomes.contains(&outcome) {
            outcomes.push(outcome);
        }
    }
    expected.assert_eq(&outcomes.concat());
}

async fn commit_with(fault: Option<Fault>) -> String {
    let fake = Fake::start().await;
    let catalog = open(&fake, &[]).await.unwrap();
    let table = catalog.create(&id(), creation()).await.unwrap();
    let (requirements, updates) = snapshot(&table, 7);
    if let Some(fault) = fault {
        fake.fault(POST, fault);
    }
    fake.log();
    let outcome = match catalog.commit(&table, requirements, updates).await {
        Ok(moved) => format!("committed: {:?}", moved.metadata().current_snapshot_id()),
        Err(error) => format!("{}: {error}", error.kind()),
    };
    let log = fake.log().replace("/v1/namespaces/shop/tables/orders", "…").replace("?snapshots=all", "");
    let there = fake.state.lock().unwrap().tables.values().next().unwrap().current_snapshot_id();
    format!("{log}\n{outcome}, there: {there:?}\n")
}

const POST: &str = "POST /orders";
const LOAD: &str = "GET /orders";

#[tokio::test]
async fn a_commit_is_one_request() {
    let expected = expect![[r#"
        POST …
        committed: Some(7), there: Some(7)
    "#]];
    check([None], expected).await;
}

#[tokio::test]
async fn a_commit_that_landed_before_the_server_failed_is_not_made_twice() {
    let faults = [
        Fault::DoneButSays(500),
        Fault::DoneButSays(502),
        Fault::DoneButSays(504),
        Fault::DoneButSilent,
        Fault::DoneButGarbled,
    ];
    let expected = expect![[r#"
        POST …
        GET …
        committed: Some(7), there: Some(7)
    "#]];
    check(faults.map(Some), expected).await;
}

#[tokio::test]
async fn a_commit_that_the_server_failed_before_is_sent_again() {
    let faults =
        [Fault::Says(500, ""), Fault::Says(503, ""), Fault::Silent, Fault::Says(429, "retry-after: 0\r\n")];
    let expected = expect![[r#"
        POST …
        GET …
        POST …
        committed: Some(7), there: Some(7)
    "#]];
    check(faults.map(Some), expected).await;
}

#[tokio::test]
async fn a_catalog_that_asks_for_too_much_patience_is_not_waited_for() {
    let expected = expect![[r#"
        POST …
        GET …
        transient: cannot commit a table: the catalog is asked too often: no (status: 429), there: None
    "#]];
    check([Some(Fault::Says(429, "retry-after: 3600\r\n"))], expected).await;
}

#[tokio::test]
async fn a_refusal_is_final() {
    let expected = expect![[r#"
        POST …
        GET …
        config: cannot commit a table: the catalog did not accept the request: no (status: 400), there: None
        POST …
        permission: cannot commit a table: the catalog refused access: no (status: 403), there: None
        POST …
        unsupported: cannot commit a table: the catalog cannot do that: no (status: 406), there: None
    "#]];
    check([400, 403, 406].map(|status| Some(Fault::Says(status, ""))), expected).await;
}

/// One commit, and one kind of trouble after the other.
#[tokio::test]
async fn a_commit_outlasts_a_catalog_in_all_kinds_of_trouble() {
    let fake = Fake::start().await;
    let catalog = open(&fake, &[("credential", "me:secret")]).await.unwrap();
    let table = catalog.create(&id(), creation()).await.unwrap();
    let (requirements, updates) = snapshot(&table, 7);
    for (status, header) in [(401, ""), (409, ""), (429, "retry-after: 0\r\n"), (500, "")] {
        fake.fault(POST, Fault::Says(status, header));
    }
    fake.log();
    let moved = catalog.commit(&table, requirements, updates).await.unwrap();
    assert_eq!(moved.metadata().current_snapshot_id(), Some(7));
    expect![[r#"
        POST /v1/namespaces/shop/tables/orders as token1
        POST /v1/oauth/tokens
        POST /v1/namespaces/shop/tables/orders as token2
        GET /v1/namespaces/shop/tables/orders?snapshots=all as token2
        POST /v1/namespaces/shop/tables/orders as token2
        GET /v1/namespaces/shop/tables/orders?snapshots=all as token2
        POST /v1/namespaces/shop/tables/orders as token2
        GET /v1/namespaces/shop/tables/orders?snapshots=all as token2
        POST /v1/namespaces/shop/tables/orders as token2"#]]
    .assert_eq(&fake.log());
    let there = fake.state.lock().unwrap().tables.values().next().unwrap().snapshots().count();
    assert_eq!(there, 1, "made once");
}

#[tokio::test]
async fn a_metadata_change_of_others_in_between_does_not_hurt() {
    let expected = expect![[r#"
        POST …
        committed: Some(7), there: Some(7)
    "#]];
    check([Some(Fault::After(vec![property("owner", "ann")]))], expected).await;
    // A server that says conflict for it all the same is asked again.
    let expected = expect![[r#"
        POST …
        GET …
        POST …
        committed: Some(7), there: Some(7)
    "#]];
    check([Some(Fault::Says(409, ""))], expected).await;
}

#[tokio::test]
async fn a_snapshot_of_others_in_between_is_a_conflict() {
    let fake = Fake::start().await;
    let catalog = open(&fake, &[]).await.unwrap();
    let table = catalog.create(&id(), creation()).await.unwrap();
    let (_, theirs) = snapshot(&table, 6);
    let expected = expect![[r#"
        POST …
        GET …
        conflict: the table was changed by someone else: Requirement failed: Branch or tag `main` already exists, there: Some(6)
    "#]];
    check([Some(Fault::After(theirs))], expected).await;
}

#[tokio::test]
async fn an_outcome_that_stays_unknown_says_so() {
    // More of both than there is time for.
    let faults = [(POST, Fault::Says(500, "")), (LOAD, Fault::Says(503, ""))];
    let faults = faults.into_iter().flat_map(|fault| std::iter::repeat_n(fault, 200));
    let fake = Fake::start().await;
    let catalog = open(&fake, &[]).await.unwrap();
    let table = catalog.create(&id(), creation()).await.unwrap();
    let (requirements, updates) = snapshot(&table, 7);
    for (request, fault) in faults {
        fake.fault(request, fault);
    }
    let error = catalog.commit(&table, requirements, updates).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Transient);
    assert_eq!(error.message(), "whether the catalog made the commit is not known");
}

/// A change without a snapshot has no id to be known by: what it asks for is compared.
#[tokio::test]
async fn a_property_that_landed_before_the_server_failed_is_seen() {
    let fake = Fake::start().await;
    let catalog = open(&fake, &[]).await.unwrap();
    let table = catalog.create(&id(), creation()).await.unwrap();
    fake.log();
    fake.fault(POST, Fault::DoneButSays(500));
    let moved = catalog.commit(&table, vec![], vec![property("owner", "ann")]).await.unwrap();
    assert_eq!(moved.metadata().properties()["owner"], "ann");
    assert_eq!(fake.log().lines().filter(|line| line.starts_with("POST")).count(), 1);
}

#[tokio::test]
async fn a_table_is_made_once_whatever_the_answer() {
    for fault in [
        Fault::DoneButSays(500),
        Fault::DoneButSilent,
        Fault::DoneButGarbled,
        Fault::Silent,
        Fault::Says(503, "retry-after: 0\r\n"),
    ] {
        let fake = Fake::start().await;
        let catalog = open(&fake, &[]).await.unwrap();
        catalog.open().await.unwrap().server.create_namespace(&["shop".to_owned()]).await.unwrap();
        fake.fault("POST /tables", fault);
        let made = catalog.create(&id(), creation()).await.unwrap();
        assert_eq!(made.metadata().location(), "file:///namespaces/shop/tables/orders");
        assert_eq!(catalog.tables().await.unwrap(), [id()]);
    }
}

#[tokio::test]
async fn a_namespace_that_others_are_making_is_waited_for() {
    let fake = Fake::start().await;
    let catalog = open(&fake, &[]).await.unwrap();
    for _ in 0..3 {
        fake.fault("POST /tables", Fault::Says(404, ""));
    }
    catalog.create(&id(), creation()).await.unwrap();
    assert_eq!(catalog.tables().await.unwrap(), [id()]);
}

#[tokio::test]
async fn a_table_that_was_there_is_not_taken_for_new() {
    for forgiving in [false, true] {
        let fake = Fake::start().await;
        fake.state.lock().unwrap().forgiving = forgiving;
        let catalog = open(&fake, &[]).await.unwrap();
        let first = catalog.create(&id(), creation()).await.unwrap();
        let error = catalog.create(&id(), creation()).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.message()),
            (ErrorKind::Conflict, "another runner made the table first")
        );
        assert_eq!(catalog.load(&id()).await.unwrap().unwrap().metadata().uuid(), first.metadata().uuid());
    }
}

#[tokio::test]
async fn a_token_is_got_once_and_renewed_when_it_is_refused_or_ends() {
    let fake = Fake::start().await;
    let login = [("credential", "me:secret")];
    let catalog = open(&fake, &login).await.unwrap();
    catalog.load(&id()).await.unwrap();
    expect![[r#"
        POST /v1/oauth/tokens
        GET /v1/config?warehouse=lake as token1
        GET /v1/namespaces/shop/tables/orders?snapshots=all as token1"#]]
    .assert_eq(&fake.log());

    // Somebody else's login made ours worthless.
    fake.state.lock().unwrap().logins = Some(5);
    catalog.load(&id()).await.unwrap();
    expect![[r#"
        GET /v1/namespaces/shop/tables/orders?snapshots=all as token1
        POST /v1/oauth/tokens
        GET /v1/namespaces/shop/tables/orders?snapshots=all as token6"#]]
    .assert_eq(&fake.log());

    // 419 is the protocol's own word for it.
    fake.fault(LOAD, Fault::Says(419, ""));
    catalog.load(&id()).await.unwrap();
    expect![[r#"
        GET /v1/namespaces/shop/tables/orders?snapshots=all as token6
        POST /v1/oauth/tokens
        GET /v1/namespaces/shop/tables/orders?snapshots=all as token7"#]]
    .assert_eq(&fake.log());

    // A login server that is busy is asked again.
    fake.state.lock().unwrap().logins = Some(8);
    fake.fault("POST /tokens", Fault::Says(503, ""));
    catalog.load(&id()).await.unwrap();
    fake.log();

    // A token that lives for no time is renewed before it is used again.
    fake.state.lock().unwrap().token_life = Some(0);
    let catalog = open(&fake, &login).await.unwrap();
    catalog.load(&id()).await.unwrap();
    expect![[r#"
        POST /v1/oauth/tokens
        GET /v1/config?warehouse=lake as token10
        POST /v1/oauth/tokens
        GET /v1/namespaces/shop/tables/orders?snapshots=all as token11"#]]
    .assert_eq(&fake.log());
}

#[tokio::test]
async fn a_login_that_is_refused_tells_no_secret() {
    let fake = Fake::start().await;
    fake.fault("POST /tokens", Fault::Says(401, ""));
    let error = open(&fake, &[("credential", "me:hunter2")]).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Permission);
    assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");

    fake.state.lock().unwrap().logins = Some(9);
    let error = open(&fake, &[("token", "hunter3")]).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Permission);
    assert!(!format!("{error:?}").contains("hunter3"), "{error:?}");
}

#[tokio::test]
async fn reads_outlast_a_busy_server_and_name_one_that_is_none() {
    let fake = Fake::start().await;
    let catalog = open(&fake, &[]).await.unwrap();
    for fault in
        [Fault::Says(429, "retry-after: 0\r\n"), Fault::Says(500, ""), Fault::Says(503, ""), Fault::Silent]
    {
        fake.fault(LOAD, fault);
    }
    assert!(catalog.load(&id()).await.unwrap().is_none());
    fake.fault("GET /config", Fault::DoneButGarbled);
    let error = open(&fake, &[]).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.hint_text().unwrap().contains("address of an Iceberg REST catalog"), "{error:?}");
}

#[tokio::test]
async fn all_pages_are_read_and_the_prefix_and_headers_of_the_server_are_used() {
    let fake = Fake::start().await;
    fake.state.lock().unwrap().page = 2;
    let catalog = open(&fake, &[]).await.unwrap();
    for name in ["a", "b", "c", "d", "e"] {
        catalog.create(&TableId::new("shop", name), creation()).await.unwrap();
    }
    for name in ["n1", "n2", "n3"] {
        catalog.create(&TableId::new(name, "t"), creation()).await.unwrap();
    }
    let all = catalog.tables().await.unwrap();
    let all: Vec<String> = all.iter().map(ToString::to_string).collect();
    assert_eq!(all, ["n1.t", "n2.t", "n3.t", "shop.a", "shop.b", "shop.c", "shop.d", "shop.e"]);

    fake.state.lock().unwrap().overrides = json!({"prefix": "ws/one%2Ftwo", "namespace-separator": "%2E"});
    let catalog = open(&fake, &[]).await.unwrap();
    fake.log();
    let _ = catalog.load(&TableId::new("a.b", "größe")).await;
    expect!["GET /v1/ws/one%2Ftwo/namespaces/a%2Eb/tables/gr%C3%B6%C3%9Fe?snapshots=all"]
        .assert_eq(&fake.log());
}

/// Credentials that the catalog vends are used for the table's files, and renewed before they end.
#[tokio::test]
async fn vended_credentials_are_renewed_before_they_end() {
    use object_store::ObjectStoreExt;
    for endpoint in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let fake = Fake::start().await;
        let place = format!("file://{}/", folder.path().display());
        let vend = |life: i64| {
            let ends = (chrono::Utc::now().timestamp_millis() + life).to_string();
            json!([{"prefix": place, "config": {
                "s3.access-key-id": "key", "s3.secret-access-key": "hidden", "s3.session-token": "hidden",
                "s3.session-token-expires-at-ms": ends,
            }}])
        };
        if endpoint {
            fake.state.lock().unwrap().endpoints =
                json!(["GET /v1/{prefix}/namespaces/{namespace}/tables/{table}/credentials"]);
        }
        let catalog = open(&fake, &[]).await.unwrap();
        catalog.create(&id(), creation()).await.unwrap();
        fake.state.lock().unwrap().storage_credentials = vend(500);
        catalog.load(&id()).await.unwrap();
        fake.log();
        let (store, path) = catalog.stores.resolve(&format!("{place}file")).unwrap();
        store.put(&path, "x".into()).await.unwrap();
        assert_eq!(fake.log(), "", "they are good for half a second");

        tokio::time::sleep(Duration::from_millis(510)).await;
        fake.state.lock().unwrap().storage_credentials = vend(3_600_000);
        store.get(&path).await.unwrap();
        store.get(&path).await.unwrap();
        let asked = fake.log();
        let end = if endpoint { "orders/credentials" } else { "orders?snapshots=all" };
        assert_eq!(asked, format!("GET /v1/namespaces/shop/tables/{end}"), "once");
    }
}

#[tokio::test]
async fn a_catalog_that_signs_requests_itself_is_refused() {
    let fake = Fake::start().await;
    let catalog = open(&fake, &[]).await.unwrap();
    catalog.create(&id(), creation()).await.unwrap();
    fake.state.lock().unwrap().config = json!({"s3.remote-signing-enabled": "true"});
    let error = catalog.load(&id()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let said = [("s3.access-key-id", "k"), ("s3.secret-access-key", "s")];
    let own = open_with(&fake, &[], &said).await.unwrap();
    assert!(own.load(&id()).await.unwrap().is_some(), "our own credentials need no signature of others");
}

#[tokio::test]
async fn a_table_is_dropped_and_renamed_once_whatever_the_answer() {
    let to = TableId::new("archive", "old_orders");
    for fault in [None, Some(Fault::DoneButSays(500)), Some(Fault::DoneButSilent), Some(Fault::Silent)] {
        let fake = Fake::start().await;
        let catalog = open(&fake, &[]).await.unwrap();
        let made = catalog.create(&id(), creation()).await.unwrap();
        if let Some(fault) = fault.clone() {
            fake.fault("POST /rename", fault);
        }
        catalog.rename_table(&id(), &to).await.unwrap();
        assert_eq!(catalog.tables().await.unwrap(), std::slice::from_ref(&to));
        assert_eq!(catalog.load(&to).await.unwrap().unwrap().metadata().uuid(), made.metadata().uuid());
        let error = catalog.rename_table(&id(), &to).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);

        catalog.create(&id(), creation()).await.unwrap();
        let error = catalog.rename_table(&id(), &to).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);

        if let Some(fault) = fault {
            fake.fault("DELETE /old_orders", fault);
        }
        assert!(catalog.drop_table(&to).await.unwrap());
        assert!(!catalog.drop_table(&to).await.unwrap());
        assert_eq!(catalog.tables().await.unwrap(), [id()]);
    }
}
