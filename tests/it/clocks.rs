//! The database's clock and the worker's disagree.

use serde_json::json;

use crate::support::{
    PATIENCE,
    erp::Erp,
    nats::NatsServer,
    postgres::{Postgres, execute},
    receiver::{Answer, Receiver},
    worker::{Environment, Worker},
};

/// From now on this database shows a time that is an hour ahead.
async fn set_ahead(url: &str) {
    let (_, name) = url.rsplit_once('/').expect("the URL names a database");
    for statement in [
        "CREATE SCHEMA ahead",
        "CREATE FUNCTION ahead.clock_timestamp() RETURNS timestamptz LANGUAGE sql
         AS $$ SELECT pg_catalog.clock_timestamp() + interval '1 hour' $$",
        &format!("ALTER DATABASE {name} SET search_path = ahead, pg_catalog"),
    ] {
        execute(url, statement).await;
    }
}

/// Fails unless the query answers true.
async fn holds(url: &str, query: &str) {
    let statement = format!("DO $$ BEGIN ASSERT ({query}); END $$");
    execute(url, &statement).await;
}

#[tokio::test]
async fn leases_and_due_times_follow_the_databases_clock() {
    let (server, database) = (NatsServer::start().await, Postgres::database().await);
    let url = database.url();
    set_ahead(&url).await;
    let mut worker = Worker::start(&Environment::new(&server.url(), &url));
    worker.wait_ready().await;
    let (erp, receiver) = (Erp::connect(&server.url()).await, Receiver::start());
    receiver.answer_in_turn("/a", vec![Answer::status(500), Answer::hang()]);
    let policy = json!({ "timeout": 60_000, "retryPolicy": { "schedule": ["1s"] } });
    erp.webhook(&receiver.url("/a"), &["*"], policy).await;

    erp.order_created("e-1").await;

    let failed = erp.wait_event("webhook.failed", |_| true).await;
    let time = |value: &serde_json::Value| {
        let text = value.as_str().expect("a time");
        chrono::DateTime::parse_from_rfc3339(text).expect("RFC 3339")
    };
    let wait = time(&failed["data"]["nextAttemptAt"]) - time(&failed["time"]);
    assert!((3590..3630).contains(&wait.num_seconds()), "{wait}");
    // The second attempt is made about a second later all the same, under a lease of 30 s.
    receiver.wait_for(2, PATIENCE).await;
    holds(
        &url,
        "SELECT due_at > now() + interval '1 hour 10 seconds'
             AND due_at < now() + interval '1 hour 31 seconds'
         FROM deliveries WHERE status = 'pending'",
    )
    .await;
    holds(
        &url,
        "SELECT lease_until > now() + interval '1 hour 10 seconds'
             AND lease_until < now() + interval '1 hour 31 seconds'
         FROM outbox_relay",
    )
    .await;
    let (_, metrics) = worker.ops("/metrics").await;
    let skew = metrics
        .lines()
        .find_map(|line| line.strip_prefix("integration_clock_skew_seconds "));
    let skew: f64 = skew.expect("it is told").parse().expect("a number");
    assert!((-3601.0..-3599.0).contains(&skew), "{skew}");
}
