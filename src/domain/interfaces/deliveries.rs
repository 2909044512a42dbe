//! The data plane: deliveries, their attempts, and who works on them.

use std::collections::HashSet;

use async_trait::async_trait;
use bytes::Bytes;

use crate::domain::{
    entities::{Attempt, Delivery},
    events::DomainEvent,
    values::{BatchId, DeliveryId, TenantId, Timestamp, WebhookId},
};

use super::StoreError;

/// An event as it is kept while a delivery waits ([`crate::domain::events::BusinessEvent`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEvent {
    /// Everything but the bytes, as JSON text.
    pub meta: String,
    /// The message as published.
    pub raw: Bytes,
}

/// A delivery that is recorded for the first time, by the worker that pulled its event.
#[derive(Debug, Clone, PartialEq)]
pub struct FirstRecord {
    /// The delivery after its first attempt, or parked without one.
    pub delivery: Delivery,
    /// The first attempt, when one was made.
    pub attempt: Option<Attempt>,
    /// The event; set exactly when the delivery is pending or exhausted (it may be needed again).
    pub event: Option<StoredEvent>,
    /// Events for the outbox; dropped when the delivery was recorded before.
    pub events: Vec<DomainEvent>,
}

/// The right to work on a parked delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Which delivery.
    pub delivery_id: DeliveryId,
    /// The fencing number: it grows with every claim.
    pub epoch: i64,
}

impl Lease {
    /// The one under which a delivery is recorded for the first time, until another one is taken.
    pub fn first(delivery_id: DeliveryId) -> Self {
        Self {
            delivery_id,
            epoch: 0,
        }
    }
}

/// What became of a parked delivery under a lease.
#[derive(Debug, Clone, PartialEq)]
pub struct LeasedRecord {
    /// The lease that it was made under; a lost one changes nothing.
    pub lease: Lease,
    /// The delivery after the attempt. The stored event is dropped unless it is `pending`
    /// or `exhausted` (from where it can be retried).
    pub delivery: Delivery,
    /// The attempt, when one was made.
    pub attempt: Option<Attempt>,
    /// Events for the outbox; dropped when the lease was lost.
    pub events: Vec<DomainEvent>,
}

/// A batch of outcomes, recorded in one transaction.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RecordBatch {
    /// From the fast lane.
    pub first: Vec<FirstRecord>,
    /// From the parked lane.
    pub leased: Vec<LeasedRecord>,
}

/// What to claim.
#[derive(Debug, Clone)]
pub struct ClaimRequest {
    /// Due up to this time.
    pub now: Timestamp,
    /// Until when the leases hold.
    pub lease_until: Timestamp,
    /// Deliveries at most.
    pub limit: u32,
    /// Deliveries of one webhook at most.
    pub per_webhook: u32,
    /// Webhooks that have no free slot on this worker, or whose breaker is open.
    pub exclude: Vec<WebhookId>,
    /// Of these alone; `None` is no restriction.
    pub only: Option<Vec<WebhookId>>,
}

/// A delivery to attempt, under a lease.
#[derive(Debug, Clone, PartialEq)]
pub struct ClaimedDelivery {
    /// The right to work on it.
    pub lease: Lease,
    /// The delivery as it stands.
    pub delivery: Delivery,
    /// What it carries.
    pub event: StoredEvent,
}

/// What was claimed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Claimed {
    /// Oldest first within one webhook.
    pub deliveries: Vec<ClaimedDelivery>,
    /// When a webhook with due deliveries and without a token of its rate limit gets the next one.
    pub next_token_at: Option<Timestamp>,
}

/// What to claim of the deliveries that have a place in a lane.
#[derive(Debug, Clone)]
pub struct LaneClaim {
    /// Due up to this time.
    pub now: Timestamp,
    /// Until when the leases hold.
    pub lease_until: Timestamp,
    /// Lanes at most.
    pub lanes: u32,
    /// Deliveries of one lane at most.
    pub per_lane: u32,
    /// Every event up to this sequence of the source stream is recorded: nobody can come in front of
    /// a turn that is not beyond it.
    pub floor: i64,
    /// Webhooks that have no free slot on this worker, or whose breaker is open.
    pub exclude: Vec<WebhookId>,
    /// Of these webhooks alone, and of each of them one lane; `None` is no restriction.
    pub only: Option<Vec<WebhookId>>,
}

