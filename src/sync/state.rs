//! Positions in people's hands: whether a stream can go on from where it is, and where to set it.
//!
//! A position is set by a commit that moves nothing but the position, so it has a snapshot, an author and
//! a way back (`frazil rollback`) like any other change of the table.

use std::collections::BTreeMap;

use super::trouble::{Trouble, goes_on, troubles};
use super::{Stream, read_request};
use crate::connectors;
use crate::delta::{SnapshotId, Watermark};
use crate::error::{Error, ErrorKind, Result};
use crate::lake::{Change, Effect, Lake};
use crate::memory::Budget;
use crate::source::{ChangeDetection, Finding, ReadPlan};

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
    let (_, troubles) = troubles(lake, stream, budget).await?;
    Ok(troubles.iter().map(Trouble::finding).collect())
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
