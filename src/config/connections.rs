//! `connections`: databases, each a URL or a map.

use std::collections::BTreeMap;
use std::fmt;
use std::num::{NonZeroU64, NonZeroUsize};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};

use super::file::{Secret, Size, Span};
use crate::connection::Limits;

/// A database: its URL, or a map with the URL and more.
#[derive(Debug)]
pub struct ConnectionEntry {
    /// `postgres://user:${PASSWORD}@host/database`, `sqlite:///path/to/file.db`.
    pub url: Secret,
    /// The password, if it is not in the URL; written as it is.
    pub password: Option<Secret>,
    /// Options of the URL (`sslmode: require`).
    pub options: BTreeMap<String, String>,
    /// How hard it may be read.
    pub limits: LimitsEntry,
}

/// How hard a connection may be read, by all streams of a process together. No limits, if nothing is said.
#[derive(Debug, Clone, Copy, Default, serde::Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, expecting = "a map of limits")]
#[schemars(rename = "Limits")]
pub struct LimitsEntry {
    /// Rows a second.
    pub rows_per_second: Option<NonZeroU64>,
    /// Bytes a second, of rows as they are held in memory: `20MB`.
    pub bytes_per_second: Option<Size>,
    /// Sessions that read at the same time.
    pub connections: Option<NonZeroUsize>,
    /// Pause while a replica is further behind: the one that is read, or the last of those that follow the
    /// server that is read. Postgres only.
    pub replica_lag: Option<Span>,
    /// Pause while so many sessions of the database, or more, wait for locks. Postgres only.
    pub waiting_sessions: Option<NonZeroU64>,
}

impl LimitsEntry {
    /// What it means.
    pub(super) fn limits(&self) -> Limits {
        Limits {
            rows_per_second: self.rows_per_second,
            bytes_per_second: self.bytes_per_second.and_then(|Size(bytes)| NonZeroU64::new(bytes)),
            connections: self.connections,
            replica_lag: self.replica_lag.map(|Span(lag)| lag),
            waiting_sessions: self.waiting_sessions,
        }
    }
}

impl<'de> Deserialize<'de> for ConnectionEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Long {
            url: Secret,
            password: Option<Secret>,
            #[serde(default)]
            options: BTreeMap<String, String>,
            #[serde(default)]
            limits: LimitsEntry,
        }

        struct UrlOrMap;

        impl<'de> Visitor<'de> for UrlOrMap {
            type Value = ConnectionEntry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a URL, or a map with `url`")
            }

            fn visit_str<E>(self, url: &str) -> Result<ConnectionEntry, E> {
                let (options, limits) = Default::default();
                Ok(ConnectionEntry { url: Secret(url.into()), password: None, options, limits })
            }

            fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<ConnectionEntry, A::Error> {
                let long = Long::deserialize(de::value::MapAccessDeserializer::new(entries))?;
                let Long { url, password, options, limits } = long;
                Ok(ConnectionEntry { url, password, options, limits })
            }
        }

        deserializer.deserialize_any(UrlOrMap)
    }
}

impl JsonSchema for ConnectionEntry {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Connection".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let limits = generator.subschema_for::<LimitsEntry>();
        json_schema!({
            "description": "A database: its URL, or a map with the URL and more.",
            "anyOf": [
                { "type": "string", "description": "`postgres://user:${PASSWORD}@host/database`, `sqlite:///path/to/file.db`" },
                {
                    "type": "object",
                    "required": ["url"],
                    "additionalProperties": false,
                    "properties": {
                        "url": { "type": "string", "description": "The address." },
                        "password": { "type": "string", "description": "The password, if it is not in the URL; written as it is." },
                        "options": {
                            "type": "object",
                            "additionalProperties": { "type": "string" },
                            "description": "Options of the URL: `sslmode: require`."
                        },
                        "limits": limits
                    }
                }
            ]
        })
    }
}
