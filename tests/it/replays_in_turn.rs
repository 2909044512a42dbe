//! Replays of what waits for its turn: in order, together, or within a rate limit.

use std::{collections::BTreeSet, time::Duration};

use serde_json::json;

use crate::{
    replays::{LONG_AGO, all_recorded, begin, delivered, ended, event, ids, number, publish},
    support::{
        PATIENCE,
        receiver::{Answer, Received},
        site::{Site, on_both},
    },
};

on_both!(
    a_replay_of_what_is_exhausted_sets_blocked_lanes_going,
    an_ordered_webhook_gets_its_deliveries_again_in_order,
    a_limited_webhook_gets_its_deliveries_again_within_its_limit,
    a_batched_webhook_gets_its_deliveries_again_in_batches,
    live_events_of_a_key_do_not_wait_for_a_replay_that_fails,
    what_is_sent_again_in_batches_does_not_join_live_events,
    what_is_sent_again_in_batches_keeps_to_their_bytes,
);

async fn a_replay_of_what_is_exhausted_sets_blocked_lanes_going(site: Site) {
    let Site { erp, receiver, .. } = site;
    receiver.answer("/w", Answer::status(500));
    let config = json!({
        "ordering": { "key": "data.customerId", "onExhausted": "block" },
        "retryPolicy": { "maxRetries": 0, "backoffMs": 100 },
    });
    let (webhook, _) = erp.webhook(&receiver.url("/w"), &["sales.>"], config).await;
    publish(&erp, 0..80).await;
    erp.wait_all_settled(PATIENCE).await;
    receiver.wait_for(2, PATIENCE).await;
    for id in ["e-0", "e-1"] {
        erp.wait_delivery(&webhook, json!({ "eventId": id, "status": "exhausted" }))
            .await;
    }
    receiver.answer("/w", Answer::status(200));

    let body = json!({ "id": webhook, "since": LONG_AGO, "statuses": ["exhausted"] });
    let begun = erp.ask("webhook.replay", body).await;

    let told = ended(&erp, &begun, "completed").await;
    assert_eq!(told["data"]["done"], 2);
    let requests = receiver.wait_for(82, PATIENCE).await;
    for parity in [0, 1] {
        let got = requests[2..].iter().map(number);
        let got: Vec<u64> = got.filter(|n| n % 2 == parity).collect();
        assert_eq!(got.len(), 40);
        assert!(got.is_sorted(), "{got:?}");
    }
}

async fn an_ordered_webhook_gets_its_deliveries_again_in_order(site: Site) {
    let ordered = json!({ "ordering": { "key": "data.customerId" } });
    let (webhook, _) = delivered(&site, ordered, 80).await;
    let Site { erp, receiver, .. } = site;

    let begun = begin(&erp, "replay", &webhook).await;

    ended(&erp, &begun, "completed").await;
    let requests = receiver.wait_for(160, PATIENCE).await;
    for parity in [0, 1] {
        let again = requests[80..]
            .iter()
            .map(number)
            .filter(|n| n % 2 == parity);
        let again: Vec<u64> = again.collect();
        assert_eq!(again.len(), 40);
        assert!(again.is_sorted(), "{again:?}");
    }
}

async fn a_limited_webhook_gets_its_deliveries_again_within_its_limit(site: Site) {
    let limited = json!({ "rateLimit": { "requests": 20, "per": "1s" } });
    let (webhook, _) = delivered(&site, limited, 40).await;
    let Site { erp, receiver, .. } = site;

    let begun = begin(&erp, "replay", &webhook).await;

    let requests = receiver.wait_for(80, PATIENCE).await;
    ended(&erp, &begun, "completed").await;
    assert!(ids(&requests).values().all(|times| *times == 2));
    let again = &requests[40..];
    let took = again[39].at.duration_since(again[0].at);
    // A whole bucket at once, and the rest as it is refilled.
    assert!(took >= Duration::from_millis(900), "{took:?}");
}

