//! One load: a change between two snapshots, in one transaction.
//!
//! ```text
//! claim control row ──▶ #staging: bulk load ──▶ table empty ──▶ INSERT ──────────────────────┐
//!                                          └──▶ else: MERGE, or DELETE, UPDATE, INSERT ──────┴▶ COMMIT
//! ```
//!
//! A replacement is loaded as the difference to what is there: readers see the old rows until the
//! commit and the new ones after it, and views, grants and foreign keys stay as they are.

use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::control;
use super::encode::Output;
use super::prepare;
use super::refused::Part;
use super::relation::{self, Relation};
use super::stage::{self, Staged};
use super::statements::{Statements, Way};
use crate::clients::mssql::{Isolation, Session};
use crate::connectors::sql::{
    Hears, check_changes, check_changes_with_base, check_changes_with_letters, check_key, endings,
};
use crate::error::{Error, ErrorKind, Result};
use crate::faults;
use crate::table::{TableId, base_column};
use crate::target::{Conflicts, Deletes, Merge, MergeStats, Refusals, Strategy, TURN};

/// How long to wait, in milliseconds, for a lock on the table that somebody else holds.
const PATIENCE: u32 = 60_000;

/// Staged rows from which an index on them pays: below, the server joins them as they are.
const INDEX_FROM: u64 = 5_000;

/// Runs the transaction up to, and without, its commit.
pub(super) async fn run(
    session: &mut Session,
    id: &TableId,
    mut merge: Merge,
    hears: Hears,
) -> Result<MergeStats> {
    let Hears { refusals, conflicts } = hears;
    check_key(id, &merge)?;
    // An error ends the transaction: no half of a statement is ever committed. Where rows may be refused,
    // each statement has a savepoint of its own instead.
    session.batch(if refusals.is_none() { "SET XACT_ABORT ON" } else { "SET XACT_ABORT OFF" }).await?;
    session.begin(Isolation::ReadCommitted).await?;
    if let Some(turn) = merge.turn {
        control::claim(session, TURN, id, turn.from, turn.to).await?;
    }
    control::claim(session, &merge.stream, id, merge.from, merge.to).await?;
    session.batch(&format!("SET LOCK_TIMEOUT {PATIENCE}")).await?;

    let relation = relation::relation(session, id).await?.ok_or_else(|| {
        Error::new(ErrorKind::Config, "the target table does not exist any more").with("table", id)
    })?;
    let base = conflicts.is_some() && merge.strategy == Strategy::Merge;
    let (outputs, statements) = columns(id, &merge, &relation, refusals.is_some(), base)?;
    let fresh = prepare::is_empty(session, id).await?;
    let staged = stage::run(session, &statements, &outputs, &mut merge, refusals.as_deref())
        .await
        .map_err(|error| error.with("table", id))?;

    let key = !merge.table.key.is_empty();
    let mut load = Load { session, statements, relation, staged, key, refusals, refused: Vec::new() };
    let beside = conflicts.as_deref().filter(|_| base);
    // A table that others emptied is not one that was never filled.
    let fresh = fresh && (beside.is_none() || merge.from.is_none());
    let stats = load.apply(merge.strategy, fresh, beside).await.map_err(|error| error.with("table", id))?;
    if let Some(conflicts) = &conflicts {
        conflicts.keep().await?;
    }
    faults::point(faults::IN_LOAD_TRANSACTION)?;
    control::note(session, &merge.stream, id, stats.staged, &merge.table.schema).await?;
    Ok(stats)
}

pub(super) struct Load<'a> {
    pub(super) session: &'a mut Session,
    pub(super) statements: Statements,
    relation: Relation,
    pub(super) staged: Staged,
    key: bool,
    /// Where refused rows go; without it the first one ends the load.
    pub(super) refusals: Option<Arc<dyn Refusals>>,
    /// The numbers of staged rows that were refused, and why.
    pub(super) refused: Vec<(i64, String)>,
}

