//! The parked lane: claims deliveries that are due and tries them again.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use metrics::{counter, histogram};
use tokio::{
    sync::{Notify, Semaphore},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{
        interfaces::{ClaimRequest, Claimed, ClaimedDelivery, Lease, Store, StoreError},
        values::{Timestamp, WebhookId},
    },
    shared::{
        error_chain::Chain,
        lifecycle::Group,
        metrics::{LOOP_FAULTS, STORE_SECONDS},
    },
};

use super::{
    deliver::Lane,
    health::Health,
    leased::{LeasedAttempts, MAX_BYTES_IN_HAND, give_back, room_for},
    leases::{LEASE, Leases, RENEW_EVERY},
    patience::until_done,
    ports::Clock,
    registry::Registry,
    wakers::Wakers,
};

/// Parked deliveries in hand at a time.
pub const MAX_IN_HAND: u32 = 1000;
/// Of one webhook, in one claim.
pub const MAX_PER_WEBHOOK: u32 = 250;
/// How often the database is asked for due deliveries when nothing wakes the lane.
pub const POLL_EVERY: Duration = Duration::from_millis(250);
/// The same while deliveries are in hand: endpoints that were busy may have room again.
pub const POLL_BUSY: Duration = Duration::from_millis(20);
/// How long the lane waits for room before it looks again all the same.
const CROWDED_PAUSE: Duration = Duration::from_secs(5);
/// The same where something was found that there was no room for: something smaller may have some.
const NO_ROOM_PAUSE: Duration = Duration::from_secs(1);

/// How soon the database is asked again at the earliest after a claim that found no more, whatever rings
/// or comes meanwhile: many small claims would cost more than they bring.
pub(super) const PACE: Duration = Duration::from_millis(5);

/// What a turn of the loop found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// As much as was asked for: there is more, but perhaps no room.
    Crowd,
    /// All that there was.
    All,
    /// What there is no room for at present.
    NoRoom,
    Nothing,
}

impl Found {
    /// Of a claim of `limit` deliveries.
    fn by(claimed: &[ClaimedDelivery], limit: u32) -> Self {
        let bytes = || claimed.iter().map(|one| one.event.raw.len()).sum::<usize>();
        if claimed.len() >= limit as usize || bytes() >= MAX_BYTES_IN_HAND as usize {
            Self::Crowd
        } else {
            Self::All
        }
    }

    /// How long the loop waits at most after it, where the next token comes in `token_in`.
    fn pause(self, is_idle: bool, token_in: Duration) -> Duration {
        match self {
            Self::Crowd => CROWDED_PAUSE.min(token_in),
            Self::NoRoom => NO_ROOM_PAUSE.min(token_in.max(POLL_EVERY)),
            Self::All | Self::Nothing if is_idle => POLL_EVERY.min(token_in),
            Self::All | Self::Nothing => POLL_BUSY.min(token_in),
        }
    }

    fn listens(self) -> bool {
        matches!(self, Self::All | Self::Nothing)
    }
}

/// What is due.
struct Due {
    deliveries: Vec<ClaimedDelivery>,
    /// Which webhooks are probed.
    probed: HashSet<WebhookId>,
    /// How long it takes until the next token comes.
    token_in: Duration,
    found: Found,
}

/// How long it takes from `now` until a token comes.
pub(super) fn until(next_token_at: Option<Timestamp>, now: Timestamp) -> Duration {
    next_token_at.map_or(Duration::MAX, |at| {
        (at - now).to_std().unwrap_or_default().max(PACE)
    })
}

/// Waits for the bell, for so long, but never less than [`PACE`].
pub(super) async fn paced(bell: &Notify, at_most: Duration) {
    sleep(PACE).await;
    tokio::select! {
        () = bell.notified() => {}
        () = sleep(at_most.saturating_sub(PACE)) => {}
    }
}

