//! `dlq`: the dead letters of streams. Listed by reason, shown, carried again, given up.

use std::sync::Arc;

use clap::{Args, Subcommand, ValueEnum};

use super::args::{Global, Output, StreamsArgs};
use super::output::{self, Exit};
use super::query::Asking;
use super::setup::{Setup, setup};
use super::state::{journal, named};
use crate::config::units::show_count;
use crate::error::{Error, ErrorKind, Result};
use crate::journal::Deed;
use crate::lake::Lake;
use crate::sync::{self, Context, Leg, Progress, count_letters, letters, letters_of};

/// Rows that could not be carried.
#[derive(Debug, Subcommand)]
pub(super) enum DlqCommand {
    /// Count each stream's dead letters by reason
    List(StreamsArgs),
    /// Print a stream's dead letters, values and all
    Show(ShowArgs),
    /// Carry the rows again, as they are now: by reading the source whole, and from the lake into the target
    Replay(ReplayArgs),
    /// Give letters up. Their rows stay as they are
    Drop(DropArgs),
}

/// Whose rows to carry again.
#[derive(Debug, Args)]
pub(super) struct ReplayArgs {
    /// The stream, by name
    pub stream: String,
    /// Only those of one half of a pass
    #[arg(long, value_enum)]
    pub leg: Option<LegWord>,
    /// Which streams there are.
    #[command(flatten)]
    pub streams: StreamsArgs,
}

/// Which letters to give up.
#[derive(Debug, Args)]
pub(super) struct DropArgs {
    /// The stream, by name
    pub stream: String,
    /// A letter by its name, as `show` prints it; can be repeated
    #[arg(long = "letter", value_name = "NAME", required_unless_present = "all")]
    pub letters: Vec<String>,
    /// All of them
    #[arg(long, conflicts_with = "letters")]
    pub all: bool,
    /// Only those of one half of a pass
    #[arg(long, value_enum)]
    pub leg: Option<LegWord>,
    /// Which streams there are.
    #[command(flatten)]
    pub streams: StreamsArgs,
}

/// Which letters to print.
#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// The stream, by name
    pub stream: String,
    /// Only those of one half of a pass
    #[arg(long, value_enum)]
    pub leg: Option<LegWord>,
    /// How many, at most; the newest first
    #[arg(long, short = 'n', default_value_t = 100, env = "FRAZIL_LIMIT")]
    pub limit: u32,
    /// Which streams there are.
    #[command(flatten)]
    pub streams: StreamsArgs,
}

/// One half of a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum LegWord {
    /// Source to lake
    Extract,
    /// Lake to target
    Load,
}

/// One leg, or both in the order of rows.
fn legs(word: Option<LegWord>) -> Vec<Leg> {
    word.map_or_else(|| vec![Leg::Extract, Leg::Load], |word| vec![word.leg()])
}

impl LegWord {
    fn leg(self) -> Leg {
        match self {
            Self::Extract => Leg::Extract,
            Self::Load => Leg::Load,
        }
    }
}

/// Does what is asked of dead letters.
pub(super) async fn dlq(global: &Global, command: &DlqCommand) -> Result<Exit> {
    match command {
        DlqCommand::List(args) => list(global, args).await,
        DlqCommand::Show(args) => show(global, args).await,
        DlqCommand::Replay(args) => Box::pin(replay(global, args)).await,
        DlqCommand::Drop(args) => drop(global, args).await,
    }
}

async fn list(global: &Global, args: &StreamsArgs) -> Result<Exit> {
    let Setup { config, streams } = setup(global, args).await?;
    let (lake, budget) = (Lake::open(config.lake()).await?, args.engine.budget()?);
    let mut rows = Vec::new();
    for stream in &streams {
        let Some(table) = letters(&lake, stream, budget).await? else { continue };
        for count in count_letters(&lake, &table, budget).await? {
            if global.output == Output::Json {
                let mut value = serde_json::to_value(&count).expect("a count is JSON");
                value["stream"] = stream.name.as_str().into();
                output::json(&value)?;
            }
            let time = |at: chrono::DateTime<chrono::Utc>| at.format("%Y-%m-%d %H:%M:%S").to_string();
            let letters = show_count(count.letters);
            let times = [time(count.oldest), time(count.newest)];
            rows.push(
                [vec![stream.name.clone(), count.leg, letters], times.into(), vec![count.reason]].concat(),
            );
        }
    }
    if global.output == Output::Json {
        return Ok(Exit::Done);
    }
    if rows.is_empty() {
        output::say("no dead letters");
        return Ok(Exit::Done);
    }
    output::table(&["stream", "leg", "letters", "oldest", "newest", "reason"], &rows)?;
    Ok(Exit::Done)
}

