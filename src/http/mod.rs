//! The side of `frazil serve` that programs see: health, streams, past runs, metrics, and the wishes that
//! `frazil jobs` knows too.
//!
//! ```text
//! serve ──states, reports──▶ Board ──▶ GET /health, /streams, /metrics
//!                          history ──▶ GET /runs
//!   ▲ once a second    control file ◀─ POST /streams/{name}/pause | resume | trigger
//!   └──────────────────────┘
//! ```
//!
//! Nothing here decides anything: a request reads what the server last showed, or leaves a wish where
//! `frazil jobs` leaves its own. Answers hold names, times and counts, never rows and never secrets.

mod access;
mod door;
mod metrics;
mod tls;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router, middleware};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::TcpListener;

use crate::config::units;
use crate::control::{Control, Wish};
use crate::error::{Error, ErrorKind, Result};
use crate::history::{Filter, History};
use crate::journal::{Deed, Journal};
use crate::schedule::StreamState;
use crate::sync::{ErrorReport, StreamReport, Verdict};
pub use access::Access;
use access::Asker;
use door::{Door, LONGEST, MOST_CONNECTIONS};
use metrics::{Grouped, Totals};
pub use tls::Certificate;

/// A server that has not looked at its streams for so long hangs. It looks every second; listing the
/// tables of a slow source may keep it from that for a while.
const HANGS_AFTER: Duration = Duration::from_secs(120);
/// The most past runs in one answer.
const MOST_RUNS: u32 = 1000;

/// What a server shows of itself.
pub struct Board(Mutex<Shown>);

struct Shown {
    looked: Instant,
    states: Vec<StreamState>,
    last: BTreeMap<String, LastPass>,
    totals: BTreeMap<String, Totals>,
    groups: BTreeMap<String, Grouped>,
}

/// How a stream's last pass went.
#[derive(Debug, Clone, Serialize)]
struct LastPass {
    verdict: Verdict,
    started_at: DateTime<Utc>,
    seconds: f64,
    rows_extracted: Option<u64>,
    rows_upserted: Option<u64>,
    rows_deleted: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorReport>,
}

impl LastPass {
    fn of(report: &StreamReport) -> Self {
        let load = report.load.as_ref();
        Self {
            verdict: report.verdict,
            started_at: report.started_at,
            seconds: report.seconds,
            rows_extracted: report.extract.as_ref().map(|extract| extract.rows),
            rows_upserted: load.map(|load| load.upserted),
            rows_deleted: load.map(|load| load.deleted),
            error: report.error.clone(),
        }
    }
}

impl Board {
    /// One that shows nothing yet.
    pub fn new() -> Arc<Self> {
        let (states, last, totals, groups) = Default::default();
        Arc::new(Self(Mutex::new(Shown { looked: Instant::now(), states, last, totals, groups })))
    }

    /// Shows what the streams do now. Called at each look at the streams, it is also the sign of life.
    pub fn show(&self, states: Vec<StreamState>) {
        let mut shown = self.shown();
        (shown.states, shown.looked) = (states, Instant::now());
    }

    /// Notes how a pass ended.
    pub fn ended(&self, report: &StreamReport) {
        let mut shown = self.shown();
        shown.last.insert(report.stream.clone(), LastPass::of(report));
        shown.totals.entry(report.stream.clone()).or_default().add(report);
        if let Some(done) = &report.checkpoint {
            shown.groups.entry(done.group.clone()).or_default().add(done);
        }
    }

