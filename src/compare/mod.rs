//! Do two places hold the same rows? Source and lake, or lake and target.
//!
//! ```text
//! rows here ──▶ digest ─┐                       ┌─ rows of those buckets, here ──┐
//!                       ├─▶ buckets that differ ┤                                ├─▶ keys that differ
//! rows there ─▶ digest ─┘                       └─ rows of those buckets, there ─┘
//! ```
//!
//! A [`digest`] has, for each of some ten thousand buckets of keys, the number of rows and the sum of
//! their fingerprints. Equal digests are equal tables, and that is the usual end: each place was read
//! once, in a few megabytes of memory. Otherwise the rows of the buckets that differ are looked at, key
//! by key ([`look`]), and may be [repaired](repair).
//!
//! A source goes on changing. What was changed since the last pass differs and is no fault; to tell, a
//! pass is made and the keys are looked at once more: what differs both times is a finding.

mod digest;
mod late;
mod look;
mod repair;
mod rows;
mod sample;
mod side;

use std::sync::Arc;
use std::time::Instant;

use arrow::array::ArrayRef;
use serde::{Deserialize, Serialize};

use self::digest::Digest;
use self::look::{Found, Look};
use self::rows::{Columns, Marks};
use self::sample::Range;
use self::side::Side;
use crate::connectors;
use crate::error::{Error, ErrorKind, Result};
use crate::lake::{LakeTable, Lateness, TableMode};
use crate::sync::{self, Context, Progress, Stream};
use crate::target::{Applied, TURN};

/// Which two places are compared. Rows flow from the first to the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pair {
    /// The source as it is, and the lake's current snapshot.
    SourceLake,
    /// The snapshot that the target says it shows, and the target.
    LakeTarget,
}

impl Pair {
    /// `source` and `lake`.
    pub const fn names(self) -> [&'static str; 2] {
        match self {
            Self::SourceLake => ["source", "lake"],
            Self::LakeTarget => ["lake", "target"],
        }
    }
}

/// What to do about differences.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Make a pass and look again, so that what has merely not come yet does not count.
    pub settle: bool,
    /// Make the second place like the first. Of a source only what settled is repaired.
    pub repair: bool,
    /// Tell so many of the keys that differ.
    pub keys: usize,
    /// Look at about so many rows whose keys lie together, somewhere by chance, and not at all of them.
    pub sample: Option<u64>,
}

/// What a comparison found.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// The stream.
    pub stream: String,
    /// Which places.
    pub pair: Pair,
    /// The lake's snapshot that was compared.
    pub snapshot: i64,
    /// Whether a sample was looked at, and not all rows.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub sample: bool,
    /// Rows in the first place and in the second.
    pub rows: [u64; 2],
    /// Keys that the first has and the second lacks.
    pub missing: u64,
    /// Keys that only the second has.
    pub surplus: u64,
    /// Keys whose rows differ.
    pub different: u64,
    /// Of the rows that the lake lacks or has otherwise, those whose cursor lies before the position: they
    /// came later than `lag` looks back, or were changed without their cursor.
    #[serde(skip_serializing_if = "Lateness::is_empty")]
    pub late: Lateness,
    /// Whether all that differs was looked at. Otherwise the three counts are a part of it.
    pub complete: bool,
    /// Columns that were left out, each with why.
    pub left_out: Vec<String>,
    /// How many keys were repaired.
    pub repaired: u64,
    /// Time taken.
    pub seconds: f64,
    /// The keys that differ, as many as were asked for.
    #[serde(skip)]
    pub keys: Keys,
}

/// The keys that differ. They are values of rows: for whoever asked, never for a log.
#[derive(Debug, Default)]
pub struct Keys {
    /// The key's columns.
    pub names: Vec<String>,
    /// Their values, one array a column.
    pub values: Vec<ArrayRef>,
    /// `missing`, `surplus` or `different`, one a key.
    pub kinds: Vec<&'static str>,
}

impl Outcome {
    /// Whether both places have the same rows, so far as they were looked at, or have them now.
    pub fn is_equal(&self) -> bool {
        self.complete && self.missing + self.surplus + self.different == self.repaired
    }
}

/// Compares two places of a stream.
pub async fn compare(
    context: &Context,
    stream: &Stream,
    pair: Pair,
    options: Options,
    progress: &Arc<Progress>,
) -> Result<Outcome> {
    compare_places(context, stream, pair, options, progress)
        .await
        .map_err(|error| error.with("stream", &stream.name))
}

