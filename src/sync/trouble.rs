//! What keeps a stream from going on where it is: found by asking the source, the lake and the target.
//!
//! ```text
//! source ── can it go on from the position? ──┐
//! lake ──── is there one, do both copies agree? ├─▶ troubles ─▶ findings for people
//! target ── is what it shows still there? ────┘            └─▶ repairs
//! ```

use super::{Stream, plan_from};
use crate::connectors;
use crate::delta::{SnapshotId, Watermark};
use crate::error::{Error, ErrorKind, Result};
use crate::lake::{Lake, LakeTable, TableMode};
use crate::memory::Budget;
use crate::source::{ChangeDetection, Extent, Finding, ReadPlan, Severity};
use crate::sync::TargetRef;

/// Something that is not as it was left.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Nothing was read yet.
    NoTable,
    /// A first read goes on.
    FirstRead,
    /// Something cannot be asked.
    Unknown(Error),
    /// The lake table has rows and no position.
    Lost,
    /// The source cannot go on from the position.
    Unusable,
    /// The copy of the position in the table's properties says something else.
    Mirror,
    /// The target was never loaded.
    NotLoaded,
    /// The target has rows, and no record of what they show.
    NoRecord,
    /// The target shows another lake table.
    Another,
    /// The target shows some of a change.
    Halfway,
    /// The target shows a snapshot that was rolled back.
    RolledBack,
    /// The target shows a snapshot that is not there any more.
    Expired,
}

impl Trouble {
    /// In words, with what to do.
    pub(super) fn finding(&self) -> Finding {
        let (severity, message, remedy) = match self {
            Self::Unknown(error) => return Finding::from(error),
            Self::NoTable => {
                (Severity::Note, "the lake has no such table yet: the next run reads everything", None)
            }
            Self::FirstRead => {
                (Severity::Note, "a first read is under way: the next run goes on with it", None)
            }
            Self::Lost => (
                Severity::Warning,
                "the lake table has rows and no position: the next run reads everything",
                Some(
                    "`frazil state repair` puts back the last position that is known; or `frazil rollback`, `frazil state set`",
                ),
            ),
            Self::Unusable => (
                Severity::Warning,
                "the source cannot go on from the position: the next run reads everything",
                Some(
                    "nothing, if that may take its time: it commits only rows that differ; else `frazil state repair` goes back to the last position that the source knows",
                ),
            ),
            Self::Mirror => (
                Severity::Warning,
                "the table's property says another position than its snapshot: what counts is the snapshot's",
                Some("`frazil state repair` sets the property right"),
            ),
            Self::NotLoaded => (Severity::Note, "the target was never loaded", None),
            Self::NoRecord => (
                Severity::Warning,
                "the target has rows, and no record of the snapshot that they show",
                Some("`frazil state repair` loads it anew: its rows are replaced"),
            ),
            Self::Another => (
                Severity::Warning,
                "the target shows another lake table: the next load replaces all its rows",
                Some("nothing, if the lake table was made anew"),
            ),
            Self::Halfway => (
                Severity::Note,
                "the target shows some of a change: its load ended between two transactions, or is under way",
                None,
            ),
            Self::RolledBack => (
                Severity::Warning,
                "the target shows a snapshot that the lake table was rolled back from",
                Some("`frazil load` takes it back there too"),
            ),
            Self::Expired => (
                Severity::Error,
                "the snapshot that the target shows is not in the lake any more",
                Some("`frazil load --full-refresh`, or `frazil state repair`, loads the target anew"),
            ),
        };
        Finding { severity, message: message.to_owned(), remedy: remedy.map(str::to_owned) }
    }
}