    /// Notes how many keys a comparison found different.
    pub fn compared(&self, stream: &str, differences: u64) {
        self.shown().totals.entry(stream.to_owned()).or_default().differences += differences;
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What requests work on.
#[derive(Clone)]
pub struct Desk {
    /// What the server shows.
    pub board: Arc<Board>,
    /// The file of past runs.
    pub history: PathBuf,
    /// The file of wishes.
    pub control: PathBuf,
}

/// Answers requests until the process ends, over TLS where there is a certificate.
pub async fn serve(listener: TcpListener, certificate: Option<Certificate>, desk: Desk, access: Access) {
    let guarded = Router::new()
        .route("/streams", get(streams))
        .route("/streams/{name}/{wish}", post(wish))
        .route("/runs", get(runs))
        .route("/metrics", get(show_metrics))
        .layer(middleware::from_fn_with_state(Arc::new(access), access::guard));
    let app = Router::new().route("/health", get(health)).merge(guarded).fallback(nothing).with_state(desk);
    let door = Door::new(listener, certificate, MOST_CONNECTIONS, LONGEST);
    // It ends only by an error of the listener, and it sleeps over those itself.
    let _ = axum::serve(door, app).await;
}

async fn health(State(desk): State<Desk>) -> Response {
    let silent = desk.board.shown().looked.elapsed();
    if silent > HANGS_AFTER {
        let body = json!({ "status": "hangs", "silent_seconds": silent.as_secs() });
        return (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response();
    }
    Json(json!({ "status": "ok" })).into_response()
}

async fn streams(State(desk): State<Desk>) -> Response {
    #[derive(Serialize)]
    struct Line<'a> {
        #[serde(flatten)]
        state: &'a StreamState,
        last: Option<&'a LastPass>,
    }
    let shown = desk.board.shown();
    let lines: Vec<Line<'_>> =
        shown.states.iter().map(|state| Line { state, last: shown.last.get(&state.stream) }).collect();
    Json(json!({ "streams": lines })).into_response()
}

async fn wish(
    State(desk): State<Desk>,
    Extension(Asker(who)): Extension<Asker>,
    Path((name, wish)): Path<(String, String)>,
) -> Response {
    let Some(wish) = Wish::named(&wish) else { return nothing().await };
    let known: Vec<String> = desk.board.shown().states.iter().map(|state| state.stream.clone()).collect();
    let asked = name.clone();
    let outcome = blocking(move || {
        let control = Control::open(&desk.control)?;
        let mut journal = Journal::open(&Journal::place(&desk.history))?;
        control.ask(wish, &asked, known.iter().map(String::as_str), Utc::now())?;
        journal.note(&Deed::by(&who, wish.name(), asked))
    });
    match outcome.await {
        Ok(()) => {
            let body = json!({ "stream": name, "asked": wish.name() });
            (StatusCode::ACCEPTED, Json(body)).into_response()
        }
        // All that can be wrong with such a request is the name.
        Err(error) if error.kind() == ErrorKind::Config => refuse(StatusCode::NOT_FOUND, &error),
        Err(error) => refuse(StatusCode::SERVICE_UNAVAILABLE, &error),
    }
}

/// Which past runs.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RunsQuery {
    stream: Option<String>,
    status: Option<String>,
    since: Option<String>,
    limit: Option<u32>,
}

async fn runs(
    State(desk): State<Desk>,
    query: Result<Query<RunsQuery>, axum::extract::rejection::QueryRejection>,
) -> Response {
    let bad = |message: String| {
        let error = Error::new(ErrorKind::Config, message)
            .hint("`/runs?stream=NAME&status=failed&since=24h&limit=100`, each of them if needed");
        refuse(StatusCode::BAD_REQUEST, &error)
    };
    let Ok(Query(query)) = query else { return bad("this is not a question about runs".to_owned()) };
    let since = match query.since.as_deref().map(|text| units::moment(text, Utc::now())).transpose() {
        Ok(since) => since,
        Err(problem) => return bad(problem.replace('\n', ": ")),
    };
    let words = |text: Option<String>| {
        text.map(|text| text.split(',').map(str::to_owned).collect::<Vec<_>>()).unwrap_or_default()
    };
    let filter = Filter {
        streams: words(query.stream),
        verdicts: words(query.status),
        since,
        limit: query.limit.unwrap_or(100).min(MOST_RUNS),
    };
    let outcome = blocking(move || match History::open_existing(&desk.history)? {
        Some(history) => history.passes(&filter),
        None => Ok(Vec::new()),
    });
    match outcome.await {
        Ok(runs) => Json(json!({ "runs": runs })).into_response(),
        Err(error) => refuse(StatusCode::SERVICE_UNAVAILABLE, &error),
    }
}

async fn show_metrics(State(desk): State<Desk>) -> Response {
    let shown = desk.board.shown();
    let text = metrics::text(&shown.states, &shown.totals, &shown.groups);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

async fn nothing() -> Response {
    let error = Error::new(ErrorKind::Config, "there is nothing here")
        .hint("GET /health, /streams, /runs, /metrics; POST /streams/{name}/pause, …/resume, …/trigger");
    refuse(StatusCode::NOT_FOUND, &error)
}

fn refuse(status: StatusCode, error: &Error) -> Response {
    (status, Json(json!({ "error": ErrorReport::from(error) }))).into_response()
}

/// SQLite may wait for another process, so not on a thread that has other things to do.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "the request met a bug of frazil")))
}
