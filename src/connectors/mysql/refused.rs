//! A load without the rows that the server refuses.
//!
//! Values that fit into no cell are found on the way to the staging table ([`stage`](super::stage)); what
//! constraints, triggers and checks of values say, by halving. A statement that fails is taken back whole by
//! the server, with what its triggers did, so that no savepoint is needed. A deadlock ends the transaction: it
//! is no refusal, and the load is tried again.

use std::collections::HashMap;
use std::ops::Range;

use async_trait::async_trait;

use super::load::Load;
use crate::clients::mysql::{integer, text};
use crate::connectors::sql::{Attempts, by_halves, with_letters};
use crate::error::{ErrorKind, Result};

/// How many staged rows one statement names.
pub(super) const NAMED_AT_ONCE: usize = 500;

/// What is done with staged rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// All are inserted.
    Insert,
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
        self.load.statements.among = Some(among);
        let Some(statement) = self.load.statement(self.part) else { return Ok(Ok(0)) };
        match self.load.execute(&statement).await {
            Ok(rows) => Ok(Ok(rows)),
            Err(error) if error.kind() == ErrorKind::Data => Ok(Err(error.to_string())),
            Err(error) => Err(error),
        }
    }

    fn note(&self, reason: &str) -> Result<()> {
        self.load.refusals.as_ref().map_or(Ok(()), |refusals| refusals.note(reason))
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

    /// Hands over what was refused, before the commit.
    pub(super) async fn keep_refused(&mut self) -> Result<()> {
        let mut refused = std::mem::take(&mut self.staged.unfit);
        refused.append(&mut self.refused);
        let Some(refusals) = self.refusals.clone().filter(|_| !refused.is_empty()) else { return Ok(()) };
        let numbers: Vec<i64> = refused.iter().map(|(number, _)| *number).collect();
        let mut letters = HashMap::new();
        for numbers in numbers.chunks(NAMED_AT_ONCE) {
            let rows = self.session.rows(&self.statements.staged_letters(numbers)).await?;
            letters.extend(rows.iter().filter_map(|row| Some((integer(row, 0)?, text(row, 1)))));
        }
        refusals.keep(with_letters(refused, letters)?).await
    }

    fn statement(&self, part: Part) -> Option<String> {
        match part {
            Part::Insert => Some(self.statements.insert()),
            Part::Delete => self.statements.delete(),
            Part::Update => self.statements.update(),
            Part::New => Some(self.statements.insert_new()),
        }
    }
}
