//! `conflicts`: rows that source and target both changed. Counted, shown, decided.

use std::collections::BTreeMap;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::args::{Global, Output, StreamsArgs};
use super::output::{self, Exit};
use super::setup::{Setup, setup};
use super::state::{journal, named};
use crate::config::units::show_count;
use crate::error::Result;
use crate::journal::{self, Deed};
use crate::lake::Lake;
use crate::sync::{self, Choice, ConflictRecord, Context};

/// Rows that source and target both changed.
#[derive(Debug, Subcommand)]
pub(super) enum ConflictsCommand {
    /// Count each stream's conflicts by type and by how they ended
    List(StreamsArgs),
    /// Print a stream's conflicts with the values of all sides, the newest first
    Show(ShowArgs),
    /// Decide open conflicts: with the source's values, with the target's, or with others
    Resolve(ResolveArgs),
}

/// Which conflicts to print.
#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// The stream, by name
    pub stream: String,
    /// Only those that wait for somebody
    #[arg(long)]
    pub open: bool,
    /// How many, at most
    #[arg(long, short = 'n', default_value_t = 100, env = "FRAZIL_LIMIT")]
    pub limit: u32,
    /// Which streams there are.
    #[command(flatten)]
    pub streams: StreamsArgs,
}

/// What to decide.
#[derive(Debug, Args)]
pub(super) struct ResolveArgs {
    /// The stream, by name
    pub stream: String,
    /// A conflict by its name, as `show` prints it; can be repeated
    #[arg(long = "conflict", value_name = "NAME", required_unless_present = "all")]
    pub conflicts: Vec<String>,
    /// All that are open
    #[arg(long, conflicts_with_all = ["conflicts", "values"])]
    pub all: bool,
    /// Whose values the row gets in the columns in question
    #[arg(long, value_enum, required_unless_present = "values", conflicts_with = "values")]
    pub take: Option<SideWord>,
    /// A value that a column gets instead, as JSON: `status='"paid"'`; can be repeated
    #[arg(long = "set", value_name = "COLUMN=JSON", value_parser = value)]
    pub values: Vec<(String, Value)>,
    /// Which streams there are.
    #[command(flatten)]
    pub streams: StreamsArgs,
}

/// A side of a conflict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum SideWord {
    /// As the source has it
    Source,
    /// As the target has it: it stays
    Target,
}

fn value(text: &str) -> Result<(String, Value), String> {
    let (column, value) = text.split_once('=').ok_or("write it as `column=value`")?;
    let value = serde_json::from_str(value).map_err(|_| "the value is not JSON: a text stands in quotes")?;
    Ok((column.to_owned(), value))
}

/// Does what is asked of conflicts.
pub(super) async fn conflicts(global: &Global, command: &ConflictsCommand) -> Result<Exit> {
    match command {
        ConflictsCommand::List(args) => list(global, args).await,
        ConflictsCommand::Show(args) => show(global, args).await,
        ConflictsCommand::Resolve(args) => resolve(global, args).await,
    }
}

async fn list(global: &Global, args: &StreamsArgs) -> Result<Exit> {
    let Setup { config, streams } = setup(global, args).await?;
    let lake = Lake::open(config.lake()).await?;
    let context = Context::new(lake, args.engine.budget()?, *config.maintenance());
    let mut rows = Vec::new();
    for stream in &streams {
        let records = sync::conflicts(&context, stream).await?;
        for count in sync::count_conflicts(&records) {
            if global.output == Output::Json {
                let mut value = serde_json::to_value(&count).expect("a count is JSON");
                value["stream"] = stream.name.as_str().into();
                output::json(&value)?;
            }
            rows.push(vec![stream.name.clone(), count.kind, count.resolution, show_count(count.conflicts)]);
        }
    }
    if global.output == Output::Json {
        return Ok(Exit::Done);
    }
    if rows.is_empty() {
        output::say("no conflicts");
        return Ok(Exit::Done);
    }
    output::table(&["stream", "type", "resolution", "conflicts"], &rows)?;
    Ok(Exit::Done)
}

