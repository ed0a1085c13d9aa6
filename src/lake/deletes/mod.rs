//! Finds the places of rows by key, and hides them: position deletes, or in format version 3 deletion
//! vectors.
//!
//! ```text
//! new files ─▶ their keys ─▶ old files that can hold one ─▶ key columns ─▶ positions ─┐
//!                 │   (partition, bounds, row groups, bloom filters, pages)           ├─▶ delete files
//!                 └─▶ rows whose key comes again later ───────────────────────────────┘
//! ```
//!
//! The cost follows the delta: of the old files only key columns are read, and only where a key can
//! be. Keys are read back from the new files, so that nothing is held while rows are extracted; when
//! they do not fit the memory, the search is made in several passes over a share of the keys each.
//!
//! Where an [order](EventOrder) says which of two rows is the newer one, the new row is hidden that is
//! older than what the table has ([`ranks`]).
//!
//! What always holds: no position is hidden twice, and the numbers of hidden rows are exact.

mod filter;
mod keys;
mod lead;
mod look;
mod packed;
mod probe;
mod prune;
mod ranks;
mod read;
mod values;
mod write;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use ahash::RandomState;
use arrow::array::{Array, ArrayRef};
use arrow::compute::{max, min};
use futures::{StreamExt, TryStreamExt, stream};
use iceberg::spec::DataContentType;
use roaring::RoaringTreemap;

use self::keys::{KEY_BYTES, KeyColumn, KeySet, KeySetBuilder, Pass};
use self::look::Hits;
use self::packed::{integers, is_integral};
use self::probe::Candidate;
use self::prune::Partitions;
use self::ranks::{Order, RANK_BYTES, Verdict};
use self::read::KeyFile;
use self::write::Doomed;
use super::format_version::is_v3;
use super::manifest::{LiveFile, LiveFiles};
use super::position_deletes::Deleted;
use super::snapshot::FileKey;
use super::{EventOrder, Gone, LakeTable, Lateness, WrittenFile, file_diff};
use crate::delta::SnapshotId;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::Budget;

/// Footers of new files that are read at once: waiting, not work.
const FOOTERS_AT_ONCE: usize = 16;

/// Whether rows can be ordered by a column of this type.
pub(super) fn ranks_by(data_type: &arrow::datatypes::DataType) -> bool {
    is_integral(data_type)
}

/// More passes than this mean that single keys are larger than the memory.
const MOST_PASSES: u64 = 1 << 12;

/// What [`hide`] did. Nothing is visible before the files are committed.
#[derive(Debug, Default)]
pub(super) struct Hidden {
    /// Delete files, to be committed in the snapshot that adds the new files.
    pub(super) files: Vec<WrittenFile>,
    /// Delete files of the snapshot whose rows are in `files` too, to be removed in that commit: a data
    /// file has one deletion vector at most.
    pub(super) superseded: HashSet<FileKey>,
    /// Data files of the snapshot of which no row is left, to be removed in that commit.
    pub(super) gone_files: HashSet<FileKey>,
    /// Rows of the snapshot that are now hidden: keys that were there before.
    pub(super) old_rows: u64,
    /// Rows of the snapshot that are now hidden because they are gone.
    pub(super) gone_rows: u64,
    /// Rows of the new files that a later one with the same key hides, or a newer one that was there.
    pub(super) repeated_rows: u64,
    /// Which of the new rows came late, where their order tells.
    pub(super) lateness: Lateness,
}

/// Hides the rows of snapshot `at` (`None`: an empty table) that have a key of `new_files`, and of
/// rows that share a key within `new_files` all but the last, in the order of the files and of the
/// rows in them; unless `order` says which row stays. Hides rows that are `gone` as well, and of the snapshot those that have a key of
/// `gone_keys`.
pub(super) async fn hide(
    table: &LakeTable,
    at: Option<SnapshotId>,
    new_files: &[WrittenFile],
    gone_keys: &[WrittenFile],
    gone: &Gone,
    order: Option<&EventOrder>,
    budget: Budget,
) -> Result<Hidden> {
    if new_files.is_empty() && gone_keys.is_empty() && gone.is_empty() {
        return Ok(Hidden::default());
    }
    let live = match at {
        Some(at) => match table.ahead.files(at) {
            Some(files) => files.clone(),
            None => table.live_files(Some(at)).await?,
        },
        None => LiveFiles::default(),
    };
    let new = By { files: new_files, placed: true };
    let going = By { files: gone_keys, placed: false };
    let order = order.map(|order| Order::of(table.table.metadata(), order)).transpose()?;
    hide_among(table, &live, [new, going], gone, order.as_ref(), budget.query_bytes())
        .await
        .map_err(|error| error.with("table", &table.id))
}

