//! SQLite values into Arrow columns: each as it is, or not at all.

use arrow::array::{
    ArrayRef, BinaryBuilder, BooleanBuilder, Date32Builder, Decimal128Builder, FixedSizeBinaryBuilder,
    Float64Builder, Int64Builder, RecordBatch, StringBuilder, Time64MicrosecondBuilder,
    TimestampMicrosecondBuilder,
};
use arrow::datatypes::SchemaRef;
use rusqlite::types::ValueRef;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::plan::Column;
use super::types::Kind;
use super::value::{self, DAY, SECOND, Stamp};
use crate::connectors::sql::Unfit;
use crate::error::{Error, ErrorKind, Result};
use crate::source::OutOfRange;
use crate::table::TableId;

/// Rows under construction.
pub(super) struct Rows {
    table: TableId,
    columns: Vec<Column>,
    builders: Vec<Builder>,
    schema: SchemaRef,
    out_of_range: OutOfRange,
    /// Values that the policy replaced, by column.
    replaced: Replaced,
    /// Rows that go aside, where they may.
    unfit: Option<Unfit>,
    rows: usize,
    bytes: usize,
}

/// Values that the policy replaced, by column: one count for all batches of a reading.
pub(super) type Replaced = Arc<Vec<AtomicU64>>;

/// Why a value does not fit its column.
enum Misfit {
    /// It is NULL where the key or NOT NULL forbids it.
    Null,
    /// Its class is another one than declared.
    Class,
    /// Its class is right, what it says is not.
    Content,
    /// It is right, and lies outside of the Arrow type.
    Range,
}

enum Builder {
    Integer(Int64Builder),
    Real(Float64Builder),
    Text(StringBuilder),
    Blob(BinaryBuilder),
    Boolean(BooleanBuilder),
    Date(Date32Builder),
    Time(Time64MicrosecondBuilder),
    Timestamp(TimestampMicrosecondBuilder),
    Decimal(Decimal128Builder, u8, i8),
    Uuid(FixedSizeBinaryBuilder),
}

impl Rows {
    /// No rows yet; `rows` is how many a batch will have, about.
    pub(super) fn new(
        table: TableId,
        columns: Vec<Column>,
        schema: SchemaRef,
        out_of_range: OutOfRange,
        replaced: Replaced,
        unfit: Option<Unfit>,
        rows: usize,
    ) -> Self {
        let builders = columns.iter().map(|column| Builder::new(column.kind, rows)).collect();
        Self { table, columns, builders, schema, out_of_range, replaced, unfit, rows: 0, bytes: 0 }
    }

    /// Adds a row, whose first columns are ours.
    pub(super) fn push(&mut self, row: &rusqlite::Row<'_>) -> Result<()> {
        for (at, (column, builder)) in self.columns.iter().zip(&mut self.builders).enumerate() {
            let value = row.get_ref(at).map_err(|source| {
                Error::new(ErrorKind::Internal, "sqlite gave fewer columns than asked for").because(source)
            })?;
            match builder.push(value, column, self.out_of_range, &self.replaced[at]) {
                Ok(bytes) => self.bytes += bytes,
                Err(misfit) => {
                    let error = refuse(&self.table, column, value, &misfit);
                    let Some(unfit) = &mut self.unfit else { return Err(error) };
                    unfit.note(self.rows, at, error)?;
                    builder.push_null();
                }
            }
        }
        self.rows += 1;
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.rows
    }

    /// Arrow bytes, about.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The batch, and room for the next.
    pub(super) fn finish(&mut self) -> Result<RecordBatch> {
        let columns = self
            .builders
            .iter_mut()
            .zip(self.schema.fields())
            .map(|(builder, field)| builder.finish(field.data_type()))
            .collect::<Result<Vec<_>>>()?;
        let rows = std::mem::take(&mut self.rows);
        self.bytes = 0;
        if let Some(unfit) = &mut self.unfit
            && let Some(batch) = unfit.batch(&columns, rows)?
        {
            return Ok(batch);
        }
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)?)
    }
}

impl Builder {
    fn new(kind: Kind, rows: usize) -> Self {
        match kind {
            Kind::Integer => Self::Integer(Int64Builder::with_capacity(rows)),
            Kind::Real => Self::Real(Float64Builder::with_capacity(rows)),
            Kind::Text | Kind::Any => Self::Text(StringBuilder::with_capacity(rows, 0)),
            Kind::Blob => Self::Blob(BinaryBuilder::with_capacity(rows, 0)),
            Kind::Boolean => Self::Boolean(BooleanBuilder::with_capacity(rows)),
            Kind::Date => Self::Date(Date32Builder::with_capacity(rows)),
            Kind::Time => Self::Time(Time64MicrosecondBuilder::with_capacity(rows)),
            Kind::Timestamp { .. } | Kind::Unix { .. } => {
                Self::Timestamp(TimestampMicrosecondBuilder::with_capacity(rows))
            }
            Kind::Decimal { precision, scale } => {
                Self::Decimal(Decimal128Builder::with_capacity(rows), precision, scale)
            }
            Kind::Uuid => Self::Uuid(FixedSizeBinaryBuilder::with_capacity(rows, 16)),
        }
    }

