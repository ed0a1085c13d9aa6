//! A server that speaks SQL Server's protocol and is none: for tests of both halves of the connector.
//!
//! ```text
//! frazil ──TDS──▶ connection (a thread) ──requests──▶ backend: a closure, or the engine in `engine.rs`
//!                     │
//!                     └── trouble: errors by number, cuts before, after and within an answer, delays
//! ```
//!
//! It is a fake and says so. What it proves: the bytes that we send and read, logins, errors by their
//! number, what happens when a connection ends at any point, and in which order statements go. What it
//! cannot prove is how SQL Server itself behaves: its locks, its collations, its conversions, its plans.
//! For those there is the conformance suite against a real server (`FRAZIL_TEST_SQLSERVER_URL`).
//!
//! No encryption: connections say `encrypt=disable`.

#![allow(dead_code)] // each helper is used by some test files, not by all

pub(crate) mod engine;
mod schema;
mod translate;
pub(crate) mod value;
pub(crate) mod wire;

use std::io::{self, BufReader, BufWriter};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

pub(crate) use engine::Engine;
pub(crate) use value::{Type, Value};
pub(crate) use wire::{Column, Login, ServerError};

/// Who may log in, and with what.
pub(crate) const USER: &str = "loader";
pub(crate) const PASSWORD: &str = "Fr&zil-1";

/// One request of a client.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) sql: String,
    pub(crate) parameters: Vec<(String, Value)>,
}

/// A part of the answer.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    Rows(Vec<Column>, Vec<Vec<Value>>),
    Count(u64),
    Error(ServerError),
    Began,
    Committed,
    RolledBack,
}

/// What stands behind one connection. It is dropped when that ends, however it ends.
pub(crate) trait Backend: Send {
    fn run(&mut self, request: &Request) -> Vec<Answer>;

    /// Rows of a bulk load into a table as the statement names it.
    fn bulk(&mut self, table: &str, columns: &[Column], rows: Vec<Vec<Value>>) -> Result<u64, ServerError>;
}

/// Which request a rule is about.
#[derive(Debug, Clone)]
pub(crate) enum When {
    /// One whose text has this in it. A bulk load's rows are `rows of …`.
    Has(&'static str),
    /// The one of this number, counted from the last [`Server::count_from_here`]; the first is 0.
    Number(u64),
}

/// What happens to it.
#[derive(Debug, Clone)]
pub(crate) enum Trouble {
    /// The server refuses it.
    Error(u32),
    /// The connection ends before anything is done.
    CutBefore,
    /// It is done, and the connection ends without an answer.
    CutAfter,
    /// It is done, and the connection ends after these bytes of the answer.
    CutAnswer(usize),
    /// The connection ends after these bytes of the rows of a bulk load.
    CutRows(usize),
    /// It takes long.
    Delay(Duration),
}

#[derive(Debug)]
struct Rule {
    when: When,
    trouble: Trouble,
    times: u32,
}

type NewBackend = dyn Fn(&Login) -> Box<dyn Backend> + Send + Sync;

struct Shared {
    backend: Box<NewBackend>,
    rules: Mutex<Vec<Rule>>,
    log: Mutex<Vec<String>>,
    logins: Mutex<Vec<Login>>,
    requests: AtomicU64,
    /// Where logins are sent instead.
    route: Mutex<Option<(String, u16)>>,
    /// What logins are refused with.
    refused: Mutex<Option<u32>>,
}

/// The server; its threads end with the process.
pub(crate) struct Server {
    port: u16,
    shared: Arc<Shared>,
    /// Threads outlive the test that asked for them: they hold its tables weakly, and this does not.
    engine: Option<Engine>,
}

impl Server {
    /// With the engine: tables, keys and transactions.
    pub(crate) fn with_engine(engine: &Engine) -> Self {
        let weak = engine.weak();
        let connect = move |_: &Login| -> Box<dyn Backend> {
            Box::new(weak().expect("the server has its engine").connect())
        };
        Self { engine: Some(engine.clone()), ..Self::new(connect) }
    }