/// Delete files for rows whose places are known, of files that are or will be the table's.
pub(super) async fn hide_positions(
    table: &LakeTable,
    rows: Vec<(WrittenFile, RoaringTreemap)>,
) -> Result<Vec<WrittenFile>> {
    let doomed = rows.into_iter().map(|(of, positions)| Doomed {
        path: of.file.file_path().to_owned(),
        spec_id: of.spec_id,
        partition: of.file.partition().clone(),
        positions,
        already: RoaringTreemap::new(),
    });
    write::write(table, doomed.filter(|rows| !rows.positions.is_empty()).collect()).await
}

/// Files whose keys are looked for.
#[derive(Clone, Copy)]
struct By<'a> {
    files: &'a [WrittenFile],
    /// Whether each lies in the partition of its rows. Files of keys alone know of none.
    placed: bool,
}

async fn hide_among(
    table: &LakeTable,
    live: &LiveFiles,
    [new, going]: [By<'_>; 2],
    gone: &Gone,
    order: Option<&Order>,
    memory: usize,
) -> Result<Hidden> {
    let new_files = new.files;
    let ByKey { mut hits, mut repeated, new, early } = found_by_key(table, live, new, order, memory).await?;
    let mut going = found_by_key(table, live, going, None, memory).await?.hits;
    let mut verdict = Verdict::default();
    let is_touched = |file: &&LiveFile| {
        let path = file.path();
        hits.contains_key(path) || going.contains_key(path) || gone.files.contains_key(path)
    };
    let touched: Vec<&LiveFile> = live.data.iter().filter(is_touched).collect();
    let mut before = file_diff::hidden(&table.table, &table.stores, live.deletes.clone(), &touched).await?;
    let mut hidden = Hidden::default();
    let mut doomed = Vec::new();
    let mut left = gone.files.len();
    for file in &live.data {
        let path = file.path();
        let (by_key, going, gone) = (hits.remove(path), going.remove(path), gone.files.get(path));
        if by_key.is_none() && going.is_none() && gone.is_none() {
            continue;
        }
        let already = before.remove(path).map(Deleted::positions).unwrap_or_default();
        let by_key = by_key.unwrap_or_default();
        let mut positions = by_key.positions - &already;
        if let Some(order) = order {
            let goes = |position| gone.is_some_and(|gone| gone.positions.contains(position));
            let counts = |position| !already.contains(position) && !goes(position);
            positions |= verdict.over(&by_key.contests, order, counts);
        }
        hidden.old_rows += positions.len();
        if let Some(going) = going {
            let going = (going.positions - &already) - &positions;
            hidden.gone_rows += going.len();
            positions |= going;
        }
        if let Some(rows) = gone {
            left -= 1;
            hidden.gone_rows += (&rows.positions - &positions).len();
            positions |= &rows.positions;
            if positions.len() == rows.live {
                hidden.gone_files.insert(FileKey::of(&file.file));
                continue;
            }
        }
        doomed.push(Doomed {
            path: path.to_owned(),
            spec_id: file.spec_id,
            partition: file.file.partition().clone(),
            positions,
            already,
        });
    }
    if left > 0 {
        return Err(Error::new(
            ErrorKind::Conflict,
            "the files were rewritten that a read was compared with",
        ));
    }
    if let (Some(order), Some(new)) = (order, &new) {
        new.place(&verdict.beaten.iter().collect::<Vec<_>>(), &mut repeated);
        hidden.lateness = verdict.lateness(&early, order);
    }
    hidden.repeated_rows = repeated.iter().map(RoaringTreemap::len).sum();
    doomed.extend(new_files.iter().zip(repeated).map(|(new, positions)| Doomed {
        path: new.file.file_path().to_owned(),
        spec_id: new.spec_id,
        partition: new.file.partition().clone(),
        positions,
        already: RoaringTreemap::new(),
    }));
    doomed.retain(|rows| !rows.positions.is_empty());
    hidden.superseded = superseded(live, &hidden.gone_files, &doomed, is_v3(table.table.metadata()));
    hidden.files = write::write(table, doomed).await?;
    Ok(hidden)
}

/// What new files have to do with those that are there.
#[derive(Default)]
struct ByKey<'a> {
    /// The rows that have a key of the new files, by data file.
    hits: BTreeMap<&'a str, Hits>,
    /// Of each new file the rows whose key comes again.
    repeated: Vec<RoaringTreemap>,
    /// The new rows, if there are any.
    new: Option<NewRows>,
    /// The ordinals and ranks of those that were due before.
    early: Vec<(u64, i64)>,
}

