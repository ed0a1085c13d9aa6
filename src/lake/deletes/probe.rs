//! Looks for keys in data files: as little of each as its statistics allow.
//!
//! ```text
//! footer ─▶ row groups by statistics ─▶ by bloom filters (few keys) ─▶ pages (clustered keys)
//!                                                                        │
//!                          positions ◀─ hash lookup ◀─ key columns only ◀┘
//! ```

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, RowSelection};
use roaring::RoaringTreemap;

use super::keys::{KeyColumn, KeySet};
use super::read::KeyFile;
use crate::error::{Error, ErrorKind, Result};
use crate::lake::storage::Stores;

/// Footers read at once: waiting, not work.
const FOOTERS_AT_ONCE: usize = 16;

/// Row groups in flight per core: one is fetched while another is decoded.
const ROW_GROUPS_PER_CORE: usize = 2;

/// The page index is worth its request when there is at most one key for this many rows.
const ROWS_PER_KEY: usize = 20;

/// Skipping pages pays when at least this share of a row group (1/n) can be skipped.
const SKIPPED_SHARE: usize = 8;

/// A file to look into.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub(super) path: String,
    pub(super) size: u64,
}

/// A row group, or a part of it, that must be read.
struct Piece {
    candidate: usize,
    file: Arc<KeyFile>,
    row_group: usize,
    selection: Option<RowSelection>,
}

/// For each candidate, the positions of rows that have one of the keys.
pub(super) async fn probe(
    stores: &Stores,
    columns: &Arc<[KeyColumn]>,
    candidates: &[Candidate],
    keys: &Arc<KeySet>,
) -> Result<Vec<RoaringTreemap>> {
    let mut found = vec![RoaringTreemap::new(); candidates.len()];
    let opened: Vec<_> = candidates
        .iter()
        .enumerate()
        .map(|(index, candidate)| pieces(stores, columns, index, candidate, keys))
        .collect();
    let pieces = stream::iter(opened)
        .buffer_unordered(FOOTERS_AT_ONCE)
        .map_ok(|pieces| stream::iter(pieces.into_iter().map(Ok::<_, Error>)))
        .try_flatten();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut hits =
        pieces.map_ok(|piece| look(piece, keys.clone())).try_buffer_unordered(ROW_GROUPS_PER_CORE * cores);
    while let Some((candidate, positions)) = hits.try_next().await? {
        found[candidate] |= positions;
    }
    Ok(found)
}

/// What of a file must be read.
async fn pieces(
    stores: &Stores,
    columns: &Arc<[KeyColumn]>,
    index: usize,
    candidate: &Candidate,
    keys: &KeySet,
) -> Result<Vec<Piece>> {
    let mut file = KeyFile::open(stores, &candidate.path, candidate.size, columns.clone()).await?;
    let mut possible = vec![true; file.row_groups()];
    for column in 0..columns.len() {
        let (mins, maxes) = file.row_group_ranges(column)?;
        for (possible, within) in possible.iter_mut().zip(keys.values(column).within(&mins, &maxes)?) {
            *possible &= within;
        }
    }
    let mut row_groups: Vec<_> = (0..possible.len()).filter(|group| possible[*group]).collect();
    if let Some(few) = keys.few() {
        let mut left = Vec::with_capacity(row_groups.len());
        for group in row_groups {
            if file.may_hold(group, few).await? {
                left.push(group);
            }
        }
        row_groups = left;
    }
    let rows: usize = row_groups.iter().map(|group| file.rows(*group)).sum();
    let paged = rows / ROWS_PER_KEY >= keys.len();
    if paged && !row_groups.is_empty() {
        file.load_pages(stores).await?;
    }
    let file = Arc::new(file);
    let mut pieces = Vec::with_capacity(row_groups.len());
    for row_group in row_groups {
        let selection = if paged { pages(&file, columns.len(), row_group, keys)? } else { None };
        if selection.as_ref().is_some_and(|selection| !selection.selects_any()) {
            continue;
        }
        pieces.push(Piece { candidate: index, file: file.clone(), row_group, selection });
    }
    Ok(pieces)
}

