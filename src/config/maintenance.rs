//! What the file says of maintenance: `auto`, `off`, or more in a map.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};

use super::file::{Size, Span};
use crate::lake::{Layout, Retention};
use crate::maintain::Policy;

/// How lake tables are kept in shape: `auto`, `off`, or a map.
#[derive(Debug, Clone, Copy, Default)]
pub struct MaintenanceEntry(Settings);

/// How lake tables are kept in shape.
#[derive(Debug, Clone, Copy, Default, serde::Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, expecting = "`auto`, `off`, or a map of settings")]
#[schemars(rename = "MaintenanceSettings")]
pub struct Settings {
    /// Whether `run` and `sync` look after the tables that they write: `auto` (the default) or `off`.
    pub run: Option<RunWord>,
    /// How large data files should be. As the table says (`write.target-file-size-bytes`), else `256MiB`.
    pub file_size: Option<Size>,
    /// How long snapshots can be read. As the table says (`history.expire.max-snapshot-age-ms`), else `5d`.
    pub keep_snapshots_for: Option<Span>,
    /// How many snapshots stay, however old. As the table says
    /// (`history.expire.min-snapshots-to-keep`), else 1.
    pub keep_snapshots: Option<usize>,
    /// How many snapshots stay, however young: every commit writes the list of them. 2000, if nothing is said.
    pub most_snapshots: Option<usize>,
    /// Whether rewritten rows are sorted: by the table's sort order, else by the key. Sorted files are
    /// cheaper to find keys in, and dearer to write.
    pub sort: Option<bool>,
    /// Files that no snapshot mentions are left alone until they are this old: `3d`.
    pub orphan_age: Option<Span>,
}

/// Whether passes maintain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunWord {
    /// After passes, when it is due.
    Auto,
    /// Only by `frazil maintain`.
    Off,
}

impl MaintenanceEntry {
    /// With the defaults filled in.
    pub(super) fn policy(&self) -> Policy {
        let (said, usual) = (&self.0, Policy::default());
        Policy {
            auto: said.run.is_none_or(|run| run == RunWord::Auto),
            layout: Layout {
                file_bytes: said.file_size.map(|size| size.0),
                sort: said.sort.unwrap_or(usual.layout.sort),
                ..usual.layout
            },
            retention: Retention {
                keep_for: said.keep_snapshots_for.map(|span| span.0),
                at_least: said.keep_snapshots,
                at_most: said.most_snapshots,
            },
            statistics: false,
            orphan_age: said.orphan_age.map_or(usual.orphan_age, |span| span.0),
        }
    }
}

impl<'de> Deserialize<'de> for MaintenanceEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WordOrMap;

        impl<'de> Visitor<'de> for WordOrMap {
            type Value = MaintenanceEntry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`auto`, `off`, or a map of settings")
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<MaintenanceEntry, E> {
                let run = match word {
                    "auto" => RunWord::Auto,
                    "off" => RunWord::Off,
                    _ => return Err(E::unknown_variant(word, &["auto", "off"])),
                };
                Ok(MaintenanceEntry(Settings { run: Some(run), ..Settings::default() }))
            }

            /// YAML of old takes `off` for false.
            fn visit_bool<E: de::Error>(self, on: bool) -> Result<MaintenanceEntry, E> {
                self.visit_str(if on { "auto" } else { "off" })
            }

            fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<MaintenanceEntry, A::Error> {
                Settings::deserialize(MapAccessDeserializer::new(entries)).map(MaintenanceEntry)
            }
        }

        deserializer.deserialize_any(WordOrMap)
    }
}

impl JsonSchema for MaintenanceEntry {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Maintenance".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let map = generator.subschema_for::<Settings>();
        json_schema!({
            "description": "`auto`, `off`, or a map of settings.",
            "anyOf": [{ "enum": ["auto", "off"] }, map]
        })
    }
}