    /// With a closure that answers each request.
    pub(crate) fn answering(answer: impl Fn(&Request) -> Vec<Answer> + Send + Sync + 'static) -> Self {
        let answer = Arc::new(answer);
        Self::new(move |_| Box::new(Answering(answer.clone())))
    }

    pub(crate) fn new(backend: impl Fn(&Login) -> Box<dyn Backend> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            backend: Box::new(backend),
            rules: Mutex::default(),
            log: Mutex::default(),
            logins: Mutex::default(),
            requests: AtomicU64::new(0),
            route: Mutex::default(),
            refused: Mutex::default(),
        });
        let of_threads = shared.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let shared = of_threads.clone();
                thread::spawn(move || {
                    client.set_nodelay(true).ok();
                    let end = client.try_clone();
                    Serving::run(client, &shared).ok();
                    // At once, whatever is still buffered on either side.
                    if let Ok(end) = end {
                        end.shutdown(Shutdown::Both).ok();
                    }
                });
            }
        });
        Self { port, shared, engine: None }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// A URL that logs in.
    pub(crate) fn url(&self) -> String {
        self.url_for(USER, PASSWORD)
    }

    pub(crate) fn url_for(&self, user: &str, password: &str) -> String {
        let password = password.replace('&', "%26");
        format!("mssql://{user}:{password}@127.0.0.1:{}/shop?encrypt=disable", self.port)
    }

    /// Makes trouble for the next request that this is about.
    pub(crate) fn trouble(&self, when: When, trouble: Trouble) {
        self.trouble_times(when, trouble, 1);
    }

    pub(crate) fn trouble_times(&self, when: When, trouble: Trouble, times: u32) {
        self.shared.rules.lock().unwrap().push(Rule { when, trouble, times });
    }

    pub(crate) fn no_trouble(&self) {
        self.shared.rules.lock().unwrap().clear();
    }

    /// Rules that have not been met yet.
    pub(crate) fn waiting(&self) -> usize {
        self.shared.rules.lock().unwrap().len()
    }

    /// All logins from now on are refused with this error, or let in again.
    pub(crate) fn refuse_logins(&self, number: Option<u32>) {
        *self.shared.refused.lock().unwrap() = number;
    }

    /// All logins from now on are sent elsewhere.
    pub(crate) fn route_to(&self, host: &str, port: u16) {
        *self.shared.route.lock().unwrap() = Some((host.to_owned(), port));
    }

    /// Requests are numbered from here; the log begins anew.
    pub(crate) fn count_from_here(&self) {
        self.shared.requests.store(0, Ordering::SeqCst);
        self.shared.log.lock().unwrap().clear();
    }

    /// How many requests there were.
    pub(crate) fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::SeqCst)
    }

    /// What was asked, in order; of all connections.
    pub(crate) fn log(&self) -> Vec<String> {
        self.shared.log.lock().unwrap().clone()
    }

    /// Who logged in.
    pub(crate) fn logins(&self) -> Vec<Login> {
        self.shared.logins.lock().unwrap().clone()
    }
}

struct Answering<F>(Arc<F>);

impl<F: Fn(&Request) -> Vec<Answer> + Send + Sync> Backend for Answering<F> {
    fn run(&mut self, request: &Request) -> Vec<Answer> {
        (self.0)(request)
    }

    fn bulk(&mut self, _: &str, _: &[Column], rows: Vec<Vec<Value>>) -> Result<u64, ServerError> {
        Ok(rows.len() as u64)
    }
}

/// One connection.
struct Serving<'a> {
    from: BufReader<TcpStream>,
    to: BufWriter<TcpStream>,
    shared: &'a Shared,
    packet: usize,
    /// The table of an `INSERT BULK` whose rows come next.
    loading: Option<String>,
    descriptor: u64,
}

impl<'a> Serving<'a> {
    fn run(client: TcpStream, shared: &'a Shared) -> io::Result<()> {
        let from = BufReader::with_capacity(1 << 18, client.try_clone()?);
        let to = BufWriter::with_capacity(1 << 18, client);
        let packet = wire::FIRST_PACKET;
        let mut serving = Serving { from, to, shared, packet, loading: None, descriptor: 1 };
        let Some(login) = serving.log_in()? else { return Ok(()) };
        let mut backend = (shared.backend)(&login);
        loop {
            serving.request(backend.as_mut())?;
        }
    }

