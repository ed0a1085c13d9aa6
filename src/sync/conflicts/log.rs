//! The table of a stream's conflicts, and whether the load that wrote last came to its end.
//!
//! The position of the table names a load whose conflicts are there while its target's transaction may not
//! be committed. Who comes next asks the target: if it shows what it showed before, that load never was, and
//! its conflicts go; else they stand, and the table is settled.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType};
use chrono::{DateTime, Utc};
use datafusion::prelude::{SessionContext, col, lit};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::delta::Watermark;
use crate::error::{Error, ErrorKind, Result};
use crate::lake::{Change, Effect, Lake, LakeTable, TableMode, TableSpec};
use crate::memory::Budget;
use crate::merge;
use crate::sync::Context;
use crate::table::TableId;
use crate::target::Applied;

/// What the table of conflicts is called after the stream's lake table.
const SUFFIX: &str = "__conflicts";

/// The table of conflicts of a lake table.
pub fn conflicts_of(table: &TableId) -> TableId {
    TableId { schema: table.schema.clone(), name: format!("{}{SUFFIX}", table.name) }
}

/// A row of the table: a record that source and target both changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Record {
    /// Its name.
    pub conflict: String,
    /// The key's columns as JSON, in the lake's names.
    pub record: String,
    /// `insert`, `update` or `delete`: what the source did.
    #[serde(rename = "type")]
    pub kind: String,
    /// The columns in question as JSON, each with how it ended: `source`, `target`, `open` or `error`.
    pub fields: String,
    /// What we wrote last, as JSON; `None`: nothing.
    pub base: Option<String>,
    /// What the source had; `None`: it deleted the row.
    pub source: Option<String>,
    /// What the target had; `None`: it deleted the row.
    pub target: Option<String>,
    /// How it ended: `source`, `target`, `merged` (each for some columns), `value` (somebody's own), `open`,
    /// or `error`: it stopped a load.
    pub resolution: String,
    /// What somebody set instead, as JSON.
    pub value: Option<String>,
    /// When it was found.
    pub found_at: DateTime<Utc>,
    /// When it ended; `None` while it is open, or somebody's choice is on its way into the target.
    pub resolved_at: Option<DateTime<Utc>>,
    /// By whom: `policy`, or a user.
    pub resolved_by: Option<String>,
    /// The run that found it.
    pub run: String,
    /// The load that found it: one run may load a stream several times.
    pub load: String,
    /// What the target showed then.
    pub snapshot_from: Option<String>,
    /// What was loaded.
    pub snapshot_to: String,
}

impl Record {
    /// Whether somebody has to decide.
    pub fn is_open(&self) -> bool {
        self.resolution == super::OPEN
    }
}

const TEXTS: [(&str, bool); 14] = [
    ("conflict", false),
    ("record", false),
    ("type", false),
    ("fields", false),
    ("base", true),
    ("source", true),
    ("target", true),
    ("resolution", false),
    ("value", true),
    ("resolved_by", true),
    ("run", false),
    ("load", false),
    ("snapshot_from", true),
    ("snapshot_to", false),
];
const TIMES: [(&str, bool); 2] = [("found_at", false), ("resolved_at", true)];

fn schema() -> SchemaRef {
    let at = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let texts = TEXTS.map(|(name, nullable)| Field::new(name, DataType::Utf8, nullable));
    let times = TIMES.map(|(name, nullable)| Field::new(name, at.clone(), nullable));
    Arc::new(Schema::new(texts.into_iter().chain(times).collect::<Vec<_>>()))
}

fn batch(records: &[Record]) -> Result<RecordBatch> {
    let text = |of: &dyn Fn(&Record) -> Option<&str>| -> ArrayRef {
        Arc::new(records.iter().map(of).collect::<StringArray>())
    };
    let time = |of: &dyn Fn(&Record) -> Option<DateTime<Utc>>| -> ArrayRef {
        let micros = records.iter().map(|record| of(record).map(|at| at.timestamp_micros()));
        Arc::new(micros.collect::<TimestampMicrosecondArray>().with_timezone("UTC"))
    };
    let columns = vec![
        text(&|record| Some(&record.conflict)),
        text(&|record| Some(&record.record)),
        text(&|record| Some(&record.kind)),
        text(&|record| Some(&record.fields)),
        text(&|record| record.base.as_deref()),
        text(&|record| record.source.as_deref()),
        text(&|record| record.target.as_deref()),
        text(&|record| Some(&record.resolution)),
        text(&|record| record.value.as_deref()),
        text(&|record| record.resolved_by.as_deref()),
        text(&|record| Some(&record.run)),
        text(&|record| Some(&record.load)),
        text(&|record| record.snapshot_from.as_deref()),
        text(&|record| Some(&record.snapshot_to)),
        time(&|record| Some(record.found_at)),
        time(&|record| record.resolved_at),
    ];
    Ok(RecordBatch::try_new(schema(), columns)?)
}

fn records(batch: &RecordBatch) -> Vec<Record> {
    let column = |name: &str| batch.column_by_name(name).expect("the columns were asked for by name");
    let maybe = |name: &str, row: usize| {
        let texts = column(name).as_string::<i32>();
        texts.iter().nth(row).flatten().map(str::to_owned)
    };
    let text = |name: &str, row: usize| maybe(name, row).unwrap_or_default();
    let time = |name: &str, row: usize| {
        let micros = column(name).as_primitive::<TimestampMicrosecondType>();
        micros.iter().nth(row).flatten().and_then(DateTime::from_timestamp_micros)
    };
    let record = |row| Record {
        conflict: text("conflict", row),
        record: text("record", row),
        kind: text("type", row),
        fields: text("fields", row),
        base: maybe("base", row),
        source: maybe("source", row),
        target: maybe("target", row),
        resolution: text("resolution", row),
        value: maybe("value", row),
        found_at: time("found_at", row).unwrap_or_default(),
        resolved_at: time("resolved_at", row),
        resolved_by: maybe("resolved_by", row),
        run: text("run", row),
        load: text("load", row),
        snapshot_from: maybe("snapshot_from", row),
        snapshot_to: text("snapshot_to", row),
    };
    (0..batch.num_rows()).map(record).collect()
}

