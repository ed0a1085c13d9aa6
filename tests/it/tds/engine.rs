//! Tables behind the responder: SQLite, with the statements translated by `translate.rs`.
//!
//! Rows, keys, NULLs, transactions and their end with the connection are real; types are kept beside,
//! and values as texts that are equal when the values are. Locks are SQLite's one for all, so what
//! waits here for whom says nothing about SQL Server.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use rusqlite::types::Value as Stored;
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::translate::{Token, find, inside, quoted, split, sqlite, table_name, text_of, tokens};
use super::wire::{Column, ServerError};
use super::{Answer, Backend, Request, Type, Value};

/// How long a writer waits for another: longer than any load of a test, on a machine however busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// One database.
#[derive(Clone)]
pub(crate) struct Engine {
    folder: Arc<TempDir>,
}

/// A table as the server describes it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Table {
    pub(crate) columns: Vec<TableColumn>,
    /// Unique keys; the primary one first.
    pub(crate) keys: Vec<Key>,
    /// Rows have triggers, the table is in an indexed view, an index is filtered.
    pub(crate) hazards: Vec<String>,
    /// Change Tracking is on.
    pub(crate) tracked: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TableColumn {
    pub(crate) name: String,
    pub(crate) of: String,
    pub(crate) not_null: bool,
    pub(crate) identity: bool,
    pub(crate) computed: bool,
    pub(crate) default: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Key {
    pub(crate) name: String,
    pub(crate) columns: Vec<String>,
    pub(crate) primary: bool,
}

impl Engine {
    pub(crate) fn new() -> Self {
        let engine = Self { folder: Arc::new(tempfile::tempdir().unwrap()) };
        let connection = engine.open();
        connection
            .execute_batch(
                "PRAGMA journal_mode = WAL;
                 CREATE TABLE described (name TEXT PRIMARY KEY, described TEXT NOT NULL);
                 CREATE TABLE schemas (name TEXT PRIMARY KEY);
                 CREATE TABLE \"sys.changes\" (mark);
                 INSERT INTO schemas VALUES ('dbo'), ('sys');",
            )
            .unwrap();
        let mut session = Connected {
            connection,
            schemas: Vec::new(),
            identity: None,
            abort: false,
            snapshot: false,
            temporary: BTreeMap::new(),
        };
        session.describe();
        engine
    }

    fn open(&self) -> Connection {
        let connection = Connection::open(self.folder.path().join("engine.db")).unwrap();
        connection.busy_timeout(PATIENCE).unwrap();
        connection.execute_batch("PRAGMA synchronous = OFF").unwrap();
        connection
    }

    /// For threads that end with the process: they do not keep the tables.
    pub(crate) fn weak(&self) -> impl Fn() -> Option<Self> + Send + Sync + 'static {
        let folder: Weak<TempDir> = Arc::downgrade(&self.folder);
        move || folder.upgrade().map(|folder| Self { folder })
    }

    pub(crate) fn connect(&self) -> Connected {
        let connection = self.open();
        let mut connected = Connected {
            connection,
            schemas: Vec::new(),
            identity: None,
            abort: false,
            snapshot: false,
            temporary: BTreeMap::new(),
        };
        connected.schemas = connected.schema_names();
        connected
    }

    /// Runs statements as somebody else, and answers with the rows of the last as text.
    pub(crate) fn run(&self, sql: &str) -> Vec<String> {
        let mut rows = Vec::new();
        for answer in self.connect().run(&Request { sql: sql.to_owned(), parameters: Vec::new() }) {
            match answer {
                Answer::Rows(_, values) => {
                    let line =
                        |row: &Vec<Value>| row.iter().map(Value::to_string).collect::<Vec<_>>().join("|");
                    rows = values.iter().map(line).collect();
                }
                Answer::Error(error) => panic!("{sql}: {error:?}"),
                _ => {}
            }
        }
        rows
    }

    /// Runs statements of SQLite's own on the tables behind the server: triggers.
    pub(crate) fn behind(&self, sql: &str) {
        self.open().execute_batch(sql).unwrap();
    }

    /// A table's description, by its full name.
    pub(crate) fn table(&self, name: &str) -> Option<Table> {
        self.connect().table(name)
    }

    /// Changes a table's description: identities, computed columns and hazards have no other way in.
    pub(crate) fn describe(&self, name: &str, change: impl FnOnce(&mut Table)) {
        let mut connected = self.connect();
        let mut table = connected.table(name).unwrap();
        change(&mut table);
        connected.note(name, &table);
        connected.describe();
    }
}

