//! Which of two rows with one key is the newer one, where their order of arrival does not say.
//!
//! ```text
//! new rows     k=1 at 10:05   k=1 at 10:02   ──▶ 10:05 stays, though it came first
//! old row      k=1 at 10:07                  ──▶ 10:07 stays, and the new row is hidden
//! ```
//!
//! A row's *rank* is its value of the order column as an integer; NULL ranks lowest. Rows of one rank
//! count in their order of arrival. Ranks are looked at for a second reason too: a new row from before the
//! position, which the table does not have with that very rank, came late.

use std::collections::HashMap;

use arrow::array::{Array, ArrayRef};
use arrow::datatypes::{DataType, TimeUnit};
use iceberg::spec::TableMetadata;
use roaring::RoaringTreemap;

use super::keys::KeyColumn;
use super::packed::integers;
use super::prune;
use crate::error::Result;
use crate::lake::{EventOrder, Lateness};

/// Bytes that a rank takes beside its key: two integers in a map that is at least 7/16 full, and a
/// [`Contest`] for the old row.
pub(super) const RANK_BYTES: usize = 80;

/// Microseconds of a day.
const DAY: i64 = 86_400_000_000;

/// The ranks of new rows that stay, by their ordinals.
pub(super) struct Ranks {
    of: HashMap<u64, i64>,
    /// Whether ranks decide. Otherwise they are only remembered.
    by_event: bool,
}

impl Ranks {
    pub(super) fn new(by_event: bool) -> Self {
        Self { of: HashMap::new(), by_event }
    }

    pub(super) fn put(&mut self, ordinal: u64, rank: i64) {
        self.of.insert(ordinal, rank);
    }

    /// Keeps the row of the higher rank, of equals the later one, and returns the other.
    pub(super) fn newer(&mut self, kept: &mut u64, other: u64, rank: i64) -> u64 {
        let known = self.get(*kept);
        if self.by_event && rank < known {
            return other;
        }
        self.of.remove(kept);
        self.of.insert(other, rank);
        std::mem::replace(kept, other)
    }

    pub(super) fn get(&self, ordinal: u64) -> i64 {
        self.of.get(&ordinal).copied().unwrap_or(i64::MIN)
    }

    pub(super) fn size(&self) -> usize {
        self.of.capacity() * RANK_BYTES
    }

    /// Rows from before a rank.
    pub(super) fn before(&self, known_to: i64) -> impl Iterator<Item = (u64, i64)> {
        let early = move |(_, rank): &(&u64, &i64)| **rank < known_to && **rank != i64::MIN;
        self.of.iter().filter(early).map(|(ordinal, rank)| (*ordinal, *rank))
    }
}

/// An old row with the key of a new one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Contest {
    /// Where it is in its file.
    pub(super) position: u64,
    /// The new row.
    pub(super) ordinal: u64,
    pub(super) old: i64,
    pub(super) new: i64,
}

/// The column that ranks rows, in a table as it is now.
#[derive(Debug, Clone)]
pub(super) struct Order {
    pub(super) column: KeyColumn,
    pub(super) by_event: bool,
    /// The rank from which on rows are new, where that is known, and how many microseconds one rank is.
    pub(super) known_to: Option<(i64, i64)>,
}

impl Order {
    pub(super) fn of(metadata: &TableMetadata, order: &EventOrder) -> Result<Self> {
        let columns = prune::key_columns(metadata, std::slice::from_ref(&order.column))?;
        let column = columns[0].clone();
        let known_to = order.known_to.and_then(|micros| match column.data_type {
            DataType::Timestamp(TimeUnit::Microsecond, _) => Some((micros, 1)),
            // The day that the position lies in goes on.
            DataType::Date32 => Some((micros.div_euclid(DAY), DAY)),
            _ => None,
        });
        Ok(Self { column, by_event: order.by_event, known_to })
    }
}

/// The ranks of rows, from the order column; a file from before the column has none.
pub(super) fn ranks(column: Option<&ArrayRef>, rows: usize) -> Result<Vec<i64>> {
    let Some(column) = column else { return Ok(vec![i64::MIN; rows]) };
    let integers = integers(column)?;
    let rank = |row: usize| if integers.is_valid(row) { integers.value(row) } else { i64::MIN };
    Ok((0..rows).map(rank).collect())
}

/// What contests came to.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// New rows that are older than what the table has.
    pub(super) beaten: RoaringTreemap,
    /// New rows that the table has with the same rank.
    known: RoaringTreemap,
}

impl Verdict {
    /// Decides about one file's rows, of which some are hidden `already` or are to go anyhow. Returns the
    /// positions of those that give way.
    pub(super) fn over(
        &mut self,
        contests: &[Contest],
        order: &Order,
        counts: impl Fn(u64) -> bool,
    ) -> RoaringTreemap {
        let mut hidden = RoaringTreemap::new();
        for contest in contests.iter().filter(|contest| counts(contest.position)) {
            if order.by_event && contest.old > contest.new {
                self.beaten.insert(contest.ordinal);
                continue;
            }
            hidden.insert(contest.position);
            if contest.old == contest.new {
                self.known.insert(contest.ordinal);
            }
        }
        hidden
    }

    /// How late those of the early rows came that nobody knew.
    pub(super) fn lateness(&self, early: &[(u64, i64)], order: &Order) -> Lateness {
        let mut lateness = Lateness { outdated: self.beaten.len(), ..Lateness::default() };
        let Some((known_to, micros)) = order.known_to else { return lateness };
        for (ordinal, rank) in early {
            if !self.known.contains(*ordinal) && !self.beaten.contains(*ordinal) {
                lateness.add(known_to.saturating_sub(*rank).saturating_mul(micros));
            }
        }
        lateness
    }
}
