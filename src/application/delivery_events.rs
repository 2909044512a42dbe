//! The domain events about a delivery (CONTRACT 5). Their ids are derived from the delivery and the
//! version, so publishing one again is the same event.

use serde::Serialize;
use serde_json::Value;

use crate::domain::{
    entities::{Attempt, Delivery, DeliveryStatus},
    events::{BusinessEvent, Context, DomainEvent, Response},
    interfaces::OutboxRow,
    values::{DeliveryId, Timestamp, TraceContext, WebhookId, format_time},
};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Base<'a> {
    webhook_id: WebhookId,
    delivery_id: DeliveryId,
    event_id: &'a str,
    event_type: &'a str,
    attempt: i32,
    duration_ms: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    status_code: Option<u16>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Failure<'a> {
    #[serde(flatten)]
    base: Base<'a>,
    error: Option<&'a str>,
    retry_count: i32,
    next_attempt_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<i32>,
}

/// `webhook.triggered`: delivered.
pub fn triggered(
    delivery: &Delivery,
    attempt: &Attempt,
    trace: Option<&TraceContext>,
) -> DomainEvent {
    let time = delivery.completed_at.unwrap_or(attempt.started_at);
    let data = value(&base(delivery, attempt));
    event(delivery, "webhook.triggered", time, data, trace)
}

/// `webhook.failed`: an attempt failed; `next` is when the next one is due.
pub fn failed(
    delivery: &Delivery,
    attempt: &Attempt,
    next: Option<Timestamp>,
    trace: Option<&TraceContext>,
) -> DomainEvent {
    let data = value(&failure(delivery, attempt, next, None));
    event(delivery, "webhook.failed", ended(attempt), data, trace)
}

/// `webhook.exhausted`: the last attempt failed; one version after its `webhook.failed`.
pub fn exhausted(
    delivery: &Delivery,
    attempt: &Attempt,
    trace: Option<&TraceContext>,
) -> DomainEvent {
    let data = value(&failure(
        delivery,
        attempt,
        None,
        Some(delivery.attempt_count),
    ));
    event(delivery, "webhook.exhausted", ended(attempt), data, trace)
}

/// `webhook.exhausted` of a delivery of which no (further) request can be made; there is no
/// `webhook.failed` before it, since there was no attempt.
pub fn never_sent(
    delivery: &Delivery,
    now: Timestamp,
    trace: Option<&TraceContext>,
) -> DomainEvent {
    let attempts = delivery.attempt_count;
    let failure = Failure {
        base: Base {
            webhook_id: delivery.webhook_id,
            delivery_id: delivery.id,
            event_id: &delivery.event_id,
            event_type: &delivery.event_type,
            attempt: attempts,
            duration_ms: 0,
            status_code: None,
        },
        error: delivery.error.as_deref(),
        retry_count: (attempts - 1).max(0),
        next_attempt_at: None,
        attempts: Some(attempts),
    };
    let data = value(&failure);
    event(delivery, "webhook.exhausted", now, data, trace)
}

/// The business event of this type that is made of the endpoint's answer.
pub fn response(
    delivery: &Delivery,
    event_type: &str,
    response: Response,
    now: Timestamp,
    trace: Option<&TraceContext>,
) -> DomainEvent {
    DomainEvent {
        id: delivery.id.response_id(),
        response: Some(response),
        ..event(delivery, event_type, now, Value::Null, trace)
    }
}

/// What is to be published about a recorded delivery that succeeded at its first attempt; the events
/// of all others go through the outbox.
pub fn first_success(
    delivery: &Delivery,
    attempt: Option<&Attempt>,
    event: &BusinessEvent,
) -> Option<OutboxRow> {
    let is_first = delivery.status == DeliveryStatus::Delivered
        && delivery.attempt_count == 1
        && delivery.event_version == 1;
    let attempt = attempt.filter(|_| is_first)?;
    let time = delivery.completed_at.unwrap_or(attempt.started_at);
    let trace = event.meta.trace.as_ref();
    let data = base(delivery, attempt);
    Some(to_row(self::event(
        delivery,
        "webhook.triggered",
        time,
        data,
        trace,
    )))
}

/// The event as the publisher takes it.
fn to_row<D: Serialize>(event: DomainEvent<D>) -> OutboxRow {
    OutboxRow {
        is_response: false,
        id: event.id,
        body: event.to_json(),
        event_type: event.event_type,
        trace: event.context.trace,
    }
}

fn ended(attempt: &Attempt) -> Timestamp {
    attempt.started_at + chrono::TimeDelta::milliseconds(attempt.duration_ms)
}

fn base<'a>(delivery: &'a Delivery, attempt: &Attempt) -> Base<'a> {
    Base {
        webhook_id: delivery.webhook_id,
        delivery_id: delivery.id,
        event_id: &delivery.event_id,
        event_type: &delivery.event_type,
        attempt: attempt.number,
        duration_ms: attempt.duration_ms,
        status_code: attempt.status_code,
    }
}

fn failure<'a>(
    delivery: &'a Delivery,
    attempt: &'a Attempt,
    next: Option<Timestamp>,
    attempts: Option<i32>,
) -> Failure<'a> {
    Failure {
        base: base(delivery, attempt),
        error: attempt.error.as_deref(),
        retry_count: attempt.number - 1,
        next_attempt_at: next.map(format_time),
        attempts,
    }
}

/// For the outbox, which keeps any event's data.
fn value(data: &impl Serialize) -> Value {
    serde_json::to_value(data).unwrap_or_default()
}

fn event<D>(
    delivery: &Delivery,
    event_type: &str,
    time: Timestamp,
    data: D,
    trace: Option<&TraceContext>,
) -> DomainEvent<D> {
    let version = delivery.event_version;
    DomainEvent {
        response: None,
        id: delivery.id.event_id(version),
        event_type: event_type.to_owned(),
        subject: delivery.id.to_string(),
        time,
        aggregate_version: version,
        context: Context {
            tenant: delivery.tenant.clone(),
            actor: "system".to_owned(),
            correlation_id: delivery
                .correlation_id
                .clone()
                .unwrap_or_else(|| delivery.event_id.clone()),
            causation_id: delivery.event_id.clone(),
            trace: trace.cloned(),
        },
        data,
    }
}
