//! What `check` and `plan` say of groups: which checkpoint is the newest, and whether the tables are beyond it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::args::{Global, Output};
use super::output;
use crate::config::units::show_duration;
use crate::error::Result;
use crate::lake::Lake;
use crate::memory::Budget;
use crate::source::{Finding, Severity};
use crate::sync::{self, Checkpoint, Group, Stream};

/// Where a group stands.
#[derive(Debug, Serialize)]
pub(super) struct GroupState {
    group: String,
    ok: bool,
    /// Those that are selected.
    streams: Vec<String>,
    keep: u64,
    /// The newest.
    checkpoint: Option<u64>,
    position: Option<String>,
    source_time: Option<DateTime<Utc>>,
    /// How old the state is that it shows, by our clock.
    age_seconds: Option<f64>,
    findings: Vec<Finding>,
    #[serde(skip)]
    whole: bool,
}

/// Looks at the groups of these streams.
pub(super) async fn look(
    streams: &[Stream],
    lake: &Lake,
    budget: Budget,
    now: DateTime<Utc>,
) -> Result<Vec<GroupState>> {
    let mut members: BTreeMap<&str, (&Arc<Group>, Vec<&Stream>)> = BTreeMap::new();
    for stream in streams {
        let Some(group) = &stream.group else { continue };
        members.entry(&group.name).or_insert_with(|| (group, Vec::new())).1.push(stream);
    }
    let mut states = Vec::new();
    for (group, streams) in members.into_values() {
        let newest = sync::checkpoints(lake, &group.name, budget).await?.and_then(|mut all| all.pop());
        let beyond = match &newest {
            Some(newest) => beyond(lake, newest, &streams).await?,
            None => Vec::new(),
        };
        let age = newest.as_ref().map(|newest| (now - newest.source_time).as_seconds_f64().max(0.0));
        states.push(GroupState {
            group: group.name.clone(),
            ok: true,
            streams: streams.iter().map(|stream| stream.name.clone()).collect(),
            keep: group.keep,
            findings: findings(group, newest.as_ref(), &beyond),
            checkpoint: newest.as_ref().map(|newest| newest.checkpoint),
            position: newest.as_ref().map(|newest| newest.position.clone()),
            source_time: newest.as_ref().map(|newest| newest.source_time),
            age_seconds: age,
            whole: group.whole,
        });
    }
    Ok(states)
}

/// Streams whose tables show something else by now.
async fn beyond(lake: &Lake, newest: &Checkpoint, streams: &[&Stream]) -> Result<Vec<String>> {
    let mut beyond = Vec::new();
    for stream in streams {
        let there = newest.tables.iter().find(|table| table.stream == stream.name);
        let now = lake.table(&stream.lake_table).await?.and_then(|table| table.current());
        if there.map(|table| table.snapshot) != now {
            beyond.push(stream.name.clone());
        }
    }
    Ok(beyond)
}

fn findings(group: &Group, newest: Option<&Checkpoint>, beyond: &[String]) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let (Some(newest), false) = (newest, beyond.is_empty()) {
        let changed = beyond.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        findings.push(Finding {
            severity: Severity::Warning,
            message: format!("tables have changed since checkpoint {}: {changed}", newest.checkpoint),
            remedy: Some(
                "run all streams of the group together; the report says what keeps a checkpoint away".into(),
            ),
        });
    }
    let note = match (newest, group.whole) {
        (_, false) => "not all of its streams are selected: a run of these writes no checkpoint",
        (None, true) => "there is no checkpoint yet: the first run of all its streams writes one",
        (Some(_), true) => return findings,
    };
    findings.push(Finding { severity: Severity::Note, message: note.to_owned(), remedy: None });
    findings
}

impl GroupState {
    /// What `check` found.
    pub(super) fn say_checked(&self, global: &Global, width: usize) -> Result<()> {
        if global.output == Output::Json {
            return output::json(self);
        }
        let name = format!("group {}", self.group);
        output::line(format!(
            "{:<6}  {name:<width$}  {}, the newest {} kept",
            "ok",
            self.stands(),
            self.keep
        ))?;
        for finding in &self.findings {
            output::line(format!("        {}: {}", finding.severity.name(), finding.message))?;
            finding.remedy.iter().try_for_each(|remedy| output::line(format!("          {remedy}")))?;
        }
        Ok(())
    }

    /// What a run would do.
    pub(super) fn say_planned(&self, global: &Global) -> Result<()> {
        if global.output == Output::Json {
            return output::json(self);
        }
        output::line(format!("group {}", self.group))?;
        let what = match self.whole {
            true => "all streams to one place of the log, then a checkpoint if one has changed",
            false => "no checkpoint: not all of its streams are selected",
        };
        output::line(format!("  lake    {what} ({})", self.stands()))
    }

    fn stands(&self) -> String {
        match (self.checkpoint, self.age_seconds) {
            (Some(number), Some(age)) => format!("checkpoint {number} shows the source {} ago", rounded(age)),
            _ => "no checkpoint yet".to_owned(),
        }
    }
}

/// About how long: `3h`.
fn rounded(seconds: f64) -> String {
    let seconds = seconds as u64;
    let unit = [86_400, 3600, 60].into_iter().find(|unit| seconds >= 2 * unit).unwrap_or(1);
    show_duration(Duration::from_secs(seconds / unit * unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_about_so_long() {
        let shown = [0.4, 59.9, 119.0, 120.0, 3725.0, 7200.0, 200_000.0].map(rounded);
        assert_eq!(shown, ["0ms", "59s", "119s", "2m", "62m", "2h", "2d"]);
    }
}
