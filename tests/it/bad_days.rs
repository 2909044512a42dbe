//! Days on which everything dies at the worst moment. Afterwards every published event has reached
//! every match at least once, each delivery is recorded once, and every change has its event.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};

use crate::support::{
    PATIENCE,
    erp::{Erp, order},
    nats::NatsServer,
    postgres::PostgresServer,
    receiver::{Answer, Received, Receiver},
    worker::{Environment, Worker},
};

/// Long enough for leases and leftovers of the dead to run out.
const RECOVERY: Duration = Duration::from_mins(2);

struct Site {
    server: NatsServer,
    database: PostgresServer,
    erp: Erp,
    receiver: Receiver,
    environment: Environment,
}

impl Site {
    async fn new() -> Self {
        let server = NatsServer::start().await;
        let database = PostgresServer::start().await;
        let environment = Environment::new(&server.url(), &database.url())
            // A message of a dead worker comes again after this, not after the default of minutes.
            .with("ERP_ACK_WAIT", "5s");
        let erp = Erp::connect(&server.url()).await;
        Self {
            server,
            database,
            erp,
            receiver: Receiver::start(),
            environment,
        }
    }

    async fn worker(&self) -> Worker {
        let mut worker = Worker::start(&self.environment);
        worker.wait_ready().await;
        worker
    }

    async fn publish(&self, events: std::ops::Range<usize>) {
        self.erp
            .publish_all(
                "sales.order.created",
                events.map(|n| order(&format!("e-{n}"))),
            )
            .await;
    }

    /// Waits until every event is delivered and told; then asserts what must hold.
    async fn assert_nothing_was_lost(&self, webhook: &str, events: usize) {
        let arrived = |all: &[Received]| distinct(all) == events;
        self.receiver.wait_until(RECOVERY, arrived).await;
        self.erp.wait_all_settled(RECOVERY).await;
        let told = self.wait_told(events).await;
        let deliveries = self.deliveries(webhook).await;
        assert_eq!(deliveries.len(), events, "each delivery is recorded once");
        for (id, delivery) in &deliveries {
            assert_eq!(delivery["status"], "delivered", "{delivery}");
            let versions = &told[id];
            let expected: Vec<i64> = (1..).take(versions.len()).collect();
            assert_eq!(versions, &expected, "the versions of {id} have no gap");
        }
        for request in self.receiver.requests() {
            let id = request.header("webhook-id");
            let delivery = deliveries.get(id).expect("a request belongs to a delivery");
            assert_eq!(request.json()["data"]["orderId"], delivery["eventId"]);
        }
    }

    /// The versions of every delivery's events, by delivery, once all are told to be delivered.
    async fn wait_told(&self, events: usize) -> HashMap<String, Vec<i64>> {
        crate::support::eventually(RECOVERY, async || {
            let mut versions: HashMap<String, BTreeMap<i64, Value>> = HashMap::new();
            let mut delivered = 0;
            for event in self.erp.events().await {
                let kind = event["type"].as_str()?.to_owned();
                if !["webhook.triggered", "webhook.failed", "webhook.exhausted"]
                    .contains(&kind.as_str())
                {
                    continue;
                }
                let version = event["aggregateversion"].as_i64()?;
                let of = versions
                    .entry(event["subject"].as_str()?.to_owned())
                    .or_default();
                if let Some(id) = of.insert(version, event["id"].clone()) {
                    assert_eq!(id, event["id"], "a repeated event has the same id");
                } else if kind == "webhook.triggered" {
                    delivered += 1;
                }
            }
            let versions = versions
                .into_iter()
                .map(|(id, of)| (id, of.into_keys().collect()));
            (delivered == events).then(|| versions.collect())
        })
        .await
    }

    async fn deliveries(&self, webhook: &str) -> HashMap<String, Value> {
        let mut all = HashMap::new();
        let mut cursor = Value::Null;
        loop {
            let mut body = json!({ "webhookId": webhook, "limit": 100 });
            if cursor.is_string() {
                body["cursor"] = cursor;
            }
            let page = self.erp.ask("delivery.list", body).await;
            for item in page["items"].as_array().expect("items") {
                let id = item["id"].as_str().expect("an id").to_owned();
                assert!(
                    all.insert(id, item.clone()).is_none(),
                    "listed twice: {item}"
                );
            }
            cursor = page["nextCursor"].clone();
            if cursor.is_null() {
                return all;
            }
        }
    }
}

fn distinct(requests: &[Received]) -> usize {
    let mut ids: Vec<_> = requests
        .iter()
        .map(|one| one.header("webhook-id"))
        .collect();
    ids.sort_unstable();
    ids.dedup();
    ids.len()
}

