//! Every kind of webhook at once, while workers, NATS and the database die: in the end everything has
//! arrived, in order where that is promised, and every change was told once.

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
    postgres::PostgresServer,
    receiver::{Answer, Received, Receiver},
    worker::{Environment, Worker},
};

/// Long enough for leases and leftovers of the dead to run out.
const RECOVERY: Duration = Duration::from_mins(3);
/// How many customers, each with an order of its own.
const KEYS: usize = 20;

struct Mix {
    server: NatsServer,
    database: PostgresServer,
    erp: Erp,
    receiver: Receiver,
    environment: Environment,
    workers: Vec<Worker>,
    /// The webhook's id, by the path of its endpoint.
    webhooks: BTreeMap<&'static str, String>,
}

fn kinds() -> [(&'static str, &'static str, Value); 10] {
    let order = "sales.order.created";
    let retry = json!({ "maxRetries": 10, "backoffMs": 100 });
    [
        ("/plain", order, json!({})),
        ("/failing", order, json!({})),
        ("/v1a", order, json!({ "signing": "v1a", "format": "cloudevents" })),
        ("/ordered", order, json!({ "ordering": { "key": "data.customer" } })),
        (
            "/blocking",
            order,
            json!({ "ordering": { "key": "data.customer", "onExhausted": "block" }, "maxInFlight": 4 }),
        ),
        ("/limited", order, json!({ "rateLimit": { "requests": 100, "per": "1s" } })),
        (
            "/paced",
            order,
            json!({ "ordering": { "key": "data.customer" }, "rateLimit": { "requests": 100, "per": "1s" } }),
        ),
        (
            "/batched",
            order,
            json!({ "batch": { "maxEvents": 50, "maxWait": "200ms" } }),
        ),
        (
            "/asking",
            order,
            json!({ "response": { "event": "partner.order.taken", "data": "{'order': data.orderId, 'n': response.n}" } }),
        ),
        ("/answers", "partner.order.taken", json!({ "filter": "data.n >= 0" })),
    ]
    .map(|(path, events, mut config)| {
        config["retryPolicy"] = retry.clone();
        (path, events, config)
    })
}

fn event(n: usize) -> String {
    json!({
        "eventType": "sales.order.created", "eventId": format!("e-{n}"),
        "payload": { "orderId": format!("e-{n}"), "customer": format!("c-{}", n % KEYS), "n": n },
    })
    .to_string()
}

impl Mix {
    async fn new() -> Self {
        let server = NatsServer::start().await;
        let database = PostgresServer::start().await;
        let environment =
            Environment::new(&server.url(), &database.url()).with("ERP_ACK_WAIT", "5s");
        let erp = Erp::connect(&server.url()).await;
        let mut mix = Self {
            receiver: Receiver::start(),
            server,
            database,
            erp,
            environment,
            workers: Vec::new(),
            webhooks: BTreeMap::new(),
        };
        mix.start_worker();
        mix.workers[0].wait_ready().await;
        mix.start_worker();
        mix.start_worker();
        mix.script();
        for (path, events, config) in kinds() {
            let url = mix.receiver.url(path);
            let made = mix.erp.new_webhook(&url, &[events], config).await;
            let id = made["id"].as_str().expect("an id").to_owned();
            mix.webhooks.insert(path, id);
        }
        mix
    }

    fn start_worker(&mut self) {
        self.workers.push(Worker::start(&self.environment));
    }

    /// Most endpoints fail now and then.
    fn script(&self) {
        for (path, every) in [
            ("/failing", 4),
            ("/ordered", 23),
            ("/blocking", 31),
            ("/batched", 9),
        ] {
            self.receiver.answer_with(path, move |_, before| {
                let status = if before % every == 1 { 500 } else { 200 };
                Answer::status(status).after(Duration::from_millis(2))
            });
        }
        self.receiver.answer_with("/asking", |request, _| {
            let answer = json!({ "n": request.json()["data"]["n"] });
            Answer::status(200).body(answer.to_string())
        });
    }

