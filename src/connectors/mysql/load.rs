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

use chrono::{DateTime, Utc};

use super::encode::Output;
use super::stage::{self, Staged};
use super::statements::Statements;
use super::{control, discover, prepare};
use crate::clients::mysql::Session;
use crate::connectors::sql::{check_changes, endings};
use crate::error::{Error, ErrorKind, Result};
use crate::faults;
use crate::table::TableId;
use crate::target::{Merge, MergeStats, Strategy};

/// Runs the transaction up to, and without, its commit.
pub(super) async fn run(session: &mut Session, id: &TableId, merge: Merge) -> Result<MergeStats> {
    let Merge { stream, table, from, to, strategy, changes, rows: _ } = {
        check_changes(id, &merge)?;
        merge
    };
    if strategy == Strategy::Merge && table.key.is_empty() {
        return Err(Error::new(ErrorKind::Config, "a merge needs a key")
            .with("table", id)
            .hint("set `primary_key`, or use `mode: append`"));
    }
    // Asked again in the transaction; here, before rows are sent for nothing.
    if control::applied(session, &stream, id).await? != from {
        return Err(control::overtaken(id));
    }
    let relation = discover::find(session, id).await?.ok_or_else(|| {
        Error::new(ErrorKind::Config, "the target table does not exist any more").with("table", id)
    })?;
    let columns = prepare::columns(&table, &relation).map_err(|error| error.with("table", id))?;
    let (outputs, columns): (Vec<Output>, Vec<_>) = columns.into_iter().unzip();
    let statements = Statements { table: id.clone(), columns, deletes: table.deletes };
    let staged =
        stage::run(session, &statements, outputs, changes).await.map_err(|error| error.with("table", id))?;

    session.run("START TRANSACTION").await?;
    control::claim(session, &stream, id, from, to).await?;
    let fresh = prepare::is_empty(session, id).await?;
    let mut load = Load { session, statements, staged, keyed: !table.key.is_empty() };
    let stats = load.apply(strategy, fresh).await.map_err(|error| error.with("table", id))?;
    faults::point(faults::IN_LOAD_TRANSACTION)?;
    control::note(session, &stream, id, stats.staged, &table.schema).await?;
    Ok(stats)
}

struct Load<'a> {
    session: &'a mut Session,
    statements: Statements,
    staged: Staged,
    keyed: bool,
}

impl Load<'_> {
    async fn apply(&mut self, strategy: Strategy, fresh: bool) -> Result<MergeStats> {
        let mut stats = MergeStats { staged: self.staged.rows, ..MergeStats::default() };
        let whole = matches!(strategy, Strategy::Replace | Strategy::Versions { whole: true, .. });
        if self.staged.rows == 0 && !whole {
            return Ok(stats);
        }
        match strategy {
            Strategy::Versions { at, whole } => self.versions(&mut stats, at, whole).await?,
            _ if fresh || strategy == Strategy::Append => {
                stats.upserted = self.execute(&self.statements.insert()).await?;
            }
            _ => {
                if strategy == Strategy::Replace {
                    stats.deleted = self.execute(&self.statements.delete_others()).await?;
                }
                self.change(&mut stats).await?;
            }
        }
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
            stats.upserted = self.execute(&self.statements.insert()).await?;
            return Ok(());
        }
        if self.staged.deletes > 0
            && let Some(delete) = self.statements.delete()
        {
            stats.deleted += self.execute(&delete).await?;
        }
        if let Some(update) = self.statements.update() {
            stats.upserted += self.execute(&update).await?;
        }
        stats.upserted += self.execute(&self.statements.insert_new()).await?;
        Ok(())
    }

    async fn execute(&mut self, statement: &str) -> Result<u64> {
        tracing::debug!(table = %self.statements.table, statement, "changes a target table");
        self.session.run(statement).await
    }
}
