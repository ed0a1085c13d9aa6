//! Positions in people's hands: whether a stream can go on from where it is, and where to set it.
//!
//! A position is set by a commit that moves nothing but the position, so it has a snapshot, an author and
//! a way back (`frazil rollback`) like any other change of the table.

use std::collections::BTreeMap;

use super::{Stream, read_request};
use crate::connectors;
use crate::delta::{SnapshotId, Watermark};
use crate::error::{Error, ErrorKind, Result};
use crate::lake::{Change, Effect, Lake, LakeTable};
use crate::memory::Budget;
use crate::source::{ChangeDetection, Extent, Finding, ReadPlan, Severity};

/// A position that was set.
#[derive(Debug)]
pub struct Moved {
    /// Where the stream was.
    pub from: Option<Watermark>,
    /// Where it is.
    pub to: Watermark,
    /// The snapshot that says so.
    pub snapshot: SnapshotId,
}

/// What keeps a stream from going on where it is, by asking the source, the lake and the target.
pub async fn verify(lake: &Lake, stream: &Stream, budget: Budget) -> Result<Vec<Finding>> {
    let Some(table) = lake.table(&stream.lake_table).await? else {
        return Ok(vec![note("the lake has no such table yet: the next run reads everything")]);
    };
    let mut findings = Vec::new();
    let position = table.position()?;
    if position.as_ref().is_some_and(|position| position.unfinished) {
        findings.push(note("a first read is under way: the next run goes on with it"));
    }
    let plan = plan_from(stream, position.as_ref().map(|position| position.watermark.clone()), budget).await;
    match (&position, plan) {
        (_, Err(error)) => findings.push(Finding::from(&error)),
        (None, Ok(_)) if table.current().is_some() => findings.push(warning(
            "the lake table has rows and no position: the next run reads everything",
            "put back a snapshot that has one (`frazil rollback`), or `frazil state set`",
        )),
        (Some(_), Ok(plan)) if !goes_on(&plan) => findings.push(warning(
            "the source cannot go on from the position: the next run reads everything",
            "nothing, if that may take its time; it commits only rows that differ",
        )),
        _ => {}
    }
    if let Some(to) = &stream.target {
        match connectors::target(&to.connection)?.applied(&stream.name, &to.table).await {
            Err(error) => findings.push(Finding::from(&error)),
            Ok(None) => findings.push(note("the target was never loaded")),
            Ok(Some(applied)) if applied.lake_table != table.uuid() => findings.push(warning(
                "the target shows another lake table: the next load replaces all its rows",
                "nothing, if the lake table was made anew",
            )),
            Ok(Some(applied)) => {
                let some = "the target shows some of a change: its load ended between two transactions, or is under way";
                findings.extend(applied.halfway.map(|_| note(some)));
                findings.extend(ancestry(&table, applied.snapshot));
            }
        }
    }
    Ok(findings)
}

/// Whether the snapshot that the target shows leads to the one that the lake shows.
fn ancestry(table: &LakeTable, applied: SnapshotId) -> Option<Finding> {
    let snapshots = table.snapshots();
    let parent = |id: SnapshotId| snapshots.iter().find(|snapshot| snapshot.id == id)?.parent;
    let line = std::iter::successors(table.current(), |id| parent(*id));
    if line.take(snapshots.len() + 1).any(|id| id == applied) {
        return None;
    }
    Some(match snapshots.iter().any(|snapshot| snapshot.id == applied) {
        true => warning(
            "the target shows a snapshot that the lake table was rolled back from",
            "`frazil load` takes it back there too",
        ),
        false => Finding {
            severity: Severity::Error,
            message: "the snapshot that the target shows is not in the lake any more".to_owned(),
            remedy: Some("`frazil load --full-refresh` loads the target anew".to_owned()),
        },
    })
}

/// Sets a stream's position. The source must be able to go on from it.
pub async fn set_position(
    lake: &Lake,
    stream: &Stream,
    budget: Budget,
    to: Watermark,
    author: &str,
) -> Result<Moved> {
    let wrong = |message: &str| Error::new(ErrorKind::Config, message).with("stream", &stream.name);
    let Some(mut table) = lake.table(&stream.lake_table).await? else {
        return Err(wrong("the lake has no such table yet").hint("run `frazil sync` first"));
    };
    let position = table.position()?;
    if position.as_ref().is_some_and(|position| position.unfinished) {
        return Err(wrong("a first read is under way, and only its end has a position to be moved")
            .hint("let `frazil sync` finish it"));
    }
    let plan = plan_from(stream, Some(to.clone()), budget).await?;
    if plan.change == ChangeDetection::Full {
        return Err(wrong("the stream is read whole in every pass: no position of it counts"));
    }
    if !goes_on(&plan) {
        return Err(wrong("the source cannot go on from this position")
            .hint("write it as `frazil state show --output json` prints it"));
    }
    let from = position.map(|position| position.watermark);
    let summary = BTreeMap::from([
        ("frazil.stream".to_owned(), stream.name.clone()),
        ("frazil.set-by".to_owned(), author.to_owned()),
    ]);
    let change =
        Change { files: Vec::new(), effect: Effect::Append, from: from.clone(), to: to.clone(), summary };
    let snapshot = table.commit(change, budget).await?;
    Ok(Moved { from, to, snapshot })
}

/// What the source would do from a position.
pub async fn plan_from(stream: &Stream, from: Option<Watermark>, budget: Budget) -> Result<ReadPlan> {
    let source = connectors::source(&stream.source)?;
    let table = source.table(&stream.source_table).await?;
    let request = read_request(stream, &table, budget)?;
    source.plan(&crate::source::ReadRequest { from, ..request }).await
}

/// A stream that is read whole each time goes on from anywhere.
fn goes_on(plan: &ReadPlan) -> bool {
    plan.continues || plan.change == ChangeDetection::Full || plan.extent != Extent::Whole
}

fn note(message: &str) -> Finding {
    Finding { severity: Severity::Note, message: message.to_owned(), remedy: None }
}

fn warning(message: &str, remedy: &str) -> Finding {
    Finding { severity: Severity::Warning, message: message.to_owned(), remedy: Some(remedy.to_owned()) }
}
