//! Conflicts: rows that source and target both changed since they were last the same.
//!
//! ```text
//! lake at what the target shows ─┐                    ┌─▶ target, in one transaction …
//! lake now ──────────────────────┼─▶ target: decide ──┤
//! target ────────────────────────┘                    └─▶ orders__conflicts, … within it
//! ```
//!
//! Nothing is kept in the target for this: what we wrote there last is known exactly, for it is the lake at
//! the snapshot that the target shows. Conflicts are committed to the lake while the target's transaction is
//! open and holds its control row, as pending; a load that did not come to its end is found by what the
//! target shows, and its conflicts go with the next one. So each is logged once, if it was decided.

mod log;
mod resolve;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use arrow::array::{Int32Array, RecordBatch, StringArray, new_null_array};
use arrow::datatypes::{DataType, Field, Schema};
use async_trait::async_trait;
use chrono::Utc;
use datafusion::execution::SendableRecordBatchStream;
use serde::Serialize;
use uuid::Uuid;

use self::log::{Log, Pending, Standing, shows};
pub use self::log::{Record, conflicts_of};
pub use self::resolve::{Choice, resolve};
use super::letters::{each, keys_of};
use super::{Context, Stream};
use crate::connectors;
use crate::error::{Error, ErrorKind, Result};
use crate::lake::{LakeTable, TableMode};
use crate::table::{HAS_BASE, KEY_TEXT, TableId, base_column};
use crate::target::{Applied, ConflictRules, Conflicts, FoundConflict, Resolution};

/// A conflict that waits for somebody.
pub(super) const OPEN: &str = "open";
/// Who decides where nobody has to.
const POLICY: &str = "policy";

/// Conflicts that one load may have: beyond, the target holds other rows than the lake, and nobody would look
/// at them one by one. Each costs some memory.
const MOST: usize = 100_000;

/// Columns that a table may have: they are staged twice, and a table of SQL Server has 1,024.
const MOST_COLUMNS: usize = 500;

/// Others may be writing to the table of conflicts; each time one of us gets ahead.
const TRIES: usize = 20;

/// An eye on the conflicts of one load.
pub(super) struct Watch {
    context: Context,
    table: TableId,
    rules: ConflictRules,
    load: Uuid,
    from: Option<Applied>,
    to: Applied,
    found: Mutex<Vec<Record>>,
    /// How many were committed.
    kept: AtomicU64,
}

impl Watch {
    /// Of a load; `None` for streams that write over whatever others did.
    pub(super) fn of_load(
        context: &Context,
        stream: &Stream,
        table: &LakeTable,
        from: Option<Applied>,
        to: Applied,
    ) -> Result<Option<Arc<Self>>> {
        let rules = &stream.settings.conflicts;
        if rules.are_blind() {
            return Ok(None);
        }
        check(rules, table).map_err(|error| error.with("stream", &stream.name))?;
        Ok(Some(Arc::new(Self {
            context: context.clone(),
            table: stream.lake_table.clone(),
            rules: rules.clone(),
            load: Uuid::new_v4(),
            from,
            to,
            found: Mutex::default(),
            kept: AtomicU64::new(0),
        })))
    }

    /// How many conflicts the load had. It is committed: they stand.
    pub(super) async fn committed(&self) -> u64 {
        let kept = self.kept.load(Ordering::Relaxed);
        if kept > 0
            && let Err(error) = self.settle().await
        {
            // The next load finds out what became of this one.
            tracing::debug!(table = %self.table, %error, "the table of conflicts was not told of the load's end");
        }
        kept
    }

    async fn settle(&self) -> Result<()> {
        let Context { lake, run, budget, .. } = &self.context;
        match Log::open(lake, &self.table).await? {
            Some(log) if log.standing.pending.as_ref().is_some_and(|pending| pending.load == self.load) => {
                log.commit(&[], &[], &Standing::default(), *run, *budget).await
            }
            _ => Ok(()),
        }
    }

