//! Batches into data files: Parquet, partitioned, rolled at a size, with exact bounds.
//!
//! ```text
//! batch ─▶ conform ─┬─▶ partition a ─▶ (sort) ─▶ row group ─▶ upload ─▶ file, file, …
//!                   └─▶ partition b ─▶ (sort) ─▶ row group ─▶ upload ─▶ file, …
//! ```
//!
//! Encoding runs on the task that writes: each parallel stream has its own writer, and so its own
//! core. What a writer holds is one row group's worth of encoded rows over all its open files, the
//! parts on their way to the store, and the batch in hand; of a table with an order, another row
//! group's worth of Arrow bytes that wait to be sorted, and their sorted copy.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use arrow::row::OwnedRow;
use iceberg::spec::{DataFile, Struct};
use uuid::Uuid;

use super::conform::Conform;
use super::data_file::{Layout, OpenFile};
use super::format_version::is_v3;
use super::partition::Splitter;
use super::row_lineage::with_lineage;
use super::sort::{Sorted, Sorter};
use super::storage::Stores;
use super::{LakeTable, TableMode, schema};
use crate::error::Result;
use crate::memory::Budget;

/// A file ends when it reaches this size: large enough that a snapshot of a big table stays a short
/// list, small enough that compaction and parallel readers have something to divide.
pub(super) const FILE_BYTES: u64 = 256 << 20;
/// Files that are open at once, one a partition. Each costs encoders, an upload and a part of the
/// row-group budget; beyond it the least recently used is ended.
const OPEN_FILES: usize = 64;

/// Table property: where data goes that shall not lie beside the metadata. A store that a catalog
/// guards may refuse files that it does not know, such as `.puffin`.
const DATA_PATH: &str = "write.data.path";
/// Rows that are encoded at a time out of a sorted run.
const WRITTEN_ROWS: usize = 65_536;

/// A file that is written and not yet part of any snapshot.
#[derive(Debug, Clone, PartialEq)]
pub struct WrittenFile {
    /// As it will stand in a manifest.
    pub file: DataFile,
    /// The partition spec it was written by.
    pub spec_id: i32,
}

/// Writes rows of one table into new data files. One for each parallel stream; used by one task.
pub struct TableWriter {
    table: LakeTable,
    conform: Conform,
    splitter: Option<Splitter>,
    sorter: Option<Sorter>,
    bloom: Vec<String>,
    layout: Option<Arc<Layout>>,
    open: HashMap<Struct, Open>,
    written: Vec<WrittenFile>,
    /// Names the files of this writer.
    id: Uuid,
    files: usize,
    batches: u64,
    row_group_bytes: usize,
    file_bytes: u64,
}

struct Open {
    file: OpenFile,
    /// The number of the batch that was written last.
    used: u64,
    /// Rows that wait to be sorted, and their Arrow bytes.
    run: Vec<RecordBatch>,
    run_bytes: usize,
    /// The greatest sort key so far; `None` before the first run.
    last: Option<OwnedRow>,
    /// Whether all runs so far follow each other.
    in_order: bool,
}

impl Open {
    fn new(file: OpenFile) -> Self {
        Self { file, used: 0, run: Vec::new(), run_bytes: 0, last: None, in_order: true }
    }

    /// Sorts what waits and writes it.
    async fn write_run(&mut self, sorter: &Sorter) -> Result<()> {
        let run = std::mem::take(&mut self.run);
        self.run_bytes = 0;
        if run.is_empty() {
            return Ok(());
        }
        let Sorted { rows, ends } = sorter.sort(&run)?;
        drop(run);
        if let Some((first, last)) = ends {
            self.in_order &= self.last.as_ref().is_none_or(|before| *before <= first);
            self.last = Some(last);
        }
        // In slices: an encoder takes a batch whole, pages and all.
        for start in (0..rows.num_rows()).step_by(WRITTEN_ROWS) {
            self.file.write(&rows.slice(start, WRITTEN_ROWS.min(rows.num_rows() - start))).await?;
        }
        Ok(())
    }
}

impl TableWriter {
    /// Ends files at another size than the table says.
    pub(super) fn with_file_bytes(self, file_bytes: u64) -> Self {
        Self { file_bytes, ..self }
    }

