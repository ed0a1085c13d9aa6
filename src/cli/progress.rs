//! Bars on a terminal: one a running stream, with rows, speed and the process's memory.

use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::config::units::{show_bytes, show_count};
use crate::sync::Progress;

/// Often enough to look alive, seldom enough to cost nothing.
const REDRAW: Duration = Duration::from_millis(200);

/// All bars of the process; they hide themselves when stderr is not a terminal.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Writes to stderr without tearing the bars.
pub(super) fn above<T>(write: impl FnOnce() -> T) -> T {
    BARS.suspend(write)
}

/// The bar of one stream, which lives as long as this.
pub(super) struct Bar {
    task: tokio::task::JoinHandle<()>,
    bar: ProgressBar,
}

impl Bar {
    /// Shows a stream's counts until it is dropped.
    pub(super) fn show(name: &str, progress: Arc<Progress>) -> Self {
        let bar = BARS.add(ProgressBar::new(0));
        bar.set_prefix(name.to_owned());
        let shown = bar.clone();
        let task = tokio::spawn(async move {
            let style = |template: &str| {
                ProgressStyle::with_template(template)
                    .expect("the template is a constant")
                    .progress_chars("━╸ ")
            };
            let known = style("{prefix:20!} {bar:24} {percent:>3}%  {msg}");
            let unknown = style("{prefix:20!} {spinner}  {msg}");
            let mut speed = Speed::default();
            loop {
                let rows = progress.rows.load(Ordering::Relaxed);
                let bytes = progress.bytes.load(Ordering::Relaxed);
                let expected = progress.expected.load(Ordering::Relaxed);
                shown.set_style(if expected > 0 { known.clone() } else { unknown.clone() });
                shown.set_length(expected.max(rows));
                shown.set_position(rows);
                shown.set_message(message(rows, speed.per_second(rows, bytes)));
                shown.tick();
                tokio::time::sleep(REDRAW).await;
            }
        });
        Self { task, bar }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.task.abort();
        self.bar.finish_and_clear();
        BARS.remove(&self.bar);
    }
}

fn message(rows: u64, (rows_a_second, bytes_a_second): (f64, f64)) -> String {
    let memory = resident_bytes().map(|bytes| format!("  memory {}", show_bytes(bytes))).unwrap_or_default();
    format!(
        "{} rows  {} rows/s  {}/s{memory}",
        show_count(rows),
        show_count(rows_a_second as u64),
        show_bytes(bytes_a_second as u64)
    )
}

/// Speed since the last look, smoothed.
#[derive(Default)]
struct Speed {
    last: Option<(Instant, u64, u64)>,
    smooth: (f64, f64),
}

impl Speed {
    fn per_second(&mut self, rows: u64, bytes: u64) -> (f64, f64) {
        /// How much a new look counts: the figure follows within about two seconds.
        const WEIGHT: f64 = 0.1;
        let now = Instant::now();
        // Counts begin anew with the second half of a pass.
        let last = self.last.replace((now, rows, bytes)).filter(|(_, before, _)| rows >= *before);
        if let Some((then, rows_then, bytes_then)) = last {
            let seconds = (now - then).as_secs_f64().max(f64::EPSILON);
            let new =
                ((rows - rows_then) as f64 / seconds, bytes.saturating_sub(bytes_then) as f64 / seconds);
            let first = self.smooth == (0.0, 0.0);
            let mix = |old: f64, new: f64| if first { new } else { old + WEIGHT * (new - old) };
            self.smooth = (mix(self.smooth.0, new.0), mix(self.smooth.1, new.1));
        } else {
            self.smooth = (0.0, 0.0);
        }
        self.smooth
    }
}

/// What the process holds in memory, where the system says so.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}
