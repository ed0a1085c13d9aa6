//! Nights, played in a millisecond.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use proptest::prelude::*;

use super::*;

fn at(text: &str) -> DateTime<Utc> {
    text.parse().unwrap()
}

fn usual(cadence: Cadence) -> Schedule {
    Schedule {
        cadence,
        zone: chrono_tz::Tz::UTC,
        jitter: Duration::ZERO,
        blackout: Vec::new(),
        catch_up: CatchUp::Once,
        after: Vec::new(),
        priority: Priority::Normal,
    }
}

fn every(seconds: u64) -> Schedule {
    usual(Cadence::Every(Duration::from_secs(seconds)))
}

fn by_cron(text: &str, zone: &str) -> Schedule {
    Schedule { zone: time_zone(zone).unwrap(), ..usual(Cadence::Cron(Box::new(cron(text).unwrap()))) }
}

fn job(name: &str, schedule: Schedule) -> Job {
    let (source, target) = ("shop".to_owned(), Some("dwh".to_owned()));
    Job { name: name.to_owned(), schedule, source, target, group: None }
}

fn scheduler(parallel: usize, jobs: Vec<Job>, now: DateTime<Utc>) -> Scheduler {
    let mut scheduler = Scheduler::new(parallel);
    scheduler.set(jobs, |_| Past::default(), now);
    scheduler
}

const NOON: &str = "2026-03-10T12:00:00Z";

/// Begins what can begin, lets each pass take `takes` and end by `outcome`, and notes who began when.
fn play(
    scheduler: &mut Scheduler,
    from: DateTime<Utc>,
    until: DateTime<Utc>,
    takes: TimeDelta,
    outcome: impl Fn(&str, DateTime<Utc>) -> Outcome,
) -> Vec<(String, DateTime<Utc>)> {
    let (mut now, mut begun) = (from, Vec::new());
    let mut running: Vec<(DateTime<Utc>, String)> = Vec::new();
    while now < until {
        for name in scheduler.start(now) {
            assert!(!running.iter().any(|(_, other)| *other == name), "{name} runs twice at once");
            running.push((now + takes, name.clone()));
            begun.push((name, now));
        }
        running.sort();
        let wake = scheduler.wake(now).unwrap_or(until);
        assert!(wake > now, "a busy loop");
        match running.first() {
            Some((end, _)) if *end <= wake => {
                let (end, name) = running.remove(0);
                now = end;
                scheduler.ended(&name, Ended { outcome: outcome(&name, end), at: end });
            }
            _ => now = wake,
        }
    }
    begun
}

fn times(begun: &[(String, DateTime<Utc>)], name: &str) -> Vec<String> {
    let of = begun.iter().filter(|(begun, _)| begun == name);
    of.map(|(_, time)| time.format("%dT%H:%M:%S").to_string()).collect()
}

#[test]
fn an_interval_is_from_start_to_start_and_a_slow_pass_is_not_overtaken() {
    let now = at(NOON);
    let mut quick = scheduler(1, vec![job("a", every(60))], now);
    let begun =
        play(&mut quick, now, now + TimeDelta::minutes(3), TimeDelta::seconds(10), |_, _| Outcome::Well);
    assert_eq!(times(&begun, "a"), ["10T12:00:00", "10T12:01:00", "10T12:02:00"]);
    let mut slow = scheduler(1, vec![job("a", every(60))], now);
    let begun =
        play(&mut slow, now, now + TimeDelta::minutes(3), TimeDelta::seconds(70), |_, _| Outcome::Well);
    assert_eq!(times(&begun, "a"), ["10T12:00:00", "10T12:01:10", "10T12:02:20"]);
}

