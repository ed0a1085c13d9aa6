//! A load without the rows that the server refuses.
//!
//! Values that fit into no cell of a bulk load are found on the way to the staging table
//! ([`stage`](super::stage)), texts outside of a code page in it; what constraints and triggers say, by
//! halving, each time after a savepoint, so that what failed is taken back and the rest stays.
//!
//! A trigger that rolls back, and a conversion that fails in the middle of a batch, end the whole
//! transaction and not one statement: then the load stops, for nobody can say what else went with it.

use std::collections::HashMap;
use std::ops::Range;

use async_trait::async_trait;

use super::load::Load;
use super::statements::Way;
use crate::connectors::sql::{Attempts, by_halves, with_letters};
use crate::error::{ErrorKind, Result};

/// How many staged rows one statement names: a list much longer takes the server long to compile.
pub(super) const NAMED_AT_ONCE: usize = 500;

/// What is done with staged rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// All are inserted; into a table without rows, or not.
    Insert {
        empty: bool,
    },
    Delete,
    Update,
    /// Those whose key is not there are inserted.
    New,
}

struct Try<'a, 'b> {
    load: &'a mut Load<'b>,
    part: Part,
}

#[async_trait]
impl Attempts for Try<'_, '_> {
    async fn attempt(&mut self, among: Range<i64>) -> Result<Result<u64, String>> {
        self.load.attempt(self.part, among).await
    }

    fn note(&self, reason: &str) -> Result<()> {
        self.load.note(reason)
    }
}

impl Load<'_> {
    /// Does one part of a load with all rows staged; where rows may be refused, with those that are not.
    /// Returns how many rows of the table it changed.
    pub(super) async fn bring(&mut self, part: Part) -> Result<u64> {
        let Some(statement) = self.statement(part) else { return Ok(0) };
        if self.refusals.is_none() {
            return self.execute(&statement).await;
        }
        let rows = self.staged.rows;
        let (changed, refused) = by_halves(&mut Try { load: self, part }, rows).await?;
        self.refused.extend(refused);
        self.statements.among = None;
        Ok(changed)
    }

    /// Puts rows aside whose texts a column's code page cannot hold.
    pub(super) async fn refuse_unwritable(&mut self) -> Result<()> {
        let Some(query) = self.statements.find_all_unwritable() else { return Ok(()) };
        let mut numbers = Vec::new();
        for row in self.session.rows(&query).await? {
            let (number, place) = (row.try_get::<i64, _>(0)?, row.try_get::<i32, _>(1)?);
            let (Some(number), Some(place)) = (number, place) else { continue };
            if let Some(error) = self.statements.unwritable_error(place) {
                let reason = error.to_string();
                self.note(&reason)?;
                self.refused.push((number, reason));
                numbers.push(number);
            }
        }
        for numbers in numbers.chunks(NAMED_AT_ONCE) {
            self.session.batch(&self.statements.put_aside(numbers)).await?;
        }
        Ok(())
    }

    /// Hands over what was refused, before the commit.
    pub(super) async fn keep_refused(&mut self) -> Result<()> {
        let mut refused = std::mem::take(&mut self.staged.unfit);
        refused.append(&mut self.refused);
        let Some(refusals) = self.refusals.clone().filter(|_| !refused.is_empty()) else { return Ok(()) };
        let numbers: Vec<i64> = refused.iter().map(|(number, _)| *number).collect();
        let mut letters = HashMap::new();
        for numbers in numbers.chunks(NAMED_AT_ONCE) {
            for row in self.session.rows(&self.statements.staged_letters(numbers)).await? {
                let letter = row.try_get::<&str, _>(1)?.map(str::to_owned);
                letters.extend(row.try_get::<i64, _>(0)?.zip(letter));
            }
        }
        refusals.keep(with_letters(refused, letters)?).await
    }

    /// Does a part with some of the staged rows, or nothing and says why the server refuses one of them.
    async fn attempt(&mut self, part: Part, among: Range<i64>) -> Result<Result<u64, String>> {
        self.statements.among = Some(among);
        let Some(statement) = self.statement(part) else { return Ok(Ok(0)) };
        self.session.batch("SAVE TRANSACTION [frazil_part]").await?;
        match self.execute(&statement).await {
            Ok(rows) => Ok(Ok(rows)),
            Err(error) if error.kind() == ErrorKind::Data => {
                // A trigger that only complains has let the rows through.
                match self.session.batch("ROLLBACK TRANSACTION [frazil_part]").await {
                    Ok(()) => Ok(Err(error.to_string())),
                    Err(gone) if gone.kind() == ErrorKind::Transient => Err(gone),
                    Err(_) => Err(error.hint(
                        "the server ended the whole transaction for this row, so that it cannot be left out \
                         alone: a trigger that rolls back would have to raise an error only",
                    )),
                }
            }
            Err(error) => Err(error),
        }
    }

    fn note(&self, reason: &str) -> Result<()> {
        self.refusals.as_ref().map_or(Ok(()), |refusals| refusals.note(reason))
    }

    fn statement(&self, part: Part) -> Option<String> {
        match part {
            Part::Insert { empty } => Some(self.statements.insert(empty)),
            Part::Delete => self.statements.delete(Way::UpdateInsert),
            Part::Update => self.statements.update(),
            Part::New => Some(self.statements.insert_new()),
        }
    }
}