    /// Adds a value, and says how many bytes it took.
    fn push(
        &mut self,
        value: ValueRef<'_>,
        column: &Column,
        policy: OutOfRange,
        replaced: &AtomicU64,
    ) -> Result<usize, Misfit> {
        if matches!(value, ValueRef::Null) {
            if !column.nullable {
                return Err(Misfit::Null);
            }
            self.push_null();
            return Ok(8);
        }
        let text = |value| match value {
            ValueRef::Text(bytes) => std::str::from_utf8(bytes).map_err(|_| Misfit::Content),
            _ => Err(Misfit::Class),
        };
        match self {
            Self::Integer(builder) => match value {
                ValueRef::Integer(value) => builder.append_value(value),
                _ => return Err(Misfit::Class),
            },
            Self::Real(builder) => match value {
                ValueRef::Real(value) => builder.append_value(value),
                // A REAL column has none; a NUMERIC one read as real may.
                ValueRef::Integer(value) if (value as f64) as i128 == i128::from(value) => {
                    builder.append_value(value as f64);
                }
                // SQLite keeps a NaN as NULL only; our target writes the word.
                ValueRef::Text(b"NaN") => builder.append_value(f64::NAN),
                _ => return Err(Misfit::Class),
            },
            Self::Text(builder) => {
                let before = builder.values_slice().len();
                match value {
                    ValueRef::Integer(value) if column.kind == Kind::Any => {
                        builder.append_value(value.to_string())
                    }
                    ValueRef::Real(value) if column.kind == Kind::Any => {
                        builder.append_value(real_text(value))
                    }
                    value => builder.append_value(text(value)?),
                }
                return Ok(builder.values_slice().len() - before + 4);
            }
            Self::Blob(builder) => match value {
                ValueRef::Blob(bytes) => {
                    builder.append_value(bytes);
                    return Ok(bytes.len() + 4);
                }
                _ => return Err(Misfit::Class),
            },
            Self::Boolean(builder) => match value {
                ValueRef::Integer(value @ (0 | 1)) => builder.append_value(value == 1),
                ValueRef::Integer(_) => return Err(Misfit::Content),
                _ => return Err(Misfit::Class),
            },
            Self::Date(builder) => {
                builder.append_value(value::parse_date(text(value)?).ok_or(Misfit::Content)?);
            }
            Self::Time(builder) => match value::parse_clock(text(value)?).ok_or(Misfit::Content)? {
                DAY => {
                    match policy {
                        OutOfRange::Fail => return Err(Misfit::Range),
                        OutOfRange::Null if column.nullable => builder.append_null(),
                        OutOfRange::Null => return Err(Misfit::Null),
                        OutOfRange::Clamp => builder.append_value(DAY - 1),
                    }
                    replaced.fetch_add(1, Ordering::Relaxed);
                }
                micros => builder.append_value(micros),
            },
            Self::Timestamp(builder) => match (stamp(value, column.kind), value) {
                (Some(stamp), _) => builder.append_value(stamp.micros),
                (None, ValueRef::Integer(_)) if matches!(column.kind, Kind::Unix { .. }) => {
                    return Err(Misfit::Range);
                }
                (None, ValueRef::Text(_)) => return Err(Misfit::Content),
                _ => return Err(Misfit::Class),
            },
            Self::Decimal(builder, precision, scale) => {
                let parse =
                    |text: &str| value::parse_decimal(text, *precision, *scale).ok_or(Misfit::Content);
                let number = match value {
                    ValueRef::Integer(value) => parse(&value.to_string())?,
                    // The shortest text that means this double is what was written, up to 15 digits.
                    ValueRef::Real(value) => parse(&value.to_string())?,
                    value => parse(text(value)?)?,
                };
                builder.append_value(number);
                return Ok(16);
            }
            Self::Uuid(builder) => {
                let bytes = match value {
                    ValueRef::Blob(bytes) => bytes.try_into().map_err(|_| Misfit::Content)?,
                    value => value::parse_uuid(text(value)?).ok_or(Misfit::Content)?,
                };
                builder.append_value(bytes).map_err(|_| Misfit::Content)?;
                return Ok(16);
            }
        }
        Ok(8)
    }

