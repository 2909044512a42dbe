//! Replays and backfills: what was recorded goes out again, what never was goes out once, and nothing is
//! lost whoever dies meanwhile.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    limits::most_at_a_time,
    support::{
        PATIENCE,
        erp::{Erp, is_signed},
        eventually,
        nats::NatsServer,
        postgres::Postgres,
        receiver::{Answer, Received, Receiver},
        site::{Site, on_both},
        worker::{Environment, Worker},
    },
};

on_both!(
    what_was_delivered_goes_out_again_with_the_same_webhook_id,
    a_dry_run_counts_and_sends_nothing,
    a_replay_is_of_the_states_and_types_that_are_meant,
    what_the_stream_holds_no_more_is_skipped,
    a_backfill_delivers_once_what_matched_before_the_webhook_was_made,
    a_cancelled_replay_stops_and_another_one_may_begin,
    a_replay_ends_with_its_webhook,
    a_replay_waits_while_the_breaker_is_open_and_goes_on_then,
    a_replay_goes_on_while_live_events_come,
    a_replay_has_one_request_at_a_time_beside_a_live_one,
);

pub(crate) const LONG_AGO: &str = "2020-01-01T00:00:00Z";

pub(crate) fn event(n: usize) -> String {
    json!({
        "eventType": "sales.order.created", "eventId": format!("e-{n}"),
        "payload": { "customerId": if n.is_multiple_of(2) { "A" } else { "B" }, "n": n },
    })
    .to_string()
}

pub(crate) async fn publish(erp: &Erp, numbers: std::ops::Range<usize>) {
    erp.publish_all("sales.order.created", numbers.map(event))
        .await;
}

pub(crate) fn number(request: &Received) -> u64 {
    request.json()["data"]["n"].as_u64().expect("a number")
}

pub(crate) fn ids(requests: &[Received]) -> BTreeMap<String, usize> {
    let mut ids = BTreeMap::new();
    for request in requests {
        *ids.entry(request.header("webhook-id").to_owned())
            .or_default() += 1;
    }
    ids
}

/// A webhook that got these many events.
pub(crate) async fn delivered(site: &Site, config: Value, count: usize) -> (String, String) {
    let (erp, receiver) = (&site.erp, &site.receiver);
    let (webhook, secret) = erp.webhook(&receiver.url("/w"), &["sales.>"], config).await;
    publish(erp, 0..count).await;
    receiver.wait_for(count, PATIENCE).await;
    all_recorded(erp, &webhook, count).await;
    (webhook, secret)
}

/// Waits until so many deliveries are recorded as delivered.
pub(crate) async fn all_recorded(erp: &Erp, webhook: &str, count: usize) {
    eventually(PATIENCE, async || {
        let counted = dry_run(erp, webhook, json!({ "statuses": ["delivered"] })).await;
        (counted["count"] == count).then_some(())
    })
    .await;
}

async fn dry_run(erp: &Erp, webhook: &str, more: Value) -> Value {
    let mut body = json!({ "id": webhook, "since": LONG_AGO, "dryRun": true });
    for (name, value) in more.as_object().expect("an object") {
        body[name] = value.clone();
    }
    erp.ask("webhook.replay", body).await
}

pub(crate) async fn begin(erp: &Erp, action: &str, webhook: &str) -> Value {
    let body = json!({ "id": webhook, "since": LONG_AGO });
    erp.ask(&format!("webhook.{action}"), body).await
}

pub(crate) async fn ended(erp: &Erp, begun: &Value, how: &str) -> Value {
    erp.wait_event(&format!("webhook.replay_{how}"), |event| {
        event["subject"] == begun["replayId"]
    })
    .await
}

/// Its events have the versions 1, 2, 3, ….
async fn assert_told_without_gaps(erp: &Erp, begun: &Value) {
    let events = erp.events().await;
    let versions: Vec<u64> = events
        .iter()
        .filter(|event| event["subject"] == begun["replayId"])
        .map(|event| event["aggregateversion"].as_u64().expect("a version"))
        .collect();
    assert!(versions.len() > 2, "{versions:?}");
    assert!(
        versions.iter().copied().eq(1..=versions.len() as u64),
        "{versions:?}"
    );
}

