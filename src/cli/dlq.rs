//! `dlq`: the dead letters of streams. Listed by reason and shown.

use clap::{Args, Subcommand, ValueEnum};

use super::args::{Global, Output, StreamsArgs};
use super::output::{self, Exit};
use super::query::Asking;
use super::setup::{Setup, setup};
use super::state::named;
use crate::config::units::show_count;
use crate::error::Result;
use crate::lake::Lake;
use crate::sync::{Leg, count_letters, letters, letters_of};

/// Rows that could not be carried.
#[derive(Debug, Subcommand)]
pub(super) enum DlqCommand {
    /// Count each stream's dead letters by reason
    List(StreamsArgs),
    /// Print a stream's dead letters, values and all
    Show(ShowArgs),
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
