//! Ordered webhooks: one after the other for each key, whatever fails or dies meanwhile.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::{Value, json};

use crate::support::{
    PATIENCE,
    erp::Erp,
    eventually,
    nats::NatsServer,
    postgres::Postgres,
    receiver::{Answer, Received, Receiver},
    site::{Site, on_both},
    worker::{Environment, Worker},
};

on_both!(
    a_failing_key_waits_alone_and_keeps_its_order,
    a_lane_that_blocks_stops_behind_what_is_exhausted_until_it_is_retried,
    a_blocked_lane_goes_on_when_the_webhook_no_longer_asks_for_that,
    a_lane_that_does_not_block_goes_on_behind_what_is_exhausted,
    an_endpoint_that_hangs_does_not_hold_up_the_order_of_others,
    an_open_breaker_holds_lanes_and_its_probe_lets_them_go_on_in_order,
    a_worker_that_begins_behind_an_open_breaker_makes_its_probe,
    a_key_that_cannot_be_evaluated_ends_the_delivery,
    a_slow_first_attempt_settles_its_event_and_is_recorded_once,
    what_waits_goes_out_after_the_source_stream_was_lost_and_made_anew,
);

/// Events `numbers` of these customers, in turns.
async fn publish(erp: &Erp, customers: &[&str], numbers: std::ops::Range<usize>) {
    let bodies = numbers.map(|n| {
        let customer = customers[n % customers.len()];
        json!({
            "eventType": "sales.order.created", "eventId": format!("e-{n}"),
            "payload": { "customerId": customer, "n": n },
        })
        .to_string()
    });
    erp.publish_all("sales.order.created", bodies).await;
}

fn customer(request: &Received) -> String {
    let customer = &request.json()["data"]["customerId"];
    customer.as_str().expect("a text").to_owned()
}

fn number(request: &Received) -> u64 {
    request.json()["data"]["n"].as_u64().expect("a number")
}

/// The numbers that came for each customer, each where it came first.
fn first_seen(requests: &[Received]) -> BTreeMap<String, Vec<u64>> {
    let mut seen = BTreeSet::new();
    let mut order: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for request in requests {
        if seen.insert(number(request)) {
            order
                .entry(customer(request))
                .or_default()
                .push(number(request));
        }
    }
    order
}

fn ordered(more: &Value) -> Value {
    let mut config = json!({ "ordering": { "key": "data.customerId" } });
    for (name, value) in more.as_object().expect("an object") {
        config[name] = value.clone();
    }
    config
}

async fn a_failing_key_waits_alone_and_keeps_its_order(site: Site) {
    let Site { erp, receiver, .. } = site;
    receiver.answer_with("/orders", |request, before| {
        // B fails again and again until the others are through.
        Answer::status(if customer(request) == "B" && before < 60 {
            500
        } else {
            200
        })
    });
    let config = ordered(&json!({ "retryPolicy": { "maxRetries": 10, "backoffMs": 100 } }));
    let url = receiver.url("/orders");
    let (webhook, _) = erp.webhook(&url, &["sales.>"], config).await;

    publish(&erp, &["A", "B", "C"], 0..90).await;

    let all_through = |all: &[Received]| {
        let seen: BTreeSet<u64> = all.iter().map(number).collect();
        seen.len() == 90
    };
    let requests = receiver.wait_until(PATIENCE * 2, all_through).await;
    for (key, numbers) in first_seen(&requests) {
        assert_eq!(numbers.len(), 30, "{key}");
        assert!(numbers.is_sorted(), "{key}: {numbers:?}");
    }
    let failing: Vec<u64> = requests
        .iter()
        .filter(|request| customer(request) == "B")
        .map(number)
        .collect();
    assert!(failing.is_sorted(), "nothing overtakes: {failing:?}");
    eventually(PATIENCE, async || {
        let pending = json!({ "webhookId": webhook, "status": "pending" });
        let pending = erp.ask("delivery.list", pending).await;
        pending["items"].as_array()?.is_empty().then_some(())
    })
    .await;
}

