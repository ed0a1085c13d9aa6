//! Where a reading ended, as the lake keeps it: the watermark's JSON, and cursor values as exact literals.
//!
//! ```text
//! {"v":1,"source":"7710581183071326725/1","kind":"timestamp","column":"updated_at","at":"1763722800000000"}
//! ```
//!
//! A timestamp is a count of microseconds since 1970 and never passes through a float, a number is
//! text, so that no reader of JSON rounds it.

use chrono::{DateTime, Datelike, SecondsFormat};
use serde::{Deserialize, Serialize};

use super::log::{Described, Lsn, Snapshot};
use super::triggers::Triggered;
use crate::connectors::sql::{self, Number, as_text};

/// A watermark, taken apart; its source is the cluster and its timeline.
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
    Log(Followed),
    /// Every change that triggers wrote down and a snapshot saw.
    Triggers(Box<Triggered>),
    /// All rows before a block, on the way to `then`.
    FirstRead { then: Box<Position>, layout: String, done_to_block: u64 },
    /// All rows up to a key, on the way to `then`; where rows are not read by place.
    FirstReadByKey { then: Box<Position>, layout: String, key: Vec<String>, after: Vec<String> },
}

/// How far the log was followed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Followed {
    /// The replication slot that keeps the log from here on.
    pub(super) slot: String,
    /// The publication that the slot is read by.
    pub(super) publication: String,
    /// Transactions whose commit record is before it are in the lake.
    pub(super) lsn: Lsn,
    /// When the server was asked last, in seconds since 1970.
    pub(super) seen: Number,
    /// Whether it was a replica.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub(super) on_replica: bool,
    /// What the lake has already of what comes in the log after `lsn`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) ahead: Option<Ahead>,
    /// What the table looked like.
    pub(super) table: Described,
}

/// What a read of the table has seen of the log that is still to come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ahead {
    /// The transactions that all of it has seen; `None`: nobody knows which ones, of those up to `until`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) snapshot: Option<Snapshot>,
    /// Nothing beyond this place was seen.
    pub(super) until: Lsn,
    /// Whether it was interrupted, so that parts of it have seen more than others.
    pub(super) parts: bool,
}

/// Microseconds since 1970, as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct Micros(pub(super) i64);

as_text!(Micros);

impl Micros {
    /// A literal of the cursor's type (`timestamp`, `timestamptz`, `date`). What lies before year 1 means:
    /// from the beginning.
    pub(super) fn literal(self, of: &str) -> String {
        let text = match DateTime::from_timestamp_micros(self.0).filter(|at| at.year() >= 1) {
            None => "-infinity".to_owned(),
            Some(at) if of == "date" => at.format("%Y-%m-%d").to_string(),
            Some(at) if of == "timestamp" => at.format("%Y-%m-%d %H:%M:%S%.6f").to_string(),
            Some(at) => at.format("%Y-%m-%d %H:%M:%S%.6f+00").to_string(),
        };
        format!("'{text}'::{of}")
    }

    /// For people.
    pub(super) fn shown(self) -> String {
        match DateTime::from_timestamp_micros(self.0) {
            Some(at) => at.to_rfc3339_opts(SecondsFormat::Micros, true),
            None => format!("{} µs", self.0),
        }
    }

    /// The same or earlier, at this many digits of seconds. What starts later is never rounded below it.
    pub(super) fn floor(self, digits: u32) -> Self {
        let tick = 10i64.pow(6 - digits.min(6));
        Self(self.0.div_euclid(tick).saturating_mul(tick))
    }