    fn log_in(&mut self) -> io::Result<Option<Login>> {
        let (kind, _) = wire::read(&mut self.from, None)?;
        if kind != wire::PRELOGIN {
            return Ok(None); // TLS from the first byte on, which this server has not
        }
        self.send(&wire::prelogin(), None)?;
        let (kind, message) = wire::read(&mut self.from, None)?;
        let Some(login) = Login::parse(&message).filter(|_| kind == wire::LOGIN) else { return Ok(None) };
        self.shared.logins.lock().unwrap().push(login.clone());
        let refused = *self.shared.refused.lock().unwrap();
        let wrong = (login.user != USER || login.password != PASSWORD).then_some(18456);
        if let Some(number) = refused.or(wrong) {
            let mut answer =
                ServerError::new(number, format!("Login failed for user '{}'.", login.user)).token();
            answer.extend(wire::done(wire::DONE, wire::FAILED, 0));
            self.send(&answer, None)?;
            return Ok(None);
        }
        let mut answer = wire::welcome(&login);
        if let Some((host, port)) = self.shared.route.lock().unwrap().clone() {
            answer.extend(wire::route(&host, port));
        }
        answer.extend(wire::done(wire::DONE, 0, 0));
        self.send(&answer, None)?;
        self.packet = login.packet;
        Ok(Some(login))
    }

    fn send(&mut self, answer: &[u8], cut: Option<usize>) -> io::Result<()> {
        wire::send(&mut self.to, answer, self.packet, cut)
    }

    fn request(&mut self, backend: &mut dyn Backend) -> io::Result<()> {
        // Rows that a bulk load announced: whether to stop within them is known before they come.
        if let Some(table) = self.loading.take() {
            return self.rows(backend, &table);
        }
        let (kind, message) = wire::read(&mut self.from, None)?;
        let request = match kind {
            wire::ATTENTION => return self.send(&wire::done(wire::DONE, wire::ATTENDED, 0), None),
            wire::BATCH => {
                let headers = u32::from_le_bytes(message[..4].try_into().unwrap()) as usize;
                let text = &message[headers..];
                let sql = value::Bytes(text).text(text.len() / 2).unwrap_or_default();
                Request { sql, parameters: Vec::new() }
            }
            wire::RPC => match wire::call(&message) {
                Some((sql, parameters)) => Request { sql, parameters },
                None => return self.fail(&ServerError::new(2812, "Could not find stored procedure.")),
            },
            wire::TRANSACTION => {
                let kind = value::Bytes(&message[22..]).number(2);
                let sql = match kind {
                    Some(5) => "BEGIN TRANSACTION",
                    Some(7) => "COMMIT TRANSACTION",
                    _ => "ROLLBACK TRANSACTION",
                };
                Request { sql: sql.to_owned(), parameters: Vec::new() }
            }
            other => return self.fail(&ServerError::new(4002, format!("a message of kind {other:#x}"))),
        };
        let trouble = self.trouble(&request.sql);
        match &trouble {
            Some(Trouble::Error(number)) => {
                return self.fail(&ServerError::new(*number, "an error that a test ordered"));
            }
            Some(Trouble::CutBefore) => return Err(io::ErrorKind::ConnectionAborted.into()),
            Some(Trouble::Delay(time)) => thread::sleep(*time),
            _ => {}
        }
        if let Some(table) = bulk_table(&request.sql) {
            self.loading = Some(table);
            return self.send(&wire::done(wire::DONE, 0, 0), None);
        }
        let answers = backend.run(&request);
        match trouble {
            Some(Trouble::CutAfter) => Err(io::ErrorKind::ConnectionAborted.into()),
            Some(Trouble::CutAnswer(bytes)) => self.answer(kind == wire::RPC, answers, Some(bytes)),
            _ => self.answer(kind == wire::RPC, answers, None),
        }
    }

