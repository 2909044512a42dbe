//! What bounds the batches that a worker has in hand.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Semaphore;

use crate::domain::values::WebhookId;

use super::recorder::MAX_BATCH;

/// Batches that this worker has in hand at a time, besides those that take long.
pub(super) const MAX_BATCHES: usize = 128;
/// Of one webhook, those that take long included: an endpoint that hangs must leave room for others.
pub(super) const MAX_PER_WEBHOOK: usize = 8;
/// Batches that one claim brings at most.
pub(super) const MAX_PER_CLAIM: usize = 16;
/// Bytes of events in hand beyond which nothing more is claimed: 64 MiB.
pub(super) const MAX_BYTES_IN_HAND: usize = 64 << 20;
/// Of one webhook: 8 MiB.
pub(super) const MAX_BYTES_PER_WEBHOOK: usize = 8 << 20;

/// Room for batches, and who takes it.
#[derive(Debug, Clone)]
pub(super) struct Room {
    pub(super) batches: Arc<Semaphore>,
    /// Deliveries that wait to be recorded.
    pub(super) outcomes: Arc<Semaphore>,
    in_hand: Arc<Mutex<HashMap<WebhookId, InHand>>>,
}

#[derive(Debug, Default)]
struct InHand {
    batches: usize,
    bytes: usize,
}

/// A batch in hand; given up when it is dropped.
#[derive(Debug)]
pub(super) struct Held {
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
    pub(super) fn new() -> Self {
        Self {
            batches: Arc::new(Semaphore::new(MAX_BATCHES)),
            outcomes: Arc::new(Semaphore::new(MAX_BATCH)),
            in_hand: Arc::default(),
        }
    }

    pub(super) fn hold(&self, webhook: WebhookId, bytes: usize) -> Held {
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
    pub(super) fn free(&self) -> usize {
        let bytes: usize = self.lock().values().map(|one| one.bytes).sum();
        if bytes >= MAX_BYTES_IN_HAND {
            return 0;
        }
        self.batches.available_permits().min(MAX_PER_CLAIM)
    }

    /// The webhooks that have enough in hand.
    pub(super) fn full(&self) -> Vec<WebhookId> {
        let all = self.lock();
        let full = all.iter().filter(|(_, one)| {
            one.batches >= MAX_PER_WEBHOOK || one.bytes >= MAX_BYTES_PER_WEBHOOK
        });
        full.map(|(id, _)| *id).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<WebhookId, InHand>> {
        self.in_hand.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_webhook_is_full_by_its_batches_or_its_bytes_until_it_lets_go() {
        let (one, other) = (WebhookId(Uuid::from_u128(1)), WebhookId(Uuid::from_u128(2)));
        for (batches, bytes, full) in [
            (MAX_PER_WEBHOOK, 1, true),
            (MAX_PER_WEBHOOK - 1, 1, false),
            (2, MAX_BYTES_PER_WEBHOOK / 2, true),
            (1, MAX_BYTES_PER_WEBHOOK - 1, false),
        ] {
            let room = Room::new();
            let mut held: Vec<Held> = (0..batches).map(|_| room.hold(one, bytes)).collect();
            let _other = room.hold(other, 1);
            let expected = if full { vec![one] } else { Vec::new() };
            assert_eq!(room.full(), expected, "{batches} of {bytes}");
            drop(held.pop());
            assert_eq!(room.full(), [], "{batches} of {bytes}");
        }
    }

    #[test]
    fn one_webhook_never_takes_the_room_of_all() {
        let room = Room::new();
        let webhooks = (0..4).map(|n| WebhookId(Uuid::from_u128(n)));
        let _held: Vec<Held> = webhooks
            .map(|id| room.hold(id, MAX_BYTES_PER_WEBHOOK))
            .collect();
        assert_eq!(room.free(), MAX_PER_CLAIM);
        let _more = room.hold(WebhookId(Uuid::from_u128(9)), MAX_BYTES_IN_HAND / 2);
        assert_eq!(room.free(), 0);
    }
}
