//! A load without the rows that the server refuses.
//!
//! What the server refuses is found by halving, each time under a savepoint, so that what failed is taken
//! back and the rest stays.

use std::collections::HashMap;
use std::ops::Range;

use async_trait::async_trait;
use tokio_postgres::error::DbError;

use super::load::Load;
use super::statements::Among;
use crate::connectors::sql::{Attempts, by_halves, with_letters};
use crate::error::{Error, Result};

/// What is done with staged rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Insert,
    Upsert,
    Delete,
}

struct Try<'a, 'b> {
    load: &'a mut Load<'b>,
    part: Part,
    /// Whether staged rows are found by their numbers: what comes in at once needs no index for that.
    indexed: bool,
}

#[async_trait]
impl Attempts for Try<'_, '_> {
    async fn attempt(&mut self, among: Range<i64>) -> Result<Result<u64, String>> {
        let attempted = self.load.attempt(self.part, among).await?;
        if attempted.is_err() && !self.indexed {
            self.load.client.batch_execute(&self.load.statements.index_staging()).await?;
            self.indexed = true;
        }
        Ok(attempted)
    }

    fn note(&self, reason: &str) -> Result<()> {
        self.load.refusals.as_ref().map_or(Ok(()), |refusals| refusals.note(reason))
    }
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
        let mut halves = Try { load: self, part, indexed: false };
        let (changed, refused) = by_halves(&mut halves, staged).await?;
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
        let letters: HashMap<i64, String> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        refusals.keep(with_letters(refused, letters)?).await
    }

    /// Does a part with some of the staged rows, or nothing and says why the server refuses one of them.
    async fn attempt(&mut self, part: Part, among: Range<i64>) -> Result<Result<u64, String>> {
        self.statements.among = Among::Numbers(among);
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