/// How a conflict ended that a newer one has taken the place of. It stands in no table: it follows from the newer.
const SUPERSEDED: &str = "superseded";

/// The position of the table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Standing {
    /// The load that wrote last, until it is known what became of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) pending: Option<Pending>,
}

/// A load whose target's transaction may not be committed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pending {
    /// The load.
    pub(super) load: Uuid,
    /// What the target shows as long as that load is not committed.
    pub(super) from: String,
}

/// What a target shows, to be compared with.
pub(super) fn shows(applied: Option<Applied>) -> String {
    applied.map_or_else(String::new, |Applied { lake_table, snapshot, halfway }| {
        let halfway = halfway.map(|halfway| format!(" {halfway}")).unwrap_or_default();
        format!("{lake_table} {snapshot}{halfway}")
    })
}

/// The table of conflicts as it was when it was opened.
pub(super) struct Log {
    table: LakeTable,
    position: Option<Watermark>,
    pub(super) standing: Standing,
}

impl Log {
    /// Opens it; `None` when there never was a conflict.
    pub(super) async fn open(lake: &Lake, stream_table: &TableId) -> Result<Option<Self>> {
        match lake.table(&conflicts_of(stream_table)).await? {
            Some(table) => Self::of(table).map(Some),
            None => Ok(None),
        }
    }

    /// Begins it.
    pub(super) async fn create(lake: &Lake, stream_table: &TableId) -> Result<Self> {
        let spec = TableSpec {
            id: conflicts_of(stream_table),
            schema: schema(),
            mode: TableMode::Merge,
            key: vec!["conflict".to_owned()],
            partition_by: Vec::new(),
            format_version: None,
            sort_by: Vec::new(),
        };
        Self::of(lake.create(spec).await?)
    }

    fn of(table: LakeTable) -> Result<Self> {
        let position = table.position()?.map(|position| position.watermark);
        let standing = match &position {
            None => Standing::default(),
            Some(position) => serde_json::from_str(position.as_str()).map_err(|error| {
                Error::new(ErrorKind::Corrupt, "the position of a table of conflicts cannot be read")
                    .with("table", table.id())
                    .because(error)
            })?,
        };
        Ok(Self { table, position, standing })
    }

    /// Its conflicts; of one load only, if one is named.
    pub(super) async fn records(&self, context: &Context, load: Option<Uuid>) -> Result<Vec<Record>> {
        let runtime = merge::runtime(context.budget, context.lake.stores())?;
        let session = SessionContext::new_with_config_rt(merge::config(), runtime);
        let mut rows = session.read_table(self.table.provider(None).await?)?;
        if let Some(load) = load {
            rows = rows.filter(col("load").eq(lit(load.to_string())))?;
        }
        let mut rows = rows.execute_stream().await?;
        let mut found = Vec::new();
        while let Some(batch) = rows.next().await {
            found.extend(records(&batch?));
        }
        found.sort_by(|a, b| (b.found_at, &a.conflict).cmp(&(a.found_at, &b.conflict)));
        if load.is_none() {
            // Of a load that may never have been, nothing follows.
            let pending = self.standing.pending.as_ref().map(|pending| pending.load.to_string());
            close_older(&mut found, pending.as_deref());
        }
        Ok(found)
    }

    /// Writes records, takes others away by name, and moves the position: all or nothing, and only if nobody
    /// else changed the table since it was opened.
    pub(super) async fn commit(
        mut self,
        records: &[Record],
        gone: &[String],
        standing: &Standing,
        run: Uuid,
        budget: Budget,
    ) -> Result<()> {
        let mut writer = self.table.writer(budget)?;
        writer.write(&batch(records)?).await?;
        let mut keys = self.table.key_writer(budget)?;
        let names: ArrayRef = Arc::new(StringArray::from_iter_values(gone));
        keys.write(&RecordBatch::try_from_iter([("conflict", names)])?).await?;
        let to = serde_json::to_string(standing).expect("a position is JSON");
        let change = Change {
            files: writer.finish().await?,
            effect: Effect::Log(keys.finish().await?),
            from: self.position,
            to: Watermark::new(to),
            summary: [("frazil.run".to_owned(), run.to_string())].into(),
        };
        self.table.commit(change, budget).await.map(drop)
    }
}

/// An open conflict is over when a newer one of the same row is about the same columns: whoever decides that
/// one decides both. `records` come newest first.
fn close_older(records: &mut [Record], pending: Option<&str>) {
    type Fields = BTreeMap<String, String>;
    let fields = |record: &Record| -> Fields { serde_json::from_str(&record.fields).unwrap_or_default() };
    let mut newer: HashMap<String, Vec<(Fields, DateTime<Utc>)>> = HashMap::new();
    for record in records {
        let own = fields(record);
        let later = newer.entry(record.record.clone()).or_default();
        let covers = |of: &Fields| own.keys().all(|name| of.contains_key(name));
        if record.is_open()
            && let Some((_, at)) = later.iter().find(|(of, _)| covers(of))
        {
            record.resolution = SUPERSEDED.to_owned();
            (record.resolved_at, record.resolved_by) = (Some(*at), Some(super::POLICY.to_owned()));
        }
        if pending != Some(record.load.as_str()) {
            later.push((own, record.found_at));
        }
    }
}
