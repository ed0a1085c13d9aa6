//! Collects the changes of a portion and leaves one for each key: the last.
//!
//! ```text
//! change ─▶ memory, while it has room ──────────────────────────▶ collapse ─▶ rows, keys that are gone
//!                └─▶ a temporary file in shares, by hash of the key ─▶ each share ─▲
//! ```
//!
//! A transaction of any size is one portion, since half of one must not be seen. What does not fit the
//! memory is divided into shares by key, so that each is collapsed on its own.
//!
//! A value that the log does not have, because it is stored apart and did not change, comes from the
//! change before it of the same key; where there is none, the row stays without it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::Arc;

use ahash::RandomState;
use arrow::array::{ArrayRef, Int8Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};

use crate::delta::Op;
use crate::error::{Error, ErrorKind, Result};
use crate::table::OP_COLUMN;

/// Shares of what does not fit the memory: with 48 MB of it, changes of 12 GB come in shares of as much.
const SHARES: usize = 256;
/// The length of a field that is NULL, as a binary COPY has it.
pub const NULL: i32 = -1;
/// The length of a field that the log does not have.
pub const UNCHANGED: i32 = -2;
/// Operation, length of the key, length of the row.
const HEADER: usize = 1 + 4 + 4;

/// Changes of one table.
pub struct Changes {
    /// One share while everything fits the memory, else all of them.
    shares: Vec<Vec<u8>>,
    held: usize,
    most: usize,
    spilled: Option<Spill>,
    hasher: RandomState,
}

/// A temporary file without a name, and where in it the parts of each share are.
struct Spill {
    file: File,
    end: u64,
    parts: Vec<Vec<(u64, usize)>>,
}

/// What became of a key.
#[derive(Debug, PartialEq, Eq)]
pub struct Change<'a> {
    /// The last thing that happened to it.
    pub op: Op,
    /// As it was added.
    pub key: &'a [u8],
    /// A row as a binary COPY has it. Fields may be [`UNCHANGED`].
    pub row: &'a [u8],
}

impl Changes {
    /// Changes that hold about `most` bytes in memory.
    pub fn new(most: usize) -> Self {
        Self { shares: vec![Vec::new()], held: 0, most, spilled: None, hasher: RandomState::new() }
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.held == 0 && self.spilled.is_none()
    }

    /// Adds what happened to a key after everything that was added before.
    pub fn add(&mut self, op: Op, key: &[u8], row: &[u8]) -> Result<()> {
        let share = self.share(key);
        push(&mut self.shares[share], op, key, row);
        self.held += HEADER + key.len() + row.len();
        if self.held > self.most { self.spill().map_err(spill_failed) } else { Ok(()) }
    }

    fn share(&self, key: &[u8]) -> usize {
        self.hasher.hash_one(key) as usize % self.shares.len()
    }

    fn spill(&mut self) -> std::io::Result<()> {
        if self.spilled.is_none() {
            let all = std::mem::replace(&mut self.shares, vec![Vec::new(); SHARES]).remove(0);
            let mut at = 0;
            while let Some((op, key, row, next)) = record(&all, at) {
                let share = self.share(key);
                push(&mut self.shares[share], op, key, row);
                at = next;
            }
        }
        let spill = match &mut self.spilled {
            Some(spill) => spill,
            none => {
                none.insert(Spill { file: tempfile::tempfile()?, end: 0, parts: vec![Vec::new(); SHARES] })
            }
        };
        for (share, parts) in self.shares.iter_mut().zip(&mut spill.parts) {
            if !share.is_empty() {
                spill.file.write_all(share)?;
                parts.push((spill.end, share.len()));
                spill.end += share.len() as u64;
                *share = Vec::new();
            }
        }
        self.held = 0;
        Ok(())
    }

    /// The shares, each of which has all changes of its keys.
    pub fn into_shares(mut self) -> Result<impl Iterator<Item = Result<Share>> + Send> {
        if self.spilled.is_some() {
            self.spill().map_err(spill_failed)?;
        }
        let mut spilled = self.spilled;
        let count = self.shares.len();
        let mut shares = self.shares;
        Ok((0..count).map(move |share| {
            let bytes = match &mut spilled {
                Some(spill) => spill.read(share).map_err(spill_failed)?,
                None => std::mem::take(&mut shares[share]),
            };
            Share::new(bytes)
        }))
    }
}

