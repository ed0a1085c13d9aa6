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

mod ahead;
mod audit;
mod bounds;
pub mod catalog;
mod column_reader;
mod commit;
mod conform;
mod counts;
mod data_file;
mod defaults;
mod deletes;
mod deletion_vectors;
mod delta;
mod difference;
mod equality_deletes;
mod evolve;
mod field_ids;
mod file_diff;
mod file_statistics;
mod footers;
mod format_version;
mod history;
mod inspect;
mod key_spread;
mod lateness;
mod manifest;
mod name_mapping;
mod named_reads;
mod names;
pub mod notices;
mod outbox;
mod partition;
mod partition_values;
mod position_deletes;
mod probe;
mod pruning;
mod refs;
mod reshape;
mod row_lineage;
mod scan;
mod scan_order;
mod schema;
mod snapshot;
mod sort;
mod storage;
#[cfg(test)]
mod tests;
mod theta;
mod upkeep;
mod wide;
mod write;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use chrono::{DateTime, Utc};
use iceberg::TableCreation;
use uuid::Uuid;

use self::ahead::Ahead;
use crate::delta::{SnapshotId, Watermark};
use crate::error::{Error, ErrorKind, Result};
use crate::table::{FormatVersion, TableId};

pub use catalog::CatalogSettings;
pub use commit::{Change, Effect, RowCounts};
pub use delta::{DeltaExtent, SEQ_COLUMN, TableDelta};
pub use difference::{Comparison, Fingerprints, Gone, Sieve};
pub use evolve::{DroppedColumns, Evolution, Fate, SchemaContract, Wanted};
pub use inspect::{FileInfo, HistoryEntry, ManifestInfo, PartitionInfo};
pub use key_spread::Spread;
pub use lateness::{EventOrder, Lateness, micros};
pub use outbox::OUTBOX;
pub use refs::{RefInfo, RefKind, is_ref_name, our_name};
pub use storage::Stores;
pub use upkeep::{
    Expired, Health, Layout, ORPHAN_AGE, Orphan, Orphans, Reason, RegisteredTarget, Retention, Rewrite,
    Rewritten, SMALLEST_ORPHAN_AGE, Why,
};
pub use write::{TableWriter, WrittenFile};

/// The namespace of tables that name none.
pub(crate) const DEFAULT_NAMESPACE: &str = "main";
/// The layout of our own properties and summary entries. A table with a higher number was written by
/// a newer version, and is refused rather than misread.
const FORMAT: u32 = 1;
/// Table property: [`FORMAT`].
const FORMAT_PROPERTY: &str = "frazil.format";
/// Table property: [`TableMode`].
const MODE_PROPERTY: &str = "frazil.mode";
/// Table property: the field ids of the key, as a JSON array in key order.
const KEY_PROPERTY: &str = "frazil.key";

/// Where the lake is.
#[derive(Clone)]
pub struct LakeSettings {
    /// A directory or URL under which tables are created: `./lake`, `s3://bucket/prefix`.
    pub warehouse: String,
    /// Who knows where each table's metadata is.
    pub catalog: CatalogSettings,
    /// Options of the stores, by the names that Iceberg gives them: `s3.endpoint`, `adls.account-name`,
    /// `gcs.service.host`. May hold secrets.
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
    warehouse: Arc<str>,
}

impl Lake {
    /// Opens the catalog. A directory or prefix that is not there yet is an empty lake.
    pub async fn open(settings: &LakeSettings) -> Result<Self> {
        let stores = Arc::new(Stores::new(settings.options.clone()));
        let catalog = catalog::open(&settings.catalog, &settings.warehouse, stores.clone())?;
        Ok(Self { catalog, stores, warehouse: settings.warehouse.as_str().into() })
    }

    /// The directory or URL under which tables are created, as the user wrote it.
    pub fn warehouse(&self) -> &str {
        &self.warehouse
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
        let id = spec.id.clone();
        let creation = creation(spec).map_err(|error| error.with("table", &id))?;
        let table = self.catalog.create(&id, creation).await?;
        Ok(self.wrap(&id, table))
    }

    /// Forgets a table; `false` when there is none. Its data files stay.
    pub async fn drop_table(&self, id: &TableId) -> Result<bool> {
        self.catalog.drop_table(id).await
    }

    /// Gives a table another name, where the catalog can.
    pub async fn rename_table(&self, from: &TableId, to: &TableId) -> Result<()> {
        self.catalog.rename_table(from, to).await
    }

    /// The object stores, for DataFusion's registry.
    pub fn stores(&self) -> Arc<Stores> {
        self.stores.clone()
    }

    fn wrap(&self, id: &TableId, table: iceberg::table::Table) -> LakeTable {
        LakeTable {
            id: id.clone(),
            table,
            catalog: self.catalog.clone(),
            stores: self.stores.clone(),
            ahead: Ahead::default(),
            order: None,
        }
    }
}

