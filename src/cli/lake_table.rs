//! Tables of the lake by themselves: `snapshots`, `tag`, `rollback`. No source and no target is
//! asked.

use std::time::Duration;

use serde::Serialize;

use super::args::{Global, Output};
use super::lake_args::{RollbackArgs, SnapshotsArgs, TagArgs};
use super::output::{self, Exit};
use crate::config::units::{self, show_count};
use crate::config::{self, Config, Overrides};
use crate::delta::SnapshotId;
use crate::error::{Error, ErrorKind, Result};
use crate::journal::{Deed, Journal};
use crate::lake::{Lake, LakeTable, RefInfo, SnapshotInfo};
use crate::query::AsOf;
use crate::table::TableId;

/// What is kept for longer, a hundred years, is kept until somebody takes it away.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Lists the snapshots of a lake table, newest first.
pub(super) async fn snapshots(global: &Global, args: &SnapshotsArgs) -> Result<Exit> {
    let lake = Lake::open(&lake_settings(global, args.lake.overrides())?).await?;
    let table = lake_table(&lake, &args.table).await?;
    let current = table.current();
    let snapshots = table.snapshots();
    let refs = table.refs();
    let names = |id: SnapshotId| -> Vec<&str> {
        refs.iter().filter(|it| it.snapshot == id).map(|it| it.name.as_str()).collect()
    };
    if global.output == Output::Json {
        for snapshot in &snapshots {
            output::json(&serde_json::json!({
                "snapshot": snapshot.id,
                "parent": snapshot.parent,
                "committed_at": snapshot.committed_at,
                "operation": snapshot.operation,
                "current": current == Some(snapshot.id),
                "refs": names(snapshot.id),
                "summary": snapshot.summary,
            }))?;
        }
        return Ok(Exit::Done);
    }
    let rows: Vec<_> = snapshots
        .iter()
        .map(|snapshot| snapshot_row(snapshot, current == Some(snapshot.id), &names(snapshot.id)))
        .collect();
    output::table(&["snapshot", "committed", "operation", "added", "removed", "names", "position"], &rows)?;
    Ok(Exit::Done)
}

fn snapshot_row(snapshot: &SnapshotInfo, current: bool, names: &[&str]) -> Vec<String> {
    let count = |keys: &[&str]| {
        let sum: u64 = keys.iter().filter_map(|key| snapshot.summary.get(*key)?.parse::<u64>().ok()).sum();
        show_count(sum)
    };
    vec![
        format!("{}{}", snapshot.id, if current { " *" } else { "" }),
        snapshot.committed_at.format("%Y-%m-%d %H:%M:%S%.3f").to_string(),
        snapshot.operation.clone(),
        count(&["added-records"]),
        // Rows go with their files, or are hidden by position deletes.
        count(&["deleted-records", "added-position-deletes"]),
        names.join(", "),
        snapshot.summary.get("frazil.watermark").cloned().unwrap_or_default(),
    ]
}

/// Lists a table's names, gives one to a snapshot, or takes it away.
pub(super) async fn tag(global: &Global, args: &TagArgs) -> Result<Exit> {
    let lake = Lake::open(&lake_settings(global, args.lake.overrides())?).await?;
    let mut table = lake_table(&lake, &args.table).await?;
    match &args.name {
        None => {}
        Some(name) if args.delete => {
            table.untag(name).await?;
            output::say(format!("tag `{name}` is gone; its snapshot may expire now"));
        }
        Some(name) => {
            let at = match &args.at {
                Some(at) => at.parse::<AsOf>()?.resolve(&table)?,
                None => table.current().ok_or_else(|| no_snapshot(&table))?,
            };
            table.tag(name, at, args.keep).await?;
        }
    }
    let refs = table.refs();
    if global.output == Output::Json {
        refs.iter().map(RefLine::of).try_for_each(|line| output::json(&line))?;
        return Ok(Exit::Done);
    }
    let span = |span: Option<Duration>| match span {
        Some(span) if span > FOR_EVER => "ever".to_owned(),
        span => span.map(units::show_duration).unwrap_or_default(),
    };
    let rows: Vec<_> = refs
        .iter()
        .map(|it| vec![it.name.clone(), it.kind.name().to_owned(), it.snapshot.to_string(), span(it.keep)])
        .collect();
    output::table(&["name", "type", "snapshot", "kept for"], &rows)?;
    Ok(Exit::Done)
}

