//! `maintain`: tables of the lake brought into shape, one after the other.

use clap::Args;
use clap::builder::FalseyValueParser;

use super::args::{Global, LakeArgs, Output, StreamsArgs};
use super::lake_table::lake_table;
use super::output::{self, Exit};
use super::setup::{Setup, setup};
use crate::config::units::{show_bytes, show_count};
use crate::config::{self, Config, Overrides, Size, Span};
use crate::error::{Error, ErrorKind, Result};
use crate::lake::{Health, Lake, LakeSettings, LakeTable, SMALLEST_ORPHAN_AGE};
use crate::maintain::{self, OrphanFiles, Policy, Report};
use crate::memory::Budget;
use crate::table::TableId;

/// Which tables to bring into shape.
#[derive(Debug, Args)]
pub(super) struct MaintainArgs {
    /// Tables of the lake: `public.orders` [default: all]
    #[arg(value_name = "TABLE")]
    pub tables: Vec<String>,
    /// Say what would be done, and do nothing
    #[arg(long, env = "FRAZIL_DRY_RUN", value_parser = FalseyValueParser::new())]
    pub dry_run: bool,
    /// Delete files that belong to no snapshot; otherwise they are counted
    #[arg(long, env = "FRAZIL_REMOVE_ORPHANS", value_parser = FalseyValueParser::new())]
    pub remove_orphans: bool,
    /// Younger files may belong to a pass under way [default: 3d]
    #[arg(long, value_name = "TIME", env = "FRAZIL_ORPHAN_AGE")]
    pub orphan_age: Option<Span>,
    /// Count the different values of each column, for optimizers: this reads every row
    #[arg(long, env = "FRAZIL_STATISTICS", value_parser = FalseyValueParser::new())]
    pub statistics: bool,
    /// Take `--orphan-age` below an hour: when nothing else writes to the lake
    #[arg(long, env = "FRAZIL_FORCE", value_parser = FalseyValueParser::new())]
    pub force: bool,
    /// A target that is gone for good, and keeps snapshots from expiring: `dwh/orders`
    #[arg(long, value_name = "TARGET", env = "FRAZIL_FORGET_TARGET")]
    pub forget_target: Option<String>,
    /// Memory for rewriting files
    #[arg(long, value_name = "SIZE", default_value = "256MiB", env = "FRAZIL_MEMORY")]
    pub memory: Size,
    /// Where the lake is.
    #[command(flatten)]
    pub lake: LakeArgs,
}

/// What to say of streams.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// How well kept the lake tables are: files, deletes, snapshots
    #[arg(long, env = "FRAZIL_HEALTH", value_parser = FalseyValueParser::new())]
    pub health: bool,
    /// Which streams.
    #[command(flatten)]
    pub streams: StreamsArgs,
}

/// Does what pays, or says what would.
pub(super) async fn maintain(global: &Global, args: &MaintainArgs) -> Result<Exit> {
    let (settings, mut policy) = maintenance_of(global, args.lake.overrides())?;
    if let Some(age) = args.orphan_age {
        policy.orphan_age = age.0;
    }
    policy.statistics |= args.statistics;
    if policy.orphan_age < SMALLEST_ORPHAN_AGE && !args.force {
        return Err(Error::new(
            ErrorKind::Config,
            "files younger than an hour may belong to a pass under way",
        )
        .hint("raise `--orphan-age`, or add `--force` when nothing writes to the lake"));
    }
    let lake = Lake::open(&settings).await?;
    let budget = Budget::new(args.memory.0, 1)?;
    let names: Vec<String> = match args.tables.as_slice() {
        [] => lake.tables().await?.iter().map(TableId::to_string).collect(),
        some => some.to_vec(),
    };
    let mut failed = 0;
    for name in &names {
        let outcome = async {
            let mut table = lake_table(&lake, name).await?;
            one(&mut table, args, &policy, budget).await
        };
        match outcome.await {
            Ok(report) => say(global, &report)?,
            Err(error) => {
                failed += 1;
                output::say_error(&error, global.verbose);
            }
        }
    }
    Ok(match failed {
        0 => Exit::Done,
        some if some < names.len() => Exit::Partial,
        _ => Exit::Failed,
    })
}

