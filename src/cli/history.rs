//! `history`: what ran, newest first.

use std::time::Duration;

use super::args::{Global, Output};
use super::output::{self, Exit};
use super::state_args::HistoryArgs;
use crate::config::units::{show_count, show_duration};
use crate::config::{Config, Overrides};
use crate::error::Result;
use crate::history::{Filter, History, Pass, Trend};

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
    let filter = Filter { streams, verdicts, since: args.since, limit: args.limit };
    if args.trends {
        return trends(&history.trends(&filter)?, global.output);
    }
    let passes = history.passes(&filter)?;
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
                "conflicts",
                "late",
                "latency",
                "differences",
                "error",
            ],
            &rows,
        )?;
    }
    Ok(Exit::Done)
}

fn trends(trends: &[Trend], form: Output) -> Result<Exit> {
    if form == Output::Json {
        trends.iter().try_for_each(output::json)?;
        return Ok(Exit::Done);
    }
    let shown = |seconds: Option<f64>| seconds.map(|seconds| format!("{seconds:.2}")).unwrap_or_default();
    let row = |trend: &Trend| {
        vec![
            trend.stream.clone(),
            show_count(trend.passes),
            show_count(trend.failed),
            show_count(trend.rows),
            show_count(trend.incremental),
            shown(trend.incremental_seconds),
            show_count(trend.whole),
            shown(trend.whole_seconds),
            shown(trend.saved_seconds),
            shown(trend.latency_seconds),
            shown(trend.longest_latency_seconds),
            show_count(trend.late),
            trend
                .suggested_lag_seconds
                .map(|lag| show_duration(Duration::from_secs(lag)))
                .unwrap_or_default(),
        ]
    };
    let rows: Vec<_> = trends.iter().map(row).collect();
    let head = [
        "stream",
        "passes",
        "failed",
        "rows",
        "changes read",
        "seconds each",
        "read whole",
        "seconds each",
        "seconds saved",
        "latency",
        "longest",
        "late rows",
        "lag for them",
    ];
    output::table(&head, &rows)?;
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
        count(pass.conflicts),
        count(pass.rows_late),
        pass.latency_seconds.map(|seconds| format!("{seconds:.2}")).unwrap_or_default(),
        count(pass.differences),
        pass.error.clone().unwrap_or_default(),
    ]
}
