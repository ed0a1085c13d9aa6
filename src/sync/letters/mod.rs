//! Dead letters: rows that cannot be carried, kept in a table of the lake beside the stream's own.
//!
//! ```text
//! rejected rows ─▶ collector ─▶ files aside ─┐
//!                                            ├─▶ one swap of the stream's table ─▶ note
//! other rows ─▶ writer ─▶ data files ────────┘                                      │ deliver
//!                                                    orders__dead_letters ◀─────────┘
//! ```
//!
//! A letter is there if and only if the position has passed its row: the swap that moves the position
//! carries a note of the letters, and a note is delivered exactly once, by whoever finds it first. The
//! table has the letters that are open, one a row: a row that is rejected again replaces its letter, and
//! one that comes through takes it away.

mod collect;
mod deliver;
mod letter;
mod limit;
mod refused;
mod replay;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use chrono::{DateTime, Utc};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::prelude::{SessionContext, col, lit};
use futures::StreamExt;
use serde::Serialize;

use self::collect::{Collector, Identity};
use self::deliver::Note;
use self::letter::Mark;
pub use self::letter::{Leg, letters_of};
pub use self::limit::RejectLimit;
pub use self::refused::OnReject;
pub(super) use self::refused::{LoadLetters, each, keys_of, name_by_key};
pub(super) use self::replay::changes as rows_by_key;
pub use self::replay::{Replayed, drop_letters, replay};
use super::contract::Gate;
use super::{Context, Stream};
use crate::delta::Watermark;
use crate::error::Result;
use crate::lake::{Lake, LakeTable, TableMode};
use crate::memory::Budget;
use crate::merge;
use crate::source::OnUnfit;

/// The letters of a pass's first half.
pub(super) struct Letters {
    collector: Arc<Collector>,
    /// The number of the next note.
    number: u64,
}

impl Letters {
    /// Delivers what an earlier pass left, and opens a collector; `None` for streams that reject nothing and
    /// have no letters. `key` is in the source's names.
    pub(super) async fn open(
        context: &Context,
        stream: &Stream,
        table: &LakeTable,
        gate: Option<&Gate>,
        key: &[String],
        whole: bool,
    ) -> Result<Option<Self>> {
        let unfit = stream.settings.values.on_unfit == OnUnfit::DeadLetter;
        let rejects = unfit || gate.is_some_and(Gate::rejects_rows);
        if !rejects && table.outbox().is_none() {
            return Ok(None);
        }
        let number = Note::of(table)?.map_or(0, |note| note.number) + 1;
        let open = match deliver::deliver(&context.lake, table, context.budget).await? {
            Some(letters) => open_letters(&context.lake, &letters, Leg::Extract, context.budget).await?,
            None => BTreeMap::new(),
        };
        if !rejects && open.is_empty() {
            return Ok(None);
        }
        let identity = match table.mode() {
            TableMode::Merge => Identity::Key,
            TableMode::Replace => Identity::Row,
            TableMode::Append => Identity::Arrival,
        };
        let name = |column: &String| {
            let into = gate.map_or(Some(column.as_str()), |gate| gate.goes_into(column));
            (column.clone(), into.unwrap_or(column).to_owned())
        };
        let key = key.iter().map(name).collect();
        // Parts of a first read are committed one by one, and say nothing of rows in other parts.
        let whole = whole && table.current().is_some();
        let limit = stream.settings.max_rejected;
        let collector = Collector::new(table.clone(), identity, key, open, whole, limit, stream.name.clone());
        collector.stands_at(table)?;
        Ok(Some(Self { collector: Arc::new(collector), number }))
    }

    /// Takes rejected rows; one for all tasks.
    pub(super) fn collector(&self) -> Arc<Collector> {
        self.collector.clone()
    }

    /// What the next commit is to carry, if anything: everything collected since the last one.
    pub(super) async fn note(
        &self,
        context: &Context,
        from: Option<&Watermark>,
        to: &Watermark,
    ) -> Result<Option<Note>> {
        let Some(files) = self.collector.close().await? else { return Ok(None) };
        Ok(Some(Note {
            number: self.number,
            leg: Leg::Extract,
            run: context.run,
            from: from.map(|from| from.as_str().to_owned()),
            to: to.as_str().to_owned(),
            at: Utc::now(),
            files,
        }))
    }

