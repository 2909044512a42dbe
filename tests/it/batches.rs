//! Webhooks that take several events in one request: one signature, one outcome, whatever fails or dies.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::support::{
    PATIENCE,
    erp::{Erp, is_signed},
    eventually,
    nats::NatsServer,
    postgres::Postgres,
    receiver::{Answer, Received, Receiver},
    site::{Site, on_both},
    worker::{Environment, Worker},
};

on_both!(
    events_go_out_together_under_one_signature,
    a_lone_event_waits_for_others_and_no_longer,
    a_body_is_no_larger_than_it_may_be,
    messages_as_published_go_out_as_lines_and_what_is_none_ends_alone,
    a_transform_that_fails_ends_its_own_delivery_alone,
    a_batch_that_fails_comes_again_as_it_was,
    a_batch_that_is_too_large_for_its_receiver_comes_in_halves,
    a_webhook_that_is_gone_keeps_its_batch_until_it_is_activated,
    what_waits_still_goes_out_together_when_the_webhook_no_longer_asks_for_that,
    a_retried_delivery_goes_with_the_next_batch,
    an_open_breaker_is_probed_with_one_batch,
    triggers_and_tests_look_like_batches,
);

const TYPE: &str = "application/cloudevents-batch+json";

async fn publish(erp: &Erp, numbers: std::ops::Range<usize>) {
    let bodies = numbers.map(|n| order(n, &json!({ "orderId": n })));
    erp.publish_all("sales.order.created", bodies).await;
}

fn order(number: usize, data: &Value) -> String {
    json!({
        "eventType": "sales.order.created", "eventId": format!("e-{number}"), "payload": data,
    })
    .to_string()
}

fn batch(rule: &Value, more: &Value) -> Value {
    let mut config = json!({ "batch": rule });
    for (name, value) in more.as_object().expect("an object") {
        config[name] = value.clone();
    }
    config
}

/// The ids of the events of a request.
fn ids(request: &Received) -> Vec<String> {
    let body = request.json();
    let events = body.as_array().expect("a list");
    let id = |event: &Value| event["id"].as_str().expect("a text").to_owned();
    events.iter().map(id).collect()
}

fn all_ids(requests: &[Received]) -> BTreeSet<String> {
    requests.iter().flat_map(ids).collect()
}

fn expected(numbers: std::ops::Range<usize>) -> BTreeSet<String> {
    numbers.map(|n| format!("e-{n}")).collect()
}

async fn wait_none_pending(erp: &Erp, webhook: &str) {
    eventually(PATIENCE, async || {
        let pending = json!({ "webhookId": webhook, "status": "pending" });
        let pending = erp.ask("delivery.list", pending).await;
        pending["items"].as_array()?.is_empty().then_some(())
    })
    .await;
}

async fn events_go_out_together_under_one_signature(site: Site) {
    let Site { erp, receiver, .. } = site;
    let rule = json!({ "maxEvents": 100, "maxWait": "5s" });
    let url = receiver.url("/orders");
    let (webhook, secret) = erp
        .webhook(&url, &["sales.>"], batch(&rule, &json!({})))
        .await;

    publish(&erp, 0..250).await;

    let requests = receiver
        .wait_until(PATIENCE, |all| all_ids(all).len() == 250)
        .await;
    let sizes: Vec<usize> = requests.iter().map(|one| ids(one).len()).collect();
    assert_eq!(sizes, [100, 100, 50]);
    let batches: BTreeSet<&str> = requests
        .iter()
        .map(|one| one.header("webhook-id"))
        .collect();
    assert_eq!(batches.len(), 3);
    for request in &requests {
        assert_eq!(request.header("content-type"), TYPE);
        assert!(is_signed(request, &secret));
        for event in request.json().as_array().expect("a list") {
            assert_eq!(event["specversion"], "1.0");
            assert_eq!(event["type"], "sales.order.created");
            let id = format!("e-{}", event["data"]["orderId"]);
            assert_eq!(event["id"], id.as_str());
        }
    }
    wait_none_pending(&erp, &webhook).await;
    let told = eventually(PATIENCE, async || {
        let told = erp.events().await;
        let told: Vec<Value> = told
            .into_iter()
            .filter(|event| event["type"] == "webhook.triggered")
            .collect();
        (told.len() >= 250).then_some(told)
    })
    .await;
    assert_eq!(told.len(), 250, "each is told once");
    let delivery = erp
        .wait_delivery(&webhook, json!({ "eventId": "e-7" }))
        .await;
    assert_eq!(delivery["status"], "delivered");
    let request = requests
        .iter()
        .find(|one| ids(one).contains(&"e-7".to_owned()));
    let request = request.expect("it was sent");
    assert_eq!(delivery["batchId"], request.header("webhook-id"));
    assert_eq!(delivery["attempts"][0]["statusCode"], 200);
}

