//! The outbox: events that are committed and wait to be published.

use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use crate::domain::values::{Timestamp, TraceContext};

use super::StoreError;

/// An event to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboxRow {
    /// The event's id, and its `Nats-Msg-Id`.
    pub id: Uuid,
    /// The event's type; the subject is the prefix and this.
    pub event_type: String,
    /// Whether it was made of an endpoint's answer: then the prefix is `ERP_RESPONSE_SUBJECT`.
    pub is_response: bool,
    /// The trace that it belongs to; goes into the headers.
    pub trace: Option<TraceContext>,
    /// The CloudEvent.
    pub body: Vec<u8>,
}

/// What to claim from the outbox.
#[derive(Debug, Clone, Copy)]
pub struct OutboxClaim {
    /// Who asks; one relay works at a time, over all workers.
    pub holder: Uuid,
    /// Now.
    pub now: Timestamp,
    /// For how long the relay's lease is taken or renewed.
    pub lease: Duration,
    /// Whether events made of answers are wanted, or the worker's own.
    pub responses: bool,
    /// Rows at most.
    pub limit: u32,
    /// Where their bodies have so many bytes together, no further row is read; the first one comes
    /// whatever it has.
    pub max_bytes: u32,
}

/// How long events wait that were refused.
#[derive(Debug, Clone, Copy)]
pub struct OutboxPostponement {
    /// Now, by the store's clock.
    pub now: Timestamp,
    /// The first wait; each one after it is twice as long.
    pub first: Duration,
    /// The longest wait.
    pub longest: Duration,
}

/// The store of unpublished events.
#[async_trait]
pub trait OutboxStore: Send + Sync {
    /// Takes or renews the relay's lease, one for both kinds of events, and reads the oldest unpublished
    /// rows. The worker's own events come per entity in the order of their versions; those made of
    /// answers come once they are due, in no promised order. `None` when another worker holds the lease.
    async fn outbox_batch(&self, claim: OutboxClaim) -> Result<Option<Vec<OutboxRow>>, StoreError>;

    /// Lets events made of answers wait that were refused: twice as long after each refusal.
    async fn outbox_postpone(
        &self,
        ids: &[Uuid],
        postponement: OutboxPostponement,
    ) -> Result<(), StoreError>;

    /// Marks rows as published.
    async fn outbox_published(&self, ids: &[Uuid], now: Timestamp) -> Result<(), StoreError>;

    /// Gives the relay's lease up, if it is held by `holder`.
    async fn outbox_release(&self, holder: Uuid) -> Result<(), StoreError>;

    /// Deletes rows published before `before`, at most `limit`; answers how many. What is not published
    /// stays, however old it is.
    async fn prune_outbox(&self, before: Timestamp, limit: u32) -> Result<u64, StoreError>;

    /// Deletes idempotency rows older than `before`, at most `limit`; answers how many.
    async fn prune_idempotency(&self, before: Timestamp, limit: u32) -> Result<u64, StoreError>;
}
