//! What the file says of when a stream runs: five fields of cron, `every 5m`, or a map.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use chrono_tz::Tz;
use croner::Cron;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};

use super::Names;
use super::StreamEntry;
use super::file::Span;
use super::units;
use crate::error::{Error, ErrorKind, Result};
use crate::schedule::{self, Blackout, Cadence, CatchUp, Schedule};

/// The shortest time from one start of a stream to its next: a pass that finds nothing takes a tenth of it.
const SHORTEST: Duration = Duration::from_secs(1);

/// A log is followed in passes of this distance, when nothing is said: each makes a snapshot, and maintenance
/// has to keep up with them.
const COMMIT_INTERVAL: Duration = Duration::from_secs(10);

/// When a stream runs, as the file says it.
#[derive(Debug, Clone, Default, serde::Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, expecting = "five fields of cron, `every 5m`, or a map")]
#[schemars(rename = "ScheduleSettings")]
pub(super) struct Settings {
    /// At these times: `*/5 * * * *`; six fields begin with seconds.
    cron: Option<CronWord>,
    /// With at least this much from start to start: `5m`.
    every: Option<Span>,
    /// Whose clock `cron` and `blackout` mean: `Europe/Berlin`. UTC, if nothing is said.
    timezone: Option<Zone>,
    /// Passes begin up to this much later, each stream always by the same amount.
    jitter: Option<Span>,
    /// Hours in which no pass begins: `22:00-23:30`, `sat,sun 00:00-06:00`.
    blackout: Option<Names>,
    /// What happens to passes that were due while nobody ran them. `once`: one pass at once, which
    /// catches up with all. `skip`: none.
    catch_up: Option<CatchUp>,
}

/// When a stream runs: five fields of cron, `every 5m`, or a map.
#[derive(Debug, Clone, Default)]
pub struct ScheduleEntry(Settings);

impl ScheduleEntry {
    /// Whether it says how often, and not only around what.
    pub(super) fn says_when(&self) -> bool {
        self.0.cron.is_some() || self.0.every.is_some()
    }

    /// `above`, and what it does not say from `below`; how often only when `above` does not know.
    pub(super) fn over(above: &Option<Self>, below: &Option<Self>, knows_when: bool) -> Option<Self> {
        let Some(Self(below)) = below else { return above.clone() };
        let above = above.clone().unwrap_or_default().0;
        let (cron, every) =
            if knows_when { (above.cron, above.every) } else { (below.cron.clone(), below.every) };
        Some(Self(Settings {
            cron,
            every,
            timezone: above.timezone.or(below.timezone),
            jitter: above.jitter.or(below.jitter),
            blackout: above.blackout.or_else(|| below.blackout.clone()),
            catch_up: above.catch_up.or(below.catch_up),
        }))
    }
}

/// What a stream's settings come to.
pub(super) fn schedule(entry: &StreamEntry) -> Result<Schedule> {
    let said = entry.schedule.clone().unwrap_or_default().0;
    let wrong = |message: &str| Error::new(ErrorKind::Config, message);
    let after = entry.after.as_ref().map(|names| names.0.clone()).unwrap_or_default();
    let cadence = match (said.cron, said.every, entry.fresh, entry.commit_interval) {
        (Some(CronWord(cron)), None, None, None) => Cadence::Cron(Box::new(cron)),
        (None, Some(Span(every)), None, None) | (None, None, None, Some(Span(every))) => {
            Cadence::Every(every)
        }
        (None, None, Some(Span(fresh)), None) => Cadence::Fresh(fresh),
        (None, None, None, None) if !after.is_empty() => Cadence::After,
        (None, None, None, None) if entry.follows_a_log() => Cadence::Every(COMMIT_INTERVAL),
        (None, None, None, None) => Cadence::Never,
        _ => {
            return Err(wrong(
                "a stream runs by `cron`, `every`, `fresh` or `commit_interval`, and by one of them only",
            ));
        }
    };
    if let Cadence::Every(span) | Cadence::Fresh(span) = cadence
        && span < SHORTEST
    {
        return Err(wrong("streams run at most every second").hint("write `1s` or more"));
    }
    let blackout = said.blackout.map(|names| names.0).unwrap_or_default();
    let blackout = blackout.iter().map(|text| {
        text.parse::<Blackout>().map_err(|problem| {
            let (message, hint) = problem.split_once('\n').unwrap_or((&problem, ""));
            wrong(message).with("blackout", super::plain(text)).hint(hint)
        })
    });
    Ok(Schedule {
        cadence,
        zone: said.timezone.map_or(Tz::UTC, |zone| zone.0),
        jitter: said.jitter.map(|span| span.0).unwrap_or_default(),
        blackout: blackout.collect::<Result<_>>()?,
        catch_up: said.catch_up.unwrap_or_default(),
        after,
        priority: entry.priority.unwrap_or_default(),
    })
}

