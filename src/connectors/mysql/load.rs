//! One load: a change between two snapshots, in one transaction.
//!
//! ```text
//! stage ──▶ BEGIN ──▶ claim control row ──▶ table empty ──▶ INSERT ──────────────────────┐
//!                                      └──▶ else: DELETE, UPDATE, INSERT by key ─────────┴▶ COMMIT
//! ```
//!
//! Rows are staged before the transaction begins: nobody waits for them. A replacement is loaded as the
//! difference to what is there: readers see the old rows until the commit and the new ones after it, and
//! views, grants and foreign keys stay as they are. To exchange two tables by `RENAME` would be faster, but
//! no transaction holds a `RENAME` and the control row.

use std::sync::Arc;

use chrono::{DateTime, Utc};

use super::discover::Relation;
use super::encode::Output;
use super::refused::Part;
use super::stage::{self, Staged};
use super::statements::Statements;
use super::{control, discover, prepare};
use crate::clients::mysql::Session;
use crate::connectors::sql::{
    Hears, check_changes, check_changes_with_base, check_changes_with_letters, check_key, endings,
};
use crate::error::{Error, ErrorKind, Result};
use crate::faults;
use crate::table::{TableId, base_column};
use crate::target::{Conflicts, Merge, MergeStats, Refusals, Strategy, TURN, TargetTable};

/// Runs the transaction up to, and without, its commit.
pub(super) async fn run(
    session: &mut Session,
    id: &TableId,
    merge: Merge,
    hears: Hears,
) -> Result<MergeStats> {
    let Hears { refusals, conflicts } = hears;
    let base = conflicts.is_some() && merge.strategy == Strategy::Merge;
    match (refusals.is_some(), base) {
        (_, true) => check_changes_with_base(id, &merge)?,
        (true, false) => check_changes_with_letters(id, &merge)?,
        (false, false) => check_changes(id, &merge)?,
    }
    check_key(id, &merge)?;
    let Merge { stream, table, from, to, turn, strategy, changes, rows: _ } = merge;
    // Asked again in the transaction; here, before rows are sent for nothing.
    if control::applied(session, &stream, id).await? != from {
        return Err(control::overtaken(id));
    }
    let relation = discover::find(session, id).await?.ok_or_else(|| {
        Error::new(ErrorKind::Config, "the target table does not exist any more").with("table", id)
    })?;
    let (outputs, statements) = columns(id, &table, &relation, refusals.is_some(), base)?;
    let staged = stage::run(session, &statements, outputs, refusals.clone(), changes)
        .await
        .map_err(|error| error.with("table", id))?;

    session.run("START TRANSACTION").await?;
    if let Some(turn) = turn {
        control::claim(session, TURN, id, turn.from, turn.to).await?;
    }
    control::claim(session, &stream, id, from, to).await?;
    let fresh = prepare::is_empty(session, id).await?;
    let keyed = !table.key.is_empty();
    let mut load = Load { session, statements, staged, keyed, refusals, refused: Vec::new() };
    let beside = conflicts.as_deref().filter(|_| base);
    // A table that others emptied is not one that was never filled.
    let fresh = fresh && (beside.is_none() || from.is_none());
    let stats = load.apply(strategy, fresh, beside).await.map_err(|error| error.with("table", id))?;
    if let Some(conflicts) = &conflicts {
        conflicts.keep().await?;
    }
    faults::point(faults::IN_LOAD_TRANSACTION)?;
    control::note(session, &stream, id, stats.staged, &table.schema).await?;
    Ok(stats)
}

pub(super) struct Load<'a> {
    pub(super) session: &'a mut Session,
    pub(super) statements: Statements,
    pub(super) staged: Staged,
    keyed: bool,
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
        match strategy {
            Strategy::Versions { at, whole } => self.versions(&mut stats, at, whole).await?,
            _ if fresh || strategy == Strategy::Append => {
                stats.upserted = self.bring(Part::Insert).await?;
            }
            _ => {
                if strategy == Strategy::Replace {
                    stats.deleted = self.execute(&self.statements.delete_others()).await?;
                }
                if let Some(conflicts) = beside {
                    stats.upserted = self.heed_others(conflicts).await?;
                }
                self.change(&mut stats).await?;
            }
        }
        self.keep_refused().await?;
        Ok(stats)
    }

    /// Ends the versions of rows that go or change, and begins those that are new.
    async fn versions(&mut self, stats: &mut MergeStats, at: DateTime<Utc>, whole: bool) -> Result<()> {
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
        if !self.keyed {
            stats.upserted = self.bring(Part::Insert).await?;
            return Ok(());
        }
        if self.staged.deletes > 0 {
            stats.deleted += self.bring(Part::Delete).await?;
        }
        stats.upserted += self.bring(Part::Update).await?;
        stats.upserted += self.bring(Part::New).await?;
        Ok(())
    }

    pub(super) async fn execute(&mut self, statement: &str) -> Result<u64> {
        tracing::debug!(table = %self.statements.table, statement, "changes a target table");
        self.session.run(statement).await
    }
}

fn columns(
    id: &TableId,
    table: &TargetTable,
    relation: &Relation,
    letters: bool,
    base: bool,
) -> Result<(Vec<Output>, Statements)> {
    let columns = prepare::columns(table, relation).map_err(|error| error.with("table", id))?;
    let (mut outputs, columns): (Vec<Output>, _) = columns.into_iter().unzip();
    let width = table.schema.fields().len();
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
    let (deletes, letters) = (table.deletes, letters || base);
    Ok((outputs, Statements { table: id.clone(), columns, deletes, letters, base, among: None }))
}
