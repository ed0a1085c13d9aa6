//! What two places have in common: columns, in one order and one type, and how rows of them are told apart.

use std::sync::Arc;

use ahash::RandomState;
use arrow::array::{ArrayRef, RecordBatch};
use arrow::compute::{CastOptions, can_cast_types, cast_with_options};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::row::{RowConverter, Rows, SortField};

use crate::error::{Error, ErrorKind, Result};
use crate::lake::Fingerprints;

/// Columns that both places have.
#[derive(Debug)]
pub(super) struct Columns {
    names: Vec<String>,
    types: Vec<DataType>,
    /// Which of them are the key: where there is none, all that can be.
    key: Vec<usize>,
    /// Columns that cannot be compared, each with why.
    pub(super) left_out: Vec<String>,
}

impl Columns {
    /// Of two schemas, by name. Without a key, rows are compared whole.
    pub(super) fn shared(one: &Schema, other: &Schema, key: &[String]) -> Result<Self> {
        let mut columns =
            Self { names: Vec::new(), types: Vec::new(), key: Vec::new(), left_out: Vec::new() };
        for field in one.fields() {
            let name = field.name();
            let Ok(there) = other.field_with_name(name) else {
                columns.left_out.push(format!("{name}: only one place has it"));
                continue;
            };
            match common(field.data_type(), there.data_type()) {
                Some(data_type) => {
                    columns.names.push(name.clone());
                    columns.types.push(data_type);
                }
                None => columns.left_out.push(format!(
                    "{name}: {} and {} cannot be compared",
                    field.data_type(),
                    there.data_type()
                )),
            }
        }
        let only_there = other.fields().iter().filter(|field| one.field_with_name(field.name()).is_err());
        columns.left_out.extend(only_there.map(|field| format!("{}: only one place has it", field.name())));
        for name in key {
            let at = columns.names.iter().position(|column| column == name);
            let at = at.filter(|at| is_sortable(&columns.types[*at])).ok_or_else(|| {
                Error::new(ErrorKind::Schema, "a column of the key cannot be compared").with("column", name)
            })?;
            columns.key.push(at);
        }
        if columns.key.is_empty() {
            columns.key = (0..columns.names.len()).filter(|at| is_sortable(&columns.types[*at])).collect();
        }
        if columns.names.is_empty() {
            return Err(Error::new(ErrorKind::Schema, "the two places have no column in common"));
        }
        Ok(columns)
    }

    /// The key's names.
    pub(super) fn key_names(&self) -> Vec<String> {
        self.key.iter().map(|at| self.names[*at].clone()).collect()
    }

    /// The shared columns of a batch, in one order and type.
    fn of(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let fields = self.names.iter().zip(&self.types).map(|(name, of)| Field::new(name, of.clone(), true));
        let arrays = (0..self.names.len()).map(|at| self.column(batch, at)).collect::<Result<_>>()?;
        Ok(RecordBatch::try_new(Arc::new(Schema::new(fields.collect::<Vec<_>>())), arrays)?)
    }

    fn column(&self, batch: &RecordBatch, at: usize) -> Result<ArrayRef> {
        let name = &self.names[at];
        let array = batch
            .column_by_name(name)
            .ok_or_else(|| Error::new(ErrorKind::Internal, "a batch lacks a column").with("column", name))?;
        if array.data_type() == &self.types[at] {
            return Ok(array.clone());
        }
        let exact = CastOptions { safe: false, ..CastOptions::default() };
        cast_with_options(array, &self.types[at], &exact).map_err(|_| {
            // What Arrow says quotes the value.
            let message = format!("a value does not fit {}, which the other place has", self.types[at]);
            Error::new(ErrorKind::Data, message).with("column", name)
        })
    }
}

/// A type in which values of both can be compared: one of the two.
fn common(one: &DataType, other: &DataType) -> Option<DataType> {
    let serves = |from: &DataType, to: &DataType| from == to || can_cast_types(from, to);
    // A text is read as what the other place has: 1.5 and 1.50 are one number, and two texts.
    let (first, second) = if is_text(one) && !is_text(other) { (other, one) } else { (one, other) };
    if serves(second, first) {
        Some(first.clone())
    } else if serves(first, second) {
        Some(second.clone())
    } else {
        None
    }
}

fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

/// Whether values can be a part of a key.
fn is_sortable(data_type: &DataType) -> bool {
    RowConverter::supports_fields(&[SortField::new(data_type.clone())])
}

