//! When streams run: decisions only, without a clock, a database or a task of its own.
//!
//! ```text
//!  Schedule of each stream ─▶ Scheduler ─ start(now) ─▶ names of passes to begin
//!                                 ▲    └─ wake(now) ──▶ when to ask again
//!            ended(name, Ended) ──┘
//! ```
//!
//! Whoever drives it (`frazil serve`) says what time it is and how passes ended. So a night can be
//! played in a test within a millisecond, and what was decided can be explained afterwards.
//!
//! Rules, in the order in which they bind: no stream runs twice at once; a paused one does not run;
//! none begins within its blackout; none overtakes one that it comes `after`; a connection that
//! keeps failing is left alone for a while; of those that may run, the critical ones go first, and
//! nobody waits for ever.

mod blackout;
mod breaker;
mod cadence;
mod reconcile;
mod scheduler;
#[cfg(test)]
mod tests;

pub use blackout::Blackout;
pub use cadence::{Cadence, CatchUp, Past, Priority, Schedule, cron, time_zone};
pub use reconcile::{Proof, Reconcile};
pub use scheduler::{Ended, Job, Outcome, Place, Scheduler, Share, State, StreamState};
