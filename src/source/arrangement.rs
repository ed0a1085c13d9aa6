//! What `frazil setup` puts into a database, and `frazil teardown` takes out: said first, done on request.
//!
//! Reading never installs anything into a table. What a stream needs there is listed as statements, which
//! are shown, handed to somebody with more rights, or executed.

use serde::Serialize;

/// What is wanted of a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// That the stream can be read.
    Setup,
    /// That nothing of ours is left of the stream, as far as no other stream needs it; with `force`, whoever
    /// needs it.
    Teardown {
        /// Whatever other readers there are.
        force: bool,
    },
}

/// The way to a [`Goal`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Arrangement {
    /// What is to be executed, in this order; nothing when the goal is reached.
    pub statements: Vec<String>,
    /// What is there already, what stays, and why.
    pub notes: Vec<String>,
    /// Statements that would help and that only a person can decide on.
    pub suggestions: Vec<String>,
}

impl Arrangement {
    /// Nothing to do, for a reason.
    pub fn nothing(note: impl Into<String>) -> Self {
        Self { notes: vec![note.into()], ..Self::default() }
    }
}
