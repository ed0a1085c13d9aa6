//! A connection that keeps failing is left alone for a while: a dead database must not burn the night,
//! and a struggling one needs no more callers.
//!
//! ```text
//! closed ──FAILURES in a row──▶ open ──pause is over──▶ one stream tries ──well──▶ closed
//!                                ▲                             │
//!                                └────── a longer pause ◀──────┘
//! ```

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::cadence::later;

/// So many passes in a row that failed for a passing reason.
const FAILURES: u32 = 3;
/// The first pause; each further one is twice as long.
const SHORTEST: Duration = Duration::from_secs(15);
/// No pause is longer: a database that is back is noticed by then.
const LONGEST: Duration = Duration::from_secs(300);

/// What is known of one connection.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    failures: u32,
    pauses: u32,
    until: Option<DateTime<Utc>>,
    trying: bool,
}

impl Breaker {
    /// When a stream may use the connection again; `None`: now.
    pub(super) fn closed_until(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        match self.until {
            Some(until) if until > now => Some(until),
            // The pause is over. One stream finds out, the others wait for what it finds.
            Some(until) if self.trying => Some(later(until.max(now), SHORTEST)),
            _ => None,
        }
    }

    /// A pass that uses the connection begins.
    pub(super) fn begin(&mut self) {
        self.trying = self.until.is_some();
    }

    /// A pass came through.
    pub(super) fn good(&mut self) {
        *self = Self::default();
    }

    /// A pass ended that says nothing about the connection.
    pub(super) fn unknown(&mut self) {
        self.trying = false;
    }

    /// A pass failed for a passing reason.
    pub(super) fn bad(&mut self, now: DateTime<Utc>) {
        self.trying = false;
        self.failures += 1;
        if self.failures >= FAILURES {
            let pause = SHORTEST.saturating_mul(2_u32.saturating_pow(self.pauses)).min(LONGEST);
            self.until = Some(later(now, pause));
            self.pauses += 1;
        }
    }
}
