//! The command line as it was typed. Every flag has an environment variable `FRAZIL_…`; what they
//! say goes above the file.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::builder::FalseyValueParser;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use super::arrange::{SetupArgs, TeardownArgs};
use super::compare::CompareArgs;
use super::conflicts::ConflictsCommand;
use super::dlq::DlqCommand;
use super::lake_args::{ChangesArgs, CheckpointsArgs, QueryArgs, RollbackArgs, SnapshotsArgs, TagArgs};
use super::maintain::{MaintainArgs, StatusArgs};
use super::selftest::SelftestArgs;
use super::serve_args::{JobsCommand, ServeArgs};
use super::state_args::{HistoryArgs, JournalArgs, StateCommand};
use crate::config::{
    ChangeWord, ModeWord, Names, Overrides, SchemaWord, Selection, Size, Span, StreamEntry, units,
};
use crate::lake::DroppedColumns;
use crate::memory;
use crate::source::{BeyondHorizon, NullCursor};
use crate::target::Deletes;

/// Rows out of databases into Iceberg snapshots, and on into tables: none lost, none doubled.
#[derive(Debug, Parser)]
#[command(name = "frazil", version, propagate_version = true, max_term_width = 100, after_help = EXIT_CODES)]
pub(super) struct Cli {
    /// What all commands share.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  wrong configuration or usage
  3  some streams failed, or another runner was faster
  4  nothing to do (with --exit-code)

Every flag has an environment variable: --memory is FRAZIL_MEMORY. Logs: FRAZIL_LOG=debug.";

/// What all commands share.
#[derive(Debug, Args)]
pub(super) struct Global {
    /// The configuration [default: ./frazil.yaml]
    #[arg(long, short, global = true, value_name = "FILE", env = "FRAZIL_CONFIG")]
    pub config: Option<PathBuf>,
    /// How results are printed
    #[arg(long, global = true, value_enum, default_value = "text", env = "FRAZIL_OUTPUT")]
    pub output: Output,
    /// Say more: causes of errors, and a log on stderr
    #[arg(long, short, global = true, env = "FRAZIL_VERBOSE", value_parser = FalseyValueParser::new())]
    pub verbose: bool,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people
    #[value(alias = "table")]
    Text,
    /// One JSON object a line
    Json,
    /// Comma-separated values (rows only: `query`, `changes`)
    Csv,
    /// A Parquet file (rows only)
    Parquet,
    /// Arrow's IPC stream (rows only)
    Arrow,
}

impl Output {
    /// Whether it is not for eyes.
    pub(super) fn is_binary(self) -> bool {
        matches!(self, Self::Parquet | Self::Arrow)
    }