async fn a_lone_event_waits_for_others_and_no_longer(site: Site) {
    let Site { erp, receiver, .. } = site;
    let rule = json!({ "maxWait": "1500ms" });
    let url = receiver.url("/orders");
    let (webhook, _) = erp
        .webhook(&url, &["sales.>"], batch(&rule, &json!({})))
        .await;
    let published = Instant::now();

    publish(&erp, 0..1).await;

    let waiting = erp
        .wait_delivery(&webhook, json!({ "status": "pending" }))
        .await;
    assert_eq!(waiting["error"], "waiting to be sent together with others");
    let requests = receiver.wait_for(1, PATIENCE).await;
    let waited = requests[0].at - published;
    assert!(waited >= Duration::from_millis(1_500), "{waited:?}");
    assert_eq!(ids(&requests[0]), ["e-0"]);
}

async fn a_body_is_no_larger_than_it_may_be(site: Site) {
    let Site { erp, receiver, .. } = site;
    let rule = json!({ "maxBytes": 2_048, "maxWait": "1s" });
    let url = receiver.url("/orders");
    erp.webhook(&url, &["sales.>"], batch(&rule, &json!({})))
        .await;
    let sizes = [100, 200, 3_000, 400, 100, 50, 700, 700, 300, 10];
    let bodies = (0..)
        .zip(sizes)
        .map(|(n, size)| order(n, &json!("x".repeat(size))));

    erp.publish_all("sales.order.created", bodies).await;

    let requests = receiver
        .wait_until(PATIENCE, |all| all_ids(all).len() == sizes.len())
        .await;
    let total: usize = requests.iter().map(|one| ids(one).len()).sum();
    assert_eq!(total, sizes.len(), "each once");
    for request in &requests {
        let ids = ids(request);
        assert!(request.body.len() <= 2_048 || ids == ["e-2"], "{ids:?}");
    }
    assert!(requests.len() < sizes.len(), "some go together");
}

async fn messages_as_published_go_out_as_lines_and_what_is_none_ends_alone(site: Site) {
    let Site { erp, receiver, .. } = site;
    let rule = json!({ "maxEvents": 3, "maxWait": "2s" });
    let url = receiver.url("/orders");
    let config = batch(&rule, &json!({ "format": "raw" }));
    let (webhook, secret) = erp.webhook(&url, &["sales.>"], config).await;
    let pretty = "{\n  \"n\": 18450.00,\r\n  \"text\": \"one\\ntwo\"\n}";
    for body in [pretty, "no JSON at all", "{\"n\": 2}"] {
        erp.publish("sales.order.created", body).await;
    }

    let requests = receiver.wait_for(1, PATIENCE).await;

    assert_eq!(requests[0].header("content-type"), "application/x-ndjson");
    assert!(is_signed(&requests[0], &secret));
    let body = String::from_utf8(requests[0].body.to_vec()).expect("a text");
    assert_eq!(
        body,
        "{\"n\": 18450.00,\"text\": \"one\\ntwo\"}\n{\"n\": 2}\n"
    );
    let refused = erp
        .wait_delivery(&webhook, json!({ "status": "exhausted" }))
        .await;
    let error = refused["error"].as_str().expect("a reason");
    assert!(error.starts_with("batch: "), "{error}");
    assert_eq!(refused["attempts"], json!([]));
    wait_none_pending(&erp, &webhook).await;
    assert_eq!(receiver.requests().len(), 1);
}