/// What was claimed of the lanes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ClaimedLanes {
    /// For each lane its foremost deliveries, in the order of their turns.
    pub lanes: Vec<Vec<ClaimedDelivery>>,
    /// Whether there is nothing up to the floor, and the front of some lane is due but beyond it.
    pub above_floor: bool,
    /// As in [`Claimed`].
    pub next_token_at: Option<Timestamp>,
}

/// A webhook with deliveries that are exhausted and hold up those behind them in their lanes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocker {
    /// Its id.
    pub webhook: WebhookId,
    /// The name of its tenant, as it is stored; `None` when the webhook is gone.
    pub tenant: Option<String>,
}

/// What to claim of the deliveries that go out together.
#[derive(Debug, Clone)]
pub struct BatchClaim {
    /// Due up to this time.
    pub now: Timestamp,
    /// Until when the leases hold.
    pub lease_until: Timestamp,
    /// The ids for batches that are made now; as many batches are claimed at most, new ones or not.
    pub ids: Vec<BatchId>,
    /// Webhooks that have no free slot on this worker, or whose breaker is open.
    pub exclude: Vec<WebhookId>,
    /// Of these alone; `None` is no restriction.
    pub only: Option<Vec<WebhookId>>,
    /// Whether to ask also where nothing is due but there may be enough for a batch, which costs reading
    /// what waits.
    pub enough: bool,
}

/// Deliveries to send in one request, each under its lease: at least one, and of one webhook.
#[derive(Debug, Clone, PartialEq)]
pub struct ClaimedBatch {
    /// What holds them together in the store; not what they are sent under ([`BatchId::of`]).
    pub id: BatchId,
    /// In the order in which they were taken in, which stays the same too.
    pub deliveries: Vec<ClaimedDelivery>,
}

/// What was claimed of the deliveries that go out together.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ClaimedBatches {
    /// At most one of each webhook.
    pub batches: Vec<ClaimedBatch>,
    /// As in [`Claimed`]; told where nothing was claimed.
    pub next_token_at: Option<Timestamp>,
}

/// The store of deliveries.
#[async_trait]
pub trait DeliveryStore: Send + Sync {
    /// Those of `ids` that are recorded, with their first attempt where there is one. A row that this
    /// program does not understand is logged and left out, so that it stops nobody: the attempt is made
    /// once more, its record changes nothing, and the row stays for whoever understands it.
    async fn recorded(
        &self,
        ids: &[DeliveryId],
    ) -> Result<Vec<(Delivery, Option<Attempt>)>, StoreError>;

    /// Records a batch in one transaction and answers which deliveries it changed. A first record of a
    /// delivery that exists, and a leased record whose lease was lost, change nothing, and neither do
    /// their attempts and events. Recording the same batch again is harmless. A delivery that waits for
    /// a webhook that is gone is cancelled, at the latest when it is due.
    async fn record(&self, batch: &RecordBatch) -> Result<HashSet<DeliveryId>, StoreError>;

    /// Claims due deliveries of webhooks that are `pending` or `active` and whose integration runs,
    /// fairly over the webhooks and oldest first within one. No two claims get the same delivery while
    /// a lease holds. A delivery of a webhook with a rate limit takes one of its tokens; without a token
    /// none is claimed, and the webhook does not count among those that share the limits of the claim.
    async fn claim_due(&self, request: &ClaimRequest) -> Result<Claimed, StoreError>;

