//! Streams whose tables can be seen together as they were at one moment.
//!
//! ```text
//! a place in the log ─▶ every stream reads up to it ─▶ all there? ─▶ snapshots tagged ─▶ checkpoint 7
//!        ▲                                                │ no: a table was read whole, or is beyond it
//!        └──────────────── a new place ◀──────────────────┘
//! ```
//!
//! Commits are per table, so tables of a lake are never all at one moment for a reader who takes the newest of
//! each. A checkpoint says which snapshots are: it names one of every table of the group, all at one place of the
//! source's log, where each transaction is in all of its tables or in none. It is one commit of one table.
//!
//! Nothing depends on when it is written. A snapshot that is at a place stays so, whatever comes after it; a crash
//! before the commit leaves tables that are ahead of the newest checkpoint, and the next pass takes a new place.

mod checkpoints;
mod rows;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use chrono::{DateTime, Utc};
use futures::future::join_all;
use schemars::JsonSchema;
use serde::Serialize;
use tokio::sync::Semaphore;

use self::checkpoints::Part;
pub use self::checkpoints::{Checkpoint, CheckpointTable, checkpoints, checkpoints_of, groups};
use super::pass::Pass;
use super::{Context, Legs, Progress, Stream, StreamReport};
use crate::connectors;
use crate::delta::LogPlace;
use crate::error::{Error, ErrorKind, Result};

/// How many places are tried in one pass. Tables that were read whole are at the second one, and where rows were
/// written meanwhile, or another runner was ahead, at the third; beyond that others are busy with them.
const PLACES: usize = 4;

/// Streams that belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// The streams of it that were selected.
    pub streams: BTreeSet<String>,
    /// Whether these are all.
    pub whole: bool,
    /// How many checkpoints are kept.
    pub keep: u64,
}

impl Group {
    /// Checkpoints that are kept where nothing is said. The tags of each are in the metadata of its tables, which
    /// every commit writes: about 10 kB for so many.
    pub const KEPT: u64 = 100;
}

/// A stream of a group, in a pass with the others.
#[derive(Clone)]
pub struct Member {
    /// The stream.
    pub stream: Stream,
    /// Who watches it.
    pub progress: Arc<Progress>,
}

/// What a pass did for its group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Checkpointed {
    /// The group.
    pub group: String,
    /// The newest checkpoint that shows what the pass has read; absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<u64>,
    /// Whether this pass wrote it. Where nothing has changed, the one before still stands.
    pub written: bool,
    /// The place in the source's log that it shows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position: Option<String>,
    /// When the source was asked for that place, by its own clock: what was committed before is in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub source_time: Option<DateTime<Utc>>,
    /// Why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

/// Runs one pass of streams of one group: to one place, then a checkpoint, then to their targets. `permits` says
/// how many work at once. Never fails: the reports say what happened.
pub async fn together(
    context: &Context,
    members: Vec<Member>,
    legs: Legs,
    permits: &Arc<Semaphore>,
) -> Vec<StreamReport> {
    let begin = |member: &Member| Ok(Pass::begin(context, &member.stream, &member.progress));
    let mut passes = Passes { under_way: members.iter().map(begin).collect(), permits: permits.clone() };
    let group = members.first().and_then(|member| member.stream.group.clone());
    let mut checkpoint = None;
    if let (Some(group), true) = (&group, legs != Legs::Load) {
        let outcome = passes.reach_checkpoint(context, group, &members).await;
        let (number, written, place, missing) = match outcome {
            Ok((number, written, place)) => (Some(number), written, Some(place), None),
            Err(why) => (None, false, None, Some(why)),
        };
        checkpoint = Some(Checkpointed {
            group: group.name.clone(),
            checkpoint: number,
            written,
            position: place.as_ref().map(ToString::to_string),
            source_time: place.map(|place| place.time),
            missing,
        });
    }
    if legs != Legs::Extract {
        passes.each(Pass::load).await;
    }
    let ended = passes.under_way.into_iter().zip(&members).map(async |(pass, member)| match pass {
        Ok(pass) => StreamReport { checkpoint: checkpoint.clone(), ..Box::pin(pass.end()).await },
        Err(Panicked) => StreamReport::panicked(&member.stream.name, context.run),
    });
    join_all(ended).await
}

/// A pass that ended in a bug of ours.
struct Panicked;

