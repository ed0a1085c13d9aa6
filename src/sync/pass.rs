//! One pass of one stream, half by half, and what it says of itself.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::retry::Tries;
use super::{Context, Legs, Progress, Stream, StreamReport, extract, load, tally};
use crate::delta::LogPlace;
use crate::error::Result;
use crate::maintain;

/// Runs one pass of a stream. Never fails: the report says what happened.
pub async fn pass(context: &Context, stream: &Stream, legs: Legs, progress: Arc<Progress>) -> StreamReport {
    let mut pass = Pass::begin(context, stream, &progress);
    if legs != Legs::Load {
        pass = Box::pin(pass.extract(None)).await;
    }
    if legs != Legs::Extract {
        pass = Box::pin(pass.load()).await;
    }
    Box::pin(pass.end()).await
}

/// A pass under way. What comes after a failure is left out.
pub(super) struct Pass {
    context: Context,
    pub(super) stream: Stream,
    progress: Arc<Progress>,
    tries: Tries,
    pub(super) report: StreamReport,
    pub(super) outcome: Result<()>,
}

impl Pass {
    pub(super) fn begin(context: &Context, stream: &Stream, progress: &Arc<Progress>) -> Self {
        Self {
            context: context.clone(),
            stream: stream.clone(),
            progress: progress.clone(),
            tries: Tries::new(&stream.name, progress, context.retry_for),
            report: StreamReport::of(stream, context.run),
            outcome: Ok(()),
        }
    }

    /// Source to lake, as far as there are changes or up to a place. Another time it goes on from there.
    pub(super) async fn extract(mut self, up_to: Option<LogPlace>) -> Self {
        self.stream.settings.log.up_to = up_to;
        // A log that cannot be followed any further is answered here and now: the next pass may be tomorrow's.
        while self.outcome.is_ok() && self.read_on().await {}
        self
    }

    /// One reading. Says whether another has to follow at once.
    async fn read_on(&mut self) -> bool {
        // What was read anew is not read anew again.
        let full_refresh = self.context.full_refresh && self.report.extract.is_none();
        let context = Context { full_refresh, ..self.context.clone() };
        let (stream, progress) = (&self.stream, &self.progress);
        match self.tries.run(|| extract(&context, stream, progress)).await {
            Ok(part) => {
                let again = part.again && !progress.stop.load(Ordering::Relaxed);
                self.report.extract = Some(match self.report.extract.take() {
                    Some(before) => before.followed_by(part),
                    None => part,
                });
                again
            }
            Err(error) => {
                self.outcome = Err(error);
                false
            }
        }
    }

    /// Lake to target, if there is one.
    pub(super) async fn load(mut self) -> Self {
        if self.outcome.is_err() || self.stream.target.is_none() {
            return self;
        }
        let (context, stream, progress) = (&self.context, &self.stream, &self.progress);
        match self.tries.run(|| load(context, stream, progress)).await {
            Ok(mut loaded) => {
                let oldest = self.report.extract.as_ref().and_then(|extract| extract.oldest);
                loaded.latency_seconds = oldest.map(tally::seconds_since);
                self.report.load = Some(loaded);
            }
            Err(error) => self.outcome = Err(error),
        }
        self
    }

    /// Looks after the lake table, if that is due, and closes the report.
    pub(super) async fn end(self) -> StreamReport {
        let Self { context, stream, tries, mut report, outcome, .. } = self;
        report.retries = tries.again;
        let is_due = |commits| maintain::is_due(&context.maintenance, commits);
        if report.extract.as_ref().is_some_and(|extract| extract.changed && is_due(extract.commits)) {
            report.maintenance = look_after(&context, &stream).await.unwrap_or_else(|error| {
                // The rows are where they belong; the next pass tries again.
                tracing::warn!(stream = %stream.name, %error, "the lake table was not maintained");
                None
            });
        }
        report.close(outcome);
        report
    }
}

/// A little maintenance of the table that was just written to.
async fn look_after(context: &Context, stream: &Stream) -> Result<Option<maintain::Report>> {
    let Some(mut table) = context.lake.table(&stream.lake_table).await? else { return Ok(None) };
    maintain::after_pass(&mut table, &context.maintenance, context.budget).await
}