    /// Kills the `which`th worker, and starts another one.
    fn kill_worker(&mut self, which: usize) {
        let which = which % self.workers.len();
        self.workers.swap_remove(which).kill9();
        self.start_worker();
    }

    async fn publish(&self, events: std::ops::Range<usize>) {
        let bodies = events.map(event);
        self.erp.publish_all("sales.order.created", bodies).await;
    }

    /// Waits until so many requests more came.
    async fn some_arrived(&self, more: usize) {
        let before = self.receiver.requests().len();
        self.receiver
            .wait_until(RECOVERY, |all| all.len() >= before + more)
            .await;
    }

    /// Waits until nothing waits any more, anywhere.
    async fn wait_idle(&self, events: usize) {
        for path in self.webhooks.keys() {
            let all_seen = |all: &[Received]| first_seen(all, path).len() >= events;
            self.receiver.wait_until(RECOVERY, all_seen).await;
        }
        self.erp.wait_all_settled(RECOVERY).await;
        let mut last = Value::Null;
        let mut settled = 0;
        eventually(RECOVERY, async || {
            last = self.erp.ask("status.get", json!({})).await;
            settled = if last["parked"] == 0 && last["outbox"] == 0 {
                settled + 1
            } else {
                0
            };
            (settled > 10).then_some(())
        })
        .await;
    }

