//! Which Arrow type a SQL Server value becomes.
//!
//! Decided once for a column; [`column`](super::column) pushes the values.

use arrow::datatypes::{DataType, TimeUnit};

/// How a value of the wire becomes an Arrow value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// `bit`.
    Bool,
    /// `tinyint`, `smallint`, `int`: Iceberg has no shorter.
    Int32,
    /// `bigint`.
    Int64,
    /// `real`.
    Float32,
    /// `float`.
    Float64,
    /// `decimal`, and money cast to it.
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
    /// `uniqueidentifier`.
    Uuid,
    /// `date`.
    Date,
    /// `time`.
    Time,
    /// `datetime`, `smalldatetime`, `datetime2`.
    Timestamp,
    /// `datetimeoffset`: its instant.
    TimestampTz,
    /// As `Timestamp`, to the nanosecond.
    TimestampNs,
    /// As `TimestampTz`, to the nanosecond.
    TimestampTzNs,
    /// What happened to a row: 0 or 1.
    Op,
}

impl Codec {
    /// The Arrow type that it makes.
    pub fn data_type(&self) -> DataType {
        use TimeUnit::{Microsecond, Nanosecond};
        match self {
            Self::Bool => DataType::Boolean,
            Self::Int32 => DataType::Int32,
            Self::Int64 => DataType::Int64,
            Self::Float32 => DataType::Float32,
            Self::Float64 => DataType::Float64,
            Self::Decimal { precision, scale } => DataType::Decimal128(*precision, *scale as i8),
            Self::Text => DataType::Utf8,
            Self::Bytes => DataType::Binary,
            Self::Uuid => DataType::FixedSizeBinary(16),
            Self::Date => DataType::Date32,
            Self::Time => DataType::Time64(Microsecond),
            Self::Timestamp => DataType::Timestamp(Microsecond, None),
            Self::TimestampTz => DataType::Timestamp(Microsecond, Some("UTC".into())),
            Self::TimestampNs => DataType::Timestamp(Nanosecond, None),
            Self::TimestampTzNs => DataType::Timestamp(Nanosecond, Some("UTC".into())),
            Self::Op => DataType::Int8,
        }
    }

    /// Whether some values of the SQL Server type can lie outside of the Arrow type.
    pub(super) fn can_overflow(&self) -> bool {
        matches!(
            self,
            Self::Decimal { .. } | Self::Time | Self::TimestampNs | Self::TimestampTzNs | Self::Timestamp
        )
    }
}
