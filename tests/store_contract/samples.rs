//! Things to store. Times and ids are counted, never asked for.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use bytes::Bytes;
use chrono::{DateTime, TimeDelta};
use integration_worker::domain::{
    entities::{
        Attempt, Batching, Delivery, DeliveryStatus, EntityMeta, Integration, IntegrationStatus,
        IntegrationType, SigningSecret, Webhook, WebhookStatus,
    },
    events::{Context, DomainEvent},
    interfaces::{CommandKey, FirstRecord, Lease, LeasedRecord, StoredEvent, StoredReply},
    values::{
        DeliveryId, EventPattern, IntegrationId, SealedSecrets, SecretConfig, TenantId, Timestamp,
        TraceContext, WebhookId,
    },
};
use serde_json::{Map, Value, json};
use uuid::Uuid;

/// Milliseconds after the beginning of these tests' time.
pub(crate) fn at(millis: i64) -> Timestamp {
    let start = DateTime::from_timestamp(1_772_350_000, 0).expect("it is a time");
    start + TimeDelta::milliseconds(millis)
}

/// A new id, shaped as version 7 and greater than all before.
pub(crate) fn new_id() -> Uuid {
    static COUNT: AtomicU64 = AtomicU64::new(1);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    uuid::Builder::from_unix_timestamp_millis(1_772_350_000_000 + count, &[7; 10]).into_uuid()
}

pub(crate) fn tenant(name: &str) -> TenantId {
    TenantId::try_new(name).expect("it is a tenant")
}

/// The tenant of all samples.
pub(crate) fn ours() -> TenantId {
    tenant("valeo")
}

pub(crate) fn meta(name: &str) -> EntityMeta {
    EntityMeta {
        tenant: ours(),
        name: name.to_owned(),
        description: None,
        tags: Vec::new(),
        version: 1,
        created_at: at(0),
        updated_at: at(0),
        created_by: "anna".to_owned(),
        updated_by: "anna".to_owned(),
    }
}

pub(crate) fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => panic!("{other} is no object"),
    }
}

pub(crate) fn sealed(key_id: &str) -> SealedSecrets {
    SealedSecrets {
        key_id: key_id.to_owned(),
        bytes: (0..=255).collect(),
    }
}

pub(crate) fn integration(name: &str) -> Integration {
    Integration {
        id: IntegrationId(new_id()),
        meta: meta(name),
        kind: IntegrationType::Api,
        status: IntegrationStatus::Active,
        config: SecretConfig {
            shown: object(json!({ "endpoint": "https://api.example.com" })),
            sealed: None,
        },
    }
}

pub(crate) fn secret(key_id: &str, created: Timestamp) -> SigningSecret {
    SigningSecret {
        sealed: sealed(key_id),
        created_at: created,
        expires_at: None,
    }
}

pub(crate) fn pattern(text: &str) -> EventPattern {
    EventPattern::try_new(text).expect("it is a pattern")
}

pub(crate) fn webhook(integration: &Integration, name: &str) -> Webhook {
    Webhook {
        id: WebhookId(new_id()),
        integration_id: integration.id,
        meta: EntityMeta {
            tenant: integration.meta.tenant.clone(),
            ..meta(name)
        },
        events: vec![pattern("order.created")],
        status: WebhookStatus::Active,
        config: SecretConfig {
            shown: object(json!({ "url": "https://api.example.com/hook", "method": "POST" })),
            sealed: None,
        },
        secrets: vec![secret("k1", at(0))],
    }
}

/// A delivery that waits without an attempt and is due at `at(number)`.
pub(crate) fn delivery(webhook: &Webhook, number: i64) -> Delivery {
    let event_id = format!("event-{number}");
    Delivery {
        id: DeliveryId::derive(webhook.id, &webhook.meta.tenant, &event_id),
        tenant: webhook.meta.tenant.clone(),
        webhook_id: webhook.id,
        event_id,
        event_type: "order.created".to_owned(),
        correlation_id: Some("correlation".to_owned()),
        source_sequence: Some(number),
        status: DeliveryStatus::Pending,
        attempt_count: 0,
        event_version: 0,
        budget_base: 0,
        next_attempt_at: Some(at(number)),
        error: None,
        created_at: at(number),
        completed_at: None,
        lane: None,
        batch: Batching::Alone,
    }
}

