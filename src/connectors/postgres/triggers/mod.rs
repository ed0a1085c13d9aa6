//! `change: trigger`: keys of changed rows, written down by triggers, read by joining the table.
//!
//! ```text
//! application ── INSERT, UPDATE, DELETE ──▶ table ── triggers ──▶ _frazil.changes_… (transaction, key)
//!                                             │                        │
//!    a pass, in one snapshot:                 └────── key = key ───────┘ ──▶ rows, or deletes ──▶ lake
//! ```
//!
//! A change is known by its key alone: what became of the row is read from the table. So it does not matter
//! how often a key was written down, nor in which order. It matters only that none is passed by.
//!
//! Order is that of commit. Each key comes with the number of its transaction, and the position is a
//! snapshot: a pass reads what it sees and the snapshot of the position did not see. A transaction that was
//! open for an hour was in no snapshot, and is in the next.
//!
//! `frazil setup` installs, a pass never does. A pass looks first whether everything is as it was, down to
//! the version of each trigger in the catalog: one that was disabled and enabled again is another version.

mod arrange;
mod installed;
mod needs;
mod pass;
mod readers;
mod statements;

pub(super) use arrange::arrange;
pub(super) use needs::findings;
pub(super) use pass::{Triggered, open, plan};
pub(super) use readers::{acknowledge, is_position};
