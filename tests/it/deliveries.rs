//! Events in, signed requests out, domain events back: on both databases.

use serde_json::{Value, json};

use crate::support::{
    PATIENCE,
    erp::{is_signed, order},
    receiver::Answer,
    site::{Site, on_both},
};

on_both!(
    an_event_becomes_a_signed_request_a_record_and_domain_events,
    a_failing_endpoint_is_retried_and_recovers,
    an_endpoint_that_never_recovers_is_exhausted_and_can_be_retried,
    a_gone_endpoint_is_disabled_and_its_events_wait_for_activation,
    an_endpoint_that_hangs_holds_nobody_else_up,
);

fn versions(events: &[Value], subject: &str) -> Vec<(String, i64)> {
    events
        .iter()
        .filter(|event| event["subject"] == subject)
        .map(|event| {
            let kind = event["type"].as_str().expect("a type").to_owned();
            (kind, event["aggregateversion"].as_i64().expect("a version"))
        })
        .collect()
}

async fn an_event_becomes_a_signed_request_a_record_and_domain_events(site: Site) {
    let Site {
        erp,
        receiver,
        mut worker,
        ..
    } = site;
    let (webhook, secret) = erp
        .webhook(
            &receiver.url("/orders"),
            &["sales.order.created"],
            json!({}),
        )
        .await;
    erp.order_created("e-1").await;

    let request = receiver.wait_for(1, PATIENCE).await.remove(0);

    assert!(is_signed(&request, &secret));
    assert_eq!(request.method.as_str(), "POST");
    let body = std::str::from_utf8(&request.body).expect("text");
    assert!(body.contains("18450.00"), "numbers stay as written: {body}");
    assert_eq!(request.json()["type"], "sales.order.created");
    assert_eq!(request.json()["timestamp"], "2026-11-02T08:14:09.120Z");
    let delivery = erp
        .wait_delivery(&webhook, json!({ "status": "delivered" }))
        .await;
    assert_eq!(delivery["id"], request.header("webhook-id"));
    assert_eq!(delivery["attempts"].as_array().map(Vec::len), Some(1));
    assert_eq!(delivery["attempts"][0]["statusCode"], 200);
    let told = erp
        .wait_event("webhook.triggered", |event| {
            event["subject"] == delivery["id"]
        })
        .await;
    assert_eq!(told["data"]["eventId"], "e-1");
    assert_eq!(told["aggregateversion"], 1);
    erp.wait_event("webhook.activated", |event| {
        event["subject"] == webhook.as_str()
    })
    .await;
    let events = erp.events().await;
    assert_eq!(
        versions(&events, &webhook),
        [
            ("webhook.created".to_owned(), 1),
            ("webhook.activated".to_owned(), 2)
        ]
    );
    let (_, metrics) = worker.ops("/metrics").await;
    assert!(
        metrics.contains("integration_delivery_attempts_total"),
        "{metrics}"
    );
    assert_eq!(worker.terminate().await, 0);
}

async fn a_failing_endpoint_is_retried_and_recovers(site: Site) {
    let Site { erp, receiver, .. } = site;
    receiver.answer_in_turn(
        "/flaky",
        vec![
            Answer::status(500).body("oh"),
            Answer::status(503),
            Answer::status(200),
        ],
    );
    let policy = json!({ "retryPolicy": { "maxRetries": 5, "backoffMs": 100 } });
    let (webhook, secret) = erp
        .webhook(&receiver.url("/flaky"), &["sales.>"], policy)
        .await;
    erp.order_created("e-1").await;

    let delivery = erp
        .wait_delivery(&webhook, json!({ "status": "delivered" }))
        .await;

    let requests = receiver.requests_to("/flaky");
    assert_eq!(requests.len(), 3);
    assert!(requests.iter().all(|one| is_signed(one, &secret)));
    assert!(
        requests
            .iter()
            .all(|one| one.header("webhook-id") == delivery["id"])
    );
    let attempts = delivery["attempts"].as_array().expect("attempts");
    let errors: Vec<_> = attempts.iter().map(|one| one["error"].clone()).collect();
    assert_eq!(errors, [json!("HTTP 500"), json!("HTTP 503"), Value::Null]);
    assert_eq!(attempts[0]["response"], "oh");
    let subject = delivery["id"].as_str().expect("an id");
    erp.wait_event("webhook.triggered", |event| event["subject"] == subject)
        .await;
    let told = versions(&erp.events().await, subject);
    let expected = [
        ("webhook.failed", 1),
        ("webhook.failed", 2),
        ("webhook.triggered", 3),
    ];
    assert_eq!(
        told,
        expected.map(|(kind, version)| (kind.to_owned(), version))
    );
}

