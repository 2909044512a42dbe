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
use tokio_util::sync::CancellationToken;

use crate::{
    domain::interfaces::{ClaimedDelivery, ClaimedLanes, LaneClaim, Store, StoreError},
    shared::{
        error_chain::Chain,
        lifecycle::Group,
        metrics::{LOOP_FAULTS, STORE_SECONDS},
    },
};

use super::{
    deliver::Lane,
    health::Health,
    leased::{LeasedAttempts, Settled},
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
/// Bytes of events in hand: 64 MiB.
pub const MAX_BYTES_IN_HAND: u32 = 64 << 20;
/// Outcomes that wait to be recorded.
const MAX_OUTCOMES: usize = 1_000;
/// How often the database is asked when nothing wakes the loop.
const POLL_EVERY: Duration = Duration::from_millis(250);
/// The first and the longest wait for the floor to rise.
const FLOOR_WAITS: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));
/// How long the loop waits for room before it looks again all the same.
const CROWDED_PAUSE: Duration = Duration::from_secs(5);

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

/// What work on a lane needs besides.
#[derive(Clone, Copy)]
struct Hands<'a> {
    snapshot: &'a Snapshot,
    outcomes: &'a Arc<Semaphore>,
    stopping: &'a CancellationToken,
}

/// A lane could not be worked on.
#[derive(Debug, thiserror::Error)]
enum LaneError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Bus(#[from] BusError),
}