    fn push_null(&mut self) {
        match self {
            Self::Integer(builder) => builder.append_null(),
            Self::Real(builder) => builder.append_null(),
            Self::Text(builder) => builder.append_null(),
            Self::Blob(builder) => builder.append_null(),
            Self::Boolean(builder) => builder.append_null(),
            Self::Date(builder) => builder.append_null(),
            Self::Time(builder) => builder.append_null(),
            Self::Timestamp(builder) => builder.append_null(),
            Self::Decimal(builder, ..) => builder.append_null(),
            Self::Uuid(builder) => builder.append_null(),
        }
    }

    fn finish(&mut self, data_type: &arrow::datatypes::DataType) -> Result<ArrayRef> {
        Ok(match self {
            Self::Integer(builder) => Arc::new(builder.finish()),
            Self::Real(builder) => Arc::new(builder.finish()),
            Self::Text(builder) => Arc::new(builder.finish()),
            Self::Blob(builder) => Arc::new(builder.finish()),
            Self::Boolean(builder) => Arc::new(builder.finish()),
            Self::Date(builder) => Arc::new(builder.finish()),
            Self::Time(builder) => Arc::new(builder.finish()),
            Self::Timestamp(builder) => Arc::new(builder.finish().with_data_type(data_type.clone())),
            Self::Decimal(builder, precision, scale) => {
                Arc::new(builder.finish().with_precision_and_scale(*precision, *scale)?)
            }
            Self::Uuid(builder) => Arc::new(builder.finish()),
        })
    }
}

/// A cursor's or column's time, if it is one.
pub(super) fn stamp(value: ValueRef<'_>, kind: Kind) -> Option<Stamp> {
    match (kind, value) {
        (Kind::Unix { per_second }, ValueRef::Integer(units)) => {
            Some(Stamp { micros: units.checked_mul(SECOND / per_second)?, coarse: false })
        }
        (Kind::Timestamp { .. }, ValueRef::Text(text)) => {
            value::parse_timestamp(std::str::from_utf8(text).ok()?)
        }
        (Kind::Date, ValueRef::Text(text)) => {
            let days = value::parse_date(std::str::from_utf8(text).ok()?)?;
            Some(Stamp { micros: i64::from(days) * DAY, coarse: false })
        }
        _ => None,
    }
}

/// A double as SQLite reads it back: the shortest text, always with a point or an exponent.
fn real_text(value: f64) -> String {
    if value.is_infinite() {
        // What SQLite's own shell prints, and parses to infinity again.
        return if value > 0.0 { "9.0e+999".into() } else { "-9.0e+999".into() };
    }
    format!("{value:?}")
}

/// Says what does not fit, where, and two ways out. Never the value.
pub(super) fn refuse_cursor(table: &TableId, column: &str, value: ValueRef<'_>) -> Error {
    Error::new(ErrorKind::Data, format!("the cursor holds {} that orders nothing", class(value)))
        .with("table", table)
        .with("column", column)
        .hint("a cursor holds timestamps like 2024-01-31 12:34:56, or whole numbers; correct the value, or use `change: full`")
}

fn refuse(table: &TableId, column: &Column, value: ValueRef<'_>, misfit: &Misfit) -> Error {
    let Column { name, declared, .. } = column;
    let declared =
        if declared.is_empty() { "no declared type".into() } else { format!("declared {declared}") };
    let class = class(value);
    let message = match misfit {
        Misfit::Null => "a NULL where the key or NOT NULL forbids it".to_owned(),
        Misfit::Class => format!("{class} does not fit the column's type ({declared})"),
        Misfit::Content => format!("{class} is not exactly a value of the column's type ({declared})"),
        Misfit::Range => format!("{class} lies outside of the column's type ({declared})"),
    };
    let hint = match misfit {
        Misfit::Null => {
            format!("give those rows a value, or leave them out with `where: {name} IS NOT NULL`")
        }
        Misfit::Range => "`values: {out_of_range: null}` or `clamp` lets it pass".to_owned(),
        _ => format!(
            "carry the column as text: `values: {{types: {{{name}: text}}}}`; the classes in it: `SELECT typeof(\"{name}\"), count(*) FROM \"{}\" GROUP BY 1`",
            table.name
        ),
    };
    Error::new(ErrorKind::Data, message).with("table", table).with("column", name).hint(hint)
}

fn class(value: ValueRef<'_>) -> &'static str {
    match value {
        ValueRef::Null => "a NULL",
        ValueRef::Integer(_) => "an integer",
        ValueRef::Real(_) => "a real number",
        ValueRef::Text(_) => "a text",
        ValueRef::Blob(_) => "a blob",
    }
}
