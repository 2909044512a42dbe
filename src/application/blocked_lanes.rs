//! Lanes that are blocked although nobody asks for that any more: their webhook came to let them go on
//! while the attempt was recorded that blocked them, or they were too many to be let go with a change of
//! it, or it is gone.

use std::{sync::Arc, time::Duration};

use metrics::counter;
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{
        entities::{OnExhausted, Webhook},
        interfaces::{Blocker, Store, StoreError},
        values::TenantId,
    },
    shared::{error_chain::Chain, lifecycle::Group, metrics::LOOP_FAULTS},
};

use super::{
    registry::{Registry, Snapshot},
    upkeep::pause,
    wakers::Wakers,
    webhook_settings::webhook_settings,
};

/// Lanes that one transaction lets go on at most.
pub const UNBLOCKED: u32 = 1_000;
/// How often they are looked for.
pub const SWEEP_EVERY: Duration = Duration::from_mins(1);
/// Webhooks in one look.
const MAX_BLOCKERS: u32 = 1_000;

/// Whether an exhausted delivery of it stops those behind; `None` when its settings cannot be read.
pub(super) fn blocks(webhook: &Webhook) -> Option<bool> {
    let settings = webhook_settings(&webhook.config.shown, None).ok()?;
    let ordering = settings.ordering;
    Some(ordering.is_some_and(|ordering| ordering.on_exhausted == OnExhausted::Block))
}

/// The ports of the sweep.
pub struct BlockedLanes {
    /// Where deliveries wait.
    pub store: Arc<dyn Store>,
    /// The webhooks.
    pub registry: Arc<Registry>,
    /// Rung when lanes go on.
    pub wakers: Arc<Wakers>,
}

impl std::fmt::Debug for BlockedLanes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockedLanes").finish_non_exhaustive()
    }
}

impl BlockedLanes {
    /// Looks for them now and then, until `group` is stopping.
    pub fn start(self, group: &Group) {
        group.spawn_loop("blocked lanes", self.run(group.stopping()));
    }

    async fn run(self, stopping: CancellationToken) {
        loop {
            if let Err(error) = self.sweep(&stopping).await {
                counter!(LOOP_FAULTS, "loop" => "blocked lanes").increment(1);
                tracing::warn!(error = %Chain(&error), "blocked lanes could not be looked through");
            }
            if !pause(&stopping, SWEEP_EVERY).await {
                return;
            }
        }
    }

    async fn sweep(&self, stopping: &CancellationToken) -> Result<(), StoreError> {
        let snapshot = self.registry.refresh().await?;
        let mut after = None;
        while !stopping.is_cancelled() {
            let blockers = self.store.blockers(after, MAX_BLOCKERS).await?;
            let Some(last) = blockers.last() else {
                return Ok(());
            };
            after = Some(last.webhook);
            for blocker in { blockers.iter() }.filter(|one| !is_asked_for(&snapshot, one)) {
                while !stopping.is_cancelled()
                    && self.unblock(blocker).await? == u64::from(UNBLOCKED)
                {}
            }
        }
        Ok(())
    }

    /// Lets some of its lanes go on, unless its webhook, which nobody can change meanwhile, asks for the
    /// contrary or cannot be read. Answers how many.
    async fn unblock(&self, blocker: &Blocker) -> Result<u64, StoreError> {
        let mut work = self.store.begin().await?;
        if let Some(tenant) = &blocker.tenant {
            let Ok(tenant) = TenantId::try_new(tenant) else {
                return Ok(0);
            };
            let webhook = match work.webhook(&tenant, blocker.webhook).await {
                Err(error) if error.is_final() => {
                    let webhook = blocker.webhook;
                    tracing::debug!(%webhook, error = %Chain(&error), "blocked lanes are left");
                    return Ok(0);
                }
                found => found?,
            };
            if webhook.is_some_and(|webhook| blocks(&webhook) != Some(false)) {
                return Ok(0);
            }
        }
        let count = work.unblock_lanes(blocker.webhook, UNBLOCKED).await?;
        work.commit().await?;
        if count > 0 {
            tracing::info!(webhook = %blocker.webhook, lanes = count, "blocked lanes go on");
            self.wakers.lanes.notify_one();
        }
        Ok(count)
    }
}

fn is_asked_for(snapshot: &Snapshot, blocker: &Blocker) -> bool {
    let webhook = snapshot.webhook(blocker.webhook);
    webhook.is_some_and(|webhook| webhook.blocks())
}
