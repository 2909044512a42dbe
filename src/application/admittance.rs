//! What one request takes before it is made: an endpoint that may be tried, a slot there, and a place
//! among all attempts of this worker.

use std::{future::Future, pin::pin};

use tokio::{
    sync::SemaphorePermit,
    time::{sleep, timeout},
};

use crate::domain::{
    policies::{PATIENCE, STALL},
    values::WebhookId,
};

use super::{
    deliver::{BUSY, DISABLED, Deliverer, LIMITED_PATIENCE, Lane, OPEN, PARKED_PATIENCE, UNUSABLE},
    endpoint::Endpoint,
    endpoints::Slot,
    registry::CompiledWebhook,
};

impl Deliverer {
    /// What one request takes; or why there is none now.
    pub(super) async fn enter<'a>(
        &'a self,
        lane: Lane,
        webhook: &'a CompiledWebhook,
    ) -> Result<(&'a Endpoint, Slot, SemaphorePermit<'a>), &'static str> {
        if webhook.is_disabled {
            return Err(DISABLED);
        }
        let endpoint = webhook.endpoint.as_ref().map_err(|_| UNUSABLE)?;
        if self.is_open(lane, webhook.id) {
            return Err(OPEN);
        }
        let slot = match lane {
            // Who does not keep up is not waited for: others need the lane.
            Lane::Parked | Lane::Probe | Lane::Replay if !self.endpoints.is_behind(webhook.id) => {
                let patience = if webhook.is_rate_limited {
                    LIMITED_PATIENCE
                } else {
                    PARKED_PATIENCE
                };
                self.endpoints
                    .enter_within(webhook.id, webhook.bound, patience)
                    .await
            }
            _ => self.endpoints.enter(webhook.id, webhook.bound).await,
        };
        let slot = slot.ok_or(BUSY)?;
        let Ok(Ok(permit)) = timeout(PATIENCE, self.attempts.acquire()).await else {
            return Err(BUSY);
        };
        // It may have opened meanwhile.
        if self.is_open(lane, webhook.id) {
            return Err(OPEN);
        }
        Ok((endpoint, slot, permit))
    }

    /// An attempt that takes long makes room for others, as long as there are not too many such.
    pub(super) async fn let_others_pass<T>(
        &self,
        sending: impl Future<Output = T>,
        permit: SemaphorePermit<'_>,
        when_slow: impl Future<Output = ()>,
    ) -> T {
        let mut sending = pin!(sending);
        tokio::select! {
            sent = &mut sending => return sent,
            () = sleep(STALL) => {}
        }
        let Ok(_slow) = self.slow.try_acquire() else {
            return sending.await;
        };
        drop(permit);
        let (sent, ()) = tokio::join!(sending, when_slow);
        sent
    }

    /// Whether the endpoint is left alone for now.
    fn is_open(&self, lane: Lane, webhook: WebhookId) -> bool {
        lane != Lane::Probe && self.breakers.open_until(webhook).is_some()
    }
}
