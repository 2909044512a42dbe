//! Doing something again until it works: for what waits on a dependency that may be down.

use std::{error::Error, future::Future, time::Duration};

use backoff::{ExponentialBackoff, ExponentialBackoffBuilder, backoff::Backoff};
use metrics::counter;
use tokio_util::sync::CancellationToken;

use crate::shared::{error_chain::Chain, metrics::LOOP_FAULTS};

/// The first wait between two tries.
pub const FIRST_WAIT: Duration = Duration::from_millis(100);
/// The longest wait between two tries.
pub const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Waits between tries: 100 ms, growing by half to 5 s, ±30 %; no end.
pub fn waits() -> ExponentialBackoff {
    ExponentialBackoffBuilder::new()
        .with_initial_interval(FIRST_WAIT)
        .with_randomization_factor(0.3)
        .with_max_interval(LONGEST_WAIT)
        .with_max_elapsed_time(None)
        .build()
}

/// Tries until it works, or until `give_up` says that this error will not go away by itself.
/// `None` when the worker is stopping meanwhile. The first fault is a warning, later ones are for debugging.
pub async fn until_done<T, E, F>(
    stopping: &CancellationToken,
    task: &'static str,
    give_up: impl Fn(&E) -> bool,
    mut operation: impl FnMut() -> F,
) -> Option<Result<T, E>>
where
    E: Error + 'static,
    F: Future<Output = Result<T, E>>,
{
    let mut waits = waits();
    let mut tries = 0_u32;
    loop {
        let error = match operation().await {
            Ok(value) => {
                if tries > 0 {
                    tracing::info!(task, tries, "works again");
                }
                return Some(Ok(value));
            }
            Err(error) if give_up(&error) => return Some(Err(error)),
            Err(error) => error,
        };
        counter!(LOOP_FAULTS, "loop" => task).increment(1);
        if tries == 0 {
            tracing::warn!(task, error = %Chain(&error), "does not work, trying again");
        } else {
            tracing::debug!(task, tries, error = %Chain(&error), "still does not work");
        }
        tries += 1;
        let wait = waits.next_backoff().unwrap_or(LONGEST_WAIT);
        tokio::select! {
            () = stopping.cancelled() => return None,
            () = tokio::time::sleep(wait) => {}
        }
    }
}
