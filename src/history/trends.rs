//! How the passes of a stream go over time, and what reading only changes has saved.

use rusqlite::{Row, params};
use serde::Serialize;

use super::{Filter, History, foreign, lateness, list};
use crate::error::Result;
use crate::sync::Lateness;

/// The passes of one stream, together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Trend {
    /// The stream.
    pub stream: String,
    /// Its passes.
    pub passes: u64,
    /// Those that failed, or met another runner.
    pub failed: u64,
    /// Rows committed to the lake.
    pub rows: u64,
    /// Good passes that read only what changed.
    pub incremental: u64,
    /// How long one of them took on average.
    pub incremental_seconds: Option<f64>,
    /// Good passes that read everything.
    pub whole: u64,
    /// How long one of them took on average.
    pub whole_seconds: Option<f64>,
    /// What the incremental ones took less than as many whole ones; unknown until there are both.
    pub saved_seconds: Option<f64>,
    /// Seconds from a commit in the source to where the change had to go: of the oldest change of each pass, on
    /// average; none, where the source does not say when it commits.
    pub latency_seconds: Option<f64>,
    /// The longest of them.
    pub longest_latency_seconds: Option<f64>,
    /// Rows that came late.
    pub late: u64,
    /// The `lag` that would find nearly all like them, in seconds; none, where nothing came late.
    pub suggested_lag_seconds: Option<u64>,
}

const TRENDS: &str = "
with good as (
    select *, read_whole = 0 and verdict in ('done', 'nothing_to_do') as incremental,
        read_whole = 1 and verdict in ('done', 'nothing_to_do') as whole
    from passes
    where verb not in ('compare', 'sample') and (?1 = '[]' or stream in (select value from json_each(?1))) and (?2 is null or started_at >= ?2)
)
select stream, count(*) as passes, sum(verdict in ('failed', 'conflict')) as failed,
    coalesce(sum(rows_extracted), 0) as rows,
    count(*) filter (where incremental) as incremental,
    avg(seconds) filter (where incremental) as incremental_seconds,
    count(*) filter (where whole) as whole,
    avg(seconds) filter (where whole) as whole_seconds,
    avg(latency) as latency, max(latency) as longest_latency,
    json_group_array(late) filter (where late is not null) as late
from good group by stream order by stream";

impl History {
    /// How the passes of each stream went. Of the filter its streams and its time count.
    pub fn trends(&self, filter: &Filter) -> Result<Vec<Trend>> {
        let since = filter.since.map(|since| since.to_rfc3339());
        let read = || -> rusqlite::Result<Vec<Trend>> {
            self.db.prepare(TRENDS)?.query_map(params![list(&filter.streams), since], trend)?.collect()
        };
        read().map_err(foreign)
    }
}

fn trend(row: &Row<'_>) -> rusqlite::Result<Trend> {
    let count = |name: &str| row.get::<_, i64>(name).map(i64::cast_unsigned);
    let (incremental, incremental_seconds) = (count("incremental")?, row.get("incremental_seconds")?);
    let whole_seconds: Option<f64> = row.get("whole_seconds")?;
    let texts: Vec<String> = serde_json::from_str(&row.get::<_, String>("late")?).unwrap_or_default();
    let mut late = Lateness::default();
    texts.iter().for_each(|text| late.join(&lateness(text)));
    let both = whole_seconds.zip(incremental_seconds);
    Ok(Trend {
        stream: row.get("stream")?,
        passes: count("passes")?,
        failed: count("failed")?,
        rows: count("rows")?,
        incremental,
        incremental_seconds,
        whole: count("whole")?,
        whole_seconds,
        saved_seconds: both.map(|(whole, changes)| (whole - changes) * incremental as f64),
        latency_seconds: row.get("latency")?,
        longest_latency_seconds: row.get("longest_latency")?,
        late: late.rows,
        suggested_lag_seconds: late.suggested_lag().map(|lag| lag.as_secs()),
    })
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::source::{ChangeDetection, Extent};
    use crate::sync::{ExtractReport, StreamReport, Verdict};

    fn report(stream: &str, extent: Extent, seconds: f64, verdict: Verdict) -> StreamReport {
        let mut extract = ExtractReport::new(ChangeDetection::Timestamp, extent);
        extract.rows = 10;
        if extent == Extent::Changed {
            extract.late.add(3_000_000);
        }
        StreamReport {
            seconds,
            verdict,
            extract: (verdict != Verdict::Failed).then_some(extract),
            ..StreamReport::new(stream, Uuid::nil())
        }
    }

    #[test]
    fn what_changes_cost_is_held_against_a_whole_read() {
        let folder = tempfile::tempdir().unwrap();
        let history = History::open(&folder.path().join("history.db")).unwrap();
        for (stream, extent, seconds, verdict) in [
            ("a", Extent::Whole, 60.0, Verdict::Done),
            ("a", Extent::Changed, 1.0, Verdict::Done),
            ("a", Extent::Changed, 3.0, Verdict::NothingToDo),
            ("a", Extent::Changed, 99.0, Verdict::Failed),
            ("b", Extent::Log, 2.0, Verdict::Done),
        ] {
            history.record("run", &report(stream, extent, seconds, verdict)).unwrap();
        }
        let all = Filter { streams: Vec::new(), verdicts: Vec::new(), since: None, limit: 1 };
        let [a, b] = &history.trends(&all).unwrap()[..] else { panic!() };
        assert_eq!((a.passes, a.failed, a.rows, a.incremental, a.whole), (4, 1, 30, 2, 1));
        assert_eq!((a.incremental_seconds, a.whole_seconds), (Some(2.0), Some(60.0)));
        assert_eq!(a.saved_seconds, Some(116.0));
        assert_eq!((a.late, a.suggested_lag_seconds), (2, Some(4)));
        assert_eq!((b.late, b.suggested_lag_seconds), (0, None));
        assert_eq!((b.stream.as_str(), b.incremental, b.saved_seconds), ("b", 1, None));
        let only_b = Filter { streams: vec!["b".to_owned()], ..all };
        assert_eq!(history.trends(&only_b).unwrap(), std::slice::from_ref(b));
    }
}
