//! What a manifest says of a data file's columns: sizes, counts, and the least and greatest value,
//! taken from the Parquet footer.
//!
//! Readers skip files by these bounds, so a bound may be loose but never wrong:
//!
//! - every row group counts, also one whose statistics were shortened (a shortened minimum is lower,
//!   a shortened maximum was counted up);
//! - strings and bytes are cut to [`LENGTH`]; an upper bound is counted up after the cut, and left out
//!   when it cannot be;
//! - floats have no NaN in their bounds, and count it apart;
//! - inside lists and maps there are no bounds: a row has many values there.

use std::collections::HashMap;

use iceberg::spec::{Datum, PrimitiveLiteral, PrimitiveType, Schema};
use parquet::file::metadata::ParquetMetaData;
use parquet::file::statistics::Statistics;

use super::storage::iceberg_error;
use crate::error::{Error, ErrorKind, Result};

/// Characters of a string, or bytes of a binary, that a bound keeps: the default of Iceberg's own
/// writers.
const LENGTH: usize = 16;

/// What a manifest says of a data file's columns, by field id.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Metrics {
    pub(super) column_sizes: HashMap<i32, u64>,
    pub(super) value_counts: HashMap<i32, u64>,
    pub(super) null_counts: HashMap<i32, u64>,
    pub(super) lower: HashMap<i32, Datum>,
    pub(super) upper: HashMap<i32, Datum>,
    pub(super) split_offsets: Vec<i64>,
}

/// Reads a footer that was just written.
pub(super) fn metrics(footer: &ParquetMetaData, schema: &Schema) -> Result<Metrics> {
    let mut metrics = Metrics::default();
    for group in footer.row_groups() {
        let start = group.columns().first().map(|column| column.byte_range().0);
        metrics.split_offsets.extend(group.file_offset().or(start.map(|start| start as i64)));
    }
    let descriptor = footer.file_metadata().schema_descr();
    for (i, column) in descriptor.columns().iter().enumerate() {
        let info = column.self_type().get_basic_info();
        if !info.has_id() {
            continue;
        }
        let id = info.id();
        let chunks = || footer.row_groups().iter().map(|group| group.column(i));
        let size = chunks().map(|chunk| chunk.compressed_size().max(0) as u64).sum();
        metrics.column_sizes.insert(id, size);
        if column.max_rep_level() > 0 {
            continue;
        }
        metrics.value_counts.insert(id, chunks().map(|chunk| chunk.num_values().max(0) as u64).sum());
        let nulls: Option<u64> = chunks().map(|chunk| chunk.statistics()?.null_count_opt()).sum();
        if let Some(nulls) = nulls {
            metrics.null_counts.insert(id, nulls);
        }
        let Some(kind) = schema.field_by_id(id).and_then(|field| field.field_type.as_primitive_type()) else {
            continue;
        };
        let statistics = chunks().map(|chunk| (chunk.num_values().max(0) as u64, chunk.statistics()));
        if let Some((lower, upper)) = range(statistics, kind)? {
            metrics.lower.insert(id, shorter_lower(lower));
            metrics.upper.extend(shorter_upper(upper).map(|bound| (id, bound)));
        }
    }
    Ok(metrics)
}

/// The least and the greatest value over all row groups; `None` when a row group does not say, or
/// when there is no value.
fn range<'a>(
    groups: impl Iterator<Item = (u64, Option<&'a Statistics>)>,
    kind: &PrimitiveType,
) -> Result<Option<(Datum, Datum)>> {
    let floating = matches!(kind, PrimitiveType::Float | PrimitiveType::Double);
    let mut range: Option<(Datum, Datum)> = None;
    for (values, statistics) in groups {
        let Some(statistics) = statistics else { return Ok(None) };
        let decimal = matches!(kind, PrimitiveType::Decimal { .. });
        let (Some(min), Some(max)) =
            (bytes(statistics, End::Min, decimal), bytes(statistics, End::Max, decimal))
        else {
            // The encoder leaves the range out when all values are NULL, or NaN: those do not count.
            if floating || statistics.null_count_opt() == Some(values) {
                continue;
            }
            return Ok(None);
        };
        let decode = |bytes: &[u8]| Datum::try_from_bytes(bytes, kind.clone()).map_err(iceberg_error);
        let (min, max) = (decode(&min)?, decode(&max)?);
        if min.is_nan() || max.is_nan() {
            return Ok(None);
        }
        range = Some(match range {
            None => (min, max),
            Some((lower, upper)) => {
                (if less(&min, &lower)? { min } else { lower }, if less(&upper, &max)? { max } else { upper })
            }
        });
    }
    Ok(range)
}

/// The order of Iceberg's single values. Decimals of one column have one scale.
fn less(a: &Datum, b: &Datum) -> Result<bool> {
    use PrimitiveLiteral as L;
    Ok(match (a.literal(), b.literal()) {
        (L::Boolean(a), L::Boolean(b)) => a < b,
        (L::Int(a), L::Int(b)) => a < b,
        (L::Long(a), L::Long(b)) => a < b,
        (L::Float(a), L::Float(b)) => a < b,
        (L::Double(a), L::Double(b)) => a < b,
        (L::String(a), L::String(b)) => a < b,
        (L::Binary(a), L::Binary(b)) => a < b,
        (L::Int128(a), L::Int128(b)) => a < b,
        (L::UInt128(a), L::UInt128(b)) => a < b,
        _ => return Err(Error::new(ErrorKind::Internal, "the bounds of a column have two types")),
    })
}