async fn what_was_delivered_goes_out_again_with_the_same_webhook_id(site: Site) {
    let (webhook, secret) = delivered(&site, json!({}), 70).await;
    let Site { erp, receiver, .. } = site;

    let begun = begin(&erp, "replay", &webhook).await;

    assert_eq!(
        (&begun["count"], &begun["isComplete"]),
        (&json!(70), &json!(true))
    );
    let told = ended(&erp, &begun, "completed").await;
    assert_eq!(told["data"]["done"], 70);
    assert_eq!(told["data"]["skipped"], 0);
    assert_eq!(told["data"]["total"], 70);
    assert_eq!(told["data"]["webhookId"], webhook.as_str());
    let requests = receiver.wait_for(140, PATIENCE).await;
    let ids = ids(&requests);
    assert_eq!(ids.len(), 70);
    assert!(ids.values().all(|times| *times == 2), "{ids:?}");
    assert!(requests.iter().all(|one| is_signed(one, &secret)));
    let body = |id: &str| {
        let of_id = requests.iter().filter(|one| one.header("webhook-id") == id);
        of_id
            .map(|one| one.body.clone())
            .collect::<BTreeSet<_>>()
            .len()
    };
    assert!(ids.keys().all(|id| body(id) == 1), "the same body again");
    let first = ids.keys().next().expect("there are some");
    let delivery = eventually(PATIENCE, async || {
        let delivery = erp.ask("delivery.get", json!({ "id": first })).await;
        (delivery["status"] == "delivered").then_some(delivery)
    })
    .await;
    assert_eq!(delivery["attempts"].as_array().map(Vec::len), Some(2));
    assert_told_without_gaps(&erp, &begun).await;
    let listed = erp.ask("webhook.replays", json!({ "id": webhook })).await;
    assert_eq!(listed["items"][0]["id"], begun["replayId"]);
    assert_eq!(listed["items"][0]["status"], "completed");
}

async fn a_dry_run_counts_and_sends_nothing(site: Site) {
    let (webhook, _) = delivered(&site, json!({}), 5).await;
    let Site { erp, receiver, .. } = site;
    for (more, count) in [
        (json!({}), 5),
        (json!({ "statuses": ["exhausted"] }), 0),
        (json!({ "eventTypes": ["sales.>"] }), 5),
        (json!({ "eventTypes": ["purchase.>", "sales.order"] }), 0),
        (json!({ "until": LONG_AGO }), 0),
    ] {
        let counted = dry_run(&erp, &webhook, more.clone()).await;
        assert_eq!(
            counted,
            json!({ "count": count, "isComplete": true }),
            "{more}"
        );
    }
    let body = json!({ "id": webhook, "since": LONG_AGO, "dryRun": true });
    let counted = erp.ask("webhook.backfill", body).await;
    assert_eq!(
        counted,
        json!({ "count": 0, "isComplete": true }),
        "all are recorded"
    );
    let listed = erp.ask("webhook.replays", json!({ "id": webhook })).await;
    assert_eq!(listed["items"], json!([]));
    assert_eq!(receiver.requests().len(), 5);
}

