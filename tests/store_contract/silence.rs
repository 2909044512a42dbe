//! A database whose machine is gone: connections stay, but nothing comes over them any more. Of
//! PostgreSQL alone.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use integration_worker::{
    domain::{
        interfaces::{
            DeliveryStore as _, FirstRecord, Queries as _, RecordBatch, RegistryReader as _,
            StoreError, UnitOfWorkFactory as _,
        },
        values::WebhookId,
    },
    infrastructure::postgres::{ConnectOptions, PostgresStore},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
};
use url::Url;

use crate::{
    harness::everything_due,
    samples::{A_WHILE, at, delivery, integration, ours, parked, webhook},
    support::{PATIENCE, eventually, postgres::Postgres},
};

/// How long the store waits for an answer in these tests.
const CALL_TIMEOUT: Duration = Duration::from_millis(400);

/// Forwards connections to the database until it is frozen; ends with its tasks.
struct Proxy {
    url: String,
    frozen: Arc<watch::Sender<bool>>,
    /// Whether the next `BEGIN` freezes all.
    armed: Arc<AtomicBool>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    async fn before(database: &Postgres) -> Self {
        let mut url = Url::parse(&database.url()).expect("it is a URL");
        let target = url.socket_addrs(|| None).expect("it is an address")[0];
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let port = listener.local_addr().expect("it is bound").port();
        url.set_port(Some(port)).expect("it may have one");
        let frozen = Arc::new(watch::Sender::new(false));
        let gate = Arc::clone(&frozen);
        let armed = Arc::new(AtomicBool::new(false));
        let trap = Arc::clone(&armed);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut pumps = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(target).await else {
                    continue;
                };
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                let (gate, trap) = (Arc::clone(&gate), Arc::clone(&trap));
                let thawed = gate.subscribe();
                let look = move |bytes: &[u8]| {
                    let begins = bytes.windows(5).any(|word| word == b"BEGIN");
                    if begins && trap.swap(false, Ordering::SeqCst) {
                        gate.send_replace(true);
                    }
                };
                pumps.spawn(pump(from_client, to_server, thawed.clone(), look));
                pumps.spawn(pump(from_server, to_client, thawed, |_: &[u8]| {}));
            }
        });
        Self {
            url: url.to_string(),
            frozen,
            armed,
            _tasks: tasks,
        }
    }

    fn freeze(&self) {
        self.frozen.send_replace(true);
    }

    /// Freezes when a transaction begins: that much is on its way then.
    fn freeze_at_begin(&self) {
        self.armed.store(true, Ordering::SeqCst);
    }

    fn is_frozen(&self) -> bool {
        *self.frozen.borrow()
    }

    fn thaw(&self) {
        self.frozen.send_replace(false);
    }

    async fn store(&self, max_connections: u32) -> PostgresStore {
        let options = ConnectOptions { max_connections };
        let store = PostgresStore::connect(&self.url, options).await;
        store.expect("it connects")
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut frozen: watch::Receiver<bool>,
    look: impl Fn(&[u8]),
) {
    let mut bytes = [0; 8192];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        look(&bytes[..count]);
        let thawed = frozen.wait_for(|frozen| !frozen).await.map(drop);
        if thawed.is_err() || to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
    // Whoever goes while all is frozen cannot be seen going either.
    drop(frozen.wait_for(|frozen| !frozen).await);
}

async fn assert_given_up<T>(what: &str, call: impl Future<Output = Result<T, StoreError>>) {
    let answer = tokio::time::timeout(PATIENCE, call).await;
    let answer = answer.unwrap_or_else(|_| panic!("{what}: it waits for ever"));
    let error = answer.err().unwrap_or_else(|| panic!("{what}: it answers"));
    assert!(
        matches!(error, StoreError::Unavailable { .. }),
        "{what}: {error:?}"
    );
}

fn record(number: i64) -> FirstRecord {
    let hook = webhook(&integration("one"), "hook");
    parked(&delivery(&hook, number))
}

fn batch(first: FirstRecord) -> RecordBatch {
    RecordBatch {
        first: vec![first],
        leased: Vec::new(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_that_falls_silent_is_given_up_and_used_again_when_it_is_back() {
    let database = Postgres::database().await;
    let proxy = Proxy::before(&database).await;
    let store = proxy.store(2).await.with_call_timeout(CALL_TIMEOUT);
    store.migrate().await.expect("it migrates");
    let mut work = store.begin().await.expect("it begins");
    store.registry_version().await.expect("it reads");

    proxy.freeze();

    // The connection of the unit of work and a warm one, and then none: each is given up.
    assert_given_up(
        "command",
        work.webhook(&ours(), WebhookId(uuid::Uuid::nil())),
    )
    .await;
    drop(work);
    let lost = batch(record(1));
    assert_given_up("record", store.record(&lost)).await;
    assert_given_up("registry", store.registry_version()).await;
    assert_given_up("delta", store.registry_delta(0)).await;
    assert_given_up("claim", store.claim_due(&everything_due(at(9)))).await;
    assert_given_up(
        "delivery",
        store.delivery(&ours(), lost.first[0].delivery.id),
    )
    .await;
    assert_given_up("begin", store.begin()).await;
    assert_given_up("ping", store.ping()).await;

    proxy.thaw();

    // Both places of the pool are free again, and what is written is committed.
    eventually(PATIENCE, async || store.ping().await.ok()).await;
    let (one, two) = (
        eventually(PATIENCE, async || store.begin().await.ok()).await,
        eventually(PATIENCE, async || store.begin().await.ok()).await,
    );
    drop((one, two));
    let kept = batch(record(2));
    eventually(PATIENCE, async || store.record(&kept).await.ok()).await;
    assert_seen_by_others(&database, &kept).await;
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unit_of_work_that_is_dropped_while_it_begins_does_not_swallow_what_comes_after_it() {
    let database = Postgres::database().await;
    let proxy = Proxy::before(&database).await;
    let store = proxy.store(1).await;
    store.migrate().await.expect("it migrates");
    store.registry_version().await.expect("it reads");

    proxy.freeze_at_begin();
    let begun = tokio::time::timeout(A_WHILE, store.begin()).await;
    assert!(begun.is_err(), "nothing comes through");
    assert!(proxy.is_frozen(), "it had begun");
    proxy.thaw();

    let batch = batch(record(1));
    store.record(&batch).await.expect("it is recorded");
    assert_seen_by_others(&database, &batch).await;
    store.close().await;
}

async fn assert_seen_by_others(database: &Postgres, batch: &RecordBatch) {
    let other = crate::harness::connect(&database.url()).await;
    let expected = &batch.first[0].delivery;
    let seen = other.delivery(&expected.tenant, expected.id).await;
    let seen = seen.expect("it reads").map(|(delivery, _)| delivery);
    assert_eq!(seen.as_ref(), Some(expected));
    other.close().await;
}