/// The rows of a row group whose pages can hold a key; `None` for all.
fn pages(file: &KeyFile, columns: usize, row_group: usize, keys: &KeySet) -> Result<Option<RowSelection>> {
    let rows = file.rows(row_group);
    let mut selection: Option<RowSelection> = None;
    for column in 0..columns {
        let Some(pages) = file.page_ranges(column, row_group)? else { return Ok(None) };
        let within = keys.values(column).within(&pages.mins, &pages.maxes)?;
        let ranges = pages.rows.into_iter().zip(within).filter(|(_, within)| *within).map(|(rows, _)| rows);
        let of_column = RowSelection::from_consecutive_ranges(ranges, rows);
        selection = Some(match selection {
            Some(selection) => selection.intersection(&of_column),
            None => of_column,
        });
    }
    Ok(selection.filter(|selection| rows - selection.row_count() >= rows / SKIPPED_SHARE))
}

/// Reads a piece and finds the positions of keys in it.
async fn look(piece: Piece, keys: Arc<KeySet>) -> Result<(usize, RoaringTreemap)> {
    let Piece { candidate, file, row_group, selection } = piece;
    let places = Places::new(file.first_row(row_group), file.rows(row_group), selection.as_ref());
    let Some(reader) = file.fetch(row_group, selection).await? else {
        return Ok((candidate, RoaringTreemap::new()));
    };
    let positions = tokio::task::spawn_blocking(move || decode(&file, reader, places, &keys))
        .await
        .map_err(|source| Error::new(ErrorKind::Internal, "a lookup ended early").because(source))??;
    Ok((candidate, positions))
}

fn decode(
    file: &KeyFile,
    reader: ParquetRecordBatchReader,
    mut places: Places,
    keys: &KeySet,
) -> Result<RoaringTreemap> {
    let mut positions = RoaringTreemap::new();
    let mut read = 0;
    for batch in reader {
        let batch = batch.map_err(|source| file.error(source.into()))?;
        keys.find(&file.keys(&batch)?, |row| {
            positions.insert(places.position(read + row as u64));
        })?;
        read += batch.num_rows() as u64;
    }
    Ok(positions)
}

/// Where in the file the n-th row read stands.
struct Places {
    /// Stretches of rows that are read: first position and number.
    stretches: Vec<(u64, u64)>,
    at: usize,
    before: u64,
}

impl Places {
    fn new(first_row: u64, rows: usize, selection: Option<&RowSelection>) -> Self {
        let stretches = match selection {
            None => vec![(first_row, rows as u64)],
            Some(selection) => {
                let mut position = first_row;
                let mut stretches = Vec::new();
                for part in selection.iter() {
                    if !part.skip {
                        stretches.push((position, part.row_count as u64));
                    }
                    position += part.row_count as u64;
                }
                stretches
            }
        };
        Self { stretches, at: 0, before: 0 }
    }

    /// Must be asked in ascending order.
    fn position(&mut self, row: u64) -> u64 {
        while row - self.before >= self.stretches[self.at].1 {
            self.before += self.stretches[self.at].1;
            self.at += 1;
        }
        self.stretches[self.at].0 + (row - self.before)
    }
}

/// What [`probe`] would read of a file, in words.
#[cfg(test)]
pub(super) async fn described(
    stores: &Stores,
    columns: &Arc<[KeyColumn]>,
    candidate: &Candidate,
    keys: &KeySet,
) -> Result<Vec<String>> {
    let pieces = pieces(stores, columns, 0, candidate, keys).await?;
    let describe = |piece: Piece| {
        let rows = piece.file.rows(piece.row_group);
        let read = piece.selection.map_or(rows, |selection| selection.row_count());
        format!("row group {}: {read} of {rows} rows", piece.row_group)
    };
    Ok(pieces.into_iter().map(describe).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_selection_keep_their_places() {
        let selection = RowSelection::from_consecutive_ranges([2..4, 7..8].into_iter(), 10);
        let mut places = Places::new(100, 10, Some(&selection));
        assert_eq!([0, 1, 2].map(|row| places.position(row)), [102, 103, 107]);
        let mut places = Places::new(100, 10, None);
        assert_eq!([0, 9].map(|row| places.position(row)), [100, 109]);
    }
}
