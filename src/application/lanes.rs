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
    sync::Arc,
    time::{Duration, Instant},
};

use metrics::{counter, histogram};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

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
    lane_work::Hands,
    leased::{LeasedAttempts, MAX_BYTES_IN_HAND, give_back, room_for},
    leases::{LEASE, Leases},
    parked::until,
    ports::{BusError, Clock, SourceFloor},
    registry::{Registry, Snapshot},
    wakers::Wakers,
};

/// Lanes that this worker has in hand at a time.
pub const MAX_LANES: u32 = 256;
/// Deliveries of one lane that are taken at a time.
pub const MAX_PER_LANE: u32 = 32;
/// Outcomes that wait to be recorded.
const MAX_OUTCOMES: usize = 1_000;
/// How often the database is asked when nothing wakes the loop.
const POLL_EVERY: Duration = Duration::from_millis(250);
/// The first and the longest wait for the floor to rise.
const FLOOR_WAITS: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));
/// How long the loop waits for room before it looks again all the same.
const CROWDED_PAUSE: Duration = Duration::from_secs(5);
/// The same where something was found that there was no room for: something smaller may have some.
const NO_ROOM_PAUSE: Duration = Duration::from_secs(1);
/// How long a floor is taken for true. It falls when the source stream was deleted and made anew.
const FLOOR_HOLDS: Duration = Duration::from_secs(3);

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
}

impl std::fmt::Debug for OrderedLanes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OrderedLanes").finish_non_exhaustive()
    }
}

/// What bounds the lanes in hand.
struct Room {
    lanes: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    outcomes: Arc<Semaphore>,
}

/// A lane that there is room for, each of its deliveries with its bytes.
struct Seated {
    place: OwnedSemaphorePermit,
    deliveries: Vec<(ClaimedDelivery, OwnedSemaphorePermit)>,
}

/// The floor as it was last told.
#[derive(Default)]
struct KnownFloor {
    sequence: i64,
    asked: Option<Instant>,
}

/// Deliveries of one lane, and what they are taken for.
type Taken = (Lane, Vec<ClaimedDelivery>);

