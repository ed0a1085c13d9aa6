//! The set of keys that new rows have, and where each key's newest row is.
//!
//! ```text
//! key columns of new files ─▶ KeySetBuilder ─▶ KeySet ─▶ does this old row have one of the keys?
//!                                  │              └────▶ can anything in [min, max] be one of them?
//!                                  └─▶ earlier rows whose key comes again
//! ```
//!
//! A row's *ordinal* is its place in all new files put end to end; of two rows with one key the one
//! with the higher ordinal stays, unless rows have [ranks](Ranks), which then decide first. Two forms:
//! keys of integers whose ranges fit 64 bits together are packed into one number (`Packed`), all others
//! use Arrow's row format in one arena (`Rows`).
//!
//! The set is bounded: when all keys do not fit the memory, it is built several times, each time for
//! the share of keys whose hash falls to that [`Pass`].

use std::sync::Arc;

use ahash::RandomState;
use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Float32Type, Float64Type};
use arrow::row::{RowConverter, SortField};
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use super::filter::Filter;
use super::lead::Lead;
use super::packed::{Digit, Packed, digits, pack, unpack};
use super::ranks::Ranks;
use super::values::ColumnValues;
use crate::error::{Error, ErrorKind, Result};

/// A column of the key, as the table has it now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeyColumn {
    pub(super) name: String,
    pub(super) field_id: i32,
    /// The Arrow type in which its values are compared, whatever type an old file has.
    pub(super) data_type: DataType,
    /// What it is called in files without field ids.
    pub(super) names: Vec<String>,
}

/// Which share of the keys a set holds: those with `hash % of == number`. All passes of one search must
/// share a hasher, or a key would fall to two of them and another to none.
#[derive(Debug, Clone)]
pub(super) struct Pass {
    pub(super) number: u64,
    pub(super) of: u64,
    pub(super) hasher: RandomState,
}

impl Pass {
    fn takes(&self, hash: u64) -> bool {
        // The table itself uses the lowest and the highest bits.
        self.of == 1 || (hash >> 20) % self.of == self.number
    }
}

/// Bytes that one key takes, at most: an entry of 16 bytes and a control byte, in a table that is at least
/// 7/16 full, and its share of the [`Filter`]; the table takes twice that while it grows.
pub(super) const KEY_BYTES: usize = 44;

/// Up to this many keys are looked up one by one in bloom filters. With more, at a false-positive
/// rate of 1 %, hardly any row group would be ruled out.
pub(super) const FEW: usize = 64;

/// Collects keys.
pub(super) struct KeySetBuilder {
    columns: Arc<[KeyColumn]>,
    pass: Pass,
    form: Form,
    values: Vec<ColumnValues>,
    replaced: Vec<u64>,
    ranks: Option<Ranks>,
}

/// The keys of one pass; shared by the tasks that look for old rows.
pub(super) struct KeySet {
    pass: Pass,
    form: Form,
    values: Vec<ColumnValues>,
    few: Option<Vec<ArrayRef>>,
    lead: Option<Lead>,
    ranks: Option<Ranks>,
}

enum Form {
    Packed { digits: Vec<Digit>, filter: Filter, table: HashTable<PackedKey> },
    Rows { converter: RowConverter, bytes: Vec<u8>, table: HashTable<RowKey> },
}

struct PackedKey {
    key: u64,
    ordinal: u64,
}

struct RowKey {
    start: usize,
    len: u32,
    ordinal: u64,
}

impl KeySetBuilder {
    /// For about `expected` keys. `ranges` are the least and the greatest value of each column, where
    /// known: with them, keys of integers are packed.
    pub(super) fn new(
        columns: Arc<[KeyColumn]>,
        ranges: Option<&[(i64, i64)]>,
        pass: Pass,
        expected: usize,
    ) -> Result<Self> {
        let form = match ranges.and_then(digits) {
            Some(digits) => {
                let table = HashTable::with_capacity(expected);
                Form::Packed { digits, filter: Filter::default(), table }
            }
            None => Form::Rows {
                converter: RowConverter::new(
                    columns.iter().map(|column| SortField::new(column.data_type.clone())).collect(),
                )?,
                bytes: Vec::new(),
                table: HashTable::with_capacity(expected),
            },
        };
        let values =
            columns.iter().map(|column| ColumnValues::new(&column.data_type)).collect::<Result<_>>()?;
        Ok(Self { columns, pass, form, values, replaced: Vec::new(), ranks: None })
    }

    /// Rows that follow will have ranks.
    pub(super) fn ranked(mut self, by_event: bool) -> Self {
        self.ranks = Some(Ranks::new(by_event));
        self
    }

