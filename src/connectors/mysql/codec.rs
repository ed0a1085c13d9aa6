//! Which Arrow type a MySQL value becomes.
//!
//! Decided once for a column; [`column`](super::column) pushes the values.

use arrow::datatypes::{DataType, TimeUnit};

/// How a value of the binary protocol becomes an Arrow value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Codec {
    /// `bit(1)`, or a number of 0 and 1.
    Bool,
    /// Whole numbers of up to 31 bits, and `year`: Iceberg has no shorter.
    Int32,
    /// `bigint`, `int unsigned`.
    Int64,
    /// `bit(2)` to `bit(63)`.
    Bits,
    /// `bit(64)`.
    Bits64,
    /// `bigint unsigned`.
    Unsigned64,
    /// `float`.
    Float32,
    /// `double`.
    Float64,
    /// `decimal`, exactly.
    Decimal {
        /// Digits in all.
        precision: u8,
        /// Digits behind the point.
        scale: u8,
    },
    /// Any text.
    Text,
    /// Bytes as they are.
    Bytes,
    /// MariaDB's `uuid`.
    Uuid,
    /// `date`.
    Date,
    /// `time`, where it is a time of a day.
    Time,
    /// `datetime`.
    Timestamp,
    /// `timestamp`: its instant.
    TimestampTz,
}

impl Codec {
    /// The Arrow type that it makes.
    pub(super) fn data_type(self) -> DataType {
        match self {
            Self::Bool => DataType::Boolean,
            Self::Int32 => DataType::Int32,
            Self::Int64 | Self::Bits => DataType::Int64,
            Self::Unsigned64 | Self::Bits64 => DataType::Decimal128(20, 0),
            Self::Float32 => DataType::Float32,
            Self::Float64 => DataType::Float64,
            Self::Decimal { precision, scale } => DataType::Decimal128(precision, scale as i8),
            Self::Text => DataType::Utf8,
            Self::Bytes => DataType::Binary,
            Self::Uuid => DataType::FixedSizeBinary(16),
            Self::Date => DataType::Date32,
            Self::Time => DataType::Time64(TimeUnit::Microsecond),
            Self::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
            Self::TimestampTz => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        }
    }

    /// Whether some values of the MySQL type can lie outside of the Arrow type.
    pub(super) fn can_overflow(self) -> bool {
        matches!(
            self,
            Self::Bool | Self::Decimal { .. } | Self::Date | Self::Time | Self::Timestamp | Self::TimestampTz
        )
    }
}
