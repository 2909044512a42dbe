//! How many requests an endpoint gets: in a time, from all workers together, and at a time.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{
    PATIENCE,
    erp::{Erp, order},
    eventually,
    nats::NatsServer,
    postgres::Postgres,
    receiver::{Answer, Received, Receiver},
    site::{Site, on_both},
    worker::{Environment, Worker},
};

on_both!(
    what_waits_for_a_token_says_so_and_is_no_attempt,
    a_slow_rule_keeps_its_pace,
    an_ordered_webhook_keeps_its_order_and_its_limit,
    a_removed_rule_lets_go_what_waits,
    what_waited_for_activation_goes_out_oldest_first_and_within_the_limit,
    a_webhook_gets_no_more_requests_at_a_time_than_it_allows,
);

/// How late a request may come, at most: what came late was within the limit when it was sent.
const LATE: f64 = 0.3;

fn arrivals(requests: &[Received]) -> Vec<Instant> {
    let mut times: Vec<Instant> = requests.iter().map(|request| request.at).collect();
    times.sort();
    times
}

/// Within any time, no more came than a bucket of `burst` tokens gives that gets `rate` a second.
fn assert_within(requests: &[Received], burst: f64, rate: f64) {
    let times = arrivals(requests);
    for (from, begin) in times.iter().enumerate() {
        for (until, end) in times.iter().enumerate().skip(from) {
            let took = (*end - *begin).as_secs_f64();
            let count = f64::from(u32::try_from(until - from + 1).expect("few"));
            let allowed = (burst + rate * (took + LATE)) * 1.05;
            assert!(count <= allowed, "{count} requests in {took} s");
        }
    }
}

async fn publish(erp: &Erp, numbers: std::ops::Range<usize>) {
    let bodies = numbers.map(|n| order(&format!("e-{n:03}")));
    erp.publish_all("sales.order.created", bodies).await;
}

fn event(request: &Received) -> String {
    let id = &request.json()["data"]["orderId"];
    id.as_str().expect("a text").to_owned()
}

fn limited(requests: u32, per: &str) -> Value {
    json!({ "rateLimit": { "requests": requests, "per": per } })
}

#[tokio::test]
async fn three_workers_keep_a_rate_limit_together_and_other_webhooks_do_not_feel_it() {
    let (server, database) = (NatsServer::start().await, Postgres::database().await);
    let environment = Environment::new(&server.url(), &database.url());
    let mut workers = Vec::new();
    for _ in 0..3 {
        let mut worker = Worker::start(&environment);
        worker.wait_ready().await;
        workers.push(worker);
    }
    let (erp, receiver) = (Erp::connect(&server.url()).await, Receiver::start());
    let (webhook, _) = erp
        .webhook(&receiver.url("/limited"), &["sales.>"], limited(20, "1s"))
        .await;
    erp.webhook(&receiver.url("/free"), &["sales.>"], json!({}))
        .await;

    publish(&erp, 0..100).await;

    receiver.wait_for(200, PATIENCE * 2).await;
    let requests = receiver.requests_to("/limited");
    assert_eq!(requests.len(), 100, "each once");
    assert_within(&requests, 20.0, 20.0);
    let times = arrivals(&requests);
    let took = *times.last().expect("some") - times[0];
    assert!(took >= Duration::from_millis(3_700), "{took:?} for 80");
    assert!(took <= Duration::from_secs(8), "{took:?} for 80");
    let free = arrivals(&receiver.requests_to("/free"));
    assert_eq!(free.len(), 100);
    assert!(free[99] < times[60], "the other webhook waits for nobody");
    eventually(PATIENCE, async || {
        let all = json!({ "webhookId": webhook, "status": "delivered", "limit": 100 });
        let all = erp.ask("delivery.list", all).await;
        let items = all["items"].as_array()?.clone();
        (items.len() == 100).then(|| {
            assert!(items.iter().all(|item| item["attemptCount"] == 1));
        })
    })
    .await;
}

async fn what_waits_for_a_token_says_so_and_is_no_attempt(site: Site) {
    let Site { erp, receiver, .. } = site;
    let (webhook, _) = erp
        .webhook(&receiver.url("/hook"), &["sales.>"], limited(1, "1h"))
        .await;

    publish(&erp, 0..2).await;

    receiver.wait_for(1, PATIENCE).await;
    erp.wait_delivery(&webhook, json!({ "status": "delivered" }))
        .await;
    let waiting = erp
        .wait_delivery(&webhook, json!({ "status": "pending" }))
        .await;
    assert_eq!(waiting["error"], "waiting for the webhook's rate limit");
    assert_eq!(waiting["attemptCount"], 0);
    assert_eq!(receiver.requests().len(), 1);
}

