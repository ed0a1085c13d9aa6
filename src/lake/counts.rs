//! What a snapshot's summary says of files and rows.

use std::collections::HashMap;

use iceberg::spec::{DataContentType, DataFile, Operation, Summary};

use super::deletion_vectors::is_vector;

/// What a snapshot adds and removes, in the words of the specification.
#[derive(Debug, Default)]
pub(super) struct Counts {
    added: Side,
    removed: Side,
}

#[derive(Debug, Default)]
struct Side {
    data_files: u64,
    delete_files: u64,
    vectors: u64,
    position_delete_files: u64,
    equality_delete_files: u64,
    records: u64,
    bytes: u64,
    position_deletes: u64,
    equality_deletes: u64,
}

impl Side {
    fn count(&mut self, file: &DataFile) {
        // Of a file that deletion vectors share, each counts its own part.
        let part = file.content_size_in_bytes().and_then(|size| u64::try_from(size).ok());
        self.bytes += part.unwrap_or_else(|| file.file_size_in_bytes());
        match file.content_type() {
            DataContentType::Data => {
                self.data_files += 1;
                self.records += file.record_count();
            }
            DataContentType::PositionDeletes => {
                self.delete_files += 1;
                self.position_deletes += file.record_count();
                if is_vector(file) {
                    self.vectors += 1;
                } else {
                    self.position_delete_files += 1;
                }
            }
            DataContentType::EqualityDeletes => {
                self.delete_files += 1;
                self.equality_delete_files += 1;
                self.equality_deletes += file.record_count();
            }
        }
    }

    fn files(&self) -> u64 {
        self.data_files + self.delete_files
    }
}

impl Counts {
    pub(super) fn add(&mut self, file: &DataFile) {
        self.added.count(file);
    }

    pub(super) fn remove(&mut self, file: &DataFile) {
        self.removed.count(file);
    }

    pub(super) fn operation(&self) -> Operation {
        match (self.added.delete_files, self.removed.files(), self.added.files()) {
            (0, 0, _) => Operation::Append,
            (_, removed, 0) if removed > 0 => Operation::Delete,
            _ => Operation::Overwrite,
        }
    }

    /// Writes what changed and the totals after it. Where the parent does not know a total, nor do we.
    pub(super) fn describe(&self, before: Option<&Summary>, summary: &mut HashMap<String, String>) {
        let (added, removed) = (&self.added, &self.removed);
        let counted = [
            (
                "total-data-files",
                "added-data-files",
                added.data_files,
                "deleted-data-files",
                removed.data_files,
            ),
            (
                "total-delete-files",
                "added-delete-files",
                added.delete_files,
                "removed-delete-files",
                removed.delete_files,
            ),
            ("total-records", "added-records", added.records, "deleted-records", removed.records),
            ("total-files-size", "added-files-size", added.bytes, "removed-files-size", removed.bytes),
            (
                "total-position-deletes",
                "added-position-deletes",
                added.position_deletes,
                "removed-position-deletes",
                removed.position_deletes,
            ),
            (
                "total-equality-deletes",
                "added-equality-deletes",
                added.equality_deletes,
                "removed-equality-deletes",
                removed.equality_deletes,
            ),
        ];
        for (total, more, plus, less, minus) in counted {
            if plus > 0 {
                summary.insert(more.to_owned(), plus.to_string());
            }
            if minus > 0 {
                summary.insert(less.to_owned(), minus.to_string());
            }
            let base = match before {
                None => Some(0),
                Some(before) => {
                    before.additional_properties.get(total).and_then(|text| text.parse::<u64>().ok())
                }
            };
            if let Some(base) = base {
                summary.insert(total.to_owned(), (base + plus).saturating_sub(minus).to_string());
            }
        }
        let kinds = [
            ("added-dvs", added.vectors),
            ("removed-dvs", removed.vectors),
            ("added-position-delete-files", added.position_delete_files),
            ("removed-position-delete-files", removed.position_delete_files),
            ("added-equality-delete-files", added.equality_delete_files),
            ("removed-equality-delete-files", removed.equality_delete_files),
        ];
        for (name, count) in kinds.into_iter().filter(|(_, count)| *count > 0) {
            summary.insert(name.to_owned(), count.to_string());
        }
    }
}
