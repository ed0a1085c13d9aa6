//! The command line: parse, do one verb, end with an exit code that scripts can trust.
//!
//! Data goes to stdout, everything else to stderr. Errors say what failed, where and what to do;
//! nothing that is printed holds a secret, and nothing that a user does ends in a panic message.

mod args;
mod arrange;
mod check;
mod checkpoints;
mod compare;
mod conflicts;
mod demo;
mod discover;
mod dlq;
mod groups;
mod history;
mod init;
mod inspect;
mod interrupt;
mod jobs;
mod journal;
mod lake_args;
mod lake_table;
mod maintain;
mod output;
mod plan;
mod progress;
mod query;
mod reconcile;
mod redact;
mod repair;
mod run;
mod selftest;
mod serve;
mod serve_args;
mod setup;
mod shell;
mod state;
mod state_args;
mod status;

use std::process::ExitCode;

use clap::FromArgMatches;
use tracing_subscriber::EnvFilter;

use crate::error::{Error, ErrorKind, Result};
use crate::sync::Legs;
use args::{Cli, Command};
use output::Exit;

/// Does what the command line says.
pub fn main() -> ExitCode {
    install_panic_hook();
    let exit = std::panic::catch_unwind(parse_and_run).unwrap_or(Exit::Failed);
    ExitCode::from(exit as u8)
}

fn parse_and_run() -> Exit {
    let cli = match Cli::definition().try_get_matches().and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) => return say_usage(&error),
    };
    start_log(cli.global.verbose);
    let verbose = cli.global.verbose;
    let done = runtime().and_then(|runtime| {
        let done = runtime.block_on(dispatch(cli));
        // A reader that is still waiting for its server must not hold up the end.
        runtime.shutdown_background();
        done
    });
    done.unwrap_or_else(|error| {
        output::say_error(&error, verbose);
        Exit::of_error(&error)
    })
}

async fn dispatch(Cli { global, command }: Cli) -> Result<Exit> {
    if !global.output.is_for_reports() && !command.prints_rows() {
        return Err(Error::new(ErrorKind::Config, "reports are text or JSON, not tables of rows"));
    }
    match command {
        Command::Init(args) => init::init(&global, &args).await,
        Command::Compare(args) => Box::pin(compare::compare(&global, &args)).await,
        Command::Setup(args) => arrange::install(&global, &args).await,
        Command::Teardown(args) => arrange::remove(&global, &args).await,
        Command::Check(args) => check::check(&global, &args).await,
        Command::Discover(args) => discover::discover(&global, &args).await,
        Command::Plan(args) => plan::plan(&global, &args, Legs::Both).await,
        Command::Run(args) => run::run(&global, &args, Legs::Both).await,
        Command::Sync(args) => run::run(&global, &args, Legs::Extract).await,
        Command::Load(args) => run::run(&global, &args, Legs::Load).await,
        Command::Serve(args) => serve::serve(&global, &args).await,
        Command::Jobs(args) => jobs::jobs(&global, &args),
        Command::Status(args) if args.health => maintain::health(&global, &args.streams).await,
        Command::Status(args) => status::status(&global, &args.streams).await,
        Command::Maintain(args) => maintain::maintain(&global, &args).await,
        Command::State(command) => state::state(&global, &command).await,
        Command::Dlq(command) => dlq::dlq(&global, &command).await,
        Command::Conflicts(command) => conflicts::conflicts(&global, &command).await,
        Command::Journal(args) => journal::journal(&global, &args),
        Command::Snapshots(args) => lake_table::snapshots(&global, &args).await,
        Command::Checkpoints(args) => checkpoints::list(&global, &args).await,
        Command::Tag(args) => lake_table::tag(&global, &args).await,
        Command::Rollback(args) => lake_table::rollback(&global, &args).await,
        Command::Changes(args) => query::changes(&global, &args).await,
        Command::Query(args) => query::query(&global, &args).await,
        Command::History(args) => history::history(&global, &args),
        Command::Demo(args) => demo::demo(&args).await,
        Command::Selftest(args) => selftest::selftest(&global, &args).await,
        Command::Schema => {
            let schema = serde_json::to_string_pretty(&crate::config::schema()).expect("a schema is JSON");
            output::line(schema).map(|()| Exit::Done)
        }
    }
}

/// Threads for short file operations. Each keeps the memory of what it read until it reads again: with
/// a thread for each of a sort's spilled runs, that was 300 MB beyond the budget.
const FILE_THREADS: usize = 2;

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .max_blocking_threads(FILE_THREADS)
        .enable_all()
        .build()
        .map_err(|source| Error::new(ErrorKind::Transient, format!("the system gives no threads: {source}")))
}

/// Clap's own words, without the secrets that it would repeat. Help goes to stdout, as it does.
fn say_usage(error: &clap::Error) -> Exit {
    let text = error.render().to_string();
    if error.use_stderr() {
        output::say(text.trim_end());
        Exit::Usage
    } else {
        let _ = output::line(text.trim_end());
        Exit::Done
    }
}

/// Logs go to stderr above the bars. What libraries log of statements and handshakes stays out,
/// whatever `FRAZIL_LOG` asks for; one logs the server's errors, which quote rows, so it is silent.
fn start_log(verbose: bool) {
    const QUIET: [&str; 6] =
        ["tokio_postgres=warn", "rustls=warn", "hyper=warn", "h2=warn", "reqwest=warn", "tiberius=off"];
    let usual = if verbose { "frazil=info" } else { "frazil=warn" };
    let mut filter =
        EnvFilter::builder().parse_lossy(std::env::var("FRAZIL_LOG").as_deref().unwrap_or(usual));
    for directive in QUIET {
        filter = filter.add_directive(directive.parse().expect("the directive is a constant"));
    }
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| LogWriter)
        .with_target(false)
        .with_ansi(false)
        .init();
}

struct LogWriter;

impl std::io::Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        output::say(String::from_utf8_lossy(line).trim_end());
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A panic is a bug of ours, and says so. Its message may hold a row's values: it is shown on request.
fn install_panic_hook() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(|place| format!(" ({}:{})", place.file(), place.line()));
        let version = env!("CARGO_PKG_VERSION");
        output::say(format!("error: this is a bug in frazil {version}{}", place.unwrap_or_default()));
        output::say("  hint: please report this line and the command; nothing that was committed is harmed");
        if std::env::var_os("RUST_BACKTRACE").is_some() {
            output::say(format!("{panic}\n{}", std::backtrace::Backtrace::capture()));
        } else {
            output::say("  hint: RUST_BACKTRACE=1 shows more, which may include values of rows");
        }
    }));
}

/// The long help of every command, for the reference page.
pub fn help() -> String {
    fn write(command: &mut clap::Command, path: &str, pages: &mut String) {
        let path = if path.is_empty() {
            command.get_name().to_owned()
        } else {
            format!("{path} {}", command.get_name())
        };
        let help = command.clone().bin_name(&path).render_help().to_string();
        let lines: Vec<_> = help.lines().map(str::trim_end).collect();
        pages.push_str(&format!("## `{path}`\n\n```text\n{}\n```\n\n", lines.join("\n").trim_end()));
        let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
        for name in names.iter().filter(|name| *name != "help") {
            if let Some(sub) = command.find_subcommand_mut(name) {
                write(sub, &path, pages);
            }
        }
    }
    // As wide as it is on any terminal: the page must not depend on where it is written.
    let mut command = Cli::definition().term_width(100);
    command.build();
    let mut pages = String::new();
    write(&mut command, "", &mut pages);
    pages
}