async fn a_lane_that_blocks_stops_behind_what_is_exhausted_until_it_is_retried(site: Site) {
    let Site { erp, receiver, .. } = site;
    receiver.answer_in_turn("/orders", vec![Answer::status(500), Answer::status(200)]);
    let config = json!({
        "ordering": { "key": "data.customerId", "onExhausted": "block" },
        "retryPolicy": { "maxRetries": 0 },
    });
    let url = receiver.url("/orders");
    let (webhook, _) = erp.webhook(&url, &["sales.>"], config).await;
    publish(&erp, &["A"], 0..3).await;
    let exhausted = erp
        .wait_delivery(&webhook, json!({ "status": "exhausted" }))
        .await;

    // Another key goes through, this one does not.
    publish(&erp, &["other"], 10..11).await;
    receiver
        .wait_until(PATIENCE, |all| all.iter().any(|one| number(one) == 10))
        .await;
    let seen = first_seen(&receiver.requests());
    assert_eq!(seen["A"], [0]);

    let id = json!({ "id": exhausted["id"] });
    erp.ask("delivery.retry", id).await;

    let requests = receiver
        .wait_until(PATIENCE, |all| all.iter().any(|one| number(one) == 2))
        .await;
    assert_eq!(first_seen(&requests)["A"], [0, 1, 2]);
}

async fn a_blocked_lane_goes_on_when_the_webhook_no_longer_asks_for_that(site: Site) {
    let Site { erp, receiver, .. } = site;
    receiver.answer_in_turn("/orders", vec![Answer::status(500), Answer::status(200)]);
    let url = receiver.url("/orders");
    let mut config = json!({
        "ordering": { "key": "'all'", "onExhausted": "block" },
        "retryPolicy": { "maxRetries": 0 },
    });
    let (webhook, _) = erp.webhook(&url, &["sales.>"], config.clone()).await;
    publish(&erp, &["A"], 0..3).await;
    erp.wait_delivery(&webhook, json!({ "status": "exhausted" }))
        .await;
    assert_eq!(receiver.requests().len(), 1);

    config["ordering"]["onExhausted"] = json!("continue");
    config["url"] = json!(url);
    let update = json!({ "id": webhook, "config": config });
    erp.ask("webhook.update", update).await;

    let requests = receiver.wait_for(3, PATIENCE).await;
    assert_eq!(first_seen(&requests)["A"], [0, 1, 2]);
}

async fn a_lane_that_does_not_block_goes_on_behind_what_is_exhausted(site: Site) {
    let Site { erp, receiver, .. } = site;
    receiver.answer_in_turn("/orders", vec![Answer::status(500), Answer::status(200)]);
    let config = ordered(&json!({ "retryPolicy": { "maxRetries": 0 } }));
    let url = receiver.url("/orders");
    let (webhook, _) = erp.webhook(&url, &["sales.>"], config).await;

    publish(&erp, &["A"], 0..3).await;

    let requests = receiver.wait_for(3, PATIENCE).await;
    assert_eq!(first_seen(&requests)["A"], [0, 1, 2]);
    erp.wait_delivery(&webhook, json!({ "status": "exhausted" }))
        .await;
}

async fn an_endpoint_that_hangs_does_not_hold_up_the_order_of_others(site: Site) {
    let Site { erp, receiver, .. } = site;
    receiver.answer("/hangs", Answer::hang());
    // Longer than the test waits.
    let slow = json!({ "timeout": "5m" });
    erp.webhook(&receiver.url("/hangs"), &["sales.>"], slow)
        .await;
    let url = receiver.url("/orders");
    erp.webhook(&url, &["sales.>"], ordered(&json!({}))).await;

    publish(&erp, &["A", "B"], 0..20).await;

    receiver
        .wait_until(PATIENCE, |all| {
            all.iter().filter(|one| one.path == "/orders").count() == 20
        })
        .await;
    erp.wait_all_settled(PATIENCE).await;
    let requests = receiver.requests_to("/orders");
    assert!(first_seen(&requests).values().all(|n| n.is_sorted()));
}

