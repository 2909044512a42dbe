//! What is taken from the source stream, and that nothing of it is taken twice or lost.

use std::time::Duration;

use serde_json::json;

use crate::support::{
    PATIENCE,
    erp::{Erp, order},
    nats::NatsServer,
    postgres::Postgres,
    receiver::{Answer, Received, Receiver},
    site::{Site, on_both},
    worker::{Environment, Worker},
};

on_both!(
    every_envelope_of_the_erp_arrives,
    what_is_no_event_is_a_dead_letter,
    the_same_event_in_two_messages_is_delivered_once,
    a_webhook_gets_the_very_next_event,
    a_worker_ends_in_order_under_load,
);

/// What the ERP really sends: the fixture, its type and its tenant.
const ENVELOPES: [(&str, &str, &str); 8] = [
    (
        "sales.order.created",
        "sales.order.created",
        "genossenschaft-nord",
    ),
    (
        "inventory.goods.received",
        "inventory.goods.received",
        "genossenschaft-nord",
    ),
    (
        "fibu.booking.created",
        "fibu.booking.created",
        "genossenschaft-nord",
    ),
    (
        "document.created",
        "document.created",
        "genossenschaft-nord",
    ),
    (
        "cloudevent.binary",
        "contract.created",
        "genossenschaft-nord",
    ),
    (
        "cloudevent.structured",
        "quality.batch.rejected",
        "genossenschaft-nord",
    ),
    (
        "logistics.weight.measured",
        "logistics.weight.measured",
        "genossenschaft-nord",
    ),
    (
        "purchase.order.delivered",
        "purchase.order.delivered",
        "genossenschaft-nord",
    ),
];

async fn every_envelope_of_the_erp_arrives(site: Site) {
    let Site { erp, receiver, .. } = site;
    let tenant = [("X-Tenant-Id", "genossenschaft-nord")];
    let integration = json!({ "name": "i", "type": "webhook", "config": {} });
    let integration = erp
        .request("integration.create", &tenant, &integration)
        .await;
    let config = json!({ "url": receiver.url("/all"), "format": "cloudevents" });
    let webhook = json!({
        "name": "w", "integrationId": integration["data"]["id"], "events": ["*"], "config": config,
    });
    let created = erp.request("webhook.create", &tenant, &webhook).await;
    assert_eq!(created["success"], true, "{created}");
    for (fixture, _, _) in ENVELOPES {
        erp.fixture(fixture).await;
    }

    let requests = receiver.wait_for(ENVELOPES.len(), PATIENCE).await;

    for (fixture, kind, tenant) in ENVELOPES {
        let found = requests.iter().find(|one| one.json()["type"] == kind);
        let body = found
            .unwrap_or_else(|| panic!("{fixture} did not arrive"))
            .json();
        assert_eq!(body["tenantid"], tenant, "{fixture}");
        assert!(body["data"].is_object(), "{fixture}: {body}");
    }
    let booking = requests
        .iter()
        .find(|one| one.json()["type"] == "fibu.booking.created");
    assert_eq!(
        booking.expect("it arrived").json()["data"]["amount"],
        "18450.00"
    );
}

async fn what_is_no_event_is_a_dead_letter(site: Site) {
    let Site {
        server,
        erp,
        receiver,
        ..
    } = site;
    let (webhook, _) = erp.webhook(&receiver.url("/a"), &["*"], json!({})).await;
    erp.publish_with("sales.empty", &[("X-Kept", "yes")], "")
        .await;
    erp.order_created("e-1").await;

    let told = erp.wait_event("deadletter.added", |_| true).await;

    assert_eq!(told["data"]["originSubject"], "sales.empty");
    erp.wait_delivery(&webhook, json!({ "eventId": "e-1", "status": "delivered" }))
        .await;
    let stream = erp
        .jetstream
        .get_stream("INTEGRATION_DEAD_LETTERS")
        .await
        .expect("it is there");
    let letter = stream.get_raw_message(1).await.expect("the letter");
    assert_eq!(letter.subject.as_str(), "integration.dead_letters.events");
    let header = |name: &str| {
        letter
            .headers
            .get(name)
            .map(|value| value.as_str().to_owned())
    };
    assert!(
        header("Integration-Reason")
            .expect("a reason")
            .starts_with("empty: ")
    );
    assert_eq!(
        header("Integration-Origin-Subject").as_deref(),
        Some("sales.empty")
    );
    assert_eq!(
        header("Integration-Origin-Stream").as_deref(),
        Some("ERP_EVENTS")
    );
    assert_eq!(header("Integration-Tenant").as_deref(), Some("default"));
    assert_eq!(header("X-Kept").as_deref(), Some("yes"));
    assert_eq!(receiver.requests().len(), 1);
    drop(server);
}

