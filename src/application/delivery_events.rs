//! The domain events about a delivery (CONTRACT 5). Their ids are derived from the delivery and the
//! version, so publishing one again is the same event.

use serde_json::{Map, Value, json};

use crate::domain::{
    entities::{Attempt, Delivery, DeliveryStatus},
    events::{BusinessEvent, Context, DomainEvent},
    interfaces::OutboxRow,
    values::{Timestamp, format_time},
};

/// `webhook.triggered`: delivered.
pub fn triggered(delivery: &Delivery, attempt: &Attempt, traceparent: Option<&str>) -> DomainEvent {
    let mut data = base(delivery, attempt);
    data.insert("statusCode".to_owned(), json!(attempt.status_code));
    let time = delivery.completed_at.unwrap_or(attempt.started_at);
    event(
        delivery,
        "webhook.triggered",
        delivery.event_version,
        time,
        data,
        traceparent,
    )
}

/// `webhook.failed`: an attempt failed; `next` is when the next one is due.
pub fn failed(
    delivery: &Delivery,
    attempt: &Attempt,
    next: Option<Timestamp>,
    traceparent: Option<&str>,
) -> DomainEvent {
    let mut data = failure(delivery, attempt);
    data.insert("nextAttemptAt".to_owned(), json!(next.map(format_time)));
    let time = ended(attempt);
    event(
        delivery,
        "webhook.failed",
        delivery.event_version,
        time,
        data,
        traceparent,
    )
}

/// `webhook.exhausted`: the last attempt failed; one version after its `webhook.failed`.
pub fn exhausted(delivery: &Delivery, attempt: &Attempt, traceparent: Option<&str>) -> DomainEvent {
    let mut data = failure(delivery, attempt);
    data.insert("nextAttemptAt".to_owned(), Value::Null);
    data.insert("attempts".to_owned(), json!(delivery.attempt_count));
    let time = ended(attempt);
    event(
        delivery,
        "webhook.exhausted",
        delivery.event_version,
        time,
        data,
        traceparent,
    )
}

/// What is to be published about a recorded delivery that succeeded at its first attempt; the events
/// of all others go through the outbox.
pub fn first_success(
    (delivery, attempt): &(Delivery, Option<Attempt>),
    event: &BusinessEvent,
) -> Option<OutboxRow> {
    let is_first = delivery.status == DeliveryStatus::Delivered
        && delivery.attempt_count == 1
        && delivery.event_version == 1;
    let attempt = attempt.as_ref().filter(|_| is_first)?;
    let told = triggered(delivery, attempt, event.meta.traceparent.as_deref());
    Some(to_row(&told))
}

/// The event as the publisher takes it.
pub fn to_row(event: &DomainEvent) -> OutboxRow {
    OutboxRow {
        id: event.id,
        event_type: event.event_type.clone(),
        traceparent: event.context.traceparent.clone(),
        body: event.to_json(),
    }
}

fn ended(attempt: &Attempt) -> Timestamp {
    attempt.started_at + chrono::TimeDelta::milliseconds(attempt.duration_ms)
}

fn base(delivery: &Delivery, attempt: &Attempt) -> Map<String, Value> {
    let mut data = Map::new();
    data.insert("webhookId".to_owned(), json!(delivery.webhook_id));
    data.insert("deliveryId".to_owned(), json!(delivery.id));
    data.insert("eventId".to_owned(), json!(delivery.event_id));
    data.insert("eventType".to_owned(), json!(delivery.event_type));
    data.insert("attempt".to_owned(), json!(attempt.number));
    data.insert("durationMs".to_owned(), json!(attempt.duration_ms));
    data
}

fn failure(delivery: &Delivery, attempt: &Attempt) -> Map<String, Value> {
    let mut data = base(delivery, attempt);
    if let Some(status) = attempt.status_code {
        data.insert("statusCode".to_owned(), json!(status));
    }
    data.insert("error".to_owned(), json!(attempt.error));
    data.insert("retryCount".to_owned(), json!(attempt.number - 1));
    data
}

fn event(
    delivery: &Delivery,
    event_type: &str,
    version: i64,
    time: Timestamp,
    data: Map<String, Value>,
    traceparent: Option<&str>,
) -> DomainEvent {
    DomainEvent {
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
            traceparent: traceparent.map(str::to_owned),
        },
        data: Value::Object(data),
    }
}
