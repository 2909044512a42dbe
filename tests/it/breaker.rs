//! An endpoint that is down is left alone, by all workers; one that stays down is given up.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    PATIENCE,
    erp::{Erp, order},
    eventually,
    nats::NatsServer,
    postgres::Postgres,
    receiver::{Answer, Received, Receiver},
    worker::{Environment, Worker},
};

const WAIT: Duration = Duration::from_secs(2);

/// One delivery after the other would be too slow to open anything.
async fn publish(erp: &Erp, events: std::ops::Range<usize>) {
    let bodies = events.map(|n| order(&format!("e-{n}")));
    erp.publish_all("sales.order.created", bodies).await;
}

fn delivered(requests: &[Received], from: usize) -> usize {
    let mut ids: Vec<&str> = requests
        .iter()
        .skip(from)
        .map(|one| one.header("webhook-id"))
        .collect();
    ids.sort_unstable();
    ids.dedup();
    ids.len()
}

/// The webhook's endpoint, once its breaker is as wanted.
async fn wait_breaker(erp: &Erp, webhook: &str, breaker: &[&str]) -> Value {
    eventually(PATIENCE, async || {
        let found = erp.ask("webhook.get", json!({ "id": webhook })).await;
        let state = found["endpoint"]["breaker"].as_str().expect("a breaker");
        breaker.contains(&state).then(|| found["endpoint"].clone())
    })
    .await
}

/// The types of the webhook's events in the order of their versions, which have no gap.
async fn told(erp: &Erp, webhook: &str) -> Vec<String> {
    let events = erp.events().await;
    let ours: Vec<&Value> = events
        .iter()
        .filter(|event| event["subject"] == webhook)
        .collect();
    let versions: Vec<i64> = ours
        .iter()
        .map(|event| event["aggregateversion"].as_i64().expect("a version"))
        .collect();
    let expected: Vec<i64> = (1..).take(versions.len()).collect();
    assert_eq!(versions, expected, "{ours:?}");
    let kinds = ours.iter().filter_map(|event| event["type"].as_str());
    kinds.map(str::to_owned).collect()
}

#[tokio::test]
async fn a_dead_endpoint_is_left_alone_by_two_workers_and_tried_once_per_wait_until_it_recovers() {
    let (server, database) = (NatsServer::start().await, Postgres::database().await);
    let environment = Environment::new(&server.url(), &database.url())
        .with("BREAKER_OPEN_AFTER", "10")
        .with("BREAKER_WAIT", "2s")
        .with("BREAKER_MAX_WAIT", "2s");
    let mut workers = [Worker::start(&environment), Worker::start(&environment)];
    for worker in &mut workers {
        worker.wait_ready().await;
    }
    let erp = Erp::connect(&server.url()).await;
    let receiver = Receiver::start();
    receiver.answer("/a", Answer::status(500));
    let policy = json!({ "retryPolicy": { "schedule": vec!["100ms"; 50] } });
    let (webhook, _) = erp.webhook(&receiver.url("/a"), &["*"], policy).await;

    publish(&erp, 0..400).await;
    erp.wait_all_settled(PATIENCE).await;
    let ours = |event: &Value| event["subject"] == webhook;
    let opened = erp.wait_event("webhook.breaker_opened", ours).await;
    assert_eq!(opened["data"]["error"], "HTTP 500");
    assert_eq!(opened["data"]["webhookId"], webhook);
    assert!(opened["data"]["failures"].as_u64() >= Some(10));
    assert!(opened["data"]["openUntil"].is_string());
    let endpoint = wait_breaker(&erp, &webhook, &["open", "half_open"]).await;
    assert!(endpoint["openUntil"].is_string() && endpoint["failingSince"].is_string());
    let list = erp.ask("webhook.list", json!({})).await;
    assert_ne!(list["items"][0]["endpoint"]["breaker"], "closed");

    // Three probes; what was under way when it opened came before them.
    let openings = async |least: usize| {
        eventually(PATIENCE, async || {
            let told = told(&erp, &webhook).await;
            let opened = told.iter().filter(|k| *k == "webhook.breaker_opened");
            (opened.count() >= least).then_some(())
        })
        .await;
    };
    openings(2).await;
    let before = receiver.requests_to("/a").len();
    openings(4).await;
    let probes = receiver.requests_to("/a").split_off(before);
    assert!((2..=3).contains(&probes.len()), "{} requests", probes.len());
    for pair in probes.windows(2) {
        let apart = pair[1].at - pair[0].at;
        assert!(apart >= WAIT, "tried again after {apart:?}");
    }

    let (_, metrics) = workers[0].ops("/metrics").await;
    assert!(metrics.contains("integration_breakers_open 1"), "{metrics}");
    receiver.answer("/a", Answer::status(200));
    let dead = receiver.requests_to("/a").len();
    receiver
        .wait_until(PATIENCE, |all| delivered(all, dead) >= 400)
        .await;
    let ours = |event: &Value| event["subject"] == webhook;
    erp.wait_event("webhook.breaker_closed", ours).await;
    let endpoint = wait_breaker(&erp, &webhook, &["closed"]).await;
    assert_eq!(endpoint, json!({ "breaker": "closed", "failures": 0 }));
    told(&erp, &webhook).await;
    for worker in workers {
        assert_eq!(worker.terminate().await, 0);
    }
}

