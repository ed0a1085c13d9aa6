//! Writes the rows of some files into new ones, and swaps those in.
//!
//! ```text
//! inputs, one after the other ─▶ rows that are left ─▶ outputs        row n of the outputs is
//!      │                                                   │          row n of what was left
//!      └─ deletes that came meanwhile ── same rows there ──┴─▶ delete files for the outputs
//! ```
//!
//! Rows keep their order, so that the place of each in the new files follows from its place in the old
//! ones: a delete that another writer committed meanwhile is carried over by counting. Where that is
//! not possible (sorted rows, rows that moved to another partition) a rewrite that was overtaken is
//! given up. In format version 3 rows take their ids and the numbers of their last commits along.
//! New files take the sequence number of the snapshot that was read, so that equality
//! deletes that were applied do not apply again, and later ones do.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{LexOrdering, PhysicalSortExpr};
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::StreamExt;
use iceberg::spec::{DataContentType, Transform};
use roaring::RoaringTreemap;

use super::super::file_diff::{FileRows, Rows};
use super::super::format_version::is_v3;
use super::super::manifest::{LiveFile, LiveFiles};
use super::super::scan::Scan;
use super::super::snapshot::FileKey;
use super::super::write::discard;
use super::super::{LakeTable, WrittenFile, deletes, position_deletes, row_lineage};
use super::deletes::{DeleteContents, dangling};
use super::plan::Rewrite;
use super::swap::Swap;
use crate::delta::SnapshotId;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::Budget;

/// Times that a swap is tried on a table that moves: each try is short, since files are written already.
const TRIES: usize = 20;
/// Rows in a batch.
const BATCH_ROWS: usize = 8192;

/// What came of a rewrite.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Rewritten {
    /// The snapshot that swapped the files; `None`: another writer took the files away, nothing changed.
    pub snapshot: Option<SnapshotId>,
    /// Data files that went.
    pub files_before: usize,
    /// Data files that came for them.
    pub files_after: usize,
    /// Bytes that went.
    pub bytes_before: u64,
    /// Bytes that came.
    pub bytes_after: u64,
    /// Delete files that applied to nothing any more, and went.
    pub delete_files: usize,
    /// Rows that were deleted by others meanwhile, and are so in the new files too.
    pub carried_deletes: u64,
}

impl LakeTable {
    /// Carries out a planned rewrite, and moves `self` to the result. Safe beside writers: see the
    /// module.
    pub async fn rewrite(&mut self, rewrite: &Rewrite, budget: Budget) -> Result<Rewritten> {
        self.try_rewrite(rewrite, budget).await.map_err(|error| error.with("table", &self.id))
    }

    async fn try_rewrite(&mut self, rewrite: &Rewrite, budget: Budget) -> Result<Rewritten> {
        let outputs = self.write_anew(rewrite, budget).await?;
        let mut contents = DeleteContents::default();
        for _ in 0..TRIES {
            self.reload().await?;
            let Some(swap) = self.prepare_swap(rewrite, &outputs, &mut contents).await? else { break };
            if let Some(snapshot) = self.swap(&swap.swap).await? {
                let bytes = |files: &[WrittenFile]| files.iter().map(|it| it.file.file_size_in_bytes()).sum();
                return Ok(Rewritten {
                    snapshot: Some(snapshot),
                    files_before: rewrite.files(),
                    files_after: outputs.files.len(),
                    bytes_before: rewrite.bytes(),
                    bytes_after: bytes(&outputs.files),
                    delete_files: swap.swap.gone.len() - rewrite.files(),
                    carried_deletes: swap.carried,
                });
            }
            discard(&self.stores, &swap.swap.deletes).await;
        }
        discard(&self.stores, &outputs.files).await;
        Ok(Rewritten::default())
    }

