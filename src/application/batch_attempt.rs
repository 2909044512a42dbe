//! One attempt at several deliveries of a webhook in one request: one signature, one outcome for all.
//!
//! The `webhook-id` that the receiver sees is derived from who is in the request: the same batch has the
//! same one however often it is tried, and what was left out of it never comes under it. What cannot be part of any request ends alone. What a receiver finds too large
//! (`413`) is tried again in halves, each a batch of its own; that is no failure of the events, so it costs
//! none of their retries.

use metrics::counter;

use crate::{
    domain::{
        entities::{Attempt, Batching, Delivery},
        events::{BusinessEvent, DomainEvent},
        interfaces::{Lease, LeasedRecord},
        policies::{Answer, NextStep, RetryPolicy, next_step},
        values::{BatchId, Timestamp},
    },
    shared::metrics::EXPRESSION_FAULTS,
};

use super::{
    deliver::{Attempted, Deliverer, Lane, apply, count, refused, unsent},
    endpoint::{BatchBody, Endpoint},
    registry::CompiledWebhook,
    webhook_changes::Cause,
};

/// The request entity is too large.
const TOO_LARGE: u16 = 413;
/// Events that are put into a body before others get their turn.
const PACKED_IN_A_ROW: usize = 16;

/// A delivery of a batch, and what it carries.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) lease: Lease,
    pub(super) delivery: Delivery,
    pub(super) event: BusinessEvent,
}

/// What came of trying to send a batch.
#[derive(Debug)]
pub(super) enum BatchTried {
    /// What to record, of all members, in one transaction.
    Recorded(Vec<LeasedRecord>),
    /// No request was made; all go on waiting, and this is why.
    Waits(&'static str),
    /// The worker is stopping; nothing is to be recorded.
    Stopping,
}

/// A batch as it is sent.
struct Packed {
    body: BatchBody,
    /// Who is in it.
    members: Vec<Member>,
    /// What is to be recorded of the others.
    apart: Vec<LeasedRecord>,
}

impl Deliverer {
    /// Makes the next attempt at a batch, unless the endpoint does not take it now. `when_slow` is run once
    /// it takes long.
    pub(super) async fn attempt_batch(
        &self,
        lane: Lane,
        webhook: &CompiledWebhook,
        members: Vec<Member>,
        when_slow: impl FnOnce(),
    ) -> BatchTried {
        let (endpoint, mut slot, permit) = match self.enter(lane, webhook).await {
            Ok(entered) => entered,
            Err(reason) => return BatchTried::Waits(reason),
        };
        let started_at = self.clock.now();
        let due = self.clock.store_now();
        let packed = self.pack(endpoint, members, (started_at, due)).await;
        let Some(first) = packed.members.first() else {
            return BatchTried::Recorded(packed.apart);
        };
        let attempts = packed.members.iter().map(|one| one.delivery.attempt_count);
        let number = attempts.max().unwrap_or_default() + 1;
        let id = batch_of(&packed.members);
        let request = endpoint.batch_request(packed.body, id, number, started_at);
        slot.begin();
        let sending = self.send(lane, request, number, started_at);
        let sent = self
            .let_others_pass(sending, permit, async { when_slow() })
            .await;
        let (attempt, answer, fault, _) = match sent {
            Ok(sent) => sent,
            Err(reason) => return BatchTried::Waits(unsent(slot, reason)),
        };
        self.note(lane, &first.delivery, &attempt, (answer, fault));
        slot.finish(answer);
        let sent = (packed.members, packed.apart);
        self.conclude_batch(lane, webhook, sent, &attempt, answer)
            .await
    }

    /// Puts the events into one body, in their order. What does not fit waits for the next request, due at
    /// `due`. Others get their turn between, since each event may take a `transform`.
    async fn pack(
        &self,
        endpoint: &Endpoint,
        members: Vec<Member>,
        (now, due): (Timestamp, Timestamp),
    ) -> Packed {
        let mut packed = Packed {
            body: endpoint.batch_body(),
            members: Vec::with_capacity(members.len()),
            apart: Vec::new(),
        };
        let mut rest = members.into_iter();
        let mut in_a_row = 0;
        while let Some(one) = rest.next() {
            in_a_row += 1;
            if in_a_row > PACKED_IN_A_ROW {
                tokio::task::yield_now().await;
                in_a_row = 1;
            }
            match endpoint.batch_part(&one.event) {
                Ok(part) if packed.body.push(&part) => packed.members.push(one),
                Ok(_) => {
                    let next = BatchId(self.clock.new_id());
                    let left = std::iter::once(one).chain(rest);
                    packed
                        .apart
                        .extend(left.map(|one| left_out(one, next, due)));
                    break;
                }
                Err(problem) => {
                    if endpoint.has_transform() {
                        counter!(EXPRESSION_FAULTS, "expression" => "transform").increment(1);
                    }
                    let Attempted {
                        delivery, events, ..
                    } = refused(one.delivery, problem, now, &one.event);
                    packed.apart.push(record(one.lease, delivery, None, events));
                }
            }
        }
        packed
    }