    /// Adds the keys of rows that follow each other, the first of them with ordinal `first`.
    pub(super) fn insert(&mut self, keys: &[ArrayRef], first: u64) -> Result<()> {
        self.insert_ranked(keys, &[], first)
    }

    /// The same for rows with these ranks.
    pub(super) fn insert_ranked(&mut self, keys: &[ArrayRef], of: &[i64], first: u64) -> Result<()> {
        for (array, column) in keys.iter().zip(self.columns.iter()) {
            if array.null_count() > 0 {
                return Err(Error::new(ErrorKind::Data, "a key column holds NULL")
                    .with("column", &column.name)
                    .hint("a row can only be found again by a key without NULL: choose other key columns, or `mode: append`"));
            }
        }
        let Self { pass, form, replaced, ranks, .. } = self;
        let hasher = &pass.hasher;
        let mut taken = Vec::new();
        match form {
            Form::Packed { digits, table, .. } => {
                let packed = pack(digits, keys)?;
                if packed.outside.iter().any(|outside| *outside) {
                    return Err(Error::new(
                        ErrorKind::Corrupt,
                        "a key lies outside of its file's statistics",
                    ));
                }
                for (row, key) in packed.keys.into_iter().enumerate() {
                    let hash = hasher.hash_one(key);
                    if !pass.takes(hash) {
                        continue;
                    }
                    let ordinal = first + row as u64;
                    match table.entry(hash, |entry| entry.key == key, |entry| hasher.hash_one(entry.key)) {
                        Entry::Occupied(mut entry) => {
                            let kept = &mut entry.get_mut().ordinal;
                            replaced.push(match ranks {
                                Some(ranks) => ranks.newer(kept, ordinal, of[row]),
                                None => newer(kept, ordinal),
                            });
                        }
                        Entry::Vacant(entry) => {
                            entry.insert(PackedKey { key, ordinal });
                            taken.push(row);
                            ranks.iter_mut().for_each(|ranks| ranks.put(ordinal, of[row]));
                        }
                    }
                }
            }
            Form::Rows { converter, bytes, table } => {
                let rows = converter.convert_columns(&canonical_all(keys))?;
                for (row, key) in rows.iter().enumerate() {
                    let key = key.data();
                    let hash = hasher.hash_one(key);
                    if !pass.takes(hash) {
                        continue;
                    }
                    let ordinal = first + row as u64;
                    let entry = table.entry(
                        hash,
                        |entry| slice(bytes, entry) == key,
                        |entry| hasher.hash_one(slice(bytes, entry)),
                    );
                    match entry {
                        Entry::Occupied(mut entry) => {
                            let kept = &mut entry.get_mut().ordinal;
                            replaced.push(match ranks {
                                Some(ranks) => ranks.newer(kept, ordinal, of[row]),
                                None => newer(kept, ordinal),
                            });
                        }
                        Entry::Vacant(entry) => {
                            let len = u32::try_from(key.len())
                                .map_err(|_| Error::new(ErrorKind::Data, "a key is longer than 4 GiB"))?;
                            entry.insert(RowKey { start: bytes.len(), len, ordinal });
                            bytes.extend_from_slice(key);
                            taken.push(row);
                            ranks.iter_mut().for_each(|ranks| ranks.put(ordinal, of[row]));
                        }
                    }
                }
            }
        }
        for (values, array) in self.values.iter_mut().zip(keys) {
            values.add(array, &taken)?;
        }
        Ok(())
    }

    /// About how many bytes the set takes now.
    pub(super) fn size(&self) -> usize {
        let table = match &self.form {
            Form::Packed { table, .. } => table.allocation_size(),
            Form::Rows { table, bytes, .. } => table.allocation_size() + bytes.capacity(),
        };
        let ranks = self.ranks.as_ref().map_or(0, Ranks::size);
        table + ranks + self.values.iter().map(ColumnValues::size).sum::<usize>()
    }

    /// The set, and the ordinals of the rows that a later row with the same key replaces.
    pub(super) fn finish(mut self) -> Result<(KeySet, Vec<u64>)> {
        for values in &mut self.values {
            values.seal();
        }
        if let Form::Packed { filter, table, .. } = &mut self.form {
            *filter = Filter::of(table.iter().map(|entry| entry.key), table.len());
        }
        let few = match &self.form {
            Form::Packed { digits, table, .. } if table.len() <= FEW => {
                Some(unpack(digits, || table.iter().map(|entry| entry.key)))
            }
            Form::Rows { converter, bytes, table } if table.len() <= FEW => {
                let parser = converter.parser();
                Some(converter.convert_rows(table.iter().map(|entry| parser.parse(slice(bytes, entry))))?)
            }
            _ => None,
        };
        let lead = match &self.form {
            // Of ranked rows another column is read anyhow.
            _ if self.ranks.is_some() => None,
            Form::Packed { digits, table, .. } => {
                Lead::of(digits, &self.values, table.iter().map(|entry| entry.key), table.len())
            }
            Form::Rows { .. } => None,
        };
        let (pass, form, values, ranks) = (self.pass, self.form, self.values, self.ranks);
        let set = KeySet { pass, form, values, few, lead, ranks };
        Ok((set, self.replaced))
    }
}

