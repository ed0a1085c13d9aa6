//! Arrow batches into the rows of a binary COPY.
//!
//! ```text
//! column ──carry(Arrow type, type in the target)──▶ Carried { wire, staged }        once a load
//! batch  ──Rows::new──▶ typed slices ──fill──▶ chunks of CHUNK bytes ──▶ COPY        once a batch
//! ```
//!
//! How a column is written is decided once for a load; a batch is then taken apart into typed slices
//! once, and the loop over cells is a match on a small enum: nothing is looked up, boxed or allocated
//! for a cell. Every value is written exactly or not at all: a number that does not fit, or a
//! nanosecond that Postgres has no place for, is an error that names the column.
//!
//! Types whose binary form is Postgres' own business (`inet`, ranges, intervals, …) travel as their
//! text, into a staging column of type `text`, and are cast by the merge statement.

mod cells;
mod json;
mod numeric;

use arrow::array::{Array, Int8Array, RecordBatch};
use arrow::datatypes::DataType;
use bytes::{BufMut, BytesMut};

use self::cells::Cells;
use super::catalog::{Kind, PgType};
use crate::delta::Op;
use crate::error::{Error, ErrorKind, Result};

/// Bytes handed to the connection at once: large enough that a message costs nothing, small enough to
/// stay in the cache between encoding and sending.
pub(super) const CHUNK: usize = 256 << 10;

/// What a binary COPY begins with: the signature, no flags, no extension.
pub(super) const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// What it ends with.
pub(super) const TRAILER: &[u8] = &[0xff, 0xff];

/// How the cells of a column are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wire {
    Bool,
    Int2,
    Int4,
    Int8,
    Oid,
    Xid8,
    Float4,
    Float8,
    Numeric,
    Text,
    Jsonb,
    Bytes,
    Date,
    Time,
    Timestamp,
    /// Any value, as JSON: text.
    JsonText,
    /// Any value, as JSON: the form of `jsonb`.
    JsonBinary,
    /// Lists, nested as deep as they are, of elements of the type with this OID.
    Array {
        element: Box<Wire>,
        oid: u32,
    },
}

/// What the staging column is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Staged {
    /// The target column's own type: nothing to cast, and COPY can go straight into the target.
    Same,
    /// Another type, cast to the target's: `text`, `text[]`, `numeric`.
    As(String),
    /// `jsonb`, from which the value is built by the target's type.
    Json,
}

/// How a column travels into the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Carried {
    pub(super) wire: Wire,
    pub(super) staged: Staged,
}

/// OIDs of built-in types are fixed for all servers.
const TEXT_OID: u32 = 25;
const NUMERIC_OID: u32 = 1700;

/// How values of an Arrow type get into a column of the target, or `None` when they cannot.
pub(super) fn carry(arrow: &DataType, target: &PgType) -> Option<Carried> {
    let same = |wire| Some(Carried { wire, staged: Staged::Same });
    let staged = |wire, as_type: &str| Some(Carried { wire, staged: Staged::As(as_type.to_owned()) });
    let base = target.base();
    let name = base.builtin_name();

    match cells::normal(arrow) {
        DataType::List(element) => {
            if let Kind::Array(element_type) = &base.kind {
                let mut innermost = element.data_type();
                while let DataType::List(inner) = innermost {
                    innermost = inner.data_type();
                }
                let inner = carry(innermost, element_type)?;
                let array = |oid| Wire::Array { element: Box::new(inner.wire.clone()), oid };
                return match &inner.staged {
                    Staged::Same => same(array(element_type.oid)),
                    Staged::As(name) if name == "numeric" => staged(array(NUMERIC_OID), "numeric[]"),
                    Staged::As(_) => staged(array(TEXT_OID), "text[]"),
                    Staged::Json => Some(Carried { wire: Wire::JsonBinary, staged: Staged::Json }),
                };
            }
            nested(name)
        }
        DataType::Struct(_) if matches!(base.kind, Kind::Composite) => {
            Some(Carried { wire: Wire::JsonBinary, staged: Staged::Json })
        }
        DataType::Struct(_) | DataType::Map(..) => nested(name),
        DataType::Boolean => (name == Some("bool")).then(|| same(Wire::Bool))?,
        DataType::Int32 | DataType::Int64 => match name? {
            "int2" => same(Wire::Int2),
            "int4" => same(Wire::Int4),
            "int8" => same(Wire::Int8),
            "oid" => same(Wire::Oid),
            "numeric" => same(Wire::Numeric),
            _ => None,
        },
        DataType::Float32 => match name? {
            "float4" => same(Wire::Float4),
            "float8" => same(Wire::Float8),
            _ => None,
        },
        DataType::Float64 => (name? == "float8").then(|| same(Wire::Float8))?,
        DataType::Decimal128(..) => match name? {
            "numeric" => same(Wire::Numeric),
            "xid8" => same(Wire::Xid8),
            "money" => staged(Wire::Numeric, "numeric"),
            _ => None,
        },
        DataType::Utf8 => match name {
            Some("text" | "varchar" | "bpchar" | "name" | "json" | "xml") => same(Wire::Text),
            Some("jsonb") => same(Wire::Jsonb),
            Some("numeric") => same(Wire::Numeric),
            _ if base.name == "citext" || matches!(base.kind, Kind::Enum) => same(Wire::Text),
            _ => staged(Wire::Text, "text"),
        },
        DataType::Binary => (name == Some("bytea") || base.is_spatial()).then(|| same(Wire::Bytes))?,
        DataType::FixedSizeBinary(length) => match name? {
            "uuid" if length == 16 => same(Wire::Bytes),
            "bytea" => same(Wire::Bytes),
            _ => None,
        },
        DataType::Date32 => (name? == "date").then(|| same(Wire::Date))?,
        DataType::Time64(_) => (name? == "time").then(|| same(Wire::Time))?,
        DataType::Timestamp(_, None) => (name? == "timestamp").then(|| same(Wire::Timestamp))?,
        DataType::Timestamp(_, Some(_)) => (name? == "timestamptz").then(|| same(Wire::Timestamp))?,
        DataType::Null => staged(Wire::Text, "text"),
        _ => None,
    }
}

