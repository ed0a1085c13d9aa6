//! `serve`: passes when they are due, until told to stop.
//!
//! ```text
//! configuration ─▶ streams, schedules ─▶ Scheduler ─start─▶ passes (tasks) ─▶ reports, history
//!      ▲ SIGHUP, and every quarter of an hour    ▲  └─wake─▶ sleep                  │
//!      └─────────────────────────────────────────┴───── control file, every second ◀┘ ended
//! ```
//!
//! It keeps nothing that it could not lose: positions are in the lake, what ran when is in the history,
//! pauses are in the control file. So it can be killed at any time and started again anywhere.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::args::{Global, Output};
use super::interrupt::Interrupt;
use super::output::{self, Exit, Said};
use super::reconcile::{Reconciled, reconcile};
use super::run::{passes as passes_of, units};
use super::serve_args::ServeArgs;
use super::setup::{Sources, history};
use crate::config::{self, Config};
use crate::connection::divide_limits;
use crate::control::Control;
use crate::error::{Error, ErrorKind, Result};
use crate::history::History;
use crate::http::{self, Access, Board, Certificate, Desk};
use crate::lake::Lake;
use crate::schedule::{Cadence, Ended, Job, Outcome, Proof, Reconcile, Schedule, Scheduler, StreamState};
use crate::sync::{Context, Legs, Stream, StreamReport, Verdict};
use crate::workers::Worker;

/// How often people's wishes are looked for, and how late a clock that was set back is noticed.
const LOOK: Duration = Duration::from_secs(1);
/// How often the tables of patterns are listed again: a new table is found without a restart.
const DISCOVER: Duration = Duration::from_secs(900);
/// How often `frazil jobs` hears that the server is there, when nothing happens.
const SIGN_OF_LIFE: TimeDelta = TimeDelta::seconds(5);
/// How long to wait before a source that could not be listed at the start is asked again.
const PATIENCE: Duration = Duration::from_secs(15);

/// Serves until it is told to stop.
pub(super) async fn serve(global: &Global, args: &ServeArgs) -> Result<Exit> {
    if args.dry_run {
        let plan = Plan::load(global, args).await?;
        return say_plan(&plan);
    }
    let interrupt = Interrupt::listen();
    let Some(plan) = Plan::load_patiently(global, args, &interrupt).await? else { return Ok(Exit::Done) };
    let mut server = Server::new(global, args, plan)?;
    // Whoever asks by HTTP finds the streams from the first moment on.
    server.say_states();
    if let Some(address) = &args.listen {
        server.listen_on(address).await?;
    }
    if args.share {
        server.worker = Some(Worker::join(server.plan.config.lake()).await?);
        server.worker.iter().for_each(Worker::start);
    }
    server.run(&interrupt).await?;
    if let Some(worker) = server.worker.take() {
        worker.leave().await;
    }
    output::say("stopped");
    Ok(Exit::Done)
}

/// What the configuration says now.
struct Plan {
    streams: BTreeMap<String, Stream>,
    schedules: BTreeMap<String, Schedule>,
    reconciles: BTreeMap<String, Reconcile>,
    context: Context,
    config: Config,
}

impl Plan {
    async fn load(global: &Global, args: &ServeArgs) -> Result<Self> {
        let config = Config::load(&args.streams.overrides(global), &config::environment)?;
        let resolved = config.resolve(&args.streams.selection(), &Sources).await?;
        if args.streams.select.is_empty() && args.streams.exclude.is_empty() {
            config.check_schedules(&resolved)?;
        }
        for warning in &resolved.warnings {
            output::say(format!("warning: {warning}"));
        }
        if resolved.schedules.values().all(|schedule| matches!(schedule.cadence, Cadence::Never)) {
            return Err(Error::new(ErrorKind::Config, "no stream says when it runs").hint(
                "give streams, or `defaults`, a `schedule` (`*/5 * * * *`, `every 5m`) or `fresh: 15m`",
            ));
        }
        let lake = Lake::open(config.lake()).await?;
        // A pass is tried once: until the next the stream gives its place to others.
        let context = Context::new(lake, args.streams.engine.budget()?, *config.maintenance());
        let streams = resolved.streams.into_iter().map(|stream| (stream.name.clone(), stream)).collect();
        Ok(Self { streams, schedules: resolved.schedules, reconciles: resolved.reconciles, context, config })
    }