    /// Whether reports can be printed so; rows can in all.
    pub(super) fn is_for_reports(self) -> bool {
        matches!(self, Self::Text | Self::Json)
    }
}

impl Command {
    /// Whether it prints rows, and not a report.
    pub(super) fn prints_rows(&self) -> bool {
        matches!(self, Self::Query(_) | Self::Changes(_) | Self::Dlq(DlqCommand::Show(_)))
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Write a commented configuration from a live database
    Init(InitArgs),
    /// Connect to everything and say what a run would do, and what is in its way
    Check(StreamsArgs),
    /// Install what streams need in their databases: triggers, publications
    Setup(SetupArgs),
    /// Remove what `setup` and runs have put into databases: triggers, slots, publications
    Teardown(TeardownArgs),
    /// List the tables of a database: sizes, keys, cursor candidates
    Discover(DiscoverArgs),
    /// Say what a run would move, and by which statements
    Plan(StreamsArgs),
    /// Source to lake to target
    Run(RunArgs),
    /// Source to lake only
    Sync(RunArgs),
    /// Lake to target only
    Load(RunArgs),
    /// Prove that source, lake and target hold the same rows, and set right where they do not
    Compare(CompareArgs),
    /// Run streams when they are due, by their `schedule`, `fresh` and `after`, until told to stop
    Serve(ServeArgs),
    /// What a running `frazil serve` does, and what it is asked to do
    #[command(subcommand)]
    Jobs(JobsCommand),
    /// Where each stream is: position, last run, snapshot, target
    Status(StatusArgs),
    /// Past runs
    History(HistoryArgs),
    /// The snapshots of a lake table
    Snapshots(SnapshotsArgs),
    /// The checkpoints of groups: which snapshots show their tables as they were at one moment
    Checkpoints(CheckpointsArgs),
    /// Ask the lake in SQL, now or as it was; a shell without a statement
    Query(QueryArgs),
    /// What happened to each row of a lake table between two moments
    Changes(ChangesArgs),
    /// Name a snapshot, so that it stays, or list the names
    Tag(TagArgs),
    /// Put a lake table, and its position in the source, back to an older snapshot
    Rollback(RollbackArgs),
    /// Keep lake tables in shape: merge small files, expire snapshots, find files without one
    Maintain(MaintainArgs),
    /// Positions in the sources, as the lake holds them
    #[command(subcommand)]
    State(StateCommand),
    /// Dead letters: rows that could not be carried
    #[command(subcommand)]
    Dlq(DlqCommand),
    /// Conflicts: rows that source and target both changed
    #[command(subcommand)]
    Conflicts(ConflictsCommand),
    /// Who changed state by hand: positions set, tables rolled back, streams paused
    Journal(JournalArgs),
    /// Print the JSON Schema of the configuration
    Schema,
    /// See it work: a shop, a lake and a warehouse in one directory, without any server
    Demo(DemoArgs),
    /// Torture it: random changes, killed passes, and proof that no row is lost, doubled or changed
    Selftest(SelftestArgs),
}

/// Which streams, and what is said of them outside of the file.
#[derive(Debug, Args)]
pub(super) struct StreamsArgs {
    /// Only these streams: a name or a pattern, can be repeated
    #[arg(long, short, value_name = "PATTERN", value_delimiter = ',', env = "FRAZIL_SELECT")]
    pub select: Vec<String>,
    /// Not these streams
    #[arg(long, value_name = "PATTERN", value_delimiter = ',', env = "FRAZIL_EXCLUDE")]
    pub exclude: Vec<String>,
    /// Where things are, without a file or above it.
    #[command(flatten)]
    pub places: PlaceArgs,
    /// What every stream is told, above the file.
    #[command(flatten)]
    pub settings: SettingArgs,
    /// The machine's share.
    #[command(flatten)]
    pub engine: EngineArgs,
}

/// Where things are, without a file or above it.
#[derive(Debug, Args)]
#[command(next_help_heading = "Without a file, or above it")]
pub(super) struct PlaceArgs {
    /// The source: a URL or a connection's name. No file is looked for then
    #[arg(long, value_name = "URL", env = "FRAZIL_FROM")]
    pub from: Option<String>,
    /// A table of the source: a name or a pattern, can be repeated
    #[arg(long = "table", value_name = "TABLE", env = "FRAZIL_TABLE")]
    pub tables: Vec<String>,
    /// The target: a URL, a connection's name, or `name.schema`
    #[arg(long, value_name = "URL", env = "FRAZIL_TO")]
    pub to: Option<String>,
    /// The table in the target
    #[arg(long, value_name = "TABLE", env = "FRAZIL_TARGET_TABLE")]
    pub target_table: Option<String>,
    /// Where the lake is.
    #[command(flatten)]
    pub lake: LakeArgs,
}

/// Where the lake is.
#[derive(Debug, Args)]
pub(super) struct LakeArgs {
    /// The lake: a directory or a URL [default: ./lake]
    #[arg(long, value_name = "PLACE", env = "FRAZIL_LAKE")]
    pub lake: Option<String>,
    /// The lake's catalog: `filesystem` or a URL [default: filesystem]
    #[arg(long, value_name = "CATALOG", env = "FRAZIL_CATALOG")]
    pub catalog: Option<String>,
    /// The catalog's name, where one server holds several
    #[arg(long, value_name = "NAME", env = "FRAZIL_CATALOG_NAME")]
    pub catalog_name: Option<String>,
    /// An option of the catalog: `scope=…`
    #[arg(long = "catalog-option", value_name = "KEY=VALUE", value_parser = key_value, env = "FRAZIL_CATALOG_OPTION")]
    pub catalog_options: Vec<(String, String)>,
    /// An option of the lake's stores: `s3.endpoint=http://…`
    #[arg(long = "lake-option", value_name = "KEY=VALUE", value_parser = key_value, env = "FRAZIL_LAKE_OPTION")]
    pub options: Vec<(String, String)>,
}

/// What every stream is told, above the file.
#[derive(Debug, Args)]
#[command(next_help_heading = "Settings of all streams, above the file")]
pub(super) struct SettingArgs {
    /// merge, append or replace
    #[arg(long, value_name = "MODE", env = "FRAZIL_MODE")]
    pub mode: Option<ModeWord>,
    /// Key columns [default: the source's primary key]
    #[arg(long, value_name = "COLUMNS", value_delimiter = ',', env = "FRAZIL_PRIMARY_KEY")]
    pub primary_key: Vec<String>,
    /// The column that grows with every change
    #[arg(long, value_name = "COLUMN", env = "FRAZIL_CURSOR")]
    pub cursor: Option<String>,
    /// Read again what lies this far behind: 10m
    #[arg(long, value_name = "TIME", env = "FRAZIL_LAG")]
    pub lag: Option<Span>,
    /// How changes are found: auto, timestamp, version, id, full, log, trigger, tracking, rowversion or temporal
    #[arg(long, value_name = "HOW", env = "FRAZIL_CHANGE")]
    pub change: Option<ChangeWord>,
    /// Rows whose cursor is NULL: include, exclude or fail
    #[arg(long, value_name = "WHAT", value_parser = word::<NullCursor>, env = "FRAZIL_NULL_CURSOR")]
    pub null_cursor: Option<NullCursor>,
    /// Rows beyond what is known to be committed: wait or read
    #[arg(long, value_name = "WHAT", value_parser = word::<BeyondHorizon>, env = "FRAZIL_BEYOND_HORIZON")]
    pub beyond_horizon: Option<BeyondHorizon>,
    /// Deleted rows in the target: hard, soft or ignore
    #[arg(long, value_name = "WHAT", value_parser = word::<Deletes>, env = "FRAZIL_DELETES")]
    pub deletes: Option<Deletes>,
    /// Transactions of about so many rows in the target, for tables that others write to
    #[arg(long, value_name = "ROWS", env = "FRAZIL_BATCH_ROWS")]
    pub batch_rows: Option<NonZeroU32>,
    /// Columns to read [default: all]
    #[arg(long, value_name = "COLUMNS", value_delimiter = ',', env = "FRAZIL_COLUMNS")]
    pub columns: Vec<String>,
    /// A condition in the source's SQL
    #[arg(long = "where", value_name = "SQL", env = "FRAZIL_WHERE")]
    pub filter: Option<String>,
    /// A partition transform of the lake table, can be repeated: day(created_at)
    #[arg(long, value_name = "TRANSFORM", env = "FRAZIL_PARTITION_BY")]
    pub partition_by: Vec<String>,
    /// The order of rows in the lake's new files: "created_at desc"
    #[arg(long, value_name = "COLUMNS", value_delimiter = ',', env = "FRAZIL_SORT_BY")]
    pub sort_by: Vec<String>,
    /// What happens when the source's columns change: evolve, freeze, discard_row, discard_value
    #[arg(long, value_name = "WHAT", env = "FRAZIL_SCHEMA")]
    pub schema: Option<SchemaWord>,
    /// What happens in the lake to columns that the source dropped: keep, drop
    #[arg(long, value_name = "WHAT", value_parser = word::<DroppedColumns>, env = "FRAZIL_DROPPED_COLUMNS")]
    pub dropped_columns: Option<DroppedColumns>,
    /// Source bytes of a first read that are committed at a time: 1GiB
    #[arg(long, value_name = "SIZE", env = "FRAZIL_PORTION")]
    pub portion: Option<Size>,
}

/// The machine's share.
#[derive(Debug, Args)]
#[command(next_help_heading = "Resources")]
pub(super) struct EngineArgs {
    /// Memory for everything
    #[arg(long, value_name = "SIZE", default_value = "256MiB", env = "FRAZIL_MEMORY")]
    pub memory: Size,
    /// Streams at once, which share the memory
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one, env = "FRAZIL_PARALLEL")]
    pub parallel: usize,
    /// Ranges of one table that are read at once [default: the processors, up to 4]
    #[arg(long, value_name = "N", value_parser = at_least_one, env = "FRAZIL_THREADS")]
    pub threads: Option<usize>,
}

