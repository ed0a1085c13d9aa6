//! `query`: the lake in SQL, now or as it was. Rows are printed as they come, within the memory budget.

use std::io::{self, Write};
use std::time::Instant;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::util::display::FormatOptions;
use arrow::util::pretty::pretty_format_batches_with_options;
use futures::StreamExt;

use super::args::{Global, Output, QueryArgs};
use super::output::{self, Exit};
use super::status::lake_settings;
use crate::config::units::show_rows;
use crate::error::{Error, ErrorKind, Result};
use crate::lake::Lake;
use crate::memory::Budget;
use crate::query::{self, AsOf};

/// Rows that are aligned with each other: more than anyone reads at once, few enough to hold.
const PAGE: usize = 1000;

/// Runs one statement and prints its rows.
pub(super) async fn query(global: &Global, args: &QueryArgs) -> Result<Exit> {
    let started = Instant::now();
    let as_of: Option<AsOf> = args.as_of.as_deref().map(str::parse).transpose()?;
    let budget = Budget::new(args.memory.0, 1)?;
    let lake = Lake::open(&lake_settings(global, args.lake.overrides())?).await?;
    let session = query::session(&lake, budget, as_of).await?;
    let mut rows = query::sql(&session, &args.sql).await?.execute_stream().await?;
    let mut printer = Printer::new(global.output, rows.schema());
    while let Some(batch) = rows.next().await {
        printer.print(batch?)?;
    }
    let count = printer.finish()?;
    if global.output == Output::Text {
        output::say(format!("{} in {:.2} s", show_rows(count), started.elapsed().as_secs_f64()));
    }
    Ok(Exit::Done)
}

/// Writes batches in one of the forms.
struct Printer {
    form: Form,
    rows: u64,
}

enum Form {
    Table { schema: SchemaRef, page: Vec<RecordBatch>, held: usize, printed: bool },
    Json(Box<arrow::json::LineDelimitedWriter<Stdout>>),
    Csv(Box<arrow::csv::Writer<Stdout>>),
}

impl Printer {
    fn new(output: Output, schema: SchemaRef) -> Self {
        let form = match output {
            Output::Text => Form::Table { schema, page: Vec::new(), held: 0, printed: false },
            Output::Json => Form::Json(Box::new(
                arrow::json::WriterBuilder::new()
                    .with_explicit_nulls(true)
                    .build::<_, arrow::json::writer::LineDelimited>(Stdout),
            )),
            Output::Csv => {
                Form::Csv(Box::new(arrow::csv::WriterBuilder::new().with_header(true).build(Stdout)))
            }
        };
        Self { form, rows: 0 }
    }

    fn print(&mut self, batch: RecordBatch) -> Result<()> {
        self.rows += batch.num_rows() as u64;
        match &mut self.form {
            Form::Table { schema, page, held, printed } => {
                *held += batch.num_rows();
                page.push(batch);
                if *held >= PAGE {
                    print_table(schema, page)?;
                    page.clear();
                    *held = 0;
                    *printed = true;
                }
                Ok(())
            }
            Form::Json(writer) => writer.write(&batch).map_err(unprintable),
            Form::Csv(writer) => writer.write(&batch).map_err(unprintable),
        }
    }

    fn finish(self) -> Result<u64> {
        match self.form {
            Form::Table { schema, page, printed, .. } if !page.is_empty() || !printed => {
                print_table(&schema, &page)?;
            }
            Form::Json(mut writer) => writer.finish().map_err(unprintable)?,
            Form::Table { .. } | Form::Csv(_) => {}
        }
        Ok(self.rows)
    }
}

fn print_table(schema: &SchemaRef, page: &[RecordBatch]) -> Result<()> {
    let options = FormatOptions::default().with_null("NULL");
    let empty = [RecordBatch::new_empty(schema.clone())];
    let page = if page.is_empty() { &empty } else { page };
    output::line(pretty_format_batches_with_options(page, &options).map_err(unprintable)?)
}

fn unprintable(source: arrow::error::ArrowError) -> Error {
    Error::new(ErrorKind::Config, "a column cannot be printed in this form")
        .hint("use `--output json`, or cast the column to text in the statement")
        .because(source)
}

/// Standard output; a reader that has left ends the process quietly.
struct Stdout;

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match io::stdout().lock().write_all(bytes) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(Exit::Done as i32),
            written => written.map(|()| bytes.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().lock().flush()
    }
}