async fn an_endpoint_that_never_recovers_is_exhausted_and_can_be_retried(site: Site) {
    let Site { erp, receiver, .. } = site;
    receiver.answer("/down", Answer::status(500));
    let policy = json!({ "retryPolicy": { "schedule": ["100ms"] } });
    let (webhook, _) = erp.webhook(&receiver.url("/down"), &["*"], policy).await;
    erp.order_created("e-1").await;
    let delivery = erp
        .wait_delivery(&webhook, json!({ "status": "exhausted" }))
        .await;
    assert_eq!(delivery["attemptCount"], 2);
    let subject = delivery["id"].as_str().expect("an id");
    erp.wait_event("webhook.exhausted", |event| event["subject"] == subject)
        .await;
    receiver.answer("/down", Answer::status(204));

    erp.ask("delivery.retry", json!({ "id": subject })).await;

    let delivery = erp
        .wait_delivery(&webhook, json!({ "status": "delivered" }))
        .await;
    assert_eq!(delivery["attemptCount"], 3);
    erp.wait_event("webhook.triggered", |event| event["subject"] == subject)
        .await;
    let told = versions(&erp.events().await, subject);
    let kinds: Vec<_> = told
        .iter()
        .map(|(kind, version)| (kind.as_str(), *version))
        .collect();
    let expected = [
        ("webhook.failed", 1),
        ("webhook.failed", 2),
        ("webhook.exhausted", 3),
        ("webhook.triggered", 4),
    ];
    assert_eq!(kinds, expected);
}

async fn a_gone_endpoint_is_disabled_and_its_events_wait_for_activation(site: Site) {
    let Site { erp, receiver, .. } = site;
    receiver.answer("/gone", Answer::status(410));
    let (webhook, _) = erp.webhook(&receiver.url("/gone"), &[">"], json!({})).await;
    erp.order_created("e-1").await;
    let disabled = erp
        .wait_event("webhook.disabled", |event| {
            event["subject"] == webhook.as_str()
        })
        .await;
    assert_eq!(disabled["data"]["status"], "error");
    for id in ["e-2", "e-3"] {
        erp.order_created(id).await;
        erp.wait_delivery(&webhook, json!({ "eventId": id, "status": "pending" }))
            .await;
    }
    assert_eq!(
        receiver.requests_to("/gone").len(),
        1,
        "a disabled webhook gets no request"
    );
    assert_eq!(
        erp.ask("webhook.get", json!({ "id": webhook })).await["status"],
        "error"
    );
    receiver.answer("/gone", Answer::status(200));

    erp.ask("webhook.activate", json!({ "id": webhook })).await;

    for id in ["e-1", "e-2", "e-3"] {
        erp.wait_delivery(&webhook, json!({ "eventId": id, "status": "delivered" }))
            .await;
    }
    assert_eq!(receiver.requests_to("/gone").len(), 4);
}

async fn an_endpoint_that_hangs_holds_nobody_else_up(site: Site) {
    let Site { erp, receiver, .. } = site;
    receiver.answer("/hang", Answer::hang());
    let hanging = json!({ "timeout": 1000, "retryPolicy": { "maxRetries": 0, "backoffMs": 100 } });
    let (hanging, _) = erp.webhook(&receiver.url("/hang"), &["*"], hanging).await;
    let (quick, _) = erp
        .webhook(&receiver.url("/quick"), &["*"], json!({}))
        .await;
    erp.publish_all(
        "sales.order.created",
        (0..200).map(|n| order(&format!("e-{n}"))),
    )
    .await;

    receiver
        .wait_until(PATIENCE, |all| {
            all.iter().filter(|one| one.path == "/quick").count() == 200
        })
        .await;

    let delivery = erp
        .wait_delivery(&hanging, json!({ "status": "exhausted" }))
        .await;
    assert_eq!(delivery["attempts"][0]["error"], "timeout after 1000 ms");
    erp.wait_delivery(&quick, json!({ "status": "delivered" }))
        .await;
}
