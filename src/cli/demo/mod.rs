//! `demo`: a shop, a lake and a warehouse in one directory, without any server.
//!
//! It is told while it happens, with the parts that any run uses, and its configuration stays there
//! to go on from. The verdict at the end is computed, not claimed: when the three places disagree,
//! the demo fails.

mod agree;
mod shop;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use futures::StreamExt;

use super::args::DemoArgs;
use super::output::{Exit, line};
use super::setup;
use crate::config::units::show_count;
use crate::config::{self, Config, Overrides, Selection};
use crate::delta::SnapshotId;
use crate::error::{Error, ErrorKind, Result};
use crate::lake::Lake;
use crate::memory::{self, Budget};
use crate::query;
use crate::sync::{self, Context, Legs, Progress, Stream, StreamReport};
use shop::TABLES;

/// The first line of the configuration, by which the demo knows its own directory again.
const MARK: &str = "# Made by `frazil demo`.";

/// Tells the story.
pub(super) async fn demo(args: &DemoArgs) -> Result<Exit> {
    let began = Instant::now();
    let place = Place::make(&args.dir)?;
    line("")?;
    line(format!(
        "  frazil: a shop, a lake and a warehouse. No server; all of it in {}",
        args.dir.display()
    ))?;

    let watch = Instant::now();
    shop::open(&place.shop)?;
    title(1, "A shop in SQLite", Some(watch))?;
    for table in &TABLES {
        let sum = agree::in_database(&place.shop, table.name)?;
        line(format!("     {:<12} {:>8} rows   {}", table.name, show_count(sum.rows), table.sees))?;
    }

    let config = Config::load(
        &Overrides { config: Some(place.config.clone()), ..Overrides::default() },
        &config::environment,
    )?;
    let streams = config.resolve(&Selection::default(), &setup::Sources).await?.streams;
    let budget = Budget::new(memory::DEFAULT, 1)?;
    let lake = Lake::open(config.lake()).await?;
    let history = setup::history(&config);

    let watch = Instant::now();
    let before = Box::pin(passes(&lake, &streams, budget, history.as_ref())).await?;
    title(2, "First pass: every row into Iceberg, and on into the warehouse", Some(watch))?;
    tell(&before)?;

    shop::do_business(&place.shop)?;
    title(3, "A day of business in the shop", None)?;
    for (what, _) in &shop::BUSINESS {
        line(format!("     {what}"))?;
    }

    let watch = Instant::now();
    let after = Box::pin(passes(&lake, &streams, budget, history.as_ref())).await?;
    title(4, "Second pass: only what changed", Some(watch))?;
    tell(&after)?;
    line(
        "     products has no cursor, so it is read whole; the warehouse still writes only rows that differ.",
    )?;
    line("     A cursor never sees a deleted row: only products, read whole, tells of its 10.")?;

    let moments = Moments { before: snapshot(&before, "orders")?, after: snapshot(&after, "orders")? };
    title(5, "Time travel: orders by status, before and now", None)?;
    Box::pin(travel(&lake, budget, &moments)).await?;

    title(6, "What happened between the two snapshots", None)?;
    Box::pin(differences(&lake, budget, &before, &after)).await?;

    let watch = Instant::now();
    let agreed = Box::pin(verdict(&lake, budget, &place)).await?;
    title(7, "Do the three places agree?", Some(watch))?;
    for text in &agreed.lines {
        line(text)?;
    }
    line("")?;
    if !agreed.all {
        line("  ✗ They do not agree. This is a bug: please report it, with the directory if you can.")?;
        return Ok(Exit::Failed);
    }
    let rows = show_count(agreed.rows);
    line(format!(
        "  ✓ {rows} rows, the same in shop, lake and warehouse. {:.1} s in all.",
        began.elapsed().as_secs_f64()
    ))?;
    invite(&place, &moments)?;
    Ok(Exit::Done)
}

/// Where everything is.
struct Place {
    config: PathBuf,
    shop: PathBuf,
    warehouse: PathBuf,
}

impl Place {
    /// An empty directory with a configuration. Only what an earlier demo made is removed.
    fn make(dir: &Path) -> Result<Self> {
        let config = dir.join("frazil.yaml");
        let occupied = dir.read_dir().is_ok_and(|mut entries| entries.next().is_some());
        if occupied {
            let ours = std::fs::read_to_string(&config).is_ok_and(|text| text.starts_with(MARK));
            if !ours {
                return Err(Error::new(
                    ErrorKind::Config,
                    "the directory is not empty and not of an earlier demo",
                )
                .with("directory", dir.display())
                .hint("choose another one: `frazil demo --dir elsewhere`"));
            }
            for made in [
                "shop.db",
                "shop.db-wal",
                "shop.db-shm",
                "warehouse.db",
                "warehouse.db-wal",
                "warehouse.db-shm",
            ] {
                let _ = std::fs::remove_file(dir.join(made)); // what cannot be removed fails below
            }
            for made in ["lake", ".frazil"] {
                let _ = std::fs::remove_dir_all(dir.join(made));
            }
        }
        let made = std::fs::create_dir_all(dir).and_then(|()| dir.canonicalize());
        let dir = made.map_err(|source| unusable(dir, &source))?;
        let place = Self {
            config: dir.join("frazil.yaml"),
            shop: dir.join("shop.db"),
            warehouse: dir.join("warehouse.db"),
        };
        std::fs::write(&place.config, place.configuration(&dir)).map_err(|source| unusable(&dir, &source))?;
        Ok(place)
    }

