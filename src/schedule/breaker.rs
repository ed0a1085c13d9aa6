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
use crate::backoff::Backoff;

/// So many passes in a row that failed for a passing reason.
const FAILURES: u32 = 3;
/// How long it is left alone. A database that is back is noticed by the longest pause.
const REST: Backoff = Backoff { first: Duration::from_secs(15), longest: Duration::from_secs(300) };

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
            Some(until) if self.trying => Some(later(until.max(now), REST.first)),
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
    pub(super) fn bad(&mut self, connection: &str, now: DateTime<Utc>) {
        self.trying = false;
        self.failures += 1;
        if self.failures >= FAILURES {
            self.pauses += 1;
            self.until = Some(later(now, REST.pause(connection, self.pauses)));
        }
    }
}