#[test]
fn cron_means_the_clock_on_the_wall() {
    // In Berlin clocks go from 02:00 to 03:00 on the 29th: a night without 02:30, and a short one.
    let now = at("2026-03-28T00:00:00Z");
    let mut night = scheduler(1, vec![job("a", by_cron("30 2 * * *", "Europe/Berlin"))], now);
    let begun = play(&mut night, now, now + TimeDelta::days(3), TimeDelta::seconds(1), |_, _| Outcome::Well);
    assert_eq!(times(&begun, "a"), ["28T01:30:00", "29T01:00:00", "30T00:30:00"]);
    // On 25 October 02:30 comes twice; the pass does not.
    let now = at("2026-10-24T12:00:00Z");
    let mut night = scheduler(1, vec![job("a", by_cron("30 2 * * *", "Europe/Berlin"))], now);
    let begun = play(&mut night, now, now + TimeDelta::days(2), TimeDelta::seconds(1), |_, _| Outcome::Well);
    assert_eq!(times(&begun, "a"), ["25T00:30:00", "26T01:30:00"]);
}

#[test]
fn one_pass_catches_up_with_all_that_were_missed_or_none() {
    let now = at(NOON);
    let past = Past { began: Some(now - TimeDelta::hours(5)), ..Past::default() };
    for (schedule, skipped) in [(every(3600), "10T12:00:00"), (by_cron("0 * * * *", "UTC"), "10T13:00:00")] {
        for (catch_up, first) in [(CatchUp::Once, "10T12:00:00"), (CatchUp::Skip, skipped)] {
            let mut scheduler = Scheduler::new(1);
            let schedule = Schedule { catch_up, ..schedule.clone() };
            scheduler.set(vec![job("a", schedule)], |_| past, now);
            let begun =
                play(&mut scheduler, now, now + TimeDelta::minutes(90), TimeDelta::seconds(1), |_, _| {
                    Outcome::Well
                });
            let times = times(&begun, "a");
            assert_eq!(times[0], first, "{catch_up:?}");
            assert!(times.len() <= 2, "{times:?}");
        }
    }
}

#[test]
fn what_the_lake_shows_is_never_older_than_promised() {
    let now = at(NOON);
    let fresh = TimeDelta::minutes(15);
    let schedule = usual(Cadence::Fresh(fresh.to_std().unwrap()));
    let mut scheduler = scheduler(1, vec![job("a", schedule)], now);
    let takes = TimeDelta::minutes(2);
    let begun = play(&mut scheduler, now, now + TimeDelta::hours(4), takes, |_, _| Outcome::Well);
    for pair in begun.windows(2) {
        // Until the second pass has ended, the lake shows what the first one saw when it began.
        assert!(pair[1].1 + takes - pair[0].1 <= fresh, "{pair:?}");
    }
    assert!(begun.len() < 30, "no oftener than needed: {}", begun.len());
}

#[test]
fn nothing_begins_in_a_blackout_but_what_is_triggered() {
    let now = at("2026-03-13T20:30:00Z"); // a Friday
    let blackout = ["22:00-23:30", "sat,sun 00:00-06:00", "sat 05:30-07:00"];
    let blackout: Vec<Blackout> = blackout.iter().map(|text| text.parse().unwrap()).collect();
    let schedule = Schedule { blackout, ..every(3600) };
    let mut friday = scheduler(1, vec![job("a", schedule)], now);
    let begun =
        play(&mut friday, now, at("2026-03-14T09:00:00Z"), TimeDelta::seconds(1), |_, _| Outcome::Well);
    assert_eq!(
        times(&begun, "a"),
        ["13T20:30:00", "13T21:30:00", "13T23:30:00", "14T07:00:00", "14T08:00:00"]
    );
    let night = at("2026-03-14T22:10:00Z");
    assert!(friday.start(night).is_empty());
    assert!(friday.trigger("a") && !friday.trigger("b"));
    assert_eq!(friday.start(night), ["a"]);
}

