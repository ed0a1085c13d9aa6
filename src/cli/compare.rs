//! `compare`: do source, lake and target hold the same rows?

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::util::pretty::pretty_format_batches;
use clap::builder::FalseyValueParser;
use clap::{Args, ValueEnum};

use super::args::{Global, Output, StreamsArgs};
use super::output::{self, Exit};
use super::setup::{Setup, setup};
use crate::compare::{Keys, Options, Outcome, Pair, compare as compare_places};
use crate::config::units::{show_duration, show_rows};
use crate::error::{Error, ErrorKind, Result};
use crate::lake::Lake;
use crate::sync::{Context, Progress, Stream};

/// What to compare.
#[derive(Debug, Args)]
pub(super) struct CompareArgs {
    /// Which places, in the direction of the rows [default: all that the stream has]
    #[arg(long, value_name = "PLACES", env = "FRAZIL_BETWEEN")]
    pub between: Option<Between>,
    /// Before calling rows of a source different, make a pass and look again: what was changed since the
    /// last pass is no fault
    #[arg(long, env = "FRAZIL_SETTLE", value_parser = FalseyValueParser::new())]
    pub settle: bool,
    /// Make the lake like the source, and the target like the lake, where they differ
    #[arg(long, env = "FRAZIL_REPAIR", value_parser = FalseyValueParser::new())]
    pub repair: bool,
    /// Print so many of the keys that differ
    #[arg(long, value_name = "COUNT", default_value_t = 0, env = "FRAZIL_KEYS")]
    pub keys: usize,
    /// Look at about so many rows whose keys lie together, somewhere by chance, and not at all of them: the key
    /// has to begin with a whole number or a date
    #[arg(long, value_name = "ROWS", env = "FRAZIL_SAMPLE", value_parser = clap::value_parser!(u64).range(1..))]
    pub sample: Option<u64>,
    /// Which streams.
    #[command(flatten)]
    pub streams: StreamsArgs,
}

/// Two places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Between {
    /// The source as it is now and the lake's current snapshot
    #[value(name = "source,lake")]
    SourceLake,
    /// The snapshot that the target shows and the target
    #[value(name = "lake,target")]
    LakeTarget,
}

/// Compares every stream; the worst verdict is the exit code's.
pub(super) async fn compare(global: &Global, args: &CompareArgs) -> Result<Exit> {
    let Setup { config, streams } = setup(global, &args.streams).await?;
    let lake = Lake::open(config.lake()).await?;
    let context = Context::new(lake, args.streams.engine.budget()?, *config.maintenance());
    let CompareArgs { settle, repair, keys, sample, .. } = *args;
    let options = Options { settle, repair, keys, sample };
    let (mut compared, mut wrong) = (0, Vec::new());
    for stream in &streams {
        for pair in pairs(stream, args.between) {
            compared += 1;
            let outcome =
                compare_places(&context, stream, pair, options, &Arc::new(Progress::default())).await;
            match outcome {
                Ok(outcome) => {
                    print(&outcome, args.keys > 0, global.output)?;
                    if !outcome.is_equal() {
                        wrong.push(ErrorKind::Data);
                    }
                }
                Err(error) => {
                    output::say_error(&error, global.verbose);
                    wrong.push(error.kind());
                }
            }
        }
    }
    Ok(match wrong.len() {
        0 => Exit::Done,
        some if some < compared => Exit::Partial,
        _ if wrong.iter().all(|kind| *kind == ErrorKind::Config) => Exit::Usage,
        _ => Exit::Failed,
    })
}

pub(super) fn pairs(stream: &Stream, asked: Option<Between>) -> Vec<Pair> {
    match asked {
        Some(Between::SourceLake) => vec![Pair::SourceLake],
        Some(Between::LakeTarget) => vec![Pair::LakeTarget],
        // A table that several streams feed is one table: the first of them stands for all.
        None if stream.target.is_some() && first_of_those_who_share(stream) => {
            vec![Pair::SourceLake, Pair::LakeTarget]
        }
        None => vec![Pair::SourceLake],
    }
}

fn first_of_those_who_share(stream: &Stream) -> bool {
    let first = stream.shared.as_ref().and_then(|shared| shared.sources.first());
    first.is_none_or(|first| first.stream == stream.name)
}

pub(super) fn print(outcome: &Outcome, with_keys: bool, form: Output) -> Result<()> {
    let keys = batch(&outcome.keys)?;
    if form == Output::Json {
        let mut value = serde_json::to_value(outcome).expect("a report is JSON");
        if with_keys {
            value["keys"] = rows(&keys)?;
        }
        return output::json(&value);
    }
    output::line(sentence(outcome))?;
    for column in &outcome.left_out {
        output::line(format!("  not compared: {column}"))?;
    }
    if keys.num_rows() > 0 {
        output::line(pretty_format_batches(&[keys])?)?;
    }
    Ok(())
}

/// `public.orders: source and lake are equal (151,000 rows)`.
fn sentence(outcome: &Outcome) -> String {
    let [one, other] = outcome.pair.names();
    let name = &outcome.stream;
    let found = outcome.missing + outcome.surplus + outcome.different;
    if found == 0 && outcome.complete {
        let rows = show_rows(outcome.rows[1]);
        return match outcome.sample {
            true => format!("{name}: {one} and {other} are equal in a sample of {rows}"),
            false => format!("{name}: {one} and {other} are equal ({rows})"),
        };
    }
    let least = match outcome {
        Outcome { sample: true, .. } => "in a sample ",
        Outcome { complete: false, .. } => "at least ",
        _ => "",
    };
    let mut text = format!(
        "{name}: {least}{} missing in the {other}, {} only there, {} different ({} in the {one}, {} in the {other})",
        outcome.missing,
        outcome.surplus,
        outcome.different,
        show_rows(outcome.rows[0]),
        show_rows(outcome.rows[1]),
    );
    if outcome.late.rows > 0 {
        let lag = outcome.late.suggested_lag().map(show_duration).unwrap_or_default();
        text.push_str(&format!(
            "; {} of them have a cursor from before the position: they came late (`lag: {lag}` would find such rows), or were changed without their cursor",
            outcome.late.rows
        ));
    }
    if outcome.repaired > 0 {
        text.push_str(&format!("; {} repaired", outcome.repaired));
    }
    if !outcome.complete {
        text.push_str("; run it again for the rest, or give it more `--memory`");
    }
    text
}

/// Keys, and how each differs.
fn batch(keys: &Keys) -> Result<RecordBatch> {
    let mut fields = vec![Field::new("difference", DataType::Utf8, false)];
    let mut columns: Vec<ArrayRef> = vec![Arc::new(StringArray::from(keys.kinds.clone()))];
    for (name, values) in keys.names.iter().zip(&keys.values) {
        fields.push(Field::new(name, values.data_type().clone(), true));
        columns.push(values.clone());
    }
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}

fn rows(batch: &RecordBatch) -> Result<serde_json::Value> {
    let mut writer = arrow::json::ArrayWriter::new(Vec::new());
    writer.write(batch)?;
    writer.finish()?;
    let text = writer.into_inner();
    if text.is_empty() {
        return Ok(serde_json::Value::Array(Vec::new()));
    }
    serde_json::from_slice(&text)
        .map_err(|error| Error::new(ErrorKind::Internal, "keys could not be printed").because(error))
}
