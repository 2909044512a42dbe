//! Deliveries that go out together: claims batches and sends each in one request.
//!
//! Such a delivery is recorded before any attempt, due when it has waited for others long enough. A claim
//! makes a batch of those that wait, as soon as one is due or there are enough of them; what it makes is
//! written down, so that every later attempt is at the same batch. All outcomes of a batch are recorded in
//! one transaction: where a worker dies before it, the next one sends the same batch again.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use metrics::{counter, histogram};
use tokio::sync::Semaphore;

use crate::{
    domain::{
        events::BusinessEvent,
        interfaces::{
            BatchClaim, ClaimedBatch, ClaimedBatches, ClaimedDelivery, Lease, LeasedRecord, Store,
            StoreError,
        },
        values::{BatchId, Timestamp, WebhookId},
    },
    shared::{
        error_chain::Chain,
        lifecycle::Group,
        metrics::{LOOP_FAULTS, STORE_SECONDS},
    },
};

use super::{
    batch_attempt::{BatchTried, Member},
    breakers::PROBE_PAUSE,
    deliver::{Lane, NO_NAMES, OPEN, UNUSABLE},
    health::Health,
    leased::{BEHIND_WAIT, BUSY_WAIT, LeasedAttempts, UNUSABLE_WAIT},
    leases::{LEASE, Leases},
    parked::until,
    ports::Clock,
    recorder::Outcome,
    registry::{Registry, Snapshot},
    wakers::Wakers,
};

/// Batches that this worker has in hand at a time, besides those that take long.
pub const MAX_BATCHES: usize = 128;
/// Of one webhook, those that take long included: an endpoint that hangs must leave room for others.
pub const MAX_PER_WEBHOOK: usize = 8;
/// Batches that one claim brings at most.
pub const MAX_PER_CLAIM: usize = 16;
/// Bytes of events in hand beyond which nothing more is claimed: 64 MiB.
pub const MAX_BYTES_IN_HAND: usize = 64 << 20;
/// How often the database is asked when nothing wakes the loop.
const POLL_EVERY: Duration = Duration::from_millis(250);
/// How long a claim that found nothing rests, however often the loop is woken: what is recorded one by
/// one is looked at in groups.
const REST: Duration = Duration::from_millis(20);

/// The ports of the loop.
pub struct Batches {
    /// Where deliveries wait.
    pub store: Arc<dyn Store>,
    /// The webhooks.
    pub registry: Arc<Registry>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Makes the attempts, and takes what came of them.
    pub attempts: Arc<LeasedAttempts>,
    /// The leases that this worker holds.
    pub leases: Arc<Leases>,
    /// Rings when something may have become due, or enough.
    pub wakers: Arc<Wakers>,
    /// Told of every turn of the loop.
    pub health: Arc<Health>,
}

impl std::fmt::Debug for Batches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Batches").finish_non_exhaustive()
    }
}

/// What bounds the batches in hand.
#[derive(Debug, Clone)]
struct Room {
    batches: Arc<Semaphore>,
    outcomes: Arc<Semaphore>,
    in_hand: Arc<Mutex<HashMap<WebhookId, InHand>>>,
}

#[derive(Debug, Default)]
struct InHand {
    batches: usize,
    bytes: usize,
}

/// A batch in hand; given up when it is dropped.
#[derive(Debug)]
struct Held {
    room: Room,
    webhook: WebhookId,
    bytes: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut all = self.room.lock();
        if let Some(one) = all.get_mut(&self.webhook) {
            one.batches -= 1;
            one.bytes -= self.bytes;
            if one.batches == 0 {
                all.remove(&self.webhook);
            }
        }
    }
}

impl Room {
    fn new() -> Self {
        Self {
            batches: Arc::new(Semaphore::new(MAX_BATCHES)),
            outcomes: Arc::new(Semaphore::new(MAX_BATCHES)),
            in_hand: Arc::default(),
        }
    }

    fn hold(&self, webhook: WebhookId, bytes: usize) -> Held {
        let mut all = self.lock();
        let one = all.entry(webhook).or_default();
        one.batches += 1;
        one.bytes += bytes;
        drop(all);
        Held {
            room: self.clone(),
            webhook,
            bytes,
        }
    }

    /// How many batches may be claimed now.
    fn free(&self) -> usize {
        let bytes: usize = self.lock().values().map(|one| one.bytes).sum();
        if bytes >= MAX_BYTES_IN_HAND {
            return 0;
        }
        self.batches.available_permits().min(MAX_PER_CLAIM)
    }