#[test]
fn blackouts_are_read_as_written() {
    for (text, inside, end) in [
        ("22:00-23:30", "2026-03-10T22:00:00Z", "2026-03-10T23:30:00Z"),
        ("23:00-01:00", "2026-03-11T00:59:59Z", "2026-03-11T01:00:00Z"),
        ("sun 23:00-01:00", "2026-03-16T00:30:00Z", "2026-03-16T01:00:00Z"),
        ("fri-mon 09:00-10:00", "2026-03-15T09:30:00Z", "2026-03-15T10:00:00Z"),
    ] {
        let blackout: Blackout = text.parse().unwrap();
        let zone = chrono_tz::Tz::UTC;
        assert_eq!(blackout.end(at(inside), zone), Some(at(end)), "{text}");
        assert_eq!(blackout.end(at(end), zone), None, "{text}");
    }
    for wrong in ["", "22:00", "22-23", "25:00-26:00", "22:00-22:00", "noday 10:00-11:00", "sat,10:00-11:00"]
    {
        assert!(wrong.parse::<Blackout>().is_err(), "{wrong}");
    }
}

#[test]
fn one_that_comes_after_others_waits_for_all_of_them() {
    let now = at(NOON);
    let after = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let follower = Schedule { after: after(&["a", "b"]), ..usual(Cadence::After) };
    let timed = Schedule { after: after(&["a"]), ..every(600) };
    let jobs = vec![job("a", every(600)), job("b", every(1200)), job("c", follower), job("d", timed)];
    let mut scheduler = scheduler(4, jobs, now);
    let begun =
        play(&mut scheduler, now, now + TimeDelta::minutes(39), TimeDelta::seconds(30), |_, _| Outcome::Well);
    assert_eq!(times(&begun, "c"), ["10T12:00:30", "10T12:20:30"]);
    // By its own clock, but never while `a` is under way.
    assert_eq!(times(&begun, "d")[..2], ["10T12:00:30", "10T12:10:30"]);
}

#[test]
fn critical_streams_go_first_and_low_ones_still_get_their_turn() {
    let now = at(NOON);
    let ranked = |priority| Schedule { priority, ..every(60) };
    let jobs = vec![
        job("low", ranked(Priority::Low)),
        job("normal", ranked(Priority::Normal)),
        job("urgent", ranked(Priority::Critical)),
    ];
    let mut scheduler = scheduler(1, jobs, now);
    // More work than there is time for.
    let begun =
        play(&mut scheduler, now, now + TimeDelta::hours(2), TimeDelta::seconds(40), |_, _| Outcome::Well);
    assert_eq!(begun[0].0, "urgent");
    assert_eq!(begun[1].0, "normal");
    let count = |name| times(&begun, name).len();
    assert!(count("urgent") >= count("normal") && count("normal") >= count("low"), "{begun:?}");
    assert!(count("low") >= 5, "{}", count("low"));
}

#[test]
fn a_dead_database_is_asked_less_and_less_and_noticed_when_it_is_back() {
    let now = at(NOON);
    let jobs = (0..50).map(|n| job(&format!("s{n:02}"), every(10))).collect();
    let mut many = scheduler(8, jobs, now);
    let back = now + TimeDelta::hours(1);
    let dead = |_: &str, at| if at < back { Outcome::SourceFailed } else { Outcome::Well };
    let begun = play(&mut many, now, now + TimeDelta::hours(2), TimeDelta::seconds(1), dead);
    let before = begun.iter().filter(|(_, time)| *time < back).count();
    assert!(before < 40, "{before} passes against a dead database");
    let after = begun.iter().map(|(_, time)| *time).find(|time| *time >= back).unwrap();
    assert!(after - back <= TimeDelta::minutes(5), "noticed at {after}");
    let all: std::collections::BTreeSet<_> =
        begun.iter().filter(|(_, time)| *time >= back).map(|(name, _)| name).collect();
    assert_eq!(all.len(), 50);
}

#[test]
fn what_does_not_get_right_by_itself_is_held_until_somebody_acts() {
    let now = at(NOON);
    let mut wrong = scheduler(2, vec![job("a", every(5)), job("b", every(5))], now);
    let outcome = |name: &str, _| if name == "a" { Outcome::Wrong } else { Outcome::Well };
    let begun = play(&mut wrong, now, now + TimeDelta::minutes(10), TimeDelta::seconds(1), outcome);
    assert_eq!(times(&begun, "a").len(), 1);
    assert!(times(&begun, "b").len() > 100, "another stream does not suffer");
    let later = now + TimeDelta::minutes(11);
    let held = wrong.states(later).remove(0);
    assert_eq!((held.stream.as_str(), held.state), ("a", State::Held));
    wrong.pause("a", true, later);
    wrong.pause("a", false, later);
    assert!(wrong.start(later).contains(&"a".to_owned()));
}

