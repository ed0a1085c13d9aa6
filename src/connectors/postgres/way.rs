//! A long read gives way: whoever waits for a lock that our reading holds does not wait for long.
//!
//! Reading takes ACCESS SHARE, which holds up nothing but statements that change the table itself (ALTER,
//! DROP, TRUNCATE, VACUUM FULL). But behind one of these that waits for us, every other statement on the
//! table waits too, and the application stands still. So somebody looks, and when one has waited for us
//! twice in a row, our sessions end: the pass fails for a passing reason and comes back, and a first read
//! goes on after its last portion.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_postgres::types::Type;

use crate::clients::postgres::connect;
use crate::connection::Connection;
use crate::connectors::sql::lock;
use crate::error::{Error, ErrorKind, Result};

/// Most readings are over before the first look, and cost no session more.
const LOOK: Duration = Duration::from_secs(2);

/// Sessions that wait for a lock on a table that one of these processes holds or is about to get.
const WAITING: &str = "SELECT count(*) FROM pg_locks w WHERE NOT w.granted AND w.locktype = 'relation' \
     AND w.pid <> ALL ($1) AND pg_blocking_pids(w.pid) && $1";

const END: &str = "SELECT pg_terminate_backend(pid) FROM unnest($1) pid";

/// The watch over a reading's sessions, as long as it lives.
pub(super) struct Way {
    pids: Arc<Mutex<Vec<i32>>>,
    gave: Arc<AtomicBool>,
    watch: JoinHandle<()>,
}

impl Way {
    /// Watches over the session of this process.
    pub(super) fn of(connection: &Connection, pid: i32) -> Self {
        let (pids, gave) = (Arc::new(Mutex::new(vec![pid])), Arc::new(AtomicBool::new(false)));
        let watch = watch(connection.clone(), pids.clone(), gave.clone());
        let watch = async move {
            if let Err(error) = watch.await {
                // The reading itself meets what is wrong with the server.
                tracing::debug!(%error, "nobody looks who waits for this reading");
            }
        };
        Self { pids, gave, watch: tokio::spawn(watch) }
    }

    /// Watches over another one, too.
    pub(super) fn add(&self, pid: i32) {
        lock(&self.pids).push(pid);
    }

    /// Says of an error whether it came from giving way.
    pub(super) fn explain(gave: &AtomicBool, error: Error) -> Error {
        if !gave.load(Ordering::Relaxed) {
            return error;
        }
        Error::new(
            ErrorKind::Transient,
            "the reading gave way to a session that waits for a lock on the table",
        )
        .hint("run it again; what is committed stays")
    }

    /// Whether it gave way.
    pub(super) fn gave(&self) -> Arc<AtomicBool> {
        self.gave.clone()
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

async fn watch(connection: Connection, pids: Arc<Mutex<Vec<i32>>>, gave: Arc<AtomicBool>) -> Result<()> {
    tokio::time::sleep(LOOK).await;
    let session = connect(&connection).await?;
    let mut waited = false;
    loop {
        let ours = lock(&pids).clone();
        let rows = session.query_typed(WAITING, &[(&ours, Type::INT4_ARRAY)]).await?;
        let waits = rows.first().is_some_and(|row| row.get::<_, i64>(0) > 0);
        if waits && waited {
            gave.store(true, Ordering::Relaxed);
            session.query_typed(END, &[(&ours, Type::INT4_ARRAY)]).await?;
            return Ok(());
        }
        waited = waits;
        tokio::time::sleep(LOOK).await;
    }
}
