//! Maintenance changes no row: alone, beside writers, and when it is stopped half-way.

use std::time::Duration;

use super::*;
use crate::lake::upkeep::{Layout, Retention};

/// Everything is worth rewriting.
pub(super) const EAGER: Layout =
    Layout { file_bytes: None, small_files: 2, deleted_share: 0.01, delete_files: 2, sort: false };
/// Only the current snapshot stays, and what is needed.
pub(super) const NOTHING: Retention =
    Retention { keep_for: Some(Duration::ZERO), at_least: Some(1), at_most: Some(1) };

impl History {
    /// Plans on the table as it is now, and carries out whatever happens meanwhile.
    pub(super) async fn maintain(&mut self, layout: Layout) {
        let mut table = self.table.clone();
        for rewrite in table.plan_rewrites(layout).await.unwrap() {
            table.rewrite(&rewrite, budget()).await.unwrap();
        }
        table.merge_delete_files(layout).await.unwrap();
        self.table = table;
    }

    pub(super) async fn files(&self) -> (usize, usize) {
        let live = self.table.live_files(None).await.unwrap();
        (live.data.len(), live.deletes.len())
    }

    fn later(&self) -> DateTime<Utc> {
        // Snapshots of one moment are no older than it.
        Utc::now() + chrono::TimeDelta::seconds(5)
    }

    /// The files that lie in the table's directory.
    fn on_disk(&self) -> usize {
        let mut folders = vec![std::path::PathBuf::from(self.table.location().trim_start_matches("file://"))];
        let mut files = 0;
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap().flatten() {
                if entry.path().is_dir() { folders.push(entry.path()) } else { files += 1 }
            }
        }
        files
    }
}

#[tokio::test]
async fn small_files_and_deletes_become_one_file() {
    let mut history = History::new(TableMode::Merge).await;
    for round in 0..6 {
        history.upsert(&[(round, Some(round)), (100, Some(round))]).await;
    }
    assert_eq!(history.files().await, (6, 5));
    let before = history.read(None).await;
    let from = history.table.current();
    let position = history.table.position().unwrap();
    history.maintain(Layout::default()).await;
    assert_eq!(history.files().await, (1, 0));
    assert_eq!(history.read(None).await, before);
    assert_eq!(history.delta(from, history.table.current().unwrap()).await, []);
    assert_eq!(history.table.position().unwrap(), position);
    let newest = &history.table.snapshots()[0];
    assert_eq!(newest.operation, "replace");
    assert_eq!(newest.summary["total-data-files"], "1");
    assert_eq!(newest.summary["total-records"], "7");
    // Well kept: nothing more to do.
    assert!(history.table.plan_rewrites(Layout::default()).await.unwrap().is_empty());
}

#[tokio::test]
async fn deletes_that_came_meanwhile_are_carried_over() {
    let mut history = History::new(TableMode::Merge).await;
    for first in [0, 10, 20] {
        history.upsert(&(first..first + 10).map(|id| (id, Some(id))).collect::<Vec<_>>()).await;
    }
    history.delete(&[3, 11, 12]).await;
    let mut maintainer = history.table.clone();
    let plans = maintainer.plan_rewrites(EAGER).await.unwrap();
    // Before the first, between and after deleted rows, the last of all; and one that comes again.
    let from = history.upsert(&[(13, Some(-13))]).await;
    history.delete(&[0, 4, 19, 29]).await;
    let expected = history.read(None).await;
    let mut carried = 0;
    for plan in &plans {
        let rewritten = maintainer.rewrite(plan, budget()).await.unwrap();
        assert!(rewritten.snapshot.is_some());
        carried += rewritten.carried_deletes;
    }
    assert_eq!(carried, 5);
    history.table.reload().await.unwrap();
    assert_eq!(history.read(None).await, expected);
    let changes = history.delta(Some(from), history.table.current().unwrap()).await;
    assert_eq!(changes, [(0, None), (4, None), (19, None), (29, None)]);
}

#[tokio::test]
async fn a_sorted_rewrite_that_is_overtaken_is_given_up() {
    let layout = Layout { sort: true, ..EAGER };
    let mut history = History::new(TableMode::Merge).await;
    history.upsert(&[(3, Some(3)), (1, Some(1))]).await;
    history.upsert(&[(2, Some(2))]).await;
    let mut maintainer = history.table.clone();
    let plans = maintainer.plan_rewrites(layout).await.unwrap();
    history.delete(&[2]).await;
    let on_disk = history.on_disk();
    for plan in &plans {
        assert_eq!(maintainer.rewrite(plan, budget()).await.unwrap().snapshot, None);
    }
    assert_eq!(history.on_disk(), on_disk, "nothing is left of it");
    history.upsert(&[(2, Some(2))]).await;
    history.maintain(layout).await;
    assert_eq!(history.files().await, (1, 0));
    let rows = history.sql("select id from t").await;
    let places = ["| 1 ", "| 2 ", "| 3 "].map(|row| rows.find(row));
    assert!(places.is_sorted() && places[0].is_some(), "sorted by key: {rows}");
}

