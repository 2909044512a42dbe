//! Work on one ordered lane: its deliveries, one after the other.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::SubsecRound as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{entities::DeliveryStatus, interfaces::ClaimedDelivery},
    shared::error_chain::Chain,
};

use super::{
    deliver::{LIMITED_PATIENCE, Lane},
    lanes::OrderedLanes,
    leased::Settled,
    registry::Snapshot,
};

/// What work on a lane needs besides.
pub(super) struct Hands<'a> {
    /// As of the claim.
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) outcomes: &'a Arc<Semaphore>,
    pub(super) stopping: &'a CancellationToken,
}

impl OrderedLanes {
    /// Sends one delivery after the other; gives back what has to wait behind one that does.
    pub(super) async fn work_off(
        &self,
        kind: Lane,
        lane: Vec<(ClaimedDelivery, OwnedSemaphorePermit)>,
        hands: Hands<'_>,
    ) {
        let Hands {
            mut snapshot,
            outcomes,
            stopping,
        } = hands;
        let began = Instant::now();
        let mut rest = lane.into_iter().enumerate();
        // Whole seconds, as leases are given back, and over, so that others have their turn at once.
        let mut due_again = self.clock.store_now().trunc_subsecs(0);
        for (number, (one, bytes)) in rest.by_ref() {
            let webhook = one.delivery.webhook_id;
            // Somebody else may have the lane by now, or has it as soon as this lease has run out.
            if !self.leases.is_in_force(&one.lease) {
                self.attempts.no_sign(kind, webhook, Duration::ZERO);
                // A lease that is lost gives nothing back; one that has run out is nobody's yet.
                let settled = Settled::Released(one.lease, due_again);
                self.hand_in(settled, outcomes).await;
                break;
            }
            if number > 0 {
                // The webhook may be another one by now, or none: attempts take their time.
                match self.registry.refresh().await {
                    Ok(fresh) => snapshot = fresh,
                    Err(error) => {
                        tracing::debug!(error = %Chain(&error), "an ordered lane cannot go on");
                        let settled = Settled::Released(one.lease, due_again);
                        self.hand_in(settled, outcomes).await;
                        break;
                    }
                }
            }
            let Some(mut settled) = self.attempts.attempt(kind, one, &snapshot).await else {
                // The worker gives back all leases that are held, before it ends.
                return;
            };
            drop(bytes);
            self.block_behind(&mut settled, &snapshot).await;
            // Others wait for the place of a lane that takes long, and a token is used soon or given back.
            let is_limited = { snapshot.webhook(webhook) }.is_some_and(|it| it.is_rate_limited);
            let most = if is_limited {
                LIMITED_PATIENCE.min(self.stretch)
            } else {
                self.stretch
            };
            let has_time = began.elapsed() < most;
            let go_on = settled.lets_others_go() && has_time && !stopping.is_cancelled();
            if let Settled::Released(_, at) = settled {
                due_again = at;
            }
            self.hand_in(settled, outcomes).await;
            if !go_on {
                break;
            }
        }
        for (_, (one, bytes)) in rest {
            drop(bytes);
            let settled = Settled::Released(one.lease, due_again);
            self.hand_in(settled, outcomes).await;
        }
    }

    /// Those behind an exhausted delivery wait, where its webhook asks for that now: not where it did when
    /// the attempt began. What is asked for while it is recorded is seen by the sweep.
    async fn block_behind(&self, settled: &mut Settled, snapshot: &Arc<Snapshot>) {
        let Settled::Recorded(record) = settled else {
            return;
        };
        let delivery = &mut record.delivery;
        if delivery.status != DeliveryStatus::Exhausted {
            return;
        }
        let fresh = self.registry.refresh().await.ok();
        let fresh = { fresh.iter() }.find_map(|fresh| fresh.webhook(delivery.webhook_id));
        // One that is inactive by now, or that cannot be read, has kept its rule.
        let fresh = fresh.filter(|webhook| webhook.ordering.is_some() || webhook.endpoint.is_ok());
        let webhook = fresh.or_else(|| snapshot.webhook(delivery.webhook_id));
        if webhook.is_some_and(|webhook| webhook.blocks()) {
            delivery.block_lane();
        }
    }

    async fn hand_in(&self, settled: Settled, outcomes: &Arc<Semaphore>) {
        // Never closed.
        if let Ok(permit) = Arc::clone(outcomes).acquire_owned().await {
            self.attempts.hand_in(settled, permit).await;
        }
    }
}