async fn an_open_breaker_holds_lanes_and_its_probe_lets_them_go_on_in_order(site: Site) {
    let Site { erp, receiver, .. } = site;
    receiver.answer("/orders", Answer::status(500));
    let waits: Vec<&str> = std::iter::repeat_n("100ms", 30).collect();
    let config = ordered(&json!({ "retryPolicy": { "schedule": waits } }));
    let url = receiver.url("/orders");
    let (webhook, _) = erp.webhook(&url, &["sales.>"], config).await;
    publish(&erp, &["A", "B", "C"], 0..30).await;
    erp.wait_event("webhook.breaker_opened", |event| {
        event["subject"] == webhook.as_str()
    })
    .await;

    receiver.answer("/orders", Answer::status(200));

    erp.wait_event("webhook.breaker_closed", |event| {
        event["subject"] == webhook.as_str()
    })
    .await;
    let requests = receiver
        .wait_until(PATIENCE, |all| {
            all.iter().map(number).collect::<BTreeSet<_>>().len() == 30
        })
        .await;
    for (key, numbers) in first_seen(&requests) {
        assert!(numbers.is_sorted(), "{key}: {numbers:?}");
    }
}

async fn a_worker_that_begins_behind_an_open_breaker_makes_its_probe(site: Site) {
    let Site {
        server,
        erp,
        receiver,
        worker,
        database,
    } = site;
    receiver.answer("/orders", Answer::status(500));
    let waits: Vec<&str> = std::iter::repeat_n("100ms", 50).collect();
    let config = ordered(&json!({ "retryPolicy": { "schedule": waits } }));
    let url = receiver.url("/orders");
    let (webhook, _) = erp.webhook(&url, &["sales.>"], config).await;
    publish(&erp, &["A", "B"], 0..10).await;
    let ours = |event: &Value| event["subject"] == webhook.as_str();
    erp.wait_event("webhook.breaker_opened", ours).await;
    assert_eq!(worker.terminate().await, 0);
    receiver.answer("/orders", Answer::status(200));

    // It knows nothing of the source stream yet, and nothing else waits that would make it ask.
    let mut worker = Worker::start(&Environment::new(&server.url(), &database.url()));
    worker.wait_ready().await;

    erp.wait_event("webhook.breaker_closed", ours).await;
    let requests = receiver
        .wait_until(PATIENCE, |all| {
            all.iter().map(number).collect::<BTreeSet<_>>().len() == 10
        })
        .await;
    for (key, numbers) in first_seen(&requests) {
        assert!(numbers.is_sorted(), "{key}: {numbers:?}");
    }
}

async fn a_key_that_cannot_be_evaluated_ends_the_delivery(site: Site) {
    let Site { erp, receiver, .. } = site;
    let url = receiver.url("/orders");
    let (webhook, _) = erp.webhook(&url, &["sales.>"], ordered(&json!({}))).await;
    erp.publish(
        "sales.order.created",
        json!({ "eventType": "sales.order.created", "payload": {} }).to_string(),
    )
    .await;

    let delivery = erp
        .wait_delivery(&webhook, json!({ "status": "exhausted" }))
        .await;

    let error = delivery["error"].as_str().expect("a reason");
    assert!(error.starts_with("ordering key: "), "{error}");
    assert!(receiver.requests().is_empty());
}

