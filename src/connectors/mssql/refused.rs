//! A load without the rows that the server refuses.
//!
//! ```text
//! staged rows ──all at once──▶ done
//!                    └─ refused ─▶ one half ─▶ done      each after a savepoint, so that what
//!                                 └▶ other half ─▶ …     failed is taken back and the rest stays
//! ```
//!
//! Values that fit into no cell of a bulk load are found on the way to the staging table
//! ([`stage`](super::stage)), texts outside of a code page in it; what constraints and triggers say, by
//! halving, at some `2 log₂ n` statements a refused row. A row may be refused for a value that another row
//! gives up only later: so the refused ones are tried again, until none of them gets in.
//!
//! A trigger that rolls back, and a conversion that fails in the middle of a batch, end the whole
//! transaction and not one statement: then the load stops, for nobody can say what else went with it.

use std::collections::HashMap;

use super::load::Load;
use super::statements::Way;
use crate::error::{Error, ErrorKind, Result};
use crate::target::Refused;

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

impl Load<'_> {
    /// Does one part of a load with all rows staged; where rows may be refused, with those that are not.
    /// Returns how many rows of the table it changed.
    pub(super) async fn bring(&mut self, part: Part) -> Result<u64> {
        let Some(statement) = self.statement(part) else { return Ok(0) };
        if self.refusals.is_none() {
            return self.execute(&statement).await;
        }
        let end = i64::try_from(self.staged.rows).unwrap_or(i64::MAX - 1) + 1;
        let (mut changed, mut refused) = (0, Vec::new());
        let mut ranges = vec![(1, end)];
        while let Some((from, to)) = ranges.pop() {
            match self.attempt(part, from, to).await? {
                Ok(rows) => changed += rows,
                Err(reason) if to - from == 1 => {
                    self.note(&reason)?;
                    refused.push((from, reason));
                }
                Err(_) => {
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
        let refused = refused.into_iter().map(|(number, reason)| {
            let letter = letters.remove(&number);
            let letter = letter.ok_or_else(|| Error::new(ErrorKind::Internal, "a staged row has gone"))?;
            Ok(Refused { letter, reason })
        });
        refusals.keep(refused.collect::<Result<_>>()?).await
    }

    /// Does a part with some of the staged rows, or nothing and says why the server refuses one of them.
    async fn attempt(&mut self, part: Part, from: i64, to: i64) -> Result<Result<u64, String>> {
        self.statements.among = Some(from..to);
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
