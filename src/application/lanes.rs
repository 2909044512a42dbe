//! The ordered lanes: deliveries of one webhook with the same ordering key go out one after the other,
//! in the order of the source stream.
//!
//! Such a delivery is recorded before any attempt, with its place in the lane. A claim takes the
//! foremost of a lane, and only up to the *floor*: the sequence up to which every event of the source
//! stream is settled, and so recorded. Without it, a worker could send an event while another one still
//! has an earlier event in hand. One worker at a time has a lane; it sends one delivery after the other
//! and stops at the first that has to wait. What a worker that died had sent and not recorded is sent
//! again by the next, in the same order.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use metrics::{counter, histogram};
use tokio::sync::Semaphore;

use crate::{
    domain::{
        interfaces::{ClaimedDelivery, ClaimedLanes, LaneClaim, Lease, Store, StoreError},
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
    known_floor::KnownFloor,
    lane_room::{MAX_PER_WEBHOOK, Room, Seated},
    lane_work::Hands,
    leased::{LeasedAttempts, give_back},
    leases::{LEASE, Leases},
    parked::{paced, until},
    ports::{Clock, SourceFloor},
    registry::{Registry, Snapshot},
    wakers::Wakers,
};

/// Deliveries of one lane that are taken at a time.
pub const MAX_PER_LANE: u32 = 32;
/// How long a lane is worked on at a stretch, besides the request that is under way by then: as long as its
/// leases hold without being renewed. Then it waits for its turn with the others.
pub const STRETCH: Duration = LEASE;
/// How often webhooks are probed in lanes that have no ordering: what waits there is from before.
const LEFTOVERS_EVERY: Duration = Duration::from_secs(1);
/// How often the database is asked when nothing wakes the loop.
const POLL_EVERY: Duration = Duration::from_millis(250);
/// The first and the longest wait for the floor to rise.
const FLOOR_WAITS: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));
/// How long the loop waits for room before it looks again all the same.
const CROWDED_PAUSE: Duration = Duration::from_secs(5);
/// The same where something was found that there was no room for: something smaller may have some.
const NO_ROOM_PAUSE: Duration = Duration::from_secs(1);
/// The ports of the ordered lanes.
pub struct OrderedLanes {
    /// Where deliveries wait.
    pub store: Arc<dyn Store>,
    /// How far the source stream is settled.
    pub floor: Arc<dyn SourceFloor>,
    /// The webhooks.
    pub registry: Arc<Registry>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Makes the attempts.
    pub attempts: Arc<LeasedAttempts>,
    /// The leases that this worker holds.
    pub leases: Arc<Leases>,
    /// Rings when something may have become due.
    pub wakers: Arc<Wakers>,
    /// Told of every turn of the loop.
    pub health: Arc<Health>,
    /// How long a lane is worked on at a stretch ([`STRETCH`]).
    pub stretch: Duration,
}

impl std::fmt::Debug for OrderedLanes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OrderedLanes").finish_non_exhaustive()
    }
}

/// What is known from one turn to the next.
struct Known {
    floor: KnownFloor,
    /// When webhooks without ordering were last probed.
    leftovers: Option<Instant>,
}

/// Deliveries of one lane, and what they are taken for.
type Taken = (Lane, Vec<ClaimedDelivery>);

/// What a turn of the loop found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    Lanes,
    /// Lanes that there is no room for at present.
    Crowded,
    /// Nothing up to the floor, something beyond it.
    AboveFloor,
    /// Nothing, for so long at most.
    Nothing(Duration),
}

impl OrderedLanes {
    /// Claims and works off until `group` is stopping.
    pub fn start(self, group: &Group) {
        group.spawn_loop("ordered lanes", Arc::new(self).run(group.clone()));
    }

