//! Looks into one row group for keys: which of its rows has one?
//!
//! ```text
//! pages chosen ───▶ all key columns of those ────────────────────────────────┐
//! a column leads ─▶ that column ─▶ candidates ─▶ the other columns of those ─┼─▶ hash lookup ─▶ positions
//! else ───────────▶ all key columns ─────────────────────────────────────────┘
//! ```
//!
//! What a row group needs is fetched at once, and decoded on the task that looks, batch by batch, so that
//! others get their turn.

use std::sync::Arc;

use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, RowSelection};
use roaring::RoaringTreemap;

use super::keys::KeySet;
use super::lead::Lead;
use super::ranks::{self, Contest};
use super::read::{Chunks, KeyFile};
use crate::error::{Error, ErrorKind, Result};

/// Reading the other columns for candidates alone pays up to this share (1/n) of the rows.
const CANDIDATES: usize = 8;

/// A row group, or a part of it, that must be read.
pub(super) struct Piece {
    /// Which of the files looked into it belongs to.
    pub(super) candidate: usize,
    pub(super) file: Arc<KeyFile>,
    pub(super) row_group: usize,
    pub(super) selection: Option<RowSelection>,
}

/// The rows of a file that have one of the keys.
#[derive(Debug, Clone, Default)]
pub(super) struct Hits {
    /// Where they are.
    pub(super) positions: RoaringTreemap,
    /// Where they are, if new rows have ranks: then it is not decided yet which of two gives way.
    pub(super) contests: Vec<Contest>,
}

impl Hits {
    pub(super) fn add(&mut self, other: Self) {
        self.positions |= other.positions;
        self.contests.extend(other.contests);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.positions.is_empty() && self.contests.is_empty()
    }
}

/// The rows that have one of the keys.
pub(super) async fn look(piece: Piece, keys: Arc<KeySet>) -> Result<(usize, Hits)> {
    let Piece { candidate, file, row_group, selection } = piece;
    let places = Places::new(file.first_row(row_group), file.rows(row_group), selection.as_ref());
    let lead = keys.lead().filter(|_| selection.is_none());
    let Some(lead) = lead else {
        let Some(reader) = file.fetch(row_group, selection).await? else {
            return Ok((candidate, Hits::default()));
        };
        return Ok((candidate, by_all(&file, reader, places, &keys).await?));
    };
    let chunks = file.chunks(row_group).await?;
    let hits = match by_lead(&file, row_group, &chunks, &keys, lead).await? {
        Some(positions) => Hits { positions, contests: Vec::new() },
        None => {
            let columns: Vec<_> = (0..file.width()).collect();
            let reader = file.decode(&chunks, row_group, &columns, None)?;
            by_all(&file, reader, places, &keys).await?
        }
    };
    Ok((candidate, hits))
}

/// Looks at all key columns of all rows read.
async fn by_all(
    file: &KeyFile,
    reader: ParquetRecordBatchReader,
    mut places: Places,
    keys: &KeySet,
) -> Result<Hits> {
    let mut hits = Hits::default();
    let mut read = 0;
    for batch in reader {
        let batch = batch.map_err(|source| file.error(source.into()))?;
        if let Some(ranks) = keys.ranks() {
            let (columns, order) = file.ranked_keys(&batch, keys.width())?;
            let old = ranks::ranks(order.as_ref(), batch.num_rows())?;
            keys.find(&columns, |row, ordinal| {
                let position = places.position(read + row as u64);
                let (old, new) = (old[row], ranks.get(ordinal));
                hits.contests.push(Contest { position, ordinal, old, new });
            })?;
        } else {
            keys.find(&file.keys(&batch)?, |row, _| {
                hits.positions.insert(places.position(read + row as u64));
            })?;
        }
        read += batch.num_rows() as u64;
        tokio::task::yield_now().await;
    }
    Ok(hits)
}

/// Looks at the leading column of all rows, and at the others where that leaves a doubt; `None` where it
/// leaves too many.
async fn by_lead(
    file: &KeyFile,
    row_group: usize,
    chunks: &Chunks,
    keys: &KeySet,
    lead: &Lead,
) -> Result<Option<RoaringTreemap>> {
    let rows = file.rows(row_group);
    let (mut candidates, mut parts) = (Vec::new(), Vec::new());
    let mut read = 0;
    for batch in file.decode(chunks, row_group, &[lead.column], None)? {
        let batch = batch.map_err(|source| file.error(source.into()))?;
        let column = file.columns(&batch, &[lead.column])?;
        lead.candidates(&column[0], |row, part| {
            candidates.push(read + row);
            parts.push(part);
        })?;
        read += batch.num_rows();
        if candidates.len() > rows / CANDIDATES {
            return Ok(None);
        }
        tokio::task::yield_now().await;
    }
    let mut positions = RoaringTreemap::new();
    if candidates.is_empty() {
        return Ok(Some(positions));
    }
    let others: Vec<_> = (0..file.width()).filter(|column| *column != lead.column).collect();
    let runs = candidates.chunk_by(|row, next| row + 1 == *next).map(|run| run[0]..run[0] + run.len());
    let selection = RowSelection::from_consecutive_ranges(runs, rows);
    let first_row = file.first_row(row_group);
    let mut read = 0;
    for batch in file.decode(chunks, row_group, &others, Some(selection))? {
        let batch = batch.map_err(|source| file.error(source.into()))?;
        let these = read..read + batch.num_rows();
        let (Some(rows), Some(parts)) = (candidates.get(these.clone()), parts.get(these)) else {
            return Err(miscounted(file));
        };
        keys.find_rest(lead, parts, &file.columns(&batch, &others)?, |row| {
            positions.insert(first_row + rows[row] as u64);
        })?;
        read += batch.num_rows();
        tokio::task::yield_now().await;
    }
    if read != candidates.len() {
        return Err(miscounted(file));
    }
    Ok(Some(positions))
}

fn miscounted(file: &KeyFile) -> Error {
    Error::new(ErrorKind::Corrupt, "the columns of a data file differ in their number of rows")
        .with("file", &file.path)
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
