//! Room for ordered lanes in hand: places, of which no webhook takes too many, and bytes.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::domain::{interfaces::ClaimedDelivery, values::WebhookId};

use super::{
    deliver::Lane,
    leased::{MAX_BYTES_IN_HAND, room_for},
};

/// Lanes that this worker has in hand at a time, besides probes.
pub const MAX_LANES: u32 = 256;
/// Lanes of one webhook from which on no more of it are claimed, and lanes in one claim: so a webhook has
/// fewer than twice as many, and it takes several slow endpoints to take all places.
pub const MAX_PER_WEBHOOK: u32 = MAX_LANES / 8;
/// Probes that this worker has in hand at a time. They have places of their own: endpoints that are down
/// take none from the others, and come back however much the others have to do.
pub const MAX_PROBES: u32 = MAX_LANES / 8;
/// Outcomes that wait to be recorded.
const MAX_OUTCOMES: usize = 1_000;

/// What bounds the lanes in hand.
pub(super) struct Room {
    pub(super) lanes: Arc<Semaphore>,
    pub(super) probes: Arc<Semaphore>,
    pub(super) bytes: Arc<Semaphore>,
    pub(super) outcomes: Arc<Semaphore>,
    held: Arc<Held>,
}

/// How many places each webhook has.
#[derive(Default)]
struct Held(Mutex<HashMap<WebhookId, u32>>);

/// A lane that there is room for, each of its deliveries with its bytes.
pub(super) struct Seated {
    pub(super) place: Place,
    pub(super) deliveries: Vec<(ClaimedDelivery, OwnedSemaphorePermit)>,
}

/// A place, free again when it is dropped.
pub(super) struct Place {
    webhook: WebhookId,
    held: Arc<Held>,
    _permit: OwnedSemaphorePermit,
}

impl Room {
    /// All of it.
    pub(super) fn new() -> Self {
        let semaphore = |permits: u32| Arc::new(Semaphore::new(permits as usize));
        Self {
            lanes: semaphore(MAX_LANES),
            probes: semaphore(MAX_PROBES),
            bytes: semaphore(MAX_BYTES_IN_HAND),
            outcomes: Arc::new(Semaphore::new(MAX_OUTCOMES)),
            held: Arc::default(),
        }
    }

    /// The webhooks that have enough places.
    pub(super) fn full(&self) -> Vec<WebhookId> {
        let held = self.held.lock();
        let full = held.iter().filter(|(_, places)| is_full(**places));
        full.map(|(webhook, _)| *webhook).collect()
    }

    /// As much of the front of a lane as there is room for, and the rest.
    pub(super) fn seat(
        &self,
        kind: Lane,
        lane: Vec<ClaimedDelivery>,
    ) -> (Option<Seated>, Vec<ClaimedDelivery>) {
        let places = if kind == Lane::Probe {
            &self.probes
        } else {
            &self.lanes
        };
        let webhook = lane.first().map(|first| first.delivery.webhook_id);
        let permit = Arc::clone(places).try_acquire_owned().ok();
        let Some((webhook, permit)) = webhook.zip(permit) else {
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
        let seated = (!deliveries.is_empty()).then(|| Seated {
            place: Place::new(webhook, &self.held, permit),
            deliveries,
        });
        (seated, rest)
    }

    /// Waits until there is a good deal of it.
    pub(super) async fn for_more(&self) {
        let (lane, half) = (self.lanes.acquire(), MAX_BYTES_IN_HAND / 2);
        let _both = tokio::join!(lane, self.bytes.acquire_many(half));
    }
}

impl Place {
    fn new(webhook: WebhookId, held: &Arc<Held>, permit: OwnedSemaphorePermit) -> Self {
        *held.lock().entry(webhook).or_default() += 1;
        Self {
            webhook,
            held: Arc::clone(held),
            _permit: permit,
        }
    }

    /// Gives it back; whether its webhook had enough of them, so that more of it may be claimed now.
    pub(super) fn leave(self) -> bool {
        let held = self.held.lock().get(&self.webhook).copied();
        held.is_some_and(is_full)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.held.lock();
        if let Some(places) = held.get_mut(&self.webhook) {
            *places -= 1;
            if *places == 0 {
                held.remove(&self.webhook);
            }
        }
    }
}

impl Held {
    fn lock(&self) -> MutexGuard<'_, HashMap<WebhookId, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_full(places: u32) -> bool {
    places >= MAX_PER_WEBHOOK
}
