//! Rows with a value that its column cannot hold: marked, so that they can go aside and the others go on.
//!
//! ```text
//! value ─▶ column ─┬─ fits ───────────────────────────────▶ batch
//!                  └─ does not ─▶ NULL there, and why ─────▶ batch with `_unfit` at its end
//! ```

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, StringBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use crate::error::{Error, ErrorKind, Result};
use crate::source::{OnUnfit, ReadRequest};
use crate::table::UNFIT_COLUMN;

/// The rows of a batch under construction that do not fit.
#[derive(Debug, Clone)]
pub struct Unfit {
    /// Of batches that have such rows.
    schema: SchemaRef,
    /// By column: whether it belongs to the key, by which a row is told apart.
    key: Vec<bool>,
    found: Vec<(usize, String)>,
}

impl Unfit {
    /// For batches of this schema; `None` where such a value stops the read.
    pub fn of(schema: &SchemaRef, request: &ReadRequest) -> Option<Self> {
        if request.values.on_unfit == OnUnfit::Stop {
            return None;
        }
        let nullable = |field: &Arc<Field>| field.as_ref().clone().with_nullable(true);
        let mut fields: Vec<Field> = schema.fields().iter().map(nullable).collect();
        let key = fields.iter().map(|field| request.key.contains(field.name())).collect();
        fields.push(Field::new(UNFIT_COLUMN, DataType::Utf8, true));
        Some(Self { schema: Arc::new(Schema::new(fields)), key, found: Vec::new() })
    }

    /// Notes that a value does not fit its column. What is wrong with a key, or with more than the value,
    /// stays an error.
    pub fn note(&mut self, row: usize, column: usize, error: Error) -> Result<()> {
        if error.kind() != ErrorKind::Data || self.key.get(column).copied().unwrap_or(true) {
            return Err(error);
        }
        match self.found.last_mut() {
            Some((last, why)) if *last == row => why.push_str(&format!("; {error}")),
            _ => self.found.push((row, error.to_string())),
        }
        Ok(())
    }

    /// Forgets a row that is not all there, and comes again.
    pub fn forget(&mut self, row: usize) {
        self.found.retain(|(noted, _)| *noted < row);
    }

    /// The batch, if it has such rows.
    pub fn batch(&mut self, arrays: &[ArrayRef], rows: usize) -> Result<Option<RecordBatch>> {
        if self.found.is_empty() {
            return Ok(None);
        }
        let mut reasons = StringBuilder::new();
        let mut found = std::mem::take(&mut self.found).into_iter().peekable();
        for row in 0..rows {
            reasons.append_option(found.next_if(|(noted, _)| *noted == row).map(|(_, why)| why));
        }
        let arrays = arrays.iter().cloned().chain([Arc::new(reasons.finish()) as ArrayRef]).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(Some(RecordBatch::try_new_with_options(Arc::clone(&self.schema), arrays, &options)?))
    }
}