#[tokio::test]
async fn an_endpoint_that_asks_for_less_gets_less_before_it_is_left_alone() {
    let (server, folder) = (
        NatsServer::start().await,
        tempfile::tempdir().expect("a folder"),
    );
    let database = format!("sqlite://{}", folder.path().join("it.db").display());
    let mut worker = Worker::start(&Environment::new(&server.url(), &database));
    worker.wait_ready().await;
    let erp = Erp::connect(&server.url()).await;
    let receiver = Receiver::start();
    // It takes a single request at a time and says so; more than ten times in all.
    let busy = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    receiver.answer_with("/a", move |_, before| {
        let asked = busy.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        if asked < 14 && before < 14 {
            Answer::status(503).after(Duration::from_millis(50))
        } else {
            Answer::status(200)
        }
    });
    let policy = json!({ "retryPolicy": { "schedule": vec!["200ms"; 50] } });
    let (webhook, _) = erp.webhook(&receiver.url("/a"), &["*"], policy).await;

    publish(&erp, 0..60).await;
    receiver
        .wait_until(PATIENCE, |all| delivered(all, 14) >= 60)
        .await;

    erp.wait_delivery(&webhook, json!({ "status": "delivered" }))
        .await;
    let told = told(&erp, &webhook).await;
    assert!(
        !told.iter().any(|k| k == "webhook.breaker_opened"),
        "{told:?}"
    );

    // It takes none at all: less than one at a time cannot be asked for.
    receiver.answer("/a", Answer::status(503));
    publish(&erp, 60..120).await;
    let ours = |event: &Value| event["subject"] == webhook;
    let opened = erp.wait_event("webhook.breaker_opened", ours).await;
    assert_eq!(opened["data"]["error"], "HTTP 503");
    receiver.answer("/a", Answer::status(200));
    let so_far = receiver.requests().len();
    receiver
        .wait_until(PATIENCE, |all| delivered(all, so_far) >= 60)
        .await;
}

#[tokio::test]
async fn an_endpoint_that_stays_down_is_disabled_and_nothing_for_it_is_lost() {
    let (server, database) = (NatsServer::start().await, Postgres::database().await);
    let environment = Environment::new(&server.url(), &database.url()).with("DISABLE_AFTER", "3s");
    let mut worker = Worker::start(&environment);
    worker.wait_ready().await;
    let erp = Erp::connect(&server.url()).await;
    let receiver = Receiver::start();
    receiver.answer("/a", Answer::status(500));
    let policy = json!({ "retryPolicy": { "schedule": vec!["300ms"; 50] } });
    let (webhook, _) = erp.webhook(&receiver.url("/a"), &["*"], policy).await;
    publish(&erp, 0..50).await;

    let ours = |event: &Value| event["subject"] == webhook;
    let disabled = erp.wait_event("webhook.disabled", ours).await;
    assert_eq!(disabled["data"]["error"], "nothing but failures for 3s");
    let found = erp.ask("webhook.get", json!({ "id": webhook })).await;
    assert_eq!(found["status"], "error");
    assert_eq!(found["error"], "nothing but failures for 3s");
    publish(&erp, 50..100).await;
    erp.wait_all_settled(PATIENCE).await;
    let tried = receiver.requests_to("/a").len();

    receiver.answer("/a", Answer::status(200));
    erp.ask("webhook.activate", json!({ "id": webhook })).await;

    receiver
        .wait_until(PATIENCE, |all| delivered(all, tried) >= 100)
        .await;
    eventually(PATIENCE, async || {
        let events = erp.events().await;
        let delivered = events.iter().filter(|e| e["type"] == "webhook.triggered");
        (delivered.count() == 100).then_some(())
    })
    .await;
    told(&erp, &webhook).await;
    assert_eq!(worker.terminate().await, 0);
}
