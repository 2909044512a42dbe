//! The first attempt at a delivery, straight from the event; or its parking, when none is made.

use std::time::Duration;

use metrics::counter;

use crate::{
    domain::{
        entities::{Batching, Delivery, DeliveryStatus, LanePlace},
        events::BusinessEvent,
        interfaces::{FirstRecord, OutboxRow, StoredEvent},
        values::{BatchId, DeliveryId, LaneKey, Timestamp},
    },
    shared::metrics::PARKED,
};

use super::{
    deliver::{
        BATCHED, BUSY, Deliverer, Lane, NO_NAMES, NO_TOKEN, OPEN, ORDERED, RATE_LIMITED, Tried,
        refused,
    },
    delivery_events,
    leased::{BEHIND_WAIT, BUSY_WAIT, UNUSABLE_WAIT},
    leases::LEASE,
    ports::Clock,
    registry::CompiledWebhook,
};

/// An event and a webhook that it goes to.
#[derive(Debug, Clone, Copy)]
pub struct FirstAttempt<'a> {
    /// The delivery's id.
    pub id: DeliveryId,
    /// Where it goes.
    pub webhook: &'a CompiledWebhook,
    /// What it carries.
    pub event: &'a BusinessEvent,
    /// Where it has its turn: no attempt is made before it has come.
    pub lane: Option<&'a LaneKey>,
    /// Why an expression of the webhook could not be evaluated: no attempt is made then.
    pub fault: Option<&'a str>,
}

/// Why a delivery waits whose first attempt takes long.
const UNDER_WAY: &str = "the first attempt is under way";

impl FirstAttempt<'_> {
    /// Makes the attempt, or parks: answers what to record, and what to publish afterwards.
    /// A success is published from the message that is not yet acknowledged; everything else goes
    /// through the outbox. `None` when the worker is stopping.
    pub async fn make(
        self,
        deliverer: &Deliverer,
        clock: &dyn Clock,
        when_slow: impl AsyncFnOnce(FirstRecord),
    ) -> Option<(Box<FirstRecord>, Option<OutboxRow>)> {
        let delivery = self.delivery(clock);
        let tried = match (self.fault, &delivery.lane) {
            (Some(fault), _) => {
                let refused = refused(delivery, fault.to_owned(), clock.now(), self.event);
                Tried::Attempted(Box::new(refused))
            }
            (None, Some(_)) => Tried::Waits(ORDERED),
            (None, None) if self.webhook.batch.is_some() => Tried::Waits(BATCHED),
            (None, None) if self.waits_for_token() => Tried::Waits(RATE_LIMITED),
            (None, None) => {
                let aside = async |delivery: &Delivery| when_slow(self.aside(delivery)).await;
                deliverer
                    .attempt(Lane::Fast, self.webhook, self.event, delivery, aside)
                    .await
            }
        };
        let attempted = match tried {
            Tried::Attempted(attempted) => attempted,
            Tried::Waits(reason) => {
                let open_until = deliverer.breakers().open_until(self.webhook.id);
                return Some((Box::new(self.park(reason, open_until, clock)), None));
            }
            Tried::Stopping => return None,
        };
        let (delivery, attempt) = (attempted.delivery, attempted.attempt);
        let announce = delivery_events::first_success(&delivery, attempt.as_ref(), self.event);
        let record = FirstRecord {
            event: self.kept(&delivery),
            delivery,
            attempt,
            events: attempted.events,
        };
        Some((Box::new(record), announce))
    }

    /// Whether it waits for a token of its webhook's rate limit, and for nothing else.
    pub(super) fn waits_for_token(self) -> bool {
        let waits_for_more = self.fault.is_some()
            || self.lane.is_some()
            || self.webhook.batch.is_some()
            || self.webhook.is_disabled;
        self.webhook.is_rate_limited && !waits_for_more
    }

    /// Recorded without an attempt, due now, and where it goes out with others, with those of this batch;
    /// or at its end, where no attempt can ever be made.
    pub fn unattempted(self, batch: BatchId, clock: &dyn Clock) -> FirstRecord {
        let mut delivery = self.delivery(clock);
        if delivery.batch.is_shared() {
            delivery.batch = Batching::In(batch);
        }
        let (delivery, events) = match self.fault {
            Some(fault) => {
                let refused = refused(delivery, fault.to_owned(), clock.now(), self.event);
                (refused.delivery, refused.events)
            }
            None => (delivery, Vec::new()),
        };
        FirstRecord {
            event: self.kept(&delivery),
            delivery,
            attempt: None,
            events,
        }
    }

    fn delivery(self, clock: &dyn Clock) -> Delivery {
        let meta = &self.event.meta;
        let now = clock.now();
        Delivery {
            id: self.id,
            tenant: meta.tenant.clone(),
            webhook_id: self.webhook.id,
            event_id: meta.id.clone(),
            event_type: meta.event_type.clone(),
            correlation_id: meta.correlation_id.clone(),
            source_sequence: meta.source_sequence,
            status: DeliveryStatus::Pending,
            attempt_count: 0,
            event_version: 0,
            budget_base: 0,
            next_attempt_at: Some(clock.store_now()),
            error: None,
            created_at: now,
            completed_at: None,
            lane: self.lane.map(|key| LanePlace {
                key: key.clone(),
                turn: meta.source_sequence.unwrap_or_default(),
                blocks: false,
            }),
            batch: match self.webhook.batch {
                Some(_) => Batching::Waits,
                None => Batching::Alone,
            },
        }
    }

    /// While its first attempt goes on: under the lease with which a row begins, which is renewed from
    /// when it is recorded, and runs out if this worker does not live to see the answer.
    fn aside(self, delivery: &Delivery) -> FirstRecord {
        let mut delivery = delivery.clone();
        delivery.next_attempt_at = delivery.next_attempt_at.map(|at| at + LEASE);
        delivery.error = Some(UNDER_WAY.to_owned());
        FirstRecord {
            event: self.kept(&delivery),
            delivery,
            attempt: None,
            events: Vec::new(),
        }
    }

    fn park(
        self,
        reason: &'static str,
        open_until: Option<Timestamp>,
        clock: &dyn Clock,
    ) -> FirstRecord {
        counter!(PARKED).increment(1);
        let wait = match reason {
            BUSY | NO_TOKEN => BUSY_WAIT,
            NO_NAMES => BEHIND_WAIT,
            super::deliver::UNUSABLE => UNUSABLE_WAIT,
            BATCHED => self
                .webhook
                .batch
                .map_or(Duration::ZERO, |rule| rule.max_wait),
            // Due as soon as the webhook is activated, its turn has come, or its rate limit lets it go.
            _ => Duration::ZERO,
        };
        let mut delivery = self.delivery(clock);
        let at = clock.store_now() + wait;
        delivery.next_attempt_at = match open_until.filter(|_| reason == OPEN) {
            Some(until) => Some(at.max(until)),
            None => Some(at),
        };
        delivery.error = Some(reason.to_owned());
        let event = self.kept(&delivery);
        FirstRecord {
            delivery,
            attempt: None,
            event,
            events: Vec::new(),
        }
    }

    fn kept(self, delivery: &Delivery) -> Option<StoredEvent> {
        let needed = matches!(
            delivery.status,
            DeliveryStatus::Pending | DeliveryStatus::Exhausted
        );
        needed.then(|| StoredEvent {
            meta: self.event.stored_meta(),
            raw: self.event.raw.clone(),
        })
    }
}