async fn one(table: &mut LakeTable, args: &MaintainArgs, policy: &Policy, budget: Budget) -> Result<Report> {
    if let (Some(target), false) = (&args.forget_target, args.dry_run) {
        table.forget_target(target).await?;
    }
    let orphans = if args.remove_orphans { OrphanFiles::Delete } else { OrphanFiles::List };
    if args.dry_run {
        return maintain::plan(table, policy, OrphanFiles::List).await;
    }
    maintain::maintain(table, policy, orphans, budget).await
}

/// The lake and its maintenance by flags, else by the configuration, else by the defaults.
fn maintenance_of(global: &Global, flags: Overrides) -> Result<(LakeSettings, Policy)> {
    let overrides = Overrides { config: global.config.clone(), ..flags };
    if overrides.lake.is_some() && Config::find(&overrides).is_none() {
        return Ok((Config::lake_alone(&overrides)?, Policy::default()));
    }
    let config = Config::load(&overrides, &config::environment)?;
    Ok((config.lake().clone(), *config.maintenance()))
}

/// How well kept the lake tables of streams are.
pub(super) async fn health(global: &Global, args: &StreamsArgs) -> Result<Exit> {
    let Setup { config, streams } = setup(global, args).await?;
    let lake = Lake::open(config.lake()).await?;
    let mut rows = Vec::new();
    for stream in &streams {
        let Some(table) = lake.table(&stream.lake_table).await? else { continue };
        let health = table.health(config.maintenance().layout).await?;
        if global.output == Output::Json {
            let table = stream.lake_table.to_string();
            output::json(&serde_json::json!({ "table": table, "health": health }))?;
        } else {
            rows.push(health_row(&stream.lake_table, &health));
        }
    }
    if global.output != Output::Json {
        let head = ["table", "health", "data files", "after", "size", "deletes", "snapshots", "why"];
        output::table(&head, &rows)?;
    }
    Ok(Exit::Done)
}

fn health_row(table: &TableId, health: &Health) -> Vec<String> {
    let reasons: Vec<String> =
        health.reasons.iter().map(|reason| format!("{} (-{})", reason.text, reason.points)).collect();
    vec![
        table.to_string(),
        health.score.to_string(),
        show_count(health.data_files as u64),
        show_count(health.files_after as u64),
        show_bytes(health.bytes),
        show_count(health.delete_files as u64),
        show_count(health.snapshots as u64),
        reasons.join(", "),
    ]
}

fn say(global: &Global, report: &Report) -> Result<()> {
    if global.output == Output::Json {
        return output::json(report);
    }
    let would = if report.dry_run { "would " } else { "" };
    let mut parts = Vec::new();
    if report.rewrites > 0 {
        parts.push(format!(
            "{would}rewrite {} files ({}) as {}",
            show_count(report.files_before as u64),
            show_bytes(report.bytes),
            show_count(report.files_after as u64)
        ));
    }
    if report.delete_files > 0 {
        parts.push(format!("{} delete files gone", show_count(report.delete_files as u64)));
    }
    if report.columns_counted > 0 {
        let columns = show_count(report.columns_counted as u64);
        parts.push(format!("different values of {columns} columns counted"));
    }
    if report.expired.snapshots > 0 {
        parts.push(format!("{would}expire {} snapshots", show_count(report.expired.snapshots as u64)));
    }
    if report.expired.files > 0 {
        parts.push(format!("{} files deleted with them", show_count(report.expired.files as u64)));
    }
    if report.orphans_deleted > 0 {
        parts.push(format!("{} files without a snapshot deleted", show_count(report.orphans_deleted as u64)));
    } else if !report.orphans.is_empty() {
        let bytes = report.orphans.iter().map(|file| file.bytes).sum();
        parts.push(format!(
            "{} files ({}) belong to no snapshot: `--remove-orphans` deletes them",
            show_count(report.orphans.len() as u64),
            show_bytes(bytes)
        ));
    }
    if parts.is_empty() {
        parts.push("nothing to do".to_owned());
    }
    let health = match (report.score_before, report.score_after) {
        (Some(before), Some(after)) => format!("health {before} → {after}"),
        (Some(before), None) => format!("health {before}"),
        _ => String::new(),
    };
    output::line(format!("{}  {health}  {} ({:.1} s)", report.table, parts.join("; "), report.seconds))?;
    for orphan in report.orphans.iter().filter(|_| report.dry_run) {
        let written = orphan.written_at.format("%Y-%m-%d %H:%M");
        output::line(format!("  no snapshot: {} ({}, {written})", orphan.path, show_bytes(orphan.bytes)))?;
    }
    for note in &report.notes {
        output::say(format!("  note: {note}"));
    }
    Ok(())
}
