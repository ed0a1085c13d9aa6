//! `run`, `sync` and `load`: passes of all streams, some at once, and what came of each.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use futures::StreamExt;
use tokio::sync::Semaphore;

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
use crate::sync::{self, Context, Legs, Member, Progress, Stream, StreamReport};

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
    let permits = Arc::new(Semaphore::new(parallel));
    let mut passes = futures::stream::iter(units(streams))
        .map(|unit| passes(&context, unit, legs, interrupt, &permits))
        .buffer_unordered(wanted.max(1));
    let mut reports = Vec::with_capacity(wanted);
    while let Some(ended) = passes.next().await {
        for report in &ended {
            match global.output {
                Output::Json => output::json(report)?,
                _ => output::report(report, width, said)?,
            }
            if let Some(Err(error)) = history.as_ref().map(|history| history.record(verb(legs), report)) {
                output::say(format!("warning: {error}"));
            }
        }
        if global.output != Output::Json {
            let done = ended.iter().find_map(|report| report.checkpoint.as_ref());
            done.into_iter().for_each(|done| output::checkpoint(done, said));
        }
        reports.extend(ended);
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

/// What begins and ends together: the streams of a group, or a stream alone.
pub(super) fn units(streams: Vec<Stream>) -> Vec<Vec<Stream>> {
    let mut units: Vec<Vec<Stream>> = Vec::new();
    for stream in streams {
        let group = |unit: &&mut Vec<Stream>| stream.group.is_some() && unit[0].group == stream.group;
        match units.iter_mut().find(group) {
            Some(unit) => unit.push(stream),
            None => units.push(vec![stream]),
        }
    }
    units
}

/// One pass of each stream of a unit, in a task of its own; nothing when the user wants to stop.
pub(super) async fn passes(
    context: &Context,
    unit: Vec<Stream>,
    legs: Legs,
    interrupt: &Interrupt,
    permits: &Arc<Semaphore>,
) -> Vec<StreamReport> {
    let together = unit.iter().any(|stream| stream.group.is_some());
    // The streams of a group take their places themselves, each when it has something to do.
    let place = if together { None } else { permits.acquire().await.ok() };
    if interrupt.stopped() {
        return Vec::new();
    }
    let member = |stream: Stream| Member { stream, progress: Arc::new(Progress::default()) };
    let members: Vec<Member> = unit.into_iter().map(member).collect();
    let bars: Vec<_> = members.iter().map(|it| Bar::show(&it.stream.name, it.progress.clone())).collect();
    let (work, run) = (members.clone(), context.run);
    let (context, permits) = (context.clone(), permits.clone());
    let mut task = tokio::spawn(async move {
        match &work[..] {
            [Member { stream, progress }] if !together => {
                vec![sync::pass(&context, stream, legs, progress.clone()).await]
            }
            _ => sync::together(&context, work, legs, &permits).await,
        }
    });
    let outcome = tokio::select! {
        outcome = &mut task => outcome,
        () = interrupt.wait() => {
            members.iter().for_each(|member| member.progress.stop.store(true, Ordering::Relaxed));
            task.await
        }
    };
    drop((bars, place));
    let panicked = |member: &Member| StreamReport::panicked(&member.stream.name, run);
    outcome.unwrap_or_else(|_| members.iter().map(panicked).collect())
}

fn verb(legs: Legs) -> &'static str {
    match legs {
        Legs::Extract => "sync",
        Legs::Load => "load",
        Legs::Both => "run",
    }
}