#[tokio::test]
async fn many_delete_files_become_one() {
    let mut history = History::new(TableMode::Merge).await;
    history.upsert(&(0..100).map(|id| (id, Some(id))).collect::<Vec<_>>()).await;
    for id in 0..12 {
        history.delete(&[id * 3]).await;
    }
    let before = history.read(None).await;
    assert_eq!(history.files().await, (1, 12));
    history.maintain(Layout::default()).await;
    assert_eq!(history.files().await, (1, 1));
    assert_eq!(history.read(None).await, before);
}

#[tokio::test]
async fn what_a_target_has_yet_to_read_does_not_expire() {
    let mut history = History::new(TableMode::Merge).await;
    history.upsert(&[(1, Some(1))]).await;
    let loaded = history.upsert(&[(2, Some(2))]).await;
    assert!(history.table.note_target("dwh/t", loaded, Utc::now()).await.unwrap());
    assert!(!history.table.note_target("dwh/t", loaded, Utc::now()).await.unwrap());
    let tagged = history.upsert(&[(1, Some(11))]).await;
    history.table.tag("audited", tagged, None).await.unwrap();
    let last = history.upsert(&[(3, Some(3))]).await;
    assert!(!history.table.note_target("dwh/t", last, Utc::now()).await.unwrap(), "written seldom");
    let expired = history.table.expire(NOTHING, history.later()).await.unwrap();
    assert_eq!((expired.snapshots, expired.held_by[0].name.as_str()), (1, "dwh/t"));
    assert_eq!(history.delta(Some(loaded), last).await, [(1, Some(Some(11))), (3, Some(Some(3)))]);

    history.table.forget_target("dwh/t").await.unwrap();
    history.maintain(EAGER).await;
    let expired = history.table.expire(NOTHING, history.later()).await.unwrap();
    assert_eq!((history.table.snapshots().len(), expired.held_by.len()), (2, 0));
    assert!(expired.files > 0);
    assert_eq!(history.read(None).await, Model::from([(1, Some(11)), (2, Some(2)), (3, Some(3))]));
    assert_eq!(history.read(Some(tagged)).await, Model::from([(1, Some(11)), (2, Some(2))]));
    assert!(history.table.position().unwrap().is_some());
    assert_eq!(history.table.orphans(Duration::ZERO, history.later()).await.unwrap().files, []);
}

#[tokio::test]
async fn orphans_are_found_once_they_are_old() {
    let mut history = History::new(TableMode::Merge).await;
    history.upsert(&[(1, Some(1))]).await;
    let lost = history.write(&[(2, Some(2))]).await;
    let young = history.table.orphans(crate::lake::ORPHAN_AGE, Utc::now()).await.unwrap();
    assert_eq!((young.files.len(), young.young), (0, 1));
    let found = history.table.orphans(Duration::ZERO, history.later()).await.unwrap();
    assert_eq!(found.files[0].path, lost[0].file.file_path());
    // It is committed after all, before anything is deleted.
    history.commit_files(lost, Effect::Upsert).await;
    assert_eq!(history.table.remove_orphans(found).await.unwrap(), 0);
    history.write(&[(3, Some(3))]).await;
    let found = history.table.orphans(Duration::ZERO, history.later()).await.unwrap();
    assert_eq!(history.table.remove_orphans(found).await.unwrap(), 1);
    assert_eq!(history.read(None).await, Model::from([(1, Some(1)), (2, Some(2))]));
}

#[tokio::test]
async fn health_says_what_is_wrong() {
    let mut history = History::new(TableMode::Merge).await;
    for round in 0..40 {
        history.upsert(&[(round % 7, Some(round)), (round, Some(round))]).await;
    }
    let before = history.table.health(Layout::default()).await.unwrap();
    assert_eq!((before.data_files, before.files_after), (40, 1));
    assert!(before.score < 90, "{before:?}");
    assert!(before.reasons[0].text.contains("rows in files are deleted"), "{before:?}");
    history.maintain(Layout::default()).await;
    let after = history.table.health(Layout::default()).await.unwrap();
    assert_eq!((after.data_files, after.delete_files, after.deleted_rows, after.score), (1, 0, 0, 100));
}

