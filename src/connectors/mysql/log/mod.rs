//! `change: log`: every insert, update and delete, from the binlog of MariaDB or MySQL.
//!
//! ```text
//! a snapshot at a place S of the log
//! log  ──from the position to S──▶ keys that changed ─▶ their rows, as the snapshot has them ─▶ upserts
//!                                                   └─▶ those that are not there ───────────▶ deletes
//! ```
//!
//! The log says *which* rows changed, and the table says what they are. So a value has one way into the
//! lake, that of every read, whatever its type; and since all rows come from one snapshot, the lake shows
//! the table as it was at S and at no other moment. MariaDB says where in the log a consistent snapshot is
//! (`binlog_snapshot_position`), without a lock. MySQL does not: there S lies between two ends, and what is
//! between them is read by this pass and by the next one.
//!
//! ```text
//! MySQL     transactions that S shows in any case ──▶ S ──▶ the end of the log, behind all that S shows
//!           the next pass begins behind these              this pass reads as far as there
//! ```
//!
//! A first read sees the table in such a snapshot too, and the log goes on from there. Where it was
//! interrupted, its parts come from several; then the log from the first one on is read before anything is
//! shown.
//!
//! What the log does not tell (TRUNCATE, a column that was altered, a foreign key that cascades, a statement
//! in the place of rows) is answered by reading the whole table and comparing, and the report says why.

mod about;
mod cascades;
mod cells;
mod compressed;
mod ddl;
mod domains;
mod dump;
mod event;
mod gtid;
mod key;
mod needs;
mod place;
mod reread;
mod rows;
mod scan;
mod snapshot;
mod start;
mod xid;

pub(super) use key::Key;
pub(super) use needs::{arrange, findings};
pub(super) use place::Place;
pub(super) use reread::{ByKeys, Changed, by_keys};
pub(super) use start::{HELD_BATCHES, columns, open, plan};
