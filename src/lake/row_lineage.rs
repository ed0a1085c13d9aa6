//! Row lineage, in format version 3: each row has an id for life, and the number of the commit that
//! wrote it last.
//!
//! Neither is in the file of a new row. A row's id is its place in the file after the file's first id;
//! that in turn follows from the manifest, and that from the manifest list, so that a commit that is
//! tried again numbers its rows anew without touching a file.

use iceberg::spec::{ManifestEntryRef, ManifestFile};

/// The first row id of each live entry of a manifest, in order. Where an entry has none of its own, it
/// follows those before it; before version 3 there are none.
pub(super) fn first_row_ids(entries: &[ManifestEntryRef], manifest: &ManifestFile) -> Vec<Option<i64>> {
    let mut next = manifest.first_row_id.and_then(|first| i64::try_from(first).ok());
    entries
        .iter()
        .map(|entry| {
            let inherited = next?;
            if let Some(own) = entry.data_file().first_row_id() {
                return Some(own);
            }
            next = inherited.checked_add_unsigned(entry.data_file().record_count());
            Some(inherited)
        })
        .collect()
}
