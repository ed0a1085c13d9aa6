//! A source that has lost what changed since the position.

use super::Stream;
use crate::error::{Error, ErrorKind, Result};
use crate::lake::Position;
use crate::source::{ChangeDetection, Extent, ReadPlan};

/// Stops where the source cannot go on from the position. An unfinished first read loses nothing. To be asked
/// of the plan and of the reading: some servers notice only while they look for the position in their log.
pub(super) fn check_gap(stream: &Stream, position: Option<&Position>, plan: &ReadPlan) -> Result<()> {
    let goes_on = plan.continues || plan.change == ChangeDetection::Full || plan.extent != Extent::Whole;
    if goes_on || position.is_none_or(|at| at.unfinished) {
        return Ok(());
    }
    let why = plan.notes.iter().find(|note| note.contains("is not used")).cloned();
    Err(Error::new(ErrorKind::Data, why.unwrap_or_else(|| "the stored position is not used".to_owned()))
        .with("table", &stream.source_table)
        .hint("`frazil run --full-refresh` reads the whole table and goes on from there, and so does `on_gap: resnapshot`"))
}