    /// The commit that carried a note has come through.
    pub(super) async fn committed(&mut self, context: &Context, table: &LakeTable) -> Result<()> {
        self.number += 1;
        self.collector.stands_at(table)?;
        deliver::deliver(&context.lake, table, context.budget).await.map(drop)
    }
}

/// The table of a stream's letters, with all that were committed; `None` when there never was one.
pub async fn letters(lake: &Lake, stream: &Stream, budget: Budget) -> Result<Option<LakeTable>> {
    match lake.table(&stream.lake_table).await? {
        Some(table) if table.outbox().is_some() => deliver::deliver(lake, &table, budget).await,
        _ => lake.table(&letters_of(&stream.lake_table)).await,
    }
}

/// Letters of a stream that have one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LetterCount {
    /// `extract` or `load`.
    pub leg: String,
    /// Why the rows were rejected.
    pub reason: String,
    /// How many.
    pub letters: u64,
    /// The run that rejected the first of them that is left, by time.
    pub oldest: DateTime<Utc>,
    /// The newest.
    pub newest: DateTime<Utc>,
}

/// The letters of a table, counted by reason.
pub async fn count_letters(lake: &Lake, letters: &LakeTable, budget: Budget) -> Result<Vec<LetterCount>> {
    let session = SessionContext::new_with_config_rt(merge::config(), merge::runtime(budget, lake.stores())?);
    session.register_table("letters", letters.provider(None).await?)?;
    let counted = session.sql(COUNTED).await?.collect().await?;
    let mut counts = Vec::new();
    for batch in &counted {
        let text = |column: usize, row| batch.column(column).as_string::<i32>().value(row).to_owned();
        let time = |column: usize, row| {
            let micros = batch.column(column).as_primitive::<TimestampMicrosecondType>().value(row);
            DateTime::from_timestamp_micros(micros).unwrap_or_default()
        };
        counts.extend((0..batch.num_rows()).map(|row| LetterCount {
            leg: text(0, row),
            reason: text(1, row),
            letters: batch.column(2).as_primitive::<Int64Type>().value(row).cast_unsigned(),
            oldest: time(3, row),
            newest: time(4, row),
        }));
    }
    Ok(counts)
}

const COUNTED: &str = "SELECT leg, reason, count(*) AS letters, min(rejected_at), max(rejected_at) \
                       FROM letters GROUP BY leg, reason ORDER BY letters DESC, leg, reason";

/// The letters of one leg that are open, each with its key.
async fn letters_by_name(
    lake: &Lake,
    letters: &LakeTable,
    leg: Leg,
    budget: Budget,
) -> Result<BTreeMap<String, Option<String>>> {
    let mut rows = of_leg(lake, letters, leg, &["letter", "key"], budget).await?;
    let mut open = BTreeMap::new();
    while let Some(batch) = rows.next().await {
        let batch = batch?;
        let [letter, key] = [0, 1].map(|column| batch.column(column).as_string::<i32>());
        let keys = key.iter().map(|key| key.map(str::to_owned));
        open.extend(letter.iter().flatten().map(str::to_owned).zip(keys));
    }
    Ok(open)
}

async fn of_leg(
    lake: &Lake,
    letters: &LakeTable,
    leg: Leg,
    columns: &[&str],
    budget: Budget,
) -> Result<SendableRecordBatchStream> {
    let session = SessionContext::new_with_config_rt(merge::config(), merge::runtime(budget, lake.stores())?);
    let rows = session.read_table(letters.provider(None).await?)?.filter(col("leg").eq(lit(leg.name())))?;
    Ok(rows.select_columns(columns)?.execute_stream().await?)
}

/// The letters of one leg that are open, each with a mark of what it says.
async fn open_letters(
    lake: &Lake,
    letters: &LakeTable,
    leg: Leg,
    budget: Budget,
) -> Result<BTreeMap<String, Mark>> {
    let mut rows = of_leg(lake, letters, leg, &["letter", "payload", "reason"], budget).await?;
    let mut open = BTreeMap::new();
    while let Some(batch) = rows.next().await {
        let batch = batch?;
        let [letter, payload, reason] = [0, 1, 2].map(|column| batch.column(column).as_string::<i32>());
        for row in 0..batch.num_rows() {
            open.insert(letter.value(row).to_owned(), letter::mark(payload.value(row), reason.value(row)));
        }
    }
    Ok(open)
}
