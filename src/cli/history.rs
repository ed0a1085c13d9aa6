//! `history`: what ran, newest first.

use super::args::{Global, HistoryArgs, Output};
use super::output::{self, Exit};
use crate::config::units::show_count;
use crate::config::{Config, Overrides};
use crate::error::Result;
use crate::history::{Filter, History, Pass};

/// Prints past passes.
pub(super) fn history(global: &Global, args: &HistoryArgs) -> Result<Exit> {
    let path = History::place(place(global).as_deref());
    let Some(history) = History::open_existing(&path)? else {
        output::say(format!("nothing has run yet ({})", path.display()));
        return Ok(Exit::Done);
    };
    let mut streams = args.streams.clone();
    streams.extend_from_slice(&args.stream);
    let verdicts = args.status.clone();
    let passes = history.passes(&Filter { streams, verdicts, since: args.since, limit: args.limit })?;
    if global.output == Output::Json {
        passes.iter().try_for_each(output::json)?;
    } else {
        let rows: Vec<_> = passes.iter().map(row).collect();
        output::table(
            &[
                "started",
                "stream",
                "verb",
                "verdict",
                "seconds",
                "extracted",
                "upserted",
                "deleted",
                "rejected",
                "error",
            ],
            &rows,
        )?;
    }
    Ok(Exit::Done)
}

/// The file whose history is meant, or none for runs without one. It need not be valid to be found.
pub(super) fn place(global: &Global) -> Option<std::path::PathBuf> {
    Config::find(&Overrides { config: global.config.clone(), ..Overrides::default() })
}

fn row(pass: &Pass) -> Vec<String> {
    let count = |count: Option<u64>| count.map(show_count).unwrap_or_default();
    vec![
        pass.started_at.format("%Y-%m-%d %H:%M:%S").to_string(),
        pass.stream.clone(),
        pass.verb.clone(),
        pass.verdict.clone(),
        format!("{:.2}", pass.seconds),
        count(pass.rows_extracted),
        count(pass.rows_upserted),
        count(pass.rows_deleted),
        count(pass.rows_rejected),
        pass.error.clone().unwrap_or_default(),
    ]
}
