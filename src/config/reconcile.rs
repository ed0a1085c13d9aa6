//! What the file says of comparisons that `frazil serve` makes: `every 24h`, or a map.

use std::fmt;
use std::num::NonZero;

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
    /// About how many rows are compared after each pass, in one place of the key by chance: 1000. With no
    /// `schedule`, nothing else is. The key has to begin with a whole number or a date.
    sample: Option<NonZero<u64>>,
}

/// When a stream's places are compared: five fields of cron, `every 24h`, or a map.
#[derive(Debug, Clone, Default)]
pub struct ReconcileEntry(Settings);

impl ReconcileEntry {
    /// What it comes to.
    pub(super) fn reconcile(&self) -> Result<Reconcile> {
        let Settings { schedule: when, repair, sample } = self.0.clone();
        let schedule = schedule(&StreamEntry { schedule: when, ..StreamEntry::default() })?;
        let schedule = Some(schedule).filter(|schedule| !matches!(schedule.cadence, Cadence::Never));
        if schedule.is_none() && sample.is_none() {
            return Err(Error::new(ErrorKind::Config, "`reconcile` does not say when").hint(
                "write `reconcile: every 24h`, or `reconcile: { schedule: \"0 3 * * *\", repair: false }`",
            ));
        }
        Ok(Reconcile { schedule, sample: sample.map(NonZero::get), repair: repair.unwrap_or(true) })
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
                Ok(ReconcileEntry(Settings { schedule: Some(schedule), ..Settings::default() }))
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
