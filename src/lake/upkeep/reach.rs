//! Which files snapshots need, and deleting those that none needs.

use std::collections::{BTreeMap, HashMap};

use futures::{StreamExt, TryStreamExt};
use iceberg::spec::{ManifestFile, SnapshotRef};
use iceberg::table::Table;
use object_store::path::Path;

use super::super::manifest;
use super::super::storage::{Stores, iceberg_error, store_error};
use crate::error::Result;

/// Manifest lists and manifests read at once: they are many and small.
const READS_AT_ONCE: usize = 16;

/// The manifests of some snapshots, by path.
pub(super) async fn manifests(
    table: &Table,
    snapshots: &[SnapshotRef],
) -> Result<BTreeMap<String, ManifestFile>> {
    let reads: Vec<_> = snapshots.iter().map(|snapshot| manifest::manifests(table, snapshot)).collect();
    let mut lists = futures::stream::iter(reads).buffer_unordered(READS_AT_ONCE);
    let mut manifests = BTreeMap::new();
    while let Some(list) = lists.try_next().await? {
        manifests.extend(list.into_iter().map(|manifest| (manifest.manifest_path.clone(), manifest)));
    }
    Ok(manifests)
}

/// Calls `visit` with the path of every file that the manifests hold, live or not; and whether it is.
pub(super) async fn files(
    table: &Table,
    manifests: impl Iterator<Item = &ManifestFile>,
    mut visit: impl FnMut(&str, bool),
) -> Result<()> {
    let reads: Vec<_> = manifests
        .map(|manifest| async move { manifest.load_manifest(table.file_io()).await.map_err(iceberg_error) })
        .collect();
    let mut loaded = futures::stream::iter(reads).buffer_unordered(READS_AT_ONCE);
    while let Some(manifest) = loaded.try_next().await? {
        for entry in manifest.entries() {
            visit(entry.data_file().file_path(), entry.is_alive());
        }
    }
    Ok(())
}

/// Deletes files, and says how many went. One that is gone already counts; one that cannot be deleted
/// stays as a file that no snapshot mentions.
pub(super) async fn delete(stores: &Stores, locations: Vec<String>) -> Result<usize> {
    let mut by_store: HashMap<String, Vec<String>> = HashMap::new();
    for location in locations {
        let store = location.split_once("://").map_or("", |(scheme, rest)| {
            &location[..scheme.len() + 3 + rest.find('/').unwrap_or(rest.len())]
        });
        by_store.entry(store.to_owned()).or_default().push(location);
    }
    let mut gone = 0;
    for locations in by_store.into_values() {
        let Some(first) = locations.first() else { continue };
        let (store, _) = stores.resolve(first)?;
        let paths: Vec<object_store::Result<Path>> = locations
            .iter()
            .filter_map(|location| stores.resolve(location).ok())
            .map(|(_, path)| Ok(path))
            .collect();
        let mut outcomes = store.delete_stream(futures::stream::iter(paths).boxed());
        while let Some(outcome) = outcomes.next().await {
            match outcome {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => gone += 1,
                Err(source) => {
                    let error = store_error("delete a file", first, source);
                    tracing::debug!(%error, "a file that nobody needs was not deleted");
                }
            }
        }
    }
    Ok(gone)
}