/// All that is wrong with a stream, and its lake table, if there is one.
pub(super) async fn troubles(
    lake: &Lake,
    stream: &Stream,
    budget: Budget,
) -> Result<(Option<LakeTable>, Vec<Trouble>)> {
    let Some(table) = lake.table(&stream.lake_table).await? else {
        return Ok((None, vec![Trouble::NoTable]));
    };
    let mut troubles = Vec::new();
    let position = table.position()?;
    if position.as_ref().is_some_and(|position| position.unfinished) {
        troubles.push(Trouble::FirstRead);
    }
    let from = position.as_ref().map(|position| position.watermark.clone());
    let plan = plan_from(stream, from, budget).await;
    match (&position, plan) {
        (_, Err(error)) => troubles.push(Trouble::Unknown(error)),
        (None, Ok(_)) if table.current().is_some() => troubles.push(Trouble::Lost),
        (Some(_), Ok(plan)) if !goes_on(&plan) => troubles.push(Trouble::Unusable),
        _ => {}
    }
    if !table.position_is_mirrored() {
        troubles.push(Trouble::Mirror);
    }
    if let Some(to) = &stream.target {
        troubles.extend(
            of_target(stream, to, &table).await.unwrap_or_else(|error| vec![Trouble::Unknown(error)]),
        );
    }
    Ok((Some(table), troubles))
}

async fn of_target(stream: &Stream, to: &TargetRef, table: &LakeTable) -> Result<Vec<Trouble>> {
    let applied = connectors::target(&to.connection)?.applied(&stream.name, &to.table).await?;
    let Some(applied) = applied else {
        let filled = table.current().is_some() && has_rows(to).await?;
        return Ok(vec![if filled { Trouble::NoRecord } else { Trouble::NotLoaded }]);
    };
    if applied.lake_table != table.uuid() {
        return Ok(vec![Trouble::Another]);
    }
    let halfway = applied.halfway.map(|_| Trouble::Halfway);
    Ok(halfway.into_iter().chain(ancestry(table, applied.snapshot)).collect())
}

/// Whether a target's table is there and holds anything.
async fn has_rows(to: &TargetRef) -> Result<bool> {
    let id = connectors::target(&to.connection)?.as_source(&to.table);
    match connectors::source(&to.connection)?.count(&id, None).await {
        Ok(rows) => Ok(rows > 0),
        Err(error) if error.kind() == ErrorKind::Config => Ok(false),
        Err(error) => Err(error),
    }
}

/// Refuses to add rows to a table that may hold them already: nobody could tell them apart afterwards.
pub(super) async fn refuse_doubling(stream: &Stream, to: &TargetRef, table: &LakeTable) -> Result<()> {
    if table.mode() != TableMode::Append || !has_rows(to).await? {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Config, "the target has rows, and no record of the snapshot that they show")
        .with("stream", &stream.name)
        .with("table", &to.table)
        .hint("an append table would be doubled: empty the target, name another one, or let `frazil state repair` replace its rows"))
}

/// Whether the snapshot that the target shows leads to the one that the lake shows.
fn ancestry(table: &LakeTable, applied: SnapshotId) -> Option<Trouble> {
    if table.current().is_some_and(|current| table.is_ancestor(applied, current)) {
        return None;
    }
    let there = table.snapshots().iter().any(|snapshot| snapshot.id == applied);
    Some(if there { Trouble::RolledBack } else { Trouble::Expired })
}

/// A stream that is read whole each time goes on from anywhere.
pub(super) fn goes_on(plan: &ReadPlan) -> bool {
    plan.continues || plan.change == ChangeDetection::Full || plan.extent != Extent::Whole
}

/// The newest earlier position that the source can go on from.
pub(super) async fn earlier_position(
    table: &LakeTable,
    stream: &Stream,
    budget: Budget,
) -> Result<Option<Watermark>> {
    let now = table.position()?.map(|position| position.watermark);
    for watermark in
        table.past_positions().into_iter().filter(|past| Some(past) != now.as_ref()).take(MOST_TRIED)
    {
        let plan = plan_from(stream, Some(watermark.clone()), budget).await?;
        if plan.change != ChangeDetection::Full && goes_on(&plan) {
            return Ok(Some(watermark));
        }
    }
    Ok(None)
}

/// Earlier positions that are tried: each asks the source.
const MOST_TRIED: usize = 20;
