//! The lanes of one worker, an endpoint that answers by a rule, and a floor that is set by hand.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use integration_worker::{
    application::{
        blocked_lanes::BlockedLanes,
        breakers::{BreakerSettings, Breakers},
        deliver::Deliverer,
        endpoints::Endpoints,
        former_streams::FormerStreams,
        health::Health,
        in_hand::InHand,
        lanes::{OrderedLanes, STRETCH},
        leased::LeasedAttempts,
        leases::Leases,
        parked::ParkedLane,
        ports::{
            BusError, Clock, DeadLetter, EventPublisher, HttpAnswer, HttpSender, OutboundRequest,
            SendError, SourceFloor, TokenFault,
        },
        recorder::Recorder,
        wakers::Wakers,
        webhook_changes::WebhookChanges,
    },
    domain::{
        entities::{Batching, Delivery, DeliveryStatus, LanePlace, Webhook},
        events::{BusinessEvent, EventMeta, Payload},
        interfaces::{
            DeliveryStore as _, FirstRecord, OutboxRow, Queries as _, RecordBatch, Store,
            StoredEvent,
        },
        policies::{Breaker, BreakerRules, EndpointState},
        values::{DeliveryId, LaneKey, Timestamp},
    },
    infrastructure::{clock::SystemClock, sqlite::SqliteStore},
    shared::lifecycle::{Alarm, Group},
};
use sqlx::Connection as _;
use tokio::sync::watch;

use crate::fixture::{self, Fixture};

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(25);

/// Waits until it is so.
pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let done = tokio::time::timeout(PATIENCE, waiting).await;
    assert!(done.is_ok(), "not in time: {what}");
}

/// Set by hand; counts how often it was asked.
pub(crate) struct Floor {
    pub(crate) value: AtomicI64,
    /// What the source stream has given out.
    pub(crate) last: AtomicI64,
    pub(crate) asked: AtomicUsize,
    pub(crate) is_down: AtomicBool,
}

impl Default for Floor {
    fn default() -> Self {
        Self {
            value: AtomicI64::default(),
            last: AtomicI64::new(i64::MAX),
            asked: AtomicUsize::default(),
            is_down: AtomicBool::default(),
        }
    }
}

#[async_trait]
impl SourceFloor for Floor {
    async fn floor(&self) -> Result<i64, BusError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.is_down.load(Ordering::SeqCst) {
            return Err(BusError {
                what: "a question".to_owned(),
                source: "no answer".into(),
            });
        }
        Ok(self.value.load(Ordering::SeqCst))
    }

    async fn last(&self) -> Result<i64, BusError> {
        Ok(self.last.load(Ordering::SeqCst))
    }
}

/// What the endpoint does with a request, by the number of the event.
pub(crate) type Rule = Box<dyn Fn(i64) -> Does + Send + Sync>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Does {
    Answer,
    /// Waits until it is let go, and answers then.
    Hang,
    /// Waits until it is let go, and answers with a failure then.
    HangAndFail,
    /// This worker's name server does not answer.
    NoNames,
    /// There is no token for it.
    NoToken(TokenFault),
}

/// Remembers the numbers of the events that it got, in order.
pub(crate) struct Endpoint {
    rule: Rule,
    got: Mutex<Vec<i64>>,
    pub(crate) let_go: watch::Sender<bool>,
}

impl Endpoint {
    pub(crate) fn got(&self) -> Vec<i64> {
        self.got.lock().expect("nobody panics").clone()
    }
}

