//! A load into a table that others write to as well, with an eye on what they changed.
//!
//! ```text
//! staged rows ─▶ lock, compare ─▶ touched by others ─▶ leave, or mix ─▶ out of the staging table
//!                           └───▶ all others ────────▶ written as always
//! ```

use async_trait::async_trait;

use super::load::Load;
use super::refused::NAMED_AT_ONCE;
use crate::connectors::sql::{Beside, Plan, Sided};
use crate::error::{Error, ErrorKind, Result};
use crate::target::Conflicts;

impl Load<'_> {
    /// Decides about all rows that somebody else touched; what is left to write of the others stays staged.
    /// Returns how many rows it wrote.
    pub(super) async fn heed_others(&mut self, conflicts: &dyn Conflicts) -> Result<u64> {
        let columns = self.statements.plain();
        let names: Vec<String> =
            columns.iter().map(|place| self.statements.columns[*place].name.clone()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let last_write = Plan::last_write(conflicts.rules(), &self.statements.table, &names)?;
        let met = self.session.rows(&self.statements.compare(last_write)).await?;
        let met = met.iter().map(|row| {
            let (number, marks) = (row.try_get::<i64, _>(0)?, row.try_get::<&str, _>(1)?);
            number
                .zip(marks.map(str::to_owned))
                .ok_or_else(|| Error::new(ErrorKind::Internal, "the server says in other words what differs"))
        });
        let plan = Plan::of(conflicts.rules(), &names, met)?;
        let written = plan.carry_out(self, &names, conflicts, NAMED_AT_ONCE).await?;
        self.staged.deletes = self.count(&self.statements.count_staged_deletes()).await?;
        Ok(written)
    }
}

#[async_trait]
impl Beside for Load<'_> {
    async fn mix(&mut self, numbers: &[i64], kept: &str) -> Result<u64> {
        self.execute(&self.statements.mix(numbers, kept)).await
    }

    async fn forget(&mut self, numbers: &[i64]) -> Result<()> {
        self.session.batch(&self.statements.forget(numbers)).await
    }

    async fn sides(&mut self, numbers: &[i64]) -> Result<Sided> {
        let rows = self.session.rows(&self.statements.clashes(numbers)).await?;
        let names: Vec<&str> = self.statements.columns.iter().map(|column| column.name.as_str()).collect();
        let mut found = Sided::new();
        for row in &rows {
            let mut sides = [None, None, None];
            for (place, side) in sides.iter_mut().enumerate() {
                if row.try_get::<&str, _>(2 + place)? != Some("1") {
                    continue;
                }
                let mut object = serde_json::Map::new();
                for (column, name) in names.iter().enumerate() {
                    let value = row.try_get::<&str, _>(5 + place * names.len() + column)?;
                    object.insert((*name).to_owned(), value.into());
                }
                *side = Some(serde_json::Value::Object(object).to_string());
            }
            let key = row.try_get::<&str, _>(1)?.map(str::to_owned);
            found.extend(row.try_get::<i64, _>(0)?.zip(key.map(|key| (key, sides))));
        }
        Ok(found)
    }
}
