//! Values of all types, and those that are refused.

use arrow::array::{Array, AsArray};
use arrow::util::display::array_value_to_string;
use proptest::prelude::*;
use tiberius::numeric::Numeric;
use tiberius::time::{Date, DateTimeOffset};

use super::*;

fn policy(out_of_range: OutOfRange, sub_microsecond: SubMicrosecond) -> Policy {
    Policy { out_of_range, sub_microsecond }
}

fn shown(codec: Codec, value: ColumnData<'_>, policy: Policy) -> Result<String, Bad> {
    let mut column = Column::new(codec, 1, policy);
    column.push(&value)?;
    let array = column.finish().unwrap();
    assert_eq!(array.len(), 1);
    Ok(if array.is_null(0) { "NULL".into() } else { array_value_to_string(&array, 0).unwrap() })
}

fn day(days: u32) -> Date {
    Date::new(days)
}

fn datetime2(days: u32, increments: u64, scale: u8) -> DateTime2 {
    DateTime2::new(day(days), Time::new(increments, scale))
}

#[test]
fn values_arrive_as_they_are() {
    let strict = Policy::default();
    let uuid = tiberius::Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff);
    for (codec, value, expected) in [
        (Codec::Bool, ColumnData::Bit(Some(true)), "true"),
        (Codec::Int32, ColumnData::U8(Some(255)), "255"),
        (Codec::Int32, ColumnData::I16(Some(-7)), "-7"),
        (Codec::Int64, ColumnData::I64(Some(i64::MIN)), "-9223372036854775808"),
        (
            Codec::Decimal { precision: 19, scale: 4 },
            ColumnData::Numeric(Some(Numeric::new_with_scale(9_223_372_036_854_775_807, 4))),
            "922337203685477.5807",
        ),
        (
            Codec::Decimal { precision: 38, scale: 0 },
            ColumnData::Numeric(Some(Numeric::new_with_scale(-(10_i128.pow(38) - 1), 0))),
            "-99999999999999999999999999999999999999",
        ),
        (Codec::Text, ColumnData::String(Some("a😀".into())), "a😀"),
        (Codec::Bytes, ColumnData::Binary(Some(vec![0, 255].into())), "00ff"),
        (Codec::Uuid, ColumnData::Guid(Some(uuid)), "00112233445566778899aabbccddeeff"),
        (Codec::Date, ColumnData::Date(Some(day(0))), "0001-01-01"),
        (Codec::Date, ColumnData::Date(Some(day(3_652_058))), "9999-12-31"),
        (Codec::Time, ColumnData::Time(Some(Time::new(863_999_999_990, 7))), "23:59:59.999999"),
        (Codec::Timestamp, ColumnData::DateTime2(Some(datetime2(0, 0, 0))), "0001-01-01T00:00:00"),
        (
            Codec::Timestamp,
            ColumnData::DateTime2(Some(datetime2(3_652_058, 86_399_999_999, 6))),
            "9999-12-31T23:59:59.999999",
        ),
        (
            Codec::Timestamp,
            ColumnData::SmallDateTime(Some(SmallDateTime::new(65_535, 1439))),
            "2079-06-06T23:59:00",
        ),
        (
            Codec::TimestampTz,
            ColumnData::DateTimeOffset(Some(DateTimeOffset::new(datetime2(719_162, 1, 3), 720))),
            "1970-01-01T00:00:00.001Z",
        ),
        (
            Codec::TimestampNs,
            ColumnData::DateTime2(Some(datetime2(719_162, 1, 7))),
            "1970-01-01T00:00:00.000000100",
        ),
    ] {
        assert_eq!(shown(codec, value, strict).as_deref(), Ok(expected));
    }
}

