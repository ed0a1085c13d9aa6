//! `status`: where everything is, from the lake and the targets themselves.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::args::{Global, Output, StreamsArgs};
use super::output::{self, Exit};
use super::setup::{Setup, setup};
use crate::connectors;
use crate::error::Result;
use crate::history::{Filter, History, Pass};
use crate::lake::{Lake, LakeTable};
use crate::sync::Stream;

/// Where one stream is.
#[derive(Debug, Serialize)]
struct StreamStatus {
    stream: String,
    /// What the lake covers of the source.
    position: Option<serde_json::Value>,
    /// A first read is under way.
    unfinished: bool,
    /// A change that did not pass its audit: the tag that keeps it, and what was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    held: Option<serde_json::Value>,
    /// The lake's snapshot.
    snapshot: Option<i64>,
    committed_at: Option<DateTime<Utc>>,
    /// The snapshot that the target shows.
    applied: Option<i64>,
    /// Snapshots that the target does not show yet.
    behind: Option<usize>,
    last_run: Option<Pass>,
    /// Rows that came late in the passes of the history.
    rows_late: u64,
    /// The `lag` that finds nearly all like them.
    #[serde(skip_serializing_if = "Option::is_none")]
    suggested_lag_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Prints one line a stream.
pub(super) async fn status(global: &Global, args: &StreamsArgs) -> Result<Exit> {
    let Setup { config, streams } = setup(global, args).await?;
    let lake = Lake::open(config.lake()).await?;
    let history = History::open_existing(&History::place(config.path()))?;
    let everything = Filter { streams: Vec::new(), verdicts: Vec::new(), since: None, limit: 0 };
    let trends = history.as_ref().map(|history| history.trends(&everything)).transpose()?.unwrap_or_default();
    let mut all = Vec::with_capacity(streams.len());
    for stream in &streams {
        let mut status = StreamStatus {
            stream: stream.name.clone(),
            position: None,
            unfinished: false,
            held: None,
            snapshot: None,
            committed_at: None,
            applied: None,
            behind: None,
            last_run: match &history {
                Some(history) => history.last(&stream.name)?,
                None => None,
            },
            rows_late: 0,
            suggested_lag_seconds: None,
            error: None,
        };
        if let Some(trend) = trends.iter().find(|trend| trend.stream == stream.name) {
            (status.rows_late, status.suggested_lag_seconds) = (trend.late, trend.suggested_lag_seconds);
        }
        if let Err(error) = look(stream, &lake, &mut status).await {
            status.error = Some(error.to_string());
            output::say_error(&error.with("stream", &stream.name), global.verbose);
        }
        all.push(status);
    }
    if global.output == Output::Json {
        all.iter().try_for_each(output::json)?;
    } else {
        let rows: Vec<_> = all.iter().map(row).collect();
        output::table(
            &["stream", "last run", "verdict", "lake snapshot", "committed", "target", "position"],
            &rows,
        )?;
    }
    let failed = all.iter().filter(|status| status.error.is_some()).count();
    Ok(match failed {
        0 => Exit::Done,
        some if some < all.len() => Exit::Partial,
        _ => Exit::Failed,
    })
}

async fn look(stream: &Stream, lake: &Lake, status: &mut StreamStatus) -> Result<()> {
    let table = lake.table(&stream.lake_table).await?;
    if let Some(table) = &table {
        if let Some(position) = table.position()? {
            status.position = Some(decoded(position.watermark.as_str()));
            status.unfinished = position.unfinished;
        }
        status.held = table.held();
        status.snapshot = table.current().map(|snapshot| snapshot.0);
        status.committed_at = table
            .snapshots()
            .iter()
            .find(|snapshot| Some(snapshot.id.0) == status.snapshot)
            .map(|snapshot| snapshot.committed_at);
    }
    if let Some(to) = &stream.target {
        let applied = connectors::target(&to.connection)?.applied(&stream.name, &to.table).await?;
        status.applied = applied.map(|applied| applied.snapshot.0);
        status.behind = table.as_ref().map(|table| behind(table, status.applied));
    }
    Ok(())
}

/// How many of the snapshots up to the current one lie after the applied one.
fn behind(table: &LakeTable, applied: Option<i64>) -> usize {
    let snapshots = table.snapshots();
    let mut next = table.current();
    let mut count = 0;
    while let Some(id) = next.filter(|id| Some(id.0) != applied) {
        count += 1;
        next = snapshots.iter().find(|snapshot| snapshot.id == id).and_then(|snapshot| snapshot.parent);
    }
    count
}

fn row(status: &StreamStatus) -> Vec<String> {
    let time = |time: DateTime<Utc>| time.format("%Y-%m-%d %H:%M:%S").to_string();
    let last = status.last_run.as_ref();
    let target = match (status.applied, status.behind) {
        (_, None) => "-".to_owned(),
        (Some(_), Some(0)) => "up to date".to_owned(),
        (Some(_), Some(behind)) => format!("{behind} behind"),
        (None, Some(_)) => "not loaded yet".to_owned(),
    };
    let position = match (&status.position, status.unfinished) {
        (Some(position), true) => format!("first read under way: {position}"),
        (Some(position), false) => position.to_string(),
        (None, _) => String::new(),
    };
    let position = match status.held.as_ref().and_then(|held| held["tag"].as_str()) {
        Some(tag) => format!("{tag} is kept aside; {position}"),
        None => position,
    };
    vec![
        status.stream.clone(),
        last.map(|pass| time(pass.started_at)).unwrap_or_else(|| "never".to_owned()),
        last.map(|pass| pass.verdict.clone()).unwrap_or_default(),
        status.snapshot.map(|id| id.to_string()).unwrap_or_default(),
        status.committed_at.map(time).unwrap_or_default(),
        target,
        position,
    ]
}

/// A watermark is JSON by convention; what is not stays text.
pub(super) fn decoded(watermark: &str) -> serde_json::Value {
    serde_json::from_str(watermark).unwrap_or_else(|_| watermark.into())
}
