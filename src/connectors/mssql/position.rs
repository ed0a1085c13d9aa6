//! Where a reading ended, as the lake keeps it: the watermark's JSON, and cursor values as exact literals.
//!
//! ```text
//! {"v":1,"source":"5B9C…","kind":"timestamp","column":"changed","type":"datetime2(7)","at":"17637228000000001"}
//! ```
//!
//! A time is a count of 100 nanoseconds since 1970, numbers are texts, so that no reader of JSON
//! rounds them. A literal has the cursor's own type: anything else would be compared in another type,
//! past the index and with other digits.

use std::time::Duration;

use chrono::DateTime;
use serde::{Deserialize, Serialize};

use super::capture::Lsn;
use super::types::TypeOf;
use crate::connectors::sql::{self, Number, as_text};

const TICKS_A_SECOND: i64 = 10_000_000;
const TICKS_A_MINUTE: i64 = 60 * TICKS_A_SECOND;

/// A watermark, taken apart; its source is the database and its recovery fork.
pub(super) type Stored = sql::Stored<Position>;

/// How far a table was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum Position {
    /// All of it, and the next pass will do the same.
    Full {},
    /// Every change whose cursor is below `at`. `None`: nothing is sure yet.
    Timestamp {
        column: String,
        #[serde(rename = "type")]
        of: String,
        at: Option<Ticks>,
    },
    /// Every row whose cursor is at most `at`. `None`: nothing is sure yet.
    Id { column: String, at: Option<Number> },
    /// Every change below a row version.
    Rowversion { column: String, below: Number },
    /// Every change up to a version of Change Tracking, which was current at `seen` (seconds since 1970).
    Tracking { version: Number, seen: Number },
    /// Every change that was captured up to a position of the log, current at `seen` (seconds since 1970).
    Log {
        lsn: Lsn,
        seen: Number,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        ahead: Option<Ahead>,
    },
    /// Every change of a table with this history that began before `at`.
    Temporal { history: Number, at: Ticks },
    /// All rows up to a key, on the way to `then`.
    FirstReadByKey { then: Box<Position>, layout: String, key: Vec<String>, after: Vec<String> },
}

/// The lake may show what the log has not captured yet: a first read saw it. Until the log has passed the
/// first read, its changes are of the past, and would take rows back for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Ahead {
    /// By how much is not known: the first read has just ended.
    Unknown,
    /// What was committed by then, by the server's local clock.
    Until(Ticks),
}

/// 100 nanoseconds since 1970, as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct Ticks(pub(super) i64);

as_text!(Ticks);

/// A literal of a row version: eight bytes, the greatest first.
pub(super) fn row_version(Number(version): Number) -> String {
    format!("0x{version:016X}")
}

impl Ticks {
    /// A literal of the cursor's type. The time must lie on the type's own grid, see [`floor`](Self::floor).
    pub(super) fn literal(self, of: &TypeOf) -> String {
        let base = of.base.as_str();
        let earliest = if matches!(base, "datetime" | "smalldatetime") {
            if base == "datetime" { -6_847_804_800 } else { -2_208_988_800 }
        } else {
            -62_135_596_800
        };
        let ticks = self.0.max(earliest * TICKS_A_SECOND).min(253_402_300_800 * TICKS_A_SECOND - 1);
        let (seconds, fraction) = (ticks.div_euclid(TICKS_A_SECOND), ticks.rem_euclid(TICKS_A_SECOND));
        let second = DateTime::from_timestamp(seconds, 0).expect("within four-digit years");
        let second = second.format("%Y-%m-%dT%H:%M:%S");
        match base {
            "datetime" => format!("CAST('{second}.{:03}' AS datetime)", fraction / 10_000),
            "smalldatetime" => format!("CAST('{second}' AS smalldatetime)"),
            "datetimeoffset" => {
                format!("CAST('{second}.{fraction:07}+00:00' AS datetimeoffset({}))", of.scale)
            }
            _ => format!("CAST('{second}.{fraction:07}' AS datetime2({}))", of.scale),
        }
    }

    /// For people.
    pub(super) fn shown(self) -> String {
        let (seconds, fraction) = (self.0.div_euclid(TICKS_A_SECOND), self.0.rem_euclid(TICKS_A_SECOND));
        match DateTime::from_timestamp(seconds, 0) {
            Some(second) => format!("{}.{fraction:07}", second.format("%Y-%m-%dT%H:%M:%S")),
            None => format!("{} × 100 ns", self.0),
        }
    }

    /// The same or earlier, on the grid of the cursor's type. What is written later is never rounded
    /// below it: the server rounds to the nearest of that grid.
    pub(super) fn floor(self, of: &TypeOf) -> Self {
        let down = |tick: i64| Self(self.0.div_euclid(tick).saturating_mul(tick));
        match of.base.as_str() {
            "smalldatetime" => down(TICKS_A_MINUTE),
            "datetime" => {
                // 1/300 s, which shows as .000, .003 and .007: the last that shows no later.
                let Self(second) = down(TICKS_A_SECOND);
                let third = (self.0 - second) * 300 / TICKS_A_SECOND;
                let shown = |third: i64| Self(second.saturating_add((third * 10 + 1) / 3 * 10_000));
                // What stands for .00666… shows as .007, and what stands for .00333… as .003.
                let near = [third + 1, third, third - 1].map(shown);
                near.into_iter().find(|shown| *shown <= self).unwrap_or(Self(second))
            }
            _ => down(10_i64.pow(7 - u32::from(of.scale.min(7)))),
        }
    }