    /// At the start a source may be down that will be up in a minute. `None`: told to stop meanwhile.
    async fn load_patiently(
        global: &Global,
        args: &ServeArgs,
        interrupt: &Interrupt,
    ) -> Result<Option<Self>> {
        loop {
            match Self::load(global, args).await {
                Err(error) if error.kind() == ErrorKind::Transient => {
                    output::say_error(&error, global.verbose)
                }
                outcome => return outcome.map(Some),
            }
            if interrupt.within(PATIENCE).await {
                return Ok(None);
            }
        }
    }

    fn jobs(&self) -> Vec<Job> {
        let job = |(name, schedule): (&String, &Schedule)| {
            let stream = self.streams.get(name)?;
            Some(Job {
                name: name.clone(),
                schedule: schedule.clone(),
                source: stream.source.name().to_owned(),
                target: stream.target.as_ref().map(|target| target.connection.name().to_owned()),
                group: stream.group.as_ref().map(|group| group.name.clone()),
            })
        };
        self.schedules.iter().filter_map(job).collect()
    }
}

struct Server<'a> {
    global: &'a Global,
    args: &'a ServeArgs,
    plan: Plan,
    scheduler: Scheduler,
    history: Option<History>,
    control: Option<Control>,
    /// The control file as it was last read.
    version: Option<i64>,
    /// What was last said there, and when.
    told: (Vec<StreamState>, DateTime<Utc>),
    said: Said,
    board: Arc<Board>,
    worker: Option<Worker>,
    /// Passes that work at once, in groups or alone.
    permits: Arc<Semaphore>,
    started: DateTime<Utc>,
}

impl<'a> Server<'a> {
    fn new(global: &'a Global, args: &'a ServeArgs, plan: Plan) -> Result<Self> {
        let history = history(&plan.config);
        let control = history.as_ref().and_then(|_| {
            let place = Control::place(&History::place(plan.config.path()));
            Control::open(&place)
                .inspect_err(|error| output::say(format!("warning: {error}; `frazil jobs` does not work")))
                .ok()
        });
        let scheduler = Scheduler::new(args.streams.engine.parallel);
        let mut server = Self {
            global,
            args,
            plan,
            scheduler,
            history,
            control,
            version: None,
            told: Default::default(),
            said: Said::new(),
            board: Board::new(),
            worker: None,
            permits: Arc::new(Semaphore::new(args.streams.engine.parallel)),
            started: Utc::now(),
        };
        server.settle();
        Ok(server)
    }

