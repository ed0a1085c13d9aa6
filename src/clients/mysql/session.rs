//! An open session: statements, and what their answers say.

use std::ops::{Deref, DerefMut};

use mysql_async::prelude::Queryable;
use mysql_async::{BinlogStream, BinlogStreamRequest, Conn, Params, Row, Sid, Value};

use crate::error::Result;

/// An open session. It dereferences to the client.
pub(crate) struct Session {
    /// Always there until it is dropped.
    conn: Option<Conn>,
    server: Server,
    /// Whether rows of a statement are on their way.
    reading: bool,
}

/// What a session knows of its server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Server {
    /// MariaDB, and not MySQL.
    pub(crate) mariadb: bool,
    /// 10.11 is (10, 11).
    pub(crate) version: (u16, u16),
    /// The URL's database.
    pub(crate) database: Option<String>,
}

/// From where on a binlog is wanted.
pub(crate) enum LogFrom<'a> {
    /// An offset in a file.
    Place { file: &'a str, offset: u64 },
    /// MySQL: all transactions but these.
    Without(Vec<Sid<'static>>),
    /// MariaDB: those after the last one of each domain.
    After(&'a str),
}

impl Server {
    /// Whether it is at least this MariaDB, or at least this MySQL.
    pub(crate) fn since(&self, mariadb: (u16, u16), mysql: (u16, u16)) -> bool {
        self.version >= if self.mariadb { mariadb } else { mysql }
    }
}

impl Session {
    pub(super) fn new(conn: Conn, server: Server) -> Self {
        Self { conn: Some(conn), server, reading: false }
    }

    pub(super) fn set_server(&mut self, server: Server) {
        self.server = server;
    }

    /// What this session knows of its server.
    pub(crate) fn server(&self) -> &Server {
        &self.server
    }

    /// The rows of a query, each value as the server writes it.
    pub(crate) async fn rows(&mut self, sql: &str) -> Result<Vec<Row>> {
        Ok(self.query(sql).await?)
    }

    /// The same with parameters.
    pub(crate) async fn rows_with(&mut self, sql: &str, params: Vec<Value>) -> Result<Vec<Row>> {
        Ok(self.exec(sql, Params::Positional(params)).await?)
    }

    /// Runs a statement; returns how many rows it found to change.
    pub(crate) async fn run(&mut self, sql: &str) -> Result<u64> {
        self.query_drop(sql).await?;
        Ok(self.affected_rows())
    }

    /// The same with parameters.
    pub(crate) async fn run_with(&mut self, sql: &str, params: Vec<Value>) -> Result<u64> {
        self.exec_drop(sql, Params::Positional(params)).await?;
        Ok(self.affected_rows())
    }

    /// Turns the session into the server's binlog, as far as it goes now. The server takes us for a replica
    /// of this number, and hangs up on an older one that has the same.
    pub(crate) async fn binlog(mut self, number: u32, from: LogFrom<'_>) -> Result<BinlogStream> {
        // Otherwise MariaDB takes us for one that does not know its newer events, and leaves them out.
        // MySQL would say of each event that it leaves out where it was; once in a while is enough.
        self.run(if self.server.mariadb {
            "SET @mariadb_slave_capability = 4"
        } else {
            "SET @master_heartbeat_period = 1000000000, @source_heartbeat_period = 1000000000"
        })
        .await?;
        let request = BinlogStreamRequest::new(number).with_non_blocking();
        let request = match from {
            LogFrom::Place { file, offset } => request.with_filename(file.as_bytes()).with_pos(offset),
            LogFrom::Without(sids) => request.with_gtid().with_gtid_set(sids),
            LogFrom::After(last) => {
                // In the strict mode the server refuses to go on from a transaction that it does not have,
                // also where it has later ones.
                let state = literal(last);
                self.run(&format!("SET @slave_connect_state = {state}, @slave_gtid_strict_mode = 1")).await?;
                request
            }
        };
        let conn = self.conn.take().expect("there until it is dropped");
        Ok(conn.get_binlog_stream(request).await?)
    }

    /// Says whether rows are on their way: a session that is dropped then hangs up.
    pub(crate) fn is_reading(&mut self, reading: bool) {
        self.reading = reading;
    }
}

impl Deref for Session {
    type Target = Conn;

    fn deref(&self) -> &Conn {
        self.conn.as_ref().expect("there until it is dropped")
    }
}

impl DerefMut for Session {
    fn deref_mut(&mut self) -> &mut Conn {
        self.conn.as_mut().expect("there until it is dropped")
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(conn) = self.conn.take()
            && self.reading
        {
            // The client would first read all rows that nobody wants any more. Outside of the runtime it
            // cannot, and just hangs up.
            std::thread::spawn(move || drop(conn));
        }
    }
}

/// A text of a row; empty when it is NULL.
pub(crate) fn text(row: &Row, at: usize) -> String {
    match row.as_ref(at) {
        Some(Value::Bytes(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
        Some(Value::Int(number)) => number.to_string(),
        Some(Value::UInt(number)) => number.to_string(),
        _ => String::new(),
    }
}

/// A whole number of a row, if it is one.
pub(crate) fn integer(row: &Row, at: usize) -> Option<i64> {
    match row.as_ref(at)? {
        Value::Int(number) => Some(*number),
        Value::UInt(number) => i64::try_from(*number).ok(),
        Value::Bytes(bytes) => std::str::from_utf8(bytes).ok()?.parse().ok(),
        _ => None,
    }
}

/// A text as it stands in a statement; `sql_mode` is ours, so a backslash has its meaning.
pub(crate) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}
