//! Sessions on SQL Server and Azure SQL, over TDS.
//!
//! ```text
//! URL, ADO or JDBC string ──▶ instance? ──▶ host ──▶ token? ──▶ TLS, log-in ──▶ settings ──▶ Session
//!                             (browser)      ▲                        │
//!                                            └── redirected ──────────┘
//! ```
//!
//! One session answers one statement at a time: parallel readers and writers open one each. A
//! statement that nobody wants any more is ended by dropping its session.

mod browser;
mod connect;
mod error;
mod params;
mod session;
mod token;

pub(crate) use connect::{Options, connect};
pub(crate) use error::number;
pub(crate) use session::{Isolation, Session, literal};
