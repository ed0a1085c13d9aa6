//! `conflicts`: who wins where source and target both changed a row.

use std::collections::BTreeMap;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};

use crate::error::{Error, ErrorKind, Result};
use crate::sync::{Mode, OnReject, StreamSettings};
use crate::target::{ConflictPolicy, ConflictRules};

/// The policies of a stream, as the file says them.
#[derive(Debug, Clone, Default, serde::Deserialize, JsonSchema)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "a policy, or a map with `default`, `columns` and `last_write`"
)]
#[schemars(rename = "ConflictSettings")]
pub(super) struct Settings {
    /// Of columns that have none of their own, and of rows that one side deleted.
    default: ConflictPolicy,
    /// Of single columns: `email: source_wins`.
    columns: BTreeMap<String, ConflictPolicy>,
    /// The column that says when a row was written, for `last_write_wins`.
    last_write: Option<String>,
}

/// Who wins where source and target both changed a row: a policy, or a map.
#[derive(Debug, Clone, Default)]
pub struct ConflictsEntry(Settings);

impl ConflictsEntry {
    /// As the engine takes it.
    pub(super) fn rules(&self) -> ConflictRules {
        let Settings { default, columns, last_write } = self.0.clone();
        ConflictRules { default, columns, last_write }
    }
}

/// Refuses policies that say too little, and settings that do not go with them.
pub(super) fn check(settings: &StreamSettings) -> Result<()> {
    let rules = &settings.conflicts;
    let wrong = |message: &str| Error::new(ErrorKind::Config, message);
    if rules.need_last_write() && rules.last_write.is_none() {
        return Err(wrong("`last_write_wins` needs the column that says when a row was written")
            .hint("conflicts: { default: last_write_wins, last_write: updated_at }"));
    }
    if rules.are_blind() {
        return Ok(());
    }
    if settings.mode.is_some_and(|mode| mode != Mode::Merge) {
        return Err(wrong("conflicts are told apart by key: `conflicts` needs `mode: merge`"));
    }
    if settings.batch_rows.is_some() {
        return Err(wrong("a change whose conflicts are decided comes in one transaction")
            .hint("leave `batch_rows` out, or set `conflicts: source_wins`"));
    }
    if settings.on_reject != OnReject::Stop {
        return Err(wrong("`on_reject: dead_letter` and `conflicts` do not go together yet")
            .hint("leave one of them out"));
    }
    Ok(())
}

impl<'de> Deserialize<'de> for ConflictsEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WordOrMap;

        impl<'de> Visitor<'de> for WordOrMap {
            type Value = ConflictsEntry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a policy, or a map with `default`, `columns` and `last_write`")
            }

            fn visit_str<E: de::Error>(self, word: &str) -> Result<ConflictsEntry, E> {
                let default = ConflictPolicy::deserialize(StrDeserializer::<E>::new(word.trim()))?;
                Ok(ConflictsEntry(Settings { default, ..Settings::default() }))
            }

            fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<ConflictsEntry, A::Error> {
                Settings::deserialize(MapAccessDeserializer::new(entries)).map(ConflictsEntry)
            }
        }

        deserializer.deserialize_any(WordOrMap)
    }
}

impl JsonSchema for ConflictsEntry {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Conflicts".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let word = generator.subschema_for::<ConflictPolicy>();
        let map = generator.subschema_for::<Settings>();
        json_schema!({
            "description": "Who wins where source and target both changed a row: a policy, or a map.",
            "anyOf": [word, map]
        })
    }
}
