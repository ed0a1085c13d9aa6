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
