//! One attempt at one delivery, whichever lane it is on: a slot at the endpoint, the request, and what
//! becomes of the delivery.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use metrics::{counter, histogram};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{
    domain::{
        entities::{Attempt, Delivery, DeliveryStatus},
        events::{BusinessEvent, DomainEvent},
        interfaces::StoreError,
        policies::{Answer, NextStep, Sign, next_step},
        values::{Timestamp, TraceContext, WebhookId},
    },
    shared::{
        error_chain::Chain,
        metrics::{ATTEMPT_SECONDS, ATTEMPTS, EXPRESSION_FAULTS},
    },
};

use super::{
    answer::{Fault, attempt_of},
    breakers::Breakers,
    delivery_events,
    endpoints::{Endpoints, Slot},
    live_traffic::LiveTraffic,
    patience::until_done,
    ports::{Clock, HttpSender, OutboundRequest},
    registry::CompiledWebhook,
    response::WholeAnswer,
    webhook_changes::Cause,
};

/// Which lane an attempt is on, for figures and for who makes room for whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// The first attempt, by the worker that took the event in.
    Fast,
    /// A later one, or one that waited.
    Parked,
    /// The same, and the one request that tries an endpoint whose breaker is open.
    Probe,
    /// One of a page of a replay, which keeps out of the way of the others.
    Replay,
}

impl Lane {
    fn as_str(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Parked | Self::Probe => "parked",
            Self::Replay => "replay",
        }
    }
}

/// A delivery after an attempt.
#[derive(Debug)]
pub struct Attempted {
    /// As it stands now.
    pub delivery: Delivery,
    /// The attempt; `None` when no request could be made of the event, and never will.
    pub attempt: Option<Attempt>,
    /// What is to be told about it, in the order of the versions.
    pub events: Vec<DomainEvent>,
}

/// What came of trying to make an attempt.
#[derive(Debug)]
pub enum Tried {
    /// A request was made, or can never be made.
    Attempted(Box<Attempted>),
    /// No request was made; the delivery goes on waiting, and this is why.
    Waits(&'static str),
    /// The worker is stopping; nothing is to be recorded.
    Stopping,
}

/// Why a delivery waits without an attempt.
pub const BUSY: &str = "waiting for a free slot at the endpoint";
/// Why a delivery waits without an attempt.
pub const OPEN: &str = "waiting for the endpoint, whose circuit breaker is open";
/// Why a delivery waits without an attempt.
pub const DISABLED: &str = "waiting for the webhook to be activated";
/// Why a delivery waits without an attempt.
pub const ORDERED: &str = "waiting for its turn";
/// Why a delivery waits without an attempt.
pub const BATCHED: &str = "waiting to be sent together with others";
/// Why a delivery waits without an attempt.
pub const RATE_LIMITED: &str = "waiting for the webhook's rate limit";
/// Why a delivery waits without an attempt.
pub const NO_TOKEN: &str = "waiting for a token";
/// Why a delivery waits without an attempt.
pub const NO_NAMES: &str = "waiting for a name server";
/// Why a delivery waits without an attempt.
pub const UNUSABLE: &str = "the webhook's configuration or signing secret cannot be read";

/// Attempts that have taken longer than [`STALL`](crate::domain::policies::STALL), which do not count among those in flight.
pub const MAX_SLOW: usize = 1024;
/// How long a claimed delivery waits for a slot before its lease is given back.
pub const PARKED_PATIENCE: Duration = Duration::from_secs(5);

/// The same for one that has taken a token: a token is used soon or given back, so that those of a while
/// do not go out all at once.
pub const LIMITED_PATIENCE: Duration = Duration::from_millis(500);

/// Makes attempts.
pub struct Deliverer {
    pub(super) clock: Arc<dyn Clock>,
    sender: Arc<dyn HttpSender>,
    pub(super) breakers: Arc<Breakers>,
    pub(super) endpoints: Endpoints,
    live: LiveTraffic,
    pub(super) attempts: Semaphore,
    max_in_flight: usize,
    pub(super) slow: Semaphore,
    max_response_event: usize,
    stopping: CancellationToken,
}

impl std::fmt::Debug for Deliverer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deliverer")
            .field("endpoints", &self.endpoints)
            .finish_non_exhaustive()
    }
}

