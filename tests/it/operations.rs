//! What an operator relies on: waiting at the start, health, metrics, several workers.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use url::Url;

use crate::support::{
    PATIENCE,
    erp::{Erp, order},
    nats::NatsServer,
    postgres::{Postgres, PostgresServer},
    receiver::Receiver,
    worker::{Environment, Worker},
};

#[tokio::test]
async fn a_worker_waits_for_nats_and_the_database_and_says_so() {
    let mut server = NatsServer::start().await;
    let database = PostgresServer::start().await;
    server.stop().await;
    database.stop().await;
    let mut worker = Worker::start(&Environment::new(&server.url(), &database.url()));
    worker
        .output()
        .wait_for(PATIENCE, |line| {
            line.contains("waiting for the database").then_some(())
        })
        .await;
    assert_eq!(worker.ops("/live").await.0, 200);
    let (status, reasons) = worker.ops("/ready").await;
    assert_eq!(status, 503);
    assert!(reasons.contains("database"), "{reasons}");
    database.restart().await;
    worker
        .output()
        .wait_for(PATIENCE, |line| {
            line.contains("waiting for NATS").then_some(())
        })
        .await;

    server.restart().await;

    worker.wait_ready().await;
    assert_eq!(worker.terminate().await, 0);
}

#[tokio::test]
async fn a_worker_that_still_waits_ends_at_once() {
    let (mut server, database) = (NatsServer::start().await, Postgres::database().await);
    server.stop().await;
    let worker = Worker::start(&Environment::new(&server.url(), &database.url()));
    worker
        .output()
        .wait_for(PATIENCE, |line| {
            line.contains("waiting for NATS").then_some(())
        })
        .await;

    assert_eq!(worker.terminate().await, 0);
}

#[tokio::test]
async fn health_and_metrics_tell_how_it_is() {
    let (server, database) = (NatsServer::start().await, Postgres::database().await);
    let mut worker = Worker::start(&Environment::new(&server.url(), &database.url()));
    worker.wait_ready().await;
    let (erp, receiver) = (Erp::connect(&server.url()).await, Receiver::start());
    erp.webhook(&receiver.url("/a"), &["*"], json!({})).await;
    erp.order_created("e-1").await;
    receiver.wait_for(1, PATIENCE).await;
    erp.wait_event("webhook.triggered", |_| true).await;

    let (status, health) = worker.ops("/health").await;
    let (_, metrics) = worker.ops("/metrics").await;

    assert_eq!(status, 200);
    let health: Value = serde_json::from_str(&health).expect("JSON");
    assert_eq!(health["status"], "ready", "{health}");
    for part in ["intake", "parked", "relay"] {
        assert_eq!(health["loops"][part]["stalled"], false, "{health}");
    }
    for metric in [
        "integration_events_total{result=\"accepted\"} 1",
        "integration_delivery_attempts_total{lane=\"fast\",outcome=\"delivered\"} 1",
        "integration_delivery_attempt_duration_seconds_bucket",
        "integration_deliveries_parked 0",
        "integration_outbox_oldest_seconds",
        "integration_registry_version",
        "integration_build_info",
        "integration_commands_total{",
    ] {
        assert!(
            metrics.contains(metric),
            "{metric} is missing in\n{metrics}"
        );
    }
    assert_eq!(worker.ops("/other").await.0, 404);
}

#[tokio::test]
async fn two_workers_share_the_events_and_both_know_a_webhook_at_once() {
    let (server, database) = (NatsServer::start().await, Postgres::database().await);
    let environment = Environment::new(&server.url(), &database.url());
    let mut workers = [Worker::start(&environment), Worker::start(&environment)];
    for worker in &mut workers {
        worker.wait_ready().await;
    }
    let (erp, receiver) = (Erp::connect(&server.url()).await, Receiver::start());
    for round in 0..30 {
        let path = format!("/{round}");
        erp.webhook(&receiver.url(&path), &["sales.order.created"], json!({}))
            .await;
        erp.order_created(&format!("e-{round}")).await;
        // A webhook may get an event from before its creation, as long as nobody has taken that.
        receiver
            .wait_until(PATIENCE, |all| all.iter().any(|one| one.path == path))
            .await;
    }
    let first: usize = (1..=30).sum();
    receiver.wait_for(first, PATIENCE).await;
    let bodies = (0..500).map(|n| order(&format!("many-{n}")));
    erp.publish_all("sales.order.created", bodies).await;

    let all = receiver.wait_for(first + 500 * 30, PATIENCE).await;

    let mut ids: Vec<_> = all.iter().map(|one| one.header("webhook-id")).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), first + 500 * 30, "no delivery was made twice");
    for worker in &mut workers {
        let metrics = worker.ops("/metrics").await.1;
        let accepted = metrics.lines().find_map(|line| {
            line.strip_prefix("integration_events_total{result=\"accepted\"} ")?
                .parse::<u32>()
                .ok()
        });
        assert!(accepted.expect("it counts") > 0, "both have worked");
    }
}

