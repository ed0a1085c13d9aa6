//! From the command line to open things: configuration, streams, lake, history.

use async_trait::async_trait;

use super::args::{Global, StreamsArgs};
use super::output;
use crate::config::{self, Config, TableLister};
use crate::connection::Connection;
use crate::connectors;
use crate::error::Result;
use crate::history::History;
use crate::sync::Stream;
use crate::table::TableId;

/// A configuration and its streams.
pub(super) struct Setup {
    pub(super) config: Config,
    pub(super) streams: Vec<Stream>,
}

/// Reads the configuration and expands its patterns by asking the sources.
pub(super) async fn setup(global: &Global, args: &StreamsArgs) -> Result<Setup> {
    let config = Config::load(&args.overrides(global), &config::environment)?;
    let resolved = config.resolve(&args.selection(), &Sources).await?;
    for warning in &resolved.warnings {
        output::say(format!("warning: {warning}"));
    }
    Ok(Setup { config, streams: resolved.streams })
}

/// The run history; a run does without it rather than fail.
pub(super) fn history(config: &Config) -> Option<History> {
    History::open(&History::place(config.path()))
        .inspect_err(|error| output::say(format!("warning: {error}; this run is not noted")))
        .ok()
}

/// Asks the databases themselves.
pub(super) struct Sources;

#[async_trait]
impl TableLister for Sources {
    async fn tables(&self, source: &Connection) -> Result<Vec<TableId>> {
        let tables = connectors::source(source)?.tables().await?;
        Ok(tables.into_iter().map(|table| table.id).collect())
    }
}