    fn configuration(&self, dir: &Path) -> String {
        let mut text = format!(
            "{MARK} Change rows in shop.db, and run: frazil run --config {}\n\
             connections:\n  shop: {}\n  warehouse: {}\n\
             lake:\n  warehouse: {}\n\
             defaults: {{ source: shop, target: warehouse }}\n\
             streams:\n",
            self.config.display(),
            quoted(&address(&self.shop)),
            quoted(&address(&self.warehouse)),
            quoted(&dir.join("lake").display().to_string()),
        );
        for table in &TABLES {
            text += &format!("  {}: {}  # {}\n", table.name, table.settings, table.sees);
        }
        text
    }
}

fn unusable(dir: &Path, source: &std::io::Error) -> Error {
    Error::new(ErrorKind::Config, format!("the demo cannot use its directory: {source}"))
        .with("directory", dir.display())
        .hint("choose another one: `frazil demo --dir elsewhere`")
}

/// A path as an address: what has a meaning there is encoded.
fn address(path: &Path) -> String {
    let path: String = path
        .to_string_lossy()
        .chars()
        .map(|c| match c {
            ' ' | '%' | '?' | '#' => format!("%{:02X}", c as u32),
            c => c.to_string(),
        })
        .collect();
    format!("sqlite://{path}")
}

/// A YAML string, in which `${` means nothing else.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace("${", "$${"))
}

/// One pass of every stream, and what it says of itself.
async fn passes(
    lake: &Lake,
    streams: &[Stream],
    budget: Budget,
    history: Option<&crate::history::History>,
) -> Result<Vec<StreamReport>> {
    let context = Context::new(lake.clone(), budget, Default::default());
    let mut reports = Vec::with_capacity(streams.len());
    for stream in streams {
        let report = sync::pass(&context, stream, Legs::Both, Arc::new(Progress::default())).await;
        if let Some(history) = history {
            history.record("run", &report)?;
        }
        if let Some(failed) = &report.error {
            let error = Error::new(failed.code, failed.message.clone()).with("stream", &report.stream);
            return Err(match &failed.hint {
                Some(hint) => error.hint(hint.clone()),
                None => error,
            });
        }
        reports.push(report);
    }
    Ok(reports)
}

fn tell(reports: &[StreamReport]) -> Result<()> {
    for report in reports {
        let (Some(extract), Some(load)) = (&report.extract, &report.load) else { continue };
        line(format!(
            "     {:<12} {:>8} rows to the lake   {:>8} written, {:>3} deleted in the warehouse   {:>5.2} s",
            report.stream,
            show_count(extract.rows),
            show_count(load.upserted),
            show_count(load.deleted),
            report.seconds,
        ))?;
    }
    Ok(())
}

/// Two snapshots of a table.
struct Moments {
    before: SnapshotId,
    after: SnapshotId,
}

fn snapshot(reports: &[StreamReport], stream: &str) -> Result<SnapshotId> {
    reports
        .iter()
        .find(|report| report.stream == stream)
        .and_then(|report| report.extract.as_ref()?.snapshot)
        .ok_or_else(|| {
            Error::new(ErrorKind::Internal, "a pass of the demo made no snapshot").with("stream", stream)
        })
}

async fn travel(lake: &Lake, budget: Budget, moments: &Moments) -> Result<()> {
    let by_status =
        |at: SnapshotId| format!("SELECT status, count(*) FROM orders VERSION AS OF {at} GROUP BY status");
    let before = counts(lake, budget, &by_status(moments.before)).await?;
    let now = counts(lake, budget, &by_status(moments.after)).await?;
    line(format!("     {:<12} {:>8} {:>8}", "status", "before", "now"))?;
    for status in before.keys().chain(now.keys()).collect::<std::collections::BTreeSet<_>>() {
        let count = |counts: &BTreeMap<String, i64>| {
            show_count(counts.get(status).map_or(0, |count| count.unsigned_abs()))
        };
        line(format!("     {status:<12} {:>8} {:>8}", count(&before), count(&now)))?;
    }
    line(format!("     frazil query \"… FROM orders VERSION AS OF {}\"", moments.before))
}