async fn a_replay_is_of_the_states_and_types_that_are_meant(site: Site) {
    let Site { erp, receiver, .. } = site;
    receiver.answer_with("/w", |request, _| {
        let fails = request.json()["type"] == "sales.order.failed";
        Answer::status(if fails { 500 } else { 200 })
    });
    let policy = json!({ "retryPolicy": { "maxRetries": 0, "backoffMs": 100 } });
    let (webhook, _) = erp.webhook(&receiver.url("/w"), &["sales.>"], policy).await;
    for (kind, id) in [("created", "c"), ("failed", "f"), ("updated", "u")] {
        let body = json!({
            "eventType": format!("sales.order.{kind}"), "eventId": id, "payload": {},
        });
        erp.publish("sales.order.created", body.to_string()).await;
        let status = if kind == "failed" {
            "exhausted"
        } else {
            "delivered"
        };
        erp.wait_delivery(&webhook, json!({ "eventId": id, "status": status }))
            .await;
    }
    receiver.answer("/w", Answer::status(200));
    for (more, kind) in [
        (json!({ "statuses": ["exhausted"] }), "sales.order.failed"),
        (
            json!({ "eventTypes": ["sales.*.updated"] }),
            "sales.order.updated",
        ),
    ] {
        let before = receiver.requests().len();
        let mut body = json!({ "id": webhook, "since": LONG_AGO });
        for (name, value) in more.as_object().expect("an object") {
            body[name] = value.clone();
        }

        let begun = erp.ask("webhook.replay", body).await;

        let told = ended(&erp, &begun, "completed").await;
        assert_eq!(told["data"]["done"], 1, "{more}");
        let requests = receiver.wait_for(before + 1, PATIENCE).await;
        let again: Vec<Value> = requests[before..].iter().map(Received::json).collect();
        assert_eq!(again.len(), 1);
        assert_eq!(again[0]["type"], kind);
    }
    erp.wait_delivery(&webhook, json!({ "eventId": "f", "status": "delivered" }))
        .await;
}

async fn what_the_stream_holds_no_more_is_skipped(site: Site) {
    let (webhook, _) = delivered(&site, json!({}), 10).await;
    let Site { erp, receiver, .. } = site;
    let stream = erp
        .jetstream
        .get_stream("ERP_EVENTS")
        .await
        .expect("it is there");
    stream
        .purge()
        .sequence(5)
        .await
        .expect("it forgets the first four");

    let begun = begin(&erp, "replay", &webhook).await;

    let told = ended(&erp, &begun, "completed").await;
    assert_eq!(
        (&told["data"]["done"], &told["data"]["skipped"]),
        (&json!(6), &json!(4))
    );
    assert_eq!(receiver.requests().len(), 16);
}

async fn a_backfill_delivers_once_what_matched_before_the_webhook_was_made(site: Site) {
    let Site { erp, receiver, .. } = site;
    publish(&erp, 0..50).await;
    // The same event is one delivery, also within a page.
    publish(&erp, 20..35).await;
    erp.wait_all_settled(PATIENCE).await;
    let filter = json!({ "filter": "data.n < 30" });
    let (webhook, secret) = erp.webhook(&receiver.url("/w"), &["sales.>"], filter).await;
    let dry = json!({ "id": webhook, "since": LONG_AGO, "dryRun": true });
    let counted = erp.ask("webhook.backfill", dry.clone()).await;
    assert_eq!(counted, json!({ "count": 30, "isComplete": true }));

    let begun = begin(&erp, "backfill", &webhook).await;

    assert_eq!(begun["count"], 30);
    let live =
        json!({ "eventType": "sales.order.created", "eventId": "live", "payload": { "n": -1 } });
    erp.publish("sales.order.created", live.to_string()).await;
    publish(&erp, 1_000..1_001).await;
    let told = ended(&erp, &begun, "completed").await;
    assert_eq!(
        (&told["data"]["done"], &told["data"]["kind"]),
        (&json!(30), &json!("backfill"))
    );
    receiver.wait_for(31, PATIENCE).await;
    // Known already: the same event again is the same delivery.
    publish(&erp, 7..8).await;
    erp.wait_all_settled(PATIENCE).await;
    let requests = receiver.requests();
    let numbers: BTreeSet<i64> = requests
        .iter()
        .map(|one| one.json()["data"]["n"].as_i64().expect("a number"))
        .collect();
    assert_eq!(numbers, (-1..30).collect());
    assert!(requests.iter().all(|one| is_signed(one, &secret)));
    assert_eq!(requests.len(), 31, "nothing twice");
    eventually(PATIENCE, async || {
        let filter = json!({ "webhookId": webhook, "status": "delivered", "limit": 100 });
        let listed = erp.ask("delivery.list", filter).await;
        (listed["items"].as_array()?.len() == 31).then_some(())
    })
    .await;
    assert_eq!(erp.ask("webhook.backfill", dry).await["count"], 0);
}