    pub(super) fn minus(self, lag: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(lag.as_nanos() / 100).unwrap_or(i64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use proptest::prelude::*;

    use super::*;
    use crate::delta::Watermark;

    fn of(base: &str, scale: u8) -> TypeOf {
        TypeOf { base: base.into(), scale, ..TypeOf::default() }
    }

    #[test]
    fn the_text_in_the_lake_stays_as_it_is() {
        let timestamp = Position::Timestamp {
            column: "changed".into(),
            of: "datetime2(7)".into(),
            at: Some(Ticks(17_637_228_000_000_001)),
        };
        let by_key = Position::FirstReadByKey {
            then: Box::new(Position::Tracking { version: Number(7), seen: Number(1) }),
            layout: "42".into(),
            key: vec!["[id] bigint".into()],
            after: vec!["41".into()],
        };
        let rowversion = Position::Rowversion { column: "rv".into(), below: Number(2001) };
        let id = Position::Id { column: "id".into(), at: Some(Number(i64::MAX)) };
        let log = |ahead| Position::Log { lsn: Lsn(0x2A_0000_00F8_0003), seen: Number(1), ahead };
        let logs = [None, Some(Ahead::Unknown), Some(Ahead::Until(Ticks(5)))].map(log);
        let temporal = Position::Temporal { history: Number(7), at: Ticks(5) };
        let text: Vec<_> = [timestamp, id, rowversion, by_key, Position::Full {}, temporal]
            .into_iter()
            .chain(logs)
            .map(|position| Stored::new(Some("f".into()), position))
            .map(|stored| {
                let text = stored.write();
                assert_eq!(Stored::read(&text), Ok(stored));
                text.to_string()
            })
            .collect();
        expect![[r#"
            {"v":1,"source":"f","kind":"timestamp","column":"changed","type":"datetime2(7)","at":"17637228000000001"}
            {"v":1,"source":"f","kind":"id","column":"id","at":"9223372036854775807"}
            {"v":1,"source":"f","kind":"rowversion","column":"rv","below":"2001"}
            {"v":1,"source":"f","kind":"first_read_by_key","then":{"kind":"tracking","version":"7","seen":"1"},"layout":"42","key":["[id] bigint"],"after":["41"]}
            {"v":1,"source":"f","kind":"full"}
            {"v":1,"source":"f","kind":"temporal","history":"7","at":"5"}
            {"v":1,"source":"f","kind":"log","lsn":"0x0000002A000000F80003","seen":"1"}
            {"v":1,"source":"f","kind":"log","lsn":"0x0000002A000000F80003","seen":"1","ahead":"unknown"}
            {"v":1,"source":"f","kind":"log","lsn":"0x0000002A000000F80003","seen":"1","ahead":{"until":"5"}}"#]]
        .assert_eq(&text.join("\n"));
        assert!(Stored::read(&Watermark::new("{}")).is_err());
        assert!(Stored::read(&Watermark::new(r#"{"v":2,"kind":"full"}"#)).is_err());
    }

    #[test]
    fn literals_are_exact_and_of_the_cursors_type() {
        let at = Ticks(17_637_228_000_000_001);
        assert_eq!(at.literal(&of("datetime2", 7)), "CAST('2025-11-21T11:00:00.0000001' AS datetime2(7))");
        assert_eq!(
            at.literal(&of("datetimeoffset", 7)),
            "CAST('2025-11-21T11:00:00.0000001+00:00' AS datetimeoffset(7))"
        );
        let third = Ticks(17_637_228_000_070_000).floor(&of("datetime", 3));
        assert_eq!(third.literal(&of("datetime", 3)), "CAST('2025-11-21T11:00:00.007' AS datetime)");
        let just_before = Ticks(17_637_228_000_066_667).floor(&of("datetime", 3));
        assert_eq!(just_before.literal(&of("datetime", 3)), "CAST('2025-11-21T11:00:00.003' AS datetime)");
        assert_eq!(at.literal(&of("smalldatetime", 0)), "CAST('2025-11-21T11:00:00' AS smalldatetime)");
        assert_eq!(
            Ticks(i64::MIN).literal(&of("datetime2", 0)),
            "CAST('0001-01-01T00:00:00.0000000' AS datetime2(0))"
        );
        assert_eq!(
            Ticks(i64::MIN).literal(&of("datetime", 3)),
            "CAST('1753-01-01T00:00:00.000' AS datetime)"
        );
        assert_eq!(row_version(Number(2001)), "0x00000000000007D1");
    }

    proptest! {
        /// A value that is written at or after a moment is stored, rounded, at or after its floor.
        #[test]
        fn nothing_rounded_falls_below_a_floor(start in 0_i64..1 << 60, later in 0_i64..10_000_000, kind in 0_usize..4) {
            let of = [of("datetime", 3), of("smalldatetime", 0), of("datetime2", 3), of("datetime2", 7)][kind].clone();
            let floor = Ticks(start).floor(&of);
            prop_assert!(floor.0 <= start);
            let value = start + later;
            let stored = match kind {
                0 => {
                    let second = value.div_euclid(TICKS_A_SECOND) * TICKS_A_SECOND;
                    let thirds = ((value - second) * 300 * 2 + TICKS_A_SECOND) / (2 * TICKS_A_SECOND);
                    second + (thirds * 10 + 1) / 3 * 10_000
                }
                1 => (value + TICKS_A_MINUTE / 2).div_euclid(TICKS_A_MINUTE) * TICKS_A_MINUTE,
                2 => (value + 5_000).div_euclid(10_000) * 10_000,
                _ => value,
            };
            prop_assert!(floor.0 <= stored);
            prop_assert_eq!(floor.floor(&of), floor);
        }
    }
}