async fn a_slow_rule_keeps_its_pace(site: Site) {
    let Site { erp, receiver, .. } = site;
    erp.webhook(&receiver.url("/hook"), &["sales.>"], limited(1, "500ms"))
        .await;

    publish(&erp, 0..7).await;

    let requests = receiver.wait_for(7, PATIENCE).await;
    let times = arrivals(&requests);
    let took = times[6] - times[0];
    assert!(took >= Duration::from_millis(2_700), "{took:?} for six");
    // Who only looked four times a second would need more.
    assert!(took <= Duration::from_millis(4_200), "{took:?} for six");
}

async fn an_ordered_webhook_keeps_its_order_and_its_limit(site: Site) {
    let Site { erp, receiver, .. } = site;
    let mut config = limited(10, "1s");
    config["ordering"] = json!({ "key": "'one'" });
    erp.webhook(&receiver.url("/hook"), &["sales.>"], config)
        .await;

    publish(&erp, 0..30).await;

    let requests = receiver.wait_for(30, PATIENCE).await;
    let events: Vec<String> = requests.iter().map(event).collect();
    assert_eq!(events.len(), 30);
    assert!(events.is_sorted(), "{events:?}");
    assert_within(&requests, 10.0, 10.0);
}

async fn a_removed_rule_lets_go_what_waits(site: Site) {
    let Site { erp, receiver, .. } = site;
    let url = receiver.url("/hook");
    let (webhook, _) = erp.webhook(&url, &["sales.>"], limited(1, "1h")).await;
    publish(&erp, 0..10).await;
    receiver.wait_for(1, PATIENCE).await;

    let body = json!({ "id": webhook, "config": { "url": url } });
    erp.ask("webhook.update", body).await;

    assert_eq!(receiver.wait_for(10, PATIENCE).await.len(), 10);
}

async fn what_waited_for_activation_goes_out_oldest_first_and_within_the_limit(site: Site) {
    let Site { erp, receiver, .. } = site;
    receiver.answer("/hook", Answer::status(410));
    let (webhook, _) = erp
        .webhook(&receiver.url("/hook"), &["sales.>"], limited(10, "1s"))
        .await;
    publish(&erp, 0..1).await;
    erp.wait_event("webhook.disabled", |_| true).await;
    for group in 0..4 {
        // One after the other, so that it is known which are older.
        publish(&erp, 1 + group * 10..11 + group * 10).await;
        erp.wait_all_settled(PATIENCE).await;
    }
    assert_eq!(receiver.requests().len(), 1);
    receiver.answer("/hook", Answer::status(200));

    erp.ask("webhook.activate", json!({ "id": webhook })).await;

    let requests = receiver.wait_for(42, PATIENCE).await;
    let groups: Vec<usize> = requests
        .iter()
        .map(|request| {
            let number = event(request).replace("e-", "");
            number.parse::<usize>().expect("a number").div_ceil(10)
        })
        .collect();
    assert_eq!(groups.len(), 42);
    // The first claim has ten tokens, of which the first group and the former one take all.
    assert!(groups[11..].is_sorted(), "{groups:?}");
    assert_within(&requests[1..], 10.0, 10.0);
}

/// How many requests were under way at a time, at least, when each takes this long.
pub(crate) fn most_at_a_time(requests: &[Received], took: Duration) -> usize {
    let times = arrivals(requests);
    let under_way = |at: &Instant| {
        let begun = |begin: &&Instant| *begin <= at && *at < **begin + took;
        times.iter().filter(begun).count()
    };
    times.iter().map(under_way).max().unwrap_or_default()
}

async fn a_webhook_gets_no_more_requests_at_a_time_than_it_allows(site: Site) {
    let Site { erp, receiver, .. } = site;
    let took = Duration::from_millis(60);
    receiver.answer("/hook", Answer::status(200).after(took));
    let url = receiver.url("/hook");
    let config = json!({ "maxInFlight": 2 });
    let (webhook, _) = erp.webhook(&url, &["sales.>"], config).await;

    publish(&erp, 0..30).await;
    let first = receiver.wait_for(30, PATIENCE).await;
    assert_eq!(most_at_a_time(&first, took), 2);

    let body = json!({ "id": webhook, "config": { "url": url, "maxInFlight": 5 } });
    erp.ask("webhook.update", body).await;
    publish(&erp, 30..90).await;
    let all = receiver.wait_for(90, PATIENCE).await;
    assert_eq!(most_at_a_time(&all[30..], took), 5);
}
