//! A load into a table that others write to as well, with an eye on what they changed.
//!
//! ```text
//! staged rows ─▶ lock theirs ─▶ compare ─▶ touched by others ─▶ leave, or mix ─▶ out of the staging table
//!                                    └───▶ all others ────────▶ written as always
//! ```
//!
//! What is compared stays locked until the commit. A key that the table does not have cannot be locked: its
//! row is inserted only if nobody else has done so by then.

use tokio_postgres::SimpleQueryMessage;

use super::load::{ANALYZE_FROM, Load};
use super::refused::Part;
use super::statements::Among;
use crate::connectors::sql::Plan;
use crate::error::{Error, ErrorKind, Result};
use crate::target::{Conflicts, MergeStats};

/// Rows that are decided about at a time.
const AT_A_TIME: usize = 5_000;

impl Load<'_> {
    /// Brings a change into a table, without writing over what others did unless the rules say so.
    pub(super) async fn change_beside(
        &mut self,
        conflicts: &dyn Conflicts,
        empty: bool,
        key_is_there: bool,
    ) -> Result<MergeStats> {
        let mut stats = MergeStats { staged: self.stage().await?, ..MergeStats::default() };
        if empty && self.merge.from.is_none() {
            stats.upserted = self.bring(Part::Insert, stats.staged).await?;
            self.add_key(key_is_there).await?;
            return Ok(stats);
        }
        self.add_key(key_is_there).await?;
        self.lead_planner(stats.staged).await?;
        for statement in self.statements.lock() {
            self.execute(&statement).await?;
        }
        if stats.staged >= ANALYZE_FROM {
            self.client.batch_execute("ANALYZE pg_temp.frazil_there").await?;
        }
        stats.upserted = self.heed_others(conflicts).await?;

        self.statements.among = Among::Locked;
        stats.deleted = self.bring(Part::Delete, stats.staged).await?;
        stats.upserted += self.bring(Part::Upsert, stats.staged).await?;
        stats.upserted += self.insert_new().await?;
        Ok(stats)
    }

    /// Decides about all rows that somebody else touched; what is left to write of the others stays staged.
    async fn heed_others(&mut self, conflicts: &dyn Conflicts) -> Result<u64> {
        let names: Vec<String> = self.statements.plain().map(|(_, column)| column.name.clone()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let last_write = Plan::last_write(conflicts.rules(), self.id, &names)?;
        let compare = self.statements.compare(last_write);
        // It shows the rows as they are now, whatever is written while it is read.
        self.execute(&format!("DECLARE frazil_met NO SCROLL CURSOR FOR {compare}")).await?;
        let mut written = 0;
        loop {
            let met = self.client.simple_query(&format!("FETCH {AT_A_TIME} FROM frazil_met")).await?;
            let met: Vec<_> = met
                .iter()
                .filter_map(|message| match message {
                    SimpleQueryMessage::Row(row) => Some((row.get(0), row.get(1))),
                    _ => None,
                })
                .map(|(number, marks)| {
                    let number = number.and_then(|number| number.parse().ok());
                    number.zip(marks.map(str::to_owned)).ok_or_else(|| {
                        Error::new(ErrorKind::Internal, "the server says in other words what differs")
                    })
                })
                .collect();
            if met.is_empty() {
                break;
            }
            let plan = Plan::of(conflicts.rules(), &names, met)?;
            written += self.follow(&plan, &names, conflicts).await?;
        }
        self.execute("CLOSE frazil_met").await?;
        Ok(written)
    }

    async fn follow(&mut self, plan: &Plan, names: &[&str], conflicts: &dyn Conflicts) -> Result<u64> {
        if !plan.clashes.is_empty() {
            let numbers: Vec<i64> = plan.clashes.iter().map(|(number, _)| *number).collect();
            let rows = self
                .client
                .query(&self.statements.clashes(), &[&numbers])
                .await
                .map_err(|error| self.explain(Some(&error)))?;
            let sides = rows.iter().map(|row| {
                let [base, source, target] = [2, 3, 4].map(|side| row.get::<_, Option<String>>(side));
                (row.get::<_, i64>(0), (row.get::<_, String>(1), [source, base, target]))
            });
            conflicts.found(Plan::found(&plan.clashes, names, sides.collect())?)?;
        }
        let mut written = 0;
        if !plan.mix.is_empty() {
            let (numbers, kept): (Vec<i64>, Vec<&str>) =
                plan.mix.iter().map(|(number, kept)| (*number, kept.as_str())).unzip();
            let mix = self.statements.mix();
            written = self
                .client
                .execute(&mix, &[&numbers, &kept])
                .await
                .map_err(|error| self.explain(Some(&error)))?;
        }
        let done = plan.done();
        if !done.is_empty() {
            self.client
                .execute(&self.statements.forget(), &[&done])
                .await
                .map_err(|error| self.explain(Some(&error)))?;
        }
        Ok(written)
    }

    /// Inserts rows that the table did not have when it was compared.
    async fn insert_new(&mut self) -> Result<u64> {
        let count = async |of: String| -> Result<u64> {
            let row = self.client.query_one(&of, &[]).await?;
            Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or(0))
        };
        let expected = count(self.statements.count_new(false)).await?;
        if expected == 0 {
            return Ok(0);
        }
        let insert = self.statements.insert_new();
        let inserted = self.client.execute(&insert, &[]).await.map_err(|error| self.explain(Some(&error)))?;
        // A trigger may have kept rows out, which is its business; others may have been faster.
        if inserted < expected && count(self.statements.count_new(true)).await? > inserted {
            let message = "somebody inserted a row into the target while its keys were compared";
            return Err(Error::new(ErrorKind::Transient, message)
                .with("table", self.id)
                .hint("nothing of this run was loaded; the next one sees the row"));
        }
        Ok(inserted)
    }
}