/// The passes of a group's streams.
struct Passes {
    under_way: Vec<Result<Pass, Panicked>>,
    permits: Arc<Semaphore>,
}

impl Passes {
    /// Goes on with all of them, as many at once as may, each in a task of its own.
    async fn each<F: Future<Output = Pass> + Send + 'static>(&mut self, go_on: impl Fn(Pass) -> F) {
        let tasks: Vec<_> = std::mem::take(&mut self.under_way)
            .into_iter()
            .map(|pass| {
                let (pass, permits) = (pass.map(&go_on), self.permits.clone());
                tokio::spawn(async move {
                    let _permit = permits.acquire_owned().await;
                    match pass {
                        Ok(pass) => Ok(pass.await),
                        Err(panicked) => Err(panicked),
                    }
                })
            })
            .collect();
        let ended = join_all(tasks).await.into_iter();
        self.under_way = ended.map(|pass| pass.unwrap_or(Err(Panicked))).collect();
    }

    /// Brings all to one place, and writes down that they are there. An error says why not.
    async fn reach_checkpoint(
        &mut self,
        context: &Context,
        group: &Group,
        members: &[Member],
    ) -> Result<(u64, bool, LogPlace), String> {
        let here: BTreeSet<&str> = members.iter().map(|member| member.stream.name.as_str()).collect();
        let absent: Vec<_> = group.streams.iter().filter(|name| !here.contains(name.as_str())).collect();
        if !group.whole || !absent.is_empty() {
            self.each(|pass| pass.extract(None)).await;
            return Err(match absent.first() {
                Some(absent) => format!("`{absent}` did not run"),
                None => "not all of its streams were selected".to_owned(),
            });
        }
        let place = self.reach_one_place(members).await?;
        let parts = self.parts(&place)?;
        let recorded = checkpoints::record(context, &group.name, &place, &parts, group.keep).await;
        let (number, written) = recorded.map_err(|error| error.to_string())?;
        Ok((number, written, place))
    }

    async fn reach_one_place(&mut self, members: &[Member]) -> Result<LogPlace, String> {
        let mut last = String::new();
        for _ in 0..PLACES {
            let place = match members.first() {
                Some(member) => place(&member.stream).await,
                None => return Err("it has no streams".to_owned()),
            };
            // Without a place the streams go on as they would alone.
            let up_to = place.as_ref().ok().cloned();
            self.each(|pass| pass.extract(up_to.clone())).await;
            let place = place.map_err(|error| error.to_string())?;
            match self.parts(&place) {
                Ok(_) => return Ok(place),
                Err(why) => last = why,
            }
            let stopped = members.iter().any(|member| member.progress.stop.load(Ordering::Relaxed));
            if stopped || self.under_way.iter().any(|pass| !matches!(pass, Ok(Pass { outcome: Ok(()), .. })))
            {
                break;
            }
        }
        Err(last)
    }

    /// What a checkpoint at a place consists of, if all are there.
    fn parts(&self, place: &LogPlace) -> Result<Vec<Part>, String> {
        let part = |pass: &Result<Pass, Panicked>| {
            let Ok(pass) = pass else { return Err("a stream ended in a bug of frazil".to_owned()) };
            let name = &pass.stream.name;
            if pass.outcome.is_err() {
                return Err(format!("`{name}` failed"));
            }
            let extract = pass.report.extract.as_ref();
            let at = extract.filter(|extract| extract.reached.as_ref() == Some(place));
            let snapshot = at.and_then(|extract| extract.snapshot);
            let snapshot = snapshot.ok_or_else(|| format!("`{name}` is not at the place of the others"))?;
            Ok(Part {
                stream: name.clone(),
                source: format!("{}:{}", pass.stream.source.name(), pass.stream.source_table),
                lake_table: pass.stream.lake_table.clone(),
                snapshot,
            })
        };
        self.under_way.iter().map(part).collect()
    }
}

/// Where the log of a stream's source ends now. The source is let go at once: it may have one place for readers.
async fn place(stream: &Stream) -> Result<LogPlace> {
    let place = connectors::source(&stream.source)?.end_of_log().await?;
    place.ok_or_else(|| {
        Error::new(ErrorKind::Config, "the log of this source cannot be read up to a place that was chosen")
            .with("connection", stream.source.name())
            .hint("leave `group` out; it is for `change: log` of Postgres")
    })
}
