//! `change: trigger`: keys of changed rows, written down by triggers, read by joining the table.
//!
//! ```text
//! application ──▶ table ── triggers ──▶ _frazil_changes_… (seq, key)
//!                   │                        │
//!  in one snapshot: └────── key = key ───────┘ ──▶ rows, or deletes ──▶ lake
//! ```
//!
//! SQLite has one writer at a time, so that the numbers of changes are in the order of commits: what a
//! snapshot shows are all changes up to its highest number.

mod arrange;
mod installed;
mod pass;
mod statements;

pub(super) use arrange::{arrange, execute};
pub(super) use installed::findings;
pub(super) use pass::{acknowledge, is_position, open, plan};

/// The names of everything that is ours in a file begin so.
pub(super) const PREFIX: &str = "_frazil_";