async fn compare_places(
    context: &Context,
    stream: &Stream,
    pair: Pair,
    options: Options,
    progress: &Arc<Progress>,
) -> Result<Outcome> {
    let started = Instant::now();
    let mut table = lake_table(context, stream).await?;
    let only = match options.sample {
        None => None,
        Some(rows) => {
            let at = table.current().expect("a table that is compared has a snapshot");
            Range::draw(&table, at, rows).await?
        }
    };
    let mut places = Places::of(context, stream, pair, &table, only.as_ref()).await?;
    let marks = Marks::new();
    let (columns, digests) = places.digests(&table.key(), &marks, progress).await?;
    let mut outcome = Outcome {
        stream: stream.name.clone(),
        pair,
        snapshot: places.snapshot,
        sample: only.is_some(),
        rows: digests.each_ref().map(Digest::rows),
        missing: 0,
        surplus: 0,
        different: 0,
        late: Lateness::default(),
        complete: true,
        left_out: columns.left_out.clone(),
        repaired: 0,
        seconds: 0.0,
        keys: Keys::default(),
    };
    let (buckets, complete) = digests[0].differing(&digests[1], context.budget.query_bytes() as u64);
    outcome.complete = complete;
    if !buckets.is_empty() {
        let look = Look { columns, buckets: Arc::new(buckets), marks, only };
        let mut found = places.look(&look, progress).await?;
        places.check(stream).await?;
        if pair == Pair::SourceLake && (options.settle || options.repair) && !found.is_empty() {
            // Where connections are limited, those who come next need the place that it holds.
            drop(places);
            sync::extract(context, stream, progress).await?;
            table = lake_table(context, stream).await?;
            places = Places::of(context, stream, pair, &table, look.only.as_ref()).await?;
            outcome.snapshot = places.snapshot;
            found.keep_those_in(&places.look(&look, progress).await?);
        }
        drop(places);
        [outcome.missing, outcome.surplus, outcome.different] = found.counts();
        let found = Arc::new(found);
        if pair == Pair::SourceLake && outcome.missing + outcome.different > 0 {
            outcome.late = Box::pin(late::late(context, stream, &table, &look, &found, progress)).await?;
        }
        if options.repair && !found.is_empty() {
            outcome.repaired = match pair {
                Pair::SourceLake => {
                    repair::lake(context, stream, &mut table, &look, &found, progress).await?
                }
                Pair::LakeTarget => repair::target(context, stream, &table, &look, &found, progress).await?,
            };
        }
        outcome.keys = found.keys(&look, options.keys)?;
    }
    outcome.seconds = started.elapsed().as_secs_f64();
    Ok(outcome)
}

async fn lake_table(context: &Context, stream: &Stream) -> Result<LakeTable> {
    let Some(table) = context.lake.table(&stream.lake_table).await? else {
        return Err(Error::new(ErrorKind::Config, "the lake has no such table yet")
            .with("table", &stream.lake_table)
            .hint("run `frazil run` first"));
    };
    if table.mode() == TableMode::Append {
        return Err(Error::new(ErrorKind::Unsupported, "an append table keeps every state that a row had")
            .with("table", &stream.lake_table)
            .hint("`compare` is for streams of mode `merge` or `replace`"));
    }
    if table.current().is_none() || table.position()?.is_some_and(|position| position.unfinished) {
        return Err(Error::new(ErrorKind::Config, "the first read has not ended yet")
            .with("table", &stream.lake_table)
            .hint("run `frazil run` until it is complete"));
    }
    Ok(table)
}

/// The two, each ready to be read as often as needed.
struct Places {
    sides: [Side; 2],
    snapshot: i64,
    /// The control row by which a target was taken to show that, by its stream: while it stays, so do the rows.
    shown: Option<(String, Option<Applied>)>,
}

impl Places {
    async fn of(
        context: &Context,
        stream: &Stream,
        pair: Pair,
        table: &LakeTable,
        only: Option<&Range>,
    ) -> Result<Self> {
        match pair {
            Pair::SourceLake => {
                let snapshot = table.current().expect("a table with a position has a snapshot");
                let lake = Side::lake(context, table, snapshot, only);
                let sides = [Side::source(context, stream, only).await?, lake];
                Ok(Self { sides, snapshot: snapshot.0, shown: None })
            }
            Pair::LakeTarget => {
                let shared = Side::shared(context, stream, table, only).await?;
                let wanted = shared.as_ref().map(|(_, shown)| &shown.wanted);
                let (target, applied) = Side::target(context, stream, table, wanted, only).await?;
                let snapshot = applied.snapshot;
                let (lake, shown) = match shared {
                    Some((side, all)) => (side, (TURN.to_owned(), all.turn.from)),
                    None => {
                        (Side::lake(context, table, snapshot, only), (stream.name.clone(), Some(applied)))
                    }
                };
                Ok(Self { sides: [lake, target], snapshot: snapshot.0, shown: Some(shown) })
            }
        }
    }

    /// Reads both, once.
    async fn digests(
        &self,
        key: &[String],
        marks: &Marks,
        progress: &Arc<Progress>,
    ) -> Result<(Arc<Columns>, [Digest; 2])> {
        let (one, other) = futures::try_join!(self.sides[0].open(), self.sides[1].open())?;
        let columns = Arc::new(Columns::shared(&one.schema, &other.schema, key)?);
        let digest = || Digest::new(columns.clone(), marks);
        progress.start(one.rows.zip(other.rows).map(|(one, other)| one + other));
        let (one, other) = futures::try_join!(one.drain(digest, progress), other.drain(digest, progress))?;
        Ok((columns, [Digest::sum(one)?, Digest::sum(other)?]))
    }

    /// Refuses what was read from a target while it was loaded: half of it was another state.
    async fn check(&self, stream: &Stream) -> Result<()> {
        let (Some((name, shown)), Some(to)) = (&self.shown, &stream.target) else { return Ok(()) };
        if connectors::target(&to.connection)?.applied(name, &to.table).await? == *shown {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Conflict, "the target was loaded while it was compared")
            .with("table", &to.table)
            .hint("compare again"))
    }

    /// The keys that differ within some buckets.
    async fn look(&self, look: &Look, progress: &Arc<Progress>) -> Result<Found> {
        let (one, other) = futures::try_join!(self.sides[0].open(), self.sides[1].open())?;
        let (one, other) = futures::try_join!(
            one.drain(|| look.collector(), progress),
            other.drain(|| look.collector(), progress)
        )?;
        Ok(Found::between(one, other, self.sides[1].keeps_deleted()))
    }
}