    fn rows(&mut self, backend: &mut dyn Backend, table: &str) -> io::Result<()> {
        let trouble = self.trouble(&format!("rows of {table}"));
        let stop_after = match trouble {
            Some(Trouble::CutRows(bytes)) => Some(bytes),
            Some(Trouble::CutBefore) => Some(0),
            _ => None,
        };
        let (kind, message) = wire::read(&mut self.from, stop_after)?;
        if kind == wire::ATTENTION {
            return self.send(&wire::done(wire::DONE, wire::ATTENDED, 0), None);
        }
        if let Some(Trouble::Error(number)) = trouble {
            return self.fail(&ServerError::new(number, "an error that a test ordered"));
        }
        let Some((columns, rows)) = wire::bulk(&message).filter(|_| kind == wire::BULK) else {
            return self.fail(&ServerError::new(4804, "While reading the row stream, an unexpected end."));
        };
        match backend.bulk(table, &columns, rows) {
            Err(error) => self.fail(&error),
            Ok(_) if matches!(trouble, Some(Trouble::CutAfter)) => {
                Err(io::ErrorKind::ConnectionAborted.into())
            }
            Ok(count) => self.send(&wire::done(wire::DONE, wire::COUNTED, count), None),
        }
    }

    fn trouble(&self, text: &str) -> Option<Trouble> {
        let number = self.shared.requests.fetch_add(1, Ordering::SeqCst);
        self.shared.log.lock().unwrap().push(text.to_owned());
        let mut rules = self.shared.rules.lock().unwrap();
        let met = rules.iter().position(|rule| match rule.when {
            When::Has(part) => text.contains(part),
            When::Number(wanted) => wanted == number,
        })?;
        let trouble = rules[met].trouble.clone();
        rules[met].times -= 1;
        if rules[met].times == 0 {
            rules.remove(met);
        }
        Some(trouble)
    }

    fn fail(&mut self, error: &ServerError) -> io::Result<()> {
        let mut answer = error.token();
        answer.extend(wire::done(wire::DONE, wire::FAILED, 0));
        self.send(&answer, None)?;
        if error.class >= 20 { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
    }

    fn answer(&mut self, is_call: bool, answers: Vec<Answer>, cut: Option<usize>) -> io::Result<()> {
        let each = if is_call { wire::DONE_IN_PROC } else { wire::DONE };
        let mut bytes = Vec::new();
        let (last, mut failed) = (answers.len().saturating_sub(1), false);
        for (index, answer) in answers.iter().enumerate() {
            let more = if is_call || index < last { wire::MORE } else { 0 };
            match answer {
                Answer::Rows(columns, rows) => {
                    bytes.extend(wire::metadata(columns));
                    rows.iter().for_each(|values| wire::row(columns, values, &mut bytes));
                    bytes.extend(wire::done(each, more | wire::COUNTED, rows.len() as u64));
                }
                Answer::Count(count) => bytes.extend(wire::done(each, more | wire::COUNTED, *count)),
                Answer::Error(error) => {
                    bytes.extend(error.token());
                    bytes.extend(wire::done(each, more | wire::FAILED, 0));
                    failed = true;
                }
                Answer::Began | Answer::Committed | Answer::RolledBack => {
                    let kind = match answer {
                        Answer::Began => {
                            self.descriptor += 1;
                            8
                        }
                        Answer::Committed => 9,
                        _ => 10,
                    };
                    bytes.extend(wire::transaction(kind, self.descriptor));
                    bytes.extend(wire::done(each, more, 0));
                }
            }
        }
        if is_call {
            // Its return value.
            bytes.extend([0x79, 0, 0, 0, 0]);
            bytes.extend(wire::done(wire::DONE_PROC, if failed { wire::FAILED } else { 0 }, 0));
        } else if answers.is_empty() {
            bytes.extend(wire::done(wire::DONE, 0, 0));
        }
        self.send(&bytes, cut)
    }
}

/// The table of an `INSERT BULK` statement.
fn bulk_table(sql: &str) -> Option<String> {
    let rest = sql.trim_start().strip_prefix("INSERT BULK ")?;
    Some(rest.split(" (").next()?.trim().to_owned())
}

/// The responder itself, tried with the client's own library.
#[cfg(test)]
mod tests;
