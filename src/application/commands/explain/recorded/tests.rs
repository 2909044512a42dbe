use chrono::{DateTime, TimeDelta};
use uuid::Uuid;

use super::*;
use crate::domain::{
    entities::{
        Batching, EntityMeta, Integration, IntegrationStatus, IntegrationType, Labels, LanePlace,
        Webhook,
    },
    policies::Breaker,
    values::{EventPattern, IntegrationId, LaneKey, SecretConfig, TenantId, WebhookId},
};

fn now() -> Timestamp {
    DateTime::from_timestamp_millis(1_790_230_470_084).unwrap()
}

fn tenant() -> TenantId {
    TenantId::try_new("nord").unwrap()
}

fn meta() -> EntityMeta {
    let labels = Labels {
        name: "w".to_owned(),
        ..Labels::default()
    };
    EntityMeta::new(tenant(), labels, "me", now())
}

fn config() -> SecretConfig {
    SecretConfig {
        shown: serde_json::Map::new(),
        sealed: None,
    }
}

fn webhook(status: WebhookStatus) -> Webhook {
    Webhook {
        id: WebhookId(Uuid::from_u128(1)),
        integration_id: IntegrationId(Uuid::from_u128(2)),
        meta: meta(),
        events: vec![EventPattern::try_new(">").unwrap()],
        status,
        config: config(),
        secrets: Vec::new(),
    }
}

fn integration(status: IntegrationStatus) -> Integration {
    Integration {
        id: IntegrationId(Uuid::from_u128(2)),
        meta: meta(),
        kind: IntegrationType::Api,
        status,
        config: config(),
    }
}

/// Due in a minute, after one attempt.
fn waiting() -> Delivery {
    Delivery {
        id: DeliveryId(Uuid::from_u128(3)),
        tenant: tenant(),
        webhook_id: WebhookId(Uuid::from_u128(1)),
        event_id: "e-1".to_owned(),
        event_type: "a.b".to_owned(),
        correlation_id: None,
        source_sequence: Some(1),
        status: DeliveryStatus::Pending,
        attempt_count: 1,
        event_version: 1,
        budget_base: 0,
        next_attempt_at: Some(now() + TimeDelta::minutes(1)),
        error: Some("HTTP 500".to_owned()),
        created_at: now(),
        completed_at: None,
        lane: None,
        batch: Batching::Alone,
    }
}

fn told(
    webhook: &Webhook,
    integration: &Integration,
    delivery: &Delivery,
    around: &Around,
) -> String {
    let question = Question {
        tenant: &tenant(),
        event_id: "e-1",
        webhook,
        integration: Some(integration),
    };
    let attempt = Attempt {
        number: delivery.attempt_count,
        started_at: now(),
        duration_ms: 1,
        status_code: Some(204),
        error: None,
        response: None,
    };
    reason(&question, delivery, &[attempt], around, now())
}

fn open() -> EndpointState {
    EndpointState {
        failures: 12,
        breaker: Breaker::Open {
            until: now() + TimeDelta::minutes(2),
            times: 1,
        },
        ..EndpointState::default()
    }
}

/// The reason of a pending delivery has this part.
fn assert_waits(
    webhook: &Webhook,
    integration: &Integration,
    (delivery, state): (&Delivery, EndpointState),
    part: &str,
) {
    let around = Around {
        state,
        ..Around::default()
    };
    let told = told(webhook, integration, delivery, &around);
    assert!(told.starts_with("pending: "), "{told}");
    assert!(told.contains(part), "{told}");
}

#[test]
fn what_a_delivery_waits_for_is_told_with_the_time() {
    let active = webhook(WebhookStatus::Active);
    let runs = integration(IntegrationStatus::Active);
    let due = Delivery {
        next_attempt_at: Some(now()),
        ..waiting()
    };
    let well = EndpointState::default();
    for (delivery, state, part) in [
        (
            waiting(),
            well,
            "until 2026-09-24T06:15:30.084Z, because attempt 1 failed: HTTP 500",
        ),
        (due, well, "it is due"),
        (
            waiting(),
            open(),
            "until 2026-09-24T06:16:30.084Z, because the endpoint's circuit breaker is open after 12",
        ),
    ] {
        assert_waits(&active, &runs, (&delivery, state), part);
    }
}

