//! The lake: Iceberg tables on an object store. Hears nothing of databases.
//!
//! ```text
//!            create / load                       writer ─▶ files ─┐
//! Lake ─────────────────────▶ LakeTable ─────┬─▶                  ├─▶ commit ─▶ snapshot
//!   │ catalog (compare-and-swap)             │   position ────────┘
//!   └ stores (object_store)                  ├─▶ provider (DataFusion)
//!                                            └─▶ delta between two snapshots
//! ```
//!
//! What always holds: a snapshot holds rows and the watermark that covers them, or neither. A
//! snapshot is only ever added on the state that its author saw.

pub mod catalog;
mod commit;
#[allow(dead_code)] // until commit calls it
mod deletes;
mod delta;
mod scan;
mod schema;
mod storage;
mod write;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::delta::{SnapshotId, Watermark};
use crate::error::{Error, ErrorKind, Result};
use crate::table::TableId;

pub use commit::{Change, Effect};
pub use delta::{DeltaExtent, TableDelta};
pub use storage::Stores;
pub use write::{TableWriter, WrittenFile};

/// Where the lake is.
#[derive(Clone)]
pub struct LakeSettings {
    /// A directory or URL under which tables are created: `./lake`, `s3://bucket/prefix`.
    pub warehouse: String,
    /// `filesystem`, or a catalog's URL.
    pub catalog: String,
    /// Options of the store, by the names that Iceberg gives them: `s3.endpoint`, `s3.region`,
    /// `s3.access-key-id`, `s3.secret-access-key`, `s3.path-style-access`. May hold secrets.
    pub options: BTreeMap<String, String>,
}

impl std::fmt::Debug for LakeSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LakeSettings").field("warehouse", &self.warehouse).finish_non_exhaustive()
    }
}

/// A catalog and the stores behind it.
#[derive(Clone)]
pub struct Lake {
    catalog: Arc<dyn catalog::Catalog>,
    stores: Arc<Stores>,
}

impl Lake {
    /// Opens the catalog. A directory or prefix that is not there yet is an empty lake.
    pub async fn open(settings: &LakeSettings) -> Result<Self> {
        let _ = settings;
        Err(Error::new(ErrorKind::Unsupported, "not built yet"))
    }

    /// All tables, in name order.
    pub async fn tables(&self) -> Result<Vec<TableId>> {
        self.catalog.tables().await
    }

    /// The table as it is now, or `None`.
    pub async fn table(&self, id: &TableId) -> Result<Option<LakeTable>> {
        Ok(self.catalog.load(id).await?.map(|table| self.wrap(id, table)))
    }

    /// A new, empty table.
    pub async fn create(&self, spec: TableSpec) -> Result<LakeTable> {
        let _ = spec;
        Err(Error::new(ErrorKind::Unsupported, "not built yet"))
    }

    /// The object stores, for DataFusion's registry.
    pub fn stores(&self) -> Arc<Stores> {
        self.stores.clone()
    }

    fn wrap(&self, id: &TableId, table: iceberg::table::Table) -> LakeTable {
        LakeTable { id: id.clone(), table, catalog: self.catalog.clone(), stores: self.stores.clone() }
    }
}

/// A table to be made.
#[derive(Debug, Clone)]
pub struct TableSpec {
    /// Its name; the schema is the Iceberg namespace (`main` where none is said).
    pub id: TableId,
    /// Its columns. Field metadata under `frazil:` is kept.
    pub schema: SchemaRef,
    /// How rows are kept.
    pub mode: TableMode,
    /// Key columns: the Iceberg identifier fields. Not empty for `Merge`.
    pub key: Vec<String>,
    /// Partition transforms in the words of Iceberg: `day(created_at)`, `bucket(16, id)`, `region`.
    pub partition_by: Vec<String>,
}

/// How a table keeps rows. Stored as the table property `frazil.mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableMode {
    /// One row a key: the table is the current state.
    Merge,
    /// Every row that ever came, with `_op`, `_seq` and `_at`.
    Append,
    /// Whatever the last read found; may have no key. Its deltas are always from nothing.
    Replace,
}

/// One table as it was when loaded; [`reload`](Self::reload) and commits move it forward.
#[derive(Clone)]
pub struct LakeTable {
    id: TableId,
    table: iceberg::table::Table,
    catalog: Arc<dyn catalog::Catalog>,
    stores: Arc<Stores>,
}

/// How far ingestion into a table has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// Covers every row that the table holds.
    pub watermark: Watermark,
    /// A first read is under way: its rows are committed aside and not yet shown.
    pub unfinished: bool,
}

/// One entry of a table's history.
#[derive(Debug, Clone)]
pub struct SnapshotInfo {
    /// Its id.
    pub id: SnapshotId,
    /// The snapshot it was made from.
    pub parent: Option<SnapshotId>,
    /// When it was committed.
    pub committed_at: DateTime<Utc>,
    /// `append`, `overwrite`, `replace` or `delete`.
    pub operation: String,
    /// The summary of the specification, and our own entries under `frazil.`.
    pub summary: BTreeMap<String, String>,
}

impl LakeTable {
    /// Its name.
    pub fn id(&self) -> &TableId {
        &self.id
    }

    /// Its UUID, which a table dropped and made anew does not keep.
    pub fn uuid(&self) -> Uuid {
        self.table.metadata().uuid()
    }

    /// Where its files are.
    pub fn location(&self) -> &str {
        self.table.metadata().location()
    }

    /// Its columns now, with the `frazil:` metadata they were made with.
    pub fn schema(&self) -> Result<SchemaRef> {
        Err(Error::new(ErrorKind::Unsupported, "not built yet"))
    }

    /// How rows are kept.
    pub fn mode(&self) -> TableMode {
        TableMode::Merge
    }

    /// The key columns' names.
    pub fn key(&self) -> Vec<String> {
        Vec::new()
    }

    /// Makes the table fit rows of `schema`: adds, widens and renames columns. Says what it did, in
    /// sentences. [`Schema`](ErrorKind::Schema) when a change would lose something.
    pub async fn evolve(&mut self, schema: &SchemaRef) -> Result<Vec<String>> {
        let _ = schema;
        Err(Error::new(ErrorKind::Unsupported, "not built yet"))
    }

    /// The snapshot that readers see now.
    pub fn current(&self) -> Option<SnapshotId> {
        self.table.metadata().current_snapshot().map(|snapshot| SnapshotId(snapshot.snapshot_id()))
    }
}
