//! The user's file as types: what was said, before it is resolved into what it means.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};

use super::MaintenanceEntry;
use super::audit::AuditEntry;
use super::conflicts::ConflictsEntry;
use super::connections::ConnectionEntry;
use super::groups::GroupEntry;
use super::lake::LakeEntry;
use super::names::Names;
use super::reconcile::ReconcileEntry;
use super::reject::Limit;
use super::schedule::ScheduleEntry;
use super::shared::SharedEntry;
use super::units;
use super::values::Values;
use crate::lake::{DroppedColumns, SchemaContract};
use crate::schedule::Priority;
use crate::source::{BeyondHorizon, ChangeDetection, LogSettings, NullCursor, OnGap, OnSlotLag};
use crate::sync::{Mode, OnReject, StreamSettings};
use crate::table::FormatVersion;
use crate::target::Deletes;

/// The configuration of frazil: which tables go where, and how.
///
/// Text may hold `${VAR}` or `${VAR:-default}` from the environment or from a `.env` file next to
/// the configuration.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(
    default,
    deny_unknown_fields,
    expecting = "a map with `connections`, `lake`, `maintenance`, `defaults`, `streams`, `groups` and `shared`"
)]
pub struct File {
    /// Databases by name. Streams refer to them.
    pub connections: BTreeMap<String, ConnectionEntry>,
    /// Where the Iceberg tables are.
    pub lake: Option<LakeEntry>,
    /// How lake tables are kept in shape.
    pub maintenance: MaintenanceEntry,
    /// Settings of every stream that does not say otherwise.
    pub defaults: StreamEntry,
    /// Tables, or patterns of tables (`public.audit_*`), and their settings. A table takes its settings
    /// from one entry: its own, else the last pattern that matches.
    pub streams: Streams,
    /// Groups of streams by name, where something is to be said of them.
    pub groups: BTreeMap<String, GroupEntry>,
    /// Tables of targets that several streams feed, and which of them goes first.
    pub shared: Vec<SharedEntry>,
}

