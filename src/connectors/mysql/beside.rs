//! A load into a table that others write to as well, with an eye on what they changed.
//!
//! ```text
//! staged rows ─▶ lock, compare ─▶ touched by others ─▶ leave, or mix ─▶ out of the staging table
//!                           └───▶ all others ────────▶ written as always
//! ```
//!
//! The transaction reads repeatably, so that the gap of a key which the table does not have is locked too.

use async_trait::async_trait;
use mysql_async::{Row, Value};

use super::load::Load;
use super::refused::NAMED_AT_ONCE;
use crate::clients::mysql::{integer, text};
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
            let number = integer(row, 0).ok_or_else(|| {
                Error::new(ErrorKind::Internal, "the server says in other words what differs")
            });
            Ok((number?, text(row, 1)))
        });
        let plan = Plan::of(conflicts.rules(), &names, met)?;
        let written = plan.carry_out(self, &names, conflicts, NAMED_AT_ONCE).await?;
        let deletes = self.session.rows(&self.statements.count_staged_deletes()).await?;
        self.staged.deletes =
            deletes.first().and_then(|row| integer(row, 0)).map_or(0, |rows| rows.unsigned_abs());
        Ok(written)
    }
}

#[async_trait]
impl Beside for Load<'_> {
    async fn mix(&mut self, numbers: &[i64], kept: &str) -> Result<u64> {
        self.execute(&self.statements.mix(numbers, kept)).await
    }

    async fn forget(&mut self, numbers: &[i64]) -> Result<()> {
        self.session.run(&self.statements.forget(numbers)).await.map(drop)
    }

    async fn sides(&mut self, numbers: &[i64]) -> Result<Sided> {
        let rows = self.session.rows(&self.statements.clashes(numbers)).await?;
        let names: Vec<&str> = self.statements.columns.iter().map(|column| column.name.as_str()).collect();
        let side = |row: &Row, place: usize| {
            let there = integer(row, 2 + place) == Some(1);
            there.then(|| {
                let value = |at: usize| match row.as_ref(at) {
                    None | Some(Value::NULL) => serde_json::Value::Null,
                    Some(_) => text(row, at).into(),
                };
                let first = 5 + place * names.len();
                let object: serde_json::Map<_, _> =
                    names.iter().zip(first..).map(|(name, at)| ((*name).to_owned(), value(at))).collect();
                serde_json::Value::Object(object).to_string()
            })
        };
        let found = rows.iter().filter_map(|row| {
            Some((integer(row, 0)?, (text(row, 1), [0, 1, 2].map(|place| side(row, place)))))
        });
        Ok(found.collect())
    }
}