/// Tells the keys and rows of one comparison apart. Clones agree; nobody can prepare rows that collide.
#[derive(Debug, Clone)]
pub(super) struct Marks {
    pub(super) buckets: RandomState,
    rows: Fingerprints,
}

impl Marks {
    pub(super) fn new() -> Self {
        Self { buckets: RandomState::new(), rows: Fingerprints::new() }
    }
}

/// Turns the rows of one stream into keys and fingerprints.
pub(super) struct Encoder {
    columns: Arc<Columns>,
    key: RowConverter,
    rows: Fingerprints,
}

impl Encoder {
    pub(super) fn new(columns: Arc<Columns>, marks: &Marks) -> Result<Self> {
        let fields = columns.key.iter().map(|at| SortField::new(columns.types[*at].clone()));
        Ok(Self { key: RowConverter::new(fields.collect())?, columns, rows: marks.rows.clone() })
    }

    /// Calls `each` with the key and the fingerprint of each row, in their order.
    pub(super) fn each(&mut self, batch: &RecordBatch, mut each: impl FnMut(&[u8], u128)) -> Result<()> {
        let shared = self.columns.of(batch)?;
        let keys = self.key.convert_columns(shared.project(&self.columns.key)?.columns())?;
        let mut keys = keys.iter();
        self.rows.of(&shared, |row| each(keys.next().expect("each row has a key").data(), row))
    }

    /// The keys alone.
    pub(super) fn keys(&self, batch: &RecordBatch) -> Result<Rows> {
        let arrays = self.columns.key.iter().map(|at| self.columns.column(batch, *at));
        Ok(self.key.convert_columns(&arrays.collect::<Result<Vec<_>>>()?)?)
    }

    /// Keys as columns again.
    pub(super) fn key_columns<'a>(&self, keys: impl Iterator<Item = &'a [u8]>) -> Result<Vec<ArrayRef>> {
        let parser = self.key.parser();
        Ok(self.key.convert_rows(keys.map(|key| parser.parse(key)))?)
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Decimal128Array, Int32Array, Int64Array, StringArray};

    use super::*;

    fn schema(fields: &[(&str, DataType)]) -> Schema {
        Schema::new(fields.iter().map(|(name, of)| Field::new(*name, of.clone(), true)).collect::<Vec<_>>())
    }

    #[test]
    fn rows_of_two_types_are_compared_in_one() {
        let one =
            schema(&[("id", DataType::Int32), ("n", DataType::Decimal128(10, 2)), ("gone", DataType::Int32)]);
        let other = schema(&[("n", DataType::Utf8), ("id", DataType::Int64), ("new", DataType::Int32)]);
        let columns = Arc::new(Columns::shared(&one, &other, &["id".into()]).unwrap());
        assert_eq!(columns.names, ["id", "n"]);
        assert_eq!(columns.left_out, ["gone: only one place has it", "new: only one place has it"]);
        let number = Decimal128Array::from(vec![Some(150), None]).with_precision_and_scale(10, 2).unwrap();
        let here = RecordBatch::try_new(
            Arc::new(schema(&[("id", DataType::Int32), ("n", DataType::Decimal128(10, 2))])),
            vec![Arc::new(Int32Array::from(vec![1, 2])), Arc::new(number)],
        )
        .unwrap();
        let there = RecordBatch::try_new(
            Arc::new(schema(&[("n", DataType::Utf8), ("id", DataType::Int64)])),
            vec![
                Arc::new(StringArray::from(vec![Some("1.50"), None])),
                Arc::new(Int64Array::from(vec![1, 2])),
            ],
        )
        .unwrap();
        let mut encoder = Encoder::new(columns, &Marks::new()).unwrap();
        let mut marks = |batch| {
            let mut marks = Vec::new();
            encoder.each(batch, |key, row| marks.push((key.to_vec(), row))).unwrap();
            marks
        };
        let (here, there) = (marks(&here), marks(&there));
        assert_eq!(here, there);
        assert_ne!(here[0], here[1]);
    }

    #[test]
    fn a_key_that_one_place_lacks_is_refused_by_name() {
        let one = schema(&[("id", DataType::Int32), ("a", DataType::Int32)]);
        let error = Columns::shared(&one, &schema(&[("a", DataType::Int32)]), &["id".into()]).unwrap_err();
        assert_eq!(error.context(), [("column", "id".to_owned())]);
    }
}
