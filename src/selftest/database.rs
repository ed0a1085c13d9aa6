//! The databases of the test, used as an application would: plain statements, nothing of the connectors.

use mysql_async::consts::ColumnType;
use rusqlite::types::ValueRef;
use tokio::sync::Mutex;
use tokio_postgres::SimpleQueryMessage;

use super::model::Column;
use super::place::Way;
use super::values::{Dialect, Kind, Value};
use crate::clients::{mysql, postgres, sqlite};
use crate::connection::Connection;
use crate::error::{Error, ErrorKind, Result};
use crate::target::{VALID_FROM, VALID_TO};

/// A session with one of the databases.
pub(super) enum Database {
    Sqlite { file: sqlite::File, session: rusqlite::Connection },
    Postgres { session: Box<postgres::Session>, schema: String },
    Mysql { session: Box<Mutex<mysql::Session>>, schema: String },
}

impl Database {
    /// Opens a database; tables will be in `schema` where there are schemas.
    pub(super) async fn open(place: &Connection, schema: &str) -> Result<Self> {
        match place.scheme() {
            "sqlite" => {
                let file = sqlite::File::of(place)?;
                let session = file.open_or_create()?;
                Ok(Self::Sqlite { file, session })
            }
            "postgres" | "postgresql" => {
                let session = postgres::connect(place).await?;
                // Not by the name that frazil's own readers have: this one writes.
                let name = "SET application_name = 'frazil selftest'";
                session.batch_execute(name).await.map_err(|error| postgres::translate(&error))?;
                Ok(Self::Postgres { session: Box::new(session), schema: schema.to_owned() })
            }
            "mysql" | "mariadb" => {
                let mut session = mysql::connect(place).await?;
                session.run("SET time_zone = '+00:00'").await?;
                Ok(Self::Mysql { session: Box::new(Mutex::new(session)), schema: schema.to_owned() })
            }
            other => Err(Error::new(ErrorKind::Config, format!("the test cannot use a `{other}` database"))
                .hint("give it a SQLite file, a Postgres or a MariaDB, or leave it to make its own")),
        }
    }

    pub(super) fn dialect(&self) -> Dialect {
        match self {
            Self::Sqlite { .. } => Dialect::Sqlite,
            Self::Postgres { .. } => Dialect::Postgres,
            Self::Mysql { .. } => Dialect::Mysql,
        }
    }

    /// How the server lets changes be found, deletes among them.
    pub(super) async fn best_way(&self) -> Result<Way> {
        let log = match self {
            Self::Sqlite { .. } => return Ok(Way::Trigger),
            Self::Postgres { .. } => {
                "SELECT current_setting('wal_level') = 'logical' AND (rolsuper OR rolreplication) \
                 FROM pg_roles WHERE rolname = current_user"
            }
            Self::Mysql { .. } => {
                "SELECT @@GLOBAL.log_bin = 1 AND @@GLOBAL.binlog_format = 'ROW' AND version() LIKE '%MariaDB%' \
                 AND EXISTS (SELECT 1 FROM information_schema.USER_PRIVILEGES \
                             WHERE PRIVILEGE_TYPE IN ('REPLICATION SLAVE', 'SUPER'))"
            }
        };
        let has = self.one(log).await?;
        Ok(if matches!(has.as_deref(), Some("t" | "1")) { Way::Log } else { Way::Whole })
    }

    /// A table as statements name it.
    pub(super) fn name(&self, table: &str) -> String {
        match self {
            Self::Sqlite { .. } => table.to_owned(),
            Self::Postgres { schema, .. } => format!("\"{schema}\".{table}"),
            Self::Mysql { schema, .. } => format!("`{schema}`.{table}"),
        }
    }

    /// A column as queries name it.
    fn quoted(&self, column: &str) -> String {
        match self {
            Self::Sqlite { .. } | Self::Postgres { .. } => format!("\"{column}\""),
            Self::Mysql { .. } => format!("`{column}`"),
        }
    }

