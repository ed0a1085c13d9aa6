//! The load's letters: rows that the target refuses.
//!
//! A load is first tried as always. Only when the target refuses a row, and the stream says that such rows go
//! aside, it is done again by the target's slower way, which leaves them out. Their letters are committed
//! while the target's transaction is open and holds its control row: nobody else can load at the same time,
//! and the position in the target passes a row only after its letter is durable. A crash between the two
//! leaves letters of rows that are loaded again; they are refused again under the same names, or come through
//! and take their letters away.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use arrow::array::{ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Int8Type, Schema};
use async_trait::async_trait;
use chrono::Utc;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::deliver::{self, Note};
use super::letter::{self, Leg, Letter};
use super::{Context, RejectLimit, open_letters};
use crate::delta::{Op, SnapshotId};
use crate::error::{Error, ErrorKind, Result};
use crate::lake::LakeTable;
use crate::sync::Stream;
use crate::target::{LETTER_COLUMN, Merge, MergeStats, Refusals, Refused, Strategy, Target};

/// What happens to rows that the target refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnReject {
    /// The load stops, and nothing of it is applied.
    #[default]
    Stop,
    /// They become dead letters, and the others are loaded.
    DeadLetter,
}

/// More than this many refused rows are no dirt in the data but a table that does not fit: each costs some
/// statements and some memory. Without a `max_rejected` of its own a load ends here.
const MOST: u64 = 10_000;

/// Reasons that an error names.
const REASONS_NAMED: usize = 3;

/// The letters of one load.
pub(in crate::sync) struct LoadLetters {
    keeper: Arc<Keeper>,
    key: Vec<String>,
    /// The load's letters that were there before.
    open: BTreeSet<String>,
    /// Those whose rows came by.
    seen: Arc<Mutex<BTreeSet<String>>>,
    /// Whether all rows come, so that letters of others are done.
    whole: bool,
}

impl LoadLetters {
    /// Of a load; `None` for streams whose loads stop at a refused row.
    pub(in crate::sync) fn of_load(
        context: &Context,
        stream: &Stream,
        table: &LakeTable,
        merge: &Merge,
    ) -> Option<Self> {
        // Versions of rows are not told apart by their key.
        if stream.settings.on_reject == OnReject::Stop || matches!(merge.strategy, Strategy::Versions { .. })
        {
            return None;
        }
        Some(Self::new(context, stream, table, merge, BTreeSet::new()))
    }

    /// Looks which letters there are.
    pub(in crate::sync) async fn look(&mut self, context: &Context, stream: &Stream) -> Result<()> {
        if let Some(letters) = super::letters(&context.lake, stream, context.budget).await? {
            let open = open_letters(&context.lake, &letters, Leg::Load, context.budget).await?;
            self.open = open.into_keys().collect();
        }
        Ok(())
    }

    /// Of rows that were refused before, all of them open letters and no others.
    pub(super) fn of_replay(
        context: &Context,
        stream: &Stream,
        table: &LakeTable,
        merge: &Merge,
        open: BTreeSet<String>,
    ) -> Self {
        Self { whole: true, ..Self::new(context, stream, table, merge, open) }
    }

    fn new(
        context: &Context,
        stream: &Stream,
        table: &LakeTable,
        merge: &Merge,
        open: BTreeSet<String>,
    ) -> Self {
        let keeper = Keeper {
            context: context.clone(),
            table: table.clone(),
            stream: stream.name.clone(),
            from: merge.from.map(|from| from.snapshot),
            to: merge.to.snapshot,
            limit: stream.settings.max_rejected.unwrap_or(RejectLimit::Rows(MOST)),
            of: merge.rows.unwrap_or(u64::MAX),
            reasons: Mutex::default(),
            kept: Mutex::default(),
        };
        Self {
            keeper: Arc::new(keeper),
            key: merge.table.key.clone(),
            open,
            seen: Arc::default(),
            whole: merge.strategy == Strategy::Replace,
        }
    }

    /// The change, with an eye on rows that have letters.
    pub(in crate::sync) fn watch(&self, merge: Merge) -> Merge {
        if self.open.is_empty() || self.key.is_empty() || self.whole {
            return merge;
        }
        let (key, open, seen) = (self.key.clone(), self.open.clone(), self.seen.clone());
        let watch = move |batch: RecordBatch| {
            let names = keys_of(&batch, &key)?.into_iter().map(|key| name_by_key(&key));
            let met: Vec<String> = names.filter(|name| open.contains(name)).collect();
            seen.lock().expect("no panic while it is held").extend(met);
            Ok(batch)
        };
        let schema = merge.changes.schema();
        Merge { changes: each(merge.changes, schema, watch), ..merge }
    }

    /// Applies a change without the rows that the target refuses.
    pub(in crate::sync) async fn apply(&self, target: &dyn Target, merge: Merge) -> Result<MergeStats> {
        let merge = Merge { changes: with_letters(merge.changes, &self.key), ..merge };
        target.apply_but(merge, self.keeper.clone()).await
    }

    /// The load is committed: letters of rows that came through are done. Returns how many rows were refused.
    pub(in crate::sync) async fn committed(&self) -> Result<u64> {
        let kept = self.keeper.kept.lock().expect("no panic while it is held").clone();
        let seen = self.seen.lock().expect("no panic while it is held").clone();
        let done = if self.whole { &self.open } else { &seen };
        let done: Vec<String> = done.difference(&kept).cloned().collect();
        if !done.is_empty() {
            self.keeper.amend(&[], &done).await?;
        }
        Ok(kept.len() as u64)
    }
}