/// The lane's ports.
pub struct ParkedLane {
    /// Where deliveries wait.
    pub store: Arc<dyn Store>,
    /// The webhooks.
    pub registry: Arc<Registry>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Makes the attempts.
    pub attempts: Arc<LeasedAttempts>,
    /// The leases that this worker holds.
    pub leases: Arc<Leases>,
    /// Rings when something became due.
    pub wakers: Arc<Wakers>,
    /// Told of every turn of the loop.
    pub health: Arc<Health>,
}

impl std::fmt::Debug for ParkedLane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ParkedLane").finish_non_exhaustive()
    }
}

impl ParkedLane {
    /// Claims and tries until `lanes` is stopping; leases are renewed until `upkeep` is, which is later.
    pub fn start(self, lanes: &Group, upkeep: &Group) {
        let this = Arc::new(self);
        lanes.spawn_loop("parked", Arc::clone(&this).run(lanes.clone()));
        upkeep.spawn_loop(
            "renew leases",
            Renewal {
                store: Arc::clone(&this.store),
                clock: Arc::clone(&this.clock),
                leases: Arc::clone(&this.leases),
            }
            .run(upkeep.stopping()),
        );
    }

    async fn run(self: Arc<Self>, group: Group) {
        let stopping = group.stopping();
        let in_hand = Arc::new(Semaphore::new(MAX_IN_HAND as usize));
        let bytes = Arc::new(Semaphore::new(MAX_BYTES_IN_HAND as usize));
        loop {
            self.health.beat("parked");
            let turn = self.turn(&group, &in_hand, &bytes).await;
            let (found, token_in) = turn.unwrap_or_else(|error| {
                counter!(LOOP_FAULTS, "loop" => "parked").increment(1);
                tracing::warn!(error = %Chain(&error), "due deliveries could not be claimed");
                (Found::Nothing, Duration::MAX)
            });
            let some_free = in_hand.acquire_many(MAX_PER_WEBHOOK);
            let some_room = async {
                let half = bytes.acquire_many(MAX_BYTES_IN_HAND / 2);
                let _both = tokio::join!(in_hand.acquire_many(MAX_PER_WEBHOOK), half);
            };
            let is_idle = in_hand.available_permits() == MAX_IN_HAND as usize;
            let pause = found.pause(is_idle, token_in);
            tokio::select! {
                () = stopping.cancelled() => return,
                // There may be more: claim again as soon as there is room for it.
                _ = some_free, if matches!(found, Found::Crowd | Found::All) => {}
                () = some_room, if found == Found::NoRoom => {}
                () = paced(&self.wakers.parked, pause), if found.listens() => {}
                () = sleep(pause), if !found.listens() => {}
            }
        }
    }

    /// Claims once, and starts the attempts.
    async fn turn(
        self: &Arc<Self>,
        group: &Group,
        in_hand: &Arc<Semaphore>,
        bytes: &Arc<Semaphore>,
    ) -> Result<(Found, Duration), StoreError> {
        let limit = u32::try_from(in_hand.available_permits()).unwrap_or(0);
        if limit == 0 || bytes.available_permits() == 0 {
            return Ok((Found::NoRoom, Duration::MAX));
        }
        let now = self.clock.store_now();
        let breakers = self.attempts.breakers();
        let mut exclude = self.attempts.saturated();
        exclude.extend(breakers.open());
        let request = ClaimRequest {
            now,
            lease_until: now + LEASE,
            limit,
            per_webhook: MAX_PER_WEBHOOK,
            exclude,
            only: None,
        };
        let Due {
            deliveries: claimed,
            probed,
            token_in,
            found,
        } = self.claim(&request).await?;
        if claimed.is_empty() {
            return Ok((Found::Nothing, token_in));
        }
        let lane_of = |one: &ClaimedDelivery| {
            if probed.contains(&one.delivery.webhook_id) {
                Lane::Probe
            } else {
                Lane::Parked
            }
        };
        // After the claim: whoever made it due has answered its command before.
        let snapshot = match self.registry.refresh().await {
            Ok(snapshot) => snapshot,
            Err(error) => {
                let lost = self.let_go(claimed, lane_of);
                self.leases.forget(&lost);
                return Err(error);
            }
        };
        let mut left = Vec::new();
        for one in claimed {
            let permit = Arc::clone(in_hand).try_acquire_owned().ok();
            let (Some(permit), Some(room)) = (permit, room_for(bytes, &one)) else {
                left.push(one);
                continue;
            };
            let (this, snapshot) = (Arc::clone(self), Arc::clone(&snapshot));
            let lane = lane_of(&one);
            group.spawn("parked attempt", async move {
                let settled = this.attempts.attempt(lane, one, &snapshot).await;
                drop(room);
                if let Some(settled) = settled {
                    this.attempts.hand_in(settled, permit).await;
                }
            });
        }
        if left.is_empty() {
            return Ok((found, token_in));
        }
        let left = self.let_go(left, lane_of);
        let (store, leases) = (Arc::clone(&self.store), Arc::clone(&self.leases));
        group.spawn("parked deliveries without room", async move {
            give_back(store.as_ref(), &leases, &left, now).await;
        });
        Ok((Found::NoRoom, token_in))
    }

