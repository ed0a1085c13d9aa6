//! What a partition says of the columns that it is made of: the values that can be in it.
//!
//! | transform | a row's value is |
//! |---|---|
//! | identity | the partition's |
//! | truncate, year, month, day, hour | in a range that the partition's value begins |
//! | bucket | one that has the partition's hash |
//! | void | anything |

use arrow::datatypes::{DataType, TimeUnit};
use chrono::{Datelike, NaiveDate};
use datafusion::common::ScalarValue;
use iceberg::spec::{
    Literal, PartitionField, PartitionSpec, PrimitiveLiteral, PrimitiveType, TableMetadata, Transform, Type,
};

use super::bounds::{next_bytes, next_text};
use super::file_statistics::literal;
use super::manifest::LiveFile;
use super::reshape::Defaults;

/// The values that a file has in every row, by field id: those of its identity partitions. They stand
/// for columns that the file itself leaves out, as files that were imported from Hive do.
pub(super) fn constants(metadata: &TableMetadata, file: &LiveFile) -> Defaults {
    let Some(spec) = metadata.partition_spec_by_id(file.spec_id) else { return Defaults::new() };
    let values = spec.fields().iter().zip(file.file.partition().fields());
    let constant = |(field, value): (&PartitionField, &Option<Literal>)| {
        let kind = source_type(metadata, field)?;
        if field.transform != Transform::Identity {
            return None;
        }
        let value = match value {
            Some(Literal::Primitive(value)) => widened(value, kind)?,
            Some(_) => return None,
            None => ScalarValue::Null,
        };
        Some((field.source_id.to_string(), value))
    };
    values.filter_map(constant).collect()
}

/// The type of the column that a partition field is made of, as it is now.
pub(super) fn source_type<'a>(
    metadata: &'a TableMetadata,
    field: &PartitionField,
) -> Option<&'a PrimitiveType> {
    match metadata.current_schema().field_by_id(field.source_id)?.field_type.as_ref() {
        Type::Primitive(kind) => Some(kind),
        _ => None,
    }
}

/// The fields of a spec that are made of a column, with their places.
pub(super) fn fields_of(spec: &PartitionSpec, column: i32) -> impl Iterator<Item = (usize, &PartitionField)> {
    spec.fields().iter().enumerate().filter(move |(_, field)| field.source_id == column)
}

/// A value of a column that may have been widened since.
fn widened(value: &PrimitiveLiteral, kind: &PrimitiveType) -> Option<ScalarValue> {
    match (kind, value) {
        (PrimitiveType::Long, PrimitiveLiteral::Int(value)) => {
            Some(ScalarValue::Int64(Some((*value).into())))
        }
        (PrimitiveType::Double, PrimitiveLiteral::Float(value)) => {
            Some(ScalarValue::Float64(Some(value.0.into())))
        }
        _ => literal(value, kind),
    }
}

/// The least and the greatest value of a column, of Arrow type `column`, that a partition value can
/// stand for. `None` is unknown.
pub(super) fn range(
    transform: Transform,
    value: &PrimitiveLiteral,
    kind: &PrimitiveType,
    column: &DataType,
) -> (Option<ScalarValue>, Option<ScalarValue>) {
    let (low, high) = match transform {
        Transform::Identity => (widened(value, kind), widened(value, kind)),
        Transform::Truncate(width) => truncated(value, width, kind),
        Transform::Year | Transform::Month | Transform::Day | Transform::Hour => {
            let PrimitiveLiteral::Int(number) = value else { return (None, None) };
            // Writers of old rounded times before 1970 towards it, into the unit above.
            let first = if *number <= 0 { number.checked_sub(1) } else { Some(*number) };
            let low = first.and_then(|first| start(transform, first));
            let high = number.checked_add(1).and_then(|next| start(transform, next)?.checked_sub(1));
            (low.and_then(|low| moment(low, column)), high.and_then(|high| moment(high, column)))
        }
        _ => (None, None),
    };
    let fit = |value: Option<ScalarValue>| value?.cast_to(column).ok().filter(|value| !value.is_null());
    (fit(low), fit(high))
}