/// The delivery after one more attempt, which ended at `end`: `Pending` is due again a minute later.
pub(crate) fn attempted(
    delivery: &Delivery,
    status: DeliveryStatus,
    end: Timestamp,
) -> (Delivery, Attempt) {
    let good = status == DeliveryStatus::Delivered;
    let pending = status == DeliveryStatus::Pending;
    let error = (!good).then(|| "HTTP 500".to_owned());
    let number = delivery.attempt_count + 1;
    let after = Delivery {
        status,
        attempt_count: number,
        event_version: delivery.event_version + 1,
        next_attempt_at: pending.then(|| end + TimeDelta::seconds(60)),
        error: error.clone(),
        completed_at: (!pending).then_some(end),
        ..delivery.clone()
    };
    let attempt = Attempt {
        number,
        started_at: end - TimeDelta::milliseconds(5),
        duration_ms: 5,
        status_code: Some(if good { 204 } else { 500 }),
        error,
        response: Some("{\"ok\":\"ja, größer\"}".to_owned()),
    };
    (after, attempt)
}

pub(crate) fn stored_event(number: i64) -> StoredEvent {
    StoredEvent {
        meta: format!("{{\"id\":\"event-{number}\",\"n\":18450.00, \"b\":1,\"a\":\"\\u0000ü\"}}"),
        raw: Bytes::from([b"\x00\xff raw ", number.to_string().as_bytes()].concat()),
    }
}

/// `delivery`, parked without an attempt.
pub(crate) fn parked(delivery: &Delivery) -> FirstRecord {
    FirstRecord {
        delivery: delivery.clone(),
        attempt: None,
        event: Some(stored_event(delivery.source_sequence.unwrap_or_default())),
        events: Vec::new(),
    }
}

/// `delivery` after its first attempt, which ended when it was taken in, with its domain event.
pub(crate) fn first_attempt(delivery: &Delivery, status: DeliveryStatus) -> FirstRecord {
    let (after, attempt) = attempted(delivery, status, delivery.created_at);
    let needed = matches!(status, DeliveryStatus::Pending | DeliveryStatus::Exhausted);
    FirstRecord {
        event: needed.then(|| stored_event(delivery.source_sequence.unwrap_or_default())),
        events: vec![delivery_event(&after)],
        attempt: Some(attempt),
        delivery: after,
    }
}

/// A claimed delivery after an attempt under its lease.
pub(crate) fn under_lease(
    lease: Lease,
    delivery: &Delivery,
    status: DeliveryStatus,
    end: Timestamp,
) -> LeasedRecord {
    let (after, attempt) = attempted(delivery, status, end);
    LeasedRecord {
        lease,
        events: vec![delivery_event(&after)],
        attempt: Some(attempt),
        delivery: after,
    }
}

fn delivery_event(delivery: &Delivery) -> DomainEvent {
    DomainEvent {
        response: None,
        id: delivery.id.event_id(delivery.event_version),
        time: delivery.created_at,
        ..event(&delivery.id.to_string(), delivery.event_version)
    }
}

/// A valid `traceparent`.
pub(crate) const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

pub(crate) fn event(subject: &str, version: i64) -> DomainEvent {
    DomainEvent {
        response: None,
        id: new_id(),
        event_type: "webhook.updated".to_owned(),
        subject: subject.to_owned(),
        time: at(version),
        aggregate_version: version,
        context: Context {
            tenant: ours(),
            actor: "anna".to_owned(),
            correlation_id: "correlation".to_owned(),
            causation_id: "command".to_owned(),
            trace: TraceContext::read(Some(TRACE), Some("vendor=1,other=2")),
        },
        data: json!({ "z": 1, "a": "größe" }),
    }
}

pub(crate) fn command_key(key: &str) -> CommandKey {
    CommandKey {
        tenant: ours(),
        action: "webhook.create".to_owned(),
        key: key.to_owned(),
    }
}

pub(crate) fn stored_reply(created: Timestamp) -> StoredReply {
    StoredReply {
        key_id: Some("kü".to_owned()),
        reply: (0..=255).collect(),
        created_at: created,
    }
}

/// How long something that must not happen is waited for.
pub(crate) const A_WHILE: Duration = Duration::from_millis(150);
