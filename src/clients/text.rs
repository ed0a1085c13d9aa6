//! A few small tables of text in SQLite or Postgres, for state that several runners share.
//!
//! ```text
//! sqlite:   one connection, one thread at a time, WAL ─┐
//!                                                      ├─▶ the same statements, `$1` `$2` …, rows of text
//! postgres: one session, opened again when it ends ────┘
//! ```
//!
//! Each statement is a transaction of its own. After an error of [`execute`](TextDatabase::execute)
//! nobody knows whether it took effect: callers look, or repeat what does no harm twice.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::params_from_iter;
use tokio_postgres::types::{ToSql, Type};

use super::postgres::{self, Session};
use super::sqlite::{File, on_a_thread};
use crate::connection::Connection;
use crate::error::{Error, ErrorKind, Result};

/// How long to wait for SQLite's lock: many writers take turns, each for some milliseconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// A statement on a row that somebody holds for longer than this has to be looked into by a person.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(60);

/// A row, `None` for NULL.
pub(crate) type TextRow = Vec<Option<String>>;

/// A database that is asked in text and answers in text.
pub(crate) enum TextDatabase {
    Sqlite(Sqlite),
    Postgres(Postgres),
}

/// One connection, opened when first used.
pub(crate) struct Sqlite {
    file: File,
    database: Arc<Mutex<Option<rusqlite::Connection>>>,
}

/// One session, opened when first used and again when it ends.
pub(crate) struct Postgres {
    connection: Connection,
    session: tokio::sync::Mutex<Option<Arc<Session>>>,
}

impl TextDatabase {
    /// Schemes that [`new`](Self::new) takes.
    pub(crate) const SCHEMES: [&str; 3] = ["sqlite", "postgres", "postgresql"];

    /// The database of a URL. It is dialled when it is first asked.
    pub(crate) fn new(connection: &Connection) -> Result<Self> {
        match connection.scheme() {
            "sqlite" => Ok(Self::Sqlite(Sqlite { file: File::of(connection)?, database: Arc::default() })),
            "postgres" | "postgresql" => {
                let session = tokio::sync::Mutex::default();
                Ok(Self::Postgres(Postgres { connection: connection.clone(), session }))
            }
            other => Err(Error::new(ErrorKind::Config, format!("`{other}` is no database for shared state"))
                .hint(format!("known are {}", Self::SCHEMES.join(", ")))),
        }
    }

    /// The columns of a table, none if there is no such table.
    pub(crate) async fn columns(&self, table: &'static str) -> Result<Vec<String>> {
        let sql = match self {
            Self::Sqlite(sqlite) if !sqlite.file.exists() => return Ok(Vec::new()),
            Self::Sqlite(_) => "SELECT name FROM pragma_table_info($1)",
            Self::Postgres(_) => {
                "SELECT attname::text FROM pg_attribute \
                 WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped"
            }
        };
        let rows = self.query(sql, &[table]).await?;
        Ok(rows.into_iter().flatten().flatten().collect())
    }

    /// The rows of a query.
    pub(crate) async fn query(&self, sql: &'static str, params: &[&str]) -> Result<Vec<TextRow>> {
        match self {
            Self::Sqlite(sqlite) => sqlite.run(sql, params, query).await,
            Self::Postgres(postgres) => {
                let session = postgres.session().await?;
                let rows = postgres.finish(&session, session.query_typed(sql, &typed(params))).await?;
                let cells = |row: &tokio_postgres::Row| {
                    (0..row.len()).map(|i| row.try_get(i)).collect::<Result<TextRow, _>>()
                };
                Ok(rows.iter().map(cells).collect::<Result<_, _>>()?)
            }
        }
    }

    /// Runs a statement; returns how many rows it changed once that is durable.
    pub(crate) async fn execute(&self, sql: &'static str, params: &[&str]) -> Result<u64> {
        match self {
            Self::Sqlite(sqlite) => {
                let execute = |database: &rusqlite::Connection, sql: &str, params: Vec<String>| {
                    database.prepare_cached(sql)?.execute(params_from_iter(params)).map(|rows| rows as u64)
                };
                sqlite.run(sql, params, execute).await
            }
            Self::Postgres(postgres) => {
                let session = postgres.session().await?;
                postgres.finish(&session, session.execute_typed(sql, &typed(params))).await
            }
        }
    }
}

