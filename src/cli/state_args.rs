//! The arguments of `frazil state`, `frazil journal` and `frazil history`: what was, and what is.

use std::path::PathBuf;

use chrono::{DateTime, Utc};
use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};

use super::args::{StreamsArgs, since};
use crate::sync::Verdict;

/// Positions in the sources.
#[derive(Debug, Subcommand)]
pub(super) enum StateCommand {
    /// Print each stream's position
    Show(StreamsArgs),
    /// How each stream came to its position, by the lake's snapshots
    History(StreamsArgs),
    /// Ask source, lake and target whether each stream can go on from where it is
    Verify(StreamsArgs),
    /// Set right what `verify` finds: positions that were lost, targets without a record, files of the history
    Repair(RepairArgs),
    /// Set a stream's position, by a commit that moves nothing else; `frazil rollback` takes it back
    Set(SetArgs),
    /// Print all positions as JSON, one a line, for `import`
    Export(StreamsArgs),
    /// Set the positions that `export` printed
    Import(ImportArgs),
}

/// What to repair.
#[derive(Debug, Args)]
pub(super) struct RepairArgs {
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Which streams.
    #[command(flatten)]
    pub streams: StreamsArgs,
}

/// Which position to set.
#[derive(Debug, Args)]
pub(super) struct SetArgs {
    /// The stream, by name
    pub stream: String,
    /// The position, as `frazil state show --output json` prints it
    #[arg(required_unless_present = "as_of")]
    pub position: Option<String>,
    /// The position that it had then: a snapshot's id, a time, or a tag. Rows stay as they are
    #[arg(long, value_name = "WHEN", conflicts_with = "position")]
    pub as_of: Option<String>,
    /// Which streams there are.
    #[command(flatten)]
    pub streams: StreamsArgs,
}

/// Where positions come from.
#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    /// What `export` printed; `-` is stdin
    pub file: PathBuf,
    /// Which streams there are.
    #[command(flatten)]
    pub streams: StreamsArgs,
}

/// Which deeds to list.
#[derive(Debug, Args)]
pub(super) struct JournalArgs {
    /// Only those since then: a time, or how long ago: 24h
    #[arg(long, value_name = "TIME", value_parser = since)]
    pub since: Option<DateTime<Utc>>,
    /// How many, at most
    #[arg(long, short = 'n', default_value_t = 20, env = "FRAZIL_LIMIT")]
    pub limit: usize,
}

/// Which past runs to show.
#[derive(Debug, Args)]
pub(super) struct HistoryArgs {
    /// Only these streams
    #[arg(value_name = "STREAM")]
    pub streams: Vec<String>,
    /// Only this stream, can be repeated
    #[arg(long, value_name = "STREAM")]
    pub stream: Vec<String>,
    /// Only those that ended so: done, nothing_to_do, conflict, failed
    #[arg(long, value_name = "VERDICT", value_delimiter = ',', value_parser = PossibleValuesParser::new(Verdict::ALL.map(Verdict::name)))]
    pub status: Vec<String>,
    /// Only those since then: a time, or how long ago: 24h
    #[arg(long, value_name = "TIME", value_parser = since)]
    pub since: Option<DateTime<Utc>>,
    /// How many, at most
    #[arg(long, short = 'n', default_value_t = 20, env = "FRAZIL_LIMIT")]
    pub limit: u32,
    /// Streams over time: passes, failures, and what reading only changes has saved
    #[arg(long, conflicts_with_all = ["status", "limit"])]
    pub trends: bool,
}
