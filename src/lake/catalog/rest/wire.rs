//! Requests and answers of Iceberg's REST protocol, as far as they are used.

use std::collections::{BTreeMap, HashMap};

use iceberg::spec::{Schema, SortOrder, UnboundPartitionSpec};
use iceberg::{TableRequirement, TableUpdate};
use serde::{Deserialize, Serialize};

#[derive(Debug, Default, Deserialize)]
pub(super) struct Config {
    #[serde(default)]
    pub(super) defaults: BTreeMap<String, Option<String>>,
    #[serde(default)]
    pub(super) overrides: BTreeMap<String, Option<String>>,
    /// `GET /v1/{prefix}/namespaces`, …: what the server can do, where it says so.
    #[serde(default)]
    pub(super) endpoints: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Namespaces {
    #[serde(default)]
    pub(super) namespaces: Vec<Vec<String>>,
    #[serde(default)]
    pub(super) next_page_token: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Tables {
    #[serde(default)]
    pub(super) identifiers: Vec<Identifier>,
    #[serde(default)]
    pub(super) next_page_token: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Identifier {
    pub(super) namespace: Vec<String>,
    pub(super) name: String,
}

#[derive(Serialize)]
pub(super) struct CreateNamespace<'a> {
    pub(super) namespace: &'a [String],
    pub(super) properties: BTreeMap<String, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct CreateTable {
    pub(super) name: String,
    pub(super) schema: Schema,
    pub(super) partition_spec: UnboundPartitionSpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) write_order: Option<SortOrder>,
    pub(super) properties: HashMap<String, String>,
}

/// A table as it is loaded, created, and answered to a commit.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Loaded {
    #[serde(default)]
    pub(super) metadata_location: Option<String>,
    pub(super) metadata: serde_json::Value,
    /// How to reach the table's files; may hold secrets.
    #[serde(default)]
    pub(super) config: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) storage_credentials: Vec<Credential>,
}

/// Credentials of files under a prefix.
#[derive(Deserialize)]
pub(super) struct Credential {
    pub(super) prefix: String,
    #[serde(default)]
    pub(super) config: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Credentials {
    #[serde(default)]
    pub(super) storage_credentials: Vec<Credential>,
}

#[derive(Serialize)]
pub(super) struct Commit<'a> {
    pub(super) identifier: Identifier,
    pub(super) requirements: &'a [TableRequirement],
    pub(super) updates: &'a [TableUpdate],
}

#[derive(Serialize)]
pub(super) struct Rename {
    pub(super) source: Identifier,
    pub(super) destination: Identifier,
}

/// An answer of an OAuth2 server.
#[derive(Deserialize)]
pub(super) struct Token {
    pub(super) access_token: String,
    #[serde(default)]
    pub(super) expires_in: Option<u64>,
}

/// What is said with a status that is no success, by the catalog or by the OAuth2 server.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Refusal {
    #[serde(default)]
    pub(super) error: serde_json::Value,
    #[serde(default)]
    pub(super) error_description: Option<String>,
}