/// The settings of a stream. What is not said comes from `defaults`.
#[derive(Debug, Clone, Default, serde::Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, expecting = "a map of settings")]
pub struct StreamEntry {
    /// The connection that rows come from.
    pub source: Option<String>,
    /// The table there, where the stream has another name: two sources may have tables of one name.
    pub table: Option<String>,
    /// Where rows go to: `connection`, `connection.schema` or `connection.schema.table`, with
    /// `{stream_schema}` and `{stream_table}`. Without it they stay in the lake.
    pub target: Option<String>,
    /// How rows are kept. `merge`: one row a key, the current state (the default where the source has
    /// a primary key). `append`: every row that came. `replace`: everything anew each time.
    /// `scd2`: as `merge`, and the target keeps every version of a row.
    pub mode: Option<ModeWord>,
    /// Key columns, if not the source's primary key.
    pub primary_key: Option<Names>,
    /// The column that grows with every change.
    #[serde(alias = "update_key", alias = "incremental_key")]
    pub cursor: Option<String>,
    /// Read again what lies this far behind the newest cursor value: `10m`.
    pub lag: Option<Span>,
    /// How changes are found. `auto` picks by the source's catalog and says what it picked.
    pub change: Option<ChangeWord>,
    /// What happens to rows whose cursor is NULL.
    pub null_cursor: Option<NullCursor>,
    /// What happens to rows whose cursor lies beyond what is known to be committed.
    pub beyond_horizon: Option<BeyondHorizon>,
    /// What happens when the source does not have all changes since the last run any more: a slot that is
    /// lost, a log that was cleaned up. `resnapshot`: the whole table is read and compared. `fail`: the
    /// stream stops.
    pub on_gap: Option<OnGap>,
    /// The replication slot of Postgres to read the log from. Without it the stream makes one of its own.
    pub slot: Option<String>,
    /// The publication of Postgres to read the log by. Without it the stream makes one of its own.
    pub publication: Option<String>,
    /// Tell when more log than this waits on the server for the stream: `10GiB`.
    pub max_slot_lag: Option<Size>,
    /// What a pass does that finds more. `tell`: it reads the log, and its report says how much there was.
    /// `resnapshot`: it drops the slot, so that the server may remove the log, and reads and compares the whole
    /// table.
    pub on_slot_lag: Option<OnSlotLag>,
    /// How much of the log is committed at a time, about, and at least one transaction: `64MiB`. Without it
    /// what is there comes in one commit, up to half a million changes.
    pub commit_bytes: Option<Size>,
    /// How values without an exact place in the lake are carried.
    pub values: Option<Values>,
    /// What happens in the target to rows that were deleted.
    pub deletes: Option<Deletes>,
    /// Bring a change into the target by transactions of about so many rows, for tables that others write
    /// to: none of them then waits for long. Meanwhile readers see some of the change. In `mode: merge`
    /// only. Without it a change comes in one transaction.
    pub batch_rows: Option<NonZeroU32>,
    /// Columns to read; all, if nothing is said.
    #[serde(alias = "select")]
    pub columns: Option<Names>,
    /// A condition in the source's SQL that rows must meet.
    #[serde(rename = "where")]
    pub filter: Option<String>,
    /// Partition transforms of the lake table: `day(created_at)`, `bucket(16, id)`, `region`.
    pub partition_by: Option<Names>,
    /// The version of the Iceberg format of the lake table. `3`: deletion vectors, row lineage, defaults
    /// of columns, nanoseconds; a table in version 2 is raised to it and never goes back. A new table has
    /// version 2, if nothing is said.
    pub format_version: Option<FormatWord>,
    /// The order of rows in the lake's new files: `region`, `created_at desc`.
    pub sort_by: Option<Names>,
    /// The table in the lake, `namespace.table`, with `{stream_schema}` and `{stream_table}`.
    pub lake_table: Option<String>,
    /// About how many source bytes of a first read are committed at a time: what a crash can cost.
    pub portion: Option<Size>,
    /// What a change must pass before it is shown in the lake; what fails is kept aside.
    pub audit: Option<AuditEntry>,
    /// What happens when the source's columns change. `evolve`: the lake follows. `freeze`: the stream
    /// stops. `discard_row`: rows with values that have no place become dead letters. `discard_value`: such
    /// values are left out, and counted.
    pub schema: Option<SchemaWord>,
    /// What happens to rows that the target refuses: a constraint, a value that does not fit.
    pub on_reject: Option<OnReject>,
    /// How many rows of a pass may become dead letters: `100`, or a share, `0.1%`. Beyond it the pass fails.
    pub max_rejected: Option<Limit>,
    /// Who wins where source and target both changed a row: `source_wins` (nobody looks), `target_wins`,
    /// `last_write_wins`, `error`, `manual`; a map with `default`, `columns` and `last_write` says it by column.
    pub conflicts: Option<ConflictsEntry>,
    /// What happens in the lake to a column that the source dropped. `keep`: it stays and is NULL from
    /// then on. `drop`: it goes, older snapshots still show it.
    pub dropped_columns: Option<DroppedColumns>,
    /// When `frazil serve` runs the stream: five fields of cron, `every 5m`, or a map.
    pub schedule: Option<ScheduleEntry>,
    /// How old what the lake shows may be at most, `15m`: `frazil serve` runs the stream as often as that needs.
    pub fresh: Option<Span>,
    /// How often `frazil serve` commits what the log has, `1s`: with this much from commit to commit. Streams
    /// with `change: log` that say nothing of when they run are followed so, every ten seconds.
    pub commit_interval: Option<Span>,
    /// When `frazil serve` compares source, lake and target after a pass, and makes them alike: `every 24h`. So
    /// deletes are found that the stream's `change` cannot see.
    pub reconcile: Option<ReconcileEntry>,
    /// Streams that it waits for. Without `schedule` and `fresh` it runs when all of them have run.
    pub after: Option<Names>,
    /// Streams of one group are read up to one place of their database's log, and a checkpoint says which
    /// snapshots show their tables as they were there: `frazil checkpoints`. For `change: log` of Postgres.
    pub group: Option<String>,
    /// Which stream goes first when not all can.
    pub priority: Option<Priority>,
    /// Leave these tables out.
    pub disabled: Option<bool>,
}