    pub(super) fn minus(self, lag: std::time::Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(lag.as_micros()).unwrap_or(i64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delta::Watermark;
    use expect_test::expect;
    use proptest::prelude::*;

    #[test]
    fn the_text_in_the_lake_stays_as_it_is() {
        let timestamp = Position::Timestamp {
            column: "updated_at".into(),
            of: "timestamptz".into(),
            at: Some(Micros(1_763_722_800_000_001)),
        };
        let first =
            Position::FirstRead { then: Box::new(timestamp.clone()), layout: "abc".into(), done_to_block: 7 };
        let by_key = Position::FirstReadByKey {
            then: Box::new(timestamp.clone()),
            layout: "abc".into(),
            key: vec!["id bigint".into()],
            after: vec!["41".into()],
        };
        let id = Position::Id { column: "id".into(), at: Some(Number(i64::MAX)) };
        let text: Vec<_> = [timestamp, id, first, by_key, Position::Full {}]
            .into_iter()
            .map(|position| Stored::new(Some("77/1".into()), position))
            .map(|stored| {
                let text = stored.write();
                assert_eq!(Stored::read(&text), Ok(stored));
                text.to_string()
            })
            .collect();
        expect![[r#"
            {"v":1,"source":"77/1","kind":"timestamp","column":"updated_at","type":"timestamptz","at":"1763722800000001"}
            {"v":1,"source":"77/1","kind":"id","column":"id","at":"9223372036854775807"}
            {"v":1,"source":"77/1","kind":"first_read","then":{"kind":"timestamp","column":"updated_at","type":"timestamptz","at":"1763722800000001"},"layout":"abc","done_to_block":7}
            {"v":1,"source":"77/1","kind":"first_read_by_key","then":{"kind":"timestamp","column":"updated_at","type":"timestamptz","at":"1763722800000001"},"layout":"abc","key":["id bigint"],"after":["41"]}
            {"v":1,"source":"77/1","kind":"full"}"#]]
        .assert_eq(&text.join("\n"));
        assert!(Stored::read(&Watermark::new("{}")).is_err());
        assert!(Stored::read(&Watermark::new(r#"{"v":2,"kind":"full"}"#)).is_err());
    }

    #[test]
    fn a_place_in_the_log_is_read_back() {
        let text = r#"{"v":1,"source":"77/1","kind":"log","slot":"s","publication":"p","lsn":"16/B374D848","seen":"1763722800","ahead":{"snapshot":"7:9:7,8","until":"16/B374D900","parts":false},"table":{"oid":3000000000,"entry":"r5","columns":["1:23:-1:id"],"layout":"a"}}"#;
        let stored = Stored::read(&Watermark::new(text)).unwrap();
        assert!(matches!(&stored.position, Position::Log(at) if at.lsn == Lsn(0x16_B374_D848)));
        assert_eq!(stored.write().as_str(), text);
        let first = Position::FirstRead {
            then: Box::new(stored.position.clone()),
            layout: "a".into(),
            done_to_block: 3,
        };
        let first = Stored::new(stored.source, first);
        assert_eq!(Stored::read(&first.write()), Ok(first));
    }

    #[test]
    fn a_place_in_the_log_of_a_replica_is_read_back() {
        let text = r#"{"v":1,"source":"77/1","kind":"log","slot":"s","publication":"p","lsn":"16/B374D848","seen":"1763722800","on_replica":true,"ahead":{"until":"16/B374D900","parts":false},"table":{"oid":3,"entry":"r5","columns":["1:23:-1:id"],"layout":"a"}}"#;
        let stored = Stored::read(&Watermark::new(text)).unwrap();
        assert!(matches!(&stored.position, Position::Log(at) if at.on_replica));
        assert_eq!(stored.write().as_str(), text);
    }

    #[test]
    fn literals_are_exact() {
        let at = Micros(1_763_722_800_000_001);
        assert_eq!(at.literal("timestamptz"), "'2025-11-21 11:00:00.000001+00'::timestamptz");
        assert_eq!(at.literal("timestamp"), "'2025-11-21 11:00:00.000001'::timestamp");
        assert_eq!(at.literal("date"), "'2025-11-21'::date");
        assert_eq!(Micros(i64::MIN).literal("timestamptz"), "'-infinity'::timestamptz");
        assert_eq!(at.floor(3), Micros(1_763_722_800_000_000));
        assert_eq!(Micros(-1).floor(0), Micros(-1_000_000));
    }

    proptest! {
        #[test]
        fn nothing_rounded_falls_below_a_floor(start in any::<i32>(), later in 0i64..10_000_000, digits in 0u32..=6) {
            let tick = 10i64.pow(6 - digits);
            let value = i64::from(start) + later;
            // As the server rounds: half away from zero; either neighbour would do.
            let rounded = (value + tick / 2).div_euclid(tick) * tick;
            prop_assert!(Micros(i64::from(start)).floor(digits).0 <= rounded);
        }
    }
}
