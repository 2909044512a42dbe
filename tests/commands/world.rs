//! A handler with everything around it, and what it left behind.

use std::{
    collections::VecDeque,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use integration_worker::{
    application::{
        commands::{CommandHandler, CommandSettings, Handled, Incoming, Reply},
        dead_letter_box::DeadLetterBox,
        ports::{Clock, HttpAnswer, HttpSender, OutboundRequest, SendError},
        wakers::Wakers,
    },
    domain::{
        interfaces::{ClaimRequest, ClaimedDelivery, OutboxClaim, Store},
        policies::EgressPolicy,
        values::TenantId,
    },
    infrastructure::{
        clock::SystemClock,
        crypto::{RingCipher, generate_key_line},
        expression::Cel,
        postgres::{ConnectOptions, PostgresStore},
        sqlite::SqliteStore,
    },
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::support::postgres::Postgres;

pub(crate) const SEED: &str = r#"{"name":"My API Integration","type":"api","config":{"endpoint":"https://api.example.com","credentials":{"apiKey":"your-api-key"},"timeout":30000},"description":"Integration with external API","tags":["production","api"]}"#;

/// Endpoints that answer what they are told to, else 200.
pub(crate) struct PlayedEndpoints {
    /// One permit for each request that came.
    pub(crate) arrived: Semaphore,
    /// As many requests are answered as this gives permits for.
    pub(crate) answering: Semaphore,
    pub(crate) answers: Mutex<VecDeque<Result<HttpAnswer, SendError>>>,
    pub(crate) requests: Mutex<Vec<OutboundRequest>>,
}

impl Default for PlayedEndpoints {
    fn default() -> Self {
        Self {
            arrived: Semaphore::new(0),
            answering: Semaphore::new(1000),
            answers: Mutex::default(),
            requests: Mutex::default(),
        }
    }
}

#[async_trait]
impl HttpSender for PlayedEndpoints {
    async fn send(&self, request: OutboundRequest) -> Result<HttpAnswer, SendError> {
        self.requests.lock().unwrap().push(request);
        self.arrived.add_permits(1);
        self.answering.acquire().await.unwrap().forget();
        let answer = self.answers.lock().unwrap().pop_front();
        answer.unwrap_or_else(|| {
            Ok(HttpAnswer {
                whole: None,
                status: 200,
                retry_after: None,
                body: "ok".to_owned(),
            })
        })
    }
}

pub(crate) struct World {
    pub(crate) handler: Arc<CommandHandler>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) endpoints: Arc<PlayedEndpoints>,
    pub(crate) clock: Arc<SystemClock>,
    pub(crate) wakers: Arc<Wakers>,
    pub(crate) folder: TempDir,
    /// Dropped with this.
    _database: Option<Postgres>,
}

/// A command or query to be sent.
pub(crate) struct Call<'w> {
    world: &'w World,
    incoming: Incoming,
}

