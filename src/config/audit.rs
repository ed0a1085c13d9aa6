//! `audit`: what a change must pass before it is shown.

use std::collections::BTreeMap;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, Visitor};

use super::Names;
use crate::sync::{Audit, AuditScope};

/// What a change must pass before it is shown in the lake.
#[derive(Debug, Clone, Default, serde::Deserialize, JsonSchema)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "a map with `expect`, `nulls`, `unique`, `rows_like_source` or `scope`"
)]
pub struct AuditEntry {
    /// Conditions in SQL over the lake's columns that must be false of no row: `total >= 0`. NULL passes.
    pub expect: Option<Names>,
    /// The share of NULL that columns may have: `email: 5%`.
    pub nulls: BTreeMap<String, Share>,
    /// Columns that together must be different in every row. Reads these columns of the whole table.
    pub unique: Option<Names>,
    /// By how much the number of rows may differ from the source's: `0.1%`. Counts in the source.
    pub rows_like_source: Option<Share>,
    /// Of which rows `expect` and `nulls` speak.
    pub scope: Option<AuditScope>,
}

impl AuditEntry {
    /// As the engine takes it.
    pub(super) fn audit(&self) -> Audit {
        let names = |names: &Option<Names>| names.as_ref().map(|names| names.0.clone()).unwrap_or_default();
        Audit {
            expect: names(&self.expect),
            nulls: self.nulls.iter().map(|(name, share)| (name.clone(), share.0)).collect(),
            unique: names(&self.unique),
            rows_like_source: self.rows_like_source.map(|share| share.0),
            scope: self.scope.unwrap_or_default(),
        }
    }
}

/// A part of a whole: `5%`, or `0.05`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share(pub(super) f64);

impl<'de> de::Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = Share;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a share: `5%`")
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Share, E> {
                self.visit_f64(number as f64)
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Share, E> {
                if (0.0..=1.0).contains(&number) {
                    return Ok(Share(number));
                }
                Err(E::custom("a share is between 0 and 1\nwrite `5%`, or `0.05`"))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Share, E> {
                let number =
                    text.trim().strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok());
                match number.filter(|number| (0.0..=100.0).contains(number)) {
                    Some(number) => Ok(Share(number / 100.0)),
                    None => Err(E::custom("not a share\nwrite it like `5%` or `0.05`")),
                }
            }
        }

        deserializer.deserialize_any(Text)
    }
}

impl JsonSchema for Share {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Share".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A part of a whole: `5%`, or `0.05`.",
            "anyOf": [
                { "type": "string", "pattern": "^[0-9.]+ ?%$" },
                { "type": "number", "minimum": 0, "maximum": 1 }
            ]
        })
    }
}