    /// What to swap on the state that `self` is at; `None` when that state has no place for the outputs.
    async fn prepare_swap(
        &self,
        rewrite: &Rewrite,
        outputs: &Outputs,
        contents: &mut DeleteContents,
    ) -> Result<Option<Prepared>> {
        // A table that was rolled back may have rows that were deleted when the files were read.
        let Some(current) = self.current().filter(|now| self.is_ancestor(rewrite.at, *now)) else {
            return Ok(None);
        };
        let live = self.live_files(Some(current)).await?;
        let there: HashMap<FileKey, Option<i64>> =
            live.data.iter().map(|file| (FileKey::of(&file.file), file.first_row_id)).collect();
        // Rows that got their ids meanwhile, in a table raised to version 3, have none in the outputs.
        let as_read = |file: &LiveFile| there.get(&FileKey::of(&file.file)) == Some(&file.first_row_id);
        if !rewrite.gone().all(as_read) {
            return Ok(None);
        }
        let mut gone: HashSet<FileKey> = rewrite.gone().map(|file| FileKey::of(&file.file)).collect();
        let newly = self.newly_deleted(rewrite, &live).await?;
        let Some(carried) = outputs.translate(rewrite, &newly) else { return Ok(None) };
        let carried_rows = carried.iter().map(|(_, positions)| positions.len()).sum();
        let deletes = deletes::hide_positions(self, carried).await?;
        let rest = LiveFiles {
            data: live.data.iter().filter(|file| !gone.contains(&FileKey::of(&file.file))).cloned().collect(),
            deletes: live.deletes,
        };
        let oldest_output = (!outputs.files.is_empty()).then_some(rewrite.sequence);
        gone.extend(dangling(self, &rest, oldest_output, contents).await?);
        let swap = Swap {
            gone,
            come: outputs.files.clone(),
            come_as_of: rewrite.sequence,
            deletes,
            what: "rewrite",
        };
        Ok(Some(Prepared { swap, carried: carried_rows }))
    }

    /// Rows of the inputs that were deleted by position since they were read.
    async fn newly_deleted(
        &self,
        rewrite: &Rewrite,
        live: &LiveFiles,
    ) -> Result<HashMap<String, RoaringTreemap>> {
        let since: Vec<LiveFile> = live
            .deletes
            .iter()
            .filter(|file| file.file.content_type() == DataContentType::PositionDeletes)
            .filter(|file| !rewrite.deletes.contains(&FileKey::of(&file.file)))
            .cloned()
            .collect();
        let inputs: BTreeSet<&str> = rewrite.inputs.iter().map(|rows| rows.file.path()).collect();
        let found = position_deletes::read(&self.stores, &since, Some(&inputs)).await?;
        let mut newly: HashMap<_, _> =
            found.into_iter().map(|(path, deleted)| (path, deleted.positions())).collect();
        for rows in &rewrite.inputs {
            if let (Some(positions), Rows::Except(before)) = (newly.get_mut(rows.file.path()), &rows.rows) {
                *positions -= before.as_ref();
            }
        }
        newly.retain(|_, positions| !positions.is_empty());
        Ok(newly)
    }

    /// Writes the rows that are left of the inputs.
    async fn write_anew(&self, rewrite: &Rewrite, budget: Budget) -> Result<Outputs> {
        let mut writer = self.rewriter(budget)?.with_file_bytes(rewrite.file_bytes);
        let session = self.session(budget, 1)?;
        let columns = self.columns_at(None)?;
        let order = if rewrite.sort { self.order(&columns.arrow) } else { None };
        let mut complete = true;
        // In one plan when rows are sorted, else file by file: so their order is known.
        let reads: Vec<&[FileRows]> = match order {
            Some(_) => vec![rewrite.inputs.as_slice()],
            None => rewrite.inputs.chunks(1).collect(),
        };
        for inputs in reads {
            if inputs.is_empty() {
                continue;
            }
            let files = inputs.iter().map(|rows| (rows.clone(), Vec::new())).collect();
            let scan = Scan {
                table: self,
                columns: &columns,
                constants: Vec::new(),
                files,
                projection: None,
                limit: None,
                ordered: false,
                distinct: HashMap::new(),
            };
            let state = session.state();
            let mut plan = match is_v3(self.table.metadata()) {
                true => row_lineage::plan(scan, &state).await?,
                false => scan.plan(&state).await?,
            };
            if let Some(order) = &order {
                plan = Arc::new(SortExec::new(order.clone(), plan)) as Arc<dyn ExecutionPlan>;
            }
            let mut rows = 0;
            let mut batches = execute_stream(plan, session.task_ctx())?;
            while let Some(batch) = batches.next().await {
                let batch = batch?;
                rows += batch.num_rows() as u64;
                writer.write(&batch).await?;
            }
            complete &= rows == inputs.iter().map(FileRows::count).sum::<u64>();
        }
        let files = writer.finish().await?;
        let first = files.first().map(|written| (written.spec_id, written.file.partition().clone()));
        let one_partition =
            files.iter().all(|it| first.as_ref() == Some(&(it.spec_id, it.file.partition().clone())));
        let outputs = Outputs { files, in_order: order.is_none() && complete && one_partition };
        if let Err(error) = outputs.check(rewrite, complete) {
            discard(&self.stores, &outputs.files).await;
            return Err(error);
        }
        Ok(outputs)
    }

