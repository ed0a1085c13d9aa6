//! `setup` and `teardown`: what streams need in their databases, installed and removed.
//!
//! A run installs nothing into tables of others. `--dry-run` prints the statements, so that somebody who
//! may execute them can.

use clap::Args;
use clap::builder::FalseyValueParser;
use serde::Serialize;

use super::args::{Global, Output, StreamsArgs};
use super::output::{self, Exit};
use super::setup::{Setup, setup};
use crate::connectors;
use crate::error::{Error, ErrorKind, Result};
use crate::lake::Lake;
use crate::memory::Budget;
use crate::source::{Arrangement, Goal};
use crate::sync::{self, Stream};

/// `setup`.
#[derive(Debug, Args)]
pub(super) struct SetupArgs {
    /// Print the statements, and do nothing
    #[arg(long, env = "FRAZIL_DRY_RUN", value_parser = FalseyValueParser::new())]
    pub dry_run: bool,
    /// Which streams.
    #[command(flatten)]
    pub streams: StreamsArgs,
}

/// `teardown`.
#[derive(Debug, Args)]
pub(super) struct TeardownArgs {
    /// Print the statements, and do nothing
    #[arg(long, env = "FRAZIL_DRY_RUN", value_parser = FalseyValueParser::new())]
    pub dry_run: bool,
    /// Do it. Afterwards the stream has to read its whole table
    #[arg(long, env = "FRAZIL_YES", value_parser = FalseyValueParser::new())]
    pub yes: bool,
    /// Remove triggers that other readers still use, too
    #[arg(long, env = "FRAZIL_FORCE", value_parser = FalseyValueParser::new())]
    pub force: bool,
    /// Which streams.
    #[command(flatten)]
    pub streams: StreamsArgs,
}

/// What became of one stream.
#[derive(Debug, Serialize)]
struct Arranged<'a> {
    stream: &'a str,
    done: bool,
    #[serde(flatten)]
    arrangement: Option<Arrangement>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Installs.
pub(super) async fn install(global: &Global, args: &SetupArgs) -> Result<Exit> {
    arrange(global, &args.streams, Goal::Setup, args.dry_run).await
}

/// Removes.
pub(super) async fn remove(global: &Global, args: &TeardownArgs) -> Result<Exit> {
    if !args.yes && !args.dry_run {
        return Err(Error::new(ErrorKind::Config, "teardown removes triggers, slots and what they hold")
            .hint("look at it with `--dry-run`, then do it with `--yes`"));
    }
    arrange(global, &args.streams, Goal::Teardown { force: args.force }, args.dry_run).await
}

async fn arrange(global: &Global, args: &StreamsArgs, goal: Goal, dry_run: bool) -> Result<Exit> {
    let Setup { config, streams } = setup(global, args).await?;
    let budget = args.engine.budget()?;
    let lake = Lake::open(config.lake()).await?;
    let mut failed = 0;
    for stream in &streams {
        let mut arranged = Arranged { stream: &stream.name, done: false, arrangement: None, error: None };
        match arrange_stream(stream, &lake, budget, goal, dry_run).await {
            Ok((arrangement, error)) => {
                arranged.done = error.is_none() && !dry_run && !arrangement.statements.is_empty();
                say(global, &mut arranged, arrangement, error.as_ref())?;
                failed += usize::from(error.is_some());
            }
            Err(error) => {
                say(global, &mut arranged, Arrangement::default(), Some(&error))?;
                failed += 1;
            }
        }
    }
    Ok(match failed {
        0 => Exit::Done,
        some if some < streams.len() => Exit::Partial,
        _ => Exit::Failed,
    })
}

/// What is to be done for a stream, and why it could not be done.
async fn arrange_stream(
    stream: &Stream,
    lake: &Lake,
    budget: Budget,
    goal: Goal,
    dry_run: bool,
) -> Result<(Arrangement, Option<Error>)> {
    let source = connectors::source(&stream.source)?;
    let table = source.table(&stream.source_table).await?;
    let mut request = sync::read_request(stream, &table, budget)?;
    request.reader = sync::reader(lake, stream);
    let arrangement = source.arrange(&request, goal).await?;
    if dry_run || arrangement.statements.is_empty() {
        return Ok((arrangement, None));
    }
    let error = source.execute(&arrangement).await.err();
    Ok((arrangement, error))
}

/// Statements and what failed go to stdout as SQL, so that all of it can be given to a database.
fn say(
    global: &Global,
    arranged: &mut Arranged<'_>,
    arrangement: Arrangement,
    error: Option<&Error>,
) -> Result<()> {
    arranged.error = error.map(ToString::to_string);
    if global.output == Output::Json {
        arranged.arrangement = Some(arrangement);
        return output::json(arranged);
    }
    let what = match (error, arranged.done, arrangement.statements.is_empty()) {
        (Some(_), ..) => "failed",
        (_, true, _) => "done",
        (_, _, true) => "nothing to do",
        _ => "to be done",
    };
    output::line(format!("-- {}: {what}", arranged.stream))?;
    for note in &arrangement.notes {
        output::line(format!("--   {}", note.replace('\n', " ")))?;
    }
    if let Some(error) = error {
        output::say_error(error, global.verbose);
        if !arrangement.statements.is_empty() {
            output::say("  hint: somebody who may do it can execute the statements below");
        }
    }
    if !arranged.done {
        for statement in &arrangement.statements {
            output::line(format!("{statement};"))?;
        }
    }
    for suggestion in &arrangement.suggestions {
        output::line(format!("--   suggested: {}", suggestion.replace('\n', " ")))?;
    }
    Ok(())
}
