//! What targets share that keep every version of a row (`mode: scd2`).
//!
//! ```text
//! key  value  _valid_from  _valid_to  _is_current
//! 1    ann    snapshot 1   snapshot 4  no          a change ends a version and begins the next
//! 1    anna   snapshot 4   NULL        yes
//! 2    bob    snapshot 1   snapshot 2  no          a delete ends it
//! ```
//!
//! The times are those of the commits in the lake, so loading a snapshot once more, or elsewhere, gives the
//! same versions. A load sees the net change between two snapshots: what came and went in between has no
//! version. When the lake goes back to an older snapshot, versions younger than it were never valid: they
//! go, and the rows of then begin where the last version ended.

use super::{Present, Wanted};
use crate::error::{Error, ErrorKind, Result};
use crate::table::TableId;
use crate::target::{Deletes, IS_CURRENT, TargetTable, VALID_FROM, VALID_TO};

const ALL: [&str; 3] = [VALID_FROM, VALID_TO, IS_CURRENT];

/// Which versions end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Those of rows that were deleted.
    Deleted,
    /// Those of rows that are different now.
    Changed,
    /// Those of rows that a whole content leaves out.
    Others,
}

/// Which versions a load ends, in this order. `whole`: what is staged is all that there is.
pub fn endings(deletes: Deletes, whole: bool) -> impl Iterator<Item = Ended> {
    let wanted =
        [(Ended::Others, whole), (Ended::Deleted, deletes != Deletes::Ignore), (Ended::Changed, true)];
    wanted.into_iter().filter_map(|(which, wanted)| wanted.then_some(which))
}

impl Ended {
    /// Whether the rows of these versions are gone with them.
    pub fn is_delete(self) -> bool {
        self != Self::Changed
    }
}

/// Adds the columns that say when a version was valid, where the stream wants versions. The words are the
/// target's for a moment and for yes and no.
pub fn keep_versions(wanted: &mut Vec<Wanted>, table: &TargetTable, moment: &str, flag: &str) -> Result<()> {
    if !table.versions {
        return Ok(());
    }
    if let Some(column) = wanted.iter().find(|column| ALL.contains(&column.name.as_str())) {
        let message =
            format!("the stream has a column `{}`, which `mode: scd2` needs for itself", column.name);
        return Err(Error::new(ErrorKind::Config, message)
            .hint("leave the column out with `columns`, or use another mode"));
    }
    wanted.extend([(VALID_FROM, moment, true), (VALID_TO, moment, false), (IS_CURRENT, flag, true)].map(
        |(name, data_type, not_null)| Wanted {
            name: name.to_owned(),
            data_type: data_type.to_owned(),
            not_null,
            added_default: None,
        },
    ));
    Ok(())
}

/// Refuses a table of the other kind: rows without times cannot become versions, and versions are more
/// than one row a key.
pub fn check_versions(id: &TableId, table: &TargetTable, present: &[Present]) -> Result<()> {
    let there = ALL.iter().all(|name| present.iter().any(|column| column.name == *name));
    let message = match (table.versions, there) {
        (true, false) => "the target table is there and keeps no versions",
        (false, true) if table.schema.column_with_name(VALID_FROM).is_none() => {
            "the target table keeps versions of rows, and the stream is not `mode: scd2`"
        }
        _ => return Ok(()),
    };
    Err(Error::new(ErrorKind::Schema, message)
        .with("table", id)
        .hint("load into another table, or rename this one away"))
}
