//! Who knows where a table's current metadata is, and swaps it atomically.

mod filesystem;

use async_trait::async_trait;
use iceberg::table::Table;
use iceberg::{TableCreation, TableRequirement, TableUpdate};

use crate::error::Result;
use crate::table::TableId;

pub use filesystem::Filesystem;

/// A compare-and-swap over table metadata.
#[async_trait]
pub trait Catalog: Send + Sync {
    /// All tables, in name order.
    async fn tables(&self) -> Result<Vec<TableId>>;

    /// The table's newest metadata, or `None` when there is no such table.
    async fn load(&self, id: &TableId) -> Result<Option<Table>>;

    /// Makes a table; [`Conflict`](crate::ErrorKind::Conflict) when it exists.
    async fn create(&self, id: &TableId, creation: TableCreation) -> Result<Table>;

    /// Applies `updates` if `requirements` still hold on the newest metadata.
    /// [`Conflict`](crate::ErrorKind::Conflict) when they do not. An answer that got lost is resolved
    /// before it is reported: success means committed, an error means not.
    async fn commit(
        &self,
        base: &Table,
        requirements: Vec<TableRequirement>,
        updates: Vec<TableUpdate>,
    ) -> Result<Table>;
}
