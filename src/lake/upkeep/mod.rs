//! What keeps a table fast and small, however often it is written to. Changes no row.
//!
//! ```text
//! plan ─▶ small files, files with many deleted rows ─▶ rewrite ─▶ one `replace` snapshot a group
//!                                  many delete files ─▶ merge ───▶ one `replace` snapshot
//!               snapshots that nobody needs any more ─▶ expire ──▶ files that only they had, deleted
//!                    rows, when somebody asks for it ─▶ count ───▶ how many different values a column has
//!                     files that no snapshot mentions ─▶ orphans ─▶ deleted, once they are old
//! ```
//!
//! Writers go on meanwhile. A rewrite is prepared beside the table and swapped in at the end; deletes
//! that came in between are carried over to the new files, row by row. What cannot be carried over is
//! given up: the table is then as it was. A crash at any point leaves files that no snapshot mentions.

mod deletes;
mod distinct;
mod expire;
mod health;
mod orphans;
mod plan;
mod reach;
mod rewrite;
mod swap;
mod targets;

pub use expire::{Expired, Retention};
pub use health::{Health, Reason};
pub use orphans::{ORPHAN_AGE, Orphan, Orphans, SMALLEST_ORPHAN_AGE};
pub use plan::{Layout, Rewrite, Why};
pub use rewrite::Rewritten;
pub use targets::RegisteredTarget;
