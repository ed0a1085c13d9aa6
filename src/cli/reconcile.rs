//! Comparisons that `serve` makes when their time has come, each after a pass of its stream.
//!
//! A pass and a comparison of one stream never run at once, so that what differs is not merely under way.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::args::Output;
use super::compare::{pairs, print};
use super::interrupt::Interrupt;
use super::output;
use crate::compare::{Options, Outcome, compare};
use crate::error::{Error, ErrorKind, Result};
use crate::history::{COMPARE, Pass, SAMPLE};
use crate::schedule::Proof;
use crate::sync::{Context, Progress, Stream};

/// What came of comparing the places of one stream.
pub(super) struct Reconciled {
    stream: String,
    run: Uuid,
    verb: &'static str,
    began: DateTime<Utc>,
    outcomes: Vec<Outcome>,
    error: Option<Error>,
}

/// Compares all places of a stream; nothing, when the user wants to stop.
pub(super) async fn reconcile(
    context: &Context,
    stream: &Stream,
    how: Proof,
    interrupt: &Interrupt,
) -> Option<Reconciled> {
    let mut reconciled = Reconciled {
        stream: stream.name.clone(),
        run: context.run,
        verb: if how.sample.is_some() { SAMPLE } else { COMPARE },
        began: Utc::now(),
        outcomes: Vec::new(),
        error: None,
    };
    let options = Options { settle: true, repair: how.repair, keys: 0, sample: how.sample };
    for pair in pairs(stream, None) {
        let (context, stream) = (context.clone(), stream.clone());
        let progress = Arc::new(Progress::default());
        // In a task, so that a bug in it ends this comparison and not the server.
        let mut task =
            tokio::spawn(async move { compare(&context, &stream, pair, options, &progress).await });
        let outcome = tokio::select! {
            outcome = &mut task => outcome,
            () = interrupt.wait() => {
                task.abort();
                return None;
            }
        };
        let bug = |_| Err(Error::new(ErrorKind::Internal, "the comparison ended in a bug of frazil"));
        match outcome.unwrap_or_else(bug) {
            Ok(outcome) => reconciled.outcomes.push(outcome),
            Err(error) => {
                reconciled.error = Some(error);
                break;
            }
        }
    }
    Some(reconciled)
}

impl Reconciled {
    /// Prints what was found.
    pub(super) fn say(&self, form: Output, verbose: bool) -> Result<()> {
        self.outcomes.iter().try_for_each(|outcome| print(outcome, false, form))?;
        if let Some(error) = &self.error {
            output::say_error(error, verbose);
        }
        Ok(())
    }

    /// Keys that differed in any two places.
    pub(super) fn differences(&self) -> u64 {
        let found = |outcome: &Outcome| outcome.missing + outcome.surplus + outcome.different;
        self.outcomes.iter().map(found).sum()
    }

    /// As the history keeps it.
    pub(super) fn pass(&self) -> Pass {
        let apart = self.outcomes.iter().find(|outcome| !outcome.is_equal());
        let (error_kind, error) = match (&self.error, apart) {
            (Some(error), _) => (Some(error.kind().name()), Some(error.to_string())),
            (None, Some(outcome)) => {
                let [one, other] = outcome.pair.names();
                (Some(ErrorKind::Data.name()), Some(format!("{one} and {other} differ")))
            }
            (None, None) => (None, None),
        };
        Pass {
            run: self.run.to_string(),
            verb: self.verb.to_owned(),
            stream: self.stream.clone(),
            started_at: self.began,
            seconds: (Utc::now() - self.began).as_seconds_f64().max(0.0),
            verdict: if error.is_none() { "done" } else { "failed" }.to_owned(),
            differences: Some(self.differences()),
            error_kind: error_kind.map(str::to_owned),
            error,
            ..Pass::default()
        }
    }
}