    async fn deliveries(&self, webhook: &str) -> BTreeMap<String, Value> {
        let mut all = BTreeMap::new();
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

    /// What must hold once everything is idle.
    async fn assert_all_arrived(&self, events: usize) {
        let told = told(&self.erp.events().await);
        let requests = self.receiver.requests();
        for (path, webhook) in &self.webhooks {
            let seen = first_seen(&requests, path);
            let distinct: BTreeSet<_> = seen.iter().collect();
            assert_eq!(distinct.len(), events, "{path}: every event arrived");
            let deliveries = self.deliveries(webhook).await;
            assert_eq!(deliveries.len(), events, "{path}: each is recorded once");
            for (id, delivery) in &deliveries {
                assert_eq!(delivery["status"], "delivered", "{path}: {delivery}");
                let none = BTreeMap::new();
                let versions = told.get(id).unwrap_or(&none);
                let expected: Vec<i64> = (1..).take(versions.len()).collect();
                let told: Vec<i64> = versions.keys().copied().collect();
                assert_eq!(told, expected, "{path}: the versions of {id}: {versions:?}");
                let triggered = versions
                    .values()
                    .filter(|(kind, _)| kind == "webhook.triggered");
                assert_eq!(
                    triggered.count(),
                    1,
                    "{path}: {id} is told once: {versions:?}"
                );
                assert_eq!(
                    versions.len(),
                    usize::try_from(delivery["attemptCount"].as_u64().expect("a count"))
                        .expect("few"),
                    "{path}: one event an attempt: {delivery} {versions:?}"
                );
            }
        }
        for path in ["/ordered", "/blocking", "/paced"] {
            let mut of_key: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
            for n in first_seen(&requests, path) {
                of_key.entry(n % KEYS).or_default().push(n);
            }
            for (key, numbers) in of_key {
                assert!(numbers.is_sorted(), "{path}: key {key}: {numbers:?}");
            }
        }
    }
}

/// The kind and id of each event about a delivery, by its version, by the delivery.
fn told(events: &[Value]) -> BTreeMap<String, BTreeMap<i64, (String, String)>> {
    let mut told: BTreeMap<String, BTreeMap<i64, (String, String)>> = BTreeMap::new();
    for event in events {
        let text = |name: &str| event[name].as_str().expect("a text").to_owned();
        let kinds = ["webhook.triggered", "webhook.failed", "webhook.exhausted"];
        if !kinds.contains(&text("type").as_str()) {
            continue;
        }
        let version = event["aggregateversion"].as_i64().expect("a version");
        let this = (text("type"), text("id"));
        let of = told.entry(text("subject")).or_default();
        if let Some(other) = of.insert(version, this.clone()) {
            assert_eq!(other, this, "a repeated event is the same");
        }
    }
    told
}

/// The numbers of the events that came to a path, each where it came first.
fn first_seen(requests: &[Received], path: &str) -> Vec<usize> {
    let mut seen = BTreeSet::new();
    let mut order = Vec::new();
    for request in requests.iter().filter(|request| request.path == path) {
        let body = request.json();
        let several = body.as_array().cloned().unwrap_or_else(|| vec![body]);
        for event in several {
            let number = event["data"]["n"].as_u64().expect("a number");
            let number = usize::try_from(number).expect("small");
            if seen.insert(number) {
                order.push(number);
            }
        }
    }
    order
}

#[tokio::test]
async fn everything_arrives_while_workers_nats_and_the_database_die() {
    let mut mix = Mix::new().await;
    for round in 0..10 {
        mix.publish(round * 60..round * 60 + 60).await;
        mix.some_arrived(150).await;
        match round {
            3 => {
                mix.server.kill();
                mix.server.restart().await;
            }
            6 => mix.database.restart().await,
            8 => {
                mix.database.crash().await;
                mix.database.restart().await;
            }
            _ => {}
        }
        mix.kill_worker(round * 7 % 5);
    }

    mix.wait_idle(600).await;

    mix.assert_all_arrived(600).await;
}

#[tokio::test]
async fn a_worker_that_is_ended_in_the_middle_of_everything_ends_well() {
    let mut mix = Mix::new().await;
    for round in 0..4 {
        mix.publish(round * 60..round * 60 + 60).await;
        mix.some_arrived(150).await;
        let before = tokio::time::Instant::now();
        assert_eq!(mix.workers.swap_remove(0).terminate().await, 0);
        let took = before.elapsed();
        assert!(took < Duration::from_secs(25), "it took {took:?}");
        mix.start_worker();
    }

    mix.wait_idle(240).await;

    mix.assert_all_arrived(240).await;
}

#[tokio::test]
async fn what_waits_goes_out_whatever_the_webhook_becomes_meanwhile() {
    let mix = Mix::new().await;
    let url = mix.receiver.url("/changing");
    mix.receiver.answer_with("/changing", |_, before| {
        let status = if before % 5 == 1 { 500 } else { 200 };
        Answer::status(status).after(Duration::from_millis(5))
    });
    let configs = [
        json!({ "ordering": { "key": "data.customer" } }),
        json!({}),
        json!({ "batch": { "maxEvents": 10, "maxWait": "1s" } }),
        json!({ "rateLimit": { "requests": 20, "per": "1s" } }),
        json!({ "ordering": { "key": "'all'", "onExhausted": "block" }, "rateLimit": { "requests": 30, "per": "1s" } }),
        json!({ "batch": { "maxEvents": 7, "maxWait": "5s" }, "rateLimit": { "requests": 10, "per": "1s" } }),
        json!({ "ordering": { "key": "data.orderId" }, "maxInFlight": 1 }),
        json!({ "batch": { "maxEvents": 1000, "maxWait": "10s" } }),
        json!({ "maxInFlight": 2 }),
    ]
    .map(|mut config| {
        config["retryPolicy"] = json!({ "maxRetries": 10, "backoffMs": 100 });
        config["url"] = json!(url);
        config
    });
    let first = configs[0].clone();
    let (webhook, _) = mix.erp.webhook(&url, &["sales.order.created"], first).await;
    for (round, config) in configs.iter().enumerate() {
        let body = json!({ "id": webhook, "config": config });
        mix.erp.ask("webhook.update", body).await;
        mix.publish(round * 20..round * 20 + 20).await;
    }

    mix.receiver
        .wait_until(RECOVERY, |all| {
            first_seen(all, "/changing").len() == configs.len() * 20
        })
        .await;
    eventually(PATIENCE, async || {
        let pending = json!({ "webhookId": webhook, "status": "pending" });
        let pending = mix.erp.ask("delivery.list", pending).await;
        pending["items"].as_array()?.is_empty().then_some(())
    })
    .await;
    mix.wait_idle(configs.len() * 20).await;
    mix.assert_all_arrived(configs.len() * 20).await;
}

const LONG_AGO: &str = "2020-01-01T00:00:00Z";

impl Mix {
    async fn begin(&self, action: &str, webhook: &str) -> String {
        let body = json!({ "id": webhook, "since": LONG_AGO });
        let begun = eventually(PATIENCE, async || {
            let reply = self.erp.request(action, &[], &body).await;
            (reply["success"] == true).then(|| reply["data"].clone())
        });
        begun.await["replayId"].as_str().expect("an id").to_owned()
    }

