//! `checkpoints`: which snapshots show the tables of a group as they were at one moment, and reading them.

use std::sync::Arc;

use super::args::{Global, Output};
use super::lake_args::CheckpointsArgs;
use super::lake_table::lake_settings;
use super::output::{self, Exit};
use crate::config::did_you_mean;
use crate::error::{Error, ErrorKind, Result};
use crate::lake::Lake;
use crate::memory::Budget;
use crate::query::{AsOf, Together};
use crate::sync::{self, Checkpoint};

/// Memory for the list, which is small: the least that there can be.
const MEMORY: u64 = 128 << 20;

/// Lists checkpoints, newest first.
pub(super) async fn list(global: &Global, args: &CheckpointsArgs) -> Result<Exit> {
    let lake = Lake::open(&lake_settings(global, args.lake.overrides())?).await?;
    let budget = Budget::new(MEMORY, 1)?;
    let groups = match &args.group {
        Some(group) => vec![group.clone()],
        None => sync::groups(&lake).await?,
    };
    let mut rows = Vec::new();
    for group in &groups {
        for checkpoint in of_group(&lake, budget, group).await?.into_iter().rev() {
            match global.output {
                Output::Json => output::json(&checkpoint)?,
                _ => rows.push(row(&checkpoint)),
            }
        }
    }
    if global.output != Output::Json {
        output::table(&["group", "checkpoint", "position", "source time", "committed", "tables"], &rows)?;
    }
    Ok(Exit::Done)
}

fn row(checkpoint: &Checkpoint) -> Vec<String> {
    let tables = checkpoint.tables.iter().map(|table| format!("{}@{}", table.lake_table, table.snapshot));
    let time = |at: chrono::DateTime<chrono::Utc>| at.format("%Y-%m-%d %H:%M:%S%.3f").to_string();
    vec![
        checkpoint.group.clone(),
        checkpoint.checkpoint.to_string(),
        checkpoint.position.clone(),
        time(checkpoint.source_time),
        time(checkpoint.committed_at),
        tables.collect::<Vec<_>>().join(", "),
    ]
}

/// `shop`, the newest checkpoint of a group, or `shop@7`.
pub(super) async fn as_of(lake: &Lake, budget: Budget, text: &str) -> Result<AsOf> {
    let (group, number) = match text.split_once('@') {
        None => (text, None),
        Some((group, number)) => {
            let wrong = || {
                Error::new(ErrorKind::Config, format!("`{text}` is not a checkpoint"))
                    .hint("write a group, `shop`, or one of its checkpoints, `shop@7`")
            };
            (group, Some(number.parse::<u64>().map_err(|_| wrong())?))
        }
    };
    let mut known = of_group(lake, budget, group).await?;
    let range = match (known.first(), known.last()) {
        (Some(first), Some(last)) => format!("it has {} to {}", first.checkpoint, last.checkpoint),
        _ => "it has none yet".to_owned(),
    };
    known.retain(|it| number.is_none_or(|number| it.checkpoint == number));
    let checkpoint = known.pop().ok_or_else(|| {
        Error::new(ErrorKind::Config, "the group has no such checkpoint").with("group", group).hint(range)
    })?;
    Ok(AsOf::Together(Arc::new(Together {
        name: format!("checkpoint {} of the group `{group}`", checkpoint.checkpoint),
        tables: checkpoint.tables.into_iter().map(|it| (it.lake_table, it.table_uuid, it.snapshot)).collect(),
    })))
}

async fn of_group(lake: &Lake, budget: Budget, group: &str) -> Result<Vec<Checkpoint>> {
    match sync::checkpoints(lake, group, budget).await? {
        Some(checkpoints) => Ok(checkpoints),
        None => {
            let known = sync::groups(lake).await?;
            let error = Error::new(ErrorKind::Config, "the lake has no checkpoints of this group")
                .with("group", group);
            Err(error.hint(match did_you_mean(group, known.iter().map(String::as_str)) {
                Some(meant) => meant,
                None => {
                    "streams with the same `group` write one at the end of a run of all of them".to_owned()
                }
            }))
        }
    }
}