    /// The webhooks that have enough in hand.
    fn full(&self) -> Vec<WebhookId> {
        let all = self.lock();
        let full = all.iter().filter(|(_, one)| one.batches >= MAX_PER_WEBHOOK);
        full.map(|(id, _)| *id).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<WebhookId, InHand>> {
        self.in_hand.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a turn of the loop found.
enum Found {
    Batches,
    /// Nothing, and nothing for so long unless the loop is woken.
    Nothing(Duration),
}

/// What is to be recorded about a batch.
#[derive(Debug, Default)]
struct Settled {
    records: Vec<LeasedRecord>,
    /// Due again at these times.
    released: Option<(Vec<Lease>, Timestamp)>,
}

impl Batches {
    /// Claims and sends until `group` is stopping.
    pub fn start(self, group: &Group) {
        group.spawn_loop("batches", Arc::new(self).run(group.clone()));
    }

    async fn run(self: Arc<Self>, group: Group) {
        let stopping = group.stopping();
        let room = Room::new();
        loop {
            self.health.beat("batches");
            let found = self.turn(&group, &room).await.unwrap_or_else(|error| {
                counter!(LOOP_FAULTS, "loop" => "batches").increment(1);
                tracing::warn!(error = %Chain(&error), "batches could not be claimed");
                Found::Nothing(POLL_EVERY)
            });
            let pause = match found {
                Found::Nothing(pause) => pause.min(POLL_EVERY),
                Found::Batches if stopping.is_cancelled() => return,
                // There may be more.
                Found::Batches => continue,
            };
            let woken = async {
                tokio::time::sleep(REST).await;
                self.wakers.batches.notified().await;
            };
            tokio::select! {
                () = stopping.cancelled() => return,
                () = woken => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Claims once, and starts work on what it got.
    async fn turn(self: &Arc<Self>, group: &Group, room: &Room) -> Result<Found, StoreError> {
        let free = room.free();
        if free == 0 {
            return Ok(Found::Nothing(POLL_EVERY));
        }
        let ClaimedBatches {
            batches: mut claimed,
            next_token_at,
        } = self.claim(free, room).await?;
        let probes = self.claim_probes().await;
        let probed: HashSet<BatchId> = probes.iter().map(|batch| batch.id).collect();
        claimed.extend(probes);
        if claimed.is_empty() {
            let next_token = until(next_token_at, self.clock.store_now());
            return Ok(Found::Nothing(next_token));
        }
        let lane_of = |batch: &ClaimedBatch| {
            if probed.contains(&batch.id) {
                Lane::Probe
            } else {
                Lane::Parked
            }
        };
        // After the claim: whoever made it due has answered its command before.
        let snapshot = match self.registry.refresh().await {
            Ok(snapshot) => snapshot,
            Err(error) => {
                for batch in &claimed {
                    self.no_sign(lane_of(batch), batch, Duration::ZERO);
                    self.leases.forget(&leases_of(batch).collect::<Vec<_>>());
                }
                return Err(error);
            }
        };
        for batch in claimed {
            self.spawn(lane_of(&batch), batch, &snapshot, (group, room));
        }
        Ok(Found::Batches)
    }

    fn spawn(
        self: &Arc<Self>,
        lane: Lane,
        batch: ClaimedBatch,
        snapshot: &Arc<Snapshot>,
        (group, room): (&Group, &Room),
    ) {
        let Some(first) = batch.deliveries.first() else {
            return;
        };
        let bytes = batch.deliveries.iter().map(|one| one.event.raw.len()).sum();
        let held = room.hold(first.delivery.webhook_id, bytes);
        // Probes may be a few more than there is room for.
        let permit = Arc::clone(&room.batches).try_acquire_owned().ok();
        let (this, snapshot) = (Arc::clone(self), Arc::clone(snapshot));
        let outcomes = Arc::clone(&room.outcomes);
        group.spawn("batch", async move {
            let settled = this.send(lane, batch, &snapshot, || drop(permit)).await;
            if let Some(settled) = settled {
                this.hand_in(settled, &outcomes).await;
            }
            drop(held);
            this.wakers.batches.notify_one();
        });
    }

    async fn claim(&self, batches: usize, room: &Room) -> Result<ClaimedBatches, StoreError> {
        let mut exclude = self.attempts.saturated();
        exclude.extend(self.attempts.breakers().open());
        exclude.extend(room.full());
        let start = Instant::now();
        let claimed = self
            .store
            .claim_batches(&self.request(batches, exclude, None))
            .await?;
        histogram!(STORE_SECONDS, "operation" => "claim_batches")
            .record(start.elapsed().as_secs_f64());
        self.hold(&claimed.batches, start);
        Ok(claimed)
    }

    fn no_sign(&self, lane: Lane, batch: &ClaimedBatch, pause: Duration) {
        if let Some(first) = batch.deliveries.first() {
            self.attempts
                .no_sign(lane, first.delivery.webhook_id, pause);
        }
    }

    /// One batch for each endpoint that has waited long enough and that this worker may try.
    async fn claim_probes(&self) -> Vec<ClaimedBatch> {
        let now = self.clock.store_now();
        let breakers = self.attempts.breakers();
        let mut probes = Vec::new();
        for webhook in breakers.held(now) {
            // Another lane may have taken it meanwhile.
            if !breakers.use_probe(webhook, now) {
                continue;
            }
            let began = Instant::now();
            let request = self.request(1, Vec::new(), Some(webhook));
            let claimed = self.store.claim_batches(&request).await;
            let claimed = claimed.map(|claimed| claimed.batches);
            if claimed.as_ref().map_or(true, Vec::is_empty) {
                breakers.keep_probe(webhook, Duration::ZERO);
            }
            match claimed {
                Ok(claimed) => {
                    self.hold(&claimed, began);
                    probes.extend(claimed);
                }
                Err(error) => {
                    tracing::debug!(error = %Chain(&error), "a batch to probe with was not claimed");
                    break;
                }
            }
        }
        probes
    }

    /// From now on the leases on what was claimed are renewed.
    fn hold(&self, claimed: &[ClaimedBatch], began: Instant) {
        let leases = claimed.iter().flat_map(leases_of);
        leases.for_each(|lease| self.leases.hold(lease, began));
    }

    fn request(
        &self,
        batches: usize,
        exclude: Vec<WebhookId>,
        only: Option<WebhookId>,
    ) -> BatchClaim {
        let now = self.clock.store_now();
        let ids = (0..batches).map(|_| BatchId(self.clock.new_id()));
        BatchClaim {
            now,
            lease_until: now + LEASE,
            ids: ids.collect(),
            exclude,
            only,
        }
    }

    /// `None` when the worker is stopping.
    async fn send(
        &self,
        lane: Lane,
        batch: ClaimedBatch,
        snapshot: &Snapshot,
        when_slow: impl FnOnce(),
    ) -> Option<Settled> {
        let leases: Vec<Lease> = leases_of(&batch).collect();
        let id = batch.deliveries.first()?.delivery.webhook_id;
        let released = |leases: Vec<Lease>, at: Timestamp| Settled {
            records: Vec::new(),
            released: Some((leases, at)),
        };
        let now = self.clock.store_now();
        let Some(webhook) = snapshot.webhook(id) else {
            self.attempts.no_sign(lane, id, PROBE_PAUSE);
            return Some(released(leases, now + BUSY_WAIT));
        };
        let (members, unreadable) = members(batch.deliveries);
        let unreadable = (!unreadable.is_empty()).then(|| (unreadable, now + UNUSABLE_WAIT));
        if members.is_empty() {
            self.attempts.no_sign(lane, id, Duration::ZERO);
            return Some(Settled {
                records: Vec::new(),
                released: unreadable,
            });
        }
        let deliverer = &self.attempts.deliverer;
        let tried = deliverer
            .attempt_batch(lane, webhook, batch.id, members, when_slow)
            .await;
        match &tried {
            BatchTried::Waits(_) => self.attempts.no_sign(lane, id, PROBE_PAUSE),
            // The events' fault, and others may be better.
            BatchTried::Recorded(records) if records.iter().all(|one| one.attempt.is_none()) => {
                self.attempts.no_sign(lane, id, Duration::ZERO);
            }
            BatchTried::Recorded(_) | BatchTried::Stopping => {}
        }
        let now = self.clock.store_now();
        match tried {
            BatchTried::Recorded(records) => Some(Settled {
                records,
                released: unreadable,
            }),
            BatchTried::Waits(reason) => {
                let at = match reason {
                    UNUSABLE => now + UNUSABLE_WAIT,
                    NO_NAMES => now + BEHIND_WAIT,
                    OPEN => {
                        let until = self.attempts.breakers().open_until(id);
                        until.map_or(now, |at| at.max(now))
                    }
                    _ if deliverer.endpoints().is_behind(id) => now + BEHIND_WAIT,
                    _ => now + BUSY_WAIT,
                };
                Some(released(leases, at))
            }
            BatchTried::Stopping => None,
        }
    }

    async fn hand_in(&self, settled: Settled, outcomes: &Arc<Semaphore>) {
        // Never closed.
        let Ok(permit) = Arc::clone(outcomes).acquire_owned().await else {
            return;
        };
        let (released, at) = settled
            .released
            .unwrap_or_else(|| (Vec::new(), self.clock.store_now()));
        let outcome = Outcome::Together {
            records: settled.records,
            released,
            at,
            permit,
        };
        // The recorder outlives the loop; if it is gone, the leases run out.
        drop(self.attempts.outcomes.send(outcome).await);
    }
}

fn leases_of(batch: &ClaimedBatch) -> impl Iterator<Item = Lease> {
    batch.deliveries.iter().map(|one| one.lease)
}

/// The deliveries with their events read, and the leases of those whose event cannot be.
fn members(deliveries: Vec<ClaimedDelivery>) -> (Vec<Member>, Vec<Lease>) {
    let mut members = Vec::with_capacity(deliveries.len());
    let mut unreadable = Vec::new();
    for one in deliveries {
        match BusinessEvent::from_stored(&one.event.meta, Bytes::clone(&one.event.raw)) {
            Ok(event) => members.push(Member {
                lease: one.lease,
                delivery: one.delivery,
                event,
            }),
            Err(problem) => {
                let delivery = one.delivery.id;
                tracing::error!(%delivery, problem, "a stored event cannot be read");
                unreadable.push(one.lease);
            }
        }
    }
    (members, unreadable)
}
