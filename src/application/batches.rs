//! Deliveries that go out together: claims batches and sends each in one request.
//!
//! Such a delivery is recorded before any attempt, due when it has waited for others long enough. A claim
//! makes a batch of those that wait, as soon as one is due or there are enough of them; what it makes is
//! written down, so that every later attempt is at the same deliveries. All outcomes of a batch are recorded in
//! one transaction: where a worker dies before it, the next one sends the same batch again.

use std::{
    collections::HashSet,
    sync::Arc,
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
    batch_room::{MAX_PER_CLAIM, Room},
    breakers::PROBE_PAUSE,
    deliver::{Lane, NO_NAMES, OPEN, UNUSABLE},
    health::Health,
    leased::{BEHIND_WAIT, BUSY_WAIT, LeasedAttempts, UNUSABLE_WAIT, give_back},
    leases::{LEASE, Leases},
    parked::until,
    ports::Clock,
    recorder::{MAX_BATCH, Outcome},
    registry::{Registry, Snapshot},
    wakers::Wakers,
};

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

/// What a turn of the loop found.
enum Found {
    Batches,
    /// Nothing, and nothing for so long unless the loop is woken.
    Nothing(Duration),
}

/// When it was last asked whether there is enough for a batch, which costs reading what waits.
#[derive(Debug, Default)]
struct LastLook {
    /// `None` where it found something: there may be more.
    at: Option<Instant>,
    /// The webhooks that were left out since they had enough in hand.
    without: Vec<WebhookId>,
}

impl LastLook {
    /// How long until the next one.
    fn rest(&self) -> Duration {
        let since = self.at.map_or(POLL_EVERY, |at| at.elapsed());
        POLL_EVERY.saturating_sub(since)
    }