    /// What is due, and after it the probes with their webhooks; and when the next token comes that
    /// something waits for. The leases are renewed from now on.
    async fn claim(&self, request: &ClaimRequest) -> Result<Due, StoreError> {
        let start = Instant::now();
        let Claimed {
            deliveries: mut claimed,
            next_token_at,
        } = self.store.claim_due(request).await?;
        histogram!(STORE_SECONDS, "operation" => "claim").record(start.elapsed().as_secs_f64());
        let found = Found::by(&claimed, request.limit);
        let probes = self.attempts.breakers().claim_probes(request).await;
        let probes = probes.unwrap_or_else(|error| {
            tracing::debug!(error = %Chain(&error), "probes could not be claimed");
            Vec::new()
        });
        let probed = probes.iter().map(|one| one.delivery.webhook_id).collect();
        claimed.extend(probes);
        for one in &claimed {
            self.leases.hold(one.lease, start);
        }
        Ok(Due {
            deliveries: claimed,
            probed,
            token_in: until(next_token_at, self.clock.store_now()),
            found,
        })
    }

    /// Keeps the probes among them for others, and answers the leases.
    fn let_go(
        &self,
        deliveries: Vec<ClaimedDelivery>,
        lane_of: impl Fn(&ClaimedDelivery) -> Lane,
    ) -> Vec<Lease> {
        let lease = |one: ClaimedDelivery| {
            let webhook = one.delivery.webhook_id;
            self.attempts
                .no_sign(lane_of(&one), webhook, Duration::ZERO);
            one.lease
        };
        deliveries.into_iter().map(lease).collect()
    }

    /// Gives all leases back; for shutdown, when nobody works under them any more.
    pub async fn give_back(store: &dyn Store, leases: &Leases, now: Timestamp) -> usize {
        let held = leases.all();
        if held.is_empty() {
            return 0;
        }
        // What was under way may have reached its endpoint.
        if let Err(error) = store.abandon(&held, now).await {
            tracing::warn!(error = %Chain(&error), "leases were not given back and will run out");
        }
        held.len()
    }
}

/// Keeps the leases of this worker in force. It holds none of the lane's ends of the recorder's channel.
struct Renewal {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    leases: Arc<Leases>,
}

impl Renewal {
    async fn run(self, stopping: CancellationToken) {
        loop {
            tokio::select! {
                () = stopping.cancelled() => return,
                () = sleep(RENEW_EVERY) => {}
            }
            let leases = self.leases.all();
            if leases.is_empty() {
                continue;
            }
            let renew = async || {
                let began = Instant::now();
                let renewed = self
                    .store
                    .renew(&leases, self.clock.store_now() + LEASE)
                    .await;
                renewed.map(|held| self.leases.renewed(&leases, &held, began))
            };
            let never = |_: &StoreError| false;
            if until_done(&stopping, "renew leases", never, renew)
                .await
                .is_none()
            {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests;