impl Load<'_> {
    async fn apply(
        &mut self,
        strategy: Strategy,
        fresh: bool,
        beside: Option<&dyn Conflicts>,
    ) -> Result<MergeStats> {
        let mut stats = MergeStats { staged: self.staged.rows, ..MergeStats::default() };
        let whole = matches!(strategy, Strategy::Replace | Strategy::Versions { whole: true, .. });
        if self.staged.rows == 0 && !whole {
            return Ok(stats);
        }
        self.check_characters().await?;
        let identity = self.statements.identity_insert();
        if let Some([on, _]) = &identity {
            self.session.batch(on).await?;
        }
        if let Strategy::Versions { at, whole } = strategy {
            self.versions(&mut stats, at, whole).await?;
        } else if fresh || strategy == Strategy::Append {
            stats.upserted = self.bring(Part::Insert { empty: fresh }).await?;
        } else {
            self.index().await?;
            if strategy == Strategy::Replace {
                stats.deleted = self.execute(&self.statements.delete_others()).await?;
            }
            let written = match beside {
                Some(conflicts) => self.heed_others(conflicts).await?,
                None => 0,
            };
            self.change(&mut stats).await?;
            stats.upserted += written;
        }
        if let Some([_, off]) = &identity {
            self.session.batch(off).await?;
        }
        self.keep_refused().await?;
        Ok(stats)
    }

    async fn index(&mut self) -> Result<()> {
        match self.statements.index_staging().filter(|_| self.staged.rows >= INDEX_FROM) {
            Some(index) => self.session.batch(&index).await,
            None => Ok(()),
        }
    }

    /// Ends the versions of rows that go or change, and begins those that are new.
    async fn versions(&mut self, stats: &mut MergeStats, at: DateTime<Utc>, whole: bool) -> Result<()> {
        self.index().await?;
        for which in endings(self.statements.deletes, whole) {
            for statement in self.statements.end_versions(at, which).into_iter().flatten() {
                let ended = self.execute(&statement).await?;
                stats.deleted += if which.is_delete() { ended } else { 0 };
            }
        }
        stats.upserted = self.execute(&self.statements.begin_versions(at)).await?;
        Ok(())
    }

    async fn change(&mut self, stats: &mut MergeStats) -> Result<()> {
        if !self.key {
            stats.upserted = self.bring(Part::Insert { empty: false }).await?;
            return Ok(());
        }
        if self.refusals.is_some() {
            // One thing at a time: of a merge it could not be told what of a row it did.
            stats.deleted += self.bring(Part::Delete).await?;
            stats.upserted = self.bring(Part::Update).await? + self.bring(Part::New).await?;
            return Ok(());
        }
        let way = self.way();
        let mut merged_away = 0;
        if self.staged.deletes > 0 {
            if let Some(delete) = self.statements.delete(way) {
                stats.deleted += self.execute(&delete).await?;
            } else if self.statements.deletes == Deletes::Hard {
                // The merge counts all that it does as one.
                merged_away = self.count(&self.statements.count_deletes()).await?;
                stats.deleted += merged_away;
            }
        }
        for statement in self.statements.upsert(way) {
            stats.upserted += self.execute(&statement).await?;
        }
        stats.upserted = stats.upserted.saturating_sub(merged_away);
        Ok(())
    }

    /// `MERGE`, unless something hangs on the table with which it has done wrong.
    fn way(&self) -> Way {
        match self.relation.hazard {
            None => Way::Merge,
            Some(reason) => {
                tracing::debug!(table = %self.statements.table, reason, "updates and inserts instead of a merge");
                Way::UpdateInsert
            }
        }
    }

    pub(super) async fn execute(&mut self, statement: &str) -> Result<u64> {
        tracing::debug!(table = %self.statements.table, statement, "changes a target table");
        self.session.run(statement, &[]).await
    }

    /// A text that a column's code page cannot hold would be stored with question marks.
    async fn check_characters(&mut self) -> Result<()> {
        if self.refusals.is_some() {
            return self.refuse_unwritable().await;
        }
        let Some(query) = self.statements.find_unwritable() else { return Ok(()) };
        let rows = self.session.rows(&query).await?;
        let place = rows.first().map(|row| row.try_get::<i32, _>(0)).transpose()?.flatten().unwrap_or(-1);
        match self.statements.unwritable_error(place) {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }

    pub(super) async fn count(&mut self, query: &str) -> Result<u64> {
        let rows = self.session.rows(query).await?;
        let count = rows.first().map(|row| row.try_get::<i64, _>(0)).transpose()?.flatten();
        Ok(count.and_then(|count| u64::try_from(count).ok()).unwrap_or(0))
    }
}

fn columns(
    id: &TableId,
    merge: &Merge,
    relation: &Relation,
    letters: bool,
    base: bool,
) -> Result<(Vec<Output>, Statements)> {
    match (letters, base) {
        (_, true) => check_changes_with_base(id, merge)?,
        (true, false) => check_changes_with_letters(id, merge)?,
        (false, false) => check_changes(id, merge)?,
    }
    let columns = prepare::columns(&merge.table, relation).map_err(|error| error.with("table", id))?;
    let (mut outputs, columns): (Vec<Output>, _) = columns.into_iter().unzip();
    let width = merge.table.schema.fields().len();
    if base {
        let older = |own: &Output| Output {
            index: width + own.index,
            name: base_column(&own.name),
            key: false,
            ..own.clone()
        };
        let older: Vec<Output> = outputs.iter().map(older).collect();
        outputs.extend(older);
        outputs.extend([Output::base_mark(2 * width + 1), Output::letter(2 * width)]);
    } else if letters {
        outputs.push(Output::letter(width));
    }
    let (deletes, letters) = (merge.table.deletes, letters || base);
    Ok((outputs, Statements { table: id.clone(), columns, deletes, letters, base, among: None }))
}