impl Deliverer {
    /// At most `max_in_flight` attempts are under way in all, besides [`MAX_SLOW`] that take long. `stopping` ends waits for the store.
    pub fn new(
        clock: Arc<dyn Clock>,
        sender: Arc<dyn HttpSender>,
        breakers: Arc<Breakers>,
        endpoints: Endpoints,
        max_in_flight: usize,
        stopping: CancellationToken,
    ) -> Self {
        Self {
            clock,
            sender,
            breakers,
            endpoints,
            live: LiveTraffic::new(),
            attempts: Semaphore::new(max_in_flight),
            max_in_flight,
            slow: Semaphore::new(MAX_SLOW),
            max_response_event: usize::MAX,
            stopping,
        }
    }

    /// An answer becomes no event of more bytes than that, envelope included: the bus or this worker would
    /// not take it.
    #[must_use]
    pub fn with_max_response_event(mut self, bytes: usize) -> Self {
        self.max_response_event = bytes;
        self
    }

    /// The slots of the endpoints.
    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// The endpoints that are left alone for a while.
    pub fn breakers(&self) -> &Arc<Breakers> {
        &self.breakers
    }

    /// The requests that are not made for a page of a replay.
    pub fn live_traffic(&self) -> &LiveTraffic {
        &self.live
    }

    /// Whether an attempt more takes nothing from anybody: most of this worker's attempts are free, and
    /// nobody waits for the endpoint.
    pub fn has_room_to_spare(&self, webhook: WebhookId) -> bool {
        self.attempts.available_permits() * 2 > self.max_in_flight
            && !self.endpoints.is_waited_for(webhook)
    }

    /// Makes the next attempt at `delivery`, unless the endpoint does not take it now. `when_slow` is run
    /// beside an attempt that takes longer than [`STALL`](crate::domain::policies::STALL), as long as there are not too many such.
    pub async fn attempt(
        &self,
        lane: Lane,
        webhook: &CompiledWebhook,
        event: &BusinessEvent,
        delivery: Delivery,
        when_slow: impl AsyncFnOnce(&Delivery),
    ) -> Tried {
        let (endpoint, mut slot, permit) = match self.enter(lane, webhook).await {
            Ok(entered) => entered,
            Err(reason) => return Tried::Waits(reason),
        };
        let number = delivery.attempt_count + 1;
        let started_at = self.clock.now();
        let request = match endpoint.request(event, delivery.id, number, started_at) {
            Ok(request) => request,
            Err(problem) => {
                counter!(EXPRESSION_FAULTS, "expression" => "transform").increment(1);
                let refused = refused(delivery, problem, started_at, event);
                return Tried::Attempted(Box::new(refused));
            }
        };
        slot.begin();
        let sending = self.send(lane, request, number, started_at);
        let sent = self
            .let_others_pass(sending, permit, when_slow(&delivery))
            .await;
        let (attempt, answer, fault, whole) = match sent {
            Ok(sent) => sent,
            Err(reason) => return Tried::Waits(unsent(slot, reason)),
        };
        self.note(lane, &delivery, &attempt, (answer, fault));
        slot.finish(answer);
        self.conclude(lane, webhook, event, delivery, (attempt, answer, whole))
            .await
    }

