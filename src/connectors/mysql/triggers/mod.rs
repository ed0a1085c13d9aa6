//! `change: trigger`: keys of changed rows, written down by triggers; rows are read by these keys.
//!
//! ```text
//! application ── INSERT, UPDATE, DELETE ──▶ table ── triggers ──▶ _frazil_changes_… (n, batch 0, key, old key)
//!                                             │                        │
//!    a pass, in one snapshot:                 │      what it sees with batch 0 becomes batch B
//!                                             └── rows by key ◀── keys of batches after the position
//! ```
//!
//! A change is known by its key alone: what became of the row is read from the table. So it does not matter
//! how often a key was written down, nor in which order. It matters only that none is passed by.
//!
//! Order is that of commit. The number of a change says when it was made, and whoever reads "everything
//! above the last number" loses what was open then; nobody is told here what is open. So changes are
//! *counted*: a pass holds the line of the table, begins its snapshot, and gives all changes that it sees
//! and that have no batch yet the next one. Whoever counts next begins a later snapshot. So a batch is a
//! moment: its number, and all before it, are what its snapshot saw, and what it did not see comes in a
//! later one, however long it stays open.
//!
//! Counting touches changes one by one, by their numbers, and only those that are committed: it waits for
//! no application, and none waits for it.
//!
//! `frazil setup` installs, a pass never does. A pass looks first whether everything is as it was: the
//! triggers with the moment of their creation, and which table InnoDB has under the name, since a table
//! that is truncated is another one.

mod arrange;
mod count;
mod installed;
mod needs;
mod pass;
mod readers;
mod statements;

pub(super) use arrange::{arrange, execute};
pub(super) use needs::findings;
pub(super) use pass::{Triggered, open, plan};
pub(super) use readers::{acknowledge, is_position};