    /// Runs statements.
    pub(super) async fn run(&self, sql: &str) -> Result<()> {
        match self {
            Self::Sqlite { file, session } => session.execute_batch(sql).map_err(|error| file.error(error)),
            Self::Postgres { session, .. } => {
                session.batch_execute(sql).await.map_err(|error| postgres::translate(&error))
            }
            Self::Mysql { session, .. } => session.lock().await.run(sql).await.map(drop),
        }
    }

    /// Makes the schema, anew.
    pub(super) async fn make_schema(&self) -> Result<()> {
        match self {
            Self::Sqlite { .. } => Ok(()),
            Self::Postgres { schema, .. } => self.run(&format!("CREATE SCHEMA \"{schema}\"")).await,
            // Texts are compared byte by byte, as elsewhere.
            Self::Mysql { schema, .. } => {
                let text = "CHARACTER SET utf8mb4 COLLATE utf8mb4_bin";
                self.run(&format!("CREATE DATABASE `{schema}` {text}")).await
            }
        }
    }

    /// Removes the schema and all that is in it.
    pub(super) async fn drop_schema(&self) -> Result<()> {
        match self {
            Self::Sqlite { .. } => Ok(()),
            Self::Postgres { schema, .. } => {
                self.run(&format!("DROP SCHEMA IF EXISTS \"{schema}\" CASCADE")).await
            }
            Self::Mysql { schema, .. } => self.run(&format!("DROP DATABASE IF EXISTS `{schema}`")).await,
        }
    }

    /// Begins a transaction that will write, and says when that was, in microseconds: who takes the time
    /// first and waits for the lock then, writes rows that are older than they look.
    pub(super) async fn begin(&self) -> Result<i64> {
        match self {
            Self::Sqlite { .. } => {
                self.run("BEGIN IMMEDIATE").await?;
                Ok(chrono::Utc::now().timestamp_micros())
            }
            Self::Postgres { .. } => {
                self.run("BEGIN").await?;
                let now = "SELECT (extract(epoch FROM now()) * 1000000)::bigint";
                number(self.one(now).await?)
            }
            Self::Mysql { .. } => {
                // Without a snapshot the server's transaction would begin with its first row.
                self.run("START TRANSACTION WITH CONSISTENT SNAPSHOT").await?;
                let now = "SELECT CAST(UNIX_TIMESTAMP(NOW(6)) * 1000000 AS SIGNED)";
                number(self.one(now).await?)
            }
        }
    }

    /// The first value of a query's only row.
    async fn one(&self, sql: &str) -> Result<Value> {
        Ok(self.texts(sql).await?.pop().and_then(|mut row| row.pop().flatten()))
    }

    /// All rows of a table that meet a condition, in no order: their values in the order of the columns.
    pub(super) async fn rows(
        &self,
        table: &str,
        columns: &[Column],
        only: Option<&str>,
    ) -> Result<Vec<Vec<Value>>> {
        let names: Vec<String> = columns.iter().map(|column| self.quoted(&column.name)).collect();
        let only = only.map(|only| format!(" WHERE {only}")).unwrap_or_default();
        let rows = self.texts(&format!("SELECT {} FROM {table}{only}", names.join(", "))).await?;
        let canonical = |(value, column): (Value, &Column)| value.map(|text| column.kind.canonical(&text));
        Ok(rows.into_iter().map(|row| row.into_iter().zip(columns).map(canonical).collect()).collect())
    }

    /// How many versions of rows were valid at the same time as another one of their key.
    pub(super) async fn overlaps(&self, table: &str, key: &[&str]) -> Result<u64> {
        let same = |name: &&str| format!("a.{0} = b.{0}", self.quoted(name));
        let same: Vec<String> = key.iter().map(same).collect();
        let sql = format!(
            "SELECT count(*) FROM {table} a JOIN {table} b ON {} AND a.{VALID_FROM} < b.{VALID_FROM} \
             WHERE a.{VALID_TO} IS NULL OR a.{VALID_TO} > b.{VALID_FROM}",
            same.join(" AND ")
        );
        Ok(number(self.one(&sql).await?)?.unsigned_abs())
    }

