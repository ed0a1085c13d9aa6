//! How late rows came: a histogram by powers of two, small enough for a snapshot's summary.
//!
//! A row is *late* that has a time from before the position, and that the table did not have with that
//! time: the pass that should have found it did not. How late it was is how far behind the position its
//! time lies: a `lag` of at least that much finds its like.

use std::collections::BTreeMap;
use std::time::Duration;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array};
use arrow::datatypes::{DataType, Date32Type, Int64Type, TimeUnit, TimestampMicrosecondType};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Of so many late rows all but one are to be found by the `lag` that is proposed: 99.9 %.
const COVERED: u64 = 1000;
/// Microseconds of a second.
const SECOND: i64 = 1_000_000;
/// What a `lag` is written in: seconds of a day, an hour, a minute.
const UNITS: [u64; 3] = [86_400, 3600, 60];

/// How rows with one key are ordered, where not by their arrival alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventOrder {
    /// The column of whole numbers or times.
    pub column: String,
    /// Whether the row with the greatest value stays. Otherwise the last one that came does, and the order
    /// only tells which rows came late.
    pub by_event: bool,
    /// Rows from before this time were due before: microseconds since 1970.
    pub known_to: Option<i64>,
}

/// How many rows came late, and by how much.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Lateness {
    /// Rows that came late.
    pub rows: u64,
    /// Rows that were older than what the table has, and changed nothing.
    #[serde(default)]
    pub outdated: u64,
    /// Of the late rows, how many were late by less than so many seconds: powers of two, each row counted
    /// once.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub within_seconds: BTreeMap<u64, u64>,
}

impl Lateness {
    /// Counts a row that is so many microseconds late.
    pub fn add(&mut self, micros: i64) {
        let seconds = micros.max(0) / SECOND;
        let bound = (seconds.unsigned_abs() + 1).next_power_of_two();
        self.rows += 1;
        *self.within_seconds.entry(bound).or_default() += 1;
    }

    /// Adds what was counted elsewhere.
    pub fn join(&mut self, other: &Self) {
        self.rows += other.rows;
        self.outdated += other.outdated;
        for (bound, rows) in &other.within_seconds {
            *self.within_seconds.entry(*bound).or_default() += rows;
        }
    }

    /// Whether nothing came late.
    pub fn is_empty(&self) -> bool {
        self.rows == 0 && self.outdated == 0
    }

    /// The `lag` that would have found 99.9 % of the late rows, in whole minutes, hours or days.
    pub fn suggested_lag(&self) -> Option<Duration> {
        let counted: u64 = self.within_seconds.values().sum();
        let wanted = counted - counted / COVERED;
        let mut found = 0;
        let bound = self.within_seconds.iter().find_map(|(bound, rows)| {
            found += rows;
            (found >= wanted).then_some(*bound)
        })?;
        let unit = UNITS.iter().find(|unit| bound > **unit).unwrap_or(&1);
        Some(Duration::from_secs(bound.div_ceil(*unit) * unit))
    }
}

/// Microseconds since 1970 of a time, as the lake keeps it; `None` for what is no time.
pub fn micros(times: &ArrayRef) -> Option<Int64Array> {
    let days = |days: i32| i64::from(days).saturating_mul(86_400 * SECOND);
    match times.data_type() {
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            Some(times.as_primitive::<TimestampMicrosecondType>().reinterpret_cast::<Int64Type>())
        }
        DataType::Date32 => Some(times.as_primitive::<Date32Type>().unary(days)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(seconds: impl IntoIterator<Item = i64>) -> Lateness {
        let mut lateness = Lateness::default();
        seconds.into_iter().for_each(|seconds| lateness.add(seconds * SECOND));
        lateness
    }

    #[test]
    fn the_lag_proposed_covers_all_but_one_in_a_thousand() {
        assert_eq!(Lateness::default().suggested_lag(), None);
        for (seconds, lag) in
            [(0, 1), (1, 2), (31, 32), (59, 120), (64, 180), (5000, 10_800), (86_400, 172_800)]
        {
            assert_eq!(of([seconds]).suggested_lag(), Some(Duration::from_secs(lag)), "{seconds}");
        }
        let one_far_away = |rows: i64| of((0..rows).map(|row| if row == 0 { 100_000 } else { 3 }));
        assert_eq!(one_far_away(1000).suggested_lag(), Some(Duration::from_secs(4)));
        assert_eq!(one_far_away(999).suggested_lag(), Some(Duration::from_secs(2 * 86_400)));
    }

    #[test]
    fn what_was_counted_apart_is_counted_together() {
        let mut all = of([1, 1]);
        all.join(&Lateness { outdated: 2, ..of([1, 7]) });
        assert_eq!((all.rows, all.outdated), (4, 2));
        assert_eq!(all.within_seconds, BTreeMap::from([(2, 3), (8, 1)]));
        let text = serde_json::to_string(&all).unwrap();
        assert_eq!(serde_json::from_str::<Lateness>(&text).unwrap(), all);
    }
}
