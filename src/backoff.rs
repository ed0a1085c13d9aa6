//! How long to wait before something that failed for a passing reason is tried again: each time twice as
//! long, and not at the same moment as everybody else who failed with it.

use std::hash::Hasher;
use std::time::Duration;

use siphasher::sip::SipHasher13;

/// Growing pauses.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    /// The pause before the first try that is not the first.
    pub first: Duration,
    /// No pause is longer.
    pub longest: Duration,
}

impl Backoff {
    /// The pause after the `failures`th failure in a row of `who`: between three quarters of its length and
    /// all of it, the same whenever it is asked for, so that a night can be played again.
    pub fn pause(&self, who: &str, failures: u32) -> Duration {
        let whole = self.first.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1)));
        let mut hash = SipHasher13::new();
        hash.write(who.as_bytes());
        hash.write_u32(failures);
        let less = hash.finish() as f64 / u64::MAX as f64 / 4.0;
        whole.min(self.longest).mul_f64(1.0 - less)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_the_longest_and_differ() {
        let backoff = Backoff { first: Duration::from_secs(4), longest: Duration::from_secs(60) };
        for (failures, whole) in [(1, 4), (2, 8), (3, 16), (5, 60), (4_000_000_000, 60)] {
            let pause = backoff.pause("a", failures);
            let whole = Duration::from_secs(whole);
            assert!(pause <= whole && pause >= whole * 3 / 4, "{failures}: {pause:?}");
            assert_eq!(pause, backoff.pause("a", failures));
        }
        let pauses: std::collections::BTreeSet<_> =
            (0..50).map(|n| backoff.pause(&format!("s{n}"), 1)).collect();
        assert_eq!(pauses.len(), 50);
    }
}
