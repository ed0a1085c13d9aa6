//! A MariaDB that speaks as a MySQL does, where the two differ and `change: log` notices: no MySQL server
//! is to be had for these tests.
//!
//! ```text
//! program ── statements of MySQL ─▶ imitation ── what MariaDB says instead ─▶ MariaDB
//!         ◀─ GTIDs as MySQL has them ─┘  ◀──────────── its log ──────────────────┘
//! ```
//!
//! Tables, transactions, snapshots and the log are real. The order in which things become visible is made
//! as bad as a MySQL may be: `gtid_executed` says less than what is committed, and between the begin of a
//! snapshot or the end of the log and the answer others go on writing. What MySQL's own code does
//! otherwise than its documentation says is not seen here.

mod events;

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use mysql_async::prelude::Queryable;

use self::events::Rewriter;
use crate::fixture::MariaDatabase;

/// Who counts the transactions, for those who ask.
pub(crate) const SERVER: &str = "3e11fa47-71ca-11e1-9e33-c80aa9429562";

const QUERY: u8 = 0x03;
const BINLOG_DUMP: u8 = 0x12;
const BINLOG_DUMP_GTID: u8 = 0x1e;

/// Statements of MariaDB that a MySQL would refuse.
const FOREIGN: &[&str] = &[
    "binlog_snapshot_",
    "BINLOG_GTID_POS",
    "slave_connect_state",
    "mariadb_slave_capability",
    "max_statement_time",
    "Slaves_running",
];

/// The server.
pub(crate) struct Imitation {
    port: u16,
    state: Arc<State>,
}

/// How it behaves.
struct State {
    url: String,
    upstream: u16,
    /// How many transactions `gtid_executed` is behind those that are committed.
    behind: u64,
    /// How long answers take after what they say was true.
    late: Duration,
    /// What it said of `gtid_executed` last: it never goes back.
    executed: AtomicU64,
    purged: AtomicU64,
    lost: AtomicU64,
    mode: Mutex<String>,
    closed: AtomicBool,
}

impl Imitation {
    /// In front of a database's server.
    pub(crate) fn of(source: &MariaDatabase, behind: u64, late: Duration) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State {
            url: source.url().replacen("mariadb://", "mysql://", 1),
            upstream: source.port(),
            behind,
            late,
            executed: 0.into(),
            purged: 0.into(),
            lost: 0.into(),
            mode: Mutex::new("ON".to_owned()),
            closed: false.into(),
        });
        let shared = state.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if shared.closed.load(Ordering::SeqCst) {
                    break;
                }
                let state = shared.clone();
                thread::spawn(move || drop(serve(client, &state)));
            }
        });
        Self { port, state }
    }

    /// Where it listens, for a user of the server behind it and a database.
    pub(crate) fn url(&self, source: &MariaDatabase) -> String {
        source.url_through(self.port).replacen("mariadb://", "mysql://", 1) + "?ssl-mode=disabled"
    }

    /// What `gtid_mode` says.
    pub(crate) fn set_mode(&self, mode: &str) {
        *self.state.mode.lock().unwrap() = mode.to_owned();
    }

    /// Says that the log of all transactions was dropped that are committed now.
    pub(crate) fn purge(&self) {
        self.state.purged.store(self.state.committed(), Ordering::SeqCst);
    }

    /// Says from now on that it does not have the last transactions.
    pub(crate) fn lose(&self, count: u64) {
        self.state.lost.store(count, Ordering::SeqCst);
    }
}

