//! What else may move a table meanwhile: other branches, names, a second runner, a clock that is wrong.

use std::time::Duration;

use super::upkeep::{EAGER, NOTHING};
use super::*;
use crate::lake::{Retention, Wanted};

impl History {
    /// A change that a second runner commits aside: on a branch of its own.
    async fn aside(&self, key: i64) {
        let mut other = self.table.clone();
        other.reload().await.unwrap();
        let files = self.write(&[(key, None)]).await;
        let from = other.position().unwrap().map(|position| position.watermark);
        let to = Watermark::new(format!("aside {key}"));
        let change = Change { files, effect: Effect::Upsert, from, to, summary: BTreeMap::new() };
        other.commit_aside(change, budget()).await.unwrap();
    }
}

/// Each snapshot of a table takes a number of its own, on whatever branch.
#[tokio::test]
async fn a_commit_on_another_branch_is_no_conflict() {
    for version in [FormatVersion::V2, FormatVersion::V3] {
        let mut history = History::new(TableMode::Merge).await;
        history.table.raise_format(version).await.unwrap();
        history.upsert(&[(1, Some(1))]).await;
        history.aside(7).await;
        history.upsert(&[(2, Some(2)), (1, Some(11))]).await;
        history.aside(8).await;
        history.upsert(&[(3, Some(3))]).await;
        let expected = Model::from([(1, Some(11)), (2, Some(2)), (3, Some(3))]);
        assert_eq!(history.read(None).await, expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_on_another_branch_during_a_swap_is_no_conflict() {
    let mut history = History::new(TableMode::Merge).await;
    history.upsert(&[(1, Some(1)), (9, None)]).await;
    history.upsert(&[(2, Some(2)), (1, Some(11))]).await;
    let mut table = history.table.clone();
    let plans = table.plan_rewrites(EAGER).await.unwrap();
    let history = Arc::new(history);
    let (runtime, other) = (tokio::runtime::Handle::current(), history.clone());
    let once = std::sync::Once::new();
    // Between what the swap was prepared on and the swap itself.
    let meanwhile = move || {
        once.call_once(|| {
            let (runtime, other) = (runtime.clone(), other.clone());
            std::thread::spawn(move || runtime.block_on(other.aside(7))).join().unwrap();
        });
    };
    fail::cfg_callback("before_swap", meanwhile).unwrap();
    let rewritten = table.rewrite(&plans[0], budget()).await.unwrap();
    fail::remove("before_swap");
    assert_eq!((rewritten.files_before, rewritten.files_after), (2, 1));
    assert!(table.refs().iter().any(|it| it.name == "frazil_audit"));
    assert_eq!(table.commits_since_maintenance(), 0);
    let expected = Model::from([(1, Some(11)), (2, Some(2)), (9, None)]);
    assert_eq!(history.read(None).await, expected);
    let mut newest = history.table.clone();
    newest.reload().await.unwrap();
    assert_eq!(newest.current(), table.current());
}

#[tokio::test]
async fn a_tag_that_is_set_while_its_snapshot_expires_keeps_it() {
    let mut history = History::new(TableMode::Merge).await;
    let first = history.upsert(&[(1, Some(1))]).await;
    let second = history.upsert(&[(2, Some(2))]).await;
    history.upsert(&[(3, Some(3))]).await;
    let mut expiring = history.table.clone();
    history.table.tag("audited", second, None).await.unwrap();
    let expired = expiring.expire(NOTHING, Utc::now() + chrono::TimeDelta::seconds(5)).await.unwrap();
    assert_eq!((expired.snapshots, expiring.named("audited")), (1, Some(second)));
    history.table.reload().await.unwrap();
    assert_eq!(history.read(Some(second)).await, Model::from([(1, Some(1)), (2, Some(2))]));
    assert!(history.table.provider(Some(first)).await.is_err(), "the first has expired");
}

/// Both saw the table without the column; the second finds it there when it looks again.
#[tokio::test]
async fn two_runners_that_evolve_one_table_agree() {
    let mut history = History::new(TableMode::Merge).await;
    history.upsert(&[(1, Some(1))]).await;
    let with = |names: &[&str]| {
        let mut fields = columns().fields().to_vec();
        fields.extend(names.iter().map(|name| Arc::new(Field::new(*name, DataType::Int32, true))));
        Arc::new(Schema::new(fields))
    };
    let mut other = history.table.clone();
    let (one, two) = (with(&["a"]), with(&["a", "b"]));
    let ours = history.table.evolution(&Wanted::columns(&one)).unwrap();
    let theirs = other.evolution(&Wanted::columns(&two)).unwrap();
    history.table.evolve(&ours).await.unwrap();
    assert_eq!(other.evolve(&theirs).await.unwrap_err().kind(), ErrorKind::Conflict);
    other.reload().await.unwrap();
    let theirs = other.evolution(&Wanted::columns(&two)).unwrap();
    assert_eq!(theirs.steps.len(), 1, "only `b` is new: {:?}", theirs.steps);
    other.evolve(&theirs).await.unwrap();
    // The first goes on with the columns it knows: of no use any more.
    let files = history.write(&[(2, Some(2))]).await;
    let change = Change {
        files,
        effect: Effect::Upsert,
        from: Some(Watermark::new("1")),
        to: Watermark::new("2"),
        summary: BTreeMap::new(),
    };
    let error = history.table.commit(change, budget()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    history.table.reload().await.unwrap();
    history.upsert(&[(2, Some(2))]).await;
    let names: Vec<_> = history.table.schema().unwrap().fields().iter().map(|it| it.name().clone()).collect();
    assert_eq!(names, ["note", "id", "v", "a", "b"]);
    assert_eq!(history.read(None).await, Model::from([(1, Some(1)), (2, Some(2))]));
}

/// The table was written by a machine whose clock is an hour ahead of ours.
#[tokio::test]
async fn a_clock_that_runs_backwards_stops_no_rows() {
    const HOUR: i64 = 3_600_000;
    let mut history = History::new(TableMode::Merge).await;
    let first = history.upsert(&[(1, Some(1))]).await;
    let second = history.upsert(&[(2, Some(2))]).await;
    let newest = history.table.table.metadata_location().unwrap().trim_start_matches("file://").to_owned();
    let mut metadata: serde_json::Value = serde_json::from_slice(&std::fs::read(&newest).unwrap()).unwrap();
    let ahead = |value: &mut serde_json::Value| *value = (value.as_i64().unwrap() + HOUR).into();
    ahead(&mut metadata["last-updated-ms"]);
    for (list, of) in [("snapshots", "timestamp-ms"), ("snapshot-log", "timestamp-ms")] {
        metadata[list].as_array_mut().unwrap().iter_mut().for_each(|entry| ahead(&mut entry[of]));
    }
    std::fs::write(&newest, metadata.to_string()).unwrap();
    history.table.reload().await.unwrap();

    // What adds no snapshot is dated by the clock of who does it: after what is newest, all the same.
    let newest = history.table.table.metadata().last_updated_ms();
    history.table.tag("early", first, None).await.unwrap();
    assert!((newest + 1..newest + HOUR).contains(&history.table.table.metadata().last_updated_ms()));
    assert_eq!(history.table.named("early"), Some(first));
    let third = history.upsert(&[(1, Some(11))]).await;
    history.maintain(EAGER).await;
    let times: Vec<_> = history.table.snapshots().iter().rev().map(|it| it.committed_at).collect();
    assert!(times.is_sorted_by(|a, b| a < b) && times.len() > 3, "{times:?}");
    let at = |snapshot: SnapshotId| {
        history.table.snapshots().into_iter().find(|it| it.id == snapshot).unwrap().committed_at
    };
    assert_eq!(history.table.snapshot_at(at(second)), Some(second));
    assert_eq!(history.table.snapshot_at(at(third)), Some(third));
    assert_eq!(history.delta(Some(second), third).await, [(1, Some(Some(11)))]);
    // By our clock nothing is old yet.
    let retention = Retention { keep_for: Some(Duration::from_secs(60)), ..NOTHING };
    let kept = history.table.expire(Retention { at_most: None, ..retention }, Utc::now()).await.unwrap();
    assert_eq!(kept.snapshots, 0);
    assert_eq!(history.read(None).await, Model::from([(1, Some(11)), (2, Some(2))]));
}
