//! Looks for keys in data files: as little of each as its statistics allow.
//!
//! ```text
//! footer ─▶ row groups by statistics ─▶ by bloom filters (few keys) ─▶ pages (clustered keys)
//!                                                                        │
//!                          positions ◀─ hash lookup ◀─ key columns only ◀┘
//! ```

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use parquet::arrow::arrow_reader::RowSelection;

use super::keys::{KeyColumn, KeySet};
use super::look::{Hits, Piece, look};
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

/// For each candidate, the rows that have one of the keys; with their ranks by the column `order`, if new
/// rows have any.
pub(super) async fn probe(
    stores: &Stores,
    columns: &Arc<[KeyColumn]>,
    candidates: &[Candidate],
    keys: &Arc<KeySet>,
    order: Option<&KeyColumn>,
) -> Result<Vec<Hits>> {
    let mut found = vec![Hits::default(); candidates.len()];
    let opened: Vec<_> = candidates
        .iter()
        .enumerate()
        .map(|(index, candidate)| pieces(stores, columns, (index, candidate), keys, order))
        .collect();
    let pieces = stream::iter(opened)
        .buffer_unordered(FOOTERS_AT_ONCE)
        .map_ok(|pieces| stream::iter(pieces.into_iter().map(Ok::<_, Error>)))
        .try_flatten();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut hits = pieces
        .map_ok(|piece| {
            let look = tokio::spawn(look(piece, keys.clone()));
            async {
                look.await.map_err(|source| {
                    Error::new(ErrorKind::Internal, "a lookup ended early").because(source)
                })?
            }
        })
        .try_buffer_unordered(ROW_GROUPS_PER_CORE * cores);
    while let Some((candidate, hits)) = hits.try_next().await? {
        found[candidate].add(hits);
    }
    Ok(found)
}

/// What of a file must be read.
async fn pieces(
    stores: &Stores,
    columns: &Arc<[KeyColumn]>,
    (index, candidate): (usize, &Candidate),
    keys: &KeySet,
    order: Option<&KeyColumn>,
) -> Result<Vec<Piece>> {
    let mut file = KeyFile::open(stores, &candidate.path, candidate.size, columns.clone()).await?;
    if let Some(order) = order {
        file = file.with_order(order);
    }
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

/// What [`probe`] would read of a file, in words.
#[cfg(test)]
pub(super) async fn described(
    stores: &Stores,
    columns: &Arc<[KeyColumn]>,
    candidate: &Candidate,
    keys: &KeySet,
) -> Result<Vec<String>> {
    let pieces = pieces(stores, columns, (0, candidate), keys, None).await?;
    let describe = |piece: Piece| {
        let rows = piece.file.rows(piece.row_group);
        let read = piece.selection.map_or(rows, |selection| selection.row_count());
        format!("row group {}: {read} of {rows} rows", piece.row_group)
    };
    Ok(pieces.into_iter().map(describe).collect())
}
