//! Windows over what the server itself records of changes: versions, change tables, histories.
//!
//! All three come with deletes, one change a key, and are read in the one transaction that is open.

use std::sync::Arc;

use super::super::capture;
use super::super::choose::request_columns;
use super::super::position::Ahead;
use super::super::temporal;
use super::super::tracking::{self, HEARTBEAT, Selected};
use super::super::wanted::with_op;
use super::*;

impl Window<'_> {
    /// Change Tracking.
    pub(super) async fn tracked(
        mut self,
        session: &mut Session,
        mut start: Start,
        now: i64,
    ) -> Result<Prepared> {
        let versions = tracking::versions(session, self.relation.object).await?;
        let last = match &start {
            Start::After(Position::Tracking { version, .. }) => Some(*version),
            Start::Key(Position::Tracking { version, .. }, _) => Some(*version),
            _ => None,
        };
        if let Some(why) = last.and_then(|last| versions.refuses(last)) {
            start = self.anew(why);
        }
        let end = Position::Tracking { version: versions.current, seen: Number(now) };
        let Start::After(Position::Tracking { version, seen }) = start else {
            let select = self.select();
            return Ok(self.finish(select, start, end));
        };
        let table = self.relation.quoted();
        // A version that moves because of other tables is no news, until it might be forgotten.
        let fresh = now - seen.0 < HEARTBEAT;
        let end = match fresh && !tracking::any(session, &table, version).await? {
            true => Position::Tracking { version, seen },
            false => end,
        };
        let key = self.relation.primary_key().unwrap_or_default();
        let statement = self.list(|columns| tracking::changes(&table, key, columns, version));
        self.recorded(statement, end)
    }

    /// Change Data Capture.
    pub(super) async fn captured(mut self, session: &mut Session, mut start: Start) -> Result<Prepared> {
        let captured = capture::captured(session).await?;
        self.notes.extend(captured.stopped().map(|(what, remedy)| format!("{what}; {remedy}")));
        let columns = request_columns(self.relation, self.request);
        let pick = |after| capture::pick(&self.relation.instances, &columns, after);
        let last = match &start {
            Start::After(Position::Log { lsn, .. }) => Some(*lsn),
            Start::Key(Position::Log { lsn, .. }, _) => Some(*lsn),
            _ => None,
        };
        let going_on = last.and_then(|last| pick(Some(last)));
        let Some(newest) = pick(None) else {
            return Err(Error::new(ErrorKind::Transient, "the capture job has not come to the table yet")
                .hint("it does within seconds where SQL Server Agent runs"));
        };
        if last.is_some_and(|last| last > captured.newest) {
            start = self.anew("the database is older than it: it was restored");
        } else if last.is_some() && going_on.is_none() {
            start = self.anew("no capture instance has these columns and all changes since (clean-up, or the instance is newer)");
        }
        let seen = Number(captured.seconds());
        let (Start::After(Position::Log { lsn, seen: before, ahead }), Some(instance)) = (&start, going_on)
        else {
            // What was committed before the instance began is in the table, which is read after this.
            let begin = newest.start.map_or(captured.newest, |start| start.before());
            let lsn = captured.newest.max(begin);
            let end = Position::Log { lsn, seen, ahead: Some(Ahead::Unknown) };
            let select = self.select();
            return Ok(self.finish(select, start, end));
        };
        let (lsn, before, ahead) = (*lsn, *before, *ahead);
        let until = ahead.map(|ahead| match ahead {
            Ahead::Unknown => captured.now,
            Ahead::Until(until) => until,
        });
        let until = until.filter(|until| captured.at <= *until);
        let to = if until.is_some() { lsn } else { captured.newest };
        let end = match until {
            Some(until) => {
                self.notes.push("the capture job has not come to where the first read ended: the changes since wait for a later pass".to_owned());
                Position::Log { lsn, seen: before, ahead: Some(Ahead::Until(until)) }
            }
            None => {
                let fresh = ahead.is_none() && seen.0 - before.0 < HEARTBEAT;
                match fresh && !capture::any(session, instance, lsn, to).await? {
                    true => Position::Log { lsn, seen: before, ahead: None },
                    false => Position::Log { lsn: to, seen, ahead: None },
                }
            }
        };
        let statement = self.list(|columns| capture::changes(instance, self.relation, columns, lsn, to));
        self.recorded(statement, end)
    }

    /// A system-versioned table.
    pub(super) fn versioned(
        mut self,
        mut start: Start,
        horizon: Horizon<Ticks>,
        clock: Ticks,
    ) -> Result<Prepared> {
        let gone = || Error::new(ErrorKind::Transient, "the table's history was switched off just now");
        let history = self.relation.history.as_ref().ok_or_else(gone)?;
        let last = match &start {
            Start::After(Position::Temporal { history, at }) => Some((history.0, *at)),
            Start::Key(Position::Temporal { history, at }, _) => Some((history.0, *at)),
            _ => None,
        };
        if let Some(why) = last.and_then(|(object, from)| history.refuses(object, from, clock)) {
            start = self.anew(why);
        }
        let at = horizon.at.unwrap_or(clock);
        self.say(horizon, Some(at.shown()));
        let object = Number(i64::from(history.object));
        let Start::After(Position::Temporal { at: from, .. }) = start else {
            let select = self.select();
            return Ok(self.finish(select, start, Position::Temporal { history: object, at }));
        };
        let at = at.max(from);
        let lower = from.minus(self.request.lag).floor(&history.of());
        let keys = tracking::Keys {
            from: temporal::changed_keys(self.relation, history, lower, at),
            gone: None,
            on: temporal::same_key(self.relation),
        };
        let key = self.relation.primary_key().unwrap_or_default();
        let table = self.relation.quoted();
        let statement = self.list(|columns| keys.joined(&table, key, columns));
        self.recorded(statement, Position::Temporal { history: object, at })
    }

    /// From nothing, with the reason for the report.
    fn anew(&mut self, why: &str) -> Start {
        self.notes.push(not_used(why));
        Start::Nothing
    }

    /// Writes a statement over the columns that are wanted.
    fn list(&self, write: impl FnOnce(&[Selected<'_>]) -> String) -> String {
        let selects: Vec<_> =
            self.columns.iter().map(|wanted| |column: &str| wanted.conversion.selected(column)).collect();
        let columns: Vec<Selected<'_>> = self
            .columns
            .iter()
            .zip(&selects)
            .map(|(wanted, select)| (wanted.name.clone(), select as &dyn Fn(&str) -> String))
            .collect();
        write(&columns)
    }

    /// A statement of changes with their operations.
    fn recorded(self, statement: String, end: Position) -> Result<Prepared> {
        if self.request.filter.is_some() {
            let change = self.choice.change.name();
            return Err(Error::new(ErrorKind::Config, format!("`where` does not go with `change: {change}`"))
                .hint("a row that leaves the condition would stay in the lake: use a view with `change: full`, or drop `where`"));
        }
        let select = Select { what: statement, conditions: Vec::new() };
        let request = self.request;
        let mut prepared = self.finish(select, Start::After(end.clone()), end);
        prepared.plan.extent = Extent::Log;
        prepared.shape = Arc::new(with_op(&prepared.shape, request));
        (prepared.plan.rows, prepared.plan.bytes) = (None, None);
        Ok(prepared)
    }
}