impl World {
    /// Over an SQLite file.
    pub(crate) async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&folder.path().join("store.db"))
            .await
            .unwrap();
        store.migrate().await.unwrap();
        Self::over(Arc::new(store), folder, None)
    }

    /// Over a database of PostgreSQL.
    pub(crate) async fn on_postgres() -> Self {
        let database = Postgres::database().await;
        let options = ConnectOptions { max_connections: 8 };
        let store = PostgresStore::connect(&database.url(), options)
            .await
            .unwrap();
        store.migrate().await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        Self::over(Arc::new(store), folder, Some(database))
    }

    fn over(store: Arc<dyn Store>, folder: TempDir, database: Option<Postgres>) -> Self {
        let clock = Arc::new(SystemClock::new());
        let keys = generate_key_line("k1", clock.as_ref());
        let endpoints = Arc::new(PlayedEndpoints::default());
        let wakers = Arc::new(Wakers::default());
        Self {
            handler: Arc::new(handler(&store, &keys, &clock, &endpoints, &wakers)),
            store,
            endpoints,
            clock,
            wakers,
            folder,
            _database: database,
        }
    }

    /// The same over another store.
    pub(crate) fn with_store(self, store: Arc<dyn Store>) -> Self {
        Self::over(store, self.folder, None)
    }

    /// Replaces the key ring.
    pub(crate) fn with_keys(&mut self, keys: &str) {
        self.handler = Arc::new(handler(
            &self.store,
            keys,
            &self.clock,
            &self.endpoints,
            &self.wakers,
        ));
    }

    /// A handler with a new key ring and this box of dead letters.
    pub(crate) fn with_dead_letters(&mut self, letters: Arc<dyn DeadLetterBox>) {
        let keys = generate_key_line("k1", self.clock.as_ref());
        let handler = handler(
            &self.store,
            &keys,
            &self.clock,
            &self.endpoints,
            &self.wakers,
        );
        self.handler = Arc::new(handler.with_dead_letters(letters));
    }

    /// A call as `<entity>.<action>`, over the request–reply path.
    pub(crate) fn call(&self, action: &str, body: &Value) -> Call<'_> {
        self.raw(action, body.to_string())
    }

    pub(crate) fn raw(&self, action: &str, body: impl Into<Bytes>) -> Call<'_> {
        let (entity, action) = action.split_once('.').unwrap();
        let incoming = Incoming {
            entity: entity.to_owned(),
            action: action.to_owned(),
            headers: Vec::new(),
            body: body.into(),
            fallback_id: self.clock.new_id(),
            durable: false,
        };
        Call {
            world: self,
            incoming,
        }
    }

    /// The data of a call that succeeds.
    pub(crate) async fn ok(&self, action: &str, body: Value) -> Value {
        self.call(action, &body).ok().await
    }

    /// The seed's integration; its id.
    pub(crate) async fn integration(&self) -> String {
        let seed: Value = serde_json::from_str(SEED).unwrap();
        id(&self.ok("integration.create", seed).await)
    }

    /// A webhook of that integration, for `order.created`.
    pub(crate) async fn webhook(&self, integration: &str, name: &str) -> Value {
        let body = json!({
            "name": name, "integrationId": integration, "events": ["order.created"],
            "config": { "url": "https://receiver.example.com/hook" },
        });
        self.ok("webhook.create", body).await
    }

    /// The events that were committed since the last time, as (type, CloudEvent), oldest first.
    pub(crate) async fn events(&self) -> Vec<(String, Value)> {
        let claim = OutboxClaim {
            holder: Uuid::nil(),
            now: self.clock.now(),
            lease: Duration::from_mins(1),
            responses: false,
            limit: 20_000,
            max_bytes: u32::MAX,
        };
        let rows = self.store.outbox_batch(claim).await.unwrap().unwrap();
        let ids: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
        self.store
            .outbox_published(&ids, self.clock.now())
            .await
            .unwrap();
        rows.into_iter()
            .map(|row| (row.event_type, serde_json::from_slice(&row.body).unwrap()))
            .collect()
    }

    /// The types of those events.
    pub(crate) async fn event_types(&self) -> Vec<String> {
        self.events()
            .await
            .into_iter()
            .map(|(kind, _)| kind)
            .collect()
    }

    pub(crate) async fn registry_version(&self) -> i64 {
        let status = self.ok("status.get", json!({})).await;
        status["registryVersion"].as_i64().unwrap()
    }

    /// What a lane would attempt now.
    pub(crate) async fn due(&self) -> Vec<ClaimedDelivery> {
        let now = self.clock.now();
        let request = ClaimRequest {
            now,
            lease_until: now,
            limit: 100,
            per_webhook: 100,
            exclude: Vec::new(),
            only: None,
        };
        self.store.claim_due(&request).await.unwrap().deliveries
    }

    /// Whether a text stands anywhere in the database's files.
    pub(crate) fn stored_anywhere(&self, text: &str) -> bool {
        let files = std::fs::read_dir(self.folder.path()).unwrap();
        files.flatten().any(|file| holds(&file.path(), text))
    }
}

impl Call<'_> {
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        let header = (name.to_owned(), value.to_owned());
        self.incoming.headers.push(header);
        self
    }

    pub(crate) fn key(self, key: &str) -> Self {
        self.header("Idempotency-Key", key)
    }

    pub(crate) fn durable(mut self) -> Self {
        self.incoming.durable = true;
        self
    }

    pub(crate) fn fallback(mut self, id: u128) -> Self {
        self.incoming.fallback_id = Uuid::from_u128(id);
        self
    }

    pub(crate) async fn send(self) -> Handled {
        self.world.handler.handle(self.incoming).await
    }

    pub(crate) async fn ok(self) -> Value {
        let action = format!("{}.{}", self.incoming.entity, self.incoming.action);
        match self.send().await.reply {
            Reply::Success(data) => data,
            Reply::Failure(refusal) => panic!("{action} was refused: {refusal:?}"),
        }
    }

    /// The code and the paths of a call that is refused.
    pub(crate) async fn refused(self) -> (&'static str, Vec<String>) {
        let action = format!("{}.{}", self.incoming.entity, self.incoming.action);
        match self.send().await.reply {
            Reply::Success(data) => panic!("{action} succeeded: {data}"),
            Reply::Failure(refusal) => {
                let paths = refusal.details.into_iter().map(|fault| fault.path);
                (refusal.code.as_str(), paths.collect())
            }
        }
    }
}

/// What [`Call::refused`] answers.
pub(crate) fn refusal(code: &'static str, paths: &[&str]) -> (&'static str, Vec<String>) {
    (code, paths.iter().map(|path| (*path).to_owned()).collect())
}

pub(crate) fn id(view: &Value) -> String {
    view["id"].as_str().unwrap().to_owned()
}

fn holds(path: &Path, text: &str) -> bool {
    let bytes = std::fs::read(path).unwrap();
    bytes
        .windows(text.len())
        .any(|window| window == text.as_bytes())
}

fn handler(
    store: &Arc<dyn Store>,
    keys: &str,
    clock: &Arc<SystemClock>,
    endpoints: &Arc<PlayedEndpoints>,
    wakers: &Arc<Wakers>,
) -> CommandHandler {
    CommandHandler::new(
        Arc::clone(store),
        Arc::new(RingCipher::from_text(keys).unwrap()),
        Arc::<SystemClock>::clone(clock),
        Arc::<PlayedEndpoints>::clone(endpoints),
        Arc::clone(wakers),
        CommandSettings {
            default_tenant: TenantId::try_new("default").unwrap(),
            max_body: 2 * 1024 * 1024,
            egress: EgressPolicy::default(),
            expressions: Arc::new(Cel),
        },
    )
}