#[derive(Clone, Copy)]
enum End {
    Min,
    Max,
}

/// A statistic as Iceberg serialises single values: numbers little endian, decimals big endian.
fn bytes(statistics: &Statistics, end: End, decimal: bool) -> Option<Vec<u8>> {
    macro_rules! pick {
        ($of:expr) => {
            match end {
                End::Min => $of.min_opt(),
                End::Max => $of.max_opt(),
            }
        };
    }
    match statistics {
        Statistics::Boolean(of) => pick!(of).map(|value| vec![u8::from(*value)]),
        Statistics::Int32(of) if decimal => pick!(of).map(|value| value.to_be_bytes().to_vec()),
        Statistics::Int64(of) if decimal => pick!(of).map(|value| value.to_be_bytes().to_vec()),
        Statistics::Int32(of) => pick!(of).map(|value| value.to_le_bytes().to_vec()),
        Statistics::Int64(of) => pick!(of).map(|value| value.to_le_bytes().to_vec()),
        Statistics::Float(of) => pick!(of).map(|value| value.to_le_bytes().to_vec()),
        Statistics::Double(of) => pick!(of).map(|value| value.to_le_bytes().to_vec()),
        Statistics::ByteArray(of) => pick!(of).map(|value| value.data().to_vec()),
        Statistics::FixedLenByteArray(of) => pick!(of).map(|value| value.data().to_vec()),
        Statistics::Int96(_) => None,
    }
}

/// A lower bound cut to [`LENGTH`]: what is left is not greater.
fn shorter_lower(bound: Datum) -> Datum {
    match bound.literal() {
        PrimitiveLiteral::String(text) => match text.char_indices().nth(LENGTH) {
            Some((end, _)) => Datum::string(&text[..end]),
            None => bound,
        },
        PrimitiveLiteral::Binary(bytes) if bytes.len() > LENGTH && is_binary(&bound) => {
            Datum::binary(bytes[..LENGTH].iter().copied())
        }
        _ => bound,
    }
}

/// An upper bound cut to [`LENGTH`] and counted up, so that it is not less; `None` when nothing
/// greater of that length exists.
fn shorter_upper(bound: Datum) -> Option<Datum> {
    match bound.literal() {
        PrimitiveLiteral::String(text) => match text.char_indices().nth(LENGTH) {
            Some((end, _)) => next_text(&text[..end]).map(Datum::string),
            None => Some(bound),
        },
        PrimitiveLiteral::Binary(bytes) if bytes.len() > LENGTH && is_binary(&bound) => {
            next_bytes(&bytes[..LENGTH]).map(Datum::binary)
        }
        _ => Some(bound),
    }
}

/// `fixed` values keep their length.
fn is_binary(bound: &Datum) -> bool {
    matches!(bound.data_type(), PrimitiveType::Binary)
}

/// The least text that is greater than all that begin with `prefix`.
pub(super) fn next_text(prefix: &str) -> Option<String> {
    let mut characters: Vec<char> = prefix.chars().collect();
    while let Some(last) = characters.pop() {
        // The order of UTF-8 is that of code points; surrogates lie between and are no characters.
        let next = match last {
            '\u{D7FF}' => Some('\u{E000}'),
            other => char::from_u32(u32::from(other) + 1),
        };
        if let Some(next) = next {
            characters.push(next);
            return Some(characters.into_iter().collect());
        }
    }
    None
}

pub(super) fn next_bytes(prefix: &[u8]) -> Option<Vec<u8>> {
    let end = prefix.iter().rposition(|byte| *byte < u8::MAX)?;
    let mut bytes = prefix[..=end].to_vec();
    bytes[end] += 1;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_cut_to_the_safe_side() {
        let long = "abcdefghijklmnopqrstuvwxyz";
        assert_eq!(shorter_lower(Datum::string(long)), Datum::string("abcdefghijklmnop"));
        assert_eq!(shorter_upper(Datum::string(long)), Some(Datum::string("abcdefghijklmnoq")));
        let greatest = char::MAX.to_string().repeat(17);
        assert_eq!(shorter_upper(Datum::string(&greatest)), None);
        let carried = format!("a{}", char::MAX.to_string().repeat(17));
        assert_eq!(shorter_upper(Datum::string(carried)), Some(Datum::string("b")));
        let before_surrogates = "\u{D7FF}".repeat(17);
        let upper = format!("{}\u{E000}", "\u{D7FF}".repeat(15));
        assert_eq!(shorter_upper(Datum::string(before_surrogates)), Some(Datum::string(upper)));
        assert_eq!(shorter_upper(Datum::binary([0xff; 20])), None);
        let mut bytes = [7; 20];
        bytes[15] = 0xff;
        assert_eq!(
            shorter_upper(Datum::binary(bytes)),
            Some(Datum::binary([[7; 14].as_slice(), &[8]].concat()))
        );
        assert_eq!(shorter_upper(Datum::fixed([0xff; 20])), Some(Datum::fixed([0xff; 20])));
    }
}