/// One session.
pub(crate) struct Connected {
    connection: Connection,
    schemas: Vec<String>,
    /// The table whose identity takes values.
    identity: Option<String>,
    /// `XACT_ABORT`: an error ends the transaction, and not its statement only.
    abort: bool,
    snapshot: bool,
    temporary: BTreeMap<String, Table>,
}

type Outcome = Result<Answer, ServerError>;

impl Backend for Connected {
    fn run(&mut self, request: &Request) -> Vec<Answer> {
        let words = tokens(&request.sql);
        let mut answers = Vec::new();
        self.schemas = self.schema_names();
        for statement in split(&words, ";") {
            if statement.is_empty() {
                continue;
            }
            let within = !self.connection.is_autocommit();
            match self.statement(statement, &request.parameters) {
                Ok(answer) => answers.push(answer),
                Err(error) => {
                    if self.abort && !self.connection.is_autocommit() {
                        self.connection.execute_batch("ROLLBACK").unwrap();
                    }
                    if within && self.connection.is_autocommit() {
                        answers.push(Answer::RolledBack);
                    }
                    answers.push(Answer::Error(error));
                    break;
                }
            }
        }
        answers
    }

    fn bulk(&mut self, table: &str, columns: &[Column], rows: Vec<Vec<Value>>) -> Result<u64, ServerError> {
        let (name, _) = table_name(&tokens(table)).expect("a table's name");
        let names: Vec<_> = columns.iter().map(|column| quoted(&column.name)).collect();
        let places = vec!["?"; names.len()].join(", ");
        let sql = format!("INSERT INTO {} ({}) VALUES ({places})", quoted(&name), names.join(", "));
        let mut insert = self.connection.prepare(&sql).map_err(|error| server_error(&error, &sql))?;
        let count = rows.len() as u64;
        for row in rows {
            insert
                .execute(rusqlite::params_from_iter(row.iter().map(stored)))
                .map_err(|error| server_error(&error, &sql))?;
        }
        Ok(count)
    }
}

