//! The arguments of the verbs around `frazil serve`.

use std::path::PathBuf;

use clap::builder::FalseyValueParser;
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
    /// Share the streams with every other `frazil serve --share` on this lake
    #[arg(long, env = "FRAZIL_SHARE", value_parser = FalseyValueParser::new())]
    pub share: bool,
    /// Answer HTTP here: health, streams, runs, metrics, wishes: 127.0.0.1:8085
    #[arg(long, value_name = "ADDRESS", env = "FRAZIL_LISTEN", help_heading = "HTTP")]
    pub listen: Option<String>,
    /// The file with the token that requests must carry [default: the variable FRAZIL_TOKEN]. Needed where
    /// other machines can reach the address
    #[arg(long, value_name = "FILE", env = "FRAZIL_TOKEN_FILE", help_heading = "HTTP", requires = "listen")]
    pub token_file: Option<PathBuf>,
    /// Answer over TLS with this certificate and its chain, as PEM. One that is renewed is taken up
    #[arg(long, value_name = "FILE", env = "FRAZIL_TLS_CERT", help_heading = "HTTP", requires_all = ["listen", "tls_key"])]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's key, as PEM
    #[arg(long, value_name = "FILE", env = "FRAZIL_TLS_KEY", help_heading = "HTTP", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
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