#[tokio::test]
async fn two_installations_share_one_nats() {
    let server = NatsServer::start().await;
    let (one, two) = (Postgres::database().await, Postgres::database().await);
    let environment = Environment::new(&server.url(), &one.url());
    let mut first = Worker::start(&environment);
    let environment =
        Environment::new(&server.url(), &two.url()).with("NATS_SUBJECT_PREFIX", "site-2.x");
    let mut second = Worker::start(&environment);
    first.wait_ready().await;
    second.wait_ready().await;
    let erp = Erp::connect(&server.url()).await;
    let receiver = Receiver::start();
    erp.webhook(&receiver.url("/one"), &["*"], json!({})).await;
    let request = |action: &str, body: Value| {
        erp.client
            .request(format!("site-2.x.api.{action}"), body.to_string().into())
    };
    let integration = json!({ "name": "i", "type": "webhook", "config": {} });
    let answer = request("integration.create", integration)
        .await
        .expect("an answer");
    let answer: Value = serde_json::from_slice(&answer.payload).expect("JSON");
    let config = json!({ "url": receiver.url("/two") });
    let webhook = json!({
        "name": "w", "integrationId": answer["data"]["id"], "events": ["*"], "config": config,
    });
    request("webhook.create", webhook).await.expect("an answer");

    erp.order_created("e-1").await;

    let all = receiver.wait_for(2, PATIENCE).await;
    let mut paths: Vec<_> = all.iter().map(|one| one.path.as_str()).collect();
    paths.sort_unstable();
    assert_eq!(paths, ["/one", "/two"]);
    erp.jetstream
        .get_stream("SITE-2_X_EVENTS")
        .await
        .expect("its own stream");
}

#[tokio::test]
async fn every_fault_of_the_configuration_is_told_at_once() {
    let environment = Environment::new("http://nats", "mysql://x")
        .with("OPS_ADDR", "nowhere")
        .with("MAX_IN_FLIGHT", "many");
    let mut worker = Worker::command(&["run"], &environment);

    assert_eq!(worker.exit_code(PATIENCE).await, 78);

    let text = worker.output().text();
    for variable in ["NATS_URL", "DATABASE_URL", "OPS_ADDR", "MAX_IN_FLIGHT"] {
        assert!(text.contains(variable), "{variable} is missing in\n{text}");
    }
}

#[tokio::test]
async fn a_missing_encryption_key_is_a_fault_of_the_configuration() {
    let (server, database) = (NatsServer::start().await, Postgres::database().await);
    let environment = Environment::new(&server.url(), &database.url());
    let mut worker = Worker::start(&environment);
    worker.wait_ready().await;
    let erp = Erp::connect(&server.url()).await;
    erp.webhook("https://example.com/a", &["*"], json!({}))
        .await;
    assert_eq!(worker.terminate().await, 0);
    let other = "other:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let mut worker = Worker::start(&environment.with("ENCRYPTION_KEYS", other));

    assert_eq!(worker.exit_code(PATIENCE).await, 78);

    let text = worker.output().text();
    assert!(
        text.contains("ENCRYPTION_KEYS") && text.contains("test"),
        "{text}"
    );
}

#[tokio::test]
async fn a_user_or_database_that_the_server_does_not_know_is_a_fault_of_the_configuration() {
    let database = Postgres::database().await;
    let mut url: Url = database.url().parse().expect("a URL");
    let there = url.path().to_owned();
    for (user, path, reason) in [
        ("nobody_known", there.as_str(), "nobody_known"),
        ("postgres", "/nowhere", "nowhere"),
    ] {
        url.set_username(user).expect("it can have one");
        url.set_path(path);
        for command in ["run", "migrate"] {
            let environment = Environment::new("nats://127.0.0.1:1", url.as_str());
            let mut worker = Worker::command(&[command], &environment);

            let code = worker.exit_code(PATIENCE).await;

            let text = worker.output().text();
            assert_eq!(code, 78, "{command}: {text}");
            for part in ["DATABASE_URL: ", reason] {
                assert!(text.contains(part), "{part} in {text}");
            }
        }
    }
}

#[tokio::test]
async fn a_reloaded_key_ring_without_a_key_that_is_needed_is_not_taken() {
    let (server, database) = (NatsServer::start().await, Postgres::database().await);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("keys");
    let line = |id: &str, byte: u8| format!("{id}:{}\n", STANDARD.encode([byte; 32]));
    std::fs::write(&file, line("k1", 1)).expect("it is ours");
    let environment = Environment::new(&server.url(), &database.url())
        .with("ENCRYPTION_KEYS", "")
        .with("ENCRYPTION_KEYS_FILE", &file.to_string_lossy());
    let mut worker = Worker::start(&environment);
    worker.wait_ready().await;
    let (erp, receiver) = (Erp::connect(&server.url()).await, Receiver::start());
    erp.webhook(&receiver.url("/a"), &["*"], json!({})).await;
    std::fs::write(&file, line("k2", 2)).expect("it is ours");
    worker.signal("HUP");
    let told = |line: &str| (line.contains("k1") && line.contains("former ones")).then_some(());
    worker.output().wait_for(PATIENCE, told).await;
    erp.webhook(&receiver.url("/b"), &["*"], json!({})).await;
    erp.order_created("e-1").await;
    receiver.wait_for(2, PATIENCE).await;

    std::fs::write(&file, line("k2", 2) + &line("k1", 1)).expect("it is ours");
    worker.signal("HUP");

    let told = |line: &str| line.contains("were read again").then_some(());
    worker.output().wait_for(PATIENCE, told).await;
}