#[test]
fn a_changed_configuration_keeps_what_is_under_way() {
    let now = at(NOON);
    let mut scheduler = scheduler(2, vec![job("a", every(60)), job("b", every(60))], now);
    assert_eq!(scheduler.start(now), ["a", "b"]);
    scheduler.set(vec![job("a", every(3600)), job("c", every(60))], |_| Past::default(), now);
    // `b` is gone, but takes its place until it has ended.
    assert!(scheduler.start(now).is_empty());
    scheduler.ended("b", Ended { outcome: Outcome::Well, at: now });
    assert_eq!(scheduler.start(now), ["c"]);
    scheduler.ended("a", Ended { outcome: Outcome::Well, at: now });
    let names: Vec<_> = scheduler.states(now).into_iter().map(|state| state.stream).collect();
    assert_eq!(names, ["a", "c"]);
    assert_eq!(scheduler.wake(now), Some(now + TimeDelta::hours(1)));
}

#[test]
fn streams_of_one_minute_do_not_all_knock_at_once() {
    let now = at(NOON);
    let past = Past { began: Some(now), ..Past::default() };
    let jitter = Duration::from_secs(30);
    let jobs =
        (0..100).map(|n| job(&format!("s{n}"), Schedule { jitter, ..by_cron("* * * * *", "UTC") })).collect();
    let mut scheduler = Scheduler::new(100);
    scheduler.set(jobs, |_| past, now);
    let minute = now + TimeDelta::minutes(1);
    let due: Vec<_> = scheduler.states(now).into_iter().filter_map(|state| state.due).collect();
    assert!(due.iter().all(|due| *due >= minute && *due < minute + TimeDelta::seconds(30)));
    let early = due.iter().filter(|due| **due < minute + TimeDelta::seconds(15)).count();
    assert!((30..70).contains(&early), "{early}");
}

#[test]
fn streams_that_another_worker_has_are_its_own() {
    let now = at(NOON);
    let follower = Schedule { after: vec!["a".to_owned()], ..usual(Cadence::After) };
    let mut shared = scheduler(4, vec![job("a", every(60)), job("b", follower), job("c", every(60))], now);
    shared.settle("a", Place::Elsewhere, Past::default(), now);
    shared.settle("c", Place::Paused, Past::default(), now);
    assert!(shared.start(now).is_empty());
    assert_eq!(shared.wake(now), None, "there is nothing to get up for");
    let states: Vec<_> = shared.states(now).into_iter().map(|state| state.state).collect();
    assert_eq!(states, [State::Elsewhere, State::Waiting, State::Paused]);
    // What ran there counts here: the follower's turn has come, and after a take-over the next minute's.
    let ran = Past {
        began: Some(now),
        fresh_as_of: Some(now),
        succeeded: Some(now + TimeDelta::seconds(5)),
        takes: Duration::from_secs(5),
    };
    let later = now + TimeDelta::seconds(6);
    shared.settle("a", Place::Busy, Past { succeeded: None, ..ran }, later);
    assert!(shared.start(later).is_empty());
    shared.settle("a", Place::Here, ran, later);
    assert_eq!(shared.start(later), ["b"]);
    assert_eq!(shared.start(now + TimeDelta::seconds(60)), ["a"]);
    // Triggered here it runs here, unless it runs there.
    shared.ended("a", Ended { outcome: Outcome::Well, at: now + TimeDelta::seconds(61) });
    shared.settle("a", Place::Busy, ran, now);
    shared.trigger("a");
    assert!(shared.start(now + TimeDelta::seconds(62)).is_empty());
    shared.settle("a", Place::Elsewhere, ran, now);
    assert_eq!(shared.start(now + TimeDelta::seconds(62)), ["a"]);
}

