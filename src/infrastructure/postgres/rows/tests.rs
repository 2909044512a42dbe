use chrono::DateTime;
use uuid::Uuid;

use crate::domain::{
    entities::{Attempt, Delivery, Integration, Webhook},
    interfaces::StoreError,
    values::{DeliveryId, Timestamp},
};

use super::{
    delivery::{AttemptRow, DeliveryRow, EventRow, FirstAttemptRow},
    entity::{ConfigRow, MetaRow},
    integration::IntegrationRow,
    webhook::WebhookRow,
};

const TIME: Timestamp = DateTime::UNIX_EPOCH;
const ID: Uuid = Uuid::from_u128(7);

fn meta() -> MetaRow {
    MetaRow {
        tenant: "t".to_owned(),
        name: "n".to_owned(),
        description: None,
        tags: Vec::new(),
        version: 1,
        created_at: TIME,
        updated_at: TIME,
        created_by: "a".to_owned(),
        updated_by: "a".to_owned(),
    }
}

fn config() -> ConfigRow {
    ConfigRow {
        config: r#"{"url":"http://x","b":1.50,"a":2}"#.to_owned(),
        credentials: Some(vec![1]),
        credentials_key_id: Some("k1".to_owned()),
    }
}

fn integration() -> IntegrationRow {
    IntegrationRow {
        id: ID,
        meta: meta(),
        kind: "api".to_owned(),
        status: "error".to_owned(),
        error: Some("down".to_owned()),
        config: config(),
    }
}

fn webhook() -> WebhookRow {
    WebhookRow {
        id: ID,
        integration_id: ID,
        meta: meta(),
        events: vec!["a.b".to_owned()],
        status: "active".to_owned(),
        error: None,
        config: config(),
        secrets_sealed: vec![vec![1], vec![2]],
        secrets_key_ids: vec!["k1".to_owned(), "k0".to_owned()],
        secrets_created_at: vec![TIME, TIME],
        secrets_expires_at: vec![None, Some(TIME)],
    }
}

fn delivery() -> DeliveryRow {
    DeliveryRow {
        id: ID,
        tenant: "t".to_owned(),
        webhook_id: ID,
        event_id: "e".to_owned(),
        event_type: "a.b".to_owned(),
        correlation_id: None,
        source_sequence: Some(1),
        status: "pending".to_owned(),
        attempt_count: 0,
        event_version: 0,
        budget_base: 0,
        next_attempt_at: Some(TIME),
        error: None,
        created_at: TIME,
        completed_at: None,
        lane_key: None,
        lane_turn: None,
        lane_blocks: false,
        batched: false,
        batch_id: None,
    }
}

/// Which table and column the error names; it must name the row.
fn named<T: std::fmt::Debug>(result: Result<T, StoreError>) -> String {
    match result {
        Err(StoreError::BadRow {
            table, column, id, ..
        }) => {
            assert_eq!(id, ID.to_string());
            format!("{table}.{column}")
        }
        other => panic!("no bad row: {other:?}"),
    }
}

#[test]
fn good_rows_are_read_with_their_secrets_in_order() {
    assert!(Integration::try_from(integration()).is_ok());
    assert!(Delivery::try_from(delivery()).is_ok());
    let read = Webhook::try_from(webhook()).unwrap();
    let keys: Vec<_> = read
        .secrets
        .iter()
        .map(|s| s.sealed.key_id.as_str())
        .collect();
    assert_eq!(keys, ["k1", "k0"]);
    assert_eq!(read.secrets.last().unwrap().expires_at, Some(TIME));
    let names: Vec<_> = read.config.shown.keys().collect();
    assert_eq!(names, ["url", "b", "a"]);
}

#[test]
fn a_broken_row_names_its_table_column_and_id() {
    let broken = |change: fn(&mut IntegrationRow)| {
        let mut row = integration();
        change(&mut row);
        named(Integration::try_from(row))
    };
    assert_eq!(broken(|r| r.kind = "x".to_owned()), "integrations.type");
    assert_eq!(broken(|r| r.status = "x".to_owned()), "integrations.status");
    assert_eq!(broken(|r| r.error = None), "integrations.error");
    assert_eq!(broken(|r| r.meta.tenant.clear()), "integrations.tenant");
    assert_eq!(
        broken(|r| r.config.config = "[]".to_owned()),
        "integrations.config"
    );
    assert_eq!(
        broken(|r| r.config.credentials = None),
        "integrations.credentials_key_id"
    );

    let broken = |change: fn(&mut WebhookRow)| {
        let mut row = webhook();
        change(&mut row);
        named(Webhook::try_from(row))
    };
    assert_eq!(broken(|r| r.events.clear()), "webhooks.events");
    assert_eq!(
        broken(|r| r.events.push("a..b".to_owned())),
        "webhooks.events"
    );
    assert_eq!(broken(|r| r.status = "x".to_owned()), "webhooks.status");

    let broken = |change: fn(&mut DeliveryRow)| {
        let mut row = delivery();
        change(&mut row);
        named(Delivery::try_from(row))
    };
    assert_eq!(broken(|r| r.status = "x".to_owned()), "deliveries.status");
    assert_eq!(
        broken(|r| r.next_attempt_at = None),
        "deliveries.next_attempt_at"
    );
}

#[test]
fn a_broken_attempt_or_event_names_its_column() {
    let row = AttemptRow {
        delivery_id: ID,
        number: 2,
        started_at: TIME,
        duration_ms: 1,
        status_code: Some(70_000),
        error: None,
        response: None,
    };
    assert_eq!(named(Attempt::try_from(row)), "attempts.status_code");
    let first = FirstAttemptRow {
        started_at: Some(TIME),
        duration_ms: None,
        status_code: None,
        error: None,
        response: None,
    };
    assert_eq!(
        named(first.read(DeliveryId(ID))),
        "deliveries.first_duration_ms"
    );
    let event = EventRow {
        event_meta: Some("{}".to_owned()),
        event_raw: None,
    };
    assert_eq!(named(event.read(DeliveryId(ID))), "deliveries.event_raw");
}

#[test]
fn an_error_about_a_row_never_quotes_it() {
    let mut row = integration();
    row.config.config = r#""canary""#.to_owned();
    let error = Integration::try_from(row).unwrap_err();
    assert!(!error.to_string().contains("canary"), "{error}");
}
