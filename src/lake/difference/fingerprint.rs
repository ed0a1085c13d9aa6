//! One number for a whole row, equal for equal rows and for no others.
//!
//! A row is encoded by Arrow's row format, which gives different bytes to any two different rows: NULL
//! and empty, `0.0` and `-0.0`, a list in a list, each as its bits are. The bytes are hashed by
//! SipHash-1-3 to 128 bits, under a key that is drawn anew for each comparison and never leaves it: nobody can
//! choose rows that collide. By chance, a changed row would be taken for one of the rows that are there
//! with a probability of `changed × rows / 2^128`: with a billion of each, 3 in 10^21, which is far
//! below that of a flipped bit in memory.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, ListArray, MapArray, RecordBatch, StructArray};
use arrow::datatypes::{DataType, Field};
use arrow::row::{RowConverter, SortField};
use siphasher::sip128::{Hasher128, SipHasher13};
use std::hash::Hasher;
use uuid::Uuid;

use crate::error::Result;

/// Rows encoded at once: they stay in the processor's cache until they are hashed.
const ROWS_AT_ONCE: usize = 2048;

/// Makes fingerprints. Clones make the same ones.
#[derive(Debug, Clone)]
pub struct Fingerprints {
    key: (u64, u64),
    /// For the types that came last.
    converter: Option<(Vec<DataType>, Arc<RowConverter>)>,
}

impl Fingerprints {
    /// Under a key of their own.
    #[expect(clippy::new_without_default, reason = "two defaults would differ")]
    pub fn new() -> Self {
        Self { key: Uuid::new_v4().as_u64_pair(), converter: None }
    }

    /// Calls `each` with the fingerprint of each row, in their order.
    pub fn of(&mut self, batch: &RecordBatch, mut each: impl FnMut(u128)) -> Result<()> {
        let mut start = 0;
        while start < batch.num_rows() {
            let rows = ROWS_AT_ONCE.min(batch.num_rows() - start);
            let columns: Vec<_> = batch.slice(start, rows).columns().iter().map(without_maps).collect();
            let converter = self.converter(&columns)?;
            for row in converter.convert_columns(&columns)?.iter() {
                let mut hasher = SipHasher13::new_with_keys(self.key.0, self.key.1);
                hasher.write(row.data());
                each(hasher.finish128().as_u128());
            }
            start += rows;
        }
        Ok(())
    }

    fn converter(&mut self, columns: &[ArrayRef]) -> Result<Arc<RowConverter>> {
        if let Some((types, converter)) = &self.converter
            && types.iter().eq(columns.iter().map(|column| column.data_type()))
        {
            return Ok(converter.clone());
        }
        let types: Vec<_> = columns.iter().map(|column| column.data_type().clone()).collect();
        let fields = types.iter().cloned().map(SortField::new).collect();
        let converter = Arc::new(RowConverter::new(fields)?);
        self.converter = Some((types, converter.clone()));
        Ok(converter)
    }
}

/// The row format knows no maps: a map is the list of its entries.
fn without_maps(array: &ArrayRef) -> ArrayRef {
    match array.data_type() {
        DataType::Map(..) => {
            let map: &MapArray = array.as_map();
            let entries = without_maps(&(Arc::new(map.entries().clone()) as ArrayRef));
            let field = Field::new_list_field(entries.data_type().clone(), false);
            Arc::new(ListArray::new(field.into(), map.offsets().clone(), entries, map.nulls().cloned()))
        }
        DataType::List(field) if has_map(field.data_type()) => {
            let list = array.as_list::<i32>();
            let values = without_maps(list.values());
            let field = field.as_ref().clone().with_data_type(values.data_type().clone());
            Arc::new(ListArray::new(field.into(), list.offsets().clone(), values, list.nulls().cloned()))
        }
        DataType::Struct(fields) if fields.iter().any(|field| has_map(field.data_type())) => {
            let columns: Vec<_> = array.as_struct().columns().iter().map(without_maps).collect();
            let typed = |(field, column): (&Arc<Field>, &ArrayRef)| {
                field.as_ref().clone().with_data_type(column.data_type().clone())
            };
            let fields: Vec<_> = fields.iter().zip(&columns).map(typed).collect();
            Arc::new(StructArray::new(fields.into(), columns, array.nulls().cloned()))
        }
        _ => array.clone(),
    }
}

fn has_map(data_type: &DataType) -> bool {
    match data_type {
        DataType::Map(..) => true,
        DataType::List(field) => has_map(field.data_type()),
        DataType::Struct(fields) => fields.iter().any(|field| has_map(field.data_type())),
        _ => false,
    }
}