/// 24:00:00 comes from servers that only speak the protocol (trap 12): carried or refused, no panic.
#[test]
fn odd_values_go_by_policy() {
    use OutOfRange::{Clamp, Fail, Null};
    let midnight = || ColumnData::Time(Some(Time::new(864_000_000_000, 7)));
    let stop = SubMicrosecond::Fail;
    assert_eq!(shown(Codec::Time, midnight(), policy(Fail, stop)), Err(Bad::OutOfRange("24:00:00")));
    assert_eq!(shown(Codec::Time, midnight(), policy(Null, stop)).as_deref(), Ok("NULL"));
    assert_eq!(shown(Codec::Time, midnight(), policy(Clamp, stop)).as_deref(), Ok("23:59:59.999999"));
    let evening = ColumnData::DateTime2(Some(datetime2(719_162, 864_000_000_000, 7)));
    assert_eq!(shown(Codec::Timestamp, evening, Policy::default()).as_deref(), Ok("1970-01-02T00:00:00"));

    let fine = || ColumnData::DateTime2(Some(datetime2(719_161, 863_999_999_999, 7)));
    assert_eq!(shown(Codec::Timestamp, fine(), Policy::default()), Err(Bad::TooFine));
    let cut = policy(Fail, SubMicrosecond::Truncate);
    assert_eq!(shown(Codec::Timestamp, fine(), cut).as_deref(), Ok("1969-12-31T23:59:59.999999"));
    let late = || ColumnData::DateTime2(Some(datetime2(3_652_058, 0, 7)));
    assert_eq!(
        shown(Codec::TimestampNs, late(), Policy::default()),
        Err(Bad::OutOfRange("a time after 2262"))
    );
    assert_eq!(shown(Codec::Int32, ColumnData::I64(Some(1)), Policy::default()), Err(Bad::OtherType));
    assert_eq!(shown(Codec::Int32, ColumnData::I64(None), Policy::default()).as_deref(), Ok("NULL"));
    let time = ColumnData::Time(Some(Time::new(u64::MAX, 0)));
    assert_eq!(shown(Codec::Time, time, Policy::default()), Err(Bad::OtherType));
}

#[test]
fn replaced_values_are_counted() {
    let mut column = Column::new(Codec::Time, 2, policy(OutOfRange::Clamp, SubMicrosecond::Truncate));
    column.push(&ColumnData::Time(Some(Time::new(864_000_000_000, 7)))).unwrap();
    column.push(&ColumnData::Time(Some(Time::new(11, 7)))).unwrap();
    column.push(&ColumnData::Time(Some(Time::new(10, 7)))).unwrap();
    assert_eq!(column.take_replaced(), 2);
    assert_eq!(column.take_replaced(), 0);
}

proptest! {
    /// What a `datetime` shows becomes the same tick again: the server rounds to the nearest.
    #[test]
    fn a_datetime_is_the_same_when_it_goes_back(days in -53_690_i32..=2_958_463, ticks in 0_u32..25_920_000) {
        let carried = of_datetime(DateTime::new(days, ticks));
        let (day, in_day) = (carried.div_euclid(TICKS_A_DAY), carried.rem_euclid(TICKS_A_DAY));
        let millis = in_day / 10_000;
        prop_assert_eq!(in_day % 10_000, 0);
        prop_assert_eq!(day + EPOCH_FROM_1900, i64::from(days));
        prop_assert_eq!((millis * 3 + 5) / 10, i64::from(ticks));
    }

    #[test]
    fn numbers_keep_their_digits(value in any::<i64>(), scale in 0_u8..=18) {
        let mut column = Column::new(Codec::Decimal { precision: 38, scale: 18 }, 1, Policy::default());
        let pushed = column.push(&ColumnData::Numeric(Some(Numeric::new_with_scale(value.into(), scale))));
        let exact = i128::from(value).checked_mul(10_i128.pow(u32::from(18 - scale))).filter(|n| n.abs() < 10_i128.pow(38));
        match exact {
            Some(exact) => {
                pushed.unwrap();
                let array = column.finish().unwrap();
                prop_assert_eq!(array.as_primitive::<arrow::datatypes::Decimal128Type>().value(0), exact);
            }
            None => prop_assert_eq!(pushed, Err(Bad::OutOfRange("a number with more digits"))),
        }
    }

    #[test]
    fn a_moment_is_exact_at_any_scale(day in 0_u32..3_652_059, micros in 0_u64..86_400_000_000, scale in 0_u8..=7) {
        let increments = match scale {
            7 => micros * 10,
            scale => micros / 10_u64.pow(6 - u32::from(scale)),
        };
        let unit = if scale == 7 { 1 } else { 10_u64.pow(6 - u32::from(scale)) };
        let kept = if scale == 7 { micros } else { increments * unit };
        let mut column = Column::new(Codec::Timestamp, 1, Policy::default());
        column.push(&ColumnData::DateTime2(Some(datetime2(day, increments, scale)))).unwrap();
        let array = column.finish().unwrap();
        let expected = (i64::from(day) - EPOCH_FROM_YEAR_1) * 86_400_000_000 + kept as i64;
        prop_assert_eq!(array.as_primitive::<TimestampMicrosecondType>().value(0), expected);
    }
}
