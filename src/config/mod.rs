//! What the user wants: flags over environment over file over defaults.
//!
//! ```text
//! frazil.yaml ─▶ tree ─▶ ${VAR} filled ─▶ types (file) ─┐
//! .env ───────────────────┘                             ├─▶ Config ─▶ resolve ─▶ sync::Stream …
//! flags and FRAZIL_… ────────────────────▶ Overrides ───┘              ▲
//!                                         tables that patterns expand to
//! ```
//!
//! What was said is parsed once, with its place in the file; below, every setting has its final
//! value. No message repeats a value that may be a secret.

mod audit;
mod conflicts;
mod connections;
mod decode;
mod file;
mod groups;
mod lake;
mod load;
mod maintenance;
mod names;
mod reconcile;
mod reject;
mod resolve;
mod schedule;
mod shared;
mod suggest;
#[cfg(test)]
mod tests;
mod tree;
pub mod units;
mod values;
mod vars;

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::connection::Connection;
use crate::error::{Error, ErrorKind, Result};
use crate::lake::LakeSettings;
use crate::maintain::Policy;

pub use file::{ChangeWord, File, ModeWord, SchemaWord, Size, Span, StreamEntry};
pub use groups::GroupEntry;
pub use load::environment;
pub use maintenance::{MaintenanceEntry, RunWord, Settings as MaintenanceSettings};
pub use names::Names;
pub use resolve::{Resolved, Selection, TableLister};
pub use shared::SharedEntry;
pub use suggest::did_you_mean;

/// A configuration that has been read: connections parsed, streams not yet expanded.
#[derive(Debug)]
pub struct Config {
    path: Option<PathBuf>,
    connections: BTreeMap<String, Connection>,
    lake: LakeSettings,
    maintenance: Policy,
    defaults: StreamEntry,
    streams: Vec<(String, StreamEntry)>,
    groups: BTreeMap<String, GroupEntry>,
    shared: Vec<SharedEntry>,
    above: StreamEntry,
    tree: tree::Node,
}

/// What flags and environment say; it goes above the file.
#[derive(Debug, Default, Clone)]
pub struct Overrides {
    /// The configuration file.
    pub config: Option<PathBuf>,
    /// A source, by name or URL. Then no file is looked for.
    pub from: Option<String>,
    /// Tables of `from`.
    pub tables: Vec<String>,
    /// A target, by name (`dwh`, `dwh.schema`) or URL.
    pub to: Option<String>,
    /// The table in the target, for a run of one table.
    pub target_table: Option<String>,
    /// The lake's warehouse.
    pub lake: Option<String>,
    /// The lake's catalog.
    pub catalog: Option<String>,
    /// The catalog's name.
    pub catalog_name: Option<String>,
    /// Options of the catalog.
    pub catalog_options: Vec<(String, String)>,
    /// Options of the lake's stores.
    pub lake_options: Vec<(String, String)>,
    /// Settings of all streams.
    pub stream: StreamEntry,
}

impl Config {
    /// The file it came from, if any.
    pub fn path(&self) -> Option<&std::path::Path> {
        self.path.as_deref()
    }

    /// The lake.
    pub fn lake(&self) -> &LakeSettings {
        &self.lake
    }

    /// How lake tables are kept in shape.
    pub fn maintenance(&self) -> &Policy {
        &self.maintenance
    }

    /// All connections, by name.
    pub fn connections(&self) -> impl Iterator<Item = &Connection> {
        self.connections.values()
    }

    /// The connections that streams read from.
    pub fn sources(&self) -> Result<Vec<Connection>> {
        let entries = self.streams.iter().map(|(_, entry)| entry).chain([&self.defaults]);
        let names: std::collections::BTreeSet<&str> =
            entries.filter_map(|entry| entry.source.as_deref()).collect();
        if names.is_empty() {
            return Ok(self.connections.values().cloned().collect());
        }
        names.into_iter().map(|name| self.named(name)).collect()
    }

    /// A connection by its name, or by its URL.
    pub fn connection(&self, name_or_url: &str) -> Result<Connection> {
        if is_url(name_or_url) { connection_by_url(name_or_url) } else { self.named(name_or_url) }
    }

    fn named(&self, name: &str) -> Result<Connection> {
        self.connections.get(name).cloned().ok_or_else(|| {
            let error = Error::new(ErrorKind::Config, format!("unknown connection {}", shown(name)));
            match suggest::hint(name, self.connections.keys().map(String::as_str)) {
                Some(hint) => error.hint(hint),
                None => error.hint("name it under `connections`"),
            }
        })
    }

    /// Where a key stands in the file, for messages.
    fn place(&self, path: &[&str]) -> String {
        let file = self.path.as_deref().map(|path| path.display().to_string()).unwrap_or_default();
        self.tree.locate(path).in_file(&file)
    }
}

/// A connection that has no name but its scheme: for commands that look at one database.
pub fn connection_by_url(url: &str) -> Result<Connection> {
    Connection::parse(url.split_once(':').map_or("url", |(scheme, _)| scheme), url)
}

/// Whether a text names a place rather than a connection.
pub fn is_url(text: &str) -> bool {
    text.contains("://") || text.starts_with("sqlite:")
}

/// The JSON Schema of the configuration file.
pub fn schema() -> serde_json::Value {
    let mut schema = schemars::schema_for!(File).to_value();
    // Serde's aliases are keys like any other to an editor.
    if let Some(stream) = schema.pointer_mut("/$defs/StreamEntry/properties") {
        for (alias, of) in [("update_key", "cursor"), ("incremental_key", "cursor"), ("select", "columns")] {
            let mut copy = stream[of].clone();
            copy["description"] = format!("Another name for `{of}`.").into();
            stream[alias] = copy;
        }
    }
    schema["$id"] = "frazil.schema.json".into();
    schema["title"] = "frazil configuration".into();
    schema
}

/// A user's word in a message: in backticks, unless it looks like an address, which may hold a secret.
fn shown(word: &str) -> String {
    format!("`{}`", plain(word))
}

/// As [`shown`], without backticks.
fn plain(word: &str) -> String {
    const LONGEST: usize = 80; // a name that a person would recognise; more floods the line
    if word.contains("://") || word.contains('@') || word.contains(char::is_control) || word.len() > LONGEST {
        "…".to_owned()
    } else {
        word.to_owned()
    }
}