    async fn texts(&self, sql: &str) -> Result<Vec<Vec<Value>>> {
        match self {
            Self::Sqlite { file, session } => sqlite_texts(session, sql).map_err(|error| file.error(error)),
            Self::Postgres { session, .. } => {
                let said = session.simple_query(sql).await.map_err(|error| postgres::translate(&error))?;
                let row = |message: SimpleQueryMessage| match message {
                    SimpleQueryMessage::Row(row) => {
                        Some((0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect())
                    }
                    _ => None,
                };
                Ok(said.into_iter().filter_map(row).collect())
            }
            Self::Mysql { session, .. } => {
                Ok(session.lock().await.rows(sql).await?.iter().map(mysql_texts).collect())
            }
        }
    }

    /// Ends the sessions that hold a lock in our schema or name it in a statement, this one excepted:
    /// frazil's. Says how many.
    pub(super) async fn cut(&self) -> Result<usize> {
        match self {
            Self::Sqlite { .. } => Ok(0),
            Self::Postgres { schema, .. } => {
                let sql = format!(
                    "SELECT pg_terminate_backend(pid) FROM (SELECT DISTINCT l.pid FROM pg_locks l \
                     JOIN pg_class c ON c.oid = l.relation JOIN pg_namespace n ON n.oid = c.relnamespace \
                     JOIN pg_stat_activity a ON a.pid = l.pid \
                     WHERE n.nspname = '{schema}' AND a.application_name <> 'frazil selftest' \
                     AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())) ours"
                );
                Ok(self.texts(&sql).await?.len())
            }
            Self::Mysql { schema, .. } => {
                let sql = format!(
                    "SELECT ID FROM information_schema.PROCESSLIST \
                     WHERE ID <> CONNECTION_ID() AND INFO LIKE '%{}%'",
                    schema.replace('_', "\\_")
                );
                let found = self.texts(&sql).await?;
                for id in found.iter().flatten().flatten() {
                    // It may have gone by itself.
                    let _ = self.run(&format!("KILL {id}")).await;
                }
                Ok(found.len())
            }
        }
    }
}

fn number(text: Value) -> Result<i64> {
    let silent = || Error::new(ErrorKind::Internal, "the server answers without a number");
    text.and_then(|text| text.parse().ok()).ok_or_else(silent)
}

/// Values as the server writes them, bytes in hexadecimal digits.
fn mysql_texts(row: &mysql_async::Row) -> Vec<Value> {
    /// The character set of what has none.
    const BINARY: u16 = 63;
    let columns = row.columns_ref().iter().enumerate();
    columns
        .map(|(at, column)| {
            let blob =
                column.column_type() == ColumnType::MYSQL_TYPE_BLOB && column.character_set() == BINARY;
            match row.as_ref(at)? {
                mysql_async::Value::NULL => None,
                mysql_async::Value::Bytes(bytes) if blob => {
                    Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
                }
                _ => Some(mysql::text(row, at)),
            }
        })
        .collect()
}

fn sqlite_texts(session: &rusqlite::Connection, sql: &str) -> rusqlite::Result<Vec<Vec<Value>>> {
    let mut statement = session.prepare(sql)?;
    let columns = statement.column_count();
    let text = |value: ValueRef<'_>| match value {
        ValueRef::Null => None,
        ValueRef::Integer(value) => Some(value.to_string()),
        ValueRef::Real(value) => Some(value.to_string()),
        ValueRef::Text(value) => Some(String::from_utf8_lossy(value).into_owned()),
        ValueRef::Blob(value) => Some(value.iter().map(|byte| format!("{byte:02x}")).collect()),
    };
    let rows = statement.query_map([], |row| (0..columns).map(|at| Ok(text(row.get_ref(at)?))).collect())?;
    rows.collect()
}

/// How the lake's values become the texts that are compared: by the column's type, whatever its history.
pub(super) fn kind_of(data_type: &arrow::datatypes::DataType) -> Kind {
    use arrow::datatypes::DataType;
    match data_type {
        DataType::Boolean => Kind::Bool,
        DataType::Decimal128(..) => Kind::Decimal,
        DataType::Float32 | DataType::Float64 => Kind::Double,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => Kind::Bytes,
        DataType::Timestamp(..) => Kind::Moment,
        DataType::Date32 => Kind::Date,
        DataType::Int32 | DataType::Int64 => Kind::Long,
        _ => Kind::Text,
    }
}