    /// Commits what was found, in the place of what a load left that never was.
    async fn commit(&self, found: &[Record]) -> Result<()> {
        let Context { lake, run, budget, .. } = &self.context;
        let mut overtaken = None;
        for _ in 0..TRIES {
            let log = match Log::open(lake, &self.table).await? {
                Some(log) if found.is_empty() && log.standing.pending.is_none() => {
                    drop(log);
                    return Ok(());
                }
                Some(log) => log,
                None if found.is_empty() => return Ok(()),
                None => match Log::create(lake, &self.table).await {
                    Err(error) if error.kind() == ErrorKind::Conflict => {
                        overtaken = Some(error);
                        continue;
                    }
                    log => log?,
                },
            };
            let void = match &log.standing.pending {
                // The control row is ours, and shows what that load started from.
                Some(pending) if pending.from == shows(self.from) => {
                    let records = log.records(&self.context, Some(pending.load)).await?;
                    records.into_iter().map(|record| record.conflict).collect()
                }
                _ => Vec::new(),
            };
            let pending = Pending { load: self.load, from: shows(self.from) };
            let standing = Standing { pending: (!found.is_empty()).then_some(pending) };
            match log.commit(found, &void, &standing, *run, *budget).await {
                Err(error) if error.kind() == ErrorKind::Conflict => overtaken = Some(error),
                outcome => return outcome,
            }
        }
        Err(overtaken.expect("it was tried").with("stream table", &self.table))
    }

    fn record(&self, place: usize, conflict: FoundConflict) -> Record {
        let fields: BTreeMap<&str, &str> =
            conflict.fields.iter().map(|(name, resolution)| (name.as_str(), resolution.name())).collect();
        let resolution = of_all(conflict.fields.iter().map(|(_, resolution)| *resolution));
        let (now, ended) = (Utc::now(), matches!(resolution, "source" | "target" | "merged"));
        Record {
            conflict: format!("{}-{place}", self.load.simple()),
            record: conflict.key,
            kind: conflict.kind.name().to_owned(),
            fields: serde_json::to_string(&fields).expect("names are text"),
            base: conflict.base,
            source: conflict.source,
            target: conflict.target,
            resolution: resolution.to_owned(),
            value: None,
            found_at: now,
            resolved_at: ended.then_some(now),
            resolved_by: ended.then(|| POLICY.to_owned()),
            run: self.context.run.to_string(),
            load: self.load.to_string(),
            snapshot_from: self.from.map(|from| from.snapshot.to_string()),
            snapshot_to: self.to.snapshot.to_string(),
        }
    }
}

/// How a row's columns ended, in a word. A row without columns in question is written again by the source.
fn of_all(fields: impl Iterator<Item = Resolution> + Clone) -> &'static str {
    let any = |which| fields.clone().any(|resolution| resolution == which);
    match (any(Resolution::Error), any(Resolution::Open), any(Resolution::Target), any(Resolution::Source)) {
        (true, ..) => "error",
        (_, true, ..) => OPEN,
        (_, _, true, true) => "merged",
        (_, _, true, false) => "target",
        (_, _, false, _) => "source",
    }
}

#[async_trait]
impl Conflicts for Watch {
    fn rules(&self) -> &ConflictRules {
        &self.rules
    }

    fn found(&self, conflicts: Vec<FoundConflict>) -> Result<()> {
        let mut found = self.found.lock().expect("no panic while it is held");
        let before = found.len();
        if before + conflicts.len() > MOST {
            let message = format!("more than {MOST} rows were changed in the source and in the target");
            return Err(Error::new(ErrorKind::Data, message)
                .hint("load into a table of its own, or set `conflicts: source_wins` for one load"));
        }
        found.extend(
            conflicts.into_iter().enumerate().map(|(place, conflict)| self.record(before + place, conflict)),
        );
        Ok(())
    }

    async fn keep(&self) -> Result<()> {
        let found = std::mem::take(&mut *self.found.lock().expect("no panic while it is held"));
        self.commit(&found).await?;
        self.kept.store(found.len() as u64, Ordering::Relaxed);
        let stopping = found.iter().filter(|record| record.resolution == "error").count();
        if stopping > 0 {
            let message = format!("{stopping} rows were changed in the source and in the target");
            return Err(Error::new(ErrorKind::Data, message).hint(
                "the policy is `error`, so nothing was loaded; `frazil conflicts show` has them: make the target's \
                 rows as the source has them, or set another policy",
            ));
        }
        Ok(())
    }
}