impl Spill {
    fn read(&mut self, share: usize) -> std::io::Result<Vec<u8>> {
        let parts = std::mem::take(&mut self.parts[share]);
        let mut bytes = vec![0; parts.iter().map(|(_, len)| len).sum()];
        let mut room = bytes.as_mut_slice();
        for (at, len) in parts {
            let (part, rest) = room.split_at_mut(len);
            self.file.seek(SeekFrom::Start(at))?;
            self.file.read_exact(part)?;
            room = rest;
        }
        Ok(bytes)
    }
}

/// Changes that are all there are of their keys.
pub struct Share {
    bytes: Vec<u8>,
    /// Rows that were put together from several changes.
    merged: Vec<Vec<u8>>,
    /// The last change of each key, in the order in which they came.
    last: Vec<Last>,
}

/// The last change of a key so far, and its row where that was put together.
struct Newest {
    at: usize,
    merged: Option<Vec<u8>>,
}

struct Last {
    at: usize,
    merged: Option<usize>,
}

impl Share {
    fn new(bytes: Vec<u8>) -> Result<Self> {
        let mut newest: HashMap<&[u8], Newest, RandomState> = HashMap::default();
        let mut at = 0;
        while let Some((op, key, row, next)) = record(&bytes, at) {
            let place = newest.entry(key).or_insert(Newest { at, merged: None });
            let mut merged = None;
            if op == Op::Upsert && place.at != at && lacks(row) {
                let (before, _, old, _) = record(&bytes, place.at).ok_or_else(lost)?;
                if before == Op::Upsert {
                    merged = Some(merge(place.merged.as_deref().unwrap_or(old), row)?);
                }
            }
            *place = Newest { at, merged };
            at = next;
        }
        let mut order: Vec<_> = newest.into_values().collect();
        order.sort_unstable_by_key(|newest| newest.at);
        let mut merged = Vec::new();
        let last = order
            .into_iter()
            .map(|Newest { at, merged: row }| {
                let place = row.map(|row| {
                    merged.push(row);
                    merged.len() - 1
                });
                Last { at, merged: place }
            })
            .collect();
        Ok(Self { bytes, merged, last })
    }

    /// How many keys have changed.
    pub fn keys(&self) -> usize {
        self.last.len()
    }

    /// One of the keys, in the order in which they came.
    pub fn get(&self, place: usize) -> Option<Change<'_>> {
        let Last { at, merged } = self.last.get(place)?;
        let (op, key, row, _) = record(&self.bytes, *at)?;
        Some(match merged {
            Some(merged) => Change { op: Op::Upsert, key, row: &self.merged[*merged] },
            None => Change { op, key, row },
        })
    }
}

fn push(into: &mut Vec<u8>, op: Op, key: &[u8], row: &[u8]) {
    into.push(op as u8);
    into.extend_from_slice(&(key.len() as u32).to_be_bytes());
    into.extend_from_slice(&(row.len() as u32).to_be_bytes());
    into.extend_from_slice(key);
    into.extend_from_slice(row);
}

/// Operation, key and row of the record at a place, and where the next one is.
fn record(bytes: &[u8], at: usize) -> Option<(Op, &[u8], &[u8], usize)> {
    let [op, a, b, c, d, e, f, g, h] = *bytes.get(at..)?.first_chunk::<HEADER>()?;
    let key = at + HEADER;
    let row = key + u32::from_be_bytes([a, b, c, d]) as usize;
    let end = row + u32::from_be_bytes([e, f, g, h]) as usize;
    let op = if op == Op::Delete as u8 { Op::Delete } else { Op::Upsert };
    Some((op, bytes.get(key..row)?, bytes.get(row..end)?, end))
}

/// A batch of a log: rows, and what became of each.
pub fn with_ops(rows: &RecordBatch, ops: Vec<i8>) -> Result<RecordBatch> {
    let mut fields = rows.schema().fields().to_vec();
    fields.push(Arc::new(Field::new(OP_COLUMN, DataType::Int8, false)));
    let mut columns: Vec<ArrayRef> = rows.columns().to_vec();
    columns.push(Arc::new(Int8Array::from(ops)));
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}

/// The lengths and values of a row's fields.
pub fn fields(row: &[u8]) -> impl Iterator<Item = (i32, &[u8])> {
    let mut rest = row.get(2..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (len, tail) = rest.split_first_chunk::<4>()?;
        let len = i32::from_be_bytes(*len);
        let (value, tail) = tail.split_at_checked(len.max(0) as usize)?;
        rest = tail;
        Some((len, value))
    })
}

/// Whether the log does not have all of a row.
fn lacks(row: &[u8]) -> bool {
    fields(row).any(|(len, _)| len == UNCHANGED)
}