impl StreamEntry {
    /// This, and what it does not say from `below`.
    pub(super) fn over(self, below: &Self) -> Self {
        // `fresh`, `every`, `cron` and `commit_interval` are one question; who answers it here is not overruled from below.
        let schedule = ScheduleEntry::over(&self.schedule, &below.schedule, self.says_when());
        let fresh = self.fresh.or(below.fresh.filter(|_| !self.says_when()));
        let commit_interval = self.commit_interval.or(below.commit_interval.filter(|_| !self.says_when()));
        macro_rules! first {
            ($($field:ident),*) => { Self { $($field: self.$field.or_else(|| below.$field.clone()),)*
                values: match (self.values, &below.values) {
                    (Some(above), Some(below)) => Some(above.over(below)),
                    (above, below) => above.or_else(|| below.clone()),
                },
                schedule,
                fresh,
                commit_interval,
            } };
        }
        first!(
            source,
            table,
            target,
            mode,
            primary_key,
            cursor,
            lag,
            change,
            null_cursor,
            beyond_horizon,
            on_gap,
            slot,
            publication,
            max_slot_lag,
            on_slot_lag,
            commit_bytes,
            deletes,
            batch_rows,
            columns,
            filter,
            partition_by,
            format_version,
            sort_by,
            dropped_columns,
            lake_table,
            portion,
            audit,
            schema,
            on_reject,
            max_rejected,
            conflicts,
            reconcile,
            after,
            group,
            priority,
            disabled
        )
    }

    /// Whether it says how often the stream runs.
    pub(super) fn says_when(&self) -> bool {
        self.fresh.is_some()
            || self.commit_interval.is_some()
            || self.schedule.as_ref().is_some_and(ScheduleEntry::says_when)
    }

    /// Whether it is read from the database's own log.
    pub(super) fn follows_a_log(&self) -> bool {
        self.change.is_some_and(|change| change.0 == ChangeDetection::Log)
    }

    /// The settings that name no place.
    pub(super) fn settings(&self) -> StreamSettings {
        let usual = StreamSettings::default();
        let names = |names: &Option<Names>| names.as_ref().map(|names| names.0.clone());
        StreamSettings {
            mode: self.mode.map(|mode| mode.0),
            primary_key: names(&self.primary_key).unwrap_or_default(),
            change: self.change.map(|change| change.0).unwrap_or_default(),
            cursor: self.cursor.clone(),
            lag: self.lag.map_or(usual.lag, |lag| lag.0),
            null_cursor: self.null_cursor.unwrap_or_default(),
            beyond_horizon: self.beyond_horizon.unwrap_or_default(),
            values: self.values.as_ref().map(Values::policy).unwrap_or_default(),
            on_gap: self.on_gap.unwrap_or_default(),
            log: LogSettings {
                slot: self.slot.clone(),
                publication: self.publication.clone(),
                max_lag: self.max_slot_lag.map(|size| size.0),
                on_slot_lag: self.on_slot_lag.unwrap_or_default(),
                commit_bytes: self.commit_bytes.map(|size| size.0),
                up_to: None,
            },
            columns: names(&self.columns),
            filter: self.filter.clone(),
            format_version: self.format_version.map(|version| version.0),
            audit: self.audit.as_ref().map(AuditEntry::audit),
            schema: self.schema.map(|schema| schema.0).unwrap_or_default(),
            dropped_columns: self.dropped_columns.unwrap_or_default(),
            partition_by: names(&self.partition_by),
            sort_by: names(&self.sort_by),
            deletes: self.deletes.unwrap_or_default(),
            batch_rows: self.batch_rows,
            portion_bytes: self.portion.map_or(usual.portion_bytes, |portion| portion.0),
            on_reject: self.on_reject.unwrap_or_default(),
            max_rejected: self.max_rejected.map(|limit| limit.0),
            conflicts: self.conflicts.as_ref().map(ConflictsEntry::rules).unwrap_or_default(),
        }
    }
}

/// Text that never shows in `Debug`.
#[derive(Clone, serde::Deserialize)]
#[serde(transparent)]
pub struct Secret(pub(super) String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// Streams in the order of the file.
#[derive(Debug, Default)]
pub struct Streams(pub(super) Vec<(String, StreamEntry)>);

impl<'de> Deserialize<'de> for Streams {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Ordered;

        impl<'de> Visitor<'de> for Ordered {
            type Value = Streams;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of streams: `public.orders: {}`")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Streams, A::Error> {
                let mut streams = Vec::new();
                while let Some(entry) = entries.next_entry()? {
                    streams.push(entry);
                }
                Ok(Streams(streams))
            }
        }

        deserializer.deserialize_map(Ordered)
    }
}

impl JsonSchema for Streams {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Streams".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let entry = generator.subschema_for::<StreamEntry>();
        json_schema!({ "type": "object", "additionalProperties": { "anyOf": [entry, { "type": "null" }] } })
    }
}

