//! What the file says of comparisons that `frazil serve` makes: `every 24h`, or a map.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};

use super::StreamEntry;
use super::schedule::{ScheduleEntry, schedule};
use crate::error::{Error, ErrorKind, Result};
use crate::schedule::{Cadence, Reconcile};

/// When a stream's places are compared, as the file says it.
#[derive(Debug, Clone, Default, serde::Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, expecting = "five fields of cron, `every 24h`, or a map")]
#[schemars(rename = "ReconcileSettings")]
struct Settings {
    /// When: with the first pass that begins at this time or later.
    schedule: Option<ScheduleEntry>,
    /// Whether the lake is made like the source, and the target like the lake, where they differ. `true`, if
    /// nothing is said.
    repair: Option<bool>,
}

/// When a stream's places are compared: five fields of cron, `every 24h`, or a map.
#[derive(Debug, Clone, Default)]
pub struct ReconcileEntry(Settings);

impl ReconcileEntry {
    /// What it comes to.
    pub(super) fn reconcile(&self) -> Result<Reconcile> {
        let Settings { schedule: when, repair } = self.0.clone();
        let schedule = schedule(&StreamEntry { schedule: when, ..StreamEntry::default() })?;
        if matches!(schedule.cadence, Cadence::Never) {
            return Err(Error::new(ErrorKind::Config, "`reconcile` does not say when").hint(
                "write `reconcile: every 24h`, or `reconcile: { schedule: \"0 3 * * *\", repair: false }`",
            ));
        }
        Ok(Reconcile { schedule, repair: repair.unwrap_or(true) })
    }
}

impl<'de> Deserialize<'de> for ReconcileEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrMap;

        impl<'de> Visitor<'de> for TextOrMap {
            type Value = ReconcileEntry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("five fields of cron, `every 24h`, or a map")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ReconcileEntry, E> {
                let schedule = ScheduleEntry::deserialize(StrDeserializer::new(text))?;
                Ok(ReconcileEntry(Settings { schedule: Some(schedule), repair: None }))
            }

            fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<ReconcileEntry, A::Error> {
                Settings::deserialize(MapAccessDeserializer::new(entries)).map(ReconcileEntry)
            }
        }

        deserializer.deserialize_any(TextOrMap)
    }
}

impl JsonSchema for ReconcileEntry {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Reconcile".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let map = generator.subschema_for::<Settings>();
        json_schema!({
            "description": "Five fields of cron, `every 24h`, or a map.",
            "anyOf": [{ "type": "string", "examples": ["every 24h", "0 3 * * sun"] }, map]
        })
    }
}
