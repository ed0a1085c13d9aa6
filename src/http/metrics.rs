//! Numbers in the text form of Prometheus. Their names are constants; each page has one line a stream.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};

use chrono::{DateTime, Utc};

use crate::schedule::StreamState;
use crate::sync::{Checkpointed, StreamReport, Verdict};

/// What a stream's passes came to since the server started.
#[derive(Debug, Default)]
pub(super) struct Totals {
    passes: BTreeMap<&'static str, u64>,
    seconds: f64,
    extracted: u64,
    upserted: u64,
    deleted: u64,
    rejected: u64,
    conflicts: u64,
    pub(super) differences: u64,
    file_bytes: u64,
    /// Of the last pass that brought changes, in seconds.
    latency: Option<f64>,
}

impl Totals {
    pub(super) fn add(&mut self, report: &StreamReport) {
        *self.passes.entry(report.verdict.name()).or_default() += 1;
        self.seconds += report.seconds;
        self.rejected += report.rejected();
        self.conflicts += report.conflicts();
        self.latency = report.latency().or(self.latency);
        if let Some(extract) = &report.extract {
            self.extracted += extract.rows;
            self.file_bytes += extract.file_bytes;
        }
        if let Some(load) = &report.load {
            self.upserted += load.upserted;
            self.deleted += load.deleted;
        }
    }
}

/// Where a group stands since the server started.
#[derive(Debug, Default)]
pub(super) struct Grouped {
    checkpoint: Option<u64>,
    as_of: Option<DateTime<Utc>>,
    missing: bool,
}

impl Grouped {
    /// What each of its streams reports of a pass is the same.
    pub(super) fn add(&mut self, done: &Checkpointed) {
        self.missing = done.checkpoint.is_none();
        self.checkpoint = done.checkpoint.or(self.checkpoint);
        self.as_of = done.source_time.or(self.as_of);
    }
}

/// One number of a stream, and what it is.
type Counter = (&'static str, &'static str, fn(&Totals) -> f64);

const COUNTERS: [Counter; 8] = [
    ("frazil_pass_seconds_total", "Time spent in passes.", |totals| totals.seconds),
    ("frazil_rows_extracted_total", "Rows committed to the lake.", |totals| totals.extracted as f64),
    ("frazil_file_bytes_total", "Bytes of the data files that hold them.", |totals| totals.file_bytes as f64),
    ("frazil_rows_upserted_total", "Rows inserted or updated in targets.", |totals| totals.upserted as f64),
    ("frazil_rows_deleted_total", "Rows deleted in targets, or marked so.", |totals| totals.deleted as f64),
    ("frazil_rows_rejected_total", "Rows that became dead letters.", |totals| totals.rejected as f64),
    ("frazil_conflicts_total", "Rows that source and target both changed.", |totals| totals.conflicts as f64),
    ("frazil_differences_total", "Keys that comparisons found different.", |totals| {
        totals.differences as f64
    }),
];

/// A time of a stream, and what it is.
type Moment = (&'static str, &'static str, fn(&StreamState) -> Option<DateTime<Utc>>);