    /// Whether it is time for the next one, or for a webhook that was left out.
    fn is_over(&self, full: &[WebhookId]) -> bool {
        self.rest().is_zero() || self.without.iter().any(|id| !full.contains(id))
    }
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
        let mut looked = LastLook::default();
        loop {
            self.health.beat("batches");
            let found = self
                .turn(&group, &room, &mut looked)
                .await
                .unwrap_or_else(|error| {
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
    async fn turn(
        self: &Arc<Self>,
        group: &Group,
        room: &Room,
        looked: &mut LastLook,
    ) -> Result<Found, StoreError> {
        let (free, full) = (room.free(), room.full());
        let enough = looked.is_over(&full);
        let (mut found, mut pause) = (false, POLL_EVERY);
        if free > 0 {
            let claimed = self.claim(free, &full, enough).await?;
            found = !claimed.batches.is_empty();
            if enough {
                looked.at = (!found).then(Instant::now);
                looked.without = full;
            }
            let next_token = until(claimed.next_token_at, self.clock.store_now());
            pause = next_token.min(looked.rest());
            self.begin(Lane::Parked, claimed.batches, (group, room))
                .await?;
        }
        let probes = self.claim_probes(enough).await;
        found |= !probes.is_empty();
        self.begin(Lane::Probe, probes, (group, room)).await?;
        Ok(if found {
            Found::Batches
        } else {
            Found::Nothing(pause)
        })
    }

    async fn begin(
        self: &Arc<Self>,
        lane: Lane,
        claimed: Vec<ClaimedBatch>,
        (group, room): (&Group, &Room),
    ) -> Result<(), StoreError> {
        if claimed.is_empty() {
            return Ok(());
        }
        // After the claim: whoever made it due has answered its command before.
        let snapshot = match self.registry.refresh().await {
            Ok(snapshot) => snapshot,
            Err(error) => {
                let leases: Vec<Lease> = claimed.iter().flat_map(leases_of).collect();
                for batch in &claimed {
                    self.no_sign(lane, batch, Duration::ZERO);
                }
                let now = self.clock.store_now();
                give_back(self.store.as_ref(), &self.leases, &leases, now).await;
                return Err(error);
            }
        };
        for batch in claimed {
            self.spawn(lane, batch, &snapshot, (group, room));
        }
        Ok(())
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

    async fn claim(
        &self,
        batches: usize,
        full: &[WebhookId],
        enough: bool,
    ) -> Result<ClaimedBatches, StoreError> {
        let mut exclude = self.attempts.saturated();
        exclude.extend(self.attempts.breakers().open());
        exclude.extend(full);
        self.take(BatchClaim {
            exclude,
            enough,
            ..self.request(batches)
        })
        .await
    }

    /// From now on the leases on what was claimed are renewed.
    async fn take(&self, claim: BatchClaim) -> Result<ClaimedBatches, StoreError> {
        let start = Instant::now();
        let claimed = self.store.claim_batches(&claim).await?;
        histogram!(STORE_SECONDS, "operation" => "claim_batches")
            .record(start.elapsed().as_secs_f64());
        let leases = claimed.batches.iter().flat_map(leases_of);
        leases.for_each(|lease| self.leases.hold(lease, start));
        Ok(claimed)
    }

    fn no_sign(&self, lane: Lane, batch: &ClaimedBatch, pause: Duration) {
        if let Some(first) = batch.deliveries.first() {
            self.attempts
                .no_sign(lane, first.delivery.webhook_id, pause);
        }
    }

    /// One batch for each endpoint that has waited long enough and that this worker may try. Those of
    /// webhooks without `batch` are asked for with `all` only: what waited when it was taken away.
    async fn claim_probes(&self, all: bool) -> Vec<ClaimedBatch> {
        let now = self.clock.store_now();
        let breakers = self.attempts.breakers();
        let snapshot = self.registry.current();
        let is_batched = |id| snapshot.webhook(id).is_some_and(|one| one.batch.is_some());
        let mut used = breakers.held(now);
        // Another lane may have taken it meanwhile.
        used.retain(|id| (all || is_batched(*id)) && breakers.use_probe(*id, now));
        if used.is_empty() {
            return Vec::new();
        }
        let claim = BatchClaim {
            only: Some(used.clone()),
            enough: all,
            ..self.request(MAX_PER_CLAIM)
        };
        let claimed = self.take(claim).await.unwrap_or_else(|error| {
            tracing::debug!(error = %Chain(&error), "batches to probe with were not claimed");
            ClaimedBatches::default()
        });
        let found = claimed
            .batches
            .iter()
            .filter_map(|one| one.deliveries.first());
        let found: HashSet<WebhookId> = found.map(|one| one.delivery.webhook_id).collect();
        for webhook in used.into_iter().filter(|id| !found.contains(id)) {
            breakers.keep_probe(webhook, Duration::ZERO);
        }
        claimed.batches
    }

    /// So many batches, of any webhook.
    fn request(&self, batches: usize) -> BatchClaim {
        let now = self.clock.store_now();
        let ids = (0..batches).map(|_| BatchId(self.clock.new_id()));
        BatchClaim {
            now,
            lease_until: now + LEASE,
            ids: ids.collect(),
            exclude: Vec::new(),
            only: None,
            enough: false,
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
            .attempt_batch(lane, webhook, members, when_slow)
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
        let (released, at) = settled
            .released
            .unwrap_or_else(|| (Vec::new(), self.clock.store_now()));
        let deliveries = (settled.records.len() + released.len()).min(MAX_BATCH);
        let deliveries = u32::try_from(deliveries).unwrap_or(u32::MAX);
        // Never closed.
        let Ok(permit) = Arc::clone(outcomes).acquire_many_owned(deliveries).await else {
            return;
        };
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

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn it_looks_for_enough_again_after_a_rest_or_when_there_may_be_more() {
        let webhook = WebhookId(Uuid::from_u128(1));
        let long_ago = Instant::now().checked_sub(POLL_EVERY);
        assert!(long_ago.is_some());
        let now = || Some(Instant::now());
        for (at, without, full, expected) in [
            (None, vec![], vec![], true),
            (long_ago, vec![], vec![], true),
            (now(), vec![], vec![], false),
            (now(), vec![webhook], vec![webhook], false),
            (now(), vec![], vec![webhook], false),
            // It has room by now.
            (now(), vec![webhook], vec![], true),
        ] {
            let looked = LastLook { at, without };
            assert_eq!(looked.is_over(&full), expected, "{looked:?} {full:?}");
            let rests = at.is_some() && at != long_ago;
            assert_eq!(!looked.rest().is_zero(), rests, "{looked:?}");
        }
    }
}
