//! What the owner of a branch said of it outlives our commits.

use super::upkeep::EAGER;
use super::*;

#[tokio::test]
async fn a_branch_keeps_what_was_said_of_its_retention() {
    let mut history = History::new(TableMode::Merge).await;
    let first = history.upsert(&[(1, Some(1))]).await;
    let retention = SnapshotRetention::branch(Some(7), Some(86_400_000), None);
    let update = TableUpdate::SetSnapshotRef {
        ref_name: MAIN_BRANCH.to_owned(),
        reference: SnapshotReference::new(first.0, retention),
    };
    let table = &history.table;
    history.table.table = table.catalog.commit(&table.table, Vec::new(), vec![update]).await.unwrap();
    let kept = |history: &History| {
        let refs = history.table.refs();
        let main = refs.into_iter().find(|it| it.name == MAIN_BRANCH).unwrap();
        (Some(main.snapshot) == history.table.current(), main.keep_snapshots, main.keep_snapshots_for)
    };
    let expected = (true, Some(7), Some(std::time::Duration::from_secs(86_400)));
    assert_eq!(kept(&history), expected);
    history.upsert(&[(1, Some(2)), (2, Some(2))]).await;
    assert_eq!(kept(&history), expected);
    history.maintain(EAGER).await;
    assert_eq!(history.files().await, (1, 0));
    assert_eq!(kept(&history), expected);
    history.table.roll_back(first).await.unwrap();
    assert_eq!(kept(&history), expected);
}
