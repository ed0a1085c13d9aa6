//! When the places of a stream are compared.

use chrono::{DateTime, Utc};

use super::{Past, Schedule};

/// Comparisons of a stream's places.
#[derive(Debug, Clone)]
pub struct Reconcile {
    /// All rows: with the first pass that begins when the time has come.
    pub schedule: Option<Schedule>,
    /// About so many rows: after each pass that is not followed by the other.
    pub sample: Option<u64>,
    /// Whether what differs is set right.
    pub repair: bool,
}

/// A comparison that follows a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proof {
    /// Of about so many rows; of all, if nothing is said.
    pub sample: Option<u64>,
    /// Whether what differs is set right.
    pub repair: bool,
}

impl Reconcile {
    /// What follows a pass that begins now, when all rows were last compared at `last`.
    pub fn after_pass(&self, stream: &str, last: DateTime<Utc>, now: DateTime<Utc>) -> Option<Proof> {
        let past = Past { began: Some(last), ..Past::default() };
        let next = self.schedule.as_ref().and_then(|schedule| schedule.next(stream, &past, now));
        let sample = match next.is_some_and(|due| due <= now) {
            true => None,
            false => Some(self.sample?),
        };
        Some(Proof { sample, repair: self.repair })
    }
}
