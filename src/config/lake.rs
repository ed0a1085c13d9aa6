//! The part of the user's file that says where the lake is and who keeps its catalog.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};

use super::Overrides;
use super::file::{File, Secret};
use super::load::beside;
use crate::error::{Error, ErrorKind, Result};
use crate::lake::{CatalogSettings, LakeSettings};

/// Where the lake is when nobody says.
const DEFAULT_WAREHOUSE: &str = "./lake";

/// Where the Iceberg tables are.
#[derive(Debug, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, expecting = "a map with `warehouse`")]
pub struct LakeEntry {
    /// A directory (relative to this file) or a URL: `./lake`, `s3://bucket/prefix`,
    /// `abfss://container@account.dfs.core.windows.net/prefix`, `gs://bucket/prefix`. A REST catalog
    /// takes its own name for it.
    pub warehouse: String,
    /// Who knows where each table's metadata is. `filesystem` (the store itself, the default), or a URL:
    /// `sqlite:catalog.db`, `postgres://…`, `https://…` (REST). Or a map with `url`, `name`, `options`.
    #[serde(default)]
    pub catalog: CatalogEntry,
    /// Options of the stores, by the names that Iceberg gives them: `s3.endpoint`, `s3.region`,
    /// `adls.account-name`, `gcs.service.host`.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, String>")]
    pub options: BTreeMap<String, Secret>,
}

/// A catalog: its URL, or a map with the URL and more.
#[derive(Debug)]
pub struct CatalogEntry {
    /// `filesystem` or a URL.
    pub url: Secret,
    /// Which catalog, where one server holds several.
    pub name: Option<String>,
    /// Options of the catalog.
    pub options: BTreeMap<String, Secret>,
}

impl CatalogEntry {
    fn plain(url: &str) -> Self {
        Self { url: Secret(url.into()), name: None, options: BTreeMap::new() }
    }
}

impl Default for CatalogEntry {
    fn default() -> Self {
        Self::plain(CatalogSettings::FILESYSTEM)
    }
}

impl<'de> Deserialize<'de> for CatalogEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Long {
            url: Secret,
            name: Option<String>,
            #[serde(default)]
            options: BTreeMap<String, Secret>,
        }

        struct UrlOrMap;

        impl<'de> Visitor<'de> for UrlOrMap {
            type Value = CatalogEntry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`filesystem`, a URL, or a map with `url`")
            }

            fn visit_str<E>(self, url: &str) -> Result<CatalogEntry, E> {
                Ok(CatalogEntry::plain(url))
            }

            fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<CatalogEntry, A::Error> {
                let long = Long::deserialize(de::value::MapAccessDeserializer::new(entries))?;
                Ok(CatalogEntry { url: long.url, name: long.name, options: long.options })
            }
        }

        deserializer.deserialize_any(UrlOrMap)
    }
}

impl JsonSchema for CatalogEntry {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Catalog".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A catalog: its URL, or a map with the URL and more.",
            "anyOf": [
                { "type": "string", "description": "`filesystem`, `sqlite:catalog.db`, `postgres://user:${PASSWORD}@host/database`, `https://host/…` (REST)" },
                {
                    "type": "object",
                    "required": ["url"],
                    "additionalProperties": false,
                    "properties": {
                        "url": { "type": "string", "description": "The address." },
                        "name": { "type": "string", "description": "Which catalog, where one server holds several; in a database, `catalog_name`." },
                        "options": {
                            "type": "object",
                            "additionalProperties": { "type": "string" },
                            "description": "Options by the names that Iceberg gives them: `credential`, `token`, `scope`."
                        }
                    }
                }
            ]
        })
    }
}

