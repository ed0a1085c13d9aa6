//! The arguments of the verbs around `frazil serve`.

use clap::{Args, Subcommand};

use super::args::StreamsArgs;

/// Run streams when they are due.
#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// Which streams.
    #[command(flatten)]
    pub streams: StreamsArgs,
    /// Say when each stream would run next, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// What a running server does.
#[derive(Debug, Subcommand)]
pub(super) enum JobsCommand {
    /// The streams of the server: what each is doing, and when it is due
    List,
    /// Let streams begin no passes; one under way goes on to its end. It outlives the server
    Pause(JobsArgs),
    /// Let paused streams go on; also those that are held after an error
    Resume(JobsArgs),
    /// Begin a pass now, whatever the schedule says
    Trigger(JobsArgs),
}

/// Which streams to ask something of.
#[derive(Debug, Args)]
pub(super) struct JobsArgs {
    /// The streams, by name
    #[arg(required = true, value_name = "STREAM")]
    pub streams: Vec<String>,
}