async fn the_same_event_in_two_messages_is_delivered_once(site: Site) {
    let Site { erp, receiver, .. } = site;
    let (webhook, _) = erp.webhook(&receiver.url("/a"), &["*"], json!({})).await;
    for _ in 0..20 {
        erp.order_created("same").await;
    }
    erp.order_created("other").await;

    erp.wait_delivery(
        &webhook,
        json!({ "eventId": "other", "status": "delivered" }),
    )
    .await;
    erp.wait_all_settled(PATIENCE).await;

    assert_eq!(receiver.requests().len(), 2);
}

async fn a_webhook_gets_the_very_next_event(site: Site) {
    let Site { erp, receiver, .. } = site;
    for round in 0..20 {
        let path = format!("/round-{round}");
        erp.webhook(&receiver.url(&path), &["sales.order.created"], json!({}))
            .await;
        erp.order_created(&format!("e-{round}")).await;
        let arrived = |all: &[Received]| all.iter().any(|one| one.path == path);
        receiver.wait_until(PATIENCE, arrived).await;
    }
    // Each webhook has got every event from its creation on, and no earlier one.
    let expected: usize = (1..=20).sum();
    receiver.wait_for(expected, PATIENCE).await;
    erp.wait_all_settled(PATIENCE).await;
    assert_eq!(receiver.requests().len(), expected);
}

async fn a_worker_ends_in_order_under_load(site: Site) {
    let Site {
        server,
        erp,
        receiver,
        worker,
        database,
        ..
    } = site;
    receiver.answer("/a", Answer::status(200).after(Duration::from_millis(5)));
    let (webhook, _) = erp.webhook(&receiver.url("/a"), &["*"], json!({})).await;
    erp.publish_all(
        "sales.order.created",
        (0..2000).map(|n| order(&format!("e-{n}"))),
    )
    .await;
    receiver.wait_for(100, PATIENCE).await;

    assert_eq!(worker.terminate().await, 0);

    let mut worker = Worker::start(&Environment::new(&server.url(), &database.url()));
    worker.wait_ready().await;
    receiver.wait_for(2000, PATIENCE).await;
    erp.wait_all_settled(PATIENCE).await;
    let mut ids: Vec<_> = receiver
        .requests()
        .iter()
        .map(|one| one.header("webhook-id").to_owned())
        .collect();
    let requests = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 2000, "{requests} requests");
    assert_eq!(requests, 2000, "an orderly end repeats nothing");
    erp.wait_delivery(&webhook, json!({ "status": "delivered" }))
        .await;
}

#[tokio::test]
async fn a_backlog_flows_through_what_may_be_in_hand() {
    let (server, database) = (NatsServer::start().await, Postgres::database().await);
    let environment =
        Environment::new(&server.url(), &database.url()).with("MAX_EVENTS_IN_HAND", "10");
    let mut worker = Worker::start(&environment);
    worker.wait_ready().await;
    let (erp, receiver) = (Erp::connect(&server.url()).await, Receiver::start());
    erp.webhook(&receiver.url("/a"), &["*"], json!({})).await;

    erp.publish_all(
        "sales.order.created",
        (0..500).map(|n| order(&format!("e-{n}"))),
    )
    .await;

    receiver.wait_for(500, PATIENCE).await;
    erp.wait_all_settled(PATIENCE).await;
}