#[async_trait]
impl HttpSender for Endpoint {
    async fn send(&self, request: OutboundRequest) -> Result<HttpAnswer, SendError> {
        let body: serde_json::Value = serde_json::from_slice(&request.body).expect("JSON");
        let number = body["data"]["n"].as_i64().expect("a number");
        self.got.lock().expect("nobody panics").push(number);
        let does = (self.rule)(number);
        match does {
            Does::Answer => {}
            Does::Hang | Does::HangAndFail => {
                let mut let_go = self.let_go.subscribe();
                let_go.wait_for(|go| *go).await.expect("it is there");
            }
            Does::NoToken(fault) => {
                let reason = "none".to_owned();
                return Err(SendError::Token { reason, fault });
            }
            Does::NoNames => return Err(SendError::Lookup("no answer".to_owned())),
        }
        Ok(HttpAnswer {
            status: if does == Does::HangAndFail { 500 } else { 200 },
            retry_after: None,
            body: String::new(),
            whole: None,
        })
    }
}

/// Takes everything.
struct Bus;

#[async_trait]
impl EventPublisher for Bus {
    async fn publish(&self, _: &[OutboxRow]) -> Result<(), BusError> {
        Ok(())
    }

    async fn dead_letter(&self, _: &DeadLetter) -> Result<(), BusError> {
        Ok(())
    }
}

/// A worker's lanes, not started yet.
pub(crate) struct World {
    pub(crate) fixture: Fixture,
    pub(crate) webhook: Webhook,
    pub(crate) clock: Arc<SystemClock>,
    pub(crate) breakers: Arc<Breakers>,
    pub(crate) leases: Arc<Leases>,
    pub(crate) floor: Arc<Floor>,
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) group: Group,
    pub(crate) stretch: Duration,
    folder: tempfile::TempDir,
}

impl World {
    pub(crate) async fn new(rule: impl Fn(i64) -> Does + Send + Sync + 'static) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let fixture = Fixture::at(&folder.path().join("lanes.db")).await;
        let webhook = fixture.create(7, &["order.*"]).await;
        let store: Arc<dyn Store> = Arc::new(fixture.store.clone());
        let clock = Arc::new(SystemClock::new());
        let as_clock: Arc<dyn Clock> = Arc::<SystemClock>::clone(&clock);
        let wakers = Arc::<Wakers>::default();
        let changes = WebhookChanges::new(Arc::clone(&store), Arc::clone(&as_clock), wakers);
        let settings = BreakerSettings {
            rules: BreakerRules::default(),
            disable_after: Duration::from_hours(24),
        };
        Self {
            breakers: Breakers::new(store, as_clock, changes, settings),
            fixture,
            webhook,
            clock,
            leases: Arc::default(),
            floor: Arc::default(),
            endpoint: Arc::new(Endpoint {
                rule: Box::new(rule),
                got: Mutex::default(),
                let_go: watch::Sender::new(false),
            }),
            group: Group::new("test", &Alarm::default()),
            stretch: STRETCH,
            folder,
        }
    }

    pub(crate) fn store(&self) -> &SqliteStore {
        &self.fixture.store
    }

    /// Starts everything.
    pub(crate) fn start(&self) {
        let store: Arc<dyn Store> = Arc::new(self.fixture.store.clone());
        let clock: Arc<dyn Clock> = Arc::<SystemClock>::clone(&self.clock);
        let (wakers, health) = (Arc::<Wakers>::default(), Arc::<Health>::default());
        let registry = Arc::new(self.fixture.registry());
        let recorder = Recorder {
            store: Arc::clone(&store),
            publisher: Arc::new(Bus),
            in_hand: Arc::<InHand>::default(),
            leases: Arc::clone(&self.leases),
            wakers: Arc::clone(&wakers),
            give_up: tokio_util::sync::CancellationToken::new(),
        };
        let attempts = Arc::new(LeasedAttempts {
            clock: Arc::clone(&clock),
            deliverer: Arc::new(Deliverer::new(
                Arc::clone(&clock),
                Arc::<Endpoint>::clone(&self.endpoint),
                Arc::clone(&self.breakers),
                Endpoints::new(64),
                64,
                tokio_util::sync::CancellationToken::new(),
            )),
            outcomes: recorder.start(&self.group, 1_000),
        });
        self.breakers.start(&self.group);
        OrderedLanes {
            store: Arc::clone(&store),
            floor: Arc::<Floor>::clone(&self.floor),
            registry: Arc::clone(&registry),
            clock: Arc::clone(&clock),
            attempts: Arc::clone(&attempts),
            leases: Arc::clone(&self.leases),
            wakers: Arc::clone(&wakers),
            health: Arc::clone(&health),
            stretch: self.stretch,
        }
        .start(&self.group);
        FormerStreams {
            store: Arc::clone(&store),
            source: Arc::<Floor>::clone(&self.floor),
            wakers: Arc::clone(&wakers),
        }
        .start(&self.group);
        BlockedLanes {
            store: Arc::clone(&store),
            registry: Arc::clone(&registry),
            wakers: Arc::clone(&wakers),
        }
        .start(&self.group);
        ParkedLane {
            store,
            registry,
            clock,
            attempts,
            leases: Arc::clone(&self.leases),
            wakers,
            health,
        }
        .start(&self.group, &self.group);
    }

