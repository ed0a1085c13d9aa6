//! Rows in the forms that programs read: JSON lines, CSV, Parquet, Arrow IPC. Each batch is written as
//! it comes; nothing is held but a Parquet row group.

use std::io::Write;

use arrow::array::RecordBatch;
use arrow::csv;
use arrow::datatypes::SchemaRef;
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
    Parquet(Box<ArrowWriter<W>>),
    Arrow(Box<StreamWriter<W>>),
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
                let writer = ArrowWriter::try_new(to, schema.clone(), Some(properties));
                Form::Parquet(Box::new(writer.map_err(unfit_parquet)?))
            }
            Format::Arrow => Form::Arrow(Box::new(StreamWriter::try_new(to, schema).map_err(unfit)?)),
        }))
    }

    /// Writes one batch.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        match &mut self.0 {
            Form::Json(writer) => writer.write(batch).map_err(unfit),
            Form::Csv(writer) => writer.write(batch).map_err(unfit),
            Form::Parquet(writer) => writer.write(batch).map_err(unfit_parquet),
            Form::Arrow(writer) => writer.write(batch).map_err(unfit),
        }
    }

    /// Ends the document.
    pub fn finish(self) -> Result<()> {
        match self.0 {
            Form::Json(mut writer) => writer.finish().map_err(unfit),
            Form::Csv(_) => Ok(()),
            Form::Parquet(writer) => writer.close().map(drop).map_err(unfit_parquet),
            Form::Arrow(mut writer) => writer.finish().map_err(unfit),
        }
    }
}

fn unfit_parquet(source: ParquetError) -> Error {
    unfit(source.into())
}

fn unfit(source: ArrowError) -> Error {
    Error::new(ErrorKind::Config, "a column cannot be written in this form")
        .hint("use `--output json`, or cast the column to text in the statement")
        .because(source)
}