async fn differences(
    lake: &Lake,
    budget: Budget,
    before: &[StreamReport],
    after: &[StreamReport],
) -> Result<()> {
    for table in TABLES.iter().filter(|table| table.name != "products") {
        let (from, to) = (snapshot(before, table.name)?, snapshot(after, table.name)?);
        let changes =
            format!("SELECT _change, count(*) FROM changes('{}', {from}, {to}) GROUP BY _change", table.name);
        let counted = counts(lake, budget, &changes).await?;
        let of = |what: &str| show_count(counted.get(what).map_or(0, |count| count.unsigned_abs()));
        line(format!(
            "     {:<12} {:>5} inserted, {:>5} updated, {:>3} deleted",
            table.name,
            of("insert"),
            of("update"),
            of("delete")
        ))?;
    }
    let (from, to) = (snapshot(before, "products")?, snapshot(after, "products")?);
    let rows = |from, to| {
        format!(
            "SELECT * FROM products VERSION AS OF {from} EXCEPT SELECT * FROM products VERSION AS OF {to}"
        )
    };
    let count = |sql: String| format!("SELECT 'n', count(*) FROM ({sql})");
    let gone = count(format!(
        "SELECT code FROM products VERSION AS OF {from} EXCEPT SELECT code FROM products VERSION AS OF {to}"
    ));
    let differ = counts(lake, budget, &count(rows(to, from))).await?;
    let gone = counts(lake, budget, &gone).await?;
    let one =
        |counts: &BTreeMap<String, i64>| show_count(counts.get("n").map_or(0, |count| count.unsigned_abs()));
    line(format!("     {:<12} {:>5} differ, {:>3} deleted", "products", one(&differ), one(&gone)))
}

/// A word and a count in each row.
async fn counts(lake: &Lake, budget: Budget, sql: &str) -> Result<BTreeMap<String, i64>> {
    let session = query::session(lake, budget, None).await?;
    let mut batches = query::sql(&session, sql).await?.execute_stream().await?;
    let mut counts = BTreeMap::new();
    while let Some(batch) = batches.next().await {
        let batch = batch?;
        let words = arrow::compute::cast(batch.column(0), &arrow::datatypes::DataType::Utf8)?;
        let numbers = batch.column(1).as_primitive::<Int64Type>();
        for row in 0..batch.num_rows() {
            counts.insert(words.as_string::<i32>().value(row).to_owned(), numbers.value(row));
        }
    }
    Ok(counts)
}

struct Agreed {
    all: bool,
    rows: u64,
    lines: Vec<String>,
}

async fn verdict(lake: &Lake, budget: Budget, place: &Place) -> Result<Agreed> {
    let session = query::session(lake, budget, None).await?;
    let mut agreed = Agreed { all: true, rows: 0, lines: Vec::new() };
    let head = ["table", "shop", "lake", "warehouse", "sum of all rows"];
    agreed
        .lines
        .push(format!("     {:<12} {:>8} {:>8} {:>10}   {}", head[0], head[1], head[2], head[3], head[4]));
    for table in &TABLES {
        let shop = agree::in_database(&place.shop, table.name)?;
        let warehouse = agree::in_database(&place.warehouse, table.name)?;
        let lake = agree::in_lake(&session, table.name).await?;
        let same = shop == lake && lake == warehouse;
        agreed.all &= same;
        agreed.rows += shop.rows;
        let sums = if same {
            format!("{:016x}  ✓", shop.checksum)
        } else {
            format!("{:016x} {:016x} {:016x}  ✗", shop.checksum, lake.checksum, warehouse.checksum)
        };
        agreed.lines.push(format!(
            "     {:<12} {:>8} {:>8} {:>10}   {sums}",
            table.name,
            show_count(shop.rows),
            show_count(lake.rows),
            show_count(warehouse.rows)
        ));
    }
    Ok(agreed)
}

fn title(number: usize, text: &str, since: Option<Instant>) -> Result<()> {
    let took = since.map(|since| format!("  ({:.1} s)", since.elapsed().as_secs_f64())).unwrap_or_default();
    line(format!("\n  {number}  {text}{took}"))
}

fn invite(place: &Place, moments: &Moments) -> Result<()> {
    let config = shell(&place.config);
    line(format!("\n  Everything is still there: {config}. Now try"))?;
    line(format!(
        "     frazil query --config {config} \"SELECT status, sum(total) FROM orders GROUP BY status\" --as-of {}",
        moments.before
    ))?;
    line(format!("     frazil snapshots --config {config} orders"))?;
    line(format!("     frazil history --config {config}"))?;
    line("  or change rows in shop.db, and")?;
    line(format!("     frazil run --config {config}"))
}

/// A path as a shell takes it.
fn shell(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = text.chars().all(|c| c.is_alphanumeric() || matches!(c, '/' | '.' | '_' | '-'));
    if plain { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_survive_address_and_yaml() {
        assert_eq!(address(Path::new("/my shop/50%?.db")), "sqlite:///my%20shop/50%25%3F.db");
        assert_eq!(quoted(r#"a"b\c${d}$e"#), r#""a\"b\\c$${d}$e""#);
    }
}