    /// Adds a batch with the table's columns, matched by name.
    pub async fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let outcome = self.add(batch).await;
        outcome.map_err(|error| error.with("table", self.table.id()))
    }

    async fn add(&mut self, batch: &RecordBatch) -> Result<()> {
        let batch = self.conform.apply(batch)?;
        self.batches += 1;
        if self.layout.as_ref().is_some_and(|layout| !layout.takes(&batch)) {
            self.close_all().await?;
            self.layout = None;
        }
        if self.layout.is_none() {
            let schema = self.table.table.metadata().current_schema().clone();
            self.layout = Some(Arc::new(Layout::new(schema, batch.schema(), &self.bloom, &batch)?));
        }
        match &self.splitter {
            None => self.add_to(Struct::empty(), &batch).await,
            Some(splitter) => {
                for (partition, rows) in splitter.split(&batch)? {
                    self.add_to(partition, &rows).await?;
                }
                Ok(())
            }
        }
    }

    async fn add_to(&mut self, partition: Struct, batch: &RecordBatch) -> Result<()> {
        if !self.open.contains_key(&partition) {
            if self.open.len() >= OPEN_FILES {
                let oldest = self.open.iter().min_by_key(|(_, open)| open.used).map(|(key, _)| key.clone());
                self.close(&oldest.expect("some file is open")).await?;
            }
            let file = self.create(&partition)?;
            self.open.insert(partition.clone(), Open::new(file));
        }
        let open = self.open.get_mut(&partition).expect("just opened");
        open.used = self.batches;
        match &self.sorter {
            None => open.file.write(batch).await?,
            Some(sorter) => {
                open.run_bytes += batch.get_array_memory_size();
                open.run.push(batch.clone());
                if open.run_bytes >= self.row_group_bytes {
                    open.write_run(sorter).await?;
                }
            }
        }
        let open = self.open.get_mut(&partition).expect("just opened");
        // Whoever reads a wide column holds what a row group has of it, unpacked.
        let is_wide = self.layout.as_ref().is_some_and(|layout| layout.is_wide());
        if open.file.row_group_bytes() >= self.row_group_bytes
            || is_wide && batch.get_array_memory_size() >= self.row_group_bytes
        {
            open.file.flush().await?;
        }
        if open.file.bytes() >= self.file_bytes {
            self.close(&partition).await?;
        }
        self.relieve().await
    }

    /// Ends the largest row groups until what is buffered fits the budget again.
    async fn relieve(&mut self) -> Result<()> {
        if self.open.len() < 2 {
            return Ok(());
        }
        // Encoders keep their pages apart until the row group ends, so memory can be near twice the bytes.
        while self.open.values().map(|open| open.file.buffered()).sum::<usize>() > 2 * self.row_group_bytes {
            let largest = self.open.values_mut().max_by_key(|open| open.file.buffered());
            largest.expect("two files are open").file.flush().await?;
        }
        let Some(sorter) = &self.sorter else { return Ok(()) };
        while self.open.values().map(|open| open.run_bytes).sum::<usize>() > self.row_group_bytes {
            let largest = self.open.values_mut().max_by_key(|open| open.run_bytes);
            largest.expect("two files are open").write_run(sorter).await?;
        }
        Ok(())
    }

    fn create(&mut self, partition: &Struct) -> Result<OpenFile> {
        let layout = self.layout.as_ref().expect("made with the first batch");
        let directory = match &self.splitter {
            Some(splitter) => format!("{}/", splitter.directory(partition)),
            None => String::new(),
        };
        let location =
            format!("{}/{directory}{}-{:05}.parquet", self.table.data_location(), self.id, self.files);
        self.files += 1;
        OpenFile::create(layout, &self.table.stores, location, partition.clone(), self.spec_id())
    }

    async fn close(&mut self, partition: &Struct) -> Result<()> {
        if let Some(mut open) = self.open.remove(partition) {
            let mut order = None;
            if let Some(sorter) = &self.sorter {
                open.write_run(sorter).await?;
                order = open.in_order.then_some(sorter.order_id());
            }
            let file = open.file.finish(order).await?;
            self.written.push(WrittenFile { file, spec_id: self.spec_id() });
        }
        Ok(())
    }

    /// Leaves rows in the order in which they come: where a key may come twice, the last one counts.
    #[must_use]
    pub fn unsorted(mut self) -> Self {
        self.sorter = None;
        self
    }

    /// Whether the rows of its files, put end to end, are in the order in which they come.
    pub(super) fn keeps_order(&self) -> bool {
        self.splitter.is_none() && self.sorter.is_none()
    }

    fn spec_id(&self) -> i32 {
        self.table.table.metadata().default_partition_spec_id()
    }

    /// Completes the files. Dropping a writer instead leaves at most orphans.
    pub async fn finish(mut self) -> Result<Vec<WrittenFile>> {
        if let Err(error) = self.close_all().await {
            discard(&self.table.stores, &self.written).await;
            return Err(error.with("table", self.table.id()));
        }
        Ok(std::mem::take(&mut self.written))
    }

    /// Completes the open files, the one that was written to last at the end.
    async fn close_all(&mut self) -> Result<()> {
        let mut partitions: Vec<_> = self.open.iter().map(|(key, open)| (open.used, key.clone())).collect();
        partitions.sort_by_key(|(used, _)| *used);
        for (_, partition) in partitions {
            self.close(&partition).await?;
        }
        Ok(())
    }
}

