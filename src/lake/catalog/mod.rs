//! Who knows where a table's current metadata is, and swaps it atomically.
//!
//! ```text
//! filesystem   the next version's file is created, if it is not there     (`filesystem.rs`)
//! rest         a server is asked, and what it shows decides               (`rest/`)
//! sql          one row is updated, if it still names the old file         (`sql.rs`)
//! ```

mod clock;
mod files;
mod filesystem;
mod rest;
mod sql;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use iceberg::table::Table;
use iceberg::{TableCreation, TableRequirement, TableUpdate};

use super::names::encode;
use super::{DEFAULT_NAMESPACE, Stores};
use crate::error::{Error, ErrorKind, Result};
use crate::table::TableId;

pub use filesystem::Filesystem;
pub use rest::Rest;
pub use sql::Sql;

/// Metadata-only changes of others (a property, a tag) that a commit may find in its way, one after
/// the other, before it gives up.
const MOVES: u32 = 10;

/// Who knows where each table's metadata is, as the user says it. A plain text is the URL.
#[derive(Clone, PartialEq, Eq)]
pub struct CatalogSettings {
    /// `filesystem`, or a URL: `sqlite:///path/catalog.db`, `postgres://…`, `https://…` (REST). May
    /// hold a password.
    pub url: String,
    /// The catalog's name where one server holds several; in a database, the column `catalog_name`.
    pub name: Option<String>,
    /// Options by the names that Iceberg gives them: `credential`, `token`, `scope`. May hold secrets.
    pub options: BTreeMap<String, String>,
}

impl CatalogSettings {
    /// The catalog that needs no server.
    pub const FILESYSTEM: &str = "filesystem";

    /// Whether it is a REST catalog: then the warehouse is the server's business.
    pub fn is_rest(&self) -> bool {
        self.url.starts_with("http://") || self.url.starts_with("https://")
    }
}

impl From<&str> for CatalogSettings {
    fn from(url: &str) -> Self {
        Self { url: url.to_owned(), name: None, options: BTreeMap::new() }
    }
}

impl Default for CatalogSettings {
    fn default() -> Self {
        Self::FILESYSTEM.into()
    }
}

impl fmt::Debug for CatalogSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.url.split_once(':').map_or(self.url.as_str(), |(scheme, _)| scheme);
        f.debug_struct("CatalogSettings").field("kind", &kind).finish_non_exhaustive()
    }
}

/// A compare-and-swap over table metadata.
#[async_trait]
pub trait Catalog: Send + Sync {
    /// Finds out whether it can be used, before anything is made in it.
    async fn check(&self) -> Result<()> {
        Ok(())
    }

    /// All tables, in name order.
    async fn tables(&self) -> Result<Vec<TableId>>;

    /// The table's newest metadata, or `None` when there is no such table.
    async fn load(&self, id: &TableId) -> Result<Option<Table>>;

    /// Makes a table, and its namespace where there is none; [`Conflict`](ErrorKind::Conflict) when it
    /// exists.
    async fn create(&self, id: &TableId, creation: TableCreation) -> Result<Table>;

    /// Applies `updates` if `requirements` still hold on the newest metadata.
    /// [`Conflict`](ErrorKind::Conflict) when they do not, and then nothing was or will be applied. An
    /// answer that got lost is resolved before it is reported; where even that fails, the error is
    /// [`Transient`](ErrorKind::Transient) and the swap may still come through.
    async fn commit(
        &self,
        base: &Table,
        requirements: Vec<TableRequirement>,
        updates: Vec<TableUpdate>,
    ) -> Result<Table>;

    /// Forgets a table; `false` when there is none. Its data files stay where they are.
    async fn drop_table(&self, id: &TableId) -> Result<bool>;

    /// Gives a table another name; [`Conflict`](ErrorKind::Conflict) when that is taken,
    /// [`Config`](ErrorKind::Config) when there is no table, [`Unsupported`](ErrorKind::Unsupported)
    /// where names cannot change.
    async fn rename_table(&self, from: &TableId, to: &TableId) -> Result<()>;
}

/// Opens the catalog that the settings name, for tables under `warehouse`.
pub fn open(settings: &CatalogSettings, warehouse: &str, stores: Arc<Stores>) -> Result<Arc<dyn Catalog>> {
    match settings.url.split_once(':') {
        None if settings.url == CatalogSettings::FILESYSTEM => {
            Ok(Arc::new(Filesystem::new(warehouse, stores)?))
        }
        Some(("sqlite" | "postgres" | "postgresql", _)) => {
            Ok(Arc::new(Sql::new(settings, warehouse, stores)?))
        }
        Some(("http" | "https", _)) => Ok(Arc::new(Rest::new(settings, warehouse, stores)?)),
        // What was written is not repeated: it may hold a password.
        _ => Err(Error::new(ErrorKind::Config, "the lake's `catalog` is not known").hint(
            "write `filesystem`, `sqlite:///path/catalog.db`, `postgres://user:${PASSWORD}@host/database` \
             or `https://host/…` for a REST catalog",
        )),
    }
}

/// Where a new table's files go, if nobody says.
fn location(warehouse: &str, id: &TableId) -> String {
    format!("{warehouse}/{}/{}", encode(id.schema_or(DEFAULT_NAMESPACE)), encode(&id.name))
}

/// Somebody else was first.
fn exists(id: &TableId) -> Error {
    Error::new(ErrorKind::Conflict, "another runner made the table first")
        .with("table", id)
        .hint("run again: the next run goes on from what the table holds")
}

fn no_table(id: &TableId) -> Error {
    Error::new(ErrorKind::Config, "there is no such table in the lake").with("table", id)
}
