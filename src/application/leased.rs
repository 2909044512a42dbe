//! Attempts under leases: what the parked lane and the ordered lanes do with what they have claimed.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    domain::{
        entities::DeliveryStatus,
        events::BusinessEvent,
        interfaces::{ClaimedDelivery, Lease, LeasedRecord, Store},
        values::{Timestamp, WebhookId},
    },
    shared::error_chain::Chain,
};

use super::{
    breakers::{Breakers, PROBE_PAUSE},
    deliver::{Deliverer, Lane, NO_NAMES, OPEN, Tried, UNUSABLE},
    leases::Leases,
    ports::Clock,
    recorder::{Outcome, Outcomes},
    registry::Snapshot,
};

/// When a delivery that got no slot is due again.
pub const BUSY_WAIT: Duration = Duration::from_secs(1);
/// When a delivery that got no slot at an endpoint that does not keep up is due again.
pub const BEHIND_WAIT: Duration = Duration::from_secs(5);
/// When a delivery whose webhook cannot be used is due again.
pub const UNUSABLE_WAIT: Duration = Duration::from_mins(1);

/// Bytes of events that each of the lanes has in hand: 64 MiB.
pub const MAX_BYTES_IN_HAND: u32 = 64 << 20;

/// Room for the event of a claimed delivery, if there is some now: nobody waits for it with leases in
/// hand. One that is larger than all room takes all of it.
pub(super) fn room_for(
    bytes: &Arc<Semaphore>,
    one: &ClaimedDelivery,
) -> Option<OwnedSemaphorePermit> {
    let size = u32::try_from(one.event.raw.len()).unwrap_or(u32::MAX);
    let size = size.clamp(1, MAX_BYTES_IN_HAND);
    Arc::clone(bytes).try_acquire_many_owned(size).ok()
}

/// Gives leases back whose deliveries are not worked on; they are due at once.
pub(super) async fn give_back(store: &dyn Store, leases: &Leases, given: &[Lease], now: Timestamp) {
    if let Err(error) = store.release(given, now).await {
        tracing::warn!(error = %Chain(&error), "leases were not given back and will run out");
    }
    leases.forget(given);
}

/// What is recorded about a claimed delivery.
#[derive(Debug)]
pub(super) enum Settled {
    Recorded(Box<LeasedRecord>),
    Released(Lease, Timestamp),
}

impl Settled {
    /// Whether the delivery is behind us, and those that wait for it may go.
    pub(super) fn lets_others_go(&self) -> bool {
        match self {
            Self::Recorded(record) => {
                record.delivery.status != DeliveryStatus::Pending && !record.delivery.blocks()
            }
            Self::Released(..) => false,
        }
    }
}

/// Makes attempts under leases.
pub struct LeasedAttempts {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Makes them.
    pub deliverer: Arc<Deliverer>,
    /// Takes what came of them.
    pub outcomes: Outcomes,
}

impl std::fmt::Debug for LeasedAttempts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LeasedAttempts").finish_non_exhaustive()
    }
}

impl LeasedAttempts {
    /// Webhooks that are not worth claiming for now.
    pub(super) fn saturated(&self) -> Vec<WebhookId> {
        self.deliverer.endpoints().saturated()
    }

    /// The endpoints that are left alone for a while.
    pub(super) fn breakers(&self) -> &Arc<Breakers> {
        self.deliverer.breakers()
    }

    /// What makes them.
    pub(super) fn deliverer(&self) -> &Deliverer {
        &self.deliverer
    }

    /// Tries a delivery; `None` when the worker is stopping. A probe that brings no sign of the endpoint
    /// leaves the right to it for another delivery.
    pub(super) async fn attempt(
        &self,
        lane: Lane,
        one: ClaimedDelivery,
        snapshot: &Snapshot,
    ) -> Option<Settled> {
        let ClaimedDelivery {
            lease,
            delivery,
            event,
        } = one;
        let id = delivery.webhook_id;
        let released =
            |wait: Duration| Some(Settled::Released(lease, self.clock.store_now() + wait));
        let Some(webhook) = snapshot.webhook(id) else {
            self.no_sign(lane, id, PROBE_PAUSE);
            return released(BUSY_WAIT);
        };
        let event = match BusinessEvent::from_stored(&event.meta, Bytes::clone(&event.raw)) {
            Ok(event) => event,
            Err(problem) => {
                tracing::error!(delivery = %delivery.id, problem, "a stored event cannot be read");
                self.no_sign(lane, id, Duration::ZERO);
                return released(UNUSABLE_WAIT);
            }
        };
        let tried = self
            .deliverer
            .attempt(lane, webhook, &event, delivery, async |_| {})
            .await;
        match &tried {
            Tried::Waits(_) => self.no_sign(lane, id, PROBE_PAUSE),
            // The event's fault, and another one may be better.
            Tried::Attempted(attempted) if attempted.attempt.is_none() => {
                self.no_sign(lane, id, Duration::ZERO);
            }
            Tried::Attempted(_) | Tried::Stopping => {}
        }
        match tried {
            Tried::Attempted(attempted) => Some(Settled::Recorded(Box::new(LeasedRecord {
                lease,
                delivery: attempted.delivery,
                attempt: attempted.attempt,
                events: attempted.events,
            }))),
            Tried::Waits(UNUSABLE) => released(UNUSABLE_WAIT),
            Tried::Waits(NO_NAMES) => released(BEHIND_WAIT),
            Tried::Waits(OPEN) => {
                let now = self.clock.store_now();
                let until = self.breakers().open_until(id);
                Some(Settled::Released(
                    lease,
                    until.map_or(now, |at| at.max(now)),
                ))
            }
            Tried::Waits(_) if self.deliverer.endpoints().is_behind(id) => released(BEHIND_WAIT),
            Tried::Waits(_) => released(BUSY_WAIT),
            Tried::Stopping => None,
        }
    }

    /// What was on this lane said nothing about the endpoint; the next probe of it may follow after `pause`.
    pub(super) fn no_sign(&self, lane: Lane, webhook: WebhookId, pause: Duration) {
        if lane == Lane::Probe {
            self.breakers().keep_probe(webhook, pause);
        }
    }

    /// Hands in what came of it; `permit` is held until it is recorded.
    pub(super) async fn hand_in(&self, settled: Settled, permit: OwnedSemaphorePermit) {
        let outcome = match settled {
            Settled::Recorded(record) => Outcome::Leased { record, permit },
            Settled::Released(lease, at) => Outcome::Release { lease, at, permit },
        };
        // The recorder outlives the lanes; if it is gone, the lease runs out.
        drop(self.outcomes.send(outcome).await);
    }
}