async fn a_cancelled_replay_stops_and_another_one_may_begin(site: Site) {
    let (webhook, _) = delivered(&site, json!({}), 200).await;
    let Site { erp, receiver, .. } = site;
    receiver.answer("/w", Answer::status(200).after(Duration::from_millis(50)));
    let begun = begin(&erp, "replay", &webhook).await;
    let again = json!({ "id": webhook, "since": LONG_AGO });
    let refused = erp.request("webhook.replay", &[], &again).await;
    assert_eq!(refused["error"]["code"], "invalid_transition", "{refused}");
    receiver.wait_for(205, PATIENCE).await;

    let cancel = json!({ "id": webhook, "replayId": begun["replayId"] });
    let cancelled = erp.ask("webhook.cancel_replay", cancel.clone()).await;

    assert_eq!(cancelled["status"], "cancelled");
    let told = ended(&erp, &begun, "cancelled").await;
    let done = told["data"]["done"].as_u64().expect("a number");
    assert!((1..200).contains(&done), "{told}");
    let requests = usize::try_from(200 + done).expect("few");
    receiver.wait_for(requests, PATIENCE).await;
    assert_eq!(
        erp.ask("webhook.cancel_replay", cancel).await["status"],
        "cancelled"
    );
    let unknown = json!({ "id": webhook, "replayId": webhook });
    let refused = erp.request("webhook.cancel_replay", &[], &unknown).await;
    assert_eq!(refused["error"]["code"], "not_found");
    receiver.answer("/w", Answer::status(200));
    let second = begin(&erp, "replay", &webhook).await;
    ended(&erp, &second, "completed").await;
    assert!(receiver.requests().len() >= requests + 200 - 32);
    let ended = json!({ "id": webhook, "replayId": second["replayId"] });
    let refused = erp.request("webhook.cancel_replay", &[], &ended).await;
    assert_eq!(refused["error"]["code"], "invalid_transition");
}

async fn a_replay_ends_with_its_webhook(site: Site) {
    let (webhook, _) = delivered(&site, json!({}), 100).await;
    let Site { erp, receiver, .. } = site;
    receiver.answer("/w", Answer::status(200).after(Duration::from_millis(50)));
    let begun = begin(&erp, "replay", &webhook).await;
    receiver.wait_for(105, PATIENCE).await;

    erp.ask("webhook.deactivate", json!({ "id": webhook }))
        .await;

    let sent = receiver.requests().len();
    let told = ended(&erp, &begun, "cancelled").await;
    assert!(told["data"]["error"].is_string(), "{told}");
    let more = receiver.requests().len() - sent;
    // Those that were under way, and not the rest of the page.
    assert!(
        more <= 4,
        "{more} requests after the webhook was turned off"
    );
    for action in ["replay", "backfill"] {
        let body = json!({ "id": webhook, "since": LONG_AGO });
        let refused = erp.request(&format!("webhook.{action}"), &[], &body).await;
        assert_eq!(refused["error"]["code"], "invalid_transition", "{refused}");
    }
}