fn truncated(
    value: &PrimitiveLiteral,
    width: u32,
    kind: &PrimitiveType,
) -> (Option<ScalarValue>, Option<ScalarValue>) {
    let high = match value {
        PrimitiveLiteral::Int(low) => {
            i32::try_from(i64::from(*low) + i64::from(width) - 1).ok().map(PrimitiveLiteral::Int)
        }
        PrimitiveLiteral::Long(low) => low.checked_add(i64::from(width) - 1).map(PrimitiveLiteral::Long),
        PrimitiveLiteral::Int128(low) => low.checked_add(i128::from(width) - 1).map(PrimitiveLiteral::Int128),
        PrimitiveLiteral::String(low) => next_text(low).map(PrimitiveLiteral::String),
        PrimitiveLiteral::Binary(low) => next_bytes(low).map(PrimitiveLiteral::Binary),
        _ => return (None, None),
    };
    (widened(value, kind), high.and_then(|high| widened(&high, kind)))
}

/// The first microsecond since 1970 of a year, month, day or hour, counted from 1970.
fn start(transform: Transform, number: i32) -> Option<i64> {
    const HOUR: i64 = 3_600_000_000;
    let epoch = NaiveDate::from_ymd_opt(1970, 1, 1).expect("a date");
    let first_of = |year: i32, month: u32| {
        let date = NaiveDate::from_ymd_opt(year, month, 1)?;
        debug_assert_eq!(date.day(), 1);
        (date - epoch).num_days().checked_mul(24 * HOUR)
    };
    match transform {
        Transform::Year => first_of(number.checked_add(1970)?, 1),
        Transform::Month => first_of(1970 + number.div_euclid(12), number.rem_euclid(12) as u32 + 1),
        Transform::Day => i64::from(number).checked_mul(24 * HOUR),
        Transform::Hour => i64::from(number).checked_mul(HOUR),
        _ => None,
    }
}

/// Microseconds since 1970 as a value of a column of dates or times.
fn moment(micros: i64, column: &DataType) -> Option<ScalarValue> {
    match column {
        DataType::Date32 => {
            Some(ScalarValue::Date32(Some(i32::try_from(micros.div_euclid(86_400_000_000)).ok()?)))
        }
        DataType::Timestamp(TimeUnit::Microsecond, zone) => {
            Some(ScalarValue::TimestampMicrosecond(Some(micros), zone.clone()))
        }
        // The last microsecond has a thousand nanoseconds.
        DataType::Timestamp(TimeUnit::Nanosecond, zone) => {
            let nanos = micros.checked_mul(1000)?;
            let nanos = if micros.rem_euclid(1000) == 999 { nanos.checked_add(999)? } else { nanos };
            Some(ScalarValue::TimestampNanosecond(Some(nanos), zone.clone()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_value_stands_for_a_range() {
        let check = |transform, value, kind, column: DataType, expected: &str| {
            let (low, high) = range(transform, &value, &kind, &column);
            let text = |value: Option<ScalarValue>| value.map_or("?".into(), |value| value.to_string());
            assert_eq!(format!("{}..{}", text(low), text(high)), expected, "{transform} {value:?}");
        };
        let micros = || DataType::Timestamp(TimeUnit::Microsecond, None);
        let (int, long) = (PrimitiveLiteral::Int, PrimitiveLiteral::Long);
        check(Transform::Identity, int(7), PrimitiveType::Long, DataType::Int64, "7..7");
        check(Transform::Truncate(10), int(-10), PrimitiveType::Int, DataType::Int32, "-10..-1");
        check(
            Transform::Truncate(10),
            int(i32::MAX - 7),
            PrimitiveType::Int,
            DataType::Int32,
            "2147483640..?",
        );
        check(Transform::Truncate(3), long(6), PrimitiveType::Long, DataType::Int64, "6..8");
        let text = PrimitiveLiteral::String("ab".into());
        check(Transform::Truncate(2), text, PrimitiveType::String, DataType::Utf8, "ab..ac");
        check(Transform::Year, int(54), PrimitiveType::Date, DataType::Date32, "2024-01-01..2024-12-31");
        check(Transform::Month, int(649), PrimitiveType::Date, DataType::Date32, "2024-02-01..2024-02-29");
        check(Transform::Day, int(1), PrimitiveType::Timestamp, micros(), "86400000000..172799999999");
        check(Transform::Day, int(0), PrimitiveType::Timestamp, micros(), "-86400000000..86399999999");
        check(Transform::Hour, int(-1), PrimitiveType::Timestamp, micros(), "-7200000000..-1");
        check(Transform::Bucket(4), int(1), PrimitiveType::Long, DataType::Int64, "?..?");
        check(Transform::Void, int(1), PrimitiveType::Long, DataType::Int64, "?..?");
    }
}
