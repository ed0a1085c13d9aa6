//! One integration binary: one link, and one place for fixtures.

mod docs;
mod fixture;
mod lake_catalog;
mod servers;
mod tidy;
