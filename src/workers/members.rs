//! Who lives, and whose each stream is. Decisions only: the time comes in as an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;
use std::time::Duration;

use siphasher::sip::SipHasher13;

use super::{BEAT, Card, FORGET, LEASE};
use crate::schedule::{Past, Place};

/// The workers, as one of them sees them.
pub(super) struct Members {
    own: String,
    beat: u64,
    /// When the own card last moved.
    beaten: Option<Duration>,
    /// Before this time the others do not know of this one.
    settled: Option<Duration>,
    others: BTreeMap<String, Other>,
    /// The streams that are paused for all.
    paused: BTreeSet<String>,
}

struct Other {
    card: Card,
    /// When its card was last seen to have moved.
    moved: Duration,
}

impl Members {
    pub(super) fn new(own: &str) -> Self {
        let (others, paused) = Default::default();
        Self { own: own.to_owned(), beat: 0, beaten: None, settled: None, others, paused }
    }

    pub(super) fn next_beat(&mut self) -> u64 {
        self.beat += 1;
        self.beat
    }

    /// Takes in which streams are paused.
    pub(super) fn paused(&mut self, paused: BTreeSet<String>) {
        self.paused = paused;
    }

    /// Pauses one, or lets it go on.
    pub(super) fn pause(&mut self, stream: &str, paused: bool) {
        if paused {
            self.paused.insert(stream.to_owned())
        } else {
            self.paused.remove(stream)
        };
    }

    /// Takes in the cards of all others. The own one moved at `began`. Names those that nobody needs any more.
    pub(super) fn see(
        &mut self,
        cards: BTreeMap<String, Card>,
        began: Duration,
        now: Duration,
    ) -> Vec<String> {
        let late = self.beaten.is_some_and(|beaten| began.saturating_sub(beaten) > LEASE);
        if self.beaten.is_none() || late {
            // The others divided the streams without this one; they need a look to know better.
            let alone = cards.is_empty();
            self.settled = Some(if alone { now } else { now + 2 * BEAT });
        }
        self.beaten = Some(began);
        self.others.retain(|name, _| cards.contains_key(name));
        for (name, card) in cards {
            let moved = match self.others.get(&name) {
                Some(known) if known.card.beat == card.beat => known.moved,
                _ => now,
            };
            self.others.insert(name, Other { card, moved });
        }
        let forgotten = self.others.iter().filter(|(_, other)| now.saturating_sub(other.moved) > FORGET);
        forgotten.map(|(name, _)| name.clone()).collect()
    }

    /// How many workers live, this one among them.
    pub(super) fn living(&self, now: Duration) -> usize {
        1 + self.others_living(now).count()
    }

    fn others_living(&self, now: Duration) -> impl Iterator<Item = (&String, &Other)> {
        self.others.iter().filter(move |(_, other)| now.saturating_sub(other.moved) <= LEASE)
    }

    /// Where a stream that this worker serves belongs, and how it last went anywhere. Streams that are part of one
    /// whole belong to one worker.
    pub(super) fn place(&self, stream: &str, whole: &str, now: Duration) -> (Place, Past) {
        let living = || self.others_living(now);
        let share = |other: &Other| other.card.streams.get(stream).copied();
        let past = self.others.values().filter_map(share).map(|share| share.past);
        let past = past.max_by_key(|past| past.began).unwrap_or_default();
        let shares = || living().filter_map(|(_, other)| share(other));
        let own = rank(&self.own, whole);
        let higher = living().any(|(name, other)| share(other).is_some() && rank(name, whole) > own);
        let heard = self.beaten.is_some_and(|beaten| now.saturating_sub(beaten) <= LEASE)
            && self.settled.is_some_and(|settled| settled <= now);
        let place = if self.paused.contains(stream) || shares().any(|share| share.paused) {
            Place::Paused
        } else if !heard || shares().any(|share| share.running) {
            Place::Busy
        } else if higher {
            Place::Elsewhere
        } else {
            Place::Here
        };
        (place, past)
    }
}