    async fn run(self: Arc<Self>, group: Group) {
        let stopping = group.stopping();
        let room = Room::new();
        let mut known = Known {
            floor: KnownFloor::new(&self.floor),
            leftovers: None,
        };
        let mut floor_wait = FLOOR_WAITS.0;
        loop {
            self.health.beat("ordered lanes");
            let found = self.turn(&group, &room, &mut known).await;
            let found = found.unwrap_or_else(|error| {
                counter!(LOOP_FAULTS, "loop" => "ordered lanes").increment(1);
                tracing::warn!(error = %Chain(&error), "ordered deliveries could not be claimed");
                Found::Nothing(POLL_EVERY)
            });
            let pause = match found {
                Found::Lanes => CROWDED_PAUSE,
                Found::Crowded => NO_ROOM_PAUSE,
                Found::AboveFloor => floor_wait,
                Found::Nothing(wait) => wait,
            };
            floor_wait = match found {
                Found::AboveFloor => (floor_wait * 2).min(FLOOR_WAITS.1),
                Found::Lanes | Found::Crowded | Found::Nothing(_) => FLOOR_WAITS.0,
            };
            tokio::select! {
                () = stopping.cancelled() => return,
                // There may be more: claim again as soon as there is room for it.
                _ = room.lanes.acquire(), if found == Found::Lanes => {}
                () = room.for_more(), if found == Found::Crowded => {}
                () = paced(&self.wakers.lanes, pause), if matches!(found, Found::Nothing(_)) => {}
                () = tokio::time::sleep(pause), if !matches!(found, Found::Nothing(_)) => {}
            }
        }
    }

    /// Claims once, and starts work on what it got.
    async fn turn(
        self: &Arc<Self>,
        group: &Group,
        room: &Room,
        known: &mut Known,
    ) -> Result<Found, StoreError> {
        if room.bytes.available_permits() == 0 {
            return Ok(Found::Crowded);
        }
        let is_full = room.lanes.available_permits() == 0;
        let (lanes, above_floor, next_token_at) = self.look(room, known).await?;
        if lanes.is_empty() {
            return Ok(if is_full {
                Found::Crowded
            } else if above_floor {
                Found::AboveFloor
            } else {
                let next_token = until(next_token_at, self.clock.store_now());
                Found::Nothing(POLL_EVERY.min(next_token))
            });
        }
        // After the claim: whoever made it due has answered its command before.
        let snapshot = match self.registry.refresh().await {
            Ok(snapshot) => snapshot,
            Err(error) => {
                let lost = self.let_go(lanes);
                self.leases.forget(&lost);
                return Err(error);
            }
        };
        let mut left = Vec::new();
        for (kind, lane) in lanes {
            let (seated, rest) = room.seat(kind, lane);
            if !rest.is_empty() {
                left.push((kind, rest));
            }
            if let Some(seated) = seated {
                self.begin(group, room, &snapshot, (kind, seated));
            }
        }
        if left.is_empty() {
            return Ok(if is_full {
                Found::Crowded
            } else {
                Found::Lanes
            });
        }
        let (store, leases) = (Arc::clone(&self.store), Arc::clone(&self.leases));
        let (left, now) = (self.let_go(left), self.clock.store_now());
        group.spawn("ordered lanes without room", async move {
            give_back(store.as_ref(), &leases, &left, now).await;
        });
        Ok(Found::Crowded)
    }

    /// Claims lanes and probes, and asks for the floor where it is too old or something waits above it; the
    /// last one will do where there is no answer. Answers also whether something does, and when the next
    /// token comes that something waits for.
    async fn look(
        &self,
        room: &Room,
        known: &mut Known,
    ) -> Result<(Vec<Taken>, bool, Option<Timestamp>), StoreError> {
        let mut is_fresh = known.floor.keep_fresh().await;
        let mut claimed = self.claim(room, &known.floor).await?;
        if claimed.lanes.is_empty() && claimed.above_floor && !is_fresh {
            is_fresh = known.floor.ask_again().await;
            if is_fresh {
                claimed = self.claim(room, &known.floor).await?;
            }
        }
        let mut probes = self.claim_probes(room, known).await;
        // What was claimed before is not lost by a fault.
        let waits_above = probes.lanes.is_empty() && probes.above_floor;
        if waits_above && !is_fresh && known.floor.ask_again().await {
            known.leftovers = None;
            probes = self.claim_probes(room, known).await;
        }
        let above_floor = claimed.above_floor || probes.above_floor;
        let lanes = claimed.lanes.into_iter().map(|lane| (Lane::Parked, lane));
        let probes = probes.lanes.into_iter().map(|lane| (Lane::Probe, lane));
        Ok((
            lanes.chain(probes).collect(),
            above_floor,
            claimed.next_token_at,
        ))
    }

