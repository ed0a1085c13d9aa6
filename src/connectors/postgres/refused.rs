//! A load without the rows that the server refuses.
//!
//! ```text
//! staged rows ──all at once──▶ done
//!                    └─ refused ─▶ one half ─▶ done      each under a savepoint, so that what
//!                                 └▶ other half ─▶ …     failed is taken back and the rest stays
//! ```
//!
//! Halving costs some `2 log₂ n` statements a refused row. A row may be refused for a value that another
//! row gives up only later: so the refused ones are tried again, until none of them gets in.

use std::collections::HashMap;

use tokio_postgres::error::DbError;

use super::load::Load;
use super::statements::Among;
use crate::error::{Error, ErrorKind, Result};
use crate::target::Refused;

/// What is done with staged rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Insert,
    Upsert,
    Delete,
}

impl Load<'_> {
    /// Does one part of a load with all rows staged; where rows may be refused, with those that are not.
    /// Returns how many rows of the table it changed.
    pub(super) async fn bring(&mut self, part: Part, staged: u64) -> Result<u64> {
        let Some(statement) = self.statement(part) else { return Ok(0) };
        if self.refusals.is_none() {
            return self.execute(&statement).await;
        }
        // What would be found at the commit is found at the statement.
        self.client.batch_execute("SET CONSTRAINTS ALL IMMEDIATE").await?;
        let end = i64::try_from(staged).unwrap_or(i64::MAX - 1) + 1;
        let (mut changed, mut refused, mut indexed) = (0, Vec::new(), false);
        let mut ranges = vec![(1, end)];
        while let Some((from, to)) = ranges.pop() {
            match self.attempt(part, from, to).await? {
                Ok(rows) => changed += rows,
                Err(reason) if to - from == 1 => {
                    if let Some(refusals) = &self.refusals {
                        refusals.note(&reason)?;
                    }
                    refused.push((from, reason));
                }
                Err(_) => {
                    if !indexed {
                        self.client.batch_execute(&self.statements.index_staging()).await?;
                        indexed = true;
                    }
                    let half = from + (to - from) / 2;
                    ranges.extend([(half, to), (from, half)]);
                }
            }
        }
        loop {
            let before = refused.len();
            let mut left = Vec::new();
            for (row, reason) in std::mem::take(&mut refused) {
                match self.attempt(part, row, row + 1).await? {
                    Ok(rows) => changed += rows,
                    Err(_) => left.push((row, reason)),
                }
            }
            refused = left;
            if refused.len() == before {
                break;
            }
        }
        self.refused.extend(refused);
        self.statements.among = Among::All;
        Ok(changed)
    }

    /// Hands over what was refused, before the commit.
    pub(super) async fn keep_refused(&mut self) -> Result<()> {
        let Some(refusals) = self.refusals.clone().filter(|_| !self.refused.is_empty()) else {
            return Ok(());
        };
        let refused = std::mem::take(&mut self.refused);
        let numbers: Vec<i64> = refused.iter().map(|(number, _)| *number).collect();
        let rows = self.client.query(&self.statements.staged_letters(), &[&numbers]).await?;
        let mut letters: HashMap<i64, String> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        let refused = refused.into_iter().map(|(number, reason)| {
            let letter = letters.remove(&number);
            let letter = letter.ok_or_else(|| Error::new(ErrorKind::Internal, "a staged row has gone"))?;
            Ok(Refused { letter, reason })
        });
        refusals.keep(refused.collect::<Result<_>>()?).await
    }

    /// Does a part with some of the staged rows, or nothing and says why the server refuses one of them.
    async fn attempt(&mut self, part: Part, from: i64, to: i64) -> Result<Result<u64, String>> {
        self.statements.among = Among::Numbers(from..to);
        let Some(statement) = self.statement(part) else { return Ok(Ok(0)) };
        self.client.batch_execute("SAVEPOINT frazil_part").await?;
        let done = self.client.execute(&statement, &[]).await;
        let (outcome, ends) = match done {
            Ok(rows) => (Ok(rows), "RELEASE SAVEPOINT frazil_part"),
            Err(error) => {
                match error.as_db_error().and_then(|db| of_the_row(db, &self.explain(Some(&error)))) {
                    Some(reason) => {
                        (Err(reason), "ROLLBACK TO SAVEPOINT frazil_part; RELEASE SAVEPOINT frazil_part")
                    }
                    None => return Err(self.explain(Some(&error))),
                }
            }
        };
        self.client.batch_execute(ends).await?;
        Ok(outcome)
    }

    fn statement(&self, part: Part) -> Option<String> {
        match part {
            Part::Insert => Some(self.statements.insert()),
            Part::Upsert => Some(self.statements.upsert()),
            Part::Delete => self.statements.delete(),
        }
    }
}

/// Why a row was refused, if that is what the server says: a value that cannot be converted, a constraint, a
/// view's condition, a trigger's word. What a trigger says may hold values, and is left out.
fn of_the_row(db: &DbError, ours: &Error) -> Option<String> {
    match db.code().code() {
        "P0001" => Some("a trigger of the table refuses the row (sqlstate: P0001)".to_owned()),
        code if code == "44000" || code.starts_with("22") || code.starts_with("23") => Some(ours.to_string()),
        _ => None,
    }
}
