//! All streams together: who may begin now, and what an ending means for what comes next.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::breaker::Breaker;
use super::cadence::{Cadence, Past, Schedule, later};
use crate::backoff::Backoff;

/// Passes that failed for a passing reason are tried again this often before the stream waits for its
/// next regular time: about a quarter of an hour.
const RETRIES: u32 = 8;
/// The pauses before them. Streams that failed together do not come back together.
const RETRY: Backoff = Backoff { first: Duration::from_secs(4), longest: Duration::from_secs(300) };
/// What does not get right by itself is not tried more often than this, whatever the schedule says.
const HOLD: Duration = Duration::from_secs(900);

/// A stream as the scheduler sees it.
#[derive(Debug, Clone)]
pub struct Job {
    /// The stream's name.
    pub name: String,
    /// When it runs.
    pub schedule: Schedule,
    /// The connection that rows come from.
    pub source: String,
    /// The connection that they go to, if any.
    pub target: Option<String>,
    /// Streams that begin together with it, if any: those of the same group.
    pub group: Option<String>,
}

/// How a pass ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It came through, whether or not there was anything to do.
    Well,
    /// Somebody else moved the table first.
    Conflict,
    /// Reading the source, or writing the lake, failed for a reason that passes.
    SourceFailed,
    /// Loading the target failed for a reason that passes.
    TargetFailed,
    /// It failed for a reason that somebody has to remove.
    Wrong,
    /// It was asked to stop.
    Stopped,
}

/// The end of a pass.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    /// How.
    pub outcome: Outcome,
    /// When.
    pub at: DateTime<Utc>,
}

/// What a stream is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It waits for its time, or for its turn.
    Waiting,
    /// A pass is under way.
    Running,
    /// The last pass failed for a reason that passes; it is tried again.
    Retrying,
    /// The last pass failed for a reason that somebody has to remove.
    Held,
    /// Somebody paused it.
    Paused,
    /// Another worker has it.
    Elsewhere,
}

impl State {
    /// For people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Retrying => "retrying",
            Self::Held => "held",
            Self::Paused => "paused",
            Self::Elsewhere => "elsewhere",
        }
    }
}

/// Where a stream belongs, when several workers share them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Place {
    /// Here.
    #[default]
    Here,
    /// To another worker; it begins here only when triggered here.
    Elsewhere,
    /// A pass is under way elsewhere, or nobody can tell.
    Busy,
    /// Somebody paused it elsewhere.
    Paused,
}

/// What other workers have to know of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// A pass is under way here.
    pub running: bool,
    /// Somebody paused it here.
    pub paused: bool,
    /// How it went.
    pub past: Past,
}

/// A stream, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamState {
    /// Its name.
    pub stream: String,
    /// What it is doing.
    pub state: State,
    /// When its next pass is due, if by the clock.
    pub due: Option<DateTime<Utc>>,
    /// Until when a connection of it is left alone.
    pub left_alone_until: Option<DateTime<Utc>>,
    /// When the pass under way began.
    #[serde(default)]
    pub running_since: Option<DateTime<Utc>>,
    /// What is shown of the source is at least as new as this.
    #[serde(default)]
    pub fresh_as_of: Option<DateTime<Utc>>,
}

#[derive(Debug)]
struct Task {
    job: Job,
    past: Past,
    due: Option<DateTime<Utc>>,
    running: Option<DateTime<Utc>>,
    paused: bool,
    triggered: bool,
    failures: u32,
    held: bool,
    place: Place,
    /// Not in the configuration any more; it ends with the pass under way.
    gone: bool,
}

/// Decides who begins when.
#[derive(Debug)]
pub struct Scheduler {
    tasks: BTreeMap<String, Task>,
    breakers: BTreeMap<String, Breaker>,
    parallel: usize,
}

impl Scheduler {
    /// Nothing to do yet. At most `parallel` passes run at once.
    pub fn new(parallel: usize) -> Self {
        Self { tasks: BTreeMap::new(), breakers: BTreeMap::new(), parallel }
    }

    /// Takes these streams for all there are. What is known of those that stay is kept; of new ones,
    /// `past` says how it went before.
    pub fn set(&mut self, jobs: Vec<Job>, past: impl Fn(&str) -> Past, now: DateTime<Utc>) {
        for task in self.tasks.values_mut() {
            task.gone = true;
        }
        for job in jobs {
            let task = self.tasks.entry(job.name.clone()).or_insert_with(|| Task {
                past: past(&job.name),
                job: job.clone(),
                due: None,
                running: None,
                paused: false,
                triggered: false,
                failures: 0,
                held: false,
                place: Place::Here,
                gone: false,
            });
            // A changed file may be what a stream that failed was waiting for.
            (task.job, task.gone, task.held, task.failures) = (job, false, false, 0);
            task.due = task.regular(now);
        }
        self.tasks.retain(|_, task| !task.gone || task.running.is_some());
    }

