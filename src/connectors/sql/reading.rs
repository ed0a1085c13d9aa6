//! Statements that several sessions of one reading share.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::datatypes::Schema;

/// A range: large enough that starting a statement costs nothing, small enough that streams end together.
pub const RANGE_BYTES: u64 = 64 << 20;
/// Ranges for each stream of a table that is smaller than that.
pub const RANGES_A_STREAM: u64 = 4;
/// No range is smaller.
pub const SMALLEST_RANGE_BYTES: u64 = 1 << 20;

/// A SELECT to which conditions can be added.
#[derive(Debug, Clone)]
pub struct Select {
    /// `SELECT … FROM …`
    pub what: String,
    /// What each row must meet.
    pub conditions: Vec<String>,
}

impl Select {
    /// The statement, with one condition more.
    pub fn with(&self, condition: Option<String>) -> String {
        // Lines of their own: a condition of the user's may end in a comment.
        let all: Vec<_> = self.conditions.iter().chain(&condition).map(|c| format!("({c}\n)")).collect();
        if all.is_empty() { self.what.clone() } else { format!("{} WHERE {}", self.what, all.join(" AND ")) }
    }
}

/// The condition that a key lies behind a bound, where the server compares no rows, or finds no range of an
/// index by it: `a > x OR (a = x AND b > y)`. Of each column its name and the bound's value as a literal.
pub fn beyond(bound: &[(&str, String)]) -> String {
    compared(bound, ">", ">")
}

/// The condition that a key lies before a bound, or at it.
pub fn up_to(bound: &[(&str, String)]) -> String {
    compared(bound, "<", "<=")
}

fn compared(bound: &[(&str, String)], inner: &str, last: &str) -> String {
    let way = |at: usize| {
        let operator = |i: usize| match i == at {
            false => "=",
            true if at + 1 == bound.len() => last,
            true => inner,
        };
        let parts: Vec<_> = bound[..=at]
            .iter()
            .enumerate()
            .map(|(i, (name, value))| format!("{name} {} {value}", operator(i)))
            .collect();
        format!("({})", parts.join(" AND "))
    };
    let ways: Vec<_> = (0..bound.len()).map(way).collect();
    match bound {
        // The first column alone bounds the search in the index.
        [(name, value), _, ..] => format!("{name} {inner}= {value} AND ({})", ways.join(" OR ")),
        _ => ways.concat(),
    }
}

/// Statements that wait to be read.
pub type Queue = Arc<Mutex<VecDeque<String>>>;

/// Sessions at rest.
pub type Pool<S> = Arc<Mutex<Vec<S>>>;

/// Locks what only short code holds.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says of each column how many values a policy replaced, and counts anew.
pub fn replaced_values(schema: &Schema, counts: &[AtomicU64], by: &str) -> Vec<String> {
    let counts = schema.fields().iter().zip(counts.iter().map(|count| count.swap(0, Ordering::Relaxed)));
    counts
        .filter(|(_, count)| *count > 0)
        .map(|(field, count)| format!("{count} values of `{}` were replaced by {by}", field.name()))
        .collect()
}
