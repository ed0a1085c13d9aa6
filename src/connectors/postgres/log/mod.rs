//! `change: log`: every insert, update and delete, from the server's write-ahead log.
//!
//! ```text
//! first read   publication, slot ─▶ snapshot ─▶ the table, in parallel ─▶ lake
//! a pass       what the slot has and the snapshot has not, as far as the log goes now ─▶ lake ─▶ confirm
//! ```
//!
//! The log is read by the functions of SQL (`pg_logical_slot_peek_binary_changes`), through COPY like any
//! rows: a pass is bounded, reads from an ordinary session, and moves nothing on the server. What it has
//! read is confirmed when the lake has it, and not before.
//!
//! The slot is made before the snapshot, so the log repeats transactions that the first read has seen. The
//! position remembers the snapshot, and they are passed over: each is in the lake once. A first read that
//! was interrupted has several snapshots; then the log is applied from the first one on, and comes in one
//! portion as far as the last of them saw, since before that rows would go back to states of the past.
//!
//! A replica is read like its primary; but it does not say what a snapshot has seen, so that the order of the log
//! has to tell ([`end`]), and nothing can be made there but the slot ([`replica`]).
//!
//! What the log does not tell (TRUNCATE, a column that was added with values, a slot that was lost) is
//! answered by reading the whole table and comparing, and the report says why. A portion that meets such a
//! thing is dropped whole.

mod arrange;
mod batches;
mod end;
mod fold;
mod lsn;
mod needs;
mod peek;
mod pgoutput;
mod place;
mod publication;
mod reading;
mod replica;
mod slot;
mod snapshot;
mod start;
mod table;

pub(super) use arrange::arrange;
pub(super) use lsn::Lsn;
pub(super) use needs::findings;
pub(super) use place::end_of_log;
pub(super) use snapshot::Snapshot;
pub(super) use start::{acknowledge, is_position, open, plan};
pub(super) use table::Described;
