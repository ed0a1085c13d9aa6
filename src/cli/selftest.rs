//! `selftest`: frazil against chance, on the user's own store if he likes.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;

use super::args::{Global, LakeArgs, Output, duration};
use super::output::{self, Exit, line};
use crate::config::units::show_count;
use crate::config::{Config, Overrides};
use crate::connection::Connection;
use crate::error::{Error, ErrorKind, Result};
use crate::lake::LakeSettings;
use crate::selftest::{self, Fair, Places, Report, Settings};

/// How often the progress is told.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// How to test.
#[derive(Debug, Args)]
pub(super) struct SelftestArgs {
    /// Change a source at random, kill passes at random, and prove that no row is lost, doubled or changed
    #[arg(long, required = true)]
    pub chaos: bool,
    /// Begin no round after this time: 2h
    #[arg(long = "for", value_name = "TIME", default_value = "1m", value_parser = duration, env = "FRAZIL_FOR")]
    pub time: Duration,
    /// Begin no more rounds than this
    #[arg(long, value_name = "N", default_value_t = u64::MAX, hide_default_value = true, env = "FRAZIL_ROUNDS")]
    pub rounds: u64,
    /// What decides all that happens; the same number does the same again [default: by chance]
    #[arg(long, value_name = "N", env = "FRAZIL_SEED")]
    pub seed: Option<u64>,
    /// A scratch database to read from; tables are made in a schema of their own [default: a SQLite file]
    #[arg(long, value_name = "URL", env = "FRAZIL_SOURCE")]
    pub source: Option<String>,
    /// A scratch database to write to [default: a SQLite file]
    #[arg(long, value_name = "URL", env = "FRAZIL_TARGET")]
    pub target: Option<String>,
    /// A directory for its files, which must be empty [default: a temporary one, kept when something is wrong]
    #[arg(long, value_name = "DIR", env = "FRAZIL_DIR")]
    pub dir: Option<PathBuf>,
    /// Where the lake is.
    #[command(flatten)]
    pub lake: LakeArgs,
}

/// Runs the test.
pub(super) async fn selftest(global: &Global, args: &SelftestArgs) -> Result<Exit> {
    let seed = args.seed.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0 >> 32);
    let temporary = match args.dir {
        Some(_) => None,
        None => Some(tempfile::Builder::new().prefix("frazil-selftest-").tempdir().map_err(|source| {
            Error::new(ErrorKind::Config, "no temporary directory can be made")
                .because(source)
                .hint("name one with `--dir`")
        })?),
    };
    let folder = args.dir.clone().or_else(|| temporary.as_ref().map(|dir| dir.path().to_owned()));
    let folder = folder.unwrap_or_default();
    let connection =
        |name: &str, url: &Option<String>| url.as_deref().map(|url| Connection::parse(name, url)).transpose();
    let places = Places::in_folder(
        &std::path::absolute(&folder).unwrap_or_else(|_| folder.clone()),
        connection("source", &args.source)?,
        connection("target", &args.target)?,
        lake(global, args)?,
    )?;
    let settings = Settings {
        program: std::env::current_exe().map_err(|source| {
            Error::new(ErrorKind::Internal, "the program does not find itself").because(source)
        })?,
        seed,
        time: args.time,
        rounds: args.rounds,
        folder,
        for_passes: places.clone(),
        places,
        schema: format!("frazil_selftest_{seed}_{}", std::process::id()),
        keep: false,
    };
    output::say(format!("seed {seed}: {}", replay(args, seed, None)));
    let mut told = Instant::now();
    let mut tell = |report: &Report| {
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            output::say(format!("  {}", progress(report)));
        }
    };
    let report = Box::pin(selftest::chaos(settings, &mut Fair, &mut tell)).await;
    if !report.as_ref().is_ok_and(Report::is_good)
        && let Some(temporary) = temporary
    {
        output::say(format!("  everything is kept in {}", temporary.keep().display()));
    }
    let report = report?;
    match global.output {
        Output::Json => output::json(&report)?,
        _ => tell_all(&report)?,
    }
    if report.is_good() {
        return Ok(Exit::Done);
    }
    output::say(format!("  again: {}", replay(args, seed, Some(report.rounds))));
    Ok(Exit::Failed)
}

/// The user's own lake, if flags or a named configuration say so.
fn lake(global: &Global, args: &SelftestArgs) -> Result<Option<LakeSettings>> {
    let overrides = Overrides { config: global.config.clone(), ..args.lake.overrides() };
    if global.config.is_some() {
        return Ok(Some(Config::load(&overrides, &crate::config::environment)?.lake().clone()));
    }
    overrides.lake.is_some().then(|| Config::lake_alone(&overrides)).transpose()
}

/// The command that does the same again, without addresses: they may hold secrets.
fn replay(args: &SelftestArgs, seed: u64, rounds: Option<u64>) -> String {
    let mut command = format!("frazil selftest --chaos --seed {seed}");
    for (flag, given) in [
        ("--source", args.source.is_some()),
        ("--target", args.target.is_some()),
        ("--lake", args.lake.lake.is_some()),
    ] {
        if given {
            command += &format!(" {flag} …");
        }
    }
    match rounds {
        Some(rounds) => command + &format!(" --rounds {rounds} --for 1d"),
        None => command,
    }
}

fn progress(report: &Report) -> String {
    format!(
        "{:.0} s: {} transactions, {} passes of which {} were killed, {} snapshots verified",
        report.seconds,
        show_count(report.transactions),
        show_count(report.passes),
        show_count(report.killed),
        show_count(report.snapshots_verified),
    )
}

fn tell_all(report: &Report) -> Result<()> {
    line(progress(report))?;
    line(format!(
        "rows        {} inserted, {} updated, {} deleted; {} times other columns, {} late commits",
        show_count(report.inserted),
        show_count(report.updated),
        show_count(report.deleted),
        show_count(report.reshaped),
        show_count(report.late_commits),
    ))?;
    line(format!(
        "in snapshots {} rows held against the states of the source",
        show_count(report.rows_verified)
    ))?;
    line(format!("at rest     source = lake = target {} times", show_count(report.settled)))?;
    for (fault, times) in &report.faults {
        line(format!("  {times:>6}  {fault}"))?;
    }
    for wrong in &report.wrong {
        line(format!("wrong: {wrong}"))?;
    }
    line(if report.is_good() {
        "no row was lost, doubled or changed"
    } else {
        "this is a bug of frazil: please report it, with the seed"
    })
}
