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
//! A pause is a notice of its own, `paused-<stream>`: it holds for all, also when the worker that was asked is
//! gone, until anybody is asked to go on.
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
/// The names of notices that pause a stream begin so.
const PAUSED: &str = "paused-";
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
    /// Pauses, and their ends, that are to be written.
    wishes: BTreeMap<String, bool>,
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
            wishes: BTreeMap::new(),
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

    /// Says what the streams do here, and gets to know where each belongs and how it went elsewhere. `whole_of`
    /// names what streams are part of that go to one worker.
    pub fn exchange<'a>(
        &self,
        streams: impl Iterator<Item = (&'a str, Share)>,
        whole_of: impl Fn(&str) -> String,
    ) -> BTreeMap<String, (Place, Past)> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.mine = streams.map(|(name, share)| (name.to_owned(), share)).collect();
        let now = shared.now();
        let place = |name: &String| shared.members.place(name, &whole_of(name), now);
        shared.mine.keys().map(|name| (name.clone(), place(name))).collect()
    }

    /// How many workers live, this one among them.
    pub fn living(&self) -> usize {
        let shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.members.living(shared.now())
    }

    /// Pauses a stream for all workers, or lets it go on. It holds here at once, and everywhere within two
    /// beats.
    pub fn pause(&self, stream: String, paused: bool) {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.members.pause(&stream, paused);
        shared.wishes.insert(stream, paused);
    }

    /// Takes the card down: the others need not wait until it counts as dead.
    pub async fn leave(self) {
        let Self { shared, notices, name } = self;
        // What was asked in the last moment still holds.
        if let Err(error) = write_pauses(&shared, &notices).await {
            tracing::warn!(%error, "a pause was not written");
        }
        drop(shared);
        if let Err(error) = notices.remove(&name).await {
            tracing::warn!(%error, "the other workers will notice in some seconds that this one has gone");
        }
    }
}

/// The notice of a paused stream. Names of streams have characters that names of files cannot have.
fn notice_of(stream: &str) -> String {
    let hex: String = stream.bytes().map(|byte| format!("{byte:02x}")).collect();
    format!("{PAUSED}{hex}")
}

fn paused_by(notice: &str) -> Option<String> {
    let hex = notice.strip_prefix(PAUSED)?;
    let bytes: Option<Vec<u8>> =
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok()).collect();
    String::from_utf8(bytes?).ok()
}

/// Writes pauses, and takes down those that ended. What fails is tried again with the next beat.
async fn write_pauses(shared: &Mutex<Shared>, notices: &Notices) -> Result<()> {
    let lock = || shared.lock().unwrap_or_else(PoisonError::into_inner);
    let wishes = lock().wishes.clone();
    for (stream, paused) in wishes {
        let notice = notice_of(&stream);
        match paused {
            true => {
                notices.put(&notice, format!("{{\"process\":{}}}", std::process::id()).into_bytes()).await?
            }
            false => notices.remove(&notice).await?,
        }
        let mut shared = lock();
        if shared.wishes.get(&stream) == Some(&paused) {
            shared.wishes.remove(&stream);
        }
    }
    Ok(())
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
    write_pauses(shared, notices).await?;
    let all = notices.all().await?;
    let paused = all.iter().filter_map(|(name, _)| paused_by(name)).collect();
    let cards = all.into_iter().filter(|(other, _)| other.starts_with("worker-") && other != name);
    // One of another version, or half of one: as good as none.
    let cards = cards.filter_map(|(name, text)| Some((name, serde_json::from_slice(&text).ok()?)));
    let gone = {
        let mut shared = lock();
        let now = shared.now();
        // A wish of this very moment is not written yet.
        if shared.wishes.is_empty() {
            shared.members.paused(paused);
        }
        // What was written counts from when it was begun: the others may have seen it that early.
        shared.members.see(cards.collect(), began, now)
    };
    for name in gone {
        notices.remove(&name).await?;
    }
    Ok(())
}
