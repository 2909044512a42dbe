//! SIGTERM and SIGINT stop the worker, a second one ends it at once. SIGHUP reads the keys again, or stops
//! what belongs to a terminal.

use std::future::Future;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What a SIGHUP means to a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hangup {
    /// Nothing here: a service is told so to read its keys again.
    Reload,
    /// The terminal is gone, and whoever looked at it.
    Stop,
}

/// The signals that end the process.
#[derive(Debug)]
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Option<Signal>,
}

impl Signals {
    /// From now on the signals are ours.
    ///
    /// # Errors
    /// When the system refuses, as it does outside of a runtime.
    pub(crate) fn install(hangup: Hangup) -> std::io::Result<Self> {
        let stops = hangup == Hangup::Stop && !is_hangup_ignored();
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: stops.then(|| signal(SignalKind::hangup())).transpose()?,
        })
    }

    /// The first signal cancels `shutdown`; returns on the second one. A terminal that closes may send
    /// more than one SIGHUP, so it is never the second.
    pub(crate) async fn watch(mut self, shutdown: CancellationToken) {
        let hangup = self.hangup.take();
        tokio::select! {
            () = self.next() => {}
            () = hung_up(hangup) => {}
        }
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

async fn hung_up(hangup: Option<Signal>) {
    match hangup {
        Some(mut hangup) => drop(hangup.recv().await),
        None => std::future::pending().await,
    }
}

/// Whether we were started to outlive the terminal, as `nohup` does; only Linux tells.
fn is_hangup_ignored() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores_hangup(&status))
}

/// Reads `SigIgn: 0000000000000001`, one bit a signal.
fn ignores_hangup(status: &str) -> bool {
    let mut lines = status.lines();
    let ignored = lines.find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask & 1 == 1)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_tells_whether_hangups_are_ignored() {
        for (status, ignored) in [
            (
                "Name:\tx\nSigBlk:\t0001\nSigIgn:\t0000000000000001\nSigCgt:\t0\n",
                true,
            ),
            ("SigIgn:\t0000000000001003\n", true),
            (
                "SigIgn:\t0000000000001000\nSigCgt:\t0000000000000001\n",
                false,
            ),
            ("SigIgn:\t?\n", false),
            ("", false),
        ] {
            assert_eq!(ignores_hangup(status), ignored, "{status}");
        }
    }
}
