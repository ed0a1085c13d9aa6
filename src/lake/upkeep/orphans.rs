//! Files under a table that no snapshot mentions: of passes that crashed, of commits that lost.
//!
//! A file that is written and not yet committed looks the same, so only old ones count. Files are
//! listed first and the table is looked at afterwards: what was committed in between is mentioned.
//! What is not a kind of file that tables are made of is left alone.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use iceberg::spec::SnapshotRef;
use serde::Serialize;

use super::super::LakeTable;
use super::super::outbox::KIND as OUTBOX_KIND;
use super::super::storage::store_error;
use super::reach;
use crate::error::{Error, ErrorKind, Result};

/// Younger files may belong to a commit under way.
pub const ORPHAN_AGE: Duration = Duration::from_secs(3 * 24 * 3600);
/// A shorter time is refused, unless the caller insists: a pass may take this long.
pub const SMALLEST_ORPHAN_AGE: Duration = Duration::from_secs(3600);

/// The directories of a table, and the kinds of files that it has there.
const KINDS: [(&str, &[&str]); 2] = [
    ("data", &[".parquet", ".puffin", ".avro", ".orc", OUTBOX_KIND]),
    ("metadata", &[".avro", ".metadata.json", ".metadata.json.gz", ".puffin", ".stats"]),
];

/// A file that no snapshot mentions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Orphan {
    /// Where it is.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// When it was written.
    pub written_at: DateTime<Utc>,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Orphans {
    /// Old enough to go.
    pub files: Vec<Orphan>,
    /// How many may belong to a commit under way.
    pub young: usize,
    /// The state of the table that they are not mentioned in.
    #[serde(skip)]
    seen: Option<String>,
}

impl Orphans {
    /// Their size.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

impl LakeTable {
    /// Looks for files that no snapshot mentions and that are older than `age`. Moves `self` to the
    /// newest state.
    pub async fn orphans(&mut self, age: Duration, now: DateTime<Utc>) -> Result<Orphans> {
        self.find_orphans(age, now).await.map_err(|error| error.with("table", &self.id))
    }

    async fn find_orphans(&mut self, age: Duration, now: DateTime<Utc>) -> Result<Orphans> {
        let mut listed: BTreeMap<String, Orphan> = BTreeMap::new();
        for (directory, kinds) in KINDS {
            let location = format!("{}/{directory}", self.location());
            let (store, root) = self.stores.resolve(&location)?;
            let mut files = store.list(Some(&root));
            loop {
                let file = match files.try_next().await {
                    Ok(Some(file)) => file,
                    Ok(None) | Err(object_store::Error::NotFound { .. }) => break,
                    Err(source) => return Err(store_error("list a directory", &location, source)),
                };
                let Some(rest) = file.location.as_ref().strip_prefix(root.as_ref()) else { continue };
                if !kinds.iter().any(|kind| rest.ends_with(kind)) {
                    continue;
                }
                let path = format!("{location}{rest}");
                let orphan = Orphan { path, bytes: file.size, written_at: file.last_modified };
                listed.insert(file.location.as_ref().to_owned(), orphan);
            }
        }
        // Only now: whatever is committed by now is spared.
        self.reload().await?;
        self.spare_mentioned(&mut listed).await?;
        let cutoff = now - chrono::TimeDelta::from_std(age).unwrap_or(chrono::TimeDelta::MAX);
        let (old, young): (Vec<_>, Vec<_>) = listed.into_values().partition(|file| file.written_at <= cutoff);
        let seen = self.table.metadata_location().map(str::to_owned);
        Ok(Orphans { files: old, young: young.len(), seen })
    }

    /// Deletes what [`orphans`](Self::orphans) found, but for what has been committed since, and says how
    /// many files went.
    pub async fn remove_orphans(&mut self, orphans: Orphans) -> Result<usize> {
        let mut doomed = BTreeMap::new();
        for file in orphans.files {
            doomed.insert(self.stores.resolve(&file.path)?.1.as_ref().to_owned(), file);
        }
        self.reload().await?;
        if self.table.metadata_location() != orphans.seen.as_deref() {
            self.spare_mentioned(&mut doomed).await?;
        }
        let gone = reach::delete(&self.stores, doomed.into_values().map(|file| file.path).collect()).await;
        gone.map_err(|error| error.with("table", &self.id))
    }

    /// Takes out everything that the table mentions, by the path in its store.
    async fn spare_mentioned(&self, listed: &mut BTreeMap<String, Orphan>) -> Result<()> {
        let metadata = self.table.metadata();
        listed.retain(|path, _| !self.is_handed_on(path));
        let mut failed: Option<Error> = None;
        let mut spare = |location: &str| match self.stores.resolve(location) {
            Ok((_, path)) => drop(listed.remove(path.as_ref())),
            Err(error) => failed = Some(error),
        };
        self.table.metadata_location().into_iter().for_each(&mut spare);
        metadata.metadata_log().iter().for_each(|entry| spare(&entry.metadata_file));
        metadata.statistics_iter().for_each(|file| spare(&file.statistics_path));
        metadata.partition_statistics_iter().for_each(|file| spare(&file.statistics_path));
        let snapshots: Vec<SnapshotRef> = metadata.snapshots().cloned().collect();
        snapshots.iter().for_each(|snapshot| spare(snapshot.manifest_list()));
        let manifests = reach::manifests(&self.table, &snapshots).await?;
        manifests.keys().for_each(|path| spare(path));
        reach::files(&self.table, manifests.values(), |path, _| spare(path)).await?;
        match failed {
            None => Ok(()),
            Some(error) => {
                Err(Error::new(ErrorKind::Unsupported, "the table has files in a place of another kind")
                    .hint("orphans are not looked for, since a file could be taken for one")
                    .because(error))
            }
        }
    }
}
