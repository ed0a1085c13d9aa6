//! Several `frazil serve` that share their streams, without a service between them.
//!
//! ```text
//! worker 1 ──every 3 s──▶ card 1 ─┐                      ┌─▶ who lives: whose card moved within 10 s
//!                                 ├─▶ all read all cards ┤
//! worker 2 ──every 3 s──▶ card 2 ─┘                      └─▶ whose each stream is: the highest of
//!                                                            hash(worker, stream) among the living
//! ```
//!
//! A card says which streams its worker serves, which it is reading, which somebody paused there, and how
//! each went before. All who see the same cards come to the same division, so nobody has to ask anybody.
//! Whether a card moves is measured by the clock of whoever looks: no two clocks are compared.
//!
//! None of this is needed for rows to be right. Two workers that for some seconds do not agree read the
//! same rows, and the second of their commits is refused by the catalog. So a card is no lock, and there
//! is nothing that a dead worker could leave locked.

mod members;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::Result;
use crate::lake::LakeSettings;
use crate::lake::notices::Notices;
use crate::schedule::{Past, Place, Share};
use members::Members;

/// How often a card moves: three can get lost before its worker counts as dead.
const BEAT: Duration = Duration::from_secs(3);
/// A worker whose card has not moved for so long is dead, for others and for itself.
const LEASE: Duration = Duration::from_secs(10);
/// The card of a worker that has been dead for so long goes. Until then it says how its streams went.
const FORGET: Duration = Duration::from_secs(3600);

/// What a worker says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Card {
    /// Its process, for people who look into the file.
    process: u32,
    /// Counts up.
    beat: u64,
    streams: BTreeMap<String, Share>,
}

/// This process among the workers.
pub struct Worker {
    shared: Arc<Mutex<Shared>>,
    notices: Notices,
    name: String,
}

struct Shared {
    /// What the next card will say.
    mine: BTreeMap<String, Share>,
    members: Members,
    /// When the clock of all times here was at zero.
    epoch: Instant,
    /// Whether the last look failed, which was said then.
    failed: bool,
}

impl Shared {
    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }
}

impl Worker {
    /// Puts up a first card. Fails when the lake has no place for it.
    pub async fn join(lake: &LakeSettings) -> Result<Self> {
        let name = format!("worker-{}", Uuid::new_v4());
        let shared = Shared {
            mine: BTreeMap::new(),
            members: Members::new(&name),
            epoch: Instant::now(),
            failed: false,
        };
        let worker = Self { shared: Arc::new(Mutex::new(shared)), notices: Notices::open(lake)?, name };
        beat(&worker.shared, &worker.notices, &worker.name).await?;
        Ok(worker)
    }

    /// Keeps the card moving from now on.
    pub fn start(&self) {
        let (shared, notices, name) = (Arc::downgrade(&self.shared), self.notices.clone(), self.name.clone());
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(BEAT).await;
                // It ends with its worker.
                let Some(shared) = shared.upgrade() else { return };
                let outcome = beat(&shared, &notices, &name).await;
                let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
                match outcome {
                    Ok(()) => shared.failed = false,
                    Err(error) if !shared.failed => {
                        shared.failed = true;
                        tracing::warn!(%error, "other workers cannot be seen; no pass begins meanwhile");
                    }
                    Err(_) => {}
                }
            }
        });
    }

    /// Says what the streams do here, and gets to know where each belongs and how it went elsewhere.
    pub fn exchange<'a>(
        &self,
        streams: impl Iterator<Item = (&'a str, Share)>,
    ) -> BTreeMap<String, (Place, Past)> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.mine = streams.map(|(name, share)| (name.to_owned(), share)).collect();
        let now = shared.now();
        shared.mine.keys().map(|name| (name.clone(), shared.members.place(name, now))).collect()
    }

    /// Takes the card down: the others need not wait until it counts as dead.
    pub async fn leave(self) {
        let Self { shared, notices, name } = self;
        drop(shared);
        if let Err(error) = notices.remove(&name).await {
            tracing::warn!(%error, "the other workers will notice in some seconds that this one has gone");
        }
    }
}

/// Moves the card and looks at the others'.
async fn beat(shared: &Mutex<Shared>, notices: &Notices, name: &str) -> Result<()> {
    let lock = || shared.lock().unwrap_or_else(PoisonError::into_inner);
    let (card, began) = {
        let mut shared = lock();
        let beat = shared.members.next_beat();
        (Card { process: std::process::id(), beat, streams: shared.mine.clone() }, shared.now())
    };
    notices.put(name, serde_json::to_vec(&card).expect("a card is JSON")).await?;
    let all = notices.all().await?;
    let cards = all.into_iter().filter(|(other, _)| other.starts_with("worker-") && other != name);
    // One of another version, or half of one: as good as none.
    let cards = cards.filter_map(|(name, text)| Some((name, serde_json::from_slice(&text).ok()?)));
    let gone = {
        let mut shared = lock();
        let now = shared.now();
        // What was written counts from when it was begun: the others may have seen it that early.
        shared.members.see(cards.collect(), began, now)
    };
    for name in gone {
        notices.remove(&name).await?;
    }
    Ok(())
}