/// What a turn of the loop found.
enum Found {
    Lanes,
    /// Nothing up to the floor, something beyond it.
    AboveFloor,
    /// Nothing, or nothing for so long.
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
        let mut floor = 0;
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
                Found::AboveFloor => floor_wait,
                Found::Nothing(wait) => wait,
            };
            floor_wait = match found {
                Found::AboveFloor => (floor_wait * 2).min(FLOOR_WAITS.1),
                Found::Lanes | Found::Nothing(_) => FLOOR_WAITS.0,
            };
            tokio::select! {
                () = stopping.cancelled() => return,
                // There may be more: claim again as soon as there is room for it.
                _ = room.lanes.acquire(), if matches!(found, Found::Lanes) => {}
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
        floor: &mut i64,
    ) -> Result<Found, LaneError> {
        let free = u32::try_from(room.lanes.available_permits()).unwrap_or(0);
        if free == 0 {
            return Ok(Found::Lanes);
        }
        let mut began = Instant::now();
        let mut claimed = self.claim(free, *floor).await?;
        if claimed.lanes.is_empty() && claimed.above_floor {
            *floor = self.floor.floor().await?;
            began = Instant::now();
            claimed = self.claim(free, *floor).await?;
        }
        let probes = self.claim_probes(*floor).await.unwrap_or_else(|error| {
            tracing::debug!(error = %Chain(&error), "ordered probes could not be claimed");
            Vec::new()
        });
        if claimed.lanes.is_empty() && probes.is_empty() {
            return Ok(if claimed.above_floor {
                Found::AboveFloor
            } else {
                let next_token = until(claimed.next_token_at, self.clock.store_now());
                Found::Nothing(POLL_EVERY.min(next_token))
            });
        }
        let lanes = claimed.lanes.into_iter().map(|lane| (Lane::Parked, lane));
        let lanes = lanes.chain(probes.into_iter().map(|lane| (Lane::Probe, lane)));
        let lanes: Vec<(Lane, Vec<ClaimedDelivery>)> = lanes.collect();
        let leases = || lanes.iter().flat_map(|(_, lane)| lane).map(|one| one.lease);
        leases().for_each(|lease| self.leases.hold(lease, began));
        // After the claim: whoever made it due has answered its command before.
        let snapshot = match self.registry.refresh().await {
            Ok(snapshot) => snapshot,
            Err(error) => {
                self.leases.forget(&leases().collect::<Vec<_>>());
                return Err(error.into());
            }
        };
        for (kind, lane) in lanes {
            let Some(permits) = room.for_lane(&lane).await else {
                break;
            };
            let (this, snapshot) = (Arc::clone(self), Arc::clone(&snapshot));
            let (outcomes, stopping) = (Arc::clone(&room.outcomes), group.stopping());
            group.spawn("ordered lane", async move {
                let hands = Hands {
                    snapshot: &snapshot,
                    outcomes: &outcomes,
                    stopping: &stopping,
                };
                this.work_off(kind, lane, hands).await;
                drop(permits);
                this.wakers.lanes.notify_one();
            });
        }
        Ok(Found::Lanes)
    }

    async fn claim(&self, lanes: u32, floor: i64) -> Result<ClaimedLanes, StoreError> {
        let now = self.clock.store_now();
        let mut exclude = self.attempts.saturated();
        exclude.extend(self.attempts.breakers().open());
        let start = Instant::now();
        let claimed = self
            .store
            .claim_lanes(&LaneClaim {
                now,
                lease_until: now + LEASE,
                lanes,
                per_lane: MAX_PER_LANE,
                floor,
                exclude,
                only: None,
            })
            .await?;
        histogram!(STORE_SECONDS, "operation" => "claim_lanes")
            .record(start.elapsed().as_secs_f64());
        Ok(claimed)
    }

    /// One delivery for each endpoint that has waited long enough and that this worker may try.
    async fn claim_probes(&self, floor: i64) -> Result<Vec<Vec<ClaimedDelivery>>, StoreError> {
        let now = self.clock.store_now();
        let mut probes = Vec::new();
        for webhook in self.attempts.breakers().held(now) {
            let claimed = self
                .store
                .claim_lanes(&LaneClaim {
                    now,
                    lease_until: now + LEASE,
                    lanes: 1,
                    per_lane: 1,
                    floor,
                    exclude: Vec::new(),
                    only: Some(webhook),
                })
                .await?;
            if !claimed.lanes.is_empty() {
                self.attempts.breakers().use_probe(webhook, now);
                probes.extend(claimed.lanes);
            }
        }
        Ok(probes)
    }

    /// Sends one delivery after the other; gives back what has to wait behind one that does.
    async fn work_off(&self, kind: Lane, lane: Vec<ClaimedDelivery>, hands: Hands<'_>) {
        let Hands {
            snapshot,
            outcomes,
            stopping,
        } = hands;
        let mut rest = lane.into_iter();
        let mut due_again = self.clock.store_now();
        for one in rest.by_ref() {
            // Somebody else may have the lane by now.
            if !self.leases.is_in_force(&one.lease) {
                return;
            }
            let Some(settled) = self.attempts.attempt(kind, one, snapshot).await else {
                return;
            };
            let go_on = settled.lets_others_go() && !stopping.is_cancelled();
            if let Settled::Released(_, at) = settled {
                due_again = at;
            }
            self.hand_in(settled, outcomes).await;
            if !go_on {
                break;
            }
        }
        for one in rest {
            let settled = Settled::Released(one.lease, due_again);
            self.hand_in(settled, outcomes).await;
        }
    }

    async fn hand_in(&self, settled: Settled, outcomes: &Arc<Semaphore>) {
        // Never closed.
        if let Ok(permit) = Arc::clone(outcomes).acquire_owned().await {
            self.attempts.hand_in(settled, permit).await;
        }
    }
}

impl Room {
    /// One lane and its bytes; one that is larger than all room takes all of it.
    async fn for_lane(
        &self,
        lane: &[ClaimedDelivery],
    ) -> Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)> {
        let bytes: usize = lane.iter().map(|one| one.event.raw.len()).sum();
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let bytes = bytes.clamp(1, MAX_BYTES_IN_HAND);
        let lanes = Arc::clone(&self.lanes).acquire_owned().await.ok()?;
        // The leases are renewed meanwhile.
        let bytes = Arc::clone(&self.bytes)
            .acquire_many_owned(bytes)
            .await
            .ok()?;
        Some((lanes, bytes))
    }
}