impl Drop for Imitation {
    fn drop(&mut self) {
        self.state.closed.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

impl State {
    /// The number of the last transaction that everybody sees now.
    fn committed(&self) -> u64 {
        let url = self.url.clone();
        let asked = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut client = mysql_async::Conn::from_url(url).await?;
                client.query_drop("START TRANSACTION WITH CONSISTENT SNAPSHOT").await?;
                let at: Vec<(String, String)> =
                    client.query("SHOW SESSION STATUS LIKE 'binlog_snapshot_%'").await?;
                let value =
                    |name: &str| at.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).unwrap().1.clone();
                let (file, offset) = (value("binlog_snapshot_file"), value("binlog_snapshot_position"));
                let last: Option<String> =
                    client.query_first(format!("SELECT BINLOG_GTID_POS('{file}', {offset})")).await?;
                Ok::<_, mysql_async::Error>(last.unwrap())
            })
        });
        let last = asked.join().unwrap().unwrap();
        last.rsplit('-').next().and_then(|number| number.parse().ok()).unwrap_or(0)
    }

    fn executed(&self) -> u64 {
        let now = self.committed().saturating_sub(self.behind);
        let said = self.executed.fetch_max(now, Ordering::SeqCst).max(now);
        said.saturating_sub(self.lost.load(Ordering::SeqCst))
    }

    /// What MariaDB is asked in the place of a statement, and whether its answer takes its time.
    fn translated(&self, sql: &str) -> (String, bool) {
        let set = |last: u64| match last {
            0 => "SELECT ''".to_owned(),
            last => format!("SELECT '{SERVER}:1-{last}'"),
        };
        let sql = if FOREIGN.iter().any(|foreign| sql.contains(foreign)) {
            "NO STATEMENT OF MYSQL".to_owned()
        } else if sql == "SELECT VERSION()" {
            "SELECT '8.0.39'".to_owned()
        } else if sql.contains("max_execution_time") {
            "DO 0".to_owned()
        } else if sql.contains("gtid_executed") {
            set(self.executed())
        } else if sql.contains("gtid_purged") {
            set(self.purged.load(Ordering::SeqCst))
        } else if sql.starts_with("SHOW GLOBAL VARIABLES") {
            let mode = self.mode.lock().unwrap();
            format!(
                "SELECT VARIABLE_NAME, VARIABLE_VALUE FROM information_schema.GLOBAL_VARIABLES WHERE VARIABLE_NAME IN \
                 ('lower_case_table_names', 'log_bin', 'binlog_format', 'binlog_row_image', 'server_id') \
                 UNION ALL SELECT 'log_replica_updates', 'ON' UNION ALL SELECT 'binlog_expire_logs_seconds', '2592000' \
                 UNION ALL SELECT 'version', '8.0.39' UNION ALL SELECT 'gtid_mode', '{mode}'"
            )
        } else if sql.contains("@master_binlog_checksum") {
            format!("{sql}, @mariadb_slave_capability = 4")
        } else {
            sql.replace("transaction_isolation", "tx_isolation")
        };
        let late = sql.starts_with("START TRANSACTION") || sql == "SHOW MASTER STATUS";
        (sql, late)
    }
}

/// What one half of a connection tells the other.
#[derive(Default)]
struct Conversation {
    /// Answers that the client did not ask for.
    swallow: AtomicU64,
    late: AtomicBool,
    /// Set once the log comes: of which transactions it is to be left out.
    log: Mutex<Option<Rewriter>>,
}

fn serve(mut client: TcpStream, state: &Arc<State>) -> io::Result<()> {
    let mut upstream = TcpStream::connect((Ipv4Addr::LOCALHOST, state.upstream))?;
    let (number, greeting) = packet(&mut upstream)?;
    send(&mut client, number, &as_mysql(&greeting))?;
    let conversation = Arc::new(Conversation::default());
    let answers = {
        let (conversation, late) = (conversation.clone(), state.late);
        let (upstream, client) = (upstream.try_clone()?, client.try_clone()?);
        thread::spawn(move || drop(answer(upstream, client, &conversation, late)))
    };
    let asked = ask(&mut client, &mut upstream, state, &conversation);
    let _ = upstream.shutdown(Shutdown::Both);
    let _ = client.shutdown(Shutdown::Both);
    answers.join().unwrap();
    asked
}