async fn a_replay_waits_while_the_breaker_is_open_and_goes_on_then(site: Site) {
    let policy = json!({ "retryPolicy": { "schedule": ["1m"] } });
    let (webhook, _) = delivered(&site, policy, 40).await;
    let Site { erp, receiver, .. } = site;
    receiver.answer("/w", Answer::status(500));
    publish(&erp, 1_000..1_060).await;
    erp.wait_event("webhook.breaker_opened", |_| true).await;
    erp.wait_all_settled(PATIENCE).await;

    let begun = begin(&erp, "replay", &webhook).await;

    // Nothing else is due that the endpoint could be tried with.
    receiver.wait_for(100 + 3, PATIENCE).await;
    let listed = erp.ask("webhook.replays", json!({ "id": webhook })).await;
    assert_eq!(listed["items"][0]["status"], "running");
    let done = listed["items"][0]["done"].as_i64();
    assert!(done < Some(40), "one for each probe: {listed}");
    receiver.answer("/w", Answer::status(200));
    let told = ended(&erp, &begun, "completed").await;
    assert!(told["data"]["done"].as_i64() >= Some(40), "{told}");
}

async fn a_replay_goes_on_while_live_events_come(site: Site) {
    let (webhook, _) = delivered(&site, json!({}), 64).await;
    let Site { erp, receiver, .. } = site;

    let begun = begin(&erp, "replay", &webhook).await;
    publish(&erp, 64..564).await;

    ended(&erp, &begun, "completed").await;
    let requests = receiver.wait_for(64 + 64 + 500, PATIENCE).await;
    let twice = ids(&requests).values().filter(|times| **times == 2).count();
    assert_eq!(twice, 64);
}

async fn a_replay_has_one_request_at_a_time_beside_a_live_one(site: Site) {
    let (webhook, _) = delivered(&site, json!({}), 40).await;
    let Site { erp, receiver, .. } = site;
    receiver.answer("/live", Answer::hang());
    let live = receiver.url("/live");
    erp.webhook(&live, &["crm.>"], json!({})).await;
    let body = json!({ "eventType": "crm.lead.created", "eventId": "live", "payload": {} });
    erp.publish_all("crm.lead.created", std::iter::once(body.to_string()))
        .await;
    receiver.wait_for(41, PATIENCE).await;
    let took = Duration::from_millis(60);
    receiver.answer("/w", Answer::status(200).after(took));

    let begun = begin(&erp, "replay", &webhook).await;

    ended(&erp, &begun, "completed").await;
    let requests = receiver.requests_to("/w");
    assert_eq!(most_at_a_time(&requests[40..], took), 1);
}

#[tokio::test]
async fn a_replay_outlives_a_worker_that_is_killed() {
    let (server, database) = (NatsServer::start().await, Postgres::database().await);
    let environment = Environment::new(&server.url(), &database.url()).with("ERP_ACK_WAIT", "5s");
    let mut workers = Vec::new();
    for _ in 0..2 {
        let mut worker = Worker::start(&environment);
        worker.wait_ready().await;
        workers.push(worker);
    }
    let (erp, receiver) = (Erp::connect(&server.url()).await, Receiver::start());
    let (webhook, _) = erp
        .webhook(&receiver.url("/w"), &["sales.>"], json!({}))
        .await;
    publish(&erp, 0..150).await;
    receiver.wait_for(150, PATIENCE).await;
    all_recorded(&erp, &webhook, 150).await;
    receiver.answer("/w", Answer::status(200).after(Duration::from_millis(20)));

    let begun = begin(&erp, "replay", &webhook).await;
    // Whichever of them has the page that is under way.
    receiver.wait_for(150 + 10, PATIENCE).await;
    workers.remove(0).kill9();
    let mut other = Worker::start(&environment);
    other.wait_ready().await;
    receiver.wait_for(150 + 60, Duration::from_mins(1)).await;
    workers.remove(0).kill9();

    let told = eventually(Duration::from_mins(2), async || {
        let events = erp.events().await;
        let mut events = events.into_iter();
        events.find(|event| event["type"] == "webhook.replay_completed")
    })
    .await;
    assert_eq!(told["subject"], begun["replayId"]);
    assert_eq!(told["data"]["done"], 150);
    receiver
        .wait_until(Duration::from_mins(1), |all| {
            ids(all).values().filter(|times| **times >= 2).count() == 150
        })
        .await;
    assert_told_without_gaps(&erp, &begun).await;
}