/// What can be said before the target is asked.
fn check(rules: &ConflictRules, table: &LakeTable) -> Result<()> {
    let wrong = |message: &str| Error::new(ErrorKind::Config, message);
    if table.mode() != TableMode::Merge {
        return Err(wrong("conflicts are told apart by key: `conflicts` needs `mode: merge`")
            .hint("set `primary_key`, or `conflicts: source_wins`"));
    }
    let (columns, key) = (table.columns(), table.key());
    if columns.fields().len() > MOST_COLUMNS {
        let message = format!("a table of more than {MOST_COLUMNS} columns is too wide for `conflicts`");
        return Err(Error::new(ErrorKind::Unsupported, message).hint("leave columns out with `columns`"));
    }
    if let Some(name) = rules.last_write.as_ref().filter(|_| rules.need_last_write())
        && (columns.column_with_name(name).is_none() || key.contains(name))
    {
        return Err(wrong("the stream has no column that says when a row was written by this name")
            .with("last_write", name)
            .hint("set `last_write` to a column of the stream that is no key"));
    }
    if let Some(name) = rules.columns.keys().find(|name| columns.column_with_name(name).is_none()) {
        return Err(wrong("`conflicts` names a column that the stream does not have").with("column", name));
    }
    if let Some(name) = rules.columns.keys().find(|name| key.contains(name)) {
        return Err(wrong("`conflicts` names a column of the key, which is the same on all sides")
            .with("column", name));
    }
    Ok(())
}

/// Changes of a load with what each row was before, and with its key as a text.
pub(super) fn with_keys(changes: SendableRecordBatchStream, key: &[String]) -> SendableRecordBatchStream {
    let given = changes.schema();
    let place = given.fields().len() - 2;
    let mut fields: Vec<_> = given.fields().iter().cloned().collect();
    fields.insert(place, Arc::new(Field::new(KEY_TEXT, DataType::Utf8, false)));
    let schema = Arc::new(Schema::new(fields));
    let (key, with_key) = (key.to_vec(), schema.clone());
    each(changes, schema, move |batch| {
        let mut columns = batch.columns().to_vec();
        columns.insert(place, Arc::new(StringArray::from_iter_values(keys_of(&batch, &key)?)));
        Ok(RecordBatch::try_new(with_key.clone(), columns)?)
    })
}

/// Rows that were never there before, in the form of [`with_keys`]. Their last column is `_op`.
pub(super) fn without_base(rows: &RecordBatch, key: &[String]) -> Result<RecordBatch> {
    let own = rows.num_columns() - 1;
    let schema = rows.schema();
    let mut fields: Vec<_> = schema.fields()[..own].to_vec();
    let mut columns = rows.columns()[..own].to_vec();
    for field in &schema.fields()[..own] {
        let older = field.as_ref().clone().with_name(base_column(field.name())).with_nullable(true);
        columns.push(new_null_array(older.data_type(), rows.num_rows()));
        fields.push(Arc::new(older));
    }
    columns.push(Arc::new(StringArray::from_iter_values(keys_of(rows, key)?)));
    columns.push(Arc::new(Int32Array::from_value(0, rows.num_rows())));
    columns.push(rows.column(own).clone());
    fields.push(Arc::new(Field::new(KEY_TEXT, DataType::Utf8, false)));
    fields.push(Arc::new(Field::new(HAS_BASE, DataType::Int32, false)));
    fields.push(schema.fields()[own].clone());
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}

/// The conflicts of a stream, the newest first. Those of a load that was not committed are left out, but for
/// the ones that stopped it.
pub async fn conflicts(context: &Context, stream: &Stream) -> Result<Vec<Record>> {
    let Some(log) = Log::open(&context.lake, &stream.lake_table).await? else { return Ok(Vec::new()) };
    let mut records = log.records(context, None).await?;
    if let Some(pending) = &log.standing.pending {
        let applied = match &stream.target {
            Some(to) => connectors::target(&to.connection)?.applied(&stream.name, &to.table).await?,
            None => None,
        };
        if shows(applied) == pending.from {
            let void = pending.load.to_string();
            records.retain(|record| record.load != void || record.resolution == "error");
        }
    }
    Ok(records)
}

/// Conflicts of a stream that are of one kind and ended the same way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConflictCount {
    /// `insert`, `update` or `delete`.
    #[serde(rename = "type")]
    pub kind: String,
    /// How they ended.
    pub resolution: String,
    /// How many.
    pub conflicts: u64,
}

/// Counts conflicts by kind and by how they ended.
pub fn count_conflicts(records: &[Record]) -> Vec<ConflictCount> {
    let mut counts: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for record in records {
        *counts.entry((&record.kind, &record.resolution)).or_default() += 1;
    }
    let count = |((kind, resolution), conflicts): ((&str, &str), u64)| ConflictCount {
        kind: kind.to_owned(),
        resolution: resolution.to_owned(),
        conflicts,
    };
    counts.into_iter().map(count).collect()
}