async fn a_transform_that_fails_ends_its_own_delivery_alone(site: Site) {
    let Site { erp, receiver, .. } = site;
    let rule = json!({ "maxEvents": 10, "maxWait": "2s" });
    let url = receiver.url("/orders");
    let config = batch(&rule, &json!({ "transform": "{'id': data.orderId}" }));
    let (webhook, _) = erp.webhook(&url, &["sales.>"], config).await;
    let bodies = (0..10).map(|n| match n {
        4 => order(n, &json!({})),
        _ => order(n, &json!({ "orderId": n })),
    });

    erp.publish_all("sales.order.created", bodies).await;

    let requests = receiver
        .wait_until(PATIENCE, |all| all_ids(all).len() == 9)
        .await;
    assert_eq!(requests.len(), 1);
    for one in requests[0].json().as_array().expect("a batch") {
        assert_eq!(one["id"], format!("e-{}", one["data"]["id"]));
    }
    let refused = erp
        .wait_delivery(&webhook, json!({ "status": "exhausted" }))
        .await;
    assert_eq!(refused["eventId"], "e-4");
    let error = refused["error"].as_str().expect("a reason");
    assert!(error.starts_with("transform: "), "{error}");
    erp.wait_event("webhook.exhausted", |event| {
        event["subject"] == refused["id"]
    })
    .await;
    wait_none_pending(&erp, &webhook).await;
}

async fn a_batch_that_fails_comes_again_as_it_was(site: Site) {
    let Site { erp, receiver, .. } = site;
    receiver.answer_in_turn("/orders", vec![Answer::status(500), Answer::status(200)]);
    let rule = json!({ "maxEvents": 5, "maxWait": "1s" });
    let url = receiver.url("/orders");
    let config = batch(
        &rule,
        &json!({ "retryPolicy": { "schedule": ["1s", "1s"] } }),
    );
    let (webhook, secret) = erp.webhook(&url, &["sales.>"], config).await;
    publish(&erp, 0..5).await;
    receiver.wait_for(1, PATIENCE).await;
    // Is not taken into it.
    publish(&erp, 5..6).await;

    let requests = receiver
        .wait_until(PATIENCE, |all| all.len() == 3 && all_ids(all).len() == 6)
        .await;

    let again = |one: &&Received| ids(one).len() == 5;
    let both: Vec<&Received> = requests.iter().filter(again).collect();
    assert_eq!(both.len(), 2);
    assert_eq!(both[0].header("webhook-id"), both[1].header("webhook-id"));
    assert_eq!(both[0].body, both[1].body);
    assert!(is_signed(both[1], &secret));
    wait_none_pending(&erp, &webhook).await;
    let delivery = erp
        .wait_delivery(&webhook, json!({ "eventId": "e-3" }))
        .await;
    let attempts = delivery["attempts"].as_array().expect("a list");
    let codes: Vec<&Value> = attempts.iter().map(|one| &one["statusCode"]).collect();
    assert_eq!(codes, [&json!(500), &json!(200)]);
    let failed = erp
        .wait_event("webhook.failed", |event| event["subject"] == delivery["id"])
        .await;
    assert_eq!(failed["data"]["error"], "HTTP 500");
}

async fn a_batch_that_is_too_large_for_its_receiver_comes_in_halves(site: Site) {
    let Site { erp, receiver, .. } = site;
    receiver.answer_with("/orders", |request, _| {
        let too_large = ids(request).len() > 2;
        Answer::status(if too_large { 413 } else { 200 })
    });
    let rule = json!({ "maxEvents": 7, "maxWait": "2s" });
    let url = receiver.url("/orders");
    // Halves cost no retry.
    let config = batch(&rule, &json!({ "retryPolicy": { "maxRetries": 0 } }));
    let (webhook, _) = erp.webhook(&url, &["sales.>"], config).await;

    publish(&erp, 0..7).await;

    let delivered = |all: &[Received]| {
        let small = all.iter().filter(|one| ids(one).len() <= 2);
        small.flat_map(ids).collect::<BTreeSet<_>>() == expected(0..7)
    };
    let requests = receiver.wait_until(PATIENCE, delivered).await;
    let mut sizes: Vec<usize> = requests.iter().map(|one| ids(one).len()).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [1, 2, 2, 2, 3, 4, 7]);
    let batches: BTreeSet<&str> = requests
        .iter()
        .map(|one| one.header("webhook-id"))
        .collect();
    assert_eq!(batches.len(), 7, "each half is a batch of its own");
    wait_none_pending(&erp, &webhook).await;
    let delivery = erp
        .wait_delivery(&webhook, json!({ "eventId": "e-0" }))
        .await;
    assert_eq!(delivery["status"], "delivered");
    assert_eq!(delivery["attemptCount"], 3);
}