#[test]
fn what_stops_all_deliveries_of_a_webhook_is_told_first() {
    let active = webhook(WebhookStatus::Active);
    let inactive = webhook(WebhookStatus::Inactive);
    let error = "410".to_owned();
    let disabled = webhook(WebhookStatus::Error { error });
    let runs = integration(IntegrationStatus::Active);
    let stopped = integration(IntegrationStatus::Inactive);
    for (webhook, integration, part) in [
        (
            &active,
            &stopped,
            "until the integration is activated, because its status is inactive",
        ),
        (
            &disabled,
            &stopped,
            "until the webhook is activated, because it is disabled: 410",
        ),
        (
            &inactive,
            &runs,
            "until the webhook is activated, because it is inactive",
        ),
    ] {
        assert_waits(webhook, integration, (&waiting(), open()), part);
    }
}

#[test]
fn what_a_delivery_ended_with_is_told() {
    let active = webhook(WebhookStatus::Active);
    let runs = integration(IntegrationStatus::Active);
    let ended = |status, attempt_count| Delivery {
        status,
        attempt_count,
        next_attempt_at: None,
        completed_at: Some(now()),
        ..waiting()
    };
    for (delivery, expected) in [
        (
            ended(DeliveryStatus::Delivered, 2),
            "delivered at attempt 2 at 2026-09-24T06:14:30.084Z: HTTP 204",
        ),
        (
            ended(DeliveryStatus::Exhausted, 3),
            "exhausted at 2026-09-24T06:14:30.084Z after 3 attempts: HTTP 500",
        ),
        (
            ended(DeliveryStatus::Cancelled, 1),
            "cancelled at 2026-09-24T06:14:30.084Z after 1 attempt",
        ),
    ] {
        let around = Around::default();
        assert_eq!(told(&active, &runs, &delivery, &around), expected);
    }
}

#[test]
fn what_an_ordered_delivery_waits_for_is_what_stands_in_its_way() {
    let active = webhook(WebhookStatus::Active);
    let runs = integration(IntegrationStatus::Active);
    let place = |turn, blocks| {
        let key = LaneKey::new("C-1");
        Some(LanePlace { key, turn, blocks })
    };
    let ours = Delivery {
        attempt_count: 0,
        error: Some(ORDERED.to_owned()),
        next_attempt_at: Some(now()),
        lane: place(7, false),
        ..waiting()
    };
    let failing = Delivery {
        id: DeliveryId(Uuid::from_u128(9)),
        event_id: "e-9".to_owned(),
        lane: place(5, false),
        ..waiting()
    };
    let blocking = Delivery {
        status: DeliveryStatus::Exhausted,
        next_attempt_at: None,
        lane: place(5, true),
        ..failing.clone()
    };
    let front = |front: &Delivery, floor| Around {
        front: Some(front.clone()),
        floor,
        ..Around::default()
    };
    let no_key = "its signing secret cannot be opened".to_owned();
    let unusable = Around {
        unusable: Some(no_key),
        ..front(&ours, Some(9))
    };
    for (around, expected) in [
        (
            front(&failing, None),
            "pending: waits until the earlier deliveries with the ordering key \"C-1\" are done; the \
             first of them is 00000000-0000-0000-0000-000000000009 (event \"e-9\"), which waits until \
             2026-09-24T06:15:30.084Z, because attempt 1 failed: HTTP 500",
        ),
        (
            front(&blocking, None),
            "pending: waits until the earlier deliveries with the ordering key \"C-1\" are done; the \
             first of them is 00000000-0000-0000-0000-000000000009 (event \"e-9\"), which is exhausted \
             (HTTP 500) and blocks those behind it: retry or cancel it, or let the webhook's ordering \
             continue",
        ),
        (
            front(&ours, Some(6)),
            "pending: is the first with the ordering key \"C-1\", and waits until all earlier events of \
             the source stream are taken in",
        ),
        (
            front(&ours, Some(7)),
            "pending: it is due, and goes out when a worker has a slot for it; no attempt was made yet",
        ),
        (
            unusable,
            "pending: waits until the webhook can be used: its signing secret cannot be opened",
        ),
    ] {
        assert_eq!(told(&active, &runs, &ours, &around), expected);
    }
}

#[test]
fn what_was_published_before_the_webhook_was_created_is_not_on_its_way_to_it() {
    let webhook = webhook(WebhookStatus::Active);
    let question = Question {
        tenant: &tenant(),
        event_id: "e-1",
        webhook: &webhook,
        integration: None,
    };
    for (published, expected) in [(-1, false), (0, true), (1, true)] {
        let published = now() + TimeDelta::milliseconds(published);
        let is_to_come = super::super::verdict::is_to_come(&question, published);
        assert_eq!(is_to_come, expected, "{published}");
    }
}