async fn found_by_key<'a>(
    table: &LakeTable,
    live: &'a LiveFiles,
    By { files: new_files, placed }: By<'_>,
    order: Option<&Order>,
    memory: usize,
) -> Result<ByKey<'a>> {
    let key = table.key();
    if new_files.is_empty() || key.is_empty() {
        return Ok(ByKey::default());
    }
    let metadata = table.table.metadata();
    let columns = prune::key_columns(metadata, &key)?;
    let partitions = Partitions::of(if placed { new_files } else { &[] }, metadata, &columns);
    let old: Vec<&LiveFile> = live.data.iter().filter(|file| partitions.may_hold(file)).collect();
    let new = NewRows::open(table, new_files, columns, order.cloned()).await?;
    let Found { old: hits, new: repeated, early } = search(table, &new, &old, memory).await?;
    let hits = old.into_iter().zip(hits).filter(|(_, hits)| !hits.is_empty());
    let hits = hits.map(|(file, hits)| (file.path(), hits)).collect();
    Ok(ByKey { hits, repeated, new: Some(new), early })
}

/// Delete files that are about one data file and no other: one that is gone, or in format version 3
/// one whose new vector has their rows.
fn superseded(live: &LiveFiles, gone: &HashSet<FileKey>, doomed: &[Doomed], v3: bool) -> HashSet<FileKey> {
    let mut paths: HashSet<&str> = gone.iter().map(FileKey::path).collect();
    if v3 {
        paths.extend(doomed.iter().map(|rows| rows.path.as_str()));
    }
    let of_one = |file: &&LiveFile| {
        file.file.content_type() == DataContentType::PositionDeletes
            && file.file.referenced_data_file().is_some_and(|path| paths.contains(path.as_str()))
    };
    live.deletes.iter().filter(of_one).map(|file| FileKey::of(&file.file)).collect()
}

/// What was found, file by file.
struct Found {
    old: Vec<Hits>,
    new: Vec<RoaringTreemap>,
    /// New rows that were due before.
    early: Vec<(u64, i64)>,
}

/// Searches in as few passes as the memory allows.
async fn search(table: &LakeTable, new: &NewRows, old: &[&LiveFile], memory: usize) -> Result<Found> {
    let memory = memory.max(1);
    let each = KEY_BYTES + if new.order.is_some() { RANK_BYTES } else { 0 };
    let mut passes = (new.rows as usize * each).div_ceil(memory).max(1) as u64;
    while passes <= MOST_PASSES {
        if let Some(found) = search_in(passes, table, new, old, memory).await? {
            return Ok(found);
        }
        passes *= 2;
    }
    Err(Error::new(ErrorKind::Config, "the memory budget is too small for the keys of one commit")
        .hint("raise `--memory`"))
}

/// Searches in so many passes; `None` when the keys of one do not fit the memory.
async fn search_in(
    passes: u64,
    table: &LakeTable,
    new: &NewRows,
    old: &[&LiveFile],
    memory: usize,
) -> Result<Option<Found>> {
    let hasher = RandomState::new();
    let mut found = Found {
        old: vec![Hits::default(); old.len()],
        new: vec![RoaringTreemap::new(); new.files.len()],
        early: Vec::new(),
    };
    let order = new.order.as_ref();
    for number in 0..passes {
        let pass = Pass { number, of: passes, hasher: hasher.clone() };
        let Some((keys, replaced)) = new.keys(pass, memory).await? else { return Ok(None) };
        new.place(&replaced, &mut found.new);
        if let (Some((known_to, _)), Some(ranks)) = (order.and_then(|order| order.known_to), keys.ranks()) {
            found.early.extend(ranks.before(known_to));
        }
        let possible = prune::by_bounds(old, &new.columns, &keys)?;
        let chosen: Vec<usize> = (0..old.len()).filter(|index| possible[*index]).collect();
        let candidate = |index: &usize| Candidate {
            path: old[*index].path().to_owned(),
            size: old[*index].file.file_size_in_bytes(),
        };
        let candidates: Vec<_> = chosen.iter().map(candidate).collect();
        let column = order.map(|order| &order.column);
        let hits = probe::probe(&table.stores, &new.columns, &candidates, &Arc::new(keys), column).await?;
        for (index, hits) in chosen.into_iter().zip(hits) {
            found.old[index].add(hits);
        }
    }
    Ok(Some(found))
}