/// What happens to a table.
#[derive(Debug, Clone)]
enum Step {
    Upsert(Vec<(i64, Option<i64>)>),
    Delete(Vec<i64>),
    Maintain,
    /// The plan is made, then a writer comes first.
    MaintainBeside(Vec<(i64, Option<i64>)>),
    /// Stopped at a point of its own.
    MaintainCrash(bool),
    Expire(usize),
    /// A target takes over what has changed since it last did.
    Load,
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0..12_i64;
    let rows = prop::collection::vec((key.clone(), prop::option::of(0..100_i64)), 1..8);
    prop_oneof![
        6 => rows.clone().prop_map(Step::Upsert),
        3 => prop::collection::vec(key, 1..4).prop_map(Step::Delete),
        2 => Just(Step::Maintain),
        4 => rows.prop_map(Step::MaintainBeside),
        1 => any::<bool>().prop_map(Step::MaintainCrash),
        2 => (1..4_usize).prop_map(Step::Expire),
        3 => Just(Step::Load),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// The table is what was written to it, its past is what it was, and a target that follows it by
    /// deltas becomes the same.
    #[test]
    fn maintenance_changes_nothing(
        steps in prop::collection::vec(step(), 1..16),
        raise_at in prop::option::of(0..6_usize),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(maintained(&steps, raise_at));
    }
}

async fn maintained(steps: &[Step], raise_at: Option<usize>) {
    let mut history = History::new(TableMode::Merge).await;
    history.upsert(&[(0, None)]).await;
    let mut now = Model::from([(0, None)]);
    let (mut target, mut loaded): (Model, Option<SnapshotId>) = Default::default();
    let mut states: BTreeMap<i64, Model> = BTreeMap::new();
    for (number, step) in steps.iter().enumerate() {
        if raise_at == Some(number) {
            history.table.reload().await.unwrap();
            history.table.raise_format(FormatVersion::V3).await.unwrap();
        }
        match step {
            Step::Upsert(rows) => {
                now.extend(rows.iter().copied());
                history.upsert(rows).await;
            }
            Step::Delete(keys) => {
                // By hand, on what is there.
                history.table.reload().await.unwrap();
                now.retain(|key, _| !keys.contains(key));
                history.delete(keys).await;
            }
            Step::Maintain => history.maintain(EAGER).await,
            Step::MaintainBeside(rows) => {
                let mut maintainer = history.table.clone();
                maintainer.reload().await.unwrap();
                let plans = maintainer.plan_rewrites(EAGER).await.unwrap();
                now.extend(rows.iter().copied());
                history.upsert(rows).await;
                for plan in &plans {
                    maintainer.rewrite(plan, budget()).await.unwrap();
                }
                // The writer keeps the table as it knows it: its next commit finds out.
            }
            Step::MaintainCrash(before) => {
                let point = if *before { "before_swap" } else { "after_swap" };
                let _armed = fail::FailGuard::new(point, "return(error)").unwrap();
                let mut maintainer = history.table.clone();
                maintainer.reload().await.unwrap();
                for plan in maintainer.plan_rewrites(EAGER).await.unwrap() {
                    // One that is stopped after its swap has swapped: it can have taken along what
                    // the next was to rewrite, which then is given up and gets to no such point.
                    match maintainer.rewrite(&plan, budget()).await {
                        Err(error) => assert!(error.to_string().contains(point), "{error}"),
                        Ok(rewritten) => assert_eq!(rewritten, Rewritten::default()),
                    }
                }
            }
            Step::Expire(at_least) => {
                history.table.reload().await.unwrap();
                let retention = Retention { at_least: Some(*at_least), ..NOTHING };
                history.table.expire(retention, history.later()).await.unwrap();
                let orphans = history.table.orphans(Duration::ZERO, history.later()).await.unwrap();
                history.table.remove_orphans(orphans).await.unwrap();
            }
            Step::Load => {
                history.table.reload().await.unwrap();
                let current = history.table.current().unwrap();
                target = apply(&target, &history.delta(loaded, current).await);
                assert_eq!(target, now, "the target");
                loaded = Some(current);
                // As seldom as in life, but so that the note is not always new.
                let at = Utc::now() + chrono::TimeDelta::hours(2);
                history.table.note_target("t", current, at).await.unwrap();
            }
        }
        let mut newest = history.table.clone();
        newest.reload().await.unwrap();
        states.insert(newest.current().unwrap().0, now.clone());
        let stale = std::mem::replace(&mut history.table, newest);
        for snapshot in history.table.snapshots() {
            if let Some(state) = states.get(&snapshot.id.0) {
                assert_eq!(history.read(Some(snapshot.id)).await, *state, "after {step:?}");
            }
        }
        history.table = stale;
    }
}