/// Deletes files that will not be committed, as far as that works: orphans do no harm.
pub(super) async fn discard(stores: &Stores, files: &[WrittenFile]) {
    use object_store::ObjectStoreExt;
    for written in files {
        if let Ok((store, path)) = stores.resolve(written.file.file_path())
            && let Err(error) = store.delete(&path).await
        {
            tracing::debug!(%error, "a file without use was not deleted");
        }
    }
}

impl LakeTable {
    /// Where new data and delete files go, without a slash at the end.
    pub(super) fn data_location(&self) -> String {
        match self.property(DATA_PATH) {
            Some(path) => path.trim_end_matches('/').to_owned(),
            None => format!("{}/data", self.location()),
        }
    }

    /// A writer by the table's current schema, partition spec and order.
    pub fn writer(&self, budget: Budget) -> Result<TableWriter> {
        let metadata = self.table.metadata();
        let bloom = if self.mode() == TableMode::Merge { self.key() } else { Vec::new() };
        Ok(TableWriter {
            table: self.clone(),
            conform: Conform::new(schema::to_file_schema(metadata.current_schema())),
            splitter: Splitter::new(metadata.current_schema(), metadata.default_partition_spec())?,
            sorter: Sorter::new(metadata.current_schema(), metadata.default_sort_order())?,
            bloom,
            layout: None,
            open: HashMap::new(),
            written: Vec::new(),
            id: Uuid::new_v4(),
            files: 0,
            batches: 0,
            row_group_bytes: budget.row_group_bytes(),
            file_bytes: self.file_bytes(None),
        })
    }

    /// The same, for rows that are moved from other files: of a table in format version 3 they bring
    /// `_row_id` and `_last_updated_sequence_number` with them, which are written down.
    pub fn rewriter(&self, budget: Budget) -> Result<TableWriter> {
        let writer = self.writer(budget)?;
        if !is_v3(self.table.metadata()) {
            return Ok(writer);
        }
        let columns = schema::to_file_schema(self.table.metadata().current_schema());
        Ok(TableWriter { conform: Conform::new(with_lineage(&columns)?), ..writer })
    }

    /// A writer of keys alone, for [`Effect::Log`](super::Effect::Log): its files lie beside the table's
    /// and never belong to it.
    pub fn key_writer(&self, budget: Budget) -> Result<TableWriter> {
        let writer = self.writer(budget)?;
        let (columns, key) = (schema::to_file_schema(self.table.metadata().current_schema()), self.key());
        let fields = columns.fields().iter().filter(|field| key.contains(field.name()));
        let keys = Conform::new(Arc::new(Schema::new(fields.cloned().collect::<Vec<_>>())));
        Ok(TableWriter { conform: keys, splitter: None, sorter: None, bloom: Vec::new(), ..writer })
    }
}
