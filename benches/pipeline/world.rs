//! The servers, the sink and the worker that a scenario runs in.

use std::{net::SocketAddr, process::Command, time::Duration};

use async_nats::jetstream::consumer::{Consumer, pull};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    database::Database,
    processes::{self, Cpu},
    sink::{self, Seen},
    support::{
        PATIENCE,
        erp::Erp,
        nats::NatsServer,
        process::Process,
        variable,
        worker::{Environment, Worker},
    },
};

/// The size of an event as it is published.
pub(crate) const EVENT_BYTES: usize = 1024;
/// The subject and type of all events.
pub(crate) const EVENT_TYPE: &str = "sales.order.created";
/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// A scenario in which nothing moves for so long cannot be run.
const STALL: Duration = Duration::from_secs(90);
/// Publishes without an acknowledgement at a time.
const PUBLISH_AT_ONCE: u64 = 1_000;

/// Everything goes with it, the worker first.
pub(crate) struct World {
    worker: Option<Worker>,
    environment: Environment,
    pub(crate) erp: Erp,
    _sink: Process,
    requests: SocketAddr,
    commands: SocketAddr,
    postmaster: Option<u32>,
    /// The stream's last message.
    last_sequence: u64,
    /// How many were published without waiting for the stream.
    unconfirmed: u64,
    _nats: NatsServer,
    pub(crate) database: Database,
}

impl World {
    pub(crate) async fn on_postgres() -> Self {
        let database = Database::postgres().await;
        let postmaster = processes::postmaster_of(&database).await;
        Self::start(database, postmaster).await
    }

    pub(crate) async fn on_sqlite() -> Self {
        Self::start(Database::sqlite(), None).await
    }

    /// With a worker that is ready.
    async fn start(database: Database, postmaster: Option<u32>) -> Self {
        let nats = NatsServer::start().await;
        let this = std::env::current_exe().expect("this program has a path");
        let process = Process::spawn(Command::new(this).arg(sink::ARGUMENT));
        let (requests, commands) = process
            .output()
            .wait_for(PATIENCE, sink::addresses_in)
            .await;
        let mut world = Self {
            worker: None,
            environment: environment(&nats.url(), &database.url()),
            erp: Erp::connect(&nats.url()).await,
            _sink: process,
            requests,
            commands,
            postmaster,
            last_sequence: 0,
            unconfirmed: 0,
            _nats: nats,
            database,
        };
        world.start_worker();
        world.wait_answers().await;
        world
    }

    pub(crate) fn start_worker(&mut self) {
        self.worker = Some(Worker::start(&self.environment));
    }

    /// Waits until the worker is ready and its commands are answered.
    pub(crate) async fn wait_answers(&mut self) {
        if let Some(worker) = &mut self.worker {
            worker.wait_ready().await;
        }
        watch(async || {
            let subject = "integration.api.webhook.list";
            let asked = self.erp.client.request(subject, "{}".into()).await;
            Some((asked.ok().map(drop), 0))
        })
        .await;
    }

    /// As an administrator would, so that nothing is left in its hands.
    pub(crate) async fn stop_worker(&mut self) {
        if let Some(worker) = self.worker.take() {
            let code = worker.terminate().await;
            assert_eq!(code, 0, "the worker ends in order");
        }
    }