    pub(crate) fn store_now(&self) -> Timestamp {
        self.clock.store_now()
    }

    /// The breaker is open, and its wait is over.
    pub(crate) async fn open_breaker(&self) {
        self.open_breaker_of(&self.webhook).await;
    }

    /// The same, for another webhook.
    pub(crate) async fn open_breaker_of(&self, webhook: &Webhook) {
        let state = EndpointState {
            failures: 10,
            failing_since: Some(self.clock.now()),
            breaker: Breaker::Open {
                until: self.clock.now() - Duration::from_secs(1),
                times: 1,
            },
        };
        let mut work = self.fixture.begin().await;
        let put = work.put_endpoint_state(webhook.id, &state).await;
        put.expect("it is kept");
        work.commit().await.expect("it is committed");
    }

    /// A delivery of event `number`, whose message is so long; in this lane, if any.
    pub(crate) fn waiting(&self, number: i64, lane: Option<&str>, bytes: usize) -> FirstRecord {
        self.waiting_for(&self.webhook, number, lane, bytes)
    }

    /// The same, for another webhook.
    pub(crate) fn waiting_for(
        &self,
        webhook: &Webhook,
        number: i64,
        lane: Option<&str>,
        bytes: usize,
    ) -> FirstRecord {
        let now = self.clock.now();
        let id = format!("event-{number}");
        let body = format!("{{\"n\":{number}}}");
        let padding = " ".repeat(bytes.saturating_sub(body.len()));
        let raw = Bytes::from(body.clone() + &padding);
        let event = BusinessEvent {
            meta: EventMeta {
                id: id.clone(),
                source_sequence: Some(number),
                ..fixture::event("order.created")
            },
            payload: Payload::Json(raw.slice(..body.len())),
            raw: raw.clone(),
        };
        FirstRecord {
            delivery: Delivery {
                id: DeliveryId::derive(webhook.id, &webhook.meta.tenant, &id),
                tenant: webhook.meta.tenant.clone(),
                webhook_id: webhook.id,
                event_id: id,
                event_type: "order.created".to_owned(),
                correlation_id: None,
                source_sequence: Some(number),
                status: DeliveryStatus::Pending,
                attempt_count: 0,
                event_version: 0,
                budget_base: 0,
                next_attempt_at: Some(now),
                error: None,
                created_at: now,
                completed_at: None,
                lane: lane.map(|key| LanePlace {
                    key: LaneKey::new(key),
                    turn: number,
                    blocks: false,
                }),
                batch: Batching::Alone,
            },
            attempt: None,
            event: Some(StoredEvent {
                meta: event.stored_meta(),
                raw,
            }),
            events: Vec::new(),
        }
    }

    pub(crate) async fn park(&self, first: Vec<FirstRecord>) {
        let batch = RecordBatch {
            first,
            ..RecordBatch::default()
        };
        self.store().record(&batch).await.expect("they wait");
    }

