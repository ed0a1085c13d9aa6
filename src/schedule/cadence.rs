//! When a stream's next pass is due, by what its configuration says and how it went before.

use std::hash::Hasher;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use croner::Cron;
use croner::parser::{CronParser, Seconds};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;

use super::Blackout;

/// When a stream runs.
#[derive(Debug, Clone)]
pub struct Schedule {
    /// How often.
    pub cadence: Cadence,
    /// Whose clock `cadence` and `blackout` mean.
    pub zone: Tz,
    /// Passes begin up to this much later than they are due, each stream always by the same amount, so
    /// that a hundred streams of one minute do not all knock at once.
    pub jitter: Duration,
    /// When no pass may begin.
    pub blackout: Vec<Blackout>,
    /// What happens to passes that were due while nobody ran them.
    pub catch_up: CatchUp,
    /// Streams that it waits for.
    pub after: Vec<String>,
    /// Who goes first when not all can.
    pub priority: Priority,
}

/// How often a stream runs.
#[derive(Debug, Clone)]
pub enum Cadence {
    /// At these times.
    Cron(Box<Cron>),
    /// With at least this much from start to start.
    Every(Duration),
    /// So often that what the lake shows is never older than this.
    Fresh(Duration),
    /// When all streams in `after` have run since.
    After,
    /// Only when triggered.
    Never,
}

/// What happens to passes that were due while nobody ran them: one pass catches up with all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CatchUp {
    /// One pass at once.
    #[default]
    Once,
    /// None; the next comes when it is due.
    Skip,
}

/// Who goes first when not all can. Waiting makes up for rank: a stream is never passed over for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Before all that have waited less than ten minutes longer.
    Critical,
    /// As they come.
    #[default]
    Normal,
    /// After all that came up to ten minutes later.
    Low,
}

impl Priority {
    /// By how much a stream counts as having waited longer than it did.
    pub(super) fn head_start(self) -> TimeDelta {
        const RANK: TimeDelta = TimeDelta::minutes(10);
        match self {
            Self::Critical => RANK,
            Self::Normal => TimeDelta::zero(),
            Self::Low => -RANK,
        }
    }
}

/// How a stream's passes went before.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Past {
    /// When the last one began.
    pub began: Option<DateTime<Utc>>,
    /// When the last one that came through began: what it saw is at least as new.
    pub fresh_as_of: Option<DateTime<Utc>>,
    /// When that one ended.
    pub succeeded: Option<DateTime<Utc>>,
    /// How long passes take; a slow one counts at once, fast ones bit by bit.
    pub takes: Duration,
}

impl Past {
    /// Notes a pass that came through.
    pub(super) fn well(&mut self, began: DateTime<Utc>, now: DateTime<Utc>) {
        let took = (now - began).to_std().unwrap_or_default();
        self.takes = took.max((self.takes * 3 + took) / 4);
        self.fresh_as_of = Some(began);
        self.succeeded = Some(now);
    }
}

impl Schedule {
    /// The first time from `now` on at which a pass should begin. `None`: not by the clock.
    pub(super) fn next(&self, name: &str, past: &Past, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let due = match &self.cadence {
            Cadence::Cron(cron) => {
                let from = past.began.filter(|_| self.catch_up == CatchUp::Once).unwrap_or(now);
                let local = from.with_timezone(&self.zone);
                later(cron.find_next_occurrence(&local, false).ok()?.to_utc(), self.delay(name))
            }
            Cadence::Every(every) => match past.began {
                None => later(now, self.delay(name)),
                Some(began) => self.interval(began, *every, now),
            },
            Cadence::Fresh(fresh) => match past.fresh_as_of {
                None => now,
                // A pass that failed since is retried, not waited for.
                Some(seen) => later(seen, fresh.saturating_sub(reserve(*fresh, past.takes))),
            },
            Cadence::After | Cadence::Never => return None,
        };
        Some(self.outside_of_blackouts(due.max(now)))
    }

    fn interval(&self, began: DateTime<Utc>, every: Duration, now: DateTime<Utc>) -> DateTime<Utc> {
        let due = later(began, every);
        if due >= now || self.catch_up == CatchUp::Once {
            return due;
        }
        let missed =
            (now - began).to_std().unwrap_or_default().as_millis().div_ceil(every.as_millis().max(1));
        let periods = u32::try_from(missed).unwrap_or(u32::MAX);
        later(began, every.saturating_mul(periods))
    }

    /// This stream's share of the jitter: the same whenever it is asked for.
    fn delay(&self, name: &str) -> Duration {
        let mut hash = SipHasher13::new();
        hash.write(name.as_bytes());
        self.jitter.mul_f64(hash.finish() as f64 / u64::MAX as f64)
    }

    /// `time`, or the end of the blackout that it lies in.
    pub(super) fn outside_of_blackouts(&self, time: DateTime<Utc>) -> DateTime<Utc> {
        // Blackouts may touch each other; more rounds than there are would cover the whole week.
        (0..=7 * self.blackout.len()).fold(time, |time, _| {
            self.blackout.iter().find_map(|blackout| blackout.end(time, self.zone)).unwrap_or(time)
        })
    }
}

/// How much earlier than needed a pass begins to keep a promise of freshness: it must have ended by then,
/// also when it takes twice as long as usual.
fn reserve(fresh: Duration, takes: Duration) -> Duration {
    (takes * 2).max(fresh / 4).min(fresh * 9 / 10)
}

/// `time` and `more`; a time beyond what can be counted is one that never comes.
pub(super) fn later(time: DateTime<Utc>, more: Duration) -> DateTime<Utc> {
    TimeDelta::from_std(more)
        .ok()
        .and_then(|more| time.checked_add_signed(more))
        .unwrap_or(DateTime::<Utc>::MAX_UTC)
}

/// Five fields of cron, or six with seconds first; also `@hourly`, `@daily` and their like.
///
/// # Errors
/// What is wrong, and after a line break what would be right.
pub fn cron(text: &str) -> Result<Cron, String> {
    CronParser::builder().seconds(Seconds::Optional).build().parse(text).map_err(|error| {
        format!("not a cron expression: {error}\nwrite five fields, `*/5 * * * *`, or `every 5m`")
    })
}

/// A time zone by its name in the IANA database.
///
/// # Errors
/// What is wrong, and after a line break what would be right.
pub fn time_zone(name: &str) -> Result<Tz, String> {
    name.parse().map_err(|_| "unknown time zone\nwrite a name such as `Europe/Berlin`, or `UTC`".to_owned())
}