/// A lane could not be worked on.
#[derive(Debug, thiserror::Error)]
enum LaneError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Bus(#[from] BusError),
}

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
        let room = Room {
            lanes: Arc::new(Semaphore::new(MAX_LANES as usize)),
            bytes: Arc::new(Semaphore::new(MAX_BYTES_IN_HAND as usize)),
            outcomes: Arc::new(Semaphore::new(MAX_OUTCOMES)),
        };
        let mut floor = KnownFloor::default();
        let mut floor_wait = FLOOR_WAITS.0;
        loop {
            self.health.beat("ordered lanes");
            let found = self.turn(&group, &room, &mut floor).await;
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
                () = self.wakers.lanes.notified(), if matches!(found, Found::Nothing(_)) => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Claims once, and starts work on what it got.
    async fn turn(
        self: &Arc<Self>,
        group: &Group,
        room: &Room,
        floor: &mut KnownFloor,
    ) -> Result<Found, LaneError> {
        let free = u32::try_from(room.lanes.available_permits()).unwrap_or(0);
        if free == 0 || room.bytes.available_permits() == 0 {
            return Ok(Found::Crowded);
        }
        let (lanes, above_floor, next_token_at) = self.look(free, floor).await?;
        if lanes.is_empty() {
            return Ok(if above_floor {
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
                return Err(error.into());
            }
        };
        let mut left = Vec::new();
        for (kind, lane) in lanes {
            let (seated, rest) = room.seat(lane);
            if !rest.is_empty() {
                left.push((kind, rest));
            }
            if let Some(seated) = seated {
                self.begin(group, room, &snapshot, (kind, seated));
            }
        }
        if left.is_empty() {
            return Ok(Found::Lanes);
        }
        let (store, leases) = (Arc::clone(&self.store), Arc::clone(&self.leases));
        let (left, now) = (self.let_go(left), self.clock.store_now());
        group.spawn("ordered lanes without room", async move {
            give_back(store.as_ref(), &leases, &left, now).await;
        });
        Ok(Found::Crowded)
    }

    /// Claims lanes and probes, and asks for the floor where it is too old or something waits above it.
    /// Answers also whether something does, and when the next token comes that something waits for.
    async fn look(
        &self,
        free: u32,
        floor: &mut KnownFloor,
    ) -> Result<(Vec<Taken>, bool, Option<Timestamp>), LaneError> {
        let mut is_fresh = false;
        if floor.asked.is_none_or(|at| at.elapsed() >= FLOOR_HOLDS) {
            // The last one will do while the bus is down.
            is_fresh = self.ask_floor(floor).await.is_ok();
        }
        let mut claimed = self.claim(free, floor.sequence).await?;
        if claimed.lanes.is_empty() && claimed.above_floor && !is_fresh {
            self.ask_floor(floor).await?;
            is_fresh = true;
            claimed = self.claim(free, floor.sequence).await?;
        }
        let mut probes = self.claim_probes(floor.sequence).await;
        // What was claimed before is not lost by a fault.
        if probes.lanes.is_empty()
            && probes.above_floor
            && !is_fresh
            && self.ask_floor(floor).await.is_ok()
        {
            probes = self.claim_probes(floor.sequence).await;
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

    async fn ask_floor(&self, floor: &mut KnownFloor) -> Result<(), BusError> {
        let told = self.floor.floor().await;
        // After the answer: a bus that is down takes its time, and is not asked again at once.
        floor.asked = Some(Instant::now());
        match told {
            Ok(sequence) => {
                floor.sequence = sequence;
                Ok(())
            }
            Err(error) => {
                tracing::debug!(error = %Chain(&error), "the floor of the source stream is not known");
                Err(error)
            }
        }
    }

    async fn claim(&self, lanes: u32, floor: i64) -> Result<ClaimedLanes, StoreError> {
        let mut exclude = self.attempts.saturated();
        exclude.extend(self.attempts.breakers().open());
        let now = self.clock.store_now();
        self.take(LaneClaim {
            now,
            lease_until: now + LEASE,
            lanes,
            per_lane: MAX_PER_LANE,
            floor,
            exclude,
            only: None,
        })
        .await
    }

    /// One delivery for each endpoint that has waited long enough and that this worker may try.
    async fn claim_probes(&self, floor: i64) -> ClaimedLanes {
        let now = self.clock.store_now();
        let breakers = self.attempts.breakers();
        let mut probes = ClaimedLanes::default();
        for webhook in breakers.held(now) {
            // The parked lane may have taken it meanwhile.
            if !breakers.use_probe(webhook, now) {
                continue;
            }
            match self
                .take(probe_of(webhook, floor, self.clock.store_now()))
                .await
            {
                Ok(claimed) => {
                    probes.above_floor |= claimed.above_floor;
                    if claimed.lanes.is_empty() {
                        breakers.keep_probe(webhook, Duration::ZERO);
                    }
                    probes.lanes.extend(claimed.lanes);
                }
                Err(error) => {
                    breakers.keep_probe(webhook, Duration::ZERO);
                    tracing::debug!(error = %Chain(&error), "ordered probes could not be claimed");
                    break;
                }
            }
        }
        probes
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
            drop(lane.place);
            this.wakers.lanes.notify_one();
        });
    }
}

/// One delivery of this webhook.
fn probe_of(webhook: WebhookId, floor: i64, now: Timestamp) -> LaneClaim {
    LaneClaim {
        now,
        lease_until: now + LEASE,
        lanes: 1,
        per_lane: 1,
        floor,
        exclude: Vec::new(),
        only: Some(webhook),
    }
}

impl Room {
    /// As much of the front of a lane as there is room for, and the rest.
    fn seat(&self, lane: Vec<ClaimedDelivery>) -> (Option<Seated>, Vec<ClaimedDelivery>) {
        let Ok(place) = Arc::clone(&self.lanes).try_acquire_owned() else {
            return (None, lane);
        };
        let mut deliveries = Vec::with_capacity(lane.len());
        let mut lane = lane.into_iter();
        let mut rest = Vec::new();
        for one in lane.by_ref() {
            if let Some(bytes) = room_for(&self.bytes, &one) {
                deliveries.push((one, bytes));
            } else {
                rest.push(one);
                break;
            }
        }
        rest.extend(lane);
        let seated = (!deliveries.is_empty()).then_some(Seated { place, deliveries });
        (seated, rest)
    }

    /// Waits until there is a good deal of it.
    async fn for_more(&self) {
        let (lane, half) = (self.lanes.acquire(), MAX_BYTES_IN_HAND / 2);
        let _both = tokio::join!(lane, self.bytes.acquire_many(half));
    }
}
