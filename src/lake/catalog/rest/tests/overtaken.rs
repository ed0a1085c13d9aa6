//! What overtakes a commit although all its requirements hold.

use super::*;

/// A commit on another branch takes the next number. Servers refuse ours then, by any status.
#[tokio::test]
async fn a_number_that_another_branch_took_is_a_conflict() {
    let fake = Fake::start().await;
    let catalog = open(&fake, &[]).await.unwrap();
    let table = catalog.create(&id(), creation()).await.unwrap();
    let (requirements, updates) = snapshot(&table, 5);
    let table = catalog.commit(&table, requirements, updates).await.unwrap();
    let (_, mut theirs) = snapshot(&table, 6);
    let reference = SnapshotReference::new(6, SnapshotRetention::branch(None, None, None));
    theirs[1] = TableUpdate::SetSnapshotRef { ref_name: "side".into(), reference };
    fake.fault(POST, Fault::After(theirs));
    // Some servers call it a bad request, as this one; others a conflict, or they fail.
    for status in [400, 409, 500] {
        let (requirements, updates) = snapshot(&table, 7);
        if status != 400 {
            fake.fault(POST, Fault::Says(status, ""));
        }
        let error = catalog.commit(&table, requirements, updates).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{status}: {error}");
        assert!(error.to_string().contains("another branch"), "{status}: {error}");
        assert_eq!(catalog.load(&id()).await.unwrap().unwrap().metadata().current_snapshot_id(), Some(5));
    }
}

/// Servers let a tag go with its snapshot, so it is looked for before.
#[tokio::test]
async fn a_tag_that_came_meanwhile_keeps_its_snapshot() {
    let fake = Fake::start().await;
    let catalog = open(&fake, &[]).await.unwrap();
    let mut table = catalog.create(&id(), creation()).await.unwrap();
    for number in [6, 7] {
        let (requirements, updates) = snapshot(&table, number);
        table = catalog.commit(&table, requirements, updates).await.unwrap();
    }
    let tag = SnapshotReference::new(6, SnapshotRetention::Tag { max_ref_age_ms: None });
    let tagged = TableUpdate::SetSnapshotRef { ref_name: "audited".into(), reference: tag };
    fake.fault(LOAD, Fault::After(vec![tagged]));
    let removal = || vec![TableUpdate::RemoveSnapshots { snapshot_ids: vec![6] }];
    let error = catalog.commit(&table, Vec::new(), removal()).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string().contains("got a name")),
        (ErrorKind::Conflict, true),
        "{error}"
    );
    let mut updates = removal();
    updates.insert(0, TableUpdate::RemoveSnapshotRef { ref_name: "audited".into() });
    let table = catalog.commit(&table, Vec::new(), updates).await.unwrap();
    assert!(table.metadata().snapshot_by_id(6).is_none());
}