/// Reads a word or a measure from text; the second line of an error is its hint.
macro_rules! from_text {
    ($name:ident, $expecting:literal, $parse:expr) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;

                impl Visitor<'_> for Text {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }

                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        let parse: fn(&str) -> Result<_, String> = $parse;
                        parse(text).map($name).map_err(E::custom)
                    }
                }

                deserializer.deserialize_str(Text)
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;

            /// As on the command line.
            fn from_str(text: &str) -> Result<Self, String> {
                let parse: fn(&str) -> Result<_, String> = $parse;
                parse(text).map($name).map_err(|problem| problem.replacen('\n', ": ", 1))
            }
        }
    };
}

/// A length of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);
from_text!(Span, "a length of time", units::duration);

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);
from_text!(Size, "a number of bytes", units::bytes);

/// [`Mode`], with the words of this field's other tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModeWord(pub Mode);
from_text!(ModeWord, "a mode", |word| match word {
    "merge" | "upsert" | "incremental" => Ok(Mode::Merge),
    "append" => Ok(Mode::Append),
    "replace" | "full-refresh" | "full_refresh" => Ok(Mode::Replace),
    "scd2" => Ok(Mode::Scd2),
    _ => Err(unknown("mode", word, MODES, &["snapshot"])),
});

/// [`ChangeDetection`], with the words that later builds will know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChangeWord(pub ChangeDetection);
from_text!(ChangeWord, "a way to find changes", |word| match word {
    "auto" => Ok(ChangeDetection::Auto),
    "timestamp" => Ok(ChangeDetection::Timestamp),
    "version" => Ok(ChangeDetection::Version),
    "id" => Ok(ChangeDetection::Id),
    "full" => Ok(ChangeDetection::Full),
    "rowversion" => Ok(ChangeDetection::Rowversion),
    "tracking" => Ok(ChangeDetection::Tracking),
    "log" => Ok(ChangeDetection::Log),
    "temporal" => Ok(ChangeDetection::Temporal),
    "trigger" => Ok(ChangeDetection::Trigger),
    _ => Err(unknown("change", word, CHANGES, &[])),
});

/// [`SchemaContract`], with a suggestion for a word that is nearly right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchemaWord(pub SchemaContract);
from_text!(SchemaWord, "a schema policy", |word| match word {
    "evolve" => Ok(SchemaContract::Evolve),
    "freeze" => Ok(SchemaContract::Freeze),
    "discard_row" => Ok(SchemaContract::DiscardRow),
    "discard_value" => Ok(SchemaContract::DiscardValue),
    _ => Err(unknown("schema", word, SCHEMAS, &[])),
});

/// The version of the format of a lake table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FormatWord(pub FormatVersion);
from_text!(FormatWord, "a format version", |word| {
    word.parse()
        .ok()
        .and_then(FormatVersion::from_number)
        .map_or_else(|| Err(unknown("format_version", word, FORMATS, &["1"])), Ok)
});

const FORMATS: &[&str] = &["2", "3"];
const MODES: &[&str] = &["merge", "append", "replace", "scd2", "upsert", "incremental", "full-refresh"];
const CHANGES: &[&str] =
    &["auto", "timestamp", "version", "id", "full", "rowversion", "tracking", "log", "temporal", "trigger"];
const SCHEMAS: &[&str] = &["evolve", "freeze", "discard_row", "discard_value"];

fn unknown(key: &str, word: &str, known: &[&str], planned: &[&str]) -> String {
    let shown = super::shown(word);
    if planned.contains(&word) {
        return format!(
            "`{key}: {word}` is not in this build yet\nthis build knows `{}`",
            known.join("`, `")
        );
    }
    match super::suggest::hint(word, known.iter().copied()) {
        Some(hint) => format!("unknown {key} {shown}\n{hint}"),
        None => format!("unknown {key} {shown}"),
    }
}

/// The schema of something that is read from text.
macro_rules! schema_of_text {
    ($name:ident, $title:literal, $schema:tt) => {
        impl JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                $title.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}

schema_of_text!(Span, "Duration", { "type": "string", "examples": ["90s", "10m", "1h30m"] });
schema_of_text!(Size, "Size", { "type": ["string", "integer"], "examples": ["256MiB", "1GiB"] });
schema_of_text!(ModeWord, "Mode", { "enum": MODES });
schema_of_text!(ChangeWord, "Change", { "enum": CHANGES });
schema_of_text!(FormatWord, "FormatVersion", { "enum": [2, 3] });
schema_of_text!(SchemaWord, "SchemaPolicy", { "enum": SCHEMAS });
