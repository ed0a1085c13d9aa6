//! Somebody decides an open conflict.
//!
//! ```text
//! open ──▶ choice noted, by whom ──▶ target changed ──▶ choice noted as done
//!      └─▶ the target's value stays: done at once
//! ```
//!
//! The lake and the target cannot be changed at once. So the choice is noted first, by a commit that only
//! one can make; from then on only the same choice can be finished, and writing it into the target again
//! changes nothing. What the source has is taken from the snapshot that the target shows, not from the log:
//! it may have changed since.

use std::collections::BTreeMap;

use arrow::array::{ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{Field, Int8Type, Schema};
use arrow::json::ReaderBuilder;
use async_trait::async_trait;
use chrono::Utc;
use datafusion::physical_plan::memory::MemoryStream;
use serde_json::Value;
use std::sync::Arc;

use super::log::{Log, shows};
use super::{OPEN, Record, TRIES, without_base};
use crate::connectors;
use crate::delta::Op;
use crate::error::{Error, ErrorKind, Result};
use crate::sync::letters::{name_by_key, rows_by_key};
use crate::sync::{Context, Stream, batches, target_table};
use crate::target::{
    Applied, ConflictPolicy, ConflictRules, Conflicts, FoundConflict, Merge, Strategy, Target, TargetTable,
};

/// What somebody decides.
#[derive(Debug, Clone, PartialEq)]
pub enum Choice {
    /// The source's values of the columns in question.
    Source,
    /// What the target has.
    Target,
    /// These values, by column.
    Values(BTreeMap<String, Value>),
}

impl Choice {
    /// As the table of conflicts says it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Target => "target",
            Self::Values(_) => "value",
        }
    }

    fn value(&self) -> Option<String> {
        match self {
            Self::Values(values) => Some(serde_json::to_string(values).expect("JSON is JSON")),
            Self::Source | Self::Target => None,
        }
    }
}

/// Ends an open conflict, by its name. Returns it as it is then.
pub async fn resolve(
    context: &Context,
    stream: &Stream,
    conflict: &str,
    choice: &Choice,
    who: &str,
) -> Result<Record> {
    let done = matches!(choice, Choice::Target);
    let change = match done {
        true => None,
        false => Some(plan(context, stream, &find(context, stream, conflict).await?.1, choice).await?),
    };
    let noted = note(context, stream, conflict, |record| {
        let resumed = record.resolution == choice.name()
            && record.resolved_at.is_none()
            && record.value == choice.value();
        if record.resolution != OPEN && !resumed {
            return Err(not_open(record));
        }
        let resolved_at = done.then(Utc::now);
        let (resolution, resolved_by) = (choice.name().to_owned(), Some(who.to_owned()));
        Ok(Record { resolution, resolved_by, resolved_at, value: choice.value(), ..record.clone() })
    })
    .await?;
    let Some(change) = change else { return Ok(noted) };
    if let Err(error) = change.apply(stream).await {
        // The target said no, so it is open again; where nobody knows, the same choice can be made again.
        if error.kind() != ErrorKind::Transient {
            let open = |record: &Record| {
                let (resolution, resolved_by) = (OPEN.to_owned(), None);
                Ok(Record { resolution, resolved_by, value: None, ..record.clone() })
            };
            note(context, stream, conflict, open).await?;
        }
        return Err(error.with("stream", &stream.name).with("conflict", conflict));
    }
    note(context, stream, conflict, |record| {
        Ok(Record { resolved_at: Some(record.resolved_at.unwrap_or_else(Utc::now)), ..record.clone() })
    })
    .await
}

fn not_open(record: &Record) -> Error {
    let by = record.resolved_by.as_deref().unwrap_or("nobody");
    let message = match record.resolved_at {
        Some(_) => format!("the conflict is not open: `{by}` ended it with `{}`", record.resolution),
        None if record.resolution == "error" => "the conflict stopped its load, and is not open".to_owned(),
        None => format!("`{by}` chose `{}` already, and that is on its way", record.resolution),
    };
    Error::new(ErrorKind::Config, message).with("conflict", &record.conflict)
}

/// A conflict by its name, in the table as it is now.
async fn find(context: &Context, stream: &Stream, conflict: &str) -> Result<(Log, Record)> {
    let log = Log::open(&context.lake, &stream.lake_table).await?;
    let found = match &log {
        Some(log) => {
            let records = log.records(context, None).await?;
            records.into_iter().find(|record| record.conflict == conflict)
        }
        None => None,
    };
    log.zip(found).ok_or_else(|| {
        Error::new(ErrorKind::Config, "the stream has no conflict by this name")
            .with("stream", &stream.name)
            .with("conflict", conflict)
            .hint("`frazil conflicts show` prints their names")
    })
}

/// Changes a conflict's record, if nobody else does at the same time.
async fn note(
    context: &Context,
    stream: &Stream,
    conflict: &str,
    change: impl Fn(&Record) -> Result<Record>,
) -> Result<Record> {
    let mut overtaken = None;
    for _ in 0..TRIES {
        let (log, record) = find(context, stream, conflict).await?;
        if let (Some(pending), Some(to)) = (&log.standing.pending, &stream.target)
            && pending.load.to_string() == record.load
            && shows(connectors::target(&to.connection)?.applied(&stream.name, &to.table).await?)
                == pending.from
        {
            return Err(Error::new(
                ErrorKind::Config,
                "the load that found the conflict did not come to its end",
            )
            .with("conflict", conflict)
            .hint("run `frazil load`: it finds the conflict again, if it is still there"));
        }
        let changed = change(&record)?;
        let standing = log.standing.clone();
        let records = [changed.clone()];
        match log.commit(&records, &[], &standing, context.run, context.budget).await {
            Err(error) if error.kind() == ErrorKind::Conflict => overtaken = Some(error),
            outcome => return outcome.map(|()| changed),
        }
    }
    Err(overtaken.expect("it was tried"))
}

