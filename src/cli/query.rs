//! `query` and `changes`: the lake in SQL, now or as it was. Rows are printed as they come, within the
//! memory budget.

use std::io::{self, IsTerminal, Read, Write};
use std::time::Instant;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::util::display::FormatOptions;
use arrow::util::pretty::pretty_format_batches_with_options;
use futures::StreamExt;

use super::args::{Global, Output};
use super::checkpoints::as_of;
use super::lake_args::{ChangesArgs, QueryArgs};
use super::lake_table::{lake_settings, lake_table};
use super::output::{self, Exit};
use super::shell;
use crate::config::units::show_rows;
use crate::error::{Error, ErrorKind, Result};
use crate::lake::Lake;
use crate::memory::Budget;
use crate::query::{self, AsOf, Export, Format};

/// Rows that are aligned with each other: more than anyone reads at once, few enough to hold.
const PAGE: usize = 1000;

/// What statements are run with.
pub(super) struct Asking {
    pub(super) lake: Lake,
    pub(super) budget: Budget,
    pub(super) as_of: Option<AsOf>,
    pub(super) output: Output,
}

/// Runs the statement that was given, or those of standard input, or those of a person.
pub(super) async fn query(global: &Global, args: &QueryArgs) -> Result<Exit> {
    let lake = Lake::open(&lake_settings(global, args.lake.overrides())?).await?;
    let budget = Budget::new(args.memory.0, 1)?;
    let as_of = match &args.checkpoint {
        Some(checkpoint) => Some(as_of(&lake, budget, checkpoint).await?),
        None => args.as_of.as_deref().map(str::parse).transpose()?,
    };
    let asking = Asking { budget, as_of, lake, output: global.output };
    match args.sql.as_deref() {
        Some(sql) if sql != "-" => asking.run(sql).await?,
        None if io::stdin().is_terminal() => return shell::talk(asking, global.verbose).await,
        _ => {
            let mut text = String::new();
            io::stdin().read_to_string(&mut text).map_err(|source| {
                Error::new(ErrorKind::Config, format!("cannot read the statements: {source}"))
            })?;
            let statements = query::statements(&text)?;
            if statements.len() > 1 && asking.output.is_binary() {
                return Err(Error::new(ErrorKind::Config, "one file can hold the rows of one statement")
                    .hint("give one statement, or use `--output json`"));
            }
            for statement in statements {
                asking.run(&statement).await?;
            }
        }
    }
    Ok(Exit::Done)
}

/// Prints what happened to each row between two moments; by default in the last snapshot.
pub(super) async fn changes(global: &Global, args: &ChangesArgs) -> Result<Exit> {
    let lake = Lake::open(&lake_settings(global, args.lake.overrides())?).await?;
    let table = lake_table(&lake, &args.table).await?;
    let moment = |text: &Option<String>| text.as_deref().map(str::parse::<AsOf>).transpose();
    let (from, to) = (moment(&args.from)?, moment(&args.to)?);
    let to = to.map(|to| to.resolve(&table)).transpose()?.or(table.current());
    let from = match from {
        Some(from) => Some(from.resolve(&table)?),
        None => {
            table.snapshots().into_iter().find(|snapshot| Some(snapshot.id) == to).and_then(|it| it.parent)
        }
    };
    let literal = |text: String| format!("'{}'", text.replace('\'', "''"));
    let moment = |id: Option<crate::delta::SnapshotId>| id.map_or("null".to_owned(), |id| id.to_string());
    let sql = format!(
        "SELECT * FROM changes({}, {}, {})",
        literal(table.id().to_string()),
        moment(from),
        moment(to),
    );
    let budget = Budget::new(args.memory.0, 1)?;
    Asking { lake, budget, as_of: None, output: global.output }.run(&sql).await?;
    Ok(Exit::Done)
}

impl Asking {
    /// Runs one statement and prints its rows. Tables are those that the lake has now.
    pub(super) async fn run(&self, sql: &str) -> Result<()> {
        if self.output.is_binary() && io::stdout().is_terminal() {
            return Err(Error::new(ErrorKind::Config, "a terminal cannot show this form")
                .hint("write it to a file: `frazil query … > rows.parquet`"));
        }
        let started = Instant::now();
        let session = query::session(&self.lake, self.budget, self.as_of.clone()).await?;
        let mut rows = query::sql(&session, sql).await?.execute_stream().await?;
        let mut printer = Printer::new(self.output, rows.schema())?;
        while let Some(batch) = rows.next().await {
            printer.print(batch?)?;
        }
        let count = printer.finish()?;
        if self.output == Output::Text {
            output::say(format!("{} in {:.2} s", show_rows(count), started.elapsed().as_secs_f64()));
        }
        Ok(())
    }
}

/// Writes batches in one of the forms.
struct Printer {
    form: Form,
    rows: u64,
}

enum Form {
    Table { schema: SchemaRef, page: Vec<RecordBatch>, held: usize, printed: bool },
    Export(Export<Stdout>),
}

impl Printer {
    fn new(output: Output, schema: SchemaRef) -> Result<Self> {
        let format = match output {
            Output::Text => None,
            Output::Json => Some(Format::Json),
            Output::Csv => Some(Format::Csv),
            Output::Parquet => Some(Format::Parquet),
            Output::Arrow => Some(Format::Arrow),
        };
        let form = match format {
            None => Form::Table { schema, page: Vec::new(), held: 0, printed: false },
            Some(format) => Form::Export(Export::new(format, &schema, Stdout)?),
        };
        Ok(Self { form, rows: 0 })
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
            Form::Export(export) => export.write(&batch),
        }
    }

    fn finish(self) -> Result<u64> {
        match self.form {
            Form::Table { schema, page, printed, .. } => {
                if !page.is_empty() || !printed {
                    print_table(&schema, &page)?;
                }
            }
            Form::Export(export) => export.finish()?,
        }
        Ok(self.rows)
    }
}

fn print_table(schema: &SchemaRef, page: &[RecordBatch]) -> Result<()> {
    let options = FormatOptions::default().with_null("NULL");
    let empty = [RecordBatch::new_empty(schema.clone())];
    let page = if page.is_empty() { &empty } else { page };
    let table = pretty_format_batches_with_options(page, &options).map_err(|source| {
        Error::new(ErrorKind::Config, "a column cannot be printed")
            .hint("use `--output json`, or cast the column to text in the statement")
            .because(source)
    });
    output::line(table?)
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