    /// Waits until none of these replays runs; how each ended.
    async fn ended(&self, webhook: &str, replay: &str) -> String {
        eventually(RECOVERY, async || {
            let all = self
                .erp
                .ask("webhook.replays", json!({ "id": webhook }))
                .await;
            let all = all["items"].as_array()?.clone();
            let this = all.iter().find(|one| one["id"] == replay)?.clone();
            let status = this["status"].as_str()?.to_owned();
            (status != "running").then_some(status)
        })
        .await
    }
}

#[tokio::test]
async fn replays_and_backfills_end_well_while_workers_die() {
    let mut mix = Mix::new().await;
    mix.publish(0..100).await;
    mix.wait_idle(100).await;
    let url = mix.receiver.url("/late");
    let config = json!({ "ordering": { "key": "data.customer" } });
    let (late, _) = mix
        .erp
        .webhook(&url, &["sales.order.created"], config)
        .await;
    let mut begun = Vec::new();
    for path in [
        "/plain", "/batched", "/ordered", "/failing", "/limited", "/v1a",
    ] {
        let id = mix.webhooks[path].clone();
        begun.push((path, id.clone(), mix.begin("webhook.replay", &id).await));
    }
    begun.push((
        "/late",
        late.clone(),
        mix.begin("webhook.backfill", &late).await,
    ));
    mix.publish(100..150).await;
    mix.kill_worker(0);
    mix.some_arrived(80).await;
    let gone = mix.webhooks.remove("/v1a").expect("it is there");
    let cancelled = begun[4].clone();
    let cancel = json!({ "id": cancelled.1, "replayId": cancelled.2 });
    let reply = mix.erp.request("webhook.cancel_replay", &[], &cancel).await;
    mix.erp.ask("webhook.delete", json!({ "id": gone })).await;
    for round in 0..3 {
        mix.kill_worker(round);
        mix.some_arrived(50).await;
    }

    for (path, webhook, replay) in &begun {
        if *path == "/v1a" {
            continue;
        }
        let status = mix.ended(webhook, replay).await;
        let was = if *path == "/limited" && reply["success"] == true {
            "cancelled"
        } else {
            "completed"
        };
        assert_eq!(status, was, "{path}");
    }
    mix.webhooks.insert("/late", late);
    mix.wait_idle(150).await;
    let requests = mix.receiver.requests();
    for (path, webhook) in &mix.webhooks {
        for (id, delivery) in mix.deliveries(webhook).await {
            assert_eq!(delivery["status"], "delivered", "{path}: {id} {delivery}");
        }
        let distinct: BTreeSet<_> = first_seen(&requests, path).into_iter().collect();
        assert_eq!(distinct.len(), 150, "{path}");
    }
    let pending = json!({ "status": "pending" });
    let pending = mix.erp.ask("delivery.list", pending).await;
    assert_eq!(pending["items"], json!([]), "of the deleted webhook too");
    assert_no_gaps(&mix.erp.events().await);
}

/// The versions of everything that was told of grow by one.
fn assert_no_gaps(events: &[Value]) {
    let mut versions: BTreeMap<String, BTreeSet<i64>> = BTreeMap::new();
    for event in events {
        let version = event["aggregateversion"].as_i64().expect("a version");
        let subject = event["subject"].as_str().expect("a subject").to_owned();
        versions.entry(subject).or_default().insert(version);
    }
    for (subject, versions) in versions {
        let gapless = versions
            .iter()
            .copied()
            .eq(1..=i64::try_from(versions.len()).expect("few"));
        assert!(gapless, "{subject}: {versions:?}");
    }
}