/// The page.
pub(super) fn text(
    states: &[StreamState],
    totals: &BTreeMap<String, Totals>,
    groups: &BTreeMap<String, Grouped>,
) -> String {
    let mut page = Page(String::new());
    page.head("frazil_build_info", "gauge", "The version of the server.");
    page.line("frazil_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    page.head("frazil_passes_total", "counter", "Passes that ended, by result.");
    for (stream, totals) in totals {
        for verdict in Verdict::ALL.map(Verdict::name) {
            let passes = totals.passes.get(verdict).copied().unwrap_or_default();
            page.line("frazil_passes_total", &[("stream", stream), ("result", verdict)], passes);
        }
    }
    for (name, help, number) in COUNTERS {
        page.head(name, "counter", help);
        for (stream, totals) in totals {
            page.line(name, &[("stream", stream)], number(totals));
        }
    }
    let help = "From the commit of the oldest change in the source to where it had to go, in the last pass with changes.";
    page.head("frazil_stream_latency_seconds", "gauge", help);
    for (stream, latency) in totals.iter().filter_map(|(stream, totals)| Some((stream, totals.latency?))) {
        page.line("frazil_stream_latency_seconds", &[("stream", stream)], latency);
    }
    page.head("frazil_stream_state", "gauge", "What each stream is doing: 1 at that state.");
    for state in states {
        page.line("frazil_stream_state", &[("stream", &state.stream), ("state", state.state.name())], 1);
    }
    let times: [Moment; 3] = [
        (
            "frazil_stream_fresh_as_of_timestamp_seconds",
            "What the lake and the target show of the source is at least as new as this.",
            |state| state.fresh_as_of,
        ),
        ("frazil_stream_due_timestamp_seconds", "When the next pass is due.", |state| state.due),
        ("frazil_stream_running_since_timestamp_seconds", "When the pass under way began.", |state| {
            state.running_since
        }),
    ];
    for (name, help, time) in times {
        page.head(name, "gauge", help);
        for (state, time) in states.iter().filter_map(|state| Some((state, time(state)?))) {
            page.line(name, &[("stream", &state.stream)], time.timestamp_millis() as f64 / 1000.0);
        }
    }
    page.groups(groups);
    if let Some(bytes) = resident_bytes() {
        page.head("process_resident_memory_bytes", "gauge", "Resident memory size in bytes.");
        page.line("process_resident_memory_bytes", &[], bytes);
    }
    page.0
}

struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.write(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    fn line(&mut self, name: &str, labels: &[(&str, &str)], number: impl Display) {
        let labels: Vec<String> =
            labels.iter().map(|(label, value)| format!("{label}=\"{}\"", escaped(value))).collect();
        match labels.is_empty() {
            true => self.write(format_args!("{name} {number}\n")),
            false => self.write(format_args!("{name}{{{}}} {number}\n", labels.join(","))),
        }
    }

    fn groups(&mut self, groups: &BTreeMap<String, Grouped>) {
        self.head("frazil_group_checkpoint", "gauge", "The newest checkpoint of each group.");
        for (group, number) in groups.iter().filter_map(|(group, it)| Some((group, it.checkpoint?))) {
            self.line("frazil_group_checkpoint", &[("group", group)], number);
        }
        let help = "What the newest checkpoint shows of the source is at least as new as this.";
        self.head("frazil_group_checkpoint_timestamp_seconds", "gauge", help);
        for (group, time) in groups.iter().filter_map(|(group, it)| Some((group, it.as_of?))) {
            let seconds = time.timestamp_millis() as f64 / 1000.0;
            self.line("frazil_group_checkpoint_timestamp_seconds", &[("group", group)], seconds);
        }
        let help = "1: the last pass of the group ended without a checkpoint.";
        self.head("frazil_group_checkpoint_missing", "gauge", help);
        for (group, it) in groups {
            self.line("frazil_group_checkpoint_missing", &[("group", group)], u8::from(it.missing));
        }
    }

    fn write(&mut self, text: std::fmt::Arguments<'_>) {
        self.0.write_fmt(text).expect("a string takes all text");
    }
}

fn escaped(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// What the process holds, where the system says so.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use uuid::Uuid;

    use super::*;
    use crate::schedule::State;

    /// What a pass says that came to a checkpoint, or to none.
    fn checkpointed(checkpoint: Option<u64>) -> Checkpointed {
        Checkpointed {
            group: "shop".to_owned(),
            checkpoint,
            written: checkpoint.is_some(),
            position: checkpoint.map(|_| "0/7".to_owned()),
            source_time: checkpoint.and_then(|_| DateTime::from_timestamp_millis(2500)),
            missing: checkpoint.is_none().then(|| "`a` failed".to_owned()),
        }
    }

    #[test]
    fn a_page_has_a_line_for_each_stream() {
        let report = |verdict| StreamReport { seconds: 1.5, verdict, ..StreamReport::new("a", Uuid::nil()) };
        let mut totals = Totals::default();
        totals.add(&report(Verdict::Done));
        totals.add(&report(Verdict::Failed));
        totals.extracted = 7;
        let state = StreamState {
            stream: "a\"b".to_owned(),
            state: State::Running,
            due: None,
            left_alone_until: None,
            running_since: DateTime::from_timestamp_millis(1500),
            fresh_as_of: None,
        };
        let mut group = Grouped::default();
        group.add(&checkpointed(Some(7)));
        group.add(&checkpointed(None));
        let groups = BTreeMap::from([("shop".to_owned(), group)]);
        let page = text(&[state], &BTreeMap::from([("a".to_owned(), totals)]), &groups);
        let lines = page.lines().filter(|line| !line.starts_with('#') && !line.starts_with("process"));
        expect![[r#"
            frazil_build_info{version="0.1.0"} 1
            frazil_passes_total{stream="a",result="done"} 1
            frazil_passes_total{stream="a",result="nothing_to_do"} 0
            frazil_passes_total{stream="a",result="conflict"} 0
            frazil_passes_total{stream="a",result="failed"} 1
            frazil_pass_seconds_total{stream="a"} 3
            frazil_rows_extracted_total{stream="a"} 7
            frazil_file_bytes_total{stream="a"} 0
            frazil_rows_upserted_total{stream="a"} 0
            frazil_rows_deleted_total{stream="a"} 0
            frazil_rows_rejected_total{stream="a"} 0
            frazil_conflicts_total{stream="a"} 0
            frazil_differences_total{stream="a"} 0
            frazil_stream_state{stream="a\"b",state="running"} 1
            frazil_stream_running_since_timestamp_seconds{stream="a\"b"} 1.5
            frazil_group_checkpoint{group="shop"} 7
            frazil_group_checkpoint_timestamp_seconds{group="shop"} 2.5
            frazil_group_checkpoint_missing{group="shop"} 1"#]]
        .assert_eq(&lines.collect::<Vec<_>>().join("\n"));
    }
}