fn nested(name: Option<&str>) -> Option<Carried> {
    let wire = match name? {
        "jsonb" => Wire::JsonBinary,
        "json" | "text" => Wire::JsonText,
        _ => return None,
    };
    Some(Carried { wire, staged: Staged::Same })
}

/// A column of the batches, and how it is written.
#[derive(Debug, Clone)]
pub(super) struct Output {
    /// Its place in the batch.
    pub(super) index: usize,
    /// Its name, for errors.
    pub(super) name: String,
    /// How its cells are written.
    pub(super) wire: Wire,
    /// Whether it belongs to the key. A NULL there would equal no row, and be doubled.
    pub(super) key: bool,
}

/// What becomes of the `_op` column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operations {
    /// It is the last column of each row, as `smallint`.
    Written,
    /// Only upserts are written, without it.
    UpsertsOnly,
}

/// A batch on its way out.
pub(super) struct Rows<'a> {
    outputs: &'a [Output],
    cells: Vec<Cells>,
    operations: Operations,
    ops: Int8Array,
    next: usize,
    /// Rows written so far.
    pub(super) written: u64,
}

impl<'a> Rows<'a> {
    /// Takes a batch apart. Its last column is `_op`.
    pub(super) fn new(batch: &RecordBatch, outputs: &'a [Output], operations: Operations) -> Result<Self> {
        let cells = outputs
            .iter()
            .map(|output| {
                if output.key && batch.column(output.index).logical_null_count() > 0 {
                    return Err(Error::new(
                        ErrorKind::Data,
                        "a key is NULL, so its row cannot be told apart",
                    )
                    .with("column", &output.name)
                    .hint("choose key columns that are never NULL, or use `mode: append`"));
                }
                Cells::new(batch.column(output.index), &output.wire)
                    .map_err(|error| error.with("column", &output.name))
            })
            .collect::<Result<_>>()?;
        let ops = batch
            .columns()
            .last()
            .and_then(|column| column.as_any().downcast_ref::<Int8Array>())
            .filter(|ops| ops.null_count() == 0)
            .ok_or_else(|| Error::new(ErrorKind::Internal, "changes must end with their operations"))?
            .clone();
        Ok(Self { outputs, cells, operations, ops, next: 0, written: 0 })
    }

    /// Writes rows until `buffer` holds a chunk or the batch ends; says whether rows remain.
    pub(super) fn fill(&mut self, buffer: &mut BytesMut) -> Result<bool> {
        let ops = self.ops.values();
        while self.next < ops.len() {
            let (row, op) = (self.next, ops[self.next]);
            self.next += 1;
            if self.operations == Operations::UpsertsOnly && op == Op::Delete as i8 {
                continue;
            }
            let fields = self.cells.len() + usize::from(self.operations == Operations::Written);
            buffer.put_i16(fields as i16);
            for (column, cells) in self.cells.iter().enumerate() {
                if let Err(problem) = cells.write(row, buffer) {
                    return Err(problem.error(&self.outputs[column].name));
                }
            }
            if self.operations == Operations::Written {
                buffer.put_i32(2);
                buffer.put_i16(i16::from(op));
            }
            self.written += 1;
            if buffer.len() >= CHUNK {
                break;
            }
        }
        Ok(self.next < ops.len())
    }
}

/// Why a value cannot be written. Never the value itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Problem {
    Range,
    Fraction,
    Number,
    TooLong,
    Shape,
    Json,
}

impl Problem {
    #[cold]
    fn error(self, column: &str) -> Error {
        let message = match self {
            Self::Range => "a value is out of the range of the target's column",
            Self::Fraction => "a time has a fraction finer than the microseconds of postgres",
            Self::Number => "a text is not a number that a numeric column can hold",
            Self::TooLong => "a value is longer than postgres can hold",
            Self::Shape => {
                "a nested list has no equal lengths, or a NULL list inside, which an array of postgres cannot hold"
            }
            Self::Json => "a value of this type cannot be written as JSON",
        };
        Error::new(ErrorKind::Data, message).with("column", column)
    }
}
