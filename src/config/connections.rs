//! `connections`: databases, each a URL or a map.

use std::collections::BTreeMap;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};

use super::file::Secret;

/// A database: its URL, or a map with the URL and more.
#[derive(Debug)]
pub struct ConnectionEntry {
    /// `postgres://user:${PASSWORD}@host/database`, `sqlite:///path/to/file.db`.
    pub url: Secret,
    /// The password, if it is not in the URL; written as it is.
    pub password: Option<Secret>,
    /// Options of the URL (`sslmode: require`).
    pub options: BTreeMap<String, String>,
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
        }

        struct UrlOrMap;

        impl<'de> Visitor<'de> for UrlOrMap {
            type Value = ConnectionEntry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a URL, or a map with `url`")
            }

            fn visit_str<E>(self, url: &str) -> Result<ConnectionEntry, E> {
                Ok(ConnectionEntry { url: Secret(url.into()), password: None, options: BTreeMap::new() })
            }

            fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<ConnectionEntry, A::Error> {
                let long = Long::deserialize(de::value::MapAccessDeserializer::new(entries))?;
                Ok(ConnectionEntry { url: long.url, password: long.password, options: long.options })
            }
        }

        deserializer.deserialize_any(UrlOrMap)
    }
}

impl JsonSchema for ConnectionEntry {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Connection".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
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
                        }
                    }
                }
            ]
        })
    }
}