fn some_schedule() -> impl Strategy<Value = Schedule> {
    let cadence = prop_oneof![
        (20u64..600).prop_map(|seconds| Cadence::Every(Duration::from_secs(seconds))),
        (60u64..600).prop_map(|seconds| Cadence::Fresh(Duration::from_secs(seconds))),
        prop::sample::select(vec!["*/3 * * * *", "0 * * * *", "15,45 */2 * * *", "30 */2 * * * *"])
            .prop_map(|text| Cadence::Cron(Box::new(cron(text).unwrap()))),
    ];
    let blackout = prop::sample::select(vec![vec![], vec!["12:30-12:45"], vec!["tue 13:00-14:00"]]);
    let priority = prop::sample::select(vec![Priority::Critical, Priority::Normal, Priority::Low]);
    (cadence, blackout, priority, 0u64..40).prop_map(|(cadence, blackout, priority, jitter)| Schedule {
        blackout: blackout.iter().map(|text| text.parse().unwrap()).collect(),
        priority,
        jitter: Duration::from_secs(jitter),
        ..usual(cadence)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever ends how and takes how long: no stream runs twice at once (`play` looks), no more run than
    /// may, nothing spins, and nobody is forgotten.
    #[test]
    fn nobody_is_forgotten(
        schedules in prop::collection::vec(some_schedule(), 1..8),
        parallel in 1usize..4,
        takes in 0i64..20,
        seed in 0u64..1000,
    ) {
        let now = at(NOON);
        let jobs = schedules.into_iter().enumerate().map(|(n, schedule)| job(&format!("s{n}"), schedule));
        let mut scheduler = scheduler(parallel, jobs.collect(), now);
        let outcome = |name: &str, time: DateTime<Utc>| {
            let number = name.bytes().fold(seed ^ time.timestamp().cast_unsigned(), |sum, byte| {
                sum.wrapping_mul(31).wrapping_add(byte.into())
            });
            match number % 10 {
                0 => Outcome::SourceFailed,
                1 => Outcome::TargetFailed,
                2 => Outcome::Conflict,
                _ => Outcome::Well,
            }
        };
        let end = now + TimeDelta::hours(4);
        let begun = play(&mut scheduler, now, end, TimeDelta::seconds(takes), outcome);
        for state in scheduler.states(end) {
            let last = begun.iter().rev().find(|(name, _)| *name == state.stream);
            let last = last.unwrap_or_else(|| panic!("{} never ran", state.stream)).1;
            prop_assert!(end - last < TimeDelta::hours(3), "{} ran last at {last}", state.stream);
        }
    }
}

#[test]
fn streams_of_a_group_begin_together() {
    let now = at(NOON);
    let of = |name: &str, seconds| Job { group: Some("shop".to_owned()), ..job(name, every(seconds)) };
    let jobs = || vec![of("a", 60), of("b", 3600), job("c", every(60)), of("d", 60)];
    let well = |_: &str, _| Outcome::Well;
    let (minutes, seconds) = (TimeDelta::minutes, TimeDelta::seconds);
    let mut all = scheduler(1, jobs(), now);
    let begun = play(&mut all, now, now + minutes(3), seconds(10), well);
    assert_eq!(times(&begun, "a"), ["10T12:00:00", "10T12:01:00", "10T12:02:00"]);
    assert_eq!(times(&begun, "b"), times(&begun, "a"), "it is due once an hour, and with the others");
    assert_eq!(times(&begun, "d"), times(&begun, "a"));
    assert_eq!(times(&begun, "c"), ["10T12:00:10", "10T12:01:10", "10T12:02:10"], "it waits for all three");

    let mut without = scheduler(4, jobs(), now);
    without.pause("b", true, now);
    assert_eq!(without.start(now), ["a", "d", "c"]);
    // None of the group begins as long as one of it runs, also if somebody asks for it.
    without.ended("a", Ended { outcome: Outcome::Well, at: now });
    without.trigger("a");
    assert!(without.start(now).is_empty());
    without.ended("d", Ended { outcome: Outcome::Wrong, at: now });
    assert_eq!(without.start(now), ["a"], "what has to be repaired does not run because another one does");
}
