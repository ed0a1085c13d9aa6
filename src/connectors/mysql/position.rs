//! Where a reading ended, as the lake keeps it: the watermark's JSON, and cursor values as exact literals.
//!
//! ```text
//! {"v":1,"kind":"timestamp","column":"changed","type":"timestamp(6)","at":"1763722800000000"}
//! ```
//!
//! A time is a count of microseconds since 1970, numbers are texts, so that no reader of JSON rounds them.

use std::time::Duration;

use chrono::DateTime;
use serde::{Deserialize, Serialize};

use super::log::Place;
use super::triggers::Triggered;
use crate::connectors::sql::{self, Number, as_text};

/// A watermark, taken apart. A server has no name that its replicas share, so none is kept.
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
        at: Option<Micros>,
    },
    /// Every row whose cursor is at most `at`. `None`: nothing is sure yet.
    Id { column: String, at: Option<Number> },
    /// Every change that the log has up to a place.
    Log(Place),
    /// Every change that triggers have written down and that was counted so far.
    Triggers(Triggered),
    /// A first read by key is done up to a key; when all is done, the table stands at `then`.
    FirstReadByKey {
        then: Box<Position>,
        /// What the table was known by.
        layout: String,
        /// Names and types of the key's columns.
        key: Vec<String>,
        after: Vec<String>,
    },
}

/// A moment: microseconds since 1970, in UTC or in the column's own time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct Micros(pub(super) i64);
as_text!(Micros);

impl Micros {
    pub(super) fn minus(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(by.as_micros()).unwrap_or(i64::MAX)))
    }

    /// The last moment that a column with so many digits behind the second has, and that is not later.
    /// Finer times are rounded when they are stored: what is written from here on is not below it.
    pub(super) fn floor(self, digits: u8) -> Self {
        let step = 10_i64.pow(6 - u32::from(digits.min(6)));
        Self(self.0.div_euclid(step) * step)
    }

    /// As a statement compares a column with it, in a session whose time zone is UTC.
    pub(super) fn literal(self) -> String {
        format!("'{}'", self.written())
    }

    /// For people.
    pub(super) fn shown(self) -> String {
        format!("{} UTC", self.written())
    }

    fn written(self) -> String {
        // Servers have no years below the first, and none of five digits.
        let first = DateTime::from_timestamp(-62_135_596_800, 0).expect("0001-01-01 is a moment");
        let last = DateTime::from_timestamp(253_402_300_799, 0).expect("9999-12-31 is a moment");
        let at = DateTime::from_timestamp_micros(self.0).unwrap_or(if self.0 < 0 { first } else { last });
        at.clamp(first, last).format("%Y-%m-%d %H:%M:%S%.6f").to_string()
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn positions_come_back_as_they_went() {
        let id = |at| Position::Id { column: "id".into(), at };
        let all = [
            Position::Timestamp {
                column: "changed".into(),
                of: "timestamp(6)".into(),
                at: Some(Micros(1_763_722_800_000_000)),
            },
            id(Some(Number(i64::MAX))),
            Position::FirstReadByKey {
                then: Box::new(id(None)),
                layout: "2025-01-01 00:00:00".into(),
                key: vec!["`id` bigint".into()],
                after: vec!["41".into()],
            },
            Position::Full {},
        ];
        let text: Vec<_> = all
            .into_iter()
            .map(|position| {
                let stored = Stored::new(None, position);
                let watermark = stored.write();
                assert_eq!(Stored::read(&watermark).unwrap(), stored);
                watermark.to_string()
            })
            .collect();
        expect![[r#"
            {"v":1,"kind":"timestamp","column":"changed","type":"timestamp(6)","at":"1763722800000000"}
            {"v":1,"kind":"id","column":"id","at":"9223372036854775807"}
            {"v":1,"kind":"first_read_by_key","then":{"kind":"id","column":"id","at":null},"layout":"2025-01-01 00:00:00","key":["`id` bigint"],"after":["41"]}
            {"v":1,"kind":"full"}"#]]
        .assert_eq(&text.join("\n"));
    }

    #[test]
    fn a_place_in_the_log_is_read_back() {
        let text = r#"{"v":1,"kind":"log","file":"binlog.000001","offset":"2448","begun":1763722800,"server":4294967295,"seen":"1763722900","parts":true,"columns":["`id` int"]}"#;
        let stored = Stored::read(&crate::delta::Watermark::new(text)).unwrap();
        assert_eq!(stored.write().as_str(), text);
        let numbered = text.replace(r#""begun""#, r#""gtids":"0-1-100,5-2-7","begun""#);
        let with = Stored::read(&crate::delta::Watermark::new(&numbered)).unwrap();
        assert_eq!(with.write().as_str(), numbered);
        assert_ne!(with, stored);
        let first = Position::FirstReadByKey {
            then: Box::new(stored.position),
            layout: String::new(),
            key: Vec::new(),
            after: Vec::new(),
        };
        let first = Stored::new(None, first);
        assert_eq!(Stored::read(&first.write()), Ok(first));
    }

    #[test]
    fn a_batch_of_triggers_is_read_back() {
        let text = r#"{"v":1,"kind":"triggers","changes":"_frazil_changes_t_0","stamp":"0","reader":"lake t","batch":"1763722800000000","place":"2025-11-21 11:00:00 17,18","columns":["`id` int"],"parts":true}"#;
        let stored = Stored::read(&crate::delta::Watermark::new(text)).unwrap();
        assert_eq!(stored.write().as_str(), text);
    }

    #[test]
    fn literals_are_exact() {
        assert_eq!(Micros(1_763_722_800_000_001).literal(), "'2025-11-21 11:00:00.000001'");
        assert_eq!(Micros(i64::MIN).literal(), "'0001-01-01 00:00:00.000000'");
        assert_eq!(Micros(i64::MAX).literal(), "'9999-12-31 23:59:59.000000'");
    }

    proptest! {
        /// A value that is written at or after a moment is stored, rounded, at or after its floor.
        #[test]
        fn nothing_rounded_falls_below_a_floor(start in 0_i64..1 << 50, later in 0_i64..3_000_000, digits in 0_u8..=6) {
            let floor = Micros(start).floor(digits);
            let step = 10_i64.pow(6 - u32::from(digits));
            let stored = (start + later + step / 2).div_euclid(step) * step;
            prop_assert!(floor.0 <= start && floor.0 <= stored);
            prop_assert_eq!(floor.floor(digits), floor);
        }
    }
}
