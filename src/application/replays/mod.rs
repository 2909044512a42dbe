//! Replays and backfills at work: what goes out (again) behind live traffic.
//!
//! A running replay is a row that any worker may claim, one at a time. Under that lease it does one page:
//! some deliveries are made pending, with the replay's progress, in one transaction, and under leases of
//! this worker, which makes the attempts then, a few at a time. So whoever dies in the middle loses
//! nothing: the deliveries fall due to the parked lane with their leases, and the next worker goes on
//! after the page. What has to wait for its turn anyway (in order, together, or for a token) is handed over
//! to those who make such attempts instead, a few at a time too and in lanes and batches of its own.
//!
//! Live traffic goes first: no page begins while this worker is busy or somebody waits for the endpoint,
//! and an attempt of a page that began waits up to 2 s for that, as it holds a lease; and while there are
//! other requests, pages are small and have their time (`pace.rs`).

mod pace;
mod recorded;
mod room;
mod stream;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream as futures};
use metrics::counter;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{
        entities::{Replay, ReplayKind},
        events::DomainEvent,
        interfaces::{
            ClaimedDelivery, ClaimedReplay, Lease, PageDone, ReplayLease, ReplayPage, Store,
            StoreError,
        },
        values::{DeliveryId, Timestamp, WebhookId},
    },
    shared::{
        error_chain::Chain,
        lifecycle::Group,
        metrics::{LOOP_FAULTS, REPLAYED, REPLAYS_ENDED},
    },
};

use pace::Pace;
use room::Room;

use super::{
    commands::SourceHistory,
    deliver::Lane,
    health::Health,
    leased::{LeasedAttempts, Settled},
    leases::{LEASE, Leases, RENEW_EVERY},
    ports::{BusError, Clock},
    registry::{Registry, Snapshot},
    wakers::Wakers,
};

/// Bytes of the events of one page, unless a single one has more.
const MAX_PAGE_BYTES: usize = 8 << 20;
/// Replays that one worker has in hand at a time.
pub const MAX_IN_HAND: usize = 4;
/// How often the database is asked for replays when nothing wakes the loop.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// The same after there was one, as that may only rest: so often, and so many times.
const POLL_SOON: (Duration, u32) = (Duration::from_millis(50), 120);
/// How long a replay rests that has to wait for others.
const REST: Duration = Duration::from_millis(250);
/// How long it rests when its webhook cannot be used, or something is not there.
const LONG_REST: Duration = Duration::from_secs(5);
/// How long an attempt waits for room to spare, and how often it looks.
const ATTEMPT_PATIENCE: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The ports of the replays.
pub struct Replays {
    /// Where they are kept.
    pub store: Arc<dyn Store>,
    /// The events that came.
    pub history: SourceHistory,
    /// The webhooks.
    pub registry: Arc<Registry>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Makes the attempts.
    pub attempts: Arc<LeasedAttempts>,
    /// The leases that this worker holds.
    pub leases: Arc<Leases>,
    /// Rings when a replay began.
    pub wakers: Arc<Wakers>,
    /// Told of every turn of the loop.
    pub health: Arc<Health>,
}

impl std::fmt::Debug for Replays {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replays").finish_non_exhaustive()
    }
}

/// A page could not be done.
#[derive(Debug, thiserror::Error)]
enum ReplayError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Bus(#[from] BusError),
}

/// What the attempts of a page need besides.
#[derive(Clone, Copy)]
struct Hands<'a> {
    at_once: usize,
    /// One for each delivery of the page.
    permits: &'a Arc<Semaphore>,
    stopping: &'a CancellationToken,
}

/// What a page of a replay is to be.
enum Next {
    /// These deliveries.
    Page(ReplayPage),
    /// Nothing yet: what comes next is still in hand elsewhere.
    Later,
    /// Nothing more.
    End,
}

/// When a replay is to go on; `None` when it has ended, or is somebody else's.
type GoOn = Option<Timestamp>;

impl Replays {
    /// Works until `group` is stopping.
    pub fn start(self, group: &Group) {
        group.spawn_loop("replays", Arc::new(self).run(group.clone()));
    }