    /// `Err` when nothing was sent, for a reason that is not the partner's.
    pub(super) async fn send(
        &self,
        lane: Lane,
        request: OutboundRequest,
        number: i32,
        started_at: Timestamp,
    ) -> Result<(Attempt, Answer, Fault, WholeAnswer), &'static str> {
        let start = Instant::now();
        let _live = (lane != Lane::Replay).then(|| self.live.begin());
        let mut result = self.sender.send(request).await;
        let fault = match &result {
            Ok(_) => Fault::Endpoint,
            Err(error) => Fault::of(error)?,
        };
        let took = start.elapsed();
        histogram!(ATTEMPT_SECONDS, "lane" => lane.as_str()).record(took.as_secs_f64());
        let duration_ms = i64::try_from(took.as_millis()).unwrap_or(i64::MAX);
        let whole = result.as_mut().ok().and_then(|http| http.whole.take());
        let (attempt, answer) = attempt_of(number, started_at, duration_ms, result);
        Ok((attempt, answer, fault, whole))
    }

    /// Tells the breaker what the attempt says about the endpoint.
    pub(super) fn note(
        &self,
        lane: Lane,
        delivery: &Delivery,
        attempt: &Attempt,
        (answer, fault): (Answer, Fault),
    ) {
        let id = delivery.webhook_id;
        let is_slowest = || lane == Lane::Probe || self.endpoints.is_slowest(id);
        let sign = match fault {
            Fault::Address => Sign::Refusal,
            Fault::Endpoint => Sign::of(answer, !answer.keeps_up() && is_slowest()),
        };
        let is_probe = lane == Lane::Probe;
        self.breakers
            .note(delivery, sign, is_probe, attempt.error.as_deref());
    }

    async fn conclude(
        &self,
        lane: Lane,
        webhook: &CompiledWebhook,
        event: &BusinessEvent,
        mut delivery: Delivery,
        (attempt, answer, whole): (Attempt, Answer, WholeAnswer),
    ) -> Tried {
        let now = self.clock.now();
        let budget = u32::try_from(attempt.number - delivery.budget_base).unwrap_or(1);
        let random = self.clock.random();
        let due = self.clock.store_now();
        let mut step = next_step(answer, &webhook.retry, budget, due, random);
        let trace = event.meta.trace.as_ref();
        let cause = Cause {
            delivery: &delivery,
            trace,
        };
        match self.change_webhook(webhook, cause, step).await {
            None => return Tried::Stopping,
            // A webhook that cannot be disabled gets its next request by the schedule, not at once.
            Some(Err(_)) if step == NextStep::Disable => {
                step = next_step(Answer::None, &webhook.retry, budget, due, random);
            }
            Some(_) => {}
        }
        if step == NextStep::Disable {
            delivery.next_attempt_at = Some(due);
        }
        let mut events = apply(lane, &mut delivery, &attempt, step, now, trace);
        if let (NextStep::Done, Some(rule)) = (step, webhook.response()) {
            let max = self.max_response_event;
            events.extend(rule.apply(&mut delivery, event, whole, now, max));
        }
        count(lane, step);
        log(&delivery, &attempt, step);
        Tried::Attempted(Box::new(Attempted {
            delivery,
            attempt: Some(attempt),
            events,
        }))
    }

    /// `None` when the worker is stopping.
    pub(super) async fn change_webhook(
        &self,
        webhook: &CompiledWebhook,
        cause: Cause<'_>,
        step: NextStep,
    ) -> Option<Result<(), StoreError>> {
        let (stopping, is_final) = (&self.stopping, StoreError::is_final);
        let changed = match step {
            NextStep::Done if webhook.is_pending => {
                let activate = || self.breakers.changes().first_success(cause);
                until_done(stopping, "activate a webhook", is_final, activate).await?
            }
            NextStep::Disable => {
                let disable = || {
                    self.breakers
                        .changes()
                        .disable(cause, "the endpoint answered 410 Gone")
                };
                until_done(stopping, "disable a webhook", is_final, disable).await?
            }
            _ => Ok(()),
        };
        if let Err(error) = &changed {
            let error = Chain(error).to_string();
            tracing::error!(webhook = %webhook.id, error, "a webhook could not be changed");
        }
        Some(changed)
    }
}

