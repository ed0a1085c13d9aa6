//! What fails for a passing reason is tried again within a pass, as long as its budget of time lasts.
//!
//! Each half of a pass goes on from the last commit, so trying it again is what the next pass would do.
//! Everything else ends the pass at once: a wrong password does not get right by asking again, and
//! whoever lost a race is told so.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Progress;
use crate::backoff::Backoff;
use crate::error::{Error, ErrorKind, Result};

/// A lock or a deadlock is over within a second, a server that restarts within a minute.
const BACKOFF: Backoff = Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(60) };
/// How soon a wish to stop is noticed in a pause.
const LOOK: Duration = Duration::from_millis(100);

/// The tries of one pass.
pub(super) struct Tries {
    /// Whose, for the log and the spread of pauses.
    stream: String,
    progress: Arc<Progress>,
    /// What is left of the budget at `began`.
    budget: Duration,
    began: Instant,
    /// Those that were not the first.
    pub(super) again: u32,
}

impl Tries {
    pub(super) fn new(stream: &str, progress: &Arc<Progress>, budget: Duration) -> Self {
        let (stream, progress) = (stream.to_owned(), progress.clone());
        Self { stream, progress, budget, began: Instant::now(), again: 0 }
    }

    /// The outcome of the first try that comes through, fails for good, or finds no time left for another.
    pub(super) async fn run<T, F: Future<Output = Result<T>>>(
        &mut self,
        mut work: impl FnMut() -> F,
    ) -> Result<T> {
        let mut failures = 0;
        loop {
            let error = match work().await {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            failures += 1;
            let Some(pause) = self.pause(&error, failures, self.began.elapsed()) else { return Err(error) };
            tracing::warn!(stream = %self.stream, %error, seconds = pause.as_secs_f64(), "tried again soon");
            if !self.rest(pause).await {
                return Err(error);
            }
            self.again += 1;
        }
    }

    /// How long to wait before the next try, if there is one.
    fn pause(&self, error: &Error, failures: u32, elapsed: Duration) -> Option<Duration> {
        let pause = BACKOFF.pause(&self.stream, failures);
        let in_time = elapsed.saturating_add(pause) <= self.budget;
        (error.kind() == ErrorKind::Transient && in_time).then_some(pause)
    }

    /// Waits, unless somebody wants to stop.
    async fn rest(&self, pause: Duration) -> bool {
        let began = Instant::now();
        loop {
            if self.progress.stop.load(Ordering::Relaxed) {
                return false;
            }
            let left = pause.saturating_sub(began.elapsed());
            if left.is_zero() {
                return true;
            }
            tokio::time::sleep(left.min(LOOK)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_passes_is_tried_again_and_only_within_the_budget() {
        let progress = Arc::new(Progress::default());
        let minute = Duration::from_secs(60);
        let tries = Tries::new("a", &progress, minute);
        for kind in ErrorKind::ALL {
            let pause = tries.pause(&Error::new(kind, "no"), 1, Duration::ZERO);
            assert_eq!(pause.is_some(), kind == ErrorKind::Transient, "{kind}");
        }
        let error = Error::new(ErrorKind::Transient, "no");
        // Pauses of about 1, 2, 4 and 8 seconds.
        let mut elapsed = Duration::ZERO;
        let mut failures = 0;
        while let Some(pause) = tries.pause(&error, failures + 1, elapsed) {
            (failures, elapsed) = (failures + 1, elapsed + pause);
        }
        assert!((5..=6).contains(&failures) && elapsed <= minute, "{failures} in {elapsed:?}");
        let none = Tries::new("a", &progress, Duration::ZERO);
        assert_eq!(none.pause(&error, 1, Duration::ZERO), None);
    }

    #[tokio::test]
    async fn a_second_try_that_comes_through_is_the_outcome() {
        let progress = Arc::new(Progress::default());
        let mut tries = Tries::new("a", &progress, Duration::from_secs(60));
        let mut left = vec![Ok(7), Err(Error::new(ErrorKind::Transient, "no"))];
        let outcome = tries.run(|| std::future::ready(left.pop().expect("an outcome for each try"))).await;
        assert_eq!((outcome.unwrap(), tries.again), (7, 1));
    }

    #[tokio::test]
    async fn whoever_wants_to_stop_does_not_wait() {
        let progress = Arc::new(Progress::default());
        progress.stop.store(true, Ordering::Relaxed);
        let mut tries = Tries::new("a", &progress, Duration::from_secs(60));
        let no = || std::future::ready(Err(Error::new(ErrorKind::Transient, "no")));
        let outcome: Result<()> = tries.run(no).await;
        assert!(outcome.is_err());
        assert_eq!(tries.again, 0);
    }
}
