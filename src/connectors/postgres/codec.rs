//! Which Arrow type a Postgres value becomes, and in which of its binary forms it comes.
//!
//! Decided once for a column; [`column`](super::column) pushes the values.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, TimeUnit};

/// How the binary form of a Postgres value becomes an Arrow value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Codec {
    /// `bool`.
    Bool,
    /// `int2`, as 32 bits: Iceberg has no shorter.
    Int16,
    /// `int4`.
    Int32,
    /// `int8`.
    Int64,
    /// `oid`: 32 bits without sign.
    Oid,
    /// `xid8`: 64 bits without sign, as a decimal.
    Xid8,
    /// `float4`.
    Float32,
    /// `float8`.
    Float64,
    /// `numeric`, exactly.
    Decimal {
        /// Digits in all.
        precision: u8,
        /// Digits behind the point.
        scale: u8,
    },
    /// Any text.
    Text,
    /// `jsonb`: a version, then text.
    Jsonb,
    /// Bytes as they are.
    Bytes,
    /// `uuid`.
    Uuid,
    /// `date`.
    Date,
    /// `time`.
    Time,
    /// `timestamp`.
    Timestamp,
    /// `timestamptz`.
    TimestampTz,
    /// An array of this many dimensions, each counted from 1.
    List(u8, Box<Codec>),
    /// A composite: names and codecs of its members.
    Struct(Vec<(String, Codec)>),
}

impl Codec {
    /// The Arrow type that it makes.
    pub fn data_type(&self) -> DataType {
        match self {
            Self::Bool => DataType::Boolean,
            Self::Int16 | Self::Int32 => DataType::Int32,
            Self::Int64 | Self::Oid => DataType::Int64,
            Self::Xid8 => DataType::Decimal128(20, 0),
            Self::Float32 => DataType::Float32,
            Self::Float64 => DataType::Float64,
            Self::Decimal { precision, scale } => DataType::Decimal128(*precision, *scale as i8),
            Self::Text | Self::Jsonb => DataType::Utf8,
            Self::Bytes => DataType::Binary,
            Self::Uuid => DataType::FixedSizeBinary(16),
            Self::Date => DataType::Date32,
            Self::Time => DataType::Time64(TimeUnit::Microsecond),
            Self::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
            Self::TimestampTz => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            Self::List(dimensions, element) => {
                (0..*dimensions).fold(element.data_type(), |inner, _| DataType::List(list_field(inner)))
            }
            Self::Struct(members) => DataType::Struct(struct_fields(members)),
        }
    }

    /// Whether some values of the Postgres type lie outside of the Arrow type.
    pub(super) fn can_overflow(&self) -> bool {
        match self {
            Self::Decimal { .. } | Self::Date | Self::Time | Self::Timestamp | Self::TimestampTz => true,
            Self::List(_, element) => element.can_overflow(),
            Self::Struct(members) => members.iter().any(|(_, codec)| codec.can_overflow()),
            _ => false,
        }
    }
}

/// The field of an array's elements.
pub(super) fn list_field(element: DataType) -> Arc<Field> {
    Arc::new(Field::new("element", element, true))
}

/// The fields of a composite's members.
pub(super) fn struct_fields(members: &[(String, Codec)]) -> Fields {
    members.iter().map(|(name, codec)| Field::new(name, codec.data_type(), true)).collect()
}