/// Gives a slot back in which nothing was sent, for this reason. Where no name server answers, it does so
/// for none that follow, and others need the lane.
pub(super) fn unsent(slot: Slot, reason: &'static str) -> &'static str {
    if reason == NO_NAMES {
        slot.finish(Answer::None);
    }
    reason
}

/// The end of a delivery whose event cannot be evaluated: no request is made, now or later.
pub(super) fn refused(
    mut delivery: Delivery,
    problem: String,
    now: Timestamp,
    event: &BusinessEvent,
) -> Attempted {
    tracing::info!(
        delivery = %delivery.id, webhook = %delivery.webhook_id, event = delivery.event_id,
        error = problem, "an expression could not be evaluated, nothing is sent"
    );
    delivery.status = DeliveryStatus::Exhausted;
    delivery.next_attempt_at = None;
    delivery.completed_at = Some(now);
    delivery.error = Some(problem);
    delivery.event_version += 1;
    let told = delivery_events::never_sent(&delivery, now, event.meta.trace.as_ref());
    Attempted {
        delivery,
        attempt: None,
        events: vec![told],
    }
}

/// Moves the delivery on and answers what is to be told.
pub(super) fn apply(
    lane: Lane,
    delivery: &mut Delivery,
    attempt: &Attempt,
    step: NextStep,
    now: Timestamp,
    trace: Option<&TraceContext>,
) -> Vec<DomainEvent> {
    delivery.attempt_count = attempt.number;
    delivery.error.clone_from(&attempt.error);
    delivery.event_version += 1;
    match step {
        NextStep::Done => {
            delivery.status = DeliveryStatus::Delivered;
            delivery.next_attempt_at = None;
            delivery.completed_at = Some(now);
            // A first success is told without the outbox, once it is recorded.
            if lane == Lane::Fast {
                return Vec::new();
            }
            vec![delivery_events::triggered(delivery, attempt, trace)]
        }
        NextStep::Retry(at) => {
            delivery.next_attempt_at = Some(at);
            vec![delivery_events::failed(delivery, attempt, Some(at), trace)]
        }
        NextStep::Disable => {
            vec![delivery_events::failed(delivery, attempt, None, trace)]
        }
        NextStep::GiveUp => {
            delivery.status = DeliveryStatus::Exhausted;
            delivery.next_attempt_at = None;
            delivery.completed_at = Some(now);
            let failed = delivery_events::failed(delivery, attempt, None, trace);
            delivery.event_version += 1;
            vec![failed, delivery_events::exhausted(delivery, attempt, trace)]
        }
    }
}

pub(super) fn count(lane: Lane, step: NextStep) {
    let outcome = match step {
        NextStep::Done => "delivered",
        NextStep::Retry(_) | NextStep::Disable => "failed",
        NextStep::GiveUp => "exhausted",
    };
    counter!(ATTEMPTS, "lane" => lane.as_str(), "outcome" => outcome).increment(1);
}

fn log(delivery: &Delivery, attempt: &Attempt, step: NextStep) {
    let Delivery {
        id,
        webhook_id,
        event_id,
        ..
    } = delivery;
    let correlation = delivery.correlation_id.as_deref().unwrap_or(event_id);
    if step == NextStep::Done {
        tracing::debug!(
            delivery = %id, webhook = %webhook_id, event = event_id, correlation,
            attempt = attempt.number, duration_ms = attempt.duration_ms, "delivered"
        );
    } else {
        tracing::info!(
            delivery = %id, webhook = %webhook_id, event = event_id, correlation,
            attempt = attempt.number, duration_ms = attempt.duration_ms, error = attempt.error,
            status = delivery.status.as_str(), next_attempt_at = ?delivery.next_attempt_at,
            "an attempt failed"
        );
    }
}
