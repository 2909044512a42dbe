//! SIGTERM and SIGINT stop the worker, a second one ends it at once; SIGHUP reads the keys again.

use std::future::Future;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The signals that end the process.
#[derive(Debug)]
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From now on the signals are ours.
    ///
    /// # Errors
    /// When the system refuses, as it does outside of a runtime.
    pub(crate) fn install() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// The first signal cancels `shutdown`; returns on the second one.
    pub(crate) async fn watch(mut self, shutdown: CancellationToken) {
        self.next().await;
        shutdown.cancel();
        self.next().await;
        tracing::warn!("a second signal: ending at once");
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Runs `reload` on every SIGHUP until `stopping`.
pub(crate) async fn on_hangup<F>(stopping: CancellationToken, reload: impl Fn() -> F + Send)
where
    F: Future<Output = ()> + Send,
{
    let mut hangup = match signal(SignalKind::hangup()) {
        Ok(hangup) => hangup,
        Err(error) => {
            tracing::warn!(%error, "SIGHUP is not listened to");
            return stopping.cancelled().await;
        }
    };
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            _ = hangup.recv() => reload().await,
        }
    }
}