#[derive(Serialize)]
struct RefLine<'a> {
    name: &'a str,
    r#type: &'static str,
    snapshot: SnapshotId,
    #[serde(skip_serializing_if = "Option::is_none")]
    keep_seconds: Option<u64>,
}

impl<'a> RefLine<'a> {
    fn of(info: &'a RefInfo) -> Self {
        Self {
            name: &info.name,
            r#type: info.kind.name(),
            snapshot: info.snapshot,
            keep_seconds: info.keep.map(|keep| keep.as_secs()),
        }
    }
}

/// Puts the table, and with it the position in the source, back to an older snapshot.
pub(super) async fn rollback(global: &Global, args: &RollbackArgs) -> Result<Exit> {
    let lake = Lake::open(&lake_settings(global, args.lake.overrides())?).await?;
    let mut table = lake_table(&lake, &args.table).await?;
    let before = table.current().ok_or_else(|| no_snapshot(&table))?;
    let to = args.to.parse::<AsOf>()?.resolve(&table)?;
    if !args.dry_run && to != before {
        let mut journal = Journal::open(&super::journal::place(global))?;
        table.roll_back(to).await.map_err(|error| error.with("table", table.id()))?;
        journal.note(&Deed::now("rollback", table.id().to_string()).moved(Some(before), Some(to)))?;
    }
    let position = match args.dry_run {
        true => table
            .snapshots()
            .into_iter()
            .find(|it| it.id == to)
            .and_then(|mut it| it.summary.remove("frazil.watermark")),
        false => table.position()?.map(|position| position.watermark.as_str().to_owned()),
    };
    if global.output == Output::Json {
        output::json(&serde_json::json!({
            "table": table.id().to_string(),
            "from": before,
            "to": to,
            "position": position,
            "done": !args.dry_run && to != before,
        }))?;
        return Ok(Exit::Done);
    }
    let would = if args.dry_run { "would show" } else { "shows" };
    output::line(format!("{} {would} snapshot {to}", table.id()))?;
    match position {
        Some(position) => output::line(format!("  the next run reads on from {position}"))?,
        None => output::line("  the next run reads everything")?,
    }
    if !args.dry_run && to != before {
        output::say(format!(
            "  hint: `frazil load` brings the targets to it; `frazil rollback {} --to {before}` takes it back",
            table.id(),
        ));
    }
    Ok(Exit::Done)
}

fn no_snapshot(table: &LakeTable) -> Error {
    Error::new(ErrorKind::Config, "the table has no snapshot yet")
        .with("table", table.id())
        .hint("run `frazil sync` first")
}

/// The lake by flags, else by the configuration, else `./lake`.
pub(super) fn lake_settings(global: &Global, flags: Overrides) -> Result<crate::lake::LakeSettings> {
    let overrides = Overrides { config: global.config.clone(), ..flags };
    if overrides.lake.is_some() && Config::find(&overrides).is_none() {
        return Config::lake_alone(&overrides);
    }
    Ok(Config::load(&overrides, &config::environment)?.lake().clone())
}

/// A table of the lake by name: `schema.table`, or `table` where one schema has it.
pub(super) async fn lake_table(lake: &Lake, name: &str) -> Result<LakeTable> {
    let id: TableId = name.parse()?;
    if let Some(table) = lake.table(&id).await? {
        return Ok(table);
    }
    let tables = lake.tables().await?;
    if id.schema.is_none() {
        let mut named = tables.iter().filter(|table| table.name == id.name);
        if let (Some(only), None) = (named.next(), named.next())
            && let Some(table) = lake.table(only).await?
        {
            return Ok(table);
        }
    }
    let names: Vec<String> = tables.iter().map(ToString::to_string).collect();
    let hint = config::did_you_mean(name, names.iter().map(String::as_str)).unwrap_or_else(|| {
        match names.is_empty() {
            true => "the lake is empty: run `frazil sync` first".to_owned(),
            false => format!("the lake has {}", names.join(", ")),
        }
    });
    Err(Error::new(ErrorKind::Config, "the lake has no such table").with("table", id).hint(hint))
}
