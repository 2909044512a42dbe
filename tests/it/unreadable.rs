//! Webhooks whose rows this version cannot read, as after a newer one wrote them.

use std::path::Path;

use serde_json::json;
use sqlx::{Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};

use crate::support::{
    PATIENCE,
    erp::Erp,
    nats::NatsServer,
    receiver::{Received, Receiver},
    worker::{Environment, Worker},
};

async fn execute(file: &Path, sql: &'static str) {
    let options = SqliteConnectOptions::new().filename(file);
    let mut database = SqliteConnection::connect_with(&options)
        .await
        .expect("it opens");
    sqlx::query(sql)
        .execute(&mut database)
        .await
        .expect("it is valid");
    database.close().await.expect("it closes");
}

async fn worker(environment: &Environment) -> Worker {
    let mut worker = Worker::start(environment);
    worker.wait_ready().await;
    worker
}

fn reached(path: &str, all: &[Received]) -> usize {
    all.iter().filter(|one| one.path == path).count()
}

#[tokio::test]
async fn nothing_meant_for_a_webhook_that_cannot_be_read_is_lost_and_others_go_on() {
    let server = NatsServer::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("it.db");
    let database = format!("sqlite://{}", file.display());
    let environment = Environment::new(&server.url(), &database).with("ERP_ACK_WAIT", "5s");
    let first = worker(&environment).await;
    let erp = Erp::connect(&server.url()).await;
    let receiver = Receiver::start();
    let (newer, _) = erp
        .webhook(&receiver.url("/newer"), &["sales.>"], json!({}))
        .await;
    erp.webhook(&receiver.url("/whole"), &["sales.>"], json!({}))
        .await;
    first.terminate().await;
    execute(
        &file,
        "UPDATE webhooks SET status = 'resting' WHERE config LIKE '%/newer%'",
    )
    .await;

    let second = worker(&environment).await;
    erp.order_created("e-1").await;
    receiver
        .wait_until(PATIENCE, |all| reached("/whole", all) == 1)
        .await;
    erp.wait_all_settled(PATIENCE).await;
    let parked = erp
        .wait_delivery(&newer, json!({"status": "pending"}))
        .await;
    assert_eq!(parked["attemptCount"], 0, "{parked}");
    second.terminate().await;
    execute(
        &file,
        "UPDATE webhooks SET status = 'active', events = '[\"newer(\\\" x\"]'
         WHERE config LIKE '%/newer%'",
    )
    .await;
    // The wait for what could not be used.
    execute(
        &file,
        "UPDATE deliveries SET due_at = 0 WHERE status = 'pending'",
    )
    .await;

    let third = worker(&environment).await;
    erp.order_created("e-2").await;
    erp.publish("sales.order.created", "").await;
    // The dead letter: the event before it was looked at.
    erp.wait_event("deadletter.added", |_| true).await;
    assert_eq!(reached("/whole", &receiver.requests()), 1, "e-2 is held");
    third.terminate().await;
    execute(
        &file,
        "UPDATE webhooks SET events = '[\"sales.>\"]' WHERE config LIKE '%/newer%'",
    )
    .await;
    execute(
        &file,
        "UPDATE deliveries SET due_at = 0 WHERE status = 'pending'",
    )
    .await;

    let _fourth = worker(&environment).await;
    let all_there = |all: &[Received]| reached("/whole", all) == 2 && reached("/newer", all) == 2;
    receiver.wait_until(PATIENCE + PATIENCE, all_there).await;
}