    /// The streams that begin now; each must be followed by [`ended`](Self::ended).
    pub fn start(&mut self, now: DateTime<Utc>) -> Vec<String> {
        let mut ready: Vec<(DateTime<Utc>, String)> = self
            .tasks
            .iter()
            .filter(|(_, task)| self.may_begin(task, now))
            .map(|(name, task)| {
                let rank = task.job.schedule.priority.head_start();
                let since = task.due.filter(|_| !task.triggered).map(|due| due - rank);
                (since.unwrap_or(DateTime::<Utc>::MIN_UTC), name.clone())
            })
            .collect();
        ready.sort();
        let mut begun = Vec::new();
        for (_, name) in ready {
            let running = self.tasks.values().filter(|task| task.running.is_some()).count();
            let Some(task) = self.tasks.get(&name) else { continue };
            // An earlier one of this round may have taken the last place, or be the one that tries a connection.
            if running >= self.parallel || !self.may_begin(task, now) {
                continue;
            }
            let others = self.others_of_its_group(task, now);
            for name in std::iter::once(name).chain(others) {
                self.begin(&name, now);
                begun.push(name);
            }
        }
        begun
    }

    fn begin(&mut self, name: &str, now: DateTime<Utc>) {
        let Some(task) = self.tasks.get_mut(name) else { return };
        for connection in task.job.connections() {
            self.breakers.entry(connection.to_owned()).or_default().begin();
        }
        (task.running, task.triggered, task.past.began) = (Some(now), false, Some(now));
    }

    /// The streams that begin when one of their group does. Whoever was stopped, or waits after a failure, stays
    /// out of it until its own time has come. They may be more than `parallel`: then they wait for each other.
    fn others_of_its_group(&self, task: &Task, now: DateTime<Utc>) -> Vec<String> {
        let may_join = |other: &&Task| {
            let waits = (other.held || other.failures > 0) && other.due.is_none_or(|due| due > now);
            let free = other.place == Place::Here && other.running.is_none() && !other.paused && !other.gone;
            other.job.name != task.job.name
                && task.is_together_with(other)
                && free
                && (other.triggered || !waits)
                && other.job.schedule.outside_of_blackouts(now) == now
                && self.left_alone(&other.job, now).is_none()
        };
        self.tasks.values().filter(may_join).map(|other| other.job.name.clone()).collect()
    }

    /// A pass that [`start`](Self::start) named has ended.
    pub fn ended(&mut self, name: &str, Ended { outcome, at }: Ended) {
        let Some(task) = self.tasks.get_mut(name) else { return };
        let began = task.running.take().unwrap_or(at);
        for connection in task.job.connections() {
            let breaker = self.breakers.entry(connection.to_owned()).or_default();
            let source = connection == task.job.source;
            match outcome {
                Outcome::Well => breaker.good(),
                Outcome::SourceFailed if source => breaker.bad(connection, at),
                // The source has been read, or else nothing would have been loaded.
                Outcome::TargetFailed if source => breaker.good(),
                Outcome::TargetFailed => breaker.bad(connection, at),
                _ => breaker.unknown(),
            }
        }
        task.note(outcome, began, at);
        if task.gone {
            self.tasks.remove(name);
            return;
        }
        if outcome == Outcome::Well {
            self.wake_followers(name, at);
        }
    }

    /// Whether any pass is under way.
    pub fn running(&self) -> bool {
        self.tasks.values().any(|task| task.running.is_some())
    }

    /// When something may begin that cannot begin now, if nothing ends before.
    pub fn wake(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let moments = self
            .tasks
            .values()
            .filter(|task| !task.gone && !task.paused && task.running.is_none() && task.place == Place::Here);
        moments
            .filter_map(|task| {
                let due = task.due?;
                let due = task.job.schedule.outside_of_blackouts(due.max(now));
                let free = self.left_alone(&task.job, now).map_or(due, |until| until.max(due));
                (free > now).then_some(free)
            })
            .min()
    }

    /// Stops a stream from beginning passes, or lets it again. Says whether there is such a stream.
    pub fn pause(&mut self, name: &str, paused: bool, now: DateTime<Utc>) -> bool {
        let Some(task) = self.tasks.get_mut(name) else { return false };
        if task.paused && !paused {
            (task.held, task.failures) = (false, 0);
            task.due = task.regular(now);
        }
        task.paused = paused;
        true
    }

    /// Lets a stream begin a pass as soon as there is room, also in a blackout. Says whether there is
    /// such a stream.
    pub fn trigger(&mut self, name: &str) -> bool {
        let task = self.tasks.get_mut(name);
        task.map(|task| task.triggered = true).is_some()
    }

    /// What other workers have to know, by name.
    pub fn shares(&self) -> impl Iterator<Item = (&str, Share)> {
        self.tasks.iter().map(|(name, task)| {
            let Task { running, paused, past, .. } = task;
            (name.as_str(), Share { running: running.is_some(), paused: *paused, past: *past })
        })
    }

    /// What goes to one worker as a whole: the group of a stream, or the stream.
    pub fn whole_of(&self, name: &str) -> String {
        let group = self.tasks.get(name).and_then(|task| task.job.group.as_ref());
        // A space is in no group's name, and no stream is called so.
        group.map_or_else(|| name.to_owned(), |group| format!("group {group}"))
    }

