//! `run`, `sync` and `load`: passes of all streams, some at once, and what came of each.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use futures::StreamExt;
use uuid::Uuid;

use super::args::{Global, Output, RunArgs};
use super::interrupt::Interrupt;
use super::output::{self, Exit, Said};
use super::plan::plan;
use super::progress::Bar;
use super::setup::{Setup, history, setup};
use crate::error::{Error, ErrorKind, Result};
use crate::history::History;
use crate::journal::Deed;
use crate::lake::Lake;
use crate::sync::{self, Context, Legs, Progress, Stream, StreamReport};

/// Runs what the command line asks for, once or every so often.
pub(super) async fn run(global: &Global, args: &RunArgs, legs: Legs) -> Result<Exit> {
    if args.how.dry_run {
        return plan(global, &args.streams, legs).await;
    }
    let interrupt = Interrupt::listen();
    let mut said = Said::new();
    loop {
        let began = Instant::now();
        let exit = once(global, args, legs, &interrupt, &mut said).await;
        let Some(every) = args.how.every else { return exit };
        // A loop outlives a night of a lost network; a wrong configuration does not get right by itself.
        if let Err(error) = exit {
            if matches!(error.kind(), ErrorKind::Config | ErrorKind::Unsupported) {
                return Err(error);
            }
            output::say_error(&error, global.verbose);
        }
        let rest = every.saturating_sub(began.elapsed());
        if interrupt.within(rest).await {
            return Ok(Exit::Done);
        }
    }
}

async fn once(
    global: &Global,
    args: &RunArgs,
    legs: Legs,
    interrupt: &Interrupt,
    said: &mut Said,
) -> Result<Exit> {
    let Setup { config, mut streams } = setup(global, &args.streams).await?;
    if legs == Legs::Load && streams.iter().all(|stream| stream.target.is_none()) {
        return Err(Error::new(ErrorKind::Config, "no stream has a target")
            .hint("set `target` in `defaults` or in a stream, or give `--to`"));
    }
    let history = history(&config);
    if args.how.failed {
        let failed = history.as_ref().map(History::failed).transpose()?.unwrap_or_default();
        streams.retain(|stream| failed.contains(&stream.name));
        if streams.is_empty() {
            output::say("no stream failed in its last run");
            return Ok(if args.how.exit_code { Exit::Nothing } else { Exit::Done });
        }
    }
    let lake = Lake::open(config.lake()).await?;
    let context = Context {
        retry_for: args.how.retry_for,
        full_refresh: args.how.full_refresh,
        ..Context::new(lake, args.streams.engine.budget()?, *config.maintenance())
    };
    if args.how.full_refresh {
        let mut journal = super::state::journal(&config)?;
        for stream in &streams {
            journal.note(&Deed::now("full_refresh", &stream.name))?;
        }
    }
    let width = streams.iter().map(|stream| stream.name.chars().count()).max().unwrap_or_default();
    let wanted = streams.len();
    let parallel = args.streams.engine.parallel;
    let mut passes = futures::stream::iter(streams)
        .map(|stream| pass(&context, stream, legs, interrupt))
        .buffer_unordered(parallel);
    let mut reports = Vec::with_capacity(wanted);
    while let Some(report) = passes.next().await {
        let Some(report) = report else { continue };
        match global.output {
            Output::Json => output::json(&report)?,
            _ => output::report(&report, width, said)?,
        }
        if let Some(Err(error)) = history.as_ref().map(|history| history.record(verb(legs), &report)) {
            output::say(format!("warning: {error}"));
        }
        reports.push(report);
    }
    if reports.len() < wanted {
        output::say(format!("stopped: {} of {wanted} streams have run", reports.len()));
        return Ok(Exit::Partial);
    }
    Ok(match Exit::of_reports(&reports) {
        Exit::Nothing if !args.how.exit_code => Exit::Done,
        exit => exit,
    })
}

/// One pass in a task of its own, or nothing when the user wants to stop.
pub(super) async fn pass(
    context: &Context,
    stream: Stream,
    legs: Legs,
    interrupt: &Interrupt,
) -> Option<StreamReport> {
    if interrupt.stopped() {
        return None;
    }
    let progress = Arc::new(Progress::default());
    let bar = Bar::show(&stream.name, progress.clone());
    let (name, run) = (stream.name.clone(), context.run);
    let context = context.clone();
    let counts = progress.clone();
    let mut task = tokio::spawn(async move { sync::pass(&context, &stream, legs, counts).await });
    let outcome = tokio::select! {
        outcome = &mut task => outcome,
        () = interrupt.wait() => {
            progress.stop.store(true, Ordering::Relaxed);
            task.await
        }
    };
    drop(bar);
    Some(outcome.unwrap_or_else(|_| panicked(name, run)))
}

/// The report of a pass that met a bug of ours; the panic hook has said which.
fn panicked(stream: String, run: Uuid) -> StreamReport {
    let error = Error::new(ErrorKind::Internal, "the pass ended in a bug of frazil").with("stream", &stream);
    StreamReport { error: Some((&error).into()), ..StreamReport::new(&stream, run) }
}

fn verb(legs: Legs) -> &'static str {
    match legs {
        Legs::Extract => "sync",
        Legs::Load => "load",
        Legs::Both => "run",
    }
}
