//! What `change: trigger` is in every database: names of what is put next to a table, and the operations
//! that come of it.
//!
//! A table of changed keys belongs to one table and one key of it. Its name shows the table, and ends in a
//! hash of both, so that no two meet, however long or odd the names are.

use std::fmt::Display;
use std::hash::Hasher;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema};
use siphasher::sip::SipHasher13;

use crate::error::{Error, ErrorKind, Result};
use crate::source::{Arrangement, Finding, Severity};
use crate::table::{OP_COLUMN, TableId};

/// What of a table's name shows: with prefix and hash it stays below 63 bytes, the shortest limit of all.
const SHOWN: usize = 30;

/// A reader that was not seen for so many days is told of: changes are kept for it.
pub const SILENT_DAYS: u32 = 7;

/// What says which table and key something belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TriggerNames {
    /// 16 digits of a table and its key.
    pub hash: String,
    /// The table's name, as far as it goes into other names.
    shown: String,
}

impl TriggerNames {
    /// Of a table and the key by which it is read.
    pub fn of(table: &TableId, key: &[String]) -> Self {
        let mut hasher = SipHasher13::new();
        for part in [table.schema_or(""), &table.name].into_iter().chain(key.iter().map(String::as_str)) {
            hasher.write(part.as_bytes());
            hasher.write_u8(0);
        }
        let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
        let shown = table.name.chars().map(plain).take(SHOWN).collect();
        Self { hash: format!("{:016x}", hasher.finish()), shown }
    }

    /// The table of changed keys.
    pub fn changes(&self, prefix: &str) -> String {
        format!("{prefix}changes_{}_{}", self.shown, self.hash)
    }

    /// A trigger, or something else of which the table has one.
    pub fn part(&self, what: &str) -> String {
        format!("frazil_{what}_{}", self.hash)
    }
}

/// What of ours is on a table: whether it is there, and whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstalledParts {
    /// Whether there is anything at all.
    pub any: bool,
    /// What is missing, was altered, or does not fire.
    pub wrong: Vec<String>,
}

impl InstalledParts {
    /// Why changes are not written down as they should be.
    pub fn problem(&self) -> Option<String> {
        if !self.any {
            return Some("there are no triggers of ours on the table".to_owned());
        }
        (!self.wrong.is_empty()).then(|| self.wrong.join("; "))
    }

    /// The same, for `frazil check`.
    pub fn finding(&self) -> Option<Finding> {
        let remedy = Some("frazil setup --dry-run".to_owned());
        self.problem().map(|message| Finding { severity: Severity::Error, message, remedy })
    }

    /// Refuses to read by triggers that are not there, or do not fire.
    pub fn check(&self) -> Result<()> {
        let Some(problem) = self.problem() else { return Ok(()) };
        Err(Error::new(ErrorKind::Config, problem).hint(
            "run `frazil setup`, or `frazil setup --dry-run` for the statements; what changed without triggers is found by reading the table once",
        ))
    }
}

/// What is said when all is installed already.
pub fn installed_already(changes: impl Display) -> Arrangement {
    Arrangement::nothing(format!("the triggers are there, and write to {changes}"))
}

/// What is said of triggers that are replaced.
pub fn installed_anew(problem: &str) -> String {
    format!("installed anew, since {problem}; readers read the whole table once, and compare")
}

/// What is said when there is nothing to remove.
pub fn nothing_installed() -> Arrangement {
    Arrangement::nothing("there are no triggers of ours on the table")
}

/// Forgets one reader, where others still read.
pub fn forget_reader(others: &[String], statement: String) -> Arrangement {
    let notes = others.iter().map(|other| format!("the triggers stay for {other}")).collect();
    Arrangement { notes, statements: vec![statement], ..Arrangement::default() }
}

/// A reader that is not us, as people are told of it.
pub fn other_reader(reader: &str, seen: &str) -> String {
    format!("the reader `{reader}`, last seen {seen}")
}

/// Tells of a reader that has not come for [`SILENT_DAYS`]. `forget` is the statement that gives it up.
pub fn silent_reader(reader: &str, seen: &str, forget: String) -> Finding {
    Finding {
        severity: Severity::Warning,
        message: format!("changes are kept for the reader `{reader}`, which was last seen on {seen}"),
        remedy: Some(forget),
    }
}

/// A batch whose operations are integers of the database's, with those of the engine's; any other as it is.
pub fn cast_ops(batch: RecordBatch) -> Result<RecordBatch> {
    let schema = batch.schema();
    let Ok(at) = schema.index_of(OP_COLUMN) else { return Ok(batch) };
    let odd = |error| Error::new(ErrorKind::Internal, format!("an operation is not one: {error}"));
    let mut fields: Vec<Field> = schema.fields().iter().map(|field| field.as_ref().clone()).collect();
    let mut columns = batch.columns().to_vec();
    columns[at] = cast(&columns[at], &DataType::Int8).map_err(odd)?;
    fields[at] = Field::new(OP_COLUMN, DataType::Int8, false);
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(odd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_of_one_table_and_key() {
        let of = |schema: &str, name: &str, key: &[&str]| {
            let key: Vec<String> = key.iter().map(|name| (*name).to_owned()).collect();
            TriggerNames::of(&TableId::new(schema, name), &key).changes("frazil_")
        };
        let names = [
            of("public", "orders", &["id"]),
            of("public", "Orders", &["id"]),
            of("sales", "orders", &["id"]),
            of("public", "orders", &["id", "line"]),
            of("public", "orders", &["idline"]),
            of("public", &"ä \"'; drop".repeat(20), &["id"]),
        ];
        for (i, name) in names.iter().enumerate() {
            assert!(name.len() <= 63 && name.starts_with("frazil_changes_"), "{name}");
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'), "{name}");
            assert!(!names[..i].contains(name), "{name}");
        }
        assert_eq!(names[0], of("public", "orders", &["id"]), "a name stays as it is");
    }
}