async fn show(global: &Global, args: &ShowArgs) -> Result<Exit> {
    let Setup { config, streams } = setup(global, &args.streams).await?;
    let stream = named(&streams, &args.stream)?;
    let (lake, budget) = (Lake::open(config.lake()).await?, args.streams.engine.budget()?);
    if letters(&lake, stream, budget).await?.is_none() {
        output::say("no dead letters");
        return Ok(Exit::Done);
    }
    let id = letters_of(&stream.lake_table);
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let schema = id.schema.as_deref().map(|schema| format!("{}.", quoted(schema))).unwrap_or_default();
    let leg = args.leg.map(|leg| format!(" WHERE leg = '{}'", leg.leg().name())).unwrap_or_default();
    let sql = format!(
        "SELECT leg, key, reason, payload, run, window_from, window_to, rejected_at, letter \
         FROM {schema}{}{leg} ORDER BY rejected_at DESC, letter LIMIT {}",
        quoted(&id.name),
        args.limit,
    );
    Asking { lake, budget, as_of: None, output: global.output }.run(&sql).await?;
    Ok(Exit::Done)
}

async fn replay(global: &Global, args: &ReplayArgs) -> Result<Exit> {
    let Setup { config, streams } = setup(global, &args.streams).await?;
    let stream = named(&streams, &args.stream)?;
    let lake = Lake::open(config.lake()).await?;
    let context = Context::new(lake, args.streams.engine.budget()?, *config.maintenance());
    let mut journal = journal(&config)?;
    let (mut all, mut left) = (0, 0);
    for leg in legs(args.leg) {
        let replayed = sync::replay(&context, stream, leg, &Arc::new(Progress::default())).await?;
        if replayed.letters == 0 {
            continue;
        }
        (all, left) = (all + replayed.letters, left + replayed.left);
        let subject = format!("{} ({})", stream.name, leg.name());
        journal.note(&Deed::now("dlq_replay", subject).moved(Some(replayed.letters), Some(replayed.left)))?;
        if global.output == Output::Json {
            output::json(&serde_json::json!({
                "stream": stream.name, "leg": leg, "letters": replayed.letters, "left": replayed.left,
            }))?;
        } else {
            let [letters, left] = [replayed.letters, replayed.left].map(show_count);
            output::line(format!(
                "{}: {letters} letters of the {} leg, {left} left",
                stream.name,
                leg.name()
            ))?;
        }
    }
    if all == 0 {
        output::say("no dead letters: nothing to replay");
    }
    Ok(if left > 0 { Exit::Partial } else { Exit::Done })
}

async fn drop(global: &Global, args: &DropArgs) -> Result<Exit> {
    let Setup { config, streams } = setup(global, &args.streams).await?;
    let stream = named(&streams, &args.stream)?;
    let lake = Lake::open(config.lake()).await?;
    let context = Context::new(lake, args.streams.engine.budget()?, *config.maintenance());
    let mut journal = journal(&config)?;
    let names = (!args.all).then_some(args.letters.as_slice());
    let mut dropped = 0;
    for leg in legs(args.leg) {
        let gone = sync::drop_letters(&context, stream, leg, names).await?;
        if gone > 0 {
            let subject = format!("{} ({})", stream.name, leg.name());
            journal.note(&Deed::now("dlq_drop", subject).moved(Some(gone), None::<u64>))?;
        }
        dropped += gone;
    }
    if !args.all && dropped < args.letters.len() as u64 {
        let missing = args.letters.len() as u64 - dropped;
        return Err(Error::new(ErrorKind::Config, format!("{missing} of these letters are not there"))
            .with("stream", &stream.name)
            .hint("`frazil dlq show` prints their names; those that were there are dropped"));
    }
    match global.output {
        Output::Json => output::json(&serde_json::json!({ "stream": stream.name, "dropped": dropped }))?,
        _ => output::line(format!("{}: {} letters dropped", stream.name, show_count(dropped)))?,
    }
    Ok(Exit::Done)
}
