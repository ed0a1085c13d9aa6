//! Whose database it is notices nothing: limits are kept, nobody waits for our locks, replicas are
//! preferred where that is asked for.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::fixture::{self, Database, Pipeline, Replica};
use crate::sync::{assert_same, two_databases};

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A pipeline whose source has limits.
fn limited(source: &str, target: &str, limits: &str, streams: &[&str]) -> Pipeline {
    let pipeline = Pipeline::new(source, target, streams);
    set_limits(&pipeline, source, limits);
    pipeline
}

fn set_limits(pipeline: &Pipeline, source: &str, limits: &str) {
    let file = pipeline.folder().join("frazil.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    let shop = format!("  shop: {{ url: '{source}', limits: {{ {limits} }} }}\n");
    assert!(text.contains(&format!("  shop: {source}\n")), "{text}");
    std::fs::write(&file, text.replace(&format!("  shop: {source}\n"), &shop)).unwrap();
}

async fn seed(source: &Database, rows: u32) {
    source
        .run(&format!(
            "create table orders (id int primary key, note text, at timestamptz not null default now());
             create index on orders (at);
             insert into orders (id, note) select i, repeat('x', 20) from generate_series(1, {rows}) i;
             create table others as select * from orders; alter table others add primary key (id);
             analyze"
        ))
        .await;
}

/// Starts a run; what it says goes to a file.
fn start(pipeline: &Pipeline, arguments: &[&str]) -> Child {
    let log = std::fs::File::create(pipeline.folder().join("log")).unwrap();
    let mut command: Command = pipeline.command(arguments);
    command.stdout(Stdio::null()).stderr(log).spawn().unwrap()
}

async fn ended(child: &mut Child) -> Option<i32> {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        assert!(began.elapsed() < PATIENCE, "it does not end");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The locks on tables of the source that sessions of ours hold.
async fn locks(source: &Database) -> Vec<String> {
    source
        .rows(
            "select distinct l.mode from pg_locks l join pg_stat_activity a using (pid)
             where l.locktype = 'relation' and a.application_name like 'frazil%' and l.relation = 'orders'::regclass",
        )
        .await
}

async fn until_reading(source: &Database) {
    let began = Instant::now();
    while locks(source).await.is_empty() {
        assert!(began.elapsed() < PATIENCE, "nobody reads");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn rows_come_no_faster_than_they_may() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "rate").await;
    seed(&source, 4000).await;
    let streams = ["public.orders: { cursor: at }", "public.others: { cursor: at }"];
    let pipeline = limited(&source.url(), &target.url(), "rows_per_second: 2000", &streams);
    let began = Instant::now();
    pipeline.ok(&["run"]);
    // 8,000 rows of both together, of which the first second's worth passes at once.
    assert!(began.elapsed() >= Duration::from_secs(3), "{:?}", began.elapsed());
    assert_same(&source, &target, "select id, note from orders").await;
    assert_same(&source, &target, "select id, note from others").await;
}

#[tokio::test]
async fn no_more_sessions_read_than_may() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "places").await;
    seed(&source, 3000).await;
    let streams = ["public.orders: { cursor: at, lag: 1h }", "public.others: { cursor: at }"];
    let limits = "connections: 1, rows_per_second: 3000";
    let pipeline = limited(&source.url(), &target.url(), limits, &streams);
    let mut run = start(&pipeline, &["run", "--parallel", "2"]);
    let sessions = "select count(*) from pg_stat_activity where datname = current_database() and application_name like 'frazil%'";
    let mut most = 0;
    while run.try_wait().unwrap().is_none() {
        most = most.max(source.text(sessions).await.parse::<u32>().unwrap());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(ended(&mut run).await, Some(0));
    assert_eq!(most, 1, "sessions at once");
    // Comparisons and repairs take the same place, one after the other.
    source.run("delete from orders where id = 7; update orders set note = 'late', at = now() - interval '2h' where id = 8").await;
    pipeline.ok(&["compare", "--repair"]);
    assert_same(&source, &target, "select id, note from others").await;
    pipeline.ok(&["run"]);
    assert_same(&source, &target, "select id, note from orders").await;
}

/// While a long read goes on, the application updates, vacuums, builds indexes; and who alters the table
/// waits for moments only.
#[tokio::test]
async fn a_long_read_blocks_nobody() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "gives_way").await;
    seed(&source, 30_000).await;
    let pipeline =
        limited(&source.url(), &target.url(), "rows_per_second: 1000", &["public.orders: { cursor: at }"]);
    let mut run = start(&pipeline, &["sync"]);
    until_reading(&source).await;
    let application = source.client().await;
    application
        .batch_execute(
            "set statement_timeout = '20s';
             update orders set note = 'meanwhile' where id % 100 = 0;
             create index on orders (note)",
        )
        .await
        .unwrap();
    application.batch_execute("vacuum orders").await.unwrap();
    assert_eq!(locks(&source).await, ["AccessShareLock"]);
    application.batch_execute("alter table orders add column more int; truncate others").await.unwrap();
    assert_eq!(ended(&mut run).await, Some(1));
    let log = std::fs::read_to_string(pipeline.folder().join("log")).unwrap();
    assert!(log.contains("gave way to a session that waits for a lock on the table"), "{log}");
    let unlimited = Pipeline::new(&source.url(), &target.url(), &["public.orders: { cursor: at }"]);
    unlimited.ok(&["run"]);
    assert_same(&source, &target, "select id, note, more from orders").await;
}