/// Hands on what the client says.
fn ask(
    client: &mut TcpStream,
    upstream: &mut TcpStream,
    state: &State,
    conversation: &Conversation,
) -> io::Result<()> {
    loop {
        let (number, body) = packet(client)?;
        match (number, body.first()) {
            (0, Some(&QUERY)) => {
                let (sql, late) = state.translated(&String::from_utf8_lossy(&body[1..]));
                conversation.late.store(late, Ordering::SeqCst);
                send(upstream, 0, &[&[QUERY], sql.as_bytes()].concat())?;
            }
            (0, Some(&BINLOG_DUMP)) => {
                *conversation.log.lock().unwrap() = Some(Rewriter::all());
                send(upstream, 0, &body)?;
            }
            (0, Some(&BINLOG_DUMP_GTID)) => {
                let (replica, without) = events::wanted(&body).expect("a request for a log");
                let first = events::first_missing(&without);
                let state = if first == 1 { String::new() } else { format!("0-1-{}", first - 1) };
                conversation.swallow.store(1, Ordering::SeqCst);
                let sql = format!("SET @slave_connect_state = '{state}', @slave_gtid_strict_mode = 0");
                send(upstream, 0, &[&[QUERY], sql.as_bytes()].concat())?;
                while conversation.swallow.load(Ordering::SeqCst) > 0 {
                    thread::sleep(Duration::from_millis(1));
                }
                *conversation.log.lock().unwrap() = Some(Rewriter::without(without));
                // From the place that was just said, as far as it goes.
                let request = [&[BINLOG_DUMP, 4, 0, 0, 0, 1, 0][..], &replica.to_le_bytes()].concat();
                send(upstream, 0, &request)?;
            }
            _ => send(upstream, number, &body)?,
        }
    }
}

/// Hands on what the server says.
fn answer(
    mut upstream: TcpStream,
    mut client: TcpStream,
    conversation: &Conversation,
    late: Duration,
) -> io::Result<()> {
    let mut next = None;
    loop {
        let (number, body) = packet(&mut upstream)?;
        if conversation.swallow.load(Ordering::SeqCst) > 0 {
            conversation.swallow.fetch_sub(1, Ordering::SeqCst);
            continue;
        }
        if conversation.late.swap(false, Ordering::SeqCst) {
            thread::sleep(late);
        }
        let mut log = conversation.log.lock().unwrap();
        let Some(log) = log.as_mut() else {
            send(&mut client, number, &body)?;
            continue;
        };
        // There are more packets now, or fewer.
        for body in log.rewritten(&body) {
            let number = *next.get_or_insert(number);
            send(&mut client, number, &body)?;
            next = Some(number.wrapping_add(1));
        }
    }
}

/// The greeting with MySQL's version, without encryption and compression, which would hide what is said.
fn as_mysql(greeting: &[u8]) -> Vec<u8> {
    let version = greeting.iter().skip(1).position(|byte| *byte == 0).unwrap() + 1;
    let mut rest = greeting[version + 1..].to_vec();
    // Behind thread, salt and a zero: the lower half of what the server can, character set, status, the
    // upper half, the salt's length, and what only MariaDB can.
    let (lower, upper, own) = (13, 18, 21);
    rest[lower] = rest[lower] & !0x20 | 1;
    rest[lower + 1] &= !0x08;
    rest[upper + 1] &= !0x01;
    rest[own..own + 10].fill(0);
    [&greeting[..1], b"8.0.39\0", &rest].concat()
}

fn packet(from: &mut TcpStream) -> io::Result<(u8, Vec<u8>)> {
    let mut header = [0; 4];
    from.read_exact(&mut header)?;
    let mut body = vec![0; u32::from_le_bytes([header[0], header[1], header[2], 0]) as usize];
    from.read_exact(&mut body)?;
    Ok((header[3], body))
}

fn send(to: &mut TcpStream, number: u8, body: &[u8]) -> io::Result<()> {
    let [a, b, c, _] = (body.len() as u32).to_le_bytes();
    to.write_all(&[&[a, b, c, number], body].concat())
}
