//! `plan`: what a run would move, and by which statements. Nothing is changed.

use chrono::Utc;
use serde::Serialize;

use super::args::{Global, Output, StreamsArgs};
use super::groups;
use super::inspect::{Inspection, inspect};
use super::output::{self, Exit};
use super::setup::{Setup, setup};
use crate::config::units::{show_bytes, show_rows};
use crate::error::{ErrorKind, Result};
use crate::lake::Lake;
use crate::source::Extent;
use crate::sync::{Legs, Stream};

/// What a run of one stream would do.
#[derive(Debug, Serialize)]
struct StreamPlan {
    stream: String,
    change: String,
    cursor: Option<String>,
    cursor_indexed: bool,
    extent: Extent,
    rows: Option<u64>,
    bytes: Option<u64>,
    statement: String,
    notes: Vec<String>,
    lake: Vec<String>,
    target: Vec<String>,
}

/// Plans every stream; a stream that cannot be planned is said and the others go on.
pub(super) async fn plan(global: &Global, args: &StreamsArgs, legs: Legs) -> Result<Exit> {
    let Setup { config, streams } = setup(global, args).await?;
    let budget = args.engine.budget()?;
    let lake = Lake::open(config.lake()).await?;
    let mut failed = Vec::new();
    for stream in &streams {
        let planned = async {
            let inspection = inspect(stream, &lake, budget).await?;
            plan_stream(stream, &inspection, legs).await
        };
        match planned.await {
            Ok(plan) if global.output == Output::Json => output::json(&plan)?,
            Ok(plan) => say(&plan, legs)?,
            Err(error) => {
                let error = error.with("stream", &stream.name);
                output::say_error(&error, global.verbose);
                failed.push(error.kind());
            }
        }
    }
    if legs != Legs::Load {
        let groups = groups::look(&streams, &lake, budget, Utc::now()).await?;
        groups.iter().try_for_each(|group| group.say_planned(global))?;
    }
    Ok(match failed.len() {
        0 => Exit::Done,
        some if some < streams.len() => Exit::Partial,
        _ if failed.iter().all(|kind| *kind == ErrorKind::Config) => Exit::Usage,
        _ => Exit::Failed,
    })
}

async fn plan_stream(stream: &Stream, inspection: &Inspection, legs: Legs) -> Result<StreamPlan> {
    let plan = &inspection.plan;
    let target = match legs {
        Legs::Extract => Vec::new(),
        Legs::Load | Legs::Both => inspection.target_statements(stream).await?,
    };
    Ok(StreamPlan {
        stream: stream.name.clone(),
        change: inspection.change(),
        cursor: plan.cursor.clone(),
        cursor_indexed: plan.cursor_indexed,
        extent: plan.extent,
        rows: plan.rows,
        bytes: plan.bytes,
        statement: plan.statement.clone(),
        notes: plan.notes.clone(),
        lake: lake_steps(inspection),
        target,
    })
}

/// What would happen to the lake's table: created, or the way to what the source is now.
fn lake_steps(inspection: &Inspection) -> Vec<String> {
    let spec = &inspection.spec;
    let Some(evolution) = &inspection.evolution else {
        let mut text = format!("create table {} ({})", spec.id, inspection.mode());
        if !spec.partition_by.is_empty() {
            text.push_str(&format!(" partitioned by {}", spec.partition_by.join(", ")));
        }
        if !spec.sort_by.is_empty() {
            text.push_str(&format!(" sorted by {}", spec.sort_by.join(", ")));
        }
        let columns = spec.schema.fields().iter();
        return std::iter::once(text)
            .chain(columns.map(|field| {
                let required = if field.is_nullable() { "" } else { " not null" };
                format!("  {} {}{required}", field.name(), field.data_type())
            }))
            .collect();
    };
    evolution.steps.clone()
}

fn say(plan: &StreamPlan, legs: Legs) -> Result<()> {
    output::line(&plan.stream)?;
    if legs != Legs::Load {
        let size = match (plan.rows, plan.bytes) {
            (Some(rows), Some(bytes)) => format!("about {}, {}", show_rows(rows), show_bytes(bytes)),
            (Some(rows), None) => format!("about {}", show_rows(rows)),
            (None, Some(bytes)) => format!("about {}", show_bytes(bytes)),
            (None, None) => "an unknown number of rows".to_owned(),
        };
        let extent = match plan.extent {
            Extent::Whole => "the whole table",
            Extent::Changed | Extent::Log => "what changed",
        };
        output::line(format!("  read    {extent}: {size}; {}", plan.change))?;
        output::line(format!("          {}", plan.statement.replace('\n', "\n          ")))?;
        for note in &plan.notes {
            output::line(format!("  note    {note}"))?;
        }
        let unchanged = vec!["no change of the table".to_owned()];
        let steps = if plan.lake.is_empty() { &unchanged } else { &plan.lake };
        output::line(format!("  lake    {}", steps.join("\n          ")))?;
    }
    plan.target.iter().try_for_each(|statement| {
        output::line(format!("  target  {}", statement.trim_end().replace('\n', "\n          ")))
    })
}