    async fn connect(&self) -> sqlx::SqliteConnection {
        let options = sqlx::sqlite::SqliteConnectOptions::new()
            .filename(self.folder.path().join("lanes.db"))
            .busy_timeout(PATIENCE);
        let connection = sqlx::SqliteConnection::connect_with(&options).await;
        connection.expect("the database is there")
    }

    /// Changes the database behind the worker's back.
    pub(crate) async fn sql(&self, statement: &'static str) {
        let mut connection = self.connect().await;
        let done = sqlx::raw_sql(statement).execute(&mut connection).await;
        done.expect("it is done");
        connection.close().await.expect("it is closed");
    }

    /// Waits until the delivery of event `number` has been claimed.
    pub(crate) async fn until_claimed(&self, number: i64) {
        let mut connection = self.connect().await;
        let claimed = async {
            let epoch = "SELECT lease_epoch FROM deliveries WHERE source_sequence = ?1";
            while sqlx::query_scalar::<_, i64>(epoch)
                .bind(number)
                .fetch_one(&mut connection)
                .await
                .expect("it waits")
                == 0
            {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let done = tokio::time::timeout(PATIENCE, claimed).await;
        assert!(done.is_ok(), "{number} is not claimed");
    }

    /// Waits until the delivery of event `number` is delivered, and answers how many attempts it took.
    pub(crate) async fn attempts_until_delivered(&self, number: i64) -> i64 {
        let mut connection = self.connect().await;
        let delivered = async {
            let attempts = "SELECT attempt_count FROM deliveries
                WHERE source_sequence = ?1 AND status = 'delivered'";
            loop {
                let found = sqlx::query_scalar(attempts)
                    .bind(number)
                    .fetch_optional(&mut connection)
                    .await
                    .expect("it reads");
                if let Some(found) = found {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let done = tokio::time::timeout(PATIENCE, delivered).await;
        done.expect("it is delivered")
    }

    /// The events whose deliveries block their lanes.
    pub(crate) async fn blocking(&self) -> Vec<i64> {
        let mut connection = self.connect().await;
        let blocking = "SELECT lane_turn FROM deliveries WHERE lane_blocks ORDER BY lane_turn";
        let blocking = sqlx::query_scalar(blocking)
            .fetch_all(&mut connection)
            .await;
        blocking.expect("they can be read")
    }

    /// What the database answers to this.
    pub(crate) async fn count(&self, query: &'static str) -> i64 {
        let mut connection = self.connect().await;
        let counted = sqlx::query_scalar(query).fetch_one(&mut connection).await;
        counted.expect("it can be counted")
    }

    /// Waits until so many are delivered, as the store has it.
    pub(crate) async fn until_delivered(&self, count: i64) {
        let delivered = "SELECT count(*) FROM deliveries WHERE status = 'delivered'";
        let waiting = async {
            while self.count(delivered).await < count {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let done = tokio::time::timeout(PATIENCE, waiting).await;
        let got = self.endpoint.got();
        assert!(done.is_ok(), "{count} are wanted: {got:?}");
    }

    /// Waits until the endpoint has got `count` requests.
    pub(crate) async fn until_got(&self, count: usize) -> Vec<i64> {
        let waiting = async {
            while self.endpoint.got().len() < count {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let done = tokio::time::timeout(PATIENCE, waiting).await;
        let got = self.endpoint.got();
        assert!(done.is_ok(), "{count} are wanted: {got:?}");
        got
    }

    /// Waits until nothing is wrong with the endpoint any more, as the store has it.
    pub(crate) async fn until_closed(&self) {
        let waiting = async {
            let states = async || self.store().endpoint_states(10).await.expect("a list");
            while !states().await.is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let done = tokio::time::timeout(PATIENCE, waiting).await;
        assert!(done.is_ok(), "still open after {:?}", self.endpoint.got());
    }

    /// Some time later by the store's clock.
    pub(crate) fn later(&self, by: Duration) -> Timestamp {
        self.clock.set_store_time(self.clock.store_now() + by);
        self.clock.store_now()
    }
}