impl KeySet {
    /// How many keys this pass has.
    pub(super) fn len(&self) -> usize {
        match &self.form {
            Form::Packed { table, .. } => table.len(),
            Form::Rows { table, .. } => table.len(),
        }
    }

    /// How many columns a key has.
    pub(super) fn width(&self) -> usize {
        self.values.len()
    }

    /// The values that the keys have in one column.
    pub(super) fn values(&self, column: usize) -> &ColumnValues {
        &self.values[column]
    }

    /// All keys, column by column, if they are few. Integer columns come as `Int64`.
    pub(super) fn few(&self) -> Option<&[ArrayRef]> {
        self.few.as_deref()
    }

    /// The ranks of the rows that stay, if they have any.
    pub(super) fn ranks(&self) -> Option<&Ranks> {
        self.ranks.as_ref()
    }

    /// The column to look at first, if keys have several and one rules out most rows.
    pub(super) fn lead(&self) -> Option<&Lead> {
        self.lead.as_ref()
    }

    /// As [`find`](Self::find), for rows of which the leading column's part is known: with the other columns
    /// alone.
    pub(super) fn find_rest(
        &self,
        lead: &Lead,
        parts: &[u64],
        others: &[ArrayRef],
        mut found: impl FnMut(usize),
    ) -> Result<()> {
        let Form::Packed { digits, table, .. } = &self.form else { return Ok(()) };
        let mut packed = Packed::of_parts(parts.to_vec());
        for (digit, column) in lead.others(digits).zip(others) {
            packed.add(digit, column)?;
        }
        for (row, (key, outside)) in packed.keys.iter().zip(&packed.outside).enumerate() {
            let hash = self.pass.hasher.hash_one(*key);
            if !outside && table.find(hash, |entry| entry.key == *key).is_some() {
                found(row);
            }
        }
        Ok(())
    }

    /// Calls `found` with the index of each row whose key is in the set, and with the ordinal of the new
    /// row that has it. A key with NULL never is.
    pub(super) fn find(&self, keys: &[ArrayRef], mut found: impl FnMut(usize, u64)) -> Result<()> {
        match &self.form {
            Form::Packed { digits, filter, table } => {
                let packed = pack(digits, keys)?;
                for (row, (key, outside)) in packed.keys.iter().zip(&packed.outside).enumerate() {
                    if !outside
                        && filter.may_have(*key)
                        && let Some(entry) =
                            table.find(self.pass.hasher.hash_one(*key), |entry| entry.key == *key)
                    {
                        found(row, entry.ordinal);
                    }
                }
            }
            Form::Rows { converter, bytes, table } => {
                // Rows with NULL are encoded apart from all others, and no key of ours has one.
                let rows = converter.convert_columns(&canonical_all(keys))?;
                for (row, key) in rows.iter().enumerate() {
                    let key = key.data();
                    let hash = self.pass.hasher.hash_one(key);
                    if self.pass.takes(hash)
                        && let Some(entry) = table.find(hash, |entry| slice(bytes, entry) == key)
                    {
                        found(row, entry.ordinal);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Keeps the higher ordinal and returns the lower.
fn newer(kept: &mut u64, other: u64) -> u64 {
    let lower = other.min(*kept);
    *kept = other.max(*kept);
    lower
}

fn slice<'a>(bytes: &'a [u8], entry: &RowKey) -> &'a [u8] {
    &bytes[entry.start..entry.start + entry.len as usize]
}

fn canonical_all(columns: &[ArrayRef]) -> Vec<ArrayRef> {
    columns.iter().map(canonical).collect()
}

/// Databases hold that -0.0 equals 0.0 and that all NaN are one; bytes say otherwise.
fn canonical(array: &ArrayRef) -> ArrayRef {
    match array.data_type() {
        DataType::Float32 => {
            let one = |value: f32| if value.is_nan() { f32::NAN } else { value + 0.0 };
            Arc::new(array.as_primitive::<Float32Type>().unary::<_, Float32Type>(one))
        }
        DataType::Float64 => {
            let one = |value: f64| if value.is_nan() { f64::NAN } else { value + 0.0 };
            Arc::new(array.as_primitive::<Float64Type>().unary::<_, Float64Type>(one))
        }
        _ => array.clone(),
    }
}

#[cfg(test)]
mod tests;