    async fn claim(&self, room: &Room, floor: &KnownFloor) -> Result<ClaimedLanes, StoreError> {
        let mut exclude = self.attempts.saturated();
        exclude.extend(self.attempts.breakers().open());
        exclude.extend(room.full());
        self.take(LaneClaim {
            lanes: free(&room.lanes).min(MAX_PER_WEBHOOK),
            per_lane: MAX_PER_LANE,
            exclude,
            ..self.any_one(floor)
        })
        .await
    }

    /// One delivery for each endpoint that has waited long enough and that this worker may try.
    async fn claim_probes(&self, room: &Room, known: &mut Known) -> ClaimedLanes {
        let (breakers, now) = (self.attempts.breakers(), self.clock.store_now());
        let mut webhooks = breakers.held(now);
        let since = known.leftovers.map(|at| at.elapsed());
        if since.is_some_and(|since| since < LEFTOVERS_EVERY) {
            let snapshot = self.registry.current();
            webhooks.retain(|id| {
                snapshot
                    .webhook(*id)
                    .is_some_and(|it| it.ordering.is_some())
            });
        } else {
            known.leftovers = Some(Instant::now());
        }
        let lanes = free(&room.probes);
        // The parked lane may have taken it meanwhile.
        webhooks.retain(|webhook| lanes > 0 && breakers.use_probe(*webhook, now));
        if webhooks.is_empty() {
            return ClaimedLanes::default();
        }
        let claimed = self.take(LaneClaim {
            lanes,
            only: Some(webhooks.clone()),
            ..self.any_one(&known.floor)
        });
        let claimed = claimed.await.unwrap_or_else(|error| {
            tracing::debug!(error = %Chain(&error), "ordered probes could not be claimed");
            ClaimedLanes::default()
        });
        let found = claimed.lanes.iter().flatten();
        let found: HashSet<WebhookId> = found.map(|one| one.delivery.webhook_id).collect();
        for webhook in webhooks.into_iter().filter(|id| !found.contains(id)) {
            breakers.keep_probe(webhook, Duration::ZERO);
        }
        claimed
    }

    /// A claim of one delivery of one lane, whosever it is.
    fn any_one(&self, floor: &KnownFloor) -> LaneClaim {
        let now = self.clock.store_now();
        LaneClaim {
            now,
            lease_until: now + LEASE,
            lanes: 1,
            per_lane: 1,
            floor: floor.sequence(),
            exclude: Vec::new(),
            only: None,
        }
    }

    /// From now on the leases on what was claimed are renewed.
    async fn take(&self, claim: LaneClaim) -> Result<ClaimedLanes, StoreError> {
        let start = Instant::now();
        let claimed = self.store.claim_lanes(&claim).await?;
        histogram!(STORE_SECONDS, "operation" => "claim_lanes")
            .record(start.elapsed().as_secs_f64());
        for one in claimed.lanes.iter().flatten() {
            self.leases.hold(one.lease, start);
        }
        Ok(claimed)
    }

    /// Keeps the probes among them for others, and answers the leases.
    fn let_go(&self, lanes: Vec<Taken>) -> Vec<Lease> {
        let mut leases = Vec::new();
        for (kind, lane) in lanes {
            if let Some(first) = lane.first() {
                let webhook = first.delivery.webhook_id;
                self.attempts.no_sign(kind, webhook, Duration::ZERO);
            }
            leases.extend(lane.iter().map(|one| one.lease));
        }
        leases
    }

    fn begin(
        self: &Arc<Self>,
        group: &Group,
        room: &Room,
        snapshot: &Arc<Snapshot>,
        (kind, lane): (Lane, Seated),
    ) {
        let (this, snapshot) = (Arc::clone(self), Arc::clone(snapshot));
        let (outcomes, stopping) = (Arc::clone(&room.outcomes), group.stopping());
        group.spawn("ordered lane", async move {
            let hands = Hands {
                snapshot,
                outcomes: &outcomes,
                stopping: &stopping,
            };
            this.work_off(kind, lane.deliveries, hands).await;
            if lane.place.leave() {
                this.wakers.lanes.notify_one();
            }
        });
    }
}

fn free(places: &Semaphore) -> u32 {
    u32::try_from(places.available_permits()).unwrap_or(u32::MAX)
}