    /// Answers HTTP from now on.
    async fn listen_on(&self, address: &str) -> Result<()> {
        let history = History::place(self.plan.config.path());
        let control = Control::place(&history);
        if self.control.is_none() {
            return Err(Error::new(ErrorKind::Config, "without its control file the server cannot be asked")
                .with("file", control.display())
                .hint("make the folder writable, or leave `--listen` out"));
        }
        let failed = |source: std::io::Error| {
            Error::new(ErrorKind::Config, format!("cannot listen: {source}"))
                .with("address", address)
                .hint("give a free address of this machine: `--listen 127.0.0.1:8085`")
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        let token = match &self.args.token_file {
            Some(file) => Some(Access::token_in(file)?),
            None => std::env::var("FRAZIL_TOKEN").ok(),
        };
        let access = Access::new(bound.ip(), token.as_deref())?;
        let certificate = match (&self.args.tls_cert, &self.args.tls_key) {
            (Some(chain), Some(key)) => Some(Certificate::read(chain, key)?),
            _ => None,
        };
        let scheme = if certificate.is_some() { "https" } else { "http" };
        output::say(format!("listening on {scheme}://{bound}"));
        if certificate.is_none() && !bound.ip().is_loopback() {
            output::say(
                "note: whoever sees the traffic sees the token: give `--tls-cert` and `--tls-key`, unless a proxy before it encrypts",
            );
        }
        let desk = Desk { board: self.board.clone(), history, control };
        tokio::spawn(http::serve(listener, certificate, desk, access));
        Ok(())
    }

    /// Tells the scheduler of the streams that there are.
    fn settle(&mut self) {
        let past = self.history.as_ref().map(History::past).transpose().unwrap_or_else(|error| {
            output::say(format!("warning: {error}; every stream starts anew"));
            None
        });
        let past = past.unwrap_or_default();
        let now = Utc::now();
        self.scheduler.set(self.plan.jobs(), |name| past.get(name).copied().unwrap_or_default(), now);
        self.version = None;
        output::say(format!(
            "serving {}",
            match self.plan.streams.len() {
                1 => "1 stream".to_owned(),
                streams => format!("{streams} streams"),
            }
        ));
    }

    async fn run(&mut self, interrupt: &Interrupt) -> Result<()> {
        let mut hangup = Hangup::listen()?;
        let mut passes = FuturesUnordered::new();
        let mut discover = tokio::time::interval(DISCOVER);
        discover.tick().await;
        loop {
            self.listen();
            let now = Utc::now();
            self.share(now);
            let begun = self.scheduler.start(now);
            let streams = begun.iter().filter_map(|name| self.plan.streams.get(name).cloned());
            for unit in units(streams.collect()) {
                let (context, interrupt) = (self.plan.context.clone(), interrupt.clone());
                let permits = self.permits.clone();
                let proofs: Vec<_> = unit.iter().map(|stream| self.reconciles(&stream.name, now)).collect();
                passes.push(async move {
                    let mut reports =
                        passes_of(&context, unit.clone(), Legs::Both, &interrupt, &permits).await;
                    let mut ended = Vec::new();
                    for (stream, how) in unit.into_iter().zip(proofs) {
                        let report = reports.iter().position(|report| report.stream == stream.name);
                        let report = report.map(|at| reports.swap_remove(at));
                        let well = report.as_ref().is_some_and(|report| report.error.is_none());
                        let reconciled = match how.filter(|_| well) {
                            Some(how) => reconcile(&context, &stream, how, &interrupt).await,
                            None => None,
                        };
                        ended.push((stream.name, report, reconciled));
                    }
                    ended
                });
            }
            self.say_states();
            let rest = self.rest(Utc::now());
            tokio::select! {
                Some(unit) = passes.next() => self.ended_together(unit)?,
                () = tokio::time::sleep(rest) => {}
                () = hangup.heard() => self.reload("reloading the configuration").await,
                _ = discover.tick() => self.reload("").await,
                () = interrupt.wait() => break,
            }
        }
        while let Some(unit) = passes.next().await {
            self.ended_together(unit)?;
        }
        self.say_states();
        Ok(())
    }

    /// Until something can begin, at most until the next look around.
    fn rest(&self, now: DateTime<Utc>) -> Duration {
        let wake = self.scheduler.wake(now).and_then(|wake| (wake - now).to_std().ok());
        wake.unwrap_or(LOOK).min(LOOK)
    }

    /// Does what people ask for.
    fn listen(&mut self) {
        let Some(control) = &mut self.control else { return };
        let version = match control.version() {
            Ok(version) if self.version == Some(version) => return,
            Ok(version) => version,
            Err(error) => return tracing::warn!(%error, "nobody can be heard"),
        };
        match control.take() {
            Ok(asks) => {
                self.version = Some(version);
                // Where several share the streams, a pause is theirs: it is in the lake, and holds whoever asked.
                if let Some(worker) = &self.worker {
                    match control.take_shared() {
                        Ok(wishes) => {
                            wishes.into_iter().for_each(|(stream, paused)| worker.pause(stream, paused))
                        }
                        Err(error) => tracing::warn!(%error, "nobody can be heard"),
                    }
                }
                for ask in asks {
                    let alone = self.worker.is_none();
                    self.scheduler.pause(&ask.stream, alone && ask.paused, Utc::now());
                    if ask.triggered && !self.scheduler.trigger(&ask.stream) {
                        output::say(format!("warning: no stream `{}` to trigger", ask.stream));
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "nobody can be heard"),
        }
    }

    /// Finds out which of the streams belong here.
    fn share(&mut self, now: DateTime<Utc>) {
        let Some(worker) = &self.worker else { return };
        divide_limits(worker.living());
        let whole_of = |name: &str| self.scheduler.whole_of(name);
        for (name, (place, past)) in worker.exchange(self.scheduler.shares(), whole_of) {
            self.scheduler.settle(&name, place, past, now);
        }
    }

    /// Says what the streams do, when that is new or was said some time ago.
    fn say_states(&mut self) {
        let now = Utc::now();
        let states = self.scheduler.states(now);
        self.board.show(states.clone());
        let Some(control) = &self.control else { return };
        if states == self.told.0 && now - self.told.1 < SIGN_OF_LIFE {
            return;
        }
        match control.say(&states, now) {
            Ok(()) => self.told = (states, now),
            Err(error) => tracing::warn!(%error, "nobody can be told"),
        }
    }

    /// A wrong file changes nothing; the streams go on as they were.
    async fn reload(&mut self, announced: &str) {
        if !announced.is_empty() {
            output::say(announced);
        }
        match Plan::load(self.global, self.args).await {
            Ok(plan) => {
                self.plan = plan;
                self.settle();
            }
            Err(error) => {
                output::say_error(&error, self.global.verbose);
                output::say("the streams go on as they were");
            }
        }
    }

    /// Whether a pass that begins now is followed by a comparison, and by which.
    fn reconciles(&self, stream: &str, now: DateTime<Utc>) -> Option<Proof> {
        let reconcile = self.plan.reconciles.get(stream)?;
        let last = self.history.as_ref().map_or(Ok(None), |history| history.last_compared(stream));
        let last = last.unwrap_or_else(|error| {
            tracing::warn!(%error, stream, "it is not known when places were last compared");
            None
        });
        reconcile.after_pass(stream, last.unwrap_or(self.started), now)
    }

    /// Streams that began together have ended.
    fn ended_together(
        &mut self,
        unit: Vec<(String, Option<StreamReport>, Option<Reconciled>)>,
    ) -> Result<()> {
        if self.global.output != Output::Json {
            let said = unit.iter().find_map(|(_, report, _)| report.as_ref()?.checkpoint.as_ref());
            said.into_iter().for_each(|done| output::checkpoint(done, &mut self.said));
        }
        unit.into_iter().try_for_each(|(name, report, reconciled)| self.ended(&name, report, reconciled))
    }

    fn ended(
        &mut self,
        name: &str,
        report: Option<StreamReport>,
        reconciled: Option<Reconciled>,
    ) -> Result<()> {
        let outcome = report.as_ref().map_or(Outcome::Stopped, outcome);
        self.scheduler.ended(name, Ended { outcome, at: Utc::now() });
        let Some(report) = report else { return Ok(()) };
        self.board.ended(&report);
        match self.global.output {
            Output::Json => output::json(&report)?,
            _ if report.verdict == Verdict::NothingToDo && !self.global.verbose => {}
            _ => output::report(&report, 0, &mut self.said)?,
        }
        if let Some(Err(error)) = self.history.as_ref().map(|history| history.record("serve", &report)) {
            output::say(format!("warning: {error}"));
        }
        let Some(reconciled) = reconciled else { return Ok(()) };
        self.board.compared(name, reconciled.differences());
        reconciled.say(self.global.output, self.global.verbose)?;
        if let Some(Err(error)) = self.history.as_ref().map(|history| history.remember(&reconciled.pass())) {
            output::say(format!("warning: {error}"));
        }
        Ok(())
    }
}

/// What a pass's end means for the next one.
fn outcome(report: &StreamReport) -> Outcome {
    let Some(error) = &report.error else { return Outcome::Well };
    match error.code {
        ErrorKind::Conflict => Outcome::Conflict,
        ErrorKind::Transient if report.extract.is_none() => Outcome::SourceFailed,
        ErrorKind::Transient => Outcome::TargetFailed,
        _ => Outcome::Wrong,
    }
}

/// When each stream would run next.
fn say_plan(plan: &Plan) -> Result<Exit> {
    let past = match History::open_existing(&History::place(plan.config.path()))? {
        Some(history) => history.past()?,
        None => BTreeMap::new(),
    };
    let now = Utc::now();
    let mut scheduler = Scheduler::new(1);
    scheduler.set(plan.jobs(), |name| past.get(name).copied().unwrap_or_default(), now);
    let rows: Vec<Vec<String>> = scheduler
        .states(now)
        .into_iter()
        .map(|state| {
            let schedule = plan.schedules.get(&state.stream);
            let when = match (state.due, schedule.map(|schedule| &schedule.cadence)) {
                (Some(due), _) if due <= now => "at once".to_owned(),
                (Some(due), _) => {
                    let zone = schedule.map_or(chrono_tz::Tz::UTC, |schedule| schedule.zone);
                    due.with_timezone(&zone).format("%Y-%m-%d %H:%M:%S %Z").to_string()
                }
                (None, Some(Cadence::After)) => "after others".to_owned(),
                (None, _) => "when triggered".to_owned(),
            };
            vec![state.stream, when]
        })
        .collect();
    output::table(&["stream", "next"], &rows)?;
    Ok(Exit::Done)
}

/// SIGHUP: read the configuration again. Where there is no such signal, a restart does it.
struct Hangup {
    #[cfg(unix)]
    signal: tokio::signal::unix::Signal,
}

impl Hangup {
    #[cfg(unix)]
    fn listen() -> Result<Self> {
        tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup())
            .map(|signal| Self { signal })
            .map_err(|source| {
                Error::new(ErrorKind::Transient, format!("the system gives no signals: {source}"))
            })
    }

    #[cfg(unix)]
    async fn heard(&mut self) {
        self.signal.recv().await;
    }

    #[cfg(not(unix))]
    fn listen() -> Result<Self> {
        Ok(Self {})
    }

    #[cfg(not(unix))]
    async fn heard(&mut self) {
        std::future::pending::<()>().await;
    }
}
