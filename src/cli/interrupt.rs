//! How a user ends a run: politely first.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::output::{self, Exit};

/// Ctrl-C and SIGTERM: the first asks running passes to stop after the portion under way, the
/// second ends the process. Either is safe: what is committed is committed, the rest is read again.
#[derive(Clone)]
pub(super) struct Interrupt {
    stopped: Arc<AtomicBool>,
    notify: Arc<tokio::sync::Notify>,
}

impl Interrupt {
    pub(super) fn listen() -> Self {
        let interrupt = Self { stopped: Arc::default(), notify: Arc::default() };
        let (stopped, notify) = (interrupt.stopped.clone(), interrupt.notify.clone());
        tokio::spawn(async move {
            signal().await;
            output::say("stopping after the portion under way; once more ends at once");
            stopped.store(true, Ordering::SeqCst);
            notify.notify_waiters();
            signal().await;
            std::process::exit(Exit::Failed as i32);
        });
        interrupt
    }

    pub(super) fn stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }

    pub(super) async fn wait(&self) {
        let notified = self.notify.notified();
        if !self.stopped() {
            notified.await;
        }
    }

    /// Whether the user wants to stop before `time` is over.
    pub(super) async fn within(&self, time: Duration) -> bool {
        tokio::time::timeout(time, self.wait()).await.is_ok()
    }
}

async fn signal() {
    #[cfg(unix)]
    {
        let terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate());
        if let Ok(mut terminate) = terminate {
            tokio::select! { _ = tokio::signal::ctrl_c() => {}, _ = terminate.recv() => {} }
            return;
        }
    }
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
}