async fn a_batched_webhook_gets_its_deliveries_again_in_batches(site: Site) {
    let Site { erp, receiver, .. } = site;
    let batched = json!({ "batch": { "maxEvents": 20, "maxWait": "300ms" } });
    publish(&erp, 0..50).await;
    erp.wait_all_settled(PATIENCE).await;
    let (webhook, _) = erp
        .webhook(&receiver.url("/w"), &["sales.>"], batched)
        .await;
    let events = |requests: &[Received]| -> Vec<String> {
        let bodies = requests.iter().map(Received::json);
        let all = bodies.flat_map(|body| body.as_array().cloned().expect("a batch"));
        all.map(|one| one["id"].as_str().expect("an id").to_owned())
            .collect()
    };
    for (action, all) in [("backfill", 50), ("replay", 100)] {
        let begun = begin(&erp, action, &webhook).await;

        let told = ended(&erp, &begun, "completed").await;
        assert_eq!(told["data"]["done"], 50, "{action}");
        let requests = receiver
            .wait_until(PATIENCE, |requests| events(requests).len() == all)
            .await;
        assert!(requests.len() <= all / 5, "{} requests", requests.len());
        let different: BTreeSet<String> = events(&requests).into_iter().collect();
        assert_eq!(different.len(), 50, "{action}");
        all_recorded(&erp, &webhook, 50).await;
    }
}

async fn live_events_of_a_key_do_not_wait_for_a_replay_that_fails(site: Site) {
    let ordered = json!({
        "ordering": { "key": "data.customerId", "onExhausted": "block" },
        "retryPolicy": { "schedule": ["1h"] },
    });
    let (webhook, _) = delivered(&site, ordered, 10).await;
    let Site { erp, receiver, .. } = site;
    receiver.answer_with("/w", |request, _| {
        Answer::status(if number(request) < 10 { 500 } else { 200 })
    });

    let begun = begin(&erp, "replay", &webhook).await;

    ended(&erp, &begun, "completed").await;
    receiver.wait_for(10 + 2, PATIENCE).await;
    publish(&erp, 10..20).await;
    let requests = receiver.wait_for(10 + 2 + 10, PATIENCE).await;
    let again: BTreeSet<u64> = requests[10..12].iter().map(number).collect();
    assert_eq!(again, [0, 1].into(), "the foremost of both keys, in order");
    for parity in [0, 1] {
        let live = requests[12..].iter().map(number);
        let live: Vec<u64> = live.filter(|n| n % 2 == parity).collect();
        let expected: Vec<u64> = (10..20).filter(|n| n % 2 == parity).collect();
        assert_eq!(live, expected);
    }
}

async fn what_is_sent_again_in_batches_does_not_join_live_events(site: Site) {
    let Site { erp, receiver, .. } = site;
    let batched = json!({ "batch": { "maxEvents": 20, "maxWait": "30s" } });
    let (webhook, _) = erp
        .webhook(&receiver.url("/w"), &["sales.>"], batched)
        .await;
    publish(&erp, 0..20).await;
    receiver.wait_for(1, PATIENCE).await;
    all_recorded(&erp, &webhook, 20).await;
    publish(&erp, 100..103).await;
    erp.wait_all_settled(PATIENCE).await;

    let begun = begin(&erp, "replay", &webhook).await;

    let requests = receiver.wait_for(2, PATIENCE).await;
    let told = ended(&erp, &begun, "completed").await;
    assert_eq!(
        (&told["data"]["done"], &told["data"]["skipped"]),
        (&json!(20), &json!(3)),
        "what waits goes out anyway"
    );
    let again = requests[1].json();
    let again = again.as_array().expect("a batch").iter();
    let again: BTreeSet<u64> = again
        .map(|one| one["data"]["n"].as_u64().expect("a number"))
        .collect();
    assert_eq!(again, (0..20).collect());
}

async fn what_is_sent_again_in_batches_keeps_to_their_bytes(site: Site) {
    let batched = json!({ "batch": { "maxEvents": 20, "maxBytes": 1_024, "maxWait": "300ms" } });
    let Site { erp, receiver, .. } = site;
    publish(&erp, 0..20).await;
    erp.wait_all_settled(PATIENCE).await;
    let (webhook, _) = erp
        .webhook(&receiver.url("/w"), &["sales.>"], batched)
        .await;
    let count = |requests: &[Received]| -> usize {
        let bodies = requests.iter().map(Received::json);
        bodies.map(|body| body.as_array().map_or(0, Vec::len)).sum()
    };
    for (action, all) in [("backfill", 20), ("replay", 40)] {
        let before = receiver.requests().len();
        let begun = begin(&erp, action, &webhook).await;
        ended(&erp, &begun, "completed").await;
        let requests = receiver.wait_until(PATIENCE, |got| count(got) == all).await;
        for request in &requests[before..] {
            let events = request.json().as_array().map_or(0, Vec::len);
            let bytes = events * event(10).len();
            assert!(bytes <= 1_024, "{action}: {events} events");
        }
        all_recorded(&erp, &webhook, 20).await;
    }
}