#[tokio::test]
async fn a_worker_is_killed_in_mid_batch_twice() {
    let site = Site::new().await;
    let mut worker = site.worker().await;
    let slow = Answer::status(200).after(Duration::from_millis(3));
    site.receiver.answer("/a", slow);
    let (webhook, _) = site
        .erp
        .webhook(&site.receiver.url("/a"), &["*"], json!({}))
        .await;
    site.publish(0..1500).await;
    for so_far in [200, 700] {
        site.receiver
            .wait_until(PATIENCE, |all| distinct(all) >= so_far)
            .await;
        worker.kill9();
        worker = site.worker().await;
    }

    site.assert_nothing_was_lost(&webhook, 1500).await;
    assert_eq!(worker.terminate().await, 0);
}

#[tokio::test]
async fn one_of_two_workers_is_killed() {
    let site = Site::new().await;
    let (doomed, _other) = (site.worker().await, site.worker().await);
    site.receiver.answer_with("/a", |_, before| {
        let status = if before % 7 == 0 { 500 } else { 200 };
        Answer::status(status).after(Duration::from_millis(3))
    });
    let policy = json!({ "retryPolicy": { "maxRetries": 10, "backoffMs": 100 } });
    let (webhook, _) = site
        .erp
        .webhook(&site.receiver.url("/a"), &["*"], policy)
        .await;
    site.publish(0..1000).await;
    site.receiver
        .wait_until(PATIENCE, |all| distinct(all) >= 300)
        .await;

    doomed.kill9();

    site.assert_nothing_was_lost(&webhook, 1000).await;
}

#[tokio::test]
async fn the_nats_server_is_restarted_and_killed() {
    let mut site = Site::new().await;
    let _worker = site.worker().await;
    site.receiver
        .answer("/a", Answer::status(200).after(Duration::from_millis(2)));
    let (webhook, _) = site
        .erp
        .webhook(&site.receiver.url("/a"), &["*"], json!({}))
        .await;
    site.publish(0..500).await;
    site.receiver
        .wait_until(PATIENCE, |all| distinct(all) >= 50)
        .await;
    site.server.restart().await;
    site.publish(500..800).await;
    site.receiver
        .wait_until(PATIENCE, |all| distinct(all) >= 600)
        .await;
    site.server.stop().await;
    site.server.restart().await;
    for n in 800..900 {
        site.erp.order_created(&format!("e-{n}")).await;
    }

    site.assert_nothing_was_lost(&webhook, 900).await;
}

#[tokio::test]
async fn the_database_is_stopped_and_crashes() {
    let site = Site::new().await;
    let _worker = site.worker().await;
    site.receiver
        .answer("/a", Answer::status(200).after(Duration::from_millis(2)));
    let (webhook, _) = site
        .erp
        .webhook(&site.receiver.url("/a"), &["*"], json!({}))
        .await;
    site.publish(0..500).await;
    site.receiver
        .wait_until(PATIENCE, |all| distinct(all) >= 50)
        .await;
    site.database.stop().await;
    site.publish(500..800).await;
    site.database.restart().await;
    site.receiver
        .wait_until(RECOVERY, |all| distinct(all) >= 600)
        .await;
    site.database.crash().await;
    site.publish(800..1000).await;
    site.database.restart().await;

    site.assert_nothing_was_lost(&webhook, 1000).await;
}

#[tokio::test]
async fn the_database_is_full_of_locks_for_ten_seconds() {
    let site = Site::new().await;
    let _worker = site.worker().await;
    let (webhook, _) = site
        .erp
        .webhook(&site.receiver.url("/a"), &["*"], json!({}))
        .await;
    site.publish(0..100).await;
    site.receiver
        .wait_until(PATIENCE, |all| distinct(all) >= 100)
        .await;
    let mut blocker = PgConnection::connect(&site.database.url())
        .await
        .expect("a connection");
    let mut transaction = blocker.begin().await.expect("a transaction");
    sqlx::query("LOCK TABLE deliveries, outbox, registry_state IN ACCESS EXCLUSIVE MODE")
        .execute(&mut *transaction)
        .await
        .expect("the locks");
    site.publish(100..400).await;

    tokio::time::sleep(Duration::from_secs(10)).await;
    transaction.rollback().await.expect("the locks go");

    site.assert_nothing_was_lost(&webhook, 400).await;
}

#[tokio::test]
async fn the_receiver_is_dead_for_a_while() {
    let mut site = Site::new().await;
    let _worker = site.worker().await;
    // So that it is soon tried again once it is back, however long it was dead.
    let policy = json!({ "retryPolicy": { "schedule": vec!["2s"; 50] }, "timeout": 1000 });
    let (webhook, _) = site
        .erp
        .webhook(&site.receiver.url("/a"), &["*"], policy)
        .await;
    site.publish(0..100).await;
    site.receiver
        .wait_until(PATIENCE, |all| distinct(all) >= 100)
        .await;
    site.receiver.stop();
    site.publish(100..600).await;
    // Everything is taken in, and the receiver is known to be dead, before it comes back.
    site.erp.wait_all_settled(RECOVERY).await;
    let ours = |event: &Value| event["subject"] == webhook;
    site.erp.wait_event("webhook.breaker_opened", ours).await;
    site.receiver.restart();

    site.assert_nothing_was_lost(&webhook, 600).await;
}
