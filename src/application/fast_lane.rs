//! A first attempt as a task of its own: it hands its outcome in, and moves itself aside when it takes
//! long.
//!
//! An endpoint that takes half a minute to answer must not hold the event that long: events that are
//! not settled are bounded, and ordered lanes wait for all that came before them. So what takes longer
//! than [`STALL`](crate::domain::policies::STALL) is recorded as waiting while its attempt goes on, which
//! settles the event. The row is under a lease of this worker from then on; so where all goes well nobody
//! else has touched it when the outcome is written over it, and where this worker stops or dies another
//! one tries again.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::domain::{
    entities::DeliveryStatus,
    events::BusinessEvent,
    interfaces::{FirstRecord, Lease, LeasedRecord},
};

use super::{
    deliver::Deliverer,
    delivery_events,
    filters::Match,
    first_attempt::FirstAttempt,
    in_hand::Ticket,
    ports::Clock,
    recorder::{Outcome, Outcomes},
};

/// The largest event that is kept in memory for an attempt after it is settled: 64 KiB, so that all slow
/// attempts together keep 64 MiB at most.
pub const MAX_ASIDE_BYTES: usize = 64 * 1024;

/// What first attempts share.
#[derive(Clone)]
pub(super) struct FastLane {
    pub(super) deliverer: Arc<Deliverer>,
    pub(super) clock: Arc<dyn Clock>,
    /// Takes what came of them.
    pub(super) outcomes: Outcomes,
    /// Bounds the deliveries in hand.
    pub(super) deliveries: Arc<Semaphore>,
}

/// What is given up when the outcome is handed in: the first of them settles the event.
type InHand = (Arc<Ticket>, OwnedSemaphorePermit);

impl FastLane {
    /// Makes the first attempt of `event` at what it matches.
    pub(super) async fn attempt(
        self,
        one: Match,
        event: Arc<BusinessEvent>,
        ticket: Arc<Ticket>,
        permit: OwnedSemaphorePermit,
    ) {
        let in_hand = Mutex::new(Some((ticket, permit)));
        let (told, aside) = oneshot::channel();
        let first = FirstAttempt {
            id: one.id,
            webhook: &one.webhook,
            event: &event,
            lane: one.lane.as_ref(),
            fault: one.fault.as_deref(),
        };
        let when_slow = async |record: FirstRecord| {
            if event.raw.len() > MAX_ASIDE_BYTES {
                return;
            }
            if let Some((ticket, permit)) = take(&in_hand) {
                let outcome = Outcome::First {
                    record: Box::new(record),
                    announce: None,
                    event: Arc::clone(&event),
                    ticket,
                    permit,
                    recorded: Some(told),
                    waits_for_token: false,
                };
                self.hand_in(outcome).await;
            }
        };
        let made = first
            .make(&self.deliverer, self.clock.as_ref(), when_slow)
            .await;
        let Some((record, announce)) = made else {
            return;
        };
        let Some((ticket, permit)) = take(&in_hand) else {
            // Where another worker has recorded it before, that stands.
            if aside.await == Ok(true) {
                self.hand_in_later(*record, &event).await;
            }
            return;
        };
        let outcome = Outcome::First {
            record,
            announce,
            event: Arc::clone(&event),
            ticket,
            permit,
            recorded: None,
            waits_for_token: first.waits_for_token(),
        };
        self.hand_in(outcome).await;
    }

    /// What became of an attempt that was moved aside: written under the number that the row began with.
    async fn hand_in_later(&self, record: FirstRecord, event: &BusinessEvent) {
        let Ok(permit) = Arc::clone(&self.deliveries).acquire_owned().await else {
            return;
        };
        let trace = event.meta.trace.as_ref();
        let success = record
            .attempt
            .as_ref()
            .filter(|_| record.delivery.status == DeliveryStatus::Delivered)
            .map(|attempt| delivery_events::triggered(&record.delivery, attempt, trace));
        let record = LeasedRecord {
            lease: Lease::first(record.delivery.id),
            events: record.events.into_iter().chain(success).collect(),
            delivery: record.delivery,
            attempt: record.attempt,
        };
        let record = Box::new(record);
        self.hand_in(Outcome::Leased { record, permit }).await;
    }

    async fn hand_in(&self, outcome: Outcome) {
        // The recorder outlives the intake; if it is gone, the message comes again.
        drop(self.outcomes.send(outcome).await);
    }
}

fn take(in_hand: &Mutex<Option<InHand>>) -> Option<InHand> {
    in_hand
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take()
}