/// The rows of the new files, put end to end.
struct NewRows {
    columns: Arc<[KeyColumn]>,
    /// What ranks them, if anything does.
    order: Option<Order>,
    files: Vec<KeyFile>,
    /// The ordinal of each file's first row.
    first: Vec<u64>,
    rows: u64,
    /// The least and the greatest value of each key column, if all are integers.
    ranges: Option<Vec<(i64, i64)>>,
}

impl NewRows {
    async fn open(
        table: &LakeTable,
        files: &[WrittenFile],
        columns: Arc<[KeyColumn]>,
        order: Option<Order>,
    ) -> Result<Self> {
        let open = |new: &WrittenFile| {
            let (path, size) = (new.file.file_path().to_owned(), new.file.file_size_in_bytes());
            let (columns, order) = (columns.clone(), &order);
            async move {
                let file = KeyFile::open(&table.stores, &path, size, columns).await?;
                Ok::<_, Error>(order.iter().fold(file, |file, order| file.with_order(&order.column)))
            }
        };
        let opened: Vec<_> = files.iter().map(open).collect();
        let files: Vec<KeyFile> = stream::iter(opened).buffered(FOOTERS_AT_ONCE).try_collect().await?;
        let mut first = Vec::with_capacity(files.len());
        let mut rows = 0;
        for file in &files {
            first.push(rows);
            rows += (0..file.row_groups()).map(|group| file.rows(group) as u64).sum::<u64>();
        }
        let ranges =
            (0..columns.len()).map(|column| range(&files, &columns, column)).collect::<Result<_>>()?;
        Ok(Self { columns, order, files, first, rows, ranges })
    }

    /// The keys of one pass and the ordinals of rows that are replaced; `None` when they take more
    /// than `memory`.
    async fn keys(&self, pass: Pass, memory: usize) -> Result<Option<(KeySet, Vec<u64>)>> {
        let expected = self.rows / pass.of;
        let mut set =
            KeySetBuilder::new(self.columns.clone(), self.ranges.as_deref(), pass, expected as usize)?;
        if let Some(order) = &self.order {
            set = set.ranked(order.by_event);
        }
        for (file, first) in self.files.iter().zip(&self.first) {
            let mut ordinal = *first;
            for row_group in 0..file.row_groups() {
                let Some(reader) = file.fetch(row_group, None).await? else { continue };
                for batch in reader {
                    let batch = batch.map_err(|source| file.error(source.into()))?;
                    let (keys, order) = file.ranked_keys(&batch, self.columns.len())?;
                    if self.order.is_some() {
                        let ranks = ranks::ranks(order.as_ref(), batch.num_rows())?;
                        set.insert_ranked(&keys, &ranks, ordinal)?;
                    } else {
                        set.insert(&keys, ordinal)?;
                    }
                    ordinal += batch.num_rows() as u64;
                }
                // Decoding is work; others get their turn.
                tokio::task::yield_now().await;
                if set.size() > memory {
                    return Ok(None);
                }
            }
        }
        set.finish().map(Some)
    }

    /// Turns ordinals into positions in their files.
    fn place(&self, ordinals: &[u64], positions: &mut [RoaringTreemap]) {
        for ordinal in ordinals {
            let file = self.first.partition_point(|first| first <= ordinal) - 1;
            positions[file].insert(ordinal - self.first[file]);
        }
    }
}

/// The least and the greatest value of an integer column in the new files.
fn range(files: &[KeyFile], columns: &[KeyColumn], column: usize) -> Result<Option<(i64, i64)>> {
    if !is_integral(&columns[column].data_type) {
        return Ok(None);
    }
    let mut range: Option<(i64, i64)> = None;
    for file in files {
        let (mins, maxes) = file.row_group_ranges(column)?;
        if mins.null_count() > 0 || maxes.null_count() > 0 {
            return Ok(None);
        }
        let ends = |array: &ArrayRef| integers(array);
        if let (Some(low), Some(high)) = (min(&ends(&mins)?), max(&ends(&maxes)?)) {
            range = Some(range.map_or((low, high), |(least, greatest)| (least.min(low), greatest.max(high))));
        }
    }
    Ok(range)
}

#[cfg(test)]
mod tests;