/// The lake by flags, else by the file, else `./lake`. Relative places in the file begin at its folder.
pub(super) fn settings(file: &File, overrides: &Overrides, folder: &Path) -> Result<LakeSettings> {
    let said = file.lake.as_ref();
    let catalog = catalog(said.map(|lake| &lake.catalog), overrides, folder);
    let warehouse = match (&overrides.lake, said) {
        (Some(flag), _) => flag.clone(),
        // A name on the server, not a directory here.
        (None, Some(lake)) if catalog.is_rest() => lake.warehouse.clone(),
        (None, Some(lake)) => beside(folder, &lake.warehouse),
        (None, None) => beside(folder, DEFAULT_WAREHOUSE),
    };
    if warehouse.trim().is_empty() {
        return Err(Error::new(ErrorKind::Config, "`warehouse` is empty")
            .hint("give a directory or a URL: `./lake`, `s3://bucket/prefix`"));
    }
    let mut options = said.map(|lake| exposed(&lake.options)).unwrap_or_default();
    options.extend(overrides.lake_options.iter().cloned());
    Ok(LakeSettings { warehouse, catalog, options })
}

fn catalog(said: Option<&CatalogEntry>, overrides: &Overrides, folder: &Path) -> CatalogSettings {
    let mut settings = match (&overrides.catalog, said) {
        // What the file says belongs to the file's catalog: its secrets go nowhere else.
        (Some(flag), said) if said.is_none_or(|said| said.url.0 != *flag) => flag.as_str().into(),
        (_, None) => CatalogSettings::default(),
        (_, Some(said)) => CatalogSettings {
            url: match said.url.0.strip_prefix("sqlite:") {
                Some(path) if !path.starts_with('/') => format!("sqlite:{}", beside(&in_url(folder), path)),
                _ => said.url.0.clone(),
            },
            name: said.name.clone(),
            options: exposed(&said.options),
        },
    };
    settings.name = overrides.catalog_name.clone().or(settings.name);
    settings.options.extend(overrides.catalog_options.iter().cloned());
    settings
}

/// A folder as a part of a URL.
fn in_url(folder: &Path) -> PathBuf {
    folder.display().to_string().replace('%', "%25").replace('?', "%3F").replace('#', "%23").into()
}

fn exposed(options: &BTreeMap<String, Secret>) -> BTreeMap<String, String> {
    options.iter().map(|(key, value)| (key.clone(), value.0.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn lake(text: &str, overrides: &Overrides) -> LakeSettings {
        let variable = |name: &str| (name == "PASSWORD").then(|| "s3cret".to_owned());
        let config = Config::parse(Some("at/frazil.yaml".into()), text, overrides, &variable).unwrap();
        config.lake().clone()
    }

    const LONG: &str = "
lake:
  warehouse: s3://lake/w
  catalog:
    url: postgres://ann:${PASSWORD}@db/catalog
    name: prod
    options: { scope: all }
";

    #[test]
    fn a_catalog_is_a_text_or_a_map() {
        let none = Overrides::default();
        let url =
            |catalog: &str| lake(&format!("lake: {{ warehouse: w, catalog: {catalog} }}"), &none).catalog.url;
        assert_eq!(lake("lake: { warehouse: w }", &none).catalog, CatalogSettings::default());
        assert_eq!(url("'sqlite:c.db'"), "sqlite:at/c.db", "beside the file");
        assert_eq!(url("'sqlite:///var/c.db'"), "sqlite:///var/c.db");
        let long = lake(LONG, &none);
        assert_eq!(long.catalog.url, "postgres://ann:s3cret@db/catalog");
        assert_eq!(long.catalog.name.as_deref(), Some("prod"));
        assert_eq!(long.catalog.options["scope"], "all");
        assert!(!format!("{long:?}{:?}", long.catalog).contains("s3cret"));
    }

    #[test]
    fn a_catalog_s_name_on_a_server_is_no_directory() {
        let text = "lake: { warehouse: prod, catalog: 'https://host/iceberg' }";
        assert_eq!(lake(text, &Overrides::default()).warehouse, "prod");
    }

    #[test]
    fn what_the_file_says_goes_to_no_other_catalog() {
        let with = |url: &str| Overrides {
            catalog: Some(url.to_owned()),
            catalog_options: vec![("token".to_owned(), "t".to_owned())],
            ..Overrides::default()
        };
        let other = lake(LONG, &with("https://elsewhere/")).catalog;
        assert_eq!((other.name, other.options.len()), (None, 1));
        let same = lake(LONG, &with("postgres://ann:s3cret@db/catalog")).catalog;
        assert_eq!((same.name.as_deref(), same.options.len()), (Some("prod"), 2));
    }
}