    /// Says where a stream belongs, and how it last went elsewhere.
    pub fn settle(&mut self, name: &str, place: Place, past: Past, now: DateTime<Utc>) {
        let Some(task) = self.tasks.get_mut(name) else { return };
        task.place = place;
        let known = (task.past.began, task.past.succeeded);
        if task.running.is_some() || (past.began, past.succeeded) <= known {
            return;
        }
        task.past = past;
        task.due = task.regular(now);
        if past.succeeded > known.1 {
            self.wake_followers(name, now);
        }
    }

    /// All streams, by name.
    pub fn states(&self, now: DateTime<Utc>) -> Vec<StreamState> {
        let state = |task: &Task| match task {
            Task { running: Some(_), .. } => State::Running,
            Task { paused: true, .. } | Task { place: Place::Paused, .. } => State::Paused,
            Task { place: Place::Elsewhere | Place::Busy, .. } => State::Elsewhere,
            Task { held: true, .. } => State::Held,
            Task { failures: 1.., .. } => State::Retrying,
            _ => State::Waiting,
        };
        self.tasks
            .iter()
            .map(|(name, task)| StreamState {
                stream: name.clone(),
                state: state(task),
                due: task.due,
                left_alone_until: self.left_alone(&task.job, now),
                running_since: task.running,
                fresh_as_of: task.past.fresh_as_of,
            })
            .collect()
    }

    fn may_begin(&self, task: &Task, now: DateTime<Utc>) -> bool {
        let by_clock = || {
            task.due.is_some_and(|due| due <= now)
                && task.job.schedule.outside_of_blackouts(now) == now
                && self.left_alone(&task.job, now).is_none()
                && !self.overtakes(task, now)
        };
        let may = match task.place {
            Place::Here => task.triggered || by_clock(),
            Place::Elsewhere => task.triggered,
            Place::Busy | Place::Paused => false,
        };
        // A group is one at a time.
        let busy = || self.tasks.values().any(|it| it.running.is_some() && it.is_together_with(task));
        may && task.running.is_none() && !task.paused && !task.gone && !(task.job.group.is_some() && busy())
    }

    /// Whether a stream that this one comes after is under way or about to be.
    fn overtakes(&self, task: &Task, now: DateTime<Utc>) -> bool {
        task.job.schedule.after.iter().filter_map(|name| self.tasks.get(name)).any(|first| {
            let about_to = first.due.is_some_and(|due| due <= now) && !first.paused;
            first.running.is_some() || first.place == Place::Busy || about_to || first.failures > 0
        })
    }

    /// Until when one of the stream's connections is left alone.
    fn left_alone(&self, job: &Job, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let breakers = job.connections().filter_map(|connection| self.breakers.get(connection));
        breakers.filter_map(|breaker| breaker.closed_until(now)).max()
    }

    /// Streams that only wait for others are due once all of these have run since.
    fn wake_followers(&mut self, name: &str, now: DateTime<Utc>) {
        let succeeded: BTreeMap<String, Option<DateTime<Utc>>> =
            self.tasks.iter().map(|(name, task)| (name.clone(), task.past.succeeded)).collect();
        for task in self.tasks.values_mut() {
            let schedule = &task.job.schedule;
            let follows =
                matches!(schedule.cadence, Cadence::After) && schedule.after.iter().any(|n| n == name);
            let began = task.past.began;
            if follows && schedule.after.iter().all(|n| succeeded.get(n).copied().flatten() > began) {
                task.due = Some(schedule.outside_of_blackouts(now));
            }
        }
    }
}

impl Job {
    fn connections(&self) -> impl Iterator<Item = &str> {
        let other = self.target.as_deref().filter(|target| *target != self.source);
        std::iter::once(self.source.as_str()).chain(other)
    }
}

impl Task {
    fn is_together_with(&self, other: &Self) -> bool {
        self.job.group.is_some() && self.job.group == other.job.group
    }

    /// When the next pass is due, if nothing went wrong.
    fn regular(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.job.schedule.next(&self.job.name, &self.past, now)
    }

    fn note(&mut self, outcome: Outcome, began: DateTime<Utc>, now: DateTime<Utc>) {
        match outcome {
            Outcome::Well => {
                self.past.well(began, now);
                (self.failures, self.held) = (0, false);
                self.due = self.regular(now);
            }
            Outcome::Stopped => self.due = Some(now),
            Outcome::Wrong => {
                (self.failures, self.held) = (0, true);
                self.due = self.regular(now).map(|due| due.max(later(now, HOLD)));
            }
            Outcome::Conflict | Outcome::SourceFailed | Outcome::TargetFailed => {
                self.failures += 1;
                if self.failures <= RETRIES {
                    self.due = Some(later(now, RETRY.pause(&self.job.name, self.failures)));
                } else {
                    self.failures = 0;
                    self.due = self.regular(now).map(|due| due.max(later(now, RETRY.longest)));
                }
            }
        }
    }
}