async fn a_webhook_that_is_gone_keeps_its_batch_until_it_is_activated(site: Site) {
    let Site { erp, receiver, .. } = site;
    receiver.answer_in_turn("/orders", vec![Answer::status(410), Answer::status(200)]);
    let rule = json!({ "maxEvents": 3, "maxWait": "1s" });
    let url = receiver.url("/orders");
    let (webhook, _) = erp
        .webhook(&url, &["sales.>"], batch(&rule, &json!({})))
        .await;
    publish(&erp, 0..3).await;
    erp.wait_event("webhook.disabled", |event| {
        event["subject"] == webhook.as_str()
    })
    .await;
    publish(&erp, 3..6).await;
    erp.wait_all_settled(PATIENCE).await;
    assert_eq!(receiver.requests().len(), 1);

    erp.ask("webhook.activate", json!({ "id": webhook })).await;

    let requests = receiver
        .wait_until(PATIENCE, |all| {
            all.len() == 3 && all_ids(all) == expected(0..6)
        })
        .await;
    let again = requests[1..]
        .iter()
        .find(|one| one.body == requests[0].body);
    let again = again.expect("the same again");
    assert_eq!(again.header("webhook-id"), requests[0].header("webhook-id"));
}

async fn what_waits_still_goes_out_together_when_the_webhook_no_longer_asks_for_that(site: Site) {
    let Site { erp, receiver, .. } = site;
    let rule = json!({ "maxWait": "3s" });
    let url = receiver.url("/orders");
    let (webhook, _) = erp
        .webhook(&url, &["sales.>"], batch(&rule, &json!({})))
        .await;
    publish(&erp, 0..3).await;
    erp.wait_all_settled(PATIENCE).await;

    let config = json!({ "url": url });
    erp.ask("webhook.update", json!({ "id": webhook, "config": config }))
        .await;
    publish(&erp, 3..4).await;

    let requests = receiver.wait_for(2, PATIENCE).await;
    assert_eq!(
        requests[0].json()["data"]["orderId"],
        3,
        "alone and at once"
    );
    assert_eq!(requests[1].header("content-type"), TYPE);
    assert_eq!(ids(&requests[1]).len(), 3);
    wait_none_pending(&erp, &webhook).await;
}

async fn a_retried_delivery_goes_with_the_next_batch(site: Site) {
    let Site { erp, receiver, .. } = site;
    receiver.answer_in_turn("/orders", vec![Answer::status(500), Answer::status(200)]);
    let rule = json!({ "maxEvents": 3, "maxWait": "5m" });
    let url = receiver.url("/orders");
    let config = batch(&rule, &json!({ "retryPolicy": { "maxRetries": 0 } }));
    let (webhook, _) = erp.webhook(&url, &["sales.>"], config).await;
    publish(&erp, 0..3).await;
    let exhausted = erp
        .wait_delivery(&webhook, json!({ "status": "exhausted", "eventId": "e-1" }))
        .await;
    publish(&erp, 3..4).await;
    erp.wait_delivery(&webhook, json!({ "status": "pending" }))
        .await;

    let id = json!({ "id": exhausted["id"] });
    erp.ask("delivery.retry", id.clone()).await;

    let requests = receiver.wait_for(2, PATIENCE).await;
    let mut together = ids(&requests[1]);
    together.sort();
    assert_eq!(together, ["e-1", "e-3"]);
    let retried = eventually(PATIENCE, async || {
        let retried = erp.ask("delivery.get", id.clone()).await;
        (retried["status"] == "delivered").then_some(retried)
    })
    .await;
    assert_eq!(retried["batchId"], requests[1].header("webhook-id"));
    assert_ne!(retried["batchId"], exhausted["batchId"]);
}

