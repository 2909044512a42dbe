//! What is done now and then: old rows are pruned in small batches, figures are read for health and
//! metrics, the bus is told that long work goes on.

use std::{sync::Arc, time::Duration};

use metrics::{counter, gauge};
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{
        interfaces::{Store, StoreError},
        values::Timestamp,
    },
    shared::{
        error_chain::Chain,
        lifecycle::Group,
        metrics::{
            IN_FLIGHT, LOOP_FAULTS, OUTBOX_OLDEST, OUTBOX_ROWS, PARKED_OLDEST, PARKED_ROWS,
            RESPONSE_OLDEST, RESPONSE_ROWS,
        },
    },
};

use super::{endpoints::Endpoints, health::Health, in_hand::InHand, ports::Clock};

/// Rows in one pruning statement at most.
pub const PRUNE_BATCH: u32 = 1000;
/// How often old rows are looked for.
pub const PRUNE_EVERY: Duration = Duration::from_mins(1);
/// How often figures are read.
pub const STATS_EVERY: Duration = Duration::from_secs(5);
/// How long idempotency keys are remembered (CONTRACT 2).
pub const IDEMPOTENCY_RETENTION: Duration = Duration::from_hours(14 * 24);
/// How long an unused endpoint's window is remembered.
const ENDPOINT_MEMORY: Duration = Duration::from_mins(10);

/// How long rows are kept after they are done with.
#[derive(Debug, Clone, Copy)]
pub struct Retention {
    /// Completed deliveries, with their attempts.
    pub deliveries: Duration,
    /// Published events.
    pub outbox: Duration,
}

/// The ports of the upkeep.
pub struct Upkeep {
    /// What is pruned and counted.
    pub store: Arc<dyn Store>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Where figures are shown.
    pub health: Arc<Health>,
    /// What this worker has in hand.
    pub in_hand: Arc<InHand>,
    /// Attempts under way.
    pub endpoints: Endpoints,
    /// How long rows are kept.
    pub retention: Retention,
    /// How often the bus is told that a message is still in hand: well below its patience.
    pub progress_every: Duration,
}

impl std::fmt::Debug for Upkeep {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upkeep")
            .field("retention", &self.retention)
            .finish_non_exhaustive()
    }
}

impl Upkeep {
    /// Starts the loops.
    pub fn start(self, group: &Group) {
        let this = Arc::new(self);
        group.spawn_loop("retention", Arc::clone(&this).prune_loop(group.stopping()));
        group.spawn_loop("stats", Arc::clone(&this).stats_loop(group.stopping()));
        group.spawn_loop("progress", this.progress_loop(group.stopping()));
    }

    async fn prune_loop(self: Arc<Self>, stopping: CancellationToken) {
        while pause(&stopping, PRUNE_EVERY).await {
            if let Err(error) = self.prune(&stopping).await {
                counter!(LOOP_FAULTS, "loop" => "retention").increment(1);
                tracing::warn!(error = %Chain(&error), "old rows could not be deleted");
            }
        }
    }

    async fn prune(&self, stopping: &CancellationToken) -> Result<(), StoreError> {
        let now = self.clock.now();
        let Retention { deliveries, outbox } = self.retention;
        while !stopping.is_cancelled()
            && self
                .store
                .prune_deliveries(now - deliveries, PRUNE_BATCH)
                .await?
                > 0
        {}
        while !stopping.is_cancelled()
            && self
                .store
                .prune_replays(now - deliveries, PRUNE_BATCH)
                .await?
                > 0
        {}
        while !stopping.is_cancelled()
            && self.store.prune_outbox(now - outbox, PRUNE_BATCH).await? > 0
        {}
        while !stopping.is_cancelled()
            && self
                .store
                .prune_idempotency(now - IDEMPOTENCY_RETENTION, PRUNE_BATCH)
                .await?
                > 0
        {}
        let now = self.clock.store_now();
        while !stopping.is_cancelled() && self.store.prune_tokens(now, PRUNE_BATCH).await? > 0 {}
        Ok(())
    }

    async fn stats_loop(self: Arc<Self>, stopping: CancellationToken) {
        loop {
            self.health.beat("stats");
            let now = self.clock.store_now();
            match self.store.stats(now).await {
                Ok(stats) => {
                    set(PARKED_ROWS, stats.parked);
                    set(OUTBOX_ROWS, stats.outbox);
                    set(RESPONSE_ROWS, stats.responses);
                    gauge!(PARKED_OLDEST).set(age(stats.oldest_due, now));
                    gauge!(OUTBOX_OLDEST).set(age(stats.oldest_outbox, self.clock.now()));
                    gauge!(RESPONSE_OLDEST).set(age(stats.oldest_response, self.clock.now()));
                    self.health.set_stats(stats);
                }
                Err(error) => tracing::debug!(error = %Chain(&error), "figures could not be read"),
            }
            gauge!(IN_FLIGHT).set(f64::from(self.endpoints.in_flight()));
            self.endpoints.forget_idle(ENDPOINT_MEMORY);
            if !pause(&stopping, STATS_EVERY).await {
                return;
            }
        }
    }

    async fn progress_loop(self: Arc<Self>, stopping: CancellationToken) {
        while pause(&stopping, self.progress_every).await {
            self.in_hand.signal_progress().await;
        }
    }
}

/// Waits; `false` when the worker is stopping.
pub(super) async fn pause(stopping: &CancellationToken, wait: Duration) -> bool {
    tokio::select! {
        () = stopping.cancelled() => false,
        () = tokio::time::sleep(wait) => true,
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a gauge of rows needs no more than 52 bits"
)]
fn set(name: &'static str, value: i64) {
    gauge!(name).set(value as f64);
}

/// Seconds since then, 0 for the future or never.
pub(super) fn age(since: Option<Timestamp>, now: Timestamp) -> f64 {
    since
        .and_then(|since| (now - since).to_std().ok())
        .unwrap_or_default()
        .as_secs_f64()
}