    pub(crate) fn sink_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.requests)
    }

    /// A webhook for all events: its id.
    pub(crate) async fn webhook(&self, path: &str) -> String {
        self.webhook_for(EVENT_TYPE, path, json!({})).await
    }

    /// A webhook for the events of a type, with more in its configuration than the URL: its id.
    pub(crate) async fn webhook_for(&self, kind: &str, path: &str, config: Value) -> String {
        let url = self.sink_url(path);
        self.erp.webhook(&url, &[kind], config).await.0
    }

    /// Publishes events with ids that were not published before.
    pub(crate) async fn publish(&mut self, count: u64) {
        self.publish_each(count, |_| json!({})).await;
    }

    /// The same, with more in each payload: what it makes of the event's number.
    pub(crate) async fn publish_each(&mut self, count: u64, more: impl Fn(u64) -> Value) {
        let mut left = count;
        while left > 0 {
            let now = left.min(PUBLISH_AT_ONCE);
            let mut sent = Vec::new();
            for number in 1..=now {
                let number = self.last_sequence + number;
                let body = event(&number.to_string(), &more(number));
                let publishing = self.erp.jetstream.publish(EVENT_TYPE, body.into());
                sent.push(publishing.await.expect("it is sent"));
            }
            for ack in sent {
                let ack = ack.await.expect("the stream takes it");
                self.last_sequence = self.last_sequence.max(ack.sequence);
            }
            left -= now;
        }
    }

    /// One event with `sentAt`, the moment before it is given to the client.
    pub(crate) async fn publish_now(&mut self) {
        self.publish_now_as(EVENT_TYPE).await;
    }

    /// The same of another type.
    pub(crate) async fn publish_now_as(&mut self, kind: &str) {
        let id = (self.last_sequence + 1).to_string();
        let body = event_of(kind, &id, &json!({ "sentAt": sink::wall_nanos() }));
        let publishing = self.erp.jetstream.publish(kind.to_owned(), body.into());
        let ack = publishing.await.expect("it is sent");
        self.last_sequence = ack.await.expect("the stream takes it").sequence;
    }

    /// One event of a type, without waiting for the stream.
    pub(crate) async fn publish_unconfirmed(&mut self, kind: &str) {
        self.unconfirmed += 1;
        let body = event_of(kind, &format!("u{}", self.unconfirmed), &json!({}));
        let publishing = self.erp.client.publish(kind.to_owned(), body.into());
        publishing.await.expect("it is sent");
    }

    /// Waits until every event is recorded and acknowledged: when, in nanoseconds since 1970.
    pub(crate) async fn settled(&self) -> u64 {
        let stream = self.erp.jetstream.get_stream("ERP_EVENTS").await;
        let stream = stream.expect("the worker has made it");
        let first = stream.consumers().next().await;
        let info = first.expect("the worker has made it").expect("it tells");
        let mut consumer: Consumer<pull::Config> =
            stream.get_consumer(&info.name).await.expect("it is there");
        let last = self.last_sequence;
        watch(async || {
            let info = consumer.info().await.ok()?;
            let left = info.num_pending + whole(info.num_ack_pending);
            let behind = last.saturating_sub(info.delivered.stream_sequence);
            let done = (left == 0 && behind == 0).then(sink::wall_nanos);
            Some((done, left + behind))
        })
        .await
    }

    /// Waits until the sink has answered so many requests.
    pub(crate) async fn served(&self, count: u64) -> Seen {
        watch(async || {
            let seen = self.seen().await;
            Some(((seen.served >= count).then_some(seen), seen.served))
        })
        .await
    }

    /// Waits until so many events have come to `/latency`.
    pub(crate) async fn live_served(&self, count: u64) {
        watch(async || {
            let told = self.tell_sink("latencies").await;
            let seen = whole(told.split_whitespace().count());
            Some(((seen >= count).then_some(()), seen))
        })
        .await;
    }

    pub(crate) async fn seen(&self) -> Seen {
        let answer = self.tell_sink("seen").await;
        sink::seen_in(&answer).expect("the sink tells")
    }

    /// A command to the sink: its answer.
    pub(crate) async fn tell_sink(&self, command: &str) -> String {
        let answer = sink::command(self.commands, command).await;
        answer.expect("the sink answers")
    }

    pub(crate) async fn wait_webhook_status(&self, webhook: &str, status: &str) {
        watch(async || {
            let found = self.erp.ask("webhook.get", json!({ "id": webhook })).await;
            Some(((found["status"] == status).then_some(()), 0))
        })
        .await;
    }

    /// Waits until no row waits: when, in nanoseconds since 1970.
    pub(crate) async fn drained(&self) -> u64 {
        watch(async || {
            let left = self.database.parked_rows().await;
            Some(((left == 0).then(sink::wall_nanos), left))
        })
        .await
    }

    /// Waits until a number of the database is less than it was.
    pub(crate) async fn falls(&self, statement: &'static str, from: i64) {
        watch(async || {
            let now = self.database.number(statement).await;
            Some(((now < from).then_some(()), now.unsigned_abs()))
        })
        .await;
    }

    pub(crate) fn cpu(&self) -> Cpu {
        Cpu::now(self.postmaster)
    }
}

/// The defaults, and what `BENCH_WORKER_ENV` changes of them (`MAX_IN_FLIGHT=128 RUST_LOG=warn`).
fn environment(nats_url: &str, database_url: &str) -> Environment {
    let changes = variable("BENCH_WORKER_ENV").unwrap_or_default();
    let changes = changes.split_whitespace();
    changes.filter_map(|one| one.split_once('=')).fold(
        Environment::new(nats_url, database_url),
        |environment, (name, value)| environment.with(name, value),
    )
}

/// Looks again and again until the first is `Some`; panics when neither it comes nor the second,
/// how far things are, moves.
async fn watch<T>(mut look: impl AsyncFnMut() -> Option<(Option<T>, u64)>) -> T {
    let mut stand = 0;
    let mut moved = Instant::now();
    loop {
        if let Some((done, now)) = look().await {
            if let Some(done) = done {
                return done;
            }
            if now != stand {
                (stand, moved) = (now, Instant::now());
            }
        }
        assert!(
            moved.elapsed() < STALL,
            "nothing has moved for {STALL:?}, at {stand}"
        );
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// An event of [`EVENT_BYTES`] in the ERP's own envelope.
pub(crate) fn event(id: &str, more: &Value) -> String {
    event_of(EVENT_TYPE, id, more)
}

fn event_of(kind: &str, id: &str, more: &Value) -> String {
    let mut payload = json!({
        "orderId": id, "customerId": "K-10443", "orderNumber": "AU-2026-004711",
        "totalNet": 18450.25, "totalGross": 21955.80,
    });
    for (name, value) in more.as_object().into_iter().flatten() {
        payload[name] = value.clone();
    }
    let whole = |note: &str| {
        let mut payload = payload.clone();
        payload["note"] = note.into();
        json!({
            "eventId": id, "eventType": kind, "occurredAt": "2026-11-02T08:14:09.120Z",
            "tenantId": "default", "payload": payload,
        })
        .to_string()
    };
    let room = EVENT_BYTES.saturating_sub(whole("").len());
    whole(&"n".repeat(room))
}

fn whole(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// Counts of a bench are far below the 2⁵³ from which this would lose digits.
#[expect(
    clippy::cast_precision_loss,
    reason = "counts and nanoseconds of a run"
)]
pub(crate) fn float(count: u64) -> f64 {
    count as f64
}

/// Seconds between two moments in nanoseconds.
pub(crate) fn seconds_between(start: u64, end: u64) -> f64 {
    float(end.saturating_sub(start)) / 1e9
}