/// What a choice writes into the target.
struct Write {
    target: Arc<dyn Target>,
    wanted: TargetTable,
    applied: Applied,
    /// The row, or its key if it is to be deleted; the last column is `_op`.
    row: RecordBatch,
    gone: bool,
    /// The columns that are written.
    fields: Vec<String>,
}

async fn plan(context: &Context, stream: &Stream, record: &Record, choice: &Choice) -> Result<Write> {
    let wrong = |message: &str| Error::new(ErrorKind::Config, message).with("stream", &stream.name);
    let Some(to) = &stream.target else { return Err(wrong("the stream has no target any more")) };
    let table = context.lake.table(&stream.lake_table).await?;
    let table = table.ok_or_else(|| wrong("the lake has no such table").with("table", &stream.lake_table))?;
    let target = connectors::target(&to.connection)?;
    let applied = target.applied(&stream.name, &to.table).await?;
    // An earlier try may have died before it was done.
    let is_there = |applied: &Applied| applied.halfway.is_none_or(|way| way.toward == applied.snapshot);
    let applied = applied.filter(|applied| applied.lake_table == table.uuid() && is_there(applied));
    let applied = applied
        .ok_or_else(|| wrong("the target does not show this lake table").hint("run `frazil load` first"))?;
    let key = table.key();
    let named = BTreeMap::from([(name_by_key(&record.record), Some(record.record.clone()))]);
    let row = rows_by_key(context, &table, applied.snapshot, &key, &named).await?;
    let ops = row.columns().last().and_then(|ops| ops.as_primitive_opt::<Int8Type>());
    let gone = ops.is_some_and(|ops| ops.iter().flatten().any(|op| op == Op::Delete as i8));
    let (row, fields) = match choice {
        Choice::Values(_) if gone => {
            return Err(wrong("the source has no such row any more: there is nothing to set values of")
                .hint("take `source`, which deletes the row, or `target`"));
        }
        Choice::Values(values) => (with_values(&row, values, &key)?, values.keys().cloned().collect()),
        Choice::Source | Choice::Target => {
            let fields: BTreeMap<String, String> = serde_json::from_str(&record.fields).map_err(|error| {
                Error::new(ErrorKind::Corrupt, "the record of a conflict cannot be read").because(error)
            })?;
            (row, fields.into_keys().collect())
        }
    };
    let wanted = target_table(stream, to, &table.columns(), &key);
    Ok(Write { target, wanted, applied, row, gone, fields })
}

impl Write {
    /// Again changes nothing.
    async fn apply(self, stream: &Stream) -> Result<()> {
        let Self { target, wanted, applied, row, gone, fields } = self;
        target.prepare(&wanted).await?;
        // The same snapshot, with a mark: so that it can be seen whether this was committed.
        let on_the_way = applied.toward(applied.snapshot);
        let changes = if gone { row } else { without_base(&row, &wanted.key)? };
        let merge = Merge {
            turn: None,
            stream: stream.name.clone(),
            table: wanted.clone(),
            from: Some(applied),
            to: on_the_way,
            strategy: Strategy::Merge,
            rows: Some(1),
            changes: Box::pin(MemoryStream::try_new(vec![changes.clone()], changes.schema(), None)?),
        };
        if gone {
            target.apply(merge).await?;
        } else {
            let columns = fields.into_iter().map(|field| (field, ConflictPolicy::SourceWins)).collect();
            let rules = ConflictRules { default: ConflictPolicy::TargetWins, columns, last_write: None };
            target.apply_beside(merge, Arc::new(Decided(rules))).await?;
        }
        let there = Applied::new(applied.lake_table, applied.snapshot);
        batches::arrive(&*target, &stream.name, wanted, on_the_way, there).await
    }
}

/// A row with other values.
fn with_values(row: &RecordBatch, values: &BTreeMap<String, Value>, key: &[String]) -> Result<RecordBatch> {
    let schema = row.schema();
    let mut columns: Vec<ArrayRef> = row.columns().to_vec();
    for (name, value) in values {
        let wrong = |message: &str| Error::new(ErrorKind::Config, message).with("column", name);
        let place = schema.index_of(name).ok().filter(|place| place + 1 < columns.len());
        let place = place.ok_or_else(|| wrong("the stream has no such column"))?;
        if key.contains(name) {
            return Err(wrong("a column of the key cannot be set: that would be another row"));
        }
        let field = Field::new(name, schema.field(place).data_type().clone(), true);
        let text = serde_json::to_string(&BTreeMap::from([(name, value)])).expect("JSON is JSON");
        let mut reader =
            ReaderBuilder::new(Arc::new(Schema::new(vec![field]))).build(std::io::Cursor::new(text))?;
        let read = reader
            .next()
            .transpose()
            .map_err(|source| wrong("the value does not fit the column's type").because(source))?;
        columns[place] = read
            .filter(|read| read.num_rows() == 1)
            .map(|read| read.column(0).clone())
            .ok_or_else(|| wrong("the value cannot be read as JSON"))?;
    }
    Ok(RecordBatch::try_new(schema, columns)?)
}

/// Writes the columns that somebody decided about and no others; there is nothing to log.
struct Decided(ConflictRules);

#[async_trait]
impl Conflicts for Decided {
    fn rules(&self) -> &ConflictRules {
        &self.0
    }

    fn found(&self, _: Vec<FoundConflict>) -> Result<()> {
        Ok(())
    }

    async fn keep(&self) -> Result<()> {
        Ok(())
    }
}
