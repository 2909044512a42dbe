//! One time for all workers: that of the store.
//!
//! A lease is written by one worker and judged by another. Were each to take its own clock, two that
//! disagree by more than a lease lasts would work on the same deliveries and publish the same outbox. So
//! every worker asks the store what time it is, now and then, and counts leases and due times in that.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use metrics::gauge;
use tokio_util::sync::CancellationToken;

use crate::{
    domain::interfaces::{Store, StoreError},
    shared::metrics::CLOCK_SKEW,
};

use super::{patience::until_done, ports::Clock};

/// How often the store is asked.
pub const ASK_EVERY: Duration = Duration::from_secs(30);
/// From which disagreement on it is worth a warning.
pub const TOLERATED: Duration = Duration::from_secs(2);
/// An answer that took longer says too little: half of it is the error.
const LONGEST_ASKING: Duration = Duration::from_secs(5);

const ASKING: &str = "read the database's clock";

/// Asks the store once and tells the clock; answers how many seconds this machine's clock is ahead of the
/// store's, negative when it is behind. `None` where the store has no clock of its own, or was too slow.
///
/// # Errors
/// The store's; the clock keeps what it knew.
pub async fn learn(store: &dyn Store, clock: &dyn Clock) -> Result<Option<f64>, StoreError> {
    let begun = Instant::now();
    let Some(shown) = store.time().await? else {
        return Ok(None);
    };
    let took = begun.elapsed();
    if took > LONGEST_ASKING {
        tracing::debug!(?took, "the database was too slow to tell the time");
        return Ok(None);
    }
    let shown = shown + took / 2;
    clock.set_store_time(shown);
    let skew = (clock.now() - shown).as_seconds_f64();
    gauge!(CLOCK_SKEW).set(skew);
    Ok(Some(skew))
}

/// Asks as often as it takes, before any lease is taken.
///
/// # Errors
/// A fault that waiting does not mend.
pub async fn learn_first(store: &dyn Store, clock: &dyn Clock) -> Result<(), StoreError> {
    let never = CancellationToken::new();
    let ask = || learn(store, clock);
    match until_done(&never, ASKING, StoreError::is_final, ask).await {
        Some(Err(error)) => Err(error),
        _ => Ok(()),
    }
}

/// Asks every [`ASK_EVERY`] until `stopping`; warns when the clocks begin to disagree.
pub async fn follow(store: Arc<dyn Store>, clock: Arc<dyn Clock>, stopping: CancellationToken) {
    let mut is_told = false;
    loop {
        let never = |_: &StoreError| false;
        let ask = || learn(store.as_ref(), clock.as_ref());
        match until_done(&stopping, ASKING, never, ask).await {
            None => return,
            Some(Ok(Some(skew))) => {
                let is_off = skew.abs() > TOLERATED.as_secs_f64();
                if is_off && !is_told {
                    tracing::warn!(
                        skew_seconds = skew,
                        "this machine's clock and the database's disagree; leases and due times follow the database's"
                    );
                }
                is_told = is_off;
            }
            Some(_) => {}
        }
        tokio::select! {
            () = stopping.cancelled() => return,
            () = tokio::time::sleep(ASK_EVERY) => {}
        }
    }
}
