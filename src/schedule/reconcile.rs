//! When the places of a stream are compared.

use chrono::{DateTime, Utc};

use super::{Past, Schedule};

/// Comparisons of a stream's places, each with the first pass that begins when its time has come.
#[derive(Debug, Clone)]
pub struct Reconcile {
    /// When.
    pub schedule: Schedule,
    /// Whether what differs is set right.
    pub repair: bool,
}

impl Reconcile {
    /// Whether one is due, when the last was at `last`.
    pub fn is_due(&self, stream: &str, last: DateTime<Utc>, now: DateTime<Utc>) -> bool {
        let past = Past { began: Some(last), ..Past::default() };
        self.schedule.next(stream, &past, now).is_some_and(|due| due <= now)
    }
}
