//! Hours in which no pass of a stream may begin: `22:00-23:30`, `sat,sun 00:00-06:00`.

use chrono::{DateTime, Datelike, Days, NaiveDate, NaiveTime, TimeDelta, TimeZone, Utc, Weekday};
use chrono_tz::Tz;

/// A stretch of local time on some days of the week. One that ends before it begins goes on into the
/// next day; its days are those on which it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blackout {
    /// By [`Weekday::num_days_from_monday`].
    days: [bool; 7],
    from: NaiveTime,
    to: NaiveTime,
}

impl Blackout {
    /// The end of this blackout, if `time` lies in it.
    pub fn end(&self, time: DateTime<Utc>, zone: Tz) -> Option<DateTime<Utc>> {
        let local = time.with_timezone(&zone);
        // It may have begun yesterday.
        [local.date_naive(), local.date_naive().pred_opt()?].into_iter().find_map(|day| {
            if !self.days[day.weekday().num_days_from_monday() as usize] {
                return None;
            }
            let begin = at(day, self.from, zone);
            let last = if self.to > self.from { day } else { day.checked_add_days(Days::new(1))? };
            let end = at(last, self.to, zone);
            (begin <= time && time < end).then_some(end)
        })
    }
}

/// This time of this day. Of an hour that comes twice the first, after one that is left out the next.
fn at(day: NaiveDate, time: NaiveTime, zone: Tz) -> DateTime<Utc> {
    let local = day.and_time(time);
    let found = (0..=4).find_map(|half_hours| {
        zone.from_local_datetime(&(local + TimeDelta::minutes(30 * half_hours))).earliest()
    });
    found.map_or_else(|| local.and_utc(), |found| found.to_utc())
}

impl std::str::FromStr for Blackout {
    type Err = String;

    /// What is wrong, and after a line break what would be right.
    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str = "write `22:00-23:30`, or with days `sat,sun 00:00-06:00`";
        let bad = || format!("not a blackout\n{FORM}");
        let (days, hours) = match text.trim().rsplit_once(' ') {
            Some((days, hours)) => (Some(days), hours),
            None => (None, text.trim()),
        };
        let (from, to) = hours.split_once('-').ok_or_else(bad)?;
        let time = |text: &str| NaiveTime::parse_from_str(text.trim(), "%H:%M").map_err(|_| bad());
        let (from, to) = (time(from)?, time(to)?);
        if from == to {
            return Err(format!("the blackout ends when it begins\n{FORM}"));
        }
        let mut chosen = [days.is_none(); 7];
        for part in days.into_iter().flat_map(|days| days.split(',')) {
            let day = |text: &str| {
                text.trim()
                    .parse::<Weekday>()
                    .map(|day| day.num_days_from_monday() as usize)
                    .map_err(|_| bad())
            };
            let (first, last) = match part.split_once('-') {
                Some((first, last)) => (day(first)?, day(last)?),
                None => (day(part)?, day(part)?),
            };
            // `fri-mon` goes over the weekend.
            let span = (last + 7 - first) % 7;
            (0..=span).for_each(|step| chosen[(first + step) % 7] = true);
        }
        Ok(Self { days: chosen, from, to })
    }
}