impl Connected {
    fn statement(&mut self, words: &[Token], parameters: &[(String, Value)]) -> Outcome {
        let starts = |prefix: &[&str]| {
            prefix
                .iter()
                .enumerate()
                .all(|(index, word)| words.get(index).is_some_and(|token| token.is(word)))
        };
        if starts(&["SET"]) {
            return self.set(words);
        }
        if starts(&["BEGIN"]) {
            self.execute(if self.snapshot { "BEGIN DEFERRED" } else { "BEGIN IMMEDIATE" }, &[])?;
            return Ok(Answer::Began);
        }
        if starts(&["SAVE", "TRANSACTION"]) {
            let name = quoted(words[2].name().expect("a savepoint's name"));
            self.execute(&format!("SAVEPOINT {name}"), &[])?;
            return Ok(Answer::Count(0));
        }
        if starts(&["ROLLBACK", "TRANSACTION"])
            && let Some(name) = words.get(2).and_then(Token::name)
        {
            let back = self.execute(&format!("ROLLBACK TO {}", quoted(name)), &[]);
            return back.map(Answer::Count).map_err(|_| {
                ServerError::new(
                    3903,
                    "The ROLLBACK TRANSACTION request has no corresponding BEGIN TRANSACTION.",
                )
            });
        }
        if starts(&["COMMIT"]) {
            self.execute("COMMIT", &[])?;
            return Ok(Answer::Committed);
        }
        if starts(&["IF", "@@TRANCOUNT"]) && words.iter().any(|word| word.is("COMMIT")) {
            if self.connection.is_autocommit() {
                return Ok(Answer::Count(0));
            }
            self.execute("COMMIT", &[])?;
            return Ok(Answer::Committed);
        }
        if starts(&["ROLLBACK"]) || starts(&["IF", "@@TRANCOUNT"]) {
            if !self.connection.is_autocommit() {
                self.execute("ROLLBACK", &[])?;
                return Ok(Answer::RolledBack);
            }
            return Ok(Answer::Count(0));
        }
        if starts(&["MERGE"]) {
            return self.merge(words, parameters);
        }
        if starts(&["UPDATE"]) && find(words, "FROM").is_some() {
            return self.update_from(words, parameters);
        }
        if starts(&["DELETE"]) {
            return self.delete(words, parameters);
        }
        if starts(&["INSERT"]) {
            self.check_insert(words)?;
        }
        if starts(&["SELECT"]) || starts(&["WITH"]) {
            return self.select(words, parameters);
        }
        if starts(&["INSERT"]) || starts(&["UPDATE"]) {
            let sql = sqlite(words, &self.schemas);
            return Ok(Answer::Count(self.execute(&sql, parameters)?));
        }
        let schemas = self.schemas.clone();
        super::schema::change(self, words, &schemas)?;
        Ok(Answer::Count(0))
    }

    fn set(&mut self, words: &[Token]) -> Outcome {
        if words.get(1).is_some_and(|word| word.is("IDENTITY_INSERT")) {
            let (table, length) = table_name(&words[2..]).expect("a table's name");
            self.identity = words[2 + length].is("ON").then_some(table);
        }
        if words.get(1).is_some_and(|word| word.is("XACT_ABORT")) {
            self.abort = words[2].is("ON");
        }
        if words.get(1).is_some_and(|word| word.is("TRANSACTION")) {
            self.snapshot = words.iter().any(|word| word.is("SNAPSHOT"));
        }
        Ok(Answer::Count(0))
    }

    /// `MERGE INTO t AS t USING s AS s ON … WHEN … THEN …`, as what its branches do.
    fn merge(&mut self, words: &[Token], parameters: &[(String, Value)]) -> Outcome {
        let using = find(words, "USING").expect("USING");
        let on = find(words, "ON").expect("ON");
        let (target, _) = table_name(&words[2..using]).expect("a table's name");
        let (source, _) = table_name(&words[using + 1..on]).expect("a table's name");
        let (target, source) = (quoted(&target), quoted(&source));
        let branches = split(&words[on + 1..], "WHEN");
        let on = sqlite(branches[0], &self.schemas);
        let joined = format!("{target} AS t INNER JOIN {source} AS s ON {on}");
        let twice = format!("SELECT 1 FROM {joined} GROUP BY t.rowid HAVING count(*) > 1");
        if self.connection.prepare(&twice).and_then(|mut query| query.exists([])).unwrap() {
            return Err(ServerError::new(
                8672,
                "The MERGE statement attempted to update the same row twice.",
            ));
        }
        let mut count = 0;
        let mut inserts = Vec::new();
        for branch in &branches[1..] {
            let then = find(branch, "THEN").expect("THEN");
            let and = find(&branch[..then], "AND");
            let condition =
                and.map_or("1 = 1".to_owned(), |and| sqlite(&branch[and + 1..then], &self.schemas));
            let action = &branch[then + 1..];
            if action[0].is("DELETE") {
                let sql = format!(
                    "DELETE FROM {target} WHERE rowid IN (SELECT t.rowid FROM {joined} WHERE {condition})"
                );
                count += self.execute(&sql, parameters)?;
            } else if action[0].is("UPDATE") {
                let sets = sqlite(&action[2..], &self.schemas);
                let sql = format!(
                    "UPDATE {target} AS t SET {sets} FROM {source} AS s WHERE ({on}) AND ({condition})"
                );
                count += self.execute(&sql, parameters)?;
            } else {
                self.check_insert(&[&words[..using], &action[1..]].concat())?;
                let (columns, after) = inside(action, 1);
                let (values, _) = inside(action, after + 1);
                let (columns, values) = (sqlite(columns, &self.schemas), sqlite(values, &self.schemas));
                inserts.push(format!(
                    "INSERT INTO {target} ({columns}) SELECT {values} FROM {source} AS s
                     WHERE ({condition}) AND NOT EXISTS (SELECT 1 FROM {target} AS t WHERE {on})"
                ));
            }
        }
        for insert in inserts {
            count += self.execute(&insert, parameters)?;
        }
        Ok(Answer::Count(count))
    }

