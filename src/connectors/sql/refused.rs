//! Which of many staged rows a database refuses.
//!
//! ```text
//! staged rows ──all at once──▶ done
//!                    └─ refused ─▶ one half ─▶ done      what failed is taken back, and the
//!                                 └▶ other half ─▶ …     rest stays
//! ```
//!
//! Halving costs some `2 log₂ n` statements a refused row. A row may be refused for a value that another
//! row gives up only later: so the refused ones are tried again, until none of them gets in.

use std::collections::HashMap;
use std::ops::Range;

use async_trait::async_trait;

use crate::error::{Error, ErrorKind, Result};
use crate::target::Refused;

/// One part of a load, done with some of the staged rows at a time. They are numbered from 1.
#[async_trait]
pub trait Attempts: Send {
    /// Does it with the rows of these numbers and returns how many of the table it changed; or does nothing and
    /// says why the database refuses one of them.
    async fn attempt(&mut self, among: Range<i64>) -> Result<Result<u64, String>>;

    /// Hears that one more row is refused. An error ends the load.
    fn note(&self, reason: &str) -> Result<()>;
}

/// Does a part of a load with all staged rows that are not refused. Returns how many rows of the table it
/// changed, and the numbers of those refused, with why.
pub async fn by_halves(part: &mut dyn Attempts, rows: u64) -> Result<(u64, Vec<(i64, String)>)> {
    let end = i64::try_from(rows).unwrap_or(i64::MAX - 1) + 1;
    let (mut changed, mut refused) = (0, Vec::new());
    let mut ranges: Vec<Range<i64>> = std::iter::once(1..end).collect();
    while let Some(range) = ranges.pop() {
        match part.attempt(range.clone()).await? {
            Ok(rows) => changed += rows,
            Err(reason) if range.end - range.start == 1 => {
                part.note(&reason)?;
                refused.push((range.start, reason));
            }
            Err(_) => {
                let half = range.start + (range.end - range.start) / 2;
                ranges.extend([half..range.end, range.start..half]);
            }
        }
    }
    loop {
        let before = refused.len();
        let mut left = Vec::new();
        for (row, reason) in std::mem::take(&mut refused) {
            match part.attempt(row..row + 1).await? {
                Ok(rows) => changed += rows,
                Err(_) => left.push((row, reason)),
            }
        }
        refused = left;
        if refused.len() == before {
            return Ok((changed, refused));
        }
    }
}

/// Refused rows with their letters.
pub fn with_letters(refused: Vec<(i64, String)>, mut letters: HashMap<i64, String>) -> Result<Vec<Refused>> {
    let of = |(number, reason)| {
        let letter = letters.remove(&number);
        let letter = letter.ok_or_else(|| Error::new(ErrorKind::Internal, "a staged row has gone"))?;
        Ok(Refused { letter, reason })
    };
    refused.into_iter().map(of).collect()
}
