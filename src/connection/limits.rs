//! How much of a database may be asked for, so that those whose database it is notice nothing.
//!
//! ```text
//! streams ──▶ a place among `connections` ──▶ rows ──▶ bucket (rows, bytes) ──▶ lake
//!                                              ▲
//!              a pause, while replicas are behind or sessions wait for locks
//! ```
//!
//! Clones of a [`Connection`](super::Connection) share one [`Limiter`], and so do all streams of a process
//! that read from it. Workers that share streams divide the limits among themselves: each has its part of the
//! rates and of the places, and one place at least. Other processes do not know of each other.

use std::collections::BTreeMap;
use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, ErrorKind, Result};

/// What may run up while nobody reads: a second's worth, so that short passes are not slowed down.
const BURST: f64 = 1.0;
/// Whoever waits longer for a place among the connections is told so. First reads of large tables hold
/// theirs for long.
const PATIENCE: Duration = Duration::from_secs(3600);

/// The limits of a connection that rows are read from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Rows a second, of all streams together.
    pub rows_per_second: Option<NonZeroU64>,
    /// Bytes a second, of all streams together: of rows as they are held in memory.
    pub bytes_per_second: Option<NonZeroU64>,
    /// Sessions that read at the same time.
    pub connections: Option<NonZeroUsize>,
    /// Pause while a replica is further behind than this: the one that is read, or those of the primary
    /// that is read.
    pub replica_lag: Option<Duration>,
    /// Pause while so many sessions of the database, or more, wait for locks.
    pub waiting_sessions: Option<NonZeroU64>,
}

/// Keeps all who read from a connection within its limits.
#[derive(Debug)]
pub struct Limiter {
    limits: Limits,
    rows: Option<Mutex<Bucket>>,
    bytes: Option<Mutex<Bucket>>,
    places: Option<Arc<Places>>,
}

/// Places of this process, some of which may be lent to other workers.
#[derive(Debug)]
struct Places {
    all: usize,
    lent: Mutex<usize>,
    here: Arc<Semaphore>,
}

/// A place among the connections, until it is dropped.
#[derive(Debug)]
pub struct Place {
    _held: Option<OwnedSemaphorePermit>,
}

/// Among how many workers limits are divided.
static WORKERS: AtomicUsize = AtomicUsize::new(1);

/// Those of this process, by the names of their connections.
static ALL: Mutex<BTreeMap<String, Weak<Limiter>>> = Mutex::new(BTreeMap::new());

/// Divides all limits of this process among so many workers, of which it is one.
pub fn divide_limits(workers: usize) {
    let workers = workers.max(1);
    if WORKERS.swap(workers, Ordering::Relaxed) == workers {
        return;
    }
    let all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
    for places in all.values().filter_map(Weak::upgrade).filter_map(|limiter| limiter.places.clone()) {
        places.divide(workers);
    }
}

impl Limiter {
    /// The one of a connection. A configuration that is read again goes on with the one that there was, as
    /// long as its limits are the same.
    pub fn of(connection: &str, limits: Limits) -> Arc<Self> {
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(connection).and_then(Weak::upgrade)
            && known.limits == limits
        {
            return known;
        }
        let limiter = Arc::new(Self::new(limits));
        if let Some(places) = &limiter.places {
            places.divide(WORKERS.load(Ordering::Relaxed));
        }
        all.insert(connection.to_owned(), Arc::downgrade(&limiter));
        limiter
    }

    /// One that keeps these.
    pub fn new(limits: Limits) -> Self {
        let bucket = |rate: Option<NonZeroU64>| {
            rate.map(|rate| Mutex::new(Bucket::new(rate.get() as f64, Instant::now())))
        };
        let places = limits.connections.map(|most| Arc::new(Places::new(most.get())));
        Self { rows: bucket(limits.rows_per_second), bytes: bucket(limits.bytes_per_second), places, limits }
    }

    /// What it keeps.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Waits until so many rows and bytes that were read are within the rates.
    pub async fn spend(&self, rows: u64, bytes: u64) {
        let now = Instant::now();
        let workers = WORKERS.load(Ordering::Relaxed) as f64;
        let wait = |bucket: &Option<Mutex<Bucket>>, amount: u64| {
            let bucket = bucket.as_ref()?;
            // To have a part of a rate is to pay more for each row.
            Some(bucket.lock().unwrap_or_else(PoisonError::into_inner).take(amount as f64 * workers, now))
        };
        let waits = [wait(&self.rows, rows), wait(&self.bytes, bytes)];
        let longest = waits.into_iter().flatten().max().unwrap_or_default();
        if !longest.is_zero() {
            tokio::time::sleep(longest).await;
        }
    }