/// How to run.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// Which streams.
    #[command(flatten)]
    pub streams: StreamsArgs,
    /// How to run them.
    #[command(flatten)]
    pub how: HowArgs,
}

/// How to run streams.
#[derive(Debug, Args)]
#[command(next_help_heading = "How to run")]
pub(super) struct HowArgs {
    /// Only streams whose last run failed
    #[arg(long, env = "FRAZIL_FAILED", value_parser = FalseyValueParser::new())]
    pub failed: bool,
    /// Say what would be done and do nothing, as `plan`
    #[arg(long, env = "FRAZIL_DRY_RUN", value_parser = FalseyValueParser::new())]
    pub dry_run: bool,
    /// Run again and again, with at least this much from start to start: 30s
    #[arg(long, value_name = "TIME", value_parser = duration, env = "FRAZIL_EVERY")]
    pub every: Option<Duration>,
    /// Read everything again, beside what there is: the lake commits what differs, once it is whole, and
    /// targets are loaded anew
    #[arg(long, conflicts_with = "every")]
    pub full_refresh: bool,
    /// Try again what fails for a passing reason, for so long in each pass: 5m
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = duration, env = "FRAZIL_RETRY_FOR")]
    pub retry_for: Duration,
    /// Exit with 4 when there was nothing to do
    #[arg(long, env = "FRAZIL_EXIT_CODE", value_parser = FalseyValueParser::new())]
    pub exit_code: bool,
}

