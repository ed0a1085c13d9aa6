//! Keys of integers, packed into one number.
//!
//! ```text
//! (id: 17 of 1..=1000, day: 3 of 0..=31) ─▶ 16 | 3 << 10
//! ```
//!
//! That works where the ranges of all columns fit 64 bits together; a value outside them is no key.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Decimal128Type};

use crate::error::Result;

/// One integer column's part of a packed key: `(value - min) << shift`, for values up to `min + span`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Digit {
    min: i64,
    span: u64,
    shift: u32,
}

pub(super) struct Packed {
    pub(super) keys: Vec<u64>,
    /// Rows whose key cannot be in the set: a value out of range, or NULL.
    pub(super) outside: Vec<bool>,
}

impl Digit {
    /// What the column gives to a packed key.
    pub(super) fn part(&self, key: u64) -> u64 {
        let bits = u64::BITS - self.span.leading_zeros();
        let mask = if bits == u64::BITS { u64::MAX } else { (1 << bits) - 1 };
        key & (mask << self.shift)
    }

    /// The same of a value; `None` where no key has it.
    pub(super) fn part_of(&self, value: i64) -> Option<u64> {
        let offset = value.wrapping_sub(self.min) as u64;
        (offset <= self.span).then_some(offset << self.shift)
    }

    /// How many values the column can have.
    pub(super) fn span(&self) -> u64 {
        self.span
    }
}

impl Packed {
    /// Keys of which the parts of some columns are known.
    pub(super) fn of_parts(keys: Vec<u64>) -> Self {
        Self { outside: vec![false; keys.len()], keys }
    }

    /// Adds a column's part.
    pub(super) fn add(&mut self, digit: &Digit, column: &ArrayRef) -> Result<()> {
        let integers = integers(column)?;
        for ((key, outside), value) in self.keys.iter_mut().zip(&mut self.outside).zip(integers.values()) {
            let offset = value.wrapping_sub(digit.min) as u64;
            *outside |= offset > digit.span;
            // Of a value out of range only the flag counts.
            *key |= offset << digit.shift;
        }
        if let Some(nulls) = integers.nulls().filter(|nulls| nulls.null_count() > 0) {
            for (row, outside) in self.outside.iter_mut().enumerate() {
                *outside |= nulls.is_null(row);
            }
        }
        Ok(())
    }
}

/// How to pack columns of these ranges; `None` when they need more than 64 bits.
pub(super) fn digits(ranges: &[(i64, i64)]) -> Option<Vec<Digit>> {
    let mut shift = 0;
    let mut digits = Vec::with_capacity(ranges.len());
    for (min, max) in ranges {
        let span = max.wrapping_sub(*min) as u64;
        let bits = u64::BITS - span.leading_zeros();
        if shift + bits > u64::BITS {
            return None;
        }
        // A column with one value takes no bits; its shift must still be legal.
        digits.push(Digit { min: *min, span, shift: shift.min(u64::BITS - 1) });
        shift += bits;
    }
    Some(digits)
}

/// The keys of rows, packed.
pub(super) fn pack(digits: &[Digit], columns: &[ArrayRef]) -> Result<Packed> {
    let rows = columns.first().map_or(0, |column| column.len());
    let mut packed = Packed::of_parts(vec![0; rows]);
    for (digit, column) in digits.iter().zip(columns) {
        packed.add(digit, column)?;
    }
    Ok(packed)
}

/// The columns of packed keys.
pub(super) fn unpack<I: Iterator<Item = u64>>(digits: &[Digit], keys: impl Fn() -> I) -> Vec<ArrayRef> {
    let column = |digit: &Digit| {
        let value = |key: u64| digit.min.wrapping_add((digit.part(key) >> digit.shift) as i64);
        Arc::new(Int64Array::from_iter_values(keys().map(value))) as ArrayRef
    };
    digits.iter().map(column).collect()
}

/// Whether values of this type can be taken as 64-bit integers without loss.
pub(super) fn is_integral(data_type: &DataType) -> bool {
    use DataType as T;
    match data_type {
        T::Int8 | T::Int16 | T::Int32 | T::Int64 | T::UInt8 | T::UInt16 | T::UInt32 => true,
        T::Date32 | T::Time32(_) | T::Time64(_) | T::Timestamp(_, _) => true,
        T::Decimal128(precision, _) => *precision <= 18,
        _ => false,
    }
}

/// The values as 64-bit integers: numbers, dates and times as they are stored, decimals unscaled.
pub(super) fn integers(array: &ArrayRef) -> Result<Int64Array> {
    let array = match array.data_type() {
        // Precision up to 18: every value fits.
        DataType::Decimal128(_, _) => Arc::new(
            array
                .as_primitive::<Decimal128Type>()
                .unary::<_, arrow::datatypes::Int64Type>(|value| value as i64),
        ) as ArrayRef,
        DataType::Int64 => array.clone(),
        _ => cast(array, &DataType::Int64)?,
    };
    Ok(array.as_primitive().clone())
}