    /// `UPDATE t SET … FROM [a].[b] AS t INNER JOIN s AS s ON … WHERE …`.
    fn update_from(&mut self, words: &[Token], parameters: &[(String, Value)]) -> Outcome {
        let from = find(words, "FROM").expect("FROM");
        let sets = sqlite(&words[3..from], &self.schemas);
        let (target, _) = table_name(&words[from + 1..]).expect("a table's name");
        let inner = find(words, "INNER").expect("INNER JOIN");
        let on = find(words, "ON").expect("ON");
        let source = sqlite(&words[inner + 2..on], &self.schemas);
        let end = find(words, "WHERE").unwrap_or(words.len());
        let joined = sqlite(&words[on + 1..end], &self.schemas);
        let condition =
            words.get(end + 1..).map_or("1 = 1".to_owned(), |condition| sqlite(condition, &self.schemas));
        let sql = format!(
            "UPDATE {} AS t SET {sets} FROM {source} WHERE ({joined}) AND ({condition})",
            quoted(&target)
        );
        Ok(Answer::Count(self.execute(&sql, parameters)?))
    }

    /// `DELETE FROM [a].[b] …`, `DELETE t FROM [a].[b] AS t …`.
    fn delete(&mut self, words: &[Token], parameters: &[(String, Value)]) -> Outcome {
        let from = find(words, "FROM").expect("FROM");
        let sql = if from == 1 {
            sqlite(words, &self.schemas)
        } else {
            let (target, _) = table_name(&words[from + 1..]).expect("a table's name");
            let rest = sqlite(&words[from + 1..], &self.schemas);
            format!("DELETE FROM {} WHERE rowid IN (SELECT t.rowid FROM {rest})", quoted(&target))
        };
        Ok(Answer::Count(self.execute(&sql, parameters)?))
    }

    /// What SQL Server refuses to be given: values for computed columns, and for identities.
    fn check_insert(&self, words: &[Token]) -> Result<(), ServerError> {
        let start = words.iter().position(|word| word.is("INTO")).map_or(1, |into| into + 1);
        let Some((name, _)) = table_name(&words[start..]) else { return Ok(()) };
        let Some(open) = words.iter().rposition(|word| word.is("VALUES") || word.is("SELECT")) else {
            return Ok(());
        };
        let Some(table) = self.table(&name) else { return Ok(()) };
        let listed: Vec<&str> = words[start..open].iter().filter_map(Token::name).collect();
        for column in table.columns.iter().filter(|column| listed.contains(&column.name.as_str())) {
            if column.computed {
                return Err(ServerError::new(271, "The column cannot be modified because it is computed."));
            }
            if column.identity && self.identity.as_deref() != Some(name.as_str()) {
                return Err(ServerError::new(544, "Cannot insert explicit value for identity column."));
            }
        }
        Ok(())
    }