    async fn run(self: Arc<Self>, group: Group) {
        let stopping = group.stopping();
        let in_hand = Arc::new(Semaphore::new(MAX_IN_HAND));
        let mut quiet = POLL_SOON.1;
        loop {
            self.health.beat("replays");
            let permit = tokio::select! {
                () = stopping.cancelled() => return,
                permit = Arc::clone(&in_hand).acquire_owned() => permit,
                // So that the loop is seen to turn.
                () = tokio::time::sleep(POLL_EVERY) => continue,
            };
            let now = self.clock.store_now();
            let claimed = self.store.claim_replay(now, now + LEASE).await;
            let claimed = claimed.unwrap_or_else(|error| {
                report(&error);
                None
            });
            if let Some(claimed) = claimed {
                quiet = 0;
                let this = Arc::clone(&self);
                let stopping = group.stopping();
                group.spawn("replay", async move {
                    this.turn(claimed, &stopping).await;
                    drop(permit);
                    this.wakers.replays.notify_one();
                });
                continue;
            }
            drop(permit);
            let pause = if quiet < POLL_SOON.1 {
                POLL_SOON.0
            } else {
                POLL_EVERY
            };
            quiet = quiet.saturating_add(1);
            tokio::select! {
                () = stopping.cancelled() => return,
                () = self.wakers.replays.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Does a page of a replay, and says when the next one may be done.
    async fn turn(&self, claimed: ClaimedReplay, stopping: &CancellationToken) {
        let lease = claimed.lease;
        let go_on = self.page(claimed, stopping).await.unwrap_or_else(|error| {
            report(&error);
            Some(self.clock.store_now() + LONG_REST)
        });
        let Some(at) = go_on else {
            return;
        };
        if let Err(error) = self.store.free_replay(lease, at).await {
            report(&error);
        }
    }

    async fn page(
        &self,
        claimed: ClaimedReplay,
        stopping: &CancellationToken,
    ) -> Result<GoOn, ReplayError> {
        // After the claim: whoever began it has answered the command before.
        let snapshot = self.registry.refresh().await?;
        let replay = &claimed.replay;
        let id = replay.selection.webhook_id;
        let Some(webhook) = snapshot.webhook(id) else {
            let reason = "the webhook or its integration was turned off or deleted";
            return self.end(&claimed, |r, now| r.call_off(reason, now)).await;
        };
        if webhook.is_disabled {
            let reason = "the webhook was disabled; activate it and begin again";
            return self.end(&claimed, |r, now| r.fail(reason, now)).await;
        }
        let began = Instant::now();
        let pace = Pace::of(self.attempts.deliverer().live_traffic(), began);
        let (size, handed_over) = match self.room(webhook, pace).await? {
            Room::None(rest) => return Ok(Some(self.clock.store_now() + rest)),
            Room::Page(size) => (size, None),
            Room::HandOver(size, rest) => (size, Some(rest)),
        };
        // What is handed over has its own pace.
        let read_at_once = match handed_over {
            None => pace.at_once,
            Some(_) => Pace::ALONE.at_once,
        };
        let next = match replay.kind {
            ReplayKind::Replay => {
                self.next_recorded(replay, webhook, (size, read_at_once))
                    .await?
            }
            ReplayKind::Backfill => self.next_of_stream(replay, &snapshot, size).await?,
        };
        let mut page = match next {
            Next::Page(page) => page,
            Next::Later => return Ok(Some(self.clock.store_now() + REST)),
            Next::End => return self.end(&claimed, Replay::complete).await,
        };
        let leased = Instant::now();
        page.lease_until = match handed_over {
            None => Some(self.clock.store_now() + LEASE),
            Some(_) => None,
        };
        let now = self.clock.now();
        let Some(done) = self.store.record_page(&claimed, &page, now).await? else {
            // Where the lease still holds, the webhook is gone, and the replay ends with it.
            return Ok(Some(self.clock.store_now()));
        };
        self.recorded(replay, &done);
        if let Some(rest) = handed_over {
            self.wakers.lanes.notify_one();
            self.wakers.batches.notify_one();
            self.wakers.parked.notify_one();
            return Ok(Some(self.clock.store_now() + rest));
        }
        let deliveries = claimed_deliveries(page, &done.leases);
        for one in &deliveries {
            self.leases.hold(one.lease, leased);
        }
        let hands = Hands {
            at_once: pace.at_once,
            permits: &Arc::new(Semaphore::new(deliveries.len())),
            stopping,
        };
        self.attempt_all(claimed.lease, deliveries, hands).await;
        let rest = pace.rest_after(began.elapsed());
        Ok(Some(self.clock.store_now() + rest))
    }

    /// Ends the replay.
    async fn end(
        &self,
        claimed: &ClaimedReplay,
        end: impl FnOnce(&mut Replay, Timestamp) -> DomainEvent,
    ) -> Result<GoOn, ReplayError> {
        let mut replay = claimed.replay.clone();
        let event = end(&mut replay, self.clock.now());
        if self
            .store
            .end_replay(claimed.lease, &replay, &event)
            .await?
        {
            self.wakers.outbox.notify_one();
            let (kind, outcome) = (replay.kind.as_str(), replay.status.as_str());
            counter!(REPLAYS_ENDED, "kind" => kind, "outcome" => outcome).increment(1);
            tracing::info!(
                replay = %replay.id, webhook = %replay.selection.webhook_id, kind, outcome,
                done = replay.done, skipped = replay.skipped, error = replay.error,
                "a replay has ended"
            );
        }
        Ok(None)
    }

    /// A page is recorded.
    fn recorded(&self, before: &Replay, done: &PageDone) {
        if done.replay.version != before.version {
            self.wakers.outbox.notify_one();
        }
        let kind = before.kind.as_str();
        let more = |now: i64, then: i64| u64::try_from(now - then).unwrap_or(0);
        let replay = &done.replay;
        counter!(REPLAYED, "kind" => kind, "outcome" => "done")
            .increment(more(replay.done, before.done));
        counter!(REPLAYED, "kind" => kind, "outcome" => "skipped")
            .increment(more(replay.skipped, before.skipped));
    }

    /// Makes the attempts of a page, and waits until all are recorded. The lease is prolonged meanwhile.
    async fn attempt_all(
        &self,
        lease: ReplayLease,
        deliveries: Vec<ClaimedDelivery>,
        hands: Hands<'_>,
    ) {
        let count = u32::try_from(deliveries.len()).unwrap_or(u32::MAX);
        let attempts = futures::iter(deliveries)
            .for_each_concurrent(hands.at_once, |one| self.attempt(one, hands));
        let all = async {
            attempts.await;
            // Each comes back when its outcome is recorded. Never closed.
            drop(hands.permits.acquire_many(count).await);
        };
        let renew = || async {
            let until = self.clock.store_now() + LEASE;
            if let Err(error) = self.store.free_replay(lease, until).await {
                report(&error);
            }
        };
        while_renewed(all, RENEW_EVERY, renew).await;
    }

    /// What is not done because the worker stops is given back with its lease.
    async fn attempt(&self, one: ClaimedDelivery, hands: Hands<'_>) {
        let Ok(permit) = Arc::clone(hands.permits).acquire_owned().await else {
            return;
        };
        if hands.stopping.is_cancelled() {
            return;
        }
        self.wait_for_room(one.delivery.webhook_id, hands.stopping)
            .await;
        if hands.stopping.is_cancelled() {
            return;
        }
        let (lease, webhook) = (one.lease, one.delivery.webhook_id);
        let Some(snapshot) = self.still_runs(webhook).await else {
            let settled = Settled::Released(lease, self.clock.store_now());
            self.attempts.hand_in(settled, permit).await;
            return;
        };
        // Somebody else has it by now, or as soon as this lease has run out.
        if !self.leases.is_in_force(&lease) {
            self.leases.forget([&lease]);
            return;
        }
        // Boxed: it is large.
        let attempt = Box::pin(self.attempts.attempt(Lane::Replay, one, &snapshot));
        if let Some(settled) = attempt.await {
            self.attempts.hand_in(settled, permit).await;
        }
    }

    /// The webhooks as they are now; `None` where this one gets nothing any more, or nobody can tell.
    async fn still_runs(&self, webhook: WebhookId) -> Option<Arc<Snapshot>> {
        let snapshot = match self.registry.refresh().await {
            Ok(snapshot) => snapshot,
            Err(error) => {
                report(&error);
                return None;
            }
        };
        let runs = { snapshot.webhook(webhook) }.is_some_and(|webhook| !webhook.is_disabled);
        runs.then_some(snapshot)
    }

    async fn wait_for_room(&self, webhook: WebhookId, stopping: &CancellationToken) {
        let patience = Instant::now() + ATTEMPT_PATIENCE;
        while !self.attempts.deliverer().has_room_to_spare(webhook)
            && Instant::now() < patience
            && !stopping.is_cancelled()
        {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// Does `work`, and `renew` again and again beside it: neither waits for the other.
async fn while_renewed<F: Future<Output = ()>>(
    work: impl Future<Output = ()>,
    every: Duration,
    renew: impl Fn() -> F,
) {
    let renewals = async {
        loop {
            tokio::time::sleep(every).await;
            renew().await;
        }
    };
    tokio::select! {
        () = work => {}
        () = renewals => {}
    }
}

/// What this worker has the leases on.
fn claimed_deliveries(page: ReplayPage, leases: &[Lease]) -> Vec<ClaimedDelivery> {
    let leases: HashMap<DeliveryId, Lease> = leases
        .iter()
        .map(|lease| (lease.delivery_id, *lease))
        .collect();
    let again = page.reopened.into_iter();
    let again = again.map(|one| (one.delivery, Some(one.event)));
    let first = page.first.into_iter();
    let first = first.map(|one| (one.delivery, one.event));
    again
        .chain(first)
        .filter_map(|(delivery, event)| {
            Some(ClaimedDelivery {
                lease: *leases.get(&delivery.id)?,
                delivery,
                event: event?,
            })
        })
        .collect()
}

fn report(error: &(impl std::error::Error + 'static)) {
    counter!(LOOP_FAULTS, "loop" => "replays").increment(1);
    tracing::warn!(error = %Chain(error), "a replay has to wait");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_renewal_that_hangs_holds_no_attempt_up() {
        let begun = tokio::sync::Notify::new();
        let renew = || async {
            begun.notify_one();
            std::future::pending::<()>().await;
        };
        let work = while_renewed(begun.notified(), Duration::from_millis(1), renew);
        let ended = tokio::time::timeout(Duration::from_secs(10), work).await;
        assert!(ended.is_ok(), "the work goes on while the renewal does");
    }
}
