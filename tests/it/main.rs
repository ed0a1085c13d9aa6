//! One integration binary: one link, and one place for fixtures.

mod cli;
mod docs;
mod faults;
mod fixture;
mod lake_catalog;
mod lake_commit;
mod lake_deletes;
mod lake_faults;
mod postgres_target;
mod servers;
mod sqlite;
mod sync;
mod tidy;
mod values;
