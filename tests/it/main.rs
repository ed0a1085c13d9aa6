//! One integration binary: one link, and one place for fixtures.

mod fixture;
mod lake_catalog;
mod servers;
mod tidy;