/// Takes refused rows to the table of letters.
struct Keeper {
    context: Context,
    table: LakeTable,
    stream: String,
    from: Option<SnapshotId>,
    to: SnapshotId,
    limit: RejectLimit,
    of: u64,
    reasons: Mutex<BTreeMap<String, u64>>,
    /// The names of letters.
    kept: Mutex<BTreeSet<String>>,
}

impl Keeper {
    async fn amend(&self, letters: &[Letter], gone: &[String]) -> Result<()> {
        let note = Note {
            number: 0,
            leg: Leg::Load,
            run: self.context.run,
            from: self.from.map(|from| from.to_string()),
            to: self.to.to_string(),
            at: Utc::now(),
            files: Vec::new(),
        };
        deliver::amend(&self.context.lake, &self.table, letters, gone, &note, self.context.budget).await
    }
}

#[async_trait]
impl Refusals for Keeper {
    fn note(&self, reason: &str) -> Result<()> {
        let mut reasons = self.reasons.lock().expect("no panic while it is held");
        *reasons.entry(reason.to_owned()).or_default() += 1;
        let mut by_count: Vec<_> = reasons.iter().collect();
        by_count.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let named = by_count.into_iter().take(REASONS_NAMED).map(|(reason, _)| reason.as_str());
        match self.limit.exceeded(reasons.values().sum(), self.of, named) {
            Some(error) => Err(error.with("stream", &self.stream)),
            None => Ok(()),
        }
    }

    async fn keep(&self, refused: Vec<Refused>) -> Result<()> {
        let mut alike: HashMap<String, u64> = HashMap::new();
        let from = self.from.map(|from| from.to_string()).unwrap_or_default();
        let mut letters = Vec::new();
        for Refused { letter: text, reason } in refused {
            let mut parts = text.splitn(3, '\n');
            let (Some(op), Some(key), Some(payload)) = (parts.next(), parts.next(), parts.next()) else {
                return Err(Error::new(ErrorKind::Internal, "a refused row came back with another letter"));
            };
            let letter = if key.is_empty() {
                let count = alike.entry(payload.to_owned()).or_default();
                *count += 1;
                letter::name(&[Leg::Load.name(), &from, payload, &count.to_string()])
            } else {
                name_by_key(key)
            };
            let reason = if op == DELETE { format!("cannot be deleted: {reason}") } else { reason };
            let key = (!key.is_empty()).then(|| key.to_owned());
            letters.push(Letter { letter, key, payload: payload.to_owned(), reason });
        }
        self.amend(&letters, &[]).await?;
        let names = letters.into_iter().map(|letter| letter.letter).collect();
        *self.kept.lock().expect("no panic while it is held") = names;
        Ok(())
    }
}

/// What the letter of a deleted row begins with, and that of another.
const DELETE: &str = "d";
const UPSERT: &str = "u";

pub(in crate::sync) fn name_by_key(key: &str) -> String {
    letter::name(&[Leg::Load.name(), key])
}

pub(in crate::sync) fn keys_of(batch: &RecordBatch, key: &[String]) -> Result<Vec<String>> {
    let places: Vec<usize> =
        key.iter().map(|name| batch.schema_ref().index_of(name)).collect::<Result<_, _>>()?;
    letter::rows_as_json(&batch.project(&places)?)
}

/// Changes that say all of each row, before their last column: operation, key and row, each on a line.
fn with_letters(changes: SendableRecordBatchStream, key: &[String]) -> SendableRecordBatchStream {
    let given = changes.schema();
    let last = given.fields().len() - 1;
    let mut fields: Vec<_> = given.fields().iter().cloned().collect();
    fields.insert(last, Arc::new(Field::new(LETTER_COLUMN, DataType::Utf8, false)));
    let schema = Arc::new(Schema::new(fields));
    let (key, with_letter) = (key.to_vec(), schema.clone());
    each(changes, schema, move |batch| {
        let places: Vec<usize> = (0..last).collect();
        let rows = letter::rows_as_json(&batch.project(&places)?)?;
        let keys = if key.is_empty() { vec![String::new(); rows.len()] } else { keys_of(&batch, &key)? };
        let ops = batch.column(last).as_primitive::<Int8Type>();
        let letters = rows.iter().zip(&keys).enumerate().map(|(row, (payload, key))| {
            // Of a deleted row only the key means anything.
            match ops.value(row) == Op::Delete as i8 {
                true => format!("{DELETE}\n{key}\n{key}"),
                false => format!("{UPSERT}\n{key}\n{payload}"),
            }
        });
        let mut columns: Vec<ArrayRef> = batch.columns().to_vec();
        columns.insert(last, Arc::new(StringArray::from_iter_values(letters)));
        Ok(RecordBatch::try_new(with_letter.clone(), columns)?)
    })
}

pub(in crate::sync) fn each(
    changes: SendableRecordBatchStream,
    schema: Arc<Schema>,
    what: impl Fn(RecordBatch) -> Result<RecordBatch> + Send + 'static,
) -> SendableRecordBatchStream {
    let changes = changes.map(move |batch| {
        what(batch?).map_err(|error| datafusion::error::DataFusionError::External(Box::new(error)))
    });
    Box::pin(RecordBatchStreamAdapter::new(schema, changes))
}