async fn an_open_breaker_is_probed_with_one_batch(site: Site) {
    let Site { erp, receiver, .. } = site;
    receiver.answer("/orders", Answer::status(500));
    let waits: Vec<&str> = std::iter::repeat_n("100ms", 30).collect();
    let rule = json!({ "maxEvents": 2, "maxWait": "100ms" });
    let url = receiver.url("/orders");
    let config = batch(&rule, &json!({ "retryPolicy": { "schedule": waits } }));
    let (webhook, _) = erp.webhook(&url, &["sales.>"], config).await;
    publish(&erp, 0..12).await;
    erp.wait_event("webhook.breaker_opened", |event| {
        event["subject"] == webhook.as_str()
    })
    .await;

    receiver.answer("/orders", Answer::status(200));

    erp.wait_event("webhook.breaker_closed", |event| {
        event["subject"] == webhook.as_str()
    })
    .await;
    wait_none_pending(&erp, &webhook).await;
    assert_eq!(all_ids(&receiver.requests()), expected(0..12));
}

async fn triggers_and_tests_look_like_batches(site: Site) {
    let Site { erp, receiver, .. } = site;
    let rule = json!({ "maxWait": "5m" });
    let url = receiver.url("/orders");
    let (webhook, secret) = erp
        .webhook(&url, &["sales.>"], batch(&rule, &json!({})))
        .await;

    let tested = erp.ask("webhook.test", json!({ "id": webhook })).await;
    assert_eq!(tested["statusCode"], 200);
    let trigger = json!({ "id": webhook, "payload": { "n": 1.50 } });
    erp.ask("webhook.trigger", trigger).await;

    let requests = receiver.wait_for(2, PATIENCE).await;
    for (request, kind) in requests.iter().zip(["webhook.test", "webhook.trigger"]) {
        assert_eq!(request.header("content-type"), TYPE);
        assert!(is_signed(request, &secret));
        assert_eq!(request.json()[0]["type"], kind);
        assert_eq!(ids(request).len(), 1);
    }
}

#[tokio::test]
async fn batches_outlive_workers_that_are_killed() {
    let (server, database) = (NatsServer::start().await, Postgres::database().await);
    let environment = Environment::new(&server.url(), &database.url()).with("ERP_ACK_WAIT", "5s");
    let mut workers = Vec::new();
    for _ in 0..3 {
        let mut worker = Worker::start(&environment);
        worker.wait_ready().await;
        workers.push(worker);
    }
    let (erp, receiver) = (Erp::connect(&server.url()).await, Receiver::start());
    receiver.answer_with("/orders", |_, before| {
        let status = if before % 7 == 3 { 500 } else { 200 };
        Answer::status(status).after(Duration::from_millis(150))
    });
    let rule = json!({ "maxEvents": 20, "maxWait": "300ms" });
    let config = batch(
        &rule,
        &json!({ "retryPolicy": { "maxRetries": 10, "backoffMs": 100 } }),
    );
    let (webhook, _) = erp
        .webhook(&receiver.url("/orders"), &["sales.>"], config)
        .await;

    publish(&erp, 0..600).await;
    for killed in [8, 20] {
        receiver.wait_for(killed, PATIENCE).await;
        workers.remove(0).kill9();
    }

    receiver
        .wait_until(Duration::from_mins(2), |all| all_ids(all).len() == 600)
        .await;
    eventually(Duration::from_mins(2), async || {
        let pending = json!({ "webhookId": webhook, "status": "pending" });
        let pending = erp.ask("delivery.list", pending).await;
        pending["items"].as_array()?.is_empty().then_some(())
    })
    .await;
    let mut bodies: BTreeMap<String, BTreeSet<Vec<u8>>> = BTreeMap::new();
    for request in receiver.requests() {
        let id = request.header("webhook-id").to_owned();
        bodies.entry(id).or_default().insert(request.body.to_vec());
    }
    assert!(bodies.values().all(|bodies| bodies.len() == 1), "as it was");
}
