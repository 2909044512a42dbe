//! Something did not happen, or not in time.

use std::{future::Future, time::Duration};

/// How long anything in the demo may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was not seen.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Missed(pub(super) String);

/// `Err` unless the condition holds.
pub(super) fn check(condition: bool, otherwise: impl Into<String>) -> Result<(), Missed> {
    if condition {
        Ok(())
    } else {
        Err(Missed(otherwise.into()))
    }
}

/// Waits for it, but not for ever; `what` is what it is that takes so long.
pub(super) async fn in_time<T>(
    what: &str,
    waiting: impl Future<Output = Result<T, Missed>>,
) -> Result<T, Missed> {
    let seconds = PATIENCE.as_secs();
    let late = || Missed(format!("{what}: not within {seconds} s"));
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    waited.unwrap_or_else(|_| Err(late()))
}