    /// Waits for a place among the connections.
    pub async fn enter(&self) -> Result<Place> {
        let Some(places) = &self.places else { return Ok(Place { _held: None }) };
        let waited = tokio::time::timeout(PATIENCE, Arc::clone(&places.here).acquire_owned()).await;
        match waited {
            Ok(Ok(held)) => Ok(Place { _held: Some(held) }),
            _ => Err(Error::new(ErrorKind::Transient, "all connections that `limits` allows are in use")
                .hint("raise `limits.connections`, or run fewer streams at once")),
        }
    }

    /// As many further places as there are, up to `most`.
    pub fn enter_more(&self, most: usize) -> Vec<Place> {
        let more = |_| match &self.places {
            None => Some(Place { _held: None }),
            Some(places) => {
                Arc::clone(&places.here).try_acquire_owned().ok().map(|held| Place { _held: Some(held) })
            }
        };
        (0..most).map_while(more).collect()
    }
}

impl Places {
    fn new(all: usize) -> Self {
        Self { all, lent: Mutex::new(0), here: Arc::new(Semaphore::new(all)) }
    }

    /// Keeps a part of the places. Those that are taken now go when they are given back.
    fn divide(&self, workers: usize) {
        let kept = (self.all / workers).max(1);
        let mut lent = self.lent.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *lent, self.all - kept);
        if *lent < before {
            self.here.add_permits(before - *lent);
        }
        for _ in before..*lent {
            let here = Arc::clone(&self.here);
            tokio::spawn(async move {
                if let Ok(place) = here.acquire_owned().await {
                    place.forget();
                }
            });
        }
    }
}

/// Lets so much pass in a second. Who takes more than there is takes it on credit, and waits: so large
/// batches pass, and the average holds.
#[derive(Debug)]
struct Bucket {
    rate: f64,
    level: f64,
    at: Instant,
}

impl Bucket {
    fn new(rate: f64, at: Instant) -> Self {
        Self { rate, level: rate * BURST, at }
    }

    /// How long whoever takes this has to wait.
    fn take(&mut self, amount: f64, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.level = (self.level + passed * self.rate).min(self.rate * BURST) - amount;
        Duration::try_from_secs_f64(-self.level / self.rate).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_lets_its_rate_pass_on_average() {
        let start = Instant::now();
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let mut bucket = Bucket::new(100.0, start);
        assert_eq!(bucket.take(100.0, start), Duration::ZERO, "the first second's worth passes at once");
        assert_eq!(bucket.take(50.0, start), Duration::from_millis(500));
        assert_eq!(bucket.take(50.0, start), Duration::from_secs(1), "who comes next waits for both");
        assert_eq!(bucket.take(100.0, at(1.5)), Duration::from_millis(500));
        assert_eq!(bucket.take(100.0, at(1000.0)), Duration::ZERO);
        assert_eq!(bucket.take(1.0, at(1000.0)), Duration::from_millis(10), "no more than a second runs up");
        assert_eq!(bucket.take(0.0, at(999.0)), Duration::from_millis(10), "a clock never takes back");
    }

    #[tokio::test]
    async fn places_are_as_many_as_connections() {
        let limits = Limits { connections: NonZeroUsize::new(3), ..Limits::default() };
        let limiter = Limiter::new(limits);
        let first = limiter.enter().await.unwrap();
        let more = limiter.enter_more(7);
        assert_eq!(more.len(), 2);
        assert!(tokio::time::timeout(Duration::from_millis(20), limiter.enter()).await.is_err());
        drop(first);
        limiter.enter().await.unwrap();
        assert_eq!(Limiter::new(Limits::default()).enter_more(7).len(), 7);
    }

    #[tokio::test]
    async fn workers_divide_places_and_get_them_back() {
        let places = Places::new(5);
        let held: Vec<_> = (0..4).map(|_| Arc::clone(&places.here).try_acquire_owned().unwrap()).collect();
        let free = async |expected: usize| {
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            assert_eq!(places.here.available_permits(), expected);
        };
        places.divide(2);
        free(0).await;
        drop(held);
        free(2).await;
        places.divide(9);
        free(1).await;
        places.divide(1);
        free(5).await;
    }

    #[test]
    fn a_connection_keeps_its_limiter_until_its_limits_change() {
        let of = |rate| Limits { rows_per_second: NonZeroU64::new(rate), ..Limits::default() };
        let first = Limiter::of("limits_of_a_test", of(1));
        assert!(Arc::ptr_eq(&first, &Limiter::of("limits_of_a_test", of(1))));
        assert!(!Arc::ptr_eq(&first, &Limiter::of("limits_of_a_test", of(2))));
    }
}