    /// Claims the foremost due deliveries of lanes, of webhooks that are `pending` or `active` and whose
    /// integration runs. A lane whose front is not due, is leased, blocks, or is beyond the floor gives
    /// nothing, and does not count among those that share the limit of the claim; so at any time one worker
    /// at most works on a lane, and it goes on where the last one stopped. Deliveries without a place in a
    /// lane are left to [`Self::claim_due`] and [`Self::claim_batches`], and the others to this. Rate limits
    /// hold as they do there.
    async fn claim_lanes(&self, claim: &LaneClaim) -> Result<ClaimedLanes, StoreError>;

    /// Claims batches of webhooks that are `pending` or `active` and whose integration runs, fairly over
    /// the webhooks and at most one of each. One that was made before is claimed as a whole when it is
    /// due; what was cancelled or sent by itself meanwhile belongs to it no longer. Where there is none that
    /// has been due for as long as the oldest that wait, a new one is made of these, up to the webhook's
    /// [`BatchRule`] in number and in bytes of their events: as soon as one of them is due, or there are
    /// enough of them. A single event that is
    /// larger goes alone. Without a rule the default one holds. No other claim takes any of these. A batch
    /// takes one token of its webhook's rate limit, if there is one.
    ///
    /// [`BatchRule`]: crate::domain::entities::BatchRule
    async fn claim_batches(&self, claim: &BatchClaim) -> Result<ClaimedBatches, StoreError>;

    /// Takes, until `until`, the right to the one request that tries an endpoint whose breaker has waited
    /// long enough. Answers of which of `webhooks`: no two workers get it for the same one at a time.
    async fn take_probes(
        &self,
        webhooks: &[WebhookId],
        now: Timestamp,
        until: Timestamp,
    ) -> Result<Vec<WebhookId>, StoreError>;

    /// Gives back rights to probes that were taken up to these times, so that nobody waits for their end.
    /// One that is another worker's by now stays.
    async fn give_probes_back(&self, rights: &[(WebhookId, Timestamp)]) -> Result<(), StoreError>;

    /// Prolongs leases that are still held, and answers which of them are; lost ones are ignored.
    async fn renew(
        &self,
        leases: &[Lease],
        lease_until: Timestamp,
    ) -> Result<Vec<Lease>, StoreError>;

    /// Gives leases back without an attempt: due again at `next_attempt_at`, and with the token that each,
    /// or its batch, has taken of its webhook's rate limit. Lost leases are ignored.
    async fn release(&self, leases: &[Lease], next_attempt_at: Timestamp)
    -> Result<(), StoreError>;

    /// As [`Self::release`], where requests may have been sent: the tokens stay taken.
    async fn abandon(&self, leases: &[Lease], next_attempt_at: Timestamp)
    -> Result<(), StoreError>;

    /// The webhooks with deliveries that hold up their lanes, by id: at most `limit` after `after`.
    async fn blockers(
        &self,
        after: Option<WebhookId>,
        limit: u32,
    ) -> Result<Vec<Blocker>, StoreError>;

    /// The deliveries that wait in lanes, or hold one up, with the highest turns, highest first and at most
    /// `limit`. Those that were put ahead are not among them.
    async fn highest_turns(&self, limit: u32) -> Result<Vec<(DeliveryId, i64)>, StoreError>;

    /// Puts deliveries ahead of every turn of a source stream, in the order that they have among
    /// themselves ([`LanePlace::AHEAD`](crate::domain::entities::LanePlace::AHEAD)), and answers how many.
    /// One that was put there before stays. Leases go on.
    async fn put_ahead(&self, ids: &[DeliveryId]) -> Result<u64, StoreError>;

    /// Deletes completed deliveries (with their attempts) that ended before `before`, at most `limit`;
    /// answers how many. One that holds up its lane stays, however old it is.
    async fn prune_deliveries(&self, before: Timestamp, limit: u32) -> Result<u64, StoreError>;

    /// One delivery with its attempts, oldest first.
    async fn delivery(
        &self,
        tenant: &TenantId,
        id: DeliveryId,
    ) -> Result<Option<(Delivery, Vec<Attempt>)>, StoreError>;
}
