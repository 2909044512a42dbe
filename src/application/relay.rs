//! Publishes the events of the outbox in their order. One worker does it at a time; the others stand by.

use std::{sync::Arc, time::Duration};

use metrics::counter;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    domain::interfaces::{OutboxClaim, Store},
    shared::{
        error_chain::Chain,
        lifecycle::Group,
        metrics::{LOOP_FAULTS, PUBLISHED},
    },
};

use super::{
    health::Health,
    ports::{Clock, EventPublisher},
    wakers::Wakers,
};

/// Events published together at most.
pub const MAX_BATCH: u32 = 1000;
/// How long the relay's lease holds: after the death of its worker the outbox waits this long.
pub const LEASE: Duration = Duration::from_secs(15);
/// How often the outbox is looked at when nothing wakes the relay.
pub const POLL_EVERY: Duration = Duration::from_millis(250);
/// How long the relay waits after a fault.
pub const FAULT_WAIT: Duration = Duration::from_secs(1);

/// The relay's ports.
pub struct Relay {
    /// Where the events wait.
    pub store: Arc<dyn Store>,
    /// Where they go.
    pub publisher: Arc<dyn EventPublisher>,
    /// Time and ids.
    pub clock: Arc<dyn Clock>,
    /// Rings when events were committed.
    pub wakers: Arc<Wakers>,
    /// Told of every turn of the loop.
    pub health: Arc<Health>,
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay").finish_non_exhaustive()
    }
}

impl Relay {
    /// Publishes until the group is stopping; then once more what is there, and gives the lease up.
    pub fn start(self, group: &Group) {
        group.spawn_loop("relay", self.run(group.stopping()));
    }

    async fn run(self, stopping: CancellationToken) {
        let holder = self.clock.new_id();
        while !stopping.is_cancelled() {
            self.health.beat("relay");
            let wait = match self.turn(holder).await {
                // There may be more.
                Ok(published) if published > 0 => continue,
                Ok(_) => POLL_EVERY,
                Err(error) => {
                    counter!(LOOP_FAULTS, "loop" => "relay").increment(1);
                    tracing::warn!(error = %Chain(error.as_ref()), "committed events could not be published");
                    FAULT_WAIT
                }
            };
            tokio::select! {
                () = stopping.cancelled() => {}
                () = self.wakers.outbox.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
        while let Ok(published) = self.turn(holder).await
            && published > 0
        {}
        if let Err(error) = self.store.outbox_release(holder).await {
            tracing::debug!(error = %Chain(&error), "the relay's lease was not given up and will run out");
        }
    }

    /// Publishes one batch; answers how many events were in it.
    async fn turn(&self, holder: Uuid) -> Result<usize, Box<dyn std::error::Error + Send + Sync>> {
        let now = self.clock.now();
        let claim = OutboxClaim {
            holder,
            now,
            lease: LEASE,
            limit: MAX_BATCH,
        };
        let Some(rows) = self.store.outbox_batch(claim).await? else {
            return Ok(0);
        };
        if rows.is_empty() {
            return Ok(0);
        }
        self.publisher.publish(&rows).await?;
        let ids: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
        self.store.outbox_published(&ids, self.clock.now()).await?;
        counter!(PUBLISHED).increment(rows.len() as u64);
        Ok(rows.len())
    }
}