/// The living worker with the highest rank has the stream, or the whole that it is part of. When one goes, only
/// its streams move.
fn rank(worker: &str, stream: &str) -> u64 {
    let mut hash = SipHasher13::new();
    hash.write(worker.as_bytes());
    hash.write_u8(0);
    hash.write(stream.as_bytes());
    hash.finish()
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;
    use crate::schedule::Share;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn names() -> Vec<String> {
        (0..300).map(|n| format!("s{n}")).collect()
    }

    fn card(beat: u64) -> Card {
        let share = Share { running: false, paused: false, past: Past::default() };
        let streams = names().into_iter().map(|name| (name, share)).collect();
        Card { process: 1, beat, streams }
    }

    fn cards(cards: &[(&str, Card)]) -> BTreeMap<String, Card> {
        cards.iter().map(|(name, card)| ((*name).to_owned(), card.clone())).collect()
    }

    fn here(members: &Members, now: u64) -> Vec<String> {
        names().into_iter().filter(|name| members.place(name, name, at(now)).0 == Place::Here).collect()
    }

    #[test]
    fn whoever_is_alone_has_everything_at_once() {
        let mut one = Members::new("a");
        assert!(here(&one, 0).is_empty(), "before it has looked");
        one.see(BTreeMap::new(), at(0), at(0));
        assert_eq!(here(&one, 0).len(), 300);
    }

    #[test]
    fn three_share_and_a_dead_ones_streams_go_to_the_others() {
        let order = ["a", "b", "c"];
        let mut all: Vec<Members> = order.iter().map(|name| Members::new(name)).collect();
        let look = |all: &mut [Members], now: u64, dead: Option<&str>| {
            for (member, own) in all.iter_mut().zip(order) {
                let beat = |name: &str| if dead == Some(name) { 1 } else { now };
                let others = order.iter().filter(|name| **name != own);
                let seen: Vec<_> = others.map(|name| (*name, card(beat(name)))).collect();
                member.see(cards(&seen), at(now), at(now));
            }
        };
        look(&mut all, 1, None);
        assert!(all.iter().all(|member| here(member, 1).is_empty()), "they let the others look first");
        (2..=7).for_each(|now| look(&mut all, now, None));
        let shares: Vec<_> = all.iter().map(|member| here(member, 7)).collect();
        let mut together = shares.concat();
        together.sort();
        let mut expected = names();
        expected.sort();
        assert_eq!(together, expected, "each stream has one place");
        assert!(shares.iter().all(|share| (60..140).contains(&share.len())), "{shares:?}");

        // `c` has stopped moving at 1, which was seen to be so at 8.
        (8..=18).for_each(|now| look(&mut all, now, Some("c")));
        assert_eq!(here(&all[0], 18).len(), shares[0].len());
        look(&mut all, 19, Some("c"));
        let (first, second) = (here(&all[0], 19), here(&all[1], 19));
        assert_eq!(first.len() + second.len(), 300);
        assert!(shares[0].iter().all(|name| first.contains(name)), "nobody else's streams move");
    }

    #[test]
    fn a_whole_has_one_place() {
        let order = ["a", "b"];
        let mut all: Vec<Members> = order.iter().map(|name| Members::new(name)).collect();
        for now in 1..=7 {
            for (member, own) in all.iter_mut().zip(order) {
                let other = order.iter().find(|name| **name != own).unwrap();
                member.see(cards(&[(*other, card(now))]), at(now), at(now));
            }
        }
        for whole in ["group x", "group y", "group z"] {
            let places: Vec<usize> = all
                .iter()
                .map(|member| {
                    let here = |name: &String| member.place(name, whole, at(7)).0 == Place::Here;
                    names().iter().filter(|name| here(name)).count()
                })
                .collect();
            assert!(places == [300, 0] || places == [0, 300], "{whole}: {places:?}");
        }
    }

    #[test]
    fn one_that_was_away_begins_nothing_until_the_others_know() {
        let mut one = Members::new("a");
        one.see(BTreeMap::new(), at(0), at(0));
        assert_eq!(here(&one, 10).len(), 300);
        assert!(here(&one, 11).is_empty(), "its card has not moved for too long");
        one.see(cards(&[("b", card(1))]), at(30), at(30));
        assert!(here(&one, 30).is_empty());
        one.see(cards(&[("b", card(2))]), at(33), at(33));
        one.see(cards(&[("b", card(3))]), at(36), at(36));
        assert!((60..240).contains(&here(&one, 36).len()));
    }

    #[test]
    fn what_others_run_or_paused_or_did_counts_here() {
        let mut one = Members::new("a");
        let began = DateTime::from_timestamp(5, 0);
        let share = Share { running: true, paused: false, past: Past { began, ..Past::default() } };
        let mut other = card(1);
        other.streams.insert("s1".to_owned(), share);
        other.streams.insert("s2".to_owned(), Share { running: false, paused: true, ..share });
        one.see(cards(&[("b", other.clone())]), at(0), at(0));
        one.see(cards(&[("b", Card { beat: 2, ..other.clone() })]), at(6), at(6));
        assert_eq!(one.place("s1", "s1", at(6)), (Place::Busy, share.past));
        assert_eq!(one.place("s2", "s2", at(6)), (Place::Paused, share.past));
        // Once dead it runs and pauses nothing, but how the streams went is still known.
        one.see(cards(&[("b", Card { beat: 2, ..other })]), at(16), at(17));
        assert_eq!(one.place("s1", "s1", at(17)), (Place::Here, share.past));
        assert_eq!(one.place("s2", "s2", at(17)), (Place::Here, share.past));
    }

    #[test]
    fn a_pause_holds_whoever_asked_for_it() {
        let mut one = Members::new("a");
        one.see(BTreeMap::new(), at(0), at(0));
        one.pause("s1", true);
        assert_eq!(one.place("s1", "s1", at(0)).0, Place::Paused);
        one.paused(BTreeSet::from(["s2".to_owned()]));
        assert_eq!(
            (one.place("s1", "s1", at(0)).0, one.place("s2", "s2", at(0)).0),
            (Place::Here, Place::Paused)
        );
        one.pause("s2", false);
        assert_eq!(one.place("s2", "s2", at(0)).0, Place::Here);
    }

    #[test]
    fn a_card_that_nobody_needs_goes() {
        let mut one = Members::new("a");
        let seen = || cards(&[("b", card(1))]);
        assert!(one.see(seen(), at(0), at(0)).is_empty());
        assert!(one.see(seen(), at(3600), at(3600)).is_empty());
        assert_eq!(one.see(seen(), at(3601), at(3601)), ["b"]);
    }
}
