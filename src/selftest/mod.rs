//! The torture test: a source that changes, passes that are killed, and an oracle that knows every state
//! that the source ever committed.
//!
//! ```text
//!            seed ──▶ transactions ──▶ source ─┐
//!              │          │                    ├──▶ frazil run, sync, load, serve, maintain
//!              │          ▼                    │      as processes: killed, stopped, cut off
//!              │        model                  ▼
//!              └──▶ troubles ─────────▶  lake, target
//!                         │                    │
//!                         └──── compared ◀─────┘
//! ```
//!
//! After each pass every new snapshot of the lake must be a state that the source committed. Now and then
//! all is let come to rest: one clean run, and source, lake and target hold the same rows, value by value.
//! What is done, and what goes wrong, is a pure function of the seed; only the moments are not.

mod chance;
mod database;
mod lakeside;
mod model;
mod moves;
mod passes;
mod place;
mod report;
mod rest;
mod values;
mod world;

use std::path::PathBuf;
use std::time::{Duration, Instant};

pub use place::Places;
pub use report::Report;

use crate::error::Result;
use world::World;

/// Rounds between two times that all comes to rest, about.
const ROUNDS_TO_REST: usize = 4;

/// What is tested, where, and for how long.
pub struct Settings {
    /// The program whose passes are tested.
    pub program: PathBuf,
    /// Decides all that happens.
    pub seed: u64,
    /// No round begins after this time.
    pub time: Duration,
    /// Nor after so many rounds.
    pub rounds: u64,
    /// Where files are written: new, or empty.
    pub folder: PathBuf,
    /// Databases and lake, as the test itself reaches them.
    pub places: Places,
    /// The same as passes reach them: perhaps by way of a bad network.
    pub for_passes: Places,
    /// The schema of the test's own tables, in databases and lake. It must not exist.
    pub schema: String,
    /// Whether that schema stays when all was well.
    pub keep: bool,
}

/// What else can go wrong, in the hands of whoever starts the test.
pub trait Weather {
    /// Each by its name.
    fn kinds(&self) -> &[&'static str];

    /// It begins, to a degree between 0 and 1.
    fn begin(&mut self, kind: usize, strength: f64);

    /// What passes find in their environment while it lasts.
    fn environment(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// All is fair again.
    fn end(&mut self);
}

/// Nothing else goes wrong.
pub struct Fair;

impl Weather for Fair {
    fn kinds(&self) -> &[&'static str] {
        &[]
    }

    fn begin(&mut self, _: usize, _: f64) {}

    fn end(&mut self) {}
}

/// Runs the test to its end, or to the first row that is wrong. `tell` hears how it goes.
///
/// An error means that the test could not be made; what the test found is in the report.
pub async fn chaos(
    settings: Settings,
    weather: &mut dyn Weather,
    tell: &mut dyn FnMut(&Report),
) -> Result<Report> {
    let began = Instant::now();
    let (time, rounds) = (settings.time, settings.rounds);
    let mut world = Box::pin(World::new(settings, weather)).await?;
    let mut since_rest = 0;
    while world.report.is_good() && world.report.rounds < rounds && began.elapsed() < time {
        Box::pin(world.round()).await?;
        since_rest += 1;
        if world.report.is_good() && world.rests(since_rest) {
            since_rest = 0;
            Box::pin(world.rest()).await?;
        }
        world.report.seconds = began.elapsed().as_secs_f64();
        tell(&world.report);
    }
    if world.report.is_good() && since_rest > 0 {
        Box::pin(world.rest()).await?;
    }
    if world.report.is_good() {
        world.clean_up().await?;
    }
    world.report.seconds = began.elapsed().as_secs_f64();
    Ok(world.report)
}
