//! Rows in the forms that programs read: JSON lines, CSV, Parquet, Arrow IPC. Each batch is written as
//! it comes; nothing is held but a Parquet row group.
//!
//! Files for others hold plain texts and bytes, which every reader knows, where queries work on views.

use std::io::Write;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::compute::cast;
use arrow::csv;
use arrow::datatypes::{DataType, FieldRef, Fields, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;
use arrow::json;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;

use crate::error::{Error, ErrorKind, Result};

/// Rows of a Parquet row group: held until it is full.
const ROW_GROUP_ROWS: usize = 128 * 1024;

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line; NULL is written out.
    Json,
    /// Comma-separated values with a line of names.
    Csv,
    /// A Parquet file, zstd.
    Parquet,
    /// The Arrow IPC streaming format.
    Arrow,
}

/// Writes batches of one schema.
pub struct Export<W: Write + Send>(Form<W>);

enum Form<W: Write + Send> {
    Json(Box<json::LineDelimitedWriter<W>>),
    Csv(Box<csv::Writer<W>>),
    Parquet(Box<ArrowWriter<W>>, SchemaRef),
    Arrow(Box<StreamWriter<W>>, SchemaRef),
}

impl<W: Write + Send> Export<W> {
    /// Begins a document.
    pub fn new(format: Format, schema: &SchemaRef, to: W) -> Result<Self> {
        Ok(Self(match format {
            Format::Json => Form::Json(Box::new(
                json::WriterBuilder::new()
                    .with_explicit_nulls(true)
                    .build::<_, json::writer::LineDelimited>(to),
            )),
            Format::Csv => Form::Csv(Box::new(csv::WriterBuilder::new().with_header(true).build(to))),
            Format::Parquet => {
                let properties = WriterProperties::builder()
                    .set_compression(Compression::ZSTD(ZstdLevel::default()))
                    .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
                    .build();
                let schema = plain(schema);
                let writer = ArrowWriter::try_new(to, schema.clone(), Some(properties));
                Form::Parquet(Box::new(writer.map_err(unfit_parquet)?), schema)
            }
            Format::Arrow => {
                let schema = plain(schema);
                Form::Arrow(Box::new(StreamWriter::try_new(to, &schema).map_err(unfit)?), schema)
            }
        }))
    }

    /// Writes one batch.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        match &mut self.0 {
            Form::Json(writer) => writer.write(batch).map_err(unfit),
            Form::Csv(writer) => writer.write(batch).map_err(unfit),
            Form::Parquet(writer, schema) => {
                let batch = without_views(batch, schema).map_err(unfit)?;
                writer.write(&batch).map_err(unfit_parquet)
            }
            Form::Arrow(writer, schema) => {
                let batch = without_views(batch, schema).map_err(unfit)?;
                writer.write(&batch).map_err(unfit)
            }
        }
    }

    /// Ends the document.
    pub fn finish(self) -> Result<()> {
        match self.0 {
            Form::Json(mut writer) => writer.finish().map_err(unfit),
            Form::Csv(_) => Ok(()),
            Form::Parquet(writer, _) => writer.close().map(drop).map_err(unfit_parquet),
            Form::Arrow(mut writer, _) => writer.finish().map_err(unfit),
        }
    }
}

/// The schema with plain types in place of views, at any depth.
fn plain(schema: &SchemaRef) -> SchemaRef {
    let fields: Fields = schema.fields().iter().map(plain_field).collect();
    Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()))
}

fn plain_field(field: &FieldRef) -> FieldRef {
    let plain = match field.data_type() {
        DataType::Utf8View => DataType::Utf8,
        DataType::BinaryView => DataType::Binary,
        DataType::List(element) => DataType::List(plain_field(element)),
        DataType::Map(entries, sorted) => DataType::Map(plain_field(entries), *sorted),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(plain_field).collect()),
        _ => return field.clone(),
    };
    Arc::new(field.as_ref().clone().with_data_type(plain))
}

fn without_views(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let columns = batch.columns().iter().zip(schema.fields());
    let columns = columns.map(|(column, field)| match column.data_type() == field.data_type() {
        true => Ok(column.clone()),
        false => cast(column, field.data_type()),
    });
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(schema.clone(), columns.collect::<Result<_, _>>()?, &options)
}

fn unfit_parquet(source: ParquetError) -> Error {
    unfit(source.into())
}

fn unfit(source: ArrowError) -> Error {
    Error::new(ErrorKind::Config, "a column cannot be written in this form")
        .hint("use `--output json`, or cast the column to text in the statement")
        .because(source)
}