impl Sqlite {
    /// Runs work on the connection, on a thread that may wait.
    async fn run<T: Send + 'static>(
        &self,
        sql: &'static str,
        params: &[&str],
        work: impl FnOnce(&rusqlite::Connection, &str, Vec<String>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T> {
        let (file, database) = (self.file.clone(), self.database.clone());
        let params = params.iter().map(|&param| param.to_owned()).collect();
        let run = move || {
            let mut database = database.lock().unwrap_or_else(PoisonError::into_inner);
            let open = match &mut *database {
                Some(open) => open,
                none => none.insert(open_sqlite(&file)?),
            };
            // SQLite numbers its parameters with question marks.
            work(open, &sql.replace('$', "?"), params).map_err(|error| file.error(error))
        };
        on_a_thread(run).await
    }
}

impl Postgres {
    /// The session. One opens it, the others wait for that; statements then run beside each other.
    async fn session(&self) -> Result<Arc<Session>> {
        let mut session = self.session.lock().await;
        match &*session {
            Some(open) if !open.is_closed() => Ok(open.clone()),
            _ => Ok(session.insert(Arc::new(postgres::connect(&self.connection).await?)).clone()),
        }
    }

    /// Waits for a statement. After a lost answer nobody knows what happened to the session: the next
    /// statement gets a new one.
    async fn finish<T>(
        &self,
        used: &Arc<Session>,
        work: impl Future<Output = Result<T, tokio_postgres::Error>> + Send,
    ) -> Result<T> {
        let failed = match tokio::time::timeout(STATEMENT_TIMEOUT, work).await {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(error)) => Error::from(error),
            Err(_) => Error::new(ErrorKind::Transient, "the database did not answer in time"),
        };
        if failed.kind() == ErrorKind::Transient {
            let mut session = self.session.lock().await;
            if session.as_ref().is_some_and(|current| Arc::ptr_eq(current, used)) {
                *session = None;
            }
        }
        Err(failed.with("connection", self.connection.name()))
    }
}

fn open_sqlite(file: &File) -> Result<rusqlite::Connection> {
    file.make_folder()?;
    let database = file.open_or_create()?;
    database.busy_timeout(PATIENCE).map_err(|error| file.error(error))?;
    Ok(database)
}

fn query(database: &rusqlite::Connection, sql: &str, params: Vec<String>) -> rusqlite::Result<Vec<TextRow>> {
    let mut statement = database.prepare_cached(sql)?;
    let columns = statement.column_count();
    statement.query_map(params_from_iter(params), |row| (0..columns).map(|i| row.get(i)).collect())?.collect()
}

/// Parameters with their type said: no statement is prepared by name, so a pooler may be in between.
fn typed<'a>(params: &'a [&'a str]) -> Vec<(&'a (dyn ToSql + Sync), Type)> {
    params.iter().map(|param| (param as &(dyn ToSql + Sync), Type::TEXT)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn statements_speak_text() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", dir.path().join("new folder/state.db").display());
        let database = TextDatabase::new(&Connection::parse("state", &url).unwrap()).unwrap();
        assert!(database.columns("t").await.unwrap().is_empty());
        assert!(!dir.path().join("new folder").exists(), "a look makes nothing");
        database.execute("CREATE TABLE t (a TEXT, b TEXT)", &[]).await.unwrap();
        assert_eq!(database.columns("t").await.unwrap(), ["a", "b"]);
        let insert = "INSERT INTO t (a, b) VALUES ($1, NULLIF($2, ''))";
        assert_eq!(database.execute(insert, &["it's", ""]).await.unwrap(), 1);
        let rows = database.query("SELECT a, b FROM t WHERE a = $1", &["it's"]).await.unwrap();
        assert_eq!(rows, [[Some("it's".to_owned()), None]]);
        let unknown = Connection::parse("state", "mysql://h/d").unwrap();
        assert_eq!(TextDatabase::new(&unknown).err().unwrap().kind(), ErrorKind::Config);
    }
}