async fn show(global: &Global, args: &ShowArgs) -> Result<Exit> {
    let Setup { config, streams } = setup(global, &args.streams).await?;
    let stream = named(&streams, &args.stream)?;
    let lake = Lake::open(config.lake()).await?;
    let context = Context::new(lake, args.streams.engine.budget()?, *config.maintenance());
    let mut records = sync::conflicts(&context, stream).await?;
    records.retain(|record| record.is_open() || !args.open);
    records.truncate(args.limit as usize);
    if global.output == Output::Json {
        records.iter().try_for_each(|record| output::json(&shown(record)))?;
        return Ok(Exit::Done);
    }
    if records.is_empty() {
        output::say("no conflicts");
        return Ok(Exit::Done);
    }
    for record in &records {
        let by = record.resolved_by.as_deref().map(|who| format!(" by {who}")).unwrap_or_default();
        output::line(format!("{} {} {}", record.conflict, record.kind, record.record))?;
        let found = record.found_at.format("%Y-%m-%d %H:%M:%S");
        output::line(format!("  {}{by}, found {found}: {}", record.resolution, record.fields))?;
        let sides = [("base", &record.base), ("source", &record.source), ("target", &record.target)];
        for (side, row) in sides {
            output::line(format!("  {side:<6} {}", row.as_deref().unwrap_or("no row")))?;
        }
        if let Some(value) = &record.value {
            output::line(format!("  value  {value}"))?;
        }
    }
    Ok(Exit::Done)
}

/// A conflict with its rows as JSON and not as texts of it.
fn shown(record: &ConflictRecord) -> Value {
    let parsed = |text: &str| serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()));
    let side = |text: &Option<String>| text.as_deref().map_or(Value::Null, parsed);
    let mut value = serde_json::to_value(record).expect("a record is JSON");
    value["record"] = parsed(&record.record);
    value["fields"] = parsed(&record.fields);
    value["values"] = json!({
        "base": side(&record.base), "source": side(&record.source), "target": side(&record.target),
    });
    value["value"] = side(&record.value);
    if let Value::Object(object) = &mut value {
        object.retain(|key, _| !["base", "source", "target"].contains(&key.as_str()));
    }
    value
}

async fn resolve(global: &Global, args: &ResolveArgs) -> Result<Exit> {
    let Setup { config, streams } = setup(global, &args.streams).await?;
    let stream = named(&streams, &args.stream)?;
    let lake = Lake::open(config.lake()).await?;
    let context = Context::new(lake, args.streams.engine.budget()?, *config.maintenance());
    let choice = match args.take {
        Some(SideWord::Source) => Choice::Source,
        Some(SideWord::Target) => Choice::Target,
        None => Choice::Values(args.values.iter().cloned().collect::<BTreeMap<_, _>>()),
    };
    let mut journal = journal(&config)?;
    let mut names = args.conflicts.clone();
    if args.all {
        let records = sync::conflicts(&context, stream).await?;
        names.extend(records.into_iter().filter(ConflictRecord::is_open).map(|record| record.conflict));
    }
    let who = journal::who();
    for name in &names {
        let record = sync::resolve_conflict(&context, stream, name, &choice, &who).await?;
        let subject = format!("{} ({name})", stream.name);
        let deed = Deed::now("conflict_resolve", subject);
        journal.note(&deed.moved(Some("open"), Some(record.resolution)))?;
    }
    if names.is_empty() && global.output != Output::Json {
        output::say("no open conflicts");
        return Ok(Exit::Done);
    }
    let resolved = names.len() as u64;
    match global.output {
        Output::Json => {
            output::json(
                &json!({ "stream": stream.name, "resolved": resolved, "resolution": choice.name() }),
            )?;
        }
        _ => output::line(format!("{}: {} conflicts resolved", stream.name, show_count(resolved)))?,
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_json() {
        assert_eq!(value("a=1").unwrap(), ("a".to_owned(), json!(1)));
        assert_eq!(value("a=\"x=y\"").unwrap().1, json!("x=y"));
        for wrong in ["a", "a=x", "a="] {
            assert!(value(wrong).is_err(), "{wrong}");
        }
    }
}
