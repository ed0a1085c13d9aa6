//! An open session, and how statements are written for it.

use std::ops::{Deref, DerefMut};

use tiberius::{Row, ToSql};
use tokio::net::TcpStream;
use tokio_util::compat::Compat;

use crate::error::Result;

/// The client below a session.
pub(crate) type Client = tiberius::Client<Compat<TcpStream>>;

/// An open session. It dereferences to the client, for bulk loads and for rows as a stream.
#[derive(Debug)]
pub(crate) struct Session {
    pub(super) client: Client,
    pub(super) server: Server,
}

/// What a session knows of its server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Server {
    /// 13 is SQL Server 2016, 16 is 2022. Azure SQL Database says 12 and knows more.
    pub(crate) version: u32,
    /// `EngineEdition`: 5 is Azure SQL Database, 8 a managed instance.
    pub(crate) edition: i32,
    /// The database of this session.
    pub(crate) database: String,
    /// The server process of this session.
    pub(crate) pid: i32,
}

impl Server {
    /// Whether the server understands what version 2016 brought.
    pub(crate) fn is_2016(&self) -> bool {
        self.version >= 13 || matches!(self.edition, 5 | 6 | 8 | 9 | 11 | 12)
    }
}

/// How a transaction sees the work of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isolation {
    /// What is committed when a statement reads it.
    ReadCommitted,
    /// The state at the first read. The database must allow it.
    Snapshot,
}

impl Session {
    /// What this session knows of its server.
    pub(crate) fn server(&self) -> &Server {
        &self.server
    }

    /// Runs a batch as it stands, without parameters, and throws its rows away. Whatever must outlive
    /// the statement belongs here: temporary tables, `SET`, transactions.
    pub(crate) async fn batch(&mut self, sql: &str) -> Result<()> {
        self.client.simple_query(sql).await?.into_results().await?;
        Ok(())
    }

    /// Runs one statement with parameters `@P1`, `@P2`, … and says how many rows it touched.
    pub(crate) async fn run(&mut self, sql: &str, params: &[&dyn ToSql]) -> Result<u64> {
        Ok(self.client.execute(sql, params).await?.total())
    }

    /// The rows of the first result of a batch without parameters: for what is small.
    pub(crate) async fn rows(&mut self, sql: &str) -> Result<Vec<Row>> {
        Ok(self.client.simple_query(sql).await?.into_first_result().await?)
    }

    /// The rows of the first result of a statement with parameters: for what is small.
    pub(crate) async fn rows_with(&mut self, sql: &str, params: &[&dyn ToSql]) -> Result<Vec<Row>> {
        Ok(self.client.query(sql, params).await?.into_first_result().await?)
    }

    /// Begins a transaction. Dropping the session rolls it back.
    pub(crate) async fn begin(&mut self, isolation: Isolation) -> Result<()> {
        let level = match isolation {
            Isolation::ReadCommitted => "READ COMMITTED",
            Isolation::Snapshot => "SNAPSHOT",
        };
        self.batch(&format!("SET TRANSACTION ISOLATION LEVEL {level}; BEGIN TRANSACTION")).await
    }

    /// Ends the transaction and keeps its work.
    pub(crate) async fn commit(&mut self) -> Result<()> {
        self.batch("COMMIT TRANSACTION").await
    }

    /// Ends the transaction, if there still is one, and undoes its work.
    pub(crate) async fn rollback(&mut self) -> Result<()> {
        self.batch("IF @@TRANCOUNT > 0 ROLLBACK TRANSACTION").await
    }
}

impl Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Session {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

/// A text as a literal.
pub(crate) fn literal(text: &str) -> String {
    format!("N'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_quoted() {
        assert_eq!(literal("it's"), "N'it''s'");
    }
}