/// What the catalog is asked to make.
fn creation(spec: TableSpec) -> Result<TableCreation> {
    if spec.mode == TableMode::Merge && spec.key.is_empty() {
        return Err(Error::new(ErrorKind::Config, "a merge table needs a key")
            .hint("set `primary_key`, or `mode: append` to keep every row that comes"));
    }
    let version = spec.format_version.unwrap_or_default();
    let schema = schema::to_iceberg(&spec.schema, &spec.key)?;
    format_version::refuse_newer_types(&schema, version)?;
    // A new table's ids are given anew, top level first: these are the ids that it will have.
    let fresh = schema::fresh_ids(&schema)?;
    let key: Vec<i32> = spec.key.iter().filter_map(|name| fresh.field_id_by_name(name)).collect();
    let mut properties = schema::column_properties(&spec.schema, &fresh);
    properties.extend([
        (FORMAT_PROPERTY.to_owned(), FORMAT.to_string()),
        (MODE_PROPERTY.to_owned(), spec.mode.name().to_owned()),
        (KEY_PROPERTY.to_owned(), serde_json::to_string(&key).expect("numbers are JSON")),
        ("write.parquet.compression-codec".to_owned(), "zstd".to_owned()),
        ("write.metadata.delete-after-commit.enabled".to_owned(), "true".to_owned()),
    ]);
    if spec.mode == TableMode::Merge {
        for operation in ["delete", "update", "merge"] {
            // What other engines that write here should do as well.
            properties.insert(format!("write.{operation}.mode"), "merge-on-read".to_owned());
        }
    }
    let partition_spec = partition::spec(&schema, &spec.partition_by)?;
    let sort_order = sort::order(&schema, &spec.sort_by)?;
    Ok(TableCreation::builder()
        .name(spec.id.name)
        .schema(schema)
        .partition_spec(partition_spec)
        .sort_order(sort_order)
        .properties(properties)
        .format_version(format_version::of(version))
        .build())
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
    /// The version of the format; `None`: the usual one.
    pub format_version: Option<FormatVersion>,
    /// The order of rows in a file: `[region, created_at desc]`.
    pub sort_by: Vec<String>,
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

impl TableMode {
    fn name(self) -> &'static str {
        match self {
            Self::Merge => "merge",
            Self::Append => "append",
            Self::Replace => "replace",
        }
    }
}

/// One table as it was when loaded; [`reload`](Self::reload) and commits move it forward.
#[derive(Clone)]
pub struct LakeTable {
    id: TableId,
    table: iceberg::table::Table,
    catalog: Arc<dyn catalog::Catalog>,
    stores: Arc<Stores>,
    ahead: Ahead,
    order: Option<EventOrder>,
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

    /// How rows are kept. A table that another engine made is an append table.
    pub fn mode(&self) -> TableMode {
        match self.property(MODE_PROPERTY) {
            Some("merge") => TableMode::Merge,
            Some("replace") => TableMode::Replace,
            _ => TableMode::Append,
        }
    }

    /// From here on, says of commits how rows with one key are ordered; by a column that the table does not
    /// have, or that is neither number nor time, they cannot be.
    pub fn order_by(&mut self, order: Option<EventOrder>) {
        let columns = self.columns();
        let fits = |order: &EventOrder| {
            columns.field_with_name(&order.column).is_ok_and(|column| deletes::ranks_by(column.data_type()))
        };
        self.order = order.filter(fits);
    }

    /// The key's columns, in key order; by field id, so that a rename keeps the key.
    pub fn key(&self) -> Vec<String> {
        let schema = self.table.metadata().current_schema();
        let kept = self.property(KEY_PROPERTY).and_then(|text| serde_json::from_str::<Vec<i32>>(text).ok());
        let ids = kept.unwrap_or_else(|| schema.identifier_field_ids().collect());
        ids.into_iter().filter_map(|id| schema.name_by_field_id(id).map(str::to_owned)).collect()
    }

    /// Its columns now, with the `frazil:` metadata they were made with.
    pub fn schema(&self) -> Result<SchemaRef> {
        let metadata = self.table.metadata();
        Ok(schema::to_arrow(metadata.current_schema(), metadata.properties()))
    }

    /// Looks again at the catalog.
    pub async fn reload(&mut self) -> Result<()> {
        let uuid = self.uuid();
        let table = self.catalog.load(&self.id).await?.filter(|table| table.metadata().uuid() == uuid);
        self.table = table.ok_or_else(|| {
            Error::new(ErrorKind::Conflict, "the table was dropped or made anew").with("table", &self.id)
        })?;
        Ok(())
    }

    fn property(&self, name: &str) -> Option<&str> {
        self.table.metadata().properties().get(name).map(String::as_str)
    }

    /// The sequence number of the next snapshot: grows with every commit.
    pub fn next_sequence_number(&self) -> i64 {
        self.table.metadata().next_sequence_number()
    }

    /// The snapshot that readers see now.
    pub fn current(&self) -> Option<SnapshotId> {
        self.table.metadata().current_snapshot().map(|snapshot| SnapshotId(snapshot.snapshot_id()))
    }
}
