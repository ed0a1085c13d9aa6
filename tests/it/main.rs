//! One integration binary: one link, and one place for fixtures.

#![allow(clippy::unwrap_used)] // a test that cannot go on should stop right there
#![allow(clippy::large_futures)] // a test awaits one thing at a time, on a stack of its own

mod audit;
mod bad_input;
mod batches;
mod catalog_conformance;
mod chaos;
mod cli;
mod compare;
mod conflicts;
mod crossings;
mod damaged_files;
mod dead_letters;
mod demo;
mod docs;
mod duckdb_v3;
mod evolution;
mod evolution_model;
mod faults;
mod first_read;
mod fixture;
mod foreign_tables;
mod format_v3;
mod java_table;
mod lake_catalog;
mod lake_commit;
mod lake_deletes;
mod lake_faults;
mod lake_judged;
mod lake_maintain;
mod lake_places;
mod lake_rest;
mod lake_sql_catalog;
mod lake_write;
mod late;
mod many_streams;
mod memory;
mod mssql_conformance;
mod mssql_pass;
mod mssql_recorded;
mod mssql_round;
mod mssql_shop;
mod mssql_source;
mod mssql_target;
#[cfg(feature = "mysql")]
mod mysql_source;
#[cfg(feature = "mysql")]
mod mysql_target;
mod past;
mod postgres_keyset;
mod postgres_log;
mod postgres_log_model;
mod postgres_source;
mod postgres_target;
mod refused_rows;
mod report;
mod retry;
mod serve;
mod serve_http;
mod serve_workers;
mod servers;
mod shapes;
mod source_safety;
mod sqlite;
mod state;
mod statistics;
mod store_options;
mod sync;
mod tds;
mod tidy;
mod unfit;
mod values;
mod versions;