async fn a_slow_first_attempt_settles_its_event_and_is_recorded_once(site: Site) {
    let Site { erp, receiver, .. } = site;
    let slow = Answer::status(200).after(Duration::from_secs(3));
    receiver.answer("/slow", slow);
    let (webhook, _) = erp
        .webhook(&receiver.url("/slow"), &["sales.>"], json!({}))
        .await;
    erp.order_created("e-1").await;

    let waiting = erp
        .wait_delivery(&webhook, json!({ "status": "pending" }))
        .await;
    assert_eq!(waiting["error"], "the first attempt is under way");
    erp.wait_all_settled(Duration::from_secs(2)).await;
    let delivered = erp
        .wait_delivery(&webhook, json!({ "status": "delivered" }))
        .await;

    assert_eq!(delivered["id"], waiting["id"]);
    assert_eq!(delivered["attemptCount"], 1);
    assert_eq!(delivered["attempts"].as_array().map(Vec::len), Some(1));
    let told = erp
        .wait_event("webhook.triggered", |event| {
            event["subject"] == delivered["id"]
        })
        .await;
    assert_eq!(told["aggregateversion"], 1);
    assert_eq!(receiver.requests().len(), 1);
}

async fn what_waits_goes_out_after_the_source_stream_was_lost_and_made_anew(site: Site) {
    let Site {
        server,
        erp,
        receiver,
        worker,
        database,
    } = site;
    receiver.answer("/orders", Answer::status(500));
    let waits: Vec<&str> = std::iter::repeat_n("1s", 50).collect();
    let config = ordered(&json!({ "retryPolicy": { "schedule": waits } }));
    let url = receiver.url("/orders");
    let (webhook, _) = erp.webhook(&url, &["sales.>"], config).await;
    publish(&erp, &["A"], 0..6).await;
    eventually(PATIENCE, async || {
        let pending = json!({ "webhookId": webhook, "status": "pending" });
        let pending = erp.ask("delivery.list", pending).await;
        (pending["items"].as_array()?.len() == 6).then_some(())
    })
    .await;
    erp.wait_all_settled(PATIENCE).await;
    assert_eq!(worker.terminate().await, 0);
    let deleted = erp.jetstream.delete_stream("ERP_EVENTS").await;
    deleted.expect("it is deleted");
    receiver.answer("/orders", Answer::status(200));

    let mut worker = Worker::start(&Environment::new(&server.url(), &database.url()));
    worker.wait_ready().await;
    let all_there = |count| {
        move |all: &[Received]| all.iter().map(number).collect::<BTreeSet<_>>().len() == count
    };
    receiver.wait_until(PATIENCE, all_there(6)).await;
    publish(&erp, &["A"], 6..8).await;

    let requests = receiver.wait_until(PATIENCE, all_there(8)).await;
    assert_eq!(first_seen(&requests)["A"], [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[tokio::test]
async fn the_order_outlives_workers_that_are_killed() {
    // All five lanes may be in the killed worker's hands: 30 s go by before another takes them.
    const LEASES_END: Duration = Duration::from_mins(2);
    let (server, database) = (NatsServer::start().await, Postgres::database().await);
    let environment = Environment::new(&server.url(), &database.url()).with("ERP_ACK_WAIT", "5s");
    let mut workers = Vec::new();
    for _ in 0..3 {
        let mut worker = Worker::start(&environment);
        worker.wait_ready().await;
        workers.push(worker);
    }
    let (erp, receiver) = (Erp::connect(&server.url()).await, Receiver::start());
    receiver.answer_with("/orders", |request, before| {
        let fails = before % 17 == 3 && customer(request) != "D";
        Answer::status(if fails { 500 } else { 200 }).after(Duration::from_millis(2))
    });
    let config = ordered(&json!({ "retryPolicy": { "maxRetries": 10, "backoffMs": 100 } }));
    erp.webhook(&receiver.url("/orders"), &["sales.>"], config)
        .await;

    publish(&erp, &["A", "B", "C", "D", "E"], 0..500).await;
    for killed in [50, 150] {
        receiver.wait_for(killed, LEASES_END).await;
        workers.remove(0).kill9();
    }

    let requests = receiver
        .wait_until(LEASES_END, |all| {
            all.iter().map(number).collect::<BTreeSet<_>>().len() == 500
        })
        .await;
    for (key, numbers) in first_seen(&requests) {
        assert_eq!(numbers.len(), 100, "{key}");
        assert!(numbers.is_sorted(), "{key}: {numbers:?}");
    }
}