    fn select(&mut self, words: &[Token], parameters: &[(String, Value)]) -> Outcome {
        let sql = sqlite(words, &self.schemas);
        let end = find(words, "FROM").unwrap_or(words.len());
        // Types that the statement names itself.
        let said: Vec<Option<Type>> = split(&words[1..end], ",").into_iter().map(said_type).collect();
        let mut query = self.connection.prepare(&sql).map_err(|error| server_error(&error, &sql))?;
        bind(&mut query, parameters)?;
        let declared: Vec<(String, Option<Type>)> = query
            .columns()
            .map(|column| (column.name().to_owned(), column.decl_type().and_then(declared)))
            .collect();
        let mut found: Vec<Vec<Stored>> = Vec::new();
        let mut rows = query.raw_query();
        while let Some(row) = rows.next().map_err(|error| server_error(&error, &sql))? {
            found.push((0..declared.len()).map(|index| row.get_unwrap(index)).collect());
        }
        let columns: Vec<Column> = declared
            .into_iter()
            .enumerate()
            .map(|(index, (name, of))| {
                let of = said.get(index).copied().flatten().or(of);
                let first = found.iter().map(|row| &row[index]).find(|value| **value != Stored::Null);
                // `ROW_NUMBER` is a bigint, and all other numbers that nothing declares are small.
                let of = match of.unwrap_or_else(|| guess(first)) {
                    Type::Int if sql.contains("ROW_NUMBER") => Type::BigInt,
                    of => of,
                };
                Column { name, of }
            })
            .collect();
        let value = |(column, stored): (&Column, &Stored)| loaded(column.of, stored);
        let rows = found.iter().map(|row| columns.iter().zip(row).map(value).collect()).collect();
        Ok(Answer::Rows(columns, rows))
    }

    pub(super) fn execute(&self, sql: &str, parameters: &[(String, Value)]) -> Result<u64, ServerError> {
        let mut statement = self.connection.prepare(sql).map_err(|error| server_error(&error, sql))?;
        bind(&mut statement, parameters)?;
        statement.raw_execute().map(|count| count as u64).map_err(|error| server_error(&error, sql))
    }

    fn schema_names(&self) -> Vec<String> {
        let mut query = self.connection.prepare_cached("SELECT name FROM schemas").unwrap();
        query.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    }

    pub(super) fn table(&self, name: &str) -> Option<Table> {
        if let Some(table) = self.temporary.get(name) {
            return Some(table.clone());
        }
        let text: String = self
            .connection
            .query_row("SELECT described FROM described WHERE name = ?1", [name], |row| row.get(0))
            .ok()?;
        serde_json::from_str(&text).ok()
    }

    pub(super) fn tables(&self) -> Vec<(String, Table)> {
        let mut query =
            self.connection.prepare("SELECT name, described FROM described ORDER BY rowid").unwrap();
        let rows = query.query_map([], |row| Ok((row.get(0)?, row.get::<_, String>(1)?))).unwrap();
        rows.map(Result::unwrap).map(|(name, text)| (name, serde_json::from_str(&text).unwrap())).collect()
    }

    pub(super) fn note(&mut self, name: &str, table: &Table) {
        if name.starts_with('#') {
            self.temporary.insert(name.to_owned(), table.clone());
            return;
        }
        let text = serde_json::to_string(table).unwrap();
        self.connection
            .execute(
                "INSERT INTO described VALUES (?1, ?2) ON CONFLICT DO UPDATE SET described = ?2",
                params![name, text],
            )
            .unwrap();
    }

    pub(super) fn forget(&mut self, name: &str) {
        self.temporary.remove(name);
        self.connection.execute("DELETE FROM described WHERE name = ?1", [name]).unwrap();
    }

    /// Writes the `sys` views anew.
    pub(super) fn describe(&mut self) {
        super::schema::describe(self);
    }

    pub(super) fn raw(&self) -> &Connection {
        &self.connection
    }
}

fn bind(statement: &mut rusqlite::Statement<'_>, parameters: &[(String, Value)]) -> Result<(), ServerError> {
    for (name, value) in parameters {
        if let Some(index) = statement.parameter_index(name).unwrap() {
            statement.raw_bind_parameter(index, stored(value)).unwrap();
        }
    }
    Ok(())
}