/// What to write a configuration from.
#[derive(Debug, Args)]
pub(super) struct InitArgs {
    /// The database
    #[arg(value_name = "URL", env = "FRAZIL_FROM")]
    pub url: String,
    /// The connection's name [default: the database's name]
    #[arg(long, env = "FRAZIL_NAME")]
    pub name: Option<String>,
    /// Only these tables: a name or a pattern, can be repeated
    #[arg(long = "table", value_name = "TABLE", env = "FRAZIL_TABLE")]
    pub tables: Vec<String>,
    /// The lake: a directory or a URL
    #[arg(long, value_name = "PLACE", default_value = "./lake", env = "FRAZIL_LAKE")]
    pub lake: String,
    /// Replace a file that is there
    #[arg(long, env = "FRAZIL_FORCE", value_parser = FalseyValueParser::new())]
    pub force: bool,
}

/// Whose tables to list.
#[derive(Debug, Args)]
pub(super) struct DiscoverArgs {
    /// A connection's name or a URL [default: all sources of the configuration]
    #[arg(value_name = "CONNECTION", env = "FRAZIL_FROM")]
    pub connection: Option<String>,
    /// Only these tables: a name or a pattern, can be repeated
    #[arg(long = "table", value_name = "TABLE", env = "FRAZIL_TABLE")]
    pub tables: Vec<String>,
}

/// Where the demo happens.
#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// A directory for its files, made anew each time
    #[arg(long, value_name = "DIR", default_value = "frazil-demo", env = "FRAZIL_DIR")]
    pub dir: PathBuf,
}

impl Cli {
    /// The command, with values of the environment never shown: they may be secrets.
    pub(super) fn definition() -> clap::Command {
        hide_values(Self::command())
    }
}

fn hide_values(command: clap::Command) -> clap::Command {
    command.mut_args(|arg| arg.hide_env(true).hide_env_values(true)).mut_subcommands(hide_values)
}

impl StreamsArgs {
    /// As the configuration takes them.
    pub(super) fn overrides(&self, global: &Global) -> Overrides {
        Overrides {
            config: global.config.clone(),
            from: self.places.from.clone(),
            tables: self.places.tables.clone(),
            to: self.places.to.clone(),
            target_table: self.places.target_table.clone(),
            stream: self.settings.entry(),
            ..self.places.lake.overrides()
        }
    }

    /// Which streams.
    pub(super) fn selection(&self) -> Selection {
        Selection { select: self.select.clone(), exclude: self.exclude.clone() }
    }
}

impl LakeArgs {
    /// As the configuration takes them.
    pub(super) fn overrides(&self) -> Overrides {
        Overrides {
            lake: self.lake.clone(),
            catalog: self.catalog.clone(),
            catalog_name: self.catalog_name.clone(),
            catalog_options: self.catalog_options.clone(),
            lake_options: self.options.clone(),
            ..Overrides::default()
        }
    }
}

impl SettingArgs {
    fn entry(&self) -> StreamEntry {
        let names = |names: &Vec<String>| (!names.is_empty()).then(|| Names(names.clone()));
        StreamEntry {
            mode: self.mode,
            primary_key: names(&self.primary_key),
            cursor: self.cursor.clone(),
            lag: self.lag,
            change: self.change,
            null_cursor: self.null_cursor,
            beyond_horizon: self.beyond_horizon,
            deletes: self.deletes,
            batch_rows: self.batch_rows,
            columns: names(&self.columns),
            filter: self.filter.clone(),
            partition_by: names(&self.partition_by),
            sort_by: names(&self.sort_by),
            schema: self.schema,
            dropped_columns: self.dropped_columns,
            portion: self.portion,
            ..StreamEntry::default()
        }
    }
}

impl EngineArgs {
    /// Ranges of one table that are read at once.
    pub(super) fn threads(&self) -> usize {
        /// More readers than this wait for the network or for the writers.
        const MOST: usize = 4;
        self.threads.unwrap_or_else(|| {
            std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(MOST)
        })
    }

    /// What each of the streams that run at once may use.
    pub(super) fn budget(&self) -> crate::Result<memory::Budget> {
        memory::Budget::new(self.memory.0 / self.parallel as u64, self.threads()).map_err(|error| {
            if self.parallel == 1 {
                return error;
            }
            crate::Error::new(
                crate::ErrorKind::Config,
                format!("{} MiB are too little for {} streams at once", self.memory.0 >> 20, self.parallel),
            )
            .hint("raise `--memory` or lower `--parallel`: each stream needs 128 MiB")
        })
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write it as `key=value`".to_owned()),
    }
}

pub(super) fn since(text: &str) -> Result<DateTime<Utc>, String> {
    units::moment(text, Utc::now()).map_err(|problem| problem.replacen('\n', ": ", 1))
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    units::duration(text).map_err(|problem| problem.replacen('\n', ": ", 1))
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err("a number from 1 upwards".to_owned()),
    }
}

/// A word as the configuration knows it.
fn word<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(text.into()).map_err(|problem| problem.to_string())
}