#[tokio::test]
async fn reading_pauses_while_sessions_wait_for_locks() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "strain").await;
    seed(&source, 100).await;
    let pipeline =
        limited(&source.url(), &target.url(), "waiting_sessions: 1", &["public.orders: { cursor: at }"]);
    let (holder, waiter) = (source.client().await, source.client().await);
    holder.batch_execute("begin; select 1 from others where id = 1 for update").await.unwrap();
    let waiting = tokio::spawn(async move {
        waiter.batch_execute("update others set note = 'x' where id = 1").await.unwrap();
    });
    let waits = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    while source.text(waits).await != "1" {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut run = start(&pipeline, &["run"]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(run.try_wait().unwrap().is_none(), "it reads although somebody waits");
    holder.batch_execute("rollback").await.unwrap();
    waiting.await.unwrap();
    assert_eq!(ended(&mut run).await, Some(0));
    assert_same(&source, &target, "select id, note from orders").await;
}

#[tokio::test]
async fn a_replica_is_preferred_where_there_is_one() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "prefers").await;
    seed(&source, 100).await;
    let notes = |pipeline: &Pipeline| pipeline.json(&["run"]).remove(0)["extract"]["notes"].to_string();
    // There is none: the primary will do.
    let stream = ["public.orders: { cursor: at, lag: 1m }"];
    let url = |ports: &[u16]| {
        let hosts = vec!["127.0.0.1"; ports.len()].join(",");
        let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
        let at = source.url().replace(&format!("127.0.0.1:{}", pg.port()), "");
        format!("{at}?host={hosts}&port={}&target_session_attrs=prefer-standby", ports.join(","))
    };
    let pipeline = Pipeline::new(&url(&[pg.port()]), &target.url(), &stream);
    let said = notes(&pipeline);
    assert!(!said.contains("this is a replica"), "{said}");
    let Some(replica) = Replica::of(&pg) else { return };
    source.run("insert into orders (id, note, at) values (1001, 'new', now() - interval '10 seconds')").await;
    let there = replica.url(&source).await;
    let port = there.rsplit_once(':').and_then(|(_, rest)| rest.split('/').next()?.parse().ok()).unwrap();
    pipeline.rewrite(&url(&[pg.port(), port]), &target.url(), &Default::default(), &stream);
    let said = notes(&pipeline);
    assert!(said.contains("this is a replica"), "{said}");
}

#[tokio::test]
async fn a_statement_that_takes_longer_than_it_may_is_ended() {
    let Some(pg) = fixture::postgres().await else { return };
    let (source, target) = two_databases(&pg, "patience").await;
    // As slow as a statement over a large table.
    source
        .run("create view slow as select i as id, pg_sleep(600)::text as waited from generate_series(1, 2) i")
        .await;
    let stream = "public.slow: { change: full, primary_key: id }";
    let url = format!("{}?statement_timeout=1", source.url());
    let pipeline = Pipeline::new(&url, &target.url(), &[stream]);
    let began = Instant::now();
    let ended = pipeline.run(&["sync"]);
    assert_ne!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stderr.contains("statement timeout"), "{ended:?}");
    assert!(began.elapsed() < PATIENCE, "it was waited for");
    let running = "select count(*) from pg_stat_activity where datname = current_database() and query like '%slow%' and pid <> pg_backend_pid() and state = 'active'";
    let running: i64 = source.client().await.query_one(running, &[]).await.unwrap().get(0);
    assert_eq!(running, 0, "the server does not go on by itself");
}