    /// For reads of the table's own, so many at once.
    pub(super) fn session(&self, budget: Budget, streams: usize) -> Result<SessionContext> {
        let mut config = SessionConfig::new().with_target_partitions(streams).with_batch_size(BATCH_ROWS);
        config.options_mut().execution.parquet.schema_force_view_types = false;
        let runtime = budget.runtime().with_object_store_registry(self.stores.clone()).build_arc()?;
        Ok(SessionContext::new_with_config_rt(config, runtime))
    }

    /// The table's sort order as far as it is of plain columns, else its key.
    fn order(&self, columns: &arrow::datatypes::SchemaRef) -> Option<LexOrdering> {
        use arrow::compute::SortOptions;
        use iceberg::spec::{NullOrder, SortDirection};
        let metadata = self.table.metadata();
        let schema = metadata.current_schema();
        let said = metadata.default_sort_order().fields.iter();
        let mut order: Vec<(String, SortOptions)> = said
            .take_while(|field| field.transform == Transform::Identity)
            .filter_map(|field| {
                let options = SortOptions {
                    descending: field.direction == SortDirection::Descending,
                    nulls_first: field.null_order == NullOrder::First,
                };
                Some((schema.name_by_field_id(field.source_id)?.to_owned(), options))
            })
            .collect();
        if order.is_empty() {
            order = self.key().into_iter().map(|name| (name, SortOptions::default())).collect();
        }
        let expressions = order.into_iter().filter_map(|(name, options)| {
            let column = Column::new(&name, columns.index_of(&name).ok()?);
            Some(PhysicalSortExpr { expr: Arc::new(column), options })
        });
        LexOrdering::new(expressions)
    }
}

struct Prepared {
    swap: Swap,
    carried: u64,
}

/// The new files.
struct Outputs {
    files: Vec<WrittenFile>,
    /// Their rows, put end to end, are what was left of the inputs, put end to end.
    in_order: bool,
}

impl Outputs {
    /// That no row was lost or doubled on the way.
    fn check(&self, rewrite: &Rewrite, complete: bool) -> Result<()> {
        let written: u64 = self.files.iter().map(|written| written.file.record_count()).sum();
        let wanted = rewrite.rows();
        // How many rows equality deletes hide is known only when they are applied.
        if written == wanted && complete || written < wanted && rewrite.filtered {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Internal, "a rewrite has not as many rows as its files")
            .with("rows", wanted))
    }

    /// The places in the new files of rows of the inputs. `None`: they cannot be told.
    fn translate(
        &self,
        rewrite: &Rewrite,
        newly: &HashMap<String, RoaringTreemap>,
    ) -> Option<Vec<(WrittenFile, RoaringTreemap)>> {
        if newly.is_empty() {
            return Some(Vec::new());
        }
        if !self.in_order {
            return None;
        }
        let mut ends = Vec::with_capacity(self.files.len());
        let mut end = 0;
        for written in &self.files {
            end += written.file.record_count();
            ends.push(end);
        }
        let mut places = vec![RoaringTreemap::new(); self.files.len()];
        let mut before = 0;
        for rows in &rewrite.inputs {
            for position in newly.get(rows.file.path()).into_iter().flatten() {
                let hidden = match &rows.rows {
                    Rows::Except(positions) => positions.rank(position),
                    Rows::All | Rows::Only(_) => 0,
                };
                let place = before + position - hidden;
                let file = ends.partition_point(|end| *end <= place);
                let start = file.checked_sub(1).map_or(0, |previous| ends[previous]);
                // A position beyond its file's end hides nothing.
                if let Some(places) = places.get_mut(file) {
                    places.insert(place - start);
                }
            }
            before += rows.count();
        }
        let files = self.files.iter().cloned().zip(places);
        Some(files.filter(|(_, positions)| !positions.is_empty()).collect())
    }
}