/// The new row, with what it lacks taken from the old one.
fn merge(old: &[u8], new: &[u8]) -> Result<Vec<u8>> {
    let mut row = new.get(..2).ok_or_else(lost)?.to_vec();
    let mut before = fields(old);
    for new in fields(new) {
        let old = before.next().ok_or_else(lost)?;
        let (len, value) = if new.0 == UNCHANGED { old } else { new };
        row.extend_from_slice(&len.to_be_bytes());
        row.extend_from_slice(value);
    }
    Ok(row)
}

fn lost() -> Error {
    Error::new(ErrorKind::Internal, "a change was lost on its way")
}

fn spill_failed(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Transient, "changes that do not fit the memory could not be put on disk")
        .hint("the directory for temporary files (`TMPDIR`) needs room for the largest transaction")
        .because(error)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn row(values: &[Option<&str>]) -> Vec<u8> {
        let mut row = (values.len() as i16).to_be_bytes().to_vec();
        for value in values {
            match value {
                None => row.extend_from_slice(&UNCHANGED.to_be_bytes()),
                Some(text) => {
                    row.extend_from_slice(&(text.len() as i32).to_be_bytes());
                    row.extend_from_slice(text.as_bytes());
                }
            }
        }
        row
    }

    fn collapsed(changes: Changes) -> Vec<(Op, Vec<u8>)> {
        let mut all = Vec::new();
        for share in changes.into_shares().unwrap() {
            let share = share.unwrap();
            for place in 0..share.keys() {
                let change = share.get(place).unwrap();
                all.push((change.op, change.row.to_vec()));
            }
        }
        all
    }

    #[test]
    fn the_last_change_of_a_key_stays_in_the_order_in_which_they_came() {
        let mut changes = Changes::new(1 << 20);
        for (op, key, text) in [
            (Op::Upsert, "1", "a"),
            (Op::Upsert, "2", "b"),
            (Op::Delete, "1", ""),
            (Op::Upsert, "3", "c"),
            (Op::Upsert, "2", "bb"),
        ] {
            changes.add(op, key.as_bytes(), &row(&[Some(text)])).unwrap();
        }
        let expected = [
            (Op::Delete, row(&[Some("")])),
            (Op::Upsert, row(&[Some("c")])),
            (Op::Upsert, row(&[Some("bb")])),
        ];
        assert_eq!(collapsed(changes), expected);
    }

    #[test]
    fn what_a_change_lacks_comes_from_the_one_before_it() {
        let mut changes = Changes::new(1 << 20);
        let mut add = |op, key: &str, values: &[Option<&str>]| {
            changes.add(op, key.as_bytes(), &row(values)).unwrap();
        };
        add(Op::Upsert, "1", &[Some("1"), Some("long")]);
        add(Op::Upsert, "1", &[Some("2"), None]);
        add(Op::Upsert, "1", &[Some("3"), None]);
        add(Op::Upsert, "2", &[Some("1"), None]);
        add(Op::Upsert, "2", &[Some("2"), None]);
        // A row that was there before the last one of its key was deleted is another row.
        add(Op::Delete, "3", &[Some("1"), Some("other")]);
        add(Op::Upsert, "3", &[Some("1"), Some("new")]);
        let expected = [
            (Op::Upsert, row(&[Some("3"), Some("long")])),
            (Op::Upsert, row(&[Some("2"), None])),
            (Op::Upsert, row(&[Some("1"), Some("new")])),
        ];
        assert_eq!(collapsed(changes), expected);
    }

    proptest! {
        #[test]
        fn it_makes_no_difference_where_changes_are_held(
            came in proptest::collection::vec((0u8..40, proptest::option::of(0u32..1000), any::<bool>()), 0..300),
            most in 1usize..4000,
        ) {
            let mut changes = Changes::new(most);
            let mut model: BTreeMap<u8, (Op, Vec<u8>)> = BTreeMap::new();
            for (key, value, lacks) in came {
                let op = if value.is_some() { Op::Upsert } else { Op::Delete };
                let text = value.unwrap_or_default().to_string();
                let long = (!lacks).then_some(text.as_str());
                let new = row(&[Some(&text), long]);
                changes.add(op, &[key], &new).unwrap();
                let new = match model.get(&key) {
                    Some((Op::Upsert, old)) if op == Op::Upsert => merge(old, &new).unwrap(),
                    _ => new,
                };
                model.insert(key, (op, new));
            }
            let mut all = collapsed(changes);
            let mut expected: Vec<_> = model.into_values().collect();
            let order = |change: &(Op, Vec<u8>)| (change.0 as u8, change.1.clone());
            all.sort_by_key(order);
            expected.sort_by_key(order);
            prop_assert_eq!(all, expected);
        }
    }
}