/// Refuses streams that wait for one that is not there, or in a circle.
pub(super) fn refuse_circles(schedules: &BTreeMap<String, Schedule>) -> Result<()> {
    for (name, schedule) in schedules {
        let wrong = |message: String| Error::new(ErrorKind::Config, message).with("stream", name);
        for first in &schedule.after {
            if !schedules.contains_key(first) {
                let error = wrong(format!("it comes after {}, which is no stream", super::shown(first)));
                let hint = super::suggest::hint(first, schedules.keys().map(String::as_str));
                return Err(
                    error.hint(hint.unwrap_or_else(|| "name streams as reports do: `public.orders`".into()))
                );
            }
        }
        let mut seen = BTreeSet::new();
        let mut open: Vec<&String> = schedule.after.iter().collect();
        while let Some(first) = open.pop() {
            if first == name {
                return Err(
                    wrong("it would wait for itself".to_owned()).hint("take one `after` out of the circle")
                );
            }
            if seen.insert(first) {
                open.extend(schedules.get(first).into_iter().flat_map(|schedule| &schedule.after));
            }
        }
    }
    Ok(())
}

impl<'de> Deserialize<'de> for ScheduleEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrMap;

        impl<'de> Visitor<'de> for TextOrMap {
            type Value = ScheduleEntry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("five fields of cron, `every 5m`, or a map")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ScheduleEntry, E> {
                let settings = match text.trim().strip_prefix("every ") {
                    Some(span) => Settings {
                        every: Some(Span(units::duration(span.trim()).map_err(E::custom)?)),
                        ..Settings::default()
                    },
                    None => Settings {
                        cron: Some(CronWord(schedule::cron(text.trim()).map_err(E::custom)?)),
                        ..Settings::default()
                    },
                };
                Ok(ScheduleEntry(settings))
            }

            fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<ScheduleEntry, A::Error> {
                Settings::deserialize(MapAccessDeserializer::new(entries)).map(ScheduleEntry)
            }
        }

        deserializer.deserialize_any(TextOrMap)
    }
}

impl JsonSchema for ScheduleEntry {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Schedule".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let map = generator.subschema_for::<Settings>();
        json_schema!({
            "description": "Five fields of cron, `every 5m`, or a map.",
            "anyOf": [{ "type": "string", "examples": ["*/5 * * * *", "every 5m"] }, map]
        })
    }
}

/// Times, in the words of cron.
#[derive(Debug, Clone)]
struct CronWord(Cron);

/// The name of a time zone.
#[derive(Debug, Clone, Copy)]
struct Zone(Tz);

macro_rules! from_text {
    ($name:ident, $title:literal, $parse:path, $schema:tt) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                $parse(text.trim()).map(Self).map_err(de::Error::custom)
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                $title.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}

from_text!(CronWord, "Cron", schedule::cron, { "type": "string", "examples": ["*/5 * * * *"] });
from_text!(Zone, "TimeZone", schedule::time_zone, { "type": "string", "examples": ["Europe/Berlin", "UTC"] });
