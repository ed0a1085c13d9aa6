//! `max_rejected`: how many rows of a pass may become dead letters.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, Visitor};

use crate::sync::RejectLimit;

/// A number of rows, `100`, or a share of those read, `0.1%`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limit(pub(super) RejectLimit);

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RowsOrShare;

        impl Visitor<'_> for RowsOrShare {
            type Value = Limit;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of rows, or a share: `100`, `0.1%`")
            }

            fn visit_u64<E: de::Error>(self, rows: u64) -> Result<Limit, E> {
                Ok(Limit(RejectLimit::Rows(rows)))
            }

            fn visit_i64<E: de::Error>(self, rows: i64) -> Result<Limit, E> {
                let rows = u64::try_from(rows).map_err(|_| E::custom("fewer rows than none"))?;
                self.visit_u64(rows)
            }

            fn visit_f64<E: de::Error>(self, _: f64) -> Result<Limit, E> {
                Err(E::custom("neither a number of rows nor a share\nwrite `100`, or `0.1%`"))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Limit, E> {
                let text = text.trim();
                if let Ok(rows) = text.parse() {
                    return self.visit_u64(rows);
                }
                let share = text.strip_suffix('%').and_then(|share| share.trim().parse::<f64>().ok());
                match share.filter(|share| (0.0..=100.0).contains(share)) {
                    Some(share) => Ok(Limit(RejectLimit::Share(share / 100.0))),
                    None => self.visit_f64(0.0),
                }
            }
        }

        deserializer.deserialize_any(RowsOrShare)
    }
}

impl JsonSchema for Limit {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "RejectLimit".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A number of rows, `100`, or a share of those read, `0.1%`.",
            "anyOf": [
                { "type": "integer", "minimum": 0 },
                { "type": "string", "pattern": "^[0-9.]+ ?%$" }
            ]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_number_or_a_share() {
        let read = |text: &str| serde_json::from_str::<Limit>(text).map(|limit| limit.0).ok();
        assert_eq!(read("100"), Some(RejectLimit::Rows(100)));
        assert_eq!(read("\"7\""), Some(RejectLimit::Rows(7)));
        assert_eq!(read("\"50 %\""), Some(RejectLimit::Share(0.5)));
        for wrong in ["-1", "0.1", "\"101%\"", "\"few\"", "\"NaN%\""] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