    async fn conclude_batch(
        &self,
        lane: Lane,
        webhook: &CompiledWebhook,
        (members, apart): (Vec<Member>, Vec<LeasedRecord>),
        attempt: &Attempt,
        answer: Answer,
    ) -> BatchTried {
        let (now, due) = (self.clock.now(), self.clock.store_now());
        let spent = |one: &Member| one.delivery.attempt_count + 1 - one.delivery.budget_base;
        let budget = members.iter().map(spent).max().unwrap_or(1);
        let budget = u32::try_from(budget).unwrap_or(1);
        let random = self.clock.random();
        let halves = halved_at(answer, members.len(), due);
        let mut step = match halves {
            Some(at) => NextStep::Retry(at),
            None => next_step(answer, &webhook.retry, budget, due, random),
        };
        if let Some(first) = members.first() {
            let cause = Cause {
                delivery: &first.delivery,
                trace: first.event.meta.trace.as_ref(),
            };
            match self.change_webhook(webhook, cause, step).await {
                None => return BatchTried::Stopping,
                // A webhook that cannot be disabled gets its next request by the schedule, not at once.
                Some(Err(_)) if step == NextStep::Disable => {
                    step = next_step(Answer::None, &webhook.retry, budget, due, random);
                }
                Some(_) => {}
            }
        }
        count(lane, step);
        let whole = batch_of(&members);
        log(webhook, (whole, &members), attempt, step);
        let half = members.len().div_ceil(2);
        let (front, back) = members.split_at(half);
        let (front, back) = (batch_of(front), batch_of(back));
        let mut records = apart;
        for (place, mut one) in members.into_iter().enumerate() {
            let delivery = &mut one.delivery;
            delivery.batch = Batching::In(match halves {
                Some(_) if place < half => front,
                Some(_) => back,
                // What was left out of it is with these no longer.
                None => whole,
            });
            if halves.is_some() {
                delivery.budget_base += 1;
            }
            if step == NextStep::Disable {
                delivery.next_attempt_at = Some(due);
            }
            let attempt = Attempt {
                number: delivery.attempt_count + 1,
                ..attempt.clone()
            };
            let trace = one.event.meta.trace.as_ref();
            // Not the fast lane's: what it comes to is told through the outbox.
            let events = apply(Lane::Parked, delivery, &attempt, step, now, trace);
            records.push(record(one.lease, one.delivery, Some(attempt), events));
        }
        BatchTried::Recorded(records)
    }
}

/// What these are sent under.
fn batch_of(members: &[Member]) -> BatchId {
    BatchId::of(members.iter().map(|one| one.delivery.id))
}

/// One that did not fit: with the next batch, or, where it was tried before, with the others of its.
fn left_out(one: Member, next: BatchId, due: Timestamp) -> LeasedRecord {
    let mut delivery = one.delivery;
    let is_new = delivery.attempt_count == delivery.budget_base;
    delivery.batch = if is_new {
        Batching::Waits
    } else {
        Batching::In(next)
    };
    delivery.next_attempt_at = Some(due);
    record(one.lease, delivery, None, Vec::new())
}

/// When the halves of a batch are due that is too large for its receiver; a single event has none.
fn halved_at(answer: Answer, events: usize, now: Timestamp) -> Option<Timestamp> {
    match answer {
        Answer::Status(TOO_LARGE, after) if events > 1 => {
            let asked = after.unwrap_or_default();
            Some(now + asked.min(RetryPolicy::MAX_RETRY_AFTER))
        }
        _ => None,
    }
}

fn record(
    lease: Lease,
    delivery: Delivery,
    attempt: Option<Attempt>,
    events: Vec<DomainEvent>,
) -> LeasedRecord {
    LeasedRecord {
        lease,
        delivery,
        attempt,
        events,
    }
}

fn log(
    webhook: &CompiledWebhook,
    (batch, members): (BatchId, &[Member]),
    attempt: &Attempt,
    step: NextStep,
) {
    let (webhook, events, error) = (webhook.id, members.len(), attempt.error.as_deref());
    let (number, duration_ms) = (attempt.number, attempt.duration_ms);
    if step == NextStep::Done {
        tracing::debug!(%batch, %webhook, events, attempt = number, duration_ms, "delivered together");
    } else {
        tracing::info!(
            %batch, %webhook, events, attempt = number, duration_ms, error, ?step,
            "an attempt at a batch failed"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_several_events_that_are_too_large_together_are_halved() {
        let now = chrono::DateTime::UNIX_EPOCH;
        let wait = Duration::from_secs(7);
        for (answer, events, expected) in [
            (Answer::Status(413, None), 2, Some(now)),
            (Answer::Status(413, Some(wait)), 100, Some(now + wait)),
            (
                Answer::Status(413, Some(Duration::from_hours(48))),
                2,
                Some(now + RetryPolicy::MAX_RETRY_AFTER),
            ),
            (Answer::Status(413, None), 1, None),
            (Answer::Status(500, None), 2, None),
            (Answer::None, 2, None),
        ] {
            assert_eq!(halved_at(answer, events, now), expected, "{answer:?}");
        }
    }
}