fn server_error(error: &rusqlite::Error, sql: &str) -> ServerError {
    let text = error.to_string();
    let number = if text.starts_with("refused") {
        50_000
    } else if text.starts_with("rolled back") {
        3609
    } else if text.contains("no such table") {
        208
    } else if text.contains("no such column") {
        207
    } else if text.contains("UNIQUE constraint") {
        2627
    } else if text.contains("NOT NULL constraint") {
        515
    } else if text.contains("already exists") {
        2714
    } else if text.contains("locked") || text.contains("busy") {
        1222
    } else {
        102
    };
    ServerError::new(number, format!("{text}: {sql}"))
}

/// A column's type in SQLite: the real one, said so that SQLite leaves values as they are.
pub(super) fn declaration(of: &str) -> String {
    format!("\"BLOB {of}\"")
}

fn declared(declaration: &str) -> Option<Type> {
    Type::parse(declaration.trim_matches('"').trim_start_matches("BLOB "))
}

fn said_type(item: &[Token]) -> Option<Type> {
    let is = |names: &[&str]| item.first().is_some_and(|word| names.iter().any(|name| word.is(name)));
    if is(&["SYSUTCDATETIME", "SYSDATETIME"]) {
        return Some(Type::DateTime2(7));
    }
    if is(&["COUNT_BIG", "CHANGE_TRACKING_MIN_VALID_VERSION", "CHANGE_TRACKING_CURRENT_VERSION"]) {
        return Some(Type::BigInt);
    }
    let open = item.first().filter(|word| word.is("CAST") || word.is("CONVERT")).map(|_| 1)?;
    let (arguments, _) = inside(item, open);
    if item[0].is("CAST") {
        Type::parse(&text_of(&arguments[find(arguments, "AS")? + 1..]))
    } else {
        Type::parse(&text_of(split(arguments, ",")[0]))
    }
}

fn guess(value: Option<&Stored>) -> Type {
    match value {
        Some(Stored::Integer(number)) if i32::try_from(*number).is_ok() => Type::Int,
        Some(Stored::Integer(_)) => Type::BigInt,
        Some(Stored::Real(_)) => Type::Float,
        Some(Stored::Blob(_)) => Type::Varbinary(None),
        _ => Type::NVarchar(None),
    }
}

fn stored(value: &Value) -> Stored {
    match value {
        Value::Null => Stored::Null,
        Value::Bit(bit) => Stored::Integer(i64::from(*bit)),
        Value::Int(number) => Stored::Integer(*number),
        Value::Real(number) => Stored::Real(f64::from(*number)),
        Value::Float(number) => Stored::Real(*number),
        Value::Bytes(bytes) => Stored::Blob(bytes.clone()),
        other => Stored::Text(other.to_string()),
    }
}

fn loaded(of: Type, value: &Stored) -> Value {
    match (of, value) {
        (_, Stored::Null) => Value::Null,
        (Type::Bit, Stored::Integer(number)) => Value::Bit(*number != 0),
        (Type::Decimal(_, scale), Stored::Integer(number)) => {
            Value::Decimal(i128::from(*number) * 10i128.pow(u32::from(scale)), scale)
        }
        (Type::Decimal(..), Stored::Real(number)) => {
            Value::parse(of, &number.to_string()).expect("a literal with a point")
        }
        (_, Stored::Integer(number)) => Value::Int(*number),
        (Type::Real, Stored::Real(number)) => Value::Real(*number as f32),
        (_, Stored::Real(number)) => Value::Float(*number),
        (_, Stored::Blob(bytes)) => Value::Bytes(bytes.clone()),
        (of, Stored::Text(text)) => {
            Value::parse(of, text).unwrap_or_else(|| panic!("`{text}` is kept for a {of:?}"))
        }
    }
}
